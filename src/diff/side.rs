//! The two states of a comparison: their pages, and which of them changed from one to the other.

use std::path::Path;
use std::sync::Arc;

use mycelite_journal::{AsOf, FileStorage, Reader, Txid};

use super::btree::{Pages, damaged, usable_bytes};
use super::record::Encoding;
use crate::capture::journal_error;
use crate::error::Result;
use crate::maintain::Pin;

/// One state.
pub struct Side {
    state: AsOf,
    /// Holds the state against compaction.
    _pin: Pin,
    usable: usize,
    /// How it stores text.
    pub encoding: Encoding,
    /// Pages read so far.
    pub pages_read: u64,
}

impl Side {
    /// Looks at the state's header.
    ///
    /// # Errors
    /// It cannot be read, or is no database.
    pub fn new(mut state: AsOf, pin: Pin) -> Result<Side> {
        let bytes = state.page_size().bytes();
        let (mut usable, mut encoding) = (bytes, Encoding::Utf8);
        if state.page_count() > 0 {
            let mut page = vec![0; bytes];
            state.read_page(1, &mut page).map_err(journal_error)?;
            let reserved = page.get(20).copied().unwrap_or(0);
            usable = usable_bytes(bytes, reserved)
                .ok_or_else(|| damaged(1, "the header reserves too much of each page"))?;
            encoding = Encoding::of_header(u32::from(page.get(59).copied().unwrap_or(1)));
        }
        Ok(Side {
            state,
            _pin: pin,
            usable,
            encoding,
            pages_read: 0,
        })
    }

    /// Its transaction.
    pub fn txid(&self) -> Txid {
        self.state.pos().txid
    }

    /// Where SQLite keeps nothing.
    pub fn lock_page(&self) -> u32 {
        self.state.page_size().lock_page()
    }
}

impl Pages for Side {
    fn page_count(&self) -> u32 {
        self.state.page_count()
    }

    fn usable(&self) -> usize {
        self.usable
    }

    fn page(&mut self, pgno: u32) -> Result<Vec<u8>> {
        let mut page = vec![0; self.state.page_size().bytes()];
        self.state
            .read_page(pgno, &mut page)
            .map_err(journal_error)?;
        self.pages_read += 1;
        Ok(page)
    }
}

/// A set of pages.
#[derive(Clone, Default)]
pub struct PageSet {
    bits: Vec<u64>,
}

impl PageSet {
    /// Adds a page.
    pub fn insert(&mut self, pgno: u32) {
        let word = pgno as usize / 64;
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        if let Some(bits) = self.bits.get_mut(word) {
            *bits |= 1 << (pgno % 64);
        }
    }

    /// Whether it has the page.
    pub fn contains(&self, pgno: u32) -> bool {
        let bits = self.bits.get(pgno as usize / 64);
        bits.is_some_and(|bits| bits >> (pgno % 64) & 1 == 1)
    }

    /// Takes away what `other` has, and `pgno` above `last`; whether anything is left.
    pub fn remove_all(&mut self, other: &PageSet, last: u32) -> bool {
        for (i, word) in self.bits.iter_mut().enumerate() {
            *word &= !other.bits.get(i).copied().unwrap_or(0);
            let first = i as u64 * 64;
            if first + 63 > u64::from(last) {
                let keep = (u64::from(last) + 1).saturating_sub(first);
                *word &= 1u64
                    .checked_shl(keep as u32)
                    .map_or(u64::MAX, |bit| bit - 1);
            }
        }
        self.bits.iter().any(|word| *word != 0)
    }
}

/// The pages whose bytes may differ between two states; every page not in it is the same in both, as far as both have it.
pub enum Changed {
    /// These.
    Some(PageSet),
    /// Not known, or not worth knowing: every page may.
    All,
}

impl Changed {
    /// What the records between the two states say.
    ///
    /// # Errors
    /// They cannot be read, or are damaged.
    pub fn between(log_dir: &Path, a: &Side, b: &Side) -> Result<Changed> {
        if a.state.page_size() != b.state.page_size() || a.usable != b.usable {
            return Ok(Changed::All);
        }
        let (first, last) = if a.txid() <= b.txid() {
            (a.txid(), b.txid())
        } else {
            (b.txid(), a.txid())
        };
        let mut set = PageSet::default();
        if first == last {
            return Ok(Changed::Some(set));
        }
        let mut reader =
            Reader::open(Arc::new(FileStorage::new(log_dir))).map_err(journal_error)?;
        let image =
            |side: &Side| u64::from(side.page_count()) * side.state.page_size().bytes() as u64;
        let after = |reader: &mut Reader, txid| reader.bytes_after(txid).map_err(journal_error);
        let between = after(&mut reader, first)?.saturating_sub(after(&mut reader, last)?);
        if between > image(a) + image(b) {
            return Ok(Changed::All);
        }
        match reader.seek(first) {
            // History that was compacted: the states are there, the records between them are not.
            Err(error) if error.is_not_found() => return Ok(Changed::All),
            other => other.map_err(journal_error)?,
        }
        let mut at = first;
        while at < last {
            let Some(entry) = reader.next().map_err(journal_error)? else {
                return Ok(Changed::All);
            };
            at = entry.header.txid;
            let header = &entry.header;
            if header.page_size != a.state.page_size() {
                return Ok(Changed::All);
            }
            // Pages that went may come back with other content, and then have a patch; but not in what follows the cut.
            for pgno in header.page_count.saturating_add(1)..=header.pre_page_count {
                set.insert(pgno);
            }
            let mut patches = entry.patches();
            while let Some(patch) = patches.next().map_err(journal_error)? {
                set.insert(patch.pgno());
            }
        }
        Ok(Changed::Some(set))
    }

    /// Whether the page may differ.
    pub fn contains(&self, pgno: u32) -> bool {
        match self {
            Changed::Some(set) => set.contains(pgno),
            Changed::All => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_forget_what_is_above() {
        for last in [0, 1, 62, 63, 64, 65, 127, 128, 1000] {
            let (mut set, mut other) = (PageSet::default(), PageSet::default());
            (1..=200).for_each(|pgno| set.insert(pgno));
            (1..=50).for_each(|pgno| other.insert(pgno));
            let left = set.remove_all(&other, last);
            for pgno in 0..=300 {
                assert_eq!(
                    set.contains(pgno),
                    pgno > 50 && pgno <= last.min(200),
                    "{last} {pgno}"
                );
            }
            assert_eq!(left, last > 50);
        }
    }
}
