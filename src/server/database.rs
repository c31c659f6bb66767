//! One database on the server: its files, its log while that is open, and what is known about it.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::lock::{Condvar, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use axum::http::StatusCode;
use mycelite_journal::{DatabaseId, FileStorage, Head, Log, Pos, Reader, Storage, Txid};
use tokio::sync::{Notify, OwnedMutexGuard, watch};

use super::bootstrap;
use super::file_lock::FileLock;
use super::progress::Pull;
use super::reply::Refusal;
use super::snapshot_making::Making;
use super::tail::Recent;
use crate::error::{Error, ErrorKind};
use crate::parked;
use crate::promote::{self, KEEPER};
use crate::proto::{DatabaseInfo, DatabaseName, PARKED_SHOWN_MAX, pos_status};
use crate::status::ParkedStatus;

/// Pause between two looks at a lock that another process holds.
const LOCK_POLL: Duration = Duration::from_millis(10);

/// A database that the server keeps, or is about to keep.
pub(super) struct Database {
    /// Its name.
    pub name: DatabaseName,
    /// The plain SQLite file that clients may read.
    pub db_path: PathBuf,
    /// The log beside it.
    pub log_dir: PathBuf,
    /// Records appended since the server started.
    pub appended: AtomicU64,
    /// What its applier does; see `appliers`.
    pub apply: Mutex<ApplyState>,
    /// Rung when the applier of this database has something to do.
    pub apply_bell: Condvar,
    log: Arc<tokio::sync::Mutex<LogSlot>>,
    durable: Mutex<Option<Durable>>,
    /// The durable end, for those who wait until it moves; zero while it is not known.
    heads: watch::Sender<Pos>,
    /// Rung when the durable end has moved: that of the registry.
    pub growth: Arc<Notify>,
    /// Set at the start when the records are pulled from a server.
    pub pull: OnceLock<Arc<Pull>>,
    /// What was last read of the log for those who follow it.
    pub recent: tokio::sync::Mutex<Recent>,
    /// The making of a snapshot, if one is under way or nobody has heard yet what came of it.
    pub making: tokio::sync::Mutex<Option<Making>>,
    keeper: Mutex<Option<FileLock>>,
    /// Held for reading by whoever follows the log, for writing while it is cut back; grows with each cut.
    history: RwLock<u64>,
    /// The log was removed again before it had a record.
    removed: AtomicBool,
    fault: Mutex<String>,
}

/// Whose turn it is to apply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ApplyPhase {
    /// No worker, nothing to do.
    #[default]
    Idle,
    /// Waits for a worker.
    Queued,
    /// A worker has it.
    Running,
}

/// The applier's side of a database.
#[derive(Clone, Debug, Default)]
pub(super) struct ApplyState {
    /// Whose turn it is.
    pub phase: ApplyPhase,
    /// Something arrived while a worker has the database.
    pub again: bool,
    /// The last record that the database file contains; 0 when not yet known.
    pub applied: Txid,
    /// Failures since the last success.
    pub failures: u32,
    /// Failures since the server started.
    pub failures_total: u64,
    /// The last failure, one line; empty since the last success.
    pub error: String,
}

/// The state of the log as far as it is on the disk for good.
#[derive(Clone, Copy, Debug)]
pub(super) struct Durable {
    /// Identity of the log.
    pub id: DatabaseId,
    /// Where it ends.
    pub pos: Pos,
    /// Page size in bytes; 0 when there is no record.
    pub page_size: u32,
    /// Pages in the image.
    pub page_count: u32,
}

impl Durable {
    fn of(id: DatabaseId, head: &Head) -> Durable {
        Durable {
            id,
            pos: head.pos,
            page_size: head.page_size.map_or(0, |size| size.get()),
            page_count: head.page_count,
        }
    }
}

/// The open log; only whoever holds the database's turn touches it.
#[derive(Default)]
pub(super) struct LogSlot {
    log: Option<Log>,
}

impl Database {
    /// The database `name` in the directory `data`; touches no file. `growth` is rung when its log has grown.
    pub fn new(data: &Path, name: &DatabaseName, growth: Arc<Notify>) -> Database {
        let db_path = data.join(format!("{name}.db"));
        let log_dir = data.join(format!("{name}.db-mycelite"));
        Database {
            growth,
            ..Database::at(name, db_path, log_dir)
        }
    }

