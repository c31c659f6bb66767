//! Cutting a log back: at every place, with every call failing, with the power going in between.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::io::{ErrorKind, Read};
use std::sync::Arc;

use common::*;
use mycelite_journal::*;

/// Records in the histories that are cut: several segments.
const RECORDS: usize = 24;

/// A history in several segments.
fn several_segments(seed: u64) -> (FaultStorage, Log, History) {
    let (disk, mut log) = new_log();
    log.set_segment_bytes_max(1500);
    let mut history = History::new(seed);
    history.steps(&mut log, RECORDS);
    log.sync().unwrap();
    let segments = disk.list().unwrap();
    let segments = segments.iter().filter(|name| name.ends_with(".seg"));
    assert!(segments.count() > 3, "several segments");
    (disk, log, history)
}

fn pos_at(disk: &FaultStorage, txid: u64) -> Pos {
    match reader(disk).find(Txid(txid)).unwrap() {
        Some(entry) => entry.header.pos(),
        None => Pos::ZERO,
    }
}

/// Another future after the last image, on another timeline.
fn go_on(log: &mut Log, history: &mut History, timeline: u64, count: usize) {
    for _ in 0..count {
        let new = history.next_image();
        let old = history.last();
        let draft = Draft {
            timeline: Timeline(timeline),
            ..draft(&new)
        };
        begin(log, old, &new, draft).unwrap().commit().unwrap();
        history.images.push(new);
    }
}

#[test]
fn a_log_can_be_cut_at_every_transaction_and_goes_on_from_there() {
    for to in 0..=RECORDS {
        let (disk, mut log, mut history) = several_segments(3);
        let pos = pos_at(&disk, to as u64);
        log.truncate(pos).unwrap();
        assert_eq!(log.head().pos, pos);
        let again = open(&disk).unwrap();
        assert_eq!(again.head(), log.head(), "cut at {to}");
        history.images.truncate(to + 1);
        let replayed = replay(Arc::new(disk.clone()), &history.images).unwrap();
        assert_eq!(replayed, to as u64);
        assert!(disk.contents("cut").is_none());

        // Longer than what was cut off, so that old marks and segments would be met again.
        history.random = Random(to as u64 + 99);
        go_on(&mut log, &mut history, 2, RECORDS + 10);
        log.sync().unwrap();
        let replayed = replay(Arc::new(disk.clone()), &history.images).unwrap();
        assert_eq!(replayed as usize, to + RECORDS + 10);
        assert_eq!(open(&disk).unwrap().head(), log.head());
        for seed in 0..4 {
            let after = disk.power_cut(seed);
            assert_eq!(open(&after).unwrap().head(), log.head(), "cut at {to}");
        }
    }
}

#[test]
fn a_place_that_the_log_never_was_at_is_refused_and_nothing_changes() {
    let (disk, mut log, history) = several_segments(4);
    let mut strange = pos_at(&disk, 7);
    strange.checksum.0 ^= 1;
    let beyond = Pos {
        txid: Txid(RECORDS as u64 + 1),
        ..log.head().pos
    };
    let other_timeline = Pos {
        timeline: Timeline(9),
        ..pos_at(&disk, 7)
    };
    for to in [strange, beyond, other_timeline] {
        let error = log.truncate(to).unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    }
    let new = history.last().clone();
    let record = begin(&mut log, &new, &new, draft(&new)).unwrap();
    record.prepare().unwrap();
    let error = log.truncate(Pos::ZERO).unwrap_err();
    assert!(matches!(error, Error::Misuse(_)), "{error}");
    log.discard().unwrap();
    let replayed = replay(Arc::new(disk), &history.images).unwrap();
    assert_eq!(replayed as usize, RECORDS);
}

