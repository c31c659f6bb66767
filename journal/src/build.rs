//! Writing one record: collect patches, prepare, publish.

use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use crate::error::{Error, Result};
use crate::patch::encode_patch;
use crate::pos::{Checksum, PageSize, Pgno, Timeline, Txid, page_checksum};
use crate::record::{HEADER_LEN, RecordHeader, Trailer, WalCursor};
use crate::sealed::limit;
use crate::writer::{Log, State};

/// Bytes of a record that are collected before they are written to the file.
const BUFFER_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a long record after which the disk begins with them, where a sync follows.
const START_BYTES: u64 = limit(8 << 20, 1 << 20) as u64;

/// What the writer of a record knows before its patches.
///
/// ```
/// use mycelite_journal::{Draft, PageSize, Timeline};
/// # let size = PageSize::new(4096).ok_or("size")?;
/// let draft = Draft { timeline: Timeline(2), ..Draft::new(size, 100, 1_700_000_000_000_000) };
/// # Ok::<(), &str>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Draft {
    /// [`FLAG_REBASE`](crate::FLAG_REBASE), [`FLAG_ADOPT`](crate::FLAG_ADOPT) or 0.
    pub flags: u16,
    /// Page size after the transaction.
    pub page_size: PageSize,
    /// Pages in the database after it.
    pub page_count: u32,
    /// Not less than the last record's.
    pub timeline: Timeline,
    /// How far the log follows the WAL with this record.
    pub wal: WalCursor,
    /// SQLite's file change counter after it, 0 if not known.
    pub change_counter: u32,
    /// The time now, µs since 1970; the record's time is this, or 1 µs after the last record's if that is later.
    pub now_us: u64,
    /// The record holds every page of the database, and does not build on what was there before. Needed when the page size changes;
    /// allowed always.
    pub whole: bool,
}

impl Draft {
    /// A plain transaction on timeline 1.
    #[must_use]
    pub fn new(page_size: PageSize, page_count: u32, now_us: u64) -> Draft {
        Draft {
            flags: 0,
            page_size,
            page_count,
            timeline: Timeline(1),
            wal: WalCursor::default(),
            change_counter: 0,
            now_us,
            whole: false,
        }
    }
}

/// The record that a [`Log`] is writing; its buffer is kept from one record to the next.
#[derive(Default)]
pub(crate) struct Build {
    pub(crate) header: RecordHeader,
    /// Room for the header, then the part of the body that is not in the file yet.
    buf: Vec<u8>,
    /// Body bytes in the file, and their hash.
    flushed: u64,
    hasher: Option<Box<Xxh3Default>>,
    /// Pages 1..=this have an old content that counts.
    old_pages: u32,
    last: Pgno,
    last_dropped: Pgno,
    first_dropped: Pgno,
    fresh: u32,
    dropped: u32,
    /// Something may be in the file.
    touched: bool,
    /// Body bytes of which the disk was told, where a sync follows.
    started: Option<u64>,
}

impl Build {
    pub(crate) fn start(&mut self, header: RecordHeader, old_pages: u32) {
        self.header = header;
        // A bulk load may have left a page more than the limit behind; keep no more than that.
        self.buf.clear();
        self.buf.shrink_to(2 * BUFFER_BYTES_MAX);
        self.buf.resize(HEADER_LEN, 0);
        self.flushed = 0;
        self.hasher = None;
        self.old_pages = old_pages;
        self.last = 0;
        self.last_dropped = 0;
        self.first_dropped = Pgno::MAX;
        self.fresh = 0;
        self.dropped = 0;
        self.touched = false;
        self.started = None;
    }

    /// Room for a body that is read from elsewhere.
    pub(crate) fn body_mut(&mut self, length: usize) -> &mut [u8] {
        self.buf.resize(HEADER_LEN + length, 0);
        self.buf.get_mut(HEADER_LEN..).unwrap_or_default()
    }

    /// The part of the body that is not in the file yet.
    fn body(&self) -> &[u8] {
        self.buf.get(HEADER_LEN..).unwrap_or_default()
    }
}

