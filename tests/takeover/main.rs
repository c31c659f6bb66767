//! P4 and P9 under `kill -9`: an applier, a promotion, and the old primary's way back are killed at each call that changes the disk. Whatever is
//! left, any SQLite reads it; the next attempt ends in the same state as one that was never killed; nothing is lost, and what the
//! loser alone had is parked and listed.
//!
//! An ordinary run tries a sample of the places and says which; all of them:
//!
//! ```sh
//! TAKEOVER=full cargo test --release --test takeover -- --nocapture
//! ```
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used)]

mod applying;
mod calls;
#[path = "../clikit/mod.rs"]
mod clikit;
#[path = "../common/mod.rs"]
mod common;
#[path = "../netkit/mod.rs"]
mod netkit;

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use clikit::{Serve, run, text, wait_for};
use mycelite::database::log_dir;
use mycelite::promote;
use mycelite::server::{Endurance, FollowOptions, Follower, Limits};

const LONG: Duration = Duration::from_secs(30);
/// Places that an ordinary run tries of each sweep.
const SAMPLE: u64 = 10;
const ROLE: &str = "TAKEOVER_ROLE";

/// `count` commits by an application with the extension, which then closes.
fn write(db: &Path, mode: &str, count: usize) {
    let connection = common::open(db, "");
    connection
        .query_row(&format!("PRAGMA journal_mode = {mode}"), [], |_| Ok(()))
        .unwrap();
    connection
        .execute_batch("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, x)")
        .unwrap();
    for _ in 0..count {
        connection
            .execute_batch("INSERT INTO t(x) VALUES (hex(randomblob(2000)))")
            .unwrap();
    }
    connection.close().unwrap();
}

/// What any SQLite reads, whose first look also repairs what a crash has left.
fn dump(db: &Path) -> Vec<(i64, String)> {
    let connection = common::open_plain(db);
    let check: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(check, "ok", "{}", db.display());
    let mut statement = connection
        .prepare("SELECT id, x FROM t ORDER BY id")
        .unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
    rows.unwrap().map(Result::unwrap).collect()
}

fn copy_of(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    assert!(
        Command::new("cp")
            .arg("-a")
            .args([from, to])
            .status()
            .unwrap()
            .success()
    );
}

/// The process that is killed: does what the environment says, and says how many calls that took.
#[test]
fn role() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let words: Vec<&str> = role.split(' ').collect();
    let (at, db) = (words[1].parse().ok(), Path::new(words[2]));
    common::load();
    calls::arm(at);
    match words[0] {
        "apply-wal" => applying::apply(db, true, None),
        "apply-journal" => applying::apply(db, false, None),
        "promote" => drop(promote::promote(db).unwrap()),
        _ => rejoin(db, words[3]),
    }
    println!("CALLS {}", calls::disarm());
}

