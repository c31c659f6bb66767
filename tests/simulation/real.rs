//! The C library's own functions, which those of this program stand before.

use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

fn behind(name: &CStr, known: &AtomicPtr<c_void>) -> *mut c_void {
    let found = known.load(Ordering::Relaxed);
    if !found.is_null() {
        return found;
    }
    // SAFETY: a name that ends with a zero byte.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    assert!(!found.is_null(), "{name:?}");
    known.store(found, Ordering::Relaxed);
    found
}

macro_rules! real {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty;)*) => {
        $(
            /// The C library's.
            pub fn $name($($arg: $ty),*) -> $ret {
                static BEHIND: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
                const NAME: &str = concat!(stringify!($name), "\0");
                let name = CStr::from_bytes_with_nul(NAME.as_bytes()).unwrap();
                let found = behind(name, &BEHIND);
                // SAFETY: the C library's function of that name has this signature; the arguments are what a caller of it
                // passed, or what it asks for.
                unsafe {
                    let function: unsafe extern "C" fn($($ty),*) -> $ret = std::mem::transmute(found);
                    function($($arg),*)
                }
            }
        )*
    };
}

pub type ThreadBody = extern "C" fn(*mut c_void) -> *mut c_void;

real! {
    syscall(number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long;
    clock_gettime(clock: c_int, time: *mut libc::timespec) -> c_int;
    nanosleep(wait: *const libc::timespec, left: *mut libc::timespec) -> c_int;
    clock_nanosleep(clock: c_int, flags: c_int, wait: *const libc::timespec, left: *mut libc::timespec) -> c_int;
    usleep(micros: u32) -> c_int;
    sched_yield() -> c_int;
    getpid() -> libc::pid_t;
    getrandom(to: *mut c_void, length: usize, flags: u32) -> isize;
    pthread_create(thread: *mut libc::pthread_t, attributes: *const c_void, body: ThreadBody, argument: *mut c_void) -> c_int;
    pthread_join(thread: libc::pthread_t, result: *mut *mut c_void) -> c_int;
    pthread_mutex_lock(mutex: *mut c_void) -> c_int;
    pthread_mutex_trylock(mutex: *mut c_void) -> c_int;
    pthread_mutex_unlock(mutex: *mut c_void) -> c_int;
    open(path: *const c_char, flags: c_int, mode: c_int) -> c_int;
    open64(path: *const c_char, flags: c_int, mode: c_int) -> c_int;
    openat(dir: c_int, path: *const c_char, flags: c_int, mode: c_int) -> c_int;
    openat64(dir: c_int, path: *const c_char, flags: c_int, mode: c_int) -> c_int;
    close(fd: c_int) -> c_int;
    read(fd: c_int, to: *mut c_void, length: usize) -> isize;
    write(fd: c_int, from: *const c_void, length: usize) -> isize;
    readv(fd: c_int, parts: *const libc::iovec, count: c_int) -> isize;
    writev(fd: c_int, parts: *const libc::iovec, count: c_int) -> isize;
    pwrite64(fd: c_int, from: *const c_void, length: usize, offset: i64) -> isize;
    ftruncate64(fd: c_int, length: i64) -> c_int;
    fsync(fd: c_int) -> c_int;
    fdatasync(fd: c_int) -> c_int;
    unlink(path: *const c_char) -> c_int;
    unlinkat(dir: c_int, path: *const c_char, flags: c_int) -> c_int;
    rename(from: *const c_char, to: *const c_char) -> c_int;
    mkdir(path: *const c_char, mode: u32) -> c_int;
    rmdir(path: *const c_char) -> c_int;
    statx(dir: c_int, path: *const c_char, flags: c_int, mask: u32, found: *mut libc::statx) -> c_int;
    fstat64(fd: c_int, found: *mut libc::stat64) -> c_int;
    stat64(path: *const c_char, found: *mut libc::stat64) -> c_int;
    copy_file_range(from: c_int, from_at: *mut i64, to: c_int, to_at: *mut i64, length: usize, flags: u32) -> isize;
    fcntl(fd: c_int, command: c_int, argument: c_long) -> c_int;
    fcntl64(fd: c_int, command: c_int, argument: c_long) -> c_int;
    ioctl(fd: c_int, request: u64, argument: *mut c_void) -> c_int;
    eventfd(count: u32, flags: c_int) -> c_int;
    epoll_create1(flags: c_int) -> c_int;
    epoll_ctl(epoll: c_int, what: c_int, fd: c_int, event: *mut libc::epoll_event) -> c_int;
    epoll_wait(epoll: c_int, events: *mut libc::epoll_event, max: c_int, millis: c_int) -> c_int;
    socket(family: c_int, kind: c_int, protocol: c_int) -> c_int;
    bind(fd: c_int, address: *const libc::sockaddr, length: u32) -> c_int;
    listen(fd: c_int, backlog: c_int) -> c_int;
    accept4(fd: c_int, address: *mut libc::sockaddr, length: *mut u32, flags: c_int) -> c_int;
    connect(fd: c_int, address: *const libc::sockaddr, length: u32) -> c_int;
    getsockname(fd: c_int, address: *mut libc::sockaddr, length: *mut u32) -> c_int;
    getpeername(fd: c_int, address: *mut libc::sockaddr, length: *mut u32) -> c_int;
    getsockopt(fd: c_int, level: c_int, option: c_int, value: *mut c_void, length: *mut u32) -> c_int;
    setsockopt(fd: c_int, level: c_int, option: c_int, value: *const c_void, length: u32) -> c_int;
    shutdown(fd: c_int, how: c_int) -> c_int;
    send(fd: c_int, from: *const c_void, length: usize, flags: c_int) -> isize;
    recv(fd: c_int, to: *mut c_void, length: usize, flags: c_int) -> isize;
}

/// Sleeps until `word` is not `expected` any more, or for no reason. For real.
pub fn futex_wait(word: &std::sync::atomic::AtomicU32, expected: u32) {
    let at = word.as_ptr() as c_long;
    syscall(
        libc::SYS_futex,
        at,
        c_long::from(libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG),
        c_long::from(expected),
        0,
        0,
        0,
    );
}

/// Wakes who sleeps there. For real.
pub fn futex_wake(word: &std::sync::atomic::AtomicU32) {
    let at = word.as_ptr() as c_long;
    syscall(
        libc::SYS_futex,
        at,
        c_long::from(libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG),
        1,
        0,
        0,
        0,
    );
}

/// Sets the calling thread's `errno`, and is what a call that fails returns.
pub fn fail<T: From<i8>>(errno: c_int) -> T {
    // SAFETY: the C library's place for this thread's errno.
    unsafe { *libc::__errno_location() = errno };
    T::from(-1)
}
