//! The hooks of a database file: which of SQLite's calls begin, prepare, publish or withdraw a record.

use crate::capture::catch_up::{CatchUp, catch_up, catch_up_commit, is_copied};
use crate::capture::guard::{LogGuard, Trust};
use crate::capture::lane::Lane;
use crate::capture::reconcile::{check_generation, compare, stamp_checkpoint, verify};
use crate::capture::rollback::Transaction;
use crate::capture::shared::{ConnectionFiles, SharedLog, journal_error};
use crate::capture::wal::WalIndex;
use crate::config::LogSync;
use crate::error::{Error, ErrorKind, Result};
use crate::vfs::{Base, COUNTERS_BYTES, Hooks, LockLevel};
use std::sync::Arc;
use std::time::Duration;

/// How often, and with what pause, a wal-index is looked at that a commit is changing, or a writer was when it died.
const LOOKS_MAX: u32 = 50;
const LOOK_PAUSE: Duration = Duration::from_micros(100);

/// What a rollback-mode connection is doing.
enum Phase {
    /// No write lock, or nothing written under it.
    Idle,
    /// A transaction that is captured.
    Active(Box<Transaction>),
    /// A transaction that capture could not follow; the log is re-based later.
    Skipped,
}

/// Capture on one connection's database file.
pub struct MainFile {
    shared: Arc<SharedLog>,
    name: usize,
    level: LockLevel,
    /// What SQLite has read of the header under the shared lock that it still has.
    counters: Option<[u8; COUNTERS_BYTES]>,
    phase: Phase,
    /// A hot journal is being rolled back: its writes restore, they are no transaction.
    recovering: bool,
    /// That is known to whoever writes next.
    doubted: bool,
    /// The running checkpoint has been announced.
    gate_open: bool,
    /// The log holds what the running checkpoint writes.
    checkpointed: bool,
}

impl MainFile {
    /// Capture on the database file `db` of the connection that SQLite knows by the name at address `name`.
    pub fn new(shared: Arc<SharedLog>, name: usize, db: Arc<dyn Base>) -> MainFile {
        shared.add_connection(name, db);
        MainFile {
            shared,
            name,
            level: LockLevel::None,
            counters: None,
            phase: Phase::Idle,
            recovering: false,
            doubted: false,
            gate_open: false,
            checkpointed: false,
        }
    }

    fn files(&self) -> Option<Arc<ConnectionFiles>> {
        self.shared.connection(self.name)
    }

    /// The files, when the connection is in WAL mode.
    fn wal_files(&self) -> Option<Arc<ConnectionFiles>> {
        self.files().filter(|files| files.wal.is_some())
    }

    /// A rollback-mode transaction starts, unless it has.
    fn begin(&mut self) {
        if !matches!(self.phase, Phase::Idle) {
            return;
        }
        // What a checkpoint has left is about to change.
        self.checkpointed = false;
        let Some(files) = self.files() else { return };
        // Another transaction under the same lock changes them.
        let counters = self.counters.take();
        self.phase = match Transaction::begin(&self.shared, files, counters) {
            Ok(transaction) => Phase::Active(Box::new(transaction)),
            Err(error) => {
                self.missed(&error);
                Phase::Skipped
            }
        };
    }

    /// A hot journal restores what counts, not each byte of a free page: whoever writes next compares.
    fn recover(&mut self) {
        if std::mem::replace(&mut self.doubted, true) || !self.shared.exists() {
            return;
        }
        let marked = self.shared.acquire_now().and_then(|mut guard| {
            guard.mark()?;
            self.shared.doubt(&mut guard);
            Ok(())
        });
        if let Err(error) = marked {
            self.missed(&error);
        }
    }

    /// SQLite takes a lower lock than it has: somewhere above, an unlock has failed, and with it the transaction, which is
    /// rolled back next. Whoever writes after that compares.
    fn lose(&mut self) {
        if let Phase::Active(mut transaction) = std::mem::replace(&mut self.phase, Phase::Idle) {
            self.shared.doubt(transaction.guard());
        }
    }

