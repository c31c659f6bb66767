//! The server's side: what a stream says, how many there may be, what they cost, and how they end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use mycelite::proto::follow::{EndReason, Frame, FrameBuffer};
use mycelite_journal::Pos;

use crate::kit::LONG;
use crate::netkit::{Primary, TestServer, alone, eventually, room, unfinished, zstd};

/// A stream as a client of another make would read it.
struct Stream {
    socket: TcpStream,
    raw: Vec<u8>,
    frames: FrameBuffer,
    ended: bool,
}

impl Stream {
    fn open(server: &TestServer, name: &str, after: u64) -> Stream {
        let mut socket = TcpStream::connect(server.addr).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        let request = format!(
            "GET /v1/databases/{name}/log?after={after}&follow=1 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.contains("application/x-mycelite-follow"), "{head}");
        Stream {
            socket,
            raw: Vec::new(),
            frames: FrameBuffer::default(),
            ended: false,
        }
    }

    /// The next frame; none when the body is complete.
    fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.frames.take().unwrap() {
                return Some(frame);
            }
            if self.ended {
                return None;
            }
            self.chunk();
        }
    }

    fn chunk(&mut self) {
        let mut buffer = [0; 65536];
        loop {
            if let Some(at) = self.raw.windows(2).position(|two| two == b"\r\n") {
                let length = std::str::from_utf8(&self.raw[..at]).unwrap();
                let length = usize::from_str_radix(length, 16).unwrap();
                if length == 0 {
                    self.ended = true;
                    return;
                }
                if self.raw.len() >= at + 2 + length + 2 {
                    self.frames.push(&self.raw[at + 2..at + 2 + length]);
                    self.raw.drain(..at + 2 + length + 2);
                    return;
                }
            }
            let count = self.socket.read(&mut buffer).unwrap();
            assert!(count > 0, "the stream broke off");
            self.raw.extend_from_slice(&buffer[..count]);
        }
    }

    /// The records up to the next beat, and that beat.
    fn until_beat(&mut self) -> (Vec<u8>, mycelite::proto::follow::Beat) {
        let mut records = Vec::new();
        loop {
            match self.next().unwrap() {
                Frame::Records(piece) => {
                    records.extend(zstd::bulk::decompress(&piece, 1 << 20).unwrap());
                }
                Frame::Beat(beat) if beat.behind_bytes == 0 => return (records, beat),
                Frame::Beat(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

fn send(server: &TestServer, primary: &Primary, after: u64) {
    let records = primary.records(after).concat();
    let answer = server.append("app", primary.id(), primary.pos_at(after), &records);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn a_stream_says_where_it_begins_and_brings_each_record_once() {
    const BEAT: Duration = Duration::from_secs(120);
    let mut room = room(6);
    let data = room.server.data.with_file_name("slow");
    room.server = TestServer::limited(&data, |limits| limits.heartbeat = BEAT);
    room.primary.commit(700);
    send(&room.server, &room.primary, 0);
    for after in [0, 3, 7] {
        let mut stream = Stream::open(&room.server, "app", after);
        let Some(Frame::Hello(hello)) = stream.next() else {
            panic!("no hello")
        };
        assert_eq!(hello.id, room.primary.id());
        assert_eq!(hello.after, room.primary.pos_at(after));
        assert_eq!((hello.beat.head, hello.first.0), (room.primary.pos(), 1));
        let wanted = room.primary.records(after).concat();
        assert_eq!(hello.beat.behind_bytes, wanted.len() as u64);
        let (records, beat) = stream.until_beat();
        assert_eq!(records, wanted, "after {after}");
        assert_eq!(beat.head, room.primary.pos());
    }
    let mut stream = Stream::open(&room.server, "app", 7);
    let mut other = Stream::open(&room.server, "app", 7);
    stream.next();
    other.next();
    stream.until_beat();
    other.until_beat();
    for n in 8..20 {
        room.primary.commit(0);
        send(&room.server, &room.primary, n - 1);
        let begin = Instant::now();
        for stream in [&mut stream, &mut other] {
            let (records, beat) = stream.until_beat();
            assert_eq!(records, room.primary.records(n - 1).concat());
            assert_eq!(beat.head.txid.0, n);
        }
        assert!(begin.elapsed() < BEAT / 2, "it waits for a beat");
    }
}

#[test]
fn sealed_records_are_streamed_as_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut primary = Primary::new(dir.path().join("p-mycelite"), 7);
    primary.log.set_segment_bytes_max(64 * 1024);
    primary.commits(60);
    primary.log.sync().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir_all(&data).unwrap();
    let log_dir = data.join("app.db-mycelite");
    let wanted = primary.records(0).concat();
    std::fs::rename(&primary.dir, &log_dir).unwrap();
    let storage = mycelite_journal::FileStorage::new(&log_dir);
    let sealed = mycelite_journal::seal(&storage, mycelite_journal::Txid(60)).unwrap();
    assert!(sealed.is_some(), "nothing was sealed");
    let server = TestServer::start(&data);
    let mut stream = Stream::open(&server, "app", 0);
    stream.next();
    let (records, _) = stream.until_beat();
    assert_eq!(records, wanted);
}

/// A log that was made for an append of which no record came is removed again: who follows it already must begin anew.
#[test]
fn the_stream_of_a_log_that_is_removed_again_ends() {
    let room = room(1);
    let body = zstd(&room.primary.records(0).concat());
    let push = unfinished(&room.server, "app", &room.primary, &body, body.len() / 2);
    let log = room.server.log("app");
    eventually("the log", || log.join("meta").exists());
    // It is known a moment after it is there.
    eventually("the name", || {
        let answer = room.server.get("/v1/databases").text();
        answer.contains("\"app\"")
    });
    let mut stream = Stream::open(&room.server, "app", 0);
    assert!(matches!(stream.next(), Some(Frame::Hello(_))));
    drop(push);
    eventually("the log's end", || !log.exists());
    let mut frames = (0..3).map(|_| stream.next());
    let last = frames.find(|frame| !matches!(frame, Some(Frame::Beat(_))));
    assert!(
        matches!(last, Some(Some(Frame::End(EndReason::HistoryChanged, _)))),
        "{last:?}"
    );
    send(&room.server, &room.primary, 0);
}

#[test]
fn what_cannot_be_streamed_is_refused() {
    let room = room(3);
    send(&room.server, &room.primary, 0);
    for (query, status, says) in [
        ("after=4&follow=1", 409, "ends at"),
        ("after=0&follow=2", 501, "follow=1"),
        ("after=0&follow=x", 400, "follow=x"),
        ("after=-1&follow=1", 400, "after="),
    ] {
        let answer = room.server.get(&format!("/v1/databases/app/log?{query}"));
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(answer.text().contains(says), "{}", answer.text());
    }
    let answer = room.server.get("/v1/databases/none/log?follow=1");
    assert_eq!(answer.status, 404);
    let answer = room.server.get("/v1/databases/app/log?follow=0&after=3");
    assert_eq!(answer.status, 200);
}

#[test]
fn the_number_of_streams_has_a_limit_and_a_slow_reader_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::limited(&dir.path().join("data"), |limits| {
        limits.followers_max = 2;
        limits.idle_max = Duration::from_millis(500);
    });
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commit_noise(24);
    send(&server, &primary, 0);
    // Reads nothing after the hello: more is on its way than the system buffers.
    let slow = Stream::open(&server, "app", 0);
    let good = Stream::open(&server, "app", 1);
    let refused = server.get("/v1/databases/app/log?after=1&follow=1");
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.header("retry-after").is_some(), "{}", refused.head);
    assert!(
        refused.text().contains("followers_max"),
        "{}",
        refused.text()
    );
    eventually("the slow one is dropped", || {
        server
            .get("/metrics")
            .text()
            .contains("mycelite_followers 1\n")
    });
    let mut third = Stream::open(&server, "app", 1);
    assert!(matches!(third.next(), Some(Frame::Hello(_))));
    drop((slow, good));
    eventually("those that left are forgotten", || {
        server
            .get("/metrics")
            .text()
            .contains("mycelite_followers 1\n")
    });
}

#[test]
fn a_server_that_stops_says_so() {
    let mut room = room(3);
    let data = room.server.data.with_file_name("patient");
    room.server = TestServer::limited(&data, |limits| {
        limits.shutdown_grace = Duration::from_secs(120);
    });
    send(&room.server, &room.primary, 0);
    let mut streams: Vec<Stream> = (0..5)
        .map(|_| Stream::open(&room.server, "app", 3))
        .collect();
    for stream in &mut streams {
        stream.next();
        stream.until_beat();
    }
    let begin = Instant::now();
    let stopping = std::thread::spawn(move || room.server.stop());
    for stream in &mut streams {
        let Some(Frame::End(reason, text)) = stream.next() else {
            panic!("no end")
        };
        assert_eq!((reason, text.is_empty()), (EndReason::Stopping, false));
        assert!(stream.next().is_none());
    }
    stopping.join().unwrap();
    assert!(
        begin.elapsed() < Duration::from_secs(60),
        "{:?}",
        begin.elapsed()
    );
}

fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let rest = stat.rsplit(')').next().unwrap();
    let fields: Vec<u64> = rest
        .split_whitespace()
        .map(|f| f.parse().unwrap_or(0))
        .collect();
    fields[11] + fields[12]
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn idle_followers_cost_no_thread_and_no_time() {
    alone("streams::idle_followers_cost_no_thread_and_no_time", || {
        const FOLLOWERS: usize = 300;
        let dir = tempfile::tempdir().unwrap();
        let server = TestServer::limited(&dir.path().join("data"), |limits| {
            limits.followers_max = FOLLOWERS;
            limits.connections_max = FOLLOWERS + 50;
            limits.connections_per_address_max = Some(0);
            limits.heartbeat = Duration::from_secs(30);
            limits.applier_idle = Duration::from_millis(100);
        });
        let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
        primary.commits(20);
        send(&server, &primary, 0);
        let mut streams: Vec<Stream> = (0..FOLLOWERS)
            .map(|_| Stream::open(&server, "app", 20))
            .collect();
        for stream in &mut streams {
            stream.next();
            stream.until_beat();
        }
        // Blocking threads leave after ten seconds; they are few from the start.
        assert!(threads() < 40, "{} threads", threads());
        // Each has a socket at either end here, and nothing else.
        assert!(open_files() < 2 * FOLLOWERS + 60, "{} files", open_files());
        // What the beginning left to do takes a while on a slow machine.
        let rests = || {
            let before = cpu_ticks();
            std::thread::sleep(Duration::from_secs(2));
            cpu_ticks() - before <= 2
        };
        assert!((0..20).any(|_| rests()), "never at rest for 2 s");
        primary.commit(1);
        let begin = Instant::now();
        send(&server, &primary, 20);
        for stream in &mut streams {
            let (records, _) = stream.until_beat();
            assert!(!records.is_empty());
        }
        println!(
            "one commit reached {FOLLOWERS} followers after {:?}",
            begin.elapsed()
        );
        assert_ne!(primary.pos(), Pos::ZERO);
    });
}
