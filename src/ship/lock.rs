//! Only one process at a time ships to a replica: an flock, held while there is something to send and not longer. The file
//! that is locked remembers what the replica last acknowledged.

use std::fs::{File, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::lock::Mutex;
use mycelite_journal::Pos;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Result};
use crate::proto::ReplicaUrl;

/// The lock of one replica, and the file while this process holds it.
pub(super) struct ShipLock {
    path: PathBuf,
    held: Mutex<Option<File>>,
}

/// One file per replica: a replica that hangs must not keep another process from serving its neighbour.
fn path_of(log_dir: &Path, url: &ReplicaUrl) -> PathBuf {
    log_dir.join(format!("ship-{:016x}", xxh3_64(url.to_string().as_bytes())))
}

/// Bytes of a remembered position: one short line.
const MEMORY_BYTES: usize = 80;

/// What a replica last acknowledged, in the file of its lock: one line, `timeline/txid/checksum`.
pub(super) struct Memory {
    path: PathBuf,
    file: Option<File>,
}

impl Memory {
    /// That of the replica `url`; touches no file.
    pub fn new(log_dir: &Path, url: &ReplicaUrl) -> Memory {
        Memory {
            path: path_of(log_dir, url),
            file: None,
        }
    }

    /// What is remembered, if anything is.
    pub fn recall(&self) -> Option<Pos> {
        let text = std::fs::read_to_string(&self.path).ok()?;
        text.lines().next()?.trim().parse().ok()
    }

    /// The replica holds this durably. What cannot be written is not remembered, which costs nothing but a refusal later.
    pub fn remember(&mut self, pos: Pos) {
        if self.file.is_none() {
            self.file = File::options().write(true).open(&self.path).ok();
        }
        let line = format!("{:<1$}\n", pos.to_string(), MEMORY_BYTES - 1);
        if let Some(file) = &mut self.file {
            let _ = file
                .seek(SeekFrom::Start(0))
                .and_then(|_| file.write_all(line.as_bytes()));
        }
    }
}

impl ShipLock {
    /// The lock for `url` in the log directory; the file appears when it is first taken.
    pub fn new(log_dir: &Path, url: &ReplicaUrl) -> ShipLock {
        ShipLock {
            path: path_of(log_dir, url),
            held: Mutex::new(None),
        }
    }

    /// Takes the lock; none when another process holds it.
    pub fn try_take(&self) -> Result<Option<ShipGuard<'_>>> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&self.path)
            .map_err(|e| Error::io("cannot open the lock for shipping", &self.path, &e))?;
        match file.try_lock() {
            Ok(()) => {
                *self.held.lock() = Some(file);
                Ok(Some(ShipGuard(self)))
            }
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(Error::io(
                "cannot take the lock for shipping",
                &self.path,
                &e,
            )),
        }
    }

    /// In a process forked from the one that holds the lock: closes this process's copy of the file. Closing (unlike
    /// unlocking) leaves the lock with the parent, and it ends with the parent.
    pub fn forget_after_fork(&self) {
        if let Some(mut held) = self.held.try_lock() {
            drop(held.take());
        }
    }
}

/// The lock, until dropped.
pub(super) struct ShipGuard<'a>(&'a ShipLock);

impl Drop for ShipGuard<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.0.held.lock().take() {
            // Not left to the closing of the file: a forked child may hold a copy of it. Failing leaves just that.
            let _ = file.unlock();
        }
    }
}
