//! The server dies by SIGKILL while it parks a tail, cuts its log and takes its file back.

use std::time::Duration;

use crate::disk::{Snapshot, log_of, power_cut};
use crate::kit::kill_and_restart;
use crate::world::{Readers, World, raw_records};

/// Power cuts on the primary, each with so many kills of the server.
const CUTS: u64 = 6;
const KILLS: u64 = 4;

fn killed_server(mode: &'static str, seed: u64) {
    let mut world = World::new(mode);
    let mut random = seed;
    let mut below = |limit: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (random >> 33) % limit
    };
    let mut writer = world.writer();
    world.write(&mut writer, 3);
    world.wait_for_replica();
    let readers = Readers::start(&world.replica());
    let mut lost = Vec::new();
    for _ in 0..CUTS {
        world.write(&mut writer, 2 + below(5));
        let (database, log) = (Snapshot::database(&world.db), Snapshot::log(&world.db));
        let (kept, common) = (
            world.commits,
            raw_records(&log_of(&world.db), 0).len() as u64,
        );
        world.write(&mut writer, 1 + below(8));
        world.wait_for_replica();
        lost.push(raw_records(&log_of(&world.db), common));
        writer.kill();
        power_cut(&world.db, &database, &log);
        world.commits = kept;
        writer = world.writer();
        for _ in 0..KILLS {
            world.write(&mut writer, 1);
            std::thread::sleep(Duration::from_millis(below(25)));
            kill_and_restart(&mut world.server);
        }
        world.wait_for_replica();
    }
    world.assert_all_well(writer);
    let mut parked: Vec<_> = world.parked().into_iter().map(|tail| tail.1).collect();
    // Several in one second are listed by their first transaction.
    parked.sort();
    lost.sort();
    assert!(
        parked == lost,
        "{} parked, {} lost",
        parked.len(),
        lost.len()
    );
    for reads in readers.stop() {
        assert!(reads > 5, "{reads}");
    }
}

#[test]
fn a_killed_server_finishes_what_it_began_with_a_rollback_journal() {
    killed_server("DELETE", 1);
}

#[test]
fn a_killed_server_finishes_what_it_began_with_a_wal() {
    killed_server("WAL", 2);
}
