//! Files as a VFS opened them.

use core::ffi::{CStr, c_char, c_int, c_void};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::{BitOr, Deref};
use std::path::Path;
use std::ptr::NonNull;

use libsqlite3_sys::{self as sys, sqlite3_file, sqlite3_io_methods};

use crate::filename::Filename;
use crate::shm::HeldLocks;
use crate::{Api, Code, Vfs};

/// Bytes handed to a VFS in one call: as many as SQLite itself ever asks for, one page. The unix VFS takes only the
/// lowest 17 bits of a length.
const CALL_BYTES_MAX: usize = 65536;

/// Tries of a read whose file shrinks or grows at the same moment.
const SHORT_READ_TRIES: usize = 8;

/// How a database file is locked, from nothing to alone. `Pending` is passed through, never asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lock {
    /// No lock.
    None,
    /// May read; any number of holders.
    Shared,
    /// Will write; readers go on.
    Reserved,
    /// Waits for the last reader to leave.
    Pending,
    /// May write the file; alone.
    Exclusive,
}

impl Lock {
    fn number(self) -> c_int {
        match self {
            Lock::None => sys::SQLITE_LOCK_NONE,
            Lock::Shared => sys::SQLITE_LOCK_SHARED,
            Lock::Reserved => sys::SQLITE_LOCK_RESERVED,
            Lock::Pending => sys::SQLITE_LOCK_PENDING,
            Lock::Exclusive => sys::SQLITE_LOCK_EXCLUSIVE,
        }
    }
}

/// Flags of `xOpen` and `sqlite3_open_v2`, joined by `|`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFlags(pub i32);

impl OpenFlags {
    /// Read only.
    pub const READONLY: OpenFlags = OpenFlags(sys::SQLITE_OPEN_READONLY);
    /// Read and write.
    pub const READWRITE: OpenFlags = OpenFlags(sys::SQLITE_OPEN_READWRITE);
    /// Create the file if it is not there.
    pub const CREATE: OpenFlags = OpenFlags(sys::SQLITE_OPEN_CREATE);
    /// The file must not be there yet.
    pub const EXCLUSIVE: OpenFlags = OpenFlags(sys::SQLITE_OPEN_EXCLUSIVE);
    /// A database.
    pub const MAIN_DB: OpenFlags = OpenFlags(sys::SQLITE_OPEN_MAIN_DB);
    /// The rollback journal of a database.
    pub const MAIN_JOURNAL: OpenFlags = OpenFlags(sys::SQLITE_OPEN_MAIN_JOURNAL);
    /// The WAL of a database.
    pub const WAL: OpenFlags = OpenFlags(sys::SQLITE_OPEN_WAL);
    /// For connections: no mutex; one thread at a time, which the caller sees to.
    pub const NOMUTEX: OpenFlags = OpenFlags(sys::SQLITE_OPEN_NOMUTEX);
    /// For connections: the file name may be a URI.
    pub const URI: OpenFlags = OpenFlags(sys::SQLITE_OPEN_URI);

    /// Whether all of `flags` are set.
    #[must_use]
    pub fn contains(self, flags: OpenFlags) -> bool {
        self.0 & flags.0 == flags.0
    }
}

impl BitOr for OpenFlags {
    type Output = OpenFlags;

    fn bitor(self, other: OpenFlags) -> OpenFlags {
        OpenFlags(self.0 | other.0)
    }
}

/// A file that some VFS opened and someone else closes.
///
/// Not `Copy` on purpose: borrowed from a [`File`], it must not outlive it. Neither `Send` nor `Sync`: SQLite lets only
/// one thread at a time use a file.
pub struct FileRef {
    file: NonNull<sqlite3_file>,
    _one_thread_at_a_time: PhantomData<*mut sqlite3_file>,
}

impl FileRef {
    /// Wraps a file; `None` if the pointer is null or the file is not open.
    ///
    /// # Safety
    /// As long as the result is used, `file` points to a file that a VFS opened and nobody closed, and no other thread
    /// calls its methods.
    pub unsafe fn from_raw(file: *mut sqlite3_file) -> Option<FileRef> {
        let file = NonNull::new(file)?;
        // SAFETY: the caller says that it points to a file.
        if unsafe { file.as_ref() }.pMethods.is_null() {
            return None;
        }
        Some(FileRef {
            file,
            _one_thread_at_a_time: PhantomData,
        })
    }

    /// The file as SQLite sees it.
    #[must_use]
    pub fn as_ptr(&self) -> *mut sqlite3_file {
        self.file.as_ptr()
    }

