//! A primary at a steady pace and its replicas: a hub that it ships to, a mirror of the hub, and three followers, one of the
//! mirror (cascaded), one behind a line that is cut again and again, one that is killed again and again.

use std::io::{BufRead, BufReader, Lines};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::clikit::{Serve, wait_for};
use crate::kit::{Follow, LONG};
use crate::netkit::gate::Gate;
use crate::watch::{Watch, heading};
use crate::world::{Primary, identical, is_full, is_judged, memory, mib, place, setting};

/// When memory is looked at, as parts of the run.
const MEMORY_AT: [f64; 3] = [0.2, 0.6, 0.99];
/// A process may have so much more at the end than in the middle: what allocators keep, and what one batch more needs.
const GROWTH_KIB_MAX: u64 = 8 * 1024;

/// The primary, in a process of its own: so its memory is the product's, and that of no reader.
struct Process {
    db: PathBuf,
    child: Child,
    told: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(db: PathBuf, replica: &str, rate: u64, time: Duration) -> Process {
        let (rate, seconds) = (rate.to_string(), time.as_secs_f64().to_string());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "pace::primary_process", "--nocapture"])
            .env("PRIMARY_DB", &db)
            .envs([("PRIMARY_REPLICA", replica), ("PRIMARY_RATE", &rate)])
            .env("PRIMARY_SECONDS", seconds)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let told = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut process = Process { db, child, told };
        process.line("made");
        process
    }

    /// Waits for the line that begins so; the rest of it.
    fn line(&mut self, begin: &str) -> String {
        loop {
            let line = self.told.next().expect("the primary ended").unwrap();
            if let Some((_, rest)) = line.split_once(begin) {
                return rest.trim().to_owned();
            }
        }
    }

    /// Waits until all is written: how many commits, in what time.
    fn written(&mut self) -> (u64, Duration) {
        let line = self.line("written");
        let (commits, seconds) = line.split_once(' ').unwrap();
        let took = Duration::from_secs_f64(seconds.parse().unwrap());
        (commits.parse().unwrap(), took)
    }

    /// Has it close the database, so that the file alone is the image.
    fn close(&mut self) {
        drop(self.child.stdin.take());
        self.line("closed");
        assert!(self.child.wait().unwrap().success());
    }
}

/// The process of the above.
#[test]
fn primary_process() {
    let setting = |name: &str| std::env::var(name).ok();
    let Some(db) = setting("PRIMARY_DB") else {
        return;
    };
    let number = |name: &str| setting(name).unwrap().parse::<f64>().unwrap();
    let mut primary = Primary::new(PathBuf::from(db), &setting("PRIMARY_REPLICA").unwrap());
    println!("made");
    let time = Duration::from_secs_f64(number("PRIMARY_SECONDS"));
    let took = primary.pace(number("PRIMARY_RATE") as u64, time, |_| {});
    println!("written {} {}", primary.commits, took.as_secs_f64());
    std::io::stdin()
        .lock()
        .read_line(&mut String::new())
        .unwrap();
    primary.close();
    println!("closed");
}

/// A follower that is killed again and again, and started anew.
struct Victim {
    done: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<(Follow, u64)>,
}

impl Victim {
    fn start(url: String, db: PathBuf, every: Duration) -> Victim {
        let done = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            let mut kills = 0;
            loop {
                let victim = Follow::start(&url, &db, &[]);
                let until = Instant::now() + every;
                while Instant::now() < until {
                    if over.load(Ordering::Relaxed) {
                        return (victim, kills);
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
                victim.kill();
                kills += 1;
            }
        });
        Victim { done, thread }
    }

