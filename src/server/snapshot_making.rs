//! The snapshot that somebody asks for is found, or made.
//!
//! Making one takes as long as the database is large, and waits while the log is sealed or compacted. No request waits so long:
//! one job makes it, whoever asks waits for that job for a while, and asks again.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use mycelite_journal::{Archive, Pos, Snapshot, Txid, snapshot_name};
use tokio::task::JoinHandle;

use super::State;
use super::database::Database;
use super::download::{joined, slot};
use super::reply::Refusal;
use crate::maintain::MaintainLock;
use crate::proto::snapshot::SnapshotTag;

/// Pause between two looks at the lock of whoever seals, who rests for twice that between two steps.
const POLL: Duration = Duration::from_millis(10);
/// A job waits for that lock so long at most; the next request begins another one.
const SEALING_MAX: Duration = Duration::from_secs(10 * 60);

/// The making of a snapshot, under way or done.
pub(super) struct Making {
    txid: Option<Txid>,
    job: JoinHandle<Result<(), Refusal>>,
}

/// The snapshot that somebody asks for: that of a transaction, or any.
#[derive(Clone)]
pub(super) struct Wanted {
    pub state: Arc<State>,
    pub database: Arc<Database>,
    pub txid: Option<Txid>,
    /// Where the log ended when it was asked for.
    pub head: Pos,
}

/// An open snapshot, and which one it is.
type Opened = (File, SnapshotTag);

impl Wanted {
    /// Opens the file, which is made if there is none. A request waits for that as for any turn; the making goes on without it.
    pub async fn opened(&self) -> Result<Opened, Refusal> {
        let opening = async {
            if let Some(opened) = self.attempt(false).await? {
                return Ok(opened);
            }
            let mut making = self.database.making.lock().await;
            loop {
                if let Some(opened) = self.attempt(false).await? {
                    return Ok(opened);
                }
                let Making { txid, job } = making.get_or_insert_with(|| Making {
                    txid: self.txid,
                    job: tokio::spawn(self.clone().make()),
                });
                let made = job.await;
                let ours = *txid == self.txid;
                *making = None;
                // What came of another one is nothing to this request.
                if ours {
                    joined(made)??;
                }
            }
        };
        let opened = tokio::time::timeout(self.state.limits.append_wait, opening).await;
        opened.unwrap_or_else(|_| Err(not_yet()))
    }

    /// Makes it as soon as nobody seals.
    async fn make(self) -> Result<(), Refusal> {
        let mut stop = self.state.stop.subscribe();
        let deadline = Instant::now() + SEALING_MAX;
        while self.attempt(true).await?.is_none() {
            if Instant::now() >= deadline {
                return Err(not_yet());
            }
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                _ = stop.wait_for(|stop| *stop) => return Err(not_yet()),
            }
        }
        Ok(())
    }

    /// Opens it if it is there, or if `makes` and nobody seals, once it is made.
    async fn attempt(&self, makes: bool) -> Result<Option<Opened>, Refusal> {
        let permit = slot(&self.state.images, &self.state, "snapshots").await?;
        let wanted = self.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            wanted.open(makes)
        });
        joined(opened.await)?
    }

    /// As [`Wanted::attempt`]; the file stays readable even when it is removed meanwhile. Blocking.
    fn open(&self, makes: bool) -> Result<Option<Opened>, Refusal> {
        let failed = |e: mycelite_journal::Error| Refusal::from_log(&e);
        let database = &self.database;
        // What is cut off must not come back as a snapshot.
        let _history = database.history();
        let head = database.durable().map_or(self.head, |durable| durable.pos);
        if self.txid.is_some_and(|txid| txid > head.txid) || head.txid == Txid(0) {
            return Err(Refusal::new(
                StatusCode::NOT_FOUND,
                &format!("the history here ends at transaction {}", head.txid),
            )
            .with_pos(head));
        }
        // None is written while the log is sealed, compacted or cut.
        let lock = match makes {
            true => MaintainLock::try_take(&database.log_dir)?,
            false => None,
        };
        if makes && lock.is_none() {
            return Ok(None);
        }
        let archive = Archive::open(database.storage()).map_err(failed)?;
        let known = archive.snapshots().map_err(failed)?;
        let newest = known.iter().rev().find(|at| **at <= head.txid);
        let txid = self.txid.or(newest.copied()).unwrap_or(head.txid);
        if !known.contains(&txid) {
            if lock.is_none() {
                return Ok(None);
            }
            Snapshot::write(&archive, txid).map_err(failed)?;
        }
        let pos = archive.as_of(txid).map_err(failed)?.pos();
        let path = database.log_dir.join(snapshot_name(txid));
        let (file, bytes, hash) = SnapshotTag::end_of(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Refusal::busy("the snapshot was just removed (try again)"),
            _ => Refusal::from_io("cannot read the snapshot", &e),
        })?;
        Ok(Some((file, SnapshotTag { pos, bytes, hash })))
    }
}

fn not_yet() -> Refusal {
    Refusal::busy(
        "a snapshot is being made, or waits until the log is sealed or compacted (try again)",
    )
}
