//! Streams that stay open: whoever follows a database gets each record as soon as it is durable here.
//!
//! A follower that has everything costs a task that waits for the log's end to move, and a timer; no thread, no file and
//! no compressor. Records are read by a few blocking jobs that all streams share, one piece at a time; those that have
//! everything get a new record from one reading.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use bytes::BytesMut;
use mycelite_journal::{Pos, Txid};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use super::State;
use super::database::{Database, Durable, now_us};
use super::effort::{self, Effort};
use super::reply::Refusal;
use super::stream::ChunkBody;
use super::tail::{Stop, Tail};
use crate::proto::follow::{Beat, EndReason, Frame, Hello, TYPE_FOLLOW};

/// Frames that wait for a client.
const FRAMES_WAITING_MAX: usize = 2;
/// A database that brought its followers nothing for so long costs no open file any more.
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
    // When all of them come back at once, they take turns.
    let permit = Arc::clone(&state.readers).acquire_owned();
    let permit = tokio::time::timeout(state.limits.append_wait, permit)
        .await
        .map_err(|_| Refusal::busy("too many followers begin at once (try again)"))?;
    let (tail, first, behind_bytes) = blocking({
        let database = Arc::clone(&database);
        move || {
            let _permit = permit;
            Tail::open(&database, after)
        }
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
        effort: Effort::new(),
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
    /// Where the next record is, while this stream is behind those that are sent together.
    tail: Option<Tail>,
    effort: Effort,
    _slot: OwnedSemaphorePermit,
}

impl Live {
    async fn run(mut self, hello: Hello) {
        let Err(stop) = self.serve(hello).await;
        if let Stop::Say(reason, text) = stop {
            tracing::debug!("{}: a follower's stream ends: {text}", self.database.name);
            // The last word may be lost: the client knows what a stream without one means.
            let _ = self.frames.try_send(Ok(Frame::End(reason, text).encode()));
        }
        drop(self.heads);
        if !self.database.is_followed() {
            self.database.recent.lock().await.clear();
        }
    }

    async fn serve(&mut self, hello: Hello) -> Result<std::convert::Infallible, Stop> {
        self.send([Frame::Hello(hello)]).await?;
        let mut beat_at = Instant::now() + BUSY_BEAT;
        let mut beaten = None;
        let mut sent_at = Instant::now();
        loop {
            let head = *self.heads.borrow_and_update();
            if self.database.is_removed()
                || head.txid < self.sent.txid
                || (head.txid == self.sent.txid && head != self.sent)
            {
                return Err(Stop::history_changed());
            }
            if self.has_more(head) {
                let beat_due = Instant::now() >= beat_at;
                let began = Instant::now();
                let (piece, behind_bytes) = self.read(beat_due).await?;
                sent_at = Instant::now();
                let head = *self.heads.borrow_and_update();
                // With the last piece comes the word that it is the last; else 0 would say that.
                let beat = match self.has_more(head) {
                    // Cut back just now: the next round ends it.
                    false if head.txid < self.sent.txid => None,
                    false => Some(self.beat_at(head, 0)),
                    true if beat_due => Some(self.beat_at(head, behind_bytes.max(1))),
                    true => None,
                };
                if beat.is_some() {
                    beat_at = Instant::now() + BUSY_BEAT;
                    beaten = Some(head).filter(|_| !self.has_more(head));
                }
                self.send(Some(Frame::Records(piece)).into_iter().chain(beat))
                    .await?;
                if let Some(tail) = &self.tail {
                    let (reading, waiting) = (sent_at - began, sent_at.elapsed());
                    self.effort.sent(tail.piece_bytes, reading, waiting);
                }
                continue;
            }
            self.join().await;
            if beaten != Some(head) {
                self.send([self.beat_at(head, 0)]).await?;
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
                        self.database.recent.lock().await.clear();
                    }
                    self.send([self.beat_at(head, 0)]).await?;
                }
                () = self.frames.closed() => return Err(Stop::Gone),
                stop = stopped(&mut self.stop) => return Err(stop),
            }
        }
    }

    fn has_more(&self, head: Pos) -> bool {
        self.sent.txid < head.txid || self.tail.as_ref().is_some_and(Tail::is_within_a_record)
    }

    /// The next piece, and how many bytes of records then remain, if that is to be counted.
    async fn read(&mut self, count_rest: bool) -> Result<(Bytes, u64), Stop> {
        if self.tail.is_some() {
            return self.read_alone(count_rest, self.effort.level()).await;
        }
        let database = Arc::clone(&self.database);
        let mut recent = database.recent.lock().await;
        recent.of_history(database.history_version());
        if let Some((to, piece)) = recent.find(self.sent) {
            self.sent = to;
            return Ok((piece, 0));
        }
        self.tail = recent.take(self.sent);
        if self.tail.is_none() {
            drop(recent);
            return self.read_alone(count_rest, effort::LEVEL).await;
        }
        // The others wait meanwhile, and then find it.
        let from = self.sent;
        let read = self.read_alone(count_rest, effort::LEVEL).await?;
        if let Some(tail) = self.tail.take() {
            self.tail = recent.give(from, tail, &read.0);
        }
        Ok(read)
    }

    async fn read_alone(&mut self, count_rest: bool, level: i32) -> Result<(Bytes, u64), Stop> {
        let permit = tokio::select! {
            permit = Arc::clone(&self.state.readers).acquire_owned() => permit,
            () = self.frames.closed() => return Err(Stop::Gone),
            stop = stopped(&mut self.stop) => return Err(stop),
        };
        let (tail, database, sent) = (self.tail.take(), Arc::clone(&self.database), self.sent);
        let read = blocking(move || {
            let _permit = permit;
            let (mut tail, piece) = Tail::read(&database, tail, sent, level)?;
            let behind = if count_rest { tail.rest() } else { 0 };
            Ok::<_, Stop>((tail, piece, behind))
        });
        let (tail, piece, behind) = read
            .await
            .map_err(|e| Stop::Say(EndReason::Failed, e.error().to_string()))??;
        self.sent = tail.sent;
        self.tail = Some(tail);
        Ok((piece, behind))
    }

    /// Nothing is missing: from here on this stream goes with the others.
    async fn join(&mut self) {
        if let Some(tail) = self.tail.take() {
            let version = self.database.history_version();
            let mut recent = self.database.recent.lock().await;
            recent.of_history(version);
            recent.join(tail);
        }
    }

    fn beat_at(&self, head: Pos, behind_bytes: u64) -> Frame {
        Frame::Beat(Beat {
            head,
            time_us: now_us(),
            behind_bytes,
        })
    }

    /// Sends frames that belong together.
    async fn send(&mut self, frames: impl IntoIterator<Item = Frame>) -> Result<(), Stop> {
        let mut bytes = BytesMut::new();
        for frame in frames {
            frame.encode_to(&mut bytes);
        }
        let bytes = bytes.freeze();
        let idle_max = self.state.limits.idle_max;
        let send = tokio::time::timeout(idle_max, self.frames.send(Ok(bytes)));
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
