//! Functions and tables of the loaded library on a replicated database. What needs no replicated database is tested in
//! `src/sql/tests.rs`.

#![allow(unsafe_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use rusqlite::Connection;

/// The library that cargo built beside this test.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let name = format!(
        "{}mycelite{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    );
    test.parent().unwrap().join(name)
}

fn load(connection: &Connection) {
    // SAFETY: our own library; the guard of loading is not needed beyond this call.
    unsafe {
        connection.load_extension_enable().unwrap();
        connection.load_extension(library(), None::<&str>).unwrap();
    }
    connection.load_extension_disable().unwrap();
}

/// What `.load` and `.open` do in the shell.
fn open(path: &Path) -> Connection {
    load(&Connection::open_in_memory().unwrap());
    let connection = Connection::open(path).unwrap();
    load(&connection);
    connection
}

fn text(connection: &Connection, sql: &str) -> String {
    connection
        .query_row(sql, [], |row| row.get::<_, Option<String>>(0))
        .unwrap()
        .unwrap_or_else(|| "NULL".into())
}

fn error(connection: &Connection, sql: &str) -> String {
    match connection.execute_batch(sql) {
        Ok(()) => panic!("no error: {sql}"),
        Err(error) => error.to_string(),
    }
}

fn setting(connection: &Connection, key: &str) -> [String; 3] {
    let sql = "SELECT value, source, ifnull(stored, 'NULL') FROM mycelite_config WHERE key = ?";
    connection
        .query_row(sql, [key], |row| {
            Ok([row.get(0)?, row.get(1)?, row.get(2)?])
        })
        .unwrap()
}

#[test]
fn functions_follow_the_commits() {
    let dir = tempfile::tempdir().unwrap();
    let connection = open(&dir.path().join("a.db"));
    assert_eq!(
        "0",
        text(&connection, "SELECT CAST(mycelite_txid() AS TEXT)")
    );
    assert_eq!(
        "0000000000000000",
        text(&connection, "SELECT mycelite_checksum()")
    );
    connection
        .execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1)")
        .unwrap();
    assert_eq!(
        "2",
        text(&connection, "SELECT CAST(mycelite_txid() AS TEXT)")
    );
    assert_eq!(
        "2",
        text(&connection, "SELECT CAST(mycelite_txid('main') AS TEXT)")
    );
    assert_eq!(
        text(&connection, "SELECT mycelite_pos()"),
        text(
            &connection,
            "SELECT mycelite_status() ->> '$.pos.timeline' || '/' || mycelite_txid() || '/' || mycelite_checksum()"
        )
    );
    assert_eq!(
        "a.db",
        text(
            &connection,
            "SELECT substr(mycelite_status() ->> '$.database', -4)"
        )
    );
    assert_eq!(
        "1,2",
        text(&connection, "SELECT group_concat(txid) FROM mycelite_log")
    );
    assert_eq!(
        "1",
        text(
            &connection,
            "SELECT count(*) || '' FROM mycelite_log WHERE txid = mycelite_txid() AND checksum = mycelite_checksum()"
        )
    );
}

#[test]
fn an_attached_database_is_asked_by_its_schema() {
    let dir = tempfile::tempdir().unwrap();
    let connection = open(&dir.path().join("a.db"));
    let other = dir.path().join("b.db");
    connection
        .execute("ATTACH ? AS other", [other.to_str().unwrap()])
        .unwrap();
    connection
        .execute_batch("CREATE TABLE other.t(x); INSERT INTO other.t VALUES (1), (2)")
        .unwrap();
    assert_eq!(
        "0",
        text(&connection, "SELECT CAST(mycelite_txid() AS TEXT)")
    );
    assert_eq!(
        "2",
        text(&connection, "SELECT CAST(mycelite_txid('other') AS TEXT)")
    );
    assert_eq!(
        "0",
        text(
            &connection,
            "SELECT count(*) || '' FROM mycelite_replicas('other')"
        )
    );
    connection
        .execute_batch("ATTACH ':memory:' AS memory")
        .unwrap();
    assert!(error(&connection, "SELECT mycelite_txid('memory')").contains("is in memory"));
}

#[test]
fn settings_are_shown_stored_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let connection = open(&path);
    assert_eq!(
        ["normal", "default", "NULL"],
        setting(&connection, "log_sync")
    );
    assert_eq!(
        "2",
        text(
            &connection,
            "SELECT count(*) || '' FROM pragma_table_info('mycelite_config')"
        )
    );

    let run = |sql: &str| connection.execute_batch(sql).unwrap();
    run("INSERT INTO mycelite_config VALUES ('log_sync', 'off')");
    assert_eq!(["off", "stored", "off"], setting(&connection, "log_sync"));
    run(
        "INSERT INTO mycelite_config(key, value) VALUES ('log_sync', 'full'), ('close_flush_ms', 7)",
    );
    assert_eq!(["full", "stored", "full"], setting(&connection, "log_sync"));
    assert_eq!(["7", "stored", "7"], setting(&connection, "close_flush_ms"));
    run("UPDATE mycelite_config SET value = 'off' WHERE key = 'log_sync'");
    assert_eq!(["off", "stored", "off"], setting(&connection, "log_sync"));

    let file = dir.path().join("a.db-mycelite/config.toml");
    assert!(std::fs::read_to_string(&file).unwrap().contains("log_sync"));
    run("DELETE FROM mycelite_config WHERE key = 'log_sync'");
    assert_eq!(
        ["normal", "default", "NULL"],
        setting(&connection, "log_sync")
    );
    run("DELETE FROM mycelite_config");
    assert_eq!(
        ["500", "default", "NULL"],
        setting(&connection, "close_flush_ms")
    );
}

