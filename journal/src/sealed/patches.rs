//! A block of patches: many patches of a few pages, ordered by page, then transaction.

use crate::bytes::{Take, put_varint};
use crate::error::FormatError;
use crate::patch::{PATCH_HEADER_LEN, PatchKind, PatchRef, RANGE_HEADER_LEN, put_header};
use crate::pos::{PageSize, Pgno, Txid};
use crate::sealed::limit;

/// A block ends with the patch that makes it this long, in bytes of the patches' stored form.
pub(crate) const PATCH_BLOCK_BYTES: usize = limit(64 * 1024, 1500);

const NEW_PAGE: u64 = 1 << 2;
const SUM: u64 = 1 << 3;

/// Where patches are ordered: by page, then by transaction.
pub(crate) type Key = (Pgno, Txid);

/// Collects the patches of one block.
#[derive(Default)]
pub(crate) struct PatchBlockBuilder {
    meta: Vec<u8>,
    data: Vec<u8>,
    /// Bytes of the patches in stored form.
    stored: usize,
    first: Option<Key>,
    last: Key,
    pages: Vec<Pgno>,
}

impl PatchBlockBuilder {
    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.stored >= PATCH_BLOCK_BYTES
    }

    pub(crate) fn first(&self) -> Option<Key> {
        self.first
    }

    /// The pages in the block, ascending.
    pub(crate) fn pages(&self) -> &[Pgno] {
        &self.pages
    }

    /// Adds the next patch in the order of keys. `base` is the file's first transaction.
    pub(crate) fn push(&mut self, base: Txid, txid: Txid, sum: bool, patch: &PatchRef<'_>) {
        let pgno = patch.pgno();
        let new_page = self.first.is_none() || pgno != self.last.0;
        let ranges = match patch.kind() {
            PatchKind::Full => 0,
            PatchKind::Ranges | PatchKind::Zeroed => patch.ranges().count() as u64,
        };
        let code = u64::from(patch.kind().code())
            | if new_page { NEW_PAGE } else { 0 }
            | if sum { SUM } else { 0 };
        put_varint(&mut self.meta, ranges << 4 | code);
        if new_page {
            put_varint(&mut self.meta, u64::from(pgno - self.last.0));
            put_varint(&mut self.meta, txid.0 - base.0);
            self.pages.push(pgno);
        } else {
            put_varint(&mut self.meta, txid.0 - self.last.1.0);
        }
        if patch.kind() == PatchKind::Full {
            self.data.extend_from_slice(patch.content());
        } else {
            let mut end = 0;
            for (offset, bytes) in patch.ranges() {
                put_varint(&mut self.meta, (offset - end) as u64);
                put_varint(&mut self.meta, bytes.len() as u64 - 1);
                end = offset + bytes.len();
                self.data.extend_from_slice(bytes);
            }
        }
        self.stored += patch.stored_len();
        self.last = (pgno, txid);
        self.first.get_or_insert(self.last);
    }

    /// Writes the block and begins the next one.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        put_varint(out, self.meta.len() as u64);
        out.extend_from_slice(&self.meta);
        out.extend_from_slice(&self.data);
        self.meta.clear();
        self.data.clear();
        self.pages.clear();
        self.stored = 0;
        self.first = None;
        self.last = Key::default();
    }
}

/// One patch in a [`PatchBlock`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct PatchEntry {
    pub(crate) pgno: Pgno,
    pub(crate) txid: Txid,
    /// Not a record's patch, but the sum of those before it.
    pub(crate) sum: bool,
    kind: PatchKind,
    /// The place of its stored form in the block's bytes.
    start: u32,
    end: u32,
}

impl PatchEntry {
    pub(crate) fn key(&self) -> Key {
        (self.pgno, self.txid)
    }
}

/// A block as it is used: every patch in its stored form.
#[derive(Default)]
pub(crate) struct PatchBlock {
    pub(crate) entries: Vec<PatchEntry>,
    bytes: Vec<u8>,
}

impl PatchBlock {
    /// Bytes of memory.
    pub(crate) fn cost(&self) -> usize {
        self.bytes.capacity() + self.entries.capacity() * size_of::<PatchEntry>()
    }

    pub(crate) fn stored(&self, entry: &PatchEntry) -> &[u8] {
        self.bytes
            .get(entry.start as usize..entry.end as usize)
            .unwrap_or_default()
    }

