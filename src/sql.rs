//! Not built yet.
#![allow(unsafe_code)]
pub unsafe fn register(
    _db: *mut libsqlite3_sys::sqlite3,
    _table: *mut std::ffi::c_void,
) -> Result<(), String> {
    Ok(())
}
