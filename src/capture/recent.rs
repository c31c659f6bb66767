//! The newest images of the pages that were recorded last, so that the next commit need not read back what it changes.

use mycelite_journal::{Checksum, Head, Pgno, Pos};

/// Bytes of pages kept.
const BYTES_MAX: usize = 1 << 20;
/// Pages kept at most, however small.
const PAGES_MAX: usize = 256;
/// The slot of no page; page numbers begin at 1.
const EMPTY: Pgno = 0;

/// Page images as of one position of the log. They are what the log says, so they are worth as much as it: nothing, where the
/// log is not known to be the image.
#[derive(Default)]
pub struct RecentPages {
    /// The state of which these are pages; none while a record is being written.
    of: Option<Pos>,
    page_bytes: usize,
    /// None that is held has a higher number, but while a record is being written.
    page_count: u32,
    /// A page has one slot, which it shares with others.
    slots: Vec<Slot>,
}

/// Which page it holds, and its bytes: none before the first, so that a database that rests is cheap.
#[derive(Clone, Default)]
struct Slot {
    pgno: Pgno,
    page: Box<[u8]>,
    /// Of these bytes as this page, if it is known.
    checksum: Option<Checksum>,
}

impl RecentPages {
    /// Keeps only what is true at `head`, where pages have `page_bytes`.
    pub fn align(&mut self, head: &Head, page_bytes: usize) {
        if self.of == Some(head.pos) && self.page_bytes == page_bytes {
            return;
        }
        self.of = Some(head.pos);
        let slots = (BYTES_MAX / page_bytes.max(1)).min(PAGES_MAX);
        if self.page_bytes != page_bytes || self.slots.len() != slots {
            self.page_bytes = page_bytes;
            self.slots = vec![Slot::default(); slots];
        }
        self.empty();
    }

    /// The image of page `pgno`.
    pub fn get(&self, pgno: Pgno) -> Option<&[u8]> {
        self.get_known(pgno).map(|(page, _)| page)
    }

    /// The image of page `pgno`, and its checksum if that is known.
    pub fn get_known(&self, pgno: Pgno) -> Option<(&[u8], Option<Checksum>)> {
        let slot = self.slots.get(self.slot(pgno)?)?;
        (slot.pgno == pgno).then_some((&*slot.page, slot.checksum))
    }

    /// A record is being written that makes `page` the image of page `pgno`; `checksum` is that of the page, if it is known.
    pub fn put(&mut self, pgno: Pgno, page: &[u8], checksum: Option<Checksum>) {
        self.of = None;
        let slot = self.slot(pgno).and_then(|slot| self.slots.get_mut(slot));
        let (Some(slot), true) = (slot, page.len() == self.page_bytes) else {
            return;
        };
        if slot.page.is_empty() {
            slot.page = page.into();
        } else {
            slot.page.copy_from_slice(page);
        }
        slot.pgno = pgno;
        slot.checksum = checksum;
    }

    /// The record that was being written is in the log, which is at `head` now. One for which nothing was put has taken
    /// everything along: the next look finds another position.
    pub fn settle(&mut self, head: &Head) {
        if self.of.is_some() {
            return;
        }
        self.of = Some(head.pos);
        if std::mem::replace(&mut self.page_count, head.page_count) <= head.page_count {
            return;
        }
        for slot in &mut self.slots {
            if slot.pgno > head.page_count {
                slot.pgno = EMPTY;
            }
        }
    }

    /// The record that was being written is taken back.
    pub fn forget(&mut self) {
        self.of = None;
        self.empty();
    }

    fn empty(&mut self) {
        for slot in &mut self.slots {
            slot.pgno = EMPTY;
        }
    }

    fn slot(&self, pgno: Pgno) -> Option<usize> {
        (pgno as usize).checked_rem(self.slots.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mycelite_journal::{Checksum, Timeline, Txid};

    fn bytes(recent: &RecentPages) -> usize {
        recent.slots.iter().map(|slot| slot.page.len()).sum()
    }

    fn head(txid: u64, page_count: u32) -> Head {
        let mut head = Head::EMPTY;
        head.page_count = page_count;
        head.pos = Pos {
            timeline: Timeline(1),
            txid: Txid(txid),
            checksum: Checksum(txid),
        };
        head
    }

    #[test]
    fn what_is_kept_is_true_at_its_position_only() {
        let mut recent = RecentPages::default();
        assert_eq!(recent.get(1), None);
        recent.align(&head(1, 9), 512);
        assert_eq!(recent.get(1), None);
        assert_eq!(bytes(&recent), 0, "memory for pages that nobody wrote");
        recent.put(1, &[1; 512], Some(Checksum(7)));
        recent.put(9, &[9; 512], None);
        assert_eq!(bytes(&recent), 1024);
        recent.settle(&head(2, 9));
        recent.align(&head(2, 9), 512);
        assert_eq!(
            recent.get_known(1),
            Some((&[1; 512][..], Some(Checksum(7))))
        );
        assert_eq!(recent.get(9), Some(&[9; 512][..]));
        // Another page in the same slot.
        recent.put(1 + PAGES_MAX as Pgno, &[7; 512], None);
        recent.settle(&head(3, 1000));
        assert_eq!(recent.get(1), None);
        assert_eq!(recent.get(1 + PAGES_MAX as Pgno), Some(&[7; 512][..]));
        // The database shrinks.
        recent.put(2, &[2; 512], None);
        recent.settle(&head(4, 100));
        assert_eq!(recent.get(1 + PAGES_MAX as Pgno), None);
        assert_eq!(recent.get(9), Some(&[9; 512][..]));
        // A record that came to nothing.
        recent.put(9, &[8; 512], None);
        recent.align(&head(4, 100), 512);
        assert_eq!(recent.get(9), None);
        // One that somebody else wrote, and another page size.
        recent.put(9, &[8; 512], None);
        recent.settle(&head(5, 100));
        recent.align(&head(6, 100), 512);
        assert_eq!(recent.get(9), None);
        // One that holds every page is not kept, and what was before it is gone.
        recent.put(9, &[8; 512], None);
        recent.settle(&head(7, 100));
        recent.settle(&head(8, 100));
        recent.align(&head(8, 100), 512);
        assert_eq!(recent.get(9), None);
        recent.put(9, &[8; 512], None);
        recent.forget();
        recent.settle(&head(9, 100));
        assert_eq!(recent.get(9), None);
        recent.put(9, &[8; 512], None);
        recent.settle(&head(7, 100));
        recent.align(&head(7, 100), 65536);
        assert_eq!(recent.get(9), None);
        assert!(bytes(&recent) <= BYTES_MAX);
    }

    #[test]
    fn every_page_size_fits() {
        for page_bytes in [512, 4096, 65536, 2 << 20] {
            let mut recent = RecentPages::default();
            recent.align(&head(1, 9), page_bytes);
            recent.put(3, &vec![3; page_bytes], None);
            recent.settle(&head(2, 9));
            assert_eq!(recent.get(3).is_some(), page_bytes <= 65536, "{page_bytes}");
            assert!(bytes(&recent) <= BYTES_MAX);
        }
    }
}
