//! What an application sees.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::clikit::wait_for;
use crate::kit::{LONG, Reader, identical, library, room, stock, uri};

#[test]
fn python_reads_its_own_replica() {
    for mode in ["WAL", "DELETE"] {
        let mut room = room(mode, 5, &[]);
        let mut reader = Reader::start(room.dir.path());
        reader.good(&format!(
            "open db {}",
            uri(&room.copy, &room.server.url("app"), "")
        ));
        assert_eq!(
            reader.good("threads"),
            serde_json::json!([]),
            "nothing runs before the first read"
        );
        assert!(!room.copy.with_extension("db-mycelite").exists());
        let pos = room.primary.pos();
        // There is nothing yet, so the first read waits; where that is, the server decided.
        assert!(reader.number("SELECT count(*) FROM t") <= 5);
        reader.reach(&pos);
        assert_eq!(reader.number("SELECT count(*) FROM t"), 5);
        for n in 6..=40 {
            let pos = room.primary.commit();
            reader.reach(&pos);
            assert_eq!(reader.number("SELECT count(*) FROM t"), n);
        }
        // A changed schema is there at once, as is one more index, and a VACUUM.
        let pos = room.primary.sql(
            "ALTER TABLE t ADD COLUMN more DEFAULT 7; CREATE TABLE u AS SELECT * FROM t; VACUUM",
        );
        reader.reach(&pos);
        assert_eq!(reader.number("SELECT sum(more) FROM u"), 40 * 7);
        for sql in [
            "INSERT INTO t VALUES(-1, 0, 0)",
            "DROP TABLE t",
            "PRAGMA user_version=7",
        ] {
            let error = reader.ask(&format!("db {sql}")).unwrap_err();
            assert!(error.contains("readonly"), "{sql}: {error}");
        }
        // A transaction stands still while others come.
        reader.good("db BEGIN");
        let before = reader.number("SELECT count(*) FROM t");
        let pos = room.primary.sql("INSERT INTO t(filler) VALUES('later')");
        reader.reach(&pos);
        assert_eq!(reader.number("SELECT count(*) FROM t"), before);
        reader.good("db COMMIT");
        assert_eq!(reader.number("SELECT count(*) FROM t"), before + 1);

        // The file comes a moment after the log, from which is read.
        wait_for("the file", LONG, || {
            reader.status()["follow"]["state"] == "following"
        });
        let status = reader.status();
        assert_eq!(status["follow"]["url"], room.server.url("app"));
        wait_for("no lag", LONG, || {
            let lag = reader.one("SELECT mycelite_lag()");
            let lag: serde_json::Value = serde_json::from_str(lag.as_str().unwrap()).unwrap();
            lag["txids"] == 0 && lag["heard_ms"].as_u64().unwrap() < 20_000
        });
        // The copy is a plain file, which the stock shell reads without us.
        identical(&room.copy, &room.primary.image());
        let plain = stock("sqlite3")
            .arg(&room.copy)
            .arg("PRAGMA integrity_check; SELECT count(*) FROM t")
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(plain.stdout).unwrap(), "ok\n41\n");
        reader.good("close db");
        reader.nothing_runs();
        assert_eq!(reader.said(), "");
    }
}

