//! The two VFSs, registered with SQLite, over the one that was the default when the extension was loaded.

use super::file::{Role, SHIM_BYTES, below, install};
use super::twin::Source;
use super::{guard, reader};
use crate::database::{self, Database};
use crate::error::{Error, ErrorKind, Result};
use crate::reader::{Feed, Origin};
use c_shim::Api;
use libsqlite3_sys::{
    SQLITE_CANTOPEN, SQLITE_ERROR, SQLITE_OK, SQLITE_OPEN_MAIN_DB, SQLITE_OPEN_READONLY,
    SQLITE_OPEN_WAL, SQLITE_READONLY, SQLITE_WARNING, sqlite3_file, sqlite3_int64,
    sqlite3_syscall_ptr, sqlite3_vfs,
};
use once_cell::sync::OnceCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::Arc;

/// Which of the two VFSs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Forwards, and records what is written.
    Writer,
    /// Reads a replica or any past state.
    Reader,
}

impl Kind {
    /// The name in `?vfs=`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Writer => "mycelite_writer",
            Kind::Reader => "mycelite_reader",
        }
    }
}

/// What a VFS's `pAppData` points to.
struct VfsData {
    kind: Kind,
    api: Api,
    parent: *mut sqlite3_vfs,
}

/// The registered VFSs: leaked on purpose, since SQLite keeps pointers to them for the rest of the process.
struct Registered {
    writer: *mut sqlite3_vfs,
    reader: *mut sqlite3_vfs,
}

// SAFETY: the pointers lead to memory that is never freed and that only SQLite changes, under its own mutex.
unsafe impl Send for Registered {}
// SAFETY: as above.
unsafe impl Sync for Registered {}

static REGISTERED: OnceCell<Registered> = OnceCell::new();

/// Registers both VFSs, once, and makes one of them the default if asked to.
///
/// # Errors
/// SQLite has no default VFS, or refuses a registration.
pub fn register(api: Api, default: Option<Kind>) -> Result<()> {
    let registered = REGISTERED.get_or_try_init(|| {
        let parent = api
            .vfs_find(None)
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, "this SQLite has no default VFS"))?;
        Ok::<_, Error>(Registered {
            writer: make(api, Kind::Writer, parent.as_ptr())?,
            reader: make(api, Kind::Reader, parent.as_ptr())?,
        })
    })?;
    let chosen = match default {
        Some(Kind::Writer) => registered.writer,
        Some(Kind::Reader) => registered.reader,
        None => return Ok(()),
    };
    // SAFETY: the VFS is complete and never freed.
    checked(unsafe { api.vfs_register(chosen, true) })
}

fn make(api: Api, kind: Kind, parent: *mut sqlite3_vfs) -> Result<*mut sqlite3_vfs> {
    let name = CString::new(kind.name())
        .map_err(|e| Error::new(ErrorKind::Internal, e))?
        .into_raw();
    let data = Box::into_raw(Box::new(VfsData { kind, api, parent }));
    // SAFETY: SQLite handed out the default VFS, which lives for the rest of the process.
    let below = unsafe { &*parent };
    let size = c_int::try_from(SHIM_BYTES).unwrap_or(c_int::MAX);
    let vfs = Box::into_raw(Box::new(sqlite3_vfs {
        iVersion: below.iVersion.min(3),
        szOsFile: below.szOsFile.saturating_add(size),
        mxPathname: below.mxPathname,
        pNext: std::ptr::null_mut(),
        zName: name,
        pAppData: data.cast(),
        xOpen: Some(open),
        xDelete: below.xDelete.and(Some(delete)),
        xAccess: below.xAccess.and(Some(access)),
        xFullPathname: below.xFullPathname.and(Some(full_pathname)),
        xDlOpen: below.xDlOpen.and(Some(dl_open)),
        xDlError: below.xDlError.and(Some(dl_error)),
        xDlSym: below.xDlSym.and(Some(dl_sym)),
        xDlClose: below.xDlClose.and(Some(dl_close)),
        xRandomness: below.xRandomness.and(Some(randomness)),
        xSleep: below.xSleep.and(Some(sleep)),
        xCurrentTime: below.xCurrentTime.and(Some(current_time)),
        xGetLastError: below.xGetLastError.and(Some(get_last_error)),
        xCurrentTimeInt64: below.xCurrentTimeInt64.and(Some(current_time_int64)),
        xSetSystemCall: below.xSetSystemCall.and(Some(set_system_call)),
        xGetSystemCall: below.xGetSystemCall.and(Some(get_system_call)),
        xNextSystemCall: below.xNextSystemCall.and(Some(next_system_call)),
    }));
    // SAFETY: the VFS is complete and never freed.
    checked(unsafe { api.vfs_register(vfs, false) })?;
    Ok(vfs)
}

