//! Names for moments: given in SQL and on the command line, used wherever a moment is named.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mycelite_journal::{FileStorage, Log, Txid};

use crate::clikit::{run, text};
use crate::common;
use crate::kit::{database, python, shell};

#[test]
fn a_name_given_in_the_shell_is_a_moment_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let said = shell(
        dir.path(),
        ".open app.db
CREATE TABLE t(a INTEGER PRIMARY KEY, b);
INSERT INTO t VALUES(1, 'one'), (2, 'two');
SELECT mycelite_bookmark('before the move');
UPDATE t SET b = 'moved' WHERE a = 2;
DELETE FROM t WHERE a = 1;
SELECT mycelite_bookmark('after', 'main');
ATTACH 'file:app.db?vfs=mycelite_reader&bookmark=before%20the%20move' AS old;
SELECT a, old.t.b, main.t.b FROM old.t LEFT JOIN main.t USING(a);
SELECT txid, bookmark FROM mycelite_log WHERE bookmark IS NOT NULL;",
    )
    .good();
    assert_eq!(
        said,
        "2\n4\n1|one|\n2|two|moved\n2|before the move\n4|after\n"
    );

    let db = dir.path().join("app.db");
    let out = dir.path().join("out.db");
    let arguments = [
        "restore",
        text(&db),
        "-o",
        text(&out),
        "--bookmark",
        "before the move",
    ];
    run(arguments).good();
    let restored = common::open_plain(&out);
    let count: i64 = restored
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap();
    assert_eq!(count, 2);
    let line = run([
        "restore",
        text(&db),
        "-o",
        text(&out),
        "--force",
        "--bookmark",
        "befor the move",
    ])
    .bad(3);
    assert!(line.contains("did you mean \"before the move\"?"), "{line}");
}

#[test]
fn python_names_a_moment_and_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let said = python(
        dir.path(),
        "
import sqlite3
loader = sqlite3.connect(':memory:')
loader.enable_load_extension(True)
loader.load_extension(LIBRARY)
app = sqlite3.connect('file:app.db?vfs=mycelite_writer', uri=True)
app.execute('CREATE TABLE t(a)')
app.execute('INSERT INTO t VALUES(1)')
app.commit()
print(app.execute('SELECT mycelite_bookmark(?)', ['clean']).fetchone()[0])
app.execute('INSERT INTO t VALUES(2)')
app.commit()
past = sqlite3.connect('file:app.db?vfs=mycelite_reader&bookmark=clean', uri=True)
print(past.execute('SELECT count(*) FROM t').fetchone()[0])
for name in ['clean', '', 7]:
    try:
        app.execute('SELECT mycelite_bookmark(?)', [name])
        print('no error')
    except sqlite3.OperationalError as error:
        print(error)
",
    )
    .good();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..2], ["2", "1"], "{said}");
    for (line, says) in
        lines[2..]
            .iter()
            .zip(["is at transaction 2 already", "empty", "must be text"])
    {
        assert!(line.contains(says), "{said}");
    }
    assert_eq!(lines.len(), 5, "{said}");
}

/// What a transaction has not committed is not in the moment that it names; and it waits for nothing of its own.
#[test]
fn inside_a_transaction_the_state_before_it_is_named() {
    for mode in ["DELETE", "WAL"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let ours = common::open(&path, "");
        ours.execute_batch(&format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE t(a); INSERT INTO t VALUES(1)"
        ))
        .unwrap();
        let mark = |name: &str| -> i64 {
            ours.query_row("SELECT mycelite_bookmark(?)", [name], |row| row.get(0))
                .unwrap()
        };
        let before = mark("before");
        let started = Instant::now();
        ours.execute_batch("BEGIN; INSERT INTO t VALUES(2)")
            .unwrap();
        assert_eq!(mark("inside"), before, "{mode}");
        ours.execute_batch("COMMIT").unwrap();
        assert!(started.elapsed() < Duration::from_secs(3), "{mode}");
        assert_eq!(mark("after"), before + 1, "{mode}");
        // Another connection's commits count, too.
        common::open(&path, "")
            .execute_batch("INSERT INTO t VALUES(3)")
            .unwrap();
        assert_eq!(mark("another's"), before + 2, "{mode}");
    }
}

