//! The files of a log's past: what compaction and retention decide by, and dropping the oldest of them.

use crate::archive::Archive;
use crate::error::{Error, Result};
use crate::pos::Txid;
use crate::sealed::format::{
    parse_merged_name, parse_sealed_name, parse_snapshot_name, snapshot_name,
};
use crate::sealed::merge::clear_superseded;
use crate::sealed::seal;
use crate::segment::{first_of, list};

/// A sealed or merged segment, or a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastFile {
    /// Its name.
    pub name: String,
    /// Its first transaction.
    pub first: Txid,
    /// Its last transaction.
    pub last: Txid,
    /// Its length in bytes.
    pub bytes: u64,
    /// The states that it lets open.
    pub states: u64,
    /// Whether its records are gone, and states only are left.
    pub merged: bool,
    /// When its first and its last state were recorded, µs since 1970.
    pub first_time_us: u64,
    /// As `first_time_us`.
    pub last_time_us: u64,
}

impl Archive {
    /// The sealed and merged segments, ascending, without those that another one has taken the place of.
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt), [`Error::Version`](crate::Error::Version), [`Error::Io`](crate::Error::Io).
    pub fn files(&self) -> Result<Vec<PastFile>> {
        self.refresh()?;
        let mut files = Vec::new();
        for layer in self
            .layers()
            .into_iter()
            .filter(|layer| layer.last.is_some())
        {
            let Some(file) = self.file(&layer.name(), layer.kind())? else {
                continue;
            };
            let (first, last) = file.range();
            files.push(PastFile {
                name: layer.name(),
                first,
                last,
                bytes: file.size,
                states: file.record_count(),
                merged: file.gaps(),
                first_time_us: file.footer.first_time_us,
                last_time_us: file.footer.head.time_us,
            });
        }
        Ok(files)
    }

    /// The transactions that have a record in one of the sealed or merged segments, with their times (µs since 1970), in order.
    ///
    /// # Errors
    /// As [`Archive::files`].
    pub fn each_state(&self, mut work: impl FnMut(&crate::RecordHeader)) -> Result<()> {
        self.refresh()?;
        for layer in self
            .layers()
            .into_iter()
            .filter(|layer| layer.last.is_some())
        {
            if let Some(file) = self.file(&layer.name(), layer.kind())? {
                file.each_record(|header| {
                    work(header);
                    Ok(())
                })?;
            }
        }
        Ok(())
    }
}

/// Drops the history before the snapshot as of `begin`, which is the oldest state from then on. Whole files go, the oldest first,
/// so that a crash leaves a shorter history without a gap; a segment stays that has `begin` and something after it. Returns the
/// bytes that were freed; none if there is no such snapshot.
///
/// The locking is that of [`seal`](crate::seal()). Who has a state open keeps it.
///
/// # Errors
/// [`Error::Corrupt`](crate::Error::Corrupt) if the snapshot is damaged: then nothing is dropped; [`Error::Io`](crate::Error::Io).
pub fn drop_before(archive: &Archive, begin: Txid) -> Result<u64> {
    drop_before_if(archive, begin, &mut || true)
}

/// As [`drop_before`], if `last_look` agrees, which is asked when the snapshot is verified, right before anything is removed.
///
/// # Errors
/// As [`drop_before`]; [`Error::Stopped`](crate::Error::Stopped) if it does not agree.
pub fn drop_before_if(
    archive: &Archive,
    begin: Txid,
    last_look: &mut dyn FnMut() -> bool,
) -> Result<u64> {
    let storage = archive.storage();
    let names = list(storage)?;
    if archive.is_being_cut()? || archive.snapshot(begin)?.is_none() {
        return Ok(0);
    }
    crate::sealed::check::verify_file(storage, &snapshot_name(begin))?;
    seal::clear(storage, &names)?;
    clear_superseded(archive)?;
    if !last_look() {
        return Err(Error::Stopped);
    }
    let mut old: Vec<(Txid, &String)> = Vec::new();
    for name in &names {
        let last = match parse_sealed_name(name).or_else(|| parse_merged_name(name)) {
            Some((_, last)) if last <= begin => last,
            Some(_) => continue,
            None => match parse_snapshot_name(name) {
                Some(at) if at < begin => at,
                _ => continue,
            },
        };
        old.push((last, name));
    }
    // A raw one is sealed before it is dropped.
    let first_raw = names
        .iter()
        .filter(|name| name.ends_with(".seg"))
        .filter_map(|name| first_of(name))
        .min();
    old.retain(|(last, _)| first_raw.is_none_or(|first| *last < first));
    // A snapshot goes before the segment that has its transaction: it is no beginning without what follows.
    old.sort_unstable_by_key(|(last, name)| (*last, !name.ends_with(".snapshot")));
    let mut bytes = 0;
    for (_, name) in old {
        bytes += storage.size(name).unwrap_or(0);
        seal::remove(storage, name)?;
        seal::sync_dir(storage)?;
    }
    archive.refresh()?;
    Ok(bytes)
}
