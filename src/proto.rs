//! What the two ends of the wire agree on: names, routes, headers, the handshake and the JSON bodies.
//!
//! The only user of `bincode` (1.3.3: complete, but no longer maintained): always with fixed-size integers, a limit
//! and no trailing bytes, only between our own two ends, never on disk.

pub mod follow;
pub mod snapshot;
mod url;

use std::fmt;
use std::str::FromStr;

use bincode::Options;
use mycelite_journal::{Checksum, DatabaseId, Pos, Timeline, Txid};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::status::{FollowStatus, ParkedStatus, PosStatus};
pub use url::ReplicaUrl;

/// Version of the wire protocol; both ends must speak the same.
pub const PROTOCOL: u32 = 1;

/// In every answer of a Mycelite server: [`PROTOCOL`]. An answer without it came from something else.
pub const HEADER_PROTOCOL: &str = "mycelite-protocol";
/// In an append: the database id, 32 hex digits.
pub const HEADER_DATABASE: &str = "mycelite-database";
/// In an append: the position that the batch follows, `timeline/txid/checksum`.
pub const HEADER_AFTER: &str = "mycelite-after";
/// In an answer that carries a database file: the position of that file.
pub const HEADER_POS: &str = "mycelite-pos";
/// In an answer that carries records: the position after the last of them.
pub const HEADER_HEAD: &str = "mycelite-head";

/// `Accept` and `Content-Type` of the [`Handshake`].
pub const TYPE_HANDSHAKE: &str = "application/x-mycelite-handshake";
/// `Content-Type` of records: a zstd stream of whole records, as the log stores them.
pub const TYPE_RECORDS: &str = "application/x-mycelite-records";
/// `Content-Type` of a database file.
pub const TYPE_DATABASE: &str = "application/vnd.sqlite3";

/// Longest database name, in bytes.
pub const NAME_BYTES_MAX: usize = 100;
/// Longest encoded handshake that is accepted, in bytes.
pub const HANDSHAKE_BYTES_MAX: u64 = 256;
/// Longest JSON answer that a client reads, in bytes.
pub const JSON_BYTES_MAX: usize = 64 * 1024;
/// Parked tails that a server tells of: more would not fit an answer.
pub const PARKED_SHOWN_MAX: usize = 100;
/// Largest zstd window either end asks for, as a power of two: 8 MiB.
pub const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// Suffixes that SQLite and the log give to files beside a database; a name with one of them would only confuse.
const NAME_SUFFIXES_TAKEN: [&str; 4] = [".db-wal", ".db-shm", ".db-journal", ".db-mycelite"];

/// The name of a database on a server: 1 to 100 letters, digits, `.`, `_` and `-`, beginning with a letter or a digit.
/// No path can be reached through it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatabaseName(String);

impl DatabaseName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DatabaseName {
    type Err = Error;

    fn from_str(text: &str) -> Result<DatabaseName> {
        let bytes = text.as_bytes();
        let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let well_formed = bytes.len() <= NAME_BYTES_MAX
            && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.iter().all(allowed)
            && !NAME_SUFFIXES_TAKEN.iter().any(|end| text.ends_with(end));
        if well_formed {
            return Ok(DatabaseName(text.to_string()));
        }
        Err(Error::new(
            ErrorKind::Usage,
            format_args!("not a database name: {}", excerpt(text, 40)),
        )
        .hint(
            "a name is 1 to 100 letters, digits, '.', '_' or '-', begins with a letter or digit, \
             and does not end in .db-wal, .db-shm, .db-journal or .db-mycelite",
        ))
    }
}

impl fmt::Display for DatabaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// At most `chars_max` characters of foreign text, on one line and without control characters: fit for an error.
pub fn excerpt(text: &str, chars_max: usize) -> String {
    let mut out = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == chars_max {
            out.push('…');
            break;
        }
        out.push(if c.is_control() { ' ' } else { c });
    }
    out.trim().to_string()
}

