//! Appending records that a shipper sends: compare, check, store, make durable, answer.

use std::io::{BufReader, Read};
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use mycelite_journal::{DatabaseId, Log, Pos, RecordHeader};
use tokio::sync::OwnedMutexGuard;

use super::database::{Database, LogSlot, count};
use super::reply::{Refusal, is_disk_full};
use super::stream::{BodyEnd, BodyLimits, BodyReader, body_pipe, drain};
use super::{Limits, State, fork};
use crate::promote;
use crate::proto::{DatabaseName, HEADER_AFTER, HEADER_DATABASE, ZSTD_WINDOW_LOG_MAX, excerpt};

/// How often a database may vanish between look-up and use before the request is turned away.
const LOOKUPS_MAX: u32 = 3;

/// Length of a record's header as it travels.
const RECORD_HEADER_BYTES: usize = 128;

/// What the headers of an append say.
#[derive(Clone, Copy, Debug)]
struct Request {
    id: DatabaseId,
    after: Pos,
}

/// Serves one append; the answer is the durable position.
pub(super) async fn append(
    state: &Arc<State>,
    name: &DatabaseName,
    headers: &HeaderMap,
    mut body: Body,
) -> Result<Pos, Refusal> {
    let result = receive(state, name, headers, &mut body).await;
    if result.is_err() {
        drain(&mut body).await;
    }
    result
}

async fn receive(
    state: &Arc<State>,
    name: &DatabaseName,
    headers: &HeaderMap,
    body: &mut Body,
) -> Result<Pos, Refusal> {
    let request = Request {
        id: header(headers, HEADER_DATABASE)?,
        after: header(headers, HEADER_AFTER)?,
    };
    if content_length(headers).is_some_and(|bytes| bytes > state.limits.body_bytes_max) {
        return Err(too_long(&state.limits));
    }
    let (database, turn) = take_turn(state, name).await?;
    let (pump, reader) = body_pipe();
    let job = tokio::task::spawn_blocking({
        let state = Arc::clone(state);
        let database = Arc::clone(&database);
        move || store(&state, &database, turn, request, reader)
    });
    let limits = BodyLimits {
        bytes_max: state.limits.body_bytes_max,
        idle_max: state.limits.idle_max,
        bytes_per_second_min: state.limits.body_bytes_per_second_min,
    };
    tokio::pin!(job);
    let stored = tokio::select! {
        stored = &mut job => stored,
        () = pump.run(body, limits) => job.await,
    };
    let outcome = stored.map_err(|e| {
        Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            &format!("the append ended unexpectedly: {e}"),
        )
    })?;
    outcome.result
}

/// The database of that name, made if there is none, and the turn to use its log.
pub(super) async fn take_turn(
    state: &Arc<State>,
    name: &DatabaseName,
) -> Result<(Arc<Database>, OwnedMutexGuard<LogSlot>), Refusal> {
    for _ in 0..LOOKUPS_MAX {
        let database = state.registry.get_or_create(name)?;
        let turn = database.turn(state.limits.append_wait).await?;
        if !database.is_removed() {
            return Ok((database, turn));
        }
    }
    Err(Refusal::busy(
        "this database is being created and removed at the same time (try again)",
    ))
}

