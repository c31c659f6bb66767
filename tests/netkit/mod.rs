//! What the tests of server and shipper share: logs with known content, a raw HTTP client, servers in this process
//! and in a process of their own.
#![allow(dead_code, missing_docs, unused_imports, clippy::unwrap_used)]

pub mod gate;
pub mod nonsense;
pub mod servers;
pub mod shorten;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mycelite::proto::{HEADER_AFTER, HEADER_DATABASE, ReplicaUrl};
use mycelite::server::{Limits, ServeOptions, Server};
use mycelite_journal::{
    DatabaseId, Draft, FileStorage, Log, PageSize, Pos, Reader, Timeline, Txid,
};

pub use nonsense::*;
pub use servers::*;

pub const PAGE: usize = 4096;

/// A small generator, so that a failure can be repeated from its seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = self.next() as u8;
        }
    }
}

/// A primary without the extension: a database written by plain SQLite, and a log made by comparing its bytes.
pub struct Primary {
    pub dir: PathBuf,
    pub log: Log,
    pub image: Vec<u8>,
    /// The image after each transaction; the first is empty.
    pub images: Vec<Vec<u8>>,
    /// Timeline of the transactions to come.
    pub timeline: u64,
    db: PathBuf,
}

impl Primary {
    /// An empty log for the database `id` in `dir`, which is created.
    pub fn new(dir: impl Into<PathBuf>, id: u8) -> Primary {
        let dir = dir.into();
        std::fs::create_dir_all(&dir).unwrap();
        let db = dir.join("source.db");
        let log = Log::create(
            Arc::new(FileStorage::new(&dir)),
            DatabaseId([id; 16]),
            now_us(),
        )
        .unwrap();
        Primary {
            dir,
            log,
            image: Vec::new(),
            images: vec![Vec::new()],
            timeline: 1,
            db,
        }
    }

    /// The same database as `other` after its transaction `txid`, with a future of its own.
    pub fn fork(dir: impl Into<PathBuf>, other: &Primary, txid: usize) -> Primary {
        let mut fork = Primary::new(dir, other.id().0[0]);
        for record in other.records(0).iter().take(txid) {
            fork.log
                .append_raw(&mut &record[..], &Default::default())
                .unwrap();
        }
        fork.image = other.images[txid].clone();
        fork.images = other.images[..=txid].to_vec();
        std::fs::write(&fork.db, &fork.image).unwrap();
        fork
    }

    pub fn id(&self) -> DatabaseId {
        self.log.id()
    }

    pub fn pos(&self) -> Pos {
        self.log.head().pos
    }

    fn connect(&self) -> rusqlite::Connection {
        let flags = rusqlite::OpenFlags::default();
        let db = rusqlite::Connection::open_with_flags_and_vfs(&self.db, flags, c"unix").unwrap();
        db.execute_batch(&format!(
            "PRAGMA page_size = {PAGE}; PRAGMA synchronous = OFF;"
        ))
        .unwrap();
        db.execute_batch("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, n, b)")
            .unwrap();
        db
    }

    /// A transaction that grows the database by about `grow` pages and changes a row.
    pub fn commit(&mut self, grow: usize) {
        let mut db = self.connect();
        let transaction = db.transaction().unwrap();
        if grow > 0 {
            transaction
                .execute(
                    "INSERT INTO t(n, b) VALUES (random(), randomblob(?))",
                    [(grow * PAGE) as i64],
                )
                .unwrap();
        }
        let sql =
            "UPDATE t SET n = random() WHERE id = 1 + abs(random()) % (SELECT max(id) FROM t)";
        transaction.execute(sql, []).unwrap();
        transaction.commit().unwrap();
        drop(db);
        let new = std::fs::read(&self.db).unwrap();
        let mut record = begin(&mut self.log, new.len() / PAGE, self.timeline);
        for (index, page) in new.chunks(PAGE).enumerate() {
            let old = self.image.chunks(PAGE).nth(index);
            if old != Some(page) {
                record.patch(index as u32 + 1, old, page).unwrap();
            }
        }
        record.commit().unwrap();
        self.images.push(new.clone());
        self.image = new;
    }

    pub fn commits(&mut self, count: usize) {
        for _ in 0..count {
            self.commit(1);
        }
    }

    /// One record that holds `mebibytes` of noise, written without holding it in memory.
    pub fn commit_noise(&mut self, mebibytes: u32) {
        self.commit_values("randomblob(1 << 20)", mebibytes);
    }

    /// The same with one letter again and again, which compresses to nothing.
    pub fn commit_letters(&mut self, mebibytes: u32) {
        self.commit_values("printf('%.*c', 1 << 20, 'a')", mebibytes);
    }

