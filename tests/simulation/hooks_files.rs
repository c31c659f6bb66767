//! Files: the C library's calls that this program's own definitions come before. They reach real files; what they change is
//! written down, may fail, and takes time.

use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::fds::{self, Handle};
use crate::hooks;
use crate::hooks_net;
use crate::kernel::{Kernel, Key, PartyId, block, current, step, stop_if_dead, with};
use crate::real::{self, fail};

/// What a call would do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Look,
    /// It needs room.
    Grow,
    Other,
}

/// A party, and a name on its disk; none for what is not simulated.
fn named(path: *const c_char) -> Option<(PartyId, String)> {
    current()?;
    // SAFETY: paths end with a zero byte.
    let path = Path::new(OsStr::from_bytes(
        unsafe { CStr::from_ptr(path) }.to_bytes(),
    ));
    with(|kernel| {
        let party = kernel.party();
        let name = kernel.disks[party].name_of(path)?;
        Some((party, name))
    })
}

fn named_at(dir: c_int, path: *const c_char) -> Option<(PartyId, String)> {
    let (party, Handle::Dir(dir)) = handle_of(dir)? else {
        return named(path);
    };
    // SAFETY: paths end with a zero byte.
    let rest = unsafe { CStr::from_ptr(path) }.to_str().ok()?;
    if rest.starts_with('/') {
        return named(path);
    }
    with(|kernel| {
        Some((
            party,
            format!("{}/{rest}", kernel.disks[party].dir_name(dir)),
        ))
    })
}

fn handle_of(fd: c_int) -> Option<(PartyId, Handle)> {
    current()?;
    with(|kernel| {
        let handle = fds::get(kernel, fd)?;
        Some((kernel.party(), handle))
    })
}

/// A call begins: the error with which it fails.
fn verdict(act: Act) -> Option<c_int> {
    step();
    if stop_if_dead() {
        return Some(libc::EIO);
    }
    with(|kernel| {
        let party = kernel.party();
        let it = &mut kernel.parties[party];
        if it.full && act == Act::Grow {
            return Some(libc::ENOSPC);
        }
        match &mut it.fault {
            Some(0) => {
                it.fault = None;
                kernel.tell(|| format!("party {party}: a call on its files fails"));
                Some(libc::EIO)
            }
            Some(calls) => {
                *calls -= 1;
                None
            }
            None => None,
        }
    })
}

fn opened(kernel: &mut Kernel, party: PartyId, name: &str, fd: c_int, flags: c_int) {
    let now = kernel.now;
    let disk = &mut kernel.disks[party];
    if name.is_empty() || disk.root.join(name).is_dir() {
        let dir = disk.opened_dir(name);
        fds::put(kernel, fd, Handle::Dir(dir));
        return;
    }
    let was_known = disk.is_known(name);
    let file = disk.opened(name, now);
    if flags & libc::O_TRUNC != 0 && was_known {
        disk.truncated(file, 0, now);
    }
    if !was_known {
        kernel.tell(|| format!("party {party} makes {name}"));
    }
    fds::put(kernel, fd, Handle::File(file));
}

fn open_named(
    (party, name): (PartyId, String),
    flags: c_int,
    open: impl FnOnce() -> c_int,
) -> c_int {
    let known = with(|kernel| kernel.disks[party].is_known(&name));
    let act = if flags & libc::O_CREAT != 0 && !known {
        Act::Grow
    } else {
        Act::Look
    };
    if let Some(error) = verdict(act) {
        return fail(error);
    }
    let fd = open();
    if fd >= 0 {
        with(|kernel| opened(kernel, party, &name, fd, flags));
    }
    fd
}

fn write_file(
    (party, handle): (PartyId, Handle),
    from: *const c_void,
    length: usize,
    offset: i64,
    write: impl FnOnce(usize) -> isize,
) -> isize {
    let Handle::File(file) = handle else {
        return write(length);
    };
    let verdict = verdict(Act::Grow);
    // A part of it has found room, or it has not.
    let allowed = match verdict {
        None => length,
        Some(libc::ENOSPC) if length > 1 && with(|kernel| kernel.random.one_in(2)) => length / 2,
        Some(error) => return fail(error),
    };
    let written = write(allowed);
    if let Ok(count) = usize::try_from(written) {
        // SAFETY: the caller's bytes, of which so many were written.
        let bytes = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), count) };
        with(|kernel| {
            let now = kernel.now;
            kernel.disks[party].written(file, offset as u64, bytes, now);
            kernel.mix(count as u64);
        });
    }
    written
}

