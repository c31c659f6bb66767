//! The parsers of blocks on seeded bytes: what the checksums would keep from them.

use crate::pos::{PageSize, Txid};
use crate::record::RecordHeader;
use crate::sealed::index::{PatchIndex, RecordIndex, Root};
use crate::sealed::overlay::Overlay;
use crate::sealed::patches::{PatchBlock, PatchBlockBuilder};
use crate::sealed::records::{self, RecordBlock};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

const BASE: Txid = Txid(1000);

fn size(random: &mut Random) -> PageSize {
    PageSize::new(512 << random.below(3)).unwrap()
}

fn patch_block(bytes: &[u8], size: PageSize) {
    let Ok(block) = PatchBlock::decode(bytes, BASE, size, false, |_| true) else {
        return;
    };
    let mut again = PatchBlockBuilder::default();
    let mut last = None;
    let mut overlay = Overlay::new(size);
    for entry in &block.entries {
        assert!(last.is_none_or(|last| last <= entry.key()) && entry.txid >= BASE);
        last = Some(entry.key());
        let patch = block.patch(entry);
        assert_eq!(patch.pgno(), entry.pgno);
        overlay.put(&patch);
        overlay.fill(&patch);
        if !entry.sum {
            let stored = block.stored(entry);
            let parsed = crate::PatchRef::parse(stored, size);
            assert_eq!(parsed, Ok((patch, stored.len())));
        }
        again.push(BASE, entry.txid, entry.sum, &patch);
    }
    // Numbers may be written longer than they need; but they say the same.
    let mut written = Vec::new();
    again.finish(&mut written);
    let block_again = PatchBlock::decode(&written, BASE, size, false, |_| true).unwrap();
    assert_eq!(block.entries.len(), block_again.entries.len());
    let some = PatchBlock::decode(bytes, BASE, size, false, |txid| txid.0 % 2 == 0).unwrap();
    let even = block.entries.iter().filter(|e| e.txid.0 % 2 == 0);
    for (one, other) in even.zip(&some.entries) {
        assert_eq!(block.stored(one), some.stored(other));
    }
}

fn record_block(bytes: &[u8]) {
    let Ok(block) = RecordBlock::decode(bytes, BASE, false) else {
        return;
    };
    assert_eq!(block.starts.len(), block.headers.len() + 1);
    for header in &block.headers {
        assert_eq!(RecordHeader::decode(&header.encode()), Ok(*header));
    }
    let mut again = Vec::new();
    records::encode(&block.headers, false, &mut again);
    assert_eq!(
        RecordBlock::decode(&again, BASE, false).unwrap().headers,
        block.headers
    );
}

fn mutated(good: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..random.below(4) {
        let at = random.below(bytes.len() + 1);
        let rest = bytes.len() - at;
        match random.below(5) {
            0 if rest > 0 => bytes[at] ^= 1 << random.below(8),
            1 if rest > 0 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.next() as u8),
            _ => {
                bytes.drain(at..at + rest.min(random.below(9)));
            }
        }
    }
    bytes
}

/// A block of patches of a few pages, small enough that a mutation often hits something.
fn good_patches(random: &mut Random, size: PageSize) -> Vec<u8> {
    let mut block = PatchBlockBuilder::default();
    let mut stored = Vec::new();
    let old = vec![0x55; size.bytes()];
    for pgno in 1..4 {
        for txid in 0..3 {
            let mut new = old.clone();
            for _ in 0..=random.below(3) {
                let at = random.below(size.bytes());
                new[at] ^= 1 + random.below(200) as u8;
            }
            stored.clear();
            let old = (random.below(6) > 0).then_some(&old[..]);
            if crate::encode_patch(&mut stored, pgno * 3, old, &new) {
                let patch = crate::PatchRef::trusted(&stored);
                block.push(BASE, Txid(BASE.0 + txid * 2), false, &patch);
                if random.below(4) == 0 {
                    block.push(BASE, Txid(BASE.0 + txid * 2), true, &patch);
                }
            }
        }
    }
    let mut bytes = Vec::new();
    block.finish(&mut bytes);
    bytes
}

fn good_records(random: &mut Random) -> Vec<u8> {
    let mut header = RecordHeader {
        txid: BASE,
        time_us: 5,
        ..RecordHeader::default()
    };
    let mut headers = vec![header];
    for _ in 0..random.below(3) {
        header = RecordHeader {
            txid: header.txid.next(),
            pre_page_size: 512,
            time_us: header.time_us + random.next() % 1000,
            change_counter: random.next() as u32,
            ..header
        };
        headers.push(header);
    }
    let mut bytes = Vec::new();
    records::encode(&headers, false, &mut bytes);
    bytes
}

#[test]
fn no_bytes_upset_the_parsers_of_blocks() {
    for seed in 0..6000 {
        let mut random = Random(seed);
        let size = size(&mut random);
        let patches = good_patches(&mut random, size);
        patch_block(&patches, size);
        patch_block(&mutated(&patches, &mut random), size);
        let records = good_records(&mut random);
        record_block(&records);
        record_block(&mutated(&records, &mut random));
        let length = random.below(60);
        let mut noise: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
        if random.below(2) == 0 {
            noise.iter_mut().for_each(|byte| *byte &= 7);
        }
        patch_block(&noise, size);
        record_block(&noise);
        let _ = RecordIndex::decode(&noise, BASE, false);
        if let Ok(index) = PatchIndex::decode(&noise, BASE) {
            for block in &index.blocks {
                assert!(index.pages(block).is_sorted_by(|a, b| a < b));
            }
        }
        if let Ok(root) = Root::decode(&noise, BASE) {
            assert_eq!(Root::decode(&root.encode(BASE), BASE), Ok(root));
        }
    }
}
