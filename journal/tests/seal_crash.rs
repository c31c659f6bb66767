//! Sealing and snapshots, cut short at every call of the disk: nothing is lost, and the next attempt completes the work.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::io::{ErrorKind, Read};
use std::sync::Arc;

use common::*;
use mycelite_journal::*;

/// A log of a few segments, on the disk, and what it holds.
struct Case {
    disk: FaultStorage,
    history: History,
    records: Vec<Vec<u8>>,
}

fn case() -> Case {
    let (disk, mut log) = new_log();
    log.set_segment_bytes_max(4000);
    let mut history = History::new(4);
    history.steps(&mut log, 14);
    log.sync().unwrap();
    disk.sync_dir().unwrap();
    let mut reader = reader(&disk);
    let records = std::iter::from_fn(|| reader.next().unwrap())
        .map(|entry| raw(&entry))
        .collect();
    Case {
        disk,
        history,
        records,
    }
}

fn raw(entry: &RecordEntry) -> Vec<u8> {
    let mut bytes = Vec::new();
    entry.raw().read_to_end(&mut bytes).unwrap();
    bytes
}

/// The work: seal what can be sealed, and write a snapshot in the middle.
fn work(disk: &FaultStorage) -> Result<()> {
    seal(disk, Txid(u64::MAX))?;
    let archive = Archive::open(Arc::new(disk.clone()))?;
    Snapshot::write(&archive, Txid(6))?;
    while seal(disk, Txid(u64::MAX))?.is_some() {}
    Ok(())
}

impl Case {
    /// Everything reads as it did.
    fn check(&self, disk: &FaultStorage, call: u64) {
        let mut reader = reader(disk);
        for (index, expected) in self.records.iter().enumerate() {
            let entry = reader.next().unwrap();
            let entry = entry.unwrap_or_else(|| panic!("call {call}: no record {index}"));
            assert!(raw(&entry) == *expected, "call {call}: record {index}");
        }
        assert!(reader.next().unwrap().is_none());
        let archive = Archive::open(Arc::new(disk.clone())).unwrap();
        for (txid, image) in self.history.images.iter().enumerate().skip(1) {
            let mut past = archive.as_of(Txid(txid as u64)).unwrap();
            assert_eq!(
                past.scan_checksum().unwrap(),
                image.checksum(),
                "call {call}"
            );
            assert_eq!(past.pos().checksum, image.checksum(), "call {call}");
        }
        assert_eq!(
            open(disk).unwrap().head().pos.txid.0,
            self.records.len() as u64
        );
    }

    /// The work is done to its end, and nothing else is left.
    fn complete(&self, disk: &FaultStorage, call: u64) {
        work(disk).unwrap_or_else(|error| panic!("call {call}: {error}"));
        self.check(disk, call);
        let names = disk.list().unwrap();
        let count = |end: &str| names.iter().filter(|name| name.ends_with(end)).count();
        assert_eq!(
            (count(".seg"), count(".snapshot"), count(".new")),
            (1, 1, 0),
            "call {call}: {names:?}"
        );
        let mut log = open(disk).unwrap();
        let mut history = History::new(call);
        history.images = self.history.images.clone();
        history.steps(&mut log, 2);
        let replayed = replay(Arc::new(disk.clone()), &history.images);
        assert_eq!(replayed.unwrap() as usize, self.records.len() + 2);
    }
}

#[test]
fn the_work_may_be_cut_short_at_any_call() {
    let case = case();
    let whole = case.disk.copy();
    let before = whole.calls();
    work(&whole).unwrap();
    let calls = whole.calls() - before;
    case.complete(&whole, 0);
    assert!(calls > 50);
    for call in 1..=calls {
        // The process ends here: what it wrote is there.
        let disk = case.disk.copy();
        disk.fail(Fault {
            at_call: call,
            kind: ErrorKind::Other,
            lasting: true,
        });
        let error = work(&disk).unwrap_err();
        assert!(error.io_error().is_some(), "call {call}: {error}");
        disk.heal();
        case.check(&disk, call);
        // Or the power goes.
        for seed in 0..3 {
            let after = disk.power_cut(call * 3 + seed);
            case.check(&after, call);
            case.complete(&after, call);
        }
        case.complete(&disk, call);
    }
}

#[test]
fn any_one_call_may_fail() {
    let case = case();
    let whole = case.disk.copy();
    let before = whole.calls();
    work(&whole).unwrap();
    for call in 1..=whole.calls() - before {
        let disk = case.disk.copy();
        disk.fail(Fault {
            at_call: call,
            kind: ErrorKind::StorageFull,
            lasting: false,
        });
        let error = work(&disk).unwrap_err();
        assert!(error.io_error().is_some(), "call {call}: {error}");
        case.check(&disk, call);
        case.complete(&disk, call);
    }
}

#[test]
fn a_damaged_segment_is_left_alone() {
    let case = case();
    let name = segment_name(Txid(1));
    let good = case.disk.contents(&name).unwrap();
    for at in (0..good.len()).step_by(13) {
        let disk = case.disk.copy();
        let mut bad = good.clone();
        bad[at] ^= 16;
        disk.put(&name, bad.clone());
        let error = seal(&disk, Txid(u64::MAX)).unwrap_err();
        assert!(
            error.to_string().contains("damaged at byte"),
            "byte {at}: {error}"
        );
        assert!(disk.contents(&name) == Some(bad));
        let names = disk.list().unwrap();
        assert!(
            !names.iter().any(|name| name.contains("sealed")),
            "byte {at}"
        );
    }
}
