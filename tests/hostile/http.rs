//! What is wrong before any record is looked at: request lines, headers, framing, names, queries, tokens.

use mycelite::proto::{HEADER_AFTER, HEADER_DATABASE};
use mycelite_journal::Pos;

use crate::kit::{CLOSED, Case, Send, World};
use crate::netkit::{Random, zstd};

pub fn cases(world: &World) -> Vec<Case> {
    let mut all = names(world);
    all.extend(routes(world));
    all.extend(queries(world));
    all.extend(tokens(world));
    all.extend(heads(world));
    all.extend(framing(world));
    all.extend(lines(world));
    all
}

fn names(world: &World) -> Vec<Case> {
    let record = zstd(&world.primary.records(0)[0]);
    let long = "x".repeat(101);
    let mut cases = Vec::new();
    for name in [
        "..",
        "%2e%2e",
        "..%2fescaped",
        "%2e%2e%2f%2e%2e%2fetc",
        ".hidden",
        "-x",
        "_x",
        "a%00b",
        "a%0ab",
        "a%0d%0aset-cookie:x",
        "x.db-wal",
        "x.db-shm",
        "x.db-journal",
        "x.db-mycelite",
        "a%5cb",
        "a%20b",
        "%c3%a4",
        "%ff",
        "a%2fb",
        "~root",
        &long,
    ] {
        let shown = &name[..name.len().min(40)];
        cases.push(Case::new(
            format!("append to the name {shown}"),
            world.append(name, Pos::ZERO, &record),
            &[400],
        ));
        cases.push(Case::new(
            format!("file of the name {shown}"),
            world.get("reader", &format!("/v1/databases/{name}/file")),
            &[400],
        ));
    }
    cases
}

fn routes(world: &World) -> Vec<Case> {
    let mut cases = Vec::new();
    for path in [
        "/v1/databases/../app/log",
        "/v1/databases//log",
        "/v1/databases/app/log/",
        "/v1/databases/a/b/log",
        "/v1/../../etc/passwd",
        "//v1/databases",
        "/V1/databases",
        "/v2/databases",
        "/.mycelite-serve.lock",
        "/app.db",
    ] {
        cases.push(Case::new(
            format!("the path {path}"),
            world.get("reader", path),
            &[400, 404],
        ));
    }
    for (method, path) in [
        ("DELETE", "/v1/databases/app"),
        ("PUT", "/v1/databases/app/log"),
        ("PATCH", "/v1/databases/app/log"),
        ("POST", "/v1/databases"),
        ("POST", "/metrics"),
        ("TRACE", "/healthz"),
        ("OPTIONS", "/v1/databases/app/log"),
        ("get", "/healthz"),
        ("FROBNICATE", "/healthz"),
    ] {
        cases.push(Case::new(
            format!("{method} {path}"),
            world.plain(method, path, &[("authorization", "Bearer master")]),
            &[405],
        ));
    }
    cases
}

fn queries(world: &World) -> Vec<Case> {
    let mut cases = Vec::new();
    for (route, query) in [
        ("pos", "txid=-1"),
        ("pos", "txid=+1"),
        ("pos", "txid="),
        ("pos", "txid=abc"),
        ("pos", "txid=1e3"),
        ("pos", "txid=99999999999999999999"),
        ("pos", "txid=%00"),
        ("pos", "txid=1&txid=2"),
        ("pos", "x=1"),
        ("log", "before=1"),
        ("log", "after=1&after=1"),
        ("log", "after=%ff"),
        ("log", "follow=yes"),
        ("file", "txid=0x10"),
        ("file", "path=/etc/passwd"),
        ("log", "token=reader"),
    ] {
        cases.push(Case::new(
            format!("{route}?{query}"),
            world.get("reader", &format!("/v1/databases/app/{route}?{query}")),
            &[400],
        ));
    }
    for (route, query, want) in [
        ("pos", "txid=18446744073709551615", &[404][..]),
        ("pos", "txid=5", &[404]),
        ("file", "txid=5", &[404]),
        ("file", "txid=18446744073709551615", &[404]),
        ("log", "after=5", &[404, 409, 416]),
        ("log", "after=18446744073709551615", &[404, 409, 416]),
        ("log", "follow=99", &[501]),
    ] {
        cases.push(Case {
            name: format!("{route}?{query}"),
            send: Send::Whole(world.get("reader", &format!("/v1/databases/app/{route}?{query}"))),
            want,
        });
    }
    cases
}

