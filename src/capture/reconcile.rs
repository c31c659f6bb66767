//! Establishing "log state = file image" where it cannot be taken for granted.
//!
//! Runs at the moment at which a connection has the write lock, so that the image stands still and SQLite has rolled
//! back whatever a crash left. Three answers: the stamp of a clean close fits, another living process vouches, or the
//! image is compared page by page and one record holds the difference (P8).

use crate::capture::adoption::Adoption;
use crate::capture::catch_up::{CatchUp, catch_up, cursor_in};
use crate::capture::company::Company;
use crate::capture::guard::{LogGuard, Trust};
use crate::capture::header::DbHeader;
use crate::capture::image::Image;
use crate::capture::shared::{ConnectionFiles, SharedLog, journal_error, now_us};
use crate::capture::stamp::{Occasion, Stamp};
use crate::capture::timeline;
use crate::capture::wal::{WalHeader, WalIndex};
use crate::capture::wal_link::WalLink;
use crate::error::{Error, ErrorKind, Result};
use mycelite_journal::{
    Archive, Draft, FLAG_ADOPT, FLAG_REBASE, FileStorage, Head, OpenMode, PreparedTail, Reader,
    Storage, Txid, WalCursor,
};
use std::sync::Arc;

/// File in the log directory in which the log's state is laid out for comparing; removed afterwards.
const COMPARE_FILE: &str = "compare.tmp";

/// Makes log state = file image, or begins an adoption that will; then `guard` has lost the log. The caller has SQLite's
/// write lock.
///
/// # Errors
/// A failed read of the database, or the log cannot be read or written.
pub fn verify(
    shared: &Arc<SharedLog>,
    guard: &mut LogGuard,
    files: &ConnectionFiles,
) -> Result<()> {
    if guard.trust() == Trust::Verified {
        if !guard.is_undisturbed() {
            settle_tail(guard, files, true)?;
        }
        return Ok(());
    }
    let company = shared.join_users(guard)?;
    let alone = company == Company::None;
    let dir = &shared.options().dir;
    let stamp = if alone { Stamp::remove(dir)? } else { None };
    let entered = timeline::enter(dir, &guard.head(), stamp.as_ref())?;
    guard.set_timeline(entered.timeline);
    if !guard.is_undisturbed() {
        settle_tail(guard, files, !entered.is_new_boot)?;
    }
    let head = guard.head();
    let unbroken = guard.trust() == Trust::Unknown;
    let vouched = unbroken
        && match stamp {
            Some(stamp) => Stamp::take(&shared.options().database, &head)? == stamp,
            // Whoever else has it open has not looked yet at what an outsider did meanwhile.
            None => company == Company::Same && !guard.is_file_changed(&shared.sight()?),
        };
    // Commits that the log can follow one by one must not be lumped together in a comparison.
    let followed = (vouched || is_at_cursor(shared, guard, files)?)
        && catch_up(shared, guard, files, true)? != CatchUp::Lost;
    if !followed {
        if Adoption::begin(shared, guard, files)? {
            return Ok(());
        }
        compare(shared, guard, files, true)?;
    }
    if followed && !alone {
        check_generation(shared, guard, files)?;
    } else if files.wal.is_some() {
        stamp_checkpoint(shared, guard)?;
    }
    // Where there is no database, the log's head is not what the file holds.
    let left = files.wal.is_none() && DbHeader::find(files.db.as_ref())?.is_some();
    guard.unmark(left.then(|| shared.sight()).transpose()?)?;
    guard.set_trust(Trust::Verified);
    shared.recovered();
    Ok(())
}

/// A new WAL generation is about to begin, or just has and is empty: if the database file is not as our last checkpoint
/// left it, a process without the extension has put commits there that no WAL holds any more. The caller has the WAL
/// write lock.
///
/// # Errors
/// As [`compare`].
pub fn check_generation(
    shared: &SharedLog,
    guard: &mut LogGuard,
    files: &ConnectionFiles,
) -> Result<()> {
    let index = files
        .db
        .wal_index()
        .and_then(|bytes| WalIndex::parse(&bytes));
    if files.wal.is_none() || index.is_some_and(|index| index.last_frame > 0) {
        return Ok(());
    }
    let now = Stamp::take(&shared.options().database, &guard.head())?;
    if now.fits_last_checkpoint(&shared.options().dir) {
        return Ok(());
    }
    compare(shared, guard, files, true)?;
    stamp_checkpoint(shared, guard)
}

