//! Streams that stay open: whoever follows a database gets each record as soon as it is durable here.
//!
//! A follower that has everything costs a task that waits for the log's end to move, and a timer; no thread, no file and
//! no compressor. Records are read by a few blocking jobs that all streams share, one piece at a time.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use mycelite_journal::{Pos, Reader, RecordEntry, Txid};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use super::State;
use super::database::{Database, Durable, now_us};
use super::reply::Refusal;
use super::stream::ChunkBody;
use crate::proto::follow::{Beat, CHUNK_BYTES_MAX, EndReason, Frame, Hello, TYPE_FOLLOW};

/// Frames that wait for a client.
const FRAMES_WAITING_MAX: usize = 2;
/// Fast, and already within a few percent of what higher levels reach on changed ranges.
const ZSTD_LEVEL: i32 = 1;
/// A follower that lacked nothing for so long costs no open file any more.
const QUIET: Duration = Duration::from_secs(60);
/// While records are sent without a pause, the server's position goes along this often.
const BUSY_BEAT: Duration = Duration::from_secs(1);

/// What follows transaction `after`, now and from now on.
pub(super) async fn stream(
    state: &Arc<State>,
    database: Arc<Database>,
    after: Txid,
    durable: Durable,
) -> Result<Response, Refusal> {
    let slot = Arc::clone(&state.followers)
        .try_acquire_owned()
        .map_err(|_| {
            Refusal::busy("too many followers at once (raise followers_max, or try again)")
        })?;
    if after > durable.pos.txid {
        return Err(Refusal::new(
            StatusCode::CONFLICT,
            &format!(
                "you are at transaction {after}, the history here ends at {}",
                durable.pos
            ),
        )
        .with_pos(durable.pos));
    }
    let heads = database.heads();
    let (tail, first, behind_bytes) = blocking({
        let database = Arc::clone(&database);
        move || Tail::open(&database, after)
    })
    .await??;
    let hello = Hello {
        id: durable.id,
        after: tail.sent,
        beat: Beat {
            head: durable.pos,
            time_us: now_us(),
            behind_bytes,
        },
        first,
        beat_ms: state.limits.heartbeat.as_millis() as u32,
    };
    let (frames, body) = mpsc::channel(FRAMES_WAITING_MAX);
    let live = Live {
        state: Arc::clone(state),
        database,
        heads,
        stop: state.stop.subscribe(),
        frames,
        sent: tail.sent,
        tail: Some(tail),
        _slot: slot,
    };
    tokio::spawn(live.run(hello));
    let mut response = Response::new(Body::new(ChunkBody::new(body)));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(TYPE_FOLLOW));
    Ok(response)
}

/// One open stream.
struct Live {
    state: Arc<State>,
    database: Arc<Database>,
    heads: watch::Receiver<Pos>,
    stop: watch::Receiver<bool>,
    frames: mpsc::Sender<io::Result<Bytes>>,
    /// After the last record that was read for this stream.
    sent: Pos,
    /// Where the next record is; given back while there is nothing to send.
    tail: Option<Tail>,
    _slot: OwnedSemaphorePermit,
}

/// Why a stream ends: with a word to the client, or without one because it has gone or reads nothing.
enum Stop {
    Say(EndReason, String),
    Gone,
}

impl Live {
    async fn run(mut self, hello: Hello) {
        let Err(stop) = self.serve(hello).await;
        if let Stop::Say(reason, text) = stop {
            tracing::debug!("{}: a follower's stream ends: {text}", self.database.name);
            // The last word may be lost: the client knows what a stream without one means.
            let _ = self.frames.try_send(Ok(Frame::End(reason, text).encode()));
        }
    }

    async fn serve(&mut self, hello: Hello) -> Result<std::convert::Infallible, Stop> {
        self.send(Frame::Hello(hello)).await?;
        let mut beat_at = Instant::now() + BUSY_BEAT;
        let mut beaten = None;
        let mut sent_at = Instant::now();
        loop {
            let head = *self.heads.borrow_and_update();
            if head.txid < self.sent.txid || (head.txid == self.sent.txid && head != self.sent) {
                return Err(history_changed());
            }
            if self.has_more(head) {
                let beat_due = Instant::now() >= beat_at;
                let (frame, behind_bytes) = self.read(head, beat_due).await?;
                self.send(Frame::Records(frame)).await?;
                sent_at = Instant::now();
                if beat_due && self.has_more(head) {
                    self.beat(head, behind_bytes).await?;
                    beat_at = Instant::now() + BUSY_BEAT;
                }
                continue;
            }
            if beaten != Some(head) {
                self.beat(head, 0).await?;
                beaten = Some(head);
            }
            tokio::select! {
                changed = self.heads.changed() => {
                    if changed.is_err() {
                        return Err(Stop::Say(EndReason::Stopping, "the database is no longer served".to_string()));
                    }
                }
                () = tokio::time::sleep(self.state.limits.heartbeat) => {
                    if sent_at.elapsed() >= QUIET {
                        self.tail = None;
                    }
                    self.beat(head, 0).await?;
                }
                () = self.frames.closed() => return Err(Stop::Gone),
                stop = stopped(&mut self.stop) => return Err(stop),
            }
        }
    }

    fn has_more(&self, head: Pos) -> bool {
        self.sent.txid < head.txid
            || self
                .tail
                .as_ref()
                .is_some_and(|tail| tail.partial.is_some())
    }

