//! The connection that asks.

use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;

use c_shim::{Api, sqlite3};
use mycelite_journal::Pos;

use crate::database::{self, Database};
use crate::error::{Error, ErrorKind, Result};
use crate::reader::{self, View};

/// A connection that calls one of our functions or tables, for as long as the call or the table lasts.
pub(super) struct Host {
    api: Api,
    db: NonNull<sqlite3>,
}

/// What a function is asked about.
pub(super) enum Subject {
    /// Open through the writer VFS.
    Written(Arc<Database>),
    /// Open through the reader VFS.
    Read(Arc<View>),
}

impl Subject {
    /// Where it is in its history.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn pos(&self) -> Result<Pos> {
        match self {
            Subject::Written(database) => database.pos(),
            Subject::Read(view) => view.pos(),
        }
    }
}

/// Whoever asks for the log of `file` has seen commits that the capture thread may not have recorded yet.
pub(super) fn settle(file: &Path) {
    let full = std::fs::canonicalize(file);
    if let Some(database) = database::find(full.as_deref().unwrap_or(file)) {
        database.shared().settle();
    }
}

impl Host {
    /// # Safety
    /// `db` is an open connection, and the result is used in its thread and while it is open only.
    pub unsafe fn new(db: *mut sqlite3) -> Result<Host> {
        match (Api::get(), NonNull::new(db)) {
            (Some(api), Some(db)) => Ok(Host { api, db }),
            _ => Err(Error::new(
                ErrorKind::Internal,
                "SQLite passed no connection",
            )),
        }
    }

    /// The routines of the SQLite that asks.
    pub fn api(&self) -> Api {
        self.api
    }

    /// The file of an attached database, as SQLite names it.
    ///
    /// # Errors
    /// There is no such schema, or it has no file.
    pub fn file(&self, schema: &str) -> Result<PathBuf> {
        let file = self.file_name(schema)?;
        let file = PathBuf::from(file);
        settle(&file);
        Ok(file)
    }

    /// The database that is open under the name `schema`.
    ///
    /// # Errors
    /// There is no such schema, it has no file, or it was not opened through the writer VFS.
    pub fn database(&self, schema: &str) -> Result<Arc<Database>> {
        let file = self.file_name(schema)?;
        let database = database::find(&file).ok_or_else(|| {
            Error::new(ErrorKind::Usage, "not replicated")
                .at(&file)
                .hint("open it with vfs=mycelite_writer, or .load before .open")
        })?;
        database.shared().settle();
        Ok(database)
    }

    /// What is open under the name `schema`, to be read or written.
    ///
    /// # Errors
    /// As [`Host::database`].
    pub fn subject(&self, schema: &str) -> Result<Subject> {
        // SAFETY: new()'s promise: the connection is open and this is its thread.
        let name = unsafe { self.api.db_filename_address(self.db.as_ptr(), schema) };
        match reader::of_connection(name) {
            Some(view) => Ok(Subject::Read(view)),
            None => self.database(schema).map(Subject::Written),
        }
    }

    fn file_name(&self, schema: &str) -> Result<String> {
        // SAFETY: new()'s promise: the connection is open and this is its thread.
        match unsafe { self.api.db_filename(self.db.as_ptr(), schema) } {
            Some(file) if !file.is_empty() => Ok(file),
            Some(_) => Err(Error::new(
                ErrorKind::Usage,
                format_args!("the database {schema} is in memory or temporary, so it has no log"),
            )),
            None => Err(Error::new(
                ErrorKind::Usage,
                format_args!("no attached database is called {schema}"),
            )
            .hint("PRAGMA database_list shows the names")),
        }
    }
}
