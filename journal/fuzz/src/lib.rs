//! What the fuzzers do with their bytes: one function per parser. They panic when a promise is broken. The ordinary tests run them
//! too, on seeded bytes (`tests/fuzz_bounded.rs`).
//!
//! Checksums would keep a fuzzer out of everything behind them, so most functions try the bytes twice: as they are, and with the
//! checksums made to fit.

use std::io::Read;
use std::sync::Arc;

use mycelite_journal::*;
use xxhash_rust::xxh3::xxh3_64;

const ID: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Puts the checksum that ends a fixed structure right.
fn sign(bytes: &mut [u8]) {
    if let Some((covered, hash)) = bytes.split_last_chunk_mut::<8>() {
        *hash = xxh3_64(covered).to_le_bytes();
    }
}

/// The first `N` bytes (zeros where there are too few) with magic, version and checksum right.
fn structure<const N: usize>(data: &[u8], magic: &[u8; 8]) -> [u8; N] {
    let mut bytes = [0; N];
    let count = data.len().min(N);
    bytes[..count].copy_from_slice(&data[..count]);
    bytes[..8].copy_from_slice(magic);
    bytes[8..10].copy_from_slice(&1u16.to_le_bytes());
    sign(&mut bytes);
    bytes
}

/// A record's header and trailer.
pub fn record_header(data: &[u8]) {
    let signed = structure::<128>(data, b"MYCELREC");
    for bytes in [data, &signed] {
        if let Ok(header) = RecordHeader::decode(bytes) {
            assert_eq!(header.encode(), bytes[..128]);
            let trailer = Trailer::of(&header);
            assert!(trailer.fits(&header));
            assert_eq!(Trailer::decode(&trailer.encode()), Ok(trailer));
            assert!(header.record_len() >= 160);
        }
        if let Ok(trailer) = Trailer::decode(bytes) {
            assert_eq!(trailer.encode(), bytes[..32]);
        }
    }
}

/// A sequence of patches; the first byte chooses the page size.
pub fn patch_stream(data: &[u8]) {
    let Some((choice, mut rest)) = data.split_first() else {
        return;
    };
    let Some(size) = PageSize::new(512 << (choice % 8)) else {
        return;
    };
    let mut page = vec![0xaa; size.bytes()];
    while let Ok((patch, length)) = PatchRef::parse(rest, size) {
        assert!(length <= rest.len() && length <= 8 + size.bytes());
        assert_eq!(length, patch.stored_len());
        assert_eq!(
            PatchRef::parse(&rest[..length - 1], size),
            Err(FormatError::Short)
        );
        let mut end = 0;
        for (offset, bytes) in patch.ranges() {
            assert!(!bytes.is_empty() && (offset >= end || end == 0));
            end = offset + bytes.len() + 1;
            assert!(end <= size.bytes() + 1);
        }
        let before = page.clone();
        patch.apply(&mut page);
        for (offset, bytes) in patch.ranges() {
            assert_eq!(&page[offset..offset + bytes.len()], bytes);
        }
        // The shortest way to write it down makes the same page.
        let mut again = Vec::new();
        if encode_patch(&mut again, patch.pgno(), Some(&before), &page) {
            assert!(again.len() <= 8 + size.bytes());
            let mut other = before;
            if let Ok((patch, _)) = PatchRef::parse(&again, size) {
                patch.apply(&mut other);
            }
            assert_eq!(other, page);
        } else {
            assert_eq!(before, page);
        }
        rest = &rest[length..];
    }
}

