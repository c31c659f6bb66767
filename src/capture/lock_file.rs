//! The file `lock` of a log: who may append, and what the last holder left.
//!
//! ```text
//!  0  1  1 while a transaction is changing the database file in a rollback mode, else 0
//!  8  8  token of the process that held the lock last
//! ```
//! A lock that is found with the mark set was held by a process that died in mid-transaction. One that is found with
//! our own token was held by nobody else since: the log is as we left it.

use crate::capture::positioned;
use crate::error::{Error, ErrorKind, Result};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often the file is examined for having been deleted.
const EXAMINE_EVERY: Duration = Duration::from_millis(100);
const TOKEN_AT: u64 = 8;

/// What the lock's file said when the lock was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The last holder died while a transaction was changing the database file.
    pub marked: bool,
    /// Nobody else has held the lock since we did.
    pub ours: bool,
}

/// An open lock file.
pub struct LockFile {
    file: File,
    path: PathBuf,
    token: u64,
    examined: Instant,
}

impl LockFile {
    /// Opens the lock file of the log in `dir`, which is made if need be.
    ///
    /// # Errors
    /// The directory or the file cannot be made.
    pub fn open(dir: &Path) -> Result<LockFile> {
        let (file, path) = open(dir, "lock")?;
        Ok(LockFile {
            file,
            path,
            token: random_token(),
            examined: Instant::now(),
        })
    }

    /// Takes the lock, waiting until `deadline` at most.
    ///
    /// # Errors
    /// Someone holds the lock for too long, or the file cannot be locked, read or written.
    pub fn lock(&self, deadline: Instant) -> Result<Found> {
        wait_for(&self.path, deadline, || self.file.try_lock())?;
        let mut bytes = [0; 16];
        let got = positioned::read_at(&self.file, &mut bytes, 0)
            .map_err(|e| Error::io("cannot read", &self.path, &e))?;
        let ours = got == bytes.len() && bytes[8..] == self.token.to_le_bytes();
        if !ours {
            self.write(&self.token.to_le_bytes(), TOKEN_AT)?;
        }
        Ok(Found {
            marked: bytes[0] != 0,
            ours,
        })
    }

    /// Gives the lock back.
    pub fn unlock(&self) {
        // An unlock that fails leaves the lock to the descriptor's close; nothing better can be done here.
        let _ = self.file.unlock();
    }

    /// Notes whether a transaction is changing the database file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn mark(&self, changing: bool) -> Result<()> {
        self.write(&[u8::from(changing)], 0)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        positioned::write_all_at(&self.file, bytes, offset)
            .map_err(|e| Error::io("cannot write", &self.path, &e))
    }

    /// Whether the file was deleted, and the log with it. Looks ten times a second at most.
    pub fn is_unlinked(&mut self) -> bool {
        if self.examined.elapsed() < EXAMINE_EVERY {
            return false;
        }
        self.examined = Instant::now();
        has_no_name(&self.file)
    }
}

/// Opens the lock file `name` in `dir`, which is made if need be.
///
/// # Errors
/// The directory or the file cannot be made.
pub fn open(dir: &Path, name: &str) -> Result<(File, PathBuf)> {
    std::fs::create_dir_all(dir)
        .map_err(|e| Error::io("cannot make the log directory", dir, &e))?;
    let path = dir.join(name);
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|e| Error::io("cannot open", &path, &e))?;
    Ok((file, path))
}

/// Tries until `deadline` to lock the file at `path`.
///
/// # Errors
/// Someone holds the lock for too long, or the file cannot be locked.
pub fn wait_for(
    path: &Path,
    deadline: Instant,
    lock: impl Fn() -> std::result::Result<(), TryLockError>,
) -> Result<()> {
    let mut pause = Duration::from_micros(50);
    loop {
        match lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(e)) => return Err(Error::io("cannot lock", path, &e)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return Err(busy(path)),
            Err(TryLockError::WouldBlock) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(2));
    }
}

/// The lock at `path` is held for too long.
pub fn busy(path: &Path) -> Error {
    Error::new(ErrorKind::Busy, "the log is locked by another process")
        .at(path.display())
        .hint("its transactions are recorded later by comparing")
}

#[cfg(unix)]
fn has_no_name(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    file.metadata().map_or(true, |meta| meta.nlink() == 0)
}

#[cfg(not(unix))]
fn has_no_name(_file: &File) -> bool {
    false
}

/// A number that no other holder has: the operating system's randomness, by way of the hasher's keys.
pub fn random_token() -> u64 {
    use std::hash::BuildHasher;
    std::collections::hash_map::RandomState::new().hash_one((std::process::id(), Instant::now()))
}
