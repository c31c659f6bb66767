//! What is done for one database while there is something to send: one task for each replica, so that one that hangs does not
//! hold up its neighbours. With nothing to send for a while all of it is given back.

use std::hash::{BuildHasher, Hasher};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::client::{Failure, FailureKind};
use super::driver::{Active, Job};
use super::host::Hosts;
use super::link::Link;
use super::state::Shared;
use crate::error::{Error, ErrorKind};

/// First pause after a failure; doubles with each further one.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// A pause is no longer than this part of the time since the first failure: whoever was cut off for so long is back that much later,
const DEAD_PART: u32 = 4;
/// or this.
const BRIEF: Duration = Duration::from_millis(500);
/// Longest pause after failures.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Pause before looking again at a replica whose history is not ours.
const DIVERGED_PAUSE: Duration = Duration::from_secs(120);
/// First pause while another process ships; doubles up to [`ELSEWHERE_MAX`].
const ELSEWHERE_MIN: Duration = Duration::from_millis(5);
/// Longest pause while another process ships.
const ELSEWHERE_MAX: Duration = Duration::from_secs(1);
/// First pause after a panic in the shipping of a database; doubles with each further one, up to [`BACKOFF_MAX`].
const PANIC_PAUSE: Duration = Duration::from_secs(1);
/// With nothing to do for so long, a database's connections and files are given back.
const IDLE: Duration = Duration::from_secs(5);

/// Serves a database until nothing is left to do for a while, or until its handle wants that to end.
pub(super) async fn run(mut active: Active, hosts: Rc<Hosts>) {
    let mut panics = 0;
    loop {
        let job = Arc::clone(&active.job);
        let begun = Instant::now();
        match serve(&job, &hosts).await {
            Ended::Over(seen) if active.is_over(seen) => return,
            Ended::Over(_) => panics = 0,
            Ended::Panic => {
                if begun.elapsed() > BACKOFF_MAX {
                    panics = 0;
                }
                let pause = PANIC_PAUSE * 2_u32.saturating_pow(panics.min(16));
                rest(&job, jitter(pause.min(BACKOFF_MAX))).await;
                panics += 1;
            }
        }
    }
}

/// How a session ended.
enum Ended {
    /// Nothing is left to do up to this generation, or somebody wants it to end.
    Over(u64),
    /// With a defect of ours, which is shown in the status.
    Panic,
}

