//! P4: a power cut may lose, reorder and tear whatever was not synced. At any instant of applying, what is then on the disk is
//! for any SQLite exactly a recorded state.
//!
//! SQLite's system calls on the replica's files are written down; a cut at some call is then played: of each file the content
//! at its last sync survives, and of what was written since any part, sector by sector.

#![cfg(target_os = "linux")]
#![allow(unsafe_code, clippy::unwrap_used)]

mod apply_common;

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use apply_common::{Random, World, assert_identical};
use libsqlite3_sys as sys;

/// What a crash does not tear apart.
const SECTOR: usize = 512;

/// One call on a file of the replica, named by its suffix ("", "-wal", "-journal").
#[derive(Clone, Debug)]
enum Call {
    Create(String),
    Write(String, u64, Vec<u8>),
    Truncate(String, u64),
    Sync(String),
    Unlink(String),
    SyncDir,
}

#[derive(Default)]
struct Recorder {
    calls: Vec<Call>,
    /// Suffixes of open files, "/" for the directory.
    open: Option<HashMap<c_int, String>>,
    dir: String,
}

static RECORDER: Mutex<Recorder> = Mutex::new(Recorder {
    calls: Vec::new(),
    open: None,
    dir: String::new(),
});

unsafe extern "C" {
    fn lseek(fd: c_int, offset: c_long, whence: c_int) -> c_long;
    fn write(fd: c_int, data: *const c_void, length: usize) -> isize;
    fn pwrite(fd: c_int, data: *const c_void, length: usize, offset: c_long) -> isize;
    fn ftruncate(fd: c_int, length: c_long) -> c_int;
    fn unlink(path: *const c_char) -> c_int;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn close(fd: c_int) -> c_int;
}

/// `-wal` of the replica's WAL and so on; `None` for other files.
fn suffix(recorder: &Recorder, path: *const c_char) -> Option<String> {
    // SAFETY: SQLite passes NUL-terminated names.
    let path = unsafe { CStr::from_ptr(path) }.to_str().ok()?;
    if recorder.dir.is_empty() {
        return None;
    }
    if path.trim_end_matches('/') == recorder.dir {
        return Some("/".into());
    }
    let suffix = path.strip_prefix(&format!("{}/replica.db", recorder.dir))?;
    // The shared memory does not outlive a power cut.
    (suffix != "-shm").then(|| suffix.to_owned())
}

fn with_file(fd: c_int, call: impl FnOnce(String) -> Call) {
    let mut recorder = RECORDER.lock().unwrap();
    let name = recorder
        .open
        .as_ref()
        .and_then(|open| open.get(&fd).cloned());
    if let Some(name) = name {
        recorder.calls.push(call(name));
    }
}

unsafe extern "C" fn hook_open(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    // SAFETY: SQLite's arguments, passed on.
    let existed = unsafe { CStr::from_ptr(path) }
        .to_str()
        .is_ok_and(|path| Path::new(path).exists());
    // SAFETY: as above.
    let fd = unsafe { open(path, flags, mode) };
    let mut recorder = RECORDER.lock().unwrap();
    if let Some(name) = suffix(&recorder, path).filter(|_| fd >= 0) {
        if !existed {
            recorder.calls.push(Call::Create(name.clone()));
        }
        recorder.open.get_or_insert_default().insert(fd, name);
    }
    fd
}

unsafe extern "C" fn hook_close(fd: c_int) -> c_int {
    RECORDER
        .lock()
        .unwrap()
        .open
        .get_or_insert_default()
        .remove(&fd);
    // SAFETY: SQLite's argument, passed on.
    unsafe { close(fd) }
}

unsafe extern "C" fn hook_pwrite(
    fd: c_int,
    data: *const c_void,
    length: usize,
    offset: c_long,
) -> isize {
    // SAFETY: SQLite's arguments: `length` bytes lie at `data`.
    let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), length) };
    with_file(fd, |name| Call::Write(name, offset as u64, bytes.to_vec()));
    // SAFETY: as above.
    unsafe { pwrite(fd, data, length, offset) }
}

unsafe extern "C" fn hook_write(fd: c_int, data: *const c_void, length: usize) -> isize {
    // SAFETY: SQLite's arguments: `length` bytes lie at `data`.
    let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), length) };
    // SAFETY: asks where the file stands.
    let offset = unsafe { lseek(fd, 0, 1) };
    with_file(fd, |name| Call::Write(name, offset as u64, bytes.to_vec()));
    // SAFETY: as above.
    unsafe { write(fd, data, length) }
}

unsafe extern "C" fn hook_ftruncate(fd: c_int, length: c_long) -> c_int {
    with_file(fd, |name| Call::Truncate(name, length as u64));
    // SAFETY: SQLite's arguments, passed on.
    unsafe { ftruncate(fd, length) }
}

unsafe extern "C" fn hook_unlink(path: *const c_char) -> c_int {
    let mut recorder = RECORDER.lock().unwrap();
    if let Some(name) = suffix(&recorder, path) {
        recorder.calls.push(Call::Unlink(name));
    }
    // SAFETY: SQLite's argument, passed on.
    unsafe { unlink(path) }
}

