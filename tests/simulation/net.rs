//! The network: connections as streams of bytes that take their time, stand still, break off at any byte, go silent, or come
//! a second time. Within one connection bytes neither get lost nor change places: TCP sees to that.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::c_int;

use crate::fds::{Epoll, Handle, poke};
use crate::kernel::{Kernel, MILLISECOND, PartyId, SECOND};
use crate::oracle::Place;
use mycelite::status::PosStatus;

/// Bytes of one connection that are under way or wait to be read, at most.
const WINDOW_MAX: usize = 32 * 1024;
/// What is kept of what a client said, to say it again.
const SAID_MAX: usize = 128 * 1024;
/// So many streams of clients are kept.
const STREAMS_MAX: usize = 32;

/// Address and port, both as numbers.
pub type Address = (u32, u16);

/// The address of a party: on a loopback net, since a server without tokens serves nobody else.
pub fn address_of(party: PartyId) -> u32 {
    u32::from_be_bytes([127, 0, 0, 10 + party as u8])
}

#[derive(Default)]
pub struct Socket {
    pub party: PartyId,
    pub local: Address,
    pub remote: Address,
    pub listens: bool,
    pub connected: bool,
    connecting: bool,
    closed: bool,
    peer: Option<usize>,
    backlog: VecDeque<usize>,
    arrived: VecDeque<u8>,
    /// Nothing more will come.
    ended: bool,
    error: c_int,
    /// Sent from here and not read there yet.
    under_way: usize,
    last_arrival: u64,
    /// After so many bytes sent from here the connection breaks.
    breaks_after: Option<u64>,
    sent: u64,
    /// Nothing from here arrives any more, and nobody is told.
    silent: bool,
    /// What a client said.
    said: Vec<u8>,
    /// Says what another has said before.
    echo: Vec<u8>,
}

enum Event {
    Syn { client: usize },
    Accepted { client: usize },
    Refused { client: usize },
    Data { from: usize, bytes: Vec<u8> },
    End { from: usize },
    Reset { to: usize },
}

/// How two parties are connected.
#[derive(Clone, Copy)]
pub struct Link {
    pub down: bool,
    pub latency: u64,
    pub bytes_per_second: u64,
    /// Of so many new connections one breaks at some byte; 0: none.
    pub breaks_one_in: u64,
}

impl Default for Link {
    fn default() -> Link {
        Link {
            down: false,
            latency: MILLISECOND,
            bytes_per_second: 100 << 20,
            breaks_one_in: 0,
        }
    }
}

#[derive(Default)]
pub struct Net {
    pub sockets: Vec<Socket>,
    pub epolls: Vec<Epoll>,
    /// Counters of eventfds.
    pub events: Vec<u64>,
    under_way: BTreeMap<(u64, u64), Event>,
    /// What waits for a link to come back.
    held: Vec<Event>,
    links: BTreeMap<(PartyId, PartyId), Link>,
    /// What clients said: where, and the bytes.
    pub streams: VecDeque<(Address, Vec<u8>)>,
    order: u64,
    port: u16,
    /// Connections that were broken.
    pub broken: u64,
    pub echoes: u64,
}

impl Net {
    pub fn next_event(&self) -> Option<u64> {
        self.under_way.keys().next().map(|(time, _)| *time)
    }

    pub fn link(&mut self, a: PartyId, b: PartyId) -> &mut Link {
        self.links.entry((a.min(b), a.max(b))).or_default()
    }

    pub fn links(&mut self) -> impl Iterator<Item = &mut Link> {
        self.links.values_mut()
    }

    fn add(&mut self, time: u64, event: Event) {
        self.order += 1;
        self.under_way.insert((time, self.order), event);
    }

    fn party_at(&self, address: u32) -> PartyId {
        address.wrapping_sub(address_of(0)) as PartyId
    }

    /// The parties that an event goes between.
    fn ends(&self, event: &Event) -> (PartyId, PartyId) {
        let client = |id: usize| {
            let socket = &self.sockets[id];
            (socket.party, self.party_at(socket.remote.0))
        };
        match event {
            Event::Syn { client: id }
            | Event::Accepted { client: id }
            | Event::Refused { client: id } => client(*id),
            Event::Data { from, .. } | Event::End { from } => client(*from),
            Event::Reset { to } => client(*to),
        }
    }

    /// Links that came back bring what waited.
    pub fn release(&mut self, now: u64) {
        for event in std::mem::take(&mut self.held) {
            self.add(now + MILLISECOND, event);
        }
    }

    pub fn listener(&self, at: Address) -> Option<usize> {
        let found = |socket: &Socket| socket.listens && !socket.closed && socket.local == at;
        self.sockets.iter().position(found)
    }

