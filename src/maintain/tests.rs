//! The thread that looks after the logs of a process: many logs, and a defect of ours in one of them.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::lock::Mutex;
use mycelite_journal::{DatabaseId, Draft, FileStorage, Log, PageSize};

use super::{Maintainer, Needs, Options, backlog};

const LIMIT: Duration = Duration::from_secs(30);

/// A log whose records have a segment each.
struct Grown {
    dir: PathBuf,
    log: Log,
    records: u8,
}

impl Grown {
    fn new(dir: &Path, number: u8) -> Grown {
        let dir = dir.join(number.to_string());
        std::fs::create_dir(&dir).unwrap();
        let storage = Arc::new(FileStorage::new(&dir));
        let mut log = Log::create(storage, DatabaseId([number; 16]), 0).unwrap();
        log.set_segment_bytes_max(0);
        let records = 0;
        Grown { dir, log, records }
    }

    fn grow(&mut self, segments: u8) {
        for _ in 0..segments {
            let old = [self.records; 512];
            self.records += 1;
            let old = (self.records > 1).then_some(&old[..]);
            let mut record = self.log.begin(Draft::new(PageSize::MIN, 1, 1)).unwrap();
            record.patch(1, old, &[self.records; 512]).unwrap();
            record.commit().unwrap();
        }
    }

    #[track_caller]
    fn wait_until_sealed(&self) {
        let begin = Instant::now();
        while backlog(&self.dir) > 0 {
            assert!(begin.elapsed() < LIMIT, "{} wait", backlog(&self.dir));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_panic_ends_the_round_of_one_log_and_of_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut broken = Grown::new(dir.path(), 1);
    let mut other = Grown::new(dir.path(), 2);
    let panics = Arc::new(AtomicBool::new(true));
    let told = Arc::new(Mutex::new(Vec::new()));
    let needs = {
        let panics = Arc::clone(&panics);
        move || {
            assert!(
                !panics.load(Ordering::Relaxed),
                "a panic that a test wanted"
            );
            Needs::default()
        }
    };
    let report = {
        let told = Arc::clone(&told);
        move |error: &crate::error::Error| told.lock().push(error.to_string())
    };
    let first = Maintainer::new(broken.dir.clone(), Options::default(), needs, report);
    let quiet = |error: &crate::error::Error| panic!("{error}");
    let second = Maintainer::new(other.dir.clone(), Options::default(), Needs::default, quiet);
    broken.grow(3);
    other.grow(3);
    first.wake();
    second.wake();
    other.wait_until_sealed();
    assert_eq!(backlog(&broken.dir), 2);
    assert!(told.lock()[0].contains("ended in a panic"), "{told:?}");
    panics.store(false, Ordering::Relaxed);
    first.wake();
    broken.wait_until_sealed();
    // A close that has much to do does it, also while others are open.
    broken.grow(6);
    first.wake();
    first.stop(LIMIT);
    assert_eq!(backlog(&broken.dir), 0);
    // One that has little leaves it to others, and does not wait.
    other.grow(2);
    second.wake();
    let begin = Instant::now();
    second.stop(LIMIT);
    assert_eq!(backlog(&other.dir), 2);
    assert!(begin.elapsed() < LIMIT / 2);
    assert_eq!(told.lock().len(), 1);
}
