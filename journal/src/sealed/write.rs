//! Writing a block file from front to back.

use xxhash_rust::xxh3::xxh3_64;
use zstd::bulk::Compressor;

use crate::cursor::Head;
use crate::error::{Error, Result};
use crate::pace::{Pace, worked};
use crate::patch::PatchRef;
use crate::pos::{PageSize, Pgno, Txid};
use crate::record::RecordHeader;
use crate::sealed::format::{BlockRef, FileHeader, Footer, HEADER_LEN, Kind};
use crate::sealed::index::{
    PatchIndexBuilder, RecordBlockRef, RecordIndexBuilder, RecordIndexRef, Root, Section,
};
use crate::sealed::limit;
use crate::sealed::overlay::Pile;
use crate::sealed::patches::PatchBlockBuilder;
use crate::sealed::records::{self, RECORDS_PER_BLOCK};
use crate::segment::{SEAL_LEN, SEGMENT_HEADER_LEN};
use crate::storage::{OpenMode, Storage, StorageFile};

/// Bytes collected before they are written to the file.
const BUFFER_BYTES_MAX: usize = limit(1024 * 1024, 2000);
/// Where more work no longer makes the file much smaller.
const LEVEL: i32 = 2;
/// A sum is worth its bytes once the patches before it have so many, and at least those of a page: a block has to be decompressed
/// whole for any of its patches.
const SUM_BYTES: usize = limit(32 * 1024, 512);
/// Patches of a page after which their sum is written, if it is short.
const SUM_PATCHES: u32 = limit(128, 3) as u32;

/// Writes a block file under a name of its own; [`BlockFileWriter::finish`] makes it complete and durable.
pub(crate) struct BlockFileWriter<'a> {
    pace: &'a dyn Pace,
    file: Box<dyn StorageFile>,
    path: String,
    header: FileHeader,
    base: Txid,
    buffer: Vec<u8>,
    /// Bytes in the file, without the buffer's.
    written: u64,
    compressor: Compressor<'static>,
    patches: PatchBlockBuilder,
    index: PatchIndexBuilder,
    sum: Option<Sum>,
    records: Vec<RecordHeader>,
    record_index: RecordIndexBuilder,
    /// Where the collected records begin in the raw segment.
    records_at: u64,
    root: Root,
    first_record: Option<RecordHeader>,
    last_record: Option<RecordHeader>,
    patch_count: u64,
    record_count: u64,
}

/// What the patches of one page add up to.
struct Sum {
    pgno: Pgno,
    pile: Pile,
    /// Patches since the last complete one or the last sum, and their bytes.
    patches: u32,
    bytes: usize,
    /// A sum should follow the next patch.
    wanted: bool,
}

