//! Applying to a database file directly, as an SQLite writer with a rollback journal does it.
//!
//! The journal is a genuine one: whoever opens the database after a crash, with or without us, rolls it back to exactly
//! the image before. Everything slow (old pages copied and synced) happens while readers go on; they are kept out only
//! from the moment the journal is armed until it is deleted.

use std::io;
use std::time::Duration;

use c_shim::{Code, File, Lock, OpenFlags};
use mycelite_journal::{PageSize, WriteBack};

use super::batch::{Batch, Pages, State};
use super::files::Files;
use super::wal_format::be32;
use super::{lock_page, random_u32, wait};
use crate::error::{Error, ErrorKind, Result};

/// First bytes of a rollback journal that is to be believed.
const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
/// Largest sector that SQLite takes from a journal.
const SECTOR_BYTES_MAX: u32 = 65536;
/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 1 << 20;
/// `SQLITE_IOCAP_POWERSAFE_OVERWRITE`: a power cut damages only the bytes being written.
const POWERSAFE_OVERWRITE: i32 = 0x1000;

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is in the file.
    Committed,
    /// Nothing was changed: readers held the file longer than the bound.
    Busy,
}

/// Writes `batch` as one transaction. The caller holds `Reserved` since before the batch was built, and gives up all
/// locks afterwards. After an error the journal may be hot: the caller lets SQLite recover.
pub(super) fn apply(files: &Files, db: &File, batch: &Batch, wait: Duration) -> Result<Outcome> {
    let before = fingerprint(files, db)?;
    let mut journal = Journal::prepare(files, db, batch)?;
    match wait::exclusive_pressing(db, wait) {
        Ok(()) => {}
        Err(code) => {
            journal.discard(files)?;
            return if code.is_busy() {
                Ok(Outcome::Busy)
            } else {
                Err(files.db_error("cannot lock the database", code))
            };
        }
    }
    // Waiting gives up the lock between two tries, and someone else may have come in.
    if fingerprint(files, db)? != before {
        journal.discard(files)?;
        return Err(
            Error::new(ErrorKind::Diverged, "someone else writes to this replica")
                .at(files.db.display()),
        );
    }
    if !files.exists(&files.journal)? {
        // SQLite deletes a journal that it finds beside an empty database.
        journal = Journal::prepare(files, db, batch)?;
    }
    journal.arm(files)?;
    write_pages(files, db, batch)?;
    journal.discard(files)?;
    Ok(Outcome::Committed)
}

/// What tells SQLite's own readers that a database was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint {
    length: u64,
    /// Change counter, page count, free list.
    counters: [u8; 16],
}

impl Fingerprint {
    /// Length of the file in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }
}

/// Takes the fingerprint of a file; the caller holds a lock.
pub(super) fn fingerprint(files: &Files, db: &File) -> Result<Fingerprint> {
    let mut counters = [0u8; 16];
    let length = db
        .size()
        .map_err(|code| files.db_error("cannot get the size", code))?;
    db.read_at(&mut counters, 24)
        .map_err(|code| files.db_error("cannot read", code))?;
    Ok(Fingerprint { length, counters })
}

/// Page size and page count of a file without a WAL: as SQLite sees them by the header, then by the file's length, which
/// is longer where a dying writer left it so. None, where it cannot be a database.
pub(super) fn geometries(files: &Files, db: &File) -> Result<Vec<(u32, u32)>> {
    let size = db
        .size()
        .map_err(|code| files.db_error("cannot get the size", code))?;
    if size == 0 {
        return Ok(vec![(0, 0)]);
    }
    let mut header = [0u8; 100];
    db.read_at(&mut header, 0)
        .map_err(|code| files.db_error("cannot read", code))?;
    // 65536 is stored as 1.
    let page_size = u32::from(header[16]) << 8 | u32::from(header[17]) << 16;
    if PageSize::new(page_size).is_none() {
        return Ok(Vec::new());
    }
    let by_length = u32::try_from(size / u64::from(page_size)).unwrap_or(u32::MAX);
    let by_header = be32(&header, 28);
    // The header's count holds if whoever changed the file last knew of that field.
    let known = header[24..28] == header[92..96] && (1..=by_length).contains(&by_header);
    let counts = [
        known.then_some(by_header),
        size.is_multiple_of(u64::from(page_size))
            .then_some(by_length),
    ];
    let mut found: Vec<_> = counts
        .into_iter()
        .flatten()
        .map(|count| (page_size, count))
        .collect();
    found.dedup();
    Ok(found)
}

