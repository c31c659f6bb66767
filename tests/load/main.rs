//! Acceptance under load: a primary at a steady pace, replicas that are cascaded, cut off and killed meanwhile; a replica that
//! was away for long; a large database that bootstraps while it is written. Each claim is checked at each size. Small in an
//! ordinary run; the real thing, in a release build and on a machine that does nothing else:
//!
//! ```sh
//! LOAD=full cargo test --release --test load -- --nocapture --test-threads=1
//! ```
//!
//! `LOAD_SECONDS` (300), `LOAD_RATE` (1000 a second), `LOAD_COMMITS` (100000) and `LOAD_MEBIBYTES` (1024) set one size each;
//! `LOAD_DIR` is where the files go, the target directory else (up to 10 GiB in a full run). `LOAD_BUSY=1`: the machine has other
//! work, so that times are printed and not judged.

#![allow(clippy::unwrap_used)]

#[path = "../clikit/mod.rs"]
mod clikit;
#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code)]
#[path = "../follow/kit.rs"]
mod kit;
#[path = "../netkit/mod.rs"]
mod netkit;

mod away;
mod large;
mod pace;
mod watch;
mod world;
