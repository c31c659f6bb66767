//! One side of a comparison: a process of its own, which works on one database and prints what that took.

use rusqlite::{Connection, OpenFlags};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// What a process is to do; passed on in its environment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The name of the work; see [`crate::work`].
    pub work: String,
    pub db: PathBuf,
    /// `unix`, or `mycelite_writer`.
    pub vfs: String,
    /// Run on each connection before anything else.
    pub pragmas: String,
    /// How often, how much: its meaning is the work's.
    pub count: u64,
    /// More parameters of the URI, beginning with `&`; or nothing.
    pub parameters: String,
}

/// What a job took.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Took {
    pub wall_s: f64,
    /// User and system time of the process, all its threads, and of the processes that it started.
    pub cpu_s: f64,
    /// The most memory that it held at once.
    pub memory_mb: f64,
    /// Bytes of pages that SQLite wrote.
    pub page_bytes: u64,
    /// A figure of the work's own.
    pub extra: f64,
}

const JOB: &str = "SPEED_JOB";

impl Job {
    /// The job of this process, if it was started for one.
    pub fn of_this_process() -> Option<Job> {
        let job = std::env::var(JOB).ok()?;
        Some(serde_json::from_str(&job).unwrap())
    }

    /// Runs the job in a process of its own.
    pub fn run(&self) -> Took {
        let output = self.command().output().unwrap();
        assert!(
            output.status.success(),
            "{self:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The process that does the job.
    pub fn command(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(JOB, serde_json::to_string(self).unwrap());
        command
    }

    /// Opens the job's database.
    pub fn open(&self) -> Connection {
        load();
        let Job {
            db,
            vfs,
            parameters,
            ..
        } = self;
        let uri = format!("file:{}?vfs={vfs}{parameters}", db.display());
        let connection = Connection::open_with_flags(uri, OpenFlags::default()).unwrap();
        connection.busy_timeout(Duration::from_secs(60)).unwrap();
        connection.execute_batch(&self.pragmas).unwrap();
        connection
    }
}

/// Measures `work`.
pub fn measure(work: impl FnOnce(&mut Took)) -> Took {
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let mut took = Took::default();
    work(&mut took);
    took.wall_s = began.elapsed().as_secs_f64();
    took.cpu_s = cpu_seconds() - cpu;
    took.memory_mb = memory_mb("VmHWM");
    took
}

/// User and system time of this process and of those that it has waited for, in seconds.
fn cpu_seconds() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN]
        .map(|who| {
            let usage = getrusage(who).unwrap();
            [usage.user_time(), usage.system_time()]
                .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6)
        })
        .iter()
        .flatten()
        .sum()
}

/// What earlier runs have left to be written is not the next one's.
pub fn settle(dir: &Path) {
    let _ = Command::new("sync").arg("-f").arg(dir).status();
}

/// A field of this process's status, in megabytes.
pub fn memory_mb(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024.0 / 1e6
}

/// Bytes of pages that SQLite has written through this connection.
pub fn page_bytes(connection: &Connection) -> u64 {
    let size: u32 = connection
        .query_row("PRAGMA page_size", [], |row| row.get(0))
        .unwrap();
    let (mut now, mut most) = (0, 0);
    // SAFETY: the handle is open, and the places are ours.
    unsafe {
        rusqlite::ffi::sqlite3_db_status(
            connection.handle(),
            rusqlite::ffi::SQLITE_DBSTATUS_CACHE_WRITE,
            &raw mut now,
            &raw mut most,
            0,
        );
    }
    u64::try_from(now).unwrap() * u64::from(size)
}

/// Registers the extension with this program's SQLite.
pub fn load() {
    type Entry = unsafe extern "C" fn(
        *mut rusqlite::ffi::sqlite3,
        *mut *mut std::ffi::c_char,
        *const std::ffi::c_void,
    ) -> i32;
    let entry: Entry = mycelite::auto_extension_entry;
    // SAFETY: both types are an extension's entry point; only the name of the table's type differs.
    let rc = unsafe { rusqlite::ffi::sqlite3_auto_extension(Some(std::mem::transmute(entry))) };
    assert_eq!(rc, 0);
    Connection::open_in_memory().unwrap();
}

/// A connection without the extension.
pub fn plain(db: &Path) -> Connection {
    let connection =
        Connection::open_with_flags_and_vfs(db, OpenFlags::default(), c"unix").unwrap();
    connection.busy_timeout(Duration::from_secs(60)).unwrap();
    connection
}
