//! The pages of a transaction as they were at its start, in bounded memory.

use crate::capture::positioned::{read_exact_at, write_all_at};
use crate::capture::run::{Run, neighbours};
use crate::error::{Error, ErrorKind, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Bytes of pre-images kept in memory; what a transaction touches beyond that goes to a temporary file.
const MEMORY_BYTES_MAX: usize = 40 << 20;
/// Up to here memory grows as it is needed. Beyond, all of it is asked for at once: an allocator takes so much from the system,
/// where it costs nothing until it is used, and gives it back at once.
const SMALL_BYTES_MAX: usize = 256 << 10;
/// Bytes that are written to the temporary file with one call: a multiple of every page size.
const TAIL_BYTES_MAX: usize = 64 << 10;

/// Page images by page number: the first `MEMORY_BYTES_MAX` bytes in memory, the others in an unlinked file.
pub struct PreImages {
    page_bytes: usize,
    /// By their first page; ordered, because a record's patches ascend. SQLite writes most pages in ascending order, so there
    /// are far fewer than pages, as a rule.
    extents: BTreeMap<u32, Extent>,
    /// Slots that are taken.
    slots: usize,
    memory: Vec<u8>,
    spill_dir: PathBuf,
    spill: Option<File>,
    /// Slots in the file, which follow those in memory.
    spilled: usize,
    /// The slots behind these.
    tail: Vec<u8>,
}

/// Pages that follow each other, in slots that do so too.
struct Extent {
    slot: u32,
    pages: u32,
}

impl PreImages {
    /// An empty set of pages of `page_bytes` each; the temporary file, if one is needed, is made in `spill_dir`.
    pub fn new(page_bytes: u32, spill_dir: &Path) -> PreImages {
        PreImages {
            page_bytes: page_bytes as usize,
            extents: BTreeMap::new(),
            slots: 0,
            memory: Vec::new(),
            spill_dir: spill_dir.to_path_buf(),
            spill: None,
            spilled: 0,
            tail: Vec::new(),
        }
    }

    /// Whether page `pgno` is held.
    pub fn contains(&self, pgno: u32) -> bool {
        self.slot(pgno).is_some()
    }

    fn slot(&self, pgno: u32) -> Option<usize> {
        let (first, extent) = self.extents.range(..=pgno).next_back()?;
        let at = pgno - first;
        (at < extent.pages).then_some((extent.slot + at) as usize)
    }

    /// The pages held, ascending, from `first` on, and their slots.
    fn from(&self, first: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
        let before = self.extents.range(..first).next_back();
        let extents = before.into_iter().chain(self.extents.range(first..));
        extents.flat_map(move |(begin, extent)| {
            let passed = first.saturating_sub(*begin);
            (passed..extent.pages).map(move |at| (begin + at, extent.slot + at))
        })
    }

    /// The numbers of the pages held, ascending, from `first` on.
    pub fn pages_from(&self, first: u32) -> impl Iterator<Item = u32> + '_ {
        self.from(first).map(|(pgno, _)| pgno)
    }

    /// Keeps what `read` fills a page with as the image of `pgno`, unless an earlier one is held.
    ///
    /// # Errors
    /// What `read` fails with, or the temporary file could not be made or written: then the page is not held.
    pub fn insert(&mut self, pgno: u32, read: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        if self.contains(pgno) {
            return Ok(());
        }
        let slot = self.slots;
        read(self.place(slot)?)?;
        self.slots += 1;
        // There are no more pages than page numbers.
        let slot = slot as u32;
        match self.extents.range_mut(..pgno).next_back() {
            Some((first, extent))
                if first + extent.pages == pgno && extent.slot + extent.pages == slot =>
            {
                extent.pages += 1;
            }
            _ => {
                self.extents.insert(pgno, Extent { slot, pages: 1 });
            }
        }
        Ok(())
    }

    fn slots_in_memory(&self) -> usize {
        MEMORY_BYTES_MAX / self.page_bytes
    }

    /// Where `slot` is to lie, the first that is not taken.
    fn place(&mut self, slot: usize) -> Result<&mut [u8]> {
        let Some(spilled) = slot.checked_sub(self.slots_in_memory()) else {
            let start = slot * self.page_bytes;
            let end = start + self.page_bytes;
            if end > self.memory.len() {
                self.reserve(end)?;
                self.memory.resize(end, 0);
            }
            return Ok(&mut self.memory[start..end]);
        };
        if (spilled - self.spilled) * self.page_bytes == TAIL_BYTES_MAX {
            self.spill_tail()?;
        }
        self.tail.resize(TAIL_BYTES_MAX, 0);
        let start = (spilled - self.spilled) * self.page_bytes;
        Ok(&mut self.tail[start..start + self.page_bytes])
    }

    /// Makes room in memory for `bytes` bytes. Without it capture fails, and not the application.
    fn reserve(&mut self, bytes: usize) -> Result<()> {
        let missing = bytes.saturating_sub(self.memory.len());
        let reserved = if bytes <= SMALL_BYTES_MAX {
            self.memory.try_reserve(missing)
        } else {
            self.memory
                .try_reserve_exact(MEMORY_BYTES_MAX - self.memory.len())
        };
        reserved.map_err(|e| {
            Error::new(
                ErrorKind::Io,
                format_args!("no memory for the old pages of a transaction: {e}"),
            )
        })
    }

    /// Writes the tail to the file, where it is no more than before if that fails.
    fn spill_tail(&mut self) -> Result<()> {
        let file = match self.spill.take() {
            Some(file) => file,
            None => tempfile::tempfile_in(&self.spill_dir)
                .map_err(|e| Error::io("cannot make a temporary file", &self.spill_dir, &e))?,
        };
        let offset = (self.spilled * self.page_bytes) as u64;
        let written = write_all_at(&file, &self.tail, offset);
        self.spill = Some(file);
        written.map_err(|e| Error::io("cannot write a temporary file", &self.spill_dir, &e))?;
        self.spilled += TAIL_BYTES_MAX / self.page_bytes;
        Ok(())
    }

    /// The image of `pgno`, by way of `run` if it is in the file; `None` when none is held. The pages behind it are taken to be
    /// wanted next.
    ///
    /// # Errors
    /// The temporary file could not be read.
    pub fn page<'a>(&'a self, pgno: u32, run: &'a mut Run) -> Result<Option<&'a [u8]>> {
        let Some(slot) = self.slot(pgno) else {
            return Ok(None);
        };
        let Some(spilled) = slot.checked_sub(self.slots_in_memory()) else {
            return Ok(self.slot_of(&self.memory, slot));
        };
        if let Some(at) = spilled.checked_sub(self.spilled) {
            return Ok(self.slot_of(&self.tail, at));
        }
        let Some(file) = &self.spill else {
            return Ok(None);
        };
        let wanted = |most: usize| {
            let slots = self.from(pgno).map(|(_, slot)| slot);
            neighbours(slots, most.min(self.spilled - spilled))
        };
        let page = run.get(spilled as u64, wanted, |pages| {
            read_exact_at(file, pages, (spilled * self.page_bytes) as u64)
                .map_err(|e| Error::io("cannot read a temporary file", &self.spill_dir, &e))
        })?;
        Ok(Some(page))
    }

    fn slot_of<'a>(&self, bytes: &'a [u8], slot: usize) -> Option<&'a [u8]> {
        let start = slot * self.page_bytes;
        bytes.get(start..start + self.page_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(pages: &mut PreImages, pgno: u32, byte: u8) -> Result<()> {
        pages.insert(pgno, |page| {
            page.fill(byte);
            Ok(())
        })
    }

    fn fails(pages: &mut PreImages, pgno: u32) -> bool {
        let failed = pages.insert(pgno, |page| {
            page.fill(99);
            Err(Error::new(ErrorKind::Io, "a bad sector"))
        });
        failed.is_err()
    }

    fn is(pages: &PreImages, pgno: u32, byte: u8, run: &mut Run) -> bool {
        let page = pages.page(pgno, run).unwrap().unwrap();
        page.len() == pages.page_bytes && page.iter().all(|found| *found == byte)
    }

    #[test]
    fn pages_beyond_the_memory_bound_come_back_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        for (page_bytes, count) in [(65536_u32, 700_u32), (4096, 11_000), (512, 90_000)] {
            // Descending, ascending, and both in turn, so that neighbours lie in all orders.
            for order in 0..3 {
                let mut pages = PreImages::new(page_bytes, dir.path());
                let nth = |at: u32| match order {
                    0 => count - at,
                    1 => at + 1,
                    _ if at.is_multiple_of(2) => at + 1,
                    _ => count - (count % 2) - at + 1,
                };
                for at in 0..count {
                    let pgno = nth(at);
                    put(&mut pages, pgno, pgno as u8).unwrap();
                    put(&mut pages, pgno, !pgno as u8).unwrap();
                }
                assert!(pages.memory.len() + pages.tail.len() <= MEMORY_BYTES_MAX + TAIL_BYTES_MAX);
                assert!(pages.spilled > 0);
                assert!(pages.pages_from(1).eq(1..=count), "{page_bytes} {order}");
                assert!(pages.pages_from(7).eq(7..=count));
                assert!(order != 1 || pages.extents.len() == 1);
                assert!(!pages.contains(count + 1) && !pages.contains(0));
                let mut run = Run::new(page_bytes as usize);
                for pgno in pages.pages_from(1) {
                    assert!(is(&pages, pgno, pgno as u8, &mut run), "{pgno}");
                }
                assert!(pages.page(count + 1, &mut run).unwrap().is_none());
            }
        }
    }

    #[test]
    fn a_page_that_could_not_be_read_is_not_held() {
        let dir = tempfile::tempdir().unwrap();
        let mut pages = PreImages::new(65536, dir.path());
        let mut run = Run::new(65536);
        for pgno in 1..=700 {
            assert!(fails(&mut pages, pgno), "{pgno}");
            assert!(!pages.contains(pgno));
            assert!(pages.page(pgno, &mut run).unwrap().is_none());
            put(&mut pages, pgno, pgno as u8).unwrap();
        }
        assert!((1..=700).all(|pgno| is(&pages, pgno, pgno as u8, &mut run)));
    }

    #[test]
    fn a_page_that_the_file_cannot_take_is_not_held() {
        let dir = tempfile::tempdir().unwrap();
        let mut pages = PreImages::new(65536, &dir.path().join("missing"));
        let mut run = Run::new(65536);
        let kept = (1..=700)
            .take_while(|pgno| put(&mut pages, *pgno, *pgno as u8).is_ok())
            .count();
        assert_eq!(kept, (MEMORY_BYTES_MAX + TAIL_BYTES_MAX) / 65536);
        let next = kept as u32 + 1;
        assert!(!pages.contains(next) && put(&mut pages, next, 0).is_err());
        assert!((1..next).all(|pgno| is(&pages, pgno, pgno as u8, &mut run)));
    }

    #[test]
    fn a_small_transaction_takes_little() {
        let mut pages = PreImages::new(4096, Path::new("unused"));
        for pgno in 1..=10 {
            put(&mut pages, pgno, 1).unwrap();
        }
        assert_eq!(pages.memory.len(), 10 * 4096);
        assert!(pages.tail.is_empty());
    }
}
