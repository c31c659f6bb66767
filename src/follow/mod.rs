//! The pulling end of the wire: the frames that a server sends about one database.
//!
//! Nothing here knows what becomes of the records; `server::pull` stores them.

use std::time::Duration;

use mycelite_journal::{Pos, Txid};

use crate::access::Access;
use crate::error::{Error, ErrorKind, Result};
use crate::proto::follow::{Frame, FrameBuffer, Hello};
use crate::proto::snapshot::SnapshotTag;
use crate::proto::{DatabaseInfo, ReplicaUrl};
use crate::ship::incoming::Asker;
pub(crate) use crate::ship::incoming::Incoming;
pub(crate) use crate::ship::incoming::Offer;
pub(crate) use crate::ship::{Failure, FailureKind, pause_after};

/// Longest wait for the head of an answer, and for the hello.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// So many pauses between two beats may pass without a sign of life.
const BEATS_MISSED_MAX: u32 = 3;
/// A line is not given up earlier than this, however often the server promises to beat.
const PATIENCE_MIN: Duration = Duration::from_secs(1);
/// Nor later, whatever the server says.
const PATIENCE_MAX: Duration = Duration::from_secs(300);

/// A server's database, to be followed.
pub(crate) struct Source {
    asker: Asker,
    url: ReplicaUrl,
}

impl Source {
    /// Nothing is asked yet.
    pub fn new(url: &ReplicaUrl, access: &Access) -> Result<Source> {
        Ok(Source {
            asker: Asker::new(url, access, ANSWER_WAIT)?,
            url: url.clone(),
        })
    }

    /// Where it is.
    pub fn url(&self) -> &ReplicaUrl {
        &self.url
    }

    /// Where the server was after transaction `txid` of its history.
    pub async fn pos_at(&self, txid: Txid) -> std::result::Result<Pos, Failure> {
        self.asker.pos_at(txid).await
    }

    /// What the server says about the database.
    pub async fn info(&self) -> std::result::Result<DatabaseInfo, Failure> {
        self.asker.info().await
    }

    /// A snapshot, or the rest of one of which so many bytes are `known`.
    pub async fn snapshot(
        &self,
        known: Option<(SnapshotTag, u64)>,
    ) -> std::result::Result<(Offer, Incoming<'_>), Failure> {
        self.asker.snapshot(known).await
    }

    /// Opens the stream of what follows transaction `after`; what the server says first.
    pub async fn open(&self, after: Txid) -> std::result::Result<(Feed<'_>, Hello), Failure> {
        let mut feed = Feed {
            incoming: self.asker.follow(after).await?,
            frames: FrameBuffer::default(),
            patience: ANSWER_WAIT,
            url: &self.url,
        };
        match feed.next().await? {
            Frame::Hello(hello) => {
                let beat = Duration::from_millis(u64::from(hello.beat_ms));
                feed.patience = (beat * BEATS_MISSED_MAX).clamp(PATIENCE_MIN, PATIENCE_MAX);
                Ok((feed, hello))
            }
            // The buffer lets nothing else come first.
            _ => Err(feed.broken("there is no hello")),
        }
    }
}

/// An open stream.
pub(crate) struct Feed<'a> {
    incoming: Incoming<'a>,
    frames: FrameBuffer,
    patience: Duration,
    url: &'a ReplicaUrl,
}

impl Feed<'_> {
    /// The next frame. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> std::result::Result<Frame, Failure> {
        loop {
            let next = self.frames.take().map_err(|e| {
                let failure = e.at(self.url);
                match failure.kind() {
                    ErrorKind::Unsupported => Failure::refused(failure),
                    _ => Failure::transient(failure),
                }
            })?;
            if let Some(frame) = next {
                return Ok(frame);
            }
            match self.incoming.chunk(self.patience).await? {
                Some(bytes) => self.frames.push(&bytes),
                None if self.frames.is_empty() => return Err(self.broken("the server hung up")),
                None => return Err(self.broken("the stream was cut within a frame")),
            }
        }
    }

    fn broken(&self, what: &str) -> Failure {
        Failure::transient(Error::new(ErrorKind::Network, what).at(self.url))
    }
}