/// The log after a failed cut and a restart: whole or cut, and nothing else; then the cut is tried again.
fn check(disk: &FaultStorage, history: &History, to: Pos, what: &str) -> bool {
    // A reader needs no repair: it sees a prefix, or says what is wrong.
    match replay(Arc::new(disk.clone()), &history.images) {
        Ok(count) => assert!(count >= to.txid.0, "{what}: {count}"),
        Err(Error::Corrupt { .. }) => {}
        Err(error) => panic!("{what}: {error}"),
    }
    let mut log = open(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    let head = log.head().pos;
    let is_cut = head == to;
    assert!(is_cut || head.txid.0 as usize == RECORDS, "{what}: {head}");
    let replayed = replay(Arc::new(disk.clone()), &history.images).unwrap();
    assert_eq!(replayed, head.txid.0, "{what}");
    log.truncate(to).unwrap();
    let mut other = History {
        images: history.images[..=to.txid.0 as usize].to_vec(),
        random: Random(5),
    };
    go_on(&mut log, &mut other, 2, 3);
    log.sync().unwrap();
    // Nothing of the old end, nor of the note, comes back.
    for seed in 0..3 {
        let after = disk.power_cut(seed);
        let head = open(&after).unwrap().head().pos;
        assert_eq!(head, log.head().pos, "{what}");
        let replayed = replay(Arc::new(after), &other.images).unwrap();
        assert_eq!(replayed, to.txid.0 + 3, "{what}");
    }
    is_cut
}

#[test]
fn a_cut_that_fails_or_dies_at_any_call_leaves_the_old_end_or_the_new() {
    for to in [0, 5, RECORDS as u64 - 1] {
        let (disk, mut log, _) = several_segments(8);
        let pos = pos_at(&disk, to);
        let before = disk.calls();
        log.truncate(pos).unwrap();
        let calls = disk.calls() - before;
        let (mut whole, mut cut) = (0, 0);
        for at_call in 1..=calls {
            let (disk, mut log, history) = several_segments(8);
            disk.fail(Fault {
                at_call,
                kind: ErrorKind::Other,
                lasting: true,
            });
            // Only noting how far the log is synced may fail unseen.
            let _ = log.truncate(pos);
            drop(log);
            disk.heal();
            for (how, disk) in [
                ("killed", disk.copy()),
                ("power cut", disk.power_cut(at_call)),
                ("another power cut", disk.power_cut(!at_call)),
            ] {
                let what = format!("to {to}, call {at_call} of {calls}, {how}");
                if check(&disk, &history, pos, &what) {
                    cut += 1;
                } else {
                    whole += 1;
                }
            }
        }
        assert!(whole > 5 && cut > 5, "{whole} whole, {cut} cut");
    }
}

#[test]
fn a_finished_cut_whose_note_comes_back_cuts_nothing_more() {
    let (disk, mut log, mut history) = several_segments(9);
    let first = pos_at(&disk, 6);
    log.truncate(pos_at(&disk, 5)).unwrap();
    history.images.truncate(6);
    go_on(&mut log, &mut history, 2, 30);
    let cut = Cut { id: ID, first };
    disk.put("cut", cut.encode().to_vec());
    assert_eq!(open(&disk).unwrap().head(), log.head());
    assert!(disk.contents("cut").is_none());
    let mut bytes = cut.encode();
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Cut::decode(&bytes).is_err(), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    disk.put("cut", bytes[..63].to_vec());
    let error = open(&disk).err().unwrap();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
}

#[test]
fn a_part_of_a_history_is_a_log_of_its_own() {
    let (disk, log, _) = several_segments(10);
    for after in [0, 1, 11, RECORDS as u64 - 1, RECORDS as u64] {
        let part = FaultStorage::new();
        let follows = pos_at(&disk, after);
        let mut copy = Log::create_after(Arc::new(part.clone()), ID, 7, follows).unwrap();
        assert_eq!(copy.head().pos, follows);
        let mut source = reader(&disk);
        source.seek(Txid(after)).unwrap();
        while let Some(entry) = source.next().unwrap() {
            copy.append_raw(&mut entry.raw(), &RawLimits::default())
                .unwrap();
        }
        copy.sync().unwrap();
        assert_eq!(copy.head().pos, log.head().pos);
        assert_eq!(open(&part).unwrap().head().pos, log.head().pos);
        let (mut source, mut part) = (reader(&disk), reader(&part));
        source.seek(Txid(after)).unwrap();
        for _ in after..RECORDS as u64 {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            let entry = part.next().unwrap().unwrap();
            entry.raw().read_to_end(&mut a).unwrap();
            let entry = source.next().unwrap().unwrap();
            entry.raw().read_to_end(&mut b).unwrap();
            assert!(a == b);
        }
        assert!(part.next().unwrap().is_none());
        let last = part.find_checksum(log.head().pos.checksum).unwrap();
        assert_eq!(last.is_some(), after < RECORDS as u64);
    }
}
