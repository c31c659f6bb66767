//! Files longer than their image, files written through a mapping, and a file beyond the lock-byte page.

use crate::bench::{Bench, MODES, fill, number};
use crate::common::{log_dir, open, open_plain, settle};
use mycelite_journal::{FileStorage, Image, OpenMode, Reader, Storage};
use rusqlite::Connection;
use rusqlite::ffi;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// `sqlite3_file_control` with a number.
fn file_control<N>(connection: &Connection, operation: i32, mut number: N) -> i32 {
    // SAFETY: the connection is open, and these operations take a pointer to a number of the type that is passed.
    unsafe {
        ffi::sqlite3_file_control(
            connection.handle(),
            c"main".as_ptr(),
            operation,
            (&raw mut number).cast(),
        )
    }
}

#[test]
fn chunks_and_size_hints() {
    for mode in MODES {
        let mut bench = Bench::with_table(&format!(
            "PRAGMA page_size=1024; PRAGMA journal_mode={mode}"
        ));
        let chunk = 256 << 10;
        assert_eq!(
            file_control(&bench.connection, ffi::SQLITE_FCNTL_CHUNK_SIZE, chunk),
            0
        );
        let hint: i64 = 900_000;
        assert_eq!(
            file_control(&bench.connection, ffi::SQLITE_FCNTL_SIZE_HINT, hint),
            0
        );
        bench.oracle.check("grown by a hint");
        assert!(std::fs::metadata(&bench.path).unwrap().len() >= 900_000);
        for _ in 0..3 {
            bench.run(&fill(600, 900), 1);
            if mode != "OFF" {
                bench.run_rolled_back(&format!("BEGIN; {}; ROLLBACK", fill(900, 900)));
            }
            bench.run("DELETE FROM t WHERE a%3", 1);
            bench.run("VACUUM", 1);
            if mode == "WAL" {
                bench.run("PRAGMA wal_checkpoint(TRUNCATE)", 0);
            }
            let bytes = std::fs::metadata(&bench.path).unwrap().len();
            assert!(
                bytes.is_multiple_of(chunk as u64) || mode == "WAL",
                "{mode}: {bytes}"
            );
        }
        bench.reopen("");
        bench.run(&fill(10, 900), 1);
        bench.nothing_was_compared();
    }
}

/// An image that fills less than the file, adopted; in WAL mode with a commit whose frame counts what the file holds.
#[test]
fn a_file_longer_than_its_image_is_adopted() {
    for mode in ["DELETE", "WAL"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let plain = open_plain(&path);
        assert_eq!(
            file_control(&plain, ffi::SQLITE_FCNTL_CHUNK_SIZE, 1 << 20),
            0
        );
        plain
            .execute_batch(&format!(
                "PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b); {}; PRAGMA wal_checkpoint",
                fill(50, 500)
            ))
            .unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() == 1 << 20);
        plain.execute_batch(&fill(50, 500)).unwrap();
        let mut bench = Bench::open(dir, &path, "", "");
        bench.run("INSERT INTO t(b) VALUES(1)", 2);
        assert!(std::fs::metadata(&path).unwrap().len() == 1 << 20);
        bench.run(&fill(5000, 500), 1);
    }
}

/// A header whose page count was damaged. Who asks SQLite to go on all the same gets what the file holds, and so does the log.
#[test]
fn a_page_count_that_the_file_has_not() {
    for mode in MODES {
        let mut bench = Bench::with_table(&format!("PRAGMA journal_mode={mode}"));
        bench.run(&fill(50, 900), 1);
        bench.connection = Connection::open_in_memory().unwrap();
        let file = std::fs::File::options()
            .write(true)
            .open(&bench.path)
            .unwrap();
        let damaged = 1_u32 << 18;
        file.write_all_at(&damaged.to_be_bytes(), 28).unwrap();
        drop(file);
        bench.reopen("PRAGMA writable_schema=ON");
        bench.run("INSERT INTO t(b) VALUES('on')", 2);
        assert!(bench.newest(2).iter().all(|new| new.page_count < damaged));
        bench.run(&fill(50, 900), 1);
    }
}

#[test]
fn through_a_mapping() {
    for mode in MODES {
        let mut bench = Bench::with_table(&format!(
            "PRAGMA page_size=1024; PRAGMA journal_mode={mode}; PRAGMA mmap_size=100000000; PRAGMA cache_size=10"
        ));
        if mode != "WAL" {
            assert_eq!(bench.number("PRAGMA mmap_size"), 100_000_000);
        }
        for _ in 0..3 {
            bench.run(&fill(400, 700), 1);
            bench.run("UPDATE t SET b=randomblob(650) WHERE a%3=0", 1);
            if mode != "OFF" {
                bench.run_rolled_back("BEGIN; DELETE FROM t WHERE a%5; ROLLBACK");
            }
            bench.run("DELETE FROM t WHERE a%2", 1);
            bench.run("VACUUM", 1);
            bench.run("SELECT sum(length(b)) FROM t", 0);
        }
        bench.nothing_was_compared();
    }
}

