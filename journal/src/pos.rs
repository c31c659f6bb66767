//! Where a database is in its history, and the checksum that proves it.

use std::fmt;
use std::ops::{BitXor, BitXorAssign};
use std::str::FromStr;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A 1-based page number, as SQLite counts them.
pub type Pgno = u32;

/// Number of a recorded transaction: 1 for the first, one more for each that follows; 0 means none yet.
///
/// ```
/// use mycelite_journal::Txid;
/// assert_eq!(Txid(41).next().to_string(), "42");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Txid(pub u64);

impl Txid {
    /// The transaction after this one.
    #[must_use]
    pub fn next(self) -> Txid {
        Txid(self.0.saturating_add(1))
    }

    /// The transaction before this one; that of 0 is 0.
    #[must_use]
    pub fn previous(self) -> Txid {
        Txid(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Txid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which of several possible histories a record belongs to: grows at promotion, fork, restore in place, or repair after lost writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timeline(pub u64);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Checksum of a whole database: the XOR of [`page_checksum`] over its pages; 0 for an empty one. Printed as 16 hex digits.
///
/// ```
/// use mycelite_journal::{Checksum, page_checksum};
/// let (old, new) = ([0u8; 512], [7u8; 512]);
/// let mut database = page_checksum(1, &old) ^ page_checksum(2, &old);
/// // Page 2 changes: its old content goes out, its new content comes in.
/// database ^= page_checksum(2, &old) ^ page_checksum(2, &new);
/// assert_eq!(database, page_checksum(1, &old) ^ page_checksum(2, &new));
/// assert_eq!(Checksum(255).to_string(), "00000000000000ff");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Checksum(pub u64);

impl BitXor for Checksum {
    type Output = Checksum;
    fn bitxor(self, other: Checksum) -> Checksum {
        Checksum(self.0 ^ other.0)
    }
}

impl BitXorAssign for Checksum {
    fn bitxor_assign(&mut self, other: Checksum) {
        self.0 ^= other.0;
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Checksum {
    type Err = ParsePosError;
    fn from_str(text: &str) -> Result<Checksum, ParsePosError> {
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ParsePosError("a checksum is 16 hex digits"));
        }
        u64::from_str_radix(text, 16)
            .map(Checksum)
            .map_err(|_| ParsePosError("a checksum is 16 hex digits"))
    }
}

/// Checksum of one page: XXH3-64 of its bytes, seeded with its number, so that pages which swap places are noticed.
#[must_use]
pub fn page_checksum(pgno: Pgno, page: &[u8]) -> Checksum {
    Checksum(xxh3_64_with_seed(page, u64::from(pgno)))
}

/// A page size that SQLite allows: a power of two from 512 to 65536.
///
/// ```
/// use mycelite_journal::PageSize;
/// assert!(PageSize::new(1000).is_none());
/// // The page at 1 GiB holds SQLite's locks and no data.
/// assert_eq!(PageSize::new(4096).map(PageSize::lock_page), Some(262145));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize(u32);

impl PageSize {
    /// The smallest page size, 512 bytes.
    pub const MIN: PageSize = PageSize(512);

    /// `None` unless `bytes` is a power of two from 512 to 65536.
    #[must_use]
    pub fn new(bytes: u32) -> Option<PageSize> {
        ((512..=65536).contains(&bytes) && bytes.is_power_of_two()).then_some(PageSize(bytes))
    }

    /// Bytes per page.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }

    /// Bytes per page, for slices.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.0 as usize
    }

    /// The page that holds SQLite's lock bytes (offset 0x40000000). It is not part of the image.
    #[must_use]
    pub fn lock_page(self) -> Pgno {
        0x4000_0000 / self.0 + 1
    }

    /// Byte offset of a page in the database file. Pages count from 1.
    #[must_use]
    pub fn offset(self, pgno: Pgno) -> u64 {
        u64::from(pgno.saturating_sub(1)) * u64::from(self.0)
    }

    /// How many of the pages `from + 1 ..= to` belong to the image: all but the lock-byte page.
    #[must_use]
    pub fn pages_between(self, from: u32, to: u32) -> u32 {
        let lock = self.lock_page();
        to.saturating_sub(from) - u32::from(from < lock && lock <= to)
    }
}

/// Where a database is: the last transaction in it, the timeline of that, and the checksum of all its pages.
///
/// Printed and parsed as `timeline/txid/checksum`.
///
/// ```
/// use mycelite_journal::Pos;
/// let pos: Pos = "1/42/00000000000000ff".parse()?;
/// assert_eq!(pos.txid.0, 42);
/// assert_eq!(pos.to_string(), "1/42/00000000000000ff");
/// # Ok::<(), mycelite_journal::ParsePosError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pos {
    /// The timeline of the last transaction.
    pub timeline: Timeline,
    /// The last transaction.
    pub txid: Txid,
    /// The checksum of the database after it.
    pub checksum: Checksum,
}

impl Pos {
    /// Before the first transaction: nothing there.
    pub const ZERO: Pos = Pos {
        timeline: Timeline(0),
        txid: Txid(0),
        checksum: Checksum(0),
    };
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.timeline, self.txid, self.checksum)
    }
}

/// A text that is not a [`Pos`], [`Checksum`] or [`DatabaseId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParsePosError(&'static str);

impl fmt::Display for ParsePosError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for ParsePosError {}

/// Digits only: no sign, no blanks, which `u64::from_str` would partly allow.
fn decimal(text: &str) -> Result<u64, ParsePosError> {
    const WHAT: ParsePosError = ParsePosError(
        "a position is timeline/txid/checksum: two decimal numbers and 16 hex digits",
    );
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(WHAT);
    }
    text.parse().map_err(|_| WHAT)
}

impl FromStr for Pos {
    type Err = ParsePosError;
    fn from_str(text: &str) -> Result<Pos, ParsePosError> {
        let mut parts = text.split('/');
        let mut part = || parts.next().unwrap_or("");
        let pos = Pos {
            timeline: Timeline(decimal(part())?),
            txid: Txid(decimal(part())?),
            checksum: part().parse()?,
        };
        match parts.next() {
            None => Ok(pos),
            Some(_) => Err(ParsePosError("a position has three parts")),
        }
    }
}

/// The name of a database's history, made once at random and the same on every replica. Printed as 32 hex digits.
///
/// ```
/// use mycelite_journal::DatabaseId;
/// let id: DatabaseId = "000102030405060708090a0b0c0d0e0f".parse()?;
/// assert_eq!(id.0[15], 15);
/// # Ok::<(), mycelite_journal::ParsePosError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatabaseId(pub [u8; 16]);

impl fmt::Display for DatabaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for DatabaseId {
    type Err = ParsePosError;
    fn from_str(text: &str) -> Result<DatabaseId, ParsePosError> {
        const WHAT: ParsePosError = ParsePosError("a database id is 32 hex digits");
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(WHAT);
        }
        // A u128 printed in hex has its most significant byte first, as the id has its first.
        let value = u128::from_str_radix(text, 16).map_err(|_| WHAT)?;
        let mut bytes = value.to_le_bytes();
        bytes.reverse();
        Ok(DatabaseId(bytes))
    }
}
