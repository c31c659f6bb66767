//! What these tests share: a Python process that reads an embedded replica, asked line by line, and a primary that ships.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::Value;

use crate::clikit::Serve;
use crate::common;

/// Nothing that a test waits for may take longer, also on a machine that does something else at the same time.
pub const LONG: Duration = Duration::from_secs(30);

/// The library that cargo built beside this test.
pub fn library() -> PathBuf {
    let library = std::env::current_exe()
        .unwrap()
        .with_file_name("libmycelite.so");
    assert!(
        library.exists(),
        "no {}: run this by cargo test",
        library.display()
    );
    library
}

/// A program of the system, without settings of ours from the environment.
pub fn stock(program: &str) -> Command {
    let mut command = Command::new(program);
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("MYCELITE_") {
            command.env_remove(key);
        }
    }
    command
}

/// The URI of an embedded replica; `more` is empty or begins with `&`.
pub fn uri(db: &Path, source: &str, more: &str) -> String {
    format!(
        "file:{}?vfs=mycelite_reader&source={source}{more}",
        db.display()
    )
}

/// Each line that comes is SQL for the connection `db`, or a command of these tests.
const SCRIPT: &str = r"
import json, os, sqlite3, sys
library = sys.argv[1]
first = sqlite3.connect(':memory:')
first.enable_load_extension(True)
first.load_extension(library)
open_ones = {}
def answer(line):
    word, _, rest = line.partition(' ')
    if word == 'open':
        name, _, uri = rest.partition(' ')
        open_ones[name] = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10)
        return 'open'
    if word == 'close':
        open_ones.pop(rest).close()
        return 'closed'
    if word == 'threads':
        tasks = '/proc/self/task'
        names = [open(f'{tasks}/{t}/comm').read().strip() for t in os.listdir(tasks)]
        return sorted(n for n in names if n.startswith(('mycelite', 'tokio')))
    if word == 'fork':
        # The child opens the replica anew, reads it, and goes on living.
        end, begin = os.pipe()
        child = os.fork()
        if child == 0:
            name, _, uri = rest.partition(' ')
            own = sqlite3.connect(uri, uri=True, isolation_level=None)
            rows = own.execute('SELECT count(*) FROM t').fetchall()
            import time
            state = 'connecting'
            while state == 'connecting':
                time.sleep(0.01)
                state = json.loads(own.execute('SELECT mycelite_status()').fetchone()[0])['follow']['state']
            os.write(begin, json.dumps([os.getpid(), rows[0][0], state]).encode())
            os.close(begin)
            while not os.path.exists(name):
                own.execute('SELECT count(*) FROM t').fetchall()
                time.sleep(0.01)
            state = json.loads(own.execute('SELECT mycelite_status()').fetchone()[0])['follow']['state']
            rows = own.execute('SELECT count(*) FROM t').fetchall()
            with open(name + '.said', 'w') as out: out.write(json.dumps([state, rows[0][0]]))
            own.close()
            os._exit(0)
        os.close(begin)
        return json.loads(os.read(end, 1000).decode())
    name, _, sql = line.partition(' ')
    return open_ones[name].execute(sql).fetchall()
for line in sys.stdin:
    try:
        print('=' + json.dumps(answer(line.rstrip('\n'))), flush=True)
    except Exception as error:
        print('!' + type(error).__name__ + ': ' + str(error), flush=True)
";

/// A process that reads.
pub struct Reader {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    stderr: PathBuf,
}

impl Reader {
    /// Loads the extension, and opens nothing yet. `scratch` takes what it says on standard error.
    pub fn start(scratch: &Path) -> Reader {
        Reader::with(scratch, &[])
    }

