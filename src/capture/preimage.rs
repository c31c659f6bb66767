//! The pages of a transaction as they were at its start, in bounded memory.

use crate::capture::kept::KeptPages;
use crate::capture::positioned::{read_exact_at, write_all_at};
use crate::error::{Error, ErrorKind, Result};
use mycelite_journal::Head;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Bytes of pre-images from which on SQLite's own are looked for.
const FEW_BYTES: usize = 1 << 20;
/// Bytes of pre-images kept in memory; what a transaction touches beyond that goes to a temporary file.
const MEMORY_BYTES_MAX: usize = 16 << 20;

/// Page images by page number: the first in memory, then those of which SQLite keeps one itself, the others in memory as far as
/// `MEMORY_BYTES_MAX` and then in an unlinked file.
pub struct PreImages {
    page_bytes: usize,
    page_count: u32,
    /// Where the image of each page is; ordered, because a record's patches ascend.
    places: BTreeMap<u32, Place>,
    memory: Vec<u8>,
    journal: PathBuf,
    kept: Kept,
    spill_dir: PathBuf,
    spill: Option<File>,
    spilled: u32,
}

/// Where an image is.
#[derive(Clone, Copy)]
enum Place {
    /// In memory, by the number of its slot.
    Memory(u32),
    /// In the temporary file, likewise.
    Spill(u32),
    /// In SQLite's rollback journal, by the number of the record.
    Journal(u32),
}

/// What is known of SQLite's rollback journal.
enum Kept {
    /// Nothing: nobody has asked.
    Unknown,
    /// There is none, or it is of no use.
    None,
    /// It has some of the pages.
    Some(KeptPages),
}

impl PreImages {
    /// An empty set of pages of `page_bytes` each, of a database that is at `head`; SQLite's rollback journal would be `journal`, and
    /// the temporary file, if one is needed, is made in `spill_dir`.
    pub fn new(page_bytes: u32, head: &Head, journal: PathBuf, spill_dir: &Path) -> PreImages {
        PreImages {
            page_bytes: page_bytes as usize,
            page_count: head.page_count,
            places: BTreeMap::new(),
            memory: Vec::new(),
            journal,
            kept: Kept::Unknown,
            spill_dir: spill_dir.to_path_buf(),
            spill: None,
            spilled: 0,
        }
    }

    /// Whether page `pgno` is held.
    pub fn contains(&self, pgno: u32) -> bool {
        self.places.contains_key(&pgno)
    }

