//! Five moments and the live database in one query, in the stock shell and in Python.

use crate::common;
use crate::kit::{python, shell};

/// The history behind each of these: `n` rows after step `n`, and a WAL, a larger page size, a shrunken file on the way.
const STEPS: &str = "
PRAGMA journal_mode=WAL;
CREATE TABLE t(a INTEGER PRIMARY KEY, b);
INSERT INTO t VALUES(1, zeroblob(100000));
SELECT mycelite_bookmark('one');
INSERT INTO t VALUES(2, 'two');
SELECT mycelite_bookmark('two');
PRAGMA journal_mode=DELETE;
PRAGMA page_size=16384;
VACUUM;
INSERT INTO t VALUES(3, 'three');
SELECT mycelite_bookmark('three');
UPDATE t SET b='short' WHERE a=1;
VACUUM;
INSERT INTO t VALUES(4, 'four');
SELECT mycelite_bookmark('four');
PRAGMA journal_mode=WAL;
INSERT INTO t VALUES(5, 'five');
SELECT mycelite_bookmark('five');
INSERT INTO t VALUES(6, 'six');
";

const QUERY: &str = "SELECT main.t.a, m5.t.b, m4.t.b, m3.t.b, m2.t.b, length(m1.t.b) FROM main.t \
    LEFT JOIN m5.t ON m5.t.a = main.t.a LEFT JOIN m4.t ON m4.t.a = main.t.a LEFT JOIN m3.t ON m3.t.a = main.t.a \
    LEFT JOIN m2.t ON m2.t.a = main.t.a LEFT JOIN m1.t ON m1.t.a = main.t.a ORDER BY 1";

const ANSWER: &str = "1|short|short|BLOB|BLOB|100000
2|two|two|two|two|
3|three|three|three||
4|four|four|||
5|five||||
6|||||
";

fn attach(suffix: &str) -> String {
    ["one", "two", "three", "four", "five"]
        .iter()
        .zip(1..)
        .map(|(name, n)| {
            format!("ATTACH 'file:app.db?vfs=mycelite_reader&bookmark={name}{suffix}' AS m{n};\n")
        })
        .collect()
}

/// The large blobs as a word: the shell prints what is before their first NUL.
fn query() -> String {
    let mut query = QUERY.to_owned();
    for n in [5, 4, 3, 2] {
        query = query.replacen(
            &format!("m{n}.t.b,"),
            &format!("iif(typeof(m{n}.t.b) = 'blob', 'BLOB', m{n}.t.b),"),
            1,
        );
    }
    query
}

#[test]
fn five_moments_and_the_live_database_in_the_shell() {
    for suffix in ["", "&hydrate=1"] {
        let dir = tempfile::tempdir().unwrap();
        let script = format!(".open app.db\n{STEPS}\n{}{};", attach(suffix), query());
        let said = shell(dir.path(), &script).good();
        assert!(said.ends_with(ANSWER), "{said}");
        // Another process, which has the database open by nothing but its log.
        std::fs::remove_file(dir.path().join("app.db")).unwrap();
        let script = format!(
            "{}SELECT count(*) FROM m1.t UNION ALL SELECT count(*) FROM m5.t;\nPRAGMA m3.integrity_check;\nPRAGMA m3.page_size;\nPRAGMA m2.page_size;",
            attach(suffix)
        );
        let said = shell(dir.path(), &script).good();
        assert_eq!(said, "1\n5\nok\n16384\n4096\n");
    }
}

#[test]
fn five_moments_and_the_live_database_in_python() {
    let dir = tempfile::tempdir().unwrap();
    common::open(&dir.path().join("app.db"), "")
        .execute_batch(STEPS)
        .unwrap();
    let script = format!(
        "
import sqlite3
app = sqlite3.connect(':memory:')
app.enable_load_extension(True)
app.load_extension(LIBRARY)
app = sqlite3.connect('file:app.db?vfs=mycelite_writer', uri=True)
for line in {:?}.splitlines():
    app.execute(line)
for row in app.execute({:?}):
    print('|'.join('' if value is None else str(value) for value in row))
# The live database goes on, the moments do not.
app.execute('DELETE FROM main.t')
app.commit()
print(app.execute('SELECT (SELECT count(*) FROM main.t), (SELECT count(*) FROM m5.t)').fetchone())
try:
    app.execute('INSERT INTO m5.t VALUES(9, 9)')
except sqlite3.OperationalError as error:
    print(error)
",
        attach(""),
        query()
    );
    let said = python(dir.path(), &script).good();
    assert_eq!(
        said,
        format!("{ANSWER}(0, 5)\nattempt to write a readonly database\n")
    );
}

/// Each wrong value is refused with one line that says what to do, on the host's error log, where the shell shows it.
#[test]
fn wrong_parameters_are_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    common::open(&dir.path().join("app.db"), "")
        .execute_batch(STEPS)
        .unwrap();
    for (parameters, says) in [
        ("txid=0", "not the number of a transaction"),
        ("txid=99", "not in this log"),
        ("txid=-1", "not the number of a transaction"),
        ("at=noon", "write it in UTC like"),
        ("at=1999-12-31", "the history begins with transaction 1 at"),
        ("ago=9999d", "the history begins with transaction 1 at"),
        ("ago=x", "90s, 5m"),
        ("bookmark=thre", "did you mean \\\"three\\\"?"),
        ("bookmark=", "empty"),
        ("hydrate=1", "without a moment"),
        ("txid=2&hydrate=2", "neither 0 nor 1"),
        ("txid=2&ago=5m", "more than one"),
        ("tixd=2", "did you mean txid?"),
    ] {
        let said = shell(
            dir.path(),
            &format!(".log stderr\nATTACH 'file:app.db?vfs=mycelite_reader&{parameters}' AS m;"),
        );
        let says = says.replace('\\', "");
        let lines: Vec<&str> = said
            .stderr
            .lines()
            .filter(|line| line.contains(&says))
            .collect();
        assert!(!lines.is_empty(), "{parameters}: {said:?}");
        assert!(
            said.stderr.contains("unable to open database"),
            "{parameters}: {said:?}"
        );
    }
}

/// When the copy is filled, the log is not needed any more: not even its files.
#[test]
fn a_hydrated_moment_needs_the_log_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = common::open(&path, "");
    ours.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        .unwrap();
    for _ in 0..50 {
        ours.execute_batch("INSERT INTO t(b) VALUES(randomblob(50000))")
            .unwrap();
    }
    let count = |hydrate: &str, patience: u64| {
        let copy = dir.path().join("copy");
        std::fs::create_dir(&copy).unwrap();
        for entry in std::fs::read_dir(common::log_dir(&path)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
        let uri = format!(
            "file:{}?vfs=mycelite_reader&txid=40{hydrate}",
            copy.display()
        );
        let past =
            rusqlite::Connection::open_with_flags(uri, rusqlite::OpenFlags::default()).unwrap();
        past.execute_batch("PRAGMA cache_size=1; SELECT count(*) FROM t")
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(patience));
        // Who has a file open goes on reading it, so the bytes go, not the names.
        for entry in std::fs::read_dir(&copy).unwrap() {
            std::fs::write(entry.unwrap().path(), "").unwrap();
        }
        std::fs::remove_dir_all(&copy).unwrap();
        past.query_row("SELECT sum(length(b)) FROM t", [], |row| {
            row.get::<_, i64>(0)
        })
    };
    assert!(count("", 50).is_err());
    let read = [100, 1000, 10_000]
        .iter()
        .find_map(|patience| count("&hydrate=1", *patience).ok());
    assert_eq!(read, Some(39 * 50_000));
}
