//! What a process that was killed leaves behind: hot journals and WALs that nobody has recovered. Such a database is
//! adopted, continued, or repaired while we have it open.

use crate::bench::{Bench, fill, number};
use crate::common::{Oracle, killed_after, log_dir, open};
use mycelite_journal::{FLAG_ADOPT, FLAG_REBASE};
use std::path::Path;

const MODES: [&str; 4] = ["DELETE", "TRUNCATE", "PERSIST", "WAL"];

/// Free pages, then a transaction that fills them and the end of the file, spilled and never finished.
fn half_done(mode: &str) -> String {
    format!(
        "PRAGMA cache_size=10; PRAGMA journal_mode={mode}; PRAGMA wal_autocheckpoint=0;
         INSERT INTO t(b) VALUES('committed');
         BEGIN; {}; UPDATE t SET b=randomblob(300) WHERE a%2;",
        fill(400, 600)
    )
}

fn table(mode: &str) -> String {
    format!(
        "PRAGMA page_size=1024; PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b); {};
         DELETE FROM t WHERE a%2=0;",
        fill(300, 600)
    )
}

fn is_unrecovered(path: &Path, mode: &str) -> bool {
    let suffix = if mode == "WAL" { "-wal" } else { "-journal" };
    std::fs::metadata(format!("{}{suffix}", path.display())).is_ok_and(|meta| meta.len() > 0)
}

#[test]
fn adopted_as_a_killed_process_left_it() {
    for mode in MODES {
        for first in [
            "",
            "SELECT count(*) FROM t;",
            "PRAGMA locking_mode=EXCLUSIVE;",
            "PRAGMA mmap_size=10000000;",
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("app.db");
            killed_after(&path, &format!("{}{}", table(mode), half_done(mode)));
            assert!(is_unrecovered(&path, mode), "{mode}");
            let mut bench = Bench::open(dir, &path, "", first);
            bench.run("INSERT INTO t(b) VALUES('ours')", 2);
            assert_eq!(bench.oracle.records[0].flags, FLAG_ADOPT, "{mode}, {first}");
            assert_eq!(bench.oracle.records[1].flags, 0, "{mode}, {first}");
            assert_eq!(
                bench.number("SELECT count(*) FROM t WHERE b='committed'"),
                1
            );
            assert_eq!(bench.number("SELECT count(*) FROM t"), 152);
            bench.run("INSERT INTO t(b) VALUES('and on')", 1);
        }
    }
}

/// The log is there already: what the killed process had committed is found, by comparing where nothing else tells.
#[test]
fn continued_after_a_killed_process() {
    for mode in MODES {
        for first in [
            "",
            "SELECT count(*) FROM t;",
            "PRAGMA locking_mode=EXCLUSIVE;",
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("app.db");
            open(&path, "").execute_batch(&table(mode)).unwrap();
            let mut oracle = Oracle::new(&path);
            oracle.check("ours");
            killed_after(&path, &half_done(mode));
            assert!(is_unrecovered(&path, mode), "{mode}");
            let connection = open(&path, "");
            connection.execute_batch(first).unwrap();
            connection
                .execute_batch("INSERT INTO t(b) VALUES('ours')")
                .unwrap();
            assert_eq!(oracle.check(&format!("{mode}, {first}")), 2);
            assert_eq!(number(&connection, "SELECT count(*) FROM t"), 152);
            connection
                .execute_batch("INSERT INTO t(b) VALUES('and on')")
                .unwrap();
            assert_eq!(oracle.check("and on"), 1);
        }
    }
}

/// We hold the database open, and our next statement rolls back what the killed process has spilled. Its journal does
/// not restore the free pages, and no counter tells.
#[test]
fn repaired_while_we_have_it_open() {
    for mode in MODES {
        for committed in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("app.db");
            let ours = open(&path, "");
            ours.execute_batch(&table(mode)).unwrap();
            let reader = open(&path, "");
            let mut oracle = Oracle::new(&path);
            oracle.check("ours");
            for round in 0..3 {
                let mut deed = half_done(mode);
                if !committed {
                    deed = deed.replace("INSERT INTO t(b) VALUES('committed');", "");
                }
                killed_after(&path, &deed);
                if round == 1 {
                    // Recovered by whoever comes first, who may be a reader.
                    number(&reader, "SELECT count(*) FROM t");
                }
                ours.execute_batch("INSERT INTO t(b) VALUES('ours')")
                    .unwrap();
                let new = oracle.check(&format!("{mode}, round {round}, committed: {committed}"));
                let transactions = oracle.records[oracle.records.len() - new..]
                    .iter()
                    .filter(|record| record.flags & FLAG_REBASE == 0)
                    .count();
                assert!(transactions >= 1, "{mode}");
                ours.execute_batch("INSERT INTO t(b) VALUES('and on')")
                    .unwrap();
                assert_eq!(oracle.check("and on"), 1, "{mode}");
            }
        }
    }
}

