//! A sealed segment as the raw one that it was made from, rebuilt byte for byte while it is read.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, FormatError, Result};
use crate::pos::{DatabaseId, Txid};
use crate::record::{HEADER_LEN, RecordHeader, Trailer};
use crate::sealed::cache::BlockCache;
use crate::sealed::file::BlockFile;
use crate::sealed::format::{BlockRef, Kind};
use crate::sealed::index::Section;
use crate::sealed::limit;
use crate::sealed::pieces::Pieces;
use crate::segment::{SEAL_LEN, SEGMENT_HEADER_LEN, Seal, SegmentHeader};
use crate::storage::{Storage, StorageFile};

/// Bytes of record bodies that are rebuilt in one pass over the patches, and kept in memory.
const WINDOW_BYTES: u64 = limit(16 * 1024 * 1024, 3000) as u64;
/// Memory for index and record blocks of one view.
const CACHE_BYTES: usize = 2 * 1024 * 1024;

/// The raw segment that a sealed one stands for, as a file that can be read.
pub(crate) struct RawView {
    pub(crate) file: Arc<BlockFile>,
    window: Mutex<Window>,
}

/// Bodies in memory.
enum Window {
    /// Of whole records from `first` on; `ends` says where each ends in `bytes`.
    Records {
        first: Txid,
        ends: Vec<usize>,
        bytes: Pieces,
    },
    /// A part of one long body, from `from` on; what follows begins with the block at `next`.
    Part {
        txid: Txid,
        from: u64,
        bytes: Pieces,
        next: (usize, usize),
    },
}

impl RawView {
    /// Opens a sealed segment; `None` if it is not there.
    pub(crate) fn open(
        storage: &dyn Storage,
        id: DatabaseId,
        name: &str,
    ) -> Result<Option<RawView>> {
        let cache = BlockCache::new(CACHE_BYTES);
        let file = BlockFile::open(storage, name, Kind::Sealed, id, &cache)?;
        Ok(file.map(|file| RawView::of(Arc::new(file))))
    }

    pub(crate) fn of(file: Arc<BlockFile>) -> RawView {
        RawView {
            file,
            window: Mutex::new(Window::EMPTY),
        }
    }

    pub(crate) fn segment_header(&self) -> SegmentHeader {
        SegmentHeader {
            id: self.file.header.id,
            follows: self.file.header.pos,
        }
    }

    /// Where the last record ends.
    fn records_end(&self) -> u64 {
        self.file.footer.segment_len.saturating_sub(SEAL_LEN as u64)
    }

    /// The record that begins at this offset of the raw segment; `None` behind the last one.
    pub(crate) fn record_at(&self, offset: u64) -> Result<Option<RecordHeader>> {
        if offset == self.records_end() {
            return Ok(None);
        }
        match self.around(offset)? {
            (header, start) if start == offset => Ok(Some(header)),
            (header, _) => Err(self.no_record(offset, Some(header.txid))),
        }
    }

    fn no_record(&self, offset: u64, txid: Option<Txid>) -> Error {
        let what = format!("no record at byte {offset} of the segment");
        self.file.corrupt(&self.file.footer.root, txid, what)
    }

    /// The record that has the byte at this offset, and where it begins.
    fn around(&self, offset: u64) -> Result<(RecordHeader, u64)> {
        let found = self.file.record_block(|_, _, at| at <= offset)?;
        let Some((block, entry)) = found else {
            return Err(self.no_record(offset, None));
        };
        let inside = offset - entry.at;
        let index = block.starts.partition_point(|start| *start <= inside);
        let header = index.checked_sub(1).and_then(|i| block.headers.get(i));
        let start = index.checked_sub(1).and_then(|i| block.starts.get(i));
        match (header, start) {
            (Some(header), Some(start)) => Ok((*header, entry.at + start)),
            _ => Err(self.no_record(offset, Some(entry.first))),
        }
    }

