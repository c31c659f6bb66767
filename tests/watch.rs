//! What an operator looks at: metrics, logs, and how a server ends.
#![cfg(unix)]
#![allow(missing_docs, clippy::unwrap_used)]

mod clihome;
mod clikit;
mod common;
mod netkit;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use clihome::{COMMITS, Home};
use clikit::{Serve, run, signal, text, wait_for};

const LONG: Duration = Duration::from_secs(20);

/// The samples by name and labels; what does not look like Prometheus' text format is a failure.
fn metrics(server: &Serve) -> BTreeMap<String, f64> {
    let addr = server.address.parse().unwrap();
    let answer = netkit::request(addr, "GET", "/metrics", &[], b"");
    assert_eq!(answer.status, 200);
    let kind = answer.header("content-type").unwrap();
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    let (mut helped, mut typed) = (BTreeSet::new(), BTreeMap::new());
    let mut samples = BTreeMap::new();
    for line in answer.text().lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(help.ends_with('.'), "{line}");
            assert!(helped.insert(name.to_string()), "twice: {line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(
                helped.contains(name) && ["gauge", "counter"].contains(&kind),
                "{line}"
            );
            typed.insert(name.to_string(), kind.to_string());
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            assert!(typed.contains_key(name), "no type: {line}");
            assert!(
                name.starts_with("mycelite_")
                    && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{line}"
            );
            assert!(
                !name.contains("milli"),
                "seconds and bytes are the units: {line}"
            );
            let value = value.parse().unwrap();
            assert!(
                samples.insert(series.to_string(), value).is_none(),
                "twice: {line}"
            );
        }
    }
    samples
}

#[test]
fn metrics_say_how_it_goes() {
    let home = Home::new();
    let server = Serve::start(&home.path("first"), &[]);
    let empty = metrics(&server);
    assert_eq!(empty["mycelite_followers"], 0.0);
    run(["push", text(&home.db()), "--to", &server.url("app")]).good();
    let mirror = Serve::start(
        &home.path("second"),
        &["--follow", &format!("app={}", server.url("app"))],
    );
    wait_for("the mirror", LONG, || {
        std::fs::read(mirror.db("app")).ok().as_ref() == home.states.last()
    });
    let of = |name: &str| format!("mycelite_{name}{{database=\"app\"}}");
    let first = metrics(&server);
    for (name, value) in [
        ("txid", COMMITS as f64),
        ("applied_txid", COMMITS as f64),
        ("lag_txids", 0.0),
        ("ok", 1.0),
        ("appended_records_total", COMMITS as f64),
        ("apply_failures_total", 0.0),
        ("parked_tails", 0.0),
    ] {
        assert_eq!(first[&of(name)], value, "{name}: {first:?}");
    }
    assert!(first[&of("log_bytes")] > 0.0);
    assert_eq!(first["mycelite_followers"], 1.0);
    assert_eq!(
        first["mycelite_http_requests_total{route=\"/metrics\",status=\"200\"}"],
        1.0
    );
    let second = metrics(&mirror);
    for (name, value) in [
        ("follow_ok", 1.0),
        ("follow_stalled", 0.0),
        ("follow_head_txid", COMMITS as f64),
        ("follow_lag_txids", 0.0),
        ("follow_lag_seconds", 0.0),
    ] {
        assert_eq!(second[&of(name)], value, "{name}: {second:?}");
    }
    // The line goes away: that is to be seen.
    drop(server);
    wait_for("the lost line", LONG, || {
        metrics(&mirror)[&of("follow_ok")] == 0.0
    });
}

#[test]
fn log_lines_may_be_json() {
    let home = Home::new();
    let log = home.path("log");
    let server = Serve::start_logged(&home.path("data"), &["--log-format", "json", "-v"], &log);
    run(["push", text(&home.db()), "--to", &server.url("app")]).good();
    wait_for("a line", LONG, || {
        std::fs::read_to_string(&log)
            .unwrap()
            .contains("/v1/databases/{name}/log")
    });
    for line in std::fs::read_to_string(&log).unwrap().lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(
            line["timestamp"].is_string() && line["level"].is_string(),
            "{line}"
        );
        assert!(line["fields"]["message"].is_string(), "{line}");
    }
}

#[test]
fn a_server_ends_in_time_whatever_is_open() {
    let home = Home::new();
    let mut server = Serve::start(&home.path("data"), &[]);
    run(["push", text(&home.db()), "--to", &server.url("app")]).good();
    let open = |bytes: &str| {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.write_all(bytes.as_bytes()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    };
    let mut streams: Vec<TcpStream> = (0..20)
        .map(|_| {
            open("GET /v1/databases/app/log?after=0&follow=1 HTTP/1.1\r\nhost: localhost\r\n\r\n")
        })
        .collect();
    for stream in &mut streams {
        let mut some = [0; 12];
        stream.read_exact(&mut some).unwrap();
        assert_eq!(&some, b"HTTP/1.1 200");
    }
    // Idle, half a head, half a body.
    streams.push(open(""));
    streams.push(open("GET / HT"));
    streams.push(open(
        "POST /v1/databases/app/log HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nhal",
    ));
    let begin = Instant::now();
    signal(server.child.id(), "TERM");
    let status = server.child.wait().unwrap();
    assert!(status.success(), "{status:?}");
    // The grace is ten seconds; after it what still hangs is cut.
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "{:?}",
        begin.elapsed()
    );
    let again = Serve::start(&home.path("data"), &[]);
    assert_eq!(run(["verify", "--deep", &again.url("app")]).code, 0);
}
