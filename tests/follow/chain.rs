//! Chains under load: writer, server, server that follows it, follower of that; killed at random.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::clikit::{Serve, text};
use crate::kit::{Follow, LONG, Readers, Writer, identical, once, own_address};

/// Looks for new rows in a file as any reader would; when each was first seen.
fn spy(db: &Path, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<Vec<(i64, Instant)>> {
    let (db, stop) = (db.to_path_buf(), Arc::clone(stop));
    std::thread::spawn(move || {
        let mut seen = Vec::new();
        let mut last = 0;
        let mut connection = None;
        let mut ends = false;
        while !ends {
            std::thread::sleep(Duration::from_millis(1));
            // Asked before the look: the last one sees the end.
            ends = stop.load(Ordering::Relaxed);
            if !db.exists() {
                continue;
            }
            let connection = connection.get_or_insert_with(|| {
                let plain = crate::common::open_plain(&db);
                plain.busy_timeout(LONG).unwrap();
                plain
            });
            let newest = connection.query_row("SELECT coalesce(max(id), 0) FROM t", [], |row| {
                row.get::<_, i64>(0)
            });
            let Ok(newest) = newest else { continue };
            assert!(newest >= last, "a reader went back from {last} to {newest}");
            let now = Instant::now();
            seen.extend((last + 1..=newest).map(|id| (id, now)));
            last = newest;
        }
        seen
    })
}

fn chain(mode: &str) {
    crate::common::load();
    let dir = crate::common::scratch();
    let path = |name: &str| dir.path().join(name);
    let first = Serve::start(&path("first"), &[]);
    let follow = format!("app={}", first.url("app"));
    let second = Serve::start(&path("second"), &["--follow", &follow]);
    let copy = path("copy.db");
    let mut writer = Writer::new(path("app.db"), mode, &first.url("app"));
    crate::clikit::wait_for("the second server", LONG, || second.db("app").exists());
    let follower = Follow::start(&second.url("app"), &copy, &[]);
    crate::clikit::wait_for("the follower", LONG, || copy.exists());

    let readers = Readers::start(&copy, dir.path());
    let stop = Arc::new(AtomicBool::new(false));
    let files = [first.db("app"), second.db("app"), copy.clone()];
    let files: Vec<&Path> = files.iter().map(|file| file.as_path()).collect();
    let spies: Vec<_> = files.iter().map(|file| spy(file, &stop)).collect();
    let committed = Mutex::new(Vec::new());
    let count = writer.load(200, Duration::from_secs(3), |id| {
        committed.lock().unwrap().push((id, Instant::now()));
    });
    let image = writer.close();
    let settled = identical(&files, &image, LONG);
    stop.store(true, Ordering::Relaxed);
    let seen: Vec<_> = spies.into_iter().map(|spy| spy.join().unwrap()).collect();
    readers.check();
    identical(&files, &image, LONG);
    let committed = committed.into_inner().unwrap();
    for (file, seen) in ["the server", "its mirror", "the follower of that"]
        .iter()
        .zip(&seen)
    {
        assert_eq!(seen.len(), count as usize, "rows that were never seen");
        let mut lags: Vec<Duration> = committed
            .iter()
            .zip(seen)
            .map(|((_, when), (_, seen))| seen.saturating_duration_since(*when))
            .collect();
        lags.sort();
        let at = |part: usize| lags[(lags.len() - 1) * part / 100];
        println!(
            "{mode}: a commit is visible in {file} after {:?} (median), {:?} (99 %)",
            at(50),
            at(99)
        );
    }
    println!("{mode}: {count} commits in 3 s, all files identical {settled:?} after the end");
    let ran = follower.stop();
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
    identical(&[&copy], &image, LONG);
    let wanted = format!("{}: at transaction", copy.display());
    let said = once(&second.url("app"), &copy, &[]).good();
    assert!(said.starts_with(&wanted), "{said}");
}

#[test]
fn a_chain_follows_a_writer_in_delete_mode() {
    chain("DELETE");
}

#[test]
fn a_chain_follows_a_writer_in_wal_mode() {
    chain("WAL");
}

#[test]
fn whoever_is_killed_goes_on_where_it_was() {
    crate::common::load();
    let dir = crate::common::scratch();
    let path = |name: &str| dir.path().join(name);
    let addresses = [own_address(), own_address()];
    let urls = addresses
        .clone()
        .map(|address| format!("http://{address}/app"));
    let follow = format!("app={}", urls[0]);
    let mut first = Serve::start_at(&path("first"), &addresses[0], &[]);
    let mut second = Serve::start_at(&path("second"), &addresses[1], &["--follow", &follow]);
    let copy = path("copy.db");
    let mut writer = Writer::new(path("app.db"), "WAL", &urls[0]);
    crate::clikit::wait_for("the second server", LONG, || second.db("app").exists());
    let mut follower = Follow::start(&urls[1], &copy, &[]);
    crate::clikit::wait_for("the follower", LONG, || copy.exists());
    let readers = Readers::start(&copy, dir.path());
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let writing = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            writer.load(200, Duration::from_millis(200), |_| {});
        }
        writer
    });
    let mut random = crate::netkit::Random(20_261_121);
    for round in 0..18 {
        std::thread::sleep(Duration::from_millis(30 + random.below(200)));
        match round % 3 {
            0 => {
                follower.kill();
                follower = Follow::start(&urls[1], &copy, &[]);
            }
            1 => {
                second.kill();
                second = Serve::start_at(&path("second"), &addresses[1], &["--follow", &follow]);
            }
            _ => {
                first.kill();
                first = Serve::start_at(&path("first"), &addresses[0], &[]);
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut writer = writing.join().unwrap();
    writer.commit(10);
    let push = crate::clikit::run(["push", text(&writer.db), "--to", &urls[0]]);
    assert_eq!(push.code, 0, "{push:?}");
    let image = writer.close();
    let files = [first.db("app"), second.db("app"), copy.clone()];
    let files: Vec<&Path> = files.iter().map(|file| file.as_path()).collect();
    identical(&files, &image, LONG);
    readers.check();
    assert_eq!(follower.stop().code, 0);
    for file in [second.db("app"), copy] {
        let ran = crate::clikit::run(["verify", text(&file), "--deep"]);
        assert_eq!(ran.code, 0, "{ran:?}");
    }
}
