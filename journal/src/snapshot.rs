//! Snapshots: every page as of one transaction, in one file.

use crate::archive::Archive;
use crate::error::{Error, Result};
use crate::pace::{FullSpeed, Pace};
use crate::patch::{PatchRef, encode_patch};
use crate::pos::{Checksum, Pos, Txid, page_checksum};
use crate::sealed::cache::BlockCache;
use crate::sealed::check;
use crate::sealed::file::BlockFile;
use crate::sealed::format::{FileHeader, Kind, TEMP_SUFFIX, snapshot_name};
use crate::sealed::write::BlockFileWriter;

/// Memory for the blocks that are read back.
const CACHE_BYTES: usize = 1024 * 1024;

/// A snapshot in the log: every page as of one transaction. Reading a page as of a later one never looks behind it.
///
/// ```
/// # use std::sync::Arc;
/// # use mycelite_journal::*;
/// # let dir = tempfile::tempdir()?;
/// # let storage: Arc<dyn Storage> = Arc::new(FileStorage::new(dir.path()));
/// # let mut log = Log::create(storage.clone(), DatabaseId([7; 16]), 0)?;
/// # let mut record = log.begin(Draft::new(PageSize::MIN, 1, 1))?;
/// # record.patch(1, None, &[42; 512])?;
/// # record.commit()?;
/// let archive = Archive::open(storage)?;
/// let snapshot = Snapshot::write(&archive, Txid(1))?;
/// assert_eq!(snapshot.pos, log.head().pos);
/// assert_eq!(archive.snapshots()?, [Txid(1)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The state that it holds.
    pub pos: Pos,
    /// Length of the file in bytes.
    pub bytes: u64,
}

impl Snapshot {
    /// Writes the snapshot as of a transaction, durably: all pages are put together from the log, and the checksum of the database
    /// proves them, before and after they are written. One that is there already is left as it is.
    ///
    /// The locking is that of [`seal`](crate::seal): one process at a time.
    ///
    /// # Errors
    /// As [`Archive::as_of`]; [`Error::Corrupt`] if the pages do not have the checksum that the record promises.
    pub fn write(archive: &Archive, txid: Txid) -> Result<Snapshot> {
        Snapshot::write_at(archive, txid, &FullSpeed)
    }

    /// As [`Snapshot::write`], as fast as `pace` says.
    ///
    /// # Errors
    /// As [`Snapshot::write`]; [`Error::Stopped`].
    pub fn write_at(archive: &Archive, txid: Txid, pace: &dyn Pace) -> Result<Snapshot> {
        archive.refresh()?;
        if archive.is_being_cut()? {
            return Err(Error::Misuse(
                "the log is being cut: open it for writing, which finishes that, before a snapshot is written",
            ));
        }
        if let Some(file) = archive.snapshot(txid)? {
            return Ok(Snapshot {
                pos: file.footer.head.pos,
                bytes: file.size,
            });
        }
        archive.sync_segment(txid)?;
        let storage = archive.storage();
        let name = snapshot_name(txid);
        let temp = format!("{name}{TEMP_SUFFIX}");
        let written = build(archive, txid, &temp, pace).and_then(|snapshot| {
            let cache = BlockCache::new(CACHE_BYTES);
            let file = BlockFile::open(storage, &temp, Kind::Snapshot, archive.id(), &cache)?;
            if let Some(file) = file {
                check::snapshot(&file, pace)?;
            }
            storage
                .rename(&temp, &name)
                .map_err(|source| Error::io("naming a snapshot", storage.display(&name), source))?;
            Ok(snapshot)
        });
        if written.is_err() {
            // The first error is the one that matters; the next call clears it away.
            let _ = storage.remove(&temp);
        }
        let snapshot = written?;
        storage.sync_dir().map_err(|source| {
            Error::io("syncing the log directory", storage.display(""), source)
        })?;
        Ok(snapshot)
    }

    /// Whether it is time for one: the log since the newest snapshot, in the bytes of its records, outgrows the database.
    ///
    /// # Errors
    /// As [`Archive::head`].
    pub fn is_due(archive: &Archive) -> Result<bool> {
        match archive.head()? {
            Some(last) => Snapshot::is_due_at(archive, last),
            None => Ok(false),
        }
    }

    /// As [`Snapshot::is_due`], for the log up to transaction `last`.
    ///
    /// # Errors
    /// As [`Archive::as_of`].
    pub fn is_due_at(archive: &Archive, last: Txid) -> Result<bool> {
        archive.refresh()?;
        let base = archive.snapshot_before(last).unwrap_or(Txid(0));
        if base == last {
            return Ok(false);
        }
        let (head, _) = archive.plan(last)?;
        let size = head.page_size.map_or(0, |size| u64::from(size.get()));
        // What is appended meanwhile counts in the second number only.
        let bytes = archive
            .bytes_after(base)?
            .saturating_sub(archive.bytes_after(last)?);
        Ok(bytes > size * u64::from(head.page_count))
    }
}

fn build(archive: &Archive, txid: Txid, temp: &str, pace: &dyn Pace) -> Result<Snapshot> {
    let mut past = archive.as_of(txid)?;
    let (pos, size) = (past.pos(), past.page_size());
    let header = FileHeader {
        kind: Kind::Snapshot,
        id: archive.id(),
        pos,
    };
    let mut writer = BlockFileWriter::create(archive.storage(), temp, header, pace)?;
    writer.section(txid, size)?;
    let mut sum = Checksum(0);
    let mut page = vec![0; size.bytes()];
    let mut stored = Vec::new();
    for pgno in 1..=past.page_count() {
        if pgno == size.lock_page() {
            continue;
        }
        past.read_page(pgno, &mut page)?;
        sum ^= page_checksum(pgno, &page);
        stored.clear();
        encode_patch(&mut stored, pgno, None, &page);
        writer.patch(txid, &PatchRef::trusted(&stored))?;
    }
    if sum != pos.checksum {
        return Err(Error::Corrupt {
            path: archive.storage().display(""),
            offset: 0,
            txid: Some(txid),
            what: format!(
                "the pages as of this transaction have the checksum {sum}, its record says {}",
                pos.checksum
            ),
            hint: "the log is damaged: restore it from a copy or from a replica",
        });
    }
    let bytes = writer.finish_snapshot(*past.head())?;
    Ok(Snapshot { pos, bytes })
}
