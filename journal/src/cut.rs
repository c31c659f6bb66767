//! Cutting a log back to an earlier transaction, and logs that begin in the middle of a history.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::archive::Archive;
use crate::bytes::{Put, Take};
use crate::cursor::{Cursor, Step};
use crate::error::{Error, FormatError, Result};
use crate::meta::{MARK_NAME, Meta};
use crate::pos::{Checksum, DatabaseId, Pos, Timeline, Txid};
use crate::record::{VERSION, check_hash};
use crate::sealed::format::{TEMP_SUFFIX, parse_snapshot_name};
use crate::sealed::merge::clear_superseded;
use crate::sealed::view::RawView;
use crate::segment::{Opened, Segment, SegmentHeader, first_of, list, list_segments, segment_name};
use crate::storage::{OpenMode, Storage, StorageFile, read_up_to};
use crate::writer::Log;

/// Name of the file that holds [`Cut`].
pub(crate) const CUT_NAME: &str = "cut";
const CUT_TEMP_NAME: &str = "cut.new";
const CUT_LEN: usize = 64;
const CUT_MAGIC: [u8; 8] = *b"MYCELCUT";
/// Bytes copied at once when a sealed segment becomes a raw one again.
const UNSEAL_BYTES: usize = 1024 * 1024;

/// What `cut` says: this record and all that follow are to go. While the file is there, a cut is under way.
///
/// ```
/// use mycelite_journal::{Cut, DatabaseId, Pos};
/// let cut = Cut { id: DatabaseId([7; 16]), first: "1/42/00000000000000ff".parse()? };
/// assert_eq!(Cut::decode(&cut.encode()).ok(), Some(cut));
/// # Ok::<(), mycelite_journal::ParsePosError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The database's id.
    pub id: DatabaseId,
    /// The first record that goes. A record with that number and another timeline or checksum came after the cut.
    pub first: Pos,
}

impl Cut {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> [u8; CUT_LEN] {
        let put = Put::<CUT_LEN>::new()
            .slice(&CUT_MAGIC)
            .u16(VERSION)
            .zeros(6)
            .slice(&self.id.0)
            .u64(self.first.timeline.0)
            .u64(self.first.txid.0)
            .u64(self.first.checksum.0);
        let hash = xxh3_64(put.so_far());
        put.u64(hash).done()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// When the bytes are too few, damaged, or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Cut, FormatError> {
        let bytes = bytes.first_chunk::<CUT_LEN>().ok_or(FormatError::Short)?;
        let mut take = Take::new(bytes);
        if take.array()? != CUT_MAGIC {
            return Err(FormatError::Magic("cut file"));
        }
        check_hash(bytes, "cut file")?;
        let version = take.u16()?;
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        take.zeros::<6>()?;
        Ok(Cut {
            id: DatabaseId(take.array()?),
            first: Pos {
                timeline: Timeline(take.u64()?),
                txid: Txid(take.u64()?),
                checksum: Checksum(take.u64()?),
            },
        })
    }

    /// The cut that is under way, if there is one.
    fn read(storage: &dyn Storage, id: DatabaseId) -> Result<Option<Cut>> {
        let path = || storage.display(CUT_NAME);
        let file = match storage.open(CUT_NAME, OpenMode::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::io("opening the note of a cut", path(), source)),
        };
        let mut bytes = [0; CUT_LEN];
        let length = read_up_to(&*file, &mut bytes, 0)
            .map_err(|source| Error::io("reading the note of a cut", path(), source))?;
        let corrupt = |what: String| Error::Corrupt {
            path: path(),
            offset: 0,
            txid: None,
            what,
            hint: "it says where the log was to be cut: remove it only if you know that the cut is not wanted",
        };
        match Cut::decode(bytes.get(..length).unwrap_or_default()) {
            Ok(cut) if cut.id == id => Ok(Some(cut)),
            Ok(cut) => Err(corrupt(format!("it belongs to database {}", cut.id))),
            Err(FormatError::Version(found)) => Err(Error::Version {
                path: path(),
                found,
                known: VERSION,
            }),
            Err(error) => Err(corrupt(error.to_string())),
        }
    }

    /// Notes the cut, durably: from here on it happens, whatever fails.
    fn write(&self, storage: &dyn Storage) -> Result<()> {
        let write = || -> std::io::Result<()> {
            let file = storage.open(CUT_TEMP_NAME, OpenMode::Create)?;
            file.set_len(0)?;
            file.write_at(&self.encode(), 0)?;
            file.sync()?;
            storage.rename(CUT_TEMP_NAME, CUT_NAME)?;
            storage.sync_dir()
        };
        write().map_err(|source| Error::io("noting a cut", storage.display(CUT_NAME), source))
    }
}

