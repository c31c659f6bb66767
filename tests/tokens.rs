//! Tokens: what each permits, how they are kept, and that nobody gets to read them.
#![allow(missing_docs, clippy::unwrap_used)]

mod clihome;
mod clikit;
mod common;
mod tlskit;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use clihome::Home;
use clikit::{Ran, Serve, program, run, run_with, signal, text, wait_for};
use tlskit::{Authority, Valid};

const LONG: Duration = Duration::from_secs(20);

/// `mycelite token` with these flags; the token that it makes.
fn make(tokens: &Path, flags: &[&str]) -> String {
    let mut arguments = vec!["token", "--add", text(tokens)];
    arguments.extend(flags);
    run(arguments).good().trim().to_string()
}

#[test]
fn a_made_token_permits_what_was_said_and_is_not_in_the_file() {
    let home = Home::new();
    let tokens = home.path("tokens");
    let append = make(&tokens, &["--scope", "append", "--db", "app,other"]);
    let read = make(&tokens, &["--scope", "read"]);
    let held = std::fs::read_to_string(&tokens).unwrap();
    assert!(!held.contains(&append) && !held.contains(&read), "{held}");
    assert_eq!(held.lines().count(), 2);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&tokens).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
    }
    let server = Serve::start(&home.path("data"), &["--token-file", text(&tokens)]);
    let db = home.db();
    let push = |name: &str, token: &str| -> Ran {
        run_with(
            &["push", text(&db), "--to", &server.url(name)],
            &[("MYCELITE_TOKEN", token)],
        )
    };
    assert!(push("app", &read).stderr.contains("403"));
    assert!(push("third", &append).stderr.contains("other databases"));
    push("app", &append).good();
    let status = |token: &str| {
        run_with(
            &["status", &server.url("app")],
            &[("MYCELITE_TOKEN", token)],
        )
    };
    assert_eq!(status(&read).code, 0);
    assert!(status(&append).bad(3).contains("403"));
    // The hash is no token.
    let hash = held.split_whitespace().next().unwrap();
    assert!(status(hash).bad(3).contains("401"));
    assert!(status(&hash[7..]).bad(3).contains("401"));
}

#[test]
fn the_command_refuses_nonsense_and_hashes_what_it_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("tokens");
    for (flags, says) in [
        (["--scope", "write"], "a scope is"),
        (["--db", "../x"], "names of databases"),
        (["--scope", "read db=x"], "unknown"),
    ] {
        let mut arguments = vec!["token", "--add", text(&tokens)];
        arguments.extend(flags);
        let ran = run(&arguments);
        if says == "unknown" {
            // What is one word on the command line stays one line in the file.
            ran.good();
            std::fs::remove_file(&tokens).unwrap();
        } else {
            let line = ran.bad(2);
            assert!(line.contains(says), "{line}");
            assert!(!tokens.exists());
        }
    }
    let mut child = program()
        .args(["token", "--stdin", "--scope", "read"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"s3cret\n").unwrap();
    let ran: Ran = child.wait_with_output().unwrap().into();
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""));
    assert_eq!(
        ran.stderr.trim(),
        format!("{} read", mycelite::server::token_hash("s3cret"))
    );
}