/// What `mycelite follow --rejoin --once` does.
fn rejoin(db: &Path, url: &str) {
    if promote::is_primary(db) {
        let connection = common::open(db, "");
        connection
            .execute_batch("BEGIN IMMEDIATE; ROLLBACK")
            .unwrap();
        connection.close().unwrap();
        promote::step_down(db).unwrap();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let options = FollowOptions {
        url: url.parse().unwrap(),
        access: Default::default(),
        db: db.to_path_buf(),
        log_dir: log_dir(db),
        claim: false,
        listen: None,
        token_file: None,
        tls: None,
        endurance: Endurance::Once,
        limits: Limits::default(),
    };
    runtime.block_on(async {
        let follower = Follower::open(options).await.unwrap();
        let handle = follower.handle();
        let caught_up = async {
            while !handle.is_caught_up() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        follower.run(caught_up).await.unwrap();
    });
}

/// Runs a role; how many calls it took, or none where it was killed.
fn child(role: &str, at: Option<u64>, db: &Path, more: &str) -> Option<u64> {
    let at = at.map_or("-".to_owned(), |at| at.to_string());
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["role", "--exact", "--nocapture", "--test-threads=1"])
        .env(ROLE, format!("{role} {at} {} {more}", db.display()))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    match output.status.signal() {
        Some(9) => None,
        _ => {
            assert!(
                output.status.success(),
                "{said}{}",
                String::from_utf8_lossy(&output.stderr)
            );
            let calls = said.lines().find_map(|line| line.split_once("CALLS "));
            Some(calls.expect(&said).1.parse().unwrap())
        }
    }
}

/// The places to try, of so many.
fn places(name: &str, count: u64) -> Vec<u64> {
    let full = std::env::var("TAKEOVER").is_ok_and(|value| value == "full");
    let step = if full { 1 } else { count.div_ceil(SAMPLE) };
    let tried: Vec<u64> = (0..count).step_by(step.max(1) as usize).collect();
    println!("{name}: {} of {count} places", tried.len());
    tried
}

/// A replica whose server is dead, and its primary, which has three commits more.
struct Place {
    dir: tempfile::TempDir,
    old: PathBuf,
    replicas: PathBuf,
}

impl Place {
    fn new(mode: &str) -> Place {
        common::load();
        let dir = common::scratch();
        let (old, replicas) = (dir.path().join("old.db"), dir.path().join("replicas"));
        let mut server = Serve::start(&replicas, &[]);
        let url = server.url("app");
        write(&old, mode, 5);
        run(["push", text(&old), "--to", &url]).good();
        let head = || run(["status", &url, "--json"]).json();
        wait_for("the replica", LONG, || {
            head()["applied_txid"] == head()["pos"]["txid"]
        });
        server.kill();
        write(&old, mode, 3);
        Place { dir, old, replicas }
    }
}

fn promotion(mode: &str) {
    let place = Place::new(mode);
    let (work, look) = (place.dir.path().join("work"), place.dir.path().join("look"));
    let (db, before) = (work.join("app.db"), {
        copy_of(&place.replicas, &look);
        dump(&look.join("app.db"))
    });
    let first = mycelite_first(&place);
    copy_of(&place.replicas, &work);
    let count = child("promote", None, &db, "").unwrap();
    for at in places(&format!("promote, {mode}"), count) {
        copy_of(&place.replicas, &work);
        assert_eq!(child("promote", Some(at), &db, ""), None, "{mode} {at}");
        copy_of(&work, &look);
        assert_eq!(dump(&look.join("app.db")), before, "{mode} {at}: plain");

        // A server that finds it takes what fits, or says why not; nothing of it is lost.
        copy_of(&work, &look);
        let server = Serve::start(&look, &[]);
        let pushed = run(["push", text(&place.old), "--to", &server.url("app")]);
        let (replica, url) = (look.join("app.db"), server.url("app"));
        let wanted = match pushed.code {
            0 => dump(&place.old),
            _ => {
                assert!(pushed.bad(3).contains("1000/"), "{mode} {at}");
                before.clone()
            }
        };
        wait_for("the served file", LONG, || dump(&replica) == wanted);
        run(["verify", "--deep", &url]).good();
        drop(server);

        // The next attempt.
        let again = run(["promote", text(&db), "--json"]);
        if again.code != 0 {
            assert!(again.bad(2).contains("primary already"), "{mode} {at}");
        }
        write(&db, mode, 2);
        let now = dump(&db);
        assert!(
            now.len() == before.len() + 2 && now.starts_with(&before),
            "{mode} {at}"
        );
        run(["verify", "--deep", text(&db)]).good();
        let records = netkit::raw_records(&log_dir(&db), 0);
        assert!(
            records.starts_with(&first),
            "{mode} {at}: a record is not what it was"
        );
        let timeline = run(["status", text(&db), "--json"]).json()["pos"]["timeline"]
            .as_u64()
            .unwrap();
        assert!(timeline >= 1000, "{mode} {at}: timeline {timeline}");
    }
}

/// What the replica had recorded.
fn mycelite_first(place: &Place) -> Vec<Vec<u8>> {
    netkit::raw_records(&log_dir(&place.replicas.join("app.db")), 0)
}

fn way_back(mode: &str) {
    let place = Place::new(mode);
    let replica = place.replicas.join("app.db");
    let fork = mycelite_first(&place).len() as u64;
    let lost = netkit::raw_records(&log_dir(&place.old), fork);
    assert_eq!(lost.len(), 3);
    run(["promote", text(&replica)]).good();
    write(&replica, mode, 4);
    let now = dump(&replica);
    let next = Serve::start(&place.dir.path().join("next"), &[]);
    let url = next.url("app");
    run(["push", text(&replica), "--to", &url]).good();

    // The old primary alone in a directory, which is copied for each attempt.
    let (template, work, look) = (
        place.dir.path().join("template"),
        place.dir.path().join("work"),
        place.dir.path().join("look"),
    );
    std::fs::create_dir(&template).unwrap();
    for from in [place.old.clone(), log_dir(&place.old)] {
        let status = Command::new("cp")
            .arg("-a")
            .args([&from, &template])
            .status();
        assert!(status.unwrap().success());
    }
    let (db, old) = (work.join("old.db"), dump(&place.old));
    copy_of(&template, &work);
    let count = child("rejoin", None, &db, &url).unwrap();
    assert_eq!(dump(&db), now);
    let mut kills = 0;
    for at in places(&format!("rejoin, {mode}"), count) {
        copy_of(&template, &work);
        kills += u64::from(child("rejoin", Some(at), &db, &url).is_none());
        copy_of(&work, &look);
        let plain = dump(&look.join("old.db"));
        assert!(
            is_state(&plain, &old, &now),
            "{mode} {at}: {} rows",
            plain.len()
        );
        let again = run(["follow", &url, text(&db), "--once", "--rejoin"]);
        assert_eq!(again.code, 0, "{mode} {at}: {again:?}");
        assert_eq!(dump(&db), now, "{mode} {at}");
        run(["verify", "--deep", text(&db)]).good();
        let tails = run(["parked", text(&db), "--json"]).json();
        let kept = tails.as_array().unwrap().iter().any(|tail| {
            let name = tail["name"].as_str().unwrap();
            netkit::raw_records(&log_dir(&db).join("parked").join(name), fork) == lost
        });
        assert!(kept, "{mode} {at}: {tails}");
        assert!(
            run(["log", text(&db)]).good().contains("parked"),
            "{mode} {at}"
        );
        // And it is a replica like any other.
        assert!(!promote::is_primary(&db), "{mode} {at}");
    }
    println!("rejoin, {mode}: {kills} kills");
    assert!(kills > 0);
}

/// Whether these rows are those of some recorded transaction: of the old history, or of the new one.
fn is_state(rows: &[(i64, String)], old: &[(i64, String)], now: &[(i64, String)]) -> bool {
    old.starts_with(rows) || now.starts_with(rows)
}

#[test]
fn a_killed_promotion_is_done_again_in_wal_mode() {
    promotion("WAL");
}

#[test]
fn a_killed_promotion_is_done_again_in_rollback_mode() {
    promotion("DELETE");
}

#[test]
fn a_killed_way_back_goes_on_in_wal_mode() {
    way_back("WAL");
}

#[test]
fn a_killed_way_back_goes_on_in_rollback_mode() {
    way_back("DELETE");
}
