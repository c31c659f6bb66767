//! `mycelite diff`: what differs between two moments, row by row.

use mycelite::diff::{
    Change, Changes, Column, Diff, Encoding, RowChange, Script, Table, Value, changed_columns,
};
use mycelite::error::{Error, ErrorKind, Result};
use mycelite::moment::Moment;
use serde_json::{Map, Value as Json, json};

use super::Answer;
use super::args::DiffArgs;
use super::output::Output;
use super::register::register;
use super::source::{Local, Source};

/// Characters of a value that are shown to people.
const SHOWN_MAX: usize = 60;

/// Runs the verb.
pub fn run(args: &DiffArgs) -> Result<Answer> {
    let moment = |name: &str, text: &str| {
        Moment::parse_word(text).map_err(|error| error.at(format_args!("--{name}")))
    };
    let (from, to) = (moment("from", &args.from)?, moment("to", &args.to)?);
    let local = local(&args.source)?;
    register()?;
    let mut diff = Diff::new(&local.log_dir, &from, &to, args.table.as_deref())?;
    let mut output = Output::new();
    if args.sql {
        script(&mut diff, &mut output)?;
    } else if args.json {
        let encoding = diff.encoding();
        for change in diff.changes() {
            output.json(&as_json(&change?, encoding))?;
            if output.is_gone() {
                break;
            }
        }
    } else {
        print(diff.changes(), &mut output)?;
    }
    output.finish()?;
    Ok(Answer::Yes)
}

/// A log on this machine; a server has no rows to compare.
pub fn local(source: &str) -> Result<Local> {
    match Source::parse(source)? {
        Source::Local(local) => Ok(local),
        Source::Server(_) => Err(Error::new(
            ErrorKind::Usage,
            "rows are compared where the log is, not on a server",
        )
        .at(source)
        .hint("run this on the machine that has the log, or follow the database first")),
    }
}

fn script(diff: &mut Diff, output: &mut Output) -> Result<()> {
    let (from, to) = diff.txids();
    output.line(format_args!(
        "-- from transaction {from} to transaction {to}"
    ))?;
    output
        .line("PRAGMA foreign_keys=OFF;\nPRAGMA ignore_check_constraints=ON;\nBEGIN IMMEDIATE;")?;
    Script::write(diff, &mut |statement| output.line(statement))?;
    output.line("COMMIT;\nPRAGMA ignore_check_constraints=OFF;")
}

/// How many rows came, went and changed.
#[derive(Default)]
pub struct Counts {
    schema: u64,
    inserted: u64,
    deleted: u64,
    updated: u64,
}

/// Shows differences to people: the schema's first, then those of the rows under their table's name.
pub fn print(changes: Changes, output: &mut Output) -> Result<Counts> {
    let encoding = changes.diff().encoding();
    let (from, to) = changes.diff().txids();
    let mut counts = Counts::default();
    let mut heading = String::new();
    for change in changes {
        match change? {
            Change::Schema {
                kind,
                name,
                old,
                new,
            } => {
                counts.schema += 1;
                let title = format!("{kind} {name}:");
                output.line(title)?;
                for (sign, sql) in [('-', old), ('+', new)] {
                    if let Some(sql) = sql {
                        output.line(format_args!("  {sign} {}", one_line(&sql)))?;
                    }
                }
            }
            Change::Row { a, b, row } => {
                let Some(table) = b.as_deref().or(a.as_deref()) else {
                    continue;
                };
                if heading != table.name {
                    heading.clone_from(&table.name);
                    output.line(format_args!("{heading}:"))?;
                }
                match (&row.old, &row.new) {
                    (Some(_), Some(_)) => counts.updated += 1,
                    (Some(_), None) => counts.deleted += 1,
                    _ => counts.inserted += 1,
                }
                output.line(row_line(a.as_deref(), b.as_deref(), &row, encoding))?;
            }
        }
        if output.is_gone() {
            return Ok(counts);
        }
    }
    output.line(format_args!(
        "transaction {from} to {to}: {} of the schema, {} inserted, {} deleted, {} updated",
        counts.schema, counts.inserted, counts.deleted, counts.updated
    ))?;
    Ok(counts)
}

