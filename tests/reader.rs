//! P10: any recorded transaction is open to SQL at once, read-only, several at the same time, and the head is followed.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]

mod common;

use common::{Random, image_of, log_dir, open, open_plain};
use mycelite_journal::{FileStorage, Log, RawLimits, Reader, Txid};
use rusqlite::{Connection, MAIN_DB, OpenFlags};
use std::path::Path;
use std::sync::Arc;

/// Opens the past: `parameters` are those of the URI, as in `&txid=7`.
fn past(path: &Path, parameters: &str) -> rusqlite::Result<Connection> {
    common::load();
    let uri = format!("file:{}?vfs=mycelite_reader{parameters}", path.display());
    Connection::open_with_flags(
        uri,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI,
    )
}

fn number(connection: &Connection, sql: &str) -> i64 {
    connection
        .query_row(sql, [], |row| row.get(0))
        .unwrap_or_else(|e| panic!("{sql}: {e}"))
}

/// A history with growth, shrinking, rollbacks and changes of the journal mode and the page size; the image after each
/// transaction.
fn history(path: &Path, mode: &str, seed: u64) -> Vec<Vec<u8>> {
    let mut random = Random(seed);
    let ours = open(path, "");
    let mut images = Vec::new();
    let mut run = |sql: &str| {
        ours.execute_batch(sql)
            .unwrap_or_else(|e| panic!("{sql}: {e}"));
        let txid = number(&ours, "SELECT mycelite_txid()") as usize;
        assert!(txid <= images.len() + 1, "{sql}");
        if txid > images.len() {
            images.push(image_of(path));
        }
    };
    run("PRAGMA page_size=1024; PRAGMA auto_vacuum=2");
    run(&format!("PRAGMA journal_mode={mode}"));
    run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    run("CREATE INDEX i ON t(b)");
    for step in 0..60 {
        let k = random.below(7);
        match random.below(9) {
            0 => run(&format!("DELETE FROM t WHERE a%7={k}")),
            1 => run(&format!("UPDATE t SET b=randomblob(90) WHERE a%7={k}")),
            2 => run("PRAGMA incremental_vacuum(3)"),
            3 if step % 4 == 0 => run("VACUUM"),
            4 => run("BEGIN; INSERT INTO t(b) VALUES(randomblob(5000)); ROLLBACK"),
            5 if step == 30 || step == 45 => {
                run("PRAGMA journal_mode=DELETE");
                run(&format!("PRAGMA page_size={}", 512 << k));
                run("VACUUM");
                run(&format!("PRAGMA journal_mode={mode}"));
            }
            _ => run(&format!(
                "INSERT INTO t(b) VALUES(randomblob({})), ('{step}')",
                random.below(4000)
            )),
        }
    }
    images
}

#[test]
fn every_transaction_byte_for_byte() {
    for (mode, seed) in [("WAL", 1), ("WAL", 2), ("DELETE", 3), ("MEMORY", 4)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let images = history(&path, mode, seed);
        let elsewhere = dir.path().join("copied away");
        std::fs::create_dir(&elsewhere).unwrap();
        for entry in std::fs::read_dir(log_dir(&path)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), elsewhere.join(entry.file_name())).unwrap();
        }
        for source in [&path, &log_dir(&path), &elsewhere] {
            for (n, image) in images.iter().enumerate() {
                let what = format!("{mode}, {}, transaction {}", source.display(), n + 1);
                let mut past = past(source, &format!("&txid={}", n + 1))
                    .unwrap_or_else(|e| panic!("{what}: {e}"));
                let read = past.serialize(MAIN_DB).unwrap();
                assert!(read[..] == image[..], "{what}");
            }
        }
    }
}

#[test]
fn several_moments_and_the_live_database_in_one_query() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = open(&path, "");
    ours.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        .unwrap();
    let first = number(&ours, "SELECT mycelite_txid()");
    for n in 1..=5 {
        ours.execute_batch(&format!("INSERT INTO t VALUES({n}, 'row {n}')"))
            .unwrap();
    }
    for n in 1..=5 {
        ours.execute_batch(&format!(
            "ATTACH 'file:{}?vfs=mycelite_reader&txid={}' AS m{n}",
            path.display(),
            first + n
        ))
        .unwrap();
    }
    let counts: Vec<i64> = (1..=5)
        .map(|n| number(&ours, &format!("SELECT count(*) FROM m{n}.t")))
        .collect();
    assert_eq!(counts, [1, 2, 3, 4, 5]);
    let sql = "SELECT count(*) FROM main.t JOIN m5.t USING(a) JOIN m4.t USING(a) JOIN m3.t USING(a) JOIN m2.t USING(a)";
    assert_eq!(number(&ours, sql), 2);
    // The live database goes on meanwhile, the moments do not.
    ours.execute_batch("DELETE FROM main.t").unwrap();
    assert_eq!(number(&ours, "SELECT count(*) FROM m5.t"), 5);
}

#[test]
fn the_past_is_read_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = open(&path, "");
    ours.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        .unwrap();
    for parameters in ["&txid=2", ""] {
        let past = past(&path, parameters).unwrap();
        for sql in [
            "INSERT INTO t VALUES(2)",
            "CREATE TABLE u(a)",
            "VACUUM",
            "PRAGMA user_version=3",
        ] {
            let error = past.execute_batch(sql).unwrap_err();
            assert_eq!(
                error.sqlite_error_code(),
                Some(rusqlite::ErrorCode::ReadOnly),
                "{sql}: {error}"
            );
        }
        // Its own temporary tables are nobody's past.
        past.execute_batch("CREATE TEMP TABLE x AS SELECT * FROM t; SELECT * FROM x")
            .unwrap();
        let copy = dir.path().join(format!("copy{}.db", parameters.len()));
        past.execute_batch(&format!("VACUUM INTO 'file:{}?vfs=unix'", copy.display()))
            .unwrap();
        assert_eq!(number(&open_plain(&copy), "SELECT count(*) FROM t"), 1);
    }
    assert_eq!(number(&ours, "SELECT count(*) FROM t"), 1);
}

