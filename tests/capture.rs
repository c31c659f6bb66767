//! P1 and P2: after each commit, the log applied is the image, and each commit is one record.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]

mod common;

use common::{Oracle, Random, image_of, open, open_plain, scratch};
use mycelite_journal::FLAG_REBASE;
use rusqlite::Connection;
use std::path::PathBuf;

struct Bench {
    _dir: tempfile::TempDir,
    path: PathBuf,
    connection: Connection,
    oracle: Oracle,
}

impl Bench {
    fn new(pragmas: &str) -> Bench {
        Bench::at(tempfile::tempdir().unwrap(), pragmas)
    }

    fn at(dir: tempfile::TempDir, pragmas: &str) -> Bench {
        let path = dir.path().join("app.db");
        let connection = open(&path, "");
        connection.execute_batch(pragmas).unwrap();
        let oracle = Oracle::new(&path);
        let mut bench = Bench {
            _dir: dir,
            path,
            connection,
            oracle,
        };
        bench.oracle.advance();
        bench
    }

    /// Runs `sql`, which commits `commits` times, and compares.
    #[track_caller]
    fn run(&mut self, sql: &str, commits: usize) {
        self.connection
            .execute_batch(sql)
            .unwrap_or_else(|e| panic!("{sql}: {e}"));
        let records = self.oracle.check(sql);
        assert_eq!(records, commits, "records of: {sql}");
    }
}

impl Bench {
    /// Runs `sql` and rolls it back; only what that leaves in free pages is recorded, as a difference.
    #[track_caller]
    fn roll_back(&mut self, sql: &str) {
        let transaction = format!("BEGIN; {sql}; ROLLBACK");
        self.connection.execute_batch(&transaction).unwrap();
        let locking: String = self
            .connection
            .query_row("PRAGMA locking_mode", [], |row| row.get(0))
            .unwrap();
        if locking == "exclusive" {
            // The write lock is held on, and what is in free pages goes into the next record.
            return;
        }
        let records = self.oracle.check(sql);
        assert!(records <= 1, "{records} records of a rollback: {sql}");
        let last = self.oracle.records.last().filter(|_| records > 0);
        assert!(
            last.is_none_or(|last| last.flags == FLAG_REBASE),
            "{last:?}"
        );
    }
}

const MODES: [&str; 6] = [
    "PRAGMA journal_mode=DELETE",
    "PRAGMA journal_mode=TRUNCATE",
    "PRAGMA journal_mode=PERSIST",
    "PRAGMA journal_mode=MEMORY",
    "PRAGMA journal_mode=OFF",
    "PRAGMA journal_mode=WAL",
];

#[test]
fn every_commit_is_one_record_in_every_journal_mode() {
    for mode in MODES {
        for sync in ["OFF", "NORMAL", "FULL", "EXTRA"] {
            let mut bench = Bench::new(&format!("{mode}; PRAGMA synchronous={sync}"));
            bench.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c BLOB)", 1);
            bench.run("CREATE INDEX i ON t(b)", 1);
            for n in 0..20 {
                bench.run(
                    &format!(
                        "INSERT INTO t VALUES({n}, 'row {n}', randomblob({}))",
                        n * 300
                    ),
                    1,
                );
            }
            bench.run(
                "BEGIN; UPDATE t SET b=b||'!'; DELETE FROM t WHERE a%3=0; COMMIT",
                1,
            );
            bench.run("SELECT count(*) FROM t", 0);
            bench.run("BEGIN; SELECT count(*) FROM t; COMMIT", 0);
            if !mode.ends_with("OFF") {
                bench.run("BEGIN; UPDATE t SET c=NULL; ROLLBACK", 0);
                bench.run("SAVEPOINT s; DELETE FROM t; ROLLBACK TO s; INSERT INTO t(b) VALUES('x'); RELEASE s", 1);
            }
            bench.run("DROP TABLE t", 1);
        }
    }
}

#[test]
fn transactions_larger_than_the_cache() {
    for mode in MODES {
        let mut bench = Bench::new(&format!(
            "PRAGMA page_size=1024; {mode}; PRAGMA cache_size=20"
        ));
        bench.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)", 1);
        let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<2000)
                    INSERT INTO t(b) SELECT randomblob(500) FROM n";
        bench.run(fill, 1);
        if !mode.ends_with("OFF") {
            bench.run(
                &format!("BEGIN; {fill}; UPDATE t SET b=zeroblob(500); ROLLBACK"),
                0,
            );
            bench.run(&format!("BEGIN; {fill}; ROLLBACK; "), 0);
        }
        bench.run("UPDATE t SET b=randomblob(400) WHERE a%2", 1);
        bench.run("DELETE FROM t WHERE a%2", 1);
        bench.run("VACUUM", 1);
        bench.run(fill, 1);
        bench.run("DELETE FROM t", 1);
        bench.run("VACUUM", 1);
        bench.run(fill, 1);
    }
}

