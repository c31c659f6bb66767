//! `mycelite.toml`: settings for many databases in one file.
//!
//! ```toml
//! [default]
//! log_sync = "normal"
//!
//! [database."/srv/app.db"]
//! replica = ["http://one:7878/app", "http://two:7878/app"]
//! ```

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{Config, Given, Layer, nearest, value};
use crate::error::{Error, ErrorKind, Result};

/// What the file `path` says about the database `db`, `[default]` first. Tables of other databases are checked too.
pub(super) fn given(path: &Path, db: &Path) -> Result<Vec<Given>> {
    let table = parse(path)?;
    let base = parent(path);
    let wanted = resolve(db);
    let mut given = Vec::new();
    let mut matching = Vec::new();
    for (key, value) in &table {
        match (key.as_str(), value) {
            ("default", Value::Table(settings)) => {
                given = from_table(path, "[default]", settings, &base)?
            }
            ("database", Value::Table(databases)) => {
                for (name, settings) in databases {
                    let title = format!("[database.{name:?}]");
                    let Value::Table(settings) = settings else {
                        return Err(not_a_table(path, &title));
                    };
                    let found = from_table(path, &title, settings, &base)?;
                    if resolve(&base.join(name)) == wanted {
                        matching.extend(found);
                    }
                }
            }
            ("default" | "database", _) => return Err(not_a_table(path, &format!("[{key}]"))),
            _ => return Err(unknown_table(path, key)),
        }
    }
    // Both are of one layer: the special one comes later and so wins.
    given.extend(matching);
    Ok(given)
}

fn parse(path: &Path) -> Result<Table> {
    let text = value::read_bounded(path, "reading the configuration")?;
    text.parse()
        .map_err(|error: toml::de::Error| syntax_error(path, &text, &error))
}

/// A TOML syntax error as one line with its line number.
pub(super) fn syntax_error(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let start = error.span().map_or(0, |span| span.start);
    let line = text.get(..start).unwrap_or_default().matches('\n').count() + 1;
    Error::new(
        ErrorKind::Usage,
        format_args!("not valid TOML: {}", error.message()),
    )
    .at(format_args!("{} line {line}", path.display()))
    .hint("values are written like  log_sync = \"full\"")
}

fn from_table(path: &Path, title: &str, table: &Table, base: &Path) -> Result<Vec<Given>> {
    let mut given = Vec::new();
    for (key, value) in table {
        let place = format!("{} {title} {key}", path.display());
        let one = Given {
            layer: Layer::File,
            text: text_of(value, &place)?,
            place,
            key: key.clone(),
            base: base.to_path_buf(),
        };
        Config::default().set(&one)?;
        given.push(one);
    }
    Ok(given)
}

/// A setting's value as the text that every layer shares.
pub(super) fn text_of(value: &Value, place: &str) -> Result<String> {
    Ok(match value {
        Value::String(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Boolean(flag) => u8::from(*flag).to_string(),
        Value::Array(items) if items.iter().all(Value::is_str) => {
            let items: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            items.join(",")
        }
        other => {
            return Err(Error::new(
                ErrorKind::Usage,
                format_args!("a value of type {}", other.type_str()),
            )
            .at(place)
            .hint("a setting is a string, a whole number, a boolean or a list of strings"));
        }
    })
}

fn not_a_table(path: &Path, title: &str) -> Error {
    Error::new(ErrorKind::Usage, format_args!("{title} is not a table"))
        .at(path.display())
        .hint("write [default] or [database.\"PATH\"] and the settings below it")
}

fn unknown_table(path: &Path, key: &str) -> Error {
    let hint = match (
        super::Setting::find(key),
        nearest(key, ["default", "database"]),
    ) {
        (Some(_), _) => "put it below [default] or [database.\"PATH\"]".to_string(),
        (None, Some(near)) => format!("did you mean [{near}]?"),
        (None, None) => "known are [default] and [database.\"PATH\"]".to_string(),
    };
    Error::new(
        ErrorKind::Usage,
        format_args!("unknown table or key {key:?}"),
    )
    .at(path.display())
    .hint(hint)
}

fn parent(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    path.parent().map(Path::to_path_buf).unwrap_or_default()
}

/// One spelling for one file, also when it does not exist yet but its directory does.
fn resolve(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    match (parent(path).canonicalize(), path.file_name()) {
        (Ok(directory), Some(name)) => directory.join(name),
        _ => std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()),
    }
}
