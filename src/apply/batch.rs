//! From records to page images: what one SQLite transaction on the replica will write, checked against the checksums
//! that the records carry.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::VecDeque;

use mycelite_journal::{
    AsOf, Bodies, Checksum, PatchRef, Pos, RecordEntry, StorageFile, page_checksum,
};

use super::{lock_page, log_error};
use crate::error::{Error, ErrorKind, Result};

/// Records put into one batch at most; more would only delay the readers' view.
const RECORDS_MAX: usize = 4096;
/// Bytes of record bodies read for one batch at most, for records that rewrite the same pages again and again.
const BODY_BYTES_MAX: u64 = 64 << 20;

/// A database image: where it is in its history, and its size. No pages: nothing there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// The last transaction contained.
    pub pos: Pos,
    /// Bytes per page; 0 when there are no pages.
    pub page_size: u32,
    /// Pages, the lock-byte page included.
    pub page_count: u32,
}

impl State {
    /// Length of the database file in bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.page_size) * u64::from(self.page_count)
    }

    /// The state that a record leads to.
    pub fn after(entry: &RecordEntry) -> State {
        let header = &entry.header;
        State {
            pos: header.pos(),
            page_size: header.page_size.get(),
            page_count: header.page_count,
        }
    }

    /// The state that a log can show.
    pub fn of(past: &AsOf) -> State {
        State {
            pos: past.pos(),
            page_size: past.page_size().get(),
            page_count: past.page_count(),
        }
    }
}

/// Takes pages out of an image, and the new ones in.
pub(super) trait Pages {
    /// Fills `page` with a page of the image before the batch. `pgno` is at most its page count.
    fn old(&mut self, pgno: u32, page: &mut [u8]) -> Result<()>;

    /// Takes a page of the image after the batch. Page numbers ascend.
    fn put(&mut self, pgno: u32, page: &[u8]) -> Result<()>;
}

/// What leads from one state to another, as one transaction.
pub(super) struct Batch {
    /// The state that it starts from.
    pub from: State,
    /// The state that it leads to.
    pub to: State,
    /// Records contained; 0 for a rebuilt image.
    pub records: usize,
    content: Content,
}

enum Content {
    /// The changed pages, checked already.
    Pages(BTreeMap<u32, Box<[u8]>>),
    /// One record that is too large to hold, or that changes the page size: read from the log when it is needed.
    Record(RecordEntry),
    /// A whole image, of which the differing pages are written.
    Image(Box<dyn StorageFile>),
    /// The same, out of the log's snapshot.
    Snapshot(RefCell<AsOf>),
}

impl Batch {
    /// Takes records from the front of `queue` (which it leaves there) until their pages fill `bytes_max`. The old pages
    /// come from `base`. `None` if the queue is empty.
    ///
    /// # Errors
    /// `Diverged` or `Corrupt`, naming the transaction, if the first record does not fit; a later one that does not fit
    /// only ends the batch.
    pub fn build(
        from: State,
        queue: &VecDeque<RecordEntry>,
        bytes_max: u64,
        base: &mut dyn Pages,
    ) -> Result<Option<Batch>> {
        let Some(first) = queue.front() else {
            return Ok(None);
        };
        check_follows(&from, first)?;
        let resized = from.page_size != 0 && first.header.page_size.get() != from.page_size;
        if resized || page_bytes(first) > bytes_max {
            let to = State::after(first);
            let content = Content::Record(first.clone());
            return Ok(Some(Batch {
                from,
                to,
                records: 1,
                content,
            }));
        }
        let mut count = take_count(&from, queue);
        loop {
            match Overlay::build(from, queue, count, bytes_max, base) {
                Ok(batch) => return Ok(Some(batch)),
                Err((0, error)) => return Err(error),
                // The records before the bad one are good and go in; the next batch meets the bad one first.
                Err((good, _)) => count = good,
            }
        }
    }

    /// A batch that turns whatever is there into `image`, the state `to`.
    pub fn whole(from: State, to: State, image: Box<dyn StorageFile>) -> Batch {
        Batch {
            from,
            to,
            records: 0,
            content: Content::Image(image),
        }
    }

