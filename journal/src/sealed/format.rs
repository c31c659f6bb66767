//! The fixed structures of a block file: names, header, footer.

use xxhash_rust::xxh3::xxh3_64;

use crate::bytes::{Put, Take};
use crate::cursor::Head;
use crate::error::FormatError;
use crate::pos::{Checksum, DatabaseId, PageSize, Pos, Timeline, Txid};
use crate::record::{VERSION, WalCursor, check_hash};
use crate::segment::SEGMENT_HEADER_LEN;

pub(crate) const HEADER_LEN: usize = SEGMENT_HEADER_LEN;
pub(crate) const FOOTER_LEN: usize = 192;
const FOOTER_MAGIC: [u8; 8] = *b"MYCELFTR";
/// The file that a block file is until it is complete has this after its name.
pub(crate) const TEMP_SUFFIX: &str = ".new";

/// What a block file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The records of one segment.
    Sealed,
    /// Every page as of one transaction.
    Snapshot,
    /// The states after some of the transactions of a range.
    Merged,
}

impl Kind {
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Kind::Sealed => "sealed segment",
            Kind::Snapshot => "snapshot",
            Kind::Merged => "merged segment",
        }
    }

    fn magic(self) -> [u8; 8] {
        match self {
            Kind::Sealed => *b"MYCELSLD",
            Kind::Snapshot => *b"MYCELSNP",
            Kind::Merged => *b"MYCELMRG",
        }
    }

    fn code(self) -> u16 {
        match self {
            Kind::Sealed => 0,
            Kind::Snapshot => 1,
            Kind::Merged => 2,
        }
    }
}

/// The file name of the sealed segment with these first and last transactions.
///
/// ```
/// use mycelite_journal::{Txid, parse_sealed_name, sealed_name};
/// let name = sealed_name(Txid(1), Txid(42));
/// assert_eq!(name, "00000000000000000001-00000000000000000042.sealed");
/// assert_eq!(parse_sealed_name(&name), Some((Txid(1), Txid(42))));
/// assert_eq!(parse_sealed_name("00000000000000000001.seg"), None);
/// ```
#[must_use]
pub fn sealed_name(first: Txid, last: Txid) -> String {
    format!("{:020}-{:020}.sealed", first.0, last.0)
}

/// The first and last transactions of the sealed segment with this file name; `None` if it is not such a name.
#[must_use]
pub fn parse_sealed_name(name: &str) -> Option<(Txid, Txid)> {
    parse_range(name.strip_suffix(".sealed")?)
}

/// The file name of the merged segment of these first and last transactions.
///
/// ```
/// use mycelite_journal::{Txid, merged_name, parse_merged_name};
/// let name = merged_name(Txid(1), Txid(42));
/// assert_eq!(name, "00000000000000000001-00000000000000000042.merged");
/// assert_eq!(parse_merged_name(&name), Some((Txid(1), Txid(42))));
/// ```
#[must_use]
pub fn merged_name(first: Txid, last: Txid) -> String {
    format!("{:020}-{:020}.merged", first.0, last.0)
}

/// The first and last transactions of the merged segment with this file name; `None` if it is not such a name.
#[must_use]
pub fn parse_merged_name(name: &str) -> Option<(Txid, Txid)> {
    parse_range(name.strip_suffix(".merged")?)
}

fn parse_range(name: &str) -> Option<(Txid, Txid)> {
    let (first, last) = name.split_once('-')?;
    let (first, last) = (txid(first)?, txid(last)?);
    (first <= last).then_some((first, last))
}

/// The file name of the snapshot as of a transaction.
///
/// ```
/// use mycelite_journal::{Txid, parse_snapshot_name, snapshot_name};
/// assert_eq!(snapshot_name(Txid(42)), "00000000000000000042.snapshot");
/// assert_eq!(parse_snapshot_name("00000000000000000042.snapshot"), Some(Txid(42)));
/// ```
#[must_use]
pub fn snapshot_name(txid: Txid) -> String {
    format!("{:020}.snapshot", txid.0)
}

