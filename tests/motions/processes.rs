//! Any number of processes: forked, short-lived, and such as have no extension.

use crate::bench::{Bench, fill, library, shell, succeeded};
use crate::common::{Oracle, child_argument, open, open_plain, spawn_child};
use mycelite_journal::FLAG_REBASE;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The parent has a connection open, and the child opens its own. (Inside a transaction of the parent no child can write:
/// it inherits SQLite's knowledge of the locks, and never learns that they are given back.)
const FORK: &str = r#"
import os, sqlite3, sys
library, path, mode = sys.argv[1:]
first = sqlite3.connect(":memory:")
first.enable_load_extension(True)
first.load_extension(library)
def connect():
    return sqlite3.connect(path, isolation_level=None, timeout=20)
parent = connect()
parent.execute("PRAGMA journal_mode=" + mode)
parent.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
parent.execute("INSERT INTO t(b) VALUES('parent')")
for round in range(5):
    child = os.fork()
    if child == 0:
        own = connect()
        for _ in range(3):
            own.execute("INSERT INTO t(b) VALUES(hex(randomblob(500)))")
        # No clean close: the parent's connection must not be closed here.
        os._exit(0)
    if round % 2:
        for _ in range(3):
            parent.execute("INSERT INTO t(b) VALUES('parent, beside')")
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    parent.execute("INSERT INTO t(b) VALUES('parent, after')")
print(parent.execute("SELECT count(*) FROM t").fetchone()[0])
parent.close()
"#;

#[test]
fn fork_with_an_open_connection() {
    for mode in ["DELETE", "WAL"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let start = Instant::now();
        let output = Command::new("/usr/bin/python3")
            .args(["-c", FORK])
            .arg(library())
            .arg(&path)
            .arg(mode)
            .output()
            .unwrap();
        let rows: usize = succeeded(output, "fork").trim().parse().unwrap();
        assert_eq!(rows, 1 + 5 * 4 + 2 * 3);
        // Each row is a transaction, and so are the table and, where there is one, the change of mode.
        let mut oracle = Oracle::new(&path);
        let records = oracle.check(mode);
        assert_eq!(records, rows + 1 + usize::from(mode == "WAL"), "{mode}");
        assert!(oracle.records.iter().all(|record| record.flags == 0));
        // Nobody waited for a lock that its owner could not give back.
        assert!(
            start.elapsed() < Duration::from_secs(15),
            "{:?}",
            start.elapsed()
        );
    }
}

/// Commits once, and exits without closing anything.
#[test]
fn child_commits_once() {
    let Some(path) = child_argument("ONCE_DB") else {
        return;
    };
    let connection = open(Path::new(&path), "");
    connection
        .execute_batch("INSERT INTO t(b) VALUES(hex(randomblob(700)))")
        .unwrap();
    std::process::exit(0);
}

#[test]
fn processes_by_the_hundred() {
    for mode in ["DELETE", "PERSIST", "WAL"] {
        let mut bench = Bench::with_table(&format!("PRAGMA journal_mode={mode}"));
        let path = bench.path.to_str().unwrap().to_owned();
        // With a connection that stays, and with none.
        for stays in [true, false] {
            if !stays {
                bench.connection = rusqlite::Connection::open_in_memory().unwrap();
            }
            for _ in 0..15 {
                let batch: Vec<_> = (0..5)
                    .map(|_| spawn_child("processes::child_commits_once", &[("ONCE_DB", &path)]))
                    .collect();
                for child in batch {
                    succeeded(child.wait_with_output().unwrap(), "once");
                }
                // Whoever comes last may have had no time to record; the next one does it.
                bench.oracle.advance();
            }
        }
        bench.connection = open(&bench.path, "");
        bench.execute("INSERT INTO t(b) VALUES('last')");
        bench.oracle.check(mode);
        let rows = usize::try_from(bench.number("SELECT count(*) FROM t")).unwrap();
        assert_eq!(rows, 151);
        let expected = rows + 1 + usize::from(mode == "WAL");
        assert_eq!(bench.oracle.records.len(), expected, "{mode}");
        bench.nothing_was_compared();
    }
}

/// The shell, with us and without, in turn, each time a process of its own.
#[test]
fn shells_with_us_and_without_in_turn() {
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "WAL"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        crate::bench::shell_with_us(
            &path,
            &format!("PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b);"),
        );
        let mut oracle = Oracle::new(&path);
        oracle.check("created");
        for _ in 0..4 {
            shell(
                &path,
                "INSERT INTO t(b) VALUES('theirs'); UPDATE t SET b=b||'!';",
            );
            crate::bench::shell_with_us(&path, "INSERT INTO t(b) VALUES('ours');");
            assert_eq!(oracle.check(mode), 2, "{mode}");
            let flags: Vec<u16> = oracle
                .records
                .iter()
                .rev()
                .take(2)
                .map(|r| r.flags)
                .collect();
            assert_eq!(flags, [0, FLAG_REBASE], "{mode}");
        }
    }
}

