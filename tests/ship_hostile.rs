//! The shipper against servers that are dead, silent, foreign, or talk nonsense; and replicas with another history.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;
mod netkit;

use std::io::{Read, Write};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mycelite::proto::{Handshake, ReplicaUrl};
use mycelite::server::ServeOptions;
use mycelite::ship::{ShipOptions, Shipper};
use mycelite::status::ReplicaStatus;
use mycelite_journal::{Pos, Timeline};
use netkit::*;

const LONG: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(5);

fn options(primary: &Primary, replicas: &[ReplicaUrl]) -> ShipOptions {
    ShipOptions::new(&primary.dir, replicas.to_vec())
}

fn shipper(primary: &Primary, replicas: &[ReplicaUrl]) -> Shipper {
    Shipper::new(options(primary, replicas))
}

fn state(shipper: &Shipper) -> ReplicaStatus {
    shipper.status().remove(0)
}

#[test]
fn flush_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(1);
    // Nobody there: as soon as that is known.
    let dead = shipper(&primary, &[dead_port()]);
    let begin = Instant::now();
    assert!(!dead.flush(LONG));
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
    let begin = Instant::now();
    assert!(!dead.flush(LONG));
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "{:?}",
        begin.elapsed()
    );
    // No answer: when the time is over.
    let silent = Nonsense::start(|stream, _| hold(stream));
    let stuck = shipper(&primary, &[silent.url()]);
    let begin = Instant::now();
    assert!(!stuck.flush(Duration::from_millis(300)));
    let took = begin.elapsed();
    assert!(
        took >= Duration::from_millis(300) && took < Duration::from_secs(3),
        "{took:?}"
    );
}

#[test]
fn a_server_that_takes_no_time_to_ask_gives_up_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(1);
    let silent = Nonsense::start(|stream, _| hold(stream));
    let mut options = options(&primary, &[silent.url()]);
    options.request_timeout = Duration::from_millis(300);
    let shipper = Shipper::new(options);
    let begin = Instant::now();
    assert!(!shipper.flush(LONG));
    assert!(
        begin.elapsed() < Duration::from_secs(3),
        "{:?}",
        begin.elapsed()
    );
    let status = state(&shipper);
    assert_eq!(status.state, "backing-off");
    assert!(
        status.last_error.contains("no answer within 300 ms"),
        "{status:?}"
    );
}

/// What a shipper makes of a server that answers everything with `bytes`.
fn assert_refused(primary: &Primary, bytes: Vec<u8>, state_word: &str, says: &str) {
    let server = Nonsense::saying(bytes);
    let mut options = options(primary, &[server.url()]);
    options.access.token = mycelite::config::Secret::new("s3cret-token");
    assert!(!format!("{options:?}").contains("s3cret"));
    let shipper = Shipper::new(options);
    assert!(!shipper.flush(LONG), "{says}");
    let status = state(&shipper);
    assert!(
        status.last_error.contains(says),
        "wanted {says:?}: {status:?}"
    );
    assert_eq!(status.state, state_word, "{says}: {status:?}");
    assert_eq!(status.last_error.lines().count(), 1);
    assert!(status.last_error.len() < 600, "{status:?}");
    assert!(
        status.last_error.contains(&server.url().to_string()),
        "{status:?}"
    );
    assert!(!status.last_error.contains("s3cret"), "{status:?}");
    assert_eq!((status.acked_txid, status.lag_txids), (0, 2));
    shipper.stop(STOP);
}

#[test]
fn nonsense_is_one_clear_line() {
    const OURS: &str = "mycelite-protocol: 1\r\n";
    let dir = tempfile::tempdir().unwrap();
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(2);
    let handshake = Handshake::new(None, Pos::ZERO, 0, mycelite_journal::Txid(0))
        .encode()
        .unwrap();
    let mut newer = handshake.clone();
    newer[0] = 9;
    let longer = [&handshake[..], b"x"].concat();
    let typed = format!("{OURS}content-type: application/x-mycelite-handshake\r\n");
    let endless = vec![b'x'; 10 << 20];
    let control = br#"{"error":"a\u001b[31m\nb"}"#;
    for (bytes, state_word, says) in [
        (
            b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n".to_vec(),
            "refused",
            "does not speak HTTP",
        ),
        (vec![0; 100], "refused", "does not speak HTTP"),
        (Vec::new(), "backing-off", "connection"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort".to_vec(),
            "backing-off",
            "connection",
        ),
        (
            answer("200 OK", "", b"<html>welcome</html>"),
            "refused",
            "not a mycelite server",
        ),
        (
            answer("200 OK", "", &endless),
            "refused",
            "not a mycelite server",
        ),
        (
            answer("404 Not Found", "", b"nothing here"),
            "refused",
            "not a mycelite server",
        ),
        (
            answer("302 Found", "location: http://127.0.0.1:1/\r\n", b""),
            "refused",
            "redirect",
        ),
        (
            answer("502 Bad Gateway", "", b"<html>"),
            "backing-off",
            "HTTP 502",
        ),
        (
            answer("401 Unauthorized", "", b""),
            "refused",
            "refuses the token",
        ),
        (
            answer("403 Forbidden", OURS, b"{\"error\":\"no scope\"}"),
            "refused",
            "no scope",
        ),
        (
            answer(
                "500 Internal Server Error",
                OURS,
                b"{\"error\":\"its disk broke\"}",
            ),
            "backing-off",
            "its disk broke",
        ),
        (
            answer("507 Insufficient Storage", OURS, b"{}"),
            "backing-off",
            "disk is full",
        ),
        (answer("409 Conflict", OURS, control), "refused", "a [31m b"),
        (
            answer("200 OK", &typed, b""),
            "refused",
            "handshake cannot be read",
        ),
        (
            answer("200 OK", &typed, &handshake[..20]),
            "refused",
            "handshake cannot be read",
        ),
        (
            answer("200 OK", &typed, &longer),
            "refused",
            "handshake cannot be read",
        ),
        (
            answer("200 OK", &typed, &vec![7; 5000]),
            "refused",
            "longer than any answer",
        ),
        (answer("200 OK", &typed, &newer), "refused", "protocol 9"),
    ] {
        assert_refused(&primary, bytes, state_word, says);
    }
}

