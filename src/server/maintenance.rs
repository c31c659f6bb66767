//! The logs of the server's databases are sealed, compacted and shortened: one at a time, half of one thread's time.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::lock::Mutex;
use crossbeam_channel::Sender;
use mycelite_journal::{Pace, Pos};
use tokio::sync::oneshot;

use super::State;
use super::database::Database;
use crate::config::Config;
use crate::error::Result;
use crate::maintain::{self, Done, Needs};
use crate::proto::DatabaseName;

/// How often a log that grows is looked at for what has become old.
const AGE_EVERY: Duration = Duration::from_secs(60 * 60);
/// It works for so long, and rests for as long.
const TURN: Duration = Duration::from_millis(5);

/// What is known of a log since its last round.
struct Seen {
    pos: Pos,
    at: Instant,
}

/// A log to be looked after; what hears whether somebody else was at it, so that there may be more to do.
type Job = (Arc<Database>, oneshot::Sender<bool>);

/// Looks after all logs until the server stops. Where none grows it waits without a timer.
pub(super) async fn run(state: Arc<State>) {
    let mut stop = state.stop.subscribe();
    let ending = Arc::new(AtomicBool::new(false));
    let mut seen: HashMap<DatabaseName, Seen> = HashMap::new();
    let mut worker = None;
    loop {
        let aged = next_age(&state, &seen);
        tokio::select! {
            () = state.registry.growth().notified() => {}
            () = until(aged) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        tokio::select! {
            () = tokio::time::sleep(state.limits.look_every) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        for database in state.registry.all() {
            if !is_due(&database, &mut seen) {
                continue;
            }
            let name = database.name.clone();
            let Some(mut done) = hand_over(&mut worker, &ending, database) else {
                continue;
            };
            let busy = tokio::select! {
                busy = &mut done => Some(busy.unwrap_or(false)),
                _ = stop.wait_for(|stop| *stop) => None,
            };
            match busy {
                None => {
                    // It looks after each block; how long that is waited for, the caller says.
                    ending.store(true, Ordering::Relaxed);
                    let _ = done.await;
                    return;
                }
                Some(true) => {
                    // Again at the next look, although it may not grow until then.
                    seen.remove(&name);
                    state.registry.growth().notify_one();
                }
                Some(false) => {}
            }
        }
    }
}

/// Has the thread work, which is started for the first log: always the same one, since a thread that worked keeps memory.
fn hand_over(
    worker: &mut Option<Sender<Job>>,
    ending: &Arc<AtomicBool>,
    database: Arc<Database>,
) -> Option<oneshot::Receiver<bool>> {
    if worker.is_none() {
        let (jobs, given) = crossbeam_channel::bounded::<Job>(1);
        let ending = Arc::clone(ending);
        let work = move || {
            for (database, done) in given {
                let busy = catch_unwind(AssertUnwindSafe(|| round(&database, &ending)));
                if busy.is_err() {
                    tracing::error!("{}: maintenance of the log panicked", database.name);
                }
                // Nobody hears it when the server ends.
                let _ = done.send(busy.unwrap_or(false));
            }
        };
        let thread = std::thread::Builder::new().name("mycelite-maintain".to_owned());
        match thread.spawn(work) {
            Ok(_) => *worker = Some(jobs),
            Err(e) => tracing::warn!("cannot start maintenance: {e} (logs are sealed later)"),
        }
    }
    let (done, finished) = oneshot::channel();
    worker.as_ref()?.try_send((database, done)).ok()?;
    Some(finished)
}

/// When the first log that has grown a little becomes due by its age.
fn next_age(state: &State, seen: &HashMap<DatabaseName, Seen>) -> Option<Instant> {
    let databases = state.registry.all();
    let grown = databases.iter().filter_map(|database| {
        let (durable, last) = (database.durable()?, seen.get(&database.name)?);
        (durable.pos != last.pos).then_some(last.at + AGE_EVERY)
    });
    grown.min()
}

/// Waits for that, or for ever.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// Whether the log has grown by a segment, or has grown and was not looked at for long.
fn is_due(database: &Database, seen: &mut HashMap<DatabaseName, Seen>) -> bool {
    let Some(durable) = database.durable() else {
        return false;
    };
    let last = seen.get(&database.name);
    if last.is_some_and(|last| last.pos == durable.pos) {
        return false;
    }
    let aged = last.is_none_or(|last| last.at.elapsed() >= AGE_EVERY);
    if !aged && maintain::backlog(&database.log_dir) == 0 {
        return false;
    }
    let now = Seen {
        pos: durable.pos,
        at: Instant::now(),
    };
    seen.insert(database.name.clone(), now);
    true
}

/// One round; whether somebody else was at that log, which ended it.
fn round(database: &Database, ending: &AtomicBool) -> bool {
    let ended = try_round(database.log_dir.clone(), database, ending);
    match &ended {
        Ok(done) if !done.over.is_empty() => {
            tracing::warn!("{}: {} (recording goes on)", database.name, done.over);
        }
        Ok(done) => tracing::debug!("{}: {done:?}", database.name),
        Err(error) => tracing::warn!("{}: maintenance of the log: {error}", database.name),
    }
    ended.is_ok_and(|done| done.busy)
}

fn try_round(dir: PathBuf, database: &Database, ending: &AtomicBool) -> Result<Done> {
    let config = Config::for_database(&database.db_path, &[])?;
    let turns = Turns {
        ending,
        began: Mutex::new(Instant::now()),
    };
    maintain::run(&dir, &config.keep, &Needs::default, &turns)
}

/// Works half of the time, until the server ends.
struct Turns<'a> {
    ending: &'a AtomicBool,
    began: Mutex<Instant>,
}

impl Pace for Turns<'_> {
    fn go_on(&self, _: u64) -> bool {
        let mut began = self.began.lock();
        let worked = began.elapsed();
        if worked >= TURN {
            std::thread::sleep(worked);
            *began = Instant::now();
        }
        !self.ending.load(Ordering::Relaxed)
    }
}
