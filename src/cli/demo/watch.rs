//! Plain SQLite readers on the replicas: what an application without us sees, and when.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::image;

/// Pause between two looks; the resolution of the lag.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// When each commit of the load returned, in order.
#[derive(Default)]
pub struct Commits(Mutex<Vec<Instant>>);

impl Commits {
    /// Another commit returned just now.
    pub fn done(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Instant::now());
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    /// How long ago, at `now`, the commits `from..to` (counted from 0) returned.
    fn ages(&self, from: u64, to: u64, now: Instant) -> Vec<Duration> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let range = all
            .get(from as usize..(to as usize).min(all.len()))
            .unwrap_or_default();
        range
            .iter()
            .map(|done| now.saturating_duration_since(*done))
            .collect()
    }
}

/// A reader of one replica's file, in a thread of its own.
pub struct Watcher {
    db: PathBuf,
    /// Commits that the replica shows.
    seen: AtomicU64,
    reads: AtomicU64,
    stop: AtomicBool,
    found: Mutex<Found>,
}

/// What a watcher noticed.
#[derive(Clone, Default)]
pub struct Found {
    /// From the commit's return to its first sight, for each commit.
    pub lags: Vec<Duration>,
    /// Anything that a reader must never see.
    pub faults: Vec<String>,
}

impl Watcher {
    /// A reader of the file `db`, which need not exist yet.
    pub fn new(db: PathBuf) -> Watcher {
        Watcher {
            db,
            seen: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            found: Mutex::default(),
        }
    }

    /// Commits that the replica shows.
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// How often it was read.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// What was noticed so far.
    pub fn found(&self) -> Found {
        self.found
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Makes [`Watcher::run`] return.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Reads the replica again and again until [`Watcher::stop`].
    pub fn run(&self, commits: &Commits) {
        let mut connection = None;
        while !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK_EVERY);
            if connection.is_none() && has_content(&self.db) {
                connection = self.note(image::open(&self.db).map_err(|error| error.to_string()));
            }
            let Some(open) = &connection else {
                continue;
            };
            match look(open) {
                Ok(None) => {}
                Ok(Some(row)) => self.saw(row, commits),
                Err(error) => {
                    self.note::<()>(Err(format!("reading {}: {error}", self.db.display())));
                }
            }
        }
    }

    fn saw(&self, row: Row, commits: &Commits) {
        let now = Instant::now();
        self.reads.fetch_add(1, Ordering::Relaxed);
        if row.packages != row.newest {
            self.note::<()>(Err(format!(
                "a half-done commit was visible: {} packages announced, {} there",
                row.packages, row.newest
            )));
        }
        let before = self.seen();
        if row.commits < before {
            self.note::<()>(Err(format!(
                "the replica went back from commit {before} to {}",
                row.commits
            )));
        }
        if row.commits > before {
            // A commit may be visible before the writer's call has returned: its age is then counted as nothing.
            let known = commits.count().min(row.commits);
            let ages = commits.ages(before, known, now);
            let early = row.commits - before - ages.len() as u64;
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            found.lags.extend(ages);
            found.lags.extend((0..early).map(|_| Duration::ZERO));
            drop(found);
            self.seen.store(row.commits, Ordering::Relaxed);
        }
    }

    fn note<T>(&self, result: Result<T, String>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(fault) => {
                let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
                // One kind of fault repeats with every look: the first few tell it all.
                if found.faults.len() < 5 {
                    found.faults.push(fault);
                }
                None
            }
        }
    }
}

struct Row {
    commits: u64,
    packages: u64,
    newest: u64,
}

/// What the replica shows now; `None` before the schema is there.
fn look(connection: &Connection) -> rusqlite::Result<Option<Row>> {
    let ready = "SELECT count(*) FROM sqlite_schema WHERE name = 'progress'";
    if connection
        .prepare_cached(ready)?
        .query_row([], |row| row.get::<_, i64>(0))?
        == 0
    {
        return Ok(None);
    }
    let sql = "SELECT commits, packages, (SELECT coalesce(max(id), 0) FROM package) FROM progress";
    let mut statement = connection.prepare_cached(sql)?;
    statement
        .query_row([], |row| {
            Ok(Row {
                commits: row.get::<_, i64>(0)?.unsigned_abs(),
                packages: row.get::<_, i64>(1)?.unsigned_abs(),
                newest: row.get::<_, i64>(2)?.unsigned_abs(),
            })
        })
        .map(Some)
}

fn has_content(db: &Path) -> bool {
    db.metadata().is_ok_and(|meta| meta.len() > 0)
}
