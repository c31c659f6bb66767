//! One transaction as bytes: header, patches, trailer.

use xxhash_rust::xxh3::xxh3_64;

use crate::bytes::{Put, Take};
use crate::error::FormatError;
use crate::patch::PATCH_HEADER_LEN;
use crate::pos::{Checksum, PageSize, Pos, Timeline, Txid};

/// Length of a record's header in bytes.
pub(crate) const HEADER_LEN: usize = 128;
/// Length of a record's trailer in bytes.
pub(crate) const TRAILER_LEN: usize = 32;
/// The shortest record: no patches.
pub(crate) const RECORD_LEN_MIN: u64 = (HEADER_LEN + TRAILER_LEN) as u64;

const HEADER_MAGIC: [u8; 8] = *b"MYCELREC";
pub(crate) const TRAILER_MAGIC: [u8; 8] = *b"MYCELEND";
/// The format version that this program writes, and the only one it reads.
pub(crate) const VERSION: u16 = 1;

/// The record holds a difference found by comparing the database with the log, not one transaction.
pub const FLAG_REBASE: u16 = 1;
/// The record holds the first content of a database that had data before it had a log.
pub const FLAG_ADOPT: u16 = 2;
const FLAGS_KNOWN: u16 = FLAG_REBASE | FLAG_ADOPT;

/// How far the log has followed SQLite's write-ahead log: the frames of one WAL generation (its salts) that it contains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct WalCursor {
    /// The generation's salts, from the WAL's header.
    pub salt: [u32; 2],
    /// Frames of this generation that the log contains; 0: none.
    pub frame: u32,
    /// The WAL's running checksum after that frame.
    pub checksum: [u32; 2],
}

/// Everything that a record says about itself before its patches.
///
/// ```
/// use mycelite_journal::*;
/// let header = RecordHeader {
///     page_size: PageSize::new(4096).ok_or("size")?,
///     timeline: Timeline(1),
///     txid: Txid(1),
///     time_us: 1_700_000_000_000_000,
///     ..RecordHeader::default()
/// };
/// assert_eq!(RecordHeader::decode(&header.encode())?, header);
/// assert_eq!(header.record_len(), 160);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// [`FLAG_REBASE`], [`FLAG_ADOPT`].
    pub flags: u16,
    /// Page size after the transaction.
    pub page_size: PageSize,
    /// The timeline it belongs to.
    pub timeline: Timeline,
    /// Its number.
    pub txid: Txid,
    /// Hybrid clock, µs since 1970: the time of recording, but always more than the record before.
    pub time_us: u64,
    /// Pages in the database after it, the lock-byte page included.
    pub page_count: u32,
    /// Pages in the database before it.
    pub pre_page_count: u32,
    /// Checksum of the database before it.
    pub pre_checksum: Checksum,
    /// Checksum of the database after it.
    pub post_checksum: Checksum,
    /// How far the log follows the WAL with this record.
    pub wal: WalCursor,
    /// Number of patches in the body.
    pub patch_count: u32,
    /// Length of the body in bytes.
    pub body_len: u64,
    /// XXH3-64 of the body.
    pub body_hash: u64,
    /// SQLite's file change counter after it (bytes 24..28 of the database), 0 if not known.
    pub change_counter: u32,
    /// Page size before it in bytes; 0: there was no database before.
    pub pre_page_size: u32,
}

impl Default for RecordHeader {
    /// An empty record for pages of 512 bytes, to be filled in.
    fn default() -> RecordHeader {
        RecordHeader {
            flags: 0,
            page_size: PageSize::MIN,
            timeline: Timeline(0),
            txid: Txid(1),
            time_us: 0,
            page_count: 0,
            pre_page_count: 0,
            pre_checksum: Checksum(0),
            post_checksum: Checksum(0),
            wal: WalCursor::default(),
            patch_count: 0,
            body_len: 0,
            body_hash: xxh3_64(&[]),
            change_counter: 0,
            pre_page_size: 0,
        }
    }
}

