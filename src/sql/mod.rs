//! What SQL sees of us: functions, and tables that exist without anything being written into a schema.
//!
//! | name | what |
//! |---|---|
//! | `mycelite_version()` | version of this library |
//! | `mycelite_txid([schema])` | last recorded transaction |
//! | `mycelite_pos([schema])` | where the database is: `timeline/txid/checksum` |
//! | `mycelite_checksum([schema])` | checksum of the whole database at that transaction |
//! | `mycelite_status([schema])` | everything about it, as JSON |
//! | `mycelite_bookmark(name [, schema])` | names the last recorded transaction, and answers its number |
//! | `mycelite_lag([schema])` | how far a replica, open through the reader VFS, is behind the server that it follows, as JSON; null where nobody knows |
//! | `mycelite_wait(pos, timeout_ms[, schema])` | waits until the log holds a position (or transaction): 1, or 0 after that time |
//! | `mycelite_log(path)` | the history, one row for each recorded transaction |
//! | `mycelite_pages(path, txid)` | the pages that a transaction changed |
//! | `mycelite_diff(path, from, to)` | what differs between two moments, one row for each value |
//! | `mycelite_replicas` | the replicas and how far behind they are |
//! | `mycelite_config` | the settings; writing to it stores them beside the database |
//!
//! All tables are eponymous: they need no `CREATE`, and no `CREATE VIRTUAL TABLE` is possible. None may be used from
//! inside a schema (triggers, views), where a database from a stranger could make us send its content elsewhere.

// One of the rooms where unsafe code may live: SQLite calls what is registered here.
#![allow(unsafe_code)]

mod bookmark;
mod diff;
mod host;
mod log;
mod pages;
mod replicas;
mod settings;
mod table;
#[cfg(test)]
mod tests;
mod time;
mod trampoline;
mod wait;

use std::any::Any;
use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use c_shim::Api;
use sqlite_loadable::ErrorKind::DefineScalarFunction;
use sqlite_loadable::FunctionFlags;
use sqlite_loadable::api::{result_int64, result_text, value_text, value_type};
use sqlite_loadable::ext::{
    faux_sqlite_extension_init2, sqlite3, sqlite3_context, sqlite3_value,
    sqlite3ext_context_db_handle,
};
use sqlite_loadable::scalar::define_scalar_function;

use crate::error::{Error, ErrorKind, Result};
use host::{Host, Subject};
use table::Value;

/// Makes our functions and tables known to a connection. May be called again for the same one.
///
/// # Errors
/// The host has no memory left, or refuses a name; or the routine table was not believed by [`Api::init`] before.
///
/// # Safety
/// `db` is the open connection and `table` the routine table (`sqlite3_api_routines *`) that SQLite handed
/// to our entry point.
pub(crate) unsafe fn register(db: *mut c_shim::sqlite3, table: *mut c_void) -> Result<()> {
    static SET: OnceLock<()> = OnceLock::new();
    let Some(api) = Api::get() else {
        return Err(Error::new(
            ErrorKind::Internal,
            "the routine table is not set",
        ));
    };
    if db.is_null() || table.is_null() {
        return Err(Error::new(
            ErrorKind::Internal,
            "SQLite passed no connection",
        ));
    }
    // SAFETY: the caller's promise. Only once, since sqlite-loadable keeps the pointer without any synchronisation, and
    // Api::init let only this one table pass.
    SET.get_or_init(|| unsafe { faux_sqlite_extension_init2(table.cast()) });
    let db = db.cast::<sqlite3>();
    if functions(db)? == Defined::Before {
        return Ok(());
    }
    // SAFETY: the caller's promise: the connection is open.
    unsafe {
        trampoline::define::<log::Log>(api, db, c"mycelite_log")?;
        trampoline::define::<pages::Pages>(api, db, c"mycelite_pages")?;
        trampoline::define::<diff::Diff>(api, db, c"mycelite_diff")?;
        trampoline::define::<replicas::Replicas>(api, db, c"mycelite_replicas")?;
        trampoline::define::<settings::Settings>(api, db, c"mycelite_config")
    }
}

/// A function about one database.
trait Function: 'static {
    const NAME: &'static str;
    /// Whether triggers and views of any database may use it.
    const FLAGS: FunctionFlags;

    fn ask(subject: &Subject) -> Result<Value>;
}

struct Txid;
struct Position;
struct DatabaseChecksum;
struct Status;
struct Lag;

impl Function for Txid {
    const NAME: &'static str = "mycelite_txid";
    const FLAGS: FunctionFlags = FunctionFlags::INNOCUOUS;

    fn ask(subject: &Subject) -> Result<Value> {
        Ok(Value::from(subject.pos()?.txid.0))
    }
}

impl Function for Position {
    const NAME: &'static str = "mycelite_pos";
    const FLAGS: FunctionFlags = FunctionFlags::INNOCUOUS;

    fn ask(subject: &Subject) -> Result<Value> {
        Ok(Value::Text(subject.pos()?.to_string()))
    }
}

impl Function for DatabaseChecksum {
    const NAME: &'static str = "mycelite_checksum";
    const FLAGS: FunctionFlags = FunctionFlags::INNOCUOUS;

    fn ask(subject: &Subject) -> Result<Value> {
        Ok(Value::Text(subject.pos()?.checksum.to_string()))
    }
}

impl Function for Status {
    const NAME: &'static str = "mycelite_status";
    // It names replicas and paths.
    const FLAGS: FunctionFlags = FunctionFlags::DIRECTONLY;

