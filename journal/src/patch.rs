//! Patches: what one transaction changed in one page.

use crate::bytes::Take;
use crate::error::FormatError;
use crate::pos::{PageSize, Pgno};

/// Bytes before a patch's ranges or page: page number, kind, range count.
pub(crate) const PATCH_HEADER_LEN: usize = 8;
/// Bytes before a range's content: offset, length - 1.
pub(crate) const RANGE_HEADER_LEN: usize = 4;
/// Unchanged bytes between two ranges up to which they are written as one.
const GAP_BYTES_MAX: usize = 8;
/// Looked at together where something has changed; long enough for the compiler to use wide registers.
const BLOCK: usize = 64;
/// Compared at once, as most of a page is as it was. Every page is a multiple of it.
const PART: usize = 512;

static ZERO_PAGE: [u8; 65536] = [0; 65536];

/// How a patch describes its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// Byte ranges over the page's previous content.
    Ranges,
    /// Byte ranges over a page of zeros: a complete page.
    Zeroed,
    /// All bytes of the page.
    Full,
}

impl PatchKind {
    pub(crate) fn code(self) -> u8 {
        match self {
            PatchKind::Ranges => 0,
            PatchKind::Zeroed => 1,
            PatchKind::Full => 2,
        }
    }

    pub(crate) fn from_code(code: u8) -> Result<PatchKind, FormatError> {
        match code {
            0 => Ok(PatchKind::Ranges),
            1 => Ok(PatchKind::Zeroed),
            2 => Ok(PatchKind::Full),
            _ => Err(FormatError::Invalid("unknown patch kind")),
        }
    }
}

/// Appends the patch that turns `old` into `new` to `out`, in the shortest of the three kinds; with no `old`, a complete page.
///
/// Returns false, with nothing appended, when `old` equals `new`. Both pages have the same length, a [`PageSize`]; a shorter
/// `old` counts as absent.
///
/// ```
/// use mycelite_journal::{PageSize, PatchRef, encode_patch};
/// let size = PageSize::new(512).ok_or("size")?;
/// let (mut old, mut new) = (vec![1u8; 512], vec![1u8; 512]);
/// new[100..103].copy_from_slice(b"abc");
///
/// let mut out = Vec::new();
/// assert!(encode_patch(&mut out, 7, Some(&old), &new));
/// assert_eq!(out.len(), 8 + 4 + 3); // patch header, range header, three bytes
///
/// let (patch, length) = PatchRef::parse(&out, size)?;
/// assert_eq!((patch.pgno(), length), (7, out.len()));
/// patch.apply(&mut old);
/// assert_eq!(old, new);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn encode_patch(out: &mut Vec<u8>, pgno: Pgno, old: Option<&[u8]>, new: &[u8]) -> bool {
    let start = out.len();
    // A full patch is the longest that may be written.
    let mut best = PATCH_HEADER_LEN + new.len();
    let mut chosen = None;
    if let Some(old) = old.filter(|old| old.len() == new.len()) {
        let found = encode_ranges(out, pgno, PatchKind::Ranges, old, new, best);
        if found == Some(0) {
            out.truncate(start);
            return false;
        }
        if found.is_some() {
            best = out.len() - start;
            chosen = Some(best);
        }
    }
    let middle = start + chosen.unwrap_or(0);
    out.truncate(middle);
    let zeros = ZERO_PAGE.get(..new.len()).unwrap_or(&ZERO_PAGE);
    if encode_ranges(out, pgno, PatchKind::Zeroed, zeros, new, best - 1).is_some() {
        out.drain(start..middle);
        return true;
    }
    out.truncate(middle);
    if chosen.is_none() {
        put_header(out, pgno, PatchKind::Full, 0);
        out.extend_from_slice(new);
    }
    true
}

pub(crate) fn put_header(out: &mut Vec<u8>, pgno: Pgno, kind: PatchKind, ranges: u16) {
    out.extend_from_slice(&pgno.to_le_bytes());
    out.extend_from_slice(&[kind.code(), 0]);
    out.extend_from_slice(&ranges.to_le_bytes());
}

/// Appends one patch of ranges; gives up with `None` (and leaves a part behind) when it would be longer than `limit` bytes.
/// Returns the number of ranges.
fn encode_ranges(
    out: &mut Vec<u8>,
    pgno: Pgno,
    kind: PatchKind,
    old: &[u8],
    new: &[u8],
    limit: usize,
) -> Option<u16> {
    let start = out.len();
    if limit < PATCH_HEADER_LEN {
        return None;
    }
    put_header(out, pgno, kind, 0);
    let mut ranges = Collected {
        new,
        from: 0,
        to: 0,
        count: 0,
    };
    let parts = old.as_chunks::<PART>().0.iter();
    for (part, (a, b)) in parts.zip(new.as_chunks::<PART>().0).enumerate() {
        if a == b {
            continue;
        }
        let blocks = a.as_chunks::<BLOCK>().0.iter();
        for (block, (a, b)) in blocks.zip(b.as_chunks::<BLOCK>().0).enumerate() {
            let changed = ranges.compare(out, part * PART + block * BLOCK, a, b);
            if changed && out.len() - start + RANGE_HEADER_LEN + ranges.open_len() > limit {
                return None;
            }
        }
    }
    ranges.end(out);
    out.get_mut(start + 6..start + 8)?
        .copy_from_slice(&ranges.count.to_le_bytes());
    Some(ranges.count)
}

