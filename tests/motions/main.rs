//! P1, P2 and P8 in every mode and motion of SQLite: whatever it is asked to do to a file, the log applied is the image.
//!
//! `tests/capture.rs` holds the plain cases; here are the rare ones, a file for each family.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)]

#[path = "../common/mod.rs"]
mod common;

mod adopted;
mod bench;
mod copies;
mod files;
mod locking;
mod processes;
mod schema;
mod sizes;
mod transactions;
mod vacuum;
