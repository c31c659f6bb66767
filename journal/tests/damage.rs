//! A log that is cut at every byte, and one with every bit flipped.
//!
//! What is promised (README, "Recovery"): a reader never makes a wrong image. Damage shows as an error, or as the absence of the
//! damaged record and of all after it; and absence only where a crash could have done the same: at the last record, beyond the
//! sync mark.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::sync::Arc;

use common::*;
use mycelite_journal::*;

/// What became of reading a damaged log.
#[derive(Debug, PartialEq)]
enum Seen {
    Error,
    Records(u64),
}

fn see(disk: &FaultStorage, images: &[Db]) -> Seen {
    match replay(Arc::new(disk.clone()), images) {
        Ok(count) => Seen::Records(count),
        Err(Error::Corrupt { .. }) => Seen::Error,
        Err(error) => panic!("{error}"),
    }
}

/// A log of `count` small records, in segments of about `segment_bytes`; synced or not.
fn small_log(count: usize, segment_bytes: u64, synced: bool) -> (FaultStorage, History) {
    let (disk, mut log) = new_log();
    log.set_segment_bytes_max(segment_bytes);
    let mut history = History::new(31);
    // Small pages and small changes keep the log small.
    let mut db = Db::new(512, 2);
    db.page_mut(1)[..16].copy_from_slice(b"SQLite format 3\0");
    for txid in 0..count {
        db.page_mut(1)[27] = txid as u8 + 1;
        db.page_mut(2)[txid * 9..txid * 9 + 20].fill(txid as u8 + 65);
        if txid == 2 {
            db.bytes.extend_from_slice(&[0; 512]);
        }
        commit(&mut log, history.last(), &db).unwrap();
        history.images.push(db.clone());
    }
    if synced {
        log.sync().unwrap();
    }
    assert_eq!(see(&disk, &history.images), Seen::Records(count as u64));
    (disk, history)
}

/// Where each record of the last segment ends; the first is the segment's header.
fn ends(disk: &FaultStorage) -> Vec<u64> {
    let mut ends = vec![64];
    let name = last_segment(disk);
    let mut reader = reader(disk);
    while let Some(entry) = reader.next().unwrap() {
        if *entry.segment == *name {
            ends.push(entry.offset + entry.header.record_len());
        }
    }
    ends
}

/// Opens a damaged log for writing, as the next process does, and goes on with it.
fn go_on(disk: &FaultStorage, images: &[Db]) -> Option<u64> {
    let mut log = match open(disk) {
        Ok(log) => log,
        Err(Error::Corrupt { .. }) => return None,
        Err(error) => panic!("{error}"),
    };
    let kept = log.head().pos.txid.0;
    log.drop_tail().unwrap();
    let mut images = images[..=kept as usize].to_vec();
    let last = &images[kept as usize];
    assert_eq!(log.head().pos.checksum, last.checksum());
    let mut next = last.clone();
    match next.bytes.first_mut() {
        Some(byte) => *byte ^= 1,
        None => next = Db::new(512, 1),
    }
    commit(&mut log, last, &next).unwrap();
    images.push(next);
    match see(disk, &images) {
        Seen::Records(count) => assert_eq!(count, kept + 1),
        // Damage before the sync mark is not looked for when a log is opened for writing.
        Seen::Error => assert!(disk.contents("synced").is_some()),
    }
    Some(kept)
}

#[test]
fn cut_at_every_byte() {
    for (segment_bytes, synced) in [(1 << 20, false), (1 << 20, true), (700, false)] {
        let (disk, history) = small_log(5, segment_bytes, synced);
        let name = last_segment(&disk);
        let bytes = disk.contents(&name).unwrap();
        let ends = ends(&disk);
        let before = 5 - (ends.len() as u64 - 1);
        for cut in 0..bytes.len() {
            let damaged = disk.copy();
            damaged.put(&name, bytes[..cut].to_vec());
            let whole = ends.iter().filter(|end| **end <= cut as u64).count() as u64;
            let expected = before + whole.saturating_sub(1);
            assert_eq!(
                see(&damaged, &history.images),
                Seen::Records(expected),
                "cut at {cut}"
            );
            let head = reader(&damaged).head().unwrap();
            assert_eq!(
                head.map_or(0, |entry| entry.header.txid.0),
                expected,
                "cut at {cut}"
            );
            // A record without its trailer, or with a part of it, is a prepared one.
            let mut log = open(&damaged).unwrap();
            let prepared = whole > 0
                && ends[whole as usize - 1] < cut as u64
                && ends[whole as usize] - 32 <= cut as u64;
            assert_eq!(log.prepared().unwrap().is_some(), prepared, "cut at {cut}");
            if prepared && cut % 2 == 0 {
                log.publish_prepared().unwrap();
                assert_eq!(see(&damaged, &history.images), Seen::Records(expected + 1));
            }
            drop(log);
            let kept = go_on(&damaged, &history.images).unwrap();
            assert!(kept >= expected);
        }
    }
}

