//! The types of `sqlite3ext.h`, so that the crate sqlite-loadable builds without libclang. Types and constants only:
//! no function is declared here, so nothing in it can link a SQLite.
//!
//! Made by bindgen 0.60.1 from the header of SQLite 3.39.4 (the one in the crate sqlite3ext-sys 0.0.1, which this crate
//! replaces). To make it anew, run in a scratch crate, with libclang installed, and put these lines on top again:
//!
//! ```text
//! bindgen::Builder::default()
//!     .header("sqlite3ext.h")
//!     .allowlist_type("sqlite3_api_routines")
//!     .allowlist_var("SQLITE_(OK|INTEGER|FLOAT|TEXT|BLOB|NULL|UTF8|UTF16|UTF16LE|UTF16BE|DETERMINISTIC|DIRECTONLY|SUBTYPE|INNOCUOUS)")
//!     .blocklist_type("va_list|__va_list_tag|__builtin_va_list|__gnuc_va_list|sqlite3_(file|vfs|io_methods)")
//!     .ctypes_prefix("c")
//!     .layout_tests(false)
//!     .generate_comments(false)
//!     .rustfmt_configuration_file(..)       // max_width = 120, use_small_heuristics = "Max"
//!     .generate()
//! ```
//!
//! The blocked types appear behind pointers only; opaque here, they are the same on every platform.

use std::os::raw as c;

#[repr(C)]
pub struct __va_list_tag {
    _unused: [u8; 0],
}
#[repr(C)]
pub struct sqlite3_file {
    _unused: [u8; 0],
}
#[repr(C)]
pub struct sqlite3_vfs {
    _unused: [u8; 0],
}

pub const SQLITE_OK: u32 = 0;
pub const SQLITE_INTEGER: u32 = 1;
pub const SQLITE_FLOAT: u32 = 2;
pub const SQLITE_BLOB: u32 = 4;
pub const SQLITE_NULL: u32 = 5;
pub const SQLITE_TEXT: u32 = 3;
pub const SQLITE_UTF8: u32 = 1;
pub const SQLITE_UTF16LE: u32 = 2;
pub const SQLITE_UTF16BE: u32 = 3;
pub const SQLITE_UTF16: u32 = 4;
pub const SQLITE_DETERMINISTIC: u32 = 2048;
pub const SQLITE_DIRECTONLY: u32 = 524288;
pub const SQLITE_SUBTYPE: u32 = 1048576;
pub const SQLITE_INNOCUOUS: u32 = 2097152;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sqlite3 {
    _unused: [u8; 0],
}
pub type sqlite_int64 = c::c_longlong;
pub type sqlite_uint64 = c::c_ulonglong;
pub type sqlite3_int64 = sqlite_int64;
pub type sqlite3_uint64 = sqlite_uint64;
pub type sqlite3_callback = ::std::option::Option<
    unsafe extern "C" fn(
        arg1: *mut c::c_void,
        arg2: c::c_int,
        arg3: *mut *mut c::c_char,
        arg4: *mut *mut c::c_char,
    ) -> c::c_int,
