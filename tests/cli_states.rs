//! `mycelite restore` and `mycelite verify`: the bytes of every state, and the proof of all of them.
#![allow(clippy::unwrap_used)]

mod clihome;
mod clikit;
mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clihome::{COMMITS, Home, lines};
use clikit::{run, text};
use serde_json::Value;

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

/// SQLite's backup of an empty database of small pages leaves a file that is shorter than one page of its own size.
#[test]
fn verify_reads_a_file_that_is_shorter_than_its_page() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("short.db");
    let mut ours = common::open(&db, "");
    ours.execute_batch("PRAGMA page_size = 4096; CREATE TABLE t(x)")
        .unwrap();
    let source = common::open_plain(&dir.path().join("source.db"));
    source.execute_batch("PRAGMA page_size = 1024").unwrap();
    let backup = rusqlite::backup::Backup::new(&source, &mut ours).unwrap();
    backup.step(-1).unwrap();
    drop(backup);
    ours.close().unwrap();
    let bytes = std::fs::metadata(&db).unwrap().len();
    assert_eq!(bytes, 1024);
    let said = run(["verify", text(&db), "--deep"]).good();
    assert!(said.contains("byte for byte"), "{said}");
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
                    std::thread::sleep(Duration::from_millis(1));
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