/// One record that arrives from outside, after the first of a log: header fields from the data, its body the rest.
pub fn record(data: &[u8]) {
    let disk = FaultStorage::new();
    let Ok(mut log) = first_record(&disk) else {
        unreachable!("the disk works");
    };
    let (head, before) = (*log.head(), disk.contents(&segment_name(Txid(1))));
    let (fields, body) = data.split_at(data.len().min(8));
    let number = |index: usize| fields.get(index).copied().map_or(0, u32::from);
    let header = RecordHeader {
        flags: number(0) as u16,
        page_size: PageSize::new(512 << (number(1) % 8)).unwrap_or(PageSize::MIN),
        timeline: head.pos.timeline,
        txid: head.pos.txid.next(),
        time_us: head.time_us + u64::from(number(2)),
        page_count: number(3),
        pre_page_count: head.page_count,
        pre_checksum: head.pos.checksum,
        post_checksum: Checksum(u64::from(number(4))),
        patch_count: number(5),
        body_len: body.len() as u64,
        body_hash: xxh3_64(body),
        pre_page_size: head.page_size.map_or(0, PageSize::get),
        ..RecordHeader::default()
    };
    let (start, trailer) = (header.encode(), Trailer::of(&header).encode());
    let mut stream = (&start[..]).chain(body).chain(&trailer[..]);
    match log.append_raw(&mut stream, &RawLimits::default()) {
        Ok(Some(header)) => {
            assert_eq!(log.head(), &Head::after(&header));
            let found = Reader::open(Arc::new(disk)).and_then(|mut log| log.find(header.txid));
            let Ok(Some(entry)) = found else {
                panic!("the record is not there: {found:?}");
            };
            assert!(entry.verify().is_ok());
        }
        Ok(None) => panic!("there was a record"),
        Err(_) => {
            assert_eq!(log.head(), &head);
            assert_eq!(disk.contents(&segment_name(Txid(1))), before);
        }
    }
}

fn first_record(disk: &FaultStorage) -> Result<Log> {
    let mut log = Log::create(Arc::new(disk.clone()), DatabaseId(ID), 1)?;
    let mut record = log.begin(Draft::new(PageSize::MIN, 3, 1))?;
    for pgno in 1..=3 {
        record.patch(pgno, None, &[pgno as u8; 512])?;
    }
    record.commit()?;
    Ok(log)
}

/// A whole segment, alone in a log: read it, open it for writing, go on.
pub fn log(data: &[u8]) {
    walk(data);
    let mut signed = data.to_vec();
    sign_log(&mut signed);
    walk(&signed);
}

/// Makes the checksums fit wherever the lengths make sense.
fn sign_log(bytes: &mut [u8]) {
    if let Some(header) = bytes.get_mut(..64) {
        sign(header);
    }
    let Some(segment) = bytes.get(..64).and_then(|b| SegmentHeader::decode(b).ok()) else {
        return;
    };
    let mut at = 64;
    while let Some(start) = bytes.get_mut(at..at + 32) {
        if start.starts_with(b"MYCELNXT") {
            let number = |at: usize| {
                start[at..]
                    .first_chunk()
                    .map_or(0, |b| u64::from_le_bytes(*b))
            };
            let (next, segment_len) = (Txid(number(8)), number(16));
            start.copy_from_slice(&Seal { next, segment_len }.encode(&segment));
            return;
        }
        let Some(head) = bytes.get(at..at + 128) else {
            return;
        };
        let mut length = [0; 8];
        length.copy_from_slice(&head[88..96]);
        let length = u64::from_le_bytes(length).min(1 << 20) as usize;
        let Some(record) = bytes.get_mut(at..at + length + 160) else {
            return;
        };
        let hash = xxh3_64(&record[128..128 + length]);
        record[96..104].copy_from_slice(&hash.to_le_bytes());
        sign(&mut record[..128]);
        if let Ok(header) = RecordHeader::decode(record) {
            record[128 + length..].copy_from_slice(&Trailer::of(&header).encode());
        }
        at += length + 160;
    }
}

