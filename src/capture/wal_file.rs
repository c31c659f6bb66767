//! The hooks of a WAL: the moment at which a new generation begins.

use crate::capture::main_file::establish;
use crate::capture::shared::{ConnectionFiles, SharedLog};
use crate::capture::wal::{WAL_HEADER_BYTES, WalHeader};
use crate::capture::wal_link::WalLink;
use crate::capture::written_wal::WrittenWal;
use crate::error::Result;
use crate::vfs::{Base, Hooks};
use std::sync::Arc;

/// Capture on one connection's WAL.
pub struct WalFile {
    shared: Arc<SharedLog>,
    name: usize,
    written: Arc<WrittenWal>,
}

impl WalFile {
    /// Capture on the WAL `wal` of the connection whose database file SQLite knows by the name at address `name`.
    pub fn new(shared: Arc<SharedLog>, name: usize, wal: Arc<dyn Base>) -> WalFile {
        shared.set_wal(name, Some(wal));
        let written = shared
            .connection(name)
            .map(|files| Arc::clone(&files.written));
        WalFile {
            shared,
            name,
            written: written.unwrap_or_default(),
        }
    }

    /// A new generation begins, over one that is in the log and in the database as far as it was committed.
    fn restart(&self, header: &WalHeader) -> Result<()> {
        let mut guard = self.shared.acquire()?;
        let head = guard.head();
        let link = WalLink {
            head: (head.pos.txid, head.pos.checksum),
            salt: header.salt,
            frame: 0,
        };
        let view = guard.parts()?.1;
        view.set_link(&self.shared.options().dir, link)
    }

    /// The log holds a transaction that SQLite has taken back: what is compared next is without it.
    fn taken_back(&self) {
        match self.shared.acquire_now() {
            Ok(mut guard) => self.shared.doubt(&mut guard),
            Err(error) => self.shared.fail(None, &error),
        }
    }

    /// Sees to what a write of `data` at `offset` means.
    fn look(&self, offset: u64, data: &[u8]) {
        // A page: only headers say anything that is not known.
        if data.len() > WAL_HEADER_BYTES && self.shared.is_verified() {
            return;
        }
        let files = self.shared.connection(self.name);
        // In exclusive locking mode there is no shared memory: no lock says that a writer begins, no index what counts.
        if let Some(ConnectionFiles {
            db,
            wal: Some(wal),
            commits,
            ..
        }) = files.as_deref()
            && data.len() <= WAL_HEADER_BYTES
            && db.wal_index().is_none()
        {
            match commits.before_write(wal.as_ref(), offset, data) {
                Ok(false) => {}
                Ok(true) => self.taken_back(),
                Err(error) => self.shared.fail(None, &error),
            }
        }
        establish(&self.shared, files);
        if offset != 0 || data.len() != WAL_HEADER_BYTES || !self.shared.is_verified() {
            return;
        }
        if let Some(header) = WalHeader::parse(data)
            && let Err(error) = self.restart(&header)
            && self.shared.pausing().is_none()
        {
            self.shared.fail(None, &error);
        }
    }
}

impl Hooks for WalFile {
    fn before_write(&mut self, offset: u64, data: &[u8]) {
        self.look(offset, data);
        // The capture thread reads the file. What was written before the setting changed is forgotten with the next transaction.
        if !self.shared.lane().is_enabled() {
            self.written.put(offset, data);
        }
    }

    fn before_truncate(&mut self, _size: u64) {
        self.written.forget();
    }

    fn write_failed(&mut self, _offset: u64, _bytes: usize) {
        self.written.forget();
        if let Some(files) = self.shared.connection(self.name) {
            files.commits.write_failed();
        }
    }

    /// SQLite takes back what it could not sync.
    fn sync_failed(&mut self) {
        self.write_failed(0, 0);
    }

