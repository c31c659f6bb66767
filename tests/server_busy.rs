//! The server with much to do at once: many databases, several pushers of one, readers of the files.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;
mod netkit;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mycelite::ship::{ShipOptions, Shipper};
use mycelite_journal::Pos;
use netkit::*;

#[test]
fn many_databases_share_few_appliers() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::limited(&dir.path().join("data"), |limits| limits.appliers_max = 2);
    let mut primaries: Vec<Primary> = (0..12)
        .map(|id| Primary::new(dir.path().join(format!("p{id}-mycelite")), id))
        .collect();
    let shippers: Vec<Shipper> = primaries
        .iter()
        .enumerate()
        .map(|(id, primary)| {
            let url = server.url(&format!("db{id}"));
            Shipper::new(ShipOptions::new(&primary.dir, vec![url]))
        })
        .collect();
    for _ in 0..3 {
        for (primary, shipper) in primaries.iter_mut().zip(&shippers) {
            primary.commits(5);
            shipper.wake();
        }
    }
    for (id, primary) in primaries.iter().enumerate() {
        assert_applied(&server, &format!("db{id}"), 15, &primary.image);
    }
    // And all of them again after a restart, before anyone pushes.
    let data = server.data.clone();
    shippers
        .iter()
        .for_each(|shipper| shipper.stop(Duration::from_secs(5)));
    server.stop();
    for id in 0..12 {
        std::fs::remove_file(data.join(format!("db{id}.db"))).unwrap();
    }
    let server = TestServer::limited(&data, |limits| limits.appliers_max = 2);
    for (id, primary) in primaries.iter().enumerate() {
        assert_applied(&server, &format!("db{id}"), 15, &primary.image);
    }
}

#[test]
fn of_several_pushes_of_the_same_records_one_counts() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(&dir.path().join("data"));
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    for round in 0..10_u64 {
        let after = primary.pos();
        primary.commits(3);
        let body = zstd(&primary.records(round * 3).concat());
        let start = Barrier::new(6);
        let answers: Vec<(u16, u64)> = std::thread::scope(|scope| {
            let push = || {
                start.wait();
                let answer = append(server.addr, "app", primary.id(), after, &body);
                (answer.status, answer.txid())
            };
            let pushers: Vec<_> = (0..6).map(|_| scope.spawn(push)).collect();
            pushers
                .into_iter()
                .map(|pusher| pusher.join().unwrap())
                .collect()
        });
        let head = primary.pos().txid.0;
        assert_eq!(
            answers
                .iter()
                .filter(|answer| **answer == (200, head))
                .count(),
            1,
            "{answers:?}"
        );
        assert_eq!(
            answers
                .iter()
                .filter(|answer| **answer == (412, head))
                .count(),
            5,
            "{answers:?}"
        );
    }
    assert_applied(&server, "app", 30, &primary.image);
}

#[test]
fn a_reader_delays_the_tidying_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::limited(&dir.path().join("data"), |limits| {
        limits.applier_idle = Duration::from_millis(300);
    });
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(5);
    let shipper = Shipper::new(ShipOptions::new(&primary.dir, vec![server.url("app")]));
    assert!(shipper.flush(Duration::from_secs(60)));
    assert_applied(&server, "app", 5, &primary.image);

    let reader = common::open_plain(&server.db("app"));
    let rows = || {
        reader
            .query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0))
            .unwrap()
    };
    reader.execute_batch("BEGIN").unwrap();
    let before = rows();
    primary.commits(5);
    assert!(shipper.flush(Duration::from_secs(60)));
    eventually("a reader keeps records from being applied", || {
        server.get("/v1/databases/app").json()["applied_txid"] == 10
    });
    // Longer than an applier without a reader would stay.
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(rows(), before, "the reader's snapshot moved");
    reader.execute_batch("COMMIT").unwrap();
    assert_eq!(rows(), before + 5);
    assert_applied(&server, "app", 10, &primary.image);
}

