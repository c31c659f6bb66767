//! P8: a process without the extension writes, checkpoints and restarts the WAL between our commits.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]

mod common;

use common::{Oracle, Random, open, open_plain};

/// What a foreigner does between two of our commits.
const DEEDS: [&str; 9] = [
    "INSERT INTO t(b) VALUES(randomblob(3000))",
    "INSERT INTO t(b) VALUES(randomblob(3000)); PRAGMA wal_checkpoint(PASSIVE)",
    "UPDATE t SET b=randomblob(100); PRAGMA wal_checkpoint(FULL)",
    "UPDATE t SET b=randomblob(100) WHERE a%2; PRAGMA wal_checkpoint(RESTART)",
    "UPDATE t SET b=randomblob(200) WHERE a%3; PRAGMA wal_checkpoint(TRUNCATE)",
    "UPDATE t SET b=randomblob(90); PRAGMA wal_checkpoint(RESTART); INSERT INTO t(b) VALUES('x')",
    "DELETE FROM t WHERE a%2; PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO t(b) VALUES('y')",
    "PRAGMA wal_checkpoint(TRUNCATE)",
    "VACUUM",
];

#[test]
fn each_deed_alone() {
    for mode in ["WAL", "DELETE"] {
        for deed in DEEDS {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("app.db");
            let ours = open(&path, "");
            ours.execute_batch(&format!(
                "PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b);
                 INSERT INTO t(b) VALUES(1),(2),(3)"
            ))
            .unwrap();
            let mut oracle = Oracle::new(&path);
            oracle.check("before");
            let foreign = open_plain(&path);
            for _ in 0..3 {
                foreign.execute_batch(deed).unwrap();
                ours.execute_batch(
                    "UPDATE t SET b=zeroblob(50) WHERE a%5=1; INSERT INTO t(b) VALUES('ours')",
                )
                .unwrap();
                oracle.check(&format!("{mode}: {deed}"));
            }
        }
    }
}

#[test]
fn deeds_at_random() {
    for seed in 1..=20 {
        let mut random = Random(seed);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let ours = open(&path, "");
        let mode = if seed % 4 == 0 { "DELETE" } else { "WAL" };
        ours.execute_batch(&format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b);
             INSERT INTO t(b) VALUES(1),(2),(3)"
        ))
        .unwrap();
        let mut oracle = Oracle::new(&path);
        let foreign = open_plain(&path);
        for step in 0..25 {
            let deed = DEEDS[random.below(DEEDS.len() as u64) as usize];
            if random.below(2) == 0 {
                foreign.execute_batch(deed).unwrap();
            }
            if random.below(4) == 0 {
                ours.execute_batch("PRAGMA wal_checkpoint(RESTART)")
                    .unwrap();
            }
            ours.execute_batch("INSERT INTO t(b) VALUES(randomblob(500))")
                .unwrap();
            oracle.check(&format!("seed {seed}, step {step}, last deed {deed}"));
        }
    }
}

/// Our own checkpoints, restarts and mode switches are no foreigner's: nothing is compared.
#[test]
fn our_own_deeds_are_not_taken_for_a_foreigners() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let first = open(&path, "");
    first
        .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        .unwrap();
    let second = open(&path, "");
    let mut random = Random(3);
    for _ in 0..200 {
        let deed = DEEDS[random.below(8) as usize];
        if random.below(2) == 0 {
            &first
        } else {
            &second
        }
        .execute_batch(deed)
        .unwrap();
    }
    drop(second);
    first
        .execute_batch("PRAGMA journal_mode=DELETE; INSERT INTO t(b) VALUES(1); PRAGMA journal_mode=WAL; INSERT INTO t(b) VALUES(2)")
        .unwrap();
    let mut oracle = Oracle::new(&path);
    oracle.check("own deeds");
    assert!(oracle.records.iter().all(|record| record.flags == 0));
}
