//! Mycelite: a loadable SQLite extension that replicates a database physically, commit by commit.
//!
//! `ARCHITECTURE.md` is the map; `journal/README.md` the log's format.

mod access;
pub mod apply;
pub mod bookmarks;
pub mod capture;
pub mod config;
pub mod database;
pub mod diff;
#[cfg(feature = "cli")]
mod embedded;
pub mod error;
mod ffi;
#[cfg(feature = "cli")]
mod follow;
mod lock;
pub mod maintain;
pub mod moment;
pub mod parked;
#[cfg(feature = "cli")]
pub mod promote;
pub mod proto;
pub mod reader;
#[cfg(feature = "cli")]
pub mod server;
pub mod ship;
mod signals;
mod sql;
pub mod status;
pub mod upstream;
pub mod vfs;

pub use access::{Access, TlsFiles};
pub use ffi::auto_extension_entry;
