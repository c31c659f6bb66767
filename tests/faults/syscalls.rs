//! The C library's calls on files, which this program's own definitions come before: written down, so that a power cut can be
//! played at each of them, or failed. Both SQLite's calls and those of the log go this way.

use crate::clock::behind;
use crate::failures::Act;
pub use crate::failures::{Failure, LogPlan};
use parking_lot::{Mutex, ReentrantMutex};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicPtr;

/// A call that changes what is on the disk. Files have numbers, because names change hands.
#[derive(Clone, Debug)]
pub enum Call {
    Create(String, u32),
    MakeDir(String),
    Write(u32, u64, Vec<u8>),
    Truncate(u32, u64),
    Sync(u32),
    Unlink(String),
    Rename(String, String),
    /// The directory, by its name.
    SyncDir(String),
}

#[derive(Default)]
struct Watch {
    /// The directory that is watched, without a slash at its end.
    root: String,
    open: HashMap<c_int, Handle>,
    names: HashMap<String, u32>,
    files: u32,
    calls: Vec<Call>,
    plan: Option<LogPlan>,
    /// Calls on the log's directory since it was last asked to count.
    counting: bool,
    counted: usize,
    failed: usize,
    /// Files look as if nobody ever wrote to them or replaced them.
    frozen: bool,
}

#[derive(Clone)]
enum Handle {
    File(u32, String),
    Dir(String),
}

/// Held while a call is made and written down, so that no other thread's comes between the two.
type Shared = Arc<ReentrantMutex<RefCell<Watch>>>;

/// Those of all threads.
static WATCHES: Mutex<Vec<Shared>> = Mutex::new(Vec::new());

thread_local! {
    static WATCH: RefCell<Option<Shared>> = const { RefCell::new(None) };
    /// What stands for the system's boot id.
    static BOOT_ID: RefCell<Option<std::ffi::CString>> = const { RefCell::new(None) };
    /// Whether this is the process's capture thread, once that is known.
    static IS_CAPTURE: Cell<Option<bool>> = const { Cell::new(None) };
}

/// What a call is about.
#[derive(Clone, Copy)]
enum Of {
    /// Whatever this thread watches.
    Mine,
    File(c_int),
    Path(*const c_char),
}

/// The watch over what a call is about: this thread's own, and for the capture thread that of whoever it works for.
fn watch_of(of: Of) -> Option<Shared> {
    let own = WATCH.try_with(|watch| watch.try_borrow().ok()?.clone());
    if let Some(own) = own.ok()? {
        return Some(own);
    }
    if !is_capture_thread() {
        return None;
    }
    let watches = WATCHES.lock().clone();
    watches.into_iter().find(|watch| {
        let watch = watch.lock();
        watch.try_borrow().is_ok_and(|watch| match of {
            Of::Mine => false,
            Of::File(fd) => watch.open.contains_key(&fd),
            Of::Path(path) => watch.name_of(path).is_some(),
        })
    })
}

fn is_capture_thread() -> bool {
    IS_CAPTURE.get().unwrap_or_else(|| {
        let mut name = [0_u8; 16];
        // SAFETY: the place has room for the longest name.
        unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
        let is = name.starts_with(b"mycelite-captur");
        IS_CAPTURE.set(Some(is));
        is
    })
}

fn with<T>(of: Of, act: impl FnOnce(&mut Watch) -> T) -> Option<T> {
    let shared = watch_of(of)?;
    let watch = shared.lock();
    let mut watch = watch.try_borrow_mut().ok()?;
    Some(act(&mut watch))
}

/// Watches what this thread does in the directory `root` from now on. The files that are there get numbers.
pub fn watch(root: &Path) -> Vec<(String, u32)> {
    let mut watch = Watch {
        root: root.to_str().unwrap().to_owned(),
        ..Watch::default()
    };
    number_files(root, "", &mut watch);
    let found = watch
        .names
        .iter()
        .map(|(name, file)| (name.clone(), *file))
        .collect();
    let watch = Arc::new(ReentrantMutex::new(RefCell::new(watch)));
    WATCHES.lock().push(Arc::clone(&watch));
    WATCH.set(Some(watch));
    found
}

fn number_files(dir: &Path, prefix: &str, watch: &mut Watch) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            number_files(&entry.path(), &format!("{name}/"), watch);
        } else {
            watch.files += 1;
            watch.names.insert(name, watch.files);
        }
    }
}

/// The times and numbers of the files in the watched directory stand still: a power cut may leave the ones from before.
pub fn freeze() {
    with(Of::Mine, |watch| watch.frozen = true);
}

