//! A file of consecutive records: its name and its header.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::bytes::{Put, Take};
use crate::error::{Error, FormatError, Result};
use crate::pos::{Checksum, DatabaseId, Pos, Timeline, Txid};
use crate::record::{VERSION, check_hash};
use crate::sealed::format::parse_sealed_name;
use crate::sealed::view::RawView;
use crate::storage::{OpenMode, Storage, StorageFile, read_up_to};

/// Length of a segment's header in bytes.
pub(crate) const SEGMENT_HEADER_LEN: usize = 64;
const MAGIC: [u8; 8] = *b"MYCELSEG";
/// Length of a segment's seal in bytes.
pub(crate) const SEAL_LEN: usize = 32;
pub(crate) const SEAL_MAGIC: [u8; 8] = *b"MYCELNXT";

/// The next record goes into a new segment when the last one is longer than this, in bytes (default of [`crate::Log`]).
pub const SEGMENT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// The same, when it has this many records: a raw segment is indexed in memory whenever a past state is opened out of it.
pub const SEGMENT_RECORDS_MAX: u64 = 16 * 1024;

/// The file name of the segment whose first transaction is `first`.
///
/// ```
/// use mycelite_journal::{Txid, parse_segment_name, segment_name};
/// assert_eq!(segment_name(Txid(42)), "00000000000000000042.seg");
/// assert_eq!(parse_segment_name("00000000000000000042.seg"), Some(Txid(42)));
/// assert_eq!(parse_segment_name("meta"), None);
/// ```
#[must_use]
pub fn segment_name(first: Txid) -> String {
    format!("{:020}.seg", first.0)
}

/// The first transaction of the segment with this file name; `None` if it is not a segment's name.
#[must_use]
pub fn parse_segment_name(name: &str) -> Option<Txid> {
    let digits = name.strip_suffix(".seg")?;
    if digits.len() != 20 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|&n| n != 0).map(Txid)
}

/// What a segment says about itself and about where it begins.
///
/// ```
/// use mycelite_journal::{Checksum, DatabaseId, Pos, SegmentHeader, Timeline, Txid};
/// let header = SegmentHeader {
///     id: DatabaseId([7; 16]),
///     follows: Pos { timeline: Timeline(1), txid: Txid(41), checksum: Checksum(5) },
/// };
/// assert_eq!(header.first(), Txid(42));
/// assert_eq!(SegmentHeader::decode(&header.encode())?, header);
/// # Ok::<(), mycelite_journal::FormatError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The database's id.
    pub id: DatabaseId,
    /// Where the database is before the segment's first record.
    pub follows: Pos,
}

impl SegmentHeader {
    /// The segment's first transaction.
    #[must_use]
    pub fn first(&self) -> Txid {
        self.follows.txid.next()
    }

    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_LEN] {
        let put = Put::<SEGMENT_HEADER_LEN>::new()
            .slice(&MAGIC)
            .u16(VERSION)
            .u16(0)
            .u32(SEGMENT_HEADER_LEN as u32)
            .slice(&self.id.0)
            .u64(self.follows.timeline.0)
            .u64(self.first().0)
            .u64(self.follows.checksum.0);
        let hash = xxh3_64(put.so_far());
        put.u64(hash).done()
    }

    /// Reads the stored form from the front of `bytes`.
    ///
    /// # Errors
    /// When the bytes are too few, damaged, or of another version.
    pub fn decode(bytes: &[u8]) -> Result<SegmentHeader, FormatError> {
        let bytes = bytes
            .first_chunk::<SEGMENT_HEADER_LEN>()
            .ok_or(FormatError::Short)?;
        let mut take = Take::new(bytes);
        if take.array()? != MAGIC {
            return Err(FormatError::Magic("segment header"));
        }
        check_hash(bytes, "segment header")?;
        let version = take.u16()?;
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        if take.u16()? != 0 {
            return Err(FormatError::Invalid("unknown flags"));
        }
        if take.u32()? as usize != SEGMENT_HEADER_LEN {
            return Err(FormatError::Invalid("unknown header length"));
        }
        let id = DatabaseId(take.array()?);
        let timeline = Timeline(take.u64()?);
        let first = take.u64()?;
        if first == 0 {
            return Err(FormatError::Invalid("transaction number 0"));
        }
        let follows = Pos {
            timeline,
            txid: Txid(first - 1),
            checksum: Checksum(take.u64()?),
        };
        if first == 1 && follows != Pos::ZERO {
            return Err(FormatError::Invalid("a history that begins with something"));
        }
        Ok(SegmentHeader { id, follows })
    }
}

