//! Names and files: links, moves, deletions, long and odd names, and databases that may only be read.

use crate::bench::{Bench, fill, number};
use crate::common::{Oracle, log_dir, open, open_plain, try_open};
use mycelite_journal::FLAG_REBASE;
use rusqlite::{Connection, OpenFlags, ffi};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

const MODES: [&str; 2] = ["DELETE", "WAL"];

fn insert(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch("INSERT INTO t(b) VALUES(hex(randomblob(900)))")
}

/// A database with a table and ten rows, written by us and closed.
fn prepare(path: &Path, mode: &str) {
    open(path, "")
        .execute_batch(&format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b); {}",
            fill(10, 900)
        ))
        .unwrap();
}

#[test]
fn symbolic_links_lead_to_one_log() {
    for mode in MODES {
        let mut bench = Bench::with_table(&format!("PRAGMA journal_mode={mode}"));
        let link = bench.dir().join("link.db");
        std::os::unix::fs::symlink(&bench.path, &link).unwrap();
        let chain = bench.dir().join("chain.db");
        std::os::unix::fs::symlink("link.db", &chain).unwrap();
        let directory = bench.dir().join("elsewhere");
        std::os::unix::fs::symlink(bench.dir(), &directory).unwrap();
        for name in [&link, &chain, &directory.join("app.db")] {
            let other = open(name, "");
            insert(&other).unwrap();
            insert(&bench.connection).unwrap();
            assert_eq!(bench.oracle.check("through a link"), 2, "{mode}");
            assert!(!log_dir(&link).exists() && !log_dir(&chain).exists());
        }
        bench.nothing_was_compared();
    }
}

/// Two names of one file are two databases to SQLite, and two logs to us; each notices what came by the other.
#[test]
fn hard_links_have_a_log_each() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.db"), dir.path().join("b.db"));
    prepare(&a, "DELETE");
    std::fs::hard_link(&a, &b).unwrap();
    let (mut by_a, mut by_b) = (Oracle::new(&a), Oracle::new(&b));
    for round in 0..3 {
        for (path, oracle) in [(&a, &mut by_a), (&b, &mut by_b)] {
            let connection = open(path, "");
            insert(&connection).unwrap();
            oracle.check("one of two names");
            insert(&connection).unwrap();
            assert_eq!(oracle.check("again"), 1, "round {round}");
        }
    }
}

/// What plain SQLite answers to a write after `motion`.
fn plain_answer(mode: &str, motion: fn(&Path)) -> Option<rusqlite::ErrorCode> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let plain = open_plain(&path);
    plain
        .execute_batch(&format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b)"
        ))
        .unwrap();
    motion(&path);
    insert(&plain)
        .err()
        .and_then(|error| error.sqlite_error_code())
}

/// What an application learns that asks whether its file still has its name.
fn has_moved(connection: &Connection) -> bool {
    let mut moved = -1;
    // SAFETY: the connection is open, and this operation stores a number.
    let rc = unsafe {
        ffi::sqlite3_file_control(
            connection.handle(),
            c"main".as_ptr(),
            ffi::SQLITE_FCNTL_HAS_MOVED,
            (&raw mut moved).cast(),
        )
    };
    assert_eq!(rc, 0);
    moved == 1
}

fn move_away(path: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let from = format!("{}{suffix}", path.display());
        if Path::new(&from).exists() {
            std::fs::rename(&from, path.with_file_name(format!("moved.db{suffix}"))).unwrap();
        }
    }
}

fn delete(path: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
}

