//! The command line on a real database: each verb, on a file, on a log directory and on a server.
#![allow(clippy::unwrap_used)]

mod clihome;
mod clikit;
mod common;

use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use clihome::{COMMITS, Home, lines};
use clikit::{Serve, program, run, run_with, signal, text, wait_for};

#[test]
fn log_lists_every_commit_for_people_and_programs() {
    let home = Home::new();
    let db = home.db();
    for source in [text(&db), text(&home.log_dir())] {
        let rows = lines(&run(["log", source, "--json"]).good());
        let txids: Vec<u64> = rows
            .iter()
            .map(|row| row["txid"].as_u64().unwrap())
            .collect();
        assert_eq!(txids, (1..=COMMITS as u64).collect::<Vec<_>>());
        for pair in rows.windows(2) {
            assert_eq!(pair[0]["checksum"], pair[1]["pre_checksum"]);
            assert!(pair[0]["time"].as_str() < pair[1]["time"].as_str());
            assert!(pair[0]["time_us"].as_u64() < pair[1]["time_us"].as_u64());
        }
        let shown = run(["log", source]).good();
        assert_eq!(shown.lines().count(), COMMITS + 1);
        assert!(shown.lines().next().unwrap().contains("checksum"));
        let newest = run(["log", source, "--limit", "2"]).good();
        assert_eq!(
            newest.lines().skip(1).collect::<Vec<_>>(),
            shown.lines().skip(COMMITS - 1).collect::<Vec<_>>()
        );
        assert_eq!(
            lines(&run(["log", source, "--json", "--limit", "100"]).good()).len(),
            COMMITS
        );
        assert_eq!(run(["log", source, "--json", "--limit", "0"]).good(), "");
    }
}

#[test]
fn status_and_dump_say_what_is_there() {
    let home = Home::new();
    let db = home.db();
    let status = run(["status", text(&db), "--json"]).json();
    assert_eq!(status["pos"]["txid"], COMMITS);
    assert_eq!(
        status["page_count"].as_u64().unwrap() * status["page_size"].as_u64().unwrap(),
        home.states[COMMITS - 1].len() as u64
    );
    assert_eq!(status["state"], "ok");
    assert_eq!(status["id"].as_str().unwrap().len(), 32);
    assert!(status["log_bytes"].as_u64().unwrap() > 0);
    let shown = run(["status", text(&db)]).good();
    assert!(
        shown.contains(status["pos"]["checksum"].as_str().unwrap())
            && shown.contains("none in the settings")
    );

    let record = run(["dump", text(&db), "--txid", "3", "--json"]).json();
    let listed = &lines(&run(["log", text(&db), "--json"]).good())[2];
    for field in ["txid", "time", "checksum", "pages", "bytes"] {
        assert_eq!(record[field], listed[field]);
    }
    let patches = record["patches"].as_array().unwrap();
    assert_eq!(patches.len() as u64, record["pages"].as_u64().unwrap());
    for patch in patches {
        let ranges = patch["ranges"].as_array().unwrap();
        let total: u64 = ranges
            .iter()
            .map(|range| range["length"].as_u64().unwrap())
            .sum();
        assert_eq!(patch["bytes"].as_u64().unwrap(), total);
        for range in ranges {
            let hex = range["hex"].as_str().map(|hex| hex.len() as u64 / 2);
            let length = range["length"].as_u64().unwrap();
            assert_eq!(hex, (length <= 32).then_some(length));
        }
    }
    let shown = run(["dump", text(&db), "--txid", "3"]).good();
    assert!(
        shown.contains("transaction  3 on timeline") && shown.contains("kind"),
        "{shown}"
    );
}

