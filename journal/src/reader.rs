//! Reading a log, beside a writer in any process.

use std::sync::Arc;

use crate::cursor::{Cursor, Step, Unfinished};
use crate::entry::{DAMAGE_HINT, RecordEntry};
use crate::error::{Error, Result};
use crate::meta::{Meta, SyncMark};
use crate::pos::{Checksum, DatabaseId, Pos, Txid};
use crate::segment::{Opened, SEAL_LEN, SEGMENT_HEADER_LEN, Segment, list_segments};
use crate::storage::Storage;
use crate::tail::{Searched, later_record};

/// Reads a log's published records. Changes no file, needs no lock, and is safe beside a writer in any process.
///
/// ```
/// # use std::sync::Arc;
/// # use mycelite_journal::*;
/// # let dir = tempfile::tempdir()?;
/// # let storage = Arc::new(FileStorage::new(dir.path()));
/// # let mut log = Log::create(storage.clone(), DatabaseId([7; 16]), 0)?;
/// # for byte in 1..=3u8 {
/// #     let old = [byte - 1; 512];
/// #     let old = (byte > 1).then_some(&old[..]);
/// #     let mut record = log.begin(Draft::new(PageSize::MIN, 1, 1))?;
/// #     record.patch(1, old, &[byte; 512])?;
/// #     record.commit()?;
/// # }
/// let mut reader = Reader::open(storage)?;
/// reader.seek(Txid(1))?; // what comes after transaction 1?
/// while let Some(entry) = reader.next()? {
///     println!("{}: {} pages", entry.header.txid, entry.header.patch_count);
/// }
/// assert_eq!(reader.head()?.map(|entry| entry.header.txid), Some(Txid(3)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Reader {
    storage: Arc<dyn Storage>,
    meta: Meta,
    /// Where `next` is.
    cursor: Option<Cursor>,
    /// Where the last look-up ended; the next is often close.
    lookup: Option<Cursor>,
    /// The end as last seen.
    tip: Option<Cursor>,
    /// The segment that was the last one when last listed.
    last_segment: Option<Txid>,
    searched: Option<Searched>,
}

impl Reader {
    /// Opens a log for reading from its beginning.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no log; [`Error::Corrupt`] or [`Error::Version`] for its `meta`; [`Error::Io`].
    pub fn open(storage: Arc<dyn Storage>) -> Result<Reader> {
        let meta = Meta::read(&*storage)?;
        Ok(Reader {
            storage,
            meta,
            cursor: None,
            lookup: None,
            tip: None,
            last_segment: None,
            searched: None,
        })
    }

    /// The database whose history this is.
    #[must_use]
    pub fn id(&self) -> DatabaseId {
        self.meta.id
    }

    /// When the log was created, µs since 1970.
    #[must_use]
    pub fn created_us(&self) -> u64 {
        self.meta.created_us
    }

    /// The oldest transaction in the log.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Io`].
    pub fn first_txid(&self) -> Result<Option<Txid>> {
        let Some(mut cursor) = self.oldest()? else {
            return Ok(None);
        };
        match cursor.probe()? {
            Step::Record(entry) => Ok(Some(entry.header.txid)),
            Step::Seal | Step::End | Step::Unfinished(_) => Ok(None),
        }
    }

    /// The place that the oldest record follows, or will follow: [`Pos::ZERO`] for a history from its beginning, else that of the
    /// snapshot with which the log begins. `None` while there is no segment.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Io`].
    pub fn follows(&self) -> Result<Option<Pos>> {
        Ok(self.oldest()?.map(|cursor| cursor.head.pos))
    }

    fn oldest(&self) -> Result<Option<Cursor>> {
        match list_segments(&*self.storage)?.first() {
            Some(first) => Ok(self.open_segment(*first)?.map(Cursor::at_start)),
            None => Ok(None),
        }
    }

    fn open_segment(&self, first: Txid) -> Result<Option<Segment>> {
        // A sealed one that is open already has what it rebuilt in memory: once is enough.
        let known = [&self.cursor, &self.lookup, &self.tip];
        for cursor in known.into_iter().flatten() {
            let segment = &cursor.segment;
            if segment.first() == first
                && let Some(view) = &segment.sealed
                && view.file.is_still(&*self.storage)?
            {
                return Ok(Some(segment.clone()));
            }
        }
        match Segment::open(&*self.storage, self.meta.id, first)? {
            Opened::Segment(segment) => Ok(Some(segment)),
            Opened::Missing | Opened::Unborn => Ok(None),
        }
    }

    /// Makes [`Reader::next`] return the record after transaction `after`; 0 for the first of all.
    ///
    /// # Errors
    /// [`Error::NotFound`] if `after` is older than the history or newer than the head; [`Error::Corrupt`], [`Error::Io`].
    pub fn seek(&mut self, after: Txid) -> Result<()> {
        if let Some(cursor) = self.go_to(after)? {
            self.cursor = Some(cursor);
            return Ok(());
        }
        if after.0 == 0 && list_segments(&*self.storage)?.is_empty() {
            self.cursor = None;
            return Ok(());
        }
        Err(self.no_such(after))
    }

