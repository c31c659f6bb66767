//! `wal_capture=background`: what is committed in WAL mode is recorded by a thread of the process, and every promise holds as
//! it does without (P1, P2, P3, P4, P8).
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)]

mod common;

use common::{Oracle, Random, child_argument, log_dir, open, open_plain, settle, spawn_child};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const BACKGROUND: &str = "&wal_capture=background";
const TABLE: &str = "PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b)";
/// Beyond what whoever commits still does.
const WARM: u64 = 4;

fn writer(path: &Path) -> Connection {
    let connection = open(path, BACKGROUND);
    let sql = "PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=40";
    connection.execute_batch(sql).unwrap();
    connection
}

fn insert(connection: &Connection, bytes: u64) {
    let sql = format!("INSERT INTO t(b) VALUES(randomblob({bytes}))");
    connection.execute_batch(&sql).unwrap();
}

/// How long each thread of this process that records has run, and how often.
fn capture_runs() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks
        .map(|task| task.unwrap().path())
        .filter(|task| {
            let comm = std::fs::read_to_string(task.join("comm"));
            comm.is_ok_and(|name| name.starts_with("mycelite-captur"))
        })
        .map(|task| std::fs::read_to_string(task.join("schedstat")).unwrap_or_default())
        .collect()
}

/// Threads of this process that record.
fn capture_threads() -> usize {
    capture_runs().len()
}

fn number(connection: &Connection, sql: &str) -> u64 {
    let number: i64 = connection.query_row(sql, [], |row| row.get(0)).unwrap();
    number.try_into().unwrap()
}

fn txid(connection: &Connection) -> u64 {
    number(connection, "SELECT mycelite_txid()")
}

/// The number of records that anybody can read in the log, without asking the process that writes it.
fn recorded(path: &Path) -> u64 {
    use mycelite_journal::{FileStorage, Reader};
    let storage = std::sync::Arc::new(FileStorage::new(log_dir(path)));
    let mut reader = Reader::open(storage).unwrap();
    reader
        .head()
        .unwrap()
        .map_or(0, |entry| entry.header.txid.0)
}

