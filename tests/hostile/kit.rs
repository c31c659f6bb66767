//! The server of the table, and what is looked at after each case.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mycelite::proto::{HEADER_AFTER, HEADER_DATABASE};
use mycelite_journal::Pos;

use crate::clikit::{Serve, text};
use crate::netkit::{Answer, Primary, append, eventually, request, zstd};

/// No answer, but a closed connection.
pub const CLOSED: u16 = 0;
/// What the server may need beyond what it needed at the start.
const MEMORY_KIB_MAX: u64 = 64 * 1024;
/// Longest time for one case; the server's own patience is a second.
const CASE_MAX: Duration = Duration::from_secs(15);

/// How bytes go out.
pub enum Send {
    /// At once; then the answer is awaited.
    Whole(Vec<u8>),
    /// As before, but nothing more will come: the sending side is closed.
    HalfClosed(Vec<u8>),
    /// A byte from time to time, for ever.
    Slowly(Vec<u8>),
    /// At once; the answer is never read.
    Unread(Vec<u8>),
}

pub struct Case {
    pub name: String,
    pub send: Send,
    /// The statuses that are right.
    pub want: &'static [u16],
}

impl Case {
    pub fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>, want: &'static [u16]) -> Case {
        Case {
            name: name.into(),
            send: Send::Whole(bytes.into()),
            want,
        }
    }
}

pub struct World {
    _dir: tempfile::TempDir,
    pub server: Serve,
    pub addr: SocketAddr,
    /// The server has the first four of its records.
    pub primary: Primary,
    data: PathBuf,
    before: BTreeMap<PathBuf, Vec<u8>>,
    memory: u64,
}

/// How many records the server has.
pub const KEPT: u64 = 4;