/// Long transactions, rolled back as a whole and in part, over pages that were free before.
#[test]
fn transactions_that_change_much_of_what_is_there() {
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<1800)
                INSERT INTO t(b) SELECT randomblob(900) FROM n";
    for mode in &MODES[..4] {
        for sync in ["OFF", "FULL"] {
            for locking in ["NORMAL", "EXCLUSIVE"] {
                eprintln!("{mode}, {sync}, {locking}");
                let mut bench = Bench::at(scratch(), &format!(
                    "PRAGMA page_size=1024; PRAGMA locking_mode={locking}; {mode}; PRAGMA synchronous={sync};
                     PRAGMA cache_size=20; CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB); CREATE INDEX i ON t(b); {fill}"
                ));
                bench.run("UPDATE t SET b=randomblob(800) WHERE a%2", 1);
                // Rolled back as a whole and in part, with changes after that.
                bench.roll_back("UPDATE t SET b=randomblob(700); DELETE FROM t WHERE a>300");
                bench.run("UPDATE t SET b=randomblob(600) WHERE a%3", 1);
                bench.run(
                    "BEGIN; UPDATE t SET b=randomblob(500); SAVEPOINT s; DELETE FROM t; ROLLBACK TO s;
                     INSERT INTO t(b) VALUES('x'); RELEASE s; COMMIT",
                    1,
                );
                bench.run("DELETE FROM t WHERE a%2", 1);
                // Pages that were free.
                bench.run(fill, 1);
                bench.roll_back("DELETE FROM t WHERE a%5");
                bench.run("DELETE FROM t WHERE a%5; VACUUM", 2);
                bench.run("UPDATE t SET b=b||'x'", 1);
                assert!(bench.oracle.is_exact());
            }
        }
    }
}

#[test]
fn shrinking_and_growing_with_auto_vacuum() {
    for mode in MODES {
        for auto in ["FULL", "INCREMENTAL"] {
            let mut bench = Bench::new(&format!(
                "PRAGMA page_size=512; PRAGMA auto_vacuum={auto}; {mode}"
            ));
            bench.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)", 1);
            for _ in 0..3 {
                bench.run(
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<300)
                     INSERT INTO t(b) SELECT randomblob(700) FROM n",
                    1,
                );
                bench.run("DELETE FROM t WHERE a%5", 1);
                bench
                    .connection
                    .execute_batch("PRAGMA incremental_vacuum(50)")
                    .unwrap();
                bench.oracle.check("incremental_vacuum");
            }
        }
    }
}

#[test]
fn page_size_changes_by_vacuum() {
    let mut bench = Bench::new("PRAGMA page_size=4096; PRAGMA journal_mode=DELETE");
    bench.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)", 1);
    bench.run(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<500)
         INSERT INTO t(b) SELECT randomblob(700) FROM n",
        1,
    );
    for size in [8192, 1024, 65536, 512, 4096] {
        bench.run(&format!("PRAGMA page_size={size}; VACUUM"), 1);
        bench.run("UPDATE t SET b=randomblob(10) WHERE a%7=0", 1);
    }
}

#[test]
fn journal_mode_switches() {
    let mut bench = Bench::new("");
    bench.run("CREATE TABLE t(a)", 1);
    let mut random = Random(7);
    for _ in 0..30 {
        let mode = MODES[random.below(6) as usize];
        bench.connection.execute_batch(mode).unwrap();
        bench.oracle.check(mode);
        bench.run("INSERT INTO t VALUES(hex(randomblob(2000)))", 1);
        bench.run("UPDATE t SET a=a||'.'", 1);
    }
}

#[test]
fn exclusive_locking_mode() {
    for mode in MODES {
        let mut bench = Bench::new(&format!("PRAGMA locking_mode=EXCLUSIVE; {mode}"));
        bench.run("CREATE TABLE t(a)", 1);
        for _ in 0..10 {
            bench.run("INSERT INTO t VALUES(hex(randomblob(1000)))", 1);
            if !mode.ends_with("OFF") {
                bench.run("BEGIN; DELETE FROM t; ROLLBACK", 0);
            }
        }
        bench.run("VACUUM", 1);
    }
}

