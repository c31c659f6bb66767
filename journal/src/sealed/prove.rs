//! Proving every state of a file by the checksum of the database.

use std::collections::HashMap;

use crate::archive::Archive;
use crate::as_of::AsOf;
use crate::error::Result;
use crate::pace::{Pace, worked};
use crate::pos::{Checksum, Pgno, Txid, page_checksum};
use crate::sealed::file::BlockFile;
use crate::sealed::index::Section;
use crate::sealed::overlay::Overlay;

/// A state: what its record says, and by what its pages' checksums differ from the state before.
struct State {
    page_count: u32,
    expected: Checksum,
    change: Checksum,
}

/// The states of one section.
struct Proof<'a> {
    file: &'a BlockFile,
    section: &'a Section,
    /// Where the pages come from that were there before; `None` where nothing of them stays.
    before: Option<AsOf>,
    /// Pages before the first state, and the fewest at any.
    page_count_before: u32,
    page_count_min: u32,
    numbers: HashMap<Txid, usize>,
    states: Vec<State>,
    /// States with fewer pages than the one before.
    shrinks: Vec<usize>,
    page: Page,
}

/// The page at hand.
struct Page {
    pgno: Pgno,
    bytes: Overlay,
    /// Its checksum at the state that was come to, while it is part of the database.
    sum: Option<Checksum>,
    /// The state behind that.
    next: usize,
    buffer: Vec<u8>,
}

/// Proves that the pages of each state that the file has give the checksum that its record says. Pages that are older than the
/// file come from `archive`.
pub(crate) fn states(archive: &Archive, file: &BlockFile, pace: &dyn Pace) -> Result<()> {
    for (number, section) in file.root.sections.iter().enumerate() {
        let end = match file.root.sections.get(number + 1) {
            Some(next) => next.first.previous(),
            None => file.range().1,
        };
        let stays = number == 0
            && file.header.pos.txid.0 > 0
            && file.footer.pre_page_size == section.page_size.get();
        let before = match stays {
            true => Some(archive.as_of(file.header.pos.txid)?),
            false => None,
        };
        let mut proof = Proof::new(file, section, before);
        proof.read_states(end)?;
        proof.read_pages(pace)?;
        proof.compare()?;
    }
    Ok(())
}

impl<'a> Proof<'a> {
    fn new(file: &'a BlockFile, section: &'a Section, before: Option<AsOf>) -> Proof<'a> {
        let page_count_before = match &before {
            Some(before) => before.page_count(),
            None => 0,
        };
        Proof {
            page_count_min: page_count_before,
            numbers: HashMap::new(),
            states: Vec::new(),
            shrinks: Vec::new(),
            page: Page {
                pgno: 0,
                bytes: Overlay::new(section.page_size),
                sum: None,
                next: 0,
                buffer: vec![0; section.page_size.bytes()],
            },
            file,
            section,
            before,
            page_count_before,
        }
    }

    fn read_states(&mut self, end: Txid) -> Result<()> {
        let mut page_count = self.page_count_before;
        self.file.each_record(|header| {
            if header.txid < self.section.first || header.txid > end {
                return Ok(());
            }
            if header.page_count < page_count {
                self.shrinks.push(self.states.len());
            }
            page_count = header.page_count;
            self.page_count_min = self.page_count_min.min(page_count);
            self.numbers.insert(header.txid, self.states.len());
            self.states.push(State {
                page_count,
                expected: header.post_checksum,
                change: Checksum(0),
            });
            Ok(())
        })
    }

    fn read_pages(&mut self, pace: &dyn Pace) -> Result<()> {
        let (file, section) = (self.file, self.section);
        file.each_patch_block(section, |block| {
            let patches = file.read_patches(section, block, None, |_| true)?;
            for entry in patches.entries.iter().filter(|entry| !entry.sum) {
                if entry.pgno != self.page.pgno {
                    self.turn_to(entry.pgno)?;
                }
                let Some(state) = self.numbers.get(&entry.txid).copied() else {
                    let what = "a patch of a state that the file does not have";
                    return Err(file.corrupt(block, Some(entry.txid), what));
                };
                self.leave_before(state);
                self.page.bytes.put(&patches.patch(entry));
                if !self.page.bytes.is_whole() {
                    let what = format!("not all of page {} is known", entry.pgno);
                    return Err(file.corrupt(block, Some(entry.txid), what));
                }
                let sum = page_checksum(entry.pgno, self.page.bytes.page());
                self.change(state, self.page.sum.unwrap_or(Checksum(0)) ^ sum);
                self.page.sum = Some(sum);
                self.page.next = state + 1;
            }
            worked(pace, u64::from(block.raw))
        })?;
        self.turn_to(Pgno::MAX)
    }

    fn change(&mut self, state: usize, change: Checksum) {
        if let Some(state) = self.states.get_mut(state) {
            state.change ^= change;
        }
    }

    /// Takes the page out of the database where it is cut off before `state`.
    fn leave_before(&mut self, state: usize) {
        let Some(sum) = self
            .page
            .sum
            .filter(|_| self.page.pgno > self.page_count_min)
        else {
            return;
        };
        let from = self.shrinks.partition_point(|at| *at < self.page.next);
        let left = self.shrinks.iter().skip(from).copied();
        let left = left.take_while(|at| *at < state).find(|at| {
            let count = self.states.get(*at).map_or(0, |state| state.page_count);
            count < self.page.pgno
        });
        if let Some(at) = left {
            self.change(at, sum);
            self.page.sum = None;
            self.page.bytes.clear();
        }
    }

    /// Ends the page at hand, passes by those that are only cut off, and begins with page `pgno`.
    fn turn_to(&mut self, pgno: Pgno) -> Result<()> {
        self.leave_before(usize::MAX);
        let from = self.page.pgno.max(self.page_count_min) + 1;
        for gone in from..pgno.min(self.page_count_before.saturating_add(1)) {
            self.begin(gone)?;
            self.leave_before(usize::MAX);
        }
        if pgno < Pgno::MAX {
            self.begin(pgno)?;
        }
        Ok(())
    }

    fn begin(&mut self, pgno: Pgno) -> Result<()> {
        let page = &mut self.page;
        page.pgno = pgno;
        page.next = 0;
        page.sum = None;
        page.bytes.clear();
        if let Some(before) = &mut self.before
            && pgno <= self.page_count_before
            && pgno != self.section.page_size.lock_page()
        {
            before.read_page(pgno, &mut page.buffer)?;
            page.bytes.set(&page.buffer);
            page.sum = Some(page_checksum(pgno, &page.buffer));
        }
        Ok(())
    }

    fn compare(&self) -> Result<()> {
        let mut sum = match &self.before {
            Some(before) => before.pos().checksum,
            None => Checksum(0),
        };
        for (number, state) in self.states.iter().enumerate() {
            sum ^= state.change;
            if sum != state.expected {
                let txid = self.numbers.iter().find(|(_, at)| **at == number);
                let what = format!(
                    "the pages have the checksum {sum}, the record says {}",
                    state.expected
                );
                let root = &self.file.footer.root;
                return Err(self.file.corrupt(root, txid.map(|(txid, _)| *txid), what));
            }
        }
        Ok(())
    }
}