/// The end of a segment that another one follows: nothing is appended to it any more.
///
/// ```
/// use mycelite_journal::{DatabaseId, Pos, Seal, SegmentHeader, Txid};
/// let header = SegmentHeader { id: DatabaseId([7; 16]), follows: Pos::ZERO };
/// let seal = Seal { next: Txid(42), segment_len: 10_000 };
/// assert_eq!(Seal::decode(&seal.encode(&header), &header)?, seal);
/// # Ok::<(), mycelite_journal::FormatError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The next segment's first transaction.
    pub next: Txid,
    /// Length of this segment in bytes, the seal included.
    pub segment_len: u64,
}

impl Seal {
    fn fields(&self) -> Put<SEAL_LEN> {
        Put::<SEAL_LEN>::new()
            .slice(&SEAL_MAGIC)
            .u64(self.next.0)
            .u64(self.segment_len)
    }

    fn hash_with(&self, header: &SegmentHeader) -> u64 {
        const COVERED: usize = SEGMENT_HEADER_LEN + SEAL_LEN - 8;
        let both = Put::<COVERED>::new()
            .slice(&header.encode())
            .slice(self.fields().so_far());
        xxh3_64(&both.done())
    }

    /// The stored form, bound to the segment with this header.
    #[must_use]
    pub fn encode(&self, header: &SegmentHeader) -> [u8; SEAL_LEN] {
        self.fields().u64(self.hash_with(header)).done()
    }

    /// Reads the stored form from the front of `bytes`, as the seal of the segment with this header.
    ///
    /// # Errors
    /// When the bytes are too few, damaged, or another segment's.
    pub fn decode(bytes: &[u8], header: &SegmentHeader) -> Result<Seal, FormatError> {
        let mut take = Take::new(bytes);
        if take.array()? != SEAL_MAGIC {
            return Err(FormatError::Magic("segment seal"));
        }
        let seal = Seal {
            next: Txid(take.u64()?),
            segment_len: take.u64()?,
        };
        if take.u64()? != seal.hash_with(header) {
            return Err(FormatError::Hash("segment seal"));
        }
        Ok(seal)
    }
}

/// The first transaction of a segment's file, raw or sealed.
pub(crate) fn first_of(name: &str) -> Option<Txid> {
    parse_segment_name(name).or_else(|| parse_sealed_name(name).map(|(first, _)| first))
}

pub(crate) fn list(storage: &dyn Storage) -> Result<Vec<String>> {
    storage
        .list()
        .map_err(|source| Error::io("listing the log directory", storage.display(""), source))
}

/// The first transactions of all segments, raw or sealed, ascending.
pub(crate) fn list_segments(storage: &dyn Storage) -> Result<Vec<Txid>> {
    let names = list(storage)?;
    let mut found: Vec<(Txid, Option<Txid>)> = names
        .iter()
        .filter_map(|name| match parse_sealed_name(name) {
            Some((first, last)) => Some((first, Some(last))),
            None => parse_segment_name(name).map(|first| (first, None)),
        })
        .collect();
    found.sort_unstable_by_key(|(first, last)| (*first, std::cmp::Reverse(*last)));
    let mut segments: Vec<Txid> = Vec::new();
    let mut end = None;
    for (first, last) in found {
        // One may be there in both forms while it is being sealed, and beside one that was made of it and its neighbours.
        if segments.last() != Some(&first) && Some(first) > end {
            segments.push(first);
        }
        end = end.max(last);
    }
    Ok(segments)
}

/// An open segment.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) file: Arc<dyn StorageFile>,
    pub(crate) name: Arc<str>,
    /// The name as messages show it.
    pub(crate) path: Arc<str>,
    pub(crate) header: SegmentHeader,
    /// What `file` is, if the segment is sealed.
    pub(crate) sealed: Option<Arc<RawView>>,
}

/// What opening a segment found.
pub(crate) enum Opened {
    /// A segment with a good header.
    Segment(Segment),
    /// No such file.
    Missing,
    /// The file ends within or right after a bad header: its creation was cut short, it holds nothing.
    Unborn,
}

