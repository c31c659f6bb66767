//! A database in WAL mode that had data before it had a log is taken into the log by a thread, while the application goes on.
//!
//! As long as no checkpoint begins, the database file stands still: all that is committed goes to the WAL. So the thread has
//! the lock of whoever checkpoints, writes the image as of one commit, and then records one by one what was committed after
//! that. It has the log meanwhile, and the lock file says so: who commits goes on without waiting. When it has caught up, it
//! gives the log to this process's connections as if they had done all that. If it dies, the next writer begins anew.

use crate::capture::catch_up::{CatchUp, catch_up, cursor_in};
use crate::capture::guard::{LogGuard, State, Trust};
use crate::capture::image::Image;
use crate::capture::lane::twins_of;
use crate::capture::lock_file::busy;
use crate::capture::reconcile::{draft_of, leave_link, stamp_checkpoint};
use crate::capture::shared::{ConnectionFiles, LOCK_WAIT_MAX, SharedLog, journal_error};
use crate::capture::sighting::Sighting;
use crate::capture::wal::WalHeader;
use crate::config::LogSync;
use crate::error::{Error, ErrorKind, Result};
use crate::lock::{Condvar, Mutex};
use crate::signals;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How often the image is read again because the WAL began anew meanwhile, which can happen once.
const TRIES_MAX: u32 = 3;
/// A round of catching up that took no longer is the last but one.
const SHORT_ROUND: Duration = Duration::from_millis(10);
/// Rounds after which the rest is caught up while others wait: whoever commits so fast waits somewhat longer, once.
const ROUNDS_MAX: u32 = 200;
/// Whoever has to wait for the end gives up when nothing has moved for so long.
const STALL_MAX: Duration = Duration::from_secs(30);

/// An adoption that a connection of this process has begun.
pub struct Adoption {
    /// The name of that connection: what the thread knows of the wal-index is gone with it.
    owner: usize,
    /// In a forked child there is no thread.
    pid: u32,
    /// Grows as long as something happens.
    steps: AtomicU32,
    /// Nobody waits for it any more.
    given_up: AtomicBool,
    ended: Mutex<bool>,
    bell: Condvar,
}

impl Adoption {
    /// Begins one, if the log is empty and the database in `files` is large and can be kept still; then the log is no longer
    /// with `guard`. The caller has the WAL write lock.
    ///
    /// # Errors
    /// The database cannot be examined, the lock file cannot be written, or there can be no thread.
    pub fn begin(
        shared: &Arc<SharedLog>,
        guard: &mut LogGuard,
        files: &ConnectionFiles,
    ) -> Result<bool> {
        let least = shared.options().adopt_background_min.max(1);
        if guard.head().page_count > 0 || files.wal.is_none() || files.db.size()? < least {
            return Ok(false);
        }
        let Some(still) = twins_of(shared, files, |db| db.twin_without_checkpoints()) else {
            return Ok(false);
        };
        let adoption = Arc::new(Adoption {
            owner: files.owner,
            pid: std::process::id(),
            steps: AtomicU32::new(0),
            given_up: AtomicBool::new(false),
            ended: Mutex::new(false),
            bell: Condvar::new(),
        });
        guard.set_adopting(true)?;
        let state = guard.take_state();
        let (with, of) = (Arc::clone(&adoption), Arc::clone(shared));
        std::thread::Builder::new()
            .name("mycelite-adopt".to_owned())
            .spawn(move || with.live(&of, state, still))
            .map_err(|e| {
                Error::new(
                    ErrorKind::Internal,
                    format_args!("cannot start a thread: {e}"),
                )
                .hint("the log is begun later")
            })?;
        *shared.adoption.lock() = Some(adoption);
        Ok(true)
    }

    /// The thread's body.
    fn live(&self, shared: &SharedLog, state: State, still: ConnectionFiles) {
        let mut guard = LogGuard::of(state);
        let adopted = catch_unwind(AssertUnwindSafe(|| self.adopt(shared, &mut guard, &still)));
        let failure = match adopted {
            Ok(done) => done.err(),
            Err(_) => Some(
                Error::new(ErrorKind::Internal, "a defect in mycelite was caught")
                    .hint("please report it; the log is begun anew"),
            ),
        };
        // Checkpoints go on before anybody waits for the log.
        drop(still);
        if let Some(error) = failure {
            // What stays in the file says nothing once the lock is free.
            let _ = guard.set_adopting(false);
            if !self.given_up.load(Ordering::Relaxed) {
                shared.fail(Some(&mut guard), &error);
            }
        }
        drop(guard);
        *self.ended.lock() = true;
        self.bell.notify_all();
    }

    fn adopt(
        &self,
        shared: &SharedLog,
        guard: &mut LogGuard,
        still: &ConnectionFiles,
    ) -> Result<()> {
        signals::block()?;
        let before = shared.sight()?;
        let mut tries = 1;
        while !self.record_image(shared, guard, still)? {
            tries += 1;
            if tries > TRIES_MAX {
                return Err(Error::new(
                    ErrorKind::Busy,
                    "the WAL begins anew all the time",
                ));
            }
        }
        if shared.options().sync != LogSync::Off {
            // Else the commit that begins the next segment would wait for all of it.
            guard.log()?.sync().map_err(journal_error)?;
        }
        for _ in 0..ROUNDS_MAX {
            let begun = Instant::now();
            self.follow(shared, guard, still)?;
            if begun.elapsed() < SHORT_ROUND {
                break;
            }
        }
        self.hand_over(shared, guard, still, &before)
    }

