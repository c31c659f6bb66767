//! The two levels of a block file's index: the root lists index blocks, an index block lists blocks.

use crate::bytes::{Take, put_varint};
use crate::error::FormatError;
use crate::pos::{PageSize, Pgno, Txid};
use crate::sealed::format::BlockRef;
use crate::sealed::limit;
use crate::sealed::patches::Key;
use crate::sealed::records::RECORDS_PER_BLOCK;

/// An index block ends with the entry that makes it this long, in bytes.
pub(crate) const INDEX_BLOCK_BYTES: usize = limit(32 * 1024, 60);

const OUT: FormatError = FormatError::Invalid("an index entry out of bounds");

fn put_key(out: &mut Vec<u8>, base: Txid, key: Key) {
    put_varint(out, u64::from(key.0));
    put_varint(out, key.1.0 - base.0);
}

fn key(take: &mut Take<'_>, base: Txid) -> Result<Key, FormatError> {
    let pgno = take.varint32()?;
    let txid = base.0.checked_add(take.varint()?).ok_or(OUT)?;
    Ok((pgno, Txid(txid)))
}

/// All but the offset, which follows from the block before.
fn put_block(out: &mut Vec<u8>, block: &BlockRef) {
    put_varint(out, u64::from(block.stored));
    put_varint(out, u64::from(block.raw));
    out.extend_from_slice(&block.hash.to_le_bytes());
}

fn block(take: &mut Take<'_>, at: &mut u64) -> Result<BlockRef, FormatError> {
    let block = BlockRef {
        offset: *at,
        stored: take.varint32()?,
        raw: take.varint32()?,
        hash: take.u64()?,
    };
    *at = at.checked_add(u64::from(block.stored)).ok_or(OUT)?;
    Ok(block)
}

/// Bounds what the number at the front of a list makes the reader allocate: each entry takes at least one byte.
fn count(take: &mut Take<'_>, bytes: usize) -> Result<usize, FormatError> {
    let count = take.varint()?;
    if count > bytes as u64 {
        return Err(OUT);
    }
    Ok(count as usize)
}

/// A patch block as its index block lists it.
#[derive(Clone, Debug)]
pub(crate) struct PatchBlockRef {
    pub(crate) first: Key,
    pub(crate) block: BlockRef,
    /// The place of its page numbers in [`PatchIndex::pages`].
    pages: (u32, u32),
}

/// An index block of patch blocks.
#[derive(Debug, Default)]
pub(crate) struct PatchIndex {
    pub(crate) blocks: Vec<PatchBlockRef>,
    pages: Vec<Pgno>,
}

/// Collects the entries of a [`PatchIndex`].
#[derive(Default)]
pub(crate) struct PatchIndexBuilder {
    bytes: Vec<u8>,
    pub(crate) first: Option<Key>,
    pub(crate) count: u64,
}

impl PatchIndexBuilder {
    pub(crate) fn push(&mut self, base: Txid, first: Key, block: &BlockRef, pages: &[Pgno]) {
        if self.first.is_none() {
            self.first = Some(first);
            put_varint(&mut self.bytes, block.offset);
        }
        self.count += 1;
        put_key(&mut self.bytes, base, first);
        put_block(&mut self.bytes, block);
        put_varint(&mut self.bytes, pages.len() as u64 - 1);
        let mut last = first.0;
        for pgno in pages.iter().skip(1) {
            put_varint(&mut self.bytes, u64::from(pgno - last));
            last = *pgno;
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() >= INDEX_BLOCK_BYTES
    }

    /// The index block's bytes; begins the next one.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        self.first = None;
        self.count = 0;
        std::mem::take(&mut self.bytes)
    }
}

impl PatchIndex {
    pub(crate) fn cost(&self) -> usize {
        self.blocks.capacity() * size_of::<PatchBlockRef>() + self.pages.capacity() * 4
    }

