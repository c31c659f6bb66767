//! Keeps a log small and its past fast to open: seals segments, writes snapshots, compacts and drops by rule.
//!
//! It works on files that nobody appends to any more, under a lock of its own ([`MaintainLock`]), so that neither writers nor
//! readers wait for it. [`run`] is one round, made of short steps: the lock is free between them. It is done by the process
//! that writes (a thread, [`Maintainer`]), by `mycelite serve`, and by `mycelite compact`.

mod lock;
mod thread;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mycelite_journal::{
    Archive, Error as LogError, FileStorage, Pace, Snapshot, Storage, Txid, parse_sealed_name,
    parse_segment_name, seal_at,
};

use crate::error::{Error, ErrorKind, Result};

pub use lock::MaintainLock;
pub use thread::Maintainer;

/// Pause between two steps, in which whoever waits for the lock gets it.
const BETWEEN_STEPS: Duration = Duration::from_millis(20);

/// How a log is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether snapshots are written when one is due.
    pub snapshots: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { snapshots: true }
    }
}

/// What one round has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Segments sealed.
    pub sealed: u32,
    /// Snapshots written.
    pub snapshots: u32,
    /// Somebody else is at it, and this round did nothing more.
    pub busy: bool,
}

/// One round of maintenance of the log in `dir`, until nothing is left to do.
///
/// # Errors
/// The log is damaged or cannot be read or written; it is as it was before the step that failed. The end that `pace` asked for
/// is no error.
pub fn run(dir: &Path, options: &Options, pace: &dyn Pace) -> Result<Done> {
    let storage: Arc<dyn Storage> = Arc::new(FileStorage::new(dir));
    let mut done = Done::default();
    loop {
        match step(dir, &storage, options, pace, &mut done) {
            Ok(true) => std::thread::sleep(BETWEEN_STEPS),
            Ok(false) => return Ok(done),
            Err(Failure::Log(LogError::Stopped)) => return Ok(done),
            Err(Failure::Log(error)) => return Err(log_error(error)),
            Err(Failure::Own(error)) => return Err(error),
        }
    }
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
    if options.snapshots && snapshot(storage, pace)? {
        done.snapshots += 1;
        return Ok(true);
    }
    Ok(false)
}

/// Writes a snapshot if one is due: of the end of the newest sealed segment, which no power cut takes back.
fn snapshot(storage: &Arc<dyn Storage>, pace: &dyn Pace) -> Result<bool, LogError> {
    let archive = Archive::open(Arc::clone(storage))?;
    let Some(end) = sealed_end(&**storage)? else {
        return Ok(false);
    };
    if !Snapshot::is_due_at(&archive, end)? {
        return Ok(false);
    }
    Snapshot::write_at(&archive, end, pace)?;
    Ok(true)
}

/// The last transaction that is in a sealed segment.
fn sealed_end(storage: &dyn Storage) -> Result<Option<Txid>, LogError> {
    let names = storage.list().map_err(|source| LogError::Io {
        what: "listing the log directory",
        path: storage.display(""),
        source,
    })?;
    Ok(names
        .iter()
        .filter_map(|name| parse_sealed_name(name))
        .map(|(_, last)| last)
        .max())
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
