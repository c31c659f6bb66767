//! A server, a writer in a process of its own, and readers of the replica.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mycelite_journal::{FileStorage, Reader, Txid};
use tempfile::TempDir;

use crate::clikit::{Serve, text, wait_for};
use crate::disk::log_of;
use crate::kit::{LONG, ask, assert_identical, mycelite, own_address, shell, uri, writer_shell};

/// Numbers that are equal after every commit, and so in every state of the database.
const NUMBERS: &str = "SELECT (SELECT min(n) FROM state) || '|' || (SELECT max(n) FROM state) || '|' || count(*) FROM pad";

pub struct World {
    pub home: TempDir,
    pub server: Serve,
    pub db: PathBuf,
    mode: &'static str,
    /// The number of the last commit: what readers see.
    pub commits: u64,
}

impl World {
    pub fn new(mode: &'static str) -> World {
        let home = tempfile::tempdir().unwrap();
        let server = Serve::start_at(&home.path().join("replicas"), &own_address(), &[]);
        let db = home.path().join("app.db");
        World {
            home,
            server,
            db,
            mode,
            commits: 0,
        }
    }

    pub fn replica(&self) -> PathBuf {
        self.server.db("app")
    }

    pub fn replica_log(&self) -> PathBuf {
        log_of(&self.replica())
    }

    /// A writer, which makes the tables if they are not there.
    pub fn writer(&self) -> Writer {
        Writer::start(&uri(&self.db, &self.server.url("app")), self.mode)
    }

    /// So many commits.
    pub fn write(&mut self, writer: &mut Writer, count: u64) {
        for _ in 0..count {
            self.commits += 1;
            writer.commit(self.commits);
        }
    }