fn synced(fd: c_int) -> c_int {
    with_file(fd, |name| {
        if name == "/" {
            Call::SyncDir
        } else {
            Call::Sync(name)
        }
    });
    0
}

// SQLite has no hook for these two; the program's own definition comes before the C library's. Nothing needs to be synced
// for real here.
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    synced(fd)
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    synced(fd)
}

fn install_hooks() {
    apply_common::api();
    let hooks: [(&CStr, *const ()); 6] = [
        (c"open", hook_open as *const ()),
        (c"close", hook_close as *const ()),
        (c"pwrite", hook_pwrite as *const ()),
        (c"pwrite64", hook_pwrite as *const ()),
        (c"write", hook_write as *const ()),
        (c"ftruncate", hook_ftruncate as *const ()),
    ];
    // SAFETY: each hook has the signature of the call it stands for.
    unsafe {
        let vfs = sys::sqlite3_vfs_find(c"unix".as_ptr());
        let set = (*vfs).xSetSystemCall.unwrap();
        let install = |name: &CStr, hook: *const ()| {
            let hook: sys::sqlite3_syscall_ptr = std::mem::transmute(hook);
            set(vfs, name.as_ptr(), hook);
        };
        for (name, hook) in hooks {
            install(name, hook);
        }
        install(c"unlink", hook_unlink as *const ());
    }
}

/// A file on a disk that loses power.
#[derive(Clone, Default)]
struct Disk {
    /// Content at the last sync.
    durable: Vec<u8>,
    /// Whether the name is on the disk.
    named: bool,
    /// What was done since the last sync.
    pending: Vec<Call>,
    /// Whether the name was given or taken away since the directory was synced.
    name_pending: Option<bool>,
}

