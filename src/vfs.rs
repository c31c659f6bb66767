//! The safe side of a VFS shim: what SQLite does to a file, told to whoever wants to know.
//!
//! The shim forwards every call to the VFS below, and tells a file's [`Hooks`] around it. Hooks return nothing:
//! replication may fail, the application's own call may not (P3).

use crate::error::{Error, ErrorKind, Result};
use std::sync::Arc;

/// The file below the shim, as the VFS below opened it. Reads only: writing is the application's business.
///
/// Reading through this handle, never through a second descriptor, keeps the POSIX locks of the process alive.
pub trait Base: Send + Sync {
    /// Reads into `buf` from byte `offset`; returns how many bytes there were.
    ///
    /// # Errors
    /// The SQLite result code of the read, as an I/O error.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize>;

    /// Length of the file in bytes.
    ///
    /// # Errors
    /// The SQLite result code, as an I/O error.
    fn size(&self) -> Result<u64>;

    /// The beginning of the wal-index, if this connection has it mapped. Another process may be changing it.
    fn wal_index(&self) -> Option<[u8; WAL_INDEX_BYTES]> {
        None
    }

    /// Bytes up to whose multiple SQLite fills the WAL with copies of a commit's last frame, because the disk may tear what
    /// lies beside a write; `None` where it does not.
    fn wal_padding(&self) -> Option<u64> {
        None
    }

    /// The same file, opened once more, for another thread to read: its wal-index is that of this connection, and gone with
    /// it. `None` where there is no such thing.
    fn twin(&self) -> Option<Arc<dyn Base>> {
        None
    }

    /// As [`Base::twin`], of a database in WAL mode, and as long as it lives no checkpoint begins, whoever asks for one.
    fn twin_without_checkpoints(&self) -> Option<Arc<dyn Base>> {
        None
    }

    /// Reads exactly `buf.len()` bytes.
    ///
    /// # Errors
    /// As [`Base::read_at`]; a file that ends earlier is an error too.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let want = buf.len();
        let got = self.read_at(buf, offset)?;
        if got == want {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Io,
            format_args!("short read at offset {offset}: {got} of {want} bytes"),
        ))
    }
}

/// A database that can only be read, as the reader VFS shows it: one image from [`ReadOnly::begin`] to [`ReadOnly::end`].
///
/// SQLite serialises the calls on one connection's file.
pub trait ReadOnly: Send {
    /// A read transaction begins: from here on the image stands still.
    ///
    /// # Errors
    /// The log cannot be read.
    fn begin(&mut self) -> Result<()>;

    /// The read transaction is over.
    fn end(&mut self);

    /// Reads into `buf` from byte `offset` of the image; returns how many bytes there were.
    ///
    /// # Errors
    /// The log cannot be read, or is damaged.
    fn read_at(&mut self, buf: &mut [u8], offset: u64) -> Result<usize>;

    /// Length of the image in bytes.
    fn size(&self) -> u64;

    /// The image is the same for ever, so that SQLite need not ask again whether it has changed.
    fn is_fixed(&self) -> bool;
}

/// Bytes at the beginning of the wal-index that say how much of the WAL counts: two copies of its header, and the
/// checkpoint's state.
pub const WAL_INDEX_BYTES: usize = 136;

/// Where a database file counts its commits and pages, and how much of that SQLite reads each time it takes a lock.
pub const COUNTERS_AT: i64 = 24;
/// See [`COUNTERS_AT`].
pub const COUNTERS_BYTES: usize = 16;

/// SQLite's five lock levels of a database file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LockLevel {
    /// No lock.
    None,
    /// Many readers.
    Shared,
    /// One writer that prepares, beside readers.
    Reserved,
    /// A writer that waits for readers to leave.
    Pending,
    /// One writer, nobody else.
    Exclusive,
}

impl LockLevel {
    /// The level with SQLite's number `level`; numbers that SQLite does not know count as exclusive.
    pub fn from_sqlite(level: i32) -> LockLevel {
        match level {
            0 => LockLevel::None,
            1 => LockLevel::Shared,
            2 => LockLevel::Reserved,
            3 => LockLevel::Pending,
            _ => LockLevel::Exclusive,
        }
    }
}

/// What happens to one file, in the order in which SQLite does it. Every method has an empty default.
///
/// SQLite serialises the calls on one connection's files; no method is called from two threads at once.
pub trait Hooks: Send {
    /// SQLite has looked whether somebody else has committed: what bytes 24 to 39 of a database file hold.
    fn counters_read(&mut self, _counters: [u8; COUNTERS_BYTES]) {}
    /// `data` is about to be written at `offset`.
    fn before_write(&mut self, _offset: u64, _data: &[u8]) {}
    /// The write of `bytes` bytes at `offset` failed: what is there now is unknown.
    fn write_failed(&mut self, _offset: u64, _bytes: usize) {}
    /// The file could not be synced.
    fn sync_failed(&mut self) {}
    /// The file is about to be cut (or extended) to `size` bytes.
    fn before_truncate(&mut self, _size: u64) {}
    /// The lock level `level` was reached.
    fn locked(&mut self, _level: LockLevel) {}
    /// The lock is about to drop to `level`.
    fn before_unlock(&mut self, _level: LockLevel) {}
    /// `SQLITE_FCNTL_SYNC`: every page of the transaction is in the file; the journal is not finalised yet.
    fn all_written(&mut self) {}
    /// `SQLITE_FCNTL_COMMIT_PHASETWO`: the transaction is committed.
    fn committed(&mut self) {}
    /// `SQLITE_FCNTL_CKPT_START`: a checkpoint is about to write WAL frames into the database.
    fn checkpoint_start(&mut self) {}
    /// `SQLITE_FCNTL_CKPT_DONE`: the checkpoint has written its last page.
    fn checkpoint_done(&mut self) {}
    /// The WAL write lock was taken.
    fn wal_write_locked(&mut self) {}
    /// The WAL checkpoint lock was taken: a checkpoint is about to say how far it goes.
    fn wal_checkpoint_locked(&mut self) {}
    /// The WAL checkpoint lock is about to be given back.
    fn before_wal_checkpoint_unlocked(&mut self) {}
    /// The WAL checkpoint lock was given back.
    fn wal_checkpoint_unlocked(&mut self) {}
    /// The wal-index is about to be unmapped.
    fn before_wal_index_unmapped(&mut self) {}
    /// The file is about to be closed; no call follows.
    fn before_close(&mut self) {}
}
