//! Proving a block file from its bytes.

use std::sync::Arc;

use crate::archive::Archive;
use crate::cursor::Cursor;
use crate::error::{Error, Result};
use crate::meta::Meta;
use crate::pace::{FullSpeed, Pace, worked};
use crate::patch::PatchRef;
use crate::pos::{Checksum, Pgno, page_checksum};
use crate::sealed::cache::BlockCache;
use crate::sealed::file::BlockFile;
use crate::sealed::format::{
    BlockRef, Kind, parse_merged_name, parse_sealed_name, parse_snapshot_name,
};
use crate::sealed::index::Section;
use crate::sealed::limit;
use crate::sealed::overlay::Overlay;
use crate::sealed::patches::{Key, PatchBlock};
use crate::sealed::prove;
use crate::sealed::seal::Records;
use crate::sealed::view::RawView;
use crate::segment::Segment;
use crate::storage::{Storage, read_up_to};

/// Bytes compared at once.
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
    blocks(&file, &FullSpeed)?;
    if kind == Kind::Snapshot {
        return pages(&file, &FullSpeed);
    }
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

/// Proves a snapshot's pages by the database's checksum.
pub(crate) fn pages(file: &BlockFile, pace: &dyn Pace) -> Result<()> {
    let mut sum = Checksum(0);
    for section in &file.root.sections {
        let mut page = Overlay::new(section.page_size);
        file.each_patch_block(section, |block| {
            let patches = file.read_patches(section, block, None, |_| true)?;
            for entry in &patches.entries {
                page.clear();
                page.fill(&patches.patch(entry));
                if page.is_whole() {
                    sum ^= page_checksum(entry.pgno, page.page());
                }
            }
            worked(pace, u64::from(block.raw))
        })?;
    }
    let expected = file.footer.head.pos.checksum;
    if sum == expected {
        return Ok(());
    }
    let what = format!("its pages have the checksum {sum}, the header says {expected}");
    Err(file.corrupt(&file.footer.root, Some(file.range().1), what))
}

/// Checks that a sealed segment is what a raw one says, byte for byte, and that its index and sums are right.
pub(crate) fn against(view: &RawView, segment: &Segment, pace: &dyn Pace) -> Result<()> {
    blocks(&view.file, pace)?;
    let length = segment
        .file
        .size()
        .map_err(|source| crate::cursor::read_error(segment, source))?;
    if length != view.file.footer.segment_len {
        return Err(differs(
            &view.file,
            length.min(view.file.footer.segment_len),
        ));
    }
    let mut raw = Front::of(segment);
    view.rebuild(&mut |rebuilt| {
        if raw.next_is(rebuilt)? {
            return worked(pace, rebuilt.len() as u64);
        }
        Err(differs(&view.file, raw.at))
    })?;
    if raw.at == length {
        return Ok(());
    }
    Err(differs(&view.file, raw.at))
}

/// A segment's file, read from front to back.
struct Front<'a> {
    segment: &'a Segment,
    /// Where the next byte is.
    at: u64,
    bytes: Vec<u8>,
    /// Bytes of it that were passed.
    passed: usize,
}

impl Front<'_> {
    fn of(segment: &Segment) -> Front<'_> {
        Front {
            segment,
            at: 0,
            bytes: Vec::new(),
            passed: 0,
        }
    }

    /// Whether the next bytes are these; moves behind them.
    fn next_is(&mut self, mut other: &[u8]) -> Result<bool> {
        while !other.is_empty() {
            if self.passed == self.bytes.len() {
                self.bytes.resize(CHUNK, 0);
                let length = read_up_to(&*self.segment.file, &mut self.bytes, self.at)
                    .map_err(|source| crate::cursor::read_error(self.segment, source))?;
                self.bytes.truncate(length);
                self.passed = 0;
            }
            let here = self.bytes.get(self.passed..).unwrap_or_default();
            let count = here.len().min(other.len());
            if count == 0 || here.get(..count) != other.get(..count) {
                return Ok(false);
            }
            self.passed += count;
            self.at += count as u64;
            other = other.get(count..).unwrap_or_default();
        }
        Ok(true)
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
pub(crate) fn blocks(file: &BlockFile, pace: &dyn Pace) -> Result<()> {
    for section in &file.root.sections {
        let mut walk = Walk {
            file,
            section,
            last: None,
            overlay: Overlay::new(section.page_size),
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
                let mut pages: Vec<Pgno> = patches.entries.iter().map(|e| e.pgno).collect();
                pages.dedup();
                if pages != index.pages(entry) {
                    return Err(walk.wrong(&entry.block, "the index does not fit the block"));
                }
                walk.block(&patches, &entry.block)?;
                worked(pace, u64::from(entry.block.raw))?;
            }
        }
    }
    Ok(())
}

struct Walk<'a> {
    file: &'a BlockFile,
    section: &'a Section,
    last: Option<(Key, bool)>,
    /// What the page's patches add up to.
    overlay: Overlay,
    sum: Vec<u8>,
    expected: Vec<u8>,
}

impl Walk<'_> {
    /// Whether this is what the page's patches so far add up to; or the complete page, which knows more than they do.
    fn is_sum(&mut self, sum: &PatchRef<'_>) -> bool {
        if sum.is_complete() {
            let mut page = vec![0; self.section.page_size.bytes()];
            sum.apply(&mut page);
            self.overlay.fill(sum);
            return self.overlay.page() == page;
        }
        self.expected.clear();
        self.overlay.encode(sum.pgno(), &mut self.expected);
        self.sum.clear();
        sum.store(&mut self.sum);
        self.sum == self.expected
    }

    fn wrong(&self, block: &BlockRef, what: &str) -> Error {
        self.file.corrupt(block, None, what)
    }

    fn block(&mut self, patches: &PatchBlock, block: &BlockRef) -> Result<()> {
        let (_, last) = self.file.range();
        for entry in &patches.entries {
            let place = (entry.key(), entry.sum);
            let in_order = self.last.is_none_or(|last| last < place);
            if !in_order || entry.txid < self.section.first || entry.txid > last {
                return Err(self.wrong(block, "patches not in order"));
            }
            if self.last.is_none_or(|last| last.0.0 != entry.pgno) {
                self.overlay.clear();
            }
            let patch = patches.patch(entry);
            if !entry.sum {
                self.overlay.put(&patch);
            } else if self.last.map(|last| last.0) != Some(entry.key()) || !self.is_sum(&patch) {
                return Err(self.wrong(block, "a sum that is not that of its patches"));
            }
            self.last = Some(place);
        }
        Ok(())
    }
}