    /// Lets the running transaction do `step`; a failure ends its capture, never the transaction.
    fn step(&mut self, step: impl FnOnce(&mut Transaction) -> Result<()>) {
        if let Phase::Active(transaction) = &mut self.phase
            && let Err(error) = step(transaction)
        {
            self.shared.fail(Some(transaction.guard()), &error);
            self.phase = Phase::Skipped;
        }
    }

    /// Ends the running transaction.
    fn finish(&mut self, end: impl FnOnce(Transaction, &SharedLog) -> Result<()>) {
        if let Phase::Active(transaction) = std::mem::replace(&mut self.phase, Phase::Idle)
            && let Err(error) = end(*transaction, &self.shared)
        {
            self.shared.fail(None, &error);
        }
    }

    fn missed(&self, error: &Error) {
        missed(&self.shared, error);
    }

    /// A checkpoint of an exclusive connection, which the last one is as it closes, ends with this lock: the file is as that
    /// checkpoint left it.
    fn vouch(&self) {
        let vouched = self.shared.acquire().and_then(|mut guard| {
            if guard.trust() != Trust::Verified {
                return Ok(());
            }
            stamp_checkpoint(&self.shared, &guard)
                .inspect_err(|error| self.shared.fail(Some(&mut guard), error))
        });
        if let Err(error) = vouched {
            self.missed(&error);
        }
    }

    /// Brings the log up to the WAL; where that is impossible, the log is re-based by comparing, now if the connection has
    /// the write lock, else by the next that has. Then does `also`.
    fn follow_wal(
        &self,
        files: &ConnectionFiles,
        locked: bool,
        also: impl FnOnce(&SharedLog, &mut LogGuard) -> Result<()>,
    ) -> bool {
        self.follow(files, locked, also, |shared, guard| {
            catch_up(shared, guard, files, locked)
        })
    }

    /// As [`MainFile::follow_wal`], with `catch_up` for the first step.
    fn follow(
        &self,
        files: &ConnectionFiles,
        locked: bool,
        also: impl FnOnce(&SharedLog, &mut LogGuard) -> Result<()>,
        catch_up: impl FnOnce(&SharedLog, &mut LogGuard) -> Result<CatchUp>,
    ) -> bool {
        if !self.shared.is_verified() && !self.shared.exists() {
            // A reader recovers a WAL, and checkpoints it at its close; a log is begun by whoever writes.
            return false;
        }
        let followed = self.shared.acquire().and_then(|mut guard| {
            if guard.trust() != Trust::Verified {
                // Differences would be taken from a state that the log does not know.
                return Ok(false);
            }
            let result = (|| {
                if catch_up(&self.shared, &mut guard)? == CatchUp::Lost {
                    if !locked {
                        // An image that others may change cannot be compared: the next write lock sees to it.
                        self.shared.doubt(&mut guard);
                        return Ok(false);
                    }
                    compare(&self.shared, &mut guard, files, locked)?;
                }
                also(&self.shared, &mut guard)?;
                Ok(true)
            })();
            result.inspect_err(|error| self.shared.fail(Some(&mut guard), error))
        });
        followed.unwrap_or_else(|error| {
            self.missed(&error);
            false
        })
    }
}

/// Something goes by uncaptured. While capture rests after a failure, that is known already; while the database is being
/// adopted, it is not lost.
fn missed(shared: &SharedLog, error: &Error) {
    if error.kind() != ErrorKind::Adopting && shared.pausing().is_none() {
        shared.fail(None, error);
    }
}

/// What a checkpoint makes unreadable must not be lost with the machine.
fn sync_log(shared: &SharedLog, guard: &mut LogGuard) -> Result<()> {
    if shared.options().sync == LogSync::Off {
        return Ok(());
    }
    guard.log()?.sync().map_err(journal_error)
}

