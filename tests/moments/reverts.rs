//! `mycelite revert`: an old state as a new transaction, and everything stays in the history.

use crate::clikit::{run, text};
use crate::common;
use crate::kit::database;

fn names(db: &std::path::Path, moment: &str) -> String {
    common::load();
    let uri = format!("file:{}?vfs=mycelite_reader{moment}", db.display());
    let past = rusqlite::Connection::open_with_flags(uri, rusqlite::OpenFlags::default()).unwrap();
    past.query_row(
        "SELECT (SELECT group_concat(b ORDER BY a) FROM t) || ' of ' || (SELECT count(*) FROM sqlite_schema)",
        [],
        |row| row.get(0),
    )
    .unwrap()
}

#[test]
fn a_revert_is_one_more_transaction_and_loses_nothing() {
    for mode in ["DELETE", "WAL"] {
        let (_dir, db) = database(&[
            &format!(
                "PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES(1, 'one'), (2, 'two')"
            ),
            "SELECT mycelite_bookmark('good')",
            "UPDATE t SET b = 'bad'; CREATE TABLE more(x); DROP TABLE IF EXISTS none; CREATE INDEX i ON t(b)",
        ]);
        // An application has it open all the while.
        let app = common::open(&db, "");
        let count = |sql: &str| app.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        let before = count("SELECT mycelite_txid()");

        let dry = run(["revert", text(&db), "--to", "bookmark:good", "--dry-run"]).good();
        for line in [
            "table more:",
            "  ~ 1  b: 'bad' -> 'one'",
            "nothing was changed: this was a dry run",
        ] {
            assert!(dry.contains(line), "{dry}");
        }
        assert_eq!(count("SELECT mycelite_txid()"), before, "{mode}");

        let said = run(["revert", text(&db), "--bookmark", "good"]).good();
        assert!(said.contains("stays in the history"), "{said}");
        // The application sees it, and goes on.
        assert_eq!(
            count("SELECT count(*) FROM t WHERE b IN ('one', 'two')"),
            2,
            "{mode}"
        );
        app.execute_batch("INSERT INTO t VALUES(3, 'three')")
            .unwrap();
        let now: String = app
            .query_row("PRAGMA journal_mode", [], |row| row.get(0))
            .unwrap();
        assert_eq!(now.to_uppercase(), mode);
        let check: String = app
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .unwrap();
        assert_eq!(check, "ok");

        // All three states are there.
        assert_eq!(names(&db, "&bookmark=good"), "one,two of 1", "{mode}");
        assert_eq!(
            names(&db, &format!("&txid={before}")),
            "bad,bad of 3",
            "{mode}"
        );
        assert_eq!(names(&db, ""), "one,two,three of 1", "{mode}");
        // And a revert is reverted.
        run(["revert", text(&db), "--to", &before.to_string()]).good();
        assert_eq!(names(&db, ""), "bad,bad of 3", "{mode}");
        drop(app);
        run(["verify", text(&db), "--deep"]).good();
    }
}

#[test]
fn one_table_goes_back_and_the_others_stay() {
    let (_dir, db) = database(&[
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES(1, 'one'), (2, 'two'); CREATE INDEX i ON t(b);
         CREATE TABLE log(n); CREATE TRIGGER tr AFTER DELETE ON t BEGIN INSERT INTO log VALUES(old.a); END",
        "SELECT mycelite_bookmark('good')",
        "CREATE TABLE u(a); INSERT INTO u VALUES(5); DELETE FROM t WHERE a = 1; INSERT INTO t VALUES(7, 'seven')",
        "SELECT mycelite_bookmark('bad')",
        "DROP TABLE t",
    ]);
    let said = run(["revert", text(&db), "--bookmark", "bad", "--table", "t"]).good();
    assert!(said.contains("in table t"), "{said}");
    assert_eq!(names(&db, ""), "two,seven of 5");
    run(["revert", text(&db), "--bookmark", "good", "--table", "t"]).good();
    let plain = common::open_plain(&db);
    let ask = |sql: &str| {
        plain
            .query_row(sql, [], |row| row.get::<_, String>(0))
            .unwrap()
    };
    assert_eq!(ask("SELECT group_concat(b) FROM t"), "one,two");
    // No trigger ran for what was undone, and it is back.
    assert_eq!(
        ask("SELECT group_concat(n) || (SELECT count(*) FROM u) FROM log"),
        "11"
    );
    assert_eq!(
        ask(
            "SELECT group_concat(name) FROM (SELECT name FROM sqlite_schema WHERE type IN ('index', 'trigger') ORDER BY 1)"
        ),
        "i,tr"
    );
    drop(plain);
    run(["verify", text(&db), "--deep"]).good();
}

#[test]
fn what_cannot_be_reverted_says_why_and_stays() {
    let (dir, db) = database(&[
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES(1, 'one')",
        "UPDATE t SET b = 2",
    ]);
    let busy = common::open(&db, "");
    busy.execute_batch("BEGIN IMMEDIATE; UPDATE t SET b = 3")
        .unwrap();
    let line = run(["revert", text(&db), "--to", "1"]).bad(3);
    assert!(line.contains("lock"), "{line}");
    busy.execute_batch("COMMIT; BEGIN; SELECT * FROM t")
        .unwrap();
    // A reader in the rollback modes keeps a writer from committing.
    let line = run(["revert", text(&db), "--to", "1"]).bad(3);
    assert!(
        line.contains("another program uses the database") || line.contains("lock"),
        "{line}"
    );
    busy.execute_batch("COMMIT").unwrap();
    let b: i64 = busy
        .query_row("SELECT b FROM t", [], |row| row.get(0))
        .unwrap();
    assert_eq!(b, 3);
    for (arguments, code, says) in [
        (&["revert", text(&db)][..], 2, "required"),
        (
            &["revert", text(&db), "--to", "1", "--ago", "5m"],
            2,
            "cannot be used with",
        ),
        (&["revert", text(&db), "--to", "99"], 3, "not in this log"),
        (&["revert", text(&db), "--to", "soon"], 2, "--to: "),
        (
            &["revert", text(&db), "--at", "1999-01-01"],
            3,
            "the history begins with",
        ),
        (
            &["revert", text(&db), "--to", "1", "--table", "none"],
            3,
            "no table with rows",
        ),
        (
            &["revert", text(&common::log_dir(&db)), "--to", "1"],
            2,
            "only a database is reverted",
        ),
        (
            &["revert", text(&dir.path().join("none.db")), "--to", "1"],
            3,
            "no such file",
        ),
    ] {
        let line = run(arguments).bad(code);
        assert!(line.contains(says), "{arguments:?}: {line}");
    }
}
