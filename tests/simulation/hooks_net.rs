//! Sockets and waiting for them: the C library's calls that this program's own definitions come before.

use std::ffi::{c_int, c_long, c_void};

use crate::fds::{self, Handle};
use crate::hooks;
use crate::kernel::{Key, MILLISECOND, block, current, step, stop_if_dead, with};
use crate::net::{self, Address};
use crate::real::{self, fail};

/// The socket behind a number, for a thread of the simulation.
fn socket_of(fd: c_int) -> Option<usize> {
    current()?;
    with(|kernel| fds::socket(kernel, fd))
}

/// Whether the call is to fail because its process is dead and only finishes something.
fn is_over() -> bool {
    step();
    stop_if_dead()
}

fn read_address(address: *const libc::sockaddr) -> Address {
    // SAFETY: all sockets here are IPv4, and so is what the caller passes.
    let address = unsafe { &*address.cast::<libc::sockaddr_in>() };
    (
        u32::from_be(address.sin_addr.s_addr),
        u16::from_be(address.sin_port),
    )
}

fn write_address(of: Address, address: *mut libc::sockaddr, length: *mut u32) -> c_int {
    if address.is_null() {
        return 0;
    }
    // SAFETY: the caller's places, of which the first is large enough for any address.
    unsafe {
        *address.cast::<libc::sockaddr_in>() = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: of.1.to_be(),
            sin_addr: libc::in_addr {
                s_addr: of.0.to_be(),
            },
            sin_zero: [0; 8],
        };
        *length = size_of::<libc::sockaddr_in>() as u32;
    }
    0
}

fn bytes<'a>(from: *const c_void, length: usize) -> &'a [u8] {
    // SAFETY: the caller's bytes.
    unsafe { std::slice::from_raw_parts(from.cast(), length) }
}

fn send_to(socket: usize, from: &[u8]) -> isize {
    if is_over() {
        return fail(libc::EPIPE);
    }
    match with(|kernel| net::send(kernel, socket, from)) {
        Ok(count) => count as isize,
        Err(error) => fail(error),
    }
}

fn receive_from(socket: usize, to: *mut c_void, length: usize) -> isize {
    if is_over() {
        return fail(libc::ECONNRESET);
    }
    match with(|kernel| net::receive(kernel, socket, length)) {
        Ok(found) => {
            // SAFETY: the caller's place has room for `length` bytes, and these are not more.
            unsafe { std::ptr::copy_nonoverlapping(found.as_ptr(), to.cast(), found.len()) };
            found.len() as isize
        }
        Err(error) => fail(error),
    }
}

/// A read of a number that is not a file.
pub fn read(fd: c_int, to: *mut c_void, length: usize) -> Option<isize> {
    match with(|kernel| fds::get(kernel, fd))? {
        Handle::Socket(socket) => Some(receive_from(socket, to, length)),
        Handle::Event(event) => {
            let count = with(|kernel| std::mem::take(&mut kernel.net.events[event]));
            if count == 0 {
                return Some(fail(libc::EAGAIN));
            }
            // SAFETY: who reads an eventfd has room for eight bytes.
            unsafe { to.cast::<u64>().write_unaligned(count) };
            Some(8)
        }
        _ => None,
    }
}

/// A write to a number that is not a file.
pub fn write(fd: c_int, from: *const c_void, length: usize) -> Option<isize> {
    match with(|kernel| fds::get(kernel, fd))? {
        Handle::Socket(socket) => Some(send_to(socket, bytes(from, length))),
        Handle::Event(event) => {
            with(|kernel| {
                kernel.net.events[event] += 1;
                fds::poke(kernel, Handle::Event(event));
            });
            step();
            Some(8)
        }
        _ => None,
    }
}

fn wait_for_events(
    epoll: usize,
    events: *mut libc::epoll_event,
    max: c_int,
    millis: c_int,
) -> c_int {
    step();
    stop_if_dead();
    let deadline = with(|kernel| {
        u64::try_from(millis)
            .ok()
            .map(|wait| kernel.now + wait * MILLISECOND)
    });
    loop {
        let found = with(|kernel| fds::changes(kernel, epoll, max as usize));
        let over = deadline.is_some_and(|deadline| with(|kernel| kernel.now >= deadline));
        if found.is_empty() && !over {
            block(Key::Epoll(epoll), deadline);
            stop_if_dead();
            continue;
        }
        for (index, (ready, data)) in found.iter().enumerate() {
            let event = libc::epoll_event {
                events: *ready,
                u64: *data,
            };
            // SAFETY: the caller's places, of which there are `max`.
            unsafe { events.add(index).write_unaligned(event) };
        }
        return found.len() as c_int;
    }
}