#[track_caller]
fn recorded_soon(path: &Path, txid: u64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while recorded(path) < txid {
        assert!(Instant::now() < deadline, "{} of {txid}", recorded(path));
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One at a time: threads, files and a fork are the process's.
static ALONE: Mutex<()> = Mutex::new(());

struct Bench {
    _dir: tempfile::TempDir,
    path: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Bench {
    fn new() -> Bench {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = common::scratch();
        let path = dir.path().join("app.db");
        Bench {
            _dir: dir,
            path,
            _alone: alone,
        }
    }

    fn beside(&self, suffix: &str) -> bool {
        PathBuf::from(format!("{}{suffix}", self.path.display())).exists()
    }
}

#[test]
fn the_thread_records_what_nobody_asks_for_and_rests_then() {
    let bench = Bench::new();
    let connection = writer(&bench.path);
    connection.execute_batch(TABLE).unwrap();
    let begun = txid(&connection);
    for n in 1..=WARM + 20 {
        insert(&connection, 300);
        recorded_soon(&bench.path, begun + n);
    }
    assert_eq!(capture_threads(), 1);
    // Many at once, then one more.
    for _ in 0..500 {
        insert(&connection, 30);
    }
    recorded_soon(&bench.path, begun + WARM + 520);
    // Who does not run makes no system call.
    std::thread::sleep(Duration::from_millis(300));
    let before = capture_runs();
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(capture_runs(), before);
    let mut oracle = Oracle::new(&bench.path);
    oracle.check("many commits");
    assert_eq!(oracle.records.len() as u64, begun + WARM + 520);
    drop(connection);
    assert_eq!(capture_threads(), 0, "a thread after the last close");
    assert!(!bench.beside("-wal") && !bench.beside("-shm"));
    oracle.check("closed");
}

#[test]
fn whoever_asks_sees_its_own_commits() {
    let bench = Bench::new();
    let connection = writer(&bench.path);
    connection.execute_batch(TABLE).unwrap();
    let begun = txid(&connection);
    for n in 1..300 {
        insert(&connection, 100);
        assert_eq!(txid(&connection), begun + n);
        if n % 7 == 0 {
            let sql = "SELECT max(txid) FROM mycelite_log";
            assert_eq!(number(&connection, sql), begun + n);
        }
    }
}

#[test]
fn a_reader_of_the_head_beside_the_writer_sees_each_commit() {
    let bench = Bench::new();
    let connection = writer(&bench.path);
    connection.execute_batch(TABLE).unwrap();
    insert(&connection, 10);
    let reader = Connection::open_with_flags_and_vfs(
        &bench.path,
        rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY,
        c"mycelite_reader",
    )
    .unwrap();
    for n in 2..300 {
        insert(&connection, 10);
        assert_eq!(number(&reader, "SELECT count(*) FROM t"), n);
    }
}

/// A moment is opened in the writing process right after the commit that made it.
#[test]
fn each_commit_is_a_moment_at_once() {
    let bench = Bench::new();
    let connection = writer(&bench.path);
    connection.execute_batch(TABLE).unwrap();
    let begun = txid(&connection);
    for n in 1..200 {
        insert(&connection, 10);
        let moment = match n % 2 {
            0 => format!("txid={}", begun + n),
            _ => "ago=0s".to_owned(),
        };
        let uri = format!("file:{}?vfs=mycelite_reader&{moment}", bench.path.display());
        let past = Connection::open(uri).unwrap();
        assert_eq!(number(&past, "SELECT count(*) FROM t"), n, "{moment}");
    }
}

/// Writes through `connections` connections at once; how many transactions were committed.
fn crowd(path: &Path, connections: u64, commits: u64, seed: u64) -> u64 {
    let mine = |number: u64| {
        let mut random = Random((seed * 977 + number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut connection = writer(path);
        for _ in 0..commits {
            match random.below(40) {
                0 => connection = writer(path),
                1..=3 => {
                    let kind = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][random.below(4) as usize];
                    let sql = format!("PRAGMA wal_checkpoint({kind})");
                    let _ = connection.query_row(&sql, [], |_| Ok(()));
                }
                4 => std::thread::sleep(Duration::from_millis(random.below(4))),
                _ => {}
            }
            insert(&connection, random.below(3000));
        }
        commits
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..connections)
            .map(|number| scope.spawn(move || mine(number)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    })
}

#[test]
fn each_commit_of_many_threads_is_one_record() {
    let bench = Bench::new();
    let first = writer(&bench.path);
    first.execute_batch(TABLE).unwrap();
    let begun = txid(&first);
    let mut oracle = Oracle::new(&bench.path);
    for round in 0..4 {
        let committed = crowd(&bench.path, 4, 150, round);
        oracle.check("after a crowd");
        let records = oracle.records.len() as u64;
        assert_eq!(records, begun + (round + 1) * committed);
    }
    drop(first);
    assert_eq!(capture_threads(), 0);
    assert!(!bench.beside("-wal") && !bench.beside("-shm"));
    oracle.check("closed");
}

/// A process of the crowd: writes until it is done or killed.
#[test]
fn child_writes() {
    let Some(path) = child_argument("BACKGROUND_DB") else {
        return;
    };
    let seed = child_argument("BACKGROUND_SEED").unwrap().parse().unwrap();
    crowd(Path::new(&path), 3, 120, seed);
}

fn child(path: &Path, seed: u64) -> std::process::Child {
    let (path, seed) = (path.to_str().unwrap(), seed.to_string());
    spawn_child(
        "child_writes",
        &[("BACKGROUND_DB", path), ("BACKGROUND_SEED", &seed)],
    )
}

#[test]
fn processes_that_are_killed_lose_nothing() {
    let bench = Bench::new();
    writer(&bench.path).execute_batch(TABLE).unwrap();
    let mut oracle = Oracle::new(&bench.path);
    let mut random = Random(20_261_121);
    for round in 0..12 {
        let mut children = [
            child(&bench.path, round * 2),
            child(&bench.path, round * 2 + 1),
        ];
        if round % 4 != 3 {
            std::thread::sleep(Duration::from_millis(20 + random.below(250)));
            for child in &mut children {
                child.kill().unwrap();
            }
        }
        for child in children {
            let killed = round % 4 != 3;
            let output = child.wait_with_output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(killed || output.status.success(), "{told}");
        }
        if round % 3 == 1 {
            // Somebody without the extension, whose commits and checkpoints nobody records.
            let foreign = open_plain(&bench.path);
            insert(&foreign, 500);
            let _ = foreign.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
            insert(&foreign, 500);
            drop(foreign);
        }
        let connection = writer(&bench.path);
        insert(&connection, 10);
        oracle.check("after a kill");
        let ok: String = connection
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .unwrap();
        assert_eq!(ok, "ok");
    }
}

#[test]
fn a_foreign_writer_in_between_is_noticed() {
    let bench = Bench::new();
    let connection = writer(&bench.path);
    connection.execute_batch(TABLE).unwrap();
    let foreign = open_plain(&bench.path);
    let mut oracle = Oracle::new(&bench.path);
    for round in 0..60 {
        for _ in 0..round % 9 {
            insert(&connection, 400);
        }
        insert(&foreign, 400);
        if round % 5 == 0 {
            let _ = foreign.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()));
        }
        if round % 10 == 5 {
            insert(&foreign, 4);
        }
        insert(&connection, 40);
        // Whoever writes next compares where commits went by.
        insert(&connection, 40);
        oracle.check("beside a foreigner");
    }
}

#[test]
fn journal_modes_may_change_at_any_moment() {
    let bench = Bench::new();
    let connection = writer(&bench.path);
    connection.execute_batch(TABLE).unwrap();
    let mut oracle = Oracle::new(&bench.path);
    oracle.advance();
    let mut records = oracle.records.len();
    for mode in ["DELETE", "WAL", "TRUNCATE", "WAL", "PERSIST", "WAL"] {
        for _ in 0..20 {
            insert(&connection, 700);
        }
        let sql = format!("PRAGMA journal_mode={mode}");
        let now: String = connection.query_row(&sql, [], |row| row.get(0)).unwrap();
        assert_eq!(now, mode.to_lowercase());
        insert(&connection, 7);
        // Twenty-one rows, and the header that says so.
        oracle.check(mode);
        assert_eq!(oracle.records.len(), records + 22, "{mode}");
        records = oracle.records.len();
        assert!(capture_threads() <= 1);
        insert(&connection, 7);
        records += 1;
    }
    connection
        .execute_batch("PRAGMA locking_mode=EXCLUSIVE")
        .unwrap();
    for _ in 0..20 {
        insert(&connection, 700);
    }
    oracle.check("exclusive");
    assert_eq!(oracle.records.len(), records + 20);
}

#[test]
fn the_setting_may_change_while_the_database_is_open() {
    let bench = Bench::new();
    let connection = open(&bench.path, "");
    connection.execute_batch(TABLE).unwrap();
    let begun = txid(&connection);
    let mut oracle = Oracle::new(&bench.path);
    for (round, value) in ["background", "commit", "background"].iter().enumerate() {
        let sql = format!("REPLACE INTO mycelite_config VALUES('wal_capture', '{value}')");
        connection.execute_batch(&sql).unwrap();
        for _ in 0..20 {
            insert(&connection, 1000);
        }
        oracle.check(value);
        let expected = begun + 20 * (round as u64 + 1);
        assert_eq!(oracle.records.len() as u64, expected, "{value}");
    }
}

#[test]
fn what_is_moved_away_is_not_recorded_and_what_has_the_name_is() {
    let bench = Bench::new();
    let connection = writer(&bench.path);
    connection.execute_batch(TABLE).unwrap();
    for _ in 0..WARM + 6 {
        insert(&connection, 100);
    }
    let before = txid(&connection);
    let away = bench.path.with_extension("away");
    std::fs::rename(&bench.path, &away).unwrap();
    std::thread::sleep(Duration::from_millis(150));
    for _ in 0..5 {
        insert(&connection, 100);
    }
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(recorded(&bench.path), before);
    std::fs::rename(&away, &bench.path).unwrap();
    insert(&connection, 100);
    insert(&connection, 100);
    Oracle::new(&bench.path).check("back again");
}

/// A child of a process whose thread and files it has not got opens the database for itself, and the parent goes on.
#[test]
fn a_forked_child_begins_anew() {
    let bench = Bench::new();
    let connection = writer(&bench.path);
    connection.execute_batch(TABLE).unwrap();
    let mut oracle = Oracle::new(&bench.path);
    for round in 0..20 {
        for _ in 0..WARM + round {
            insert(&connection, 200);
        }
        // SAFETY: the child only opens, writes and leaves; it never returns into the test.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let own = writer(&bench.path);
            for _ in 0..8 {
                insert(&own, 300);
            }
            // SQLite wants no connection of the parent's closed here, and shares what it knows of locks between them.
            std::mem::forget(own);
            // SAFETY: as a killed process would end, without the parent's handlers.
            unsafe { libc::_exit(0) };
        }
        insert(&connection, 200);
        let mut status = 0;
        // SAFETY: the child is ours, and the place for its status too.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0, "round {round}");
        insert(&connection, 200);
        oracle.check("after a fork");
    }
    assert_eq!(capture_threads(), 1);
}

#[test]
fn closing_takes_no_longer_and_leaves_nothing_open() {
    let bench = Bench::new();
    writer(&bench.path).execute_batch(TABLE).unwrap();
    let open_files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open_files();
    let begun = Instant::now();
    for _ in 0..50 {
        let connection = writer(&bench.path);
        for _ in 0..10 {
            insert(&connection, 50);
        }
        drop(connection);
        assert!(!bench.beside("-wal") && !bench.beside("-shm"));
    }
    println!("{:?} for each", begun.elapsed() / 50);
    settle(&bench.path);
    assert!(open_files() < before + 5, "{before}, then {}", open_files());
    Oracle::new(&bench.path).check("fifty closes");
}

/// A database for which all of a process's threads have something to do: capture, shipping (to nobody), maintenance.
fn busy_writer(dir: &Path, name: usize) -> Connection {
    let path = dir.join(format!("{name}.db"));
    let all = format!(
        "{BACKGROUND}&segment_bytes_max=65536&replica=http://127.0.0.1:9/app&close_flush_ms=0"
    );
    let connection = open(&path, &all);
    connection.execute_batch(TABLE).unwrap();
    for _ in 0..40 {
        insert(&connection, 3000);
    }
    connection
}

/// The process of the test below.
#[test]
fn parent_of_many() {
    let Some(dir) = child_argument("FORK_DIR") else {
        return;
    };
    let dir = Path::new(&dir);
    let ours: Vec<Connection> = (0..3).map(|name| busy_writer(dir, name)).collect();
    for name in 10..90 {
        // SAFETY: the child uses what it opens itself, and leaves without running anything of the parent's.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: a child that hangs ends by that, and is seen to have failed.
            unsafe { libc::alarm(60) };
            for database in 0..2 {
                drop(busy_writer(dir, name * 10 + database));
            }
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(0) }
        }
        let mut status = 0;
        // SAFETY: the child is ours, and the place for its status too.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0, "child {name}");
        insert(&ours[name % 3], 3000);
    }
    drop(ours);
    println!("done:");
}

/// Threads that sleep at a fork are not in the child, but what they wait in must not be found there by those that it starts.
#[test]
fn the_threads_of_forked_children() {
    let dir = common::scratch();
    let child = spawn_child(
        "parent_of_many",
        &[("FORK_DIR", dir.path().to_str().unwrap())],
    );
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("done:"),
        "{told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
