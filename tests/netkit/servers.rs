//! Servers in this process and in processes of their own; and tests that need a process of their own.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mycelite::proto::{HEADER_AFTER, HEADER_DATABASE, ReplicaUrl};
use mycelite::server::{Limits, ServeOptions, Server};
use mycelite_journal::{DatabaseId, Pos};
use tempfile::TempDir;

use super::{Answer, Primary, append, request, zstd};

/// Makes the SQLite routine table known, without which no database file can be written.
pub fn load() {
    crate::common::load();
}

/// A server in this process, on a runtime of its own.
pub struct TestServer {
    pub addr: SocketAddr,
    pub data: PathBuf,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl TestServer {
    pub fn start(data: &Path) -> TestServer {
        TestServer::with(ServeOptions::new("127.0.0.1:0", data)).unwrap()
    }

    pub fn limited(data: &Path, change: impl FnOnce(&mut Limits)) -> TestServer {
        let mut options = ServeOptions::new("127.0.0.1:0", data);
        change(&mut options.limits);
        TestServer::with(options).unwrap()
    }

    pub fn with(options: ServeOptions) -> mycelite::error::Result<TestServer> {
        load();
        let data = options.data.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let server = runtime.block_on(Server::bind(options))?;
        let addr = server.local_addr();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            runtime
                .block_on(server.run(async {
                    let _ = stopped.await;
                }))
                .unwrap();
        });
        Ok(TestServer {
            addr,
            data,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    pub fn url(&self, name: &str) -> ReplicaUrl {
        format!("http://{}/{name}", self.addr).parse().unwrap()
    }

    pub fn db(&self, name: &str) -> PathBuf {
        self.data.join(format!("{name}.db"))
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.data.join(format!("{name}.db-mycelite"))
    }

    pub fn get(&self, path: &str) -> Answer {
        request(self.addr, "GET", path, &[], b"")
    }

    /// Posts records (compressed here) that follow `after`.
    pub fn append(&self, name: &str, id: DatabaseId, after: Pos, raw: &[u8]) -> Answer {
        append(self.addr, name, id, after, &zstd(raw))
    }

    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            assert!(result.is_ok() || std::thread::panicking());
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits until the file of a served database alone is the image `wanted`, after transaction `txid`.
pub fn assert_applied(server: &TestServer, name: &str, txid: u64, wanted: &[u8]) {
    let mut info = serde_json::Value::Null;
    let deadline = Instant::now() + Duration::from_secs(60);
    while info["applied_txid"].as_u64() != Some(txid)
        || std::fs::read(server.db(name)).ok().as_deref() != Some(wanted)
    {
        info = server.get(&format!("/v1/databases/{name}")).json();
        assert!(
            Instant::now() < deadline,
            "{name} does not become what transaction {txid} left: {info}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

const CHILD: &str = "MYCELITE_TEST_CHILD";

/// Runs the test `name` of this program again in a process of its own, with `role` in its environment.
pub fn again(name: &str, role: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, role)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The role given by [`again`]; none in the process that the person started.
pub fn role() -> Option<String> {
    std::env::var(CHILD).ok()
}

/// Runs the body of a test in a process of its own, so that it can count threads and measure memory.
pub fn alone(name: &str, body: impl FnOnce()) {
    if role().is_some() {
        return body();
    }
    let output = again(name, "alone").wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{name}: {}",
        String::from_utf8_lossy(&output.stdout)
    );
}

/// A server in a process of its own, to be killed.
pub struct ChildServer {
    pub addr: SocketAddr,
    child: Child,
}

impl ChildServer {
    /// `test` is the name of a test that calls [`serve_as_child`].
    pub fn start(test: &str, data: &Path, port: u16) -> ChildServer {
        let mut child = again(test, &format!("{port} {}", data.display()));
        let addr = listening(&mut child);
        ChildServer { addr, child }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for ChildServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads what a child prints until it says where it listens.
pub fn listening(child: &mut Child) -> SocketAddr {
    let stdout = child.stdout.take().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stdout));
    let addr = lines
        .find_map(|line| {
            line.unwrap()
                .split_once("LISTENING ")?
                .1
                .trim()
                .parse()
                .ok()
        })
        .expect("the server says where it listens");
    // What the child says later must not block it.
    std::thread::spawn(move || lines.for_each(drop));
    addr
}

/// Serves until killed, in the process that [`ChildServer::start`] made. Returns at once in any other.
pub fn serve_as_child() {
    let Some(role) = role() else { return };
    let (port, data) = role.split_once(' ').unwrap();
    let server = TestServer::with(ServeOptions::new(format!("127.0.0.1:{port}"), data)).unwrap();
    println!("LISTENING {}", server.addr);
    loop {
        std::thread::park();
    }
}

/// Threads of this process whose names begin with `mycelite` or `reqwest`.
pub fn our_threads() -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir("/proc/self/task").unwrap() {
        if let Ok(name) = std::fs::read_to_string(entry.unwrap().path().join("comm"))
            && (name.starts_with("mycelite") || name.starts_with("reqwest"))
        {
            names.push(name.trim().to_string());
        }
    }
    names
}

pub struct Room {
    pub _dir: TempDir,
    pub server: TestServer,
    pub primary: Primary,
}

/// A server, and a primary with `commits` transactions that it does not know yet.
pub fn room(commits: usize) -> Room {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(&dir.path().join("data"));
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(commits);
    Room {
        _dir: dir,
        server,
        primary,
    }
}

/// Opens a connection and sends the head of an append and `sent` bytes of its body, which has `body` bytes in all.
pub fn unfinished(
    server: &TestServer,
    name: &str,
    primary: &Primary,
    body: &[u8],
    sent: usize,
) -> TcpStream {
    let mut stream = TcpStream::connect(server.addr).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let head = format!(
        "POST /v1/databases/{name}/log HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{HEADER_DATABASE}: {}\r\n\
         {HEADER_AFTER}: {}\r\ncontent-length: {}\r\n\r\n",
        primary.id(),
        Pos::ZERO,
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&body[..sent]).unwrap();
    stream
}
