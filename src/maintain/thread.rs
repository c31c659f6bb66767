//! Maintenance beside the application: a thread for a database, while there is something to do and no longer.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use mycelite_journal::{Pace, Txid};
use parking_lot::Mutex;

use super::{Needs, Options, backlog, run};
use crate::error::{Error, ErrorKind};

/// A process that ends sooner than this after it began a segment leaves the sealing to others.
const FIRST_DELAY: Duration = Duration::from_secs(2);
/// So many segments that nobody has sealed are more than processes that live long leave behind.
const BACKLOG: usize = 4;
/// The handle's own lock is only ever held for moments; a forked child may find it stuck, and then does without.
const HANDLE_WAIT: Duration = Duration::from_millis(100);
/// The part of the time that the thread works: one in so many.
const SHARE: u32 = 2;
/// It rests after it has worked for so long.
const TURN: Duration = Duration::from_millis(5);

/// The handle of one database's maintenance; costs nothing until a segment of the log is full.
pub struct Maintainer {
    dir: PathBuf,
    options: Mutex<Options>,
    needs: Box<dyn Fn() -> Needs + Send + Sync>,
    report: Box<dyn Fn(&Error) + Send + Sync>,
    /// The segment that records went into when last looked; 0 before the first look.
    segment: AtomicU64,
    running: Mutex<Option<Running>>,
}

/// A started thread.
struct Running {
    pid: u32,
    /// Dropping it ends the thread.
    wakes: Sender<()>,
    ended: Receiver<()>,
    stop: Arc<Stop>,
    thread: JoinHandle<()>,
}

/// How the thread learns that its time is over.
#[derive(Default)]
struct Stop {
    asked: AtomicBool,
    /// Until when it may go on then.
    deadline: Mutex<Option<Instant>>,
}

impl Maintainer {
    /// A handle for the log in `dir`; starts nothing and touches no file. `needs` says what must not go, `report` hears of failures.
    pub fn new(
        dir: PathBuf,
        options: Options,
        needs: impl Fn() -> Needs + Send + Sync + 'static,
        report: impl Fn(&Error) + Send + Sync + 'static,
    ) -> Maintainer {
        Maintainer {
            dir,
            options: Mutex::new(options),
            needs: Box::new(needs),
            report: Box::new(report),
            segment: AtomicU64::new(0),
            running: Mutex::new(None),
        }
    }

    /// Keeps the log by these rules from now on.
    pub fn set(&self, options: Options) {
        *self.options.lock() = options;
    }

    /// Records go into the segment that begins with `first`: when that is another one than before, there is work. Returns at once.
    pub fn appended(self: &Arc<Self>, first: Txid) {
        let before = self.segment.swap(first.0, Ordering::Relaxed);
        if before != first.0 && before != 0 {
            self.wake();
        }
    }

    /// Starts the thread if there is none in this process, and has it look for work soon.
    pub fn wake(self: &Arc<Self>) {
        let Some(mut running) = self.running.try_lock_for(HANDLE_WAIT) else {
            return;
        };
        let stale = |r: &Running| r.pid != std::process::id() || r.thread.is_finished();
        if let Some(old) = running.take_if(|running| stale(running)) {
            old.abandon();
        }
        if running.is_none() {
            *running = self.start();
        }
        if let Some(running) = running.as_ref() {
            // Full means that it has not yet looked at an earlier one.
            let _ = running.wakes.try_send(());
        }
    }

    fn start(self: &Arc<Self>) -> Option<Running> {
        let (wakes, woken) = bounded(1);
        let (alive, ended) = bounded(0);
        let stop = Arc::new(Stop::default());
        let thread = std::thread::Builder::new()
            .name("mycelite-maintain".to_string())
            .spawn({
                let (work, stop) = (Arc::clone(self), Arc::clone(&stop));
                move || {
                    work.serve(&woken, &stop);
                    drop(alive);
                }
            });
        match thread {
            Ok(thread) => Some(Running {
                pid: std::process::id(),
                wakes,
                ended,
                stop,
                thread,
            }),
            Err(error) => {
                tracing::warn!(
                    "cannot start the maintenance thread: {error} (the log is sealed later)"
                );
                None
            }
        }
    }

    fn serve(&self, woken: &Receiver<()>, stop: &Arc<Stop>) {
        while !self.is_over(woken, stop) && woken.recv().is_ok() {
            let delayed = wait(stop, FIRST_DELAY, woken);
            if !delayed && backlog(&self.dir) < BACKLOG {
                return;
            }
            let options = *self.options.lock();
            match run(&self.dir, &options, &self.needs, &Turns::new(stop)) {
                Ok(done) if done.over.is_empty() => {
                    tracing::debug!("{}: {done:?}", self.dir.display());
                }
                Ok(done) => (self.report)(
                    &Error::new(ErrorKind::Busy, &done.over)
                        .at(self.dir.display())
                        .hint("raise log_bytes_max, or delete bookmarks; recording goes on"),
                ),
                Err(error) => (self.report)(&error),
            }
            if stop.asked.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    /// Whether nobody has asked for more, with which the thread is over: the next who asks starts another.
    fn is_over(&self, woken: &Receiver<()>, stop: &Arc<Stop>) -> bool {
        let mut running = self.running.lock();
        if !woken.is_empty() {
            return false;
        }
        // Who ends it may have taken it already.
        drop(running.take_if(|running| Arc::ptr_eq(&running.stop, stop)));
        true
    }

    /// Ends the thread. It may finish what it is at until `patience` is over; a step that is cut short begins anew next time.
    pub fn stop(&self, patience: Duration) {
        let Some(mut slot) = self.running.try_lock_for(HANDLE_WAIT) else {
            return;
        };
        let Some(running) = slot.take() else { return };
        drop(slot);
        if running.pid != std::process::id() {
            return running.abandon();
        }
        *running.stop.deadline.lock() = Some(Instant::now() + patience);
        running.stop.asked.store(true, Ordering::Relaxed);
        drop(running.wakes);
        // The thread looks after each block of its work.
        let _ = running.ended.recv_timeout(patience + HANDLE_WAIT);
        if running.thread.is_finished() {
            let _ = running.thread.join();
        }
    }
}

impl Running {
    /// In a forked child the thread is not there, and its channels may be frozen in any state.
    fn abandon(self) {
        if self.pid != std::process::id() {
            std::mem::forget(self);
        }
    }
}

/// Waits, unless the end is asked for meanwhile: then false.
fn wait(stop: &Stop, time: Duration, woken: &Receiver<()>) -> bool {
    let deadline = Instant::now() + time;
    loop {
        if stop.asked.load(Ordering::Relaxed) {
            return false;
        }
        match woken.recv_deadline(deadline) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}

/// Works a part of the time only, and not longer than it may.
struct Turns<'a> {
    stop: &'a Stop,
    began: Mutex<Instant>,
}

impl Turns<'_> {
    fn new(stop: &Stop) -> Turns<'_> {
        Turns {
            stop,
            began: Mutex::new(Instant::now()),
        }
    }
}

impl Pace for Turns<'_> {
    fn go_on(&self, _: u64) -> bool {
        if self.stop.asked.load(Ordering::Relaxed) {
            // At the close somebody waits: no rest.
            return self
                .stop
                .deadline
                .lock()
                .is_none_or(|deadline| Instant::now() < deadline);
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
