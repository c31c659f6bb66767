//! Rollback modes: one transaction, from its first write to the record that holds it.

use crate::capture::guard::{LogGuard, Trust};
use crate::capture::header::DbHeader;
use crate::capture::image::Image;
use crate::capture::positioned::read_at;
use crate::capture::preimage::PreImages;
use crate::capture::recent::RecentPages;
use crate::capture::reconcile::{compare, stamp_checkpoint, verify};
use crate::capture::run::Run;
use crate::capture::shared::{ConnectionFiles, SharedLog, journal_error, now_us};
use crate::capture::written::{Written, read_padded, read_run};
use crate::config::LogSync;
use crate::error::Result;
use crate::vfs::{Base, COUNTERS_BYTES};
use mycelite_journal::{Draft, FLAG_REBASE, Head, Log, PageSize, WalCursor};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A transaction that may become a record. Holds the log from the write lock to the commit, so that a record can be
/// prepared in one call and published in another.
pub struct Transaction {
    guard: LogGuard,
    files: Arc<ConnectionFiles>,
    /// The log's state when the transaction began, which is the image then.
    head: Head,
    pre: PreImages,
    /// Pages read before SQLite has come to writing them. As long as `pre` does not hold them, they are as they were.
    ahead: Run,
    /// The last page kept from the file, and how many before it in a row.
    last_kept: u32,
    kept_in_a_row: usize,
    written: Written,
    /// The file has at least so many bytes.
    file_bytes: u64,
    /// There was no database in the file when the transaction began, whatever the log knows of an earlier one.
    fresh: bool,
    /// It ended without a commit.
    rolled_back: bool,
    /// Something was written or cut.
    touched: bool,
    /// The record of what was written is in the log, without its trailer.
    prepared: bool,
    /// It leaves the database in WAL mode.
    to_wal: bool,
}

impl Transaction {
    /// Begins: the write lock is held, nothing is written yet. `counters`: what SQLite has read of the header since it has
    /// the shared lock.
    ///
    /// # Errors
    /// The log cannot be locked or read, or the database cannot be read.
    pub fn begin(
        shared: &Arc<SharedLog>,
        files: Arc<ConnectionFiles>,
        counters: Option<[u8; COUNTERS_BYTES]>,
    ) -> Result<Transaction> {
        let now = shared.sight()?;
        let mut guard = shared.acquire()?;
        let was_verified = guard.trust() == Trust::Verified;
        verify(shared, &mut guard, &files)?;
        let is_left =
            counters.is_some_and(|counters| was_verified && guard.is_left(&now, &counters));
        let found = match is_left {
            true => None,
            false => DbHeader::find(files.db.as_ref())?,
        };
        if guard.is_file_changed(&now) || !is_left && is_foreign(found, &guard.head()) {
            let head = guard.head();
            guard.set_trust(Trust::Broken);
            compare(shared, &mut guard, &files, true)?;
            guard.set_trust(Trust::Verified);
            guard.unmark(found.map(|_| now))?;
            if guard.head() == head {
                guard.count_false_alarm();
            }
        }
        let head = guard.head();
        let page_bytes = head.page_size.map_or(512, PageSize::get);
        guard.state.recent.align(&head, page_bytes as usize);
        Ok(Transaction {
            guard,
            files,
            head,
            pre: PreImages::new(page_bytes, &shared.options().dir),
            ahead: Run::new(page_bytes as usize),
            last_kept: 0,
            kept_in_a_row: 0,
            written: Written::new(page_bytes),
            file_bytes: now.bytes,
            fresh: !is_left && found.is_none(),
            rolled_back: false,
            touched: false,
            prepared: false,
            to_wal: false,
        })
    }

