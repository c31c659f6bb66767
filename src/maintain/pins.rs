//! Which states readers have open, in all processes of this machine: compaction keeps them as if they were bookmarked.
//!
//! Each reader has a file `pin-...` of its own in the log's directory, and holds the file's lock for as long as it lives: a process
//! that dies takes its pins with it. Whoever gives history up holds the lock of the file `pins` from looking at the pins until the
//! history is gone, and a reader holds it, shared, from pinning a state until it has looked the state up. So a state is either
//! pinned in time, or seen to be gone.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mycelite_journal::Txid;

use crate::error::{Error, ErrorKind, Result};

/// Name of the file in the log's directory whose lock it is.
const LOCK: &str = "pins";
/// How the names of pins begin.
const PREFIX: &str = "pin-";
/// Bytes of a pin: the transaction's number, little-endian.
const PIN_BYTES: usize = 8;
/// Longest wait for the lock, which is held for moments.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(2);
/// Pause between two looks at it.
const LOCK_POLL: Duration = Duration::from_millis(1);

/// The lock, until dropped.
#[derive(Debug)]
pub struct Standstill(File);

impl Standstill {
    fn take(
        dir: &Path,
        lock: fn(&File) -> std::result::Result<(), TryLockError>,
    ) -> io::Result<Standstill> {
        let mut options = File::options();
        let file = options
            .create(true)
            .truncate(false)
            .write(true)
            .open(dir.join(LOCK))?;
        let deadline = Instant::now() + LOCK_WAIT_MAX;
        loop {
            match lock(&file) {
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(LOCK_POLL);
                }
                taken => return taken.map(|()| Standstill(file)).map_err(io::Error::from),
            }
        }
    }
}

impl Drop for Standstill {
    fn drop(&mut self) {
        // Not left to the closing: a forked child may hold a copy. Failing leaves just that.
        let _ = self.0.unlock();
    }
}

/// The state that one reader has open, until dropped.
#[derive(Debug)]
pub struct Pin {
    dir: PathBuf,
    /// Made with the first state; locked.
    file: Option<(File, PathBuf)>,
    /// After `fork`, the parent's file is not the child's to remove.
    pid: u32,
}

impl Pin {
    /// For a reader of the log in `log_dir`; pins nothing yet.
    #[must_use]
    pub fn new(log_dir: &Path) -> Pin {
        Pin {
            dir: log_dir.to_path_buf(),
            file: None,
            pid: std::process::id(),
        }
    }

    /// Pins the state after transaction `txid` in place of the one before. Whoever looks the state up while what this returns is
    /// held, and finds it, keeps it. `None` where nothing can be written (a read-only directory, a full disk), or a lock cannot be
    /// had for two seconds: then it is not pinned, and is gone when it is compacted away.
    #[must_use]
    pub fn set(&mut self, txid: Txid) -> Option<Standstill> {
        match self.try_set(txid) {
            Ok(still) => Some(still),
            Err(error) => {
                tracing::debug!("{}: no pin: {error}", self.dir.display());
                None
            }
        }
    }

    fn try_set(&mut self, txid: Txid) -> io::Result<Standstill> {
        let still = Standstill::take(&self.dir, File::try_lock_shared)?;
        if self.file.is_none() || self.pid != std::process::id() {
            self.file = Some(self.create()?);
            self.pid = std::process::id();
        }
        if let Some((file, _)) = &self.file {
            file.write_all_at(&txid.0.to_le_bytes(), 0)?;
        }
        Ok(still)
    }

    fn create(&self) -> io::Result<(File, PathBuf)> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = self
            .dir
            .join(format!("{PREFIX}{}-{number}", std::process::id()));
        let mut options = File::options();
        // One of an earlier process with this number may lie there.
        let file = options
            .create(true)
            .truncate(true)
            .write(true)
            .open(&path)?;
        file.try_lock()?;
        Ok((file, path))
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some((_, path)) = self.file.take_if(|_| self.pid == std::process::id()) {
            // One that stays has no lock, and is removed at the next look.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Holds all readers up from opening states, and says which they have open, ascending.
///
/// # Errors
/// [`ErrorKind::Busy`] when readers have the lock for longer than two seconds; the directory cannot be read.
pub fn hold(log_dir: &Path) -> Result<(Standstill, Vec<Txid>)> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock => Error::new(ErrorKind::Busy, "readers are opening states")
            .at(log_dir.display())
            .hint("try again"),
        _ => Error::io("looking for readers in", log_dir, &error),
    };
    let still = Standstill::take(log_dir, File::try_lock).map_err(failed)?;
    let mut states = Vec::new();
    for entry in std::fs::read_dir(log_dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let path = entry.path();
        match pinned(&path) {
            Ok(Some(txid)) => states.push(txid),
            // Its reader is dead.
            Ok(None) => drop(std::fs::remove_file(&path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    states.sort_unstable();
    Ok((still, states))
}

/// The state that a pin is of; `None` if its reader is gone.
fn pinned(path: &Path) -> io::Result<Option<Txid>> {
    let file = File::open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            let mut bytes = [0; PIN_BYTES];
            let count = file.read_at(&mut bytes, 0)?;
            // One whose disk is full has none.
            Ok(Some(Txid(match count {
                PIN_BYTES => u64::from_le_bytes(bytes),
                _ => 0,
            })))
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn states_are_pinned_while_their_readers_live() {
        let dir = tempfile::tempdir().unwrap();
        let open = || hold(dir.path()).unwrap().1;
        assert!(open().is_empty());
        let (mut a, mut b) = (Pin::new(dir.path()), Pin::new(dir.path()));
        drop((a.set(Txid(7)), b.set(Txid(3))));
        assert_eq!(open(), [Txid(3), Txid(7)]);
        drop(a.set(Txid(1)));
        assert_eq!(open(), [Txid(1), Txid(3)]);
        drop(b);
        assert_eq!(open(), [Txid(1)]);
        // A dead process's has no lock.
        std::fs::write(dir.path().join("pin-1-1"), 9u64.to_le_bytes()).unwrap();
        assert_eq!(open(), [Txid(1)]);
        drop(a);
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn nobody_opens_a_state_while_history_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let held = hold(dir.path()).unwrap();
        let mut pin = Pin::new(dir.path());
        let waited = std::thread::scope(|scope| {
            let opened = scope.spawn(|| {
                let began = Instant::now();
                let still = pin.set(Txid(4));
                (began.elapsed(), still.is_some())
            });
            std::thread::sleep(Duration::from_millis(100));
            drop(held);
            opened.join().unwrap()
        });
        assert!(
            waited.0 >= Duration::from_millis(90) && waited.1,
            "{waited:?}"
        );
        // And the other way round.
        let still = pin.set(Txid(5));
        let error = hold(dir.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        drop(still);
        assert_eq!(hold(dir.path()).unwrap().1, [Txid(5)]);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_read_without_pins() {
        let mut pin = Pin::new(Path::new("/proc/self/no-log"));
        assert!(pin.set(Txid(1)).is_none());
    }
}
