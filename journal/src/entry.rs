//! A record in the log: its header, and its bytes and patches on demand.

use std::io::{self, Read};
use std::sync::Arc;

use crate::body::{BodyError, BodyReader};
use crate::error::{Error, Result};
use crate::patch::PatchRef;
use crate::record::{HEADER_LEN, RecordHeader};
use crate::segment::Segment;
use crate::storage::StorageFile;

pub(crate) const DAMAGE_HINT: &str =
    "restore this file from a copy of the log or from a replica; records before this one are good";

/// A published record: header and trailer were found right, the body is checked when it is read.
///
/// It stays readable when the segment's file is removed meanwhile.
///
/// ```
/// # use std::io::Read;
/// # use std::sync::Arc;
/// # use mycelite_journal::*;
/// # let dir = tempfile::tempdir()?;
/// # let storage = Arc::new(FileStorage::new(dir.path()));
/// # let mut log = Log::create(storage.clone(), DatabaseId([7; 16]), 0)?;
/// # let mut record = log.begin(Draft::new(PageSize::MIN, 2, 1))?;
/// # record.patch(1, None, &[42; 512])?;
/// # record.patch(2, None, &[0; 512])?;
/// # record.commit()?;
/// # let mut reader = Reader::open(storage)?;
/// let entry = reader.find(Txid(1))?.ok_or("no such transaction")?;
/// let mut patches = entry.patches();
/// while let Some(patch) = patches.next()? {
///     println!("page {}: {:?}, {} ranges", patch.pgno(), patch.kind(), patch.ranges().count());
/// }
/// // The bytes as another log takes them.
/// let mut bytes = Vec::new();
/// entry.raw().read_to_end(&mut bytes)?;
/// assert_eq!(bytes.len() as u64, entry.header.record_len());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct RecordEntry {
    /// What the record says about itself.
    pub header: RecordHeader,
    /// File name of its segment.
    pub segment: Arc<str>,
    /// Offset in bytes of its header in the segment.
    pub offset: u64,
    path: Arc<str>,
    pub(crate) file: Arc<dyn StorageFile>,
}

impl RecordEntry {
    pub(crate) fn new(header: RecordHeader, segment: &Segment, offset: u64) -> RecordEntry {
        RecordEntry {
            header,
            segment: Arc::clone(&segment.name),
            offset,
            path: Arc::clone(&segment.path),
            file: Arc::clone(&segment.file),
        }
    }

    /// The record's bytes as stored: header, body and trailer, [`RecordHeader::record_len`] of them.
    #[must_use]
    pub fn raw(&self) -> impl Read + Send + 'static + use<> {
        FileRange::new(&self.file, self.offset, self.header.record_len())
    }

    /// The record's patches, in page order.
    #[must_use]
    pub fn patches(&self) -> PatchStream {
        let body = FileRange::new(
            &self.file,
            self.offset + HEADER_LEN as u64,
            self.header.body_len,
        );
        PatchStream {
            body: BodyReader::new(body, &self.header),
            entry: self.clone(),
        }
    }

    /// Reads the whole body and checks it.
    ///
    /// # Errors
    /// When the body cannot be read or is damaged.
    pub fn verify(&self) -> Result<()> {
        let mut patches = self.patches();
        while patches.next()?.is_some() {}
        Ok(())
    }

    /// The path of the segment, for messages.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn corrupt(&self, what: String) -> Error {
        Error::Corrupt {
            path: self.path.to_string(),
            offset: self.offset,
            txid: Some(self.header.txid),
            what,
            hint: DAMAGE_HINT,
        }
    }
}

impl std::fmt::Debug for RecordEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordEntry")
            .field("header", &self.header)
            .field("path", &self.path)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

/// The patches of one record, read with a bounded buffer: see [`RecordEntry::patches`].
///
/// The body's checksum is checked before the first patch is handed out if the body has at most 256 KiB, else before the last
/// 256 KiB are: what was made of the patches counts only once `next` has returned `None`.
pub struct PatchStream {
    body: BodyReader<FileRange>,
    entry: RecordEntry,
}

impl PatchStream {
    /// The next patch, or `None` after the last one.
    ///
    /// # Errors
    /// When the body cannot be read, breaks a rule of the format, or does not fit its checksum.
    #[expect(
        clippy::should_implement_trait,
        reason = "a patch borrows the stream's buffer, which Iterator cannot say"
    )]
    pub fn next(&mut self) -> Result<Option<PatchRef<'_>>> {
        let entry = &self.entry;
        self.body.next().map_err(|error| match error {
            BodyError::Source(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
                entry.corrupt("the file ends within the record".into())
            }
            BodyError::Source(source) => {
                Error::io("reading a record", entry.path.to_string(), source)
            }
            BodyError::Format(what) => entry.corrupt(what.to_string()),
        })
    }
}

/// A part of a file as a [`Read`].
pub(crate) struct FileRange {
    file: Arc<dyn StorageFile>,
    at: u64,
    left: u64,
}

impl FileRange {
    fn new(file: &Arc<dyn StorageFile>, at: u64, left: u64) -> FileRange {
        FileRange {
            file: Arc::clone(file),
            at,
            left,
        }
    }
}

impl Read for FileRange {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = (buf.len() as u64).min(self.left) as usize;
        let Some(place) = buf.get_mut(..want).filter(|place| !place.is_empty()) else {
            return Ok(0);
        };
        let count = self.file.read_at(place, self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}