    pub fn free_port(&mut self) -> u16 {
        self.port = self.port.max(40_000) + 1;
        self.port
    }
}

/// When something sent from `from` now arrives, after all that was sent before it.
fn arrival(kernel: &mut Kernel, from: usize, bytes: usize) -> u64 {
    let (a, b) = {
        let socket = &kernel.net.sockets[from];
        (socket.party, kernel.net.party_at(socket.remote.0))
    };
    let link = *kernel.net.link(a, b);
    let wait = link.latency + kernel.random.below(link.latency + 1);
    let takes = bytes as u64 * SECOND / link.bytes_per_second.max(1);
    let socket = &mut kernel.net.sockets[from];
    let time = (kernel.now + wait).max(socket.last_arrival) + takes;
    socket.last_arrival = time;
    time
}

fn send_event(kernel: &mut Kernel, from: usize, bytes: usize, event: Event) {
    let time = arrival(kernel, from, bytes);
    kernel.net.add(time, event);
}

pub fn new_socket(kernel: &mut Kernel) -> usize {
    let party = kernel.party();
    kernel.net.sockets.push(Socket {
        party,
        ..Socket::default()
    });
    kernel.net.sockets.len() - 1
}

pub fn connect(kernel: &mut Kernel, id: usize, to: Address) {
    let port = kernel.net.free_port();
    let socket = &mut kernel.net.sockets[id];
    socket.local = (address_of(socket.party), port);
    socket.remote = to;
    socket.connecting = true;
    send_event(kernel, id, 0, Event::Syn { client: id });
}

pub fn accept(kernel: &mut Kernel, listener: usize) -> Option<usize> {
    kernel.net.sockets[listener].backlog.pop_front()
}

pub fn send(kernel: &mut Kernel, id: usize, bytes: &[u8]) -> Result<usize, c_int> {
    let socket = &mut kernel.net.sockets[id];
    if socket.error != 0 {
        return Err(std::mem::take(&mut socket.error));
    }
    if !socket.connected || socket.peer.is_none() {
        return Err(libc::EPIPE);
    }
    let room = WINDOW_MAX.saturating_sub(socket.under_way);
    if room == 0 {
        return Err(libc::EAGAIN);
    }
    let party = socket.party;
    if let Some(pos) = position_in(bytes) {
        crate::check::said(kernel, party, pos);
    }
    let mut count = bytes.len().min(room);
    // Not all of it at once: a part of a record, a part of a head.
    if kernel.random.one_in(4) {
        count = 1 + kernel.random.below(count as u64) as usize;
    }
    let socket = &mut kernel.net.sockets[id];
    let mut cut = None;
    let sent = socket.sent;
    if let Some(limit) = socket
        .breaks_after
        .take_if(|limit| sent + count as u64 > *limit)
    {
        cut = Some((limit - sent) as usize);
    }
    socket.sent += count as u64;
    socket.under_way += count;
    let whole = &bytes[..count];
    let part = &whole[..cut.unwrap_or(count)];
    if socket.said.len() + part.len() <= SAID_MAX {
        socket.said.extend_from_slice(part);
    }
    if !socket.silent && !part.is_empty() {
        let event = Event::Data {
            from: id,
            bytes: part.to_vec(),
        };
        send_event(kernel, id, count, event);
    }
    if cut.is_some() {
        break_off(kernel, id);
    }
    Ok(count)
}

/// The position that an answer names: that of an acknowledgement, or of a place in the history.
fn position_in(answer: &[u8]) -> Option<Place> {
    let rest = answer.strip_prefix(b"HTTP/1.1 200 OK\r\n")?;
    let body = rest.windows(4).position(|end| end == b"\r\n\r\n")?;
    let pos: PosStatus = serde_json::from_slice(&rest[body + 4..]).ok()?;
    let checksum = u64::from_str_radix(&pos.checksum, 16).ok()?;
    Some((pos.timeline, pos.txid, checksum))
}

/// What has arrived goes to whoever reads.
pub fn receive(kernel: &mut Kernel, id: usize, max: usize) -> Result<Vec<u8>, c_int> {
    let socket = &mut kernel.net.sockets[id];
    if socket.arrived.is_empty() {
        if socket.error != 0 {
            return Err(std::mem::take(&mut socket.error));
        }
        if socket.ended || !socket.connected {
            return Ok(Vec::new());
        }
        return Err(libc::EAGAIN);
    }
    let count = max.min(socket.arrived.len());
    let bytes: Vec<u8> = socket.arrived.drain(..count).collect();
    if let Some(peer) = socket.peer {
        let sender = &mut kernel.net.sockets[peer];
        let was_full = sender.under_way >= WINDOW_MAX;
        sender.under_way = sender.under_way.saturating_sub(count);
        if was_full {
            poke(kernel, Handle::Socket(peer));
        }
    }
    Ok(bytes)
}

