//! Many bytes in memory, in pieces.
//!
//! In one piece they would stay with the process for good: glibc takes a large block from the system at first, but once such a
//! block was freed it takes blocks of that size from its heap, and gives the end of a heap back only when twice as much is free.

use std::ops::Range;

use xxhash_rust::xxh3::Xxh3;

use crate::sealed::limit;

/// Bytes of a piece: less than any allocator takes for large.
const PIECE: usize = limit(64 * 1024, 100);

/// Bytes that are filled in any order, or from front to back.
#[derive(Default)]
pub(crate) struct Pieces {
    /// All but the last are full.
    pieces: Vec<Vec<u8>>,
    len: usize,
}

impl Pieces {
    pub(crate) const EMPTY: Pieces = Pieces {
        pieces: Vec::new(),
        len: 0,
    };

    /// So many zeros.
    pub(crate) fn zeroed(len: usize) -> Pieces {
        let lengths = (0..len).step_by(PIECE).map(|at| (len - at).min(PIECE));
        Pieces {
            pieces: lengths.map(|length| vec![0; length]).collect(),
            len,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn clear(&mut self) {
        *self = Pieces::EMPTY;
    }

    /// Adds to the end.
    pub(crate) fn extend(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len();
        while !bytes.is_empty() {
            let full = self.pieces.last().is_none_or(|last| last.len() >= PIECE);
            if full {
                self.pieces.push(Vec::with_capacity(PIECE));
            }
            let Some(last) = self.pieces.last_mut() else {
                return;
            };
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - last.len()));
            last.extend_from_slice(now);
            bytes = later;
        }
    }

    /// Puts `bytes` in place of those from `at` on: false where there are not so many.
    #[must_use]
    pub(crate) fn put(&mut self, mut at: usize, mut bytes: &[u8]) -> bool {
        if at.checked_add(bytes.len()).is_none_or(|end| end > self.len) {
            return false;
        }
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - at % PIECE));
            let piece = self.pieces.get_mut(at / PIECE);
            let place = piece.and_then(|piece| piece.get_mut(at % PIECE..at % PIECE + now.len()));
            let Some(place) = place else { return false };
            place.copy_from_slice(now);
            (at, bytes) = (at + now.len(), later);
        }
        true
    }

    /// The bytes of `range` from its begin on, as far as they lie together; `None` if some of it are not there.
    pub(crate) fn get(&self, range: Range<usize>) -> Option<&[u8]> {
        if range.end > self.len || range.start > range.end {
            return None;
        }
        if range.is_empty() {
            return Some(&[]);
        }
        let piece = self.pieces.get(range.start / PIECE)?;
        let from = range.start % PIECE;
        piece.get(from..(from + range.len()).min(piece.len()))
    }

    /// The 64-bit XXH3 of the bytes of `range`; of fewer if some of it are not there.
    pub(crate) fn hash(&self, mut range: Range<usize>) -> u64 {
        let mut hash = Xxh3::new();
        while let Some(bytes) = self.get(range.clone()).filter(|bytes| !bytes.is_empty()) {
            hash.update(bytes);
            range.start += bytes.len();
        }
        hash.digest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xxhash_rust::xxh3::xxh3_64;

    /// What is read of a range, however it lies.
    fn read(pieces: &Pieces, mut range: Range<usize>) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(bytes) = pieces.get(range.clone()).filter(|bytes| !bytes.is_empty()) {
            all.extend_from_slice(bytes);
            range.start += bytes.len();
        }
        all
    }

    #[test]
    fn pieces_are_as_one() {
        let length = 5 * PIECE + 17;
        let whole: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        let mut put = Pieces::zeroed(length);
        let mut extended = Pieces::default();
        for (number, part) in whole.chunks(PIECE * 2 / 3 + 1).enumerate() {
            assert!(put.put(number * (PIECE * 2 / 3 + 1), part));
            extended.extend(part);
        }
        for pieces in [&put, &extended] {
            assert_eq!(pieces.len(), length);
            for range in [
                0..length,
                0..0,
                1..PIECE,
                PIECE - 1..PIECE + 1,
                PIECE..length,
            ] {
                assert_eq!(read(pieces, range.clone()), whole[range.clone()]);
                assert_eq!(pieces.hash(range.clone()), xxh3_64(&whole[range]));
            }
            assert_eq!(pieces.get(0..length + 1), None);
            assert_eq!(pieces.get(length..length), Some(&[][..]));
        }
        assert!(!put.put(length - 1, &[1, 2]));
        assert!(!put.put(usize::MAX, &[1, 2]));
        extended.clear();
        assert_eq!((extended.len(), extended.get(0..1)), (0, None));
    }
}
