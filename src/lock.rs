//! Locks between the threads of one process, as the standard library has them, with what we need besides.
//!
//! Whoever waits for one of these waits in the lock itself. A child that is forked meanwhile has none of the other threads, but
//! all of the memory: what they waited in must not be shared with the locks that the child makes, as it would be in a table of
//! the process (which is how some libraries keep locks small, and how a child of ours would crash).
//!
//! A panic does not poison: what was amid a change is doubted by other means.

use std::ops::{Deref, DerefMut};
use std::sync::{self, Arc, PoisonError, TryLockError};
use std::time::{Duration, Instant};

pub use std::sync::MutexGuard;
#[cfg(feature = "cli")]
pub use std::sync::{RwLockReadGuard, RwLockWriteGuard};

/// First and longest pause between two tries of a lock that is waited for with a limit.
const PAUSE_FIRST: Duration = Duration::from_micros(50);
const PAUSE_MAX: Duration = Duration::from_millis(1);

/// One thread at a time.
#[derive(Debug, Default)]
pub struct Mutex<T>(sync::Mutex<T>);

impl<T> Mutex<T> {
    /// A lock around `value`.
    pub const fn new(value: T) -> Mutex<T> {
        Mutex(sync::Mutex::new(value))
    }

    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lock if it is free.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        free(self.0.try_lock())
    }

    /// Waits for the lock, for `patience` at most.
    pub fn try_lock_for(&self, patience: Duration) -> Option<MutexGuard<'_, T>> {
        try_for(patience, || self.try_lock())
    }

    /// The value, which nobody else can have.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where threads wait that have a [`Mutex`].
#[derive(Debug, Default)]
pub struct Condvar(sync::Condvar);

impl Condvar {
    /// A place in which nobody waits.
    pub const fn new() -> Condvar {
        Condvar(sync::Condvar::new())
    }

    /// Wakes one of those who wait.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Wakes all who wait.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    /// Gives the lock away until it is woken, or for no reason.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Condvar::wait`], until `deadline` at most; whether that was it.
    pub fn wait_until<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        deadline: Instant,
    ) -> (MutexGuard<'a, T>, bool) {
        self.wait_for(guard, deadline.saturating_duration_since(Instant::now()))
    }

    /// As [`Condvar::wait`], for `patience` at most; whether that was it.
    pub fn wait_for<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        patience: Duration,
    ) -> (MutexGuard<'a, T>, bool) {
        let waited = self.0.wait_timeout(guard, patience);
        let (guard, result) = waited.unwrap_or_else(PoisonError::into_inner);
        (guard, result.timed_out())
    }
}

/// Many readers, or one writer.
#[cfg(feature = "cli")]
#[derive(Debug, Default)]
pub struct RwLock<T>(sync::RwLock<T>);

#[cfg(feature = "cli")]
impl<T> RwLock<T> {
    /// A lock around `value`.
    pub const fn new(value: T) -> RwLock<T> {
        RwLock(sync::RwLock::new(value))
    }

    /// Waits until nobody writes.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody reads or writes.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`RwLock::write`], for `patience` at most.
    pub fn try_write_for(&self, patience: Duration) -> Option<RwLockWriteGuard<'_, T>> {
        try_for(patience, || free(self.0.try_write()))
    }
}

