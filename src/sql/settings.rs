//! `mycelite_config`: the settings in force, and a way to store others beside the database.

use std::path::PathBuf;

use super::host::Host;
use super::table::{Change, Query, Row, Rows, Table, Value};
use crate::config::{SETTINGS, Setting, stored};
use crate::database::Database;
use crate::error::{Error, ErrorKind, Result};

/// One row for each setting of the main database.
///
/// `source` says which layer the value in force comes from, `stored` what is stored (NULL: nothing). Both are hidden, so
/// that `INSERT INTO mycelite_config VALUES ('replica', '...')` needs no column names. `INSERT` and `UPDATE` store a
/// value, `DELETE` removes what is stored; all take effect at once and are no part of a transaction. (SQLite itself begins
/// a write transaction around them, which is empty; in a database of no bytes, that alone creates its first page.)
pub(super) struct Settings;

const KEY: usize = 0;
const VALUE: usize = 1;
const SOURCE: usize = 2;
const STORED: usize = 3;

impl Table for Settings {
    const SCHEMA: &'static str = "CREATE TABLE mycelite_config(key TEXT, value TEXT, source TEXT HIDDEN, stored TEXT HIDDEN)";
    const WRITABLE: bool = true;

    fn rows(host: &Host, _query: &Query) -> Result<Rows> {
        let database = host.database("main")?;
        let rows = rows(&database)?;
        Ok(Box::new(
            (0..)
                .zip(rows)
                .map(|(rowid, values)| Ok(Row { rowid, values })),
        ))
    }

    fn change(host: &Host, change: Change) -> Result<()> {
        let database = host.database("main")?;
        match change {
            Change::Insert(values) => {
                let [Value::Null, Value::Null] = values.get(SOURCE..).unwrap_or_default() else {
                    return Err(usage("only key and value can be written"));
                };
                let Some(Value::Text(key)) = values.get(KEY) else {
                    return Err(usage("the key must be text").hint(
                        "SELECT key, value, source FROM mycelite_config shows the settings",
                    ));
                };
                store(&database, key, values.get(VALUE))
            }
            Change::Update(rowid, values) => {
                let setting = setting(rowid)?;
                let row = rows(&database)?
                    .into_iter()
                    .find(|row| row[KEY] == Value::from(setting.name));
                let same = |column: usize| {
                    row.as_ref()
                        .is_some_and(|row| row.get(column) == values.get(column))
                };
                if !(same(KEY) && same(SOURCE) && same(STORED)) {
                    return Err(usage("only the value can be changed"));
                }
                store(&database, setting.name, values.get(VALUE))
            }
            Change::Delete(rowid) => {
                let setting = setting(rowid)?;
                apply(&database, setting.name, || {
                    stored::remove(&path(&database), setting.name).map(drop)
                })
            }
        }
    }
}

fn rows(database: &Database) -> Result<Vec<Vec<Value>>> {
    let config = database.config();
    let stored = stored::read(&path(database))?;
    let row = |setting: &Setting| {
        let stored = stored.iter().find(|(key, _)| key == setting.name);
        vec![
            Value::from(setting.name),
            Value::Text(config.show(setting.name)),
            Value::Text(config.layer(setting.name).to_string()),
            stored.map_or(Value::Null, |(_, value)| Value::from(value.as_str())),
        ]
    };
    Ok(SETTINGS.iter().map(row).collect())
}

fn store(database: &Database, key: &str, value: Option<&Value>) -> Result<()> {
    let text = match value {
        Some(Value::Text(text)) => text.clone(),
        Some(Value::Integer(number)) => number.to_string(),
        _ => {
            return Err(usage("the value is NULL")
                .at(key)
                .hint("DELETE the row to go back to the default"));
        }
    };
    apply(database, key, || {
        stored::insert(&path(database), key, &text)
    })
}

/// Changes what is stored and lets the database go by it; if it cannot, the change is taken back.
fn apply(database: &Database, key: &str, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let path = path(database);
    let before = stored::read(&path)?
        .into_iter()
        .find(|(other, _)| other == key);
    change()?;
    let Err(refused) = database.reload() else {
        return Ok(());
    };
    match before {
        Some((key, value)) => stored::insert(&path, &key, &value)?,
        None => stored::remove(&path, key).map(drop)?,
    }
    Err(refused)
}

fn path(database: &Database) -> PathBuf {
    database.log_dir().join("config.toml")
}

fn setting(rowid: i64) -> Result<&'static Setting> {
    usize::try_from(rowid)
        .ok()
        .and_then(|index| SETTINGS.get(index))
        .ok_or_else(|| Error::new(ErrorKind::Internal, "no such setting"))
}

fn usage(what: &str) -> Error {
    Error::new(ErrorKind::Usage, what).at("mycelite_config")
}