#[test]
fn no_secret_is_in_any_log_error_status_or_process_list() {
    let home = Home::new();
    let (good, wrong) = ("g00d-s3cret-0123456789", "wr0ng-s3cret-0123456789");
    let tokens = home.path("tokens");
    std::fs::write(&tokens, format!("{good}\n")).unwrap();
    let files = [("good", good), ("wrong", wrong)].map(|(name, token)| {
        let path = home.path(name);
        std::fs::write(&path, token).unwrap();
        path
    });
    let [good_file, wrong_file] = &files;
    let ca = Authority::new(home.dir.path(), "ours");
    let server_files = ca.sign("127.0.0.1", Valid::Now);
    let key = std::fs::read_to_string(&server_files.key).unwrap();
    let key = key.lines().nth(1).unwrap().to_string();
    let log = home.path("serve.log");
    let arguments = [
        "-vv",
        "--token-file",
        text(&tokens),
        "--tls-cert",
        text(&server_files.cert),
        "--tls-key",
        text(&server_files.key),
    ];
    let server = Serve::start_logged(&home.path("data"), &arguments, &log);
    let (db, ca_file, url) = (home.db(), ca.file(), server.url("app"));
    let tls = ["--tls-ca", text(&ca_file)];
    let mut seen = String::new();
    for file in &files {
        let flags = ["--token-file", text(file), tls[0], tls[1]];
        for arguments in [
            vec!["push", text(&db), "--to", &url],
            vec!["status", &url],
            vec!["status", &url, "--json"],
            vec!["log", &url],
        ] {
            let ran = run(arguments.iter().chain(&flags));
            seen += &(ran.stdout + &ran.stderr);
        }
        let copy = home.path("copy.db");
        let arguments = ["follow", &url, text(&copy), "--once", "-vv"];
        let ran = run(arguments.iter().chain(&flags));
        seen += &(ran.stdout + &ran.stderr);
    }
    // The library's own words: status of an application, and what its settings look like.
    let app = home.path("other.db");
    let parameters = format!(
        "&replica={}&token_file={}&tls_ca={}",
        server.url("other"),
        text(wrong_file),
        tls[1]
    );
    let connection = common::open(&app, &parameters);
    connection.execute_batch("CREATE TABLE t(a)").unwrap();
    let status = || -> String {
        connection
            .query_row("SELECT mycelite_status()", [], |row| row.get(0))
            .unwrap()
    };
    wait_for("the refusal", LONG, || status().contains("401"));
    seen += &status();
    let config = mycelite::config::Config::resolve(
        &[("token_file".into(), text(good_file).into())],
        &[("MYCELITE_TOKEN".into(), good.into())],
        None,
        None,
        &db,
    )
    .unwrap();
    seen += &format!("{config:?} {:?} {}", config.access(), config.show("token"));
    let options = mycelite::ship::ShipOptions {
        access: config.access(),
        ..mycelite::ship::ShipOptions::new("x", Vec::new())
    };
    seen += &format!("{options:?}");
    for bad in [
        format!("http://{good}@127.0.0.1:1/app"),
        format!("https://user:{good}@127.0.0.1:1/app"),
    ] {
        seen += &run(["status", &bad]).bad(2);
        seen += &run(["push", text(&db), "--to", &bad]).bad(2);
    }
    let list = Command::new("ps").args(["-eo", "args"]).output();
    if let Ok(list) = list {
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        assert!(
            list.contains("--token-file"),
            "the process list shows no server"
        );
        seen += &list;
    }
    std::fs::write(&tokens, format!("{good}\n{good}\n")).unwrap();
    signal(server.child.id(), "HUP");
    wait_for("the server to say so", LONG, || {
        std::fs::read_to_string(&log)
            .unwrap()
            .contains("not read anew")
    });
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(
        log.contains("DEBUG"),
        "the log is not at its most talkative"
    );
    for (what, text) in [("the server's log", &log), ("what clients said", &seen)] {
        for secret in [good, wrong, &key] {
            assert!(!text.contains(secret), "{what} shows a secret");
        }
    }
}

#[test]
fn a_secret_in_a_query_is_neither_taken_nor_repeated() {
    let home = Home::new();
    let secret = "s3cret-in-a-query";
    for url in [
        format!("http://127.0.0.1:1/app?token={secret}"),
        format!("https://127.0.0.1:1/app#{secret}"),
    ] {
        let line = run(["status", &url]).bad(2);
        assert!(!line.contains(secret), "{line}");
        let db = home.db();
        let line = run(["push", text(&db), "--to", &url]).bad(2);
        assert!(!line.contains(secret), "{line}");
        let ran = run_with(&["push", text(&db)], &[("MYCELITE_REPLICA", &url)]);
        assert!(!ran.bad(2).contains(secret));
    }
}
