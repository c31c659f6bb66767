//! Walking a log record by record, forwards: shared by the writer, which looks for the end, and the reader.

use crate::body::check_body;
use crate::entry::{DAMAGE_HINT, RecordEntry};
use crate::error::{Error, FormatError, Result};
use crate::meta::SyncMark;
use crate::pos::{DatabaseId, PageSize, Pos, Txid};
use crate::record::{HEADER_LEN, RecordHeader, TRAILER_LEN, Trailer, WalCursor};
use crate::sealed::view::RawView;
use crate::segment::{Opened, SEAL_LEN, SEAL_MAGIC, SEGMENT_HEADER_LEN, Seal, Segment};
use crate::storage::{Storage, StorageFile, read_exact_at, read_up_to};

/// Bytes read at once while hopping from record to record.
const WINDOW: usize = 64 * 1024;

/// The state after the last published record: what the next one builds on.
///
/// ```
/// use mycelite_journal::{Head, RecordHeader, Txid};
/// let first = RecordHeader { time_us: 1, ..RecordHeader::default() };
/// assert!(Head::EMPTY.check_next(&first).is_ok());
/// assert!(Head::after(&first).check_next(&first).is_err()); // not twice
/// assert_eq!(Head::after(&first).pos.txid, Txid(1));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Where the database is.
    pub pos: Pos,
    /// Its page size; `None` before the first record.
    pub page_size: Option<PageSize>,
    /// Its length in pages.
    pub page_count: u32,
    /// How far the log follows the WAL.
    pub wal: WalCursor,
    /// SQLite's file change counter, 0 if not known.
    pub change_counter: u32,
    /// The last record's time, µs since 1970.
    pub time_us: u64,
}

impl Head {
    /// Before the first record.
    pub const EMPTY: Head = Head {
        pos: Pos::ZERO,
        page_size: None,
        page_count: 0,
        wal: WalCursor {
            salt: [0; 2],
            frame: 0,
            checksum: [0; 2],
        },
        change_counter: 0,
        time_us: 0,
    };

    /// The state after the record with this header.
    #[must_use]
    pub fn after(header: &RecordHeader) -> Head {
        Head {
            pos: header.pos(),
            page_size: Some(header.page_size),
            page_count: header.page_count,
            wal: header.wal,
            change_counter: header.change_counter,
            time_us: header.time_us,
        }
    }

    /// Page size as a record header has it: 0 for none.
    pub(crate) fn page_size_or_0(&self) -> u32 {
        self.page_size.map_or(0, PageSize::get)
    }

    /// Checks that a record may come next.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the first field that does not fit.
    pub fn check_next(&self, header: &RecordHeader) -> Result<()> {
        self.check_pos(header)?;
        fits(
            "the page size before",
            self.page_size_or_0(),
            header.pre_page_size,
        )?;
        fits(
            "the page count before",
            self.page_count,
            header.pre_page_count,
        )?;
        if header.time_us <= self.time_us {
            return Err(Error::Mismatch {
                what: "the time",
                expected: format!("more than {}", self.time_us),
                found: header.time_us.to_string(),
            });
        }
        Ok(())
    }

    fn check_pos(&self, header: &RecordHeader) -> Result<()> {
        fits("the transaction", self.pos.txid.next(), header.txid)?;
        fits(
            "the checksum before",
            self.pos.checksum,
            header.pre_checksum,
        )?;
        if header.timeline < self.pos.timeline {
            return Err(Error::Mismatch {
                what: "the timeline",
                expected: format!("at least {}", self.pos.timeline),
                found: header.timeline.to_string(),
            });
        }
        Ok(())
    }
}

/// As [`Head::check_next`], for a head of which only the Pos may be known.
pub(crate) fn check_next(head: &Head, whole_head: bool, header: &RecordHeader) -> Result<()> {
    if whole_head {
        head.check_next(header)
    } else {
        head.check_pos(header)
    }
}

fn fits<T: PartialEq + ToString>(what: &'static str, expected: T, found: T) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::Mismatch {
        what,
        expected: expected.to_string(),
        found: found.to_string(),
    })
}

