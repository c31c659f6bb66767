//! A log that begins with a snapshot: what a replica gets that is too far behind, and what retention leaves (P1, P4, P6).

#![allow(clippy::unwrap_used)]

mod apply_common;

use std::fs;
use std::sync::Arc;

use apply_common::{World, assert_identical, assert_same_bytes, catch_up, read_database};
use mycelite::apply::Applier;
use mycelite_journal::{
    Archive, FileStorage, Log, RawLimits, Reader, Snapshot, Storage, Txid, parse_segment_name,
    snapshot_name,
};

fn filled(transactions: u64, mode: &str) -> World {
    let mut world = World::new();
    world.run(&format!(
        "PRAGMA page_size = 1024; PRAGMA journal_mode = {mode}; CREATE TABLE t(id INTEGER PRIMARY KEY, b)"
    ));
    while world.head() < transactions {
        world.run("INSERT INTO t(b) VALUES (randomblob(700)), (randomblob(3000))");
    }
    world
}

/// Lets the log begin with a snapshot of transaction `base`; `keep` of the records after it stay.
fn shorten(world: &World, base: u64, keep: u64) {
    let dir = world.log_dir();
    let storage: Arc<dyn Storage> = Arc::new(FileStorage::new(&dir));
    let snapshot =
        Snapshot::write(&Archive::open(Arc::clone(&storage)).unwrap(), Txid(base)).unwrap();
    let short = world.dir.path().join("short");
    fs::create_dir(&short).unwrap();
    let mut source = Reader::open(Arc::clone(&storage)).unwrap();
    let copy = Arc::new(FileStorage::new(&short));
    let mut log = Log::create_after(copy, source.id(), 1, snapshot.pos).unwrap();
    source.seek(Txid(base)).unwrap();
    for _ in 0..keep {
        let entry = source.next().unwrap().unwrap();
        log.append_raw(&mut entry.raw(), &RawLimits::default())
            .unwrap();
    }
    log.sync().unwrap();
    for name in storage.list().unwrap() {
        if parse_segment_name(&name).is_some() || name == "synced" {
            fs::remove_file(dir.join(name)).unwrap();
        }
    }
    for name in FileStorage::new(&short).list().unwrap() {
        if name != "meta" {
            fs::rename(short.join(&name), dir.join(&name)).unwrap();
        }
    }
    fs::remove_dir_all(short).unwrap();
}

#[test]
fn p1_a_new_file_begins_with_the_snapshot() {
    for mode in ["DELETE", "WAL"] {
        for keep in [0, 1, 8] {
            let world = filled(20, mode);
            shorten(&world, 12, keep);
            let mut applier = world.applier();
            catch_up(&mut applier);
            applier.idle().unwrap();
            assert_eq!(applier.pos().txid, Txid(12 + keep));
            assert_same_bytes(
                &read_database(&world.replica()),
                &world.images[12 + keep as usize],
            );
            applier.close().unwrap();
            // It is known again, with its stamp and without.
            for forget in [false, true] {
                if forget {
                    fs::remove_file(world.log_dir().join("applied")).unwrap();
                }
                let applier = world.applier();
                assert_eq!(applier.pos().txid, Txid(12 + keep), "{forget}");
            }
            assert!(parked(&world).is_empty());
        }
    }
}

fn parked(world: &World) -> Vec<String> {
    let names = FileStorage::new(world.log_dir()).list().unwrap();
    names
        .into_iter()
        .filter(|name| name.starts_with("parked"))
        .collect()
}

#[test]
fn p1_nothing_is_made_before_the_snapshot_may_be_used() {
    let world = filled(20, "WAL");
    shorten(&world, 12, 8);
    let mut applier = world.applier_with(|options| options.limit = Txid(11));
    let applied = applier.step().unwrap();
    assert!(!applied.more && applied.records == 0);
    assert_eq!(
        fs::metadata(world.replica()).map_or(0, |data| data.len()),
        0
    );
    applier.set_limit(Txid(14));
    catch_up(&mut applier);
    assert_eq!(applier.pos().txid, Txid(14));
    applier.set_limit(Txid(u64::MAX));
    assert_identical(&world, &mut applier);
}

/// The file stands at a place that the log does not reach back to any more: it goes to the snapshot as one transaction, under
/// the eyes of plain readers.
#[test]
fn p6_an_old_file_goes_to_the_snapshot_in_one_step() {
    for (mode, stamped) in [("DELETE", true), ("WAL", true), ("WAL", false)] {
        let world = filled(20, mode);
        let mut applier = world.applier_with(|options| options.limit = Txid(7));
        catch_up(&mut applier);
        applier.close().unwrap();
        let reader = rusqlite::Connection::open(world.replica()).unwrap();
        let count = || -> i64 {
            reader
                .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
                .unwrap()
        };
        let before = count();
        if !stamped {
            fs::remove_file(world.log_dir().join("applied")).unwrap();
        }
        reader
            .execute_batch("BEGIN; SELECT count(*) FROM t")
            .unwrap();
        shorten(&world, 12, 8);
        // A reader keeps its state; in rollback mode it is waited for, so it must leave.
        if mode == "DELETE" {
            reader.execute_batch("COMMIT").unwrap();
        }
        let mut applier = Applier::open(&world.replica(), &world.log_dir()).unwrap();
        if mode == "WAL" {
            assert_eq!(count(), before);
            reader.execute_batch("COMMIT").unwrap();
        }
        assert_identical(&world, &mut applier);
        assert_eq!(count(), 2 * (world.head() as i64 - 1));
        // Without its stamp nobody can know that it was one of ours: then it is kept.
        assert_eq!(parked(&world).len(), usize::from(!stamped));
    }
}

#[test]
fn p5_a_damaged_snapshot_makes_no_file() {
    let world = filled(20, "DELETE");
    shorten(&world, 12, 8);
    let path = world.log_dir().join(snapshot_name(Txid(12)));
    let good = fs::read(&path).unwrap();
    for at in (0..good.len()).step_by(good.len() / 40 + 1) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&path, &bad).unwrap();
        let mut applier = world.applier();
        let error = applier.step().unwrap_err();
        assert_eq!(
            error.kind(),
            mycelite::error::ErrorKind::Corrupt,
            "{at}: {error}"
        );
        drop(applier);
        assert_eq!(fs::metadata(world.replica()).unwrap().len(), 0);
    }
    fs::write(&path, &good).unwrap();
    assert_identical(&world, &mut world.applier());
}