/// Cuts off what lies behind the image. Nobody reads there; the caller holds what keeps writers and checkpoints away.
pub(super) fn trim(files: &Files, db: &File, state: &State) -> Result<()> {
    let failed = |code| files.db_error("cannot cut the file", code);
    if db.size().map_err(failed)? > state.bytes() {
        db.truncate(state.bytes())
            .and_then(|()| db.sync(true))
            .map_err(failed)?;
    }
    Ok(())
}

fn write_pages(files: &Files, db: &File, batch: &Batch) -> Result<()> {
    let mut writer = Writer::new(files, db, batch);
    batch.each(&mut writer)?;
    writer.flush()?;
    let failed = |code| files.db_error("cannot write", code);
    if db.size().map_err(failed)? != batch.to.bytes() {
        db.truncate(batch.to.bytes()).map_err(failed)?;
    }
    writer.sync()
}

/// Pages of a database file that nobody changes meanwhile.
pub(super) fn read_page(
    files: &Files,
    db: &File,
    page_size: u32,
    pgno: u32,
    page: &mut [u8],
) -> Result<()> {
    let offset = u64::from(pgno - 1) * u64::from(page_size);
    match db.read_at(page, offset) {
        Ok(length) if length == page.len() => Ok(()),
        Ok(_) => Err(Error::new(
            ErrorKind::Corrupt,
            format_args!("the file ends before page {pgno}"),
        )
        .at(files.db.display())),
        Err(code) => Err(files.db_error("cannot read", code)),
    }
}

/// The pages of a database file without a WAL, under a lock.
pub(super) struct Plain<'a> {
    pub files: &'a Files,
    pub db: &'a File,
    pub page_size: u32,
}

impl Pages for Plain<'_> {
    fn old(&mut self, pgno: u32, page: &mut [u8]) -> Result<()> {
        read_page(self.files, self.db, self.page_size, pgno, page)
    }

    fn put(&mut self, _pgno: u32, _page: &[u8]) -> Result<()> {
        Err(Error::new(
            ErrorKind::Internal,
            "pages are written by apply() only",
        ))
    }
}

/// Syncs the database file.
type SyncFile = Box<dyn FnMut() -> io::Result<()> + Send>;

/// Writes new pages into the database file, neighbours together.
pub(super) struct Writer<'a> {
    files: &'a Files,
    db: &'a File,
    from: State,
    to: State,
    /// Byte offset of the buffer.
    start: u64,
    buffer: Vec<u8>,
    behind: Option<WriteBack<SyncFile>>,
}

