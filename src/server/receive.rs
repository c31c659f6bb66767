//! Storing what is pulled: pieces of a stream become records in the log, durable in groups as they come.

use std::io::{self, Read};
use std::sync::Arc;

use axum::body::Bytes;
use axum::http::StatusCode;
use mycelite_journal::{DatabaseId, Pos, RecordHeader};
use tokio::sync::{OwnedMutexGuard, mpsc};

use super::database::{Database, LogSlot, count};
use super::reply::Refusal;
use super::{Limits, State, fork};
use crate::error::{Error, ErrorKind};
use crate::follow::Failure;
use crate::proto::follow::CHUNK_BYTES_MAX;

/// Pieces that wait to be stored.
const PIECES_WAITING_MAX: usize = 4;
/// Under a constant stream, records become durable at least when there are so many bytes of them.
const UNSYNCED_BYTES_MAX: u64 = 8 << 20;

/// Length of a record's header as it travels.
const RECORD_HEADER_BYTES: usize = 128;

/// The way into a [`run`]ning job.
pub(super) type Pieces = mpsc::Sender<Bytes>;

/// A channel for the pieces of one job.
pub(super) fn pieces() -> (Pieces, mpsc::Receiver<Bytes>) {
    mpsc::channel(PIECES_WAITING_MAX)
}

/// What the records belong to, and follow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The database.
    pub id: DatabaseId,
    /// The last record here, or where a newer timeline begins.
    pub after: Pos,
    /// What is here behind that place is to make room for a newer timeline.
    pub forks: bool,
}

/// Stores the records in `pieces` until that is closed; whole records stay, whatever comes after them. The position
/// that is durable at the end, if the log could be opened. Blocking; gives the turn back at its end.
pub(super) fn run(
    state: &Arc<State>,
    database: &Arc<Database>,
    mut slot: OwnedMutexGuard<LogSlot>,
    place: Place,
    pieces: mpsc::Receiver<Bytes>,
) -> Result<Pos, Failure> {
    let outcome = store(state, database, &mut slot, place, pieces);
    if let Err(failure) = &outcome {
        tracing::debug!("{}: {}", database.name, failure.error);
        // What the system holds of the log may be unknown: read it anew before the next use.
        slot.close();
    }
    outcome
}

fn store(
    state: &Arc<State>,
    database: &Arc<Database>,
    slot: &mut LogSlot,
    place: Place,
    pieces: mpsc::Receiver<Bytes>,
) -> Result<Pos, Failure> {
    let local = |refusal: Refusal| Failure::transient(local_error(&refusal, database));
    match std::fs::create_dir(&database.log_dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Failure::transient(Error::io(
                "cannot create the log directory",
                &database.log_dir,
                &e,
            )));
        }
        _ => {}
    }
    database.keep().map_err(Failure::refused)?;
    let _lock = database.lock_log(state.limits.append_wait).map_err(local)?;
    slot.open_or_create(database, place.id)
        .map_err(|refusal| match refusal.status() {
            StatusCode::CONFLICT => Failure::diverged(
                Error::new(ErrorKind::Diverged, refusal.error()).at(database.db_path.display()),
            ),
            _ => local(refusal),
        })?;
    let log = slot.open(database).map_err(local)?;
    log.refresh().map_err(|e| local(Refusal::from_log(&e)))?;
    let mut stream = Stream::new(pieces);
    let here = log.head().pos;
    if here != place.after && place.forks {
        let entered = fork::enter(&state.limits, database, slot, place.after, &mut stream);
        // Also after a failure: the file may have to go back.
        state.appliers.wake(database);
        entered.map_err(local)?;
    } else if here != place.after {
        return Err(Failure::transient(
            Error::new(
                ErrorKind::Busy,
                format_args!("the log here has moved to {here}"),
            )
            .at(database.log_dir.display())
            .hint("does something else write to this replica?"),
        ));
    }
    let stored = append(state, database, slot, &mut stream);
    // Also after a failure: what came whole is not asked for again.
    let durable = sync(state, database, slot)?;
    stored.map(|()| durable)
}

fn append(
    state: &Arc<State>,
    database: &Arc<Database>,
    slot: &mut LogSlot,
    stream: &mut Stream,
) -> Result<(), Failure> {
    let limits = state.limits.of_records();
    let mut unsynced = 0;
    loop {
        if unsynced > 0 && (unsynced >= UNSYNCED_BYTES_MAX || !stream.has_more()) {
            sync(state, database, slot)?;
            unsynced = 0;
        }
        let log = slot
            .open(database)
            .map_err(|refusal| Failure::transient(local_error(&refusal, database)))?;
        match log.hold_raw(stream, &limits) {
            Ok(None) => return Ok(()),
            Ok(Some(header)) => {
                unsynced += header.record_len();
                count(&database.appended, 1);
                if let Some(pull) = database.pull.get() {
                    pull.received(&header);
                }
            }
            // Whoever closed the channel knows why; the rest of the record is asked for again.
            Err(mycelite_journal::Error::Malformed { .. }) if stream.cut => return Ok(()),
            Err(e) => return Err(judge(&e, stream, database)),
        }
    }
}

