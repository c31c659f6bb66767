//! P3 against our own defects: a panic at each event that the hooks are told of, and in each of their reads. The
//! application notices nothing, and the log repairs itself.

#![allow(clippy::unwrap_used)]

use super::{Replicated, ShimFile, State};
use crate::error::Result;
use crate::vfs::{Base, COUNTERS_BYTES, Hooks, LockLevel, WAL_INDEX_BYTES};
use mycelite_journal::{FaultStorage, FileStorage, Image, OpenMode, Reader, Storage};
use rusqlite::auto_extension::register_auto_extension;
use rusqlite::{Connection, MAIN_DB, OpenFlags, ffi};
use std::ffi::{c_char, c_int};
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

/// Panics when it has burnt down.
struct Fuse(AtomicI64);

impl Fuse {
    fn burn(&self) {
        if self.0.fetch_sub(1, Ordering::Relaxed) == 1 {
            panic!("{INJECTED}");
        }
    }
}

const INJECTED: &str = "a defect, injected";

/// Hooks with a defect before or after what they do.
struct Doomed {
    inner: Box<dyn Hooks>,
    fuse: Arc<Fuse>,
    after: bool,
}

impl Doomed {
    fn tell(&mut self, event: impl FnOnce(&mut dyn Hooks)) {
        if !self.after {
            self.fuse.burn();
        }
        event(self.inner.as_mut());
        if self.after {
            self.fuse.burn();
        }
    }
}

impl Hooks for Doomed {
    fn counters_read(&mut self, counters: [u8; COUNTERS_BYTES]) {
        self.tell(|hooks| hooks.counters_read(counters));
    }
    fn before_write(&mut self, offset: u64, data: &[u8]) {
        self.tell(|hooks| hooks.before_write(offset, data));
    }
    fn write_failed(&mut self, offset: u64, bytes: usize) {
        self.tell(|hooks| hooks.write_failed(offset, bytes));
    }
    fn sync_failed(&mut self) {
        self.tell(|hooks| hooks.sync_failed());
    }
    fn before_truncate(&mut self, size: u64) {
        self.tell(|hooks| hooks.before_truncate(size));
    }
    fn locked(&mut self, level: LockLevel) {
        self.tell(|hooks| hooks.locked(level));
    }
    fn before_unlock(&mut self, level: LockLevel) {
        self.tell(|hooks| hooks.before_unlock(level));
    }
    fn all_written(&mut self) {
        self.tell(|hooks| hooks.all_written());
    }
    fn committed(&mut self) {
        self.tell(|hooks| hooks.committed());
    }
    fn checkpoint_start(&mut self) {
        self.tell(|hooks| hooks.checkpoint_start());
    }
    fn checkpoint_done(&mut self) {
        self.tell(|hooks| hooks.checkpoint_done());
    }
    fn wal_write_locked(&mut self) {
        self.tell(|hooks| hooks.wal_write_locked());
    }
    fn wal_checkpoint_locked(&mut self) {
        self.tell(|hooks| hooks.wal_checkpoint_locked());
    }
    fn before_wal_checkpoint_unlocked(&mut self) {
        self.tell(|hooks| hooks.before_wal_checkpoint_unlocked());
    }
    fn before_wal_index_unmapped(&mut self) {
        self.tell(|hooks| hooks.before_wal_index_unmapped());
    }
    fn wal_checkpoint_unlocked(&mut self) {
        self.tell(|hooks| hooks.wal_checkpoint_unlocked());
    }
    fn before_close(&mut self) {
        self.tell(|hooks| hooks.before_close());
    }
}

/// A file whose reading has a defect.
struct DoomedBase {
    inner: Arc<dyn Base>,
    fuse: Arc<Fuse>,
}

impl Base for DoomedBase {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.fuse.burn();
        self.inner.read_at(buf, offset)
    }
    fn size(&self) -> Result<u64> {
        self.fuse.burn();
        self.inner.size()
    }
    fn wal_index(&self) -> Option<[u8; WAL_INDEX_BYTES]> {
        self.fuse.burn();
        self.inner.wal_index()
    }
}

unsafe extern "C" fn entry(
    db: *mut ffi::sqlite3,
    message: *mut *mut c_char,
    table: *const ffi::sqlite3_api_routines,
) -> c_int {
    // SAFETY: SQLite's own arguments are passed on.
    unsafe { crate::auto_extension_entry(db, message, table.cast()) }
}

fn open(path: &Path) -> Connection {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: an entry point of ours.
        unsafe { register_auto_extension(entry) }.unwrap();
        Connection::open_in_memory().unwrap();
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if info.payload_as_str() != Some(INJECTED) {
                usual(info);
            }
        }));
    });
    Connection::open_with_flags_and_vfs(path, OpenFlags::default(), c"mycelite_writer").unwrap()
}

/// What stands behind a file of `connection`: the database, or its WAL.
fn state(connection: &Connection, which: c_int) -> Option<*mut State> {
    let mut file: *mut ffi::sqlite3_file = std::ptr::null_mut();
    // SAFETY: the connection is open, and this control stores a pointer to one of its files, which is one of ours if it
    // is open: a database through the writer VFS, or its WAL.
    unsafe {
        let place = (&raw mut file).cast();
        ffi::sqlite3_file_control(connection.handle(), std::ptr::null(), which, place);
        if file.is_null() || (*file).pMethods.is_null() {
            return None;
        }
        Some((*file.cast::<ShimFile>()).state)
    }
}

