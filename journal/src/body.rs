//! A record's body: the rules its patches keep together, and a reader with a bounded buffer.

use std::io::{self, Read};

use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use crate::error::FormatError;
use crate::patch::{PATCH_HEADER_LEN, PatchRef};
use crate::pos::{PageSize, Pgno};
use crate::record::RecordHeader;

/// Bytes of a body held in memory at once.
pub(crate) const CHUNK: u64 = 256 * 1024;
/// The longest patch there can be has to fit.
const _: () = assert!(CHUNK as usize >= PATCH_HEADER_LEN + 65536);

/// The rules that span patches: order, bounds, completeness, count.
pub(crate) struct BodyCheck {
    page_size: PageSize,
    page_count: u32,
    /// Pages 1..=this have content before the record that a patch may build on.
    old_pages: u32,
    /// Patches still to come.
    left: u32,
    /// Pages without content before the record whose patch is still to come.
    fresh_left: u32,
    last: Pgno,
}

impl BodyCheck {
    pub(crate) fn new(header: &RecordHeader) -> BodyCheck {
        BodyCheck {
            page_size: header.page_size,
            page_count: header.page_count,
            old_pages: header.old_pages(),
            left: header.patch_count,
            fresh_left: header.new_pages(),
            last: 0,
        }
    }

    pub(crate) fn accept(&mut self, patch: &PatchRef<'_>) -> Result<(), FormatError> {
        let pgno = patch.pgno();
        self.left = self
            .left
            .checked_sub(1)
            .ok_or(FormatError::Invalid("more patches than announced"))?;
        if pgno <= self.last {
            return Err(FormatError::Invalid("patches not in page order"));
        }
        if pgno > self.page_count {
            return Err(FormatError::Invalid(
                "a patch beyond the end of the database",
            ));
        }
        if pgno > self.old_pages {
            if !patch.is_complete() {
                return Err(FormatError::Invalid("a new page that is not complete"));
            }
            self.fresh_left -= 1;
        }
        self.last = pgno;
        Ok(())
    }

    pub(crate) fn finish(&self) -> Result<(), FormatError> {
        if self.left != 0 {
            return Err(FormatError::Invalid("fewer patches than announced"));
        }
        if self.fresh_left != 0 {
            return Err(FormatError::Invalid("a new page without a patch"));
        }
        Ok(())
    }
}

/// Checks a body that is in memory.
pub(crate) fn check_body(body: &[u8], header: &RecordHeader) -> Result<(), FormatError> {
    each_patch(body, header, |_| ())
}

/// As [`check_body`]; hands each patch to `work` once it is found good, and none if the hash is wrong.
pub(crate) fn each_patch(
    mut body: &[u8],
    header: &RecordHeader,
    mut work: impl FnMut(&PatchRef<'_>),
) -> Result<(), FormatError> {
    if body.len() as u64 != header.body_len {
        return Err(FormatError::Short);
    }
    if xxh3_64(body) != header.body_hash {
        return Err(FormatError::Hash("record body"));
    }
    let mut check = BodyCheck::new(header);
    while !body.is_empty() {
        let (patch, length) = PatchRef::parse(body, header.page_size)?;
        check.accept(&patch)?;
        work(&patch);
        body = body.get(length..).unwrap_or_default();
    }
    check.finish()
}

/// Why a body could not be read.
pub(crate) enum BodyError {
    Source(io::Error),
    Format(FormatError),
}

impl From<FormatError> for BodyError {
    fn from(error: FormatError) -> BodyError {
        BodyError::Format(error)
    }
}

/// Reads a body patch by patch. The hash is checked as soon as the last byte is in the buffer: for a body of up to 256 KiB
/// before its first patch is handed out, for a longer one before its last 256 KiB are.
pub(crate) struct BodyReader<R> {
    source: R,
    buf: Vec<u8>,
    /// The unparsed part of `buf`.
    start: usize,
    end: usize,
    /// Body bytes not yet read from the source.
    unread: u64,
    hasher: Option<Box<Xxh3Default>>,
    hash: u64,
    check: BodyCheck,
}

impl<R: Read> BodyReader<R> {
    /// `source` gives the body's bytes; no more than the header announces are taken.
    pub(crate) fn new(source: R, header: &RecordHeader) -> BodyReader<R> {
        BodyReader {
            source,
            buf: Vec::new(),
            start: 0,
            end: 0,
            unread: header.body_len,
            hasher: None,
            hash: header.body_hash,
            check: BodyCheck::new(header),
        }
    }

    /// The next patch, or `None` after the last one, when everything was found right.
    pub(crate) fn next(&mut self) -> Result<Option<PatchRef<'_>>, BodyError> {
        let page_size = self.check.page_size;
        if self.buf.is_empty() && self.unread == 0 {
            self.check_hash()?;
        }
        let length = loop {
            let bytes = self.buf.get(self.start..self.end).unwrap_or_default();
            match PatchRef::parse(bytes, page_size) {
                Ok((patch, length)) => {
                    self.check.accept(&patch)?;
                    break length;
                }
                Err(FormatError::Short) if self.unread > 0 => self.fill()?,
                Err(FormatError::Short) if bytes.is_empty() => {
                    self.check.finish()?;
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        };
        let from = self.start;
        self.start += length;
        let bytes = self.buf.get(from..self.start).unwrap_or_default();
        Ok(Some(PatchRef::parse(bytes, page_size)?.0))
    }

    /// Reads on until the buffer is full or the body is all there.
    fn fill(&mut self) -> Result<(), BodyError> {
        if self.buf.is_empty() {
            let size = self.unread.min(CHUNK);
            self.buf.resize(size as usize, 0);
        }
        self.buf.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let from = self.end;
        let room = (self.buf.len() - from) as u64;
        let goal = from + self.unread.min(room) as usize;
        while let Some(place) = self.buf.get_mut(self.end..goal).filter(|p| !p.is_empty()) {
            match self.source.read(place) {
                Ok(0) => return Err(BodyError::Source(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(BodyError::Source(error)),
            }
        }
        self.unread -= (goal - from) as u64;
        if self.unread > 0 || self.hasher.is_some() {
            let hasher = self.hasher.get_or_insert_default();
            hasher.update(self.buf.get(from..goal).unwrap_or_default());
        }
        if self.unread == 0 {
            self.check_hash()?;
        }
        Ok(())
    }

    fn check_hash(&self) -> Result<(), FormatError> {
        let found = match &self.hasher {
            Some(hasher) => hasher.digest(),
            None => xxh3_64(self.buf.get(..self.end).unwrap_or_default()),
        };
        if found == self.hash {
            Ok(())
        } else {
            Err(FormatError::Hash("record body"))
        }
    }

    /// Gives the source back.
    pub(crate) fn into_source(self) -> R {
        self.source
    }
}
