//! Keeps a log small and its past fast to open: seals segments, writes snapshots, compacts and drops by rule.
//!
//! It works on files that nobody appends to any more, under a lock of its own ([`MaintainLock`]), so that neither writers nor
//! readers wait for it. [`run`] is one round, made of short steps: the lock is free between them. It is done by the process
//! that writes (a thread, [`Maintainer`]), by `mycelite serve`, and by `mycelite compact`.

mod lock;
mod policy;
mod thread;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mycelite_journal::{
    Archive, Error as LogError, FileStorage, Keep, Pace, PastFile, RecordHeader, Snapshot, Storage,
    Txid, drop_before, merge, parse_merged_name, parse_sealed_name, parse_segment_name,
    parse_snapshot_name, seal_at,
};
use serde::Serialize;

use crate::bookmarks;
use crate::error::{Error, ErrorKind, Result};
use policy::Policy;

pub use lock::MaintainLock;
pub use policy::{Needs, Options};
pub use thread::Maintainer;

/// Pause between two steps, in which whoever waits for the lock gets it.
const BETWEEN_STEPS: Duration = Duration::from_millis(20);

/// What one round has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Done {
    /// Segments sealed.
    pub sealed: u32,
    /// Snapshots written.
    pub snapshots: u32,
    /// Files that others were made of.
    pub merged_files: u64,
    /// States that can no longer be opened, by compaction.
    pub thinned: u64,
    /// The state that the history begins with now, when older ones were dropped; else 0.
    pub begins_at: u64,
    /// Bytes of the log before and after.
    pub bytes_before: u64,
    /// As `bytes_before`.
    pub bytes_after: u64,
    /// Why the log is longer than it may be; empty when it is not.
    pub over: String,
    /// Somebody else is at it, and this round did nothing more.
    pub busy: bool,
}

/// One round of maintenance of the log in `dir`, until nothing is left to do. `needs` is asked before each step.
///
/// # Errors
/// The log is damaged or cannot be read or written; it is as it was before the step that failed. The end that `pace` asked for
/// is no error.
pub fn run(
    dir: &Path,
    options: &Options,
    needs: &dyn Fn() -> Needs,
    pace: &dyn Pace,
) -> Result<Done> {
    let storage: Arc<dyn Storage> = Arc::new(FileStorage::new(dir));
    let bytes = |done: &mut Done| {
        done.bytes_after = log_bytes(&*storage).unwrap_or(0);
    };
    let mut done = Done::default();
    bytes(&mut done);
    done.bytes_before = done.bytes_after;
    let ended = loop {
        match step(dir, &storage, options, needs(), pace, &mut done) {
            Ok(true) => std::thread::sleep(BETWEEN_STEPS),
            Ok(false) | Err(Failure::Log(LogError::Stopped)) => break Ok(()),
            Err(Failure::Log(error)) => break Err(log_error(error)),
            Err(Failure::Own(error)) => break Err(error),
        }
    };
    bytes(&mut done);
    ended.map(|()| done)
}

/// What [`run`] would do, as far as that can be told without doing it: `thinned` is at least so many, `bytes_after` not known.
///
/// # Errors
/// The log is damaged or cannot be read.
pub fn dry_run(dir: &Path, options: &Options, needs: &dyn Fn() -> Needs) -> Result<Done> {
    let storage: Arc<dyn Storage> = Arc::new(FileStorage::new(dir));
    let archive = Archive::open(Arc::clone(&storage)).map_err(log_error)?;
    let mut files = archive.files().map_err(log_error)?;
    let bytes = log_bytes(&*storage).map_err(log_error)?;
    let mut needs = needs();
    needs.states.extend(bookmarks(dir)?);
    needs.states.extend(archive.snapshots().map_err(log_error)?);
    needs.states.sort_unstable();
    let over = options.log_bytes_max.is_some_and(|max| bytes > max);
    let policy = Policy::new(*options, &needs, now_us(), over);
    let mut done = Done {
        sealed: u32::try_from(backlog(dir)).unwrap_or(u32::MAX),
        bytes_before: bytes,
        bytes_after: bytes,
        ..Done::default()
    };
    while let Some(group) = policy.next(&files) {
        let (count, states) = policy.apply(&mut files, &group);
        done.merged_files += count;
        done.thinned += states;
    }
    Ok(done)
}

fn bookmarks(dir: &Path) -> Result<Vec<Txid>> {
    let bookmarks = bookmarks::list(dir)?;
    Ok(bookmarks.iter().map(|mark| mark.pos.txid).collect())
}

/// Writes a snapshot as of `txid`, or of the newest transaction; how many bytes it has.
///
/// # Errors
/// The log has no such state, is damaged, or is being maintained for longer than `patience`.
pub fn snapshot(dir: &Path, txid: Option<Txid>, patience: Duration) -> Result<Snapshot> {
    let storage: Arc<dyn Storage> = Arc::new(FileStorage::new(dir));
    let archive = Archive::open(storage).map_err(log_error)?;
    let _lock = MaintainLock::take(dir, patience)?;
    let txid = match txid {
        Some(txid) => txid,
        None => archive.head().map_err(log_error)?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "nothing is recorded yet").at(dir.display())
        })?,
    };
    Snapshot::write(&archive, txid).map_err(log_error)
}

enum Failure {
    Log(LogError),
    Own(Error),
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Failure {
        Failure::Log(error)
    }
}