#[test]
fn nonsense_after_a_good_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(2);
    let (id, zero, sum) = (primary.id(), Pos::ZERO, primary.pos().checksum);
    let ours = "mycelite-protocol: 1\r\ncontent-type: application/json\r\n";
    let wrong = format!("{{\"timeline\":1,\"txid\":9,\"checksum\":\"{sum}\"}}");
    for (bytes, state_word, says) in [
        (
            answer("200 OK", ours, b"{}"),
            "backing-off",
            "acknowledgement",
        ),
        (
            answer("200 OK", ours, wrong.as_bytes()),
            "backing-off",
            "acknowledgement",
        ),
        (
            answer("200 OK", "", b"ok"),
            "refused",
            "not a mycelite server",
        ),
        (
            answer("412 Precondition Failed", ours, b"{\"error\":\"no\"}"),
            "backing-off",
            "without saying where",
        ),
        (
            answer(
                "413 Payload Too Large",
                ours,
                b"{\"error\":\"too long (record_bytes_max)\"}",
            ),
            "refused",
            "record_bytes_max",
        ),
        (
            answer("400 Bad Request", ours, b"{\"error\":\"bad record\"}"),
            "refused",
            "bad record",
        ),
        (Vec::new(), "backing-off", "connection"),
    ] {
        let server = Nonsense::start(move |mut stream, _| {
            let head = read_head(&mut stream);
            let reply = if head.starts_with("GET") {
                hello(Some(id), zero)
            } else {
                bytes.clone()
            };
            let _ = stream.write_all(&reply);
            if !reply.is_empty() {
                hold(stream);
            }
        });
        let shipper = shipper(&primary, &[server.url()]);
        assert!(!shipper.flush(LONG), "{says}");
        let status = state(&shipper);
        assert!(
            status.last_error.contains(says),
            "wanted {says:?}: {status:?}"
        );
        assert_eq!(status.state, state_word, "{says}: {status:?}");
        shipper.stop(STOP);
    }
    // A server that always says 'elsewhere' is not asked for ever without a pause.
    let server = Nonsense::start(move |mut stream, _| {
        let head = read_head(&mut stream);
        let misfit = format!(
            "{{\"error\":\"no\",\"pos\":{{\"timeline\":0,\"txid\":0,\"checksum\":\"{:016x}\"}}}}",
            0
        );
        let reply = if head.starts_with("GET") {
            hello(Some(id), zero)
        } else {
            answer(
                "412 Precondition Failed",
                "mycelite-protocol: 1\r\n",
                misfit.as_bytes(),
            )
        };
        let _ = stream.write_all(&reply);
        hold(stream);
    });
    let shipper = shipper(&primary, &[server.url()]);
    assert!(!shipper.flush(LONG));
    std::thread::sleep(Duration::from_millis(300));
    assert!(
        server.connections.load(Ordering::SeqCst) < 40,
        "{:?}",
        server.connections
    );
    shipper.stop(STOP);
}

#[test]
fn a_name_that_does_not_resolve() {
    let dir = tempfile::tempdir().unwrap();
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(1);
    let shipper = shipper(&primary, &[url("http://no-such-host.invalid:7878/app")]);
    assert!(!shipper.flush(LONG));
    let status = state(&shipper);
    assert!(
        status.last_error.contains("cannot be resolved"),
        "{status:?}"
    );
    assert_eq!(status.state, "backing-off");
}

