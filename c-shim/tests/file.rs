//! Files, locks and shared memory through the platform's VFS, beside real connections in this and another process.

#![allow(unsafe_code, clippy::unwrap_used)]

mod common;

use c_shim::{Code, File, Lock, LockOp, OpenFlags, Shm};
use common::{MAIN_DB, Peer, api, connect};
use libsqlite3_sys as sys;

#[test]
fn serve_as_peer() {
    common::serve_as_peer_body();
}

/// The wal-index slot of the WAL's writer.
const SLOT_WRITE: u32 = 0;
/// The slot that readers of the main file alone share.
const SLOT_READ0: u32 = 3;
/// Byte offset of mxFrame in the wal-index header.
const MX_FRAME: usize = 16;

#[test]
fn a_file_reads_back_what_was_written_and_short_reads_say_how_much() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let file = File::open(api(), None, &path, MAIN_DB).unwrap();
    assert!(!file.is_read_only());
    assert_eq!(0, file.size().unwrap());
    file.write_at(&[7; 1000], 500).unwrap();
    file.sync(true).unwrap();
    assert_eq!(1500, file.size().unwrap());

    let mut buffer = [1u8; 600];
    assert_eq!(600, file.read_at(&mut buffer, 400).unwrap());
    assert_eq!(
        ([0; 100], [7; 500]),
        (
            buffer[..100].try_into().unwrap(),
            buffer[100..].try_into().unwrap()
        )
    );
    assert_eq!(100, file.read_at(&mut buffer, 1400).unwrap());
    assert_eq!(0, file.read_at(&mut buffer, 1500).unwrap());
    assert_eq!(0, file.read_at(&mut buffer, 1 << 40).unwrap());
    assert_eq!(0, file.read_at(&mut [], 0).unwrap());
    assert_eq!(Err(Code::MISUSE), file.read_at(&mut buffer, u64::MAX));
    assert_eq!(Err(Code::MISUSE), file.write_at(&buffer, u64::MAX - 5));

    file.truncate(700).unwrap();
    assert_eq!(700, std::fs::metadata(&path).unwrap().len());
    assert!(file.sector_size() >= 512);
    assert!(file.has_shm());
    drop(file);

    assert!(File::access(api(), None, &path).unwrap());
    File::delete(api(), None, &path, true).unwrap();
    assert!(!File::access(api(), None, &path).unwrap());
    assert_eq!(
        Err(Code::DELETE_NOENT),
        File::delete(api(), None, &path, false)
    );
}

#[test]
fn a_file_that_cannot_be_opened_is_an_error_and_leaks_no_lock() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("absent.db");
    let flags = OpenFlags::READONLY | OpenFlags::MAIN_DB;
    assert_eq!(
        Code::CANTOPEN,
        File::open(api(), None, &absent, flags)
            .err()
            .unwrap()
            .primary()
    );
    assert_eq!(
        Code::CANTOPEN,
        File::open(api(), None, dir.path(), MAIN_DB)
            .err()
            .unwrap()
            .primary()
    );
    assert_eq!(
        Some(Code::NOTFOUND),
        File::open(api(), Some(c"no such vfs"), &absent, flags).err()
    );

    std::fs::write(&absent, b"x").unwrap();
    let file = File::open(api(), None, &absent, flags).unwrap();
    assert!(file.is_read_only());
    assert!(file.write_at(b"y", 0).is_err());
}

