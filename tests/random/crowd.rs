//! Processes with threads that write at once and are killed. Each transaction notes its own SQL in the table `ops`: what
//! plain SQLite makes of these, one after the other, is what must be in the database.

use crate::common::{Random, child_argument, spawn_child};
use crate::host::{Outcome, assert_same_dump, dump, open, run};
use crate::statements::{SCHEMA, change, pick};
use crate::watch::{Moment, Watch};
use rusqlite::{Connection, ffi};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Child;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);
const OPS: &str = "CREATE TABLE ops(n INTEGER PRIMARY KEY, sql TEXT)";

/// One process: some threads, each with a connection, until all have done their share or the process is killed.
#[test]
fn child_writes() {
    let Some(path) = child_argument("CROWD_DB") else {
        return;
    };
    let number = |name: &str| child_argument(name).unwrap().parse::<u64>().unwrap();
    let vfs = child_argument("CROWD_VFS").unwrap();
    let (seed, threads) = (number("CROWD_SEED"), number("CROWD_THREADS"));
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (path, vfs) = (&path, &vfs);
            scope.spawn(move || writer(Path::new(path), vfs, seed * 31 + thread));
        }
    });
}

fn writer(path: &Path, vfs: &str, seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut connection = connect(path, vfs, &mut random);
    for _ in 0..40 + random.below(100) {
        match random.below(30) {
            0 => {
                drop(connection);
                connection = connect(path, vfs, &mut random);
            }
            1..=2 => {
                let kind = pick(&mut random, &["PASSIVE", "FULL", "RESTART", "TRUNCATE"]);
                let sql = format!("PRAGMA wal_checkpoint({kind})");
                expect(run(&connection, &sql), &sql);
            }
            3 => aside(&connection, "VACUUM"),
            4 => aside(&connection, "PRAGMA incremental_vacuum(20)"),
            _ => transaction(&connection, &mut random),
        }
        let database = mycelite::database::find(path.to_str().unwrap());
        let trouble = database.and_then(|database| database.shared().health().degraded);
        assert_eq!(trouble, None, "degraded");
    }
    if seed.is_multiple_of(4) {
        // Not every program closes what it has opened.
        std::mem::forget(connection);
    }
}

fn connect(path: &Path, vfs: &str, random: &mut Random) -> Connection {
    let connection = open(path, vfs, "", PATIENCE).unwrap();
    let settings = [
        format!("PRAGMA cache_size={}", pick(random, &["5", "20", "-2000"])),
        format!("PRAGMA synchronous={}", random.below(3)),
        format!(
            "PRAGMA wal_autocheckpoint={}",
            pick(random, &["5", "50", "1000"])
        ),
        format!("PRAGMA mmap_size={}", pick(random, &["0", "0", "10000000"])),
    ];
    for sql in settings {
        expect(run(&connection, &sql), &sql);
    }
    connection
}

/// Waiting has its bound, and readers may see to it that a checkpoint or VACUUM cannot be had; anything else is an error.
fn is_busy(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Error(code) if [ffi::SQLITE_BUSY, ffi::SQLITE_LOCKED].contains(&(code & 0xff)))
}

fn expect(outcome: Outcome, sql: &str) -> bool {
    assert!(
        !outcome.is_error() || is_busy(&outcome),
        "{sql}: {outcome:?}"
    );
    !outcome.is_error()
}

/// What commits without being noted.
fn aside(connection: &Connection, sql: &str) {
    if expect(run(connection, sql), sql) {
        say("aside");
    }
}

fn say(line: &str) {
    // In one piece, so that the lines of several threads stay apart.
    std::io::stdout()
        .write_all(format!("\n{line}\n").as_bytes())
        .unwrap();
}

