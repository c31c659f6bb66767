//! Servers and writers that are killed with SIGKILL in the middle of a load, and go on.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::clikit::Serve;
use crate::kit::{
    ask, assert_identical, assert_one_record_each, figure, finish, full, is_transaction,
    kill_and_restart, library, load_wait, own_address, packages, python, records, uri,
};
use crate::reader::{PACKAGES, Readers};

/// How often a server is killed during one load.
const SERVER_KILLS: usize = 10;

/// A load that tells of each commit.
struct Load {
    child: Child,
    commits: Arc<AtomicUsize>,
    summary: std::thread::JoinHandle<String>,
}

impl Load {
    fn start(db: &Path, replica: &str, arguments: &[&str]) -> Load {
        let mut child = packages(db, replica, arguments)
            .arg("--echo")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let commits = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&commits);
        let summary = std::thread::spawn(move || {
            let mut last = String::new();
            for line in lines.map_while(Result::ok) {
                count.fetch_add(usize::from(line.starts_with("commit ")), Ordering::SeqCst);
                last = line;
            }
            last
        });
        Load {
            child,
            commits,
            summary,
        }
    }

    fn commits(&self) -> usize {
        self.commits.load(Ordering::SeqCst)
    }

    /// Waits until `more` commits were made, or until the load is over: then false.
    fn advance(&mut self, more: usize) -> bool {
        let wanted = self.commits() + more;
        let deadline = Instant::now() + load_wait();
        while self.commits() < wanted {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(Instant::now() < deadline, "the load does not advance");
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Waits for its end; the summary.
    fn finish(self) -> String {
        let ran = finish(self.child, load_wait());
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
        self.summary.join().unwrap()
    }

    /// Kills it; how many commits it told of.
    fn kill(mut self) -> usize {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.summary.join().unwrap();
        self.commits.load(Ordering::SeqCst)
    }
}

fn server_killed(mode: &str) {
    let home = tempfile::tempdir().unwrap();
    let mut server = Serve::start_at(&home.path().join("replicas"), &own_address(), &[]);
    let db = home.path().join("app.db");
    let replica = server.db("app");
    let start = |limit: usize| {
        let limit = limit.to_string();
        let every = if full() { "100" } else { "5" };
        let arguments = [
            "--journal-mode",
            mode,
            "--limit",
            &limit,
            "--commit-every",
            every,
        ];
        Load::start(&db, &server.url("app"), &arguments)
    };
    // Should the load be over before the last kill, it goes on with more packages.
    let lot = if full() { 30_000 } else { 300 };
    let mut limit = lot;
    let mut load = start(limit);
    let readers = Readers::start(&replica, PACKAGES, "package_text");
    let (mut commits, mut loaded, mut kills) = (0, 0, 0);
    let mut count = |summary: String| {
        commits += figure(&summary, "commits");
        loaded += figure(&summary, "packages");
    };
    let address = server.url("app");
    while kills < SERVER_KILLS {
        if load.advance(2 + kills % 4) {
            kill_and_restart(&mut server);
            kills += 1;
            continue;
        }
        limit += lot;
        let next = {
            let limit = limit.to_string();
            let every = if full() { "100" } else { "5" };
            let arguments = [
                "--journal-mode",
                mode,
                "--limit",
                &limit,
                "--commit-every",
                every,
            ];
            Load::start(&db, &address, &arguments)
        };
        count(std::mem::replace(&mut load, next).finish());
    }
    count(load.finish());
    assert_identical(&db, &[(&server, "app")]);
    // No writer died, so the count is exact.
    assert_one_record_each(&db, commits);
    let seen = readers.stop(loaded);
    println!(
        "{mode}: {kills} kills of the server, {commits} commits, {loaded} packages; readers: {seen:?}"
    );
}

#[test]
fn the_server_killed_ten_times_in_delete_mode() {
    server_killed("delete");
}

#[test]
fn the_server_killed_ten_times_in_wal_mode() {
    server_killed("wal");
}

/// Changes many pages, more than its cache holds, says so, and waits to be killed.
const IN_THE_MIDDLE: &str = "
import sqlite3, sys
library, uri = sys.argv[1:]
door = sqlite3.connect(':memory:')
door.enable_load_extension(True)
door.load_extension(library)
db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=60)
db.execute('PRAGMA cache_size = 10')
# So that whatever is in the WAL afterwards is not committed.
db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
db.execute('BEGIN IMMEDIATE')
db.execute('DELETE FROM description WHERE id % 3 = 0')
db.execute('UPDATE version SET source = hex(randomblob(300))')
db.execute('INSERT INTO section(name) SELECT hex(randomblob(500)) FROM version')
print('in the middle', flush=True)
sys.stdin.read()
";