#[test]
fn locks_hold_against_another_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    connect(&path)
        .exec("CREATE TABLE t(x); INSERT INTO t VALUES(1)")
        .unwrap();
    let mut peer = Peer::start(&path);
    let file = File::open(api(), None, &path, MAIN_DB).unwrap();

    assert_eq!("", peer.ask("BEGIN IMMEDIATE"));
    file.lock(Lock::Shared).unwrap();
    assert!(file.is_reserved().unwrap());
    assert_eq!(Err(Code::BUSY), file.lock(Lock::Reserved));
    assert_eq!("", peer.ask("ROLLBACK"));
    file.lock(Lock::Reserved).unwrap();
    assert_eq!("SQLITE_BUSY", peer.ask("BEGIN IMMEDIATE"));
    assert_eq!("1", peer.ask("SELECT count(*) FROM t"));
    file.lock(Lock::Exclusive).unwrap();
    assert_eq!("SQLITE_BUSY", peer.ask("SELECT count(*) FROM t"));
    file.unlock(Lock::Shared).unwrap();
    assert_eq!("1", peer.ask("SELECT count(*) FROM t"));
    file.lock(Lock::Exclusive).unwrap();
    drop(file);
    assert_eq!("", peer.ask("INSERT INTO t VALUES(2)"));

    let file = File::open(api(), None, &path, MAIN_DB).unwrap();
    assert_eq!(Err(Code::MISUSE), file.lock(Lock::Pending));
    assert_eq!(Err(Code::MISUSE), file.lock(Lock::None));
    assert_eq!(Err(Code::MISUSE), file.unlock(Lock::Exclusive));
}

#[test]
fn closing_a_file_keeps_the_locks_of_a_connection_of_the_same_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let connection = connect(&path);
    connection
        .exec("CREATE TABLE t(x); BEGIN IMMEDIATE; INSERT INTO t VALUES(1)")
        .unwrap();
    let mut peer = Peer::start(&path);
    let file = File::open(api(), None, &path, MAIN_DB).unwrap();
    let mut magic = [0u8; 16];
    assert_eq!(16, file.read_at(&mut magic, 0).unwrap());
    assert_eq!(b"SQLite format 3\0", &magic);
    drop(file);
    assert_eq!("SQLITE_BUSY", peer.ask("BEGIN IMMEDIATE"));
    connection.exec("COMMIT").unwrap();
    assert_eq!("1", peer.ask("SELECT count(*) FROM t"));
}

#[test]
fn the_wal_index_is_seen_and_its_locks_hold() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let mut peer = Peer::start(&path);
    assert_eq!("wal", peer.ask("PRAGMA journal_mode=WAL"));
    assert_eq!("", peer.ask("CREATE TABLE t(x)"));

    let file = File::open(api(), None, &path, MAIN_DB).unwrap();
    file.lock(Lock::Shared).unwrap();
    let shm = file.shm().unwrap();
    assert!(matches!(file.shm(), Err(Code::MISUSE)), "one at a time");
    let region = shm.region(0, false).unwrap().expect("the peer made it");
    assert!(region.is_writable());
    assert_eq!(Ok(3_007_000), region.get_u32(0));
    let frames = region.get_u32(MX_FRAME).unwrap();
    assert!(frames > 0);
    assert_eq!("", peer.ask("INSERT INTO t VALUES(1)"));
    shm.barrier();
    assert_eq!(
        Ok(frames + 1),
        region.get_u32(MX_FRAME),
        "one page more in the WAL"
    );
    assert!(shm.region(1, false).unwrap().is_none());

    shm.lock(SLOT_WRITE, 1, LockOp::LockExclusive).unwrap();
    assert_eq!("SQLITE_BUSY", peer.ask("INSERT INTO t VALUES(2)"));
    shm.lock(SLOT_WRITE, 1, LockOp::UnlockExclusive).unwrap();
    assert_eq!("", peer.ask("BEGIN IMMEDIATE"));
    assert_eq!(
        Err(Code::BUSY),
        shm.lock(SLOT_WRITE, 1, LockOp::LockExclusive)
    );
    assert_eq!("", peer.ask("COMMIT"));
    shm.lock(SLOT_READ0, 1, LockOp::LockShared).unwrap();
    shm.lock(SLOT_WRITE, 1, LockOp::LockExclusive).unwrap();
    drop(shm);
    assert_eq!(
        "",
        peer.ask("INSERT INTO t VALUES(3)"),
        "locks end with the shared memory"
    );
    drop(file);
    assert_eq!("2", peer.ask("SELECT count(*) FROM t"));
}