    pub(crate) fn methods(&self) -> &sqlite3_io_methods {
        // SAFETY: the file is open (from_raw's promise), so its methods are set and outlive it.
        unsafe { &*self.file.as_ref().pMethods }
    }

    /// Reads into `buffer` from byte `offset`; gives the number of bytes read, fewer than asked for only at the end of
    /// the file.
    ///
    /// # Errors
    /// What the VFS says; `SQLITE_MISUSE` for an offset beyond 2^63.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Code> {
        let mut done = 0;
        for part in buffer.chunks_mut(CALL_BYTES_MAX) {
            let asked = part.len();
            let read = self.read_part(part, add(offset, done)?)?;
            done += read;
            if read < asked {
                break;
            }
        }
        Ok(done)
    }

    /// One read of at most [`CALL_BYTES_MAX`]. A VFS zero-fills a short read without saying where the file ended, so
    /// the end is asked for and the part before it read again.
    fn read_part(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Code> {
        let mut asked = buffer.len();
        for _ in 0..SHORT_READ_TRIES {
            if asked == 0 {
                return Ok(0);
            }
            match self.read_call(&mut buffer[..asked], offset) {
                Ok(()) => return Ok(asked),
                Err(Code::SHORT_READ) => {
                    let left =
                        usize::try_from(self.size()?.saturating_sub(offset)).unwrap_or(usize::MAX);
                    asked = buffer.len().min(left);
                }
                Err(code) => return Err(code),
            }
        }
        Err(Code::SHORT_READ)
    }

    fn read_call(&self, buffer: &mut [u8], offset: u64) -> Result<(), Code> {
        let method = self.methods().xRead.ok_or(Code::IOERR)?;
        let length = c_int::try_from(buffer.len()).map_err(|_| Code::MISUSE)?;
        // SAFETY: the file is open; the buffer has the length that the call is told.
        Code::check(unsafe {
            method(
                self.as_ptr(),
                buffer.as_mut_ptr().cast::<c_void>(),
                length,
                signed(offset)?,
            )
        })
    }

    /// Writes all of `bytes` at byte `offset`, growing the file if need be.
    ///
    /// # Errors
    /// What the VFS says (`SQLITE_FULL`, `SQLITE_IOERR_WRITE`); some bytes may have been written.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), Code> {
        let method = self.methods().xWrite.ok_or(Code::READONLY)?;
        let mut done = 0;
        for part in bytes.chunks(CALL_BYTES_MAX) {
            let length = c_int::try_from(part.len()).map_err(|_| Code::MISUSE)?;
            let at = signed(add(offset, done)?)?;
            // SAFETY: the file is open; the bytes are as many as the call is told.
            Code::check(unsafe {
                method(self.as_ptr(), part.as_ptr().cast::<c_void>(), length, at)
            })?;
            done += part.len();
        }
        Ok(())
    }

    /// Cuts (or grows) the file to `size` bytes.
    ///
    /// # Errors
    /// What the VFS says.
    pub fn truncate(&self, size: u64) -> Result<(), Code> {
        let method = self.methods().xTruncate.ok_or(Code::READONLY)?;
        // SAFETY: the file is open.
        Code::check(unsafe { method(self.as_ptr(), signed(size)?) })
    }

    /// Makes everything written durable; `full` also asks the drive to flush where the platform can say so.
    ///
    /// # Errors
    /// What the VFS says; after a failure the file's content on disk is unknown.
    pub fn sync(&self, full: bool) -> Result<(), Code> {
        let method = self.methods().xSync.ok_or(Code::IOERR)?;
        let flags = if full {
            sys::SQLITE_SYNC_FULL
        } else {
            sys::SQLITE_SYNC_NORMAL
        };
        // SAFETY: the file is open.
        Code::check(unsafe { method(self.as_ptr(), flags) })
    }

    /// Size of the file in bytes.
    ///
    /// # Errors
    /// What the VFS says.
    pub fn size(&self) -> Result<u64, Code> {
        let method = self.methods().xFileSize.ok_or(Code::IOERR)?;
        let mut size = 0i64;
        // SAFETY: the file is open; the size has its place.
        Code::check(unsafe { method(self.as_ptr(), &raw mut size) })?;
        u64::try_from(size).map_err(|_| Code::IOERR)
    }

    /// Raises the lock, one try without waiting. The order is SQLite's: `Shared` first; then `Reserved` and
    /// `Exclusive`, or `Exclusive` at once (only to roll back a hot journal).
    ///
    /// # Errors
    /// `SQLITE_BUSY` if others hold a conflicting lock; `SQLITE_MISUSE` for `None` and `Pending`.
    pub fn lock(&self, lock: Lock) -> Result<(), Code> {
        if matches!(lock, Lock::None | Lock::Pending) {
            return Err(Code::MISUSE);
        }
        let method = self.methods().xLock.ok_or(Code::IOERR)?;
        // SAFETY: the file is open; the level is one that may be asked for.
        Code::check(unsafe { method(self.as_ptr(), lock.number()) })
    }

    /// Lowers the lock to `Shared` or `None`.
    ///
    /// # Errors
    /// What the VFS says; `SQLITE_MISUSE` for another level.
    pub fn unlock(&self, lock: Lock) -> Result<(), Code> {
        if !matches!(lock, Lock::None | Lock::Shared) {
            return Err(Code::MISUSE);
        }
        let method = self.methods().xUnlock.ok_or(Code::IOERR)?;
        // SAFETY: the file is open; the level is one that may be asked for.
        Code::check(unsafe { method(self.as_ptr(), lock.number()) })
    }

    /// Whether anyone, in any process, holds `Reserved` or more.
    ///
    /// # Errors
    /// What the VFS says.
    pub fn is_reserved(&self) -> Result<bool, Code> {
        let method = self.methods().xCheckReservedLock.ok_or(Code::IOERR)?;
        let mut answer: c_int = 0;
        // SAFETY: the file is open; the answer has its place.
        Code::check(unsafe { method(self.as_ptr(), &raw mut answer) })?;
        Ok(answer != 0)
    }

    /// Sends a `SQLITE_FCNTL_...`; `SQLITE_NOTFOUND` (an ordinary answer) if the VFS does not know it.
    ///
    /// # Errors
    /// What the VFS says.
    ///
    /// # Safety
    /// `argument` is what SQLite's documentation says for this `operation`.
    pub unsafe fn file_control(&self, operation: c_int, argument: *mut c_void) -> Result<(), Code> {
        let method = self.methods().xFileControl.ok_or(Code::NOTFOUND)?;
        // SAFETY: the file is open; the caller vouches for the argument.
        Code::check(unsafe { method(self.as_ptr(), operation, argument) })
    }

    /// Bytes that a power cut may damage around a write, as the VFS says; 4096 if it does not.
    #[must_use]
    pub fn sector_size(&self) -> u32 {
        // SAFETY: the file is open.
        let size = self
            .methods()
            .xSectorSize
            .map(|method| unsafe { method(self.as_ptr()) });
        size.and_then(|size| u32::try_from(size).ok())
            .filter(|size| *size > 0)
            .unwrap_or(4096)
    }

    /// The `SQLITE_IOCAP_...` bits of the VFS.
    #[must_use]
    pub fn device_characteristics(&self) -> i32 {
        // SAFETY: the file is open.
        self.methods()
            .xDeviceCharacteristics
            .map_or(0, |method| unsafe { method(self.as_ptr()) })
    }

    /// Whether the VFS offers shared memory, which WAL mode with several connections needs.
    #[must_use]
    pub fn has_shm(&self) -> bool {
        let methods = self.methods();
        methods.iVersion >= 2 && methods.xShmMap.is_some()
    }
}

