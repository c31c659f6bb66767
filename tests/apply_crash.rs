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

#[test]
fn p4_kill_9_at_any_instant_leaves_a_recorded_state() {
    for (round, use_wal) in [(0, true), (1, false), (2, true)] {
        let mut random = Random::new(round);
        let mut world = World::new();
        if !use_wal {
            fs::write(world.dir.path().join("no-wal"), "").unwrap();
        }
        history(&mut world, &mut random);
        let scratch = world.dir.path().join("scratch");
        let mut at = 0;
        let mut kills = 0;
        for _ in 0..40 {
            let mut child = start_applier(world.dir.path());
            std::thread::sleep(Duration::from_micros(4000 + random.below(30_000)));
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
            let image = image_by_plain_sqlite(&world, &scratch);
            let found = (0..world.images.len())
                .rev()
                .find(|n| world.images[*n] == image);
            let found =
                found.unwrap_or_else(|| panic!("round {round}, kill {kills}: no recorded state"));
            assert!(found >= at, "round {round}: went back from {at} to {found}");
            at = found;
            if at == world.images.len() - 1 {
                // From the start again: most instants are on the way.
                for suffix in ["", "-wal", "-shm", "-journal"] {
                    let _ = fs::remove_file(world.dir.path().join(format!("replica.db{suffix}")));
                }
                at = 0;
            }
        }
        let mut applier = world.applier_with(|options| options.use_wal = use_wal);
        assert!(applier.pos().txid.0 >= at as u64);
        assert_identical(&world, &mut applier);
        applier.close().unwrap();
        let parked = fs::read_dir(world.log_dir()).unwrap().any(|entry| {
            entry
                .unwrap()
                .file_name()
                .to_string_lossy()
                .contains("parked")
        });
        assert!(!parked, "a crash is nobody's writing");
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
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.len() - 60;
    bytes[at] ^= 1;
    fs::write(&segment, &bytes).unwrap();
    for _ in 0..3 {
        let error = loop {
            match applier.step() {
                Ok(applied) => assert!(applied.pos.txid.0 <= good + 1),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(
            error
                .to_string()
                .contains(&format!("transaction {}", good + 2)),
            "{error}"
        );
        assert_eq!(applier.pos().txid, Txid(good + 1));
    }
    applier.idle().unwrap();
    assert_same_bytes(
        &read_database(&world.replica()),
        &world.images[good as usize + 1],
    );
    bytes[at] ^= 1;
    fs::write(&segment, &bytes).unwrap();
    assert_identical(&world, &mut applier);
}
