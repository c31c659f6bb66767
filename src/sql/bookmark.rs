//! `mycelite_bookmark(name [, schema])`: names the last recorded transaction, and answers its number.
//!
//! It is the last committed one of the database, whoever committed it: what this connection has not committed is not in
//! it, so inside a transaction the state before the transaction is named.

use std::sync::Arc;

use mycelite_journal::{FileStorage, Reader};
use sqlite_loadable::FunctionFlags;
use sqlite_loadable::api::{ValueType, value_text, value_type};
use sqlite_loadable::ext::{sqlite3, sqlite3_value, sqlite3ext_context_db_handle};

use super::host::Host;
use super::log::journal;
use super::table::Value;
use super::{answer, define, schema_argument};
use crate::bookmarks;
use crate::error::{Error, ErrorKind, Result};

/// Defines the function in a connection.
pub(super) fn register(db: *mut sqlite3) -> Result<()> {
    for arguments in [1, 2] {
        // It changes what is kept beside the database, which a trigger or view of a stranger must not.
        let flags = FunctionFlags::DIRECTONLY;
        define(
            db,
            "mycelite_bookmark",
            arguments,
            flags,
            |context, values| {
                answer(context, || {
                    // SAFETY: SQLite calls with the context of one of its connections, in that connection's thread.
                    let host = unsafe { Host::new(sqlite3ext_context_db_handle(context).cast()) }?;
                    let (name, schema) = values.split_at_checked(1).unwrap_or_default();
                    mark(&host, name_argument(name)?, &schema_argument(schema)?)
                })
            },
        )?;
    }
    Ok(())
}

fn name_argument(values: &[*mut sqlite3_value]) -> Result<&str> {
    values
        .first()
        .filter(|value| value_type(value) == ValueType::Text)
        .and_then(|value| value_text(value).ok())
        .ok_or_else(|| Error::new(ErrorKind::Usage, "the bookmark's name must be text"))
}

fn mark(host: &Host, name: &str, schema: &str) -> Result<Value> {
    bookmarks::check_name(name)?;
    let database = host.database(schema)?;
    let dir = database.log_dir();
    let nothing = || {
        Error::new(ErrorKind::NotFound, "nothing is recorded yet")
            .at(dir.display())
            .hint("commit something first")
    };
    if !dir.join("meta").is_file() {
        return Err(nothing());
    }
    let held = bookmarks::hold(dir)?;
    // Read without the log's lock, which this very thread has inside a transaction.
    let mut reader = Reader::open(Arc::new(FileStorage::new(dir))).map_err(journal)?;
    let head = reader.head().map_err(journal)?.ok_or_else(nothing)?.header;
    held.mark(name, head.pos(), head.time_us)?;
    Ok(Value::from(head.txid.0))
}
