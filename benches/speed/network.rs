//! From a commit to the replica: lag, catching up, applying; over loopback, with real processes.

use crate::Options;
use crate::host::{Job, Took, measure, plain, settle};
use crate::report::{Bar, Row};
use crate::work::{TABLE, fill};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A running `mycelite serve`, ended with the value.
struct Server {
    child: Child,
    url: String,
    data: PathBuf,
}

impl Server {
    fn start(data: &Path) -> Server {
        std::fs::create_dir(data).unwrap();
        let mut child = program()
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").unwrap();
        Server {
            url: format!("{url}/app"),
            child,
            data: data.to_path_buf(),
        }
    }

    fn db(&self) -> PathBuf {
        self.data.join("app.db")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_mycelite"))
}

fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_micros()).unwrap()
}

fn job(work: &str, db: &Path, count: u64, replica: &str) -> Job {
    Job {
        work: work.into(),
        db: db.to_path_buf(),
        vfs: "mycelite_writer".into(),
        pragmas: "PRAGMA journal_mode=wal; PRAGMA synchronous=normal".into(),
        count,
        parameters: if replica.is_empty() {
            String::new()
        } else {
            format!("&replica={replica}")
        },
    }
}

/// Commits so many rows, one each, at the pace that `extra` of the job's pragmas asks for, each with the moment of its COMMIT.
pub fn paced(job: &Job) -> Took {
    let pace: u32 = std::env::var("SPEED_PACE").unwrap().parse().unwrap();
    let connection = job.open();
    connection
        .execute_batch("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, us INTEGER)")
        .unwrap();
    let mut insert = connection.prepare("INSERT INTO t(us) VALUES(?1)").unwrap();
    measure(|_| {
        let began = Instant::now();
        for number in 0..job.count {
            let due = Duration::from_secs(number) / pace;
            std::thread::sleep(due.saturating_sub(began.elapsed()));
            insert.execute([now_us()]).unwrap();
        }
    })
}

