//! The route of snapshots: the log's own snapshot files, handed out and taken in, in pieces that go on where a line was cut.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_RANGE, RANGE,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use mycelite_journal::{DatabaseId, Pos, Txid};
use tokio::sync::OwnedMutexGuard;

use super::append::{header, take_turn};
use super::bootstrap::{self, Incoming};
use super::database::{Database, Durable, LogSlot};
use super::download::{header_value, joined, slot};
use super::reply::Refusal;
use super::snapshot_making::Wanted;
use super::stream::{BodyEnd, BodyLimits, BodyReader, ChunkWriter, answer_pipe, body_pipe};
use super::{Limits, State};
use crate::proto::snapshot::{
    HEADER_SNAPSHOT, PIECE_BYTES_MAX, Piece, SnapshotReply, SnapshotTag, TYPE_SNAPSHOT,
};
use crate::proto::{DatabaseName, HEADER_AFTER, HEADER_DATABASE, HEADER_POS, pos_status};

/// Bytes read from a file at a time.
const COPY_BYTES: usize = 256 * 1024;

/// The snapshot of transaction `txid`, made if there is none, or the newest one there is; from where `Range` says.
pub(super) async fn send(
    state: &Arc<State>,
    database: Arc<Database>,
    txid: Option<Txid>,
    headers: &HeaderMap,
    durable: Durable,
) -> Result<Response, Refusal> {
    let asked = Wanted {
        state: Arc::clone(state),
        database,
        txid,
        head: durable.pos,
    };
    let (file, tag) = asked.opened().await?;
    let permit = slot(&state.downloads, state, "downloads").await?;
    let etag = format!("\"{tag}\"");
    let from = wanted(headers, &etag, tag.bytes)?;
    let (writer, body) = answer_pipe(state.limits.idle_max);
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        copy(file, from, writer);
    });
    let mut response = Response::new(Body::new(body));
    if from > 0 {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    let answer = response.headers_mut();
    if from > 0 {
        let piece = Piece {
            range: Some((from, tag.bytes)),
            all: tag.bytes,
        };
        answer.insert(CONTENT_RANGE, header_value(&piece.to_string())?);
    }
    answer.insert(CONTENT_TYPE, HeaderValue::from_static(TYPE_SNAPSHOT));
    answer.insert(CONTENT_LENGTH, HeaderValue::from(tag.bytes - from));
    answer.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    answer.insert(ETAG, header_value(&etag)?);
    answer.insert(HEADER_SNAPSHOT, header_value(&tag.to_string())?);
    answer.insert(HEADER_POS, header_value(&tag.pos.to_string())?);
    answer.insert(HEADER_DATABASE, header_value(&durable.id.to_string())?);
    Ok(response)
}

/// The first byte to send: only a client that names this very file gets a part of it.
pub(super) fn wanted(headers: &HeaderMap, etag: &str, bytes: u64) -> Result<u64, Refusal> {
    let text = |name| {
        headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
    };
    let Some(range) = text(RANGE) else {
        return Ok(0);
    };
    if text(IF_RANGE).is_some_and(|known| known != etag) {
        return Ok(0);
    }
    let from = range
        .strip_prefix("bytes=")
        .and_then(|range| range.strip_suffix('-'))
        .and_then(|from| from.parse::<u64>().ok());
    match from {
        Some(from) if from < bytes => Ok(from),
        _ => Err(Refusal::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            &format!("write Range: bytes=FIRST-, with FIRST below {bytes}"),
        )),
    }
}

fn copy(mut file: File, from: u64, mut writer: ChunkWriter) {
    let mut copy = |writer: &mut ChunkWriter| {
        file.seek(SeekFrom::Start(from))?;
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let count = file.read(&mut buffer)?;
            match buffer.get(..count) {
                Some(bytes @ [_, ..]) => writer.write_all(bytes)?,
                _ => return writer.flush(),
            }
        }
    };
    if let Err(e) = copy(&mut writer) {
        writer.fail(e);
    }
}

/// What the headers of a piece say.
#[derive(Clone, Copy, Debug)]
struct Request {
    id: DatabaseId,
    after: Pos,
    tag: SnapshotTag,
    piece: Piece,
}

