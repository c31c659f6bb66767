//! WAL mode: every commit frame after the log's cursor becomes a record.
//!
//! Idempotent, and right from any connection of any process that holds the log: it goes by what is in the WAL, not by
//! what this process wrote. The WAL is read, never trusted: a frame counts when its checksum fits.

use crate::capture::guard::LogGuard;
use crate::capture::header::DbHeader;
use crate::capture::lane::Lane;
use crate::capture::recent::RecentPages;
use crate::capture::run::Run;
use crate::capture::shared::{ConnectionFiles, SharedLog, journal_error, now_us};
use crate::capture::wal::{
    FRAME_HEADER_BYTES, Frames, WalHeader, WalIndex, WalTransaction, WalView, committed,
};
use crate::capture::written::{read_padded, read_run};
use crate::config::LogSync;
use crate::error::Result;
use crate::vfs::Base;
use mycelite_journal::{Draft, Head, Log, RecordWriter, Timeline, WalCursor};
use std::iter::once;

/// What [`catch_up`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatchUp {
    /// The log holds every commit in the WAL; so many were new.
    Captured(usize),
    /// Someone without the extension checkpointed or restarted the WAL: the image must be compared.
    Lost,
}

/// Appends a record for each commit in the WAL that the log does not hold. `locked`: the caller has the WAL write lock.
///
/// # Errors
/// A failed read of the database or the WAL, or the log cannot be written.
pub fn catch_up(
    shared: &SharedLog,
    guard: &mut LogGuard,
    files: &ConnectionFiles,
    locked: bool,
) -> Result<CatchUp> {
    let Some(wal) = files.wal.as_deref() else {
        return Ok(CatchUp::Captured(0));
    };
    let Some(header) = WalHeader::read(wal)? else {
        return if is_destroyed(files.db.as_ref(), wal)? {
            Ok(CatchUp::Lost)
        } else {
            Ok(CatchUp::Captured(0))
        };
    };
    let extent = committed(files, &header, locked)?;
    if extent.last == 0 {
        return Ok(CatchUp::Captured(0));
    }
    let head = guard.head();
    let Some(cursor) = cursor_in(shared, guard, wal, &header)? else {
        return Ok(CatchUp::Lost);
    };
    if head.page_size.is_some_and(|size| size != header.page_size) {
        return Ok(CatchUp::Lost);
    }
    let frames = Frames::after(wal, header, cursor, extent.last).kept_in(&files.written);
    follow(shared, guard, files, frames, locked)
}

/// As [`catch_up`], for the connection that has just committed.
///
/// # Errors
/// As [`catch_up`].
pub fn catch_up_commit(
    shared: &SharedLog,
    guard: &mut LogGuard,
    files: &ConnectionFiles,
) -> Result<CatchUp> {
    let head = guard.head();
    let own = guard.parts()?.1.own_commit(files, &head);
    match (own, files.wal.as_deref()) {
        (Some((header, last)), Some(wal)) if head.page_size == Some(header.page_size) => {
            let frames = Frames::after(wal, header, head.wal, last).kept_in(&files.written);
            follow(shared, guard, files, frames.own(), false)
        }
        _ => catch_up(shared, guard, files, false),
    }
}

/// Records the commits in `frames`, which begin where the log stands.
fn follow(
    shared: &SharedLog,
    guard: &mut LogGuard,
    files: &ConnectionFiles,
    frames: Frames<'_>,
    locked: bool,
) -> Result<CatchUp> {
    let (wal, header, cursor) = frames.begin();
    let head = guard.head();
    let timeline = guard.timeline();
    let (log, view, recent) = guard.parts()?;
    view.advance_to(wal, &header, &cursor)?;
    recent.align(&head, header.page_size.bytes());
    let mut frames = frames.padded(files.db.wal_padding());
    let (mut captured, mut lost) = (0, false);
    let followed = (|| {
        while let Some(transaction) = frames.next_transaction()? {
            let pages = Pages {
                files,
                wal,
                header,
                view,
                frames: &frames,
                timeline,
                lane: shared.lane(),
                locked,
                syncs: shared.options().sync != LogSync::Off,
            };
            if !pages.record(log, recent, &transaction)? {
                lost = true;
                break;
            }
            view.add(&header, &transaction);
            captured += 1;
        }
        Ok(())
    })();
    // Whatever has ended it, the records before are right.
    let written = log.write_held().map_err(journal_error);
    followed.and(written)?;
    // A commit that SQLite counts and that is not whole in the WAL: its next checkpoint tells what it was.
    lost |= !frames.is_at_end();
    if captured > 0 {
        shared.announce(guard);
    }
    if lost {
        return Ok(CatchUp::Lost);
    }
    Ok(CatchUp::Captured(captured))
}

