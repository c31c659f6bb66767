//! The stream behind `GET /v1/databases/{name}/log?after=TXID&follow=1`, version 1: the wire contract.
//!
//! The answer is `200` with `Content-Type` [`TYPE_FOLLOW`]; its body is a row of frames and ends when the server says so
//! ([`Frame::End`]) or the line breaks. The number after `follow=` is the version of this contract; a server that does
//! not speak it answers `501`. All numbers are little-endian.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | kind |
//! | 4 | length of the payload, at most [`PAYLOAD_BYTES_MAX`] |
//! | length | payload |
//!
//! | kind | frame | payload |
//! |---|---|---|
//! | 1 | hello: the first frame, and only that | version u32 · database id 16 · [`Pos`] after `after` · [`Beat`] · first txid kept u64 · ms between beats u32 |
//! | 2 | records | one zstd frame of at most [`CHUNK_BYTES_MAX`] bytes: the next piece of the records as the log stores them; a record may go over several pieces |
//! | 3 | beat | [`Pos`] of the server's durable end · its clock in µs since 1970 u64 · bytes of records not sent yet u64, 0 only when all there is has been sent |
//! | 4 | end | reason u8 (1 the server stops, 2 its history changed, 3 it failed) · one line of UTF-8 |
//!
//! A [`Pos`] is timeline, txid and checksum, u64 each. A reader passes over bytes behind those it knows in kinds 1 and 3,
//! and over whole frames of a kind above 127; any other unknown kind is an error. Records follow one another without a gap
//! from `after` on and are durable on the server. A beat comes at least every so many ms as the hello says, and whenever
//! all there is has been sent: a line on which nothing comes for three times as long is dead.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use mycelite_journal::{Checksum, DatabaseId, Pos, Timeline, Txid};

use super::excerpt;
use crate::error::{Error, ErrorKind, Result};

/// Version of this contract: the value of `follow=`.
pub const FOLLOW_VERSION: u32 = 1;
/// `Content-Type` of the stream.
pub const TYPE_FOLLOW: &str = "application/x-mycelite-follow";
/// Most bytes of records in one frame, decompressed.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Longest payload of a frame, in bytes: a piece of records that could not be compressed, and room.
pub const PAYLOAD_BYTES_MAX: usize = CHUNK_BYTES_MAX + (64 << 10);

const KIND_HELLO: u8 = 1;
const KIND_RECORDS: u8 = 2;
const KIND_BEAT: u8 = 3;
const KIND_END: u8 = 4;
/// Kinds from here on may be passed over by a reader that does not know them.
const KIND_OPTIONAL: u8 = 128;

const FRAME_HEAD_LEN: usize = 5;
const POS_LEN: usize = 24;
const BEAT_LEN: usize = POS_LEN + 16;
const HELLO_LEN: usize = 4 + 16 + POS_LEN + BEAT_LEN + 12;
/// Longest text of an end, in bytes.
const END_TEXT_BYTES_MAX: usize = 1000;

/// Who the server is, and where the stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Identity of the database.
    pub id: DatabaseId,
    /// Where the server was after the transaction that was asked for; the first record follows it.
    pub after: Pos,
    /// Where the server is.
    pub beat: Beat,
    /// The first transaction of the history that is kept there.
    pub first: Txid,
    /// Longest pause between two beats, in ms.
    pub beat_ms: u32,
}

/// Where the server is: what a follower lacks, and a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The last durable record.
    pub head: Pos,
    /// The server's clock, µs since 1970.
    pub time_us: u64,
    /// Bytes of records, as the log stores them, that were not sent on this stream yet.
    pub behind_bytes: u64,
}

/// Why a server ends a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// It is being stopped.
    Stopping,
    /// Its history is no longer the one that was being sent.
    HistoryChanged,
    /// It cannot read its log.
    Failed,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The first one.
    Hello(Hello),
    /// A piece of the records, compressed.
    Records(Bytes),
    /// A sign of life.
    Beat(Beat),
    /// The last one: why, and a line for people.
    End(EndReason, String),
}

