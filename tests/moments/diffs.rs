//! `mycelite diff`: rows, schemas, and SQL that takes one state to another.

use std::path::Path;

use mycelite::diff::{Change, Diff};
use mycelite::moment::Moment;
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};
use serde_json::Value as Json;

use crate::clikit::{run, text};
use crate::common::{self, Random};
use crate::kit::{database, shell};

const SCHEMA: &str = "
CREATE TABLE t1(a INTEGER PRIMARY KEY, b, c REAL, d TEXT UNIQUE);
CREATE TABLE t2(\"x \"\"y\" TEXT, y); CREATE INDEX i2 ON t2(y);
CREATE TABLE w1(v, k TEXT COLLATE NOCASE, n INT, PRIMARY KEY(k DESC, n)) WITHOUT ROWID;
CREATE TABLE w2(k BLOB PRIMARY KEY, v) WITHOUT ROWID;
CREATE TABLE g(a INTEGER PRIMARY KEY AUTOINCREMENT, b, c AS (typeof(b)) VIRTUAL, d INT AS (b IS NULL) STORED);
CREATE TABLE seen(n);
CREATE TRIGGER tr AFTER INSERT ON t2 BEGIN INSERT INTO seen VALUES(new.rowid); END;
CREATE VIEW v AS SELECT a, b FROM t1;
CREATE VIRTUAL TABLE f USING fts5(body);
CREATE VIRTUAL TABLE r USING rtree(id, low, high)";

/// Values that are easily lost on the way through SQL.
fn value(random: &mut Random) -> Value {
    match random.below(12) {
        0 => Value::Null,
        1 => Value::Integer([i64::MIN, i64::MAX, 0, 1, -1, 1 << 47][random.below(6) as usize]),
        2 => Value::Integer(random.next() as i64 >> random.below(60)),
        3 => Value::Real(
            [0.1, -0.0, 1e300, 5e-324, f64::INFINITY, 0.5, 1e15, 2.5e-310]
                [random.below(8) as usize],
        ),
        4 => {
            let number = f64::from_bits(random.next());
            Value::Real(if number.is_nan() { 7.25 } else { number })
        }
        5 => Value::Text(
            [
                "it's",
                "\"q\"",
                "",
                "NULL",
                "a\nb",
                "\u{1F344}mycel",
                "x;--",
            ][random.below(7) as usize]
                .into(),
        ),
        6 => Value::Text("with\0nul".into()),
        7 => Value::Text(format!("word{} ", random.below(50)).repeat(random.below(6) as usize)),
        8 => Value::Blob(vec![random.below(256) as u8; random.below(20) as usize]),
        9 => Value::Blob(vec![
            random.below(256) as u8;
            3000 + random.below(2) as usize * 20_000
        ]),
        _ => Value::Text(format!("text {}", random.below(1000))),
    }
}

/// One random transaction.
fn step(ours: &Connection, random: &mut Random, n: u64) {
    let run = |sql: &str, values: Vec<Value>| {
        // Two with the same key are as good as none.
        let _ = ours.execute(sql, params_from_iter(values));
    };
    let k = random.below(40) as i64;
    let mut some = |count: usize| -> Vec<Value> { (0..count).map(|_| value(random)).collect() };
    match n % 23 {
        0 | 1 => run("INSERT OR REPLACE INTO t1 VALUES(NULL, ?, ?, ?)", some(3)),
        2 => run(
            "INSERT INTO t1(a, b, d) VALUES(abs(random() % 100), ?, ?)",
            some(2),
        ),
        3 | 4 => run("INSERT INTO t2 VALUES(?, ?)", some(2)),
        5 => run(
            &format!("INSERT OR REPLACE INTO w1 VALUES(?, ifnull(?, 'k{k}'), {k})"),
            some(2),
        ),
        6 => run(
            &format!("INSERT OR IGNORE INTO w1 VALUES(?, 'Key{k}', {k})"),
            some(1),
        ),
        7 => run(
            &format!(
                "UPDATE w1 SET k = CASE WHEN k = lower(k) THEN upper(k) ELSE lower(k) END WHERE n = {k}"
            ),
            vec![],
        ),
        8 | 9 => run(
            "INSERT OR REPLACE INTO w2 VALUES(ifnull(?, 'n'), ?)",
            some(2),
        ),
        10 => run("INSERT INTO g(b) VALUES(?)", some(1)),
        11 => run("INSERT INTO f(body) VALUES(?)", some(1)),
        12 => run(
            &format!("INSERT OR REPLACE INTO r VALUES({k}, {k}, {k}.5)"),
            vec![],
        ),
        13 => run(&format!("DELETE FROM t1 WHERE a % 40 = {k}"), vec![]),
        // A unique text goes from one row to another.
        14 => run(
            "UPDATE t1 SET d = CASE a WHEN 1 THEN 'free' WHEN 2 THEN (SELECT d FROM t1 WHERE a = 1) ELSE d END WHERE a IN (1, 2)",
            vec![],
        ),
        15 => run(
            &format!("UPDATE t2 SET y = ? WHERE rowid % 7 = {}", k % 7),
            some(1),
        ),
        // The same length and another content: pages behind the first change alone.
        16 => run(
            &format!("UPDATE t1 SET b = zeroblob(15000) || char(65 + {k}) WHERE a % 5 = 1"),
            vec![],
        ),
        17 => run(
            &format!("UPDATE w2 SET v = ? WHERE length(v) % 3 = {}", k % 3),
            some(1),
        ),
        18 => run(
            &format!("DELETE FROM f WHERE rowid % 9 = {}", k % 9),
            vec![],
        ),
        19 => run(&format!("DELETE FROM w1 WHERE n % 4 = {}", k % 4), vec![]),
        20 => run(
            &format!("UPDATE g SET b = ? WHERE a % 6 = {}", k % 6),
            some(1),
        ),
        21 => run(&format!("DELETE FROM g WHERE a % 11 = {}", k % 11), vec![]),
        _ => run(
            &format!("UPDATE w2 SET v = ? WHERE length(k) % 3 = {}", k % 3),
            some(1),
        ),
    }
}

/// The rarer transactions, one after the other.
const RARE: [&str; 14] = [
    "ALTER TABLE t1 ADD COLUMN e INT DEFAULT 5",
    "CREATE INDEX more ON t1(c)",
    "UPDATE t1 SET e = 6 WHERE a % 2",
    "ANALYZE",
    "PRAGMA user_version = 77",
    "VACUUM",
    "DROP INDEX i2",
    "CREATE TABLE extra(a UNIQUE, b); INSERT INTO extra VALUES(1, 2), (2, 1)",
    "CREATE VIRTUAL TABLE f2 USING fts5(x); INSERT INTO f2 VALUES('some words')",
    "DROP VIEW v; CREATE VIEW v AS SELECT a FROM t1",
    "DROP TABLE f",
    "DELETE FROM t2",
    "DROP TABLE g; DROP TRIGGER tr",
    "DROP TABLE w2; CREATE TABLE w2(k INTEGER PRIMARY KEY, v); INSERT INTO w2 VALUES(3, 4)",
];

/// Everything that a database says, with the bits of its floating-point numbers and the numbers of its rows.
fn content(path: &Path) -> Vec<String> {
    let plain = common::open_plain(path);
    let rows = |sql: &str| -> Vec<String> {
        let mut statement = plain.prepare(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        let count = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        let mut all = Vec::new();
        while let Some(row) = rows.next().unwrap_or_else(|e| panic!("{sql}: {e}")) {
            let value = |i| match row.get_ref(i).unwrap() {
                rusqlite::types::ValueRef::Real(real) => format!("real {:x}", real.to_bits()),
                rusqlite::types::ValueRef::Text(bytes) => format!("text {bytes:?}"),
                other => format!("{other:?}"),
            };
            all.push((0..count).map(value).collect::<Vec<_>>().join("|"));
        }
        all
    };
    let mut said = rows(
        "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_stat%' ORDER BY 1, 2",
    );
    let tables: Vec<(String, bool)> = plain
        .prepare("SELECT name, wr FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'shadow') ORDER BY name")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    for (name, without_rowid) in tables {
        if name == "sqlite_schema" || name.starts_with("sqlite_stat") {
            continue;
        }
        said.push(format!("table {name}"));
        let rowid = if without_rowid { "" } else { "rowid, " };
        // Nobody asks for the row numbers of SQLite's own tables.
        let rowid = if name.starts_with("sqlite_") {
            ""
        } else {
            rowid
        };
        let mut all = rows(&format!("SELECT {rowid}* FROM \"{name}\""));
        all.sort();
        said.extend(all);
    }
    said.extend(rows("PRAGMA user_version"));
    said.extend(rows("PRAGMA integrity_check"));
    said
}

#[test]
fn sql_takes_each_state_to_each_other() {
    let seeds = std::env::var("DIFF_SEEDS").map_or(3, |seeds| seeds.parse().unwrap());
    for seed in 1..=seeds {
        history_is_told(seed);
    }
}

fn history_is_told(seed: u64) {
    let dir = common::scratch();
    let db = dir.path().join("app.db");
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let ours = common::open(&db, "");
    let encoding = ["UTF-8", "UTF-16le", "UTF-16be"][(seed % 3) as usize];
    let vacuum = seed % 2;
    ours.execute_batch(&format!(
        "PRAGMA encoding='{encoding}'; PRAGMA page_size={}; PRAGMA auto_vacuum={vacuum}; PRAGMA recursive_triggers=ON",
        512 << (seed % 4)
    ))
    .unwrap();
    if seed.is_multiple_of(2) {
        ours.execute_batch("PRAGMA journal_mode=WAL").unwrap();
    }
    ours.execute_batch(SCHEMA).unwrap();
    let first = txid(&ours);
    for n in 0..300 {
        let kind = random.next();
        step(&ours, &mut random, kind);
        if n % 20 == 19
            && let Some(sql) = RARE.get(n / 20)
        {
            ours.execute_batch(sql).unwrap();
        }
    }
    let last = txid(&ours);
    let state = |txid: u64, name: &str| {
        let path = dir.path().join(name);
        let txid = txid.to_string();
        run([
            "restore",
            text(&db),
            "-o",
            text(&path),
            "--force",
            "--txid",
            &txid,
        ])
        .good();
        path
    };
    for pair in 0..10 {
        let pick = |random: &mut Random| first + random.below(last - first + 1);
        let (from, mut to) = (pick(&mut random), pick(&mut random));
        if pair % 2 == 0 {
            // Near to each other.
            to = (from + 1 + random.below(6)).min(last);
        }
        let (from, to) = if pair % 4 == 0 {
            (to, from)
        } else {
            (from, to)
        };
        let (a, b) = (state(from, "a.db"), state(to, "b.db"));
        let script = run([
            "diff",
            text(&db),
            "--from",
            &from.to_string(),
            "--to",
            &to.to_string(),
            "--sql",
        ])
        .good();
        let what = format!("seed {seed}, {from} to {to}");
        if pair % 3 == 0 {
            let applied = common::open_plain(&a).execute_batch(&script);
            applied.unwrap_or_else(|e| panic!("{what}: {e}\n{script}"));
        } else {
            let file = dir.path().join("script.sql");
            std::fs::write(&file, &script).unwrap();
            let said = shell(
                dir.path(),
                ".open file:a.db?vfs=unix\n.bail on\n.read script.sql",
            );
            assert_eq!(
                (said.code, said.stderr.as_str()),
                (0, ""),
                "{what}\n{script}"
            );
        }
        let (is, expected) = (content(&a), content(&b));
        let other = is
            .iter()
            .zip(&expected)
            .find(|(is, expected)| is != expected);
        assert!(
            is == expected,
            "{what}: {other:?}, {} {}",
            is.len(),
            expected.len()
        );
        check_words(&a, &what);
    }
}

/// The full-text index is whole.
fn check_words(path: &Path, what: &str) {
    let plain = common::open_plain(path);
    let there: i64 = plain
        .query_row(
            "SELECT count(*) FROM sqlite_schema WHERE name='f'",
            [],
            |row| row.get(0),
        )
        .unwrap();
    if there == 1 {
        plain
            .execute_batch("INSERT INTO f(f) VALUES('integrity-check')")
            .unwrap_or_else(|e| panic!("{what}: {e}"));
    }
}

fn txid(ours: &Connection) -> u64 {
    let txid: i64 = ours
        .query_row("SELECT mycelite_txid()", [], |row| row.get(0))
        .unwrap();
    txid as u64
}

#[test]
fn rows_are_shown_with_their_keys() {
    let (_dir, db) = database(&[
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b, c); INSERT INTO t VALUES(1, 'one', 1.5), (2, 'two', x'00ff')",
        "CREATE TABLE w(k TEXT PRIMARY KEY, v) WITHOUT ROWID; INSERT INTO w VALUES('x', 1)",
        "BEGIN; UPDATE t SET b='deux' WHERE a=2; DELETE FROM t WHERE a=1; INSERT INTO t VALUES(3, NULL, 'it''s'); \
         UPDATE w SET v=2; CREATE INDEX i ON t(b); COMMIT",
    ]);
    let from = (txid(&common::open(&db, "")) - 1).to_string();
    let said = run(["diff", text(&db), "--from", &from]).good();
    let expected = [
        "index i:",
        "  + CREATE INDEX i ON t(b)",
        "t:",
        "  - 1  a=1, b='one', c=1.5",
        "  ~ 2  b: 'two' -> 'deux'",
        "  + 3  a=3, b=NULL, c='it''s'",
        "w:",
        "  ~ 'x'  v: 1 -> 2",
    ];
    assert_eq!(said.lines().take(8).collect::<Vec<_>>(), expected);
    assert!(
        said.lines()
            .last()
            .unwrap()
            .ends_with("1 of the schema, 1 inserted, 1 deleted, 2 updated"),
        "{said}"
    );
    let json: Vec<Json> = run(["diff", text(&db), "--from", &from, "--table", "t", "--json"])
        .good()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(json.len(), 4);
    assert_eq!(json[2]["op"], "update");
    assert_eq!(json[2]["key"]["a"], 2);
    assert_eq!(json[2]["old"]["b"], "two");
    assert_eq!(json[2]["new"]["c"]["blob"], "00ff");
    // The other way round it is undone.
    let back = run([
        "diff",
        text(&db),
        "--from",
        "live",
        "--to",
        &from,
        "--table",
        "w",
        "--sql",
    ])
    .good();
    assert!(
        back.contains("UPDATE \"w\" SET \"v\"=1 WHERE \"k\"='x';"),
        "{back}"
    );
    assert!(
        run(["diff", text(&db), "--from", "live"])
            .good()
            .contains("0 inserted, 0 deleted")
    );

    for (arguments, code, says) in [
        (&["diff", text(&db)][..], 2, "--from"),
        (
            &["diff", text(&db), "--from", "yesterday"],
            2,
            "--from: \"yesterday\" names no moment",
        ),
        (
            &["diff", text(&db), "--from", "1", "--to", "99"],
            3,
            "not in this log",
        ),
        (
            &["diff", text(&db), "--from", "1", "--table", "none"],
            3,
            "no table with rows is called",
        ),
        (
            &["diff", text(&db), "--from", "1", "--sql", "--json"],
            2,
            "cannot be used with",
        ),
        (
            &["diff", text(&db), "--from", "bookmark:x"],
            3,
            "no bookmark is called",
        ),
        (
            &["diff", "http://127.0.0.1:1/app", "--from", "1"],
            2,
            "where the log is",
        ),
    ] {
        let line = run(arguments).bad(code);
        assert!(line.contains(says), "{arguments:?}: {line}");
    }
}

/// Few changed rows in a large table: few pages are read, whatever kind of table, and also where only pages behind a row's
/// first one change.
#[test]
fn what_did_not_change_is_not_read() {
    let dir = common::scratch();
    let db = dir.path().join("app.db");
    let ours = common::open(&db, "");
    ours.execute_batch(
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE INDEX i ON t(b); CREATE TABLE w(k PRIMARY KEY, v) WITHOUT ROWID;
         BEGIN; WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
         INSERT INTO t SELECT i, 'row number ' || i || ' with some more text in it' FROM n; INSERT INTO w SELECT b, a FROM t;
         CREATE TABLE big(a INTEGER PRIMARY KEY, b); INSERT INTO big VALUES(1, zeroblob(100000)), (2, zeroblob(100000)); COMMIT",
    )
    .unwrap();
    let pages: i64 = ours
        .query_row("PRAGMA page_count", [], |row| row.get(0))
        .unwrap();
    let before = txid(&ours);
    let read = |what: &str, from: u64| {
        let (from, to) = (Moment::Txid(from), Moment::Head);
        let mut changes = Diff::new(&common::log_dir(&db), &from, &to, None)
            .unwrap()
            .changes();
        let found: Vec<Change> = changes.by_ref().map(Result::unwrap).collect();
        println!(
            "{what}: {} of {pages} pages for {} changes",
            changes.diff().pages_read(),
            found.len()
        );
        (changes.diff().pages_read() as i64, found.len())
    };
    assert!(pages > 2000, "{pages}");
    ours.execute_batch(
        "UPDATE t SET b = 'other' WHERE a % 20000 = 7; DELETE FROM w WHERE v = 30000",
    )
    .unwrap();
    let (few, changes) = read("rows", before);
    assert_eq!(changes, 4);
    assert!(few < pages / 20, "{few} of {pages}");
    let before = txid(&ours);
    assert_eq!(read("nothing", before).1, 0);
    ours.execute_batch("UPDATE big SET b = zeroblob(99999) || x'01' WHERE a = 2")
        .unwrap();
    let (_, changes) = read("the end of a long row", before);
    assert_eq!(changes, 1);
}
