//! SQLite's wal-index: the shared memory through which the users of a WAL find its frames.
//!
//! Layout, in the machine's byte order, as `wal.c` of SQLite has it (the same since 3.7.0; all versions share it):
//!
//! ```text
//! region 0:  header (48) | header again (48) | checkpoint information (40) | 4062 page numbers | 8192 hash slots (u16)
//! region n:  4096 page numbers | 8192 hash slots
//! ```
//!
//! A frame's page number stands in the page-number array; a hash slot holds the array's index + 1. Readers look only at
//! frames up to the `frame_last` of the header that they read, so frames may be entered before they are committed.

use c_shim::{Code, LockOp, Region, Shm};

use super::wal_format::{self, checksum};

/// Lock slot of the one writer.
const WRITE_LOCK: u32 = 0;
/// Lock slot of the one checkpointer.
const CHECKPOINT_LOCK: u32 = 1;
/// First of the slots of readers: of those that read the database file only.
const READ_LOCK: u32 = 3;
/// Number of readers' slots.
const READ_LOCKS: u32 = 5;

const HEADER_WORDS: usize = 12;
const SECOND_HEADER: usize = 48;
const BACKFILLED: usize = 96;
const READ_MARK: usize = 100;
const BACKFILL_ATTEMPTED: usize = 128;
/// Bytes of region 0 before its page numbers.
const INFO_BYTES: usize = 136;
const MARK_UNUSED: u32 = u32::MAX;

/// Frames in a region other than the first.
const REGION_FRAMES: u32 = 4096;
/// Frames in the first region.
const FIRST_REGION_FRAMES: u32 = REGION_FRAMES - (INFO_BYTES as u32) / 4;
const SLOTS: u32 = REGION_FRAMES * 2;
const SLOTS_OFFSET: usize = REGION_FRAMES as usize * 4;

/// The wal-index header: what a reader takes as its snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// Counts commits; starts again at 0 when the index is recovered.
    pub change: u32,
    /// Whether the WAL's checksums take words as big-endian.
    pub big_endian: bool,
    /// Page size in bytes; 0 before the first frame.
    pub page_size: u32,
    /// The last committed frame; 0: none.
    pub frame_last: u32,
    /// Pages in the database at that frame.
    pub page_count: u32,
    /// The WAL's running checksum after that frame.
    pub frame_checksum: [u32; 2],
    /// The salts of the WAL's header.
    pub salt: [u8; 8],
}

impl Header {
    /// The header as words, its checksum last.
    fn words(&self) -> [u32; HEADER_WORDS] {
        // 65536 does not fit 16 bits and is stored as 1.
        let size = ((self.page_size & 0xff00) | (self.page_size >> 16)) as u16;
        let [s0, s1] = size.to_le_bytes();
        let flags = if cfg!(target_endian = "little") {
            [1, u8::from(self.big_endian), s0, s1]
        } else {
            [1, u8::from(self.big_endian), s1, s0]
        };
        let salt = self.salt.as_chunks::<4>().0;
        let mut words = [
            wal_format::VERSION,
            0,
            self.change,
            native(flags),
            self.frame_last,
            self.page_count,
            self.frame_checksum[0],
            self.frame_checksum[1],
            salt.first().map_or(0, |word| native(*word)),
            salt.get(1).map_or(0, |word| native(*word)),
            0,
            0,
        ];
        [words[10], words[11]] = header_checksum(&words);
        words
    }

    /// Believes words as SQLite does: initialised, and the checksum fits.
    fn from_words(words: &[u32; HEADER_WORDS]) -> Option<Header> {
        let [init, big_endian, size0, size1] = bytes(words[3]);
        if init == 0
            || header_checksum(words) != [words[10], words[11]]
            || words[0] != wal_format::VERSION
        {
            return None;
        }
        let size = if cfg!(target_endian = "little") {
            u16::from_le_bytes([size0, size1])
        } else {
            u16::from_be_bytes([size0, size1])
        };
        let [a, b, c, d] = bytes(words[8]);
        let [e, f, g, h] = bytes(words[9]);
        Some(Header {
            change: words[2],
            big_endian: big_endian != 0,
            page_size: u32::from(size & 0xfe00) + (u32::from(size & 1) << 16),
            frame_last: words[4],
            page_count: words[5],
            frame_checksum: [words[6], words[7]],
            salt: [a, b, c, d, e, f, g, h],
        })
    }
}

fn header_checksum(words: &[u32; HEADER_WORDS]) -> [u32; 2] {
    let mut data = [0u8; 40];
    for (place, word) in data.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *place = bytes(*word);
    }
    checksum(cfg!(target_endian = "big"), &data, [0, 0])
}

/// Four bytes of memory as a number of this machine.
fn native(bytes: [u8; 4]) -> u32 {
    if cfg!(target_endian = "little") {
        u32::from_le_bytes(bytes)
    } else {
        u32::from_be_bytes(bytes)
    }
}

