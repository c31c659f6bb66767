//! The server over real HTTP: what it stores, what it hands out, and how it survives its end.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;
mod netkit;

use std::io::Write;
use std::time::Duration;

use mycelite::proto::{Handshake, TYPE_HANDSHAKE};
use mycelite_journal::Pos;
use netkit::*;

#[test]
fn appended_records_become_a_file() {
    let Room {
        server,
        primary,
        _dir,
    } = room(20);
    for txid in 0..20 {
        let records = primary.records(txid);
        let answer = server.append("app", primary.id(), primary.pos_at(txid), &records[0]);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.txid(), txid + 1);
    }
    assert_applied(&server, "app", 20, &primary.image);
    assert_eq!(raw_records(&server.log("app"), 0), primary.records(0));
    let pos = server.get("/v1/databases/app/pos").json();
    assert_eq!(pos["txid"], 20);
    assert_eq!(pos["checksum"], primary.pos().checksum.to_string());
}

#[test]
fn a_batch_is_one_request() {
    let Room {
        server,
        primary,
        _dir,
    } = room(200);
    let answer = server.append("app", primary.id(), Pos::ZERO, &primary.records(0).concat());
    assert_eq!((answer.status, answer.txid()), (200, 200));
    assert_applied(&server, "app", 200, &primary.image);
    let empty = server.append("app", primary.id(), primary.pos(), b"");
    assert_eq!((empty.status, empty.txid()), (200, 200));
}

#[test]
fn what_does_not_fit_is_answered_with_the_position() {
    let Room {
        server,
        primary,
        _dir,
    } = room(5);
    let records = primary.records(0);
    assert_eq!(
        server
            .append("app", primary.id(), Pos::ZERO, &records[..3].concat())
            .txid(),
        3
    );
    let third = primary.pos_at(3);
    let wrong_sum = Pos {
        checksum: primary.pos_at(2).checksum,
        ..third
    };
    let wrong_line = Pos {
        timeline: mycelite_journal::Timeline(2),
        ..third
    };
    for after in [
        Pos::ZERO,
        primary.pos_at(1),
        primary.pos_at(4),
        primary.pos(),
        wrong_sum,
        wrong_line,
    ] {
        let answer = server.append("app", primary.id(), after, &records[3]);
        assert_eq!(answer.status, 412, "{after}: {}", answer.text());
        assert_eq!(answer.json()["pos"]["checksum"], third.checksum.to_string());
        assert_eq!(answer.txid(), 3);
    }
    // The position fits and the record does not.
    for wrong in [&records[0], &records[2], &records[4]] {
        let answer = server.append("app", primary.id(), third, wrong);
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert_eq!(answer.txid(), 3);
    }
    assert_eq!(
        server
            .append("app", primary.id(), third, &records[3..].concat())
            .txid(),
        5
    );
    assert_applied(&server, "app", 5, &primary.image);
}

#[test]
fn another_database_is_refused() {
    let Room {
        server,
        primary,
        _dir,
    } = room(3);
    assert_eq!(
        server
            .append("app", primary.id(), Pos::ZERO, &primary.records(0).concat())
            .status,
        200
    );
    let mut other = Primary::new(_dir.path().join("other-mycelite"), 9);
    other.commits(2);
    for after in [Pos::ZERO, primary.pos()] {
        let answer = server.append("app", other.id(), after, &other.records(0).concat());
        assert_eq!(answer.status, 409, "{}", answer.text());
        assert!(
            answer.json()["error"]
                .as_str()
                .unwrap()
                .contains(&other.id().to_string())
        );
    }
    assert_eq!(server.get("/v1/databases/app/pos").txid(), 3);
}

