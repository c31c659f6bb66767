//! A consistent copy of a database as SQLite reads it (the main file with the committed WAL frames folded in), taken from
//! outside while others go on writing.
//!
//! Two plain connections do it: one takes the write lock, so that no commit can happen, while the other begins to read.
//! The frames of the WAL are copied then; after that the writer is let go, and the reader's lock alone keeps the main
//! file from changing in any page that is not covered by those frames.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mycelite::error::{Error, ErrorKind, Result};
use mycelite_journal::{Checksum, PageSize, page_checksum};
use rusqlite::{Connection, ErrorCode, OpenFlags};

/// How long to wait for other users' locks.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// What SQLite prepends to every page in the WAL.
const FRAME_HEADER: u64 = 24;
const WAL_HEADER: u64 = 32;

/// The copy.
pub struct ImageCopy {
    /// The pages, one after the other; removed when dropped.
    pub file: File,
    /// Page size in bytes; `None` for an empty database.
    pub page_size: Option<PageSize>,
    /// Number of pages.
    pub page_count: u32,
    /// Checksum of the whole image.
    pub checksum: Checksum,
}

/// `path` with `suffix` after its name: `app.db` and `-wal` give `app.db-wal`.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path.as_os_str());
    name.push(suffix);
    PathBuf::from(name)
}

/// Copies the database at `db`, page by page, with a progress report after each (done, total).
pub fn take(db: &Path, progress: &mut dyn FnMut(u32, u32)) -> Result<ImageCopy> {
    // POSIX drops a process's locks when any descriptor of the file is closed: this one stays open until the connections
    // are gone, since locals are dropped in reverse order.
    let main = File::open(db).map_err(|source| Error::io("opening the database", db, &source))?;
    let io = |what: &'static str| move |source: std::io::Error| Error::io(what, db, &source);
    let mut copy = ImageCopy {
        file: tempfile::tempfile().map_err(no_room)?,
        page_size: None,
        page_count: 0,
        checksum: Checksum(0),
    };
    let reader = open(db)?;
    let snapshot = Snapshot::begin(db, &reader)?;
    let Some(page_size) = snapshot.page_size else {
        return Ok(copy);
    };
    let size = page_size.get() as usize;
    let mut page = vec![0u8; size];
    let mut out = std::io::BufWriter::with_capacity(1 << 20, &copy.file);
    for pgno in 1..=snapshot.page_count {
        if pgno == page_size.lock_page() {
            page.fill(0);
        } else {
            match snapshot.overlay.get(&pgno) {
                Some(offset) => snapshot.frames.read_exact_at(&mut page, *offset),
                None => read_padded(&main, &mut page, u64::from(pgno - 1) * size as u64),
            }
            .map_err(io("reading a page of the database"))?;
            copy.checksum ^= page_checksum(pgno, &page);
        }
        out.write_all(&page).map_err(no_room)?;
        progress(pgno, snapshot.page_count);
    }
    out.flush().map_err(no_room)?;
    drop(out);
    copy.page_size = Some(page_size);
    copy.page_count = snapshot.page_count;
    Ok(copy)
}

/// Fills `page` from `offset` on; what the file does not reach is zeros, as SQLite reads it.
fn read_padded(file: &File, page: &mut [u8], offset: u64) -> std::io::Result<()> {
    let mut done = 0;
    while done < page.len() {
        match file.read_at(&mut page[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(got) => done += got,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    page[done..].fill(0);
    Ok(())
}

/// A temporary file could not be made or filled.
pub fn no_room(source: std::io::Error) -> Error {
    Error::io(
        "writing a temporary file in",
        &std::env::temp_dir(),
        &source,
    )
    .hint("make room there, or name another directory in TMPDIR")
}

/// What the reading connection sees.
struct Snapshot {
    page_size: Option<PageSize>,
    page_count: u32,
    /// The committed frames' pages, copied out of the WAL.
    frames: File,
    /// Where in `frames` the newest image of a page is.
    overlay: HashMap<u32, u64>,
}

impl Snapshot {
    fn begin(db: &Path, reader: &Connection) -> Result<Snapshot> {
        let failed = |error: rusqlite::Error| sqlite_error(db, &error);
        let writer = open(db)?;
        // A database that we may only read has no writers that could come between, or they are shut out by the same means.
        let locked = match writer.execute_batch("BEGIN IMMEDIATE") {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ReadOnly) => false,
            other => {
                other.map_err(failed)?;
                true
            }
        };
        let number = |sql: &str| {
            reader
                .query_row(sql, [], |row| row.get::<_, u32>(0))
                .map_err(failed)
        };
        reader.execute_batch("BEGIN").map_err(failed)?;
        number("SELECT count(*) FROM sqlite_schema")?;
        let page_count = number("PRAGMA page_count")?;
        let page_size = PageSize::new(number("PRAGMA page_size")?).filter(|_| page_count > 0);
        let mut snapshot = Snapshot {
            page_size,
            page_count,
            frames: tempfile::tempfile().map_err(no_room)?,
            overlay: HashMap::new(),
        };
        let mode = reader
            .query_row("PRAGMA journal_mode", [], |row| row.get::<_, String>(0))
            .map_err(failed)?;
        if let (Some(page_size), "wal") = (page_size, mode.as_str()) {
            snapshot.copy_wal(&beside(db, "-wal"), page_size)?;
        }
        if locked {
            writer.execute_batch("ROLLBACK").map_err(failed)?;
        }
        Ok(snapshot)
    }

    /// Copies the newest image of each page in the committed part of the WAL.
    fn copy_wal(&mut self, path: &Path, page_size: PageSize) -> Result<()> {
        let io = |source: std::io::Error| Error::io("reading the WAL", path, &source);
        let mut wal = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io(error)),
        };
        let (newest, pages) = newest_frames(&mut wal, page_size).map_err(io)?;
        if let Some(pages) = pages
            && pages != self.page_count
        {
            return Err(Error::new(
                ErrorKind::Busy,
                "the WAL is being recovered or changed without a lock",
            )
            .at(path.display())
            .hint("try again"));
        }
        let mut page = vec![0u8; page_size.get() as usize];
        let mut at = 0;
        for (pgno, offset) in newest {
            wal.read_exact_at(&mut page, offset).map_err(io)?;
            self.frames.write_all_at(&page, at).map_err(no_room)?;
            self.overlay.insert(pgno, at);
            at += page.len() as u64;
        }
        Ok(())
    }
}

