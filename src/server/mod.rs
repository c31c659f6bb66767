//! `mycelite serve`: keeps the logs that shippers send and, for each, a plain SQLite file that anyone may read.
//!
//! A batch is acknowledged when its records are checked, stored and on the disk; a worker then brings the database
//! file up to the log. After a crash at any instant the same worker does the rest: everything acknowledged is in the
//! log, and the file follows from the log.

mod append;
mod appliers;
mod auth;
mod bootstrap;
mod conn;
mod database;
mod download;
mod effort;
mod endurance;
mod file_lock;
mod follower;
mod fork;
mod live;
mod maintenance;
mod metrics;
mod page;
mod progress;
mod pull;
mod pull_snapshot;
mod rate;
mod receive;
mod registry;
mod reply;
mod routes;
mod slots;
mod snapshot;
mod snapshot_making;
mod stream;
mod tail;
mod tls;

use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mycelite_journal::RawLimits;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::access::Access;
use crate::error::{Error, ErrorKind, Result};
use crate::follow::Source;
use crate::promote::SERVE_LOCK as LOCK_FILE;
use crate::proto::{DatabaseName, ReplicaUrl};
use appliers::Appliers;
use auth::Gate;
pub use auth::{check_token_line, new_token, token_hash};
use database::Database;
pub use endurance::Endurance;
use file_lock::FileLock;
pub(crate) use file_lock::forget_after_fork;
pub use follower::{FollowOptions, Follower, FollowerHandle};
use metrics::Metrics;
use progress::Pull;
use rate::Rates;
use registry::Registry;
use tls::Encryption;
pub use tls::TlsServer;

/// How to serve.
#[derive(Clone)]
pub struct ServeOptions {
    /// Address and port; port 0 lets the system choose.
    pub listen: String,
    /// The data directory; created if its parent is there.
    pub data: PathBuf,
    /// The tokens that are accepted. Without, only loopback addresses are listened on.
    pub token_file: Option<PathBuf>,
    /// The files for TLS; without, plain HTTP is spoken.
    pub tls: Option<TlsServer>,
    /// Databases that are pulled from other servers, each under its name here; nobody may push to these.
    pub follow: Vec<(DatabaseName, ReplicaUrl)>,
    /// What is shown to those servers, and by what they are known.
    pub follow_access: Access,
    /// What bounds requests.
    pub limits: Limits,
}

impl ServeOptions {
    /// Serves `data` on `listen` with the default limits, without tokens.
    pub fn new(listen: impl Into<String>, data: impl Into<PathBuf>) -> ServeOptions {
        ServeOptions {
            listen: listen.into(),
            data: data.into(),
            token_file: None,
            tls: None,
            follow: Vec::new(),
            follow_access: Access::default(),
            limits: Limits::default(),
        }
    }
}

/// What a server puts up with.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a request body, as they travel.
    pub body_bytes_max: u64,
    /// Bytes of all records of one request.
    pub decoded_bytes_max: u64,
    /// Bytes of one record.
    pub record_bytes_max: u64,
    /// Bytes of one database.
    pub database_bytes_max: u64,
    /// Bytes of a request's head.
    pub header_bytes_max: usize,
    /// Longest wait for a request's head; also ends idle connections.
    pub header_timeout: Duration,
    /// Longest time that a client may stand still while it sends a body or reads an answer.
    pub idle_max: Duration,
    /// Average rate that a body must keep once it takes longer than a minute.
    pub body_bytes_per_second_min: u64,
    /// Longest wait of a request for its turn.
    pub append_wait: Duration,
    /// Requests of one client a second, on average; 0: without bound.
    pub requests_per_second_max: u32,
    /// Connections at once.
    pub connections_max: usize,
    /// Connections of one address at once; 0: all of them, none: three quarters of all.
    pub connections_per_address_max: Option<usize>,
    /// Databases kept.
    pub databases_max: usize,
    /// Databases that are applied at once.
    pub appliers_max: usize,
    /// How long an applier waits for SQLite's locks on a replica's file, before other databases have their turn.
    pub busy_timeout: Duration,
    /// Bytes to which a replica's WAL may grow while a reader keeps it from being copied back; beyond, applying waits for that
    /// reader.
    pub wal_bytes_max: u64,
    /// How long an applier waits for more before it is closed.
    pub applier_idle: Duration,
    /// Answers with records or files at once.
    pub downloads_max: usize,
    /// Files made from the log at once.
    pub images_max: usize,
    /// Streams of followers at once; each also counts as a connection.
    pub followers_max: usize,
    /// Pieces of the log that are read for followers at once.
    pub readers_max: usize,
    /// Longest pause between two signs of life to a follower.
    pub heartbeat: Duration,
    /// A database that is pulled from a server and has not moved for so long, although the server has more, is stalled.
    pub stall_after: Duration,
    /// While logs grow, how often it is looked which are to be sealed, compacted or shortened.
    pub look_every: Duration,
    /// How long requests in flight may take at shutdown.
    pub shutdown_grace: Duration,
}

