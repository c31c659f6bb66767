//! Memory of a process that writes for long: however often its logs are sealed, it stays what it was after the first times, and
//! one thread does that for all databases.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]
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
/// What the process may have more at the end. Caches of SQLite and of the log grow a little at first.
const GROWTH_KIB_MAX: i64 = 3 * 1024;
/// A round begins two seconds after a segment was full.
const PATIENCE: Duration = Duration::from_secs(60);

fn memory_kib() -> i64 {
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

#[test]
fn memory_stays_flat_over_many_rounds_of_sealing() {
    let dir = common::scratch();
    let argument = [("MEMORY_DIR", dir.path().to_str().unwrap())];
    let child = common::spawn_child("writer_of_many_segments", &argument);
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    println!("{told}");
    assert!(
        output.status.success() && told.contains("flat:"),
        "{told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The process of the test above.
#[test]
fn writer_of_many_segments() {
    let Some(dir) = common::child_argument("MEMORY_DIR") else {
        return;
    };
    let open = |number: usize| {
        let path = Path::new(&dir).join(format!("db{number}.db"));
        let db = common::open(&path, "&segment_bytes_max=2MiB&keep_all=30d");
        db.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;
             CREATE TABLE t(id INTEGER PRIMARY KEY, b);
             WITH RECURSIVE c(x) AS (VALUES(0) UNION ALL SELECT x+1 FROM c WHERE x<999)
             INSERT INTO t SELECT x, randomblob(500) FROM c;",
        )
        .unwrap();
        (path, db)
    };
    let dbs: Vec<(PathBuf, Connection)> = (0..DATABASES).map(open).collect();
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
    println!("flat: {warm} {end}");
}