/// Kills a writer whose transaction is half in the files.
fn kill_in_the_middle(db: &Path, replica: &str, mode: &str) {
    let mut child = python()
        .args(["-c", IN_THE_MIDDLE])
        .arg(library())
        .arg(uri(db, replica))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "in the middle\n");
    child.kill().unwrap();
    child.wait().unwrap();
    let left = if mode == "wal" { "-wal" } else { "-journal" };
    assert!(
        bytes(db, left) > 4096,
        "nothing of the transaction was written to {left}"
    );
}

fn bytes(db: &Path, suffix: &str) -> u64 {
    std::fs::metadata(format!("{}{suffix}", db.display())).map_or(0, |meta| meta.len())
}

fn writer_killed(mode: &str) {
    let home = tempfile::tempdir().unwrap();
    let mut server = Serve::start_at(&home.path().join("replicas"), &own_address(), &[]);
    let db = home.path().join("app.db");
    let replica = server.url("app");
    let every = if full() { "100" } else { "5" };
    let arguments = [
        "--journal-mode",
        mode,
        "--limit",
        &crate::kit::limit(400),
        "--commit-every",
        every,
    ];
    let mut load = Load::start(&db, &replica, &arguments);
    let readers = Readers::start(&server.db("app"), PACKAGES, "package_text");
    let (mut reported, mut kills) = (0, 0);
    for round in 0..4 {
        assert!(
            load.advance(4 + round),
            "the load was over before the writer was killed"
        );
        // At no particular moment, which is nearly always in a transaction.
        std::thread::sleep(Duration::from_millis(7 * round as u64));
        reported += load.kill();
        kills += 1;
        if round % 2 == 1 {
            kill_in_the_middle(&db, &replica, mode);
        }
        if round == 3 {
            kill_and_restart(&mut server);
        }
        load = Load::start(&db, &replica, &arguments);
    }
    let summary = load.finish();
    reported += figure(&summary, "commits");
    assert_identical(&db, &[(&server, "app")]);
    // A killed load may have made one commit more than it could tell of. What was in the middle is no commit; but where
    // its pages were spilled, SQLite's rollback may leave other bytes in free pages, which are recorded as a re-base.
    let records = records(&db);
    let transactions = records
        .iter()
        .filter(|record| is_transaction(record))
        .count();
    assert!(
        (reported..=reported + kills).contains(&transactions),
        "{mode}: {reported} commits were reported, {transactions} transactions are recorded"
    );
    let last: usize = ask(&db, "SELECT count(*) FROM version").parse().unwrap();
    let seen = readers.stop(last);
    println!(
        "{mode}: {kills} kills of the writer and 2 in the middle of a transaction, {reported} commits reported, {} records, \
         {last} packages; readers: {seen:?}",
        records.len()
    );
}

#[test]
fn the_writer_killed_in_delete_mode() {
    writer_killed("delete");
}

#[test]
fn the_writer_killed_in_wal_mode() {
    writer_killed("wal");
}

/// Server and writer die together, with nothing sent since: the log on the writer's disk is all that there is.
#[test]
fn both_killed_at_once() {
    let home = tempfile::tempdir().unwrap();
    let mut server = Serve::start_at(&home.path().join("replicas"), &own_address(), &[]);
    let db = home.path().join("app.db");
    let replica = server.url("app");
    let arguments = [
        "--journal-mode",
        "delete",
        "--limit",
        "200",
        "--commit-every",
        "4",
    ];
    let mut load = Load::start(&db, &replica, &arguments);
    assert!(load.advance(8));
    server.kill();
    assert!(load.advance(6), "commits go on without a server");
    let reported = load.kill();
    let (data, address) = (server.data.clone(), server.address.clone());
    server = Serve::start_at(&data, &address, &[]);
    // What the writer's death left is recorded and sent by whoever comes next; here, by `mycelite push`.
    assert_identical(&db, &[(&server, "app")]);
    let transactions = records(&db)
        .iter()
        .filter(|record| is_transaction(record))
        .count();
    assert!(
        (reported..=reported + 1).contains(&transactions),
        "{reported} reported, {transactions} recorded"
    );
}
