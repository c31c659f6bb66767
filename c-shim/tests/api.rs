//! The routine table, and connections made through it.

#![allow(unsafe_code, clippy::unwrap_used)]

mod common;

use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::Ordering;

use c_shim::{Api, Code, Connection, InitError, OpenFlags, VERSION_MIN, Vfs};
use common::{LOGGED, Peer, READ_WRITE, TABLE, api, connect};
use libsqlite3_sys as sys;

#[test]
fn serve_as_peer() {
    common::serve_as_peer_body();
}

extern "C" fn version_3_30() -> c_int {
    3_030_001
}

extern "C" fn version_3_40() -> c_int {
    3_040_001
}

#[test]
fn hosts_that_cannot_be_served_are_refused_with_a_reason() {
    let api = api();
    assert!(api.libversion_number() >= VERSION_MIN);
    assert!(api.threadsafe());
    // SAFETY: null is allowed; the other two are tables in which every member answers as libversion_number does, and
    // no other is called.
    unsafe {
        assert_eq!(Some(InitError::NoTable), Api::init(null_mut()).err());
        let mut old = [version_3_30 as extern "C" fn() -> c_int; 400];
        let refusal = Api::init(old.as_mut_ptr().cast::<c_void>()).err().unwrap();
        assert_eq!(InitError::TooOld(3_030_001), refusal);
        assert_eq!(
            "SQLite 3.30.1 is too old: 3.31.0 or later is needed",
            refusal.to_string()
        );
        let mut other = [version_3_40 as extern "C" fn() -> c_int; 400];
        assert_eq!(
            Some(InitError::OtherHost),
            Api::init(other.as_mut_ptr().cast::<c_void>()).err()
        );
    }
    assert_eq!(
        api.libversion_number(),
        Api::get().unwrap().libversion_number()
    );
}

#[test]
fn text_is_never_a_format() {
    api().log(Code::NOTICE.0, "100 %s %n\0 sure");
    assert!(
        LOGGED
            .lock()
            .unwrap()
            .contains(&(Code::NOTICE.0, "100 %s %n sure".to_owned()))
    );
    let mut message: *mut c_char = null_mut();
    // SAFETY: the place is ours; SQLite's memory is freed once.
    unsafe {
        api().set_error_message(null_mut(), "nowhere to put it");
        api().set_error_message(&raw mut message, "50 % full");
        assert_eq!(c"50 % full", std::ffi::CStr::from_ptr(message));
        api().free(message.cast());
        message = null_mut();
        Api::explain(null_mut(), &raw mut message, "no table to say it with");
        assert!(message.is_null());
        let table = TABLE.load(Ordering::Relaxed);
        Api::explain(table, null_mut(), "nowhere to put it");
        Api::explain(table, &raw mut message, "100 % too old");
        assert_eq!(c"100 % too old", std::ffi::CStr::from_ptr(message));
        api().free(message.cast());
    }
}

#[test]
fn uri_parameters_are_found_by_the_database_name_and_by_its_companions() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let uri = CString::new(format!(
        "file:{}?vfs=unix&replica=http%3A%2F%2Fh%2Fx&empty=",
        path.display()
    ))
    .unwrap();
    let mut db = null_mut();
    // SAFETY: a connection of the bundled SQLite, closed at the end; names are used while it is open.
    unsafe {
        let flags = READ_WRITE.0 | sys::SQLITE_OPEN_URI;
        assert_eq!(
            sys::SQLITE_OK,
            sys::sqlite3_open_v2(uri.as_ptr(), &raw mut db, flags, std::ptr::null())
        );
        let name = sys::sqlite3_db_filename(db, c"main".as_ptr());
        let companions = [
            name,
            sys::sqlite3_filename_journal(name),
            sys::sqlite3_filename_wal(name),
        ];
        for name in companions {
            assert_eq!(
                Some("http://h/x".to_owned()),
                api().uri_parameter(name, c"replica")
            );
            assert_eq!(Some(String::new()), api().uri_parameter(name, c"empty"));
            assert_eq!(None, api().uri_parameter(name, c"absent"));
            assert_eq!(
                ["vfs", "replica", "empty"].map(str::to_owned).to_vec(),
                api().uri_keys(name)
            );
        }
        assert_eq!(None, api().uri_parameter(std::ptr::null(), c"x"));
        assert!(api().uri_keys(std::ptr::null()).is_empty());

        let attach = c"ATTACH ':memory:' AS memory";
        assert_eq!(
            sys::SQLITE_OK,
            sys::sqlite3_exec(db, attach.as_ptr(), None, null_mut(), null_mut())
        );
        let real = std::fs::canonicalize(dir.path()).unwrap().join("a.db");
        assert_eq!(
            Some(real.display().to_string()),
            api().db_filename(db, "main")
        );
        assert_eq!(None, api().db_filename(db, "nosuch"));
        assert_eq!(Some(String::new()), api().db_filename(db, "memory"));
        sys::sqlite3_close(db);
    }
}

