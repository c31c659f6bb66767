//! The pages of a transaction as they were at its start, in bounded memory.

use crate::capture::positioned::{read_exact_at, write_all_at};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Bytes of pre-images kept in memory; what a transaction touches beyond that goes to a temporary file.
const MEMORY_BYTES_MAX: usize = 16 << 20;

/// Page images by page number: the first `MEMORY_BYTES_MAX` bytes in memory, the others in an unlinked file.
pub struct PreImages {
    page_bytes: usize,
    /// Page number to slot; ordered, because a record's patches ascend.
    slots: BTreeMap<u32, usize>,
    memory: Vec<u8>,
    spill_dir: PathBuf,
    spill: Option<File>,
    spilled_slots: usize,
}

impl PreImages {
    /// An empty set of pages of `page_bytes` each; the temporary file, if one is needed, is made in `spill_dir`.
    pub fn new(page_bytes: u32, spill_dir: &Path) -> PreImages {
        PreImages {
            page_bytes: page_bytes as usize,
            slots: BTreeMap::new(),
            memory: Vec::new(),
            spill_dir: spill_dir.to_path_buf(),
            spill: None,
            spilled_slots: 0,
        }
    }

    /// Whether page `pgno` is held.
    pub fn contains(&self, pgno: u32) -> bool {
        self.slots.contains_key(&pgno)
    }

    /// The numbers of the pages held, ascending.
    pub fn pages(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.keys().copied()
    }

    /// Keeps `page` as the image of `pgno`, unless an earlier one is held.
    ///
    /// # Errors
    /// The temporary file could not be made or written.
    pub fn insert(&mut self, pgno: u32, page: &[u8]) -> Result<()> {
        if self.contains(pgno) {
            return Ok(());
        }
        let slots_in_memory = self.memory.len() / self.page_bytes;
        if self.memory.len() + self.page_bytes <= MEMORY_BYTES_MAX {
            self.memory.extend_from_slice(page);
            self.slots.insert(pgno, slots_in_memory);
            return Ok(());
        }
        let offset = (self.spilled_slots * self.page_bytes) as u64;
        let file = match self.spill.take() {
            Some(file) => file,
            None => tempfile::tempfile_in(&self.spill_dir)
                .map_err(|e| Error::io("cannot make a temporary file", &self.spill_dir, &e))?,
        };
        let written = write_all_at(&file, page, offset);
        self.spill = Some(file);
        written.map_err(|e| Error::io("cannot write a temporary file", &self.spill_dir, &e))?;
        self.slots
            .insert(pgno, slots_in_memory + self.spilled_slots);
        self.spilled_slots += 1;
        Ok(())
    }

    /// Copies the image of `pgno` into `page`; false when none is held.
    ///
    /// # Errors
    /// The temporary file could not be read.
    pub fn read(&self, pgno: u32, page: &mut [u8]) -> Result<bool> {
        let Some(&slot) = self.slots.get(&pgno) else {
            return Ok(false);
        };
        let start = slot * self.page_bytes;
        if let Some(bytes) = self.memory.get(start..start + self.page_bytes) {
            page.copy_from_slice(bytes);
            return Ok(true);
        }
        let Some(file) = &self.spill else {
            return Ok(false);
        };
        read_exact_at(file, page, (start - self.memory.len()) as u64)
            .map_err(|e| Error::io("cannot read a temporary file", &self.spill_dir, &e))?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_beyond_the_memory_bound_come_back_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut pages = PreImages::new(65536, dir.path());
        let image = |pgno: u32| vec![pgno as u8; 65536];
        for pgno in (1..=400).rev() {
            pages.insert(pgno, &image(pgno)).unwrap();
            pages.insert(pgno, &image(pgno + 1)).unwrap();
        }
        assert!(pages.memory.len() <= MEMORY_BYTES_MAX);
        assert!(pages.spilled_slots > 0);
        let mut page = vec![0; 65536];
        for (expected, pgno) in (1..=400).zip(pages.pages()) {
            assert_eq!(pgno, expected);
            assert!(pages.read(pgno, &mut page).unwrap());
            assert_eq!(page, image(pgno));
        }
        assert!(!pages.read(401, &mut page).unwrap());
    }
}
