//! The applier is killed at each call that changes the disk: any SQLite then reads a recorded state, and the next applier makes
//! the file what the log says, byte for byte (P4, P6).

use std::path::{Path, PathBuf};

use mycelite::apply::{Applier, ApplyOptions};
use mycelite::database::log_dir;
use mycelite_journal::Txid;

use crate::{child, clikit::run, clikit::text, common, copy_of, places};

/// Applies all there is, up to `last` where that is given, and leaves the file at rest.
pub fn apply(db: &Path, use_wal: bool, last: Option<u64>) {
    let mut options = ApplyOptions::default();
    options.use_wal = use_wal;
    if let Some(last) = last {
        options.limit = Txid(last);
    }
    let mut applier = Applier::open_with(db, &log_dir(db), options).unwrap();
    while applier.step().unwrap().more {}
    applier.idle().unwrap();
    applier.close().unwrap();
}

/// A table of what is in `db`, whatever its schema is by now.
fn content(db: &Path) -> String {
    let connection = common::open_plain(db);
    let one = |sql: &str| -> String { connection.query_row(sql, [], |row| row.get(0)).unwrap() };
    assert_eq!(one("PRAGMA integrity_check"), "ok", "{}", db.display());
    let schema = one("SELECT coalesce(group_concat(sql, ';'), '') FROM sqlite_schema");
    if schema.is_empty() {
        return schema;
    }
    let rows = one(
        "SELECT count(*) || ' ' || coalesce(sum(id), 0) || ' ' || coalesce(group_concat(x, ','), '') FROM t",
    );
    format!("{schema} {rows}")
}

/// A primary with growth, changes, a changed schema and a VACUUM that shrinks it; what each of its transactions has left.
fn primary(dir: &Path, mode: &str) -> (PathBuf, Vec<String>) {
    let db = dir.join("app.db");
    let connection = common::open(&db, "");
    connection
        .query_row(&format!("PRAGMA journal_mode = {mode}"), [], |_| Ok(()))
        .unwrap();
    for sql in [
        "CREATE TABLE t(id INTEGER PRIMARY KEY, x)",
        "INSERT INTO t(x) VALUES(hex(randomblob(3000))), (hex(randomblob(3000))), (1)",
        "UPDATE t SET x = hex(randomblob(2900)) WHERE id = 1",
        "CREATE INDEX i ON t(id, x)",
        "INSERT INTO t(x) SELECT hex(randomblob(1500)) FROM t, t",
        "DELETE FROM t WHERE id % 2",
        "DROP INDEX i",
        "VACUUM",
        "ALTER TABLE t ADD COLUMN more",
        "UPDATE t SET x = id",
    ] {
        connection.execute_batch(sql).unwrap();
    }
    connection.close().unwrap();
    let count = run(["log", text(&db), "--json"])
        .good()
        .lines()
        .filter(|line| line.contains("\"txid\""))
        .count();
    let head = run(["status", text(&db), "--json"]).json()["pos"]["txid"]
        .as_u64()
        .unwrap();
    assert!(count > 0 && head >= 10);
    let states = (1..=head)
        .map(|txid| {
            let out = dir.join("state.db");
            run([
                "restore",
                text(&db),
                "-o",
                text(&out),
                "--force",
                "--txid",
                &txid.to_string(),
            ])
            .good();
            content(&out)
        })
        .collect();
    (db, states)
}

fn killed(mode: &str, use_wal: bool, begin: u64) {
    common::load();
    let dir = common::scratch();
    let (app, states) = primary(dir.path(), mode);
    let [template, work, look] = ["template", "work", "look"].map(|name| dir.path().join(name));
    std::fs::create_dir(&template).unwrap();
    let from = template.join("copy.db");
    std::fs::create_dir(log_dir(&from)).unwrap();
    for entry in std::fs::read_dir(log_dir(&app)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if name == "meta" || name.to_string_lossy().ends_with(".seg") {
            std::fs::copy(entry.path(), log_dir(&from).join(name)).unwrap();
        }
    }
    if begin > 0 {
        apply(&from, use_wal, Some(begin));
        assert_eq!(content(&from), states[begin as usize - 1]);
    }
    let role = if use_wal {
        "apply-wal"
    } else {
        "apply-journal"
    };
    let (db, wanted) = (work.join("copy.db"), std::fs::read(&app).unwrap());
    copy_of(&template, &work);
    let count = child(role, None, &db, "").unwrap();
    assert!(std::fs::read(&db).unwrap() == wanted);
    let mut seen = std::collections::BTreeSet::new();
    for at in places(&format!("{role}, {mode}, from {begin}"), count) {
        copy_of(&template, &work);
        assert_eq!(child(role, Some(at), &db, ""), None, "{role} {mode} {at}");
        copy_of(&work, &look);
        let copy = look.join("copy.db");
        if copy.exists() {
            let now = content(&copy);
            // Nothing at all is the state before the first record.
            let state = states
                .iter()
                .rposition(|state| *state == now)
                .map_or(0, |at| at + 1);
            assert!(
                state as u64 >= begin && (state > 0 || now.is_empty()),
                "{role} {mode} {at}: {state}"
            );
            seen.insert(state);
        }
        apply(&db, use_wal, None);
        assert!(
            std::fs::read(&db).unwrap() == wanted,
            "{role} {mode} {at}: not the primary's file"
        );
        let parked = std::fs::read_dir(log_dir(&db)).unwrap().filter(|entry| {
            entry
                .as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .starts_with("parked")
        });
        assert_eq!(
            parked.count(),
            0,
            "{role} {mode} {at}: what a kill has left was taken for a stranger's"
        );
        run(["verify", "--deep", text(&db)]).good();
    }
    println!("{role}, {mode}, from {begin}: states {seen:?}");
}

#[test]
fn a_killed_applier_goes_on_through_the_wal() {
    killed("WAL", true, 4);
    killed("DELETE", true, 4);
}

#[test]
fn a_killed_applier_goes_on_through_rollback_journals() {
    killed("DELETE", false, 4);
}

#[test]
fn a_killed_applier_goes_on_where_there_was_nothing() {
    killed("DELETE", true, 0);
    killed("WAL", false, 0);
}