    /// Keeps the images of the pages that a write of `data` at `offset` touches.
    ///
    /// # Errors
    /// A page cannot be read or kept.
    pub fn before_write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.touch()?;
        let end = offset.saturating_add(data.len() as u64);
        self.file_bytes = self.file_bytes.max(end);
        let Some(size) = self.old_page_bytes() else {
            return Ok(());
        };
        self.keep(offset / size + 1, end.div_ceil(size))?;
        self.written.put(offset, data);
        Ok(())
    }

    /// The write of `bytes` bytes at `offset` failed: what is there now is in the file, whatever it is.
    pub fn write_failed(&mut self, offset: u64, bytes: usize) {
        self.written.forget(offset, bytes);
        self.file_bytes = 0;
    }

    /// Keeps the images of the pages that a cut to `bytes` drops.
    ///
    /// # Errors
    /// A page cannot be read or kept.
    pub fn before_truncate(&mut self, bytes: u64) -> Result<()> {
        self.written.forget(bytes, usize::MAX);
        self.file_bytes = self.file_bytes.min(bytes);
        let Some(size) = self.old_page_bytes() else {
            return Ok(());
        };
        if self.prepared {
            // The commit's own cut, which the prepared record has accounted for.
            return Ok(());
        }
        self.touch()?;
        self.keep(bytes / size + 1, u64::from(self.head.page_count))
    }

    /// The file is about to change.
    fn touch(&mut self) -> Result<()> {
        if !std::mem::replace(&mut self.touched, true) {
            self.guard.mark()?;
        }
        Ok(())
    }

    /// Bytes of a page in the old image; `None` when there is no old image to keep.
    fn old_page_bytes(&self) -> Option<u64> {
        let size = self.head.page_size.filter(|_| !self.fresh)?;
        Some(u64::from(size.get()))
    }

    fn keep(&mut self, first: u64, last: u64) -> Result<()> {
        let Some(size) = self.head.page_size else {
            return Ok(());
        };
        for pgno in first..=last.min(u64::from(self.head.page_count)) {
            let Ok(pgno) = u32::try_from(pgno) else {
                break;
            };
            if self.pre.contains(pgno) || pgno == size.lock_page() {
                continue;
            }
            if let Some(recent) = self.guard.state.recent.get(pgno) {
                self.pre.insert(pgno, |page| {
                    page.copy_from_slice(recent);
                    Ok(())
                })?;
                continue;
            }
            self.keep_from_file(pgno, last)?;
        }
        Ok(())
    }

    /// Keeps page `pgno` as the file has it. The pages up to `last` are wanted next; where pages have been wanted one after the
    /// other, it is taken that as many more will be.
    fn keep_from_file(&mut self, pgno: u32, last: u64) -> Result<()> {
        let db = self.files.db.as_ref();
        let is_next = pgno - 1 == self.last_kept;
        self.kept_in_a_row = if is_next { self.kept_in_a_row + 1 } else { 0 };
        self.last_kept = pgno;
        let known = usize::try_from(last - u64::from(pgno)).map_or(usize::MAX, |more| more + 1);
        let likely = known.max(self.kept_in_a_row);
        if likely <= 1 && !self.ahead.holds(u64::from(pgno - 1)) {
            return self.pre.insert(pgno, |page| read_padded(db, pgno, page));
        }
        let pages = (pgno..=self.head.page_count).filter(|&pgno| !self.pre.contains(pgno));
        let page = read_run(db, pgno, pages.take(likely), &mut self.ahead)?;
        self.pre.insert(pgno, |place| {
            place.copy_from_slice(page);
            Ok(())
        })
    }

    /// All pages are in the file: prepares the record. A transaction that changed nothing prepares none.
    ///
    /// # Errors
    /// The file cannot be read, or the log cannot be written.
    pub fn prepare(&mut self) -> Result<()> {
        self.withdraw()?;
        if !self.touched {
            return Ok(());
        }
        let db = self.files.db.as_ref();
        let written = self.written.get(1).and_then(DbHeader::parse);
        let header = match written {
            Some(header) => Some(header),
            None => DbHeader::read(db)?,
        };
        let Some(header) = header else {
            return Ok(());
        };
        self.to_wal = header.wal;
        let page_count = self.pages_of(&header)?;
        let whole = self.fresh || self.head.page_size != Some(header.page_size);
        let draft = Draft {
            flags: if self.rolled_back || self.fresh && self.head.page_count > 0 {
                FLAG_REBASE
            } else {
                0
            },
            page_size: header.page_size,
            page_count,
            timeline: self.guard.timeline(),
            wal: WalCursor::default(),
            change_counter: header.change_counter,
            now_us: now_us(),
            whole,
        };
        let (log, _, recent) = self.guard.parts()?;
        self.prepared = if whole {
            write_whole(log, draft, &self.files)?
        } else {
            let images = (&self.pre, &self.written);
            write_difference(log, recent, draft, db, &self.head, images)?
        };
        Ok(())
    }

    /// Pages of the image now; the file is asked for its length only where it may not reach as far as `header` says.
    fn pages_of(&self, header: &DbHeader) -> Result<u32> {
        let page_bytes = u64::from(header.page_size.get());
        match header.page_count {
            Some(count) if u64::from(count) * page_bytes <= self.file_bytes => Ok(count),
            _ => Ok(header.pages(self.files.db.size()?)),
        }
    }

    /// The transaction is committed: publishes the record, and says whether there was one.
    ///
    /// # Errors
    /// The log cannot be written.
    pub fn publish(mut self, shared: &SharedLog) -> Result<()> {
        if self.touched && !self.prepared {
            self.prepare()?;
        }
        if self.prepared {
            let (log, _, recent) = self.guard.parts()?;
            log.publish().map_err(journal_error)?;
            recent.settle(log.head());
            if shared.options().sync == LogSync::Full {
                log.sync().map_err(journal_error)?;
            }
            shared.announce(&self.guard);
            if self.to_wal {
                stamp_checkpoint(shared, &self.guard)?;
            }
        }
        if self.touched {
            self.guard.unmark(Some(shared.sight()?))?;
        }
        Ok(())
    }

    /// The write lock drops without a commit. What a rollback did not restore (free pages, which SQLite does not keep;
    /// anything, without a journal) is in the image now, and becomes a record.
    ///
    /// # Errors
    /// The file cannot be read, or the log cannot be written.
    pub fn settle(mut self, shared: &SharedLog) -> Result<()> {
        self.withdraw()?;
        if self.touched && is_hot(&shared.options().database) {
            // SQLite could not roll back: whoever looks next does, so nobody ever reads this image. The mark stays, and
            // the next writer compares.
            shared.doubt(&mut self.guard);
            return Ok(());
        }
        self.rolled_back = true;
        self.publish(shared)
    }

    /// Takes a prepared record back.
    fn withdraw(&mut self) -> Result<()> {
        if std::mem::take(&mut self.prepared) {
            // They are of that record; the next takes what is held for the pages as they were at the start.
            self.guard.state.recent.forget();
            self.guard.log()?.discard().map_err(journal_error)?;
        }
        Ok(())
    }

    /// The log, for a failure that must be remembered before it is released.
    pub fn guard(&mut self) -> &mut LogGuard {
        &mut self.guard
    }
}

