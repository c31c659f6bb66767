//! Processes with threads that write at once and are killed. Each transaction notes its own SQL in the table `ops`: what
//! plain SQLite makes of these, one after the other, is what must be in the database.

use crate::common::{Random, child_argument, spawn_child};
use crate::host::{Outcome, assert_same_dump, dump, open, run};
use crate::statements::{SCHEMA, change, pick};
use crate::watch::{Moment, Watch};
use rusqlite::{Connection, ffi};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);
const OPS: &str = "CREATE TABLE ops(n INTEGER PRIMARY KEY, sql TEXT)";
/// What a database holds before it has a log, in the episodes in which processes are killed while they adopt it.
const BULK: [&str; 2] = [
    "CREATE TABLE bulk(b)",
    "INSERT INTO bulk VALUES(zeroblob(1000000)), (noise(1, 2000000)), (zeroblob(1000000))",
];

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
    for _ in 0..20 + random.below(60) {
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
    attach(&connection, path, vfs);
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

/// The second database, where an episode has one: `y(a INTEGER PRIMARY KEY, b)`, written in the same transactions.
fn second(path: &Path) -> PathBuf {
    path.with_extension("second")
}

fn attach(connection: &Connection, path: &Path, vfs: &str) {
    let second = second(path);
    if second.exists() {
        let sql = format!("ATTACH 'file:{}?vfs={vfs}' AS second", second.display());
        assert!(expect(run(connection, &sql), &sql));
    }
}

/// A change, of the second database where there is one and chance has it so.
fn any_change(connection: &Connection, random: &mut Random) -> String {
    let both = connection.db_name(2).is_ok();
    if !both || random.below(3) > 0 {
        return change(random);
    }
    let (seed, k) = (random.below(1 << 40), random.below(5));
    match random.below(3) {
        0 => format!("UPDATE second.y SET b=noise({seed}+a, 200) WHERE a%5={k}"),
        1 => format!("DELETE FROM second.y WHERE a%5={k}"),
        _ => format!(
            "INSERT INTO second.y(b) SELECT noise({seed}+a, 700) FROM t ORDER BY a LIMIT 20"
        ),
    }
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
            let sql = any_change(connection, random);
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

fn begin_second(path: &Path, vfs: &str) {
    let connection = open(&second(path), vfs, "", PATIENCE).unwrap();
    let sql = "CREATE TABLE y(a INTEGER PRIMARY KEY, b)";
    assert!(expect(run(&connection, sql), sql));
}

/// The database of an episode, and what is known about it.
struct Crowd {
    path: PathBuf,
    watch: Watch,
    /// The second database's.
    beside: Option<Watch>,
    /// Records of what made the tables.
    begun: usize,
    /// Commits without a note, as far as their processes could say.
    aside: usize,
    /// Processes that may have died between a commit and saying so.
    uncertain: usize,
    kills: usize,
    foreign: bool,
    /// There was no log at the beginning.
    adopted: bool,
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
                // As any setting, from the environment: what has no log is adopted by a thread, however small it is.
                ("MYCELITE_ADOPT_BACKGROUND_MIN", "0"),
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
        attach(&connection, &self.path, "mycelite_writer");
        let changes = match &self.beside {
            Some(_) => {
                "UPDATE t SET b=noise(a, 40) WHERE a%5=0;\nINSERT INTO second.y(b) SELECT noise(count(*), 90) FROM second.y"
            }
            None => "UPDATE t SET b=noise(a, 40) WHERE a%5=0",
        };
        let note = format!("INSERT INTO ops(sql) VALUES('{changes}')");
        let steps = ["BEGIN IMMEDIATE"].into_iter().chain(changes.split(";\n"));
        for sql in steps.chain([note.as_str(), "COMMIT"]) {
            assert!(expect(run(&connection, sql), sql), "{sql}");
        }
        self.watch.settled(what);
        if let Some(beside) = &mut self.beside {
            beside.settled(what);
        }
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
        let bulk = BULK.iter().filter(|_| self.adopted);
        for sql in SCHEMA.iter().chain([&OPS]).chain(bulk) {
            expect(run(&model, sql), sql);
        }
        if self.beside.is_some() {
            begin_second(plain, "unix");
            attach(&model, plain, "unix");
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
        let recorded = self.watch.transactions() - self.begun;
        if !self.foreign {
            let most = notes.len() + self.aside + self.uncertain;
            // What was committed before the adoption has come to its end may be in the first record.
            let least = if self.adopted { 0 } else { notes.len() };
            assert!(
                (least..=most).contains(&recorded),
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
    let both = random.below(4) == 0;
    let adopted = !both && random.below(3) == 0;
    // A commit over two files is one in the modes with a super-journal only.
    let modes: &[&str] = if both {
        &["DELETE", "TRUNCATE", "PERSIST"]
    } else {
        &["DELETE", "TRUNCATE", "PERSIST", "WAL", "WAL", "WAL"]
    };
    let first_mode = if adopted {
        "WAL"
    } else {
        pick(&mut random, modes)
    };
    let vfs = if adopted { "unix" } else { "mycelite_writer" };
    let connection = open(&path, vfs, "", PATIENCE).unwrap();
    let first = [
        format!("PRAGMA page_size={}", 512 << random.below(5)),
        format!("PRAGMA auto_vacuum={}", random.below(3)),
        format!("PRAGMA journal_mode={first_mode}"),
    ];
    let bulk = BULK.into_iter().filter(|_| adopted);
    let tables = SCHEMA.iter().copied().chain([OPS]).chain(bulk);
    for sql in first.iter().map(String::as_str).chain(tables) {
        assert!(expect(run(&connection, sql), sql), "{sql}");
    }
    drop(connection);
    let mut watch = Watch::new(&path);
    watch.excuse();
    let begun = watch.transactions();
    let beside = both.then(|| {
        begin_second(&path, "mycelite_writer");
        Watch::new(&second(&path))
    });
    let mut crowd = Crowd {
        path,
        watch,
        beside,
        begun,
        aside: 0,
        uncertain: 0,
        kills: 0,
        foreign,
        adopted,
    };
    for round in 0..1 + random.below(5) {
        let children = 1 + random.below(3) as usize;
        crowd.round(&mut random, children);
        let mode = (random.below(3) == 0).then(|| pick(&mut random, modes));
        let what = format!(
            "{first:?}, two files: {both}, foreign: {foreign}, adopted: {adopted}, round {round}"
        );
        crowd.settle(mode, &what);
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
    if let Some(beside) = crowd.beside {
        beside.finish();
    }
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