fn row_line(a: Option<&Table>, b: Option<&Table>, row: &RowChange, encoding: Encoding) -> String {
    let all = |table: &Table, values: &[Value]| {
        let columns = table.columns.iter().zip(values);
        let shown =
            columns.map(|(column, value)| format!("{}={}", column.name, short(value, encoding)));
        shown.collect::<Vec<_>>().join(", ")
    };
    match (a, &row.old, b, &row.new) {
        (Some(a), Some(old), Some(b), Some(new)) => {
            let changed = changed_columns(a, old, b, new);
            let shown = changed.iter().map(|(name, old, new)| {
                let side = |value: &Option<&Value>| {
                    value.map_or("nothing".to_owned(), |value| short(value, encoding))
                };
                format!("{name}: {} -> {}", side(old), side(new))
            });
            let shown = shown.collect::<Vec<_>>().join(", ");
            format!("  ~ {}  {shown}", key_text(b, row.rowid, new, encoding))
        }
        (_, None, Some(b), Some(new)) => {
            format!(
                "  + {}  {}",
                key_text(b, row.rowid, new, encoding),
                all(b, new)
            )
        }
        (Some(a), Some(old), ..) => {
            format!(
                "  - {}  {}",
                key_text(a, row.rowid, old, encoding),
                all(a, old)
            )
        }
        _ => String::new(),
    }
}

/// The names and values of a row's key; `rowid` where the table has no better name for it.
fn key<'a>(table: &'a Table, rowid: i64, values: &'a [Value]) -> Vec<(&'a str, Value)> {
    let named = |i: &usize| {
        let column: &Column = table.columns.get(*i)?;
        Some((column.name.as_str(), values.get(*i)?.clone()))
    };
    let key: Vec<(&str, Value)> = table.key.iter().filter_map(named).collect();
    if key.is_empty() {
        return vec![("rowid", Value::Integer(rowid))];
    }
    key
}

fn key_text(table: &Table, rowid: i64, values: &[Value], encoding: Encoding) -> String {
    let parts = key(table, rowid, values);
    let parts = parts.iter().map(|(_, value)| short(value, encoding));
    parts.collect::<Vec<_>>().join(" ")
}

/// A value for people: SQL, cut where it is long.
fn short(value: &Value, encoding: Encoding) -> String {
    let text = match value {
        Value::Real(number) => format!("{number:?}"),
        other => one_line(&other.sql(encoding)),
    };
    let Some((cut, _)) = text.char_indices().nth(SHOWN_MAX) else {
        return text;
    };
    let bytes = match value {
        Value::Text(bytes) | Value::Blob(bytes) => bytes.len(),
        _ => 0,
    };
    format!("{}... ({bytes} bytes)", text.get(..cut).unwrap_or_default())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn as_json(change: &Change, encoding: Encoding) -> Json {
    let value = |value: &Value| match value {
        Value::Null => Json::Null,
        Value::Integer(number) => json!(number),
        Value::Real(number) if number.is_finite() => json!(number),
        Value::Real(number) => json!({ "real": number.to_string() }),
        Value::Text(bytes) => match encoding.decode(bytes) {
            Some(text) => json!(text),
            None => json!({ "text": hex(bytes) }),
        },
        Value::Blob(bytes) => json!({ "blob": hex(bytes) }),
    };
    match change {
        Change::Schema {
            kind,
            name,
            old,
            new,
        } => {
            json!({ "op": "schema", "kind": kind, "name": name, "old": old, "new": new })
        }
        Change::Row { a, b, row } => {
            let object = |table: &Option<std::sync::Arc<Table>>, values: &Option<Vec<Value>>| {
                let (table, values) = (table.as_deref()?, values.as_ref()?);
                let columns = table.columns.iter().zip(values);
                let fields: Map<String, Json> = columns
                    .map(|(column, one)| (column.name.clone(), value(one)))
                    .collect();
                Some(Json::Object(fields))
            };
            let op = match (&row.old, &row.new) {
                (Some(_), Some(_)) => "update",
                (Some(_), None) => "delete",
                _ => "insert",
            };
            let side = match (b.as_deref(), &row.new, a.as_deref(), &row.old) {
                (Some(table), Some(values), ..) | (_, None, Some(table), Some(values)) => {
                    Some((table, values))
                }
                _ => None,
            };
            let keys: Map<String, Json> = side
                .map(|(table, values)| key(table, row.rowid, values))
                .unwrap_or_default()
                .iter()
                .map(|(name, one)| ((*name).to_owned(), value(one)))
                .collect();
            let table = side.map(|(table, _)| table.name.as_str());
            json!({ "op": op, "table": table, "key": keys, "old": object(a, &row.old), "new": object(b, &row.new) })
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
