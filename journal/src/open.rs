//! Finding the end of a log that is to be appended to, and putting it in order after a crash.

use std::sync::Arc;

use crate::cursor::{Cursor, Head, Step};
use crate::cut::finish_cut;
use crate::entry::{DAMAGE_HINT, PatchStream, RecordEntry};
use crate::error::{Error, Result};
use crate::meta::{Meta, SyncMark};
use crate::pos::Txid;
use crate::record::RecordHeader;
use crate::segment::{Opened, Segment, list_segments};
use crate::storage::Storage;
use crate::writer::{Log, State};

/// A complete record at the end of the log that lacks its trailer: its writer died between [`RecordWriter::prepare`] and
/// [`Log::publish`]. Whether its transaction was committed, only the database tells.
///
/// ```
/// # use std::sync::Arc;
/// # use mycelite_journal::*;
/// # let dir = tempfile::tempdir()?;
/// # let storage = Arc::new(FileStorage::new(dir.path()));
/// # let mut log = Log::create(storage.clone(), DatabaseId([7; 16]), 0)?;
/// # let mut record = log.begin(Draft::new(PageSize::MIN, 1, 1))?;
/// # record.patch(1, None, &[42; 512])?;
/// # record.prepare()?;
/// # drop(log);
/// # let page_of_the_database = |_| vec![42; 512];
/// let mut log = Log::open(storage)?;
/// if let Some(tail) = log.prepared()? {
///     let mut committed = true;
///     let mut patches = tail.patches();
///     while let Some(patch) = patches.next()? {
///         let page = page_of_the_database(patch.pgno());
///         committed &= patch.ranges().all(|(at, bytes)| &page[at..at + bytes.len()] == bytes);
///     }
///     if committed {
///         log.publish_prepared()?;
///     } else {
///         log.drop_tail()?;
///     }
/// }
/// assert_eq!(log.head().pos.txid, Txid(1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// [`RecordWriter::prepare`]: crate::RecordWriter::prepare
#[derive(Clone, Debug)]
pub struct PreparedTail {
    entry: RecordEntry,
}

impl PreparedTail {
    /// The record's header.
    #[must_use]
    pub fn header(&self) -> &RecordHeader {
        &self.entry.header
    }

    /// Its patches, for comparing with the database's pages.
    #[must_use]
    pub fn patches(&self) -> PatchStream {
        self.entry.patches()
    }
}

impl Log {
    /// Opens a log and finds its end. Changes no file, unless a cut ([`Log::truncate`]) was cut short: that is finished.
    ///
    /// What follows the last sync mark may have suffered a power cut, so the bodies of those records are checked too; the first
    /// that is not right, and all after it, count as a torn tail.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no log; [`Error::Corrupt`] if it is damaged in a way that no crash explains; [`Error::Version`];
    /// [`Error::Io`].
    pub fn open(storage: Arc<dyn Storage>) -> Result<Log> {
        let meta = Meta::read(&*storage)?;
        finish_cut(&*storage, meta.id)?;
        let mut log = Log::new(storage, meta);
        let Some(mut cursor) = log.last_segment()? else {
            return Ok(log);
        };
        log.synced = cursor.head.pos.txid;
        let mut damaged_at = None;
        while let Some(what) = log.scan(&mut cursor, true)? {
            if !cursor.is_synced(&*log.storage)? {
                break;
            }
            // A writer in another process may have finished and synced the record while we looked.
            if damaged_at == Some(cursor.offset) {
                return Err(cursor.corrupt(what, DAMAGE_HINT));
            }
            damaged_at = Some(cursor.offset);
        }
        log.cursor = Some(cursor);
        Ok(log)
    }

    /// Moves the cursor to the end of the log. Returns what is wrong with the bytes there, if there are any.
    pub(crate) fn scan(
        &mut self,
        cursor: &mut Cursor,
        check_bodies: bool,
    ) -> Result<Option<String>> {
        let mut check_next = self.torn_at == Some(cursor.offset);
        self.torn_at = None;
        loop {
            let check = check_bodies || check_next;
            let before = check.then(|| cursor.clone());
            let entry = match cursor.step(&*self.storage, self.meta.id)? {
                Step::End | Step::Seal => return Ok(None),
                Step::Unfinished(tail) => return Ok(Some(tail.why)),
                Step::Record(entry) => entry,
            };
            let Some(before) = before else { continue };
            if cursor.has_good_body(&entry)? {
                check_next = false;
            } else {
                *cursor = before;
                self.torn_at = Some(cursor.offset);
                return Ok(Some("the record's body is damaged".into()));
            }
        }
    }

