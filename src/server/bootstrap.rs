//! A snapshot that comes in, piece by piece, and then becomes the beginning of the log.
//!
//! Nothing of the log changes before all of it is here and proved. Then the old log, if there is one, is parked as a whole,
//! and what is to replace it gets its place under one name, `ready`: from there on whoever opens the log finishes the
//! replacement, also after a crash.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use mycelite_journal::{
    Archive, DatabaseId, Error, FileStorage, Log, Pos, Reader, Storage, parse_segment_name,
    parse_snapshot_name, snapshot_name, verify_file,
};

use super::database::{Database, LogSlot, now_us};
use super::reply::Refusal;
use crate::parked::{is_history, park_all, sync_directory};
use crate::proto::snapshot::SnapshotTag;

/// Directory for all this in a log's directory.
pub(super) const DIR: &str = "bootstrap";
/// In it: a log that begins with the snapshot, being made.
const NEW: &str = "new";
/// The same, to replace the log as soon as that is opened.
const READY: &str = "ready";
/// What a snapshot's file is called until it is complete, after its tag.
const PART: &str = ".part";

/// A snapshot that is coming.
pub(super) struct Incoming {
    dir: PathBuf,
    part: PathBuf,
    file: File,
    tag: SnapshotTag,
    received: u64,
}

impl Incoming {
    /// What is there of the snapshot `tag`; pieces of any other are of no more use. Blocking.
    pub fn open(log_dir: &Path, tag: SnapshotTag) -> io::Result<Incoming> {
        let dir = log_dir.join(DIR);
        match std::fs::create_dir(&dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let name = format!("{tag}{PART}");
        for entry in std::fs::read_dir(&dir)? {
            let other = entry?.file_name();
            if other != name.as_str() && other.to_string_lossy().ends_with(PART) {
                std::fs::remove_file(dir.join(other))?;
            }
        }
        let part = dir.join(name);
        let file = File::options().create(true).append(true).open(&part)?;
        let mut received = file.metadata()?.len();
        if received > tag.bytes {
            file.set_len(0)?;
            received = 0;
        }
        Ok(Incoming {
            dir,
            part,
            file,
            tag,
            received,
        })
    }

    /// The one that is coming into the log directory, to go on with.
    pub fn find(log_dir: &Path) -> Option<SnapshotTag> {
        let entries = std::fs::read_dir(log_dir.join(DIR)).ok()?;
        entries.flatten().find_map(|entry| {
            let name = entry.file_name();
            name.to_str()?.strip_suffix(PART)?.parse().ok()
        })
    }

    /// Bytes that are there.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Whether nothing is missing.
    pub fn is_complete(&self) -> bool {
        self.received == self.tag.bytes
    }

    /// Forgets what is there from byte `from` on: it comes again. Blocking.
    pub fn go_back(&mut self, from: u64) -> io::Result<()> {
        if from > self.received {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the bytes before those that came are not here",
            ));
        }
        self.file.set_len(from)?;
        self.received = from;
        Ok(())
    }

    /// Adds the next bytes. Blocking.
    ///
    /// # Errors
    /// `InvalidData` for more than there should be; those of the system.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() as u64 > self.tag.bytes - self.received {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "more bytes came than the snapshot has",
            ));
        }
        self.file.write_all(bytes)?;
        self.received += bytes.len() as u64;
        Ok(())
    }

    /// Throws away what is there: it is not what it should be.
    pub fn discard(self) {
        // What cannot be removed is met, and found to be bad, again.
        let _ = std::fs::remove_file(&self.part);
    }
}

