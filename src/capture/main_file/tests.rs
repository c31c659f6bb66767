//! The hooks of a database file, called as SQLite calls them, over a file in memory.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::capture::shared::{LogOptions, Notify};
use crate::capture::sighting::FileIdentity;
use mycelite_journal::{
    Checksum, FLAG_ADOPT, FLAG_REBASE, FileStorage, Pos, Reader, Txid, page_checksum,
};
use parking_lot::Mutex;
use rusqlite::Connection;

struct Bytes(Mutex<Vec<u8>>);

impl Base for Bytes {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let bytes = self.0.lock();
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let got = rest.len().min(buf.len());
        buf[..got].copy_from_slice(&rest[..got]);
        Ok(got)
    }

    fn size(&self) -> Result<u64> {
        Ok(self.0.lock().len() as u64)
    }
}

struct Deaf;

impl Notify for Deaf {
    fn published(&self, _segment: Txid) {}
    fn degraded(&self, error: &Error) {
        panic!("{error}");
    }
}

const PAGE: usize = 512;
/// Where SQLite's lock bytes are in a file.
const LOCK_BYTE: usize = 1 << 30;

/// The hooks of a connection, whose database is adopted.
struct Hooked {
    options: LogOptions,
    shared: Arc<SharedLog>,
    file: Arc<Bytes>,
    main: MainFile,
    dir: tempfile::TempDir,
}

impl Hooked {
    fn new() -> Hooked {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        Connection::open(&path)
            .unwrap()
            .execute_batch(&format!("PRAGMA page_size={PAGE}; CREATE TABLE t(a)"))
            .unwrap();
        let options = LogOptions {
            database: path.clone(),
            file: FileIdentity::of(&path).unwrap(),
            dir: dir.path().join("app.db-mycelite"),
            sync: LogSync::Off,
            segment_bytes_max: 1 << 20,
        };
        let file = Arc::new(Bytes(Mutex::new(std::fs::read(&path).unwrap())));
        let hooked = Hooked::start(dir, options, file);
        assert_eq!(hooked.pos().txid.0, 1);
        hooked
    }

    /// A process that opens the database, and has the write lock.
    fn start(dir: tempfile::TempDir, options: LogOptions, file: Arc<Bytes>) -> Hooked {
        let shared = Arc::new(SharedLog::new(options.clone(), Arc::new(Deaf)));
        let db = Arc::clone(&file) as Arc<dyn Base>;
        let mut hooked = Hooked {
            options,
            main: MainFile::new(Arc::clone(&shared), 1, db),
            shared,
            file,
            dir,
        };
        hooked.lock();
        hooked
    }

    /// The process dies, and another starts.
    fn restart(self) -> Hooked {
        let Hooked {
            options,
            shared,
            file,
            main,
            dir,
        } = self;
        drop((main, shared));
        Hooked::start(dir, options, file)
    }

    fn lock(&mut self) {
        for level in [LockLevel::Shared, LockLevel::Reserved, LockLevel::Exclusive] {
            self.main.locked(level);
        }
    }

    fn page(&self, pgno: usize) -> Vec<u8> {
        self.file.0.lock()[(pgno - 1) * PAGE..pgno * PAGE].to_vec()
    }

    fn write(&mut self, pgno: usize, page: &[u8]) {
        let at = (pgno - 1) * PAGE;
        self.main.before_write(at as u64, page);
        self.file.0.lock()[at..at + PAGE].copy_from_slice(page);
    }

    fn commit(&mut self) {
        self.main.all_written();
        self.main.committed();
    }

    /// Where the log stands.
    fn pos(&self) -> Pos {
        self.shared.published().1.pos
    }

    /// The checksum of the file.
    fn checksum(&self) -> Checksum {
        let mut checksum = Checksum(0);
        for (pgno, page) in (1..).zip(self.file.0.lock().chunks(PAGE)) {
            checksum ^= page_checksum(pgno, page);
        }
        checksum
    }
}

#[test]
fn a_transaction_whose_unlock_fails_above_is_not_recorded() {
    let mut of = Hooked::new();
    let (adopted, original) = (of.pos(), of.page(2));
    // A page is spilled; the rollback fails, and so does the unlock, of which nothing is heard here. The next use of the
    // connection rolls the journal back.
    of.write(2, &[7; PAGE]);
    of.main.locked(LockLevel::Shared);
    of.main.locked(LockLevel::Exclusive);
    of.write(2, &original);
    of.main.before_unlock(LockLevel::None);
    assert!(!of.shared.is_verified());

    of.main.locked(LockLevel::Shared);
    of.main.locked(LockLevel::Reserved);
    of.main.before_unlock(LockLevel::None);
    assert!(of.shared.is_verified());
    assert_eq!(of.shared.acquire().unwrap().head().pos, adopted);
}

#[test]
fn a_prepared_record_is_withdrawn_when_its_commit_fails() {
    let mut of = Hooked::new();
    let (adopted, original) = (of.pos(), of.page(2));
    of.write(2, &[7; PAGE]);
    of.main.all_written();
    // The journal cannot be deleted, and is rolled back.
    of.write(2, &original);
    of.main.before_unlock(LockLevel::None);
    assert_eq!(of.shared.acquire().unwrap().head().pos, adopted);
    // More is written after the first call that says that all is.
    of.lock();
    of.write(2, &[7; PAGE]);
    of.main.all_written();
    of.write(2, &[8; PAGE]);
    of.commit();
    assert_eq!(of.pos().txid.0, adopted.txid.0 + 1);
    assert_eq!(of.pos().checksum, of.checksum());
}