impl Segment {
    /// Opens the segment that begins with `first`, in whichever form it is there, and checks its header.
    pub(crate) fn open(storage: &dyn Storage, id: DatabaseId, first: Txid) -> Result<Opened> {
        match Segment::open_raw(storage, id, first)? {
            Opened::Missing => {}
            opened => return Ok(opened),
        }
        // A sealed one gets its name before the raw one loses its own: it cannot be missed here.
        let names = list(storage)?;
        let sealed = names
            .iter()
            .filter_map(|name| Some((parse_sealed_name(name)?, name)))
            .filter(|(range, _)| range.0 == first)
            .max();
        let Some((_, name)) = sealed else {
            return Ok(Opened::Missing);
        };
        Ok(match RawView::open(storage, id, name)? {
            Some(view) => Opened::Segment(Segment::of_sealed(Arc::new(view))),
            None => Opened::Missing,
        })
    }

    /// Opens the sealed segment that has `txid`, not as its first; `None` if none has.
    pub(crate) fn around(
        storage: &dyn Storage,
        id: DatabaseId,
        txid: Txid,
    ) -> Result<Option<Segment>> {
        let names = list(storage)?;
        let has = |(first, last): (Txid, Txid)| first < txid && txid <= last;
        let name = names
            .iter()
            .find(|name| parse_sealed_name(name).is_some_and(has));
        let Some(name) = name else { return Ok(None) };
        let view = RawView::open(storage, id, name)?;
        Ok(view.map(|view| Segment::of_sealed(Arc::new(view))))
    }

    pub(crate) fn of_sealed(view: Arc<RawView>) -> Segment {
        Segment {
            file: Arc::clone(&view) as Arc<dyn StorageFile>,
            name: Arc::clone(&view.file.name),
            path: Arc::clone(&view.file.path),
            header: view.segment_header(),
            sealed: Some(view),
        }
    }

    /// As [`Segment::open`], for a raw segment only.
    pub(crate) fn open_raw(storage: &dyn Storage, id: DatabaseId, first: Txid) -> Result<Opened> {
        let name = segment_name(first);
        let path = || storage.display(&name);
        let file: Arc<dyn StorageFile> = match storage.open(&name, OpenMode::Read) {
            Ok(file) => file.into(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Opened::Missing);
            }
            Err(source) => return Err(Error::io("opening a segment", path(), source)),
        };
        // One byte more than the header: are there records?
        let mut bytes = [0; SEGMENT_HEADER_LEN + 1];
        let length = read_up_to(&*file, &mut bytes, 0)
            .map_err(|source| Error::io("reading a segment", path(), source))?;
        let corrupt = |what: String, hint| Error::Corrupt {
            path: path(),
            offset: 0,
            txid: Some(first),
            what,
            hint,
        };
        let header = match SegmentHeader::decode(bytes.get(..length).unwrap_or_default()) {
            Ok(header) => header,
            Err(FormatError::Version(found)) => {
                return Err(Error::Version {
                    path: path(),
                    found,
                    known: VERSION,
                });
            }
            Err(_) if length <= SEGMENT_HEADER_LEN => return Ok(Opened::Unborn),
            Err(error) => {
                return Err(corrupt(
                    error.to_string(),
                    "restore this file from a copy of the log or from a replica",
                ));
            }
        };
        if header.id != id {
            return Err(corrupt(
                format!(
                    "the segment belongs to database {}, the log to {id}",
                    header.id
                ),
                "a file was copied between logs: move it away",
            ));
        }
        if header.first() != first {
            return Err(corrupt(
                format!("the segment begins with transaction {}", header.first()),
                "the file was renamed: give it the name of its first transaction",
            ));
        }
        Ok(Opened::Segment(Segment {
            file,
            path: path().into(),
            name: name.into(),
            header,
            sealed: None,
        }))
    }

    pub(crate) fn first(&self) -> Txid {
        self.header.first()
    }
}

/// Length of all segment files in bytes, as they are: raw or sealed.
pub(crate) fn bytes_of_all(storage: &dyn Storage) -> Result<u64> {
    let mut bytes = 0;
    let names = list(storage)?;
    for name in names.into_iter().filter(|name| first_of(name).is_some()) {
        match storage.size(&name) {
            Ok(size) => bytes += size,
            // Removed since it was listed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(Error::io(
                    "reading a segment",
                    storage.display(&name),
                    source,
                ));
            }
        }
    }
    Ok(bytes)
}
