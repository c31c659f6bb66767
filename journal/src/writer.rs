//! A log that is open for appending.

use std::sync::Arc;

use crate::build::Build;
use crate::cursor::{Cursor, Head, Step};
use crate::entry::{DAMAGE_HINT, PatchStream, RecordEntry};
use crate::error::{Error, Result};
use crate::meta::{MARK_NAME, Meta, SyncMark};
use crate::pos::{DatabaseId, Txid};
use crate::record::{RecordHeader, TRAILER_LEN, Trailer};
use crate::segment::{
    Opened, SEGMENT_BYTES_MAX, SEGMENT_HEADER_LEN, Segment, SegmentHeader, list_segments,
};
use crate::storage::{OpenMode, Storage, StorageFile};

/// A log that is open for appending.
///
/// Several processes may have one log open. **The caller makes sure that only one of them appends at a time** (a lock on the log
/// directory's `lock` file, held from [`Log::refresh`] to [`Log::publish`]); reading needs no lock.
///
/// A record comes into being in two steps, so that it can frame the commit of the transaction it describes: [`RecordWriter::prepare`]
/// puts all of it into the file but its trailer, [`Log::publish`] adds that. Between them the `Log` keeps the state.
/// [`RecordWriter::commit`] does both in one write.
///
/// ```
/// use std::sync::Arc;
/// use mycelite_journal::*;
/// # let dir = tempfile::tempdir()?;
/// let storage = Arc::new(FileStorage::new(dir.path()));
/// let mut log = Log::create(storage.clone(), DatabaseId([7; 16]), 1_700_000_000_000_000)?;
///
/// let page_size = PageSize::new(512).ok_or("size")?;
/// let mut record = log.begin(Draft::new(page_size, 1, 1_700_000_000_000_001))?;
/// record.patch(1, None, &[42; 512])?;
/// record.prepare()?;
/// // ... the transaction commits ...
/// let header = log.publish()?;
/// assert_eq!(header.txid, Txid(1));
/// log.sync()?;
///
/// let mut reader = Reader::open(storage)?;
/// assert_eq!(reader.next()?.map(|entry| entry.header), Some(header));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// [`RecordWriter::prepare`]: crate::RecordWriter::prepare
/// [`RecordWriter::commit`]: crate::RecordWriter::commit
pub struct Log {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) meta: Meta,
    /// Behind the last published record; `None` before the first segment.
    cursor: Option<Cursor>,
    /// The cursor's segment, open for writing.
    active: Option<Box<dyn StorageFile>>,
    pub(crate) build: Build,
    pub(crate) state: State,
    /// Bytes after the end are a record of ours that was given up: they may be cut without looking.
    pub(crate) void_tail: bool,
    /// The record here has header and trailer, but not its body: a power cut tore it.
    torn_at: Option<u64>,
    segment_bytes_max: u64,
    /// The last transaction that is surely on the disk.
    synced: Txid,
    /// A sync failed: the system may have dropped what it could not write, so that a later success proves nothing.
    sync_failed: bool,
}

/// What a [`Log`] is in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Idle,
    /// A record is being collected, and possibly streamed to the file.
    Building,
    /// `build.header` is in the file and lacks its trailer.
    Pending,
}

