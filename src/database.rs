//! The databases that are open through the writer VFS: capture, settings and shipping of each, put together.

mod ack;

pub use ack::AckRule;

use crate::capture::{FileIdentity, LogOptions, Notify, SharedLog};
use crate::config::{Config, WalCapture};
use crate::error::{Error, ErrorKind, Result};
use crate::lock::Mutex;
use crate::maintain::{Maintainer, Needs};
use crate::parked;
use crate::proto::ReplicaUrl;
use crate::ship::{ShipOptions, Shipper};
use crate::status::{DatabaseStatus, PosStatus};
use mycelite_journal::{Pos, Txid};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

/// A database that some connection of this process has open through the writer VFS.
pub struct Database {
    path: PathBuf,
    dir: PathBuf,
    file: FileIdentity,
    /// After `fork`, the parent's databases are in the child's memory too, and none of the child's business.
    pid: u32,
    uri: Mutex<Vec<(String, String)>>,
    config: Mutex<Config>,
    shared: Arc<SharedLog>,
    replication: Arc<Replication>,
    acks: ack::Acks,
}

/// Passes the wake-up from capture to the shipper, and trouble to the host's error log.
struct Replication {
    path: PathBuf,
    shipper: Arc<Mutex<Option<Arc<Shipper>>>>,
    maintainer: Maintainer,
    report: fn(&str),
}

type Registry = Mutex<HashMap<PathBuf, Weak<Database>>>;
/// By the address of the name by which SQLite knows a connection's database file.
type Connections = Mutex<HashMap<usize, Weak<Database>>>;

static REGISTRY: OnceLock<Registry> = OnceLock::new();
static CONNECTIONS: OnceLock<Connections> = OnceLock::new();

fn registry() -> &'static Registry {
    REGISTRY.get_or_init(Registry::default)
}

/// The directory of the log of the database file `db`.
pub fn log_dir(db: &Path) -> PathBuf {
    let mut name = db.as_os_str().to_owned();
    name.push("-mycelite");
    PathBuf::from(name)
}

/// The database open under `path`, which is named as SQLite names it.
pub fn find(path: impl AsRef<Path>) -> Option<Arc<Database>> {
    registry().lock().get(path.as_ref())?.upgrade()
}

/// Checks the settings of a database that is about to be opened.
///
/// # Errors
/// A setting is unknown or has a value that is not allowed; the message names it.
pub fn check_settings(path: &Path, uri: &[(String, String)]) -> Result<()> {
    resolve(path, uri).map(drop)
}

fn resolve(path: &Path, uri: &[(String, String)]) -> Result<(Config, Vec<ReplicaUrl>)> {
    let config = Config::for_database(path, uri)?;
    let replicas = config
        .replicas
        .iter()
        .map(|url| url.parse::<ReplicaUrl>())
        .collect::<Result<Vec<_>>>()?;
    if config.ack as usize > replicas.len() {
        return Err(Error::new(
            ErrorKind::Usage,
            format_args!(
                "ack={} but {} replicas are configured",
                config.ack,
                replicas.len()
            ),
        )
        .at(path.display())
        .hint("name more of them in the setting 'replica', or lower ack"));
    }
    Ok((config, replicas))
}

/// Opens the database at `path`, or joins the connections that have it open. `report` takes lines for the host's log.
///
/// # Errors
/// As [`check_settings`]; or the file cannot be examined.
pub fn open(path: &Path, uri: Vec<(String, String)>, report: fn(&str)) -> Result<Arc<Database>> {
    let file = FileIdentity::of(path)?;
    let mut open = registry().lock();
    if let Some(database) = open.get(path).and_then(Weak::upgrade)
        && database.file == file
        && database.pid == std::process::id()
    {
        drop(open);
        database.join(ack::shared(uri))?;
        return Ok(database);
    }
    let database = Arc::new(Database::new(path, file, uri, report)?);
    open.retain(|_, database| database.strong_count() > 0);
    open.insert(path.to_path_buf(), Arc::downgrade(&database));
    Ok(database)
}

fn connections() -> &'static Connections {
    CONNECTIONS.get_or_init(Connections::default)
}

