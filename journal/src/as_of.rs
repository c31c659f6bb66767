//! The database as of one transaction.

use crate::archive::{Archive, Source, lock};
use crate::cursor::Head;
use crate::entry::DAMAGE_HINT;
use crate::error::{Error, Result};
use crate::pos::{Checksum, PageSize, Pgno, Pos, Txid, page_checksum};
use crate::sealed::file::{BlockFile, Laid};
use crate::sealed::overlay::Overlay;
use crate::tail_index::TailIndex;

impl Archive {
    /// The database as of a transaction: what it was right after it.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the transaction is not in the log, or what it builds on is gone; [`Error::Corrupt`],
    /// [`Error::Version`], [`Error::Io`].
    pub fn as_of(&self, txid: Txid) -> Result<AsOf> {
        let (head, base) = self.find_state(txid)?;
        self.trim();
        let page_size = head.page_size.unwrap_or(PageSize::MIN);
        Ok(AsOf {
            archive: self.clone(),
            head,
            base,
            page_size,
            overlay: Overlay::new(page_size),
            checked: None,
        })
    }

    /// The state after a transaction, and the snapshot that older pages come from; [`Pos::ZERO`] for none.
    fn find_state(&self, txid: Txid) -> Result<(Head, Pos)> {
        let (head, base) = self.plan(txid)?;
        let base = match base {
            Txid(0) => Pos::ZERO,
            at => match self.snapshot(at)? {
                Some(file) => file.footer.head.pos,
                None => Pos::ZERO,
            },
        };
        Ok((head, base))
    }
}

/// The database as of one transaction, read page by page: see [`Archive`].
///
/// It stays readable while the log grows, is sealed, compacted and shortened, as long as the state itself is kept.
pub struct AsOf {
    archive: Archive,
    head: Head,
    /// The snapshot below which nothing is looked for; [`Pos::ZERO`]: there is none.
    base: Pos,
    page_size: PageSize,
    overlay: Overlay,
    /// The number of the file in which the state's own record was found as it was.
    checked: Option<u64>,
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
        match self.lay(pgno) {
            // What it was to be put together from is gone, but not the state: it begins with another snapshot now.
            Err(Error::NotFound { what, hint }) => {
                match self.archive.find_state(self.head.pos.txid) {
                    Ok((head, base)) if head.pos == self.head.pos && base != self.base => {
                        self.base = base;
                        self.checked = None;
                        self.lay(pgno)?;
                    }
                    _ => return Err(Error::NotFound { what, hint }),
                }
            }
            laid => laid?,
        }
        page.copy_from_slice(self.overlay.page());
        Ok(())
    }

    /// Puts all of a page together.
    fn lay(&mut self, pgno: Pgno) -> Result<()> {
        self.overlay.clear();
        let mut pos = self.head.pos;
        while pos.txid > self.base.txid {
            let Some((_, source)) = self.archive.source(pos.txid)? else {
                return Err(self.gone(pos.txid));
            };
            let (laid, follows) = match source {
                Source::Sealed(file) => (self.lay_sealed(&file, pgno, pos)?, file.header.pos),
                Source::Raw(tail) => {
                    let mut tail = lock(&tail);
                    (self.lay_raw(&mut tail, pgno, pos)?, tail.follows())
                }
            };
            if laid == Laid::Whole {
                return Ok(());
            }
            pos = follows;
        }
        self.lay_snapshot(pgno)
    }

    fn lay_sealed(&mut self, file: &BlockFile, pgno: Pgno, pos: Pos) -> Result<Laid> {
        let end = &file.footer.head.pos;
        if end.txid == pos.txid {
            if *end != pos {
                return Err(self.gone(pos.txid));
            }
        } else if self.checked != Some(file.number) {
            let found = file.record_before(pos.txid)?;
            if found.map(|header| header.pos()) != Some(pos) {
                return Err(self.gone(pos.txid));
            }
            self.checked = Some(file.number);
        }
        file.lay(pgno, pos.txid, self.base.txid, &mut self.overlay)
    }

    fn lay_raw(&mut self, tail: &mut TailIndex, pgno: Pgno, pos: Pos) -> Result<Laid> {
        tail.extend(pos.txid)?;
        if tail.last() == pos.txid {
            if tail.pos() != pos {
                return Err(self.gone(pos.txid));
            }
        } else if self.checked != Some(tail.number) {
            if tail.header(pos.txid)?.map(|header| header.pos()) != Some(pos) {
                return Err(self.gone(pos.txid));
            }
            self.checked = Some(tail.number);
        }
        let base = self.base.txid;
        tail.lay(pgno, pos.txid, base, self.page_size, &mut self.overlay)
    }

    /// Fills in what no record says.
    fn lay_snapshot(&mut self, pgno: Pgno) -> Result<()> {
        let storage = self.archive.storage();
        if self.base == Pos::ZERO {
            return Err(Error::Corrupt {
                path: storage.display(""),
                offset: 0,
                txid: Some(self.head.pos.txid),
                what: format!("no transaction gives all of page {pgno}"),
                hint: DAMAGE_HINT,
            });
        }
        let at = self.base.txid;
        let file = self.archive.snapshot(at)?;
        let Some(file) = file.filter(|file| file.footer.head.pos == self.base) else {
            return Err(self.gone(at));
        };
        match file.lay(pgno, at, Txid(0), &mut self.overlay)? {
            Laid::Whole => Ok(()),
            Laid::Older => {
                let what = format!("the snapshot lacks page {pgno}");
                Err(file.corrupt(&file.footer.root, Some(at), what))
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
            hint: "the history was shortened or cut meanwhile: open a state anew",
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
