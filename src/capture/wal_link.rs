//! The link between the log's head and a place in the WAL.

use crate::capture::header::be32;
use crate::capture::positioned::overwrite;
use crate::capture::wal::{FRAME_HEADER_BYTES, WalHeader};
use crate::error::{Error, Result};
use crate::vfs::Base;
use mycelite_journal::{Checksum, Head, Txid, WalCursor};
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// Says how much of the WAL the log's head contains, where no record says it.
///
/// Records carry the cursor of the commit that they hold. A new WAL generation has no record yet, and an image that was
/// compared and found equal gets none: there the process that knows leaves this link in the log directory.
///
/// ```text
///  0  8  magic "MYCELWLK"    16  4+4  salts                  32  8  checksum of the head
///  8  8  Txid of the head    24  4    frame (see below)      40  8  XXH3-64 of bytes 0..40
///                            28  4    zero
/// ```
/// The running checksum at the frame is read from the WAL itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalLink {
    /// The head that contains the frames. A power cut may take its record, so that another gets its Txid.
    pub head: (Txid, Checksum),
    /// The WAL generation.
    pub salt: [u32; 2],
    /// Frames of that generation that the head contains.
    pub frame: u32,
}

impl WalLink {
    const FILE: &'static str = "wal-link";
    const MAGIC: &'static [u8; 8] = b"MYCELWLK";

    /// Whether it was left when the log stood at `head`, in the WAL generation with these salts.
    pub fn speaks_of(&self, head: &Head, salt: [u32; 2]) -> bool {
        self.head == (head.pos.txid, head.pos.checksum) && self.salt == salt
    }

    /// Leaves the link in the log directory.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let mut bytes = [0; 48];
        bytes[..8].copy_from_slice(Self::MAGIC);
        bytes[8..16].copy_from_slice(&self.head.0.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.head.1.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.salt[0].to_le_bytes());
        bytes[20..24].copy_from_slice(&self.salt[1].to_le_bytes());
        bytes[24..28].copy_from_slice(&self.frame.to_le_bytes());
        let hash = xxh3_64(&bytes[..40]);
        bytes[40..].copy_from_slice(&hash.to_le_bytes());
        let path = dir.join(Self::FILE);
        overwrite(&path, &bytes).map_err(|e| Error::io("cannot write", &path, &e))
    }

    /// The link in the log directory, if one is there and whole.
    pub fn read(dir: &Path) -> Option<WalLink> {
        let bytes: [u8; 48] = std::fs::read(dir.join(Self::FILE)).ok()?.try_into().ok()?;
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        if &bytes[..8] != Self::MAGIC || long(40)? != xxh3_64(&bytes[..40]) {
            return None;
        }
        Some(WalLink {
            head: (Txid(long(8)?), Checksum(long(32)?)),
            salt: [word(16)?, word(20)?],
            frame: word(24)?,
        })
    }

    /// The cursor in `wal` that the link stands for; `None` when it speaks of another generation, or of a frame that is lost.
    ///
    /// # Errors
    /// A failed read.
    pub fn cursor(&self, wal: &dyn Base, header: &WalHeader) -> Result<Option<WalCursor>> {
        if self.salt != header.salt {
            return Ok(None);
        }
        if self.frame == 0 {
            return Ok(Some(header.start()));
        }
        let mut frame = [0; FRAME_HEADER_BYTES];
        if wal.read_at(&mut frame, header.offset(self.frame))? < FRAME_HEADER_BYTES {
            return Ok(None);
        }
        let checksum = [be32(&frame, 16), be32(&frame, 20)].map(Option::unwrap_or_default);
        Ok(Some(WalCursor {
            salt: self.salt,
            frame: self.frame,
            checksum,
        }))
    }
}
