//! A defect of ours in the shipping of one database: others do not notice, and it begins anew.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mycelite_journal::{DatabaseId, Draft, FileStorage, Log, PageSize};

use super::{ShipOptions, Shipper};
use crate::server::{ServeOptions, Server};

const LIMIT: Duration = Duration::from_secs(20);

/// A database that consists of its log, and its shipper.
struct Primary {
    log: Log,
    byte: u8,
    shipper: Shipper,
}

impl Primary {
    fn new(dir: &std::path::Path, name: &str, number: u8, server: &str) -> Primary {
        let log_dir = dir.join(name);
        std::fs::create_dir(&log_dir).unwrap();
        let storage = Arc::new(FileStorage::new(&log_dir));
        let log = Log::create(storage, DatabaseId([number; 16]), 0).unwrap();
        let replica = format!("http://{server}/{name}").parse().unwrap();
        let shipper = Shipper::new(ShipOptions::new(log_dir, vec![replica]));
        Primary {
            log,
            byte: 0,
            shipper,
        }
    }

    fn commit(&mut self) {
        let (old, new) = ([self.byte; 512], [self.byte + 1; 512]);
        self.byte += 1;
        let old = (self.byte > 1).then_some(&old[..]);
        let mut record = self.log.begin(Draft::new(PageSize::MIN, 1, 1)).unwrap();
        record.patch(1, old, &new).unwrap();
        record.commit().unwrap();
        self.shipper.wake();
    }

    fn acked(&self) -> u64 {
        self.shipper.status()[0].acked_txid
    }

    #[track_caller]
    fn wait(&self, what: &str, is_so: impl Fn(&Primary) -> bool) {
        let begin = Instant::now();
        while !is_so(self) {
            let status = self.shipper.status();
            assert!(begin.elapsed() < LIMIT, "{what}: {status:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn panic(&self, times: u32) {
        let running = self.shipper.running.lock();
        let job = &running.as_ref().unwrap().job;
        job.panics.store(times, Ordering::Relaxed);
    }
}

#[test]
fn a_panic_ends_the_shipping_of_no_other_database_and_of_its_own_for_a_moment() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let options = ServeOptions::new("127.0.0.1:0", dir.path().join("server"));
    let server = runtime.block_on(Server::bind(options)).unwrap();
    let address = server.local_addr().to_string();
    let serving = runtime.spawn(server.run(std::future::pending()));
    let mut broken = Primary::new(dir.path(), "broken", 1, &address);
    let mut other = Primary::new(dir.path(), "other", 2, &address);
    for primary in [&mut broken, &mut other] {
        primary.commit();
        primary.wait("the first record", |primary| primary.acked() == 1);
    }
    broken.panic(2);
    broken.commit();
    broken.wait("the failure in the status", |broken| {
        let status = &broken.shipper.status()[0];
        status.state == "backing-off" && status.last_error.contains("please report this")
    });
    // Who waits for it is told at once.
    assert!(!broken.shipper.flush(LIMIT));
    for txid in 2..20 {
        other.commit();
        other.wait("a record of the other", |other| other.acked() == txid);
    }
    // Nobody wakes it.
    broken.wait("the record of the broken one", |broken| broken.acked() == 2);
    let status = &broken.shipper.status()[0];
    assert_eq!(
        (status.state.as_str(), status.last_error.as_str()),
        ("caught-up", "")
    );
    broken.shipper.stop(LIMIT);
    other.shipper.stop(LIMIT);
    serving.abort();
}
