//! Only one process at a time ships to a replica: an flock, held while there is something to send and not longer.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Result};
use crate::proto::ReplicaUrl;

/// The lock of one replica, and the file while this process holds it.
pub(super) struct ShipLock {
    path: PathBuf,
    held: Mutex<Option<File>>,
}

impl ShipLock {
    /// The lock for `url` in the log directory; the file appears when it is first taken.
    pub fn new(log_dir: &Path, url: &ReplicaUrl) -> ShipLock {
        // One lock per replica: a replica that hangs must not keep another process from serving its neighbour.
        let name = format!("ship-{:016x}", xxh3_64(url.to_string().as_bytes()));
        ShipLock {
            path: log_dir.join(name),
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
