//! The file below the shim, as capture may use it.

use crate::error::{Error, ErrorKind, Result};
use crate::vfs::Base;
use c_shim::{Code, FileRef};
use libsqlite3_sys::sqlite3_file;

/// A file that the VFS below opened inside SQLite's own allocation.
pub struct BaseFile {
    file: FileRef,
    name: String,
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
    /// The file stays open and in place until whoever holds the result is told of its close.
    pub unsafe fn new(file: *mut sqlite3_file, name: String) -> Option<BaseFile> {
        // SAFETY: the caller's promise.
        let file = unsafe { FileRef::from_raw(file) }?;
        Some(BaseFile { file, name })
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
}