impl Limits {
    /// What bounds one record.
    fn of_records(&self) -> RawLimits {
        RawLimits {
            record_bytes_max: self.record_bytes_max,
            database_bytes_max: self.database_bytes_max,
        }
    }
}

impl Default for Limits {
    /// 16 GiB for a record (the first one of an adopted database holds all of it), 1000 databases, 256 connections.
    fn default() -> Limits {
        const GIB: u64 = 1 << 30;
        Limits {
            body_bytes_max: 17 * GIB,
            decoded_bytes_max: 17 * GIB,
            record_bytes_max: 16 * GIB,
            database_bytes_max: 1024 * GIB,
            header_bytes_max: 16 * 1024,
            header_timeout: Duration::from_secs(60),
            idle_max: Duration::from_secs(30),
            body_bytes_per_second_min: 1024,
            append_wait: Duration::from_secs(5),
            requests_per_second_max: 20_000,
            connections_max: 256,
            connections_per_address_max: None,
            databases_max: 1000,
            appliers_max: 4,
            busy_timeout: Duration::from_secs(5),
            wal_bytes_max: GIB,
            applier_idle: Duration::from_secs(5),
            downloads_max: 16,
            images_max: 2,
            followers_max: 128,
            readers_max: 4,
            heartbeat: Duration::from_secs(5),
            stall_after: Duration::from_secs(30),
            look_every: Duration::from_secs(20),
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

/// What all requests share.
struct State {
    data: PathBuf,
    limits: Limits,
    gate: Gate,
    tls: Option<Encryption>,
    rates: Rates,
    registry: Registry,
    appliers: Arc<Appliers>,
    metrics: Metrics,
    downloads: Arc<Semaphore>,
    images: Arc<Semaphore>,
    followers: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    /// True once the server is to end.
    stop: watch::Sender<bool>,
}

impl State {
    fn new(data: PathBuf, door: Door, registry: Registry, limits: Limits) -> State {
        State {
            data,
            gate: door.gate,
            tls: door.tls,
            rates: Rates::new(limits.requests_per_second_max),
            registry,
            appliers: Appliers::new(&limits),
            metrics: Metrics::new(),
            downloads: Arc::new(Semaphore::new(limits.downloads_max)),
            images: Arc::new(Semaphore::new(limits.images_max)),
            followers: Arc::new(Semaphore::new(
                limits.followers_max.min(Semaphore::MAX_PERMITS),
            )),
            readers: Arc::new(Semaphore::new(limits.readers_max.max(1))),
            stop: watch::Sender::new(false),
            limits,
        }
    }

    fn scheme(&self) -> &'static str {
        match self.tls {
            Some(_) => "https",
            None => "http",
        }
    }
}

/// What a connection must pass.
struct Door {
    gate: Gate,
    tls: Option<Encryption>,
}

impl Door {
    fn load(token_file: Option<PathBuf>, tls: Option<TlsServer>) -> Result<Door> {
        Ok(Door {
            gate: Gate::load(token_file)?,
            tls: tls.map(Encryption::load).transpose()?,
        })
    }
}

/// Reads tokens and certificates of a running server anew.
#[derive(Clone)]
pub struct Reloader(Arc<State>);

impl Reloader {
    fn of(state: &Arc<State>) -> Option<Reloader> {
        (state.gate.wants_token() || state.tls.is_some()).then(|| Reloader(Arc::clone(state)))
    }

    /// Reads all files. Connections that are open stay; each request on them is judged by the new tokens.
    ///
    /// # Errors
    /// A file is missing or bad: what it held goes on to hold.
    pub fn reload(&self) -> Result<()> {
        self.0.gate.reload()?;
        self.0.tls.as_ref().map_or(Ok(()), Encryption::reload)
    }
}

/// A server that has its port and its directory, and does not answer yet.
pub struct Server {
    listener: TcpListener,
    state: Arc<State>,
    local_addr: SocketAddr,
    sources: Vec<(Arc<Database>, Source)>,
    _lock: FileLock,
}

impl Server {
    /// Takes directory and port. Fails with one clear line: directory missing or in use, port in use, bad token file,
    /// an address that needs tokens. Must run inside a multi-threaded tokio runtime.
    pub async fn bind(options: ServeOptions) -> Result<Server> {
        let ServeOptions {
            listen,
            data,
            token_file,
            tls,
            follow,
            follow_access,
            limits,
        } = options;
        let door = Door::load(token_file, tls)?;
        // A mistyped address leaves nothing in the directory.
        let addresses = addresses_of(&listen, door.gate.wants_token()).await?;
        prepare_data(&data)?;
        let lock = lock_data(&data)?;
        clear_temp(&data)?;
        let registry = Registry::scan(&data, limits.databases_max)?;
        let listener = bind_listener(&listen, &addresses).await?;
        let local_addr = listener.local_addr().map_err(|e| {
            Error::new(ErrorKind::Io, format_args!("cannot learn the port: {e}")).at(&listen)
        })?;
        let state = Arc::new(State::new(data, door, registry, limits));
        let sources = prepare_pulls(&state, &follow, &follow_access)?;
        Ok(Server {
            listener,
            state,
            local_addr,
            sources,
            _lock: lock,
        })
    }

    /// The address that is listened on, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// What a URL of this server begins with: `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        self.state.scheme()
    }

    /// A handle that reads tokens and certificates anew while the server runs; none when there are none.
    pub fn reloader(&self) -> Option<Reloader> {
        Reloader::of(&self.state)
    }

    /// Serves until `shutdown` is done; then stops accepting, lets requests in flight finish within
    /// `shutdown_grace`, and closes the appliers.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let state = self.state;
        let guard = StopAppliers(Arc::clone(&state.appliers));
        // What a killed server left to apply is applied without waiting for a push.
        for database in state.registry.all() {
            // What is pulled may not have come yet.
            if database.log_dir.is_dir() {
                state.appliers.wake(&database);
            }
        }
        let mut pulls = JoinSet::new();
        for (database, source) in self.sources {
            let stop = state.stop.subscribe();
            let state = Arc::clone(&state);
            pulls.spawn(pull::run(state, database, source, Endurance::Always, stop));
        }
        let maintenance = tokio::spawn(maintenance::run(Arc::clone(&state)));
        let router = routes::router(Arc::clone(&state));
        let stop = async {
            shutdown.await;
            state.stop.send_replace(true);
        };
        conn::serve(self.listener, router, &state, stop).await;
        end_pulls(pulls, state.limits.shutdown_grace).await;
        // It was told to stop, too; what it was at begins anew at the next start.
        let _ = tokio::time::timeout(state.limits.shutdown_grace, maintenance).await;
        drop(guard);
        wait_for_appliers(&state).await;
        Ok(())
    }
}