impl RecordHeader {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let put = Put::<HEADER_LEN>::new()
            .slice(&HEADER_MAGIC)
            .u16(VERSION)
            .u16(self.flags)
            .u32(self.page_size.get())
            .u64(self.timeline.0)
            .u64(self.txid.0)
            .u64(self.time_us)
            .u32(self.page_count)
            .u32(self.pre_page_count)
            .u64(self.pre_checksum.0)
            .u64(self.post_checksum.0)
            .u32(self.wal.salt[0])
            .u32(self.wal.salt[1])
            .u32(self.wal.frame)
            .u32(self.wal.checksum[0])
            .u32(self.wal.checksum[1])
            .u32(self.patch_count)
            .u64(self.body_len)
            .u64(self.body_hash)
            .u32(self.change_counter)
            .u32(self.pre_page_size)
            .zeros(8);
        let hash = xxh3_64(put.so_far());
        put.u64(hash).done()
    }

    /// Reads the stored form from the front of `bytes`.
    ///
    /// # Errors
    /// When the bytes are too few, damaged, of another version, or contradict each other.
    pub fn decode(bytes: &[u8]) -> Result<RecordHeader, FormatError> {
        let bytes = bytes
            .first_chunk::<HEADER_LEN>()
            .ok_or(FormatError::Short)?;
        let mut take = Take::new(bytes);
        if take.array()? != HEADER_MAGIC {
            return Err(FormatError::Magic("record header"));
        }
        // The hash before the version: a damaged version number is damage, not a newer format.
        check_hash(bytes, "record header")?;
        let version = take.u16()?;
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        let flags = take.u16()?;
        let page_size =
            PageSize::new(take.u32()?).ok_or(FormatError::Invalid("impossible page size"))?;
        let header = RecordHeader {
            flags,
            page_size,
            timeline: Timeline(take.u64()?),
            txid: Txid(take.u64()?),
            time_us: take.u64()?,
            page_count: take.u32()?,
            pre_page_count: take.u32()?,
            pre_checksum: Checksum(take.u64()?),
            post_checksum: Checksum(take.u64()?),
            wal: WalCursor {
                salt: [take.u32()?, take.u32()?],
                frame: take.u32()?,
                checksum: [take.u32()?, take.u32()?],
            },
            patch_count: take.u32()?,
            body_len: take.u64()?,
            body_hash: take.u64()?,
            change_counter: take.u32()?,
            pre_page_size: take.u32()?,
        };
        take.zeros::<8>()?;
        header.check()?;
        Ok(header)
    }

    /// The rules that need nothing but the header.
    pub(crate) fn check(&self) -> Result<(), FormatError> {
        self.check_but_body()?;
        let patches = u64::from(self.patch_count);
        let patch_len_max = PATCH_HEADER_LEN as u64 + u64::from(self.page_size.get());
        if self.body_len < patches * PATCH_HEADER_LEN as u64
            || self.body_len > patches * patch_len_max
        {
            return Err(FormatError::Invalid(
                "the body's length does not fit the number of patches",
            ));
        }
        Ok(())
    }

    pub(crate) fn check_but_body(&self) -> Result<(), FormatError> {
        let invalid = |what| Err(FormatError::Invalid(what));
        if self.flags & !FLAGS_KNOWN != 0 {
            return invalid("unknown flags");
        }
        if self.txid.0 == 0 {
            return invalid("transaction number 0");
        }
        if self.pre_page_size == 0 && (self.pre_page_count != 0 || self.pre_checksum.0 != 0) {
            return invalid("pages before, but no page size before");
        }
        if self.pre_page_size != 0 && PageSize::new(self.pre_page_size).is_none() {
            return invalid("impossible page size before");
        }
        if self.page_count == 0 && self.post_checksum.0 != 0 {
            return invalid("an empty database with a checksum");
        }
        let patches = u64::from(self.patch_count);
        if patches > u64::from(self.page_size.pages_between(0, self.page_count)) {
            return invalid("more patches than pages");
        }
        if self.patch_count < self.new_pages() {
            return invalid("fewer patches than new pages");
        }
        Ok(())
    }

    /// Where the database is after this record.
    #[must_use]
    pub fn pos(&self) -> Pos {
        Pos {
            timeline: self.timeline,
            txid: self.txid,
            checksum: self.post_checksum,
        }
    }

    /// Where the database is before this record. Its timeline is this record's: that of the record before is not stored here.
    #[must_use]
    pub fn pre_pos(&self) -> Pos {
        Pos {
            timeline: self.timeline,
            txid: self.txid.previous(),
            checksum: self.pre_checksum,
        }
    }

    /// Length in bytes of the whole record: header, body and trailer.
    #[must_use]
    pub fn record_len(&self) -> u64 {
        RECORD_LEN_MIN.saturating_add(self.body_len)
    }

    /// Pages 1..=this have content before the record that its patches may build on.
    pub(crate) fn old_pages(&self) -> u32 {
        if self.resizes() {
            0
        } else {
            self.pre_page_count
        }
    }

    /// Pages that the database did not have before: each has a patch.
    pub(crate) fn new_pages(&self) -> u32 {
        self.page_size
            .pages_between(self.old_pages(), self.page_count)
    }

    /// Whether the page size changes, so that the record must hold every page.
    #[must_use]
    pub fn resizes(&self) -> bool {
        self.pre_page_size != 0 && self.pre_page_size != self.page_size.get()
    }
}

