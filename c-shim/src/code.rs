//! SQLite's result codes as a Rust error.

use core::ffi::c_int;
use std::fmt;

use libsqlite3_sys as sys;

/// An SQLite result code, primary (`SQLITE_BUSY`) or extended (`SQLITE_IOERR_SHORT_READ`).
///
/// Displays as name, number and meaning: `SQLITE_BUSY (5): another connection holds a lock`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(pub i32);

/// Name and meaning of the codes that a VFS, a lock or a small statement can give. An extended code that is not
/// listed shows its primary code's line.
const NAMES: &[(c_int, &str, &str)] = &[
    (sys::SQLITE_OK, "SQLITE_OK", "no error"),
    (
        sys::SQLITE_ERROR,
        "SQLITE_ERROR",
        "wrong SQL or an unspecific failure",
    ),
    (
        sys::SQLITE_INTERNAL,
        "SQLITE_INTERNAL",
        "a defect inside SQLite",
    ),
    (sys::SQLITE_PERM, "SQLITE_PERM", "access mode not permitted"),
    (
        sys::SQLITE_ABORT,
        "SQLITE_ABORT",
        "a callback asked to stop",
    ),
    (
        sys::SQLITE_BUSY,
        "SQLITE_BUSY",
        "another connection holds a lock",
    ),
    (
        sys::SQLITE_LOCKED,
        "SQLITE_LOCKED",
        "a table is locked by the same process",
    ),
    (sys::SQLITE_NOMEM, "SQLITE_NOMEM", "out of memory"),
    (
        sys::SQLITE_READONLY,
        "SQLITE_READONLY",
        "the database cannot be written",
    ),
    (sys::SQLITE_INTERRUPT, "SQLITE_INTERRUPT", "interrupted"),
    (
        sys::SQLITE_IOERR,
        "SQLITE_IOERR",
        "the operating system reported an I/O error",
    ),
    (
        sys::SQLITE_CORRUPT,
        "SQLITE_CORRUPT",
        "the database file is malformed",
    ),
    (
        sys::SQLITE_NOTFOUND,
        "SQLITE_NOTFOUND",
        "not known to the VFS",
    ),
    (sys::SQLITE_FULL, "SQLITE_FULL", "the disk is full"),
    (
        sys::SQLITE_CANTOPEN,
        "SQLITE_CANTOPEN",
        "the file cannot be opened",
    ),
    (
        sys::SQLITE_PROTOCOL,
        "SQLITE_PROTOCOL",
        "the locking protocol failed too often",
    ),
    (sys::SQLITE_SCHEMA, "SQLITE_SCHEMA", "the schema changed"),
    (sys::SQLITE_TOOBIG, "SQLITE_TOOBIG", "text or blob too big"),
    (
        sys::SQLITE_CONSTRAINT,
        "SQLITE_CONSTRAINT",
        "a constraint failed",
    ),
    (
        sys::SQLITE_MISMATCH,
        "SQLITE_MISMATCH",
        "data type mismatch",
    ),
    (
        sys::SQLITE_MISUSE,
        "SQLITE_MISUSE",
        "a routine was called in a wrong way",
    ),
    (sys::SQLITE_AUTH, "SQLITE_AUTH", "not authorised"),
    (
        sys::SQLITE_RANGE,
        "SQLITE_RANGE",
        "an index is out of range",
    ),
    (
        sys::SQLITE_NOTADB,
        "SQLITE_NOTADB",
        "the file is not a database",
    ),
    (sys::SQLITE_ROW, "SQLITE_ROW", "a row is ready"),
    (sys::SQLITE_DONE, "SQLITE_DONE", "no more rows"),
    (
        sys::SQLITE_BUSY_RECOVERY,
        "SQLITE_BUSY_RECOVERY",
        "another process recovers the WAL",
    ),
    (
        sys::SQLITE_BUSY_SNAPSHOT,
        "SQLITE_BUSY_SNAPSHOT",
        "the read transaction is too old to write",
    ),
    (
        sys::SQLITE_IOERR_READ,
        "SQLITE_IOERR_READ",
        "reading failed",
    ),
    (
        sys::SQLITE_IOERR_SHORT_READ,
        "SQLITE_IOERR_SHORT_READ",
        "the file ends before the bytes asked for",
    ),
    (
        sys::SQLITE_IOERR_WRITE,
        "SQLITE_IOERR_WRITE",
        "writing failed",
    ),
    (
        sys::SQLITE_IOERR_FSYNC,
        "SQLITE_IOERR_FSYNC",
        "fsync failed",
    ),
    (
        sys::SQLITE_IOERR_DIR_FSYNC,
        "SQLITE_IOERR_DIR_FSYNC",
        "fsync of the directory failed",
    ),
    (
        sys::SQLITE_IOERR_TRUNCATE,
        "SQLITE_IOERR_TRUNCATE",
        "truncating failed",
    ),
    (
        sys::SQLITE_IOERR_FSTAT,
        "SQLITE_IOERR_FSTAT",
        "the file's size cannot be read",
    ),
    (
        sys::SQLITE_IOERR_LOCK,
        "SQLITE_IOERR_LOCK",
        "locking failed",
    ),
    (
        sys::SQLITE_IOERR_UNLOCK,
        "SQLITE_IOERR_UNLOCK",
        "unlocking failed",
    ),
    (
        sys::SQLITE_IOERR_RDLOCK,
        "SQLITE_IOERR_RDLOCK",
        "a read lock failed",
    ),
    (
        sys::SQLITE_IOERR_DELETE,
        "SQLITE_IOERR_DELETE",
        "the file cannot be deleted",
    ),
    (
        sys::SQLITE_IOERR_DELETE_NOENT,
        "SQLITE_IOERR_DELETE_NOENT",
        "the file to delete is not there",
    ),
    (
        sys::SQLITE_IOERR_ACCESS,
        "SQLITE_IOERR_ACCESS",
        "the file cannot be looked at",
    ),
    (
        sys::SQLITE_IOERR_CLOSE,
        "SQLITE_IOERR_CLOSE",
        "closing failed",
    ),
    (
        sys::SQLITE_IOERR_SHMOPEN,
        "SQLITE_IOERR_SHMOPEN",
        "the shared memory cannot be opened",
    ),
    (
        sys::SQLITE_IOERR_SHMSIZE,
        "SQLITE_IOERR_SHMSIZE",
        "the shared memory cannot be enlarged",
    ),
    (
        sys::SQLITE_IOERR_SHMLOCK,
        "SQLITE_IOERR_SHMLOCK",
        "locking the shared memory failed",
    ),
    (
        sys::SQLITE_IOERR_SHMMAP,
        "SQLITE_IOERR_SHMMAP",
        "the shared memory cannot be mapped",
    ),
    (
        sys::SQLITE_READONLY_RECOVERY,
        "SQLITE_READONLY_RECOVERY",
        "the WAL needs a recovery that a reader cannot do",
    ),
    (
        sys::SQLITE_READONLY_CANTINIT,
        "SQLITE_READONLY_CANTINIT",
        "a read-only process cannot start the shared memory",
    ),
    (
        sys::SQLITE_READONLY_CANTLOCK,
        "SQLITE_READONLY_CANTLOCK",
        "a read-only process cannot lock the shared memory",
    ),
    (
        sys::SQLITE_READONLY_DBMOVED,
        "SQLITE_READONLY_DBMOVED",
        "the database file was moved or replaced",
    ),
    (
        sys::SQLITE_READONLY_DIRECTORY,
        "SQLITE_READONLY_DIRECTORY",
        "the directory cannot be written",
    ),
    (
        sys::SQLITE_CANTOPEN_ISDIR,
        "SQLITE_CANTOPEN_ISDIR",
        "the path is a directory",
    ),
    (
        sys::SQLITE_CANTOPEN_FULLPATH,
        "SQLITE_CANTOPEN_FULLPATH",
        "the full path cannot be found",
    ),
    (
        sys::SQLITE_CANTOPEN_SYMLINK,
        "SQLITE_CANTOPEN_SYMLINK",
        "the path is a symbolic link",
    ),
];

