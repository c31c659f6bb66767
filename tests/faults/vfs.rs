//! Two kinds of VFS: `disk`, which fails calls as planned, below ours; and `app_plain` and `app_ours`, which SQLite calls
//! and which tell its own calls from those that the extension makes by itself.

use crate::control::{Kind, Method, begin, end, verdict};
use libsqlite3_sys::*;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::Once;

/// The stack that a connection uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// SQLite over the disk.
    Plain,
    /// SQLite over the writer VFS over the disk.
    Ours,
}

impl Side {
    pub fn vfs(self) -> &'static str {
        match self {
            Side::Plain => "app_plain",
            Side::Ours => "app_ours",
        }
    }
}

/// Registers the VFSs, and the extension between them.
pub fn load() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        register(c"disk", c"unix", true);
        // The extension takes the default VFS for the one below.
        crate::common::load();
        register(c"app_plain", c"disk", false);
        register(c"app_ours", c"mycelite_writer", false);
    });
}

/// What a VFS's `pAppData` points to.
struct VfsData {
    parent: *mut sqlite3_vfs,
    is_disk: bool,
}

fn register(name: &CStr, parent: &CStr, is_disk: bool) {
    // SAFETY: both VFSs live for the rest of the process.
    unsafe {
        let parent = sqlite3_vfs_find(parent.as_ptr());
        assert!(!parent.is_null());
        let data = Box::into_raw(Box::new(VfsData { parent, is_disk }));
        let vfs = Box::into_raw(Box::new(sqlite3_vfs {
            iVersion: 2,
            szOsFile: (*parent).szOsFile + size_of::<Wrapped>() as c_int,
            zName: CString::from(name).into_raw(),
            pNext: std::ptr::null_mut(),
            pAppData: data.cast(),
            xOpen: Some(open),
            xDelete: Some(delete),
            xAccess: Some(access),
            xFullPathname: Some(full_pathname),
            xSleep: Some(sleep),
            xRandomness: Some(randomness),
            xCurrentTime: Some(current_time),
            xCurrentTimeInt64: Some(current_time_int64),
            xGetLastError: Some(get_last_error),
            ..*parent
        }));
        assert_eq!(sqlite3_vfs_register(vfs, c_int::from(is_disk)), SQLITE_OK);
    }
}

/// A file: what is ours, and behind it the file below.
#[repr(C)]
struct Wrapped {
    base: sqlite3_file,
    state: *mut State,
}

struct State {
    file: &'static str,
    is_disk: bool,
}

/// What a file is for, by its name.
fn role(name: *const c_char) -> &'static str {
    const ROLES: [&str; 8] = [
        "app.db-journal",
        "app.db-wal",
        "app.db-mj",
        "app.db",
        "side.db-journal",
        "side.db-wal",
        "side.db-mj",
        "side.db",
    ];
    if name.is_null() {
        return "temporary";
    }
    // SAFETY: SQLite passes names that end with a zero byte.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    let base = name.rsplit('/').next().unwrap_or_default();
    ROLES
        .into_iter()
        .find(|role| base.starts_with(role))
        .unwrap_or("other")
}

/// Lets a call of one of the VFSs through, or fails it. `fail` makes the failure out of its kind.
fn pass(
    is_disk: bool,
    (method, file, arguments): (Method, &'static str, (i64, i64)),
    forward: impl FnOnce() -> c_int,
    fail: impl FnOnce(Kind) -> c_int,
) -> c_int {
    if !is_disk {
        begin(method, file, arguments);
        let rc = forward();
        end();
        return rc;
    }
    match verdict(method, file) {
        Some(kind) => fail(kind),
        None => forward(),
    }
}

/// # Safety
/// `vfs` is one that [`register`] made.
unsafe fn data<'a>(vfs: *mut sqlite3_vfs) -> &'a VfsData {
    // SAFETY: the caller's promise; the data is never freed.
    unsafe { &*(*vfs).pAppData.cast() }
}

/// # Safety
/// `file` was filled by [`open`] and is not closed.
unsafe fn state<'a>(file: *mut sqlite3_file) -> (&'a State, *mut sqlite3_file) {
    // SAFETY: the caller's promise; the file below lies behind ours.
    unsafe {
        (
            &*(*file.cast::<Wrapped>()).state,
            file.byte_add(size_of::<Wrapped>()),
        )
    }
}

unsafe extern "C" fn open(
    vfs: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite passes one of our VFSs, and memory of szOsFile bytes.
    unsafe {
        let VfsData { parent, is_disk } = *data(vfs);
        (*file).pMethods = std::ptr::null();
        let below = file.byte_add(size_of::<Wrapped>());
        (*below).pMethods = std::ptr::null();
        let role = role(name);
        let rc = pass(
            is_disk,
            (Method::Open, role, (i64::from(flags), 0)),
            || (*parent).xOpen.unwrap()(parent, name, below, flags, out_flags),
            |_| SQLITE_CANTOPEN,
        );
        if rc == SQLITE_OK {
            let state = Box::new(State {
                file: role,
                is_disk,
            });
            file.cast::<Wrapped>().write(Wrapped {
                base: sqlite3_file {
                    pMethods: &raw const METHODS,
                },
                state: Box::into_raw(state),
            });
        }
        rc
    }
}