/// What there is where the next record should begin.
pub(crate) enum Step {
    /// The next record; `step` has moved the cursor behind it.
    Record(RecordEntry),
    /// The segment's seal; `step` moves behind it and on.
    Seal,
    /// Nothing: the file ends here.
    End,
    /// Bytes that are not a published record.
    Unfinished(Unfinished),
}

/// Bytes after the last published record.
pub(crate) struct Unfinished {
    /// The header, if it is whole and the record would fit here.
    pub(crate) header: Option<RecordHeader>,
    /// Why it is not a published record.
    pub(crate) why: String,
    /// It is a whole record with its trailer, only not one that can come here.
    misfit: bool,
}

impl Unfinished {
    fn step(header: Option<RecordHeader>, why: impl ToString) -> Step {
        Step::Unfinished(Unfinished {
            header,
            why: why.to_string(),
            misfit: false,
        })
    }
}

/// A place between two records.
#[derive(Clone)]
pub(crate) struct Cursor {
    pub(crate) segment: Segment,
    /// Where the next record begins.
    pub(crate) offset: u64,
    /// The state there.
    pub(crate) head: Head,
    /// Whether `head` is more than a Pos: page count, size and time are not known at the very start of a shortened history.
    pub(crate) whole_head: bool,
    /// The segment has a seal, and `offset` is behind that.
    pub(crate) sealed: bool,
    window: Window,
}

impl Cursor {
    /// At the start of a segment.
    pub(crate) fn at_start(segment: Segment) -> Cursor {
        let follows = segment.header.follows;
        Cursor {
            segment,
            offset: SEGMENT_HEADER_LEN as u64,
            head: Head {
                pos: follows,
                ..Head::EMPTY
            },
            whole_head: follows.txid.0 == 0,
            sealed: false,
            window: Window::default(),
        }
    }

    /// Behind the record that ends at `offset`, if there is a whole one that fits its trailer.
    pub(crate) fn behind(segment: Segment, offset: u64) -> Result<Option<Cursor>> {
        let Some(header) =
            record_before(&*segment.file, offset).map_err(|source| read_error(&segment, source))?
        else {
            return Ok(None);
        };
        let mut cursor = Cursor::at_start(segment);
        cursor.moved(&header, offset);
        Ok(Some(cursor))
    }

    /// Behind transaction `after`, or the segment's last one if that is older; `None` if the segment is raw or begins later.
    pub(crate) fn in_sealed(segment: &Segment, after: Txid) -> Result<Option<Cursor>> {
        let Some(view) = segment.sealed.as_ref().filter(|_| after >= segment.first()) else {
            return Ok(None);
        };
        let (_, last) = view.file.range();
        let (header, start) = view.file.record(after.min(last))?;
        let mut cursor = Cursor::at_start(segment.clone());
        cursor.moved(&header, start + header.record_len());
        Ok(Some(cursor))
    }

    /// Behind everything in a segment that is at rest.
    pub(crate) fn at_end_of(segment: Segment) -> Result<Option<Cursor>> {
        let cursor = Cursor::at_start(segment);
        let size = cursor.size()?;
        let seal_at = size.saturating_sub(SEAL_LEN as u64);
        let mut bytes = [0; SEAL_LEN];
        read_up_to(&*cursor.segment.file, &mut bytes, seal_at)
            .map_err(|source| read_error(&cursor.segment, source))?;
        let seal = Seal::decode(&bytes, &cursor.segment.header);
        if !seal.is_ok_and(|seal| seal.segment_len == size) {
            return Cursor::behind(cursor.segment, size);
        }
        let Some(mut cursor) = Cursor::behind(cursor.segment, seal_at)? else {
            return Ok(None);
        };
        cursor.move_behind_seal();
        Ok(Some(cursor))
    }

    pub(crate) fn move_behind_seal(&mut self) {
        self.offset += SEAL_LEN as u64;
        self.sealed = true;
    }

    /// Where the last record before the cursor ends.
    pub(crate) fn records_end(&self) -> u64 {
        self.offset - if self.sealed { SEAL_LEN as u64 } else { 0 }
    }

