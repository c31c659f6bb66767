//! `mycelite verify`: proves the log, and with `--deep` the database, from the bytes on disk.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mycelite::error::{Error, ErrorKind, Result};
use mycelite::proto::ReplicaUrl;
use mycelite_journal::{Checksum, FileStorage, Log, RawLimits, Reader, RecordHeader, Txid};
use serde::Serialize;
use tempfile::{NamedTempFile, TempDir};

use super::Answer;
use super::args::{AccessArgs, VerifyArgs};
use super::image::{self, ImageCopy, no_room};
use super::output::{self, Output};
use super::replay::{Built, compare, replay};
use super::source::{Local, Source, log_error, open_reader, remote};
use super::verify_past;

/// How long a log may be behind its database: in WAL mode a commit is recorded right after it, not in it.
const CATCH_UP: Duration = Duration::from_secs(3);
/// Problems that are listed.
const PROBLEMS_MAX: usize = 100;

/// What was found. The field names are the JSON of `--json` and stay as they are.
#[derive(Serialize)]
struct Report {
    source: String,
    ok: bool,
    deep: bool,
    records: u64,
    bytes: u64,
    first_txid: u64,
    last_txid: u64,
    checksum: String,
    compacted_states: u64,
    snapshots: u64,
    problems: Vec<String>,
    #[serde(skip)]
    notes: Vec<String>,
    #[serde(skip)]
    log_dir: PathBuf,
}

/// Runs the verb.
pub fn run(args: &VerifyArgs) -> Result<Answer> {
    let source = Source::parse(&args.source)?;
    let mut report = Report::new(&args.source, args.deep);
    match &source {
        Source::Local(local) => of_local(local, Path::new(&args.source), &mut report)?,
        Source::Server(url) => of_server(url, &args.access, &mut report)?,
    }
    report.ok = report.problems.is_empty();
    report.print(args.json)?;
    Ok(if report.ok { Answer::Yes } else { Answer::No })
}

/// Checks the log in `log_dir` against the database `db` byte for byte; the problems found.
pub fn deep(log_dir: &Path, db: &Path) -> Result<Vec<String>> {
    let mut report = Report::new(&db.display().to_string(), true);
    let local = Local {
        log_dir: log_dir.to_path_buf(),
        db: db.to_path_buf(),
    };
    of_local(&local, db, &mut report)?;
    Ok(report.problems)
}

fn of_local(local: &Local, named: &Path, report: &mut Report) -> Result<()> {
    let mut reader = local.reader()?;
    report.log_dir = local.log_dir.clone();
    report.past()?;
    if !report.deep {
        return check_log(&mut reader, report, &mut |_| {});
    }
    if !local.db.exists() {
        if named.is_dir() {
            report
                .notes
                .push("no database beside the log: the log alone was replayed".into());
        } else {
            report.problem(format!(
                "the database file {} is missing",
                local.db.display()
            ));
        }
        check_log(&mut reader, report, &mut |_| {})?;
        return replay_alone(&mut reader, report);
    }
    // What was recorded before the copy is taken must be in the copy.
    let recorded = reader
        .head()
        .map_err(log_error)?
        .map_or(Txid(0), |entry| entry.header.txid);
    let bar = output::bytes_bar(0, "copying");
    let copy = image::take(&local.db, &mut |done, total| {
        bar.set_length(u64::from(total));
        bar.set_position(u64::from(done));
    })?;
    bar.finish_and_clear();
    let mut found = None;
    let mut look = |header: &RecordHeader| {
        if header.txid >= recorded && matches(header, &copy) {
            found = Some(header.txid);
        }
    };
    check_log(&mut reader, report, &mut look)?;
    let deadline = Instant::now() + CATCH_UP;
    while found.is_none()
        && report.problems.is_empty()
        && !is_empty(&copy)
        && Instant::now() < deadline
    {
        std::thread::sleep(Duration::from_millis(20));
        let mut look = |header: &RecordHeader| {
            if matches(header, &copy) {
                found = Some(header.txid);
            }
        };
        check_more(&mut reader, report, &mut look)?;
    }
    if !report.problems.is_empty() {
        return Ok(());
    }
    against_copy(&mut reader, &copy, found, report)
}

fn matches(header: &RecordHeader, copy: &ImageCopy) -> bool {
    header.post_checksum == copy.checksum && header.page_count == copy.page_count
}

fn is_empty(copy: &ImageCopy) -> bool {
    copy.page_count == 0
}

