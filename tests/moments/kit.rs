//! The stock shell and Python with the extension, and a database with a history.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::clikit::Ran;
use crate::common;

/// The library that cargo built beside this test.
pub fn library() -> PathBuf {
    let library = std::env::current_exe().unwrap();
    let library = library.parent().unwrap().join("libmycelite.so");
    assert!(
        library.exists(),
        "no {}: run this by cargo test",
        library.display()
    );
    library
}

fn without_settings(command: &mut Command) -> &mut Command {
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("MYCELITE_") {
            command.env_remove(key);
        }
    }
    command
}

/// Runs `script` in the stock sqlite3 shell, in the directory `dir`, after loading the extension; what it printed.
pub fn shell(dir: &Path, script: &str) -> Ran {
    let mut child = without_settings(&mut Command::new("sqlite3"))
        .arg("-batch")
        .arg(":memory:")
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the sqlite3 shell: apt-get install sqlite3");
    let text = format!(".load {}\n{script}\n", library().display());
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    Ran::from(child.wait_with_output().unwrap())
}

/// A stock shell with the extension, in a process of its own, that is asked one thing after the other.
pub struct Session {
    pub child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Session {
    pub fn start() -> Session {
        let mut child = without_settings(&mut Command::new("sqlite3"))
            .args(["-batch", ":memory:"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the sqlite3 shell: apt-get install sqlite3");
        let mut session = Session {
            stdin: child.stdin.take().unwrap(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        };
        session.tell(&format!(".load {}", library().display()));
        session
    }

    pub fn tell(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").unwrap();
    }

    /// The one line that `sql` answers.
    pub fn ask(&mut self, sql: &str) -> String {
        self.tell(sql);
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A Python whose sqlite3 can load extensions.
fn interpreter() -> &'static str {
    let check =
        "import sqlite3, sys; sys.exit(not hasattr(sqlite3.Connection, 'enable_load_extension'))";
    ["python3", "/usr/bin/python3"]
        .into_iter()
        .find(|python| {
            Command::new(python)
                .args(["-c", check])
                .status()
                .is_ok_and(|status| status.success())
        })
        .expect("a Python that can load SQLite extensions: apt-get install python3")
}

/// Runs `script` in Python, in the directory `dir`; `LIBRARY` is the extension's path.
pub fn python(dir: &Path, script: &str) -> Ran {
    let mut command = Command::new(interpreter());
    let library = library();
    let library = library.to_str().unwrap().trim_end_matches(".so");
    let script = format!("LIBRARY = {library:?}\n{script}");
    without_settings(&mut command)
        .args(["-c", &script])
        .current_dir(dir)
        .stdin(Stdio::null());
    Ran::from(command.output().unwrap())
}

/// `app.db` in a directory, with a commit for each of `statements`.
pub fn database(statements: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let connection = common::open(&path, "");
    for sql in statements {
        connection
            .execute_batch(sql)
            .unwrap_or_else(|e| panic!("{sql}: {e}"));
    }
    connection.close().unwrap();
    (dir, path)
}