    pub(crate) fn patch(&self, entry: &PatchEntry) -> PatchRef<'_> {
        let content = self.stored(entry).get(PATCH_HEADER_LEN..);
        PatchRef::from_parts(entry.pgno, entry.kind, content.unwrap_or_default())
    }

    /// Reads a block back, or the patches of it that `keep` says; `base` and `size` are the file's first transaction and the
    /// pages' size. Merged patches may be `long`: their ranges take more than the page.
    pub(crate) fn decode(
        raw: &[u8],
        base: Txid,
        size: PageSize,
        long: bool,
        keep: impl Fn(Txid) -> bool,
    ) -> Result<PatchBlock, FormatError> {
        let mut take = Take::new(raw);
        let meta = take.varint()?;
        let mut meta = Take::new(take.slice(usize::try_from(meta).unwrap_or(usize::MAX))?);
        let mut data = take;
        let mut block = PatchBlock::default();
        // A patch has some bytes more in stored form, and few are shorter than that.
        block.bytes.reserve(raw.len() + raw.len() / 4);
        block.entries.reserve(raw.len() / 128);
        let mut last: Option<Key> = None;
        while !meta.is_empty() {
            let start = block.bytes.len();
            let entry = block.entry(&mut meta, &mut data, base, size, last)?;
            let length = block.bytes.len() - start;
            if !entry.sum && !long && length > PATCH_HEADER_LEN + size.bytes() {
                return Err(FormatError::Invalid("ranges longer than the full page"));
            }
            last = Some(entry.key());
            if keep(entry.txid) {
                block.entries.push(entry);
            } else {
                block.bytes.truncate(start);
            }
        }
        if !data.is_empty() {
            return Err(FormatError::Invalid("bytes behind the block's last patch"));
        }
        Ok(block)
    }

    fn entry(
        &mut self,
        meta: &mut Take<'_>,
        data: &mut Take<'_>,
        base: Txid,
        size: PageSize,
        last: Option<Key>,
    ) -> Result<PatchEntry, FormatError> {
        let code = meta.varint()?;
        let kind = PatchKind::from_code((code & 3) as u8)?;
        let sum = code & SUM != 0;
        let ranges = u16::try_from(code >> 4)
            .map_err(|_| FormatError::Invalid("more ranges than a page has bytes"))?;
        let (pgno, txid) = if code & NEW_PAGE != 0 {
            let gap = meta.varint32()?;
            if gap == 0 {
                return Err(FormatError::Invalid("patches not in page order"));
            }
            let pgno = last.map_or(0, |key| key.0).checked_add(gap);
            (pgno, base.0.checked_add(meta.varint()?))
        } else {
            let key = last.ok_or(FormatError::Invalid("a patch of no page"))?;
            let gap = meta.varint()?;
            if gap == 0 && !sum {
                return Err(FormatError::Invalid("two patches of a page in one record"));
            }
            (Some(key.0), key.1.0.checked_add(gap))
        };
        let (Some(pgno), Some(txid)) = (pgno, txid) else {
            return Err(FormatError::Invalid("page or transaction out of bounds"));
        };
        if pgno == size.lock_page() {
            return Err(FormatError::Invalid(
                "a patch for a page that cannot hold data",
            ));
        }
        let start = self.bytes.len();
        put_header(&mut self.bytes, pgno, kind, ranges);
        match kind {
            PatchKind::Full if ranges != 0 => {
                return Err(FormatError::Invalid("a full page with ranges"));
            }
            PatchKind::Full => self.bytes.extend_from_slice(data.slice(size.bytes())?),
            PatchKind::Ranges if ranges == 0 => {
                return Err(FormatError::Invalid("a patch that changes nothing"));
            }
            PatchKind::Ranges | PatchKind::Zeroed => self.ranges(ranges, meta, data, size)?,
        }
        let end = self.bytes.len();
        Ok(PatchEntry {
            pgno,
            txid: Txid(txid),
            sum,
            kind,
            // A block has less than a megabyte.
            start: start as u32,
            end: end as u32,
        })
    }

    fn ranges(
        &mut self,
        count: u16,
        meta: &mut Take<'_>,
        data: &mut Take<'_>,
        size: PageSize,
    ) -> Result<(), FormatError> {
        let mut end = 0u64;
        for index in 0..count {
            let gap = meta.varint32()?;
            let length = u64::from(meta.varint32()?) + 1;
            if gap == 0 && index > 0 {
                return Err(FormatError::Invalid("ranges that touch"));
            }
            let offset = end + u64::from(gap);
            end = offset + length;
            if end > u64::from(size.get()) {
                return Err(FormatError::Invalid("a range beyond the end of the page"));
            }
            let [a, b] = (offset as u16).to_le_bytes();
            let [c, d] = ((length - 1) as u16).to_le_bytes();
            let head: [u8; RANGE_HEADER_LEN] = [a, b, c, d];
            self.bytes.extend_from_slice(&head);
            self.bytes.extend_from_slice(data.slice(length as usize)?);
        }
        Ok(())
    }
}
