//! Handing out what is stored: records as they are, or a past state as a plain database file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use mycelite_journal::{Archive, FileStorage, OpenMode, Pos, Reader, Txid};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::State;
use super::database::Database;
use super::reply::Refusal;
use super::snapshot::wanted;
use super::stream::{ChunkWriter, answer_pipe};
use crate::apply::past_file;
use crate::moment::Moment;
use crate::proto::snapshot::Piece;
use crate::proto::{HEADER_HEAD, HEADER_POS, TYPE_DATABASE, TYPE_RECORDS};

/// Compression of records that are handed out.
const ZSTD_LEVEL: i32 = 3;
/// Bytes read from a file at a time.
const COPY_BYTES: usize = 256 * 1024;
/// Where states are materialised, inside the data directory.
pub(super) const TEMP_DIR: &str = ".mycelite-tmp";

/// The records after `after`, up to the durable end `head`, as one zstd stream.
pub(super) async fn records(
    state: &Arc<State>,
    database: Arc<Database>,
    after: Txid,
    head: Pos,
) -> Result<Response, Refusal> {
    let permit = slot(&state.downloads, state, "downloads").await?;
    if after > head.txid {
        return Err(Refusal::new(
            StatusCode::NOT_FOUND,
            &format!(
                "after={after} is beyond the end of the log, transaction {}",
                head.txid
            ),
        )
        .with_pos(head));
    }
    let (mut writer, body) = answer_pipe(state.limits.idle_max);
    let opened = tokio::task::spawn_blocking(move || {
        let mut reader = Reader::open(database.storage()).map_err(|e| Refusal::from_log(&e))?;
        check_history(&reader, after)?;
        reader.seek(after).map_err(|e| Refusal::from_log(&e))?;
        Ok::<_, Refusal>(reader)
    });
    let mut reader = joined(opened.await)??;
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        match copy_records(&mut reader, head, &mut writer) {
            Ok(()) => {}
            Err(e) => writer.fail(e),
        }
    });
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(TYPE_RECORDS));
    headers.insert(HEADER_HEAD, header_value(&head.to_string())?);
    Ok(response)
}

fn copy_records(reader: &mut Reader, head: Pos, writer: &mut ChunkWriter) -> io::Result<()> {
    let mut encoder = zstd::stream::write::Encoder::new(writer, ZSTD_LEVEL)?;
    let mut at = None;
    while at != Some(head.txid) {
        let Some(entry) = reader.next().map_err(io::Error::other)? else {
            break;
        };
        if entry.header.txid > head.txid {
            break;
        }
        io::copy(&mut entry.raw(), &mut encoder)?;
        at = Some(entry.header.txid);
    }
    encoder.finish()?.flush()
}

/// The database at a moment, as a plain file; from where `Range` says. The same position is the same file, byte for byte.
pub(super) async fn file(
    state: &Arc<State>,
    database: Arc<Database>,
    moment: Moment,
    asked: &HeaderMap,
    head: Pos,
) -> Result<Response, Refusal> {
    let by_time = matches!(moment, Moment::Time(_));
    let txid = match moment {
        // Bookmarks are the primary's.
        Moment::Head | Moment::Bookmark(_) => head.txid,
        Moment::Txid(txid) => Txid(txid),
        Moment::Time(us) => {
            let database = Arc::clone(&database);
            let found = tokio::task::spawn_blocking(move || {
                Archive::open(database.storage())?.find_time(us)
            });
            let found = joined(found.await)?.map_err(|e| Refusal::from_log(&e))?;
            // What is not durable yet is not given away.
            found.unwrap_or(Txid(0)).min(head.txid)
        }
    };
    if txid == Txid(0) && by_time {
        return Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "nothing that is kept here was recorded by then",
        ));
    }
    if txid > head.txid || txid == Txid(0) {
        return Err(Refusal::new(
            StatusCode::NOT_FOUND,
            &format!(
                "there is no transaction {txid} here: the history ends at {}",
                head.txid
            ),
        ));
    }
    let image_permit = slot(&state.images, state, "files").await?;
    let permit = slot(&state.downloads, state, "downloads").await?;
    let name = format!("{}-{txid}.db", database.name);
    let cancelled = CancelOnDrop(Arc::new(AtomicBool::new(false)));
    let flag = Arc::clone(&cancelled.0);
    let temp_dir = state.data.join(TEMP_DIR);
    let made = tokio::task::spawn_blocking(move || {
        let _permit = image_permit;
        materialise(&database, txid, &temp_dir, &flag)
    });
    let (file, length, pos) = joined(made.await)??;
    let etag = format!("\"{pos}\"");
    let from = wanted(asked, &etag, length)?;
    let (writer, body) = answer_pipe(state.limits.idle_max);
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        copy_file(file, from, length, writer);
    });
    let mut response = Response::new(Body::new(body));
    partial(&mut response, from, length, &etag)?;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(TYPE_DATABASE));
    headers.insert(
        CONTENT_DISPOSITION,
        header_value(&format!("attachment; filename=\"{name}\""))?,
    );
    headers.insert(HEADER_POS, header_value(&pos.to_string())?);
    Ok(response)
}