/// The database file is as the log knows it: leaves the stamp that says so.
///
/// # Errors
/// The file cannot be examined, or the stamp cannot be written.
pub fn stamp_checkpoint(shared: &SharedLog, guard: &LogGuard) -> Result<()> {
    let options = shared.options();
    Stamp::take(&options.database, &guard.head())?.write(&options.dir, Occasion::Checkpoint)
}

/// Whether the image was what the log describes at the point of the WAL up to which the log goes.
fn is_at_cursor(shared: &SharedLog, guard: &mut LogGuard, files: &ConnectionFiles) -> Result<bool> {
    let Some(wal) = files.wal.as_deref() else {
        return Ok(false);
    };
    let Some(header) = WalHeader::read(wal)? else {
        return Ok(false);
    };
    // Where nothing says it, because a power cut took the link, the log may stand at the generation's beginning.
    let known = cursor_in(shared, guard, wal, &header)?;
    let cursor = known.unwrap_or_else(|| header.start());
    let head = guard.head();
    let image = match Image::open(files, true, Some(cursor)) {
        // All that the file ought to hold may still be in the WAL.
        Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(false),
        image => image?,
    };
    let is_there = match image {
        // A power cut may have lost frames that the log has.
        Some(image) => {
            (cursor.frame == 0 || image.cursor == cursor)
                && image.page_count == head.page_count
                && Some(image.page_size) == head.page_size
                && image.checksum()? == head.pos.checksum
        }
        None => false,
    };
    if is_there && known.is_none() {
        leave_link(shared, guard, cursor)?;
    }
    Ok(is_there)
}

/// Keeps or drops a prepared record whose writer died before it could say whether the transaction was committed. Of
/// another boot (not `may_keep`) it is dropped in any case: a replica may have another one in its place, and what is in
/// the file is found by comparing.
fn settle_tail(guard: &mut LogGuard, files: &ConnectionFiles, may_keep: bool) -> Result<()> {
    let log = guard.log()?;
    let prepared = if may_keep { log.prepared() } else { Ok(None) };
    let keep = match prepared.map_err(journal_error)? {
        // What the WAL holds is captured again from there.
        Some(tail) if tail.header().wal.frame > 0 => false,
        Some(tail) => is_in_file(&tail, files)?,
        None => false,
    };
    if keep {
        log.publish_prepared().map_err(journal_error)?;
    } else {
        log.drop_tail().map_err(journal_error)?;
    }
    Ok(())
}