    /// A batch that makes a file of nothing out of what the log can show.
    pub fn first(past: AsOf) -> Batch {
        Batch {
            from: State::default(),
            to: State::of(&past),
            records: 0,
            content: Content::Snapshot(RefCell::new(past)),
        }
    }

    /// Whether the pages before and after have different sizes (and so no page stays what it was).
    pub fn resizes(&self) -> bool {
        self.from.page_count > 0
            && self.to.page_count > 0
            && self.from.page_size != self.to.page_size
    }

    /// Whether nothing changes in the file.
    pub fn is_empty(&self) -> bool {
        matches!(&self.content, Content::Pages(pages) if pages.is_empty())
            && self.from.page_count == self.to.page_count
    }

    /// Gives every changed page, in order, to `pages`. What was not checked when the batch was built is checked here:
    /// `Ok` means that the image after is what the record says. May be called again.
    pub fn each(&self, pages: &mut dyn Pages) -> Result<()> {
        match &self.content {
            Content::Pages(changed) => changed
                .iter()
                .try_for_each(|(pgno, page)| pages.put(*pgno, page)),
            Content::Record(entry) => walk_record(&self.from, entry, pages),
            Content::Image(image) => self.each_different(image.as_ref(), pages),
            Content::Snapshot(past) => each_of_snapshot(&mut past.borrow_mut(), pages),
        }
    }

    fn each_different(&self, image: &dyn StorageFile, pages: &mut dyn Pages) -> Result<()> {
        let size = self.to.page_size as usize;
        let (mut old, mut new) = (vec![0u8; size], vec![0u8; size]);
        let comparable = if self.from.page_size == self.to.page_size {
            self.from.page_count
        } else {
            0
        };
        for pgno in (1..=self.to.page_count).filter(|pgno| *pgno != lock_page(self.to.page_size)) {
            read_exact(
                image,
                &mut new,
                u64::from(pgno - 1) * u64::from(self.to.page_size),
            )?;
            if pgno <= comparable {
                pages.old(pgno, &mut old)?;
                if old == new {
                    continue;
                }
            }
            pages.put(pgno, &new)?;
        }
        Ok(())
    }
}

/// All pages of a state of the log, proved by its checksum.
fn each_of_snapshot(past: &mut AsOf, pages: &mut dyn Pages) -> Result<()> {
    let size = past.page_size();
    let mut page = vec![0u8; size.bytes()];
    let mut checksum = Checksum(0);
    for pgno in (1..=past.page_count()).filter(|pgno| *pgno != size.lock_page()) {
        past.read_page(pgno, &mut page).map_err(log_error)?;
        checksum ^= page_checksum(pgno, &page);
        pages.put(pgno, &page)?;
    }
    if checksum == past.pos().checksum {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Corrupt,
        format_args!(
            "the pages of the snapshot at {} have the checksum {checksum}",
            past.pos()
        ),
    )
    .hint("nothing was changed; the log is damaged: run `mycelite verify` on it"))
}

/// Reads all of `page` from a rebuilt image.
fn read_exact(image: &dyn StorageFile, page: &mut [u8], offset: u64) -> Result<()> {
    let mut done = 0;
    while done < page.len() {
        let more = image
            .read_at(&mut page[done..], offset + done as u64)
            .map_err(|error| {
                Error::new(
                    ErrorKind::Io,
                    format_args!("cannot read the rebuilt image: {error}"),
                )
            })?;
        if more == 0 {
            return Err(Error::new(
                ErrorKind::Internal,
                "the rebuilt image is too short",
            ));
        }
        done += more;
    }
    Ok(())
}

/// How many records from the front may go into one batch, if their pages fit; at least 1.
fn take_count(from: &State, queue: &VecDeque<RecordEntry>) -> usize {
    let mut body = 0u64;
    let page_size = if from.page_size == 0 {
        queue
            .front()
            .map_or(0, |first| first.header.page_size.get())
    } else {
        from.page_size
    };
    let fits = |entry: &&RecordEntry| {
        body += entry.header.body_len;
        // Where a database begins or ends, other rules hold for writing it: such records go alone.
        let goes_along = entry.header.page_count > 0 && entry.header.pre_page_count > 0;
        body <= BODY_BYTES_MAX && goes_along && entry.header.page_size.get() == page_size
    };
    queue
        .iter()
        .take(RECORDS_MAX)
        .take_while(fits)
        .count()
        .max(1)
}