    fn commit_values(&mut self, value: &str, mebibytes: u32) {
        assert_eq!(self.pos(), Pos::ZERO);
        let db = self.connect();
        let insert = format!("INSERT INTO t(b) VALUES ({value})");
        for _ in 0..mebibytes {
            db.execute(&insert, []).unwrap();
        }
        drop(db);
        let mut file = std::fs::File::open(&self.db).unwrap();
        let pages = file.metadata().unwrap().len() as usize / PAGE;
        let mut record = begin(&mut self.log, pages, self.timeline);
        let mut page = vec![0; PAGE];
        for pgno in 1..=pages {
            file.read_exact(&mut page).unwrap();
            record.patch(pgno as u32, None, &page).unwrap();
        }
        record.commit().unwrap();
    }

    /// The records after `after`, as the log stores them, one by one.
    pub fn records(&self, after: u64) -> Vec<Vec<u8>> {
        raw_records(&self.dir, after)
    }

    /// Where the log was after transaction `txid`.
    pub fn pos_at(&self, txid: u64) -> Pos {
        if txid == 0 {
            return Pos::ZERO;
        }
        let mut reader = Reader::open(Arc::new(FileStorage::new(&self.dir))).unwrap();
        reader.find(Txid(txid)).unwrap().unwrap().header.pos()
    }
}

fn begin(log: &mut Log, pages: usize, timeline: u64) -> mycelite_journal::RecordWriter<'_> {
    let size = PageSize::new(PAGE as u32).unwrap();
    let mut draft = Draft::new(size, pages as u32, now_us());
    draft.timeline = Timeline(timeline);
    log.begin(draft).unwrap()
}

pub fn raw_records(log_dir: &Path, after: u64) -> Vec<Vec<u8>> {
    let mut reader = Reader::open(Arc::new(FileStorage::new(log_dir))).unwrap();
    reader.seek(Txid(after)).unwrap();
    let mut records = Vec::new();
    while let Some(entry) = reader.next().unwrap() {
        let mut bytes = Vec::new();
        entry.raw().read_to_end(&mut bytes).unwrap();
        records.push(bytes);
    }
    records
}

pub fn now_us() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_micros() as u64
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

pub fn append(addr: SocketAddr, name: &str, id: DatabaseId, after: Pos, body: &[u8]) -> Answer {
    let (id, after) = (id.to_string(), after.to_string());
    let headers = [
        (HEADER_DATABASE, id.as_str()),
        (HEADER_AFTER, after.as_str()),
    ];
    request(
        addr,
        "POST",
        &format!("/v1/databases/{name}/log"),
        &headers,
        body,
    )
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {self:?} {}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<String> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name)
                .then(|| value.trim().to_string())
        })
    }

    /// The position in the body: of a success, or of a refusal that names one.
    pub fn txid(&self) -> u64 {
        let json = self.json();
        let pos = json.get("pos").unwrap_or(&json);
        pos["txid"]
            .as_u64()
            .unwrap_or_else(|| panic!("no position: {}", self.text()))
    }
}

/// One request on a connection of its own.
pub fn request(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    exchange(addr, &bytes)
}

/// Sends bytes as they are, and reads an answer.
pub fn exchange(addr: SocketAddr, bytes: &[u8]) -> Answer {
    try_exchange(addr, bytes).expect("an answer")
}

/// As [`append`], for a server that may die meanwhile.
pub fn try_append(
    addr: SocketAddr,
    name: &str,
    id: DatabaseId,
    after: Pos,
    body: &[u8],
) -> Option<Answer> {
    let mut bytes = format!(
        "POST /v1/databases/{name}/log HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n{HEADER_DATABASE}: {id}\r\n\
         {HEADER_AFTER}: {after}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    try_exchange(addr, &bytes)
}

pub fn try_exchange(addr: SocketAddr, bytes: &[u8]) -> Option<Answer> {
    let mut stream = TcpStream::connect(addr).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    // A server that refuses early may close before it has read all.
    let _ = stream.write_all(bytes);
    try_read_answer(&mut stream)
}

pub fn read_answer(stream: &mut TcpStream) -> Answer {
    try_read_answer(stream).expect("an answer")
}

/// The answer, if it came whole.
pub fn try_read_answer(stream: &mut TcpStream) -> Option<Answer> {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut answer = Answer {
        status,
        head,
        body: bytes[end + 4..].to_vec(),
    };
    if answer
        .header("transfer-encoding")
        .is_some_and(|value| value == "chunked")
    {
        answer.body = unchunk(&answer.body);
    }
    let whole = answer
        .header("content-length")
        .is_none_or(|length| length.parse() == Ok(answer.body.len()));
    whole.then_some(answer)
}

fn unchunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let line = bytes
            .windows(2)
            .position(|window| window == b"\r\n")
            .expect("a chunk's length");
        let length =
            usize::from_str_radix(std::str::from_utf8(&bytes[..line]).unwrap(), 16).unwrap();
        if length == 0 {
            return out;
        }
        out.extend_from_slice(&bytes[line + 2..line + 2 + length]);
        bytes = &bytes[line + 2 + length + 2..];
    }
}

/// Waits until `condition` holds; panics with `what` if it does not within a minute.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
