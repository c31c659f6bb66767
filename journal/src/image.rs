//! Replaying records into a database image.

use crate::entry::RecordEntry;
use crate::error::{Error, Result};
use crate::pos::{Checksum, PageSize, Pgno, Pos, page_checksum};
use crate::record::RecordHeader;
use crate::storage::{StorageFile, read_exact_at};

/// Bytes read at once when a whole file is summed up.
const SCAN_BYTES: usize = 1024 * 1024;

/// A database image in a file, at some transaction of its history. Records are applied to it one after the other, each proved by the
/// checksums before and after it.
///
/// It writes the file's bytes directly: for files that no SQLite has open.
///
/// ```
/// # use std::sync::Arc;
/// # use mycelite_journal::*;
/// # let dir = tempfile::tempdir()?;
/// # let storage = Arc::new(FileStorage::new(dir.path()));
/// # let mut log = Log::create(storage.clone(), DatabaseId([7; 16]), 0)?;
/// # let mut record = log.begin(Draft::new(PageSize::MIN, 2, 1))?;
/// # record.patch(1, None, &[42; 512])?;
/// # record.patch(2, None, &[43; 512])?;
/// # record.commit()?;
/// let mut image = Image::new(storage.open("image", OpenMode::Create)?);
/// let mut reader = Reader::open(storage.clone())?;
/// while let Some(entry) = reader.next()? {
///     image.apply(&entry)?;
/// }
/// assert_eq!(image.pos(), log.head().pos);
/// assert_eq!(storage.size("image")?, 2 * 512);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Image {
    file: Box<dyn StorageFile>,
    pos: Pos,
    page_size: Option<PageSize>,
    page_count: u32,
    page: Vec<u8>,
    /// An apply failed half-way.
    broken: bool,
}

impl Image {
    /// The image before the first transaction; the file's content is ignored and overwritten.
    #[must_use]
    pub fn new(file: Box<dyn StorageFile>) -> Image {
        Image {
            file,
            pos: Pos::ZERO,
            page_size: None,
            page_count: 0,
            page: Vec::new(),
            broken: false,
        }
    }

    /// An image that a file already holds, at `pos`. The file is read once to prove it, and cut to the image's length.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the file has another checksum; [`Error::Io`].
    pub fn resume(
        file: Box<dyn StorageFile>,
        pos: Pos,
        page_size: PageSize,
        page_count: u32,
    ) -> Result<Image> {
        let found = scan_checksum(&*file, page_size, page_count)?;
        if found != pos.checksum {
            return Err(Error::Mismatch {
                what: "the image's checksum",
                expected: pos.checksum.to_string(),
                found: found.to_string(),
            });
        }
        let length = u64::from(page_count) * u64::from(page_size.get());
        file.set_len(length)
            .map_err(|source| Error::io("cutting a database image", "image".into(), source))?;
        Ok(Image {
            pos,
            page_size: Some(page_size),
            page_count,
            ..Image::new(file)
        })
    }

    /// Where the image is.
    #[must_use]
    pub fn pos(&self) -> Pos {
        self.pos
    }

    /// Its page size; `None` before the first record.
    #[must_use]
    pub fn page_size(&self) -> Option<PageSize> {
        self.page_size
    }

