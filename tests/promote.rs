//! P9 over real processes: each way in which a history may fork ends in a defined state that everybody names (issue: two
//! primaries, an old backup, a promotion; power cuts are in `tests/fork`).
#![cfg(unix)]
#![allow(missing_docs, clippy::unwrap_used)]

mod clikit;
mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clikit::{Ran, Serve, run, text, wait_for};

const LONG: Duration = Duration::from_secs(20);

/// `count` commits by an application with the extension, which then closes.
fn write(db: &Path, parameters: &str, mode: &str, count: usize) {
    let connection = common::open(db, parameters);
    connection
        .query_row(&format!("PRAGMA journal_mode = {mode}"), [], |_| Ok(()))
        .unwrap();
    connection
        .execute_batch("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, x)")
        .unwrap();
    for _ in 0..count {
        connection
            .execute_batch("INSERT INTO t(x) VALUES (hex(randomblob(2000)))")
            .unwrap();
    }
    connection.close().unwrap();
}

fn rows(db: &Path) -> i64 {
    common::open_plain(db)
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap()
}

/// What any SQLite reads.
fn dump(db: &Path) -> Vec<(i64, String)> {
    let connection = common::open_plain(db);
    let mut statement = connection
        .prepare("SELECT id, x FROM t ORDER BY id")
        .unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
    rows.unwrap().map(Result::unwrap).collect()
}

fn head(source: &str) -> serde_json::Value {
    run(["status", source, "--json"]).json()["pos"].clone()
}

fn push(db: &Path, url: &str) -> Ran {
    run(["push", text(db), "--to", url])
}

/// The records of a server's log, byte for byte.
fn bytes(server: &Serve, name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let log = common::log_dir(&server.db(name));
    let mut files: Vec<_> = std::fs::read_dir(log)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "seg"))
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

