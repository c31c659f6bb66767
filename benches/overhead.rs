//! What the writer VFS costs: the same workload on plain SQLite and through the extension, in turn, each run a process
//! of its own. Prints medians and their ratios as a Markdown table.
//!
//! `cargo bench --bench overhead -- [--dir DIR] [--runs N] [--mode wal|delete] [--sync normal|full] [WORKLOAD...]`
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)]
#![allow(clippy::missing_transmute_annotations)]

use rusqlite::{Connection, OpenFlags};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

const WORKLOADS: [&str; 4] = ["inserts", "updates", "bulk", "delete-vacuum"];

struct Options {
    dir: PathBuf,
    runs: usize,
    mode: String,
    sync: String,
    workloads: Vec<String>,
}

fn main() {
    if let Ok(child) = std::env::var("OVERHEAD_CHILD") {
        return run_child(&child);
    }
    let options = options();
    println!(
        "| workload | plain wall s | wall ratio | plain CPU s | CPU ratio | log / page bytes |"
    );
    println!("|---|---|---|---|---|---|");
    for workload in &options.workloads {
        let base = prepare(&options, workload);
        let mut results: [Vec<[f64; 3]>; 2] = [Vec::new(), Vec::new()];
        for _ in 0..options.runs {
            for (vfs, results) in ["unix", "mycelite_writer"].iter().zip(&mut results) {
                results.push(run(&options, workload, vfs, base.as_deref()));
            }
        }
        let [plain, ours] =
            results.map(|runs| [0, 1, 2].map(|i| median(runs.iter().map(|r| r[i]))));
        println!(
            "| {workload} | {:.3} | {:.3} | {:.3} | {:.3} | {:.1} % |",
            plain[0],
            ours[0] / plain[0],
            plain[1],
            ours[1] / plain[1],
            ours[2] * 100.0
        );
        if let Some(base) = base {
            let _ = std::fs::remove_file(base);
        }
    }
}

fn options() -> Options {
    let mut options = Options {
        dir: std::env::temp_dir(),
        runs: 5,
        mode: "wal".into(),
        sync: "normal".into(),
        workloads: Vec::new(),
    };
    let mut arguments = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = arguments.next() {
        match word.as_str() {
            "--dir" => options.dir = arguments.next().unwrap().into(),
            "--runs" => options.runs = arguments.next().unwrap().parse().unwrap(),
            "--mode" => options.mode = arguments.next().unwrap(),
            "--sync" => options.sync = arguments.next().unwrap(),
            _ if WORKLOADS.contains(&word.as_str()) => options.workloads.push(word),
            _ => panic!("unknown argument {word}; workloads are {WORKLOADS:?}"),
        }
    }
    if options.workloads.is_empty() {
        options.workloads = WORKLOADS.map(String::from).to_vec();
    }
    options
}

const TABLE: &str =
    "CREATE TABLE t(a INTEGER PRIMARY KEY, r INTEGER, b TEXT); CREATE INDEX i ON t(r)";

fn fill(rows: u32) -> String {
    format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{rows})
         INSERT INTO t(r, b) SELECT random(), hex(randomblob(95)) FROM n"
    )
}

/// The database with which the updates and deletes begin.
fn prepare(options: &Options, workload: &str) -> Option<PathBuf> {
    if !matches!(workload, "updates" | "delete-vacuum") {
        return None;
    }
    let path = options.dir.join("overhead-base.db");
    let _ = std::fs::remove_file(&path);
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(&format!(
            "PRAGMA synchronous=OFF; {TABLE}; {}",
            fill(300_000)
        ))
        .unwrap();
    Some(path)
}

/// Wall and CPU seconds, and log bytes over page bytes, of one run in a process of its own.
fn run(options: &Options, workload: &str, vfs: &str, base: Option<&Path>) -> [f64; 3] {
    let dir = tempfile::tempdir_in(&options.dir).unwrap();
    let path = dir.path().join("app.db");
    if let Some(base) = base {
        std::fs::copy(base, &path).unwrap();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .env("OVERHEAD_CHILD", workload)
        .env("OVERHEAD_DB", &path)
        .env("OVERHEAD_VFS", vfs)
        .env(
            "OVERHEAD_PRAGMAS",
            format!(
                "PRAGMA journal_mode={}; PRAGMA synchronous={}",
                options.mode, options.sync
            ),
        )
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let figures: Vec<f64> = text
        .split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect();
    [figures[0], figures[1], figures[2]]
}

fn run_child(workload: &str) {
    load();
    let path = PathBuf::from(std::env::var("OVERHEAD_DB").unwrap());
    let uri = format!(
        "file:{}?vfs={}",
        path.display(),
        std::env::var("OVERHEAD_VFS").unwrap()
    );
    let connection = Connection::open_with_flags(uri, OpenFlags::default()).unwrap();
    connection
        .execute_batch(&std::env::var("OVERHEAD_PRAGMAS").unwrap())
        .unwrap();
    // Adoption of what is there is measured elsewhere.
    connection
        .execute_batch("BEGIN IMMEDIATE; ROLLBACK")
        .unwrap();
    if matches!(workload, "inserts" | "bulk") {
        connection.execute_batch(TABLE).unwrap();
    }
    let log_before = log_bytes(&path);
    let (wall, cpu) = (Instant::now(), cpu_seconds());
    work(&connection, workload);
    let pages = written_pages(&connection);
    drop(connection);
    let (wall, cpu) = (wall.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let log = (log_bytes(&path) - log_before) as f64 / (pages.max(1) * 4096) as f64;
    println!("{wall} {cpu} {log}");
}

fn work(connection: &Connection, workload: &str) {
    match workload {
        "inserts" => {
            let mut insert = connection
                .prepare("INSERT INTO t(r, b) VALUES(random(), hex(randomblob(50)))")
                .unwrap();
            for _ in 0..20_000 {
                insert.execute([]).unwrap();
            }
        }
        "updates" => {
            let mut update = connection
                .prepare("UPDATE t SET b=hex(randomblob(95)) WHERE a=1+abs(random()%300000)")
                .unwrap();
            for _ in 0..20_000 {
                update.execute([]).unwrap();
            }
        }
        "bulk" => connection.execute_batch(&fill(300_000)).unwrap(),
        _ => connection
            .execute_batch("DELETE FROM t WHERE a%2; VACUUM")
            .unwrap(),
    }
}

/// Pages that SQLite has written through this connection.
fn written_pages(connection: &Connection) -> u64 {
    let (mut now, mut most) = (0, 0);
    // SAFETY: the handle is open, and the places are ours.
    unsafe {
        rusqlite::ffi::sqlite3_db_status(
            connection.handle(),
            rusqlite::ffi::SQLITE_DBSTATUS_CACHE_WRITE,
            &raw mut now,
            &raw mut most,
            0,
        );
    }
    u64::try_from(now).unwrap()
}

fn log_bytes(db: &Path) -> u64 {
    mycelite::database::directory_bytes(&mycelite::database::log_dir(db))
}

/// User and system time of this process, all threads, in seconds.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
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