    pub(crate) fn decode(raw: &[u8], base: Txid) -> Result<PatchIndex, FormatError> {
        let mut take = Take::new(raw);
        let mut index = PatchIndex::default();
        let mut at = take.varint()?;
        let mut last = None;
        while !take.is_empty() {
            let first = key(&mut take, base)?;
            if last.is_some_and(|last| first < last) {
                return Err(FormatError::Invalid("index entries not in order"));
            }
            last = Some(first);
            let block = block(&mut take, &mut at)?;
            let from = index.pages.len() as u32;
            let mut pgno = first.0;
            index.pages.push(pgno);
            for _ in 0..count(&mut take, raw.len())? {
                let gap = take.varint32()?;
                pgno = pgno.checked_add(gap).filter(|_| gap > 0).ok_or(OUT)?;
                index.pages.push(pgno);
            }
            index.blocks.push(PatchBlockRef {
                first,
                block,
                pages: (from, index.pages.len() as u32),
            });
        }
        Ok(index)
    }

    /// The pages in a block, ascending.
    pub(crate) fn pages(&self, block: &PatchBlockRef) -> &[Pgno] {
        let (from, to) = block.pages;
        self.pages
            .get(from as usize..to as usize)
            .unwrap_or_default()
    }
}

/// A record block as its index block lists it.
#[derive(Clone, Debug)]
pub(crate) struct RecordBlockRef {
    pub(crate) block: BlockRef,
    pub(crate) first: Txid,
    pub(crate) time_us: u64,
    /// Where its first record begins in the raw segment.
    pub(crate) at: u64,
}

/// An index block of record blocks.
#[derive(Debug, Default)]
pub(crate) struct RecordIndex {
    pub(crate) blocks: Vec<RecordBlockRef>,
}

/// Collects the entries of a [`RecordIndex`].
#[derive(Default)]
pub(crate) struct RecordIndexBuilder {
    bytes: Vec<u8>,
    last: Option<RecordBlockRef>,
    pub(crate) first: Option<RecordBlockRef>,
    pub(crate) count: u64,
}

impl RecordIndexBuilder {
    /// Adds the next block; with `gaps`, blocks say with which transaction they begin.
    pub(crate) fn push(&mut self, entry: &RecordBlockRef, gaps: bool) {
        if self.first.is_none() {
            self.first = Some(entry.clone());
            put_varint(&mut self.bytes, entry.block.offset);
        }
        let (time_us, at) = self.last.as_ref().map_or((0, 0), |e| (e.time_us, e.at));
        self.count += 1;
        put_block(&mut self.bytes, &entry.block);
        put_varint(&mut self.bytes, entry.time_us - time_us);
        put_varint(&mut self.bytes, entry.at - at);
        if gaps {
            let first = self.first.as_ref().map_or(entry.first, |e| e.first);
            put_varint(&mut self.bytes, entry.first.0 - first.0);
        }
        self.last = Some(entry.clone());
    }

    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() >= INDEX_BLOCK_BYTES
    }

    pub(crate) fn take(&mut self) -> Vec<u8> {
        self.first = None;
        self.last = None;
        self.count = 0;
        std::mem::take(&mut self.bytes)
    }
}

impl RecordIndex {
    pub(crate) fn cost(&self) -> usize {
        self.blocks.capacity() * size_of::<RecordBlockRef>()
    }

    /// Reads an index block back whose first record is `first`.
    pub(crate) fn decode(raw: &[u8], first: Txid, gaps: bool) -> Result<RecordIndex, FormatError> {
        let mut take = Take::new(raw);
        let mut index = RecordIndex::default();
        let mut offset = take.varint()?;
        let (mut txid, mut time_us, mut at) = (first.0, 0u64, 0u64);
        while !take.is_empty() {
            let block = block(&mut take, &mut offset)?;
            time_us = time_us.checked_add(take.varint()?).ok_or(OUT)?;
            at = at.checked_add(take.varint()?).ok_or(OUT)?;
            if gaps {
                txid = first.0.checked_add(take.varint()?).ok_or(OUT)?;
            }
            index.blocks.push(RecordBlockRef {
                block,
                first: Txid(txid),
                time_us,
                at,
            });
            txid = txid.checked_add(RECORDS_PER_BLOCK as u64).ok_or(OUT)?;
        }
        if !index.blocks.is_sorted_by(|a, b| a.first < b.first) {
            return Err(FormatError::Invalid("index entries not in order"));
        }
        Ok(index)
    }
}

