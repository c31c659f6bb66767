//! Sealed segments: they say byte for byte what the raw ones said, in any mixture of the two, and any damage shows.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::io::Read;
use std::sync::Arc;

use common::*;
use mycelite_journal::*;
use proptest::prelude::*;

const ALL: Txid = Txid(u64::MAX);

fn raw(entry: &RecordEntry) -> Vec<u8> {
    let mut bytes = Vec::new();
    entry.raw().read_to_end(&mut bytes).unwrap();
    bytes
}

fn records(disk: &FaultStorage) -> Vec<(RecordHeader, Vec<u8>)> {
    let mut reader = reader(disk);
    std::iter::from_fn(|| reader.next().unwrap())
        .map(|entry| (entry.header, raw(&entry)))
        .collect()
}

fn seal_all(disk: &FaultStorage, upto: Txid) -> Vec<Sealed> {
    std::iter::from_fn(|| seal(disk, upto).unwrap()).collect()
}

/// Asks a reader everything there is to ask.
fn same_answers(disk: &FaultStorage, expected: &[(RecordHeader, Vec<u8>)], random: &mut Random) {
    assert!(records(disk) == expected);
    let count = expected.len() as u64;
    let mut reader = reader(disk);
    for _ in 0..30 {
        let txid = random.below(count + 1);
        reader.seek(Txid(txid)).unwrap();
        for next in txid..(txid + 3).min(count) {
            let entry = reader.next().unwrap().unwrap();
            assert_eq!(entry.header, expected[next as usize].0);
            if random.below(3) == 0 {
                assert!(raw(&entry) == expected[next as usize].1);
                entry.verify().unwrap();
            }
        }
        let found = reader.find(Txid(txid)).unwrap().map(|entry| raw(&entry));
        let index = txid.checked_sub(1).map(|i| i as usize);
        assert!(found.as_ref() == index.map(|i| &expected[i].1));
        let after: u64 = expected[txid as usize..]
            .iter()
            .map(|(header, _)| header.record_len())
            .sum();
        assert_eq!(reader.bytes_after(Txid(txid)).unwrap(), after);
        if let Some(index) = index {
            let sum = expected[index].0.post_checksum;
            let newest = expected.iter().rev().find(|e| e.0.post_checksum == sum);
            let found = reader.find_checksum(sum).unwrap().unwrap();
            assert_eq!(found.header, newest.unwrap().0);
        }
    }
    assert!(reader.find(Txid(count + 1)).unwrap().is_none());
    assert_eq!(reader.first_txid().unwrap(), Some(Txid(1)));
    let head = reader.head().unwrap().unwrap();
    assert!(raw(&head) == expected[count as usize - 1].1);
}

fn round(seed: u64, steps: usize, segment_bytes: u64) {
    let (disk, mut log) = new_log();
    log.set_segment_bytes_max(segment_bytes);
    let mut history = History::new(seed);
    history.steps(&mut log, steps);
    let expected = records(&disk);
    let segments: Vec<(String, Vec<u8>)> = disk
        .list()
        .unwrap()
        .into_iter()
        .filter(|name| parse_segment_name(name).is_some())
        .map(|name| (name.clone(), disk.contents(&name).unwrap()))
        .collect();
    let mut random = Random(seed);
    let upto = Txid(random.below(steps as u64 + 1));
    let some = seal_all(&disk, upto);
    assert!(some.iter().all(|sealed| sealed.last <= upto));
    same_answers(&disk, &expected, &mut random);
    let rest = seal_all(&disk, ALL);
    let names = disk.list().unwrap();
    assert_eq!(some.len() + rest.len() + 1, segments.len());
    assert_eq!(names.iter().filter(|n| n.ends_with(".seg")).count(), 1);
    assert!(!names.iter().any(|name| name.ends_with(".new")));
    for sealed in some.iter().chain(&rest) {
        let name = segment_name(sealed.first);
        let (_, bytes) = segments.iter().find(|(n, _)| *n == name).unwrap();
        assert_eq!(sealed.raw_bytes, bytes.len() as u64);
        let sealed_name = sealed_name(sealed.first, sealed.last);
        let sealed_len = disk.contents(&sealed_name).unwrap().len() as u64;
        assert_eq!(sealed.sealed_bytes, sealed_len);
    }
    same_answers(&disk, &expected, &mut random);
    assert_eq!(reader(&disk).bytes().unwrap(), log.bytes().unwrap());
    // Writers go on, old and new ones.
    assert_eq!(open(&disk).unwrap().head(), log.head());
    history.steps(&mut log, 3);
    let mut log = open(&disk).unwrap();
    history.steps(&mut log, 3);
    let replayed = replay(Arc::new(disk), &history.images).unwrap();
    assert_eq!(replayed, steps as u64 + 6);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn records_come_back_byte_for_byte(seed: u64, steps in 1usize..120, bytes in 0u64..40_000) {
        round(seed, steps, bytes);
    }
}
