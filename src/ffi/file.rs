//! The files of the writer VFS: a few bytes of ours, and behind them, in the same allocation, the file below.

use super::base::BaseFile;
use super::guard;
use super::twin::{Source, Window};
use super::vfs::report;
use crate::capture::{MainFile, WalFile};
use crate::database::{self, Database};
use crate::error::{Error, ErrorKind};
use crate::vfs::{Base, COUNTERS_AT, COUNTERS_BYTES, Hooks, LockLevel};
use c_shim::{Api, OpenFlags};
use libsqlite3_sys::{
    SQLITE_ERROR, SQLITE_FCNTL_CKPT_DONE, SQLITE_FCNTL_CKPT_START, SQLITE_FCNTL_COMMIT_PHASETWO,
    SQLITE_FCNTL_SYNC, SQLITE_FCNTL_VFSNAME, SQLITE_IOCAP_BATCH_ATOMIC, SQLITE_IOERR,
    SQLITE_NOTFOUND, SQLITE_OK, SQLITE_SHM_EXCLUSIVE, SQLITE_SHM_LOCK, SQLITE_SHM_UNLOCK,
    sqlite3_file, sqlite3_int64, sqlite3_io_methods,
};
use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// What stands at the beginning of SQLite's allocation for one of our files; the file below follows.
#[repr(C)]
pub struct ShimFile {
    base: sqlite3_file,
    state: *mut State,
}

/// Bytes of [`ShimFile`], a multiple of eight, as the file below wants to be aligned.
pub const SHIM_BYTES: usize = size_of::<ShimFile>();
const _: () = assert!(SHIM_BYTES.is_multiple_of(8));

/// What belongs to one open file.
struct State {
    hooks: Option<Box<dyn Hooks>>,
    window: Arc<Window>,
    replicated: Option<Replicated>,
    level: LockLevel,
}

/// What it takes to make the hooks of a file.
struct Replicated {
    database: Arc<Database>,
    base: Arc<BaseFile>,
    role: Role,
    /// The address of the name by which SQLite knows the connection's database.
    name: usize,
}

impl Replicated {
    fn hooks(&self) -> Box<dyn Hooks> {
        let shared = Arc::clone(self.database.shared());
        let base = Arc::clone(&self.base) as Arc<dyn Base>;
        match self.role {
            Role::Main => Box::new(MainFile::new(shared, self.name, base)),
            Role::Wal => Box::new(WalFile::new(shared, self.name, base)),
        }
    }

    /// Takes the file out of the connection's files: it is about to be closed.
    fn forget(&self) {
        let shared = self.database.shared();
        match self.role {
            Role::Main => shared.remove_connection(self.name),
            Role::Wal => shared.set_wal(self.name, None),
        }
    }

    /// Whether hooks may begin here: not in the middle of a rollback-mode transaction, not while capture rests.
    fn may_begin(&self, level: LockLevel) -> bool {
        let shared = self.database.shared();
        let files = || shared.connection(self.name);
        let in_wal_mode = || files().is_some_and(|files| files.wal.is_some());
        shared.pausing().is_none() && (level <= LockLevel::Shared || in_wal_mode())
    }
}

/// The file below `file`.
///
/// # Safety
/// `file` points to memory of at least `SHIM_BYTES` plus the size of the file below.
pub unsafe fn below(file: *mut sqlite3_file) -> *mut sqlite3_file {
    // SAFETY: the caller's promise keeps the offset inside the allocation.
    unsafe { file.byte_add(SHIM_BYTES) }
}

/// Turns `file`, whose file below is open, into a file of ours. Without a `database` it only forwards.
///
/// # Safety
/// As for [`below`]; `name` is the pointer that SQLite passed to `xOpen`, and its database's name for a WAL.
pub unsafe fn install(
    file: *mut sqlite3_file,
    database: Option<Arc<Database>>,
    role: Role,
    name: usize,
    source: Source,
) {
    let window = Arc::<Window>::default();
    // SAFETY: the file below is open and stays so until `close`, which tells the hooks first.
    let base = unsafe {
        BaseFile::new(
            below(file),
            role.title().to_owned(),
            Arc::clone(&window),
            Some(source),
        )
    };
    if let Some(database) = database.as_ref().filter(|_| role == Role::Main) {
        database::connect(name, database);
    }
    let replicated = match (database, base) {
        (Some(database), Some(base)) => Some(Replicated {
            database,
            base: Arc::new(base),
            role,
            name,
        }),
        _ => None,
    };
    let state = Box::into_raw(Box::new(State {
        hooks: replicated.as_ref().map(Replicated::hooks),
        window,
        replicated,
        level: LockLevel::None,
    }));
    // SAFETY: the memory is SQLite's, large enough, and ours to fill until xClose; the file below has its methods set.
    unsafe {
        let methods = methods_for(&*(*below(file)).pMethods);
        std::ptr::write(
            file.cast::<ShimFile>(),
            ShimFile {
                base: sqlite3_file { pMethods: methods },
                state,
            },
        );
    }
}