/// A header that must be there, once, and well-formed.
pub(super) fn header<T: std::str::FromStr>(headers: &HeaderMap, name: &str) -> Result<T, Refusal>
where
    T::Err: std::fmt::Display,
{
    let bad = |what: &str| Refusal::new(StatusCode::BAD_REQUEST, &format!("header {name}: {what}"));
    let mut values = headers.get_all(name).iter();
    let value = values.next().ok_or_else(|| bad("is missing"))?;
    if values.next().is_some() {
        return Err(bad("is there twice"));
    }
    let text = value.to_str().map_err(|_| bad("is not text"))?;
    text.parse()
        .map_err(|e: T::Err| bad(&format!("{e}: {}", excerpt(text, 80))))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(axum::http::header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

fn too_long(limits: &Limits) -> Refusal {
    Refusal::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        &format!(
            "the body is longer than {} bytes (body_bytes_max)",
            limits.body_bytes_max
        ),
    )
}

fn too_slow() -> Refusal {
    Refusal::new(
        StatusCode::REQUEST_TIMEOUT,
        "the request body came too slowly",
    )
}

/// What became of an append.
struct Outcome {
    result: Result<Pos, Refusal>,
}

/// The blocking part: runs under the database's turn, and gives it back at the end.
fn store(
    state: &State,
    database: &Arc<Database>,
    mut slot: OwnedMutexGuard<LogSlot>,
    request: Request,
    body: BodyReader,
) -> Outcome {
    let mut appended = 0;
    let mut created = false;
    let history = database.history_version();
    let result = store_locked(
        &state.limits,
        database,
        &mut slot,
        request,
        body,
        &mut appended,
        &mut created,
    );
    // A name that has no records is not kept: a stray request must not reserve it, or fill the registry.
    let empty = !database.log_dir.exists() || (created && appended == 0);
    if empty {
        slot.undo_creation(database);
        state.registry.remove(database);
    }
    count(&database.appended, appended);
    // Not left to the one who waits for the answer: a client that dies with its request takes him along.
    if appended > 0 || database.history_version() != history {
        state.appliers.wake(database);
    }
    Outcome { result }
}

fn store_locked(
    limits: &Limits,
    database: &Database,
    slot: &mut LogSlot,
    request: Request,
    body: BodyReader,
    appended: &mut u64,
    created: &mut bool,
) -> Result<Pos, Refusal> {
    if promote::is_promoted(&database.log_dir) {
        return Err(Refusal::new(
            StatusCode::CONFLICT,
            &format!(
                "{} was promoted here: it is a primary now, and this one is not any more (mycelite follow --rejoin makes it a replica)",
                database.name
            ),
        ));
    }
    match std::fs::create_dir(&database.log_dir) {
        Ok(()) => *created = true,
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(Refusal::from_io("cannot create the log directory", &e)),
    }
    let _lock = database.lock_log(limits.append_wait)?;
    *created |= slot.open_or_create(database, request.id)?;
    let log = slot.open(database)?;
    if let Err(e) = log.refresh() {
        let refusal = Refusal::from_log(&e);
        database.set_fault(refusal.error());
        slot.close();
        return Err(refusal);
    }
    let head = log.head().pos;
    let mut stream = Decoded::new(body, limits.decoded_bytes_max)?;
    if head != request.after {
        if let Err(refusal) = fork::enter(limits, database, slot, request.after, &mut stream) {
            if refusal.status().is_server_error() {
                database.set_fault(refusal.error());
                slot.close();
            }
            // Perhaps an earlier request was cut between storing and syncing.
            return Err(refusal.with_pos(slot.sync(database)?.pos));
        }
        *appended += 1;
    }
    let log = slot.open(database)?;
    let stopped = append_stream(log, &mut stream, limits, appended).err();
    let durable = slot.sync(database)?;
    match stopped {
        None => {
            database.set_fault("");
            Ok(durable.pos)
        }
        Some(refusal) => {
            if refusal.status().is_server_error() {
                database.set_fault(refusal.error());
                slot.close();
            }
            Err(refusal.with_pos(durable.pos))
        }
    }
}

/// Appends record after record until the stream ends; those before a fault stay.
fn append_stream(
    log: &mut Log,
    stream: &mut Decoded,
    limits: &Limits,
    appended: &mut u64,
) -> Result<(), Refusal> {
    let raw_limits = limits.of_records();
    loop {
        match log.hold_raw(stream, &raw_limits) {
            Ok(Some(_)) => *appended += 1,
            Ok(None) => return Ok(()),
            Err(e) => return Err(judge(stream, &e, limits)),
        }
    }
}

/// Says whose fault it was: the sender's, the line's, or ours.
fn judge(stream: &Decoded, e: &mycelite_journal::Error, limits: &Limits) -> Refusal {
    use mycelite_journal::Error;
    if stream.over {
        return Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            &format!(
                "the records of one request are longer than {} bytes (decoded_bytes_max)",
                limits.decoded_bytes_max
            ),
        );
    }
    match stream.body_end() {
        Some(BodyEnd::TooSlow) => {
            return too_slow();
        }
        Some(BodyEnd::TooLong) => return too_long(limits),
        _ => {}
    }
    match e {
        Error::Limit { .. } => Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, &e.to_string()),
        Error::Malformed { .. } | Error::Mismatch { .. } => {
            Refusal::new(StatusCode::BAD_REQUEST, &e.to_string())
        }
        Error::Io { source, .. } if stream.failed && !is_disk_full(source) => Refusal::new(
            StatusCode::BAD_REQUEST,
            &format!("the records cannot be read: {source}"),
        ),
        _ => Refusal::from_log(e),
    }
}

/// The records in a request body: decompressed, and cut off at a limit, so that a small body cannot become a huge one.
struct Decoded {
    /// What was looked at ahead of its time, and how much of that was read since.
    peeked: Vec<u8>,
    peeked_read: usize,
    decoder: zstd::stream::read::Decoder<'static, BufReader<BodyReader>>,
    left: u64,
    /// The limit was hit.
    over: bool,
    /// Reading the stream failed, as opposed to writing the log.
    failed: bool,
}

impl Decoded {
    fn new(body: BodyReader, bytes_max: u64) -> Result<Decoded, Refusal> {
        let failed = |e: &std::io::Error| Refusal::from_io("cannot start the decompressor", e);
        let mut decoder = zstd::stream::read::Decoder::with_buffer(BufReader::new(body))
            .map_err(|e| failed(&e))?;
        decoder
            .window_log_max(ZSTD_WINDOW_LOG_MAX)
            .map_err(|e| failed(&e))?;
        Ok(Decoded {
            peeked: Vec::new(),
            peeked_read: 0,
            decoder,
            left: bytes_max,
            over: false,
            failed: false,
        })
    }

