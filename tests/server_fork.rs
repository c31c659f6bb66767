//! P9: a primary that lost its newest records goes on on a newer timeline, and its replicas follow; nothing is lost.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;
mod netkit;

use std::path::Path;
use std::sync::Arc;

use mycelite::parked;
use mycelite::ship::{ShipOptions, push_once};
use mycelite::status::ReplicaStatus;
use mycelite_journal::{Cut, FileStorage, Log, Pos};
use netkit::*;

/// A server that has all of `room`'s primary.
fn served(commits: usize) -> Room {
    let room = room(commits);
    let records = room.primary.records(0).concat();
    let answer = room
        .server
        .append("app", room.primary.id(), Pos::ZERO, &records);
    assert_eq!(answer.txid() as usize, commits);
    assert_applied(&room.server, "app", commits as u64, &room.primary.image);
    room
}

/// The primary as it was after transaction `txid`, on timeline `timeline` from there on.
fn lose(primary: &Primary, txid: usize, timeline: u64, name: &str) -> Primary {
    let mut after = Primary::fork(primary.dir.with_file_name(name), primary, txid);
    after.timeline = timeline;
    after
}

fn push(primary: &Primary, server: &TestServer) -> ReplicaStatus {
    let options = ShipOptions::new(&primary.dir, vec![server.url("app")]);
    push_once(&options, &mut |_| {}).unwrap().remove(0)
}

fn assert_caught_up(primary: &Primary, server: &TestServer) {
    let status = push(primary, server);
    assert_eq!(
        (status.state.as_str(), status.last_error.as_str()),
        ("caught-up", "")
    );
    assert_applied(server, "app", primary.pos().txid.0, &primary.image);
    assert_eq!(raw_records(&server.log("app"), 0), primary.records(0));
}

/// The parked tails hold exactly these records.
fn assert_parked(log_dir: &Path, tails: &[Vec<Vec<u8>>]) {
    let found: Vec<_> = parked::list(log_dir)
        .iter()
        .map(|tail| raw_records(&tail.path, tail.first.previous().0))
        .collect();
    assert_eq!(found.len(), tails.len());
    for tail in tails {
        assert!(found.contains(tail), "a tail is not parked as it was");
    }
    let rest: Vec<_> = std::fs::read_dir(log_dir.join("parked"))
        .map(|entries| entries.map(|entry| entry.unwrap().file_name()).collect())
        .unwrap_or_default();
    assert_eq!(rest.len(), tails.len(), "{rest:?}");
}

#[test]
fn a_newer_timeline_is_followed_and_the_tail_is_parked() {
    let Room {
        server,
        primary,
        _dir,
    } = served(12);
    let mut after = lose(&primary, 8, 2, "after-mycelite");
    after.commits(2);
    assert_caught_up(&after, &server);
    assert_parked(&server.log("app"), &[primary.records(8)]);
    let info = server.get("/v1/databases/app").json();
    let tail = &info["parked"][0];
    let shown = ["timeline", "first_txid", "last_txid"].map(|key| tail[key].as_u64().unwrap());
    assert_eq!(shown, [1, 9, 12]);
    assert!(tail["bytes"].as_u64().unwrap() > 4 * 128, "{tail}");
    assert_eq!(info["state"], "ok");
    let metrics = server.get("/metrics").text();
    assert!(
        metrics.contains("mycelite_parked_tails{database=\"app\"} 1"),
        "{metrics}"
    );
    // And on and on, also longer than before.
    after.commits(20);
    assert_caught_up(&after, &server);
    let kept = parked::list(&server.log("app"))[0].clone();
    let mut kept = kept.reader().unwrap();
    let last = kept.head().unwrap().unwrap();
    assert_eq!(last.header.pos(), primary.pos());
}

#[test]
fn every_length_of_tail_down_to_the_whole_history() {
    for common in [0, 1, 5, 8] {
        let Room {
            server,
            primary,
            _dir,
        } = served(9);
        let mut after = lose(&primary, common, 2, "after-mycelite");
        after.commits(1);
        assert_caught_up(&after, &server);
        assert_parked(&server.log("app"), &[primary.records(common as u64)]);
        // Also for a server that starts anew over it.
        let data = server.data.clone();
        server.stop();
        let server = TestServer::start(&data);
        after.commits(3);
        assert_caught_up(&after, &server);
    }
}

