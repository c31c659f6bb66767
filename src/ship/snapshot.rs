//! Snapshots over the line, to a replica.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mycelite_journal::{Archive, DatabaseId, FileStorage, Pos, snapshot_name};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderName, HeaderValue};

use super::client::{Appended, Client, Failure, reply_pos};
use super::link::local;
use crate::error::{Error, ErrorKind};
use crate::proto::snapshot::{HEADER_SNAPSHOT, PIECE_BYTES_MAX, Piece, SnapshotReply, SnapshotTag};
use crate::proto::{HEADER_AFTER, HEADER_DATABASE, ReplicaUrl, parse_pos_status};

/// A first piece; those after it grow, as long as they arrive.
const PIECE_BYTES: u64 = 512 * 1024;
/// The rate at which a server at least proves a snapshot and makes it its log; extends the wait for the last answer.
const PROVED_BYTES_PER_SECOND_MIN: u64 = 16 * 1024 * 1024;
/// So often in a row may a server say that it is at another byte.
const ELSEWHERE_MAX: u32 = 4;

/// A snapshot of this side's log, to be sent.
pub(super) struct Parcel {
    tag: SnapshotTag,
    file: File,
    /// Bytes of the database that it holds.
    image_bytes: u64,
    moved: bool,
}

impl Parcel {
    /// The newest snapshot in the log.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn newest(log_dir: &Path, url: &ReplicaUrl) -> Result<Parcel, Failure> {
        let archive = Archive::open(Arc::new(FileStorage::new(log_dir))).map_err(local)?;
        let Some(txid) = archive.snapshots().map_err(local)?.pop() else {
            return Err(Failure::refused(
                Error::new(
                    ErrorKind::NotFound,
                    "the replica lacks transactions that this log has let go of, and the log has no snapshot",
                )
                .at(url)
                .hint("run `mycelite verify` on this side's log"),
            ));
        };
        let past = archive.as_of(txid).map_err(local)?;
        let failed =
            |e: io::Error| Failure::transient(Error::io("cannot read the snapshot", log_dir, &e));
        let (file, bytes, hash) =
            SnapshotTag::end_of(&log_dir.join(snapshot_name(txid))).map_err(failed)?;
        Ok(Parcel {
            tag: SnapshotTag {
                pos: past.pos(),
                bytes,
                hash,
            },
            file,
            image_bytes: u64::from(past.page_count()) * u64::from(past.page_size().get()),
            moved: false,
        })
    }

    /// The state in it.
    pub fn pos(&self) -> Pos {
        self.tag.pos
    }

    /// Whether a piece of it has arrived.
    pub fn has_moved(&self) -> bool {
        self.moved
    }

    /// Sends it to a server that is at `after`; goes on where an earlier attempt was cut.
    pub async fn send(
        &mut self,
        client: &Client,
        url: &ReplicaUrl,
        id: DatabaseId,
        after: Pos,
    ) -> Result<Appended, Failure> {
        let said = |what: &str| Failure::transient(Error::new(ErrorKind::Network, what).at(url));
        let (mut range, mut size, mut elsewhere) = (None, PIECE_BYTES, 0);
        loop {
            let piece = Piece {
                range,
                all: self.tag.bytes,
            };
            let headers = self
                .headers(id, after, piece)
                .map_err(|e| Failure::refused(e.at(url)))?;
            let last = range.is_some_and(|(_, to)| to == self.tag.bytes);
            let proving = Duration::from_secs(self.image_bytes / PROVED_BYTES_PER_SECOND_MIN);
            let bytes = || {
                self.read(range).map_err(|e| {
                    let what = format_args!("cannot read the snapshot: {e}");
                    Failure::transient(Error::new(ErrorKind::Io, what).at(url))
                })
            };
            let wait = client.timeout() + if last { proving } else { Duration::ZERO };
            let (status, body) = client.put(url.snapshot_url(), headers, bytes, wait).await?;
            if status == StatusCode::PRECONDITION_FAILED {
                let pos = reply_pos(&body);
                return pos.map(Appended::Misfit).ok_or_else(|| {
                    said("the server refused a snapshot without saying where it stands")
                });
            }
            let reply = serde_json::from_slice::<SnapshotReply>(&body)
                .map_err(|_| said("the server does not say how much of the snapshot it has"))?;
            if let Some(pos) = reply.pos {
                return match parse_pos_status(&pos) {
                    Ok(pos) if pos == self.tag.pos => Ok(Appended::Durable),
                    _ => Err(said(
                        "the server's acknowledgement does not name what was sent",
                    )),
                };
            }
            match status {
                StatusCode::RANGE_NOT_SATISFIABLE => elsewhere += 1,
                _ => self.moved |= range.is_some(),
            }
            if reply.received >= self.tag.bytes || elsewhere > ELSEWHERE_MAX {
                return Err(said(
                    "the server cannot say how much of the snapshot it has",
                ));
            }
            let to = (reply.received + size).min(self.tag.bytes);
            range = Some((reply.received, to));
            size = (size * 2).min(PIECE_BYTES_MAX as u64);
        }
    }

    fn headers(&self, id: DatabaseId, after: Pos, piece: Piece) -> Result<HeaderMap, Error> {
        let mut headers = HeaderMap::new();
        for (name, text) in [
            (HeaderName::from_static(HEADER_DATABASE), id.to_string()),
            (HeaderName::from_static(HEADER_AFTER), after.to_string()),
            (
                HeaderName::from_static(HEADER_SNAPSHOT),
                self.tag.to_string(),
            ),
            (CONTENT_RANGE, piece.to_string()),
        ] {
            let value =
                HeaderValue::from_str(&text).map_err(|e| Error::new(ErrorKind::Internal, e))?;
            headers.insert(name, value);
        }
        Ok(headers)
    }

    fn read(&mut self, range: Option<(u64, u64)>) -> io::Result<Vec<u8>> {
        let Some((from, to)) = range else {
            return Ok(Vec::new());
        };
        let mut bytes = vec![0; (to - from) as usize];
        self.file.seek(SeekFrom::Start(from))?;
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