fn checked(rc: c_int) -> Result<()> {
    if rc == SQLITE_OK {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format_args!("SQLite refuses to register the VFS: error {rc}"),
    ))
}

/// What stands behind `vfs`.
///
/// # Safety
/// `vfs` is one of those that [`make`] made.
unsafe fn data<'a>(vfs: *mut sqlite3_vfs) -> &'a VfsData {
    // SAFETY: the caller's promise; the data is never freed.
    unsafe { &*(*vfs).pAppData.cast::<VfsData>() }
}

/// Calls method `$method` of the VFS below.
macro_rules! forward {
    ($vfs:expr, $method:ident, $missing:expr $(, $argument:expr)*) => {{
        // SAFETY: SQLite passes one of our VFSs and valid arguments; the VFS below outlives the process's use of it.
        unsafe {
            let parent = data($vfs).parent;
            match (*parent).$method {
                Some(method) => method(parent $(, $argument)*),
                None => $missing,
            }
        }
    }};
}

unsafe extern "C" fn open(
    vfs: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite passes memory of szOsFile bytes and one of our VFSs; a failed open must leave no methods.
    let vfs_data = unsafe {
        (*file).pMethods = std::ptr::null();
        data(vfs)
    };
    let role = match flags {
        _ if name.is_null() => None,
        flags if flags & SQLITE_OPEN_MAIN_DB != 0 => Some(Role::Main),
        flags if flags & SQLITE_OPEN_WAL != 0 => Some(Role::Wal),
        _ => None,
    };
    guard(SQLITE_CANTOPEN, || match (vfs_data.kind, role) {
        // SAFETY: SQLite's arguments are passed on.
        (Kind::Writer, Some(role)) => unsafe {
            open_file(
                vfs_data,
                role,
                Arguments {
                    name,
                    file,
                    flags,
                    out_flags,
                },
            )
        },
        // SAFETY: SQLite's arguments are passed on.
        (Kind::Reader, Some(Role::Main)) => unsafe { open_image(vfs_data, name, file, out_flags) },
        // There is no WAL beside what is read.
        (Kind::Reader, Some(Role::Wal)) => SQLITE_CANTOPEN,
        // Every other file is the VFS below's alone.
        (_, None) => forward!(vfs, xOpen, SQLITE_CANTOPEN, name, file, flags, out_flags),
    })
}

/// What SQLite passes to `xOpen`.
#[derive(Clone, Copy)]
struct Arguments {
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
}

/// Opens the file below, and ours over it.
///
/// # Safety
/// The arguments are SQLite's, and `name` is not null.
unsafe fn open_file(vfs: &VfsData, role: Role, arguments: Arguments) -> c_int {
    let Arguments {
        name,
        file,
        flags,
        out_flags,
    } = arguments;
    // SAFETY: a name that SQLite passes to xOpen of a database or WAL lies in its own buffer.
    let owner = unsafe { vfs.api.filename_database(name) };
    // SAFETY: SQLite's names end with a zero byte.
    let path = path_of(unsafe { CStr::from_ptr(owner) });
    let parameters = match role {
        // SAFETY: as above.
        Role::Main => unsafe { parameters(vfs.api, name) },
        Role::Wal => Vec::new(),
    };
    if role == Role::Main
        && let Err(error) = database::check_settings(&path, &parameters)
    {
        refuse(&path, &error);
        return SQLITE_CANTOPEN;
    }
    // SAFETY: our allocation has room for the file below behind ours.
    let rc = unsafe {
        let below = below(file);
        (*below).pMethods = std::ptr::null();
        match (*vfs.parent).xOpen {
            Some(method) => method(vfs.parent, name, below, flags, out_flags),
            None => SQLITE_CANTOPEN,
        }
    };
    if rc != SQLITE_OK {
        return rc;
    }
    // SAFETY: SQLite passes a place for the flags, or null.
    let granted = unsafe { out_flags.as_ref() }.copied().unwrap_or(flags);
    let database = match role {
        Role::Main if granted & SQLITE_OPEN_READONLY != 0 => None,
        Role::Main => join(path, parameters, owner.addr()),
        Role::Wal => database::of_connection(owner.addr()),
    };
    let source = Source {
        api: vfs.api,
        vfs: vfs.parent,
        // SAFETY: SQLite's names end with a zero byte.
        path: path_of(unsafe { CStr::from_ptr(name) }),
        flags: role.open_flag(),
    };
    // SAFETY: the file below is open; the address only names the connection.
    unsafe { install(file, database, role, owner.addr(), source) };
    SQLITE_OK
}

