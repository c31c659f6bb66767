//! Stamps: what the database file looked like when a process that keeps the log last had its hands on it.
//!
//! The stamp of a clean close saves the scan of the whole image at the next open, if it still fits. It is removed as
//! soon as a process begins to write, so whatever ends without closing leaves none. In WAL mode a second stamp is left
//! after each checkpoint: between two of ours nobody else may have written to the database file.
//!
//! ```text
//!  0  8  magic "MYCELSTP"      32  8  bytes of the database file
//!  8 16  boot id               40  8  its modification time, ns since the epoch
//! 24  8  Txid of the head      48  8  its change time, ns since the epoch
//!                              56  8  XXH3-64 of bytes 0..56
//! ```

use crate::capture::positioned::overwrite;
use crate::error::{Error, Result};
use mycelite_journal::Head;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"MYCELSTP";
const BYTES: usize = 64;

/// Which of the two stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// The last process closed the database.
    CleanClose,
    /// The database file was written to in WAL mode: by a checkpoint, or by the switch to that mode.
    Checkpoint,
}

impl Occasion {
    fn file(self) -> &'static str {
        match self {
            Occasion::CleanClose => "stamp",
            Occasion::Checkpoint => "checkpoint",
        }
    }
}

/// The fingerprint of a database file at one head of its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    bytes: [u8; BYTES],
}

impl Stamp {
    /// The stamp of `database` as it is now, with the log at `head`.
    ///
    /// # Errors
    /// The file cannot be examined.
    pub fn take(database: &Path, head: &Head) -> Result<Stamp> {
        let meta =
            std::fs::metadata(database).map_err(|e| Error::io("cannot examine", database, &e))?;
        let (modified, changed) = times(&meta);
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..24].copy_from_slice(&boot_id());
        bytes[24..32].copy_from_slice(&head.pos.txid.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&meta.len().to_le_bytes());
        bytes[40..48].copy_from_slice(&modified.to_le_bytes());
        bytes[48..56].copy_from_slice(&changed.to_le_bytes());
        let hash = xxh3_64(&bytes[..56]);
        bytes[56..].copy_from_slice(&hash.to_le_bytes());
        Ok(Stamp { bytes })
    }

    /// Leaves the stamp in the log directory.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, dir: &Path, occasion: Occasion) -> Result<()> {
        let path = dir.join(occasion.file());
        overwrite(&path, &self.bytes).map_err(|e| Error::io("cannot write", &path, &e))
    }

    /// Whether the file is as it was at the last checkpoint of a process that keeps the log.
    pub fn fits_last_checkpoint(&self, dir: &Path) -> bool {
        let found = std::fs::read(dir.join(Occasion::Checkpoint.file())).ok();
        let stamp = found.and_then(|found| Stamp::parse(&found));
        // Commits go to the WAL meanwhile, so the Txid may differ; a reboot does not write.
        stamp.is_some_and(|stamp| stamp.bytes[32..56] == self.bytes[32..56])
    }

    /// Takes the stamp of a clean close out of the log directory; `None` when there is none that is whole.
    ///
    /// # Errors
    /// A stamp is there and cannot be removed: it would lie to the next process.
    pub fn remove(dir: &Path) -> Result<Option<Stamp>> {
        let path = dir.join(Occasion::CleanClose.file());
        let found = std::fs::read(&path).ok();
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("cannot remove", &path, &e)),
        }
        Ok(found.and_then(|found| Stamp::parse(&found)))
    }

    /// Whether it was left while the system identified by `boot` ran.
    pub fn is_of_boot(&self, boot: &[u8; 16]) -> bool {
        self.bytes[8..24] == boot[..]
    }

    fn parse(found: &[u8]) -> Option<Stamp> {
        let bytes: [u8; BYTES] = found.try_into().ok()?;
        let hash = xxh3_64(&bytes[..56]).to_le_bytes();
        (bytes[56..] == hash && &bytes[..8] == MAGIC).then_some(Stamp { bytes })
    }
}

/// Identifies the running system: after another boot, writes that were never synced may be missing.
pub fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mut id = [0; 16];
    id[..8].copy_from_slice(&xxh3_64(text.trim().as_bytes()).to_le_bytes());
    id
}

#[cfg(unix)]
fn times(meta: &std::fs::Metadata) -> (i64, i64) {
    use std::os::unix::fs::MetadataExt;
    let ns = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
    (
        ns(meta.mtime(), meta.mtime_nsec()),
        ns(meta.ctime(), meta.ctime_nsec()),
    )
}

#[cfg(not(unix))]
fn times(meta: &std::fs::Metadata) -> (i64, i64) {
    let modified = meta
        .modified()
        .ok()
        .and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok())
        .map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX));
    (modified, 0)
}
