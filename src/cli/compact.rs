//! `mycelite compact` and `mycelite snapshot`: maintenance of a log by hand.

use std::time::Duration;

use clap::Args;
use mycelite::config::Config;
use mycelite::error::{Error, ErrorKind, Result};
use mycelite::maintain::{self, Done, Needs};
use mycelite_journal::{FullSpeed, Txid};
use serde::Serialize;

use super::Answer;
use super::output::{self, Output};
use super::source::{Local, Source};

/// `mycelite compact`
#[derive(Debug, Args)]
pub struct CompactArgs {
    /// Database file or log directory
    pub source: String,
    /// Change nothing, say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// What `--help` adds.
pub const COMPACT_HELP: &str = "\
All commits of the last day stay, then one state of each minute, after a week of each hour, after a month of each day: settings
keep_all, keep_minutes, keep_hours, keep_days and log_bytes_max. Bookmarked states stay, and those that a reader has open. A clock
that is more than eight days ahead of the last round counts only when it has been so for a day. It may be killed at any moment.
Exit code 1: the log is longer than log_bytes_max, and nothing more may be dropped.

Examples:
  mycelite compact app.db --dry-run
  MYCELITE_KEEP_ALL=1h mycelite compact app.db
JSON: {sealed, snapshots, merged_files, thinned, begins_at, bytes_before, bytes_after, over, clock, busy}.";

/// `mycelite snapshot`
#[derive(Debug, Args)]
pub struct SnapshotArgs {
    /// Database file or log directory
    pub source: String,
    /// As of this transaction instead of the newest
    #[arg(long, value_name = "N")]
    pub txid: Option<u64>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// What `--help` adds.
pub const SNAPSHOT_HELP: &str = "\
Snapshots are written by themselves when the log since the last one outgrows the database.

Examples:
  mycelite snapshot app.db
  mycelite snapshot app.db --txid 41
JSON: {txid, timeline, checksum, bytes}.";

/// How long a snapshot waits for somebody else's maintenance.
const PATIENCE: Duration = Duration::from_secs(60);

/// What `--json` shows of a snapshot; the field names stay as they are.
#[derive(Serialize)]
struct SnapshotView {
    txid: u64,
    timeline: u64,
    checksum: String,
    bytes: u64,
}

fn local(source: &str) -> Result<Local> {
    match Source::parse(source)? {
        Source::Local(local) => Ok(local),
        Source::Server(_) => Err(Error::new(
            ErrorKind::Usage,
            "a log is maintained where it is, not from afar",
        )
        .at(source)
        .hint(
            "mycelite serve does it by itself; else run this there, with the path of the database",
        )),
    }
}

/// Runs `mycelite compact`.
pub fn compact(args: &CompactArgs) -> Result<Answer> {
    let local = local(&args.source)?;
    let config = Config::for_database(&local.db, &[])?;
    let needs = || Needs {
        states: Vec::new(),
        // Which of them have what, only the process that ships knows: young records stay.
        records_after: (!config.replicas.is_empty()).then_some(Txid(0)),
    };
    let done = match args.dry_run {
        true => maintain::dry_run(&local.log_dir, &config.keep, &needs)?,
        false => maintain::run(&local.log_dir, &config.keep, &needs, &FullSpeed)?,
    };
    if done.busy {
        return Err(Error::new(
            ErrorKind::Busy,
            "another process maintains this log right now",
        )
        .at(local.log_dir.display())
        .hint("it does the same work: look again when it has ended"));
    }
    let mut output = Output::new();
    if args.json {
        output.json(&done)?;
    } else {
        for line in lines(&done, args.dry_run) {
            output.line(line)?;
        }
    }
    output.finish()?;
    Ok(if done.over.is_empty() {
        Answer::Yes
    } else {
        Answer::No
    })
}

fn lines(done: &Done, dry: bool) -> Vec<String> {
    let would = if dry { "would be " } else { "" };
    let mut lines = Vec::new();
    if done.sealed > 0 {
        lines.push(format!("segments {would}sealed: {}", done.sealed));
    }
    if done.snapshots > 0 {
        lines.push(format!("snapshots {would}written: {}", done.snapshots));
    }
    if done.merged_files > 0 {
        let (files, states) = (done.merged_files, done.thinned);
        lines.push(format!(
            "files {would}merged: {files}; states {would}given up: {states}"
        ));
    }
    if done.begins_at > 0 {
        lines.push(format!(
            "history {would}dropped before transaction {}",
            done.begins_at
        ));
    }
    if lines.is_empty() {
        lines.push("nothing to do".into());
    }
    let (before, after) = (
        output::bytes(done.bytes_before),
        output::bytes(done.bytes_after),
    );
    lines.push(match dry {
        true => format!("the log has {before} now"),
        false => format!("the log had {before}, and has {after}"),
    });
    let remarks = [&done.over, &done.clock].into_iter();
    lines.extend(remarks.filter(|text| !text.is_empty()).cloned());
    lines
}

/// Runs `mycelite snapshot`.
pub fn snapshot(args: &SnapshotArgs) -> Result<Answer> {
    let local = local(&args.source)?;
    let snapshot = maintain::snapshot(&local.log_dir, args.txid.map(Txid), PATIENCE)?;
    let mut output = Output::new();
    if args.json {
        output.json(&SnapshotView {
            txid: snapshot.pos.txid.0,
            timeline: snapshot.pos.timeline.0,
            checksum: snapshot.pos.checksum.to_string(),
            bytes: snapshot.bytes,
        })?;
    } else {
        output.line(format!(
            "snapshot of transaction {}: {}, its pages have the checksum {}",
            snapshot.pos.txid,
            output::bytes(snapshot.bytes),
            snapshot.pos.checksum
        ))?;
    }
    output.finish()?;
    Ok(Answer::Yes)
}
