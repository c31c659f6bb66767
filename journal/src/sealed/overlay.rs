//! What patches say about one page, laid over each other.

use crate::patch::{PatchKind, PatchRef, RANGE_HEADER_LEN, encode_patch, put_header};
use crate::pos::{PageSize, Pgno};
use crate::sealed::limit;

/// The bytes of a page that patches have set so far, and which those are.
pub(crate) struct Overlay {
    page: Vec<u8>,
    /// One bit for each byte of the page.
    known: Vec<u64>,
    unknown: usize,
}

impl Overlay {
    /// Nothing known of a page of this size.
    pub(crate) fn new(size: PageSize) -> Overlay {
        Overlay {
            page: vec![0; size.bytes()],
            known: vec![0; size.bytes() / 64],
            unknown: size.bytes(),
        }
    }

    pub(crate) fn clear(&mut self) {
        self.known.fill(0);
        self.unknown = self.page.len();
    }

    /// Whether every byte is known.
    pub(crate) fn is_whole(&self) -> bool {
        self.unknown == 0
    }

    /// Bytes that are not known.
    pub(crate) fn unknown(&self) -> usize {
        self.unknown
    }

    /// Makes all of the page known.
    pub(crate) fn set(&mut self, page: &[u8]) {
        if self.page.len() == page.len() {
            self.page.copy_from_slice(page);
            self.known.fill(u64::MAX);
            self.unknown = 0;
        }
    }

    /// The page; where it is not known, any bytes.
    pub(crate) fn page(&self) -> &[u8] {
        &self.page
    }

    /// Lays a newer patch over what is known.
    pub(crate) fn put(&mut self, patch: &PatchRef<'_>) {
        patch.apply(&mut self.page);
        if patch.is_complete() {
            self.known.fill(u64::MAX);
            self.unknown = 0;
            return;
        }
        for (offset, bytes) in patch.ranges() {
            for (word, mask) in masks(offset, bytes.len()) {
                if let Some(known) = self.known.get_mut(word) {
                    self.unknown -= (mask & !*known).count_ones() as usize;
                    *known |= mask;
                }
            }
        }
    }

    /// Lays an older patch under what is known.
    pub(crate) fn fill(&mut self, patch: &PatchRef<'_>) {
        if self.unknown == self.page.len() {
            return self.put(patch);
        }
        for (offset, bytes) in patch.ranges() {
            self.fill_range(offset, bytes);
        }
        if patch.kind() == PatchKind::Zeroed {
            const ZEROS: [u8; 64] = [0; 64];
            for at in (0..self.page.len()).step_by(64) {
                self.fill_range(at, &ZEROS);
            }
        }
    }

    fn fill_range(&mut self, offset: usize, bytes: &[u8]) {
        for (word, mask) in masks(offset, bytes.len()) {
            let Some(known) = self.known.get_mut(word) else {
                return;
            };
            let mut fresh = mask & !*known;
            *known |= mask;
            self.unknown -= fresh.count_ones() as usize;
            while fresh != 0 {
                let bit = fresh.trailing_zeros();
                let run = (fresh >> bit).trailing_ones();
                let at = word * 64 + bit as usize;
                let from = bytes.get(at - offset..at - offset + run as usize);
                if let (Some(to), Some(from)) = (self.page.get_mut(at..at + run as usize), from) {
                    to.copy_from_slice(from);
                }
                if bit + run == 64 {
                    break;
                }
                fresh &= u64::MAX << (bit + run);
            }
        }
    }

