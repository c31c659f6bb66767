//! The database as of one transaction.

use crate::archive::{Archive, Source, lock};
use crate::cursor::Head;
use crate::entry::DAMAGE_HINT;
use crate::error::{Error, Result};
use crate::pos::{Checksum, PageSize, Pgno, Pos, Txid, page_checksum};
use crate::sealed::file::Laid;
use crate::sealed::overlay::Overlay;

impl Archive {
    /// The database as of a transaction: what it was right after it.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the transaction is not in the log, or what it builds on is gone; [`Error::Corrupt`],
    /// [`Error::Version`], [`Error::Io`].
    pub fn as_of(&self, txid: Txid) -> Result<AsOf> {
        let (head, base) = self.plan(txid)?;
        self.trim();
        let page_size = head.page_size.unwrap_or(PageSize::MIN);
        Ok(AsOf {
            archive: self.clone(),
            head,
            base,
            page_size,
            overlay: Overlay::new(page_size),
        })
    }
}

/// The database as of one transaction, read page by page: see [`Archive`].
///
/// It stays readable while the log grows and while segments are sealed; not when the history it needs is removed.
pub struct AsOf {
    archive: Archive,
    head: Head,
    /// The snapshot below which nothing is looked for; 0: there is none.
    base: Txid,
    page_size: PageSize,
    overlay: Overlay,
}

impl AsOf {
    /// The state: position, page size and count, time, WAL cursor, change counter.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Where the database is, then.
    #[must_use]
    pub fn pos(&self) -> Pos {
        self.head.pos
    }

    /// Its page size.
    #[must_use]
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Its length in pages.
    #[must_use]
    pub fn page_count(&self) -> u32 {
        self.head.page_count
    }

    /// When the transaction was recorded, µs since 1970.
    #[must_use]
    pub fn time_us(&self) -> u64 {
        self.head.time_us
    }

    /// Reads a page. The lock-byte page, which is not part of the image, reads as zeros.
    ///
    /// # Errors
    /// [`Error::Misuse`] for a page that there is not, or a `page` of another length than the page size; [`Error::Corrupt`] with the
    /// file and the place in it when something is damaged; [`Error::NotFound`] if a file is gone; [`Error::Io`].
    pub fn read_page(&mut self, pgno: Pgno, page: &mut [u8]) -> Result<()> {
        if page.len() != self.page_size.bytes() {
            return Err(Error::Misuse("a buffer that has not the page size"));
        }
        if pgno == 0 || pgno > self.head.page_count {
            return Err(Error::Misuse("a page beyond the end of the database"));
        }
        if pgno == self.page_size.lock_page() {
            page.fill(0);
            return Ok(());
        }
        self.overlay.clear();
        let mut txid = self.head.pos.txid;
        while txid > self.base {
            let Some((layer, source)) = self.archive.source(txid)? else {
                return Err(self.gone(txid));
            };
            let laid = match source {
                Source::Sealed(file) => file.lay(pgno, txid, self.base, &mut self.overlay)?,
                Source::Raw(tail) => {
                    let mut tail = lock(&tail);
                    tail.extend(txid)?;
                    if tail.last() < txid {
                        return Err(self.gone(txid));
                    }
                    tail.lay(pgno, txid, self.base, self.page_size, &mut self.overlay)?
                }
            };
            if laid == Laid::Whole {
                page.copy_from_slice(self.overlay.page());
                return Ok(());
            }
            txid = layer.first.previous();
        }
        self.from_snapshot(pgno)?;
        page.copy_from_slice(self.overlay.page());
        Ok(())
    }

    /// Fills in what no record says.
    fn from_snapshot(&mut self, pgno: Pgno) -> Result<()> {
        let storage = self.archive.storage();
        if self.base.0 == 0 {
            return Err(Error::Corrupt {
                path: storage.display(""),
                offset: 0,
                txid: Some(self.head.pos.txid),
                what: format!("no transaction gives all of page {pgno}"),
                hint: DAMAGE_HINT,
            });
        }
        let Some(file) = self.archive.snapshot(self.base)? else {
            return Err(self.gone(self.base));
        };
        match file.lay(pgno, self.base, Txid(0), &mut self.overlay)? {
            Laid::Whole => Ok(()),
            Laid::Older => {
                let what = format!("the snapshot lacks page {pgno}");
                Err(file.corrupt(&file.footer.root, Some(self.base), what))
            }
        }
    }

    fn gone(&self, txid: Txid) -> Error {
        Error::NotFound {
            what: format!(
                "{}: transaction {txid}, which the state after {} builds on, is gone",
                self.archive.storage().display(""),
                self.head.pos.txid
            ),
            hint: "the history was shortened meanwhile: open another state",
        }
    }

    /// The checksum of all pages, from the pages: the same as that of [`AsOf::pos`] if all is well.
    ///
    /// # Errors
    /// As [`AsOf::read_page`].
    pub fn scan_checksum(&mut self) -> Result<Checksum> {
        let mut sum = Checksum(0);
        let mut page = vec![0; self.page_size.bytes()];
        for pgno in 1..=self.head.page_count {
            if pgno != self.page_size.lock_page() {
                self.read_page(pgno, &mut page)?;
                sum ^= page_checksum(pgno, &page);
            }
        }
        Ok(sum)
    }
}
