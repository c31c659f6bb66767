//! P1, P5, P6: applying gives the primary's image byte for byte and in length, in every journal mode and across mode
//! switches, VACUUM, page-size changes and auto-vacuum; one record at a time and in batches, both ways of writing.

#![allow(clippy::unwrap_used)]

mod apply_common;

use apply_common::{Random, World, assert_identical, assert_same_bytes, catch_up, read_database};
use mycelite::apply::ApplyOptions;

/// Everything that SQLite can do to a file's shape.
const SHAPES: &[&str] = &[
    "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c BLOB); CREATE INDEX tb ON t(b)",
    "WITH RECURSIVE n(x) AS (VALUES(1) UNION ALL SELECT x+1 FROM n WHERE x<500) \
     INSERT INTO t(b, c) SELECT 'row ' || x, randomblob(300) FROM n",
    "UPDATE t SET c = randomblob(500) WHERE a % 7 = 0",
    "PRAGMA journal_mode=WAL",
    "INSERT INTO t(b) VALUES('in wal')",
    "DELETE FROM t WHERE a % 2 = 0",
    "VACUUM",
    "INSERT INTO t(b, c) SELECT b || '!', randomblob(2000) FROM t",
    "PRAGMA journal_mode=DELETE",
    "UPDATE t SET b = b || '?' WHERE a % 3 = 0",
    "PRAGMA journal_mode=TRUNCATE; INSERT INTO t(b) VALUES('truncate')",
    "PRAGMA journal_mode=PERSIST; INSERT INTO t(b) VALUES('persist')",
    "PRAGMA journal_mode=DELETE; PRAGMA page_size=1024; VACUUM",
    "INSERT INTO t(b, c) SELECT b, zeroblob(5000) FROM t LIMIT 50",
    "PRAGMA page_size=65536; VACUUM",
    "DELETE FROM t WHERE a % 5 = 1",
    "PRAGMA journal_mode=WAL",
    "INSERT INTO t(b, c) SELECT b, randomblob(70000) FROM t LIMIT 5",
    "PRAGMA journal_mode=DELETE",
    "PRAGMA page_size=512; VACUUM",
    "PRAGMA auto_vacuum=FULL; PRAGMA page_size=4096; VACUUM",
    "INSERT INTO t(b, c) SELECT b, randomblob(9000) FROM t LIMIT 60",
    "DELETE FROM t WHERE length(c) > 8000",
    "PRAGMA auto_vacuum=INCREMENTAL; DELETE FROM t WHERE a % 11 = 0",
    "PRAGMA incremental_vacuum(3)",
    "DROP INDEX tb",
    "DROP TABLE t; VACUUM",
];

fn both_ways(test: impl Fn(&mut World, &dyn Fn(&mut ApplyOptions))) {
    test(&mut World::new(), &|_| {});
    test(&mut World::new(), &|options| options.use_wal = false);
}

#[test]
fn p1_every_shape_of_file_one_record_at_a_time() {
    both_ways(|world, change| {
        let mut applier = world.applier_with(change);
        for sql in SHAPES {
            let before = world.head();
            world.run(sql);
            assert!(
                world.head() > before || sql.contains("incremental"),
                "{sql} changed nothing"
            );
            assert_identical(world, &mut applier);
        }
        applier.close().unwrap();
        assert_same_bytes(&read_database(&world.replica()), world.last());
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
    });
}

#[test]
fn p1_every_shape_of_file_in_batches_of_any_size() {
    for bytes_max in [1, 20_000, 300_000, 8 << 20] {
        both_ways(|world, change| {
            for sql in SHAPES {
                world.run(sql);
            }
            let mut applier = world.applier_with(|options| {
                change(options);
                options.batch_bytes_max = bytes_max;
                options.wal_bytes_max = 100_000;
            });
            assert_identical(world, &mut applier);
            applier.close().unwrap();
            assert_same_bytes(&read_database(&world.replica()), world.last());
        });
    }
}

