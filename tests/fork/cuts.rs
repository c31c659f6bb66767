//! One power cut, and several, in each order of things.

use crate::clikit::{text, wait_for};
use crate::disk::{Snapshot, log_of, power_cut, reboot};
use crate::kit::{LONG, kill_and_restart, mycelite, records};
use crate::world::{Readers, World, raw_records};

/// The records of the primary after transaction `after`.
fn tail(world: &World, after: u64) -> Vec<Vec<u8>> {
    raw_records(&log_of(&world.db), after)
}

fn head(world: &World) -> u64 {
    tail(world, 0).len() as u64
}

/// The power takes the last five of fifteen commits, which the replica has.
fn one_cut(mode: &'static str) {
    let mut world = World::new(mode);
    let mut writer = world.writer();
    world.write(&mut writer, 10);
    let (database, log) = (Snapshot::database(&world.db), Snapshot::log(&world.db));
    let common = head(&world);
    world.write(&mut writer, 5);
    world.wait_for_replica();
    let readers = Readers::start(&world.replica());
    let lost = tail(&world, common);
    assert_eq!(lost.len(), 5);
    writer.kill();
    power_cut(&world.db, &database, &log);
    world.commits = 10;
    assert_eq!(head(&world), common);

    let mut writer = world.writer();
    world.write(&mut writer, 1);
    world.wait_for_replica();
    world.write(&mut writer, 7);
    world.assert_all_well(writer);
    let parked = world.parked();
    assert_eq!(parked.len(), 1);
    assert_eq!(parked[0].0, [1, common + 1, common + 5]);
    assert!(
        parked[0].1 == lost,
        "the parked records are not the lost ones"
    );
    for reads in readers.stop() {
        assert!(reads > 5, "{reads}");
    }
    assert_is_shown(&world, common);
}

/// Where the timeline begins is to be seen on both sides, and on the server what it cost.
fn assert_is_shown(world: &World, common: u64) {
    for record in records(&world.db) {
        let txid = record["txid"].as_u64().unwrap();
        assert_eq!(record["timeline"], if txid > common { 2 } else { 1 });
        assert_eq!(record["begins_timeline"], txid == common + 1, "{record}");
    }
    let newest = mycelite(&["log", text(&world.db), "--limit", "8"]).good();
    let lines: Vec<&str> = newest.lines().collect();
    assert_eq!(lines.len(), 9);
    assert!(lines[1].ends_with(" 2 begins"), "{newest}");
    assert!(lines[2].ends_with(" 2"), "{newest}");
    let line = format!(
        "transactions {} to {} of timeline 1",
        common + 1,
        common + 5
    );
    for source in [text(&world.replica()), &world.server.url("app")] {
        for verb in ["log", "status"] {
            let shown = mycelite(&[verb, source]).good();
            assert!(shown.contains(&line), "{verb} {source}: {shown}");
        }
        let shown = mycelite(&["log", source, "--json"]).good();
        let last: serde_json::Value = serde_json::from_str(shown.lines().last().unwrap()).unwrap();
        assert_eq!(last["parked"]["first_txid"], common + 1);
    }
    let name = world.server_status()["parked"][0]["name"].clone();
    let dir = world
        .replica_log()
        .join("parked")
        .join(name.as_str().unwrap());
    assert_eq!(mycelite(&["log", text(&dir)]).good().lines().count(), 6);
}

#[test]
fn a_power_cut_with_a_rollback_journal() {
    one_cut("DELETE");
}

#[test]
fn a_power_cut_with_a_wal() {
    one_cut("WAL");
}