    fn before_close(&mut self) {
        self.written.forget();
        self.shared.set_wal(self.name, None);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use crate::capture::header::be32;
    use crate::capture::shared::{LogOptions, Notify, SharedLog};
    use crate::capture::sighting::FileIdentity;
    use crate::capture::wal::{FRAME_HEADER_BYTES, WAL_HEADER_BYTES, WalHeader, wal_checksum};
    use crate::capture::{MainFile, WalFile};
    use crate::config::LogSync;
    use crate::error::{Error, Result};
    use crate::lock::Mutex;
    use crate::vfs::{Base, Hooks, LockLevel, WAL_INDEX_BYTES};
    use rusqlite::Connection;
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A file in memory; without a wal-index, unless one is forged.
    #[derive(Default)]
    struct Bytes(
        Mutex<Vec<u8>>,
        Mutex<Option<[u8; WAL_INDEX_BYTES]>>,
        /// So many looks at the wal-index find a commit that is changing it.
        AtomicU32,
    );

    impl Base for Bytes {
        fn wal_index(&self) -> Option<[u8; WAL_INDEX_BYTES]> {
            let mut index = *self.1.lock();
            let changing = self.2.load(Ordering::Relaxed);
            if let (Some(bytes), Some(left)) = (&mut index, changing.checked_sub(1)) {
                self.2.store(left, Ordering::Relaxed);
                bytes[16] ^= 1;
            }
            index
        }

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
        fn published(&self, _: mycelite_journal::Txid) {}
        fn degraded(&self, error: &Error) {
            assert!(error.to_string().contains("another WAL"), "{error}");
        }
    }

    const PAGE: usize = 512;

    /// A database whose WAL grows as SQLite says, in exclusive mode; the WAL after each of three commits.
    fn grow(path: &Path, page_bytes: usize) -> [Vec<u8>; 3] {
        let plain = Connection::open(path).unwrap();
        plain
            .execute_batch(&format!(
                "PRAGMA page_size={page_bytes}; PRAGMA locking_mode=EXCLUSIVE; CREATE TABLE t(a); PRAGMA journal_mode=WAL"
            ))
            .unwrap();
        plain.execute_batch("PRAGMA wal_autocheckpoint=0").unwrap();
        let wals = [1, 2, 3].map(|n| {
            let sql = format!("INSERT INTO t VALUES({n})");
            plain.execute_batch(&sql).unwrap();
            std::fs::read(path.with_extension("db-wal")).unwrap()
        });
        // The database file stays as it was before the first of them.
        std::mem::forget(plain);
        wals
    }

    /// Writes what `wal` has and `file` has not, as SQLite does: a frame's header, then its page.
    fn append(file: &Bytes, hooks: &mut WalFile, wal: &[u8]) {
        let mut at = file.0.lock().len();
        while at < wal.len() {
            let bytes = match at.checked_sub(WAL_HEADER_BYTES) {
                None => WAL_HEADER_BYTES,
                Some(behind) if behind % (FRAME_HEADER_BYTES + PAGE) == 0 => FRAME_HEADER_BYTES,
                Some(_) => PAGE,
            };
            let data = &wal[at..at + bytes];
            hooks.before_write(at as u64, data);
            file.0.lock().extend_from_slice(data);
            at += bytes;
        }
    }

    /// The hooks of a connection in exclusive mode, and its WAL, which holds the first of three commits.
    struct Exclusive {
        _dir: tempfile::TempDir,
        wals: [Vec<u8>; 3],
        shared: Arc<SharedLog>,
        db: Arc<Bytes>,
        wal: Arc<Bytes>,
        main: MainFile,
        log: WalFile,
    }

    impl Exclusive {
        fn new() -> Exclusive {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("app.db");
            let wals = grow(&path, PAGE);
            let options = LogOptions {
                database: path.clone(),
                file: FileIdentity::of(&path).unwrap(),
                dir: dir.path().join("app.db-mycelite"),
                sync: LogSync::Off,
                segment_bytes_max: 1 << 20,
                adopt_background_min: u64::MAX,
            };
            let shared = Arc::new(SharedLog::new(options, Arc::new(Deaf)));
            let db = Arc::new(Bytes::default());
            *db.0.lock() = std::fs::read(&path).unwrap();
            let wal = Arc::new(Bytes::default());
            wal.0.lock().clone_from(&wals[0]);
            let mut main = MainFile::new(Arc::clone(&shared), 1, Arc::clone(&db) as Arc<dyn Base>);
            main.locked(LockLevel::Shared);
            main.locked(LockLevel::Exclusive);
            let log = WalFile::new(Arc::clone(&shared), 1, Arc::clone(&wal) as Arc<dyn Base>);
            Exclusive {
                _dir: dir,
                wals,
                shared,
                db,
                wal,
                main,
                log,
            }
        }

        /// Writes the frames of commit `n`.
        fn write(&mut self, n: usize) {
            append(&self.wal, &mut self.log, &self.wals[n]);
        }

        fn txid(&self) -> u64 {
            self.shared.acquire().unwrap().head().pos.txid.0
        }
    }

    #[test]
    fn a_commit_that_failed_after_its_last_frame_is_none() {
        let mut of = Exclusive::new();
        // The first write adopts what is there. Its transaction fails, all frames written.
        of.write(1);
        assert_eq!(of.txid(), 1);
        of.main.checkpoint_start();
        assert_eq!(of.txid(), 1);

        // SQLite overwrites the frames with those of the next transaction, which it commits.
        of.wal.0.lock().truncate(of.wals[0].len());
        of.write(1);
        of.main.committed();
        assert_eq!(of.txid(), 2);

        // One write of the next one fails, and an empty transaction is committed.
        of.write(2);
        of.log.write_failed(0, 0);
        of.main.committed();
        of.main.checkpoint_start();
        assert_eq!(of.txid(), 2);

        // The same, all frames written, and the WAL cannot be synced.
        of.wal.0.lock().truncate(of.wals[1].len());
        of.write(2);
        of.log.sync_failed();
        of.main.committed();
        of.main.checkpoint_start();
        assert_eq!(of.txid(), 2);
    }

    /// Two commits, of which SQLite has taken back the second without a failing call: it ran out of memory after its last
    /// frame. An empty commit followed.
    fn with_one_taken_back() -> Exclusive {
        let mut of = Exclusive::new();
        of.write(1);
        of.main.committed();
        of.write(2);
        of.main.committed();
        of
    }

    #[test]
    fn a_commit_that_is_overwritten_is_taken_back() {
        let mut of = with_one_taken_back();
        let phantom = of.txid();
        of.wal.0.lock().truncate(of.wals[1].len());
        let header = of.wals[2][of.wals[1].len()..][..FRAME_HEADER_BYTES].to_vec();
        of.log.before_write(of.wals[1].len() as u64, &header);
        assert!(of.shared.is_verified());
        let head = of.shared.acquire().unwrap().head();
        assert_eq!(head.pos.txid.0, phantom + 1);
        let frames = (of.wals[1].len() - WAL_HEADER_BYTES) / (FRAME_HEADER_BYTES + PAGE);
        assert_eq!(head.wal.frame as usize, frames);
        of.write(2);
        of.main.committed();
        assert_eq!(of.txid(), phantom + 2);
    }

    #[test]
    fn a_commit_that_no_checkpoint_copies_is_doubted() {
        for is_taken_back in [false, true] {
            let mut of = with_one_taken_back();
            let counted = if is_taken_back { 1 } else { 2 };
            of.main.checkpoint_start();
            let frames = of.wals[counted][WAL_HEADER_BYTES..].chunks(FRAME_HEADER_BYTES + PAGE);
            for frame in frames {
                let (header, page) = frame.split_at(FRAME_HEADER_BYTES);
                let pgno = u32::from_be_bytes(header[..4].try_into().unwrap());
                let (mut db, at) = (of.db.0.lock(), (pgno as usize - 1) * PAGE);
                let end = db.len().max(at + PAGE);
                db.resize(end, 0);
                db[at..at + PAGE].copy_from_slice(page);
            }
            of.main.checkpoint_done();
            assert_eq!(of.shared.is_verified(), !is_taken_back);
        }
    }

    #[test]
    fn a_commit_that_is_not_whole_in_the_wal_is_looked_for() {
        let mut of = Exclusive::new();
        of.write(1);
        of.main.committed();
        assert!(of.shared.is_verified());
        // SQLite counts what it has written, whatever the file says.
        let from = of.wals[1].len();
        of.wals[2][from + 8..from + 16].fill(0);
        of.write(2);
        of.main.committed();
        assert!(!of.shared.is_verified());
        assert_eq!(of.txid(), 2);
    }

    /// Frames of `wal`.
    fn frames(wal: &[u8], page_bytes: usize) -> u32 {
        u32::try_from((wal.len() - WAL_HEADER_BYTES) / (FRAME_HEADER_BYTES + page_bytes)).unwrap()
    }

    /// A wal-index that counts all of `wal`.
    fn index_of(wal: &[u8], page_bytes: usize) -> [u8; WAL_INDEX_BYTES] {
        let salt = WalHeader::parse(wal).unwrap().salt;
        let last = frames(wal, page_bytes);
        let header = wal.len() - FRAME_HEADER_BYTES - page_bytes;
        let checksum = [16, 20].map(|at| be32(wal, header + at).unwrap());
        wal_index(salt, last, checksum)
    }

    /// The WAL is not read where what was written is what the wal-index counts, and follows what the log has.
    #[test]
    fn a_commit_is_taken_from_memory_as_far_as_the_wal_index_proves_it() {
        enum But {
            Nothing,
            AnotherChecksum,
            AnotherHolder,
            NotFollowed,
        }
        for but in [
            But::Nothing,
            But::AnotherChecksum,
            But::AnotherHolder,
            But::NotFollowed,
        ] {
            let mut of = Exclusive::new();
            of.write(1);
            *of.db.1.lock() = Some(index_of(&of.wals[1], PAGE));
            if !matches!(but, But::NotFollowed) {
                of.main.committed();
                assert_eq!(of.txid(), 2);
                of.main.wal_write_locked();
                of.write(2);
            }
            let mut index = index_of(&of.wals[2], PAGE);
            if matches!(but, But::AnotherChecksum) {
                let salt = WalHeader::parse(&of.wals[2]).unwrap().salt;
                index = wal_index(salt, frames(&of.wals[2], PAGE), [1, 2]);
            }
            if matches!(but, But::AnotherHolder) {
                let other = SharedLog::new(of.shared.options().clone(), Arc::new(Deaf));
                drop(other.acquire().unwrap());
            }
            *of.db.1.lock() = Some(index);
            let before = of.txid();
            of.wal.0.lock().fill(0);
            of.main.committed();
            let is_taken = matches!(but, But::Nothing);
            assert_eq!(
                of.shared.published().1.pos.txid.0,
                before + u64::from(is_taken)
            );
            assert_eq!(of.shared.is_verified(), is_taken);
            // A checkpoint would copy from a WAL that is none: that is seen before.
            of.main.checkpoint_start();
            assert!(!of.shared.is_verified());
        }
    }

    /// A connection may still have in memory what it wrote and took back, where another process has written since.
    #[test]
    fn frames_that_were_taken_back_are_not_taken_from_memory() {
        let mut of = Exclusive::new();
        let committed = of.wals[1].clone();
        *of.wals[1].last_mut().unwrap() ^= 1;
        of.write(1);
        *of.wal.0.lock() = committed.clone();
        *of.db.1.lock() = Some(index_of(&committed, PAGE));
        of.main.wal_write_locked();
        assert_eq!(of.txid(), 1);
        of.write(2);
        *of.db.1.lock() = Some(index_of(&of.wals[2], PAGE));
        of.main.committed();
        assert!(of.shared.is_verified());
        assert_eq!(of.txid(), 3);
    }

    /// What a checkpoint may copy is in the log before it says how far it goes, also where a commit ends just then.
    #[test]
    fn a_checkpoint_looks_again_while_a_commit_changes_the_index() {
        let mut of = Exclusive::new();
        of.write(1);
        *of.db.1.lock() = Some(index_of(&of.wals[1], PAGE));
        of.main.committed();
        assert_eq!(of.txid(), 2);
        of.write(2);
        *of.db.1.lock() = Some(index_of(&of.wals[2], PAGE));
        of.db.2.store(3, Ordering::Relaxed);
        of.main.wal_checkpoint_locked();
        assert_eq!(of.txid(), 3);
        assert!(of.shared.is_verified());
        // A writer that died leaves one that stays so: nothing is known, and nothing is waited for.
        of.db.2.store(u32::MAX, Ordering::Relaxed);
        of.main.wal_checkpoint_locked();
        assert!(of.shared.is_verified());
    }

    /// The same of what is from an earlier generation of the WAL, which another connection has begun anew.
    #[test]
    fn frames_of_an_earlier_generation_are_not_taken_from_memory() {
        let mut of = Exclusive::new();
        of.wal.0.lock().clear();
        of.write(1);
        of.main.committed();
        assert_eq!(of.txid(), 3);
        let next = grow(&of._dir.path().join("next.db"), PAGE);
        let db = Arc::clone(&of.db) as Arc<dyn Base>;
        let _main = MainFile::new(Arc::clone(&of.shared), 2, db);
        let wal = Arc::clone(&of.wal) as Arc<dyn Base>;
        let mut log = WalFile::new(Arc::clone(&of.shared), 2, wal);
        log.before_write(0, &next[1][..WAL_HEADER_BYTES]);
        of.wal.0.lock().clone_from(&next[1]);
        *of.db.1.lock() = Some(index_of(&next[1], PAGE));
        of.main.wal_checkpoint_locked();
        assert!(of.shared.is_verified());
        assert_eq!(of.txid(), 5);
    }

    #[test]
    fn a_wal_of_another_page_size_is_compared() {
        let mut of = Exclusive::new();
        of.write(1);
        of.main.committed();
        let other = grow(&of._dir.path().join("other.db"), 2 * PAGE);
        of.log.before_write(0, &other[1][..WAL_HEADER_BYTES]);
        of.wal.0.lock().clone_from(&other[1]);
        *of.db.1.lock() = Some(index_of(&other[1], 2 * PAGE));
        of.main.committed();
        assert!(!of.shared.is_verified());
        assert_eq!(of.txid(), 2);
    }

    /// A wal-index that counts `last` frames of the generation with these salts, as far as `checksum`.
    #[expect(
        clippy::host_endian_bytes,
        reason = "shared memory is in the order of the machine"
    )]
    fn wal_index(salt: [u32; 2], last: u32, checksum: [u32; 2]) -> [u8; WAL_INDEX_BYTES] {
        let mut bytes = [0; WAL_INDEX_BYTES];
        bytes[12] = 1;
        bytes[16..20].copy_from_slice(&last.to_ne_bytes());
        bytes[24..28].copy_from_slice(&checksum[0].to_ne_bytes());
        bytes[28..32].copy_from_slice(&checksum[1].to_ne_bytes());
        bytes[32..36].copy_from_slice(&salt[0].to_be_bytes());
        bytes[36..40].copy_from_slice(&salt[1].to_be_bytes());
        let sum = wal_checksum(cfg!(target_endian = "big"), &bytes[..40], [0, 0]);
        bytes[40..44].copy_from_slice(&sum[0].to_ne_bytes());
        bytes[44..48].copy_from_slice(&sum[1].to_ne_bytes());
        bytes.copy_within(..48, 48);
        bytes
    }

    #[test]
    fn a_wal_index_of_another_wal_is_no_reason_to_pass_over_commits() {
        let mut of = Exclusive::new();
        of.write(1);
        of.main.committed();
        let [first, second] = WalHeader::parse(&of.wals[0]).unwrap().salt;
        for (salt, last, is_known) in [
            // A new generation that is not in the file yet: all of the old one is in the log.
            ([first.wrapping_add(1), !second], 0, true),
            ([first, second], 1, true),
            ([first.wrapping_add(1), !second], 3, false),
        ] {
            *of.db.1.lock() = Some(wal_index(salt, last, [0, 0]));
            of.main.committed();
            assert_eq!(of.shared.is_verified(), is_known, "{salt:?}, {last}");
        }
    }

    #[test]
    fn a_connection_that_leaves_wal_mode_does_not_wait_for_itself() {
        let mut of = Exclusive::new();
        of.write(1);
        of.main.committed();
        of.main.checkpoint_start();
        of.main.before_write(0, &[0; PAGE]);
        of.log.before_close();
        // The header's mode is changed by a transaction with a journal, which fails: the close rolls it back.
        of.main.before_write(0, &[0; PAGE]);
        let started = std::time::Instant::now();
        of.main.before_unlock(LockLevel::None);
        assert!(started.elapsed().as_secs() < 4, "{:?}", started.elapsed());
    }
}