impl<'a> Writer<'a> {
    pub fn new(files: &'a Files, db: &'a File, batch: &Batch) -> Writer<'a> {
        Writer {
            files,
            db,
            from: batch.from,
            to: batch.to,
            start: 0,
            buffer: Vec::new(),
            behind: None,
        }
    }

    pub fn sync(&mut self) -> Result<()> {
        if let Some(mut behind) = self.behind.take() {
            behind.finish().map_err(|error| {
                Error::new(ErrorKind::Io, format_args!("cannot sync: {error}"))
                    .at(self.files.db.display())
            })?;
        }
        self.db
            .sync(true)
            .map_err(|code| self.files.db_error("cannot sync", code))
    }

    /// Much is written: the disk takes it meanwhile. The pages are not the image yet, or a journal tells of it.
    fn written_back(&mut self, bytes: u64) -> Result<()> {
        let behind = match &mut self.behind {
            Some(behind) => behind,
            None => {
                // A file of its own, by the VFS that has the other: closing it drops no lock.
                let file = self.files.open_db()?;
                let sync = move || {
                    let synced = file.sync(true);
                    synced.map_err(|code| io::Error::other(code.to_string()))
                };
                self.behind.insert(WriteBack::new(Box::new(sync)))
            }
        };
        behind.wrote(bytes);
        Ok(())
    }

    /// Writes what is still in memory.
    pub fn flush(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            let written = self.db.write_at(&self.buffer, self.start);
            written.map_err(|code| self.files.db_error("cannot write", code))?;
            let bytes = self.buffer.len() as u64;
            self.buffer.clear();
            if bytes >= BUFFER_BYTES as u64 {
                self.written_back(bytes)?;
            }
        }
        Ok(())
    }
}

impl Pages for Writer<'_> {
    fn old(&mut self, pgno: u32, page: &mut [u8]) -> Result<()> {
        // Only pages from `pgno` on are asked for, which are not written yet.
        read_page(self.files, self.db, self.from.page_size, pgno, page)
    }

    fn put(&mut self, pgno: u32, page: &[u8]) -> Result<()> {
        let offset = u64::from(pgno - 1) * u64::from(self.to.page_size);
        if offset != self.start + self.buffer.len() as u64 || self.buffer.len() >= BUFFER_BYTES {
            self.flush()?;
            self.start = offset;
        }
        self.buffer.extend_from_slice(page);
        Ok(())
    }
}

/// A rollback journal being written.
///
/// ```text
/// sector: magic (8) | page records (4) | nonce (4) | pages before (4) | sector size (4) | page size (4) | zeros
/// record: page number (4) | page | checksum (4)          all numbers big-endian
/// ```
struct Journal {
    file: File,
    nonce: u32,
    records: u32,
    end: u64,
    buffer: Vec<u8>,
}

impl Journal {
    /// Writes and syncs everything but magic and count, so that nobody takes it for hot yet.
    fn prepare(files: &Files, db: &File, batch: &Batch) -> Result<Journal> {
        let failed = |code| files.journal_error(code);
        let flags = OpenFlags::MAIN_JOURNAL | OpenFlags::READWRITE | OpenFlags::CREATE;
        let file = File::open(files.api, None, &files.journal, flags).map_err(failed)?;
        file.truncate(0).map_err(failed)?;
        let sector = sector_size(db);
        let mut journal = Journal {
            file,
            nonce: random_u32(),
            records: 0,
            end: 0,
            buffer: Vec::new(),
        };
        journal.buffer.resize(sector as usize, 0);
        let page_size = if batch.from.page_count > 0 {
            batch.from.page_size
        } else {
            batch.to.page_size
        };
        for (place, number) in [
            (12, journal.nonce),
            (16, batch.from.page_count),
            (20, sector),
            (24, page_size),
        ] {
            journal.buffer[place..place + 4].copy_from_slice(&number.to_be_bytes());
        }
        let mut keeper = Keeper {
            files,
            db,
            batch,
            journal,
            page: vec![0u8; page_size as usize],
        };
        keeper.keep_all()?;
        let mut journal = keeper.journal;
        journal.flush().map_err(failed)?;
        journal.file.sync(true).map_err(failed)?;
        Ok(journal)
    }