impl<'a> BlockFileWriter<'a> {
    pub(crate) fn create(
        storage: &dyn Storage,
        name: &str,
        header: FileHeader,
        pace: &'a dyn Pace,
    ) -> Result<BlockFileWriter<'a>> {
        let path = storage.display(name);
        let failed = |source| Error::io("creating a file of the log", path.clone(), source);
        let file = storage.open(name, OpenMode::Create).map_err(failed)?;
        file.set_len(0).map_err(failed)?;
        let base = match header.kind {
            Kind::Sealed | Kind::Merged => header.pos.txid.next(),
            Kind::Snapshot => header.pos.txid,
        };
        Ok(BlockFileWriter {
            pace,
            file,
            header,
            base,
            buffer: header.encode().to_vec(),
            written: 0,
            compressor: Compressor::new(LEVEL).map_err(failed)?,
            patches: PatchBlockBuilder::default(),
            index: PatchIndexBuilder::default(),
            sum: None,
            records: Vec::new(),
            record_index: RecordIndexBuilder::default(),
            records_at: SEGMENT_HEADER_LEN as u64,
            root: Root::default(),
            first_record: None,
            last_record: None,
            patch_count: 0,
            record_count: 0,
            path,
        })
    }

    /// From here on come the patches of transactions from `first` on, whose pages have this size.
    pub(crate) fn section(&mut self, first: Txid, page_size: PageSize) -> Result<()> {
        self.end_section()?;
        self.root.sections.push(Section {
            first,
            page_size,
            index: Vec::new(),
        });
        Ok(())
    }

    /// Gives all of a page as it was before the section, before its first patch comes: the image after that is kept.
    pub(crate) fn page_before(&mut self, pgno: Pgno, page: &[u8]) {
        if let Some(size) = self.root.sections.last().map(|s| s.page_size) {
            let sum = self.sum.get_or_insert_with(|| Sum::new(size));
            sum.start(pgno);
            sum.pile.set(page);
            sum.wanted = true;
        }
    }

    /// Adds the next patch in the order of pages, then transactions.
    pub(crate) fn patch(&mut self, txid: Txid, patch: &PatchRef<'_>) -> Result<()> {
        self.patch_count += 1;
        self.push(txid, false, patch)?;
        let Some(size) = self.root.sections.last().map(|s| s.page_size) else {
            return Err(Error::Misuse("patches come after the start of a section"));
        };
        let sum = self.sum.get_or_insert_with(|| Sum::new(size));
        if sum.add(patch, size) {
            let stored = sum.encode();
            self.push(txid, true, &PatchRef::trusted(&stored))?;
        }
        Ok(())
    }

    fn push(&mut self, txid: Txid, sum: bool, patch: &PatchRef<'_>) -> Result<()> {
        self.patches.push(self.base, txid, sum, patch);
        if self.patches.is_full() {
            self.end_patch_block()?;
        }
        Ok(())
    }

    fn end_patch_block(&mut self) -> Result<()> {
        let Some(first) = self.patches.first() else {
            return Ok(());
        };
        let pages = self.patches.pages().to_vec();
        let mut raw = Vec::new();
        self.patches.finish(&mut raw);
        let block = self.block(&raw)?;
        self.index.push(self.base, first, &block, &pages);
        if self.index.is_full() {
            self.end_patch_index()?;
        }
        Ok(())
    }

    fn end_patch_index(&mut self) -> Result<()> {
        let Some(first) = self.index.first else {
            return Ok(());
        };
        let raw = self.index.take();
        let block = self.block(&raw)?;
        if let Some(section) = self.root.sections.last_mut() {
            section.index.push((first, block));
        }
        Ok(())
    }

    fn end_section(&mut self) -> Result<()> {
        self.sum = None;
        self.end_patch_block()?;
        self.end_patch_index()
    }

    /// Adds the next record; after all patches.
    pub(crate) fn record(&mut self, header: &RecordHeader) -> Result<()> {
        if !self.patches.is_empty() || self.index.first.is_some() {
            self.end_section()?;
        }
        let expected = self.last_record.map_or(self.base, |last| last.txid.next());
        if header.txid != expected && !(self.gaps() && header.txid > expected) {
            return Err(Error::Misuse("records must come one after the other"));
        }
        self.record_count += 1;
        self.first_record.get_or_insert(*header);
        self.last_record = Some(*header);
        self.records.push(*header);
        if self.records.len() == RECORDS_PER_BLOCK {
            self.end_record_block()?;
        }
        Ok(())
    }

    fn end_record_block(&mut self) -> Result<()> {
        let Some(first) = self.records.first().copied() else {
            return Ok(());
        };
        let mut raw = Vec::new();
        records::encode(&self.records, self.gaps(), &mut raw);
        let block = self.block(&raw)?;
        let entry = RecordBlockRef {
            block,
            first: first.txid,
            time_us: first.time_us,
            at: self.records_at,
        };
        self.record_index.push(&entry, self.gaps());
        let bytes: u64 = self.records.iter().map(RecordHeader::record_len).sum();
        self.records_at += bytes;
        self.records.clear();
        if self.record_index.is_full() {
            self.end_record_index()?;
        }
        Ok(())
    }

    fn end_record_index(&mut self) -> Result<()> {
        let Some(first) = self.record_index.first.clone() else {
            return Ok(());
        };
        let raw = self.record_index.take();
        let block = self.block(&raw)?;
        self.root.records.push(RecordIndexRef {
            block,
            first: first.first,
            time_us: first.time_us,
            at: first.at,
        });
        Ok(())
    }

    /// Whether its records stand for those that were merged into them.
    fn gaps(&self) -> bool {
        self.header.kind == Kind::Merged
    }

    /// Ends a sealed or merged segment: its state is that after the last record.
    pub(crate) fn finish_sealed(mut self) -> Result<u64> {
        self.end_section()?;
        self.end_record_block()?;
        self.end_record_index()?;
        let (Some(first), Some(last)) = (self.first_record, self.last_record) else {
            return Err(Error::Misuse("a sealed segment has at least one record"));
        };
        let footer = Footer {
            first: self.base,
            head: Head::after(&last),
            first_time_us: first.time_us,
            pre_page_size: first.pre_page_size,
            pre_page_count: first.pre_page_count,
            segment_len: match self.gaps() {
                true => self.record_count,
                false => self.records_at + SEAL_LEN as u64,
            },
            patches: self.patch_count,
            root: BlockRef::default(),
        };
        self.finish(footer)
    }

    /// Ends a snapshot of the state `head`.
    pub(crate) fn finish_snapshot(mut self, head: Head) -> Result<u64> {
        self.end_section()?;
        let footer = Footer {
            first: head.pos.txid,
            head,
            first_time_us: head.time_us,
            pre_page_size: 0,
            pre_page_count: 0,
            segment_len: 0,
            patches: self.patch_count,
            root: BlockRef::default(),
        };
        self.finish(footer)
    }

    /// Writes root and footer, and puts all of it on the disk. Returns the file's length in bytes.
    fn finish(&mut self, mut footer: Footer) -> Result<u64> {
        let root = self.root.encode(self.base);
        footer.root = self.block(&root)?;
        let footer = footer.encode(&self.header);
        self.buffer.extend_from_slice(&footer);
        self.flush()?;
        self.file
            .sync()
            .map_err(|source| Error::io("syncing a file of the log", self.path.clone(), source))?;
        Ok(self.written)
    }

    /// Appends a block, compressed if that makes it shorter.
    fn block(&mut self, raw: &[u8]) -> Result<BlockRef> {
        let compressed = self.compressor.compress(raw).map_err(|source| {
            Error::io("compressing a block of the log", self.path.clone(), source)
        })?;
        let bytes = if compressed.len() < raw.len() {
            &compressed
        } else {
            raw
        };
        let block = BlockRef {
            offset: self.written + self.buffer.len() as u64,
            // Blocks are bounded far below 4 GiB.
            stored: bytes.len() as u32,
            raw: raw.len() as u32,
            hash: xxh3_64(bytes),
        };
        self.buffer.extend_from_slice(bytes);
        worked(self.pace, raw.len() as u64)?;
        if self.buffer.len() >= BUFFER_BYTES_MAX {
            self.flush()?;
        }
        Ok(block)
    }

    fn flush(&mut self) -> Result<()> {
        self.file
            .write_at(&self.buffer, self.written)
            .map_err(|source| Error::io("writing a file of the log", self.path.clone(), source))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl Sum {
    fn new(size: PageSize) -> Sum {
        Sum {
            pgno: 0,
            pile: Pile::new(size),
            patches: 0,
            bytes: 0,
            wanted: false,
        }
    }

    fn start(&mut self, pgno: Pgno) {
        self.pgno = pgno;
        self.pile.clear();
        self.patches = 0;
        self.bytes = 0;
        self.wanted = false;
    }

    /// Adds the next patch. Returns whether a sum should follow it.
    fn add(&mut self, patch: &PatchRef<'_>, size: PageSize) -> bool {
        if patch.pgno() != self.pgno {
            self.start(patch.pgno());
        }
        self.pile.put(patch);
        if patch.is_complete() {
            self.patches = 0;
            self.bytes = 0;
            return false;
        }
        self.patches += 1;
        self.bytes += patch.stored_len();
        self.wanted
            || self.bytes >= size.bytes().max(SUM_BYTES)
            || self.patches.is_multiple_of(SUM_PATCHES)
                && self.pile.laid().encoded_len_max() <= self.bytes
    }

    /// The sum in stored form; begins to count anew.
    fn encode(&mut self) -> Vec<u8> {
        self.wanted = false;
        self.patches = 0;
        self.bytes = 0;
        let mut stored = Vec::new();
        self.pile.laid().encode(self.pgno, &mut stored);
        stored
    }
}

const _: () = assert!(HEADER_LEN == SEGMENT_HEADER_LEN);
