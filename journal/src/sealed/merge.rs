//! Making one file of several that lie side by side, with fewer states.

use std::sync::Arc;

use crate::archive::Archive;
use crate::cursor::Cursor;
use crate::error::{Error, Result};
use crate::pace::{Pace, worked};
use crate::patch::PatchRef;
use crate::pos::{PageSize, Pgno, Txid};
use crate::record::RecordHeader;
use crate::sealed::check;
use crate::sealed::file::BlockFile;
use crate::sealed::format::{FileHeader, Kind, TEMP_SUFFIX, merged_name, sealed_name};
use crate::sealed::overlay::Overlay;
use crate::sealed::patches::{PatchBlock, PatchEntry};
use crate::sealed::prove;
use crate::sealed::seal::{self, Records};
use crate::sealed::view::RawView;
use crate::sealed::write::BlockFileWriter;
use crate::segment::{Segment, list, parse_segment_name};

/// Files that are made one at once: each needs some 200 KiB of memory.
const FILES_MAX: usize = 64;
/// Transactions that are merged at once: each state takes up to 24 bytes of memory.
const RECORDS_MAX: u64 = 1_000_000;

/// Which states [`merge`] keeps.
pub enum Keep<'a> {
    /// All of them, and all records.
    All,
    /// Those for which this says so, beside the state that follows, and no records.
    Some(&'a mut dyn FnMut(&RecordHeader, &RecordHeader) -> bool),
}

/// What [`merge`] has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// Name of the new file.
    pub name: String,
    /// First transaction in it.
    pub first: Txid,
    /// Its last transaction.
    pub last: Txid,
    /// Files that it replaces.
    pub files: u64,
    /// Their length in bytes.
    pub bytes_before: u64,
    /// Length of the new file in bytes.
    pub bytes_after: u64,
    /// States that could be opened before.
    pub states_before: u64,
    /// States that still can be opened.
    pub states_after: u64,
}

/// Makes one file of the sealed and merged segments from the one that begins with `first` to the one that ends with `last`.
///
/// [`Keep::All`] makes a sealed segment, which has the same records byte for byte. With [`Keep::Some`], those states stay for which
/// it says so, and the last; it is given each one and the one that follows it. The new file is a merged one then, whose states are
/// the same byte for byte: the checksum of the database proves each of them before the new file gets its name, and only then the
/// old ones are removed. A crash leaves at most a file `*.new`, or old files beside the new one, which the next call clears away.
///
/// Who needs records and not states (a replica that is behind) finds the log as one that begins after its newest merged segment;
/// so states are given up from the oldest on.
///
/// The locking is that of [`seal`](crate::seal()): one process at a time, and everything that can be sealed is sealed before.
/// Takes memory of up to 60 MiB. Up to 64 files with a million transactions are merged at once.
///
/// # Errors
/// [`Error::NotFound`] if there are no such files side by side; [`Error::Limit`] if they are too many; [`Error::Corrupt`] if one is
/// damaged, or a state does not have its checksum: then nothing is removed; [`Error::Stopped`]; [`Error::Io`].
pub fn merge(
    archive: &Archive,
    first: Txid,
    last: Txid,
    keep: Keep<'_>,
    pace: &dyn Pace,
) -> Result<Merged> {
    merge_if(archive, first, last, keep, pace, &mut |_| true)
}