    /// Records the image as of one commit; false when it has to be read again.
    fn record_image(
        &self,
        shared: &SharedLog,
        guard: &mut LogGuard,
        still: &ConnectionFiles,
    ) -> Result<bool> {
        let image = Image::open(still, false, None)?
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, "there is no database any more"))?;
        let draft = draft_of(guard, &image, true)?;
        let mut writer = guard.log()?.begin(draft).map_err(journal_error)?;
        image.for_each(|pgno, page| {
            self.step()?;
            writer.patch(pgno, None, page).map_err(journal_error)
        })?;
        // A generation that began meanwhile, over one that was in the database, may have overwritten frames that were read.
        let salt = wal_header(still)?.map(|header| header.salt);
        if image.cursor.frame > 0 && salt != Some(image.cursor.salt) {
            writer.abort().map_err(journal_error)?;
            return Ok(false);
        }
        shared.sight()?;
        writer.commit().map_err(journal_error)?;
        shared.announce(guard);
        Ok(true)
    }

    /// Records what was committed since.
    fn follow(
        &self,
        shared: &SharedLog,
        guard: &mut LogGuard,
        still: &ConnectionFiles,
    ) -> Result<()> {
        self.step()?;
        if let (Some(wal), Some(header)) = (still.wal.as_deref(), wal_header(still)?)
            && cursor_in(shared, guard, wal, &header)?.is_none()
        {
            // No checkpoint begins, so this generation can only follow one that was in the database when the image was read.
            leave_link(shared, guard, header.start())?;
        }
        match catch_up(shared, guard, still, false)? {
            CatchUp::Captured(_) => Ok(()),
            CatchUp::Lost => Err(Error::new(
                ErrorKind::Corrupt,
                "the WAL was changed by something other than SQLite",
            )),
        }
    }

    /// Records the rest while others wait for it, and gives them the log, if the database file is still as it was `before`.
    fn hand_over(
        &self,
        shared: &SharedLog,
        guard: &mut LogGuard,
        still: &ConnectionFiles,
        before: &Sighting,
    ) -> Result<()> {
        // Before anybody waits for the file's lock with this in his hands.
        let mut theirs = shared
            .state
            .try_take_until(Instant::now() + LOCK_WAIT_MAX)
            .ok_or_else(|| busy(&shared.options().dir))?;
        guard.set_adopting(false)?;
        self.follow(shared, guard, still)?;
        stamp_checkpoint(shared, guard)?;
        // In this order, so that the stamp does not vouch for more than this look.
        if shared.sight()? != *before {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "something other than SQLite wrote to the database",
            )
            .hint("the log is repaired by comparing"));
        }
        guard.unmark(None)?;
        guard.set_trust(Trust::Verified);
        shared.announce(guard);
        *theirs = guard.take_state();
        shared.recovered();
        if let Some(lock) = &theirs.lock {
            lock.unlock();
        }
        Ok(())
    }

    /// Something has moved.
    fn step(&self) -> Result<()> {
        self.steps.fetch_add(1, Ordering::Relaxed);
        if self.given_up.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Busy, "nobody waits for it any more"));
        }
        Ok(())
    }

    fn is_ended(&self) -> bool {
        self.pid != std::process::id() || *self.ended.lock()
    }

    /// Waits for the end, as long as something moves.
    fn wait(&self) {
        if self.pid != std::process::id() {
            return;
        }
        let mut ended = self.ended.lock();
        while !*ended {
            let before = self.steps.load(Ordering::Relaxed);
            let late;
            (ended, late) = self.bell.wait_for(ended, STALL_MAX);
            if late && before == self.steps.load(Ordering::Relaxed) {
                self.given_up.store(true, Ordering::Relaxed);
                return;
            }
        }
    }
}

impl SharedLog {
    /// Whether a thread of this process is taking the database into its log.
    pub fn is_adopting(&self) -> bool {
        let adoption = self.adoption.lock().clone();
        adoption.is_some_and(|adoption| !adoption.is_ended())
    }

    /// Waits until the database is in its log, or for `patience`.
    pub fn wait_adopted(&self, patience: Duration) {
        let adoption = self.adoption.lock().clone();
        if let Some(adoption) = adoption.filter(|adoption| !adoption.is_ended()) {
            let deadline = Instant::now() + patience;
            let (mut ended, mut late) = (adoption.ended.lock(), false);
            while !*ended && !late {
                (ended, late) = adoption.bell.wait_until(ended, deadline);
            }
        }
    }

    /// Connection `owner` is about to give up the wal-index: what it has begun is finished first.
    pub fn finish_adoption(&self, owner: usize) {
        let begun = self
            .adoption
            .lock()
            .take_if(|adoption| adoption.owner == owner);
        if let Some(adoption) = begun {
            adoption.wait();
        }
    }
}

fn wal_header(files: &ConnectionFiles) -> Result<Option<WalHeader>> {
    files.wal.as_deref().map_or(Ok(None), WalHeader::read)
}
