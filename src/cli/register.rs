//! The door through which this program's own SQLite gets the extension: the same entry point that a host loads.

// The entry point is C; nothing else in the command line is unsafe.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int};
use std::path::Path;
use std::time::Duration;

use mycelite::error::{Error, ErrorKind, Result};
use rusqlite::auto_extension::register_auto_extension;
use rusqlite::{Connection, OpenFlags, ffi};

use super::image::sqlite_error;

unsafe extern "C" fn entry(
    db: *mut ffi::sqlite3,
    message: *mut *mut c_char,
    table: *const ffi::sqlite3_api_routines,
) -> c_int {
    // SAFETY: SQLite calls an automatic extension with an entry point's arguments.
    unsafe { mycelite::auto_extension_entry(db, message, table.cast()) }
}

/// Registers both VFSs and the SQL functions in this process. May be called again.
pub fn register() -> Result<()> {
    let failed = |error: rusqlite::Error| {
        Error::new(
            ErrorKind::Internal,
            format_args!("registering the extension: {error}"),
        )
    };
    // SAFETY: `entry` is an entry point that answers SQLITE_OK and stays in memory as long as the program.
    unsafe { register_auto_extension(entry) }.map_err(failed)?;
    // The first connection runs it.
    Connection::open_in_memory().map(drop).map_err(failed)
}

/// Opens `db` through the writer VFS as an application would, with further URI parameters.
pub fn open_writer(db: &Path, parameters: &[(&str, &str)]) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    open_with(db, parameters, flags)
}

/// As [`open_writer`], and creates the file if there is none.
pub fn create_writer(db: &Path, parameters: &[(&str, &str)]) -> Result<Connection> {
    let flags = OpenFlags::default();
    open_with(db, parameters, flags)
}

fn open_with(db: &Path, parameters: &[(&str, &str)], flags: OpenFlags) -> Result<Connection> {
    register()?;
    let connection = Connection::open_with_flags(uri(db, parameters)?, flags)
        .map_err(|error| sqlite_error(db, &error))?;
    connection
        .busy_timeout(Duration::from_secs(30))
        .map_err(|error| sqlite_error(db, &error))?;
    Ok(connection)
}

/// `file:` URI of `db` for the writer VFS.
fn uri(db: &Path, parameters: &[(&str, &str)]) -> Result<String> {
    let path = std::path::absolute(db).map_err(|source| Error::io("resolving", db, &source))?;
    let Some(path) = path.to_str() else {
        return Err(Error::new(
            ErrorKind::Usage,
            "the path is not UTF-8, which SQLite needs",
        )
        .at(db.display()));
    };
    let mut uri = format!("file:{}?vfs=mycelite_writer", escaped(path));
    for (key, value) in parameters {
        uri.push_str(&format!("&{}={}", escaped(key), escaped(value)));
    }
    Ok(uri)
}

/// Text with what has a meaning in a URI written as `%XX`.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-~:,".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
