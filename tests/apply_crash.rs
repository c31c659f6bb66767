//! P4: after `kill -9` of the applier at any instant, any SQLite finds a sound database that is exactly a recorded state, and a
//! new applier goes on from there by itself. P5, P9: what is not a recorded state is noticed, kept and replaced.

#![allow(clippy::unwrap_used)]

mod apply_common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use apply_common::{Random, World, assert_identical, assert_same_bytes, catch_up, read_database};
use mycelite::apply::Applier;
use mycelite::error::ErrorKind;
use mycelite_journal::Txid;

const APPLIER: &str = "MYCELITE_TEST_APPLIER";

/// An applier as a process of its own: applies what there is, idles, opens and closes again, until it is killed.
#[test]
fn applier_process() {
    let Ok(dir) = std::env::var(APPLIER) else {
        return;
    };
    let dir = PathBuf::from(dir);
    apply_common::api();
    let mut random = Random::new(u64::from(std::process::id()));
    let use_wal = !dir.join("no-wal").exists();
    loop {
        let mut options = mycelite::apply::ApplyOptions::default();
        options.use_wal = use_wal;
        options.batch_bytes_max = 1 << (9 + random.below(12));
        options.wal_bytes_max = 1 << (12 + random.below(8));
        let mut applier = Applier::open_with(
            &dir.join("replica.db"),
            &dir.join("replica.db-mycelite"),
            options,
        )
        .unwrap();
        for _ in 0..random.below(60) {
            let applied = applier.step().unwrap();
            if !applied.more {
                applier.idle().unwrap();
                fs::write(dir.join("at"), applied.pos.txid.to_string()).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        applier.close().unwrap();
    }
}

fn start_applier(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["applier_process", "--exact", "--test-threads=1"])
        .env(APPLIER, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

const HOLDER: &str = "MYCELITE_TEST_HOLDER";

/// A reader that stays connected through all crashes: its shared memory lives on, with whatever a dying writer left in it.
#[test]
fn holder_process() {
    let Ok(dir) = std::env::var(HOLDER) else {
        return;
    };
    let dir = PathBuf::from(dir);
    let reader = rusqlite::Connection::open(dir.join("replica.db")).unwrap();
    reader.busy_timeout(Duration::from_secs(5)).unwrap();
    while !dir.join("stop").exists() {
        let check = "PRAGMA integrity_check";
        let check: String = reader.query_row(check, [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
        fs::write(dir.join("holds"), "").unwrap();
    }
}

fn history(world: &mut World, random: &mut Random) {
    world.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c BLOB); CREATE INDEX tb ON t(b)");
    for number in 0..140 {
        let rows = 1 + random.below(30);
        let sql = match number % 20 {
            7 => "PRAGMA journal_mode=WAL".into(),
            9 => "WITH RECURSIVE n(x) AS (VALUES(1) UNION ALL SELECT x+1 FROM n WHERE x<600) INSERT INTO t(b, c) SELECT 'bulk', randomblob(3000) FROM n".into(),
            13 => "DELETE FROM t WHERE b LIKE 'bulk%'".into(),
            12 => "DELETE FROM t WHERE a % 3 = 0".into(),
            14 => "VACUUM".into(),
            16 => "PRAGMA journal_mode=DELETE".into(),
            18 if number == 58 => "PRAGMA page_size=1024; VACUUM".into(),
            18 if number == 98 => "PRAGMA page_size=8192; VACUUM".into(),
            n if n % 4 == 1 => format!("UPDATE t SET b = b || 'x', c = randomblob(900) WHERE a % 5 = {number} % 5"),
            _ => format!(
                "WITH RECURSIVE n(x) AS (VALUES(1) UNION ALL SELECT x+1 FROM n WHERE x<{rows}) \
                 INSERT INTO t(b, c) SELECT 'r' || x, randomblob(700) FROM n"
            ),
        };
        world.run(&sql);
    }
}

/// What any SQLite makes of the files that a dead process left; copied aside, so that the original keeps its state.
fn image_by_plain_sqlite(world: &World, scratch: &Path) -> Vec<u8> {
    let _ = fs::remove_dir_all(scratch);
    fs::create_dir(scratch).unwrap();
    for suffix in ["", "-wal", "-journal"] {
        let name = format!("replica.db{suffix}");
        if world.dir.path().join(&name).exists() {
            fs::copy(world.dir.path().join(&name), scratch.join(&name)).unwrap();
        }
    }
    let path = scratch.join("replica.db");
    if !path.exists() {
        return Vec::new();
    }
    let plain = rusqlite::Connection::open(&path).unwrap();
    let check: String = plain
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(check, "ok");
    plain
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
    let pages: u32 = plain
        .query_row("PRAGMA page_count", [], |row| row.get(0))
        .unwrap();
    let page_size: u32 = plain
        .query_row("PRAGMA page_size", [], |row| row.get(0))
        .unwrap();
    plain.close().unwrap();
    // A file that was just growing may be longer than the image, which is what SQLite reads.
    let mut image = fs::read(&path).unwrap();
    image.truncate(pages as usize * page_size as usize);
    image
}

/// Kills appliers until `kills`, each time comparing what is left with the recorded states.
fn kill_again_and_again(world: &World, random: &mut Random, kills: u32, restart: bool) -> usize {
    let scratch = world.dir.path().join("scratch");
    let mut at = 0;
    for kill in 1..=kills {
        let mut child = start_applier(world.dir.path());
        std::thread::sleep(Duration::from_micros(4000 + random.below(30_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        let image = image_by_plain_sqlite(world, &scratch);
        let found = (0..world.images.len())
            .rev()
            .find(|n| world.images[*n] == image);
        let found = found.unwrap_or_else(|| panic!("kill {kill}: no recorded state"));
        assert!(found >= at, "kill {kill}: went back from {at} to {found}");
        at = found;
        if at == world.images.len() - 1 && restart {
            // From the start again: most instants are on the way.
            for suffix in ["", "-wal", "-shm", "-journal"] {
                let _ = fs::remove_file(world.dir.path().join(format!("replica.db{suffix}")));
            }
            at = 0;
        }
    }
    at
}

fn assert_goes_on(world: &World, use_wal: bool, at: usize) {
    let mut applier = world.applier_with(|options| options.use_wal = use_wal);
    assert!(applier.pos().txid.0 >= at as u64);
    assert_identical(world, &mut applier);
    applier.close().unwrap();
    assert_eq!(
        parked(world),
        [""; 0].map(PathBuf::from),
        "a crash is nobody's writing"
    );
}

#[test]
fn p4_kill_9_at_any_instant_leaves_a_recorded_state() {
    for (seed, use_wal) in [(0, true), (1, false), (2, true)] {
        let mut random = Random::new(seed);
        let mut world = World::new();
        if !use_wal {
            fs::write(world.dir.path().join("no-wal"), "").unwrap();
        }
        history(&mut world, &mut random);
        let at = kill_again_and_again(&world, &mut random, 40, true);
        assert_goes_on(&world, use_wal, at);
    }
}

#[test]
fn p4_kill_9_under_a_reader_that_stays() {
    let mut random = Random::new(3);
    let mut world = World::new();
    history(&mut world, &mut random);
    let mut applier = world.applier();
    while applier.pos().txid.0 < 2 {
        applier.step().unwrap();
    }
    drop(applier);
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["holder_process", "--exact", "--test-threads=1"])
        .env(HOLDER, world.dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while !world.dir.path().join("holds").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    for _ in 0..3 {
        let at = kill_again_and_again(&world, &mut random, 20, false);
        assert!(at > 2);
        history_goes_on(&mut world);
    }
    fs::write(world.dir.path().join("stop"), "").unwrap();
    assert!(holder.wait().unwrap().success());
    assert_goes_on(&world, true, 3);
}

/// The applier dies between starting the WAL file anew and telling the wal-index: what that says of frames that are all
/// in the database file outlives it, with a reader's shared memory.
#[test]
fn p6_an_index_of_frames_that_are_gone_is_read_as_sqlite_reads_it() {
    for mode in ["DELETE", "WAL"] {
        let mut world = small_world();
        world.run(&format!("PRAGMA journal_mode={mode}"));
        let mut applier = world.applier();
        catch_up(&mut applier);
        world.run("INSERT INTO t(b) VALUES('through the WAL')");
        catch_up(&mut applier);
        let reader = rusqlite::Connection::open(world.replica()).unwrap();
        let rows = |reader: &rusqlite::Connection| {
            let count = "SELECT count(*) FROM t";
            reader
                .query_row(count, [], |row| row.get::<_, i64>(0))
                .unwrap()
        };
        let before = rows(&reader);
        reader
            .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
            .unwrap();
        drop(applier);
        let wal = world.dir.path().join("replica.db-wal");
        let mut header = fs::read(&wal).unwrap();
        assert!(header.len() > 4096, "frames in the WAL");
        header.truncate(32);
        fs::write(&wal, &header).unwrap();
        assert_eq!(rows(&reader), before);

        let mut applier = world.applier();
        assert_eq!(applier.pos().txid.0, world.head());
        world.run("INSERT INTO t(b) VALUES('and on')");
        catch_up(&mut applier);
        assert_eq!(rows(&reader), before + 1);
        assert_identical(&world, &mut applier);
        assert_eq!(parked(&world), [""; 0].map(PathBuf::from));
    }
}

fn history_goes_on(world: &mut World) {
    for number in 0..40 {
        world.run(&format!(
            "INSERT INTO t(b, c) VALUES('on {number}', randomblob(20000)); DELETE FROM t WHERE a IN (SELECT a FROM t ORDER BY random() LIMIT 3)"
        ));
    }
}

fn small_world() -> World {
    let mut world = World::new();
    world.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)");
    for number in 0..20 {
        world.run(&format!(
            "INSERT INTO t(b) VALUES('row {number}'), (hex(randomblob(900)))"
        ));
    }
    world
}

#[test]
fn p5_a_clean_close_is_believed_and_a_changed_file_is_not() {
    let mut world = small_world();
    let mut applier = world.applier();
    catch_up(&mut applier);
    applier.close().unwrap();
    let applier = world.applier();
    assert_eq!(applier.pos().txid, Txid(world.head()));
    applier.close().unwrap();
    // Without its stamp the place is found by the checksum.
    fs::remove_file(world.log_dir().join("applied")).unwrap();
    let applier = world.applier();
    assert_eq!(applier.pos().txid, Txid(world.head()));
    drop(applier);
    // A copy of an older state is found, too, and brought up to date.
    fs::write(world.replica(), &world.images[7]).unwrap();
    let mut applier = world.applier();
    assert_eq!(applier.pos().txid, Txid(7));
    world.run("INSERT INTO t(b) VALUES('more')");
    assert_identical(&world, &mut applier);
    applier.close().unwrap();
}

fn parked(world: &World) -> Vec<PathBuf> {
    let entries = fs::read_dir(world.log_dir())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("parked-")
        })
        .collect()
}

#[test]
fn p9_what_a_stranger_wrote_while_nobody_looked_is_parked_and_replaced() {
    for mode in ["DELETE", "WAL"] {
        let mut world = small_world();
        world.run(&format!("PRAGMA journal_mode={mode}"));
        let mut applier = world.applier();
        catch_up(&mut applier);
        applier.close().unwrap();
        let stranger = rusqlite::Connection::open(world.replica()).unwrap();
        stranger
            .execute_batch("INSERT INTO t(b) VALUES('mine')")
            .unwrap();
        drop(stranger);
        let strange = fs::read(world.replica()).unwrap();
        let mut applier = world.applier();
        assert_identical(&world, &mut applier);
        assert_eq!(parked(&world).len(), 1);
        assert_same_bytes(&fs::read(&parked(&world)[0]).unwrap(), &strange);
        applier.close().unwrap();
    }
}

#[test]
fn p9_what_a_stranger_writes_under_our_eyes_is_parked_and_replaced() {
    let mut world = small_world();
    let mut applier = world.applier();
    assert_identical(&world, &mut applier);
    world.run("INSERT INTO t(b) VALUES('ours')");
    catch_up(&mut applier);
    let stranger = rusqlite::Connection::open(world.replica()).unwrap();
    stranger
        .execute_batch("INSERT INTO t(b) VALUES('mine')")
        .unwrap();
    world.run("INSERT INTO t(b) VALUES('ours again')");
    assert_identical(&world, &mut applier);
    assert_eq!(parked(&world).len(), 1);
    let parked = rusqlite::Connection::open(&parked(&world)[0]).unwrap();
    assert_eq!(
        1,
        parked
            .query_row("SELECT count(*) FROM t WHERE b = 'mine'", [], |row| row
                .get::<_, i64>(0))
            .unwrap()
    );
    assert_eq!(
        0,
        stranger
            .query_row("SELECT count(*) FROM t WHERE b = 'mine'", [], |row| row
                .get::<_, i64>(0))
            .unwrap()
    );
    // A stranger who holds the write lock is waited for, not fought.
    drop(applier);
    let mut applier = world.applier_with(|options| options.lock_wait = Duration::from_millis(100));
    stranger.execute_batch("BEGIN IMMEDIATE").unwrap();
    world.run("INSERT INTO t(b) VALUES('late')");
    assert_eq!(
        applier.step().unwrap().waiting,
        Some("waiting for another connection that writes to the replica")
    );
    stranger.execute_batch("ROLLBACK").unwrap();
    assert_identical(&world, &mut applier);
}

#[test]
fn p9_what_a_stranger_writes_between_rollback_journals_is_parked_and_replaced() {
    let mut world = small_world();
    let mut applier = world.applier_with(|options| {
        options.use_wal = false;
        options.lock_wait = Duration::from_millis(100);
    });
    assert_identical(&world, &mut applier);
    let stranger = rusqlite::Connection::open(world.replica()).unwrap();
    stranger
        .execute_batch("UPDATE t SET b = 'mine' WHERE a = 1")
        .unwrap();
    world.run("INSERT INTO t(b) VALUES('ours')");
    // While the stranger writes on, nothing can be found out; nothing is forgotten either.
    stranger.execute_batch("BEGIN IMMEDIATE").unwrap();
    let before = applier.pos();
    assert!(applier.step().unwrap().waiting.is_some());
    assert_eq!(applier.pos(), before);
    stranger.execute_batch("ROLLBACK").unwrap();
    assert_identical(&world, &mut applier);
    assert_eq!(parked(&world).len(), 1);
}

#[test]
fn p4_a_place_that_cannot_be_found_now_is_found_later() {
    let mut world = small_world();
    let mut applier = world.applier_with(|options| options.lock_wait = Duration::from_millis(50));
    assert_identical(&world, &mut applier);
    assert!(applier.rest().unwrap());
    let stranger = rusqlite::Connection::open(world.replica()).unwrap();
    stranger
        .execute_batch("INSERT INTO t(b) VALUES('mine'); BEGIN IMMEDIATE")
        .unwrap();
    world.run("INSERT INTO t(b) VALUES('ours')");
    for _ in 0..3 {
        assert_eq!(applier.step().unwrap_err().kind(), ErrorKind::Busy);
        applier.idle().unwrap();
    }
    stranger.execute_batch("ROLLBACK").unwrap();
    assert_identical(&world, &mut applier);
    assert_eq!(parked(&world).len(), 1);
}

#[test]
fn p9_a_file_that_is_no_database_is_parked_and_replaced() {
    for garbage in [&b"this is not a database, but somebody's notes, long enough to be read as a header of one hundred bytes, surely"[..], &[0xff; 5000]] {
        let world = small_world();
        fs::write(world.replica(), garbage).unwrap();
        let mut applier = world.applier();
        assert_identical(&world, &mut applier);
        assert_eq!(fs::read(&parked(&world)[0]).unwrap(), garbage);
    }
}

#[test]
fn p9_a_database_beside_an_empty_log_is_left_alone() {
    let world = World::new();
    let own = rusqlite::Connection::open(world.replica()).unwrap();
    own.execute_batch("CREATE TABLE precious(a)").unwrap();
    drop(own);
    let before = fs::read(world.replica()).unwrap();
    let error = Applier::open(&world.replica(), &world.log_dir())
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::Diverged);
    assert!(error.to_string().contains("move the file away"), "{error}");
    assert_eq!(fs::read(world.replica()).unwrap(), before);
    // And an empty log with no database is simply waited for.
    fs::remove_file(world.replica()).unwrap();
    let mut applier = world.applier();
    assert_eq!(applier.step().unwrap().records, 0);
    applier.idle().unwrap();
    applier.close().unwrap();
    let error = Applier::open(&world.replica(), &world.dir.path().join("nowhere"))
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[test]
fn p4_a_deleted_replica_is_made_again_even_while_it_is_open() {
    let mut world = small_world();
    let mut applier = world.applier();
    assert_identical(&world, &mut applier);
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(world.dir.path().join(format!("replica.db{suffix}")));
    }
    world.run("INSERT INTO t(b) VALUES('again')");
    assert_identical(&world, &mut applier);
    // Only the database: its WAL belongs to a file that is gone.
    catch_up(&mut applier);
    fs::remove_file(world.replica()).unwrap();
    world.run("INSERT INTO t(b) VALUES('and again')");
    assert_identical(&world, &mut applier);
    applier.close().unwrap();
    assert_same_bytes(&read_database(&world.replica()), world.last());
}

#[test]
fn p6_a_wal_emptied_by_a_stranger_is_begun_anew_only_when_nobody_reads_without_it() {
    let mut world = small_world();
    let mut applier = world.applier_with(|options| options.lock_wait = Duration::from_millis(100));
    assert_identical(&world, &mut applier);
    let stranger = rusqlite::Connection::open(world.replica()).unwrap();
    stranger
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
    // This reader finds no WAL and reads the file alone.
    let reader = rusqlite::Connection::open(world.replica()).unwrap();
    reader.execute_batch("BEGIN").unwrap();
    let rows = |connection: &rusqlite::Connection| {
        connection
            .query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0))
            .unwrap()
    };
    let before = rows(&reader);
    world.run("INSERT INTO t(b) VALUES('more')");
    for _ in 0..3 {
        let applied = applier.step().unwrap();
        assert_eq!(applied.records, 0);
    }
    assert_eq!(rows(&reader), before);
    reader.execute_batch("COMMIT").unwrap();
    drop((reader, stranger));
    assert_identical(&world, &mut applier);
}

#[test]
fn p5_a_damaged_record_is_named_and_nothing_of_it_is_applied() {
    let mut world = small_world();
    let mut applier = world.applier();
    catch_up(&mut applier);
    let good = world.head();
    world.run("INSERT INTO t(b) VALUES('good')");
    world.run("INSERT INTO t(b) VALUES('bad')");
    let segment = fs::read_dir(world.log_dir())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|ext| ext == "seg"))
        .unwrap();
    let whole = fs::read(&segment).unwrap();
    // In the record's body, then in its trailer.
    for from_end in [60, 20] {
        let mut bytes = whole.clone();
        let at = bytes.len() - from_end;
        bytes[at] ^= 1;
        fs::write(&segment, &bytes).unwrap();
        drop(applier);
        applier = world.applier();
        for _ in 0..3 {
            let Some(error) = first_error(&mut applier) else {
                assert_eq!(from_end, 20, "a torn tail is waited for");
                break;
            };
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            let named = format!("transaction {}", good + 2);
            assert!(error.to_string().contains(&named), "{error}");
        }
        assert_eq!(applier.pos().txid, Txid(good + 1));
        applier.idle().unwrap();
        let expected = &world.images[good as usize + 1];
        assert_same_bytes(&read_database(&world.replica()), expected);
    }
    fs::write(&segment, &whole).unwrap();
    assert_identical(&world, &mut applier);
}

/// Steps until one fails; `None` if there is nothing more to do.
fn first_error(applier: &mut Applier) -> Option<mycelite::error::Error> {
    loop {
        match applier.step() {
            Ok(applied) if !applied.more => return None,
            Ok(_) => {}
            Err(error) => return Some(error),
        }
    }
}