/// As [`merge`], if `last_look` agrees. It is asked when the new file is proved, right before that takes the place of the old
/// ones, and is given the transactions of the states that stay, ascending.
///
/// # Errors
/// As [`merge`]; [`Error::Stopped`] if it does not agree: then everything is as it was.
pub fn merge_if(
    archive: &Archive,
    first: Txid,
    last: Txid,
    keep: Keep<'_>,
    pace: &dyn Pace,
    last_look: &mut dyn FnMut(&[Txid]) -> bool,
) -> Result<Merged> {
    let storage = archive.storage();
    let names = list(storage)?;
    if archive.is_being_cut()? {
        return Err(Error::Misuse(
            "the log is being cut: open it for writing, which finishes that, before it is compacted",
        ));
    }
    seal::clear(storage, &names)?;
    clear_superseded(archive)?;
    let files = inputs(archive, first, last)?;
    let (whole, states) = match keep {
        Keep::All if files.iter().any(|file| file.gaps()) => {
            return Err(Error::Misuse("the records of a merged segment are gone"));
        }
        Keep::All => (true, States::choose(&files, &mut |_, _| true)?),
        Keep::Some(keep) => (false, States::choose(&files, keep)?),
    };
    let kind = if whole { Kind::Sealed } else { Kind::Merged };
    let before = archive
        .layers()
        .into_iter()
        .filter(|layer| layer.first < first);
    if !whole && before.into_iter().any(|layer| !layer.merged) {
        return Err(Error::Misuse(
            "records are given up from the oldest on: merge what is older first",
        ));
    }
    let name = match kind {
        Kind::Sealed => sealed_name(first, last),
        _ => merged_name(first, last),
    };
    let temp = format!("{name}{TEMP_SUFFIX}");
    let merging = Merging {
        archive,
        files: &files,
        states: &states,
        kind,
        pace,
    };
    let written = merging.write(&temp).and_then(|bytes| {
        merging.check(&temp)?;
        if !last_look(&states.txids) {
            return Err(Error::Stopped);
        }
        storage.rename(&temp, &name).map_err(|source| {
            Error::io("naming a file of the log", storage.display(&name), source)
        })?;
        Ok(bytes)
    });
    if written.is_err() {
        // The first error is the one that matters; the next call clears it away.
        let _ = storage.remove(&temp);
    }
    let bytes_after = written?;
    seal::sync_dir(storage)?;
    for file in files.iter().filter(|file| *file.name != *name) {
        seal::remove(storage, &file.name)?;
    }
    Ok(Merged::of(&files, &states, name, bytes_after))
}

impl Merged {
    fn of(files: &[Arc<BlockFile>], states: &States, name: String, bytes_after: u64) -> Merged {
        let (first, last) = match (files.first(), files.last()) {
            (Some(first), Some(last)) => (first.range().0, last.range().1),
            _ => (Txid(0), Txid(0)),
        };
        Merged {
            name,
            first,
            last,
            files: files.len() as u64,
            bytes_before: files.iter().map(|file| file.size).sum(),
            bytes_after,
            states_before: files.iter().map(|file| file.record_count()).sum(),
            states_after: states.txids.len() as u64,
        }
    }
}

/// Removes the files that a crash left beside the one that was made of them.
pub(crate) fn clear_superseded(archive: &Archive) -> Result<()> {
    archive.refresh()?;
    let storage = archive.storage();
    for (name, by) in archive.superseded() {
        // It has its name, so it was complete and proved; but it must be there.
        if archive.file(&by.name(), by.kind())?.is_some() {
            seal::sync_dir(storage)?;
            seal::remove(storage, &name)?;
        }
    }
    archive.refresh()
}

