//! Functions and tables in a connection of the bundled SQLite, as far as they need no replicated database; the rest is
//! in `tests/sql.rs`, through the loaded library.

#![allow(clippy::unwrap_used)]

use std::ffi::{c_char, c_int};
use std::path::Path;
use std::sync::Arc;

use c_shim::Api;
use mycelite_journal::{DatabaseId, Draft, FileStorage, Log, PageSize};
use rusqlite::auto_extension::register_auto_extension;
use rusqlite::{Connection, Row, ffi};

unsafe extern "C" fn entry(
    db: *mut ffi::sqlite3,
    _: *mut *mut c_char,
    table: *const ffi::sqlite3_api_routines,
) -> c_int {
    let table = table.cast_mut().cast();
    // SAFETY: SQLite's own table and the connection it is opening. Twice, since that must do no harm.
    let registered = unsafe {
        Api::init(table).is_ok()
            && super::register(db, table).is_ok()
            && super::register(db, table).is_ok()
    };
    if registered {
        ffi::SQLITE_OK
    } else {
        ffi::SQLITE_ERROR
    }
}

fn open(path: &Path) -> Connection {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: the entry opens nothing.
        unsafe { register_auto_extension(entry) }.unwrap();
    });
    Connection::open(path).unwrap()
}

fn memory() -> Connection {
    open(Path::new(":memory:"))
}

fn text(connection: &Connection, sql: &str) -> String {
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

fn error(connection: &Connection, sql: &str) -> String {
    match connection.prepare(sql).and_then(|mut statement| {
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
        Ok(())
    }) {
        Ok(()) => panic!("no error: {sql}"),
        Err(error) => error.to_string(),
    }
}

/// A log of `count` records that rewrite the one page of a database, one every second from 2026-11-20T10:00:00Z on.
fn write_log(directory: &Path, count: u8) {
    std::fs::create_dir_all(directory).unwrap();
    let storage = Arc::new(FileStorage::new(directory));
    let mut log = Log::create(storage, DatabaseId([7; 16]), 0).unwrap();
    for byte in 1..=count {
        let old = [byte - 1; 512];
        let time_us = 1_795_168_799_000_000 + u64::from(byte) * 1_000_000;
        let mut record = log.begin(Draft::new(PageSize::MIN, 1, time_us)).unwrap();
        let old = (byte > 1).then_some(&old[..]);
        record.patch(1, old, &[byte; 512]).unwrap();
        record.commit().unwrap();
    }
    log.sync().unwrap();
}

#[test]
fn the_version_is_known() {
    assert_eq!(
        env!("CARGO_PKG_VERSION"),
        text(&memory(), "SELECT mycelite_version()")
    );
}

#[test]
fn a_database_that_is_not_replicated_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let plain = open(&dir.path().join("plain.db"));
    for sql in [
        "SELECT mycelite_txid()",
        "SELECT mycelite_pos('main')",
        "SELECT mycelite_checksum()",
        "SELECT mycelite_status()",
        "SELECT * FROM mycelite_replicas",
        "SELECT * FROM mycelite_config",
        "INSERT INTO mycelite_config VALUES ('log_sync', 'off')",
    ] {
        let error = error(&plain, sql);
        assert!(
            error.contains(
                "plain.db: not replicated (open it with vfs=mycelite_writer, or .load before .open)"
            ),
            "{sql}: {error}"
        );
    }
    assert!(error(&memory(), "SELECT mycelite_txid()").contains("the database main is in memory"));
    assert!(
        error(&plain, "SELECT mycelite_txid('aux')").contains("no attached database is called aux")
    );
    let names = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(1, names, "nothing is made beside it");
}

