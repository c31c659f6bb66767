//! What SQLite has committed in a WAL without a wal-index that we could ask: in exclusive locking mode.
//!
//! There a valid commit frame may be one whose transaction failed right after it was written (the disk was full, or would not
//! sync): SQLite has rolled that back, and overwrites the frame next. Only one process has such a database open, so what
//! that process saw is all there is to know.

use crate::capture::header::be32;
use crate::capture::wal::{FRAME_HEADER_BYTES, Frames, WAL_HEADER_BYTES, WalHeader};
use crate::error::Result;
use crate::lock::Mutex;
use crate::vfs::Base;

/// The commits of one WAL, as its writes tell them.
#[derive(Default)]
pub struct Commits {
    seen: Mutex<Seen>,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    /// The last frame that counts; `None` until something is written.
    last: Option<u32>,
    /// A commit frame that was written, and of which it is not known whether it counts.
    written: Option<u32>,
    /// Bytes of a frame; 0 where there is no WAL header yet.
    frame_bytes: u64,
}

impl Commits {
    /// The last frame that counts; every valid one while this process has written none.
    pub fn last(&self) -> u32 {
        self.seen.lock().last.unwrap_or(u32::MAX)
    }

    /// The WAL is opened anew: SQLite takes every valid commit frame in it.
    pub fn forget(&self) {
        *self.seen.lock() = Seen::default();
    }

    /// `data` is about to be written at `offset` of `wal`. Whether SQLite overwrites a frame that counted: it had taken that
    /// commit back without a failing call, because it ran out of memory, and an empty commit followed.
    ///
    /// # Errors
    /// The WAL cannot be read; then every valid frame counts.
    pub fn before_write(&self, wal: &dyn Base, offset: u64, data: &[u8]) -> Result<bool> {
        let mut seen = self.seen.lock();
        if offset == 0 && data.len() == WAL_HEADER_BYTES {
            *seen = Seen {
                last: Some(0),
                written: None,
                frame_bytes: WalHeader::parse(data).map_or(0, |header| header.frame_bytes()),
            };
            return Ok(false);
        }
        if seen.last.is_none() {
            *seen = Seen::in_wal(wal)?;
        }
        let frame = seen.frame_at(offset).map(|(frame, _)| frame);
        let is_overwritten = frame.is_some_and(|frame| Some(frame) <= seen.last);
        if is_overwritten {
            seen.last = frame.map(|frame| frame - 1);
        }
        if let Some(frame) = seen.commit_frame(offset, data) {
            seen.written = Some(frame);
        }
        Ok(is_overwritten)
    }

    /// A write failed, and with it the transaction.
    pub fn write_failed(&self) {
        self.seen.lock().written = None;
    }

    /// The transaction that was written last is committed.
    pub fn committed(&self) {
        let mut seen = self.seen.lock();
        if let Some(frame) = seen.written.take() {
            seen.last = Some(frame);
        }
    }
}

impl Seen {
    /// What SQLite takes when it opens `wal`.
    fn in_wal(wal: &dyn Base) -> Result<Seen> {
        let Some(header) = WalHeader::read(wal)? else {
            return Ok(Seen {
                last: Some(0),
                ..Seen::default()
            });
        };
        let mut frames = Frames::after(wal, header, header.start(), u32::MAX);
        let mut last = 0;
        while let Some(transaction) = frames.next_transaction()? {
            last = transaction.cursor.frame;
        }
        Ok(Seen {
            last: Some(last),
            written: None,
            frame_bytes: header.frame_bytes(),
        })
    }

    /// The frame that `data`, written at `offset`, makes a commit. SQLite may write a frame's header in parts, at multiples
    /// of eight bytes.
    fn commit_frame(&self, offset: u64, data: &[u8]) -> Option<u32> {
        let (frame, at) = self.frame_at(offset)?;
        let is_commit = at == 0 && data.len() <= FRAME_HEADER_BYTES && be32(data, 4)? != 0;
        is_commit.then_some(frame)
    }

    /// The frame in which `offset` lies, and where in it.
    fn frame_at(&self, offset: u64) -> Option<(u32, u64)> {
        let behind = offset.checked_sub(WAL_HEADER_BYTES as u64)?;
        let frame = behind.checked_div(self.frame_bytes)? + 1;
        let at = behind.checked_rem(self.frame_bytes)?;
        Some((u32::try_from(frame).ok()?, at))
    }
}