    /// Appends all that is known as one patch in stored form. Its ranges may take more bytes than the page.
    pub(crate) fn encode(&self, pgno: Pgno, out: &mut Vec<u8>) {
        if self.is_whole() {
            encode_patch(out, pgno, None, &self.page);
            return;
        }
        let start = out.len();
        put_header(out, pgno, PatchKind::Ranges, 0);
        let mut ranges = 0u16;
        let mut at = 0;
        while let Some((from, to)) = self.run(at) {
            // A page has at most 65536 bytes, and a part that is not known.
            out.extend_from_slice(&(from as u16).to_le_bytes());
            out.extend_from_slice(&((to - from - 1) as u16).to_le_bytes());
            out.extend_from_slice(self.page.get(from..to).unwrap_or_default());
            ranges += 1;
            at = to;
        }
        if let Some(place) = out.get_mut(start + 6..start + 8) {
            place.copy_from_slice(&ranges.to_le_bytes());
        }
    }

    /// Bytes that [`Overlay::encode`] appends at most.
    pub(crate) fn encoded_len_max(&self) -> usize {
        let runs: u32 = self
            .known
            .iter()
            .map(|word| (word & !(word << 1)).count_ones())
            .sum();
        8 + self.page.len() - self.unknown + runs as usize * RANGE_HEADER_LEN
    }

    /// The next run of known bytes at or after `at`.
    fn run(&self, at: usize) -> Option<(usize, usize)> {
        let from = self.next(at, true)?;
        Some((from, self.next(from, false).unwrap_or(self.page.len())))
    }

    /// The next byte that is known, or that is not.
    fn next(&self, at: usize, known: bool) -> Option<usize> {
        let mut word = at / 64;
        let mut keep = u64::MAX << (at % 64);
        loop {
            let bits = *self.known.get(word)?;
            let bits = if known { bits } else { !bits } & keep;
            if bits != 0 {
                return Some(word * 64 + bits.trailing_zeros() as usize);
            }
            keep = u64::MAX;
            word += 1;
        }
    }
}

/// Bytes of patches that a [`Pile`] keeps before it lays them over each other.
const PILE_BYTES_MAX: usize = limit(64 * 1024, 300);

/// What patches of one page add up to, found out only when it is asked for: of most pages it never is.
pub(crate) struct Pile {
    laid: Overlay,
    /// The patches that are not laid yet, oldest first: the kind of each, and where its content ends in `bytes`.
    kinds: Vec<(PatchKind, usize)>,
    bytes: Vec<u8>,
    /// Whether nothing was laid of the page at hand.
    is_fresh: bool,
}

impl Pile {
    /// Nothing known of a page of this size.
    pub(crate) fn new(size: PageSize) -> Pile {
        Pile {
            laid: Overlay::new(size),
            kinds: Vec::new(),
            bytes: Vec::new(),
            is_fresh: true,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.kinds.clear();
        self.bytes.clear();
        self.is_fresh = true;
    }

    /// Makes all of the page known.
    pub(crate) fn set(&mut self, page: &[u8]) {
        self.clear();
        self.laid.set(page);
        self.is_fresh = false;
    }

    /// Adds a newer patch.
    pub(crate) fn put(&mut self, patch: &PatchRef<'_>) {
        if patch.is_complete() {
            self.clear();
        } else if self.bytes.len() >= PILE_BYTES_MAX {
            self.laid();
        }
        self.bytes.extend_from_slice(patch.content());
        self.kinds.push((patch.kind(), self.bytes.len()));
    }

    /// All patches, laid over each other.
    pub(crate) fn laid(&mut self) -> &mut Overlay {
        if std::mem::take(&mut self.is_fresh) {
            self.laid.clear();
        }
        let mut start = 0;
        for (kind, end) in self.kinds.drain(..) {
            let content = self.bytes.get(start..end).unwrap_or_default();
            self.laid.put(&PatchRef::from_parts(0, kind, content));
            start = end;
        }
        self.bytes.clear();
        &mut self.laid
    }
}

/// The words that a range of bits lies in, with its bits in each.
fn masks(offset: usize, length: usize) -> impl Iterator<Item = (usize, u64)> {
    let end = offset + length;
    (offset / 64..end.div_ceil(64)).map(move |word| {
        let from = offset.saturating_sub(word * 64);
        let to = (end - word * 64).min(64);
        (word, u64::MAX << from & u64::MAX >> (64 - to))
    })
}
