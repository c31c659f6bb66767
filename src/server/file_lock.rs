//! Locked files of the server's rooms. What `fork` does to them is the reason for this page: a child has copies of the
//! descriptors, which hold the locks on when the parent is killed.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::lock::Mutex;

/// A fork may have found the table locked, for a moment that never ends in the child.
const TABLE_WAIT: Duration = Duration::from_millis(100);

/// The locked files of this process, by the numbers of their locks.
static HELD: Mutex<BTreeMap<u64, File>> = Mutex::new(BTreeMap::new());
static NUMBERS: AtomicU64 = AtomicU64::new(0);

/// A locked file. Unlocked by name, not by closing: a process that is being started may hold a copy for a moment.
pub(super) struct FileLock(u64);

impl FileLock {
    /// Takes over `file`, which is locked.
    pub fn of(file: File) -> FileLock {
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        HELD.lock().insert(number, file);
        FileLock(number)
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Not there in a child that has forgotten it.
        let file = HELD.lock().remove(&self.0);
        if let Some(file) = file {
            // Failing leaves it to the closing.
            let _ = file.unlock();
        }
    }
}

/// In a forked child: closes the copies of the parent's locks, which stay the parent's.
pub(crate) fn forget_after_fork() {
    if let Some(mut held) = HELD.try_lock_for(TABLE_WAIT) {
        held.clear();
    }
}
