//! Bringing a long file to the disk while it is still being written.

use std::io;
use std::thread::{Builder, JoinHandle};

use crate::sealed::limit;

/// Bytes that are written before the disk is to take them.
const STEP_BYTES: u64 = limit(16 << 20, 2 << 20) as u64;

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
    use crate::{
        DatabaseId, Draft, FaultStorage, Log, OpenMode, PageSize, RawLimits, Reader, Storage,
        StorageFile,
    };
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

    /// A disk that counts its syncs, and can fail them in handles that others than the log have opened.
    struct Watched {
        disk: FaultStorage,
        syncs: Arc<AtomicU32>,
        fails: bool,
    }

    struct WatchedFile(Box<dyn StorageFile>, Arc<AtomicU32>, bool);

    impl StorageFile for WatchedFile {
        fn size(&self) -> io::Result<u64> {
            self.0.size()
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            self.0.read_at(buf, offset)
        }
        fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
            self.0.write_at(buf, offset)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }
        fn sync(&self) -> io::Result<()> {
            self.1.fetch_add(1, Ordering::Relaxed);
            match self.2 && std::thread::current().name() == Some("mycelite-disk") {
                true => Err(io::Error::other("no disk")),
                false => self.0.sync(),
            }
        }
    }

    impl Storage for Watched {
        fn list(&self) -> io::Result<Vec<String>> {
            self.disk.list()
        }
        fn open(&self, name: &str, mode: OpenMode) -> io::Result<Box<dyn StorageFile>> {
            let file = self.disk.open(name, mode)?;
            let syncs = Arc::clone(&self.syncs);
            Ok(Box::new(WatchedFile(file, syncs, self.fails)))
        }
        fn size(&self, name: &str) -> io::Result<u64> {
            self.disk.size(name)
        }
        fn remove(&self, name: &str) -> io::Result<()> {
            self.disk.remove(name)
        }
        fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            self.disk.rename(from, to)
        }
        fn sync_dir(&self) -> io::Result<()> {
            self.disk.sync_dir()
        }
        fn display(&self, name: &str) -> String {
            self.disk.display(name)
        }
    }

    /// A log into which a record of 8 MiB is received; how often it was synced meanwhile, and what its own sync said.
    fn receive(write_back: bool, fails: bool) -> (FaultStorage, u32, crate::Result<()>) {
        let (source, disk) = (FaultStorage::new(), FaultStorage::new());
        let mut log = Log::create(Arc::new(source.clone()), DatabaseId([1; 16]), 1).unwrap();
        let mut record = log.begin(Draft::new(PageSize::MIN, 16_384, 1)).unwrap();
        for pgno in 1..=16_384 {
            let page = std::array::from_fn::<u8, 512, _>(|at| ((at as u32 * pgno) >> 3) as u8);
            record.patch(pgno, None, &page).unwrap();
        }
        record.commit().unwrap();
        let entry = Reader::open(Arc::new(source)).unwrap().next();
        let syncs = Arc::new(AtomicU32::new(0));
        let watched = Watched {
            disk: disk.clone(),
            syncs: Arc::clone(&syncs),
            fails,
        };
        let mut log = Log::create(Arc::new(watched), DatabaseId([1; 16]), 1).unwrap();
        log.set_write_back(write_back);
        let mut raw = entry.unwrap().unwrap().raw();
        let before = syncs.load(Ordering::Relaxed);
        log.append_raw(&mut raw, &RawLimits::default()).unwrap();
        let synced = log.sync();
        (disk, syncs.load(Ordering::Relaxed) - before, synced)
    }

    #[test]
    fn a_long_record_goes_to_the_disk_while_it_is_received() {
        let (plain, few, synced) = receive(false, false);
        synced.unwrap();
        let (behind, more, synced) = receive(true, false);
        synced.unwrap();
        assert!(more > few, "{few} and {more} syncs");
        let name = crate::segment_name(crate::Txid(1));
        assert_eq!(plain.contents(&name), behind.contents(&name));
    }

    #[test]
    fn what_the_disk_refused_early_is_not_called_durable() {
        let (disk, _, synced) = receive(true, true);
        assert!(synced.is_err());
        assert!(disk.contents(crate::meta::MARK_NAME).is_none());
    }
}