/// Writes one record: see [`Log::begin`].
///
/// ```
/// # use std::sync::Arc;
/// # use mycelite_journal::*;
/// # let dir = tempfile::tempdir()?;
/// # let storage = Arc::new(FileStorage::new(dir.path()));
/// # let mut log = Log::create(storage, DatabaseId([7; 16]), 0)?;
/// let mut record = log.begin(Draft::new(PageSize::MIN, 2, 1))?;
/// record.patch(1, None, &[1; 512])?;
/// record.patch(2, None, &[2; 512])?;
/// record.commit()?;
///
/// // The next transaction changes page 1 and drops page 2.
/// let mut record = log.begin(Draft::new(PageSize::MIN, 1, 2))?;
/// record.patch(1, Some(&[1; 512]), &[3; 512])?;
/// record.drop_page(2, &[2; 512])?;
/// let header = record.commit()?;
/// assert_eq!(header.post_checksum, page_checksum(1, &[3; 512]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Dropping it without [`RecordWriter::prepare`] or [`RecordWriter::commit`] abandons the record.
pub struct RecordWriter<'a> {
    log: &'a mut Log,
    done: bool,
}

impl Log {
    /// Begins the next record. Needs the writers' lock, and a [`Log::refresh`] under it.
    ///
    /// Torn bytes after the last record are cut; a prepared record of a dead writer must be published or dropped before.
    ///
    /// # Errors
    /// [`Error::Misuse`] if another record is under way or the draft makes no sense; [`Error::Io`].
    pub fn begin(&mut self, draft: Draft) -> Result<RecordWriter<'_>> {
        self.make_room()?;
        if !self.knows_head() {
            return Err(Error::Misuse(
                "the log has lost the record that it follows: only records from another log can be appended",
            ));
        }
        let head = *self.head();
        let resized = head.page_size.is_some_and(|size| size != draft.page_size);
        if resized && !draft.whole {
            return Err(Error::Misuse(
                "a record that changes the page size must hold the whole database",
            ));
        }
        if draft.timeline < head.pos.timeline {
            return Err(Error::Misuse("a timeline never goes back"));
        }
        let header = RecordHeader {
            flags: draft.flags,
            page_size: draft.page_size,
            timeline: draft.timeline,
            txid: head.pos.txid.next(),
            time_us: draft.now_us.max(head.time_us.saturating_add(1)),
            page_count: draft.page_count,
            pre_page_count: head.page_count,
            pre_checksum: head.pos.checksum,
            post_checksum: if draft.whole {
                Checksum(0)
            } else {
                head.pos.checksum
            },
            wal: draft.wal,
            patch_count: 0,
            body_len: 0,
            body_hash: 0,
            change_counter: draft.change_counter,
            pre_page_size: head.page_size_or_0(),
        };
        let old_pages = if draft.whole { 0 } else { head.page_count };
        self.build.start(header, old_pages);
        self.state = State::Building;
        Ok(RecordWriter {
            log: self,
            done: false,
        })
    }
}

