//! Records from a stranger: each rule is checked, and after an error the log is as it was.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::io::Read;
use std::sync::Arc;

use common::*;
use mycelite_journal::*;
use proptest::prelude::*;

/// Gives a few bytes at a time, as a socket does.
struct Trickle<'a>(&'a [u8], usize);

impl Read for Trickle<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let count = self.1.min(buf.len()).min(self.0.len());
        buf[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        Ok(count)
    }
}

fn append(log: &mut Log, bytes: &[u8]) -> Result<Option<RecordHeader>> {
    log.append_raw(&mut Trickle(bytes, 1000), &RawLimits::default())
}

/// A log with one record: pages 1 to 3 of 512 bytes.
fn three_pages() -> (FaultStorage, Log) {
    let (disk, mut log) = new_log();
    let mut db = Db::new(512, 3);
    db.bytes.fill(1);
    commit(&mut log, &Db::empty(), &db).unwrap();
    (disk, log)
}

/// A header that follows the log's head and says that nothing changes.
fn next_header(log: &Log) -> RecordHeader {
    let head = log.head();
    RecordHeader {
        page_size: head.page_size.unwrap(),
        timeline: head.pos.timeline,
        txid: head.pos.txid.next(),
        time_us: head.time_us + 1,
        page_count: head.page_count,
        pre_page_count: head.page_count,
        pre_checksum: head.pos.checksum,
        post_checksum: head.pos.checksum,
        pre_page_size: head.page_size.unwrap().get(),
        ..RecordHeader::default()
    }
}

#[test]
fn a_stream_of_records_makes_the_same_log() {
    let (disk, mut log) = new_log();
    let mut history = History::new(21);
    history.steps(&mut log, 40);
    let mut stream = Vec::new();
    let mut source = reader(&disk);
    while let Some(entry) = source.next().unwrap() {
        entry.raw().read_to_end(&mut stream).unwrap();
    }
    let limits = RawLimits::default();
    for (chunk, hold) in [1, 7, 160, 100_000]
        .into_iter()
        .flat_map(|chunk| [(chunk, false), (chunk, true)])
    {
        let (copy, mut replica) = new_log();
        let mut stream = Trickle(&stream, chunk);
        let mut take = |replica: &mut Log| match hold {
            true => replica.hold_raw(&mut stream, &limits).unwrap(),
            false => replica.append_raw(&mut stream, &limits).unwrap(),
        };
        let mut count = 0;
        while let Some(header) = take(&mut replica) {
            count += 1;
            assert_eq!(header.txid, Txid(count));
        }
        replica.sync().unwrap();
        assert_eq!(replica.head(), log.head());
        let name = segment_name(Txid(1));
        assert!(disk.contents(&name) == copy.contents(&name));
        assert_eq!(replay(Arc::new(copy), &history.images).unwrap(), 40);
    }
}

