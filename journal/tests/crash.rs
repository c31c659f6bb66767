//! Power cuts that lose, reorder and tear what was not synced; and the n-th call failing, for every n.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::io::{ErrorKind, Read};
use std::sync::Arc;

use common::*;
use mycelite_journal::*;

/// What the log must still hold, and what it may hold.
struct Bounds {
    at_least: u64,
    at_most: u64,
}

/// Recovers a log as a writer does and checks that it holds a prefix within the bounds. Cuts the history to that. Returns how much of
/// it a power cut cannot take any more.
fn recover(disk: &FaultStorage, history: &mut History, bounds: &Bounds, seed: u64) -> (Log, u64) {
    // Before anybody recovers it, a reader sees a prefix too, or stops.
    match replay(Arc::new(disk.clone()), &history.images) {
        Ok(count) => assert!(count <= bounds.at_most, "seed {seed}"),
        Err(Error::Corrupt { .. }) => {}
        Err(error) => panic!("seed {seed}: {error}"),
    }
    let mut log = open(disk).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    log.refresh().unwrap();
    let on_disk = log.head().pos.txid.0;
    if let Some(tail) = log.prepared().unwrap() {
        // A record that was discarded can come back in this way. The database tells: here, the history of its images.
        let next = history.images.get(tail.header().txid.0 as usize);
        let known = next.is_some_and(|image| image.checksum() == tail.header().post_checksum);
        if known && history.random.below(2) == 0 {
            log.publish_prepared().unwrap();
        } else {
            log.drop_tail().unwrap();
        }
    }
    let head = log.head().pos;
    let kept = head.txid.0;
    assert!(
        (bounds.at_least..=bounds.at_most).contains(&kept),
        "seed {seed}: {kept} records, at least {} and at most {} expected",
        bounds.at_least,
        bounds.at_most
    );
    history.images.truncate(kept as usize + 1);
    assert_eq!(head.checksum, history.last().checksum(), "seed {seed}");
    (log, on_disk)
}

/// Writes at random until the power goes; returns the bounds for what is left.
fn write_until_cut(log: &mut Log, history: &mut History, mut synced: u64) -> Bounds {
    log.set_segment_bytes_max(3000);
    let mut rolled = log.segment_first();
    for _ in 0..history.random.below(25) {
        let last = history.images.len() as u64 - 1;
        match history.random.below(8) {
            0 => {
                log.sync().unwrap();
                synced = last;
            }
            1 => {
                let new = history.next_image();
                let record = begin(log, history.last(), &new, draft(&new)).unwrap();
                record.prepare().unwrap();
                if history.random.below(3) > 0 {
                    log.publish().unwrap();
                    history.images.push(new);
                } else if history.random.below(3) > 0 {
                    log.discard().unwrap();
                } else {
                    history.images.push(new);
                    return Bounds {
                        at_least: synced,
                        at_most: last + 1,
                    };
                }
            }
            _ => {
                history.step(log).unwrap();
            }
        }
        // A new segment means that all before it is on the disk.
        let segments = log.segment_first();
        if segments != rolled {
            rolled = segments;
            synced = synced.max(last);
        }
    }
    Bounds {
        at_least: synced,
        at_most: history.images.len() as u64 - 1,
    }
}

#[test]
fn power_cuts_leave_a_prefix_with_everything_synced() {
    for seed in 0..1000 {
        let mut history = History::new(seed);
        let (mut disk, mut log) = new_log();
        let mut synced = 0;
        for round in 0..3 {
            let bounds = write_until_cut(&mut log, &mut history, synced);
            drop(log);
            // What a power cut left is on the disk: the next one must not take it.
            disk = disk.power_cut(seed * 3 + round);
            (log, synced) = recover(&disk, &mut history, &bounds, seed);
        }
        history.steps(&mut log, 3);
        let count = history.images.len() as u64 - 1;
        let replayed = replay(Arc::new(disk.clone()), &history.images);
        assert_eq!(replayed.unwrap(), count, "seed {seed}");
    }
}

#[test]
fn a_killed_process_loses_nothing_that_was_published() {
    for seed in 0..200 {
        let mut history = History::new(seed);
        let (disk, mut log) = new_log();
        for _ in 0..4 {
            let mut bounds = write_until_cut(&mut log, &mut history, 0);
            let pending = log.pending().is_some();
            drop(log);
            // The system still has every write; only the record that was not published is open.
            bounds.at_least = history.images.len() as u64 - 1 - u64::from(pending);
            (log, _) = recover(&disk, &mut history, &bounds, seed);
        }
        let count = history.images.len() as u64 - 1;
        assert_eq!(replay(Arc::new(disk), &history.images).unwrap(), count);
    }
}

