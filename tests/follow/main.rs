//! Live following: replicas that pull, chains of them, and everything that can go wrong on the way.

#![allow(clippy::unwrap_used)]

#[path = "../clikit/mod.rs"]
mod clikit;
#[path = "../common/mod.rs"]
mod common;
#[path = "../netkit/mod.rs"]
mod netkit;

mod bootstrap;
mod chain;
mod cuts;
mod forks;
mod kit;
mod lines;
mod reading;
mod refusals;
mod streams;
mod waiting;