    /// Where the sync mark points to, if it points into this segment and the segment agrees.
    pub(crate) fn at_mark(segment: &Segment, mark: Option<&SyncMark>) -> Result<Option<Cursor>> {
        let Some(mark) = mark.filter(|mark| mark.segment == segment.first()) else {
            return Ok(None);
        };
        let cursor = Cursor::behind(segment.clone(), mark.offset)?;
        Ok(cursor.filter(|cursor| cursor.head.pos.txid == mark.txid))
    }

    pub(crate) fn moved(&mut self, header: &RecordHeader, end: u64) {
        self.offset = end;
        self.head = Head::after(header);
        self.whole_head = true;
    }

    /// Moves over the next record, into the next segment where needed.
    pub(crate) fn step(&mut self, storage: &dyn Storage, id: DatabaseId) -> Result<Step> {
        loop {
            match self.probe()? {
                Step::Record(entry) => {
                    self.moved(&entry.header, self.offset + entry.header.record_len());
                    return Ok(Step::Record(entry));
                }
                Step::Seal => {
                    if !self.sealed {
                        self.move_behind_seal();
                    }
                    if !self.enter_next(storage, id)? {
                        return Ok(Step::End);
                    }
                }
                nothing => return Ok(nothing),
            }
        }
    }

    /// Looks at what comes next in this segment, without moving.
    pub(crate) fn probe(&mut self) -> Result<Step> {
        if self.sealed {
            return Ok(Step::Seal);
        }
        if let Some(view) = &self.segment.sealed {
            return self.probe_sealed(view);
        }
        let mut step = self.probe_window()?;
        if matches!(step, Step::Unfinished(_)) {
            // The window may be older than the record that meanwhile is there.
            self.window.clear();
            step = self.probe_window()?;
        }
        match step {
            // No crash makes a whole record that does not fit: two writers did, or a mixed-up file.
            Step::Unfinished(tail) if tail.misfit => Err(self.corrupt(
                tail.why,
                "two writers used the log without its lock, or files of two logs were mixed: restore it from a copy or a replica",
            )),
            step => Ok(step),
        }
    }

    /// As [`Cursor::probe`] in a sealed segment, which knows its records without their bodies.
    fn probe_sealed(&self, view: &RawView) -> Result<Step> {
        let Some(header) = view.record_at(self.offset)? else {
            return Ok(Step::Seal);
        };
        check_next(&self.head, self.whole_head, &header)
            .map_err(|error| self.corrupt(error.to_string(), DAMAGE_HINT))?;
        let entry = RecordEntry::new(header, &self.segment, self.offset);
        Ok(Step::Record(entry))
    }

    fn probe_window(&mut self) -> Result<Step> {
        let segment = &self.segment;
        let read = |source| read_error(segment, source);
        let bytes = self
            .window
            .get(&*segment.file, self.offset, HEADER_LEN)
            .map_err(read)?;
        if bytes.is_empty() {
            return Ok(Step::End);
        }
        if bytes.starts_with(&SEAL_MAGIC) {
            let whole = Seal {
                next: self.head.pos.txid.next(),
                segment_len: self.offset + SEAL_LEN as u64,
            };
            return Ok(match Seal::decode(bytes, &segment.header) {
                // An empty segment cannot have one: the next would have its name.
                Ok(seal) if seal == whole && seal.next != segment.first() => Step::Seal,
                Ok(_) => Unfinished::step(None, "a seal that does not belong here"),
                Err(error) => Unfinished::step(None, error),
            });
        }
        let stored = bytes.first_chunk::<HEADER_LEN>().copied();
        let header = match RecordHeader::decode(bytes) {
            Ok(header) => header,
            // Written whole by a newer program: neither torn nor damaged.
            Err(FormatError::Version(found)) => {
                return Err(Error::Version {
                    path: segment.path.to_string(),
                    found,
                    known: crate::record::VERSION,
                });
            }
            Err(error) => return Ok(Unfinished::step(None, error)),
        };
        let follows = check_next(&self.head, self.whole_head, &header);
        let at = self.offset + header.record_len() - TRAILER_LEN as u64;
        let bytes = self
            .window
            .get(&*segment.file, at, TRAILER_LEN)
            .map_err(read)?;
        let whole = match Trailer::decode(bytes) {
            Ok(trailer) if stored.is_some_and(|h| trailer.fits_stored(&header, &h)) => Ok(()),
            Ok(_) => Err(FormatError::Hash("record trailer")),
            Err(error) => Err(error),
        };
        Ok(match (follows, whole) {
            (Ok(()), Ok(())) => Step::Record(RecordEntry::new(header, segment, self.offset)),
            (Ok(()), Err(error)) => Unfinished::step(Some(header), error),
            (Err(error), whole) => Step::Unfinished(Unfinished {
                header: None,
                why: error.to_string(),
                misfit: whole.is_ok(),
            }),
        })
    }

