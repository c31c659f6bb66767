//! Sends the log to its replicas, in the background of the process that writes it or in the foreground for
//! `mycelite push`. Reads the log's files only: what the network does can never reach a transaction.
//!
//! Nothing runs until [`Shipper::wake`]; then the process's one shipping thread serves all replicas of all its databases, asks
//! each where it stands and sends what follows (compare-and-append). With nothing to do it gives back its connections and
//! sleeps without a system call. [`Shipper::stop`] ends that for one database at once: a request in flight is dropped, which
//! loses nothing, because the next shipper asks again.

mod body;
mod causes;
mod client;
mod driver;
pub mod fetch;
mod host;
#[cfg(feature = "cli")]
pub(crate) mod incoming;
mod link;
mod lock;
mod session;
mod snapshot;
mod state;
#[cfg(all(test, feature = "cli"))]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::lock::Mutex;
use crossbeam_channel::{Receiver, TryRecvError};
use mycelite_journal::{Pos, Storage, Txid};

use crate::access::Access;
use crate::error::{Error, ErrorKind, Result};
use crate::proto::ReplicaUrl;
use crate::status::ReplicaStatus;
use driver::{Driver, Job};
use link::{Link, open_reader, open_storage};
use state::{ReplicaState, Shared};

#[cfg(feature = "cli")]
pub(crate) use client::{Failure, FailureKind};
#[cfg(feature = "cli")]
pub(crate) use session::pause_after;

/// How often `push` tries a replica that fails in a way that may pass.
const PUSH_ATTEMPTS: u32 = 5;
/// How long `push` waits for another process to finish shipping.
const PUSH_LOCK_WAIT: Duration = Duration::from_secs(30);
/// The handle's own lock is only ever held for moments; a forked child may find it stuck, and then does without.
const HANDLE_WAIT: Duration = Duration::from_millis(100);

/// What to ship, where, and how.
#[derive(Clone, Debug)]
pub struct ShipOptions {
    /// The log directory, `<db>-mycelite`.
    pub log_dir: PathBuf,
    /// The replicas; none means that nothing is ever started.
    pub replicas: Vec<ReplicaUrl>,
    /// What is shown to all replicas, and by what they are known.
    pub access: Access,
    /// Bytes of records, as the log stores them, after which a request takes no further record.
    pub batch_bytes_max: u64,
    /// How long a request may stand still before it counts as failed.
    pub request_timeout: Duration,
}

impl ShipOptions {
    /// Options with the defaults for batches (4 MiB) and time-outs (10 s), without a token.
    pub fn new(log_dir: impl Into<PathBuf>, replicas: Vec<ReplicaUrl>) -> ShipOptions {
        ShipOptions {
            log_dir: log_dir.into(),
            replicas,
            access: Access::default(),
            batch_bytes_max: 4 * 1024 * 1024,
            request_timeout: Duration::from_secs(10),
        }
    }
}

/// The handle of one database's shipping; cheap until it is first woken.
pub struct Shipper {
    options: Arc<ShipOptions>,
    running: Mutex<Option<Running>>,
}

/// What is done for the database, seen from its handle.
struct Running {
    driver: &'static Driver,
    job: Arc<Job>,
    // Disconnected when nothing is done for it any more.
    ended: Receiver<()>,
}

impl Shipper {
    /// A handle; starts nothing and touches no file.
    pub fn new(options: ShipOptions) -> Shipper {
        Shipper {
            options: Arc::new(options),
            running: Mutex::new(None),
        }
    }

    /// Says that the log may have grown. Returns at once; starts the thread if this process has none.
    pub fn wake(&self) {
        self.ask();
    }

    /// Waits until every replica holds all that the log held at the time of the call: true. False when `timeout` is
    /// over, or at once when all replicas that lack something failed at the last attempt.
    pub fn flush(&self, timeout: Duration) -> bool {
        if self.options.replicas.is_empty() {
            return true;
        }
        match self.ask() {
            Some((shared, generation)) => shared.wait(generation, timeout),
            None => false,
        }
    }

    /// Waits, at most `timeout`, until `wanted` replicas hold `target`, a place in this log, durably: whether they do.
    pub fn wait_acknowledged(&self, target: Pos, wanted: usize, timeout: Duration) -> bool {
        if target == Pos::ZERO || wanted == 0 {
            return true;
        }
        let known = self.running.try_lock_for(HANDLE_WAIT).and_then(|slot| {
            let running = slot.as_ref().filter(|running| running.is_alive())?;
            Some(Arc::clone(&running.job.shared))
        });
        // Whoever published the record has woken it; should it not run, nobody has.
        let shared = known.or_else(|| self.ask().map(|(shared, _)| shared));
        shared.is_some_and(|shared| shared.wait_acknowledged(target, wanted, timeout))
    }