impl World {
    pub fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let (data, tokens) = (dir.path().join("data"), dir.path().join("tokens"));
        std::fs::write(
            &tokens,
            "reader read\nwriter append\nboth read,append\nnarrow read,append db=other\nmaster\n",
        )
        .unwrap();
        let server = Serve::start(
            &data,
            &[
                "--token-file",
                text(&tokens),
                "--body-max",
                "1",
                "--record-max",
                "1",
                "--database-max",
                "16",
                "--databases-max",
                "2",
                "--client-timeout",
                "1",
            ],
        );
        let addr = server.address.parse().unwrap();
        let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
        primary.commits(KEPT as usize + 3);
        let mut world = World {
            _dir: dir,
            server,
            addr,
            primary,
            data,
            before: BTreeMap::new(),
            memory: 0,
        };
        let first = world.primary.records(0)[..KEPT as usize].concat();
        let answer = world.post_as("master", "app", Pos::ZERO, &zstd(&first));
        assert_eq!(answer.status, 200, "{}", answer.text());
        // A file that is nobody's replica.
        std::fs::write(world.data.join("mine.db"), b"precious").unwrap();
        let db = world.data.join("app.db");
        let image = world.primary.images[KEPT as usize].clone();
        eventually("the file", || {
            std::fs::read(&db).ok().as_ref() == Some(&image)
        });
        // The applier has closed the file.
        eventually("the end of applying", || {
            !world.data.join("app.db-wal").exists()
        });
        // Once around before memory is measured.
        world.bytes_of(&world.get("reader", "/v1/databases/app/file"));
        world.before = snapshot(&world.data);
        world.memory = world.memory_kib();
        world
    }

    fn bytes_of(&self, path_and_headers: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        stream.write_all(path_and_headers).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer
    }

    /// A GET with a token.
    pub fn get(&self, token: &str, path: &str) -> Vec<u8> {
        self.plain(
            "GET",
            path,
            &[("authorization", &format!("Bearer {token}"))],
        )
    }

    /// A request without a body.
    pub fn plain(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n",
            self.addr
        );
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        (head + "\r\n").into_bytes()
    }

    /// An append with these headers and body.
    pub fn post(&self, name: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
        let mut head = format!(
            "POST /v1/databases/{name}/log HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\
             content-length: {}\r\n",
            self.addr,
            body.len()
        );
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let mut bytes = (head + "\r\n").into_bytes();
        bytes.extend_from_slice(body);
        bytes
    }

    /// A well-formed append of `records` behind `after`.
    pub fn append(&self, name: &str, after: Pos, body: &[u8]) -> Vec<u8> {
        let (id, after) = (self.primary.id().to_string(), after.to_string());
        let headers = [
            ("authorization", "Bearer writer"),
            (HEADER_DATABASE, id.as_str()),
            (HEADER_AFTER, after.as_str()),
        ];
        self.post(name, &headers, body)
    }

    fn post_as(&self, token: &str, name: &str, after: Pos, body: &[u8]) -> Answer {
        let (id, after) = (self.primary.id().to_string(), after.to_string());
        let bearer = format!("Bearer {token}");
        let headers = [
            ("authorization", bearer.as_str()),
            (HEADER_DATABASE, id.as_str()),
            (HEADER_AFTER, after.as_str()),
        ];
        let path = format!("/v1/databases/{name}/log");
        request(self.addr, "POST", &path, &headers, body)
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(CASE_MAX)).unwrap();
        stream.set_write_timeout(Some(CASE_MAX)).unwrap();
        stream
    }

    /// Sends a case; an error says what was not as it should be.
    pub fn judge(&self, case: &Case) -> Result<(), String> {
        let wrong = |what: String| Err(format!("{}: {what}", case.name));
        let begin = Instant::now();
        let answer = self.send(&case.send);
        let status = status_of(&answer);
        if !case.want.contains(&status) {
            let text = String::from_utf8_lossy(&answer);
            return wrong(format!(
                "status {status}, not {:?}: {}",
                case.want,
                tail(&text)
            ));
        }
        if begin.elapsed() > CASE_MAX {
            return wrong(format!("took {:?}", begin.elapsed()));
        }
        if answer
            .windows(12)
            .filter(|w| w.starts_with(b"HTTP/1.1 200"))
            .count()
            > 0
        {
            return wrong("something was served".to_string());
        }
        let health = request(self.addr, "GET", "/healthz", &[], b"");
        if health.status != 200 || health.text() != "ok\n" {
            return wrong(format!("the server is ill: {health:?}"));
        }
        let after = snapshot(&self.data);
        if after != self.before {
            let differ: Vec<&PathBuf> = after
                .keys()
                .chain(self.before.keys())
                .filter(|path| after.get(*path) != self.before.get(*path))
                .collect();
            return wrong(format!("data changed: {differ:?}"));
        }
        let grown = self.memory_kib().saturating_sub(self.memory);
        if grown > MEMORY_KIB_MAX {
            return wrong(format!("the server has grown by {grown} KiB"));
        }
        Ok(())
    }

    fn send(&self, send: &Send) -> Vec<u8> {
        let mut stream = self.connect();
        let mut answer = Vec::new();
        match send {
            Send::Whole(bytes) => {
                // A server that refuses early may close before it has read all.
                let _ = stream.write_all(bytes);
                let _ = stream.read_to_end(&mut answer);
            }
            Send::HalfClosed(bytes) => {
                let _ = stream.write_all(bytes);
                let _ = stream.shutdown(Shutdown::Write);
                let _ = stream.read_to_end(&mut answer);
            }
            Send::Slowly(bytes) => {
                let end = Instant::now() + CASE_MAX;
                let pause = Duration::from_millis(100);
                stream.set_read_timeout(Some(pause)).unwrap();
                let mut bytes = bytes.iter().cycle();
                while Instant::now() < end {
                    if stream.write_all(&[*bytes.next().unwrap()]).is_err() {
                        break;
                    }
                    let mut some = [0; 4096];
                    match stream.read(&mut some) {
                        Ok(0) => break,
                        Ok(count) => answer.extend_from_slice(&some[..count]),
                        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                        Err(_) => break,
                    }
                }
            }
            Send::Unread(bytes) => {
                let _ = stream.write_all(bytes);
                std::thread::sleep(Duration::from_secs(2));
            }
        }
        answer
    }

    /// After all that, an honest shipper is served as before.
    pub fn still_works(&self) {
        let rest = self.primary.records(KEPT).concat();
        let after = self.primary.pos_at(KEPT);
        let answer = self.post_as("writer", "app", after, &zstd(&rest));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let db = self.data.join("app.db");
        eventually("the rest is applied", || {
            std::fs::read(&db).ok().as_ref() == Some(&self.primary.image)
        });
        let _ = append;
    }

    #[cfg(target_os = "linux")]
    fn memory_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.server.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[cfg(not(target_os = "linux"))]
    fn memory_kib(&self) -> u64 {
        0
    }
}

/// The status of an answer; [`CLOSED`] without one.
pub fn status_of(answer: &[u8]) -> u16 {
    let line = String::from_utf8_lossy(answer.split(|b| *b == b'\r').next().unwrap_or_default())
        .into_owned();
    match line.strip_prefix("HTTP/1.") {
        Some(rest) => rest
            .split(' ')
            .nth(1)
            .and_then(|word| word.parse().ok())
            .unwrap_or(CLOSED),
        None => CLOSED,
    }
}

fn tail(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    text.chars()
        .rev()
        .take(200)
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .collect()
}

/// All files below `dir` with their bytes; of locks, only that they are there.
fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            // Half-made answers come and go, and what maintenance keeps for itself comes with its first look.
            let passing = [".mycelite-tmp", "maintain", "maintained", "pins"];
            if passing.iter().any(|passing| path.ends_with(passing)) {
                continue;
            }
            if path.is_dir() {
                dirs.push(path);
            } else {
                let bytes = std::fs::read(&path).unwrap_or_default();
                files.insert(path, bytes);
            }
        }
    }
    files
}
