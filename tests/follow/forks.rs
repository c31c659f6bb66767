//! A newer timeline at the head of a chain: everyone who follows parks what the primary has lost, and goes back with it.

use std::path::Path;

use mycelite::parked;
use mycelite::server::ServeOptions;
use mycelite_journal::Pos;

use crate::kit::{Follow, LONG, Line, Proxy, identical, once};
use crate::netkit::{Primary, TestServer, assert_applied, raw_records, room};

fn send(server: &TestServer, primary: &Primary, after: u64) {
    let records = primary.records(after).concat();
    let answer = server.append("app", primary.id(), primary.pos_at(after), &records);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// The primary as it was after transaction `txid`, on timeline 2 from there on.
fn lose(primary: &Primary, txid: usize, name: &str) -> Primary {
    let mut after = Primary::fork(primary.dir.with_file_name(name), primary, txid);
    after.timeline = 2;
    after
}

fn mirror(of: &str, data: &Path) -> TestServer {
    let mut options = ServeOptions::new("127.0.0.1:0", data);
    options.follow = vec![("app".parse().unwrap(), of.parse().unwrap())];
    TestServer::with(options).unwrap()
}

#[track_caller]
fn assert_parked(log_dir: &Path, records: &[Vec<u8>]) {
    let tails = parked::list(log_dir);
    assert_eq!(tails.len(), 1, "{tails:?}");
    let found = raw_records(&tails[0].path, tails[0].first.previous().0);
    assert_eq!(found, records);
}

#[test]
fn a_chain_goes_back_with_its_primary_and_loses_nothing() {
    for common in [0, 7, 11] {
        let room = room(12);
        let dir = tempfile::tempdir().unwrap();
        send(&room.server, &room.primary, 0);
        let second = mirror(
            &room.server.url("app").to_string(),
            &dir.path().join("second"),
        );
        let (live, late) = (dir.path().join("live.db"), dir.path().join("late.db"));
        assert_applied(&second, "app", 12, &room.primary.image);
        let follower = Follow::start(&second.url("app").to_string(), &live, &[]);
        once(&second.url("app").to_string(), &late, &[]).good();
        identical(&[&live, &late], &room.primary.image, LONG);

        let mut after = lose(&room.primary, common, "after-mycelite");
        // The first one goes over several pieces.
        after.commit(500);
        send(&room.server, &after, common as u64);
        identical(&[&live], &after.image, LONG);
        after.commits(6);
        send(&room.server, &after, common as u64 + 1);
        assert_applied(&second, "app", common as u64 + 7, &after.image);
        identical(&[&live], &after.image, LONG);
        // One that was away meanwhile does the same when it comes back.
        let ran = once(&second.url("app").to_string(), &late, &[]);
        assert_eq!(ran.code, 0, "{ran:?}");
        identical(&[&late], &after.image, LONG);
        for file in [&live, &late, &second.db("app")] {
            let log_dir = crate::common::log_dir(file);
            assert_parked(&log_dir, &room.primary.records(common as u64));
            assert_eq!(raw_records(&log_dir, 0), after.records(0));
        }
        assert_eq!(follower.stop().code, 0);
        assert_ne!(after.pos(), Pos::ZERO);
    }
}

#[test]
fn a_line_that_is_cut_while_going_back_changes_nothing_by_halves() {
    let room = room(9);
    let dir = tempfile::tempdir().unwrap();
    send(&room.server, &room.primary, 0);
    let copy = dir.path().join("copy.db");
    once(&room.server.url("app").to_string(), &copy, &[]).good();
    let mut after = lose(&room.primary, 5, "after-mycelite");
    after.commit(300);
    after.commits(3);
    send(&room.server, &after, 5);
    let proxy = Proxy::start(room.server.addr, |n| match n {
        // Where it was is asked for on lines of their own, some of them cut.
        0..12 => Line::CutAfter(400 + n * 40_000),
        _ => Line::Good,
    });
    let follower = Follow::start(&proxy.url("app"), &copy, &[]);
    identical(&[&copy], &after.image, LONG);
    assert_eq!(follower.stop().code, 0);
    assert_parked(&crate::common::log_dir(&copy), &room.primary.records(5));
}
