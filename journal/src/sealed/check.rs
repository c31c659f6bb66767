//! Proving a block file from its bytes.

use std::ops::Range;
use std::sync::Arc;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::archive::Archive;
use crate::cursor::Cursor;
use crate::error::{Error, Result};
use crate::meta::Meta;
use crate::pace::{FullSpeed, Pace, worked};
use crate::patch::PatchRef;
use crate::pos::{Checksum, page_checksum};
use crate::record::{HEADER_LEN, TRAILER_LEN, Trailer};
use crate::sealed::ahead::ReadAhead;
use crate::sealed::cache::BlockCache;
use crate::sealed::file::BlockFile;
use crate::sealed::format::{
    BlockRef, Kind, parse_merged_name, parse_sealed_name, parse_snapshot_name,
};
use crate::sealed::index::Section;
use crate::sealed::limit;
use crate::sealed::overlay::{Overlay, Pile};
use crate::sealed::patches::{Key, PatchBlock, PatchEntry};
use crate::sealed::prove;
use crate::sealed::seal::Records;
use crate::sealed::view::RawView;
use crate::segment::{SEAL_LEN, SEGMENT_HEADER_LEN, Seal, Segment, SegmentHeader};
use crate::storage::{Storage, StorageFile};

/// Bytes hashed at once.
const CHUNK: usize = limit(256 * 1024, 700);
/// Memory for index and record blocks.
const CACHE_BYTES: usize = 2 * 1024 * 1024;
const HINT: &str = "nothing was removed; please report this, with the log if you can";

