//! What numbers stand for: sockets, files, and what is watched for becoming ready.

use std::collections::BTreeMap;
use std::ffi::c_int;

use crate::kernel::{Death, Kernel, Key, PartyId};
use crate::{net, real};

/// What a number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handle {
    Socket(usize),
    Event(usize),
    Epoll(usize),
    /// A file of a party's disk, by its number there.
    File(u32),
    /// A directory of a party's disk, by its number there.
    Dir(u32),
}

#[derive(Clone, Copy, Debug)]
pub struct Fd {
    pub party: PartyId,
    pub handle: Handle,
}

/// A set of handles that are watched; each change counts once.
#[derive(Default)]
pub struct Epoll {
    interests: BTreeMap<c_int, Interest>,
}

struct Interest {
    events: u32,
    data: u64,
    handle: Handle,
    changed: bool,
}

/// A number made by the system, so that nobody else gets it, that stands for `handle` here.
pub fn make(kernel: &mut Kernel, handle: Handle) -> c_int {
    let fd = real::eventfd(0, libc::EFD_CLOEXEC);
    assert!(fd >= 0, "no file descriptors left");
    put(kernel, fd, handle);
    fd
}

pub fn put(kernel: &mut Kernel, fd: c_int, handle: Handle) {
    let at = fd as usize;
    if kernel.fds.len() <= at {
        kernel.fds.resize(at + 1, None);
    }
    let party = kernel.party();
    kernel.fds[at] = Some(Fd { party, handle });
}

pub fn get(kernel: &Kernel, fd: c_int) -> Option<Handle> {
    let fd = usize::try_from(fd).ok()?;
    kernel
        .fds
        .get(fd)
        .copied()
        .flatten()
        .map(|found| found.handle)
}

pub fn socket(kernel: &Kernel, fd: c_int) -> Option<usize> {
    match get(kernel, fd) {
        Some(Handle::Socket(socket)) => Some(socket),
        _ => None,
    }
}

/// The number is given back; true if it was one of ours.
pub fn close(kernel: &mut Kernel, fd: c_int) -> bool {
    let Some(handle) = get(kernel, fd) else {
        return false;
    };
    kernel.fds[fd as usize] = None;
    for epoll in &mut kernel.net.epolls {
        epoll.interests.remove(&fd);
    }
    if let Handle::Socket(socket) = handle {
        net::close(kernel, socket);
    }
    true
}

/// A process has ended, or its machine.
pub fn close_all(kernel: &mut Kernel, party: PartyId, death: Death) {
    for fd in 0..kernel.fds.len() {
        let Some(found) = kernel.fds[fd].filter(|found| found.party == party) else {
            continue;
        };
        kernel.fds[fd] = None;
        if let Handle::Socket(socket) = found.handle {
            match death {
                Death::Kill => net::reset(kernel, socket),
                Death::PowerCut => net::vanish(kernel, socket),
            }
        }
        real::close(fd as c_int);
    }
}

/// Something has changed with `handle`: whoever watches it hears of it.
pub fn poke(kernel: &mut Kernel, handle: Handle) {
    let mut woken = Vec::new();
    for (id, epoll) in kernel.net.epolls.iter_mut().enumerate() {
        for interest in epoll.interests.values_mut() {
            if interest.handle == handle {
                interest.changed = true;
                woken.push(id);
            }
        }
    }
    for id in woken {
        kernel.wake(Key::Epoll(id), usize::MAX);
    }
}

/// What `handle` is ready for.
fn readiness(kernel: &Kernel, handle: Handle) -> u32 {
    match handle {
        Handle::Socket(socket) => net::readiness(kernel, socket),
        Handle::Event(event) if kernel.net.events[event] > 0 => libc::EPOLLIN as u32,
        _ => 0,
    }
}

pub fn control(kernel: &mut Kernel, epoll: usize, what: c_int, fd: c_int, event: (u32, u64)) {
    if what == libc::EPOLL_CTL_DEL {
        kernel.net.epolls[epoll].interests.remove(&fd);
        return;
    }
    // What is not ours is never ready: the pipe of the signals, say.
    let Some(handle) = get(kernel, fd) else {
        return;
    };
    let interest = Interest {
        events: event.0,
        data: event.1,
        handle,
        changed: true,
    };
    kernel.net.epolls[epoll].interests.insert(fd, interest);
    kernel.wake(Key::Epoll(epoll), usize::MAX);
}

/// What is ready and was not told since it last changed.
pub fn changes(kernel: &mut Kernel, epoll: usize, max: usize) -> Vec<(u32, u64)> {
    let mut found = Vec::new();
    let changed: Vec<c_int> = kernel.net.epolls[epoll]
        .interests
        .iter()
        .filter(|(_, interest)| interest.changed)
        .map(|(fd, _)| *fd)
        .collect();
    for fd in changed {
        if found.len() == max {
            break;
        }
        let handle = kernel.net.epolls[epoll].interests[&fd].handle;
        let ready = readiness(kernel, handle);
        let interest = kernel.net.epolls[epoll].interests.get_mut(&fd).unwrap();
        interest.changed = false;
        let always = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
        let ready = ready & (interest.events | always);
        if ready != 0 {
            found.push((ready, interest.data));
        }
    }
    found
}
