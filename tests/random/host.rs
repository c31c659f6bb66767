//! Running SQL the same way on every connection, and telling the answers apart.

use rusqlite::functions::FunctionFlags;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, ffi};
use std::path::Path;
use std::time::Duration;

/// Opens `path` through `vfs`, with further URI `parameters`, and gives it the function `noise(seed, bytes)`.
pub fn open(
    path: &Path,
    vfs: &str,
    parameters: &str,
    patience: Duration,
) -> Result<Connection, i32> {
    crate::common::load();
    let uri = format!("file:{}?vfs={vfs}{parameters}", path.display());
    let connection =
        Connection::open_with_flags(uri, OpenFlags::default()).map_err(|e| code(&e))?;
    connection.busy_timeout(patience).map_err(|e| code(&e))?;
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    connection
        .create_scalar_function("noise", 2, flags, |context| {
            let (seed, bytes) = (context.get::<i64>(0)?, context.get::<i64>(1)?);
            Ok(noise(seed as u64, usize::try_from(bytes).unwrap_or(0)))
        })
        .map_err(|e| code(&e))?;
    Ok(connection)
}

/// Bytes that no compression shortens, the same for the same seed.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = crate::common::Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        out.extend_from_slice(&random.next().to_le_bytes());
    }
    out.truncate(bytes);
    out
}

/// What a statement answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Rows(Vec<String>),
    Error(i32),
}

impl Outcome {
    pub fn of(result: Result<(), i32>) -> Outcome {
        match result {
            Ok(()) => Outcome::Rows(Vec::new()),
            Err(code) => Outcome::Error(code),
        }
    }

    pub fn is_error(&self) -> bool {
        matches!(self, Outcome::Error(_))
    }
}

/// The extended result code.
pub fn code(error: &rusqlite::Error) -> i32 {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => failure.extended_code,
        rusqlite::Error::SqlInputError { error, .. } => error.extended_code,
        other => panic!("{other}"),
    }
}

/// Runs one statement.
pub fn run(connection: &Connection, sql: &str) -> Outcome {
    let rows = || -> rusqlite::Result<Vec<String>> {
        let mut statement = connection.prepare(sql)?;
        let columns = statement.column_count();
        let mut rows = statement.raw_query();
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let mut text = String::new();
            for column in 0..columns {
                text += &show(row.get_ref(column)?);
                text.push('|');
            }
            found.push(text);
        }
        Ok(found)
    };
    match rows() {
        Ok(rows) => Outcome::Rows(rows),
        Err(error) => Outcome::Error(code(&error)),
    }
}

fn show(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Blob(bytes) => {
            let hash = xxhash_rust::xxh3::xxh3_64(bytes);
            format!("{} bytes {hash:016x}", bytes.len())
        }
        ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
        other => format!("{other:?}"),
    }
}

/// Whether the connection holds the write lock of any of its databases.
pub fn is_writing(connection: &Connection) -> bool {
    // SAFETY: the connection is open; a null name stands for all its databases.
    let state = unsafe { ffi::sqlite3_txn_state(connection.handle(), std::ptr::null()) };
    state == ffi::SQLITE_TXN_WRITE
}

/// Schema and rows of everything in `path`, as a SQLite without the extension reads it, and what it finds wrong. What an
/// index looks like inside depends on more than its content, and so does the order of its rows.
pub fn dump(path: &Path) -> Vec<String> {
    let connection = open(path, "unix", "", Duration::from_secs(20)).unwrap();
    let lines = |sql: &str| match run(&connection, sql) {
        Outcome::Rows(rows) => rows,
        // Without a journal a rollback ruins a database, ours as well as any.
        Outcome::Error(code) => vec![format!("error {code}")],
    };
    let mut dump = lines("PRAGMA integrity_check");
    dump.extend(lines(
        "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name",
    ));
    dump.extend(lines("PRAGMA user_version"));
    for name in lines(
        "SELECT name FROM sqlite_schema WHERE type='table' AND name NOT GLOB '[fr]_*' ORDER BY name",
    ) {
        let name = name.trim_end_matches('|');
        dump.push(name.to_owned());
        let mut rows = lines(&format!("SELECT * FROM \"{name}\""));
        rows.sort_unstable();
        dump.extend(rows);
    }
    dump
}

/// Says where two dumps differ.
#[track_caller]
pub fn assert_same_dump(plain: &[String], ours: &[String], what: &str) {
    if let Some(at) = (0..plain.len().max(ours.len())).find(|&at| plain.get(at) != ours.get(at)) {
        panic!(
            "{what}: dumps differ at line {at}:\nplain: {:?}\nours:  {:?}",
            plain.get(at),
            ours.get(at)
        );
    }
}