/// The log belongs to the name: what goes into a file that lost it is not recorded, and the file that has it now is.
#[test]
fn the_file_is_moved_or_deleted_while_open() {
    for mode in MODES {
        for (what, motion) in [("moved", move_away as fn(&Path)), ("deleted", delete)] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("app.db");
            prepare(&path, mode);
            let old = open(&path, "");
            insert(&old).unwrap();
            let mut oracle = Oracle::new(&path);
            oracle.check("before");
            assert!(!has_moved(&old));
            motion(&path);
            assert!(has_moved(&old), "{mode}, {what}");
            // While nobody else records for the name, a WAL writer looks at it ten times a second.
            std::thread::sleep(Duration::from_millis(150));
            let answer = insert(&old)
                .err()
                .and_then(|error| error.sqlite_error_code());
            assert_eq!(answer, plain_answer(mode, motion), "{mode}, {what}");
            assert_eq!(oracle.advance(), 0, "{mode}, {what}: recorded");
            // A new file of the same name continues the history, whatever is done to the old one.
            let new = open(&path, "");
            new.execute_batch(&format!(
                "PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b)"
            ))
            .unwrap();
            oracle.check("a new file");
            for _ in 0..5 {
                let _ = insert(&old);
                insert(&new).unwrap();
                assert_eq!(oracle.check("old and new in turn"), 1, "{mode}, {what}");
            }
            drop(old);
            insert(&new).unwrap();
            assert_eq!(oracle.check("the old one is closed"), 1, "{mode}, {what}");
            drop(new);
            let again = open(&path, "");
            insert(&again).unwrap();
            assert_eq!(oracle.check("opened again"), 1, "{mode}, {what}");
        }
    }
}

#[test]
fn the_file_is_moved_away_and_back() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        prepare(&path, mode);
        let connection = open(&path, "");
        insert(&connection).unwrap();
        let mut oracle = Oracle::new(&path);
        oracle.check("before");
        let away = dir.path().join("away.db");
        std::fs::rename(&path, &away).unwrap();
        let _ = insert(&connection);
        std::fs::rename(&away, &path).unwrap();
        insert(&connection).unwrap();
        oracle.check(&format!("{mode}, back"));
        insert(&connection).unwrap();
        assert_eq!(oracle.check("and on"), 1, "{mode}");
    }
}

/// Another database takes the name while nobody, or while only a reader looks; its counters may be the same.
#[test]
fn another_file_takes_the_name() {
    for mode in MODES {
        for open_meanwhile in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let (path, other) = (dir.path().join("app.db"), dir.path().join("other.db"));
            prepare(&path, mode);
            // The same sequence of statements: change counter, pages and size are those of the first.
            prepare(&other, mode);
            let mut oracle = Oracle::new(&path);
            oracle.check("before");
            let idle = open_meanwhile.then(|| open(&path, ""));
            if let Some(idle) = &idle {
                insert(idle).unwrap();
                insert(&open(&other, "")).unwrap();
            }
            std::fs::rename(&other, &path).unwrap();
            if idle.is_some() {
                delete_wal(&path);
            }
            drop(idle);
            let connection = open(&path, "");
            insert(&connection).unwrap();
            oracle.check(&format!("{mode}, open meanwhile: {open_meanwhile}"));
            assert!(
                oracle
                    .records
                    .iter()
                    .any(|record| record.flags == FLAG_REBASE)
            );
            insert(&connection).unwrap();
            assert_eq!(oracle.check("and on"), 1);
        }
    }
}

/// The WAL of the file before does not belong to the one that took its name.
fn delete_wal(path: &Path) {
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
}

/// SQLite's own bound is 247 bytes, for `-journal` comes behind; ours is one less. Beyond it the application goes on.
#[test]
fn long_names() {
    for (bytes, recorded) in [(246, true), (247, false)] {
        for mode in MODES {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("n".repeat(bytes - 3) + ".db");
            prepare(&path, mode);
            let connection = open(&path, "");
            insert(&connection).unwrap();
            assert_eq!(number(&connection, "SELECT count(*) FROM t"), 11);
            assert_eq!(log_dir(&path).exists(), recorded, "{bytes} bytes, {mode}");
            if recorded {
                assert_eq!(
                    Oracle::new(&path).check("a long name"),
                    3 + usize::from(mode == "WAL")
                );
            } else {
                let status = mycelite::database::find(path.to_str().unwrap())
                    .unwrap()
                    .status();
                assert_eq!(status.state, "degraded");
            }
        }
    }
}

