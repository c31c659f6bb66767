//! The files of a connection, opened once more for a thread of ours.
//!
//! They are opened and closed in the connection's own thread, through the VFS below, so that POSIX locks and a child that is
//! forked meanwhile find that VFS as they would without us: all that our thread does there is read.

use crate::error::{Error, ErrorKind, Result};
use crate::lock::Mutex;
use crate::vfs::{Base, WAL_INDEX_BYTES};
use c_shim::{Api, File, OpenFlags, Vfs, sqlite3_vfs};
use std::ffi::{CStr, c_void};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::Arc;

/// The beginning of the wal-index, while a connection has it mapped: for whoever reads beside that connection.
#[derive(Default)]
pub struct Window(Mutex<Option<NonNull<u32>>>);

// SAFETY: the memory is shared between processes anyway, and read under the mutex only, which is taken to hide it before it
// is unmapped.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// Shows the memory until it is hidden again.
    ///
    /// # Safety
    /// `memory` is the first region of the wal-index, and stays mapped until [`Window::hide`] has returned.
    pub unsafe fn show(&self, memory: *mut c_void) {
        let memory = NonNull::new(memory.cast::<u32>());
        *self.0.lock() = memory.filter(|memory| memory.is_aligned());
    }

    /// From here on nobody looks.
    pub fn hide(&self) {
        *self.0.lock() = None;
    }

    /// What is shown.
    pub fn look(&self) -> Option<[u8; WAL_INDEX_BYTES]> {
        let memory = self.0.lock();
        let words = (*memory)?;
        let mut copy = [0_u32; WAL_INDEX_BYTES / 4];
        for (at, word) in copy.iter_mut().enumerate() {
            // SAFETY: a region is larger than what is looked at, aligned, and mapped while it is shown. Other processes
            // change it, hence the volatile reads.
            *word = unsafe { words.add(at).read_volatile() };
        }
        let mut bytes = [0; WAL_INDEX_BYTES];
        // SAFETY: both have as many bytes, and neither has any that is not valid.
        unsafe {
            std::ptr::copy_nonoverlapping(copy.as_ptr().cast(), bytes.as_mut_ptr(), WAL_INDEX_BYTES)
        };
        Some(bytes)
    }
}

/// Where a file came from, so that it can be opened again.
#[derive(Clone)]
pub struct Source {
    pub api: Api,
    /// The VFS below, which SQLite never takes away.
    pub vfs: *mut sqlite3_vfs,
    pub path: PathBuf,
    pub flags: OpenFlags,
}

/// A file of ours on what a connection has open.
pub struct Twin {
    file: Mutex<File>,
    name: String,
    window: Arc<Window>,
    wal_padding: Option<u64>,
}

impl Twin {
    /// Opens what is at `source`, for reading. `None` where that cannot be done, or not safely.
    pub fn open(
        source: &Source,
        name: &str,
        window: &Arc<Window>,
        wal_padding: Option<u64>,
    ) -> Option<Twin> {
        if !source.api.threadsafe() {
            return None;
        }
        // SAFETY: the VFS below is registered, and its name lives as long as itself.
        let vfs_name = unsafe { NonNull::new((*source.vfs).zName.cast_mut())? };
        // SAFETY: as above; names end with a zero byte.
        let vfs_name = unsafe { CStr::from_ptr(vfs_name.as_ptr()) };
        let vfs = Vfs::find(source.api, Some(vfs_name)).ok()?;
        if vfs.as_ptr() != source.vfs {
            return None;
        }
        let flags = OpenFlags::READONLY | source.flags;
        let file = File::open(source.api, Some(vfs_name), &source.path, flags).ok()?;
        Some(Twin {
            file: Mutex::new(file),
            name: name.to_owned(),
            window: Arc::clone(window),
            wal_padding,
        })
    }

    /// Keeps everybody from beginning a checkpoint as long as the file is open; false where that cannot be.
    pub fn hold_checkpoints(&self) -> bool {
        self.file.lock().hold_checkpoints().is_ok()
    }

    fn error(&self, what: &str, code: c_shim::Code) -> Error {
        Error::new(ErrorKind::Io, format_args!("{what}: {code}")).at(&self.name)
    }
}

impl Base for Twin {
    // What fails once is asked again, as the connection's own files do.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let file = self.file.lock();
        file.read_at(buf, offset)
            .or_else(|_| file.read_at(buf, offset))
            .map_err(|code| self.error("cannot read", code))
    }

    fn size(&self) -> Result<u64> {
        let file = self.file.lock();
        file.size()
            .or_else(|_| file.size())
            .map_err(|code| self.error("cannot examine", code))
    }

    fn wal_index(&self) -> Option<[u8; WAL_INDEX_BYTES]> {
        self.window.look()
    }

    fn wal_padding(&self) -> Option<u64> {
        self.wal_padding
    }
}