/// From COMMIT to visible in a plain reader of the replica.
pub fn lag(options: &Options, show: &mut dyn FnMut(Row)) {
    for (pace, seconds) in [(10, 20), (1_000, 10)] {
        let home = tempfile::tempdir_in(&options.disk).unwrap();
        let server = Server::start(&home.path().join("replicas"));
        let count = (pace * seconds / options.divide).max(20);
        let mut writer = job("paced", &home.path().join("primary.db"), count, &server.url)
            .command()
            .env("SPEED_PACE", pace.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let lags = watch(&server.db(), count, &mut writer);
        assert!(writer.wait().unwrap().success());
        let mut sorted = lags;
        sorted.sort_by(f64::total_cmp);
        let at = |part: f64| sorted[((sorted.len() - 1) as f64 * part) as usize];
        let note = format!("{count} commits, all seen; most {:.1} ms", at(1.0));
        for (name, part, bar) in [("p50", 0.5, 2.0), ("p99", 0.99, 15.0)] {
            let name = format!("at {pace}/s, {name}");
            let row = Row::new("lag", &name, &[at(part)], "ms", Bar::AtMost(bar));
            show(row.noted(note.clone()));
        }
    }
}

/// Reads the replica again and again, until it has `count` rows; what each row's way took, in milliseconds.
fn watch(db: &Path, count: u64, writer: &mut Child) -> Vec<f64> {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !db.exists() {
        assert!(Instant::now() < deadline, "no replica");
        std::thread::sleep(Duration::from_millis(1));
    }
    let connection = plain(db);
    let (mut lags, mut last) = (Vec::new(), 0_i64);
    while (lags.len() as u64) < count {
        assert!(Instant::now() < deadline, "{} of {count} rows", lags.len());
        if let Some(status) = writer.try_wait().unwrap() {
            assert!(status.success());
        }
        if let Ok(mut rows) = connection.prepare_cached("SELECT a, us FROM t WHERE a > ?1") {
            let mut rows = rows.query([last]).unwrap();
            while let Some(row) = rows.next().unwrap() {
                let (a, us): (i64, i64) = (row.get(0).unwrap(), row.get(1).unwrap());
                assert_eq!(a, last + 1, "a row is missing");
                lags.push((now_us() - us) as f64 / 1000.0);
                last = a;
            }
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    lags
}

/// A history for [`caught_up`]: so many single-row commits, then one load.
pub fn history(job: &Job) -> Took {
    let rows: u64 = std::env::var("SPEED_ROWS").unwrap().parse().unwrap();
    let connection = job.open();
    connection.execute_batch(TABLE).unwrap();
    measure(|_| {
        let mut insert = connection
            .prepare("INSERT INTO t(r, b) VALUES(random(), hex(randomblob(95)))")
            .unwrap();
        for _ in 0..job.count {
            insert.execute([]).unwrap();
        }
        drop(insert);
        if rows > 0 {
            connection.execute_batch(&fill(rows)).unwrap();
        }
        connection.close().unwrap();
    })
}

/// A replica that has nothing, and a server that has it all: as long as `mycelite follow --once` takes.
pub fn caught_up(options: &Options, show: &mut dyn FnMut(Row)) {
    for (name, commits, rows) in [
        ("one load", 0, 1_000_000),
        ("commits, then a load", 50_000, 900_000),
        ("commits only", 100_000, 0),
    ] {
        let (commits, rows) = (commits / options.divide, rows / options.divide);
        let home = tempfile::tempdir_in(&options.disk).unwrap();
        let server = Server::start(&home.path().join("replicas"));
        let primary = home.path().join("primary.db");
        let output = job("history", &primary, commits, &server.url)
            .command()
            .env("SPEED_ROWS", rows.to_string())
            .output()
            .unwrap();
        assert!(output.status.success());
        let wrote: Took = serde_json::from_slice(&output.stdout).unwrap();
        let bytes = std::fs::metadata(&primary).unwrap().len();
        until_equal(&server.db(), &primary);
        let runs: Vec<f64> = (0..options.runs)
            .map(|number| {
                let copy = home.path().join(format!("copy-{number}.db"));
                settle(home.path());
                let began = Instant::now();
                follow_once(&server.url, &copy);
                let took = began.elapsed().as_secs_f64();
                assert_eq!(std::fs::metadata(&copy).unwrap().len(), bytes);
                remove(&copy);
                took
            })
            .collect();
        let megabytes = bytes as f64 / 1e6;
        let note = format!(
            "{megabytes:.0} MB; {commits} commits; the primary wrote for {:.2} s",
            wrote.wall_s
        );
        let rates: Vec<f64> = runs.iter().map(|took| megabytes / took).collect();
        let bar = if rows == 0 {
            Bar::None
        } else {
            Bar::AtLeast(300.0)
        };
        let rate = format!("{name}, rate");
        show(Row::new("catching up", &rate, &rates, "MB/s", bar).noted(note.clone()));
        let bar = if rows == 0 {
            Bar::None
        } else {
            Bar::AtMost(1.5)
        };
        show(Row::new("catching up", name, &runs, "s", bar).noted(note.clone()));
        let parts: Vec<f64> = runs.iter().map(|took| took / wrote.wall_s).collect();
        let name = format!("{name}, of the writing time");
        show(Row::new("applying", &name, &parts, "×", Bar::AtMost(1.0)).noted(note));
    }
}

/// Seconds that a replica with nothing takes to catch up with so many commits; and the primary, as long as its directory lasts.
pub fn caught_up_with(options: &Options, commits: u64) -> (f64, PathBuf, tempfile::TempDir) {
    let home = tempfile::tempdir_in(&options.disk).unwrap();
    let server = Server::start(&home.path().join("replicas"));
    let primary = home.path().join("primary.db");
    let output = job("history", &primary, commits, &server.url)
        .command()
        .env("SPEED_ROWS", "0")
        .output()
        .unwrap();
    assert!(output.status.success());
    until_equal(&server.db(), &primary);
    settle(home.path());
    let began = Instant::now();
    follow_once(&server.url, &home.path().join("copy.db"));
    (began.elapsed().as_secs_f64(), primary, home)
}

/// The next run finds the memory and the room that this one has used.
fn remove(copy: &Path) {
    std::fs::remove_file(copy).unwrap();
    std::fs::remove_dir_all(mycelite::database::log_dir(copy)).unwrap();
}

/// Makes a replica of what the server has.
fn follow_once(url: &str, copy: &Path) {
    let mut command = program();
    command.args(["follow", url]).arg(copy).arg("--once");
    assert!(command.stdout(Stdio::null()).status().unwrap().success());
}

fn until_equal(replica: &Path, primary: &Path) {
    let rows = |db: &Path| -> Option<(i64, i64)> {
        plain(db)
            .query_row("SELECT count(*), max(a) FROM t", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .ok()
    };
    let deadline = Instant::now() + Duration::from_secs(300);
    let wanted = rows(primary);
    while !replica.exists() || rows(replica) != wanted {
        assert!(Instant::now() < deadline, "the server has not got it all");
        std::thread::sleep(Duration::from_millis(20));
    }
}