    /// The record that ends at the cursor's place; `None` at the start of a segment.
    pub(crate) fn behind_me(&self) -> Result<Option<RecordEntry>> {
        let end = self.records_end();
        if end <= SEGMENT_HEADER_LEN as u64 {
            return Ok(None);
        }
        let header = record_before(&*self.segment.file, end)
            .map_err(|source| read_error(&self.segment, source))?
            .ok_or_else(|| Error::Corrupt {
                path: self.segment.path.to_string(),
                offset: end,
                txid: None,
                what: "no whole record ends here".into(),
                hint: DAMAGE_HINT,
            })?;
        let start = end - header.record_len();
        Ok(Some(RecordEntry::new(header, &self.segment, start)))
    }

    /// The body of a record of this segment, found good, if it is short enough to be in memory whole.
    pub(crate) fn short_body(&mut self, entry: &RecordEntry) -> Result<Option<&[u8]>> {
        let length = entry.header.body_len as usize;
        if length > WINDOW || self.segment.sealed.is_some() {
            return Ok(None);
        }
        let at = entry.offset + HEADER_LEN as u64;
        let body = self
            .window
            .get(&*self.segment.file, at, length)
            .map_err(|source| read_error(&self.segment, source))?;
        Ok(check_body(body, &entry.header).is_ok().then_some(body))
    }