/// The files to merge, open, in order.
fn inputs(archive: &Archive, first: Txid, last: Txid) -> Result<Vec<Arc<BlockFile>>> {
    let storage = archive.storage();
    let missing = |at: Txid| Error::NotFound {
        what: format!(
            "{}: no sealed segment begins with transaction {at}, of those to merge from {first} to {last}",
            storage.display("")
        ),
        hint: "seal all that can be sealed first, and merge whole files",
    };
    let raws = list(storage)?;
    if raws
        .iter()
        .filter_map(|name| parse_segment_name(name))
        .any(|at| at <= last)
    {
        return Err(missing(first));
    }
    let mut files: Vec<Arc<BlockFile>> = Vec::new();
    let mut next = first;
    let mut records = 0;
    while next <= last {
        let layer = archive.layer(next).filter(|layer| layer.first == next);
        let Some(layer) = layer.filter(|layer| layer.last <= Some(last)) else {
            return Err(missing(next));
        };
        let Some(file) = archive.file(&layer.name(), layer.kind())? else {
            return Err(missing(next));
        };
        if let Some(before) = files.last()
            && before.footer.head.pos != file.header.pos
        {
            let what = "the file does not begin where the one before ends";
            return Err(file.corrupt(&file.footer.root, Some(next), what));
        }
        records += file.record_count();
        next = file.range().1.next();
        files.push(file);
        let limit = |what, found, limit| Err(Error::Limit { what, found, limit });
        if files.len() > FILES_MAX {
            return limit(
                "files to merge at once",
                files.len() as u64,
                FILES_MAX as u64,
            );
        }
        if records > RECORDS_MAX {
            return limit("transactions to merge at once", records, RECORDS_MAX);
        }
    }
    Ok(files)
}

/// The states that stay.
pub(crate) struct States {
    /// Their transactions, ascending; the last one of all is among them.
    pub(crate) txids: Vec<Txid>,
    /// Pages of each.
    page_counts: Vec<u32>,
}

impl States {
    fn choose(
        files: &[Arc<BlockFile>],
        keep: &mut dyn FnMut(&RecordHeader, &RecordHeader) -> bool,
    ) -> Result<States> {
        let mut states = States {
            txids: Vec::new(),
            page_counts: Vec::new(),
        };
        let mut before: Option<RecordHeader> = None;
        for file in files {
            file.each_record(|header| {
                if let Some(before) = before.as_ref().filter(|before| keep(before, header)) {
                    states.push(before);
                }
                before = Some(*header);
                Ok(())
            })?;
        }
        if let Some(last) = &before {
            states.push(last);
        }
        Ok(states)
    }

    fn push(&mut self, header: &RecordHeader) {
        self.txids.push(header.txid);
        self.page_counts.push(header.page_count);
    }

    /// The number of the state that a transaction goes into.
    fn of(&self, txid: Txid) -> usize {
        self.txids.partition_point(|state| *state < txid)
    }

    pub(crate) fn page_count(&self, number: usize) -> u32 {
        self.page_counts.get(number).copied().unwrap_or(0)
    }
}

/// One run of [`merge`].
struct Merging<'a> {
    archive: &'a Archive,
    files: &'a [Arc<BlockFile>],
    states: &'a States,
    kind: Kind,
    pace: &'a dyn Pace,
}

/// Sections of the files, one after the other, with one page size.
struct Run {
    page_size: PageSize,
    /// Number of the file, and of the section in it.
    parts: Vec<(usize, usize)>,
    /// The numbers of the states that the run has.
    states: std::ops::Range<usize>,
}

/// What is written of each state.
#[derive(Clone, Copy, Default)]
struct Sum {
    patches: u32,
    bytes: u64,
}

