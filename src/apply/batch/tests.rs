//! Batches out of a history in memory.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use mycelite_journal::{DatabaseId, Draft, FaultStorage, Log, OpenMode, PageSize, Reader, Storage};

use super::*;

/// An image in memory.
#[derive(Default)]
struct Memory(BTreeMap<u32, Vec<u8>>);

impl Pages for Memory {
    fn old(&mut self, pgno: u32, page: &mut [u8]) -> Result<()> {
        page.copy_from_slice(&self.0[&pgno]);
        Ok(())
    }

    fn put(&mut self, pgno: u32, page: &[u8]) -> Result<()> {
        self.0.insert(pgno, page.to_vec());
        Ok(())
    }
}

/// A history that changes few pages again and again, and cuts and grows; with the last image.
fn history(disk: &FaultStorage) -> (VecDeque<RecordEntry>, Memory) {
    let mut log = Log::create(Arc::new(disk.clone()), DatabaseId([1; 16]), 1).unwrap();
    let mut image = Memory::default();
    for round in 0..200_u32 {
        let count = 4 + (round * 7) % 5;
        let old = std::mem::take(&mut image.0);
        let mut record = log
            .begin(Draft::new(PageSize::MIN, count, round.into()))
            .unwrap();
        for pgno in 1..=count {
            let mut page = old.get(&pgno).cloned().unwrap_or_else(|| vec![7; 512]);
            page[(round as usize * 13 + pgno as usize) % 512] = round as u8 | 1;
            let before = old.get(&pgno);
            if before != Some(&page) {
                let before = before.map(|page| &page[..]);
                record.patch(pgno, before, &page).unwrap();
            }
            image.0.insert(pgno, page);
        }
        for (pgno, page) in old.range(count + 1..) {
            record.drop_page(*pgno, page).unwrap();
        }
        record.commit().unwrap();
    }
    let mut reader = Reader::open(Arc::new(disk.clone())).unwrap();
    let queue = std::iter::from_fn(|| reader.next().unwrap()).collect();
    (queue, image)
}

/// Applies all of `queue`; the number of batches.
fn apply(queue: &mut VecDeque<RecordEntry>, image: &mut Memory, bytes_max: u64) -> Result<usize> {
    let (mut state, mut batches) = (State::default(), 0);
    while let Some(batch) = Batch::build(state, queue, bytes_max, image)? {
        batch.each(image)?;
        image.0.split_off(&(batch.to.page_count + 1));
        state = batch.to;
        queue.drain(..batch.records);
        batches += 1;
    }
    Ok(batches)
}

#[test]
fn batches_of_any_size_lead_to_the_same_image() {
    for (pages, most) in [(1000, 2), (12, 200), (9, 200)] {
        let (mut queue, wanted) = history(&FaultStorage::new());
        let mut image = Memory::default();
        let batches = apply(&mut queue, &mut image, pages * 512).unwrap();
        assert!(image.0 == wanted.0, "{pages}");
        assert!(batches <= most, "{batches} batches of {pages} pages");
    }
}

#[test]
fn a_damaged_record_ends_the_batch_before_it() {
    let disk = FaultStorage::new();
    let (mut queue, _) = history(&disk);
    let bad = queue[100].clone();
    let file = disk.open(&bad.segment, OpenMode::Write).unwrap();
    file.write_at(&[0xee; 3], bad.offset + 140).unwrap();
    let mut image = Memory::default();
    let failed = apply(&mut queue, &mut image, 1 << 20).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Corrupt, "{failed}");
    assert_eq!(queue.front().unwrap().header.txid, bad.header.txid);
}
