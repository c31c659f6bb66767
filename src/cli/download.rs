//! Restoring from a server: a state comes as a plain file, and is checked here before it gets its name. What was received of it is
//! kept beside the file to write, so that a cut line or a killed process costs nothing that came before.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mycelite::error::{Error, ErrorKind, Result};
use mycelite::moment::Moment;
use mycelite::proto::{DatabaseInfo, ReplicaUrl};
use mycelite::ship::fetch::Remote;
use mycelite_journal::{Head, PageSize, Pos, RecordHeader, Txid};
use tempfile::{NamedTempFile, TempPath};

use super::args::RestoreArgs;
use super::output;
use super::replay::Built;
use super::restore::{Read as Reading, Report, check_range, nothing_then, place};
use super::source::remote;

/// What was received longer ago than this is received anew: who asks for the newest state does not want an old one.
const KEPT_MAX: Duration = Duration::from_secs(60 * 60);
/// A line that is cut so often, without a byte in between, is given up.
const CUTS_MAX: u32 = 5;
/// Pause before another try.
const PAUSE: Duration = Duration::from_millis(500);
/// Bytes that are received at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// Downloads the moment `wanted` and puts it in its place.
pub fn restore(
    url: &ReplicaUrl,
    wanted: &Moment,
    args: &RestoreArgs,
    directory: &Path,
) -> Result<Report> {
    let remote = remote(url, &args.access)?;
    let info = remote.info()?;
    let there = Part::find(directory, &args.output, !args.dry_run)?;
    let (mut target, known) = find(&remote, &info, wanted, args)?;
    if let (Moment::Head, Some(there)) = (wanted, &there) {
        // What was the newest state when it began: a server that is written to has another one each time.
        target = there.pos.txid.0.min(target);
    }
    check_range(args, target, info.pos.txid)?;
    let there = there.filter(|part| part.pos.txid.0 == target);
    if args.dry_run {
        return Ok(planned(args, &info, target, known, there.as_ref()));
    }
    let part = receive(&remote, url, there, target, directory, args)?;
    let (page_size, page_count) =
        shape(&part.file).map_err(|source| Error::io("reading back", &part.path, &source))?;
    let built = Built {
        pos: part.pos,
        page_size,
        page_count,
    };
    if !built.is_exact(&part.path)? {
        part.discard();
        return Err(Error::new(
            ErrorKind::Corrupt,
            format_args!("the bytes that came do not have the checksum of transaction {target}"),
        )
        .at(&args.source)
        .hint("nothing was written; look at the source with mycelite verify"));
    }
    let pos = part.pos;
    place(part.into_temporary()?, &args.output, directory, args.force)?;
    let head = Head {
        pos,
        page_size,
        page_count,
        time_us: known.map_or(0, |header| header.time_us),
        ..Head::EMPTY
    };
    Ok(named(args, &head))
}

/// Receives all of it; goes on where a line was cut.
fn receive(
    remote: &Remote,
    url: &ReplicaUrl,
    there: Option<Part>,
    target: u64,
    directory: &Path,
    args: &RestoreArgs,
) -> Result<Part> {
    let bar = output::bytes_bar(0, "downloading");
    let mut part = there;
    let mut cuts = 0;
    loop {
        let before = part.as_ref().map_or(0, |part| part.bytes);
        let failed = match receive_once(remote, &mut part, target, directory, args, &bar) {
            Ok(()) => break,
            Err(error) => error,
        };
        let now = part.as_ref().map_or(0, |part| part.bytes);
        cuts = if now > before { 1 } else { cuts + 1 };
        // What no line is to blame for is told at once.
        if failed.kind() != ErrorKind::Network || cuts > CUTS_MAX {
            bar.finish_and_clear();
            return Err(match now {
                0 => failed,
                _ => failed.hint(format_args!(
                    "{} are here: the same command goes on there",
                    output::bytes(now)
                )),
            });
        }
        std::thread::sleep(PAUSE);
    }
    bar.finish_and_clear();
    part.filter(|part| part.pos.txid.0 == target)
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Network,
                format_args!("the server sent another state than transaction {target}"),
            )
            .at(url)
        })
}