impl Hooks for MainFile {
    fn counters_read(&mut self, counters: [u8; COUNTERS_BYTES]) {
        self.counters = (self.level == LockLevel::Shared).then_some(counters);
    }

    fn before_write(&mut self, offset: u64, data: &[u8]) {
        if let Some(files) = self.wal_files() {
            self.recovering = false;
            // Hosts older than 3.32 do not announce a checkpoint.
            if !self.gate_open {
                self.gate_open = true;
                self.checkpointed = self.follow_wal(&files, false, sync_log);
            }
            self.shared.lane().checkpoint_begins();
            return;
        }
        if self.recovering {
            self.recover();
            return;
        }
        self.begin();
        self.step(|transaction| transaction.before_write(offset, data));
    }

    fn write_failed(&mut self, offset: u64, bytes: usize) {
        self.step(|transaction| {
            transaction.write_failed(offset, bytes);
            Ok(())
        });
    }

    fn before_truncate(&mut self, size: u64) {
        if self.wal_files().is_some() {
            return;
        }
        if self.recovering {
            self.recover();
            return;
        }
        self.begin();
        self.step(|transaction| transaction.before_truncate(size));
    }

    fn locked(&mut self, level: LockLevel) {
        let before = std::mem::replace(&mut self.level, level);
        self.gate_open = false;
        if level < before {
            self.lose();
        }
        if self.wal_files().is_some() {
            // In exclusive mode this lock is taken before the WAL is opened, and kept when it is closed.
            self.recovering = false;
            if level == LockLevel::Exclusive {
                // From here on no lock says that a checkpoint begins, as it does at the last close.
                Lane::close(&self.shared, self.name);
                self.shared.finish_adoption(self.name);
            }
            return;
        }
        if before == LockLevel::Shared && level == LockLevel::Exclusive {
            self.recovering = true;
            self.doubted = false;
        } else if level == LockLevel::Reserved {
            self.begin();
        }
    }

    fn before_unlock(&mut self, level: LockLevel) {
        let before = std::mem::replace(&mut self.level, level);
        if level == LockLevel::None {
            self.counters = None;
        }
        self.gate_open = false;
        if std::mem::take(&mut self.checkpointed) && before == LockLevel::Exclusive {
            self.vouch();
        }
        if level <= LockLevel::Shared {
            self.recovering = false;
            self.finish(Transaction::settle);
        }
    }

    fn all_written(&mut self) {
        self.recovering = false;
        self.step(Transaction::prepare);
    }

    fn committed(&mut self) {
        self.finish(Transaction::publish);
        let files = self.wal_files();
        if let Some(files) = &files {
            files.commits.committed();
            files.written.committed();
        }
        if let Some(files) = files.filter(|_| self.shared.is_verified())
            && (self.level == LockLevel::Exclusive || !Lane::leave(&self.shared, self.name, &files))
        {
            let commit =
                |shared: &SharedLog, guard: &mut LogGuard| catch_up_commit(shared, guard, &files);
            self.follow(&files, false, |_, _| Ok(()), commit);
        }
    }

    fn checkpoint_start(&mut self) {
        if let Some(files) = self.wal_files() {
            self.gate_open = true;
            self.checkpointed = self.follow_wal(&files, false, sync_log);
        }
        self.shared.lane().checkpoint_begins();
    }

    fn checkpoint_done(&mut self) {
        self.gate_open = false;
        let Some(files) = self.wal_files().filter(|_| self.checkpointed) else {
            return;
        };
        // Without a wal-index, the log may hold a commit that SQLite has taken back.
        if files.db.wal_index().is_none() {
            self.follow_wal(&files, false, |shared, guard| {
                if !is_copied(guard, &files)? {
                    shared.doubt(guard);
                }
                Ok(())
            });
        }
    }