fn walk(segment: &[u8]) {
    let disk = FaultStorage::new();
    let meta = Meta {
        id: DatabaseId(ID),
        created_us: 1,
    };
    disk.put("meta", meta.encode().to_vec());
    let mut last = SegmentHeader::decode(segment).map_or(Txid(0), |header| header.follows.txid);
    disk.put(&segment_name(last.next()), segment.to_vec());
    let Ok(mut reader) = Reader::open(Arc::new(disk.clone())) else {
        panic!("the meta file is good");
    };
    let Ok(file) = disk.open("image", OpenMode::Create) else {
        unreachable!("the disk works");
    };
    let mut image = Image::new(file);
    // A record has at least 160 bytes.
    for _ in 0..=segment.len() / 160 {
        let Ok(Some(entry)) = reader.next() else {
            break;
        };
        assert_eq!(entry.header.txid, last.next());
        last = entry.header.txid;
        let mut raw = Vec::new();
        assert!(entry.raw().read_to_end(&mut raw).is_ok());
        assert_eq!(raw.len() as u64, entry.header.record_len());
        if image.apply(&entry).is_ok() {
            assert!(entry.verify().is_ok());
            let Some(size) = image.page_size() else {
                panic!("a record has a page size");
            };
            let sum = scan_checksum(image.file(), size, image.page_count()).ok();
            assert_eq!(sum, Some(entry.header.post_checksum));
        }
    }
    let _ = reader.head();
    let _ = reader.find_checksum(Checksum(1));
    let _ = reader.bytes_after(Txid(1));
    let _ = go_on(&disk);
}

/// Opens the log for writing and appends a record, which must then be there.
fn go_on(disk: &FaultStorage) -> Result<()> {
    let mut log = Log::open(Arc::new(disk.clone()))?;
    log.refresh()?;
    if log.prepared()?.is_some() {
        log.publish_prepared()?;
    }
    log.drop_tail()?;
    let head = *log.head();
    let mut record = log.begin(Draft {
        whole: true,
        timeline: head.pos.timeline,
        ..Draft::new(PageSize::MIN, 1, 1)
    })?;
    record.patch(1, None, &[5; 512])?;
    // The clock and the transaction numbers of a made-up log may be at their end.
    if head.time_us == u64::MAX || head.pos.txid.0 == u64::MAX {
        return record.abort();
    }
    let header = record.commit()?;
    let mut reader = Reader::open(Arc::new(disk.clone()))?;
    let found = reader.seek(head.pos.txid).and_then(|()| reader.next());
    let Ok(Some(entry)) = found else {
        panic!("the new record is not there: {found:?}");
    };
    assert_eq!(entry.header, header);
    assert!(entry.verify().is_ok());
    Ok(())
}

/// The structures with a magic and a checksum: meta, sync mark, cut, segment header.
pub fn meta(data: &[u8]) {
    let signed = structure::<64>(data, b"MYCELMET");
    for bytes in [data, &signed] {
        if let Ok(meta) = Meta::decode(bytes) {
            assert_eq!(meta.encode(), bytes[..64]);
        }
    }
    let signed = structure::<64>(data, b"MYCELSYN");
    for bytes in [data, &signed] {
        if let Ok(mark) = SyncMark::decode(bytes) {
            assert_eq!(mark.encode(), bytes[..64]);
        }
    }
    let signed = structure::<64>(data, b"MYCELCUT");
    for bytes in [data, &signed] {
        if let Ok(cut) = Cut::decode(bytes) {
            assert_eq!(cut.encode(), bytes[..64]);
        }
    }
    let signed = structure::<64>(data, b"MYCELSEG");
    for bytes in [data, &signed] {
        if let Ok(header) = SegmentHeader::decode(bytes) {
            assert_eq!(header.encode(), bytes[..64]);
            assert_eq!(
                parse_segment_name(&segment_name(header.first())),
                Some(header.first())
            );
        }
    }
}