/// A file that we opened and close: on drop its locks are released and the memory freed.
///
/// A database opened here shares SQLite's POSIX locks with the host's own connections, if it is the same SQLite and the
/// same platform VFS: closing it does not drop theirs.
pub struct File {
    file: FileRef,
    layout: Layout,
    name: Filename,
    vfs: Vfs,
    out_flags: OpenFlags,
    pub(crate) shm: Cell<Option<HeldLocks>>,
}

// SAFETY: a VFS's file may be used by any thread, one at a time: SQLite moves connections between threads in the same
// way. File is not Sync, so there is never more than one.
unsafe impl Send for File {}

impl File {
    /// Opens `path` through a VFS; `None` takes the platform's (see [`Vfs::find`]). `flags` name what kind of file it
    /// is (`MAIN_DB`, `MAIN_JOURNAL`, `WAL`), and whether it is read, written, created.
    ///
    /// # Errors
    /// `SQLITE_CANTOPEN` and what else the VFS says; `SQLITE_NOTFOUND` if there is no such VFS.
    pub fn open(api: Api, vfs: Option<&CStr>, path: &Path, flags: OpenFlags) -> Result<File, Code> {
        let vfs = Vfs::find(api, vfs)?;
        let name = Filename::new(&vfs.full_path(path)?);
        let layout = Layout::from_size_align(vfs.file_size(), 16).map_err(|_| Code::NOMEM)?;
        // SAFETY: the layout is not empty: a file is at least an sqlite3_file.
        let file = NonNull::new(unsafe { alloc_zeroed(layout) }.cast::<sqlite3_file>())
            .ok_or(Code::NOMEM)?;
        match open_into(vfs, &name, file, flags) {
            Ok(out_flags) => Ok(File {
                file: FileRef {
                    file,
                    _one_thread_at_a_time: PhantomData,
                },
                layout,
                name,
                vfs,
                out_flags,
                shm: Cell::new(None),
            }),
            Err(code) => {
                // SAFETY: allocated above with this layout; the VFS has no open file in it.
                unsafe { dealloc(file.as_ptr().cast(), layout) };
                Err(code)
            }
        }
    }

