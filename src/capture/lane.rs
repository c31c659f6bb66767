//! Catching up behind the application's back: in WAL mode a commit only says that there is something to record, and the
//! process's capture thread records it, many commits at a time.
//!
//! Nothing depends on that thread. What must not go on without the log (a checkpoint, a new generation, a close) catches up by
//! itself, and a wake-up that is lost costs latency only. The thread reads through files of its own, the twins of one
//! connection's: that connection has opened them, and closes them before it gives up the wal-index.

use crate::capture::background::{self, Outcome};
use crate::capture::catch_up::{CatchUp, catch_up};
use crate::capture::guard::{LogGuard, Trust};
use crate::capture::header::HEADER_BYTES;
use crate::capture::shared::{ConnectionFiles, SharedLog};
use crate::capture::wal::WAL_HEADER_BYTES;
use crate::error::{Error, ErrorKind, Result};
use crate::lock::Slot;
use crate::vfs::Base;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// So many commits of a process are caught up by whoever commits, before it is worth a thread and files.
const FIRST_COMMITS: u32 = 2;
/// Longest wait for the thread, where its work must be over.
const TURN_WAIT_MAX: Duration = Duration::from_secs(6);

/// Without twins.
const CLOSED: u32 = 0;
/// With twins.
const OPEN: u32 = 1;
/// Twins cannot be had: whoever commits catches up.
const REFUSED: u32 = 2;

/// What one database leaves to the capture thread.
#[derive(Default)]
pub struct Lane {
    /// The setting `wal_capture`.
    enabled: AtomicBool,
    state: AtomicU32,
    first_commits: AtomicU32,
    /// Commits that were left to the thread.
    left: AtomicU64,
    /// How many of those are seen to.
    done: AtomicU64,
    /// The thread knows of it.
    queued: AtomicBool,
    /// The process that has the twins: in a forked child they are the parent's.
    pid: AtomicU32,
    /// A checkpoint of this process has its lock, and changes nothing before the log has caught up once more.
    checkpoint_waits: AtomicBool,
    /// As [`Base::wal_padding`] of the twins says; 0 for none.
    padding: AtomicU64,
    /// Held by whoever works with the twins.
    turn: Arc<Slot<Option<Twins>>>,
}

/// Files of our own on what a connection has open.
struct Twins {
    /// The name of that connection.
    owner: usize,
    files: ConnectionFiles,
}

