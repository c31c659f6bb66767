//! The old pages that SQLite itself keeps: its rollback journal, which has the image of each page that it is about to overwrite.
//!
//! SQLite puts a page into the journal, syncs that and notes in the journal's header how many pages it holds, before it
//! overwrites the page in the database. So what the headers count is whole. Free pages are not in it, nor is anything
//! in `journal_mode=MEMORY` or `OFF`, or with `synchronous=OFF`, where the headers count nothing.
//! The format is that of SQLite's file format page, section 3 "The Rollback Journal".

use crate::capture::header::be32;
use crate::capture::positioned::{read_at, read_exact_at};
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::path::Path;

const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
/// Bytes of a header that say something; the rest of its sector follows.
const HEADER_BYTES: usize = 28;
/// The count of a header that counts nothing.
const UNCOUNTED: u32 = u32::MAX;
/// A record's checksum takes each 200th byte of the page, from its end on.
const STRIDE: usize = 200;

/// The rollback journal of the transaction that is under way.
pub struct KeptPages {
    file: File,
    page_bytes: usize,
    /// The first header: another transaction begins with another one.
    first: Header,
    /// Sections, each a header and its records, ascending.
    sections: Vec<Section>,
    /// Records that were found.
    records: u32,
}

/// A header with its records.
struct Section {
    at: u64,
    seed: u32,
    /// The number of its first record.
    first: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Header {
    count: u32,
    /// Random, different in each header; begins the checksums of its records.
    seed: u32,
    /// Pages of the database when the transaction began.
    page_count: u32,
    sector: u32,
    page_bytes: u32,
}

impl KeptPages {
    /// The journal at `path`, of a transaction that began with `page_count` pages of `page_bytes`; `None` where there is none
    /// that counts its records.
    ///
    /// # Errors
    /// A failed read.
    pub fn open(path: &Path, page_bytes: u32, page_count: u32) -> Result<Option<KeptPages>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(first) = Header::read(&file, 0)? else {
            return Ok(None);
        };
        let fits = first.page_bytes == page_bytes && first.page_count == page_count;
        if !fits || first.count == UNCOUNTED || !(32..=65536).contains(&first.sector) {
            return Ok(None);
        }
        Ok(Some(KeptPages {
            file,
            page_bytes: page_bytes as usize,
            first,
            sections: vec![Section {
                at: 0,
                seed: first.seed,
                first: 0,
            }],
            records: 0,
        }))
    }

    /// Calls `found` with the page number of each record that came since the last call, and the record's number.
    ///
    /// # Errors
    /// A failed read, or a journal of another transaction.
    pub fn follow(&mut self, mut found: impl FnMut(u32, u32)) -> Result<()> {
        self.check()?;
        while let Some(section) = self.sections.last() {
            let header = Header::read(&self.file, section.at)?
                .filter(|header| header.seed == section.seed && header.count != UNCOUNTED);
            let Some(header) = header else {
                return Err(changed());
            };
            let end = section.first.saturating_add(header.count);
            let next = self
                .offset(section, end)
                .next_multiple_of(u64::from(self.first.sector));
            for record in self.records..end {
                let mut pgno = [0; 4];
                read_exact_at(&self.file, &mut pgno, self.offset(section, record))?;
                found(u32::from_be_bytes(pgno), record);
            }
            self.records = self.records.max(end);
            // SQLite begins the next section as soon as it has counted this one.
            let header = (header.count > 0).then(|| Header::read(&self.file, next));
            let Some(header) = header.transpose()?.flatten() else {
                break;
            };
            self.sections.push(Section {
                at: next,
                seed: header.seed,
                first: end,
            });
        }
        Ok(())
    }

    /// Reads `record`, which holds page `pgno`, by way of `buffer`.
    ///
    /// # Errors
    /// A failed read, or a journal of another transaction.
    pub fn read<'a>(&self, record: u32, pgno: u32, buffer: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        let after = self
            .sections
            .partition_point(|section| section.first <= record);
        let section = after
            .checked_sub(1)
            .and_then(|index| self.sections.get(index));
        let section = section.ok_or_else(changed)?;
        buffer.resize(self.page_bytes + 8, 0);
        read_exact_at(&self.file, buffer, self.offset(section, record))?;
        let page = buffer.get(4..4 + self.page_bytes).unwrap_or_default();
        let sum = be32(buffer, 4 + self.page_bytes);
        if be32(buffer, 0) != Some(pgno) || sum != Some(checksum(section.seed, page)) {
            return Err(changed());
        }
        Ok(page)
    }

    /// Whether the journal is still that of the transaction: not so once it was committed or rolled back, unless that has only
    /// removed its name.
    ///
    /// # Errors
    /// A failed read.
    pub fn is_intact(&self) -> Result<bool> {
        let now = Header::read(&self.file, 0)?;
        Ok(now.is_some_and(|now| {
            Header {
                count: self.first.count,
                ..now
            } == self.first
        }))
    }

    /// Fails unless the journal is still that of the transaction.
    ///
    /// # Errors
    /// A failed read, or a journal of another transaction.
    pub fn check(&self) -> Result<()> {
        if self.is_intact()? {
            Ok(())
        } else {
            Err(changed())
        }
    }

    fn offset(&self, section: &Section, record: u32) -> u64 {
        let records = u64::from(record - section.first);
        section.at + u64::from(self.first.sector) + records * (self.page_bytes as u64 + 8)
    }
}