impl RecordWriter<'_> {
    /// Adds a page, in ascending order of page numbers. `old` is its content before the transaction, which only a page that is new to
    /// the database, or a whole record, does without. A page that did not change is left out.
    ///
    /// # Errors
    /// [`Error::Misuse`]; [`Error::Io`] when a part of a long record cannot be written. The record must then be abandoned.
    pub fn patch(&mut self, pgno: Pgno, old: Option<&[u8]>, new: &[u8]) -> Result<()> {
        self.patch_known(pgno, old, None, new).map(drop)
    }

    /// As [`RecordWriter::patch`], for who remembers pages: `known` is the checksum of `old`, if it is known. Returns that of `new`,
    /// where it was needed or is the same.
    ///
    /// # Errors
    /// As [`RecordWriter::patch`].
    pub fn patch_known(
        &mut self,
        pgno: Pgno,
        old: Option<&[u8]>,
        known: Option<Checksum>,
        new: &[u8],
    ) -> Result<Option<Checksum>> {
        let build = &mut self.log.build;
        let size = build.header.page_size;
        if new.len() != size.bytes() {
            return Err(Error::Misuse("a page that has not the page size"));
        }
        if pgno <= build.last || pgno == size.lock_page() {
            return Err(Error::Misuse(
                "pages must come in ascending order, without the lock-byte page",
            ));
        }
        let is_new = pgno > build.old_pages;
        let old = match old {
            _ if is_new => None,
            Some(old) if old.len() == new.len() => Some(old),
            _ => return Err(Error::Misuse("a page that was there needs its old content")),
        };
        build.last = pgno;
        if !encode_patch(&mut build.buf, pgno, old, new) {
            return Ok(known);
        }
        build.header.patch_count += 1;
        build.fresh += u32::from(is_new);
        if let Some(old) = old {
            build.header.post_checksum ^= known.unwrap_or_else(|| page_checksum(pgno, old));
        }
        let checksum = page_checksum(pgno, new);
        build.header.post_checksum ^= checksum;
        if build.buf.len() >= BUFFER_BYTES_MAX {
            self.log.flush_body()?;
        }
        Ok(Some(checksum))
    }

    /// Takes out a page that the transaction cut off the end of the database, in ascending order. A whole record needs none of these.
    ///
    /// # Errors
    /// [`Error::Misuse`].
    pub fn drop_page(&mut self, pgno: Pgno, old: &[u8]) -> Result<()> {
        let build = &mut self.log.build;
        let size = build.header.page_size;
        if old.len() != size.bytes() {
            return Err(Error::Misuse("a page that has not the page size"));
        }
        if pgno <= build.last_dropped || pgno > build.old_pages || pgno == size.lock_page() {
            return Err(Error::Misuse(
                "dropped pages must come in ascending order, and must have been there",
            ));
        }
        build.last_dropped = pgno;
        build.first_dropped = build.first_dropped.min(pgno);
        build.dropped += 1;
        build.header.post_checksum ^= page_checksum(pgno, old);
        Ok(())
    }

    /// Sets the pages in the database after the transaction, if the draft could not know.
    pub fn set_page_count(&mut self, page_count: u32) {
        self.log.build.header.page_count = page_count;
    }

    /// Sets how far the log follows the WAL with this record, if the draft could not know.
    pub fn set_wal(&mut self, wal: WalCursor) {
        self.log.build.header.wal = wal;
    }

    /// Sets SQLite's file change counter after the transaction, if the draft could not know.
    pub fn set_change_counter(&mut self, change_counter: u32) {
        self.log.build.header.change_counter = change_counter;
    }

    /// A sync follows soon: of a long record, the disk gets what is written already.
    pub fn start_sync(&mut self) {
        self.log.build.started.get_or_insert(0);
    }

    /// The record's transaction.
    #[must_use]
    pub fn txid(&self) -> Txid {
        self.log.build.header.txid
    }

    /// The checksum of the database after what was added so far.
    #[must_use]
    pub fn post_checksum(&self) -> Checksum {
        self.log.build.header.post_checksum
    }

    /// Patches so far: pages that really changed.
    #[must_use]
    pub fn patch_count(&self) -> u32 {
        self.log.build.header.patch_count
    }

    /// Whether the database is the same as before, so that no record is needed. Not for whole records, which are never told apart.
    #[must_use]
    pub fn is_unchanged(&self) -> bool {
        let header = &self.log.build.header;
        header.patch_count == 0
            && header.page_count == header.pre_page_count
            && header.pre_page_size == header.page_size.get()
    }

    /// Puts the record into the file, complete but for its trailer: a crash leaves a record that [`Log::prepared`] finds.
    /// [`Log::publish`] or [`Log::discard`] must follow.
    ///
    /// # Errors
    /// [`Error::Misuse`] if a page is missing; [`Error::Io`]. The record is abandoned.
    pub fn prepare(mut self) -> Result<()> {
        self.log.finish_record(false)?;
        self.log.state = State::Pending;
        self.done = true;
        Ok(())
    }

    /// Puts the record into the file and publishes it.
    ///
    /// # Errors
    /// As [`RecordWriter::prepare`].
    pub fn commit(mut self) -> Result<RecordHeader> {
        self.log.finish_record(true)?;
        let header = self.log.build.header;
        self.log.published(&header);
        self.done = true;
        Ok(header)
    }

    /// As [`RecordWriter::commit`], but a short record may stay in memory, and the next ones with it, until [`Log::write_held`]
    /// puts all of them into the file in one write. Until then nobody else sees them.
    ///
    /// # Errors
    /// As [`RecordWriter::prepare`].
    pub fn hold(mut self) -> Result<RecordHeader> {
        self.log.check_record()?;
        self.log.seal_header();
        let header = self.log.build.header;
        self.log.hold_record(&Trailer::of(&header).encode())?;
        self.log.published(&header);
        self.done = true;
        Ok(header)
    }

    /// Gives the record up.
    ///
    /// # Errors
    /// [`Error::Io`] when its bytes cannot be cut away; they are when the next record begins.
    pub fn abort(mut self) -> Result<()> {
        self.done = true;
        self.log.abandon()
    }
}

