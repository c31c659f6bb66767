//! Acceptance under load: a primary at a steady pace, and replicas that are cascaded, cut off and killed meanwhile. Small in an
//! ordinary run; the real thing, in a release build:
//!
//! ```sh
//! LOAD_SECONDS=300 cargo test --release --test load -- --nocapture --test-threads=1 under_load
//! LOAD_COMMITS=100000 cargo test --release --test load -- --nocapture --test-threads=1 away
//! LOAD_MEBIBYTES=1024 cargo test --release --test load -- --nocapture --test-threads=1 large
//! ```

#![allow(clippy::unwrap_used)]

#[path = "../clikit/mod.rs"]
mod clikit;
#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code)]
#[path = "../follow/kit.rs"]
mod kit;
#[path = "../netkit/mod.rs"]
mod netkit;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clikit::{Serve, wait_for};
use kit::{Follow, LONG, identical, once};
use netkit::gate::Gate;
use rusqlite::Connection;

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |value| value.parse().unwrap())
}

/// A database whose every transaction changes three places that must fit each other.
struct Primary {
    db: PathBuf,
    connection: Option<Connection>,
    commits: u64,
}

impl Primary {
    fn new(db: PathBuf, replica: &str) -> Primary {
        common::load();
        let connection = common::open(&db, &format!("&replica={replica}"));
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
                 CREATE TABLE t(id INTEGER PRIMARY KEY, us INTEGER, filler);
                 CREATE TABLE total(n INTEGER); INSERT INTO total VALUES (0);
                 CREATE TABLE ring(id INTEGER PRIMARY KEY, n INTEGER, filler);
                 WITH RECURSIVE c(x) AS (VALUES(0) UNION ALL SELECT x+1 FROM c WHERE x<999)
                 INSERT INTO ring SELECT x, 0, hex(randomblob(100)) FROM c;",
            )
            .unwrap();
        Primary {
            db,
            connection: Some(connection),
            commits: 0,
        }
    }

    fn commit(&mut self) {
        self.commits += 1;
        let connection = self.connection.as_ref().unwrap();
        let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
            connection
                .prepare_cached(sql)
                .unwrap()
                .execute(values)
                .unwrap()
        };
        run("BEGIN", &[]);
        run(
            "INSERT INTO t VALUES (?1, ?2, hex(randomblob(20)))",
            &[&(self.commits as i64), &(netkit::now_us() as i64)],
        );
        run("UPDATE total SET n = ?1", &[&(self.commits as i64)]);
        run(
            "UPDATE ring SET n = ?1, filler = hex(randomblob(100)) WHERE id = ?1 % 1000",
            &[&(self.commits as i64)],
        );
        run("COMMIT", &[]);
    }

    fn close(&mut self) -> Vec<u8> {
        if let Some(connection) = self.connection.take() {
            connection
                .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
                .unwrap();
            connection.close().map_err(|(_, error)| error).unwrap();
        }
        std::fs::read(&self.db).unwrap()
    }
}

/// A plain reader of a replica that looks all the time.
struct Watch {
    name: &'static str,
    thread: std::thread::JoinHandle<Seen>,
}

#[derive(Default)]
struct Seen {
    looks: u64,
    checks: u64,
    /// Age of the newest row when it was first seen, ms.
    lags: Vec<f64>,
}

impl Watch {
    fn start(name: &'static str, db: &Path, stop: &Arc<AtomicBool>) -> Watch {
        let (db, stop) = (db.to_path_buf(), Arc::clone(stop));
        let thread = std::thread::spawn(move || watch(name, &db, &stop));
        Watch { name, thread }
    }

    fn end(self) {
        let seen = self.thread.join().unwrap();
        let mut lags = seen.lags;
        lags.sort_by(f64::total_cmp);
        let at = |part: usize| {
            lags.get(lags.len().saturating_sub(1) * part / 100)
                .copied()
                .unwrap_or(0.0)
        };
        println!(
            "{:<9} lag p50 {:>7.1} ms, p90 {:>7.1} ms, p99 {:>8.1} ms, max {:>8.1} ms; {} looks, {} integrity checks, none torn",
            self.name,
            at(50),
            at(90),
            at(99),
            at(100),
            seen.looks,
            seen.checks
        );
        assert!(
            seen.looks > 0 && seen.checks > 0,
            "{}: nobody looked",
            self.name
        );
    }
}

