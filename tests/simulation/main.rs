//! P1, P4, P9: primaries, servers and followers over a simulated network, clock and disk; a seed decides everything.
//!
//! What runs is what ships: the shipper with its HTTP client, the server with its HTTP server, followers, appliers, the log,
//! SQLite, and the threads and runtimes that they start. Below them this program stands before the C library: one thread runs
//! at a time and gives way where the seed says; the clock goes on when nobody can run; connections are streams of bytes that
//! take their time, break at any byte, go silent, or come again later from nowhere; files are real ones of which it is known
//! what a power cut would leave. A party dies at any call of the system, with its process or with its machine. Each world is a
//! process of its own, so that a failure is one seed and nothing else.
//!
//! In a world there are one or two servers that are pushed to, perhaps one that follows, and a follower of that. What happens
//! to them: links slow, narrow or down; connections broken or silent; what a client said said again; parties killed, cut
//! off their power, stopped, started; full disks, calls that fail, slow syncs, clocks that jump; a second primary (a copy, or
//! another database) under the same name, an old backup in place of the primary. After each event:
//!
//! - a position that a server names in an answer is durable there at that instant, the power being cut (P4);
//! - nothing that was ever durable at a replica is gone: it is in its log or in a parked tail (P9);
//! - each log is what a primary wrote, in order; no two have different records at one place; no tail made room for an older
//!   timeline (P1, P9);
//! - nobody has a record that its source could still lose;
//! - each database file, as SQLite finds it after a crash now, is a recorded image whose record is at hand (P4, P6).
//!
//! In the end the troubles stop, and within twenty simulated minutes every replica has the bytes of its source; two primaries
//! excepted, of which one says that it is refused. A party that asks to stop does so within a minute; one that ends by itself
//! without a failing disk, or a world in which everybody waits for ever, is a failure.
//!
//! Not simulated: capture (the primary writes the images of an SQLite in memory, by capture's rules for timelines), processes
//! that share a file, shared memory that a power cut leaves behind, TLS.
//!
//! ```sh
//! SIM_SEEDS=10000 cargo test --release --test simulation -- --nocapture     # SIM_FIRST=N begins elsewhere
//! SIM_SEED=N cargo test --release --test simulation -- --nocapture          # this one again, with what happened in it
//! ```
//!
//! That it can fail was tried: one thing in what ships was made wrong, and seeds were run from 1 on.
//!
//! | made wrong | found by seed |
//! |---|---|
//! | a server acknowledges before it syncs | 1 |
//! | the name of a new log's directory is not synced (so it was, until this test) | 1 |
//! | a line that was cut is not opened again | 1 |
//! | a parked tail is removed | 49 |
//! | who opens a log believes that the newest segment's name is synced (so it was, until this test) | 495 |
//!
//! Not found in the minute or two that each was tried: an applier that takes what is not synced yet, a log that is opened after a
//! power cut without a look at its bodies, a shipper without a limit on standing still, one that takes a misfit for a success,
//! an append that compares transactions but not checksums (the record itself is compared once more), a puller that stores
//! wherever its log stands.
#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)]

#[path = "../common/mod.rs"]
mod common;

mod check;
mod director;
mod disk;
mod fds;
mod hooks_files;
mod hooks_net;
mod hooks_threads;
mod kernel;
mod net;
mod oracle;
mod outcome;
mod primary;
mod real;
mod world;

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::FromRawFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use outcome::{COUNTED, Numbers};

/// Seeds of an ordinary run.
const SEEDS: u64 = 24;
/// Of so many worlds one is run twice, and must be the same.
const TWICE_ONE_IN: u64 = 12;
/// Real time that one world may take.
const WORLD_MAX: Duration = Duration::from_secs(60);

/// Something is that must not be.
pub fn broken(why: &str) -> ! {
    kernel::with(|kernel| outcome::fail(kernel, why))
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is no number")),
    )
}

/// A world under way, in a process of its own.
struct Running {
    seed: u64,
    pid: libc::pid_t,
    pipe: std::fs::File,
    began: Instant,
}

fn root(seed: u64) -> PathBuf {
    PathBuf::from(format!(
        "/dev/shm/mycelite-simulation-{:08}-{seed:016x}",
        std::process::id()
    ))
}

fn begin(seed: u64, tells: bool) -> Running {
    let mut ends = [0; 2];
    // SAFETY: a place for two numbers; this process has one thread, so that its copy is whole.
    let pid = unsafe {
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        libc::fork()
    };
    assert!(pid >= 0, "no processes left");
    if pid == 0 {
        // SAFETY: the reading end belongs to the parent.
        unsafe { libc::close(ends[0]) };
        outcome::set_pipe(ends[1]);
        world(seed, tells);
    }
    // SAFETY: the writing end belongs to the child; the reading end to nobody else.
    let pipe = unsafe {
        libc::close(ends[1]);
        std::fs::File::from_raw_fd(ends[0])
    };
    Running {
        seed,
        pid,
        pipe,
        began: Instant::now(),
    }
}

