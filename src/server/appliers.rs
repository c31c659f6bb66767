//! Brings the database files up to their logs: a few worker threads that take databases in turn and end when there
//! is nothing to do.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::lock::{Condvar, Mutex};
use mycelite_journal::Txid;
use tracing::{Dispatch, dispatcher};

use super::Limits;
use super::database::{ApplyPhase, Database};
use crate::apply::{Applier, ApplyOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::promote;

/// A database may keep a worker for so long while others wait.
const TURN: Duration = Duration::from_secs(2);
/// A replica that got nothing for so long is tidied up (its WAL checkpointed, say).
const QUIET: Duration = Duration::from_millis(200);
/// Under a constant stream of records that happens after so long all the same.
const TIDY_AFTER: Duration = Duration::from_secs(2);
/// Pause before applying is tried again when a reader or writer of the replica is in the way.
const WAITING_PAUSE: Duration = Duration::from_millis(20);
/// Pause between two attempts to tidy up when a reader is in the way.
const UNSETTLED_PAUSE: Duration = Duration::from_millis(500);
/// Longest wait for the log's lock, to learn where the log ends.
const LOG_WAIT: Duration = Duration::from_secs(5);
/// First pause after a failure; doubles with each further one.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest pause after failures.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// The workers and their queue.
pub(super) struct Appliers {
    workers_max: usize,
    idle: Duration,
    options: ApplyOptions,
    pool: Mutex<Pool>,
    /// Rung when the queue grew, a worker ended, or all should stop.
    bell: Condvar,
}

#[derive(Default)]
struct Pool {
    /// Databases that wait, and not before when.
    queue: VecDeque<(Instant, Arc<Database>)>,
    /// Databases that workers have.
    running: Vec<Arc<Database>>,
    workers: usize,
    /// Workers that wait for the queue.
    waiting: usize,
    stopping: bool,
}

impl Appliers {
    /// No worker yet.
    pub fn new(limits: &Limits) -> Arc<Appliers> {
        Arc::new(Appliers {
            workers_max: limits.appliers_max.max(1),
            idle: limits.applier_idle,
            options: ApplyOptions {
                lock_wait: limits.busy_timeout,
                wal_bytes_stop: limits.wal_bytes_max,
                ..ApplyOptions::default()
            },
            pool: Mutex::new(Pool::default()),
            bell: Condvar::new(),
        })
    }

    /// The log of `database` may be ahead of its file. Returns at once.
    pub fn wake(self: &Arc<Self>, database: &Arc<Database>) {
        {
            let mut apply = database.apply.lock();
            match apply.phase {
                ApplyPhase::Queued => return,
                ApplyPhase::Running => {
                    apply.again = true;
                    database.apply_bell.notify_one();
                    return;
                }
                ApplyPhase::Idle => apply.phase = ApplyPhase::Queued,
            }
        }
        self.enqueue(database, Instant::now());
    }

    fn enqueue(self: &Arc<Self>, database: &Arc<Database>, not_before: Instant) {
        let mut pool = self.pool.lock();
        pool.queue.push_back((not_before, Arc::clone(database)));
        if pool.waiting == 0 && pool.workers < self.workers_max && !pool.stopping {
            let appliers = Arc::clone(self);
            let log = dispatcher::get_default(Dispatch::clone);
            let spawned = std::thread::Builder::new()
                .name("mycelite-apply".to_string())
                .spawn(move || dispatcher::with_default(&log, || appliers.work()));
            match spawned {
                Ok(_) => pool.workers += 1,
                Err(e) => {
                    tracing::error!("cannot start an applier: {e} (the next append tries again)")
                }
            }
        }
        drop(pool);
        self.bell.notify_all();
    }

    /// Tells all workers to finish what they do; does not wait.
    pub fn ask_to_stop(&self) {
        let mut pool = self.pool.lock();
        pool.stopping = true;
        for database in &pool.running {
            // Taken and released, so that a worker between looking and waiting hears the bell.
            drop(database.apply.lock());
            database.apply_bell.notify_all();
        }
        drop(pool);
        self.bell.notify_all();
    }

    /// Waits until no worker is left, at most `wait`: true if so.
    pub fn wait_stopped(&self, wait: Duration) -> bool {
        let deadline = Instant::now() + wait;
        let mut pool = self.pool.lock();
        while pool.workers > 0 {
            let late;
            (pool, late) = self.bell.wait_until(pool, deadline);
            if late {
                return pool.workers == 0;
            }
        }
        true
    }

    /// A worker's life.
    fn work(self: &Arc<Self>) {
        while let Some(database) = self.next() {
            let outcome = catch_unwind(AssertUnwindSafe(|| self.serve(&database)))
                .unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "the applier panicked")));
            self.finish(&database, outcome);
        }
    }

    /// The next database that is due; none when the worker should end.
    fn next(&self) -> Option<Arc<Database>> {
        let mut pool = self.pool.lock();
        let idle_until = Instant::now() + self.idle;
        loop {
            let now = Instant::now();
            let due = pool
                .queue
                .iter()
                .position(|(not_before, _)| *not_before <= now);
            if let Some((_, database)) = due
                .and_then(|index| pool.queue.remove(index))
                .filter(|_| !pool.stopping)
            {
                let mut apply = database.apply.lock();
                apply.phase = ApplyPhase::Running;
                apply.again = false;
                drop(apply);
                pool.running.push(Arc::clone(&database));
                return Some(database);
            }
            let soonest = pool.queue.iter().map(|(not_before, _)| *not_before).min();
            if pool.stopping || (soonest.is_none() && now >= idle_until) {
                pool.workers -= 1;
                drop(pool);
                self.bell.notify_all();
                return None;
            }
            pool.waiting += 1;
            let until = soonest.unwrap_or(idle_until);
            pool = self.bell.wait_until(pool, until).0;
            pool.waiting -= 1;
        }
    }

    fn is_stopping(&self) -> bool {
        self.pool.lock().stopping
    }

    fn others_wait(&self) -> bool {
        let now = Instant::now();
        self.pool
            .lock()
            .queue
            .iter()
            .any(|(not_before, _)| *not_before <= now)
    }

    /// Applies until the database is up to date and stays so for a while, or others have waited long enough.
    fn serve(&self, database: &Arc<Database>) -> Result<()> {
        if promote::is_promoted(&database.log_dir) {
            // Applications write to this file.
            let durable = database.learn_durable_blocking(LOG_WAIT)?;
            database.apply.lock().applied = durable.pos.txid;
            return Ok(());
        }
        database.check_keeper()?;
        database.learn_durable_blocking(LOG_WAIT)?;
        let history = database.history();
        let version = *history;
        // What could still be lost in a power cut stays out of the file.
        let limit = || database.durable().map_or(Txid(0), |now| now.pos.txid);
        let options = ApplyOptions {
            limit: limit(),
            ..self.options.clone()
        };
        let mut applier = Applier::open_with(&database.db_path, &database.log_dir, options)?;
        drop(history);
        let begin = Instant::now();
        self.note(database, &applier, None);
        let mut tidy_at = begin + TIDY_AFTER;
        loop {
            let history = database.history();
            if *history != version {
                // The log was cut back under the file: where that is must be found out anew.
                database.apply.lock().again = true;
                break;
            }
            applier.set_limit(limit());
            let applied = applier.step()?;
            drop(history);
            self.note(database, &applier, applied.waiting);
            if self.is_stopping() || (begin.elapsed() > TURN && self.others_wait()) {
                database.apply.lock().again |= applied.more;
                break;
            }
            if applied.waiting.is_some() {
                std::thread::sleep(WAITING_PAUSE);
                continue;
            }
            if applied.more || (Instant::now() < tidy_at && self.wait_for_more(database, QUIET)) {
                continue;
            }
            if !self.tidy(database, &mut applier)? {
                break;
            }
            tidy_at = Instant::now() + TIDY_AFTER;
        }
        applier.close()
    }

    /// Tidies up, also what a reader at first keeps from it, while there is nothing to apply: true when there is
    /// something again, false when it is time to leave.
    fn tidy(&self, database: &Database, applier: &mut Applier) -> Result<bool> {
        applier.idle()?;
        if self.wait_for_more(database, self.idle) {
            return Ok(true);
        }
        while !applier.is_settled() && !self.is_stopping() && !self.others_wait() {
            applier.idle()?;
            if self.wait_for_more(database, UNSETTLED_PAUSE) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn note(&self, database: &Database, applier: &Applier, waiting: Option<&str>) {
        let mut apply = database.apply.lock();
        apply.applied = applier.pos().txid;
        apply.failures = 0;
        apply.error.clear();
        apply.error.push_str(waiting.unwrap_or_default());
    }

    /// Waits for the database's bell, at most `wait`: true if it rang. False also when the worker should leave.
    fn wait_for_more(&self, database: &Database, wait: Duration) -> bool {
        let deadline = Instant::now() + wait;
        loop {
            let leave = self.is_stopping() || self.others_wait();
            let mut apply = database.apply.lock();
            if std::mem::take(&mut apply.again) {
                return true;
            }
            let now = Instant::now();
            if now >= deadline || leave {
                return false;
            }
            // In slices, since a growing queue does not ring this bell.
            let slice = deadline.min(now + TURN);
            drop(database.apply_bell.wait_until(apply, slice));
        }
    }

    /// Puts the database back where it belongs after a worker had it.
    fn finish(self: &Arc<Self>, database: &Arc<Database>, outcome: Result<()>) {
        self.pool
            .lock()
            .running
            .retain(|running| !Arc::ptr_eq(running, database));
        let mut apply = database.apply.lock();
        let again = match outcome {
            Ok(()) => apply.again.then(Instant::now),
            Err(e) => {
                let line = e.to_string();
                if apply.error != line {
                    tracing::error!("{}: {line}", database.name);
                }
                let pause =
                    (RETRY_MIN * 2_u32.saturating_pow(apply.failures.min(16))).min(RETRY_MAX);
                apply.error = line;
                apply.failures = apply.failures.saturating_add(1);
                apply.failures_total += 1;
                Some(Instant::now() + pause)
            }
        };
        apply.phase = if again.is_some() {
            ApplyPhase::Queued
        } else {
            ApplyPhase::Idle
        };
        drop(apply);
        match again {
            Some(not_before) => self.enqueue(database, not_before),
            // Nothing to do for it: give back the files of its log, too.
            None => {
                if let Some(mut slot) = database.try_turn() {
                    slot.close();
                }
            }
        }
    }
}
