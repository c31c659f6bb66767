//! The frames that a connection's last transaction has written to the WAL, so that they need not be read back to be captured.

use crate::capture::wal::FRAME_HEADER_BYTES;
use crate::lock::Mutex;

/// Bytes kept: a small transaction's, and not a large one's.
const BYTES_MAX: usize = 256 << 10;

/// The end of what one transaction has written to the WAL, without a gap.
///
/// It may be read only from that transaction's commit on, until the next one begins, and only in the same generation of the
/// WAL: committed frames of a generation are never overwritten, others may be, by any process.
#[derive(Default)]
pub struct WrittenWal {
    end: Mutex<End>,
}

#[derive(Default)]
struct End {
    offset: u64,
    bytes: Vec<u8>,
    committed: bool,
}

impl WrittenWal {
    /// `data` is written at `offset`, unless [`WrittenWal::forget`] says otherwise.
    pub fn put(&self, offset: u64, data: &[u8]) {
        let mut end = self.end.lock();
        let follows = !end.committed && end.offset + end.bytes.len() as u64 == offset;
        if !follows || end.bytes.len() + data.len() > BYTES_MAX {
            end.bytes.clear();
            end.offset = offset;
            end.committed = false;
        }
        if data.len() <= BYTES_MAX {
            end.bytes.extend_from_slice(data);
        }
    }

    /// What was written is committed.
    pub fn committed(&self) {
        self.end.lock().committed = true;
    }

    /// Another transaction begins, or what the file holds is not known any more.
    pub fn forget(&self) {
        let mut end = self.end.lock();
        end.bytes.clear();
        end.committed = false;
    }

    /// Appends to `out` what was committed at `offset`, as many whole frames of `frame_bytes` as there are, `frames` at most.
    pub fn read(&self, offset: u64, frame_bytes: usize, frames: u32, out: &mut Vec<u8>) {
        let end = self.end.lock();
        let start = offset.checked_sub(end.offset);
        let start = start.and_then(|start| usize::try_from(start).ok());
        let kept = start.and_then(|start| end.bytes.get(start..));
        if let Some(kept) = kept.filter(|_| end.committed) {
            let whole = (kept.len() / frame_bytes).min(frames as usize);
            out.extend_from_slice(&kept[..whole * frame_bytes]);
        }
    }

    /// The header of the last of `frames` whole frames of `frame_bytes` that were committed, the first at `offset`.
    pub fn frame_header(
        &self,
        offset: u64,
        frame_bytes: usize,
        frames: u32,
    ) -> Option<[u8; FRAME_HEADER_BYTES]> {
        let end = self.end.lock();
        let start = usize::try_from(offset.checked_sub(end.offset)?).ok()?;
        let last = start.checked_add(frame_bytes.checked_mul(frames.checked_sub(1)? as usize)?)?;
        let frame = end.bytes.get(last..last.checked_add(frame_bytes)?)?;
        frame.first_chunk().copied().filter(|_| end.committed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: usize = 24 + 512;

    fn read(written: &WrittenWal, offset: u64, frames: u32) -> Vec<u8> {
        let mut out = Vec::new();
        written.read(offset, FRAME, frames, &mut out);
        out
    }

    fn put_frame(written: &WrittenWal, offset: u64, byte: u8) {
        written.put(offset, &[byte; 24]);
        written.put(offset + 24, &[byte; 512]);
    }

    #[test]
    fn only_what_is_committed_is_given() {
        let written = WrittenWal::default();
        assert!(read(&written, 32, 9).is_empty());
        put_frame(&written, 32, 1);
        put_frame(&written, 32 + FRAME as u64, 2);
        assert!(read(&written, 32, 9).is_empty());
        assert_eq!(written.frame_header(32, FRAME, 2), None);
        written.committed();
        assert_eq!(read(&written, 32, 9), [[1; FRAME], [2; FRAME]].concat());
        assert_eq!(read(&written, 32, 1), [1; FRAME]);
        assert_eq!(read(&written, 32 + FRAME as u64, 9), [2; FRAME]);
        let last = |frames| written.frame_header(32, FRAME, frames);
        assert_eq!([last(1), last(2)], [Some([1; 24]), Some([2; 24])]);
        assert_eq!([last(0), last(3)], [None, None]);
        assert!(read(&written, 0, 9).is_empty());
        assert!(read(&written, 33 + FRAME as u64, 9).is_empty());
        assert!(read(&written, 32 + 2 * FRAME as u64, 9).is_empty());

        // The next transaction, written behind it, and rolled back.
        put_frame(&written, 32 + 2 * FRAME as u64, 3);
        assert!(read(&written, 32, 9).is_empty());
        assert!(read(&written, 32 + 2 * FRAME as u64, 9).is_empty());
        written.forget();
        written.committed();
        assert!(read(&written, 32 + 2 * FRAME as u64, 9).is_empty());
    }

    #[test]
    fn what_is_overwritten_or_too_long_is_not_kept() {
        let written = WrittenWal::default();
        put_frame(&written, 32, 1);
        put_frame(&written, 32 + FRAME as u64, 2);
        put_frame(&written, 32, 4);
        written.committed();
        assert_eq!(read(&written, 32, 9), [4; FRAME]);

        written.forget();
        let mut at = 32;
        for _ in 0..2 * BYTES_MAX / FRAME {
            put_frame(&written, at, 5);
            at += FRAME as u64;
            assert!(written.end.lock().bytes.len() <= BYTES_MAX);
        }
        written.committed();
        assert!(read(&written, 32, 9).is_empty());
        assert_eq!(read(&written, at - FRAME as u64, 9), [5; FRAME]);
        written.put(at, &vec![6; BYTES_MAX + 1]);
        written.committed();
        assert!(read(&written, at, 9).is_empty());
    }
}