/// Makes everything published durable, and passes it on: to the file, and to those who follow this server.
fn sync(state: &Arc<State>, database: &Arc<Database>, slot: &mut LogSlot) -> Result<Pos, Failure> {
    let durable = slot
        .sync(database)
        .map_err(|refusal| Failure::transient(local_error(&refusal, database)))?;
    state.appliers.wake(database);
    Ok(durable.pos)
}

fn local_error(refusal: &Refusal, database: &Database) -> Error {
    Error::new(ErrorKind::Io, refusal.error()).at(database.log_dir.display())
}

/// Says whose fault it was: the line's, the server's, or this machine's.
fn judge(e: &mycelite_journal::Error, stream: &Stream, database: &Database) -> Failure {
    use mycelite_journal::Error as Log;
    let url = database
        .pull
        .get()
        .map_or(String::new(), |pull| pull.url().to_string());
    if let Some(what) = &stream.garbled {
        return Failure::transient(
            Error::new(
                ErrorKind::Network,
                format_args!("the records cannot be read: {what}"),
            )
            .at(url),
        );
    }
    match e {
        Log::Malformed { .. } | Log::Mismatch { .. } => Failure::transient(
            Error::new(
                ErrorKind::Network,
                format_args!("the server sent a bad record: {e}"),
            )
            .at(url),
        ),
        Log::Limit { .. } => Failure::refused(
            Error::new(ErrorKind::Unsupported, e)
                .at(url)
                .hint("raise record_max or database_max here"),
        ),
        _ => Failure::transient(Error::new(ErrorKind::Io, e).at(database.log_dir.display())),
    }
}

/// The pieces as one stream of records. Must be read on a blocking thread.
struct Stream {
    pieces: mpsc::Receiver<Bytes>,
    decompressor: Option<zstd::bulk::Decompressor<'static>>,
    /// The records of the last piece; its memory is the next one's.
    current: io::Cursor<Vec<u8>>,
    /// The end was met.
    cut: bool,
    garbled: Option<String>,
    /// What was looked at ahead of its time.
    peeked: io::Cursor<Vec<u8>>,
}

impl Stream {
    fn new(pieces: mpsc::Receiver<Bytes>) -> Stream {
        Stream {
            pieces,
            decompressor: None,
            current: io::Cursor::default(),
            cut: false,
            garbled: None,
            peeked: io::Cursor::default(),
        }
    }

    fn is_drained(&self) -> bool {
        self.current.position() >= self.current.get_ref().len() as u64
    }

    /// Whether there is something to read without waiting.
    fn has_more(&mut self) -> bool {
        while self.is_drained() && self.garbled.is_none() {
            match self.pieces.try_recv() {
                Ok(piece) => self.unpack(&piece),
                Err(_) => return false,
            }
        }
        true
    }

    fn unpack(&mut self, piece: &Bytes) {
        if let Err(e) = self.try_unpack(piece) {
            self.current = io::Cursor::default();
            self.garbled = Some(e.to_string());
        }
    }

    fn try_unpack(&mut self, piece: &Bytes) -> io::Result<()> {
        let mut raw = std::mem::take(&mut self.current).into_inner();
        raw.clear();
        raw.reserve_exact(CHUNK_BYTES_MAX);
        let decompressor = match &mut self.decompressor {
            Some(decompressor) => decompressor,
            none => none.insert(zstd::bulk::Decompressor::new()?),
        };
        decompressor.decompress_to_buffer(&piece[..], &mut raw)?;
        self.current = io::Cursor::new(raw);
        Ok(())
    }
}

impl fork::Records for Stream {
    fn peek_header(&mut self) -> Result<Option<RecordHeader>, Refusal> {
        let bad = |what: &dyn std::fmt::Display| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                &format!("the records cannot be read: {what}"),
            )
        };
        let mut bytes = Vec::with_capacity(RECORD_HEADER_BYTES);
        self.by_ref()
            .take(RECORD_HEADER_BYTES as u64)
            .read_to_end(&mut bytes)
            .map_err(|e| bad(&e))?;
        let header = match bytes.is_empty() {
            true => None,
            false => Some(RecordHeader::decode(&bytes).map_err(|e| bad(&e))?),
        };
        self.peeked = io::Cursor::new(bytes);
        Ok(header)
    }

    fn judge(&self, e: &mycelite_journal::Error, _: &Limits) -> Refusal {
        match (self.cut, &self.garbled) {
            (true, _) => Refusal::new(
                StatusCode::BAD_REQUEST,
                "the stream was cut within the first record of a newer timeline",
            ),
            (_, Some(what)) => Refusal::new(StatusCode::BAD_REQUEST, what),
            _ => Refusal::from_log(e),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let ahead = self.peeked.read(out)?;
        if ahead > 0 {
            return Ok(ahead);
        }
        while self.is_drained() {
            if let Some(what) = &self.garbled {
                return Err(io::Error::new(io::ErrorKind::InvalidData, what.clone()));
            }
            match self.pieces.blocking_recv() {
                Some(piece) => self.unpack(&piece),
                None => {
                    self.cut = true;
                    return Ok(0);
                }
            }
        }
        self.current.read(out)
    }
}
