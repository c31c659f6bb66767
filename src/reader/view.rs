//! What SQL may ask about a database that is open through the reader VFS: where it is, how far behind, and to wait.

use super::archives::Shelf;
use super::feed::Source;
use super::journal_error;
use crate::database;
use crate::error::{Error, ErrorKind, Result};
use crate::lock::Mutex;
use crate::status::{LagStatus, PosStatus, ReaderStatus};
use crate::upstream::Upstream;
use mycelite_journal::{Pos, Txid};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

/// First pause between two looks while somebody waits; doubles up to [`LOOK_MAX`].
const LOOK_MIN: Duration = Duration::from_micros(200);
/// Longest pause between two looks.
const LOOK_MAX: Duration = Duration::from_millis(10);

/// What one connection of the reader VFS looks at.
pub struct View {
    pub(super) path: PathBuf,
    /// The log; none while it is not there yet, which only a source permits.
    pub(super) shelf: OnceLock<Arc<Shelf>>,
    /// Who brings records into it, in an embedded replica.
    pub(super) source: Option<Source>,
    /// Each read transaction sees what is then the head.
    pub(super) follows: bool,
    pub(super) shown: Mutex<Shown>,
}

/// What is shown.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shown {
    pub pos: Option<Pos>,
    pub page_size: u32,
    pub page_count: u32,
    /// A read transaction is under way, so that this stands still.
    pub reading: bool,
}

/// By the address of the name by which SQLite knows a connection's database file.
type Views = Mutex<HashMap<usize, Weak<View>>>;

static VIEWS: OnceLock<Views> = OnceLock::new();

fn views() -> &'static Views {
    VIEWS.get_or_init(Views::default)
}

/// The connection whose database file SQLite knows by the name at address `name` looks at `view`.
pub(super) fn connect(name: usize, view: &Arc<View>) {
    views().lock().insert(name, Arc::downgrade(view));
}

/// That connection closes its database file.
pub(super) fn disconnect(name: usize) {
    views().lock().remove(&name);
}

/// What the connection looks at whose database file SQLite knows by the name at address `name`.
pub fn of_connection(name: usize) -> Option<Arc<View>> {
    views().lock().get(&name)?.upgrade()
}

/// What a writer of this process has committed to the database at `path` is in its log when this returns.
pub(super) fn settle(path: &Path) {
    if let Some(database) = database::find(path) {
        database.shared().settle();
    }
}

impl View {
    /// The log, if it is there. Sees to it that records come.
    pub(super) fn shelf(&self) -> Option<&Arc<Shelf>> {
        if let Some(source) = &self.source {
            source.start();
            if self.shelf.get().is_none()
                && let Some(shelf) = source.log()
            {
                return Some(self.shelf.get_or_init(|| shelf));
            }
        }
        self.shelf.get()
    }

    /// The log; waits for it where a source has still to bring it.
    ///
    /// # Errors
    /// It does not come in time, or never will.
    pub(super) fn arrived(&self) -> Result<&Arc<Shelf>> {
        match (self.shelf(), &self.source) {
            (Some(shelf), _) => Ok(shelf),
            (None, Some(source)) => {
                let shelf = source.wait()?;
                Ok(self.shelf.get_or_init(|| shelf))
            }
            (None, None) => Err(Error::new(ErrorKind::Internal, "a reader without a log")),
        }
    }

    /// A writer of this process may have left its newest commits to its capture thread: who reads after them sees them.
    pub(super) fn settle(&self) {
        if self.follows && self.source.is_none() {
            settle(&self.path);
        }
    }

    /// Where it is: what the running read transaction sees, else what the next one will.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn pos(&self) -> Result<Pos> {
        let shown = *self.shown.lock();
        match shown.pos {
            Some(pos) if shown.reading || !self.follows => Ok(pos),
            _ => self.head(),
        }
    }

    /// Where the log ends.
    fn head(&self) -> Result<Pos> {
        self.settle();
        let Some(shelf) = self.shelf() else {
            return Ok(Pos::ZERO);
        };
        match shelf.place()?.txid {
            Some(txid) => pos_at(shelf, txid),
            None => Ok(Pos::ZERO),
        }
    }

    /// How far it is behind the server that is followed into this log; none where nothing follows one.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn lag(&self) -> Result<Option<LagStatus>> {
        let Some(upstream) = self.shelf().and_then(|shelf| Upstream::read(shelf.dir())) else {
            return Ok(None);
        };
        let txids = upstream.txid.saturating_sub(self.pos()?.txid.0);
        let age_ms = upstream.age_ms();
        Ok(Some(LagStatus {
            txids,
            bytes: if txids > 0 { upstream.behind_bytes } else { 0 },
            ms: if txids > 0 { age_ms } else { 0 },
            heard_ms: age_ms,
        }))
    }

    /// Waits, at most `timeout`, until the log holds `target`: whether it does. A read transaction that is under way does not
    /// move, the next one sees it.
    ///
    /// # Errors
    /// The log was elsewhere at that transaction; it cannot be read.
    pub fn wait(&self, target: Pos, timeout: Duration) -> Result<bool> {
        let holds = |head: Pos| head.txid >= target.txid && head.timeline >= target.timeline;
        match self.wait_until(holds, timeout)? {
            Some(head) => self.is_in_history(target, head),
            None => Ok(false),
        }
    }

    /// The same for a transaction of whatever timeline.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn wait_for_txid(&self, txid: Txid, timeout: Duration) -> Result<bool> {
        let found = self.wait_until(|head| head.txid >= txid, timeout)?;
        Ok(found.is_some())
    }

    fn wait_until(&self, holds: impl Fn(Pos) -> bool, timeout: Duration) -> Result<Option<Pos>> {
        let deadline = Instant::now() + timeout;
        let mut pause = LOOK_MIN;
        loop {
            let head = self.head()?;
            if holds(head) {
                return Ok(Some(head));
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(None);
            }
            std::thread::sleep(pause.min(deadline - now));
            pause = (pause * 2).min(LOOK_MAX);
        }
    }

    fn is_in_history(&self, target: Pos, head: Pos) -> Result<bool> {
        let found = match target.txid {
            Txid(0) => return Ok(true),
            txid if txid == head.txid => head,
            txid => match self.shelf().map(|shelf| pos_at(shelf, txid)) {
                // Merged with later ones, or let go of: whoever is behind it has it.
                Some(Err(error)) if error.kind() == ErrorKind::NotFound => return Ok(true),
                Some(found) => found?,
                None => return Ok(false),
            },
        };
        if found == target {
            return Ok(true);
        }
        Err(Error::new(
            ErrorKind::Diverged,
            format_args!("this history was at {found}, not at {target}"),
        )
        .at(self.path.display())
        .hint("the position is another database's, or of a timeline that ended"))
    }

    /// Everything that `mycelite_status()` shows.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn status(&self) -> Result<ReaderStatus> {
        let pos = self.pos()?;
        let shown = *self.shown.lock();
        Ok(ReaderStatus {
            database: self.path.display().to_string(),
            id: self
                .shelf()
                .map(|shelf| shelf.archive.id().to_string())
                .unwrap_or_default(),
            follows_head: self.follows,
            pos: PosStatus {
                timeline: pos.timeline.0,
                txid: pos.txid.0,
                checksum: pos.checksum.to_string(),
            },
            page_size: shown.page_size,
            page_count: shown.page_count,
            lag: self.lag()?,
            follow: self.source.as_ref().map(Source::status),
        })
    }
}

fn pos_at(shelf: &Shelf, txid: Txid) -> Result<Pos> {
    Ok(shelf.archive.as_of(txid).map_err(journal_error)?.pos())
}