fn watch(name: &str, db: &Path, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut newest = 0_i64;
    let mut connection = None;
    let mut check_at = Instant::now();
    while !stop.load(Ordering::Relaxed) || seen.checks == 0 {
        std::thread::sleep(Duration::from_millis(5));
        if std::fs::metadata(db).map_or(0, |file| file.len()) == 0 {
            continue;
        }
        let open = connection.get_or_insert_with(|| common::open_plain(db));
        let row = open
            .prepare_cached(
                "SELECT (SELECT n FROM total), (SELECT max(id) FROM t), (SELECT max(n) FROM ring),
                 (SELECT us FROM t ORDER BY id DESC LIMIT 1)",
            )
            .and_then(|mut select| {
                select.query_row([], |row| {
                    Ok((
                        row.get::<_, i64>(0)?,
                        row.get::<_, Option<i64>>(1)?.unwrap_or(0),
                        row.get::<_, i64>(2)?,
                        row.get::<_, Option<i64>>(3)?.unwrap_or(0),
                    ))
                })
            });
        let (total, last, ring, us) = match row {
            Ok(row) => row,
            // Its first transactions made the tables one by one.
            Err(error) if newest == 0 && error.to_string().contains("no ") => continue,
            Err(error) => panic!("{name}: {error}"),
        };
        assert!(
            total == last && total == ring,
            "{name}: torn: {total} {last} {ring}"
        );
        assert!(
            total >= newest,
            "{name}: went back from {newest} to {total}"
        );
        seen.looks += 1;
        if total > newest {
            newest = total;
            seen.lags.push((netkit::now_us() as f64 - us as f64) / 1e3);
        }
        if check_at <= Instant::now() {
            let check: String = open
                .query_row("PRAGMA integrity_check", [], |row| row.get(0))
                .unwrap();
            assert_eq!(check, "ok", "{name}");
            seen.checks += 1;
            check_at = Instant::now() + Duration::from_secs(10);
            if seen.checks.is_multiple_of(3) {
                connection = None;
            }
        }
    }
    seen
}

/// Memory of a process that is its own, in KiB.
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("RssAnon"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0)
}

