//! Inside one transaction: savepoints, spills, frames written again; and one transaction over several files.

use crate::bench::{Bench, MODES, ROLLBACK_MODES, fill, number};
use crate::common::{Oracle, log_dir, open};

#[test]
fn savepoints_that_spill() {
    for mode in ROLLBACK_MODES {
        let mut bench = Bench::with_table(&format!(
            "PRAGMA page_size=1024; PRAGMA cache_size=10; PRAGMA journal_mode={mode}"
        ));
        bench.run(&fill(300, 600), 1);
        bench.run("DELETE FROM t WHERE a%3=0", 1);
        let many = fill(200, 800);
        let nested = format!(
            "SAVEPOINT one; {many}; SAVEPOINT two; UPDATE t SET b=zeroblob(700); SAVEPOINT three; DELETE FROM t;
             ROLLBACK TO three; {many}; ROLLBACK TO two; UPDATE t SET b=randomblob(90) WHERE a%4=0;"
        );
        for _ in 0..2 {
            assert_eq!(
                bench.run_counting(&format!("{nested} RELEASE one")),
                1,
                "{mode}"
            );
            assert_eq!(
                bench.run_counting(&format!(
                    "BEGIN; {nested} ROLLBACK TO one; RELEASE one; COMMIT"
                )),
                1,
                "{mode}: pages were written, so a transaction was committed"
            );
            bench.run_rolled_back(&format!("BEGIN; {nested} ROLLBACK"));
            assert_eq!(
                bench.number(
                    "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check='ok'"
                ),
                1
            );
        }
    }
}

/// A statement that fails half-way takes back only itself; without a journal it cannot even do that.
#[test]
fn statements_that_fail() {
    for mode in MODES {
        let mut bench = Bench::with_table(&format!(
            "PRAGMA page_size=1024; PRAGMA cache_size=10; PRAGMA journal_mode={mode};
             CREATE TABLE u(x UNIQUE, y); INSERT INTO u VALUES(350, 0)"
        ));
        let failing = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<400)
             INSERT OR ABORT INTO u SELECT i, randomblob(400) FROM n";
        bench.execute(&fill(50, 500));
        bench.oracle.check("filled");
        for conflict in ["ABORT", "FAIL", "ROLLBACK"] {
            let sql = failing.replace("ABORT", conflict);
            assert!(bench.connection.execute_batch(&sql).is_err());
            bench.oracle.check(&format!("{mode}, {conflict}, alone"));
            if mode == "OFF" {
                continue;
            }
            bench.execute("BEGIN; UPDATE t SET b=randomblob(100) WHERE a%5=0");
            assert!(
                bench
                    .connection
                    .execute_batch(&sql.replace("350", "360"))
                    .is_err()
            );
            if bench.connection.is_autocommit() {
                bench
                    .oracle
                    .check(&format!("{mode}, {conflict}, rolled back"));
            } else {
                assert_eq!(bench.run_counting("COMMIT"), 1, "{mode}, {conflict}");
            }
        }
    }
}

/// SQLite overwrites the frame of a page that the same transaction has already written to the WAL.
#[test]
fn frames_are_written_again_in_one_wal_transaction() {
    let mut bench = Bench::with_table(
        "PRAGMA page_size=1024; PRAGMA cache_size=10; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0",
    );
    bench.run(&fill(200, 600), 1);
    for sync in ["OFF", "NORMAL", "FULL"] {
        bench.execute(&format!("PRAGMA synchronous={sync}"));
        let wal = || {
            std::fs::metadata(bench.dir().join("app.db-wal"))
                .unwrap()
                .len()
        };
        let (before, rounds) = (wal(), 12);
        let mut sql = "BEGIN;".to_owned();
        for round in 0..rounds {
            sql += &format!("UPDATE t SET b=randomblob(600) WHERE a%2={};", round % 2);
        }
        bench.execute(&(sql + "COMMIT"));
        // Far fewer frames than pages written: frames were reused.
        assert!(
            wal() - before < rounds * 100 * 1100,
            "{} bytes",
            wal() - before
        );
        assert_eq!(bench.oracle.check("written again and again"), 1);
        bench.run(
            "BEGIN; UPDATE t SET b=randomblob(600); UPDATE t SET b=randomblob(600); ROLLBACK",
            0,
        );
        bench.run("BEGIN; UPDATE t SET b=1; SAVEPOINT s; UPDATE t SET b=randomblob(600); UPDATE t SET b=randomblob(610); ROLLBACK TO s; COMMIT", 1);
        bench.run(&fill(200, 600), 1);
        bench.run("PRAGMA wal_checkpoint(TRUNCATE)", 0);
    }
    bench.nothing_was_compared();
}

