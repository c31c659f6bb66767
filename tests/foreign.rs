//! P8: a process without the extension writes, checkpoints and restarts the WAL between our commits.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]

mod common;

use common::{Oracle, Random, open, open_plain};
use std::fs::File;
use std::os::unix::fs::FileExt;

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

/// What a foreigner has committed to the WAL is in the log, commit by commit, before a checkpoint of ours copies it.
#[test]
fn our_checkpoints_wait_for_the_log() {
    for kind in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let ours = open(&path, "");
        ours.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
            .unwrap();
        let mut oracle = Oracle::new(&path);
        oracle.check("before");
        let foreign = open_plain(&path);
        for _ in 0..3 {
            foreign.execute_batch(DEEDS[0]).unwrap();
        }
        ours.execute_batch(&format!("PRAGMA wal_checkpoint({kind})"))
            .unwrap();
        assert_eq!(oracle.check(kind), 3);
        ours.execute_batch("INSERT INTO t(b) VALUES('ours')")
            .unwrap();
        assert_eq!(oracle.check("and on"), 1);
        assert!(oracle.records.iter().all(|record| record.flags == 0));
    }
}

/// A writer died while it changed the wal-index. Whoever recovers that takes every commit for checkpointed, so it is in the log
/// before.
#[test]
fn a_recovered_wal_index_hides_no_commit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = open(&path, "");
    ours.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        .unwrap();
    let mut oracle = Oracle::new(&path);
    oracle.check("before");
    let foreign = open_plain(&path);
    for _ in 0..3 {
        foreign.execute_batch(DEEDS[0]).unwrap();
        foreign.execute_batch(DEEDS[0]).unwrap();
        let index = File::options()
            .write(true)
            .open(dir.path().join("app.db-shm"));
        let index = index.unwrap();
        index.write_all_at(&[0xff; 8], 8).unwrap();
        // Its close would drop SQLite's locks.
        std::mem::forget(index);
        ours.execute_batch("INSERT INTO t(b) VALUES('ours')")
            .unwrap();
        assert_eq!(oracle.check("recovered"), 3);
    }
    assert!(oracle.records.iter().all(|record| record.flags == 0));
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

const CLOSES: [(&str, &str); 6] = [
    ("DELETE", "SELECT 1"),
    ("TRUNCATE", "SELECT 1"),
    ("MEMORY", "SELECT 1"),
    ("WAL", "SELECT 1"),
    ("WAL", "PRAGMA wal_checkpoint(TRUNCATE)"),
    ("WAL", "PRAGMA locking_mode=EXCLUSIVE; SELECT * FROM t"),
];

/// A clean close vouches for the file, so that the next open need not read it all.
#[test]
fn a_clean_close_leaves_a_stamp() {
    for (mode, deed) in CLOSES {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let stamp = common::log_dir(&path).join("stamp");
        for round in 0..3 {
            let ours = open(&path, "");
            let sql =
                format!("PRAGMA journal_mode={mode}; CREATE TABLE IF NOT EXISTS t(a, b); {deed}");
            ours.execute_batch(&sql).unwrap();
            ours.execute_batch("INSERT INTO t VALUES(1, 2)").unwrap();
            drop(ours);
            assert!(stamp.exists(), "{mode}, {deed}, round {round}");
        }
        let mut oracle = Oracle::new(&path);
        oracle.check(mode);
        assert!(oracle.records.iter().all(|record| record.flags == 0));
    }
}

/// What is written past SQLite while we have the file open, so that no counter and no lock tells of it, is not vouched for
/// by our clean close.
#[test]
fn a_write_past_sqlite_is_noticed() {
    for (mode, deed) in CLOSES {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let ours = open(&path, "");
        ours.execute_batch(&format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE t(a, b); INSERT INTO t VALUES(1, 'a text'); {deed}"
        ))
        .unwrap();
        // Into the database file while nobody needs the page any more; in WAL mode the page is in the WAL as well.
        let past = File::options().write(true).open(&path).unwrap();
        let end = past.metadata().unwrap().len();
        past.write_all_at(b"a TEXT", end.saturating_sub(6)).unwrap();
        std::mem::forget(past);
        drop(ours);
        let ours = open(&path, "");
        ours.execute_batch("INSERT INTO t VALUES(2, 'more')")
            .unwrap();
        drop(ours);
        let mut oracle = Oracle::new(&path);
        oracle.check(&format!("{mode}, {deed}"));
        assert!(oracle.is_exact());
    }
}

#[test]
fn a_wal_that_is_overwritten_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let wal = dir.path().join("app.db-wal");
    let mut oracle = Oracle::new(&path);
    let ours = open(&path, "");
    ours.execute_batch(
        "PRAGMA journal_mode=WAL; CREATE TABLE t(a); CREATE TABLE u(a); PRAGMA wal_checkpoint(TRUNCATE);
         INSERT INTO t VALUES(1)",
    )
    .unwrap();
    oracle.check("before");
    let bytes = std::fs::metadata(&wal).unwrap().len();
    let file = File::options().write(true).open(&wal).unwrap();
    file.write_all_at(&vec![0; bytes as usize], 0).unwrap();
    drop(ours);
    // The checkpoint at the close has copied zeros over the table. Whoever follows the log sees that with the next commit.
    let ours = open(&path, "");
    ours.execute_batch("INSERT INTO u VALUES(1)").unwrap();
    oracle.check("after");
    drop(ours);
    oracle.finish();
}