fn free<G>(tried: Result<G, TryLockError<G>>) -> Option<G> {
    match tried {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

fn try_for<G>(patience: Duration, mut lock: impl FnMut() -> Option<G>) -> Option<G> {
    let deadline = Instant::now() + patience;
    let mut pause = PAUSE_FIRST;
    loop {
        let guard = lock();
        if guard.is_some() || Instant::now() >= deadline {
            return guard;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// A value that one thread at a time takes out and puts back, and may keep for longer than a function runs.
#[derive(Debug)]
pub struct Slot<T> {
    inside: Mutex<Inside<T>>,
    bell: Condvar,
}

#[derive(Debug)]
struct Inside<T> {
    value: Option<Box<T>>,
    waiting: usize,
}

impl<T: Default> Default for Slot<T> {
    fn default() -> Slot<T> {
        Slot::new(T::default())
    }
}

impl<T> Slot<T> {
    /// A slot with `value` in it.
    pub fn new(value: T) -> Slot<T> {
        Slot {
            inside: Mutex::new(Inside {
                value: Some(Box::new(value)),
                waiting: 0,
            }),
            bell: Condvar::new(),
        }
    }

    /// `value`, as if it had been taken out of a slot of its own.
    pub fn of_taken(value: T) -> Taken<T> {
        let inside = Inside {
            value: None,
            waiting: 0,
        };
        Taken {
            slot: Arc::new(Slot {
                inside: Mutex::new(inside),
                bell: Condvar::new(),
            }),
            value: Some(Box::new(value)),
        }
    }

    /// Takes the value if nobody has it.
    pub fn try_take(self: &Arc<Slot<T>>) -> Option<Taken<T>> {
        self.try_take_until(Instant::now())
    }

    /// Takes the value; waits until `deadline` at most if somebody has it.
    pub fn try_take_until(self: &Arc<Slot<T>>, deadline: Instant) -> Option<Taken<T>> {
        let mut inside = self.inside.lock();
        let mut late = false;
        while inside.value.is_none() && !late {
            inside.waiting += 1;
            (inside, late) = self.bell.wait_until(inside, deadline);
            inside.waiting -= 1;
        }
        let value = inside.value.take()?;
        Some(Taken {
            slot: Arc::clone(self),
            value: Some(value),
        })
    }
}

/// What was taken out of a [`Slot`], and goes back when this is dropped.
#[derive(Debug)]
pub struct Taken<T> {
    slot: Arc<Slot<T>>,
    /// There until the drop.
    value: Option<Box<T>>,
}

impl<T> Deref for Taken<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.value {
            Some(value) => value,
            None => unreachable!("it is there until the drop"),
        }
    }
}

impl<T> DerefMut for Taken<T> {
    fn deref_mut(&mut self) -> &mut T {
        match &mut self.value {
            Some(value) => value,
            None => unreachable!("it is there until the drop"),
        }
    }
}

impl<T> Drop for Taken<T> {
    fn drop(&mut self) {
        let mut inside = self.slot.inside.lock();
        inside.value = self.value.take();
        let somebody = inside.waiting > 0;
        drop(inside);
        if somebody {
            self.slot.bell.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_value_is_with_one_at_a_time_and_comes_back() {
        let slot = Arc::new(Slot::new(0_u32));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let slot = Arc::clone(&slot);
                std::thread::spawn(move || {
                    for _ in 0..1000 {
                        let deadline = Instant::now() + Duration::from_secs(60);
                        *slot.try_take_until(deadline).unwrap() += 1;
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let taken = slot.try_take().unwrap();
        assert_eq!(*taken, 4000);
        assert!(slot.try_take().is_none());
        let soon = Instant::now() + Duration::from_millis(5);
        assert!(slot.try_take_until(soon).is_none());
        drop(taken);
        assert!(slot.try_take().is_some());
    }

    #[test]
    fn a_panic_does_not_poison() {
        let (mutex, slot) = (Arc::new(Mutex::new(1)), Arc::new(Slot::new(1)));
        let theirs = (Arc::clone(&mutex), Arc::clone(&slot));
        let panicked = std::thread::spawn(move || {
            let (_lock, _taken) = (theirs.0.lock(), theirs.1.try_take());
            panic!("as a test wants it");
        });
        assert!(panicked.join().is_err());
        assert_eq!(*mutex.lock(), 1);
        assert!(mutex.try_lock_for(Duration::ZERO).is_some());
        assert_eq!(*slot.try_take().unwrap(), 1);
    }
}
