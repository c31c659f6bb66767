//! Is what follows the last record of a segment merely unfinished, or has something before the end been damaged?

use crate::cursor::{Cursor, read_error};
use crate::error::Result;
use crate::record::{
    HEADER_LEN, RECORD_LEN_MIN, RecordHeader, TRAILER_LEN, TRAILER_MAGIC, Trailer,
};
use crate::storage::{StorageFile, read_up_to};

/// Bytes searched at a time.
const CHUNK: usize = 256 * 1024;

/// How far the bytes after a place have been searched, so that a growing record is not searched again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Searched {
    from: u64,
    to: u64,
}

/// Looks behind the cursor's place for the trailer of a later record. Finding one, it returns that record's header: then the bytes
/// in between were records too, and are damaged.
pub(crate) fn later_record(
    cursor: &Cursor,
    searched: &mut Option<Searched>,
) -> Result<Option<RecordHeader>> {
    let file = &*cursor.segment.file;
    let from = cursor.offset;
    let size = cursor.size()?;
    let mut at = match searched {
        Some(done) if done.from == from && done.to <= size => done.to,
        _ => from,
    };
    let mut chunk = vec![0; CHUNK];
    while at + TRAILER_LEN as u64 <= size {
        let length = read_up_to(file, &mut chunk, at)
            .map_err(|source| read_error(&cursor.segment, source))?;
        let bytes = chunk.get(..length).unwrap_or_default();
        for index in places(bytes) {
            let header = record_around(cursor, file, at + index as u64)
                .map_err(|source| read_error(&cursor.segment, source))?;
            if header.is_some() {
                return Ok(header);
            }
        }
        if length < TRAILER_LEN {
            break;
        }
        // A trailer that is not whole in this chunk is found in the next.
        at += (length - TRAILER_LEN + 1) as u64;
        *searched = Some(Searched { from, to: at });
    }
    Ok(None)
}

/// Where whole trailers may begin.
fn places(bytes: &[u8]) -> impl Iterator<Item = usize> + '_ {
    bytes
        .windows(TRAILER_LEN)
        .enumerate()
        .filter(|(_, window)| {
            window.first() == TRAILER_MAGIC.first() && window.starts_with(&TRAILER_MAGIC)
        })
        .map(|(index, _)| index)
}

/// The record whose trailer is at `at`, if it can be one that this log has behind the cursor. A page may hold a copy of some log:
/// the number of its transaction would have to fit the distance, too.
fn record_around(
    cursor: &Cursor,
    file: &dyn StorageFile,
    at: u64,
) -> std::io::Result<Option<RecordHeader>> {
    let mut bytes = [0; TRAILER_LEN];
    read_up_to(file, &mut bytes, at)?;
    let Ok(trailer) = Trailer::decode(&bytes) else {
        return Ok(None);
    };
    let end = at + TRAILER_LEN as u64;
    let Some(start) = end
        .checked_sub(trailer.record_len)
        .filter(|start| *start > cursor.offset)
    else {
        return Ok(None);
    };
    let mut bytes = [0; HEADER_LEN];
    read_up_to(file, &mut bytes, start)?;
    let Ok(header) = RecordHeader::decode(&bytes) else {
        return Ok(None);
    };
    let between = header.txid.0.saturating_sub(cursor.next_txid().0);
    let fits = trailer.fits(&header)
        && between > 0
        && between.saturating_mul(RECORD_LEN_MIN) <= start - cursor.offset
        && header.time_us > cursor.head.time_us
        && header.timeline >= cursor.head.pos.timeline;
    Ok(fits.then_some(header))
}
