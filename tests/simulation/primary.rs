//! A primary: a real SQLite database in memory whose commits go into a real log, and the real shipper beside it. It does what
//! capture does about timelines: all that is recorded after a boot goes to a new one, whose number is on the disk before.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mycelite::ship::{ShipOptions, Shipper};
use mycelite::status::ReplicaStatus;
use mycelite_journal::{
    DatabaseId, Draft, FaultStorage, FileStorage, Image, Log, OpenMode, PageSize, Pos, Reader,
    Storage, Timeline, Txid,
};
use rusqlite::{Connection, MAIN_DB};
use xxhash_rust::xxh3::xxh3_64;

use crate::kernel::Random;
use crate::oracle::{hash_of, oracle, place};

/// Commits of one life.
const COMMITS_MAX: u64 = 50;

/// What a life of a party says to the director, and the other way round.
#[derive(Default)]
pub struct Notes {
    pub stop: bool,
    pub writes: bool,
    /// It is to write once more, whatever it has written.
    pub last_word: bool,
    /// Where its log ends.
    pub head: Option<Pos>,
    pub replicas: Vec<ReplicaStatus>,
    /// What it saw acknowledged: by which replica, and what.
    pub acked: Vec<(usize, Pos)>,
    /// Its end, if that came.
    pub ended: Option<Result<(), String>>,
}

/// What a primary is told at its birth.
pub struct Plan {
    pub log_dir: PathBuf,
    pub id: u8,
    pub replicas: Vec<String>,
    /// Grows with each boot of its machine.
    pub boot: u64,
    pub seed: u64,
    /// Longest pause between two commits, in microseconds.
    pub pause_max: u64,
}

type Any<T> = Result<T, Box<dyn std::error::Error>>;

/// One life, until it is asked to stop, or something fails.
pub fn run(plan: &Plan, notes: &Mutex<Notes>) -> Result<(), String> {
    live(plan, notes).map_err(|e| e.to_string())
}

fn live(plan: &Plan, notes: &Mutex<Notes>) -> Any<()> {
    let mut random = Random(plan.seed);
    let mut log = open_log(plan)?;
    let timeline = enter(&plan.log_dir, log.head().pos, plan.boot)?;
    let mut writer = Writer::begin(&plan.log_dir, log.head().pos, timeline)?;
    let urls: Result<Vec<_>, _> = plan.replicas.iter().map(|url| url.parse()).collect();
    let mut options = ShipOptions::new(&plan.log_dir, urls?);
    // Small ones, so that there are several.
    options.batch_bytes_max = 1 << (11 + random.below(8));
    let shipper = Shipper::new(options);
    shipper.wake();
    let mut left = COMMITS_MAX;
    loop {
        let pause = random.skewed(plan.pause_max) + if left == 0 { 200_000 } else { 500 };
        std::thread::sleep(Duration::from_micros(pause));
        let (stop, writes) = {
            let mut notes = notes.lock().unwrap();
            let last_word = std::mem::take(&mut notes.last_word);
            left += u64::from(last_word);
            (notes.stop, notes.writes || last_word)
        };
        if !writes && left > 0 {
            std::thread::sleep(Duration::from_millis(100));
        }
        if stop {
            shipper.stop(Duration::from_secs(5));
            return Ok(());
        }
        if writes {
            for _ in 0..(1 + random.skewed(4)).min(left) {
                left -= 1;
                writer.commit(&mut log, &mut random)?;
                if random.one_in(8) {
                    log.sync()?;
                }
            }
            shipper.wake();
        }
        report(plan, &log, &shipper, notes)?;
    }
}