/// Waits, unless the job is to end.
async fn rest(job: &Job, time: Duration) {
    let wait = async {
        while !job.is_stopping() {
            job.bell.notified().await;
        }
    };
    // Over when the time is.
    let _ = tokio::time::timeout(time, wait).await;
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

/// Works until nothing is left to do for a while; or until the end.
async fn serve(job: &Arc<Job>, hosts: &Rc<Hosts>) -> Ended {
    let shared = &job.shared;
    let (generations, generation) = watch::channel(shared.generation());
    let mut tasks = JoinSet::new();
    for index in 0..shared.replicas.len() {
        let (job, generation) = (Arc::clone(job), generation.clone());
        let hosts = Rc::clone(hosts);
        tasks.spawn_local(async move {
            replica(&job, &hosts, index, generation).await;
        });
    }
    drop(generation);
    let ended = loop {
        if job.is_stopping() {
            break Ended::Over(shared.generation());
        }
        tokio::select! {
            () = job.bell.notified() => {
                generations.send_replace(shared.generation());
            }
            () = tokio::time::sleep(IDLE) => {
                let seen = shared.generation();
                if shared.all_done() {
                    break Ended::Over(seen);
                }
            }
            Some(Err(e)) = tasks.join_next() => {
                let error = Error::new(ErrorKind::Internal, format_args!("shipping this database ended: {e}"))
                    .at(job.options.log_dir.display())
                    .hint("it begins anew in a moment; please report this");
                tracing::error!("{error}");
                job.fail(&error);
                break Ended::Panic;
            }
        }
    };
    // Locks are free when it is said that this has ended.
    tasks.shutdown().await;
    if job.is_stopping() {
        shared.ended();
    }
    ended
}

/// How one attempt ended.
enum Attempt {
    CaughtUp,
    Elsewhere,
}

/// The life of one replica during a session.
async fn replica(job: &Job, hosts: &Hosts, index: usize, mut generations: watch::Receiver<u64>) {
    let shared = &job.shared;
    let Some(url) = shared.replicas.get(index).map(|replica| &replica.url) else {
        return;
    };
    let mut failures = 0_u32;
    let mut failing_since = None;
    let mut elsewhere = ELSEWHERE_MIN;
    let mut link = Link::new(&job.options, url, Some(hosts));
    loop {
        #[cfg(test)]
        job.panic_if_wanted();
        let generation = *generations.borrow_and_update();
        match attempt(&mut link, shared, index).await {
            Ok(Attempt::CaughtUp) => {
                shared.caught_up(index, generation);
                (failures, failing_since) = (0, None);
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
                // A line that breaks now and then is no dead one; nor is a crowded server, whom few may ask at once.
                if link.take_progress() || failure.crowded {
                    (failures, failing_since) = (0, None);
                }
                let dead_for = failing_since.get_or_insert_with(Instant::now).elapsed();
                tokio::time::sleep(pause_after(failure.kind, failures, dead_for)).await;
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

/// How long to wait after the failure that follows `failures` others, the first of which was so long ago.
pub(crate) fn pause_after(kind: FailureKind, failures: u32, dead_for: Duration) -> Duration {
    jitter(match kind {
        FailureKind::Transient => growing(failures, dead_for),
        FailureKind::Refused => BACKOFF_MAX,
        FailureKind::Diverged => DIVERGED_PAUSE,
    })
}

fn growing(failures: u32, dead_for: Duration) -> Duration {
    let doubled = BACKOFF_MIN * 2_u32.saturating_pow(failures.min(16));
    let soon = (dead_for / DEAD_PART).max(BRIEF);
    doubled.min(soon).min(BACKOFF_MAX)
}

/// `pause`, shortened by up to a half at random, so that many shippers do not knock at once.
pub(super) fn jitter(pause: Duration) -> Duration {
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
            let pause = pause_after(FailureKind::Transient, failures, Duration::MAX);
            assert!(
                pause >= BACKOFF_MIN / 2 && pause <= BACKOFF_MAX,
                "{failures}: {pause:?}"
            );
        }
        let transient = |failures| pause_after(FailureKind::Transient, failures, Duration::MAX);
        assert!(transient(0) <= BACKOFF_MIN);
        assert!(transient(30) >= BACKOFF_MAX / 2);
        let diverged = pause_after(FailureKind::Diverged, 0, Duration::ZERO);
        assert!(diverged >= DIVERGED_PAUSE / 2);
        let different: std::collections::HashSet<Duration> =
            (0..20).map(|_| jitter(BACKOFF_MAX)).collect();
        assert!(different.len() > 1, "all pauses alike");
    }

    #[test]
    fn whoever_was_cut_off_is_back_soon_and_a_dead_server_is_left_in_peace() {
        let mut attempts = vec![Duration::ZERO];
        let mut now = Duration::ZERO;
        while now < Duration::from_secs(3600) {
            now += growing(attempts.len() as u32 - 1, now);
            attempts.push(now);
        }
        assert!(
            attempts.len() < 160,
            "{} attempts in an hour",
            attempts.len()
        );
        for cut in (1..3000).map(|tenths| Duration::from_millis(100) * tenths) {
            let back = attempts.iter().find(|at| **at >= cut).unwrap();
            let late = *back - cut;
            assert!(
                late <= (cut / 4).max(BRIEF),
                "{late:?} after a cut of {cut:?}"
            );
            assert!(late <= BACKOFF_MAX);
        }
    }
}