/// A complete record at the end of the log that lacks its trailer: its writer died between [`RecordWriter::prepare`] and
/// [`Log::publish`]. Whether its transaction was committed, only the database tells.
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
    /// Starts a new log in a directory that has none, durably.
    ///
    /// # Errors
    /// [`Error::Exists`] if there is a log, or a part of one; [`Error::Io`].
    pub fn create(storage: Arc<dyn Storage>, id: DatabaseId, created_us: u64) -> Result<Log> {
        let meta = Meta { id, created_us };
        meta.create(&*storage)?;
        Ok(Log::new(storage, meta))
    }

    /// Opens a log and finds its end. Changes no file.
    ///
    /// What follows the last sync mark may have suffered a power cut, so the bodies of those records are checked too; the first
    /// that is not right, and all after it, count as a torn tail.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no log; [`Error::Corrupt`] if it is damaged in a way that no crash explains; [`Error::Version`];
    /// [`Error::Io`].
    pub fn open(storage: Arc<dyn Storage>) -> Result<Log> {
        let meta = Meta::read(&*storage)?;
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
    fn scan(&mut self, cursor: &mut Cursor, check_bodies: bool) -> Result<Option<String>> {
        let mut check_next = self.torn_at == Some(cursor.offset);
        self.torn_at = None;
        loop {
            let check = check_bodies || check_next;
            let before = check.then(|| cursor.clone());
            match cursor.step(&*self.storage, self.meta.id)? {
                Step::End => return Ok(None),
                Step::Unfinished(tail) => return Ok(Some(tail.why)),
                Step::Record(entry) if check => match entry.verify() {
                    Ok(()) => check_next = false,
                    Err(error) => {
                        if let Some(before) = before {
                            *cursor = before;
                        }
                        let Error::Corrupt { what, .. } = error else {
                            return Err(error);
                        };
                        self.torn_at = Some(cursor.offset);
                        return Ok(Some(what));
                    }
                },
                Step::Record(_) => {}
            }
        }
    }

    fn new(storage: Arc<dyn Storage>, meta: Meta) -> Log {
        Log {
            storage,
            meta,
            cursor: None,
            active: None,
            build: Build::default(),
            state: State::Idle,
            void_tail: false,
            torn_at: None,
            segment_bytes_max: SEGMENT_BYTES_MAX,
            synced: Txid(0),
            sync_failed: false,
        }
    }

    /// A cursor in the newest segment: at the sync mark if that is there, else at the start.
    fn last_segment(&self) -> Result<Option<Cursor>> {
        let segments = list_segments(&*self.storage)?;
        let mut unborn = false;
        for (index, first) in segments.iter().enumerate().rev() {
            let segment = match Segment::open(&*self.storage, self.meta.id, *first)? {
                Opened::Segment(segment) => segment,
                Opened::Missing => continue,
                Opened::Unborn if unborn => {
                    return Err(self.broken_segment(*first, "two segments without a header"));
                }
                Opened::Unborn => {
                    unborn = true;
                    continue;
                }
            };
            let mark = SyncMark::read(&*self.storage, self.meta.id);
            if let Some(cursor) = Cursor::at_mark(&segment, mark.as_ref())? {
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
            let cursor = Cursor::at_start(segment.clone());
            if let Some(cursor) = Cursor::behind(segment, cursor.size()?)? {
                return Ok(cursor.head);
            }
        }
        Err(self.broken_segment(first, "it does not end with a whole record"))
    }

    fn broken_segment(&self, first: Txid, what: &str) -> Error {
        Error::Corrupt {
            path: self.storage.display(&crate::segment::segment_name(first)),
            offset: 0,
            txid: None,
            what: what.into(),
            hint: DAMAGE_HINT,
        }
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

    /// The state after the last published record that this `Log` has seen: see [`Log::refresh`].
    #[must_use]
    pub fn head(&self) -> &Head {
        match &self.cursor {
            Some(cursor) => &cursor.head,
            None => &Head::EMPTY,
        }
    }

    /// The first transaction of the segment that is appended to; all before it is on the disk. 0 before the first segment.
    #[must_use]
    pub fn segment_first(&self) -> Txid {
        self.cursor
            .as_ref()
            .map_or(Txid(0), |cursor| cursor.segment.first())
    }

    /// Starts a new segment when the last one is longer than this, in bytes; [`SEGMENT_BYTES_MAX`] unless set.
    pub fn set_segment_bytes_max(&mut self, bytes: u64) {
        self.segment_bytes_max = bytes;
    }

    /// Length of all segments in bytes, unfinished records included.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn bytes(&self) -> Result<u64> {
        crate::segment::bytes_of_all(&*self.storage)
    }

    /// Learns what other processes appended. Costs one read and one failing open when they did not.
    ///
    /// # Errors
    /// As [`Log::open`].
    pub fn refresh(&mut self) -> Result<()> {
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

    pub(crate) fn idle(&self) -> Result<()> {
        match self.state {
            State::Idle => Ok(()),
            State::Building => Err(Error::Misuse("a record is being written")),
            State::Pending => Err(Error::Misuse(
                "a prepared record waits to be published or discarded",
            )),
        }
    }

    /// Whether more than the Pos of the head is known: not so in a history that was cut down to an empty segment.
    pub(crate) fn knows_head(&self) -> bool {
        self.cursor.as_ref().is_none_or(|cursor| cursor.whole_head)
    }

    /// Where the next record goes.
    pub(crate) fn end(&self) -> u64 {
        self.cursor.as_ref().map_or(0, |cursor| cursor.offset)
    }

    /// The header of the record that waits for [`Log::publish`] or [`Log::discard`].
    #[must_use]
    pub fn pending(&self) -> Option<&RecordHeader> {
        (self.state == State::Pending).then_some(&self.build.header)
    }

    /// Publishes the pending record: from now on it exists.
    ///
    /// # Errors
    /// [`Error::Io`]: the record is still pending, and `publish` may be tried again. [`Error::Misuse`] if there is none.
    pub fn publish(&mut self) -> Result<RecordHeader> {
        if self.state != State::Pending {
            return Err(Error::Misuse("there is no prepared record to publish"));
        }
        let header = self.build.header;
        let trailer = Trailer::of(&header).encode();
        let at = self.end() + header.record_len() - TRAILER_LEN as u64;
        self.write("publishing a record", |file| file.write_at(&trailer, at))?;
        self.published(&header);
        Ok(header)
    }

    /// A record is complete in the file.
    pub(crate) fn published(&mut self, header: &RecordHeader) {
        self.state = State::Idle;
        if let Some(cursor) = &mut self.cursor {
            cursor.moved(header, cursor.offset + header.record_len());
        }
    }

    /// Cuts the pending record away: its transaction was rolled back. Does nothing if there is none.
    ///
    /// # Errors
    /// [`Error::Io`]: the record is given up all the same, and cut when the next one begins.
    pub fn discard(&mut self) -> Result<()> {
        if self.state == State::Idle {
            return Ok(());
        }
        self.state = State::Idle;
        self.void_tail = true;
        self.cut("cutting a discarded record")
    }

    /// Cuts at the end of the last published record.
    pub(crate) fn cut(&mut self, what: &'static str) -> Result<()> {
        let end = self.end();
        self.write(what, |file| file.set_len(end))?;
        self.void_tail = false;
        Ok(())
    }

    /// Runs a change of the active segment's file, which is opened for writing first if it is not yet.
    pub(crate) fn write(
        &mut self,
        what: &'static str,
        change: impl FnOnce(&dyn StorageFile) -> std::io::Result<()>,
    ) -> Result<()> {
        let Some(cursor) = &self.cursor else {
            return Err(Error::Misuse("the log has no segment yet"));
        };
        let failed = |source| Error::io(what, cursor.segment.path.to_string(), source);
        let file = match &self.active {
            Some(file) => file,
            None => {
                let file = self
                    .storage
                    .open(&cursor.segment.name, OpenMode::Write)
                    .map_err(failed)?;
                self.active.insert(file)
            }
        };
        change(&**file).map_err(failed)
    }

    /// Makes the end of the log ready for a record: no tail, a segment with room.
    pub(crate) fn make_room(&mut self) -> Result<()> {
        self.idle()?;
        let Some(cursor) = &self.cursor else {
            return self.new_segment();
        };
        let size = cursor.size()?;
        if size < cursor.offset {
            return Err(cursor.corrupt(
                format!("the file was cut to {size} bytes while it was in use"),
                DAMAGE_HINT,
            ));
        }
        if size > cursor.offset {
            if !self.void_tail && self.prepared()?.is_some() {
                return Err(Error::Misuse(
                    "the log ends with a prepared record of a writer that died: publish or drop it first",
                ));
            }
            self.drop_tail()?;
        }
        match &self.cursor {
            Some(cursor) if cursor.offset <= self.segment_bytes_max && !cursor.unborn_next => {
                Ok(())
            }
            _ => self.new_segment(),
        }
    }

    /// Starts the next segment. The one before is on the disk by then: only the last segment can ever be torn.
    fn new_segment(&mut self) -> Result<()> {
        self.sync()?;
        let header = SegmentHeader {
            id: self.meta.id,
            follows: self.head().pos,
        };
        let name = crate::segment::segment_name(header.first());
        let create = || -> std::io::Result<Box<dyn StorageFile>> {
            let file = self.storage.open(&name, OpenMode::Create)?;
            file.set_len(0)?;
            file.write_at(&header.encode(), 0)?;
            file.sync()?;
            self.storage.sync_dir()?;
            Ok(file)
        };
        let file = create().map_err(|source| {
            Error::io("starting a segment", self.storage.display(&name), source)
        })?;
        let Opened::Segment(segment) = Segment::open(&*self.storage, self.meta.id, header.first())?
        else {
            return Err(self.broken_segment(header.first(), "its header cannot be read back"));
        };
        let (head, whole_head) = (*self.head(), self.knows_head());
        let mut cursor = Cursor::at_start(segment);
        cursor.head = head;
        cursor.whole_head = whole_head;
        self.cursor = Some(cursor);
        self.active = Some(file);
        Ok(())
    }

    /// Puts everything published so far on the disk. Costs nothing when it is already there.
    ///
    /// # Errors
    /// [`Error::Io`]: what was published since the last success may be lost in a power cut.
    pub fn sync(&mut self) -> Result<()> {
        let head = self.head().pos.txid;
        if head == self.synced {
            return Ok(());
        }
        let synced = self.write("syncing the log", |file| file.sync());
        self.sync_failed |= synced.is_err();
        synced?;
        self.synced = head;
        self.mark();
        Ok(())
    }

    /// Notes how far the log is on the disk. A failure costs nothing but this note.
    fn mark(&self) {
        let Some(cursor) = &self.cursor else { return };
        if self.sync_failed || cursor.offset <= SEGMENT_HEADER_LEN as u64 {
            return;
        }
        let mark = SyncMark {
            id: self.meta.id,
            segment: cursor.segment.first(),
            offset: cursor.offset,
            txid: cursor.head.pos.txid,
        };
        if let Ok(file) = self.storage.open(MARK_NAME, OpenMode::Create) {
            let _ = file.write_at(&mark.encode(), 0);
        }
    }
}