/// What is lost may have changed everything: length, page size, journal mode.
#[test]
fn a_tail_of_every_kind_is_taken_back_under_readers() {
    let grow = "CREATE TABLE more AS SELECT value, randomblob(3000) b FROM generate_series(1, 500)";
    for (mode, deeds) in [
        ("DELETE", ["PRAGMA page_size=1024; VACUUM", grow]),
        ("DELETE", ["PRAGMA journal_mode=WAL", grow]),
        (
            "DELETE",
            ["PRAGMA page_size=16384; VACUUM", "PRAGMA journal_mode=WAL"],
        ),
        ("DELETE", ["DROP TABLE IF EXISTS before", "VACUUM"]),
        ("WAL", [grow, "VACUUM"]),
        ("WAL", ["DROP TABLE IF EXISTS before", "VACUUM"]),
    ] {
        let mut world = World::new(mode);
        let mut writer = world.writer();
        world.write(&mut writer, 3);
        writer.run(&grow.replace("more", "before"));
        let (database, log) = (Snapshot::database(&world.db), Snapshot::log(&world.db));
        let common = head(&world);
        world.wait_for_replica();
        let readers = Readers::start(&world.replica());
        for deed in deeds {
            writer.run(deed);
            world.write(&mut writer, 2);
        }
        world.wait_for_replica();
        let lost = tail(&world, common);
        writer.kill();
        power_cut(&world.db, &database, &log);
        world.commits = 3;
        let mut writer = world.writer();
        world.write(&mut writer, 2);
        world.wait_for_replica();
        for reads in readers.stop() {
            assert!(reads > 2, "{mode} {deeds:?}: {reads}");
        }
        world.assert_all_well(writer);
        let parked = world.parked();
        assert!(parked.len() == 1 && parked[0].1 == lost, "{mode} {deeds:?}");
    }
}

/// The log may have kept more than the database, or less.
fn uneven_cuts(mode: &'static str) {
    let mut world = World::new(mode);
    let mut writer = world.writer();
    for (keep_database, keep_log) in [(false, true), (true, false), (false, false), (true, true)] {
        world.write(&mut writer, 3);
        let common = world.commits;
        let early = (Snapshot::database(&world.db), Snapshot::log(&world.db));
        world.write(&mut writer, 3);
        let late = (Snapshot::database(&world.db), Snapshot::log(&world.db));
        let kept = if keep_database { world.commits } else { common };
        world.write(&mut writer, 3);
        world.wait_for_replica();
        writer.kill();
        let database = if keep_database { &late.0 } else { &early.0 };
        let log = if keep_log { &late.1 } else { &early.1 };
        power_cut(&world.db, database, log);
        world.commits = kept;
        writer = world.writer();
        world.write(&mut writer, 2);
        world.wait_for_replica();
    }
    world.assert_all_well(writer);
    assert_eq!(world.parked().len(), 4);
}

#[test]
fn the_log_keeps_more_or_less_than_the_database_with_a_rollback_journal() {
    uneven_cuts("DELETE");
}

#[test]
fn the_log_keeps_more_or_less_than_the_database_with_a_wal() {
    uneven_cuts("WAL");
}

/// The second cut takes all that was recorded after the first one; the server is away in between, and another time not.
fn cascade(mode: &'static str) {
    for server_away in [false, true] {
        let mut world = World::new(mode);
        let mut writer = world.writer();
        world.write(&mut writer, 6);
        let (database, log) = (Snapshot::database(&world.db), Snapshot::log(&world.db));
        let common = head(&world);
        world.write(&mut writer, 4);
        world.wait_for_replica();
        let first = tail(&world, common);
        writer.kill();
        let mut lost = vec![first];
        for _ in 0..2 {
            power_cut(&world.db, &database, &log);
            world.commits = 6;
            if server_away {
                world.server.kill();
            }
            writer = world.writer();
            world.write(&mut writer, 3);
            if !server_away {
                world.wait_for_replica();
                lost.push(tail(&world, common));
            }
            writer.kill();
        }
        if server_away {
            kill_and_restart(&mut world.server);
        }
        power_cut(&world.db, &database, &log);
        world.commits = 6;
        writer = world.writer();
        world.write(&mut writer, 1);
        world.assert_all_well(writer);
        let timelines: Vec<_> = records(&world.db)
            .iter()
            .map(|record| record["timeline"].as_u64().unwrap())
            .collect();
        assert_eq!(timelines[common as usize - 1..], [1, 4]);
        let parked: Vec<_> = world.parked().into_iter().map(|tail| tail.1).collect();
        assert!(
            parked == lost,
            "{} parked, {} lost",
            parked.len(),
            lost.len()
        );
    }
}

