//! What the three share: sizes, a primary whose every transaction can be seen to be whole, and the memory of processes.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::{common, netkit};

/// The full sizes.
pub fn is_full() -> bool {
    std::env::var("LOAD").is_ok_and(|value| value == "full")
}

/// Times count: a full run on a machine that does nothing else.
pub fn is_judged() -> bool {
    is_full() && std::env::var_os("LOAD_BUSY").is_none()
}

/// The size `name` of this run.
pub fn setting(name: &str, usual: u64, full: u64) -> u64 {
    let default = if is_full() { full } else { usual };
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// A directory for the run: in memory if it is small.
pub fn place() -> tempfile::TempDir {
    if let Some(dir) = std::env::var_os("LOAD_DIR") {
        return tempfile::tempdir_in(dir).unwrap();
    }
    if is_full() {
        return tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    }
    common::scratch()
}

/// A database in WAL mode whose every transaction changes three places that must fit each other.
pub struct Primary {
    pub db: PathBuf,
    connection: Option<Connection>,
    pub commits: u64,
}

impl Primary {
    pub fn new(db: PathBuf, replica: &str) -> Primary {
        let connection = common::open(&db, &format!("&replica={replica}"));
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
                 CREATE TABLE t(id INTEGER PRIMARY KEY, us INTEGER, filler);
                 CREATE TABLE total(n INTEGER); INSERT INTO total VALUES (0);
                 CREATE TABLE ring(id INTEGER PRIMARY KEY, n INTEGER, filler);
                 WITH RECURSIVE c(x) AS (VALUES(0) UNION ALL SELECT x+1 FROM c WHERE x<999)
                 INSERT INTO ring SELECT x, 0, hex(randomblob(100)) FROM c;",
            )
            .unwrap();
        Primary {
            db,
            connection: Some(connection),
            commits: 0,
        }
    }

    /// Opens the database again after [`Primary::close`].
    pub fn open_again(&mut self, replica: &str) {
        self.connection = Some(common::open(&self.db, &format!("&replica={replica}")));
    }

    pub fn connection(&self) -> &Connection {
        self.connection.as_ref().unwrap()
    }

    pub fn commit(&mut self) {
        self.commits += 1;
        let number = self.commits as i64;
        let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
            let mut statement = self.connection().prepare_cached(sql).unwrap();
            statement.execute(values).unwrap();
        };
        run("BEGIN", &[]);
        run(
            "INSERT INTO t VALUES (?1, ?2, hex(randomblob(20)))",
            &[&number, &(netkit::now_us() as i64)],
        );
        run("UPDATE total SET n = ?1", &[&number]);
        run(
            "UPDATE ring SET n = ?1, filler = hex(randomblob(100)) WHERE id = ?1 % 1000",
            &[&number],
        );
        run("COMMIT", &[]);
    }

    /// Commits `rate` times a second until `time` is over, and calls `each` in between with the part of it that is over.
    pub fn pace(&mut self, rate: u64, time: Duration, mut each: impl FnMut(f64)) -> Duration {
        let (begin, before) = (Instant::now(), self.commits);
        while begin.elapsed() < time {
            self.commit();
            each(begin.elapsed().as_secs_f64() / time.as_secs_f64());
            let due = begin + Duration::from_secs(1) * (self.commits - before) as u32 / rate as u32;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        begin.elapsed()
    }

    /// Closes it, so that the file alone is the image.
    pub fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection
                .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
                .unwrap();
            connection.close().unwrap();
        }
    }
}

/// Waits until all files are byte for byte that of the closed primary, `primary`; how long that took. Another process compares them,
/// since closing a file here would drop the locks of this process's readers.
#[track_caller]
pub fn identical(files: &[&Path], primary: &Path, limit: Duration) -> Duration {
    let begin = Instant::now();
    let wanted = std::fs::metadata(primary).unwrap().len();
    for file in files {
        let is_same = || {
            let mut compare = Command::new("cmp");
            compare.arg("-s").arg(file).arg(primary);
            std::fs::metadata(file).is_ok_and(|found| found.len() == wanted)
                && compare.stdin(Stdio::null()).status().unwrap().success()
        };
        while !is_same() {
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

/// Memory of a process that is its own and no file's, in KiB.
pub fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("RssAnon"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0)
}

/// The most that [`memory`] has said of a process, asked a hundred times a second.
pub struct Peak {
    stop: std::sync::mpsc::Sender<()>,
    thread: std::thread::JoinHandle<u64>,
}

impl Peak {
    pub fn of(pid: u32) -> Peak {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let mut most = memory(pid);
            while stopped.recv_timeout(Duration::from_millis(10))
                == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                most = most.max(memory(pid));
            }
            most
        });
        Peak { stop, thread }
    }

    pub fn kib(self) -> u64 {
        drop(self.stop);
        self.thread.join().unwrap()
    }
}

pub fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
