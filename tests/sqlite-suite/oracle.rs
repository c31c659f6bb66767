//! Says whether the log of a database describes the file: `sqlite_suite_oracle --ours|--maybe-theirs|--replay DATABASE`.
//!
//! SQLite's testfixture starts it each time a process has closed a database for the last time (see fixture.c), and says
//! whether the last change of the file was that process's. One line with the answer, the head and the path goes to the file named by `SQLITE_SUITE_ORACLE_LOG`, else to standard output:
//!
//! * `equal`: the file is what the log says;
//! * `wrong`: it is not, although the log claims it: a stamp of a clean close fits the file;
//! * `behind`: it is not, and the log does not claim it: what is missing is compared and recorded at the next write;
//! * `unseen`: the same, and the last change may have been made without the extension: there was nothing to record it;
//! * `none`: there is no log, or no database in the file, or one that is too large; `busy`: another process has the database open; `pending`: a journal or WAL waits for recovery.
//!
//! `--replay` builds the image from the first record on, checking every checksum, and compares bytes.

use mycelite_journal::{
    Checksum, FileStorage, Image, OpenMode, Reader, RecordHeader, Storage, page_checksum,
};
use std::error::Error;
use std::fs::{File, Metadata, read};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of the largest database that is read: tests make sparse ones of many gigabytes.
const BYTES_MAX: u64 = 256 << 20;

/// Pages named of a log that differs.
const DETAIL_PAGES_MAX: usize = 8;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How the oracle is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// At a last close, after a change that was made through the extension.
    Ours,
    /// At a last close, after a change that may have been made without it.
    MaybeTheirs,
    /// When the test is over.
    Replay,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [how, path] = &arguments[..] else {
        return Err("usage: sqlite_suite_oracle --ours|--maybe-theirs|--replay DATABASE".into());
    };
    let asked = match how.as_str() {
        "--ours" => Asked::Ours,
        "--maybe-theirs" => Asked::MaybeTheirs,
        "--replay" => Asked::Replay,
        other => return Err(format!("unknown argument {other}").into()),
    };
    let line = match answer(Path::new(path), asked) {
        Ok((state, head, detail)) => format!("{state} {head} {path}{detail}\n"),
        Err(error) => format!("error - {path}: {error}\n"),
    };
    match std::env::var_os("SQLITE_SUITE_ORACLE_LOG") {
        Some(log) => File::options()
            .append(true)
            .create(true)
            .open(log)?
            .write_all(line.as_bytes())?,
        None => print!("{line}"),
    }
    Ok(())
}