fn connect_to(socket: usize, address: *const libc::sockaddr) -> c_int {
    if !is_over() {
        with(|kernel| net::connect(kernel, socket, read_address(address)));
    }
    fail(libc::EINPROGRESS)
}

fn accept_from(listener: usize, address: *mut libc::sockaddr, length: *mut u32) -> c_int {
    if is_over() {
        return fail(libc::EAGAIN);
    }
    let accepted = with(|kernel| {
        let socket = net::accept(kernel, listener)?;
        let fd = fds::make(kernel, Handle::Socket(socket));
        Some((fd, kernel.net.sockets[socket].remote))
    });
    match accepted {
        Some((fd, remote)) => {
            write_address(remote, address, length);
            fd
        }
        None => fail(libc::EAGAIN),
    }
}

fn bind_to(socket: usize, address: Address) -> c_int {
    if is_over() {
        return fail(libc::EIO);
    }
    let taken = with(|kernel| {
        let taken = kernel.net.listener(address).is_some();
        kernel.net.sockets[socket].local = address;
        taken
    });
    if taken { fail(libc::EADDRINUSE) } else { 0 }
}

fn make_epoll() -> c_int {
    with(|kernel| {
        kernel.net.epolls.push(fds::Epoll::default());
        let epoll = kernel.net.epolls.len() - 1;
        fds::make(kernel, Handle::Epoll(epoll))
    })
}

fn watch(epoll: usize, what: c_int, fd: c_int, event: *mut libc::epoll_event) -> c_int {
    // SAFETY: null, or the caller's event.
    let event = unsafe { event.as_ref() }.map_or((0, 0), |event| (event.events, event.u64));
    with(|kernel| fds::control(kernel, epoll, what, fd, event));
    0
}

fn epoll_of(fd: c_int) -> Option<usize> {
    current()?;
    match with(|kernel| fds::get(kernel, fd)) {
        Some(Handle::Epoll(epoll)) => Some(epoll),
        _ => None,
    }
}

/// `fcntl` on what is not a file.
fn control(fd: c_int, command: c_int) -> Option<c_int> {
    current()?;
    let handle = with(|kernel| fds::get(kernel, fd))?;
    match (handle, command) {
        (Handle::File(_) | Handle::Dir(_), _) => None,
        (_, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) => {
            Some(with(|kernel| fds::make(kernel, handle)))
        }
        (_, libc::F_GETFL) => Some(libc::O_RDWR | libc::O_NONBLOCK),
        _ => Some(0),
    }
}

