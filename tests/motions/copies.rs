//! Copying whole databases: `VACUUM INTO`, the backup API, and the shell's `.restore`, `.recover` and `.clone`.

use crate::bench::{Bench, MODES, fill, number, shell, shell_with_us};
use crate::common::{Oracle, log_dir, open, open_plain};
use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use std::path::Path;

#[test]
fn vacuum_into() {
    for mode in MODES {
        let mut bench = Bench::with_table(&format!(
            "PRAGMA page_size=1024; PRAGMA journal_mode={mode}"
        ));
        bench.run(&fill(200, 700), 1);
        bench.run("DELETE FROM t WHERE a%3=0", 1);
        // The target without us: nothing is recorded anywhere.
        let plain = bench.dir().join("plain.db");
        bench.run(
            &format!("VACUUM INTO 'file:{}?vfs=unix'", plain.display()),
            0,
        );
        assert!(!log_dir(&plain).exists());
        // The target with us has a history of its own.
        let ours = bench.dir().join("ours.db");
        bench.run(
            &format!("VACUUM INTO 'file:{}?vfs=mycelite_writer'", ours.display()),
            0,
        );
        let mut target = Oracle::new(&ours);
        assert_eq!(target.check("VACUUM INTO"), 1, "{mode}");
        let rows = bench.number("SELECT count(*) FROM t");
        assert_eq!(number(&open_plain(&plain), "SELECT count(*) FROM t"), rows);
        let connection = open(&ours, "");
        assert_eq!(number(&connection, "SELECT count(*) FROM t"), rows);
        connection.execute_batch("DELETE FROM t").unwrap();
        assert_eq!(target.check("the copy goes on"), 1);
        assert!(target.records.iter().all(|record| record.flags == 0));
        bench.nothing_was_compared();
    }
}

/// A source for the backup API.
fn source(dir: &Path, page_size: u32, rows: u32) -> Connection {
    let connection = open_plain(&dir.join(format!("source-{page_size}-{rows}.db")));
    connection
        .execute_batch(&format!(
            "PRAGMA page_size={page_size}; CREATE TABLE t(a INTEGER PRIMARY KEY, b); {}",
            fill(rows, 500)
        ))
        .unwrap();
    connection
}

#[test]
fn backup_onto_ours() {
    for mode in MODES {
        let mut bench = Bench::with_table(&format!(
            "PRAGMA page_size=4096; PRAGMA journal_mode={mode}"
        ));
        bench.run(&fill(100, 900), 1);
        for (page_size, rows, pages_per_step) in [
            (4096, 300, -1),
            (4096, 10, 3),
            (512, 50, -1),
            (65536, 100, 1),
            (1024, 200, 7),
        ] {
            let source = source(bench.dir(), page_size, rows);
            let backup = Backup::new(&source, &mut bench.connection).unwrap();
            let done = loop {
                match backup.step(pages_per_step) {
                    Ok(StepResult::More) => {}
                    Ok(StepResult::Done) => break true,
                    // In WAL mode the page size cannot change.
                    Err(error) => {
                        assert_eq!((mode, page_size == 4096), ("WAL", false), "{error}");
                        break false;
                    }
                    Ok(other) => panic!("{other:?}"),
                }
            };
            drop(backup);
            let what = format!("{mode}: {rows} rows in pages of {page_size}");
            assert_eq!(bench.oracle.check(&what), usize::from(done), "{what}");
            if done {
                assert_eq!(bench.number("SELECT count(*) FROM t"), i64::from(rows));
            }
            // The copy has brought the source's journal mode along.
            bench.execute(&format!("PRAGMA journal_mode={mode}"));
            bench.oracle.check("the mode again");
            bench.run("INSERT INTO t(b) VALUES('after')", 1);
        }
        bench.nothing_was_compared();
    }
}

/// A fresh file as the target, also of pages larger than the default, and a backup that is given up half-way.
#[test]
fn backup_onto_an_empty_file_and_a_broken_off_one() {
    for (page_size, broken_off) in [(512, false), (65536, false), (4096, true)] {
        let mut bench = Bench::new("");
        let source = source(bench.dir(), page_size, 120);
        let backup = Backup::new(&source, &mut bench.connection).unwrap();
        if broken_off {
            assert_eq!(backup.step(5).unwrap(), StepResult::More);
        } else {
            assert_eq!(backup.step(-1).unwrap(), StepResult::Done);
        }
        drop(backup);
        assert_eq!(bench.oracle.check("backup"), usize::from(!broken_off));
        bench.run("CREATE TABLE u(x); ", 1);
        bench.nothing_was_compared();
    }
}

