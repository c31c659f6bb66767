//! The shipper against real servers, dead ones, and ones that talk nonsense.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;
mod netkit;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mycelite::proto::{Handshake, ReplicaUrl};
use mycelite::server::ServeOptions;
use mycelite::ship::{ShipOptions, Shipper, push_once};
use mycelite::status::ReplicaStatus;
use mycelite_journal::{DatabaseId, Pos, Timeline};
use netkit::*;

const LONG: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(5);

fn url(text: &str) -> ReplicaUrl {
    text.parse().unwrap()
}

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
    assert_eq!((before.state.as_str(), before.acked_txid, before.lag_txids), ("idle", 0, 300));
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
        eventually("a commit does not arrive", || state(&shipper).acked_txid == txid);
    }
    assert_applied(&server, "app", 320, &primary.image);
    assert_eq!(raw_records(&server.log("app"), 0), primary.records(0));
    shipper.stop(STOP);
}

#[test]
fn a_log_that_does_not_exist_yet_is_nothing_to_send() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(&dir.path().join("data"));
    let shipper =
        Shipper::new(ShipOptions::new(dir.path().join("primary-mycelite"), vec![server.url("app")]));
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
        eventually("an idle shipper keeps its files", || open_files() == idle_files);
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
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
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
    assert_eq!(raw_records(&data.join("app.db-mycelite"), 0), primary.records(0));
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
    assert!(status[2].last_error.contains("connection refused"), "{status:?}");
    shipper.stop(STOP);
}

/// A port that nobody listens on.
fn dead_port() -> ReplicaUrl {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    url(&format!("http://127.0.0.1:{port}/app"))
}

#[test]
fn flush_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(1);
    // Nobody there: as soon as that is known.
    let dead = shipper(&primary, &[dead_port()]);
    let begin = Instant::now();
    assert!(!dead.flush(LONG));
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let begin = Instant::now();
    assert!(!dead.flush(LONG));
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    // No answer: when the time is over.
    let silent = Nonsense::start(|stream, _| hold(stream));
    let stuck = shipper(&primary, &[silent.url()]);
    let begin = Instant::now();
    assert!(!stuck.flush(Duration::from_millis(300)));
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(3), "{took:?}");
}

#[test]
fn a_server_that_takes_no_time_to_ask_gives_up_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(1);
    let silent = Nonsense::start(|stream, _| hold(stream));
    let mut options = options(&primary, &[silent.url()]);
    options.request_timeout = Duration::from_millis(300);
    let shipper = Shipper::new(options);
    let begin = Instant::now();
    assert!(!shipper.flush(LONG));
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    let status = state(&shipper);
    assert_eq!(status.state, "backing-off");
    assert!(status.last_error.contains("no answer within 300 ms"), "{status:?}");
}

/// A listener that answers each connection as the test says.
struct Nonsense {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl Nonsense {
    fn start(answer: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> Nonsense {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, answer) = (Arc::clone(&connections), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (number, answer) = (count.fetch_add(1, Ordering::SeqCst), Arc::clone(&answer));
                std::thread::spawn(move || answer(stream.unwrap(), number));
            }
        });
        Nonsense { port, connections }
    }

    /// Answers every request with the same bytes, then closes.
    fn saying(bytes: impl Into<Vec<u8>>) -> Nonsense {
        let bytes = bytes.into();
        Nonsense::start(move |mut stream, _| {
            read_head(&mut stream);
            let _ = stream.write_all(&bytes);
        })
    }

    fn url(&self) -> ReplicaUrl {
        url(&format!("http://127.0.0.1:{}/app", self.port))
    }
}

fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn hold(mut stream: TcpStream) {
    let mut rest = [0; 4096];
    while stream.read(&mut rest).unwrap_or(0) > 0 {}
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes =
        format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n", body.len()).into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

fn hello(id: Option<DatabaseId>, pos: Pos) -> Vec<u8> {
    let body = Handshake::new(id, pos, 4096, pos.txid).encode().unwrap();
    answer("200 OK", "mycelite-protocol: 1\r\ncontent-type: application/x-mycelite-handshake\r\n", &body)
}

#[test]
fn nonsense_is_one_clear_line() {
    const OURS: &str = "mycelite-protocol: 1\r\n";
    let dir = tempfile::tempdir().unwrap();
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(2);
    let handshake = Handshake::new(None, Pos::ZERO, 0, mycelite_journal::Txid(0)).encode().unwrap();
    let mut newer = handshake.clone();
    newer[0] = 9;
    let longer = [&handshake[..], b"x"].concat();
    let typed = format!("{OURS}content-type: application/x-mycelite-handshake\r\n");
    let endless = vec![b'x'; 10 << 20];
    let control = br#"{"error":"a\u001b[31m\nb"}"#;
    for (bytes, state_word, says) in [
        (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n".to_vec(), "refused", "does not speak HTTP"),
        (vec![0; 100], "refused", "does not speak HTTP"),
        (Vec::new(), "backing-off", "connection"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort".to_vec(), "backing-off", "connection"),
        (answer("200 OK", "", b"<html>welcome</html>"), "refused", "not a mycelite server"),
        (answer("200 OK", "", &endless), "refused", "not a mycelite server"),
        (answer("404 Not Found", "", b"nothing here"), "refused", "not a mycelite server"),
        (answer("302 Found", "location: http://127.0.0.1:1/\r\n", b""), "refused", "redirect"),
        (answer("502 Bad Gateway", "", b"<html>"), "backing-off", "HTTP 502"),
        (answer("401 Unauthorized", "", b""), "refused", "refuses the token"),
        (answer("403 Forbidden", OURS, b"{\"error\":\"no scope\"}"), "refused", "no scope"),
        (answer("500 Internal Server Error", OURS, b"{\"error\":\"its disk broke\"}"), "backing-off", "its disk broke"),
        (answer("507 Insufficient Storage", OURS, b"{}"), "backing-off", "disk is full"),
        (answer("409 Conflict", OURS, control), "refused", "a [31m b"),
        (answer("200 OK", &typed, b""), "refused", "handshake cannot be read"),
        (answer("200 OK", &typed, &handshake[..20]), "refused", "handshake cannot be read"),
        (answer("200 OK", &typed, &longer), "refused", "handshake cannot be read"),
        (answer("200 OK", &typed, &vec![7; 5000]), "refused", "longer than any answer"),
        (answer("200 OK", &typed, &newer), "refused", "protocol 9"),
    ] {
        let server = Nonsense::saying(bytes);
        let mut options = options(&primary, &[server.url()]);
        options.token = Some("s3cret-token".to_string());
        assert!(!format!("{options:?}").contains("s3cret"));
        let shipper = Shipper::new(options);
        assert!(!shipper.flush(LONG), "{says}");
        let status = state(&shipper);
        assert!(status.last_error.contains(says), "wanted {says:?}: {status:?}");
        assert_eq!(status.state, state_word, "{says}: {status:?}");
        assert_eq!(status.last_error.lines().count(), 1);
        assert!(status.last_error.len() < 600, "{status:?}");
        assert!(status.last_error.contains(&server.url().to_string()), "{status:?}");
        assert!(!status.last_error.contains("s3cret"), "{status:?}");
        assert_eq!((status.acked_txid, status.lag_txids), (0, 2));
        shipper.stop(STOP);
    }
}

#[test]
fn nonsense_after_a_good_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(2);
    let (id, zero, sum) = (primary.id(), Pos::ZERO, primary.pos().checksum);
    let ours = "mycelite-protocol: 1\r\ncontent-type: application/json\r\n";
    let wrong = format!("{{\"timeline\":1,\"txid\":9,\"checksum\":\"{sum}\"}}");
    for (bytes, state_word, says) in [
        (answer("200 OK", ours, b"{}"), "backing-off", "acknowledgement"),
        (answer("200 OK", ours, wrong.as_bytes()), "backing-off", "acknowledgement"),
        (answer("200 OK", "", b"ok"), "refused", "not a mycelite server"),
        (answer("412 Precondition Failed", ours, b"{\"error\":\"no\"}"), "backing-off", "without saying where"),
        (answer("413 Payload Too Large", ours, b"{\"error\":\"too long (record_bytes_max)\"}"), "refused", "record_bytes_max"),
        (answer("400 Bad Request", ours, b"{\"error\":\"bad record\"}"), "refused", "bad record"),
        (Vec::new(), "backing-off", "connection"),
    ] {
        let server = Nonsense::start(move |mut stream, _| {
            let head = read_head(&mut stream);
            let reply = if head.starts_with("GET") { hello(Some(id), zero) } else { bytes.clone() };
            let _ = stream.write_all(&reply);
            if !reply.is_empty() {
                hold(stream);
            }
        });
        let shipper = shipper(&primary, &[server.url()]);
        assert!(!shipper.flush(LONG), "{says}");
        let status = state(&shipper);
        assert!(status.last_error.contains(says), "wanted {says:?}: {status:?}");
        assert_eq!(status.state, state_word, "{says}: {status:?}");
        shipper.stop(STOP);
    }
    // A server that always says 'elsewhere' is not asked for ever without a pause.
    let server = Nonsense::start(move |mut stream, _| {
        let head = read_head(&mut stream);
        let misfit = format!("{{\"error\":\"no\",\"pos\":{{\"timeline\":0,\"txid\":0,\"checksum\":\"{:016x}\"}}}}", 0);
        let reply = if head.starts_with("GET") { hello(Some(id), zero) } else { answer("412 Precondition Failed", "mycelite-protocol: 1\r\n", misfit.as_bytes()) };
        let _ = stream.write_all(&reply);
        hold(stream);
    });
    let shipper = shipper(&primary, &[server.url()]);
    assert!(!shipper.flush(LONG));
    std::thread::sleep(Duration::from_millis(300));
    assert!(server.connections.load(Ordering::SeqCst) < 40, "{:?}", server.connections);
    shipper.stop(STOP);
}

#[test]
fn a_name_that_does_not_resolve() {
    let dir = tempfile::tempdir().unwrap();
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(1);
    let shipper = shipper(&primary, &[url("http://no-such-host.invalid:7878/app")]);
    assert!(!shipper.flush(LONG));
    let status = state(&shipper);
    assert!(status.last_error.contains("cannot be resolved"), "{status:?}");
    assert_eq!(status.state, "backing-off");
}

#[test]
fn tokens_are_used() {
    let dir = tempfile::tempdir().unwrap();
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(2);
    let file = dir.path().join("tokens");
    std::fs::write(&file, "reader read\nwriter append\n").unwrap();
    let mut serve = ServeOptions::new("127.0.0.1:0", dir.path().join("data"));
    serve.token_file = Some(file);
    let server = TestServer::with(serve).unwrap();
    for (token, state_word, says) in [
        (None, "refused", "refuses the token, or wants one"),
        (Some("wrong"), "refused", "refuses the token"),
        (Some("reader"), "refused", "scope"),
        (Some("two\nlines"), "refused", "characters that HTTP cannot carry"),
        (Some("writer"), "caught-up", ""),
    ] {
        let mut options = options(&primary, &[server.url("app")]);
        options.token = token.map(str::to_string);
        let shipper = Shipper::new(options);
        assert_eq!(shipper.flush(LONG), state_word == "caught-up", "{token:?}");
        let status = state(&shipper);
        assert_eq!(status.state, state_word, "{status:?}");
        assert!(status.last_error.contains(says), "{status:?}");
        assert!(!status.last_error.contains("wrong") && !status.last_error.contains("two"), "{status:?}");
    }
}

#[test]
fn a_replica_with_another_history_is_never_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(&dir.path().join("data"));
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(10);
    assert!(shipper(&primary, &[server.url("app")]).flush(LONG));
    let kept = raw_records(&server.log("app"), 0);
    let refuse = |primary: &Primary, state_word: &str, says: &str| {
        let shipper = shipper(primary, &[server.url("app")]);
        assert!(!shipper.flush(LONG), "{says}");
        let status = state(&shipper);
        assert_eq!(status.state, state_word, "{status:?}");
        assert!(status.last_error.contains(says), "{status:?}");
        assert_eq!(raw_records(&server.log("app"), 0), kept);
    };
    // The same database, with another tenth transaction and one more.
    let mut fork = Primary::fork(dir.path().join("fork-mycelite"), &primary, 9);
    fork.commits(2);
    refuse(&fork, "diverged", "its history differs");
    // The same database, but shorter: this side lost something.
    let short = Primary::fork(dir.path().join("short-mycelite"), &primary, 5);
    refuse(&short, "diverged", "ahead of this log");
    // Another database.
    let mut other = Primary::new(dir.path().join("other-mycelite"), 8);
    other.commits(1);
    refuse(&other, "refused", "another database");
    // Our own goes on.
    primary.commits(1);
    assert!(shipper(&primary, &[server.url("app")]).flush(LONG));
}

#[test]
fn a_position_on_another_timeline_is_divergence() {
    let dir = tempfile::tempdir().unwrap();
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(3);
    let pos = Pos { timeline: Timeline(2), ..primary.pos_at(2) };
    let id = primary.id();
    let server = Nonsense::saying(hello(Some(id), pos));
    let shipper = shipper(&primary, &[server.url()]);
    assert!(!shipper.flush(LONG));
    assert_eq!(state(&shipper).state, "diverged");
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
    eventually("the first does not connect", || gate.connections.load(Ordering::SeqCst) == 1);
    let child = again("another_process_ships", &format!("{} {}", gate.url(), primary.dir.display()));
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(gate.connections.load(Ordering::SeqCst), 1, "two processes ship at once");
    open.store(true, Ordering::SeqCst);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    let states: Vec<&str> = text.lines().filter_map(|line| line.split_once("STATE ")).map(|(_, state)| state).collect();
    assert_eq!(states, ["elsewhere", "caught-up"]);
    assert!(mine.flush(LONG));
    assert_eq!(raw_records(&server.log("app"), 0), primary.records(0));
}

/// Passes connections on to `target` once it is open.
fn gate(target: std::net::SocketAddr, open: Arc<std::sync::atomic::AtomicBool>) -> Nonsense {
    Nonsense::start(move |mut client, _| {
        while !open.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut server = TcpStream::connect(target).unwrap();
        let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Write);
        });
        let _ = std::io::copy(&mut server, &mut client);
        let _ = client.shutdown(std::net::Shutdown::Both);
    })
}

