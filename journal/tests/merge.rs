//! Compaction: fewer files and fewer states, and each state that stays is the same byte for byte.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::sync::Arc;

use common::*;
use mycelite_journal::*;

fn archive(disk: &FaultStorage) -> Archive {
    Archive::open(Arc::new(disk.clone())).unwrap()
}

fn image(archive: &Archive, txid: u64) -> Result<Vec<u8>> {
    let mut past = archive.as_of(Txid(txid))?;
    let mut bytes = Vec::new();
    let mut page = vec![0; past.page_size().bytes()];
    for pgno in 1..=past.page_count() {
        past.read_page(pgno, &mut page)?;
        bytes.extend_from_slice(&page);
    }
    Ok(bytes)
}

fn records(disk: &FaultStorage) -> Vec<Vec<u8>> {
    let mut reader = reader(disk);
    let raw = |entry: RecordEntry| {
        let mut bytes = Vec::new();
        entry.raw().read_to_end(&mut bytes).unwrap();
        bytes
    };
    std::iter::from_fn(|| reader.next().unwrap())
        .map(raw)
        .collect()
}

/// A log with a few sealed segments, and what it holds.
fn sealed(seed: u64, steps: usize, segment_bytes: u64) -> (FaultStorage, History) {
    let (disk, mut log) = new_log();
    log.set_segment_bytes_max(segment_bytes);
    let mut history = History::new(seed);
    history.steps(&mut log, steps);
    log.sync().unwrap();
    disk.sync_dir().unwrap();
    while seal(&disk, Txid(u64::MAX)).unwrap().is_some() {}
    (disk, history)
}

/// First and last transactions of the sealed and merged files, ascending.
fn ranges(disk: &FaultStorage) -> Vec<(Txid, Txid)> {
    try_ranges(disk).unwrap()
}

fn try_ranges(disk: &FaultStorage) -> Result<Vec<(Txid, Txid)>> {
    let names = disk.list().map_err(|source| Error::Io {
        what: "listing",
        path: String::new(),
        source,
    })?;
    let range = |name: &String| parse_sealed_name(name).or_else(|| parse_merged_name(name));
    let mut ranges: Vec<_> = names.iter().filter_map(range).collect();
    ranges.sort_unstable();
    Ok(ranges)
}

/// Every state that is kept is as it was; every other is refused with the nearest kept ones.
fn check(disk: &FaultStorage, history: &History, kept: &BTreeSet<u64>, what: &str) {
    let archive = archive(disk);
    for (txid, expected) in history.images.iter().enumerate().skip(1) {
        let txid = txid as u64;
        match image(&archive, txid) {
            Ok(bytes) => assert!(
                bytes == expected.bytes,
                "{what}: transaction {txid} differs"
            ),
            Err(error) => {
                assert!(!kept.contains(&txid), "{what}: transaction {txid}: {error}");
                assert!(error.is_not_found(), "{what}: {error}");
                let (before, after) = (kept.range(..txid).next_back(), kept.range(txid..).next());
                let text = error.to_string();
                for near in [before, after].into_iter().flatten() {
                    assert!(text.contains(&near.to_string()), "{what}: {text}");
                }
            }
        }
    }
    for file in archive.files().unwrap() {
        verify_file(disk, &file.name).unwrap();
        verify_states(&archive, &file.name).unwrap();
    }
}

fn round(seed: u64) {
    let mut random = Random(seed);
    let steps = 20 + random.below(60) as usize;
    let (disk, history) = sealed(seed, steps, 1 + random.below(9000));
    let all: BTreeSet<u64> = (1..=steps as u64).collect();
    let expected = records(&disk);
    let mut kept = all.clone();
    for turn in 0..3 {
        let ranges = ranges(&disk);
        if ranges.is_empty() {
            return;
        }
        let one_in = random.below(5) + 1;
        // Records are given up from the oldest on.
        let names = disk.list().unwrap();
        let merged = names
            .iter()
            .filter(|name| parse_merged_name(name).is_some());
        let choice = if one_in == 1 && merged.clone().count() == 0 {
            ranges.len() - 1
        } else {
            merged.count().min(ranges.len() - 1)
        };
        let a = random.below(choice as u64 + 1) as usize;
        let b = (a + random.below(6) as usize).min(ranges.len() - 1);
        let (first, last) = (ranges[a].0, ranges[b].1);
        let mut some = |header: &RecordHeader, next: &RecordHeader| {
            assert!(header.txid < next.txid && header.time_us < next.time_us);
            let stays = one_in == 1 || random.below(one_in) == 0;
            if !stays {
                kept.remove(&header.txid.0);
            }
            stays
        };
        let has_merged = disk
            .list()
            .unwrap()
            .iter()
            .any(|name| parse_merged_name(name).is_some());
        let keep = match one_in == 1 && !has_merged {
            true => Keep::All,
            false => Keep::Some(&mut some),
        };
        let merged = merge(&archive(&disk), first, last, keep, &FullSpeed).unwrap();
        let what = format!("seed {seed} turn {turn}: {merged:?}");
        assert_eq!(merged.files as usize, b - a + 1, "{what}");
        check(&disk, &history, &kept, &what);
        if Random(seed ^ 77).below(2) == 0 && turn == 0 {
            Snapshot::write(&archive(&disk), last).unwrap();
            check(&disk, &history, &kept, &what);
        }
    }
    // The records that were not merged are there, byte for byte, and the log goes on.
    let left = records_from_first(&disk);
    assert!(expected.ends_with(&left), "seed {seed}");
    let mut log = open(&disk).unwrap();
    let mut history = History {
        random: Random(seed),
        images: history.images,
    };
    history.steps(&mut log, 3);
    check(&disk, &history, &kept, "went on");
}

