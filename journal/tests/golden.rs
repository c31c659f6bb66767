//! Files of format version 1, written once: every later version reads them, and this one writes the same bytes.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::sync::Arc;

use common::{Db, begin, replay};
use mycelite_journal::*;

const META: &[u8] = include_bytes!("golden/v1/meta.bin");
/// Transactions 1 and 2, sealed.
const FIRST: &[u8] = include_bytes!("golden/v1/segment1.bin");
/// Transactions 3 to 5.
const SECOND: &[u8] = include_bytes!("golden/v1/segment3.bin");
const SYNCED: &[u8] = include_bytes!("golden/v1/synced.bin");
const CUT: &[u8] = include_bytes!("golden/v1/cut.bin");

const CREATED_US: u64 = 1_700_000_000_000_000;

fn id() -> DatabaseId {
    "000102030405060708090a0b0c0d0e0f".parse().unwrap()
}

/// A patch's page, kind and number of ranges.
type Seen = (u32, PatchKind, usize);

/// The database after each of the five transactions in the files.
fn images() -> Vec<Db> {
    let mut first = Db::new(512, 3);
    first.page_mut(1)[..16].copy_from_slice(b"SQLite format 3\0");
    first.page_mut(1)[27] = 1;
    for (i, byte) in first.page_mut(2).iter_mut().enumerate() {
        *byte = (i % 255) as u8 + 1;
    }
    let mut second = first.clone();
    // Eight equal bytes between two changes are written with them, nine are not.
    second.page_mut(2)[100] = 0;
    second.page_mut(2)[109] = 0;
    second.page_mut(2)[119] = 0;
    second.page_mut(2)[511] = 0;
    let mut third = second.clone();
    third.page_mut(1)[27] = 2;
    third.bytes.truncate(1024);
    let mut fourth = Db::new(1024, 2);
    fourth.page_mut(1)[..16].copy_from_slice(b"SQLite format 3\0");
    fourth.page_mut(2).fill(0xee);
    vec![Db::empty(), first, second, third, fourth, Db::new(1024, 0)]
}

fn write() -> FaultStorage {
    let disk = FaultStorage::new();
    let mut log = Log::create(Arc::new(disk.clone()), id(), CREATED_US).unwrap();
    let images = images();
    for (index, pair) in images.windows(2).enumerate() {
        let number = index as u32 + 1;
        // Transaction 3 begins a segment.
        log.set_segment_bytes_max(if number == 3 { 0 } else { 1 << 20 });
        let draft = Draft {
            flags: [FLAG_ADOPT, 0, 0, FLAG_REBASE, 0][index],
            timeline: Timeline([1, 1, 2, 2, 3][index]),
            wal: WalCursor {
                salt: [0x1111_1111 * number, 0x0101_0101],
                frame: number * 10,
                checksum: [number, 0xffff_fff0],
            },
            change_counter: number,
            whole: false,
            ..Draft::new(pair[1].size, pair[1].count(), CREATED_US + 7)
        };
        begin(&mut log, &pair[0], &pair[1], draft)
            .unwrap()
            .commit()
            .unwrap();
    }
    log.sync().unwrap();
    disk
}

#[test]
fn this_version_writes_the_same_bytes() {
    let disk = write();
    assert!(disk.contents("meta").unwrap() == META);
    assert!(disk.contents(&segment_name(Txid(1))).unwrap() == FIRST);
    assert!(disk.contents(&segment_name(Txid(3))).unwrap() == SECOND);
    assert!(disk.contents("synced").unwrap() == SYNCED);
    assert_eq!(disk.list().unwrap().len(), 4);
}

#[test]
fn this_version_reads_the_files() {
    let disk = FaultStorage::new();
    disk.put("meta", META.to_vec());
    disk.put(&segment_name(Txid(1)), FIRST.to_vec());
    disk.put(&segment_name(Txid(3)), SECOND.to_vec());
    disk.put("synced", SYNCED.to_vec());
    assert_eq!(replay(Arc::new(disk.clone()), &images()).unwrap(), 5);

    use PatchKind::{Full, Ranges, Zeroed};
    let expected: [(&str, &[Seen]); 5] = [
        (
            "1/1/5060060437ceefcd",
            &[(1, Zeroed, 2), (2, Full, 1), (3, Zeroed, 0)],
        ),
        ("1/2/d6318c87205269a0", &[(2, Ranges, 3)]),
        ("2/3/13befc1137fde970", &[(1, Ranges, 1)]),
        ("2/4/04439df9898fe7c2", &[(1, Zeroed, 1), (2, Full, 1)]),
        ("3/5/0000000000000000", &[]),
    ];
    let mut reader = Reader::open(Arc::new(disk)).unwrap();
    assert_eq!((reader.id(), reader.created_us()), (id(), CREATED_US));
    for (index, (pos, patches)) in expected.iter().enumerate() {
        let entry = reader.next().unwrap().unwrap();
        let header = &entry.header;
        assert_eq!(header.pos().to_string(), *pos);
        let number = index as u32 + 1;
        assert_eq!(header.time_us, CREATED_US + 7 + index as u64);
        assert_eq!(header.flags, [2, 0, 0, 1, 0][index]);
        assert_eq!(header.change_counter, number);
        assert_eq!(header.wal.salt, [0x1111_1111 * number, 0x0101_0101]);
        assert_eq!(header.wal.frame, number * 10);
        assert_eq!(header.wal.checksum, [number, 0xffff_fff0]);
        let mut stream = entry.patches();
        let mut found = Vec::new();
        while let Some(patch) = stream.next().unwrap() {
            found.push((patch.pgno(), patch.kind(), patch.ranges().count()));
        }
        assert_eq!(found, *patches);
    }
    assert!(reader.next().unwrap().is_none());
}

#[test]
fn the_small_files_say_what_they_said() {
    let meta = Meta {
        id: id(),
        created_us: CREATED_US,
    };
    assert_eq!(Meta::decode(META), Ok(meta));
    assert_eq!(meta.encode(), META);
    let mark = SyncMark {
        id: id(),
        segment: Txid(3),
        offset: SECOND.len() as u64,
        txid: Txid(5),
    };
    assert_eq!(SyncMark::decode(SYNCED), Ok(mark));
    assert_eq!(mark.encode(), SYNCED);
    let cut = Cut {
        id: id(),
        first: "2/4/0123456789abcdef".parse().unwrap(),
    };
    assert_eq!(Cut::decode(CUT), Ok(cut));
    assert_eq!(cut.encode(), CUT);
    let first = SegmentHeader {
        id: id(),
        follows: Pos::ZERO,
    };
    let second = SegmentHeader {
        id: id(),
        follows: "1/2/d6318c87205269a0".parse().unwrap(),
    };
    for (header, bytes) in [(first, FIRST), (second, SECOND)] {
        assert_eq!(SegmentHeader::decode(bytes), Ok(header));
        assert_eq!(header.encode(), bytes[..64]);
    }
    let seal = Seal {
        next: Txid(3),
        segment_len: FIRST.len() as u64,
    };
    let bytes = &FIRST[FIRST.len() - 32..];
    assert_eq!(Seal::decode(bytes, &first), Ok(seal));
    assert_eq!(seal.encode(&first), bytes);
    assert!(Seal::decode(bytes, &second).is_err());
}
