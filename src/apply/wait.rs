//! Waiting for locks that others hold: always with a bound, and never in the readers' way while waiting.

use std::time::{Duration, Instant};

use c_shim::{Code, File, Lock};

/// The first pause between two tries.
const PAUSE_MIN: Duration = Duration::from_micros(100);
/// The longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_millis(5);
/// How long new readers may be held off when readers that overlap each other leave no gap.
const PENDING_MAX: Duration = Duration::from_millis(100);

/// Tries until it works, fails for another reason than a lock, or `wait` has passed (then: the last `SQLITE_BUSY`).
pub(super) fn until_free<T, E>(
    wait: Duration,
    mut attempt: impl FnMut() -> Result<T, E>,
    is_busy: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let until = Instant::now() + wait;
    let mut pause = PAUSE_MIN;
    loop {
        match attempt() {
            Err(error) if is_busy(&error) && Instant::now() < until => std::thread::sleep(pause),
            done => return done,
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// The same for calls into the VFS.
pub(super) fn until_unlocked<T>(
    wait: Duration,
    attempt: impl FnMut() -> Result<T, Code>,
) -> Result<T, Code> {
    until_free(wait, attempt, |code| code.is_busy())
}

/// From `Shared` to `Exclusive` without passing `Reserved`, and with newer SQLite not `Pending` either (3.40.1 still does):
/// a try that fails is then not even seen by readers. Leaves `Shared` on failure.
pub(super) fn exclusive_unseen(db: &File, wait: Duration) -> Result<(), Code> {
    let until = Instant::now() + wait;
    let attempt = || {
        let locked = db.lock(Lock::Exclusive);
        if locked.is_err() {
            db.unlock(Lock::Shared)?;
        }
        locked
    };
    let tried = until_unlocked(wait / 2, attempt);
    if tried != Err(Code::BUSY) {
        return tried;
    }
    exclusive_pressing(db, until.saturating_duration_since(Instant::now()))
}

/// From `Shared` to `Exclusive` in the way of writers. A failed try holds `Pending`, which turns new readers away: it is
/// given up at once, except for one span of [`PENDING_MAX`] at the end. Leaves `Shared` on failure.
pub(super) fn exclusive_pressing(db: &File, wait: Duration) -> Result<(), Code> {
    let attempt = || {
        db.lock(Lock::Reserved)?;
        let locked = db.lock(Lock::Exclusive);
        if locked.is_err() {
            db.unlock(Lock::Shared)?;
        }
        locked
    };
    let tried = until_unlocked(wait.saturating_sub(PENDING_MAX), attempt);
    if tried != Err(Code::BUSY) || wait.is_zero() {
        return tried;
    }
    db.lock(Lock::Reserved)?;
    let locked = until_unlocked(PENDING_MAX, || db.lock(Lock::Exclusive));
    if locked.is_err() {
        db.unlock(Lock::Shared)?;
    }
    locked
}
