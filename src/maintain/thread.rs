//! The one thread of a process that looks after the logs of all its databases: it comes with the first that has something to
//! be done, sleeps without a system call while none has, and ends with the last. One thread and always the same, since each
//! that has worked leaves memory behind.
//!
//! The logs have their turns one after the other, one step each. Whatever goes wrong with one of them, a panic too, ends its
//! round and no other.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::lock::{Condvar, Mutex};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use mycelite_journal::Pace;

use super::{BETWEEN_STEPS, Course, Needs, Options, backlog, now_us};
use crate::error::{Error, ErrorKind};

/// A process that ends sooner than this after it began a segment leaves the sealing to others.
const FIRST_DELAY: Duration = Duration::from_secs(2);
/// So many segments that nobody has sealed are more than processes that live long leave behind.
const BACKLOG: usize = 4;
/// The thread looks after each block of its work whether it is to end; so long may such a block take.
const LAST_BLOCK: Duration = Duration::from_millis(100);
/// The part of the time that the thread works: one in so many.
const SHARE: u32 = 2;
/// It rests after it has worked for so long.
const TURN: Duration = Duration::from_millis(5);

/// A log, and how it is to be kept.
pub(super) struct Work {
    pub dir: PathBuf,
    pub options: Mutex<Options>,
    /// What must not go.
    pub needs: Box<dyn Fn() -> Needs + Send + Sync>,
    /// Hears of failures.
    pub report: Box<dyn Fn(&Error) + Send + Sync>,
}

/// One database's maintenance in this process, from the first wake-up of its handle to the end.
pub(super) struct Job {
    work: Arc<Work>,
    /// It is in a list, or worked on. Changed under the crew's lock, as the next two.
    busy: AtomicBool,
    /// More has come since it was put into the list.
    again: AtomicBool,
    /// It is to end.
    stopping: AtomicBool,
    /// Until when it may go on then.
    deadline: Mutex<Option<Instant>>,
    /// The round that is under way.
    course: Mutex<Option<Course>>,
    // Dropped when nothing will be done for it any more.
    alive: Mutex<Option<Sender<()>>>,
}

/// What a process looks after, and its thread.
pub(super) struct Crew {
    pid: u32,
    state: Mutex<State>,
    /// The next process that was forked from here; what is above may be frozen in any state there, and is not touched.
    next: OnceLock<Box<Crew>>,
}

#[derive(Default)]
struct State {
    /// Jobs that are not to end.
    staying: usize,
    /// Those whose turn comes, soonest first; never more than the process has databases open, as the next.
    waiting: VecDeque<(Instant, Arc<Job>)>,
    /// Those that somebody waits for in a close.
    closing: VecDeque<Arc<Job>>,
    thread: Option<Thread>,
}

/// A started thread. One that is no longer in the state finishes what is being closed, and ends.
struct Thread {
    bell: Arc<Condvar>,
    // Disconnected when the thread has ended.
    ended: Receiver<()>,
    handle: JoinHandle<()>,
}

static FIRST: OnceLock<Crew> = OnceLock::new();

/// The crew of this process.
pub(super) fn crew() -> &'static Crew {
    let pid = std::process::id();
    let mut crew = FIRST.get_or_init(|| Crew::new(pid));
    while crew.pid != pid {
        crew = crew.next.get_or_init(|| Box::new(Crew::new(pid)));
    }
    crew
}

impl Crew {
    fn new(pid: u32) -> Crew {
        Crew {
            pid,
            state: Mutex::default(),
            next: OnceLock::new(),
        }
    }

    /// Whether this is the crew of the calling process.
    pub fn is_ours(&self) -> bool {
        self.pid == std::process::id()
    }

    /// Takes a log in; nothing is done for it before it is woken. The second is disconnected when it has ended.
    pub fn add(&self, work: &Arc<Work>) -> (Arc<Job>, Receiver<()>) {
        let (alive, ended) = crossbeam_channel::bounded(0);
        self.state.lock().staying += 1;
        let job = Job {
            work: Arc::clone(work),
            busy: AtomicBool::new(false),
            again: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            deadline: Mutex::new(None),
            course: Mutex::new(None),
            alive: Mutex::new(Some(alive)),
        };
        (Arc::new(job), ended)
    }