/// What a rollback leaves behind is the image now, and no transaction of the application.
#[test]
fn what_a_rollback_does_not_restore_is_a_record_that_says_so() {
    let mut of = Hooked::new();
    of.write(2, &[7; PAGE]);
    of.main.before_unlock(LockLevel::None);
    assert_eq!(of.pos().checksum, of.checksum());
    let storage = Arc::new(FileStorage::new(&of.options.dir));
    let mut reader = Reader::open(storage).unwrap();
    let mut flags = Vec::new();
    while let Some(record) = reader.next().unwrap() {
        flags.push(record.header.flags);
    }
    assert_eq!(flags, [FLAG_ADOPT, FLAG_REBASE]);
}

/// In exclusive locking mode no lock says that a transaction begins, and a file may be cut before anything is written.
#[test]
fn a_cut_begins_a_transaction_and_its_pages_are_kept() {
    let mut of = Hooked::new();
    of.commit();
    of.main.before_truncate(PAGE as u64);
    of.file.0.lock().truncate(PAGE);
    let mut first = of.page(1);
    first[28..32].copy_from_slice(&1_u32.to_be_bytes());
    of.write(1, &first);
    of.commit();
    assert_eq!(of.shared.published().1.page_count, 1);
    assert_eq!(of.pos().checksum, of.checksum());
}

/// Nothing but a comparison tells what is done past SQLite and past the file's times.
#[test]
fn who_starts_alone_and_finds_no_stamp_compares() {
    for was_closed in [false, true] {
        let mut of = Hooked::new();
        of.main.before_unlock(LockLevel::None);
        if was_closed {
            of.shared.leave().unwrap();
            assert!(of.options.dir.join("stamp").exists());
            of = of.restart();
        }
        of.file.0.lock()[2 * PAGE - 1] ^= 1;
        of = of.restart();
        assert_eq!(of.pos().txid.0, 2, "{was_closed}");
        assert_eq!(of.pos().checksum, of.checksum());
    }
}

/// Another process that has the file open knows nothing of what this one has missed.
#[test]
fn what_one_process_missed_no_other_vouches_for() {
    let mut of = Hooked::new();
    of.main.before_unlock(LockLevel::None);
    let theirs = Arc::new(SharedLog::new(of.options.clone(), Arc::new(Deaf)));
    let db = Arc::clone(&of.file) as Arc<dyn Base>;
    let mut other = MainFile::new(Arc::clone(&theirs), 1, db);
    other.locked(LockLevel::Shared);
    other.locked(LockLevel::Reserved);
    other.before_unlock(LockLevel::None);
    assert!(theirs.is_verified());
    // A hot journal is rolled back, and what was in a free page is not in it.
    of.main.locked(LockLevel::Shared);
    of.main.locked(LockLevel::Exclusive);
    of.write(2, &[7; PAGE]);
    of.main.before_unlock(LockLevel::None);
    of.lock();
    assert_eq!(of.pos().checksum, of.checksum());
}

/// A file that is cut below the lock bytes and grows beyond them again, in one transaction.
#[test]
fn the_page_with_the_lock_bytes_is_not_kept() {
    const LARGE: usize = 65536;
    let last = LOCK_BYTE / LARGE + 2;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    Connection::open(&path)
        .unwrap()
        .execute_batch(&format!("PRAGMA page_size={LARGE}; CREATE TABLE t(a)"))
        .unwrap();
    // Zeros that nobody touches are no memory.
    let mut bytes = vec![0; last * LARGE];
    let small = std::fs::read(&path).unwrap();
    bytes[..small.len()].copy_from_slice(&small);
    bytes[28..32].copy_from_slice(&u32::try_from(last).unwrap().to_be_bytes());
    let options = LogOptions {
        database: path.clone(),
        file: FileIdentity::of(&path).unwrap(),
        dir: dir.path().join("app.db-mycelite"),
        sync: LogSync::Off,
        segment_bytes_max: 1 << 20,
    };
    let file = Arc::new(Bytes(Mutex::new(bytes)));
    let mut of = Hooked::start(dir, options, Arc::clone(&file));
    of.commit();
    let adopted = of.pos();
    of.main.before_truncate((LOCK_BYTE - LARGE) as u64);
    file.0.lock().truncate(LOCK_BYTE - LARGE);
    of.main
        .before_write(((last - 1) * LARGE) as u64, &[7; LARGE]);
    file.0.lock().resize((last - 1) * LARGE, 0);
    file.0.lock().resize(last * LARGE, 7);
    of.commit();
    // The page before the lock bytes was zeros, and is.
    let [zeros, sevens] = [0, 7].map(|byte| page_checksum(last as u32, &[byte; LARGE]));
    assert_eq!(of.pos().txid.0, adopted.txid.0 + 1);
    assert_eq!(of.pos().checksum, adopted.checksum ^ zeros ^ sevens);
}

/// A damaged header may count any number of pages; SQLite reads what the file holds, or nothing.
#[test]
fn a_page_count_beyond_the_file_counts_no_pages() {
    let mut of = Hooked::new();
    let mut first = of.page(1);
    first[28..32].copy_from_slice(&(1_u32 << 20).to_be_bytes());
    of.write(1, &first);
    of.commit();
    assert_eq!(of.shared.published().1.page_count, 2);
    assert_eq!(of.pos().checksum, of.checksum());
    // A page that the file holds in part is a page.
    of.main.before_unlock(LockLevel::None);
    of.lock();
    of.main.before_write(2 * PAGE as u64, &[9; 100]);
    of.file.0.lock().extend([9; 100]);
    of.commit();
    assert_eq!(of.shared.published().1.page_count, 3);
}
