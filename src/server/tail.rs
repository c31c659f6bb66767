//! Reading the log for those who follow it: in pieces that fit a frame, and for all of them at once where they stand at
//! the same place.

use std::collections::VecDeque;
use std::io::Read;

use axum::body::Bytes;
use axum::http::StatusCode;
use mycelite_journal::{Pos, Reader, RecordEntry, Txid};

use super::database::Database;
use super::reply::Refusal;
use crate::proto::follow::{CHUNK_BYTES_MAX, EndReason};

/// Bytes of pieces that are kept for those who come a little later.
const RECENT_BYTES_MAX: usize = 4 << 20;
/// And their number.
const RECENT_PIECES_MAX: usize = 64;
/// So often may the log be cut back while one piece is read.
const CUTS_MAX: u32 = 3;

/// Why a stream ends: with a word to the client, or without one because it has gone or reads nothing.
pub(super) enum Stop {
    /// With this word.
    Say(EndReason, String),
    /// Without one.
    Gone,
}

impl Stop {
    /// The log was cut back, or is another one.
    pub fn history_changed() -> Stop {
        let text = "the history here is no longer the one that was being sent".to_string();
        Stop::Say(EndReason::HistoryChanged, text)
    }
}

/// The newest pieces of a log, and the place behind them, shared by all streams that have come so far.
#[derive(Default)]
pub(super) struct Recent {
    /// How often the log had been cut back when this was read.
    history: u64,
    /// Each with the places before and behind it.
    pieces: VecDeque<(Pos, Pos, Bytes)>,
    bytes: usize,
    tail: Option<Tail>,
}

impl Recent {
    /// Forgets what was read before the log was cut back for the `history`-th time.
    pub fn of_history(&mut self, history: u64) {
        if self.history != history {
            self.clear();
            self.history = history;
        }
    }

    /// The piece that follows `from`, and where it ends.
    pub fn find(&self, from: Pos) -> Option<(Pos, Bytes)> {
        let found = self.pieces.iter().find(|(before, _, _)| *before == from);
        found.map(|(_, behind, piece)| (*behind, piece.clone()))
    }

    /// The tail, if it stands at `at`.
    pub fn take(&mut self, at: Pos) -> Option<Tail> {
        self.tail.take_if(|tail| tail.sent == at)
    }

    /// Takes the tail back, and the piece that was read with it from `from` on; gives the tail back if that ended within a
    /// record.
    pub fn give(&mut self, from: Pos, tail: Tail, piece: &Bytes) -> Option<Tail> {
        if tail.is_within_a_record() {
            return Some(tail);
        }
        if tail.history != self.history {
            // The next look forgets the rest.
            return None;
        }
        self.bytes += piece.len();
        self.pieces.push_back((from, tail.sent, piece.clone()));
        while self.bytes > RECENT_BYTES_MAX || self.pieces.len() > RECENT_PIECES_MAX {
            let Some((_, _, oldest)) = self.pieces.pop_front() else {
                break;
            };
            self.bytes -= oldest.len();
        }
        self.tail = Some(tail);
        None
    }

    /// A stream that read alone has caught up.
    pub fn join(&mut self, tail: Tail) {
        let newer = self
            .tail
            .as_ref()
            .is_none_or(|ours| ours.sent.txid < tail.sent.txid);
        if newer && tail.history == self.history {
            self.tail = Some(tail);
        }
    }

    /// Keeps nothing: the history changed, or nobody asks any more.
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.bytes = 0;
        self.tail = None;
    }
}

/// The log from one place on.
pub(super) struct Tail {
    /// How often the log had been cut back when this was opened.
    history: u64,
    reader: Reader,
    /// A record that did not fit the last piece any more.
    waiting: Option<RecordEntry>,
    /// What is left of a record that does not fit one piece.
    partial: Option<Box<dyn Read + Send>>,
    /// After the last record that was begun.
    pub sent: Pos,
    /// Bytes of records in the last piece.
    pub piece_bytes: u64,
    /// What a full piece was made with, for the next.
    packer: Option<Packer>,
}

/// Room for the records of a piece, and their compressor.
struct Packer {
    raw: Vec<u8>,
    compressor: zstd::bulk::Compressor<'static>,
}

