//! The C that Rust cannot say: SQLite's extension routine table behind a safe face.
//!
//! An extension must not link SQLite: it calls the host's copy through the table that the host hands to its entry
//! point. [`Api`] is the proof that this table is known; everything else here starts from one.
//!
//! * [`Api`]: the routines themselves (logging, VFS registration, URI parameters).
//! * [`FileRef`], [`File`]: files as a VFS opened them, with SQLite's locks. POSIX drops a process's locks on a file
//!   when *any* of its descriptors is closed, so a database must never be opened in another way.
//! * [`Shm`]: the wal-index shared memory of a [`File`].
//! * [`start_write_back`]: a call of the system that the standard library does not have.
//! * [`Connection`]: a plain connection, for what only SQLite itself should do (recovery, checkpoints).

// This crate is one of the rooms where unsafe code may live: every call below crosses into C.
#![allow(unsafe_code)]

mod api;
mod code;
mod connection;
mod file;
mod filename;
mod raw;
mod shm;
mod vfs;
mod write_back;

pub use api::{Api, InitError, VERSION_MIN};
pub use code::Code;
pub use connection::{Connection, SqlError};
pub use file::{File, FileRef, Lock, OpenFlags};
pub use shm::{LockOp, Region, Shm};
pub use vfs::Vfs;
pub use write_back::start_write_back;

/// SQLite's own types that appear in this interface; for rooms that have no other reason to name libsqlite3-sys.
pub use libsqlite3_sys::{sqlite3, sqlite3_file, sqlite3_vfs};