#[test]
fn the_command_line_names_lists_and_forgets() {
    let (dir, db) = database(&[
        "CREATE TABLE t(a)",
        "INSERT INTO t VALUES(1)",
        "INSERT INTO t VALUES(2)",
    ]);
    let db = text(&db);
    let said = run(["bookmark", db, "first rows", "--txid", "2"]).good();
    assert!(
        said.lines().last().unwrap().trim_start().starts_with("2  "),
        "{said}"
    );
    run(["bookmark", db, "end"]).good();
    // The same again is fine, another is not.
    run(["bookmark", db, "end", "--txid", "3"]).good();
    let line = run(["bookmark", db, "end", "--txid", "1"]).bad(2);
    assert!(line.contains("is at transaction 3 already"), "{line}");

    let json = run(["bookmark", db, "--list", "--json"]).good();
    let listed: Vec<serde_json::Value> = json
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        listed
            .iter()
            .map(|one| (one["txid"].as_u64().unwrap(), one["name"].as_str().unwrap()))
            .collect::<Vec<_>>(),
        [(2, "first rows"), (3, "end")]
    );
    run(["bookmark", db, "--delete", "end"]).good();
    run(["bookmark", db, "--delete", "end"]).bad(3);
    // Also by the log's directory, and the names go with a copy of it.
    let copy = dir.path().join("elsewhere");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(common::log_dir(&dir.path().join("app.db"))).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
    }
    let said = run(["bookmark", text(&copy), "--list"]).good();
    assert!(
        said.contains("first rows") && !said.contains("end"),
        "{said}"
    );

    for (arguments, code, says) in [
        (&["bookmark", db][..], 2, "required"),
        (&["bookmark", db, "a", "--list"], 2, "cannot be used with"),
        (
            &["bookmark", db, "--list", "--txid", "1"],
            2,
            "cannot be used with",
        ),
        (&["bookmark", db, " a"], 2, "spaces around it"),
        (&["bookmark", db, "x", "--txid", "9"], 3, "9"),
        (
            &["bookmark", db, "x", "--at", "1999-01-01"],
            3,
            "the history begins with transaction 1",
        ),
        (
            &["bookmark", "http://127.0.0.1:1/app", "x"],
            2,
            "where the log is",
        ),
    ] {
        let line = run(arguments).bad(code);
        assert!(line.contains(says), "{arguments:?}: {line}");
    }
}

/// A newer timeline may give a bookmarked transaction's number to another one: that is never shown for it.
#[test]
fn a_bookmark_never_means_another_timelines_transaction() {
    let (dir, db) = database(&[
        "CREATE TABLE t(a)",
        "INSERT INTO t VALUES('common')",
        "INSERT INTO t VALUES('lost')",
    ]);
    let never = dir.path().join("never.db");
    run(["bookmark", text(&db), "mine"]).good();
    let storage = Arc::new(FileStorage::new(common::log_dir(&db)));
    let common_pos = mycelite_journal::Reader::open(storage.clone())
        .unwrap()
        .find(Txid(2))
        .unwrap()
        .unwrap()
        .header
        .pos();
    Log::open(storage).unwrap().truncate(common_pos).unwrap();
    let line = run([
        "restore",
        text(&db),
        "-o",
        text(&never),
        "--bookmark",
        "mine",
    ])
    .bad(3);
    assert!(line.contains("transaction 3"), "{line}");
    // Another transaction 3 comes in its place.
    run(["restore", text(&db), "-o", text(&db), "--force"]).good();
    common::open(&db, "")
        .execute_batch("INSERT INTO t VALUES('kept')")
        .unwrap();
    let line = run([
        "restore",
        text(&db),
        "-o",
        text(&never),
        "--bookmark",
        "mine",
    ])
    .bad(3);
    assert!(line.contains("which this log has no more"), "{line}");
    let listed = run(["bookmark", text(&db), "--list"]).good();
    assert!(listed.contains("mine"));
}
