//! `mycelite_wait`: read your own writes on a replica.

use std::time::{Duration, Instant};

use mycelite_journal::{Pos, Txid};
use sqlite_loadable::FunctionFlags;
use sqlite_loadable::api::{ValueType, value_int64, value_text, value_type};
use sqlite_loadable::ext::{sqlite3, sqlite3_value, sqlite3ext_context_db_handle};

use super::host::{Host, Subject};
use super::table::Value;
use super::{answer, define, schema_argument};
use crate::error::{Error, ErrorKind, Result};

/// Longest wait, in ms: an hour.
const TIMEOUT_MS_MAX: i64 = 3_600_000;
/// Pause between two looks at a database that this process writes.
const LOOK: Duration = Duration::from_millis(1);

/// Defines it with two arguments (the database `main`) and with three.
pub(super) fn define_all(db: *mut sqlite3) -> Result<()> {
    for arguments in [2, 3] {
        // It waits: nothing that a view or trigger of a stranger's database should be able to do.
        let flags = FunctionFlags::DIRECTONLY;
        define(db, "mycelite_wait", arguments, flags, |context, values| {
            answer(context, || {
                let (target, timeout) = (target(values.first())?, timeout(values.get(1))?);
                let schema = schema_argument(values.get(2..).unwrap_or_default())?;
                // SAFETY: SQLite calls with the context of one of its connections, in that connection's thread.
                let host = unsafe { Host::new(sqlite3ext_context_db_handle(context).cast()) }?;
                let holds = match host.subject(&schema)? {
                    Subject::Read(view) => match target {
                        Target::Pos(pos) => view.wait(pos, timeout)?,
                        Target::Txid(txid) => view.wait_for_txid(txid, timeout)?,
                    },
                    written @ Subject::Written(_) => wait(&written, target.txid(), timeout)?,
                };
                Ok(Value::from(u64::from(holds)))
            })
        })?;
    }
    Ok(())
}

/// What is waited for.
#[derive(Clone, Copy)]
enum Target {
    Pos(Pos),
    Txid(Txid),
}

impl Target {
    fn txid(self) -> Txid {
        match self {
            Target::Pos(pos) => pos.txid,
            Target::Txid(txid) => txid,
        }
    }
}

fn target(value: Option<&*mut sqlite3_value>) -> Result<Target> {
    let wrong = || {
        Error::new(
            ErrorKind::Usage,
            "the first argument must be a position, as mycelite_pos() gives it, or a transaction's number",
        )
    };
    let value = value.ok_or_else(wrong)?;
    match value_type(value) {
        ValueType::Integer => u64::try_from(value_int64(value))
            .map(|txid| Target::Txid(Txid(txid)))
            .map_err(|_| wrong()),
        ValueType::Text => {
            let text = value_text(value).map_err(|_| wrong())?;
            text.parse().map(Target::Pos).map_err(|_| wrong())
        }
        _ => Err(wrong()),
    }
}

fn timeout(value: Option<&*mut sqlite3_value>) -> Result<Duration> {
    let ms = value
        .filter(|value| value_type(value) == ValueType::Integer)
        .map(value_int64)
        .filter(|ms| (0..=TIMEOUT_MS_MAX).contains(ms));
    let ms = ms.ok_or_else(|| {
        Error::new(
            ErrorKind::Usage,
            format_args!(
                "the second argument must be a number of milliseconds from 0 to {TIMEOUT_MS_MAX}"
            ),
        )
    })?;
    Ok(Duration::from_millis(ms.unsigned_abs()))
}

fn wait(subject: &Subject, txid: Txid, timeout: Duration) -> Result<bool> {
    let deadline = Instant::now() + timeout;
    while subject.pos()?.txid < txid {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(LOOK);
    }
    Ok(true)
}
