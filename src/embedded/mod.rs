//! Embedded replicas: the process that reads a replica follows the server itself, so that no daemon is needed.
//!
//! One follower for each file, shared by all connections of the process: a thread that begins with the first read and ends with
//! the last close. Where another process follows into the same file already, this one waits for its turn, and reads meanwhile.

mod host_log;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::lock::Mutex;
use crossbeam_channel::Receiver;
use tokio::sync::watch;
use tracing::{Dispatch, dispatcher};

use crate::database::log_dir;
use crate::error::{Error, ErrorKind, Result};
use crate::promote;
use crate::reader::{Feed, Origin};
use crate::server::{self, Endurance, FollowOptions, Follower, FollowerHandle, Limits};
use crate::status::FollowStatus;
use host_log::HostLog;

/// Pause between two attempts to become the one that follows.
const LOOK: Duration = Duration::from_millis(500);
/// How long what is under way at the last close may take, each part of it.
const GRACE: Duration = Duration::from_secs(2);
/// Longest wait of the last close for all of it.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// The handle's own lock is only ever held for moments; a forked child may find it stuck, and then does without.
const HANDLE_WAIT: Duration = Duration::from_millis(100);

/// An embedded replica, as all connections of this process that read it share it.
struct Embedded {
    origin: Origin,
    options: FollowOptions,
    /// After `fork`, the parent's follower is in the child's memory too, and none of the child's business.
    pid: u32,
    report: fn(&str),
    running: Mutex<Option<Running>>,
}

/// A started thread, seen from its handle.
struct Running {
    look: Arc<Mutex<Look>>,
    // Dropping it ends the thread.
    stop: watch::Sender<bool>,
    // Disconnected when the thread has ended.
    ended: Receiver<()>,
    thread: JoinHandle<()>,
}

/// How it goes.
enum Look {
    /// Nothing is known yet.
    Starting,
    /// This process follows.
    Following(FollowerHandle),
    /// It does not, for this reason; tried again soon.
    Waiting(Error),
}

type Registry = Mutex<HashMap<PathBuf, Weak<Embedded>>>;

static REGISTRY: OnceLock<Registry> = OnceLock::new();

/// What feeds the replica at `path` from `origin`, shared with the connections of this process that have it open. Starts
/// nothing. `report` takes lines for the host's log.
///
/// # Errors
/// `Usage` where others follow something else into that file; `Diverged` where applications write to it.
pub fn join(path: &Path, origin: &Origin, report: fn(&str)) -> Result<Arc<dyn Feed>> {
    if promote::is_primary(path) {
        return Err(Error::new(ErrorKind::Diverged, "applications write to this database, so it follows nobody")
            .at(path.display())
            .hint("leave source away; or if another has taken over as the primary: mycelite follow --rejoin"));
    }
    let mut open = REGISTRY.get_or_init(Registry::default).lock();
    let pid = std::process::id();
    if open
        .values()
        .filter_map(Weak::upgrade)
        .any(|known| known.pid != pid)
    {
        open.clear();
        server::forget_after_fork();
    }
    if let Some(known) = open.get(path).and_then(Weak::upgrade) {
        if known.origin.url == origin.url {
            return Ok(known);
        }
        return Err(Error::new(
            ErrorKind::Usage,
            format_args!(
                "source={} contradicts source={}, with which another connection has this replica open",
                origin.url, known.origin.url
            ),
        )
        .at(path.display())
        .hint("close that connection, or open another file"));
    }
    let embedded = Arc::new(Embedded {
        origin: origin.clone(),
        options: options(path, origin),
        pid,
        report,
        running: Mutex::new(None),
    });
    open.retain(|_, embedded| embedded.strong_count() > 0);
    open.insert(path.to_path_buf(), Arc::downgrade(&embedded));
    Ok(embedded)
}

fn options(path: &Path, origin: &Origin) -> FollowOptions {
    FollowOptions {
        url: origin.url.clone(),
        access: origin.access.clone(),
        db: path.to_path_buf(),
        log_dir: log_dir(path),
        claim: true,
        listen: None,
        token_file: None,
        tls: None,
        endurance: Endurance::Always,
        limits: Limits {
            shutdown_grace: GRACE,
            // One database.
            appliers_max: 1,
            ..Limits::default()
        },
    }
}

impl Feed for Embedded {
    fn start(&self) {
        if self.pid != std::process::id() {
            return;
        }
        let Some(mut slot) = self.running.try_lock_for(HANDLE_WAIT) else {
            return;
        };
        if slot
            .as_ref()
            .is_none_or(|running| running.thread.is_finished())
        {
            *slot = self.spawn();
        }
    }

