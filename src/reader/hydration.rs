//! A private copy of one past state, filled in the background while the log already answers.
//!
//! It is a temporary file without a name, so that nothing is left behind, and it is read from only after all of it was written
//! and had the state's checksum. Its thread starts with the first read and ends with the connection.

use super::image::{self, Watch};
use crate::capture::positioned::read_exact_at;
use crate::error::{Error, Result};
use mycelite_journal::{Archive, Txid};
use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

/// The copy of one connection.
pub struct Hydration {
    archive: Archive,
    txid: Txid,
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
    /// After `fork`, the child has no such thread.
    pid: u32,
}

#[derive(Default)]
struct Shared {
    watch: Watch,
    /// Set when the file is complete and right.
    file: OnceLock<File>,
}

impl Hydration {
    /// A copy of the state after transaction `txid`; nothing happens before [`Hydration::start`].
    pub fn new(archive: Archive, txid: Txid) -> Hydration {
        Hydration {
            archive,
            txid,
            shared: Arc::default(),
            worker: None,
            pid: std::process::id(),
        }
    }

    /// Begins to fill it, if that was not done yet. When it fails, the log goes on answering.
    pub fn start(&mut self) {
        if self.worker.is_some() || self.pid != std::process::id() {
            return;
        }
        let (archive, txid, shared) = (self.archive.clone(), self.txid, Arc::clone(&self.shared));
        let worker = std::thread::Builder::new()
            .name("mycelite-hydrate".to_owned())
            .spawn(move || match fill(&archive, txid, &shared.watch) {
                Ok(file) => drop(shared.file.set(file)),
                Err(error) => tracing::warn!("not hydrated: {error}"),
            });
        self.worker = worker.ok();
    }

    /// Reads page `pgno` from the copy; false if it is not filled yet, or cannot be read.
    pub fn read_page(&self, pgno: u32, page: &mut [u8]) -> bool {
        let offset = u64::from(pgno.saturating_sub(1)) * page.len() as u64;
        self.shared
            .file
            .get()
            .is_some_and(|file| read_exact_at(file, page, offset).is_ok())
    }
}

fn fill(archive: &Archive, txid: Txid, watch: &Watch) -> Result<File> {
    let directory = std::env::temp_dir();
    let file = tempfile::tempfile_in(&directory)
        .map_err(|source| Error::io("creating a temporary file in", &directory, &source))?;
    // One thread: the application has the others.
    image::write(archive, txid, &file, &directory, watch, 1)?;
    Ok(file)
}

impl Drop for Hydration {
    fn drop(&mut self) {
        self.shared.watch.stop.store(true, Ordering::Relaxed);
        match self.worker.take() {
            // Within one chunk of pages it sees that it shall stop.
            Some(worker) if self.pid == std::process::id() => drop(worker.join()),
            other => std::mem::forget(other),
        }
    }
}
