//! The first hundred bytes of a database file: the few fields that capture goes by.
//!
//! Offsets are those of SQLite's file format, section 1.3 "The Database Header".

use crate::error::{Error, ErrorKind, Result};
use crate::vfs::Base;
use mycelite_journal::PageSize;

/// Bytes of the database header.
pub const HEADER_BYTES: usize = 100;

const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// What the header of an image says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DbHeader {
    /// Bytes of a page.
    pub page_size: PageSize,
    /// Pages of the image as the header counts them, where that is kept.
    pub page_count: Option<u32>,
    /// Counts the commits made in a rollback mode.
    pub change_counter: u32,
    /// The database is in WAL mode.
    pub wal: bool,
}

impl DbHeader {
    /// Parses `bytes`, the beginning of page 1; `None` when this is no database.
    pub fn parse(bytes: &[u8]) -> Option<DbHeader> {
        if bytes.get(..16)? != MAGIC {
            return None;
        }
        let page_size = match be16(bytes, 16)? {
            1 => 65536,
            n => u32::from(n),
        };
        let change_counter = be32(bytes, 24)?;
        let in_header = be32(bytes, 28)?;
        // Writers before SQLite 3.7.0 do not keep the count; then the two counters differ.
        let valid = in_header > 0 && be32(bytes, 92)? == change_counter;
        Some(DbHeader {
            page_size: PageSize::new(page_size)?,
            page_count: valid.then_some(in_header),
            change_counter,
            wal: bytes.get(18..20)? == [2, 2],
        })
    }

    /// Reads the header of the rollback-mode image in `db`; `None` for an empty file.
    ///
    /// # Errors
    /// A failed read, or a file that is not a database.
    pub fn read(db: &dyn Base) -> Result<Option<DbHeader>> {
        let mut bytes = [0; HEADER_BYTES];
        match db.read_at(&mut bytes, 0)? {
            0 => Ok(None),
            HEADER_BYTES => DbHeader::parse(&bytes).map(Some).ok_or_else(not_a_database),
            _ => Err(not_a_database()),
        }
    }

    /// The header in `db`; `None` where there is no database: in an empty file, and where something else was written over
    /// the header.
    ///
    /// # Errors
    /// A failed read.
    pub fn find(db: &dyn Base) -> Result<Option<DbHeader>> {
        let mut bytes = [0; HEADER_BYTES];
        let got = db.read_at(&mut bytes, 0)?;
        Ok(bytes.get(..got).and_then(DbHeader::parse))
    }

    /// Pages of an image whose file is `file_bytes` long. SQLite believes no count beyond that, which only damage can make:
    /// it refuses the file, or counts what is there, the last page also where the file ends within it.
    pub fn pages(&self, file_bytes: u64) -> u32 {
        let in_file = file_bytes.div_ceil(u64::from(self.page_size.get()));
        let in_file = u32::try_from(in_file).unwrap_or(u32::MAX);
        self.page_count.map_or(in_file, |count| count.min(in_file))
    }

    /// Pages of an image in WAL mode whose last commit frame says `committed`: that counts what the file holds, and a
    /// file may be longer than its image.
    pub fn pages_of(&self, committed: u32) -> u32 {
        self.page_count
            .map_or(committed, |count| count.min(committed))
    }
}

fn not_a_database() -> Error {
    Error::new(ErrorKind::Corrupt, "the file is not a database")
}

/// The big-endian number at `at`.
pub fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let field: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_be_bytes(field))
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let field: [u8; 2] = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(u16::from_be_bytes(field))
}
