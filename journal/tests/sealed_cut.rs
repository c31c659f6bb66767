//! Cutting a log back where it is sealed: at every place, with every call failing, and what an archive says that was open before.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::io::ErrorKind;
use std::sync::Arc;

use common::*;
use mycelite_journal::*;

const RECORDS: u64 = 16;

fn sealed_log() -> (FaultStorage, Log, History) {
    let (disk, mut log) = new_log();
    log.set_segment_bytes_max(1200);
    let mut history = History::new(15);
    history.steps(&mut log, RECORDS as usize);
    log.sync().unwrap();
    let archive = Archive::open(Arc::new(disk.clone())).unwrap();
    seal_all(&disk);
    for txid in [4, 9, 13] {
        Snapshot::write(&archive, Txid(txid)).unwrap();
    }
    let sealed = disk.list().unwrap();
    let sealed = sealed.iter().filter(|name| name.ends_with(".sealed"));
    assert!(sealed.count() > 2);
    disk.sync_dir().unwrap();
    (disk, log, history)
}

fn seal_all(disk: &FaultStorage) {
    while seal(disk, Txid(u64::MAX)).unwrap().is_some() {}
}

fn pos_at(disk: &FaultStorage, txid: u64) -> Pos {
    let entry = reader(disk).find(Txid(txid)).unwrap();
    entry.map_or(Pos::ZERO, |entry| entry.header.pos())
}

fn same_images(archive: &Archive, images: &[Db]) {
    for (txid, image) in images.iter().enumerate().skip(1) {
        let mut past = archive.as_of(Txid(txid as u64)).unwrap();
        assert_eq!(
            past.scan_checksum().unwrap(),
            image.checksum(),
            "as of {txid}"
        );
        assert_eq!(past.pos().checksum, image.checksum());
    }
    assert!(archive.as_of(Txid(images.len() as u64)).is_err());
}

/// Another future on another timeline, sealed too.
fn go_on(disk: &FaultStorage, log: &mut Log, history: &mut History, seed: u64) {
    history.random = Random(seed);
    for _ in 0..RECORDS {
        let new = history.next_image();
        let draft = Draft {
            timeline: Timeline(2),
            ..draft(&new)
        };
        begin(log, history.last(), &new, draft)
            .unwrap()
            .commit()
            .unwrap();
        history.images.push(new);
    }
    seal_all(disk);
    let count = history.images.len() as u64 - 1;
    Snapshot::write(
        &Archive::open(Arc::new(disk.clone())).unwrap(),
        Txid(count - 3),
    )
    .unwrap();
}

#[test]
fn a_sealed_log_can_be_cut_everywhere() {
    for to in 0..=RECORDS {
        let (disk, mut log, mut history) = sealed_log();
        let archive = Archive::open(Arc::new(disk.clone())).unwrap();
        same_images(&archive, &history.images);
        let old: Vec<(AsOf, Checksum)> = (1..=RECORDS)
            .map(|txid| {
                (
                    archive.as_of(Txid(txid)).unwrap(),
                    history.images[txid as usize].checksum(),
                )
            })
            .collect();
        log.truncate(pos_at(&disk, to)).unwrap();
        history.images.truncate(to as usize + 1);
        let replayed = replay(Arc::new(disk.clone()), &history.images).unwrap();
        assert_eq!(replayed, to);
        same_images(&archive, &history.images);
        go_on(&disk, &mut log, &mut history, to + 5);
        same_images(&archive, &history.images);
        same_images(
            &Archive::open(Arc::new(disk.clone())).unwrap(),
            &history.images,
        );
        let replayed = replay(Arc::new(disk.clone()), &history.images).unwrap();
        assert_eq!(replayed, to + RECORDS);
        for (mut past, checksum) in old {
            let txid = past.pos().txid;
            match past.scan_checksum() {
                Ok(found) => assert_eq!(found, checksum, "cut at {to}, as of {txid}"),
                Err(error) => assert!(txid.0 > to, "cut at {to}, as of {txid}: {error}"),
            }
        }
    }
}

/// After a crash the log is whole or cut; then it is cut, and goes on.
fn check(disk: &FaultStorage, history: &History, to: Pos, call: u64) {
    let mut log = open(disk).unwrap_or_else(|error| panic!("call {call}: {error}"));
    let head = log.head().pos.txid.0;
    assert!(head == to.txid.0 || head == RECORDS, "call {call}: {head}");
    let images = &history.images[..=head as usize];
    assert_eq!(replay(Arc::new(disk.clone()), images).unwrap(), head);
    same_images(&Archive::open(Arc::new(disk.clone())).unwrap(), images);
    log.truncate(to).unwrap();
    let mut other = History::new(1);
    other.images = history.images[..=to.txid.0 as usize].to_vec();
    same_images(
        &Archive::open(Arc::new(disk.clone())).unwrap(),
        &other.images,
    );
    go_on(disk, &mut log, &mut other, call);
    same_images(
        &Archive::open(Arc::new(disk.clone())).unwrap(),
        &other.images,
    );
    let names = disk.list().unwrap();
    assert!(
        !names
            .iter()
            .any(|name| name.ends_with(".new") && name != "meta.new"),
        "{names:?}"
    );
    log.sync().unwrap();
    let after = disk.power_cut(call);
    let replayed = replay(Arc::new(after), &other.images).unwrap();
    assert_eq!(replayed, to.txid.0 + RECORDS, "call {call}");
}

#[test]
fn a_cut_of_a_sealed_log_may_fail_at_any_call() {
    let (disk, mut log, history) = sealed_log();
    let to = pos_at(&disk, 7);
    drop(log);
    let whole = disk.copy();
    log = open(&whole).unwrap();
    let before = whole.calls();
    log.truncate(to).unwrap();
    for call in 1..=whole.calls() - before {
        let disk = disk.copy();
        let mut log = open(&disk).unwrap();
        disk.fail(Fault {
            at_call: call,
            kind: ErrorKind::Other,
            lasting: true,
        });
        // Only the note of how far the log is on the disk may fail without a word.
        let _ = log.truncate(to);
        drop(log);
        disk.heal();
        for seed in 0..2 {
            check(&disk.power_cut(call * 2 + seed), &history, to, call);
        }
        check(&disk, &history, to, call);
    }
}
