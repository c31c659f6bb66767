//! `mycelite log`: the recorded transactions, oldest first.

use std::io::IsTerminal;

use mycelite::bookmarks::{self, Bookmark};
use mycelite::error::Result;
use mycelite::moment;
use mycelite::parked;
use mycelite::reader;
use mycelite::status::ParkedStatus;
use mycelite_journal::{RecordHeader, Timeline, Txid};
use serde::Serialize;

use super::Answer;
use super::args::LogArgs;
use super::chart::Chart;
use super::history::HeaderView;
use super::output::Output;
use super::source::{Local, Source, log_error, remote};
use super::status::print_parked;

/// Runs the verb.
pub fn run(args: &LogArgs) -> Result<Answer> {
    let source = Source::parse(&args.source)?;
    let since = args
        .since
        .as_deref()
        .map(|text| bound("since", text))
        .transpose()?;
    let until = args
        .until
        .as_deref()
        .map(|text| bound("until", text))
        .transpose()?;
    let mut list = List {
        output: Output::new(),
        json: args.json,
        any: false,
        after: Txid(0),
        since: since.unwrap_or(0),
        until: until.unwrap_or(u64::MAX),
        timeline: None,
        bookmarks: Vec::new(),
        chart: (args.chart || std::io::stdout().is_terminal() && !args.json).then(Chart::new),
    };
    match source {
        Source::Local(local) => {
            list.bookmarks = bookmarks::list(&local.log_dir)?;
            of_log(&local, args.limit, &mut list)?;
            let tails = parked::list(&local.log_dir);
            let tails: Vec<_> = tails.iter().map(|tail| tail.status()).collect();
            list.parked(&tails)?;
        }
        Source::Server(url) => {
            let remote = remote(&url, &args.access)?;
            let info = remote.info()?;
            let from = list.start(info.first_txid, info.pos.txid, args.limit);
            remote
                .records(from)?
                .each_header(&mut |header| list.show(header))?;
            list.parked(&info.parked)?;
        }
    }
    if let Some(chart) = &list.chart {
        for line in chart.lines() {
            list.output.line(line)?;
        }
    }
    list.output.finish()?;
    Ok(Answer::Yes)
}

/// A time, or a span back from now, in µs since 1970.
fn bound(flag: &str, text: &str) -> Result<u64> {
    moment::parse_ago(text)
        .or_else(|_| moment::parse_time(text))
        .map_err(|error| {
            error
                .at(format_args!("--{flag}"))
                .hint("write a time in UTC like 2026-11-20T10:00:00Z, or how long ago it was: 90s, 5m, 2h, 1d")
        })
}

fn of_log(local: &Local, limit: Option<u64>, list: &mut List) -> Result<()> {
    let mut reader = local.reader()?;
    let first = reader.first_txid().map_err(log_error)?;
    let head = reader.head().map_err(log_error)?;
    let (Some(first), Some(head)) = (first, head) else {
        return Ok(());
    };
    let mut from = list.start(first.0, head.header.txid.0, limit);
    if list.since > 0 {
        // The last one before is looked at, too, so that a timeline's beginning is noticed.
        let shelf = reader::open_log(&local.log_dir)?;
        let before = shelf.archive.find_time(list.since - 1).map_err(log_error)?;
        from = from.max(before.map_or(Txid(0), Txid::previous));
    }
    reader.seek(from).map_err(log_error)?;
    while let Some(entry) = reader.next().map_err(log_error)? {
        if !list.show(&entry.header)? {
            break;
        }
    }
    Ok(())
}

/// A parked tail as a line of JSON, to be told from a record by its one key.
#[derive(Serialize)]
struct ParkedView<'a> {
    parked: &'a ParkedStatus,
}

/// The listing on its way out, one line at a time: a history may be long.
struct List {
    output: Output,
    json: bool,
    any: bool,
    /// Records up to this one are not shown.
    after: Txid,
    /// None before this time is shown, µs since 1970.
    since: u64,
    /// None after this one.
    until: u64,
    /// Timeline of the last record.
    timeline: Option<Timeline>,
    bookmarks: Vec<Bookmark>,
    chart: Option<Chart>,
}

impl List {
    /// Shows the newest `limit` of the records from `first` to `head`, which are read after the transaction returned: one
    /// more, so that a timeline's beginning is noticed.
    fn start(&mut self, first: u64, head: u64, limit: Option<u64>) -> Txid {
        let oldest = first.saturating_sub(1);
        let after = limit.map_or(oldest, |limit| head.saturating_sub(limit).max(oldest));
        self.after = Txid(after);
        Txid(after.saturating_sub(1).max(oldest))
    }

    /// Shows what a replica had to put aside where a timeline began.
    fn parked(&mut self, tails: &[ParkedStatus]) -> Result<()> {
        if !self.json {
            return print_parked(tails, &mut self.output);
        }
        for parked in tails {
            self.output.json(&ParkedView { parked })?;
        }
        Ok(())
    }

    /// Shows one record; false when nobody reads any more.
    fn show(&mut self, header: &RecordHeader) -> Result<bool> {
        let before = self.timeline.replace(header.timeline);
        if header.time_us > self.until {
            return Ok(false);
        }
        if header.txid <= self.after || header.time_us < self.since {
            return Ok(true);
        }
        if let Some(chart) = &mut self.chart {
            chart.add(header);
        }
        let mut view = HeaderView::new(header);
        let names = bookmarks::names_at(&self.bookmarks, header.pos());
        view.bookmarks = names.map(str::to_owned).collect();
        let begins = before.is_some_and(|before| before < header.timeline);
        view.begins_timeline = Some(begins);
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
            "{:>10}  {:<27}  {:>8}  {:>11}  {:>9}  {:<16}  {}{} {} {}",
            view.txid,
            view.time,
            view.pages,
            view.bytes,
            view.db_pages,
            view.checksum,
            view.timeline,
            if begins { " begins" } else { "" },
            view.flags.join(" "),
            view.bookmarks
                .iter()
                .map(|name| format!("{name:?}"))
                .collect::<Vec<_>>()
                .join(" "),
        );
        self.output.line(line.trim_end())?;
        Ok(!self.output.is_gone())
    }
}
