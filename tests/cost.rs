//! What a commit costs, counted and not timed: the reads and writes that the extension adds to SQLite's own, counted by the
//! kernel, and the calls that ask and lock, counted here. A guard against a call or a copy that creeps into the commit path;
//! `benches/README.md` has the times.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)]
#![cfg(target_os = "linux")]

mod common;

use common::{open, open_plain, scratch};
use rusqlite::Connection;
use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// Single-row transactions in a row.
const COMMITS: u32 = 2_000;
/// Pages of the index differ in how often they split: so much may a figure differ.
const TOLERANCE: f64 = 1.05;

/// What a commit may add to SQLite's own.
struct Bound {
    journal_mode: &'static str,
    /// Calls of `read`, `pread` and their kin, and the bytes that they brought.
    reads: f64,
    read_bytes: f64,
    /// Calls of `write`, `pwrite` and their kin, and the bytes that they took.
    writes: f64,
    written_bytes: f64,
    /// Calls that ask, lock, sync, make or cut: those of [`counted`].
    others: f64,
}

/// As measured on x86-64 with pages of 4096 bytes. Lower them when a commit becomes cheaper.
const BOUNDS: [Bound; 2] = [
    Bound {
        journal_mode: "delete",
        reads: 1.0,
        read_bytes: 59.0,
        writes: 4.0,
        written_bytes: 740.0,
        others: 6.02,
    },
    Bound {
        journal_mode: "wal",
        reads: 1.02,
        read_bytes: 58.0,
        writes: 1.01,
        written_bytes: 670.0,
        others: 4.04,
    },
];

static OTHERS: AtomicU32 = AtomicU32::new(0);
/// What was synced, or begun to be, in this order.
static SYNCS: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// The counters are of the process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Notes that `what` is done to a file.
fn note(what: &str, fd: c_int) {
    let file = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
    let name = file.file_name().unwrap().to_string_lossy();
    let name = if name.ends_with(".seg") { "log" } else { &name };
    SYNCS.lock().unwrap().push(format!("{what} {name}"));
}

/// Functions of the C library that this program's own come before: SQLite's calls and ours go this way.
macro_rules! counted {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty $($body:block)?;)*) => {$(
        /// Stands before the C library's.
        ///
        /// # Safety
        /// As the C library's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> $result {
            static BEHIND: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
            type Original = unsafe extern "C" fn($($type),*) -> $result;
            OTHERS.fetch_add(1, Ordering::Relaxed);
            $($body)?
            let mut behind = BEHIND.load(Ordering::Relaxed);
            if behind.is_null() {
                let name = concat!(stringify!($name), "\0");
                // SAFETY: the name ends with a zero byte.
                behind = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr().cast()) };
                BEHIND.store(behind, Ordering::Relaxed);
            }
            // SAFETY: the C library's function of that name has this signature; the caller's arguments are passed on.
            unsafe { std::mem::transmute::<*mut c_void, Original>(behind)($($argument),*) }
        }
    )*};
}

counted! {
    flock(fd: c_int, operation: c_int) -> c_int;
    statx(dir: c_int, path: *const c_char, flags: c_int, mask: u32, found: *mut c_void) -> c_int;
    fstat64(fd: c_int, found: *mut c_void) -> c_int;
    stat64(path: *const c_char, found: *mut c_void) -> c_int;
    lseek64(fd: c_int, offset: i64, whence: c_int) -> i64;
    getpid() -> c_int;
    open64(path: *const c_char, flags: c_int, mode: c_int) -> c_int;
    ftruncate64(fd: c_int, bytes: i64) -> c_int;
    fsync(fd: c_int) -> c_int { note("sync", fd) };
    fdatasync(fd: c_int) -> c_int { note("sync", fd) };
    sync_file_range(fd: c_int, offset: i64, bytes: i64, flags: u32) -> c_int { note("start", fd) };
}

/// The kernel's counters of this process, all threads, and ours.
fn counters() -> HashMap<String, f64> {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once(": "));
    let mut counters: HashMap<String, f64> = pairs
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect();
    let others = OTHERS.load(Ordering::Relaxed);
    counters.insert("others".to_owned(), f64::from(others));
    counters
}

/// What each of the transactions cost in the end.
fn cost_of_inserts(connection: &Connection, journal_mode: &str) -> HashMap<String, f64> {
    connection
        .execute_batch(&format!(
            "PRAGMA journal_mode={journal_mode}; PRAGMA synchronous=NORMAL;
             CREATE TABLE t(a INTEGER PRIMARY KEY, r INTEGER, b TEXT); CREATE INDEX i ON t(r)"
        ))
        .unwrap();
    let mut insert = connection
        .prepare("INSERT INTO t(r, b) VALUES((?1 * 2654435761) % 4294967296, printf('%0100d', ?1))")
        .unwrap();
    let before = counters();
    for n in 0..COMMITS {
        insert.execute([n]).unwrap();
    }
    let after = counters();
    let each = |(name, now): (String, f64)| (now - before[&name]) / f64::from(COMMITS);
    after
        .into_iter()
        .map(|(name, now)| (name.clone(), each((name, now))))
        .collect()
}

#[test]
fn a_commit_costs_no_more_reads_and_writes_than_is_known() {
    let _alone = ALONE.lock().unwrap();
    for bound in &BOUNDS {
        let dir = scratch();
        let (plain, ours) = (dir.path().join("plain.db"), dir.path().join("ours.db"));
        let plain = cost_of_inserts(&open_plain(&plain), bound.journal_mode);
        let ours = cost_of_inserts(&open(&ours, ""), bound.journal_mode);
        for (name, what, most) in [
            ("syscr", "reads", bound.reads),
            ("rchar", "bytes read", bound.read_bytes),
            ("syscw", "writes", bound.writes),
            ("wchar", "bytes written", bound.written_bytes),
            ("others", "other calls", bound.others),
        ] {
            let more = ours[name] - plain[name];
            println!(
                "{}: {what} of a commit: {:.2} plain, {more:.2} more with us, {most} allowed",
                bound.journal_mode, plain[name]
            );
            assert!(
                more <= most * TOLERANCE,
                "journal_mode={}: a commit takes {more:.2} {what} beside SQLite's own {:.2}, and {most} were known",
                bound.journal_mode,
                plain[name]
            );
        }
    }
}

/// The disk has the log's bytes already when SQLite has waited for the WAL's: the log's own sync comes after that, and before
/// the database file is written to.
#[test]
fn at_a_checkpoint_the_log_and_the_wal_go_to_the_disk_together() {
    let _alone = ALONE.lock().unwrap();
    let dir = scratch();
    let connection = open(&dir.path().join("app.db"), "");
    connection
        .execute_batch(
            "PRAGMA journal_mode=wal; PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(a);
             PRAGMA wal_checkpoint; INSERT INTO t VALUES(1)",
        )
        .unwrap();
    SYNCS.lock().unwrap().clear();
    connection.execute_batch("PRAGMA wal_checkpoint").unwrap();
    assert_eq!(
        *SYNCS.lock().unwrap(),
        ["start log", "sync app.db-wal", "sync log", "sync app.db"]
    );
}
