//! What is done for one database while there is something to send: one task for each replica, so that one that hangs does not
//! hold up its neighbours. With nothing to send for a while all of it is given back.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::ShipOptions;
use super::client::{Failure, FailureKind};
use super::driver::{Active, Job};
use super::link::Link;
use super::state::Shared;
use crate::error::{Error, ErrorKind};

/// First pause after a failure; doubles with each further one.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest pause after failures.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Pause before looking again at a replica whose history is not ours.
const DIVERGED_PAUSE: Duration = Duration::from_secs(120);
/// First pause while another process ships; doubles up to [`ELSEWHERE_MAX`].
const ELSEWHERE_MIN: Duration = Duration::from_millis(5);
/// Longest pause while another process ships.
const ELSEWHERE_MAX: Duration = Duration::from_secs(1);
/// With nothing to do for so long, a database's connections and files are given back.
const IDLE: Duration = Duration::from_secs(5);

/// Serves a database until nothing is left to do for a while, or until its handle wants that to end.
pub(super) async fn run(mut active: Active) {
    loop {
        let job = Arc::clone(&active.job);
        let seen = serve(&job).await;
        if active.is_over(seen) {
            return;
        }
    }
}

/// A runtime on the calling thread; name look-ups run on a helper thread that ends soon after.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .thread_keep_alive(Duration::from_secs(1))
        .thread_name("mycelite-dns")
        .build()
        .map_err(|e| {
            Error::new(
                ErrorKind::Io,
                format_args!("cannot start the shipping runtime: {e}"),
            )
        })
}

/// Works until nothing is left to do for a while, and says up to which generation that is so; or until the end.
async fn serve(job: &Arc<Job>) -> u64 {
    let shared = &job.shared;
    let (generations, generation) = watch::channel(shared.generation());
    let mut tasks = JoinSet::new();
    for index in 0..shared.replicas.len() {
        let (job, generation) = (Arc::clone(job), generation.clone());
        tasks.spawn_local(async move {
            replica(&job.options, &job.shared, index, generation).await;
        });
    }
    drop(generation);
    let seen = loop {
        if job.is_stopping() {
            break shared.generation();
        }
        tokio::select! {
            () = job.bell.notified() => {
                generations.send_replace(shared.generation());
            }
            () = tokio::time::sleep(IDLE) => {
                let seen = shared.generation();
                if shared.all_done() {
                    break seen;
                }
            }
            Some(Err(e)) = tasks.join_next() => {
                // A defect of ours: the next wake-up starts all tasks again.
                let seen = *generations.borrow();
                job.fail(&Error::new(ErrorKind::Internal, format_args!("a shipping task ended: {e}")));
                break seen;
            }
        }
    };
    // Locks are free when it is said that this has ended.
    tasks.shutdown().await;
    if job.is_stopping() {
        shared.ended();
    }
    seen
}

/// How one attempt ended.
enum Attempt {
    CaughtUp,
    Elsewhere,
}

/// The life of one replica during a session.
async fn replica(
    options: &ShipOptions,
    shared: &Shared,
    index: usize,
    mut generations: watch::Receiver<u64>,
) {
    let Some(url) = shared.replicas.get(index).map(|replica| &replica.url) else {
        return;
    };
    let mut failures = 0_u32;
    let mut elsewhere = ELSEWHERE_MIN;
    let mut link = Link::new(options, url);
    loop {
        let generation = *generations.borrow_and_update();
        match attempt(&mut link, shared, index).await {
            Ok(Attempt::CaughtUp) => {
                shared.caught_up(index, generation);
                failures = 0;
                elsewhere = ELSEWHERE_MIN;
                if generations.changed().await.is_err() {
                    return;
                }
            }
            Ok(Attempt::Elsewhere) => {
                shared.elsewhere(index);
                link.forget_position();
                if let Some(pos) = link.remembered() {
                    shared.acked_elsewhere(index, pos);
                }
                if shared.is_awaited() {
                    elsewhere = ELSEWHERE_MIN;
                }
                tokio::time::sleep(jitter(elsewhere)).await;
                elsewhere = (elsewhere * 2).min(ELSEWHERE_MAX);
            }
            Err(failure) => {
                if shared.failed(index, &failure) {
                    match failure.kind {
                        FailureKind::Diverged => tracing::error!("{}", failure.error),
                        _ => tracing::warn!("{}", failure.error),
                    }
                }
                if link.take_progress() {
                    // A line that breaks now and then is no dead one.
                    failures = 0;
                }
                tokio::time::sleep(pause_after(failure.kind, failures)).await;
                failures = failures.saturating_add(1);
            }
        }
    }
}

/// Sends everything there is, under the lock; looks once more after giving it back, so that a record of another
/// process that found the lock taken is not left lying.
async fn attempt(link: &mut Link, shared: &Shared, index: usize) -> Result<Attempt, Failure> {
    let Some(replica) = shared.replicas.get(index) else {
        return Ok(Attempt::CaughtUp);
    };
    while link.has_more().await? {
        let Some(_guard) = replica.lock.try_take().map_err(Failure::transient)? else {
            return Ok(Attempt::Elsewhere);
        };
        shared.connecting(index);
        link.drain(&mut |progress| shared.acked(index, progress.acked))
            .await?;
    }
    Ok(Attempt::CaughtUp)
}

/// How long to wait after the failure that follows `failures` others.
pub(crate) fn pause_after(kind: FailureKind, failures: u32) -> Duration {
    match kind {
        FailureKind::Transient => {
            jitter((BACKOFF_MIN * 2_u32.saturating_pow(failures.min(16))).min(BACKOFF_MAX))
        }
        FailureKind::Refused => jitter(BACKOFF_MAX),
        FailureKind::Diverged => jitter(DIVERGED_PAUSE),
    }
}

/// `pause`, shortened by up to a half at random, so that many shippers do not knock at once.
fn jitter(pause: Duration) -> Duration {
    // The standard library's hasher keys are the randomness that is at hand.
    let random = std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish();
    let part = (random % 1000) as u32;
    pause - pause * part / 2000
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn pauses_grow_and_stay_in_bounds() {
        for failures in 0..100 {
            let pause = pause_after(FailureKind::Transient, failures);
            assert!(
                pause >= BACKOFF_MIN / 2 && pause <= BACKOFF_MAX,
                "{failures}: {pause:?}"
            );
        }
        assert!(pause_after(FailureKind::Transient, 0) <= BACKOFF_MIN);
        assert!(pause_after(FailureKind::Transient, 30) >= BACKOFF_MAX / 2);
        assert!(pause_after(FailureKind::Diverged, 0) >= DIVERGED_PAUSE / 2);
        let different: std::collections::HashSet<Duration> =
            (0..20).map(|_| jitter(BACKOFF_MAX)).collect();
        assert!(different.len() > 1, "all pauses alike");
    }
}
