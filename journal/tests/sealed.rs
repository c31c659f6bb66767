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
    // Readers that have come some way, and records that are still held.
    let mut follower = reader(&disk);
    let mut held = Vec::new();
    for _ in 0..random.below(steps as u64 + 1) {
        held.push(follower.next().unwrap().unwrap());
    }
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
    for (index, (header, bytes)) in expected.iter().enumerate() {
        if index >= held.len() {
            held.push(follower.next().unwrap().unwrap());
        }
        assert!(held[index].header == *header && raw(&held[index]) == *bytes);
    }
    assert!(follower.next().unwrap().is_none());
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

/// Reads all that can be read, as records and as pages; errors, or what must be there.
fn read_all(disk: &FaultStorage, history: &History) -> Result<()> {
    let count = replay(Arc::new(disk.clone()), &history.images)?;
    assert_eq!(count as usize, history.images.len() - 1);
    let mut reader = Reader::open(Arc::new(disk.clone()))?;
    while let Some(entry) = reader.next()? {
        let mut bytes = Vec::new();
        let read = entry.raw().read_to_end(&mut bytes);
        assert!(read.is_err() || bytes.len() as u64 == entry.header.record_len());
    }
    let archive = Archive::open(Arc::new(disk.clone()))?;
    for (txid, image) in history.images.iter().enumerate().skip(1) {
        let mut past = archive.as_of(Txid(txid as u64))?;
        let mut page = vec![0; past.page_size().bytes()];
        for pgno in 1..=past.page_count() {
            past.read_page(pgno, &mut page)?;
            assert!(page == image.page(pgno), "page {pgno} as of {txid}");
        }
    }
    Ok(())
}

fn small_log() -> (FaultStorage, History) {
    let (disk, mut log) = new_log();
    log.set_segment_bytes_max(1500);
    let mut history = History::new(8);
    history.images = vec![Db::empty(), Db::new(512, 4)];
    let first = history.images[1].clone();
    commit(&mut log, &Db::empty(), &first).unwrap();
    for step in 2..9usize {
        let mut new = history.last().clone();
        let pgno = step as u32 % 4 + 1;
        new.page_mut(pgno)[step * 7..step * 7 + 20].fill(step as u8);
        commit(&mut log, history.last(), &new).unwrap();
        history.images.push(new);
    }
    let mut new = Db::new(1024, 2);
    new.bytes.fill(7);
    commit(&mut log, history.last(), &new).unwrap();
    history.images.push(new);
    log.set_segment_bytes_max(1000);
    history.steps(&mut log, 12);
    (disk, history)
}

#[test]
fn any_flipped_bit_shows() {
    let (disk, history) = small_log();
    let archive = Archive::open(Arc::new(disk.clone())).unwrap();
    seal(&disk, ALL).unwrap().unwrap();
    let sealed = disk.list().unwrap();
    let sealed = sealed.iter().find(|name| name.ends_with(".sealed"));
    let sealed = sealed.unwrap().clone();
    let (_, last) = parse_sealed_name(&sealed).unwrap();
    Snapshot::write(&archive, last).unwrap();
    read_all(&disk, &history).unwrap();
    for name in [sealed, snapshot_name(last)] {
        let good = disk.contents(&name).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            disk.put(&name, bad);
            let error = read_all(&disk, &history).unwrap_err();
            let text = error.to_string();
            assert!(
                text.starts_with(&format!("memory:{name}: damaged at byte ")),
                "byte {at}: {text}"
            );
            assert!(verify_file(&disk, &name).is_err(), "byte {at}");
        }
        for length in (0..good.len()).step_by(7) {
            disk.put(&name, good[..length].to_vec());
            assert!(read_all(&disk, &history).is_err(), "{length} bytes");
            assert!(verify_file(&disk, &name).is_err(), "{length} bytes");
        }
        disk.put(&name, [&good[..], b"more"].concat());
        assert!(read_all(&disk, &history).is_err());
        disk.put(&name, good);
        verify_file(&disk, &name).unwrap();
    }
    read_all(&disk, &history).unwrap();
}

/// A crash may leave both forms of a segment. The raw one goes only where the sealed one says the same, byte for byte.
#[test]
fn a_raw_segment_goes_only_if_the_sealed_one_is_the_same() {
    let (disk, history) = small_log();
    let raw = segment_name(Txid(1));
    let good = disk.contents(&raw).unwrap();
    let done = seal(&disk, Txid(20)).unwrap().unwrap();
    let sealed = sealed_name(done.first, done.last);
    let kept = disk.contents(&sealed).unwrap();
    let refused = |bad: Vec<u8>, what: &str| {
        disk.put(&raw, bad.clone());
        assert!(seal(&disk, done.last).is_err(), "{what}");
        assert!(disk.contents(&raw) == Some(bad), "{what}");
        assert!(disk.contents(&sealed).as_ref() == Some(&kept), "{what}");
    };
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        refused(bad, &format!("byte {at}"));
    }
    for length in 64..good.len() {
        refused(good[..length].to_vec(), &format!("{length} bytes"));
    }
    refused([&good[..], b"more"].concat(), "more bytes");
    disk.put(&raw, good);
    assert_eq!(seal(&disk, done.last).unwrap(), None);
    assert!(!disk.list().unwrap().contains(&raw));
    read_all(&disk, &history).unwrap();

    // Whole and good, and another history's.
    let (other, mut log) = new_log();
    log.set_segment_bytes_max(1500);
    let mut last = Db::empty();
    for step in 1..30u8 {
        let mut new = Db::new(512, 4);
        new.bytes.fill(step);
        commit(&mut log, &last, &new).unwrap();
        last = new;
    }
    refused(other.contents(&raw).unwrap(), "another history");
}

#[test]
fn a_file_of_another_log_or_under_another_name_is_refused() {
    let (disk, history) = small_log();
    while seal(&disk, ALL).unwrap().is_some() {}
    let names: Vec<_> = disk.list().unwrap();
    let sealed: Vec<_> = names.iter().filter(|n| n.ends_with(".sealed")).collect();
    let bytes = disk.contents(sealed[1]).unwrap();
    disk.put(sealed[0], bytes);
    assert!(read_all(&disk, &history).is_err());
    let other = FaultStorage::new();
    Log::create(Arc::new(other.clone()), DatabaseId([9; 16]), 1).unwrap();
    other.put(sealed[1], disk.contents(sealed[1]).unwrap());
    let error = Reader::open(Arc::new(other)).unwrap().next().unwrap_err();
    assert!(error.to_string().contains("belongs to database"), "{error}");
}
