//! P1 to P4 and P8 at every instant: each call of SQLite's fails in turn, and each read of our own, and each call on the log's
//! directory; and at each the power is cut, or the process is killed. The application fares as it would without us, SQLite's own recovery finds the
//! same, then the log is the image, and a replica goes on.
//!
//! An ordinary run tries a sample of the places, which it states. All of them, in about half an hour:
//!
//! ```sh
//! FAULTS=full cargo test --release --test faults -- --nocapture
//! ```
//!
//! `FAULTS=8` tries one place of eight. Each failure prints its name; `FAULTS_ONLY=NAME` runs that one, or all whose names begin so.
#![cfg(target_os = "linux")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)]

#[path = "../common/mod.rs"]
mod common;

mod check;
mod clock;
mod control;
mod disk;
mod failed;
mod failures;
mod harness;
mod kills;
mod log_faults;
mod power;
mod scenarios;
mod standing;
mod syscalls;
mod table;
mod vfs;
mod world;