/// What a file of ours is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The database itself.
    Main,
    /// Its write-ahead log.
    Wal,
}

impl Role {
    /// The flag with which SQLite opens such a file.
    pub fn open_flag(self) -> OpenFlags {
        match self {
            Role::Main => OpenFlags::MAIN_DB,
            Role::Wal => OpenFlags::WAL,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Role::Main => "database",
            Role::Wal => "WAL",
        }
    }
}

/// Tells the hooks of `file` something. A panic in them ends capture on this file until its transaction is over and
/// capture has rested, and nothing else: then new hooks begin, and compare.
///
/// # Safety
/// `file` was filled by [`install`] and is not closed.
unsafe fn tell(file: *mut sqlite3_file, event: impl FnOnce(&mut dyn Hooks)) {
    // SAFETY: the caller's promise; SQLite serialises the calls on a file, so this is the only reference.
    let state = unsafe { &mut *(*file.cast::<ShimFile>()).state };
    if state.hooks.is_none() {
        begin(state);
    }
    let Some(hooks) = state.hooks.as_deref_mut() else {
        return;
    };
    if catch_unwind(AssertUnwindSafe(|| event(hooks))).is_err() {
        defect(state);
    }
}

/// Makes new hooks for a file whose last ones had a defect, if it may have any now.
#[cold]
fn begin(state: &mut State) {
    let level = state.level;
    let Some(replicated) = state.replicated.as_ref().filter(|r| r.may_begin(level)) else {
        return;
    };
    let made = catch_unwind(AssertUnwindSafe(|| {
        let mut hooks = replicated.hooks();
        hooks.locked(level);
        hooks
    }));
    match made {
        Ok(hooks) => state.hooks = Some(hooks),
        Err(_) => defect(state),
    }
}

/// Takes away hooks that have panicked, and says so.
#[cold]
fn defect(state: &mut State) {
    let hooks = state.hooks.take();
    guard((), || drop(hooks));
    let Some(replicated) = &state.replicated else {
        return;
    };
    guard((), || {
        let error = Error::new(ErrorKind::Internal, "a defect in mycelite was caught")
            .hint("please report it; the log is repaired by comparing");
        replicated.database.shared().fail(None, &error);
    });
}

/// Remembers the lock that SQLite has on `file`.
///
/// # Safety
/// As for [`tell`].
unsafe fn set_level(file: *mut sqlite3_file, level: c_int) {
    // SAFETY: the caller's promise; SQLite serialises the calls on a file.
    let state = unsafe { &mut *(*file.cast::<ShimFile>()).state };
    state.level = LockLevel::from_sqlite(level);
}

/// Calls method `$method` of the file below.
macro_rules! forward {
    ($file:expr, $method:ident $(, $argument:expr)*) => {{
        // SAFETY: the file below was opened before ours was installed, and SQLite passes valid arguments on.
        unsafe {
            let below = below($file);
            match (*(*below).pMethods).$method {
                Some(method) => method(below $(, $argument)*),
                None => SQLITE_IOERR,
            }
        }
    }};
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    // SAFETY: SQLite closes a file once, after it was opened; nobody else uses its state.
    unsafe {
        tell(file, |hooks| hooks.before_close());
        let state = &*(*file.cast::<ShimFile>()).state;
        // Also where no hooks were left to do it: nobody may read through a closed file.
        if let Some(replicated) = &state.replicated {
            guard((), || replicated.forget());
        }
        state.window.hide();
    }
    let rc = forward!(file, xClose);
    // SAFETY: `install` made the pointer from a box; nobody uses it after the close.
    let state = unsafe { Box::from_raw((*file.cast::<ShimFile>()).state) };
    if let Some(replicated) = state.replicated.as_ref().filter(|r| r.role == Role::Main) {
        guard((), || database::disconnect(replicated.name));
    }
    guard((), || drop(state));
    rc
}

