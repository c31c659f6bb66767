//! P3: whatever happens to the log, the application commits; when the cause is gone, the log repairs itself.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]

mod common;

use common::{Oracle, log_dir, open, open_plain, try_open};
use rusqlite::config::DbConfig;
use std::path::Path;
use std::time::{Duration, Instant};

/// Commits until the log is whole again; capture rests for a while after a failure.
fn commit_until_recorded(connection: &rusqlite::Connection, path: &Path, oracle: &mut Oracle) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        connection
            .execute_batch("INSERT INTO t VALUES('again')")
            .unwrap();
        if oracle.advance() > 0 {
            oracle.check("repaired");
            break;
        }
        assert!(
            Instant::now() < deadline,
            "the log of {} was not repaired",
            path.display()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_log_directory_cannot_be_made() {
    for mode in ["DELETE", "WAL"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        std::fs::write(log_dir(&path), "a file is in the way").unwrap();
        let connection = open(&path, "");
        connection
            .execute_batch(&format!(
                "PRAGMA journal_mode={mode}; CREATE TABLE t(a); INSERT INTO t VALUES('unrecorded')"
            ))
            .unwrap();
        let database = mycelite::database::find(path.to_str().unwrap()).unwrap();
        let status = database.status();
        assert_eq!(status.state, "degraded");
        assert!(
            status.last_error.contains("app.db-mycelite"),
            "{}",
            status.last_error
        );
        std::fs::remove_file(log_dir(&path)).unwrap();
        let mut oracle = Oracle::new(&path);
        commit_until_recorded(&connection, &path, &mut oracle);
        assert_eq!(database.status().state, "ok");
    }
}

#[test]
fn the_log_directory_is_deleted_under_us() {
    for mode in ["DELETE", "WAL"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let connection = open(&path, "");
        connection
            .execute_batch(&format!("PRAGMA journal_mode={mode}; CREATE TABLE t(a)"))
            .unwrap();
        std::fs::remove_dir_all(log_dir(&path)).unwrap();
        let mut oracle = Oracle::new(&path);
        commit_until_recorded(&connection, &path, &mut oracle);
        connection
            .execute_batch("INSERT INTO t VALUES('and on')")
            .unwrap();
        assert_eq!(oracle.check("and on"), 1);
    }
}

#[test]
fn a_flipped_bit_stops_no_commit_and_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let connection = open(&path, "");
    connection
        .execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        .unwrap();
    drop(connection);
    let segment = log_dir(&path).join("00000000000000000001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let connection = open(&path, "");
    connection.execute_batch("INSERT INTO t VALUES(2)").unwrap();
    let storage = std::sync::Arc::new(mycelite_journal::FileStorage::new(log_dir(&path)));
    let mut reader = mycelite_journal::Reader::open(storage).unwrap();
    let error = reader.next().unwrap_err().to_string();
    assert!(error.contains("00000000000000000001.seg"), "{error}");
}

#[test]
fn wrong_settings_refuse_the_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    for parameters in [
        "&replca=http://127.0.0.1:1/x",
        "&replica=ftp://x/y",
        "&close_flush_ms=soon",
        "&replica=http://127.0.0.1:1",
    ] {
        let refused = try_open(&path, parameters);
        assert!(refused.is_err(), "{parameters}");
        assert!(!path.exists(), "{parameters} left a file behind");
    }
    open(&path, "&cache=private&mode=rwc&strict=0&own=1");
}

#[test]
fn what_is_no_database_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text.db");
    std::fs::write(&path, "this is no database, and it is long enough to be read as a header of one hundred bytes, surely").unwrap();
    let connection = open(&path, "");
    assert!(connection.execute_batch("CREATE TABLE t(a)").is_err());
    assert!(
        std::fs::read_to_string(&path)
            .unwrap()
            .starts_with("this is no database")
    );
}

#[test]
fn a_damaged_database_that_is_reset_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let mut oracle = Oracle::new(&path);
    open(&path, "")
        .execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(zeroblob(9000))")
        .unwrap();
    oracle.check("before");
    // The header is gone, and with it what SQLite would call a database.
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..20].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    let connection = open(&path, "");
    let reset = DbConfig::SQLITE_DBCONFIG_RESET_DATABASE;
    connection.set_db_config(reset, true).unwrap();
    connection.execute_batch("VACUUM").unwrap();
    connection.set_db_config(reset, false).unwrap();
    oracle.check("reset");
    connection.execute_batch("CREATE TABLE u(a)").unwrap();
    oracle.check("after");
    oracle.finish();
}

#[test]
fn a_read_only_database_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    open_plain(&path)
        .execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        .unwrap();
    for parameters in ["&mode=ro", "&immutable=1"] {
        let connection = open(&path, parameters);
        let rows: i64 = connection
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap();
        assert_eq!(rows, 1);
    }
    assert!(!log_dir(&path).exists());
}

#[cfg(unix)]
#[test]
fn the_log_is_as_private_as_the_database() {
    use std::os::unix::fs::PermissionsExt;
    for (file, directory) in [(0o600, 0o700), (0o640, 0o750), (0o644, 0o755)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(file)).unwrap();
        let connection = open(&path, "");
        connection.execute_batch("CREATE TABLE t(a)").unwrap();
        let mode = std::fs::metadata(log_dir(&path))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, directory, "{file:o}");
    }
}

/// A process that may not have the memory in which old pages are kept.
#[cfg(target_os = "linux")]
#[test]
fn a_transaction_for_whose_old_pages_there_is_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let arguments = [("SCARCE_DB", path.to_str().unwrap())];
    let child = common::spawn_child("writer_without_memory", &arguments);
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[cfg(target_os = "linux")]
#[test]
fn writer_without_memory() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Some(path) = common::child_argument("SCARCE_DB") else {
        return;
    };
    let path = Path::new(&path);
    let connection = open(path, "");
    connection
        .execute_batch(
            "CREATE TABLE t(a);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<2000) INSERT INTO t SELECT hex(zeroblob(400)) FROM n",
        )
        .unwrap();
    let mut oracle = Oracle::new(path);
    oracle.check("before");
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let data = status.lines().find_map(|line| line.strip_prefix("VmData:"));
    let kib: u64 = data
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_DATA).unwrap();
    // Enough for all else, and for less than a half of those pages' place.
    setrlimit(Resource::RLIMIT_DATA, (kib << 10) + (16 << 20), hard).unwrap();
    let done = connection.execute_batch("UPDATE t SET a = 'new' || a");
    setrlimit(Resource::RLIMIT_DATA, hard, hard).unwrap();
    done.unwrap();
    assert_eq!(oracle.advance(), 0, "it went by");
    commit_until_recorded(&connection, path, &mut oracle);
}