#[test]
fn a_cut_before_the_last_segment_is_corruption() {
    let (disk, history) = small_log(8, 500, false);
    let names: Vec<String> = disk
        .list()
        .unwrap()
        .into_iter()
        .filter(|name| parse_segment_name(name).is_some())
        .collect();
    assert!(names.len() > 2);
    for name in &names[..names.len() - 1] {
        let bytes = disk.contents(name).unwrap();
        for cut in 0..bytes.len() {
            let damaged = disk.copy();
            damaged.put(name, bytes[..cut].to_vec());
            match see(&damaged, &history.images) {
                Seen::Error => {}
                // A history that begins later, for all that one can see.
                seen => assert!(*name == names[0] && cut <= 64, "{name} {cut}: {seen:?}"),
            }
        }
        let damaged = disk.copy();
        damaged.put(name, [&bytes[..], &[0]].concat());
        assert_eq!(see(&damaged, &history.images), Seen::Error, "one byte more");
        if name != &names[0] {
            damaged.remove(name).unwrap();
            assert_eq!(see(&damaged, &history.images), Seen::Error, "segment lost");
        }
    }
}

/// Flips every bit of a file; hands each outcome to `check` with the byte's offset.
fn flip_all(
    disk: &FaultStorage,
    history: &History,
    name: &str,
    check: impl Fn(usize, Seen, Option<u64>),
) {
    let bytes = disk.contents(name).unwrap();
    for bit in 0..bytes.len() * 8 {
        let damaged = disk.copy();
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        damaged.put(name, bad);
        let seen = see(&damaged, &history.images);
        check(bit / 8, seen, go_on(&damaged, &history.images));
    }
}

#[test]
fn every_flipped_bit_of_a_synced_log_is_an_error() {
    let (disk, history) = small_log(4, 1 << 20, true);
    let ends = ends(&disk);
    let last_start = ends[ends.len() - 2] as usize;
    flip_all(&disk, &history, &last_segment(&disk), |at, seen, opened| {
        assert_eq!(seen, Seen::Error, "byte {at}");
        // The writer looks at the segment's header and at the last record's header and trailer.
        let body = last_start + 128..*ends.last().unwrap() as usize - 32;
        let looked_at = at < 64 || at >= last_start && !body.contains(&at);
        assert_eq!(opened.is_none(), looked_at, "byte {at}");
    });
}

#[test]
fn a_flipped_bit_beyond_the_sync_mark_is_an_error_or_the_last_record_is_absent() {
    let (disk, history) = small_log(4, 1 << 20, false);
    let ends = ends(&disk);
    let last = ends[ends.len() - 2] as usize..*ends.last().unwrap() as usize;
    let body = last.start + 128..last.end - 32;
    flip_all(&disk, &history, &last_segment(&disk), |at, seen, opened| {
        if last.contains(&at) && !body.contains(&at) {
            assert_eq!(seen, Seen::Records(3), "byte {at}");
        } else {
            assert_eq!(seen, Seen::Error, "byte {at}");
        }
        // A power cut could have done it: the writer keeps what is before.
        let before = ends.iter().filter(|end| **end <= at as u64).count();
        let expected = before.checked_sub(1).map(|records| records as u64);
        assert_eq!(opened, expected, "byte {at}");
    });
}

#[test]
fn every_flipped_bit_before_the_last_segment_is_an_error() {
    let (disk, history) = small_log(6, 500, false);
    flip_all(&disk, &history, &segment_name(Txid(1)), |at, seen, _| {
        assert_eq!(seen, Seen::Error, "byte {at}");
    });
}

#[test]
fn every_flipped_bit_of_the_small_files_is_found_or_harmless() {
    let (disk, history) = small_log(3, 1 << 20, true);
    let bytes = disk.contents("meta").unwrap();
    for bit in 0..bytes.len() * 8 {
        let damaged = disk.copy();
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        damaged.put("meta", bad);
        assert_eq!(see(&damaged, &history.images), Seen::Error);
        assert!(matches!(open(&damaged), Err(Error::Corrupt { .. })));
    }
    for cut in 0..bytes.len() {
        let damaged = disk.copy();
        damaged.put("meta", bytes[..cut].to_vec());
        assert_eq!(see(&damaged, &history.images), Seen::Error);
    }
    flip_all(&disk, &history, "synced", |at, seen, kept| {
        assert_eq!((seen, kept), (Seen::Records(3), Some(3)), "byte {at}");
    });
}

#[test]
fn a_mark_of_another_log_says_nothing() {
    let (disk, history) = small_log(3, 1 << 20, true);
    let mark = disk.contents("synced").unwrap();
    let other = FaultStorage::new();
    let mut log = Log::create(Arc::new(other.clone()), DatabaseId([8; 16]), 1).unwrap();
    for pair in history.images.windows(2) {
        commit(&mut log, &pair[0], &pair[1]).unwrap();
    }
    let name = last_segment(&other);
    let mut bytes = other.contents(&name).unwrap();
    let at = bytes.len() - 1;
    bytes[at] ^= 1;
    other.put(&name, bytes);
    other.put("synced", mark);
    assert_eq!(open(&other).unwrap().head().pos.txid, Txid(2));
}

