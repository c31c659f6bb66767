//! The newest content of the pages that a small transaction wrote, so that they need not be read back.

use crate::error::Result;
use crate::vfs::Base;
use std::collections::BTreeMap;

/// Pages kept. A larger transaction reads the others from the file.
const PAGES_MAX: usize = 32;
/// Bytes read at once where pages follow each other.
const AHEAD_BYTES: usize = 64 << 10;

/// Page images as SQLite last wrote them in this transaction. Every write goes through it, so what it holds is what the
/// file holds.
pub struct Written {
    page_bytes: usize,
    pages: BTreeMap<u32, Vec<u8>>,
}

impl Written {
    /// Nothing written yet, in pages of `page_bytes`.
    pub fn new(page_bytes: u32) -> Written {
        Written {
            page_bytes: page_bytes as usize,
            pages: BTreeMap::new(),
        }
    }

    /// `data` is written at `offset`.
    pub fn put(&mut self, offset: u64, data: &[u8]) {
        let whole = data.len() == self.page_bytes && offset.is_multiple_of(data.len() as u64);
        let Some(pgno) = self.pgno_of(offset).filter(|_| whole) else {
            self.forget(offset, data.len());
            return;
        };
        if let Some(page) = self.pages.get_mut(&pgno) {
            page.copy_from_slice(data);
        } else if self.pages.len() < PAGES_MAX {
            self.pages.insert(pgno, data.to_vec());
        }
    }

    /// What lies in `bytes` bytes from `offset` on is not known any more.
    pub fn forget(&mut self, offset: u64, bytes: usize) {
        let last = offset.saturating_add(bytes.max(1) as u64 - 1);
        let (first, last) = (self.pgno_of(offset), self.pgno_of(last));
        self.pages.retain(|pgno, _| {
            first.is_none_or(|first| *pgno < first) || last.is_some_and(|last| *pgno > last)
        });
    }

    fn pgno_of(&self, offset: u64) -> Option<u32> {
        u32::try_from(offset / self.page_bytes as u64 + 1).ok()
    }

    /// The content of page `pgno`, where it was written.
    pub fn get(&self, pgno: u32) -> Option<&[u8]> {
        self.pages.get(&pgno).map(Vec::as_slice)
    }

    /// The content of page `pgno` now: what was written, else what `db` holds, read by way of `ahead`. A page that the file does
    /// not reach is zeros.
    ///
    /// # Errors
    /// A failed read.
    pub fn page<'a>(&'a self, db: &dyn Base, pgno: u32, ahead: &'a mut Ahead) -> Result<&'a [u8]> {
        match self.get(pgno) {
            Some(written) => Ok(written),
            None => ahead.page(db, pgno),
        }
    }
}

/// Reads a file that stands still page by page; the longer one follows the other, the more of them at once.
pub struct Ahead {
    page_bytes: usize,
    buffer: Vec<u8>,
    /// The first page in the buffer.
    first: u32,
    /// The page behind the last one that was asked for.
    next: u32,
}

impl Ahead {
    /// Nothing read yet, in pages of `page_bytes`.
    pub fn new(page_bytes: u32) -> Ahead {
        Ahead {
            page_bytes: page_bytes as usize,
            buffer: Vec::new(),
            first: 0,
            next: 0,
        }
    }

    /// Page `pgno` of `db`; what the file does not hold is zeros.
    ///
    /// # Errors
    /// A failed read.
    pub fn page(&mut self, db: &dyn Base, pgno: u32) -> Result<&[u8]> {
        let held = (self.buffer.len() / self.page_bytes) as u32;
        if !(self.first..self.first.saturating_add(held)).contains(&pgno) {
            let follows = pgno == self.next && self.buffer.len() >= self.page_bytes;
            let bytes = match follows {
                true => (self.buffer.len() * 2).min(AHEAD_BYTES),
                false => self.page_bytes,
            };
            self.buffer.resize(bytes, 0);
            self.first = pgno;
            let read = read_padded_run(db, pgno, self.page_bytes, &mut self.buffer);
            if read.is_err() {
                self.buffer.clear();
            }
            read?;
        }
        self.next = pgno.saturating_add(1);
        let start = (pgno - self.first) as usize * self.page_bytes;
        let page = self.buffer.get(start..start + self.page_bytes);
        Ok(page.unwrap_or_default())
    }
}

/// Reads page `pgno` of the file; what the file does not hold is zeros.
///
/// # Errors
/// A failed read.
pub fn read_padded(db: &dyn Base, pgno: u32, page: &mut [u8]) -> Result<()> {
    read_padded_run(db, pgno, page.len(), page)
}

/// Reads the pages from `pgno` on, of `page_bytes` each.
fn read_padded_run(db: &dyn Base, pgno: u32, page_bytes: usize, run: &mut [u8]) -> Result<()> {
    let offset = u64::from(pgno - 1) * page_bytes as u64;
    let got = db.read_at(run, offset)?;
    if let Some(rest) = run.get_mut(got..) {
        rest.fill(0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of bytes, for reading.
    struct Bytes(Vec<u8>);

    impl Base for Bytes {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
            let rest = self.0.get(offset as usize..).unwrap_or_default();
            let got = rest.len().min(buf.len());
            buf[..got].copy_from_slice(&rest[..got]);
            Ok(got)
        }

        fn size(&self) -> Result<u64> {
            Ok(self.0.len() as u64)
        }
    }

    #[test]
    fn what_is_kept_is_what_the_file_would_give() {
        let db = Bytes(vec![7; 1024]);
        let mut written = Written::new(512);
        let mut page = Ahead::new(512);
        written.put(512, &[1; 512]);
        written.put(512, &[2; 512]);
        assert_eq!(written.page(&db, 2, &mut page).unwrap(), [2; 512]);
        assert_eq!(written.page(&db, 1, &mut page).unwrap(), [7; 512]);
        assert_eq!(written.page(&db, 3, &mut page).unwrap(), [0; 512]);
        // A write of a part, a write across pages and a failed write leave the file's word.
        for (offset, bytes) in [(600, 10), (100, 500), (0, 1024)] {
            written.put(512, &[2; 512]);
            written.forget(offset, bytes);
            assert_eq!(
                written.page(&db, 2, &mut page).unwrap(),
                [7; 512],
                "{offset}"
            );
        }
        written.put(0, &[3; 512]);
        written.put(512, &[2; 512]);
        written.put(1000, &[9; 4]);
        assert_eq!(written.page(&db, 1, &mut page).unwrap(), [3; 512]);
        assert_eq!(written.page(&db, 2, &mut page).unwrap(), [7; 512]);
        for pgno in 0..100 {
            written.put(pgno * 512, &[5; 512]);
        }
        assert!(written.pages.len() <= PAGES_MAX);
    }

    #[test]
    fn pages_that_follow_each_other_are_read_at_once() {
        let bytes: Vec<u8> = (0..700 * 512).map(|at| (at / 512 % 251) as u8).collect();
        let db = Bytes(bytes[..600 * 512 + 100].to_vec());
        let mut ahead = Ahead::new(512);
        for pgno in (1..=700).chain([3, 9, 10, 650, 2]) {
            let start = (pgno - 1) * 512;
            let mut expected = bytes[start..start + 512].to_vec();
            let end = db.0.len().saturating_sub(start).min(512);
            expected[end..].fill(0);
            assert_eq!(ahead.page(&db, pgno as u32).unwrap(), expected, "{pgno}");
            assert!(ahead.buffer.len() <= AHEAD_BYTES);
        }
    }
}
