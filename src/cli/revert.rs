//! `mycelite revert`: an old state as a new transaction. Nothing is lost: what it undoes stays in the history.

use std::path::Path;
use std::time::{Duration, Instant};

use mycelite::diff::{Diff, Script};
use mycelite::error::{Error, ErrorKind, Result};
use mycelite::moment::Moment;
use mycelite::reader;
use mycelite_journal::Txid;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::Answer;
use super::args::RevertArgs;
use super::diff::print;
use super::image::sqlite_error;
use super::output::Output;
use super::register::open_writer;
use super::source::{Local, log_error};

/// How long to wait for those who use the database.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs the verb.
pub fn run(args: &RevertArgs) -> Result<Answer> {
    let wanted = moment(args)?;
    let local = Local::find(&args.db)?;
    if !local.db.is_file() || args.db.is_dir() {
        return Err(Error::new(
            ErrorKind::Usage,
            "this is no database file, and only a database is reverted",
        )
        .at(args.db.display())
        .hint("mycelite restore writes a state to a new file"));
    }
    let mut live = open_writer(&local.db, &[])?;
    live.busy_timeout(PATIENCE)
        .map_err(|e| sqlite_error(&local.db, &e))?;
    let shelf = reader::open_log(&local.log_dir)?;
    let at_source = |error: Error| error.at(args.db.display());
    // What others left behind is recorded before anything is compared with it.
    batch(&live, &local.db, "BEGIN IMMEDIATE; ROLLBACK")?;
    let target = shelf.find(&wanted).map_err(at_source)?;
    shelf.archive.as_of(target).map_err(log_error)?;
    let mut output = Output::new();
    if args.dry_run {
        let (from, to) = (Moment::Head, Moment::Txid(target.0));
        let changes = Diff::new(&local.log_dir, &from, &to, args.table.as_deref())?.changes();
        print(changes, &mut output)?;
        output.line("nothing was changed: this was a dry run")?;
        output.finish()?;
        return Ok(Answer::Yes);
    }
    match &args.table {
        Some(table) => one_table(&live, &local, target, table)?,
        None => whole(&mut live, &local, target)?,
    }
    let head = shelf.archive.head().map_err(log_error)?.unwrap_or(target);
    prove(&local, target, head, args.table.as_deref())?;
    output.line(format_args!(
        "{}: transaction {head} has the content of transaction {target}{}; what was before it stays in the history",
        args.db.display(),
        match &args.table {
            Some(table) => format!(" in table {table}"),
            None => String::new(),
        }
    ))?;
    output.finish()?;
    Ok(Answer::Yes)
}

fn moment(args: &RevertArgs) -> Result<Moment> {
    match &args.to {
        Some(word) => Moment::parse_word(word).map_err(|error| error.at("--to")),
        None => super::when::named(None, &args.at, &args.ago, &args.bookmark),
    }
}

fn batch(live: &Connection, db: &Path, sql: &str) -> Result<()> {
    live.execute_batch(sql)
        .map_err(|error| sqlite_error(db, &error))
}

/// The rows of one table, by the SQL that leads from the last state to the old one, under the write lock.
fn one_table(live: &Connection, local: &Local, target: Txid, table: &str) -> Result<()> {
    let db = &local.db;
    batch(
        live,
        db,
        "PRAGMA foreign_keys=OFF; PRAGMA ignore_check_constraints=ON; BEGIN IMMEDIATE",
    )?;
    let done = || {
        let to = Moment::Txid(target.0);
        let mut diff = Diff::new(&local.log_dir, &Moment::Head, &to, Some(table))?;
        Script::write(&mut diff, &mut |statement| batch(live, db, statement))?;
        batch(live, db, "COMMIT")
    };
    done().inspect_err(|_| {
        // The first error tells more than what becomes of the transaction, which ends with the connection anyhow.
        let _ = live.execute_batch("ROLLBACK");
    })
}

/// The whole database, page by page, as SQLite's own backup writes it: one transaction.
fn whole(live: &mut Connection, local: &Local, target: Txid) -> Result<()> {
    let db = &local.db;
    let failed = |error: rusqlite::Error| {
        match error.sqlite_error_code() {
        Some(ErrorCode::ReadOnly) => sqlite_error(db, &error).hint(
            "in WAL mode the page size cannot change: set PRAGMA journal_mode=DELETE first, and WAL again afterwards",
        ),
        _ => sqlite_error(db, &error),
    }
    };
    let mode = journal_mode(live, db)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let past =
        Connection::open_with_flags(reader::uri(&local.log_dir, target)?, flags).map_err(failed)?;
    {
        let backup = Backup::new(&past, live).map_err(failed)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match backup.step(-1).map_err(failed)? {
                StepResult::Done => break,
                StepResult::Busy | StepResult::Locked if Instant::now() >= deadline => {
                    return Err(Error::new(
                        ErrorKind::Busy,
                        "another program uses the database; nothing was changed",
                    )
                    .at(db.display())
                    .hint(
                        "try again when it is not being read or written, or put it into WAL mode",
                    ));
                }
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
    // The old state may have been in another mode.
    if journal_mode(live, db)? != mode {
        live.query_row(&format!("PRAGMA journal_mode={mode}"), [], |_| Ok(()))
            .map_err(failed)?;
    }
    Ok(())
}

fn journal_mode(live: &Connection, db: &Path) -> Result<String> {
    live.query_row("PRAGMA journal_mode", [], |row| row.get(0))
        .map_err(|error| sqlite_error(db, &error))
}

/// Compares the new state with the old one. Others may have written meanwhile: then there is nothing to say.
fn prove(local: &Local, target: Txid, head: Txid, table: Option<&str>) -> Result<()> {
    let (from, to) = (Moment::Txid(target.0), Moment::Txid(head.0));
    let first = Diff::new(&local.log_dir, &from, &to, table)?
        .changes()
        .next();
    match first.transpose()? {
        None => Ok(()),
        Some(_) => Err(Error::new(
            ErrorKind::Busy,
            format_args!("transaction {head} does not have the content of transaction {target}: somebody wrote meanwhile"),
        )
        .at(local.db.display())
        .hint("look at the difference with mycelite diff, and revert again if need be")),
    }
}
