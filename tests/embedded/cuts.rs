//! Lines are cut, the server and the readers are killed: no reader ever sees a torn state, and the copy becomes the primary's file.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::clikit::{Serve, wait_for};
use crate::common;
use crate::kit::{LONG, Primary, Reader, identical};
use crate::netkit::Random;
use crate::netkit::gate::Gate;
use crate::netkit::shorten::shorten;

/// A whole state has its rows without a gap, in both tables, and is never older than one that was seen before.
const LOOK: &str = "SELECT count(*), coalesce(max(id), 0), (SELECT n FROM counted) FROM t";

fn look(reader: &mut Reader, seen: &mut i64) {
    let row = reader.good(&format!("db {LOOK}"));
    let [count, newest, counted] = [0, 1, 2].map(|column| row[0][column].as_i64().unwrap());
    assert!(
        count == newest && count == counted && count >= *seen,
        "{row} after {seen}"
    );
    *seen = count;
}

fn through_everything(mode: &str, seed: u64) {
    common::load();
    let dir = common::scratch();
    let data = dir.path().join("data");
    let mut random = Random(seed);
    let address = {
        let server = Serve::start(&data, &[]);
        server.address.clone()
    };
    let mut server = Serve::start_at(&data, &address, &[]);
    let open = Arc::new(AtomicBool::new(true));
    let is_open = Arc::clone(&open);
    let gate = Gate::start(address.parse().unwrap(), move || {
        is_open.load(Ordering::Relaxed)
    });
    let mut primary = Primary::new(dir.path().join("app.db"), mode, &server.url("app"));
    primary.sql("CREATE TABLE counted(n); INSERT INTO counted VALUES(0)");
    primary.sql("CREATE TRIGGER c AFTER INSERT ON t BEGIN UPDATE counted SET n=n+1; END");
    wait_for("the server", LONG, || server.db("app").exists());
    let (copy, url) = (dir.path().join("copy.db"), gate.url("app"));
    let scratch = dir.path();
    let start = || Reader::of(scratch, &copy, &url);
    let mut readers: Vec<Reader> = vec![start(), start()];
    let mut seen = 0;
    for reader in &mut readers {
        reader.reach(&primary.pos());
        look(reader, &mut seen);
    }
    let begin = Instant::now();
    let mut kills = 0;
    while begin.elapsed() < Duration::from_secs(12) {
        for _ in 0..1 + random.below(30) {
            primary.commit();
        }
        for reader in &mut readers {
            look(reader, &mut seen);
        }
        match random.below(8) {
            0 => open.store(random.below(2) == 0, Ordering::Relaxed),
            1 => open.store(true, Ordering::Relaxed),
            2 if kills < 12 => {
                server.kill();
                server = Serve::start_at(&data, &address, &[]);
                kills += 1;
            }
            3 => {
                let which = random.below(2) as usize;
                readers.remove(which).kill();
                readers.insert(which, start());
                kills += 1;
            }
            4 => {
                readers.remove(0).stop();
                readers.push(start());
            }
            5 => {
                primary.sql("CREATE INDEX IF NOT EXISTS i ON t(filler); DROP INDEX i; VACUUM");
            }
            _ => std::thread::sleep(Duration::from_millis(random.below(150))),
        }
    }
    open.store(true, Ordering::Relaxed);
    let pos = primary.commit();
    for reader in &mut readers {
        reader.reach(&pos);
        look(reader, &mut seen);
        assert_eq!(reader.one("PRAGMA integrity_check"), "ok");
    }
    assert_eq!(seen, primary.rows);
    println!("{mode}: {} commits, {kills} kills", primary.rows);
    drop(readers.remove(0));
    let mut last = readers.pop().unwrap();
    // What a killed follower has left in a WAL, the next one that follows puts into the file.
    wait_for("the turn", LONG, || last.state() == "following");
    last.stop();
    identical(&copy, &primary.image());
    let verified = crate::clikit::run(["verify", "--deep", copy.to_str().unwrap()]);
    assert_eq!(verified.code, 0, "{verified:?}");
}

#[test]
fn nobody_sees_a_torn_state_in_wal_mode() {
    through_everything("WAL", 1);
}

#[test]
fn nobody_sees_a_torn_state_in_rollback_mode() {
    through_everything("DELETE", 2);
}

/// The server lets go of the history that the follower needs: it goes over to a snapshot under a reader that stays open, and in a
/// transaction keeps what it sees.
#[test]
fn a_replica_that_is_older_than_the_history_goes_over_under_its_readers() {
    common::load();
    let dir = common::scratch();
    let data = dir.path().join("data");
    let mut server = Serve::start(&data, &[]);
    let address = server.address.clone();
    let open = Arc::new(AtomicBool::new(true));
    let is_open = Arc::clone(&open);
    let gate = Gate::start(address.parse().unwrap(), move || {
        is_open.load(Ordering::Relaxed)
    });
    let mut primary = Primary::new(dir.path().join("app.db"), "WAL", &server.url("app"));
    for _ in 0..5 {
        primary.commit();
    }
    wait_for("the server", LONG, || server.db("app").exists());
    let copy = dir.path().join("copy.db");
    let mut reader = Reader::of(dir.path(), &copy, &gate.url("app"));
    reader.reach(&primary.pos());
    reader.good("db BEGIN");
    assert_eq!(reader.number("SELECT count(*) FROM t"), 5);
    open.store(false, Ordering::Relaxed);
    for _ in 0..60 {
        primary.commit();
    }
    let pos = primary.pos();
    let txid: u64 = pos.split('/').nth(1).unwrap().parse().unwrap();
    let at = || crate::clikit::run(["status", &format!("http://{address}/app"), "--json"]).json();
    wait_for("the server", LONG, || {
        at()["pos"]["txid"].as_u64() == Some(txid)
    });
    server.kill();
    shorten(&common::log_dir(&server.db("app")), 40);
    server = Serve::start_at(&data, &address, &[]);
    open.store(true, Ordering::Relaxed);
    reader.reach(&pos);
    assert_eq!(
        reader.number("SELECT count(*) FROM t"),
        5,
        "a transaction does not move"
    );
    reader.good("db COMMIT");
    assert_eq!(reader.number("SELECT count(*) FROM t"), 65);
    let pos = primary.commit();
    reader.reach(&pos);
    assert_eq!(reader.number("SELECT count(*) FROM t"), 66);
    reader.stop();
    identical(&copy, &primary.image());
    let parked = crate::clikit::run(["parked", copy.to_str().unwrap()]).good();
    assert_eq!(parked.lines().count(), 1, "{parked}");
    drop(server);
}
