//! The functions of `shim.c`, as declared there.

use core::ffi::{c_char, c_int, c_uchar, c_void};
use libsqlite3_sys::{sqlite3, sqlite3_stmt, sqlite3_vfs};

unsafe extern "C" {
    pub fn mycelite_shim_table_version(table: *const c_void) -> c_int;
    pub fn mycelite_shim_table_mprintf(table: *const c_void, text: *const c_char) -> *mut c_char;
    pub fn mycelite_shim_init(table: *const c_void);
    pub fn mycelite_shim_libversion_number() -> c_int;
    pub fn mycelite_shim_threadsafe() -> c_int;

    pub fn mycelite_shim_log(code: c_int, text: *const c_char);
    pub fn mycelite_shim_mprintf(text: *const c_char) -> *mut c_char;
    pub fn mycelite_shim_free(memory: *mut c_void);

    pub fn mycelite_shim_vfs_find(name: *const c_char) -> *mut sqlite3_vfs;
    pub fn mycelite_shim_vfs_register(vfs: *mut sqlite3_vfs, make_default: c_int) -> c_int;

    pub fn mycelite_shim_auto_extension(entry: unsafe extern "C" fn()) -> c_int;
    pub fn mycelite_shim_filename_database(name: *const c_char) -> *const c_char;
    pub fn mycelite_shim_uri_parameter(name: *const c_char, key: *const c_char) -> *const c_char;
    pub fn mycelite_shim_uri_key(name: *const c_char, n: c_int) -> *const c_char;
    pub fn mycelite_shim_db_filename(db: *mut sqlite3, schema: *const c_char) -> *const c_char;

    pub fn mycelite_shim_vtab_direct_only(db: *mut sqlite3) -> c_int;

    pub fn mycelite_shim_open(
        path: *const c_char,
        db: *mut *mut sqlite3,
        flags: c_int,
        vfs: *const c_char,
    ) -> c_int;
    pub fn mycelite_shim_close(db: *mut sqlite3) -> c_int;
    pub fn mycelite_shim_busy_timeout(db: *mut sqlite3, ms: c_int) -> c_int;
    pub fn mycelite_shim_extended_result_codes(db: *mut sqlite3, on: c_int) -> c_int;
    pub fn mycelite_shim_extended_errcode(db: *mut sqlite3) -> c_int;
    pub fn mycelite_shim_errmsg(db: *mut sqlite3) -> *const c_char;
    pub fn mycelite_shim_exec(db: *mut sqlite3, sql: *const c_char) -> c_int;

    pub fn mycelite_shim_prepare(
        db: *mut sqlite3,
        sql: *const c_char,
        statement: *mut *mut sqlite3_stmt,
    ) -> c_int;
    pub fn mycelite_shim_step(statement: *mut sqlite3_stmt) -> c_int;
    pub fn mycelite_shim_finalize(statement: *mut sqlite3_stmt) -> c_int;
    pub fn mycelite_shim_column_count(statement: *mut sqlite3_stmt) -> c_int;
    pub fn mycelite_shim_column_type(statement: *mut sqlite3_stmt, column: c_int) -> c_int;
    pub fn mycelite_shim_column_int64(statement: *mut sqlite3_stmt, column: c_int) -> i64;
    pub fn mycelite_shim_column_text(
        statement: *mut sqlite3_stmt,
        column: c_int,
        length: *mut c_int,
    ) -> *const c_uchar;
}
