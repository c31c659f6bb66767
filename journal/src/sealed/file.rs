//! A block file that is open for reading.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::entry::DAMAGE_HINT;
use crate::error::{Error, FormatError, Result};
use crate::pos::{DatabaseId, Pgno, Txid};
use crate::record::{RecordHeader, VERSION};
use crate::sealed::cache::{BlockCache, Cached};
use crate::sealed::format::{
    BlockRef, FOOTER_LEN, FileHeader, Footer, HEADER_LEN, Kind, TEMP_SUFFIX, merged_name,
    sealed_name, snapshot_name,
};
use crate::sealed::index::{PatchIndex, RecordBlockRef, RecordIndex, Root, Section};
use crate::sealed::overlay::Overlay;
use crate::sealed::patches::PatchBlock;
use crate::sealed::records::RecordBlock;
use crate::storage::{OpenMode, Storage, StorageFile, read_exact_at, read_up_to};

/// No block is longer when decompressed: [`PATCH_BLOCK_BYTES`](crate::sealed::patches::PATCH_BLOCK_BYTES), one patch and one sum.
const BLOCK_BYTES_MAX: u32 = 1024 * 1024;
/// No root is longer.
const ROOT_BYTES_MAX: u32 = 64 * 1024 * 1024;
/// Read at once from the file's end: the footer, and in most files the root.
const TAIL_BYTES: u64 = 8 * 1024;

/// An open sealed segment or snapshot: header, footer and root are known and good, blocks are read and checked when they are needed.
pub(crate) struct BlockFile {
    file: Box<dyn StorageFile>,
    pub(crate) name: Arc<str>,
    pub(crate) path: Arc<str>,
    pub(crate) header: FileHeader,
    pub(crate) footer: Footer,
    pub(crate) root: Root,
    /// Bytes in the file.
    pub(crate) size: u64,
    cache: Arc<BlockCache>,
    /// Tells it from every other file that this process has open.
    pub(crate) number: u64,
}

/// What a file knows of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Laid {
    /// All of it.
    Whole,
    /// The bytes that are not known come from before the file's first transaction.
    Older,
}