#[test]
fn each_read_transaction_sees_the_head_of_its_time() {
    for mode in ["WAL", "DELETE"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let ours = open(&path, "");
        ours.execute_batch(&format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b)"
        ))
        .unwrap();
        let head = past(&path, "").unwrap();
        for n in 1..=50 {
            ours.execute_batch(&format!("INSERT INTO t VALUES({n}, randomblob(600))"))
                .unwrap();
            assert_eq!(number(&head, "SELECT count(*) FROM t"), n, "{mode}");
            if n == 25 {
                head.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
                ours.execute_batch(
                    "CREATE TABLE u(x); DELETE FROM t WHERE a=1; INSERT INTO t VALUES(1, 2)",
                )
                .unwrap();
                assert_eq!(number(&head, "SELECT count(*) FROM t"), 25);
                assert_eq!(number(&head, "SELECT count(*) FROM sqlite_schema"), 1);
                head.execute_batch("COMMIT").unwrap();
                assert_eq!(number(&head, "SELECT count(*) FROM sqlite_schema"), 2);
            }
        }
        let check: String = head
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .unwrap();
        assert_eq!(check, "ok");
    }
}

/// On a replica a newer timeline may put another transaction in the place of one that was read: no cached page survives that.
#[test]
fn the_head_is_followed_onto_a_newer_timeline() {
    let dir = tempfile::tempdir().unwrap();
    let sides = ["lost", "kept"].map(|name| dir.path().join(name));
    let path = sides[0].join("app.db");
    std::fs::create_dir(&sides[0]).unwrap();
    open(&path, "")
        .execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES('common')")
        .unwrap();
    let other = sides[1].join("app.db");
    std::fs::create_dir_all(log_dir(&other)).unwrap();
    std::fs::copy(&path, &other).unwrap();
    for entry in std::fs::read_dir(log_dir(&path)).unwrap() {
        let entry = entry.unwrap();
        // Without these two it is another boot's.
        if entry.file_name() != "timeline" && entry.file_name() != "stamp" {
            std::fs::copy(entry.path(), log_dir(&other).join(entry.file_name())).unwrap();
        }
    }
    for (path, row) in [(&path, "lost"), (&other, "kept")] {
        let sql = format!("INSERT INTO t VALUES('{row}')");
        open(path, "").execute_batch(&sql).unwrap();
    }
    let head = past(&path, "").unwrap();
    let last = "SELECT a FROM t ORDER BY rowid DESC LIMIT 1";
    let read = || head.query_row(last, [], |row| row.get::<_, String>(0));
    assert_eq!(read().unwrap(), "lost");

    let kept = Arc::new(FileStorage::new(log_dir(&other)));
    let mut reader = Reader::open(kept).unwrap();
    let common = reader.find(Txid(2)).unwrap().unwrap().header.pos();
    let record = reader.find(Txid(3)).unwrap().unwrap();
    assert!(record.header.timeline > common.timeline);
    let mut log = Log::open(Arc::new(FileStorage::new(log_dir(&path)))).unwrap();
    log.truncate(common).unwrap();
    log.append_raw(&mut record.raw(), &RawLimits::default())
        .unwrap();
    assert_eq!(read().unwrap(), "kept");
}

#[test]
fn times_and_spans_name_the_last_transaction_before() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = open(&path, "");
    ours.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    ours.execute_batch("INSERT INTO t VALUES(2)").unwrap();
    let time: String = ours
        .query_row(
            "SELECT time FROM mycelite_log(?) WHERE txid=2",
            [path.to_str().unwrap()],
            |row| row.get(0),
        )
        .unwrap();
    for parameters in ["&ago=1s".to_owned(), format!("&at={time}")] {
        let past = past(&path, &parameters).unwrap();
        assert_eq!(number(&past, "SELECT count(*) FROM t"), 1, "{parameters}");
    }
    let now = past(&path, "&ago=0s").unwrap();
    assert_eq!(number(&now, "SELECT count(*) FROM t"), 2);
}

#[test]
fn what_cannot_be_opened_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = open(&path, "");
    ours.execute_batch("CREATE TABLE t(a)").unwrap();
    for parameters in [
        "&txid=2",
        "&txid=0",
        "&txid=x",
        "&at=1999-01-01",
        "&ago=5d",
        "&ago=soon",
        "&txid=1&ago=5m",
        "&tixd=1",
    ] {
        let refused = past(&path, parameters).and_then(|c| c.execute_batch("SELECT * FROM t"));
        assert_eq!(
            refused.unwrap_err().sqlite_error_code(),
            Some(rusqlite::ErrorCode::CannotOpen),
            "{parameters}"
        );
    }
    assert!(past(&dir.path().join("nothing.db"), "").is_err());
    // An image that is damaged is reported, not shown.
    drop(ours);
    let segment = std::fs::read_dir(log_dir(&path))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "seg"))
        .unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[64 + 128 + 20] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let read = past(&path, "&txid=1").and_then(|c| c.execute_batch("SELECT * FROM t"));
    assert!(read.is_err());
}