/// Whether the WAL has no header although the wal-index speaks of commits in it: something other than SQLite was there, and
/// what the log holds may not have reached the database.
fn is_destroyed(db: &dyn Base, wal: &dyn Base) -> Result<bool> {
    let index = db.wal_index().and_then(|bytes| WalIndex::parse(&bytes));
    // A new generation has its header before the index speaks of it.
    Ok(index.is_some_and(|index| index.last_frame > 0) && WalHeader::read(wal)?.is_none())
}

/// Where the log stands in the WAL generation of `header`: by the link, if it was left after the last record, else by that.
/// A WAL whose frames a power cut has lost begins again with the same salts.
pub fn cursor_in(
    shared: &SharedLog,
    guard: &mut LogGuard,
    wal: &dyn Base,
    header: &WalHeader,
) -> Result<Option<WalCursor>> {
    let head = guard.head();
    let link = guard.parts()?.1.link(&shared.options().dir);
    if let Some(link) = link.filter(|link| link.speaks_of(&head, header.salt)) {
        return link.cursor(wal, header);
    }
    Ok((head.wal.frame > 0 && head.wal.salt == header.salt).then_some(head.wal))
}

/// Whether the database file holds each page that the log has from the WAL, as a checkpoint of the whole WAL leaves it.
///
/// # Errors
/// A failed read.
pub fn is_copied(guard: &mut LogGuard, files: &ConnectionFiles) -> Result<bool> {
    let Some(wal) = files.wal.as_deref() else {
        return Ok(true);
    };
    let Some(header) = WalHeader::read(wal)? else {
        return Ok(true);
    };
    let head = guard.head();
    let view = guard.parts()?.1;
    let (mut copied, mut logged) = (vec![0; header.page_size.get() as usize], Vec::new());
    logged.clone_from(&copied);
    for (pgno, frame) in view.frames_of(&header) {
        if pgno <= head.page_count {
            read_padded(files.db.as_ref(), pgno, &mut copied)?;
            header.read_page(wal, frame, &mut logged)?;
            if copied != logged {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Old and new pages of one WAL transaction.
struct Pages<'a> {
    files: &'a ConnectionFiles,
    wal: &'a dyn Base,
    header: WalHeader,
    view: &'a WalView,
    frames: &'a Frames<'a>,
    /// Of the records to come.
    timeline: Timeline,
    /// What the checkpoints of this process wait for.
    lane: &'a Lane,
    /// The caller has the WAL write lock.
    locked: bool,
    /// Whether the log is synced.
    syncs: bool,
}

impl Pages<'_> {
    /// Appends and publishes the record of `transaction`; false, and none, when a foreign checkpoint went ahead of the log
    /// meanwhile: then the old pages may not be what they were.
    fn record(
        &self,
        log: &mut Log,
        recent: &mut RecentPages,
        transaction: &WalTransaction,
    ) -> Result<bool> {
        let head = *log.head();
        let header = self.header_after(transaction, &head, recent)?;
        let page_count = header.map_or(transaction.page_count, |header| {
            header.pages_of(transaction.page_count)
        });
        let change_counter = match header {
            Some(header) if transaction.pages.contains_key(&1) => header.change_counter,
            _ => head.change_counter,
        };
        let mut writer = log
            .begin(Draft {
                flags: 0,
                page_size: self.header.page_size,
                page_count,
                timeline: self.timeline,
                wal: transaction.cursor,
                change_counter,
                now_us: now_us(),
                whole: false,
            })
            .map_err(journal_error)?;
        if self.syncs {
            // Before the next checkpoint.
            writer.start_sync();
        }
        self.write_difference(
            &mut writer,
            recent,
            transaction,
            (head.page_count, page_count),
        )?;
        if self.is_overtaken(transaction)? {
            writer.abort().map_err(journal_error)?;
            return Ok(false);
        }
        self.finish(writer)?;
        recent.settle(log.head());
        Ok(true)
    }

    /// Puts the pages into the record that differ after `transaction`; there were and are so many as `page_counts` says.
    fn write_difference(
        &self,
        writer: &mut RecordWriter<'_>,
        recent: &mut RecentPages,
        transaction: &WalTransaction,
        (old_count, page_count): (u32, u32),
    ) -> Result<()> {
        // Of no use, and empty, where all pages are in memory.
        let (mut olds, mut news) = (Runs::new(&self.header), Runs::new(&self.header));
        let written = transaction.pages.keys().copied();
        // SQLite may leave a page that is new and already free unwritten; its image is what a read would give.
        let unwritten =
            (old_count + 1..=page_count).filter(|pgno| !transaction.pages.contains_key(pgno));
        let last_old = old_count.min(page_count);
        for pgno in merge_ascending(written, unwritten) {
            if pgno > page_count || pgno == self.header.page_size.lock_page() {
                continue;
            }
            let now = match transaction.pages.get(&pgno) {
                Some(&frame) => {
                    let wanted = transaction.pages.range(pgno..).map(|(_, frame)| *frame);
                    self.frames.page_of_run(frame, wanted, &mut news.frames)?
                }
                None => self.read_old(pgno, once(pgno), &mut news)?,
            };
            let (before, known) = match recent.get_known(pgno) {
                _ if pgno > old_count => (None, None),
                Some((recent, known)) => (Some(recent), known),
                None => {
                    let written = transaction
                        .pages
                        .range(pgno..=last_old)
                        .map(|(pgno, _)| *pgno);
                    let wanted = written.take_while(|pgno| recent.get(*pgno).is_none());
                    (Some(self.read_old(pgno, wanted, &mut olds)?), None)
                }
            };
            let checksum = writer.patch_known(pgno, before, known, now);
            recent.put(pgno, now, checksum.map_err(journal_error)?);
        }
        let is_page = |pgno: &u32| *pgno != self.header.page_size.lock_page();
        for pgno in (page_count + 1..=old_count).filter(is_page) {
            let wanted = (pgno..=old_count).filter(is_page);
            let dropped = self.read_old(pgno, wanted, &mut olds)?;
            writer.drop_page(pgno, dropped).map_err(journal_error)?;
        }
        Ok(())
    }

    /// The record is complete. Who catches up for a commit has no other to write, as a rule.
    fn finish(&self, writer: RecordWriter<'_>) -> Result<()> {
        let done = if self.files.is_twin {
            writer.hold()
        } else {
            writer.commit()
        };
        done.map(drop).map_err(journal_error)
    }

    /// Whether the database file, or the WAL itself, was overwritten by what the log does not hold. Our own checkpoints wait
    /// for the log; one that went ahead has overwritten pages that the difference needs.
    fn is_overtaken(&self, transaction: &WalTransaction) -> Result<bool> {
        let extent = committed(self.files, &self.header, self.locked)?;
        // One that waits for the log has noted how far it will go, and has not begun.
        let is_ahead = extent.attempted > self.view.upto() && !self.lane.checkpoint_waits();
        Ok(extent.last < transaction.cursor.frame || is_ahead)
    }

    /// The database header after `transaction`, where it may differ from the one before: the page count of a commit frame includes
    /// what the file holds beyond the image.
    fn header_after(
        &self,
        transaction: &WalTransaction,
        head: &Head,
        recent: &RecentPages,
    ) -> Result<Option<DbHeader>> {
        let mut runs = Runs::new(&self.header);
        let page = match (transaction.pages.get(&1), recent.get(1)) {
            (Some(&frame), _) => self
                .frames
                .page_of_run(frame, once(frame), &mut runs.frames)?,
            (None, _) if transaction.page_count == head.page_count => return Ok(None),
            (None, Some(recent)) => recent,
            (None, None) => self.read_old(1, once(1), &mut runs)?,
        };
        Ok(DbHeader::parse(page))
    }

    /// The page as the log knows it, by way of `runs`: its newest captured frame, else the database file, which the checkpoint
    /// gate keeps from getting ahead of the log. `wanted`: the pages that are wanted one after the other, from `pgno` on.
    fn read_old<'p>(
        &self,
        pgno: u32,
        wanted: impl Iterator<Item = u32>,
        runs: &'p mut Runs,
    ) -> Result<&'p [u8]> {
        let Some(frame) = self.view.frame_of(pgno) else {
            let wanted = wanted.take_while(|pgno| self.view.frame_of(*pgno).is_none());
            return read_run(self.files.db.as_ref(), pgno, wanted, &mut runs.pages);
        };
        let wanted = wanted.map_while(|pgno| self.view.frame_of(pgno));
        self.header
            .read_page_of_run(self.wal, frame, wanted, &mut runs.frames)
    }
}

/// What was read last of the WAL and of the database file.
struct Runs {
    frames: Run,
    pages: Run,
}

impl Runs {
    fn new(header: &WalHeader) -> Runs {
        Runs {
            frames: Run::new(FRAME_HEADER_BYTES + header.page_size.bytes()),
            pages: Run::new(header.page_size.bytes()),
        }
    }
}

/// Two ascending sequences without common members as one.
fn merge_ascending(
    a: impl Iterator<Item = u32>,
    b: impl Iterator<Item = u32>,
) -> impl Iterator<Item = u32> {
    let (mut a, mut b) = (a.peekable(), b.peekable());
    std::iter::from_fn(move || match (a.peek(), b.peek()) {
        (Some(x), Some(y)) if x < y => a.next(),
        (_, Some(_)) => b.next(),
        (_, None) => a.next(),
    })
}
