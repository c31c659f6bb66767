//! A large database bootstraps from a snapshot while it is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::clikit::{self, Serve, wait_for};
use crate::kit::{Follow, LONG};
use crate::world::{Peak, Primary, identical, is_judged, mib, place, setting};
use crate::{common, netkit};

/// DESIGN: memory beyond SQLite's own, whatever the history.
const MEMORY_MIB_MAX: f64 = 64.0;

/// A primary of that size, and a hub that has it and no records of how it came to be.
fn prepare(dir: &std::path::Path, mebibytes: u64) -> (Serve, Primary) {
    let mut hub = Serve::start(&dir.join("hub"), &[]);
    let mut primary = Primary::new(dir.join("app.db"), &hub.url("app"));
    let fill = "WITH RECURSIVE c(x) AS (VALUES(0) UNION ALL SELECT x+1 FROM c WHERE x<1023)
                INSERT INTO big SELECT randomblob(2000)||zeroblob(2000) FROM c";
    let create = "CREATE TABLE big(b)";
    primary.connection().execute_batch(create).unwrap();
    for _ in 0..mebibytes.div_ceil(4) {
        primary.connection().execute_batch(fill).unwrap();
    }
    primary.close();
    clikit::run(["push", clikit::text(&primary.db), "--to", &hub.url("app")]).good();
    identical(&[&hub.db("app")], &primary.db, LONG * 9);
    hub.kill();
    let log = common::log_dir(&hub.db("app"));
    let storage = Arc::new(mycelite_journal::FileStorage::new(&log));
    let mut reader = mycelite_journal::Reader::open(storage).unwrap();
    let head = reader.head().unwrap().unwrap().header.txid;
    let begin = Instant::now();
    netkit::shorten::shorten(&log, head.0 - 1);
    println!(
        "large: the hub's snapshot was made in {:.2?}",
        begin.elapsed()
    );
    (Serve::start(&dir.join("hub"), &[]), primary)
}

#[test]
fn a_large_database_bootstraps_while_it_is_written() {
    let mebibytes = setting("LOAD_MEBIBYTES", 24, 1024);
    let dir = place();
    let (hub, mut primary) = prepare(dir.path(), mebibytes);
    let whole = std::fs::metadata(&primary.db).unwrap().len();
    let copy = dir.path().join("copy.db");
    let (stop, url) = (Arc::new(AtomicBool::new(false)), hub.url("app"));
    let writer = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            primary.open_again(&url);
            let before = primary.commits;
            while !stop.load(Ordering::Relaxed) {
                primary.commit();
                std::thread::sleep(Duration::from_millis(2));
            }
            let commits = primary.commits - before;
            primary.close();
            (commits, primary)
        })
    };
    // It writes already when the copy begins.
    std::thread::sleep(Duration::from_millis(200));
    let begin = Instant::now();
    let follower = Follow::start(&hub.url("app"), &copy, &[]);
    let peaks = [Peak::of(hub.child.id()), Peak::of(follower.child.id())];
    wait_for("the copy", LONG * 12, || {
        std::fs::metadata(&copy).is_ok_and(|file| file.len() >= whole)
    });
    let there = begin.elapsed();
    std::thread::sleep(Duration::from_secs(1));
    stop.store(true, Ordering::Relaxed);
    let (commits, primary) = writer.join().unwrap();
    let begin = Instant::now();
    wait_for("the last commit in the copy", LONG * 3, || {
        let newest = "SELECT n FROM total";
        let seen = common::open_plain(&copy).query_row(newest, [], |row| row.get::<_, i64>(0));
        seen.is_ok_and(|seen| seen == primary.commits as i64)
    });
    let settled = begin.elapsed();
    identical(&[&hub.db("app"), &copy], &primary.db, LONG * 3);
    let [hub_kib, follower_kib] = peaks.map(Peak::kib);
    println!(
        "large: {} MiB; the copy was there after {:.2} s, {commits} commits were written meanwhile, the last one was in the copy {:.0} ms \
         later, all files identical; memory at most: hub {:.1} MiB, follower {:.1} MiB",
        whole >> 20,
        there.as_secs_f64(),
        settled.as_secs_f64() * 1e3,
        mib(hub_kib),
        mib(follower_kib)
    );
    assert!(commits > 0);
    if is_judged() {
        assert!(settled < Duration::from_secs(2), "{settled:?}");
    }
    for kib in [hub_kib, follower_kib] {
        assert!(mib(kib) <= MEMORY_MIB_MAX, "{:.1} MiB", mib(kib));
    }
    assert_eq!(follower.stop().code, 0);
}
