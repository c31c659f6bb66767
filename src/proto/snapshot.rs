//! A snapshot on the wire: the very bytes of the log's snapshot file, in any number of pieces, each at its place.
//!
//! * `GET .../snapshot[?txid=N]`, with `Range: bytes=K-` and `If-Range` to go on where a line was cut.
//! * `PUT .../snapshot` with `Content-Range: bytes FIRST-LAST/ALL` for each piece; `bytes */ALL` asks how much is there. The last
//!   piece makes the snapshot the beginning of the server's log, if that is still where `mycelite-after` says.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::str::FromStr;

use mycelite_journal::{Checksum, Pos, Timeline, Txid};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, ErrorKind, Result};
use crate::status::PosStatus;

/// `Content-Type` of a snapshot.
pub const TYPE_SNAPSHOT: &str = "application/x-mycelite-snapshot";
/// With each piece: the [`SnapshotTag`] of the whole.
pub const HEADER_SNAPSHOT: &str = "mycelite-snapshot";
/// Bytes at a snapshot's end that tell it from any other.
const END_BYTES: u64 = 4096;
/// Longest piece of a `PUT`, in bytes.
pub const PIECE_BYTES_MAX: usize = 8 << 20;

/// Which snapshot it is, byte for byte: pieces with the same tag belong together, whenever they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotTag {
    /// The state that it holds.
    pub pos: Pos,
    /// Length of the file.
    pub bytes: u64,
    /// Hash of the file's end, which holds the hashes of the rest.
    pub hash: u64,
}

impl SnapshotTag {
    /// Opens a snapshot's file: with it come its length and hash.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn end_of(path: &Path) -> io::Result<(File, u64, u64)> {
        let mut file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let mut end = Vec::new();
        file.seek(SeekFrom::Start(bytes.saturating_sub(END_BYTES)))?;
        file.read_to_end(&mut end)?;
        Ok((file, bytes, xxh3_64(&end)))
    }
}

impl fmt::Display for SnapshotTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Pos {
            timeline,
            txid,
            checksum,
        } = self.pos;
        write!(
            f,
            "{timeline}-{txid}-{checksum}-{}-{:016x}",
            self.bytes, self.hash
        )
    }
}

impl FromStr for SnapshotTag {
    type Err = Error;

    /// Takes nothing but what [`SnapshotTag`] displays: it becomes a file's name.
    fn from_str(text: &str) -> Result<SnapshotTag> {
        let mut parts = text.split('-');
        let mut next = || parts.next().unwrap_or_default();
        let number = |text: &str| text.parse::<u64>().ok();
        let tag = (|| {
            Some(SnapshotTag {
                pos: Pos {
                    timeline: Timeline(number(next())?),
                    txid: Txid(number(next())?),
                    checksum: next().parse::<Checksum>().ok()?,
                },
                bytes: number(next())?,
                hash: u64::from_str_radix(next(), 16).ok()?,
            })
        })();
        tag.filter(|tag| tag.to_string() == text)
            .ok_or_else(|| Error::new(ErrorKind::Usage, "not the tag of a snapshot"))
    }
}

/// What `PUT` answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotReply {
    /// Bytes that are there; the next piece begins behind them.
    pub received: u64,
    /// Where the server's log is now, once the snapshot is its beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pos: Option<PosStatus>,
}

/// A place in a file: `bytes FIRST-LAST/ALL`, or `bytes */ALL` for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First byte and the one behind the last; none for the question.
    pub range: Option<(u64, u64)>,
    /// Length of the whole file.
    pub all: u64,
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.range {
            Some((from, to)) => write!(f, "bytes {from}-{}/{}", to.saturating_sub(1), self.all),
            None => write!(f, "bytes */{}", self.all),
        }
    }
}

impl FromStr for Piece {
    type Err = Error;

    fn from_str(text: &str) -> Result<Piece> {
        let piece = (|| {
            let (range, all) = text.strip_prefix("bytes ")?.split_once('/')?;
            let all = all.parse().ok()?;
            if range == "*" {
                return Some(Piece { range: None, all });
            }
            let (first, last) = range.split_once('-')?;
            let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
            (first <= last && last < all).then_some(Piece {
                range: Some((first, last + 1)),
                all,
            })
        })();
        piece.ok_or_else(|| Error::new(ErrorKind::Usage, "not a place in a file"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn tags_and_places_are_read_as_they_are_written_and_nothing_else_is() {
        let tag = SnapshotTag {
            pos: "3/41/00000000000000ff".parse().unwrap(),
            bytes: 123_456,
            hash: 0xab,
        };
        let text = tag.to_string();
        assert_eq!(text, "3-41-00000000000000ff-123456-00000000000000ab");
        assert_eq!(text.parse::<SnapshotTag>().unwrap(), tag);
        for wrong in [
            "",
            "../../x",
            "3-41-ff-123456-ab",
            &format!("{text}-1"),
            &format!("+{text}"),
            &text.to_uppercase(),
        ] {
            assert!(wrong.parse::<SnapshotTag>().is_err(), "{wrong}");
        }
        for (piece, text) in [
            (
                Piece {
                    range: Some((0, 10)),
                    all: 20,
                },
                "bytes 0-9/20",
            ),
            (
                Piece {
                    range: None,
                    all: 20,
                },
                "bytes */20",
            ),
        ] {
            assert_eq!(piece.to_string(), text);
            assert_eq!(text.parse::<Piece>().unwrap(), piece);
        }
        for wrong in [
            "bytes 5-4/9",
            "bytes 0-9/9",
            "bytes -9/9",
            "items 0-1/2",
            "bytes 0-1",
            "bytes 0-1/*",
        ] {
            assert!(wrong.parse::<Piece>().is_err(), "{wrong}");
        }
    }
}
