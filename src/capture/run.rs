//! Reading what lies side by side in a file with one call.

use crate::error::Result;

/// Bytes that one call reads at most; a single slot may be larger.
const BYTES_MAX: usize = 64 << 10;

/// The slots of a file that were read last: pages, or frames, of one length and without a gap between them.
pub struct Run {
    slot_bytes: usize,
    buffer: Vec<u8>,
    /// The first slot in `buffer`, and how many it holds.
    first: u64,
    held: usize,
}

impl Run {
    /// Nothing read yet, of slots of `slot_bytes`.
    pub fn new(slot_bytes: usize) -> Run {
        Run {
            slot_bytes,
            buffer: Vec::new(),
            first: 0,
            held: 0,
        }
    }

    /// Bytes of a slot.
    pub fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// Whether `slot` is among those that were read last.
    pub fn holds(&self, slot: u64) -> bool {
        slot.checked_sub(self.first)
            .is_some_and(|at| at < self.held as u64)
    }

    /// The content of `slot`. Where it is not held, `read` fills a buffer from `slot` on, with as many slots as `wanted` says,
    /// which is given the most that may be: one slot at least.
    ///
    /// # Errors
    /// What `read` fails with; then nothing is held.
    pub fn get(
        &mut self,
        slot: u64,
        wanted: impl FnOnce(usize) -> usize,
        read: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<&[u8]> {
        if !self.holds(slot) {
            self.held = 0;
            let most = (BYTES_MAX / self.slot_bytes.max(1)).max(1);
            let slots = wanted(most).clamp(1, most);
            let bytes = slots * self.slot_bytes;
            if self.buffer.len() < bytes {
                self.buffer.resize(bytes, 0);
            }
            read(&mut self.buffer[..bytes])?;
            self.first = slot;
            self.held = slots;
        }
        let start = (slot - self.first) as usize * self.slot_bytes;
        Ok(&self.buffer[start..start + self.slot_bytes])
    }
}

/// How many of `numbers`, `most` of them at the most, go up by one from the first on.
pub fn neighbours(numbers: impl Iterator<Item = u32>, most: usize) -> usize {
    let mut numbers = numbers.take(most).peekable();
    let first = numbers.peek().copied().unwrap_or(u32::MAX);
    let ascending = numbers.zip(first..=u32::MAX);
    ascending
        .take_while(|(number, next)| number == next)
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};

    fn get(run: &mut Run, slot: u64, wanted: usize) -> (u8, usize) {
        let mut calls = 0;
        let content = run.get(
            slot,
            |most| {
                assert_eq!(most, BYTES_MAX / 512);
                wanted
            },
            |bytes| {
                calls += 1;
                for (at, slot_bytes) in bytes.chunks_mut(512).enumerate() {
                    slot_bytes.fill(slot as u8 + at as u8);
                }
                Ok(())
            },
        );
        let content = content.unwrap();
        assert!(content.len() == 512 && content.iter().all(|byte| *byte == content[0]));
        (content[0], calls)
    }

    #[test]
    fn what_is_held_is_not_read_again() {
        let mut run = Run::new(512);
        assert!(!run.holds(0));
        assert_eq!(get(&mut run, 7, 3), (7, 1));
        assert_eq!(get(&mut run, 9, 3), (9, 0));
        assert_eq!(get(&mut run, 8, 3), (8, 0));
        assert_eq!(get(&mut run, 10, 0), (10, 1));
        assert_eq!(get(&mut run, 11, usize::MAX), (11, 1));
        assert_eq!(get(&mut run, 11 + 127, 1), (11 + 127, 0));
        assert!(!run.holds(11 + 128) && !run.holds(10));
        assert!(run.buffer.len() <= BYTES_MAX);
    }

    #[test]
    fn of_a_read_that_fails_nothing_is_held() {
        let mut run = Run::new(512);
        get(&mut run, 7, 3);
        let failed = run.get(
            10,
            |_| 2,
            |bytes| {
                bytes.fill(1);
                Err(Error::new(ErrorKind::Io, "a bad sector"))
            },
        );
        assert!(failed.is_err());
        assert!((0..20).all(|slot| !run.holds(slot)));
    }

    #[test]
    fn neighbours_end_at_a_gap_and_at_the_most() {
        let count = |numbers: &[u32], most| neighbours(numbers.iter().copied(), most);
        assert_eq!(count(&[], 9), 0);
        assert_eq!(count(&[4], 9), 1);
        assert_eq!(count(&[4, 5, 6, 8, 9], 9), 3);
        assert_eq!(count(&[4, 6, 7], 9), 1);
        assert_eq!(count(&[4, 5, 6, 7], 2), 2);
        assert_eq!(count(&[u32::MAX - 1, u32::MAX], 9), 2);
    }
}
