//! The C library's calls that change the disk, which this program's own definitions come before: counted, and at one of them the
//! process is killed, before it is done.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

static COUNTS: AtomicBool = AtomicBool::new(false);
static SEEN: AtomicU64 = AtomicU64::new(0);
static KILL_AT: AtomicU64 = AtomicU64::new(u64::MAX);

/// Counts from now on; the call with this number is never done.
pub fn arm(at: Option<u64>) {
    KILL_AT.store(at.unwrap_or(u64::MAX), Ordering::SeqCst);
    COUNTS.store(true, Ordering::SeqCst);
}

/// Counts no more; how many there were.
pub fn disarm() -> u64 {
    COUNTS.store(false, Ordering::SeqCst);
    SEEN.load(Ordering::SeqCst)
}

fn tick() {
    if COUNTS.load(Ordering::SeqCst)
        && SEEN.fetch_add(1, Ordering::SeqCst) == KILL_AT.load(Ordering::SeqCst)
    {
        // SAFETY: it has no arguments but numbers.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}

/// Whether `fd` is a file on the disk, not a socket or a terminal.
fn is_file(fd: c_int) -> bool {
    // SAFETY: a structure of numbers, and a place for the answer.
    unsafe {
        let mut found: libc::stat = std::mem::zeroed();
        libc::fstat(fd, &raw mut found) == 0 && found.st_mode & libc::S_IFMT == libc::S_IFREG
    }
}

fn tick_for(fd: c_int) {
    if COUNTS.load(Ordering::SeqCst) && is_file(fd) {
        tick();
    }
}

/// The C library's own function of that name.
fn behind(name: &CStr, known: &AtomicPtr<c_void>) -> *mut c_void {
    let found = known.load(Ordering::Relaxed);
    if !found.is_null() {
        return found;
    }
    // SAFETY: the name ends with a zero byte.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    known.store(found, Ordering::Relaxed);
    found
}

macro_rules! original {
    ($name:literal, $type:ty) => {{
        static BEHIND: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
        // SAFETY: the C library's function of that name has this signature.
        unsafe { std::mem::transmute::<*mut c_void, $type>(behind($name, &BEHIND)) }
    }};
}

macro_rules! hooks {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty, $text:literal, $before:expr;)*) => {$(
        /// Stands before the C library's.
        ///
        /// # Safety
        /// As the C library's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> $result {
            $before;
            let original = original!($text, unsafe extern "C" fn($($type),*) -> $result);
            // SAFETY: the caller's arguments are passed on.
            unsafe { original($($argument),*) }
        }
    )*};
}

/// Opening changes the disk where it makes or empties a file.
fn opens(flags: c_int) {
    if flags & (libc::O_CREAT | libc::O_TRUNC) != 0 {
        tick();
    }
}

hooks! {
    fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int, c"open", opens(flags);
    fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int, c"open64", opens(flags);
    fn write(fd: c_int, data: *const c_void, length: usize) -> isize, c"write", tick_for(fd);
    fn writev(fd: c_int, parts: *const c_void, count: c_int) -> isize, c"writev", tick_for(fd);
    fn pwrite(fd: c_int, data: *const c_void, length: usize, offset: c_long) -> isize, c"pwrite", tick_for(fd);
    fn pwrite64(fd: c_int, data: *const c_void, length: usize, offset: c_long) -> isize, c"pwrite64", tick_for(fd);
    fn ftruncate(fd: c_int, length: c_long) -> c_int, c"ftruncate", tick();
    fn ftruncate64(fd: c_int, length: c_long) -> c_int, c"ftruncate64", tick();
    fn fsync(fd: c_int) -> c_int, c"fsync", tick();
    fn fdatasync(fd: c_int) -> c_int, c"fdatasync", tick();
    fn unlink(path: *const c_char) -> c_int, c"unlink", tick();
    fn unlinkat(dir: c_int, path: *const c_char, flags: c_int) -> c_int, c"unlinkat", tick();
    fn rename(from: *const c_char, to: *const c_char) -> c_int, c"rename", tick();
    fn link(from: *const c_char, to: *const c_char) -> c_int, c"link", tick();
    fn linkat(from_dir: c_int, from: *const c_char, to_dir: c_int, to: *const c_char, flags: c_int) -> c_int, c"linkat", tick();
    fn mkdir(path: *const c_char, mode: c_uint) -> c_int, c"mkdir", tick();
    fn rmdir(path: *const c_char) -> c_int, c"rmdir", tick();
}