/// The end of a record: what makes it count, and the way back from it to the record's start.
///
/// ```
/// use mycelite_journal::{RecordHeader, Trailer};
/// let header = RecordHeader::default();
/// let trailer = Trailer::of(&header);
/// assert_eq!(Trailer::decode(&trailer.encode())?, trailer);
/// # Ok::<(), mycelite_journal::FormatError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// The record's transaction.
    pub txid: Txid,
    /// Length of the whole record in bytes.
    pub record_len: u64,
    /// XXH3-64 over the record's header and the trailer's other fields.
    hash: u64,
}

impl Trailer {
    /// The trailer that belongs to `header`.
    #[must_use]
    pub fn of(header: &RecordHeader) -> Trailer {
        Trailer::of_stored(header, &header.encode())
    }

    /// As [`Trailer::of`], for who has the header's stored form.
    pub(crate) fn of_stored(header: &RecordHeader, stored: &[u8; HEADER_LEN]) -> Trailer {
        let mut trailer = Trailer {
            txid: header.txid,
            record_len: header.record_len(),
            hash: 0,
        };
        trailer.hash = trailer.hash_with(stored);
        trailer
    }

    fn fields(&self) -> Put<TRAILER_LEN> {
        Put::<TRAILER_LEN>::new()
            .slice(&TRAILER_MAGIC)
            .u64(self.txid.0)
            .u64(self.record_len)
    }

    fn hash_with(&self, header: &[u8; HEADER_LEN]) -> u64 {
        const COVERED: usize = HEADER_LEN + TRAILER_LEN - 8;
        let both = Put::<COVERED>::new()
            .slice(header)
            .slice(self.fields().so_far());
        xxh3_64(&both.done())
    }

    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> [u8; TRAILER_LEN] {
        self.fields().u64(self.hash).done()
    }

    /// Reads the stored form. Whether it belongs to a header, [`Trailer::fits`] says.
    ///
    /// # Errors
    /// When the bytes are too few, or the magic or the length is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Trailer, FormatError> {
        let mut take = Take::new(bytes);
        if take.array()? != TRAILER_MAGIC {
            return Err(FormatError::Magic("record trailer"));
        }
        let trailer = Trailer {
            txid: Txid(take.u64()?),
            record_len: take.u64()?,
            hash: take.u64()?,
        };
        if trailer.record_len < RECORD_LEN_MIN {
            return Err(FormatError::Invalid("impossible record length"));
        }
        Ok(trailer)
    }

    /// Whether this is the trailer of the record that begins with this header, so that the record exists.
    #[must_use]
    pub fn fits(&self, header: &RecordHeader) -> bool {
        self.fits_stored(header, &header.encode())
    }

    /// As [`Trailer::fits`], for who has the header's stored form.
    pub(crate) fn fits_stored(&self, header: &RecordHeader, stored: &[u8; HEADER_LEN]) -> bool {
        self.record_len == header.record_len()
            && self.txid == header.txid
            && self.hash == self.hash_with(stored)
    }
}

/// Every fixed structure ends with the XXH3-64 of all bytes before.
pub(crate) fn check_hash(bytes: &[u8], what: &'static str) -> Result<(), FormatError> {
    let (covered, hash) = bytes.split_last_chunk::<8>().ok_or(FormatError::Short)?;
    if xxh3_64(covered) == u64::from_le_bytes(*hash) {
        Ok(())
    } else {
        Err(FormatError::Hash(what))
    }
}
