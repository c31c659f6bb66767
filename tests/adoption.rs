//! A database in WAL mode that had data before it had a log goes into the log in the background (P1, P2, P3, P4, P8).
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]

mod common;

use common::{Oracle, Random, child_argument, log_dir, open, open_plain, spawn_child};
use mycelite_journal::FLAG_ADOPT;
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Whatever its size.
const ALWAYS: &str = "&adopt_background_min=0";
/// How long an adoption may take on a machine that has other work.
const PATIENCE: Duration = Duration::from_secs(120);

struct Bench {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

/// A database of some `kib` KiB, made without us, in WAL mode.
fn made(kib: u32) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let rows = kib / 2;
    open_plain(&path)
        .execute_batch(&format!(
            "PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
             INSERT INTO t SELECT i, randomblob(2000) FROM n"
        ))
        .unwrap();
    Bench { path, _dir: dir }
}

fn writer(path: &Path) -> Connection {
    let connection = open(path, ALWAYS);
    connection
        .execute_batch("PRAGMA synchronous=NORMAL")
        .unwrap();
    connection
}

fn insert(connection: &Connection) {
    let sql = "INSERT INTO t(b) VALUES(randomblob(100))";
    connection.execute_batch(sql).unwrap();
}

fn is_adopting(path: &Path) -> bool {
    mycelite::database::find(path).is_some_and(|database| database.shared().is_adopting())
}