/// Opens the image that `name` and its URI parameters ask for.
///
/// # Safety
/// The arguments are SQLite's, and `name` is not null.
unsafe fn open_image(
    vfs: &VfsData,
    name: *const c_char,
    file: *mut sqlite3_file,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite's names end with a zero byte.
    let path = path_of(unsafe { CStr::from_ptr(name) });
    // SAFETY: this is the name of a main database.
    let parameters = unsafe { parameters(vfs.api, name) };
    match crate::reader::open(&path, &parameters, name.addr(), feed) {
        Ok(image) => {
            // SAFETY: SQLite passes memory of szOsFile bytes, and a place for the flags or null.
            unsafe {
                reader::install(file, image);
                if let Some(flags) = out_flags.as_mut() {
                    *flags = SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_READONLY;
                }
            }
            SQLITE_OK
        }
        Err(error) => {
            refuse(&path, &error);
            SQLITE_CANTOPEN
        }
    }
}

/// Whether `name` is that of a database's journal or WAL, which what is read out of a log has not got.
///
/// # Safety
/// `name` is null or ends with a zero byte.
#[inline(never)]
unsafe fn is_beside(name: *const c_char) -> bool {
    if name.is_null() {
        return false;
    }
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    [&b"-journal"[..], b"-wal"]
        .iter()
        .any(|suffix| name.ends_with(suffix))
}

/// The database at `path`; `None`, and a line in the host's log, when replication cannot be had.
fn join(path: PathBuf, parameters: Vec<(String, String)>, name: usize) -> Option<Arc<Database>> {
    let joined = database::open(&path, parameters.clone(), degraded).and_then(|database| {
        database.set_own_ack(name, &parameters)?;
        Ok(database)
    });
    match joined {
        Ok(database) => Some(database),
        Err(error) => {
            degraded(&format!(
                "mycelite: {}: not replicated: {error}",
                path.display()
            ));
            None
        }
    }
}

/// What feeds an embedded replica.
#[cfg(feature = "cli")]
fn feed(path: &std::path::Path, origin: &Origin) -> Result<Arc<dyn Feed>> {
    if !Api::get().is_some_and(Api::threadsafe) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "this SQLite is built for one thread alone, a follower needs its own",
        )
        .at("URI parameter source")
        .hint("run mycelite follow beside the application"));
    }
    crate::embedded::join(path, origin, degraded)
}

#[cfg(not(feature = "cli"))]
fn feed(_: &std::path::Path, _: &Origin) -> Result<Arc<dyn Feed>> {
    Err(Error::new(
        ErrorKind::Unsupported,
        "this library was built without a follower",
    )
    .at("URI parameter source")
    .hint("build it with the feature cli, or run mycelite follow beside the application"))
}

fn degraded(line: &str) {
    report(SQLITE_WARNING, line, false);
}

/// Says why an open is refused: SQLite itself can only say that it is.
fn refuse(path: &std::path::Path, error: &Error) {
    report(
        SQLITE_CANTOPEN,
        &format!("mycelite: {}: {error}", path.display()),
        true,
    );
}

/// Writes a line to SQLite's error log, and to standard error where a person must see it.
pub fn report(code: c_int, line: &str, aloud: bool) {
    if let Some(api) = Api::get() {
        api.log(code, line);
    }
    if aloud {
        eprintln!("{line}");
    }
}

/// The URI parameters of the database called `name`.
///
/// # Safety
/// `name` is one that SQLite passed to `xOpen` of a main database.
unsafe fn parameters(api: Api, name: *const c_char) -> Vec<(String, String)> {
    // SAFETY: the caller's promise.
    let keys = unsafe { api.uri_keys(name) };
    keys.into_iter()
        .filter_map(|key| {
            let c_key = CString::new(key.as_str()).ok()?;
            // SAFETY: the caller's promise.
            let value = unsafe { api.uri_parameter(name, &c_key) }?;
            Some((key, value))
        })
        .collect()
}