#[test]
fn odd_arguments_are_errors() {
    let connection = memory();
    for argument in ["NULL", "1", "2.5", "x'00'", "zeroblob(0)"] {
        let error = error(&connection, &format!("SELECT mycelite_pos({argument})"));
        assert!(
            error.contains("must be the name of an attached database"),
            "{argument}: {error}"
        );
    }
    for argument in [
        "''",
        "'100%s%n'",
        "char(0)",
        "'a' || char(0)",
        "'main' || char(0)",
        "printf('%.100000c', 'x')",
    ] {
        error(&connection, &format!("SELECT mycelite_pos({argument})"));
        error(
            &connection,
            &format!("SELECT * FROM mycelite_log({argument})"),
        );
        error(
            &connection,
            &format!("SELECT * FROM mycelite_replicas({argument})"),
        );
    }
    // Text in the host's other encoding, and bytes that are no text.
    connection
        .execute_batch("PRAGMA encoding='UTF-16'")
        .unwrap();
    assert!(error(&connection, "SELECT mycelite_txid('ä€')").contains("is called ä€"));
    error(&connection, "SELECT mycelite_txid(CAST(x'ff00' AS TEXT))");
    assert!(error(&connection, "SELECT mycelite_txid(1, 2)").contains("wrong number of arguments"));
    assert!(
        error(&connection, "SELECT * FROM mycelite_log(NULL)").contains("the path must be text")
    );
    assert!(error(&connection, "SELECT * FROM mycelite_log(1, 2)").contains("too many arguments"));
}

#[test]
fn no_table_can_be_made_from_our_modules_and_no_schema_may_use_them() {
    let connection = memory();
    for name in ["mycelite_log", "mycelite_replicas", "mycelite_config"] {
        let made = error(&connection, &format!("CREATE VIRTUAL TABLE t USING {name}"));
        assert!(made.contains("no such module"), "{made}");
        connection
            .execute_batch(&format!("CREATE VIEW {name}_view AS SELECT * FROM {name}"))
            .unwrap();
        let used = error(&connection, &format!("SELECT * FROM {name}_view"));
        assert!(used.contains("unsafe use of virtual table"), "{used}");
    }
    connection
        .execute_batch(
            "CREATE TABLE t(x);
             CREATE TRIGGER steal AFTER INSERT ON t BEGIN
               INSERT INTO mycelite_config(key, value) VALUES ('replica', 'http://192.0.2.1/x');
             END",
        )
        .unwrap();
    assert!(error(&connection, "INSERT INTO t VALUES (1)").contains("unsafe use of virtual table"));
}

/// Transaction and time of the rows that `sql`, with `path` as its parameter, gives.
fn history(connection: &Connection, sql: &str, path: &Path) -> Vec<(i64, String)> {
    let row = |row: &Row<'_>| Ok((row.get("txid")?, row.get("time")?));
    let mut statement = connection.prepare(sql).unwrap();
    let rows = statement.query_map([path.to_str().unwrap()], row).unwrap();
    rows.collect::<rusqlite::Result<_>>().unwrap()
}

#[test]
fn the_log_has_a_row_for_each_record() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("a.db");
    let log = dir.path().join("a.db-mycelite");
    write_log(&log, 2);
    let connection = memory();
    let expected = vec![
        (1, "2026-11-20T10:00:00.000000Z".to_owned()),
        (2, "2026-11-20T10:00:01.000000Z".to_owned()),
    ];
    for (sql, path) in [
        ("SELECT * FROM mycelite_log(?)", &db),
        ("SELECT * FROM mycelite_log(?)", &log),
        ("SELECT * FROM mycelite_log WHERE path = ?", &db),
    ] {
        assert_eq!(expected, history(&connection, sql, path));
    }
    let (pages, db_pages, timeline, checksum, bookmark): (i64, i64, i64, String, Option<String>) = connection
        .query_row(
            "SELECT pages, db_pages, timeline, checksum, bookmark FROM mycelite_log(?) WHERE bytes > 160 LIMIT 1",
            [db.to_str().unwrap()],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)),
        )
        .unwrap();
    assert_eq!(
        (1, 1, 16, None),
        (pages, db_pages, checksum.len(), bookmark)
    );
    assert!(timeline >= 0);
}

