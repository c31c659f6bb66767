//! What the tests of this crate share: the routine table as SQLite itself hands it out, and a second process.

#![allow(unsafe_code, dead_code, clippy::unwrap_used)]

use std::ffi::{c_char, c_int, c_void};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, OnceLock};

use c_shim::{Api, Connection, OpenFlags};
use libsqlite3_sys as sys;

/// Every line that went to SQLite's error log.
pub static LOGGED: Mutex<Vec<(i32, String)>> = Mutex::new(Vec::new());

unsafe extern "C" fn log(_: *mut c_void, code: c_int, text: *const c_char) {
    // SAFETY: SQLite passes NUL-terminated text.
    let text = unsafe { std::ffi::CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned();
    LOGGED.lock().unwrap().push((code, text));
}

/// The table itself, as the entry point got it.
pub static TABLE: AtomicPtr<c_void> = AtomicPtr::new(null_mut());

unsafe extern "C" fn entry(
    _: *mut sys::sqlite3,
    _: *mut *mut c_char,
    table: *const sys::sqlite3_api_routines,
) -> c_int {
    TABLE.store(table.cast_mut().cast(), Ordering::Relaxed);
    // SAFETY: SQLite's own table, static.
    match unsafe { Api::init(table.cast_mut().cast()) } {
        Ok(_) => sys::SQLITE_OK,
        Err(_) => sys::SQLITE_ERROR,
    }
}

/// The bundled SQLite's own table, got as a statically linked extension gets it.
pub fn api() -> Api {
    static API: OnceLock<Api> = OnceLock::new();
    // SAFETY: the log is configured before SQLite's first use; the entry and the logger live for ever.
    *API.get_or_init(|| unsafe {
        let logger: unsafe extern "C" fn(*mut c_void, c_int, *const c_char) = log;
        assert_eq!(
            sys::SQLITE_OK,
            sys::sqlite3_config(sys::SQLITE_CONFIG_LOG, logger, null_mut::<c_void>())
        );
        assert_eq!(sys::SQLITE_OK, sys::sqlite3_auto_extension(Some(entry)));
        let mut db = null_mut();
        assert_eq!(
            sys::SQLITE_OK,
            sys::sqlite3_open(c":memory:".as_ptr(), &raw mut db)
        );
        sys::sqlite3_close(db);
        Api::get().expect("the entry ran")
    })
}

pub const READ_WRITE: OpenFlags = OpenFlags(sys::SQLITE_OPEN_READWRITE | sys::SQLITE_OPEN_CREATE);
pub const MAIN_DB: OpenFlags = OpenFlags(READ_WRITE.0 | sys::SQLITE_OPEN_MAIN_DB);

pub fn connect(path: &Path) -> Connection {
    Connection::open(api(), path, None, READ_WRITE, 0).unwrap()
}

const CHILD: &str = "C_SHIM_TEST_DATABASE";

/// A process with a plain connection to a database, which answers one statement at a time.
pub struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<std::process::ChildStdout>,
}

impl Peer {
    /// Starts this test program once more, as [`serve_as_peer`].
    pub fn start(path: &Path) -> Peer {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "serve_as_peer",
                "--exact",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(CHILD, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Peer {
            child,
            input,
            output,
        }
    }

    /// The first value that a statement gives, "" if none, or the name of its error.
    pub fn ask(&mut self, sql: &str) -> String {
        writeln!(self.input, "{sql}").unwrap();
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(
                0,
                self.output.read_line(&mut line).unwrap(),
                "the peer died at: {sql}"
            );
            if let Some(at) = line.find("answer:") {
                return line[at + "answer:".len()..].trim_end().to_owned();
            }
        }
    }

    /// Ends it as a power cut would: nothing closed, nothing cleaned up.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The body of the test `serve_as_peer`: nothing, unless this process was started by [`Peer::start`].
pub fn serve_as_peer_body() {
    let Some(path) = std::env::var_os(CHILD) else {
        return;
    };
    let connection = connect(Path::new(&path));
    for line in std::io::stdin().lines() {
        let answer = match connection.query_text(&line.unwrap()) {
            Ok(text) => text.unwrap_or_default(),
            Err(error) => error
                .code
                .to_string()
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_owned(),
        };
        println!("answer:{answer}");
    }
}