fn copy_all(db: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    let status = std::process::Command::new("cp")
        .arg("-a")
        .args([db, &common::log_dir(db), to])
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn a_replica_takes_over_and_the_old_primary_comes_back_as_its_replica() {
    for mode in ["DELETE", "WAL"] {
        let dir = tempfile::tempdir().unwrap();
        let old = dir.path().join("old.db");
        let mut server = Serve::start(&dir.path().join("replicas"), &[]);
        let url = server.url("app");
        write(&old, "", mode, 5);
        push(&old, &url).good();
        let replica = server.db("app");
        wait_for("the replica", LONG, || {
            run(["status", &url, "--json"]).json()["applied_txid"] == head(text(&old))["txid"]
        });

        // Not while the server keeps the file.
        let line = run(["promote", text(&replica)]).bad(3);
        assert!(
            line.contains("mycelite serve keeps this directory"),
            "{line}"
        );
        server.kill();
        // The old primary goes on for a moment: nobody has got that.
        write(&old, "", mode, 3);
        let lost = dump(&old);

        let promoted = run(["promote", text(&replica), "--json"]).json();
        let fork = promoted["from"]["txid"].as_u64().unwrap();
        assert_eq!(promoted["at"]["timeline"], 1000, "{promoted}");
        assert_eq!(promoted["at"]["txid"], fork + 1);
        assert!(
            run(["promote", text(&replica)])
                .bad(2)
                .contains("primary already")
        );
        write(&replica, "", mode, 4);
        run(["verify", "--deep", text(&replica)]).good();
        let log = run(["log", text(&replica)]).good();
        assert!(log.contains("begins"), "{log}");

        // The server starts again: what was promoted is nobody's replica, and the old primary is told so.
        let server = Serve::start(&dir.path().join("replicas"), &[]);
        let before = dump(&replica);
        let line = push(&old, &server.url("app")).bad(3);
        assert!(
            line.contains("at 1000/") && line.contains("--rejoin"),
            "{line}"
        );
        assert_eq!(dump(&replica), before);
        assert_eq!(dump(&old), lost);
        run(["verify", "--deep", text(&replica)]).good();

        // Even one that fits in is not let in: applications write to this file.
        let clone = dir.path().join("clone");
        copy_all(&replica, &clone);
        let clone = clone.join("app.db");
        write(&clone, "", mode, 1);
        let line = push(&clone, &server.url("app")).bad(3);
        assert!(line.contains("was promoted here"), "{line}");
        assert_eq!(dump(&replica), before);

        // The new primary has a server of its own, and the old one follows it.
        let next = Serve::start(&dir.path().join("next"), &[]);
        let url = next.url("app");
        push(&replica, &url).good();
        let line = run(["follow", &url, text(&old), "--once"]).bad(3);
        assert!(line.contains("--rejoin"), "{line}");
        assert_eq!(dump(&old), lost);
        let ran = run(["follow", &url, text(&old), "--once", "--rejoin"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(ran.stderr.contains("are parked in"), "{ran:?}");
        assert_eq!(dump(&old), before, "{mode}");
        assert_eq!(head(text(&old)), head(text(&replica)));
        run(["verify", "--deep", text(&old)]).good();

        // What it had alone is parked, listed, readable, and taken away only by hand.
        let log = run(["log", text(&old)]).good();
        let parked = log.lines().find(|line| line.starts_with("parked")).unwrap();
        assert!(
            parked.contains(&format!("transactions {} to", fork + 1)),
            "{parked}"
        );
        let tails = run(["parked", text(&old), "--json"]).json();
        assert_eq!(tails.as_array().unwrap().len(), 1, "{tails}");
        assert_eq!(tails[0]["timeline"], 1);
        assert!(tails[0]["bytes"].as_u64().unwrap() > 4000, "{tails}");
        let name = tails[0]["name"].as_str().unwrap();
        let tail = common::log_dir(&old).join("parked").join(name);
        assert_eq!(run(["log", text(&tail)]).good().lines().count(), 1 + 3);
        for wrong in ["..", "new", "1-2-3-4", "../../old.db", ""] {
            let code = run(["parked", text(&old), "--remove", wrong]).code;
            assert!(code != 0 && tail.exists(), "{wrong}");
        }
        run(["parked", text(&old), "--remove", name]).good();
        assert!(!tail.exists());
        assert_eq!(run(["parked", text(&old)]).good(), "");
        run(["verify", "--deep", text(&old)]).good();
        // And it goes on as a replica.
        write(&replica, "", mode, 2);
        push(&replica, &url).good();
        run(["follow", &url, text(&old), "--once"]).good();
        assert_eq!(rows(&old), rows(&replica));
    }
}

#[test]
fn a_promotion_that_was_cut_short_is_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("app.db");
    write(&db, "", "DELETE", 3);
    let server = Serve::start(&dir.path().join("replicas"), &[]);
    push(&db, &server.url("app")).good();
    let replica = server.db("app");
    wait_for("the file", LONG, || replica.exists());
    drop(server);
    run(["promote", text(&replica)]).good();
    // The mark is the last that is written; without it this is a replica, of which a server takes care as ever.
    std::fs::remove_file(common::log_dir(&replica).join("promoted")).unwrap();
    let server = Serve::start(&dir.path().join("replicas"), &[]);
    let line = push(&db, &server.url("app")).bad(3);
    assert!(line.contains("1000/"), "{line}");
    drop(server);
    let again = run(["promote", text(&replica), "--json"]).json();
    assert_eq!(again["at"]["timeline"], 2000, "{again}");
    write(&replica, "", "DELETE", 1);
    run(["verify", "--deep", text(&replica)]).good();
    assert_eq!(rows(&replica), 4);
    // What is no replica is not promoted.
    let plain = dir.path().join("plain.db");
    common::open_plain(&plain)
        .execute_batch("CREATE TABLE t(a)")
        .unwrap();
    assert!(run(["promote", text(&plain)]).bad(2).contains("no replica"));
    assert!(
        run(["promote", text(&db)])
            .bad(2)
            .contains("primary already")
    );
}

#[test]
fn of_two_primaries_under_one_name_the_second_is_refused_and_told_why() {
    let dir = tempfile::tempdir().unwrap();
    let server = Serve::start(&dir.path().join("replicas"), &[]);
    let url = server.url("app");
    let (one, other) = (dir.path().join("one.db"), dir.path().join("other.db"));
    write(&one, "", "DELETE", 3);
    write(&other, "", "DELETE", 3);
    push(&one, &url).good();
    wait_for("the file", LONG, || server.db("app").exists());
    let twin = dir.path().join("twin");
    copy_all(&one, &twin);
    let twin = twin.join("one.db");

    let line = push(&other, &url).bad(3);
    assert!(line.contains("another database under this name"), "{line}");
    // A copy of the first, with a future of its own.
    write(&one, "", "DELETE", 2);
    write(&twin, "", "DELETE", 2);
    push(&one, &url).good();
    wait_for("the file", LONG, || {
        run(["status", &url, "--json"]).json()["applied_txid"] == head(&url)["txid"]
    });
    let before = bytes(&server, "app");
    let line = push(&twin, &url).bad(3);
    assert!(line.contains("diverged"), "{line}");
    assert_eq!(bytes(&server, "app"), before);
    write(&one, "", "DELETE", 1);
    push(&one, &url).good();
    run(["verify", "--deep", &url]).good();
}

#[test]
fn a_primary_that_was_restored_from_an_old_backup_is_refused_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let server = Serve::start(&dir.path().join("replicas"), &[]);
    let url = server.url("app");
    let db = dir.path().join("app.db");
    write(&db, "", "WAL", 3);
    let backup = dir.path().join("backup");
    copy_all(&db, &backup);
    write(&db, "", "WAL", 3);
    push(&db, &url).good();
    wait_for("the file", LONG, || {
        run(["status", &url, "--json"]).json()["applied_txid"] == head(&url)["txid"]
    });
    let before = bytes(&server, "app");

    // The disk is lost, the backup comes back.
    std::fs::remove_dir_all(common::log_dir(&db)).unwrap();
    std::fs::remove_file(&db).unwrap();
    copy_all(&backup.join("app.db"), dir.path());
    let line = push(&db, &url).bad(3);
    assert!(line.contains("ahead of this log"), "{line}");
    write(&db, "", "WAL", 1);
    let line = push(&db, &url).bad(3);
    assert!(line.contains("diverged"), "{line}");
    assert_eq!(bytes(&server, "app"), before);
    // The server has what the primary has lost: from there it can be had again.
    let again = dir.path().join("again.db");
    run(["restore", &url, "-o", text(&again)]).good();
    assert_eq!(rows(&again), 6);
}
