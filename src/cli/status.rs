//! `mycelite status`: where a database is, and where its replicas are.

use mycelite::config::Config;
use mycelite::database;
use mycelite::error::Result;
use mycelite::maintain;
use mycelite::parked;
use mycelite::proto::ReplicaUrl;
use mycelite::ship::{ShipOptions, fetch};
use mycelite::status::{DatabaseStatus, ParkedStatus, PosStatus, ReplicaStatus};

use super::Answer;
use super::args::{AccessArgs, StatusArgs};
use super::output::{self, Output};
use super::source::{Local, Source, access, log_error, remote};

/// Runs the verb.
pub fn run(args: &StatusArgs) -> Result<Answer> {
    let mut output = Output::new();
    match Source::parse(&args.source)? {
        Source::Local(local) => {
            let status = of_local(&local, &args.access)?;
            if args.json {
                output.json(&status)?;
            } else {
                print(&status, &mut output)?;
            }
        }
        Source::Server(url) => {
            let info = remote(&url, &args.access)?.info()?;
            if args.json {
                output.json(&info)?;
            } else {
                let fields = [
                    ("database", url.to_string()),
                    ("id", info.id),
                    ("position", position(&info.pos)),
                    ("applied", format!("transaction {}", info.applied_txid)),
                    (
                        "history",
                        format!(
                            "from transaction {}, {}",
                            info.first_txid,
                            output::bytes(info.log_bytes)
                        ),
                    ),
                    ("size", size(info.page_count, info.page_size)),
                    ("state", state(&info.state, &info.last_error)),
                ];
                for (name, text) in fields {
                    output.line(format_args!("{name:<10} {text}"))?;
                }
                if let Some(follow) = &info.follow {
                    output.line(format_args!(
                        "{:<10} {}, {}: lacks {} transactions of {}",
                        "follows", follow.url, follow.state, follow.lag_txids, follow.head_txid
                    ))?;
                }
                print_parked(&info.parked, &mut output)?;
            }
        }
    }
    output.finish()?;
    Ok(Answer::Yes)
}

fn of_local(local: &Local, flags: &AccessArgs) -> Result<DatabaseStatus> {
    let mut reader = local.reader()?;
    let head = reader.head().map_err(log_error)?.map(|entry| entry.header);
    let config = Config::for_database(&local.db, &[])?;
    let pos = head.map_or(mycelite_journal::Pos::ZERO, |header| header.pos());
    Ok(DatabaseStatus {
        database: local.db.display().to_string(),
        id: reader.id().to_string(),
        pos: PosStatus {
            timeline: pos.timeline.0,
            txid: pos.txid.0,
            checksum: pos.checksum.to_string(),
        },
        page_size: head.map_or(0, |header| header.page_size.get()),
        page_count: head.map_or(0, |header| header.page_count),
        log_bytes: database::directory_bytes(&local.log_dir),
        log_over: maintain::over(&local.log_dir),
        state: "ok".into(),
        last_error: String::new(),
        replicas: probe(local, &config, flags)?,
        // Only a process that commits knows.
        ack: None,
        parked: parked::list(&local.log_dir)
            .iter()
            .map(|tail| tail.status())
            .collect(),
    })
}

/// Asks each replica in the settings where it is; one that cannot be reached says so in its status.
fn probe(local: &Local, config: &Config, flags: &AccessArgs) -> Result<Vec<ReplicaStatus>> {
    let replicas = config
        .replicas
        .iter()
        .map(|url| url.parse())
        .collect::<Result<Vec<ReplicaUrl>>>()?;
    if replicas.is_empty() {
        return Ok(Vec::new());
    }
    let mut options = ShipOptions::new(&local.log_dir, replicas);
    options.access = access(config, flags)?;
    options.request_timeout = config.request_timeout;
    fetch::probe(&options)
}

fn print(status: &DatabaseStatus, output: &mut Output) -> Result<()> {
    let fields = [
        ("database", status.database.clone()),
        ("id", status.id.clone()),
        ("position", position(&status.pos)),
        ("size", size(status.page_count, status.page_size)),
        ("log", output::bytes(status.log_bytes)),
        ("state", state(&status.state, &status.last_error)),
    ];
    for (name, text) in fields {
        output.line(format_args!("{name:<10} {text}"))?;
    }
    if !status.log_over.is_empty() {
        output.line(format_args!("{:<10} {}", "too long", status.log_over))?;
    }
    print_parked(&status.parked, output)?;
    if status.replicas.is_empty() {
        return output.line("replicas   none in the settings (INSERT INTO mycelite_config VALUES ('replica', URL), or MYCELITE_REPLICA)");
    }
    let rows: Vec<Vec<String>> = status
        .replicas
        .iter()
        .map(|replica| {
            vec![
                replica.url.clone(),
                replica.state.clone(),
                replica.acked_txid.to_string(),
                replica.lag_txids.to_string(),
                output::bytes(replica.lag_bytes),
                format!("{:.1} s", replica.lag_ms as f64 / 1000.0),
                replica.last_error.clone(),
            ]
        })
        .collect();
    let head = [
        "replica",
        "state",
        "has",
        "lacks",
        "bytes",
        "behind",
        "last error",
    ];
    output.line("")?;
    for line in output::table(&head, &[2, 3, 4, 5], &rows) {
        output.line(line)?;
    }
    Ok(())
}

/// The tails that were parked when new timelines began, one line each.
pub fn print_parked(tails: &[ParkedStatus], output: &mut Output) -> Result<()> {
    for tail in tails {
        output.line(format_args!(
            "{:<10} transactions {} to {} of timeline {}, {}: parked/{}",
            "parked",
            tail.first_txid,
            tail.last_txid,
            tail.timeline,
            output::bytes(tail.bytes),
            tail.name
        ))?;
    }
    Ok(())
}

fn position(pos: &PosStatus) -> String {
    match pos.txid {
        0 => "nothing recorded yet".into(),
        txid => format!(
            "transaction {txid} on timeline {}, checksum {}",
            pos.timeline, pos.checksum
        ),
    }
}

fn size(pages: u32, page_size: u32) -> String {
    let bytes = u64::from(pages) * u64::from(page_size);
    format!(
        "{} ({pages} pages of {page_size} bytes)",
        output::bytes(bytes)
    )
}

fn state(state: &str, last_error: &str) -> String {
    if last_error.is_empty() {
        state.to_string()
    } else {
        format!("{state}: {last_error}")
    }
}