    fn record(&mut self, pgno: u32, page: &[u8]) -> Result<(), Code> {
        self.buffer.extend_from_slice(&pgno.to_be_bytes());
        self.buffer.extend_from_slice(page);
        self.buffer
            .extend_from_slice(&page_sum(self.nonce, page).to_be_bytes());
        self.records += 1;
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<(), Code> {
        self.file.write_at(&self.buffer, self.end)?;
        self.end += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Makes it hot: from here on the transaction is undone by whoever finds the journal.
    fn arm(&mut self, files: &Files) -> Result<()> {
        let mut start = [0u8; 12];
        start[..8].copy_from_slice(&MAGIC);
        start[8..].copy_from_slice(&self.records.to_be_bytes());
        let armed = self
            .file
            .write_at(&start, 0)
            .and_then(|()| self.file.sync(true));
        armed.map_err(|code| files.journal_error(code))
    }

    /// Deletes it: if it was armed, this is the commit.
    fn discard(self, files: &Files) -> Result<()> {
        drop(self.file);
        files.delete(&files.journal)
    }
}

/// Copies the pages that a batch will overwrite or cut off.
struct Keeper<'a> {
    files: &'a Files,
    db: &'a File,
    batch: &'a Batch,
    journal: Journal,
    page: Vec<u8>,
}

impl Keeper<'_> {
    fn keep_all(&mut self) -> Result<()> {
        let batch = self.batch;
        let empty = batch.from.page_count == 0 || batch.to.page_count == 0;
        let kept_whole = batch.resizes() || empty;
        if !kept_whole {
            batch.each(self)?;
        }
        let first = if kept_whole {
            1
        } else {
            batch.to.page_count.saturating_add(1)
        };
        (first..=batch.from.page_count).try_for_each(|pgno| self.keep(pgno))
    }

    fn keep(&mut self, pgno: u32) -> Result<()> {
        let page_size = self.batch.from.page_size;
        // Playback would stop at the lock-byte page, and nothing is ever written there.
        if pgno == lock_page(page_size) {
            return Ok(());
        }
        read_page(self.files, self.db, page_size, pgno, &mut self.page)?;
        let written = self.journal.record(pgno, &self.page);
        written.map_err(|code| self.files.journal_error(code))
    }
}

impl Pages for Keeper<'_> {
    fn old(&mut self, pgno: u32, page: &mut [u8]) -> Result<()> {
        read_page(self.files, self.db, self.batch.from.page_size, pgno, page)
    }

    fn put(&mut self, pgno: u32, _page: &[u8]) -> Result<()> {
        if pgno <= self.batch.from.page_count {
            self.keep(pgno)
        } else {
            Ok(())
        }
    }
}

/// SQLite's checksum of a journalled page: the nonce and every 200th byte, from the end.
fn page_sum(nonce: u32, page: &[u8]) -> u32 {
    let places = (1..)
        .map_while(|n: usize| page.len().checked_sub(200 * n))
        .take_while(|at| *at > 0);
    places
        .filter_map(|at| page.get(at))
        .fold(nonce, |sum, byte| sum.wrapping_add(u32::from(*byte)))
}

/// The sector size as SQLite's pager sees it.
fn sector_size(db: &File) -> u32 {
    if db.device_characteristics() & POWERSAFE_OVERWRITE != 0 {
        return 512;
    }
    match db.sector_size() {
        size if size < 32 || !size.is_power_of_two() => 512,
        size => size.min(SECTOR_BYTES_MAX),
    }
}

/// Takes `Shared` and `Reserved`, which keep other writers out while readers go on; given up on drop.
pub(super) struct Reserved<'a>(&'a File);

impl<'a> Reserved<'a> {
    /// Waits up to `wait`.
    pub fn take(files: &Files, db: &'a File, wait: Duration) -> Result<Option<Reserved<'a>>> {
        let attempt = || {
            db.lock(Lock::Shared)?;
            db.lock(Lock::Reserved).inspect_err(|_| {
                // Nothing better can be done about a failing unlock; the next try meets it again.
                let _ = db.unlock(Lock::None);
            })
        };
        match wait::until_unlocked(wait, attempt) {
            Ok(()) => Ok(Some(Reserved(db))),
            Err(code) if code.is_busy() => Ok(None),
            Err(code) => Err(files.db_error("cannot lock the database", code)),
        }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        // A failure leaves nothing to be done; the lock goes with the file.
        let _ = self.0.unlock(Lock::None);
    }
}