/// Whether the database has a rollback journal that its next reader will roll back. Nobody locks a journal, so a
/// descriptor of our own does no harm.
fn is_hot(database: &Path) -> bool {
    let mut name = database.as_os_str().to_owned();
    name.push("-journal");
    let mut first = [0];
    match File::open(PathBuf::from(name)) {
        Ok(journal) => read_at(&journal, &mut first, 0).is_err() || first != [0],
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

/// Whether someone without the extension has committed since the last record: the change counter in the header `found`
/// tells, or the shape. Where no database was found, the first transaction says what is in it.
fn is_foreign(found: Option<DbHeader>, head: &Head) -> bool {
    found.is_some_and(|header| {
        header.change_counter != head.change_counter
            || head.page_size != Some(header.page_size)
            || header
                .page_count
                .is_some_and(|count| count != head.page_count)
    })
}

/// Prepares a record of every page.
fn write_whole(log: &mut Log, draft: Draft, files: &ConnectionFiles) -> Result<bool> {
    let files = ConnectionFiles {
        wal: None,
        ..files.clone()
    };
    let Some(image) = Image::open(&files, true, None)? else {
        return Ok(false);
    };
    let mut writer = log.begin(draft).map_err(journal_error)?;
    image.for_each(|pgno, page| writer.patch(pgno, None, page).map_err(journal_error))?;
    writer.prepare().map_err(journal_error)?;
    Ok(true)
}

/// Prepares a record of the pages that differ; false, and no record, when none does.
fn write_difference(
    log: &mut Log,
    recent: &mut RecentPages,
    draft: Draft,
    db: &dyn Base,
    head: &Head,
    (pre, written): (&PreImages, &Written),
) -> Result<bool> {
    let (page_size, page_count) = (draft.page_size, draft.page_count);
    let mut writer = log.begin(draft).map_err(journal_error)?;
    let (mut olds, mut news) = (Run::new(page_size.bytes()), Run::new(page_size.bytes()));
    for pgno in pre.pages_from(1).take_while(|&pgno| pgno <= page_count) {
        let wanted = pre.pages_from(pgno).take_while(|&pgno| pgno <= page_count);
        let now = written.page(db, pgno, wanted, &mut news)?;
        let old = pre.page(pgno, &mut olds)?;
        // What is still held is the page as it was at the start.
        let known = recent.get_known(pgno).and_then(|(_, checksum)| checksum);
        let checksum = writer.patch_known(pgno, old, known, now);
        recent.put(pgno, now, checksum.map_err(journal_error)?);
    }
    let is_page = |pgno: &u32| *pgno != page_size.lock_page();
    for pgno in (head.page_count + 1..=page_count).filter(is_page) {
        let wanted = (pgno..=page_count).filter(is_page);
        let now = written.page(db, pgno, wanted, &mut news)?;
        let checksum = writer.patch_known(pgno, None, None, now);
        recent.put(pgno, now, checksum.map_err(journal_error)?);
    }
    for pgno in (page_count + 1..=head.page_count).filter(is_page) {
        let old = match pre.page(pgno, &mut olds)? {
            Some(old) => old,
            None => {
                let wanted = (pgno..=head.page_count).filter(is_page);
                let wanted = wanted.take_while(|&pgno| !pre.contains(pgno));
                read_run(db, pgno, wanted, &mut news)?
            }
        };
        writer.drop_page(pgno, old).map_err(journal_error)?;
    }
    if writer.is_unchanged() {
        writer.abort().map_err(journal_error)?;
        return Ok(false);
    }
    writer.prepare().map_err(journal_error)?;
    Ok(true)
}