/// The databases that are to be pulled, and where from.
fn prepare_pulls(
    state: &State,
    follow: &[(DatabaseName, ReplicaUrl)],
    access: &Access,
) -> Result<Vec<(Arc<Database>, Source)>> {
    let mut sources = Vec::new();
    for (name, url) in follow {
        let database = state
            .registry
            .get_or_create(name)
            .map_err(|refusal| Error::new(ErrorKind::Usage, refusal.error()))?;
        let pull = Arc::new(Pull::new(url, state.limits.stall_after));
        if database.pull.set(pull).is_err() {
            return Err(
                Error::new(ErrorKind::Usage, "this name is given twice to follow").at(name),
            );
        }
        pull::refuse_foreign(&database)?;
        database.keep()?;
        sources.push((database, Source::new(url, access)?));
    }
    Ok(sources)
}

/// Waits until what was pulled is stored; they were told to stop.
async fn end_pulls(mut pulls: JoinSet<Result<()>>, grace: Duration) {
    let all = async { while pulls.join_next().await.is_some() {} };
    if tokio::time::timeout(grace, all).await.is_err() {
        tracing::warn!("records that were being stored at shutdown are asked for again");
    }
}

/// Waits until the files are left in good order; the appliers were told to stop.
async fn wait_for_appliers(state: &State) {
    let appliers = Arc::clone(&state.appliers);
    let grace = state.limits.shutdown_grace;
    let stopped = tokio::task::spawn_blocking(move || appliers.wait_stopped(grace)).await;
    if !matches!(stopped, Ok(true)) {
        tracing::warn!(
            "an applier did not stop in time; what it was doing is done again at the next start"
        );
    }
}

