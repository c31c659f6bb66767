//! The shipper against real servers: what arrives, with which threads, from which process.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;
mod netkit;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mycelite::proto::ReplicaUrl;
use mycelite::ship::{ShipOptions, Shipper, push_once};
use mycelite::status::ReplicaStatus;
use netkit::*;

const LONG: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(5);

fn options(primary: &Primary, replicas: &[ReplicaUrl]) -> ShipOptions {
    ShipOptions::new(&primary.dir, replicas.to_vec())
}

fn shipper(primary: &Primary, replicas: &[ReplicaUrl]) -> Shipper {
    Shipper::new(options(primary, replicas))
}

fn state(shipper: &Shipper) -> ReplicaStatus {
    shipper.status().remove(0)
}

#[test]
fn everything_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(&dir.path().join("data"));
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(300);
    let shipper = shipper(&primary, &[server.url("app")]);
    let before = state(&shipper);
    assert_eq!(
        (before.state.as_str(), before.acked_txid, before.lag_txids),
        ("idle", 0, 300)
    );
    assert!(before.lag_bytes > 300 * 2048, "{before:?}");

    assert!(shipper.flush(LONG), "{:?}", shipper.status());
    let after = state(&shipper);
    assert_eq!((after.state.as_str(), after.acked_txid), ("caught-up", 300));
    assert_eq!((after.lag_txids, after.lag_bytes, after.lag_ms), (0, 0, 0));
    assert_eq!(after.last_error, "");
    assert_applied(&server, "app", 300, &primary.image);

    // From now on each commit needs no more than a wake-up.
    for txid in 301..=320 {
        primary.commit(0);
        shipper.wake();
        eventually("a commit does not arrive", || {
            state(&shipper).acked_txid == txid
        });
    }
    assert_applied(&server, "app", 320, &primary.image);
    assert_eq!(raw_records(&server.log("app"), 0), primary.records(0));
    shipper.stop(STOP);
}

#[test]
fn a_log_that_does_not_exist_yet_is_nothing_to_send() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(&dir.path().join("data"));
    let shipper = Shipper::new(ShipOptions::new(
        dir.path().join("primary-mycelite"),
        vec![server.url("app")],
    ));
    assert!(shipper.flush(LONG));
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    assert!(shipper.flush(LONG));
    assert_eq!(server.get("/v1/databases/app/pos").status, 404);
    primary.commits(3);
    assert!(shipper.flush(LONG));
    assert_eq!(server.get("/v1/databases/app/pos").txid(), 3);
}

#[test]
fn without_replicas_nothing_starts() {
    alone("without_replicas_nothing_starts", || {
        let dir = tempfile::tempdir().unwrap();
        let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
        primary.commits(1);
        let shipper = shipper(&primary, &[]);
        shipper.wake();
        assert!(shipper.flush(Duration::ZERO));
        assert_eq!(shipper.status(), []);
        assert_eq!(our_threads(), [""; 0]);
        shipper.stop(STOP);
    });
}

#[test]
fn threads_come_when_woken_and_go_when_stopped() {
    alone("threads_come_when_woken_and_go_when_stopped", || {
        let dir = tempfile::tempdir().unwrap();
        let server = ChildServer::start("child_server", &dir.path().join("data"), 0);
        let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
        primary.commits(5);
        let replica = url(&format!("http://{}/app", server.addr));
        let first = shipper(&primary, std::slice::from_ref(&replica));
        first.status();
        assert_eq!(our_threads(), [""; 0], "a thread before anyone asked");
        let mut idle_files = 0;
        for round in 0..4 {
            assert!(first.flush(LONG));
            assert_eq!(our_threads(), ["mycelite-ship"]);
            first.stop(STOP);
            assert_eq!(our_threads(), [""; 0]);
            // The first runtime of a process opens what all later ones share.
            if round == 0 {
                idle_files = open_files();
            }
            assert_eq!(open_files(), idle_files, "files or sockets stay open");
        }
        // Dropping the handle ends the thread, too; and with nothing to do connections are given back.
        assert!(first.flush(LONG));
        eventually("an idle shipper keeps its files", || {
            open_files() == idle_files
        });
        assert_eq!(our_threads(), ["mycelite-ship"]);
        primary.commits(1);
        assert!(first.flush(LONG));
        drop(first);
        eventually("a thread stays", || our_threads().is_empty());

        // Also when the replica does not answer.
        let silent = Nonsense::start(|stream, _| hold(stream));
        let stuck = shipper(&primary, &[silent.url()]);
        assert!(!stuck.flush(Duration::from_millis(200)));
        let begin = Instant::now();
        stuck.stop(STOP);
        assert!(
            begin.elapsed() < Duration::from_secs(1),
            "{:?}",
            begin.elapsed()
        );
        assert_eq!(our_threads(), [""; 0]);
    });
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn child_server() {
    serve_as_child();
}

#[test]
fn a_killed_server_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    let mut server = ChildServer::start("child_server", &data, 0);
    let port = server.addr.port();
    let mut options = options(&primary, &[url(&format!("http://{}/app", server.addr))]);
    options.batch_bytes_max = 64 * 1024;
    let shipper = Shipper::new(options);
    let mut random = Random(3);
    for round in 0..6 {
        for _ in 0..40 {
            primary.commit(1);
            shipper.wake();
        }
        std::thread::sleep(Duration::from_millis(random.below(30)));
        server.kill();
        for _ in 0..10 {
            primary.commit(1);
            shipper.wake();
        }
        eventually("the failure does not show", || {
            let state = state(&shipper);
            state.state == "backing-off" && !state.last_error.is_empty() && state.lag_txids > 0
        });
        server = ChildServer::start("child_server", &data, port);
        eventually(&format!("round {round} is not resumed"), || {
            let state = state(&shipper);
            state.state == "caught-up" && state.lag_txids == 0
        });
    }
    assert!(shipper.flush(LONG), "{:?}", shipper.status());
    drop(server);
    assert_eq!(
        raw_records(&data.join("app.db-mycelite"), 0),
        primary.records(0)
    );
    let server = TestServer::start(&data);
    assert_applied(&server, "app", 300, &primary.image);
}