/// Replays the log up to the transaction that the copy shows, or to the end, and compares.
fn against_copy(
    reader: &mut Reader,
    copy: &ImageCopy,
    found: Option<Txid>,
    report: &mut Report,
) -> Result<()> {
    let target = found.unwrap_or(Txid(report.last_txid));
    let Some((file, built)) = build(reader, target, report)? else {
        return Ok(());
    };
    let size = built
        .page_size
        .or(copy.page_size)
        .map_or(1, |size| size.get());
    let difference = compare(&copy.file, file.as_file(), size)
        .map_err(|source| Error::io("comparing", file.path(), &source))?;
    if built.page_size.map(|size| size.get()) != copy.page_size.map(|size| size.get()) {
        report.problem("the page size of the database is not that of the log".into());
    }
    if difference.pages > 0 {
        report.problem(format!(
            "the database is not what the log says after transaction {}: {} of the database differ (open it once through the extension, or run mycelite push, to record what changed it)",
            built.pos.txid,
            difference.names()
        ));
    } else if found.is_none() && !is_empty(copy) {
        report.problem(
            "the database is like the log, but the checksum of its last transaction is not its own"
                .into(),
        );
    }
    Ok(())
}

/// Replays without anything to compare with.
fn replay_alone(reader: &mut Reader, report: &mut Report) -> Result<()> {
    if !report.problems.is_empty() {
        return Ok(());
    }
    let last = Txid(report.last_txid);
    build(reader, last, report).map(drop)
}

/// Replays up to `target` into a temporary file; a log that does not fit itself is a problem and gives `None`.
fn build(
    reader: &mut Reader,
    target: Txid,
    report: &mut Report,
) -> Result<Option<(NamedTempFile, Built)>> {
    let file = NamedTempFile::new().map_err(no_room)?;
    let shortened = reader.follows().map_err(log_error)?;
    let built = match shortened.is_some_and(|pos| pos.txid.0 > 0) {
        true => verify_past::lay_out(&report.log_dir, target, file.path()),
        false => replay(reader, target, file.path()),
    };
    let built = match built {
        Ok(built) => built,
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Diverged) => {
            report.problem(error.to_string());
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if !built.is_exact(file.path())? {
        report.problem(format!(
            "replaying the log up to transaction {} does not give the checksum that it recorded",
            built.pos.txid
        ));
    }
    Ok(Some((file, built)))
}

/// Reads every record of the log; `look` sees each one.
fn check_log(
    reader: &mut Reader,
    report: &mut Report,
    look: &mut dyn FnMut(&RecordHeader),
) -> Result<()> {
    let first = match reader.first_txid() {
        Ok(Some(first)) => first,
        Ok(None) => return Ok(()),
        Err(error) => return report.damage(error),
    };
    report.first_txid = first.0;
    // Damage on the way to the head is met again below, with what is before it.
    let head = reader.head().ok().flatten();
    let count = head.map_or(0, |entry| entry.header.txid.0 + 1 - first.0);
    if let Err(error) = reader.seek(first.previous()) {
        return report.damage(error);
    }
    let bar = output::transactions_bar(count, "verifying");
    let checked = check_more(reader, report, &mut |header| {
        bar.set_position(header.txid.0 + 1 - first.0);
        look(header);
    });
    bar.finish_and_clear();
    checked
}

/// Reads the records that follow those already read.
fn check_more(
    reader: &mut Reader,
    report: &mut Report,
    look: &mut dyn FnMut(&RecordHeader),
) -> Result<()> {
    while report.problems.len() < PROBLEMS_MAX {
        let entry = match reader.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            // Where a header cannot be believed, nothing says where the next record begins.
            Err(error) => return report.damage(error),
        };
        let header = entry.header;
        if let Err(error) = entry.verify() {
            report.damage(error)?;
        }
        report.follow(&header);
        look(&header);
    }
    Ok(())
}

fn of_server(url: &ReplicaUrl, flags: &AccessArgs, report: &mut Report) -> Result<()> {
    let fetched = fetch_log(url, flags)?;
    let mut reader = open_reader(fetched.path())?;
    report.log_dir = fetched.path().to_path_buf();
    check_log(&mut reader, report, &mut |_| {})?;
    if !report.deep || !report.problems.is_empty() || report.last_txid == 0 {
        return Ok(());
    }
    let last = Txid(report.last_txid);
    let mut file = tempfile::tempfile().map_err(no_room)?;
    let pos = remote(url, flags)?.file(Some(last), &mut file)?;
    let Some((replayed, built)) = build(&mut reader, last, report)? else {
        return Ok(());
    };
    let size = built.page_size.map_or(1, |size| size.get());
    compare_served(&file, replayed.as_file(), size, report)?;
    if pos.checksum != built.pos.checksum {
        report.problem(format!(
            "the server names checksum {} for transaction {last}, the log {}",
            pos.checksum, built.pos.checksum
        ));
    }
    Ok(())
}