impl Merging<'_> {
    fn write(&self, temp: &str) -> Result<u64> {
        let Some(first) = self.files.first() else {
            return Err(Error::Misuse("nothing to merge"));
        };
        let header = FileHeader {
            kind: self.kind,
            ..first.header
        };
        let mut writer = BlockFileWriter::create(self.archive.storage(), temp, header, self.pace)?;
        let mut sums = vec![Sum::default(); self.states.txids.len()];
        for run in self.runs() {
            if run.states.is_empty() {
                // All of it is overwritten by the first state with another page size.
                continue;
            }
            let before = run.states.start.checked_sub(1);
            let before = before.and_then(|number| self.states.txids.get(number));
            let start = before.map_or(first.range().0, |before| before.next());
            writer.section(start, run.page_size)?;
            self.write_run(&run, &mut writer, &mut sums)?;
        }
        self.write_records(&mut writer, &sums)?;
        writer.finish_sealed()
    }

    fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (f, file) in self.files.iter().enumerate() {
            for (s, section) in file.root.sections.iter().enumerate() {
                let end = match file.root.sections.get(s + 1) {
                    Some(next) => next.first,
                    None => file.range().1.next(),
                };
                let states = self.states.of(section.first)..self.states.of(end);
                match runs.last_mut() {
                    Some(run) if run.page_size == section.page_size => {
                        run.parts.push((f, s));
                        run.states.end = states.end;
                    }
                    _ => runs.push(Run {
                        page_size: section.page_size,
                        parts: vec![(f, s)],
                        states,
                    }),
                }
            }
        }
        runs
    }

    /// Writes the patches of all pages, page by page.
    fn write_run(
        &self,
        run: &Run,
        writer: &mut BlockFileWriter<'_>,
        sums: &mut [Sum],
    ) -> Result<()> {
        let mut parts = Vec::new();
        for (f, s) in &run.parts {
            if let Some(file) = self.files.get(*f) {
                let mut part = Part::new(file, *s);
                part.load()?;
                parts.push(part);
            }
        }
        let mut page = PageWriter::new(self, run, sums);
        while let Some(pgno) = parts.iter().filter_map(Part::pgno).min() {
            for part in parts.iter_mut().filter(|part| part.pgno() == Some(pgno)) {
                while let Some((block, entry)) = part.entry().filter(|(_, e)| e.pgno == pgno) {
                    if !entry.sum {
                        page.add(writer, entry.txid, &block.patch(entry))?;
                    }
                    if part.advance()? {
                        worked(self.pace, 64 * 1024)?;
                    }
                }
            }
            page.flush(writer)?;
        }
        Ok(())
    }

    /// Writes the records' headers: those of the states that stay, each of all that it stands for.
    fn write_records(&self, writer: &mut BlockFileWriter<'_>, sums: &[Sum]) -> Result<()> {
        let mut number = 0;
        let mut flags = 0;
        let mut before: Option<RecordHeader> = None;
        for file in self.files {
            file.each_record(|header| {
                let first = *before.get_or_insert(*header);
                flags |= header.flags;
                if self.states.txids.get(number) != Some(&header.txid) {
                    return Ok(());
                }
                let sum = sums.get(number).copied().unwrap_or_default();
                let merged = match self.kind {
                    Kind::Sealed => *header,
                    _ => RecordHeader {
                        flags,
                        pre_page_size: first.pre_page_size,
                        pre_page_count: first.pre_page_count,
                        pre_checksum: first.pre_checksum,
                        patch_count: sum.patches,
                        body_len: sum.bytes,
                        body_hash: 0,
                        ..*header
                    },
                };
                number += 1;
                flags = 0;
                before = None;
                writer.record(&merged)
            })?;
        }
        Ok(())
    }

    /// Proves the new file before it takes the place of the old ones.
    fn check(&self, temp: &str) -> Result<()> {
        let archive = self.archive;
        let (storage, id) = (archive.storage(), archive.id());
        let file = BlockFile::open(storage, temp, self.kind, id, archive.cache())?;
        let Some(file) = file.map(Arc::new) else {
            return Err(Error::NotFound {
                what: format!("{}: the file is gone", storage.display(temp)),
                hint: "two processes compact this log at once: give them one lock",
            });
        };
        let ends = self.files.first().zip(self.files.last());
        let fits = ends.is_some_and(|(first, last)| {
            file.header.pos == first.header.pos && file.footer.head == last.footer.head
        });
        if !fits {
            let what = "it does not begin and end as the files that it is made of";
            return Err(file.corrupt(&file.footer.root, None, what));
        }
        check::blocks(&file, self.pace, &mut |_, _| Ok(()))?;
        if self.kind == Kind::Sealed {
            let view = Arc::new(RawView::of(file));
            let mut records = Records(Cursor::at_start(Segment::of_sealed(view)));
            while let Some(entry) = records.next()? {
                entry.verify()?;
                worked(self.pace, entry.header.record_len())?;
            }
            return Ok(());
        }
        prove::states(archive, &file, self.pace)
    }
}

