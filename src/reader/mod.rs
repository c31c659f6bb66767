//! The reader VFS: a database as of any recorded transaction, or at the head of its log, read out of the log itself.
//!
//! Nothing is restored first, and neither the database file nor its locks are touched: any number of moments can be open
//! at once, beside the live database, on a replica, or from a log directory that was copied away.

mod parameters;

use crate::database::log_dir;
use crate::error::{Error, ErrorKind, Result};
use crate::moment::{self, Moment};
use crate::vfs::ReadOnly;
use mycelite_journal::{AsOf, FileStorage, PageSize, Txid};
use parameters::Parameters;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Opens the database at `path`, or the log directory at `path`, as the URI parameters `uri` ask for.
///
/// # Errors
/// A parameter is unknown or cannot be read; there is no log; it holds no such moment; it cannot be read.
pub fn open(path: &Path, uri: &[(String, String)]) -> Result<Box<dyn ReadOnly>> {
    let parameters = Parameters::parse(uri)?;
    let dir = directory(path)?;
    let mut past = Past::open(&dir, parameters.moment)?;
    past.follows = parameters.moment == Moment::Head;
    Ok(Box::new(past))
}

/// The log directory that `path` names, by itself or by its database.
fn directory(path: &Path) -> Result<PathBuf> {
    let beside = log_dir(path);
    [path, &beside]
        .into_iter()
        .find(|dir| dir.join("meta").is_file())
        .map(Path::to_path_buf)
        .ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "there is no log here")
                .at(path.display())
                .hint("name a database that mycelite_writer has written, a replica, or a log directory")
        })
}
