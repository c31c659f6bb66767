//! Exclusive locking mode: no lock calls between transactions, and a WAL without shared memory.

use crate::bench::{Bench, MODES, ROLLBACK_MODES, fill};
use crate::common::{open, open_plain};

#[test]
fn exclusive_and_normal_in_turn() {
    for mode in MODES {
        let mut bench = Bench::with_table(&format!("PRAGMA journal_mode={mode}"));
        for locking in ["EXCLUSIVE", "NORMAL", "EXCLUSIVE", "NORMAL"] {
            bench.run(
                &format!("PRAGMA locking_mode={locking}; SELECT count(*) FROM t"),
                0,
            );
            for _ in 0..3 {
                bench.run("INSERT INTO t(b) VALUES(hex(randomblob(800)))", 1);
                if mode != "OFF" {
                    bench.run("BEGIN; DELETE FROM t; ROLLBACK", 0);
                    bench.run("BEGIN; UPDATE t SET b=1; ROLLBACK; UPDATE t SET b=b||1", 1);
                }
            }
        }
        // In normal mode again, others may write.
        bench.execute("SELECT count(*) FROM t");
        open(&bench.path, "")
            .execute_batch("INSERT INTO t(b) VALUES('another')")
            .unwrap();
        assert_eq!(bench.oracle.check("another connection"), 1);
        bench.nothing_was_compared();
    }
}

#[test]
fn a_wal_without_shared_memory() {
    let mut bench = Bench::with_table(
        "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=5",
    );
    assert!(!bench.dir().join("app.db-shm").exists());
    for n in 0..40 {
        bench.run("INSERT INTO t(b) VALUES(hex(randomblob(1500)))", 1);
        match n % 10 {
            3 => bench.run("PRAGMA wal_checkpoint(RESTART)", 0),
            6 => bench.run("PRAGMA wal_checkpoint(TRUNCATE)", 0),
            9 => bench.run("BEGIN; DELETE FROM t; ROLLBACK", 0),
            _ => {}
        }
    }
    bench.run("VACUUM", 1);
    assert!(!bench.dir().join("app.db-shm").exists());
    bench.reopen("PRAGMA locking_mode=EXCLUSIVE");
    bench.run("INSERT INTO t(b) VALUES('again, still without')", 1);
    assert!(!bench.dir().join("app.db-shm").exists());
    bench.nothing_was_compared();
}

#[test]
fn journal_modes_in_turn_under_an_exclusive_lock() {
    let mut bench = Bench::with_table("PRAGMA locking_mode=EXCLUSIVE");
    for round in 0..3 {
        for mode in MODES {
            bench.execute(&format!("PRAGMA journal_mode={mode}"));
            bench.oracle.check(mode);
            bench.run("INSERT INTO t(b) VALUES(hex(randomblob(300)))", 1);
            bench.run("INSERT INTO t(b) VALUES(hex(randomblob(300)))", 1);
            if round == 1 {
                // The next lock is taken by whoever comes first.
                bench.reopen("PRAGMA locking_mode=EXCLUSIVE");
            }
        }
    }
    bench.nothing_was_compared();
}

/// The lock goes from shared to exclusive as it does before a hot journal is rolled back; what follows is no recovery.
#[test]
fn leaving_an_empty_wal_under_an_exclusive_lock() {
    let mut bench = Bench::with_table("PRAGMA journal_mode=WAL");
    for _ in 0..3 {
        bench.reopen("PRAGMA locking_mode=EXCLUSIVE");
        bench.run("PRAGMA journal_mode=DELETE", 1);
        bench.run("INSERT INTO t(b) VALUES(1)", 1);
        bench.run("PRAGMA journal_mode=WAL", 1);
        bench.run("PRAGMA journal_mode=DELETE", 1);
        bench.run("PRAGMA journal_mode=WAL", 1);
    }
    bench.nothing_was_compared();
}

#[test]
fn spilled_and_rolled_back_under_an_exclusive_lock() {
    for mode in ROLLBACK_MODES {
        let mut bench = Bench::with_table(&format!(
            "PRAGMA page_size=1024; PRAGMA cache_size=10; PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode={mode}"
        ));
        bench.run(&fill(300, 500), 1);
        bench.run("DELETE FROM t WHERE a%2", 1);
        for round in 0..3 {
            bench.execute(&format!("BEGIN; {}; ROLLBACK", fill(400, 700)));
            // While the lock is held, what the rollback left in free pages may wait for the next commit.
            assert_eq!(
                bench.run_counting(&format!("UPDATE t SET b='{round}' WHERE a%7=1")),
                1,
                "{mode}"
            );
        }
        if mode == "WAL" {
            // A WAL without shared memory cannot do with less than the exclusive lock.
            continue;
        }
        bench.run("PRAGMA locking_mode=NORMAL; SELECT count(*) FROM t", 0);
        open_plain(&bench.path)
            .execute_batch("SELECT count(*) FROM t")
            .unwrap();
    }
}

/// Without locks of its own a connection says only by its writes that it writes.
#[test]
fn no_locks_at_all() {
    for mode in MODES.iter().filter(|mode| **mode != "WAL") {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let pragmas = format!("PRAGMA journal_mode={mode}");
        let mut bench = Bench::open(dir, &path, "&nolock=1", &pragmas);
        bench.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)", 1);
        for _ in 0..5 {
            bench.run(&fill(20, 900), 1);
            if *mode != "OFF" {
                bench.run("BEGIN; DELETE FROM t; ROLLBACK", 0);
            }
            bench.run("DELETE FROM t WHERE a%3", 1);
        }
        bench.nothing_was_compared();
    }
}