/// Where the merging is in one section of one file.
struct Part<'a> {
    file: &'a BlockFile,
    section: usize,
    /// Index block, and block in it, that come next.
    next: (usize, usize),
    block: PatchBlock,
    at: usize,
}

impl Part<'_> {
    fn new(file: &BlockFile, section: usize) -> Part<'_> {
        Part {
            file,
            section,
            next: (0, 0),
            block: PatchBlock::default(),
            at: 0,
        }
    }

    fn entry(&self) -> Option<(&PatchBlock, &PatchEntry)> {
        Some((&self.block, self.block.entries.get(self.at)?))
    }

    fn pgno(&self) -> Option<Pgno> {
        self.block.entries.get(self.at).map(|entry| entry.pgno)
    }

    /// Moves to the next patch. Returns whether a block was read for it.
    fn advance(&mut self) -> Result<bool> {
        self.at += 1;
        if self.at < self.block.entries.len() {
            return Ok(false);
        }
        self.load()?;
        Ok(true)
    }

    /// Reads the next block that has patches; none are left at the section's end.
    fn load(&mut self) -> Result<()> {
        self.at = 0;
        self.block = PatchBlock::default();
        let Some(section) = self.file.root.sections.get(self.section) else {
            return Ok(());
        };
        while let Some((_, index)) = section.index.get(self.next.0) {
            let index = self.file.patch_index(index)?;
            match index.blocks.get(self.next.1) {
                Some(block) => {
                    self.next.1 += 1;
                    self.block = self
                        .file
                        .read_patches(section, &block.block, None, |_| true)?;
                    if !self.block.entries.is_empty() {
                        return Ok(());
                    }
                }
                None => self.next = (self.next.0 + 1, 0),
            }
        }
        Ok(())
    }
}

/// Collects the patches of one page, state by state.
struct PageWriter<'a> {
    merging: &'a Merging<'a>,
    states: std::ops::Range<usize>,
    sums: &'a mut [Sum],
    overlay: Overlay,
    /// The state whose patches are being collected, how many there are so far, and the only one of them.
    state: Option<usize>,
    patches: u32,
    single: Vec<u8>,
}

impl<'a> PageWriter<'a> {
    fn new(merging: &'a Merging<'a>, run: &Run, sums: &'a mut [Sum]) -> PageWriter<'a> {
        PageWriter {
            merging,
            states: run.states.clone(),
            sums,
            overlay: Overlay::new(run.page_size),
            state: None,
            patches: 0,
            single: Vec::new(),
        }
    }

    fn add(
        &mut self,
        writer: &mut BlockFileWriter<'_>,
        txid: Txid,
        patch: &PatchRef<'_>,
    ) -> Result<()> {
        let state = self.merging.states.of(txid);
        if self.state != Some(state) {
            self.flush(writer)?;
            if !self.states.contains(&state) || patch.pgno() > self.merging.states.page_count(state)
            {
                // Overwritten, or cut off, before the next state that stays.
                return Ok(());
            }
            self.state = Some(state);
            self.overlay.clear();
            self.single.clear();
            patch.store(&mut self.single);
        }
        self.patches += 1;
        self.overlay.put(patch);
        Ok(())
    }

    /// Writes what was collected.
    fn flush(&mut self, writer: &mut BlockFileWriter<'_>) -> Result<()> {
        let Some(state) = self.state.take() else {
            return Ok(());
        };
        let states = &self.merging.states.txids;
        let txid = states.get(state).copied().unwrap_or_default();
        if self.patches > 1 {
            let pgno = PatchRef::trusted(&self.single).pgno();
            self.single.clear();
            self.overlay.encode(pgno, &mut self.single);
        }
        self.patches = 0;
        if let Some(sum) = self.sums.get_mut(state) {
            sum.patches += 1;
            sum.bytes += self.single.len() as u64;
        }
        writer.patch(txid, &PatchRef::trusted(&self.single))
    }
}