impl Tail {
    /// The log behind transaction `after`, the first transaction kept, and the bytes that follow.
    pub fn open(database: &Database, after: Txid) -> Result<(Tail, Txid, u64), Refusal> {
        let failed = |e: mycelite_journal::Error| Refusal::from_log(&e);
        let history = database.history();
        let mut reader = Reader::open(database.storage()).map_err(failed)?;
        let follows = reader.follows().map_err(failed)?.unwrap_or(Pos::ZERO);
        let first = follows.txid.next();
        let gone = || {
            Refusal::new(
                StatusCode::GONE,
                &format!(
                    "the history that is kept here begins at transaction {first}, you are at {after}"
                ),
            )
        };
        let durable = database.durable().map(|durable| durable.pos);
        let sent = match durable {
            _ if after == follows.txid => follows,
            _ if after < follows.txid => return Err(gone()),
            // Most who come back lack nothing: spared a look through the segment.
            Some(head) if head.txid == after => head,
            _ => {
                let entry = reader.find(after).map_err(failed)?.ok_or_else(gone)?;
                entry.header.pos()
            }
        };
        reader.seek(after).map_err(failed)?;
        let behind = reader.bytes_after(after).map_err(failed)?;
        let tail = Tail {
            history: *history,
            reader,
            waiting: None,
            partial: None,
            sent,
            piece_bytes: 0,
            packer: None,
        };
        Ok((tail, first, behind))
    }

    /// The same for a stream that has been at `sent` already.
    fn reopen(database: &Database, sent: Pos) -> Result<Tail, Stop> {
        match Tail::open(database, sent.txid) {
            Ok((tail, _, _)) if tail.sent == sent => Ok(tail),
            Ok(_) => Err(Stop::history_changed()),
            Err(refusal) if refusal.status() == StatusCode::GONE => Err(Stop::history_changed()),
            Err(refusal) => Err(Stop::Say(EndReason::Failed, refusal.error().to_string())),
        }
    }

    /// Whether the next piece goes on with a record.
    pub fn is_within_a_record(&self) -> bool {
        self.partial.is_some()
    }

    /// Bytes of the records that were not begun yet; 0 where that cannot be counted.
    pub fn rest(&mut self) -> u64 {
        self.reader.bytes_after(self.sent.txid).unwrap_or(0)
    }

    /// The next durable records behind `sent`, compressed by the zstd level; with the tail that stands there, if there is one.
    pub fn read(
        database: &Database,
        tail: Option<Tail>,
        sent: Pos,
        level: i32,
    ) -> Result<(Tail, Bytes), Stop> {
        let mut tail = match tail {
            Some(tail) => tail,
            None => Tail::reopen(database, sent)?,
        };
        for _ in 0..CUTS_MAX {
            let history = database.history();
            if tail.history == *history {
                let durable = database.durable().ok_or_else(Stop::history_changed)?;
                let piece = tail.piece(durable.pos, level)?;
                return Ok((tail, piece));
            }
            drop(history);
            if tail.is_within_a_record() {
                break;
            }
            // Perhaps it was cut back behind this place only.
            tail = Tail::reopen(database, tail.sent)?;
        }
        Err(Stop::history_changed())
    }

    /// Whole records up to `head` as far as they fit, else a part of one.
    fn piece(&mut self, head: Pos, level: i32) -> Result<Bytes, Stop> {
        let failed = |what: &dyn std::fmt::Display| {
            Stop::Say(EndReason::Failed, format!("cannot read the log: {what}"))
        };
        let Packer {
            mut raw,
            mut compressor,
        } = match self.packer.take() {
            Some(packer) => packer,
            None => Packer {
                raw: Vec::new(),
                compressor: zstd::bulk::Compressor::new(level).map_err(|e| failed(&e))?,
            },
        };
        raw.clear();
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
                return Err(Stop::history_changed());
            }
            if !raw.is_empty() && raw.len() as u64 + header.record_len() > CHUNK_BYTES_MAX as u64 {
                // Whole records where that is possible: they are durable there as soon as they arrive.
                self.waiting = Some(entry);
                break;
            }
            self.sent = header.pos();
            self.partial = Some(Box::new(entry.raw()));
        }
        self.piece_bytes = raw.len() as u64;
        compressor
            .set_compression_level(level)
            .map_err(|e| failed(&e))?;
        let packed = compressor.compress(&raw).map_err(|e| failed(&e))?;
        // A stream that waits keeps no memory for it.
        if raw.len() >= CHUNK_BYTES_MAX / 2 {
            self.packer = Some(Packer { raw, compressor });
        }
        Ok(Bytes::from(packed))
    }
}
