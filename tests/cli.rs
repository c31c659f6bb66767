//! The command line on a real database: each verb, on a file, on a log directory and on a server.
#![allow(clippy::unwrap_used)]

mod clikit;
mod common;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clikit::{Serve, program, run, run_with, signal, text, wait_for};
use serde_json::Value;

/// A database with some commits, and a copy of the file after each of them.
struct Home {
    dir: tempfile::TempDir,
    states: Vec<Vec<u8>>,
}

const COMMITS: usize = 6;

impl Home {
    fn new() -> Home {
        Home::with("DELETE")
    }

    /// The last commit stays in the WAL if the mode is WAL and the connection stays open; here it is closed each time.
    fn with(mode: &str) -> Home {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("app.db");
        let mut states = Vec::new();
        for commit in 1..=COMMITS {
            let connection = common::open(&db, "");
            if commit == 1 {
                connection
                    .execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
                    .unwrap();
            } else {
                let sql = format!(
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)
                     INSERT INTO t(x) SELECT hex(randomblob({commit} * 10)) FROM n"
                );
                connection.execute_batch(&sql).unwrap();
            }
            connection.close().unwrap();
            states.push(std::fs::read(&db).unwrap());
        }
        if mode == "WAL" {
            let connection = common::open(&db, "");
            connection
                .query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
                .unwrap();
            connection.close().unwrap();
            states.push(std::fs::read(&db).unwrap());
        }
        Home { dir, states }
    }

    fn db(&self) -> PathBuf {
        self.dir.path().join("app.db")
    }

    fn log_dir(&self) -> PathBuf {
        self.dir.path().join("app.db-mycelite")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

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
fn restore_gives_every_state_byte_for_byte() {
    let home = Home::with("WAL");
    let db = home.db();
    for (index, state) in home.states.iter().enumerate() {
        let out = home.path(&format!("restored-{index}.db"));
        run([
            "restore",
            text(&db),
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
    let rows = lines(&run(["log", text(&db), "--json"]).good());
    for (index, row) in rows.iter().enumerate() {
        let out = home.path("by-time.db");
        run([
            "restore",
            text(&home.log_dir()),
            "-o",
            text(&out),
            "--force",
            "--at",
            row["time"].as_str().unwrap(),
        ])
        .good();
        assert!(
            std::fs::read(&out).unwrap() == home.states[index],
            "at the time of transaction {}",
            index + 1
        );
    }
    let out = home.path("last.db");
    let said = run(["restore", text(&db), "--output", text(&out)]).good();
    assert!(
        said.contains(rows.last().unwrap()["checksum"].as_str().unwrap()),
        "{said}"
    );
    assert!(std::fs::read(&out).unwrap() == *home.states.last().unwrap());
    let out = home.path("ago.db");
    run(["restore", text(&db), "-o", text(&out), "--ago", "0s"]).good();
    assert!(std::fs::read(&out).unwrap() == *home.states.last().unwrap());
    let line = run([
        "restore",
        text(&db),
        "-o",
        text(&home.path("none.db")),
        "--ago",
        "1d",
    ])
    .bad(3);
    assert!(line.contains("nothing was recorded yet"), "{line}");
    let left = std::fs::read_dir(home.dir.path()).unwrap().filter(|entry| {
        entry
            .as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .contains("restoring")
    });
    assert_eq!(left.count(), 0, "no temporary file stays");
}

#[test]
fn restore_replaces_only_when_told_and_only_what_nobody_uses() {
    let home = Home::new();
    let out = home.path("out.db");
    std::fs::write(&out, "precious").unwrap();
    run(["restore", text(&home.db()), "-o", text(&out)]).bad(2);
    assert_eq!(std::fs::read(&out).unwrap(), b"precious");
    run(["restore", text(&home.db()), "-o", text(&out), "--force"]).good();
    assert!(std::fs::read(&out).unwrap() == home.states[COMMITS - 1]);

    // A database in WAL mode with a WAL that is not folded in: SQLite must never find that WAL beside the new file.
    let used = home.path("used.db");
    let connection = common::open_plain(&used);
    connection
        .execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE old(x); INSERT INTO old VALUES(1)")
        .unwrap();
    let line = run(["restore", text(&home.db()), "-o", text(&used), "--force"]).bad(3);
    assert!(line.contains("in use"), "{line}");
    assert_eq!(
        connection
            .query_row("SELECT x FROM old", [], |row| row.get::<_, i64>(0))
            .unwrap(),
        1
    );
    let copy = home.path("copy.db");
    std::fs::copy(&used, &copy).unwrap();
    std::fs::copy(home.path("used.db-wal"), home.path("copy.db-wal")).unwrap();
    run(["restore", text(&home.db()), "-o", text(&copy), "--force"]).good();
    assert!(!home.path("copy.db-wal").exists());
    assert!(std::fs::read(&copy).unwrap() == home.states[COMMITS - 1]);
    let stale = home.path("new.db-wal");
    std::fs::write(&stale, "left over").unwrap();
    let line = run([
        "restore",
        text(&home.db()),
        "-o",
        text(&home.path("new.db")),
    ])
    .bad(2);
    assert!(line.contains("new.db-wal"), "{line}");
}

#[test]
fn verify_answers_yes_or_no() {
    let home = Home::with("WAL");
    let db = home.db();
    assert!(
        run(["verify", text(&db)])
            .good()
            .contains("ok: every record")
    );
    assert!(
        run(["verify", text(&db), "--deep"])
            .good()
            .contains("byte for byte")
    );
    let report = run(["verify", text(&db), "--deep", "--json"]).json();
    assert_eq!(
        (report["ok"].clone(), report["records"].clone()),
        (true.into(), home.states.len().into())
    );
    assert!(
        run(["verify", text(&home.log_dir()), "--deep"])
            .good()
            .contains("byte for byte")
    );

    // A commit that is still in the WAL counts.
    let connection = common::open(&db, "");
    connection
        .execute_batch("INSERT INTO t(x) VALUES('in the WAL')")
        .unwrap();
    assert!(
        run(["verify", text(&db), "--deep"])
            .good()
            .contains("byte for byte")
    );
    connection.close().unwrap();

    // An outsider's change is found, by its page.
    common::open_plain(&db)
        .execute_batch("UPDATE t SET x = 'changed' WHERE id = 1")
        .unwrap();
    let answer = run(["verify", text(&db), "--deep"]);
    assert_eq!((answer.code, answer.stderr.as_str()), (1, ""));
    assert!(
        answer
            .stdout
            .contains("problem: the database is not what the log says")
            && answer.stdout.contains("NOT ok"),
        "{}",
        answer.stdout
    );
    let answer = run(["verify", text(&db), "--deep", "--json"]);
    let report: Value = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!((answer.code, report["ok"].clone()), (1, false.into()));
    assert_eq!(report["problems"].as_array().unwrap().len(), 1);
    run(["verify", text(&db)]).good();

    std::fs::remove_file(&db).unwrap();
    let answer = run(["verify", text(&db), "--deep"]);
    assert!(
        answer.code == 1 && answer.stdout.contains("is missing"),
        "{answer:?}"
    );
    let said = run(["verify", text(&home.log_dir()), "--deep"]).good();
    assert!(said.contains("note: no database beside the log"), "{said}");
}

#[test]
fn verify_proves_a_database_that_is_being_written() {
    for mode in ["DELETE", "WAL"] {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("busy.db");
        let writer = common::open(&db, "");
        writer
            .query_row(&format!("PRAGMA journal_mode = {mode}"), [], |_| Ok(()))
            .unwrap();
        writer
            .execute_batch("PRAGMA synchronous = OFF; CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
            .unwrap();
        let stop = AtomicBool::new(false);
        let stop = &stop;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // Enough for checkpoints in between, with rows that grow, shrink and move.
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let sql = "INSERT OR REPLACE INTO t VALUES(abs(random()) % 2000, randomblob(abs(random()) % 3000))";
                    let result = writer.execute(sql, []);
                    assert!(result.is_ok(), "{mode}, commit {n}: {result:?}");
                }
            });
            for _ in 0..4 {
                std::thread::sleep(Duration::from_millis(50));
                let ran = run(["verify", text(&db), "--deep"]);
                stop.store(ran.code != 0, Ordering::Relaxed);
                assert!(ran.good().contains("byte for byte"), "{mode}");
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}

#[test]
fn verify_finds_a_flipped_bit_anywhere_in_the_log() {
    let home = Home::new();
    let segment = home.log_dir().join("00000000000000000001.seg");
    let whole = std::fs::read(&segment).unwrap();
    // Spread over header, bodies and trailers; every bit is the journal crate's own test.
    for at in (3..whole.len()).step_by(whole.len() / 40) {
        let mut broken = whole.clone();
        broken[at] ^= 0x10;
        std::fs::write(&segment, &broken).unwrap();
        let answer = run(["verify", text(&home.db()), "--deep"]);
        assert_ne!(answer.code, 0, "byte {at}: {answer:?}");
        if answer.code == 1 {
            assert!(answer.stdout.contains("problem: "), "byte {at}: {answer:?}");
        }
    }
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
        "demo", "serve", "push", "restore", "log", "status", "verify", "dump",
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