impl BlockFile {
    /// Opens a file; `None` if it is not there.
    pub(crate) fn open(
        storage: &dyn Storage,
        name: &str,
        kind: Kind,
        id: DatabaseId,
        cache: &Arc<BlockCache>,
    ) -> Result<Option<BlockFile>> {
        let path = storage.display(name);
        let io = |source| Error::io("reading a file of the log", path.clone(), source);
        let file = match storage.open(name, OpenMode::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io(source)),
        };
        let size = file.size().map_err(io)?;
        let (header, footer, tail) = ends(&*file, kind, size, &path)?;
        if header.id != id {
            return Err(Error::Corrupt {
                path,
                offset: 0,
                txid: None,
                what: format!(
                    "the file belongs to database {}, the log to {id}",
                    header.id
                ),
                hint: "a file was copied between logs: move it away",
            });
        }
        let named = match kind {
            Kind::Sealed => sealed_name(footer.first, footer.head.pos.txid),
            Kind::Merged => merged_name(footer.first, footer.head.pos.txid),
            Kind::Snapshot => snapshot_name(footer.first),
        };
        if name.strip_suffix(TEMP_SUFFIX).unwrap_or(name) != named {
            return Err(Error::Corrupt {
                path,
                offset: 0,
                txid: None,
                what: format!("the file is {named}"),
                hint: "the file was renamed: give it its name back",
            });
        }
        let mut opened = BlockFile {
            file,
            name: name.into(),
            path: path.into(),
            header,
            footer,
            root: Root::default(),
            size,
            cache: Arc::clone(cache),
            number: BlockCache::file_number(),
        };
        opened.root = opened.read_root(&tail)?;
        Ok(Some(opened))
    }

    /// Whether the name still leads to this file, and not to none or another one.
    pub(crate) fn is_still(&self, storage: &dyn Storage) -> Result<bool> {
        let io = |source| Error::io("reading a file of the log", self.path.to_string(), source);
        let file = match storage.open(&self.name, OpenMode::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(io(source)),
        };
        let mut bytes = [0; FOOTER_LEN];
        let length = read_up_to(&*file, &mut bytes, self.footer.root.end()).map_err(io)?;
        Ok(length == FOOTER_LEN && bytes == self.footer.encode(&self.header))
    }

    fn read_root(&self, tail: &[u8]) -> Result<Root> {
        let block = self.footer.root;
        let what = "root";
        if block.raw > ROOT_BYTES_MAX || block.stored > block.raw {
            return Err(self.corrupt(&block, None, FormatError::Invalid("an impossible root")));
        }
        // It ends where the footer begins.
        let in_tail = tail
            .len()
            .checked_sub(FOOTER_LEN + block.stored as usize)
            .and_then(|from| tail.get(from..tail.len() - FOOTER_LEN));
        let bytes = match in_tail {
            Some(bytes) => bytes.to_vec(),
            None => self.read_stored(&block)?,
        };
        self.unpack(&block, bytes, what, None).and_then(|raw| {
            Root::decode(&raw, self.footer.first).map_err(|what| self.corrupt(&block, None, what))
        })
    }

    /// The first transaction in the file, and the last one.
    pub(crate) fn range(&self) -> (Txid, Txid) {
        (self.footer.first, self.footer.head.pos.txid)
    }

    pub(crate) fn corrupt(
        &self,
        block: &BlockRef,
        txid: Option<Txid>,
        what: impl ToString,
    ) -> Error {
        Error::Corrupt {
            path: self.path.to_string(),
            offset: block.offset,
            txid,
            what: what.to_string(),
            hint: DAMAGE_HINT,
        }
    }

    fn read_stored(&self, block: &BlockRef) -> Result<Vec<u8>> {
        let mut bytes = vec![0; block.stored as usize];
        read_exact_at(&*self.file, &mut bytes, block.offset).map_err(|source| {
            if source.kind() == std::io::ErrorKind::UnexpectedEof {
                return self.corrupt(block, None, "the file ends within a block");
            }
            Error::io("reading a file of the log", self.path.to_string(), source)
        })?;
        Ok(bytes)
    }

    /// Checks a block's stored bytes and decompresses them.
    fn unpack(
        &self,
        block: &BlockRef,
        bytes: Vec<u8>,
        what: &'static str,
        txid: Option<Txid>,
    ) -> Result<Vec<u8>> {
        if xxh3_64(&bytes) != block.hash {
            return Err(self.corrupt(block, txid, FormatError::Hash(what)));
        }
        if block.stored == block.raw {
            return Ok(bytes);
        }
        match self.cache.decompress(&bytes, block.raw as usize) {
            Ok(raw) if raw.len() == block.raw as usize => Ok(raw),
            _ => Err(self.corrupt(block, txid, "a block that cannot be decompressed")),
        }
    }

    fn read(&self, block: &BlockRef, what: &'static str, txid: Option<Txid>) -> Result<Vec<u8>> {
        let inside = block.offset >= HEADER_LEN as u64 && block.end() <= self.footer.root.offset;
        if !inside || block.raw > BLOCK_BYTES_MAX || block.stored > block.raw {
            return Err(self.corrupt(block, txid, "an impossible block"));
        }
        let bytes = self.read_stored(block)?;
        self.unpack(block, bytes, what, txid)
    }

    /// A block of patches, from the file.
    pub(crate) fn read_patches(
        &self,
        section: &Section,
        block: &BlockRef,
        txid: Option<Txid>,
        keep: impl Fn(Txid) -> bool,
    ) -> Result<PatchBlock> {
        let raw = self.read(block, "patch block", txid)?;
        let long = self.gaps();
        PatchBlock::decode(&raw, self.footer.first, section.page_size, long, keep)
            .map_err(|what| self.corrupt(block, txid, what))
    }

    fn patches(&self, section: &Section, block: &BlockRef, txid: Txid) -> Result<Arc<PatchBlock>> {
        let place = (self.number, block.offset);
        if let Some(Cached::Patches(found)) = self.cache.get(place) {
            return Ok(found);
        }
        let decoded = Arc::new(self.read_patches(section, block, Some(txid), |_| true)?);
        self.cache.put(place, Cached::Patches(Arc::clone(&decoded)));
        Ok(decoded)
    }

    /// An index block of patch blocks.
    pub(crate) fn patch_index(&self, block: &BlockRef) -> Result<Arc<PatchIndex>> {
        let place = (self.number, block.offset);
        if let Some(Cached::PatchIndex(found)) = self.cache.get(place) {
            return Ok(found);
        }
        let raw = self.read(block, "index block", None)?;
        let index = PatchIndex::decode(&raw, self.footer.first)
            .map_err(|what| self.corrupt(block, None, what))?;
        let index = Arc::new(index);
        self.cache
            .put(place, Cached::PatchIndex(Arc::clone(&index)));
        Ok(index)
    }

    fn record_index(&self, number: usize) -> Result<Option<Arc<RecordIndex>>> {
        let Some(entry) = self.root.records.get(number) else {
            return Ok(None);
        };
        let block = &entry.block;
        let place = (self.number, block.offset);
        if let Some(Cached::RecordIndex(found)) = self.cache.get(place) {
            return Ok(Some(found));
        }
        let raw = self.read(block, "index block", None)?;
        let index = RecordIndex::decode(&raw, entry.first, self.gaps())
            .map_err(|what| self.corrupt(block, None, what))?;
        let index = Arc::new(index);
        self.cache
            .put(place, Cached::RecordIndex(Arc::clone(&index)));
        Ok(Some(index))
    }

    fn records(&self, entry: &RecordBlockRef) -> Result<Arc<RecordBlock>> {
        let place = (self.number, entry.block.offset);
        if let Some(Cached::Records(found)) = self.cache.get(place) {
            return Ok(found);
        }
        let raw = self.read(&entry.block, "record block", Some(entry.first))?;
        let records = RecordBlock::decode(&raw, entry.first, self.gaps())
            .map_err(|what| self.corrupt(&entry.block, Some(entry.first), what))?;
        let records = Arc::new(records);
        self.cache.put(place, Cached::Records(Arc::clone(&records)));
        Ok(records)
    }

    /// The record block for which `before` holds last: `before` says whether a block begins at or before what is looked for.
    pub(crate) fn record_block(
        &self,
        before: impl Fn(Txid, u64, u64) -> bool,
    ) -> Result<Option<(Arc<RecordBlock>, RecordBlockRef)>> {
        let roots = &self.root.records;
        let number = roots.partition_point(|e| before(e.first, e.time_us, e.at));
        let Some(number) = number.checked_sub(1) else {
            return Ok(None);
        };
        let Some(index) = self.record_index(number)? else {
            return Ok(None);
        };
        let count = index
            .blocks
            .partition_point(|e| before(e.first, e.time_us, e.at));
        let entry = count.checked_sub(1).and_then(|i| index.blocks.get(i));
        match entry {
            Some(entry) => Ok(Some((self.records(entry)?, entry.clone()))),
            None => Ok(None),
        }
    }

    /// The header of a record in this file, and where the record begins in the raw segment.
    pub(crate) fn record(&self, txid: Txid) -> Result<(RecordHeader, u64)> {
        let found = self.record_block(|first, _, _| first <= txid)?;
        let Some((block, entry)) = found else {
            return Err(self.missing(txid));
        };
        let index = block.headers.partition_point(|header| header.txid < txid);
        match (block.headers.get(index), block.starts.get(index)) {
            (Some(header), Some(start)) if header.txid == txid => {
                Ok((*header, entry.at.saturating_add(*start)))
            }
            _ => Err(self.missing(txid)),
        }
    }

    /// Whether the file has the states after some of its transactions only.
    pub(crate) fn gaps(&self) -> bool {
        self.header.kind == Kind::Merged
    }

    /// The header of the newest record that is not newer than `txid`; `None` if this file has none.
    pub(crate) fn record_before(&self, txid: Txid) -> Result<Option<RecordHeader>> {
        let Some((block, _)) = self.record_block(|first, _, _| first <= txid)? else {
            return Ok(None);
        };
        let count = block.headers.partition_point(|header| header.txid <= txid);
        let header = count.checked_sub(1).and_then(|i| block.headers.get(i));
        Ok(header.copied())
    }

    /// The oldest record that is newer than `txid`; `None` if this file has none.
    pub(crate) fn record_after(&self, txid: Txid) -> Result<Option<Txid>> {
        if txid >= self.range().1 {
            return Ok(None);
        }
        let Some((block, _)) = self.record_block(|first, _, _| first <= txid)? else {
            return Ok(self.root.records.first().map(|index| index.first));
        };
        let index = block.headers.partition_point(|header| header.txid <= txid);
        match block.headers.get(index) {
            Some(header) => Ok(Some(header.txid)),
            // The first of the next block.
            None => {
                let last = block.headers.last().map_or(txid, |header| header.txid);
                let mut after = None;
                self.each_record(|header| {
                    if after.is_none() && header.txid > last {
                        after = Some(header.txid);
                    }
                    Ok(())
                })?;
                Ok(after)
            }
        }
    }

    /// All record headers, in order.
    pub(crate) fn each_record(
        &self,
        mut work: impl FnMut(&RecordHeader) -> Result<()>,
    ) -> Result<()> {
        for number in 0..self.root.records.len() {
            let Some(index) = self.record_index(number)? else {
                continue;
            };
            for entry in &index.blocks {
                for header in &self.records(entry)?.headers {
                    work(header)?;
                }
            }
        }
        Ok(())
    }

    /// The number of records: of states that can be opened.
    pub(crate) fn record_count(&self) -> u64 {
        match self.header.kind {
            Kind::Sealed => self.footer.head.pos.txid.0 + 1 - self.footer.first.0,
            Kind::Merged => self.footer.segment_len,
            Kind::Snapshot => 1,
        }
    }

    fn missing(&self, txid: Txid) -> Error {
        self.corrupt(
            &self.footer.root,
            Some(txid),
            "the record is not in the index",
        )
    }

    /// The newest record of this file that is not younger than `time_us`.
    pub(crate) fn find_time(&self, time_us: u64) -> Result<Option<RecordHeader>> {
        let found = self.record_block(|_, time, _| time <= time_us)?;
        let Some((block, _)) = found else {
            return Ok(None);
        };
        let count = block.headers.partition_point(|h| h.time_us <= time_us);
        Ok(count
            .checked_sub(1)
            .and_then(|i| block.headers.get(i))
            .copied())
    }

    /// Lays what the transactions of this file after `floor` and up to `txid` say about a page under what is known of it.
    pub(crate) fn lay(
        &self,
        pgno: Pgno,
        txid: Txid,
        floor: Txid,
        overlay: &mut Overlay,
    ) -> Result<Laid> {
        let Some(section) = self.root.section(txid) else {
            return Ok(Laid::Older);
        };
        let key = (pgno, txid);
        let count = section.index.partition_point(|(first, _)| *first <= key);
        for (_, block) in section.index.iter().take(count).rev() {
            let index = self.patch_index(block)?;
            let count = index.blocks.partition_point(|block| block.first <= key);
            for block in index.blocks.iter().take(count).rev() {
                if index.pages(block).binary_search(&pgno).is_ok() {
                    let patches = self.patches(section, &block.block, txid)?;
                    if let Some(laid) = lay(&patches, key, floor, overlay) {
                        return Ok(laid);
                    }
                }
                if block.first.0 < pgno {
                    return Ok(Laid::Older);
                }
            }
        }
        Ok(Laid::Older)
    }

    /// All blocks of patches, with their sections, in order.
    pub(crate) fn each_patch_block(
        &self,
        section: &Section,
        mut work: impl FnMut(&BlockRef) -> Result<()>,
    ) -> Result<()> {
        for (_, block) in &section.index {
            let index = self.patch_index(block)?;
            for entry in &index.blocks {
                work(&entry.block)?;
            }
        }
        Ok(())
    }
}

