//! What the integration tests share: a host that has the extension, and the oracle.
#![allow(dead_code)]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)]
#![allow(clippy::missing_transmute_annotations)]

use mycelite_journal::{FileStorage, Image, OpenMode, Pos, Reader, RecordHeader, Storage};
use rusqlite::{Connection, MAIN_DB, OpenFlags};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

/// Registers the extension with the SQLite of this test program, as `mycelite` the program does.
pub fn load() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        type Entry = unsafe extern "C" fn(
            *mut rusqlite::ffi::sqlite3,
            *mut *mut std::ffi::c_char,
            *const std::ffi::c_void,
        ) -> i32;
        let entry: Entry = mycelite::auto_extension_entry;
        // SAFETY: both types are an extension's entry point; only the name of the table's type differs.
        let rc = unsafe { rusqlite::ffi::sqlite3_auto_extension(Some(std::mem::transmute(entry))) };
        assert_eq!(rc, 0);
        Connection::open_in_memory().unwrap();
    });
}

/// Opens `path` through the writer VFS; `parameters` is empty or begins with `&`.
pub fn open(path: &Path, parameters: &str) -> Connection {
    try_open(path, parameters).unwrap()
}

pub fn try_open(path: &Path, parameters: &str) -> rusqlite::Result<Connection> {
    load();
    let uri = format!("file:{}?vfs=mycelite_writer{parameters}", path.display());
    let connection = Connection::open_with_flags(uri, OpenFlags::default())?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    Ok(connection)
}

/// Opens `path` as any SQLite without the extension would.
pub fn open_plain(path: &Path) -> Connection {
    let connection =
        Connection::open_with_flags_and_vfs(path, OpenFlags::default(), c"unix").unwrap();
    connection
        .busy_timeout(std::time::Duration::from_secs(10))
        .unwrap();
    connection
}

/// A directory in memory, where the system has one: for what no crash is to test.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

pub fn log_dir(db: &Path) -> PathBuf {
    mycelite::database::log_dir(db)
}

/// Applies the log record by record, and compares with what SQLite reads (P1).
pub struct Oracle {
    db: PathBuf,
    log: PathBuf,
    _dir: tempfile::TempDir,
    image_path: PathBuf,
    image: Image,
    reader: Option<Reader>,
    view: View,
    pub records: Vec<RecordHeader>,
}

impl Oracle {
    pub fn new(db: &Path) -> Oracle {
        let dir = scratch();
        let image_path = dir.path().join("image");
        let file = FileStorage::new(dir.path())
            .open("image", OpenMode::Create)
            .unwrap();
        Oracle {
            db: db.to_path_buf(),
            log: log_dir(db),
            image: Image::new(file),
            image_path,
            _dir: dir,
            reader: None,
            view: View::default(),
            records: Vec::new(),
        }
    }

    pub fn pos(&self) -> Pos {
        self.image.pos()
    }

    /// The file that the log was applied to.
    pub fn image_path(&self) -> &Path {
        &self.image_path
    }

    /// Applies what is new, and says how many records that was.
    pub fn advance(&mut self) -> usize {
        settle(&self.db);
        if self.reader.is_none() && self.log.join("meta").exists() {
            self.reader = Some(Reader::open(Arc::new(FileStorage::new(&self.log))).unwrap());
        }
        let before = self.records.len();
        while let Some(reader) = &mut self.reader {
            let Some(record) = reader.next().unwrap() else {
                break;
            };
            let applied = self.image.apply(&record);
            assert!(applied.is_ok(), "{applied:?}: {:?}", record.header);
            self.records.push(record.header);
        }
        self.records.len() - before
    }

    /// Applies what is new, and demands that the result is what SQLite reads, byte for byte.
    #[track_caller]
    pub fn check(&mut self, what: &str) -> usize {
        let new = self.advance();
        let expected = self.view.image(&self.db);
        let actual = std::fs::read(&self.image_path).unwrap();
        assert_same(&expected, &actual, what);
        new
    }

    /// Whether the log applied is what SQLite reads.
    pub fn is_exact(&mut self) -> bool {
        self.advance();
        self.view.image(&self.db) == std::fs::read(&self.image_path).unwrap()
    }

    /// No connection of this process has the database open any more: gives the descriptors back.
    pub fn finish(mut self) {
        self.view.kept.clear();
    }
}