/// For each page the offset of its newest committed image in a WAL file, and the database's size in pages after the last
/// commit; nothing for a WAL without commits.
fn newest_frames(
    wal: &mut File,
    page_size: PageSize,
) -> std::io::Result<(HashMap<u32, u64>, Option<u32>)> {
    let mut input = std::io::BufReader::with_capacity(1 << 20, wal);
    input.seek(SeekFrom::Start(0))?;
    let mut newest = HashMap::new();
    let mut header = [0u8; WAL_HEADER as usize];
    if !filled(&mut input, &mut header)? {
        return Ok((newest, None));
    }
    let big_endian = be32(&header, 0) & 1 == 1;
    let mut sum = checksum(big_endian, &header[..24], [0, 0]);
    let valid = be32(&header, 0) & !1 == 0x377f_0682 && be32(&header, 8) == page_size.get();
    if !valid || sum != [be32(&header, 24), be32(&header, 28)] {
        return Ok((newest, None));
    }
    let size = u64::from(page_size.get());
    let mut frame = vec![0u8; (FRAME_HEADER + size) as usize];
    let mut transaction = Vec::new();
    let (mut offset, mut pages) = (WAL_HEADER, None);
    while filled(&mut input, &mut frame)? {
        sum = checksum(big_endian, &frame[..8], sum);
        sum = checksum(big_endian, &frame[FRAME_HEADER as usize..], sum);
        if frame[8..16] != header[16..24] || sum != [be32(&frame, 16), be32(&frame, 20)] {
            break;
        }
        transaction.push((be32(&frame, 0), offset + FRAME_HEADER));
        if be32(&frame, 4) != 0 {
            newest.extend(transaction.drain(..));
            pages = Some(be32(&frame, 4));
        }
        offset += FRAME_HEADER + size;
    }
    Ok((newest, pages))
}

/// Reads `buffer` full; false at the end of the file.
fn filled(input: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<bool> {
    match input.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    match bytes.get(at..at + 4) {
        Some(&[a, b, c, d]) => u32::from_be_bytes([a, b, c, d]),
        _ => 0,
    }
}

/// SQLite's running checksum of the WAL.
fn checksum(big_endian: bool, data: &[u8], before: [u32; 2]) -> [u32; 2] {
    let word = |bytes: [u8; 4]| {
        if big_endian {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        }
    };
    let [mut s1, mut s2] = before;
    for [a, b, c, d, e, f, g, h] in data.as_chunks::<8>().0 {
        s1 = s1.wrapping_add(word([*a, *b, *c, *d])).wrapping_add(s2);
        s2 = s2.wrapping_add(word([*e, *f, *g, *h])).wrapping_add(s1);
    }
    [s1, s2]
}

/// A plain connection, past our own VFS: what SQLite without us sees.
pub fn open(db: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags_and_vfs(db, flags, "unix")
        .map_err(|error| sqlite_error(db, &error))?;
    connection
        .busy_timeout(BUSY_TIMEOUT)
        .map_err(|error| sqlite_error(db, &error))?;
    Ok(connection)
}

/// An error of SQLite about the database `db`, with what to do.
pub fn sqlite_error(db: &Path, error: &rusqlite::Error) -> Error {
    let (kind, hint) = match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => (ErrorKind::Corrupt, "give a SQLite database"),
        Some(ErrorCode::DatabaseCorrupt) => (
            ErrorKind::Corrupt,
            "restore it from its log: mycelite restore",
        ),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            (ErrorKind::Busy, "another program holds its lock: try again")
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => (
            ErrorKind::Io,
            "check the permissions of the file and its directory",
        ),
        Some(ErrorCode::CannotOpen) => (
            ErrorKind::Io,
            "does it exist, and may you read and write it and its directory?",
        ),
        Some(ErrorCode::DiskFull) => (ErrorKind::Io, "make room on the disk"),
        _ => (ErrorKind::Io, ""),
    };
    let text = match error {
        rusqlite::Error::SqliteFailure(_, Some(message)) => message.clone(),
        other => other.to_string(),
    };
    let failed = Error::new(kind, text).at(db.display());
    if hint.is_empty() {
        failed
    } else {
        failed.hint(hint)
    }
}
