//! Where the clock of the file system stands still, or is coarser than the time between two writes, a file's times do not
//! tell that somebody has written to it. Then these must: the change counter, the mark in the lock file, the doubt after
//! a hot journal, and the boot id in the stamp of a clean close.

use crate::check::{Follower, check_logs, followers};
use crate::common::{child_argument, killed_after, open, open_plain, spawn_child};
use crate::syscalls;
use mycelite_journal::FLAG_REBASE;
use rusqlite::Connection;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const JOURNALS: [&str; 3] = ["DELETE", "TRUNCATE", "PERSIST"];

/// A transaction that fills free pages, which no journal restores, spills, and ends with its process.
const HALF: &str = "PRAGMA cache_size=5; BEGIN;
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<100)
    INSERT INTO t(b) SELECT printf('%.*c', 700, char(97 + i%26)) FROM n;";

/// A database with free pages in a directory whose clock stands still, and who has it open.
struct Standing {
    scratch: tempfile::TempDir,
    path: PathBuf,
    ours: Connection,
    followers: Vec<Follower>,
}

impl Standing {
    fn new(mode: &str) -> Standing {
        crate::vfs::load();
        let scratch = crate::common::scratch();
        let path = scratch.path().join("run").join("app.db");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        stand_still(&path);
        let ours = open(&path, "");
        ours.execute_batch(&format!(
            "PRAGMA page_size=1024; PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<100)
             INSERT INTO t(b) SELECT randomblob(600) FROM n; DELETE FROM t WHERE a>20"
        ))
        .unwrap();
        let followers = followers(path.parent().unwrap());
        let mut standing = Standing {
            scratch,
            path,
            ours,
            followers,
        };
        standing.followers[0].advance().unwrap();
        standing
    }

    /// We write; the log is the image, after a comparison that has found something.
    fn write_and_compare(mut self, what: &str) {
        self.ours
            .execute_batch("INSERT INTO t(b) VALUES('ours')")
            .unwrap();
        let dir = self.path.parent().unwrap();
        check_logs(dir, self.scratch.path(), &mut self.followers, [true, false])
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        syscalls::unwatch();
        let [.., compared, last] = &self.followers[0].records[..] else {
            panic!("{what}: two records at least");
        };
        assert_eq!([compared.flags, last.flags], [FLAG_REBASE, 0], "{what}");
    }
}

fn stand_still(path: &Path) {
    syscalls::watch(path.parent().unwrap());
    syscalls::freeze();
}

/// A process without the extension leaves a hot journal, and our next statement rolls it back.
#[test]
fn what_a_hot_journal_does_not_restore_is_doubted() {
    for mode in JOURNALS {
        let standing = Standing::new(mode);
        killed_after(&standing.path, HALF);
        standing.write_and_compare(mode);
    }
}

/// A process without the extension commits while we have the database open.
#[test]
fn a_strangers_commit_is_told_by_the_change_counter() {
    for mode in JOURNALS {
        let standing = Standing::new(mode);
        open_plain(&standing.path)
            .execute_batch("INSERT INTO t(b) VALUES('theirs')")
            .unwrap();
        standing.write_and_compare(mode);
    }
}

/// Writes, and is killed in the middle of a transaction.
#[test]
fn child_writes_in_vain() {
    let Some(path) = child_argument("STANDING_DB") else {
        return;
    };
    crate::vfs::load();
    stand_still(Path::new(&path));
    let connection = open(Path::new(&path), "");
    connection
        .execute_batch("INSERT INTO t(b) VALUES('child')")
        .unwrap();
    connection.execute_batch(HALF).unwrap();
    println!("\nreached");
    std::thread::sleep(std::time::Duration::from_secs(60));
}

/// Another process of ours dies in mid-transaction, and a reader without the extension rolls its journal back, before we
/// write again.
#[test]
fn the_mark_of_a_dead_writer_is_seen() {
    for mode in JOURNALS {
        let standing = Standing::new(mode);
        let path = standing.path.to_str().unwrap();
        let mut child = spawn_child("standing::child_writes_in_vain", &[("STANDING_DB", path)]);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "reached"));
        child.kill().unwrap();
        child.wait().unwrap();
        let rows: i64 = open_plain(&standing.path)
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap();
        assert_eq!(rows, 21);
        standing.write_and_compare(mode);
    }
}

/// The system is booted anew: of what a clean close left, the power may have taken a page, and kept the stamp.
#[test]
fn the_stamp_of_another_boot_is_not_believed() {
    for mode in ["DELETE", "WAL"] {
        let mut standing = Standing::new(mode);
        let boot = |number: u32| {
            let file = standing.scratch.path().join(format!("boot-{number}"));
            std::fs::write(&file, format!("boot {number}")).unwrap();
            syscalls::set_boot_id(&file);
        };
        boot(1);
        standing.ours = Connection::open_in_memory().unwrap();
        // The first write of this boot; and the clean close.
        open(&standing.path, "")
            .execute_batch("UPDATE t SET b='a text' WHERE a=1")
            .unwrap();
        standing.followers[0].advance().unwrap();
        let log = mycelite::database::log_dir(&standing.path);
        assert!(log.join("stamp").exists(), "{mode}");
        let file = File::options().write(true).open(&standing.path).unwrap();
        let end = file.metadata().unwrap().len();
        file.write_all_at(&[0; 100], end - 500).unwrap();
        drop(file);
        boot(2);
        standing.ours = open(&standing.path, "");
        standing.write_and_compare(mode);
    }
}
