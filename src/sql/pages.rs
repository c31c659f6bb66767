//! `mycelite_pages(path, txid)`: the pages that a transaction changed, one row for each.

use std::sync::Arc;

use mycelite_journal::{FileStorage, PatchKind, PatchRef, PatchStream, Reader, Txid};

use super::host::Host;
use super::log::{directory, journal, path_argument};
use super::table::{Query, Row, Rows, Table, Value};
use crate::error::{Error, ErrorKind, Result};

/// Takes the path of a database or of a log's directory, and a transaction's number.
pub(super) struct Pages;

impl Table for Pages {
    const SCHEMA: &'static str = "CREATE TABLE mycelite_pages(pgno INTEGER, kind TEXT, ranges INTEGER, bytes INTEGER, \
         path TEXT HIDDEN, txid INTEGER HIDDEN)";
    const ARGUMENTS: &'static [i32] = &[4, 5];

    fn rows(host: &Host, query: &Query) -> Result<Rows> {
        let [path, txid, _] = &query.arguments;
        let Some(Value::Integer(number)) = txid else {
            return Err(
                Error::new(ErrorKind::Usage, "the number of a transaction is needed")
                    .at("mycelite_pages")
                    .hint("as in mycelite_pages('app.db', 41)"),
            );
        };
        let hidden = [path.clone().unwrap_or(Value::Null), Value::Integer(*number)];
        let dir = directory(&path_argument(host, "mycelite_pages", path.as_ref())?)?;
        let mut reader = Reader::open(Arc::new(FileStorage::new(&dir))).map_err(journal)?;
        let entry = match u64::try_from(*number) {
            Ok(txid) if txid > 0 => reader.find(Txid(txid)).map_err(journal)?,
            _ => None,
        };
        let entry = entry.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format_args!("there is no transaction {number}"),
            )
            .at(dir.display())
            .hint("mycelite_log lists them")
        })?;
        Ok(Box::new(Changed {
            patches: entry.patches(),
            hidden,
            ended: false,
        }))
    }
}

struct Changed {
    patches: PatchStream,
    hidden: [Value; 2],
    ended: bool,
}

impl Iterator for Changed {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        if self.ended {
            return None;
        }
        let row = match self.patches.next() {
            Ok(patch) => patch.map(|patch| Ok(row(&patch, &self.hidden))),
            Err(error) => Some(Err(journal(error))),
        };
        self.ended = !matches!(row, Some(Ok(_)));
        row
    }
}

fn row(patch: &PatchRef<'_>, hidden: &[Value; 2]) -> Row {
    let (mut ranges, mut bytes) = (0u64, 0u64);
    for (_, new) in patch.ranges() {
        ranges += 1;
        bytes += new.len() as u64;
    }
    let kind = match patch.kind() {
        PatchKind::Ranges => "ranges",
        PatchKind::Zeroed => "zeroed",
        PatchKind::Full => "full",
    };
    let [path, txid] = hidden.clone();
    Row {
        rowid: i64::from(patch.pgno()),
        values: vec![
            Value::from(patch.pgno()),
            Value::from(kind),
            Value::from(ranges),
            Value::from(bytes),
            path,
            txid,
        ],
    }
}