/// A run of transactions with one page size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) first: Txid,
    pub(crate) page_size: PageSize,
    /// Its index blocks: the smallest key in each, and where it is.
    pub(crate) index: Vec<(Key, BlockRef)>,
}

/// An index block of records, as the root lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordIndexRef {
    pub(crate) block: BlockRef,
    pub(crate) first: Txid,
    pub(crate) time_us: u64,
    pub(crate) at: u64,
}

/// The top of the index, in memory while the file is open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Root {
    /// Ascending, at least one.
    pub(crate) sections: Vec<Section>,
    /// Ascending; none in a snapshot.
    pub(crate) records: Vec<RecordIndexRef>,
}

impl Root {
    pub(crate) fn encode(&self, base: Txid) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, self.sections.len() as u64);
        for section in &self.sections {
            put_varint(&mut out, section.first.0 - base.0);
            put_varint(&mut out, u64::from(section.page_size.get()));
            put_varint(&mut out, section.index.len() as u64);
            for (key, block) in &section.index {
                put_key(&mut out, base, *key);
                put_varint(&mut out, block.offset);
                put_block(&mut out, block);
            }
        }
        put_varint(&mut out, self.records.len() as u64);
        for entry in &self.records {
            put_varint(&mut out, entry.first.0 - base.0);
            put_varint(&mut out, entry.time_us);
            put_varint(&mut out, entry.at);
            put_varint(&mut out, entry.block.offset);
            put_block(&mut out, &entry.block);
        }
        out
    }

    pub(crate) fn decode(raw: &[u8], base: Txid) -> Result<Root, FormatError> {
        let mut take = Take::new(raw);
        let mut root = Root::default();
        for _ in 0..count(&mut take, raw.len())? {
            let first = Txid(base.0.checked_add(take.varint()?).ok_or(OUT)?);
            let page_size = PageSize::new(take.varint32()?);
            let mut section = Section {
                first,
                page_size: page_size.ok_or(FormatError::Invalid("impossible page size"))?,
                index: Vec::new(),
            };
            for _ in 0..count(&mut take, raw.len())? {
                let key = key(&mut take, base)?;
                let mut at = take.varint()?;
                section.index.push((key, block(&mut take, &mut at)?));
            }
            root.sections.push(section);
        }
        for _ in 0..count(&mut take, raw.len())? {
            let first = Txid(base.0.checked_add(take.varint()?).ok_or(OUT)?);
            let (time_us, at) = (take.varint()?, take.varint()?);
            let mut offset = take.varint()?;
            root.records.push(RecordIndexRef {
                block: block(&mut take, &mut offset)?,
                first,
                time_us,
                at,
            });
        }
        if !take.is_empty() {
            return Err(FormatError::Invalid("bytes behind the root"));
        }
        let ordered = root.sections.is_sorted_by(|a, b| a.first < b.first)
            && root.records.is_sorted_by(|a, b| a.first < b.first);
        let starts = root.sections.first().is_some_and(|s| s.first == base)
            && root.records.first().is_none_or(|r| r.first >= base);
        if !ordered || !starts {
            return Err(FormatError::Invalid("index entries not in order"));
        }
        Ok(root)
    }

    /// The section that a transaction belongs to.
    pub(crate) fn section(&self, txid: Txid) -> Option<&Section> {
        let count = self.sections.partition_point(|s| s.first <= txid);
        self.sections.get(count.checked_sub(1)?)
    }
}
