//! The one thread of a process that ships, for all its databases: it comes with the first that has something to send, sleeps
//! without a system call while none has, and ends with the last.
//!
//! A database that something is to be sent for is a task on this thread's runtime (see [`super::session`]); one that nothing is
//! to be sent for is an entry in a list. Whatever goes wrong with one of them ends its task and no other.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::lock::{Condvar, Mutex};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio::sync::Notify;
use tokio::task::{JoinSet, LocalSet};

use super::ShipOptions;
use super::client::Failure;
use super::host::Hosts;
use super::session;
use super::state::Shared;
use crate::error::{Error, ErrorKind};

/// One database's shipping, from the first wake-up of its handle to the end.
pub(super) struct Job {
    pub options: Arc<ShipOptions>,
    pub shared: Arc<Shared>,
    /// Rung when there may be more to send, or when it is to end.
    pub bell: Notify,
    /// It is to end. Set under the driver's lock.
    stopping: AtomicBool,
    /// A task has it, or is about to. Changed under the driver's lock.
    active: AtomicBool,
    // Dropped when nothing will be done for it any more.
    alive: Mutex<Option<Sender<()>>>,
    /// So often its shipping is to panic.
    #[cfg(test)]
    pub panics: std::sync::atomic::AtomicU32,
}

impl Job {
    #[cfg(test)]
    pub fn panic_if_wanted(&self) {
        let one_less = |wanted: u32| wanted.checked_sub(1);
        let wanted = self
            .panics
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        assert!(wanted.is_err(), "a panic that a test wanted");
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// What cannot be helped concerns each of its replicas.
    pub fn fail(&self, error: &Error) {
        for index in 0..self.shared.replicas.len() {
            self.shared
                .failed(index, &Failure::transient(error.clone()));
        }
    }
}

/// What a process ships, and its thread.
pub(super) struct Driver {
    pid: u32,
    state: Mutex<State>,
    /// The next process that was forked from here; what is above may be frozen in any state there, and is not touched.
    next: OnceLock<Box<Driver>>,
}

#[derive(Default)]
struct State {
    /// All databases; never more than the process has open.
    jobs: Vec<Arc<Job>>,
    /// Those that are active and have no task yet.
    ready: VecDeque<Arc<Job>>,
    thread: Option<Thread>,
}

/// A started thread. One that is no longer in the state finishes what it has and ends.
struct Thread {
    bells: Arc<Bells>,
    // Disconnected when the thread has ended.
    ended: Receiver<()>,
    handle: JoinHandle<()>,
}

#[derive(Default)]
struct Bells {
    /// For the thread while it sleeps.
    asleep: Condvar,
    /// For the thread while it has tasks.
    awake: Notify,
}

impl Bells {
    fn rouse(&self) {
        self.asleep.notify_one();
        self.awake.notify_one();
    }
}

static FIRST: OnceLock<Driver> = OnceLock::new();

/// The driver of this process.
pub(super) fn driver() -> &'static Driver {
    let pid = std::process::id();
    let mut driver = FIRST.get_or_init(|| Driver::new(pid));
    while driver.pid != pid {
        driver = driver.next.get_or_init(|| Box::new(Driver::new(pid)));
    }
    driver
}

impl Driver {
    fn new(pid: u32) -> Driver {
        Driver {
            pid,
            state: Mutex::default(),
            next: OnceLock::new(),
        }
    }

    /// Whether this is the driver of the calling process.
    pub fn is_ours(&self) -> bool {
        self.pid == std::process::id()
    }

    /// Takes a database in; nothing is done for it before it is woken. The second is disconnected when it has ended.
    pub fn add(&self, options: &Arc<ShipOptions>) -> (Arc<Job>, Receiver<()>) {
        let (alive, ended) = crossbeam_channel::bounded(0);
        let job = Arc::new(Job {
            options: Arc::clone(options),
            shared: Arc::new(Shared::new(options)),
            bell: Notify::new(),
            stopping: AtomicBool::new(false),
            active: AtomicBool::new(false),
            alive: Mutex::new(Some(alive)),
            #[cfg(test)]
            panics: Default::default(),
        });
        self.state.lock().jobs.push(Arc::clone(&job));
        (job, ended)
    }

    /// There may be something to send for `job`, as its generation says already. False when there can be no thread.
    pub fn wake(&'static self, job: &Arc<Job>) -> bool {
        let mut state = self.state.lock();
        if job.is_stopping() {
            return false;
        }
        let Some(bells) = self.thread(&mut state) else {
            return false;
        };
        if job.active.swap(true, Ordering::Relaxed) {
            drop(state);
            job.bell.notify_one();
        } else {
            state.ready.push_back(Arc::clone(job));
            drop(state);
            bells.rouse();
        }
        true
    }

    /// The thread that runs, or a new one.
    fn thread(&'static self, state: &mut State) -> Option<Arc<Bells>> {
        if let Some(thread) = &state.thread
            && !thread.handle.is_finished()
        {
            return Some(Arc::clone(&thread.bells));
        }
        let bells = Arc::new(Bells::default());
        let (alive, ended) = crossbeam_channel::bounded(0);
        let spawned = std::thread::Builder::new()
            .name("mycelite-ship".to_string())
            .spawn({
                let bells = Arc::clone(&bells);
                move || {
                    self.live(&bells);
                    drop(alive);
                }
            });
        match spawned {
            Ok(handle) => {
                state.thread = Some(Thread {
                    bells: Arc::clone(&bells),
                    ended,
                    handle,
                });
                Some(bells)
            }
            Err(e) => {
                tracing::warn!(
                    "cannot start the shipping thread: {e} (records stay in the log and are sent later)"
                );
                None
            }
        }
    }

