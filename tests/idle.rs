//! What databases cost that are open and idle: threads, memory and processor time of the application and of the server, with a
//! replica for each database. `IDLE_DATABASES=2000 IDLE_SECONDS=10` is the large run; 300 and 2 in an ordinary one. The large run
//! needs `ulimit -n` of thirteen times as many.

#![allow(clippy::unwrap_used)]

mod clikit;
mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use clikit::Serve;
use rusqlite::Connection;

/// Most memory of an idle database beyond what SQLite itself has for it, in KiB.
const KIB_MAX: f64 = 192.0;
/// Memory of a database that a server keeps.
const SERVED_KIB_MAX: f64 = 64.0;
/// Connections and files are given back after some seconds.
const SETTLED_AFTER: Duration = Duration::from_secs(40);

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |value| value.parse().unwrap())
}

/// The threads of a process: by number, the name and for how long it has run so far, in nanoseconds.
fn threads(pid: u32) -> BTreeMap<u32, (String, u64)> {
    let mut threads = BTreeMap::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let path = entry.unwrap().path();
        let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap_or_default();
        let run = read("schedstat");
        let Some(run) = run.split(' ').next().and_then(|run| run.parse().ok()) else {
            continue;
        };
        let number = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        threads.insert(number, (read("comm").trim().to_owned(), run));
    }
    threads
}

fn ours() -> BTreeMap<u32, (String, u64)> {
    let mut threads = threads(std::process::id());
    threads.retain(|_, (name, _)| name.starts_with("mycelite"));
    threads
}

/// Waits until no thread has run for so long: a thread that does not run makes no system call. The threads, then.
#[track_caller]
fn at_rest(seconds: u64, threads: impl Fn() -> BTreeMap<u32, (String, u64)>) -> Vec<String> {
    let deadline = Instant::now() + SETTLED_AFTER + Duration::from_secs(seconds);
    let mut before = threads();
    loop {
        std::thread::sleep(Duration::from_secs(seconds));
        let now = threads();
        if now == before {
            return now.into_values().map(|(name, _)| name).collect();
        }
        assert!(Instant::now() < deadline, "{before:?}, then {now:?}");
        before = now;
    }
}

fn kib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon"));
    line.unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

fn fill(db: &Connection) {
    db.execute_batch(
        "PRAGMA journal_mode = WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, b); INSERT INTO t(b) VALUES (randomblob(2000));",
    )
    .unwrap();
}

/// Databases of this process, each with a replica of its own.
fn replicated(dir: &Path, numbers: std::ops::Range<u64>, server: &Serve) -> Vec<Connection> {
    let open = |number: u64| {
        let name = format!("db{number}");
        let path = dir.join(&name).with_extension("db");
        let db = common::open(&path, &format!("&replica={}", server.url(&name)));
        fill(&db);
        db
    };
    numbers.map(open).collect()
}

#[track_caller]
fn all_caught_up(dbs: &[Connection]) {
    let deadline = Instant::now() + SETTLED_AFTER * 3;
    let sql = "SELECT count(*) FROM mycelite_replicas WHERE state = 'caught-up' AND lag_txids = 0";
    for db in dbs {
        while db.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap() == 0 {
            assert!(
                Instant::now() < deadline,
                "not replicated: {:?}",
                db.query_row("SELECT mycelite_status()", [], |row| row
                    .get::<_, String>(0))
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn idle_databases_cost_nothing() {
    let (count, seconds) = (setting("IDLE_DATABASES", 300), setting("IDLE_SECONDS", 2));
    let me = std::process::id();
    let dir = common::scratch();
    let server = Serve::start(&dir.path().join("server"), &[]);
    let pid = server.child.id();
    let nothing = kib(me);
    let plain: Vec<Connection> = (0..count)
        .map(|number| {
            let db = common::open_plain(&dir.path().join(format!("plain{number}.db")));
            fill(&db);
            db
        })
        .collect();
    let plain_each = (kib(me) - nothing) / count as f64;
    // What the first of all takes is not counted for each.
    let first = replicated(dir.path(), count..count + 1, &server);
    all_caught_up(&first);
    drop(first);
    assert_eq!(ours().len(), 0, "a thread without an open database");
    let (before, server_before, files) = (kib(me), kib(pid), open_files(me));
    let begin = Instant::now();
    let dbs = replicated(dir.path(), 0..count, &server);
    all_caught_up(&dbs);
    let made = begin.elapsed();
    let names = at_rest(seconds, ours);
    let each = (kib(me) - before) / count as f64 - plain_each;
    let server_names = at_rest(seconds, || threads(pid));
    let served_each = (kib(pid) - server_before) / count as f64;
    println!(
        "{count} idle databases, each with a replica, made in {made:.1?}: no thread ran for {seconds} s\n\
         application: {} threads {names:?}, {each:.1} KiB beyond SQLite's {plain_each:.1} and {:.1} files each\n\
         server: {} threads, {served_each:.1} KiB each, {} files open",
        names.len(),
        (open_files(me) - files) as f64 / count as f64,
        server_names.len(),
        open_files(pid)
    );
    assert_eq!(names, ["mycelite-ship"]);
    assert!(server_names.len() < 64, "{server_names:?}");
    assert!(each < KIB_MAX, "{each:.1} KiB");
    assert!(served_each < SERVED_KIB_MAX, "{served_each:.1} KiB");
    // It is not asleep for good.
    let last = dbs.last().unwrap();
    last.execute_batch("INSERT INTO t(b) VALUES (1)").unwrap();
    all_caught_up(&dbs[dbs.len() - 1..]);
    drop(dbs);
    assert_eq!(ours().len(), 0, "a thread after the last close");
    drop(plain);
    maintenance_leaves_no_thread(dir.path());
}

/// A database whose log has grown by segments: the thread that looks after it sleeps when it is done, and ends with the database.
fn maintenance_leaves_no_thread(dir: &Path) {
    let path = dir.join("grown.db");
    let db = common::open(&path, "&segment_bytes_max=1048576");
    fill(&db);
    let grow = "WITH RECURSIVE c(x) AS (VALUES(0) UNION ALL SELECT x+1 FROM c WHERE x<999)
                INSERT INTO t(b) SELECT randomblob(1000) FROM c";
    for _ in 0..4 {
        db.execute_batch(grow).unwrap();
    }
    let raw = || {
        let names = std::fs::read_dir(common::log_dir(&path)).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".seg")).count()
    };
    clikit::wait_for("a thread for maintenance", SETTLED_AFTER, || {
        ours().len() == 1
    });
    clikit::wait_for("sealed segments", SETTLED_AFTER, || raw() == 1);
    assert_eq!(at_rest(1, ours), ["mycelite-mainta"]);
    drop(db);
    assert_eq!(ours().len(), 0, "a thread after the last close");
}