/// The connection whose database file SQLite knows by the name at address `name` has opened `database`.
pub fn connect(name: usize, database: &Arc<Database>) {
    connections().lock().insert(name, Arc::downgrade(database));
}

/// That connection closes its database file.
pub fn disconnect(name: usize) {
    let database = connections().lock().remove(&name);
    if let Some(database) = database.as_ref().and_then(Weak::upgrade) {
        database.acks.forget(name);
    }
}

/// The database of the connection whose database file SQLite knows by the name at address `name`. Its path may be
/// another's by now.
pub fn of_connection(name: usize) -> Option<Arc<Database>> {
    connections().lock().get(&name)?.upgrade()
}

impl Database {
    fn new(
        path: &Path,
        file: FileIdentity,
        uri: Vec<(String, String)>,
        report: fn(&str),
    ) -> Result<Database> {
        let uri = ack::shared(uri);
        let (config, replicas) = resolve(path, &uri)?;
        let dir = log_dir(path);
        let shipper = Arc::new(Mutex::new(shipper(&dir, &config, replicas)));
        let maintainer = maintainer(path, &dir, &config, Arc::clone(&shipper), report);
        let replication = Arc::new(Replication {
            path: path.to_path_buf(),
            shipper,
            maintainer,
            report,
        });
        let options = LogOptions {
            database: path.to_path_buf(),
            file,
            dir: dir.clone(),
            sync: config.log_sync,
            segment_bytes_max: config.segment_bytes_max,
            adopt_background_min: config.adopt_background_min,
        };
        let notify = Arc::clone(&replication) as Arc<dyn Notify>;
        let shared = Arc::new(SharedLog::new(options, notify));
        shared.capture_in_background(config.wal_capture == WalCapture::Background);
        Ok(Database {
            path: path.to_path_buf(),
            dir,
            file,
            pid: std::process::id(),
            uri: Mutex::new(uri),
            config: Mutex::new(config),
            shared,
            replication,
            acks: ack::Acks::default(),
        })
    }

    /// Another connection opens the database; settings that its URI adds hold for all.
    fn join(&self, uri: Vec<(String, String)>) -> Result<()> {
        let added = {
            let mut known = self.uri.lock();
            let before = known.len();
            for (key, value) in uri {
                match known.iter().find(|(other, _)| *other == key) {
                    Some((_, other)) if *other == value => {}
                    Some((_, other)) => {
                        return Err(Error::new(
                            ErrorKind::Usage,
                            format_args!("{key}={value} contradicts {key}={other}, with which another connection has the database open"),
                        )
                        .at(self.path.display())
                        .hint("close that connection, or use the same value"));
                    }
                    None => known.push((key, value)),
                }
            }
            known.len() > before
        };
        if added { self.reload() } else { Ok(()) }
    }

    /// Reads the settings again, after `mycelite_config` has changed one, and replicates by them from now on.
    ///
    /// # Errors
    /// As [`check_settings`]; the settings in force stay.
    pub fn reload(&self) -> Result<()> {
        let (config, replicas) = resolve(&self.path, &self.uri.lock())?;
        let next = shipper(&self.dir, &config, replicas);
        self.replication.maintainer.set(config.keep);
        self.shared
            .capture_in_background(config.wal_capture == WalCapture::Background);
        *self.config.lock() = config;
        let previous = std::mem::replace(&mut *self.replication.shipper.lock(), next);
        if let Some(previous) = previous {
            previous.stop(Duration::from_secs(1));
        }
        self.replication.wake();
        Ok(())
    }

    /// The log as capture shares it.
    pub fn shared(&self) -> &Arc<SharedLog> {
        &self.shared
    }

    /// Directory of the log.
    pub fn log_dir(&self) -> &Path {
        &self.dir
    }

    /// The settings in force.
    pub fn config(&self) -> Config {
        self.config.lock().clone()
    }

    /// Where the database is in its history: the last recorded transaction.
    ///
    /// # Errors
    /// The log cannot be read. While another connection commits, the answer is the last that this process saw.
    pub fn pos(&self) -> Result<Pos> {
        self.shared.settle();
        let (id, head) = self.shared.published();
        if id.is_some() || !self.dir.join("meta").exists() {
            return Ok(head.pos);
        }
        Ok(self.shared.acquire()?.head().pos)
    }