    pub fn with(scratch: &Path, variables: &[(&str, &str)]) -> Reader {
        static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let stderr = scratch.join(format!("reader-{count}.err"));
        let mut child = stock("/usr/bin/python3")
            .args(["-c", SCRIPT])
            .arg(library().with_extension(""))
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&stderr).unwrap())
            .spawn()
            .unwrap();
        Reader {
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
            stderr,
        }
    }

    /// With the replica open as `db`.
    pub fn of(scratch: &Path, db: &Path, source: &str) -> Reader {
        let mut reader = Reader::start(scratch);
        reader.good(&format!("open db {}", uri(db, source, "")));
        reader
    }

    pub fn ask(&mut self, line: &str) -> Result<Value, String> {
        let stdin = self.stdin.as_mut().unwrap();
        writeln!(stdin, "{line}").unwrap();
        let mut answer = String::new();
        self.stdout.read_line(&mut answer).unwrap();
        match answer.trim_end().split_at_checked(1) {
            Some(("=", value)) => Ok(serde_json::from_str(value).unwrap()),
            Some(("!", error)) => Err(error.to_owned()),
            _ => panic!("{line}: {answer:?}; {}", self.said()),
        }
    }

    #[track_caller]
    pub fn good(&mut self, line: &str) -> Value {
        self.ask(line)
            .unwrap_or_else(|error| panic!("{line}: {error}; {}", self.said()))
    }

    /// The one value that a statement gives.
    #[track_caller]
    pub fn one(&mut self, sql: &str) -> Value {
        self.good(&format!("db {sql}"))[0][0].clone()
    }

    #[track_caller]
    pub fn number(&mut self, sql: &str) -> i64 {
        self.one(sql).as_i64().unwrap()
    }

    #[track_caller]
    pub fn status(&mut self) -> Value {
        let text = self.one("SELECT mycelite_status()");
        serde_json::from_str(text.as_str().unwrap()).unwrap()
    }

    /// How following goes.
    #[track_caller]
    pub fn state(&mut self) -> String {
        self.status()["follow"]["state"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Waits until the replica shows position `pos`.
    #[track_caller]
    pub fn reach(&mut self, pos: &str) {
        let held = self.number(&format!("SELECT mycelite_wait('{pos}', 30000)"));
        assert_eq!(held, 1, "{}", self.status());
    }

    /// The last thread may take a moment to leave after its last act.
    #[track_caller]
    pub fn nothing_runs(&mut self) {
        crate::clikit::wait_for("the end of the threads", Duration::from_secs(2), || {
            self.good("threads") == serde_json::json!([])
        });
    }

    /// What it wrote to standard error.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap()
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends as a program does that closes its connections.
    pub fn stop(mut self) {
        self.good("close db");
        self.stdin = None;
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A primary that ships to a server, with a table whose rows count up from 1.
pub struct Primary {
    pub db: PathBuf,
    pub connection: Connection,
    pub rows: i64,
}

impl Primary {
    pub fn new(db: PathBuf, mode: &str, replica: &str) -> Primary {
        let connection = common::open(&db, &format!("&replica={replica}"));
        connection
            .execute_batch(&format!(
                "PRAGMA journal_mode={mode}; PRAGMA synchronous=NORMAL; CREATE TABLE t(id INTEGER PRIMARY KEY, filler)"
            ))
            .unwrap();
        Primary {
            db,
            connection,
            rows: 0,
        }
    }

    /// One more row; where the database is then.
    pub fn commit(&mut self) -> String {
        self.rows += 1;
        self.connection
            .execute(
                "INSERT INTO t VALUES(?1, hex(randomblob(100)))",
                [self.rows],
            )
            .unwrap();
        self.pos()
    }

    pub fn sql(&self, sql: &str) -> String {
        self.connection.execute_batch(sql).unwrap();
        self.pos()
    }

    pub fn pos(&self) -> String {
        self.connection
            .query_row("SELECT mycelite_pos()", [], |row| row.get(0))
            .unwrap()
    }

    /// Its file, when it alone is the image.
    pub fn image(&self) -> Vec<u8> {
        let _: i64 = self
            .connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
            .unwrap();
        std::fs::read(&self.db).unwrap()
    }
}

/// A server and a primary that has shipped `rows` rows to it.
pub struct Room {
    pub dir: tempfile::TempDir,
    pub server: Serve,
    pub primary: Primary,
    pub copy: PathBuf,
}

pub fn room(mode: &str, rows: usize, arguments: &[&str]) -> Room {
    common::load();
    let dir = common::scratch();
    let server = Serve::start(&dir.path().join("data"), arguments);
    let mut primary = Primary::new(dir.path().join("app.db"), mode, &server.url("app"));
    for _ in 0..rows {
        primary.commit();
    }
    crate::clikit::wait_for("the server", LONG, || server.db("app").exists());
    let copy = dir.path().join("copy.db");
    Room {
        dir,
        server,
        primary,
        copy,
    }
}

/// Waits until `file` is byte for byte `wanted`.
#[track_caller]
pub fn identical(file: &Path, wanted: &[u8]) {
    let begin = Instant::now();
    while std::fs::read(file).ok().as_deref() != Some(wanted) {
        assert!(
            begin.elapsed() < LONG,
            "{} is not the primary's file",
            file.display()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