/// A journal that is hot, and a database that is only read: recovery is SQLite's business, and leaves no log.
#[test]
fn recovered_by_a_reader() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        killed_after(&path, &format!("{}{}", table(mode), half_done(mode)));
        let connection = open(&path, "");
        assert_eq!(number(&connection, "SELECT count(*) FROM t"), 151);
        drop(connection);
        assert!(!log_dir(&path).exists(), "{mode}");
    }
}

/// A WAL that outlives its connections, checkpointed or not.
#[test]
fn a_wal_that_stays() {
    use rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
    let mut bench = Bench::with_table("PRAGMA journal_mode=WAL");
    for round in 0..6 {
        if round % 2 == 0 {
            bench
                .connection
                .set_db_config(SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
                .unwrap();
        }
        let mut persist = 1;
        // SAFETY: the connection is open, and this operation takes a pointer to a number.
        let rc = unsafe {
            rusqlite::ffi::sqlite3_file_control(
                bench.connection.handle(),
                c"main".as_ptr(),
                rusqlite::ffi::SQLITE_FCNTL_PERSIST_WAL,
                (&raw mut persist).cast(),
            )
        };
        assert_eq!(rc, 0);
        bench.run("INSERT INTO t(b) VALUES(hex(randomblob(900)))", 1);
        bench.run("INSERT INTO t(b) VALUES(hex(randomblob(900)))", 1);
        if round == 3 {
            bench.run("PRAGMA wal_checkpoint(RESTART)", 0);
        }
        bench.reopen("");
        assert!(bench.dir().join("app.db-wal").exists());
        bench.run("SELECT count(*) FROM t", 0);
    }
    bench.nothing_was_compared();
}

/// A power cut took the WAL's frames, which nobody had synced, but not its header, nor what a checkpoint had written. SQLite
/// begins again with the same salts, so that other frames stand where the log's head says it is.
#[test]
fn a_wal_that_lost_its_frames_begins_again() {
    let (before, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (path, left) = (before.path().join("app.db"), after.path().join("app.db"));
    let first = open(&path, "");
    first
        .execute_batch(
            "PRAGMA page_size=1024; PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; CREATE TABLE t(a INTEGER PRIMARY KEY, b);
             INSERT INTO t(b) VALUES('first'); PRAGMA wal_checkpoint(RESTART);
             INSERT INTO t(b) VALUES('second'); PRAGMA wal_checkpoint",
        )
        .unwrap();
    std::fs::copy(&path, &left).unwrap();
    let wal = std::fs::read(before.path().join("app.db-wal")).unwrap();
    std::fs::write(after.path().join("app.db-wal"), &wal[..32]).unwrap();
    std::fs::create_dir(log_dir(&left)).unwrap();
    for entry in std::fs::read_dir(log_dir(&path)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), log_dir(&left).join(entry.file_name())).unwrap();
    }
    let mut oracle = Oracle::new(&left);
    oracle.advance();
    let second = open(&left, "");
    for number in 0..5 {
        second
            .execute("INSERT INTO t(b) VALUES(?1)", [number])
            .unwrap();
        assert_eq!(oracle.check("and on"), 1, "{number}");
    }
}

/// A power cut left a database file of zeros, whose every page is in the WAL still, and a log without its last record.
#[test]
fn a_file_of_zeros_beside_its_wal_is_a_database() {
    let (before, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (path, left) = (before.path().join("app.db"), after.path().join("app.db"));
    let first = open(&path, "");
    first.execute_batch("PRAGMA journal_mode=WAL").unwrap();
    std::fs::create_dir(log_dir(&left)).unwrap();
    for entry in std::fs::read_dir(log_dir(&path)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), log_dir(&left).join(entry.file_name())).unwrap();
    }
    first
        .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        .unwrap();
    let zeros = vec![0; std::fs::metadata(&path).unwrap().len() as usize];
    std::fs::write(&left, zeros).unwrap();
    let wal = before.path().join("app.db-wal");
    std::fs::copy(wal, after.path().join("app.db-wal")).unwrap();
    let mut oracle = Oracle::new(&left);
    let second = open(&left, "");
    second
        .execute_batch("INSERT INTO t(b) VALUES('and on')")
        .unwrap();
    oracle.check("and on");
}