fn tokens(world: &World) -> Vec<Case> {
    let (id, after) = (
        world.primary.id().to_string(),
        world.primary.pos_at(4).to_string(),
    );
    let record = zstd(&world.primary.records(4)[0]);
    let append = |authorization: &[&str]| {
        let mut headers = vec![
            (HEADER_DATABASE, id.as_str()),
            (HEADER_AFTER, after.as_str()),
        ];
        headers.extend(authorization.iter().map(|value| ("authorization", *value)));
        world.post("app", &headers, &record)
    };
    let long = format!("Bearer {}", "x".repeat(600));
    let mut cases = Vec::new();
    for (what, authorization, want) in [
        ("no token", &[][..], &[401][..]),
        ("a wrong token", &["Bearer wrong"], &[401]),
        ("the start of a token", &["Bearer write"], &[401]),
        ("more than a token", &["Bearer writerr"], &[401]),
        ("a token in capitals", &["Bearer WRITER"], &[401]),
        ("an empty token", &["Bearer "], &[401]),
        ("a long token", &[&long], &[401]),
        ("another scheme", &["Basic d3JpdGVyOg=="], &[401]),
        ("two tokens", &["Bearer writer", "Bearer writer"], &[401]),
        ("two words", &["Bearer writer reader"], &[401]),
        ("a token for reading", &["Bearer reader"], &[403]),
        ("a token for another database", &["Bearer narrow"], &[403]),
    ] {
        cases.push(Case {
            name: format!("append with {what}"),
            send: Send::Whole(append(authorization)),
            want,
        });
    }
    for (token, path, want) in [
        ("writer", "/v1/databases/app/log", &[403][..]),
        ("writer", "/v1/databases/app/file", &[403]),
        ("writer", "/v1/databases", &[403]),
        ("writer", "/metrics", &[403]),
        ("narrow", "/v1/databases", &[403]),
        ("narrow", "/v1/databases/app", &[403]),
        ("narrow", "/metrics", &[403]),
        ("narrow", "/", &[403]),
        ("nobody", "/", &[401]),
        ("nobody", "/v1/databases/none-such", &[401]),
    ] {
        cases.push(Case {
            name: format!("{token} reads {path}"),
            send: Send::Whole(world.get(token, path)),
            want,
        });
    }
    cases
}

