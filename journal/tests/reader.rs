//! Finding one's way in a log: seeking, looking up, following, beside changes of all kinds.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::io::Read;
use std::sync::Arc;

use common::*;
use mycelite_journal::*;

fn raw(entry: &RecordEntry) -> Vec<u8> {
    let mut bytes = Vec::new();
    entry.raw().read_to_end(&mut bytes).unwrap();
    bytes
}

fn all(disk: &FaultStorage) -> Vec<RecordEntry> {
    let mut reader = reader(disk);
    std::iter::from_fn(|| reader.next().unwrap()).collect()
}

#[test]
fn a_tail_cut_by_another_process_is_no_news() {
    let (disk, mut one) = new_log();
    let mut history = History::new(6);
    history.steps(&mut one, 2);
    let new = history.next_image();
    begin(&mut one, history.last(), &new, draft(&new))
        .unwrap()
        .prepare()
        .unwrap();
    // `two` and two readers see the prepared bytes; then they go away and other bytes come.
    let mut two = open(&disk).unwrap();
    let (mut looks, mut waits) = (reader(&disk), reader(&disk));
    for reader in [&mut looks, &mut waits] {
        while reader.next().unwrap().is_some() {}
    }
    assert!(two.prepared().unwrap().is_some());
    one.discard().unwrap();
    assert!(looks.next().unwrap().is_none());
    history.step(&mut one).unwrap();
    for reader in [&mut looks, &mut waits] {
        assert_eq!(reader.next().unwrap().unwrap().header.txid, Txid(3));
    }
    // A long record that is being written looks like this; it dies, and a short one takes its place.
    let name = last_segment(&disk);
    let bytes = disk.contents(&name).unwrap();
    let file = disk.open(&name, OpenMode::Write).unwrap();
    file.write_at(&[0; 3000], bytes.len() as u64).unwrap();
    for reader in [&mut looks, &mut waits] {
        assert!(reader.next().unwrap().is_none());
    }
    assert!(looks.next().unwrap().is_none());
    history.step(&mut one).unwrap();
    for reader in [&mut looks, &mut waits] {
        assert_eq!(reader.next().unwrap().unwrap().header.txid, Txid(4));
    }
    two.refresh().unwrap();
    assert_eq!(two.head(), one.head());
    assert!(two.prepared().unwrap().is_none());
    history.step(&mut two).unwrap();
    assert_eq!(replay(Arc::new(disk), &history.images).unwrap(), 5);
}

#[test]
fn the_reader_finds_its_way() {
    let (disk, mut log) = new_log();
    log.set_segment_bytes_max(5000);
    let mut history = History::new(11);
    history.steps(&mut log, 70);
    let entries = all(&disk);
    let mut reader = reader(&disk);
    assert_eq!(reader.first_txid().unwrap(), Some(Txid(1)));
    assert_eq!(reader.head().unwrap().unwrap().header, entries[69].header);
    let mut random = Random(1);
    for _ in 0..200 {
        let txid = random.below(71);
        reader.seek(Txid(txid)).unwrap();
        let next = reader.next().unwrap().map(|entry| entry.header.txid);
        assert_eq!(next, (txid < 70).then_some(Txid(txid + 1)));
        let found = reader.find(Txid(txid)).unwrap();
        assert_eq!(
            found.map(|entry| entry.header.txid.0),
            (txid > 0).then_some(txid)
        );
        let after: u64 = entries[txid as usize..]
            .iter()
            .map(|entry| entry.header.record_len())
            .sum();
        assert_eq!(reader.bytes_after(Txid(txid)).unwrap(), after);
    }
    assert!(reader.find(Txid(71)).unwrap().is_none());
    assert!(reader.seek(Txid(71)).unwrap_err().is_not_found());
    assert_eq!(reader.bytes_after(Txid(1000)).unwrap(), 0);
    for entry in &entries {
        let sum = entry.header.post_checksum;
        let newest = entries.iter().rev().find(|e| e.header.post_checksum == sum);
        let found = reader.find_checksum(sum).unwrap().unwrap();
        assert_eq!(found.header, newest.unwrap().header);
        assert_eq!(raw(&found), raw(newest.unwrap()));
    }
    assert!(reader.find_checksum(Checksum(1)).unwrap().is_none());
}

#[test]
fn removed_old_segments_are_a_shorter_history() {
    let (disk, mut log) = new_log();
    log.set_segment_bytes_max(3000);
    let mut history = History::new(12);
    history.steps(&mut log, 50);
    let mut segments: Vec<Txid> = disk
        .list()
        .unwrap()
        .iter()
        .filter_map(|name| parse_segment_name(name))
        .collect();
    segments.sort_unstable();
    let kept = segments[2];
    let old = reader(&disk).find(Txid(2)).unwrap().unwrap();
    for first in &segments[..2] {
        disk.remove(&segment_name(*first)).unwrap();
    }
    let mut reader = reader(&disk);
    assert_eq!(reader.first_txid().unwrap(), Some(kept));
    assert!(reader.seek(Txid(kept.0 - 2)).unwrap_err().is_not_found());
    reader.seek(Txid(kept.0 - 1)).unwrap();
    assert_eq!(reader.next().unwrap().unwrap().header.txid, kept);
    assert!(reader.find(Txid(1)).unwrap().is_none());
    assert!(reader.find_checksum(Checksum(1)).unwrap().is_none());
    assert_eq!(open(&disk).unwrap().head(), log.head());
    old.verify().unwrap();
}

#[test]
fn a_follower_sees_records_come_and_segments_roll() {
    let (disk, mut log) = new_log();
    log.set_segment_bytes_max(2000);
    let mut reader = reader(&disk);
    let mut history = History::new(13);
    for txid in 1..=40 {
        assert!(reader.next().unwrap().is_none());
        history.step(&mut log).unwrap();
        assert_eq!(reader.next().unwrap().unwrap().header.txid, Txid(txid));
        assert_eq!(reader.head().unwrap().unwrap().header.txid, Txid(txid));
    }
}
