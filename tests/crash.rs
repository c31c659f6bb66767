//! P2 and P4: writers killed at any instant, alone and beside others; the log follows what SQLite recovers.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]

mod common;

use common::{Oracle, Random, child_argument, open, spawn_child};
use mycelite_journal::FLAG_REBASE;
use rusqlite::Connection;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Child;
use std::time::Duration;

/// Writes for ever, and says after each commit how many there were.
#[test]
fn child_writes_until_killed() {
    let Some(path) = child_argument("CHILD_DB") else {
        return;
    };
    let seed: u64 = child_argument("CHILD_SEED").unwrap().parse().unwrap();
    let connection = open(Path::new(&path), "");
    connection.execute_batch("PRAGMA cache_size=10").unwrap();
    let mut random = Random(seed);
    for commits in 1.. {
        let rows = 1 + random.below(40);
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        for _ in 0..rows {
            connection
                .execute(
                    "INSERT INTO t(b) VALUES(randomblob(?1))",
                    [random.below(3000) as i64],
                )
                .unwrap();
        }
        if random.below(4) == 0 {
            connection
                .execute("DELETE FROM t WHERE a%7=?1", [random.below(7) as i64])
                .unwrap();
        }
        if random.below(8) == 0 {
            connection.execute_batch("ROLLBACK").unwrap();
            println!("rolled-back");
            continue;
        }
        connection.execute_batch("COMMIT").unwrap();
        println!("committed {commits}");
        let database = mycelite::database::find(&path).unwrap();
        if let Some(reason) = database.shared().health().degraded {
            println!("degraded: {reason}");
        }
    }
}

fn start(path: &Path, seed: u64) -> Child {
    spawn_child(
        "child_writes_until_killed",
        &[
            ("CHILD_DB", path.to_str().unwrap()),
            ("CHILD_SEED", &seed.to_string()),
        ],
    )
}

/// Kills after `delay`, and counts the commits that the child was told of.
fn kill(mut child: Child, delay: Duration) -> usize {
    std::thread::sleep(delay);
    child.kill().unwrap();
    child.wait().unwrap();
    BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .inspect(|line| assert!(!line.starts_with("degraded"), "{line}"))
        .filter(|line| line.contains("committed "))
        .count()
}

fn prepare(path: &Path, mode: &str) -> Connection {
    let connection = open(path, "");
    connection
        .execute_batch(&format!(
            "PRAGMA page_size=1024; PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)"
        ))
        .unwrap();
    connection
}

const MODES: [&str; 4] = ["DELETE", "TRUNCATE", "PERSIST", "WAL"];

#[test]
fn one_writer_killed_again_and_again() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        drop(prepare(&path, mode));
        let mut oracle = Oracle::new(&path);
        oracle.check("prepared");
        let mut random = Random(0x5eed + mode.len() as u64);
        for round in 0..12 {
            let delay = Duration::from_millis(20 + random.below(120));
            let committed = kill(start(&path, random.next()), delay);
            let connection = open(&path, "");
            connection
                .execute_batch("INSERT INTO t(b) VALUES('recovered')")
                .unwrap();
            let new = oracle.check(&format!("{mode}, round {round}"));
            let records = transactions(&oracle, new);
            // The commit that was under way may have been made; one that was reported must be there.
            assert!(
                (committed + 1..=committed + 2).contains(&records),
                "{mode}, round {round}: {committed} commits reported, {records} records"
            );
        }
    }
}

#[test]
fn several_writers_and_one_is_killed() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let witness = prepare(&path, mode);
        let mut oracle = Oracle::new(&path);
        let mut expected = oracle.check("prepared");
        let mut uncertain = 0;
        let mut random = Random(0xfeed + mode.len() as u64);
        for _ in 0..5 {
            let first = start(&path, random.next());
            let second = start(&path, random.next());
            expected += kill(first, Duration::from_millis(150));
            expected += kill(second, Duration::from_millis(100));
            uncertain += 2;
            witness
                .execute_batch("INSERT INTO t(b) VALUES('witness')")
                .unwrap();
            expected += 1;
            oracle.check(mode);
        }
        let records = transactions(&oracle, oracle.records.len());
        assert!(
            (expected..=expected + uncertain).contains(&records),
            "{mode}: {expected} commits reported, {records} records"
        );
    }
}

/// How many of the newest `among` records hold a transaction. What a rollback left in free pages is recorded too.
fn transactions(oracle: &Oracle, among: usize) -> usize {
    let newest = oracle.records.iter().rev().take(among);
    newest
        .filter(|record| record.flags & FLAG_REBASE == 0)
        .count()
}