/// The ranges of one patch while they are found.
struct Collected<'a> {
    new: &'a [u8],
    /// The range that may still grow: its first byte and one past its last; empty at first.
    from: usize,
    to: usize,
    /// Ranges that are written.
    count: u16,
}

impl Collected<'_> {
    fn open_len(&self) -> usize {
        self.to - self.from
    }

    /// Adds what has changed in the block at `at`; whether anything has.
    fn compare(
        &mut self,
        out: &mut Vec<u8>,
        at: usize,
        old: &[u8; BLOCK],
        new: &[u8; BLOCK],
    ) -> bool {
        let bytes = old.iter().zip(new);
        // Counted, since the compiler makes wide instructions of that, and of an early exit a chain of branches.
        let same = bytes
            .clone()
            .fold(0, |same, (a, b)| same + u8::from(a == b));
        let same = usize::from(same);
        if same == BLOCK {
            return false;
        }
        if same <= GAP_BYTES_MAX {
            // No gap inside can be long enough to end a range.
            let before = bytes.clone().position(|(a, b)| a != b).unwrap_or(0);
            let after = bytes.rev().position(|(a, b)| a != b).unwrap_or(0);
            self.add(out, at + before, at + BLOCK - after);
            return true;
        }
        let words = old.as_chunks::<8>().0.iter().zip(new.as_chunks::<8>().0);
        for (word, (a, b)) in words.enumerate() {
            let changed = u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
            if changed != 0 {
                // Little-endian: the lowest differing bit lies in the first differing byte. No gap in a word is long.
                let before = (changed.trailing_zeros() / 8) as usize;
                let after = (changed.leading_zeros() / 8) as usize;
                let at = at + word * 8;
                self.add(out, at + before, at + 8 - after);
            }
        }
        true
    }

    /// Adds changed bytes behind those before.
    #[inline(always)]
    fn add(&mut self, out: &mut Vec<u8>, first: usize, end: usize) {
        if self.open_len() == 0 || first > self.to + GAP_BYTES_MAX {
            self.end(out);
            self.from = first;
        }
        self.to = end;
    }

    /// Writes the range that was open.
    fn end(&mut self, out: &mut Vec<u8>) {
        if self.open_len() > 0 {
            put_range(out, self.new, self.from, self.to);
            self.count += 1;
        }
    }
}

fn put_range(out: &mut Vec<u8>, new: &[u8], from: usize, to: usize) {
    // Pages have at most 65536 bytes and ranges at least one: both fit 16 bits.
    out.extend_from_slice(&(from as u16).to_le_bytes());
    out.extend_from_slice(&((to - from - 1) as u16).to_le_bytes());
    out.extend_from_slice(new.get(from..to).unwrap_or_default());
}

/// A patch in its stored form, already checked: see [`PatchRef::parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchRef<'a> {
    pgno: Pgno,
    kind: PatchKind,
    /// The ranges with their headers, or the whole page.
    content: &'a [u8],
}

impl<'a> PatchRef<'a> {
    /// Parses the patch at the front of `bytes`; returns it and its length. [`FormatError::Short`] means that more bytes may help.
    ///
    /// # Errors
    /// When the bytes are not a patch for pages of this size.
    pub fn parse(
        bytes: &'a [u8],
        page_size: PageSize,
    ) -> Result<(PatchRef<'a>, usize), FormatError> {
        let mut fields = Take::new(bytes);
        let pgno = fields.u32()?;
        let kind = PatchKind::from_code(fields.array::<1>()?[0])?;
        fields.zeros::<1>()?;
        let ranges = fields.u16()?;
        if pgno == 0 || pgno == page_size.lock_page() {
            return Err(FormatError::Invalid(
                "a patch for a page that cannot hold data",
            ));
        }
        let body = bytes.get(PATCH_HEADER_LEN..).ok_or(FormatError::Short)?;
        let length = match kind {
            PatchKind::Full if ranges != 0 => {
                return Err(FormatError::Invalid("a full page with ranges"));
            }
            PatchKind::Full => page_size.bytes(),
            PatchKind::Ranges if ranges == 0 => {
                return Err(FormatError::Invalid("a patch that changes nothing"));
            }
            PatchKind::Ranges | PatchKind::Zeroed => ranges_len(body, ranges, page_size)?,
        };
        let content = body.get(..length).ok_or(FormatError::Short)?;
        let patch = PatchRef {
            pgno,
            kind,
            content,
        };
        Ok((patch, PATCH_HEADER_LEN + length))
    }

