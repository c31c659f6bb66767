//! `applied`, the small file beside the log that remembers where the database file is.
//!
//! It is a hint, never the truth: the truth is the file's checksum. It is written in place, without a sync, before each
//! transaction; only a clean close syncs it, and only then does the next open believe it without reading the file.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `MYCELAPP` |
//! | 8 | 2 | version = 1 |
//! | 10 | 2 | flags: bit 0 = closed cleanly |
//! | 12 | 4 | page size in bytes |
//! | 16 | 4 | page count |
//! | 20 | 4 | zero |
//! | 24 | 24 | position of the file: timeline, txid, checksum |
//! | 48 | 24 | position that a transaction under way leads to; the same as above when there is none |
//! | 72 | 8 | length of the file in bytes, for a clean close |
//! | 80 | 8 | its time of modification, ns since 1970, for a clean close |
//! | 88 | 8 | its inode number (0 where there are none), for a clean close |
//! | 96 | 24 | zero |
//! | 120 | 8 | XXH3-64 of bytes 0..120 |
//!
//! All numbers are little-endian.

use std::fs;
use std::io::{ErrorKind as IoErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use mycelite_journal::{Checksum, Pos, Timeline, Txid};
use xxhash_rust::xxh3::xxh3_64;

use super::batch::State;
use crate::error::{Error, Result};

const NAME: &str = "applied";
const LENGTH: usize = 128;
const MAGIC: [u8; 8] = *b"MYCELAPP";
const VERSION: u16 = 1;
const FLAG_CLEAN: u16 = 1;

/// What identifies an unchanged file without reading it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FileMark {
    length: u64,
    modified_ns: u64,
    inode: u64,
}

impl FileMark {
    /// Looks at a file without opening it (which would endanger SQLite's locks). `None` if there is none.
    pub fn of(path: &Path) -> Result<Option<FileMark>> {
        match fs::metadata(path) {
            Ok(data) => {
                let modified = data
                    .modified()
                    .ok()
                    .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
                let modified_ns = modified
                    .and_then(|age| u64::try_from(age.as_nanos()).ok())
                    .unwrap_or(0);
                Ok(Some(FileMark {
                    length: data.len(),
                    modified_ns,
                    inode: inode(&data),
                }))
            }
            Err(error) if error.kind() == IoErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("cannot look at the file", path, &error)),
        }
    }

    /// The file's number; 0 where there are none.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }
}

#[cfg(unix)]
fn inode(data: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(data)
}

#[cfg(not(unix))]
fn inode(_: &fs::Metadata) -> u64 {
    0
}

/// What was remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Remembered {
    /// Where the file was.
    pub state: State,
    /// Where a transaction under way would have led.
    pub target: Pos,
    /// The file at the last clean close; `None` if it was not closed cleanly since.
    pub clean: Option<FileMark>,
}

/// The file, open for writing.
pub(super) struct Stamp {
    path: PathBuf,
    file: fs::File,
    /// Whether what is on the disk says "clean": then the next write must be synced before the database changes.
    clean: bool,
}

impl Stamp {
    /// Opens or makes the file in the log's directory, and reads what it remembers, if that is sound.
    pub fn open(log_dir: &Path) -> Result<(Stamp, Option<Remembered>)> {
        let path = log_dir.join(NAME);
        let failed = |error: std::io::Error| Error::io("cannot open", &path, &error);
        let mut file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        let mut bytes = Vec::with_capacity(LENGTH);
        (&mut file)
            .take(LENGTH as u64)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        let remembered = bytes.first_chunk().and_then(decode);
        let clean = remembered.is_some_and(|remembered| remembered.clean.is_some());
        Ok((Stamp { path, file, clean }, remembered))
    }

    /// Says that the file is at `state` and that a transaction to `target` is under way.
    pub fn write(&mut self, state: &State, target: Pos) -> Result<()> {
        self.store(
            &Remembered {
                state: *state,
                target,
                clean: None,
            },
            self.clean,
        )?;
        self.clean = false;
        Ok(())
    }

    /// Says that the file, which looks like `mark` and is on the disk, is at `state`, and that nobody is at work.
    pub fn write_clean(&mut self, state: &State, mark: FileMark) -> Result<()> {
        self.store(
            &Remembered {
                state: *state,
                target: state.pos,
                clean: Some(mark),
            },
            true,
        )?;
        self.clean = true;
        Ok(())
    }

