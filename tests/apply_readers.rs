//! P6: plain SQLite, without us and in other processes, reads the replica while records are applied: never an error, never a
//! torn state, never an old state once a new one is there.

#![allow(clippy::unwrap_used)]

mod apply_common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use apply_common::{World, assert_identical, catch_up};
use mycelite::apply::Applier;

/// Each transaction adds a row to `n`, and changes `t` so that its sum is the number of those rows.
const SETUP: &str = "CREATE TABLE n(a INTEGER PRIMARY KEY); CREATE TABLE t(a INTEGER PRIMARY KEY, b INT, c TEXT); \
    WITH RECURSIVE x(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM x WHERE i<800) INSERT INTO t SELECT i, 0, 'filler filler ' || i FROM x";

fn commit(world: &mut World, number: u64) {
    let (from, to) = (number * 37 % 800 + 1, number * 151 % 800 + 1);
    world.run(&format!(
        "BEGIN; INSERT INTO n VALUES(NULL); UPDATE t SET b = b + 5 WHERE a = {to}; UPDATE t SET b = b - 4 WHERE a = {from}; COMMIT"
    ));
}

/// `rows in n|sum of t`, which must be equal.
const READ: &str = "SELECT (SELECT count(*) FROM n) || '|' || (SELECT sum(b) FROM t)";

/// A shell that starts the stock `sqlite3` again and again, without any busy timeout unless one is given.
struct ShellLoop {
    child: Child,
    dir: PathBuf,
}

impl ShellLoop {
    fn start(world: &World, timeout_ms: u32) -> ShellLoop {
        let dir = world.dir.path().join(format!("shell-{timeout_ms}"));
        fs::create_dir(&dir).unwrap();
        // A read after the end, too: of the last state.
        let script = format!(
            "r() {{ sqlite3 -cmd '.timeout {timeout_ms}' '{db}' \"{READ}\" >>'{dir}/out' 2>>'{dir}/err'; }}; \
             while [ -d '{dir}' ] && [ ! -e '{dir}/stop' ]; do r; done; r",
            dir = dir.display(),
            db = world.replica().display(),
        );
        let child = Command::new("sh").args(["-c", &script]).spawn().unwrap();
        ShellLoop { child, dir }
    }

    /// Stops it; gives what it read and what errors it met.
    fn stop(mut self) -> (Vec<String>, Vec<String>) {
        fs::write(self.dir.join("stop"), "").unwrap();
        self.child.wait().unwrap();
        let lines = |name: &str| {
            fs::read_to_string(self.dir.join(name))
                .unwrap()
                .lines()
                .map(str::to_owned)
                .collect()
        };
        (lines("out"), lines("err"))
    }
}