    /// The database `name` in these places; touches no file.
    pub fn at(name: &DatabaseName, db_path: PathBuf, log_dir: PathBuf) -> Database {
        Database {
            name: name.clone(),
            db_path,
            log_dir,
            appended: AtomicU64::new(0),
            apply: Mutex::new(ApplyState::default()),
            apply_bell: Condvar::new(),
            log: Arc::default(),
            durable: Mutex::new(None),
            heads: watch::Sender::new(Pos::ZERO),
            growth: Arc::default(),
            pull: OnceLock::new(),
            recent: tokio::sync::Mutex::default(),
            making: tokio::sync::Mutex::default(),
            keeper: Mutex::new(None),
            history: RwLock::new(0),
            removed: AtomicBool::new(false),
            fault: Mutex::new(String::new()),
        }
    }

    /// The files of its log.
    pub fn storage(&self) -> Arc<dyn Storage> {
        Arc::new(FileStorage::new(&self.log_dir))
    }

    /// The turn to use the log; waits at most `wait`.
    pub async fn turn(&self, wait: Duration) -> Result<OwnedMutexGuard<LogSlot>, Refusal> {
        tokio::time::timeout(wait, Arc::clone(&self.log).lock_owned())
            .await
            .map_err(|_| Refusal::busy("another append to this database is under way (try again)"))
    }

    /// The turn if nobody has it.
    pub fn try_turn(&self) -> Option<OwnedMutexGuard<LogSlot>> {
        Arc::clone(&self.log).try_lock_owned().ok()
    }

    /// What is known to be durable; none before the log was first opened.
    pub fn durable(&self) -> Option<Durable> {
        *self.durable.lock()
    }

    /// What is durable; opens the log for it where that has not happened yet. Blocking.
    pub fn learn_durable(&self, slot: &mut LogSlot, wait: Duration) -> Result<Durable, Refusal> {
        if let Some(durable) = self.durable() {
            return Ok(durable);
        }
        if !self.log_dir.is_dir() {
            return Err(Refusal::unknown(self.name.as_str()));
        }
        // A server that was killed may have stored records that it had no time to sync.
        let _lock = self.lock_log(wait)?;
        slot.drop_torn(self)?;
        slot.sync(self)
    }

    /// The same for a thread of its own, which waits for its turn.
    pub fn learn_durable_blocking(&self, wait: Duration) -> Result<Durable, Error> {
        if let Some(durable) = self.durable() {
            return Ok(durable);
        }
        let mut slot = Arc::clone(&self.log).blocking_lock_owned();
        self.learn_durable(&mut slot, wait)
            .map_err(|refusal| Error::new(ErrorKind::Io, refusal.error()))
    }

    fn set_durable(&self, durable: Durable) -> Durable {
        *self.durable.lock() = Some(durable);
        let has_moved = self
            .heads
            .send_if_modified(|head| std::mem::replace(head, durable.pos) != durable.pos);
        if has_moved {
            self.growth.notify_one();
        }
        durable
    }

    /// The database was taken out of the registry again: look it up anew.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    /// The durable end as it moves; it also wakes when the log is removed.
    pub fn heads(&self) -> watch::Receiver<Pos> {
        self.heads.subscribe()
    }

    /// Whether somebody waits for the end to move.
    pub fn is_followed(&self) -> bool {
        self.heads.receiver_count() > 0
    }