unsafe extern "C" fn read(
    file: *mut sqlite3_file,
    buffer: *mut c_void,
    amount: c_int,
    offset: sqlite3_int64,
) -> c_int {
    if offset == COUNTERS_AT && amount == COUNTERS_BYTES as c_int {
        // SAFETY: SQLite's arguments, as they came.
        return unsafe { read_counters(file, buffer) };
    }
    // Each page comes this way: nothing but the call below, which takes this one's place on the stack.
    forward!(file, xRead, buffer, amount, offset)
}

/// Reads what tells SQLite whether somebody else has committed, and tells the hooks.
///
/// # Safety
/// As for [`tell`]; `buffer` has room for [`COUNTERS_BYTES`].
#[inline(never)]
unsafe fn read_counters(file: *mut sqlite3_file, buffer: *mut c_void) -> c_int {
    let rc = forward!(file, xRead, buffer, COUNTERS_BYTES as c_int, COUNTERS_AT);
    if rc == SQLITE_OK {
        // SAFETY: SQLite passes an open file, and a buffer that the read has filled.
        unsafe {
            let counters = *buffer.cast::<[u8; COUNTERS_BYTES]>();
            tell(file, |hooks| hooks.counters_read(counters));
        }
    }
    rc
}

unsafe extern "C" fn write(
    file: *mut sqlite3_file,
    buffer: *const c_void,
    amount: c_int,
    offset: sqlite3_int64,
) -> c_int {
    let (Ok(length), Ok(at)) = (usize::try_from(amount), u64::try_from(offset)) else {
        return forward!(file, xWrite, buffer, amount, offset);
    };
    // SAFETY: SQLite passes `amount` readable bytes, and an open file.
    unsafe {
        let data = std::slice::from_raw_parts(buffer.cast::<u8>(), length);
        tell(file, |hooks| hooks.before_write(at, data));
    }
    let rc = forward!(file, xWrite, buffer, amount, offset);
    if rc != SQLITE_OK {
        // SAFETY: SQLite passes an open file.
        unsafe { tell(file, |hooks| hooks.write_failed(at, length)) };
    }
    rc
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, size: sqlite3_int64) -> c_int {
    if let Ok(bytes) = u64::try_from(size) {
        // SAFETY: SQLite passes an open file.
        unsafe { tell(file, |hooks| hooks.before_truncate(bytes)) };
    }
    forward!(file, xTruncate, size)
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, flags: c_int) -> c_int {
    let rc = forward!(file, xSync, flags);
    if rc != SQLITE_OK {
        // SAFETY: SQLite passes an open file.
        unsafe { tell(file, |hooks| hooks.sync_failed()) };
    }
    rc
}

unsafe extern "C" fn file_size(file: *mut sqlite3_file, size: *mut sqlite3_int64) -> c_int {
    forward!(file, xFileSize, size)
}

unsafe extern "C" fn lock(file: *mut sqlite3_file, level: c_int) -> c_int {
    let rc = forward!(file, xLock, level);
    if rc == SQLITE_OK {
        // SAFETY: SQLite passes an open file.
        unsafe {
            tell(file, |hooks| hooks.locked(LockLevel::from_sqlite(level)));
            set_level(file, level);
        }
    }
    rc
}

unsafe extern "C" fn unlock(file: *mut sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite passes an open file.
    unsafe {
        tell(file, |hooks| {
            hooks.before_unlock(LockLevel::from_sqlite(level))
        });
        set_level(file, level);
    };
    forward!(file, xUnlock, level)
}

unsafe extern "C" fn check_reserved_lock(file: *mut sqlite3_file, answer: *mut c_int) -> c_int {
    forward!(file, xCheckReservedLock, answer)
}

unsafe extern "C" fn file_control(
    file: *mut sqlite3_file,
    operation: c_int,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: SQLite passes an open file.
    unsafe {
        match operation {
            SQLITE_FCNTL_SYNC => tell(file, |hooks| hooks.all_written()),
            SQLITE_FCNTL_CKPT_START => tell(file, |hooks| hooks.checkpoint_start()),
            _ => {}
        }
    }
    let rc = forward!(file, xFileControl, operation, argument);
    // SAFETY: as above; for VFSNAME the argument is a place for a string in SQLite's memory.
    unsafe {
        match operation {
            SQLITE_FCNTL_COMMIT_PHASETWO => {
                tell(file, |hooks| hooks.committed());
                if let Some(code) = acknowledge(file) {
                    return code;
                }
            }
            SQLITE_FCNTL_CKPT_DONE => tell(file, |hooks| hooks.checkpoint_done()),
            SQLITE_FCNTL_VFSNAME => prefix_name(rc, argument.cast()),
            _ => {}
        }
    }
    rc
}

