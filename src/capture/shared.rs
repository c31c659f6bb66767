//! One database's log as all its connections share it: the lock between threads and processes, the log itself,
//! and what is known about the image that it describes.

use crate::capture::adoption::Adoption;
use crate::capture::commits::Commits;
use crate::capture::guard::{LogGuard, State, Trust};
use crate::capture::lane::Lane;
use crate::capture::lock_file::{Found, LockFile, busy, random_token};
use crate::capture::sighting::{FileIdentity, Sighting};
use crate::capture::written_wal::WrittenWal;
use crate::config::LogSync;
use crate::error::{Error, ErrorKind, Result};
use crate::lock::{Mutex, Slot};
use crate::parked::sync_directory;
use crate::vfs::Base;
use mycelite_journal::{DatabaseId, FileStorage, Head, Log, Txid};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest wait for another thread or process that appends; beyond it the transaction goes on uncaptured (P3).
pub(super) const LOCK_WAIT_MAX: Duration = Duration::from_secs(5);
/// First and longest pause after a failure of the log, before capture is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How often a process that is alone with its log looks whether the database file still has its name.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What capture needs to know about one database.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Full path of the database file.
    pub database: PathBuf,
    /// Which file that was when it was opened.
    pub file: FileIdentity,
    /// Directory of its log.
    pub dir: PathBuf,
    /// When the log is fsynced.
    pub sync: LogSync,
    /// Bytes after which a segment is followed by a new one.
    pub segment_bytes_max: u64,
    /// Bytes of a database file from which on it is adopted by a thread, where that can be.
    pub adopt_background_min: u64,
}

/// Whoever wants to hear of new records and of trouble.
pub trait Notify: Send + Sync {
    /// At least one record was published, into the segment that begins with `segment`. Must return at once.
    fn published(&self, segment: Txid);
    /// Capture could not do its work; the application's transaction goes on. Must return at once.
    fn degraded(&self, error: &Error);
}

/// The open files of one connection, below the shim.
#[derive(Clone)]
pub struct ConnectionFiles {
    /// The name of that connection.
    pub owner: usize,
    /// The database file.
    pub db: Arc<dyn Base>,
    /// The WAL, while the connection has it open.
    pub wal: Option<Arc<dyn Base>>,
    /// What this process has seen committed in the WAL.
    pub commits: Arc<Commits>,
    /// What this connection has just written to it.
    pub written: Arc<WrittenWal>,
    /// They are ours, beside a connection's: without its wal-index nothing is known.
    pub is_twin: bool,
}

/// How capture fares, for the status.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// The last failure, until capture works again.
    pub degraded: Option<String>,
    retry_at: Option<Instant>,
    delay: Duration,
}

/// One database's log, shared by every connection of this process.
pub struct SharedLog {
    options: LogOptions,
    pub(super) state: Arc<Slot<State>>,
    published: Mutex<(Option<DatabaseId>, Head)>,
    health: Mutex<Health>,
    connections: Mutex<BTreeMap<usize, Arc<ConnectionFiles>>>,
    commits: Arc<Commits>,
    lane: Lane,
    /// The adoption that a connection of this process has begun last.
    pub(super) adoption: Mutex<Option<Arc<Adoption>>>,
    /// Mirrors the trust behind the lock, for a look without waiting.
    pub(super) verified: AtomicBool,
    /// A failure while another thread had the lock: whoever takes it next trusts nothing.
    distrusted: AtomicBool,
    notify: Arc<dyn Notify>,
}

impl SharedLog {
    /// The log of one database. Touches no file yet.
    pub fn new(options: LogOptions, notify: Arc<dyn Notify>) -> SharedLog {
        SharedLog {
            options,
            state: Arc::default(),
            published: Mutex::new((None, Head::EMPTY)),
            health: Mutex::default(),
            connections: Mutex::default(),
            commits: Arc::default(),
            lane: Lane::default(),
            adoption: Mutex::default(),
            verified: AtomicBool::new(false),
            distrusted: AtomicBool::new(false),
            notify,
        }
    }