    fn store(&mut self, remembered: &Remembered, sync: bool) -> Result<()> {
        let written = self
            .file
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.file.write_all(&encode(remembered)));
        let synced = written.and_then(|()| if sync { self.file.sync_data() } else { Ok(()) });
        synced.map_err(|error| Error::io("cannot write", &self.path, &error))
    }
}

fn encode(remembered: &Remembered) -> [u8; LENGTH] {
    let mut out = [0u8; LENGTH];
    let mark = remembered.clean.unwrap_or_default();
    let flags = if remembered.clean.is_some() {
        FLAG_CLEAN
    } else {
        0
    };
    out[0..8].copy_from_slice(&MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_le_bytes());
    out[10..12].copy_from_slice(&flags.to_le_bytes());
    out[12..16].copy_from_slice(&remembered.state.page_size.to_le_bytes());
    out[16..20].copy_from_slice(&remembered.state.page_count.to_le_bytes());
    let (here, there) = (remembered.state.pos, remembered.target);
    let numbers = [
        here.timeline.0,
        here.txid.0,
        here.checksum.0,
        there.timeline.0,
        there.txid.0,
        there.checksum.0,
        mark.length,
        mark.modified_ns,
        mark.inode,
    ];
    for (place, number) in out[24..96].as_chunks_mut::<8>().0.iter_mut().zip(numbers) {
        *place = number.to_le_bytes();
    }
    let hash = xxh3_64(&out[..120]);
    out[120..].copy_from_slice(&hash.to_le_bytes());
    out
}

fn decode(bytes: &[u8; LENGTH]) -> Option<Remembered> {
    let (words, _) = bytes.as_chunks::<8>();
    let word = |n: usize| words.get(n).map_or(0, |word| u64::from_le_bytes(*word));
    let half = |at: usize| match bytes.get(at..at + 4) {
        Some(&[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]),
        _ => 0,
    };
    let version = u16::from_le_bytes([bytes[8], bytes[9]]);
    if bytes[..8] != MAGIC || version != VERSION || xxh3_64(&bytes[..120]) != word(15) {
        return None;
    }
    let pos = |n: usize| Pos {
        timeline: Timeline(word(n)),
        txid: Txid(word(n + 1)),
        checksum: Checksum(word(n + 2)),
    };
    let mark = FileMark {
        length: word(9),
        modified_ns: word(10),
        inode: word(11),
    };
    Some(Remembered {
        state: State {
            pos: pos(3),
            page_size: half(12),
            page_count: half(16),
        },
        target: pos(6),
        clean: (u16::from_le_bytes([bytes[10], bytes[11]]) & FLAG_CLEAN != 0).then_some(mark),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remembered() -> Remembered {
        let pos = Pos {
            timeline: Timeline(1),
            txid: Txid(41),
            checksum: Checksum(0xfeed),
        };
        Remembered {
            state: State {
                pos,
                page_size: 4096,
                page_count: 7,
            },
            target: Pos {
                txid: Txid(44),
                checksum: Checksum(3),
                ..pos
            },
            clean: Some(FileMark {
                length: 7 * 4096,
                modified_ns: 5,
                inode: 6,
            }),
        }
    }

    #[test]
    fn a_stamp_reads_back_and_any_flipped_bit_makes_it_worthless() {
        let bytes = encode(&remembered());
        assert_eq!(decode(&bytes), Some(remembered()));
        for bit in 0..LENGTH * 8 {
            let mut other = bytes;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&other), None, "bit {bit}");
        }
    }

    #[test]
    fn a_stamp_is_remembered_between_opens() -> Result<()> {
        let dir =
            tempfile::tempdir().map_err(|error| Error::io("tempdir", Path::new("."), &error))?;
        let (mut stamp, nothing) = Stamp::open(dir.path())?;
        assert_eq!(nothing, None);
        let expected = remembered();
        stamp.write(&expected.state, expected.target)?;
        assert_eq!(
            Stamp::open(dir.path())?.1,
            Some(Remembered {
                clean: None,
                ..expected
            })
        );
        stamp.write_clean(&expected.state, expected.clean.unwrap_or_default())?;
        let again = Stamp::open(dir.path())?.1;
        assert_eq!(
            again,
            Some(Remembered {
                target: expected.state.pos,
                ..expected
            })
        );
        Ok(())
    }
}
