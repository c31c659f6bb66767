//! The server over real HTTP: what it stores, what it refuses, and what it survives.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;
mod netkit;

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use mycelite::proto::{HEADER_AFTER, HEADER_DATABASE, Handshake, TYPE_HANDSHAKE};
use mycelite::server::ServeOptions;
use mycelite_journal::Pos;
use netkit::*;
use tempfile::TempDir;

struct Room {
    _dir: TempDir,
    server: TestServer,
    primary: Primary,
}

/// A server, and a primary with `commits` transactions that it does not know yet.
fn room(commits: usize) -> Room {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(&dir.path().join("data"));
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(commits);
    Room { _dir: dir, server, primary }
}

#[test]
fn appended_records_become_a_file() {
    let Room { server, primary, _dir } = room(20);
    for txid in 0..20 {
        let records = primary.records(txid);
        let answer = server.append("app", primary.id(), primary.pos_at(txid), &records[0]);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.txid(), txid + 1);
    }
    assert_applied(&server, "app", 20, &primary.image);
    assert_eq!(raw_records(&server.log("app"), 0), primary.records(0));
    let pos = server.get("/v1/databases/app/pos").json();
    assert_eq!(pos["txid"], 20);
    assert_eq!(pos["checksum"], primary.pos().checksum.to_string());
}

#[test]
fn a_batch_is_one_request() {
    let Room { server, primary, _dir } = room(200);
    let answer = server.append("app", primary.id(), Pos::ZERO, &primary.records(0).concat());
    assert_eq!((answer.status, answer.txid()), (200, 200));
    assert_applied(&server, "app", 200, &primary.image);
    let empty = server.append("app", primary.id(), primary.pos(), b"");
    assert_eq!((empty.status, empty.txid()), (200, 200));
}

#[test]
fn what_does_not_fit_is_answered_with_the_position() {
    let Room { server, primary, _dir } = room(5);
    let records = primary.records(0);
    assert_eq!(server.append("app", primary.id(), Pos::ZERO, &records[..3].concat()).txid(), 3);
    let third = primary.pos_at(3);
    let wrong_sum = Pos { checksum: primary.pos_at(2).checksum, ..third };
    let wrong_line = Pos { timeline: mycelite_journal::Timeline(2), ..third };
    for after in [Pos::ZERO, primary.pos_at(1), primary.pos_at(4), primary.pos(), wrong_sum, wrong_line] {
        let answer = server.append("app", primary.id(), after, &records[3]);
        assert_eq!(answer.status, 412, "{after}: {}", answer.text());
        assert_eq!(answer.json()["pos"]["checksum"], third.checksum.to_string());
        assert_eq!(answer.txid(), 3);
    }
    // The position fits and the record does not.
    for wrong in [&records[0], &records[2], &records[4]] {
        let answer = server.append("app", primary.id(), third, wrong);
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert_eq!(answer.txid(), 3);
    }
    assert_eq!(server.append("app", primary.id(), third, &records[3..].concat()).txid(), 5);
    assert_applied(&server, "app", 5, &primary.image);
}

#[test]
fn another_database_is_refused() {
    let Room { server, primary, _dir } = room(3);
    assert_eq!(server.append("app", primary.id(), Pos::ZERO, &primary.records(0).concat()).status, 200);
    let mut other = Primary::new(_dir.path().join("other-mycelite"), 9);
    other.commits(2);
    for after in [Pos::ZERO, primary.pos()] {
        let answer = server.append("app", other.id(), after, &other.records(0).concat());
        assert_eq!(answer.status, 409, "{}", answer.text());
        assert!(answer.json()["error"].as_str().unwrap().contains(&other.id().to_string()));
    }
    assert_eq!(server.get("/v1/databases/app/pos").txid(), 3);
}

