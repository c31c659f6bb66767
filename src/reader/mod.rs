//! The reader VFS: a database as of any recorded transaction, or at the head of its log, read out of the log itself.
//!
//! Nothing is restored first, and neither the database file nor its locks are touched: any number of moments can be open
//! at once, beside the live database, on a replica, or in a log directory that was copied away.

mod archives;
mod feed;
mod head;
mod hydration;
pub mod image;
mod parameters;
mod view;

use crate::capture;
use crate::database::log_dir;
use crate::error::{Error, ErrorKind, Result};
use crate::lock::Mutex;
use crate::maintain::Pin;
use crate::moment::{self, Moment};
use crate::vfs::ReadOnly;
pub use archives::{Shelf, open as open_log};
use feed::Source;
pub use feed::{Feed, Join, Origin};
use hydration::Hydration;
use mycelite_journal::{AsOf, Pos, Txid};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use view::Shown;
pub use view::{View, of_connection};

/// Opens the database at `path`, or the log directory at `path`, as the URI parameters `uri` ask for. SQLite knows the file by the
/// name at address `name`. An embedded replica, which the parameter `source` asks for, is fed by what `join` answers, and is not
/// looked at before the first read.
///
/// # Errors
/// A parameter is unknown or cannot be read; there is no log; it has no such moment; it cannot be read.
pub fn open(
    path: &Path,
    uri: &[(String, String)],
    name: usize,
    join: Join,
) -> Result<Box<dyn ReadOnly>> {
    // A time is compared with those of records: what was committed before now has one.
    view::settle(path);
    let wanted = parameters::wanted(path, uri)?;
    let shelf = OnceLock::new();
    let source = match wanted.origin {
        Some(origin) => Some(Source::new(path, origin, join)?),
        None => {
            let _ = shelf.set(open_log(&directory(path)?)?);
            None
        }
    };
    let embedded = source.is_some();
    let follows = wanted.moment == Moment::Head;
    let view = Arc::new(View {
        path: path.to_path_buf(),
        shelf,
        source,
        follows,
        shown: Mutex::default(),
    });
    view::connect(name, &view);
    let mut past = Past {
        pin: None,
        follows,
        view,
        name,
        version: 0,
        state: None,
        hydration: None,
        page: Vec::new(),
        pgno: 0,
    };
    if embedded {
        // Nothing runs and nothing waits before the first read.
    } else if follows {
        past.begin()?;
        past.end();
    } else {
        let shelf = Arc::clone(past.view.arrived()?);
        let txid = shelf.find(&wanted.moment)?;
        past.show(&shelf, txid)?;
        past.hydration = wanted
            .hydrate
            .then(|| Hydration::new(shelf.archive.clone(), txid));
    }
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
            Error::new(ErrorKind::NotFound, "there is no log here").hint(
                "mycelite_reader opens what mycelite_writer wrote, a replica, or a log directory; VACUUM INTO takes 'file:copy.db?vfs=unix'",
            )
        })
}

/// The URI by which SQLite opens the state after transaction `txid` of the log in `log_dir`, read-only.
///
/// # Errors
/// The path is not UTF-8, which SQLite needs.
pub fn uri(log_dir: &Path, txid: Txid) -> Result<String> {
    let path =
        std::path::absolute(log_dir).map_err(|source| Error::io("resolving", log_dir, &source))?;
    let path = path.to_str().ok_or_else(|| {
        Error::new(
            ErrorKind::Usage,
            "the path is not UTF-8, which SQLite needs",
        )
        .at(log_dir.display())
    })?;
    let mut uri = "file:".to_owned();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-~".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            uri.push_str(&format!("%{byte:02X}"));
        }
    }
    uri.push_str(&format!("?vfs=mycelite_reader&txid={txid}"));
    Ok(uri)
}

/// One connection's view of a history.
struct Past {
    /// Holds what is seen against compaction.
    pin: Option<Pin>,
    /// Each read transaction sees what is then the head.
    follows: bool,
    /// The same for the functions in SQL.
    view: Arc<View>,
    name: usize,
    /// That of the log's end when it was last looked at.
    version: u64,
    /// What is seen; nothing was recorded yet where it is missing.
    state: Option<AsOf>,
    /// A copy of a state that stays.
    hydration: Option<Hydration>,
    /// The page read last, since SQLite reads page 1 in several parts; 0: none.
    page: Vec<u8>,
    pgno: u32,
}

