//! `mycelite_log(path)`: the history of a database, one row for each recorded transaction.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mycelite_journal::{
    FileStorage, Reader, RecordEntry, Txid, parse_sealed_name, parse_segment_name,
};

use super::host::{Host, settle};
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
    const ARGUMENTS: &'static [i32] = &[8];
    const ORDERED: Option<i32> = Some(0);
    const TIMED: Option<i32> = Some(1);

    fn rows(host: &Host, query: &Query) -> Result<Rows> {
        let argument = query.arguments.first().cloned().flatten();
        let path = path_argument(host, "mycelite_log", argument.as_ref())?;
        let argument = argument.unwrap_or(Value::Null);
        let Some(range) = Range::of(query, &path)? else {
            return Ok(Box::new(std::iter::empty()));
        };
        let Some(reader) = open(&path, range.from)? else {
            return Ok(Box::new(std::iter::empty()));
        };
        Ok(Box::new(History {
            reader,
            bookmarks: bookmarks::list(&directory(&path)?)?,
            to: range.to,
            until_us: range.until_us,
            argument,
            ended: false,
        }))
    }
}

/// The path that the function `name` was asked about: the main database's, unless it is given.
pub(super) fn path_argument(host: &Host, name: &str, argument: Option<&Value>) -> Result<PathBuf> {
    match argument {
        Some(Value::Text(path)) => {
            settle(Path::new(path));
            Ok(PathBuf::from(path))
        }
        Some(_) => Err(Error::new(ErrorKind::Usage, "the path must be text").at(name)),
        None => host.file("main"),
    }
}

/// What a query is about, as far as its bounds tell.
struct Range {
    from: Option<i64>,
    to: Option<i64>,
    /// No record is later, µs since 1970.
    until_us: u64,
}

/// The last µs of the last year whose times are in the order of their texts.
const TIME_MAX_US: u64 = 253_402_300_799_999_999;

impl Range {
    /// `None`: there is nothing.
    fn of(query: &Query, path: &Path) -> Result<Option<Range>> {
        let mut range = Range {
            from: query.from,
            to: query.to,
            until_us: u64::MAX,
        };
        if let Some(text) = &query.until {
            match first_us(|us| rfc3339(us).as_str() > text.as_str()).checked_sub(1) {
                Some(last) => range.until_us = last,
                None => return Ok(None),
            }
        }
        if let Some(text) = &query.since {
            let us = first_us(|us| rfc3339(us).as_str() >= text.as_str());
            if let Some(first) = segment_at(path, us)? {
                let first = i64::try_from(first.0).unwrap_or(i64::MAX);
                range.from = Some(range.from.unwrap_or(0).max(first));
            }
        }
        Ok(Some(range))
    }
}

/// The first transaction of the last segment that does not begin after `us`; `None` if that is not known, or the first.
fn segment_at(path: &Path, us: u64) -> Result<Option<Txid>> {
    let dir = directory(path)?;
    let listed = std::fs::read_dir(&dir).map_err(|e| Error::io("listing", &dir, &e))?;
    let mut firsts: Vec<Txid> = listed
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            let name = name.to_str()?;
            parse_segment_name(name).or_else(|| parse_sealed_name(name).map(|(first, _)| first))
        })
        .collect();
    firsts.sort_unstable();
    firsts.dedup();
    let mut reader = Reader::open(Arc::new(FileStorage::new(&dir))).map_err(journal)?;
    let (mut low, mut high) = (0, firsts.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let first = firsts.get(middle).copied().unwrap_or(Txid(0));
        // Whatever is wrong there is told by those who read it.
        let Ok(Some(entry)) = reader.find(first) else {
            return Ok(None);
        };
        if entry.header.time_us <= us {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low.checked_sub(1).and_then(|i| firsts.get(i)).copied())
}

/// The first time, in µs since 1970, from which on `holds`; one more than the last if there is none.
fn first_us(holds: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, TIME_MAX_US + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
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

pub(super) fn directory(path: &Path) -> Result<PathBuf> {
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
    until_us: u64,
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
            Ok(entry) => entry
                .filter(|entry| entry.header.time_us <= self.until_us)
                .map(|entry| row(&entry, &self.bookmarks, &self.argument)),
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
