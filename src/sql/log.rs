//! `mycelite_log(path)`: the history of a database, one row for each recorded transaction.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mycelite_journal::{FileStorage, Reader, RecordEntry, Txid};

use super::host::Host;
use super::table::{Query, Row, Rows, Table, Value};
use super::time::rfc3339;
use crate::bookmarks::{self, Bookmark};
use crate::database::log_dir;
use crate::error::{Error, ErrorKind, Result};

/// Takes the path of a database or of a log's directory; without one, the main database's. Rows are read as they are
/// asked for, from the transaction on that `WHERE txid >= ...` names.
pub(super) struct Log;

impl Table for Log {
    const SCHEMA: &'static str = "CREATE TABLE mycelite_log(txid INTEGER, time TEXT, pages INTEGER, bytes INTEGER, \
         db_pages INTEGER, checksum TEXT, timeline INTEGER, bookmark TEXT, path TEXT HIDDEN)";
    const ARGUMENT: Option<i32> = Some(8);
    const ORDERED: Option<i32> = Some(0);

    fn rows(host: &Host, query: &Query) -> Result<Rows> {
        let path = match &query.argument {
            Some(Value::Text(path)) => PathBuf::from(path),
            Some(_) => {
                return Err(
                    Error::new(ErrorKind::Usage, "the path must be text").at("mycelite_log")
                );
            }
            None => host.file("main")?,
        };
        let argument = query.argument.clone().unwrap_or(Value::Null);
        let Some(reader) = open(&path, query.from)? else {
            return Ok(Box::new(std::iter::empty()));
        };
        Ok(Box::new(History {
            reader,
            bookmarks: bookmarks::list(&directory(&path)?)?,
            to: query.to,
            argument,
            ended: false,
        }))
    }
}

/// Opens the log of a database, or the log in a directory, so that the first record read is the first wanted. `None`:
/// it ends before that.
fn open(path: &Path, from: Option<i64>) -> Result<Option<Reader>> {
    let storage = Arc::new(FileStorage::new(directory(path)?));
    let mut reader = Reader::open(storage).map_err(journal)?;
    let wanted = from.and_then(|from| u64::try_from(from).ok()).unwrap_or(0);
    let after = match reader.first_txid().map_err(journal)? {
        // Nothing is recorded, or the very first record is damaged: reading tells which.
        None => Txid(0),
        Some(first) if wanted <= first.0 => first.previous(),
        Some(_) => {
            let head = reader.head().map_err(journal)?;
            if head.is_none_or(|head| head.header.txid.0 < wanted) {
                return Ok(None);
            }
            Txid(wanted).previous()
        }
    };
    reader.seek(after).map_err(journal)?;
    Ok(Some(reader))
}

fn directory(path: &Path) -> Result<PathBuf> {
    if path.join("meta").is_file() {
        return Ok(path.to_path_buf());
    }
    let beside = log_dir(path);
    if beside.join("meta").is_file() {
        return Ok(beside);
    }
    Err(Error::new(ErrorKind::NotFound, "no log here")
        .at(path.display())
        .hint("give the path of a database that was written through mycelite, or of its directory NAME-mycelite"))
}

struct History {
    reader: Reader,
    bookmarks: Vec<Bookmark>,
    to: Option<i64>,
    argument: Value,
    ended: bool,
}

impl Iterator for History {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        if self.ended {
            return None;
        }
        let row = match self.reader.next() {
            Ok(entry) => entry.map(|entry| row(&entry, &self.bookmarks, &self.argument)),
            Err(error) => {
                self.ended = true;
                return Some(Err(journal(error)));
            }
        };
        let row = row.filter(|row| self.to.is_none_or(|to| row.rowid <= to));
        self.ended = row.is_none();
        row.map(Ok)
    }
}

fn row(entry: &RecordEntry, bookmarks: &[Bookmark], argument: &Value) -> Row {
    let header = &entry.header;
    let names: Vec<&str> = bookmarks::names_at(bookmarks, header.pos()).collect();
    let bookmark = match names.is_empty() {
        true => Value::Null,
        false => Value::Text(names.join(", ")),
    };
    let values = vec![
        Value::from(header.txid.0),
        Value::Text(rfc3339(header.time_us)),
        Value::from(header.patch_count),
        Value::from(header.record_len()),
        Value::from(header.page_count),
        Value::Text(header.post_checksum.to_string()),
        Value::from(header.timeline.0),
        bookmark,
        argument.clone(),
    ];
    Row {
        rowid: i64::try_from(header.txid.0).unwrap_or(i64::MAX),
        values,
    }
}

pub(super) fn journal(error: mycelite_journal::Error) -> Error {
    let kind = if error.is_not_found() {
        ErrorKind::NotFound
    } else {
        ErrorKind::Corrupt
    };
    Error::new(kind, error)
}