    /// Keeps the log from being cut back as long as the answer lives, which says how often that has happened so far.
    pub fn history(&self) -> RwLockReadGuard<'_, u64> {
        self.history.read()
    }

    /// How often the log was cut back since the server started.
    pub fn history_version(&self) -> u64 {
        *self.history.read()
    }

    /// Waits, at most `wait`, until nobody follows the log, so that it may be cut back.
    pub fn change_history(&self, wait: Duration) -> Result<HistoryChange<'_>, Refusal> {
        let guard = self.history.try_write_for(wait);
        guard.map(HistoryChange).ok_or_else(|| {
            Refusal::busy("the database file is being brought up to the log (try again)")
        })
    }

    /// Notes a failure of the log, or that it works again (the empty text).
    pub fn set_fault(&self, fault: &str) {
        *self.fault.lock() = fault.to_string();
    }

    /// Whether nothing is wrong with the log, the file, or the line to the server that is followed.
    pub fn is_ok(&self) -> bool {
        let pulled = self.pull.get().map(|pull| pull.status(self).last_error);
        self.fault.lock().is_empty()
            && self.apply.lock().error.is_empty()
            && pulled.is_none_or(|error| error.is_empty())
    }

    /// Everything worth telling. Blocking: looks at the files.
    pub fn info(&self) -> DatabaseInfo {
        let durable = self.durable();
        let apply = self.apply.lock().clone();
        let fault = self.fault.lock().clone();
        let first = Reader::open(self.storage())
            .and_then(|reader| reader.follows())
            .ok()
            .flatten()
            .filter(|_| durable.is_some_and(|durable| durable.pos != Pos::ZERO))
            .map(|follows| follows.txid.next());
        let follow = self.pull.get().map(|pull| pull.status(self));
        let pulled = follow.as_ref().map_or("", |follow| &follow.last_error);
        let last_error = [fault.as_str(), apply.error.as_str(), pulled]
            .into_iter()
            .find(|text| !text.is_empty())
            .unwrap_or_default()
            .to_string();
        DatabaseInfo {
            name: self.name.to_string(),
            id: durable.map_or(String::new(), |d| d.id.to_string()),
            pos: pos_status(durable.map_or(Pos::ZERO, |d| d.pos)),
            applied_txid: apply.applied.0,
            first_txid: first.map_or(0, |txid| txid.0),
            page_size: durable.map_or(0, |d| d.page_size),
            page_count: durable.map_or(0, |d| d.page_count),
            log_bytes: self.log_bytes(),
            parked: self.parked(),
            state: if last_error.is_empty() {
                "ok"
            } else {
                "degraded"
            }
            .to_string(),
            last_error,
            follow,
        }
    }

    /// The newest parked tails, oldest first. Blocking.
    fn parked(&self) -> Vec<ParkedStatus> {
        let tails = parked::list(&self.log_dir);
        let hidden = tails.len().saturating_sub(PARKED_SHOWN_MAX);
        tails
            .iter()
            .skip(hidden)
            .map(|tail| tail.status())
            .collect()
    }

    /// Bytes of the log on disk. Blocking.
    pub fn log_bytes(&self) -> u64 {
        let storage = self.storage();
        let names = storage.list().unwrap_or_default();
        names
            .iter()
            .filter(|name| parked::is_history(name))
            .map(|name| storage.size(name).unwrap_or(0))
            .sum()
    }

    /// Makes this process the one that pulls records into the log, until it ends; nothing where there is no log yet.
    ///
    /// # Errors
    /// `Busy` when another process is.
    pub fn keep(&self) -> Result<(), Error> {
        let mut keeper = self.keeper.lock();
        if keeper.is_some() || !self.log_dir.is_dir() {
            return Ok(());
        }
        *keeper = Some(self.try_keep()?);
        Ok(())
    }

    /// An error when another process keeps the file.
    pub fn check_keeper(&self) -> Result<(), Error> {
        if self.keeper.lock().is_some() || !self.log_dir.join(KEEPER).exists() {
            return Ok(());
        }
        self.try_keep().map(drop)
    }

    fn try_keep(&self) -> Result<FileLock, Error> {
        let path = self.log_dir.join(KEEPER);
        let failed = |e: &io::Error| Error::io("cannot lock the replica", &path, e);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| failed(&e))?;
        match file.try_lock() {
            Ok(()) => Ok(FileLock::of(file)),
            Err(TryLockError::WouldBlock) => Err(Error::new(
                ErrorKind::Busy,
                "another process keeps this replica (mycelite follow, or mycelite serve --follow)",
            )
            .at(self.db_path.display())
            .hint("stop it, or follow into another file")),
            Err(TryLockError::Error(e)) => Err(failed(&e)),
        }
    }

    /// Keeps other processes from appending to the log; waits at most `wait`. Blocking.
    pub fn lock_log(&self, wait: Duration) -> Result<FileLock, Refusal> {
        let path = self.log_dir.join("lock");
        let failed = |e: &io::Error| {
            Refusal::from_io(&format!("{}: cannot lock the log", path.display()), e)
        };
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| failed(&e))?;
        let deadline = Instant::now() + wait;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(FileLock::of(file)),
                Err(TryLockError::Error(e)) => return Err(failed(&e)),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return Err(Refusal::busy(
                        "another process holds this database's log (does someone write to the replica?)",
                    ));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_POLL),
            }
        }
    }
}

/// The right to cut the log back, until dropped.
pub(super) struct HistoryChange<'a>(RwLockWriteGuard<'a, u64>);

impl HistoryChange<'_> {
    /// The log was cut back, or may have been: whoever follows it begins anew, and what is durable is found out anew.
    pub fn changed(&mut self, database: &Database) {
        *self.0 += 1;
        *database.durable.lock() = None;
        database.heads.send_replace(Pos::ZERO);
        database.apply.lock().applied = Txid(0);
    }
}