/// The next thing to do, under the lock. Returns whether there may be more.
fn step(
    dir: &Path,
    storage: &Arc<dyn Storage>,
    options: &Options,
    mut needs: Needs,
    pace: &dyn Pace,
    done: &mut Done,
) -> Result<bool, Failure> {
    let Some(_lock) = MaintainLock::try_take(dir).map_err(Failure::Own)? else {
        done.busy = true;
        return Ok(false);
    };
    if seal_at(&**storage, Txid(u64::MAX), pace)?.is_some() {
        done.sealed += 1;
        return Ok(true);
    }
    let archive = Archive::open(Arc::clone(storage))?;
    let files = archive.files()?;
    if snapshot_due(&archive, &files, pace)? {
        done.snapshots += 1;
        return Ok(true);
    }
    let bookmarks = bookmarks(dir).map_err(Failure::Own)?;
    needs.states.extend(&bookmarks);
    needs.states.extend(archive.snapshots()?);
    needs.states.sort_unstable();
    let bytes = log_bytes(&**storage)?;
    let over = options.log_bytes_max.is_some_and(|max| bytes > max);
    let policy = Policy::new(*options, &needs, now_us(), over);
    if let Some(group) = policy.next(&files) {
        let mut some = |state: &RecordHeader, next: &RecordHeader| policy.keeps(state, next);
        let keep = match group.thin {
            true => Keep::Some(&mut some),
            false => Keep::All,
        };
        let merged = merge(&archive, group.first, group.last, keep, pace)?;
        done.merged_files += merged.files;
        done.thinned += merged.states_before - merged.states_after;
        return Ok(true);
    }
    let first_needed = bookmarks.iter().min().copied().unwrap_or(Txid(u64::MAX));
    let aged = files
        .iter()
        .take_while(|file| file.last_time_us < policy.dropped_before_us())
        .filter(|file| file.last <= first_needed)
        .map(|file| file.last)
        .last();
    let begin = match aged {
        Some(begin) => Some(begin),
        None if over => shorter(&files, bytes, options, first_needed),
        None => None,
    };
    done.over.clear();
    if let Some(begin) = begin
        && drop_up_to(&archive, begin, pace)?
    {
        done.begins_at = begin.0;
        return Ok(true);
    }
    if let Some(max) = options.log_bytes_max.filter(|max| bytes > *max) {
        let held = match bookmarks.iter().min() {
            Some(first) => format!("the bookmark at transaction {first} holds the rest"),
            None => "what is left is the newest part".to_string(),
        };
        done.over = format!(
            "the log has {bytes} bytes, log_bytes_max is {max}, and nothing more may be dropped: {held}"
        );
    }
    Ok(false)
}

/// Writes a snapshot if one is due: of the end of the newest sealed segment, which no power cut takes back.
fn snapshot_due(archive: &Archive, files: &[PastFile], pace: &dyn Pace) -> Result<bool, LogError> {
    let Some(end) = files.last().map(|file| file.last) else {
        return Ok(false);
    };
    if !Snapshot::is_due_at(archive, end)? {
        return Ok(false);
    }
    Snapshot::write_at(archive, end, pace)?;
    Ok(true)
}

/// Where the history is to begin so that the log is as short as it may be: at the end of as few of its oldest files as that
/// takes; `None` if none may go.
fn shorter(files: &[PastFile], bytes: u64, options: &Options, first_needed: Txid) -> Option<Txid> {
    let mut left = bytes;
    let mut begin = None;
    for file in files.iter().take_while(|file| file.last <= first_needed) {
        if options.log_bytes_max.is_none_or(|max| left <= max) {
            break;
        }
        left = left.saturating_sub(file.bytes);
        begin = Some(file.last);
    }
    begin
}

/// Makes the state after `begin` the oldest one. Returns whether anything went.
fn drop_up_to(archive: &Archive, begin: Txid, pace: &dyn Pace) -> Result<bool, LogError> {
    Snapshot::write_at(archive, begin, pace)?;
    Ok(drop_before(archive, begin)? > 0)
}

/// Bytes of the segments and snapshots.
fn log_bytes(storage: &dyn Storage) -> Result<u64, LogError> {
    let mut bytes = 0;
    for name in list(storage)? {
        let ours = parse_segment_name(&name).is_some()
            || parse_sealed_name(&name).is_some()
            || parse_merged_name(&name).is_some()
            || parse_snapshot_name(&name).is_some();
        if ours {
            // Removed since it was listed: no bytes.
            bytes += storage.size(&name).unwrap_or(0);
        }
    }
    Ok(bytes)
}

fn list(storage: &dyn Storage) -> Result<Vec<String>, LogError> {
    storage.list().map_err(|source| LogError::Io {
        what: "listing the log directory",
        path: storage.display(""),
        source,
    })
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_micros()).unwrap_or(u64::MAX))
}

/// How many raw segments of the log in `dir` wait to be sealed; 0 when it cannot be looked at.
pub(crate) fn backlog(dir: &Path) -> usize {
    let names = FileStorage::new(dir).list().unwrap_or_default();
    let raw = names
        .iter()
        .filter(|name| parse_segment_name(name).is_some());
    raw.count().saturating_sub(1)
}

/// An error of the log as an error of the program.
fn log_error(error: LogError) -> Error {
    let kind = match &error {
        LogError::Io { .. } => ErrorKind::Io,
        LogError::Version { .. } => ErrorKind::Unsupported,
        LogError::NotFound { .. } => ErrorKind::NotFound,
        LogError::Misuse(_) => ErrorKind::Usage,
        _ => ErrorKind::Corrupt,
    };
    Error::new(kind, error)
}
