//! The server looks after the logs that it keeps: it seals, writes snapshots, compacts and drops by rule, while it receives,
//! and loses nothing that a rule keeps.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;
mod netkit;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mycelite::maintain::MaintainLock;
use mycelite_journal::{
    Archive, FileStorage, Txid, parse_merged_name, parse_sealed_name, parse_segment_name,
    parse_snapshot_name, verify_file, verify_states,
};
use netkit::*;

/// What it waits for at most.
const PATIENCE: Duration = Duration::from_secs(120);
const LOG_BYTES_MAX: u64 = 24 << 20;
/// What comes after a round stays until a segment is full.
const SEGMENT_BYTES: u64 = 17 << 20;
/// Tells the process that has the rules as settings.
const CHILD: &str = "SERVER_MAINTAIN_CHILD";

/// The files of a log, by kind.
#[derive(Debug, Default)]
struct Files {
    raw: usize,
    sealed: usize,
    merged: usize,
    snapshots: usize,
    bytes: u64,
    /// The last transaction of the oldest sealed segment.
    sealed_upto: Option<Txid>,
}

fn files(log: &Path) -> Files {
    let mut files = Files::default();
    for entry in std::fs::read_dir(log).into_iter().flatten() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        let name = name.to_str().unwrap();
        let kind = match name {
            _ if parse_segment_name(name).is_some() => &mut files.raw,
            _ if parse_sealed_name(name).is_some() => &mut files.sealed,
            _ if parse_merged_name(name).is_some() => &mut files.merged,
            _ if parse_snapshot_name(name).is_some() => &mut files.snapshots,
            _ => continue,
        };
        *kind += 1;
        if let Some((_, last)) = parse_sealed_name(name) {
            files.sealed_upto = Some(files.sealed_upto.map_or(last, |upto| upto.min(last)));
        }
        files.bytes += entry.metadata().map_or(0, |data| data.len());
    }
    files
}

#[track_caller]
fn until(log: &Path, what: &str, is_so: impl Fn(&Files) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so(&files(log)) {
        let now = files(log);
        assert!(Instant::now() < deadline, "not {what}: {now:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn serve(data: &Path, look_every: Duration) -> TestServer {
    TestServer::limited(data, |limits| limits.look_every = look_every)
}

/// A primary in rollback mode, whose file is its image after each commit.
struct Writer {
    db: rusqlite::Connection,
    path: std::path::PathBuf,
    /// States with their images.
    images: Vec<(u64, Vec<u8>)>,
}

impl Writer {
    fn new(path: &Path, server: &TestServer) -> Writer {
        let replica = format!("&replica={}", server.url("app"));
        let db = common::open(path, &replica);
        db.execute_batch(
            "PRAGMA synchronous = OFF; CREATE TABLE t(id INTEGER PRIMARY KEY, b);
             INSERT INTO t VALUES(1, randomblob(600000)), (2, randomblob(600000));",
        )
        .unwrap();
        Writer {
            db,
            path: path.to_path_buf(),
            images: Vec::new(),
        }
    }

    /// So many commits of 600 kB each; every third state is kept for comparison.
    fn commits(&mut self, count: usize) {
        for number in 0..count {
            self.db
                .execute(
                    "UPDATE t SET b = randomblob(600000) WHERE id = 1 + ?1 % 2",
                    [number as i64],
                )
                .unwrap();
            if number % 3 == 0 || number + 1 == count {
                let txid: i64 = self
                    .db
                    .query_row("SELECT mycelite_txid()", [], |row| row.get(0))
                    .unwrap();
                self.images
                    .push((txid as u64, std::fs::read(&self.path).unwrap()));
            }
        }
    }

    fn last(&self) -> &(u64, Vec<u8>) {
        self.images.last().unwrap()
    }
}

/// Every file of the log proves itself, and the states that it has.
fn assert_proved(log: &Path) {
    let storage = Arc::new(FileStorage::new(log));
    let archive = Archive::open(storage.clone()).unwrap();
    for entry in std::fs::read_dir(log).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if parse_merged_name(&name).is_some() || parse_sealed_name(&name).is_some() {
            verify_file(&*storage, &name).unwrap();
            verify_states(&archive, &name).unwrap();
        } else if parse_snapshot_name(&name).is_some() {
            verify_file(&*storage, &name).unwrap();
        }
    }
}

/// Runs the named test once more, in a process of its own with these settings: only there can they differ from those of the other
/// tests. Returns whether this is that process.
fn with_settings(name: &str, settings: &[(&str, String)]) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let status = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .envs(settings.iter().map(|(name, value)| (name, value)))
        .status()
        .unwrap();
    assert!(status.success());
    false
}

