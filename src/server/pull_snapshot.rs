//! Beginning with a snapshot of the server's: where the server does not keep what would follow the place here, or where all of
//! that would be more than the database itself.
//!
//! The server, and whoever writes to it, goes on meanwhile: what comes after the snapshot is then asked for as always.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::StatusCode;
use mycelite_journal::Pos;
use tokio::sync::mpsc;

use super::State;
use super::bootstrap::{self, Incoming};
use super::database::{Database, Durable};
use super::progress::{Phase, Pull};
use super::reply::Refusal;
use crate::error::{Error, ErrorKind};
use crate::follow::{Failure, Offer, Source};

/// Pieces that wait to be written.
const PIECES_WAITING_MAX: usize = 16;
/// Longest time without a byte.
const PATIENCE: Duration = Duration::from_secs(30);
/// The whole history is taken where it is at most this much more than twice the database, in bytes.
const HISTORY_BYTES_MORE: u64 = 64 << 20;

/// Whether one who has nothing yet is better off with a snapshot than with the history from its beginning.
pub(super) async fn is_better(source: &Source) -> bool {
    // What cannot be learnt now is met again when records are asked for.
    let Ok(info) = source.info().await else {
        return false;
    };
    let image = u64::from(info.page_size) * u64::from(info.page_count);
    info.pos.txid > 0 && (info.first_txid > 1 || info.log_bytes > 2 * image + HISTORY_BYTES_MORE)
}

/// Fetches a snapshot, goes on where an earlier attempt was cut, and makes it the beginning of the log here.
pub(super) async fn fetch(
    state: &Arc<State>,
    database: &Arc<Database>,
    pull: &Pull,
    source: &Source,
    local: Option<Durable>,
) -> Result<(), Failure> {
    let at = local.map_or(Pos::ZERO, |durable| durable.pos);
    pull.enter(Phase::Bootstrapping, String::new());
    let known = {
        let database = Arc::clone(database);
        blocking(move || prepare(&database)).await?
    };
    let opened = match source.snapshot(known).await {
        // It has let go of that one: then another.
        Err(failure) if known.is_some() && [404, 410].contains(&failure.status) => {
            source.snapshot(None).await
        }
        opened => opened,
    };
    let (offer, mut feed) = opened?;
    check(state, database, source, local, &offer)?;
    tracing::info!(
        "{}: beginning with a snapshot of {} at {}, {} bytes",
        database.db_path.display(),
        source.url(),
        offer.tag.pos,
        offer.tag.bytes
    );
    let incoming = receive(database, pull, source, offer, &mut feed).await?;
    begin(state, database, offer, at, incoming).await
}

/// Writes what comes; all of it, or why not.
async fn receive(
    database: &Arc<Database>,
    pull: &Pull,
    source: &Source,
    offer: Offer,
    feed: &mut crate::follow::Incoming<'_>,
) -> Result<Incoming, Failure> {
    let (pieces, receiver) = mpsc::channel(PIECES_WAITING_MAX);
    let writing = {
        let database = Arc::clone(database);
        tokio::task::spawn_blocking(move || write(&database, offer, receiver))
    };
    let mut left = offer.tag.bytes - offer.from;
    pull.loaded(0, left);
    let mut cut = None;
    while left > 0 {
        match feed.chunk(PATIENCE).await {
            Ok(Some(bytes)) => {
                left = left.saturating_sub(bytes.len() as u64);
                pull.loaded(bytes.len() as u64, left);
                if pieces.send(bytes).await.is_err() {
                    // The writing has failed, and says why.
                    break;
                }
            }
            Ok(None) => break,
            Err(failure) => {
                cut = Some(failure);
                break;
            }
        }
    }
    drop(pieces);
    let incoming = match writing.await {
        Ok(Ok(incoming)) => incoming,
        Ok(Err(e)) => {
            return Err(Failure::transient(Error::io(
                "cannot store the snapshot",
                &database.log_dir,
                &e,
            )));
        }
        Err(e) => return Err(Failure::transient(Error::new(ErrorKind::Internal, e))),
    };
    if !incoming.is_complete() {
        return Err(cut.unwrap_or_else(|| {
            Failure::transient(
                Error::new(ErrorKind::Network, "the snapshot was cut").at(source.url()),
            )
        }));
    }
    Ok(incoming)
}

