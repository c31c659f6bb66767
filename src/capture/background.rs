//! The one thread of a process that records what its WAL databases commit, where the setting `wal_capture` says so. It comes
//! with the first commit that is left to it, sleeps without a system call while there is none, and ends with the last database.

use crate::capture::shared::SharedLog;
use crate::lock::{Condvar, Mutex};
use crate::signals;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long commits may gather after a round, so that the next one records several at once.
const GATHER: Duration = Duration::from_millis(1);
/// Rounds without work after which the thread sleeps until it is woken.
const QUIET_ROUNDS: u32 = 4;
/// Longest wait for the thread to end; all that it waits for is somebody else's lock on a log.
const END_WAIT_MAX: Duration = Duration::from_millis(100);
/// How often in a row a database is tried again whose log is busy; the next commit begins anew.
const TRIES_MAX: u32 = 10;

/// How a round ended for one database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is left to do.
    Done,
    /// Somebody else is at it: to be tried again.
    Later,
}

/// What a process has to record, and its thread.
struct Worker {
    pid: u32,
    state: Mutex<State>,
    bell: Condvar,
    /// The thread does nothing more.
    ended: Condvar,
    /// The next process that was forked from here; what is above may be frozen in any state there, and is not touched.
    next: OnceLock<Box<Worker>>,
}

#[derive(Default)]
struct State {
    /// Databases with commits to record: each once, so never more than the process has open.
    queue: VecDeque<Weak<SharedLog>>,
    /// Databases that may come again.
    lanes: usize,
    running: bool,
    asleep: bool,
    thread: Option<JoinHandle<()>>,
}

static FIRST: OnceLock<Worker> = OnceLock::new();

fn worker() -> &'static Worker {
    let pid = std::process::id();
    let mut worker = FIRST.get_or_init(|| Worker::new(pid));
    while worker.pid != pid {
        worker = worker.next.get_or_init(|| Box::new(Worker::new(pid)));
    }
    worker
}

/// A database has files for the thread.
pub fn enter() {
    worker().state.lock().lanes += 1;
}

/// A database has none any more; with the last one the thread ends.
pub fn leave() {
    let worker = worker();
    let mut state = worker.state.lock();
    state.lanes = state.lanes.saturating_sub(1);
    if state.lanes > 0 || !state.running {
        return;
    }
    worker.bell.notify_one();
    let until = Instant::now() + END_WAIT_MAX;
    while state.running && state.lanes == 0 {
        let late;
        (state, late) = worker.ended.wait_until(state, until);
        if late {
            return;
        }
    }
    let thread = if state.running {
        None
    } else {
        state.thread.take()
    };
    drop(state);
    if let Some(thread) = thread {
        // Past its last act, so this cannot take long.
        let _ = thread.join();
    }
}

/// There is something to record for `shared`; false when there can be no thread.
pub fn wake(shared: &Arc<SharedLog>) -> bool {
    let worker = worker();
    let mut state = worker.state.lock();
    state.queue.push_back(Arc::downgrade(shared));
    if !state.running {
        let spawned = std::thread::Builder::new()
            .name("mycelite-capture".to_owned())
            .spawn(|| worker.live());
        let Ok(thread) = spawned else {
            state.queue.pop_back();
            return false;
        };
        state.thread = Some(thread);
        state.running = true;
    } else if std::mem::take(&mut state.asleep) {
        worker.bell.notify_one();
    }
    true
}

impl Worker {
    fn new(pid: u32) -> Worker {
        Worker {
            pid,
            state: Mutex::default(),
            bell: Condvar::new(),
            ended: Condvar::new(),
            next: OnceLock::new(),
        }
    }

    /// The thread's body.
    fn live(&self) {
        let can_run = signals::block().is_ok();
        let (mut gather, mut tries) = (false, 0);
        while let Some(batch) = self.next_batch(gather) {
            gather = true;
            let mut again = Vec::new();
            for shared in batch.iter().filter_map(Weak::upgrade) {
                let worked = catch_unwind(AssertUnwindSafe(|| match can_run {
                    true => shared.lane().work(&shared),
                    false => {
                        shared.lane().give_up(&shared);
                        Outcome::Done
                    }
                }));
                match worked {
                    Ok(Outcome::Done) => {}
                    Ok(Outcome::Later) => again.push(shared),
                    Err(_) => {
                        let _ = catch_unwind(AssertUnwindSafe(|| shared.lane().give_up(&shared)));
                    }
                }
            }
            tries = if again.is_empty() { 0 } else { tries + 1 };
            if tries < TRIES_MAX {
                again.retain(|shared| shared.lane().is_queued_anew());
                let again = again.iter().map(Arc::downgrade);
                self.state.lock().queue.extend(again);
            }
        }
    }

    /// What is to be done next, after commits had time to `gather`; sleeps while there is nothing. `None`: the thread ends.
    fn next_batch(&self, mut gather: bool) -> Option<VecDeque<Weak<SharedLog>>> {
        let mut state = self.state.lock();
        let mut quiet = 0;
        loop {
            let until = Instant::now() + GATHER;
            let mut late = false;
            while gather && state.lanes > 0 && !late {
                (state, late) = self.bell.wait_until(state, until);
            }
            if !state.queue.is_empty() {
                return Some(std::mem::take(&mut state.queue));
            }
            if state.lanes == 0 {
                state.running = false;
                self.ended.notify_all();
                return None;
            }
            quiet += 1;
            gather = quiet < QUIET_ROUNDS;
            if !gather {
                state.asleep = true;
                while state.asleep && state.lanes > 0 {
                    state = self.bell.wait(state);
                }
                state.asleep = false;
                quiet = 0;
            }
        }
    }
}