/// `SQLITE_ERROR`, as no other reason has it: the commit stands, but the replicas did not acknowledge it in time.
const NOT_ACKNOWLEDGED: c_int = SQLITE_ERROR | 77 << 8;

/// Waits for the replicas where the connection wants that; a code for SQLite where it wants to be told that they are late.
///
/// This is the one place where SQLite passes an error on to the application without undoing the commit: the journal is gone,
/// the pager is back in its state of reading, and only `SQLITE_IOERR` and `SQLITE_FULL` would make it distrust its cache.
///
/// # Safety
/// `file` was filled by [`install`] and is not closed.
unsafe fn acknowledge(file: *mut sqlite3_file) -> Option<c_int> {
    // SAFETY: the caller's promise; SQLite serialises the calls on a file.
    let state = unsafe { &*(*file.cast::<ShimFile>()).state };
    let replicated = state.replicated.as_ref()?;
    let acknowledged = guard(Ok(()), || replicated.database.acknowledge(replicated.name));
    let error = acknowledged.err()?;
    report(NOT_ACKNOWLEDGED, &format!("mycelite: {error}"), false);
    Some(NOT_ACKNOWLEDGED)
}

/// Shows the stack of VFSs: `mycelite_writer/unix`.
///
/// # Safety
/// `place` holds null or a string in SQLite's memory that nobody else frees, if `rc` says that it was set.
unsafe fn prefix_name(rc: c_int, place: *mut *mut c_char) {
    let Some(api) = Api::get().filter(|_| rc == SQLITE_OK || rc == SQLITE_NOTFOUND) else {
        return;
    };
    // SAFETY: the caller's promise.
    unsafe {
        if place.is_null() || (*place).is_null() {
            return;
        }
        let theirs = std::ffi::CStr::from_ptr(*place)
            .to_string_lossy()
            .into_owned();
        let ours = api.mprintf(&format!("{}/{theirs}", super::vfs::Kind::Writer.name()));
        if !ours.is_null() {
            api.free((*place).cast());
            *place = ours;
        }
    }
}

unsafe extern "C" fn sector_size(file: *mut sqlite3_file) -> c_int {
    forward!(file, xSectorSize)
}

unsafe extern "C" fn device_characteristics(file: *mut sqlite3_file) -> c_int {
    // A batch-atomic write would commit without the calls that capture goes by.
    forward!(file, xDeviceCharacteristics) & !SQLITE_IOCAP_BATCH_ATOMIC
}

unsafe extern "C" fn shm_map(
    file: *mut sqlite3_file,
    region: c_int,
    size: c_int,
    extend: c_int,
    memory: *mut *mut c_void,
) -> c_int {
    let rc = forward!(file, xShmMap, region, size, extend, memory);
    // SAFETY: SQLite passes an open file and a place for the address.
    unsafe {
        if rc == SQLITE_OK && region == 0 && !(*memory).is_null() {
            (*(*file.cast::<ShimFile>()).state).window.show(*memory);
        }
    }
    rc
}

/// Lock 0 of the wal-index is the write lock, lock 1 the checkpoint lock; both are only ever taken exclusively.
const WRITE_LOCKED: (c_int, c_int) = (0, SQLITE_SHM_LOCK | SQLITE_SHM_EXCLUSIVE);
const CHECKPOINT_LOCKED: (c_int, c_int) = (1, SQLITE_SHM_LOCK | SQLITE_SHM_EXCLUSIVE);
const CHECKPOINT_UNLOCKED: (c_int, c_int) = (1, SQLITE_SHM_UNLOCK | SQLITE_SHM_EXCLUSIVE);

unsafe extern "C" fn shm_lock(
    file: *mut sqlite3_file,
    offset: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    if flags & SQLITE_SHM_EXCLUSIVE != 0 {
        // SAFETY: SQLite's arguments, as they came.
        return unsafe { shm_lock_exclusive(file, offset, count, flags) };
    }
    // A reader's lock, which nobody wants to know of.
    forward!(file, xShmLock, offset, count, flags)
}

