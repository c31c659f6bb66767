//! A plain connection, for the few things that only SQLite itself should do to a database.

use core::ffi::{CStr, c_int};
use std::fmt;
use std::path::Path;
use std::ptr::{NonNull, null, null_mut};

use libsqlite3_sys::{self as sys, sqlite3, sqlite3_stmt};

use crate::api::text;
use crate::filename::{c_path, c_text};
use crate::{Api, Code, OpenFlags, Vfs, raw};

/// A statement that failed: the code, and what SQLite said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlError {
    /// SQLite's extended result code.
    pub code: Code,
    /// SQLite's message, one line.
    pub message: String,
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() {
            write!(f, "{}", self.code)
        } else {
            write!(f, "{} [{}]", self.message, self.code)
        }
    }
}

impl std::error::Error for SqlError {}

impl From<Code> for SqlError {
    fn from(code: Code) -> SqlError {
        SqlError {
            code,
            message: String::new(),
        }
    }
}

/// A connection of the host's SQLite to one database file; closed on drop.
pub struct Connection {
    api: Api,
    db: NonNull<sqlite3>,
}

// SAFETY: a connection may move between threads as long as one at a time uses it (it is not Sync); open() refuses a
// host that was compiled without any mutexes.
unsafe impl Send for Connection {}

impl Connection {
    /// Opens the database file `path` (always a file: neither a URI nor `:memory:`) through a VFS; `None` takes the
    /// platform's, so that nothing of ours sees what is done (see [`Vfs::find`]). `flags` say whether it is read, written
    /// or created. Statements wait up to `busy_timeout_ms` for locks (0: not at all).
    ///
    /// # Errors
    /// What SQLite says; `SQLITE_MISUSE` in a host compiled for one thread only.
    pub fn open(
        api: Api,
        path: &Path,
        vfs: Option<&CStr>,
        flags: OpenFlags,
        busy_timeout_ms: u32,
    ) -> Result<Connection, SqlError> {
        let vfs = Vfs::find(api, vfs)?;
        let path = std::path::absolute(path).map_err(|_| Code::CANTOPEN)?;
        Connection::open_name(
            api,
            &c_path(&path)?,
            Some(vfs.name()),
            flags,
            busy_timeout_ms,
        )
    }

    /// Opens what a `file:` URI names, with the VFS that it names. The rest as in [`Connection::open`].
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub fn open_uri(
        api: Api,
        uri: &str,
        flags: OpenFlags,
        busy_timeout_ms: u32,
    ) -> Result<Connection, SqlError> {
        let flags = OpenFlags(flags.0 | sys::SQLITE_OPEN_URI);
        Connection::open_name(api, &c_text(uri), None, flags, busy_timeout_ms)
    }

    fn open_name(
        api: Api,
        name: &CStr,
        vfs: Option<&CStr>,
        flags: OpenFlags,
        busy_timeout_ms: u32,
    ) -> Result<Connection, SqlError> {
        if !api.threadsafe() {
            return Err(SqlError {
                code: Code::MISUSE,
                message: "this SQLite is compiled for one thread".into(),
            });
        }
        let mut db: *mut sqlite3 = null_mut();
        // SAFETY: an Api exists; both names are NUL-terminated, and no VFS means the default or the URI's; the handle has its place.
        let rc = unsafe {
            let vfs = vfs.map_or(null(), CStr::as_ptr);
            raw::mycelite_shim_open(name.as_ptr(), &raw mut db, flags.0, vfs)
        };
        // Even a failed open gives a handle, to be closed, unless memory ran out.
        let connection = Connection {
            api,
            db: NonNull::new(db).ok_or(Code::NOMEM)?,
        };
        connection.check(rc)?;
        let timeout = c_int::try_from(busy_timeout_ms).unwrap_or(c_int::MAX);
        // SAFETY: the connection is open.
        unsafe {
            connection.check(raw::mycelite_shim_extended_result_codes(
                connection.as_ptr(),
                1,
            ))?;
            connection.check(raw::mycelite_shim_busy_timeout(
                connection.as_ptr(),
                timeout,
            ))?;
        }
        Ok(connection)
    }

    /// The connection as SQLite sees it.
    #[must_use]
    pub fn as_ptr(&self) -> *mut sqlite3 {
        self.db.as_ptr()
    }

    /// The routines it works through.
    #[must_use]
    pub fn api(&self) -> Api {
        self.api
    }

    /// Runs statements, ignoring rows.
    ///
    /// # Errors
    /// The first statement that fails.
    pub fn exec(&self, sql: &str) -> Result<(), SqlError> {
        let sql = c_text(sql);
        // SAFETY: the connection is open; the text is NUL-terminated.
        self.check(unsafe { raw::mycelite_shim_exec(self.as_ptr(), sql.as_ptr()) })
    }