/// From now on calls on the log's directory are counted, and fail as planned.
pub fn count(plan: Option<LogPlan>) {
    with(Of::Mine, |watch| {
        watch.plan = plan;
        watch.counting = true;
        watch.counted = 0;
    });
}

/// Nothing is counted any more, and nothing fails: how many calls there were, and how many failed.
pub fn stop_counting() -> (usize, usize) {
    with(Of::Mine, |watch| {
        watch.counting = false;
        watch.plan = None;
        (watch.counted, watch.failed)
    })
    .unwrap_or_default()
}

/// Does something that is not the application's.
pub fn quietly<T>(act: impl FnOnce() -> T) -> T {
    let was = with(Of::Mine, |watch| std::mem::take(&mut watch.counting));
    let result = act();
    if let Some(was) = was {
        with(Of::Mine, |watch| watch.counting = was);
    }
    result
}

/// Watches no more: what was done.
pub fn unwatch() -> Vec<Call> {
    let Some(watch) = WATCH.take() else {
        return Vec::new();
    };
    WATCHES.lock().retain(|other| !Arc::ptr_eq(other, &watch));
    let watch = watch.lock();
    watch.take().calls
}

/// This thread's system has been booted anew: the file `path` is its boot id.
pub fn set_boot_id(path: &Path) {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    BOOT_ID.set(Some(path));
}

impl Watch {
    /// The name below the root; the root itself is the empty name.
    fn name_of(&self, path: *const c_char) -> Option<String> {
        // SAFETY: paths end with a zero byte.
        let path = unsafe { CStr::from_ptr(path) }.to_str().ok()?;
        let rest = path.strip_prefix(&self.root)?;
        match rest.strip_prefix('/') {
            Some(name) => Some(name.trim_end_matches('/').to_owned()),
            None if rest.is_empty() => Some(String::new()),
            None => None,
        }
    }

    /// How a call on `name` is to fail.
    fn verdict(&mut self, name: &str, act: Act) -> Option<Failure> {
        if !self.counting || !name.contains("-mycelite") {
            return None;
        }
        self.counted += 1;
        let plan = self.plan?;
        let fails = plan.failure.fits(act)
            && (self.counted == plan.at || plan.lasting && self.counted > plan.at);
        self.failed += usize::from(fails);
        fails.then_some(plan.failure)
    }
}

/// The verdict on a call by name; sets `errno` when it fails.
fn fails_by_name(path: *const c_char, act: Act) -> bool {
    let failure = with(Of::Path(path), |watch| {
        let name = watch.name_of(path)?;
        watch.verdict(&name, act)
    });
    match failure.flatten() {
        Some(failure) => {
            set_errno(failure);
            true
        }
        None => false,
    }
}

fn fails_by_handle(fd: c_int, act: Act) -> Option<Failure> {
    with(Of::File(fd), |watch| {
        let name = match watch.open.get(&fd)? {
            Handle::File(_, name) => name.clone(),
            Handle::Dir(name) => format!("{name}/"),
        };
        watch.verdict(&name, act)
    })
    .flatten()
    .inspect(|failure| set_errno(*failure))
}

fn set_errno(failure: Failure) {
    unsafe extern "C" {
        fn __errno_location() -> *mut c_int;
    }
    // SAFETY: the C library's place for this thread's errno.
    unsafe { *__errno_location() = failure.errno() };
}

macro_rules! original {
    ($name:literal, $type:ty) => {{
        static BEHIND: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
        // SAFETY: the C library's function of that name has this signature.
        unsafe { std::mem::transmute::<*mut c_void, $type>(behind($name, &BEHIND)) }
    }};
}

const O_WRITE: c_int = 0o3;
const O_CREAT: c_int = 0o100;
const O_TRUNC: c_int = 0o1000;
const BOOT_ID_PATH: &CStr = c"/proc/sys/kernel/random/boot_id";

type Open = unsafe extern "C" fn(*const c_char, c_int, c_int) -> c_int;

fn open_with(open: Open, path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    // SAFETY: the caller's arguments are passed on.
    unsafe {
        if CStr::from_ptr(path) == BOOT_ID_PATH {
            let other = BOOT_ID.with_borrow(Clone::clone);
            let path = other.as_deref().map_or(path, CStr::as_ptr);
            return open(path, flags, mode);
        }
        let Some(name) = with(Of::Path(path), |watch| watch.name_of(path)).flatten() else {
            return open(path, flags, mode);
        };
        let is_new =
            with(Of::Path(path), |watch| !watch.names.contains_key(&name)).unwrap_or(false);
        let act = if is_new && flags & O_CREAT != 0 {
            Act::Create
        } else if flags & O_WRITE != 0 {
            Act::Remove
        } else {
            Act::Open
        };
        if fails_by_name(path, act) {
            return -1;
        }
        let fd = open(path, flags, mode);
        if fd >= 0 {
            with(Of::Path(path), |watch| watch.opened(fd, name, flags));
        }
        fd
    }
}