fn heads(world: &World) -> Vec<Case> {
    let good = Pos::ZERO.to_string();
    let id = world.primary.id().to_string();
    let token = ("authorization", "Bearer writer");
    let mut cases = Vec::new();
    for (what, headers) in [
        ("no header of ours", vec![token]),
        ("no place", vec![token, (HEADER_DATABASE, id.as_str())]),
        ("no id", vec![token, (HEADER_AFTER, &good)]),
        (
            "a short id",
            vec![token, (HEADER_DATABASE, "07"), (HEADER_AFTER, &good)],
        ),
        (
            "two ids",
            vec![
                token,
                (HEADER_DATABASE, &id),
                (HEADER_DATABASE, &id),
                (HEADER_AFTER, &good),
            ],
        ),
        (
            "half a place",
            vec![token, (HEADER_DATABASE, &id), (HEADER_AFTER, "1/4")],
        ),
        (
            "a negative place",
            vec![
                token,
                (HEADER_DATABASE, &id),
                (HEADER_AFTER, "-1/4/0000000000000000"),
            ],
        ),
        (
            "a huge place",
            vec![
                token,
                (HEADER_DATABASE, &id),
                (HEADER_AFTER, "0/99999999999999999999/0000000000000000"),
            ],
        ),
        (
            "a place of other letters",
            vec![token, (HEADER_DATABASE, &id), (HEADER_AFTER, "1/4/\u{e9}")],
        ),
    ] {
        cases.push(Case::new(
            format!("append with {what}"),
            world.post("app", &headers, b""),
            &[400],
        ));
    }
    let long = "x".repeat(100_000);
    cases.push(Case::new(
        "a long header",
        world.plain("GET", "/healthz", &[("x-long", &long)]),
        &[431],
    ));
    cases.push(Case::new(
        "a thousand headers",
        world.plain("GET", "/healthz", &vec![("x", "y"); 1000]),
        &[431],
    ));
    cases.push(Case::new(
        "a long path",
        world.plain("GET", &format!("/{long}"), &[]),
        &[414, 431],
    ));
    for (what, head) in [
        (
            "a name with a blank",
            "GET /healthz HTTP/1.1\r\nx y: z\r\n\r\n",
        ),
        (
            "a blank before the colon",
            "GET /healthz HTTP/1.1\r\nx : z\r\n\r\n",
        ),
        (
            "a folded header",
            "GET /healthz HTTP/1.1\r\nx: y\r\n z\r\n\r\n",
        ),
        (
            "a zero byte in a value",
            "GET /healthz HTTP/1.1\r\nx: \0\r\n\r\n",
        ),
        (
            "a header without a colon",
            "GET /healthz HTTP/1.1\r\nhello\r\n\r\n",
        ),
        ("a zero byte in the path", "GET /\0 HTTP/1.1\r\n\r\n"),
        ("no version", "GET /healthz\r\n\r\n"),
        ("version 3", "GET /healthz HTTP/3.0\r\n\r\n"),
        ("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("another protocol", "SSH-2.0-OpenSSH_9.2\r\n\r\n"),
        ("an empty method", " /healthz HTTP/1.1\r\n\r\n"),
    ] {
        cases.push(Case::new(what, head, &[400, CLOSED]));
    }
    cases
}

/// Bodies whose end can be read in two ways, or in none.
fn framing(world: &World) -> Vec<Case> {
    let smuggled = "GET /v1/databases HTTP/1.1\r\nhost: x\r\nauthorization: Bearer reader\r\n\r\n";
    let post = |headers: &str, rest: &str| {
        format!(
            "POST /v1/databases/app/log HTTP/1.1\r\nhost: x\r\nauthorization: Bearer writer\r\n\
             {HEADER_DATABASE}: {}\r\n{HEADER_AFTER}: {}\r\n{headers}\r\n\r\n{rest}",
            world.primary.id(),
            Pos::ZERO
        )
    };
    let inside = format!("0\r\n\r\n{smuggled}");
    let mut cases = Vec::new();
    for (what, headers, rest) in [
        (
            "two lengths",
            "content-length: 5\r\ncontent-length: 6",
            "hello!",
        ),
        ("a list of lengths", "content-length: 5, 6", "hello!"),
        ("a length with a sign", "content-length: +5", "hello"),
        ("a negative length", "content-length: -5", "hello"),
        ("a length in hexadecimal", "content-length: 0x5", "hello"),
        (
            "a length beyond 64 bits",
            "content-length: 18446744073709551616",
            "x",
        ),
        ("an empty length", "content-length:", ""),
        (
            "a coding that is none",
            "transfer-encoding: xchunked",
            &inside,
        ),
        (
            "chunked, then something",
            "transfer-encoding: chunked, identity",
            &inside,
        ),
        (
            "a chunk without a length",
            "transfer-encoding: chunked",
            "zz\r\nhello\r\n",
        ),
        (
            "a huge chunk",
            "transfer-encoding: chunked",
            "fffffffffffffffff\r\nhello\r\n",
        ),
        (
            "a negative chunk",
            "transfer-encoding: chunked",
            "-1\r\nhello\r\n",
        ),
        (
            "a chunk that is too short",
            "transfer-encoding: chunked",
            "3\r\nhello\r\n0\r\n\r\n",
        ),
    ] {
        cases.push(Case {
            name: what.to_string(),
            send: Send::HalfClosed(post(headers, rest).into_bytes()),
            want: &[400, 411, 413, 501, CLOSED],
        });
    }
    // The second of two readings would serve what is inside.
    for (what, headers) in [
        (
            "length and chunks",
            format!(
                "content-length: {}\r\ntransfer-encoding: chunked",
                inside.len()
            ),
        ),
        (
            "chunks and length",
            format!(
                "transfer-encoding: chunked\r\ncontent-length: {}",
                inside.len()
            ),
        ),
        (
            "chunks twice",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked".to_string(),
        ),
        (
            "a tab before chunked",
            "transfer-encoding:\tchunked\r\ncontent-length: 4".to_string(),
        ),
        (
            "a length too long for the body",
            format!("content-length: {}", inside.len() + 50),
        ),
    ] {
        cases.push(Case {
            name: what.to_string(),
            send: Send::HalfClosed(post(&headers, &inside).into_bytes()),
            want: &[400, 412, 411, 501, CLOSED],
        });
    }
    cases.push(Case::new(
        "a length above the limit",
        post("content-length: 99999999999", "x"),
        &[413],
    ));
    cases
}

/// The connection itself.
fn lines(world: &World) -> Vec<Case> {
    let mut noise = vec![0; 100_000];
    Random(3).fill(&mut noise);
    let head = b"GET /healthz HTTP/1.1\r\nx: ".to_vec();
    let body = zstd(&world.primary.records(0).concat());
    let whole = world.append("app", Pos::ZERO, &body);
    let cut = whole[..whole.len() - body.len() / 2].to_vec();
    let case = |name: &str, send: Send, want: &'static [u16]| Case {
        name: name.to_string(),
        send,
        want,
    };
    vec![
        case("noise", Send::HalfClosed(noise), &[400, CLOSED]),
        case("zeros", Send::HalfClosed(vec![0; 100_000]), &[400, CLOSED]),
        case(
            "a line without an end",
            Send::Whole(vec![b'G'; 200_000]),
            &[400, 414, 431, CLOSED],
        ),
        case(
            "a greeting of TLS",
            Send::HalfClosed(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
            &[400, CLOSED],
        ),
        case("nothing", Send::Whole(Vec::new()), &[408, CLOSED]),
        case("nothing, closed", Send::HalfClosed(Vec::new()), &[CLOSED]),
        case("half a head", Send::Whole(head.clone()), &[408, CLOSED]),
        case(
            "half a head, closed",
            Send::HalfClosed(head.clone()),
            &[400, CLOSED],
        ),
        case("a slow head", Send::Slowly(head), &[400, 408, CLOSED]),
        case("half a body", Send::Whole(cut.clone()), &[408, 412]),
        case(
            "half a body, closed",
            Send::HalfClosed(cut),
            &[400, 412, CLOSED],
        ),
        case(
            "many files, never read",
            Send::Unread(world.get("reader", "/v1/databases/app/file").repeat(50)),
            &[CLOSED],
        ),
    ]
}
