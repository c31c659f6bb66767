//! The routine table: set once, then everything that needs only the table.

use core::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::ptr::NonNull;
use std::sync::OnceLock;

use libsqlite3_sys::{sqlite3, sqlite3_vfs};

use crate::filename::c_text;
use crate::raw;

/// The oldest SQLite that we run in, as `sqlite3_libversion_number()` says it: 3.31.0.
pub const VERSION_MIN: i32 = 3_031_000;

/// URI parameters looked at in one name; SQLite itself has no limit, a sane URI a dozen.
const URI_KEYS_MAX: c_int = 1000;

/// Address of the table in use. Held as a number: it is compared, never followed, here.
static TABLE: OnceLock<usize> = OnceLock::new();

/// Proof that SQLite's routine table is known, and so that its routines may be called.
#[derive(Clone, Copy, Debug)]
pub struct Api(());

/// Why a host was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InitError {
    /// The host passed no routine table: it was compiled without extension support.
    NoTable,
    /// The host is older than [`VERSION_MIN`]; holds its version number.
    TooOld(i32),
    /// Another copy of SQLite in this process uses the extension already; one table is all that can be held.
    OtherHost,
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InitError::NoTable => f.write_str(
                "SQLite passed no routine table (use a build without SQLITE_OMIT_LOAD_EXTENSION)",
            ),
            InitError::TooOld(found) => write!(
                f,
                "SQLite {}.{}.{} is too old: 3.31.0 or later is needed",
                found / 1_000_000,
                found / 1000 % 1000,
                found % 1000
            ),
            InitError::OtherHost => f.write_str(
                "another copy of SQLite in this process has loaded mycelite already (load it into one of them only)",
            ),
        }
    }
}

impl std::error::Error for InitError {}

impl Api {
    /// Believes a routine table, if its SQLite is new enough. Idempotent: every connection of the same SQLite passes
    /// the same table.
    ///
    /// # Errors
    /// See [`InitError`]; its text is fit for the entry point's error message.
    ///
    /// # Safety
    /// `table` is null, or the routine table that SQLite handed to an extension entry point, alive for the rest of
    /// the process.
    pub unsafe fn init(table: *mut c_void) -> Result<Api, InitError> {
        if table.is_null() {
            return Err(InitError::NoTable);
        }
        // SAFETY: the caller vouches for the table; this member is in every version of it.
        let version = unsafe { raw::mycelite_shim_table_version(table) };
        if version < VERSION_MIN {
            return Err(InitError::TooOld(version));
        }
        let used = *TABLE.get_or_init(|| {
            // SAFETY: as above; OnceLock runs this once, before any reader of the pointer can hold an Api.
            unsafe { raw::mycelite_shim_init(table) };
            table.addr()
        });
        if used == table.addr() {
            Ok(Api(()))
        } else {
            Err(InitError::OtherHost)
        }
    }

    /// Tells a host why it was refused, by its own table, which works in any version. Does nothing if either pointer is
    /// null.
    ///
    /// # Safety
    /// `table` is null or the routine table that SQLite handed to an entry point; `pz` is null or points to a place for
    /// one pointer, whose old value needs no freeing.
    pub unsafe fn explain(table: *mut c_void, pz: *mut *mut c_char, message: &str) {
        if !table.is_null() && !pz.is_null() {
            let text = c_text(message);
            // SAFETY: the caller's promise; the text is NUL-terminated and only an argument of "%s".
            unsafe { *pz = raw::mycelite_shim_table_mprintf(table, text.as_ptr()) };
        }
    }

    /// The table, if an entry point has set it.
    #[must_use]
    pub fn get() -> Option<Api> {
        TABLE.get().map(|_| Api(()))
    }

    /// `sqlite3_libversion_number()` of the host, such as 3040001.
    #[must_use]
    pub fn libversion_number(self) -> i32 {
        // SAFETY: an Api exists, so the table is set.
        unsafe { raw::mycelite_shim_libversion_number() }
    }

    /// Whether the host was compiled for use from several threads (`sqlite3_threadsafe()`).
    #[must_use]
    pub fn threadsafe(self) -> bool {
        // SAFETY: an Api exists, so the table is set.
        unsafe { raw::mycelite_shim_threadsafe() != 0 }
    }

    /// Writes one line to SQLite's error log (`sqlite3_log`). `code` is a result code, such as
    /// [`crate::Code::WARNING`]'s.
    pub fn log(self, code: i32, message: &str) {
        let text = c_text(message);
        // SAFETY: an Api exists; the text is NUL-terminated and only an argument of "%s".
        unsafe { raw::mycelite_shim_log(code, text.as_ptr()) }
    }

    /// A copy of `text` in SQLite's memory, for places where SQLite frees it (error messages, `xFileControl` answers).
    /// Null when out of memory.
    #[must_use]
    pub fn mprintf(self, text: &str) -> *mut c_char {
        let text = c_text(text);
        // SAFETY: an Api exists; the text is NUL-terminated and only an argument of "%s".
        unsafe { raw::mycelite_shim_mprintf(text.as_ptr()) }
    }

    /// `sqlite3_free`.
    ///
    /// # Safety
    /// `memory` is null or came from SQLite's allocator, and nobody uses it any more.
    pub unsafe fn free(self, memory: *mut c_void) {
        // SAFETY: the caller's promise.
        unsafe { raw::mycelite_shim_free(memory) }
    }