#[test]
fn p1_readers_that_stay_connected_see_each_state_and_stop_nothing() {
    let mut world = World::new();
    world.run(SHAPES[0]);
    let mut applier = world.applier();
    catch_up(&mut applier);
    // Their page caches and page sizes are those of the first image.
    let readers: Vec<_> = (0..3)
        .map(|_| rusqlite::Connection::open(world.replica()).unwrap())
        .collect();
    for sql in &SHAPES[1..SHAPES.len() - 1] {
        world.run(sql);
        let expected: String = world.primary.query_row(SUM, [], |row| row.get(0)).unwrap();
        catch_up(&mut applier);
        for reader in &readers {
            let found: String = reader.query_row(SUM, [], |row| row.get(0)).unwrap();
            assert_eq!(found, expected, "after {sql}");
        }
        assert_identical(&world, &mut applier);
        for reader in &readers {
            let found: String = reader.query_row(SUM, [], |row| row.get(0)).unwrap();
            assert_eq!(found, expected, "after {sql} and a checkpoint");
            let check: String = reader
                .query_row("PRAGMA integrity_check", [], |row| row.get(0))
                .unwrap();
            assert_eq!(check, "ok");
        }
    }
}

const SUM: &str = "SELECT count(*) || ' ' || coalesce(sum(a), 0) || ' ' || coalesce(sum(length(b)), 0) || ' ' || coalesce(sum(length(c)), 0) FROM t";

#[test]
fn p1_one_transaction_larger_than_memory_may_be() {
    both_ways(|world, change| {
        world.run("CREATE TABLE t(a INTEGER PRIMARY KEY, c BLOB)");
        world.run(
            "WITH RECURSIVE n(x) AS (VALUES(1) UNION ALL SELECT x+1 FROM n WHERE x<12000) \
             INSERT INTO t(c) SELECT randomblob(3000) FROM n",
        );
        world.run("UPDATE t SET c = randomblob(3000) WHERE a % 2 = 0");
        world.run("DELETE FROM t WHERE a > 3000; VACUUM");
        // Far more frames than one region of the wal-index holds.
        assert!(world.images[2].len() > 45_000_000);
        let mut applier = world.applier_with(|options| {
            change(options);
            options.batch_bytes_max = 1 << 20;
        });
        for expected in 1..=world.head() {
            applier.step().unwrap();
            assert_eq!(
                applier.pos().txid.0,
                expected,
                "too large for one batch together"
            );
        }
        assert_identical(world, &mut applier);
    });
}

#[test]
fn p1_random_histories() {
    for seed in 0..6 {
        let mut random = Random::new(seed);
        let mut world = World::new();
        let use_wal = seed % 3 != 2;
        world.run(
            [
                "PRAGMA page_size=512",
                "PRAGMA page_size=4096",
                "PRAGMA page_size=16384",
            ][random.below(3) as usize],
        );
        world.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c BLOB); CREATE INDEX tb ON t(b)");
        let mut applier = world.applier_with(|options| {
            options.use_wal = use_wal;
            options.wal_bytes_max = 1 << random.below(22);
            options.batch_bytes_max = 1 << (10 + random.below(12));
        });
        for _ in 0..60 {
            for _ in 0..random.below(8) {
                let rows = 1 + random.below(40);
                let size = random.below(3000);
                let key = random.below(2000);
                let sql = match random.below(12) {
                    0..=4 => format!(
                        "WITH RECURSIVE n(x) AS (VALUES(1) UNION ALL SELECT x+1 FROM n WHERE x<{rows}) \
                         INSERT INTO t(b, c) SELECT 'r' || random(), randomblob({size}) FROM n"
                    ),
                    5..=7 => format!(
                        "UPDATE t SET b = b || 'x', c = randomblob({size}) WHERE a % 97 = {key} % 97"
                    ),
                    8 => format!("DELETE FROM t WHERE a % 3 = {key} % 3"),
                    9 => "PRAGMA journal_mode=WAL".into(),
                    10 => "PRAGMA journal_mode=DELETE".into(),
                    _ => "VACUUM".into(),
                };
                world.run(&sql);
            }
            match random.below(4) {
                0 => assert_identical(&world, &mut applier),
                1 => catch_up(&mut applier),
                2 => {
                    applier.step().unwrap();
                }
                _ => {
                    applier.close().unwrap();
                    applier = world.applier_with(|options| options.use_wal = use_wal);
                    assert!(applier.pos().txid.0 <= world.head(), "seed {seed}");
                }
            }
        }
        assert_identical(&world, &mut applier);
    }
}

#[test]
fn p1_a_database_that_becomes_empty_and_full_again() {
    both_ways(|world, change| {
        world.run("CREATE TABLE t(a); INSERT INTO t VALUES(1)");
        let full = world.last().to_vec();
        let mut applier = world.applier_with(change);
        assert_identical(world, &mut applier);
        world.push_image(Vec::new());
        assert_identical(world, &mut applier);
        assert_eq!(applier.geometry().0, 0);
        world.push_image(full);
        assert_identical(world, &mut applier);
    });
}
