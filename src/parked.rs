//! Parked tails: what a replica held of a timeline that its primary had lost, kept beside its log when a new timeline
//! began (P9).
//!
//! A tail is a directory in `parked` in the log's directory, named `TIMELINE-FIRST-LAST-TIME`: timeline of its last record,
//! first and last transaction, seconds since 1970. It is a log like any other, with the very bytes of the records, which
//! begins in the middle of the history.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use mycelite_journal::{
    Checksum, DatabaseId, Error, FileStorage, Log, Pos, RawLimits, Reader, RecordEntry, Storage,
    Txid, parse_merged_name, parse_sealed_name, parse_segment_name, parse_snapshot_name,
};

use crate::status::ParkedStatus;

/// Directory of the parked tails in a log's directory.
const DIR: &str = "parked";
/// A tail that is being written; of no use after a crash.
const NEW: &str = "new";
/// A tail that is being deleted.
const GONE: &str = "gone";
/// Names tried for a tail, should others have the one that is due.
const NAMES_MAX: u64 = 1000;

type LogResult<T> = Result<T, Error>;

/// A parked tail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// Its directory.
    pub path: PathBuf,
    /// Name of its directory.
    pub name: String,
    /// Timeline of its last record.
    pub timeline: u64,
    /// Its first transaction.
    pub first: Txid,
    /// Its last transaction.
    pub last: Txid,
    /// When it was parked, seconds since 1970.
    pub time: u64,
}

impl Parked {
    fn parse(dir: &Path, name: &str) -> Option<Parked> {
        let mut numbers = name.split('-').map(|number| number.parse::<u64>().ok());
        let mut next = || numbers.next().flatten();
        let parked = Parked {
            path: dir.join(name),
            name: name.to_string(),
            timeline: next()?,
            first: Txid(next()?),
            last: Txid(next()?),
            time: next()?,
        };
        numbers.next().is_none().then_some(parked)
    }

    /// Opens it for reading.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn reader(&self) -> LogResult<Reader> {
        Reader::open(Arc::new(FileStorage::new(&self.path)))
    }

    /// As people and programs see it.
    pub fn status(&self) -> ParkedStatus {
        ParkedStatus {
            name: self.name.clone(),
            timeline: self.timeline,
            first_txid: self.first.0,
            last_txid: self.last.0,
            bytes: self
                .reader()
                .and_then(|reader| reader.bytes())
                .unwrap_or_default(),
        }
    }

    /// Whether it holds what a log at `head` has after `follows`.
    fn holds(&self, follows: Pos, head: Pos) -> bool {
        let found = || self.reader()?.find(head.txid);
        self.first == follows.txid.next()
            && self.last >= head.txid
            && matches!(found(), Ok(Some(entry)) if entry.header.pos() == head)
    }
}

/// The parked tails of the log in `log_dir`, oldest first; none when they cannot be listed.
pub fn list(log_dir: &Path) -> Vec<Parked> {
    let dir = log_dir.join(DIR);
    let Ok(entries) = std::fs::read_dir(&dir) else {
        return Vec::new();
    };
    let mut tails: Vec<Parked> = entries
        .filter_map(|entry| Parked::parse(&dir, entry.ok()?.file_name().to_str()?))
        .collect();
    tails.sort_by(|a, b| (a.time, a.first, &a.name).cmp(&(b.time, b.first, &b.name)));
    tails
}

/// Deletes the parked tail `name` of the log in `log_dir`; its size in bytes.
///
/// # Errors
/// `NotFound` when there is none of that name; it cannot be deleted.
pub fn remove_tail(log_dir: &Path, name: &str) -> LogResult<u64> {
    let Some(tail) = list(log_dir).into_iter().find(|tail| tail.name == name) else {
        return Err(failed(
            "looking for a parked tail",
            &log_dir.join(DIR),
            io::ErrorKind::NotFound.into(),
        ));
    };
    let bytes = tail.status().bytes;
    // Under another name first: half a tail must not look like one.
    let parked = log_dir.join(DIR);
    let gone = parked.join(GONE);
    let delete = || {
        remove(&gone)?;
        std::fs::rename(&tail.path, &gone)?;
        remove(&gone)?;
        sync_directory(&parked)
    };
    delete().map_err(|e| failed("deleting a parked tail", &tail.path, e))?;
    Ok(bytes)
}