    /// Ends what is done for this database, and the thread if no other needs it, and waits for that, at most `timeout`. A later
    /// [`Shipper::wake`] begins anew.
    pub fn stop(&self, timeout: Duration) {
        let Some(mut slot) = self.running.try_lock_for(HANDLE_WAIT) else {
            return;
        };
        let Some(running) = slot.take() else {
            return;
        };
        drop(slot);
        if running.driver.is_ours() {
            running.driver.stop(&running.job, &running.ended, timeout);
        } else {
            running.forget();
        }
    }

    /// The replicas as this process sees them; the lag is counted in the log's files at the time of the call.
    pub fn status(&self) -> Vec<ReplicaStatus> {
        let states = self
            .running
            .try_lock_for(HANDLE_WAIT)
            .and_then(|slot| {
                slot.as_ref()
                    .filter(|running| running.driver.is_ours())
                    .map(|running| running.job.shared.states())
            })
            .unwrap_or_else(|| vec![ReplicaState::default(); self.options.replicas.len()]);
        report(&self.options, &states)
    }

    /// Makes sure that the thread runs and has something to look at; what to wait for.
    fn ask(&self) -> Option<(Arc<Shared>, u64)> {
        if self.options.replicas.is_empty() {
            return None;
        }
        let mut slot = self.running.try_lock_for(HANDLE_WAIT)?;
        if let Some(old) = slot.take_if(|running| !running.is_alive()) {
            old.abandon();
        }
        let running = slot.get_or_insert_with(|| {
            let driver = driver::driver();
            let (job, ended) = driver.add(&self.options);
            Running { driver, job, ended }
        });
        let generation = running.job.shared.ask();
        let runs = running.driver.wake(&running.job);
        runs.then(|| (Arc::clone(&running.job.shared), generation))
    }
}

impl Drop for Shipper {
    fn drop(&mut self) {
        if let Some(running) = self.running.get_mut().take() {
            running.abandon();
        }
    }
}

impl Running {
    /// Whether something is done for the database in this process.
    fn is_alive(&self) -> bool {
        self.driver.is_ours() && self.ended.try_recv() == Err(TryRecvError::Empty)
    }

    /// Ends it without waiting.
    fn abandon(self) {
        if self.driver.is_ours() {
            self.driver.forsake(&self.job);
        } else {
            self.forget();
        }
    }

    /// In a forked child: the thread is not here, and its locks and channels may be frozen in any state. Nothing of
    /// it is touched again, except that the copied lock files are closed.
    fn forget(self) {
        for replica in &self.job.shared.replicas {
            replica.lock.forget_after_fork();
        }
        std::mem::forget(self);
    }
}

/// How far `mycelite push` has come with one replica.
#[derive(Clone, Copy, Debug)]
pub struct PushProgress<'a> {
    /// The replica.
    pub url: &'a ReplicaUrl,
    /// The last transaction that it holds durably.
    pub acked_txid: u64,
    /// The last transaction in the log.
    pub head_txid: u64,
    /// Bytes of records acknowledged in this run, as the log stores them.
    pub sent_bytes: u64,
    /// Bytes of records that the replica still lacks.
    pub lag_bytes: u64,
}

/// Sends everything to every replica, in the foreground, one replica after the other; `progress` hears of every
/// acknowledgement. A replica that fails for good is reported in its status, and the others are served all the same.
/// Must not be called from inside an async runtime.
pub fn push_once(
    options: &ShipOptions,
    progress: &mut dyn FnMut(PushProgress<'_>),
) -> Result<Vec<ReplicaStatus>> {
    if options.replicas.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "no replica is configured")
            .hint("name one with --to http://HOST:PORT/NAME or with the setting 'replica'"));
    }
    let storage = open_storage(&options.log_dir);
    if open_reader(&storage)
        .map_err(|failure| failure.error)?
        .is_none()
    {
        return Err(Error::new(ErrorKind::NotFound, "there is no log here")
            .at(options.log_dir.display())
            .hint("open the database with mycelite and write to it first"));
    }
    let runtime = session::runtime()?;
    let shared = Shared::new(options);
    for index in 0..shared.replicas.len() {
        runtime.block_on(push_replica(options, &shared, index, &storage, progress));
    }
    runtime.shutdown_background();
    Ok(report(options, &shared.states()))
}