/// Some changes, some taken back; what is left of them is noted, and so is their order, by the table's own key.
fn transaction(connection: &Connection, random: &mut Random) {
    let begin = pick(
        random,
        &["BEGIN IMMEDIATE", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"],
    );
    if !expect(run(connection, begin), begin) {
        return;
    }
    let mut done = Vec::new();
    for _ in 0..1 + random.below(4) {
        let kept = done.len();
        let taken_back = random.below(5) == 0;
        if taken_back {
            expect(run(connection, "SAVEPOINT s"), "SAVEPOINT");
        }
        for _ in 0..1 + random.below(2) {
            let sql = change(random);
            match run(connection, &sql) {
                Outcome::Rows(_) => done.push(sql),
                // A conflict that the statement asked for; it may have ended the transaction, or left a part behind.
                Outcome::Error(code) if code & 0xff == ffi::SQLITE_CONSTRAINT => done.push(sql),
                Outcome::Error(code) => panic!("{sql}: error {code}"),
            }
            if connection.is_autocommit() {
                return;
            }
        }
        if taken_back {
            for sql in ["ROLLBACK TO s", "RELEASE s"] {
                expect(run(connection, sql), sql);
            }
            done.truncate(kept);
        }
    }
    let note = format!(
        "INSERT INTO ops(sql) VALUES('{}')",
        done.join(";\n").replace('\'', "''")
    );
    expect(run(connection, &note), "the note");
    let end = pick(
        random,
        &["COMMIT", "COMMIT", "COMMIT", "COMMIT", "ROLLBACK"],
    );
    if !expect(run(connection, end), end) {
        expect(run(connection, "ROLLBACK"), "ROLLBACK");
    }
}

/// The database of an episode, and what is known about it.
struct Crowd {
    path: std::path::PathBuf,
    watch: Watch,
    /// Commits without a note, as far as their processes could say.
    aside: usize,
    /// Processes that may have died between a commit and saying so.
    uncertain: usize,
    kills: usize,
    foreign: bool,
}

impl Crowd {
    fn start(&self, random: &mut Random) -> Child {
        let vfs = if self.foreign && random.below(3) == 0 {
            "unix"
        } else {
            "mycelite_writer"
        };
        spawn_child(
            "crowd::child_writes",
            &[
                ("CROWD_DB", self.path.to_str().unwrap()),
                ("CROWD_VFS", vfs),
                ("CROWD_SEED", &(random.next() >> 20).to_string()),
                ("CROWD_THREADS", &(1 + random.below(3)).to_string()),
            ],
        )
    }

    /// Lets `children` work for a while, and kills some of them.
    fn round(&mut self, random: &mut Random, children: usize) {
        let mut running: Vec<Child> = (0..children).map(|_| self.start(random)).collect();
        for child in &mut running {
            std::thread::sleep(Duration::from_millis(random.below(250)));
            if random.below(4) > 0 {
                child.kill().unwrap();
                self.kills += 1;
            }
        }
        for child in running {
            self.listen(child);
        }
    }

    fn listen(&mut self, mut child: Child) {
        let mut complaint = String::new();
        let mut stderr = child.stderr.take().unwrap();
        let reading = std::thread::spawn(move || {
            std::io::Read::read_to_string(&mut stderr, &mut complaint).map(|_| complaint)
        });
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        self.aside += lines
            .map_while(Result::ok)
            .filter(|line| line == "aside")
            .count();
        let status = child.wait().unwrap();
        let complaint = reading.join().unwrap().unwrap();
        let killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(9);
        assert!(status.success() || killed, "{status}: {complaint}");
        self.uncertain += 3 * usize::from(killed);
    }

    /// Nobody writes: a commit of ours, after which log and image are one.
    fn settle(&mut self, mode: Option<&str>, what: &str) {
        let connection = open(&self.path, "mycelite_writer", "", PATIENCE).unwrap();
        if let Some(mode) = mode {
            let sql = format!("PRAGMA journal_mode={mode}");
            expect(run(&connection, &sql), &sql);
            self.aside += 1;
        }
        let note = "UPDATE t SET b=noise(a, 40) WHERE a%5=0";
        for sql in [
            "BEGIN IMMEDIATE",
            note,
            &format!("INSERT INTO ops(sql) VALUES('{note}')"),
            "COMMIT",
        ] {
            assert!(expect(run(&connection, sql), sql), "{sql}");
        }
        self.watch.settled(what);
        // A reader's close would checkpoint: so does this one.
        drop(connection);
        self.watch.after(Moment::default(), what);
    }

    /// What is in the database is what the notes say, in their order; and each noted transaction is a record.
    fn verify(&mut self, plain: &Path) -> usize {
        let ours = open(&self.path, "unix", "", PATIENCE).unwrap();
        let notes: Vec<String> = {
            let mut statement = ours.prepare("SELECT sql FROM ops ORDER BY n").unwrap();
            let rows = statement.query_map([], |row| row.get(0)).unwrap();
            rows.map(Result::unwrap).collect()
        };
        drop(ours);
        let model = open(plain, "unix", "", PATIENCE).unwrap();
        for sql in SCHEMA.iter().chain([&OPS]) {
            expect(run(&model, sql), sql);
        }
        for note in &notes {
            run(&model, "BEGIN");
            for sql in note.split(";\n") {
                run(&model, sql);
            }
            model
                .execute("INSERT INTO ops(sql) VALUES(?1)", [note])
                .unwrap();
            run(&model, "COMMIT");
        }
        drop(model);
        assert_same_dump(&dump(plain), &dump(&self.path), "replayed on plain SQLite");
        let recorded = self.watch.transactions() - SCHEMA.len() - 1;
        if !self.foreign {
            let most = notes.len() + self.aside + self.uncertain;
            assert!(
                (notes.len()..=most).contains(&recorded),
                "{} notes, at most {most} commits, {recorded} records",
                notes.len()
            );
        }
        notes.len()
    }
}

fn episode(seed: u64) -> [usize; 5] {
    let dir = crate::common::scratch();
    let path = dir.path().join("app.db");
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let foreign = random.below(4) == 0;
    let modes = ["DELETE", "TRUNCATE", "PERSIST", "WAL", "WAL", "WAL"];
    let connection = open(&path, "mycelite_writer", "", PATIENCE).unwrap();
    let first = [
        format!("PRAGMA page_size={}", 512 << random.below(5)),
        format!("PRAGMA auto_vacuum={}", random.below(3)),
        format!("PRAGMA journal_mode={}", pick(&mut random, &modes)),
    ];
    println!("crowd: seed {seed}, {first:?}, foreign: {foreign}");
    for sql in first.iter().map(String::as_str).chain(SCHEMA).chain([OPS]) {
        assert!(expect(run(&connection, sql), sql), "{sql}");
    }
    drop(connection);
    let mut watch = Watch::new(&path);
    watch.excuse();
    let mut crowd = Crowd {
        path,
        watch,
        aside: 1,
        uncertain: 0,
        kills: 0,
        foreign,
    };
    for round in 0..1 + random.below(5) {
        let children = 1 + random.below(3) as usize;
        crowd.round(&mut random, children);
        let mode = (random.below(3) == 0).then(|| pick(&mut random, &modes));
        crowd.settle(mode, &format!("round {round}, foreign: {foreign}"));
    }
    let notes = crowd.verify(&dir.path().join("plain.db"));
    let counts = [
        1,
        notes,
        crowd.kills,
        crowd.watch.rebases,
        crowd.watch.comparisons,
    ];
    crowd.watch.finish();
    counts
}

#[test]
fn crowd() {
    let mut total = [0; 5];
    crate::run_episodes("crowd", |seed| {
        for (sum, n) in total.iter_mut().zip(episode(seed)) {
            *sum += n;
        }
    });
    let [episodes, notes, kills, rebases, comparisons] = total;
    println!(
        "crowd: {episodes} episodes, {notes} transactions, {kills} kills, {rebases} re-bases, {comparisons} comparisons"
    );
}
