//! A writer, a sealer, readers and states of the past beside each other, on real files.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};

use common::*;
use mycelite_journal::*;

const RECORDS: usize = 1500;

fn storage(dir: &Path) -> Arc<dyn Storage> {
    Arc::new(FileStorage::new(dir))
}

fn write(dir: &Path, images: &RwLock<Vec<Db>>) {
    let mut log = Log::open(storage(dir)).unwrap();
    log.set_segment_bytes_max(12_000);
    let mut history = History::new(41);
    for _ in 0..RECORDS {
        let new = history.next_image();
        // Before it is in the log: whoever reads it there finds it here.
        images.write().unwrap().push(new.clone());
        commit(&mut log, history.last(), &new).unwrap();
        history.images = vec![new];
    }
}

fn seal_along(dir: &Path, done: &AtomicBool) {
    let archive = Archive::open(storage(dir)).unwrap();
    let mut random = Random(3);
    loop {
        let last_round = done.load(Ordering::SeqCst);
        while let Some(sealed) = seal(&*storage(dir), Txid(u64::MAX)).unwrap() {
            if random.below(4) == 0 {
                Snapshot::write(&archive, sealed.last).unwrap();
            }
        }
        if last_round {
            return;
        }
        std::thread::yield_now();
    }
}

fn look_back(dir: &Path, images: &RwLock<Vec<Db>>, done: &AtomicBool, seed: u64) -> u64 {
    let archive = Archive::open(storage(dir)).unwrap();
    let mut reader = Reader::open(storage(dir)).unwrap();
    let mut random = Random(seed);
    let mut looks = 0;
    while !done.load(Ordering::SeqCst) {
        let Some(head) = archive.head().unwrap() else {
            continue;
        };
        let txid = Txid(random.below(head.0) + 1);
        let image = images.read().unwrap()[txid.0 as usize].clone();
        let mut past = archive.as_of(txid).unwrap();
        assert_eq!(past.pos().checksum, image.checksum());
        let mut page = vec![0; image.size.bytes()];
        for _ in 0..image.count().min(6) {
            let pgno = random.below(u64::from(image.count())) as u32 + 1;
            past.read_page(pgno, &mut page).unwrap();
            assert!(page == image.page(pgno), "page {pgno} as of {txid}");
        }
        let entry = reader.find(txid).unwrap().unwrap();
        assert_eq!(entry.header.post_checksum, image.checksum());
        entry.verify().unwrap();
        looks += 1;
    }
    looks
}

fn follow(dir: &Path, images: &RwLock<Vec<Db>>, done: &AtomicBool) {
    let mut reader = Reader::open(storage(dir)).unwrap();
    let disk = FaultStorage::new();
    let mut image = Image::new(disk.open("image", OpenMode::Create).unwrap());
    loop {
        let last_look = done.load(Ordering::SeqCst);
        while let Some(entry) = reader.next().unwrap() {
            image.apply(&entry).unwrap();
        }
        if last_look {
            let expected = images.read().unwrap();
            assert!(disk.contents("image").unwrap() == expected.last().unwrap().bytes);
            assert_eq!(image.pos().txid, Txid(RECORDS as u64));
            return;
        }
        std::thread::yield_now();
    }
}

#[test]
fn all_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    Log::create(storage(dir), ID, 1).unwrap();
    let images = RwLock::new(vec![Db::empty()]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (images, done) = (&images, &done);
        let writer = scope.spawn(move || write(dir, images));
        scope.spawn(move || seal_along(dir, done));
        scope.spawn(move || follow(dir, images, done));
        let lookers = [1, 2].map(|seed| scope.spawn(move || look_back(dir, images, done, seed)));
        let written = writer.join();
        done.store(true, Ordering::SeqCst);
        written.unwrap();
        assert!(
            lookers
                .into_iter()
                .all(|looker| looker.join().unwrap() > 10)
        );
    });
    let names = storage(dir).list().unwrap();
    let count = |end: &str| names.iter().filter(|name| name.ends_with(end)).count();
    assert!(
        count(".sealed") > 5 && count(".seg") == 1 && count(".new") == 0,
        "{names:?}"
    );
    let images = images.into_inner().unwrap();
    assert_eq!(replay(storage(dir), &images).unwrap(), RECORDS as u64);
}