    fn no_such(&self, after: Txid) -> Error {
        Error::NotFound {
            what: format!(
                "{}: transaction {} is not in this log",
                self.storage.display(""),
                after.next()
            ),
            hint: "it is older than the retained history, or newer than the log's end",
        }
    }

    /// A cursor behind transaction `after`; `None` if the log has no such place.
    fn go_to(&mut self, after: Txid) -> Result<Option<Cursor>> {
        let segments = list_segments(&*self.storage)?;
        let count = segments.partition_point(|first| *first <= after.next());
        for first in segments.iter().take(count).rev() {
            // One that is not born yet leaves its place to the one before.
            let Some(segment) = self.open_segment(*first)? else {
                continue;
            };
            let mut cursor = self.nearest(segment, after)?;
            while cursor.head.pos.txid < after {
                match self.step(&mut cursor)? {
                    Some(_) => {}
                    None => return Ok(None),
                }
            }
            return Ok(Some(cursor));
        }
        Ok(None)
    }

    /// The place nearest before `after` in this segment from which to go on.
    fn nearest(&self, segment: Segment, after: Txid) -> Result<Cursor> {
        if let Some(cursor) = Cursor::in_sealed(&segment, after)? {
            return Ok(cursor);
        }
        let marked = Cursor::at_mark(
            &segment,
            SyncMark::read(&*self.storage, self.meta.id).as_ref(),
        )?;
        let known = [&self.cursor, &self.lookup, &self.tip, &marked];
        let best = known
            .into_iter()
            .flatten()
            .filter(|cursor| {
                cursor.segment.first() == segment.first() && cursor.head.pos.txid <= after
            })
            .max_by_key(|cursor| cursor.head.pos.txid);
        Ok(match best {
            Some(cursor) => cursor.clone(),
            None => Cursor::at_start(segment),
        })
    }