impl Code {
    /// `SQLITE_OK`.
    pub const OK: Code = Code(sys::SQLITE_OK);
    /// `SQLITE_ERROR`.
    pub const ERROR: Code = Code(sys::SQLITE_ERROR);
    /// `SQLITE_BUSY`: another connection holds a lock; waiting may help.
    pub const BUSY: Code = Code(sys::SQLITE_BUSY);
    /// `SQLITE_LOCKED`: a table is locked inside the same process.
    pub const LOCKED: Code = Code(sys::SQLITE_LOCKED);
    /// `SQLITE_NOMEM`.
    pub const NOMEM: Code = Code(sys::SQLITE_NOMEM);
    /// `SQLITE_READONLY`.
    pub const READONLY: Code = Code(sys::SQLITE_READONLY);
    /// `SQLITE_IOERR`.
    pub const IOERR: Code = Code(sys::SQLITE_IOERR);
    /// `SQLITE_IOERR_SHORT_READ`.
    pub const SHORT_READ: Code = Code(sys::SQLITE_IOERR_SHORT_READ);
    /// `SQLITE_IOERR_DELETE_NOENT`.
    pub const DELETE_NOENT: Code = Code(sys::SQLITE_IOERR_DELETE_NOENT);
    /// `SQLITE_CORRUPT`.
    pub const CORRUPT: Code = Code(sys::SQLITE_CORRUPT);
    /// `SQLITE_NOTFOUND`.
    pub const NOTFOUND: Code = Code(sys::SQLITE_NOTFOUND);
    /// `SQLITE_FULL`: no space left.
    pub const FULL: Code = Code(sys::SQLITE_FULL);
    /// `SQLITE_CANTOPEN`.
    pub const CANTOPEN: Code = Code(sys::SQLITE_CANTOPEN);
    /// `SQLITE_MISUSE`: an argument that makes no sense.
    pub const MISUSE: Code = Code(sys::SQLITE_MISUSE);
    /// `SQLITE_NOTADB`.
    pub const NOTADB: Code = Code(sys::SQLITE_NOTADB);
    /// `SQLITE_NOTICE`, for [`crate::Api::log`].
    pub const NOTICE: Code = Code(sys::SQLITE_NOTICE);
    /// `SQLITE_WARNING`, for [`crate::Api::log`].
    pub const WARNING: Code = Code(sys::SQLITE_WARNING);