impl Log {
    /// Cuts off every record after `to`, durably, and the log ends there. What is to be kept of the rest must be elsewhere
    /// before, and on the disk. Does nothing when the log ends at `to` already.
    ///
    /// After a crash at any moment the log ends where it did or at `to`: [`Log::open`] finishes a cut that has begun.
    /// Needs the writers' lock, a [`Log::refresh`] under it, and the lock of [`seal`](crate::seal). Snapshots of what is cut off
    /// go too; a sealed segment that is cut becomes a raw one. Readers beside it may fail, and find the end anew when
    /// they are opened again; they never see one history's record behind the other's that it does not fit.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the log never was at `to`; [`Error::Misuse`] while a record is under way; [`Error::Io`]: then
    /// open the log again before its next use.
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
    /// let first = Reader::open(storage)?.find(Txid(1))?.ok_or("no such transaction")?;
    /// log.truncate(first.header.pos())?;
    /// assert_eq!(log.head().pos.txid, Txid(1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn truncate(&mut self, to: Pos) -> Result<()> {
        self.idle()?;
        let head = self.head().pos;
        if to == head {
            return Ok(());
        }
        // So that a crash before the cut begins leaves all of the log, and not a part.
        self.sync()?;
        // What a crash left of a compaction would outlive the cut.
        clear_superseded(&Archive::open(Arc::clone(&self.storage))?)?;
        let misfit = |found: String| Error::Mismatch {
            what: "where the log is to be cut",
            expected: to.to_string(),
            found,
        };
        let mut reader = crate::reader::Reader::open(Arc::clone(&self.storage))?;
        let (before, first) = match reader.find(to.txid.next())? {
            Some(first) if to.txid.0 == 0 => (Pos::ZERO, first),
            Some(first) => match reader.find(to.txid)? {
                Some(before) => (before.header.pos(), first),
                None => match reader.follows()?.filter(|pos| pos.txid == to.txid) {
                    Some(before) => (before, first),
                    None => return Err(misfit("nothing: it is older than the log".into())),
                },
            },
            None => return Err(misfit(format!("the log's end at {head}"))),
        };
        if before != to {
            return Err(misfit(before.to_string()));
        }
        let cut = Cut {
            id: self.meta.id,
            first: first.header.pos(),
        };
        cut.write(&*self.storage)?;
        finish_cut(&*self.storage, self.meta.id)?;
        self.reopen()
    }

    /// Forgets what was known of the files, and looks anew.
    fn reopen(&mut self) -> Result<()> {
        let segment_bytes_max = self.segment_bytes_max();
        *self = Log::open(Arc::clone(&self.storage))?;
        self.set_segment_bytes_max(segment_bytes_max);
        // The mark went with the cut; everything that is left is on the disk.
        if self.cursor.is_some() {
            self.sync_now()?;
        }
        Ok(())
    }

    /// Starts a log whose first record will follow `follows`, durably, in a directory that has none: a part of a history.
    ///
    /// # Errors
    /// As [`Log::create`].
    ///
    /// ```
    /// use std::sync::Arc;
    /// use mycelite_journal::{DatabaseId, FaultStorage, Log, Pos, Txid};
    /// let follows: Pos = "1/41/00000000000000ff".parse()?;
    /// let log = Log::create_after(Arc::new(FaultStorage::new()), DatabaseId([7; 16]), 0, follows)?;
    /// assert_eq!(log.head().pos, follows);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn create_after(
        storage: Arc<dyn Storage>,
        id: DatabaseId,
        created_us: u64,
        follows: Pos,
    ) -> Result<Log> {
        if follows == Pos::ZERO {
            return Log::create(storage, id, created_us);
        }
        let meta = Meta { id, created_us };
        meta.create(&*storage)?;
        let header = SegmentHeader { id, follows };
        let name = segment_name(header.first());
        let create = || -> std::io::Result<()> {
            let file = storage.open(&name, OpenMode::Create)?;
            file.write_at(&header.encode(), 0)?;
            file.sync()?;
            storage.sync_dir()
        };
        create()
            .map_err(|source| Error::io("starting a segment", storage.display(&name), source))?;
        Log::open(storage)
    }
}