>;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sqlite3_mutex {
    _unused: [u8; 0],
}
pub type sqlite3_syscall_ptr = ::std::option::Option<unsafe extern "C" fn()>;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sqlite3_stmt {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sqlite3_value {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sqlite3_context {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sqlite3_module {
    pub iVersion: c::c_int,
    pub xCreate: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            pAux: *mut c::c_void,
            argc: c::c_int,
            argv: *const *const c::c_char,
            ppVTab: *mut *mut sqlite3_vtab,
            arg2: *mut *mut c::c_char,
        ) -> c::c_int,
    >,
    pub xConnect: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            pAux: *mut c::c_void,
            argc: c::c_int,
            argv: *const *const c::c_char,
            ppVTab: *mut *mut sqlite3_vtab,
            arg2: *mut *mut c::c_char,
        ) -> c::c_int,
    >,
    pub xBestIndex: ::std::option::Option<
        unsafe extern "C" fn(pVTab: *mut sqlite3_vtab, arg1: *mut sqlite3_index_info) -> c::c_int,
    >,
    pub xDisconnect: ::std::option::Option<unsafe extern "C" fn(pVTab: *mut sqlite3_vtab) -> c::c_int>,
    pub xDestroy: ::std::option::Option<unsafe extern "C" fn(pVTab: *mut sqlite3_vtab) -> c::c_int>,
    pub xOpen: ::std::option::Option<
        unsafe extern "C" fn(pVTab: *mut sqlite3_vtab, ppCursor: *mut *mut sqlite3_vtab_cursor) -> c::c_int,
    >,
    pub xClose: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_vtab_cursor) -> c::c_int>,
    pub xFilter: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3_vtab_cursor,
            idxNum: c::c_int,
            idxStr: *const c::c_char,
            argc: c::c_int,
            argv: *mut *mut sqlite3_value,
        ) -> c::c_int,
    >,
    pub xNext: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_vtab_cursor) -> c::c_int>,
    pub xEof: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_vtab_cursor) -> c::c_int>,
    pub xColumn: ::std::option::Option<
        unsafe extern "C" fn(arg1: *mut sqlite3_vtab_cursor, arg2: *mut sqlite3_context, arg3: c::c_int) -> c::c_int,
    >,
    pub xRowid: ::std::option::Option<
        unsafe extern "C" fn(arg1: *mut sqlite3_vtab_cursor, pRowid: *mut sqlite3_int64) -> c::c_int,
    >,
    pub xUpdate: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3_vtab,
            arg2: c::c_int,
            arg3: *mut *mut sqlite3_value,
            arg4: *mut sqlite3_int64,
        ) -> c::c_int,
    >,
    pub xBegin: ::std::option::Option<unsafe extern "C" fn(pVTab: *mut sqlite3_vtab) -> c::c_int>,
    pub xSync: ::std::option::Option<unsafe extern "C" fn(pVTab: *mut sqlite3_vtab) -> c::c_int>,
    pub xCommit: ::std::option::Option<unsafe extern "C" fn(pVTab: *mut sqlite3_vtab) -> c::c_int>,
    pub xRollback: ::std::option::Option<unsafe extern "C" fn(pVTab: *mut sqlite3_vtab) -> c::c_int>,
    pub xFindFunction: ::std::option::Option<
        unsafe extern "C" fn(
            pVtab: *mut sqlite3_vtab,
            nArg: c::c_int,
            zName: *const c::c_char,
            pxFunc: *mut ::std::option::Option<
                unsafe extern "C" fn(arg1: *mut sqlite3_context, arg2: c::c_int, arg3: *mut *mut sqlite3_value),
            >,
            ppArg: *mut *mut c::c_void,
        ) -> c::c_int,
    >,
    pub xRename:
        ::std::option::Option<unsafe extern "C" fn(pVtab: *mut sqlite3_vtab, zNew: *const c::c_char) -> c::c_int>,
    pub xSavepoint: ::std::option::Option<unsafe extern "C" fn(pVTab: *mut sqlite3_vtab, arg1: c::c_int) -> c::c_int>,
    pub xRelease: ::std::option::Option<unsafe extern "C" fn(pVTab: *mut sqlite3_vtab, arg1: c::c_int) -> c::c_int>,
    pub xRollbackTo: ::std::option::Option<unsafe extern "C" fn(pVTab: *mut sqlite3_vtab, arg1: c::c_int) -> c::c_int>,
    pub xShadowName: ::std::option::Option<unsafe extern "C" fn(arg1: *const c::c_char) -> c::c_int>,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sqlite3_index_info {
    pub nConstraint: c::c_int,
    pub aConstraint: *mut sqlite3_index_info_sqlite3_index_constraint,
    pub nOrderBy: c::c_int,
    pub aOrderBy: *mut sqlite3_index_info_sqlite3_index_orderby,
    pub aConstraintUsage: *mut sqlite3_index_info_sqlite3_index_constraint_usage,
    pub idxNum: c::c_int,
    pub idxStr: *mut c::c_char,
    pub needToFreeIdxStr: c::c_int,
    pub orderByConsumed: c::c_int,
    pub estimatedCost: f64,
    pub estimatedRows: sqlite3_int64,
    pub idxFlags: c::c_int,
    pub colUsed: sqlite3_uint64,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sqlite3_index_info_sqlite3_index_constraint {
    pub iColumn: c::c_int,
    pub op: c::c_uchar,
    pub usable: c::c_uchar,
    pub iTermOffset: c::c_int,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sqlite3_index_info_sqlite3_index_orderby {
    pub iColumn: c::c_int,
    pub desc: c::c_uchar,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sqlite3_index_info_sqlite3_index_constraint_usage {
    pub argvIndex: c::c_int,
    pub omit: c::c_uchar,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sqlite3_vtab {
    pub pModule: *const sqlite3_module,
    pub nRef: c::c_int,
    pub zErrMsg: *mut c::c_char,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sqlite3_vtab_cursor {
    pub pVtab: *mut sqlite3_vtab,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sqlite3_blob {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sqlite3_str {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sqlite3_backup {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sqlite3_api_routines {
    pub aggregate_context:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context, nBytes: c::c_int) -> *mut c::c_void>,
    pub aggregate_count: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context) -> c::c_int>,
    pub bind_blob: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3_stmt,
            arg2: c::c_int,
            arg3: *const c::c_void,
            n: c::c_int,
            arg4: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void)>,
        ) -> c::c_int,
    >,
    pub bind_double:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, arg2: c::c_int, arg3: f64) -> c::c_int>,
    pub bind_int: ::std::option::Option<
        unsafe extern "C" fn(arg1: *mut sqlite3_stmt, arg2: c::c_int, arg3: c::c_int) -> c::c_int,
    >,
    pub bind_int64: ::std::option::Option<
        unsafe extern "C" fn(arg1: *mut sqlite3_stmt, arg2: c::c_int, arg3: sqlite_int64) -> c::c_int,
    >,
    pub bind_null: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, arg2: c::c_int) -> c::c_int>,
    pub bind_parameter_count: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt) -> c::c_int>,
    pub bind_parameter_index:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, zName: *const c::c_char) -> c::c_int>,
    pub bind_parameter_name:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, arg2: c::c_int) -> *const c::c_char>,
    pub bind_text: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3_stmt,
            arg2: c::c_int,
            arg3: *const c::c_char,
            n: c::c_int,
            arg4: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void)>,
        ) -> c::c_int,
    >,
    pub bind_text16: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3_stmt,
            arg2: c::c_int,
            arg3: *const c::c_void,
            arg4: c::c_int,
            arg5: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void)>,
        ) -> c::c_int,
    >,
    pub bind_value: ::std::option::Option<
        unsafe extern "C" fn(arg1: *mut sqlite3_stmt, arg2: c::c_int, arg3: *const sqlite3_value) -> c::c_int,
    >,
    pub busy_handler: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void, arg2: c::c_int) -> c::c_int>,
            arg3: *mut c::c_void,
        ) -> c::c_int,
    >,
    pub busy_timeout: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3, ms: c::c_int) -> c::c_int>,
    pub changes: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3) -> c::c_int>,
    pub close: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3) -> c::c_int>,
    pub collation_needed: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *mut c::c_void,
            arg3: ::std::option::Option<
                unsafe extern "C" fn(
                    arg1: *mut c::c_void,
                    arg2: *mut sqlite3,
                    eTextRep: c::c_int,
                    arg3: *const c::c_char,
                ),
            >,
        ) -> c::c_int,
    >,
    pub collation_needed16: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *mut c::c_void,
            arg3: ::std::option::Option<
                unsafe extern "C" fn(
                    arg1: *mut c::c_void,
                    arg2: *mut sqlite3,
                    eTextRep: c::c_int,
                    arg3: *const c::c_void,
                ),
            >,
        ) -> c::c_int,
    >,
    pub column_blob:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, iCol: c::c_int) -> *const c::c_void>,
    pub column_bytes: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, iCol: c::c_int) -> c::c_int>,
    pub column_bytes16:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, iCol: c::c_int) -> c::c_int>,
    pub column_count: ::std::option::Option<unsafe extern "C" fn(pStmt: *mut sqlite3_stmt) -> c::c_int>,
    pub column_database_name:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, arg2: c::c_int) -> *const c::c_char>,
    pub column_database_name16:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, arg2: c::c_int) -> *const c::c_void>,
    pub column_decltype:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, i: c::c_int) -> *const c::c_char>,
    pub column_decltype16:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, arg2: c::c_int) -> *const c::c_void>,
    pub column_double: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, iCol: c::c_int) -> f64>,
    pub column_int: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, iCol: c::c_int) -> c::c_int>,
    pub column_int64:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, iCol: c::c_int) -> sqlite_int64>,
    pub column_name:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, arg2: c::c_int) -> *const c::c_char>,
    pub column_name16:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, arg2: c::c_int) -> *const c::c_void>,
    pub column_origin_name:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, arg2: c::c_int) -> *const c::c_char>,
    pub column_origin_name16:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, arg2: c::c_int) -> *const c::c_void>,
    pub column_table_name:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, arg2: c::c_int) -> *const c::c_char>,
    pub column_table_name16:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, arg2: c::c_int) -> *const c::c_void>,
    pub column_text:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, iCol: c::c_int) -> *const c::c_uchar>,
    pub column_text16:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, iCol: c::c_int) -> *const c::c_void>,
    pub column_type: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, iCol: c::c_int) -> c::c_int>,
    pub column_value:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, iCol: c::c_int) -> *mut sqlite3_value>,
    pub commit_hook: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void) -> c::c_int>,
            arg3: *mut c::c_void,
        ) -> *mut c::c_void,
    >,
    pub complete: ::std::option::Option<unsafe extern "C" fn(sql: *const c::c_char) -> c::c_int>,
    pub complete16: ::std::option::Option<unsafe extern "C" fn(sql: *const c::c_void) -> c::c_int>,
    pub create_collation: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_char,
            arg3: c::c_int,
            arg4: *mut c::c_void,
            arg5: ::std::option::Option<
                unsafe extern "C" fn(
                    arg1: *mut c::c_void,
                    arg2: c::c_int,
                    arg3: *const c::c_void,
                    arg4: c::c_int,
                    arg5: *const c::c_void,
                ) -> c::c_int,
            >,
        ) -> c::c_int,
    >,
    pub create_collation16: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_void,
            arg3: c::c_int,
            arg4: *mut c::c_void,
            arg5: ::std::option::Option<
                unsafe extern "C" fn(
                    arg1: *mut c::c_void,
                    arg2: c::c_int,
                    arg3: *const c::c_void,
                    arg4: c::c_int,
                    arg5: *const c::c_void,
                ) -> c::c_int,
            >,
        ) -> c::c_int,
    >,
    pub create_function: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_char,
            arg3: c::c_int,
            arg4: c::c_int,
            arg5: *mut c::c_void,
            xFunc: ::std::option::Option<
                unsafe extern "C" fn(arg1: *mut sqlite3_context, arg2: c::c_int, arg3: *mut *mut sqlite3_value),
            >,
            xStep: ::std::option::Option<
                unsafe extern "C" fn(arg1: *mut sqlite3_context, arg2: c::c_int, arg3: *mut *mut sqlite3_value),
            >,
            xFinal: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context)>,
        ) -> c::c_int,
    >,
    pub create_function16: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_void,
            arg3: c::c_int,
            arg4: c::c_int,
            arg5: *mut c::c_void,
            xFunc: ::std::option::Option<
                unsafe extern "C" fn(arg1: *mut sqlite3_context, arg2: c::c_int, arg3: *mut *mut sqlite3_value),
            >,
            xStep: ::std::option::Option<
                unsafe extern "C" fn(arg1: *mut sqlite3_context, arg2: c::c_int, arg3: *mut *mut sqlite3_value),
            >,
            xFinal: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context)>,
        ) -> c::c_int,
    >,
    pub create_module: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_char,
            arg3: *const sqlite3_module,
            arg4: *mut c::c_void,
        ) -> c::c_int,
    >,
    pub data_count: ::std::option::Option<unsafe extern "C" fn(pStmt: *mut sqlite3_stmt) -> c::c_int>,
    pub db_handle: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt) -> *mut sqlite3>,
    pub declare_vtab:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3, arg2: *const c::c_char) -> c::c_int>,
    pub enable_shared_cache: ::std::option::Option<unsafe extern "C" fn(arg1: c::c_int) -> c::c_int>,
    pub errcode: ::std::option::Option<unsafe extern "C" fn(db: *mut sqlite3) -> c::c_int>,
    pub errmsg: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3) -> *const c::c_char>,
    pub errmsg16: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3) -> *const c::c_void>,
    pub exec: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_char,
            arg3: sqlite3_callback,
            arg4: *mut c::c_void,
            arg5: *mut *mut c::c_char,
        ) -> c::c_int,
    >,
    pub expired: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt) -> c::c_int>,
    pub finalize: ::std::option::Option<unsafe extern "C" fn(pStmt: *mut sqlite3_stmt) -> c::c_int>,
    pub free: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void)>,
    pub free_table: ::std::option::Option<unsafe extern "C" fn(result: *mut *mut c::c_char)>,
    pub get_autocommit: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3) -> c::c_int>,
    pub get_auxdata:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context, arg2: c::c_int) -> *mut c::c_void>,
    pub get_table: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_char,
            arg3: *mut *mut *mut c::c_char,
            arg4: *mut c::c_int,
            arg5: *mut c::c_int,
            arg6: *mut *mut c::c_char,
        ) -> c::c_int,
    >,
    pub global_recover: ::std::option::Option<unsafe extern "C" fn() -> c::c_int>,
    pub interruptx: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3)>,
    pub last_insert_rowid: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3) -> sqlite_int64>,
    pub libversion: ::std::option::Option<unsafe extern "C" fn() -> *const c::c_char>,
    pub libversion_number: ::std::option::Option<unsafe extern "C" fn() -> c::c_int>,
    pub malloc: ::std::option::Option<unsafe extern "C" fn(arg1: c::c_int) -> *mut c::c_void>,
    pub mprintf: ::std::option::Option<unsafe extern "C" fn(arg1: *const c::c_char, ...) -> *mut c::c_char>,
    pub open: ::std::option::Option<unsafe extern "C" fn(arg1: *const c::c_char, arg2: *mut *mut sqlite3) -> c::c_int>,
    pub open16:
        ::std::option::Option<unsafe extern "C" fn(arg1: *const c::c_void, arg2: *mut *mut sqlite3) -> c::c_int>,
    pub prepare: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_char,
            arg3: c::c_int,
            arg4: *mut *mut sqlite3_stmt,
            arg5: *mut *const c::c_char,
        ) -> c::c_int,
    >,
    pub prepare16: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_void,
            arg3: c::c_int,
            arg4: *mut *mut sqlite3_stmt,
            arg5: *mut *const c::c_void,
        ) -> c::c_int,
    >,
    pub profile: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: ::std::option::Option<
                unsafe extern "C" fn(arg1: *mut c::c_void, arg2: *const c::c_char, arg3: sqlite_uint64),
            >,
            arg3: *mut c::c_void,
        ) -> *mut c::c_void,
    >,
    pub progress_handler: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: c::c_int,
            arg3: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void) -> c::c_int>,
            arg4: *mut c::c_void,
        ),
    >,
    pub realloc: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void, arg2: c::c_int) -> *mut c::c_void>,
    pub reset: ::std::option::Option<unsafe extern "C" fn(pStmt: *mut sqlite3_stmt) -> c::c_int>,
    pub result_blob: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3_context,
            arg2: *const c::c_void,
            arg3: c::c_int,
            arg4: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void)>,
        ),
    >,
    pub result_double: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context, arg2: f64)>,
    pub result_error:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context, arg2: *const c::c_char, arg3: c::c_int)>,
    pub result_error16:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context, arg2: *const c::c_void, arg3: c::c_int)>,
    pub result_int: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context, arg2: c::c_int)>,
    pub result_int64: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context, arg2: sqlite_int64)>,
    pub result_null: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context)>,
    pub result_text: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3_context,
            arg2: *const c::c_char,
            arg3: c::c_int,
            arg4: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void)>,
        ),
    >,
    pub result_text16: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3_context,
            arg2: *const c::c_void,
            arg3: c::c_int,
            arg4: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void)>,
        ),
    >,
    pub result_text16be: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3_context,
            arg2: *const c::c_void,
            arg3: c::c_int,
            arg4: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void)>,
        ),
    >,
    pub result_text16le: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3_context,
            arg2: *const c::c_void,
            arg3: c::c_int,
            arg4: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void)>,
        ),
    >,
    pub result_value: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context, arg2: *mut sqlite3_value)>,
    pub rollback_hook: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void)>,
            arg3: *mut c::c_void,
        ) -> *mut c::c_void,
    >,
    pub set_authorizer: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: ::std::option::Option<
                unsafe extern "C" fn(
                    arg1: *mut c::c_void,
                    arg2: c::c_int,
                    arg3: *const c::c_char,
                    arg4: *const c::c_char,
                    arg5: *const c::c_char,
                    arg6: *const c::c_char,
                ) -> c::c_int,
            >,
            arg3: *mut c::c_void,
        ) -> c::c_int,
    >,
    pub set_auxdata: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3_context,
            arg2: c::c_int,
            arg3: *mut c::c_void,
            arg4: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void)>,
        ),
    >,
    pub xsnprintf: ::std::option::Option<
        unsafe extern "C" fn(arg1: c::c_int, arg2: *mut c::c_char, arg3: *const c::c_char, ...) -> *mut c::c_char,
    >,
    pub step: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt) -> c::c_int>,
    pub table_column_metadata: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_char,
            arg3: *const c::c_char,
            arg4: *const c::c_char,
            arg5: *mut *const c::c_char,
            arg6: *mut *const c::c_char,
            arg7: *mut c::c_int,
            arg8: *mut c::c_int,
            arg9: *mut c::c_int,
        ) -> c::c_int,
    >,
    pub thread_cleanup: ::std::option::Option<unsafe extern "C" fn()>,
    pub total_changes: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3) -> c::c_int>,
    pub trace: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            xTrace: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void, arg2: *const c::c_char)>,
            arg2: *mut c::c_void,
        ) -> *mut c::c_void,
    >,
    pub transfer_bindings:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt, arg2: *mut sqlite3_stmt) -> c::c_int>,
    pub update_hook: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: ::std::option::Option<
                unsafe extern "C" fn(
                    arg1: *mut c::c_void,
                    arg2: c::c_int,
                    arg3: *const c::c_char,
                    arg4: *const c::c_char,
                    arg5: sqlite_int64,
                ),
            >,
            arg3: *mut c::c_void,
        ) -> *mut c::c_void,
    >,
    pub user_data: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context) -> *mut c::c_void>,
    pub value_blob: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_value) -> *const c::c_void>,
    pub value_bytes: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_value) -> c::c_int>,
    pub value_bytes16: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_value) -> c::c_int>,
    pub value_double: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_value) -> f64>,
    pub value_int: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_value) -> c::c_int>,
    pub value_int64: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_value) -> sqlite_int64>,
    pub value_numeric_type: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_value) -> c::c_int>,
    pub value_text: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_value) -> *const c::c_uchar>,
    pub value_text16: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_value) -> *const c::c_void>,
    pub value_text16be: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_value) -> *const c::c_void>,
    pub value_text16le: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_value) -> *const c::c_void>,
    pub value_type: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_value) -> c::c_int>,
    pub vmprintf:
        ::std::option::Option<unsafe extern "C" fn(arg1: *const c::c_char, arg2: *mut __va_list_tag) -> *mut c::c_char>,
    pub overload_function: ::std::option::Option<
        unsafe extern "C" fn(arg1: *mut sqlite3, zFuncName: *const c::c_char, nArg: c::c_int) -> c::c_int,
    >,
    pub prepare_v2: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_char,
            arg3: c::c_int,
            arg4: *mut *mut sqlite3_stmt,
            arg5: *mut *const c::c_char,
        ) -> c::c_int,
    >,
    pub prepare16_v2: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_void,
            arg3: c::c_int,
            arg4: *mut *mut sqlite3_stmt,
            arg5: *mut *const c::c_void,
        ) -> c::c_int,
    >,
    pub clear_bindings: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt) -> c::c_int>,
    pub create_module_v2: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_char,
            arg3: *const sqlite3_module,
            arg4: *mut c::c_void,
            xDestroy: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void)>,
        ) -> c::c_int,
    >,
    pub bind_zeroblob: ::std::option::Option<
        unsafe extern "C" fn(arg1: *mut sqlite3_stmt, arg2: c::c_int, arg3: c::c_int) -> c::c_int,
    >,
    pub blob_bytes: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_blob) -> c::c_int>,
    pub blob_close: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_blob) -> c::c_int>,
    pub blob_open: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_char,
            arg3: *const c::c_char,
            arg4: *const c::c_char,
            arg5: sqlite3_int64,
            arg6: c::c_int,
            arg7: *mut *mut sqlite3_blob,
        ) -> c::c_int,
    >,
    pub blob_read: ::std::option::Option<
        unsafe extern "C" fn(arg1: *mut sqlite3_blob, arg2: *mut c::c_void, arg3: c::c_int, arg4: c::c_int) -> c::c_int,
    >,
    pub blob_write: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3_blob,
            arg2: *const c::c_void,
            arg3: c::c_int,
            arg4: c::c_int,
        ) -> c::c_int,
    >,
    pub create_collation_v2: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_char,
            arg3: c::c_int,
            arg4: *mut c::c_void,
            arg5: ::std::option::Option<
                unsafe extern "C" fn(
                    arg1: *mut c::c_void,
                    arg2: c::c_int,
                    arg3: *const c::c_void,
                    arg4: c::c_int,
                    arg5: *const c::c_void,
                ) -> c::c_int,
            >,
            arg6: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void)>,
        ) -> c::c_int,
    >,
    pub file_control: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_char,
            arg3: c::c_int,
            arg4: *mut c::c_void,
        ) -> c::c_int,
    >,
    pub memory_highwater: ::std::option::Option<unsafe extern "C" fn(arg1: c::c_int) -> sqlite3_int64>,
    pub memory_used: ::std::option::Option<unsafe extern "C" fn() -> sqlite3_int64>,
    pub mutex_alloc: ::std::option::Option<unsafe extern "C" fn(arg1: c::c_int) -> *mut sqlite3_mutex>,
    pub mutex_enter: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_mutex)>,
    pub mutex_free: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_mutex)>,
    pub mutex_leave: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_mutex)>,
    pub mutex_try: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_mutex) -> c::c_int>,
    pub open_v2: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *const c::c_char,
            arg2: *mut *mut sqlite3,
            arg3: c::c_int,
            arg4: *const c::c_char,
        ) -> c::c_int,
    >,
    pub release_memory: ::std::option::Option<unsafe extern "C" fn(arg1: c::c_int) -> c::c_int>,
    pub result_error_nomem: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context)>,
    pub result_error_toobig: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context)>,
    pub sleep: ::std::option::Option<unsafe extern "C" fn(arg1: c::c_int) -> c::c_int>,
    pub soft_heap_limit: ::std::option::Option<unsafe extern "C" fn(arg1: c::c_int)>,
    pub vfs_find: ::std::option::Option<unsafe extern "C" fn(arg1: *const c::c_char) -> *mut sqlite3_vfs>,
    pub vfs_register: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_vfs, arg2: c::c_int) -> c::c_int>,
    pub vfs_unregister: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_vfs) -> c::c_int>,
    pub xthreadsafe: ::std::option::Option<unsafe extern "C" fn() -> c::c_int>,
    pub result_zeroblob: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context, arg2: c::c_int)>,
    pub result_error_code: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context, arg2: c::c_int)>,
    pub test_control: ::std::option::Option<unsafe extern "C" fn(arg1: c::c_int, ...) -> c::c_int>,
    pub randomness: ::std::option::Option<unsafe extern "C" fn(arg1: c::c_int, arg2: *mut c::c_void)>,
    pub context_db_handle: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context) -> *mut sqlite3>,
    pub extended_result_codes:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3, arg2: c::c_int) -> c::c_int>,
    pub limit:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3, arg2: c::c_int, arg3: c::c_int) -> c::c_int>,
    pub next_stmt:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3, arg2: *mut sqlite3_stmt) -> *mut sqlite3_stmt>,
    pub sql: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt) -> *const c::c_char>,
    pub status: ::std::option::Option<
        unsafe extern "C" fn(arg1: c::c_int, arg2: *mut c::c_int, arg3: *mut c::c_int, arg4: c::c_int) -> c::c_int,
    >,
    pub backup_finish: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_backup) -> c::c_int>,
    pub backup_init: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_char,
            arg3: *mut sqlite3,
            arg4: *const c::c_char,
        ) -> *mut sqlite3_backup,
    >,
    pub backup_pagecount: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_backup) -> c::c_int>,
    pub backup_remaining: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_backup) -> c::c_int>,
    pub backup_step: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_backup, arg2: c::c_int) -> c::c_int>,
    pub compileoption_get: ::std::option::Option<unsafe extern "C" fn(arg1: c::c_int) -> *const c::c_char>,
    pub compileoption_used: ::std::option::Option<unsafe extern "C" fn(arg1: *const c::c_char) -> c::c_int>,
    pub create_function_v2: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_char,
            arg3: c::c_int,
            arg4: c::c_int,
            arg5: *mut c::c_void,
            xFunc: ::std::option::Option<
                unsafe extern "C" fn(arg1: *mut sqlite3_context, arg2: c::c_int, arg3: *mut *mut sqlite3_value),
            >,
            xStep: ::std::option::Option<
                unsafe extern "C" fn(arg1: *mut sqlite3_context, arg2: c::c_int, arg3: *mut *mut sqlite3_value),
            >,
            xFinal: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context)>,
            xDestroy: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void)>,
        ) -> c::c_int,
    >,
    pub db_config: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3, arg2: c::c_int, ...) -> c::c_int>,
    pub db_mutex: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3) -> *mut sqlite3_mutex>,
    pub db_status: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: c::c_int,
            arg3: *mut c::c_int,
            arg4: *mut c::c_int,
            arg5: c::c_int,
        ) -> c::c_int,
    >,
    pub extended_errcode: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3) -> c::c_int>,
    pub log: ::std::option::Option<unsafe extern "C" fn(arg1: c::c_int, arg2: *const c::c_char, ...)>,
    pub soft_heap_limit64: ::std::option::Option<unsafe extern "C" fn(arg1: sqlite3_int64) -> sqlite3_int64>,
    pub sourceid: ::std::option::Option<unsafe extern "C" fn() -> *const c::c_char>,
    pub stmt_status: ::std::option::Option<
        unsafe extern "C" fn(arg1: *mut sqlite3_stmt, arg2: c::c_int, arg3: c::c_int) -> c::c_int,
    >,
    pub strnicmp: ::std::option::Option<
        unsafe extern "C" fn(arg1: *const c::c_char, arg2: *const c::c_char, arg3: c::c_int) -> c::c_int,
    >,
    pub unlock_notify: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: ::std::option::Option<unsafe extern "C" fn(arg1: *mut *mut c::c_void, arg2: c::c_int)>,
            arg3: *mut c::c_void,
        ) -> c::c_int,
    >,
    pub wal_autocheckpoint: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3, arg2: c::c_int) -> c::c_int>,
    pub wal_checkpoint:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3, arg2: *const c::c_char) -> c::c_int>,
    pub wal_hook: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: ::std::option::Option<
                unsafe extern "C" fn(
                    arg1: *mut c::c_void,
                    arg2: *mut sqlite3,
                    arg3: *const c::c_char,
                    arg4: c::c_int,
                ) -> c::c_int,
            >,
            arg3: *mut c::c_void,
        ) -> *mut c::c_void,
    >,
    pub blob_reopen:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_blob, arg2: sqlite3_int64) -> c::c_int>,
    pub vtab_config: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3, op: c::c_int, ...) -> c::c_int>,
    pub vtab_on_conflict: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3) -> c::c_int>,
    pub close_v2: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3) -> c::c_int>,
    pub db_filename:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3, arg2: *const c::c_char) -> *const c::c_char>,
    pub db_readonly:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3, arg2: *const c::c_char) -> c::c_int>,
    pub db_release_memory: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3) -> c::c_int>,
    pub errstr: ::std::option::Option<unsafe extern "C" fn(arg1: c::c_int) -> *const c::c_char>,
    pub stmt_busy: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt) -> c::c_int>,
    pub stmt_readonly: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt) -> c::c_int>,
    pub stricmp:
        ::std::option::Option<unsafe extern "C" fn(arg1: *const c::c_char, arg2: *const c::c_char) -> c::c_int>,
    pub uri_boolean: ::std::option::Option<
        unsafe extern "C" fn(arg1: *const c::c_char, arg2: *const c::c_char, arg3: c::c_int) -> c::c_int,
    >,
    pub uri_int64: ::std::option::Option<
        unsafe extern "C" fn(arg1: *const c::c_char, arg2: *const c::c_char, arg3: sqlite3_int64) -> sqlite3_int64,
    >,
    pub uri_parameter:
        ::std::option::Option<unsafe extern "C" fn(arg1: *const c::c_char, arg2: *const c::c_char) -> *const c::c_char>,
    pub xvsnprintf: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: c::c_int,
            arg2: *mut c::c_char,
            arg3: *const c::c_char,
            arg4: *mut __va_list_tag,
        ) -> *mut c::c_char,
    >,
    pub wal_checkpoint_v2: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_char,
            arg3: c::c_int,
            arg4: *mut c::c_int,
            arg5: *mut c::c_int,
        ) -> c::c_int,
    >,
    pub auto_extension:
        ::std::option::Option<unsafe extern "C" fn(arg1: ::std::option::Option<unsafe extern "C" fn()>) -> c::c_int>,
    pub bind_blob64: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3_stmt,
            arg2: c::c_int,
            arg3: *const c::c_void,
            arg4: sqlite3_uint64,
            arg5: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void)>,
        ) -> c::c_int,
    >,
    pub bind_text64: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3_stmt,
            arg2: c::c_int,
            arg3: *const c::c_char,
            arg4: sqlite3_uint64,
            arg5: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void)>,
            arg6: c::c_uchar,
        ) -> c::c_int,
    >,
    pub cancel_auto_extension:
        ::std::option::Option<unsafe extern "C" fn(arg1: ::std::option::Option<unsafe extern "C" fn()>) -> c::c_int>,
    pub load_extension: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_char,
            arg3: *const c::c_char,
            arg4: *mut *mut c::c_char,
        ) -> c::c_int,
    >,
    pub malloc64: ::std::option::Option<unsafe extern "C" fn(arg1: sqlite3_uint64) -> *mut c::c_void>,
    pub msize: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void) -> sqlite3_uint64>,
    pub realloc64:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void, arg2: sqlite3_uint64) -> *mut c::c_void>,
    pub reset_auto_extension: ::std::option::Option<unsafe extern "C" fn()>,
    pub result_blob64: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3_context,
            arg2: *const c::c_void,
            arg3: sqlite3_uint64,
            arg4: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void)>,
        ),
    >,
    pub result_text64: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3_context,
            arg2: *const c::c_char,
            arg3: sqlite3_uint64,
            arg4: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void)>,
            arg5: c::c_uchar,
        ),
    >,
    pub strglob:
        ::std::option::Option<unsafe extern "C" fn(arg1: *const c::c_char, arg2: *const c::c_char) -> c::c_int>,
    pub value_dup: ::std::option::Option<unsafe extern "C" fn(arg1: *const sqlite3_value) -> *mut sqlite3_value>,
    pub value_free: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_value)>,
    pub result_zeroblob64:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context, arg2: sqlite3_uint64) -> c::c_int>,
    pub bind_zeroblob64: ::std::option::Option<
        unsafe extern "C" fn(arg1: *mut sqlite3_stmt, arg2: c::c_int, arg3: sqlite3_uint64) -> c::c_int,
    >,
    pub value_subtype: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_value) -> c::c_uint>,
    pub result_subtype: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context, arg2: c::c_uint)>,
    pub status64: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: c::c_int,
            arg2: *mut sqlite3_int64,
            arg3: *mut sqlite3_int64,
            arg4: c::c_int,
        ) -> c::c_int,
    >,
    pub strlike: ::std::option::Option<
        unsafe extern "C" fn(arg1: *const c::c_char, arg2: *const c::c_char, arg3: c::c_uint) -> c::c_int,
    >,
    pub db_cacheflush: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3) -> c::c_int>,
    pub system_errno: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3) -> c::c_int>,
    pub trace_v2: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: c::c_uint,
            arg3: ::std::option::Option<
                unsafe extern "C" fn(
                    arg1: c::c_uint,
                    arg2: *mut c::c_void,
                    arg3: *mut c::c_void,
                    arg4: *mut c::c_void,
                ) -> c::c_int,
            >,
            arg4: *mut c::c_void,
        ) -> c::c_int,
    >,
    pub expanded_sql: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt) -> *mut c::c_char>,
    pub set_last_insert_rowid: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3, arg2: sqlite3_int64)>,
    pub prepare_v3: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_char,
            arg3: c::c_int,
            arg4: c::c_uint,
            arg5: *mut *mut sqlite3_stmt,
            arg6: *mut *const c::c_char,
        ) -> c::c_int,
    >,
    pub prepare16_v3: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_void,
            arg3: c::c_int,
            arg4: c::c_uint,
            arg5: *mut *mut sqlite3_stmt,
            arg6: *mut *const c::c_void,
        ) -> c::c_int,
    >,
    pub bind_pointer: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3_stmt,
            arg2: c::c_int,
            arg3: *mut c::c_void,
            arg4: *const c::c_char,
            arg5: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void)>,
        ) -> c::c_int,
    >,
    pub result_pointer: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3_context,
            arg2: *mut c::c_void,
            arg3: *const c::c_char,
            arg4: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void)>,
        ),
    >,
    pub value_pointer:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_value, arg2: *const c::c_char) -> *mut c::c_void>,
    pub vtab_nochange: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context) -> c::c_int>,
    pub value_nochange: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_value) -> c::c_int>,
    pub vtab_collation:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_index_info, arg2: c::c_int) -> *const c::c_char>,
    pub keyword_count: ::std::option::Option<unsafe extern "C" fn() -> c::c_int>,
    pub keyword_name: ::std::option::Option<
        unsafe extern "C" fn(arg1: c::c_int, arg2: *mut *const c::c_char, arg3: *mut c::c_int) -> c::c_int,
    >,
    pub keyword_check: ::std::option::Option<unsafe extern "C" fn(arg1: *const c::c_char, arg2: c::c_int) -> c::c_int>,
    pub str_new: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3) -> *mut sqlite3_str>,
    pub str_finish: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_str) -> *mut c::c_char>,
    pub str_appendf:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_str, zFormat: *const c::c_char, ...)>,
    pub str_vappendf: ::std::option::Option<
        unsafe extern "C" fn(arg1: *mut sqlite3_str, zFormat: *const c::c_char, arg2: *mut __va_list_tag),
    >,
    pub str_append:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_str, zIn: *const c::c_char, N: c::c_int)>,
    pub str_appendall: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_str, zIn: *const c::c_char)>,
    pub str_appendchar: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_str, N: c::c_int, C: c::c_char)>,
    pub str_reset: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_str)>,
    pub str_errcode: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_str) -> c::c_int>,
    pub str_length: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_str) -> c::c_int>,
    pub str_value: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_str) -> *mut c::c_char>,
    pub create_window_function: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_char,
            arg3: c::c_int,
            arg4: c::c_int,
            arg5: *mut c::c_void,
            xStep: ::std::option::Option<
                unsafe extern "C" fn(arg1: *mut sqlite3_context, arg2: c::c_int, arg3: *mut *mut sqlite3_value),
            >,
            xFinal: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context)>,
            xValue: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_context)>,
            xInv: ::std::option::Option<
                unsafe extern "C" fn(arg1: *mut sqlite3_context, arg2: c::c_int, arg3: *mut *mut sqlite3_value),
            >,
            xDestroy: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void)>,
        ) -> c::c_int,
    >,
    pub normalized_sql: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt) -> *const c::c_char>,
    pub stmt_isexplain: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_stmt) -> c::c_int>,
    pub value_frombind: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_value) -> c::c_int>,
    pub drop_modules:
        ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3, arg2: *mut *const c::c_char) -> c::c_int>,
    pub hard_heap_limit64: ::std::option::Option<unsafe extern "C" fn(arg1: sqlite3_int64) -> sqlite3_int64>,
    pub uri_key:
        ::std::option::Option<unsafe extern "C" fn(arg1: *const c::c_char, arg2: c::c_int) -> *const c::c_char>,
    pub filename_database: ::std::option::Option<unsafe extern "C" fn(arg1: *const c::c_char) -> *const c::c_char>,
    pub filename_journal: ::std::option::Option<unsafe extern "C" fn(arg1: *const c::c_char) -> *const c::c_char>,
    pub filename_wal: ::std::option::Option<unsafe extern "C" fn(arg1: *const c::c_char) -> *const c::c_char>,
    pub create_filename: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *const c::c_char,
            arg2: *const c::c_char,
            arg3: *const c::c_char,
            arg4: c::c_int,
            arg5: *mut *const c::c_char,
        ) -> *mut c::c_char,
    >,
    pub free_filename: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_char)>,
    pub database_file_object: ::std::option::Option<unsafe extern "C" fn(arg1: *const c::c_char) -> *mut sqlite3_file>,
    pub txn_state: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3, arg2: *const c::c_char) -> c::c_int>,
    pub changes64: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3) -> sqlite3_int64>,
    pub total_changes64: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3) -> sqlite3_int64>,
    pub autovacuum_pages: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: ::std::option::Option<
                unsafe extern "C" fn(
                    arg1: *mut c::c_void,
                    arg2: *const c::c_char,
                    arg3: c::c_uint,
                    arg4: c::c_uint,
                    arg5: c::c_uint,
                ) -> c::c_uint,
            >,
            arg3: *mut c::c_void,
            arg4: ::std::option::Option<unsafe extern "C" fn(arg1: *mut c::c_void)>,
        ) -> c::c_int,
    >,
    pub error_offset: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3) -> c::c_int>,
    pub vtab_rhs_value: ::std::option::Option<
        unsafe extern "C" fn(arg1: *mut sqlite3_index_info, arg2: c::c_int, arg3: *mut *mut sqlite3_value) -> c::c_int,
    >,
    pub vtab_distinct: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3_index_info) -> c::c_int>,
    pub vtab_in: ::std::option::Option<
        unsafe extern "C" fn(arg1: *mut sqlite3_index_info, arg2: c::c_int, arg3: c::c_int) -> c::c_int,
    >,
    pub vtab_in_first: ::std::option::Option<
        unsafe extern "C" fn(arg1: *mut sqlite3_value, arg2: *mut *mut sqlite3_value) -> c::c_int,
    >,
    pub vtab_in_next: ::std::option::Option<
        unsafe extern "C" fn(arg1: *mut sqlite3_value, arg2: *mut *mut sqlite3_value) -> c::c_int,
    >,
    pub deserialize: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_char,
            arg3: *mut c::c_uchar,
            arg4: sqlite3_int64,
            arg5: sqlite3_int64,
            arg6: c::c_uint,
        ) -> c::c_int,
    >,
    pub serialize: ::std::option::Option<
        unsafe extern "C" fn(
            arg1: *mut sqlite3,
            arg2: *const c::c_char,
            arg3: *mut sqlite3_int64,
            arg4: c::c_uint,
        ) -> *mut c::c_uchar,
    >,
    pub db_name: ::std::option::Option<unsafe extern "C" fn(arg1: *mut sqlite3, arg2: c::c_int) -> *const c::c_char>,
}
