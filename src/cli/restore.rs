//! `mycelite restore`: a recorded state as a new file.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mycelite::error::{Error, ErrorKind, Result};
use mycelite::maintain::Pin;
use mycelite::moment::{self, Moment};
use mycelite::reader;
use mycelite::reader::image::{self as past, Watch};
use mycelite_journal::{
    Head, PageSize, Txid, parse_merged_name, parse_sealed_name, parse_segment_name,
    parse_snapshot_name,
};
use rusqlite::{Connection, ErrorCode};
use serde::Serialize;
use tempfile::NamedTempFile;

use super::Answer;
use super::args::RestoreArgs;
use super::download;
use super::image::{self, beside, sqlite_error};
use super::output::{self, Output};
use super::source::{Local, Source, log_error};

/// What was restored, or would be. The field names are the JSON of `--json` and stay as they are.
#[derive(Serialize)]
pub struct Report {
    pub source: String,
    pub output: String,
    pub txid: u64,
    pub timeline: u64,
    /// RFC 3339; empty where a server does not say it.
    pub time: String,
    pub time_us: u64,
    pub page_size: u32,
    pub page_count: u32,
    pub bytes: u64,
    pub checksum: String,
    pub reads: Vec<Read>,
    pub dry_run: bool,
}

/// A file that is read from, and how long it is; little of it may be needed.
#[derive(Serialize)]
pub struct Read {
    pub file: String,
    pub bytes: u64,
}

impl Report {
    pub fn new(args: &RestoreArgs, head: &Head) -> Report {
        let page_size = head.page_size.map_or(0, PageSize::get);
        Report {
            source: args.source.clone(),
            output: args.output.display().to_string(),
            txid: head.pos.txid.0,
            timeline: head.pos.timeline.0,
            time: moment::time(head.time_us),
            time_us: head.time_us,
            page_size,
            page_count: head.page_count,
            bytes: u64::from(head.page_count) * u64::from(page_size),
            checksum: head.pos.checksum.to_string(),
            reads: Vec::new(),
            dry_run: args.dry_run,
        }
    }

    fn print(&self, json: bool) -> Result<()> {
        let mut output = Output::new();
        if json {
            output.json(self)?;
            return output.finish();
        }
        let time = if self.time.is_empty() {
            String::new()
        } else {
            format!(" of {}", self.time)
        };
        let size = match self.page_size {
            // A server does not say it before it has made the file.
            0 if self.dry_run => String::new(),
            size => format!(
                ", {} pages of {size} bytes ({}), checksum {}",
                self.page_count,
                output::bytes(self.bytes),
                self.checksum
            ),
        };
        output.line(format_args!(
            "{}: {}transaction {}{time}{size}",
            self.output,
            if self.dry_run { "would be " } else { "" },
            self.txid,
        ))?;
        for read in &self.reads {
            let bytes = output::bytes(read.bytes);
            output.line(format_args!("  from {}, {bytes}", read.file))?;
        }
        output.finish()
    }
}

/// Runs the verb.
pub fn run(args: &RestoreArgs) -> Result<Answer> {
    let wanted = args.when.moment()?;
    let source = Source::parse(&args.source)?;
    let out = args.output.as_path();
    let directory = directory_of(out)?;
    refuse_existing(out, args.force)?;
    let report = match &source {
        Source::Local(local) => from_log(local, &wanted, args, &directory)?,
        Source::Server(url) => download::restore(url, &wanted, args, &directory)?,
    };
    report.print(args.json)?;
    Ok(Answer::Yes)
}

fn directory_of(out: &Path) -> Result<PathBuf> {
    let absolute =
        std::path::absolute(out).map_err(|source| Error::io("resolving", out, &source))?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(directory), Some(_)) if directory.is_dir() && !out.is_dir() => {
            Ok(directory.to_path_buf())
        }
        (Some(directory), Some(_)) if !out.is_dir() => {
            Err(Error::new(ErrorKind::NotFound, "no such directory")
                .at(directory.display())
                .hint("create it first"))
        }
        _ => Err(Error::new(ErrorKind::Usage, "this is a directory")
            .at(out.display())
            .hint("name the file to write")),
    }
}

