//! The image that SQLite reads: the database file with the committed WAL frames folded in.

use crate::capture::header::DbHeader;
use crate::capture::shared::ConnectionFiles;
use crate::capture::wal::{Frames, WalHeader, committed};
use crate::error::{Error, ErrorKind, Result};
use crate::vfs::Base;
use mycelite_journal::{Checksum, PageSize, WalCursor, page_checksum};
use std::collections::HashMap;

/// Bytes of the database file that are read at once where all of it is.
const SCAN_BYTES: usize = 256 * 1024;

/// A readable image. The caller holds whatever lock keeps it still.
pub struct Image<'a> {
    db: &'a dyn Base,
    wal: Option<(&'a dyn Base, WalHeader)>,
    frames: HashMap<u32, u32>,
    /// Bytes of a page.
    pub page_size: PageSize,
    /// Pages of the image.
    pub page_count: u32,
    /// Frames of the WAL that the image contains; the default when there is no WAL.
    pub cursor: WalCursor,
}

impl<'a> Image<'a> {
    /// The image in `files`; `None` when there is no database (an empty file and nothing in the WAL, or without a WAL a file
    /// that SQLite would not read). `locked`: the caller has the write lock. `until` leaves out later frames of the generation to which it belongs.
    ///
    /// # Errors
    /// A failed read, or a file that is not a database.
    pub fn open(
        files: &'a ConnectionFiles,
        locked: bool,
        until: Option<WalCursor>,
    ) -> Result<Option<Image<'a>>> {
        let db = files.db.as_ref();
        if let Some(wal) = files.wal.as_deref()
            && let Some(header) = WalHeader::read(wal)?
        {
            let committed = committed(files, &header, locked)?.last;
            let last = match until {
                Some(cursor) if cursor.salt == header.salt => committed.min(cursor.frame),
                _ => committed,
            };
            if let Some(image) = Image::with_wal(db, wal, header, last)? {
                return Ok(Some(image));
            }
        }
        let header = match files.wal {
            Some(_) => DbHeader::read(db)?,
            None => DbHeader::find(db)?,
        };
        let Some(header) = header else {
            return Ok(None);
        };
        Ok(Some(Image {
            db,
            wal: None,
            frames: HashMap::new(),
            page_size: header.page_size,
            page_count: header.pages(db.size()?),
            cursor: WalCursor::default(),
        }))
    }

    /// The image with the committed frames of `wal`; `None` when it holds none.
    fn with_wal(
        db: &'a dyn Base,
        wal: &'a dyn Base,
        header: WalHeader,
        last: u32,
    ) -> Result<Option<Image<'a>>> {
        let mut reader = Frames::after(wal, header, header.start(), last);
        let mut image: Option<Image<'a>> = None;
        while let Some(transaction) = reader.next_transaction()? {
            let image = image.get_or_insert_with(|| Image {
                db,
                wal: Some((wal, header)),
                frames: HashMap::new(),
                page_size: header.page_size,
                page_count: 0,
                cursor: WalCursor::default(),
            });
            image.frames.extend(&transaction.pages);
            image.page_count = transaction.page_count;
            image.cursor = transaction.cursor;
        }
        if let Some(image) = &mut image {
            let mut page = vec![0; header.page_size.get() as usize];
            image.read_page(1, &mut page)?;
            if let Some(first) = DbHeader::parse(&page) {
                image.page_count = first.pages_of(image.page_count);
            }
        }
        Ok(image)
    }

    /// Reads page `pgno`, which is at most `page_count`. A page that the file does not reach is all zeros.
    ///
    /// # Errors
    /// A failed read.
    pub fn read_page(&self, pgno: u32, page: &mut [u8]) -> Result<()> {
        if let (Some((wal, header)), Some(&frame)) = (&self.wal, self.frames.get(&pgno)) {
            return header.read_page(*wal, frame, page);
        }
        let offset = u64::from(pgno - 1) * u64::from(self.page_size.get());
        let got = self.db.read_at(page, offset)?;
        if let Some(rest) = page.get_mut(got..) {
            rest.fill(0);
        }
        Ok(())
    }

    /// Calls `visit` with each page, ascending, except the lock-byte page.
    ///
    /// # Errors
    /// A failed read, or what `visit` returns.
    pub fn for_each(&self, mut visit: impl FnMut(u32, &[u8]) -> Result<()>) -> Result<()> {
        let page_bytes = self.page_size.get() as usize;
        let pages_at_once = (SCAN_BYTES / page_bytes).max(1);
        let mut run = vec![0; pages_at_once * page_bytes];
        let mut first = 1;
        while first <= self.page_count {
            let left = (self.page_count - first) as usize + 1;
            let run = run.get_mut(..left.min(pages_at_once) * page_bytes);
            let run = run.unwrap_or_default();
            let got = self
                .db
                .read_at(run, u64::from(first - 1) * page_bytes as u64)?;
            if let Some(rest) = run.get_mut(got..) {
                rest.fill(0);
            }
            for (pgno, page) in (first..).zip(run.chunks_exact_mut(page_bytes)) {
                if pgno == self.page_size.lock_page() {
                    continue;
                }
                if self.frames.contains_key(&pgno) {
                    self.read_page(pgno, page)?;
                }
                visit(pgno, page)?;
            }
            first = first.saturating_add(pages_at_once as u32);
        }
        Ok(())
    }

    /// The checksum of the whole image.
    ///
    /// # Errors
    /// A failed read.
    pub fn checksum(&self) -> Result<Checksum> {
        let mut checksum = Checksum(0);
        self.for_each(|pgno, page| {
            checksum ^= page_checksum(pgno, page);
            Ok(())
        })?;
        Ok(checksum)
    }

    /// The change counter in page 1.
    ///
    /// # Errors
    /// A failed read.
    pub fn change_counter(&self) -> Result<u32> {
        let mut page = vec![0; self.page_size.get() as usize];
        self.read_page(1, &mut page)?;
        DbHeader::parse(&page)
            .map(|header| header.change_counter)
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, "page 1 is not a database header"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Zeros without end, which nobody has to store.
    struct Zeros;

    impl Base for Zeros {
        fn read_at(&self, buf: &mut [u8], _offset: u64) -> Result<usize> {
            buf.fill(0);
            Ok(buf.len())
        }

        fn size(&self) -> Result<u64> {
            Ok(u64::MAX)
        }
    }

    #[test]
    fn the_page_of_the_lock_bytes_is_no_page() {
        for page_bytes in [32768, 65536] {
            let page_size = PageSize::new(page_bytes).unwrap();
            let lock_page = page_size.lock_page();
            let image = Image {
                db: &Zeros,
                wal: None,
                frames: HashMap::new(),
                page_size,
                page_count: lock_page + 9,
                cursor: WalCursor::default(),
            };
            let mut pages = Vec::new();
            image
                .for_each(|pgno, _| {
                    pages.push(pgno);
                    Ok(())
                })
                .unwrap();
            assert!(
                pages
                    .iter()
                    .copied()
                    .eq((1..=lock_page + 9).filter(|pgno| *pgno != lock_page))
            );
        }
    }
}
