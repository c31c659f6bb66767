//! Where the log begins: at the first transaction, or with a snapshot. Then that is what a new file begins with.

use std::path::Path;
use std::sync::Arc;

use mycelite_journal::{Archive, AsOf, FileStorage, Image, Pos, Reader, StorageFile, Txid};

use super::Applier;
use super::batch::{Batch, Pages, State};
use crate::error::{Error, ErrorKind, Result};

/// How often somebody is asked whether he still waits.
const PAGES_BETWEEN_LOOKS: u32 = 1024;

impl Applier {
    /// Finds out where the log begins, and goes there or to the file's place, whichever is later.
    pub(super) fn find_base(&mut self) -> Result<()> {
        let follows = self.reader.follows().map_err(log_error)?;
        self.base = follows.unwrap_or(Pos::ZERO);
        let after = self.state.pos.txid.max(self.base.txid);
        self.reader.seek(after).map_err(log_error)
    }

    /// Whether the file is older than the log: it must become what the log begins with before a record fits.
    pub(super) fn lacks_base(&self) -> bool {
        self.state.pos.txid < self.base.txid
    }

    /// What to apply next: the records in the queue, or what the log begins with. `None` if there is nothing.
    pub(super) fn next_batch(&self, pages: &mut dyn Pages) -> Result<Option<Batch>> {
        if self.lacks_base() {
            return Ok(newest_snapshot(&self.files.log_dir, self.limit)?.map(Batch::first));
        }
        Batch::build(self.state, &self.queue, self.options.batch_bytes_max, pages)
    }

    /// Whether the log has anything to make a file from.
    pub(super) fn has_history(&mut self) -> Result<bool> {
        let follows = self.reader.follows().map_err(log_error)?;
        let begins_later = follows.is_some_and(|follows| follows != Pos::ZERO);
        Ok(begins_later || self.reader.head().map_err(log_error)?.is_some())
    }

    /// The recorded state at which the log begins, if this is its checksum and it can be shown.
    pub(super) fn base_state(&self) -> Result<Option<State>> {
        let base = self.base.txid;
        if base == Txid(0) {
            return Ok(None);
        }
        let past = newest_snapshot(&self.files.log_dir, base)?;
        Ok(past
            .map(|past| State::of(&past))
            .filter(|state| state.pos == self.base))
    }
}

/// The state of the newest snapshot at or before `limit`.
fn newest_snapshot(log_dir: &Path, limit: Txid) -> Result<Option<AsOf>> {
    let archive = Archive::open(Arc::new(FileStorage::new(log_dir))).map_err(log_error)?;
    let snapshots = archive.snapshots().map_err(log_error)?;
    let newest = snapshots.into_iter().rev().find(|txid| *txid <= limit);
    newest
        .map(|txid| archive.as_of(txid).map_err(log_error))
        .transpose()
}

/// Lays the newest state of the log up to `limit` out in `file`, which is empty: the newest snapshot, and the records after it,
/// each proved. Asks `goes_on` now and then.
///
/// # Errors
/// `Busy` when it shall not go on; `NotFound`, `Corrupt`, `Diverged` for what the log lacks or what does not fit; `Io`.
pub(super) fn lay_out(
    log_dir: &Path,
    limit: Txid,
    file: Box<dyn StorageFile>,
    goes_on: &dyn Fn() -> bool,
) -> Result<State> {
    let stopped = || Error::new(ErrorKind::Busy, "nobody waits for it any more");
    let mut to = State::default();
    let mut reader = open_reader(log_dir)?;
    let mut image = match newest_snapshot(log_dir, limit)? {
        None => Image::new(file),
        Some(mut past) => {
            let size = past.page_size();
            let mut page = vec![0; size.bytes()];
            for pgno in (1..=past.page_count()).filter(|pgno| *pgno != size.lock_page()) {
                if pgno % PAGES_BETWEEN_LOOKS == 0 && !goes_on() {
                    return Err(stopped());
                }
                past.read_page(pgno, &mut page).map_err(log_error)?;
                let at = u64::from(pgno - 1) * u64::from(size.get());
                file.write_at(&page, at).map_err(|source| {
                    Error::new(ErrorKind::Io, format_args!("cannot write: {source}"))
                        .at(log_dir.display())
                })?;
            }
            to = State::of(&past);
            reader.seek(to.pos.txid).map_err(log_error)?;
            Image::resume(file, to.pos, size, to.page_count).map_err(log_error)?
        }
    };
    while let Some(entry) = reader.next().map_err(log_error)? {
        if entry.header.txid > limit {
            break;
        }
        if !goes_on() {
            return Err(stopped());
        }
        image.apply(&entry).map_err(log_error)?;
        to = State::after(&entry);
    }
    Ok(to)
}

/// The same for those who want a plain file of a past state: where it is, and its length in bytes.
///
/// # Errors
/// As [`lay_out`]; `NotFound` also when the log has not got just that transaction.
#[cfg(feature = "cli")]
pub(crate) fn past_file(
    log_dir: &Path,
    txid: Txid,
    file: Box<dyn StorageFile>,
    goes_on: &dyn Fn() -> bool,
) -> Result<(Pos, u64)> {
    let state = lay_out(log_dir, txid, file, goes_on)?;
    if state.pos.txid == txid {
        return Ok((state.pos, state.bytes()));
    }
    Err(Error::new(
        ErrorKind::NotFound,
        format_args!("transaction {txid} is not in the history that is kept here"),
    ))
}

/// The records of the log in `log_dir`.
pub(super) fn open_reader(log_dir: &Path) -> Result<Reader> {
    Reader::open(Arc::new(FileStorage::new(log_dir))).map_err(log_error)
}

/// The log's error as the program's.
pub(super) fn log_error(error: mycelite_journal::Error) -> Error {
    use mycelite_journal::Error as Log;
    let kind = match &error {
        Log::Io { .. } => ErrorKind::Io,
        Log::Corrupt { .. } | Log::Malformed { .. } => ErrorKind::Corrupt,
        Log::Version { .. } => ErrorKind::Unsupported,
        Log::Mismatch { .. } => ErrorKind::Diverged,
        Log::NotFound { .. } => ErrorKind::NotFound,
        Log::Exists { .. } | Log::Limit { .. } => ErrorKind::Usage,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, error)
}