#[test]
fn whole_records_before_a_cut_are_kept() {
    let Room { server, primary, _dir } = room(3);
    let records = primary.records(0);
    let ends: Vec<usize> = records.iter().scan(0, |at, record| { *at += record.len(); Some(*at) }).collect();
    let raw = records.concat();
    for cut in (0..raw.len()).step_by(397).chain(ends.iter().flat_map(|end| [end - 1, *end])) {
        let whole = ends.iter().filter(|end| **end <= cut).count() as u64;
        let at_boundary = cut == 0 || ends.contains(&cut);
        let name = format!("cut{cut}");
        let answer = server.append(&name, primary.id(), Pos::ZERO, &raw[..cut]);
        assert_eq!(answer.status, if at_boundary { 200 } else { 400 }, "cut at {cut}: {}", answer.text());
        assert_eq!(answer.txid(), whole, "cut at {cut}");
        // The same as a compressed stream that stops in the middle.
        let name = format!("torn{cut}");
        let body = zstd(&raw[..cut]);
        let answer = append(server.addr, &name, primary.id(), Pos::ZERO, &body[..body.len() - 1]);
        assert_eq!(answer.status, 400, "torn after {cut}: {}", answer.text());
        assert!(answer.txid() <= whole);
        // And both go on from there.
        let at = answer.txid();
        let rest = primary.records(at).concat();
        let answer = server.append(&name, primary.id(), primary.pos_at(at), &rest);
        assert_eq!((answer.status, answer.txid()), (200, 3), "{}", answer.text());
    }
}

#[test]
fn every_changed_byte_is_noticed() {
    let Room { server, primary, _dir } = room(2);
    let records = primary.records(0);
    let first = records[0].len();
    let raw = records.concat();
    for at in (0..raw.len()).step_by(211).chain([0, 8, 20, first - 1, first, raw.len() - 1]) {
        let mut bad = raw.clone();
        bad[at] ^= 1 << (at % 8);
        let answer = server.append(&format!("flip{at}"), primary.id(), Pos::ZERO, &bad);
        assert_eq!(answer.status, 400, "byte {at}: {}", answer.text());
        assert_eq!(answer.txid(), u64::from(at >= first), "byte {at}");
    }
}

#[test]
fn garbage_is_refused_and_leaves_nothing() {
    let Room { server, primary, _dir } = room(1);
    let mut noise = vec![0; 100_000];
    Random(1).fill(&mut noise);
    let bomb = zstd(&vec![0; 256 << 20]);
    assert!(bomb.len() < 100_000);
    let mut window = Vec::new();
    let mut encoder = zstd::stream::write::Encoder::new(&mut window, 1).unwrap();
    encoder.window_log(27).unwrap();
    encoder.write_all(&noise).unwrap();
    encoder.finish().unwrap();
    for (what, body) in [
        ("noise", noise.clone()),
        ("compressed noise", zstd(&noise)),
        ("raw records", primary.records(0).concat()),
        ("text", b"{\"hello\":1}".to_vec()),
        ("zeros", zstd(&[0; 1000])),
        ("a bomb", bomb),
        ("a huge window", window),
        ("rubbish after a frame", [zstd(b""), b"xx".to_vec()].concat()),
    ] {
        let begin = Instant::now();
        let answer = append(server.addr, "junk", primary.id(), Pos::ZERO, &body);
        assert_eq!(answer.status, 400, "{what}: {}", answer.text());
        assert_eq!(answer.txid(), 0, "{what}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{what} took {:?}", begin.elapsed());
        assert_eq!(answer.json()["error"].as_str().unwrap().lines().count(), 1);
    }
    assert!(!server.log("junk").exists(), "a refused request left a directory");
    assert!(!server.db("junk").exists());
    assert_eq!(server.get("/v1/databases/junk").status, 404);
    assert_eq!(server.get("/v1/databases").json()["databases"].as_array().unwrap().len(), 0);
}