/// Whether the file holds what the prepared record says.
fn is_in_file(tail: &PreparedTail, files: &ConnectionFiles) -> Result<bool> {
    let Some(image) = Image::open(files, true, None)? else {
        return Ok(false);
    };
    let header = tail.header();
    if image.page_size != header.page_size || image.page_count != header.page_count {
        return Ok(false);
    }
    let mut page = vec![0; image.page_size.get() as usize];
    let mut patched = page.clone();
    let mut patches = tail.patches();
    while let Some(patch) = patches.next().map_err(journal_error)? {
        image.read_page(patch.pgno(), &mut page)?;
        patched.copy_from_slice(&page);
        patch.apply(&mut patched);
        if patched != page {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Compares the image with what the log describes, and appends the difference, if there is one, as a re-base record.
///
/// # Errors
/// A failed read of the database, or the log cannot be written.
pub fn compare(
    shared: &SharedLog,
    guard: &mut LogGuard,
    files: &ConnectionFiles,
    locked: bool,
) -> Result<()> {
    let Some(image) = Image::open(files, locked, None)? else {
        return Ok(());
    };
    let head = guard.head();
    let same_shape = head.page_size == Some(image.page_size) && head.page_count == image.page_count;
    if same_shape && image.checksum()? == head.pos.checksum {
        let cursor = match (image.cursor.frame, files.wal.as_deref()) {
            (0, Some(wal)) => WalHeader::read(wal)?.map(|header| header.start()),
            (0, None) => None,
            _ => Some(image.cursor),
        };
        return match cursor.filter(|cursor| *cursor != head.wal) {
            Some(cursor) => leave_link(shared, guard, cursor),
            None => Ok(()),
        };
    }
    rebase(shared, guard, &image, &head)?;
    shared.announce(guard);
    Ok(())
}

/// The log's head is the image as far as `cursor`, and no record says so: leaves a link.
///
/// # Errors
/// The file cannot be written.
pub fn leave_link(shared: &SharedLog, guard: &mut LogGuard, cursor: WalCursor) -> Result<()> {
    let head = guard.head();
    let link = WalLink {
        head: (head.pos.txid, head.pos.checksum),
        salt: cursor.salt,
        frame: cursor.frame,
    };
    let view = guard.parts()?.1;
    view.set_link(&shared.options().dir, link)
}

/// The head of a record that leads from the log's state to `image`; `whole`: it holds every page.
///
/// # Errors
/// A failed read of the database.
pub fn draft_of(guard: &LogGuard, image: &Image<'_>, whole: bool) -> Result<Draft> {
    Ok(Draft {
        flags: if guard.head().page_count == 0 {
            FLAG_ADOPT
        } else {
            FLAG_REBASE
        },
        page_size: image.page_size,
        page_count: image.page_count,
        timeline: guard.timeline(),
        wal: image.cursor,
        change_counter: image.change_counter()?,
        now_us: now_us(),
        whole,
    })
}

/// Appends the record that leads from the log's state to `image`.
fn rebase(shared: &SharedLog, guard: &mut LogGuard, image: &Image<'_>, head: &Head) -> Result<()> {
    let storage: Arc<dyn Storage> = Arc::new(FileStorage::new(&shared.options().dir));
    let known = if head.page_size == Some(image.page_size) {
        // A log that cannot be replayed is no reason to lose the present: then the record holds every page.
        lay_out(&storage)
            .ok()
            .filter(|known| known.pos() == head.pos)
    } else {
        None
    };
    let draft = draft_of(guard, image, known.is_none())?;
    let log = guard.log()?;
    let mut writer = log.begin(draft).map_err(journal_error)?;
    let mut old = vec![0; image.page_size.get() as usize];
    image.for_each(|pgno, page| {
        let before = match &known {
            Some(known) if pgno <= head.page_count => {
                read_known(known, pgno, &mut old)?;
                Some(old.as_slice())
            }
            _ => None,
        };
        writer.patch(pgno, before, page).map_err(journal_error)
    })?;
    if let Some(known) = &known {
        for pgno in image.page_count + 1..=head.page_count {
            if pgno != image.page_size.lock_page() {
                read_known(known, pgno, &mut old)?;
                writer.drop_page(pgno, &old).map_err(journal_error)?;
            }
        }
    }
    writer.commit().map_err(journal_error)?;
    if known.is_some() {
        // Left behind it would only cost space; the next comparison overwrites it.
        let _ = storage.remove(COMPARE_FILE);
    }
    Ok(())
}

/// Reads a page of the image that the log describes.
fn read_known(known: &mycelite_journal::Image, pgno: u32, page: &mut [u8]) -> Result<()> {
    let offset = u64::from(pgno - 1) * page.len() as u64;
    let mut done = 0;
    while let Some(rest) = page.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let read = known.file().read_at(rest, offset + done as u64);
        match read.map_err(|e| Error::new(ErrorKind::Io, e).at(COMPARE_FILE))? {
            0 => return Err(Error::new(ErrorKind::Io, "the file is too short").at(COMPARE_FILE)),
            got => done += got,
        }
    }
    Ok(())
}

/// The image that the log describes, in a temporary file: the newest state that can be had without replaying what led to it,
/// and the records after that, each proved.
fn lay_out(
    storage: &Arc<dyn Storage>,
) -> std::result::Result<mycelite_journal::Image, mycelite_journal::Error> {
    let file = storage
        .open(COMPARE_FILE, OpenMode::Create)
        .map_err(|source| not_laid_out(storage, source))?;
    file.set_len(0)
        .map_err(|source| not_laid_out(storage, source))?;
    let mut reader = Reader::open(Arc::clone(storage))?;
    let archive = Archive::open(Arc::clone(storage))?;
    // Records begin behind what was compacted, whose last state is kept.
    let follows = reader.follows()?.map_or(Txid(0), |pos| pos.txid);
    let snapshot = archive.snapshots()?.last().copied();
    let mut image = match snapshot.unwrap_or(follows).max(follows) {
        Txid(0) => mycelite_journal::Image::new(file),
        at => {
            let mut past = archive.as_of(at)?;
            let mut page = vec![0; past.page_size().get() as usize];
            for pgno in 1..=past.page_count() {
                past.read_page(pgno, &mut page)?;
                file.write_at(&page, u64::from(pgno - 1) * page.len() as u64)
                    .map_err(|source| not_laid_out(storage, source))?;
            }
            reader.seek(at)?;
            mycelite_journal::Image::resume(file, past.pos(), past.page_size(), past.page_count())?
        }
    };
    while let Some(record) = reader.next()? {
        image.apply(&record)?;
    }
    Ok(image)
}

fn not_laid_out(storage: &Arc<dyn Storage>, source: std::io::Error) -> mycelite_journal::Error {
    mycelite_journal::Error::Io {
        what: "making the file for comparing",
        path: storage.display(COMPARE_FILE),
        source,
    }
}