/// What is doomed.
#[derive(Clone, Copy, Debug)]
enum Where {
    BeforeEvents,
    AfterEvents,
    Reads,
}

/// Puts the fuse behind the connection's files.
fn doom(connection: &Connection, place: Where, wal_mode: bool, fuse: &Arc<Fuse>) {
    let mut files = vec![ffi::SQLITE_FCNTL_FILE_POINTER];
    if wal_mode {
        files.push(ffi::SQLITE_FCNTL_JOURNAL_POINTER);
    }
    for which in files {
        // SAFETY: the connection is open and idle, so that nobody else uses the state.
        let state = unsafe { &mut *state(connection, which).unwrap() };
        let Replicated { database, name, .. } = state.replicated.as_ref().unwrap();
        let doomed = |inner: Arc<dyn Base>| {
            let fuse = Arc::clone(fuse);
            Arc::new(DoomedBase { inner, fuse }) as Arc<dyn Base>
        };
        let files = database.shared().connection(*name).unwrap();
        match (place, which) {
            (Where::Reads, ffi::SQLITE_FCNTL_FILE_POINTER) => {
                database
                    .shared()
                    .add_connection(*name, doomed(Arc::clone(&files.db)));
            }
            (Where::Reads, _) => database
                .shared()
                .set_wal(*name, files.wal.clone().map(doomed)),
            _ => {
                let inner = state.hooks.take().unwrap();
                state.hooks = Some(Box::new(Doomed {
                    inner,
                    fuse: Arc::clone(fuse),
                    after: matches!(place, Where::AfterEvents),
                }));
            }
        }
    }
}

fn image_of_log(db: &Path) -> Vec<u8> {
    let memory = FaultStorage::new();
    let mut image = Image::new(memory.open("image", OpenMode::Create).unwrap());
    let log = FileStorage::new(crate::database::log_dir(db));
    let mut reader = Reader::open(Arc::new(log)).unwrap();
    while let Some(record) = reader.next().unwrap() {
        image.apply(&record).unwrap();
    }
    memory.contents("image").unwrap()
}

const STATEMENTS: [&str; 9] = [
    "INSERT INTO t(b) VALUES(zeroblob(2000))",
    "BEGIN",
    "UPDATE t SET b='changed' WHERE a%2",
    "INSERT INTO t(b) VALUES(zeroblob(9000))",
    "COMMIT",
    "BEGIN; DELETE FROM t; SELECT 1",
    "ROLLBACK",
    "PRAGMA wal_checkpoint(RESTART)",
    "INSERT INTO t(b) VALUES('last')",
];

/// One application's life with a defect at the `at`-th place; false when there is no such place. `open_still`: the log
/// must repair itself while the connection stays open.
fn survives(mode: &str, place: Where, at: i64, open_still: bool) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let connection = open(&path);
    connection
        .execute_batch(&format!(
            "PRAGMA page_size=1024; PRAGMA journal_mode={mode}; PRAGMA cache_size=5; PRAGMA synchronous=OFF;
             CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t(b) VALUES('first'),('second')"
        ))
        .unwrap();
    let fuse = Arc::new(Fuse(AtomicI64::new(at)));
    doom(&connection, place, mode == "WAL", &fuse);
    for sql in STATEMENTS {
        let what = format!("{mode}, {place:?} {at}, {sql}");
        connection
            .execute_batch(sql)
            .unwrap_or_else(|e| panic!("{what}: {e}"));
    }
    let connection = if open_still {
        connection
    } else {
        drop(connection);
        open(&path)
    };
    let happened = fuse.0.swap(i64::MAX, Ordering::Relaxed) <= 0;
    let database = crate::database::find(path.to_str().unwrap()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while database.shared().pausing().is_some() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    connection
        .execute_batch("INSERT INTO t(b) VALUES('and on')")
        .unwrap();
    let rows: (i64, i64) = connection
        .query_row("SELECT count(*), sum(length(b)) FROM t", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    let what = format!("{mode}, {place:?} {at}, open still: {open_still}");
    assert_eq!(rows, (6, 7 + 6 + 7 + 9000 + 4 + 6), "{what}");
    let image = open(&path).serialize(MAIN_DB).unwrap().to_vec();
    database.shared().settle();
    assert!(
        image_of_log(&path) == image,
        "{what}: the log is not the image"
    );
    let status = database.status();
    assert_eq!(status.state, "ok", "{what}: {}", status.last_error);
    happened
}

/// Every place of the rollback journal and the WAL; of those that leave the connection open, which takes the pause of
/// capture each time, every place of one mode and some of the others.
fn every_place(place: Where) {
    for mode in ["DELETE", "MEMORY", "WAL"] {
        let mut at = 1;
        while survives(mode, place, at, mode == "DELETE" || at % 8 == 3) {
            at += 1;
        }
        // Most pages are in memory, and what SQLite has read need not be read again.
        let least = if matches!(place, Where::Reads) { 2 } else { 10 };
        assert!(at > least, "{mode}: only {at} places");
        println!("{place:?} in mode {mode}: {} places", at - 1);
    }
}

#[test]
fn a_defect_before_any_event_is_survived() {
    every_place(Where::BeforeEvents);
}

#[test]
fn a_defect_after_any_event_is_survived() {
    every_place(Where::AfterEvents);
}

#[test]
fn a_defect_in_any_read_is_survived() {
    every_place(Where::Reads);
}