/// Makes the complete snapshot the beginning of the log, which stands at `from`; what it was until then is parked. Blocking.
///
/// # Errors
/// `PRECONDITION_FAILED` when the log is not at `from`, or the snapshot is not later; `BAD_REQUEST` for bytes that are not
/// that snapshot: they are thrown away. Nothing has changed then.
pub(super) fn install(
    wait: Duration,
    database: &Database,
    slot: &mut LogSlot,
    id: DatabaseId,
    from: Pos,
    incoming: Incoming,
) -> Result<Pos, Refusal> {
    let failed = |e: Error| Refusal::from_log(&e);
    let tag = incoming.tag;
    let log = slot.open(database)?;
    log.refresh().map_err(failed)?;
    let head = log.head().pos;
    let follows = Reader::open(database.storage())
        .and_then(|reader| reader.follows())
        .map_err(failed)?
        .unwrap_or(Pos::ZERO);
    check(head, from, tag.pos)?;
    let new = incoming.dir.join(NEW);
    if let Err(refusal) = prove(&new, id, &incoming) {
        // A full disk says nothing about the bytes.
        if refusal.status() == StatusCode::BAD_REQUEST {
            incoming.discard();
        }
        return Err(refusal);
    }
    if head != Pos::ZERO {
        slot.sync(database)?;
        let tail = park_all(&database.log_dir, follows, head).map_err(failed)?;
        tracing::error!(
            "{}: the log goes on with a snapshot at {}, since what lies between is not to be had any more; \
             what it was until now, up to {head}, is parked in {}",
            database.name,
            tag.pos,
            tail.path.display()
        );
    }
    let mut history = database.change_history(wait)?;
    let io = |e: io::Error| Refusal::from_io("cannot put the snapshot in its place", &e);
    std::fs::rename(&new, incoming.dir.join(READY))
        .and_then(|()| sync_directory(&incoming.dir))
        .map_err(io)?;
    slot.close();
    let finished = finish(&database.log_dir);
    // Also after a failure: the next to open the log finishes it.
    history.changed(database);
    finished.map_err(io)?;
    drop(history);
    incoming.discard();
    let durable = slot.sync(database)?;
    Ok(durable.pos)
}

/// Whether a log at `head` may go on with a snapshot at `to`, for a sender that believes it to be at `from`.
pub(super) fn check(head: Pos, from: Pos, to: Pos) -> Result<(), Refusal> {
    let what = if head != from {
        format!("the snapshot is to follow {from}, the log is at {head}")
    } else if to.txid <= head.txid || to.timeline < head.timeline {
        format!("the snapshot is at {to}, which is not later than the log at {head}")
    } else {
        return Ok(());
    };
    Err(Refusal::new(StatusCode::PRECONDITION_FAILED, &what).with_pos(head))
}

/// Makes a log of the snapshot in the directory `new`, durably, and proves every byte of it.
fn prove(new: &Path, id: DatabaseId, incoming: &Incoming) -> Result<(), Refusal> {
    let (tag, failed) = (incoming.tag, |e: Error| Refusal::from_log(&e));
    let io = |e: io::Error| Refusal::from_io("cannot store the snapshot", &e);
    incoming.file.sync_all().map_err(io)?;
    match std::fs::remove_dir_all(new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io(e)),
        _ => {}
    }
    std::fs::create_dir(new).map_err(io)?;
    let storage = Arc::new(FileStorage::new(new));
    Log::create_after(storage.clone(), id, now_us(), tag.pos).map_err(failed)?;
    let name = snapshot_name(tag.pos.txid);
    let place = new.join(&name);
    std::fs::hard_link(&incoming.part, &place)
        .or_else(|_| {
            std::fs::copy(&incoming.part, &place).and_then(|_| File::open(&place)?.sync_all())
        })
        .map_err(io)?;
    sync_directory(new).map_err(io)?;
    let proved = verify_file(&*storage, &name)
        .and_then(|()| Archive::open(storage)?.as_of(tag.pos.txid))
        .map(|past| past.pos());
    match proved {
        Ok(pos) if pos == tag.pos => Ok(()),
        Ok(pos) => Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            &format!("the snapshot is that of {pos}, not of {}", tag.pos),
        )),
        Err(e) if e.io_error().is_some() => Err(failed(e)),
        Err(e) => Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            &format!("the snapshot that came is damaged: {e}"),
        )),
    }
}