/// What this process has committed is recorded when this returns, also where a thread of ours does that.
pub fn settle(db: &Path) {
    if let Some(database) = mycelite::database::find(db) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
        while database.shared().is_adopting() {
            assert!(std::time::Instant::now() < deadline, "still adopting");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        database.shared().settle();
    }
}

/// Reads the files of a database that this process has open. Closing a descriptor of the database file would drop
/// SQLite's locks, so it is kept open, for good unless [`Oracle::finish`] says when.
#[derive(Default)]
struct View {
    kept: Vec<(u64, std::fs::File)>,
}

impl View {
    /// The image that SQLite reads, taken from a copy: a connection's own cache may hold bytes that it never wrote.
    fn image(&mut self, db: &Path) -> Vec<u8> {
        use std::io::{Read, Seek};
        use std::os::unix::fs::MetadataExt;
        let inode = std::fs::metadata(db).unwrap().ino();
        if self.kept.last().is_none_or(|(kept, _)| *kept != inode) {
            self.kept.push((inode, std::fs::File::open(db).unwrap()));
        }
        let (_, file) = self.kept.last_mut().unwrap();
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        if bytes.is_empty() {
            return bytes;
        }
        let dir = scratch();
        let copy = dir.path().join("copy.db");
        std::fs::write(&copy, &bytes).unwrap();
        // Nobody locks the WAL itself.
        let mut wal = db.as_os_str().to_owned();
        wal.push("-wal");
        let wal = std::fs::read(wal).unwrap_or_default();
        std::fs::write(dir.path().join("copy.db-wal"), &wal).unwrap();
        match open_plain(&copy).serialize(MAIN_DB) {
            Ok(image) => image.to_vec(),
            // A rollback without a journal leaves what SQLite itself cannot read. Its bytes are the image all the same.
            Err(_) if wal.is_empty() => cut_to_pages(bytes),
            Err(error) => panic!("{}: {error}", db.display()),
        }
    }
}

/// The rollback-mode image in a file, as long as its header says.
fn cut_to_pages(mut file: Vec<u8>) -> Vec<u8> {
    let page_bytes = match u16::from_be_bytes([file[16], file[17]]) {
        1 => 65536,
        bytes => usize::from(bytes),
    };
    let pages = u32::from_be_bytes(file[28..32].try_into().unwrap());
    file.truncate(pages as usize * page_bytes);
    file
}

impl Drop for View {
    fn drop(&mut self) {
        self.kept
            .drain(..)
            .for_each(|(_, file)| std::mem::forget(file));
    }
}

/// The image that SQLite reads, taken from a copy of the files. Another process copies them, because a descriptor that
/// this one closes would drop SQLite's locks; and a connection's own cache may hold bytes that it never wrote.
pub fn image_of(db: &Path) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy.db");
    for suffix in ["", "-wal"] {
        let source = format!("{}{suffix}", db.display());
        if Path::new(&source).exists() {
            let target = format!("{}{suffix}", copy.display());
            let status = std::process::Command::new("cp")
                .args([&source, &target])
                .status();
            assert!(status.unwrap().success());
        }
    }
    if std::fs::metadata(&copy).unwrap().len() == 0 {
        return Vec::new();
    }
    open_plain(&copy).serialize(MAIN_DB).unwrap().to_vec()
}

#[track_caller]
pub fn assert_same(expected: &[u8], actual: &[u8], what: &str) {
    if expected == actual {
        return;
    }
    let at = expected.iter().zip(actual).position(|(a, b)| a != b);
    panic!(
        "{what}: {} bytes expected, {} found, first difference at {at:?}",
        expected.len(),
        actual.len()
    );
}

/// Deterministic numbers for test data (xorshift64*).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// A stock shell without the extension runs `sql` on `path`, and is killed.
pub fn killed_after(path: &Path, sql: &str) {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};
    let mut shell = Command::new("sqlite3")
        .args(["-batch", "-bail"])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = shell.stdin.take().unwrap();
    writeln!(stdin, "{sql}\n.print reached").unwrap();
    let mut lines = BufReader::new(shell.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "reached"), "{sql}");
    shell.kill().unwrap();
    shell.wait().unwrap();
}

/// Runs the test function `entry` of this program in a process of its own, with `arguments` in its environment.
pub fn spawn_child(entry: &str, arguments: &[(&str, &str)]) -> std::process::Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", entry, "--nocapture", "--test-threads=1"])
        .envs(arguments.iter().copied())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}

/// What [`spawn_child`] passed; `None` in an ordinary run, where such an entry has nothing to do.
pub fn child_argument(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
