//! `mycelite log`: the recorded transactions, oldest first.

use mycelite::error::Result;
use mycelite_journal::{RecordHeader, Txid};

use super::Answer;
use super::args::LogArgs;
use super::history::HeaderView;
use super::output::Output;
use super::source::{Local, Source, log_error, remote};

/// Runs the verb.
pub fn run(args: &LogArgs) -> Result<Answer> {
    let source = Source::parse(&args.source)?;
    let mut list = List {
        output: Output::new(),
        json: args.json,
        any: false,
    };
    match source {
        Source::Local(local) => of_log(&local, args.limit, &mut list)?,
        Source::Server(url) => {
            let remote = remote(&url)?;
            let info = remote.info()?;
            let after = start(info.first_txid, info.pos.txid, args.limit);
            remote
                .records(Txid(after))?
                .each_header(&mut |header| list.show(header))?;
        }
    }
    list.output.finish()?;
    Ok(Answer::Yes)
}

fn of_log(local: &Local, limit: Option<u64>, list: &mut List) -> Result<()> {
    let mut reader = local.reader()?;
    let first = reader.first_txid().map_err(log_error)?;
    let head = reader.head().map_err(log_error)?;
    let (Some(first), Some(head)) = (first, head) else {
        return Ok(());
    };
    reader
        .seek(Txid(start(first.0, head.header.txid.0, limit)))
        .map_err(log_error)?;
    while let Some(entry) = reader.next().map_err(log_error)? {
        if !list.show(&entry.header)? {
            break;
        }
    }
    Ok(())
}

/// After which transaction the newest `limit` begin.
fn start(first: u64, head: u64, limit: Option<u64>) -> u64 {
    let oldest = first.saturating_sub(1);
    limit.map_or(oldest, |limit| head.saturating_sub(limit).max(oldest))
}

/// The listing on its way out, one line at a time: a history may be long.
struct List {
    output: Output,
    json: bool,
    any: bool,
}

impl List {
    /// Shows one record; false when nobody reads any more.
    fn show(&mut self, header: &RecordHeader) -> Result<bool> {
        let view = HeaderView::new(header);
        if self.json {
            self.output.json(&view)?;
            return Ok(!self.output.is_gone());
        }
        if !self.any {
            self.any = true;
            self.output.line(format_args!(
                "{:>10}  {:<27}  {:>8}  {:>11}  {:>9}  {:<16}  timeline",
                "txid", "time", "pages", "bytes", "db_pages", "checksum"
            ))?;
        }
        let line = format!(
            "{:>10}  {:<27}  {:>8}  {:>11}  {:>9}  {:<16}  {} {}",
            view.txid,
            view.time,
            view.pages,
            view.bytes,
            view.db_pages,
            view.checksum,
            view.timeline,
            view.flags.join(" "),
        );
        self.output.line(line.trim_end())?;
        Ok(!self.output.is_gone())
    }
}