pub fn take_error(kernel: &mut Kernel, id: usize) -> c_int {
    std::mem::take(&mut kernel.net.sockets[id].error)
}

/// Nothing more will be sent from here.
pub fn end(kernel: &mut Kernel, id: usize) {
    if kernel.net.sockets[id].connected && !kernel.net.sockets[id].silent {
        send_event(kernel, id, 0, Event::End { from: id });
    }
}

pub fn close(kernel: &mut Kernel, id: usize) {
    end(kernel, id);
    let socket = &mut kernel.net.sockets[id];
    socket.closed = true;
    socket.listens = false;
    keep_stream(kernel, id);
    let waiting = std::mem::take(&mut kernel.net.sockets[id].backlog);
    for accepted in waiting {
        reset(kernel, accepted);
    }
}

fn keep_stream(kernel: &mut Kernel, id: usize) {
    let socket = &mut kernel.net.sockets[id];
    let said = std::mem::take(&mut socket.said);
    let (to, is_client) = (socket.remote, socket.local.1 >= 40_000);
    if said.is_empty() || !is_client {
        return;
    }
    if kernel.net.streams.len() >= STREAMS_MAX {
        kernel.net.streams.pop_front();
    }
    kernel.net.streams.push_back((to, said));
}

/// The process behind a socket has ended: the other side is told.
pub fn reset(kernel: &mut Kernel, id: usize) {
    keep_stream(kernel, id);
    let socket = &mut kernel.net.sockets[id];
    (socket.closed, socket.listens, socket.connected) = (true, false, false);
    let (peer, silent) = (socket.peer, socket.silent);
    if let Some(peer) = peer.filter(|_| !silent) {
        send_event(kernel, id, 0, Event::Reset { to: peer });
    }
    for accepted in std::mem::take(&mut kernel.net.sockets[id].backlog) {
        reset(kernel, accepted);
    }
}

/// The machine behind a socket has gone: nobody is told, until it is asked.
pub fn vanish(kernel: &mut Kernel, id: usize) {
    keep_stream(kernel, id);
    let socket = &mut kernel.net.sockets[id];
    (socket.closed, socket.listens, socket.connected) = (true, false, false);
    for accepted in std::mem::take(&mut kernel.net.sockets[id].backlog) {
        vanish(kernel, accepted);
    }
}

/// The line breaks: both sides hear of it, what is under way is lost.
pub fn break_off(kernel: &mut Kernel, id: usize) {
    let Some(peer) = kernel.net.sockets[id].peer else {
        return;
    };
    kernel.net.broken += 1;
    kernel.tell(|| format!("connection {id} breaks"));
    send_event(kernel, id, 0, Event::Reset { to: peer });
    send_event(kernel, peer, 0, Event::Reset { to: id });
}

/// Connections that could be broken.
pub fn open_connections(kernel: &Kernel) -> Vec<usize> {
    let sockets = kernel.net.sockets.iter().enumerate();
    let open = |socket: &Socket| socket.connected && !socket.closed && socket.peer.is_some();
    sockets
        .filter(|(_, socket)| open(socket))
        .map(|(id, _)| id)
        .collect()
}

/// Nothing goes through this connection any more in either direction, and nobody is told.
pub fn silence(kernel: &mut Kernel, id: usize) {
    kernel.tell(|| format!("connection {id} goes silent"));
    let peer = kernel.net.sockets[id].peer;
    for id in [Some(id), peer].into_iter().flatten() {
        kernel.net.sockets[id].silent = true;
    }
}

/// What a client said once is said again, by nobody.
pub fn say_again(kernel: &mut Kernel) {
    if kernel.net.streams.is_empty() {
        return;
    }
    let index = kernel.random.below(kernel.net.streams.len() as u64) as usize;
    let (to, echo) = kernel.net.streams[index].clone();
    kernel.tell(|| format!("{} bytes are said again", echo.len()));
    kernel.net.echoes += 1;
    kernel.net.sockets.push(Socket {
        echo,
        ..Socket::default()
    });
    let id = kernel.net.sockets.len() - 1;
    connect(kernel, id, to);
}

pub fn readiness(kernel: &Kernel, id: usize) -> u32 {
    let socket = &kernel.net.sockets[id];
    let mut ready = 0;
    if !socket.backlog.is_empty() || !socket.arrived.is_empty() {
        ready |= libc::EPOLLIN;
    }
    if socket.ended {
        ready |= libc::EPOLLIN | libc::EPOLLRDHUP;
    }
    if socket.connected && socket.under_way < WINDOW_MAX {
        ready |= libc::EPOLLOUT;
    }
    if socket.error != 0 {
        ready |= libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLERR | libc::EPOLLHUP;
    }
    ready as u32
}