#[test]
fn all_replicas_are_identical_after_a_time_under_load() {
    let seconds = setting("LOAD_SECONDS", 8);
    let rate = setting("LOAD_RATE", if cfg!(debug_assertions) { 200 } else { 1000 });
    let long = seconds >= 60;
    let dir = common::scratch();
    let path = |name: &str| dir.path().join(name);
    let hub = Serve::start(&path("hub"), &[]);
    let follow = format!("app={}", hub.url("app"));
    let mirror = Serve::start(&path("mirror"), &["--follow", &follow]);
    let mut primary = Primary::new(path("app.db"), &hub.url("app"));
    wait_for("the mirror", LONG, || mirror.db("app").exists());
    let (cascaded, cut, killed) = (path("cascaded.db"), path("cut.db"), path("killed.db"));
    let last = Follow::start(&mirror.url("app"), &cascaded, &[]);
    // Cut for a sixth of the time: ten seconds of each minute, in a long run.
    let round = Duration::from_secs(if long { 60 } else { seconds / 2 });
    let begin = Instant::now();
    let line = Gate::start(hub.address.parse().unwrap(), move || {
        let within = begin.elapsed().as_secs_f64() % round.as_secs_f64();
        within < round.as_secs_f64() * 5.0 / 6.0 || begin.elapsed().as_secs() >= seconds
    });
    let behind_line = Follow::start(&line.url("app"), &cut, &[]);
    let stop = Arc::new(AtomicBool::new(false));
    let watches = [
        Watch::start("hub", &hub.db("app"), &stop),
        Watch::start("mirror", &mirror.db("app"), &stop),
        Watch::start("cascaded", &cascaded, &stop),
        Watch::start("cut", &cut, &stop),
        Watch::start("killed", &killed, &stop),
    ];
    let kill_every = Duration::from_secs(if long { 20 } else { (seconds / 3).max(1) });
    let (done, kills) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let killer = {
        let (done, kills, url, killed) = (
            Arc::clone(&done),
            Arc::clone(&kills),
            hub.url("app"),
            killed.clone(),
        );
        std::thread::spawn(move || {
            loop {
                let victim = Follow::start(&url, &killed, &[]);
                let until = Instant::now() + kill_every;
                while Instant::now() < until {
                    if done.load(Ordering::Relaxed) {
                        return victim;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
                victim.kill();
                kills.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let processes = [
        ("primary", std::process::id()),
        ("hub", hub.child.id()),
        ("mirror", mirror.child.id()),
        ("cascaded", last.child.id()),
    ];
    let mut memories: Vec<Vec<u64>> = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(seconds) {
        primary.commit();
        if begin.elapsed() >= Duration::from_secs(seconds) * (memories.len() as u32 + 1) / 4 {
            memories.push(processes.iter().map(|(_, pid)| memory(*pid)).collect());
        }
        let due = begin + Duration::from_micros(primary.commits * 1_000_000 / rate);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let took = begin.elapsed();
    done.store(true, Ordering::Relaxed);
    let ended = Instant::now();
    let image = primary.close();
    let victim = killer.join().unwrap();
    let hub_db = hub.db("app");
    let mirror_db = mirror.db("app");
    let files: [&Path; 5] = [&hub_db, &mirror_db, &cascaded, &cut, &killed];
    identical(&files, &image, LONG * 2);
    let settled = ended.elapsed();
    stop.store(true, Ordering::Relaxed);
    println!(
        "{} commits in {:.1} s ({:.0}/s), {} kills; all five files identical {:.0} ms after the end",
        primary.commits,
        took.as_secs_f64(),
        primary.commits as f64 / took.as_secs_f64(),
        kills.load(Ordering::Relaxed),
        settled.as_secs_f64() * 1e3
    );
    for watch in watches {
        watch.end();
    }
    for (at, (name, _)) in processes.iter().enumerate() {
        let of: Vec<String> = memories
            .iter()
            .map(|all| format!("{:.1}", all[at] as f64 / 1024.0))
            .collect();
        println!("{name:<9} memory MiB at the quarters: {}", of.join(", "));
        let (half, end) = (memories[1][at], memories[3][at]);
        assert!(
            end <= half * 3 / 2 + 32 * 1024,
            "{name} grows: {half} KiB, then {end} KiB"
        );
    }
    assert!(kills.load(Ordering::Relaxed) >= 2);
    if long && std::env::var_os("LOAD_LENIENT").is_none() {
        assert!(settled < Duration::from_secs(2), "{settled:?}");
    }
    drop((victim, behind_line, last));
}

#[test]
fn a_replica_that_was_away_catches_up_faster_than_it_was_written() {
    let commits = setting("LOAD_COMMITS", 3000);
    let dir = common::scratch();
    let hub = Serve::start(&dir.path().join("hub"), &[]);
    let mut primary = Primary::new(dir.path().join("app.db"), &hub.url("app"));
    let copy = dir.path().join("copy.db");
    wait_for("the hub", LONG, || hub.db("app").exists());
    once(&hub.url("app"), &copy, &[]).good();
    let begin = Instant::now();
    for _ in 0..commits {
        primary.commit();
    }
    let written = begin.elapsed();
    let image = primary.close();
    identical(&[&hub.db("app")], &image, LONG * 6);
    let begin = Instant::now();
    once(&hub.url("app"), &copy, &[]).good();
    let caught_up = begin.elapsed();
    identical(&[&copy], &image, Duration::ZERO);
    println!(
        "{commits} commits written in {written:.2?} as fast as possible, caught up in {caught_up:.2?}"
    );
    assert!(
        caught_up < written.max(Duration::from_secs(2)),
        "{caught_up:?}"
    );
}

#[test]
fn a_large_database_bootstraps_while_it_is_written() {
    let mebibytes = setting("LOAD_MEBIBYTES", 24);
    let dir = common::scratch();
    let mut hub = Serve::start(&dir.path().join("hub"), &[]);
    let mut primary = Primary::new(dir.path().join("app.db"), &hub.url("app"));
    {
        let connection = primary.connection.as_ref().unwrap();
        connection.execute_batch("CREATE TABLE big(b)").unwrap();
        for _ in 0..mebibytes.div_ceil(4) {
            connection
                .execute_batch(
                    "WITH RECURSIVE c(x) AS (VALUES(0) UNION ALL SELECT x+1 FROM c WHERE x<1023)
                     INSERT INTO big SELECT randomblob(2000)||zeroblob(2000) FROM c",
                )
                .unwrap();
        }
    }
    let image = primary.close();
    clikit::run(["push", clikit::text(&primary.db), "--to", &hub.url("app")]).good();
    identical(&[&hub.db("app")], &image, LONG * 9);
    hub.kill();
    let log = common::log_dir(&hub.db("app"));
    let head = mycelite_journal::Reader::open(Arc::new(mycelite_journal::FileStorage::new(&log)))
        .unwrap()
        .head()
        .unwrap()
        .unwrap();
    let begin = Instant::now();
    netkit::shorten::shorten(&log, head.header.txid.0 - 1);
    let made = begin.elapsed();
    let hub = Serve::start(&dir.path().join("hub"), &[]);
    let copy = dir.path().join("copy.db");
    let (stop, url) = (Arc::new(AtomicBool::new(false)), hub.url("app"));
    let writer = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            primary.connection = Some(common::open(&primary.db, &format!("&replica={url}")));
            while !stop.load(Ordering::Relaxed) {
                primary.commit();
                std::thread::sleep(Duration::from_millis(2));
            }
            (primary.commits, primary.close())
        })
    };
    let begin = Instant::now();
    let follower = Follow::start(&hub.url("app"), &copy, &[]);
    let whole = image.len() as u64;
    wait_for("the copy", LONG * 12, || {
        std::fs::metadata(&copy).map_or(0, |file| file.len()) >= whole
    });
    let there = begin.elapsed();
    let peak = memory(follower.child.id());
    std::thread::sleep(Duration::from_secs(1));
    stop.store(true, Ordering::Relaxed);
    let (commits, image) = writer.join().unwrap();
    identical(&[&hub.db("app"), &copy], &image, LONG * 3);
    println!(
        "{} MiB: the snapshot was made in {made:.2?}; the copy was there after {there:.2?}, while {commits} commits were written; \
         follower {} MiB",
        whole >> 20,
        peak >> 10
    );
    assert_eq!(follower.stop().code, 0);
}