    /// What is left to the capture thread.
    pub(super) fn lane(&self) -> &Lane {
        &self.lane
    }

    /// Whether WAL commits are left to the process's capture thread from now on.
    pub fn capture_in_background(&self, enabled: bool) {
        self.lane.enable(enabled);
    }

    /// Records what this process has left to its capture thread, now and here; waits some seconds at most.
    pub fn settle(&self) {
        Lane::drain(self);
    }

    /// The settings.
    pub fn options(&self) -> &LogOptions {
        &self.options
    }

    /// Takes the log for this thread: waits at most five seconds, then sees what other processes appended.
    ///
    /// # Errors
    /// The lock is held for too long, the log cannot be opened, or a recent failure asks for a pause.
    pub fn acquire(&self) -> Result<LogGuard> {
        if let Some(error) = self.pausing() {
            return Err(error);
        }
        self.acquire_now()
    }

    /// As [`SharedLog::acquire`], without regard to a pause after a failure.
    ///
    /// # Errors
    /// As [`SharedLog::acquire`].
    pub fn acquire_now(&self) -> Result<LogGuard> {
        let deadline = Instant::now() + LOCK_WAIT_MAX;
        let mut state = self
            .state
            .try_take_until(deadline)
            .ok_or_else(|| busy(&self.options.dir))?;
        state.leave_other_process();
        if self.distrusted.swap(false, Ordering::SeqCst) {
            state.distrust();
        }
        self.look_for_name(&mut state);
        let lock = match state.lock.take() {
            Some(lock) => lock,
            None => {
                state.pid = std::process::id();
                self.make_directory()?;
                LockFile::open(&self.options.dir)?
            }
        };
        let found = lock.lock(deadline);
        state.lock = Some(lock);
        // From here on the guard unlocks, whatever happens.
        let mut guard = LogGuard {
            state,
            undisturbed: false,
            found: Found::default(),
        };
        let found = found?;
        guard.found = found;
        if found.marked {
            guard.state.distrust();
        }
        guard.undisturbed = found.ours && !found.marked && guard.state.log.is_some();
        self.look_for_file(&mut guard)?;
        if !guard.undisturbed {
            guard.state.wal_view.forget_link();
            self.open_or_refresh(&mut guard.state)?;
            self.remember(&guard);
        }
        Ok(guard)
    }

    /// The log is to be synced soon: has the disk begin with it. Waits for nobody.
    pub fn start_sync(&self) {
        if self.options.sync != LogSync::Off
            && let Some(state) = self.state.try_take()
            && let Some(log) = &state.log
        {
            log.start_sync();
        }
    }

    /// Looks, ten times a second at most, whether the log is where it was. If it is not, whoever has the write lock next begins
    /// it anew.
    pub fn look_for_log(&self) {
        if let Some(mut state) = self.state.try_take() {
            self.look_for_name(&mut state);
        }
    }

    fn look_for_name(&self, state: &mut State) {
        if state.lock.as_mut().is_some_and(LockFile::has_lost_its_name) {
            *state = State::default();
            self.verified.store(false, Ordering::Relaxed);
        }
    }

    /// The log belongs to the file that has the name. Whether that is still ours matters as soon as somebody else might
    /// record for another; as long as nobody does, a look now and then is enough.
    fn look_for_file(&self, guard: &mut LogGuard) -> Result<()> {
        let seen = guard.state.seen.filter(|_| guard.undisturbed);
        if seen.is_some_and(|seen| seen.elapsed() < LOOK_EVERY) {
            return Ok(());
        }
        self.sight().inspect_err(|_| guard.state.distrust())?;
        guard.state.seen = Some(Instant::now());
        Ok(())
    }

    /// The database file as it is now.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when it was moved or deleted; or it cannot be examined.
    pub fn sight(&self) -> Result<Sighting> {
        Sighting::of_file(&self.options.database, self.options.file)
    }

    /// Whether there is a log.
    pub fn exists(&self) -> bool {
        self.options.dir.join("meta").exists()
    }