/// What a server says about one database before records are sent: who it is and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handshake {
    /// The server's [`PROTOCOL`].
    pub protocol: u32,
    /// Identity of the database it holds under that name; none when it holds nothing yet.
    pub database: Option<[u8; 16]>,
    /// Timeline of the last durable record.
    pub timeline: u64,
    /// The last durable record; 0 when there is none.
    pub txid: u64,
    /// Checksum of the whole database after that record.
    pub checksum: u64,
    /// Page size in bytes; 0 when there is no record.
    pub page_size: u32,
    /// The last record that the replica's database file contains.
    pub applied_txid: u64,
}

impl Handshake {
    /// A handshake for the database `id` at `pos`.
    pub fn new(id: Option<DatabaseId>, pos: Pos, page_size: u32, applied_txid: Txid) -> Handshake {
        Handshake {
            protocol: PROTOCOL,
            database: id.map(|id| id.0),
            timeline: pos.timeline.0,
            txid: pos.txid.0,
            checksum: pos.checksum.0,
            page_size,
            applied_txid: applied_txid.0,
        }
    }

    /// The position as the log knows it.
    pub fn pos(&self) -> Pos {
        Pos {
            timeline: Timeline(self.timeline),
            txid: Txid(self.txid),
            checksum: Checksum(self.checksum),
        }
    }

    /// The bytes on the wire.
    pub fn encode(&self) -> Result<Vec<u8>> {
        handshake_options().serialize(self).map_err(|e| {
            Error::new(
                ErrorKind::Internal,
                format_args!("cannot encode the handshake: {e}"),
            )
        })
    }

    /// Reads the bytes of the other end: exactly one handshake of our protocol, nothing after it.
    pub fn decode(bytes: &[u8]) -> Result<Handshake> {
        // The protocol number comes first in every version, so that a newer layout is told from nonsense.
        let protocol = bytes
            .first_chunk::<4>()
            .map(|first| u32::from_le_bytes(*first));
        match handshake_options().deserialize::<Handshake>(bytes) {
            Ok(handshake) if handshake.protocol == PROTOCOL => Ok(handshake),
            _ => match protocol {
                Some(other) if other != PROTOCOL && other < 1000 => Err(Error::new(
                    ErrorKind::Unsupported,
                    format_args!(
                        "the server speaks protocol {other}, this program protocol {PROTOCOL}"
                    ),
                )
                .hint("use the same version of mycelite on both ends")),
                _ => Err(
                    Error::new(ErrorKind::Network, "the handshake cannot be read")
                        .hint("is this a mycelite server?"),
                ),
            },
        }
    }
}

fn handshake_options() -> impl Options {
    bincode::DefaultOptions::new()
        .with_fixint_encoding()
        .with_limit(HANDSHAKE_BYTES_MAX)
        .reject_trailing_bytes()
}

/// Body of every answer that refuses: one line, and the server's position where that helps to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// What is wrong and what to do about it.
    pub error: String,
    /// The last durable position, when a batch did not fit or was kept in part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pos: Option<PosStatus>,
}

/// One database as its server describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseInfo {
    /// Its name on the server.
    pub name: String,
    /// Identity of its log, 32 hex digits.
    pub id: String,
    /// Last durable record.
    pub pos: PosStatus,
    /// The last record that the database file contains.
    pub applied_txid: u64,
    /// First record of the retained history; 0 when there is none.
    pub first_txid: u64,
    /// Page size in bytes; 0 when there is no record.
    pub page_size: u32,
    /// Pages in the image.
    pub page_count: u32,
    /// Bytes of the log on disk.
    pub log_bytes: u64,
    /// `ok`, or `degraded` with the reason in `last_error`.
    pub state: String,
    /// The last failure, one line; empty when there was none since the last success.
    pub last_error: String,
    /// Where its records are pulled from, if they are not pushed here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<FollowStatus>,
    /// What was parked when new timelines began, the newest [`PARKED_SHOWN_MAX`], oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parked: Vec<ParkedStatus>,
}