    /// The first column of the first row of one statement as an integer; `None` without a row or for NULL. The
    /// statement runs to its end.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn query_i64(&self, sql: &str) -> Result<Option<i64>, SqlError> {
        self.first_column(sql, |statement| {
            // SAFETY: first_column() calls this with a statement that stands on a row with at least one column.
            unsafe { raw::mycelite_shim_column_int64(statement, 0) }
        })
    }

    /// The same as text.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn query_text(&self, sql: &str) -> Result<Option<String>, SqlError> {
        self.first_column(sql, |statement| {
            // SAFETY: as above.
            unsafe { column_text(statement, 0) }.unwrap_or_default()
        })
    }

    /// All rows of one statement, each column as text; `None` for NULL. For answers that are known to be short.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn rows(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, SqlError> {
        let mut rows = Vec::new();
        self.each_row(sql, |statement| {
            // SAFETY: each_row() calls this with a statement that stands on a row.
            let count = unsafe { raw::mycelite_shim_column_count(statement) };
            // SAFETY: as above; the column is one of those there are.
            let column = |column| unsafe { column_text(statement, column) };
            rows.push((0..count).map(column).collect());
        })?;
        Ok(rows)
    }

    fn first_column<T>(
        &self,
        sql: &str,
        column: impl Fn(*mut sqlite3_stmt) -> T,
    ) -> Result<Option<T>, SqlError> {
        let (mut first, mut rows) = (None, 0u64);
        self.each_row(sql, |statement| {
            rows += 1;
            // SAFETY: each_row() calls this with a statement that stands on a row.
            let there = rows == 1
                && unsafe {
                    raw::mycelite_shim_column_count(statement) > 0
                        && raw::mycelite_shim_column_type(statement, 0) != sys::SQLITE_NULL
                };
            if there {
                first = Some(column(statement));
            }
        })?;
        Ok(first)
    }

    /// Runs a statement to its end and calls `row` while it stands on each of its rows.
    fn each_row(&self, sql: &str, mut row: impl FnMut(*mut sqlite3_stmt)) -> Result<(), SqlError> {
        let sql = c_text(sql);
        let mut handle: *mut sqlite3_stmt = null_mut();
        // SAFETY: the connection is open; the text is NUL-terminated; the handle has its place.
        self.check(unsafe {
            raw::mycelite_shim_prepare(self.as_ptr(), sql.as_ptr(), &raw mut handle)
        })?;
        let _finalised_at_the_end = Statement(handle);
        if handle.is_null() {
            return Ok(());
        }
        loop {
            // SAFETY: the statement is prepared and not finalised.
            match unsafe { raw::mycelite_shim_step(handle) } {
                sys::SQLITE_ROW => row(handle),
                sys::SQLITE_DONE => return Ok(()),
                rc => return Err(self.error(rc)),
            }
        }
    }

    fn check(&self, rc: c_int) -> Result<(), SqlError> {
        if rc == sys::SQLITE_OK {
            Ok(())
        } else {
            Err(self.error(rc))
        }
    }

    /// The connection's last failure, which gave `rc`.
    fn error(&self, rc: c_int) -> SqlError {
        // SAFETY: the connection is open; the message is copied at once.
        let (extended, message) = unsafe {
            (
                raw::mycelite_shim_extended_errcode(self.as_ptr()),
                text(raw::mycelite_shim_errmsg(self.as_ptr())),
            )
        };
        let code = if extended & 0xff == rc & 0xff {
            Code(extended)
        } else {
            Code(rc)
        };
        SqlError {
            code,
            message: message.unwrap_or_default().replace(['\n', '\r'], " "),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: the connection is open, has no statements left, and this is its last use.
        let _ = unsafe { raw::mycelite_shim_close(self.as_ptr()) };
    }
}

/// A column's text; `None` for NULL.
///
/// # Safety
/// The statement stands on a row that has the column.
unsafe fn column_text(statement: *mut sqlite3_stmt, column: c_int) -> Option<String> {
    let mut length: c_int = 0;
    // SAFETY: the caller's promise; the bytes are copied before the statement moves on.
    unsafe {
        if raw::mycelite_shim_column_type(statement, column) == sys::SQLITE_NULL {
            return None;
        }
        let bytes = raw::mycelite_shim_column_text(statement, column, &raw mut length);
        match usize::try_from(length) {
            Ok(length) if !bytes.is_null() => Some(
                String::from_utf8_lossy(std::slice::from_raw_parts(bytes, length)).into_owned(),
            ),
            _ => Some(String::new()),
        }
    }
}

/// Finalises a prepared statement on drop.
struct Statement(*mut sqlite3_stmt);

impl Drop for Statement {
    fn drop(&mut self) {
        // SAFETY: null, or prepared and not finalised yet. Its failure was reported by the step that failed.
        let _ = unsafe { raw::mycelite_shim_finalize(self.0) };
    }
}