    /// Makes the log's directory, for those who may read the database: the log holds what the database holds.
    fn make_directory(&self) -> Result<()> {
        let dir = &self.options.dir;
        if dir.is_dir() {
            return Ok(());
        }
        std::fs::create_dir_all(dir)
            .map_err(|e| Error::io("cannot make the log directory", dir, &e))?;
        #[cfg(unix)]
        if let Ok(database) = std::fs::metadata(&self.options.database) {
            use std::os::unix::fs::PermissionsExt;
            let mode = database.permissions().mode() & 0o777;
            // Who may read the database may look into the directory.
            let mode = mode | ((mode & 0o444) >> 2);
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode))
                .map_err(|e| Error::io("cannot make the log directory", dir, &e))?;
        }
        Ok(())
    }

    fn open_or_refresh(&self, state: &mut State) -> Result<()> {
        if let Some(log) = &mut state.log {
            return log.refresh().map_err(journal_error);
        }
        let storage = FileStorage::new(&self.options.dir).with_start_sync(c_shim::start_write_back);
        let storage = Arc::new(storage);
        let log = if self.exists() {
            Log::open(storage)
        } else {
            // A power cut must not take the whole log, whose replicas would take no other. Failing leaves it to SQLite, which
            // syncs this directory for its own files.
            let _ = self.options.dir.parent().map(sync_directory);
            Log::create(storage, random_id(), now_us())
        };
        let mut log = log.map_err(journal_error)?;
        log.set_segment_bytes_max(self.options.segment_bytes_max);
        state.log = Some(log);
        Ok(())
    }

    /// Records a failure: capture pauses, and reconciles when it works again. The application notices nothing.
    pub fn fail(&self, guard: Option<&mut LogGuard>, error: &Error) {
        self.lane.checkpoint_begins();
        self.verified.store(false, Ordering::Relaxed);
        if let Some(guard) = guard {
            guard.state.distrust();
        } else if let Some(mut state) = self.state.try_take() {
            state.distrust();
        } else {
            self.distrusted.store(true, Ordering::SeqCst);
            self.verified.store(false, Ordering::SeqCst);
        }
        let mut health = self.health.lock();
        let first = health.degraded.is_none();
        // Whether a file is back under its name is seen at once.
        if error.kind() != ErrorKind::NotFound {
            health.delay = (health.delay * 2).clamp(RETRY_FIRST, RETRY_MAX);
            health.retry_at = Some(Instant::now() + health.delay);
        }
        health.degraded = Some(error.to_string());
        drop(health);
        if first {
            self.notify.degraded(error);
        }
    }

    /// Capture works: forgets the last failure.
    pub fn recovered(&self) {
        self.verified.store(true, Ordering::Relaxed);
        let mut health = self.health.lock();
        if health.degraded.is_some() {
            *health = Health::default();
        }
    }

    /// Something may have gone by uncaptured, though nothing failed: whoever has the write lock next compares.
    pub fn doubt(&self, guard: &mut LogGuard) {
        self.lane.checkpoint_begins();
        guard.state.distrust();
        self.verified.store(false, Ordering::Relaxed);
    }

    /// How capture fares.
    pub fn health(&self) -> Health {
        self.health.lock().clone()
    }

    /// Log identity and head as this process last saw them; never waits for a writer.
    pub fn published(&self) -> (Option<DatabaseId>, Head) {
        *self.published.lock()
    }

    /// Tells the world of the records that `guard` has published.
    pub fn announce(&self, guard: &LogGuard) {
        self.remember(guard);
        let segment = guard.state.log.as_ref().map(Log::segment_first);
        self.notify.published(segment.unwrap_or(Txid(0)));
    }

    /// Whether log state = file image, as this process last knew; never waits.
    pub fn is_verified(&self) -> bool {
        self.verified.load(Ordering::Relaxed)
    }

    pub(super) fn remember_trust(&self, guard: &LogGuard) {
        let verified = guard.state.trust == Trust::Verified;
        self.verified.store(verified, Ordering::SeqCst);
        if self.distrusted.load(Ordering::SeqCst) {
            self.verified.store(false, Ordering::SeqCst);
        }
    }

    fn remember(&self, guard: &LogGuard) {
        self.remember_trust(guard);
        if let Some(log) = &guard.state.log {
            *self.published.lock() = (Some(log.id()), *log.head());
        }
    }

    /// Registers the database file of the connection that SQLite knows by the name at address `name`.
    pub fn add_connection(&self, name: usize, db: Arc<dyn Base>) {
        let mut connections = self.connections.lock();
        let wal = connections
            .remove(&name)
            .and_then(|files| files.wal.clone());
        let files = ConnectionFiles {
            owner: name,
            db,
            wal,
            commits: Arc::clone(&self.commits),
            written: Arc::default(),
            is_twin: false,
        };
        connections.insert(name, Arc::new(files));
        self.lane.reconsider();
    }

    /// Sets or clears the WAL of a connection.
    pub fn set_wal(&self, name: usize, wal: Option<Arc<dyn Base>>) {
        if wal.is_none() {
            Lane::close(self, name);
        }
        let mut connections = self.connections.lock();
        if wal.is_some() && connections.values().all(|files| files.wal.is_none()) {
            self.commits.forget();
        }
        if let Some(files) = connections.get_mut(&name) {
            Arc::make_mut(files).wal = wal;
        }
    }

    /// Forgets a connection that closes.
    pub fn remove_connection(&self, name: usize) {
        Lane::close(self, name);
        self.connections.lock().remove(&name);
    }

    /// The open files of a connection.
    pub fn connection(&self, name: usize) -> Option<Arc<ConnectionFiles>> {
        self.connections.lock().get(&name).cloned()
    }

    /// The failure after which capture rests, while it rests.
    pub fn pausing(&self) -> Option<Error> {
        let health = self.health.lock();
        let until = health.retry_at?;
        let reason = health.degraded.as_ref()?;
        (Instant::now() < until).then(|| Error::new(ErrorKind::Busy, reason))
    }
}

