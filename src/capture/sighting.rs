//! What the file system says of a database file: which file it is, and whether somebody has written to it.

use crate::error::{Error, ErrorKind, Result};
use std::fs::Metadata;
use std::path::Path;

/// What tells a file from another that later bears its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
}

/// A database file as it was seen at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Which file it was.
    pub file: FileIdentity,
    /// Its length in bytes.
    pub bytes: u64,
    /// Time of the last write in ns since the epoch, as exact as the file system keeps it.
    modified: i64,
}

impl Sighting {
    /// Bytes of a sighting in a file.
    pub const BYTES: usize = 32;

    /// The file at `path` as it is now.
    ///
    /// # Errors
    /// It cannot be examined; [`ErrorKind::NotFound`] when it is not there.
    pub fn of(path: &Path) -> Result<Sighting> {
        let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => gone(path),
            _ => Error::io("cannot examine", path, &e),
        })?;
        Ok(Sighting {
            file: identity(&meta),
            bytes: meta.len(),
            modified: modified(&meta),
        })
    }

    /// The file at `path`, which must be `file`.
    ///
    /// # Errors
    /// As [`Sighting::of`]; also `NotFound` when another file has the name.
    pub fn of_file(path: &Path, file: FileIdentity) -> Result<Sighting> {
        let now = Sighting::of(path)?;
        if now.file == file {
            Ok(now)
        } else {
            Err(gone(path))
        }
    }

    /// The sighting as bytes.
    pub fn encode(&self) -> [u8; Sighting::BYTES] {
        let mut bytes = [0; Sighting::BYTES];
        bytes[..16].copy_from_slice(&self.file.encode());
        bytes[16..24].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[24..].copy_from_slice(&self.modified.to_le_bytes());
        bytes
    }
}

impl FileIdentity {
    /// Bytes of an identity in a file.
    pub const BYTES: usize = 16;

    /// The file at `path`.
    ///
    /// # Errors
    /// As [`Sighting::of`].
    pub fn of(path: &Path) -> Result<FileIdentity> {
        Sighting::of(path).map(|sighting| sighting.file)
    }

    /// The identity as bytes.
    pub fn encode(&self) -> [u8; FileIdentity::BYTES] {
        let mut bytes = [0; FileIdentity::BYTES];
        bytes[..8].copy_from_slice(&self.device.to_le_bytes());
        bytes[8..].copy_from_slice(&self.inode.to_le_bytes());
        bytes
    }
}

fn gone(path: &Path) -> Error {
    Error::new(
        ErrorKind::NotFound,
        "the database file was moved or deleted while it is open",
    )
    .at(path.display())
    .hint("what is written to it is not recorded; close it and open it by its name")
}

#[cfg(unix)]
fn identity(meta: &Metadata) -> FileIdentity {
    use std::os::unix::fs::MetadataExt;
    FileIdentity {
        device: meta.dev(),
        inode: meta.ino(),
    }
}

#[cfg(not(unix))]
fn identity(_meta: &Metadata) -> FileIdentity {
    FileIdentity {
        device: 0,
        inode: 0,
    }
}

#[cfg(unix)]
fn modified(meta: &Metadata) -> i64 {
    use std::os::unix::fs::MetadataExt;
    meta.mtime()
        .saturating_mul(1_000_000_000)
        .saturating_add(meta.mtime_nsec())
}

#[cfg(not(unix))]
fn modified(meta: &Metadata) -> i64 {
    meta.modified()
        .ok()
        .and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok())
        .map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}