/// Without --force nothing that exists is touched, also not what SQLite would take for the new file's journal.
fn refuse_existing(out: &Path, force: bool) -> Result<()> {
    if force {
        return Ok(());
    }
    for path in [
        out.to_path_buf(),
        beside(out, "-wal"),
        beside(out, "-journal"),
    ] {
        if path.symlink_metadata().is_ok() {
            return Err(Error::new(ErrorKind::Usage, "this file exists already")
                .at(path.display())
                .hint("choose another name, or add --force to replace it"));
        }
    }
    Ok(())
}

pub fn temporary_in(directory: &Path, out: &Path) -> Result<NamedTempFile> {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let mut builder = tempfile::Builder::new();
    let prefix = format!(".{name}.restoring-");
    builder.prefix(&prefix);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As SQLite creates databases; the process's umask applies.
        builder.permissions(std::fs::Permissions::from_mode(0o644));
    }
    builder
        .tempfile_in(directory)
        .map_err(|source| Error::io("creating a temporary file in", directory, &source))
}

fn from_log(
    local: &Local,
    wanted: &Moment,
    args: &RestoreArgs,
    directory: &Path,
) -> Result<Report> {
    let source = |error: Error| error.at(&args.source);
    let shelf = reader::open_log(&local.log_dir)?;
    let txid = shelf.find(wanted).map_err(source)?;
    if let Moment::Txid(txid) = *wanted {
        let head = shelf.archive.head().map_err(log_error)?;
        check_range(args, txid, head.map_or(0, |head| head.0))?;
    }
    // Until the file is complete, compaction keeps the state.
    let mut pin = Pin::new(&local.log_dir);
    let still = if args.dry_run { None } else { pin.set(txid) };
    let head = *shelf.archive.as_of(txid).map_err(log_error)?.head();
    drop(still);
    let mut report = Report::new(args, &head);
    if args.dry_run {
        report.reads = files_for(&local.log_dir, txid)?;
        return Ok(report);
    }
    // In OUT's own directory, so that the last step is a rename within one file system.
    let temporary = temporary_in(directory, &args.output)?;
    let watch = Watch::default();
    let bar = output::bytes_bar(report.bytes, "restoring");
    let ended = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let file = temporary.as_file();
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                bar.set_position(watch.done.load(Ordering::Relaxed));
                std::thread::park_timeout(Duration::from_millis(100));
            }
        });
        let written = past::write(
            &shelf.archive,
            txid,
            file,
            temporary.path(),
            &watch,
            past::THREADS_MAX,
        );
        ended.store(true, Ordering::Relaxed);
        written
    });
    bar.finish_and_clear();
    written?;
    place(temporary, &args.output, directory, args.force)?;
    Ok(report)
}

/// The files of the log that the state after `txid` is put together from: the newest snapshot before it, and what follows.
fn files_for(log_dir: &Path, txid: Txid) -> Result<Vec<Read>> {
    let listing = |source: io::Error| Error::io("listing", log_dir, &source);
    let mut names: Vec<(String, u64)> = Vec::new();
    for entry in std::fs::read_dir(log_dir).map_err(listing)? {
        let entry = entry.map_err(listing)?;
        if let Some(name) = entry.file_name().to_str() {
            names.push((name.to_owned(), entry.metadata().map_err(listing)?.len()));
        }
    }
    names.sort();
    let snapshot = names
        .iter()
        .filter_map(|(name, _)| parse_snapshot_name(name))
        .filter(|at| *at <= txid)
        .max();
    let base = snapshot.unwrap_or(Txid(0));
    let sealed: Vec<(Txid, Txid)> = names
        .iter()
        .filter_map(|(name, _)| parse_sealed_name(name))
        .collect();
    let raw: Vec<Txid> = names
        .iter()
        .filter_map(|(name, _)| parse_segment_name(name))
        .collect();
    let needed = |name: &str| {
        if let Some(at) = parse_snapshot_name(name) {
            return Some(at) == snapshot;
        }
        if let Some((first, last)) = parse_sealed_name(name).or_else(|| parse_merged_name(name)) {
            return first <= txid && last > base;
        }
        let Some(first) = parse_segment_name(name) else {
            return false;
        };
        // It ends where the next one begins; in both forms, the sealed one is read.
        let next = raw.iter().find(|next| **next > first);
        let twin = sealed.iter().any(|(other, _)| *other == first);
        first <= txid && !twin && next.is_none_or(|next| next.0 > base.0 + 1)
    };
    Ok(names
        .into_iter()
        .filter(|(name, _)| needed(name))
        .map(|(file, bytes)| Read { file, bytes })
        .collect())
}