/// A number of this machine as it lies in memory.
fn bytes(word: u32) -> [u8; 4] {
    if cfg!(target_endian = "little") {
        word.to_le_bytes()
    } else {
        word.to_be_bytes()
    }
}

/// Slots of the wal-index held for as long as this lives.
pub(super) struct Held<'a> {
    shm: &'a Shm<'a>,
    first: u32,
    count: u32,
}

impl<'a> Held<'a> {
    /// The right to append frames. One try.
    pub fn writer(shm: &'a Shm<'a>) -> Result<Held<'a>, Code> {
        Held::take(shm, WRITE_LOCK, 1)
    }

    /// The right to checkpoint. One try.
    pub fn checkpointer(shm: &'a Shm<'a>) -> Result<Held<'a>, Code> {
        Held::take(shm, CHECKPOINT_LOCK, 1)
    }

    /// Nobody reads frames from the WAL while this is held. One try.
    pub fn no_frame_readers(shm: &'a Shm<'a>) -> Result<Held<'a>, Code> {
        Held::take(shm, READ_LOCK + 1, READ_LOCKS - 1)
    }

    fn take(shm: &'a Shm<'a>, first: u32, count: u32) -> Result<Held<'a>, Code> {
        shm.lock(first, count, LockOp::LockExclusive)?;
        Ok(Held { shm, first, count })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // A failure leaves nothing to be done; the lock goes with the file.
        let _ = self
            .shm
            .lock(self.first, self.count, LockOp::UnlockExclusive);
    }
}

/// The wal-index as this process has it mapped.
pub(super) struct Index<'a> {
    shm: &'a Shm<'a>,
    regions: Vec<Region<'a>>,
}

