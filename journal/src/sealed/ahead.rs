//! A file that is at rest, read in large blocks which stay in memory: for whoever reads many small pieces of it, in any order.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::sealed::limit;
use crate::storage::{StorageFile, read_exact_at, read_up_to};

/// Bytes read at once.
const BLOCK_BYTES: usize = limit(256 * 1024, 700);
/// Blocks kept, those at the file's begin: a segment that its writer ended in time fits. What lies behind them is read as it is asked for,
/// so that a longer file costs no more than its reads.
const BLOCKS_MAX: usize = limit(66, 3);
const KEPT_BYTES: u64 = (BLOCK_BYTES * BLOCKS_MAX) as u64;

/// The file, and what of it is in memory.
pub(crate) struct ReadAhead {
    file: Arc<dyn StorageFile>,
    /// `None` for what was not read yet, or could not be.
    blocks: Mutex<Vec<Option<Vec<u8>>>>,
}

impl ReadAhead {
    pub(crate) fn new(file: Arc<dyn StorageFile>) -> ReadAhead {
        ReadAhead {
            file,
            blocks: Mutex::new(vec![None; BLOCKS_MAX]),
        }
    }

    /// Hands the `length` bytes at `offset` to `work`, out of a block if one has them all, else by way of `spare`. `UnexpectedEof` if
    /// the file is shorter. `work` must not read from here.
    pub(crate) fn with<T>(
        &self,
        offset: u64,
        length: usize,
        spare: &mut Vec<u8>,
        work: impl FnOnce(&[u8]) -> T,
    ) -> io::Result<T> {
        let within = (offset % BLOCK_BYTES as u64) as usize;
        if within + length <= BLOCK_BYTES && offset < KEPT_BYTES {
            let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
            let bytes = self.block(&mut blocks, offset)?;
            return match bytes.get(within..within + length) {
                Some(bytes) => Ok(work(bytes)),
                None => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
        spare.resize(length, 0);
        read_exact_at(self, spare, offset)?;
        Ok(work(spare))
    }

    /// The block that has the byte at `offset`, or would have it if the file were longer; empty where none is kept.
    fn block<'a>(&self, blocks: &'a mut [Option<Vec<u8>>], offset: u64) -> io::Result<&'a [u8]> {
        let number = offset / BLOCK_BYTES as u64;
        match blocks.get_mut(number as usize) {
            None => Ok(&[]),
            Some(Some(bytes)) => Ok(bytes),
            Some(place) => {
                let mut bytes = vec![0; BLOCK_BYTES];
                let length = read_up_to(&*self.file, &mut bytes, number * BLOCK_BYTES as u64)?;
                bytes.truncate(length);
                Ok(place.insert(bytes))
            }
        }
    }

    /// Reads from one block; 0 bytes at the file's end.
    fn read_piece(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if offset >= KEPT_BYTES {
            return self.file.read_at(buf, offset);
        }
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let block = self.block(&mut blocks, offset)?;
        let from = block.get((offset % BLOCK_BYTES as u64) as usize..);
        let from = from.unwrap_or_default();
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
        let (mut number, mut end) = (1u64, 0);
        for _ in 0..4_000 {
            number = number
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            // Anywhere, or where the last read ended.
            let offset = match number >> 62 {
                0 => (number >> 33) as usize % (content.len() + 50),
                _ => end,
            };
            let mut piece = vec![0; (number >> 20) as usize % (3 * BLOCK_BYTES)];
            end = (offset + piece.len()) % (content.len() + 50);
            let count = ahead.read_at(&mut piece, offset as u64).unwrap();
            let rest = content.get(offset..).unwrap_or_default();
            assert_eq!(count, piece.len().min(rest.len()));
            assert_eq!(piece[..count], rest[..count]);
            let (length, mut spare) = (piece.len(), Vec::new());
            let handed = ahead.with(offset as u64, length, &mut spare, <[u8]>::to_vec);
            match rest.get(..length) {
                Some(rest) => assert_eq!(handed.unwrap(), rest),
                None => assert_eq!(handed.unwrap_err().kind(), io::ErrorKind::UnexpectedEof),
            }
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