/// Whole records that wait are not lost with a stream that breaks, and a bad one takes nothing along.
#[test]
fn records_that_wait_outlast_a_broken_stream() {
    let (disk, mut log) = new_log();
    let mut history = History::new(22);
    history.steps(&mut log, 9);
    let mut source = reader(&disk);
    let mut records = Vec::new();
    while let Some(entry) = source.next().unwrap() {
        let mut bytes = Vec::new();
        entry.raw().read_to_end(&mut bytes).unwrap();
        records.push(bytes);
    }
    let limits = RawLimits::default();
    let whole = records[..5].concat();
    let (cut, mut flipped) = (records[5].clone(), records[5].clone());
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    for bad in [&cut[..100], &cut[..cut.len() - 1], &flipped] {
        let (copy, mut replica) = new_log();
        let bytes = [&whole, bad].concat();
        let mut stream = &bytes[..];
        let error = loop {
            match replica.hold_raw(&mut stream, &limits) {
                Ok(Some(_)) => {}
                Ok(None) => panic!("no error"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
        assert_eq!(replica.head().pos.txid, Txid(5));
        replica.sync().unwrap();
        let rest = records[5..].concat();
        let mut rest = &rest[..];
        while replica.hold_raw(&mut rest, &limits).unwrap().is_some() {}
        replica.write_held().unwrap();
        assert_eq!(replica.head(), log.head());
        assert_eq!(replay(Arc::new(copy), &history.images).unwrap(), 9);
    }
}

/// A power cut may keep all of a received record but its trailer: that is not a transaction of this log's own, about which only its
/// writer could say whether it was committed.
#[test]
fn a_received_record_without_its_trailer_is_received_again() {
    let (disk, mut log) = new_log();
    History::new(23).steps(&mut log, 12);
    let mut source = reader(&disk);
    let raw = |entry: RecordEntry| {
        let mut bytes = Vec::new();
        entry.raw().read_to_end(&mut bytes).unwrap();
        bytes
    };
    let records = std::iter::from_fn(|| source.next().unwrap()).map(raw);
    let records: Vec<Vec<u8>> = records.collect();
    let (last, before) = records.split_last().unwrap();
    let (copy, mut replica) = new_log();
    for bytes in before {
        append(&mut replica, bytes).unwrap();
    }
    let name = segment_name(replica.segment_first());
    let end = copy.size(&name).unwrap();
    let file = copy.open(&name, OpenMode::Write).unwrap();
    let trailer = Trailer::of(&RecordHeader::default()).encode().len();
    file.write_at(&last[..last.len() - trailer], end).unwrap();
    drop(replica);

    let mut replica = Log::open(Arc::new(copy)).unwrap();
    assert!(replica.prepared().unwrap().is_some());
    append(&mut replica, last).unwrap().unwrap();
    assert_eq!(replica.head(), log.head());
}

#[test]
fn what_does_not_follow_is_refused() {
    let (disk, mut log) = three_pages();
    let bytes = disk.contents(&segment_name(Txid(1)));
    let good = next_header(&log);
    let mut refuse = |header: RecordHeader| {
        let result = append(&mut log, &raw_record(header, &[]));
        assert!(matches!(result, Err(Error::Mismatch { .. })), "{result:?}");
        assert_eq!(disk.contents(&segment_name(Txid(1))), bytes);
    };
    refuse(RecordHeader {
        txid: Txid(1),
        ..good
    });
    refuse(RecordHeader {
        txid: Txid(3),
        ..good
    });
    refuse(RecordHeader {
        pre_checksum: Checksum(1),
        ..good
    });
    refuse(RecordHeader {
        pre_page_count: 4,
        ..good
    });
    refuse(RecordHeader {
        pre_page_size: 1024,
        page_count: 0,
        post_checksum: Checksum(0),
        ..good
    });
    refuse(RecordHeader {
        timeline: Timeline(0),
        ..good
    });
    refuse(RecordHeader {
        time_us: good.time_us - 1,
        ..good
    });
    append(&mut log, &raw_record(good, &[])).unwrap().unwrap();
}

/// A patch in stored form.
fn patch(pgno: u32, old: Option<&[u8]>, new: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_patch(&mut out, pgno, old, new);
    out
}

/// Records that follow the log of [`three_pages`] and break one rule each.
fn bad_records(log: &Log) -> Vec<(&'static str, RecordHeader, Vec<u8>)> {
    let old = [1u8; 512];
    let mut new = old;
    new[5] = 9;
    let (first, second) = (patch(1, Some(&old), &new), patch(2, Some(&old), &new));
    let (fresh, building) = (patch(4, None, &new), patch(4, Some(&old), &new));
    let both = [&first[..], &second[..]].concat();
    let header = |patch_count| RecordHeader {
        patch_count,
        ..next_header(log)
    };
    let grown = RecordHeader {
        page_count: 4,
        ..header(2)
    };
    let resized = RecordHeader {
        page_size: PageSize::new(1024).unwrap(),
        page_count: 1,
        ..header(1)
    };
    let emptied = RecordHeader {
        page_count: 0,
        ..header(0)
    };
    let unknown = RecordHeader {
        flags: 4,
        ..header(2)
    };
    let and = |other: &[u8]| [&first[..], other].concat();
    vec![
        ("twice", header(2), and(&first)),
        ("backwards", header(2), [&second[..], &first[..]].concat()),
        ("too few", header(2), first.clone()),
        ("too many", header(1), both.clone()),
        ("bytes left over", header(2), [&both[..], &[0]].concat()),
        ("beyond the end", header(2), and(&fresh)),
        ("new page builds on nothing", grown, and(&building)),
        ("new page missing", grown, both.clone()),
        (
            "fewer patches than new pages",
            RecordHeader {
                page_count: 6,
                ..grown
            },
            both.clone(),
        ),
        ("not complete after a resize", resized, first.clone()),
        ("unknown flags", unknown, both),
        ("empty with a checksum", emptied, vec![]),
        ("more patches than pages", header(4), first.repeat(4)),
        ("body too long for one patch", header(1), vec![0; 600]),
    ]
}

#[test]
fn a_record_that_breaks_a_rule_is_refused() {
    let (disk, mut log) = three_pages();
    let bytes = disk.contents(&segment_name(Txid(1)));
    for (name, header, body) in bad_records(&log) {
        let result = append(&mut log, &raw_record(header, &body));
        assert!(
            matches!(result, Err(Error::Malformed { .. })),
            "{name}: {result:?}"
        );
        assert_eq!(disk.contents(&segment_name(Txid(1))), bytes, "{name}");
    }
    // The good ones that those were made from.
    let (old, new) = ([1; 512], [2; 512]);
    let header = RecordHeader {
        patch_count: 2,
        ..next_header(&log)
    };
    let body = [patch(1, Some(&old), &new), patch(2, Some(&old), &new)].concat();
    append(&mut log, &raw_record(header, &body))
        .unwrap()
        .unwrap();
    let grown = RecordHeader {
        page_count: 4,
        patch_count: 1,
        ..next_header(&log)
    };
    append(&mut log, &raw_record(grown, &patch(4, None, &new)))
        .unwrap()
        .unwrap();
}

#[test]
fn every_cut_and_every_flip_of_a_stream_is_refused() {
    let (disk, mut log) = three_pages();
    let bytes = disk.contents(&segment_name(Txid(1)));
    let mut body = Vec::new();
    let mut new = [1u8; 512];
    new[100..140].fill(3);
    encode_patch(&mut body, 2, Some(&[1; 512]), &new);
    let header = RecordHeader {
        patch_count: 1,
        ..next_header(&log)
    };
    let record = raw_record(header, &body);
    assert!(append(&mut log, &[]).unwrap().is_none());
    for cut in 1..record.len() {
        let result = append(&mut log, &record[..cut]);
        assert!(
            matches!(result, Err(Error::Malformed { .. })),
            "cut at {cut}"
        );
    }
    for bit in 0..record.len() * 8 {
        let mut bad = record.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        append(&mut log, &bad).unwrap_err();
    }
    assert_eq!(disk.contents(&segment_name(Txid(1))), bytes);
    append(&mut log, &record).unwrap().unwrap();
}

#[test]
fn long_records_are_checked_while_they_stream() {
    let (disk, mut log) = new_log();
    let mut random = Random(3);
    let mut db = Db::new(4096, 700);
    db.bytes = random.bytes(db.bytes.len());
    commit(&mut log, &Db::empty(), &db).unwrap();
    let mut record = Vec::new();
    let entry = reader(&disk).next().unwrap().unwrap();
    entry.raw().read_to_end(&mut record).unwrap();
    assert!(record.len() > 2_000_000);

    let (copy, mut replica) = new_log();
    let tail = |copy: &FaultStorage| copy.contents(&segment_name(Txid(1))).map(|b| b.len());
    for _ in 0..40 {
        let mut bad = record.clone();
        match random.below(2) {
            0 => bad.truncate(random.below(record.len() as u64) as usize),
            _ => bad[random.below(record.len() as u64) as usize] ^= 16,
        }
        append(&mut replica, &bad).unwrap_err();
        assert!(tail(&copy).is_none_or(|length| length == 64));
        assert_eq!(replica.head(), &Head::EMPTY);
    }
    let limits = RawLimits {
        record_bytes_max: 1_000_000,
        ..RawLimits::default()
    };
    let result = replica.append_raw(&mut &record[..], &limits);
    assert!(matches!(result, Err(Error::Limit { .. })), "{result:?}");
    let limits = RawLimits {
        database_bytes_max: 700 * 4096 - 1,
        ..RawLimits::default()
    };
    let result = replica.append_raw(&mut &record[..], &limits);
    assert!(matches!(result, Err(Error::Limit { .. })), "{result:?}");
    append(&mut replica, &record).unwrap().unwrap();
    assert_eq!(replica.head(), log.head());
    assert!(disk.contents(&segment_name(Txid(1))) == copy.contents(&segment_name(Txid(1))));
}

prop_compose! {
    fn any_header()(
        flags in 0..4u16,
        size_bits in 9..=16u32,
        timeline in any::<u64>(),
        txid in 1..=u64::MAX,
        time_us in any::<u64>(),
        page_count in 1..=u32::MAX,
        pre in (any::<u32>(), any::<u64>()),
        post in any::<u64>(),
        wal in any::<([u32; 2], u32, [u32; 2])>(),
        patches in 0..1000u32,
        filling in any::<prop::sample::Index>(),
        body_hash in any::<u64>(),
        change_counter in any::<u32>(),
    ) -> RecordHeader {
        let page_size = PageSize::new(1 << size_bits).unwrap();
        // At most 500 new pages, each with its patch.
        let pre_page_count = page_count.saturating_sub(pre.0 % 500);
        let new = page_size.pages_between(pre_page_count, page_count);
        let patch_count = (new + patches).min(page_size.pages_between(0, page_count));
        let span = u64::from(patch_count) * u64::from(page_size.get());
        RecordHeader {
            flags,
            page_size,
            timeline: Timeline(timeline),
            txid: Txid(txid),
            time_us,
            page_count,
            pre_page_count,
            pre_checksum: Checksum(pre.1),
            post_checksum: Checksum(post),
            wal: WalCursor { salt: wal.0, frame: wal.1, checksum: wal.2 },
            patch_count,
            body_len: u64::from(patch_count) * 8 + filling.index(span as usize + 1) as u64,
            body_hash,
            change_counter,
            pre_page_size: 1 << size_bits,
        }
    }
}

proptest! {
    #[test]
    fn headers_and_trailers_come_back(header in any_header()) {
        let bytes = header.encode();
        prop_assert_eq!(RecordHeader::decode(&bytes), Ok(header));
        let trailer = Trailer::of(&header);
        prop_assert_eq!(Trailer::decode(&trailer.encode()), Ok(trailer));
        prop_assert!(trailer.fits(&header));
        let other = RecordHeader { time_us: header.time_us ^ 1, ..header };
        prop_assert!(!trailer.fits(&other));
        prop_assert_eq!(header.pos().txid, header.pre_pos().txid.next());
    }

    #[test]
    fn positions_come_back(timeline in any::<u64>(), txid in any::<u64>(), sum in any::<u64>()) {
        let pos = Pos {
            timeline: Timeline(timeline),
            txid: Txid(txid),
            checksum: Checksum(sum),
        };
        prop_assert_eq!(pos.to_string().parse::<Pos>(), Ok(pos));
    }

    #[test]
    fn ids_come_back(id in any::<[u8; 16]>()) {
        let id = DatabaseId(id);
        prop_assert_eq!(id.to_string().parse::<DatabaseId>(), Ok(id));
    }
}

#[test]
fn texts_that_are_no_position_are_refused() {
    let bad = [
        "",
        "/",
        "1/2",
        "1/2/3",
        "1/2/00000000000000ff/",
        "1/2/00000000000000ff/1",
        "+1/2/00000000000000ff",
        " 1/2/00000000000000ff",
        "1/-2/00000000000000ff",
        "1/2/+0000000000000ff",
        "1/2/0x000000000000ff",
        "1/18446744073709551616/00000000000000ff",
        "//00000000000000ff",
    ];
    for text in bad {
        assert!(text.parse::<Pos>().is_err(), "{text:?}");
    }
    assert_eq!("0/0/0000000000000000".parse(), Ok(Pos::ZERO));
    for text in [
        "",
        "00",
        "+0000000000000000000000000000000",
        "ä000000000000000000000000000000",
    ] {
        assert!(text.parse::<DatabaseId>().is_err(), "{text:?}");
    }
    assert!("00000000000000FF".parse::<Checksum>().is_ok());
}

#[test]
fn a_newer_version_is_told_from_damage() {
    let (disk, log) = three_pages();
    drop(log);
    let resign = |bytes: &mut [u8]| {
        let at = bytes.len() - 8;
        let hash = xxhash_rust::xxh3::xxh3_64(&bytes[..at]);
        bytes[at..].copy_from_slice(&hash.to_le_bytes());
    };
    let name = segment_name(Txid(1));
    let parts = [("meta", 0..64), (name.as_str(), 0..64), (&name, 64..192)];
    for (file, range) in parts {
        let newer = disk.copy();
        let mut bytes = newer.contents(file).unwrap();
        bytes[range.start + 8] = 2;
        resign(&mut bytes[range]);
        newer.put(file, bytes);
        let error = Reader::open(Arc::new(newer.clone()))
            .and_then(|mut reader| reader.next())
            .unwrap_err();
        assert!(
            matches!(
                error,
                Error::Version {
                    found: 2,
                    known: 1,
                    ..
                }
            ),
            "{error}"
        );
        let error = open(&newer).err().unwrap();
        assert!(matches!(error, Error::Version { found: 2, .. }), "{error}");
        assert!(error.to_string().contains("version 2"), "{error}");
    }
}
