//! One error for the whole program: what failed, where, and what to do about it.

use std::fmt;
use std::path::Path;

/// What kind of failure an [`Error`] is; decides exit codes, HTTP codes and SQLite codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller asked for something that makes no sense: a bad flag, URL, name or setting.
    Usage,
    /// Reading or writing a file failed.
    Io,
    /// A network peer could not be reached, or answered nonsense.
    Network,
    /// The peer refused the token, or the token lacks a scope.
    Denied,
    /// Stored bytes are not what their checksum says.
    Corrupt,
    /// Two histories that should be one differ.
    Diverged,
    /// The thing asked for does not exist.
    NotFound,
    /// Someone else holds a lock, and waiting longer would have no bound.
    Busy,
    /// A database is being taken into its log: what is asked for is there when that is done.
    Adopting,
    /// This version cannot do it (an unknown format version, a route that is not served).
    Unsupported,
    /// A defect in this program that was caught before it did harm.
    Internal,
}

/// What failed, where, and what to do: always one line.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    place: String,
    hint: String,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`: `what` happened. Add the place and the advice with [`Error::at`] and [`Error::hint`].
    pub fn new(kind: ErrorKind, what: impl fmt::Display) -> Error {
        Error {
            kind,
            what: one_line(what),
            place: String::new(),
            hint: String::new(),
        }
    }

    /// A failed operating-system call: `what` was being done to `path`.
    pub fn io(what: impl fmt::Display, path: &Path, source: &std::io::Error) -> Error {
        Error::new(ErrorKind::Io, format_args!("{what}: {source}")).at(path.display())
    }

    /// Names the file, URL or setting concerned.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Error {
        self.place = one_line(place);
        self
    }

    /// Says what the reader can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Error {
        self.hint = one_line(hint);
        self
    }

    /// The kind of failure.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The exit code of the command line: 2 for wrong usage, 3 for I/O, network and everything found broken.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            ErrorKind::Usage => 2,
            _ => 3,
        }
    }
}

/// Folds line breaks, so that an error stays one line in every log.
fn one_line(text: impl fmt::Display) -> String {
    let text = text.to_string();
    if text.contains(['\n', '\r']) {
        text.split(['\n', '\r'])
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("; ")
    } else {
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        f.write_str(&self.what)?;
        if !self.hint.is_empty() {
            write!(f, " ({})", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