impl Frame {
    /// The bytes on the wire. An end's text is cut at 1000 bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(FRAME_HEAD_LEN + HELLO_LEN);
        self.encode_to(&mut out);
        out.freeze()
    }

    /// The same, behind what is in `out` already.
    pub fn encode_to(&self, out: &mut BytesMut) {
        match self {
            Frame::Hello(hello) => {
                head(out, KIND_HELLO, HELLO_LEN);
                out.put_u32_le(FOLLOW_VERSION);
                out.put_slice(&hello.id.0);
                put_pos(out, hello.after);
                put_beat(out, &hello.beat);
                out.put_u64_le(hello.first.0);
                out.put_u32_le(hello.beat_ms);
            }
            Frame::Records(payload) => {
                out.reserve(FRAME_HEAD_LEN + payload.len());
                head(out, KIND_RECORDS, payload.len());
                out.put_slice(payload);
            }
            Frame::Beat(beat) => {
                head(out, KIND_BEAT, BEAT_LEN);
                put_beat(out, beat);
            }
            Frame::End(reason, text) => {
                let text = text
                    .char_indices()
                    .take_while(|(at, c)| at + c.len_utf8() <= END_TEXT_BYTES_MAX)
                    .map(|(_, c)| c)
                    .collect::<String>();
                head(out, KIND_END, 1 + text.len());
                out.put_u8(match reason {
                    EndReason::Stopping => 1,
                    EndReason::HistoryChanged => 2,
                    EndReason::Failed => 3,
                });
                out.put_slice(text.as_bytes());
            }
        }
    }
}

fn head(out: &mut BytesMut, kind: u8, length: usize) {
    out.put_u8(kind);
    out.put_u32_le(length as u32);
}

fn put_pos(out: &mut BytesMut, pos: Pos) {
    out.put_u64_le(pos.timeline.0);
    out.put_u64_le(pos.txid.0);
    out.put_u64_le(pos.checksum.0);
}

fn put_beat(out: &mut BytesMut, beat: &Beat) {
    put_pos(out, beat.head);
    out.put_u64_le(beat.time_us);
    out.put_u64_le(beat.behind_bytes);
}

// The callers have checked that there are bytes enough.
fn get_pos(payload: &mut Bytes) -> Pos {
    Pos {
        timeline: Timeline(payload.get_u64_le()),
        txid: Txid(payload.get_u64_le()),
        checksum: Checksum(payload.get_u64_le()),
    }
}

fn get_beat(payload: &mut Bytes) -> Beat {
    Beat {
        head: get_pos(payload),
        time_us: payload.get_u64_le(),
        behind_bytes: payload.get_u64_le(),
    }
}

/// Puts frames together from what comes over the line. Holds one frame at most, besides what was pushed last.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: BytesMut,
    greeted: bool,
}

impl FrameBuffer {
    /// Takes the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.put_slice(bytes);
    }

    /// Whether the stream may end here: not within a frame.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The next whole frame; none until more bytes are pushed.
    ///
    /// # Errors
    /// `Network` for what is not a stream of frames; `Unsupported` for another version. The stream is useless then.
    pub fn take(&mut self) -> Result<Option<Frame>> {
        loop {
            let Some((&[kind, a, b, c, d], _)) = self.bytes.split_first_chunk::<FRAME_HEAD_LEN>()
            else {
                return Ok(None);
            };
            let length = u32::from_le_bytes([a, b, c, d]) as usize;
            if length > PAYLOAD_BYTES_MAX {
                return Err(garbled("a frame is longer than any frame should be"));
            }
            if !self.greeted && kind != KIND_HELLO {
                return Err(garbled("it does not begin with a hello"));
            }
            if self.bytes.len() < FRAME_HEAD_LEN + length {
                return Ok(None);
            }
            self.bytes.advance(FRAME_HEAD_LEN);
            let payload = self.bytes.split_to(length).freeze();
            if kind >= KIND_OPTIONAL {
                continue;
            }
            let frame = decode(kind, payload)?;
            if std::mem::replace(&mut self.greeted, true) && matches!(frame, Frame::Hello(_)) {
                return Err(garbled("there is a second hello"));
            }
            return Ok(Some(frame));
        }
    }
}

fn decode(kind: u8, mut payload: Bytes) -> Result<Frame> {
    let short = || garbled("a frame is shorter than it should be");
    match kind {
        KIND_HELLO => {
            let version = payload.first_chunk::<4>().map(|v| u32::from_le_bytes(*v));
            match version {
                None => return Err(short()),
                Some(FOLLOW_VERSION) => {}
                Some(other) => {
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        format_args!(
                            "the server's stream has version {other}, this program reads version {FOLLOW_VERSION}"
                        ),
                    )
                    .hint("use the same version of mycelite on both ends"));
                }
            }
            if payload.len() < HELLO_LEN {
                return Err(short());
            }
            payload.advance(4);
            let mut id = [0; 16];
            payload.copy_to_slice(&mut id);
            Ok(Frame::Hello(Hello {
                id: DatabaseId(id),
                after: get_pos(&mut payload),
                beat: get_beat(&mut payload),
                first: Txid(payload.get_u64_le()),
                beat_ms: payload.get_u32_le(),
            }))
        }
        KIND_RECORDS => Ok(Frame::Records(payload)),
        KIND_BEAT if payload.len() >= BEAT_LEN => Ok(Frame::Beat(get_beat(&mut payload))),
        KIND_END if !payload.is_empty() => {
            let reason = match payload.get_u8() {
                1 => EndReason::Stopping,
                2 => EndReason::HistoryChanged,
                _ => EndReason::Failed,
            };
            let text = excerpt(&String::from_utf8_lossy(&payload), END_TEXT_BYTES_MAX);
            Ok(Frame::End(reason, text))
        }
        KIND_BEAT | KIND_END => Err(short()),
        _ => Err(garbled("there is a frame of an unknown kind")),
    }
}