/// The parked record with this checksum after it, the newest tail first: where a database file is that went with a tail.
pub fn find_checksum(log_dir: &Path, checksum: Checksum) -> Option<RecordEntry> {
    list(log_dir).iter().rev().find_map(|tail| {
        let mut reader = tail.reader().ok()?;
        reader.find_checksum(checksum).ok()?
    })
}

/// Copies the records after `follows`, up to the end `head`, of the log in `log_dir` to a parked tail, durably. If a tail
/// holds them already (a crash came between this and cutting the log), that one will do.
///
/// # Errors
/// A record cannot be read, or is damaged, or the tail cannot be written; a tail is there as a whole or not at all.
pub fn park(log_dir: &Path, id: DatabaseId, follows: Pos, head: Pos) -> LogResult<Parked> {
    if let Some(tail) = find(log_dir, follows, head)? {
        return Ok(tail);
    }
    let new = Stage::begin(log_dir, NEW)?;
    let mut copy = new.log(id, follows)?;
    let mut source = Reader::open(Arc::new(FileStorage::new(log_dir)))?;
    source.seek(follows.txid)?;
    let limits = RawLimits {
        record_bytes_max: u64::MAX,
        database_bytes_max: u64::MAX,
    };
    while copy.head().pos.txid < head.txid {
        let Some(entry) = source.next()? else { break };
        copy.append_raw(&mut entry.raw(), &limits)?;
    }
    if copy.head().pos != head {
        return Err(Error::Mismatch {
            what: "the end of the tail to be parked",
            expected: head.to_string(),
            found: copy.head().pos.to_string(),
        });
    }
    copy.sync()?;
    drop(copy);
    new.finish(follows, head)
}

/// The parked tail that holds what a log at `head` has after `follows`. Whoever parked it may have failed to make its name durable.
fn find(log_dir: &Path, follows: Pos, head: Pos) -> LogResult<Option<Parked>> {
    let known = list(log_dir);
    let Some(tail) = known.into_iter().find(|tail| tail.holds(follows, head)) else {
        return Ok(None);
    };
    sync_directory(&log_dir.join(DIR))
        .map_err(|e| failed("naming the parked records", &tail.path, e))?;
    Ok(Some(tail))
}

/// Keeps all of the log in `log_dir`, which begins after `follows` and ends at `head`, as a parked tail: it is about to be
/// replaced by one that begins later. Its files get second names there; nothing is copied where the file system can do that.
/// The log is on the disk already.
///
/// # Errors
/// As [`park`].
pub fn park_all(log_dir: &Path, follows: Pos, head: Pos) -> LogResult<Parked> {
    if let Some(tail) = find(log_dir, follows, head)? {
        return Ok(tail);
    }
    let new = Stage::begin(log_dir, NEW)?;
    let storage = FileStorage::new(log_dir);
    let listed = storage.list();
    let names = listed.map_err(|e| failed("listing the log", log_dir, e))?;
    // Should it not come to the replacement, these stay in use, and must not be one file.
    let active = names
        .iter()
        .filter_map(|name| parse_segment_name(name))
        .max();
    let in_use = |name: &str| {
        name == "meta" || parse_segment_name(name).is_some_and(|first| Some(first) == active)
    };
    for name in names
        .iter()
        .filter(|name| is_history(name) || *name == "meta")
    {
        let (from, to) = (log_dir.join(name), new.path.join(name));
        let kept = match in_use(name) || std::fs::hard_link(&from, &to).is_err() {
            true => std::fs::copy(&from, &to).and_then(|_| File::open(&to)?.sync_all()),
            false => Ok(()),
        };
        kept.map_err(|e| failed("parking a file of the log", &from, e))?;
    }
    sync_directory(&new.path).map_err(|e| failed("parking the log", log_dir, e))?;
    new.finish(follows, head)
}

/// Whether a file of a log holds a part of its history.
pub fn is_history(name: &str) -> bool {
    parse_segment_name(name).is_some()
        || parse_sealed_name(name).is_some()
        || parse_merged_name(name).is_some()
        || parse_snapshot_name(name).is_some()
}

/// A log under way to become a tail, or to be thrown away.
pub struct Stage {
    parked: PathBuf,
    path: PathBuf,
}

