//! Where C calls Rust: the entry points, the VFSs and their files.
//!
//! Trampolines decode their arguments, tell the safe hooks, and forward to the VFS below. They contain no logic.
//! Everything that could panic runs inside [`guard`], so no panic ever crosses into C.
//!
//! The promises that this room leans on are SQLite's, from its documentation of loadable extensions and of
//! `sqlite3_vfs`: pointers passed to a method are valid for the call, calls on one file are serialised, and memory of
//! `szOsFile` bytes is SQLite's until `xClose`.

// This is one of the rooms where unsafe code may live.
#![allow(unsafe_code)]

mod base;
mod file;
mod reader;
mod twin;
mod vfs;

use c_shim::Api;
use libsqlite3_sys::{SQLITE_ERROR, SQLITE_OK, SQLITE_OK_LOAD_PERMANENTLY, sqlite3};
use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `body`; a panic in it becomes `fallback`.
fn guard<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(fallback)
}

/// Registers the VFSs and the SQL functions; `default` becomes the default VFS. Idempotent.
///
/// # Safety
/// The arguments are those that SQLite passes to an extension entry point.
unsafe fn load(
    db: *mut sqlite3,
    message: *mut *mut c_char,
    table: *mut c_void,
    default: Option<vfs::Kind>,
) -> c_int {
    // SAFETY: SQLite passes its own routine table, which lives as long as the library.
    let api = match unsafe { Api::init(table) } {
        Ok(api) => api,
        Err(refusal) => {
            // SAFETY: SQLite passes its own table and the place for the error message.
            unsafe { Api::explain(table, message, &format!("mycelite: {refusal}")) };
            return SQLITE_ERROR;
        }
    };
    let loaded = guard(
        Err("a defect in mycelite was caught while loading".to_owned()),
        || {
            vfs::register(api, default).map_err(|e| e.to_string())?;
            // SAFETY: `on_open` is an entry point that returns SQLITE_OK; the library stays loaded for good.
            let rc = unsafe {
                api.auto_extension(std::mem::transmute::<EntryPoint, unsafe extern "C" fn()>(
                    on_open,
                ))
            };
            if rc != SQLITE_OK {
                return Err(format!(
                    "cannot register for new connections: SQLite error {rc}"
                ));
            }
            // SAFETY: SQLite passes the connection that loads the extension.
            unsafe { crate::sql::register(db, table) }.map_err(|e| e.to_string())
        },
    );
    match loaded {
        Ok(()) => SQLITE_OK,
        Err(text) => {
            // SAFETY: SQLite passes the place for the error message.
            unsafe { api.set_error_message(message, &format!("mycelite: {text}")) };
            SQLITE_ERROR
        }
    }
}

/// The signature of an extension entry point.
type EntryPoint = unsafe extern "C" fn(*mut sqlite3, *mut *mut c_char, *const c_void) -> c_int;

/// Gives every new connection the SQL functions.
unsafe extern "C" fn on_open(
    db: *mut sqlite3,
    message: *mut *mut c_char,
    table: *const c_void,
) -> c_int {
    // SAFETY: SQLite passes an entry point's arguments.
    unsafe { load_functions(db, message, table.cast_mut()) }
}

/// Registers the SQL functions alone.
///
/// # Safety
/// As for [`load`].
unsafe fn load_functions(db: *mut sqlite3, message: *mut *mut c_char, table: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    let registered = guard(
        Err("a defect in mycelite was caught".to_owned()),
        || unsafe { crate::sql::register(db, table).map_err(|e| e.to_string()) },
    );
    match (registered, Api::get()) {
        (Ok(()), _) => SQLITE_OK,
        (Err(text), Some(api)) => {
            // SAFETY: SQLite passes the place for the error message.
            unsafe { api.set_error_message(message, &format!("mycelite: {text}")) };
            SQLITE_ERROR
        }
        (Err(_), None) => SQLITE_ERROR,
    }
}

/// A loaded library must not be unloaded: VFSs and threads point into it.
fn permanently(rc: c_int) -> c_int {
    if rc == SQLITE_OK {
        SQLITE_OK_LOAD_PERMANENTLY
    } else {
        rc
    }
}

/// `.load ./libmycelite`: registers everything, and makes the writer the default VFS.
///
/// # Safety
/// To be called by SQLite, as an extension's entry point.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_mycelite_init(
    db: *mut sqlite3,
    message: *mut *mut c_char,
    table: *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    permanently(unsafe { load(db, message, table, Some(vfs::Kind::Writer)) })
}

/// `.load ./libmycelite mycelite_writer`: as [`sqlite3_mycelite_init`].
///
/// # Safety
/// To be called by SQLite, as an extension's entry point.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mycelite_writer(
    db: *mut sqlite3,
    message: *mut *mut c_char,
    table: *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    permanently(unsafe { load(db, message, table, Some(vfs::Kind::Writer)) })
}

/// `.load ./libmycelite mycelite_reader`: registers everything, and makes the reader the default VFS.
///
/// # Safety
/// To be called by SQLite, as an extension's entry point.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mycelite_reader(
    db: *mut sqlite3,
    message: *mut *mut c_char,
    table: *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    permanently(unsafe { load(db, message, table, Some(vfs::Kind::Reader)) })
}

/// `.load ./libmycelite mycelite_config`: registers everything; the default VFS stays.
///
/// # Safety
/// To be called by SQLite, as an extension's entry point.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mycelite_config(
    db: *mut sqlite3,
    message: *mut *mut c_char,
    table: *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    permanently(unsafe { load(db, message, table, None) })
}

/// The entry point for a program that links this crate beside its own SQLite: registers everything with that SQLite,
/// and leaves the default VFS as it is. To be passed to `sqlite3_auto_extension`, which takes no other answer than
/// `SQLITE_OK`.
///
/// # Safety
/// To be called by SQLite, as an extension's entry point.
pub unsafe extern "C" fn auto_extension_entry(
    db: *mut sqlite3,
    message: *mut *mut c_char,
    table: *const c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { load(db, message, table.cast_mut(), None) }
}