    /// Whether the record that ends where the cursor now is has a good body, read from memory where it can be.
    pub(crate) fn has_good_body(&mut self, entry: &RecordEntry) -> Result<bool> {
        let body_len = entry.header.body_len as usize;
        if body_len <= WINDOW {
            let body = self
                .window
                .get(
                    &*self.segment.file,
                    entry.offset + HEADER_LEN as u64,
                    body_len,
                )
                .map_err(|source| read_error(&self.segment, source))?;
            if check_body(body, &entry.header).is_ok() {
                return Ok(true);
            }
        }
        match entry.verify() {
            Ok(()) => Ok(true),
            Err(Error::Corrupt { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Moves from the end of a sealed segment to the start of the next, if there is one.
    fn enter_next(&mut self, storage: &dyn Storage, id: DatabaseId) -> Result<bool> {
        let next = self.head.pos.txid.next();
        let mut offset = SEGMENT_HEADER_LEN as u64;
        let mut follows = None;
        let segment = match Segment::open(storage, id, next)? {
            Opened::Segment(segment) => segment,
            // It may have become a part of a longer one.
            Opened::Missing | Opened::Unborn => match Segment::around(storage, id, next)? {
                Some(segment) if segment.name == self.segment.name => {
                    return Err(self.corrupt(
                        format!("it has no transaction {next}, which its name says it has"),
                        DAMAGE_HINT,
                    ));
                }
                Some(segment) => {
                    if let Some(inside) = Cursor::in_sealed(&segment, next.previous())? {
                        offset = inside.offset;
                        follows = Some(inside.head.pos);
                    }
                    segment
                }
                None => return Ok(false),
            },
        };
        let follows = follows.unwrap_or(segment.header.follows);
        let size = self.size()?;
        if size != self.offset {
            return Err(self.corrupt(
                format!(
                    "{} bytes behind the segment's seal",
                    size.saturating_sub(self.offset)
                ),
                DAMAGE_HINT,
            ));
        }
        if follows != self.head.pos {
            return Err(Error::Corrupt {
                path: segment.path.to_string(),
                offset: 0,
                txid: Some(next),
                what: format!(
                    "the segment follows {follows}, the one before ends at {}",
                    self.head.pos
                ),
                hint: "a file was copied between logs or is an old copy: restore it",
            });
        }
        self.segment = segment;
        self.offset = offset;
        self.sealed = false;
        self.window.clear();
        Ok(true)
    }

    /// Whether bytes at the cursor's place were surely on the disk once, so that damage there is no torn tail.
    ///
    /// A mark beyond the file's end says nothing: such a file is a copy that was made while the log grew.
    pub(crate) fn is_synced(&self, storage: &dyn Storage) -> Result<bool> {
        let Some(mark) = SyncMark::read(storage, self.segment.header.id) else {
            return Ok(false);
        };
        Ok(mark.segment == self.segment.first()
            && self.offset < mark.offset
            && mark.offset <= self.size()?)
    }

    pub(crate) fn size(&self) -> Result<u64> {
        self.segment
            .file
            .size()
            .map_err(|source| read_error(&self.segment, source))
    }

    /// Damage where the next record should be.
    pub(crate) fn corrupt(&self, what: String, hint: &'static str) -> Error {
        Error::Corrupt {
            path: self.segment.path.to_string(),
            offset: self.offset,
            txid: Some(self.next_txid()),
            what,
            hint,
        }
    }

    pub(crate) fn next_txid(&self) -> Txid {
        self.head.pos.txid.next()
    }
}

pub(crate) fn read_error(segment: &Segment, source: std::io::Error) -> Error {
    Error::io("reading a segment", segment.path.to_string(), source)
}

/// The header of the record that ends at `end`; `None` if there is no whole record that ends there.
pub(crate) fn record_before(
    file: &dyn StorageFile,
    end: u64,
) -> std::io::Result<Option<RecordHeader>> {
    let floor = SEGMENT_HEADER_LEN as u64;
    let Some(at) = end.checked_sub(TRAILER_LEN as u64).filter(|at| *at > floor) else {
        return Ok(None);
    };
    let mut bytes = [0; TRAILER_LEN];
    if read_up_to(file, &mut bytes, at)? < TRAILER_LEN {
        return Ok(None);
    }
    let Ok(trailer) = Trailer::decode(&bytes) else {
        return Ok(None);
    };
    let Some(start) = end
        .checked_sub(trailer.record_len)
        .filter(|start| *start >= floor)
    else {
        return Ok(None);
    };
    let mut bytes = [0; HEADER_LEN];
    read_exact_at(file, &mut bytes, start)?;
    Ok(RecordHeader::decode(&bytes)
        .ok()
        .filter(|header| trailer.fits(header)))
}

/// A part of a file in memory. It may be old: whoever finds nothing in it clears it and looks again.
#[derive(Default)]
struct Window {
    bytes: Vec<u8>,
    length: usize,
    start: u64,
}

impl Clone for Window {
    /// A copied cursor goes elsewhere: it reads for itself.
    fn clone(&self) -> Window {
        Window::default()
    }
}

impl Window {
    fn clear(&mut self) {
        self.length = 0;
    }

    /// The `count` bytes at `offset`, fewer at the file's end.
    fn get(&mut self, file: &dyn StorageFile, offset: u64, count: usize) -> std::io::Result<&[u8]> {
        let inside = offset
            .checked_sub(self.start)
            .filter(|at| at.saturating_add(count as u64) <= self.length as u64);
        let at = match inside {
            Some(at) => at as usize,
            None => {
                self.bytes.resize(WINDOW, 0);
                self.length = 0;
                self.start = offset;
                self.length = read_up_to(file, &mut self.bytes, offset)?;
                0
            }
        };
        let end = (at + count).min(self.length);
        Ok(self.bytes.get(at..end).unwrap_or_default())
    }
}
