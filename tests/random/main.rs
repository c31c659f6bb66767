//! Generated SQL against a model: the same statements on plain SQLite and on ours give equal answers and equal dumps;
//! the log applied is the image after each commit (P1, P2, P4, P5).
//!
//! `twins`: one process, several connections, every statement on two databases. `crowd`: processes with threads that
//! are killed, each transaction noting its own SQL, which plain SQLite then runs again.
//!
//! An ordinary run takes a bounded time. A soak, of both at once, for ten minutes:
//!
//! ```sh
//! SOAK_SECONDS=600 cargo test --release --test random -- --nocapture
//! ```
//!
//! A failure prints its seed. `SOAK_SEED=N` runs the episode of that seed alone, or, with `SOAK_SECONDS`,
//! those from it on; without it a soak starts at a seed taken from the clock.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)]

#[path = "../common/mod.rs"]
mod common;

mod crowd;
mod host;
mod statements;
mod twins;
mod watch;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long an ordinary run of each test goes on beginning episodes.
const ORDINARY: Duration = Duration::from_secs(12);

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is no number")),
    )
}

/// Runs `episode` with one seed after the other; prints the seed of one that fails.
fn run_episodes(test: &str, mut episode: impl FnMut(u64)) {
    let (only, soak) = (number("SOAK_SEED"), number("SOAK_SECONDS"));
    let first = match (only, soak) {
        (Some(seed), _) => seed,
        (None, Some(_)) => {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_secs()
                * 1_000_000
        }
        (None, None) => 1,
    };
    let time = match (only, soak) {
        (_, Some(seconds)) => Duration::from_secs(seconds),
        (Some(_), None) => Duration::ZERO,
        (None, None) => ORDINARY,
    };
    println!("{test}: first seed {first}, for {time:?}");
    let start = Instant::now();
    let mut seed = first;
    loop {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| episode(seed))) {
            eprintln!("again: SOAK_SEED={seed} cargo test --test random {test}");
            resume_unwind(panic);
        }
        seed += 1;
        if start.elapsed() >= time {
            break;
        }
    }
    println!("{test}: seeds {first} to {}", seed - 1);
}
