//! The logs that this process reads: connections that look at different moments of one history share its caches.

use super::head::{Head, Place};
use super::{before_history, journal_error};
use crate::bookmarks;
use crate::error::{Error, ErrorKind, Result};
use crate::lock::Mutex;
use crate::moment::Moment;
use mycelite_journal::{Archive, FileStorage, Reader, Storage, Txid};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};

/// A log that is open for reading its past.
pub struct Shelf {
    /// The history.
    pub archive: Archive,
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    head: Head,
    /// After `fork`, the child opens its own.
    pid: u32,
}

type Open = Mutex<HashMap<PathBuf, Weak<Shelf>>>;

static OPEN: OnceLock<Open> = OnceLock::new();

/// Opens the log in `dir`, or joins those who have it open.
///
/// # Errors
/// There is no log, or it cannot be read.
pub fn open(dir: &Path) -> Result<Arc<Shelf>> {
    let storage: Arc<dyn Storage> = Arc::new(FileStorage::new(dir));
    // Reads who it is, for another log may have the name by now.
    let archive = Archive::open(Arc::clone(&storage)).map_err(journal_error)?;
    let mut open = OPEN.get_or_init(Open::default).lock();
    let known = open.get(dir).and_then(Weak::upgrade);
    let pid = std::process::id();
    if let Some(known) =
        known.filter(|shelf| shelf.archive.id() == archive.id() && shelf.pid == pid)
    {
        return Ok(known);
    }
    let shelf = Arc::new(Shelf {
        archive,
        storage,
        dir: dir.to_path_buf(),
        head: Head::default(),
        pid,
    });
    open.retain(|_, shelf| shelf.strong_count() > 0);
    open.insert(dir.to_path_buf(), Arc::downgrade(&shelf));
    Ok(shelf)
}

impl Shelf {
    /// Where the log ends now.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn place(&self) -> Result<Place> {
        self.head.find(&self.archive, &self.dir)
    }

    /// The transaction that `moment` means.
    ///
    /// # Errors
    /// Nothing was recorded by then; the transaction or bookmark is not there; the log cannot be read.
    pub fn find(&self, moment: &Moment) -> Result<Txid> {
        match *moment {
            Moment::Txid(txid) => Ok(Txid(txid)),
            Moment::Head => {
                self.archive.head().map_err(journal_error)?.ok_or_else(|| {
                    Error::new(ErrorKind::NotFound, "the log holds no transaction yet")
                })
            }
            Moment::Time(us) => match self.archive.find_time(us).map_err(journal_error)? {
                Some(txid) => Ok(txid),
                None => Err(before_history(us, self.oldest()?)),
            },
            Moment::Bookmark(ref name) => self.bookmarked(name),
        }
    }

    fn bookmarked(&self, name: &str) -> Result<Txid> {
        let bookmark = bookmarks::find(&self.dir, name)?;
        let txid = bookmark.pos.txid;
        let there = self.archive.as_of(txid).map_err(journal_error)?.pos();
        if there == bookmark.pos {
            return Ok(txid);
        }
        Err(Error::new(
            ErrorKind::NotFound,
            format_args!(
                "the bookmark {name:?} is at {}, which this log has no more: it has {there} there",
                bookmark.pos
            ),
        )
        .at(self.dir.display())
        .hint("a newer timeline has replaced it; look for a parked tail with mycelite log"))
    }

    /// The log's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The first transaction of the log, and its time.
    fn oldest(&self) -> Result<Option<(Txid, u64)>> {
        let mut reader = Reader::open(Arc::clone(&self.storage)).map_err(journal_error)?;
        let first = reader.next().map_err(journal_error)?;
        Ok(first.map(|entry| (entry.header.txid, entry.header.time_us)))
    }
}
