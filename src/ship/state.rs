//! What shipping tells everyone else: the state of each replica, and who waits for it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::lock::{Condvar, Mutex};
use mycelite_journal::Pos;

use super::ShipOptions;
use super::client::{Failure, FailureKind};
use super::lock::ShipLock;

/// Shared between the handle and the thread; one per process and start.
pub(super) struct Shared {
    /// Grows with every wake-up.
    generation: AtomicU64,
    /// One per replica, in the order of the options.
    pub replicas: Vec<Replica>,
    states: Mutex<Vec<ReplicaState>>,
    changed: Condvar,
    /// Commits that wait for acknowledgements.
    waiting: AtomicUsize,
}

/// What does not change about a replica.
pub(super) struct Replica {
    /// Where it is.
    pub url: crate::proto::ReplicaUrl,
    /// Held while we send to it.
    pub lock: ShipLock,
}

/// Where one replica is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing was asked of it.
    #[default]
    Idle,
    /// Asking where it stands.
    Connecting,
    /// Sending.
    Shipping,
    /// It holds everything.
    CaughtUp,
    /// The last attempt failed; waiting before the next.
    BackingOff,
    /// It will not take our records until someone changes something.
    Refused,
    /// Its history is not ours.
    Diverged,
    /// Another process ships.
    Elsewhere,
}

impl Phase {
    /// The word in `ReplicaStatus::state`.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Idle => "idle",
            Phase::Connecting => "connecting",
            Phase::Shipping => "shipping",
            Phase::CaughtUp => "caught-up",
            Phase::BackingOff => "backing-off",
            Phase::Refused => "refused",
            Phase::Diverged => "diverged",
            Phase::Elsewhere => "elsewhere",
        }
    }

    fn has_failed(self) -> bool {
        matches!(self, Phase::BackingOff | Phase::Refused | Phase::Diverged)
    }
}

/// What changes about a replica.
#[derive(Clone, Debug, Default)]
pub(super) struct ReplicaState {
    /// Where it is in its life.
    pub phase: Phase,
    /// What it holds durably, as far as this process knows.
    pub acked: Option<Pos>,
    /// The last failure; empty when the last attempt succeeded.
    pub last_error: String,
    /// The newest generation whose records it is known to hold.
    done: u64,
    /// True from a failed attempt to the next one that succeeds.
    failing: bool,
}

impl Shared {
    pub fn new(options: &ShipOptions) -> Shared {
        let replicas: Vec<Replica> = options
            .replicas
            .iter()
            .map(|url| Replica {
                url: url.clone(),
                lock: ShipLock::new(&options.log_dir, url),
            })
            .collect();
        Shared {
            generation: AtomicU64::new(0),
            states: Mutex::new(vec![ReplicaState::default(); replicas.len()]),
            replicas,
            changed: Condvar::new(),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Notes that there may be something new; returns the generation that covers it.
    pub fn ask(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The newest generation.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// The states, in the order of the replicas.
    pub fn states(&self) -> Vec<ReplicaState> {
        self.states.lock().clone()
    }

    /// Whether every replica holds all that was asked for.
    pub fn all_done(&self) -> bool {
        let generation = self.generation();
        self.states
            .lock()
            .iter()
            .all(|state| state.done >= generation)
    }

    /// Waits until every replica holds generation `generation` (true), until all that do not have failed, or until
    /// the time is over (false).
    pub fn wait(&self, generation: u64, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut states = self.states.lock();
        loop {
            if states.iter().all(|state| state.done >= generation) {
                return true;
            }
            if states
                .iter()
                .all(|state| state.done >= generation || state.failing)
            {
                return false;
            }
            let late;
            (states, late) = self.changed.wait_until(states, deadline);
            if late {
                return states.iter().all(|state| state.done >= generation);
            }
        }
    }

    /// Waits, at most `timeout`, until so many replicas hold `target` durably: whether they do.
    pub fn wait_acknowledged(&self, target: Pos, wanted: usize, timeout: Duration) -> bool {
        // A replica that holds a later Txid of an older timeline holds what this log has lost.
        let holds = |acked: Pos| acked.txid >= target.txid && acked.timeline >= target.timeline;
        let held = |states: &[ReplicaState]| {
            let holders = states.iter().filter(|state| state.acked.is_some_and(holds));
            holders.count() >= wanted
        };
        let mut states = self.states.lock();
        if held(&states) || timeout.is_zero() {
            return held(&states);
        }
        let deadline = Instant::now() + timeout;
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let mut late = false;
        while !held(&states) && !late {
            (states, late) = self.changed.wait_until(states, deadline);
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        held(&states)
    }

    /// Whether a commit waits.
    pub fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// The replica acknowledged something to another process.
    pub fn acked_elsewhere(&self, index: usize, pos: Pos) {
        self.change(index, |state| {
            let order = |pos: Pos| (pos.timeline, pos.txid);
            if state.acked.is_none_or(|known| order(known) < order(pos)) {
                state.acked = Some(pos);
            }
        });
    }

    fn change(&self, index: usize, change: impl FnOnce(&mut ReplicaState)) {
        if let Some(state) = self.states.lock().get_mut(index) {
            change(state);
        }
        self.changed.notify_all();
    }

    /// An attempt begins.
    pub fn connecting(&self, index: usize) {
        self.change(index, |state| {
            state.phase = if state.acked.is_some() {
                Phase::Shipping
            } else {
                Phase::Connecting
            };
        });
    }

    /// The replica acknowledged something.
    pub fn acked(&self, index: usize, pos: Pos) {
        self.change(index, |state| {
            state.phase = Phase::Shipping;
            state.acked = Some(pos);
            state.last_error.clear();
            state.failing = false;
        });
    }

    /// The replica holds everything of `generation`.
    pub fn caught_up(&self, index: usize, generation: u64) {
        self.change(index, |state| {
            state.phase = Phase::CaughtUp;
            state.last_error.clear();
            state.failing = false;
            state.done = generation;
        });
    }

    /// Another process holds the lock.
    pub fn elsewhere(&self, index: usize) {
        self.change(index, |state| state.phase = Phase::Elsewhere);
    }

    /// An attempt failed. True when this is news: the first failure, or another one than the last.
    pub fn failed(&self, index: usize, failure: &Failure) -> bool {
        let line = failure.error.to_string();
        let mut news = false;
        self.change(index, |state| {
            news = !state.failing || state.last_error != line;
            state.phase = match failure.kind {
                FailureKind::Transient => Phase::BackingOff,
                FailureKind::Refused => Phase::Refused,
                FailureKind::Diverged => Phase::Diverged,
            };
            state.last_error = line;
            state.failing = true;
        });
        news
    }

    /// Nothing is being done for any replica any more.
    pub fn ended(&self) {
        for state in self.states.lock().iter_mut() {
            if !state.phase.has_failed() && state.phase != Phase::CaughtUp {
                state.phase = Phase::Idle;
            }
        }
        self.changed.notify_all();
    }
}
