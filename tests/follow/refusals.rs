//! What a follower does not do: each ends in a defined state, and in one clear line.

use std::io::Write;
use std::path::Path;

use mycelite::server::ServeOptions;
use mycelite_journal::Pos;

use crate::clikit::{self, text, wait_for};
use crate::kit::{Follow, LONG, Watched, fake_server, identical, once};
use crate::netkit::{Primary, TestServer, room, zstd};

fn send(server: &TestServer, name: &str, primary: &Primary) {
    let records = primary.records(0).concat();
    let answer = server.append(name, primary.id(), Pos::ZERO, &records);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// It must end with code 3 and one line that says this; what is there stays as it is.
#[track_caller]
fn refused(url: &str, db: &Path, says: &[&str]) {
    let before = std::fs::read(db).ok();
    for arguments in [&[][..], &["--once"]] {
        let ran = Follow::start(url, db, arguments).ended(LONG);
        let line = ran.bad(3);
        for word in says {
            assert!(line.contains(word), "{line}");
        }
    }
    assert_eq!(std::fs::read(db).ok(), before);
    let leftovers = crate::common::log_dir(db).join("meta").exists();
    assert!(
        before.is_some() || !leftovers,
        "a refusal leaves a log behind"
    );
}

#[test]
fn a_wrong_name_token_or_server_is_one_line() {
    let room = room(3);
    send(&room.server, "app", &room.primary);
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("copy.db");
    refused(
        room.server.url("other").to_string().as_str(),
        &db,
        &["no database other here", "404"],
    );

    let tokens = dir.path().join("tokens");
    std::fs::write(&tokens, "reader read\nwriter append\n").unwrap();
    let mut options = ServeOptions::new("127.0.0.1:0", dir.path().join("data"));
    options.token_file = Some(tokens);
    options.follow = vec![("app".parse().unwrap(), room.server.url("app"))];
    let guarded = TestServer::with(options).unwrap();
    clikit::wait_for("the guarded server", LONG, || guarded.db("app").exists());
    let url = guarded.url("app").to_string();
    refused(&url, &db, &["token", "401"]);
    for (token, code) in [("wrong", "401"), ("writer", "scope read")] {
        let file = dir.path().join("token");
        std::fs::write(&file, token).unwrap();
        let line = once(&url, &db, &["--token-file", text(&file)]).bad(3);
        assert!(line.contains(code) && !line.contains(token), "{line}");
    }
    let file = dir.path().join("token");
    std::fs::write(&file, "reader").unwrap();
    let copy = dir.path().join("guarded.db");
    once(&url, &copy, &["--token-file", text(&file)]).good();
    identical(&[&copy], &room.primary.image, LONG);
    let head = "HTTP/1.1 501 Not Implemented\r\nmycelite-protocol: 1\r\ncontent-type: application/json\r\nconnection: close\r\n";
    let body = "{\"error\":\"follow=1 is not served yet\"}";
    let old = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    let addr = fake_server(old.into_bytes(), false);
    refused(&format!("http://{addr}/app"), &db, &["501", "older"]);
    let web = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello";
    let addr = fake_server(web.into(), false);
    refused(
        &format!("http://{addr}/app"),
        &db,
        &["not a mycelite server"],
    );
    for (arguments, says) in [
        (
            ["follow", "http://127.0.0.1:1/a/b", text(&db)],
            "nothing deeper",
        ),
        (["follow", "ftp://127.0.0.1:1/a", text(&db)], "https://"),
        (
            ["follow", "http://127.0.0.1:1/a", text(dir.path())],
            "directory",
        ),
    ] {
        let line = crate::clikit::run(arguments).bad(2);
        assert!(line.contains(says), "{line}");
    }
}

#[test]
fn a_stream_of_nonsense_is_tried_a_few_times_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("copy.db");
    let head = "HTTP/1.1 200 OK\r\nmycelite-protocol: 1\r\ncontent-type: application/x-mycelite-follow\r\n\r\n";
    for (body, says) in [
        (&b"<!doctype html>"[..], "not a stream of records"),
        (&[2, 0, 0, 0, 0], "begin with a hello"),
        (&[1, 200], "cut within a frame"),
        (&[], "hung up"),
    ] {
        let addr = fake_server([head.as_bytes(), body].concat(), false);
        let ran = once(&format!("http://{addr}/app"), &db, &[]);
        assert_eq!(ran.code, 3, "{ran:?}");
        let last = ran.stderr.lines().last().unwrap();
        assert!(
            last.starts_with("mycelite: error: ") && last.contains(says),
            "{ran:?}"
        );
        assert!(!db.exists());
    }
    let ran = once("http://127.0.0.1:9/app", &db, &[]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.stderr.contains("connection refused"), "{ran:?}");
}