#[test]
fn push_records_and_sends_what_is_missing() {
    let home = Home::new();
    let server = Serve::start(home.dir.path().join("server").as_path(), &[]);
    let url = server.url("app");
    let said = run(["push", text(&home.db()), "--to", &url]).good();
    assert_eq!(
        said.trim(),
        format!("{url}: holds everything up to transaction {COMMITS}")
    );
    let states = run(["push", text(&home.db()), "--to", &url, "--json"]).json();
    assert_eq!(
        (
            states[0]["acked_txid"].clone(),
            states[0]["lag_txids"].clone()
        ),
        (COMMITS.into(), 0.into())
    );

    // What an outsider wrote is recorded first; the replica comes from the settings.
    common::open_plain(&home.db())
        .execute_batch("CREATE TABLE outsider(x)")
        .unwrap();
    mycelite::config::stored::insert(&mycelite::config::stored::path(&home.db()), "replica", &url)
        .unwrap();
    run(["push", text(&home.db())]).good();
    wait_for("the replica", Duration::from_secs(20), || {
        std::fs::read(server.db("app"))
            .is_ok_and(|bytes| bytes == std::fs::read(home.db()).unwrap())
    });
    let rows = lines(&run(["log", text(&home.db()), "--json", "--limit", "1"]).good());
    assert_eq!(rows[0]["flags"], serde_json::json!(["rebase"]));
    let status = run(["status", text(&home.db()), "--json"]).json();
    assert_eq!(status["replicas"][0]["state"], "caught-up");
    assert!(run(["status", text(&home.db())]).good().contains(&url));

    // A database that never had a log gets one.
    let plain = home.path("plain.db");
    common::open_plain(&plain)
        .execute_batch("CREATE TABLE p(x); INSERT INTO p VALUES(1)")
        .unwrap();
    run(["push", text(&plain), "--to", &server.url("plain")]).good();
    assert_eq!(
        lines(&run(["log", text(&plain), "--json"]).good())[0]["flags"],
        serde_json::json!(["adopt"])
    );
}

#[test]
fn a_server_is_a_source_for_every_verb() {
    let home = Home::with("WAL");
    let server = Serve::start(home.dir.path().join("server").as_path(), &[]);
    let url = server.url("app");
    run(["push", text(&home.db()), "--to", &url]).good();
    let last = home.states.len();

    assert_eq!(
        run(["log", &url, "--json"]).good(),
        run(["log", text(&home.db()), "--json"]).good()
    );
    assert_eq!(
        run(["log", &url, "--limit", "2"]).good(),
        run(["log", text(&home.db()), "--limit", "2"]).good()
    );
    let info = run(["status", &url, "--json"]).json();
    assert_eq!(
        (info["name"].clone(), info["pos"]["txid"].clone()),
        ("app".into(), last.into())
    );
    assert!(run(["status", &url]).good().contains("history"));
    assert!(run(["verify", &url]).good().contains("ok: every record"));
    assert!(
        run(["verify", &url, "--deep"])
            .good()
            .contains("byte for byte")
    );
    let record = run(["dump", &url, "--txid", "2", "--json"]).json();
    assert_eq!(
        record["patches"],
        run(["dump", text(&home.db()), "--txid", "2", "--json"]).json()["patches"]
    );
    for (index, state) in home.states.iter().enumerate() {
        let out = home.path(&format!("served-{index}.db"));
        run([
            "restore",
            &url,
            "-o",
            text(&out),
            "--txid",
            &(index + 1).to_string(),
        ])
        .good();
        assert!(
            std::fs::read(&out).unwrap() == *state,
            "transaction {}",
            index + 1
        );
    }
    let time = lines(&run(["log", &url, "--json"]).good())[3]["time"]
        .as_str()
        .unwrap()
        .to_string();
    let out = home.path("served-at.db");
    run(["restore", &url, "-o", text(&out), "--at", &time]).good();
    assert!(std::fs::read(&out).unwrap() == home.states[3]);
}

