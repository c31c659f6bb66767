//! The history in SQL and on the command line: filters, pages, differences, the chart.

use std::time::Instant;

use crate::clikit::{run, text};
use crate::common;
use crate::kit::{database, python, shell};

#[test]
fn differences_and_pages_are_tables() {
    let dir = tempfile::tempdir().unwrap();
    let said = shell(
        dir.path(),
        ".open app.db
CREATE TABLE t(a INTEGER PRIMARY KEY, b, c REAL);
INSERT INTO t VALUES(1, 'one', 1), (2, 'two', x'00ff');
UPDATE t SET b = 'deux', c = 2.5 WHERE a = 2;
DELETE FROM t WHERE a = 1;
CREATE TABLE w(x, y, v, PRIMARY KEY(x, y)) WITHOUT ROWID;
INSERT INTO w VALUES('k', 1, NULL);
SELECT \"table\", op, key, \"column\", quote(old), quote(new) FROM mycelite_diff('app.db', 2, 3);
SELECT '-';
SELECT \"table\", op, key, \"column\", quote(old), quote(new) FROM mycelite_diff('app.db', 3) WHERE op != 'schema';
SELECT '-';
SELECT op, \"column\", old FROM mycelite_diff('app.db', 'live', 'txid:4') WHERE op = 'schema';
SELECT '-';
SELECT count(*), min(pgno), max(bytes) > 0 FROM mycelite_pages('app.db', 2);
SELECT txid, (SELECT count(*) FROM mycelite_pages('app.db', l.txid)) = pages FROM mycelite_log l WHERE txid IN (1, 3);",
    )
    .good();
    assert_eq!(
        said,
        "t|update|2|b|'two'|'deux'
t|update|2|c|X'00FF'|2.5
-
t|delete|1|a|1|NULL
t|delete|1|b|'one'|NULL
t|delete|1|c|1.0|NULL
w|insert|[\"k\",1]|x|NULL|'k'
w|insert|[\"k\",1]|y|NULL|1
w|insert|[\"k\",1]|v|NULL|NULL
-
schema|table|CREATE TABLE w(x, y, v, PRIMARY KEY(x, y)) WITHOUT ROWID
-
2|1|1
1|1
3|1
"
    );
    // Python takes the values as they are, and reads a log that lies elsewhere.
    std::fs::rename(dir.path().join("app.db-mycelite"), dir.path().join("copy")).unwrap();
    let said = python(
        dir.path(),
        "
import sqlite3
app = sqlite3.connect(':memory:')
app.enable_load_extension(True)
app.load_extension(LIBRARY)
print(app.execute('SELECT old, new FROM mycelite_diff(?, 2, 3) ORDER BY \"column\"', ['copy']).fetchall())
for sql in ['SELECT * FROM mycelite_diff(\\'copy\\')', 'SELECT * FROM mycelite_diff(\\'copy\\', 99)',
            'SELECT * FROM mycelite_diff(\\'copy\\', \\'noon\\')', 'SELECT * FROM mycelite_pages(\\'copy\\', 99)',
            'SELECT * FROM mycelite_pages(\\'copy\\')', 'SELECT * FROM mycelite_diff(\\'none\\', 1)']:
    try:
        app.execute(sql).fetchall()
        print('no error')
    except sqlite3.Error as error:
        print(error)
",
    )
    .good();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "[('two', 'deux'), (b'\\x00\\xff', 2.5)]");
    let says = [
        "the moment to compare with is needed",
        "not in this log",
        "names no moment",
        "there is no transaction 99",
        "the number of a transaction is needed",
        "no log here",
    ];
    for (line, says) in lines[1..].iter().zip(says) {
        assert!(line.contains(says), "{said}");
    }
    assert_eq!(lines.len(), 7, "{said}");
}

/// Bounds choose where reading begins and ends, and never what is found.
#[test]
fn bounds_are_found_without_reading_everything() {
    let dir = common::scratch();
    let db = dir.path().join("app.db");
    let ours = common::open(&db, "&segment_bytes_max=64KiB");
    ours.execute_batch("PRAGMA synchronous=OFF; PRAGMA journal_mode=MEMORY; CREATE TABLE t(a)")
        .unwrap();
    for _ in 0..4000 {
        ours.execute_batch("INSERT INTO t VALUES(1)").unwrap();
    }
    let all: Vec<(i64, String)> = ours
        .prepare("SELECT txid, time FROM mycelite_log")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let count = |condition: &str| -> usize {
        let sql = format!("SELECT count(*) FROM mycelite_log WHERE {condition}");
        ours.query_row(&sql, [], |row| row.get::<_, i64>(0))
            .unwrap() as usize
    };
    let whole = |text: &dyn Fn(&(i64, String)) -> bool| all.iter().filter(|row| text(row)).count();
    let mid = &all[2000].1;
    for bound in [
        mid.as_str(),
        &mid[..19],
        &mid[..22],
        "2026",
        "9",
        "",
        "1999-01-01T00:00:00Z",
        "Z",
        "x y",
    ] {
        assert_eq!(
            count(&format!("time >= '{bound}'")),
            whole(&|row| row.1.as_str() >= bound),
            ">= {bound}"
        );
        assert_eq!(
            count(&format!("time > '{bound}'")),
            whole(&|row| row.1.as_str() > bound),
            "> {bound}"
        );
        assert_eq!(
            count(&format!("time <= '{bound}'")),
            whole(&|row| row.1.as_str() <= bound),
            "<= {bound}"
        );
        assert_eq!(
            count(&format!("time < '{bound}'")),
            whole(&|row| row.1.as_str() < bound),
            "< {bound}"
        );
        assert_eq!(
            count(&format!("time = '{bound}'")),
            whole(&|row| row.1.as_str() == bound),
            "= {bound}"
        );
    }
    let between = format!(
        "time BETWEEN '{}' AND '{}' AND txid > 1500",
        all[1000].1, all[3000].1
    );
    assert_eq!(
        count(&between),
        all.iter()
            .filter(|row| row.0 > 1500 && (&all[1000].1..=&all[3000].1).contains(&&row.1))
            .count()
    );
    assert_eq!(count("txid > 3990 AND txid <= 3995"), 5);
    // A few at the end, found by time, cost a fraction of all.
    let took = |condition: &str| {
        let started = Instant::now();
        (0..5).for_each(|_| assert!(count(condition) > 0));
        started.elapsed()
    };
    let (few, many) = (took(&format!("time >= '{}'", all[3990].1)), took("true"));
    assert!(few * 3 < many, "{few:?} of {many:?}");
}

#[test]
fn the_log_is_filtered_and_drawn() {
    let (_dir, db) = database(&[
        "CREATE TABLE t(a)",
        "INSERT INTO t VALUES(1)",
        "INSERT INTO t VALUES(randomblob(90000))",
        "DELETE FROM t",
    ]);
    let db = text(&db);
    run(["bookmark", db, "the big one", "--txid", "3"]).good();
    let plain = run(["log", db]).good();
    assert_eq!(plain.lines().count(), 5, "{plain}");
    assert!(
        plain.lines().nth(3).unwrap().ends_with("\"the big one\""),
        "{plain}"
    );
    let drawn = run(["log", db, "--chart"]).good();
    let last: Vec<&str> = drawn.lines().rev().take(2).collect();
    assert!(
        last[0].starts_with("4 transactions, ") && last[0].contains(" a second"),
        "{drawn}"
    );
    assert!(
        last[1].contains('█') && last[1].contains("up to "),
        "{drawn}"
    );

    let rows: Vec<serde_json::Value> = run(["log", db, "--json"])
        .good()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows[2]["bookmarks"][0], "the big one");
    assert!(rows[1].get("bookmarks").is_none());
    let time = |n: usize| rows[n]["time"].as_str().unwrap();
    for (arguments, expected) in [
        (vec!["--since", time(2)], vec![3, 4]),
        (vec!["--until", time(1)], vec![1, 2]),
        (vec!["--since", time(1), "--until", time(2)], vec![2, 3]),
        (vec!["--last", "2"], vec![3, 4]),
        (vec!["--last", "2", "--until", time(2)], vec![3]),
        (vec!["--since", "1h"], vec![1, 2, 3, 4]),
        (vec!["--until", "1h"], vec![]),
        (vec!["--since", "2100-01-01"], vec![]),
    ] {
        let said = run(["log", db, "--json"].into_iter().chain(arguments.clone())).good();
        let txids: Vec<u64> = said
            .lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()["txid"]
                    .as_u64()
                    .unwrap()
            })
            .collect();
        assert_eq!(txids, expected, "{arguments:?}");
    }
    let line = run(["log", db, "--since", "noon"]).bad(2);
    assert!(line.contains("--since: ") && line.contains("5m"), "{line}");
}