impl Stage {
    /// Makes the directory `name` for the parked tails of `log_dir`; what was left in it goes.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn begin(log_dir: &Path, name: &str) -> LogResult<Stage> {
        let parked = log_dir.join(DIR);
        let path = parked.join(name);
        let begin = || {
            match std::fs::create_dir(&parked) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            // Also for one that somebody made who failed at this.
            sync_directory(log_dir)?;
            remove(&path)?;
            std::fs::create_dir(&path)
        };
        begin().map_err(|e| failed("making a directory for parked records", &path, e))?;
        Ok(Stage { parked, path })
    }

    /// A new log in it, of the database `id`, whose first record follows `follows`.
    ///
    /// # Errors
    /// As [`Log::create_after`].
    pub fn log(&self, id: DatabaseId, follows: Pos) -> LogResult<Log> {
        let storage = Arc::new(FileStorage::new(&self.path));
        Log::create_after(storage, id, now().as_micros() as u64, follows)
    }

    /// Its log, for reading.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn reader(&self) -> LogResult<Reader> {
        Reader::open(Arc::new(FileStorage::new(&self.path)))
    }

    /// Gives it the name of a parked tail, durably.
    fn finish(self, follows: Pos, head: Pos) -> LogResult<Parked> {
        let moving = |e| failed("naming the parked records", &self.path, e);
        let (first, seconds) = (follows.txid.next(), now().as_secs());
        for time in seconds..seconds + NAMES_MAX {
            let name = format!("{}-{first}-{}-{time}", head.timeline, head.txid);
            let path = self.parked.join(&name);
            if path.symlink_metadata().is_ok() {
                continue;
            }
            std::fs::rename(&self.path, &path).map_err(moving)?;
            sync_directory(&self.parked).map_err(moving)?;
            return Ok(Parked {
                path,
                name,
                timeline: head.timeline.0,
                first,
                last: head.txid,
                time,
            });
        }
        Err(moving(io::ErrorKind::AlreadyExists.into()))
    }
}

impl Drop for Stage {
    /// What has no other name by now is not wanted. Failing leaves it to the next one.
    fn drop(&mut self) {
        let _ = remove(&self.path);
    }
}

fn remove(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io {
        what,
        path: path.display().to_string(),
        source,
    }
}

fn now() -> std::time::Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Makes the names in a directory durable; the empty path is the current one.
///
/// # Errors
/// Those of the system.
#[cfg(unix)]
pub(crate) fn sync_directory(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    File::open(dir)?.sync_all()
}

/// The system makes names durable by itself.
#[cfg(not(unix))]
pub(crate) fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use mycelite_journal::{Archive, Draft, FullSpeed, Keep, PageSize, merge, seal};

    /// A log whose oldest states were merged is parked with all states that it has.
    #[test]
    fn what_was_compacted_is_parked_too() {
        let dir = tempfile::tempdir().unwrap();
        let storage: Arc<dyn Storage> = Arc::new(FileStorage::new(dir.path()));
        let mut log = Log::create(storage.clone(), DatabaseId([7; 16]), 0).unwrap();
        log.set_segment_bytes_max(0);
        for byte in 1..=6u8 {
            let draft = Draft::new(PageSize::MIN, 1, u64::from(byte));
            let mut record = log.begin(draft).unwrap();
            record
                .patch(1, Some(&[byte - 1; 512]), &[byte; 512])
                .unwrap();
            record.commit().unwrap();
        }
        while seal(&*storage, Txid(u64::MAX)).unwrap().is_some() {}
        let archive = Archive::open(storage.clone()).unwrap();
        let mut even =
            |header: &mycelite_journal::RecordHeader, _: &_| header.txid.0.is_multiple_of(2);
        merge(
            &archive,
            Txid(1),
            Txid(4),
            Keep::Some(&mut even),
            &FullSpeed,
        )
        .unwrap();
        let kept = |dir: &Path| -> Vec<u64> {
            let archive = Archive::open(Arc::new(FileStorage::new(dir))).unwrap();
            (1..=6)
                .filter(|txid| archive.as_of(Txid(*txid)).is_ok())
                .collect()
        };
        assert_eq!(kept(dir.path()), [2, 4, 5, 6]);

        let follows = Reader::open(storage).unwrap().follows().unwrap().unwrap();
        let tail = park_all(dir.path(), follows, log.head().pos).unwrap();
        assert_eq!(kept(&tail.path), [2, 4, 5, 6]);
    }
}
