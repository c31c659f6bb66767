//! Turning a raw segment into a sealed one.

use std::sync::Arc;

use crate::body::{CHUNK, each_patch};
use crate::cursor::{Cursor, Step, read_error};
use crate::cut::CUT_NAME;
use crate::entry::{DAMAGE_HINT, PatchStream, RecordEntry};
use crate::error::{Error, Result};
use crate::meta::Meta;
use crate::pace::{FullSpeed, Pace};
use crate::patch::PatchRef;
use crate::pos::{PageSize, Pgno, Txid};
use crate::record::{HEADER_LEN, RecordHeader};
use crate::sealed::ahead::ReadAhead;
use crate::sealed::before::Before;
use crate::sealed::cache::BlockCache;
use crate::sealed::check;
use crate::sealed::file::BlockFile;
use crate::sealed::format::{
    FileHeader, Kind, TEMP_SUFFIX, parse_merged_name, parse_sealed_name, parse_snapshot_name,
    sealed_name,
};
use crate::sealed::limit;
use crate::sealed::write::BlockFileWriter;
use crate::segment::{Opened, Segment, first_of, list, parse_segment_name, segment_name};
use crate::storage::{Storage, StorageFile};

/// Patches of one pass over a segment: 24 bytes of memory each.
const PASS_PATCHES_MAX: usize = limit(500_000, 40);
/// A record with more patches is read beside the others, from front to back. A segment has few of these.
const LONG_RECORD_PATCHES: u32 = limit(250_000, 6) as u32;
/// Memory for the blocks that are read back.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

/// What [`seal`] has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// First transaction of the segment.
    pub first: Txid,
    /// Its last transaction.
    pub last: Txid,
    /// Length of the raw segment, in bytes.
    pub raw_bytes: u64,
    /// Length of the sealed one, in bytes.
    pub sealed_bytes: u64,
}

/// Seals the oldest raw segment that can be sealed: rewrites it with its patches ordered by page, compressed, with an index, and
/// removes the raw one. `None` if there is none whose last transaction is at most `upto`.
///
/// A segment can be sealed when another one follows; the one that is appended to never is. The new file is complete, on the disk,
/// read back and compared byte by byte before it gets its name, and only then the old one is removed: readers find one or both. A
/// crash leaves at most a file `*.new` or both forms, which the next call clears away.
///
/// Reading needs no lock, appending goes on; but only one process at a time may seal or write snapshots (a lock of the caller's).
/// Takes memory of about 30 MiB, and time of the order of a second for 64 MiB.
///
/// ```
/// use std::sync::Arc;
/// use mycelite_journal::*;
/// # let dir = tempfile::tempdir()?;
/// let storage: Arc<dyn Storage> = Arc::new(FileStorage::new(dir.path()));
/// let mut log = Log::create(storage.clone(), DatabaseId([7; 16]), 0)?;
/// log.set_segment_bytes_max(0); // a segment for each record
/// for byte in 1..=3u8 {
///     let old = [byte - 1; 512];
///     let mut record = log.begin(Draft::new(PageSize::MIN, 1, 1))?;
///     record.patch(1, Some(&old), &[byte; 512])?;
///     record.commit()?;
/// }
/// while let Some(sealed) = seal(&*storage, Txid(u64::MAX))? {
///     println!("{} to {}: {} -> {} bytes", sealed.first, sealed.last, sealed.raw_bytes, sealed.sealed_bytes);
/// }
/// // The third is in the segment that is appended to.
/// assert!(storage.list()?.contains(&sealed_name(Txid(2), Txid(2))));
/// assert!(storage.list()?.contains(&segment_name(Txid(3))));
/// let mut reader = Reader::open(storage)?;
/// assert!(reader.find(Txid(2))?.is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Error::Corrupt`] if the segment is damaged, which is then left as it is; [`Error::NotFound`], [`Error::Version`], [`Error::Io`].
pub fn seal(storage: &dyn Storage, upto: Txid) -> Result<Option<Sealed>> {
    seal_at(storage, upto, &FullSpeed)
}