#[test]
fn checkpoints_lose_nothing() {
    for kind in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
        let mut bench = Bench::new("PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=7");
        bench.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)", 1);
        for n in 0..60 {
            bench.run("INSERT INTO t(b) VALUES(hex(randomblob(900)))", 1);
            if n % 7 == 0 {
                bench.run(&format!("PRAGMA wal_checkpoint({kind})"), 0);
            }
        }
        let path = bench.path.clone();
        let before = image_of(&path);
        drop(bench.connection);
        bench.connection = open(&path, "");
        bench.run("SELECT count(*) FROM t", 0);
        assert!(before == image_of(&path));
        bench.run("INSERT INTO t(b) VALUES('after reopening')", 1);
    }
}

#[test]
fn a_database_with_data_is_adopted() {
    for mode in ["DELETE", "WAL"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("old.db");
        let plain = open_plain(&path);
        plain
            .execute_batch(&format!(
                "PRAGMA journal_mode={mode}; CREATE TABLE t(a); INSERT INTO t VALUES(1),(2)"
            ))
            .unwrap();
        let connection = open(&path, "");
        let mut oracle = Oracle::new(&path);
        connection.execute_batch("INSERT INTO t VALUES(3)").unwrap();
        assert_eq!(oracle.check(mode), 2);
        assert_eq!(oracle.records[0].flags, mycelite_journal::FLAG_ADOPT);
        assert_eq!(oracle.records[1].flags, 0);
    }
}

#[test]
fn a_writer_without_the_extension_is_noticed() {
    for mode in ["DELETE", "WAL"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let connection = open(&path, "");
        connection
            .execute_batch(&format!("PRAGMA journal_mode={mode}; CREATE TABLE t(a)"))
            .unwrap();
        let mut oracle = Oracle::new(&path);
        oracle.check("first");
        drop(connection);
        open_plain(&path)
            .execute_batch("INSERT INTO t VALUES('behind our back')")
            .unwrap();
        let connection = open(&path, "");
        connection
            .execute_batch("INSERT INTO t VALUES('ours')")
            .unwrap();
        assert_eq!(oracle.check(mode), 2, "{mode}");
        let flags: Vec<u16> = oracle
            .records
            .iter()
            .rev()
            .take(2)
            .map(|r| r.flags)
            .collect();
        assert_eq!(flags, [0, mycelite_journal::FLAG_REBASE]);
    }
}

#[test]
fn a_clean_close_leaves_nothing_to_compare() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let mut oracle = Oracle::new(&path);
    for n in 0..5 {
        let connection = open(&path, "");
        connection
            .execute_batch("CREATE TABLE IF NOT EXISTS t(a); INSERT INTO t VALUES(1)")
            .unwrap();
        assert!(!common::log_dir(&path).join("stamp").exists());
        let records = oracle.check("reopened");
        assert_eq!(records, if n == 0 { 2 } else { 1 });
        drop(connection);
        assert!(common::log_dir(&path).join("stamp").exists());
    }
    assert!(oracle.records.iter().all(|record| record.flags == 0));
}

#[test]
fn attached_databases_have_logs_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.db"), dir.path().join("b.db"));
    let connection = open(&a, "");
    connection
        .execute_batch(&format!(
            "ATTACH 'file:{}?vfs=mycelite_writer' AS b;
             CREATE TABLE t(x); CREATE TABLE b.t(x);
             BEGIN; INSERT INTO t VALUES(1); INSERT INTO b.t VALUES(1); COMMIT;
             BEGIN; INSERT INTO t VALUES(2); INSERT INTO b.t VALUES(2); ROLLBACK;",
            b.display()
        ))
        .unwrap();
    for path in [&a, &b] {
        let mut oracle = Oracle::new(path);
        assert_eq!(oracle.check("attached"), 2);
    }
}

#[test]
fn a_file_that_is_created_again_continues_its_history() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let mut oracle = Oracle::new(&path);
    for round in 0..3 {
        let connection = open(&path, "");
        connection
            .execute_batch(&format!(
                "CREATE TABLE t{round}(a); INSERT INTO t{round} VALUES({round})"
            ))
            .unwrap();
        assert_eq!(oracle.check("created"), 2, "round {round}");
        drop(connection);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn several_connections_write_in_turn() {
    for mode in ["DELETE", "WAL"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let first = open(&path, "");
        first
            .execute_batch(&format!("PRAGMA journal_mode={mode}; CREATE TABLE t(a, b)"))
            .unwrap();
        let mut oracle = Oracle::new(&path);
        let before = oracle.check(mode);
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let connection = open(&path, "");
                std::thread::spawn(move || {
                    for n in 0..50 {
                        connection
                            .execute("INSERT INTO t VALUES(?1, ?2)", (thread, n))
                            .unwrap();
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(oracle.check(mode), 200, "{mode}, after {before}");
    }
}
