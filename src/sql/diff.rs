//! `mycelite_diff(path, from, to)`: what differs between two moments, one row for each value that does.

use std::collections::VecDeque;

use super::host::Host;
use super::log::{directory, path_argument};
use super::table::{Query, Row, Rows, Table, Value};
use crate::diff::{self, Change, Changes, Encoding, changed_columns};
use crate::error::{Error, ErrorKind, Result};
use crate::moment::Moment;

/// Takes the path of a database or of a log's directory, and two moments: each a transaction's number, or a word as
/// `mycelite diff` takes it. Without the second it is the last transaction.
pub(super) struct Diff;

impl Table for Diff {
    const SCHEMA: &'static str = "CREATE TABLE mycelite_diff(\"table\" TEXT, op TEXT, key, \"column\" TEXT, old, new, \
         path TEXT HIDDEN, \"from\" HIDDEN, \"to\" HIDDEN)";
    const ARGUMENTS: &'static [i32] = &[6, 7, 8];

    fn rows(host: &Host, query: &Query) -> Result<Rows> {
        let [path, from, to] = &query.arguments;
        let dir = directory(&path_argument(host, "mycelite_diff", path.as_ref())?)?;
        let from = moment(from.as_ref())?.ok_or_else(|| {
            Error::new(ErrorKind::Usage, "the moment to compare with is needed")
                .at("mycelite_diff")
                .hint("as in mycelite_diff('app.db', 41, 42) or mycelite_diff('app.db', 'ago:5m')")
        })?;
        let to = moment(to.as_ref())?.unwrap_or(Moment::Head);
        let compared = diff::Diff::new(&dir, &from, &to, None)?;
        Ok(Box::new(Values {
            encoding: compared.encoding(),
            changes: compared.changes(),
            hidden: query
                .arguments
                .clone()
                .map(|value| value.unwrap_or(Value::Null)),
            ready: VecDeque::new(),
            count: 0,
        }))
    }
}

fn moment(value: Option<&Value>) -> Result<Option<Moment>> {
    let text = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Integer(number)) => number.to_string(),
        Some(Value::Text(text)) => text.clone(),
        Some(_) => {
            return Err(
                Error::new(ErrorKind::Usage, "a moment is a number or text").at("mycelite_diff")
            );
        }
    };
    Moment::parse_word(&text)
        .map(Some)
        .map_err(|error| error.at("mycelite_diff"))
}

/// The values, as they are asked for.
struct Values {
    changes: Changes,
    encoding: Encoding,
    hidden: [Value; 3],
    ready: VecDeque<Row>,
    count: i64,
}

impl Iterator for Values {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        loop {
            if let Some(row) = self.ready.pop_front() {
                return Some(Ok(row));
            }
            match self.changes.next()? {
                Ok(change) => self.take(&change),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Values {
    fn push(&mut self, head: [Value; 4], old: Value, new: Value) {
        self.count += 1;
        let values = head
            .into_iter()
            .chain([old, new])
            .chain(self.hidden.clone());
        self.ready.push_back(Row {
            rowid: self.count,
            values: values.collect(),
        });
    }

    fn take(&mut self, change: &Change) {
        let encoding = self.encoding;
        match change {
            Change::Schema {
                kind,
                name,
                old,
                new,
            } => {
                let head = [
                    Value::from(name.as_str()),
                    Value::from("schema"),
                    Value::Null,
                    Value::from(kind.as_str()),
                ];
                let sql = |sql: &Option<String>| sql.as_deref().map_or(Value::Null, Value::from);
                self.push(head, sql(old), sql(new));
            }
            Change::Row { a, b, row } => {
                let (old, new) = (
                    a.as_deref().zip(row.old.as_deref()),
                    b.as_deref().zip(row.new.as_deref()),
                );
                let (op, Some((table, values))) = (
                    match (&old, &new) {
                        (Some(_), Some(_)) => "update",
                        (Some(_), None) => "delete",
                        _ => "insert",
                    },
                    new.or(old),
                ) else {
                    return;
                };
                let key = key(table, row.rowid, values, encoding);
                let columns: Vec<diff::ColumnChange> = match (old, new) {
                    (Some((a, old)), Some((b, new))) => changed_columns(a, old, b, new),
                    (Some((a, old)), None) => {
                        let columns = a.columns.iter().zip(old);
                        columns
                            .map(|(column, value)| (column.name.as_str(), Some(value), None))
                            .collect()
                    }
                    _ => {
                        let columns = table.columns.iter().zip(values);
                        columns
                            .map(|(column, value)| (column.name.as_str(), None, Some(value)))
                            .collect()
                    }
                };
                let one = |value: Option<&diff::Value>| {
                    value.map_or(Value::Null, |value| plain(value, encoding))
                };
                for (column, old, new) in columns {
                    let head = [
                        Value::from(table.name.as_str()),
                        Value::from(op),
                        key.clone(),
                        Value::from(column),
                    ];
                    self.push(head, one(old), one(new));
                }
            }
        }
    }
}

/// A row's key: its value, or as JSON where several columns make it.
fn key(table: &diff::Table, rowid: i64, values: &[diff::Value], encoding: Encoding) -> Value {
    let parts: Vec<&diff::Value> = table.key.iter().filter_map(|i| values.get(*i)).collect();
    match parts[..] {
        [] => Value::Integer(rowid),
        [one] => plain(one, encoding),
        _ => {
            let parts = parts.iter().map(|part| match plain(part, encoding) {
                Value::Integer(number) => serde_json::json!(number),
                Value::Real(number) => serde_json::json!(number),
                Value::Text(text) => serde_json::json!(text),
                Value::Null => serde_json::Value::Null,
                Value::Blob(_) => serde_json::json!(part.sql(encoding)),
            });
            Value::Text(serde_json::Value::Array(parts.collect()).to_string())
        }
    }
}

/// A value as SQL has it; text that is not valid comes as its bytes.
fn plain(value: &diff::Value, encoding: Encoding) -> Value {
    match value {
        diff::Value::Null => Value::Null,
        diff::Value::Integer(number) => Value::Integer(*number),
        diff::Value::Real(number) => Value::Real(*number),
        diff::Value::Text(bytes) => match encoding.decode(bytes) {
            Some(text) if !text.contains('\0') => Value::Text(text.into_owned()),
            _ => Value::Blob(bytes.clone()),
        },
        diff::Value::Blob(bytes) => Value::Blob(bytes.clone()),
    }
}