async fn push_replica(
    options: &ShipOptions,
    shared: &Shared,
    index: usize,
    storage: &Arc<dyn Storage>,
    progress: &mut dyn FnMut(PushProgress<'_>),
) {
    let Some(replica) = shared.replicas.get(index) else {
        return;
    };
    let mut link = Link::new(options, &replica.url, None);
    for attempt in 0..PUSH_ATTEMPTS {
        let result = async {
            let _guard = wait_for_lock(replica).await?;
            shared.connecting(index);
            link.drain(&mut |seen| {
                shared.acked(index, seen.acked);
                let lag = Lag::measure(storage, Some(seen.acked));
                progress(PushProgress {
                    url: &replica.url,
                    acked_txid: seen.acked.txid.0,
                    head_txid: lag.head_txid,
                    sent_bytes: seen.raw_bytes,
                    lag_bytes: lag.bytes,
                });
            })
            .await
        }
        .await;
        match result {
            Ok(()) => {
                shared.caught_up(index, shared.generation());
                return;
            }
            Err(failure) => {
                shared.failed(index, &failure);
                if failure.kind != client::FailureKind::Transient || attempt + 1 == PUSH_ATTEMPTS {
                    return;
                }
                tokio::time::sleep(session::pause_after(failure.kind, attempt, Duration::MAX))
                    .await;
            }
        }
    }
}

async fn wait_for_lock(
    replica: &state::Replica,
) -> std::result::Result<lock::ShipGuard<'_>, client::Failure> {
    let deadline = Instant::now() + PUSH_LOCK_WAIT;
    loop {
        if let Some(guard) = replica.lock.try_take().map_err(client::Failure::refused)? {
            return Ok(guard);
        }
        if Instant::now() >= deadline {
            return Err(client::Failure::refused(
                Error::new(
                    ErrorKind::Busy,
                    "another process ships to this replica and does not finish",
                )
                .at(&replica.url)
                .hint("its records are on their way; look at the status of that process"),
            ));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn report(options: &ShipOptions, states: &[ReplicaState]) -> Vec<ReplicaStatus> {
    let storage = open_storage(&options.log_dir);
    let one = |(url, state): (&ReplicaUrl, &ReplicaState)| {
        let lag = Lag::measure(&storage, state.acked);
        ReplicaStatus {
            url: url.to_string(),
            state: state.phase.word().to_string(),
            acked_txid: state.acked.map_or(0, |pos| pos.txid.0),
            lag_txids: lag.txids,
            lag_bytes: lag.bytes,
            lag_ms: lag.millis,
            last_error: state.last_error.clone(),
        }
    };
    options.replicas.iter().zip(states).map(one).collect()
}

/// What a replica lacks; all zero while there is no log, or where it cannot be read.
#[derive(Clone, Copy, Debug, Default)]
struct Lag {
    head_txid: u64,
    txids: u64,
    bytes: u64,
    millis: u64,
}

impl Lag {
    fn measure(storage: &Arc<dyn Storage>, acked: Option<Pos>) -> Lag {
        Lag::try_measure(storage, acked)
            .ok()
            .flatten()
            .unwrap_or_default()
    }

    fn try_measure(
        storage: &Arc<dyn Storage>,
        acked: Option<Pos>,
    ) -> mycelite_journal::Result<Option<Lag>> {
        let Ok(Some(mut reader)) = open_reader(storage) else {
            return Ok(None);
        };
        let Some(head) = reader.head()? else {
            return Ok(None);
        };
        let acked = acked.map_or(Txid(0), |pos| pos.txid);
        let head_txid = head.header.txid;
        let txids = head_txid.0.saturating_sub(acked.0);
        if txids == 0 {
            return Ok(Some(Lag {
                head_txid: head_txid.0,
                ..Lag::default()
            }));
        }
        let Some(oldest) = reader.find(acked.next())? else {
            return Ok(Some(Lag {
                head_txid: head_txid.0,
                txids,
                ..Lag::default()
            }));
        };
        let now_us = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_micros() as u64);
        Ok(Some(Lag {
            head_txid: head_txid.0,
            txids,
            bytes: reader.bytes_after(acked)?,
            millis: now_us.saturating_sub(oldest.header.time_us) / 1000,
        }))
    }
}