/// As [`seal`], as fast as `pace` says.
///
/// # Errors
/// As [`seal`]; [`Error::Stopped`].
pub fn seal_at(storage: &dyn Storage, upto: Txid, pace: &dyn Pace) -> Result<Option<Sealed>> {
    let meta = Meta::read(storage)?;
    let names = list(storage)?;
    if names.iter().any(|name| name == CUT_NAME) {
        // Opening the log for writing finishes the cut; what it leaves can be sealed then.
        return Ok(None);
    }
    clear(storage, &names)?;
    let mut raws: Vec<Txid> = names
        .iter()
        .filter_map(|name| parse_segment_name(name))
        .collect();
    raws.sort_unstable();
    for (index, first) in raws.iter().enumerate() {
        let first = *first;
        let Opened::Segment(segment) = Segment::open_raw(storage, meta.id, first)? else {
            continue;
        };
        let twin = names
            .iter()
            .find(|name| parse_sealed_name(name).is_some_and(|range| range.0 == first));
        if let Some(twin) = twin {
            finish(storage, &segment, twin, pace)?;
            continue;
        }
        let Some(last) = last_of(storage, &segment)? else {
            return match raws.get(index + 1) {
                Some(later) => unfinished(storage, &segment, *later),
                None => Ok(None),
            };
        };
        if last > upto {
            return Ok(None);
        }
        return seal_segment(storage, &segment, last, pace).map(Some);
    }
    Ok(None)
}

/// Removes what a crash left behind.
pub(crate) fn clear(storage: &dyn Storage, names: &[String]) -> Result<()> {
    for name in names {
        let ours = name.strip_suffix(TEMP_SUFFIX).is_some_and(|name| {
            first_of(name).is_some()
                || parse_snapshot_name(name).is_some()
                || parse_merged_name(name).is_some()
        });
        if ours {
            remove(storage, name)?;
        }
    }
    Ok(())
}

pub(crate) fn remove(storage: &dyn Storage, name: &str) -> Result<()> {
    match storage.remove(name) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::io(
            "removing a file of the log",
            storage.display(name),
            source,
        )),
        _ => Ok(()),
    }
}

pub(crate) fn sync_dir(storage: &dyn Storage) -> Result<()> {
    storage
        .sync_dir()
        .map_err(|source| Error::io("syncing the log directory", storage.display(""), source))
}

/// The last transaction of a segment that another one follows, so that all of it is on the disk; `None` if none does.
fn last_of(storage: &dyn Storage, segment: &Segment) -> Result<Option<Txid>> {
    let Some(cursor) = Cursor::at_end_of(segment.clone())?.filter(|cursor| cursor.sealed) else {
        return Ok(None);
    };
    match Segment::open(storage, segment.header.id, cursor.next_txid())? {
        Opened::Segment(next) if next.header.follows == cursor.head.pos => {
            Ok(Some(cursor.head.pos.txid))
        }
        Opened::Segment(_) => Err(cursor.corrupt(
            "the next segment does not begin where this one ends".into(),
            DAMAGE_HINT,
        )),
        Opened::Missing | Opened::Unborn => Ok(None),
    }
}

/// A segment that does not end as one that is followed by another. That is right only while the next one is being started.
fn unfinished(storage: &dyn Storage, segment: &Segment, later: Txid) -> Result<Option<Sealed>> {
    if let Opened::Segment(_) = Segment::open_raw(storage, segment.header.id, later)? {
        let mut records = Records(Cursor::at_start(segment.clone()));
        while records.next()?.is_some() {}
        return Err(records.0.corrupt(
            "the segment after this one does not follow it".into(),
            DAMAGE_HINT,
        ));
    }
    Ok(None)
}

fn seal_segment(
    storage: &dyn Storage,
    segment: &Segment,
    last: Txid,
    pace: &dyn Pace,
) -> Result<Sealed> {
    let name = sealed_name(segment.first(), last);
    let temp = format!("{name}{TEMP_SUFFIX}");
    let raw = Arc::new(ReadAhead::new(Arc::clone(&segment.file)));
    let built = build(storage, segment, &raw, &temp, pace).and_then(|sealed_bytes| {
        let file = open(storage, segment, &temp)?;
        check::against(&file, &raw, pace)?;
        storage.rename(&temp, &name).map_err(|source| {
            Error::io("naming a sealed segment", storage.display(&name), source)
        })?;
        Ok(sealed_bytes)
    });
    let sealed_bytes = match built {
        Ok(bytes) => bytes,
        Err(error) => {
            // The first error is the one that matters; the next call clears it away.
            let _ = storage.remove(&temp);
            return Err(error);
        }
    };
    let raw_bytes = Cursor::at_start(segment.clone()).size()?;
    sync_dir(storage)?;
    remove(storage, &segment_name(segment.first()))?;
    Ok(Sealed {
        first: segment.first(),
        last,
        raw_bytes,
        sealed_bytes,
    })
}

fn open(storage: &dyn Storage, segment: &Segment, name: &str) -> Result<BlockFile> {
    let cache = BlockCache::new(CACHE_BYTES);
    let file = BlockFile::open(storage, name, Kind::Sealed, segment.header.id, &cache)?;
    match file {
        Some(file) => Ok(file),
        None => Err(Error::NotFound {
            what: format!("{}: the file is gone", storage.display(name)),
            hint: "two processes seal this log at once: give them one lock",
        }),
    }
}