#[test]
fn the_stock_shell_reads_and_joins_it() {
    let room = room("WAL", 3, &[]);
    let mut shell = stock("sqlite3")
        .args(["-batch", ":memory:"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let script = format!(
        ".load {}\n.open '{uri}'\nSELECT mycelite_wait('{pos}', 20000);\nSELECT count(*) FROM t;\n\
         ATTACH ':memory:' AS own;\nCREATE TABLE own.names AS SELECT 2 AS id, 'two' AS name;\n\
         SELECT name FROM t JOIN names USING(id);\nDELETE FROM t;\n\
         SELECT json_extract(mycelite_status(), '$.follow.state') IN ('following', 'catching-up');\nSELECT mycelite_pos() = '{pos}';\n",
        library().display(),
        uri = uri(&room.copy, &room.server.url("app"), ""),
        pos = room.primary.pos(),
    );
    shell
        .stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    let out = shell.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(out.stdout).unwrap(), "1\n3\ntwo\n1\n1\n");
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(
        said.contains("attempt to write a readonly database") && said.lines().count() == 1,
        "{said}"
    );
}

/// The first statement may be any of these.
#[test]
fn what_is_asked_first_starts_it() {
    let room = room("WAL", 3, &[]);
    let pos = room.primary.pos();
    for (n, first) in [
        "SELECT mycelite_status()",
        "SELECT mycelite_lag()",
        "SELECT mycelite_txid()",
    ]
    .iter()
    .enumerate()
    {
        let copy = room.dir.path().join(format!("copy-{n}.db"));
        let mut reader = Reader::of(room.dir.path(), &copy, &room.server.url("app"));
        reader.one(first);
        wait_for("the copy", LONG, || copy.exists());
        reader.reach(&pos);
        reader.stop();
        identical(&copy, &room.primary.image());
    }
    let copy = room.dir.path().join("waited.db");
    let mut reader = Reader::of(room.dir.path(), &copy, &room.server.url("app"));
    assert_eq!(
        reader.number(&format!("SELECT mycelite_wait('{pos}', 20000)")),
        1
    );
    assert_eq!(reader.number("SELECT count(*) FROM t"), 3);
}

/// A copy that is there is served at once; the server may be dead.
#[test]
fn a_dead_server_holds_up_nobody() {
    let mut room = room("WAL", 3, &[]);
    let url = room.server.url("app");
    let mut reader = Reader::of(room.dir.path(), &room.copy, &url);
    let pos = room.primary.pos();
    reader.number("SELECT count(*) FROM t");
    reader.reach(&pos);
    reader.stop();
    room.server.kill();
    let mut reader = Reader::of(room.dir.path(), &room.copy, &url);
    let begin = Instant::now();
    assert_eq!(reader.number("SELECT count(*) FROM t"), 3);
    assert!(
        begin.elapsed() < Duration::from_secs(3),
        "{:?}",
        begin.elapsed()
    );
    wait_for("the trouble is told", LONG, || {
        reader.state() == "backing-off"
    });
    assert!(
        reader.status()["follow"]["last_error"]
            .as_str()
            .unwrap()
            .contains("127.0.0.1")
    );
    let heard = |reader: &mut Reader| -> u64 {
        let lag = reader.one("SELECT mycelite_lag()");
        serde_json::from_str::<serde_json::Value>(lag.as_str().unwrap()).unwrap()["heard_ms"]
            .as_u64()
            .unwrap()
    };
    let before = heard(&mut reader);
    std::thread::sleep(Duration::from_millis(50));
    assert!(heard(&mut reader) >= before + 50);
    let begin = Instant::now();
    reader.stop();
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );

    // Nothing is there: a bounded wait, and one line that says why.
    let nowhere = room.dir.path().join("nowhere.db");
    let mut reader = Reader::start(room.dir.path());
    reader.good(&format!(
        "open db {}",
        uri(&nowhere, &url, "&source_timeout_ms=700")
    ));
    let begin = Instant::now();
    let error = reader.ask("db SELECT count(*) FROM t").unwrap_err();
    let took = begin.elapsed();
    assert!(
        took >= Duration::from_millis(700) && took < Duration::from_secs(5),
        "{took:?}"
    );
    assert!(error.contains("unable to open database file"), "{error}");
    let said = reader.said();
    assert!(
        said.contains("there is no copy of") && said.contains(&url) && said.lines().count() == 1,
        "{said}"
    );
    assert!(!nowhere.exists());
    assert_eq!(reader.state(), "backing-off");
    assert_eq!(reader.number("SELECT mycelite_txid()"), 0);
    assert_eq!(reader.number("SELECT mycelite_wait(1, 20)"), 0);
}

/// Somebody writes to the copy: the application that follows repairs it, and says so in SQLite's log.
#[test]
fn a_mistaken_write_is_told_in_the_hosts_log() {
    let mut room = room("WAL", 3, &[]);
    let pos = room.primary.pos();
    let [go, parked] =
        ["go", "copy.db-mycelite/parked-*.db"].map(|name| room.dir.path().join(name));
    let mut shell = stock("sqlite3")
        .args(["-batch", ":memory:"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let script = format!(
        ".load {}\n.log stderr\n.open '{uri}'\nSELECT mycelite_wait('{pos}', 20000);\n\
         .shell until sqlite3 -cmd '.timeout 5000' {copy} \"INSERT INTO t VALUES(-1, 'mine')\" 2>/dev/null; do sleep 0.05; done\n\
         .shell touch {go}\n\
         .shell for n in $(seq 400); do ls {parked} >/dev/null 2>&1 && break; sleep 0.05; done\n\
         SELECT count(*) FROM t WHERE id < 0;\n",
        library().display(),
        uri = uri(&room.copy, &room.server.url("app"), ""),
        copy = room.copy.display(),
        go = go.display(),
        parked = parked.display(),
    );
    shell
        .stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    wait_for("the mistake", LONG, || go.exists());
    room.primary.commit();
    let out = shell.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(out.stdout).unwrap(), "1\n0\n");
    let said = String::from_utf8(out.stderr).unwrap();
    let line = said
        .lines()
        .find(|line| line.contains("someone wrote to the replica"))
        .expect(&said);
    assert!(
        line.contains("mycelite: ") && line.contains("parked-"),
        "{line}"
    );
}