/// One request, and what comes of it.
fn receive_once(
    remote: &Remote,
    part: &mut Option<Part>,
    target: u64,
    directory: &Path,
    args: &RestoreArgs,
    bar: &indicatif::ProgressBar,
) -> Result<()> {
    // The last byte again, so that there is something to send where all of it is here.
    let known = part.as_ref().filter(|part| part.bytes > 0);
    let known = known.map(|part| (part.pos, part.bytes - 1));
    let mut incoming = remote.file_part(Some(Txid(target)), known)?;
    if part.as_ref().is_none_or(|part| part.pos != incoming.pos) {
        if let Some(other) = part.take() {
            other.discard();
        }
        *part = Some(Part::create(directory, &args.output, incoming.pos)?);
    }
    let Some(part) = part else { return Ok(()) };
    part.cut(incoming.from)?;
    bar.set_length(incoming.bytes);
    bar.set_position(incoming.from);
    bar.reset_eta();
    let mut chunk = vec![0; CHUNK_BYTES];
    while part.bytes < incoming.bytes {
        let count = incoming
            .read(&mut chunk)
            .map_err(|source| Error::new(ErrorKind::Network, source).at(&args.source))?;
        let Some(bytes @ [_, ..]) = chunk.get(..count) else {
            return Err(Error::new(ErrorKind::Network, "the line was cut").at(&args.source));
        };
        part.append(bytes)?;
        bar.inc(count as u64);
    }
    Ok(())
}

/// What was received of a state: a file beside the one to write, whose name says which state it is. It is locked while somebody
/// receives it.
struct Part {
    file: File,
    path: PathBuf,
    pos: Pos,
    /// Bytes that are there.
    bytes: u64,
}

impl Part {
    fn prefix(out: &Path) -> String {
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        format!(".{name}.receiving-")
    }

    /// The state that a file is of, by its name.
    fn pos_of(name: &str, prefix: &str) -> Option<Pos> {
        name.strip_prefix(prefix)?.replace('-', "/").parse().ok()
    }

    /// What there is; `clear` removes what is too old.
    fn find(directory: &Path, out: &Path, clear: bool) -> Result<Option<Part>> {
        let io = |source: io::Error| Error::io("looking for a part of it in", directory, &source);
        let prefix = Part::prefix(out);
        let mut found = None;
        for entry in std::fs::read_dir(directory).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name();
            let Some(pos) = name.to_str().and_then(|name| Part::pos_of(name, &prefix)) else {
                continue;
            };
            let part = Part::open(entry.path(), pos)?;
            let age = entry.metadata().and_then(|meta| meta.modified());
            let age = age.ok().and_then(|time| time.elapsed().ok());
            if found.is_none() && part.bytes > 0 && age.is_none_or(|age| age < KEPT_MAX) {
                found = Some(part);
            } else if clear {
                part.discard();
            }
        }
        Ok(found)
    }

    fn create(directory: &Path, out: &Path, pos: Pos) -> Result<Part> {
        let name = pos.to_string().replace('/', "-");
        Part::open(directory.join(Part::prefix(out) + &name), pos)
    }

    fn open(path: PathBuf, pos: Pos) -> Result<Part> {
        let io = |source: io::Error| Error::io("opening the part that is here,", &path, &source);
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            // As SQLite creates databases; the process's umask applies.
            options.mode(0o644);
        }
        let file = options.open(&path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(
                    Error::new(ErrorKind::Busy, "another process restores to this name")
                        .at(path.display())
                        .hint("wait for it, or choose another name"),
                );
            }
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        let bytes = file.metadata().map_err(io)?.len();
        Ok(Part {
            file,
            path,
            pos,
            bytes,
        })
    }

    /// Keeps the first `bytes` of it.
    fn cut(&mut self, bytes: u64) -> Result<()> {
        let cut = self.file.set_len(bytes);
        let cut = cut.and_then(|()| self.file.seek(SeekFrom::Start(bytes)));
        cut.map_err(|e| self.failed(&e))?;
        self.bytes = bytes;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| self.failed(&e))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn failed(&self, source: &io::Error) -> Error {
        Error::io("storing what comes in", &self.path, source).hint("is there room on the disk?")
    }

    fn discard(self) {
        // One that stays is removed by the next look.
        let _ = std::fs::remove_file(&self.path);
    }

    /// The complete file, which goes if it does not get its name.
    fn into_temporary(self) -> Result<NamedTempFile> {
        let path = TempPath::try_from_path(&self.path)
            .map_err(|e| Error::io("naming the restored file", &self.path, &e))?;
        Ok(NamedTempFile::from_parts(self.file, path))
    }
}