#[test]
fn limits_hold() {
    let dir = tempfile::tempdir().unwrap();
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commit(1);
    primary.commit(50);
    primary.commit(1);
    let records = primary.records(0);
    let post = |server: &TestServer| server.append("app", primary.id(), Pos::ZERO, &records.concat());

    let server = TestServer::limited(&dir.path().join("a"), |limits| limits.record_bytes_max = 50_000);
    let answer = post(&server);
    assert_eq!((answer.status, answer.txid()), (413, 1), "{}", answer.text());

    let server = TestServer::limited(&dir.path().join("b"), |limits| limits.decoded_bytes_max = 50_000);
    let answer = post(&server);
    assert_eq!((answer.status, answer.txid()), (413, 1), "{}", answer.text());

    let server = TestServer::limited(&dir.path().join("c"), |limits| limits.database_bytes_max = 10 * 4096);
    let answer = post(&server);
    assert_eq!((answer.status, answer.txid()), (413, 1), "{}", answer.text());

    let server = TestServer::limited(&dir.path().join("d"), |limits| limits.body_bytes_max = 50_000);
    let answer = post(&server);
    assert_eq!(answer.status, 413, "{}", answer.text());
    // The same without a length that says so beforehand.
    let body = zstd(&records.concat());
    let mut bytes = format!(
        "POST /v1/databases/app/log HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{HEADER_DATABASE}: {}\r\n\
         {HEADER_AFTER}: {}\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n",
        primary.id(),
        Pos::ZERO,
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(&body);
    bytes.extend_from_slice(b"\r\n0\r\n\r\n");
    let answer = exchange(server.addr, &bytes);
    assert_eq!(answer.status, 413, "{}", answer.text());

    let server = TestServer::limited(&dir.path().join("e"), |limits| limits.databases_max = 1);
    assert_eq!(post(&server).status, 200);
    let answer = server.append("second", primary.id(), Pos::ZERO, &records[0]);
    assert_eq!(answer.status, 507, "{}", answer.text());
    assert!(answer.text().contains("databases_max"));
}

#[test]
fn names_reach_no_path() {
    let Room { server, primary, _dir } = room(1);
    let record = &primary.records(0)[0];
    for name in [
        "..", "%2e%2e", "..%2fescaped", "%2e%2e%2fescaped", ".hidden", "-x", "a%00b", "a%0ab", "x.db-wal", "a%5cb",
        "a%20b", "%c3%a4", "%ff", &"x".repeat(101),
    ] {
        let answer = server.append(name, primary.id(), Pos::ZERO, record);
        assert_eq!(answer.status, 400, "{name}: {}", answer.text());
        assert_eq!(server.get(&format!("/v1/databases/{name}/file")).status, 400, "{name}");
    }
    for path in ["/v1/databases/../x/log", "/v1/databases//log", "/v1/databases/a/b/log", "/v1/../../etc/passwd"] {
        let answer = append_to_path(&server, path, &primary, record);
        assert!([400, 404].contains(&answer.status), "{path}: {}", answer.text());
    }
    let names: Vec<String> = std::fs::read_dir(_dir.path())
        .unwrap()
        .chain(std::fs::read_dir(&server.data).unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

fn append_to_path(server: &TestServer, path: &str, primary: &Primary, record: &[u8]) -> Answer {
    let (id, after) = (primary.id().to_string(), Pos::ZERO.to_string());
    request(server.addr, "POST", path, &[(HEADER_DATABASE, &id), (HEADER_AFTER, &after)], &zstd(record))
}

#[test]
fn malformed_requests_are_refused_in_one_line() {
    let Room { server, primary, _dir } = room(1);
    let body = zstd(&primary.records(0)[0]);
    let path = "/v1/databases/app/log";
    let id = primary.id().to_string();
    let post = |headers: &[(&str, &str)]| request(server.addr, "POST", path, headers, &body);
    for headers in [
        &[][..],
        &[(HEADER_DATABASE, id.as_str())],
        &[(HEADER_AFTER, "0/0/0000000000000000")],
        &[(HEADER_DATABASE, "xyz"), (HEADER_AFTER, "0/0/0000000000000000")],
        &[(HEADER_DATABASE, &id), (HEADER_AFTER, "0/0")],
        &[(HEADER_DATABASE, &id), (HEADER_AFTER, "-1/0/0000000000000000")],
        &[(HEADER_DATABASE, &id), (HEADER_AFTER, "0/99999999999999999999999/0000000000000000")],
        &[(HEADER_DATABASE, &id), (HEADER_AFTER, "0/0/0000000000000000"), (HEADER_AFTER, "0/0/0000000000000000")],
    ] {
        let answer = post(headers);
        assert_eq!(answer.status, 400, "{headers:?}: {}", answer.text());
        assert!(answer.json()["error"].as_str().unwrap().contains("header"), "{}", answer.text());
    }
    assert_eq!(server.get("/nowhere").status, 404);
    assert_eq!(server.get("/v1/databases/app/nowhere").status, 404);
    assert_eq!(request(server.addr, "DELETE", "/v1/databases/app", &[], b"").status, 405);
    assert_eq!(request(server.addr, "PUT", path, &[], b"").status, 405);
    let long = "x".repeat(100_000);
    assert_eq!(request(server.addr, "GET", "/healthz", &[("x-long", &long)], b"").status, 431);
    assert_eq!(exchange(server.addr, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 no http at all\r\n\r\n").status, 400);
    assert!(!server.log("app").exists());
    assert_eq!(server.get("/healthz").text(), "ok\n");
}

#[test]
fn everything_is_told() {
    let Room { server, primary, _dir } = room(4);
    let handshake = |name: &str| {
        let path = format!("/v1/databases/{name}/pos");
        let answer = request(server.addr, "GET", &path, &[("accept", TYPE_HANDSHAKE)], b"");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type").unwrap(), TYPE_HANDSHAKE);
        Handshake::decode(&answer.body).unwrap()
    };
    assert_eq!(handshake("app").database, None);
    assert_eq!(server.get("/v1/databases/app/pos").status, 404);
    assert_eq!(server.append("app", primary.id(), Pos::ZERO, &primary.records(0).concat()).status, 200);
    assert_applied(&server, "app", 4, &primary.image);
    let hello = handshake("app");
    assert_eq!((hello.database, hello.pos(), hello.applied_txid), (Some([7; 16]), primary.pos(), 4));
    assert_eq!(hello.page_size, 4096);

    let info = server.get("/v1/databases/app").json();
    assert_eq!(info["name"], "app");
    assert_eq!(info["id"], primary.id().to_string());
    assert_eq!(info["first_txid"], 1);
    assert_eq!(info["page_count"], primary.image.len() / PAGE);
    assert_eq!(info["state"], "ok");
    assert_eq!(info["log_bytes"], server.log("app").join("00000000000000000001.seg").metadata().unwrap().len());
    assert_eq!(server.get("/v1/databases").json()["databases"][0], info);

    let metrics = server.get("/metrics").text();
    for line in [
        "mycelite_txid{database=\"app\"} 4".to_string(),
        "mycelite_applied_txid{database=\"app\"} 4".to_string(),
        format!("mycelite_log_bytes{{database=\"app\"}} {}", info["log_bytes"]),
        "mycelite_appended_records_total{database=\"app\"} 4".to_string(),
        "mycelite_http_requests_total{route=\"/v1/databases/{name}/log\",status=\"200\"} 1".to_string(),
        "mycelite_http_requests_total{route=\"/v1/databases/{name}/pos\",status=\"404\"} 1".to_string(),
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line}\n{metrics}");
    }
    let page = server.get("/");
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    assert!(page.text().contains(">app<"), "{}", page.text());
    for answer in [page, server.get("/healthz"), server.get("/nowhere")] {
        assert_eq!(answer.header("mycelite-protocol").as_deref(), Some("1"));
    }
}

#[test]
fn records_and_past_states_are_handed_out() {
    let Room { server, primary, _dir } = room(30);
    server.append("app", primary.id(), Pos::ZERO, &primary.records(0).concat());
    for after in [0, 1, 17, 29, 30] {
        let answer = server.get(&format!("/v1/databases/app/log?after={after}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("mycelite-head").unwrap(), primary.pos().to_string());
        assert!(zstd::decode_all(&answer.body[..]).unwrap() == primary.records(after).concat(), "after {after}");
    }
    for txid in [1, 2, 15, 30] {
        let answer = server.get(&format!("/v1/databases/app/file?txid={txid}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("mycelite-pos").unwrap(), primary.pos_at(txid).to_string());
        assert!(answer.body == primary.images[txid as usize], "transaction {txid}");
    }
    assert!(server.get("/v1/databases/app/snapshot").body == primary.image);
    for (path, status) in [
        ("log?after=31", 404),
        ("log?after=x", 400),
        ("log?after=-1", 400),
        ("log?since=1", 400),
        ("log?follow=1", 501),
        ("file?txid=31", 404),
        ("file?txid=0", 404),
        ("file?txid=", 400),
        ("file?at=2026-01-01T00:00:00Z", 501),
    ] {
        let answer = server.get(&format!("/v1/databases/app/{path}"));
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        assert_eq!(answer.json()["error"].as_str().unwrap().lines().count(), 1);
    }
    assert_eq!(server.get("/v1/databases/other/file").status, 404);
    let left: Vec<_> = std::fs::read_dir(server.data.join(".mycelite-tmp")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn tokens_and_scopes() {
    let Room { primary, _dir, server } = room(1);
    drop(server);
    let file = _dir.path().join("tokens");
    std::fs::write(&file, "# who\nreader read\nwriter append\nmaster\n").unwrap();
    let mut options = ServeOptions::new("0.0.0.0:0", _dir.path().join("data"));
    options.token_file = Some(file);
    let mut server = TestServer::with(options).unwrap();
    server.addr.set_ip("127.0.0.1".parse().unwrap());
    let (id, after) = (primary.id().to_string(), Pos::ZERO.to_string());
    let body = zstd(&primary.records(0)[0]);
    let call = |token: &str, method: &str, path: &str| {
        let bearer = format!("Bearer {token}");
        let mut headers = vec![(HEADER_DATABASE, id.as_str()), (HEADER_AFTER, after.as_str())];
        if !token.is_empty() {
            headers.push(("authorization", &bearer));
        }
        let answer = request(server.addr, method, path, &headers, if method == "POST" { &body } else { b"" });
        assert!(!answer.text().contains("master") && !answer.text().contains("writer"), "{}", answer.text());
        answer.status
    };
    let log = "/v1/databases/app/log";
    for (token, status) in [("", 401), ("wrong", 401), ("reader", 403), ("writer", 200), ("master", 412)] {
        assert_eq!(call(token, "POST", log), status, "{token}");
    }
    for path in ["/", "/metrics", "/v1/databases", "/v1/databases/app", log, "/v1/databases/app/file"] {
        for (token, status) in [("", 401), ("wrong", 401), ("reader", 200), ("writer", 403), ("master", 200)] {
            assert_eq!(call(token, "GET", path), status, "{token} {path}");
        }
    }
    assert_eq!(call("writer", "GET", "/v1/databases/app/pos"), 200);
    assert_eq!(call("", "GET", "/healthz"), 200);
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let Room { server, _dir, .. } = room(0);
    let dir = _dir.path();
    let file = dir.join("file");
    std::fs::write(&file, "read\n# no token follows\n").unwrap();
    let empty = dir.join("empty");
    std::fs::write(&empty, "# nothing\n").unwrap();
    let with_tokens = |path: &std::path::Path| {
        let mut options = ServeOptions::new("127.0.0.1:0", dir.join("x"));
        options.token_file = Some(path.to_path_buf());
        options
    };
    for (options, says) in [
        (ServeOptions::new("127.0.0.1:0", &server.data), "another mycelite serve uses this data directory"),
        (ServeOptions::new(server.addr.to_string(), dir.join("x")), "the port is in use"),
        (ServeOptions::new("0.0.0.0:0", dir.join("x")), "without a token file"),
        (ServeOptions::new("[::]:0", dir.join("x")), "without a token file"),
        (ServeOptions::new("nonsense", dir.join("x")), "no address to listen on"),
        (ServeOptions::new("127.0.0.1:0", &file), "not a directory"),
        (ServeOptions::new("127.0.0.1:0", dir.join("no/where")), "cannot create the data directory"),
        (with_tokens(&dir.join("missing")), "cannot read the token file"),
        (with_tokens(&empty), "no token in the token file"),
    ] {
        let Err(error) = TestServer::with(options) else { panic!("started: {says}") };
        let line = error.to_string();
        assert!(line.contains(says), "{line}");
        assert_eq!(line.lines().count(), 1);
    }
}

#[test]
fn a_file_that_is_not_a_replica_is_left_alone() {
    let Room { server, primary, _dir } = room(1);
    std::fs::write(server.db("mine"), b"precious").unwrap();
    let answer = server.append("mine", primary.id(), Pos::ZERO, &primary.records(0)[0]);
    assert_eq!(answer.status, 409, "{}", answer.text());
    assert_eq!(std::fs::read(server.db("mine")).unwrap(), b"precious");
    assert!(!server.log("mine").exists());
}

/// Opens a connection and sends the head of an append and `sent` bytes of its body, which has `body` bytes in all.
fn unfinished(server: &TestServer, name: &str, primary: &Primary, body: &[u8], sent: usize) -> TcpStream {
    let mut stream = TcpStream::connect(server.addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let head = format!(
        "POST /v1/databases/{name}/log HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{HEADER_DATABASE}: {}\r\n\
         {HEADER_AFTER}: {}\r\ncontent-length: {}\r\n\r\n",
        primary.id(),
        Pos::ZERO,
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&body[..sent]).unwrap();
    stream
}

#[test]
fn a_broken_connection_keeps_what_was_whole() {
    let Room { server, primary, _dir } = room(50);
    // Each record as a frame of its own, so that they can be decoded as they arrive.
    let frames: Vec<Vec<u8>> = primary.records(0).iter().map(|record| zstd(record)).collect();
    let body = frames.concat();
    let sent: usize = frames[..30].iter().map(Vec::len).sum::<usize>() + 10;
    drop(unfinished(&server, "app", &primary, &body, sent));
    eventually("the whole records are not kept", || {
        server.get("/v1/databases/app/pos").json()["txid"].as_u64() == Some(30)
    });
    let rest = primary.records(30).concat();
    assert_eq!(server.append("app", primary.id(), primary.pos_at(30), &rest).txid(), 50);
    assert_applied(&server, "app", 50, &primary.image);
}

#[test]
fn clients_that_stand_still_are_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::limited(&dir.path().join("data"), |limits| {
        limits.idle_max = Duration::from_millis(300);
        limits.header_timeout = Duration::from_millis(300);
        limits.append_wait = Duration::from_millis(100);
    });
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(2);
    let body = zstd(&primary.records(0).concat());

    let begin = Instant::now();
    let mut slow = unfinished(&server, "app", &primary, &body, 100);
    // While it holds the turn, another append is turned away in bounded time.
    std::thread::sleep(Duration::from_millis(50));
    let second = server.append("app", primary.id(), Pos::ZERO, &primary.records(0).concat());
    assert_eq!(second.status, 503, "{}", second.text());
    assert_eq!(second.header("retry-after").as_deref(), Some("1"));
    assert!(begin.elapsed() < Duration::from_secs(2));
    let answer = read_answer(&mut slow);
    assert_eq!(answer.status, 408, "{}", answer.text());
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(server.append("app", primary.id(), Pos::ZERO, &primary.records(0).concat()).status, 200);

    // A head that never ends, and a connection that says nothing at all.
    for sent in [&b"GET /healthz HTTP/1.1\r\nhost: loc"[..], b""] {
        let begin = Instant::now();
        let mut stream = TcpStream::connect(server.addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(sent).unwrap();
        let mut answer = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stream, &mut answer);
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    }
}

#[test]
fn connections_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::limited(&dir.path().join("data"), |limits| limits.connections_max = 3);
    let held: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(server.addr).unwrap()).collect();
    eventually("a fourth connection is served", || server.get("/healthz").status == 503);
    assert!(server.get("/healthz").text().contains("too many connections"));
    drop(held);
    eventually("connections are not given back", || server.get("/healthz").status == 200);
}

#[test]
fn a_web_page_cannot_reach_a_server_without_tokens() {
    let Room { server, .. } = room(0);
    let answer = exchange(server.addr, b"GET /v1/databases HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n");
    assert_eq!(answer.status, 403, "{}", answer.text());
}

#[test]
fn requests_in_flight_finish_at_shutdown() {
    let Room { server, primary, _dir } = room(2);
    let body = zstd(&primary.records(0).concat());
    let mut stream = unfinished(&server, "app", &primary, &body, 10);
    eventually("the append has not begun", || server.log("app").exists());
    let (data, log) = (server.data.clone(), server.log("app"));
    let stopping = std::thread::spawn(move || server.stop());
    std::thread::sleep(Duration::from_millis(100));
    stream.write_all(&body[10..]).unwrap();
    assert_eq!(read_answer(&mut stream).status, 200);
    stopping.join().unwrap();
    assert_eq!(raw_records(&log, 0).len(), 2);
    // The directory is free again, and the file complete.
    let server = TestServer::start(&data);
    assert_applied(&server, "app", 2, &primary.image);
}

#[test]
fn a_restarted_server_applies_what_is_in_the_log() {
    let Room { server, primary, _dir } = room(40);
    server.append("app", primary.id(), Pos::ZERO, &primary.records(0)[..20].concat());
    assert_applied(&server, "app", 20, &primary.images[20]);
    let (data, db, log) = (server.data.clone(), server.db("app"), server.log("app"));
    server.stop();
    // As if it had been killed after storing more than it applied.
    let mut stored = mycelite_journal::Log::open(std::sync::Arc::new(mycelite_journal::FileStorage::new(&log))).unwrap();
    for record in primary.records(20) {
        stored.append_raw(&mut &record[..], &Default::default()).unwrap();
    }
    drop(stored);
    let server = TestServer::start(&data);
    eventually("the file does not catch up by itself", || std::fs::read(&db).unwrap() == primary.image);
    assert_eq!(server.get("/v1/databases/app/pos").txid(), 40);
}

#[test]
fn child_server() {
    serve_as_child();
}

#[test]
fn killed_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(400);
    let records = primary.records(0);
    let positions: Vec<Pos> = (0..=400).map(|txid| primary.pos_at(txid)).collect();
    let mut random = Random(42);
    let mut acked = 0;
    let mut kills = 0;
    while acked < 400 {
        let server = ChildServer::start("child_server", &data, 0);
        let addr = server.addr;
        let pause = Duration::from_millis(5 + random.below(60));
        let killer = std::thread::spawn(move || {
            std::thread::sleep(pause);
            server.kill();
        });
        while acked < 400 {
            let until = (acked + 1 + random.below(8) as usize).min(400);
            let body = zstd(&records[acked..until].concat());
            let Some(answer) = try_append(addr, "app", primary.id(), positions[acked], &body) else {
                break;
            };
            let txid = answer.txid() as usize;
            match answer.status {
                200 => assert_eq!(txid, until),
                // Stored before the kill, and the answer lost with it; never the other way round.
                412 => assert!(txid > acked, "acknowledged {acked}, kept {txid}"),
                _ => panic!("{}", answer.text()),
            }
            acked = txid;
        }
        killer.join().unwrap();
        kills += 1;
        assert!(kills < 200, "no progress: {acked} of 400");
    }
    assert!(kills > 1, "nothing was killed");
    let server = TestServer::start(&data);
    assert_eq!(server.get("/v1/databases/app/pos").txid(), 400);
    assert_applied(&server, "app", 400, &primary.image);
    assert_eq!(raw_records(&server.log("app"), 0), records);
}