/// Translates an error of the journal.
pub fn journal_error(error: mycelite_journal::Error) -> Error {
    let kind = match &error {
        mycelite_journal::Error::Io { .. } => ErrorKind::Io,
        mycelite_journal::Error::Version { .. } => ErrorKind::Unsupported,
        _ => ErrorKind::Corrupt,
    };
    Error::new(kind, error)
}

/// Microseconds since 1970; 0 on a clock before that.
pub fn now_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
}

fn random_id() -> DatabaseId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&random_token().to_le_bytes());
    id[8..].copy_from_slice(&random_token().to_le_bytes());
    DatabaseId(id)
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::path::Path;

    struct Deaf;

    impl Notify for Deaf {
        fn published(&self, _: Txid) {}
        fn degraded(&self, _: &Error) {}
    }

    /// The log in `dir`, of a process that has opened `database`.
    pub fn opened(dir: &Path, database: &Path) -> SharedLog {
        let options = LogOptions {
            database: database.to_path_buf(),
            file: FileIdentity::of(database).unwrap(),
            dir: dir.join("app.db-mycelite"),
            sync: LogSync::Off,
            segment_bytes_max: 1 << 20,
            adopt_background_min: u64::MAX,
        };
        SharedLog::new(options, Arc::new(Deaf))
    }

    /// The locks of a process are its child's, too, and shut nobody out between the two.
    #[test]
    fn a_forked_child_takes_nothing_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        std::fs::write(&path, "").unwrap();
        let log = opened(dir.path(), &path);
        let mut guard = log.acquire().unwrap();
        guard.set_trust(Trust::Verified);
        drop(guard);
        let mut guard = log.acquire().unwrap();
        assert!(guard.is_undisturbed());
        guard.state.pid = guard.state.pid.wrapping_add(1);
        drop(guard);
        let guard = log.acquire().unwrap();
        assert!(!guard.is_undisturbed());
        assert_eq!(guard.trust(), Trust::Unknown);
        assert_eq!(guard.state.pid, std::process::id());
    }
}