    /// Everything that `mycelite_status()` shows.
    pub fn status(&self) -> DatabaseStatus {
        let pos = self.pos().unwrap_or(Pos::ZERO);
        let (id, head) = self.shared.published();
        let degraded = self.shared.health().degraded;
        DatabaseStatus {
            database: self.path.display().to_string(),
            id: id.map(|id| id.to_string()).unwrap_or_default(),
            pos: PosStatus {
                timeline: pos.timeline.0,
                txid: pos.txid.0,
                checksum: pos.checksum.to_string(),
            },
            page_size: head.page_size.map_or(0, mycelite_journal::PageSize::get),
            page_count: head.page_count,
            log_bytes: directory_bytes(&self.dir),
            log_over: crate::maintain::over(&self.dir),
            state: match &degraded {
                Some(_) => "degraded",
                None if self.shared.is_adopting() => "adopting",
                None => "ok",
            }
            .to_owned(),
            last_error: degraded.unwrap_or_default(),
            replicas: self
                .replication
                .current()
                .map(|shipper| shipper.status())
                .unwrap_or_default(),
            ack: self.acks.status(AckRule::of(&self.config.lock())),
            parked: parked::list(&self.dir)
                .iter()
                .map(|tail| tail.status())
                .collect(),
        }
    }
}

impl Drop for Database {
    /// The last connection of this process is gone: gives the replicas a bounded chance, and stamps a clean close.
    fn drop(&mut self) {
        if let Some(shipper) = self.replication.shipper.lock().take() {
            let patience = self.config.lock().close_flush;
            shipper.flush(patience);
            shipper.stop(Duration::from_millis(100));
        }
        let patience = self.config.lock().close_flush;
        self.replication.maintainer.stop(patience);
        if let Err(error) = self.shared.leave() {
            self.replication.degraded(&error);
        }
    }
}

impl Replication {
    fn current(&self) -> Option<Arc<Shipper>> {
        self.shipper.lock().clone()
    }

    fn wake(&self) {
        if let Some(shipper) = self.current() {
            shipper.wake();
        }
    }
}

impl Notify for Replication {
    fn published(&self, segment: Txid) {
        self.wake();
        self.maintainer.appended(segment);
    }

    fn degraded(&self, error: &Error) {
        (self.report)(&format!(
            "mycelite: {}: not recorded for now: {error}; the log is repaired when the cause is gone",
            self.path.display()
        ));
    }
}

fn maintainer(
    path: &Path,
    dir: &Path,
    config: &Config,
    shipper: Arc<Mutex<Option<Arc<Shipper>>>>,
    report: fn(&str),
) -> Maintainer {
    let path = path.to_path_buf();
    let needs = move || {
        // What a replica has that was not heard of yet is not known: it holds everything.
        let shipper = shipper.lock().clone();
        let acked = shipper.and_then(|s| s.status().iter().map(|r| r.acked_txid).min());
        Needs {
            states: Vec::new(),
            records_after: acked.map(Txid),
        }
    };
    Maintainer::new(dir.to_path_buf(), config.keep, needs, move |error| {
        report(&format!(
            "mycelite: {}: maintenance of the log: {error}",
            path.display()
        ));
    })
}

fn shipper(dir: &Path, config: &Config, replicas: Vec<ReplicaUrl>) -> Option<Arc<Shipper>> {
    if replicas.is_empty() {
        return None;
    }
    Some(Arc::new(Shipper::new(ShipOptions {
        log_dir: dir.to_path_buf(),
        replicas,
        access: config.access(),
        batch_bytes_max: config.batch_bytes_max,
        request_timeout: config.request_timeout,
    })))
}

/// Bytes of the files in `dir`; 0 when it is not there.
pub fn directory_bytes(dir: &Path) -> u64 {
    std::fs::read_dir(dir).map_or(0, |entries| {
        entries
            .filter_map(|entry| entry.ok()?.metadata().ok())
            .map(|meta| meta.len())
            .sum()
    })
}
