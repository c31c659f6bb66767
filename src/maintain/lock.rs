//! One process at a time changes what is recorded already: seals, compacts, drops, or cuts back.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};

/// Name of the lock file in the log directory.
const NAME: &str = "maintain";
/// Pause between two looks at a lock that another process holds.
const POLL: Duration = Duration::from_millis(10);

/// The lock on what is recorded already, until dropped. Appending and reading need none.
#[derive(Debug)]
pub struct MaintainLock {
    file: File,
}

impl MaintainLock {
    /// Takes the lock of the log in `dir`; `None` when somebody has it.
    ///
    /// # Errors
    /// The lock file cannot be made or locked.
    pub fn try_take(dir: &Path) -> Result<Option<MaintainLock>> {
        let path: PathBuf = dir.join(NAME);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| Error::io("opening the lock of maintenance", &path, &e))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(MaintainLock { file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => {
                Err(Error::io("taking the lock of maintenance", &path, &e))
            }
        }
    }

    /// As [`MaintainLock::try_take`], waiting at most `patience`.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when somebody has the lock for longer.
    pub fn take(dir: &Path, patience: Duration) -> Result<MaintainLock> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(lock) = MaintainLock::try_take(dir)? {
                return Ok(lock);
            }
            if Instant::now() >= deadline {
                return Err(Error::new(
                    ErrorKind::Busy,
                    "the log is being sealed or compacted by another process",
                )
                .at(dir.display())
                .hint("that ends by itself: try again in a moment"));
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for MaintainLock {
    fn drop(&mut self) {
        // Not left to the closing of the file: a forked child may hold a copy of it. Failing leaves just that.
        let _ = self.file.unlock();
    }
}
