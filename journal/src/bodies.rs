//! The bodies of records that lie one behind the other, many from one reading.

use std::sync::Arc;

use crate::body::each_patch;
use crate::entry::RecordEntry;
use crate::error::{Error, FormatError, Result};
use crate::patch::PatchRef;
use crate::record::HEADER_LEN;
use crate::sealed::limit;
use crate::storage::{StorageFile, read_up_to};

/// Bytes read at once.
const RUN_BYTES_MAX: u64 = limit(256 << 10, 2000) as u64;

/// What was last read of a segment. Records are looked for here that a reader has found already: bytes behind them may be older than
/// what is there now.
#[derive(Default)]
pub struct Bodies {
    file: Option<Arc<dyn StorageFile>>,
    /// Offset of `bytes` in the file.
    start: u64,
    bytes: Vec<u8>,
}

impl Bodies {
    /// Reads the bodies of the first records in `run`, as many of them as lie one behind the other and fit. Does nothing where the
    /// first is here already, or is too long.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn load<'a>(&mut self, mut run: impl Iterator<Item = &'a RecordEntry>) -> Result<()> {
        let Some(first) = run.next().filter(|first| self.get(first).is_none()) else {
            return Ok(());
        };
        let start = first.offset;
        let mut end = start + first.header.record_len();
        let fits = |end: u64| end - start <= RUN_BYTES_MAX;
        if !fits(end) {
            return Ok(());
        }
        for entry in run {
            let behind = end + entry.header.record_len();
            if entry.offset != end || !Arc::ptr_eq(&entry.file, &first.file) || !fits(behind) {
                break;
            }
            end = behind;
        }
        self.file = None;
        self.bytes.resize((end - start) as usize, 0);
        let read = read_up_to(&*first.file, &mut self.bytes, start)
            .map_err(|source| Error::io("reading records", first.path().to_string(), source))?;
        self.bytes.truncate(read);
        (self.file, self.start) = (Some(Arc::clone(&first.file)), start);
        Ok(())
    }

    /// Hands the patches of a record to `work`, if it is here; else says `false`. The body was found good before the first.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the body is damaged: `work` may have seen patches by then that it must not use.
    pub fn each_patch(&self, entry: &RecordEntry, work: impl FnMut(&PatchRef<'_>)) -> Result<bool> {
        let Some(body) = self.get(entry) else {
            return Ok(false);
        };
        let checked = each_patch(body, &entry.header, work);
        checked.map_err(|what: FormatError| entry.corrupt(what.to_string()))?;
        Ok(true)
    }

    fn get(&self, entry: &RecordEntry) -> Option<&[u8]> {
        let file = self.file.as_ref()?;
        if !Arc::ptr_eq(file, &entry.file) {
            return None;
        }
        let from = usize::try_from(entry.offset.checked_sub(self.start)?).ok()? + HEADER_LEN;
        let length = usize::try_from(entry.header.body_len).ok()?;
        self.bytes.get(from..from.checked_add(length)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{DatabaseId, Draft, FaultStorage, Log, OpenMode, PageSize, Reader, Storage};

    /// Records of one page each, in several segments, one of them too long for a run.
    fn records(disk: &FaultStorage) -> Vec<RecordEntry> {
        let mut log = Log::create(Arc::new(disk.clone()), DatabaseId([1; 16]), 1).unwrap();
        log.set_segment_bytes_max(9000);
        let mut old = vec![0; 4096];
        for round in 0..60_u32 {
            let size = PageSize::new(4096).unwrap();
            let mut record = log.begin(Draft::new(size, 1, 1)).unwrap();
            let mut new = old.clone();
            let changed = if round == 20 {
                4096
            } else {
                40 + round as usize
            };
            for (at, byte) in new.iter_mut().enumerate().take(changed) {
                *byte = (at as u32 * 31 + round) as u8;
            }
            let before = (round > 0).then_some(&old[..]);
            record.patch(1, before, &new).unwrap();
            record.commit().unwrap();
            old = new;
        }
        let mut reader = Reader::open(Arc::new(disk.clone())).unwrap();
        std::iter::from_fn(|| reader.next().unwrap()).collect()
    }

    fn one_by_one(entry: &RecordEntry) -> Vec<(u32, Vec<u8>)> {
        let (mut patches, mut seen) = (entry.patches(), Vec::new());
        while let Some(patch) = patches.next().unwrap() {
            let mut page = vec![0; 4096];
            patch.apply(&mut page);
            seen.push((patch.pgno(), page));
        }
        seen
    }

    #[test]
    fn a_run_gives_what_single_records_give() {
        let entries = records(&FaultStorage::new());
        assert_eq!(entries.len(), 60);
        let (mut bodies, mut loads, mut alone) = (Bodies::default(), 0, 0);
        for (index, entry) in entries.iter().enumerate() {
            loads += usize::from(bodies.get(entry).is_none());
            bodies.load(entries[index..].iter()).unwrap();
            let mut seen = Vec::new();
            let here = bodies.each_patch(entry, |patch| {
                let mut page = vec![0; 4096];
                patch.apply(&mut page);
                seen.push((patch.pgno(), page));
            });
            match here.unwrap() {
                true => assert_eq!(seen, one_by_one(entry), "{index}"),
                false => alone += 1,
            }
        }
        assert_eq!(alone, 1, "the long one");
        assert!(loads < 20, "{loads} readings");
    }

    #[test]
    fn damage_is_found() {
        let disk = FaultStorage::new();
        let entries = records(&disk);
        let entry = &entries[5];
        let file = disk.open(&entry.segment, OpenMode::Write).unwrap();
        let at = entry.offset + HEADER_LEN as u64 + 20;
        let mut byte = [0];
        file.read_at(&mut byte, at).unwrap();
        file.write_at(&[byte[0] ^ 1], at).unwrap();
        let mut bodies = Bodies::default();
        bodies.load(entries[4..].iter()).unwrap();
        assert!(bodies.each_patch(&entries[4], |_| ()).unwrap());
        let mut seen = 0;
        let found = bodies.each_patch(entry, |_| seen += 1);
        assert!(matches!(found, Err(Error::Corrupt { .. })), "{found:?}");
        assert_eq!(seen, 0);
    }
}
