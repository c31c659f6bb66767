//! `mycelite follow`: one database, pulled into one file; the same machinery as a server's, with or without its port.

use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;

use super::database::Database;
use super::endurance::Endurance;
use super::progress::Pull;
use super::pull;
use super::registry::Registry;
use super::{Door, LOCK_FILE, Limits, Reloader, State, StopAppliers, TlsServer};
use crate::access::Access;
use crate::error::{Error, ErrorKind, Result};
use crate::follow::Source;
use crate::proto::ReplicaUrl;
use crate::status::FollowStatus;

/// What to follow, and where to keep it.
#[derive(Clone)]
pub struct FollowOptions {
    /// The database on its server.
    pub url: ReplicaUrl,
    /// What is shown to that server, and by what it is known.
    pub access: Access,
    /// The file to keep; made with the first record.
    pub db: PathBuf,
    /// The directory of its log.
    pub log_dir: PathBuf,
    /// Makes the log's directory, and keeps other processes from following into it, before anything has come.
    pub claim: bool,
    /// Address and port to serve it on in turn.
    pub listen: Option<String>,
    /// The tokens accepted there. Without, only loopback addresses are listened on.
    pub token_file: Option<PathBuf>,
    /// The files for TLS there.
    pub tls: Option<TlsServer>,
    /// When to give up.
    pub endurance: Endurance,
    /// What bounds requests, records and waits.
    pub limits: Limits,
}

/// A follower that has looked at its file, and does nothing yet.
pub struct Follower {
    state: Arc<State>,
    database: Arc<Database>,
    source: Source,
    endurance: Endurance,
    listener: Option<(TcpListener, SocketAddr)>,
}

/// A look at a follower from outside.
#[derive(Clone)]
pub struct FollowerHandle {
    database: Arc<Database>,
    pull: Arc<Pull>,
}

impl FollowerHandle {
    /// How it goes.
    pub fn status(&self) -> FollowStatus {
        self.pull.status(&self.database)
    }

    /// Whether the file is what the server last said it has.
    pub fn is_caught_up(&self) -> bool {
        self.pull.is_caught_up(&self.database)
    }
}

impl Follower {
    /// Looks at the file and its log, and takes the port. Must run inside a multi-threaded tokio runtime.
    ///
    /// # Errors
    /// `Diverged` for a file that is there and no replica; `Busy` when another process keeps it, or the port is in use;
    /// `NotFound` without a directory for it; `Usage`; `Io`.
    pub async fn open(options: FollowOptions) -> Result<Follower> {
        let FollowOptions {
            url,
            access,
            db,
            log_dir,
            claim,
            listen,
            token_file,
            tls,
            endurance,
            limits,
        } = options;
        check_place(&db)?;
        let database = Arc::new(Database::at(url.name(), db, log_dir.clone()));
        let pull = Arc::new(Pull::new(&url, limits.stall_after));
        // It is new, so nothing is set.
        let _ = database.pull.set(pull);
        pull::refuse_foreign(&database)?;
        if claim {
            match std::fs::create_dir(&log_dir) {
                Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(Error::io("cannot create the log directory", &log_dir, &e));
                }
                _ => {}
            }
        }
        database.keep()?;
        let door = Door::load(token_file, tls)?;
        let listener = match listen {
            None => None,
            Some(listen) => {
                let addresses = super::addresses_of(&listen, door.gate.wants_token()).await?;
                let listener = super::bind_listener(&listen, &addresses).await?;
                let address = listener.local_addr().map_err(|e| {
                    Error::new(ErrorKind::Io, format_args!("cannot learn the port: {e}"))
                        .at(&listen)
                })?;
                Some((listener, address))
            }
        };
        let registry = Registry::of_one(&database);
        Ok(Follower {
            source: Source::new(&url, &access)?,
            state: Arc::new(State::new(log_dir, door, registry, limits)),
            database,
            endurance,
            listener,
        })
    }

    /// The address that is listened on, with the real port.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.listener.as_ref().map(|(_, address)| *address)
    }

    /// What a URL of it begins with: `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        self.state.scheme()
    }

    /// A handle that reads tokens and certificates anew while it runs; none when there are none.
    pub fn reloader(&self) -> Option<Reloader> {
        Reloader::of(&self.state)
    }

    /// A look at it while it runs.
    pub fn handle(&self) -> FollowerHandle {
        let pull = self.database.pull.get().cloned();
        FollowerHandle {
            database: Arc::clone(&self.database),
            // Set since `open`.
            pull: pull.unwrap_or_else(|| {
                Arc::new(Pull::new(self.source.url(), self.state.limits.stall_after))
            }),
        }
    }

    /// Follows until `shutdown` is done, or until it gives up: then the error says why. What came whole is stored and
    /// applied in either case, and the file left in good order.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let state = self.state;
        let guard = StopAppliers(Arc::clone(&state.appliers));
        let mut pulling = tokio::spawn(pull::run(
            Arc::clone(&state),
            self.database,
            self.source,
            self.endurance,
            state.stop.subscribe(),
        ));
        let serving = self.listener.map(|(listener, _)| {
            let (state, stop) = (Arc::clone(&state), state.stop.subscribe());
            tokio::spawn(async move {
                let router = super::routes::router(Arc::clone(&state));
                super::conn::serve(listener, router, &state, stopped(stop)).await;
            })
        });
        let maintenance = tokio::spawn(super::maintenance::run(Arc::clone(&state)));
        let ended = tokio::select! {
            () = shutdown => None,
            ended = &mut pulling => Some(ended),
        };
        state.stop.send_replace(true);
        let ended = match ended {
            Some(ended) => Some(ended),
            None => tokio::time::timeout(state.limits.shutdown_grace, pulling)
                .await
                .ok(),
        };
        // It was told to stop, too; what it was at begins anew at the next start.
        let _ = tokio::time::timeout(state.limits.shutdown_grace, maintenance).await;
        if let Some(serving) = serving {
            // Bounded by itself.
            let _ = serving.await;
        }
        drop(guard);
        super::wait_for_appliers(&state).await;
        match ended {
            Some(Ok(result)) => result,
            Some(Err(e)) => Err(Error::new(
                ErrorKind::Internal,
                format_args!("following ended unexpectedly: {e}"),
            )),
            None => Ok(()),
        }
    }
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // An error means that the follower itself has gone.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Whether a replica may be kept at `db`.
fn check_place(db: &Path) -> Result<()> {
    let wrong = |what: &str| Error::new(ErrorKind::Usage, what).at(db.display());
    if db.file_name().is_none() || db.is_dir() {
        return Err(wrong("this is a directory").hint("name the file to keep"));
    }
    let parent = match db.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !parent.is_dir() {
        return Err(Error::new(
            ErrorKind::NotFound,
            "the directory for the replica is not there",
        )
        .at(parent.display())
        .hint("create it first"));
    }
    let served = File::open(parent.join(LOCK_FILE))
        .is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)));
    if served {
        return Err(
            Error::new(ErrorKind::Busy, "a mycelite serve keeps this directory")
                .at(parent.display())
                .hint("give that server --follow NAME=URL instead"),
        );
    }
    Ok(())
}
