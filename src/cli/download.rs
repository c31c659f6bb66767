//! Restoring from a server: a state comes as a plain file, and is checked here before it gets its name.

use std::fs::File;
use std::io;
use std::path::Path;

use mycelite::error::{Error, ErrorKind, Result};
use mycelite::moment::Moment;
use mycelite::proto::{DatabaseInfo, ReplicaUrl};
use mycelite::ship::fetch::Remote;
use mycelite_journal::{Head, PageSize, RecordHeader, Txid};

use super::args::RestoreArgs;
use super::output;
use super::replay::Built;
use super::restore::{Report, check_range, nothing_then, place, temporary_in};
use super::source::remote;

/// Downloads the moment `wanted` and puts it in its place.
pub fn restore(
    url: &ReplicaUrl,
    wanted: &Moment,
    args: &RestoreArgs,
    directory: &Path,
) -> Result<Report> {
    let remote = remote(url, &args.access)?;
    let info = remote.info()?;
    let (target, known) = find(&remote, &info, wanted, args)?;
    check_range(args, target, info.pos.txid)?;
    if args.dry_run {
        return Ok(planned(args, target, known));
    }
    let temporary = temporary_in(directory, &args.output)?;
    let bar = output::bytes_bar(
        u64::from(info.page_count) * u64::from(info.page_size),
        "downloading",
    );
    let pos = remote.file(Some(Txid(target)), &mut bar.wrap_write(temporary.as_file()))?;
    bar.finish_and_clear();
    if pos.txid.0 != target {
        return Err(Error::new(
            ErrorKind::Network,
            format_args!(
                "the server sent transaction {} instead of {target}",
                pos.txid
            ),
        )
        .at(url));
    }
    let (page_size, page_count) = shape(temporary.as_file())
        .map_err(|source| Error::io("reading back", temporary.path(), &source))?;
    let built = Built {
        pos,
        page_size,
        page_count,
    };
    if !built.is_exact(temporary.path())? {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format_args!("the bytes that came do not have the checksum of transaction {target}"),
        )
        .at(&args.source)
        .hint("nothing was written; look at the source with mycelite verify"));
    }
    place(temporary, &args.output, directory, args.force)?;
    let head = Head {
        pos,
        page_size,
        page_count,
        time_us: known.map_or(0, |header| header.time_us),
        ..Head::EMPTY
    };
    Ok(named(args, &head))
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
fn planned(args: &RestoreArgs, target: u64, known: Option<RecordHeader>) -> Report {
    let mut head = Head::EMPTY;
    if let Some(header) = known {
        head.pos = header.pos();
        head.time_us = header.time_us;
    }
    head.pos.txid = Txid(target);
    named(args, &head)
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