    /// Waits until the replica's file has what the primary has.
    pub fn wait_for_replica(&self) {
        let wanted = format!("{0}|{0}|{0}", self.commits);
        let replica = self.replica();
        let head = pos(&self.db);
        let deadline = Instant::now() + LONG;
        loop {
            let ran = mycelite(&["status", &self.server.url("app"), "--json"]);
            let status = serde_json::from_str::<serde_json::Value>(&ran.stdout).unwrap_or_default();
            let has_log = status["pos"] == head && status["applied_txid"] == head["txid"];
            let seen = if has_log {
                try_ask(&replica, NUMBERS)
            } else {
                None
            };
            if seen.as_ref() == Some(&wanted) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "the replica does not get to {head} with {wanted}: {seen:?}, {ran:?}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Everything is one and the same, and everybody says so.
    pub fn assert_all_well(&mut self, writer: Writer) {
        self.wait_for_replica();
        let mut writer = writer;
        wait_for("the writer to know that", LONG, || {
            let status = writer.status();
            status["state"] == "ok" && status["replicas"][0]["state"] == "caught-up"
        });
        writer.close();
        assert_identical(&self.db, &[(&self.server, "app")]);
        let log = raw_records(&log_of(&self.db), 0);
        assert!(raw_records(&self.replica_log(), 0) == log);
        let status = self.server_status();
        assert_eq!(
            (&status["state"], &status["last_error"]),
            (&"ok".into(), &"".into())
        );
    }

    /// What the server says.
    pub fn server_status(&self) -> serde_json::Value {
        mycelite(&["status", &self.server.url("app"), "--json"]).json()
    }

    /// The parked tails of the replica: timeline, first and last transaction; and the bytes of their records.
    pub fn parked(&self) -> Vec<([u64; 3], Vec<Vec<u8>>)> {
        let of_file = mycelite(&["status", text(&self.replica()), "--json"]).json();
        assert_eq!(of_file["parked"], self.server_status()["parked"]);
        let Some(tails) = of_file["parked"].as_array() else {
            return Vec::new();
        };
        let read = |tail: &serde_json::Value| {
            let numbers =
                ["timeline", "first_txid", "last_txid"].map(|key| tail[key].as_u64().unwrap());
            let dir = self.replica_log().join("parked");
            let records = raw_records(&dir.join(tail["name"].as_str().unwrap()), numbers[1] - 1);
            (numbers, records)
        };
        tails.iter().map(read).collect()
    }
}

/// Where a log ends, as the program says it.
fn pos(db: &Path) -> serde_json::Value {
    mycelite(&["status", text(db), "--json"]).json()["pos"].clone()
}

fn try_ask(db: &Path, sql: &str) -> Option<String> {
    let output = shell()
        .args(["-cmd", ".timeout 20000"])
        .arg(db)
        .arg(sql)
        .output()
        .unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    output.status.success().then(|| line.trim().to_string())
}

pub fn raw_records(log_dir: &Path, after: u64) -> Vec<Vec<u8>> {
    let mut reader = Reader::open(Arc::new(FileStorage::new(log_dir))).unwrap();
    reader.seek(Txid(after)).unwrap();
    let mut records = Vec::new();
    while let Some(entry) = reader.next().unwrap() {
        let mut bytes = Vec::new();
        entry.raw().read_to_end(&mut bytes).unwrap();
        records.push(bytes);
    }
    records
}

/// The stock shell with the extension, which commits when it is told to.
pub struct Writer {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Writer {
    fn start(uri: &str, mode: &str) -> Writer {
        let mut child = writer_shell(uri)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut writer = Writer {
            stdin: child.stdin.take().unwrap(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        };
        let said = writer.ask(&format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE IF NOT EXISTS state(id INTEGER PRIMARY KEY, n, b);
             CREATE TABLE IF NOT EXISTS pad(n INTEGER PRIMARY KEY, b);
             INSERT INTO state SELECT value, 0, zeroblob(1500) FROM generate_series(1, 20)
               WHERE NOT EXISTS (SELECT 1 FROM state);
             SELECT 'ready';"
        ));
        assert!(said.eq_ignore_ascii_case(mode), "{said}");
        writer.line("ready");
        writer
    }

    fn ask(&mut self, sql: &str) -> String {
        writeln!(self.stdin, "{sql}").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim().to_string()
    }

    fn line(&mut self, wanted: &str) {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), wanted);
    }

    fn commit(&mut self, n: u64) {
        let said = self.ask(&format!(
            "BEGIN; UPDATE state SET n = {n}, b = randomblob(1500); INSERT INTO pad VALUES({n}, randomblob(2500)); COMMIT; SELECT {n};"
        ));
        assert_eq!(said, n.to_string());
    }

    /// Runs statements that answer with one line.
    pub fn run(&mut self, sql: &str) {
        let said = self.ask(&format!("{sql}; SELECT 'done';"));
        if said != "done" {
            self.line("done");
        }
    }

    pub fn status(&mut self) -> serde_json::Value {
        serde_json::from_str(&self.ask("SELECT mycelite_status();")).unwrap()
    }

    pub fn close(self) {
        let Writer {
            mut child, stdin, ..
        } = self;
        drop(stdin);
        assert!(child.wait().unwrap().success());
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Readers without the extension: shells that are started anew for each read, and one connection that stays.
pub struct Readers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
}

impl Readers {
    pub fn start(replica: &Path) -> Readers {
        let stop = Arc::new(AtomicBool::new(false));
        let check = |line: &str| {
            let numbers: Vec<&str> = line.split('|').collect();
            let same = numbers.len() == 3 && numbers.iter().all(|one| *one == numbers[0]);
            assert!(same, "a state that never was: {line:?}");
        };
        let (path, ends) = (replica.to_path_buf(), Arc::clone(&stop));
        let shells = std::thread::spawn(move || {
            let mut reads = 0;
            while !ends.load(Ordering::SeqCst) {
                check(&ask(&path, NUMBERS));
                reads += 1;
                if reads % 10 == 0 {
                    assert_eq!(ask(&path, "PRAGMA quick_check"), "ok");
                }
            }
            reads
        });
        let (path, ends) = (replica.to_path_buf(), Arc::clone(&stop));
        let stays = std::thread::spawn(move || {
            let db = rusqlite::Connection::open(path).unwrap();
            db.busy_timeout(LONG).unwrap();
            let mut reads = 0;
            while !ends.load(Ordering::SeqCst) {
                check(
                    &db.query_row(NUMBERS, [], |row| row.get::<_, String>(0))
                        .unwrap(),
                );
                reads += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            reads
        });
        Readers {
            stop,
            threads: vec![shells, stays],
        }
    }

    /// Ends them; how often they read.
    pub fn stop(mut self) -> Vec<u64> {
        self.stop.store(true, Ordering::SeqCst);
        let threads = std::mem::take(&mut self.threads);
        threads.into_iter().map(|one| one.join().unwrap()).collect()
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}
