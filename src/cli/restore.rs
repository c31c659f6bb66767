//! `mycelite restore`: a recorded state as a new file.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use mycelite::error::{Error, ErrorKind, Result};
use mycelite::moment::{self, Moment};
use mycelite::proto::ReplicaUrl;
use mycelite_journal::{PageSize, Reader, Txid};
use rusqlite::{Connection, ErrorCode};
use tempfile::NamedTempFile;

use super::Answer;
use super::args::RestoreArgs;
use super::image::{self, beside, sqlite_error};
use super::output::{self, Output};
use super::replay::{Built, replay};
use super::source::{Source, log_error, remote};

/// Runs the verb.
pub fn run(args: &RestoreArgs) -> Result<Answer> {
    let (at, ago) = (args.at.as_deref(), args.ago.as_deref());
    let when = match args.txid {
        Some(txid) => Moment::Txid(txid),
        None => Moment::parse("--", None, at, ago)?,
    };
    let source = Source::parse(&args.source)?;
    let out = args.output.as_path();
    let directory = directory_of(out)?;
    refuse_existing(out, args.force)?;
    // In OUT's own directory, so that the last step is a rename within one file system.
    let temporary = temporary_in(&directory, out)?;
    let built = match &source {
        Source::Local(local) => from_log(&mut local.reader()?, &when, args, temporary.path())?,
        Source::Server(url) => from_server(url, &when, args, &temporary)?,
    };
    if !built.is_exact(temporary.path())? {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format_args!(
                "the restored bytes do not have the checksum of transaction {}",
                built.pos.txid
            ),
        )
        .at(&args.source)
        .hint("nothing was written; look at the source with mycelite verify"));
    }
    place(temporary, out, &directory, args.force)?;
    let mut output = Output::new();
    output.line(format_args!(
        "{}: transaction {}, {} pages, checksum {}",
        out.display(),
        built.pos.txid,
        built.page_count,
        built.pos.checksum
    ))?;
    output.finish()?;
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

fn temporary_in(directory: &Path, out: &Path) -> Result<NamedTempFile> {
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

fn from_log(reader: &mut Reader, when: &Moment, args: &RestoreArgs, path: &Path) -> Result<Built> {
    let first = reader
        .first_txid()
        .map_err(log_error)?
        .map_or(1, |txid| txid.0);
    let head = reader
        .head()
        .map_err(log_error)?
        .map_or(0, |entry| entry.header.txid.0);
    let target = match *when {
        Moment::Head => head,
        Moment::Txid(txid) => txid,
        Moment::Time(us) => {
            let mut found = None;
            reader
                .seek(Txid(first.saturating_sub(1)))
                .map_err(log_error)?;
            while let Some(entry) = reader.next().map_err(log_error)? {
                if entry.header.time_us > us {
                    break;
                }
                found = Some(entry.header.txid.0);
            }
            found.ok_or_else(|| nothing_then(args, us))?
        }
    };
    check_range(args, target, head)?;
    replay(reader, Txid(target), path)
}

fn check_range(args: &RestoreArgs, target: u64, head: u64) -> Result<()> {
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

fn nothing_then(args: &RestoreArgs, us: u64) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format_args!("nothing was recorded yet at {}", moment::time(us)),
    )
    .at(&args.source)
    .hint("mycelite log lists the transactions and their times")
}

fn from_server(
    url: &ReplicaUrl,
    when: &Moment,
    args: &RestoreArgs,
    temporary: &NamedTempFile,
) -> Result<Built> {
    let remote = remote(url, &args.access)?;
    let info = remote.info()?;
    let head = info.pos.txid;
    let target = match *when {
        Moment::Head => head,
        Moment::Txid(txid) => txid,
        Moment::Time(us) => {
            let mut found = None;
            remote
                .records(Txid(info.first_txid.saturating_sub(1)))?
                .each_header(&mut |header| {
                    let wanted = header.time_us <= us;
                    if wanted {
                        found = Some(header.txid.0);
                    }
                    Ok(wanted)
                })?;
            found.ok_or_else(|| nothing_then(args, us))?
        }
    };
    check_range(args, target, head)?;
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
    Ok(Built {
        pos,
        page_size,
        page_count,
    })
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

/// Makes the built file durable and gives it its name.
fn place(temporary: NamedTempFile, out: &Path, directory: &Path, force: bool) -> Result<()> {
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