    /// How many pages are held.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// The numbers of the pages held, ascending.
    pub fn pages(&self) -> impl Iterator<Item = u32> + '_ {
        self.places.keys().copied()
    }

    /// Keeps `page`, which the database holds now, as the image of `pgno`, unless an earlier one is held.
    ///
    /// # Errors
    /// The temporary file could not be made or written, or SQLite's journal is not what it ought to be.
    pub fn insert(&mut self, pgno: u32, page: &[u8]) -> Result<()> {
        if self.contains(pgno) || self.is_kept(pgno, page)? {
            return Ok(());
        }
        let place = if self.memory.len() + self.page_bytes <= MEMORY_BYTES_MAX {
            let slot = self.memory.len() / self.page_bytes;
            self.memory.extend_from_slice(page);
            Place::Memory(slot as u32)
        } else {
            self.spill(page)?
        };
        self.places.insert(pgno, place);
        Ok(())
    }

    /// Puts `page` into the temporary file.
    fn spill(&mut self, page: &[u8]) -> Result<Place> {
        let slot = self.spilled;
        let offset = u64::from(slot) * self.page_bytes as u64;
        let file = match self.spill.take() {
            Some(file) => file,
            None => tempfile::tempfile_in(&self.spill_dir)
                .map_err(|e| Error::io("cannot make a temporary file", &self.spill_dir, &e))?,
        };
        let written = write_all_at(&file, page, offset);
        self.spill = Some(file);
        written.map_err(|e| Error::io("cannot write a temporary file", &self.spill_dir, &e))?;
        self.spilled += 1;
        Ok(Place::Spill(slot))
    }

    /// Whether SQLite keeps the image of `pgno`, which is `page`, itself. Learns of all pages of which it does.
    fn is_kept(&mut self, pgno: u32, page: &[u8]) -> Result<bool> {
        if self.memory.len() < FEW_BYTES {
            return Ok(false);
        }
        if matches!(self.kept, Kept::Unknown) {
            let opened = KeptPages::open(&self.journal, self.page_bytes as u32, self.page_count);
            self.kept = match opened {
                Ok(Some(kept)) => Kept::Some(kept),
                // Then they are kept here.
                Ok(None) | Err(_) => Kept::None,
            };
        }
        let Kept::Some(kept) = &mut self.kept else {
            return Ok(false);
        };
        let (places, page_count) = (&mut self.places, self.page_count);
        kept.follow(|found, record| {
            if (1..=page_count).contains(&found) {
                places.entry(found).or_insert(Place::Journal(record));
            }
        })
        .map_err(|e| Error::io("cannot read", &self.journal, &e))?;
        if !self.contains(pgno) {
            return Ok(false);
        }
        // One of each batch is looked at: SQLite may have a page in its cache that somebody has changed behind its back.
        let mut buffer = Vec::new();
        if self.read(pgno, &mut buffer)? != Some(page) {
            let what = "SQLite's rollback journal and the database differ";
            return Err(Error::new(ErrorKind::Corrupt, what).at(self.journal.display()));
        }
        Ok(true)
    }

    /// The image of `pgno`, where need be by way of `buffer`; `None` when none is held.
    ///
    /// # Errors
    /// The temporary file, or SQLite's journal, could not be read.
    pub fn read<'a>(&'a self, pgno: u32, buffer: &'a mut Vec<u8>) -> Result<Option<&'a [u8]>> {
        let page = match (self.places.get(&pgno), &self.kept, &self.spill) {
            (Some(&Place::Memory(slot)), ..) => {
                let start = slot as usize * self.page_bytes;
                self.memory.get(start..start + self.page_bytes)
            }
            (Some(&Place::Journal(record)), Kept::Some(kept), _) => {
                let page = kept.read(record, pgno, buffer);
                Some(page.map_err(|e| Error::io("cannot read", &self.journal, &e))?)
            }
            (Some(&Place::Spill(slot)), _, Some(file)) => {
                buffer.resize(self.page_bytes, 0);
                read_exact_at(file, buffer, u64::from(slot) * self.page_bytes as u64)
                    .map_err(|e| Error::io("cannot read a temporary file", &self.spill_dir, &e))?;
                Some(buffer.as_slice())
            }
            _ => None,
        };
        Ok(page)
    }

    /// Whether every image can still be had: those that SQLite keeps go when it commits or has rolled back.
    ///
    /// # Errors
    /// SQLite's journal could not be read.
    pub fn is_whole(&self) -> Result<bool> {
        match &self.kept {
            Kept::Some(kept) => kept
                .is_intact()
                .map_err(|e| Error::io("cannot read", &self.journal, &e)),
            _ => Ok(true),
        }
    }

    /// Whether the image of `pgno` is one that SQLite keeps.
    pub fn is_elsewhere(&self, pgno: u32) -> bool {
        matches!(self.places.get(&pgno), Some(Place::Journal(_)))
    }

    /// Every page of which SQLite keeps the image is as it was: it has rolled back, and begins another journal when it goes on.
    pub fn forget_kept(&mut self) {
        self.kept = Kept::Unknown;
        self.places
            .retain(|_, place| !matches!(place, Place::Journal(_)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_beyond_the_memory_bound_come_back_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let journal = dir.path().join("none");
        let mut pages = PreImages::new(65536, &Head::EMPTY, journal, dir.path());
        let image = |pgno: u32| vec![pgno as u8; 65536];
        for pgno in (1..=400).rev() {
            pages.insert(pgno, &image(pgno)).unwrap();
            pages.insert(pgno, &image(pgno + 1)).unwrap();
        }
        assert!(pages.memory.len() <= MEMORY_BYTES_MAX);
        assert!(pages.spilled > 0);
        let mut buffer = Vec::new();
        for (expected, pgno) in (1..=400).zip(pages.pages()) {
            assert_eq!(pgno, expected);
            let page = pages.read(pgno, &mut buffer).unwrap();
            assert_eq!(page, Some(image(pgno).as_slice()));
        }
        assert!(pages.read(401, &mut buffer).unwrap().is_none());
        assert!(pages.is_whole().unwrap());
    }
}
