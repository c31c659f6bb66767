//! Every page as of every transaction, over raw and sealed segments and snapshots in any mixture, equals a saved image.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::sync::Arc;

use common::*;
use mycelite_journal::*;
use proptest::prelude::*;

const ALL: Txid = Txid(u64::MAX);

fn archive(disk: &FaultStorage) -> Archive {
    Archive::open(Arc::new(disk.clone())).unwrap()
}

/// Reads all pages as of a transaction.
fn image(archive: &Archive, txid: u64) -> Result<Db> {
    let mut past = archive.as_of(Txid(txid))?;
    let mut db = Db::new(past.page_size().get(), past.page_count() as usize);
    for pgno in 1..=past.page_count() {
        past.read_page(pgno, db.page_mut(pgno))?;
    }
    assert_eq!(past.pos().checksum, db.checksum());
    assert_eq!(past.pos().txid, Txid(txid));
    let mut page = vec![0; past.page_size().bytes()];
    for pgno in [0, past.page_count() + 1] {
        assert!(matches!(
            past.read_page(pgno, &mut page),
            Err(Error::Misuse(_))
        ));
    }
    Ok(db)
}

/// As of each transaction, in an order that is not that of time; `from` is the oldest that there is.
fn same_images(archive: &Archive, images: &[Db], from: u64) {
    let last = images.len() as u64 - 1;
    for step in 0..=last {
        let txid = step * 7919 % (last + 1);
        match image(archive, txid) {
            Ok(db) => assert!(db.bytes == images[txid as usize].bytes && txid >= from.max(1)),
            Err(error) => assert!(
                error.is_not_found() && txid < from.max(1),
                "{txid}: {error}"
            ),
        }
    }
    assert!(archive.as_of(Txid(last + 1)).err().unwrap().is_not_found());
    assert_eq!(archive.head().unwrap(), Some(Txid(last)));
}

fn round(seed: u64, steps: usize, segment_bytes: u64) {
    let (disk, mut log) = new_log();
    log.set_segment_bytes_max(segment_bytes);
    let mut history = History::new(seed);
    let mut random = Random(seed);
    let archive = archive(&disk);
    let mut snapshots = Vec::new();
    for part in 0..3 {
        history.steps(&mut log, steps);
        let last = history.images.len() as u64 - 1;
        let upto = Txid(random.below(last + 1));
        while seal(&disk, upto).unwrap().is_some() {}
        if part < 2 && random.below(3) > 0 {
            let txid = Txid(random.below(last) + 1);
            let snapshot = Snapshot::write(&archive, txid).unwrap();
            let expected = history.images[txid.0 as usize].checksum();
            assert_eq!((snapshot.pos.checksum, snapshot.pos.txid), (expected, txid));
            snapshots.push(txid);
        }
        same_images(&archive, &history.images, 1);
    }
    while seal(&disk, ALL).unwrap().is_some() {}
    same_images(&archive, &history.images, 1);
    times(&disk, &archive, random);
    // What a snapshot and the records after it do not need can go.
    let Some(base) = snapshots.iter().max() else {
        return;
    };
    let names = disk.list().unwrap();
    let sealed = names.iter().filter_map(|name| parse_sealed_name(name));
    for (first, last) in sealed.filter(|(_, last)| last <= base) {
        disk.remove(&sealed_name(first, last)).unwrap();
    }
    for older in snapshots.iter().filter(|txid| *txid < base) {
        let _ = disk.remove(&snapshot_name(*older));
    }
    let names = disk.list().unwrap();
    let firsts = names
        .iter()
        .filter_map(|name| match parse_sealed_name(name) {
            Some((first, _)) => Some(first.0),
            None => parse_segment_name(name).map(|first| first.0),
        });
    let first = firsts.min().unwrap();
    let from = if first == 1 { 1 } else { base.0 };
    same_images(&self::archive(&disk), &history.images, from);
}

