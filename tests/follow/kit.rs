//! What these tests share: a follower as a process, a writer with a pace, readers in a loop, and a line that can be cut.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::Value;

use crate::clikit::{Ran, program};
use crate::common;

/// Nothing that a test waits for may take longer, also on a machine that does something else at the same time.
pub const LONG: Duration = Duration::from_secs(60);

/// A running `mycelite follow`.
pub struct Follow {
    pub child: Child,
    _stdin: Option<ChildStdin>,
}

impl Follow {
    pub fn start(url: &str, db: &Path, arguments: &[&str]) -> Follow {
        let mut child = program()
            .args(["follow", "--with-parent", url])
            .arg(db)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Follow {
            _stdin: child.stdin.take(),
            child,
        }
    }

    /// Kills it with SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end, and waits for that.
    #[track_caller]
    pub fn stop(self) -> Ran {
        crate::clikit::signal(self.child.id(), "TERM");
        self.ended(LONG)
    }

    /// Asks it to end; what it said on standard error, where something else reads its output.
    pub fn stop_quietly(mut self) -> String {
        crate::clikit::signal(self.child.id(), "TERM");
        let mut said = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert!(self.child.wait().unwrap().success(), "{said}");
        said
    }

    /// Waits for its end.
    #[track_caller]
    pub fn ended(mut self, limit: Duration) -> Ran {
        let deadline = Instant::now() + limit;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut ran = Ran {
            code: self.child.wait().unwrap().code().unwrap_or(-1),
            stdout: String::new(),
            stderr: String::new(),
        };
        let pipes = (self.child.stdout.take(), self.child.stderr.take());
        pipes.0.unwrap().read_to_string(&mut ran.stdout).unwrap();
        pipes.1.unwrap().read_to_string(&mut ran.stderr).unwrap();
        ran
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A follower whose states are collected.
pub struct Watched {
    pub follow: Follow,
    states: Arc<Mutex<Vec<Value>>>,
}

impl Watched {
    pub fn start(url: &str, copy: &Path, arguments: &[&str]) -> Watched {
        let mut follow = Follow::start(url, copy, &[&["--json"], arguments].concat());
        let states: Arc<Mutex<Vec<Value>>> = Arc::default();
        let lines = BufReader::new(follow.child.stdout.take().unwrap()).lines();
        let collected = Arc::clone(&states);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                collected
                    .lock()
                    .unwrap()
                    .push(serde_json::from_str(&line).unwrap());
            }
        });
        Watched { follow, states }
    }

    /// The newest state, as `--json` has it.
    pub fn latest(&self) -> Value {
        self.states
            .lock()
            .unwrap()
            .last()
            .cloned()
            .unwrap_or_default()
    }
}

/// `mycelite follow --once`, to its end.
pub fn once(url: &str, db: &Path, arguments: &[&str]) -> Ran {
    let output = program()
        .args(["follow", url, "--once"])
        .arg(db)
        .args(arguments)
        .output();
    output.unwrap().into()
}

/// An address of its own for a server that is to be found under the same port again after it was killed.
pub fn own_address() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(1);
    let pid = std::process::id();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!(
        "127.{}.{}.{count}:17878",
        101 + pid / 250 % 100,
        1 + pid % 250
    )
}

/// A database that is written through the extension and shipped.
pub struct Writer {
    pub db: PathBuf,
    connection: Option<Connection>,
    rows: i64,
}

impl Writer {
    pub fn new(db: PathBuf, mode: &str, replica: &str) -> Writer {
        let connection = common::open(&db, &format!("&replica={replica}"));
        connection
            .execute_batch(&format!(
                "PRAGMA journal_mode = {mode}; PRAGMA synchronous = NORMAL;
                 CREATE TABLE t(id INTEGER PRIMARY KEY, us INTEGER, filler); CREATE INDEX i ON t(filler);"
            ))
            .unwrap();
        Writer {
            db,
            connection: Some(connection),
            rows: 0,
        }
    }

    /// Opens the database again after [`Writer::close`].
    pub fn open_again(&mut self, replica: &str) {
        self.connection = Some(common::open(&self.db, &format!("&replica={replica}")));
    }

    /// Rows that were written.
    pub fn rows(&self) -> i64 {
        self.rows
    }