fn write_at(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if content.len() < offset + bytes.len() {
        content.resize(offset + bytes.len(), 0);
    }
    content[offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn apply_all(content: &mut Vec<u8>, call: &Call) {
    match call {
        Call::Write(_, offset, bytes) => write_at(content, *offset as usize, bytes),
        Call::Truncate(_, length) => content.resize(*length as usize, 0),
        _ => {}
    }
}

/// The disk after some calls.
fn play(disk: &mut HashMap<String, Disk>, call: &Call) {
    match call {
        Call::Create(name) => {
            // A file of that name that was deleted is another file.
            let old = disk.remove(name).unwrap_or_default();
            let file = Disk {
                name_pending: Some(true),
                named: false,
                ..Disk::default()
            };
            disk.insert(name.clone(), file);
            if old.named {
                disk.insert(format!("old{name}"), old);
            }
        }
        Call::Write(name, ..) | Call::Truncate(name, _) => {
            disk.entry(name.clone())
                .or_default()
                .pending
                .push(call.clone());
        }
        Call::Sync(name) => {
            let file = disk.entry(name.clone()).or_default();
            for call in std::mem::take(&mut file.pending) {
                apply_all(&mut file.durable, &call);
            }
        }
        Call::Unlink(name) => disk.entry(name.clone()).or_default().name_pending = Some(false),
        Call::SyncDir => {
            disk.retain(|name, file| {
                file.named = file.name_pending.take().unwrap_or(file.named);
                file.named && !name.starts_with("old")
            });
        }
    }
}

/// What the power cut leaves of a file; `None` if its name is gone.
fn survivor(file: &Disk, random: &mut Random) -> Option<Vec<u8>> {
    let named = match file.name_pending {
        Some(_) if random.below(2) == 0 => file.named,
        Some(pending) => pending,
        None => file.named,
    };
    let mut content = file.durable.clone();
    // Sometimes everything got through, sometimes nothing, mostly some of it.
    let luck = [0, 5, 9, 10][random.below(4) as usize];
    for call in &file.pending {
        let Call::Write(_, offset, bytes) = call else {
            if random.below(10) < luck {
                apply_all(&mut content, call);
            }
            continue;
        };
        let from = *offset as usize;
        let cut = from + random.below(bytes.len() as u64 + 1) as usize;
        // Of a write survive its first part, its last part, or sectors here and there.
        let kind = random.below(3);
        let mut at = from;
        for part in sectors(from, bytes) {
            let survives = match kind {
                0 => at < cut && luck > 0,
                1 => at >= cut && luck > 0,
                _ => random.below(10) < luck,
            };
            if survives || luck == 10 {
                write_at(&mut content, at, part);
            }
            at += part.len();
        }
    }
    named.then_some(content)
}

/// The parts of a write that a disk writes whole.
fn sectors(offset: usize, mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut at = offset;
    while !bytes.is_empty() {
        let (part, more) = bytes.split_at(bytes.len().min(SECTOR - at % SECTOR));
        parts.push(part);
        at += part.len();
        bytes = more;
    }
    parts
}

/// The image that any SQLite sees in what is left.
fn image_after(disk: &HashMap<String, Disk>, random: &mut Random, dir: &Path) -> Vec<u8> {
    let _ = fs::remove_dir_all(dir);
    fs::create_dir(dir).unwrap();
    for (name, file) in disk.iter().filter(|(name, _)| !name.starts_with("old")) {
        let before = disk.get(&format!("old{name}"));
        // Where the new name is lost, the old one is still there.
        let content = survivor(file, random).or_else(|| survivor(before?, random));
        if let Some(content) = content {
            fs::write(dir.join(format!("after.db{name}")), content).unwrap();
        }
    }
    let path = dir.join("after.db");
    if !path.exists() {
        return Vec::new();
    }
    let plain = rusqlite::Connection::open(&path).unwrap();
    let check: String = plain
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(check, "ok");
    plain
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
    let number = |sql: &str| {
        plain
            .query_row(sql, [], |row| row.get::<_, u32>(0))
            .unwrap() as usize
    };
    let length = number("PRAGMA page_count") * number("PRAGMA page_size");
    plain.close().unwrap();
    let mut image = fs::read(&path).unwrap();
    image.truncate(length);
    image
}

fn apply_recorded(world: &mut World, use_wal: bool) -> Vec<Call> {
    world.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c BLOB); CREATE INDEX tb ON t(b)");
    {
        let mut recorder = RECORDER.lock().unwrap();
        *recorder = Recorder::default();
        recorder.dir = world.dir.path().to_str().unwrap().to_owned();
    }
    let mut random = Random::new(5);
    let mut open = || {
        let (batch, wal) = (1 << (10 + random.below(10)), 1 << (12 + random.below(8)));
        move |options: &mut mycelite::apply::ApplyOptions| {
            options.use_wal = use_wal;
            options.batch_bytes_max = batch;
            options.wal_bytes_max = wal;
        }
    };
    let mut applier = world.applier_with(open());
    let mut random = Random::new(6);
    for number in 0..60 {
        let sql = match number {
            10 | 35 => "PRAGMA journal_mode=WAL".into(),
            14 | 44 => "WITH RECURSIVE n(x) AS (VALUES(1) UNION ALL SELECT x+1 FROM n WHERE x<700) INSERT INTO t(b, c) SELECT 'bulk', randomblob(2500) FROM n".into(),
            17 | 46 => "DELETE FROM t WHERE b = 'bulk'; VACUUM".into(),
            25 => "PRAGMA journal_mode=DELETE".into(),
            30 => "PRAGMA page_size=1024; VACUUM".into(),
            50 => "PRAGMA journal_mode=DELETE; PRAGMA page_size=4096; VACUUM".into(),
            n if n % 3 == 0 => format!("UPDATE t SET b = b || 'x' WHERE a % 5 = {n} % 5"),
            _ => "WITH RECURSIVE n(x) AS (VALUES(1) UNION ALL SELECT x+1 FROM n WHERE x<9) INSERT INTO t(b, c) SELECT random(), randomblob(600) FROM n".into(),
        };
        world.run(&sql);
        match random.below(6) {
            0 => assert_identical(world, &mut applier),
            1 | 2 => {
                applier.step().unwrap();
            }
            3 if random.below(3) == 0 => {
                applier.close().unwrap();
                applier = world.applier_with(open());
            }
            _ => {}
        }
    }
    assert_identical(world, &mut applier);
    applier.close().unwrap();
    let mut recorder = RECORDER.lock().unwrap();
    recorder.dir.clear();
    std::mem::take(&mut recorder.calls)
}

#[test]
fn p4_a_power_cut_at_any_instant_leaves_a_recorded_state() {
    install_hooks();
    for use_wal in [true, false] {
        let mut world = World::new();
        let calls = apply_recorded(&mut world, use_wal);
        let syncs = calls
            .iter()
            .filter(|call| matches!(call, Call::Sync(_)))
            .count();
        assert!(
            calls.len() > 500 && syncs > 20,
            "{} calls, {syncs} syncs",
            calls.len()
        );
        let mut random = Random::new(7);
        let mut disk = HashMap::new();
        let mut cuts = 0;
        let mut seen = std::collections::BTreeSet::new();
        let dir = world.dir.path().join("after");
        for (number, call) in calls.iter().enumerate() {
            play(&mut disk, call);
            // Around syncs and names matters most.
            let before_sync = matches!(calls.get(number + 1), Some(Call::Sync(_)));
            let critical = before_sync || !matches!(call, Call::Write(..));
            if random.below(if critical { 3 } else { 40 }) != 0 {
                continue;
            }
            for _ in 0..3 {
                cuts += 1;
                let image = image_after(&disk, &mut random, &dir);
                let found = (0..world.images.len())
                    .rev()
                    .find(|n| world.images[*n] == image);
                seen.insert(found.unwrap_or_else(|| {
                    panic!("use_wal {use_wal}, cut after call {number}: no recorded state")
                }));
            }
        }
        assert!(cuts > 300, "only {cuts} cuts");
        assert!(seen.len() > 15, "only {} different states", seen.len());
    }
}