#[test]
fn shared_memory_refuses_what_makes_no_sense() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    connect(&path)
        .exec("PRAGMA journal_mode=WAL; CREATE TABLE t(x)")
        .unwrap();
    let file = File::open(api(), None, &path, MAIN_DB).unwrap();
    let shm = file.shm().unwrap();
    let slots = Shm::LOCK_COUNT as u32;
    for (first, count, op) in [
        (0, 0, LockOp::LockExclusive),
        (0, slots + 1, LockOp::LockExclusive),
        (slots, 1, LockOp::LockExclusive),
        (u32::MAX, 2, LockOp::LockExclusive),
        (0, 2, LockOp::LockShared),
        (0, 1, LockOp::UnlockExclusive),
        (0, 1, LockOp::UnlockShared),
    ] {
        assert_eq!(
            Err(Code::MISUSE),
            shm.lock(first, count, op),
            "{first} {count} {op:?}"
        );
    }
    shm.lock(1, 3, LockOp::LockExclusive).unwrap();
    assert_eq!(Err(Code::MISUSE), shm.lock(3, 1, LockOp::LockShared));
    shm.lock(1, 3, LockOp::UnlockExclusive).unwrap();

    let region = shm.region(0, true).unwrap().expect("made");
    let last = Shm::REGION_BYTES - 4;
    region.set_u32(last, 0x0505_0505).unwrap();
    assert_eq!(Ok(0x0505), region.get_u16(last + 2));
    region.set_u16(last, 0x0606).unwrap();
    region.set_u8(last + 2, 7).unwrap();
    assert_eq!(
        [6, 6, 7, 5].map(Ok),
        [0, 1, 2, 3].map(|n| region.get_u8(last + n))
    );
    assert_eq!(Err(Code::MISUSE), region.get_u32(Shm::REGION_BYTES));
    assert_eq!(Err(Code::MISUSE), region.get_u32(Shm::REGION_BYTES - 3));
    assert_eq!(Err(Code::MISUSE), region.get_u16(1));
    assert_eq!(Err(Code::MISUSE), region.set_u8(usize::MAX, 1));
    assert!(matches!(shm.region(1 << 20, true), Err(Code::MISUSE)));
}

#[test]
fn a_forgotten_shm_is_given_back_when_the_file_closes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let mut peer = Peer::start(&path);
    assert_eq!("wal", peer.ask("PRAGMA journal_mode=WAL"));
    assert_eq!("", peer.ask("CREATE TABLE t(x)"));
    // A second connection of this process keeps the shared memory alive, so that closing alone frees no lock.
    let keeper = connect(&path);
    assert_eq!(Some(0), keeper.query_i64("SELECT count(*) FROM t").unwrap());
    let file = File::open(api(), None, &path, MAIN_DB).unwrap();
    let shm = file.shm().unwrap();
    shm.lock(SLOT_WRITE, 1, LockOp::LockExclusive).unwrap();
    std::mem::forget(shm);
    drop(file);
    assert_eq!("", peer.ask("INSERT INTO t VALUES(1)"));
    assert_eq!(Some(1), keeper.query_i64("SELECT count(*) FROM t").unwrap());
}

#[test]
fn the_name_of_a_file_is_laid_out_for_uri_look_ups() {
    let dir = tempfile::tempdir().unwrap();
    let file = File::open(api(), None, &dir.path().join("a.db"), MAIN_DB).unwrap();
    // SAFETY: the name lives as long as the file.
    unsafe {
        assert_eq!(None, api().uri_parameter(file.name_ptr(), c"psow"));
        assert!(api().uri_keys(file.name_ptr()).is_empty());
        assert_eq!(file.name_ptr(), api().filename_database(file.name_ptr()));
        // What SQLite itself makes of the layout.
        let text = |z| std::ffi::CStr::from_ptr(z).to_str().unwrap();
        assert!(text(file.name_ptr()).ends_with("/a.db"));
        let journal = sys::sqlite3_filename_journal(file.name_ptr());
        let wal = sys::sqlite3_filename_wal(file.name_ptr());
        assert!(text(journal).ends_with("/a.db-journal"));
        assert!(text(wal).ends_with("/a.db-wal"));
        assert_eq!(file.name_ptr(), api().filename_database(journal));
        assert_eq!(file.name_ptr(), api().filename_database(wal));
    }
}