    /// Lets the last one live; with it, how many were killed.
    fn spare(self) -> (Follow, u64) {
        self.done.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// A line to `hub` that is cut for a sixth of each `round`, in its middle.
fn cut_line(hub: &Serve, round: Duration) -> Gate {
    let begin = Instant::now();
    Gate::start(hub.address.parse().unwrap(), move || {
        let within = begin.elapsed().as_secs_f64() % round.as_secs_f64() / round.as_secs_f64();
        !(5.0 / 12.0..7.0 / 12.0).contains(&within)
    })
}

/// Prints the memory of the processes, and demands that it does not grow.
fn judge_memory(processes: &[(&str, u32)], samples: &[Vec<u64>]) {
    println!(
        "{:<9} {:>9} {:>9} {:>9}",
        "process", "20 % MiB", "60 % MiB", "end MiB"
    );
    for (at, (name, _)) in processes.iter().enumerate() {
        let [first, middle, end] = [0, 1, 2].map(|when| samples[when][at]);
        println!(
            "{name:<9} {:>9.1} {:>9.1} {:>9.1}",
            mib(first),
            mib(middle),
            mib(end)
        );
        assert!(
            end <= middle + GROWTH_KIB_MAX,
            "{name} grows: {middle} KiB, then {end} KiB"
        );
    }
}

#[test]
fn all_replicas_are_identical_after_a_time_under_load() {
    let seconds = setting("LOAD_SECONDS", 6, 300);
    let rate = setting("LOAD_RATE", 200, 1000);
    let dir = place();
    let path = |name: &str| dir.path().join(name);
    let hub = Serve::start(&path("hub"), &[]);
    let mirror = Serve::start(
        &path("mirror"),
        &["--follow", &format!("app={}", hub.url("app"))],
    );
    let time = Duration::from_secs(seconds);
    let mut primary = Process::start(path("app.db"), &hub.url("app"), rate, time);
    wait_for("the mirror", LONG, || mirror.db("app").exists());
    let (cascaded, cut, killed) = (path("cascaded.db"), path("cut.db"), path("killed.db"));
    let last = Follow::start(&mirror.url("app"), &cascaded, &[]);
    let (cut_every, kill_every) = if is_full() {
        (60, 20)
    } else {
        (seconds / 2, seconds / 3)
    };
    let line = cut_line(&hub, Duration::from_secs(cut_every));
    let behind_line = Follow::start(&line.url("app"), &cut, &[]);
    let victim = Victim::start(
        hub.url("app"),
        killed.clone(),
        Duration::from_secs(kill_every),
    );
    let files = [&hub.db("app"), &mirror.db("app"), &cascaded, &cut, &killed];
    let stop = Arc::new(AtomicBool::new(false));
    let names = ["hub", "mirror", "cascaded", "cut", "killed"].into_iter();
    let watches: Vec<Watch> = names
        .zip(files)
        .map(|(name, db)| Watch::start(name, db, &stop))
        .collect();
    let processes = [
        ("primary", primary.child.id()),
        ("hub", hub.child.id()),
        ("mirror", mirror.child.id()),
        ("cascaded", last.child.id()),
        ("cut", behind_line.child.id()),
    ];
    let memories = || processes.iter().map(|(_, pid)| memory(*pid)).collect();
    let begin = Instant::now();
    let mut samples: Vec<Vec<u64>> = Vec::new();
    for at in MEMORY_AT {
        let due = begin + time.mul_f64(at);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        samples.push(memories());
    }
    let (commits, took) = primary.written();
    let ended = Instant::now();
    let (spared, kills) = victim.spare();
    primary.close();
    identical(&files.map(PathBuf::as_path), &primary.db, LONG * 2);
    let settled = ended.elapsed();
    stop.store(true, Ordering::Relaxed);
    let reached = commits as f64 / took.as_secs_f64();
    println!(
        "load: {} commits in {:.1} s ({reached:.0}/s of {rate}), {kills} kills; all five files identical {:.0} ms after the end",
        commits,
        took.as_secs_f64(),
        settled.as_secs_f64() * 1e3
    );
    heading();
    watches.into_iter().for_each(Watch::end);
    judge_memory(&processes, &samples);
    assert!(kills >= 2);
    if is_judged() {
        assert!(settled < Duration::from_secs(2), "{settled:?}");
        assert!(reached >= rate as f64 * 0.99, "{reached:.0}/s");
    }
    drop((spared, behind_line, last));
}
