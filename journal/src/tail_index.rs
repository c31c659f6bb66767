//! Where each page's patches are in a raw segment: kept in memory, found by reading the segment once.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::cursor::{Cursor, Head, Step, read_error};
use crate::entry::{DAMAGE_HINT, RecordEntry};
use crate::error::{Error, Result};
use crate::patch::PatchRef;
use crate::pos::{PageSize, Pgno, Pos, Txid};
use crate::record::{HEADER_LEN, RecordHeader};
use crate::sealed::cache::BlockCache;
use crate::sealed::file::Laid;
use crate::sealed::limit;
use crate::sealed::overlay::Overlay;
use crate::segment::Segment;
use crate::storage::read_exact_at;

/// A record with more patches is indexed part by part, not patch by patch.
const LONG_RECORD_PATCHES: u32 = limit(4096, 5) as u32;
/// The same, when there are so many patches that memory is short.
const LONG_RECORD_PATCHES_LATE: u32 = limit(64, 2) as u32;
/// Patches that are indexed one by one before that: about 30 bytes of memory each.
const PATCHES_MAX: usize = limit(1_000_000, 60);
/// Bytes of a part of a long record, and how many parts there are at most.
const PART_BYTES: u64 = limit(64 * 1024, 900) as u64;
const PARTS_MAX: u64 = 65_536;
/// Parts that are kept in memory after they were read.
const RECENT_PARTS: usize = 8;
/// A page's patches after which what they add up to is kept too, so that a page that is always written is read fast.
const SUM_PATCHES: u32 = limit(256, 3) as u32;
/// Pages whose patches are added up as they come, once they had a sum.
const HOT_PAGES_MAX: usize = limit(64, 2);
/// A patch's length takes this many bits: a full patch of the largest page has 65 544 bytes.
const LENGTH_BITS: u32 = 17;
/// Memory for such sums, in bytes.
const SUMS_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The page index of a raw segment, as far as it has been read.
pub(crate) struct TailIndex {
    /// Tells it from every other index of this process.
    pub(crate) number: u64,
    /// Behind the last record that is indexed.
    cursor: Cursor,
    /// Where each record begins.
    records: Vec<u64>,
    patches: Vec<Place>,
    pages: HashMap<Pgno, Page>,
    long: Vec<Long>,
    /// By the number of the last patch that is in it.
    sums: HashMap<u32, Box<[u8]>>,
    sums_bytes: usize,
    /// What the patches of some pages add up to so far.
    hot: HashMap<Pgno, Overlay>,
    /// Parts of long records that were read last, the newest at the end: pages are often read in order.
    recent: RefCell<VecDeque<Arc<Loaded>>>,
}

/// A part of a long record in memory, and where the patch of each page begins in it.
struct Loaded {
    at: u64,
    bytes: Vec<u8>,
    pages: Vec<(Pgno, u32)>,
}

/// A patch in the file. The hash shows bytes that changed since they were indexed.
struct Place {
    /// Its offset, and its length in the lowest bits.
    at_and_length: u64,
    /// Its record, counted from the segment's first.
    record: u32,
    hash: u32,
}

impl Place {
    fn new(at: u64, stored: &[u8], record: u32) -> Place {
        Place {
            at_and_length: at << LENGTH_BITS | stored.len() as u64,
            record,
            hash: xxh3_64(stored) as u32,
        }
    }

    fn at(&self) -> u64 {
        self.at_and_length >> LENGTH_BITS
    }

    fn length(&self) -> usize {
        (self.at_and_length & ((1 << LENGTH_BITS) - 1)) as usize
    }
}

#[derive(Default)]
struct Page {
    /// Numbers of its patches, ascending.
    patches: Vec<u32>,
    /// Patches since the last complete one or the last sum.
    run: u32,
}

/// A long record: its parts begin with these pages.
struct Long {
    txid: Txid,
    page_size: PageSize,
    parts: Vec<Part>,
}

struct Part {
    first: Pgno,
    at: u64,
    length: u64,
    hash: u64,
}

impl TailIndex {
    pub(crate) fn new(segment: Segment) -> TailIndex {
        TailIndex {
            number: BlockCache::file_number(),
            cursor: Cursor::at_start(segment),
            records: Vec::new(),
            patches: Vec::new(),
            pages: HashMap::new(),
            long: Vec::new(),
            sums: HashMap::new(),
            sums_bytes: 0,
            hot: HashMap::new(),
            recent: RefCell::default(),
        }
    }