/// Takes or gives back locks of the wal-index that only writers and checkpoints take.
///
/// # Safety
/// As for [`tell`].
#[inline(never)]
unsafe fn shm_lock_exclusive(
    file: *mut sqlite3_file,
    offset: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    if (offset, flags) == CHECKPOINT_UNLOCKED {
        // SAFETY: SQLite passes an open file.
        unsafe { tell(file, |hooks| hooks.before_wal_checkpoint_unlocked()) };
    }
    let rc = forward!(file, xShmLock, offset, count, flags);
    if rc == SQLITE_OK {
        // SAFETY: SQLite passes an open file.
        unsafe {
            match (offset, flags) {
                WRITE_LOCKED => tell(file, |hooks| hooks.wal_write_locked()),
                // Recovery takes more than this lock.
                CHECKPOINT_LOCKED if count == 1 => {
                    tell(file, |hooks| hooks.wal_checkpoint_locked())
                }
                CHECKPOINT_UNLOCKED => tell(file, |hooks| hooks.wal_checkpoint_unlocked()),
                _ => {}
            }
        }
    }
    rc
}

unsafe extern "C" fn shm_barrier(file: *mut sqlite3_file) {
    // SAFETY: the file below is open; SQLite calls this only where the method exists.
    unsafe {
        let below = below(file);
        if let Some(method) = (*(*below).pMethods).xShmBarrier {
            method(below);
        }
    }
}

unsafe extern "C" fn shm_unmap(file: *mut sqlite3_file, delete: c_int) -> c_int {
    // SAFETY: SQLite passes an open file.
    unsafe {
        tell(file, |hooks| hooks.before_wal_index_unmapped());
        (*(*file.cast::<ShimFile>()).state).window.hide();
    };
    forward!(file, xShmUnmap, delete)
}

unsafe extern "C" fn fetch(
    file: *mut sqlite3_file,
    offset: sqlite3_int64,
    amount: c_int,
    memory: *mut *mut c_void,
) -> c_int {
    forward!(file, xFetch, offset, amount, memory)
}

unsafe extern "C" fn unfetch(
    file: *mut sqlite3_file,
    offset: sqlite3_int64,
    memory: *mut c_void,
) -> c_int {
    forward!(file, xUnfetch, offset, memory)
}

/// The methods with shared memory and memory mapping, each if it is there below.
const fn methods(version: c_int, shm: bool, mapping: bool) -> sqlite3_io_methods {
    sqlite3_io_methods {
        iVersion: version,
        xClose: Some(close),
        xRead: Some(read),
        xWrite: Some(write),
        xTruncate: Some(truncate),
        xSync: Some(sync),
        xFileSize: Some(file_size),
        xLock: Some(lock),
        xUnlock: Some(unlock),
        xCheckReservedLock: Some(check_reserved_lock),
        xFileControl: Some(file_control),
        xSectorSize: Some(sector_size),
        xDeviceCharacteristics: Some(device_characteristics),
        xShmMap: if shm { Some(shm_map) } else { None },
        xShmLock: if shm { Some(shm_lock) } else { None },
        xShmBarrier: if shm { Some(shm_barrier) } else { None },
        xShmUnmap: if shm { Some(shm_unmap) } else { None },
        xFetch: if mapping { Some(fetch) } else { None },
        xUnfetch: if mapping { Some(unfetch) } else { None },
    }
}

static VERSION_1: sqlite3_io_methods = methods(1, false, false);
static VERSION_2: [sqlite3_io_methods; 2] = [methods(2, false, false), methods(2, true, false)];
static VERSION_3: [[sqlite3_io_methods; 2]; 2] = [
    [methods(3, false, false), methods(3, false, true)],
    [methods(3, true, false), methods(3, true, true)],
];

/// The table that offers what `below` offers: files of one VFS differ (unix gives some no shared memory).
fn methods_for(below: &sqlite3_io_methods) -> &'static sqlite3_io_methods {
    let shm = usize::from(below.xShmMap.is_some());
    match below.iVersion {
        ..=1 => &VERSION_1,
        2 => &VERSION_2[shm],
        _ => &VERSION_3[shm][usize::from(below.xFetch.is_some())],
    }
}

#[cfg(test)]
mod tests;
