//! Readers beside writers, on real files: nobody ever sees anything but whole records, in order.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::*;
use mycelite_journal::*;

const RECORDS: u64 = 2000;

/// Writes its share of the records, each in one of the ways there are, under the lock.
fn write(dir: &Path, history: &Mutex<History>, number: u64) {
    let mut log = Log::open(Arc::new(FileStorage::new(dir))).unwrap();
    log.set_segment_bytes_max(30_000);
    let mut random = Random(number);
    loop {
        let mut history = history.lock().unwrap();
        if history.images.len() as u64 > RECORDS {
            return;
        }
        log.refresh().unwrap();
        assert_eq!(log.head().pos.checksum, history.last().checksum());
        let new = history.next_image();
        let record = begin(&mut log, history.last(), &new, draft(&new)).unwrap();
        match random.below(6) {
            0 => {
                record.prepare().unwrap();
                log.discard().unwrap();
                continue;
            }
            1 => {
                record.prepare().unwrap();
                std::thread::yield_now();
                log.publish().unwrap();
            }
            2 => {
                // A process that dies between the two, and the next one that finds its record.
                record.prepare().unwrap();
                log = Log::open(Arc::new(FileStorage::new(dir))).unwrap();
                log.set_segment_bytes_max(30_000);
                log.publish_prepared().unwrap();
            }
            3 => drop(record),
            _ => {
                record.commit().unwrap();
            }
        }
        if log.head().pos.txid.0 == history.images.len() as u64 {
            history.images.push(new);
        }
        if random.below(20) == 0 {
            log.sync().unwrap();
        }
    }
}

/// Follows the log to its end, proving each image; the raw bytes make a second log.
fn follow(dir: &Path, done: &AtomicBool) -> (Pos, Vec<u8>) {
    let disk = FaultStorage::new();
    let mut image = Image::new(disk.open("image", OpenMode::Create).unwrap());
    let mut copy = Log::create(Arc::new(disk.clone()), ID, 1).unwrap();
    let mut reader = Reader::open(Arc::new(FileStorage::new(dir))).unwrap();
    loop {
        // Asked before, so that the last look comes after the last record.
        let last_look = done.load(Ordering::SeqCst);
        while let Some(entry) = reader.next().unwrap() {
            image.apply(&entry).unwrap();
            let mut stream = entry.raw();
            copy.append_raw(&mut stream, &RawLimits::default()).unwrap();
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        }
        if last_look {
            assert_eq!(copy.head().pos, image.pos());
            return (image.pos(), disk.contents("image").unwrap());
        }
        std::thread::yield_now();
    }
}

#[test]
fn writers_take_turns_and_readers_follow() {
    let dir = tempfile::tempdir().unwrap();
    Log::create(Arc::new(FileStorage::new(dir.path())), ID, 1).unwrap();
    let history = Mutex::new(History::new(99));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let followers: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| follow(dir.path(), &done)))
            .collect();
        // One that only ever asks where the end is.
        let looker = scope.spawn(|| {
            let mut reader = Reader::open(Arc::new(FileStorage::new(dir.path()))).unwrap();
            let mut last = Txid(0);
            while !done.load(Ordering::SeqCst) {
                let head = reader.head().unwrap().map(|entry| entry.header.txid);
                assert!(head.unwrap_or(Txid(0)) >= last);
                last = head.unwrap_or(Txid(0));
                reader.bytes_after(Txid(last.0 / 2)).unwrap();
                let mut other = Reader::open(Arc::new(FileStorage::new(dir.path()))).unwrap();
                assert!(other.head().unwrap().map(|entry| entry.header.txid) >= head);
                std::thread::yield_now();
            }
        });
        let history = &history;
        let writers: Vec<_> = (0..3)
            .map(|number| {
                let dir = dir.path();
                scope.spawn(move || write(dir, history, number))
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Ordering::SeqCst);
        looker.join().unwrap();
        let history = history.lock().unwrap();
        for follower in followers {
            let (pos, image) = follower.join().unwrap();
            assert_eq!(pos.txid, Txid(RECORDS));
            assert!(image == history.last().bytes);
        }
    });
    let history = history.into_inner().unwrap();
    let storage = Arc::new(FileStorage::new(dir.path()));
    assert_eq!(replay(storage, &history.images).unwrap(), RECORDS);
}

/// A storage on which something happens when a file is opened for the n-th time.
struct Meanwhile<'a> {
    disk: FaultStorage,
    name: &'static str,
    event: Mutex<(u32, Option<Event<'a>>)>,
}

type Event<'a> = Box<dyn FnOnce() + Send + 'a>;

impl Storage for Meanwhile<'_> {
    fn list(&self) -> std::io::Result<Vec<String>> {
        self.disk.list()
    }
    fn open(&self, name: &str, mode: OpenMode) -> std::io::Result<Box<dyn StorageFile>> {
        let mut event = self.event.lock().unwrap();
        if name == self.name {
            event.0 -= 1;
            if event.0 == 0 {
                event.1.take().unwrap()();
            }
        }
        self.disk.open(name, mode)
    }
    fn size(&self, name: &str) -> std::io::Result<u64> {
        self.disk.size(name)
    }
    fn remove(&self, name: &str) -> std::io::Result<()> {
        self.disk.remove(name)
    }
    fn rename(&self, from: &str, to: &str) -> std::io::Result<()> {
        self.disk.rename(from, to)
    }
    fn sync_dir(&self) -> std::io::Result<()> {
        self.disk.sync_dir()
    }
    fn display(&self, name: &str) -> String {
        self.disk.display(name)
    }
}

/// Two synced records, a third one prepared; it is published and synced, and two more follow in a new segment, at the moment when
/// somebody who saw it unfinished reads the sync mark for the `n`-th time.
fn finished_meanwhile(n: u32) -> (Arc<Meanwhile<'static>>, Vec<Db>) {
    let (disk, mut log) = new_log();
    let mut history = History::new(8);
    history.steps(&mut log, 2);
    log.sync().unwrap();
    let mut images = history.images.clone();
    for _ in 0..3 {
        let mut next = images.last().unwrap().clone();
        next.mutate(&mut history.random);
        images.push(next);
    }
    let (third, rest) = (images[3].clone(), images[3..].to_vec());
    let record = begin(&mut log, &images[2], &third, draft(&third)).unwrap();
    record.prepare().unwrap();
    let event: Event<'static> = Box::new(move || {
        log.publish().unwrap();
        log.sync().unwrap();
        log.set_segment_bytes_max(0);
        for pair in rest.windows(2) {
            commit(&mut log, &pair[0], &pair[1]).unwrap();
            log.set_segment_bytes_max(1 << 20);
        }
    });
    let storage = Meanwhile {
        disk,
        name: "synced",
        event: Mutex::new((n, Some(event))),
    };
    (Arc::new(storage), images)
}

#[test]
fn a_record_that_is_finished_while_one_looks_is_no_damage() {
    // Opening for writing reads the mark first to know where to begin.
    let (storage, images) = finished_meanwhile(2);
    let log = Log::open(storage.clone()).unwrap();
    assert_eq!(log.head().pos.txid, Txid(5));
    assert_eq!(log.head().pos.checksum, images[5].checksum());

    let (storage, images) = finished_meanwhile(1);
    assert_eq!(replay(storage.clone(), &images).unwrap(), 5);
    assert!(storage.event.lock().unwrap().1.is_none());
}