/// Finishes a cut that has begun, if there is one.
///
/// The segment in which it begins comes last: as long as its record is there, everything behind it belongs to it.
pub(crate) fn finish_cut(storage: &dyn Storage, id: DatabaseId) -> Result<()> {
    let Some(cut) = Cut::read(storage, id)? else {
        return Ok(());
    };
    if let Some(place) = find_cut(storage, &cut)? {
        forget_mark(storage)?;
        for name in place.later.iter().rev() {
            remove(storage, name, "removing a segment that was cut off")?;
        }
        if let Some(view) = &place.segment.sealed {
            unseal(storage, view, &segment_name(place.segment.first()))?;
        }
        for name in &place.sealed {
            remove(storage, name, "removing the sealed form of a segment")?;
        }
        let name = &segment_name(place.segment.first());
        let shorten = || -> std::io::Result<()> {
            let file: Box<dyn StorageFile> = storage.open(name, OpenMode::Write)?;
            file.set_len(place.offset)?;
            file.sync()
        };
        shorten()
            .map_err(|source| Error::io("cutting a segment", storage.display(name), source))?;
    }
    remove(storage, CUT_NAME, "finishing a cut")
}

/// Removes a file's name durably.
fn remove(storage: &dyn Storage, name: &str, what: &'static str) -> Result<()> {
    let failed = |source| Error::io(what, storage.display(name), source);
    match storage.remove(name) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(failed(source)),
    }
    storage.sync_dir().map_err(failed)
}

/// A mark of what is cut off would speak of other bytes soon.
fn forget_mark(storage: &dyn Storage) -> Result<()> {
    remove(storage, MARK_NAME, "removing the sync mark")
}

/// Puts the raw form of a sealed segment beside it, durably.
fn unseal(storage: &dyn Storage, view: &RawView, name: &str) -> Result<()> {
    let failed = |source| Error::io("unsealing a segment", storage.display(name), source);
    let temp = format!("{name}{TEMP_SUFFIX}");
    let file = storage.open(&temp, OpenMode::Create).map_err(failed)?;
    file.set_len(0).map_err(failed)?;
    let mut bytes = vec![0; UNSEAL_BYTES];
    let mut at = 0;
    loop {
        let count = read_up_to(view, &mut bytes, at).map_err(failed)?;
        let part = bytes.get(..count).filter(|part| !part.is_empty());
        let Some(part) = part else { break };
        file.write_at(part, at).map_err(failed)?;
        at += count as u64;
    }
    file.sync().map_err(failed)?;
    storage.rename(&temp, name).map_err(failed)?;
    storage.sync_dir().map_err(failed)
}

/// Where a cut begins.
struct Place {
    /// The segment, in its raw form if it has that.
    segment: Segment,
    /// Where in it the first record to go begins.
    offset: u64,
    /// File names of its sealed form.
    sealed: Vec<String>,
    /// File names of the snapshots and segments behind it, in their order.
    later: Vec<String>,
}

impl Place {
    fn new(storage: &dyn Storage, cut: &Cut, segment: Segment, offset: u64) -> Result<Place> {
        let names = list(storage)?;
        let first = segment.first();
        let of = |name: &&String| first_of(name).filter(|of| *of >= first);
        let is_sealed = |name: &&String| of(name) == Some(first) && name.ends_with(".sealed");
        let mut later: Vec<(Txid, &String)> = names
            .iter()
            .filter_map(|name| Some((of(&name).filter(|of| *of > first)?, name)))
            .collect();
        later.sort_unstable();
        let snapshots = names
            .iter()
            .filter(|name| parse_snapshot_name(name).is_some_and(|at| at >= cut.first.txid));
        // What is removed first comes last.
        let later = later.into_iter().map(|(_, name)| name).chain(snapshots);
        Ok(Place {
            offset,
            sealed: names.iter().filter(is_sealed).cloned().collect(),
            later: later.cloned().collect(),
            segment,
        })
    }
}

/// The place of the cut; `None` if the first record to go is gone.
fn find_cut(storage: &dyn Storage, cut: &Cut) -> Result<Option<Place>> {
    let segments = list_segments(storage)?;
    let count = segments.partition_point(|first| *first <= cut.first.txid);
    for first in segments.iter().take(count).rev() {
        let Opened::Segment(segment) = Segment::open(storage, cut.id, *first)? else {
            continue;
        };
        let mut cursor = Cursor::at_start(segment);
        loop {
            let offset = cursor.offset;
            match cursor.step_inside()? {
                Some(header) if header.txid < cut.first.txid => {}
                Some(header) if header.pos() == cut.first => {
                    return Place::new(storage, cut, cursor.segment, offset).map(Some);
                }
                _ => return Ok(None),
            }
        }
    }
    Ok(None)
}

impl Cursor {
    /// Moves over the next record of this segment, if there is one.
    fn step_inside(&mut self) -> Result<Option<crate::record::RecordHeader>> {
        match self.probe()? {
            Step::Record(entry) => {
                self.moved(&entry.header, self.offset + entry.header.record_len());
                Ok(Some(entry.header))
            }
            Step::Seal | Step::End | Step::Unfinished(_) => Ok(None),
        }
    }
}