/// As [`BlockFile::lay`] for one block; `None` if the block before may have more.
fn lay(block: &PatchBlock, key: (Pgno, Txid), floor: Txid, overlay: &mut Overlay) -> Option<Laid> {
    let count = block.entries.partition_point(|entry| entry.key() <= key);
    for entry in block.entries.iter().take(count).rev() {
        if entry.pgno != key.0 || entry.txid <= floor {
            return Some(Laid::Older);
        }
        let patch = block.patch(entry);
        overlay.fill(&patch);
        if overlay.is_whole() {
            return Some(Laid::Whole);
        }
        if entry.sum {
            return Some(Laid::Older);
        }
    }
    None
}

/// Reads header and footer; also returns the bytes at the end of the file.
fn ends(
    file: &dyn StorageFile,
    kind: Kind,
    size: u64,
    path: &str,
) -> Result<(FileHeader, Footer, Vec<u8>)> {
    let io = |source| Error::io("reading a file of the log", path.to_owned(), source);
    let bad = |offset, error| match error {
        FormatError::Version(found) => Error::Version {
            path: path.to_owned(),
            found,
            known: VERSION,
        },
        what => Error::Corrupt {
            path: path.to_owned(),
            offset,
            txid: None,
            what: what.to_string(),
            hint: DAMAGE_HINT,
        },
    };
    if size < (HEADER_LEN + FOOTER_LEN) as u64 {
        return Err(bad(0, FormatError::Short));
    }
    let mut bytes = [0; HEADER_LEN];
    read_exact_at(file, &mut bytes, 0).map_err(io)?;
    let header = FileHeader::decode(&bytes, kind).map_err(|error| bad(0, error))?;
    let length = size.min(TAIL_BYTES);
    let mut tail = vec![0; length as usize];
    read_exact_at(file, &mut tail, size - length).map_err(io)?;
    let at = size - FOOTER_LEN as u64;
    let footer = tail.last_chunk::<FOOTER_LEN>().ok_or(FormatError::Short);
    let footer = footer
        .and_then(|bytes| Footer::decode(bytes, &header))
        .map_err(|error| bad(at, error))?;
    if footer.root.end() != at {
        return Err(bad(at, FormatError::Invalid("the file has another length")));
    }
    Ok((header, footer, tail))
}
