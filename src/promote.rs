//! A replica takes over as the primary, and a primary that was replaced becomes a replica.
//!
//! A promotion begins a timeline that no boot of the old primary can reach, by a record that changes nothing: from then on the
//! two histories differ, and whoever holds both knows which one counts. What the old primary has recorded beyond it is parked
//! when it comes back.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mycelite_journal::{Draft, FileStorage, Log, Pos, Timeline, Txid};

use crate::apply::Applier;
use crate::capture::{begin_timeline, now_us};
use crate::database::log_dir;
use crate::error::{Error, ErrorKind, Result};

/// A promotion begins the next timeline that is a multiple of this: the timelines between are the boots of one primary.
pub const TIMELINES_OF_A_PRIMARY: u64 = 1000;
/// In the log directory of a replica that was promoted: the file is written to by applications.
pub(crate) const MARK: &str = "promoted";
/// Held by the one server of a directory.
pub(crate) const SERVE_LOCK: &str = ".mycelite-serve.lock";
/// In the log directory: held by the one process that keeps a replica's file.
pub(crate) const KEEPER: &str = "keeper";
/// In the log directory: held, shared, by the processes that write to the database.
const USERS: &str = "users";
/// Longest wait for readers of the replica while what is left is applied.
const APPLY_MAX: Duration = Duration::from_secs(60);
/// Pause where something is in the way.
const PAUSE: Duration = Duration::from_millis(20);

/// What a promotion came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promoted {
    /// Where the replica was: all of this is kept.
    pub from: Pos,
    /// Where the new timeline begins.
    pub at: Pos,
}

/// Whether the log in `log_dir` belongs to a replica that was promoted.
pub(crate) fn is_promoted(log_dir: &Path) -> bool {
    log_dir.join(MARK).exists()
}

/// Whether applications have written to `db`, or may since it was promoted.
pub fn is_primary(db: &Path) -> bool {
    is_written(&log_dir(db))
}

/// The same of a log directory.
pub(crate) fn is_written(log_dir: &Path) -> bool {
    log_dir.join(USERS).exists() || is_promoted(log_dir)
}

/// Makes the replica `db` a primary. Nothing that it holds is lost; a crash on the way leaves a replica that can be promoted
/// again. Needs SQLite's routines.
///
/// # Errors
/// `Busy` while a server or follower keeps the file; `Usage` when it is no replica; `Io`, `Corrupt`.
pub fn promote(db: &Path) -> Result<Promoted> {
    let dir = log_dir(db);
    let usage = |what: &str| Error::new(ErrorKind::Usage, what).at(db.display());
    if !dir.join("meta").exists() {
        return Err(usage("this is no replica: it has no log"));
    }
    if is_primary(db) {
        return Err(usage("this is a primary already: applications write to it"));
    }
    let _kept = keep(db, &dir)?;
    let _log = lock(&dir.join("lock"), "the log is in use")?;
    let failed = |e: mycelite_journal::Error| Error::new(ErrorKind::Io, e);
    let storage = Arc::new(FileStorage::new(&dir));
    let mut log = Log::open(storage).map_err(failed)?;
    log.sync().map_err(failed)?;
    let head = *log.head();
    let Some(page_size) = head.page_size else {
        return Err(usage("there is nothing in this replica yet"));
    };
    apply_all(db, &dir, head.pos.txid)?;
    let timeline = (head.pos.timeline.0 / TIMELINES_OF_A_PRIMARY + 1) * TIMELINES_OF_A_PRIMARY;
    // Durable before its first record, as after a boot.
    begin_timeline(&dir, Timeline(timeline))?;
    let draft = Draft {
        timeline: Timeline(timeline),
        change_counter: head.change_counter,
        ..Draft::new(page_size, head.page_count, now_us())
    };
    log.begin(draft)
        .and_then(|record| record.commit())
        .and_then(|_| log.sync())
        .map_err(failed)?;
    let at = log.head().pos;
    mark(&dir, head.pos, at)?;
    Ok(Promoted { from: head.pos, at })
}

/// Makes a primary that was replaced ready to follow the new one; nothing where `db` is a replica, or not there. What it has
/// written must be in its log, and the one that took over must be followed next.
///
/// # Errors
/// `Busy` while an application has it open; `Io`.
pub fn step_down(db: &Path) -> Result<()> {
    if !is_primary(db) {
        return Ok(());
    }
    let dir = log_dir(db);
    let _users = lock(&dir.join(USERS), "an application has this database open")?;
    // What says that it is a primary goes last: after a crash on the way this is done again.
    let own = ["stamp", "checkpoint", "wal-link", "timeline"];
    for name in own.iter().chain(&[MARK, USERS]) {
        remove(&dir.join(name))?;
    }
    sync_directory(&dir)
}

/// Nobody else may keep the file meanwhile.
fn keep(db: &Path, dir: &Path) -> Result<File> {
    let beside = match db.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let served = File::open(beside.join(SERVE_LOCK))
        .is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)));
    if served {
        return Err(
            Error::new(ErrorKind::Busy, "a mycelite serve keeps this directory")
                .at(beside.display())
                .hint("stop it first; it can be started again afterwards"),
        );
    }
    lock(&dir.join(KEEPER), "a mycelite follow keeps this replica")
}

fn lock(path: &Path, taken: &str) -> Result<File> {
    let failed = |e: &io::Error| Error::io("cannot lock", path, e);
    let file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .map_err(|e| failed(&e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::new(ErrorKind::Busy, taken)
            .at(path.display())
            .hint("stop it first")),
        Err(TryLockError::Error(e)) => Err(failed(&e)),
    }
}

/// Brings the file up to its log.
fn apply_all(db: &Path, dir: &Path, last: Txid) -> Result<()> {
    let deadline = Instant::now() + APPLY_MAX;
    let mut applier = Applier::open(db, dir)?;
    while applier.pos().txid < last || !applier.is_settled() {
        let applied = applier.step()?;
        if applied.pos.txid == last {
            applier.idle()?;
        }
        if Instant::now() >= deadline {
            return Err(Error::new(
                ErrorKind::Busy,
                format_args!(
                    "the file does not get to transaction {last}: {}",
                    applied.waiting.unwrap_or("a reader is in the way")
                ),
            )
            .at(db.display())
            .hint("close what reads it, and try again"));
        }
        if applied.waiting.is_some() || (applied.records == 0 && !applier.is_settled()) {
            std::thread::sleep(PAUSE);
        }
    }
    applier.close()
}

fn mark(dir: &Path, from: Pos, at: Pos) -> Result<()> {
    let path = dir.join(MARK);
    let write = || {
        let mut file = File::create(&path)?;
        writeln!(file, "{from} {at}")?;
        file.sync_all()
    };
    write().map_err(|e| Error::io("cannot note the promotion", &path, &e))?;
    remove(&dir.join("applied"))?;
    sync_directory(dir)
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("cannot remove", path, &e)),
        _ => Ok(()),
    }
}

fn sync_directory(dir: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| Error::io("cannot sync", dir, &e))?;
    Ok(())
}
