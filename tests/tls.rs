//! TLS as people use it: the real program on both ends, real certificates, and every way in which they may be wrong.
#![allow(missing_docs, clippy::unwrap_used)]

mod clihome;
mod clikit;
mod common;
mod tlskit;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clihome::{COMMITS, Home};
use clikit::{Serve, run, run_with, signal, text, wait_for};
use tlskit::{Authority, Files, Valid};

const LONG: Duration = Duration::from_secs(20);

/// A directory with an authority in it, and the files of a server at 127.0.0.1.
struct Place {
    dir: tempfile::TempDir,
    ca: Authority,
    server: Files,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::new(dir.path(), "ours");
        let server = ca.sign("127.0.0.1", Valid::Now);
        Place { dir, ca, server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn serve(&self, files: &Files, more: &[&str]) -> Serve {
        let mut arguments = vec![
            "--tls-cert",
            text(&files.cert),
            "--tls-key",
            text(&files.key),
        ];
        arguments.extend(more);
        Serve::start(&self.path("data"), &arguments)
    }
}

#[test]
fn every_client_of_ours_speaks_tls() {
    let place = Place::new();
    let server = place.serve(&place.server, &[]);
    let url = server.url("app");
    assert!(url.starts_with("https://"), "{url}");
    let home = Home::new();
    let ca_file = place.ca.file();
    let ca = ["--tls-ca", text(&ca_file)];
    let with_ca = |arguments: &[&str]| run(arguments.iter().chain(&ca));
    let db = home.db();

    with_ca(&["push", text(&db), "--to", &url]).good();
    let status = with_ca(&["status", &url, "--json"]).json();
    assert_eq!(status["pos"]["txid"], COMMITS);
    assert_eq!(with_ca(&["log", &url]).good().lines().count(), COMMITS + 1);
    with_ca(&["dump", &url, "--txid", "2"]).good();
    with_ca(&["verify", &url, "--deep"]).good();
    let copy = place.path("restored.db");
    with_ca(&["restore", &url, "-o", text(&copy)]).good();
    assert_eq!(std::fs::read(&copy).unwrap(), home.states[COMMITS - 1]);
    let live = place.path("live.db");
    with_ca(&["follow", &url, text(&live), "--once"]).good();
    assert_eq!(std::fs::read(&live).unwrap(), home.states[COMMITS - 1]);

    // The same by the environment, and by a server that follows and serves in turn.
    let settings = [("MYCELITE_TLS_CA", text(&ca_file))];
    let same = run_with(&["status", &url, "--json"], &settings).json();
    assert_eq!(same["pos"], status["pos"]);
    let mirror = Serve::start(
        &place.path("mirror"),
        &["--follow", &format!("app={url}"), "--follow-tls-ca", ca[1]],
    );
    wait_for("the mirror", LONG, || {
        std::fs::read(mirror.db("app")).ok().as_ref() == home.states.last()
    });

    // And by an application.
    let db = place.path("live-app.db");
    let replica = server.url("live");
    let parameters = format!("&replica={replica}&tls_ca={}", ca[1]);
    let connection = common::open(&db, &parameters);
    connection
        .execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (1), (2)")
        .unwrap();
    wait_for("the replica", LONG, || {
        std::fs::read(server.db("live")).ok() == std::fs::read(&db).ok()
    });
    drop(connection);
}

/// Asks with these flags; it must fail with one line that says all this.
#[track_caller]
fn refused(url: &str, flags: &[&str], says: &[&str]) {
    let mut arguments = vec!["status", url];
    arguments.extend(flags);
    let line = run(&arguments).bad(3);
    for word in says {
        assert!(line.contains(word), "{word:?} is not in: {line}");
    }
}

#[test]
fn a_server_that_is_not_trusted_gets_nothing() {
    let place = Place::new();
    let ca_file = place.ca.file();
    let ca = ["--tls-ca", text(&ca_file)];
    let other = Authority::new(place.dir.path(), "other");
    let other = other.file();
    {
        let server = place.serve(&place.server, &[]);
        let url = server.url("app");
        refused(
            &url,
            &["--tls-ca", text(&other)],
            &["not signed by a CA", "tls_ca"],
        );
        refused(&url, &[], &["not signed by a CA", "tls_ca"]);
        refused(
            &url.replace("127.0.0.1", "localhost"),
            &ca,
            &["not for the host"],
        );
        // Nothing of a token reaches a server that is not the right one.
        let line = run_with(
            &["status", &url, "--tls-ca", text(&other)],
            &[("MYCELITE_TOKEN", "s3cret")],
        )
        .bad(3);
        assert!(!line.contains("s3cret"), "{line}");
        refused(
            &url.replace("https", "http"),
            &[],
            &["this port speaks TLS: use https://", "400"],
        );
    }
    for (valid, says) in [
        (Valid::Once, "has expired"),
        (Valid::Later, "not valid yet"),
    ] {
        let files = place.ca.sign("127.0.0.1", valid);
        let server = place.serve(&files, &[]);
        refused(&server.url("app"), &ca, &[says]);
    }
    let plain = Serve::start(&place.path("plain"), &[]);
    let url = plain.url("app").replace("http", "https");
    refused(&url, &ca, &["does not speak TLS", "http://"]);
}

#[test]
fn only_clients_with_a_certificate_are_let_in_where_one_is_wanted() {
    let place = Place::new();
    let clients = Authority::new(place.dir.path(), "clients");
    let client_ca = clients.file();
    let server = place.serve(&place.server, &["--tls-client-ca", text(&client_ca)]);
    let url = server.url("app");
    let ca_file = place.ca.file();
    let show = |files: &Files| {
        [
            "--tls-ca",
            text(&ca_file),
            "--tls-cert",
            text(&files.cert),
            "--tls-key",
            text(&files.key),
        ]
        .map(str::to_string)
    };
    let good = show(&clients.sign("shipper", Valid::Now));
    // Often: what the server says last must not get lost in a closed connection.
    for _ in 0..20 {
        refused(
            &url,
            &["--tls-ca", text(&ca_file)],
            &["wants a client certificate", "tls_cert"],
        );
        let wrong = show(&place.ca.sign("shipper", Valid::Now));
        refused(
            &url,
            &wrong.each_ref().map(String::as_str),
            &["refuses the client certificate"],
        );
    }
    let old = show(&clients.sign("shipper", Valid::Once));
    refused(
        &url,
        &old.each_ref().map(String::as_str),
        &["refuses the client certificate"],
    );
    let home = Home::new();
    let db = home.db();
    let mut arguments = vec!["push", text(&db), "--to", &url];
    arguments.extend(good.iter().map(String::as_str));
    run(&arguments).good();
    assert_eq!(
        run(["status", &url]
            .into_iter()
            .chain(good.iter().map(String::as_str)))
        .code,
        0
    );
    // Key and certificate in one file.
    let files = clients.sign("both", Valid::Now);
    let both = place.path("both.pem");
    let text_of = |path: &Path| std::fs::read_to_string(path).unwrap();
    std::fs::write(&both, text_of(&files.key) + &text_of(&files.cert)).unwrap();
    run([
        "status",
        &url,
        "--tls-ca",
        text(&ca_file),
        "--tls-cert",
        text(&both),
    ])
    .good();
}

#[test]
fn bad_files_are_one_line_without_what_they_hold() {
    let place = Place::new();
    let other = place.ca.sign("other", Valid::Now);
    let nothing = place.path("nothing.pem");
    std::fs::write(&nothing, "s3cret text, no PEM\n").unwrap();
    let broken = place.path("broken.pem");
    std::fs::write(
        &broken,
        "-----BEGIN CERTIFICATE-----\nczNjcmV0!\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    let missing = place.path("missing.pem");
    let (cert, key) = (text(&place.server.cert), text(&place.server.key));
    let cases: [(&[&str], i32, &str); 7] = [
        (
            &["--tls-cert", text(&missing)],
            3,
            "cannot read the TLS file",
        ),
        (
            &["--tls-cert", text(&nothing)],
            2,
            "no certificate in this file",
        ),
        (
            &["--tls-cert", text(&broken)],
            2,
            "no certificate in this file",
        ),
        (
            &["--tls-cert", cert, "--tls-key", text(&nothing)],
            2,
            "no private key in this file",
        ),
        (
            &["--tls-cert", cert, "--tls-key", text(&other.key)],
            2,
            "does not go with this certificate",
        ),
        (&["--tls-cert", cert], 2, "no private key in this file"),
        (&["--tls-key", key], 2, "--tls-cert"),
    ];
    let data = place.path("data");
    for (flags, code, says) in cases {
        let mut arguments = vec!["serve", "--listen", "127.0.0.1:0", "--data", text(&data)];
        arguments.extend(flags);
        let line = run(&arguments).bad(code);
        assert!(
            line.contains(says) && !line.contains("s3cret"),
            "{flags:?}: {line}"
        );
        assert!(!data.exists(), "{flags:?} left something behind");
        let mut arguments = vec!["status", "https://127.0.0.1:1/app"];
        arguments.extend(flags);
        let line = run(&arguments).bad(code);
        let says = says.replace("--tls-cert", "a tls_key without its tls_cert");
        assert!(
            line.contains(&says) && !line.contains("s3cret"),
            "{flags:?}: {line}"
        );
    }
    let line = run([
        "status",
        "https://127.0.0.1:1/app",
        "--tls-ca",
        text(&nothing),
    ])
    .bad(2);
    assert!(line.contains("no certificate"), "{line}");
}

#[test]
fn an_application_goes_on_while_its_files_are_bad_and_ships_when_they_are_good() {
    let place = Place::new();
    let tokens = place.path("tokens");
    std::fs::write(&tokens, "app-token\n").unwrap();
    let server = place.serve(&place.server, &["--token-file", text(&tokens)]);
    let (db, ca, token) = (
        place.path("app.db"),
        place.path("late.pem"),
        place.path("token"),
    );
    let parameters = format!(
        "&replica={}&tls_ca={}&token_file={}",
        server.url("app"),
        text(&ca),
        text(&token)
    );
    let connection = common::open(&db, &parameters);
    connection.execute_batch("CREATE TABLE t(a)").unwrap();
    let error = || -> String {
        connection
            .query_row(
                "SELECT ifnull(last_error, '') FROM mycelite_replicas",
                [],
                |row| row.get(0),
            )
            .unwrap()
    };
    wait_for("the error", LONG, || {
        error().contains("cannot read the TLS file")
    });
    std::fs::copy(place.ca.file(), &ca).unwrap();
    std::fs::write(&token, "app-token").unwrap();
    connection
        .execute_batch("INSERT INTO t VALUES (1)")
        .unwrap();
    // A refusal is looked at again after half a minute at most.
    wait_for("the replica", 2 * LONG, || {
        std::fs::read(server.db("app")).ok() == std::fs::read(&db).ok()
    });
    assert_eq!(error(), "");
}

#[test]
fn certificates_and_tokens_are_read_anew_at_sighup() {
    let place = Place::new();
    let tokens = place.path("tokens");
    std::fs::write(&tokens, "first\n").unwrap();
    let ca_file = place.ca.file();
    let live = Files {
        cert: place.path("live.pem"),
        key: place.path("live.key"),
    };
    let install = |files: &Files| {
        std::fs::copy(&files.cert, &live.cert).unwrap();
        std::fs::copy(&files.key, &live.key).unwrap();
    };
    install(&place.ca.sign("127.0.0.1", Valid::Once));
    let server = place.serve(&live, &["--token-file", text(&tokens)]);
    let url = format!("https://{}/app", server.address);
    let ask = |token: &str| {
        run_with(
            &["status", &url, "--tls-ca", text(&ca_file)],
            &[("MYCELITE_TOKEN", token)],
        )
        .bad(3)
    };
    assert!(ask("first").contains("has expired"));
    install(&place.server);
    signal(server.child.id(), "HUP");
    wait_for("the new certificate", LONG, || ask("first").contains("404"));
    std::fs::write(
        &tokens,
        format!("{}\n", mycelite::server::token_hash("second")),
    )
    .unwrap();
    signal(server.child.id(), "HUP");
    wait_for("the new token", LONG, || ask("second").contains("404"));
    assert!(ask("first").contains("401"));
    // A bad file changes nothing.
    std::fs::write(&tokens, "").unwrap();
    signal(server.child.id(), "HUP");
    std::thread::sleep(Duration::from_millis(200));
    assert!(ask("second").contains("404"));
    assert!(ask("first").contains("401"));
}

#[test]
fn whoever_does_not_shake_hands_is_let_go() {
    let place = Place::new();
    let server = place.serve(&place.server, &["--connections-max", "4"]);
    let address = server.address.clone();
    let talk = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer
    };
    let plain = talk(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(plain.starts_with(b"HTTP/1.1 400 "), "{plain:?}");
    for bytes in [
        &b"\x16"[..],
        b"\x16\x03\x01\xff\xff",
        &[0x16; 70_000],
        b"\x16\x03\x01\x00\x05hello",
        b"",
    ] {
        let answer = talk(bytes);
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    }
    let ca_file = place.ca.file();
    refused(&server.url("app"), &["--tls-ca", text(&ca_file)], &["404"]);
}
