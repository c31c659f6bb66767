//! `mycelite push`: records what is not recorded yet, and sends everything to the replicas.

use std::path::Path;

use mycelite::config::Config;
use mycelite::database;
use mycelite::error::{Error, ErrorKind, Result};
use mycelite::proto::ReplicaUrl;
use mycelite::ship::{ShipOptions, push_once};
use mycelite::status::ReplicaStatus;

use super::Answer;
use super::args::PushArgs;
use super::image::sqlite_error;
use super::output::{self, Output};
use super::register::open_writer;
use super::source::access;

/// Runs the verb.
pub fn run(args: &PushArgs) -> Result<Answer> {
    let db = args.db.as_path();
    match db.try_exists() {
        Ok(true) => {}
        Ok(false) => {
            return Err(Error::new(ErrorKind::NotFound, "no such file")
                .at(db.display())
                .hint("give a database file"));
        }
        Err(source) => return Err(Error::io("looking for the database", db, &source)),
    }
    let config = Config::for_database(db, &[])?;
    let texts = if args.to.is_empty() {
        &config.replicas
    } else {
        &args.to
    };
    let replicas = texts
        .iter()
        .map(|url| url.parse())
        .collect::<Result<Vec<ReplicaUrl>>>()?;
    if replicas.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "no replica is configured")
            .at(db.display())
            .hint("give one with --to http://HOST:PORT/NAME, or store it: INSERT INTO mycelite_config VALUES ('replica', URL)"));
    }
    capture(db)?;
    let mut options = ShipOptions::new(database::log_dir(db), replicas);
    options.access = access(&config, &args.access)?;
    options.batch_bytes_max = config.batch_bytes_max;
    options.request_timeout = config.request_timeout;
    let statuses = send(&options)?;
    report(args, &statuses)
}

/// Opens the database as an application would, so that what a crash or an outsider left behind is recorded.
pub fn capture(db: &Path) -> Result<()> {
    // No replica while it is open: it is this program, not the connection's own thread, that sends.
    let connection = open_writer(db, &[("replica", "")])?;
    connection
        .execute_batch("BEGIN IMMEDIATE; ROLLBACK")
        .map_err(|error| sqlite_error(db, &error))?;
    connection
        .close()
        .map_err(|(_, error)| sqlite_error(db, &error))
}

fn send(options: &ShipOptions) -> Result<Vec<ReplicaStatus>> {
    let bar = output::bytes_bar(0, "pushing");
    // The bar is about one replica after the other, and begins anew with each.
    let statuses = push_once(options, &mut |progress| {
        bar.set_length(progress.sent_bytes + progress.lag_bytes);
        bar.set_position(progress.sent_bytes);
    });
    bar.finish_and_clear();
    statuses
}

fn report(args: &PushArgs, statuses: &[ReplicaStatus]) -> Result<Answer> {
    let mut output = Output::new();
    if args.json {
        output.json(&statuses)?;
    } else {
        for status in statuses
            .iter()
            .filter(|status| status.last_error.is_empty())
        {
            output.line(format_args!(
                "{}: holds everything up to transaction {}",
                status.url, status.acked_txid
            ))?;
        }
    }
    output.finish()?;
    let failed: Vec<&ReplicaStatus> = statuses
        .iter()
        .filter(|status| !status.last_error.is_empty())
        .collect();
    match failed.as_slice() {
        [] => Ok(Answer::Yes),
        [one] => Err(undelivered(one)),
        [first, rest @ ..] => {
            let others: Vec<&str> = rest.iter().map(|status| status.url.as_str()).collect();
            Err(undelivered(first).hint(format_args!(
                "and not delivered to {} either",
                others.join(", ")
            )))
        }
    }
}

fn undelivered(status: &ReplicaStatus) -> Error {
    Error::new(
        ErrorKind::Network,
        format_args!(
            "not everything was delivered ({} transactions are missing there): {}",
            status.lag_txids, status.last_error
        ),
    )
    .at(&status.url)
}