/// Each record is found by its time, and by any time until the next one.
fn times(disk: &FaultStorage, archive: &Archive, mut random: Random) {
    let mut reader = reader(disk);
    let mut last = None;
    while let Some(entry) = reader.next().unwrap() {
        let time = entry.header.time_us;
        if random.below(4) == 0 {
            assert_eq!(archive.find_time(time).unwrap(), Some(entry.header.txid));
            assert_eq!(archive.find_time(time - 1).unwrap(), last);
        }
        last = Some(entry.header.txid);
    }
    assert_eq!(archive.find_time(u64::MAX).unwrap(), last);
    assert_eq!(archive.find_time(0).unwrap(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn every_page_at_every_transaction(seed: u64, steps in 1usize..40, bytes in 0u64..30_000) {
        round(seed, steps, bytes);
    }
}

/// A page that each transaction changes, and others beside it: sums, and runs over many blocks.
#[test]
fn a_page_with_a_long_history() {
    let (disk, mut log) = new_log();
    log.set_segment_bytes_max(250_000);
    let mut random = Random(5);
    let mut images = vec![Db::empty(), Db::new(1024, 40)];
    commit(&mut log, &images[0], &images[1]).unwrap();
    for step in 0..3000 {
        let mut new = images.last().unwrap().clone();
        new.page_mut(1)[24..28].copy_from_slice(&u32::to_le_bytes(step));
        let pgno = random.below(if step % 2 == 0 { 3 } else { 40 }) as u32 + 1;
        let at = random.below(1000) as usize;
        let bytes = random.bytes(12);
        new.page_mut(pgno)[at..at + 12].copy_from_slice(&bytes);
        commit(&mut log, images.last().unwrap(), &new).unwrap();
        images.push(new);
    }
    let archive = archive(&disk);
    let check = |archive: &Archive| {
        for txid in (1..images.len()).step_by(37) {
            assert!(image(archive, txid as u64).unwrap() == images[txid]);
        }
    };
    check(&archive);
    let mut sealed = 0;
    while seal(&disk, ALL).unwrap().is_some() {
        sealed += 1;
    }
    assert!(sealed > 0);
    check(&archive);
    check(&self::archive(&disk));
    Snapshot::write(&archive, Txid(1500)).unwrap();
    check(&archive);
}

#[test]
fn many_pages_in_one_record() {
    let (disk, mut log) = new_log();
    log.set_segment_bytes_max(0);
    let mut random = Random(6);
    // More patches than are indexed one by one.
    let mut images = vec![Db::empty(), Db::new(512, 5000)];
    images[1].bytes = random.bytes(512 * 5000);
    let mut new = images[1].clone();
    (1..=5000).for_each(|pgno| new.page_mut(pgno)[7] ^= 1);
    images.push(new.clone());
    new.page_mut(4000)[9] ^= 1;
    images.push(new);
    for pair in images.windows(2) {
        commit(&mut log, &pair[0], &pair[1]).unwrap();
    }
    let shared = archive(&disk);
    for round in 0..3 {
        for archive in [&shared, &archive(&disk)] {
            for (txid, image) in images.iter().enumerate().skip(1) {
                let mut past = archive.as_of(Txid(txid as u64)).unwrap();
                let mut page = vec![0; 512];
                for pgno in (1..=5000).skip(round).step_by(97).chain([4000, 5000]) {
                    past.read_page(pgno, &mut page).unwrap();
                    assert!(page == image.page(pgno), "page {pgno} as of {txid}");
                }
            }
        }
        seal(&disk, ALL).unwrap();
    }
    Snapshot::write(&shared, Txid(2)).unwrap();
}

#[test]
fn a_log_that_was_cut_and_went_on_otherwise() {
    let (disk, mut log) = new_log();
    let mut history = History::new(3);
    history.steps(&mut log, 20);
    let name = last_segment(&disk);
    let archive = archive(&disk);
    let cut = reader(&disk).find(Txid(11)).unwrap().unwrap().offset;
    same_images(&archive, &history.images, 1);
    let mut old = archive.as_of(Txid(20)).unwrap();
    drop(log);
    let file = disk.open(&name, OpenMode::Write).unwrap();
    file.set_len(cut).unwrap();
    disk.remove("synced").ok();
    history.images.truncate(11);
    let mut log = open(&disk).unwrap();
    assert_eq!(archive.head().unwrap(), Some(Txid(10)));
    history.random = Random(99);
    history.steps(&mut log, 15);
    assert_eq!(archive.head().unwrap(), Some(Txid(25)));
    assert_eq!(archive.find_time(u64::MAX).unwrap(), Some(Txid(25)));
    same_images(&archive, &history.images, 1);
    // A state that is open reads what it was opened for, or fails.
    let mut page = vec![0; old.page_size().bytes()];
    for pgno in 1..=old.page_count() {
        let _ = old.read_page(pgno, &mut page);
    }
    assert!(old.scan_checksum().is_err() || old.scan_checksum().unwrap() == old.pos().checksum);
}

/// What a replica gets that is too far behind: a snapshot, and the records after it.
#[test]
fn a_log_that_begins_with_a_snapshot() {
    let (disk, mut log) = new_log();
    let mut history = History::new(31);
    history.steps(&mut log, 30);
    let base = Txid(12);
    let snapshot = Snapshot::write(&archive(&disk), base).unwrap();
    let file = disk.contents(&snapshot_name(base)).unwrap();
    assert_eq!(file.len() as u64, snapshot.bytes);

    let copy = FaultStorage::new();
    let storage = Arc::new(copy.clone());
    let mut replica = Log::create_after(storage, ID, 1, snapshot.pos).unwrap();
    replica.set_segment_bytes_max(2000);
    let mut source = reader(&disk);
    source.seek(base).unwrap();
    let mut add = |count: usize| {
        for _ in 0..count {
            let entry = source.next().unwrap().unwrap();
            let limits = RawLimits::default();
            replica.append_raw(&mut entry.raw(), &limits).unwrap();
        }
    };
    add(3);
    // Without the snapshot, nothing is known of the pages.
    assert!(archive(&copy).as_of(Txid(13)).err().unwrap().is_not_found());
    copy.put(&snapshot_name(base), file);
    verify_file(&copy, &snapshot_name(base)).unwrap();
    let archive = archive(&copy);
    same_images(&archive, &history.images[..=15], base.0);
    add(15);
    same_images(&archive, &history.images, base.0);
    let mut sealed = 0;
    while seal(&copy, ALL).unwrap().is_some() {
        sealed += 1;
        same_images(&archive, &history.images, base.0);
    }
    assert!(sealed > 1);
    let mut both = (reader(&disk), reader(&copy));
    both.0.seek(base).unwrap();
    while let Some(entry) = both.1.next().unwrap() {
        assert_eq!(entry.header, both.0.next().unwrap().unwrap().header);
        entry.verify().unwrap();
    }
    assert_eq!(open(&copy).unwrap().head(), log.head());
}