unsafe extern "C" fn delete(vfs: *mut sqlite3_vfs, name: *const c_char, sync: c_int) -> c_int {
    // SAFETY: SQLite's arguments are passed on.
    unsafe {
        let VfsData { parent, is_disk } = *data(vfs);
        pass(
            is_disk,
            (Method::Delete, role(name), (i64::from(sync), 0)),
            || (*parent).xDelete.unwrap()(parent, name, sync),
            |_| SQLITE_IOERR_DELETE,
        )
    }
}

unsafe extern "C" fn access(
    vfs: *mut sqlite3_vfs,
    name: *const c_char,
    flags: c_int,
    answer: *mut c_int,
) -> c_int {
    // SAFETY: SQLite's arguments are passed on.
    unsafe {
        let VfsData { parent, is_disk } = *data(vfs);
        pass(
            is_disk,
            (Method::Access, role(name), (i64::from(flags), 0)),
            || (*parent).xAccess.unwrap()(parent, name, flags, answer),
            |_| SQLITE_IOERR_ACCESS,
        )
    }
}

/// Whoever waits for a lock waits for nothing here.
unsafe extern "C" fn sleep(_: *mut sqlite3_vfs, microseconds: c_int) -> c_int {
    microseconds
}

macro_rules! forward_vfs {
    ($name:ident, $method:ident, ($($argument:ident: $type:ty),*)) => {
        unsafe extern "C" fn $name(vfs: *mut sqlite3_vfs, $($argument: $type),*) -> c_int {
            // SAFETY: SQLite's arguments are passed on.
            unsafe {
                let parent = data(vfs).parent;
                (*parent).$method.unwrap()(parent, $($argument),*)
            }
        }
    };
}
forward_vfs!(full_pathname, xFullPathname, (name: *const c_char, length: c_int, out: *mut c_char));
forward_vfs!(randomness, xRandomness, (length: c_int, out: *mut c_char));
forward_vfs!(current_time, xCurrentTime, (time: *mut f64));
forward_vfs!(current_time_int64, xCurrentTimeInt64, (time: *mut sqlite3_int64));
forward_vfs!(get_last_error, xGetLastError, (length: c_int, out: *mut c_char));

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    // SAFETY: SQLite closes a file once; the state was made from a box.
    unsafe {
        let (state, below) = state(file);
        let close = || (*(*below).pMethods).xClose.unwrap()(below);
        let rc = pass(
            state.is_disk,
            (Method::Close, state.file, (0, 0)),
            close,
            |_| {
                // As the system's own: what fails, closes all the same.
                close();
                SQLITE_IOERR_CLOSE
            },
        );
        drop(Box::from_raw(std::ptr::from_ref(state).cast_mut()));
        rc
    }
}

unsafe extern "C" fn read(
    file: *mut sqlite3_file,
    buffer: *mut c_void,
    amount: c_int,
    offset: sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite's arguments are passed on.
    unsafe {
        let (state, below) = state(file);
        pass(
            state.is_disk,
            (Method::Read, state.file, (offset, i64::from(amount))),
            || (*(*below).pMethods).xRead.unwrap()(below, buffer, amount, offset),
            |_| SQLITE_IOERR_READ,
        )
    }
}

unsafe extern "C" fn write(
    file: *mut sqlite3_file,
    buffer: *const c_void,
    amount: c_int,
    offset: sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite's arguments are passed on, or a first part of its buffer.
    unsafe {
        let (state, below) = state(file);
        let write = |amount| (*(*below).pMethods).xWrite.unwrap()(below, buffer, amount, offset);
        pass(
            state.is_disk,
            (Method::Write, state.file, (offset, i64::from(amount))),
            || write(amount),
            |kind| match kind {
                Kind::Io | Kind::Busy => SQLITE_IOERR_WRITE,
                Kind::Full => SQLITE_FULL,
                Kind::Short => {
                    write(amount * 3 / 5);
                    SQLITE_FULL
                }
            },
        )
    }
}

unsafe extern "C" fn file_control(
    file: *mut sqlite3_file,
    operation: c_int,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: SQLite's arguments are passed on.
    unsafe {
        let (state, below) = state(file);
        let forward = || (*(*below).pMethods).xFileControl.unwrap()(below, operation, argument);
        let method = match operation {
            SQLITE_FCNTL_SIZE_HINT => Method::SizeHint,
            SQLITE_FCNTL_CHUNK_SIZE => Method::ChunkSize,
            SQLITE_FCNTL_SYNC => Method::AllWritten,
            SQLITE_FCNTL_COMMIT_PHASETWO => Method::Committed,
            SQLITE_FCNTL_CKPT_START => Method::CheckpointStart,
            _ => return forward(),
        };
        pass(
            state.is_disk,
            (method, state.file, (0, 0)),
            forward,
            |kind| match kind {
                Kind::Full => SQLITE_FULL,
                _ => SQLITE_IOERR,
            },
        )
    }
}