/// Lets everything arrive whose time has come.
pub fn deliver(kernel: &mut Kernel) {
    while kernel
        .net
        .next_event()
        .is_some_and(|time| time <= kernel.now)
    {
        let Some((_, event)) = kernel.net.under_way.pop_first() else {
            return;
        };
        let (a, b) = kernel.net.ends(&event);
        if kernel.net.link(a, b).down {
            kernel.net.held.push(event);
            continue;
        }
        kernel.mix((a * 16 + b) as u64);
        arrive(kernel, event);
    }
}

fn arrive(kernel: &mut Kernel, event: Event) {
    match event {
        Event::Syn { client } => arrive_syn(kernel, client),
        Event::Accepted { client } => arrive_accepted(kernel, client),
        Event::Refused { client } => arrive_error(kernel, client, libc::ECONNREFUSED),
        Event::Reset { to } => arrive_error(kernel, to, libc::ECONNRESET),
        Event::Data { from, bytes } => {
            let Some(to) = kernel.net.sockets[from].peer else {
                return;
            };
            if kernel.net.sockets[to].closed {
                answer_closed(kernel, from, to);
                return;
            }
            let socket = &mut kernel.net.sockets[to];
            if !socket.echo.is_empty() || socket.error != 0 {
                return;
            }
            socket.arrived.extend(bytes);
            poke(kernel, Handle::Socket(to));
        }
        Event::End { from } => {
            if let Some(to) = kernel.net.sockets[from].peer {
                kernel.net.sockets[to].ended = true;
                poke(kernel, Handle::Socket(to));
            }
        }
    }
}

/// A machine that runs answers what belongs to no connection; one that is off does not.
fn answer_closed(kernel: &mut Kernel, from: usize, to: usize) {
    let party = kernel.net.sockets[to].party;
    if kernel.parties[party].alive || party == 0 {
        send_event(kernel, to, 0, Event::Reset { to: from });
    }
}

fn arrive_syn(kernel: &mut Kernel, client: usize) {
    let (local, to) = {
        let socket = &kernel.net.sockets[client];
        (socket.local, socket.remote)
    };
    let Some(listener) = kernel.net.listener(to) else {
        let party = kernel.net.party_at(to.0);
        // One that is off does not answer at all.
        if kernel.parties[party].alive || kernel.parties[party].life > 0 && kernel.random.one_in(2)
        {
            send_event(kernel, client, 0, Event::Refused { client });
        }
        return;
    };
    let party = kernel.net.sockets[listener].party;
    let a = kernel.net.sockets[client].party;
    let one_in = kernel.net.link(a, party).breaks_one_in;
    let mut breaks = [None, None];
    if one_in > 0 && kernel.random.one_in(one_in) {
        let side = kernel.random.below(2) as usize;
        breaks[side] = Some(kernel.random.skewed(60_000));
    }
    kernel.net.sockets.push(Socket {
        party,
        local: to,
        remote: local,
        connected: true,
        peer: Some(client),
        breaks_after: breaks[0],
        ..Socket::default()
    });
    let server = kernel.net.sockets.len() - 1;
    let socket = &mut kernel.net.sockets[client];
    (socket.peer, socket.breaks_after) = (Some(server), breaks[1]);
    kernel.net.sockets[listener].backlog.push_back(server);
    poke(kernel, Handle::Socket(listener));
    send_event(kernel, server, 0, Event::Accepted { client });
}

fn arrive_accepted(kernel: &mut Kernel, client: usize) {
    let socket = &mut kernel.net.sockets[client];
    if socket.closed {
        let peer = socket.peer;
        if let Some(peer) = peer {
            send_event(kernel, client, 0, Event::Reset { to: peer });
        }
        return;
    }
    (socket.connected, socket.connecting) = (true, false);
    if socket.echo.is_empty() {
        poke(kernel, Handle::Socket(client));
        return;
    }
    for bytes in socket.echo.clone().chunks(4096) {
        let event = Event::Data {
            from: client,
            bytes: bytes.to_vec(),
        };
        send_event(kernel, client, bytes.len(), event);
    }
    let wait = kernel.random.skewed(2 * SECOND);
    kernel.net.sockets[client].last_arrival += wait;
    send_event(kernel, client, 0, Event::End { from: client });
}

fn arrive_error(kernel: &mut Kernel, id: usize, error: c_int) {
    let socket = &mut kernel.net.sockets[id];
    if socket.closed {
        return;
    }
    (socket.error, socket.ended) = (error, true);
    // Also when the error has been taken: who sends is told that this is over, not to wait.
    (socket.connected, socket.connecting) = (false, false);
    socket.arrived.clear();
    poke(kernel, Handle::Socket(id));
}
