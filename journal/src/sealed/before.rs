//! Pages as they were before a segment that is being sealed.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::pos::{DatabaseId, PageSize, Pgno, Pos, Txid};
use crate::sealed::cache::BlockCache;
use crate::sealed::file::{BlockFile, Laid};
use crate::sealed::format::{
    Kind, merged_name, parse_merged_name, parse_sealed_name, parse_snapshot_name, sealed_name,
    snapshot_name,
};
use crate::sealed::limit;
use crate::sealed::overlay::Overlay;
use crate::storage::Storage;

/// A page whose bytes lie in more files than this gets a complete image,
const FILES_OF_A_PAGE_MAX: u32 = limit(4, 1) as u32;
/// as long as all images together have no more than this part of the raw segment's bytes: where a transaction hits any page
/// of a large database, images would take more than the patches, and snapshots do better.
const IMAGES_PART: u64 = limit(16, 2) as u64;
/// Memory for decompressed blocks, in bytes.
const CACHE_BYTES: usize = 8 * 1024 * 1024;
/// Files that are kept open.
const FILES_MAX: usize = 64;

/// The sealed and merged segments and the snapshot before a place in the history.
pub(crate) struct Before<'a> {
    storage: &'a dyn Storage,
    id: DatabaseId,
    /// The place.
    pos: Pos,
    page_size: PageSize,
    /// Bytes of images that may still be given.
    left: u64,
    /// Sealed and merged segments by their last transactions, which are states in each form: name and kind.
    segments: HashMap<Txid, (String, Kind)>,
    /// The newest snapshot, 0 for none.
    snapshot: Txid,
    open: HashMap<String, Arc<BlockFile>>,
    cache: Arc<BlockCache>,
    overlay: Overlay,
}

impl<'a> Before<'a> {
    pub(crate) fn new(
        storage: &'a dyn Storage,
        names: &[String],
        id: DatabaseId,
        pos: Pos,
        page_size: PageSize,
        segment_len: u64,
    ) -> Before<'a> {
        let segments = names
            .iter()
            .filter_map(|name| match parse_sealed_name(name) {
                Some((first, last)) => Some((last, (sealed_name(first, last), Kind::Sealed))),
                None => {
                    let (first, last) = parse_merged_name(name)?;
                    Some((last, (merged_name(first, last), Kind::Merged)))
                }
            });
        let snapshots = names.iter().filter_map(|name| parse_snapshot_name(name));
        Before {
            storage,
            id,
            pos,
            page_size,
            left: segment_len / IMAGES_PART,
            segments: segments.collect(),
            snapshot: snapshots
                .filter(|txid| *txid <= pos.txid)
                .max()
                .unwrap_or(Txid(0)),
            open: HashMap::new(),
            cache: BlockCache::new(CACHE_BYTES),
            overlay: Overlay::new(page_size),
        }
    }

    /// A page, if it has to be put together from many files; `None` if not, or if it cannot be: an image of it is no more than a help.
    pub(crate) fn far_page(&mut self, pgno: Pgno) -> Result<Option<&[u8]>> {
        let Some(left) = self.left.checked_sub(u64::from(self.page_size.get())) else {
            return Ok(None);
        };
        self.overlay.clear();
        match self.walk(pgno) {
            Ok(Some(files)) if files > FILES_OF_A_PAGE_MAX => {
                self.left = left;
                Ok(Some(self.overlay.page()))
            }
            Ok(_) | Err(Error::Corrupt { .. } | Error::Version { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts the page together; returns the number of files that had a part of it.
    fn walk(&mut self, pgno: Pgno) -> Result<Option<u32>> {
        let mut files = 0;
        let mut pos = self.pos;
        while pos.txid > self.snapshot {
            let Some((name, kind)) = self.segments.get(&pos.txid).cloned() else {
                return Ok(None);
            };
            let Some(file) = self.file(&name, kind)? else {
                return Ok(None);
            };
            if file.footer.head.pos != pos || file.footer.head.page_size != Some(self.page_size) {
                return Ok(None);
            }
            let before = self.overlay.unknown();
            let laid = file.lay(pgno, pos.txid, self.snapshot, &mut self.overlay)?;
            files += u32::from(self.overlay.unknown() < before);
            if laid == Laid::Whole {
                return Ok(Some(files));
            }
            pos = file.header.pos;
        }
        if self.snapshot.0 == 0 {
            return Ok(None);
        }
        let name = snapshot_name(self.snapshot);
        let Some(file) = self.file(&name, Kind::Snapshot)? else {
            return Ok(None);
        };
        let laid = file.lay(pgno, self.snapshot, Txid(0), &mut self.overlay)?;
        Ok((laid == Laid::Whole).then_some(files + 1))
    }

    fn file(&mut self, name: &str, kind: Kind) -> Result<Option<Arc<BlockFile>>> {
        if let Some(file) = self.open.get(name) {
            return Ok(Some(Arc::clone(file)));
        }
        let file = BlockFile::open(self.storage, name, kind, self.id, &self.cache)?;
        let Some(file) = file.map(Arc::new) else {
            return Ok(None);
        };
        if self.open.len() >= FILES_MAX {
            self.open.clear();
        }
        self.open.insert(name.into(), Arc::clone(&file));
        Ok(Some(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Archive, Draft, FaultStorage, FullSpeed, Keep, Log, Reader, RecordHeader, Txid, merge, seal,
    };

    #[test]
    fn a_page_is_put_together_from_merged_segments_too() {
        let disk = Arc::new(FaultStorage::new());
        let id = DatabaseId([7; 16]);
        let mut log = Log::create(disk.clone(), id, 0).unwrap();
        log.set_segment_bytes_max(0);
        let mut images = vec![vec![0; 512]];
        for number in 1..=12u8 {
            let old = images.last().unwrap().clone();
            let mut new = old.clone();
            new[usize::from(number) * 30] = number;
            let mut record = log.begin(Draft::new(PageSize::MIN, 1, 1)).unwrap();
            let before = (number > 1).then_some(&old[..]);
            record.patch(1, before, &new).unwrap();
            record.commit().unwrap();
            images.push(new);
        }
        while seal(&*disk, Txid(8)).unwrap().is_some() {}
        let archive = Archive::open(disk.clone()).unwrap();
        let mut none = |_: &RecordHeader, _: &RecordHeader| false;
        let keep = Keep::Some(&mut none);
        merge(&archive, Txid(1), Txid(4), keep, &FullSpeed).unwrap();
        let names = disk.list().unwrap();
        assert!(names.contains(&merged_name(Txid(1), Txid(4))), "{names:?}");

        let mut reader = Reader::open(disk.clone()).unwrap();
        let pos = reader.find(Txid(8)).unwrap().unwrap().header.pos();
        let storage: &dyn Storage = &*disk;
        let mut before = Before::new(storage, &names, id, pos, PageSize::MIN, 1 << 20);
        assert_eq!(before.far_page(1).unwrap(), Some(&images[8][..]));
    }
}