impl Past {
    fn show(&mut self, shelf: &Shelf, txid: Txid) -> Result<()> {
        if self
            .state
            .as_ref()
            .is_some_and(|state| state.pos().txid == txid && !self.follows)
        {
            return Ok(());
        }
        let pin = self.pin.get_or_insert_with(|| Pin::new(shelf.dir()));
        let still = pin.set(txid);
        let state = shelf.archive.as_of(txid).map_err(journal_error)?;
        drop(still);
        self.page.resize(state.page_size().bytes(), 0);
        self.pgno = 0;
        *self.view.shown.lock() = Shown {
            pos: Some(state.pos()),
            page_size: state.page_size().get(),
            page_count: state.page_count(),
            reading: false,
        };
        self.state = Some(state);
        Ok(())
    }

    /// Makes page `pgno` the page read last.
    fn load(&mut self, pgno: u32) -> Result<()> {
        let Some(state) = self.state.as_mut().filter(|_| self.pgno != pgno) else {
            return Ok(());
        };
        self.pgno = 0;
        // SQLite takes no lock on what never changes, so the first read is the beginning.
        let copied = self.hydration.as_mut().is_some_and(|copy| {
            copy.start();
            copy.read_page(pgno, &mut self.page)
        });
        if !copied {
            state
                .read_page(pgno, &mut self.page)
                .map_err(journal_error)?;
        }
        if pgno == 1 && self.follows {
            disguise(&mut self.page, state.pos());
        }
        self.pgno = pgno;
        Ok(())
    }
}

/// What SQLite must see in the header of a database whose content may change between two read transactions: rollback
/// mode, since there is no WAL here, and a change counter that changes with each recorded transaction, also where a newer
/// timeline has another one under the same number.
fn disguise(page: &mut [u8], pos: Pos) {
    let Some((header, _)) = page.split_at_mut_checked(100) else {
        return;
    };
    let counts_pages = header[24..28] == header[92..96];
    // Odd, so that no two timelines give one transaction number the same counter.
    let spread = (pos.timeline.0 as u32).wrapping_mul(0x9e37_79b1);
    let counter = (pos.txid.0 as u32).wrapping_add(spread).to_be_bytes();
    header[18..20].copy_from_slice(&[1, 1]);
    header[24..28].copy_from_slice(&counter);
    if counts_pages {
        header[92..96].copy_from_slice(&counter);
    }
}

impl Drop for Past {
    fn drop(&mut self) {
        view::disconnect(self.name);
    }
}

impl ReadOnly for Past {
    fn begin(&mut self) -> Result<()> {
        if !self.follows {
            return Ok(());
        }
        self.view.settle();
        let shelf = Arc::clone(self.view.arrived()?);
        let place = shelf.place()?;
        if place.version != self.version {
            // Should this fail, the next time is not taken for this one.
            self.version = 0;
            match place.txid {
                Some(head) => self.show(&shelf, head)?,
                None => self.state = None,
            }
            self.version = place.version;
        }
        self.view.shown.lock().reading = true;
        Ok(())
    }

    fn end(&mut self) {
        self.view.shown.lock().reading = false;
    }

    fn read_at(&mut self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let end = self.size().min(offset.saturating_add(buf.len() as u64));
        let page_bytes = self.page.len().max(1) as u64;
        let mut at = offset;
        while at < end {
            let pgno = u32::try_from(at / page_bytes + 1).unwrap_or(u32::MAX);
            self.load(pgno)?;
            let within = (at % page_bytes) as usize;
            let count = (page_bytes - within as u64).min(end - at) as usize;
            let start = (at - offset) as usize;
            if let (Some(target), Some(source)) = (
                buf.get_mut(start..start + count),
                self.page.get(within..within + count),
            ) {
                target.copy_from_slice(source);
            }
            at += count as u64;
        }
        Ok(end.saturating_sub(offset) as usize)
    }

    fn size(&self) -> u64 {
        self.state.as_ref().map_or(0, |state| {
            u64::from(state.page_count()) * state.page_size().bytes() as u64
        })
    }

    fn is_fixed(&self) -> bool {
        !self.follows
    }
}

/// Translates an error of the journal. History that is not there is no damage.
fn journal_error(error: mycelite_journal::Error) -> Error {
    match error {
        mycelite_journal::Error::NotFound { .. } => Error::new(ErrorKind::NotFound, error),
        error => capture::journal_error(error),
    }
}

/// Nothing was recorded yet at the time `us`; `oldest` is the first transaction that can be seen, and its time.
fn before_history(us: u64, oldest: Option<(Txid, u64)>) -> Error {
    let what = format!("nothing was recorded yet at {}", moment::time(us));
    let error = Error::new(ErrorKind::NotFound, what);
    match oldest {
        Some((txid, time_us)) => error.hint(format_args!(
            "the history begins with transaction {txid} at {}",
            moment::time(time_us)
        )),
        None => error.hint("the log holds no transaction yet"),
    }
}
