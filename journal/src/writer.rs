//! A log that is open for appending.

use std::sync::Arc;

use crate::build::Build;
use crate::cursor::{Cursor, Head};
use crate::entry::DAMAGE_HINT;
use crate::error::{Error, Result};
use crate::held::Held;
use crate::meta::{MARK_NAME, Meta, SyncMark};
use crate::pos::{DatabaseId, Txid};
use crate::record::{RecordHeader, TRAILER_LEN, Trailer};
use crate::segment::{
    Opened, SEAL_LEN, SEGMENT_BYTES_MAX, SEGMENT_HEADER_LEN, SEGMENT_RECORDS_MAX, Seal, Segment,
    SegmentHeader,
};
use crate::storage::{OpenMode, Storage, StorageFile};
use crate::write_back::WriteBack;

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
    pub(crate) cursor: Option<Cursor>,
    /// The cursor's segment, open for writing.
    pub(crate) active: Option<Box<dyn StorageFile>>,
    pub(crate) build: Build,
    pub(crate) held: Held,
    pub(crate) state: State,
    /// Bytes after the end are a record of ours that was given up: they may be cut without looking.
    pub(crate) void_tail: bool,
    /// The record here has header and trailer, but not its body: a power cut tore it.
    pub(crate) torn_at: Option<u64>,
    /// There is a file for the next segment already, whose creation was cut short.
    pub(crate) roll_next: bool,
    segment_bytes_max: u64,
    writes_back: bool,
    /// Brings the active segment to the disk while a long record is received.
    behind: Option<Behind>,
    /// Where the sync mark is kept.
    mark_file: Option<Box<dyn StorageFile>>,
    /// The last transaction that is surely on the disk.
    pub(crate) synced: Txid,
    /// The segment whose name is surely on the disk: who made another may have died before it synced the directory.
    pub(crate) named: Option<Txid>,
    /// A sync failed: the system may have dropped what it could not write, so that a later success proves nothing.
    sync_failed: bool,
}

type Behind = WriteBack<Box<dyn FnMut() -> std::io::Result<()> + Send + Sync>>;

