//! The file `lock` of a log: who may append, and what the last holder left.
//!
//! ```text
//!  0  1  1 while a transaction is changing the database file in a rollback mode, else 0
//!  1  1  1 while the holder adopts the database: nobody waits for that
//!  8  8  token of the process that held the lock last
//! 16  8  Txid of the last rollback-mode transaction; 0: none, or it is not known what came after
//! 24 32  the database file as that transaction left it
//! ```
//! A lock that is found with the mark set was held by a process that died in mid-transaction. One that is found with
//! our own token was held by nobody else since: the log is as we left it.

use crate::capture::positioned;
use crate::capture::sighting::Sighting;
use crate::error::{Error, ErrorKind, Result};
use mycelite_journal::Txid;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often the file is examined for having been deleted.
const EXAMINE_EVERY: Duration = Duration::from_millis(100);
const ADOPTING_AT: u64 = 1;
const TOKEN_AT: u64 = 8;
const BYTES: usize = 24 + Sighting::BYTES;

/// What the lock's file said when the lock was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The last holder died while a transaction was changing the database file.
    pub marked: bool,
    /// Nobody else has held the lock since we did.
    pub ours: bool,
    /// The Txid of the last rollback-mode transaction, 0 if not known, and the database file as it left that.
    left: (u64, [u8; Sighting::BYTES]),
}

impl Found {
    /// Whether somebody has written to the database file, which is seen as `now`, since the transaction `txid`. Only the
    /// last transaction in a rollback mode can be asked for; of any other nothing is known, and the answer is no.
    pub fn is_changed_since(&self, txid: Txid, now: &Sighting) -> bool {
        self.left.0 != 0 && self.left.0 == txid.0 && self.left.1 != now.encode()
    }

    /// Whether the database file, which is seen as `now`, is known to be as the transaction `txid` left it.
    pub fn is_left_at(&self, txid: Txid, now: &Sighting) -> bool {
        self.left.0 != 0 && self.left.0 == txid.0 && self.left.1 == now.encode()
    }
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
    /// [`ErrorKind::Adopting`] at once while the holder adopts the database; someone holds the lock for too long, or the
    /// file cannot be locked, read or written.
    pub fn lock(&self, deadline: Instant) -> Result<Found> {
        let mut adopting = false;
        let locked = wait_for(&self.path, deadline, || match self.file.try_lock() {
            Err(TryLockError::WouldBlock) if self.is_adopting() => {
                adopting = true;
                Ok(())
            }
            tried => tried,
        });
        if adopting {
            return Err(self.adopting());
        }
        locked?;
        let mut bytes = [0; BYTES];
        let got = positioned::read_at(&self.file, &mut bytes, 0)
            .map_err(|e| Error::io("cannot read", &self.path, &e))?;
        let ours = got >= 16 && bytes[8..16] == self.token.to_le_bytes();
        if !ours {
            self.write(&self.token.to_le_bytes(), TOKEN_AT)?;
        }
        if bytes[1] != 0 {
            // Whoever was at it has died.
            self.write(&[0], ADOPTING_AT)?;
        }
        Ok(Found {
            marked: bytes[0] != 0,
            ours,
            left: left_in(&bytes),
        })
    }

    /// Gives the lock back.
    pub fn unlock(&self) {
        // An unlock that fails leaves the lock to the descriptor's close; nothing better can be done here.
        let _ = self.file.unlock();
    }

    /// Notes that a transaction is changing the database file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn mark(&self) -> Result<()> {
        self.write(&[1], 0)
    }

    /// Notes that no transaction is changing the database file any more. `left`: how the last one, in a rollback mode,
    /// left it. Returns what whoever takes the lock next finds.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn unmark(&self, left: Option<(Txid, Sighting)>) -> Result<Found> {
        let mut bytes = [0; BYTES];
        bytes[8..16].copy_from_slice(&self.token.to_le_bytes());
        if let Some((txid, sighting)) = left {
            bytes[16..24].copy_from_slice(&txid.0.to_le_bytes());
            bytes[24..].copy_from_slice(&sighting.encode());
        }
        self.write(&bytes, 0)?;
        Ok(Found {
            marked: false,
            ours: true,
            left: left_in(&bytes),
        })
    }

    /// Notes that the holder adopts the database, or that it does so no more.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_adopting(&self, adopting: bool) -> Result<()> {
        self.write(&[u8::from(adopting)], ADOPTING_AT)
    }

    fn is_adopting(&self) -> bool {
        let mut byte = [0];
        positioned::read_at(&self.file, &mut byte, ADOPTING_AT).is_ok_and(|got| got == 1)
            && byte != [0]
    }

    fn adopting(&self) -> Error {
        Error::new(
            ErrorKind::Adopting,
            "the database is being taken into its log",
        )
        .at(self.path.display())
        .hint("try again when that is done")
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        positioned::write_all_at(&self.file, bytes, offset)
            .map_err(|e| Error::io("cannot write", &self.path, &e))
    }

    /// Whether the file was deleted or moved away, and the log with it. Looks ten times a second at most.
    pub fn has_lost_its_name(&mut self) -> bool {
        if self.examined.elapsed() < EXAMINE_EVERY {
            return false;
        }
        self.examined = Instant::now();
        !has_name(&self.file, &self.path)
    }
}

fn left_in(bytes: &[u8; BYTES]) -> (u64, [u8; Sighting::BYTES]) {
    let (mut txid, mut sighting) = ([0; 8], [0; Sighting::BYTES]);
    txid.copy_from_slice(&bytes[16..24]);
    sighting.copy_from_slice(&bytes[24..]);
    (u64::from_le_bytes(txid), sighting)
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
    mut lock: impl FnMut() -> std::result::Result<(), TryLockError>,
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
fn has_name(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(named)) => (ours.dev(), ours.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn has_name(_file: &File, path: &Path) -> bool {
    path.exists()
}

/// A number that no other holder has: the operating system's randomness, by way of the hasher's keys.
pub fn random_token() -> u64 {
    use std::hash::BuildHasher;
    std::collections::hash_map::RandomState::new().hash_one((std::process::id(), Instant::now()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// As one that died: its descriptor is closed, and its mark is still there.
    #[test]
    fn a_dead_adopter_keeps_nobody_from_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let [dead, next, last] = [(); 3].map(|()| LockFile::open(dir.path()).unwrap());
        let soon = || Instant::now() + Duration::from_millis(20);
        dead.lock(soon()).unwrap();
        dead.set_adopting(true).unwrap();
        let refused = next.lock(Instant::now() + Duration::from_secs(600));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Adopting);
        drop(dead);
        next.lock(soon()).unwrap();
        let refused = last.lock(soon());
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Busy);
    }
}