    pub fn commit(&mut self, bytes: usize) -> i64 {
        self.rows += 1;
        let connection = self.connection.as_ref().unwrap();
        connection
            .execute(
                "INSERT INTO t VALUES (?1, ?2, hex(randomblob(?3)))",
                (self.rows, crate::netkit::now_us() as i64, bytes as i64),
            )
            .unwrap();
        self.rows
    }

    /// Whatever this says.
    pub fn sql(&self, sql: &str) {
        self.connection
            .as_ref()
            .unwrap()
            .execute_batch(sql)
            .unwrap();
    }

    /// Changes what the last row holds.
    pub fn rewrite(&mut self) {
        let connection = self.connection.as_ref().unwrap();
        connection
            .execute(
                "UPDATE t SET filler = hex(randomblob(length(filler)/2)) WHERE id = ?1",
                [self.rows],
            )
            .unwrap();
    }

    /// Commits at `rate` a second for `time`; how many.
    pub fn load(&mut self, rate: u32, time: Duration, mut each: impl FnMut(i64)) -> u32 {
        let begin = Instant::now();
        let mut count = 0;
        while begin.elapsed() < time {
            each(self.commit(40));
            count += 1;
            let due = begin + Duration::from_secs(1) * count / rate;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        count
    }

    /// Closes it, so that the file alone is the image.
    pub fn close(&mut self) -> Vec<u8> {
        if let Some(connection) = self.connection.take() {
            connection
                .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
                .unwrap();
            connection.close().unwrap();
        }
        std::fs::read(&self.db).unwrap()
    }
}

/// Waits until all files are byte for byte `wanted`; how long that took.
#[track_caller]
pub fn identical(files: &[&Path], wanted: &[u8], limit: Duration) -> Duration {
    let begin = Instant::now();
    for file in files {
        while std::fs::read(file).ok().as_deref() != Some(wanted) {
            assert!(
                begin.elapsed() < limit,
                "{} is not the primary's file after {limit:?}",
                file.display()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    begin.elapsed()
}

/// Plain readers of a file in a loop: the stock shell and Python. Each look must find a whole database that never goes back. They begin
/// when the table is there: the first record of a history may be older than that.
pub struct Readers {
    stop: PathBuf,
    children: Vec<Child>,
}

const SHELL_LOOP: &str = r#"until [ -e "$2" ] || sqlite3 -readonly "$1" 'SELECT id FROM t LIMIT 0' >/dev/null 2>&1; do sleep 0.01; done
while :; do
  if [ -s "$1" ]; then sqlite3 -readonly -cmd '.timeout 10000' "$1" 'PRAGMA integrity_check; SELECT count(*) - coalesce(max(id), 0) FROM t' 2>&1; fi
  if [ -e "$2" ]; then break; fi
done"#;

const PYTHON_LOOP: &str = r#"
import os, sqlite3, sys, time
path, stop = sys.argv[1:]
while not (os.path.exists(path) and os.path.getsize(path)) and not os.path.exists(stop): time.sleep(0.01)
def has_table():
    db = sqlite3.connect(path, timeout=10)
    found = db.execute("SELECT count(*) FROM sqlite_master WHERE name = 't'").fetchone()[0]
    db.close()
    return found
while os.path.exists(path) and not os.path.exists(stop) and not has_table(): time.sleep(0.01)
last, looks = 0, 0
while os.path.exists(path) and (looks == 0 or not os.path.exists(stop)):
    db = sqlite3.connect(path, timeout=10)
    for _ in range(20):
        check = db.execute('PRAGMA integrity_check').fetchone()[0]
        count, newest = db.execute('SELECT count(*), coalesce(max(id), 0) FROM t').fetchone()
        if check != 'ok' or count != newest or newest < last: print('TORN', check, count, newest, last)
        last = newest
        looks += 1
    db.close()
print('looks', looks)
"#;

impl Readers {
    pub fn start(db: &Path, scratch: &Path) -> Readers {
        let stop = scratch.join("stop-reading");
        let spawn = |command: &mut Command| {
            command
                .arg(db)
                .arg(&stop)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let children = vec![
            spawn(Command::new("sh").args(["-c", SHELL_LOOP, "sh"])),
            spawn(Command::new("/usr/bin/python3").args(["-c", PYTHON_LOOP])),
        ];
        Readers { stop, children }
    }

    /// Ends them; they must have looked, and seen nothing but whole databases.
    pub fn check(mut self) {
        std::fs::write(&self.stop, "").unwrap();
        let mut said = Vec::new();
        for mut child in self.children.drain(..) {
            let mut text = String::new();
            child
                .stdout
                .take()
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            assert!(child.wait().unwrap().success(), "{text}");
            said.push(text);
        }
        let shell: Vec<&str> = said[0].lines().collect();
        assert!(shell.len() >= 2, "the shell saw nothing");
        assert!(
            shell.iter().all(|line| ["ok", "0"].contains(line)),
            "{shell:?}"
        );
        assert!(
            said[1].starts_with("looks ") && said[1] != "looks 0\n",
            "{}",
            said[1]
        );
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        let _ = std::fs::write(&self.stop, "");
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a line does with one connection.
#[derive(Clone, Copy, Debug)]
pub enum Line {
    /// Everything passes.
    Good,
    /// The answer breaks off after so many bytes.
    CutAfter(u64),
    /// After so many bytes of the answer nothing passes any more, but the connection stays.
    SilentAfter(u64),
    /// One byte of the answer, the one at this place, is another.
    FlipAt(u64),
    /// Each piece of the answer comes this much later.
    Slow(Duration),
    /// The request breaks off after so many bytes.
    CutRequestAfter(u64),
    /// So many bytes a second pass, in either direction, for two seconds.
    Throttled(u64),
}

impl Line {
    /// What becomes of the other direction.
    fn of_request(self) -> Line {
        match self {
            Line::CutRequestAfter(bytes) => Line::CutAfter(bytes),
            Line::Throttled(_) => self,
            _ => Line::Good,
        }
    }
}

/// A line to a server, on a port of its own.
pub struct Proxy {
    pub addr: SocketAddr,
    stop: Arc<AtomicBool>,
    pub connections: Arc<AtomicU64>,
}

impl Proxy {
    /// `line` says what becomes of the n-th connection, counted from 0.
    pub fn start(to: SocketAddr, mut line: impl FnMut(u64) -> Line + Send + 'static) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&connections));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let line = line(count.fetch_add(1, Ordering::Relaxed));
                let (Ok(client), Ok(server)) = (stream, TcpStream::connect(to)) else {
                    continue;
                };
                let (from, into) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || pass(from, into, line.of_request()));
                std::thread::spawn(move || pass(server, client, line));
            }
        });
        Proxy {
            addr,
            stop,
            connections,
        }
    }

    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.addr)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.addr);
    }
}