#[test]
fn another_database_or_history_behind_the_url_changes_nothing() {
    let room = room(5);
    send(&room.server, "app", &room.primary);
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("copy.db");
    once(&room.server.url("app").to_string(), &db, &[]).good();
    identical(&[&db], &room.primary.image, LONG);

    let mut other = Primary::new(dir.path().join("other-mycelite"), 8);
    other.commits(9);
    send(&room.server, "other", &other);
    refused(
        &room.server.url("other").to_string(),
        &db,
        &["another database"],
    );
    // The same database with another future, longer and shorter than what is here.
    let mut fork = Primary::fork(dir.path().join("fork-mycelite"), &room.primary, 3);
    fork.commits(4);
    send(&room.server, "fork", &fork);
    refused(
        &room.server.url("fork").to_string(),
        &db,
        &["another history"],
    );
    let short = Primary::fork(dir.path().join("short-mycelite"), &room.primary, 3);
    send(&room.server, "short", &short);
    refused(
        &room.server.url("short").to_string(),
        &db,
        &["ends at", "it has lost"],
    );
    // And the right one goes on.
    once(&room.server.url("app").to_string(), &db, &[]).good();
}

#[test]
fn a_file_that_is_no_replica_is_left_alone() {
    let room = room(3);
    send(&room.server, "app", &room.primary);
    let url = room.server.url("app").to_string();
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own.db");
    crate::common::open_plain(&own)
        .execute_batch("CREATE TABLE mine(a)")
        .unwrap();
    refused(&url, &own, &["not a replica", "nothing was changed"]);
    let written = dir.path().join("written.db");
    let connection = crate::common::open(&written, "");
    connection.execute_batch("CREATE TABLE mine(a)").unwrap();
    drop(connection);
    refused(&url, &written, &["written to here"]);
    std::fs::File::create(dir.path().join("text.db"))
        .unwrap()
        .write_all(b"no database")
        .unwrap();
    refused(&url, &dir.path().join("text.db"), &["not a replica"]);
    // What a server keeps, or another follower, is not followed into.
    let line = once(&url, &room.server.db("app"), &[]).bad(3);
    assert!(
        line.contains("a mycelite serve keeps this directory"),
        "{line}"
    );
    let copy = dir.path().join("copy.db");
    let first = Follow::start(&url, &copy, &[]);
    identical(&[&copy], &room.primary.image, LONG);
    let line = once(&url, &copy, &[]).bad(3);
    assert!(
        line.contains("another process keeps this replica"),
        "{line}"
    );
    assert_eq!(first.stop().code, 0);
}

#[test]
fn nobody_pushes_to_what_follows() {
    let room = room(3);
    send(&room.server, "app", &room.primary);
    let dir = tempfile::tempdir().unwrap();
    let mut options = ServeOptions::new("127.0.0.1:0", dir.path().join("data"));
    options.follow = vec![("copy".parse().unwrap(), room.server.url("app"))];
    let mirror = TestServer::with(options).unwrap();
    crate::netkit::assert_applied(&mirror, "copy", 3, &room.primary.image);
    let answer = mirror.append("copy", room.primary.id(), room.primary.pos(), &zstd(b""));
    assert_eq!(answer.status, 409, "{}", answer.text());
    assert!(
        answer.text().contains("copy follows http://"),
        "{}",
        answer.text()
    );
    let info = mirror.get("/v1/databases/copy").json();
    assert_eq!(info["follow"]["state"], "following", "{info}");
    let metrics = mirror.get("/metrics").text();
    for line in [
        "mycelite_follow_lag_txids{database=\"copy\"} 0",
        "mycelite_follow_ok{database=\"copy\"} 1",
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
    assert!(
        room.server
            .get("/metrics")
            .text()
            .contains("mycelite_followers 1")
    );
    assert!(mirror.get("/").text().contains("(follows http://"));
    let status = clikit::run(["status", &mirror.url("copy").to_string()]).good();
    assert!(
        status.contains("following: lacks 0 transactions of 3"),
        "{status}"
    );
    // Other names are free.
    let answer = mirror.append(
        "pushed",
        room.primary.id(),
        Pos::ZERO,
        &room.primary.records(0).concat(),
    );
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn a_replica_that_does_not_move_is_reported_with_its_cause() {
    let mut room = room(3);
    send(&room.server, "app", &room.primary);
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("copy.db");
    let url = room.server.url("app").to_string();
    once(&url, &db, &[]).good();
    // Somebody holds the replica's write lock.
    let holder = crate::common::open_plain(&db);
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    let after = room.primary.pos();
    room.primary.commit(1);
    let answer = room.server.append(
        "app",
        room.primary.id(),
        after,
        &room.primary.records(3).concat(),
    );
    assert_eq!(answer.status, 200);
    // The applier says what it waits for long before that is a stall.
    let ran = once(&url, &db, &["--stall-after", "6", "--busy-timeout", "100"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let last = ran.stderr.lines().last().unwrap();
    assert!(
        last.contains("stalled") && last.contains(": waiting for "),
        "{ran:?}"
    );
    let running = Watched::start(&url, &db, &["--stall-after", "1"]);
    wait_for("the stall", LONG, || running.latest()["state"] == "stalled");
    drop(holder);
    identical(&[&db], &room.primary.image, LONG);
    wait_for("all is well", LONG, || {
        running.latest()["state"] == "following"
    });
    let said = running.follow.stop_quietly();
    assert!(said.contains("stalled for"), "{said}");
}