fn truncate(fd: c_int, length: i64) -> c_int {
    let Some((party, Handle::File(file))) = handle_of(fd) else {
        return real::ftruncate64(fd, length);
    };
    if let Some(error) = verdict(Act::Other) {
        return fail(error);
    }
    let rc = real::ftruncate64(fd, length);
    if rc == 0 {
        with(|kernel| {
            let now = kernel.now;
            kernel.disks[party].truncated(file, length as u64, now);
        });
    }
    rc
}

fn sync(fd: c_int, original: impl FnOnce() -> c_int) -> c_int {
    let Some((party, handle)) = handle_of(fd) else {
        return original();
    };
    if let Some(error) = verdict(Act::Other) {
        return fail(error);
    }
    // What comes while it lasts may be left out.
    let (changes, until) = with(|kernel| {
        let max = kernel.parties[party].sync_max;
        let takes = kernel.random.skewed(max);
        (kernel.disks[party].unsynced(handle), kernel.now + takes)
    });
    block(Key::Sleep, Some(until));
    if stop_if_dead() {
        return fail(libc::EIO);
    }
    with(|kernel| {
        let disk = &mut kernel.disks[party];
        match handle {
            Handle::File(file) => disk.synced(file, changes),
            Handle::Dir(dir) => {
                let name = disk.dir_name(dir).to_string();
                disk.synced_dir(&name, changes);
            }
            _ => {}
        }
        kernel.tell(|| format!("party {party} has synced {handle:?}"));
    });
    0
}

/// A call that changes names.
fn rename_things(
    names: Option<(PartyId, String)>,
    call: impl FnOnce() -> c_int,
    note: impl FnOnce(&mut crate::disk::Disk, &str),
) -> c_int {
    let Some((party, name)) = names else {
        return call();
    };
    if let Some(error) = verdict(Act::Other) {
        return fail(error);
    }
    let rc = call();
    if rc == 0 {
        with(|kernel| {
            note(&mut kernel.disks[party], &name);
            kernel.tell(|| format!("party {party} changes the name {name}"));
        });
    }
    rc
}

/// Another device for each life of each party, for SQLite: it takes all files of one process that are the same by device and
/// number for one, with all locks, also those of a dead life.
fn set_device(found: *mut libc::stat64) {
    if current().is_some() {
        let device = with(|kernel| {
            let party = kernel.party();
            party as u64 * 100_000 + u64::from(kernel.parties[party].life)
        });
        // SAFETY: the call before has filled the caller's place.
        unsafe { (*found).st_dev = device };
    }
}

fn close_one(fd: c_int) -> c_int {
    if current().is_none() {
        return real::close(fd);
    }
    // The system has closed the files of a dead process; by now another may have the number.
    if stop_if_dead() {
        return 0;
    }
    with(|kernel| fds::close(kernel, fd));
    real::close(fd)
}

fn read_or_pass(fd: c_int, to: *mut c_void, length: usize) -> isize {
    if current().is_some()
        && let Some(count) = hooks_net::read(fd, to, length)
    {
        return count;
    }
    real::read(fd, to, length)
}

fn write_or_pass(fd: c_int, from: *const c_void, length: usize) -> isize {
    let Some(handle) = handle_of(fd) else {
        return real::write(fd, from, length);
    };
    if let Some(count) = hooks_net::write(fd, from, length) {
        return count;
    }
    // SAFETY: asks where the file stands, and changes nothing.
    let offset = unsafe { libc::lseek64(fd, 0, libc::SEEK_CUR) };
    write_file(handle, from, length, offset, |length| {
        real::write(fd, from, length)
    })
}

fn write_at(fd: c_int, from: *const c_void, length: usize, offset: i64) -> isize {
    let write = |length| real::pwrite64(fd, from, length, offset);
    match handle_of(fd) {
        Some(handle) => write_file(handle, from, length, offset, write),
        None => write(length),
    }
}