    /// Deletes a file through a VFS; see [`Vfs::delete`].
    ///
    /// # Errors
    /// As there, and `SQLITE_NOTFOUND` if there is no such VFS.
    pub fn delete(api: Api, vfs: Option<&CStr>, path: &Path, sync_dir: bool) -> Result<(), Code> {
        Vfs::find(api, vfs)?.delete(path, sync_dir)
    }

    /// Whether a file is there, as a VFS sees it; see [`Vfs::exists`].
    ///
    /// # Errors
    /// As there, and `SQLITE_NOTFOUND` if there is no such VFS.
    pub fn access(api: Api, vfs: Option<&CStr>, path: &Path) -> Result<bool, Code> {
        Vfs::find(api, vfs)?.exists(path)
    }

    /// Whether the file could only be opened for reading, although writing was asked for.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.out_flags.contains(OpenFlags::READONLY)
    }

    /// The VFS that opened it.
    #[must_use]
    pub fn vfs(&self) -> Vfs {
        self.vfs
    }

    /// The name it was opened under, fit for [`Api::uri_parameter`]; valid as long as the file.
    #[must_use]
    pub fn name_ptr(&self) -> *const c_char {
        self.name.as_ptr()
    }
}

impl Deref for File {
    type Target = FileRef;

    fn deref(&self) -> &FileRef {
        &self.file
    }
}

impl Drop for File {
    fn drop(&mut self) {
        self.close_shm();
        if let Some(method) = self.file.methods().xClose {
            // SAFETY: the file is open and this is its last use. A failure to close leaves nothing to be done.
            let _ = unsafe { method(self.file.as_ptr()) };
        }
        // SAFETY: allocated in open() with this layout; the VFS has let go of it.
        unsafe { dealloc(self.file.as_ptr().cast(), self.layout) };
    }
}

/// Calls `xOpen` on zeroed memory. On any error the memory holds no open file.
fn open_into(
    vfs: Vfs,
    name: &Filename,
    file: NonNull<sqlite3_file>,
    flags: OpenFlags,
) -> Result<OpenFlags, Code> {
    // SAFETY: a registered VFS is alive.
    let method = unsafe { (*vfs.as_ptr()).xOpen }.ok_or(Code::CANTOPEN)?;
    let mut out_flags = flags.0;
    // SAFETY: the memory is as large as the VFS asked for; the name is laid out as SQLite does it and outlives the file.
    let rc = unsafe {
        method(
            vfs.as_ptr(),
            name.as_ptr(),
            file.as_ptr(),
            flags.0,
            &raw mut out_flags,
        )
    };
    // SAFETY: the memory starts with an sqlite3_file, zeroed or written by the VFS.
    let methods = unsafe { file.as_ref() }.pMethods;
    if rc == sys::SQLITE_OK && !methods.is_null() {
        return Ok(OpenFlags(out_flags));
    }
    if !methods.is_null() {
        // SAFETY: SQLite's rule: methods set by a failed open mean that xClose must be called.
        unsafe {
            if let Some(close) = (*methods).xClose {
                let _ = close(file.as_ptr());
            }
        }
    }
    Err(if rc == sys::SQLITE_OK {
        Code::CANTOPEN
    } else {
        Code(rc)
    })
}

fn add(offset: u64, more: usize) -> Result<u64, Code> {
    u64::try_from(more)
        .ok()
        .and_then(|more| offset.checked_add(more))
        .ok_or(Code::MISUSE)
}

fn signed(offset: u64) -> Result<i64, Code> {
    i64::try_from(offset).map_err(|_| Code::MISUSE)
}
