//! Servers that are none: listeners that answer as a test says.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use mycelite::proto::{Handshake, ReplicaUrl};
use mycelite_journal::{DatabaseId, Pos};

pub fn url(text: &str) -> ReplicaUrl {
    text.parse().unwrap()
}

/// A port that nobody listens on.
pub fn dead_port() -> ReplicaUrl {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    url(&format!("http://127.0.0.1:{port}/app"))
}

/// A listener that answers each connection as the test says.
pub struct Nonsense {
    pub port: u16,
    pub connections: Arc<AtomicUsize>,
}

impl Nonsense {
    pub fn start(answer: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> Nonsense {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, answer) = (Arc::clone(&connections), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (number, answer) = (count.fetch_add(1, Ordering::SeqCst), Arc::clone(&answer));
                std::thread::spawn(move || answer(stream.unwrap(), number));
            }
        });
        Nonsense { port, connections }
    }

    /// Answers every request with the same bytes, then closes.
    pub fn saying(bytes: impl Into<Vec<u8>>) -> Nonsense {
        let bytes = bytes.into();
        Nonsense::start(move |mut stream, _| {
            read_head(&mut stream);
            let _ = stream.write_all(&bytes);
        })
    }

    pub fn url(&self) -> ReplicaUrl {
        url(&format!("http://127.0.0.1:{}/app", self.port))
    }
}

pub fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

pub fn hold(mut stream: TcpStream) {
    let mut rest = [0; 4096];
    while stream.read(&mut rest).unwrap_or(0) > 0 {}
}

pub fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

pub fn hello(id: Option<DatabaseId>, pos: Pos) -> Vec<u8> {
    let body = Handshake::new(id, pos, 4096, pos.txid).encode().unwrap();
    answer(
        "200 OK",
        "mycelite-protocol: 1\r\ncontent-type: application/x-mycelite-handshake\r\n",
        &body,
    )
}

/// Passes connections on to `target` once it is open.
pub fn gate(target: SocketAddr, open: Arc<AtomicBool>) -> Nonsense {
    Nonsense::start(move |mut client, _| {
        while !open.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut server = TcpStream::connect(target).unwrap();
        let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Write);
        });
        let _ = std::io::copy(&mut server, &mut client);
        let _ = client.shutdown(std::net::Shutdown::Both);
    })
}
