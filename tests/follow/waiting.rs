//! What others do with a replica's file while it is kept: they read it for long, they write to it by mistake. The follower waits
//! politely, says so, goes on by itself, and repairs what is not the log's.

use std::path::Path;

use rusqlite::Connection;

use crate::clikit::{Serve, wait_for};
use crate::common;
use crate::kit::{LONG, Watched, Writer, identical};

struct Place {
    dir: tempfile::TempDir,
    _server: Serve,
    writer: Writer,
    copy: std::path::PathBuf,
    watched: Watched,
}

fn place(mode: &str, arguments: &[&str]) -> Place {
    common::load();
    let dir = common::scratch();
    let server = Serve::start(&dir.path().join("data"), &[]);
    let mut writer = Writer::new(dir.path().join("app.db"), mode, &server.url("app"));
    writer.commit(40);
    wait_for("the server", LONG, || server.db("app").exists());
    let copy = dir.path().join("copy.db");
    let watched = Watched::start(&server.url("app"), &copy, arguments);
    wait_for("the copy", LONG, || rows(&copy) == Some(1));
    Place {
        dir,
        _server: server,
        writer,
        copy,
        watched,
    }
}

fn rows(copy: &Path) -> Option<i64> {
    let plain =
        Connection::open_with_flags(copy, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
    plain
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .ok()
}

/// A reader that stays in one transaction: the WAL grows as far as configured, then applying waits, says for whom, and goes on.
#[test]
fn a_long_reader_is_waited_for_as_configured() {
    let arguments = [
        "--wal-max",
        "1",
        "--busy-timeout",
        "100",
        "--stall-after",
        "2",
    ];
    let mut place = place("DELETE", &arguments);
    // Pages that are there already: new ones go beyond the end of the file, where an old reader does not look.
    place.writer.commit(500_000);
    wait_for("the second row", LONG, || rows(&place.copy) == Some(2));
    let reader = common::open_plain(&place.copy);
    reader.execute_batch("BEGIN").unwrap();
    let seen = || -> (i64, String) {
        let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        reader
            .query_row("SELECT count(*), max(filler) FROM t", [], read)
            .unwrap()
    };
    let before = seen();
    for _ in 0..40 {
        place.writer.rewrite();
    }
    wait_for("the stall", LONG, || {
        place.watched.latest()["state"] == "stalled"
    });
    let status = place.watched.latest();
    let error = status["last_error"].as_str().unwrap().to_owned();
    assert!(error.contains("waiting for a reader to finish"), "{status}");
    let wal = std::fs::metadata(place.dir.path().join("copy.db-wal")).map_or(0, |wal| wal.len());
    assert!(wal < 24 << 20, "a WAL of {wal} bytes");
    assert_eq!(seen(), before);
    // The records are safe in the log meanwhile: only the file waits.
    assert!(
        status["pos"]["txid"].as_u64() > status["applied_txid"].as_u64(),
        "{status}"
    );
    reader.execute_batch("COMMIT").unwrap();
    wait_for("all rows", LONG, || seen().0 == place.writer.rows());
    wait_for("all is well", LONG, || {
        place.watched.latest()["state"] == "following"
    });
    drop(reader);
    identical(&[&place.copy], &place.writer.close(), LONG);
    let ended = place.watched.follow.stop_quietly();
    assert!(
        ended.contains("stalled for") && ended.contains("waiting for a reader"),
        "{ended}"
    );
}

/// A person who writes to the replica by mistake: while the transaction is open he is waited for, and named; once it is committed,
/// the next record finds it, the log's state comes back, and what he wrote is parked, loudly.
#[test]
fn a_mistaken_write_is_noticed_parked_and_undone() {
    for mode in ["WAL", "DELETE"] {
        let mut place = place(mode, &["--busy-timeout", "100", "--stall-after", "2"]);
        place.writer.commit(40);
        wait_for("the second row", LONG, || rows(&place.copy) == Some(2));
        let person = common::open_plain(&place.copy);
        person
            .execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES(-1, 0, 'mine')")
            .unwrap();
        place.writer.commit(40);
        wait_for("the stall", LONG, || {
            place.watched.latest()["state"] == "stalled"
        });
        let status = place.watched.latest();
        let error = status["last_error"].as_str().unwrap().to_owned();
        assert!(
            error.contains("another connection that writes") || error.contains("a reader"),
            "{status}"
        );
        person.execute_batch("COMMIT").unwrap();
        wait_for("the repair", LONG, || rows(&place.copy) == Some(3));
        place.writer.commit(40);
        // The connection need not be opened again to see it.
        let count = |sql: &str| -> i64 { person.query_row(sql, [], |row| row.get(0)).unwrap() };
        wait_for("the next record", LONG, || {
            count("SELECT count(*) FROM t") == 4
        });
        assert_eq!(count("SELECT count(*) FROM t WHERE id < 0"), 0);
        drop(person);
        let log = common::log_dir(&place.copy);
        let parked: Vec<_> = std::fs::read_dir(log)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|kind| kind == "db"))
            .collect();
        assert_eq!(parked.len(), 1, "{parked:?}");
        let kept: i64 = Connection::open(&parked[0])
            .unwrap()
            .query_row("SELECT count(*) FROM t WHERE filler='mine'", [], |row| {
                row.get(0)
            })
            .unwrap();
        assert_eq!(kept, 1);
        identical(&[&place.copy], &place.writer.close(), LONG);
        let said = place.watched.follow.stop_quietly();
        let name = parked[0].file_name().unwrap().to_str().unwrap();
        assert!(said.contains(name), "{said}");
    }
}