#[test]
fn one_cut_after_the_other() {
    let Room {
        server,
        primary,
        _dir,
    } = served(10);
    let mut second = lose(&primary, 8, 2, "second-mycelite");
    second.commits(3);
    assert_caught_up(&second, &server);
    // All that was recorded on timeline 2 is lost again, and some of timeline 1 was never known to be lost.
    let mut third = lose(&primary, 8, 3, "third-mycelite");
    third.commits(1);
    assert_caught_up(&third, &server);
    let mut fourth = lose(&third, 9, 4, "fourth-mycelite");
    // Three boots and no network.
    fourth.commits(2);
    fourth.timeline = 5;
    fourth.commits(1);
    assert_caught_up(&fourth, &server);
    let mut fifth = lose(&fourth, 10, 6, "fifth-mycelite");
    fifth.commits(1);
    fifth.timeline = 7;
    fifth.commits(1);
    assert_caught_up(&fifth, &server);
    let tails = [primary.records(8), second.records(8), fourth.records(10)];
    assert_parked(&server.log("app"), &tails);
}

#[test]
fn a_replica_that_was_not_ahead_just_goes_on() {
    for known in [0, 4, 8] {
        let Room {
            server,
            primary,
            _dir,
        } = room(12);
        let records = primary.records(0);
        if known > 0 {
            server.append("app", primary.id(), Pos::ZERO, &records[..known].concat());
        }
        let mut after = lose(&primary, 8, 2, "after-mycelite");
        after.commits(3);
        assert_caught_up(&after, &server);
        assert!(parked::list(&server.log("app")).is_empty());
    }
}

#[test]
fn what_does_not_begin_a_newer_timeline_in_the_history_is_refused() {
    let Room {
        server,
        primary,
        _dir,
    } = served(12);
    let log = server.log("app");
    let before = raw_records(&log, 0);
    let refuse = |status: u16, after: Pos, raw: &[u8], says: &str| {
        let answer = server.append("app", primary.id(), after, raw);
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(answer.text().contains(says), "{}", answer.text());
        assert_eq!(answer.txid(), 12);
        assert!(raw_records(&log, 0) == before);
        assert_parked(&log, &[]);
    };
    // Two primaries.
    let mut same = lose(&primary, 8, 1, "same-mycelite");
    same.commits(1);
    refuse(
        412,
        primary.pos_at(8),
        &same.records(8)[0],
        "newer timeline than 1",
    );
    assert_eq!(push(&same, &server).state, "diverged");
    let mut newer = lose(&primary, 8, 2, "newer-mycelite");
    newer.commits(2);
    let records = newer.records(8);
    // A place where this log never was.
    let strange = Pos {
        timeline: mycelite_journal::Timeline(2),
        ..primary.pos_at(8)
    };
    refuse(412, strange, &records[0], "the log ends at");
    let strange = Pos {
        checksum: primary.pos_at(7).checksum,
        ..primary.pos_at(8)
    };
    refuse(412, strange, &records[0], "the log ends at");
    refuse(412, newer.pos(), &records[0], "the log ends at");
    // Not the record that follows.
    refuse(412, primary.pos_at(8), &records[1], "newer timeline than 1");
    refuse(412, primary.pos_at(7), &records[0], "newer timeline than 1");
    refuse(412, primary.pos_at(8), b"", "the log ends at");
    // It breaks off, or is damaged: nothing is given up for that.
    let cut = &records[0][..records[0].len() - 1];
    refuse(400, primary.pos_at(8), cut, "bad record");
    refuse(400, primary.pos_at(8), &records[0][..50], "bad record");
    let mut bad = records[0].clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    refuse(400, primary.pos_at(8), &bad, "bad record");
    refuse(400, primary.pos_at(8), &[7; 300], "bad record");
    assert_applied(&server, "app", 12, &primary.image);

    // The first copy that comes with a timeline has it; another one with the same is refused.
    assert_caught_up(&newer, &server);
    let mut other = lose(&primary, 7, 2, "other-mycelite");
    other.commits(4);
    let status = push(&other, &server);
    assert_eq!(status.state, "diverged", "{}", status.last_error);
    // And so is who lives on on the old one.
    let status = push(&primary, &server);
    assert_eq!(status.state, "diverged", "{}", status.last_error);
    assert_applied(&server, "app", 10, &newer.image);
    assert_parked(&log, &[primary.records(8)]);
}

#[test]
fn a_good_beginning_of_a_batch_counts_even_if_the_rest_is_bad() {
    let Room {
        server,
        primary,
        _dir,
    } = served(12);
    let mut after = lose(&primary, 8, 2, "after-mycelite");
    after.commits(3);
    let mut raw = after.records(8).concat();
    raw.truncate(raw.len() - 1);
    let answer = server.append("app", after.id(), primary.pos_at(8), &raw);
    assert_eq!((answer.status, answer.txid()), (400, 10));
    assert_parked(&server.log("app"), &[primary.records(8)]);
    assert_caught_up(&after, &server);
}

