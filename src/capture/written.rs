//! The newest content of the pages that a small transaction wrote, so that they need not be read back.

use crate::capture::run::{Run, neighbours};
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

    /// The content of page `pgno` now: what was written, else what `db` holds, by way of `run`. `pages`: those that are wanted,
    /// ascending from `pgno` on; neighbours among them are read together. A page that the file does not reach is zeros.
    ///
    /// # Errors
    /// A failed read.
    pub fn page<'a>(
        &'a self,
        db: &dyn Base,
        pgno: u32,
        pages: impl Iterator<Item = u32>,
        run: &'a mut Run,
    ) -> Result<&'a [u8]> {
        if let Some(written) = self.get(pgno) {
            return Ok(written);
        }
        let pages = pages.take_while(|pgno| self.get(*pgno).is_none());
        read_run(db, pgno, pages, run)
    }
}

/// Page `pgno` of the file, by way of `run`, with those of its neighbours that are among `pages`: the ones wanted, ascending from
/// `pgno` on. What the file does not hold is zeros.
///
/// # Errors
/// A failed read.
pub fn read_run<'a>(
    db: &dyn Base,
    pgno: u32,
    pages: impl Iterator<Item = u32>,
    run: &'a mut Run,
) -> Result<&'a [u8]> {
    let slot = u64::from(pgno - 1);
    let wanted = |most| neighbours(pages, most);
    let page_bytes = run.slot_bytes() as u64;
    run.get(slot, wanted, |bytes| {
        read_padded_at(db, slot * page_bytes, bytes)
    })
}

/// Reads page `pgno` of the file; what the file does not hold is zeros.
///
/// # Errors
/// A failed read.
pub fn read_padded(db: &dyn Base, pgno: u32, page: &mut [u8]) -> Result<()> {
    read_padded_at(db, u64::from(pgno - 1) * page.len() as u64, page)
}

fn read_padded_at(db: &dyn Base, offset: u64, bytes: &mut [u8]) -> Result<()> {
    let got = db.read_at(bytes, offset)?;
    if let Some(rest) = bytes.get_mut(got..) {
        rest.fill(0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::Mutex;

    /// A file of bytes, for reading, and where it was read, how many bytes.
    struct Bytes(Vec<u8>, Mutex<Vec<(u64, usize)>>);

    impl Base for Bytes {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
            self.1.lock().push((offset, buf.len()));
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
        let db = Bytes(vec![7; 1024], Mutex::default());
        let page = |written: &Written, pgno: u32| {
            let mut run = Run::new(512);
            let page = written.page(&db, pgno, pgno..=3, &mut run);
            page.unwrap().to_vec()
        };
        let mut written = Written::new(512);
        written.put(512, &[1; 512]);
        written.put(512, &[2; 512]);
        assert_eq!(page(&written, 2), [2; 512]);
        assert_eq!(page(&written, 1), [7; 512]);
        assert_eq!(page(&written, 3), [0; 512]);
        // A write of a part, a write across pages and a failed write leave the file's word.
        for (offset, bytes) in [(600, 10), (100, 500), (0, 1024)] {
            written.put(512, &[2; 512]);
            written.forget(offset, bytes);
            assert_eq!(page(&written, 2), [7; 512], "{offset}");
        }
        written.put(0, &[3; 512]);
        written.put(512, &[2; 512]);
        written.put(1000, &[9; 4]);
        assert_eq!(page(&written, 1), [3; 512]);
        assert_eq!(page(&written, 2), [7; 512]);
        for pgno in 0..100 {
            written.put(pgno * 512, &[5; 512]);
        }
        assert!(written.pages.len() <= PAGES_MAX);
    }
    /// The same pages as one by one, whichever are wanted, and as few reads as there are gaps between them.
    #[test]
    fn pages_side_by_side_are_read_together() {
        let content = (0..9 * 512 + 100).map(|at| (at / 512 * 7 + at % 251) as u8);
        let db = Bytes(content.collect(), Mutex::default());
        let mut written = Written::new(512);
        written.put(4 * 512, &[1; 512]);
        for wanted in 0..1 << 12_u32 {
            let pages = |from: u32| (from..=12).filter(move |pgno| wanted >> (pgno - 1) & 1 == 1);
            db.1.lock().clear();
            let mut run = Run::new(512);
            let (mut calls, mut last) = (Vec::new(), 0);
            for pgno in pages(1) {
                let page = written.page(&db, pgno, pages(pgno), &mut run).unwrap();
                let mut alone = [0; 512];
                read_padded(&Bytes(db.0.clone(), Mutex::default()), pgno, &mut alone).unwrap();
                assert_eq!(page, if pgno == 5 { &[1; 512] } else { &alone });
                if pgno == 5 {
                    last = 0;
                    continue;
                }
                match calls.last_mut() {
                    Some((_, bytes)) if last + 1 == pgno => *bytes += 512,
                    _ => calls.push((u64::from(pgno - 1) * 512, 512)),
                }
                last = pgno;
            }
            assert_eq!(*db.1.lock(), calls, "{wanted:b}");
        }
    }
}