    /// Reads from one structure of the raw segment; 0 bytes at its end.
    fn read_piece(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let end = self.records_end();
        if offset < SEGMENT_HEADER_LEN as u64 {
            return Ok(copy(&self.segment_header().encode(), offset, buf));
        }
        if offset >= end {
            let seal = self.seal().encode(&self.segment_header());
            return Ok(copy(&seal, offset - end, buf));
        }
        let (header, start) = self.around(offset)?;
        let at = offset - start;
        let body_end = HEADER_LEN as u64 + header.body_len;
        if at < HEADER_LEN as u64 {
            Ok(copy(&header.encode(), at, buf))
        } else if at < body_end {
            self.read_body(&header, at - HEADER_LEN as u64, buf)
        } else {
            Ok(copy(&Trailer::of(&header).encode(), at - body_end, buf))
        }
    }

    fn seal(&self) -> Seal {
        Seal {
            next: self.file.footer.head.pos.txid.next(),
            segment_len: self.file.footer.segment_len,
        }
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        // A load that failed or panicked leaves the window as it was.
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads from a record's body, which has a byte at `at`.
    fn read_body(&self, header: &RecordHeader, at: u64, buf: &mut [u8]) -> Result<usize> {
        let mut window = self.window();
        self.fill(&mut window, header, at)?;
        match window.get(header.txid, at) {
            Some(bytes) => Ok(copy(bytes, 0, buf)),
            None => Err(self.wrong_body(header.txid)),
        }
    }

    /// Gets what the record's body has at `at` into the window.
    fn fill(&self, window: &mut Window, header: &RecordHeader, at: u64) -> Result<()> {
        if window.get(header.txid, at).is_none() {
            *window = if header.body_len <= WINDOW_BYTES {
                // Not both in memory at once.
                *window = Window::EMPTY;
                self.load_records(header)?
            } else {
                self.load_part(header, at, window)?
            };
        }
        Ok(())
    }

    fn wrong_body(&self, txid: Txid) -> Error {
        let what = "the record's patches do not add up to its body";
        self.file.corrupt(&self.file.footer.root, Some(txid), what)
    }

    fn section(&self, txid: Txid) -> Result<&Section> {
        let section = self.file.root.section(txid);
        section.ok_or_else(|| self.wrong_body(txid))
    }

    /// Rebuilds the bodies of this record and those after it, as many as the window holds, in one pass.
    fn load_records(&self, header: &RecordHeader) -> Result<Window> {
        let section = self.section(header.txid)?;
        let mut hashes = vec![header.body_hash];
        let mut ends = vec![header.body_len as usize];
        let mut bytes = header.body_len;
        let (_, last) = self.file.range();
        let mut next = header.txid.next();
        while next <= last && self.section(next)?.first == section.first {
            let (header, _) = self.file.record(next)?;
            bytes = bytes.saturating_add(header.body_len);
            if bytes > WINDOW_BYTES {
                break;
            }
            hashes.push(header.body_hash);
            ends.push(bytes as usize);
            next = next.next();
        }
        let mut starts = vec![0];
        starts.extend(ends.iter().take(ends.len() - 1));
        let mut bodies = Pieces::zeroed(ends.last().copied().unwrap_or(0));
        let range = header.txid..next;
        self.file.each_patch_block(section, |block| {
            let patches = self
                .file
                .read_patches(section, block, None, |txid| range.contains(&txid))?;
            for entry in patches.entries.iter().filter(|entry| !entry.sum) {
                let Some(index) = entry.txid.0.checked_sub(header.txid.0) else {
                    continue;
                };
                let Some(at) = starts.get_mut(index as usize) else {
                    continue;
                };
                let stored = patches.stored(entry);
                let end = ends.get(index as usize).copied().unwrap_or(0);
                let next = *at + stored.len();
                if next > end || !bodies.put(*at, stored) {
                    return Err(self.wrong_body(entry.txid));
                }
                *at = next;
            }
            Ok(())
        })?;
        let mut start = 0;
        for (index, (hash, end)) in hashes.iter().zip(&ends).enumerate() {
            if bodies.hash(start..*end) != *hash {
                let what = FormatError::Hash("record body");
                let txid = Txid(header.txid.0 + index as u64);
                return Err(self.file.corrupt(&self.file.footer.root, Some(txid), what));
            }
            start = *end;
        }
        Ok(Window::Records {
            first: header.txid,
            ends,
            bytes: bodies,
        })
    }

    /// Rebuilds the part of a long body that has the byte at `at`, going on from the last part where that helps.
    fn load_part(&self, header: &RecordHeader, at: u64, last: &Window) -> Result<Window> {
        let section = self.section(header.txid)?;
        let (mut from, (mut i, mut j)) = match last {
            Window::Part {
                txid,
                from,
                bytes,
                next,
            } if *txid == header.txid && from + bytes.len() as u64 <= at => {
                (from + bytes.len() as u64, *next)
            }
            _ => (0, (0, 0)),
        };
        let mut bytes = Pieces::default();
        while let Some((_, block)) = section.index.get(i) {
            let index = self.file.patch_index(block)?;
            while let Some(entry) = index.blocks.get(j) {
                self.append(section, &entry.block, header.txid, &mut bytes)?;
                j += 1;
                if from + bytes.len() as u64 <= at {
                    from += bytes.len() as u64;
                    bytes.clear();
                }
                if bytes.len() as u64 >= WINDOW_BYTES {
                    return Ok(part(header.txid, from, bytes, (i, j)));
                }
            }
            (i, j) = (i + 1, 0);
        }
        if from + bytes.len() as u64 != header.body_len {
            return Err(self.wrong_body(header.txid));
        }
        Ok(part(header.txid, from, bytes, (i, j)))
    }

    /// Appends the patches that one block has of a record.
    fn append(
        &self,
        section: &Section,
        block: &BlockRef,
        txid: Txid,
        bytes: &mut Pieces,
    ) -> Result<()> {
        let patches = self
            .file
            .read_patches(section, block, Some(txid), |of| of == txid)?;
        for entry in patches.entries.iter() {
            if !entry.sum {
                bytes.extend(patches.stored(entry));
            }
        }
        Ok(())
    }
}

fn part(txid: Txid, from: u64, bytes: Pieces, next: (usize, usize)) -> Window {
    Window::Part {
        txid,
        from,
        bytes,
        next,
    }
}

impl Window {
    const EMPTY: Window = Window::Records {
        first: Txid(0),
        ends: Vec::new(),
        bytes: Pieces::EMPTY,
    };

