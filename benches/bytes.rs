//! What the log takes, by workload: raw and sealed, in percent of the changed pages' bytes. All of a log's files count, headers
//! and index included, but the newest segment, which is not sealed yet: a workload of short commits needs more than 16 384.
//!
//! `cargo bench --bench bytes -- [--dir DIR] [--commits N] [WORKLOAD...]`
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)]
#![allow(clippy::missing_transmute_annotations)]

use mycelite::maintain::{self, Needs, Options};
use mycelite_journal::{FileStorage, FullSpeed, Reader, parse_sealed_name};
use rusqlite::{Connection, OpenFlags};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const WORKLOADS: [&str; 6] = [
    "inserts",
    "updates",
    "documents",
    "oltp",
    "bulk",
    "delete-vacuum",
];

fn main() {
    let (mut dir, mut commits, mut chosen) = (std::env::temp_dir(), 60_000u64, Vec::new());
    let mut arguments = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = arguments.next() {
        match word.as_str() {
            "--dir" => dir = PathBuf::from(arguments.next().unwrap()),
            "--commits" => commits = arguments.next().unwrap().parse().unwrap(),
            _ if WORKLOADS.contains(&word.as_str()) => chosen.push(word),
            _ => panic!("unknown argument {word}; workloads are {WORKLOADS:?}"),
        }
    }
    if chosen.is_empty() {
        chosen = WORKLOADS.map(String::from).to_vec();
    }
    load();
    println!("| workload | commits | pages changed | raw % | sealed % | zstd of the pages % |");
    println!("|---|---|---|---|---|---|");
    for workload in chosen {
        let home = tempfile::tempdir_in(&dir).unwrap();
        let path = home.path().join("app.db");
        let from = write(&path, &workload, commits);
        measure(&path, &workload, from);
    }
}

fn open(path: &Path, vfs: &str) -> Connection {
    let uri = format!("file:{}?vfs={vfs}", path.display());
    let db = Connection::open_with_flags(uri, OpenFlags::default()).unwrap();
    db.execute_batch("PRAGMA journal_mode=wal; PRAGMA synchronous=normal")
        .unwrap();
    db
}

const TABLE: &str =
    "CREATE TABLE t(a INTEGER PRIMARY KEY, r INTEGER, b TEXT); CREATE INDEX i ON t(r)";

fn fill(rows: u64) -> String {
    format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{rows})
         INSERT INTO t(r, b) SELECT random(), hex(randomblob(60)) || ' customer ' || i FROM n"
    )
}

/// Runs a workload; the transaction before its first.
fn write(path: &Path, workload: &str, commits: u64) -> u64 {
    let db = open(path, "mycelite_writer");
    db.execute_batch(TABLE).unwrap();
    match workload {
        "updates" => db.execute_batch(&fill(1_000_000)).unwrap(),
        "oltp" => db.execute_batch(&fill(100_000)).unwrap(),
        "delete-vacuum" => db.execute_batch(&fill(300_000)).unwrap(),
        "documents" => db
            .execute_batch(
                "CREATE TABLE d(a INTEGER PRIMARY KEY, doc TEXT);
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<20000)
                 INSERT INTO d SELECT i, json_object('id', i, 'name', 'customer ' || i, 'street', hex(randomblob(9)),
                    'orders', json_array(abs(random())%1000, abs(random())%1000, abs(random())%1000),
                    'note', hex(randomblob(40)), 'balance', abs(random())%100000) FROM n",
            )
            .unwrap(),
        _ => {}
    }
    let number = "SELECT mycelite_txid()";
    let from: i64 = db.query_row(number, [], |row| row.get(0)).unwrap();
    let run = |sql: &str| {
        db.prepare_cached(sql)
            .unwrap()
            .execute([])
            .map(drop)
            .unwrap()
    };
    let insert = "INSERT INTO t(r, b) VALUES(random(), hex(randomblob(20)) || ' customer')";
    let update = "UPDATE t SET b = hex(randomblob(60)) || ' updated' WHERE a = 1 + abs(random()) % (SELECT max(a) FROM t)";
    match workload {
        "bulk" => {
            db.execute_batch("BEGIN").unwrap();
            db.execute_batch(&fill(1_000_000)).unwrap();
            db.execute_batch("COMMIT").unwrap();
        }
        "delete-vacuum" => {
            run("DELETE FROM t WHERE a % 2 = 0");
            db.execute_batch("VACUUM").unwrap();
        }
        _ => {
            for step in 0..commits {
                match (workload, step % 10) {
                    ("inserts", _) | ("oltp", 0..=4) => run(insert),
                    ("updates", _) | ("oltp", 5..=8) => run(update),
                    ("documents", _) => run(
                        "UPDATE d SET doc = json_set(doc, '$.balance', abs(random())%100000, '$.note', hex(randomblob(40)))
                         WHERE a = 1 + abs(random()) % 20000",
                    ),
                    _ => run("DELETE FROM t WHERE a = 1 + abs(random()) % (SELECT max(a) FROM t)"),
                }
            }
        }
    }
    // A segment that is full ends at the next record: these are in another one than the load.
    run("CREATE TABLE last(a)");
    run("INSERT INTO last VALUES(1)");
    db.close().unwrap();
    from as u64
}

/// Reads the raw records' sizes, seals, and compares.
fn measure(path: &Path, workload: &str, from: u64) {
    let log = mycelite::database::log_dir(path);
    let keep = Options {
        keep_all: None,
        ..Options::default()
    };
    maintain::run(&log, &keep, &Needs::default, &FullSpeed).unwrap();
    // Whole files, those that begin after the preparation.
    let (mut sealed, mut ranges) = (0, Vec::new());
    for entry in std::fs::read_dir(&log).unwrap() {
        let entry = entry.unwrap();
        if let Some((first, last)) = parse_sealed_name(entry.file_name().to_str().unwrap())
            && (first.0 > from || workload == "bulk")
        {
            sealed += entry.metadata().unwrap().len();
            ranges.push((first.0, last.0));
        }
    }
    let (mut raw, mut pages, mut bytes, mut count) = (0, 0, 0, 0);
    let mut reader = Reader::open(Arc::new(FileStorage::new(&log))).unwrap();
    while let Some(entry) = reader.next().unwrap() {
        let header = &entry.header;
        let inside = |range: &(u64, u64)| (range.0..=range.1).contains(&header.txid.0);
        if ranges.iter().any(inside) {
            raw += header.record_len();
            pages += u64::from(header.patch_count);
            bytes += u64::from(header.patch_count) * header.page_size.bytes() as u64;
            count += 1;
        }
    }
    // What the pages of the database are, compressed one by one.
    let plain = std::fs::read(path).unwrap();
    let sample = plain.chunks_exact(4096).step_by(7);
    let (sizes, number) = sample.fold((0, 0), |(sizes, number), page| {
        (
            sizes + zstd::bulk::compress(page, 3).unwrap().len(),
            number + 1,
        )
    });
    let percent = |part: f64| format!("{:.2}", 100.0 * part / bytes.max(1) as f64);
    println!(
        "| {workload} | {count} | {pages} | {} | {} | {:.1} |",
        percent(raw as f64),
        percent(sealed as f64),
        100.0 * sizes as f64 / (number * 4096).max(1) as f64
    );
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