#[cfg(unix)]
fn path_of(name: &CStr) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes()))
}

#[cfg(not(unix))]
fn path_of(name: &CStr) -> PathBuf {
    PathBuf::from(name.to_string_lossy().into_owned())
}

unsafe extern "C" fn delete(vfs: *mut sqlite3_vfs, name: *const c_char, sync: c_int) -> c_int {
    // SAFETY: SQLite passes one of our VFSs and a name.
    if unsafe { data(vfs).kind == Kind::Reader && is_beside(name) } {
        return SQLITE_READONLY;
    }
    forward!(vfs, xDelete, SQLITE_ERROR, name, sync)
}

unsafe extern "C" fn access(
    vfs: *mut sqlite3_vfs,
    name: *const c_char,
    flags: c_int,
    answer: *mut c_int,
) -> c_int {
    // SAFETY: SQLite passes one of our VFSs, a name, and a place for the answer.
    unsafe {
        if data(vfs).kind == Kind::Reader && is_beside(name) {
            *answer = 0;
            return SQLITE_OK;
        }
    }
    forward!(vfs, xAccess, SQLITE_ERROR, name, flags, answer)
}

unsafe extern "C" fn full_pathname(
    vfs: *mut sqlite3_vfs,
    name: *const c_char,
    size: c_int,
    out: *mut c_char,
) -> c_int {
    forward!(vfs, xFullPathname, SQLITE_ERROR, name, size, out)
}

unsafe extern "C" fn dl_open(vfs: *mut sqlite3_vfs, name: *const c_char) -> *mut c_void {
    forward!(vfs, xDlOpen, std::ptr::null_mut(), name)
}

unsafe extern "C" fn dl_error(vfs: *mut sqlite3_vfs, size: c_int, message: *mut c_char) {
    forward!(vfs, xDlError, (), size, message)
}

type Symbol = unsafe extern "C" fn(*mut sqlite3_vfs, *mut c_void, *const c_char);

unsafe extern "C" fn dl_sym(
    vfs: *mut sqlite3_vfs,
    library: *mut c_void,
    name: *const c_char,
) -> Option<Symbol> {
    forward!(vfs, xDlSym, None, library, name)
}

unsafe extern "C" fn dl_close(vfs: *mut sqlite3_vfs, library: *mut c_void) {
    forward!(vfs, xDlClose, (), library)
}

unsafe extern "C" fn randomness(vfs: *mut sqlite3_vfs, size: c_int, out: *mut c_char) -> c_int {
    forward!(vfs, xRandomness, 0, size, out)
}

unsafe extern "C" fn sleep(vfs: *mut sqlite3_vfs, microseconds: c_int) -> c_int {
    forward!(vfs, xSleep, 0, microseconds)
}

unsafe extern "C" fn current_time(vfs: *mut sqlite3_vfs, out: *mut f64) -> c_int {
    forward!(vfs, xCurrentTime, SQLITE_ERROR, out)
}

unsafe extern "C" fn get_last_error(
    vfs: *mut sqlite3_vfs,
    size: c_int,
    message: *mut c_char,
) -> c_int {
    forward!(vfs, xGetLastError, 0, size, message)
}

unsafe extern "C" fn current_time_int64(vfs: *mut sqlite3_vfs, out: *mut sqlite3_int64) -> c_int {
    forward!(vfs, xCurrentTimeInt64, SQLITE_ERROR, out)
}

unsafe extern "C" fn set_system_call(
    vfs: *mut sqlite3_vfs,
    name: *const c_char,
    call: sqlite3_syscall_ptr,
) -> c_int {
    forward!(vfs, xSetSystemCall, SQLITE_ERROR, name, call)
}

unsafe extern "C" fn get_system_call(
    vfs: *mut sqlite3_vfs,
    name: *const c_char,
) -> sqlite3_syscall_ptr {
    forward!(vfs, xGetSystemCall, None, name)
}

unsafe extern "C" fn next_system_call(vfs: *mut sqlite3_vfs, name: *const c_char) -> *const c_char {
    forward!(vfs, xNextSystemCall, std::ptr::null(), name)
}