impl Header {
    /// The header at `at`; `None` where there is none.
    fn read(file: &File, at: u64) -> Result<Option<Header>> {
        let mut bytes = [0; HEADER_BYTES];
        if read_at(file, &mut bytes, at)? < HEADER_BYTES || bytes[..8] != MAGIC {
            return Ok(None);
        }
        let field = |at| be32(&bytes, at).unwrap_or_default();
        Ok(Some(Header {
            count: field(8),
            seed: field(12),
            page_count: field(16),
            sector: field(20),
            page_bytes: field(24),
        }))
    }
}

fn checksum(seed: u32, page: &[u8]) -> u32 {
    let places = (1..page.len().saturating_sub(STRIDE) + 1)
        .rev()
        .step_by(STRIDE);
    places.fold(seed, |sum, at| {
        sum.wrapping_add(page.get(at).copied().map_or(0, u32::from))
    })
}

fn changed() -> Error {
    Error::new(
        ErrorKind::InvalidData,
        "SQLite's rollback journal is not that of this transaction",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use rusqlite::Connection;
    use std::collections::BTreeMap;

    const PAGE: usize = 1024;
    const FILL: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<1000)
                        INSERT INTO t(b) SELECT randomblob(900) FROM n";

    /// A database whose cache is small, its pages, and where its journal is.
    fn database(dir: &Path, pragmas: &str) -> (Connection, Vec<u8>, std::path::PathBuf) {
        let path = dir.join("app.db");
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch(&format!(
                "PRAGMA page_size={PAGE}; PRAGMA cache_size=20; {pragmas};
                 CREATE TABLE t(a INTEGER PRIMARY KEY, b); {FILL}"
            ))
            .unwrap();
        let pages = std::fs::read(&path).unwrap();
        (connection, pages, dir.join("app.db-journal"))
    }

    #[test]
    fn what_sqlite_keeps_is_what_was_there() {
        for pragmas in [
            "",
            "PRAGMA journal_mode=PERSIST",
            "PRAGMA synchronous=NORMAL",
        ] {
            let dir = tempfile::tempdir().unwrap();
            let (connection, pages, journal) = database(dir.path(), pragmas);
            let page_count = (pages.len() / PAGE) as u32;
            let open = |page_count| KeptPages::open(&journal, PAGE as u32, page_count).unwrap();
            // What an earlier transaction has left is none.
            assert!(open(page_count).is_none());
            let (mut found, mut kept) = (BTreeMap::new(), None);
            connection.execute_batch("BEGIN").unwrap();
            for part in 0..10 {
                let sql = format!("UPDATE t SET b=randomblob(800) WHERE a/100={part}");
                connection.execute_batch(&sql).unwrap();
                kept = kept.or_else(|| open(page_count));
                let kept: &mut KeptPages = kept.as_mut().unwrap();
                kept.follow(|pgno, record| assert_eq!(found.insert(pgno, record), None))
                    .unwrap();
            }
            let kept = kept.unwrap();
            assert!(found.len() > 900, "{} pages", found.len());
            assert!(kept.sections.len() > 2);
            let mut buffer = Vec::new();
            for (&pgno, &record) in &found {
                let old = &pages[(pgno as usize - 1) * PAGE..pgno as usize * PAGE];
                assert_eq!(kept.read(record, pgno, &mut buffer).unwrap(), old);
                assert!(kept.read(record, pgno + 1, &mut buffer).is_err());
            }
            assert!(open(page_count + 1).is_none());
            assert!(kept.is_intact().unwrap());
            connection.execute_batch("COMMIT").unwrap();
            // It keeps what it was, or is known not to.
            assert_eq!(kept.is_intact().unwrap(), !pragmas.contains("PERSIST"));
        }
    }

    #[test]
    fn the_journal_of_another_transaction_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let pragmas = "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=PERSIST";
        let (connection, pages, journal) = database(dir.path(), pragmas);
        let page_count = (pages.len() / PAGE) as u32;
        let update = "BEGIN; UPDATE t SET b=randomblob(800)";
        connection.execute_batch(update).unwrap();
        let mut kept = KeptPages::open(&journal, PAGE as u32, page_count)
            .unwrap()
            .unwrap();
        kept.follow(|_, _| ()).unwrap();
        connection.execute_batch("ROLLBACK").unwrap();
        assert!(!kept.is_intact().unwrap());
        connection.execute_batch(update).unwrap();
        assert!(!kept.is_intact().unwrap());
        assert!(kept.follow(|_, _| ()).is_err());
        connection
            .execute_batch("ROLLBACK; PRAGMA synchronous=OFF")
            .unwrap();
        connection.execute_batch(update).unwrap();
        // It says nothing about what it holds.
        assert!(
            KeptPages::open(&journal, PAGE as u32, page_count)
                .unwrap()
                .is_none()
        );
    }
}