/// Both forms of a segment are there: the crash came before the raw one was removed.
fn finish(storage: &dyn Storage, segment: &Segment, twin: &str, pace: &dyn Pace) -> Result<()> {
    let file = open(storage, segment, twin)?;
    let raw = ReadAhead::new(Arc::clone(&segment.file));
    check::against(&file, &raw, pace)?;
    sync_dir(storage)?;
    remove(storage, &segment_name(segment.first()))
}

/// Writes the sealed form of a segment; returns its length in bytes.
fn build(
    storage: &dyn Storage,
    segment: &Segment,
    raw: &Arc<ReadAhead>,
    name: &str,
    pace: &dyn Pace,
) -> Result<u64> {
    let header = FileHeader {
        kind: Kind::Sealed,
        id: segment.header.id,
        pos: segment.header.follows,
    };
    let mut writer = BlockFileWriter::create(storage, name, header, pace)?;
    let segment = Segment {
        file: Arc::clone(raw) as Arc<dyn StorageFile>,
        ..segment.clone()
    };
    let runs = runs(&segment, raw)?;
    let names = list(storage)?;
    let segment_len = Cursor::at_start(segment).size()?;
    for (index, run) in runs.iter().enumerate() {
        writer.section(run.first, run.page_size)?;
        // The other sections begin with every page.
        let (id, pos, size) = (header.id, header.pos, run.page_size);
        let mut before =
            (index == 0).then(|| Before::new(storage, &names, id, pos, size, segment_len));
        run.write(&mut writer, &mut before)?;
    }
    for header in runs.iter().flat_map(|run| &run.headers) {
        writer.record(header)?;
    }
    writer.finish_sealed()
}

/// The records of a segment, as the sections that they give.
fn runs(segment: &Segment, raw: &Arc<ReadAhead>) -> Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    let mut records = Records(Cursor::at_start(segment.clone()));
    while let Some(entry) = records.next()? {
        let size = entry.header.page_size;
        if runs.last().is_none_or(|run| run.page_size != size) {
            runs.push(Run {
                segment: segment.clone(),
                raw: Arc::clone(raw),
                start: entry.offset,
                first: entry.header.txid,
                page_size: size,
                headers: Vec::new(),
                longs: Vec::new(),
            });
        }
        if let Some(run) = runs.last_mut() {
            run.headers.push(entry.header);
            if entry.header.patch_count > LONG_RECORD_PATCHES {
                run.longs.push(entry);
            }
        }
    }
    Ok(runs)
}

/// The records of one segment that is at rest.
pub(crate) struct Records(pub(crate) Cursor);

impl Records {
    pub(crate) fn next(&mut self) -> Result<Option<RecordEntry>> {
        match self.0.probe()? {
            Step::Record(entry) => {
                let end = self.0.offset + entry.header.record_len();
                self.0.moved(&entry.header, end);
                Ok(Some(entry))
            }
            Step::Seal => Ok(None),
            Step::End => Err(self
                .0
                .corrupt("the segment has no seal".into(), DAMAGE_HINT)),
            Step::Unfinished(tail) => Err(self.0.corrupt(tail.why, DAMAGE_HINT)),
        }
    }
}

/// Consecutive records with one page size.
struct Run {
    segment: Segment,
    /// The segment's file.
    raw: Arc<ReadAhead>,
    /// Where the first record begins.
    start: u64,
    first: Txid,
    page_size: PageSize,
    headers: Vec<RecordHeader>,
    /// Those with more patches than [`LONG_RECORD_PATCHES`].
    longs: Vec<RecordEntry>,
}

/// Where a patch is.
#[derive(Clone, Copy)]
struct Place {
    pgno: Pgno,
    length: u32,
    txid: Txid,
    at: u64,
}

/// A long record that is read along.
struct Long {
    txid: Txid,
    stream: PatchStream,
    /// The patch that it has come to.
    pgno: Option<Pgno>,
    patch: Vec<u8>,
}

impl Long {
    fn advance(&mut self) -> Result<()> {
        self.patch.clear();
        self.pgno = match self.stream.next()? {
            Some(patch) => {
                patch.store(&mut self.patch);
                Some(patch.pgno())
            }
            None => None,
        };
        Ok(())
    }
}

impl Run {
    /// Hands all patches to the writer, ordered by page, then transaction: in as many passes over the records as memory asks for.
    fn write(
        &self,
        writer: &mut BlockFileWriter<'_>,
        before: &mut Option<Before<'_>>,
    ) -> Result<()> {
        let mut longs = Vec::new();
        for entry in &self.longs {
            let mut long = Long {
                txid: entry.header.txid,
                stream: entry.patches(),
                pgno: None,
                patch: Vec::new(),
            };
            long.advance()?;
            longs.push(long);
        }
        let mut after = Some(0);
        while let Some(from) = after {
            let (places, to) = self.places(from)?;
            self.merge(&places, &mut longs, to, (writer, before))?;
            after = to;
        }
        Ok(())
    }

