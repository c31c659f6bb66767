//! A database under test, the connection that writes it, and the oracle that watches.

use crate::common::{Oracle, open};
use mycelite_journal::{FLAG_REBASE, RecordHeader};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub const MODES: [&str; 6] = ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF", "WAL"];
/// The modes in which a rollback restores what was before.
pub const ROLLBACK_MODES: [&str; 5] = ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "WAL"];

/// `INSERT`s `rows` rows of `bytes` random bytes each into `t(a INTEGER PRIMARY KEY, b)`.
pub fn fill(rows: u32, bytes: u32) -> String {
    format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{rows})
         INSERT INTO t(b) SELECT randomblob({bytes}) FROM n"
    )
}

pub struct Bench {
    pub connection: Connection,
    pub oracle: Oracle,
    pub path: PathBuf,
    dir: tempfile::TempDir,
}

impl Bench {
    /// A new database, opened with `pragmas`.
    #[track_caller]
    pub fn new(pragmas: &str) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        Bench::open(dir, &path, "", pragmas)
    }

    /// The database `path` in `dir`, opened with URI `parameters` and then `pragmas`.
    #[track_caller]
    pub fn open(dir: tempfile::TempDir, path: &Path, parameters: &str, pragmas: &str) -> Bench {
        let connection = open(path, parameters);
        connection.execute_batch(pragmas).unwrap();
        let mut oracle = Oracle::new(path);
        oracle.advance();
        Bench {
            connection,
            oracle,
            path: path.to_path_buf(),
            dir,
        }
    }

    /// With a table `t(a INTEGER PRIMARY KEY, b)`.
    #[track_caller]
    pub fn with_table(pragmas: &str) -> Bench {
        let mut bench = Bench::new(pragmas);
        bench.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)", 1);
        bench
    }

    /// Runs `sql`, which commits `commits` times, and compares.
    #[track_caller]
    pub fn run(&mut self, sql: &str, commits: usize) {
        self.execute(sql);
        let records = self.oracle.check(sql);
        let flags: Vec<u16> = self.newest(records).iter().map(|r| r.flags).collect();
        assert_eq!(records, commits, "records (flags {flags:?}) of: {sql}");
    }

    /// Runs `sql`, and counts the transactions among the new records.
    #[track_caller]
    pub fn run_counting(&mut self, sql: &str) -> usize {
        self.execute(sql);
        let new = self.oracle.check(sql);
        self.newest(new)
            .iter()
            .filter(|record| record.flags & FLAG_REBASE == 0)
            .count()
    }

    /// Runs `sql`, whose rollback may leave bytes in free pages, but no transaction.
    #[track_caller]
    pub fn run_rolled_back(&mut self, sql: &str) {
        assert_eq!(self.run_counting(sql), 0, "transactions of: {sql}");
    }

    #[track_caller]
    pub fn execute(&self, sql: &str) {
        self.connection
            .execute_batch(sql)
            .unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    #[track_caller]
    pub fn number(&self, sql: &str) -> i64 {
        number(&self.connection, sql)
    }

    /// The newest `count` records, in order.
    pub fn newest(&self, count: usize) -> &[RecordHeader] {
        let records = &self.oracle.records;
        &records[records.len() - count..]
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Closes the connection, and opens another.
    #[track_caller]
    pub fn reopen(&mut self, pragmas: &str) {
        self.connection = Connection::open_in_memory().unwrap();
        self.connection = open(&self.path, "");
        self.execute(pragmas);
    }

    /// Every change so far is a transaction that was seen as one.
    #[track_caller]
    pub fn nothing_was_compared(&self) {
        let flags: Vec<u16> = self.oracle.records.iter().map(|r| r.flags).collect();
        assert!(flags.iter().all(|flags| *flags == 0), "{flags:?}");
    }
}

#[track_caller]
pub fn number(connection: &Connection, sql: &str) -> i64 {
    connection
        .query_row(sql, [], |row| row.get(0))
        .unwrap_or_else(|e| panic!("{sql}: {e}"))
}

/// The library that cargo built beside this test.
pub fn library() -> PathBuf {
    let name = format!(
        "{}mycelite{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    );
    std::env::current_exe()
        .unwrap()
        .parent()
        .unwrap()
        .join(name)
}

/// Runs the stock shell without the extension; `input` is what is typed.
#[track_caller]
pub fn shell(database: &Path, input: &str) -> String {
    run_shell(Command::new("sqlite3").arg("-batch").arg(database), input)
}

/// Runs the stock shell with the extension loaded before the database is opened.
#[track_caller]
pub fn shell_with_us(database: &Path, input: &str) -> String {
    let load = format!(
        ".load {}\n.open {}\n",
        library().display(),
        database.display()
    );
    run_shell(
        Command::new("sqlite3").arg("-batch"),
        &format!("{load}{input}"),
    )
}

#[track_caller]
fn run_shell(command: &mut Command, input: &str) -> String {
    use std::io::Write;
    use std::process::Stdio;
    let mut child = command
        .arg("-bail")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let typed = input.to_owned();
    let typing = std::thread::spawn(move || stdin.write_all(typed.as_bytes()));
    let output = child.wait_with_output().unwrap();
    // A shell that stops early says why on its standard error.
    let _ = typing.join().unwrap();
    succeeded(output, input)
}

/// Standard output of a program that ended well.
#[track_caller]
pub fn succeeded(output: Output, what: &str) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {error}");
    String::from_utf8(output.stdout).unwrap()
}