/// The transaction that is meant, and its record's header where that was looked at.
fn find(
    remote: &Remote,
    info: &DatabaseInfo,
    wanted: &Moment,
    args: &RestoreArgs,
) -> Result<(u64, Option<RecordHeader>)> {
    match *wanted {
        Moment::Bookmark(_) => Err(Error::new(
            ErrorKind::Usage,
            "bookmarks are kept where the log is, and a server does not know them",
        )
        .at(&args.source)
        .hint("name the transaction with --txid")),
        Moment::Head => Ok((info.pos.txid, None)),
        Moment::Txid(txid) => Ok((txid, None)),
        Moment::Time(us) => {
            let mut found: Option<RecordHeader> = None;
            remote
                .records(Txid(info.first_txid.saturating_sub(1)))?
                .each_header(&mut |header| {
                    let wanted = header.time_us <= us;
                    if wanted {
                        found = Some(*header);
                    }
                    Ok(wanted)
                })?;
            let header = found.ok_or_else(|| nothing_then(args, us))?;
            Ok((header.txid.0, found))
        }
    }
}

/// What is known without a download.
fn planned(
    args: &RestoreArgs,
    info: &DatabaseInfo,
    target: u64,
    known: Option<RecordHeader>,
    there: Option<&Part>,
) -> Report {
    let mut head = Head::EMPTY;
    if let Some(header) = known {
        head.pos = header.pos();
        head.time_us = header.time_us;
    }
    if target == info.pos.txid {
        head.page_size = PageSize::new(info.page_size);
        head.page_count = info.page_count;
        head.pos.checksum = info.pos.checksum.parse().unwrap_or_default();
        head.pos.timeline.0 = info.pos.timeline;
    }
    head.pos.txid = Txid(target);
    let mut report = named(args, &head);
    report.reads.extend(there.map(|part| Reading {
        file: part.path.display().to_string(),
        bytes: part.bytes,
    }));
    report
}

/// A server says the time of a transaction only where it was looked for.
fn named(args: &RestoreArgs, head: &Head) -> Report {
    let mut report = Report::new(args, head);
    if head.time_us == 0 {
        report.time.clear();
    }
    report
}

/// Page size and page count of a database file by its header and length.
fn shape(file: &File) -> io::Result<(Option<PageSize>, u32)> {
    use std::os::unix::fs::FileExt;
    let length = file.metadata()?.len();
    let mut field = [0u8; 2];
    if length < 100 {
        return Ok((None, 0));
    }
    file.read_exact_at(&mut field, 16)?;
    let bytes = match u16::from_be_bytes(field) {
        1 => 65536,
        other => u32::from(other),
    };
    let page_size = PageSize::new(bytes);
    let count = page_size.map_or(0, |size| length / u64::from(size.get()));
    Ok((page_size, u32::try_from(count).unwrap_or(u32::MAX)))
}
