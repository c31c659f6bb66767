//! The file below the shim, as capture may use it.

use crate::error::{Error, ErrorKind, Result};
use crate::vfs::{Base, WAL_INDEX_BYTES};
use c_shim::{Code, FileRef};
use libsqlite3_sys::{SQLITE_IOCAP_POWERSAFE_OVERWRITE, SQLITE_OK, sqlite3_file};
use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of a region of the wal-index, as SQLite maps it.
const REGION_BYTES: c_int = 32 << 10;

/// A file that the VFS below opened inside SQLite's own allocation.
pub struct BaseFile {
    file: FileRef,
    name: String,
    shm_mapped: Arc<AtomicBool>,
}

// SAFETY: the pointer is used only inside calls of the connection that owns the file, which SQLite serialises; the
// file's hooks, which hold this, are told of the close before the file is gone.
unsafe impl Send for BaseFile {}
// SAFETY: as above: no two threads use one connection's files at once.
unsafe impl Sync for BaseFile {}

impl BaseFile {
    /// Wraps the open `file`, called `name` in errors; `None` when it is not open.
    ///
    /// # Safety
    /// The file stays open and in place until whoever holds the result is told of its close. `shm_mapped` is true while
    /// SQLite has the file's shared memory mapped.
    pub unsafe fn new(
        file: *mut sqlite3_file,
        name: String,
        shm_mapped: Arc<AtomicBool>,
    ) -> Option<BaseFile> {
        // SAFETY: the caller's promise.
        let file = unsafe { FileRef::from_raw(file) }?;
        Some(BaseFile {
            file,
            name,
            shm_mapped,
        })
    }

    fn error(&self, what: &str, code: Code) -> Error {
        Error::new(ErrorKind::Io, format_args!("{what}: {code}")).at(&self.name)
    }
}

impl Base for BaseFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.file
            .read_at(buf, offset)
            .map_err(|code| self.error("cannot read", code))
    }

    fn size(&self) -> Result<u64> {
        self.file
            .size()
            .map_err(|code| self.error("cannot examine", code))
    }

    fn wal_padding(&self) -> Option<u64> {
        let safe = self.file.device_characteristics() & SQLITE_IOCAP_POWERSAFE_OVERWRITE != 0;
        (!safe).then(|| u64::from(self.file.sector_size()))
    }

    fn wal_index(&self) -> Option<[u8; WAL_INDEX_BYTES]> {
        // Mapping it for SQLite would open it: only what SQLite itself has mapped is looked at.
        if !self.shm_mapped.load(Ordering::Relaxed) {
            return None;
        }
        let below = self.file.as_ptr();
        let mut memory: *mut c_void = std::ptr::null_mut();
        let mut bytes = [0; WAL_INDEX_BYTES];
        // SAFETY: the file is open, and SQLite has mapped this region through it, so that this call only looks it up.
        // The memory is shared with other processes, hence the volatile reads.
        unsafe {
            let map = (*(*below).pMethods).xShmMap?;
            if map(below, 0, REGION_BYTES, 0, &raw mut memory) != SQLITE_OK || memory.is_null() {
                return None;
            }
            let memory = memory.cast::<u8>();
            for (at, byte) in bytes.iter_mut().enumerate() {
                *byte = memory.add(at).read_volatile();
            }
        }
        Some(bytes)
    }
}