impl<'a> Index<'a> {
    /// The wal-index behind `shm`, whose first region is made if it is not there.
    pub fn new(shm: &'a Shm<'a>) -> Result<Index<'a>, Code> {
        let mut index = Index {
            shm,
            regions: Vec::new(),
        };
        index.region(0)?;
        Ok(index)
    }

    /// The memory it lies in.
    pub fn shm(&self) -> &'a Shm<'a> {
        self.shm
    }

    fn region(&mut self, number: u32) -> Result<&Region<'a>, Code> {
        let wanted = number as usize;
        while self.regions.len() <= wanted {
            let next = u32::try_from(self.regions.len()).map_err(|_| Code::MISUSE)?;
            let shm = self.shm;
            self.regions
                .push(shm.region(next, true)?.ok_or(Code::IOERR)?);
        }
        self.regions.get(wanted).ok_or(Code::MISUSE)
    }

    /// The committed header; `None` if it is being changed, or was never written.
    pub fn header(&mut self) -> Result<Option<Header>, Code> {
        let shm = self.shm;
        let region = self.region(0)?;
        let read = |at: usize| -> Result<[u32; HEADER_WORDS], Code> {
            let mut words = [0u32; HEADER_WORDS];
            for (n, word) in words.iter_mut().enumerate() {
                *word = region.get_u32(at + n * 4)?;
            }
            Ok(words)
        };
        let first = read(0)?;
        shm.barrier();
        let second = read(SECOND_HEADER)?;
        Ok(if first == second {
            Header::from_words(&first)
        } else {
            None
        })
    }

    /// Commits: from here on readers start from this header. The caller holds the writer's slot.
    pub fn publish(&mut self, header: &Header) -> Result<(), Code> {
        let words = header.words();
        let shm = self.shm;
        let region = self.region(0)?;
        let write = |at: usize| {
            words
                .iter()
                .enumerate()
                .try_for_each(|(n, word)| region.set_u32(at + n * 4, *word))
        };
        // The hash slots first, then the second copy, then the first: a reader compares them in the other order.
        shm.barrier();
        write(SECOND_HEADER)?;
        shm.barrier();
        write(0)?;
        shm.barrier();
        Ok(())
    }

    /// Frames that a checkpoint has copied into the database file.
    pub fn backfilled(&mut self) -> Result<u32, Code> {
        self.region(0)?.get_u32(BACKFILLED)
    }

    /// Starts the WAL again at frame 1: everything is in the database file, and the caller holds the slots of writer,
    /// checkpointer and all frame readers.
    pub fn restart(&mut self, header: &Header) -> Result<(), Code> {
        self.publish(header)?;
        let region = self.region(0)?;
        region.set_u32(BACKFILLED, 0)?;
        region.set_u32(BACKFILL_ATTEMPTED, 0)?;
        region.set_u32(READ_MARK + 4, 0)?;
        for mark in 2..READ_LOCKS as usize {
            region.set_u32(READ_MARK + 4 * mark, MARK_UNUSED)?;
        }
        Ok(())
    }

    /// The newest frame of a page at or before `frame_last`.
    pub fn find(&mut self, pgno: u32, frame_last: u32) -> Result<Option<u32>, Code> {
        if frame_last == 0 {
            return Ok(None);
        }
        for number in (0..=region_of(frame_last)).rev() {
            let place = Place::of(number);
            let region = self.region(number)?;
            let mut found = None;
            let mut slot = hash(pgno);
            for _ in 0..SLOTS {
                let index = u32::from(region.get_u16(place.slot(slot))?);
                if index == 0 {
                    break;
                }
                let frame = place.before + index;
                if frame <= frame_last && region.get_u32(place.pgno(index))? == pgno {
                    found = Some(frame);
                }
                slot = (slot + 1) % SLOTS;
            }
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Enters a frame that was written behind `committed`, the last committed one. The caller holds the writer's slot
    /// and enters frames in order.
    pub fn append(&mut self, frame: u32, pgno: u32, committed: u32) -> Result<(), Code> {
        let number = region_of(frame);
        let place = Place::of(number);
        let index = frame - place.before;
        let region = self.region(number)?;
        if index == 1 {
            for at in (place.numbers..Shm::REGION_BYTES).step_by(4) {
                region.set_u32(at, 0)?;
            }
        } else if region.get_u32(place.pgno(index))? != 0 {
            // Left by a writer that died, or that gave up, in the middle of a transaction.
            self.forget_after(committed)?;
        }
        let region = self.region(number)?;
        let mut slot = hash(pgno);
        for _ in 0..SLOTS {
            if region.get_u16(place.slot(slot))? == 0 {
                region.set_u32(place.pgno(index), pgno)?;
                return region.set_u16(place.slot(slot), index as u16);
            }
            slot = (slot + 1) % SLOTS;
        }
        Err(Code::CORRUPT)
    }

    /// Removes what is entered behind the last committed frame, in that frame's region.
    fn forget_after(&mut self, committed: u32) -> Result<(), Code> {
        if committed == 0 {
            return Ok(());
        }
        let number = region_of(committed);
        let place = Place::of(number);
        let limit = committed - place.before;
        let region = self.region(number)?;
        for slot in 0..SLOTS {
            if u32::from(region.get_u16(place.slot(slot))?) > limit {
                region.set_u16(place.slot(slot), 0)?;
            }
        }
        for at in (place.pgno(limit + 1)..SLOTS_OFFSET).step_by(4) {
            region.set_u32(at, 0)?;
        }
        Ok(())
    }
}

/// Where the parts of a region are.
#[derive(Clone, Copy)]
struct Place {
    /// Byte offset of the page-number array.
    numbers: usize,
    /// The last frame before this region's first.
    before: u32,
}

impl Place {
    fn of(region: u32) -> Place {
        if region == 0 {
            Place {
                numbers: INFO_BYTES,
                before: 0,
            }
        } else {
            Place {
                numbers: 0,
                before: FIRST_REGION_FRAMES + (region - 1) * REGION_FRAMES,
            }
        }
    }

    /// Byte offset of the page number at a 1-based index.
    fn pgno(self, index: u32) -> usize {
        self.numbers + (index as usize - 1) * 4
    }

    /// Byte offset of a hash slot.
    fn slot(self, slot: u32) -> usize {
        SLOTS_OFFSET + slot as usize * 2
    }
}

fn region_of(frame: u32) -> u32 {
    (frame + REGION_FRAMES - FIRST_REGION_FRAMES - 1) / REGION_FRAMES
}

fn hash(pgno: u32) -> u32 {
    pgno.wrapping_mul(383) % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_fall_into_the_regions_that_sqlite_uses() {
        assert_eq!(FIRST_REGION_FRAMES, 4062);
        for (frame, region) in [(1, 0), (4062, 0), (4063, 1), (8158, 1), (8159, 2)] {
            assert_eq!(region_of(frame), region, "frame {frame}");
        }
        assert_eq!(Place::of(2).before, 8158);
        assert_eq!(Place::of(1).slot(SLOTS - 1) + 2, Shm::REGION_BYTES);
    }

    #[test]
    fn a_header_survives_its_words_and_a_changed_word_is_noticed() {
        for page_size in [512, 4096, 32768, 65536] {
            let header = Header {
                change: 3,
                big_endian: true,
                page_size,
                frame_last: 9,
                page_count: 77,
                frame_checksum: [5, 6],
                salt: [1, 2, 3, 4, 5, 6, 7, 8],
            };
            let words = header.words();
            assert_eq!(Header::from_words(&words), Some(header));
            for at in 0..HEADER_WORDS {
                let mut other = words;
                other[at] ^= 0x100;
                assert_eq!(Header::from_words(&other), None, "word {at}");
            }
        }
    }
}