/// What a [`Log`] is in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Idle,
    /// A record is being collected, and possibly streamed to the file.
    Building,
    /// `build.header` is in the file and lacks its trailer.
    Pending,
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

    pub(crate) fn new(storage: Arc<dyn Storage>, meta: Meta) -> Log {
        Log {
            storage,
            meta,
            cursor: None,
            active: None,
            build: Build::default(),
            held: Held::default(),
            state: State::Idle,
            void_tail: false,
            torn_at: None,
            roll_next: false,
            segment_bytes_max: SEGMENT_BYTES_MAX,
            writes_back: false,
            behind: None,
            mark_file: None,
            synced: Txid(0),
            named: None,
            sync_failed: false,
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

    /// Starts a new segment when the last one is longer than this, in bytes; [`SEGMENT_BYTES_MAX`] unless set. One that has
    /// [`SEGMENT_RECORDS_MAX`] records is ended in any case.
    pub fn set_segment_bytes_max(&mut self, bytes: u64) {
        self.segment_bytes_max = bytes;
    }

    /// Whether a long record that [`Log::append_raw`] or [`Log::hold_raw`] receives is brought to the disk meanwhile, by a thread, so
    /// that [`Log::sync`] has little left to do. Not unless set.
    pub fn set_write_back(&mut self, on: bool) {
        self.writes_back = on;
    }

    /// So many bytes of a record that is being received were written.
    pub(crate) fn written_back(&mut self, bytes: u64) {
        let Some(cursor) = self.cursor.as_ref().filter(|_| self.writes_back) else {
            return;
        };
        let (storage, name) = (&self.storage, &cursor.segment.name);
        let behind = self.behind.get_or_insert_with(|| {
            let (storage, name) = (Arc::clone(storage), Arc::clone(name));
            WriteBack::new(Box::new(move || {
                storage.open(&name, OpenMode::Write)?.sync()
            }))
        });
        behind.wrote(bytes);
    }

    pub(crate) fn segment_bytes_max(&self) -> u64 {
        self.segment_bytes_max
    }

    /// Length of all segments in bytes, unfinished records included.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn bytes(&self) -> Result<u64> {
        crate::segment::bytes_of_all(&*self.storage)
    }

    pub(crate) fn idle(&self) -> Result<()> {
        match self.state {
            State::Idle if self.held.is_empty() => Ok(()),
            State::Idle => Err(Error::Misuse("records wait to be written")),
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
        if self.state == State::Idle && !self.held.is_empty() {
            if self.has_room() {
                return Ok(());
            }
            self.write_held()?;
        }
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
            // An empty one is never left: the next would have its name.
            Some(cursor) if cursor.segment.first() == cursor.next_txid() => Ok(()),
            Some(cursor) if cursor.sealed || self.roll_next => self.new_segment(),
            Some(_) if self.has_room() => Ok(()),
            _ => self.new_segment(),
        }
    }

    /// Whether another record may go into the segment.
    fn has_room(&self) -> bool {
        self.cursor.as_ref().is_some_and(|cursor| {
            cursor.offset <= self.segment_bytes_max
                && cursor.next_txid().0 - cursor.segment.first().0 < SEGMENT_RECORDS_MAX
        })
    }

    /// Starts the next segment. The one before is on the disk by then: only the last segment can ever be torn.
    fn new_segment(&mut self) -> Result<()> {
        self.seal()?;
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
        self.roll_next = false;
        self.named = Some(header.first());
        Ok(())
    }

    /// Ends the segment and puts it on the disk.
    fn seal(&mut self) -> Result<()> {
        let Some(cursor) = &self.cursor else {
            return Ok(());
        };
        if !cursor.sealed {
            let at = cursor.offset;
            let seal = Seal {
                next: cursor.next_txid(),
                segment_len: at + SEAL_LEN as u64,
            };
            let bytes = seal.encode(&cursor.segment.header);
            self.write("sealing a segment", |file| file.write_at(&bytes, at))?;
        }
        if let Some(cursor) = &mut self.cursor
            && !cursor.sealed
        {
            cursor.move_behind_seal();
        }
        self.sync_now()
    }

    /// Puts everything published so far on the disk. Costs nothing when it is already there.
    ///
    /// # Errors
    /// [`Error::Io`]: what was published since the last success may be lost in a power cut.
    pub fn sync(&mut self) -> Result<()> {
        self.write_held()?;
        let head = self.head().pos.txid;
        if head == self.synced {
            return Ok(());
        }
        self.sync_now()
    }

    /// A [`Log::sync`] follows soon: the disk may begin with what it would wait for. Waits for nothing, and promises nothing.
    pub fn start_sync(&self) {
        if let Some(file) = &self.active
            && self.head().pos.txid != self.synced
        {
            file.start_sync();
        }
    }

    pub(crate) fn sync_now(&mut self) -> Result<()> {
        let behind = self.behind.take();
        let synced = self.write("syncing the log", |file| {
            behind.map_or(Ok(()), |mut behind| behind.finish())?;
            file.sync()
        });
        self.sync_failed |= synced.is_err();
        synced?;
        self.sync_name()?;
        self.synced = self.head().pos.txid;
        self.mark();
        Ok(())
    }

    /// Makes sure that the segment's name is on the disk.
    fn sync_name(&mut self) -> Result<()> {
        let segment = self.cursor.as_ref().map(|cursor| cursor.segment.first());
        if self.named != segment {
            self.storage.sync_dir().map_err(|source| {
                Error::io(
                    "syncing the log's directory",
                    self.storage.display(""),
                    source,
                )
            })?;
            self.named = segment;
        }
        Ok(())
    }

    /// Notes how far the log is on the disk. A failure costs nothing but this note.
    fn mark(&mut self) {
        let Some(cursor) = &self.cursor else { return };
        if self.sync_failed || cursor.records_end() <= SEGMENT_HEADER_LEN as u64 {
            return;
        }
        let mark = SyncMark {
            id: self.meta.id,
            segment: cursor.segment.first(),
            offset: cursor.records_end(),
            txid: cursor.head.pos.txid,
        };
        if self.mark_file.is_none() {
            self.mark_file = self.storage.open(MARK_NAME, OpenMode::Create).ok();
        }
        if let Some(file) = &self.mark_file {
            let _ = file.write_at(&mark.encode(), 0);
        }
    }
}