unsafe extern "C" fn shm_lock(
    file: *mut sqlite3_file,
    offset: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: SQLite's arguments are passed on.
    unsafe {
        let (state, below) = state(file);
        let forward = || (*(*below).pMethods).xShmLock.unwrap()(below, offset, count, flags);
        let method = if flags & SQLITE_SHM_UNLOCK != 0 {
            Method::ShmUnlock
        } else {
            Method::ShmLock
        };
        pass(
            state.is_disk,
            (method, state.file, (i64::from(offset), i64::from(flags))),
            forward,
            |kind| match kind {
                Kind::Busy => SQLITE_BUSY,
                _ => SQLITE_IOERR_SHMLOCK,
            },
        )
    }
}

unsafe extern "C" fn shm_map(
    file: *mut sqlite3_file,
    region: c_int,
    size: c_int,
    extend: c_int,
    memory: *mut *mut c_void,
) -> c_int {
    // SAFETY: SQLite's arguments are passed on.
    unsafe {
        let (state, below) = state(file);
        pass(
            state.is_disk,
            (
                Method::ShmMap,
                state.file,
                (i64::from(region), i64::from(extend)),
            ),
            || (*(*below).pMethods).xShmMap.unwrap()(below, region, size, extend, memory),
            |_| SQLITE_IOERR_SHMMAP,
        )
    }
}

unsafe extern "C" fn shm_unmap(file: *mut sqlite3_file, delete: c_int) -> c_int {
    // SAFETY: SQLite's arguments are passed on.
    unsafe {
        let (state, below) = state(file);
        let unmap = || (*(*below).pMethods).xShmUnmap.unwrap()(below, delete);
        pass(
            state.is_disk,
            (Method::ShmUnmap, state.file, (i64::from(delete), 0)),
            unmap,
            |_| {
                unmap();
                SQLITE_IOERR_SHMMAP
            },
        )
    }
}

/// Batch-atomic writes are promised here; a SQLite that was built to use them finds at the first that there are none.
unsafe extern "C" fn device_characteristics(file: *mut sqlite3_file) -> c_int {
    // SAFETY: SQLite's argument is passed on.
    unsafe {
        let (state, below) = state(file);
        let found = (*(*below).pMethods).xDeviceCharacteristics.unwrap()(below);
        if state.is_disk {
            found | SQLITE_IOCAP_BATCH_ATOMIC
        } else {
            found
        }
    }
}

/// A method of a file that can fail in one way only, besides a lock that is busy.
macro_rules! method {
    ($name:ident, $below:ident, $method:ident, $code:expr, $shown:expr, ($($argument:ident: $type:ty),*)) => {
        unsafe extern "C" fn $name(file: *mut sqlite3_file, $($argument: $type),*) -> c_int {
            // SAFETY: SQLite's arguments are passed on.
            unsafe {
                let (state, below) = state(file);
                pass(
                    state.is_disk,
                    (Method::$method, state.file, ($shown, 0)),
                    || (*(*below).pMethods).$below.unwrap()(below, $($argument),*),
                    |kind| if kind == Kind::Busy { SQLITE_BUSY } else { $code },
                )
            }
        }
    };
}
method!(truncate, xTruncate, Truncate, SQLITE_IOERR_TRUNCATE, size, (size: sqlite3_int64));
method!(sync, xSync, Sync, SQLITE_IOERR_FSYNC, i64::from(flags), (flags: c_int));
method!(file_size, xFileSize, FileSize, SQLITE_IOERR_FSTAT, 0, (size: *mut sqlite3_int64));
method!(lock, xLock, Lock, SQLITE_IOERR_LOCK, i64::from(level), (level: c_int));
method!(unlock, xUnlock, Unlock, SQLITE_IOERR_UNLOCK, i64::from(level), (level: c_int));
method!(check_reserved, xCheckReservedLock, CheckReserved, SQLITE_IOERR_CHECKRESERVEDLOCK, 0, (answer: *mut c_int));

macro_rules! forward_file {
    ($name:ident, $method:ident, ($($argument:ident: $type:ty),*), $result:ty) => {
        unsafe extern "C" fn $name(file: *mut sqlite3_file, $($argument: $type),*) -> $result {
            // SAFETY: SQLite's arguments are passed on.
            unsafe {
                let (_, below) = state(file);
                (*(*below).pMethods).$method.unwrap()(below, $($argument),*)
            }
        }
    };
}
forward_file!(sector_size, xSectorSize, (), c_int);
forward_file!(shm_barrier, xShmBarrier, (), ());
forward_file!(fetch, xFetch, (offset: sqlite3_int64, amount: c_int, memory: *mut *mut c_void), c_int);
forward_file!(unfetch, xUnfetch, (offset: sqlite3_int64, memory: *mut c_void), c_int);

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 3,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: Some(fetch),
    xUnfetch: Some(unfetch),
};