/// All records from the oldest one on that there is.
fn records_from_first(disk: &FaultStorage) -> Vec<Vec<u8>> {
    records(disk)
}

#[test]
fn states_that_stay_are_the_same_byte_for_byte() {
    for seed in 0..60 {
        round(seed);
    }
}

#[test]
fn files_without_loss_keep_their_records() {
    let (disk, history) = sealed(5, 60, 3000);
    let before = records(&disk);
    let ranges = ranges(&disk);
    assert!(ranges.len() > 4);
    let mut slow = reader(&disk);
    slow.seek(ranges[1].0).unwrap();
    let (first, last) = (ranges[0].0, ranges[ranges.len() - 1].1);
    let merged = merge(&archive(&disk), first, last, Keep::All, &FullSpeed).unwrap();
    assert_eq!(merged.name, sealed_name(first, last));
    assert!(records(&disk) == before);
    let all = (1..=60).collect();
    check(&disk, &history, &all, "all");
    // A reader that was under way goes on.
    let mut txid = ranges[1].0;
    while let Some(entry) = slow.next().unwrap() {
        txid = txid.next();
        assert_eq!(entry.header.txid, txid);
    }
    assert_eq!(txid, Txid(60));
}

#[test]
fn a_reader_that_lost_its_place_is_told() {
    let (disk, _) = sealed(5, 60, 3000);
    let ranges = ranges(&disk);
    let mut slow = reader(&disk);
    slow.seek(ranges[0].0).unwrap();
    let last = ranges[2].1;
    merge(
        &archive(&disk),
        Txid(1),
        last,
        Keep::Some(&mut |_, _| false),
        &FullSpeed,
    )
    .unwrap();
    let error = loop {
        match slow.next() {
            Ok(entry) => assert!(entry.unwrap().header.txid <= last),
            Err(error) => break error,
        }
    };
    assert!(error.is_not_found(), "{error}");
    let fresh = reader(&disk);
    assert_eq!(fresh.first_txid().unwrap(), Some(last.next()));
}

/// Everything into one, every third state stays.
fn work(disk: &FaultStorage) -> Result<()> {
    while seal(disk, Txid(u64::MAX))?.is_some() {}
    let archive = Archive::open(Arc::new(disk.clone()))?;
    let ranges = try_ranges(disk)?;
    let (first, last) = (ranges[0].0, ranges[ranges.len() - 2].1);
    if first == ranges[ranges.len() - 2].0 {
        return Ok(());
    }
    merge(
        &archive,
        first,
        last,
        Keep::Some(&mut |header, _| header.txid.0 % 3 == 0),
        &FullSpeed,
    )?;
    Ok(())
}

#[test]
fn it_may_be_cut_short_at_any_call() {
    let (disk, history) = sealed(9, 30, 1500);
    let all: BTreeSet<u64> = (1..=30).collect();
    let whole = disk.copy();
    let before = whole.calls();
    work(&whole).unwrap();
    let calls = whole.calls() - before;
    let last = ranges(&whole)[0].1.0;
    let kept: BTreeSet<u64> = all
        .iter()
        .copied()
        .filter(|txid| txid % 3 == 0 || *txid >= last)
        .collect();
    check(&whole, &history, &kept, "whole");
    for call in 1..=calls {
        for lasting in [true, false] {
            let disk = disk.copy();
            let kind = ErrorKind::Other;
            disk.fail(Fault {
                at_call: call,
                kind,
                lasting,
            });
            let error = work(&disk).unwrap_err();
            assert!(error.io_error().is_some(), "call {call}: {error}");
            disk.heal();
            let mut after = vec![disk.copy()];
            after.push(disk.power_cut(call));
            for disk in after {
                let what = format!("call {call}");
                check(&disk, &history, &kept, &what);
                assert_eq!(open(&disk).unwrap().head().pos.txid, Txid(30), "{what}");
                work(&disk).unwrap_or_else(|error| panic!("{what}: {error}"));
                check(&disk, &history, &kept, &what);
                let names = disk.list().unwrap();
                assert!(!names.iter().any(|name| name.ends_with(".new")), "{what}");
                let files = ranges(&disk);
                assert!(files.is_sorted_by(|a, b| a.1 < b.0), "{what}: {names:?}");
            }
        }
    }
    assert!(calls > 40);
}

