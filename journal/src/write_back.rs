//! Bringing a long file to the disk while it is still being written.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Bytes that are written before the disk is to take them.
const STEP_BYTES: u64 = 16 << 20;

/// Syncs a file in a thread of its own, again and again, while it is being written: the sync that counts then has little left to
/// wait for. Nothing is durable because of it.
///
/// ```
/// use mycelite_journal::WriteBack;
/// let mut behind = WriteBack::new(|| Ok(()));
/// behind.wrote(100 << 20);
/// behind.finish()?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct WriteBack<F> {
    /// Not while it runs.
    sync: Option<F>,
    running: Option<JoinHandle<(F, io::Result<()>)>>,
    /// Written since the last sync began.
    bytes: u64,
    failed: io::Result<()>,
}

impl<F: FnMut() -> io::Result<()> + Send + 'static> WriteBack<F> {
    /// `sync` syncs the file. No thread is started before there is much to sync.
    pub fn new(sync: F) -> WriteBack<F> {
        WriteBack {
            sync: Some(sync),
            running: None,
            bytes: 0,
            failed: Ok(()),
        }
    }

    /// So many more bytes were written. Waits for nothing.
    pub fn wrote(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.bytes < STEP_BYTES {
            return;
        }
        if self.running.as_ref().is_some_and(JoinHandle::is_finished) {
            self.wait();
        }
        if let Some(mut sync) = self.sync.take() {
            self.bytes = 0;
            let work = move || {
                let synced = sync();
                (sync, synced)
            };
            // Without a thread, the sync that counts has everything to do.
            self.running = Builder::new()
                .name("mycelite-disk".to_owned())
                .spawn(work)
                .ok();
        }
    }

    /// Waits until nothing is under way; to be called before the sync that counts.
    ///
    /// # Errors
    /// Of any sync here: the system may not tell of it again.
    pub fn finish(&mut self) -> io::Result<()> {
        self.wait();
        std::mem::replace(&mut self.failed, Ok(()))
    }
}

impl<F> WriteBack<F> {
    fn wait(&mut self) {
        let Some(running) = self.running.take() else {
            return;
        };
        match running.join() {
            Ok((sync, Ok(()))) => self.sync = Some(sync),
            Ok((_, Err(error))) => self.failed = Err(error),
            Err(_) => self.failed = Err(io::Error::other("syncing panicked")),
        }
    }
}

impl<F> Drop for WriteBack<F> {
    fn drop(&mut self) {
        self.wait();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn little_is_left_to_the_sync_that_counts() {
        let count = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&count);
        let mut behind = WriteBack::new(move || {
            seen.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        behind.wrote(STEP_BYTES - 1);
        behind.finish().unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 0);
        for round in 1..=3 {
            behind.wrote(STEP_BYTES);
            behind.finish().unwrap();
            assert_eq!(count.load(Ordering::Relaxed), round);
        }
    }

    #[test]
    fn one_sync_at_a_time_and_nobody_waits_for_it() {
        let (go, gate) = std::sync::mpsc::channel::<()>();
        let count = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&count);
        let mut behind = WriteBack::new(move || {
            seen.fetch_add(1, Ordering::Relaxed);
            gate.recv().map_err(io::Error::other)
        });
        for _ in 0..10 {
            behind.wrote(STEP_BYTES);
        }
        go.send(()).unwrap();
        behind.finish().unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_failure_is_told_once_and_ends_it() {
        let mut behind = WriteBack::new(|| Err(io::Error::other("no disk")));
        behind.wrote(STEP_BYTES);
        assert!(behind.finish().is_err());
        behind.wrote(STEP_BYTES);
        behind.finish().unwrap();
    }
}
