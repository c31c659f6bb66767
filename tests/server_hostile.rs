//! Requests that a server must refuse or survive: malformed, hostile, too large, too slow, without permission.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;
mod netkit;

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use mycelite::proto::{HEADER_AFTER, HEADER_DATABASE};
use mycelite::server::ServeOptions;
use mycelite_journal::Pos;
use netkit::*;
#[test]
fn garbage_is_refused_and_leaves_nothing() {
    let Room {
        server,
        primary,
        _dir,
    } = room(1);
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
        (
            "rubbish after a frame",
            [zstd(b""), b"xx".to_vec()].concat(),
        ),
    ] {
        let begin = Instant::now();
        let answer = append(server.addr, "junk", primary.id(), Pos::ZERO, &body);
        assert_eq!(answer.status, 400, "{what}: {}", answer.text());
        assert_eq!(answer.txid(), 0, "{what}");
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "{what} took {:?}",
            begin.elapsed()
        );
        assert_eq!(answer.json()["error"].as_str().unwrap().lines().count(), 1);
    }
    assert!(
        !server.log("junk").exists(),
        "a refused request left a directory"
    );
    assert!(!server.db("junk").exists());
    assert_eq!(server.get("/v1/databases/junk").status, 404);
    assert_eq!(
        server.get("/v1/databases").json()["databases"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
}

#[test]
fn limits_hold() {
    let dir = tempfile::tempdir().unwrap();
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commit(1);
    primary.commit(50);
    primary.commit(1);
    let records = primary.records(0);
    let post =
        |server: &TestServer| server.append("app", primary.id(), Pos::ZERO, &records.concat());

    let server = TestServer::limited(&dir.path().join("a"), |limits| {
        limits.record_bytes_max = 50_000
    });
    let answer = post(&server);
    assert_eq!(
        (answer.status, answer.txid()),
        (413, 1),
        "{}",
        answer.text()
    );

    let server = TestServer::limited(&dir.path().join("b"), |limits| {
        limits.decoded_bytes_max = 50_000
    });
    let answer = post(&server);
    assert_eq!(
        (answer.status, answer.txid()),
        (413, 1),
        "{}",
        answer.text()
    );

    let server = TestServer::limited(&dir.path().join("c"), |limits| {
        limits.database_bytes_max = 10 * 4096
    });
    let answer = post(&server);
    assert_eq!(
        (answer.status, answer.txid()),
        (413, 1),
        "{}",
        answer.text()
    );

    let server = TestServer::limited(&dir.path().join("d"), |limits| {
        limits.body_bytes_max = 50_000
    });
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
    let Room {
        server,
        primary,
        _dir,
    } = room(1);
    let record = &primary.records(0)[0];
    for name in [
        "..",
        "%2e%2e",
        "..%2fescaped",
        "%2e%2e%2fescaped",
        ".hidden",
        "-x",
        "a%00b",
        "a%0ab",
        "x.db-wal",
        "a%5cb",
        "a%20b",
        "%c3%a4",
        "%ff",
        &"x".repeat(101),
    ] {
        let answer = server.append(name, primary.id(), Pos::ZERO, record);
        assert_eq!(answer.status, 400, "{name}: {}", answer.text());
        assert_eq!(
            server.get(&format!("/v1/databases/{name}/file")).status,
            400,
            "{name}"
        );
    }
    for path in [
        "/v1/databases/../x/log",
        "/v1/databases//log",
        "/v1/databases/a/b/log",
        "/v1/../../etc/passwd",
    ] {
        let answer = append_to_path(&server, path, &primary, record);
        assert!(
            [400, 404].contains(&answer.status),
            "{path}: {}",
            answer.text()
        );
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
    request(
        server.addr,
        "POST",
        path,
        &[(HEADER_DATABASE, &id), (HEADER_AFTER, &after)],
        &zstd(record),
    )
}

#[test]
fn malformed_requests_are_refused_in_one_line() {
    let Room {
        server,
        primary,
        _dir,
    } = room(1);
    let body = zstd(&primary.records(0)[0]);
    let path = "/v1/databases/app/log";
    let id = primary.id().to_string();
    let post = |headers: &[(&str, &str)]| request(server.addr, "POST", path, headers, &body);
    for headers in [
        &[][..],
        &[(HEADER_DATABASE, id.as_str())],
        &[(HEADER_AFTER, "0/0/0000000000000000")],
        &[
            (HEADER_DATABASE, "xyz"),
            (HEADER_AFTER, "0/0/0000000000000000"),
        ],
        &[(HEADER_DATABASE, &id), (HEADER_AFTER, "0/0")],
        &[
            (HEADER_DATABASE, &id),
            (HEADER_AFTER, "-1/0/0000000000000000"),
        ],
        &[
            (HEADER_DATABASE, &id),
            (HEADER_AFTER, "0/99999999999999999999999/0000000000000000"),
        ],
        &[
            (HEADER_DATABASE, &id),
            (HEADER_AFTER, "0/0/0000000000000000"),
            (HEADER_AFTER, "0/0/0000000000000000"),
        ],
    ] {
        let answer = post(headers);
        assert_eq!(answer.status, 400, "{headers:?}: {}", answer.text());
        assert!(
            answer.json()["error"].as_str().unwrap().contains("header"),
            "{}",
            answer.text()
        );
    }
    assert_eq!(server.get("/nowhere").status, 404);
    assert_eq!(server.get("/v1/databases/app/nowhere").status, 404);
    assert_eq!(
        request(server.addr, "DELETE", "/v1/databases/app", &[], b"").status,
        405
    );
    assert_eq!(request(server.addr, "PUT", path, &[], b"").status, 405);
    let long = "x".repeat(100_000);
    assert_eq!(
        request(server.addr, "GET", "/healthz", &[("x-long", &long)], b"").status,
        431
    );
    assert_eq!(
        exchange(
            server.addr,
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 no http at all\r\n\r\n"
        )
        .status,
        400
    );
    assert!(!server.log("app").exists());
    assert_eq!(server.get("/healthz").text(), "ok\n");
}

#[test]
fn tokens_and_scopes() {
    let Room {
        primary,
        _dir,
        server,
    } = room(1);
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
        let mut headers = vec![
            (HEADER_DATABASE, id.as_str()),
            (HEADER_AFTER, after.as_str()),
        ];
        if !token.is_empty() {
            headers.push(("authorization", &bearer));
        }
        let answer = request(
            server.addr,
            method,
            path,
            &headers,
            if method == "POST" { &body } else { b"" },
        );
        assert!(
            !answer.text().contains("master") && !answer.text().contains("writer"),
            "{}",
            answer.text()
        );
        answer.status
    };
    let log = "/v1/databases/app/log";
    for (token, status) in [
        ("", 401),
        ("wrong", 401),
        ("reader", 403),
        ("writer", 200),
        ("master", 412),
    ] {
        assert_eq!(call(token, "POST", log), status, "{token}");
    }
    for path in [
        "/",
        "/metrics",
        "/v1/databases",
        "/v1/databases/app",
        log,
        "/v1/databases/app/file",
    ] {
        for (token, status) in [
            ("", 401),
            ("wrong", 401),
            ("reader", 200),
            ("writer", 403),
            ("master", 200),
        ] {
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
        (
            ServeOptions::new("127.0.0.1:0", &server.data),
            "another mycelite serve uses this data directory",
        ),
        (
            ServeOptions::new(server.addr.to_string(), dir.join("x")),
            "the port is in use",
        ),
        (
            ServeOptions::new("0.0.0.0:0", dir.join("x")),
            "without a token file",
        ),
        (
            ServeOptions::new("[::]:0", dir.join("x")),
            "without a token file",
        ),
        (
            ServeOptions::new("nonsense", dir.join("x")),
            "no address to listen on",
        ),
        (ServeOptions::new("127.0.0.1:0", &file), "not a directory"),
        (
            ServeOptions::new("127.0.0.1:0", dir.join("no/where")),
            "cannot create the data directory",
        ),
        (
            with_tokens(&dir.join("missing")),
            "cannot read the token file",
        ),
        (with_tokens(&empty), "no token in the token file"),
    ] {
        let Err(error) = TestServer::with(options) else {
            panic!("started: {says}")
        };
        let line = error.to_string();
        assert!(line.contains(says), "{line}");
        assert_eq!(line.lines().count(), 1);
    }
}

#[test]
fn a_file_that_is_not_a_replica_is_left_alone() {
    let Room {
        server,
        primary,
        _dir,
    } = room(1);
    std::fs::write(server.db("mine"), b"precious").unwrap();
    let answer = server.append("mine", primary.id(), Pos::ZERO, &primary.records(0)[0]);
    assert_eq!(answer.status, 409, "{}", answer.text());
    assert_eq!(std::fs::read(server.db("mine")).unwrap(), b"precious");
    assert!(!server.log("mine").exists());
}

#[test]
fn a_broken_connection_keeps_what_was_whole() {
    let Room {
        server,
        primary,
        _dir,
    } = room(50);
    // Each record as a frame of its own, so that they can be decoded as they arrive.
    let frames: Vec<Vec<u8>> = primary
        .records(0)
        .iter()
        .map(|record| zstd(record))
        .collect();
    let body = frames.concat();
    let sent: usize = frames[..30].iter().map(Vec::len).sum::<usize>() + 10;
    drop(unfinished(&server, "app", &primary, &body, sent));
    eventually("the whole records are not kept", || {
        server.get("/v1/databases/app/pos").json()["txid"].as_u64() == Some(30)
    });
    let rest = primary.records(30).concat();
    assert_eq!(
        server
            .append("app", primary.id(), primary.pos_at(30), &rest)
            .txid(),
        50
    );
    assert_applied(&server, "app", 50, &primary.image);
}

#[test]
fn clients_that_stand_still_are_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::limited(&dir.path().join("data"), |limits| {
        limits.idle_max = Duration::from_secs(4);
        limits.header_timeout = Duration::from_secs(2);
        limits.append_wait = Duration::from_millis(100);
    });
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(2);
    let body = zstd(&primary.records(0).concat());

    let mut slow = unfinished(&server, "app", &primary, &body, 100);
    // While it holds the turn, another append is turned away.
    eventually("the slow one has its turn", || server.log("app").exists());
    let second = server.append("app", primary.id(), Pos::ZERO, &primary.records(0).concat());
    assert_eq!(second.status, 503, "{}", second.text());
    assert_eq!(second.header("retry-after").as_deref(), Some("1"));
    let answer = read_answer(&mut slow);
    assert_eq!(answer.status, 408, "{}", answer.text());
    assert_eq!(
        server
            .append("app", primary.id(), Pos::ZERO, &primary.records(0).concat())
            .status,
        200
    );

    // A head that never ends, and a connection that says nothing at all.
    for sent in [&b"GET /healthz HTTP/1.1\r\nhost: loc"[..], b""] {
        let begin = Instant::now();
        let mut stream = TcpStream::connect(server.addr).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(120)))
            .unwrap();
        stream.write_all(sent).unwrap();
        let mut answer = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stream, &mut answer);
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "{:?}",
            begin.elapsed()
        );
    }
}

