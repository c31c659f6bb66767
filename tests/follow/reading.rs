//! Reading a replica through the reader VFS: where it is, how far behind, and waiting for one's own writes.

use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::clikit::Serve;
use crate::kit::{Follow, LONG, Writer};

fn one<T: rusqlite::types::FromSql>(connection: &Connection, sql: &str) -> T {
    connection
        .query_row(sql, [], |row| row.get(0))
        .unwrap_or_else(|e| panic!("{sql}: {e}"))
}

#[test]
fn own_writes_are_read_on_the_replica() {
    let dir = crate::common::scratch();
    crate::common::load();
    let server = Serve::start(&dir.path().join("first"), &[]);
    let mut writer = Writer::new(dir.path().join("app.db"), "WAL", &server.url("app"));
    let primary = crate::common::open(&writer.db, "");
    crate::clikit::wait_for("the server", LONG, || server.db("app").exists());
    let copy = dir.path().join("copy.db");
    let follower = Follow::start(&server.url("app"), &copy, &[]);
    crate::clikit::wait_for("the copy", LONG, || copy.exists());
    let reader = Connection::open_with_flags_and_vfs(
        &copy,
        rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE,
        c"mycelite_reader",
    )
    .unwrap();
    for n in 1..=50_i64 {
        writer.commit(40);
        let pos: String = one(&primary, "SELECT mycelite_pos()");
        let held: i64 = reader
            .query_row("SELECT mycelite_wait(?1, 20000)", [&pos], |row| row.get(0))
            .unwrap();
        assert_eq!(held, 1);
        assert_eq!(one::<i64>(&reader, "SELECT count(*) FROM t"), n);
        // In one statement the functions speak of what it reads.
        let seen: (String, i64) = reader
            .query_row(
                "SELECT mycelite_pos(), (SELECT count(*) FROM t)",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .unwrap();
        assert_eq!(seen, (pos, n));
    }
    let txid: i64 = one(&primary, "SELECT mycelite_txid()");
    assert_eq!(one::<i64>(&reader, "SELECT mycelite_txid()"), txid);
    assert_eq!(
        one::<String>(&reader, "SELECT mycelite_checksum()"),
        one::<String>(&primary, "SELECT mycelite_checksum()")
    );
    assert_eq!(
        one::<i64>(&reader, &format!("SELECT mycelite_wait({txid}, 0)")),
        1
    );
    // What does not come is not waited for any longer.
    let begin = Instant::now();
    assert_eq!(
        one::<i64>(&reader, &format!("SELECT mycelite_wait({}, 200)", txid + 1)),
        0
    );
    assert!(begin.elapsed() >= Duration::from_millis(200));
    for wrong in [
        "SELECT mycelite_wait('somewhere', 10)",
        "SELECT mycelite_wait(1, -1)",
        "SELECT mycelite_wait('1/2/00000000000000ff', 10)",
        "SELECT mycelite_wait(NULL, 10)",
    ] {
        assert!(reader.query_row(wrong, [], |_| Ok(())).is_err(), "{wrong}");
    }
    let read_only = reader
        .execute_batch("INSERT INTO t VALUES(-1, 0, 0)")
        .unwrap_err();
    assert_eq!(
        read_only.sqlite_error_code(),
        Some(rusqlite::ErrorCode::ReadOnly)
    );
    // A transaction stands still while others are recorded.
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM t")
        .unwrap();
    let before: i64 = one(&reader, "SELECT count(*) FROM t");
    writer.commit(40);
    let pos: String = one(&primary, "SELECT mycelite_pos()");
    let held: i64 = reader
        .query_row("SELECT mycelite_wait(?1, 20000)", [&pos], |row| row.get(0))
        .unwrap();
    assert_eq!(
        (held, one::<i64>(&reader, "SELECT count(*) FROM t")),
        (1, before)
    );
    assert_eq!(one::<i64>(&reader, "SELECT mycelite_txid()"), txid);
    reader.execute_batch("COMMIT").unwrap();
    assert_eq!(one::<i64>(&reader, "SELECT count(*) FROM t"), before + 1);

    let lag = |reader: &Connection| -> serde_json::Value {
        serde_json::from_str(&one::<String>(reader, "SELECT mycelite_lag()")).unwrap()
    };
    crate::clikit::wait_for("no lag", LONG, || lag(&reader)["txids"] == 0);
    let status: serde_json::Value =
        serde_json::from_str(&one::<String>(&reader, "SELECT mycelite_status()")).unwrap();
    assert_eq!(status["follows_head"], true);
    assert_eq!(status["pos"]["txid"].as_i64(), Some(txid + 1));
    assert!(status["lag"]["heard_ms"].as_u64().is_some());
    // A primary is behind nobody, and has its own position at once.
    assert!(one::<Option<String>>(&primary, "SELECT mycelite_lag()").is_none());
    assert_eq!(
        one::<i64>(&primary, &format!("SELECT mycelite_wait('{pos}', 1000)")),
        1
    );
    drop(follower);
    std::thread::sleep(Duration::from_millis(600));
    assert!(lag(&reader)["heard_ms"].as_u64().unwrap() >= 600);
}

/// What a read transaction costs on a log that stands still: it looks at two files' times, and reads nothing.
#[test]
fn a_look_at_a_log_that_stands_still_is_cheap() {
    let dir = crate::common::scratch();
    crate::common::load();
    let db = dir.path().join("app.db");
    let writer = crate::common::open(&db, "");
    writer
        .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        .unwrap();
    let reader = Connection::open_with_flags_and_vfs(
        &db,
        rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY,
        c"mycelite_reader",
    )
    .unwrap();
    let looks = |what: &str, moves: bool| {
        let begin = Instant::now();
        for _ in 0..2000 {
            if moves {
                writer.execute_batch("UPDATE t SET a=a+1").unwrap();
            }
            let mut select = reader.prepare_cached("SELECT a FROM t").unwrap();
            let _: i64 = select.query_row([], |row| row.get(0)).unwrap();
        }
        let each = begin.elapsed() / 2000;
        println!("a read transaction on a log that {what}: {each:.1?}");
        each
    };
    looks("moves with each (the write included)", true);
    std::thread::sleep(Duration::from_millis(100));
    looks("stands still", false);
    writer.execute_batch("UPDATE t SET a=-1").unwrap();
    assert_eq!(one::<i64>(&reader, "SELECT a FROM t"), -1);
}