/// Proves a sealed segment or a snapshot from its bytes: reads all of it; each record against its hashes, the index, and a
/// snapshot's pages against the checksum of the database.
///
/// ```
/// # use std::sync::Arc;
/// # use mycelite_journal::*;
/// # let dir = tempfile::tempdir()?;
/// # let storage: Arc<dyn Storage> = Arc::new(FileStorage::new(dir.path()));
/// # let mut log = Log::create(storage.clone(), DatabaseId([7; 16]), 0)?;
/// # let mut record = log.begin(Draft::new(PageSize::MIN, 1, 1))?;
/// # record.patch(1, None, &[42; 512])?;
/// # record.commit()?;
/// # Snapshot::write(&Archive::open(storage.clone())?, Txid(1))?;
/// for name in storage.list()? {
///     if parse_sealed_name(&name).is_some() || parse_snapshot_name(&name).is_some() {
///         verify_file(&*storage, &name)?;
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Error::Corrupt`] for any damage; [`Error::Misuse`] if the name is not that of such a file; [`Error::NotFound`],
/// [`Error::Version`], [`Error::Io`].
pub fn verify_file(storage: &dyn Storage, name: &str) -> Result<()> {
    let kind = if parse_sealed_name(name).is_some() {
        Kind::Sealed
    } else if parse_merged_name(name).is_some() {
        Kind::Merged
    } else if parse_snapshot_name(name).is_some() {
        Kind::Snapshot
    } else {
        return Err(Error::Misuse("not a sealed segment or a snapshot"));
    };
    let id = Meta::read(storage)?.id;
    let cache = BlockCache::new(CACHE_BYTES);
    let Some(file) = BlockFile::open(storage, name, kind, id, &cache)? else {
        return Err(Error::NotFound {
            what: format!("{}: there is no such file", storage.display(name)),
            hint: "it may have been removed meanwhile",
        });
    };
    if kind == Kind::Snapshot {
        return snapshot(&file, &FullSpeed);
    }
    blocks(&file, &FullSpeed, &mut |_, _| Ok(()))?;
    if kind == Kind::Merged {
        // Its pages are proved together with those before it: see `verify_states`.
        return file.each_record(|_| Ok(()));
    }
    let mut records = Records(Cursor::at_start(Segment::of_sealed(Arc::new(RawView::of(
        Arc::new(file),
    )))));
    while let Some(entry) = records.next()? {
        entry.verify()?;
    }
    Ok(())
}

/// Proves every state of a sealed or merged segment: that its pages, put together from this file and those before it, have the
/// checksum that its record says. Nothing is written.
///
/// # Errors
/// As [`verify_file`]; [`Error::NotFound`] if what the states build on is gone.
pub fn verify_states(archive: &Archive, name: &str) -> Result<()> {
    let kind = match parse_merged_name(name) {
        Some(_) => Kind::Merged,
        None => Kind::Sealed,
    };
    match archive.file(name, kind)? {
        Some(file) => prove::states(archive, &file, &FullSpeed),
        None => Err(Error::NotFound {
            what: format!("{}: there is no such file", archive.storage().display(name)),
            hint: "it may have been removed meanwhile",
        }),
    }
}

/// Reads a snapshot's blocks, as [`blocks`] does, and proves its pages by the database's checksum.
pub(crate) fn snapshot(file: &BlockFile, pace: &dyn Pace) -> Result<()> {
    let mut sum = Checksum(0);
    for section in &file.root.sections {
        let mut page = Overlay::new(section.page_size);
        blocks_of(file, section, pace, &mut |entry, stored| {
            page.clear();
            page.fill(&PatchRef::trusted(stored));
            if page.is_whole() {
                sum ^= page_checksum(entry.pgno, page.page());
            }
            Ok(())
        })?;
    }
    let expected = file.footer.head.pos.checksum;
    if sum == expected {
        return Ok(());
    }
    let what = format!("its pages have the checksum {sum}, the header says {expected}");
    Err(file.corrupt(&file.footer.root, Some(file.range().1), what))
}

/// Checks that a sealed segment is what a raw one says, byte for byte, and that its index and sums are right. `raw` reads the raw
/// segment's file; what of it is in memory already has to fit the records' hashes, as it is now.
///
/// Each byte of the raw one is compared with what the sealed one gives for it: what is not of a body in the order of records, the bodies patch by
/// patch in the order of pages, in which the patches of each record are in the order that they have in its body.
pub(crate) fn against(file: &BlockFile, raw: &ReadAhead, pace: &dyn Pace) -> Result<()> {
    let mut bodies = Bodies {
        file,
        raw,
        rest: Vec::new(),
        spare: Vec::new(),
    };
    bodies.compare_all_else()?;
    blocks(file, pace, &mut |entry, stored| {
        bodies.compare(entry, stored)
    })?;
    bodies.finish()
}

/// The bodies of a segment's records, while they are compared.
struct Bodies<'a> {
    file: &'a BlockFile,
    raw: &'a ReadAhead,
    /// What is still to be compared of each record's body, as bytes of the raw segment.
    rest: Vec<Range<u64>>,
    spare: Vec<u8>,
}

impl Bodies<'_> {
    /// Compares headers, trailers and seal, and each body with the hash in its header.
    fn compare_all_else(&mut self) -> Result<()> {
        let file = self.file;
        let header = SegmentHeader {
            id: file.header.id,
            follows: file.header.pos,
        };
        self.same(0, &header.encode())?;
        let mut at = SEGMENT_HEADER_LEN as u64;
        file.each_record(|record| {
            let stored = record.encode();
            self.same(at, &stored)?;
            let start = at + HEADER_LEN as u64;
            let end = start + record.body_len;
            if self.hash(start, end)? != record.body_hash {
                return Err(differs(file, start));
            }
            self.same(end, &Trailer::of_stored(record, &stored).encode())?;
            self.rest.push(start..end);
            at = end + TRAILER_LEN as u64;
            Ok(())
        })?;
        let seal = Seal {
            next: file.footer.head.pos.txid.next(),
            segment_len: file.footer.segment_len,
        };
        self.same(at, &seal.encode(&header))?;
        let size = self.raw.size().map_err(|source| self.failed(source))?;
        if size != file.footer.segment_len || size != at + SEAL_LEN as u64 {
            return Err(differs(file, size));
        }
        Ok(())
    }

    /// Compares the next patch of a record.
    fn compare(&mut self, entry: &PatchEntry, stored: &[u8]) -> Result<()> {
        let number = entry.txid.0.checked_sub(self.file.range().0.0);
        let rest = number.and_then(|number| self.rest.get_mut(number as usize));
        let Some(rest) = rest else {
            return Err(differs(self.file, 0));
        };
        let at = rest.start;
        rest.start += stored.len() as u64;
        if rest.start > rest.end {
            return Err(differs(self.file, at));
        }
        self.same(at, stored)
    }

    fn finish(&self) -> Result<()> {
        match self.rest.iter().find(|rest| !rest.is_empty()) {
            Some(rest) => Err(differs(self.file, rest.start)),
            None => Ok(()),
        }
    }

    /// Compares with what the raw segment has at `at`.
    fn same(&mut self, at: u64, expected: &[u8]) -> Result<()> {
        let length = expected.len();
        let raw = self
            .raw
            .with(at, length, &mut self.spare, |raw| raw == expected);
        match raw {
            Ok(true) => Ok(()),
            Ok(false) => Err(differs(self.file, at)),
            Err(source) => Err(self.failed(source)),
        }
    }

    /// The XXH3-64 of a part of the raw segment.
    fn hash(&mut self, mut at: u64, end: u64) -> Result<u64> {
        if end - at <= CHUNK as u64 {
            let length = (end - at) as usize;
            return (self.raw.with(at, length, &mut self.spare, xxh3_64))
                .map_err(|source| self.failed(source));
        }
        let mut hash = Xxh3::new();
        while at < end {
            let length = (end - at).min(CHUNK as u64) as usize;
            (self.raw)
                .with(at, length, &mut self.spare, |raw| hash.update(raw))
                .map_err(|source| self.failed(source))?;
            at += length as u64;
        }
        Ok(hash.digest())
    }

    fn failed(&self, source: std::io::Error) -> Error {
        match source.kind() {
            std::io::ErrorKind::UnexpectedEof => differs(self.file, self.file.footer.segment_len),
            _ => {
                let path = format!("the raw form of {}", self.file.path);
                Error::io("reading a segment", path, source)
            }
        }
    }
}

fn differs(file: &BlockFile, at: u64) -> Error {
    Error::Corrupt {
        path: file.path.to_string(),
        offset: 0,
        txid: None,
        what: format!("it differs from the raw segment, at byte {at} of that or behind it"),
        hint: HINT,
    }
}

/// Reads all blocks of patches: the order of patches, what the index says of them, and that each sum is the sum of its patches.
/// `each` is called for each patch of a record with its stored form.
pub(crate) fn blocks(
    file: &BlockFile,
    pace: &dyn Pace,
    each: &mut dyn FnMut(&PatchEntry, &[u8]) -> Result<()>,
) -> Result<()> {
    for section in &file.root.sections {
        blocks_of(file, section, pace, each)?;
    }
    Ok(())
}

fn blocks_of(
    file: &BlockFile,
    section: &Section,
    pace: &dyn Pace,
    each: &mut dyn FnMut(&PatchEntry, &[u8]) -> Result<()>,
) -> Result<()> {
    let mut walk = Walk {
        file,
        section,
        last: None,
        pile: Pile::new(section.page_size),
        sum: Vec::new(),
        expected: Vec::new(),
    };
    for (first, block) in &section.index {
        let index = file.patch_index(block)?;
        if index.blocks.first().map(|block| block.first) != Some(*first) {
            return Err(walk.wrong(block, "the root does not fit its index block"));
        }
        for entry in &index.blocks {
            let patches = file.read_patches(section, &entry.block, None, |_| true)?;
            if patches.entries.first().map(|e| e.key()) != Some(entry.first) {
                return Err(walk.wrong(&entry.block, "the index does not fit the block"));
            }
            let mut pages = index.pages(entry).iter();
            let runs = patches.entries.chunk_by(|a, b| a.pgno == b.pgno);
            let mut runs = runs.filter_map(|run| run.first());
            if !runs.all(|first| pages.next() == Some(&first.pgno)) || pages.next().is_some() {
                return Err(walk.wrong(&entry.block, "the index does not fit the block"));
            }
            walk.block(&patches, &entry.block, each)?;
            worked(pace, u64::from(entry.block.raw))?;
        }
    }
    Ok(())
}

struct Walk<'a> {
    file: &'a BlockFile,
    section: &'a Section,
    last: Option<(Key, bool)>,
    /// The page's patches.
    pile: Pile,
    sum: Vec<u8>,
    expected: Vec<u8>,
}

impl Walk<'_> {
    /// Whether this is what the page's patches so far add up to; or the complete page, which knows more than they do.
    fn is_sum(&mut self, sum: &PatchRef<'_>) -> bool {
        if sum.is_complete() {
            let mut page = vec![0; self.section.page_size.bytes()];
            sum.apply(&mut page);
            let overlay = self.pile.laid();
            overlay.fill(sum);
            return overlay.page() == page;
        }
        self.expected.clear();
        self.pile.laid().encode(sum.pgno(), &mut self.expected);
        self.sum.clear();
        sum.store(&mut self.sum);
        self.sum == self.expected
    }

    fn wrong(&self, block: &BlockRef, what: &str) -> Error {
        self.file.corrupt(block, None, what)
    }

    fn block(
        &mut self,
        patches: &PatchBlock,
        block: &BlockRef,
        each: &mut dyn FnMut(&PatchEntry, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let (_, last) = self.file.range();
        for entry in &patches.entries {
            let place = (entry.key(), entry.sum);
            let in_order = self.last.is_none_or(|last| last < place);
            if !in_order || entry.txid < self.section.first || entry.txid > last {
                return Err(self.wrong(block, "patches not in order"));
            }
            if self.last.is_none_or(|last| last.0.0 != entry.pgno) {
                self.pile.clear();
            }
            let patch = patches.patch(entry);
            if !entry.sum {
                self.pile.put(&patch);
                each(entry, patches.stored(entry))?;
            } else if self.last.map(|last| last.0) != Some(entry.key()) || !self.is_sum(&patch) {
                return Err(self.wrong(block, "a sum that is not that of its patches"));
            }
            self.last = Some(place);
        }
        Ok(())
    }
}
