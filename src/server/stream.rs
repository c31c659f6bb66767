//! The bridge between async bodies and the blocking world of files: bounded in memory, and bounded in time for a
//! client that stands still.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use http_body::Frame;
use tokio::sync::mpsc;

/// Chunks that wait between the two sides.
const CHUNKS_WAITING_MAX: usize = 8;
/// Bytes that a [`ChunkWriter`] collects before it sends them.
const CHUNK_BYTES: usize = 64 * 1024;
/// What is read of an unwanted body, so that the client sees our answer and not a broken connection.
const DRAIN_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How long that may take.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);

/// How a request body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyEnd {
    /// All of it arrived.
    Complete,
    /// The connection broke.
    Broken,
    /// The client stood still, or was slower than allowed.
    TooSlow,
    /// It is longer than allowed.
    TooLong,
}

/// What bounds a request body.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyLimits {
    /// Longest body, in bytes as they travel.
    pub bytes_max: u64,
    /// Longest time without a byte.
    pub idle_max: Duration,
    /// After a minute, the body must have come at this average rate or better.
    pub bytes_per_second_min: u64,
}

/// The async end: takes a request body chunk by chunk.
pub(super) struct BodyPump {
    chunks: mpsc::Sender<Bytes>,
    end: Arc<OnceLock<BodyEnd>>,
}

/// The blocking end: reads what the pump takes. Must be used on a blocking thread.
pub(super) struct BodyReader {
    chunks: mpsc::Receiver<Bytes>,
    end: Arc<OnceLock<BodyEnd>>,
    current: Bytes,
}

/// A pump and its reader.
pub(super) fn body_pipe() -> (BodyPump, BodyReader) {
    let (sender, receiver) = mpsc::channel(CHUNKS_WAITING_MAX);
    let end = Arc::new(OnceLock::new());
    let reader = BodyReader {
        chunks: receiver,
        end: Arc::clone(&end),
        current: Bytes::new(),
    };
    (
        BodyPump {
            chunks: sender,
            end,
        },
        reader,
    )
}

impl BodyPump {
    /// Takes the body until it ends, breaks a limit, or the reader has gone.
    pub async fn run(self, body: &mut Body, limits: BodyLimits) {
        let begin = Instant::now();
        let mut bytes = 0_u64;
        let end = loop {
            let chunk = match tokio::time::timeout(limits.idle_max, next_data(body)).await {
                Err(_) => break BodyEnd::TooSlow,
                Ok(None) => break BodyEnd::Complete,
                Ok(Some(Err(_))) => break BodyEnd::Broken,
                Ok(Some(Ok(chunk))) => chunk,
            };
            bytes += chunk.len() as u64;
            if bytes > limits.bytes_max {
                break BodyEnd::TooLong;
            }
            let sent = tokio::time::timeout(limits.idle_max, self.chunks.send(chunk)).await;
            if !matches!(sent, Ok(Ok(()))) {
                return;
            }
            let seconds = begin.elapsed().as_secs();
            if seconds >= 60 && bytes / seconds < limits.bytes_per_second_min {
                break BodyEnd::TooSlow;
            }
        };
        // Before the channel closes, so that its reader finds the reason.
        let _ = self.end.set(end);
    }
}

async fn next_data(body: &mut Body) -> Option<Result<Bytes, axum::Error>> {
    loop {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => return Some(Ok(data)),
            // Trailers mean nothing here.
            Ok(Err(_)) => {}
            Err(e) => return Some(Err(e)),
        }
    }
}

/// Reads and forgets what is left of a refused body, within bounds.
pub(super) async fn drain(body: &mut Body) {
    let work = async {
        let mut bytes = 0;
        while let Some(Ok(chunk)) = next_data(body).await {
            bytes += chunk.len() as u64;
            if bytes > DRAIN_BYTES_MAX {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIME_MAX, work).await;
}

impl BodyReader {
    /// How the body ended; [`BodyEnd::Broken`] as long as nothing else is known.
    pub fn end(&self) -> BodyEnd {
        self.end.get().copied().unwrap_or(BodyEnd::Broken)
    }
}

impl Read for BodyReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = chunk,
                None if self.end() == BodyEnd::Complete => return Ok(0),
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the request body broke off",
                    ));
                }
            }
        }
        let count = out.len().min(self.current.len());
        let head = self.current.split_to(count);
        if let Some(target) = out.get_mut(..count) {
            target.copy_from_slice(&head);
        }
        Ok(count)
    }
}

/// The blocking end of an answer: what is written here goes to the client.
pub(super) struct ChunkWriter {
    chunks: mpsc::Sender<io::Result<Bytes>>,
    runtime: tokio::runtime::Handle,
    buffer: Vec<u8>,
    idle_max: Duration,
}

/// The answer's body.
pub(super) struct ChunkBody(mpsc::Receiver<io::Result<Bytes>>);

impl ChunkBody {
    /// A body of what comes through a channel.
    pub fn new(chunks: mpsc::Receiver<io::Result<Bytes>>) -> ChunkBody {
        ChunkBody(chunks)
    }
}

/// A writer and the body that carries what it writes. `idle_max` bounds the wait for a client that does not read.
/// Must be called inside the runtime.
pub(super) fn answer_pipe(idle_max: Duration) -> (ChunkWriter, ChunkBody) {
    let (sender, receiver) = mpsc::channel(CHUNKS_WAITING_MAX);
    let writer = ChunkWriter {
        chunks: sender,
        runtime: tokio::runtime::Handle::current(),
        buffer: Vec::with_capacity(CHUNK_BYTES),
        idle_max,
    };
    (writer, ChunkBody(receiver))
}

impl ChunkWriter {
    fn send(&mut self, chunk: io::Result<Bytes>) -> io::Result<()> {
        let sending = async { tokio::time::timeout(self.idle_max, self.chunks.send(chunk)).await };
        match self.runtime.block_on(sending) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the client has gone",
            )),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client does not read",
            )),
        }
    }

    /// Ends the answer in a way that the client sees as broken, not as complete.
    pub fn fail(mut self, e: io::Error) {
        let _ = self.send(Err(e));
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(data);
        if self.buffer.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK_BYTES));
        self.send(Ok(Bytes::from(chunk)))
    }
}

impl http_body::Body for ChunkBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0
            .poll_recv(cx)
            .map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }
}
