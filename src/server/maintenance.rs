//! The logs of the server's databases are sealed, compacted and shortened: one at a time, half of one thread's time.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mycelite_journal::{Pace, Pos};
use parking_lot::Mutex;

use super::State;
use super::database::Database;
use crate::config::Config;
use crate::error::Result;
use crate::maintain::{self, Done, Needs};
use crate::proto::DatabaseName;

/// How often it is looked which logs have grown.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// The first look comes sooner.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// How often a log that grows is looked at for what has become old.
const AGE_EVERY: Duration = Duration::from_secs(60 * 60);
/// How often one that does not grow is.
const IDLE_EVERY: Duration = Duration::from_secs(24 * 60 * 60);
/// It works for so long, and rests for as long.
const TURN: Duration = Duration::from_millis(5);

/// What is known of a log since its last round.
struct Seen {
    pos: Pos,
    at: Instant,
}

/// Looks after all logs until the server stops.
pub(super) async fn run(state: Arc<State>) {
    let mut stop = state.stop.subscribe();
    let ending = Arc::new(AtomicBool::new(false));
    let mut seen: HashMap<DatabaseName, Seen> = HashMap::new();
    let mut pause = FIRST_LOOK;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        pause = LOOK_EVERY;
        for database in state.registry.all() {
            if !is_due(&database, &mut seen) {
                continue;
            }
            let work = Arc::clone(&ending);
            let round = tokio::task::spawn_blocking(move || round(&database, &work));
            tokio::select! {
                _ = round => {}
                _ = stop.wait_for(|stop| *stop) => {
                    // It looks after each block.
                    ending.store(true, Ordering::Relaxed);
                    return;
                }
            }
        }
    }
}

/// Whether the log has grown by a segment, or was not looked at for long.
fn is_due(database: &Database, seen: &mut HashMap<DatabaseName, Seen>) -> bool {
    // One that nobody has asked for since the start grows old all the same.
    let pos = database.durable().map_or(Pos::ZERO, |durable| durable.pos);
    let last = seen.get(&database.name);
    if last.is_some_and(|last| last.pos == pos && last.at.elapsed() < IDLE_EVERY) {
        return false;
    }
    let aged = last.is_none_or(|last| last.at.elapsed() >= AGE_EVERY);
    if !aged && maintain::backlog(&database.log_dir) == 0 {
        return false;
    }
    let now = Seen {
        pos,
        at: Instant::now(),
    };
    seen.insert(database.name.clone(), now);
    true
}

fn round(database: &Database, ending: &AtomicBool) {
    match try_round(database.log_dir.clone(), database, ending) {
        Ok(done) if !done.over.is_empty() => {
            tracing::warn!("{}: {} (recording goes on)", database.name, done.over);
        }
        Ok(done) => tracing::debug!("{}: {done:?}", database.name),
        Err(error) => tracing::warn!("{}: maintenance of the log: {error}", database.name),
    }
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