    /// A patch whose content is known to keep the rules, but for the limit of its length.
    pub(crate) fn from_parts(pgno: Pgno, kind: PatchKind, content: &'a [u8]) -> PatchRef<'a> {
        PatchRef {
            pgno,
            kind,
            content,
        }
    }

    /// What follows the patch's header in its stored form.
    pub(crate) fn content(&self) -> &'a [u8] {
        self.content
    }

    /// A patch in stored form that this program has just made.
    pub(crate) fn trusted(stored: &'a [u8]) -> PatchRef<'a> {
        let (pgno, kind) = match stored {
            [a, b, c, d, kind, ..] => (Pgno::from_le_bytes([*a, *b, *c, *d]), *kind),
            _ => (0, 0),
        };
        let kind = PatchKind::from_code(kind).unwrap_or(PatchKind::Ranges);
        PatchRef::from_parts(
            pgno,
            kind,
            stored.get(PATCH_HEADER_LEN..).unwrap_or_default(),
        )
    }

    /// Appends the patch in stored form.
    pub(crate) fn store(&self, out: &mut Vec<u8>) {
        let ranges = match self.kind {
            PatchKind::Full => 0,
            PatchKind::Ranges | PatchKind::Zeroed => self.ranges().count() as u16,
        };
        put_header(out, self.pgno, self.kind, ranges);
        out.extend_from_slice(self.content);
    }

    /// The page, counted from 1.
    #[must_use]
    pub fn pgno(&self) -> Pgno {
        self.pgno
    }

    /// How the page is described.
    #[must_use]
    pub fn kind(&self) -> PatchKind {
        self.kind
    }

    /// Whether the patch gives every byte of the page, so that its previous content does not matter.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.kind != PatchKind::Ranges
    }

    /// The length in bytes of the stored patch.
    #[must_use]
    pub fn stored_len(&self) -> usize {
        PATCH_HEADER_LEN + self.content.len()
    }

    /// The byte ranges that are set: offset in the page and the new bytes. A full patch has one, the whole page.
    #[must_use]
    pub fn ranges(&self) -> Ranges<'a> {
        Ranges {
            rest: self.content,
            whole: self.kind == PatchKind::Full,
        }
    }

    /// Makes `page` what it is after the transaction. It has the page size's length, and unless [`PatchRef::is_complete`] it
    /// holds the content before; bytes beyond its end are left out.
    pub fn apply(&self, page: &mut [u8]) {
        if self.kind == PatchKind::Zeroed {
            page.fill(0);
        }
        for (offset, bytes) in self.ranges() {
            if let Some(place) = page.get_mut(offset..offset + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        }
    }
}

/// Checks `count` ranges and returns the bytes they take.
fn ranges_len(body: &[u8], count: u16, page_size: PageSize) -> Result<usize, FormatError> {
    let mut at = 0;
    // The first offset that the next range may have: ranges neither overlap nor touch.
    let mut free = 0;
    for _ in 0..count {
        let rest = body.get(at..).ok_or(FormatError::Short)?;
        let [a, b, c, d] = *rest.first_chunk().ok_or(FormatError::Short)?;
        let offset = usize::from(u16::from_le_bytes([a, b]));
        let length = usize::from(u16::from_le_bytes([c, d])) + 1;
        if offset < free {
            return Err(FormatError::Invalid("ranges overlap, touch or go back"));
        }
        if offset + length > page_size.bytes() {
            return Err(FormatError::Invalid("a range beyond the end of the page"));
        }
        free = offset + length + 1;
        at += RANGE_HEADER_LEN + length;
        if at > page_size.bytes() {
            return Err(FormatError::Invalid("ranges longer than the full page"));
        }
    }
    Ok(at)
}

/// The byte ranges of a patch, ascending: see [`PatchRef::ranges`].
#[derive(Clone, Debug)]
pub struct Ranges<'a> {
    rest: &'a [u8],
    whole: bool,
}

impl<'a> Iterator for Ranges<'a> {
    type Item = (usize, &'a [u8]);

    fn next(&mut self) -> Option<(usize, &'a [u8])> {
        if self.whole {
            let page = std::mem::take(&mut self.rest);
            return (!page.is_empty()).then_some((0, page));
        }
        let mut fields = Take::new(self.rest);
        let offset = usize::from(fields.u16().ok()?);
        let length = usize::from(fields.u16().ok()?) + 1;
        let (bytes, rest) = self
            .rest
            .get(RANGE_HEADER_LEN..)?
            .split_at_checked(length)?;
        self.rest = rest;
        Some((offset, bytes))
    }
}