    /// The next piece, and how many bytes of records then remain, if that is to be counted.
    async fn read(&mut self, head: Pos, count_rest: bool) -> Result<(Bytes, u64), Stop> {
        let permit = tokio::select! {
            permit = Arc::clone(&self.state.readers).acquire_owned() => permit,
            () = self.frames.closed() => return Err(Stop::Gone),
            stop = stopped(&mut self.stop) => return Err(stop),
        };
        let (tail, database, sent) = (self.tail.take(), Arc::clone(&self.database), self.sent);
        let read = blocking(move || {
            let _permit = permit;
            let mut tail = match tail {
                Some(tail) => tail,
                None => Tail::reopen(&database, sent)?,
            };
            let piece = tail.piece(head)?;
            let behind = match count_rest {
                true => tail.reader.bytes_after(tail.sent.txid).unwrap_or(0),
                false => 0,
            };
            Ok::<_, Stop>((tail, piece, behind))
        });
        let (tail, piece, behind) = read
            .await
            .map_err(|e| Stop::Say(EndReason::Failed, e.error().to_string()))??;
        self.sent = tail.sent;
        self.tail = Some(tail);
        Ok((piece, behind))
    }

    async fn beat(&mut self, head: Pos, behind_bytes: u64) -> Result<(), Stop> {
        self.send(Frame::Beat(Beat {
            head,
            time_us: now_us(),
            behind_bytes,
        }))
        .await
    }

    async fn send(&mut self, frame: Frame) -> Result<(), Stop> {
        let idle_max = self.state.limits.idle_max;
        let send = tokio::time::timeout(idle_max, self.frames.send(Ok(frame.encode())));
        tokio::select! {
            sent = send => match sent {
                Ok(Ok(())) => Ok(()),
                _ => Err(Stop::Gone),
            },
            stop = stopped(&mut self.stop) => Err(stop),
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) -> Stop {
    // An error means that the server itself has gone.
    let _ = stop.wait_for(|stop| *stop).await;
    Stop::Say(
        EndReason::Stopping,
        "the server is being stopped".to_string(),
    )
}

fn history_changed() -> Stop {
    let text = "the history here is no longer the one that was being sent".to_string();
    Stop::Say(EndReason::HistoryChanged, text)
}

/// The log from one place on.
struct Tail {
    reader: Reader,
    /// A record that did not fit the last piece any more.
    waiting: Option<RecordEntry>,
    /// What is left of a record that does not fit one piece.
    partial: Option<Box<dyn Read + Send>>,
    /// After the last record that was begun.
    sent: Pos,
}

impl Tail {
    /// The log behind transaction `after`, the first transaction kept, and the bytes that follow.
    fn open(database: &Database, after: Txid) -> Result<(Tail, Txid, u64), Refusal> {
        let failed = |e: mycelite_journal::Error| Refusal::from_log(&e);
        let mut reader = Reader::open(database.storage()).map_err(failed)?;
        let first = reader.first_txid().map_err(failed)?.unwrap_or(Txid(1));
        let gone = || {
            Refusal::new(
                StatusCode::GONE,
                &format!(
                    "the history that is kept here begins at transaction {first}, you are at {after}"
                ),
            )
        };
        let sent = if after == Txid(0) {
            Pos::ZERO
        } else {
            let entry = reader.find(after).map_err(failed)?.ok_or_else(gone)?;
            entry.header.pos()
        };
        if after.next() < first {
            return Err(gone());
        }
        reader.seek(after).map_err(failed)?;
        let behind = reader.bytes_after(after).map_err(failed)?;
        let tail = Tail {
            reader,
            waiting: None,
            partial: None,
            sent,
        };
        Ok((tail, first, behind))
    }

    /// The same for a stream that has been at `sent` already.
    fn reopen(database: &Database, sent: Pos) -> Result<Tail, Stop> {
        match Tail::open(database, sent.txid) {
            Ok((tail, _, _)) if tail.sent == sent => Ok(tail),
            Ok(_) => Err(history_changed()),
            Err(refusal) => Err(Stop::Say(EndReason::Failed, refusal.error().to_string())),
        }
    }

    /// The next records up to `head`, compressed: whole ones as far as they fit, else a part of one.
    fn piece(&mut self, head: Pos) -> Result<Bytes, Stop> {
        let failed = |what: &dyn std::fmt::Display| {
            Stop::Say(EndReason::Failed, format!("cannot read the log: {what}"))
        };
        let mut raw = Vec::new();
        loop {
            if let Some(mut record) = self.partial.take() {
                let room = CHUNK_BYTES_MAX - raw.len();
                let mut part = record.as_mut().take(room as u64);
                if part.read_to_end(&mut raw).map_err(|e| failed(&e))? == room {
                    // Perhaps it is at its end; then nothing of it comes with the next piece.
                    self.partial = Some(record);
                    break;
                }
            }
            if self.sent.txid >= head.txid {
                break;
            }
            let next = match self.waiting.take() {
                Some(entry) => Some(entry),
                None => self.reader.next().map_err(|e| failed(&e))?,
            };
            let Some(entry) = next else {
                return Err(failed(&"it ends before its own end"));
            };
            let header = &entry.header;
            if (header.txid, header.pre_checksum) != (self.sent.txid.next(), self.sent.checksum) {
                return Err(history_changed());
            }
            if !raw.is_empty() && raw.len() as u64 + header.record_len() > CHUNK_BYTES_MAX as u64 {
                // Whole records where that is possible: they are durable there as soon as they arrive.
                self.waiting = Some(entry);
                break;
            }
            self.sent = header.pos();
            self.partial = Some(Box::new(entry.raw()));
        }
        let packed = zstd::bulk::compress(&raw, ZSTD_LEVEL).map_err(|e| failed(&e))?;
        Ok(Bytes::from(packed))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|e| {
        Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            &format!("the work ended unexpectedly: {e}"),
        )
    })
}
