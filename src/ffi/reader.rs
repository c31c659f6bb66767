//! The files of the reader VFS: a database that is read out of a log.
//!
//! SQLite sees a read-only database without a journal or a WAL. What is read comes from a [`ReadOnly`]; nothing is
//! forwarded, for there is no file below.

use super::guard;
use super::vfs::{Kind, report};
use crate::error::{Error, ErrorKind};
use crate::vfs::ReadOnly;
use c_shim::Api;
use libsqlite3_sys::{
    SQLITE_CANTOPEN, SQLITE_CORRUPT, SQLITE_FCNTL_VFSNAME, SQLITE_IOCAP_IMMUTABLE,
    SQLITE_IOERR_READ, SQLITE_IOERR_SHORT_READ, SQLITE_NOTFOUND, SQLITE_OK, SQLITE_READONLY,
    sqlite3_file, sqlite3_int64, sqlite3_io_methods,
};
use std::ffi::{c_char, c_int, c_void};

/// What stands at the beginning of SQLite's allocation for a file of the reader VFS.
#[repr(C)]
pub struct ReaderFile {
    base: sqlite3_file,
    state: *mut State,
}

const _: () = assert!(size_of::<ReaderFile>() <= super::file::SHIM_BYTES);

struct State {
    image: Box<dyn ReadOnly>,
    /// A read transaction is under way.
    reading: bool,
}

/// Turns `file` into a file through which `image` is read.
///
/// # Safety
/// `file` points to memory of the VFS's `szOsFile` bytes that is ours until `xClose`.
pub unsafe fn install(file: *mut sqlite3_file, image: Box<dyn ReadOnly>) {
    let state = Box::into_raw(Box::new(State {
        image,
        reading: false,
    }));
    // SAFETY: the caller's promise.
    unsafe {
        std::ptr::write(
            file.cast::<ReaderFile>(),
            ReaderFile {
                base: sqlite3_file { pMethods: &METHODS },
                state,
            },
        );
    }
}

/// What belongs to `file`.
///
/// # Safety
/// `file` was filled by [`install`] and is not closed; SQLite serialises the calls on a file.
unsafe fn state<'a>(file: *mut sqlite3_file) -> &'a mut State {
    // SAFETY: the caller's promise.
    unsafe { &mut *(*file.cast::<ReaderFile>()).state }
}

/// Tells why, where SQLite can only pass on a code.
fn failed(error: &Error) -> c_int {
    // An embedded replica that has nothing yet: a person must see why.
    let absent = error.kind() == ErrorKind::Network;
    report(SQLITE_IOERR_READ, &format!("mycelite: {error}"), absent);
    match error.kind() {
        ErrorKind::Corrupt => SQLITE_CORRUPT,
        ErrorKind::Network => SQLITE_CANTOPEN,
        _ => SQLITE_IOERR_READ,
    }
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    // SAFETY: `install` made the pointer from a box; SQLite closes a file once.
    let state = unsafe { Box::from_raw((*file.cast::<ReaderFile>()).state) };
    guard((), || drop(state));
    SQLITE_OK
}

unsafe extern "C" fn read(
    file: *mut sqlite3_file,
    buffer: *mut c_void,
    amount: c_int,
    offset: sqlite3_int64,
) -> c_int {
    let (Ok(length), Ok(offset)) = (usize::try_from(amount), u64::try_from(offset)) else {
        return SQLITE_IOERR_READ;
    };
    // SAFETY: SQLite passes `amount` writable bytes, and an open file. They may hold nothing yet, hence the zeros.
    let (state, buffer) = unsafe {
        std::ptr::write_bytes(buffer.cast::<u8>(), 0, length);
        (
            state(file),
            std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length),
        )
    };
    guard(SQLITE_IOERR_READ, || {
        match state.image.read_at(buffer, offset) {
            Ok(got) if got == length => SQLITE_OK,
            Ok(_) => SQLITE_IOERR_SHORT_READ,
            Err(error) => failed(&error),
        }
    })
}

unsafe extern "C" fn write(
    _file: *mut sqlite3_file,
    _buffer: *const c_void,
    _amount: c_int,
    _offset: sqlite3_int64,
) -> c_int {
    SQLITE_READONLY
}

unsafe extern "C" fn truncate(_file: *mut sqlite3_file, _size: sqlite3_int64) -> c_int {
    SQLITE_READONLY
}

unsafe extern "C" fn sync(_file: *mut sqlite3_file, _flags: c_int) -> c_int {
    SQLITE_OK
}

unsafe extern "C" fn file_size(file: *mut sqlite3_file, size: *mut sqlite3_int64) -> c_int {
    // SAFETY: SQLite passes an open file and a place for the answer.
    unsafe { *size = sqlite3_int64::try_from(state(file).image.size()).unwrap_or(0) };
    SQLITE_OK
}

const SHARED: c_int = 1;

unsafe extern "C" fn lock(file: *mut sqlite3_file, level: c_int) -> c_int {
    if level > SHARED {
        return SQLITE_READONLY;
    }
    // SAFETY: SQLite passes an open file.
    let state = unsafe { state(file) };
    if state.reading {
        return SQLITE_OK;
    }
    guard(SQLITE_IOERR_READ, || match state.image.begin() {
        Ok(()) => {
            state.reading = true;
            SQLITE_OK
        }
        Err(error) => failed(&error),
    })
}

unsafe extern "C" fn unlock(file: *mut sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite passes an open file.
    let state = unsafe { state(file) };
    if level < SHARED && std::mem::take(&mut state.reading) {
        guard((), || state.image.end());
    }
    SQLITE_OK
}

unsafe extern "C" fn check_reserved_lock(_file: *mut sqlite3_file, answer: *mut c_int) -> c_int {
    // SAFETY: SQLite passes a place for the answer.
    unsafe { *answer = 0 };
    SQLITE_OK
}

unsafe extern "C" fn file_control(
    _file: *mut sqlite3_file,
    operation: c_int,
    argument: *mut c_void,
) -> c_int {
    match (operation, Api::get()) {
        (SQLITE_FCNTL_VFSNAME, Some(api)) => {
            // SAFETY: for this operation the argument is a place for a string in SQLite's memory.
            unsafe { *argument.cast::<*mut c_char>() = api.mprintf(Kind::Reader.name()) };
            SQLITE_OK
        }
        _ => SQLITE_NOTFOUND,
    }
}

/// Larger than any sector that matters: nothing is ever written.
const SECTOR_BYTES: c_int = 4096;

unsafe extern "C" fn sector_size(_file: *mut sqlite3_file) -> c_int {
    SECTOR_BYTES
}

unsafe extern "C" fn device_characteristics(file: *mut sqlite3_file) -> c_int {
    // SAFETY: SQLite passes an open file.
    if unsafe { state(file) }.image.is_fixed() {
        SQLITE_IOCAP_IMMUTABLE
    } else {
        0
    }
}

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};
