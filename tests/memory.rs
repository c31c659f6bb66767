//! Memory of a process that writes for long: however often its logs are sealed, it stays what it was after the first times, and
//! one thread does that for all databases.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)]
#![cfg(target_os = "linux")]

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::Connection;

/// Databases of the process.
const DATABASES: usize = 4;
/// Segments that are sealed of each before memory is looked at, and after.
const WARM: usize = 2;
const ROUNDS: usize = 5;
/// What the process may have more at the end. Caches of SQLite and of the log grow at first; what a round would leave is more in each.
const GROWTH_KIB_MAX: i64 = 8 * 1024;
/// A round begins two seconds after a segment was full.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the process keeps: the thread that has just sealed may still hold what it gives back in a moment.
fn memory_kib() -> i64 {
    let samples = (0..50).map(|_| {
        std::thread::sleep(Duration::from_millis(10));
        memory_now_kib()
    });
    samples.min().unwrap()
}

fn memory_now_kib() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon"));
    let word = line.unwrap().split_whitespace().nth(1).unwrap();
    word.parse().unwrap()
}

/// How many threads look after logs.
fn maintainers() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    // The kernel keeps fifteen letters.
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names
        .filter(|name| name.trim() == "mycelite-mainta")
        .count()
}

fn raw_segments(db: &Path) -> usize {
    let names = std::fs::read_dir(common::log_dir(db)).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".seg")).count()
}

/// Fills a segment of each log, and waits until all are sealed; the most threads that were seen at it.
fn round(dbs: &[(PathBuf, Connection)]) -> usize {
    for (path, db) in dbs {
        while raw_segments(path) < 2 {
            db.execute_batch("UPDATE t SET b = randomblob(500) WHERE id % 4 = abs(random() % 4)")
                .unwrap();
        }
    }
    let begin = Instant::now();
    let mut most = 0;
    while dbs.iter().any(|(path, _)| raw_segments(path) > 1) {
        assert!(begin.elapsed() < PATIENCE, "not sealed after {PATIENCE:?}");
        most = most.max(maintainers());
        std::thread::sleep(Duration::from_millis(5));
    }
    most
}

/// A database with short segments.
fn open(dir: &Path, number: usize) -> (PathBuf, Connection) {
    let path = dir.join(format!("db{number}.db"));
    let db = common::open(&path, "&segment_bytes_max=2MiB&keep_all=30d");
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;
         CREATE TABLE t(id INTEGER PRIMARY KEY, b);
         WITH RECURSIVE c(x) AS (VALUES(0) UNION ALL SELECT x+1 FROM c WHERE x<999)
         INSERT INTO t SELECT x, randomblob(500) FROM c;",
    )
    .unwrap();
    (path, db)
}

/// Runs the test function `entry` in a process of its own, which must say that it is done.
fn in_a_process(entry: &str) {
    let dir = common::scratch();
    let argument = [("MEMORY_DIR", dir.path().to_str().unwrap())];
    let child = common::spawn_child(entry, &argument);
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    println!("{told}");
    assert!(
        output.status.success() && told.contains("done:"),
        "{told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn memory_stays_flat_over_many_rounds_of_sealing() {
    in_a_process("writer_of_many_segments");
}

#[test]
fn a_forked_child_has_a_thread_of_its_own() {
    in_a_process("writer_that_forks");
}

/// The process of the first test.
#[test]
fn writer_of_many_segments() {
    let Some(dir) = common::child_argument("MEMORY_DIR") else {
        return;
    };
    let dir = Path::new(&dir);
    let dbs: Vec<(PathBuf, Connection)> = (0..DATABASES).map(|n| open(dir, n)).collect();
    let mut threads = (0..WARM).map(|_| round(&dbs)).max();
    let warm = memory_kib();
    let mut most = warm;
    for _ in 0..ROUNDS {
        threads = threads.max(Some(round(&dbs)));
        most = most.max(memory_kib());
    }
    let end = memory_kib();
    println!(
        "{warm} KiB after {WARM} rounds, at most {most} after one of the next {ROUNDS}, {end} at the end"
    );
    assert_eq!(threads, Some(1), "threads for maintenance at once");
    assert!(most - warm <= GROWTH_KIB_MAX, "{warm} KiB, then {most} KiB");
    drop(dbs);
    assert_eq!(maintainers(), 0, "a thread after the last close");
    println!("done: {warm} {end}");
}

/// The process of the second.
#[test]
fn writer_that_forks() {
    let Some(dir) = common::child_argument("MEMORY_DIR") else {
        return;
    };
    let dir = Path::new(&dir);
    let ours = [open(dir, 0)];
    assert_eq!(round(&ours), 1);
    // SAFETY: the child uses what it opens itself, and leaves without running anything of the parent's.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let theirs = [open(dir, 1)];
        let most = round(&theirs);
        drop(theirs);
        let code = i32::from(most != 1 || maintainers() != 0);
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(code) }
    }
    assert_eq!(round(&ours), 1, "the parent's");
    let mut status = 0;
    // SAFETY: waits for the child that was made above, and writes to a number that is there.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child's");
    drop(ours);
    assert_eq!(maintainers(), 0);
    println!("done:");
}