#[test]
fn several_replicas_do_not_wait_for_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(&dir.path().join("data"));
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(10);
    let silent = Nonsense::start(|stream, _| hold(stream));
    let dead = dead_port();
    let replicas = [silent.url(), server.url("one"), dead, server.url("two")];
    let shipper = shipper(&primary, &replicas);
    for txid in 10..30 {
        shipper.wake();
        eventually("a healthy replica waits for a sick one", || {
            let status = shipper.status();
            status[1].acked_txid == txid && status[3].acked_txid == txid
        });
        primary.commits(1);
    }
    assert!(!shipper.flush(Duration::from_millis(500)));
    let status = shipper.status();
    assert_eq!(status[0].acked_txid, 0);
    assert_eq!(status[2].state, "backing-off");
    assert!(
        status[2].last_error.contains("connection refused"),
        "{status:?}"
    );
    shipper.stop(STOP);
}

#[test]
fn another_process_ships() {
    if let Some(role) = role() {
        let (data, log) = role.split_once(' ').unwrap();
        let shipper = Shipper::new(ShipOptions::new(log, vec![url(data)]));
        assert!(!shipper.flush(Duration::from_millis(300)));
        println!("STATE {}", state(&shipper).state);
        assert!(shipper.flush(LONG), "{:?}", shipper.status());
        println!("STATE {}", state(&shipper).state);
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(3);
    // The first shipper hangs in a request to a gate that opens later.
    let server = TestServer::start(&dir.path().join("data"));
    let open = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let gate = gate(server.addr, Arc::clone(&open));
    let mine = shipper(&primary, &[gate.url()]);
    mine.wake();
    eventually("the first does not connect", || {
        gate.connections.load(Ordering::SeqCst) == 1
    });
    let child = again(
        "another_process_ships",
        &format!("{} {}", gate.url(), primary.dir.display()),
    );
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(
        gate.connections.load(Ordering::SeqCst),
        1,
        "two processes ship at once"
    );
    open.store(true, Ordering::SeqCst);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    let states: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_once("STATE "))
        .map(|(_, state)| state)
        .collect();
    assert_eq!(states, ["elsewhere", "caught-up"]);
    assert!(mine.flush(LONG));
    assert_eq!(raw_records(&server.log("app"), 0), primary.records(0));
}

