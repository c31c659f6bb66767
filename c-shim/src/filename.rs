//! The buffer in which SQLite passes file names to a VFS.

use core::ffi::c_char;
use std::ffi::{CStr, CString};
use std::path::Path;

use crate::Code;

/// A database name laid out as SQLite's pager does it, which VFSs rely on: they look for URI parameters behind the
/// name (`psow`, `readonly_shm`), and walk back to four zero bytes to find the name's start.
///
/// ```text
/// 0 0 0 0 | name 0 | (key 0 value 0)* 0 | name-journal 0 | name-wal 0 | 0 0
///           ^ what the VFS gets
/// ```
pub(crate) struct Filename(Box<[u8]>);

const PREFIX: usize = 4;

impl Filename {
    /// `name` must be what the VFS's xFullPathname gave.
    pub fn new(name: &CStr) -> Filename {
        let name = name.to_bytes();
        let mut buffer = vec![0u8; PREFIX];
        buffer.extend_from_slice(name);
        // The end of the name and the end of an empty parameter list.
        buffer.extend_from_slice(&[0, 0]);
        buffer.extend_from_slice(name);
        buffer.extend_from_slice(b"-journal\0");
        buffer.extend_from_slice(name);
        buffer.extend_from_slice(b"-wal\0\0\0");
        Filename(buffer.into_boxed_slice())
    }

    /// The name as a VFS expects it; valid as long as `self`, wherever `self` moves.
    pub fn as_ptr(&self) -> *const c_char {
        self.0[PREFIX..].as_ptr().cast()
    }
}

/// A path as C text: its bytes on Unix, UTF-8 elsewhere.
pub(crate) fn c_path(path: &Path) -> Result<CString, Code> {
    CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| Code::CANTOPEN)
}

/// Text for C: a NUL inside would cut it there, so it is left out.
pub(crate) fn c_text(text: &str) -> CString {
    let bytes: Vec<u8> = text.bytes().filter(|byte| *byte != 0).collect();
    CString::new(bytes).unwrap_or_default()
}
