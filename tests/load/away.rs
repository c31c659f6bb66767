//! A replica that was away catches up faster than what it missed was written.

use std::time::{Duration, Instant};

use crate::clikit::{Serve, wait_for};
use crate::kit::{LONG, once};
use crate::world::{Primary, identical, is_judged, place, setting};

#[test]
fn a_replica_that_was_away_catches_up_faster_than_it_was_written() {
    let commits = setting("LOAD_COMMITS", 3000, 100_000);
    let dir = place();
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
    primary.close();
    identical(&[&hub.db("app")], &primary.db, LONG * 6);
    let begin = Instant::now();
    once(&hub.url("app"), &copy, &[]).good();
    let caught_up = begin.elapsed();
    identical(&[&copy], &primary.db, Duration::ZERO);
    println!(
        "away: {commits} commits written in {:.2} s, as fast as possible ({:.0}/s), caught up in {:.2} s ({:.0}/s)",
        written.as_secs_f64(),
        commits as f64 / written.as_secs_f64(),
        caught_up.as_secs_f64(),
        commits as f64 / caught_up.as_secs_f64(),
    );
    // In a small run starting the program is most of it.
    let allowed = if is_judged() {
        written
    } else {
        written.max(Duration::from_secs(2))
    };
    assert!(caught_up < allowed, "{caught_up:?}, written in {written:?}");
}