/// A changed schema, a VACUUM, another page size: a plain connection that has the replica attached sees each at once, without
/// DETACH, in rollback and in WAL mode.
#[test]
fn an_attached_replica_need_not_be_attached_again() {
    for mode in ["WAL", "DELETE"] {
        let mut place = place(mode, &[]);
        let plain = Connection::open_in_memory().unwrap();
        plain.busy_timeout(LONG).unwrap();
        plain
            .execute("ATTACH ?1 AS copy", [place.copy.to_str().unwrap()])
            .unwrap();
        plain
            .execute_batch("CREATE TABLE own(id INTEGER); INSERT INTO own VALUES(1)")
            .unwrap();
        let sees = |what: &str, sql: &str, wanted: i64| {
            wait_for(what, LONG, || {
                plain.query_row(sql, [], |row| row.get::<_, i64>(0)).ok() == Some(wanted)
            });
        };
        for (sql, look, wanted) in [
            (
                "ALTER TABLE t ADD COLUMN more DEFAULT 7",
                "SELECT more FROM copy.t JOIN own USING(id)",
                7,
            ),
            (
                "CREATE TABLE u AS SELECT id+1 AS id FROM t",
                "SELECT sum(id) FROM copy.u",
                2,
            ),
            (
                "CREATE VIEW v AS SELECT count(*) AS n FROM u",
                "SELECT n FROM copy.v",
                1,
            ),
            (
                "DROP VIEW v; DROP TABLE u",
                "SELECT count(*) FROM copy.sqlite_schema WHERE name='u'",
                0,
            ),
            ("VACUUM", "SELECT count(*) FROM copy.t", 1),
            (
                "PRAGMA journal_mode=DELETE; PRAGMA page_size=1024; VACUUM",
                "SELECT page_size FROM copy.t, pragma_page_size('copy')",
                1024,
            ),
            ("PRAGMA user_version=3", "PRAGMA copy.user_version", 3),
        ] {
            place.writer.sql(sql);
            sees(sql, look, wanted);
        }
        assert_eq!(place.watched.latest()["last_error"], "");
        drop(plain);
        identical(&[&place.copy], &place.writer.close(), LONG);
    }
}