/// Where the disk may tear what lies beside a write, SQLite fills the sector up with copies of the commit frame.
#[test]
fn a_padded_wal_commit_is_one_record() {
    for page_size in [512, 1024, 4096] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let pragmas = format!(
            "PRAGMA page_size={page_size}; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL"
        );
        let mut bench = Bench::open(dir, &path, "&psow=0", &pragmas);
        bench.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)", 1);
        for n in 0..30 {
            bench.run(
                &format!("INSERT INTO t(b) VALUES(randomblob({}))", n * 50),
                1,
            );
        }
        // A cursor in the middle of the padding would be none.
        bench.reopen("");
        bench.run("INSERT INTO t(b) VALUES('after')", 1);
        bench.nothing_was_compared();
    }
}

#[test]
fn one_transaction_over_three_files() {
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "WAL"] {
        let mut bench = Bench::with_table(&format!("PRAGMA journal_mode={mode}"));
        let (ours, theirs) = (bench.dir().join("ours.db"), bench.dir().join("theirs.db"));
        bench.execute(&format!(
            "ATTACH 'file:{}?vfs=mycelite_writer' AS ours; ATTACH 'file:{}?vfs=unix' AS theirs;
             PRAGMA ours.journal_mode={mode}; PRAGMA theirs.journal_mode={mode};
             CREATE TABLE ours.t(a INTEGER PRIMARY KEY, b); CREATE TABLE theirs.t(a INTEGER PRIMARY KEY, b)",
            ours.display(),
            theirs.display()
        ));
        let mut second = Oracle::new(&ours);
        second.check("attached");
        for n in 0..5 {
            let all =
                |schema: &str| format!("INSERT INTO {schema}.t(b) VALUES(hex(randomblob(2000)));");
            bench.run(
                &format!(
                    "BEGIN; {} {} {} COMMIT",
                    all("main"),
                    all("ours"),
                    all("theirs")
                ),
                1,
            );
            assert_eq!(second.check("over three files"), 1, "{mode}");
            bench.run(
                &format!("BEGIN; {} {} COMMIT", all("main"), all("theirs")),
                1,
            );
            bench.run(
                &format!("BEGIN; {} {} COMMIT", all("ours"), all("theirs")),
                0,
            );
            assert_eq!(second.check("over two"), 1, "{mode}");
            bench.run(
                &format!(
                    "BEGIN; {} {} {} ROLLBACK",
                    all("main"),
                    all("ours"),
                    all("theirs")
                ),
                0,
            );
            assert_eq!(second.check("rolled back"), 0, "{mode}");
            assert_eq!(
                number(&bench.connection, "SELECT count(*) FROM theirs.t"),
                3 * (n + 1)
            );
        }
        assert!(!log_dir(&theirs).exists());
        bench.execute("DETACH ours; DETACH theirs");
        bench.nothing_was_compared();
        assert!(second.records.iter().all(|record| record.flags == 0));
    }
}

/// Two connections through one cache.
#[test]
fn a_shared_cache() {
    for mode in ["DELETE", "WAL"] {
        let mut bench = Bench::with_table(&format!("PRAGMA journal_mode={mode}"));
        let first = open(&bench.path, "&cache=shared");
        let second = open(&bench.path, "&cache=shared");
        for _ in 0..5 {
            for connection in [&first, &second, &bench.connection] {
                connection
                    .execute_batch("INSERT INTO t(b) VALUES(hex(randomblob(500)))")
                    .unwrap();
            }
            assert_eq!(bench.oracle.check("in turn"), 3, "{mode}");
        }
        drop((first, second));
        bench.run("DELETE FROM t", 1);
        bench.nothing_was_compared();
    }
}

/// A commit that changes no byte is one all the same.
#[test]
fn commits_without_a_change() {
    for mode in MODES {
        let mut bench = Bench::with_table(&format!("PRAGMA journal_mode={mode}"));
        bench.run("INSERT INTO t(b) VALUES('same')", 1);
        bench.run("BEGIN IMMEDIATE; COMMIT", 0);
        bench.run("BEGIN EXCLUSIVE; SELECT count(*) FROM t; COMMIT", 0);
        for _ in 0..3 {
            bench.run(
                "BEGIN; UPDATE t SET b='other'; UPDATE t SET b='same'; COMMIT",
                1,
            );
        }
    }
}