#[test]
fn bounds_of_the_log_are_hints_and_never_change_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("a.db");
    write_log(&dir.path().join("a.db-mycelite"), 3);
    let connection = memory();
    for (clause, expected) in [
        ("WHERE txid > 1", &[2, 3][..]),
        ("WHERE txid >= 1.5", &[2, 3]),
        ("WHERE txid < 3 AND txid >= -5", &[1, 2]),
        ("WHERE txid BETWEEN 2 AND 2", &[2]),
        ("WHERE txid = 2", &[2]),
        ("WHERE txid = '2'", &[2]),
        ("WHERE txid = 2 AND txid > 2", &[]),
        ("WHERE txid IN (2, 3, 9)", &[2, 3]),
        ("WHERE txid = 2.5", &[]),
        ("WHERE txid > 3", &[]),
        ("WHERE txid > 9223372036854775807", &[]),
        ("WHERE txid < -9223372036854775807", &[]),
        ("WHERE txid = NULL", &[]),
        ("WHERE txid < 'a'", &[1, 2, 3]),
        ("ORDER BY txid", &[1, 2, 3]),
        ("ORDER BY txid DESC", &[3, 2, 1]),
        ("ORDER BY checksum, txid LIMIT 0", &[]),
    ] {
        let rows = history(
            &connection,
            &format!("SELECT * FROM mycelite_log(?) {clause}"),
            &db,
        );
        let txids: Vec<i64> = rows.iter().map(|row| row.0).collect();
        assert_eq!(expected, txids, "{clause}");
    }
}

#[test]
fn the_log_can_be_the_inner_side_of_a_join() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("a.db");
    write_log(&dir.path().join("a.db-mycelite"), 3);
    let joined: i64 = memory()
        .query_row(
            "SELECT count(*) FROM (VALUES(?1), (?1 || '-mycelite')) AS p JOIN mycelite_log(p.column1) AS l
             WHERE l.path = p.column1",
            [db.to_str().unwrap()],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(6, joined);
}

#[test]
fn without_a_path_it_is_the_main_database() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir.path().join("a.db"));
    assert!(error(&db, "SELECT * FROM mycelite_log").contains("a.db: no log here"));
    write_log(&dir.path().join("a.db-mycelite"), 2);
    assert_eq!(
        "2",
        text(&db, "SELECT CAST(max(txid) AS TEXT) FROM mycelite_log")
    );
    assert!(error(&db, "DELETE FROM mycelite_log").contains("may not be modified"));
}

#[test]
fn a_missing_or_damaged_log_is_an_error_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let connection = memory();
    let of = |path: &Path| {
        error(
            &connection,
            &format!("SELECT * FROM mycelite_log('{}')", path.display()),
        )
    };
    let percent = dir.path().join("100%s%n.db");
    assert!(
        of(&percent).contains("100%s%n.db: no log here (give the path"),
        "{}",
        of(&percent)
    );

    let log = dir.path().join("a.db-mycelite");
    write_log(&log, 3);
    let segment = log.join("00000000000000000001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    // In the first record's header; its body is not read for a row.
    bytes[100] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    let error = of(&log);
    assert!(
        error.contains("00000000000000000001.seg: damaged at byte"),
        "{error}"
    );

    std::fs::write(log.join("meta"), b"nonsense").unwrap();
    assert!(of(&log).contains("meta"), "{}", of(&log));
    // The connection is as good as before.
    assert_eq!("1", text(&connection, "SELECT '1'"));
}

#[test]
fn a_panic_becomes_an_error() {
    let caught = super::guard::<()>(|| panic!("number {}", 7)).unwrap_err();
    let line = caught.to_string();
    assert!(line.contains("a defect was caught: number 7"), "{line}");
}
