//! What can go wrong: always one line with the place and, where there is one, what to do.

use std::fmt;
use std::io;

use crate::pos::Txid;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Bytes that are not what the format says. It knows no place: [`Error::Corrupt`] and [`Error::Malformed`] add that.
///
/// ```
/// use mycelite_journal::{FormatError, RecordHeader};
/// assert_eq!(RecordHeader::decode(b"short"), Err(FormatError::Short));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FormatError {
    /// Fewer bytes than the structure has.
    Short,
    /// The structure does not begin with its magic; the text names the structure.
    Magic(&'static str),
    /// A format version that this program does not know.
    Version(u16),
    /// A checksum does not fit the bytes it covers; the text says which.
    Hash(&'static str),
    /// A field or a combination of fields that the format forbids.
    Invalid(&'static str),
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FormatError::Short => f.write_str("the bytes end too early"),
            FormatError::Magic(what) => write!(f, "no {what} here (wrong magic)"),
            FormatError::Version(found) => write!(f, "format version {found} is not known"),
            FormatError::Hash(what) => write!(f, "the checksum of the {what} does not fit"),
            FormatError::Invalid(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for FormatError {}

/// A failed operation on a log. Printed as one line: where, what, and what to do.
///
/// ```
/// use std::sync::Arc;
/// use mycelite_journal::{FileStorage, Log};
/// let nowhere = Arc::new(FileStorage::new("/no/such/app.db-mycelite"));
/// let error = Log::open(nowhere).err().ok_or("it is there?")?;
/// assert!(error.is_not_found());
/// assert!(error.to_string().starts_with("/no/such/app.db-mycelite: there is no log here ("));
/// # Ok::<(), &str>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// An operating-system call failed.
    Io {
        /// What was being done.
        what: &'static str,
        /// The file or directory.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Stored bytes are not what they must be, and a torn tail does not explain it.
    Corrupt {
        /// The file.
        path: String,
        /// Byte offset in the file of the structure concerned.
        offset: u64,
        /// The transaction concerned, where it is known.
        txid: Option<Txid>,
        /// What is wrong.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// Bytes from outside the log (a stream of raw records) that are not valid records.
    Malformed {
        /// The transaction that was expected or announced, where it is known.
        txid: Option<Txid>,
        /// What is wrong.
        what: FormatError,
    },
    /// A file in a format version that this program does not know.
    Version {
        /// The file.
        path: String,
        /// The version found.
        found: u16,
        /// The newest version known.
        known: u16,
    },
    /// A record that does not follow the log's last one.
    Mismatch {
        /// The field that does not fit.
        what: &'static str,
        /// What the log needs.
        expected: String,
        /// What the record has.
        found: String,
    },
    /// The log, or the transaction asked for, is not there.
    NotFound {
        /// What is missing, and where.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// A log is already there.
    Exists {
        /// The file that is in the way.
        path: String,
    },
    /// More than the caller's limit allows.
    Limit {
        /// What is limited.
        what: &'static str,
        /// How much there is.
        found: u64,
        /// How much is allowed.
        limit: u64,
    },
    /// The call does not fit the state that the log is in, or an argument makes no sense.
    Misuse(&'static str),
    /// Work in the background was ended before it was done, by its [`Pace`](crate::Pace). The log is as it was.
    Stopped,
}

impl Error {
    pub(crate) fn io(what: &'static str, path: String, source: io::Error) -> Error {
        // A file that is rebuilt while it is read hands its own error through.
        match source.downcast::<Error>() {
            Ok(error) => error,
            Err(source) => Error::Io { what, path, source },
        }
    }

    /// Whether the log (or the transaction) does not exist, as opposed to being unreadable.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::NotFound { .. })
    }

    /// The system's error, where the operation failed because of one.
    pub fn io_error(&self) -> Option<&io::Error> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { what, path, source } => write!(f, "{path}: {what}: {source}"),
            Error::Corrupt {
                path,
                offset,
                txid,
                what,
                hint,
            } => {
                write!(f, "{path}: damaged at byte {offset}")?;
                if let Some(txid) = txid {
                    write!(f, ", transaction {txid}")?;
                }
                write!(f, ": {what} ({hint})")
            }
            Error::Malformed { txid, what } => {
                f.write_str("bad record")?;
                if let Some(txid) = txid {
                    write!(f, ", transaction {txid}")?;
                }
                write!(f, ": {what} (nothing of it was kept; send it again)")
            }
            Error::Version { path, found, known } => write!(
                f,
                "{path}: written in format version {found}, this program knows {known} (use a newer program)"
            ),
            Error::Mismatch {
                what,
                expected,
                found,
            } => write!(
                f,
                "the record does not follow the log: {what} must be {expected}, is {found} (the histories differ, or a record is missing)"
            ),
            Error::NotFound { what, hint } => write!(f, "{what} ({hint})"),
            Error::Exists { path } => write!(f, "{path}: a log is already there (open it instead)"),
            Error::Limit { what, found, limit } => {
                write!(f, "{what}: {found} is more than the limit of {limit}")
            }
            Error::Misuse(what) => f.write_str(what),
            Error::Stopped => f.write_str(
                "the work in the background was stopped before its end (nothing is lost: it begins anew next time)",
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            Error::Malformed { what, .. } => Some(what),
            _ => None,
        }
    }
}
