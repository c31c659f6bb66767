//! The hooks of a database file, called as SQLite calls them, over a file in memory.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::capture::shared::{LogOptions, Notify};
use crate::capture::sighting::FileIdentity;
use crate::lock::Mutex;
use mycelite_journal::{
    Checksum, FLAG_ADOPT, FLAG_REBASE, FileStorage, Pos, Reader, Txid, page_checksum,
};
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
            adopt_background_min: u64::MAX,
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

/// Nor for what an outsider has done to the file since, and nothing counts.
#[test]
fn what_an_outsider_wrote_no_other_process_vouches_for() {
    let mut of = Hooked::new();
    of.main.before_unlock(LockLevel::None);
    of.file.0.lock()[PAGE..2 * PAGE].fill(3);
    let file = std::fs::File::options()
        .write(true)
        .open(&of.options.database);
    let long_ago = std::time::SystemTime::UNIX_EPOCH;
    file.unwrap().set_modified(long_ago).unwrap();
    let theirs = Arc::new(SharedLog::new(of.options.clone(), Arc::new(Deaf)));
    let db = Arc::clone(&of.file) as Arc<dyn Base>;
    let mut other = MainFile::new(Arc::clone(&theirs), 1, db);
    other.locked(LockLevel::Shared);
    other.locked(LockLevel::Reserved);
    assert_eq!(theirs.published().1.pos.checksum, of.checksum());
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
        adopt_background_min: u64::MAX,
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

/// How the writer of the next transaction may learn of a foreign commit that came within the exactness of the file's times.
#[derive(Clone, Copy, PartialEq)]
enum Header {
    /// SQLite reads it under the lock.
    Read,
    /// SQLite does not read it.
    Unread,
    /// SQLite has read it under an earlier lock, before the commit.
    ReadBefore,
    /// As before, and the foreigner goes on under the very lock, as in exclusive locking mode.
    UnderTheLock,
}

fn counters(of: &Hooked) -> [u8; COUNTERS_BYTES] {
    of.file.0.lock()[24..40].try_into().unwrap()
}

/// Raises the change counter in the first page.
fn count_commit(first: &mut [u8]) {
    let counter = u32::from_be_bytes(first[24..28].try_into().unwrap()) + 1;
    for at in [24, 92] {
        first[at..at + 4].copy_from_slice(&counter.to_be_bytes());
    }
}

#[test]
fn a_foreign_commit_is_noticed_by_the_header_alone() {
    for header in [
        Header::Read,
        Header::Unread,
        Header::ReadBefore,
        Header::UnderTheLock,
    ] {
        let mut of = Hooked::new();
        for is_ours in [true, false] {
            let mut first = of.page(1);
            count_commit(&mut first);
            if is_ours {
                of.write(1, &first);
                of.commit();
                if header == Header::UnderTheLock {
                    continue;
                }
                of.main.before_unlock(LockLevel::None);
                of.main.locked(LockLevel::Shared);
                of.main.counters_read(counters(&of));
                if header != Header::ReadBefore {
                    // A transaction of ours takes note of it, and changes nothing.
                    of.main.locked(LockLevel::Reserved);
                }
                of.main.before_unlock(LockLevel::None);
            } else {
                let mut file = of.file.0.lock();
                file[..PAGE].copy_from_slice(&first);
                file[PAGE..2 * PAGE].fill(3);
            }
        }
        let before = of.pos();
        if header != Header::UnderTheLock {
            of.main.locked(LockLevel::Shared);
            if header == Header::Read {
                of.main.counters_read(counters(&of));
            }
            of.main.locked(LockLevel::Reserved);
        }
        let mut first = of.page(1);
        count_commit(&mut first);
        of.write(1, &first);
        of.commit();
        assert_eq!(of.pos().txid.0, before.txid.0 + 2);
        assert_eq!(of.pos().checksum, of.checksum());
    }
}

#[test]
fn a_header_that_sqlite_has_read_is_not_read_again() {
    let mut of = Hooked::new();
    let mut first = of.page(1);
    count_commit(&mut first);
    of.write(1, &first);
    of.commit();
    of.main.before_unlock(LockLevel::None);
    // Whoever looked would find no database, and compare.
    let counters = counters(&of);
    of.file.0.lock()[..16].fill(0);
    let before = of.pos();
    of.main.locked(LockLevel::Shared);
    of.main.counters_read(counters);
    of.main.locked(LockLevel::Reserved);
    of.file.0.lock()[..PAGE].copy_from_slice(&first);
    count_commit(&mut first);
    of.write(1, &first);
    of.commit();
    assert_eq!(of.pos().txid.0, before.txid.0 + 1);
    assert_eq!(of.pos().checksum, of.checksum());
    // What a foreigner writes and does not count is seen by the file's times.
    of.main.before_unlock(LockLevel::None);
    of.file.0.lock()[PAGE..2 * PAGE].fill(3);
    let file = std::fs::File::options()
        .write(true)
        .open(&of.options.database);
    let long_ago = std::time::SystemTime::UNIX_EPOCH;
    file.unwrap().set_modified(long_ago).unwrap();
    of.main.locked(LockLevel::Shared);
    of.main.counters_read(self::counters(&of));
    of.main.locked(LockLevel::Reserved);
    assert_eq!(of.pos().checksum, of.checksum());
}

/// The file may be shorter than what was to be written says.
#[test]
fn a_failed_write_or_a_cut_does_not_lengthen_the_file() {
    for is_cut in [false, true] {
        let mut of = Hooked::new();
        of.main.before_write(2 * PAGE as u64, &[9; PAGE]);
        if is_cut {
            of.main.before_truncate(2 * PAGE as u64);
        } else {
            of.main.write_failed(2 * PAGE as u64, PAGE);
        }
        let mut first = of.page(1);
        first[28..32].copy_from_slice(&3_u32.to_be_bytes());
        of.write(1, &first);
        of.commit();
        assert_eq!(of.shared.published().1.page_count, 2);
        assert_eq!(of.pos().checksum, of.checksum());
    }
}