#[test]
fn a_second_cut_takes_what_came_after_the_first() {
    cascade("DELETE");
    cascade("WAL");
}

#[test]
fn without_a_boot_in_between_an_older_copy_is_refused() {
    for mode in ["DELETE", "WAL"] {
        let mut world = World::new(mode);
        let mut writer = world.writer();
        world.write(&mut writer, 5);
        let (database, log) = (Snapshot::database(&world.db), Snapshot::log(&world.db));
        world.write(&mut writer, 5);
        world.wait_for_replica();
        writer.kill();
        let before = raw_records(&world.replica_log(), 0);
        power_cut(&world.db, &database, &log);
        // Back to this boot: somebody has put an old copy there.
        reboot(&world.db);
        world.commits = 5;
        let mut writer = world.writer();
        world.write(&mut writer, 2);
        wait_for("the replica to refuse", LONG, || {
            writer.status()["replicas"][0]["state"] == "diverged"
        });
        assert!(raw_records(&world.replica_log(), 0) == before);
        assert!(world.parked().is_empty());
        writer.close();
        // After the next boot it goes on by itself.
        reboot(&world.db);
        let mut writer = world.writer();
        world.write(&mut writer, 1);
        wait_for(
            "the replica to refuse what was not a power cut",
            LONG,
            || writer.status()["replicas"][0]["state"] == "diverged",
        );
        writer.close();
        assert!(raw_records(&world.replica_log(), 0) == before);
    }
}

#[test]
fn a_copy_elsewhere_does_not_take_the_replica_after_a_boot() {
    let mut world = World::new("WAL");
    let mut writer = world.writer();
    world.write(&mut writer, 5);
    // As `cp -r` makes it: other inodes.
    let copy = world.home.path().join("copy.db");
    for (from, to) in [("", ""), ("-wal", "-wal")] {
        let path = |db: &std::path::Path, end: &str| format!("{}{end}", db.display());
        std::fs::copy(path(&world.db, from), path(&copy, to)).unwrap();
    }
    std::fs::create_dir(log_of(&copy)).unwrap();
    for entry in std::fs::read_dir(log_of(&world.db)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, log_of(&copy).join(path.file_name().unwrap())).unwrap();
    }
    world.write(&mut writer, 5);
    world.wait_for_replica();
    let before = raw_records(&world.replica_log(), 0);
    reboot(&copy);
    let original = std::mem::replace(&mut world.db, copy);
    let commits = std::mem::replace(&mut world.commits, 5);
    let mut other = world.writer();
    world.write(&mut other, 1);
    wait_for("the replica to refuse", LONG, || {
        other.status()["replicas"][0]["state"] == "diverged"
    });
    assert!(raw_records(&world.replica_log(), 0) == before);
    other.close();
    (world.db, world.commits) = (original, commits);
    world.write(&mut writer, 1);
    world.assert_all_well(writer);
}

#[test]
fn a_boot_without_a_loss_parks_nothing() {
    for mode in ["DELETE", "WAL"] {
        let mut world = World::new(mode);
        for boot in 1..=3 {
            let mut writer = world.writer();
            world.write(&mut writer, 3);
            world.wait_for_replica();
            if boot % 2 == 0 {
                writer.close();
            } else {
                writer.kill();
            }
            reboot(&world.db);
        }
        let mut writer = world.writer();
        world.write(&mut writer, 1);
        world.assert_all_well(writer);
        assert!(world.parked().is_empty());
        let last = records(&world.db).pop().unwrap();
        assert_eq!(last["timeline"], 4);
    }
}