#[test]
fn the_server_says_where_it_was() {
    let Room {
        server,
        primary,
        _dir,
    } = served(5);
    for txid in 0..=5 {
        let answer = server.get(&format!("/v1/databases/app/pos?txid={txid}"));
        assert_eq!((answer.status, answer.txid()), (200, txid));
        let checksum = answer.json()["checksum"].as_str().unwrap().to_string();
        assert_eq!(checksum, primary.pos_at(txid).checksum.to_string());
    }
    for (query, status) in [
        ("app/pos?txid=6", 404),
        ("app/pos?txid=x", 400),
        ("app/pos?tx=1", 400),
        ("other/pos?txid=1", 404),
    ] {
        let answer = server.get(&format!("/v1/databases/{query}"));
        assert_eq!(answer.status, status, "{query}: {}", answer.text());
    }
}

/// A server that died at each step finds things half done; it, or the next request, finishes them.
#[test]
fn each_step_may_be_the_last_of_a_server() {
    for step in ["copying", "parked", "noted", "cut"] {
        let Room {
            server,
            primary,
            _dir,
        } = served(12);
        let (data, log_dir) = (server.data.clone(), server.log("app"));
        server.stop();
        let (from, head) = (primary.pos_at(8), primary.pos());
        if step == "copying" {
            for name in ["parked", "parked/new", "parked/incoming"] {
                std::fs::create_dir(log_dir.join(name)).unwrap();
            }
            std::fs::write(log_dir.join("parked/new/meta"), "half").unwrap();
            std::fs::write(log_dir.join("parked/incoming/meta"), "half").unwrap();
        } else {
            parked::park(&log_dir, primary.id(), from, head).unwrap();
        }
        if step == "noted" {
            let first = primary.pos_at(9);
            let cut = Cut {
                id: primary.id(),
                first,
            };
            std::fs::write(log_dir.join("cut"), cut.encode()).unwrap();
        }
        if step == "cut" {
            let mut log = Log::open(Arc::new(FileStorage::new(&log_dir))).unwrap();
            log.truncate(from).unwrap();
        }
        let server = TestServer::start(&data);
        if step == "noted" || step == "cut" {
            // What is cut off is not acknowledged any more, and the file goes back by itself.
            assert_applied(&server, "app", 8, &primary.images[8]);
        } else {
            assert_applied(&server, "app", 12, &primary.image);
        }
        let mut after = lose(&primary, 8, 2, "after-mycelite");
        after.commits(2);
        assert_caught_up(&after, &server);
        assert_parked(&log_dir, &[primary.records(8)]);
    }
}

#[test]
fn what_is_parked_is_not_parked_twice() {
    let Room {
        server,
        primary,
        _dir,
    } = served(12);
    let (log_dir, id) = (server.log("app"), primary.id());
    let park = |from, to| {
        let (from, to) = (primary.pos_at(from), primary.pos_at(to));
        parked::park(&log_dir, id, from, to).map(|tail| tail.path)
    };
    let first = park(8, 12).unwrap();
    assert_eq!(park(8, 12).unwrap(), first);
    assert_eq!(park(8, 11).unwrap(), first);
    let longer = park(7, 12).unwrap();
    assert_ne!(longer, first);
    let tails = [primary.records(8), primary.records(7)];
    assert_parked(&log_dir, &tails);
    // Nothing is parked in part.
    let segment = log_dir.join("00000000000000000001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    let last = bytes.len() - 100;
    bytes[last] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let error = park(6, 12).unwrap_err();
    assert!(error.to_string().contains("bad record"), "{error}");
    assert_parked(&log_dir, &tails);
}

#[test]
fn a_name_with_a_parked_tail_is_taken() {
    let Room {
        server,
        primary,
        _dir,
    } = served(3);
    let data = server.data.clone();
    let log_dir = server.log("app");
    server.stop();
    parked::park(&log_dir, primary.id(), Pos::ZERO, primary.pos()).unwrap();
    let mut log = Log::open(Arc::new(FileStorage::new(&log_dir))).unwrap();
    log.truncate(Pos::ZERO).unwrap();
    drop(log);
    let server = TestServer::start(&data);
    let mut other = Primary::new(primary.dir.with_file_name("other-mycelite"), 9);
    other.commits(1);
    let answer = server.append("app", other.id(), Pos::ZERO, &other.records(0).concat());
    assert_eq!(answer.status, 409, "{}", answer.text());
    let mut after = lose(&primary, 0, 2, "after-mycelite");
    after.commits(2);
    assert_caught_up(&after, &server);
    assert_parked(&log_dir, &[primary.records(0)]);
}
