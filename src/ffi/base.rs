//! The file below the shim, as capture may use it.

use super::twin::{Source, Twin, Window};
use crate::error::{Error, ErrorKind, Result};
use crate::vfs::{Base, WAL_INDEX_BYTES};
use c_shim::{Code, FileRef};
use libsqlite3_sys::{SQLITE_IOCAP_POWERSAFE_OVERWRITE, sqlite3_file};
use std::sync::Arc;

/// A file that the VFS below opened inside SQLite's own allocation.
pub struct BaseFile {
    file: FileRef,
    name: String,
    window: Arc<Window>,
    source: Option<Source>,
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
    /// The file stays open and in place until whoever holds the result is told of its close. `window` shows the file's shared
    /// memory while SQLite has it mapped. `source` says how the file was opened.
    pub unsafe fn new(
        file: *mut sqlite3_file,
        name: String,
        window: Arc<Window>,
        source: Option<Source>,
    ) -> Option<BaseFile> {
        // SAFETY: the caller's promise.
        let file = unsafe { FileRef::from_raw(file) }?;
        Some(BaseFile {
            file,
            name,
            window,
            source,
        })
    }

    fn open_twin(&self) -> Option<Twin> {
        let padding = self.wal_padding();
        Twin::open(self.source.as_ref()?, &self.name, &self.window, padding)
    }

    fn error(&self, what: &str, code: Code) -> Error {
        Error::new(ErrorKind::Io, format_args!("{what}: {code}")).at(&self.name)
    }
}

impl Base for BaseFile {
    // What fails once is asked again: a read of ours that fails costs the log a comparison of the whole image.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.file
            .read_at(buf, offset)
            .or_else(|_| self.file.read_at(buf, offset))
            .map_err(|code| self.error("cannot read", code))
    }

    fn size(&self) -> Result<u64> {
        self.file
            .size()
            .or_else(|_| self.file.size())
            .map_err(|code| self.error("cannot examine", code))
    }

    fn wal_padding(&self) -> Option<u64> {
        let safe = self.file.device_characteristics() & SQLITE_IOCAP_POWERSAFE_OVERWRITE != 0;
        (!safe).then(|| u64::from(self.file.sector_size()))
    }

    fn twin(&self) -> Option<Arc<dyn Base>> {
        Some(Arc::new(self.open_twin()?))
    }

    fn twin_without_checkpoints(&self) -> Option<Arc<dyn Base>> {
        let twin = self.open_twin()?;
        twin.hold_checkpoints()
            .then(|| Arc::new(twin) as Arc<dyn Base>)
    }

    fn wal_index(&self) -> Option<[u8; WAL_INDEX_BYTES]> {
        // Mapping it for SQLite would open it: only what SQLite itself has mapped is looked at.
        self.window.look()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use libsqlite3_sys::{SQLITE_IOERR, SQLITE_OK, sqlite3_int64, sqlite3_io_methods};
    use std::ffi::{c_int, c_void};

    /// A file of which every call fails as often as `failures` says, and then succeeds.
    #[repr(C)]
    struct Flaky {
        base: sqlite3_file,
        failures: c_int,
    }

    /// Whether this call fails.
    ///
    /// # Safety
    /// `file` is the beginning of a [`Flaky`] that nobody else uses.
    unsafe fn fails(file: *mut sqlite3_file) -> bool {
        // SAFETY: the caller's promise.
        let flaky = unsafe { &mut *file.cast::<Flaky>() };
        flaky.failures -= 1;
        flaky.failures >= 0
    }

    unsafe extern "C" fn read(
        file: *mut sqlite3_file,
        buffer: *mut c_void,
        amount: c_int,
        _: sqlite3_int64,
    ) -> c_int {
        // SAFETY: the file is a `Flaky`, and the buffer has room for `amount` bytes.
        unsafe {
            if fails(file) {
                return SQLITE_IOERR;
            }
            buffer
                .cast::<u8>()
                .write_bytes(7, amount.unsigned_abs() as usize);
        }
        SQLITE_OK
    }

    unsafe extern "C" fn size(file: *mut sqlite3_file, bytes: *mut sqlite3_int64) -> c_int {
        // SAFETY: the file is a `Flaky`, and `bytes` a place for the answer.
        unsafe {
            if fails(file) {
                return SQLITE_IOERR;
            }
            *bytes = 42;
        }
        SQLITE_OK
    }

    /// What reading and examining give when so many calls fail first.
    fn after(failures: c_int) -> [bool; 2] {
        // SAFETY: a table of optional functions may be all zeros, which is `None`.
        let mut methods: sqlite3_io_methods = unsafe { std::mem::zeroed() };
        methods.iVersion = 1;
        methods.xRead = Some(read);
        methods.xFileSize = Some(size);
        [false, true].map(|examine| {
            let mut flaky = Flaky {
                base: sqlite3_file {
                    pMethods: &raw const methods,
                },
                failures,
            };
            let file = (&raw mut flaky).cast::<sqlite3_file>();
            // SAFETY: the file outlives what is made of it.
            let base =
                unsafe { BaseFile::new(file, "flaky".to_owned(), Arc::default(), None) }.unwrap();
            if examine {
                return base.size().is_ok_and(|size| size == 42);
            }
            let mut page = [0; 8];
            base.read_at(&mut page, 0).is_ok() && page == [7; 8]
        })
    }

    #[test]
    fn what_fails_once_is_asked_again_and_no_more() {
        assert_eq!(after(0), [true, true]);
        assert_eq!(after(1), [true, true]);
        assert_eq!(after(2), [false, false]);
    }
}