/// The life of a child.
fn world(seed: u64, tells: bool) -> ! {
    std::panic::set_hook(Box::new(|info| {
        let what = info.to_string();
        if kernel::current().is_some() {
            broken(&what);
        }
        eprintln!("in the simulation itself: {what}");
        // SAFETY: ends the process, with all its threads as they are.
        unsafe { libc::_exit(2) }
    }));
    let root = PathBuf::from(format!("{}", root_of_parent(seed).display()));
    kernel::start(seed, 7, tells);
    let numbers = director::run(seed, root);
    outcome::succeed(&numbers)
}

fn root_of_parent(seed: u64) -> PathBuf {
    // SAFETY: asks for a number.
    let parent = unsafe { libc::getppid() };
    PathBuf::from(format!(
        "/dev/shm/mycelite-simulation-{parent:08}-{seed:016x}"
    ))
}

/// Waits for a world: its numbers, or why it failed.
fn end(mut running: Running) -> Result<Numbers, String> {
    let mut said = Vec::new();
    let _ = running.pipe.read_to_end(&mut said);
    let mut status = 0;
    // SAFETY: a child of this process, and a place for how it ended.
    unsafe { libc::waitpid(running.pid, &raw mut status, 0) };
    let _ = std::fs::remove_dir_all(root(running.seed));
    match Numbers::decode(&said) {
        Some(numbers) if status == 0 => Ok(numbers),
        _ => Err(format!(
            "{}(exit status {status:#x})",
            String::from_utf8_lossy(&said)
        )),
    }
}

fn has_ended(running: &Running) -> bool {
    let mut fd = libc::pollfd {
        fd: std::os::fd::AsRawFd::as_raw_fd(&running.pipe),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one place.
    let ended = unsafe { libc::poll(&raw mut fd, 1, 0) } > 0;
    if !ended && running.began.elapsed() > WORLD_MAX {
        // SAFETY: a child of this process that has not been waited for.
        unsafe { libc::kill(running.pid, libc::SIGKILL) };
    }
    ended
}

fn replay(seed: u64) -> Result<Numbers, String> {
    let running = begin(seed, true);
    while !has_ended(&running) {
        std::thread::sleep(Duration::from_millis(1));
    }
    end(running)
}

fn main() {
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    hooks_threads::prepare();
    common::load();
    if let Some(seed) = number("SIM_SEED") {
        match replay(seed) {
            Ok(numbers) => println!("seed {seed}: {numbers:?}"),
            Err(why) => {
                eprintln!("{why}\nseed {seed} failed");
                std::process::exit(1);
            }
        }
        return;
    }
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS);
    let first = number("SIM_FIRST").unwrap_or(1);
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let began = Instant::now();
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    let mut failed = Vec::new();
    let mut running: Vec<Running> = Vec::new();
    let mut next = first;
    let stop_after = number("SIM_FAILURES").unwrap_or(1) as usize;
    while (next < first + seeds && failed.len() < stop_after) || !running.is_empty() {
        while running.len() < jobs && next < first + seeds && failed.len() < stop_after {
            running.push(begin(next, false));
            next += 1;
        }
        let Some(index) = running.iter().position(has_ended) else {
            std::thread::sleep(Duration::from_micros(200));
            continue;
        };
        let one = running.swap_remove(index);
        let (seed, took) = (one.seed, one.began.elapsed());
        match end(one) {
            Ok(numbers) => {
                if seed % TWICE_ONE_IN == 0 {
                    assert_eq!(
                        replay(seed),
                        Ok(numbers),
                        "seed {seed} is not the same again"
                    );
                }
                for (name, count) in COUNTED.iter().zip(numbers.counts) {
                    *sums.entry(name).or_default() += count;
                }
            }
            Err(why) => {
                eprintln!("seed {seed} failed after {took:?}: {why}");
                failed.push(seed);
            }
        }
    }
    println!(
        "{} seeds in {:.1} s: {sums:?}",
        next - first,
        began.elapsed().as_secs_f64()
    );
    if let Some(seed) = failed.first() {
        let why = replay(*seed).expect_err("a failure that does not come again");
        eprintln!(
            "{why}\nseed {seed} failed; once more: SIM_SEED={seed} cargo test --test simulation -- --nocapture"
        );
        std::process::exit(1);
    }
}
