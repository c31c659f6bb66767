//! P10 by real processes: moments of a history in the stock shell, in Python and on the command line.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]

#[path = "../clikit/mod.rs"]
mod clikit;
#[path = "../common/mod.rs"]
mod common;

mod attach;
mod bookmarks;
mod diffs;
mod downloads;
mod history;
mod kept;
mod kit;
mod restores;
mod reverts;