/// A sealed segment, a snapshot or a merged segment, alone in a log: as it is, and with the checksums of header, root and footer made to fit.
pub fn sealed(data: &[u8]) {
    for magic in [b"MYCELSLD", b"MYCELSNP", b"MYCELMRG"] {
        read_sealed(data, magic);
        let mut signed = data.to_vec();
        sign_sealed(&mut signed, magic);
        read_sealed(&signed, magic);
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..at + 8).and_then(|b| b.first_chunk());
    bytes.map_or(0, |b| u64::from_le_bytes(*b))
}

fn sign_sealed(bytes: &mut [u8], magic: &[u8; 8]) {
    let length = bytes.len();
    if length < 64 + 192 {
        return;
    }
    bytes[..8].copy_from_slice(magic);
    sign(&mut bytes[..64]);
    let (front, footer) = bytes.split_at_mut(length - 192);
    let from = number(footer, 120).min(front.len() as u64) as usize;
    footer[120..128].copy_from_slice(&(from as u64).to_le_bytes());
    footer[128..132].copy_from_slice(&((front.len() - from) as u32).to_le_bytes());
    footer[136..144].copy_from_slice(&xxh3_64(&front[from..]).to_le_bytes());
    footer[144..152].copy_from_slice(&(length as u64).to_le_bytes());
    let hash = xxh3_64(&[&front[..64], &footer[..184]].concat());
    footer[184..].copy_from_slice(&hash.to_le_bytes());
}

fn read_sealed(data: &[u8], magic: &[u8; 8]) {
    let disk = FaultStorage::new();
    let meta = Meta {
        id: DatabaseId(ID),
        created_us: 1,
    };
    disk.put("meta", meta.encode().to_vec());
    let footer = data
        .get(data.len().saturating_sub(192)..)
        .unwrap_or_default();
    let (first, last) = (Txid(number(footer, 16)), Txid(number(footer, 24)));
    let name = match magic {
        b"MYCELSLD" => sealed_name(first, last),
        b"MYCELMRG" => merged_name(first, last),
        _ => snapshot_name(first),
    };
    disk.put(&name, data.to_vec());
    let good = verify_file(&disk, &name).is_ok();
    let storage: Arc<dyn Storage> = Arc::new(disk.clone());
    let (Ok(mut reader), Ok(archive)) = (Reader::open(storage.clone()), Archive::open(storage))
    else {
        panic!("the meta file is good");
    };
    for _ in 0..64 {
        let Ok(Some(entry)) = reader.next() else {
            break;
        };
        let verified = entry.verify();
        assert!(verified.is_ok() || !good, "{verified:?}");
    }
    let _ = reader.head();
    let _ = reader.find(last);
    let _ = archive.find_time(number(footer, 48));
    for txid in [first, last] {
        let Ok(mut past) = archive.as_of(txid) else {
            continue;
        };
        let mut page = vec![0; past.page_size().bytes()];
        for pgno in 1..=past.page_count().min(20) {
            let _ = past.read_page(pgno, &mut page);
        }
    }
    if let Ok(log) = Log::open(Arc::new(disk)) {
        let _ = log.head();
    }
}

/// Texts: positions, checksums, ids, segment names.
pub fn pos_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(pos) = text.parse::<Pos>() {
        assert_eq!(pos.to_string().parse(), Ok(pos));
    }
    if let Ok(id) = text.parse::<DatabaseId>() {
        assert_eq!(id.to_string(), text.to_ascii_lowercase());
    }
    if let Ok(checksum) = text.parse::<Checksum>() {
        assert_eq!(checksum.to_string(), text.to_ascii_lowercase());
    }
    if let Some(first) = parse_segment_name(text) {
        assert_eq!(segment_name(first), text);
    }
    if let Some((first, last)) = parse_sealed_name(text) {
        assert_eq!(sealed_name(first, last), text);
    }
    if let Some((first, last)) = parse_merged_name(text) {
        assert_eq!(merged_name(first, last), text);
    }
    if let Some(txid) = parse_snapshot_name(text) {
        assert_eq!(snapshot_name(txid), text);
    }
}
