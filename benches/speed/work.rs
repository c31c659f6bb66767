//! The work that is measured: the same statements on plain SQLite and through the extension.

use crate::host::{Job, Took, load, measure, page_bytes, plain};
use rusqlite::Connection;
use std::path::Path;

pub const TABLE: &str =
    "CREATE TABLE t(a INTEGER PRIMARY KEY, r INTEGER, b TEXT); CREATE INDEX i ON t(r)";

/// Rows of the table in which single rows are updated and looked up: 200 MB.
const LARGE_ROWS: i64 = 900_000;
/// Rows of the table of which one half is deleted.
const HALF_ROWS: u64 = 300_000;

/// SQL that adds `rows` rows in one statement.
pub fn fill(rows: u64) -> String {
    format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{rows})
         INSERT INTO t(r, b) SELECT random(), hex(randomblob(95)) FROM n"
    )
}

/// Makes the database with which `work` begins, if it does not begin with none.
pub fn prepare(work: &str, db: &Path) -> bool {
    let rows = match work {
        "updates" | "mix" | "scans" | "points" => LARGE_ROWS as u64,
        "delete-vacuum" => HALF_ROWS,
        _ => return false,
    };
    let connection = plain(db);
    connection
        .execute_batch(&format!("PRAGMA synchronous=OFF; {TABLE}; {}", fill(rows)))
        .unwrap();
    true
}

/// Whether `work` leaves the database as it was.
pub fn only_reads(work: &str) -> bool {
    matches!(work, "scans" | "points")
}

/// Does the job, and says what it took. What is there already is adopted before; that is measured elsewhere.
pub fn run(job: &Job) -> Took {
    match job.work.as_str() {
        "process" => return one_insert(job),
        "processes" => return processes(job),
        "threads" => return threads(job),
        _ => {}
    }
    let connection = job.open();
    connection
        .execute_batch("BEGIN IMMEDIATE; ROLLBACK")
        .unwrap();
    if matches!(job.work.as_str(), "inserts" | "bulk") {
        connection.execute_batch(TABLE).unwrap();
    }
    measure(|took| {
        alone(&connection, job);
        took.page_bytes = page_bytes(&connection);
        connection.close().unwrap();
    })
}

fn alone(connection: &Connection, job: &Job) {
    let count = job.count;
    match job.work.as_str() {
        "nothing" => {}
        "inserts" => repeat(
            connection,
            count,
            "INSERT INTO t(r, b) VALUES(random(), hex(randomblob(50)))",
        ),
        "updates" => repeat(
            connection,
            count,
            &format!("UPDATE t SET b=hex(randomblob(95)) WHERE a=1+abs(random()%{LARGE_ROWS})"),
        ),
        "mix" => mix(connection, count),
        "bulk" => connection.execute_batch(&fill(count)).unwrap(),
        "delete-vacuum" => connection
            .execute_batch("DELETE FROM t WHERE a%2; VACUUM")
            .unwrap(),
        "scans" => query(connection, count, "SELECT sum(length(b)) FROM t"),
        "points" => query(
            connection,
            count,
            &format!("SELECT length(b) FROM t WHERE a=1+abs(random()%{LARGE_ROWS})"),
        ),
        other => panic!("no such work: {other}"),
    }
}

fn repeat(connection: &Connection, count: u64, sql: &str) {
    let mut statement = connection.prepare(sql).unwrap();
    for _ in 0..count {
        statement.execute([]).unwrap();
    }
}

fn query(connection: &Connection, count: u64, sql: &str) {
    let mut statement = connection.prepare(sql).unwrap();
    for _ in 0..count {
        let length: i64 = statement.query_row([], |row| row.get(0)).unwrap();
        assert!(length > 0);
    }
}

/// Short transactions that read four rows, change two, add one and delete one.
fn mix(connection: &Connection, count: u64) {
    let prepare = |sql| connection.prepare(sql).unwrap();
    let (mut begin, mut commit) = (prepare("BEGIN IMMEDIATE"), prepare("COMMIT"));
    let mut read = prepare("SELECT length(b) FROM t WHERE a=1+abs(random()%?1)");
    let mut change = prepare("UPDATE t SET b=hex(randomblob(95)) WHERE a=1+abs(random()%?1)");
    let mut add = prepare("INSERT INTO t(r, b) VALUES(random(), hex(randomblob(95)))");
    let mut remove = prepare("DELETE FROM t WHERE a=?1");
    for number in 0..count {
        begin.execute([]).unwrap();
        for _ in 0..4 {
            let _ = read.query_row([LARGE_ROWS], |row| row.get::<_, i64>(0));
        }
        for _ in 0..2 {
            change.execute([LARGE_ROWS]).unwrap();
        }
        add.execute([]).unwrap();
        remove.execute([LARGE_ROWS - number as i64]).unwrap();
        commit.execute([]).unwrap();
    }
}

/// What a script does: open, one insert, close.
fn one_insert(job: &Job) -> Took {
    measure(|_| {
        let connection = job.open();
        connection
            .execute_batch("INSERT INTO t(r, b) VALUES(random(), hex(randomblob(50)))")
            .unwrap();
        connection.close().unwrap();
    })
}

/// One short-lived process after the other.
fn processes(job: &Job) -> Took {
    load();
    job.open().execute_batch(TABLE).unwrap();
    let one = Job {
        work: "process".into(),
        ..job.clone()
    };
    measure(|_| {
        for _ in 0..job.count {
            let status = one.command().stdout(std::process::Stdio::null()).status();
            assert!(status.unwrap().success());
        }
    })
}

/// Sixteen threads with a connection each.
fn threads(job: &Job) -> Took {
    job.open().execute_batch(TABLE).unwrap();
    let connections: Vec<Connection> = (0..16).map(|_| job.open()).collect();
    measure(|_| {
        std::thread::scope(|scope| {
            for connection in connections {
                scope.spawn(move || {
                    repeat(
                        &connection,
                        job.count / 16,
                        "INSERT INTO t(r, b) VALUES(random(), hex(randomblob(50)))",
                    );
                    connection.close().unwrap();
                });
            }
        });
    })
}