#[test]
fn connections_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::limited(&dir.path().join("data"), |limits| {
        limits.connections_max = 3
    });
    let held: Vec<TcpStream> = (0..3)
        .map(|_| TcpStream::connect(server.addr).unwrap())
        .collect();
    eventually("a fourth connection is served", || {
        server.get("/healthz").status == 503
    });
    assert!(
        server
            .get("/healthz")
            .text()
            .contains("too many connections")
    );
    drop(held);
    eventually("connections are not given back", || {
        server.get("/healthz").status == 200
    });
}

#[test]
fn a_web_page_cannot_reach_a_server_without_tokens() {
    let Room { server, .. } = room(0);
    let answer = exchange(
        server.addr,
        b"GET /v1/databases HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n",
    );
    assert_eq!(answer.status, 403, "{}", answer.text());
}

#[test]
fn a_log_without_records_claims_no_name() {
    let Room {
        server,
        primary,
        _dir,
    } = room(2);
    let data = server.data.clone();
    server.stop();
    // What a server leaves that is killed between making a log and storing its first record; and before the log is made.
    drop(Primary::new(data.join("app.db-mycelite"), 9));
    std::fs::create_dir(data.join("bare.db-mycelite")).unwrap();
    let server = TestServer::start(&data);
    for name in ["app", "bare"] {
        let answer = server.append(name, primary.id(), Pos::ZERO, &primary.records(0).concat());
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        assert_applied(&server, name, 2, &primary.image);
    }
}
