//! Threads, waiting, time and chance: the C library's calls that this program's own definitions come before.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_long, c_void};
use std::sync::Mutex;

use crate::kernel::{
    self, Key, SECOND, TaskId, block, current, give_way, step, stop_if_dead, with,
};
use crate::real::{self, ThreadBody, fail};

/// 2026-01-01, in seconds since 1970: where the simulated calendar begins.
const CALENDAR: u64 = 1_767_225_600;

/// Defines functions that stand before the C library's.
#[macro_export]
macro_rules! hooks {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $result:ty $body:block)*) => {$(
        /// Stands before the C library's.
        ///
        /// # Safety
        /// As the C library's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> $result $body
    )*};
}

fn nanos(time: &libc::timespec) -> u64 {
    time.tv_sec as u64 * SECOND + time.tv_nsec as u64
}

fn sleep_until(deadline: u64) {
    step();
    block(Key::Sleep, Some(deadline));
    stop_if_dead();
}

fn sleep_for(nanos: u64) -> c_int {
    let deadline = with(|kernel| kernel.now + nanos);
    sleep_until(deadline);
    0
}

fn futex(at: c_long, what: c_long, value: c_long, time: *const libc::timespec) -> c_long {
    let command = what as c_int & 0x7f;
    let key = Key::Futex(at as usize);
    match command {
        libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET => {
            step();
            // SAFETY: the caller waits on a word of its own.
            let word = unsafe { &*(at as *const std::sync::atomic::AtomicU32) };
            if word.load(std::sync::atomic::Ordering::SeqCst) != value as u32 {
                return fail(libc::EAGAIN);
            }
            // SAFETY: null, or the caller's time.
            let time = unsafe { time.as_ref() }.map(nanos);
            let deadline = time.map(|time| match command {
                libc::FUTEX_WAIT => with(|kernel| kernel.now) + time,
                _ => time,
            });
            let woken = block(key, deadline);
            stop_if_dead();
            if woken { 0 } else { fail(libc::ETIMEDOUT) }
        }
        _ => {
            let woken = with(|kernel| kernel.wake(key, value as usize));
            step();
            woken as c_long
        }
    }
}

/// What a new thread needs to know.
struct Birth {
    body: ThreadBody,
    argument: *mut c_void,
    task: TaskId,
}

static END_KEY: Mutex<Option<libc::pthread_key_t>> = Mutex::new(None);

unsafe extern "C" fn thread_ends(_: *mut c_void) {
    kernel::end_thread();
}

/// To be called once, before there are threads.
pub fn prepare() {
    let mut key = 0;
    // SAFETY: a place for the key, and a function of the right kind.
    let rc = unsafe { libc::pthread_key_create(&raw mut key, Some(thread_ends)) };
    assert_eq!(rc, 0);
    *END_KEY.lock().unwrap() = Some(key);
}

extern "C" fn thread_begins(birth: *mut c_void) -> *mut c_void {
    // SAFETY: made by `pthread_create` below, for this thread alone.
    let birth = unsafe { Box::from_raw(birth.cast::<Birth>()) };
    let key = END_KEY.lock().unwrap().unwrap();
    // SAFETY: the key is there; any value but null makes its function be called at the end of the thread.
    unsafe { libc::pthread_setspecific(key, std::ptr::dangling()) };
    kernel::begin_thread(birth.task);
    stop_if_dead();
    (birth.body)(birth.argument)
}

static THREADS: Mutex<BTreeMap<libc::pthread_t, TaskId>> = Mutex::new(BTreeMap::new());

fn create(
    thread: *mut libc::pthread_t,
    attributes: *const c_void,
    body: ThreadBody,
    argument: *mut c_void,
) -> c_int {
    let rc = with(|kernel| {
        let party = kernel.spawns_as.take().unwrap_or(kernel.party());
        let task = kernel.new_task(party);
        let birth = Box::into_raw(Box::new(Birth {
            body,
            argument,
            task,
        }));
        let rc = real::pthread_create(thread, attributes, thread_begins, birth.cast());
        assert_eq!(rc, 0, "no threads left");
        // SAFETY: the call has filled the caller's place.
        let thread = unsafe { *thread };
        THREADS.lock().unwrap().insert(thread, task);
        rc
    });
    step();
    rc
}

fn join(thread: libc::pthread_t, result: *mut *mut c_void) -> c_int {
    let task = with(|_| THREADS.lock().unwrap().get(&thread).copied());
    if let Some(task) = task {
        while !with(|kernel| kernel.is_done(task)) {
            block(Key::Join(task), None);
            stop_if_dead();
        }
    }
    with(|_| real::pthread_join(thread, result))
}