    /// How the body ended, when it did not end well.
    fn body_end(&self) -> Option<BodyEnd> {
        self.failed.then(|| self.decoder.get_ref().get_ref().end())
    }
}

impl fork::Records for Decoded {
    fn peek_header(&mut self) -> Result<Option<RecordHeader>, Refusal> {
        let mut bytes = Vec::with_capacity(RECORD_HEADER_BYTES);
        let read = self
            .by_ref()
            .take(RECORD_HEADER_BYTES as u64)
            .read_to_end(&mut bytes);
        if let Err(e) = read {
            if self.body_end() == Some(BodyEnd::TooSlow) {
                return Err(too_slow());
            }
            return Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                &format!("the records cannot be read: {e}"),
            ));
        }
        let header =
            match bytes.is_empty() {
                true => None,
                false => Some(RecordHeader::decode(&bytes).map_err(|e| {
                    Refusal::new(StatusCode::BAD_REQUEST, &format!("bad record: {e}"))
                })?),
            };
        (self.peeked, self.peeked_read) = (bytes, 0);
        Ok(header)
    }

    fn judge(&self, e: &mycelite_journal::Error, limits: &Limits) -> Refusal {
        judge(self, e, limits)
    }
}

impl Read for Decoded {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let ahead = self.peeked.get(self.peeked_read..).unwrap_or_default();
        if !ahead.is_empty() {
            let count = ahead.len().min(buf.len());
            for (to, from) in buf.iter_mut().zip(ahead) {
                *to = *from;
            }
            self.peeked_read += count;
            return Ok(count);
        }
        match self.decoder.read(buf) {
            Ok(count) if count as u64 <= self.left => {
                self.left -= count as u64;
                Ok(count)
            }
            Ok(_) => {
                self.over = true;
                Err(std::io::Error::new(
                    std::io::ErrorKind::FileTooLarge,
                    "the stream is longer than allowed",
                ))
            }
            Err(e) => {
                self.failed = true;
                Err(e)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use mycelite_journal::{Draft, Fault, FaultStorage, PageSize, Reader, Storage};

    use super::*;

    /// The records of a small log, as they travel.
    fn source(disk: &Arc<FaultStorage>) -> Vec<Vec<u8>> {
        let mut log = Log::create(disk.clone(), DatabaseId([7; 16]), 0).unwrap();
        let (mut old, mut records) = (None, Vec::new());
        for fill in 1..=6_u8 {
            let page = vec![fill; 512];
            let mut record = log.begin(Draft::new(PageSize::MIN, 1, 1)).unwrap();
            record.patch(1, old.as_deref(), &page).unwrap();
            record.commit().unwrap();
            old = Some(page);
        }
        let mut reader = Reader::open(disk.clone()).unwrap();
        while let Some(entry) = reader.next().unwrap() {
            let mut bytes = Vec::new();
            entry.raw().read_to_end(&mut bytes).unwrap();
            records.push(bytes);
        }
        records
    }

    fn send(log: &mut Log, raw: &[u8]) -> Result<u64, Refusal> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .unwrap();
        let (pump, reader) = body_pipe();
        let mut body = Body::from(zstd::encode_all(raw, 1).unwrap());
        let limits = Limits::default();
        let body_limits = BodyLimits {
            bytes_max: 1 << 20,
            idle_max: limits.idle_max,
            bytes_per_second_min: 1,
        };
        runtime.spawn(async move { pump.run(&mut body, body_limits).await });
        let mut appended = 0;
        let mut stream = Decoded::new(reader, limits.decoded_bytes_max)?;
        append_stream(log, &mut stream, &limits, &mut appended)?;
        Ok(appended)
    }

    #[test]
    fn a_full_disk_is_said_to_be_one_and_harms_nothing() {
        let records = source(&Arc::new(FaultStorage::new()));
        let mut refused = 0;
        for nth in 1..60 {
            let disk = Arc::new(FaultStorage::new());
            let mut log = Log::create(disk.clone(), DatabaseId([7; 16]), 0).unwrap();
            disk.fail(Fault {
                at_call: nth,
                kind: std::io::ErrorKind::StorageFull,
                lasting: true,
            });
            let outcome = send(&mut log, &records.concat());
            disk.heal();
            let kept = log.head().pos.txid.0;
            match outcome {
                Ok(appended) => assert_eq!((appended, kept), (6, 6)),
                Err(refusal) => {
                    refused += 1;
                    assert_eq!(
                        refusal.status(),
                        StatusCode::INSUFFICIENT_STORAGE,
                        "call {nth}: {}",
                        refusal.error()
                    );
                    // The rest fits behind what was kept, also for one who reads the log anew.
                    let mut anew = Log::open(disk.clone() as Arc<dyn Storage>).unwrap();
                    assert_eq!(anew.head().pos.txid.0, kept, "call {nth}");
                    assert_eq!(
                        send(&mut anew, &records[kept as usize..].concat()).unwrap(),
                        6 - kept
                    );
                }
            }
        }
        assert!(refused > 5, "the disk was never full");
    }
}