fn report(plan: &Plan, log: &Log, shipper: &Shipper, notes: &Mutex<Notes>) -> Any<()> {
    let replicas = shipper.status();
    let head = log.head().pos;
    let known = |notes: &Notes| {
        let same = notes.replicas.iter().zip(&replicas);
        notes.head == Some(head)
            && notes.replicas.len() == replicas.len()
            && same.into_iter().all(|(a, b)| a.acked_txid == b.acked_txid)
    };
    if known(&notes.lock().unwrap()) {
        notes.lock().unwrap().replicas = replicas;
        return Ok(());
    }
    let mut reader = Reader::open(Arc::new(FileStorage::new(&plan.log_dir)))?;
    let mut acked = Vec::new();
    for (index, replica) in replicas.iter().enumerate() {
        if replica.acked_txid > 0
            && replica.acked_txid <= head.txid.0
            && let Some(entry) = reader.find(Txid(replica.acked_txid))?
        {
            acked.push((index, entry.header.pos()));
        }
    }
    let mut notes = notes.lock().unwrap();
    notes.head = Some(head);
    notes.replicas = replicas;
    notes.acked = acked;
    Ok(())
}

fn open_log(plan: &Plan) -> Any<Log> {
    match std::fs::create_dir(&plan.log_dir) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e.into()),
        _ => {}
    }
    let storage = Arc::new(FileStorage::new(&plan.log_dir));
    let mut log = match Log::open(storage.clone()) {
        Err(e) if e.is_not_found() => {
            File::open(plan.log_dir.parent().unwrap())?.sync_all()?;
            return Ok(Log::create(storage, DatabaseId([plan.id; 16]), now_us())?);
        }
        opened => opened?,
    };
    // What a power cut tore, as capture does.
    log.drop_tail()?;
    Ok(log)
}

fn now_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_micros() as u64)
}

/// The timeline to record on: see `src/capture/timeline.rs`, whose rules these are.
fn enter(log_dir: &Path, head: Pos, boot: u64) -> Any<u64> {
    let path = log_dir.join("timeline");
    let inode = std::fs::metadata(log_dir.join("meta"))?.ino();
    let known = std::fs::read(&path).ok().and_then(|bytes| decode(&bytes));
    let last = head.timeline.0.max(1);
    let note = match known {
        Some([known, timeline, _]) if known == boot => return Ok(timeline.max(last)),
        // A copy stays on the timeline: the original may live.
        Some([_, timeline, original]) if original != inode => [boot, timeline, original],
        Some([_, timeline, _]) => [boot, timeline.max(last) + 1, inode],
        None if head == Pos::ZERO => [boot, last, inode],
        None => [boot, last + 1, inode],
    };
    let new = log_dir.join("timeline.new");
    let mut file = File::create(&new)?;
    file.write_all(&encode(note))?;
    file.sync_all()?;
    std::fs::rename(&new, &path)?;
    File::open(log_dir)?.sync_all()?;
    Ok(note[1].max(last))
}