/// Memory that a record's pages take at most.
fn page_bytes(entry: &RecordEntry) -> u64 {
    let header = &entry.header;
    let grown = header.page_count.saturating_sub(header.pre_page_count);
    u64::from(header.page_size.get()) * u64::from(header.patch_count.max(grown))
}

/// A page of an overlay.
struct Changed {
    page: Box<[u8]>,
    checksum: Checksum,
}

/// Changed pages over the image that is there.
struct Overlay<'a> {
    pages: BTreeMap<u32, Changed>,
    base: &'a mut dyn Pages,
    /// Pages of the base that were not cut off in between.
    base_pages: u32,
}

impl Overlay<'_> {
    /// Applies the first `count` records, or as many as fit `bytes_max`. The error says how many were good.
    fn build(
        from: State,
        queue: &VecDeque<RecordEntry>,
        count: usize,
        bytes_max: u64,
        base: &mut dyn Pages,
    ) -> Result<Batch, (usize, Error)> {
        let mut overlay = Overlay {
            pages: BTreeMap::new(),
            base,
            base_pages: from.page_count,
        };
        let mut state = from;
        let mut bodies = Bodies::default();
        let mut records = 0;
        for entry in queue.iter().take(count) {
            let held = overlay.pages.len() as u64 * u64::from(entry.header.page_size.get());
            if records > 0 && held + page_bytes(entry) > bytes_max {
                break;
            }
            let run = queue.iter().take(count).skip(records);
            let applied = check_follows(&state, entry)
                .and_then(|()| bodies.load(run).map_err(log_error))
                .and_then(|()| overlay.record(&state, entry, &bodies));
            applied.map_err(|error| (records, error))?;
            records += 1;
            state = State::after(entry);
            let _cut = overlay.pages.split_off(&state.page_count.saturating_add(1));
            overlay.base_pages = overlay.base_pages.min(state.page_count);
        }
        let pages = overlay.pages.into_iter();
        Ok(Batch {
            from,
            to: state,
            records,
            content: Content::Pages(pages.map(|(pgno, changed)| (pgno, changed.page)).collect()),
        })
    }

    /// As [`walk_record`], with the pages that are here changed where they are.
    fn record(&mut self, before: &State, entry: &RecordEntry, bodies: &Bodies) -> Result<()> {
        let size = entry.header.page_size;
        let mut checksum = match before.page_count {
            0 => Checksum(0),
            _ => before.pos.checksum,
        };
        let mut outcome = Ok(());
        let short = bodies.each_patch(entry, |patch| {
            if outcome.is_ok() {
                outcome = self.patch(before.page_count, size.bytes(), patch, &mut checksum);
            }
        });
        outcome?;
        if !short.map_err(log_error)? {
            let mut patches = entry.patches();
            while let Some(patch) = patches.next().map_err(log_error)? {
                self.patch(before.page_count, size.bytes(), &patch, &mut checksum)?;
            }
        }
        let cut = entry.header.page_count.saturating_add(1)..=before.page_count;
        for pgno in cut.filter(|pgno| *pgno != size.lock_page()) {
            checksum ^= match self.pages.get(&pgno) {
                Some(changed) => changed.checksum,
                None => self.of_base(pgno, size.bytes())?.checksum,
            };
        }
        check_after(entry, checksum)
    }

    fn patch(
        &mut self,
        old_count: u32,
        size: usize,
        patch: &PatchRef<'_>,
        checksum: &mut Checksum,
    ) -> Result<()> {
        let pgno = patch.pgno();
        if !self.pages.contains_key(&pgno) {
            let changed = match pgno <= old_count {
                true => self.of_base(pgno, size)?,
                // A patch of a page that was not there is complete.
                false => Changed {
                    page: vec![0; size].into(),
                    checksum: Checksum(0),
                },
            };
            self.pages.insert(pgno, changed);
        }
        if let Some(changed) = self.pages.get_mut(&pgno) {
            *checksum ^= changed.checksum;
            patch.apply(&mut changed.page);
            changed.checksum = page_checksum(pgno, &changed.page);
            *checksum ^= changed.checksum;
        }
        Ok(())
    }

    /// A page as it was before the batch.
    fn of_base(&mut self, pgno: u32, size: usize) -> Result<Changed> {
        if pgno > self.base_pages {
            return Err(Error::new(
                ErrorKind::Internal,
                format_args!("page {pgno} got lost in a batch"),
            ));
        }
        let mut page = vec![0; size];
        self.base.old(pgno, &mut page)?;
        Ok(Changed {
            checksum: page_checksum(pgno, &page),
            page: page.into(),
        })
    }
}