    /// Stores an error message where SQLite will take and free it. Does nothing if `pz` is null.
    ///
    /// # Safety
    /// `pz` is null or points to a place for one pointer, whose old value needs no freeing.
    pub unsafe fn set_error_message(self, pz: *mut *mut c_char, message: &str) {
        if !pz.is_null() {
            // SAFETY: the caller says that the place is writable.
            unsafe { *pz = self.mprintf(message) };
        }
    }

    /// `sqlite3_vfs_find`; `None` asks for the default VFS, which may be ours.
    #[must_use]
    pub fn vfs_find(self, name: Option<&CStr>) -> Option<NonNull<sqlite3_vfs>> {
        let name = name.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: an Api exists; the name is null or NUL-terminated.
        NonNull::new(unsafe { raw::mycelite_shim_vfs_find(name) })
    }

    /// `sqlite3_vfs_register`; gives its result code.
    ///
    /// # Safety
    /// `vfs` points to a complete VFS that stays alive and in place while it is registered.
    pub unsafe fn vfs_register(self, vfs: *mut sqlite3_vfs, make_default: bool) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { raw::mycelite_shim_vfs_register(vfs, c_int::from(make_default)) }
    }

    /// `sqlite3_auto_extension`: `entry` runs for every connection opened from now on; gives the result code.
    ///
    /// # Safety
    /// `entry` has the signature of an extension entry point behind the cast, stays loaded for the rest of the process,
    /// and returns `SQLITE_OK` on success.
    pub unsafe fn auto_extension(self, entry: unsafe extern "C" fn()) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { raw::mycelite_shim_auto_extension(entry) }
    }

    /// The value of a URI parameter of the database that `name` belongs to; `None` if it was not given.
    ///
    /// # Safety
    /// `name` is null, or a name that SQLite passed to `xOpen` of a main database, rollback journal or WAL (or got from
    /// `sqlite3_db_filename`), still alive.
    #[must_use]
    pub unsafe fn uri_parameter(self, name: *const c_char, key: &CStr) -> Option<String> {
        // SAFETY: the caller's promise; before 3.32 only the database's own name finds the parameters, so ask with it.
        unsafe {
            let database = self.filename_database(name);
            if database.is_null() {
                return None;
            }
            text(raw::mycelite_shim_uri_parameter(database, key.as_ptr()))
        }
    }

    /// The names of all URI parameters of the database that `name` belongs to, in order, at most 1000.
    ///
    /// # Safety
    /// As for [`Api::uri_parameter`].
    #[must_use]
    pub unsafe fn uri_keys(self, name: *const c_char) -> Vec<String> {
        // SAFETY: the caller's promise.
        let database = unsafe { self.filename_database(name) };
        if database.is_null() {
            return Vec::new();
        }
        (0..URI_KEYS_MAX)
            // SAFETY: as above; past the last parameter the routine gives null.
            .map_while(|n| unsafe { text(raw::mycelite_shim_uri_key(database, n)) })
            .collect()
    }

    /// The name of the database that a journal's or WAL's name belongs to (the same pointer that `xOpen` of the
    /// database got); null for null.
    ///
    /// # Safety
    /// As for [`Api::uri_parameter`].
    #[must_use]
    pub unsafe fn filename_database(self, name: *const c_char) -> *const c_char {
        if name.is_null() {
            return name;
        }
        // SAFETY: the caller's promise: the name lies in SQLite's buffer, behind four zero bytes.
        unsafe { raw::mycelite_shim_filename_database(name) }
    }

    /// Forbids the use of the virtual table that is being connected from inside a schema (triggers, views), where a
    /// database from a stranger could use it. Gives a result code.
    ///
    /// # Safety
    /// Called inside a module's `xConnect`, with the connection that it was called for.
    #[must_use]
    pub unsafe fn vtab_direct_only(self, db: *mut sqlite3) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { raw::mycelite_shim_vtab_direct_only(db) }
    }

    /// The file of an attached database: `None` if there is no such schema (or `temp`, unused), empty if it is in
    /// memory or temporary.
    ///
    /// # Safety
    /// `db` is an open connection, used by no other thread at this moment.
    #[must_use]
    pub unsafe fn db_filename(self, db: *mut sqlite3, schema: &str) -> Option<String> {
        let schema = c_text(schema);
        // SAFETY: the caller's promise; the answer is copied at once.
        unsafe { text(raw::mycelite_shim_db_filename(db, schema.as_ptr())) }
    }

    /// The address of that name, which is the one that SQLite passed to `xOpen`; 0 for none.
    ///
    /// # Safety
    /// As for [`Api::db_filename`].
    #[must_use]
    pub unsafe fn db_filename_address(self, db: *mut sqlite3, schema: &str) -> usize {
        let schema = c_text(schema);
        // SAFETY: the caller's promise; nothing is read through the answer.
        unsafe { raw::mycelite_shim_db_filename(db, schema.as_ptr()) }.addr()
    }
}

/// Copies C text; `None` for null. Bytes that are no UTF-8 are replaced.
///
/// # Safety
/// `z` is null or NUL-terminated and alive.
pub(crate) unsafe fn text(z: *const c_char) -> Option<String> {
    if z.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    Some(unsafe { CStr::from_ptr(z) }.to_string_lossy().into_owned())
}
