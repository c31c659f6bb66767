//! The main job as a user meets it: the stock `sqlite3` shell and Debian's Python load the library that cargo built, the
//! real program serves, other stock shells read the replicas all the while, and `cmp` has the last word.
//!
//! A run for continuous integration takes a part of this machine's Debian package index. `MYCELITE_ACCEPTANCE=full`
//! takes all of it: tens of thousands of packages, some minutes.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

#[path = "../clikit/mod.rs"]
mod clikit;

mod bad_input;
mod crashes;
mod kit;
mod loads;
mod reader;
mod together;
