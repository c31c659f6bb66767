//! A registered VFS: what can be asked of it without a file.

use core::ffi::{CStr, c_char, c_int};
use std::ffi::CString;
use std::path::Path;
use std::ptr::NonNull;

use libsqlite3_sys::{self as sys, sqlite3_vfs};

use crate::filename::{Filename, c_path};
use crate::{Api, Code};

/// Names of our own VFSs begin so; they are never the platform's.
const OURS: &[u8] = b"mycelite_";

/// VFSs walked through when looking for the platform's.
const VFS_COUNT_MAX: usize = 1000;

/// A registered VFS. SQLite's own live for ever; one that the host unregisters while it is used breaks SQLite's own
/// connections just as well.
#[derive(Clone, Copy)]
pub struct Vfs(NonNull<sqlite3_vfs>);

// SAFETY: a VFS is called from any thread by SQLite itself (its methods must allow that); the pointer is only read.
unsafe impl Send for Vfs {}
// SAFETY: as above.
unsafe impl Sync for Vfs {}

impl Vfs {
    /// The VFS of that name. `None` asks for the platform's own, never one of ours, although ours may be the default:
    /// `unix` on Unix, else the first in SQLite's list that is not ours.
    ///
    /// # Errors
    /// `SQLITE_NOTFOUND` if there is none.
    pub fn find(api: Api, name: Option<&CStr>) -> Result<Vfs, Code> {
        if name.is_some() {
            return api.vfs_find(name).map(Vfs).ok_or(Code::NOTFOUND);
        }
        if cfg!(unix)
            && let Some(vfs) = api.vfs_find(Some(c"unix"))
        {
            return Ok(Vfs(vfs));
        }
        let mut next = api.vfs_find(None);
        for _ in 0..VFS_COUNT_MAX {
            let Some(vfs) = next else { break };
            if !Vfs(vfs).name().to_bytes().starts_with(OURS) {
                return Ok(Vfs(vfs));
            }
            // SAFETY: registered VFSs form a list of live structures that ends with null.
            next = NonNull::new(unsafe { vfs.as_ref().pNext });
        }
        Err(Code::NOTFOUND)
    }

    /// The name it is registered under.
    #[must_use]
    pub fn name(&self) -> &CStr {
        // SAFETY: a registered VFS has a NUL-terminated name that lives as long as itself.
        unsafe {
            let name = self.0.as_ref().zName;
            if name.is_null() {
                c""
            } else {
                CStr::from_ptr(name)
            }
        }
    }

    /// The structure itself.
    #[must_use]
    pub fn as_ptr(&self) -> *mut sqlite3_vfs {
        self.0.as_ptr()
    }

    /// Bytes that a file of this VFS needs.
    pub(crate) fn file_size(&self) -> usize {
        // SAFETY: a registered VFS is alive.
        let size = unsafe { self.0.as_ref().szOsFile };
        usize::try_from(size)
            .unwrap_or(0)
            .max(size_of::<sys::sqlite3_file>())
    }

    /// The absolute name under which SQLite would open `path` (`xFullPathname`).
    ///
    /// # Errors
    /// `SQLITE_CANTOPEN` and its extended codes.
    pub fn full_path(&self, path: &Path) -> Result<CString, Code> {
        let path = c_path(path)?;
        // SAFETY: a registered VFS is alive.
        let (method, room) = unsafe { (self.0.as_ref().xFullPathname, self.0.as_ref().mxPathname) };
        let method = method.ok_or(Code::CANTOPEN)?;
        let room = room.max(512).saturating_add(1);
        let mut out = vec![0u8; usize::try_from(room).map_err(|_| Code::CANTOPEN)?];
        // SAFETY: the method gets a NUL-terminated name and a buffer of the size it is told.
        let rc = unsafe {
            method(
                self.as_ptr(),
                path.as_ptr(),
                room,
                out.as_mut_ptr().cast::<c_char>(),
            )
        };
        // Beside OK, newer versions say here that a symbolic link was followed: 512, an internal code.
        if rc != sys::SQLITE_OK && rc != (sys::SQLITE_OK | (2 << 8)) {
            return Err(Code(rc));
        }
        CStr::from_bytes_until_nul(&out)
            .map(CStr::to_owned)
            .map_err(|_| Code::CANTOPEN)
    }

    /// Deletes a file; with `sync_dir` its directory is synced, so that the deletion survives a power cut.
    ///
    /// # Errors
    /// `SQLITE_IOERR_DELETE_NOENT` if it is not there, else what the VFS says.
    pub fn delete(&self, path: &Path, sync_dir: bool) -> Result<(), Code> {
        let name = Filename::new(&self.full_path(path)?);
        // SAFETY: a registered VFS is alive.
        let method = unsafe { self.0.as_ref().xDelete }.ok_or(Code::IOERR)?;
        // SAFETY: the name is NUL-terminated and laid out as SQLite does it.
        Code::check(unsafe { method(self.as_ptr(), name.as_ptr(), c_int::from(sync_dir)) })
    }

    /// Whether a file is there. Like SQLite, the unix VFS counts an empty one as absent.
    ///
    /// # Errors
    /// What the VFS says.
    pub fn exists(&self, path: &Path) -> Result<bool, Code> {
        let name = Filename::new(&self.full_path(path)?);
        // SAFETY: a registered VFS is alive.
        let method = unsafe { self.0.as_ref().xAccess }.ok_or(Code::IOERR)?;
        let mut answer: c_int = 0;
        // SAFETY: the name is NUL-terminated and laid out as SQLite does it; the answer has its place.
        let rc = unsafe {
            method(
                self.as_ptr(),
                name.as_ptr(),
                sys::SQLITE_ACCESS_EXISTS,
                &raw mut answer,
            )
        };
        Code::check(rc).map(|()| answer != 0)
    }
}
