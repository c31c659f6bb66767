//! What `mycelite verify` proves of merged segments and snapshots, and a state laid out without a replay.

use std::path::Path;
use std::sync::Arc;

use mycelite::error::{Error, Result};
use mycelite_journal::{
    Archive, Error as LogError, FileStorage, OpenMode, Storage, Txid, snapshot_name, verify_file,
    verify_states,
};

use super::output;
use super::replay::Built;
use super::source::log_error;

/// What was found of the history before the records.
pub struct Past {
    /// States of merged segments, each proved by its checksum.
    pub states: u64,
    /// Snapshots, each proved by its checksum.
    pub snapshots: u64,
    /// Damage.
    pub problems: Vec<LogError>,
}

/// Proves the merged segments and snapshots of the log in `log_dir`.
pub fn check(log_dir: &Path) -> Result<Past> {
    let storage: Arc<dyn Storage> = Arc::new(FileStorage::new(log_dir));
    let archive = Archive::open(Arc::clone(&storage)).map_err(log_error)?;
    let mut past = Past {
        states: 0,
        snapshots: 0,
        problems: Vec::new(),
    };
    let mut note = |result: mycelite_journal::Result<()>| match result {
        // Compacted or dropped while we look.
        Err(LogError::NotFound { .. }) | Ok(()) => {}
        Err(error) => past.problems.push(error),
    };
    for txid in archive.snapshots().map_err(log_error)? {
        note(verify_file(&*storage, &snapshot_name(txid)));
        past.snapshots += 1;
    }
    match archive.files() {
        Ok(files) => {
            for file in files.iter().filter(|file| file.merged) {
                note(
                    verify_file(&*storage, &file.name)
                        .and_then(|()| verify_states(&archive, &file.name)),
                );
                past.states += file.states;
            }
        }
        Err(error) => note(Err(error)),
    }
    Ok(past)
}

/// Writes the state after `target` into the empty file `path`, page by page out of the log in `log_dir`.
pub fn lay_out(log_dir: &Path, target: Txid, path: &Path) -> Result<Built> {
    let archive = Archive::open(Arc::new(FileStorage::new(log_dir))).map_err(log_error)?;
    let mut past = archive.as_of(target).map_err(log_error)?;
    let failed = |source: std::io::Error| {
        Error::io("building the state in", path, &source).hint("is there room on the disk?")
    };
    let file = FileStorage::open_path(path, OpenMode::Write).map_err(failed)?;
    let bar = output::transactions_bar(u64::from(past.page_count()), "laying out");
    let size = past.page_size();
    let mut page = vec![0; size.bytes()];
    for pgno in 1..=past.page_count() {
        past.read_page(pgno, &mut page).map_err(log_error)?;
        file.write_at(&page, u64::from(pgno - 1) * u64::from(size.get()))
            .map_err(failed)?;
        bar.set_position(u64::from(pgno));
    }
    bar.finish_and_clear();
    Ok(Built {
        pos: past.pos(),
        page_size: past.head().page_size,
        page_count: past.page_count(),
    })
}