#[test]
fn backup_from_ours_while_we_write() {
    for mode in ["DELETE", "WAL"] {
        let mut bench = Bench::with_table(&format!(
            "PRAGMA page_size=1024; PRAGMA journal_mode={mode}"
        ));
        bench.run(&fill(200, 700), 1);
        let writer = open(&bench.path, "");
        let mut copy = open_plain(&bench.dir().join("copy.db"));
        let backup = Backup::new(&bench.connection, &mut copy).unwrap();
        for n in 0.. {
            if backup.step(20).unwrap() == StepResult::Done {
                break;
            }
            if n < 5 {
                writer
                    .execute_batch("UPDATE t SET b=randomblob(600) WHERE a%5=0")
                    .unwrap();
                assert_eq!(bench.oracle.check("written meanwhile"), 1);
            }
        }
        drop(backup);
        assert_eq!(number(&copy, "SELECT count(*) FROM t"), 200);
        bench.nothing_was_compared();
    }
}

#[test]
fn restore_in_the_shell() {
    let dir = tempfile::tempdir().unwrap();
    let (app, saved) = (dir.path().join("app.db"), dir.path().join("saved.db"));
    shell(
        &saved,
        "PRAGMA page_size=2048; CREATE TABLE s(x); INSERT INTO s VALUES('saved');",
    );
    let count = shell_with_us(
        &app,
        &format!(
            "CREATE TABLE t(a); INSERT INTO t VALUES(1);\n.restore {}\nINSERT INTO s VALUES('new'); SELECT count(*) FROM s;",
            saved.display()
        ),
    );
    assert_eq!(count.trim(), "2");
    let mut oracle = Oracle::new(&app);
    assert_eq!(oracle.check(".restore"), 4);
    assert!(oracle.records.iter().all(|record| record.flags == 0));
}

#[test]
fn clone_and_recover_in_the_shell() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let rows = "CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE INDEX i ON t(b);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<500)
        INSERT INTO t(b) SELECT hex(randomblob(60)) FROM n;";
    // With the writer as the default VFS, the clone is a database of ours too.
    shell_with_us(
        &path("app.db"),
        &format!("{rows}\n.clone {}", path("clone.db").display()),
    );
    let mut source = Oracle::new(&path("app.db"));
    assert_eq!(source.check("source"), 3);
    let mut clone = Oracle::new(&path("clone.db"));
    assert!(clone.check(".clone") > 0);
    assert!(clone.records.iter().all(|record| record.flags == 0));
    assert_eq!(
        number(&open_plain(&path("clone.db")), "SELECT count(*) FROM t"),
        500
    );
    // What `.recover` saves from a damaged file is loaded through us, by one transaction.
    let damaged = path("damaged.db");
    std::fs::copy(path("app.db"), &damaged).unwrap();
    let mut bytes = std::fs::read(&damaged).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0x5a);
    std::fs::write(&damaged, bytes).unwrap();
    let saved = recover(&damaged).unwrap_or_else(|| RECOVERED.to_owned());
    shell_with_us(&path("saved.db"), &saved);
    let mut oracle = Oracle::new(&path("saved.db"));
    assert_eq!(oracle.check(".recover"), 1);
    assert!(number(&open_plain(&path("saved.db")), "SELECT count(*) FROM t") >= 2);
}

/// In the form of `.recover`, where the shell was built without it.
const RECOVERED: &str = "BEGIN;
    PRAGMA writable_schema = on;
    PRAGMA encoding = 'UTF-8';
    PRAGMA page_size = '4096';
    PRAGMA auto_vacuum = '0';
    CREATE TABLE t(a INTEGER PRIMARY KEY, b);
    CREATE INDEX i ON t(b);
    INSERT OR IGNORE INTO 't'('a', 'b') VALUES( 1, 'one' );
    INSERT OR IGNORE INTO 't'('a', 'b') VALUES( 2, 'two' );
    PRAGMA writable_schema = off;
    COMMIT;
";

/// What the shell's `.recover` prints; `None` where it was built without.
fn recover(path: &Path) -> Option<String> {
    let output = std::process::Command::new("sqlite3")
        .arg(path)
        .arg(".recover")
        .output()
        .unwrap();
    let sql = String::from_utf8(output.stdout).unwrap();
    sql.contains("COMMIT;").then_some(sql)
}