#[test]
fn a_wrong_setting_is_an_error_that_says_what_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let connection = open(&path);
    for (sql, expected) in [
        (
            "INSERT INTO mycelite_config VALUES ('replika', 'http://h/x')",
            "did you mean replica?",
        ),
        (
            "INSERT INTO mycelite_config VALUES ('log_sync', 'sometimes')",
            "normal",
        ),
        (
            "INSERT INTO mycelite_config VALUES ('token', 'secret')",
            "MYCELITE_TOKEN",
        ),
        (
            "INSERT INTO mycelite_config VALUES ('log_sync', NULL)",
            "the value is NULL",
        ),
        (
            "INSERT INTO mycelite_config VALUES (NULL, 'x')",
            "the key must be text",
        ),
        (
            "INSERT INTO mycelite_config VALUES (1, 'x')",
            "the key must be text",
        ),
        (
            "INSERT INTO mycelite_config VALUES ('log_sync', x'00')",
            "not a blob",
        ),
        (
            "INSERT INTO mycelite_config VALUES ('100%s%n', '%d')",
            "100%s%n",
        ),
        (
            "INSERT INTO mycelite_config(rowid, key, value) VALUES (3, 'log_sync', 'off')",
            "no rowid to choose",
        ),
        (
            "INSERT INTO mycelite_config(key, value, source) VALUES ('log_sync', 'off', 'URI')",
            "only key and value",
        ),
        (
            "UPDATE mycelite_config SET key = 'replica' WHERE key = 'log_sync'",
            "only the value",
        ),
        (
            "UPDATE mycelite_config SET source = 'URI'",
            "only the value",
        ),
        (
            "UPDATE mycelite_config SET rowid = 99 WHERE key = 'log_sync'",
            "no rowid to choose",
        ),
        (
            "UPDATE mycelite_config SET value = 'never' WHERE key = 'log_sync'",
            "never",
        ),
        (
            "UPDATE mycelite_config SET value = NULL WHERE key = 'log_sync'",
            "the value is NULL",
        ),
    ] {
        let error = error(&connection, sql);
        assert!(error.contains(expected), "{sql}: {error}");
        assert_eq!(
            ["normal", "default", "NULL"],
            setting(&connection, "log_sync"),
            "{sql}"
        );
    }
}

#[test]
fn a_setting_that_cannot_be_lived_by_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let connection = open(&dir.path().join("a.db"));
    connection
        .execute_batch("INSERT INTO mycelite_config VALUES ('replica', 'http://127.0.0.1:9/a')")
        .unwrap();
    let refused = connection
        .execute("INSERT INTO mycelite_config VALUES ('ack', 2)", [])
        .unwrap_err();
    assert!(refused.to_string().contains("replica"), "{refused}");
    assert_eq!(["0", "default", "NULL"], setting(&connection, "ack"));
    assert_eq!(
        "http://127.0.0.1:9/a",
        text(&connection, "SELECT url FROM mycelite_replicas")
    );
}

#[test]
fn settings_write_nothing_into_the_database() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let connection = open(&path);
    connection.execute_batch("CREATE TABLE t(x)").unwrap();
    let before = std::fs::read(&path).unwrap();
    connection
        .execute_batch(
            "INSERT INTO mycelite_config VALUES ('log_sync', 'off');
             SELECT * FROM mycelite_config;
             DELETE FROM mycelite_config",
        )
        .unwrap();
    assert_eq!(
        "1",
        text(&connection, "SELECT CAST(mycelite_txid() AS TEXT)")
    );
    assert_eq!(
        "t",
        text(&connection, "SELECT group_concat(name) FROM sqlite_schema")
    );
    assert_eq!(before, std::fs::read(&path).unwrap());
}

#[test]
fn loading_again_while_rows_are_read_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let connection = open(&dir.path().join("a.db"));
    connection
        .execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)")
        .unwrap();
    let mut statement = connection
        .prepare("SELECT l.txid, c.key FROM mycelite_log AS l, mycelite_config AS c")
        .unwrap();
    let mut rows = statement.query([]).unwrap();
    let mut count = 0;
    while let Some(row) = rows.next().unwrap() {
        assert!(row.get::<_, i64>(0).unwrap() > 0);
        if count % 5 == 0 {
            load(&connection);
        }
        count += 1;
    }
    assert_eq!(0, count % 3, "three records by so many settings");
    assert_eq!(
        "3",
        text(&connection, "SELECT count(*) || '' FROM mycelite_log")
    );
}