hooks! {
    fn eventfd(count: u32, flags: c_int) -> c_int {
        if current().is_none() {
            return real::eventfd(count, flags);
        }
        with(|kernel| {
            kernel.net.events.push(u64::from(count));
            let event = kernel.net.events.len() - 1;
            fds::make(kernel, Handle::Event(event))
        })
    }
    fn epoll_create1(flags: c_int) -> c_int {
        if current().is_none() {
            return real::epoll_create1(flags);
        }
        make_epoll()
    }
    fn epoll_ctl(epoll: c_int, what: c_int, fd: c_int, event: *mut libc::epoll_event) -> c_int {
        match epoll_of(epoll) {
            Some(epoll) => watch(epoll, what, fd, event),
            None => real::epoll_ctl(epoll, what, fd, event),
        }
    }
    fn epoll_wait(epoll: c_int, events: *mut libc::epoll_event, max: c_int, millis: c_int) -> c_int {
        match epoll_of(epoll) {
            Some(epoll) => wait_for_events(epoll, events, max, millis),
            None => real::epoll_wait(epoll, events, max, millis),
        }
    }
    fn socket(family: c_int, kind: c_int, protocol: c_int) -> c_int {
        if current().is_none() || family != libc::AF_INET {
            return real::socket(family, kind, protocol);
        }
        with(|kernel| {
            let socket = net::new_socket(kernel);
            fds::make(kernel, Handle::Socket(socket))
        })
    }
    fn bind(fd: c_int, address: *const libc::sockaddr, length: u32) -> c_int {
        match socket_of(fd) {
            Some(socket) => bind_to(socket, read_address(address)),
            None => real::bind(fd, address, length),
        }
    }
    fn listen(fd: c_int, backlog: c_int) -> c_int {
        match socket_of(fd) {
            Some(socket) => {
                with(|kernel| kernel.net.sockets[socket].listens = true);
                0
            }
            None => real::listen(fd, backlog),
        }
    }
    fn accept4(fd: c_int, address: *mut libc::sockaddr, length: *mut u32, flags: c_int) -> c_int {
        match socket_of(fd) {
            Some(socket) => accept_from(socket, address, length),
            None => real::accept4(fd, address, length, flags),
        }
    }
    fn connect(fd: c_int, address: *const libc::sockaddr, length: u32) -> c_int {
        match socket_of(fd) {
            Some(socket) => connect_to(socket, address),
            None => real::connect(fd, address, length),
        }
    }
    fn getsockname(fd: c_int, address: *mut libc::sockaddr, length: *mut u32) -> c_int {
        match socket_of(fd) {
            Some(socket) => write_address(with(|kernel| kernel.net.sockets[socket].local), address, length),
            None => real::getsockname(fd, address, length),
        }
    }
    fn getpeername(fd: c_int, address: *mut libc::sockaddr, length: *mut u32) -> c_int {
        match socket_of(fd) {
            Some(socket) if with(|kernel| kernel.net.sockets[socket].connected) => {
                write_address(with(|kernel| kernel.net.sockets[socket].remote), address, length)
            }
            Some(_) => fail(libc::ENOTCONN),
            None => real::getpeername(fd, address, length),
        }
    }
    fn getsockopt(fd: c_int, level: c_int, option: c_int, value: *mut c_void, length: *mut u32) -> c_int {
        let Some(socket) = socket_of(fd) else {
            return real::getsockopt(fd, level, option, value, length);
        };
        let found = match option {
            libc::SO_ERROR => with(|kernel| net::take_error(kernel, socket)),
            _ => 0,
        };
        // SAFETY: the options that are asked for are numbers of this size.
        unsafe { *value.cast::<c_int>() = found };
        0
    }
    fn setsockopt(fd: c_int, level: c_int, option: c_int, value: *const c_void, length: u32) -> c_int {
        match socket_of(fd) {
            Some(_) => 0,
            None => real::setsockopt(fd, level, option, value, length),
        }
    }
    fn shutdown(fd: c_int, how: c_int) -> c_int {
        match socket_of(fd) {
            Some(socket) => {
                if !is_over() && how != libc::SHUT_RD {
                    with(|kernel| net::end(kernel, socket));
                }
                0
            }
            None => real::shutdown(fd, how),
        }
    }
    fn send(fd: c_int, from: *const c_void, length: usize, flags: c_int) -> isize {
        match socket_of(fd) {
            Some(socket) => send_to(socket, bytes(from, length)),
            None => real::send(fd, from, length, flags),
        }
    }
    fn recv(fd: c_int, to: *mut c_void, length: usize, flags: c_int) -> isize {
        match socket_of(fd) {
            Some(socket) => receive_from(socket, to, length),
            None => real::recv(fd, to, length, flags),
        }
    }
    fn readv(fd: c_int, parts: *const libc::iovec, count: c_int) -> isize {
        match socket_of(fd) {
            // SAFETY: the caller passes at least one place to read to.
            Some(socket) => receive_from(socket, unsafe { (*parts).iov_base }, unsafe { (*parts).iov_len }),
            None => real::readv(fd, parts, count),
        }
    }
    fn writev(fd: c_int, parts: *const libc::iovec, count: c_int) -> isize {
        let Some(socket) = socket_of(fd) else {
            return real::writev(fd, parts, count);
        };
        // SAFETY: the caller's parts, `count` of them.
        let parts = unsafe { std::slice::from_raw_parts(parts, count as usize) };
        let whole: Vec<u8> = parts
            .iter()
            .flat_map(|part| bytes(part.iov_base, part.iov_len))
            .copied()
            .collect();
        send_to(socket, &whole)
    }
    fn ioctl(fd: c_int, request: u64, argument: *mut c_void) -> c_int {
        match socket_of(fd) {
            Some(_) => 0,
            None => real::ioctl(fd, request, argument),
        }
    }
    fn fcntl(fd: c_int, command: c_int, argument: c_long) -> c_int {
        control(fd, command).unwrap_or_else(|| real::fcntl(fd, command, argument))
    }
    fn fcntl64(fd: c_int, command: c_int, argument: c_long) -> c_int {
        control(fd, command).unwrap_or_else(|| real::fcntl64(fd, command, argument))
    }
}
