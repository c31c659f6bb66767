//! Beginning with a snapshot: replicas that are older than what a server keeps, or have nothing, while the primary writes;
//! and servers that have less than a primary's log begins with (P1, P4, P6, P9).

use std::path::Path;
use std::time::{Duration, Instant};

use mycelite::maintain::MaintainLock;
use mycelite::parked;
use mycelite_journal::{Archive, FileStorage, FullSpeed, Keep, Txid, merge, seal};

use crate::clikit::{Serve, run, text, wait_for};
use crate::kit::{Follow, LONG, Line, Proxy, Readers, Writer, identical, once, own_address};
use crate::netkit::shorten::shorten;
use crate::netkit::{Primary, Random, TestServer, assert_applied};

fn writer(dir: &Path, url: &str) -> Writer {
    crate::common::load();
    Writer::new(dir.join("app.db"), "WAL", url)
}

fn commits(writer: &mut Writer, count: usize, bytes: usize) {
    for _ in 0..count {
        writer.commit(bytes);
    }
}

fn push(primary: &Writer, url: &str) {
    run(["push", text(&primary.db), "--to", url]).good();
}

fn settled(server: &Serve, image: &[u8]) {
    identical(&[&server.db("app")], image, LONG);
}

fn log_of(server: &Serve) -> std::path::PathBuf {
    crate::common::log_dir(&server.db("app"))
}

/// Each state that the log beside `db` keeps has the checksum that its record says.
fn prove(db: &Path) {
    let storage = std::sync::Arc::new(FileStorage::new(crate::common::log_dir(db)));
    let reader = mycelite_journal::Reader::open(storage.clone()).unwrap();
    let archive = Archive::open(storage).unwrap();
    let (first, last) = (
        reader.follows().unwrap().unwrap(),
        archive.head().unwrap().unwrap(),
    );
    assert!(first.txid.0 > 0 && first.txid < last);
    for txid in first.txid.0..=last.0 {
        let mut past = archive.as_of(Txid(txid)).unwrap();
        assert_eq!(past.scan_checksum().unwrap(), past.pos().checksum, "{txid}");
    }
}

/// A server of one database of which the records up to `base` are gone, and the image that it has.
fn short_server(dir: &Path, address: &str, base: u64, bytes: usize) -> (Serve, Writer, Vec<u8>) {
    let mut server = Serve::start_at(&dir.join("first"), address, &[]);
    let mut writer = writer(dir, &server.url("app"));
    commits(&mut writer, 60, bytes);
    let image = writer.close();
    settled(&server, &image);
    server.kill();
    shorten(&log_of(&server), base);
    (
        Serve::start_at(&dir.join("first"), address, &[]),
        writer,
        image,
    )
}

#[test]
fn a_follower_that_has_nothing_begins_with_a_snapshot() {
    let dir = crate::common::scratch();
    let (server, _, image) = short_server(dir.path(), "127.0.0.1:0", 40, 2000);
    let copy = dir.path().join("copy.db");
    once(&server.url("app"), &copy, &[]).good();
    identical(&[&copy], &image, Duration::ZERO);
    prove(&copy);
    // What is kept can be looked at there, too, and served to others.
    let archive = Archive::open(std::sync::Arc::new(FileStorage::new(
        crate::common::log_dir(&copy),
    )));
    let mut past = archive.unwrap().as_of(Txid(45)).unwrap();
    assert_eq!(past.scan_checksum().unwrap(), past.pos().checksum);
    let follow = format!("app={}", server.url("app"));
    let second = Serve::start(&dir.path().join("second"), &["--follow", &follow]);
    let third = dir.path().join("third.db");
    wait_for("the second server", LONG, || {
        std::fs::read(second.db("app")).ok().as_deref() == Some(&image[..])
    });
    once(&second.url("app"), &third, &[]).good();
    identical(&[&third], &image, Duration::ZERO);
    assert!(
        !crate::common::log_dir(&third)
            .join("bootstrap")
            .join("ready")
            .exists()
    );
}