/// Verifying names the file; and who reads a state gets its very bytes, or an error that names the file.
#[test]
fn any_flipped_bit_shows() {
    let (disk, history) = sealed(9, 30, 1500);
    work(&disk).unwrap();
    let name = disk
        .list()
        .unwrap()
        .into_iter()
        .find(|name| parse_merged_name(name).is_some())
        .unwrap();
    let good = disk.contents(&name).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        disk.put(&name, bad);
        let error = verify_file(&disk, &name).unwrap_err().to_string();
        assert!(error.contains(&name), "byte {at}: {error}");
        let archive = archive(&disk);
        for txid in 1..=30 {
            match image(&archive, txid) {
                Ok(bytes) => assert!(bytes == history.images[txid as usize].bytes, "byte {at}"),
                Err(Error::NotFound { what, .. }) => assert!(what.contains("not kept"), "{what}"),
                Err(error) => assert!(error.to_string().contains(&name), "byte {at}: {error}"),
            }
        }
    }
    disk.put(&name, good);
    verify_file(&disk, &name).unwrap();
}

/// Three states are opened, half of the history is dropped at a snapshot, at any moment of which the power may go.
#[test]
fn history_may_be_dropped_up_to_a_snapshot() {
    let (disk, history) = sealed(9, 40, 1500);
    let ranges = ranges(&disk);
    let begin = ranges[ranges.len() / 2].1;
    let mut open_one = archive(&disk).as_of(Txid(3)).unwrap();
    Snapshot::write(&archive(&disk), Txid(4)).unwrap();
    Snapshot::write(&archive(&disk), begin).unwrap();
    let kept: BTreeSet<u64> = (begin.0..=40).collect();
    let whole = disk.copy();
    let before = whole.calls();
    let freed = drop_before(&archive(&whole), begin).unwrap();
    assert!(freed > 0);
    let calls = whole.calls() - before;
    check_kept(&whole, &history, &kept, "whole");
    assert_eq!(
        reader(&whole).follows().unwrap().map(|pos| pos.txid),
        Some(begin)
    );
    for call in 1..=calls {
        let disk = disk.copy();
        disk.fail(Fault {
            at_call: call,
            kind: ErrorKind::Other,
            lasting: true,
        });
        assert!(
            Archive::open(Arc::new(disk.clone()))
                .and_then(|a| drop_before(&a, begin))
                .is_err()
        );
        disk.heal();
        for disk in [
            disk.copy(),
            disk.power_cut(call),
            disk.power_cut(call + 1000),
        ] {
            let what = format!("call {call}");
            check_kept(&disk, &history, &kept, &what);
            // What is left has no gap: from the oldest state on, each can be opened.
            let archive = archive(&disk);
            let states: Vec<bool> = (1..=40)
                .map(|txid| archive.as_of(Txid(txid)).is_ok())
                .collect();
            let tail = states.iter().skip_while(|open| !**open);
            let gaps = tail.clone().filter(|open| !**open).count();
            // Only a snapshot before it may stand alone.
            assert!(
                gaps == 0 || states[3] || states[begin.0 as usize - 1],
                "{what}: {states:?}"
            );
            drop_before(&archive, begin).unwrap();
            check_kept(&disk, &history, &kept, &what);
        }
    }
    drop_before(&archive(&disk), begin).unwrap();
    // Who had a state open keeps it.
    assert_eq!(
        open_one.scan_checksum().unwrap(),
        history.images[3].checksum()
    );
}

fn check_kept(disk: &FaultStorage, history: &History, kept: &BTreeSet<u64>, what: &str) {
    let archive = archive(disk);
    for txid in kept {
        let bytes =
            image(&archive, *txid).unwrap_or_else(|error| panic!("{what}: {txid}: {error}"));
        assert!(
            bytes == history.images[*txid as usize].bytes,
            "{what}: {txid}"
        );
    }
    assert_eq!(open(disk).unwrap().head().pos.txid, Txid(40), "{what}");
}
