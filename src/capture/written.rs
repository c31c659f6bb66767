//! The newest content of the pages that a small transaction wrote, so that they need not be read back.

use crate::error::Result;
use crate::vfs::Base;
use std::collections::BTreeMap;

/// Pages kept. A larger transaction reads the others from the file.
const PAGES_MAX: usize = 32;

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

    /// The content of page `pgno` now: what was written, else what `db` holds, read into `page`. A page that the file does
    /// not reach is zeros.
    ///
    /// # Errors
    /// A failed read.
    pub fn page<'a>(&'a self, db: &dyn Base, pgno: u32, page: &'a mut [u8]) -> Result<&'a [u8]> {
        if let Some(written) = self.get(pgno) {
            return Ok(written);
        }
        read_padded(db, pgno, page)?;
        Ok(page)
    }
}

/// Reads page `pgno` of the file; what the file does not hold is zeros.
///
/// # Errors
/// A failed read.
pub fn read_padded(db: &dyn Base, pgno: u32, page: &mut [u8]) -> Result<()> {
    let offset = u64::from(pgno - 1) * page.len() as u64;
    let got = db.read_at(page, offset)?;
    if let Some(rest) = page.get_mut(got..) {
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
        let mut page = vec![0; 512];
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
}
