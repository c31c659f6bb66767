//! Databases that change at random, and a log that follows them.

// Each test binary uses a part of this.
#![allow(dead_code)]

use std::sync::Arc;

use mycelite_journal::*;

pub const ID: DatabaseId = DatabaseId([7; 16]);

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
        bytes
    }
}

/// A database image.
#[derive(Clone, PartialEq, Eq)]
pub struct Db {
    pub size: PageSize,
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Db({} pages of {})", self.count(), self.size.get())
    }
}

impl Db {
    pub fn empty() -> Db {
        Db::new(512, 0)
    }

    pub fn new(size: u32, pages: usize) -> Db {
        Db {
            size: PageSize::new(size).unwrap(),
            bytes: vec![0; size as usize * pages],
        }
    }

    pub fn count(&self) -> u32 {
        (self.bytes.len() / self.size.bytes()) as u32
    }

    pub fn page(&self, pgno: u32) -> &[u8] {
        let start = self.size.offset(pgno) as usize;
        &self.bytes[start..start + self.size.bytes()]
    }

    pub fn page_mut(&mut self, pgno: u32) -> &mut [u8] {
        let start = self.size.offset(pgno) as usize;
        let end = start + self.size.bytes();
        &mut self.bytes[start..end]
    }

    pub fn checksum(&self) -> Checksum {
        (1..=self.count()).fold(Checksum(0), |sum, pgno| {
            sum ^ page_checksum(pgno, self.page(pgno))
        })
    }

    /// A change of the kinds that transactions make.
    pub fn mutate(&mut self, random: &mut Random) {
        match random.below(12) {
            0 => {
                let pages = random.below(4) as usize + 1;
                let fresh = random.bytes(pages * self.size.bytes());
                self.bytes.extend_from_slice(&fresh);
            }
            1 => {
                let pages = random.below(3) as usize + 1;
                self.bytes
                    .resize(self.bytes.len() + pages * self.size.bytes(), 0);
            }
            2 if self.count() > 1 => {
                let pages = random.below(u64::from(self.count())) as usize;
                self.bytes.truncate(pages * self.size.bytes());
            }
            3 if random.below(4) == 0 => {
                let size = [512, 1024, 2048][random.below(3) as usize];
                let pages = random.below(5) as usize + 1;
                *self = Db::new(size, pages);
                self.bytes = random.bytes(self.bytes.len());
            }
            _ if self.count() == 0 => {
                self.bytes = random.bytes(self.size.bytes());
            }
            _ => {
                for _ in 0..=random.below(4) {
                    let pgno = random.below(u64::from(self.count())) as u32 + 1;
                    self.mutate_page(pgno, random);
                }
            }
        }
    }

    fn mutate_page(&mut self, pgno: u32, random: &mut Random) {
        let length = self.size.bytes();
        match random.below(8) {
            0 => {
                let bytes = random.bytes(length);
                self.page_mut(pgno).copy_from_slice(&bytes);
            }
            1 => self.page_mut(pgno).fill(0),
            _ => {
                for _ in 0..=random.below(5) {
                    let at = random.below(length as u64) as usize;
                    let count = (random.below(40) as usize + 1).min(length - at);
                    let bytes = random.bytes(count);
                    self.page_mut(pgno)[at..at + count].copy_from_slice(&bytes);
                }
            }
        }
    }
}

/// Begins the record that turns `old` into `new`, and gives it all pages.
pub fn begin<'a>(log: &'a mut Log, old: &Db, new: &Db, draft: Draft) -> Result<RecordWriter<'a>> {
    let whole = old.size != new.size && log.head().page_size.is_some();
    let draft = Draft {
        whole: whole || draft.whole,
        page_size: new.size,
        page_count: new.count(),
        ..draft
    };
    let old_count = if draft.whole { 0 } else { old.count() };
    let mut record = log.begin(draft)?;
    for pgno in 1..=new.count() {
        let before = (pgno <= old_count).then(|| old.page(pgno));
        record.patch(pgno, before, new.page(pgno))?;
    }
    for pgno in new.count() + 1..=old_count {
        record.drop_page(pgno, old.page(pgno))?;
    }
    Ok(record)
}

pub fn draft(new: &Db) -> Draft {
    Draft::new(new.size, new.count(), 1_000)
}

/// Records the step from `old` to `new`.
pub fn commit(log: &mut Log, old: &Db, new: &Db) -> Result<RecordHeader> {
    begin(log, old, new, draft(new))?.commit()
}

/// What a database was after each transaction: `images[n]` after transaction n.
pub struct History {
    pub images: Vec<Db>,
    pub random: Random,
}

impl History {
    pub fn new(seed: u64) -> History {
        History {
            images: vec![Db::empty()],
            random: Random(seed),
        }
    }

    pub fn last(&self) -> &Db {
        self.images.last().unwrap()
    }

    pub fn next_image(&mut self) -> Db {
        let mut new = self.last().clone();
        new.mutate(&mut self.random);
        new
    }

    /// Records one random transaction.
    pub fn step(&mut self, log: &mut Log) -> Result<RecordHeader> {
        let new = self.next_image();
        let header = commit(log, self.last(), &new)?;
        assert_eq!(header.post_checksum, new.checksum());
        self.images.push(new);
        Ok(header)
    }

    pub fn steps(&mut self, log: &mut Log, count: usize) {
        for _ in 0..count {
            self.step(log).unwrap();
        }
    }
}

/// Applies the whole log to an empty image; checks it against the history after each record. Returns the last transaction.
pub fn replay(storage: Arc<dyn Storage>, images: &[Db]) -> Result<u64> {
    let disk = FaultStorage::new();
    let mut image = Image::new(disk.open("image", OpenMode::Create).unwrap());
    let mut reader = Reader::open(storage)?;
    let mut txid = 0;
    while let Some(entry) = reader.next()? {
        image.apply(&entry)?;
        txid += 1;
        assert_eq!(entry.header.txid.0, txid);
        let expected = &images[txid as usize];
        assert!(
            disk.contents("image").unwrap() == expected.bytes,
            "image after transaction {txid} differs"
        );
        assert_eq!(image.page_count(), expected.count());
    }
    Ok(txid)
}

pub fn new_log() -> (FaultStorage, Log) {
    let disk = FaultStorage::new();
    let log = Log::create(Arc::new(disk.clone()), ID, 42).unwrap();
    (disk, log)
}

pub fn open(disk: &FaultStorage) -> Result<Log> {
    Log::open(Arc::new(disk.clone()))
}

pub fn reader(disk: &FaultStorage) -> Reader {
    Reader::open(Arc::new(disk.clone())).unwrap()
}

/// The only, or the newest, segment's name.
pub fn last_segment(disk: &FaultStorage) -> String {
    let mut names = disk.list().unwrap();
    names.retain(|name| parse_segment_name(name).is_some());
    names.sort();
    names.pop().unwrap()
}

/// A record's bytes, made by hand: `header` with its body's length and hash set.
pub fn raw_record(mut header: RecordHeader, body: &[u8]) -> Vec<u8> {
    header.body_len = body.len() as u64;
    header.body_hash = xxhash_rust::xxh3::xxh3_64(body);
    let mut bytes = header.encode().to_vec();
    bytes.extend_from_slice(body);
    bytes.extend_from_slice(&Trailer::of(&header).encode());
    bytes
}
