//! A file that is at rest, read in large blocks which stay in memory: for whoever reads many small pieces of it, in any order.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::sealed::limit;
use crate::storage::{StorageFile, read_up_to};

/// Bytes read at once.
const BLOCK_BYTES: usize = limit(256 * 1024, 700);
/// Blocks kept: a segment that its writer ended in time fits.
const BLOCKS_MAX: usize = limit(66, 3);

/// The file, and the blocks that were read last: each has one place, which it shares with those a multiple of [`BLOCKS_MAX`] away.
pub(crate) struct ReadAhead {
    file: Arc<dyn StorageFile>,
    blocks: Mutex<Vec<Option<Block>>>,
}

struct Block {
    number: u64,
    bytes: Vec<u8>,
}

impl ReadAhead {
    pub(crate) fn new(file: Arc<dyn StorageFile>) -> ReadAhead {
        ReadAhead {
            file,
            blocks: Mutex::new((0..BLOCKS_MAX).map(|_| None).collect()),
        }
    }

    /// Reads from one block; 0 bytes at the file's end.
    fn read_piece(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let number = offset / BLOCK_BYTES as u64;
        let within = (offset % BLOCK_BYTES as u64) as usize;
        // A read that failed or panicked left the place empty.
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(place) = blocks.get_mut((number % BLOCKS_MAX as u64) as usize) else {
            return Ok(0);
        };
        if place.as_ref().is_none_or(|block| block.number != number) {
            let mut bytes = match place.take() {
                Some(block) => block.bytes,
                None => Vec::new(),
            };
            bytes.resize(BLOCK_BYTES, 0);
            let start = number * BLOCK_BYTES as u64;
            let length = read_up_to(&*self.file, &mut bytes, start)?;
            bytes.truncate(length);
            *place = Some(Block { number, bytes });
        }
        let bytes = place.as_ref().and_then(|block| block.bytes.get(within..));
        let from = bytes.unwrap_or_default();
        let count = from.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..count), from.get(..count)) {
            to.copy_from_slice(from);
        }
        Ok(count)
    }
}

impl StorageFile for ReadAhead {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.read_piece(rest, offset + done as u64)? {
                0 => break,
                count => done += count,
            }
        }
        Ok(done)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync(&self) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::FaultStorage;
    use crate::storage::{OpenMode, Storage};

    #[test]
    fn what_is_read_is_what_the_file_has_whatever_was_read_before() {
        let storage = FaultStorage::new();
        let file = storage.open("file", OpenMode::Create).unwrap();
        // More blocks than are kept, and a part of one at the end.
        let content: Vec<u8> = (0..(BLOCKS_MAX + 3) * BLOCK_BYTES - 123)
            .map(|at| (at * 7 + at / 251) as u8)
            .collect();
        file.write_at(&content, 0).unwrap();
        let ahead = ReadAhead::new(Arc::from(file));
        let mut number = 1u64;
        for _ in 0..2_000 {
            number = number
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let offset = (number >> 33) as usize % (content.len() + 50);
            let mut piece = vec![0; (number >> 20) as usize % (3 * BLOCK_BYTES)];
            let count = ahead.read_at(&mut piece, offset as u64).unwrap();
            let rest = content.get(offset..).unwrap_or_default();
            assert_eq!(count, piece.len().min(rest.len()));
            assert_eq!(piece[..count], rest[..count]);
        }
        assert_eq!(ahead.size().unwrap(), content.len() as u64);
    }

    #[test]
    fn nothing_is_written_through_it() {
        let storage = FaultStorage::new();
        let file = storage.open("file", OpenMode::Create).unwrap();
        let ahead = ReadAhead::new(Arc::from(file));
        assert!(ahead.write_at(b"x", 0).is_err());
        assert!(ahead.set_len(1).is_err());
        assert!(ahead.sync().is_err());
    }
}