    /// Its length in pages.
    #[must_use]
    pub fn page_count(&self) -> u32 {
        self.page_count
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &dyn StorageFile {
        &*self.file
    }

    /// Applies the next record. The file has exactly the image's length afterwards.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the record does not follow, or the result has not the checksum that the record promises;
    /// [`Error::Corrupt`] for the record's body; [`Error::Io`]. After an error within the work the image is of no more use, and further
    /// calls fail.
    pub fn apply(&mut self, entry: &RecordEntry) -> Result<()> {
        if self.broken {
            return Err(Error::Misuse(
                "a record could not be applied to this image: start again from a good one",
            ));
        }
        let header = &entry.header;
        self.check(header)?;
        self.broken = true;
        let checksum = self.patch(entry)?;
        if checksum != header.post_checksum {
            return Err(Error::Mismatch {
                what: "the image's checksum",
                expected: header.post_checksum.to_string(),
                found: checksum.to_string(),
            });
        }
        self.pos = header.pos();
        self.page_size = Some(header.page_size);
        self.page_count = header.page_count;
        self.broken = false;
        Ok(())
    }

    fn check(&self, header: &RecordHeader) -> Result<()> {
        let differ = |what, expected: String, found: String| {
            if expected == found {
                return Ok(());
            }
            Err(Error::Mismatch {
                what,
                expected,
                found,
            })
        };
        let size = self.page_size.map_or(0, PageSize::get);
        differ(
            "the transaction",
            self.pos.txid.next().to_string(),
            header.txid.to_string(),
        )?;
        differ(
            "the checksum before",
            self.pos.checksum.to_string(),
            header.pre_checksum.to_string(),
        )?;
        differ(
            "the page count before",
            self.page_count.to_string(),
            header.pre_page_count.to_string(),
        )?;
        differ(
            "the page size before",
            size.to_string(),
            header.pre_page_size.to_string(),
        )
    }

    /// Writes all pages; returns the checksum of the result, of which every changed byte was read or written here.
    fn patch(&mut self, entry: &RecordEntry) -> Result<Checksum> {
        let header = &entry.header;
        let size = header.page_size;
        let io = |source| Error::io("writing a database image", String::from("image"), source);
        let (mut checksum, old_pages) = if header.resizes() || self.page_size.is_none() {
            self.file.set_len(0).map_err(io)?;
            (Checksum(0), 0)
        } else {
            (self.pos.checksum, self.page_count)
        };
        self.page.resize(size.bytes(), 0);
        for pgno in header.page_count.saturating_add(1)..=old_pages {
            if pgno != size.lock_page() {
                checksum ^= self.read_page(pgno, size)?;
            }
        }
        let mut patches = entry.patches();
        while let Some(patch) = patches.next()? {
            let pgno = patch.pgno();
            if pgno <= old_pages {
                checksum ^= self.read_page(pgno, size)?;
            }
            patch.apply(&mut self.page);
            checksum ^= page_checksum(pgno, &self.page);
            self.file
                .write_at(&self.page, size.offset(pgno))
                .map_err(io)?;
        }
        if header.page_count != old_pages {
            let length = u64::from(header.page_count) * u64::from(size.get());
            self.file.set_len(length).map_err(io)?;
        }
        Ok(checksum)
    }

    /// Reads a page into the buffer; returns its checksum.
    fn read_page(&mut self, pgno: Pgno, size: PageSize) -> Result<Checksum> {
        read_exact_at(&*self.file, &mut self.page, size.offset(pgno)).map_err(|source| {
            Error::io("reading a database image", String::from("image"), source)
        })?;
        Ok(page_checksum(pgno, &self.page))
    }
}

/// The checksum of the database of `page_count` pages in a file: see [`Checksum`]. Reads all of it.
///
/// # Errors
/// [`Error::Io`], also when the file is shorter than that.
pub fn scan_checksum(
    file: &dyn StorageFile,
    page_size: PageSize,
    page_count: u32,
) -> Result<Checksum> {
    let mut checksum = Checksum(0);
    let mut buf = vec![0; SCAN_BYTES];
    let pages_at_once = SCAN_BYTES as u32 / page_size.get();
    let mut pgno = 1;
    while pgno <= page_count {
        let count = pages_at_once.min(page_count - pgno + 1);
        let bytes = count as usize * page_size.bytes();
        let part = buf.get_mut(..bytes).unwrap_or_default();
        read_exact_at(file, part, page_size.offset(pgno)).map_err(|source| {
            Error::io("reading a database image", String::from("image"), source)
        })?;
        for page in part.chunks_exact(page_size.bytes()) {
            if pgno != page_size.lock_page() {
                checksum ^= page_checksum(pgno, page);
            }
            // The last page number there can be leaves no next one.
            pgno = match pgno.checked_add(1) {
                Some(next) => next,
                None => return Ok(checksum),
            };
        }
    }
    Ok(checksum)
}