#[test]
fn odd_names() {
    let names: [&[u8]; 6] = [
        b"with space.db",
        b"question?mark&and#hash%41.db",
        "grüße-数据.db".as_bytes(),
        b"not-\xff\xfe-utf8.db",
        b"quote'\".db",
        b"no-extension",
    ];
    for mode in MODES {
        for name in names {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(OsStr::from_bytes(name));
            let escaped: String = path
                .as_os_str()
                .as_bytes()
                .iter()
                .map(|byte| format!("%{byte:02x}"))
                .collect();
            crate::common::load();
            let uri = format!("file:{escaped}?vfs=mycelite_writer");
            let connection = Connection::open_with_flags(uri, OpenFlags::default()).unwrap();
            connection
                .execute_batch(&format!(
                    "PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b)"
                ))
                .unwrap();
            assert!(path.exists(), "{}", path.display());
            let mut oracle = Oracle::new(&path);
            oracle.check("created");
            for _ in 0..3 {
                insert(&connection).unwrap();
                assert_eq!(oracle.check("odd name"), 1, "{mode}, {}", path.display());
            }
        }
    }
}

#[test]
fn readers_record_nothing_and_disturb_nothing() {
    for mode in MODES {
        let mut bench = Bench::with_table(&format!("PRAGMA journal_mode={mode}"));
        bench.run(&fill(20, 900), 1);
        let read_only = open(&bench.path, "&mode=ro");
        for n in 0..3 {
            assert_eq!(number(&read_only, "SELECT count(*) FROM t"), 20 + n);
            assert!(insert(&read_only).is_err());
            bench.run("INSERT INTO t(b) VALUES('beside a reader')", 1);
        }
        // A file that may not be written is opened for reading, whatever was asked for.
        bench.reopen("PRAGMA wal_checkpoint(TRUNCATE)");
        drop(read_only);
        bench.execute("PRAGMA query_only=ON");
        assert!(insert(&bench.connection).is_err());
        bench.execute("PRAGMA query_only=OFF");
        bench.run("INSERT INTO t(b) VALUES('on')", 1);
        bench.nothing_was_compared();
    }
}

#[test]
fn immutable_databases_are_read() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        prepare(&path, mode);
        let mut oracle = Oracle::new(&path);
        oracle.check("before");
        for parameters in [
            "&immutable=1",
            "&immutable=1&mode=ro",
            "&immutable=1&nolock=1",
        ] {
            let connection = open(&path, parameters);
            assert_eq!(number(&connection, "SELECT count(*) FROM t"), 10);
            drop(connection);
            assert_eq!(oracle.check(parameters), 0);
        }
        // Nor is there a log afterwards where there was none.
        std::fs::remove_dir_all(log_dir(&path)).unwrap();
        let connection = open(&path, "&immutable=1");
        assert_eq!(number(&connection, "SELECT count(*) FROM t"), 10);
        drop(connection);
        assert!(!log_dir(&path).exists(), "{mode}");
    }
}

/// A connection that may write but only reads leaves no log behind, in whatever state it found the file.
#[test]
fn whoever_only_reads_leaves_no_log() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        open_plain(&path)
            .execute_batch(&format!(
                "PRAGMA journal_mode={mode}; CREATE TABLE t(a); INSERT INTO t VALUES(1)"
            ))
            .unwrap();
        let connection = try_open(&path, "").unwrap();
        assert_eq!(number(&connection, "SELECT count(*) FROM t"), 1);
        connection
            .execute_batch("BEGIN; SELECT * FROM t; COMMIT")
            .unwrap();
        drop(connection);
        assert!(!log_dir(&path).exists(), "{mode}");
    }
}