/// A fixed course of events; each returns whether it went well, and is tried again if not.
fn scenario(disk: &FaultStorage, give_up: bool) -> (History, Bounds, Vec<Error>) {
    let mut history = History::new(77);
    let mut errors = Vec::new();
    let mut bounds = Bounds {
        at_least: 0,
        at_most: 0,
    };
    let mut log = loop {
        match Log::create(Arc::new(disk.clone()), ID, 1).or_else(|error| match error {
            // The first attempt got as far as the name.
            Error::Exists { .. } if !errors.is_empty() => open(disk),
            error => Err(error),
        }) {
            Ok(log) => break log,
            Err(error) => errors.push(error),
        }
        if give_up {
            return (history, bounds, errors);
        }
    };
    log.set_segment_bytes_max(2500);
    // Records for `append_raw`, from a log on a disk that works.
    let (source, mut twin) = new_log();
    for round in 0..14 {
        let mut new = history.next_image();
        // More than the writer's buffer holds, and back to something handy.
        if round == 5 || round == 6 {
            new = [Db::new(65536, 18), Db::new(512, 3)][round as usize - 5].clone();
            new.bytes = history.random.bytes(new.bytes.len());
        }
        commit(&mut twin, history.last(), &new).unwrap();
        let raw = [4, 5, 9].contains(&round).then(|| newest(&source));
        let step = (history.last(), &new, raw.as_deref());
        while let Err(error) = one_round(round, &mut log, step, &mut bounds) {
            errors.push(error);
            if give_up {
                history.images.push(new);
                return (history, bounds, errors);
            }
            after_failure(&mut log, &bounds);
            if log.head().pos.txid.0 == history.images.len() as u64 {
                break;
            }
        }
        history.images.push(new);
        bounds.at_most = history.images.len() as u64 - 1;
    }
    (history, bounds, errors)
}

/// The newest record's bytes.
fn newest(disk: &FaultStorage) -> Vec<u8> {
    let mut bytes = Vec::new();
    let entry = reader(disk).head().unwrap().unwrap();
    entry.raw().read_to_end(&mut bytes).unwrap();
    bytes
}

/// Records one step (from, to, and its record if it is to come from outside), in one of the ways there are.
fn one_round(
    round: u32,
    log: &mut Log,
    (old, new, raw): (&Db, &Db, Option<&[u8]>),
    bounds: &mut Bounds,
) -> Result<()> {
    log.refresh()?;
    if let Some(mut raw) = raw {
        bounds.at_most = log.head().pos.txid.0 + 1;
        let limits = RawLimits::default();
        if round.is_multiple_of(2) {
            return log.append_raw(&mut raw, &limits).map(|_| ());
        }
        log.hold_raw(&mut raw, &limits)?;
        return log.write_held();
    }
    if round % 4 == 3 {
        begin(log, old, new, draft(new))?.prepare()?;
        bounds.at_most = log.head().pos.txid.0 + 1;
        log.discard()?;
    }
    let record = begin(log, old, new, draft(new))?;
    // Whatever happens from here on, the record may be there.
    bounds.at_most = old_txid(&record) + 1;
    if round.is_multiple_of(2) {
        record.commit()?;
    } else {
        record.prepare()?;
        log.publish()?;
    }
    if round % 3 == 2 {
        log.sync()?;
        bounds.at_least = log.head().pos.txid.0;
    }
    Ok(())
}

fn old_txid(record: &RecordWriter<'_>) -> u64 {
    record.txid().0 - 1
}

/// What a writer does before it tries again: give up what is pending, look at the log, drop an open end.
fn after_failure(log: &mut Log, bounds: &Bounds) {
    log.discard().unwrap();
    log.refresh().unwrap();
    log.drop_tail().unwrap();
    assert!(log.head().pos.txid.0 >= bounds.at_least);
}

#[test]
fn any_one_call_may_fail_and_the_log_goes_on() {
    let disk = FaultStorage::new();
    let (history, _, errors) = scenario(&disk, false);
    assert!(errors.is_empty());
    let calls = disk.calls();
    assert_eq!(replay(Arc::new(disk), &history.images).unwrap(), 14);
    for at_call in 1..=calls {
        let disk = FaultStorage::new();
        disk.fail(Fault {
            at_call,
            kind: ErrorKind::StorageFull,
            lasting: false,
        });
        let (history, _, errors) = scenario(&disk, false);
        for error in &errors {
            assert!(error.io_error().is_some(), "call {at_call}: {error}");
        }
        assert!(errors.len() <= 1, "call {at_call}");
        let replayed = replay(Arc::new(disk.clone()), &history.images);
        assert_eq!(replayed.unwrap(), 14, "call {at_call}");
    }
}