fn adopted(path: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while is_adopting(path) {
        assert!(Instant::now() < deadline, "still adopting");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn text(connection: &Connection, sql: &str) -> String {
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

fn status(connection: &Connection, field: &str) -> String {
    text(
        connection,
        &format!("SELECT coalesce(mycelite_status() ->> '{field}', '')"),
    )
}

/// The log begins with the database as it was at one commit, and each that came later is a record.
#[track_caller]
fn check(oracle: &mut Oracle, what: &str) {
    oracle.check(what);
    let flags: Vec<u16> = oracle.records.iter().map(|record| record.flags).collect();
    assert_eq!(flags.first(), Some(&FLAG_ADOPT), "{what}");
    assert!(
        flags[1..].iter().all(|&flags| flags == 0),
        "{what}: {flags:?}"
    );
}

#[test]
fn commits_go_on_meanwhile_and_each_is_a_record() {
    for _ in 0..20 {
        let bench = made(48 << 10);
        let connection = writer(&bench.path);
        // Whatever a checkpoint took away would be missing.
        connection
            .execute_batch("PRAGMA wal_autocheckpoint=2")
            .unwrap();
        let (mut meanwhile, begun) = (0, Instant::now());
        insert(&connection);
        while status(&connection, "state") == "adopting" && begun.elapsed() < PATIENCE {
            insert(&connection);
            meanwhile += 1;
        }
        let mut oracle = Oracle::new(&bench.path);
        check(&mut oracle, "adopted");
        assert!(oracle.records.len() <= meanwhile + 2);
        assert_eq!(status(&connection, "state"), "ok");
        for _ in 0..10 {
            insert(&connection);
        }
        let before = oracle.records.len();
        check(&mut oracle, "after it");
        assert_eq!(oracle.records.len(), before + 10);
        if oracle.records.len() > 12 {
            return;
        }
    }
    panic!("no commit was recorded that came while a database was being adopted");
}

#[test]
fn a_small_database_is_adopted_by_its_first_commit() {
    let bench = made(64);
    let connection = open(&bench.path, "");
    insert(&connection);
    assert!(!is_adopting(&bench.path));
    check(&mut Oracle::new(&bench.path), "at once");
}

#[test]
fn a_close_finishes_what_was_begun() {
    let bench = made(16 << 10);
    let connection = writer(&bench.path);
    insert(&connection);
    drop(connection);
    let mut oracle = Oracle::new(&bench.path);
    check(&mut oracle, "closed");
    let wal = bench.path.with_extension("db-wal");
    assert!(!wal.exists(), "the last close leaves no WAL");
    assert!(log_dir(&bench.path).join("stamp").exists());
    insert(&writer(&bench.path));
    check(&mut oracle, "opened again");
    assert_eq!(oracle.records.last().unwrap().flags, 0);
}

#[test]
fn what_needs_the_database_alone_waits() {
    let bench = made(16 << 10);
    let connection = writer(&bench.path);
    insert(&connection);
    let mode = text(&connection, "PRAGMA journal_mode=DELETE");
    assert_eq!(mode, "delete");
    assert!(!is_adopting(&bench.path));
    insert(&connection);
    Oracle::new(&bench.path).check("in another journal mode");
}

#[test]
fn checkpoints_and_vacuum_meanwhile() {
    let bench = made(16 << 10);
    let connection = writer(&bench.path);
    let other = open_plain(&bench.path);
    insert(&connection);
    for sql in [
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "DELETE FROM t WHERE a % 2",
        "VACUUM",
        "PRAGMA wal_checkpoint(PASSIVE)",
    ] {
        connection.execute_batch(sql).unwrap();
        other
            .execute_batch("PRAGMA wal_checkpoint(RESTART)")
            .unwrap();
        insert(&connection);
    }
    adopted(&bench.path);
    let mut oracle = Oracle::new(&bench.path);
    oracle.check("vacuumed");
    connection
        .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
        .unwrap();
    insert(&connection);
    oracle.check("checkpointed");
}

/// All of the WAL is in the database, so that the first writer begins it anew over what the image was read from.
#[test]
fn the_wal_begins_anew_meanwhile() {
    // The image is open by then, and its last pages, which are in the WAL, are not read yet.
    for (kib, pause_ms) in [(64, 0), (4 << 10, 5), (32 << 10, 20)] {
        let bench = made(kib);
        let other = open_plain(&bench.path);
        insert(&other);
        other
            .execute_batch("PRAGMA wal_checkpoint(PASSIVE)")
            .unwrap();
        let connection = writer(&bench.path);
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        std::thread::sleep(Duration::from_millis(pause_ms));
        insert(&connection);
        connection.execute_batch("COMMIT").unwrap();
        insert(&connection);
        adopted(&bench.path);
        let mut oracle = Oracle::new(&bench.path);
        check(&mut oracle, "a new generation");
        insert(&connection);
        check(&mut oracle, "and on");
    }
}

#[test]
fn one_connection_closes_while_another_goes_on() {
    let bench = made(16 << 10);
    let (first, second) = (writer(&bench.path), writer(&bench.path));
    insert(&first);
    drop(first);
    assert!(!is_adopting(&bench.path));
    insert(&second);
    let mut oracle = Oracle::new(&bench.path);
    check(&mut oracle, "the second");
    assert!(oracle.records.len() >= 2);
}

/// A process of the crowd: writes until it is done or killed.
#[test]
fn child_writes() {
    let Some(path) = child_argument("ADOPTION_DB") else {
        return;
    };
    let connection = writer(Path::new(&path));
    for _ in 0..150 {
        insert(&connection);
    }
}

fn child(path: &Path) -> std::process::Child {
    spawn_child("child_writes", &[("ADOPTION_DB", path.to_str().unwrap())])
}

#[test]
fn processes_side_by_side() {
    for _ in 0..3 {
        let bench = made(16 << 10);
        let connection = writer(&bench.path);
        let children = [child(&bench.path), child(&bench.path)];
        for _ in 0..150 {
            insert(&connection);
        }
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
        adopted(&bench.path);
        insert(&connection);
        let mut oracle = Oracle::new(&bench.path);
        check(&mut oracle, "three writers");
        let rows: i64 = connection
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap();
        assert_eq!(rows, 8 * 1024 + 451);
    }
}

#[test]
fn whoever_comes_after_one_that_was_killed_begins_anew() {
    let mut random = Random(20_261_122);
    for round in 0..12 {
        let bench = made(16 << 10);
        let mut child = child(&bench.path);
        std::thread::sleep(Duration::from_millis(random.below(400)));
        child.kill().unwrap();
        child.wait().unwrap();
        let connection = writer(&bench.path);
        insert(&connection);
        adopted(&bench.path);
        insert(&connection);
        let mut oracle = Oracle::new(&bench.path);
        oracle.check(&format!("round {round}"));
        assert_eq!(oracle.records[0].flags, FLAG_ADOPT);
    }
}

/// What SQLite did not write is in no WAL: the file is compared, instead of being vouched for as it was read.
#[test]
fn an_outsider_writes_past_sqlite_meanwhile() {
    for _ in 0..3 {
        let bench = made(24 << 10);
        let connection = writer(&bench.path);
        insert(&connection);
        // Within a row of the third page, by a process of its own: a descriptor that this one closes would drop SQLite's locks.
        let written = std::process::Command::new("sh")
            .args([
                "-c",
                "printf X | dd of=\"$0\" bs=1 seek=11192 conv=notrunc status=none",
            ])
            .arg(&bench.path)
            .status();
        assert!(written.unwrap().success());
        adopted(&bench.path);
        let deadline = Instant::now() + PATIENCE;
        loop {
            // After a failure capture rests for a while.
            insert(&connection);
            adopted(&bench.path);
            if status(&connection, "state") == "ok" {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "{}",
                status(&connection, "last_error")
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        insert(&connection);
        Oracle::new(&bench.path).check("an outsider's byte");
    }
}