    /// Turns what a C routine returned into a `Result`.
    ///
    /// # Errors
    /// Every code but `SQLITE_OK`.
    pub fn check(rc: c_int) -> Result<(), Code> {
        if rc == sys::SQLITE_OK {
            Ok(())
        } else {
            Err(Code(rc))
        }
    }

    /// The primary code: `SQLITE_IOERR` for every `SQLITE_IOERR_...`.
    #[must_use]
    pub fn primary(self) -> Code {
        Code(self.0 & 0xff)
    }

    /// Whether waiting and trying again may help (`SQLITE_BUSY`, `SQLITE_LOCKED` and their extended codes).
    #[must_use]
    pub fn is_busy(self) -> bool {
        matches!(self.primary(), Code::BUSY | Code::LOCKED)
    }

    fn line(self) -> Option<&'static (c_int, &'static str, &'static str)> {
        let find = |code: c_int| NAMES.iter().find(|(number, ..)| *number == code);
        find(self.0).or_else(|| find(self.primary().0))
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line() {
            Some((_, name, meaning)) => write!(f, "{name} ({}): {meaning}", self.0),
            None => write!(f, "SQLite result code {}", self.0),
        }
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Code {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_show_name_number_and_meaning() {
        assert_eq!(
            Code::BUSY.to_string(),
            "SQLITE_BUSY (5): another connection holds a lock"
        );
        assert_eq!(
            Code::SHORT_READ.to_string(),
            "SQLITE_IOERR_SHORT_READ (522): the file ends before the bytes asked for"
        );
        // An extended code that is not listed keeps its number and shows its primary code.
        assert!(
            Code(10 | (99 << 8))
                .to_string()
                .starts_with("SQLITE_IOERR (25354)")
        );
        assert_eq!(Code(200).to_string(), "SQLite result code 200");
        assert!(Code(sys::SQLITE_BUSY_SNAPSHOT).is_busy());
    }
}