fn compare_served(
    served: &File,
    replayed: &File,
    page_size: u32,
    report: &mut Report,
) -> Result<()> {
    let difference = compare(served, replayed, page_size).map_err(|source| {
        Error::new(ErrorKind::Io, format_args!("comparing: {source}")).at(&report.source)
    })?;
    if difference.pages > 0 {
        report.problem(format!(
            "the file that the server gives is not what its log says: {} differ",
            difference.names()
        ));
    }
    Ok(())
}

/// A server's log, copied into a temporary directory and checked on the way.
pub fn fetch_log(url: &ReplicaUrl, flags: &AccessArgs) -> Result<TempDir> {
    let remote = remote(url, flags)?;
    let info = remote.info()?;
    let directory = tempfile::tempdir().map_err(no_room)?;
    let id = info.id.parse().map_err(|_| {
        Error::new(ErrorKind::Network, "the server names no valid database id")
            .at(url)
            .hint("is it a mycelite server?")
    })?;
    let storage = Arc::new(FileStorage::new(directory.path()));
    let mut log = Log::create(storage, id, 0).map_err(log_error)?;
    let bar = output::transactions_bar(info.pos.txid, "fetching");
    let mut records = remote.records(Txid(0))?;
    while log.head().pos.txid.0 < info.pos.txid {
        match log
            .append_raw(&mut records, &RawLimits::default())
            .map_err(log_error)?
        {
            Some(header) => bar.set_position(header.txid.0),
            None => break,
        }
    }
    bar.finish_and_clear();
    Ok(directory)
}

impl Report {
    fn new(source: &str, deep: bool) -> Report {
        Report {
            source: source.to_string(),
            ok: false,
            deep,
            records: 0,
            bytes: 0,
            first_txid: 0,
            last_txid: 0,
            checksum: Checksum(0).to_string(),
            compacted_states: 0,
            snapshots: 0,
            problems: Vec::new(),
            notes: Vec::new(),
            log_dir: PathBuf::new(),
        }
    }

    /// Proves what is not records.
    fn past(&mut self) -> Result<()> {
        let past = verify_past::check(&self.log_dir)?;
        for error in past.problems {
            self.damage(error)?;
        }
        self.compacted_states = past.states;
        self.snapshots = past.snapshots;
        Ok(())
    }

    /// Damage is an answer; a log that cannot be read at all is none.
    fn damage(&mut self, error: mycelite_journal::Error) -> Result<()> {
        let error = log_error(error);
        match error.kind() {
            ErrorKind::Corrupt | ErrorKind::Diverged => self.problems.push(error.to_string()),
            _ => return Err(error),
        }
        Ok(())
    }

    fn problem(&mut self, text: String) {
        self.problems.push(text);
    }

    fn follow(&mut self, header: &RecordHeader) {
        self.records += 1;
        self.bytes += header.record_len();
        self.last_txid = header.txid.0;
        self.checksum = header.post_checksum.to_string();
    }

    fn print(&self, json: bool) -> Result<()> {
        let mut output = Output::new();
        if json {
            output.json(self)?;
            return output.finish();
        }
        let range = match self.records {
            0 => "no transactions".to_string(),
            1 => format!("transaction {}", self.last_txid),
            count => format!(
                "{count} transactions, {} to {}",
                self.first_txid, self.last_txid
            ),
        };
        output.line(format_args!(
            "{}: {range}, {}, checksum {}",
            self.source,
            output::bytes(self.bytes),
            self.checksum
        ))?;
        if self.compacted_states + self.snapshots > 0 {
            output.line(format_args!(
                "{} compacted states and {} snapshots, each proved by its checksum",
                self.compacted_states, self.snapshots
            ))?;
        }
        for note in &self.notes {
            output.line(format_args!("note: {note}"))?;
        }
        for problem in &self.problems {
            output.line(format_args!("problem: {problem}"))?;
        }
        let proved = match (self.ok, self.deep) {
            (true, true) => "ok: the log is whole, and the database is what it says, byte for byte",
            (true, false) => {
                "ok: every record is whole and continues the one before it (--deep compares the database too)"
            }
            (false, _) => "NOT ok",
        };
        output.line(if self.ok && !self.notes.is_empty() {
            "ok: the log is whole, and replays to its checksums"
        } else {
            proved
        })?;
        output.finish()
    }
}
