//! A clock that can be put forward, so that nobody waits for capture's pause to be over.

use std::cell::Cell;
use std::ffi::{CStr, c_int, c_long, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

#[repr(C)]
pub struct Timespec {
    seconds: c_long,
    nanoseconds: c_long,
}

thread_local! {
    static AHEAD: Cell<c_long> = const { Cell::new(0) };
}

/// Puts this thread's monotonic clock forward.
pub fn advance(seconds: c_long) {
    AHEAD.set(AHEAD.get() + seconds);
}

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const std::ffi::c_char) -> *mut c_void;
}

/// The C library's own function of that name, which one of this program stands before.
pub fn behind(name: &CStr, known: &AtomicPtr<c_void>) -> *mut c_void {
    let found = known.load(Ordering::Relaxed);
    if !found.is_null() {
        return found;
    }
    // SAFETY: RTLD_NEXT, and a name that ends with a zero byte.
    let found = unsafe { dlsym(std::ptr::without_provenance_mut(usize::MAX), name.as_ptr()) };
    assert!(!found.is_null());
    known.store(found, Ordering::Relaxed);
    found
}

/// Stands before the C library's.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int {
    const MONOTONIC: c_int = 1;
    static BEHIND: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
    // SAFETY: the function of that name has this signature; the caller passes a place for the time.
    unsafe {
        let original: unsafe extern "C" fn(c_int, *mut Timespec) -> c_int =
            std::mem::transmute(behind(c"clock_gettime", &BEHIND));
        let rc = original(clock, time);
        if rc == 0 && clock == MONOTONIC {
            (*time).seconds += AHEAD.get();
        }
        rc
    }
}