#[test]
fn the_platform_vfs_is_never_ours_even_if_ours_is_the_default() {
    let platform = Vfs::find(api(), None).unwrap();
    // SAFETY: a copy of a complete VFS under another name, alive for the rest of the process.
    unsafe {
        let mut ours = Box::new(std::ptr::read(platform.as_ptr()));
        ours.zName = c"mycelite_test".as_ptr();
        let ours = Box::into_raw(ours);
        assert_eq!(sys::SQLITE_OK, api().vfs_register(ours, true));
        assert_eq!(
            Some(ours),
            api().vfs_find(None).map(std::ptr::NonNull::as_ptr)
        );
        assert_eq!(platform.as_ptr(), Vfs::find(api(), None).unwrap().as_ptr());
        assert_eq!(
            c"mycelite_test",
            Vfs::find(api(), Some(c"mycelite_test")).unwrap().name()
        );
        assert_eq!(sys::SQLITE_OK, api().vfs_register(platform.as_ptr(), true));
    }
}

#[test]
fn a_connection_reads_values_and_reports_errors() {
    let dir = tempfile::tempdir().unwrap();
    let connection = connect(&dir.path().join("file:odd?name=1 %.db"));
    connection
        .exec("CREATE TABLE t(x); INSERT INTO t VALUES('a'), (NULL)")
        .unwrap();
    assert_eq!(
        Some(2),
        connection.query_i64("SELECT count(*) FROM t").unwrap()
    );
    assert_eq!(
        Some("a".to_owned()),
        connection.query_text("SELECT x FROM t").unwrap()
    );
    assert_eq!(None, connection.query_text("SELECT NULL").unwrap());
    assert_eq!(
        None,
        connection.query_i64("SELECT x FROM t WHERE 0").unwrap()
    );
    assert_eq!(None, connection.query_i64("-- nothing").unwrap());
    assert_eq!(
        Some("a\0b".to_owned()),
        connection
            .query_text("SELECT 'a' || char(0) || 'b'")
            .unwrap()
    );
    let error = connection.exec("SELECT * FROM nosuch").unwrap_err();
    assert_eq!(Code::ERROR, error.code);
    assert!(
        error
            .to_string()
            .starts_with("no such table: nosuch [SQLITE_ERROR (1)"),
        "{error}"
    );
    connection.exec("CREATE UNIQUE INDEX i ON t(x)").unwrap();
    let error = connection
        .query_i64("INSERT INTO t VALUES('a')")
        .unwrap_err();
    assert_eq!(Code(sys::SQLITE_CONSTRAINT_UNIQUE), error.code);

    let absent = dir.path().join("absent.db");
    let error = Connection::open(api(), &absent, None, OpenFlags::READONLY, 0)
        .err()
        .unwrap();
    assert_eq!(Code::CANTOPEN, error.code.primary());
    assert!(!absent.exists());
}

#[test]
fn a_connection_recovers_the_wal_of_a_process_that_died() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let mut peer = Peer::start(&path);
    assert_eq!("wal", peer.ask("PRAGMA journal_mode=WAL"));
    assert_eq!("", peer.ask("CREATE TABLE t(x)"));
    assert_eq!("", peer.ask("INSERT INTO t VALUES(1), (2)"));
    assert_eq!("", peer.ask("BEGIN IMMEDIATE"));
    assert_eq!("", peer.ask("INSERT INTO t VALUES(3)"));
    peer.kill();
    assert!(dir.path().join("a.db-wal").exists());

    let connection = Connection::open(api(), &path, None, READ_WRITE, 1000).unwrap();
    assert_eq!(
        Some(2),
        connection.query_i64("SELECT count(*) FROM t").unwrap()
    );
    assert_eq!(
        Some(0),
        connection
            .query_i64("PRAGMA wal_checkpoint(TRUNCATE)")
            .unwrap()
    );
    assert_eq!(
        0,
        std::fs::metadata(dir.path().join("a.db-wal"))
            .unwrap()
            .len()
    );
    drop(connection);
    assert!(
        !dir.path().join("a.db-wal").exists(),
        "the last to leave deletes it"
    );
}