    /// The next record; `None` if there is none yet, so that a later call may find one.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for damage before the log's end; [`Error::Version`]; [`Error::Io`].
    #[expect(
        clippy::should_implement_trait,
        reason = "the end is not final: more records may come"
    )]
    pub fn next(&mut self) -> Result<Option<RecordEntry>> {
        let mut cursor = match self.cursor.take() {
            Some(cursor) => cursor,
            None => match self.oldest()? {
                Some(cursor) => cursor,
                None => return Ok(None),
            },
        };
        let entry = self.step(&mut cursor);
        self.cursor = Some(cursor);
        entry
    }

    /// Moves over the next record; tells the end of the log from damage.
    fn step(&mut self, cursor: &mut Cursor) -> Result<Option<RecordEntry>> {
        match cursor.step(&*self.storage, self.meta.id)? {
            Step::Record(entry) => Ok(Some(entry)),
            Step::End | Step::Seal if self.last_segment == Some(cursor.segment.first()) => Ok(None),
            Step::End | Step::Seal => self.at_end(cursor, None),
            Step::Unfinished(tail) => self.at_end(cursor, Some(tail)),
        }
    }

    /// There is no whole record at the cursor: is that the end of the log?
    fn at_end(
        &mut self,
        cursor: &mut Cursor,
        tail: Option<Unfinished>,
    ) -> Result<Option<RecordEntry>> {
        let Some(verdict) = self.judge(cursor, tail)? else {
            return Ok(None);
        };
        // The writer may have finished the record, and more, while we looked around.
        match cursor.step(&*self.storage, self.meta.id)? {
            Step::Record(entry) => Ok(Some(entry)),
            // What follows was compacted or dropped while we were on the way.
            Step::End | Step::Seal if self.begins_behind(cursor.next_txid())? => {
                Err(self.no_such(cursor.head.pos.txid))
            }
            Step::Seal | Step::End | Step::Unfinished(_) => Err(verdict),
        }
    }

    /// Whether all that there is comes after transaction `txid`.
    fn begins_behind(&self, txid: Txid) -> Result<bool> {
        let segments = list_segments(&*self.storage)?;
        Ok(segments.first().is_some_and(|first| *first > txid))
    }

    /// Whether there is more of the log behind what looks like its end; returns the error for that.
    fn judge(&mut self, cursor: &Cursor, tail: Option<Unfinished>) -> Result<Option<Error>> {
        let more = self.more_follows(cursor)?;
        let what = match tail {
            None if more => "the segment ends here, but a later one follows".into(),
            None => {
                self.last_segment = Some(cursor.segment.first());
                return Ok(None);
            }
            Some(tail) => tail.why,
        };
        if more || cursor.is_synced(&*self.storage)? {
            return Ok(Some(cursor.corrupt(what, DAMAGE_HINT)));
        }
        let later = later_record(cursor, &mut self.searched)?;
        Ok(later.map(|later| {
            cursor.corrupt(
                format!("{what}, yet transaction {} follows", later.txid),
                "after a power cut, opening the database with the extension repairs this; else restore the file from a copy or a replica",
            )
        }))
    }

    /// Whether there is a segment after the cursor's that it cannot reach.
    fn more_follows(&self, cursor: &Cursor) -> Result<bool> {
        let newest = list_segments(&*self.storage)?.last().copied();
        if newest <= Some(cursor.segment.first()) {
            return Ok(false);
        }
        // One that is about to be started is none yet.
        let next = cursor.next_txid();
        Ok(newest != Some(next) || !cursor.sealed && self.open_segment(next)?.is_some())
    }

    /// One record; `None` if it is not in the log (any more, or yet).
    ///
    /// # Errors
    /// As [`Reader::next`].
    pub fn find(&mut self, txid: Txid) -> Result<Option<RecordEntry>> {
        if txid.0 == 0 {
            return Ok(None);
        }
        let Some(mut cursor) = self.go_to(txid.previous())? else {
            return Ok(None);
        };
        let entry = self.step(&mut cursor)?;
        self.lookup = Some(cursor);
        Ok(entry)
    }

    /// The newest record.
    ///
    /// # Errors
    /// As [`Reader::next`].
    pub fn head(&mut self) -> Result<Option<RecordEntry>> {
        match self.go_to_end()? {
            Some(cursor) => self.entry_before(&cursor),
            None => Ok(None),
        }
    }

    /// A cursor at the log's end.
    fn go_to_end(&mut self) -> Result<Option<Cursor>> {
        let mut cursor = match self.tip.take() {
            Some(cursor) => cursor,
            None => {
                let segments = list_segments(&*self.storage)?;
                let mut found = None;
                for first in segments.iter().rev() {
                    if let Some(segment) = self.open_segment(*first)? {
                        found = Some(self.nearest(segment, Txid(u64::MAX))?);
                        break;
                    }
                }
                match found {
                    Some(cursor) => cursor,
                    None => return Ok(None),
                }
            }
        };
        while self.step(&mut cursor)?.is_some() {}
        self.tip = Some(cursor.clone());
        Ok(Some(cursor))
    }

    /// The record before the cursor's place, which may end the segment before.
    fn entry_before(&self, cursor: &Cursor) -> Result<Option<RecordEntry>> {
        if let Some(entry) = cursor.behind_me()? {
            return Ok(Some(entry));
        }
        let first = cursor.segment.first();
        let segments = list_segments(&*self.storage)?;
        let Some(previous) = segments.iter().rev().find(|other| **other < first) else {
            return Ok(None);
        };
        let Some(segment) = self.open_segment(*previous)? else {
            return Ok(None);
        };
        match Cursor::at_end_of(segment.clone())? {
            Some(end) => end.behind_me(),
            None => Err(Error::Corrupt {
                path: segment.path.to_string(),
                offset: 0,
                txid: None,
                what: "the segment does not end with a whole record".into(),
                hint: DAMAGE_HINT,
            }),
        }
    }

    /// The newest record after which the database has this checksum. Walks back from the head.
    ///
    /// # Errors
    /// As [`Reader::next`].
    pub fn find_checksum(&mut self, checksum: Checksum) -> Result<Option<RecordEntry>> {
        let Some(mut cursor) = self.go_to_end()? else {
            return Ok(None);
        };
        while let Some(entry) = self.entry_before(&cursor)? {
            if entry.header.post_checksum == checksum {
                return Ok(Some(entry));
            }
            if entry.segment != cursor.segment.name {
                match self.open_segment_of(&entry)? {
                    Some(segment) => cursor = Cursor::at_start(segment),
                    None => return Ok(None),
                }
            }
            cursor.offset = entry.offset;
            cursor.sealed = false;
        }
        Ok(None)
    }

    fn open_segment_of(&self, entry: &RecordEntry) -> Result<Option<Segment>> {
        match crate::segment::first_of(&entry.segment) {
            Some(first) => self.open_segment(first),
            None => Ok(None),
        }
    }

    /// Length of all segments in bytes, unfinished records included.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn bytes(&self) -> Result<u64> {
        crate::segment::bytes_of_all(&*self.storage)
    }

    /// Bytes of the records after transaction `after`: how far behind someone is who has that. All records if `after` is older than
    /// the history, none if it is newer than the head.
    ///
    /// # Errors
    /// As [`Reader::next`].
    pub fn bytes_after(&mut self, after: Txid) -> Result<u64> {
        let Some(tip) = self.go_to_end()? else {
            return Ok(0);
        };
        if after >= tip.head.pos.txid {
            return Ok(0);
        }
        let from = match self.go_to(after)? {
            Some(cursor) => cursor,
            None => match self.oldest()? {
                Some(cursor) => cursor,
                None => return Ok(0),
            },
        };
        let (segment, offset) = (from.segment.first(), from.records_end());
        self.lookup = Some(from);
        let mut bytes = tip.records_end();
        for first in list_segments(&*self.storage)? {
            if segment <= first && first < tip.segment.first() {
                let size = match self.open_segment(first)? {
                    Some(segment) => Cursor::at_start(segment).size()?,
                    None => 0,
                };
                bytes += size.saturating_sub(SEAL_LEN as u64);
            }
            if segment < first && first <= tip.segment.first() {
                bytes -= SEGMENT_HEADER_LEN as u64;
            }
        }
        Ok(bytes.saturating_sub(offset))
    }
}