    fn ask(subject: &Subject) -> Result<Value> {
        match subject {
            Subject::Written(database) => json(&database.status()),
            Subject::Read(view) => json(&view.status()?),
        }
    }
}

impl Function for Lag {
    const NAME: &'static str = "mycelite_lag";
    const FLAGS: FunctionFlags = FunctionFlags::INNOCUOUS;

    fn ask(subject: &Subject) -> Result<Value> {
        match subject {
            // Nothing is ahead of a primary.
            Subject::Written(_) => Ok(Value::Null),
            Subject::Read(view) => match view.lag()? {
                Some(lag) => json(&lag),
                None => Ok(Value::Null),
            },
        }
    }
}

fn json(value: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_string(value)
        .map(Value::Text)
        .map_err(|error| Error::new(ErrorKind::Internal, error))
}

/// Whether a connection got something now, or has it from an earlier load.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Defined {
    Now,
    Before,
}

fn functions(db: *mut sqlite3) -> Result<Defined> {
    let flags = FunctionFlags::INNOCUOUS | FunctionFlags::DETERMINISTIC;
    let version = define(db, "mycelite_version", 0, flags, |context, _| {
        answer(context, || Ok(Value::from(env!("CARGO_PKG_VERSION"))))
    })?;
    if version == Defined::Now {
        about_database::<Txid>(db)?;
        about_database::<Position>(db)?;
        about_database::<DatabaseChecksum>(db)?;
        about_database::<Status>(db)?;
        about_database::<Lag>(db)?;
        wait::define_all(db)?;
        bookmark::register(db)?;
    }
    Ok(version)
}

/// Defines a function without arguments (the database `main`) and with one (a schema's name).
fn about_database<F: Function>(db: *mut sqlite3) -> Result<()> {
    for arguments in [0, 1] {
        define(db, F::NAME, arguments, F::FLAGS, |context, values| {
            answer(context, || {
                let schema = schema_argument(values)?;
                // SAFETY: SQLite calls with the context of one of its connections, in that connection's thread.
                let host = unsafe { Host::new(sqlite3ext_context_db_handle(context).cast()) }?;
                F::ask(&host.subject(&schema)?)
            })
        })?;
    }
    Ok(())
}

fn define<C>(
    db: *mut sqlite3,
    name: &str,
    arguments: c_int,
    flags: FunctionFlags,
    call: C,
) -> Result<Defined>
where
    C: Fn(*mut sqlite3_context, &[*mut sqlite3_value]) -> sqlite_loadable::Result<()> + 'static,
{
    // sqlite-loadable never frees what the closure holds: with every connection, it would leak.
    const { assert!(size_of::<C>() == 0) };
    let flags = FunctionFlags::UTF8 | flags;
    let Err(refused) = define_scalar_function(db, name, arguments, call, flags) else {
        return Ok(Defined::Now);
    };
    match refused.kind() {
        // SQLite replaces no function while a statement runs, as `SELECT load_extension(...)` does.
        DefineScalarFunction(SQLITE_BUSY) => Ok(Defined::Before),
        _ => Err(Error::new(
            ErrorKind::Internal,
            format_args!("SQLite refused to define {name}()"),
        )),
    }
}

/// The schema that a function was asked about: `main` unless it is given.
fn schema_argument(values: &[*mut sqlite3_value]) -> Result<String> {
    let Some(value) = values.first() else {
        return Ok("main".to_owned());
    };
    if value_type(value) != sqlite_loadable::api::ValueType::Text {
        return Err(Error::new(
            ErrorKind::Usage,
            "the argument must be the name of an attached database, such as 'main'",
        ));
    }
    value_text(value)
        .map(str::to_owned)
        .map_err(|_| Error::new(ErrorKind::Usage, "the name is not UTF-8"))
}

/// Runs `ask` behind the panic guard and gives its value, or its error, to SQLite.
fn answer(
    context: *mut sqlite3_context,
    ask: impl FnOnce() -> Result<Value>,
) -> sqlite_loadable::Result<()> {
    match guard(ask) {
        Ok(value) => {
            give(context, &value);
            Ok(())
        }
        Err(error) => Err(sqlite_loadable::Error::new_message(plain(
            &error.to_string(),
        ))),
    }
}

/// Makes `value` the result of a function or column.
fn give(context: *mut sqlite3_context, value: &Value) {
    match value {
        Value::Null => sqlite_loadable::api::result_null(context),
        Value::Integer(number) => result_int64(context, *number),
        Value::Real(number) => sqlite_loadable::api::result_double(context, *number),
        Value::Blob(bytes) => sqlite_loadable::api::result_blob(context, bytes),
        Value::Text(text) => {
            if result_text(context, plain(text)).is_err() {
                sqlite_loadable::api::result_error_code(context, SQLITE_TOOBIG);
            }
        }
    }
}

/// Text of 2 GiB and more.
const SQLITE_TOOBIG: i32 = 18;
/// A function exists and may be in use.
const SQLITE_BUSY: i32 = 5;

/// Text without NUL bytes: sqlite-loadable frees text by its C length.
fn plain(text: &str) -> String {
    text.replace('\0', "")
}

/// Runs what SQLite asked for; a panic becomes an error and never reaches the host.
fn guard<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        Err(Error::new(
            ErrorKind::Internal,
            format_args!("a defect was caught: {}", panic_text(panic.as_ref())),
        )
        .at("mycelite")
        .hint("please report it; the database is not concerned"))
    })
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panic")
}
