//! Maintenance beside the application: the handle of one database's.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::lock::Mutex;
use crossbeam_channel::Receiver;
use mycelite_journal::Txid;

use super::thread::{Crew, Job, Work, crew};
use super::{Needs, Options};
use crate::error::Error;

/// The handle's own lock is only ever held for moments; a forked child may find it stuck, and then does without.
const HANDLE_WAIT: Duration = Duration::from_millis(100);

/// The handle of one database's maintenance; costs nothing until a segment of the log is full.
pub struct Maintainer {
    work: Arc<Work>,
    /// The segment that records went into when last looked; 0 before the first look.
    segment: AtomicU64,
    running: Mutex<Option<Running>>,
}

/// What is done for the database, seen from its handle.
struct Running {
    crew: &'static Crew,
    job: Arc<Job>,
    // Disconnected when nothing is done for it any more.
    ended: Receiver<()>,
}

impl Maintainer {
    /// A handle for the log in `dir`; starts nothing and touches no file. `needs` says what must not go, `report` hears of failures.
    pub fn new(
        dir: PathBuf,
        options: Options,
        needs: impl Fn() -> Needs + Send + Sync + 'static,
        report: impl Fn(&Error) + Send + Sync + 'static,
    ) -> Maintainer {
        let work = Work {
            dir,
            options: Mutex::new(options),
            needs: Box::new(needs),
            report: Box::new(report),
        };
        Maintainer {
            work: Arc::new(work),
            segment: AtomicU64::new(0),
            running: Mutex::new(None),
        }
    }

    /// Keeps the log by these rules from now on.
    pub fn set(&self, options: Options) {
        *self.work.options.lock() = options;
    }

    /// Records go into the segment that begins with `first`: when that is another one than before, there is work. Returns at once.
    pub fn appended(&self, first: Txid) {
        let before = self.segment.swap(first.0, Ordering::Relaxed);
        if before != first.0 && before != 0 {
            self.wake();
        }
    }

    /// Has the process's thread look for work soon; starts it if there is none.
    pub fn wake(&self) {
        let Some(mut slot) = self.running.try_lock_for(HANDLE_WAIT) else {
            return;
        };
        if let Some(old) = slot.take_if(|running| !running.crew.is_ours()) {
            old.forget();
        }
        let running = slot.get_or_insert_with(|| {
            let crew = crew();
            let (job, ended) = crew.add(&self.work);
            Running { crew, job, ended }
        });
        running.crew.wake(&running.job);
    }

    /// Ends what is done for this database, and the thread if no other needs it. What it is at, or much that waits, may go on
    /// until `patience` is over; a step that is cut short begins anew next time. A later [`Maintainer::wake`] begins anew.
    pub fn stop(&self, patience: Duration) {
        let Some(mut slot) = self.running.try_lock_for(HANDLE_WAIT) else {
            return;
        };
        let Some(running) = slot.take() else { return };
        drop(slot);
        if running.crew.is_ours() {
            running.crew.stop(&running.job, &running.ended, patience);
        } else {
            running.forget();
        }
    }
}

impl Drop for Maintainer {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

impl Running {
    /// In a forked child: the thread is not here, and its locks and channels may be frozen in any state.
    fn forget(self) {
        std::mem::forget(self);
    }
}