#[test]
fn a_follower_that_is_older_than_the_history_goes_over_and_loses_nothing() {
    let dir = crate::common::scratch();
    let mut server = Serve::start(&dir.path().join("first"), &[]);
    let mut primary = writer(dir.path(), &server.url("app"));
    commits(&mut primary, 20, 2000);
    let copy = dir.path().join("copy.db");
    wait_for("the server", LONG, || server.db("app").exists());
    once(&server.url("app"), &copy, &[]).good();
    let old = mycelite_journal::Reader::open(std::sync::Arc::new(FileStorage::new(
        crate::common::log_dir(&copy),
    )))
    .unwrap()
    .head()
    .unwrap()
    .unwrap()
    .header
    .pos();
    commits(&mut primary, 40, 2000);
    let image = primary.close();
    settled(&server, &image);
    server.kill();
    let base = old.txid.0 + 10;
    shorten(&log_of(&server), base);
    let server = Serve::start(&dir.path().join("first"), &[]);

    let readers = Readers::start(&copy, dir.path());
    let said = once(&server.url("app"), &copy, &[]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert!(said.stderr.contains("parked"), "{}", said.stderr);
    readers.check();
    identical(&[&copy], &image, Duration::ZERO);
    prove(&copy);
    let tails = parked::list(&crate::common::log_dir(&copy));
    assert_eq!(tails.len(), 1, "{tails:?}");
    let mut tail = tails[0].reader().unwrap();
    assert_eq!(tail.head().unwrap().unwrap().header.pos(), old);
    // The file was one of ours, so there is nothing to keep of it.
    let names = std::fs::read_dir(crate::common::log_dir(&copy)).unwrap();
    let names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(
        !names.iter().any(|name| name.starts_with("parked-")),
        "{names:?}"
    );
}

/// The line breaks at random places, the follower is killed at random moments, the primary goes on: each attempt goes on
/// where the last one was cut.
#[test]
fn a_bootstrap_goes_on_after_any_cut_while_the_primary_writes() {
    let dir = crate::common::scratch();
    let address = own_address();
    let (server, mut primary, _) = short_server(dir.path(), &address, 40, 40_000);
    let mut random = Random(7);
    let mut cut = move || 2_000 + random.below(400_000);
    let proxy = Proxy::start(address.parse().unwrap(), move |n| match n {
        0..24 => Line::CutAfter(cut()),
        _ => Line::Good,
    });
    primary.open_again(&server.url("app"));
    let copy = dir.path().join("copy.db");
    let mut random = Random(11);
    let begin = Instant::now();
    for _ in 0..12 {
        let follower = Follow::start(&proxy.url("app"), &copy, &[]);
        let until = Instant::now() + Duration::from_millis(random.below(250));
        while Instant::now() < until {
            primary.commit(40);
            std::thread::sleep(Duration::from_millis(3));
        }
        follower.kill();
    }
    let follower = Follow::start(&proxy.url("app"), &copy, &[]);
    primary.load(200, Duration::from_secs(1), |_| {});
    let image = primary.close();
    settled(&server, &image);
    identical(&[&copy], &image, LONG * 3);
    assert!(follower.stop().code == 0);
    println!(
        "{} connections in {:.1?}",
        proxy.connections.load(std::sync::atomic::Ordering::Relaxed),
        begin.elapsed()
    );
    prove(&copy);
}

#[test]
fn another_database_or_an_older_one_is_refused_and_nothing_changes() {
    let dir = crate::common::scratch();
    let (server, _, image) = short_server(dir.path(), "127.0.0.1:0", 40, 200);
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let source = Serve::start(&other.join("data"), &[]);
    let mut primary = writer(&other, &source.url("app"));
    commits(&mut primary, 5, 200);
    let theirs = primary.close();
    settled(&source, &theirs);
    let copy = dir.path().join("copy.db");
    once(&source.url("app"), &copy, &[]).good();
    let said = once(&server.url("app"), &copy, &[]).bad(3);
    assert!(said.contains("another database"), "{said}");
    identical(&[&copy], &theirs, Duration::ZERO);
    assert!(parked::list(&crate::common::log_dir(&copy)).is_empty());
    drop(image);
}

#[test]
fn a_server_that_has_nothing_gets_a_snapshot_from_a_log_that_begins_later() {
    let dir = crate::common::scratch();
    let address = own_address();
    let mut server = Serve::start_at(&dir.path().join("first"), &address, &[]);
    let mut primary = writer(dir.path(), &server.url("app"));
    commits(&mut primary, 60, 20_000);
    let image = primary.close();
    settled(&server, &image);
    server.kill();
    let log = crate::common::log_dir(&primary.db);
    let at = shorten(&log, 50);
    // It has lost its disk.
    std::fs::remove_dir_all(dir.path().join("first")).unwrap();
    let server = Serve::start_at(&dir.path().join("first"), &address, &[]);
    let mut random = Random(3);
    let proxy = Proxy::start(address.parse().unwrap(), move |n| match n {
        0..6 => Line::CutRequestAfter(3_000 + random.below(900_000)),
        _ => Line::Good,
    });
    primary.open_again(&proxy.url("app"));
    commits(&mut primary, 30, 40);
    wait_for("the snapshot", LONG * 2, || server.db("app").exists());
    let image = primary.close();
    push(&primary, &proxy.url("app"));
    settled(&server, &image);
    let archive = Archive::open(std::sync::Arc::new(FileStorage::new(log_of(&server)))).unwrap();
    assert_eq!(archive.as_of(at.txid).unwrap().pos(), at);
    let tries = proxy.connections.load(std::sync::atomic::Ordering::Relaxed);
    assert!(tries > 3, "{tries} connections");

    // One that is behind the log, and known to be ours, gets it again; what it had is parked.
    drop(server);
    primary.open_again("http://127.0.0.1:9/app");
    commits(&mut primary, 30, 40);
    let image = primary.close();
    let at = shorten(&log, archive.head().unwrap().unwrap().0 + 20);
    let server = Serve::start_at(&dir.path().join("first"), &address, &[]);
    // Under another address this log does not remember it, and so does not know whether it was ever the same.
    let said = run(["push", text(&primary.db), "--to", &server.url("app")]).bad(3);
    assert!(said.contains("does not remember"), "{said}");
    push(&primary, &proxy.url("app"));
    settled(&server, &image);
    let tails = parked::list(&log_of(&server));
    assert_eq!(tails.len(), 1, "{tails:?}");
    assert!(archive.as_of(at.txid).is_ok());
    prove(&server.db("app"));
}

/// A server without a snapshot, whose oldest records are gone: whoever has nothing needs one that is yet to be made. A request
/// waits for that as long as `wait`.
fn server_without_a_snapshot(data: &Path, wait: Duration) -> (TestServer, Vec<u8>) {
    let dir = data.join("app.db-mycelite");
    let mut primary = Primary::new(&dir, 7);
    // A segment for each record.
    primary.log.set_segment_bytes_max(0);
    primary.commits(9);
    let image = primary.image.clone();
    drop(primary);
    std::fs::remove_file(dir.join("source.db")).unwrap();
    let server = TestServer::start(data);
    assert_applied(&server, "app", 9, &image);
    server.stop();
    let storage = std::sync::Arc::new(FileStorage::new(&dir));
    while seal(&*storage, Txid(u64::MAX)).unwrap().is_some() {}
    let archive = Archive::open(storage).unwrap();
    let none = &mut |_: &_, _: &_| false;
    merge(&archive, Txid(1), Txid(8), Keep::Some(none), &FullSpeed).unwrap();
    let server = TestServer::limited(data, |limits| limits.append_wait = wait);
    (server, image)
}

/// How many requests for a snapshot the server has put off.
fn put_off(server: &TestServer) -> u32 {
    let metrics = server.get("/metrics").text();
    let line = metrics
        .lines()
        .find(|line| line.contains("/snapshot\"") && line.contains("status=\"503\""));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

/// A server that seals a long history has no snapshot for a while, and says so: `--once` waits for it, as it is alive.
#[test]
fn once_outlasts_a_server_that_is_busy_sealing() {
    let (dir, copies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (server, image) = server_without_a_snapshot(dir.path(), Duration::from_millis(200));
    let sealing = MaintainLock::take(&server.log("app"), LONG).unwrap();
    let copy = copies.path().join("copy.db");
    let url = server.url("app").to_string();
    let mut follower = Follow::start(&url, &copy, &["--once"]);
    // More often than a server is asked that does not answer.
    wait_for("requests that are put off", LONG, || {
        put_off(&server) >= 7 || follower.child.try_wait().unwrap().is_some()
    });
    drop(sealing);
    let ran = follower.ended(LONG);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.stderr.contains("try again"),
        "it says why it waits: {ran:?}"
    );
    identical(&[&copy], &image, Duration::ZERO);
}

/// Nobody has to ask at the right moment: who was put off has set it going.
#[test]
fn a_snapshot_is_made_although_the_request_for_it_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = server_without_a_snapshot(dir.path(), Duration::from_millis(200));
    let sealing = MaintainLock::take(&server.log("app"), LONG).unwrap();
    let path = "/v1/databases/app/snapshot";
    for _ in 0..3 {
        let answer = server.get(path);
        assert_eq!(answer.status, 503, "{}", answer.text());
    }
    drop(sealing);
    let made = || {
        let mut names = std::fs::read_dir(server.log("app")).unwrap();
        names.any(|name| name.unwrap().path().extension() == Some("snapshot".as_ref()))
    };
    wait_for("the snapshot", LONG, made);
    wait_for("its answer", LONG, || server.get(path).status == 200);
}