    fn wal_write_locked(&mut self) {
        let Some(files) = self.files() else { return };
        files.written.forget();
        self.shared.look_for_log();
        let index = files
            .db
            .wal_index()
            .and_then(|bytes| WalIndex::parse(&bytes));
        if !self.shared.is_verified() {
            // A reader locks to recover the index; a log is begun by whoever writes.
            if index.is_some() || self.shared.exists() {
                establish(&self.shared, Some(files));
            }
            return;
        }
        let (_, head) = self.shared.published();
        match index {
            // A new generation begins, over one that a checkpoint has emptied.
            Some(index) if index.last_frame == 0 => {
                self.follow_wal(&files, true, |shared, guard| {
                    check_generation(shared, guard, &files)
                });
            }
            // Someone checkpointed what the log has not got. Or this writer may begin a new generation over frames that
            // are all in the database: the last chance to capture what a process without the extension appended.
            Some(index)
                if head.wal.salt != index.salt
                    || head.wal.frame < index.attempted
                    || head.wal.frame != index.last_frame
                        && index.backfilled >= index.last_frame =>
            {
                self.follow_wal(&files, true, |_, _| Ok(()));
            }
            Some(_) => {}
            // A writer died, and this lock is for recovery: after it, nothing tells its commits from a checkpoint's.
            None => {
                self.follow_wal(&files, true, |_, _| Ok(()));
            }
        }
    }

    /// Before SQLite notes how far this checkpoint goes: from then on nobody can tell whether a page is still as it was.
    fn wal_checkpoint_locked(&mut self) {
        let Some(files) = self.wal_files().filter(|_| self.shared.is_verified()) else {
            return;
        };
        let Some(index) = settled_index(files.db.as_ref()) else {
            return;
        };
        let (_, head) = self.shared.published();
        let is_behind = index.last_frame > 0
            && (index.salt, index.last_frame) != (head.wal.salt, head.wal.frame);
        if !is_behind || self.follow_wal(&files, false, |_, _| Ok(())) {
            self.shared.lane().checkpoint_is_to_wait();
        }
        // SQLite syncs the WAL next, then the log is: the disk can work on both.
        self.shared.start_sync();
    }

    fn before_wal_checkpoint_unlocked(&mut self) {
        self.shared.lane().checkpoint_begins();
    }

    fn wal_checkpoint_unlocked(&mut self) {
        if std::mem::take(&mut self.checkpointed)
            && let Some(files) = self.wal_files()
        {
            self.follow_wal(&files, false, |shared, guard| {
                stamp_checkpoint(shared, guard)
            });
        }
    }

    fn before_wal_index_unmapped(&mut self) {
        Lane::close(&self.shared, self.name);
        self.shared.finish_adoption(self.name);
    }

    fn before_close(&mut self) {
        self.finish(Transaction::settle);
        self.shared.remove_connection(self.name);
    }
}

/// The wal-index as soon as no commit is changing it; `None` without one, or where a writer died while it changed it.
fn settled_index(db: &dyn Base) -> Option<WalIndex> {
    for _ in 0..LOOKS_MAX {
        let index = WalIndex::parse(&db.wal_index()?);
        if index.is_some() {
            return index;
        }
        std::thread::sleep(LOOK_PAUSE);
    }
    None
}

/// A WAL writer is about to write: makes sure once that log state = image.
pub fn establish(shared: &Arc<SharedLog>, files: Option<Arc<ConnectionFiles>>) {
    let Some(files) = files.filter(|_| !shared.is_verified()) else {
        return;
    };
    if shared.pausing().is_some() {
        return;
    }
    let established = shared.acquire().and_then(|mut guard| {
        verify(shared, &mut guard, &files).inspect_err(|error| shared.fail(Some(&mut guard), error))
    });
    if let Err(error) = established {
        missed(shared, &error);
    }
}

#[cfg(test)]
mod tests;
