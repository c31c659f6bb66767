//! A sealed segment, a snapshot and a merged segment of format version 1, written once: every later version reads them.
//!
//! That this version would write the same bytes is not asked: they depend on the version of zstd.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::io::Read;
use std::sync::Arc;

use common::*;
use mycelite_journal::*;

/// Transactions 1 to 60.
const SEALED: &[u8] = include_bytes!("golden/v1/sealed.bin");
/// As of transaction 45.
const SNAPSHOT: &[u8] = include_bytes!("golden/v1/snapshot.bin");

/// Transactions 1 to 60, with the states that [`is_kept`] names.
const MERGED: &[u8] = include_bytes!("golden/v1/merged.bin");

const LAST: Txid = Txid(60);
const SNAPSHOT_AT: Txid = Txid(45);

/// A history with sums, a change of the page size, a page that comes and goes.
fn history() -> (FaultStorage, Vec<Db>) {
    let disk = FaultStorage::new();
    let id = "000102030405060708090a0b0c0d0e0f".parse().unwrap();
    let mut log = Log::create(Arc::new(disk.clone()), id, 7).unwrap();
    let mut images = vec![Db::empty()];
    for number in 1..=LAST.0 + 1 {
        let mut new = images.last().unwrap().clone();
        match number {
            1 => new = Db::new(512, 3),
            20 => new.bytes.resize(4 * 512, 9),
            21 => new.bytes.truncate(2 * 512),
            40 => {
                new = Db::new(1024, 2);
                new.page_mut(2).fill(0xee);
            }
            _ => {
                let at = number as usize * 7;
                new.page_mut(1)[24..28].copy_from_slice(&(number as u32).to_be_bytes());
                new.page_mut(2)[at % 460..at % 460 + 40].fill(number as u8);
            }
        }
        if number == LAST.0 + 1 {
            log.set_segment_bytes_max(0);
        }
        let draft = Draft {
            wal: WalCursor {
                salt: [0x1111_1111, 0x2222_2222],
                frame: number as u32 * 2,
                checksum: [number as u32 / 2, 5],
            },
            change_counter: number as u32,
            timeline: Timeline(1 + number / 50),
            ..draft(&new)
        };
        begin(&mut log, images.last().unwrap(), &new, draft)
            .unwrap()
            .commit()
            .unwrap();
        images.push(new);
    }
    (disk, images)
}

/// Every fourth state, the one before the page size changes, the first one after, and the last.
fn is_kept(txid: u64) -> bool {
    txid.is_multiple_of(4) || [39, 41, LAST.0].contains(&txid)
}

/// Makes a merged segment of the sealed one.
fn merged(disk: &FaultStorage) -> Vec<u8> {
    let archive = Archive::open(Arc::new(disk.clone())).unwrap();
    let mut some = |state: &RecordHeader, _: &RecordHeader| is_kept(state.txid.0);
    let merged = merge(&archive, Txid(1), LAST, Keep::Some(&mut some), &FullSpeed).unwrap();
    assert_eq!(merged.name, merged_name(Txid(1), LAST));
    disk.contents(&merged.name).unwrap()
}

fn image(archive: &Archive, txid: u64) -> Result<Vec<u8>> {
    let mut past = archive.as_of(Txid(txid))?;
    let mut page = vec![0; past.page_size().bytes()];
    let mut bytes = Vec::new();
    for pgno in 1..=past.page_count() {
        past.read_page(pgno, &mut page)?;
        bytes.extend_from_slice(&page);
    }
    Ok(bytes)
}

#[test]
fn this_version_reads_the_merged_file() {
    let (disk, images) = history();
    disk.put(&merged_name(Txid(1), LAST), MERGED.to_vec());
    disk.remove(&segment_name(Txid(1))).unwrap();
    verify_file(&disk, &merged_name(Txid(1), LAST)).unwrap();
    let archive = Archive::open(Arc::new(disk.clone())).unwrap();
    for txid in 1..=LAST.0 + 1 {
        match image(&archive, txid) {
            Ok(bytes) => assert!(bytes == images[txid as usize].bytes, "{txid}"),
            Err(error) => {
                assert!(!is_kept(txid) && txid <= LAST.0, "{txid}: {error}");
                assert!(error.to_string().contains("was not kept"), "{error}");
            }
        }
    }
    // It has states and no records: those begin behind it.
    let mut reader = Reader::open(Arc::new(disk)).unwrap();
    assert_eq!(reader.follows().unwrap().unwrap().txid, LAST);
    assert_eq!(reader.next().unwrap().unwrap().header.txid, LAST.next());
}

#[test]
fn this_version_reads_the_files() {
    let (disk, images) = history();
    let raw_segment = disk.contents(&segment_name(Txid(1))).unwrap();
    let mut records = Vec::new();
    let mut reader = reader(&disk);
    while let Some(entry) = reader.next().unwrap() {
        let mut bytes = Vec::new();
        entry.raw().read_to_end(&mut bytes).unwrap();
        records.push(bytes);
    }
    assert!(raw_segment[64..raw_segment.len() - 32] == records[..LAST.0 as usize].concat());

    disk.put(&sealed_name(Txid(1), LAST), SEALED.to_vec());
    disk.put(&snapshot_name(SNAPSHOT_AT), SNAPSHOT.to_vec());
    disk.remove(&segment_name(Txid(1))).unwrap();
    verify_file(&disk, &sealed_name(Txid(1), LAST)).unwrap();
    verify_file(&disk, &snapshot_name(SNAPSHOT_AT)).unwrap();
    let mut reader = Reader::open(Arc::new(disk.clone())).unwrap();
    for record in &records {
        let mut bytes = Vec::new();
        let entry = reader.next().unwrap().unwrap();
        entry.raw().read_to_end(&mut bytes).unwrap();
        assert!(bytes == *record, "{}", entry.header.txid);
    }
    let archive = Archive::open(Arc::new(disk.clone())).unwrap();
    assert_eq!(archive.snapshots().unwrap(), [SNAPSHOT_AT]);
    for (txid, image) in images.iter().enumerate().skip(1) {
        let mut past = archive.as_of(Txid(txid as u64)).unwrap();
        let mut page = vec![0; past.page_size().bytes()];
        assert_eq!(past.page_count(), image.count());
        for pgno in 1..=past.page_count() {
            past.read_page(pgno, &mut page).unwrap();
            assert!(page == image.page(pgno), "page {pgno} as of {txid}");
        }
    }
}

#[test]
fn what_is_written_now_says_the_same() {
    let (disk, _) = history();
    let sealed = seal(&disk, LAST).unwrap().unwrap();
    assert_eq!((sealed.first, sealed.last), (Txid(1), LAST));
    let archive = Archive::open(Arc::new(disk.clone())).unwrap();
    Snapshot::write(&archive, SNAPSHOT_AT).unwrap();
    // Header, and the footer's fields but those of the root, do not depend on the compressor.
    for (name, golden) in [
        (sealed_name(Txid(1), LAST), SEALED),
        (snapshot_name(SNAPSHOT_AT), SNAPSHOT),
        (merged_name(Txid(1), LAST), MERGED),
    ] {
        let now = match parse_merged_name(&name) {
            Some(_) => merged(&disk),
            None => disk.contents(&name).unwrap(),
        };
        assert!(now[..64] == golden[..64]);
        let footer = |bytes: &[u8]| bytes[bytes.len() - 192..][..120].to_vec();
        assert!(footer(&now) == footer(golden));
    }
}
