//! A batch of records as a request body: read from the segment files and compressed while it is sent, so that the
//! memory needed does not depend on the size of a record.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use crate::lock::Mutex;
use bytes::Bytes;
use http_body::Frame;
use mycelite_journal::{Pos, RecordEntry};

use crate::error::{Error, ErrorKind, Result};

/// Compressed bytes that make one chunk of the body.
const CHUNK_BYTES: usize = 64 * 1024;
/// Raw bytes that go through the compressor at a time.
const READ_BYTES: usize = 128 * 1024;
/// Fast, and already within a few percent of what higher levels reach on changed ranges.
const ZSTD_LEVEL: i32 = 1;

/// Consecutive records that travel in one request.
pub(super) struct Batch {
    /// In order of their txids.
    pub entries: VecDeque<RecordEntry>,
    /// Their length as the log stores them.
    pub raw_bytes: u64,
    /// Where the replica is once it holds them all.
    pub end: Pos,
}

/// What the sender of a body learns while it is sent, and afterwards.
pub(super) struct Sent {
    /// Set whenever the connection took another chunk, and when the body ended.
    pub last_progress: Instant,
    /// True once the connection took all of it.
    pub complete: bool,
    /// Why the records could not be read from this side's own log.
    pub local_error: Option<Error>,
}

/// The body itself; polled by the HTTP client whenever the connection has room.
pub(super) struct RecordBody {
    entries: VecDeque<RecordEntry>,
    // Behind a mutex only because a body must be Sync; there is never a second thread.
    state: Mutex<State>,
    sent: Arc<Mutex<Sent>>,
}

struct State {
    source: Option<Box<dyn Read + Send>>,
    encoder: Option<zstd::stream::write::Encoder<'static, Vec<u8>>>,
    buffer: Vec<u8>,
}

impl RecordBody {
    /// A body that sends `entries`, and where its progress is seen.
    pub fn new(entries: VecDeque<RecordEntry>) -> Result<(RecordBody, Arc<Mutex<Sent>>)> {
        let encoder =
            zstd::stream::write::Encoder::new(Vec::with_capacity(2 * CHUNK_BYTES), ZSTD_LEVEL)
                .map_err(|e| {
                    Error::new(
                        ErrorKind::Internal,
                        format_args!("cannot start the compressor: {e}"),
                    )
                })?;
        let sent = Arc::new(Mutex::new(Sent {
            last_progress: Instant::now(),
            complete: false,
            local_error: None,
        }));
        let state = State {
            source: None,
            encoder: Some(encoder),
            buffer: vec![0; READ_BYTES],
        };
        let body = RecordBody {
            entries,
            state: Mutex::new(state),
            sent: Arc::clone(&sent),
        };
        Ok((body, sent))
    }

    /// The next compressed chunk; none at the end.
    fn next_chunk(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let state = self.state.get_mut();
        loop {
            let Some(encoder) = state.encoder.as_mut() else {
                return Ok(None);
            };
            if encoder.get_ref().len() >= CHUNK_BYTES {
                return Ok(Some(std::mem::replace(
                    encoder.get_mut(),
                    Vec::with_capacity(2 * CHUNK_BYTES),
                )));
            }
            if let Some(source) = state.source.as_mut() {
                let count = source.read(&mut state.buffer)?;
                encoder.write_all(&state.buffer[..count])?;
                if count == 0 {
                    state.source = None;
                }
            } else if let Some(entry) = self.entries.pop_front() {
                state.source = Some(Box::new(entry.raw()));
            } else if let Some(encoder) = state.encoder.take() {
                return encoder.finish().map(Some);
            }
        }
    }
}

impl http_body::Body for RecordBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, std::io::Error>>> {
        let this = self.get_mut();
        // Reading and compressing one chunk takes well under a millisecond.
        let chunk = this.next_chunk();
        let mut sent = this.sent.lock();
        sent.last_progress = Instant::now();
        match chunk {
            Ok(Some(chunk)) => Poll::Ready(Some(Ok(Frame::data(Bytes::from(chunk))))),
            Ok(None) => {
                sent.complete = true;
                Poll::Ready(None)
            }
            Err(e) => {
                sent.local_error = Some(Error::new(
                    ErrorKind::Io,
                    format_args!("cannot read records from this side's log: {e}"),
                ));
                Poll::Ready(Some(Err(e)))
            }
        }
    }
}
