//! What the tests here rely on, and would not notice if it stopped working.

use crate::control::{Kind, Method, Plan};
use crate::syscalls::{self, Call, Failure, LogPlan};
use crate::{clock, control};
use rusqlite::ffi;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

#[test]
fn the_c_librarys_calls_pass_here() {
    let dir = crate::common::scratch();
    let log = dir.path().join("app.db-mycelite");
    let file = log.join("file");
    syscalls::watch(dir.path());
    fs::create_dir(&log).unwrap();
    fs::write(&file, b"abc").unwrap();
    let open = fs::File::options().write(true).open(&file).unwrap();
    open.set_len(1).unwrap();
    open.sync_all().unwrap();
    open.sync_data().unwrap();
    fs::File::open(&log).unwrap().sync_all().unwrap();
    fs::rename(&file, log.join("other")).unwrap();
    fs::remove_file(log.join("other")).unwrap();
    let calls: Vec<_> = syscalls::unwatch()
        .iter()
        .map(|c| format!("{c:?}"))
        .collect();
    assert_eq!(
        calls.join(" "),
        "MakeDir(\"app.db-mycelite\") Create(\"app.db-mycelite/file\", 1) Write(1, 0, [97, 98, 99]) \
         Truncate(1, 1) Sync(1) Sync(1) SyncDir(\"app.db-mycelite\") \
         Rename(\"app.db-mycelite/file\", \"app.db-mycelite/other\") Unlink(\"app.db-mycelite/other\")"
    );
}

#[test]
fn the_systems_calls_fail_as_planned() {
    let dir = crate::common::scratch();
    let log = dir.path().join("app.db-mycelite");
    fs::create_dir(&log).unwrap();
    syscalls::watch(dir.path());
    for (failure, code) in [
        (Failure::Io, 5),
        (Failure::Full, 28),
        (Failure::ReadOnly, 30),
        (Failure::Short, 28),
    ] {
        let lasting = true;
        syscalls::count(Some(LogPlan {
            at: 1,
            failure,
            lasting,
        }));
        let error = fs::write(log.join("file"), b"abcdef").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(code), "{failure:?}");
        fs::write(dir.path().join("app.db"), b"the application's").unwrap();
        assert!(syscalls::stop_counting().1 > 0);
    }
    let halves: Vec<Call> = syscalls::unwatch();
    assert!(
        halves
            .iter()
            .any(|call| matches!(call, Call::Write(.., bytes) if bytes.len() == 3))
    );
}

#[test]
fn time_and_the_word_of_the_file_system_are_ours() {
    let dir = crate::common::scratch();
    let file = dir.path().join("file");
    fs::write(&file, b"abc").unwrap();
    let before = Instant::now();
    clock::advance(3600);
    assert!(before.elapsed() >= Duration::from_secs(3600));
    syscalls::watch(dir.path());
    syscalls::freeze();
    let open = fs::File::open(&file).unwrap();
    let (named, opened) = (fs::metadata(&file).unwrap(), open.metadata().unwrap());
    syscalls::unwatch();
    assert_eq!(named.mtime(), 1_000_000_000);
    assert_eq!((named.ino(), named.ctime()), (opened.ino(), opened.ctime()));
    assert_eq!((named.len(), opened.len()), (3, 3));
    syscalls::set_boot_id(&file);
    assert_eq!(fs::read("/proc/sys/kernel/random/boot_id").unwrap(), b"abc");
}

#[test]
fn sqlites_calls_are_told_from_ours() {
    let kind = Kind::Io;
    control::arm(
        Some(Plan {
            at: 2,
            kind,
            lasting: false,
        }),
        Some(Plan {
            at: 1,
            kind,
            lasting: false,
        }),
    );
    control::begin(Method::Read, "app.db", (0, 0));
    assert_eq!(control::verdict(Method::Read, "app.db"), None);
    control::begin(Method::Write, "app.db", (0, 0));
    assert_eq!(control::verdict(Method::Read, "app.db"), Some(kind));
    assert_eq!(control::verdict(Method::Write, "app.db"), Some(kind));
    control::end();
    assert_eq!(control::verdict(Method::Read, "app.db"), None);
    let seen = control::disarm();
    assert_eq!((seen.trace.len(), seen.own_reads), (2, 2));
}

/// The device characteristics that SQLite sees of a new file through the VFS `vfs`.
fn characteristics(vfs: &str) -> i32 {
    let dir = crate::common::scratch();
    let path = dir.path().join("app.db");
    let connection =
        rusqlite::Connection::open(format!("file:{}?vfs={vfs}", path.display())).unwrap();
    let mut file: *mut ffi::sqlite3_file = std::ptr::null_mut();
    // SAFETY: the connection is open, and this control stores a pointer to its open file.
    unsafe {
        let place = (&raw mut file).cast();
        let which = ffi::SQLITE_FCNTL_FILE_POINTER;
        let rc = ffi::sqlite3_file_control(connection.handle(), std::ptr::null(), which, place);
        assert_eq!(rc, 0);
        (*(*file).pMethods).xDeviceCharacteristics.unwrap()(file)
    }
}

/// The disk here says that it can.
#[test]
fn batch_atomic_writes_are_masked() {
    crate::vfs::load();
    let (plain, ours) = (
        characteristics("app_plain"),
        characteristics("mycelite_writer"),
    );
    assert_eq!(plain ^ ours, ffi::SQLITE_IOCAP_BATCH_ATOMIC);
    assert_eq!(ours & ffi::SQLITE_IOCAP_BATCH_ATOMIC, 0);
}