#[test]
fn readers_see_whole_transactions_while_records_stream_in() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(&dir.path().join("data"));
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(1);
    let shipper = Shipper::new(ShipOptions::new(&primary.dir, vec![server.url("app")]));
    assert!(shipper.flush(Duration::from_secs(60)));
    assert_applied(&server, "app", 1, &primary.image);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let reader = common::open_plain(&server.db("app"));
            let (mut last, mut reads) = (0, 0);
            let mut ends = false;
            while !ends {
                // Asked before the look: the last one sees the end.
                ends = done.load(Ordering::SeqCst);
                let sql = "SELECT count(*), max(id) FROM t";
                let (rows, max): (i64, i64) = reader
                    .query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))
                    .unwrap();
                assert_eq!(rows, max, "a torn state");
                assert!(rows >= last, "the reader went back");
                (last, reads) = (rows, reads + 1);
            }
            (last, reads)
        });
        for _ in 0..150 {
            primary.commit(1);
            shipper.wake();
        }
        assert!(shipper.flush(Duration::from_secs(60)));
        eventually("not all is applied", || {
            server.get("/v1/databases/app").json()["applied_txid"] == 151
        });
        done.store(true, Ordering::SeqCst);
        let (last, reads) = reading.join().unwrap();
        assert_eq!(last, 151);
        println!("{reads} reads");
    });
    let sql = "PRAGMA integrity_check";
    let check: String = common::open_plain(&server.db("app"))
        .query_row(sql, [], |row| row.get(0))
        .unwrap();
    assert_eq!(check, "ok");
    assert_applied(&server, "app", 151, &primary.image);
}

#[test]
fn a_pusher_that_hangs_up_does_not_keep_its_records_out_of_the_file() {
    let Room {
        server,
        primary,
        _dir,
    } = room(6);
    let log = server.log("app");
    std::fs::create_dir(&log).unwrap();
    let lock = std::fs::File::create(log.join("lock")).unwrap();
    lock.lock().unwrap();
    let body = zstd(&primary.records(0).concat());
    let pusher = unfinished(&server, "app", &primary, &body, body.len());
    // All of it is there, and waits for the log; then nobody waits for the answer.
    std::thread::sleep(Duration::from_millis(300));
    drop(pusher);
    std::thread::sleep(Duration::from_millis(300));
    lock.unlock().unwrap();
    assert_applied(&server, "app", 6, &primary.image);
}

#[test]
fn what_a_power_cut_tore_is_gone_when_the_server_is_back() {
    let Room {
        server,
        primary,
        _dir: dir,
    } = room(5);
    let records = primary.records(0);
    let answer = server.append("app", primary.id(), Pos::ZERO, &records[..3].concat());
    assert_eq!(answer.txid(), 3, "{}", answer.text());
    let (log, data) = (server.log("app"), server.data.clone());
    server.stop();
    let segment = log.join("00000000000000000001.seg");
    let durable = std::fs::read(&segment).unwrap().len();
    let mark = std::fs::read(log.join("synced")).unwrap();
    let server = TestServer::start(&data);
    let rest = records[3..].concat();
    let answer = server.append("app", primary.id(), primary.pos_at(3), &rest);
    assert_eq!(answer.txid(), 5, "{}", answer.text());
    server.stop();
    // Of what was not synced the second half arrived, and of the file nothing.
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[durable + 200] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    std::fs::write(log.join("synced"), mark).unwrap();
    std::fs::remove_file(data.join("app.db")).unwrap();
    let _ = std::fs::remove_file(log.join("applied"));

    let server = TestServer::start(&data);
    eventually("the records before are not in the file", || {
        server.get("/v1/databases/app").json()["applied_txid"] == 3
    });
    assert_eq!(raw_records(&log, 0).len(), 3, "torn records are shown");
    assert_eq!(std::fs::read(&segment).unwrap().len(), durable);
    let answer = server.append("app", primary.id(), primary.pos_at(3), &rest);
    assert_eq!(answer.txid(), 5, "{}", answer.text());
    assert_applied(&server, "app", 5, &primary.image);
    drop(dir);
}