/// Every kind of foreign deed between two of our commits, in the rollback modes, while we have the database open.
#[test]
fn foreign_deeds_while_we_have_it_open() {
    let deeds = [
        "INSERT INTO t(b) VALUES('theirs')",
        "VACUUM",
        "PRAGMA page_size=8192; VACUUM",
        "PRAGMA auto_vacuum=FULL; VACUUM; DELETE FROM t WHERE a>100",
        "PRAGMA journal_mode=PERSIST; UPDATE t SET b=randomblob(500)",
        "PRAGMA journal_mode=OFF; DELETE FROM t WHERE a%3=0",
        "PRAGMA user_version=9",
    ];
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"] {
        let mut bench = with_free_pages(mode);
        for deed in deeds {
            shell(&bench.path, &format!("{deed};"));
            bench.run("INSERT INTO t(b) VALUES('ours')", 2);
            assert_eq!([FLAG_REBASE, 0], [0, 1].map(|n| bench.newest(2)[n].flags));
            bench.run("INSERT INTO t(b) VALUES('and on')", 1);
        }
    }
}

/// A foreign transaction that spills and is rolled back leaves other bytes in free pages, and every counter as it was.
#[test]
fn a_foreign_rollback_while_we_have_it_open() {
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"] {
        let mut bench = with_free_pages(mode);
        let foreign = open_plain(&bench.path);
        for _ in 0..3 {
            let spilled = fill(900, 600);
            foreign
                .execute_batch(&format!("PRAGMA cache_size=10; BEGIN; {spilled}; ROLLBACK"))
                .unwrap();
            bench.run("INSERT INTO t(b) VALUES('ours')", 2);
            assert_eq!([FLAG_REBASE, 0], [0, 1].map(|n| bench.newest(2)[n].flags));
            foreign.execute_batch("SELECT count(*) FROM t").unwrap();
            bench.run("INSERT INTO t(b) VALUES('and on')", 1);
        }
    }
}

fn with_free_pages(mode: &str) -> Bench {
    let mut bench = Bench::with_table(&format!(
        "PRAGMA page_size=1024; PRAGMA journal_mode={mode}"
    ));
    bench.run(&fill(300, 600), 1);
    bench.run("DELETE FROM t WHERE a>40", 1);
    bench
}

/// A foreigner and we in turn within one process, each with a connection that stays open.
#[test]
fn a_foreign_connection_that_stays() {
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "WAL"] {
        let mut bench = Bench::with_table(&format!("PRAGMA journal_mode={mode}"));
        let foreign = open_plain(&bench.path);
        for n in 0..20 {
            foreign
                .execute_batch("INSERT INTO t(b) VALUES(hex(randomblob(400)))")
                .unwrap();
            if n % 5 == 4 {
                bench.reopen("");
            }
            bench.execute("DELETE FROM t WHERE a%4=0; INSERT INTO t(b) VALUES('ours')");
            bench.oracle.check(mode);
        }
    }
}

/// Writes, then closes when told to.
#[test]
fn child_closes_when_told() {
    let Some(path) = child_argument("CLOSING_DB") else {
        return;
    };
    let connection = open(Path::new(&path), "");
    connection
        .execute_batch("INSERT INTO t(b) VALUES('child')")
        .unwrap();
    println!("\nwritten");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    let start = Instant::now();
    drop(connection);
    println!("\nclosed in {} ms", start.elapsed().as_millis());
}

/// A close waits for nobody's transaction.
#[test]
fn closing_beside_a_long_transaction() {
    for mode in ["DELETE", "WAL"] {
        let mut bench = Bench::with_table(&format!("PRAGMA journal_mode={mode}"));
        let path = bench.path.to_str().unwrap().to_owned();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "processes::child_closes_when_told",
                "--nocapture",
            ])
            .env("CLOSING_DB", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "written"));
        bench.execute("BEGIN IMMEDIATE; INSERT INTO t(b) VALUES('long')");
        writeln!(child.stdin.take().unwrap(), "close").unwrap();
        let said: Vec<String> = lines.map(Result::unwrap).collect();
        let said = said.iter().find(|line| line.starts_with("closed in "));
        let ms: u64 = said.unwrap().split(' ').nth(2).unwrap().parse().unwrap();
        assert!(ms < 2000, "{mode}: {ms} ms");
        child.wait().unwrap();
        bench.execute("COMMIT");
        bench.oracle.check(mode);
        bench.nothing_was_compared();
    }
}