impl LogSlot {
    /// The log, opened if need be.
    pub fn open(&mut self, database: &Database) -> Result<&mut Log, Refusal> {
        if self.log.is_none() {
            bootstrap::finish(&database.log_dir)
                .map_err(|e| Refusal::from_io("cannot finish replacing the log", &e))?;
            match Log::open(database.storage()) {
                Ok(mut log) => {
                    log.set_write_back(true);
                    self.log = Some(log);
                }
                Err(e) => {
                    if !e.is_not_found() {
                        database.set_fault(&e.to_string());
                    }
                    return Err(Refusal::from_log(&e));
                }
            }
        }
        self.log
            .as_mut()
            .ok_or_else(|| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the log is not open"))
    }

    /// Gives back the log's files; the next use opens it again.
    pub fn close(&mut self) {
        self.log = None;
    }

    /// The log of the database `id`, created if there is none, or if the one there never got a record. True if it was
    /// created just now. The caller holds the log's lock.
    pub fn open_or_create(&mut self, database: &Database, id: DatabaseId) -> Result<bool, Refusal> {
        match self.open(database) {
            Ok(log) if log.id() == id => return Ok(false),
            Ok(log)
                if log.head().pos != Pos::ZERO || !parked::list(&database.log_dir).is_empty() =>
            {
                return Err(Refusal::new(
                    StatusCode::CONFLICT,
                    &format!(
                        "{} holds another database (its id is {}, yours {id}): choose another name, or move it away",
                        database.name,
                        log.id()
                    ),
                ));
            }
            // A creation for someone else that was never followed by a record.
            Ok(_) => self.clear_empty(database)?,
            Err(refusal) if refusal.status() == StatusCode::NOT_FOUND => {}
            Err(refusal) => return Err(refusal),
        }
        if database.db_path.symlink_metadata().is_ok() {
            return Err(Refusal::new(
                StatusCode::CONFLICT,
                &format!(
                    "{} is there but has no log, so it is not a replica: move it away",
                    database.db_path.display()
                ),
            ));
        }
        // Before there is a log: what it acknowledges is as durable as the name of its directory.
        if let Some(parent) = database.log_dir.parent() {
            parked::sync_directory(parent)
                .map_err(|e| Refusal::from_io("cannot make the log's directory durable", &e))?;
        }
        let mut log =
            Log::create(database.storage(), id, now_us()).map_err(|e| Refusal::from_log(&e))?;
        log.set_write_back(true);
        database.set_durable(Durable::of(log.id(), log.head()));
        self.log = Some(log);
        Ok(true)
    }

    /// Removes the files of a log without records.
    fn clear_empty(&mut self, database: &Database) -> Result<(), Refusal> {
        self.close();
        *database.durable.lock() = None;
        let storage = database.storage();
        let failed = |e: &io::Error| Refusal::from_io("cannot clear an empty log", e);
        for name in storage.list().map_err(|e| failed(&e))? {
            let path = database.log_dir.join(&name);
            let removed = match name.as_str() {
                "lock" | KEEPER => Ok(()),
                bootstrap::DIR => std::fs::remove_dir_all(path),
                _ => storage.remove(&name),
            };
            removed.map_err(|e| failed(&e))?;
        }
        storage.sync_dir().map_err(|e| failed(&e))
    }

    /// Undoes a creation that was not followed by a record. Best effort: an empty log is cleared by the next creation.
    pub fn undo_creation(&mut self, database: &Database) {
        if self.clear_empty(database).is_ok() {
            for name in ["lock", KEEPER] {
                let _ = std::fs::remove_file(database.log_dir.join(name));
            }
            let _ = std::fs::remove_dir(&database.log_dir);
        }
        database.removed.store(true, Ordering::Relaxed);
        database.heads.send_replace(Pos::ZERO);
    }

    /// Cuts away what a power cut tore at the log's end, which the next append would: who reads the log takes it for damage
    /// when whole records follow. Of a log that applications write, the end is theirs to judge. The caller holds the log's lock.
    fn drop_torn(&mut self, database: &Database) -> Result<(), Refusal> {
        if promote::is_written(&database.log_dir) {
            return Ok(());
        }
        let log = self.open(database)?;
        let dropped = log.refresh().and_then(|()| log.drop_tail());
        if let Err(e) = &dropped {
            self.close();
            database.set_fault(&e.to_string());
            return Err(Refusal::from_log(e));
        }
        Ok(())
    }

    /// Makes everything published durable, and that known.
    pub fn sync(&mut self, database: &Database) -> Result<Durable, Refusal> {
        let log = self.open(database)?;
        match log.sync() {
            Ok(()) => {
                let durable = Durable::of(log.id(), log.head());
                Ok(database.set_durable(durable))
            }
            Err(e) => {
                // What the system holds of the log is unknown now: read it anew before the next use.
                self.close();
                database.set_fault(&e.to_string());
                Err(Refusal::from_log(&e))
            }
        }
    }
}

/// Microseconds since 1970.
pub(super) fn now_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_micros() as u64)
}

/// Adds to a counter that only people look at.
pub(super) fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}