#[test]
fn a_server_with_tokens_wants_the_right_one() {
    let home = Home::new();
    let tokens = home.path("tokens");
    std::fs::write(
        &tokens,
        "# for the tests\nwriter-token append\nreader-token read\n",
    )
    .unwrap();
    let server = Serve::start(
        home.dir.path().join("server").as_path(),
        &["--token-file", text(&tokens)],
    );
    let url = server.url("app");
    let db = home.db();
    let push = ["push", text(&db), "--to", &url];
    for token in [None, Some("wrong"), Some("reader-token")] {
        let variables: Vec<(&str, &str)> = token
            .map(|token| ("MYCELITE_TOKEN", token))
            .into_iter()
            .collect();
        let line = run_with(&push, &variables).bad(3);
        assert!(
            line.contains("token") && !line.contains("reader-token"),
            "{line}"
        );
    }
    let file = home.path("mine");
    std::fs::write(&file, "writer-token append\n").unwrap();
    run_with(&push, &[("MYCELITE_TOKEN_FILE", text(&file))]).good();
    run_with(&["log", &url], &[("MYCELITE_TOKEN", "writer-token")]).bad(3);
    run_with(&["log", &url], &[("MYCELITE_TOKEN", "reader-token")]).good();
}

#[test]
fn a_server_stops_in_good_order_when_asked() {
    let home = tempfile::tempdir().unwrap();
    for stop in ["TERM", "INT", "stdin"] {
        let mut child = program()
            .args([
                "serve",
                "--with-parent",
                "--listen",
                "127.0.0.1:0",
                "--data",
                text(home.path()),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = [0u8; 12];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut first)
            .unwrap();
        assert_eq!(&first, b"listening on");
        if stop == "stdin" {
            drop(child.stdin.take());
        } else {
            signal(child.id(), stop);
        }
        let status = child.wait().unwrap();
        assert!(status.success(), "{stop}: {status}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let home = Home::new();
    let db = home.db();
    for arguments in [
        vec!["log", text(&db)],
        vec!["dump", text(&db), "--txid", "6"],
        vec!["verify", text(&db)],
    ] {
        let mut child = program()
            .args(&arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{arguments:?}: {output:?}"
        );
    }
}

#[test]
fn help_teaches() {
    let help = run(["--help"]).good();
    for word in [
        "mycelite demo",
        ".load ./libmycelite",
        "SOURCE",
        "Exit codes: 0 done, 1 the answer is no",
    ] {
        assert!(help.contains(word), "{word}");
    }
    for verb in [
        "demo", "serve", "push", "restore", "bookmark", "diff", "revert", "log", "status",
        "verify", "dump",
    ] {
        assert!(help.contains(verb));
        let help = run([verb, "--help"]).good();
        assert!(
            help.contains("Examples:") && help.contains(&format!("mycelite {verb}")),
            "{verb}"
        );
        if help.contains("--json") {
            assert!(help.contains("JSON: "), "{verb} documents its JSON");
        }
    }
    assert!(run(["push", "--help"]).good().contains("close_flush_ms"));
    assert!(run(["--version"]).good().starts_with("mycelite "));
    let nothing = run::<&str>([]);
    assert!(nothing.code == 2 && nothing.stderr.contains("Usage: mycelite"));
}

#[test]
fn the_log_is_not_changed_by_looking_at_it() {
    let home = Home::new();
    let listing = |dir: &Path| {
        let mut entries: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .map(|path| (std::fs::read(&path).unwrap(), path))
            .collect();
        entries.sort_by(|a, b| a.1.cmp(&b.1));
        entries
    };
    let before = (listing(&home.log_dir()), listing(home.dir.path()));
    let db = home.db();
    for arguments in [
        vec!["log"],
        vec!["status"],
        vec!["verify"],
        vec!["verify", "--deep"],
        vec!["dump", "--txid", "1"],
    ] {
        run(arguments.iter().copied().chain([text(&db)])).good();
    }
    assert!(before == (listing(&home.log_dir()), listing(home.dir.path())));
}