fn encode(note: [u64; 3]) -> Vec<u8> {
    let mut bytes: Vec<u8> = note.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(xxh3_64(&bytes).to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<[u64; 3]> {
    let words: Vec<u64> = bytes
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
        .collect();
    match words[..] {
        [a, b, c, hash] if bytes.len() == 32 && xxh3_64(&bytes[..24]) == hash => Some([a, b, c]),
        _ => None,
    }
}

/// The database, which is what its log says.
struct Writer {
    db: Connection,
    image: Vec<u8>,
    timeline: u64,
    rows: i64,
}

impl Writer {
    fn begin(log_dir: &Path, head: Pos, timeline: u64) -> Any<Writer> {
        let image = replay(log_dir)?;
        if head != Pos::ZERO {
            let known = oracle().image(place(head));
            assert_eq!(
                known,
                Some(hash_of(&image)),
                "the primary's own log at {head}"
            );
        }
        let mut db = Connection::open_in_memory()?;
        if image.is_empty() {
            db.execute_batch(
                "PRAGMA page_size = 512; CREATE TABLE t(id INTEGER PRIMARY KEY, n, b)",
            )?;
        } else {
            let mut plain = image.clone();
            // In memory there is no WAL.
            plain[18..20].copy_from_slice(&[1, 1]);
            db.deserialize_read_exact(MAIN_DB, &plain[..], plain.len(), false)?;
        }
        let rows = db.query_row("SELECT coalesce(max(id), 0) FROM t", [], |row| row.get(0))?;
        Ok(Writer {
            db,
            image,
            timeline,
            rows,
        })
    }

    fn change(&mut self, random: &mut Random) -> rusqlite::Result<()> {
        let some = (1 + random.below(self.rows.max(1) as u64)) as i64;
        let noise = |random: &mut Random, max: u64| -> Vec<u8> {
            (0..random.skewed(max))
                .map(|_| random.next() as u8)
                .collect()
        };
        match random.below(40) {
            0 if self.rows > 20 => {
                self.db
                    .execute("DELETE FROM t WHERE id % 3 = ?1", [some % 3])?;
                self.db.execute_batch("VACUUM")
            }
            1 => {
                let size = 512 << random.below(3);
                self.db
                    .execute_batch(&format!("PRAGMA page_size = {size}; VACUUM"))
            }
            2..12 => {
                let b = noise(random, 6000);
                self.db
                    .execute(
                        "UPDATE t SET n = ?1, b = ?2 WHERE id = ?3",
                        (random.next() as i64, b, some),
                    )
                    .map(drop)
            }
            12..15 => self
                .db
                .execute("DELETE FROM t WHERE id = ?1", [some])
                .map(drop),
            _ => {
                self.rows += 1;
                let b = noise(random, 2500);
                self.db
                    .execute(
                        "INSERT INTO t VALUES (?1, ?2, ?3)",
                        (self.rows, random.next() as i64, b),
                    )
                    .map(drop)
            }
        }
    }

    /// One more record: what it will be is known to the oracle before anybody can see it.
    fn commit(&mut self, log: &mut Log, random: &mut Random) -> Any<()> {
        self.change(random)?;
        let mut image = self.db.serialize(MAIN_DB)?.to_vec();
        // Half of the time as a primary in WAL mode leaves it.
        if self.timeline.is_multiple_of(2) {
            image[18..20].copy_from_slice(&[2, 2]);
        }
        let size_of = |image: &[u8]| match image.get(16..18) {
            Some(bytes) => u32::from(u16::from_be_bytes([bytes[0], bytes[1]])),
            None => 0,
        };
        let (old_size, size) = (size_of(&self.image), size_of(&image));
        let bytes = size as usize;
        let count = (image.len() / bytes) as u32;
        let page_size = PageSize::new(size).ok_or("page size")?;
        let mut draft = Draft::new(page_size, count, now_us());
        draft.timeline = Timeline(self.timeline.max(log.head().pos.timeline.0));
        draft.whole = old_size != 0 && old_size != size;
        let timeline = draft.timeline;
        let whole = draft.whole || old_size == 0;
        let mut record = log.begin(draft)?;
        for (index, page) in image.chunks(bytes).enumerate() {
            let old = self.image.chunks(bytes).nth(index).filter(|_| !whole);
            if old != Some(page) {
                record.patch(index as u32 + 1, old, page)?;
            }
        }
        if !whole {
            for (index, page) in self.image.chunks(bytes).enumerate().skip(count as usize) {
                record.drop_page(index as u32 + 1, page)?;
            }
        }
        if record.is_unchanged() && !whole {
            return Ok(record.abort()?);
        }
        let pos = Pos {
            timeline,
            txid: record.txid(),
            checksum: record.post_checksum(),
        };
        oracle().publish(pos, &image);
        record.commit()?;
        self.image = image;
        Ok(())
    }
}

/// The image at the end of a log.
pub fn replay(log_dir: &Path) -> Any<Vec<u8>> {
    let memory = FaultStorage::new();
    let mut image = Image::new(memory.open("image", OpenMode::Create)?);
    let mut reader = Reader::open(Arc::new(FileStorage::new(log_dir)))?;
    while let Some(entry) = reader.next()? {
        image.apply(&entry)?;
    }
    Ok(memory.contents("image").unwrap_or_default())
}