/// Each saved state is what it was, or is said to be gone; some are gone, the last one is not, and writing goes on.
fn assert_shortened(server: &TestServer, writer: &mut Writer) {
    let log = server.log("app");
    // Until it is dropped, nothing goes.
    let standing = MaintainLock::take(&log, PATIENCE).unwrap();
    assert_proved(&log);
    let mut gone = 0;
    for (txid, image) in &writer.images {
        let answer = server.get(&format!("/v1/databases/app/file?txid={txid}"));
        match answer.status {
            200 => assert_eq!(&answer.body, image, "transaction {txid}"),
            404 | 410 => gone += 1,
            other => panic!("transaction {txid}: {other}, {}", answer.text()),
        }
    }
    assert!(gone > 1, "no rule took anything");
    let (txid, image) = writer.last();
    let answer = server.get(&format!("/v1/databases/app/file?txid={txid}"));
    assert_eq!((answer.status, &answer.body), (200, image));
    // Nothing is missing behind the oldest state that stays.
    let archive = Archive::open(Arc::new(FileStorage::new(&log))).unwrap();
    assert_eq!(archive.head().unwrap(), Some(Txid(*txid)));
    drop(standing);
    writer.commits(3);
    let (txid, image) = writer.last();
    assert_applied(server, "app", *txid, image);
}

#[test]
fn a_log_that_grows_old_is_sealed_and_thinned() {
    let keep_all = Duration::from_secs(2);
    let settings = [("MYCELITE_KEEP_ALL", format!("{}s", keep_all.as_secs()))];
    if !with_settings("a_log_that_grows_old_is_sealed_and_thinned", &settings) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = serve(&dir.path().join("server"), Duration::from_millis(50));
    let mut writer = Writer::new(&dir.path().join("app.db"), &server);
    let log = server.log("app");
    writer.commits(60);
    until(&log, "with a snapshot", |now| now.snapshots > 0);
    // Beside what is being received.
    let deadline = Instant::now() + PATIENCE;
    while files(&log).merged == 0 {
        assert!(Instant::now() < deadline, "not merged: {:?}", files(&log));
        writer.commits(6);
        std::thread::sleep(Duration::from_millis(250));
    }
    // A round comes when a segment is full, so that what is old by then is thinned, however fast all was written.
    let old = Txid(writer.last().0);
    std::thread::sleep(keep_all);
    writer.commits(60);
    let (txid, image) = writer.last();
    assert_applied(&server, "app", *txid, image);
    until(&log, "thinned", |now| {
        now.raw == 1 && now.sealed_upto.is_none_or(|upto| upto > old)
    });
    assert_shortened(&server, &mut writer);
}

#[test]
fn a_log_that_grows_long_is_shortened() {
    let settings = [("MYCELITE_LOG_BYTES_MAX", LOG_BYTES_MAX.to_string())];
    if !with_settings("a_log_that_grows_long_is_shortened", &settings) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = serve(&dir.path().join("server"), Duration::from_millis(50));
    let mut writer = Writer::new(&dir.path().join("app.db"), &server);
    let log = server.log("app");
    writer.commits(150);
    let (txid, image) = writer.last();
    assert_applied(&server, "app", *txid, image);
    until(&log, "short", |now| {
        now.bytes <= LOG_BYTES_MAX + SEGMENT_BYTES && now.raw == 1
    });
    assert_shortened(&server, &mut writer);
}

#[test]
fn a_database_that_nobody_asks_for_is_looked_after() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("server");
    let server = serve(&data, Duration::from_secs(3600));
    let mut writer = Writer::new(&dir.path().join("app.db"), &server);
    writer.commits(60);
    let (txid, image) = writer.last().clone();
    assert_applied(&server, "app", txid, &image);
    let log = server.log("app");
    drop(writer.db);
    server.stop();
    let before = files(&log);
    assert!(before.raw > 1 && before.sealed == 0, "{before:?}");

    let server = serve(&data, Duration::from_millis(50));
    until(&log, "sealed", |now| now.raw == 1 && now.sealed > 0);
    assert_applied(&server, "app", txid, &image);
    for (txid, image) in &writer.images {
        let answer = server.get(&format!("/v1/databases/app/file?txid={txid}"));
        assert_eq!((answer.status, &answer.body), (200, image), "{txid}");
    }
}

/// Whoever makes a snapshot, or compacts by hand, ends the round that meets him; what it had to do is not left for good.
#[test]
fn a_round_that_somebody_was_in_the_way_of_is_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("app.db-mycelite");
    let mut primary = Primary::new(&log, 7);
    // A segment for each record.
    primary.log.set_segment_bytes_max(0);
    primary.commits(6);
    std::fs::remove_file(log.join("source.db")).unwrap();
    let in_the_way = MaintainLock::take(&log, PATIENCE).unwrap();
    let server = serve(dir.path(), Duration::from_millis(10));
    assert_applied(&server, "app", 6, &primary.image);
    // Time for a round that finds him; without one, nothing is proved.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(files(&log).sealed, 0);
    drop(in_the_way);
    until(&log, "sealed", |now| now.raw == 1 && now.sealed > 0);
}