    /// The patches of as many pages behind `from` as fit, in order; and the last of these pages, `None` when no more follow.
    fn places(&self, from: Pgno) -> Result<(Vec<Place>, Option<Pgno>)> {
        let mut places: Vec<Place> = Vec::new();
        let mut to = None;
        let mut limit = PASS_PATCHES_MAX;
        let mut spare = Vec::new();
        let mut offset = self.start;
        for header in &self.headers {
            if header.patch_count <= LONG_RECORD_PATCHES {
                let mut at = offset + HEADER_LEN as u64;
                self.each_patch(header, offset, &mut spare, &mut |patch| {
                    let (pgno, length) = (patch.pgno(), patch.stored_len() as u32);
                    if pgno > from && to.is_none_or(|to| pgno <= to) {
                        places.push(Place {
                            pgno,
                            length,
                            txid: header.txid,
                            at,
                        });
                    }
                    at += u64::from(length);
                })?;
            }
            offset += header.record_len();
            if places.len() > limit {
                places.sort_by_key(|place| place.pgno);
                let middle = places.get(places.len() / 2).map(|place| place.pgno);
                to = middle;
                places.retain(|place| Some(place.pgno) <= middle);
                // One page may have more than its share.
                limit = limit.max(2 * places.len());
            }
        }
        // They were found in the order of transactions, which stays.
        places.sort_by_key(|place| place.pgno);
        Ok((places, to))
    }

    /// Hands the patches of the record at `offset` to `work`, found good.
    fn each_patch(
        &self,
        header: &RecordHeader,
        offset: u64,
        spare: &mut Vec<u8>,
        work: &mut dyn FnMut(&PatchRef<'_>),
    ) -> Result<()> {
        let entry = || RecordEntry::new(*header, &self.segment, offset);
        if header.body_len > CHUNK {
            let mut patches = entry().patches();
            while let Some(patch) = patches.next()? {
                work(&patch);
            }
            return Ok(());
        }
        let (at, length) = (offset + HEADER_LEN as u64, header.body_len as usize);
        let good = self
            .raw
            .with(at, length, spare, |body| each_patch(body, header, work))
            .map_err(|source| read_error(&self.segment, source))?;
        good.map_err(|what| entry().corrupt(what.to_string()))
    }

    /// Writes these patches and those of the long records, up to page `to`.
    fn merge(
        &self,
        places: &[Place],
        longs: &mut [Long],
        to: Option<Pgno>,
        (writer, before): (&mut BlockFileWriter<'_>, &mut Option<Before<'_>>),
    ) -> Result<()> {
        let mut places = places.iter().peekable();
        let mut spare = Vec::new();
        let mut page = 0;
        let mut add = |txid, patch: &PatchRef<'_>| {
            let is_first = page != patch.pgno();
            page = patch.pgno();
            if let Some(before) = before
                && is_first
                && !patch.is_complete()
                && let Some(image) = before.far_page(page)?
            {
                writer.page_before(page, image);
            }
            writer.patch(txid, patch)
        };
        loop {
            let place = places.peek().map(|place| (place.pgno, place.txid));
            let long = longs
                .iter_mut()
                .filter_map(|long| Some(((long.pgno?, long.txid), long)))
                .filter(|(key, _)| to.is_none_or(|to| key.0 <= to))
                .min_by_key(|(key, _)| *key);
            match (place, long) {
                (place, Some((key, long))) if place.is_none_or(|place| key < place) => {
                    add(key.1, &PatchRef::trusted(&long.patch))?;
                    long.advance()?;
                }
                (Some(_), _) => {
                    if let Some(place) = places.next() {
                        let (at, length) = (place.at, place.length as usize);
                        self.raw
                            .with(at, length, &mut spare, |stored| {
                                add(place.txid, &self.parse(place, stored)?)
                            })
                            .map_err(|source| read_error(&self.segment, source))??;
                    }
                }
                (None, _) => return Ok(()),
            }
        }
    }

    fn parse<'a>(&self, place: &Place, stored: &'a [u8]) -> Result<PatchRef<'a>> {
        match PatchRef::parse(stored, self.page_size) {
            Ok((patch, length)) if length == stored.len() && patch.pgno() == place.pgno => {
                Ok(patch)
            }
            _ => Err(Error::Corrupt {
                path: self.segment.path.to_string(),
                offset: place.at,
                txid: Some(place.txid),
                what: "the file changed while it was read".into(),
                hint: DAMAGE_HINT,
            }),
        }
    }
}