impl Lane {
    /// Whether commits are to be left to the thread.
    pub fn enable(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Relaxed);
    }

    /// Whether commits are left to the thread.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// Where twins could not be had, another connection tries anew.
    pub fn reconsider(&self) {
        let _ = self
            .state
            .compare_exchange(REFUSED, CLOSED, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn is_behind(&self) -> bool {
        self.done.load(Ordering::SeqCst) < self.left.load(Ordering::SeqCst)
    }

    /// Puts it into the thread's queue again, where it is not yet.
    pub fn is_queued_anew(&self) -> bool {
        !self.queued.swap(true, Ordering::SeqCst)
    }

    /// A connection of this process has the checkpoint lock, and the log all that was committed when it got that. Commits that
    /// come before SQLite notes how far it goes are recorded by [`Lane::checkpoint_begins`]: until then nothing that the
    /// checkpoint writes is in the database, whatever the wal-index says.
    pub fn checkpoint_is_to_wait(&self) {
        if self.is_enabled() {
            self.checkpoint_waits.store(true, Ordering::SeqCst);
        }
    }

    /// The checkpoint begins to write, or ends, or it is not known what it does.
    pub fn checkpoint_begins(&self) {
        self.checkpoint_waits.store(false, Ordering::SeqCst);
    }

    /// Whether a checkpoint of this process waits for the log.
    pub fn checkpoint_waits(&self) -> bool {
        self.checkpoint_waits.load(Ordering::SeqCst)
    }

    fn is_inherited(&self) -> bool {
        self.pid.load(Ordering::Relaxed) != std::process::id()
    }

    fn refuse(&self) {
        self.state.store(REFUSED, Ordering::SeqCst);
    }

    /// Leaves the commit that the connection `owner` has just made to the thread; false when the caller is to catch up.
    pub fn leave(shared: &Arc<SharedLog>, owner: usize, files: &ConnectionFiles) -> bool {
        let lane = shared.lane();
        if !lane.is_enabled() {
            return false;
        }
        match lane.state.load(Ordering::Acquire) {
            OPEN if lane.padding.load(Ordering::Relaxed) != padding_of(files) => {
                // Who fills the WAL otherwise than the twins know tells its commits from the filling by itself.
                lane.refuse();
                return false;
            }
            OPEN => {}
            CLOSED => {
                if lane.first_commits.fetch_add(1, Ordering::Relaxed) < FIRST_COMMITS
                    || !lane.open(shared, owner, files)
                {
                    return false;
                }
            }
            _ => return false,
        }
        lane.left.fetch_add(1, Ordering::SeqCst);
        let wake = || !lane.is_inherited() && background::wake(shared);
        if !lane.queued.swap(true, Ordering::SeqCst) && !wake() {
            lane.queued.store(false, Ordering::SeqCst);
            lane.refuse();
            return false;
        }
        // Who has closed the lane meanwhile may not have seen this commit.
        lane.state.load(Ordering::SeqCst) == OPEN
    }

    /// Opens the twins of the files of connection `owner`, in whose thread this runs.
    fn open(&self, shared: &SharedLog, owner: usize, files: &ConnectionFiles) -> bool {
        let Some(mut turn) = self.turn.try_take() else {
            return false;
        };
        if turn.is_some() {
            return false;
        }
        let Some(twins) = twins_of(shared, files, |db| db.twin()) else {
            self.refuse();
            return false;
        };
        *turn = Some(Twins {
            owner,
            files: twins,
        });
        self.pid.store(std::process::id(), Ordering::Relaxed);
        self.padding.store(padding_of(files), Ordering::Relaxed);
        background::enter();
        self.state.store(OPEN, Ordering::Release);
        true
    }

    /// Catches up what this process has left to the thread, now and here. Does nothing when nothing is left.
    pub fn drain(shared: &SharedLog) {
        let lane = shared.lane();
        if lane.state.load(Ordering::Acquire) == OPEN && lane.is_behind() {
            lane.catch_up(shared);
        }
    }

    /// Connection `owner` is about to give up the wal-index: what it has left is caught up, and its twins are closed.
    pub fn close(shared: &SharedLog, owner: usize) {
        let lane = shared.lane();
        if lane.state.load(Ordering::Acquire) == CLOSED {
            return;
        }
        let Some(mut turn) = lane.turn.try_take_until(Instant::now() + TURN_WAIT_MAX) else {
            // Twins without a wal-index are of no use.
            lane.refuse();
            return;
        };
        let Some(twins) = turn.take_if(|twins| twins.owner == owner) else {
            return;
        };
        lane.state.store(CLOSED, Ordering::SeqCst);
        if lane.is_inherited() {
            std::mem::forget(twins);
            return;
        }
        if lane.is_behind() {
            lane.follow(shared, &twins.files);
        }
        let left = lane.left.load(Ordering::SeqCst);
        lane.done.store(left, Ordering::SeqCst);
        drop(twins);
        drop(turn);
        background::leave();
    }

    /// What the thread does for a database that it has taken out of its queue.
    pub fn work(&self, shared: &SharedLog) -> Outcome {
        // A commit that comes after this puts it into the queue again.
        self.queued.swap(false, Ordering::SeqCst);
        if self.is_behind() {
            return self.catch_up(shared);
        }
        Outcome::Done
    }

    fn catch_up(&self, shared: &SharedLog) -> Outcome {
        let Some(turn) = self.turn.try_take_until(Instant::now() + TURN_WAIT_MAX) else {
            return Outcome::Later;
        };
        match &*turn {
            Some(twins) if !self.is_inherited() => self.follow(shared, &twins.files),
            _ => Outcome::Done,
        }
    }

    fn follow(&self, shared: &SharedLog, files: &ConnectionFiles) -> Outcome {
        let left = self.left.load(Ordering::SeqCst);
        let followed = shared.acquire().and_then(|mut guard| {
            if guard.trust() != Trust::Verified {
                return Ok(());
            }
            follow_twins(shared, &mut guard, files)
        });
        match followed {
            Err(error) if error.kind() == ErrorKind::Busy => return Outcome::Later,
            Err(error) => shared.fail(None, &error),
            Ok(()) => {}
        }
        self.done.store(left, Ordering::SeqCst);
        Outcome::Done
    }

    /// The thread has found a defect: from now on whoever commits catches up.
    pub fn give_up(&self, shared: &SharedLog) {
        self.enable(false);
        let error = Error::new(ErrorKind::Internal, "a defect in mycelite was caught")
            .hint("please report it; the log is repaired by comparing");
        shared.fail(None, &error);
    }
}

fn follow_twins(shared: &SharedLog, guard: &mut LogGuard, files: &ConnectionFiles) -> Result<()> {
    match catch_up(shared, guard, files, false) {
        Ok(CatchUp::Captured(_)) => Ok(()),
        Ok(CatchUp::Lost) => {
            // An image that others may change cannot be compared: the next write lock sees to it.
            shared.doubt(guard);
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::Busy => Err(error),
        Err(error) => {
            shared.fail(Some(guard), &error);
            Ok(())
        }
    }
}

/// Twins of a connection's files, if they are the same files beyond doubt; `open` makes that of the database file.
pub(super) fn twins_of(
    shared: &SharedLog,
    files: &ConnectionFiles,
    open: impl FnOnce(&dyn Base) -> Option<Arc<dyn Base>>,
) -> Option<ConnectionFiles> {
    let wal = files.wal.as_ref()?;
    files.db.wal_index()?;
    shared.sight().ok()?;
    let (db_twin, wal_twin) = (open(files.db.as_ref())?, wal.twin()?);
    let is_same = is_same_at_start::<HEADER_BYTES>(files.db.as_ref(), db_twin.as_ref())
        && is_same_at_start::<WAL_HEADER_BYTES>(wal.as_ref(), wal_twin.as_ref());
    // Whatever has the name now had it before the files were opened.
    if !is_same || shared.sight().is_err() {
        return None;
    }
    db_twin.wal_index()?;
    Some(ConnectionFiles {
        owner: files.owner,
        db: db_twin,
        wal: Some(wal_twin),
        commits: Arc::default(),
        written: Arc::default(),
        is_twin: true,
    })
}

fn padding_of(files: &ConnectionFiles) -> u64 {
    files.db.wal_padding().unwrap_or(0)
}

fn is_same_at_start<const N: usize>(one: &dyn Base, other: &dyn Base) -> bool {
    let (mut left, mut right) = ([0; N], [0; N]);
    let read = (one.read_at(&mut left, 0), other.read_at(&mut right, 0));
    matches!(read, (Ok(a), Ok(b)) if a == b) && left == right
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::capture::shared::tests::opened;

    /// What fails while the capture thread is at work is known to whoever comes after it.
    #[test]
    fn a_failure_beside_another_thread_is_not_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("app.db");
        std::fs::write(&database, "").unwrap();
        let shared = opened(dir.path(), &database);
        let mut guard = shared.acquire().unwrap();
        guard.set_trust(Trust::Verified);
        shared.recovered();
        shared.fail(None, &Error::new(ErrorKind::Internal, "a defect"));
        assert_eq!(guard.trust(), Trust::Verified);
        shared.announce(&guard);
        assert!(!shared.is_verified());
        drop(guard);
        assert_eq!(shared.acquire_now().unwrap().trust(), Trust::Broken);
        assert_eq!(shared.acquire_now().unwrap().trust(), Trust::Broken);
    }
}