/// Body of the list of databases.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseList {
    /// In order of their names.
    pub databases: Vec<DatabaseInfo>,
}

/// A position in the form that people and programs read.
pub fn pos_status(pos: Pos) -> PosStatus {
    PosStatus {
        timeline: pos.timeline.0,
        txid: pos.txid.0,
        checksum: pos.checksum.to_string(),
    }
}

/// The position behind its readable form; an error if the checksum is not 16 hex digits.
pub fn parse_pos_status(status: &PosStatus) -> Result<Pos> {
    let checksum = status
        .checksum
        .parse::<Checksum>()
        .map_err(|e| Error::new(ErrorKind::Network, e))?;
    Ok(Pos {
        timeline: Timeline(status.timeline),
        txid: Txid(status.txid),
        checksum,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn names_that_are_safe_are_accepted() {
        for name in [
            "a",
            "app",
            "App-1.2_x",
            "0",
            "orders.db",
            "a..b",
            &"x".repeat(100),
        ] {
            assert_eq!(name.parse::<DatabaseName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn names_that_could_reach_a_path_are_refused() {
        let long = "x".repeat(101);
        let bad = [
            "",
            ".",
            "..",
            ".hidden",
            "-x",
            "_x",
            "a/b",
            "a\\b",
            "a b",
            "a%2f",
            "ä",
            "a\0",
            "a\n",
            "x.db-wal",
            "x.db-shm",
            "x.db-journal",
            "x.db-mycelite",
            &long,
        ];
        for name in bad {
            let error = name.parse::<DatabaseName>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{name:?}");
            assert_eq!(error.to_string().lines().count(), 1, "{error}");
        }
    }

    fn sample(database: Option<[u8; 16]>) -> Handshake {
        Handshake {
            protocol: PROTOCOL,
            database,
            timeline: 1,
            txid: u64::MAX,
            checksum: 0x0123_4567_89ab_cdef,
            page_size: 4096,
            applied_txid: 7,
        }
    }

    #[test]
    fn handshakes_travel_unchanged() {
        for handshake in [sample(None), sample(Some([7; 16]))] {
            let bytes = handshake.encode().unwrap();
            assert!(bytes.len() as u64 <= HANDSHAKE_BYTES_MAX);
            assert_eq!(Handshake::decode(&bytes).unwrap(), handshake);
        }
    }

    #[test]
    fn anything_but_one_whole_handshake_is_refused() {
        let bytes = sample(Some([7; 16])).encode().unwrap();
        for cut in 0..bytes.len() {
            assert!(Handshake::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(Handshake::decode(&longer).is_err());
        assert!(Handshake::decode(&vec![0xff; 1 << 20]).is_err());
        assert!(Handshake::decode(b"<!doctype html>").is_err());

        let mut newer = bytes;
        newer[0] = 2;
        let error = Handshake::decode(&newer).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("protocol 2"), "{error}");
    }

    #[test]
    fn positions_survive_their_readable_form() {
        let pos = sample(None).pos();
        assert_eq!(parse_pos_status(&pos_status(pos)).unwrap(), pos);
        for checksum in [
            "",
            "0",
            "+123456789abcdef",
            "0123456789abcdeg",
            "00123456789abcdef",
        ] {
            let status = PosStatus {
                checksum: checksum.to_string(),
                ..PosStatus::default()
            };
            assert!(parse_pos_status(&status).is_err(), "{checksum:?}");
        }
    }

    #[test]
    fn excerpts_are_one_short_line() {
        assert_eq!(excerpt("a\r\nb\u{1b}[1m", 80), "a  b [1m");
        assert_eq!(excerpt(&"x".repeat(100), 3), "xxx…");
    }
}
