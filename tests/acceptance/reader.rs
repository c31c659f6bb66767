//! Stock shells, without the extension, that read a replica all the while: never an error, never a torn state, never an
//! older state than the one before, and in the end the newest.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::clikit::wait_for;
use crate::kit::{LONG, ask, shell};

/// Each commit of the load leaves these equal: every package has its description and its entry in the full-text index.
pub const PACKAGES: &str = "SELECT (SELECT count(*) FROM version) || '|' || (SELECT count(*) FROM description) \
    || '|' || (SELECT count(*) FROM package_text_docsize)";

/// After so many reads by new shells, one checks the whole file.
const QUICK_CHECK_EVERY: u64 = 10;

/// Two kinds of readers of one replica: a shell that is started anew for each read, and one that stays.
pub struct Readers {
    stop: Arc<AtomicBool>,
    /// The newest state that each has seen.
    newest: [Arc<AtomicU64>; 2],
    threads: Vec<JoinHandle<Seen>>,
}

/// What a reader saw.
#[derive(Debug, Default)]
pub struct Seen {
    pub reads: u64,
    /// Different states among them.
    pub states: u64,
    pub quick_checks: u64,
}

impl Readers {
    /// Waits for the first content of the replica, then reads on and on with `sql`, which gives numbers that are equal
    /// at every commit, joined by `|`. All shells have a busy timeout: see `a_shell_without_a_timeout`.
    pub fn start(replica: &Path, sql: &'static str, table: &str) -> Readers {
        let there = format!("SELECT count(*) FROM sqlite_schema WHERE name = '{table}'");
        wait_for("the replica's first content", LONG, || {
            replica.metadata().is_ok_and(|meta| meta.len() > 0) && ask(replica, &there) == "1"
        });
        let stop = Arc::new(AtomicBool::new(false));
        let newest: [Arc<AtomicU64>; 2] = Default::default();
        let spawn = |read: fn(Watch) -> Seen, newest: &Arc<AtomicU64>| {
            let watch = Watch {
                replica: replica.to_path_buf(),
                sql,
                stop: Arc::clone(&stop),
                newest: Arc::clone(newest),
                seen: Seen::default(),
            };
            std::thread::spawn(move || read(watch))
        };
        let threads = vec![spawn(new_shells, &newest[0]), spawn(one_shell, &newest[1])];
        Readers {
            stop,
            newest,
            threads,
        }
    }

    /// Waits until both have seen `last`, and tells what they saw.
    #[track_caller]
    pub fn stop(mut self, last: usize) -> Vec<Seen> {
        let expected = last as u64;
        wait_for("the readers to see the last state", LONG, || {
            self.threads.iter().any(JoinHandle::is_finished)
                || self
                    .newest
                    .iter()
                    .all(|newest| newest.load(Ordering::SeqCst) == expected)
        });
        self.stop.store(true, Ordering::SeqCst);
        let seen: Vec<Seen> = std::mem::take(&mut self.threads)
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        for one in &seen {
            assert!(one.reads >= 5 && one.states >= 2, "{seen:?}");
        }
        assert!(seen[0].quick_checks > 0, "{seen:?}");
        seen
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

struct Watch {
    replica: PathBuf,
    sql: &'static str,
    stop: Arc<AtomicBool>,
    newest: Arc<AtomicU64>,
    seen: Seen,
}

impl Watch {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    /// One answer: all numbers equal, and none smaller than before.
    fn look(&mut self, line: &str) {
        let numbers: Vec<u64> = line
            .split('|')
            .map(|number| {
                number
                    .parse()
                    .unwrap_or_else(|_| panic!("no state: {line:?}"))
            })
            .collect();
        assert!(
            numbers.windows(2).all(|pair| pair[0] == pair[1]),
            "a torn state: {line}"
        );
        let before = self.newest.load(Ordering::SeqCst);
        assert!(numbers[0] >= before, "an old state: {line} after {before}");
        self.seen.reads += 1;
        self.seen.states += u64::from(numbers[0] > before || self.seen.reads == 1);
        self.newest.store(numbers[0], Ordering::SeqCst);
    }
}

fn new_shells(mut watch: Watch) -> Seen {
    while watch.goes_on() {
        let line = ask(&watch.replica, watch.sql);
        watch.look(&line);
        if watch.seen.reads % QUICK_CHECK_EVERY == 1 {
            assert_eq!(ask(&watch.replica, "PRAGMA quick_check"), "ok");
            watch.seen.quick_checks += 1;
        }
    }
    watch.seen
}

fn one_shell(mut watch: Watch) -> Seen {
    let mut shell = Session::start(&watch.replica, 60_000);
    while watch.goes_on() {
        let line = shell.ask(watch.sql);
        watch.look(&line);
        std::thread::sleep(Duration::from_millis(2));
    }
    shell.end();
    watch.seen
}

/// A stock shell that stays open.
struct Session {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Session {
    fn start(db: &Path, timeout_ms: u32) -> Session {
        let mut child = shell()
            .arg("-cmd")
            .arg(format!(".timeout {timeout_ms}"))
            .arg(db)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let errors = sender.clone();
        std::thread::spawn(move || pass_on(stdout, &sender));
        // An error is an answer, too: one that no test expects.
        std::thread::spawn(move || pass_on(stderr, &errors));
        Session {
            stdin: child.stdin.take().unwrap(),
            child,
            lines,
        }
    }

    fn ask(&mut self, sql: &str) -> String {
        writeln!(self.stdin, "{sql};").unwrap();
        self.lines.recv_timeout(LONG).unwrap()
    }

    fn end(mut self) {
        drop(self.stdin);
        let deadline = Instant::now() + LONG;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the shell does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(self.lines.try_iter().next(), None);
    }
}

fn pass_on(pipe: impl BufRead, sender: &std::sync::mpsc::Sender<String>) {
    for line in pipe.lines().map_while(Result::ok) {
        // Nobody listens any more if the test has failed.
        let _ = sender.send(line);
    }
}