    /// There may be something to do for `job`, after a while. Starts the thread if there is none.
    pub fn wake(&'static self, job: &Arc<Job>) {
        let mut state = self.state.lock();
        if job.is_stopping() {
            return;
        }
        let Some(bell) = self.thread(&mut state) else {
            return;
        };
        if job.busy.swap(true, Ordering::Relaxed) {
            job.again.store(true, Ordering::Relaxed);
            return;
        }
        if state.wait(Instant::now() + FIRST_DELAY, job) {
            bell.notify_one();
        }
    }

    /// The thread that runs, or a new one.
    fn thread(&'static self, state: &mut State) -> Option<Arc<Condvar>> {
        if let Some(thread) = &state.thread
            && !thread.handle.is_finished()
        {
            return Some(Arc::clone(&thread.bell));
        }
        let bell = Arc::new(Condvar::new());
        let (alive, ended) = crossbeam_channel::bounded(0);
        let spawned = std::thread::Builder::new()
            .name("mycelite-maintain".to_string())
            .spawn({
                let bell = Arc::clone(&bell);
                move || {
                    self.live(&bell);
                    drop(alive);
                }
            });
        match spawned {
            Ok(handle) => {
                state.thread = Some(Thread {
                    bell: Arc::clone(&bell),
                    ended,
                    handle,
                });
                Some(bell)
            }
            Err(error) => {
                tracing::warn!(
                    "cannot start the maintenance thread: {error} (logs are sealed later)"
                );
                None
            }
        }
    }

    /// Ends what is done for `job`, and the thread if it was the last, and waits for that. The job may go on until `patience` is
    /// over, if it is worked on or has much to do; a step that is cut short begins anew another time.
    pub fn stop(&self, job: &Arc<Job>, ended: &Receiver<()>, patience: Duration) {
        let deadline = Instant::now() + patience;
        let thread = self.leave(job, deadline);
        // Nothing is ever sent; the channels close when the last act drops their other ends.
        let _ = ended.recv_deadline(deadline + LAST_BLOCK);
        if let Some(thread) = thread
            && thread.ended.recv_deadline(deadline + LAST_BLOCK)
                == Err(RecvTimeoutError::Disconnected)
        {
            // Past its last act, so this cannot take long.
            let _ = thread.handle.join();
        }
    }

    /// Has `job` end; the thread, if nobody needs it any more.
    fn leave(&self, job: &Arc<Job>, deadline: Instant) -> Option<Thread> {
        let much = job.busy.load(Ordering::Relaxed) && backlog(&job.work.dir) >= BACKLOG;
        let mut state = self.state.lock();
        *job.deadline.lock() = Some(deadline);
        job.stopping.store(true, Ordering::Relaxed);
        state.staying -= 1;
        let place = state
            .waiting
            .iter()
            .position(|(_, other)| Arc::ptr_eq(other, job));
        if let Some(place) = place {
            state.waiting.remove(place);
            // A round that has begun goes on, too.
            if much || job.course.lock().is_some() {
                state.closing.push_back(Arc::clone(job));
            } else {
                job.end();
            }
        } else if !job.busy.load(Ordering::Relaxed) {
            job.end();
        }
        let bell = state.thread.as_ref().map(|thread| Arc::clone(&thread.bell));
        let thread = match state.staying {
            0 => state.thread.take(),
            _ => None,
        };
        drop(state);
        if let Some(bell) = bell {
            bell.notify_one();
        }
        thread
    }

    /// The thread's body.
    fn live(&self, bell: &Arc<Condvar>) {
        if let Err(error) = crate::signals::block() {
            // Work on a thread that runs the host's signal handlers is worse than none.
            tracing::warn!("{error} (logs are sealed later)");
            return;
        }
        while let Some(job) = self.next(bell) {
            let more = catch_unwind(AssertUnwindSafe(|| job.step())).unwrap_or_else(|_| {
                let what = "maintenance of the log ended in a panic";
                let hint = "recording goes on; please report this";
                job.give_up(&Error::new(ErrorKind::Internal, what).hint(hint));
                false
            });
            self.after(&job, more);
        }
    }