    /// Bytes of memory, about.
    pub(crate) fn cost(&self) -> usize {
        let parts: usize = self.long.iter().map(|long| long.parts.capacity()).sum();
        self.records.capacity() * 8
            + self.patches.capacity() * (size_of::<Place>() + 8)
            + self.pages.capacity() * (size_of::<Page>() + 8)
            + parts * size_of::<Part>()
            + self.sums_bytes
    }

    fn first(&self) -> Txid {
        self.cursor.segment.first()
    }

    /// Where the database is before the segment, and after the last transaction that is indexed.
    pub(crate) fn follows(&self) -> Pos {
        self.cursor.segment.header.follows
    }

    pub(crate) fn pos(&self) -> Pos {
        self.cursor.head.pos
    }

    /// The last transaction that is indexed.
    pub(crate) fn last(&self) -> Txid {
        self.cursor.head.pos.txid
    }

    /// Reads on until transaction `upto` is indexed, or as far as there are records.
    pub(crate) fn extend(&mut self, upto: Txid) -> Result<()> {
        while self.last() < upto {
            let Step::Record(entry) = self.cursor.probe()? else {
                return Ok(());
            };
            self.index(&entry)?;
            let end = entry.offset + entry.header.record_len();
            self.cursor.moved(&entry.header, end);
        }
        Ok(())
    }

    /// Whether the file still has what was indexed: a log may be cut and go on otherwise.
    pub(crate) fn is_current(&self) -> bool {
        let Some(index) = self.records.len().checked_sub(1) else {
            return true;
        };
        self.header_number(index)
            .is_ok_and(|header| Head::after(&header) == self.cursor.head)
    }