    /// Bytes of a body from `at` on, as far as they are here and lie together.
    fn get(&self, txid: Txid, at: u64) -> Option<&[u8]> {
        let bytes = match self {
            Window::Records { first, ends, bytes } => {
                let index = txid.0.checked_sub(first.0)? as usize;
                let end = *ends.get(index)?;
                let start = match index.checked_sub(1) {
                    Some(before) => *ends.get(before)?,
                    None => 0,
                };
                bytes.get(start.checked_add(usize::try_from(at).ok()?)?..end)?
            }
            Window::Part {
                txid: of,
                from,
                bytes,
                ..
            } => {
                let at = at.checked_sub(*from).filter(|_| *of == txid)?;
                bytes.get(usize::try_from(at).ok()?..bytes.len())?
            }
        };
        Some(bytes).filter(|bytes| !bytes.is_empty())
    }
}

/// Copies what there is of `bytes` from `at` on.
fn copy(bytes: &[u8], at: u64, buf: &mut [u8]) -> usize {
    let from = usize::try_from(at).ok().and_then(|at| bytes.get(at..));
    let from = from.unwrap_or_default();
    let count = from.len().min(buf.len());
    if let (Some(to), Some(from)) = (buf.get_mut(..count), from.get(..count)) {
        to.copy_from_slice(from);
    }
    count
}

impl StorageFile for RawView {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.footer.segment_len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.read_piece(rest, offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Ok(done)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync(&self) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}