    fn status(&self) -> FollowStatus {
        let told = |state: &str, error: String| FollowStatus {
            url: self.origin.url.to_string(),
            state: state.to_owned(),
            last_error: error,
            ..FollowStatus::default()
        };
        if self.pid != std::process::id() {
            return told(
                "elsewhere",
                "the process that this one was forked from follows".to_owned(),
            );
        }
        let look = self
            .running
            .lock()
            .as_ref()
            .map(|running| Arc::clone(&running.look));
        let Some(look) = look else {
            return told("connecting", String::new());
        };
        let look = look.lock();
        match &*look {
            Look::Starting => told("connecting", String::new()),
            Look::Following(handle) => handle.status(),
            Look::Waiting(error) if error.kind() == ErrorKind::Busy => {
                told("elsewhere", error.to_string())
            }
            Look::Waiting(error) if error.kind() == ErrorKind::Diverged => {
                told("diverged", error.to_string())
            }
            Look::Waiting(error) => told("refused", error.to_string()),
        }
    }
}

impl Embedded {
    fn spawn(&self) -> Option<Running> {
        let look = Arc::new(Mutex::new(Look::Starting));
        let (stop, stopped) = watch::channel(false);
        let (alive, ended) = crossbeam_channel::bounded(0);
        let options = self.options.clone();
        let (shared, report) = (Arc::clone(&look), self.report);
        let thread = std::thread::Builder::new()
            .name("mycelite-follow".to_owned())
            .spawn(move || {
                if let Err(error) = run(&options, &shared, stopped, report) {
                    *shared.lock() = Look::Waiting(error);
                }
                drop(alive);
            });
        match thread {
            Ok(thread) => Some(Running {
                look,
                stop,
                ended,
                thread,
            }),
            Err(error) => {
                report(&format!(
                    "mycelite: {}: cannot start the following thread: {error} (the next read tries again)",
                    self.options.db.display()
                ));
                None
            }
        }
    }
}

impl Drop for Embedded {
    /// The last connection of this process is gone.
    fn drop(&mut self) {
        let Some(running) = self.running.get_mut().take() else {
            return;
        };
        if self.pid != std::process::id() {
            // In a forked child the thread is not here, and its locks may be frozen in any state: nothing of it is touched.
            return std::mem::forget(running);
        }
        running.stop.send_replace(true);
        // Nothing is ever sent; the channel closes when the thread's last act drops its end.
        let _ = running.ended.recv_timeout(CLOSE_MAX);
        if matches!(
            running.ended.try_recv(),
            Err(crossbeam_channel::TryRecvError::Disconnected)
        ) {
            // Past its last act, so this cannot take long.
            let _ = running.thread.join();
        }
    }
}

/// The thread's life: follows, or waits for its turn, until it is asked to stop.
fn run(
    options: &FollowOptions,
    look: &Mutex<Look>,
    stopped: watch::Receiver<bool>,
    report: fn(&str),
) -> Result<()> {
    // All that is started here leaves signals to the host's own threads, too.
    crate::signals::block()?;
    let log = Dispatch::new(HostLog {
        db: options.db.display().to_string(),
        report,
    });
    let of_workers = log.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("mycelite-io")
        // It holds as long as the thread lives.
        .on_thread_start(move || std::mem::forget(dispatcher::set_default(&of_workers)))
        .enable_all()
        .build()
        .map_err(|source| Error::new(ErrorKind::Io, source).at("starting the threads"))?;
    dispatcher::with_default(&log, || {
        runtime.block_on(keep_following(options, look, stopped));
    });
    runtime.shutdown_timeout(GRACE);
    Ok(())
}

async fn keep_following(
    options: &FollowOptions,
    look: &Mutex<Look>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut told = String::new();
    loop {
        let failed = match Follower::open(options.clone()).await {
            Err(error) => Some(error),
            Ok(follower) => {
                *look.lock() = Look::Following(follower.handle());
                let mut stop = stopped.clone();
                let shutdown = async move {
                    // An error means that the handle has gone.
                    let _ = stop.wait_for(|stop| *stop).await;
                };
                follower.run(shutdown).await.err()
            }
        };
        if let Some(error) = failed {
            let line = error.to_string();
            // Waiting for one's turn is no trouble.
            if error.kind() != ErrorKind::Busy && line != told {
                tracing::error!("{line}");
                told = line;
            }
            *look.lock() = Look::Waiting(error);
        }
        tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}