#[test]
fn whole_records_before_a_cut_are_kept() {
    let Room {
        server,
        primary,
        _dir,
    } = room(3);
    let records = primary.records(0);
    let ends: Vec<usize> = records
        .iter()
        .scan(0, |at, record| {
            *at += record.len();
            Some(*at)
        })
        .collect();
    let raw = records.concat();
    for cut in (0..raw.len())
        .step_by(397)
        .chain(ends.iter().flat_map(|end| [end - 1, *end]))
    {
        let whole = ends.iter().filter(|end| **end <= cut).count() as u64;
        let at_boundary = cut == 0 || ends.contains(&cut);
        let name = format!("cut{cut}");
        let answer = server.append(&name, primary.id(), Pos::ZERO, &raw[..cut]);
        assert_eq!(
            answer.status,
            if at_boundary { 200 } else { 400 },
            "cut at {cut}: {}",
            answer.text()
        );
        assert_eq!(answer.txid(), whole, "cut at {cut}");
        // The same as a compressed stream that stops in the middle.
        let name = format!("torn{cut}");
        let body = zstd(&raw[..cut]);
        let answer = append(
            server.addr,
            &name,
            primary.id(),
            Pos::ZERO,
            &body[..body.len() - 1],
        );
        assert_eq!(answer.status, 400, "torn after {cut}: {}", answer.text());
        assert!(answer.txid() <= whole);
        // And both go on from there.
        let at = answer.txid();
        let rest = primary.records(at).concat();
        let answer = server.append(&name, primary.id(), primary.pos_at(at), &rest);
        assert_eq!(
            (answer.status, answer.txid()),
            (200, 3),
            "{}",
            answer.text()
        );
    }
}

#[test]
fn every_changed_byte_is_noticed() {
    let Room {
        server,
        primary,
        _dir,
    } = room(2);
    let records = primary.records(0);
    let first = records[0].len();
    let raw = records.concat();
    for at in (0..raw.len())
        .step_by(211)
        .chain([0, 8, 20, first - 1, first, raw.len() - 1])
    {
        let mut bad = raw.clone();
        bad[at] ^= 1 << (at % 8);
        let answer = server.append(&format!("flip{at}"), primary.id(), Pos::ZERO, &bad);
        assert_eq!(answer.status, 400, "byte {at}: {}", answer.text());
        assert_eq!(answer.txid(), u64::from(at >= first), "byte {at}");
    }
}

#[test]
fn everything_is_told() {
    let Room {
        server,
        primary,
        _dir,
    } = room(4);
    let handshake = |name: &str| {
        let path = format!("/v1/databases/{name}/pos");
        let answer = request(
            server.addr,
            "GET",
            &path,
            &[("accept", TYPE_HANDSHAKE)],
            b"",
        );
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type").unwrap(), TYPE_HANDSHAKE);
        Handshake::decode(&answer.body).unwrap()
    };
    assert_eq!(handshake("app").database, None);
    assert_eq!(server.get("/v1/databases/app/pos").status, 404);
    assert_eq!(
        server
            .append("app", primary.id(), Pos::ZERO, &primary.records(0).concat())
            .status,
        200
    );
    assert_applied(&server, "app", 4, &primary.image);
    let hello = handshake("app");
    assert_eq!(
        (hello.database, hello.pos(), hello.applied_txid),
        (Some([7; 16]), primary.pos(), 4)
    );
    assert_eq!(hello.page_size, 4096);

    let info = server.get("/v1/databases/app").json();
    assert_eq!(info["name"], "app");
    assert_eq!(info["id"], primary.id().to_string());
    assert_eq!(info["first_txid"], 1);
    assert_eq!(info["page_count"], primary.image.len() / PAGE);
    assert_eq!(info["state"], "ok");
    assert_eq!(
        info["log_bytes"],
        server
            .log("app")
            .join("00000000000000000001.seg")
            .metadata()
            .unwrap()
            .len()
    );
    assert_eq!(server.get("/v1/databases").json()["databases"][0], info);

    let metrics = server.get("/metrics").text();
    for line in [
        "mycelite_txid{database=\"app\"} 4".to_string(),
        "mycelite_applied_txid{database=\"app\"} 4".to_string(),
        format!(
            "mycelite_log_bytes{{database=\"app\"}} {}",
            info["log_bytes"]
        ),
        "mycelite_appended_records_total{database=\"app\"} 4".to_string(),
        "mycelite_http_requests_total{route=\"/v1/databases/{name}/log\",status=\"200\"} 1"
            .to_string(),
        "mycelite_http_requests_total{route=\"/v1/databases/{name}/pos\",status=\"404\"} 1"
            .to_string(),
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line}\n{metrics}");
    }
    let page = server.get("/");
    assert!(
        page.header("content-type")
            .unwrap()
            .starts_with("text/html")
    );
    assert!(page.text().contains(">app<"), "{}", page.text());
    for answer in [page, server.get("/healthz"), server.get("/nowhere")] {
        assert_eq!(answer.header("mycelite-protocol").as_deref(), Some("1"));
    }
}