/// The transaction of the snapshot with this file name; `None` if it is not such a name.
#[must_use]
pub fn parse_snapshot_name(name: &str) -> Option<Txid> {
    txid(name.strip_suffix(".snapshot")?)
}

fn txid(digits: &str) -> Option<Txid> {
    if digits.len() != 20 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|&n| n != 0).map(Txid)
}

/// The header of a block file. For a sealed segment it says what the header of the raw one says; for a snapshot, what it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileHeader {
    pub(crate) kind: Kind,
    pub(crate) id: DatabaseId,
    /// Sealed and merged: where the database is before the first record. Snapshot: where it is.
    pub(crate) pos: Pos,
}

impl FileHeader {
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let put = Put::<HEADER_LEN>::new()
            .slice(&self.kind.magic())
            .u16(VERSION)
            .u16(0)
            .u32(HEADER_LEN as u32)
            .slice(&self.id.0)
            .u64(self.pos.timeline.0)
            .u64(self.pos.txid.0)
            .u64(self.pos.checksum.0);
        let hash = xxh3_64(put.so_far());
        put.u64(hash).done()
    }

    pub(crate) fn decode(bytes: &[u8], kind: Kind) -> Result<FileHeader, FormatError> {
        let bytes = bytes
            .first_chunk::<HEADER_LEN>()
            .ok_or(FormatError::Short)?;
        let mut take = Take::new(bytes);
        if take.array()? != kind.magic() {
            return Err(FormatError::Magic(kind.noun()));
        }
        check_hash(bytes, "header")?;
        let version = take.u16()?;
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        if take.u16()? != 0 {
            return Err(FormatError::Invalid("unknown flags"));
        }
        if take.u32()? as usize != HEADER_LEN {
            return Err(FormatError::Invalid("unknown header length"));
        }
        let header = FileHeader {
            kind,
            id: DatabaseId(take.array()?),
            pos: Pos {
                timeline: Timeline(take.u64()?),
                txid: Txid(take.u64()?),
                checksum: Checksum(take.u64()?),
            },
        };
        let is_zero = header.pos.txid.0 == 0;
        if is_zero && (kind == Kind::Snapshot || header.pos != Pos::ZERO) {
            return Err(FormatError::Invalid("a history that begins with something"));
        }
        Ok(header)
    }
}

/// Where a block is in its file, and what proves it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockRef {
    pub(crate) offset: u64,
    /// Bytes in the file.
    pub(crate) stored: u32,
    /// Bytes when decompressed; the same as `stored` for a block that is not compressed.
    pub(crate) raw: u32,
    /// XXH3-64 of the bytes in the file.
    pub(crate) hash: u64,
}

impl BlockRef {
    pub(crate) fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.stored))
    }
}

/// The end of a block file: what is in it, and where its root is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Footer {
    /// The first and the last transaction; in a snapshot, both the one it is of.
    pub(crate) first: Txid,
    /// The state after the last one.
    pub(crate) head: Head,
    /// The first record's time.
    pub(crate) first_time_us: u64,
    /// Page size and count before the first record; 0 in a snapshot.
    pub(crate) pre_page_size: u32,
    pub(crate) pre_page_count: u32,
    /// Length in bytes of the raw segment, with its seal; 0 in a snapshot; in a merged segment, the number of states.
    pub(crate) segment_len: u64,
    /// Patches of all records; in a snapshot, pages.
    pub(crate) patches: u64,
    pub(crate) root: BlockRef,
}