impl Drop for RecordWriter<'_> {
    fn drop(&mut self) {
        if !self.done {
            // What cannot be cut now is cut when the next record begins.
            let _ = self.log.abandon();
        }
    }
}

impl Log {
    /// Gives up the record that is being built.
    pub(crate) fn abandon(&mut self) -> Result<()> {
        self.state = State::Idle;
        if !self.build.touched {
            return Ok(());
        }
        self.void_tail = true;
        self.cut("cutting an abandoned record")
    }

    /// Writes the next part of a body that is received to its place in the file; its hash is known from elsewhere.
    pub(crate) fn write_body(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_held()?;
        let at = self.end() + HEADER_LEN as u64 + self.build.flushed;
        self.build.touched = true;
        self.write("writing a record", |file| file.write_at(bytes, at))?;
        self.build.flushed += bytes.len() as u64;
        self.written_back(bytes.len() as u64);
        Ok(())
    }

    /// Writes the collected part of the body to its place in the file.
    fn flush_body(&mut self) -> Result<()> {
        self.write_held()?;
        let at = self.end() + HEADER_LEN as u64 + self.build.flushed;
        self.build.touched = true;
        let mut buf = std::mem::take(&mut self.build.buf);
        let body = buf.get(HEADER_LEN..).unwrap_or_default();
        let written = self.write("writing a record", |file| file.write_at(body, at));
        if written.is_ok() {
            self.build.flushed += body.len() as u64;
            self.build.hasher.get_or_insert_default().update(body);
            buf.truncate(HEADER_LEN);
        }
        self.build.buf = buf;
        let flushed = self.build.flushed;
        if let Some(started) = &mut self.build.started
            && flushed - *started >= START_BYTES
            && let Some(file) = &self.active
        {
            *started = flushed;
            file.start_sync();
        }
        written
    }

    /// The rules that the whole record must keep.
    fn check_record(&self) -> Result<()> {
        let build = &self.build;
        let (size, count) = (build.header.page_size, build.header.page_count);
        if build.last > count {
            return Err(Error::Misuse("a patch beyond the end of the database"));
        }
        if build.fresh != size.pages_between(build.old_pages, count) {
            return Err(Error::Misuse("a new page is missing from the record"));
        }
        if build.dropped != size.pages_between(count, build.old_pages)
            || build.first_dropped <= count && build.dropped > 0
        {
            return Err(Error::Misuse(
                "the dropped pages do not fit the new page count",
            ));
        }
        Ok(())
    }