/// Tells the appliers to stop, however the server ends.
struct StopAppliers(Arc<Appliers>);

impl Drop for StopAppliers {
    fn drop(&mut self) {
        self.0.ask_to_stop();
    }
}

/// Binds and runs: see [`Server`].
pub async fn serve(options: ServeOptions, shutdown: impl Future<Output = ()>) -> Result<()> {
    Server::bind(options).await?.run(shutdown).await
}

/// Done when the process is asked to end (SIGTERM or SIGINT).
pub async fn shutdown_signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
        ) {
            (Ok(mut terminate), Ok(mut interrupt)) => {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            }
            _ => {
                tracing::warn!(
                    "cannot listen for signals: only kill -9 ends this server, which is safe"
                );
                std::future::pending::<()>().await;
            }
        }
    }
    #[cfg(not(unix))]
    {
        let _ = tokio::signal::ctrl_c().await;
    }
}

fn prepare_data(data: &Path) -> Result<()> {
    match std::fs::create_dir(data) {
        // What will be acknowledged is as durable as this name.
        Ok(()) => data
            .parent()
            .map_or(Ok(()), crate::parked::sync_directory)
            .map_err(|e| Error::io("cannot make the data directory durable", data, &e)),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && data.is_dir() => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(Error::new(ErrorKind::Usage, "this is not a directory")
                .at(data.display())
                .hint("give a directory with --data"))
        }
        Err(e) => Err(Error::io("cannot create the data directory", data, &e)
            .hint("create its parent, or choose another with --data")),
    }
}

fn lock_data(data: &Path) -> Result<FileLock> {
    let path = data.join(LOCK_FILE);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| Error::io("cannot write to the data directory", &path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(FileLock::of(file)),
        Err(TryLockError::WouldBlock) => Err(Error::new(
            ErrorKind::Busy,
            "another mycelite serve uses this data directory",
        )
        .at(data.display())
        .hint("stop it, or choose another directory with --data")),
        Err(TryLockError::Error(e)) => Err(Error::io("cannot lock the data directory", &path, &e)),
    }
}

/// Removes the half-made files of a server that was killed.
fn clear_temp(data: &Path) -> Result<()> {
    let temp = data.join(download::TEMP_DIR);
    match std::fs::remove_dir_all(&temp) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("cannot remove old temporary files", &temp, &e)),
    }
}

/// What `listen` stands for, if it may be served.
async fn addresses_of(listen: &str, has_tokens: bool) -> Result<Vec<SocketAddr>> {
    let wrong = |what: String| Error::new(ErrorKind::Usage, what).at(listen);
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(listen)
        .await
        .map_err(|e| {
            wrong(format!("this is no address to listen on: {e}"))
                .hint("write HOST:PORT, as in 127.0.0.1:7878")
        })?
        .collect();
    if !has_tokens
        && !addresses
            .iter()
            .all(|address| address.ip().to_canonical().is_loopback())
    {
        return Err(
            wrong("without a token file only this machine may be served".to_string())
                .hint("listen on 127.0.0.1, or give --token-file"),
        );
    }
    Ok(addresses)
}

async fn bind_listener(listen: &str, addresses: &[SocketAddr]) -> Result<TcpListener> {
    let wrong = |what: String| Error::new(ErrorKind::Usage, what).at(listen);
    TcpListener::bind(addresses)
        .await
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::AddrInUse => Error::new(ErrorKind::Busy, "the port is in use")
                .at(listen)
                .hint("choose another with --listen"),
            std::io::ErrorKind::PermissionDenied => wrong("this port is not permitted".to_string())
                .hint("choose one above 1023 with --listen"),
            _ => Error::new(ErrorKind::Io, format_args!("cannot listen: {e}")).at(listen),
        })
}
