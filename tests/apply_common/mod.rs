//! What the tests of applying share: a primary that plain SQLite writes, its log made by comparing images, and readers.

#![allow(unsafe_code, dead_code, clippy::unwrap_used)]

use std::ffi::{c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use c_shim::{Api, File, OpenFlags};
use libsqlite3_sys as sys;
use mycelite::apply::{Applier, ApplyOptions};
use mycelite_journal::{DatabaseId, Draft, FileStorage, Log, PageSize, Txid};
use rusqlite::Connection;

unsafe extern "C" fn entry(
    _: *mut sys::sqlite3,
    _: *mut *mut c_char,
    table: *const sys::sqlite3_api_routines,
) -> c_int {
    // SAFETY: SQLite's own table, static.
    match unsafe { Api::init(table.cast_mut().cast()) } {
        Ok(_) => sys::SQLITE_OK,
        Err(_) => sys::SQLITE_ERROR,
    }
}

/// The bundled SQLite's routines, got as a statically linked extension gets them.
pub fn api() -> Api {
    static API: OnceLock<Api> = OnceLock::new();
    *API.get_or_init(|| {
        // SAFETY: the entry lives for ever.
        assert_eq!(sys::SQLITE_OK, unsafe {
            sys::sqlite3_auto_extension(Some(entry))
        });
        Connection::open_in_memory().unwrap();
        Api::get().unwrap()
    })
}

/// A primary, the images it has had, and a replica's place.
pub struct World {
    pub dir: tempfile::TempDir,
    pub primary: Connection,
    log: Log,
    /// `images[n]` is the image after transaction n.
    pub images: Vec<Vec<u8>>,
}

impl World {
    pub fn new() -> World {
        api();
        let dir = tempfile::tempdir().unwrap();
        World::in_dir(dir)
    }

    pub fn in_dir(dir: tempfile::TempDir) -> World {
        std::fs::create_dir(dir.path().join("replica.db-mycelite")).unwrap();
        let primary = Connection::open(dir.path().join("primary.db")).unwrap();
        let storage = Arc::new(FileStorage::new(dir.path().join("replica.db-mycelite")));
        let log = Log::create(storage, DatabaseId([7; 16]), 1).unwrap();
        World {
            dir,
            primary,
            log,
            images: vec![Vec::new()],
        }
    }

    pub fn replica(&self) -> PathBuf {
        self.dir.path().join("replica.db")
    }

    pub fn log_dir(&self) -> PathBuf {
        self.dir.path().join("replica.db-mycelite")
    }

    pub fn applier(&self) -> Applier {
        Applier::open(&self.replica(), &self.log_dir()).unwrap()
    }

    pub fn applier_with(&self, change: impl FnOnce(&mut ApplyOptions)) -> Applier {
        let mut options = ApplyOptions::default();
        change(&mut options);
        Applier::open_with(&self.replica(), &self.log_dir(), options).unwrap()
    }

    /// Runs statements and records what they did as one transaction; none if they changed nothing.
    pub fn run(&mut self, sql: &str) {
        self.primary
            .execute_batch(sql)
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
        self.record();
    }

    /// Records the difference between the primary and the last image.
    pub fn record(&mut self) {
        let image = self.read_primary();
        if image != self.last() {
            append(&mut self.log, self.images.last().unwrap(), &image);
            self.images.push(image);
        }
    }

    /// Transactions recorded.
    pub fn head(&self) -> u64 {
        self.images.len() as u64 - 1
    }

    pub fn last(&self) -> &[u8] {
        self.images.last().unwrap()
    }

    fn read_primary(&self) -> Vec<u8> {
        // In WAL mode this copies everything into the file: nobody reads. In other modes it does nothing.
        self.primary
            .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
            .unwrap();
        std::fs::read(self.dir.path().join("primary.db")).unwrap()
    }

    /// Adds an image as a transaction, whatever it is.
    pub fn push_image(&mut self, image: Vec<u8>) {
        append(&mut self.log, self.images.last().unwrap(), &image);
        self.images.push(image);
    }
}

fn page_size(image: &[u8]) -> Option<PageSize> {
    let bytes = image.get(16..18)?;
    PageSize::new(u32::from(bytes[0]) << 8 | u32::from(bytes[1]) << 16)
}

/// Writes one record that leads from one image to another.
fn append(log: &mut Log, old: &[u8], new: &[u8]) {
    let size = page_size(new).or(page_size(old)).unwrap();
    let pages = |image: &[u8]| u32::try_from(image.len() / size.bytes()).unwrap();
    assert_eq!(new.len() % size.bytes(), 0);
    let whole = page_size(old) != Some(size);
    let now = log.head().time_us + 1;
    let mut record = log
        .begin(Draft {
            whole,
            ..Draft::new(size, pages(new), now)
        })
        .unwrap();
    let old = if whole { &[][..] } else { old };
    for pgno in 1..=pages(new) {
        let at = |image: &[u8]| {
            image
                .get((pgno as usize - 1) * size.bytes()..pgno as usize * size.bytes())
                .map(<[u8]>::to_vec)
        };
        let (before, after) = (at(old), at(new).unwrap());
        if pgno != size.lock_page() && before.as_deref() != Some(&after) {
            record.patch(pgno, before.as_deref(), &after).unwrap();
        }
    }
    for pgno in pages(new) + 1..=pages(old) {
        if pgno != size.lock_page() {
            record
                .drop_page(
                    pgno,
                    &old[(pgno as usize - 1) * size.bytes()..][..size.bytes()],
                )
                .unwrap();
        }
    }
    record.commit().unwrap();
}

/// The bytes of a database file that an applier of this process may have locked: read through SQLite's VFS, because
/// closing an ordinary descriptor would drop its locks.
pub fn read_database(path: &Path) -> Vec<u8> {
    let file = File::open(api(), None, path, OpenFlags::MAIN_DB | OpenFlags::READONLY).unwrap();
    let mut bytes = vec![0; usize::try_from(file.size().unwrap()).unwrap()];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

/// Applies everything there is.
pub fn catch_up(applier: &mut Applier) {
    for _ in 0..100_000 {
        let applied = applier.step().unwrap();
        assert_eq!(applied.waiting, None);
        if !applied.more {
            return;
        }
    }
    panic!("the applier never catches up");
}

/// Applies everything and compares the database file alone, byte for byte.
pub fn assert_identical(world: &World, applier: &mut Applier) {
    catch_up(applier);
    applier.idle().unwrap();
    assert!(applier.is_settled());
    assert_eq!(applier.pos().txid, Txid(world.head()));
    assert_same_bytes(&read_database(&world.replica()), world.last());
}

/// Compares without printing megabytes.
pub fn assert_same_bytes(found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len(), "lengths differ");
    if found == expected {
        return;
    }
    if let Some(at) = (0..found.len()).find(|at| found[*at] != expected[*at]) {
        panic!(
            "byte {at} of {} differs: {} instead of {}",
            found.len(),
            found[at],
            expected[at]
        );
    }
}

/// Numbers that a seed determines (xorshift).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}