#[test]
fn when_all_calls_fail_from_some_point_on_a_prefix_is_left() {
    let disk = FaultStorage::new();
    scenario(&disk, true);
    for at_call in 1..disk.calls() {
        let disk = FaultStorage::new();
        disk.fail(Fault {
            at_call,
            kind: ErrorKind::Other,
            lasting: true,
        });
        let (mut history, bounds, errors) = scenario(&disk, true);
        disk.heal();
        // The only call whose failure is not reported is the note of how far the log is synced.
        assert!(errors.len() <= 1, "call {at_call}");
        if disk.contents("meta").is_none() {
            continue;
        }
        for disk in [
            disk.copy(),
            disk.power_cut(at_call),
            disk.power_cut(!at_call),
        ] {
            if disk.contents("meta").is_none() {
                continue;
            }
            let images = history.images.clone();
            let (mut log, _) = recover(&disk, &mut history, &bounds, at_call);
            history.steps(&mut log, 2);
            let count = history.images.len() as u64 - 1;
            let replayed = replay(Arc::new(disk), &history.images);
            assert_eq!(replayed.unwrap(), count, "call {at_call}");
            history.images = images;
        }
    }
}

/// Asks a reader everything; the answers as text.
fn ask(reader: &mut Reader) -> Result<String> {
    let mut answers = format!("{:?} {}", reader.first_txid()?, reader.bytes()?);
    reader.seek(Txid(0))?;
    while let Some(entry) = reader.next()? {
        entry.verify()?;
        answers += &format!(" {}", entry.header.pos());
    }
    for txid in [3, 9, 14, 15] {
        let found = reader.find(Txid(txid))?.map(|entry| entry.header.pos());
        answers += &format!(" {found:?} {}", reader.bytes_after(Txid(txid))?);
        if let Some(pos) = found {
            let found = reader.find_checksum(pos.checksum)?;
            answers += &format!(" {:?}", found.map(|entry| entry.header.txid));
        }
    }
    answers += &format!(" {:?}", reader.head()?.map(|entry| entry.header.pos()));
    Ok(answers)
}

#[test]
fn any_one_call_of_a_reader_may_fail_and_it_goes_on() {
    let disk = FaultStorage::new();
    scenario(&disk, false);
    let before = disk.calls();
    let expected = ask(&mut reader(&disk)).unwrap();
    for at_call in 1..=disk.calls() - before {
        let mut reader = reader(&disk);
        disk.fail(Fault {
            at_call,
            kind: ErrorKind::Other,
            lasting: false,
        });
        match ask(&mut reader) {
            // Only the sync mark may be unreadable without a word: it is a hint.
            Ok(answers) => assert_eq!(answers, expected, "call {at_call}"),
            Err(error) => assert!(error.io_error().is_some(), "call {at_call}: {error}"),
        }
        disk.heal();
        assert_eq!(ask(&mut reader).unwrap(), expected, "call {at_call}");
    }
}

#[test]
fn what_a_killed_writer_made_is_on_the_disk_when_the_next_one_syncs() {
    let mut killed = 0;
    for at_call in 1..60 {
        let (disk, mut log) = new_log();
        log.set_segment_bytes_max(600);
        let mut history = History::new(at_call);
        // From there on nothing that it does counts, also its file for the next segment, whose name is not synced yet.
        disk.fail(Fault {
            at_call,
            kind: ErrorKind::Other,
            lasting: true,
        });
        killed += u32::from((0..4).any(|_| history.step(&mut log).is_err()));
        drop(log);
        disk.heal();
        let mut log = open(&disk).unwrap();
        log.drop_tail().unwrap();
        if log.head().pos.txid.0 as usize + 1 != history.images.len() {
            continue;
        }
        history.step(&mut log).unwrap();
        log.sync().unwrap();
        let head = log.head().pos;
        for seed in 0..32 {
            let after = open(&disk.power_cut(seed)).unwrap();
            assert_eq!(after.head().pos, head, "call {at_call}, seed {seed}");
        }
    }
    assert!(killed > 20, "{killed}");
}
