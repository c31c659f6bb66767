//! Building a recorded state from the log, and comparing files page by page.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use mycelite::error::{Error, Result};
use mycelite_journal::{
    Checksum, FileStorage, Image, OpenMode, PageSize, Pos, Reader, Txid, scan_checksum,
};

use super::output;
use super::source::log_error;

/// A state of the database, built in a file.
pub struct Built {
    /// Where in the history it is.
    pub pos: Pos,
    /// Page size; `None` for an empty database.
    pub page_size: Option<PageSize>,
    /// Pages in the file.
    pub page_count: u32,
}

/// Replays the log into the empty file `path` up to `target`, checking each record against the bytes.
pub fn replay(reader: &mut Reader, target: Txid, path: &Path) -> Result<Built> {
    let file = FileStorage::open_path(path, OpenMode::Write)
        .map_err(|source| Error::io("opening the file to build", path, &source))?;
    let mut image = Image::new(file);
    reader.seek(Txid(0)).map_err(log_error)?;
    let bar = output::transactions_bar(target.0, "replaying");
    while image.pos().txid < target {
        let Some(entry) = reader.next().map_err(log_error)? else {
            break;
        };
        image
            .apply(&entry)
            .map_err(|error| match error.io_error() {
                Some(source) => Error::io("building the state in", path, source)
                    .hint("is there room on the disk?"),
                None => log_error(error),
            })?;
        bar.set_position(entry.header.txid.0);
    }
    bar.finish_and_clear();
    Ok(Built {
        pos: image.pos(),
        page_size: image.page_size(),
        page_count: image.page_count(),
    })
}

impl Built {
    /// Whether the file at `path` has the checksum that its transaction recorded, from the bytes alone.
    pub fn is_exact(&self, path: &Path) -> Result<bool> {
        let file = FileStorage::open_path(path, OpenMode::Read)
            .map_err(|source| Error::io("reading back the file", path, &source))?;
        let length = file
            .size()
            .map_err(|source| Error::io("reading back the file", path, &source))?;
        let Some(page_size) = self.page_size else {
            return Ok(length == 0 && self.pos.checksum == Checksum(0));
        };
        let checksum = scan_checksum(&*file, page_size, self.page_count).map_err(log_error)?;
        Ok(checksum == self.pos.checksum
            && length == u64::from(self.page_count) * u64::from(page_size.get()))
    }
}

/// The differences between two files, page by page.
pub struct Difference {
    /// Pages that differ, counted also where one file ends before the other.
    pub pages: u64,
    /// The first few of them.
    pub first: Vec<u64>,
}

/// How many page numbers a difference names.
const PAGES_NAMED: usize = 10;

/// Compares two files byte for byte; the lock-byte page is not part of a database.
pub fn compare(a: &File, b: &File, page_size: u32) -> std::io::Result<Difference> {
    let lock_page = PageSize::new(page_size).map_or(0, |size| u64::from(size.lock_page()));
    let size = page_size.max(1) as usize;
    let (mut left, mut right) = (Positioned::new(a), Positioned::new(b));
    let (mut page_a, mut page_b) = (vec![0u8; size], vec![0u8; size]);
    let mut difference = Difference {
        pages: 0,
        first: Vec::new(),
    };
    for pgno in 1.. {
        let (got_a, got_b) = (left.fill(&mut page_a)?, right.fill(&mut page_b)?);
        if got_a == 0 && got_b == 0 {
            break;
        }
        if page_a[..got_a] != page_b[..got_b] && pgno != lock_page {
            difference.pages += 1;
            if difference.first.len() < PAGES_NAMED {
                difference.first.push(pgno);
            }
        }
    }
    Ok(difference)
}

impl Difference {
    /// `page 3`, `pages 1, 5 and 7 more`.
    pub fn names(&self) -> String {
        let named: Vec<String> = self.first.iter().map(u64::to_string).collect();
        let more = self.pages - self.first.len() as u64;
        let word = if self.pages == 1 { "page" } else { "pages" };
        match more {
            0 => format!("{word} {}", named.join(", ")),
            _ => format!("{word} {} and {more} more", named.join(", ")),
        }
    }
}

/// A file read from its beginning, wherever its own position is.
struct Positioned<'a> {
    file: &'a File,
    at: u64,
}

impl<'a> Positioned<'a> {
    fn new(file: &'a File) -> Positioned<'a> {
        Positioned { file, at: 0 }
    }

    /// Reads `page` full, or what is left; returns how much.
    fn fill(&mut self, page: &mut [u8]) -> std::io::Result<usize> {
        let mut done = 0;
        while done < page.len() {
            match self.file.read_at(&mut page[done..], self.at)? {
                0 => break,
                count => {
                    done += count;
                    self.at += count as u64;
                }
            }
        }
        Ok(done)
    }
}