#[test]
fn two_processes_that_write_and_ship() {
    if let Some(role) = role() {
        let (data, log) = role.split_once(' ').unwrap();
        let shipper = Shipper::new(ShipOptions::new(log, vec![url(data)]));
        let lock = std::fs::File::options().create(true).write(true).truncate(false).open(Path::new(log).join("lock")).unwrap();
        let storage = Arc::new(mycelite_journal::FileStorage::new(log));
        let mut stored = mycelite_journal::Log::open(storage).unwrap();
        for _ in 0..100 {
            lock.lock().unwrap();
            stored.refresh().unwrap();
            let pages = stored.head().page_count;
            let size = mycelite_journal::PageSize::new(PAGE as u32).unwrap();
            let mut record = stored.begin(mycelite_journal::Draft::new(size, pages + 1, now_us())).unwrap();
            record.patch(pages + 1, None, &vec![pages as u8; PAGE]).unwrap();
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
    let children: Vec<_> = (0..2).map(|_| again("two_processes_that_write_and_ship", &role)).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
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
            assert_eq!(request(server.addr, "GET", "/v1/databases/app/pos", &[], b"").txid(), primary.pos().txid.0);
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
        assert!(shipper.flush(Duration::from_secs(120)), "{:?}", shipper.status());
        let grown = peak_kib() - before;
        assert!(grown < 48 * 1024, "shipping 192 MiB took {grown} KiB");
        let server_peak = peak_kib_of(server.pid());
        assert!(server_peak < 160 * 1024, "the server took {server_peak} KiB");
    });
}