fn garbled(what: &str) -> Error {
    Error::new(
        ErrorKind::Network,
        format_args!("what comes is not a stream of records: {what}"),
    )
    .hint("is something between here and the server that changes bytes?")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn pos(txid: u64) -> Pos {
        Pos {
            timeline: Timeline(3),
            txid: Txid(txid),
            checksum: Checksum(txid ^ 0xfeed_0000),
        }
    }

    fn beat() -> Beat {
        Beat {
            head: pos(9),
            time_us: 1_795_251_024_515_829,
            behind_bytes: 77,
        }
    }

    fn frames() -> Vec<Frame> {
        vec![
            Frame::Hello(Hello {
                id: DatabaseId([7; 16]),
                after: pos(4),
                beat: beat(),
                first: Txid(1),
                beat_ms: 5000,
            }),
            Frame::Records(Bytes::from(vec![5; 1000])),
            Frame::Records(Bytes::new()),
            Frame::Beat(beat()),
            Frame::End(EndReason::HistoryChanged, "a line".to_string()),
        ]
    }

    fn wire() -> Vec<u8> {
        frames().iter().flat_map(|frame| frame.encode()).collect()
    }

    #[test]
    fn frames_travel_unchanged_in_pieces_of_any_size() {
        for piece in [1, 2, 3, 7, 64, 4096] {
            let mut buffer = FrameBuffer::default();
            let mut found = Vec::new();
            for bytes in wire().chunks(piece) {
                buffer.push(bytes);
                while let Some(frame) = buffer.take().unwrap() {
                    found.push(frame);
                }
            }
            assert_eq!(found, frames());
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn later_versions_may_add_what_can_be_passed_over() {
        let mut bytes = frames()[0].encode().to_vec();
        // A hello and a beat that are longer than ours, and a frame of an optional kind.
        bytes[1] += 3;
        bytes.extend_from_slice(&[1, 2, 3]);
        bytes.extend_from_slice(&[200, 4, 0, 0, 0, 9, 9, 9, 9]);
        let longer = frames()[3].encode();
        bytes.extend_from_slice(&longer);
        let at = bytes.len() - longer.len() + 1;
        bytes[at] += 1;
        bytes.push(0);
        let mut buffer = FrameBuffer::default();
        buffer.push(&bytes);
        assert_eq!(buffer.take().unwrap().unwrap(), frames()[0]);
        assert_eq!(buffer.take().unwrap().unwrap(), frames()[3]);
        assert!(buffer.take().unwrap().is_none() && buffer.is_empty());
    }

    #[test]
    fn anything_else_is_refused_in_one_line() {
        let hello = frames()[0].encode();
        let after_hello = |bytes: &[u8]| [&hello[..], bytes].concat();
        let mut newer = hello.to_vec();
        newer[5] = 2;
        for (bytes, says) in [
            (b"<!doctype html>".to_vec(), "not a stream"),
            (frames()[3].encode().to_vec(), "begin with a hello"),
            (after_hello(&hello), "second hello"),
            (after_hello(&[9, 0, 0, 0, 0]), "unknown kind"),
            (after_hello(&[3, 1, 0, 0, 0, 0]), "shorter"),
            (after_hello(&[4, 0, 0, 0, 0]), "shorter"),
            (after_hello(&[2, 255, 255, 255, 255]), "longer"),
            (newer, "version 2"),
        ] {
            let mut buffer = FrameBuffer::default();
            buffer.push(&bytes);
            let error = loop {
                match buffer.take() {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("no error: {says}"),
                    Err(error) => break error.to_string(),
                }
            };
            assert!(error.contains(says), "{error}");
            assert_eq!(error.lines().count(), 1);
        }
    }

    #[test]
    fn an_end_has_a_bounded_text() {
        let end = Frame::End(EndReason::Failed, "ü".repeat(2000));
        let bytes = end.encode();
        assert!(bytes.len() <= FRAME_HEAD_LEN + 1 + END_TEXT_BYTES_MAX);
        let Frame::End(_, text) = decode(KIND_END, bytes.slice(FRAME_HEAD_LEN..)).unwrap() else {
            panic!("not an end");
        };
        assert_eq!(text.chars().count(), 500);
    }
}
