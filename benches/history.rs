//! A long history: makes one of a million commits through the extension, then opens moments of it, in processes of their own.
//!
//! `cargo bench --bench history -- [--dir DIR] [--commits N] [--moments N] [--keep]`
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)]
#![allow(clippy::missing_transmute_annotations)]

use mycelite::maintain::{self, Needs, Options};
use mycelite_journal::{Archive, FileStorage, FullSpeed, Reader, Txid};
use rusqlite::{Connection, OpenFlags};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn main() {
    let path = || PathBuf::from(std::env::var("HISTORY_DB").unwrap());
    let number = || std::env::var("HISTORY_NUMBER").unwrap().parse().unwrap();
    match std::env::var("HISTORY_CHILD").as_deref() {
        Ok("write") => return write(&path(), number()),
        Ok("read") => return read(&path(), number()),
        _ => {}
    }
    let (mut dir, mut commits, mut moments, mut keep) =
        (std::env::temp_dir(), 1_000_000, 500, false);
    let mut arguments = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = arguments.next() {
        let mut value = || arguments.next().unwrap();
        match word.as_str() {
            "--dir" => dir = value().into(),
            "--commits" => commits = value().parse().unwrap(),
            "--moments" => moments = value().parse().unwrap(),
            "--keep" => keep = true,
            _ => panic!("unknown argument {word}"),
        }
    }
    let mut home = tempfile::tempdir_in(&dir).unwrap();
    home.disable_cleanup(keep);
    let path = home.path().join("app.db");
    println!("{}", path.display());
    child("write", &path, commits);
    child("read", &path, moments);
    let log = mycelite::database::log_dir(&path);
    let rest = Options {
        keep_all: None,
        ..Options::default()
    };
    let began = Instant::now();
    let done = maintain::run(&log, &rest, &Needs::default, &FullSpeed).unwrap();
    println!("what was left to seal: {done:?}, {:.1?}", began.elapsed());
    child("read", &path, moments);
}

fn child(what: &str, path: &Path, number: u64) {
    let status = Command::new(std::env::current_exe().unwrap())
        .env("HISTORY_CHILD", what)
        .env("HISTORY_DB", path)
        .env("HISTORY_NUMBER", number.to_string())
        .status()
        .unwrap();
    assert!(status.success());
}

/// Deterministic: the same rows at each run.
fn scatter(number: u64) -> i64 {
    ((number.wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 16) as i64
}

fn write(path: &Path, commits: u64) {
    load();
    let uri = format!("file:{}?vfs=mycelite_writer", path.display());
    let db = Connection::open_with_flags(uri, OpenFlags::default()).unwrap();
    db.execute_batch(
        "PRAGMA journal_mode=wal; PRAGMA synchronous=normal;
         CREATE TABLE t(a INTEGER PRIMARY KEY, r INTEGER, b TEXT); CREATE INDEX i ON t(r)",
    )
    .unwrap();
    let began = Instant::now();
    let mut insert = db
        .prepare("INSERT INTO t(r, b) VALUES(?1, hex(zeroblob(20)) || ?1 || '-' || ?2)")
        .unwrap();
    let mut update = db
        .prepare("UPDATE t SET b = ?2 || '+' || r WHERE a = ?1")
        .unwrap();
    let mut rows = 0;
    for number in 0..commits {
        if number % 3 < 2 {
            insert.execute([scatter(number), number as i64]).unwrap();
            rows += 1;
        } else {
            let row = 1 + scatter(number) % rows;
            update.execute([row, scatter(number + 7)]).unwrap();
        }
    }
    println!("{commits} commits, {rows} rows in {:.1?}", began.elapsed());
    drop((insert, update));
    db.close().unwrap();
    let log = mycelite::database::log_dir(path);
    let size = std::fs::metadata(path).unwrap().len();
    println!(
        "closed after {:.1?}; database {} MB, log {} MB, memory at most {} MB",
        began.elapsed(),
        size / 1_000_000,
        mycelite::database::directory_bytes(&log) / 1_000_000,
        memory_mb("VmHWM"),
    );
}

/// Opens moments, spread over the history and the newest ones, each in a connection of its own, and asks each for one row.
fn read(path: &Path, moments: u64) {
    load();
    let log = mycelite::database::log_dir(path);
    let storage = Arc::new(FileStorage::new(&log));
    let head = Reader::open(storage.clone())
        .unwrap()
        .head()
        .unwrap()
        .unwrap();
    let last = head.header.txid.0;
    let before = memory_mb("VmRSS");
    let (mut opened, mut asked) = (Vec::new(), Vec::new());
    for number in 0..moments {
        let txid = match number % 10 {
            0 => last - (scatter(number) as u64) % 1000,
            _ => 2 + (scatter(number) as u64) % (last - 2),
        };
        let uri = format!("file:{}?vfs=mycelite_reader&txid={txid}", path.display());
        let began = Instant::now();
        let db = Connection::open_with_flags(&uri, OpenFlags::default()).unwrap();
        db.query_row("PRAGMA schema_version", [], |row| row.get::<_, i64>(0))
            .unwrap();
        opened.push(began.elapsed());
        // The rows that there were then: every third commit is an update.
        let rows = (2 * (txid - 1)).div_ceil(3).max(1);
        let row = 1 + scatter(number + 1) as u64 % rows;
        let began = Instant::now();
        let text: Option<String> = db
            .query_row("SELECT b FROM t WHERE a = ?1", [row as i64], |row| {
                row.get(0)
            })
            .ok();
        asked.push(began.elapsed());
        assert!(
            txid < 5 || text.is_some(),
            "transaction {txid} has no row {row} of {rows}"
        );
    }
    // The library's own answer, without SQLite.
    let archive = Archive::open(storage).unwrap();
    let mut plain = Vec::new();
    for number in 0..moments {
        let began = Instant::now();
        archive
            .as_of(Txid(2 + (scatter(number) as u64) % (last - 2)))
            .unwrap();
        plain.push(began.elapsed());
    }
    show("open as of, with SQLite", opened);
    show("open as of, the journal alone", plain);
    show("then a point query, cold", asked);
    let files = std::fs::read_dir(&log).unwrap().count();
    println!(
        "memory {} MB more than before, at most {} MB; {files} files in the log",
        memory_mb("VmRSS").saturating_sub(before),
        memory_mb("VmHWM"),
    );
}

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    println!(
        "{what}: median {:.2?}, p90 {:.2?}, p99 {:.2?}, most {:.2?}",
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    );
}

fn memory_mb(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        / 1000
}

/// Registers the extension with this program's SQLite.
fn load() {
    type Entry = unsafe extern "C" fn(
        *mut rusqlite::ffi::sqlite3,
        *mut *mut std::ffi::c_char,
        *const std::ffi::c_void,
    ) -> i32;
    let entry: Entry = mycelite::auto_extension_entry;
    // SAFETY: both types are an extension's entry point; only the name of the table's type differs.
    let rc = unsafe { rusqlite::ffi::sqlite3_auto_extension(Some(std::mem::transmute(entry))) };
    assert_eq!(rc, 0);
    Connection::open_in_memory().unwrap();
}