/// Makes the place for it; what is there of an earlier attempt.
fn prepare(
    database: &Database,
) -> Result<Option<(crate::proto::snapshot::SnapshotTag, u64)>, Failure> {
    let failed = |e: &io::Error| {
        Failure::transient(Error::io("cannot store a snapshot", &database.log_dir, e))
    };
    match std::fs::create_dir(&database.log_dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(&e)),
        _ => {}
    }
    database.keep().map_err(Failure::refused)?;
    let Some(tag) = Incoming::find(&database.log_dir) else {
        return Ok(None);
    };
    let incoming = Incoming::open(&database.log_dir, tag).map_err(|e| failed(&e))?;
    if incoming.is_complete() {
        // It was complete and is here still: so it was not good enough.
        incoming.discard();
        return Ok(None);
    }
    Ok(Some((tag, incoming.received())))
}

/// P9: the same database, and later than what is here.
fn check(
    state: &State,
    database: &Database,
    source: &Source,
    local: Option<Durable>,
    offer: &Offer,
) -> Result<(), Failure> {
    let diverged = |what: String| {
        Failure::diverged(
            Error::new(ErrorKind::Diverged, what)
                .at(database.db_path.display())
                .hint("nothing here was changed; follow into another file, or move this one and its log away"),
        )
    };
    let to = offer.tag.pos;
    match local {
        Some(local) if local.id != offer.id => Err(diverged(format!(
            "{} is another database (its id is {}, this replica's {})",
            source.url(),
            offer.id,
            local.id
        ))),
        Some(local) if to.txid <= local.pos.txid || to.timeline < local.pos.timeline => {
            Err(diverged(format!(
                "{} has a snapshot at {to}, this replica is at {}",
                source.url(),
                local.pos
            )))
        }
        _ if offer.tag.bytes > state.limits.body_bytes_max => Err(Failure::refused(
            Error::new(
                ErrorKind::Unsupported,
                format_args!("the snapshot has {} bytes", offer.tag.bytes),
            )
            .at(source.url())
            .hint("raise body_bytes_max here"),
        )),
        _ => Ok(()),
    }
}

fn write(
    database: &Database,
    offer: Offer,
    mut pieces: mpsc::Receiver<Bytes>,
) -> io::Result<Incoming> {
    let mut incoming = Incoming::open(&database.log_dir, offer.tag)?;
    incoming.go_back(offer.from)?;
    while let Some(piece) = pieces.blocking_recv() {
        incoming.append(&piece)?;
    }
    Ok(incoming)
}

async fn begin(
    state: &Arc<State>,
    database: &Arc<Database>,
    offer: Offer,
    at: Pos,
    incoming: Incoming,
) -> Result<(), Failure> {
    let wait = state.limits.append_wait;
    let failed = |refusal: &Refusal| {
        Failure::transient(
            Error::new(ErrorKind::Io, refusal.error()).at(database.log_dir.display()),
        )
    };
    let mut slot = database.turn(wait).await.map_err(|e| failed(&e))?;
    let owner = Arc::clone(database);
    let installed = blocking(move || {
        let _lock = owner.lock_log(wait)?;
        slot.open_or_create(&owner, offer.id)?;
        bootstrap::install(wait, &owner, &mut slot, offer.id, at, incoming)
    })
    .await;
    state.appliers.wake(database);
    match installed {
        Ok(_) => Ok(()),
        Err(refusal) if refusal.status() == StatusCode::CONFLICT => Err(Failure::diverged(
            Error::new(ErrorKind::Diverged, refusal.error()).at(database.db_path.display()),
        )),
        Err(refusal) => Err(failed(&refusal)),
    }
}

async fn blocking<T: Send + 'static, E: From<Unexpected> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => Err(Unexpected(e.to_string()).into()),
    }
}

/// Blocking work that panicked.
struct Unexpected(String);

impl From<Unexpected> for Failure {
    fn from(e: Unexpected) -> Failure {
        Failure::transient(Error::new(ErrorKind::Internal, e.0))
    }
}

impl From<Unexpected> for Refusal {
    fn from(e: Unexpected) -> Refusal {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, &e.0)
    }
}