/// Takes one piece of a snapshot in, or says how much of it is here; the last one makes it the beginning of the log.
pub(super) async fn take(
    state: &Arc<State>,
    name: &DatabaseName,
    headers: &HeaderMap,
    body: &mut Body,
) -> Result<Response, Refusal> {
    let request = Request {
        id: header(headers, HEADER_DATABASE)?,
        after: header(headers, HEADER_AFTER)?,
        tag: header(headers, HEADER_SNAPSHOT)?,
        piece: header(headers, CONTENT_RANGE.as_str())?,
    };
    let (from, to) = request.piece.range.unwrap_or((0, 0));
    if request.piece.all != request.tag.bytes
        || request.tag.bytes > state.limits.body_bytes_max
        || to - from > PIECE_BYTES_MAX as u64
    {
        return Err(Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            &format!(
                "a piece has {PIECE_BYTES_MAX} bytes at most, a snapshot {} (body_bytes_max), and its length is that in its tag",
                state.limits.body_bytes_max
            ),
        ));
    }
    let (database, turn) = take_turn(state, name).await?;
    let (pump, reader) = body_pipe();
    let job = tokio::task::spawn_blocking({
        let (state, database) = (Arc::clone(state), Arc::clone(&database));
        move || store(&state, &database, turn, request, reader)
    });
    let limits = BodyLimits {
        bytes_max: PIECE_BYTES_MAX as u64,
        idle_max: state.limits.idle_max,
        bytes_per_second_min: state.limits.body_bytes_per_second_min,
    };
    tokio::pin!(job);
    let stored = tokio::select! {
        stored = &mut job => stored,
        () = pump.run(body, limits) => job.await,
    };
    let (status, reply) = joined(stored)??;
    Ok((status, Json(reply)).into_response())
}

fn store(
    state: &State,
    database: &Arc<Database>,
    mut slot: OwnedMutexGuard<LogSlot>,
    request: Request,
    mut body: BodyReader,
) -> Result<(StatusCode, SnapshotReply), Refusal> {
    let mut created = false;
    let stored = store_locked(
        &state.limits,
        database,
        &mut slot,
        request,
        &mut body,
        &mut created,
    );
    // A name under which nothing came is not kept.
    let begun = matches!(&stored, Ok((_, reply)) if reply.pos.is_some());
    if begun {
        state.appliers.wake(database);
    }
    if created && !begun && Incoming::find(&database.log_dir).is_none() {
        slot.undo_creation(database);
        state.registry.remove(database);
    }
    stored
}

fn store_locked(
    limits: &Limits,
    database: &Database,
    slot: &mut LogSlot,
    request: Request,
    body: &mut BodyReader,
    created: &mut bool,
) -> Result<(StatusCode, SnapshotReply), Refusal> {
    let io = |e: io::Error| Refusal::from_io("cannot store the snapshot", &e);
    match std::fs::create_dir(&database.log_dir) {
        Ok(()) => *created = true,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(io(e)),
    }
    let _lock = database.lock_log(limits.append_wait)?;
    *created |= slot.open_or_create(database, request.id)?;
    let log = slot.open(database)?;
    log.refresh().map_err(|e| Refusal::from_log(&e))?;
    let head = log.head().pos;
    bootstrap::check(head, request.after, request.tag.pos)?;
    let received = |received| SnapshotReply {
        received,
        pos: None,
    };
    let Some((from, to)) = request.piece.range else {
        let known = Incoming::find(&database.log_dir) == Some(request.tag);
        let there = match known {
            true => Incoming::open(&database.log_dir, request.tag)
                .map_err(io)?
                .received(),
            false => 0,
        };
        return Ok((StatusCode::ACCEPTED, received(there)));
    };
    let piece = read_piece(body, to - from)?;
    let mut incoming = Incoming::open(&database.log_dir, request.tag).map_err(io)?;
    if incoming.received() != from {
        return Ok((
            StatusCode::RANGE_NOT_SATISFIABLE,
            received(incoming.received()),
        ));
    }
    incoming.append(&piece).map_err(io)?;
    if !incoming.is_complete() {
        return Ok((StatusCode::ACCEPTED, received(incoming.received())));
    }
    let pos = bootstrap::install(
        limits.append_wait,
        database,
        slot,
        request.id,
        request.after,
        incoming,
    )?;
    let reply = SnapshotReply {
        received: request.tag.bytes,
        pos: Some(pos_status(pos)),
    };
    Ok((StatusCode::OK, reply))
}

/// All of a piece, which has so many bytes.
fn read_piece(body: &mut BodyReader, length: u64) -> Result<Vec<u8>, Refusal> {
    let mut piece = Vec::with_capacity(length as usize);
    let read = body.by_ref().take(length + 1).read_to_end(&mut piece);
    if body.end() == BodyEnd::TooSlow {
        return Err(Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            "the piece came too slowly",
        ));
    }
    if read.is_err() || piece.len() as u64 != length {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "the piece is not as long as Content-Range says",
        ));
    }
    Ok(piece)
}