    /// Completes header and file; with `publish`, the trailer too. A record that fits the buffer is one write.
    fn finish_record(&mut self, publish: bool) -> Result<()> {
        self.check_record()?;
        self.seal_header();
        if !publish {
            return self.write_record(&[]);
        }
        let trailer = Trailer::of(&self.build.header).encode();
        self.write_record(&trailer)
    }

    fn seal_header(&mut self) {
        let build = &mut self.build;
        build.header.body_len = build.flushed + build.body().len() as u64;
        build.header.body_hash = match &build.hasher {
            None => xxh3_64(build.body()),
            Some(hasher) => {
                let mut hasher = hasher.clone();
                hasher.update(build.body());
                hasher.digest()
            }
        };
    }

    /// Has the record wait in memory, complete with its `trailer`, or writes it if it is too long for that.
    pub(crate) fn hold_record(&mut self, trailer: &[u8]) -> Result<()> {
        let bytes = HEADER_LEN + self.build.body().len() + trailer.len();
        if self.build.flushed > 0 || !self.held.has_room(bytes) {
            return self.write_record(trailer);
        }
        let build = std::mem::take(&mut self.build);
        self.hold([&build.header.encode(), build.body(), trailer]);
        self.build = build;
        Ok(())
    }

    /// Writes what is still in the buffer, header last unless it is one write, with `trailer` at the end.
    pub(crate) fn write_record(&mut self, trailer: &[u8]) -> Result<()> {
        self.write_held()?;
        let end = self.end();
        let header = self.build.header.encode();
        self.build.touched = true;
        let mut buf = std::mem::take(&mut self.build.buf);
        buf.extend_from_slice(trailer);
        let flushed = self.build.flushed;
        let written = if flushed == 0 {
            if let Some(place) = buf.first_chunk_mut::<HEADER_LEN>() {
                *place = header;
            }
            self.write("writing a record", |file| file.write_at(&buf, end))
        } else {
            let at = end + HEADER_LEN as u64 + flushed;
            let (rest, trailer) = buf
                .get(HEADER_LEN..)
                .unwrap_or_default()
                .split_at(buf.len() - HEADER_LEN - trailer.len());
            self.write("writing a record", |file| {
                file.write_at(rest, at)?;
                file.write_at(&header, end)?;
                if trailer.is_empty() {
                    return Ok(());
                }
                file.write_at(trailer, at + rest.len() as u64)
            })
        };
        self.build.buf = buf;
        written
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{DatabaseId, FileStorage};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Bytes that the disk was told to begin with, the largest length seen; and how often.
    static SEEN: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

    #[test]
    fn the_disk_begins_with_a_long_record_only_where_a_sync_follows() {
        let dir = tempfile::tempdir().unwrap();
        let storage = FileStorage::new(dir.path()).with_start_sync(|file| {
            SEEN[0].fetch_max(file.metadata().unwrap().len(), Ordering::Relaxed);
            SEEN[1].fetch_add(1, Ordering::Relaxed);
        });
        let size = PageSize::new(65536).unwrap();
        let mut log = Log::create(Arc::new(storage), DatabaseId([7; 16]), 0).unwrap();
        for (time, syncs) in [(1, false), (2, true)] {
            let pages = 8 * START_BYTES / 65536;
            let mut record = log.begin(Draft::new(size, pages as u32, time)).unwrap();
            if syncs {
                record.start_sync();
            }
            let (old, new) = ([time as u8 - 1; 65536], [time as u8; 65536]);
            for pgno in 1..=pages as u32 {
                record.patch(pgno, Some(&old), &new).unwrap();
            }
            record.commit().unwrap();
            let [bytes, times] = SEEN.each_ref().map(|seen| seen.load(Ordering::Relaxed));
            assert_eq!(times > 0, syncs);
            assert!(!syncs || times >= 7 && bytes >= 7 * START_BYTES);
        }
        let times = || SEEN[1].load(Ordering::Relaxed);
        let before = times();
        log.start_sync();
        assert_eq!(times(), before + 1);
        log.sync().unwrap();
        log.start_sync();
        assert_eq!(times(), before + 1, "all is there already");
    }
}