/// Finishes the replacement of a log that has begun, if one has. The caller holds the log's lock.
pub(super) fn finish(log_dir: &Path) -> io::Result<()> {
    let dir = log_dir.join(DIR);
    let ready = dir.join(READY);
    let coming = match FileStorage::new(&ready).list() {
        Ok(names) => names,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let names = FileStorage::new(log_dir).list()?;
    // What has moved already stays: it begins where the rest does, and nothing old is so new.
    let begin = coming
        .iter()
        .chain(&names)
        .filter_map(|name| parse_segment_name(name))
        .max();
    let has_moved = |name: &str| {
        parse_segment_name(name) == begin
            || parse_snapshot_name(name).is_some_and(|at| Some(at.next()) == begin)
    };
    let old = |name: &&String| (is_history(name) && !has_moved(name)) || *name == "synced";
    for name in names.iter().filter(old) {
        std::fs::remove_file(log_dir.join(name))?;
    }
    sync_directory(log_dir)?;
    // The snapshot first: a log has it as soon as it has the segment.
    let mut moving: Vec<&String> = coming.iter().filter(|name| is_history(name)).collect();
    moving.sort_by_key(|name| parse_segment_name(name).is_some());
    for name in moving {
        std::fs::rename(ready.join(name), log_dir.join(name))?;
        sync_directory(log_dir)?;
    }
    std::fs::remove_dir_all(&ready)?;
    sync_directory(&dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mycelite_journal::{Txid, merged_name, sealed_name, segment_name};

    const OLD: [&str; 2] = ["synced", "bookmark"];

    /// What a log has that compaction was at, and beside it one that begins at 50.
    fn replaced() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().to_path_buf();
        let old = [
            merged_name(Txid(1), Txid(9)),
            merged_name(Txid(10), Txid(20)),
            sealed_name(Txid(21), Txid(30)),
            snapshot_name(Txid(20)),
            segment_name(Txid(31)),
            segment_name(Txid(40)),
        ];
        for name in old.iter().map(String::as_str).chain(OLD) {
            std::fs::write(log.join(name), "old").unwrap();
        }
        let ready = log.join(DIR).join(READY);
        std::fs::create_dir_all(&ready).unwrap();
        for name in [
            segment_name(Txid(50)),
            snapshot_name(Txid(49)),
            "meta".into(),
        ] {
            std::fs::write(ready.join(name), "new").unwrap();
        }
        (dir, log)
    }

    #[track_caller]
    fn assert_new_alone(log: &Path) {
        let mut names = FileStorage::new(log).list().unwrap();
        names.retain(|name| is_history(name));
        names.sort();
        let mut wanted = [snapshot_name(Txid(49)), segment_name(Txid(50))];
        wanted.sort();
        assert_eq!(names, wanted);
        for name in names {
            assert_eq!(std::fs::read(log.join(name)).unwrap(), b"new");
        }
        assert!(!log.join(DIR).join(READY).exists());
        assert!(!log.join("synced").exists());
        assert!(log.join("bookmark").exists(), "what is no history stays");
    }

    #[test]
    fn what_was_merged_goes_with_the_log_that_it_was_part_of() {
        let (_dir, log) = replaced();
        finish(&log).unwrap();
        assert_new_alone(&log);
        finish(&log).unwrap();
        assert_new_alone(&log);
    }

    #[test]
    fn a_replacement_that_a_crash_cut_short_is_finished() {
        let (_dir, log) = replaced();
        // The old files were being removed, and the snapshot had moved.
        std::fs::remove_file(log.join(merged_name(Txid(1), Txid(9)))).unwrap();
        let snapshot = snapshot_name(Txid(49));
        let ready = log.join(DIR).join(READY);
        std::fs::rename(ready.join(&snapshot), log.join(&snapshot)).unwrap();
        finish(&log).unwrap();
        assert_new_alone(&log);
        // All had moved, and only the directory was left.
        std::fs::create_dir(&ready).unwrap();
        finish(&log).unwrap();
        assert_new_alone(&log);
    }
}