#[test]
fn tokens_are_used() {
    let dir = tempfile::tempdir().unwrap();
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(2);
    let file = dir.path().join("tokens");
    std::fs::write(&file, "reader read\nwriter append\n").unwrap();
    let mut serve = ServeOptions::new("127.0.0.1:0", dir.path().join("data"));
    serve.token_file = Some(file);
    let server = TestServer::with(serve).unwrap();
    for (token, state_word, says) in [
        (None, "refused", "refuses the token, or wants one"),
        (Some("wrong"), "refused", "refuses the token"),
        (Some("reader"), "refused", "scope"),
        (Some("writer"), "caught-up", ""),
    ] {
        let mut options = options(&primary, &[server.url("app")]);
        options.access.token = token.and_then(mycelite::config::Secret::new);
        let shipper = Shipper::new(options);
        assert_eq!(shipper.flush(LONG), state_word == "caught-up", "{token:?}");
        let status = state(&shipper);
        assert_eq!(status.state, state_word, "{status:?}");
        assert!(status.last_error.contains(says), "{status:?}");
        assert!(!status.last_error.contains("wrong"), "{status:?}");
    }
}

#[test]
fn a_replica_with_another_history_is_never_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(&dir.path().join("data"));
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(10);
    assert!(shipper(&primary, &[server.url("app")]).flush(LONG));
    let kept = raw_records(&server.log("app"), 0);
    let refuse = |primary: &Primary, state_word: &str, says: &str| {
        let shipper = shipper(primary, &[server.url("app")]);
        assert!(!shipper.flush(LONG), "{says}");
        let status = state(&shipper);
        assert_eq!(status.state, state_word, "{status:?}");
        assert!(status.last_error.contains(says), "{status:?}");
        assert_eq!(raw_records(&server.log("app"), 0), kept);
    };
    // The same database, with another tenth transaction and one more.
    let mut fork = Primary::fork(dir.path().join("fork-mycelite"), &primary, 9);
    fork.commits(2);
    refuse(&fork, "diverged", "its history differs");
    // The same database, but shorter: this side lost something.
    let short = Primary::fork(dir.path().join("short-mycelite"), &primary, 5);
    refuse(&short, "diverged", "ahead of this log");
    // Another database.
    let mut other = Primary::new(dir.path().join("other-mycelite"), 8);
    other.commits(1);
    refuse(&other, "refused", "another database");
    // Our own goes on.
    primary.commits(1);
    assert!(shipper(&primary, &[server.url("app")]).flush(LONG));
}

#[test]
fn a_position_on_another_timeline_is_divergence() {
    let dir = tempfile::tempdir().unwrap();
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(3);
    let pos = Pos {
        timeline: Timeline(2),
        ..primary.pos_at(2)
    };
    let id = primary.id();
    let server = Nonsense::saying(hello(Some(id), pos));
    let shipper = shipper(&primary, &[server.url()]);
    assert!(!shipper.flush(LONG));
    assert_eq!(state(&shipper).state, "diverged");
}

#[test]
fn damage_in_the_own_log_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(&dir.path().join("data"));
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(9);
    // A byte in the middle of the fifth record's body.
    let segment = primary.dir.join("00000000000000000001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    let before: usize = primary.records(0)[..4].iter().map(Vec::len).sum();
    bytes[64 + before + 300] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let shipper = shipper(&primary, &[server.url("app")]);
    assert!(!shipper.flush(LONG));
    let status = state(&shipper);
    assert_eq!(status.state, "backing-off");
    assert!(
        status.last_error.contains("00000000000000000001.seg"),
        "{status:?}"
    );
    assert!(status.last_error.contains("transaction 5"), "{status:?}");
    // What is good has arrived all the same.
    assert_eq!(server.get("/v1/databases/app/pos").txid(), 4);
}

/// A C program does not ignore SIGPIPE, as Rust programs do: a connection that breaks must not be the end of it.
#[test]
fn a_broken_connection_is_not_the_end_of_the_host() {
    alone("a_broken_connection_is_not_the_end_of_the_host", || {
        #[allow(unsafe_code)]
        // SAFETY: plain C; 13 is SIGPIPE and 0 its default action on Linux.
        unsafe {
            unsafe extern "C" {
                fn signal(number: i32, action: usize) -> usize;
            }
            signal(13, 0);
        }
        let dir = tempfile::tempdir().unwrap();
        let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
        primary.commit_noise(4);
        let id = primary.id();
        // Takes a part of the records, then closes while more are on their way.
        let server = Nonsense::start(move |mut stream, _| {
            if read_head(&mut stream).starts_with("GET") {
                let _ = stream.write_all(&kept_open(&hello(Some(id), Pos::ZERO)));
                read_head(&mut stream);
            }
            let _ = stream.read_exact(&mut [0; 300_000]);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            std::thread::sleep(Duration::from_micros(200));
        });
        for _ in 0..60 {
            assert!(!shipper(&primary, &[server.url()]).flush(LONG));
        }
    });
}

/// The same answer on a connection that stays open.
fn kept_open(answer: &[u8]) -> Vec<u8> {
    let close = b"connection: close\r\n";
    let at = answer
        .windows(close.len())
        .position(|part| part == close)
        .unwrap();
    [&answer[..at], &answer[at + close.len()..]].concat()
}