/// The answer, the head, and for people what differs.
type Answer = (&'static str, u64, String);

fn answer(db: &Path, asked: Asked) -> Result<Answer> {
    let dir = beside(db, "-mycelite");
    let unasked = |state| Ok((state, 0, String::new()));
    let before = std::fs::metadata(db);
    let Some(found) = Found::read(db)?.filter(|_| dir.join("meta").exists()) else {
        return unasked("none");
    };
    if let Ok(users) = File::open(dir.join("users"))
        && users.try_lock().is_err()
    {
        return unasked("busy");
    }
    if waits_for_recovery(db) {
        return unasked("pending");
    }
    let mut reader = Reader::open(Arc::new(FileStorage::new(&dir)))?;
    let head = reader.head()?;
    let txid = head.as_ref().map_or(0, |entry| entry.header.txid.0);
    let equal = match &head {
        None => false,
        Some(_) if asked == Asked::Replay => found.is(&replayed(&dir)?),
        Some(head) => found.has_checksum(&head.header),
    };
    let meta = std::fs::metadata(db)?;
    if before.is_ok_and(|before| times(&before) != times(&meta)) {
        return unasked("busy");
    }
    // A process may have come, committed to a WAL, and gone.
    if !equal && waits_for_recovery(db) {
        return unasked("pending");
    }
    let state = match equal {
        true => "equal",
        false if claims(&dir, txid, &meta) => "wrong",
        false if asked == Asked::Ours => "behind",
        false => "unseen",
    };
    let detail = match state {
        "wrong" | "behind" => found.difference(&replayed(&dir).unwrap_or_default()),
        _ => String::new(),
    };
    Ok((state, txid, detail))
}

/// The image that the log describes, built from its first record on.
fn replayed(log: &Path) -> Result<Vec<u8>> {
    let mut reader = Reader::open(Arc::new(FileStorage::new(log)))?;
    let dir = tempfile::tempdir()?;
    let file = FileStorage::new(dir.path()).open("image", OpenMode::Create)?;
    let mut image = Image::new(file);
    while let Some(entry) = reader.next()? {
        image.apply(&entry)?;
    }
    Ok(read(dir.path().join("image"))?)
}

/// A database as it was found.
struct Found {
    bytes: Vec<u8>,
    page_size: u32,
    page_count: u32,
}

impl Found {
    /// Reads the file `db`; `None` when it is not a database.
    fn read(db: &Path) -> Result<Option<Found>> {
        let is_readable = |meta: &Metadata| meta.is_file() && meta.len() <= BYTES_MAX;
        if !std::fs::metadata(db).is_ok_and(|meta| is_readable(&meta)) {
            return Ok(None);
        }
        let bytes = read(db)?;
        let be32 = |at: usize| {
            bytes
                .get(at..at + 4)
                .map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
        };
        let page_size = match be32(16) >> 16 {
            1 => 65536,
            size => size,
        };
        let is_database = bytes.starts_with(b"SQLite format 3\0");
        if !is_database || page_size < 512 || !page_size.is_power_of_two() {
            return Ok(None);
        }
        let by_header = be32(28) > 0 && be32(24) == be32(92);
        let by_file = u32::try_from(bytes.len() as u64 / u64::from(page_size))?;
        Ok(Some(Found {
            page_count: if by_header { be32(28) } else { by_file },
            page_size,
            bytes,
        }))
    }

    /// The first `count` pages; what the file does not reach is zeros. `None` when the image has another size.
    fn pages(&self, page_size: usize, count: usize) -> Option<Vec<u8>> {
        let length = page_size * count;
        // Tests forge files of which header and length differ.
        let fits = self.page_count as usize == count || self.bytes.len() == length;
        if self.page_size as usize != page_size || !fits {
            return None;
        }
        let mut pages = self.bytes[..length.min(self.bytes.len())].to_vec();
        pages.resize(length, 0);
        Some(pages)
    }

    fn has_checksum(&self, header: &RecordHeader) -> bool {
        let size = header.page_size.get() as usize;
        let Some(pages) = self.pages(size, header.page_count as usize) else {
            return false;
        };
        let mut checksum = Checksum(0);
        for (pgno, page) in (1..).zip(pages.chunks_exact(size)) {
            if pgno != header.page_size.lock_page() {
                checksum ^= page_checksum(pgno, page);
            }
        }
        checksum == header.post_checksum
    }

    /// The first pages that differ from `image`.
    fn difference(&self, image: &[u8]) -> String {
        let size = self.page_size as usize;
        let mut pages = Vec::new();
        for pgno in 1..=self.bytes.len().max(image.len()).div_ceil(size) {
            let at = |bytes: &[u8]| bytes.chunks(size).nth(pgno - 1).map(<[u8]>::to_vec);
            if at(&self.bytes) != at(image) && pages.len() < DETAIL_PAGES_MAX {
                pages.push(pgno);
            }
        }
        let [found, logged] = [self.bytes.len(), image.len()].map(|length| length / size);
        format!(": pages {pages:?} of {found}, {logged} in the log")
    }

    fn is(&self, image: &[u8]) -> bool {
        let size = self.page_size as usize;
        self.pages(size, image.len() / size)
            .is_some_and(|pages| pages == image)
    }
}

/// Whether SQLite has something to roll back or to fold in before the file counts.
fn waits_for_recovery(db: &Path) -> bool {
    let has_wal = std::fs::metadata(beside(db, "-wal")).is_ok_and(|meta| meta.len() > 0);
    has_wal
        || read(beside(db, "-journal"))
            .is_ok_and(|bytes| bytes.iter().take(8).any(|&byte| byte != 0))
}

/// Whether the log's stamp says that the file, as it is now, is what the log describes at `txid`.
fn claims(dir: &Path, txid: u64, meta: &Metadata) -> bool {
    let Ok(stamp) = read(dir.join("stamp")) else {
        return false;
    };
    let mut expected = Vec::new();
    expected.extend(txid.to_le_bytes());
    expected.extend(meta.len().to_le_bytes());
    expected.extend(times(meta).into_iter().flat_map(i64::to_le_bytes));
    stamp.get(24..56) == Some(&expected[..])
}

/// When the file was last written to, and last changed, in ns since the epoch.
fn times(meta: &Metadata) -> [i64; 2] {
    [
        (meta.mtime(), meta.mtime_nsec()),
        (meta.ctime(), meta.ctime_nsec()),
    ]
    .map(|(seconds, nanos)| seconds * 1_000_000_000 + nanos)
}

fn beside(db: &Path, suffix: &str) -> PathBuf {
    let mut name = db.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