fn lock(mutex: *mut c_void) -> c_int {
    loop {
        let rc = real::pthread_mutex_trylock(mutex);
        if rc != libc::EBUSY {
            if rc == 0 {
                with(|kernel| {
                    let me = kernel.current();
                    kernel.tasks[me].mutexes += 1;
                });
            }
            return rc;
        }
        block(Key::Mutex(mutex as usize), None);
    }
}

hooks! {
    fn syscall(number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long {
        if current().is_some() {
            if number == libc::SYS_futex {
                return futex(a, b, c, d as *const libc::timespec);
            }
            if number == libc::SYS_getrandom {
                return random(a as *mut c_void, b as usize) as c_long;
            }
        }
        real::syscall(number, a, b, c, d, e, f)
    }
    fn clock_gettime(clock: c_int, time: *mut libc::timespec) -> c_int {
        if current().is_none() {
            return real::clock_gettime(clock, time);
        }
        let now = with(|kernel| {
            kernel.now += 50;
            let ahead = kernel.parties[kernel.party()].clock_ahead;
            match clock {
                libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => {
                    (kernel.now + CALENDAR * SECOND).saturating_add_signed(ahead * SECOND as i64)
                }
                _ => kernel.now,
            }
        });
        // SAFETY: the caller's place for the time.
        unsafe {
            *time = libc::timespec {
                tv_sec: (now / SECOND) as i64,
                tv_nsec: (now % SECOND) as i64,
            };
        }
        0
    }
    fn nanosleep(wait: *const libc::timespec, left: *mut libc::timespec) -> c_int {
        if current().is_none() {
            return real::nanosleep(wait, left);
        }
        // SAFETY: the caller's time.
        sleep_for(nanos(unsafe { &*wait }))
    }
    fn clock_nanosleep(clock: c_int, flags: c_int, wait: *const libc::timespec, left: *mut libc::timespec) -> c_int {
        if current().is_none() {
            return real::clock_nanosleep(clock, flags, wait, left);
        }
        // SAFETY: the caller's time.
        let time = nanos(unsafe { &*wait });
        if flags & libc::TIMER_ABSTIME == 0 {
            return sleep_for(time);
        }
        sleep_until(time);
        0
    }
    fn usleep(micros: u32) -> c_int {
        if current().is_none() {
            return real::usleep(micros);
        }
        sleep_for(u64::from(micros) * 1000)
    }
    fn sched_yield() -> c_int {
        if current().is_none() {
            return real::sched_yield();
        }
        step();
        give_way();
        stop_if_dead();
        0
    }
    fn getrandom(to: *mut c_void, length: usize, flags: u32) -> isize {
        if current().is_none() {
            return real::getrandom(to, length, flags);
        }
        random(to, length)
    }
    // Each life of a party is a process of its own: what a process keeps for itself is not another's.
    fn getpid() -> libc::pid_t {
        if current().is_none() {
            return real::getpid();
        }
        with(|kernel| kernel.pid())
    }
    fn pthread_create(thread: *mut libc::pthread_t, attributes: *const c_void, body: ThreadBody, argument: *mut c_void) -> c_int {
        if current().is_none() {
            return real::pthread_create(thread, attributes, body, argument);
        }
        create(thread, attributes, body, argument)
    }
    fn pthread_join(thread: libc::pthread_t, result: *mut *mut c_void) -> c_int {
        if current().is_none() {
            return real::pthread_join(thread, result);
        }
        join(thread, result)
    }
    fn pthread_mutex_lock(mutex: *mut c_void) -> c_int {
        if current().is_none() {
            return real::pthread_mutex_lock(mutex);
        }
        lock(mutex)
    }
    fn pthread_mutex_trylock(mutex: *mut c_void) -> c_int {
        let rc = real::pthread_mutex_trylock(mutex);
        if rc == 0 && current().is_some() {
            with(|kernel| {
                let me = kernel.current();
                kernel.tasks[me].mutexes += 1;
            });
        }
        rc
    }
    fn pthread_mutex_unlock(mutex: *mut c_void) -> c_int {
        let rc = real::pthread_mutex_unlock(mutex);
        if current().is_some() {
            with(|kernel| {
                let me = kernel.current();
                let held = &mut kernel.tasks[me].mutexes;
                *held = held.saturating_sub(1);
                kernel.wake(Key::Mutex(mutex as usize), usize::MAX);
            });
            stop_if_dead();
        }
        rc
    }
}

fn random(to: *mut c_void, length: usize) -> isize {
    // SAFETY: the caller's place for so many bytes.
    let to = unsafe { std::slice::from_raw_parts_mut(to.cast::<u8>(), length) };
    with(|kernel| {
        for byte in to {
            *byte = kernel.random.next() as u8;
        }
    });
    length as isize
}