impl Watch {
    fn opened(&mut self, fd: c_int, name: String, flags: c_int) {
        let known = self.names.get(&name).copied();
        let is_dir = Path::new(&self.root).join(&name).is_dir();
        if is_dir || name.is_empty() {
            self.open.insert(fd, Handle::Dir(name));
            return;
        }
        let file = known.unwrap_or_else(|| {
            self.files += 1;
            self.names.insert(name.clone(), self.files);
            self.calls.push(Call::Create(name.clone(), self.files));
            self.files
        });
        if flags & O_TRUNC != 0 && known.is_some() {
            self.calls.push(Call::Truncate(file, 0));
        }
        self.open.insert(fd, Handle::File(file, name));
    }

    fn write_down(&mut self, fd: c_int, call: impl FnOnce(u32) -> Call) {
        if let Some(Handle::File(file, _)) = self.open.get(&fd) {
            self.calls.push(call(*file));
        }
    }
}

fn write_with(
    fd: c_int,
    data: *const c_void,
    length: usize,
    offset: c_long,
    write: impl FnOnce(usize) -> isize,
) -> isize {
    let length = match fails_by_handle(fd, Act::Write) {
        Some(Failure::Short) if length > 1 => length / 2,
        Some(_) => return -1,
        None => length,
    };
    let watch = watch_of(Of::File(fd));
    let _in_order = watch.as_ref().map(|watch| watch.lock());
    let written = write(length);
    if let Ok(written) = usize::try_from(written) {
        // SAFETY: the caller passes so many readable bytes, or more.
        let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), written) };
        with(Of::File(fd), |watch| {
            watch.write_down(fd, |file| Call::Write(file, offset as u64, bytes.to_vec()));
        });
    }
    written
}