#[test]
fn a_page_that_holds_a_log_is_not_taken_for_the_log() {
    // A database stores a copy of a log in its pages; the process dies while it writes that record.
    let (inner, _) = small_log(5, 1 << 20, false);
    let content = inner.contents(&last_segment(&inner)).unwrap();
    let (disk, mut log) = new_log();
    let mut db = Db::new(4096, 1);
    db.bytes[100..100 + content.len()].copy_from_slice(&content);
    commit(&mut log, &Db::empty(), &db).unwrap();
    let name = last_segment(&disk);
    let bytes = disk.contents(&name).unwrap();
    for cut in 64..bytes.len() {
        let damaged = disk.copy();
        let mut torn = bytes[..cut].to_vec();
        // The header is written last: a part of it may be missing.
        torn[64..cut.min(192)].fill(0);
        damaged.put(&name, torn);
        let mut reader = reader(&damaged);
        assert!(reader.next().unwrap().is_none(), "cut at {cut}");
    }
}

#[test]
fn files_of_two_logs_are_not_mixed() {
    let (disk, history) = small_log(6, 500, false);
    let (other, mut log) = {
        let disk = FaultStorage::new();
        let log = Log::create(Arc::new(disk.clone()), DatabaseId([8; 16]), 1).unwrap();
        (disk, log)
    };
    log.set_segment_bytes_max(500);
    for pair in history.images.windows(2) {
        commit(&mut log, &pair[0], &pair[1]).unwrap();
    }
    let name = last_segment(&disk);
    let mixed = disk.copy();
    mixed.put(&name, other.contents(&name).unwrap());
    assert_eq!(see(&mixed, &history.images), Seen::Error);
    let error = open(&mixed).err().unwrap().to_string();
    assert!(error.contains("belongs to database 0808"), "{error}");
    // It follows another state than the segment before ends with.
    let other = disk.copy();
    let mut bytes = other.contents(&name).unwrap();
    let header = SegmentHeader::decode(&bytes).unwrap();
    let follows = Pos {
        checksum: Checksum(1),
        ..header.follows
    };
    bytes[..64].copy_from_slice(&SegmentHeader { follows, ..header }.encode());
    other.put(&name, bytes);
    assert_eq!(see(&other, &history.images), Seen::Error);
    assert!(matches!(open(&other), Err(Error::Corrupt { .. })));
    // Renamed: it begins with another transaction than its name says.
    let renamed = disk.copy();
    renamed.put(&segment_name(Txid(99)), disk.contents(&name).unwrap());
    assert_eq!(see(&renamed, &history.images), Seen::Error);
    // A whole record that does not follow: two writers without a lock.
    let (disk, mut one) = new_log();
    let mut two = open(&disk).unwrap();
    let mut db = Db::new(512, 1);
    commit(&mut one, &Db::empty(), &db).unwrap();
    two.refresh().unwrap();
    let next = |byte| {
        let mut next = Db::new(512, 1);
        next.bytes.fill(byte);
        next
    };
    commit(&mut two, &db, &next(1)).unwrap();
    db = next(2);
    let bytes = disk.contents(&last_segment(&disk)).unwrap();
    let lost = open(&disk).unwrap().head().pos;
    let fork = disk.copy();
    let (forked, mut writer) = new_log();
    commit(&mut writer, &Db::empty(), &Db::new(512, 1)).unwrap();
    commit(&mut writer, &Db::new(512, 1), &db).unwrap();
    commit(&mut writer, &db, &next(3)).unwrap();
    let third = {
        let entry = reader(&forked).find(Txid(3)).unwrap().unwrap();
        forked.contents(&last_segment(&forked)).unwrap()[entry.offset as usize..].to_vec()
    };
    fork.put(&last_segment(&fork), [bytes, third].concat());
    let mut reader = reader(&fork);
    reader.seek(lost.txid).unwrap();
    let error = reader.next().unwrap_err().to_string();
    assert!(error.contains("checksum before must be"), "{error}");
    assert!(matches!(open(&fork), Err(Error::Corrupt { .. })));
}

#[test]
fn errors_are_one_line_that_says_where() {
    let (disk, _) = small_log(3, 1 << 20, true);
    let name = last_segment(&disk);
    let mut bytes = disk.contents(&name).unwrap();
    bytes[64 + 140] ^= 1;
    disk.put(&name, bytes);
    let mut reader = reader(&disk);
    let error = reader.next().unwrap().unwrap().verify().unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&name) && text.contains("byte 64"), "{text}");
    assert!(
        text.contains("transaction 1") && text.contains("restore"),
        "{text}"
    );
    assert!(!text.contains('\n'));
}
