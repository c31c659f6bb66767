//! Bad lines: cut, silent, slow, and such that change bytes.

use std::time::{Duration, Instant};

use mycelite::server::ServeOptions;

use crate::clikit::{signal, wait_for};
use crate::kit::{Follow, LONG, Line, Proxy, identical, once};
use crate::netkit::{Primary, Random, TestServer, zstd};

/// A server with a log of `commits` records, of which some are larger than one piece of a stream.
fn served(dir: &std::path::Path, commits: usize) -> (TestServer, Primary) {
    let mut options = ServeOptions::new("127.0.0.1:0", dir.join("data"));
    options.limits.heartbeat = Duration::from_millis(200);
    let server = TestServer::with(options).unwrap();
    let mut primary = Primary::new(dir.join("primary-mycelite"), 7);
    for n in 0..commits {
        primary.commit(if n % 17 == 5 { 400 } else { 1 });
    }
    send(&server, &primary, 0);
    (server, primary)
}

fn send(server: &TestServer, primary: &Primary, after: u64) {
    let records = primary.records(after).concat();
    let pos = primary.pos_at(after);
    let answer = crate::netkit::append(server.addr, "app", primary.id(), pos, &zstd(&records));
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn a_line_that_is_cut_anywhere_costs_only_time() {
    let dir = crate::common::scratch();
    let (server, primary) = served(dir.path(), 40);
    let mut random = Random(7);
    for round in 0..4 {
        let copy = dir.path().join(format!("copy-{round}.db"));
        // The first of them break within the head, within the hello, and within records.
        let cuts: Vec<u64> = [150, 250 + round * 31, 330, 2000]
            .into_iter()
            .chain((0..4).map(|_| 400 + random.below(3_000_000)))
            .collect();
        let proxy = Proxy::start(server.addr, move |n| match cuts.get(n as usize) {
            Some(cut) => Line::CutAfter(*cut),
            None => Line::Good,
        });
        let follower = Follow::start(&proxy.url("app"), &copy, &[]);
        identical(&[&copy], primary.images.last().unwrap(), LONG);
        let ran = follower.stop();
        assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "{ran:?}");
    }
}

#[test]
fn a_changed_byte_is_noticed_wherever_it_is() {
    let dir = crate::common::scratch();
    let (server, primary) = served(dir.path(), 12);
    let copy = dir.path().join("copy.db");
    let mut random = Random(11);
    // All of them hit the answer's head or its first records, so that each one ends a connection or is noticed later.
    let places: Vec<u64> = (0..10).map(|n| 10 + n * 60 + random.below(60)).collect();
    let proxy = Proxy::start(server.addr, move |n| match places.get(n as usize) {
        Some(place) => Line::FlipAt(*place),
        None => Line::Good,
    });
    let deadline = Instant::now() + LONG;
    // A refusal at the first contact ends it (a status or a header that is another): then it is started again.
    loop {
        let ran = once(&proxy.url("app"), &copy, &[]);
        match ran.code {
            0 => break,
            3 => {
                let last = ran.stderr.lines().last().unwrap_or_default();
                assert!(last.starts_with("mycelite: error: "), "{ran:?}");
            }
            _ => panic!("{ran:?}"),
        }
        assert!(Instant::now() < deadline, "never whole");
    }
    identical(&[&copy], primary.images.last().unwrap(), LONG);
}

#[test]
fn a_silent_line_is_given_up_and_a_slow_one_is_not() {
    let dir = crate::common::scratch();
    let (server, mut primary) = served(dir.path(), 10);
    let copy = dir.path().join("copy.db");
    let proxy = Proxy::start(server.addr, |n| match n {
        0 => Line::SilentAfter(500),
        1 => Line::SilentAfter(1_000_000),
        _ => Line::Slow(Duration::from_millis(2)),
    });
    let follower = Follow::start(&proxy.url("app"), &copy, &[]);
    identical(&[&copy], primary.images.last().unwrap(), LONG);
    // Quiet for longer than a line may be silent: the beats keep it.
    let before = proxy.connections.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(1500));
    // In several pieces, between which the line pauses.
    primary.commit(700);
    send(&server, &primary, 10);
    identical(&[&copy], primary.images.last().unwrap(), LONG);
    assert_eq!(
        proxy.connections.load(std::sync::atomic::Ordering::Relaxed),
        before,
        "a line that lives was given up"
    );
    let ran = follower.stop();
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.stderr.is_empty() || ran.stderr.contains("the line is dead"),
        "{ran:?}"
    );
}

#[test]
fn a_follower_that_is_killed_at_any_moment_continues() {
    let dir = crate::common::scratch();
    let (server, primary) = served(dir.path(), 60);
    let copy = dir.path().join("copy.db");
    let mut random = Random(23);
    // Slow enough that the kills fall on all of it: before the first record, between records, while they are applied.
    let proxy = Proxy::start(server.addr, |_| Line::Slow(Duration::from_millis(1)));
    for _ in 0..25 {
        let follower = Follow::start(&proxy.url("app"), &copy, &[]);
        std::thread::sleep(Duration::from_millis(random.below(70)));
        follower.kill();
    }
    let said = once(&proxy.url("app"), &copy, &[]).good();
    assert!(
        said.contains("at transaction 60, identical to http://"),
        "{said}"
    );
    identical(&[&copy], primary.images.last().unwrap(), LONG);
    // The file can be had again from the log, also without the server.
    std::fs::remove_file(&copy).unwrap();
    drop(server);
    let follower = Follow::start(&proxy.url("app"), &copy, &[]);
    identical(&[&copy], primary.images.last().unwrap(), LONG);
    follower.kill();
}

#[test]
fn a_signal_ends_it_in_the_middle_of_a_record_too() {
    let dir = crate::common::scratch();
    let (server, primary) = served(dir.path(), 30);
    let proxy = Proxy::start(server.addr, |_| Line::Slow(Duration::from_millis(40)));
    for (name, arguments, code) in [("TERM", &[][..], 0), ("INT", &["--once"], 130)] {
        let copy = dir.path().join(format!("{name}.db"));
        let follower = Follow::start(&proxy.url("app"), &copy, arguments);
        wait_for("the first records", LONG, || copy.exists());
        signal(follower.child.id(), name);
        let ran = follower.ended(LONG);
        assert_eq!((ran.code, ran.stderr.as_str()), (code, ""), "{ran:?}");
        once(&server.url("app").to_string(), &copy, &[]).good();
        identical(&[&copy], primary.images.last().unwrap(), LONG);
    }
}
