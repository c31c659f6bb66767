//! SOURCE on the command line: a database file, a log directory, or a server's URL.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mycelite::Access;
use mycelite::config::{Config, read_token};
use mycelite::database;
use mycelite::error::{Error, ErrorKind, Result};
use mycelite::proto::ReplicaUrl;
use mycelite::ship::fetch::Remote;
use mycelite_journal::{FileStorage, Reader};

use super::args::AccessArgs;
use super::image::beside;

/// Where a history is read from.
pub enum Source {
    /// A log on this machine.
    Local(Local),
    /// A database on a server.
    Server(ReplicaUrl),
}

/// A log on this machine.
pub struct Local {
    /// The log directory.
    pub log_dir: PathBuf,
    /// The database file that it belongs to; it need not exist.
    pub db: PathBuf,
}

impl Source {
    /// Understands `text`. A path must exist; a server is not asked yet.
    pub fn parse(text: &str) -> Result<Source> {
        if text.contains("://") {
            return text.parse().map(Source::Server);
        }
        Local::find(Path::new(text)).map(Source::Local)
    }
}

impl Local {
    /// The log of a database file, or a log directory itself.
    pub fn find(path: &Path) -> Result<Local> {
        let exists = path
            .try_exists()
            .map_err(|source| Error::io("looking for the source", path, &source))?;
        if exists && path.is_dir() {
            return Local::from_directory(path);
        }
        let log_dir = database::log_dir(path);
        if log_dir.join("meta").exists() {
            return Ok(Local {
                log_dir,
                db: path.to_path_buf(),
            });
        }
        let missing = Error::new(
            ErrorKind::NotFound,
            if exists {
                "this database has no log"
            } else {
                "no such file"
            },
        );
        Err(missing.at(path.display()).hint(if exists {
            "write to it through the extension, or record it now with mycelite push"
        } else {
            "give a database file, its log directory, or http://HOST:PORT/NAME"
        }))
    }

    fn from_directory(path: &Path) -> Result<Local> {
        if !path.join("meta").exists() {
            return Err(Error::new(
                ErrorKind::NotFound,
                "this directory is not a log: it has no file called meta",
            )
            .at(path.display())
            .hint("a log directory is called like its database with -mycelite behind it"));
        }
        // Without the usual ending there is no telling which database it belongs to; then none is found beside it.
        let real = path
            .canonicalize()
            .map_err(|source| Error::io("resolving", path, &source))?;
        let name = real
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let db = match name.strip_suffix("-mycelite") {
            Some(db) => real.with_file_name(db),
            None => beside(&real, ".db"),
        };
        Ok(Local {
            log_dir: path.to_path_buf(),
            db,
        })
    }

    /// Opens the log for reading.
    pub fn reader(&self) -> Result<Reader> {
        open_reader(&self.log_dir)
    }
}

/// Opens the log in `log_dir` for reading; never changes it.
pub fn open_reader(log_dir: &Path) -> Result<Reader> {
    Reader::open(Arc::new(FileStorage::new(log_dir))).map_err(log_error)
}

/// A client for a server's database, with what `flags` and the settings that hold for everything say.
pub fn remote(url: &ReplicaUrl, flags: &AccessArgs) -> Result<Remote> {
    let config = Config::for_database(Path::new(""), &[])?;
    Remote::new(url, &access(&config, flags)?, config.request_timeout)
}

/// What to show to a server, and by what to know it: the flags win over the settings.
pub fn access(config: &Config, flags: &AccessArgs) -> Result<Access> {
    let mut config = config.clone();
    if let Some(path) = &flags.token_file {
        config.token = Some(read_token(path)?);
    }
    for (flag, setting) in [
        (&flags.tls_ca, &mut config.tls.ca),
        (&flags.tls_cert, &mut config.tls.cert),
        (&flags.tls_key, &mut config.tls.key),
    ] {
        if let Some(path) = flag {
            *setting = Some(path.clone());
        }
    }
    let access = config.access();
    access.check()?;
    Ok(access)
}

/// An error of the log as an error of the program.
pub fn log_error(error: mycelite_journal::Error) -> Error {
    use mycelite_journal::Error as Log;
    let kind = match &error {
        Log::Io { .. } => ErrorKind::Io,
        Log::Corrupt { .. } | Log::Malformed { .. } => ErrorKind::Corrupt,
        Log::Version { .. } => ErrorKind::Unsupported,
        Log::Mismatch { .. } => ErrorKind::Diverged,
        Log::NotFound { .. } => ErrorKind::NotFound,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, error)
}