fn peak_kib() -> u64 {
    peak_kib_of(std::process::id())
}

fn peak_kib_of(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn push_sends_everything_and_returns() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(&dir.path().join("data"));
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(100);
    let mut options = options(&primary, &[server.url("one"), dead_port(), server.url("two")]);
    options.batch_bytes_max = 64 * 1024;
    let mut seen: Vec<(String, u64)> = Vec::new();
    let status = push_once(&options, &mut |progress| {
        assert_eq!(progress.head_txid, 100);
        assert_eq!(progress.lag_bytes == 0, progress.acked_txid == 100, "{progress:?}");
        seen.push((progress.url.to_string(), progress.acked_txid));
    })
    .unwrap();
    let states: Vec<&str> = status.iter().map(|replica| replica.state.as_str()).collect();
    assert_eq!(states, ["caught-up", "backing-off", "caught-up"]);
    assert!(status[1].last_error.contains("connection refused"), "{status:?}");
    for name in ["one", "two"] {
        let url = server.url(name).to_string();
        let steps: Vec<u64> = seen.iter().filter(|(u, _)| *u == url).map(|(_, txid)| *txid).collect();
        assert!(steps.len() > 3 && steps.is_sorted() && steps.last() == Some(&100), "{steps:?}");
        assert_applied(&server, name, 100, &primary.image);
    }
    // Nothing to send, nowhere to send, nothing to send from.
    options.replicas = vec![server.url("one")];
    assert_eq!(push_once(&options, &mut |_| {}).unwrap()[0].state, "caught-up");
    options.replicas.clear();
    assert!(push_once(&options, &mut |_| {}).unwrap_err().to_string().contains("no replica"));
    let nowhere = ShipOptions::new(dir.path().join("nowhere"), vec![server.url("one")]);
    assert!(push_once(&nowhere, &mut |_| {}).unwrap_err().to_string().contains("no log"));
}
