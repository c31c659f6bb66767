//! Exclusive use of the log, and what is known about the image that it describes.

use crate::capture::header::be32;
use crate::capture::lock_file::{Found, LockFile};
use crate::capture::recent::RecentPages;
use crate::capture::sighting::Sighting;
use crate::capture::wal::WalView;
use crate::error::{Error, ErrorKind, Result};
use crate::lock::{Slot, Taken};
use mycelite_journal::{Head, Log, Timeline};
use std::fs::File;
use std::time::Instant;

/// How often in a row a changed file may turn out unchanged before its times are no longer believed.
const FALSE_ALARMS_MAX: u32 = 3;

/// Whether log state = file image may be taken for granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// This process has not looked yet.
    #[default]
    Unknown,
    /// Established, and kept by every commit since.
    Verified,
    /// Something went by uncaptured: only comparing helps.
    Broken,
}

/// What is behind the lock.
#[derive(Default)]
pub struct State {
    /// The process to which the open files belong; 0: none.
    pub pid: u32,
    /// The lock file.
    pub lock: Option<LockFile>,
    /// The file of those who use the log, locked.
    pub users: Option<File>,
    /// The log.
    pub log: Option<Log>,
    /// Whether log state = file image.
    pub trust: Trust,
    /// Where the pages of the current WAL generation are.
    pub wal_view: WalView,
    /// The pages that were recorded last.
    pub recent: RecentPages,
    /// When the file was last seen under its name.
    pub seen: Option<Instant>,
    /// How often in a row the file looked changed and was not.
    pub false_alarms: u32,
    /// On which timeline this boot records; 0 until that is known.
    pub timeline: Timeline,
}

/// Exclusive use of the log, against threads and processes. Unlocks when dropped.
pub struct LogGuard {
    /// What is behind the lock.
    pub state: Taken<State>,
    /// Nobody else has held the lock since this process did.
    pub undisturbed: bool,
    /// What the lock file says.
    pub found: Found,
}

impl State {
    /// After `fork` the parent's descriptors and locks are not ours to use.
    pub fn leave_other_process(&mut self) {
        if self.pid != 0 && self.pid != std::process::id() {
            *self = State::default();
        }
    }

    /// Nobody may rely on this process's word any more, itself included: the log is read anew, whatever it was amid.
    pub fn distrust(&mut self) {
        self.trust = Trust::Broken;
        self.log = None;
        self.leave_users();
    }

    /// Unlocks before closing: a child that another thread is starting may hold a copy of the descriptor until it
    /// executes its program.
    pub fn leave_users(&mut self) {
        if let Some(users) = self.users.take() {
            let _ = users.unlock();
        }
    }
}

impl LogGuard {
    /// Exclusive use of the log for whoever got `state`, the lock included, from another guard.
    pub fn of(state: State) -> LogGuard {
        LogGuard {
            state: Slot::of_taken(state),
            undisturbed: false,
            found: Found::default(),
        }
    }

    /// Takes out what is behind the lock, the lock included: this guard has none any more.
    pub fn take_state(&mut self) -> State {
        std::mem::take(&mut *self.state)
    }

    /// Says in the lock file that the database is being adopted, or no more: nobody waits for the lock meanwhile.
    ///
    /// # Errors
    /// The lock file cannot be written.
    pub fn set_adopting(&self, adopting: bool) -> Result<()> {
        match &self.state.lock {
            Some(lock) => lock.set_adopting(adopting),
            None => Ok(()),
        }
    }

    /// The log.
    ///
    /// # Errors
    /// None in practice: a guard is only made with an open log.
    pub fn log(&mut self) -> Result<&mut Log> {
        self.state
            .log
            .as_mut()
            .ok_or_else(|| Error::new(ErrorKind::Internal, "the log is not open"))
    }

    /// Notes in the lock file that a transaction is changing the file. Who takes the lock and finds the mark knows
    /// that its last holder died in the middle: SQLite's recovery restores what counts, not each byte of a free page.
    ///
    /// # Errors
    /// The lock file cannot be written.
    pub fn mark(&self) -> Result<()> {
        match &self.state.lock {
            Some(lock) => lock.mark(),
            None => Ok(()),
        }
    }

    /// Takes the mark back. `left`: the database file as it is, when the log's head was made in a rollback mode.
    ///
    /// # Errors
    /// The lock file cannot be written.
    pub fn unmark(&mut self, left: Option<Sighting>) -> Result<()> {
        let head = self.head().pos.txid;
        match &self.state.lock {
            Some(lock) => {
                self.found = lock.unmark(left.map(|left| (head, left)))?;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Whether somebody wrote to the database file, which is seen as `now`, since the log's head was made. A file system
    /// that cannot be believed (it has raised the alarm in vain, again and again) is asked no more.
    pub fn is_file_changed(&mut self, now: &Sighting) -> bool {
        let changed = self.found.is_changed_since(self.head().pos.txid, now);
        if !changed {
            self.state.false_alarms = 0;
        }
        changed && self.state.false_alarms < FALSE_ALARMS_MAX
    }

    /// Whether nobody has written to the database file, which is seen as `now` and whose header SQLite has just read as
    /// `counters`, since the log's head was made in a rollback mode. Neither would do: the file's time is not exact, and what
    /// a foreigner has rolled back is not counted.
    pub fn is_left(&self, now: &Sighting, counters: &[u8]) -> bool {
        let head = self.head();
        self.found.is_left_at(head.pos.txid, now)
            && be32(counters, 0) == Some(head.change_counter)
            && be32(counters, 4) == Some(head.page_count)
    }

    /// The file looked changed, and was not.
    pub fn count_false_alarm(&mut self) {
        self.state.false_alarms += 1;
    }

    /// Nobody else has held the lock since this process did: no tail of a dead writer, no news in the log.
    pub fn is_undisturbed(&self) -> bool {
        self.undisturbed
    }

    /// The log, what is known about the WAL, and the pages that were recorded last, at once.
    ///
    /// # Errors
    /// As [`LogGuard::log`].
    pub fn parts(&mut self) -> Result<(&mut Log, &mut WalView, &mut RecentPages)> {
        let state = &mut *self.state;
        match &mut state.log {
            Some(log) => Ok((log, &mut state.wal_view, &mut state.recent)),
            None => Err(Error::new(ErrorKind::Internal, "the log is not open")),
        }
    }

    /// The state after the last record.
    pub fn head(&self) -> Head {
        self.state
            .log
            .as_ref()
            .map_or(Head::EMPTY, |log| *log.head())
    }

    /// The timeline of the next record: histories start on timeline 1, and each boot goes on on another one.
    pub fn timeline(&self) -> Timeline {
        Timeline(1)
            .max(self.state.timeline)
            .max(self.head().pos.timeline)
    }

    /// Says on which timeline this boot records.
    pub fn set_timeline(&mut self, timeline: Timeline) {
        self.state.timeline = timeline;
    }

    /// Whether log state = file image may be taken for granted.
    pub fn trust(&self) -> Trust {
        self.state.trust
    }

    /// Says whether log state = file image may be taken for granted.
    pub fn set_trust(&mut self, trust: Trust) {
        self.state.trust = trust;
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        if let Some(lock) = &self.state.lock {
            lock.unlock();
        }
    }
}