/// SQLite reads through what `xFetch` gives, and that is the file below.
#[test]
fn a_mapping_is_the_file() {
    let mut bench = Bench::with_table("PRAGMA mmap_size=1000000");
    bench.run(&fill(50, 900), 1);
    let mut file: *mut ffi::sqlite3_file = std::ptr::null_mut();
    let mut memory = std::ptr::null_mut();
    let mut page = vec![0; 4096];
    // SAFETY: the connection is open; the control stores a pointer to its file, whose methods get arguments as SQLite passes
    // them, and what was fetched is copied before it is given back.
    unsafe {
        let (handle, which) = (bench.connection.handle(), ffi::SQLITE_FCNTL_FILE_POINTER);
        ffi::sqlite3_file_control(handle, std::ptr::null(), which, (&raw mut file).cast());
        let methods = &*(*file).pMethods;
        assert_eq!(
            methods.xFetch.unwrap()(file, 4096, 4096, &raw mut memory),
            0
        );
        assert!(!memory.is_null());
        std::ptr::copy_nonoverlapping(memory.cast(), page.as_mut_ptr(), page.len());
        assert_eq!(methods.xUnfetch.unwrap()(file, 4096, memory), 0);
    }
    assert!(page == std::fs::read(&bench.path).unwrap()[4096..8192]);
}

const GIB: u64 = 1 << 30;
const PAGE: u64 = 65536;

/// A database whose next new page would be the one with SQLite's lock bytes: grown by hand, sparse, its pages in no list.
fn just_below_the_lock_bytes(path: &Path, mode: &str) {
    let plain = open_plain(path);
    plain
        .execute_batch("PRAGMA page_size=65536; CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t(b) VALUES(1)")
        .unwrap();
    drop(plain);
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_len(GIB).unwrap();
    file.write_all_at(&u32::try_from(GIB / PAGE).unwrap().to_be_bytes(), 28)
        .unwrap();
    drop(file);
    open_plain(path)
        .execute_batch(&format!("PRAGMA journal_mode={mode}"))
        .unwrap();
}

/// Replays the log of `db` into a file beside it, page by page equal to what SQLite has in its own.
fn replay_and_compare(db: &Path, replayed: &Path) {
    let dir = replayed.parent().unwrap();
    let name = replayed.file_name().unwrap().to_str().unwrap();
    let file = FileStorage::new(dir).open(name, OpenMode::Create).unwrap();
    let mut image = Image::new(file);
    let mut reader = Reader::open(Arc::new(FileStorage::new(log_dir(db)))).unwrap();
    while let Some(record) = reader.next().unwrap() {
        image.apply(&record).unwrap();
    }
    let (left, right) = (
        std::fs::File::open(db).unwrap(),
        std::fs::File::open(replayed).unwrap(),
    );
    let bytes = left.metadata().unwrap().len();
    assert_eq!(bytes, right.metadata().unwrap().len());
    let (mut a, mut b) = (vec![0; 4 << 20], vec![0; 4 << 20]);
    for offset in (0..bytes).step_by(4 << 20) {
        let part = usize::try_from((bytes - offset).min(4 << 20)).unwrap();
        left.read_exact_at(&mut a[..part], offset).unwrap();
        right.read_exact_at(&mut b[..part], offset).unwrap();
        assert!(a[..part] == b[..part], "the 4 MiB at {offset}");
    }
}

#[test]
fn beyond_one_gibibyte() {
    for mode in ["DELETE", "WAL"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        just_below_the_lock_bytes(&path, mode);
        let connection = open(&path, "");
        // The first new page steps over the lock bytes.
        for _ in 0..3 {
            connection
                .execute_batch("INSERT INTO t(b) VALUES(randomblob(300000))")
                .unwrap();
            settle(&path);
        }
        assert!(number(&connection, "PRAGMA page_count") > (GIB / PAGE + 10) as i64);
        connection
            .execute_batch("BEGIN; DELETE FROM t; INSERT INTO t(b) VALUES(randomblob(900000)); ROLLBACK; DELETE FROM t WHERE a=3")
            .unwrap();
        connection
            .execute_batch(
                "INSERT INTO t(b) VALUES(randomblob(100000)); PRAGMA wal_checkpoint(TRUNCATE)",
            )
            .unwrap();
        let txid = number(&connection, "SELECT CAST(mycelite_txid() AS INTEGER)");
        // In WAL mode it is adopted in the background, with the first commit or before it.
        assert!(txid == 6 || mode == "WAL" && txid == 5, "{mode}: {txid}");
        drop(connection);
        replay_and_compare(&path, &dir.path().join("replayed"));
        // And back below it: the record accounts for every page that is dropped.
        let connection = open(&path, "");
        connection
            .execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)")
            .unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() < 1 << 20);
        assert_eq!(
            number(&connection, "SELECT CAST(mycelite_txid() AS INTEGER)"),
            txid + 1
        );
        drop(connection);
        replay_and_compare(&path, &dir.path().join("replayed"));
    }
}