/// P5, first half: a record is only applied to the very image that it was made from.
fn check_follows(state: &State, entry: &RecordEntry) -> Result<()> {
    let header = &entry.header;
    let fits = header.txid == state.pos.txid.next()
        && header.pre_checksum == state.pos.checksum
        && header.timeline >= state.pos.timeline
        && header.pre_page_count == state.page_count
        && (header.pre_page_size == state.page_size || state.page_count == 0);
    if fits {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Diverged,
        format_args!(
            "transaction {} follows checksum {} with {} pages of {} bytes, but the file is at {} with {} of {}",
            header.txid,
            header.pre_checksum,
            header.pre_page_count,
            header.pre_page_size,
            state.pos,
            state.page_count,
            state.page_size
        ),
    )
    .hint("nothing was changed; the histories differ, or a record is missing: run `mycelite verify` on the log"))
}

/// Applies one record page by page. P5, second half: the checksum is computed from the bytes that really were there and
/// the bytes that will be, and compared before the caller commits.
fn walk_record(before: &State, entry: &RecordEntry, pages: &mut dyn Pages) -> Result<()> {
    let header = &entry.header;
    let resized = before.page_size != header.page_size.get();
    let mut walk = Walk {
        pages,
        page: vec![0u8; header.page_size.bytes()],
        old_count: if resized { 0 } else { before.page_count },
        lock_page: header.page_size.lock_page(),
        checksum: if resized {
            Checksum(0)
        } else {
            before.pos.checksum
        },
    };
    let mut patches = entry.patches();
    while let Some(patch) = patches.next().map_err(log_error)? {
        walk.patch(&patch)?;
    }
    walk.drop_after(header.page_count)?;
    check_after(entry, walk.checksum)
}

fn check_after(entry: &RecordEntry, checksum: Checksum) -> Result<()> {
    let header = &entry.header;
    if checksum == header.post_checksum {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Diverged,
        format_args!(
            "transaction {} must give checksum {}, gives {}",
            header.txid, header.post_checksum, checksum
        ),
    )
    .hint("nothing was changed; someone else wrote to the file, or the record is damaged"))
}

struct Walk<'a> {
    pages: &'a mut dyn Pages,
    page: Vec<u8>,
    /// Pages before the record that count; none when the page size changes.
    old_count: u32,
    lock_page: u32,
    checksum: Checksum,
}

impl Walk<'_> {
    fn patch(&mut self, patch: &PatchRef<'_>) -> Result<()> {
        let pgno = patch.pgno();
        if pgno <= self.old_count {
            self.pages.old(pgno, &mut self.page)?;
            self.checksum ^= page_checksum(pgno, &self.page);
        }
        patch.apply(&mut self.page);
        self.checksum ^= page_checksum(pgno, &self.page);
        self.pages.put(pgno, &self.page)
    }

    /// Pages that are cut off leave the checksum.
    fn drop_after(&mut self, last: u32) -> Result<()> {
        for pgno in last.saturating_add(1)..=self.old_count {
            if pgno != self.lock_page {
                self.pages.old(pgno, &mut self.page)?;
                self.checksum ^= page_checksum(pgno, &self.page);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