macro_rules! hooks {
    ($($(#[$meta:meta])* fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty $body:block)*) => {$(
        /// Stands before the C library's.
        ///
        /// # Safety
        /// As the C library's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> $result $body
    )*};
}

hooks! {
    fn open(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
        open_with(original!(c"open", Open), path, flags, mode)
    }
    fn open64(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
        open_with(original!(c"open64", Open), path, flags, mode)
    }
    fn close(fd: c_int) -> c_int {
        with(Of::File(fd), |watch| watch.open.remove(&fd));
        let close = original!(c"close", unsafe extern "C" fn(c_int) -> c_int);
        // SAFETY: the caller's argument is passed on.
        unsafe { close(fd) }
    }
    fn pwrite(fd: c_int, data: *const c_void, length: usize, offset: c_long) -> isize {
        pwrite_with(fd, data, length, offset)
    }
    fn pwrite64(fd: c_int, data: *const c_void, length: usize, offset: c_long) -> isize {
        pwrite_with(fd, data, length, offset)
    }
    fn write(fd: c_int, data: *const c_void, length: usize) -> isize {
        unsafe extern "C" {
            fn lseek(fd: c_int, offset: c_long, whence: c_int) -> c_long;
        }
        let write = original!(c"write", unsafe extern "C" fn(c_int, *const c_void, usize) -> isize);
        // SAFETY: the caller's arguments are passed on; asking where a file stands changes nothing.
        unsafe {
            let offset = lseek(fd, 0, 1);
            write_with(fd, data, length, offset, |length| write(fd, data, length))
        }
    }
    fn ftruncate(fd: c_int, length: c_long) -> c_int {
        truncate_with(fd, length)
    }
    fn ftruncate64(fd: c_int, length: c_long) -> c_int {
        truncate_with(fd, length)
    }
    fn fsync(fd: c_int) -> c_int {
        sync_with(fd)
    }
    fn fdatasync(fd: c_int) -> c_int {
        sync_with(fd)
    }
    fn unlink(path: *const c_char) -> c_int {
        if fails_by_name(path, Act::Remove) {
            return -1;
        }
        let unlink = original!(c"unlink", unsafe extern "C" fn(*const c_char) -> c_int);
        // SAFETY: the caller's argument is passed on.
        let rc = unsafe { unlink(path) };
        if rc == 0 {
            with(Of::Path(path), |watch| {
                if let Some(name) = watch.name_of(path) {
                    watch.names.remove(&name);
                    watch.calls.push(Call::Unlink(name));
                }
            });
        }
        rc
    }
    fn rename(from: *const c_char, to: *const c_char) -> c_int {
        if fails_by_name(from, Act::Remove) {
            return -1;
        }
        type Rename = unsafe extern "C" fn(*const c_char, *const c_char) -> c_int;
        let rename = original!(c"rename", Rename);
        // SAFETY: the caller's arguments are passed on.
        let rc = unsafe { rename(from, to) };
        if rc == 0 {
            with(Of::Path(from), |watch| {
                if let (Some(from), Some(to)) = (watch.name_of(from), watch.name_of(to)) {
                    if let Some(file) = watch.names.remove(&from) {
                        watch.names.insert(to.clone(), file);
                    }
                    watch.calls.push(Call::Rename(from, to));
                }
            });
        }
        rc
    }
    fn mkdir(path: *const c_char, mode: c_int) -> c_int {
        if fails_by_name(path, Act::Create) {
            return -1;
        }
        let mkdir = original!(c"mkdir", unsafe extern "C" fn(*const c_char, c_int) -> c_int);
        // SAFETY: the caller's arguments are passed on.
        let rc = unsafe { mkdir(path, mode) };
        if rc == 0 {
            with(Of::Path(path), |watch| {
                if let Some(name) = watch.name_of(path) {
                    watch.calls.push(Call::MakeDir(name));
                }
            });
        }
        rc
    }
}

/// The file is named by its descriptor alone.
const AT_EMPTY_PATH: c_int = 0x1000;

/// What the system says of a file, as far as it matters here: the layout is the kernel's.
#[repr(C)]
pub struct Statx {
    before: [u64; 4],
    inode: u64,
    between: [u64; 5],
    /// Read, made, changed, written: seconds, and nanoseconds.
    times: [(i64, u64); 4],
    after: [u64; 16],
}

/// Stands before the C library's.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statx(
    dir: c_int,
    path: *const c_char,
    flags: c_int,
    mask: u32,
    found: *mut Statx,
) -> c_int {
    type Original = unsafe extern "C" fn(c_int, *const c_char, c_int, u32, *mut Statx) -> c_int;
    let original = original!(c"statx", Original);
    // SAFETY: the caller's arguments are passed on.
    let rc = unsafe { original(dir, path, flags, mask, found) };
    let of = if flags & AT_EMPTY_PATH == 0 {
        Of::Path(path)
    } else {
        Of::File(dir)
    };
    let frozen = with(of, |watch| {
        let name = match watch.open.get(&dir) {
            Some(Handle::File(_, name) | Handle::Dir(name)) => name.clone(),
            None => watch.name_of(path)?,
        };
        watch
            .frozen
            .then(|| xxhash_rust::xxh3::xxh3_64(name.as_bytes()))
    });
    if let Some(inode) = frozen.flatten().filter(|_| rc == 0) {
        // SAFETY: the call has filled the caller's place.
        unsafe {
            (*found).inode = inode;
            (*found).times = [(1_000_000_000, 0); 4];
        }
    }
    rc
}

fn pwrite_with(fd: c_int, data: *const c_void, length: usize, offset: c_long) -> isize {
    type Pwrite = unsafe extern "C" fn(c_int, *const c_void, usize, c_long) -> isize;
    let pwrite = original!(c"pwrite64", Pwrite);
    // SAFETY: the caller's arguments are passed on, or a first part of its bytes.
    write_with(fd, data, length, offset, |length| unsafe {
        pwrite(fd, data, length, offset)
    })
}

fn truncate_with(fd: c_int, length: c_long) -> c_int {
    if fails_by_handle(fd, Act::Truncate).is_some() {
        return -1;
    }
    let watch = watch_of(Of::File(fd));
    let _in_order = watch.as_ref().map(|watch| watch.lock());
    type Ftruncate = unsafe extern "C" fn(c_int, c_long) -> c_int;
    let ftruncate = original!(c"ftruncate64", Ftruncate);
    // SAFETY: the caller's arguments are passed on.
    let rc = unsafe { ftruncate(fd, length) };
    if rc == 0 {
        with(Of::File(fd), |watch| {
            watch.write_down(fd, |file| Call::Truncate(file, length as u64))
        });
    }
    rc
}

/// Nothing needs to be synced for real here.
fn sync_with(fd: c_int) -> c_int {
    if fails_by_handle(fd, Act::Sync).is_some() {
        return -1;
    }
    with(Of::File(fd), |watch| {
        if let Some(handle) = watch.open.get(&fd).cloned() {
            watch.calls.push(match handle {
                Handle::File(file, _) => Call::Sync(file),
                Handle::Dir(name) => Call::SyncDir(name),
            });
        }
    });
    0
}