/// Says which part of a file an answer is: what follows `from`.
fn partial(response: &mut Response, from: u64, length: u64, etag: &str) -> Result<(), Refusal> {
    if from > 0 {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let piece = Piece {
            range: Some((from, length)),
            all: length,
        };
        let piece = header_value(&piece.to_string())?;
        response.headers_mut().insert(CONTENT_RANGE, piece);
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length - from));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(ETAG, header_value(etag)?);
    Ok(())
}

/// Replays the log into a temporary file without a name.
fn materialise(
    database: &Database,
    txid: Txid,
    temp_dir: &Path,
    cancelled: &AtomicBool,
) -> Result<(File, u64, Pos), Refusal> {
    let failed = |e: &io::Error| Refusal::from_io("cannot make the file", e);
    std::fs::create_dir_all(temp_dir).map_err(|e| failed(&e))?;
    // Removed by its guard in any case; what a killed server leaves is removed by the next one.
    let temp = tempfile::NamedTempFile::new_in(temp_dir).map_err(|e| failed(&e))?;
    let storage_file =
        FileStorage::open_path(temp.path(), OpenMode::Write).map_err(|e| failed(&e))?;
    let reader = Reader::open(database.storage()).map_err(|e| Refusal::from_log(&e))?;
    let follows = reader.follows().map_err(|e| Refusal::from_log(&e))?;
    if follows.is_some_and(|follows| txid < follows.txid) {
        return Err(gone(follows.unwrap_or(Pos::ZERO).txid));
    }
    let goes_on = || !cancelled.load(Ordering::Relaxed);
    let (pos, length) = past_file(&database.log_dir, txid, storage_file, &goes_on)?;
    Ok((temp.into_file(), length, pos))
}

fn copy_file(mut file: File, from: u64, length: u64, mut writer: ChunkWriter) {
    let mut copy = |writer: &mut ChunkWriter| {
        io::Seek::seek(&mut file, io::SeekFrom::Start(from))?;
        let mut left = length.saturating_sub(from);
        let mut buffer = vec![0; COPY_BYTES];
        while left > 0 {
            let want = left.min(COPY_BYTES as u64) as usize;
            let count = file.read(buffer.get_mut(..want).unwrap_or_default())?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            writer.write_all(buffer.get(..count).unwrap_or_default())?;
            left -= count as u64;
        }
        writer.flush()
    };
    if let Err(e) = copy(&mut writer) {
        writer.fail(e);
    }
}

/// The history must still contain what follows transaction `after`.
fn check_history(reader: &Reader, after: Txid) -> Result<(), Refusal> {
    match reader.follows().map_err(|e| Refusal::from_log(&e))? {
        Some(follows) if after < follows.txid => Err(gone(follows.txid)),
        _ => Ok(()),
    }
}

fn gone(follows: Txid) -> Refusal {
    Refusal::new(
        StatusCode::GONE,
        &format!(
            "the history that is kept here begins at transaction {}",
            follows.next()
        ),
    )
}

/// One of those that may do this at the same time.
pub(super) async fn slot(
    semaphore: &Arc<Semaphore>,
    state: &State,
    what: &str,
) -> Result<OwnedSemaphorePermit, Refusal> {
    match tokio::time::timeout(
        state.limits.append_wait,
        Arc::clone(semaphore).acquire_owned(),
    )
    .await
    {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(Refusal::busy(&format!(
            "too many {what} at once (try again)"
        ))),
    }
}

/// What came of blocking work.
pub(super) fn joined<T>(result: Result<T, tokio::task::JoinError>) -> Result<T, Refusal> {
    result.map_err(|e| {
        Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            &format!("the work ended unexpectedly: {e}"),
        )
    })
}

/// Text as the value of a header.
pub(super) fn header_value(text: &str) -> Result<HeaderValue, Refusal> {
    HeaderValue::from_str(text).map_err(|_| {
        Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "a header cannot be written",
        )
    })
}

/// Tells blocking work that nobody waits for it any more.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