#[test]
fn records_and_past_states_are_handed_out() {
    let Room {
        server,
        primary,
        _dir,
    } = room(30);
    server.append("app", primary.id(), Pos::ZERO, &primary.records(0).concat());
    for after in [0, 1, 17, 29, 30] {
        let answer = server.get(&format!("/v1/databases/app/log?after={after}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(
            answer.header("mycelite-head").unwrap(),
            primary.pos().to_string()
        );
        assert!(
            zstd::decode_all(&answer.body[..]).unwrap() == primary.records(after).concat(),
            "after {after}"
        );
    }
    for txid in [1, 2, 15, 30] {
        let answer = server.get(&format!("/v1/databases/app/file?txid={txid}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(
            answer.header("mycelite-pos").unwrap(),
            primary.pos_at(txid).to_string()
        );
        assert!(
            answer.body == primary.images[txid as usize],
            "transaction {txid}"
        );
    }
    let answer = server.get("/v1/databases/app/file?at=2200-01-01");
    assert!(answer.body == primary.image, "{}", answer.text());
    for (path, status) in [
        ("log?after=31", 404),
        ("log?after=x", 400),
        ("log?after=-1", 400),
        ("log?since=1", 400),
        ("log?follow=2", 501),
        ("file?txid=31", 404),
        ("file?txid=0", 400),
        ("file?txid=", 400),
        ("file?at=1971-01-01T00:00:00Z", 404),
        ("file?at=noon", 400),
        ("snapshot?txid=31", 404),
        ("snapshot?txid=0", 404),
    ] {
        let answer = server.get(&format!("/v1/databases/app/{path}"));
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        assert_eq!(answer.json()["error"].as_str().unwrap().lines().count(), 1);
    }
    assert_eq!(server.get("/v1/databases/other/file").status, 404);
    let left: Vec<_> = std::fs::read_dir(server.data.join(".mycelite-tmp"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn requests_in_flight_finish_at_shutdown() {
    let Room {
        server,
        primary,
        _dir,
    } = room(2);
    let body = zstd(&primary.records(0).concat());
    let mut stream = unfinished(&server, "app", &primary, &body, 10);
    eventually("the append has not begun", || server.log("app").exists());
    let (data, log) = (server.data.clone(), server.log("app"));
    let stopping = std::thread::spawn(move || server.stop());
    std::thread::sleep(Duration::from_millis(100));
    stream.write_all(&body[10..]).unwrap();
    assert_eq!(read_answer(&mut stream).status, 200);
    stopping.join().unwrap();
    assert_eq!(raw_records(&log, 0).len(), 2);
    // The directory is free again, and the file complete.
    let server = TestServer::start(&data);
    assert_applied(&server, "app", 2, &primary.image);
}

#[test]
fn a_restarted_server_applies_what_is_in_the_log() {
    let Room {
        server,
        primary,
        _dir,
    } = room(40);
    server.append(
        "app",
        primary.id(),
        Pos::ZERO,
        &primary.records(0)[..20].concat(),
    );
    assert_applied(&server, "app", 20, &primary.images[20]);
    let (data, db, log) = (server.data.clone(), server.db("app"), server.log("app"));
    server.stop();
    // As if it had been killed after storing more than it applied.
    let mut stored = mycelite_journal::Log::open(std::sync::Arc::new(
        mycelite_journal::FileStorage::new(&log),
    ))
    .unwrap();
    for record in primary.records(20) {
        stored
            .append_raw(&mut &record[..], &Default::default())
            .unwrap();
    }
    drop(stored);
    let server = TestServer::start(&data);
    eventually("the file does not catch up by itself", || {
        std::fs::read(&db).unwrap() == primary.image
    });
    assert_eq!(server.get("/v1/databases/app/pos").txid(), 40);
}

#[test]
fn child_server() {
    serve_as_child();
}

/// A server as the command line runs it, when called by the next test.
#[test]
fn signalled_server() {
    let Some(data) = role() else { return };
    load();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let options = mycelite::server::ServeOptions::new("127.0.0.1:0", data);
        let server = mycelite::server::Server::bind(options).await.unwrap();
        let shutdown = mycelite::server::shutdown_signal();
        println!("LISTENING {}", server.local_addr());
        server.run(shutdown).await.unwrap();
    });
}

#[test]
fn a_signal_ends_a_server_cleanly() {
    for signal in ["-TERM", "-INT"] {
        let dir = tempfile::tempdir().unwrap();
        let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
        primary.commits(50);
        let data = dir.path().join("data");
        let mut child = again("signalled_server", data.to_str().unwrap());
        let addr = listening(&mut child);
        // Time for the signal handlers, which are set when serving begins.
        eventually("the server does not answer", || {
            request(addr, "GET", "/healthz", &[], b"").status == 200
        });
        let raw = zstd(&primary.records(0).concat());
        assert_eq!(
            append(addr, "app", primary.id(), Pos::ZERO, &raw).status,
            200
        );
        let pid = child.id().to_string();
        let sent = std::process::Command::new("kill")
            .args([signal, &pid])
            .status();
        assert!(sent.unwrap().success());
        assert!(child.wait().unwrap().success(), "{signal}");
        // What was acknowledged is in the log; the file follows when the next server starts, if it had no time before.
        assert_eq!(
            raw_records(&data.join("app.db-mycelite"), 0),
            primary.records(0)
        );
        let server = TestServer::start(&data);
        assert_applied(&server, "app", 50, &primary.image);
    }
}

#[test]
fn killed_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(400);
    let records = primary.records(0);
    let positions: Vec<Pos> = (0..=400).map(|txid| primary.pos_at(txid)).collect();
    let mut random = Random(42);
    let mut acked = 0;
    let mut kills = 0;
    while acked < 400 {
        let server = ChildServer::start("child_server", &data, 0);
        let addr = server.addr;
        let pause = Duration::from_millis(5 + random.below(60));
        let killer = std::thread::spawn(move || {
            std::thread::sleep(pause);
            server.kill();
        });
        while acked < 400 {
            let until = (acked + 1 + random.below(8) as usize).min(400);
            let body = zstd(&records[acked..until].concat());
            let Some(answer) = try_append(addr, "app", primary.id(), positions[acked], &body)
            else {
                break;
            };
            let txid = answer.txid() as usize;
            match answer.status {
                200 => assert_eq!(txid, until),
                // Stored before the kill, and the answer lost with it; never the other way round.
                412 => assert!(txid > acked, "acknowledged {acked}, kept {txid}"),
                _ => panic!("{}", answer.text()),
            }
            acked = txid;
        }
        killer.join().unwrap();
        kills += 1;
        assert!(kills < 200, "no progress: {acked} of 400");
    }
    assert!(kills > 1, "nothing was killed");
    let server = TestServer::start(&data);
    assert_eq!(server.get("/v1/databases/app/pos").txid(), 400);
    assert_applied(&server, "app", 400, &primary.image);
    assert_eq!(raw_records(&server.log("app"), 0), records);
}