pub fn check_range(args: &RestoreArgs, target: u64, head: u64) -> Result<()> {
    if (1..=head).contains(&target) {
        return Ok(());
    }
    let what = match head {
        0 => "the log holds no transaction yet".to_string(),
        _ => format!("no transaction {target} in a log of 1 to {head}"),
    };
    Err(Error::new(ErrorKind::NotFound, what)
        .at(&args.source)
        .hint("mycelite log lists the transactions"))
}

pub fn nothing_then(args: &RestoreArgs, us: u64) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format_args!("nothing was recorded yet at {}", moment::time(us)),
    )
    .at(&args.source)
    .hint("mycelite log lists the transactions and their times")
}

/// Makes the built file durable and gives it its name.
pub fn place(temporary: NamedTempFile, out: &Path, directory: &Path, force: bool) -> Result<()> {
    let io = |what: &'static str| move |source: io::Error| Error::io(what, out, &source);
    temporary
        .as_file()
        .sync_all()
        .map_err(io("syncing the restored file"))?;
    let replaced = if force {
        Replaced::claim(out)?
    } else {
        Replaced { holder: None }
    };
    if force {
        temporary
            .persist(out)
            .map_err(|error| io("renaming the restored file")(error.error))?;
    } else {
        temporary
            .persist_noclobber(out)
            .map_err(|error| io("renaming the restored file")(error.error))?;
    }
    drop(replaced);
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io("syncing the directory of"))
}

/// The old database under the name, held exclusively until the new one has it.
struct Replaced {
    holder: Option<Connection>,
}

impl Replaced {
    /// Makes sure that nobody uses the database, and that it has no WAL or journal that SQLite would take for the new file's.
    fn claim(out: &Path) -> Result<Replaced> {
        let sidecars = [
            beside(out, "-wal"),
            beside(out, "-journal"),
            beside(out, "-shm"),
        ];
        let length = out.metadata().map_or(0, |meta| meta.len());
        let holder = if length > 0 { hold(out)? } else { None };
        if holder.is_none() {
            for path in sidecars {
                match std::fs::remove_file(&path) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(Error::io("removing", &path, &error)),
                }
            }
        }
        Ok(Replaced { holder })
    }
}

impl Drop for Replaced {
    fn drop(&mut self) {
        if let Some(connection) = self.holder.take() {
            // The file it holds has no name any more; there is nothing to save in it.
            let _ = connection.execute_batch("ROLLBACK");
        }
    }
}

/// An exclusive lock on the database at `out`, its WAL folded in and gone; `None` if it is not a database.
fn hold(out: &Path) -> Result<Option<Connection>> {
    let in_use = |error: rusqlite::Error| match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            Error::new(ErrorKind::Busy, "the file to replace is in use")
                .at(out.display())
                .hint("close the programs that have it open")
        }
        _ => sqlite_error(out, &error),
    };
    let connection = image::open(out)?;
    connection
        .busy_timeout(std::time::Duration::from_secs(1))
        .map_err(in_use)?;
    let mode = connection.query_row("PRAGMA journal_mode = DELETE", [], |row| {
        row.get::<_, String>(0)
    });
    match mode {
        Err(error)
            if matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt)
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(in_use(error)),
        Ok(mode) if mode == "wal" => {
            return Err(Error::new(ErrorKind::Busy, "the file to replace is in use")
                .at(out.display())
                .hint("close the programs that have it open"));
        }
        Ok(_) => {}
    }
    connection
        .execute_batch("BEGIN EXCLUSIVE")
        .map_err(in_use)?;
    Ok(Some(connection))
}