    /// A cursor in the newest segment: at the sync mark if that is there, else at the start.
    fn last_segment(&mut self) -> Result<Option<Cursor>> {
        let segments = list_segments(&*self.storage)?;
        for (index, first) in segments.iter().enumerate().rev() {
            let segment = match Segment::open(&*self.storage, self.meta.id, *first)? {
                Opened::Segment(segment) => segment,
                Opened::Missing => continue,
                Opened::Unborn if self.roll_next => {
                    return Err(self.broken_segment(*first, "two segments without a header"));
                }
                Opened::Unborn => {
                    self.roll_next = true;
                    continue;
                }
            };
            let mark = SyncMark::read(&*self.storage, self.meta.id);
            if let Some(cursor) = Cursor::at_mark(&segment, mark.as_ref())? {
                self.named = Some(*first);
                return Ok(Some(cursor));
            }
            let mut cursor = Cursor::at_start(segment);
            if !cursor.whole_head
                && let Some(previous) = index.checked_sub(1).and_then(|i| segments.get(i))
            {
                let head = self.end_of(*previous)?;
                if head.pos != cursor.head.pos {
                    return Err(self.broken_segment(
                        *previous,
                        "it does not end where the next segment begins",
                    ));
                }
                cursor.head = head;
                cursor.whole_head = true;
            }
            return Ok(Some(cursor));
        }
        Ok(None)
    }

    /// The state at the end of a segment that another one follows.
    fn end_of(&self, first: Txid) -> Result<Head> {
        if let Opened::Segment(segment) = Segment::open(&*self.storage, self.meta.id, first)? {
            match Cursor::at_end_of(segment)? {
                Some(cursor) if cursor.sealed => return Ok(cursor.head),
                _ => {}
            }
        }
        Err(self.broken_segment(first, "it does not end with a record and a seal"))
    }

    pub(crate) fn broken_segment(&self, first: Txid, what: &str) -> Error {
        Error::Corrupt {
            path: self.storage.display(&crate::segment::segment_name(first)),
            offset: 0,
            txid: None,
            what: what.into(),
            hint: DAMAGE_HINT,
        }
    }

    /// Learns what other processes appended. Costs one read when they did not.
    ///
    /// # Errors
    /// As [`Log::open`].
    pub fn refresh(&mut self) -> Result<()> {
        self.give_up_held();
        if self.state != State::Idle {
            return Ok(());
        }
        if self.cursor.is_none() {
            self.cursor = match list_segments(&*self.storage)?.first() {
                None => None,
                Some(first) => match Segment::open(&*self.storage, self.meta.id, *first)? {
                    Opened::Segment(segment) => Some(Cursor::at_start(segment)),
                    Opened::Missing | Opened::Unborn => None,
                },
            };
        }
        let Some(mut cursor) = self.cursor.take() else {
            return Ok(());
        };
        // Since the lock was last held, others may have put a record of theirs where ours was given up.
        self.void_tail = false;
        let segment = cursor.segment.first();
        let scanned = self.scan(&mut cursor, false);
        if cursor.segment.first() != segment {
            self.active = None;
            self.roll_next = false;
        }
        self.cursor = Some(cursor);
        scanned.map(|_| ())
    }

    /// The complete record without a trailer at the very end of the log, if there is one: see [`PreparedTail`].
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Misuse`] while a record of this `Log` is under way.
    pub fn prepared(&mut self) -> Result<Option<PreparedTail>> {
        self.idle()?;
        let Some(cursor) = &mut self.cursor else {
            return Ok(None);
        };
        let Step::Unfinished(tail) = cursor.probe()? else {
            return Ok(None);
        };
        let Some(header) = tail.header else {
            return Ok(None);
        };
        // Its writer may have died within the trailer; anything longer was never a record's end.
        if cursor.size()? > cursor.offset + header.record_len() {
            return Ok(None);
        }
        let entry = RecordEntry::new(header, &cursor.segment, cursor.offset);
        match entry.verify() {
            Ok(()) => Ok(Some(PreparedTail { entry })),
            Err(Error::Corrupt { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Publishes the record that [`Log::prepared`] finds.
    ///
    /// # Errors
    /// [`Error::Misuse`] if there is none; [`Error::Io`].
    pub fn publish_prepared(&mut self) -> Result<RecordHeader> {
        let Some(tail) = self.prepared()? else {
            return Err(Error::Misuse("there is no prepared record to publish"));
        };
        self.build.header = tail.entry.header;
        self.state = State::Pending;
        let published = self.publish();
        self.state = State::Idle;
        published
    }

    /// Cuts away what follows the last published record (a torn or a prepared one), durably. Returns the bytes cut.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Misuse`] while a record of this `Log` is under way, or if there are records that [`Log::refresh`] has
    /// not seen.
    pub fn drop_tail(&mut self) -> Result<u64> {
        self.idle()?;
        let Some(cursor) = &mut self.cursor else {
            return Ok(0);
        };
        let end = cursor.offset;
        let tail = cursor.size()?.saturating_sub(end);
        if tail == 0 {
            self.void_tail = false;
            return Ok(0);
        }
        if !self.void_tail
            && let Step::Record(entry) = cursor.probe()?
        {
            match entry.verify() {
                Ok(()) => {
                    return Err(Error::Misuse(
                        "the log has grown: refresh it before cutting its tail",
                    ));
                }
                Err(Error::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        // Synced, so that a power cut cannot bring a cut record back behind a new one.
        self.write("cutting the log's unfinished tail", |file| {
            file.set_len(end)?;
            file.sync()
        })?;
        self.void_tail = false;
        Ok(tail)
    }
}