    /// The header of a record that is indexed; `None` if it is not.
    pub(crate) fn header(&self, txid: Txid) -> Result<Option<RecordHeader>> {
        match txid.0.checked_sub(self.first().0) {
            Some(index) if index < self.records.len() as u64 => {
                self.header_number(index as usize).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn header_number(&self, index: usize) -> Result<RecordHeader> {
        let at = self.records.get(index).copied().unwrap_or(0);
        let txid = Txid(self.first().0 + index as u64);
        let mut bytes = [0; HEADER_LEN];
        read_exact_at(&*self.cursor.segment.file, &mut bytes, at)
            .map_err(|source| read_error(&self.cursor.segment, source))?;
        match RecordHeader::decode(&bytes) {
            Ok(header) if header.txid == txid => Ok(header),
            Ok(_) => Err(self.changed(at, txid)),
            Err(error) => Err(self.corrupt(at, txid, error.to_string())),
        }
    }

    /// The newest indexed record that is not younger than `time_us`.
    pub(crate) fn find_time(&self, time_us: u64) -> Result<Option<RecordHeader>> {
        let (mut low, mut high) = (0, self.records.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.header_number(middle)?.time_us <= time_us {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        match low.checked_sub(1) {
            Some(index) => self.header_number(index).map(Some),
            None => Ok(None),
        }
    }

    fn corrupt(&self, offset: u64, txid: Txid, what: String) -> Error {
        Error::Corrupt {
            path: self.cursor.segment.path.to_string(),
            offset,
            txid: Some(txid),
            what,
            hint: DAMAGE_HINT,
        }
    }

    fn changed(&self, offset: u64, txid: Txid) -> Error {
        Error::Corrupt {
            path: self.cursor.segment.path.to_string(),
            offset,
            txid: Some(txid),
            what: "the record has changed since it was first read".into(),
            hint: "the log was cut or replaced: open it again; else the file is damaged, restore it from a copy or a replica",
        }
    }

    fn index(&mut self, entry: &RecordEntry) -> Result<()> {
        let late = self.patches.len() >= PATCHES_MAX;
        let limit = if late {
            LONG_RECORD_PATCHES_LATE
        } else {
            LONG_RECORD_PATCHES
        };
        if entry.header.patch_count > limit || entry.header.resizes() {
            // These are not followed patch by patch.
            self.hot.clear();
        }
        if entry.header.patch_count > limit {
            let long = parts(entry)?;
            self.long.push(long);
        } else {
            self.index_patches(entry)?;
        }
        self.records.push(entry.offset);
        Ok(())
    }

    fn index_patches(&mut self, entry: &RecordEntry) -> Result<()> {
        let before = self.patches.len();
        let found = match self.short_places(entry)? {
            Some(found) => found,
            None => self.long_places(entry)?,
        };
        for (index, (pgno, complete)) in found.into_iter().enumerate() {
            let number = (before + index) as u32;
            let page = self.pages.entry(pgno).or_default();
            page.patches.push(number);
            page.run = if complete { 0 } else { page.run + 1 };
            if page.run >= SUM_PATCHES && self.sums_bytes < SUMS_BYTES_MAX {
                page.run = 0;
                self.add_sum(pgno, number, entry)?;
            }
        }
        Ok(())
    }

    /// Notes the places of a record's patches; returns their pages, and whether they are complete. `None` if the body is long, or
    /// not right: then [`TailIndex::long_places`] says why.
    fn short_places(&mut self, entry: &RecordEntry) -> Result<Option<Vec<(Pgno, bool)>>> {
        let record = self.records.len() as u32;
        let mut at = entry.offset + HEADER_LEN as u64;
        let Some(mut body) = self.cursor.short_body(entry)? else {
            return Ok(None);
        };
        let mut found = Vec::with_capacity(entry.header.patch_count as usize);
        // The body has been checked: each patch parses.
        while let Ok((patch, length)) = PatchRef::parse(body, entry.header.page_size) {
            let (stored, rest) = body.split_at(length);
            self.patches.push(Place::new(at, stored, record));
            if let Some(overlay) = self.hot.get_mut(&patch.pgno()) {
                overlay.put(&patch);
            }
            found.push((patch.pgno(), patch.is_complete()));
            at += length as u64;
            body = rest;
        }
        Ok(Some(found))
    }

    fn long_places(&mut self, entry: &RecordEntry) -> Result<Vec<(Pgno, bool)>> {
        let record = self.records.len() as u32;
        let mut at = entry.offset + HEADER_LEN as u64;
        let mut stored = Vec::new();
        // They count only when all of the body was found right.
        let mut places = Vec::new();
        let mut found = Vec::new();
        let mut patches = entry.patches();
        while let Some(patch) = patches.next()? {
            stored.clear();
            patch.store(&mut stored);
            places.push(Place::new(at, &stored, record));
            found.push((patch.pgno(), patch.is_complete()));
            at += stored.len() as u64;
        }
        self.patches.append(&mut places);
        self.hot.clear();
        Ok(found)
    }

    fn add_sum(&mut self, pgno: Pgno, number: u32, entry: &RecordEntry) -> Result<()> {
        let size = entry.header.page_size;
        let overlay = match self.hot.remove(&pgno) {
            Some(overlay) => overlay,
            None => {
                let mut overlay = Overlay::new(size);
                self.lay(pgno, entry.header.txid, Txid(0), size, &mut overlay)?;
                overlay
            }
        };
        let mut sum = Vec::new();
        overlay.encode(pgno, &mut sum);
        self.sums_bytes += sum.len();
        self.sums.insert(number, sum.into());
        if self.hot.len() < HOT_PAGES_MAX {
            self.hot.insert(pgno, overlay);
        }
        Ok(())
    }

    /// Lays what the indexed transactions after `floor` and up to `txid` say about a page under what is known of it.
    pub(crate) fn lay(
        &self,
        pgno: Pgno,
        txid: Txid,
        floor: Txid,
        size: PageSize,
        overlay: &mut Overlay,
    ) -> Result<Laid> {
        let of = |number: &u32| {
            let place = self.patches.get(*number as usize)?;
            Some((place, Txid(self.first().0 + u64::from(place.record))))
        };
        let list = self.pages.get(&pgno).map_or(&[][..], |page| &page.patches);
        let count = list.partition_point(|number| of(number).is_some_and(|(_, at)| at <= txid));
        let count_long = self.long.partition_point(|long| long.txid <= txid);
        let mut long = self.long.iter().take(count_long).rev().peekable();
        let mut numbers = list.iter().take(count).rev();
        let mut stored = Vec::new();
        loop {
            let number = numbers.next();
            let next = number.and_then(of).filter(|(_, txid)| *txid > floor);
            let reach = next.as_ref().map_or(floor, |(_, txid)| *txid);
            while let Some(long) = long.next_if(|long| long.txid > reach) {
                if self.lay_long(long, pgno, overlay)? {
                    return Ok(Laid::Whole);
                }
            }
            let (Some((place, txid)), Some(number)) = (next, number) else {
                return Ok(Laid::Older);
            };
            overlay.fill(&self.read_patch(place, pgno, txid, size, &mut stored)?);
            let sum = self.sums.get(number);
            if let Some(sum) = sum {
                overlay.fill(&PatchRef::trusted(sum));
            }
            if overlay.is_whole() {
                return Ok(Laid::Whole);
            }
            if sum.is_some() {
                return Ok(Laid::Older);
            }
        }
    }

    fn read_patch<'a>(
        &self,
        place: &Place,
        pgno: Pgno,
        txid: Txid,
        size: PageSize,
        stored: &'a mut Vec<u8>,
    ) -> Result<PatchRef<'a>> {
        let segment = &self.cursor.segment;
        stored.resize(place.length(), 0);
        read_exact_at(&*segment.file, stored, place.at())
            .map_err(|source| read_error(segment, source))?;
        if xxh3_64(stored) as u32 != place.hash {
            return Err(self.changed(place.at(), txid));
        }
        match PatchRef::parse(stored, size) {
            Ok((patch, _)) if patch.pgno() == pgno => Ok(patch),
            _ => Err(self.changed(place.at(), txid)),
        }
    }

    /// Lays the patch that a long record has of a page, if it has one. Returns whether the page is whole then.
    fn lay_long(&self, long: &Long, pgno: Pgno, overlay: &mut Overlay) -> Result<bool> {
        let count = long.parts.partition_point(|part| part.first <= pgno);
        let Some(part) = count.checked_sub(1).and_then(|i| long.parts.get(i)) else {
            return Ok(false);
        };
        let loaded = self.load(long, part)?;
        let Ok(found) = loaded.pages.binary_search_by_key(&pgno, |(pgno, _)| *pgno) else {
            return Ok(false);
        };
        let start = loaded
            .pages
            .get(found)
            .map_or(0, |(_, start)| *start as usize);
        let stored = loaded.bytes.get(start..).unwrap_or_default();
        let (patch, _) = PatchRef::parse(stored, long.page_size)
            .map_err(|error| self.corrupt(part.at, long.txid, error.to_string()))?;
        overlay.fill(&patch);
        Ok(overlay.is_whole())
    }

    /// Reads and checks a part of a long record, unless it was read a moment ago.
    fn load(&self, long: &Long, part: &Part) -> Result<Arc<Loaded>> {
        let known = |recent: &VecDeque<Arc<Loaded>>| {
            recent.iter().find(|loaded| loaded.at == part.at).cloned()
        };
        if let Some(loaded) = known(&self.recent.borrow()) {
            return Ok(loaded);
        }
        let segment = &self.cursor.segment;
        let mut bytes = vec![0; part.length as usize];
        read_exact_at(&*segment.file, &mut bytes, part.at)
            .map_err(|source| read_error(segment, source))?;
        if xxh3_64(&bytes) != part.hash {
            return Err(self.changed(part.at, long.txid));
        }
        let mut pages = Vec::new();
        let mut start = 0;
        while let Some(rest) = bytes.get(start..).filter(|rest| !rest.is_empty()) {
            let (patch, length) = PatchRef::parse(rest, long.page_size)
                .map_err(|error| self.corrupt(part.at, long.txid, error.to_string()))?;
            pages.push((patch.pgno(), start as u32));
            start += length;
        }
        let at = part.at;
        let loaded = Arc::new(Loaded { at, bytes, pages });
        let mut recent = self.recent.borrow_mut();
        if recent.len() >= RECENT_PARTS {
            recent.pop_front();
        }
        recent.push_back(Arc::clone(&loaded));
        Ok(loaded)
    }
}

/// Cuts a long record into parts.
fn parts(entry: &RecordEntry) -> Result<Long> {
    let part_bytes = PART_BYTES.max(entry.header.body_len / PARTS_MAX);
    let mut long = Long {
        txid: entry.header.txid,
        page_size: entry.header.page_size,
        parts: Vec::new(),
    };
    let mut bytes = Vec::new();
    let mut first = 0;
    let mut at = entry.offset + HEADER_LEN as u64;
    let mut patches = entry.patches();
    let end = |first, at, bytes: &Vec<u8>| Part {
        first,
        at,
        length: bytes.len() as u64,
        hash: xxh3_64(bytes),
    };
    while let Some(patch) = patches.next()? {
        if bytes.is_empty() {
            first = patch.pgno();
        }
        patch.store(&mut bytes);
        if bytes.len() as u64 >= part_bytes {
            long.parts.push(end(first, at, &bytes));
            at += bytes.len() as u64;
            bytes.clear();
        }
    }
    if !bytes.is_empty() {
        long.parts.push(end(first, at, &bytes));
    }
    Ok(long)
}
