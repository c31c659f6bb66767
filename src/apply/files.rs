//! The files of one replica, and how to get at them: only through SQLite's VFS, because POSIX drops a process's locks
//! on a file when any of its descriptors is closed.

use std::ffi::{CString, OsStr};
use std::path::{Path, PathBuf};

use c_shim::{Api, Code, File, OpenFlags, Vfs};

use crate::error::{Error, ErrorKind, Result};

/// Names of a replica's files, as SQLite itself would use them.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub api: Api,
    /// The database, symbolic links resolved.
    pub db: PathBuf,
    /// Its write-ahead log.
    pub wal: PathBuf,
    /// Its rollback journal.
    pub journal: PathBuf,
    /// The directory of our log.
    pub log_dir: PathBuf,
}

impl Files {
    pub fn new(api: Api, db: &Path, log_dir: &Path) -> Result<Files> {
        let full = Vfs::find(api, None).and_then(|vfs| vfs.full_path(db));
        let full = full.map_err(|code| {
            Error::new(
                ErrorKind::Io,
                format_args!("cannot find the full path: {code}"),
            )
            .at(db.display())
        })?;
        let db = path(&full);
        let beside = |suffix: &str| {
            let mut name = db.clone().into_os_string();
            name.push(suffix);
            PathBuf::from(name)
        };
        Ok(Files {
            api,
            wal: beside("-wal"),
            journal: beside("-journal"),
            log_dir: log_dir.to_path_buf(),
            db,
        })
    }

    /// Opens the database file, which is created, empty, if it is not there.
    pub fn open_db(&self) -> Result<File> {
        let flags = OpenFlags::MAIN_DB | OpenFlags::READWRITE | OpenFlags::CREATE;
        let file = File::open(self.api, None, &self.db, flags)
            .map_err(|code| self.db_error("cannot open", code))?;
        if file.is_read_only() {
            return Err(Error::new(ErrorKind::Io, "the replica cannot be written")
                .at(self.db.display())
                .hint("give the server write permission on the file and its directory"));
        }
        Ok(file)
    }

    /// Whether a file is there and not empty, which is how SQLite asks for journals and WALs.
    pub fn exists(&self, path: &Path) -> Result<bool> {
        File::access(self.api, None, path).map_err(|code| {
            Error::new(
                ErrorKind::Io,
                format_args!("cannot look for the file: {code}"),
            )
            .at(path.display())
        })
    }

    /// Deletes a file durably; one that is not there is fine.
    pub fn delete(&self, path: &Path) -> Result<()> {
        match File::delete(self.api, None, path, true) {
            Ok(()) | Err(Code::DELETE_NOENT) => Ok(()),
            Err(code) => Err(
                Error::new(ErrorKind::Io, format_args!("cannot delete: {code}")).at(path.display()),
            ),
        }
    }

    /// A failure of the database file.
    pub fn db_error(&self, what: &str, code: Code) -> Error {
        let kind = if code.is_busy() {
            ErrorKind::Busy
        } else {
            ErrorKind::Io
        };
        let error = Error::new(kind, format_args!("{what}: {code}")).at(self.db.display());
        if code.primary() == Code::FULL {
            error.hint("free some space; applying goes on by itself")
        } else {
            error
        }
    }

    /// A failure of the shared memory beside a WAL.
    pub fn shm_error(&self, code: Code) -> Error {
        self.db_error("cannot use the shared memory", code)
    }

    /// A failure of the WAL file.
    pub fn wal_error(&self, what: &str, code: Code) -> Error {
        Error::new(ErrorKind::Io, format_args!("{what}: {code}")).at(self.wal.display())
    }

    /// A failure of the rollback journal.
    pub fn journal_error(&self, code: Code) -> Error {
        Error::new(
            ErrorKind::Io,
            format_args!("cannot write the rollback journal: {code}"),
        )
        .at(self.journal.display())
    }
}

/// A name from the VFS as a path: its bytes on Unix, UTF-8 elsewhere.
fn path(name: &CString) -> PathBuf {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        PathBuf::from(OsStr::from_bytes(name.to_bytes()))
    }
    #[cfg(not(unix))]
    {
        PathBuf::from(OsStr::new(name.to_string_lossy().as_ref()))
    }
}