    /// Ends what is done for `job`, and the thread if it was the last, and waits for that, at most `timeout`.
    pub fn stop(&self, job: &Arc<Job>, ended: &Receiver<()>, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let thread = self.leave(job);
        // Nothing is ever sent; the channels close when the last act drops their other ends.
        let _ = ended.recv_deadline(deadline);
        if let Some(thread) = thread
            && thread.ended.recv_deadline(deadline) == Err(RecvTimeoutError::Disconnected)
        {
            // Past its last act, so this cannot take long.
            let _ = thread.handle.join();
        }
    }

    /// Ends what is done for `job`, without waiting; the thread, if nobody needs it any more.
    fn leave(&self, job: &Arc<Job>) -> Option<Thread> {
        let mut state = self.state.lock();
        job.stopping.store(true, Ordering::Relaxed);
        let waiting = state.ready.iter().position(|other| Arc::ptr_eq(other, job));
        if let Some(place) = waiting {
            state.ready.remove(place);
            job.active.store(false, Ordering::Relaxed);
        }
        if !job.active.load(Ordering::Relaxed) {
            state.remove(job);
        }
        let thread = match state.jobs.iter().all(|job| job.is_stopping()) {
            true => state.thread.take(),
            false => None,
        };
        drop(state);
        job.bell.notify_one();
        if let Some(thread) = &thread {
            thread.bells.rouse();
        }
        thread
    }

    /// As [`Driver::stop`], without waiting.
    pub fn forsake(&self, job: &Arc<Job>) {
        drop(self.leave(job));
    }

    /// The thread's body.
    fn live(&'static self, bells: &Arc<Bells>) {
        if let Err(e) = crate::signals::block() {
            return self.fail_ready(bells, &e);
        }
        while self.wait_for_work(bells) {
            // What panics outside of a task has ended all of them, and the databases wait for their next wake-up.
            let _ = catch_unwind(AssertUnwindSafe(|| self.work(bells)));
        }
    }

    /// Sleeps until there is something to do (true), or until the thread is to end.
    fn wait_for_work(&self, bells: &Arc<Bells>) -> bool {
        let mut state = self.state.lock();
        loop {
            if !state.is_served_by(bells) {
                return false;
            }
            if !state.ready.is_empty() {
                return true;
            }
            state = bells.asleep.wait(state);
        }
    }

    /// Works until nothing is left to do for any database. What the work needs is given back then.
    fn work(&'static self, bells: &Arc<Bells>) {
        let runtime = match session::runtime() {
            Ok(runtime) => runtime,
            Err(e) => return self.fail_ready(bells, &e),
        };
        let local = LocalSet::new();
        runtime.block_on(local.run_until(async {
            let hosts = Rc::new(Hosts::default());
            let mut tasks = JoinSet::new();
            loop {
                while let Some(active) = self.next_ready(bells) {
                    tasks.spawn_local(session::run(active, Rc::clone(&hosts)));
                }
                if tasks.is_empty() {
                    return;
                }
                tokio::select! {
                    () = bells.awake.notified() => {}
                    _ = tasks.join_next() => {}
                }
            }
        }));
        drop(local);
        // A name look-up that still hangs in the system must not hold us up.
        runtime.shutdown_background();
    }

    fn fail_ready(&'static self, bells: &Arc<Bells>, error: &Error) {
        while let Some(mut active) = self.next_ready(bells) {
            active.fail(error);
        }
    }

    fn next_ready(&'static self, bells: &Arc<Bells>) -> Option<Active> {
        let mut state = self.state.lock();
        if !state.is_served_by(bells) {
            return None;
        }
        let job = state.ready.pop_front()?;
        Some(Active {
            driver: self,
            job,
            over: false,
        })
    }
}

impl State {
    fn is_served_by(&self, bells: &Arc<Bells>) -> bool {
        let current = self.thread.as_ref().map(|thread| &thread.bells);
        current.is_some_and(|current| Arc::ptr_eq(current, bells))
    }

    fn remove(&mut self, job: &Arc<Job>) {
        self.jobs.retain(|other| !Arc::ptr_eq(other, job));
        job.alive.lock().take();
    }
}

/// A database that something is done for.
pub(super) struct Active {
    driver: &'static Driver,
    pub job: Arc<Job>,
    over: bool,
}

impl Active {
    /// Nothing is left to do: true, unless more was asked for than the generation `seen`.
    pub fn is_over(&mut self, seen: u64) -> bool {
        let mut state = self.driver.state.lock();
        let stopping = self.job.is_stopping();
        if !stopping && self.job.shared.generation() != seen {
            return false;
        }
        self.over = true;
        self.job.active.store(false, Ordering::Relaxed);
        if stopping {
            state.remove(&self.job);
        }
        true
    }

    /// Nothing can be done for it before its next wake-up.
    fn fail(&mut self, error: &Error) {
        self.job.fail(error);
        while !self.is_over(self.job.shared.generation()) {}
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        if !self.over {
            let what = "the shipping of this database ended in a panic";
            self.fail(&Error::new(ErrorKind::Internal, what));
        }
    }
}