#[test]
fn two_processes_that_write_and_ship() {
    if let Some(role) = role() {
        let (data, log) = role.split_once(' ').unwrap();
        let shipper = Shipper::new(ShipOptions::new(log, vec![url(data)]));
        let lock = std::fs::File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(Path::new(log).join("lock"))
            .unwrap();
        let storage = Arc::new(mycelite_journal::FileStorage::new(log));
        let mut stored = mycelite_journal::Log::open(storage).unwrap();
        for _ in 0..100 {
            lock.lock().unwrap();
            stored.refresh().unwrap();
            let pages = stored.head().page_count;
            let size = mycelite_journal::PageSize::new(PAGE as u32).unwrap();
            let mut record = stored
                .begin(mycelite_journal::Draft::new(size, pages + 1, now_us()))
                .unwrap();
            record
                .patch(pages + 1, None, &vec![pages as u8; PAGE])
                .unwrap();
            record.commit().unwrap();
            lock.unlock().unwrap();
            shipper.wake();
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(shipper.flush(LONG), "{:?}", shipper.status());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(&dir.path().join("data"));
    let primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    let role = format!("{} {}", server.url("app"), primary.dir.display());
    let children: Vec<_> = (0..2)
        .map(|_| again("two_processes_that_write_and_ship", &role))
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
    assert_eq!(server.get("/v1/databases/app/pos").txid(), 200);
    assert_eq!(raw_records(&server.log("app"), 0), primary.records(0));
}

#[test]
fn a_forked_child_ships_by_itself() {
    alone("a_forked_child_ships_by_itself", || {
        let dir = tempfile::tempdir().unwrap();
        let server = ChildServer::start("child_server", &dir.path().join("data"), 0);
        let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
        primary.commits(5);
        let shipper = shipper(&primary, &[url(&format!("http://{}/app", server.addr))]);
        assert!(shipper.flush(LONG));
        for _ in 0..5 {
            primary.commits(1);
            let code = in_fork(|| {
                let sent = shipper.flush(LONG);
                let caught_up = state(&shipper).state == "caught-up";
                shipper.stop(STOP);
                i32::from(!(sent && caught_up && our_threads().is_empty()))
            });
            assert_eq!(code, 0, "the child could not ship");
            assert_eq!(
                request(server.addr, "GET", "/v1/databases/app/pos", &[], b"").txid(),
                primary.pos().txid.0
            );
            primary.commits(1);
            assert!(shipper.flush(LONG), "the parent cannot ship any more");
        }
    });
}

#[allow(unsafe_code)]
fn in_fork(body: impl FnOnce() -> i32) -> i32 {
    unsafe extern "C" {
        fn fork() -> i32;
        fn _exit(code: i32) -> !;
        fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    }
    // SAFETY: plain POSIX calls; the child only runs `body` and leaves without unwinding or running exit handlers.
    unsafe {
        match fork() {
            0 => _exit(body()),
            pid => {
                assert!(pid > 0);
                let mut status = 0;
                assert_eq!(waitpid(pid, &mut status, 0), pid);
                status
            }
        }
    }
}

#[test]
fn a_large_record_needs_little_memory() {
    alone("a_large_record_needs_little_memory", || {
        let dir = tempfile::tempdir().unwrap();
        let server = ChildServer::start("child_server", &dir.path().join("data"), 0);
        let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
        primary.commit_noise(192);
        let before = peak_kib();
        let mut options = options(&primary, &[url(&format!("http://{}/app", server.addr))]);
        options.request_timeout = Duration::from_secs(30);
        let shipper = Shipper::new(options);
        assert!(
            shipper.flush(Duration::from_secs(120)),
            "{:?}",
            shipper.status()
        );
        let grown = peak_kib() - before;
        assert!(grown < 48 * 1024, "shipping 192 MiB took {grown} KiB");
        let server_peak = peak_kib_of(server.pid());
        assert!(
            server_peak < 160 * 1024,
            "the server took {server_peak} KiB"
        );
    });
}

fn peak_kib() -> u64 {
    peak_kib_of(std::process::id())
}

fn peak_kib_of(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn push_sends_everything_and_returns() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(&dir.path().join("data"));
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(100);
    let mut options = options(
        &primary,
        &[server.url("one"), dead_port(), server.url("two")],
    );
    options.batch_bytes_max = 64 * 1024;
    let mut seen: Vec<(String, u64)> = Vec::new();
    let status = push_once(&options, &mut |progress| {
        assert_eq!(progress.head_txid, 100);
        assert_eq!(
            progress.lag_bytes == 0,
            progress.acked_txid == 100,
            "{progress:?}"
        );
        seen.push((progress.url.to_string(), progress.acked_txid));
    })
    .unwrap();
    let states: Vec<&str> = status
        .iter()
        .map(|replica| replica.state.as_str())
        .collect();
    assert_eq!(states, ["caught-up", "backing-off", "caught-up"]);
    assert!(
        status[1].last_error.contains("connection refused"),
        "{status:?}"
    );
    for name in ["one", "two"] {
        let url = server.url(name).to_string();
        let steps: Vec<u64> = seen
            .iter()
            .filter(|(u, _)| *u == url)
            .map(|(_, txid)| *txid)
            .collect();
        assert!(
            steps.len() > 3 && steps.is_sorted() && steps.last() == Some(&100),
            "{steps:?}"
        );
        assert_applied(&server, name, 100, &primary.image);
    }
    // Nothing to send, nowhere to send, nothing to send from.
    options.replicas = vec![server.url("one")];
    assert_eq!(
        push_once(&options, &mut |_| {}).unwrap()[0].state,
        "caught-up"
    );
    options.replicas.clear();
    assert!(
        push_once(&options, &mut |_| {})
            .unwrap_err()
            .to_string()
            .contains("no replica")
    );
    let nowhere = ShipOptions::new(dir.path().join("nowhere"), vec![server.url("one")]);
    assert!(
        push_once(&nowhere, &mut |_| {})
            .unwrap_err()
            .to_string()
            .contains("no log")
    );
}