hooks! {
    fn open(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
        match named(path) {
            Some(name) => open_named(name, flags, || real::open(path, flags, mode)),
            None => real::open(path, flags, mode),
        }
    }
    fn open64(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
        match named(path) {
            Some(name) => open_named(name, flags, || real::open64(path, flags, mode)),
            None => real::open64(path, flags, mode),
        }
    }
    fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: c_int) -> c_int {
        match named_at(dir, path) {
            Some(name) => open_named(name, flags, || real::openat(dir, path, flags, mode)),
            None => real::openat(dir, path, flags, mode),
        }
    }
    fn openat64(dir: c_int, path: *const c_char, flags: c_int, mode: c_int) -> c_int {
        match named_at(dir, path) {
            Some(name) => open_named(name, flags, || real::openat64(dir, path, flags, mode)),
            None => real::openat64(dir, path, flags, mode),
        }
    }
    fn close(fd: c_int) -> c_int {
        close_one(fd)
    }
    fn read(fd: c_int, to: *mut c_void, length: usize) -> isize {
        read_or_pass(fd, to, length)
    }
    fn write(fd: c_int, from: *const c_void, length: usize) -> isize {
        write_or_pass(fd, from, length)
    }
    fn pwrite(fd: c_int, from: *const c_void, length: usize, offset: i64) -> isize {
        write_at(fd, from, length, offset)
    }
    fn pwrite64(fd: c_int, from: *const c_void, length: usize, offset: i64) -> isize {
        write_at(fd, from, length, offset)
    }
    fn ftruncate(fd: c_int, length: i64) -> c_int {
        truncate(fd, length)
    }
    fn ftruncate64(fd: c_int, length: i64) -> c_int {
        truncate(fd, length)
    }
    fn fsync(fd: c_int) -> c_int {
        sync(fd, || real::fsync(fd))
    }
    fn fdatasync(fd: c_int) -> c_int {
        sync(fd, || real::fdatasync(fd))
    }
    fn unlink(path: *const c_char) -> c_int {
        rename_things(named(path), || real::unlink(path), crate::disk::Disk::removed)
    }
    fn unlinkat(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
        rename_things(named_at(dir, path), || real::unlinkat(dir, path, flags), |disk, name| {
            if flags & libc::AT_REMOVEDIR != 0 {
                disk.removed_dir(name);
            } else {
                disk.removed(name);
            }
        })
    }
    fn rename(from: *const c_char, to: *const c_char) -> c_int {
        let target = named(to).map(|(_, name)| name).unwrap_or_default();
        rename_things(named(from), || real::rename(from, to), |disk, name| disk.renamed(name, &target))
    }
    fn mkdir(path: *const c_char, mode: u32) -> c_int {
        rename_things(named(path), || real::mkdir(path, mode), crate::disk::Disk::made_dir)
    }
    fn rmdir(path: *const c_char) -> c_int {
        rename_things(named(path), || real::rmdir(path), crate::disk::Disk::removed_dir)
    }
    fn copy_file_range(from: c_int, from_at: *mut i64, to: c_int, to_at: *mut i64, length: usize, flags: u32) -> isize {
        if current().is_none() {
            return real::copy_file_range(from, from_at, to, to_at, length, flags);
        }
        // Then it is read and written.
        fail(libc::ENOSYS)
    }
    fn fstat64(fd: c_int, found: *mut libc::stat64) -> c_int {
        let rc = real::fstat64(fd, found);
        if rc == 0 {
            set_device(found);
        }
        rc
    }
    fn stat64(path: *const c_char, found: *mut libc::stat64) -> c_int {
        let rc = real::stat64(path, found);
        if rc == 0 {
            set_device(found);
        }
        rc
    }
    fn statx(dir: c_int, path: *const c_char, flags: c_int, mask: u32, found: *mut libc::statx) -> c_int {
        let rc = real::statx(dir, path, flags, mask, found);
        if rc == 0 && let Some((party, name)) = named_at(dir, path) {
            let modified = with(|kernel| kernel.disks[party].modified(&name));
            if let Some(modified) = modified {
                // SAFETY: the call has filled the caller's place.
                unsafe {
                    (*found).stx_mtime.tv_sec = (modified / 1_000_000_000) as i64;
                    (*found).stx_mtime.tv_nsec = (modified % 1_000_000_000) as u32;
                }
            }
        }
        rc
    }
}