impl Drop for ShellLoop {
    fn drop(&mut self) {
        // A failed test must not leave it running. Harmless if it ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a reader that is a process of its own finds the world: `DIR|NAME|KIND`.
const READER: &str = "MYCELITE_TEST_READER";

/// Reads without end and without a busy timeout, in one connection (`long`) or in a new one each time (`anew`).
#[test]
fn reader_process() {
    let Ok(order) = std::env::var(READER) else {
        return;
    };
    let [dir, name, kind] = order.split('|').collect::<Vec<_>>()[..] else {
        panic!("{READER}={order}");
    };
    let file = |what: &str| Path::new(dir).join(format!("{name}-{what}"));
    let connect = || {
        let reader = rusqlite::Connection::open(Path::new(dir).join("replica.db")).unwrap();
        reader.busy_timeout(Duration::ZERO).unwrap();
        reader
    };
    let mut reader = connect();
    let (mut out, mut errors, mut reads) = (String::new(), String::new(), 0u64);
    let mut stopped = false;
    // A read after the end, too: of the last state.
    while !std::mem::replace(&mut stopped, file("stop").exists()) {
        if kind == "anew" {
            reader = connect();
        }
        match reader.query_row(READ, [], |row| row.get::<_, String>(0)) {
            Ok(line) => out += &format!("{line}\n"),
            Err(error) => errors += &format!("read {reads}: {error}\n"),
        }
        reads += 1;
        if reads == 1 {
            fs::write(file("began"), "").unwrap();
        }
    }
    fs::write(file("out"), out).unwrap();
    fs::write(file("err"), errors).unwrap();
}

/// A running [`reader_process`].
struct Reader {
    child: Child,
    dir: PathBuf,
    name: String,
}

impl Reader {
    /// Starts it, and waits until it has read once.
    fn start(world: &World, name: &str, kind: &str) -> Reader {
        let dir = world.dir.path().to_owned();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["reader_process", "--exact", "--test-threads=1"])
            .env(READER, format!("{}|{name}|{kind}", dir.display()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let name = name.to_owned();
        let mut reader = Reader { child, dir, name };
        let until = Instant::now() + Duration::from_secs(60);
        while !reader.file("began").exists() {
            assert!(Instant::now() < until, "{} does not begin", reader.name);
            assert_eq!(reader.child.try_wait().unwrap(), None, "{}", reader.name);
            std::thread::sleep(Duration::from_millis(1));
        }
        reader
    }

    fn file(&self, what: &str) -> PathBuf {
        self.dir.join(format!("{}-{what}", self.name))
    }

    /// Stops it; it must have met no error. Gives what it read.
    fn stop(mut self) -> Vec<String> {
        fs::write(self.file("stop"), "").unwrap();
        assert!(self.child.wait().unwrap().success());
        let read = |what| fs::read_to_string(self.file(what)).unwrap();
        assert_eq!(read("err"), "", "{}", self.name);
        read("out").lines().map(str::to_owned).collect()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // A failed test must not leave it running. Harmless if it ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every line a consistent state, and never an older one than the line before.
fn check_lines(lines: &[String], last: u64) {
    let mut newest = 0;
    for line in lines {
        let (rows, sum) = line
            .split_once('|')
            .unwrap_or_else(|| panic!("torn line {line}"));
        assert_eq!(rows, sum, "a torn state");
        let rows: u64 = rows.parse().unwrap();
        assert!(
            rows >= newest && rows <= last,
            "{rows} after {newest}, of {last}"
        );
        newest = rows;
    }
    assert_eq!(newest, last, "stuck on an old state");
}

/// Applies commit by commit, now and then idle, for at least `wanted`.
fn apply_for(world: &mut World, applier: &mut Applier, wanted: Duration, modes: &[&str]) -> u64 {
    let start = Instant::now();
    let mut number = 0;
    while start.elapsed() < wanted || number < 300 {
        number += 1;
        if number % 100 == 0 {
            let mode = modes[(number / 100) as usize % modes.len()];
            world.run(&format!("PRAGMA journal_mode={mode}"));
        }
        commit(world, number);
        catch_up(applier);
        if number % 7 == 0 {
            applier.idle().unwrap();
        }
    }
    number
}

#[test]
fn p6_a_stock_shell_in_a_loop_and_a_connected_reader_never_see_an_error() {
    for modes in [&["DELETE"][..], &["WAL"], &["WAL", "DELETE"]] {
        let mut world = World::new();
        world.run(&format!("PRAGMA journal_mode={}", modes[0]));
        world.run(SETUP);
        let mut applier = world.applier();
        commit(&mut world, 0);
        catch_up(&mut applier);
        // Not after the first shell: one that closes turns away, for a moment, whoever connects without a timeout. That
        // is SQLite's own (3.40.1 does it, 3.54.1 does not), whoever writes the file.
        let long = Reader::start(&world, "long", "long");
        let shell = ShellLoop::start(&world, 0);
        let commits = apply_for(&mut world, &mut applier, Duration::from_secs(3), modes);
        let (lines, errors) = shell.stop();
        assert_eq!(errors, [""; 0], "{} reads", lines.len());
        assert!(lines.len() > 5, "only {} reads", lines.len());
        check_lines(&lines, commits + 1);
        check_lines(&long.stop(), commits + 1);
        assert_identical(&world, &mut applier);
        applier.close().unwrap();
    }
}

#[test]
fn p6_readers_that_come_and_go_beside_each_other_never_see_an_error() {
    let mut world = World::new();
    world.run(SETUP);
    let mut applier = world.applier();
    commit(&mut world, 0);
    catch_up(&mut applier);
    let readers = ["first", "second"].map(|name| Reader::start(&world, name, "anew"));
    let wanted = Duration::from_secs(3);
    let commits = apply_for(&mut world, &mut applier, wanted, &["WAL", "DELETE"]);
    for reader in readers {
        check_lines(&reader.stop(), commits + 1);
    }
    assert_identical(&world, &mut applier);
    applier.close().unwrap();
}

#[test]
fn p6_with_rollback_journals_a_shell_with_a_timeout_never_sees_an_error() {
    let mut world = World::new();
    world.run(SETUP);
    let mut applier = world.applier_with(|options| options.use_wal = false);
    commit(&mut world, 0);
    catch_up(&mut applier);
    let shell = ShellLoop::start(&world, 5000);
    let commits = apply_for(
        &mut world,
        &mut applier,
        Duration::from_secs(3),
        &["DELETE"],
    );
    let (lines, errors) = shell.stop();
    assert_eq!(errors, [""; 0], "{} reads", lines.len());
    check_lines(&lines, commits + 1);
    assert_identical(&world, &mut applier);
}

#[test]
fn p6_an_old_snapshot_stays_readable_while_new_states_arrive() {
    let mut world = World::new();
    world.run(SETUP);
    let mut applier = world.applier_with(|options| options.wal_bytes_max = 10_000);
    commit(&mut world, 1);
    catch_up(&mut applier);
    commit(&mut world, 2);
    catch_up(&mut applier);
    let reader = rusqlite::Connection::open(world.replica()).unwrap();
    reader.execute_batch("BEGIN").unwrap();
    let old: String = reader.query_row(READ, [], |row| row.get(0)).unwrap();
    for number in 3..200 {
        commit(&mut world, number);
        catch_up(&mut applier);
        applier.idle().unwrap();
        assert!(!applier.is_settled(), "the reader still needs the old file");
        assert_eq!(
            old,
            reader
                .query_row(READ, [], |row| row.get::<_, String>(0))
                .unwrap()
        );
    }
    let newcomer = rusqlite::Connection::open(world.replica()).unwrap();
    assert_eq!(
        "199|199",
        newcomer
            .query_row(READ, [], |row| row.get::<_, String>(0))
            .unwrap()
    );
    reader.execute_batch("COMMIT").unwrap();
    assert_eq!(
        "199|199",
        reader
            .query_row(READ, [], |row| row.get::<_, String>(0))
            .unwrap()
    );
    assert_identical(&world, &mut applier);
}

/// One process of the stock shell that stays connected and is asked again and again.
struct Shell {
    child: Child,
    output: std::io::BufReader<std::process::ChildStdout>,
}

impl Shell {
    fn start(path: &Path) -> Shell {
        let mut child = Command::new("sqlite3")
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = std::io::BufReader::new(child.stdout.take().unwrap());
        Shell { child, output }
    }

    fn ask(&mut self, sql: &str) -> String {
        use std::io::{BufRead, Write};
        writeln!(self.child.stdin.as_mut().unwrap(), "{sql};").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn p6_a_stock_shell_that_stays_connected_follows_every_change_of_shape() {
    let mut world = World::new();
    world.run("PRAGMA page_size=4096");
    world.run(SETUP);
    let mut applier = world.applier();
    commit(&mut world, 1);
    catch_up(&mut applier);
    let mut shell = Shell::start(&world.replica());
    let mut number = 1;
    for shape in [
        "PRAGMA journal_mode=WAL",
        "INSERT INTO t(b, c) SELECT 0, randomblob(3000) FROM t",
        "PRAGMA journal_mode=DELETE",
        "PRAGMA page_size=1024; VACUUM",
        "PRAGMA page_size=65536; VACUUM",
        "DELETE FROM t WHERE length(c) > 2000; VACUUM",
        "PRAGMA page_size=512; VACUUM",
        "PRAGMA auto_vacuum=FULL; PRAGMA page_size=4096; VACUUM",
        "PRAGMA journal_mode=WAL",
    ] {
        world.run(shape);
        for _ in 0..3 {
            number += 1;
            commit(&mut world, number);
            catch_up(&mut applier);
            assert_eq!(
                shell.ask(READ),
                format!("{number}|{number}"),
                "after {shape}"
            );
        }
        assert_eq!(shell.ask("PRAGMA integrity_check"), "ok", "after {shape}");
        assert_identical(&world, &mut applier);
        assert_eq!(
            shell.ask(READ),
            format!("{number}|{number}"),
            "after {shape}"
        );
    }
}

#[test]
fn p6_at_rest_there_is_one_file_and_nobody_holds_it() {
    for mode in ["DELETE", "WAL"] {
        let mut world = World::new();
        world.run(&format!("PRAGMA journal_mode={mode}"));
        world.run(SETUP);
        let mut applier = world.applier();
        for number in 1..20 {
            commit(&mut world, number);
            catch_up(&mut applier);
            if number % 5 == 0 {
                // A reader in the middle of a transaction keeps its WAL, and the file unsettled.
                let reader = rusqlite::Connection::open(world.replica()).unwrap();
                reader.execute_batch("BEGIN").unwrap();
                reader.query_row(READ, [], |_| Ok(())).unwrap();
                commit(&mut world, 100 + number);
                catch_up(&mut applier);
                assert!(!applier.rest().unwrap());
            }
            assert!(applier.rest().unwrap());
            assert!(applier.rest().unwrap());
            for suffix in ["-wal", "-shm", "-journal"] {
                assert!(
                    !world
                        .dir
                        .path()
                        .join(format!("replica.db{suffix}"))
                        .exists(),
                    "{suffix} left behind"
                );
            }
            apply_common::assert_same_bytes(&fs::read(world.replica()).unwrap(), world.last());
        }
        // Written by a stranger meanwhile: noticed at the next record.
        let stranger = rusqlite::Connection::open(world.replica()).unwrap();
        stranger.execute_batch("DELETE FROM t WHERE a = 1").unwrap();
        drop(stranger);
        commit(&mut world, 50);
        assert_identical(&world, &mut applier);
        applier.close().unwrap();
    }
}

#[test]
fn p6_a_reader_in_the_way_is_waited_for_and_named() {
    let mut world = World::new();
    world.run(SETUP);
    for use_wal in [true, false] {
        let mut applier = world.applier_with(|options| {
            options.lock_wait = Duration::from_millis(200);
            options.use_wal = use_wal;
        });
        catch_up(&mut applier);
        applier.close().unwrap();
        let reader = rusqlite::Connection::open(world.replica()).unwrap();
        reader.execute_batch("BEGIN; SELECT * FROM t").unwrap();
        let old: String = reader.query_row(READ, [], |row| row.get(0)).unwrap();
        commit(&mut world, 1);
        // Neither a WAL can be begun nor the file be written under a reader that uses the file alone.
        let mut applier = world.applier_with(|options| {
            options.lock_wait = Duration::from_millis(200);
            options.use_wal = use_wal;
        });
        let start = Instant::now();
        let applied = applier.step().unwrap();
        assert!(start.elapsed() < Duration::from_secs(30));
        assert_eq!(applied.waiting, Some("waiting for a reader to finish"));
        assert!(applied.more && applied.records == 0);
        assert_eq!(
            old,
            reader
                .query_row(READ, [], |row| row.get::<_, String>(0))
                .unwrap()
        );
        reader.execute_batch("COMMIT").unwrap();
        assert_identical(&world, &mut applier);
        assert_ne!(
            old,
            reader
                .query_row(READ, [], |row| row.get::<_, String>(0))
                .unwrap()
        );
        drop(reader);
        applier.close().unwrap();
    }
}