fn pass(mut from: TcpStream, mut into: TcpStream, line: Line) {
    let mut buffer = vec![0; 16 * 1024];
    let mut passed = 0_u64;
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let mut bytes = &mut buffer[..count];
        match line {
            Line::Good | Line::CutRequestAfter(_) => {}
            Line::CutAfter(limit) | Line::SilentAfter(limit) => {
                let room = limit.saturating_sub(passed).min(count as u64) as usize;
                bytes = &mut bytes[..room];
            }
            Line::FlipAt(place) => {
                if (passed..passed + count as u64).contains(&place) {
                    bytes[(place - passed) as usize] ^= 0x20;
                }
            }
            Line::Slow(pause) => std::thread::sleep(pause),
            Line::Throttled(rate) => {
                std::thread::sleep(Duration::from_secs(1) * count as u32 / rate as u32);
            }
        }
        if into.write_all(bytes).is_err() {
            break;
        }
        passed += count as u64;
        match line {
            Line::CutAfter(limit) if passed >= limit => break,
            Line::Throttled(rate) if passed >= 2 * rate => break,
            // Reads on, so that the server notices nothing.
            _ => {}
        }
    }
    let _ = into.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// Answers every connection with these bytes, and then closes it (or leaves it open). An answer after which the client could use the
/// connection again says `connection: close`.
pub fn fake_server(answer: Vec<u8>, stays_open: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            // All of the request: what is left unread at the end would reset the connection under the answer.
            let mut request = Vec::new();
            let mut part = [0; 4096];
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read(&mut part) {
                    Ok(count @ 1..) => request.extend_from_slice(&part[..count]),
                    _ => break,
                }
            }
            let _ = stream.write_all(&answer);
            if stays_open {
                open.push(stream);
            }
        }
    });
    addr
}