impl Footer {
    pub(crate) fn encode(&self, header: &FileHeader) -> [u8; FOOTER_LEN] {
        let head = &self.head;
        let put = Put::<FOOTER_LEN>::new()
            .slice(&FOOTER_MAGIC)
            .u16(VERSION)
            .u16(header.kind.code())
            .zeros(4)
            .u64(self.first.0)
            .u64(head.pos.txid.0)
            .u64(head.pos.timeline.0)
            .u64(head.pos.checksum.0)
            .u64(self.first_time_us)
            .u64(head.time_us)
            .u32(head.page_size_or_0())
            .u32(head.page_count)
            .u32(head.change_counter)
            .u32(self.pre_page_size)
            .u32(self.pre_page_count)
            .u32(head.wal.salt[0])
            .u32(head.wal.salt[1])
            .u32(head.wal.frame)
            .u32(head.wal.checksum[0])
            .u32(head.wal.checksum[1])
            .u64(self.segment_len)
            .u64(self.patches)
            .u64(self.root.offset)
            .u32(self.root.stored)
            .u32(self.root.raw)
            .u64(self.root.hash)
            .u64(self.root.end() + FOOTER_LEN as u64)
            .zeros(32);
        let hash = hash(header, put.so_far());
        put.u64(hash).done()
    }

    /// Reads the footer of the file with this header.
    pub(crate) fn decode(bytes: &[u8], header: &FileHeader) -> Result<Footer, FormatError> {
        let bytes = bytes
            .first_chunk::<FOOTER_LEN>()
            .ok_or(FormatError::Short)?;
        let mut take = Take::new(bytes);
        if take.array()? != FOOTER_MAGIC {
            return Err(FormatError::Magic("footer"));
        }
        let (covered, found) = bytes.split_last_chunk::<8>().ok_or(FormatError::Short)?;
        if hash(header, covered) != u64::from_le_bytes(*found) {
            return Err(FormatError::Hash("footer"));
        }
        let version = take.u16()?;
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        if take.u16()? != header.kind.code() {
            return Err(FormatError::Invalid("a footer of another kind of file"));
        }
        take.zeros::<4>()?;
        let first = Txid(take.u64()?);
        let txid = Txid(take.u64()?);
        let timeline = Timeline(take.u64()?);
        let checksum = Checksum(take.u64()?);
        let first_time_us = take.u64()?;
        let time_us = take.u64()?;
        let page_size = PageSize::new(take.u32()?);
        let page_size = Some(page_size.ok_or(FormatError::Invalid("impossible page size"))?);
        let page_count = take.u32()?;
        let change_counter = take.u32()?;
        let pre_page_size = take.u32()?;
        let pre_page_count = take.u32()?;
        let wal = WalCursor {
            salt: [take.u32()?, take.u32()?],
            frame: take.u32()?,
            checksum: [take.u32()?, take.u32()?],
        };
        let footer = Footer {
            first,
            head: Head {
                pos: Pos {
                    timeline,
                    txid,
                    checksum,
                },
                page_size,
                page_count,
                wal,
                change_counter,
                time_us,
            },
            first_time_us,
            pre_page_size,
            pre_page_count,
            segment_len: take.u64()?,
            patches: take.u64()?,
            root: BlockRef {
                offset: take.u64()?,
                stored: take.u32()?,
                raw: take.u32()?,
                hash: take.u64()?,
            },
        };
        if take.u64()? != footer.root.end().saturating_add(FOOTER_LEN as u64) {
            return Err(FormatError::Invalid("the file's length contradicts itself"));
        }
        take.zeros::<32>()?;
        footer.check(header)?;
        Ok(footer)
    }

    fn check(&self, header: &FileHeader) -> Result<(), FormatError> {
        let first = match header.kind {
            Kind::Sealed | Kind::Merged => header.pos.txid.next(),
            Kind::Snapshot => header.pos.txid,
        };
        if self.first != first || self.first.0 == 0 || self.head.pos.txid < self.first {
            return Err(FormatError::Invalid(
                "transactions that contradict each other",
            ));
        }
        if header.kind == Kind::Snapshot && self.head.pos != header.pos {
            return Err(FormatError::Invalid("a snapshot of two states"));
        }
        Ok(())
    }
}

/// The footer's hash covers the header too: the two belong together.
fn hash(header: &FileHeader, footer: &[u8]) -> u64 {
    const COVERED: usize = HEADER_LEN + FOOTER_LEN - 8;
    let both = Put::<COVERED>::new().slice(&header.encode()).slice(footer);
    xxh3_64(&both.done())
}
