//! P4, P9: power cuts on the primary, end to end. The stock shell writes through the library that cargo built, the real
//! program serves, stock shells read the replica all the while. The power cut takes what was written after some moment
//! out of the primary's files, while the replica has it; from then on nobody does anything but write.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

#[path = "../clikit/mod.rs"]
mod clikit;
#[allow(dead_code)]
#[path = "../acceptance/kit.rs"]
mod kit;

mod cuts;
mod disk;
mod kills;
mod world;