    /// Sleeps until somebody's turn has come; `None` when the thread is to end.
    fn next(&self, bell: &Arc<Condvar>) -> Option<Arc<Job>> {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.closing.pop_front() {
                return Some(job);
            }
            let current = state.thread.as_ref().map(|thread| &thread.bell);
            if !current.is_some_and(|current| Arc::ptr_eq(current, bell)) {
                return None;
            }
            match state.waiting.front().map(|(at, _)| *at) {
                None => state = bell.wait(state),
                Some(at) if at <= Instant::now() => {
                    return state.waiting.pop_front().map(|(_, job)| job);
                }
                Some(at) => state = bell.wait_until(state, at).0,
            }
        }
    }

    /// The job has had its turn.
    fn after(&self, job: &Arc<Job>, more: bool) {
        let mut state = self.state.lock();
        if job.is_stopping() {
            match more && !job.is_late() {
                true => state.closing.push_back(Arc::clone(job)),
                false => job.end(),
            }
        } else if more {
            state.wait(Instant::now() + BETWEEN_STEPS, job);
        } else if job.again.swap(false, Ordering::Relaxed) {
            state.wait(Instant::now() + FIRST_DELAY, job);
        } else {
            job.busy.store(false, Ordering::Relaxed);
        }
    }
}

impl State {
    /// Puts a job into the list; whether it is the first there.
    fn wait(&mut self, at: Instant, job: &Arc<Job>) -> bool {
        let place = self.waiting.partition_point(|(other, _)| *other <= at);
        self.waiting.insert(place, (at, Arc::clone(job)));
        place == 0
    }
}

impl Job {
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Somebody waits for the end, and does not wait any longer.
    fn is_late(&self) -> bool {
        let deadline = *self.deadline.lock();
        deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    fn end(&self) {
        self.alive.lock().take();
    }

    /// Does the next step of the round, or the first of one: whether there may be more.
    fn step(&self) -> bool {
        if self.is_late() {
            return false;
        }
        let mut course = self.course.lock();
        let mut round = course
            .take()
            .unwrap_or_else(|| Course::begin(&self.work.dir));
        let options = *self.work.options.lock();
        match round.step(&options, (self.work.needs)(), &Turns::new(self), now_us()) {
            Ok(true) => {
                *course = Some(round);
                return true;
            }
            Ok(false) => self.tell(round),
            Err(error) => (self.work.report)(&error),
        }
        false
    }

    fn tell(&self, round: Course) {
        let done = round.end();
        if done.over.is_empty() {
            tracing::debug!("{}: {done:?}", self.work.dir.display());
            return;
        }
        (self.work.report)(
            &Error::new(ErrorKind::Busy, &done.over)
                .at(self.work.dir.display())
                .hint("raise log_bytes_max, or delete bookmarks; recording goes on"),
        );
    }

    /// Ends the round with an error.
    fn give_up(&self, error: &Error) {
        self.course.lock().take();
        let told = catch_unwind(AssertUnwindSafe(|| (self.work.report)(error)));
        if told.is_err() {
            tracing::error!("{}: {error}", self.work.dir.display());
        }
    }
}

/// Works a part of the time only, and not longer than it may.
struct Turns<'a> {
    job: &'a Job,
    began: Mutex<Instant>,
}

impl Turns<'_> {
    fn new(job: &Job) -> Turns<'_> {
        Turns {
            job,
            began: Mutex::new(Instant::now()),
        }
    }
}

impl Pace for Turns<'_> {
    fn go_on(&self, _: u64) -> bool {
        if self.job.is_stopping() {
            // At the close somebody waits: no rest.
            return !self.job.is_late();
        }
        let mut began = self.began.lock();
        let worked = began.elapsed();
        if worked >= TURN {
            std::thread::sleep(worked * (SHARE - 1));
            *began = Instant::now();
        }
        true
    }
}
