//! What the tests of the command line share: the real program, run with arguments, and a server that never outlives a test.
#![allow(dead_code)]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The program that cargo built for this test, without settings from the environment.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mycelite"));
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("MYCELITE_") {
            command.env_remove(key);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// What a run of the program came to.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    /// The run must have succeeded without a word on stderr; its standard output.
    #[track_caller]
    pub fn good(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""), "{self:?}");
        self.stdout
    }

    /// The run must have failed with this code and one line of error; the line.
    #[track_caller]
    pub fn bad(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.stdout, "", "an error says nothing on standard output");
        let line = self.stderr.strip_suffix('\n').unwrap_or_default();
        assert!(line.starts_with("mycelite: error: "), "{self:?}");
        assert_eq!(line.lines().count(), 1, "{self:?}");
        line.to_string()
    }

    pub fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.good()).unwrap()
    }
}

/// Runs the program to its end.
pub fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ran {
    program().args(arguments).output().unwrap().into()
}

/// As [`run`], with environment variables.
pub fn run_with(arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
    program()
        .args(arguments)
        .envs(variables.iter().copied())
        .output()
        .unwrap()
        .into()
}

/// A running `mycelite serve`.
pub struct Serve {
    pub child: Child,
    pub scheme: String,
    pub address: String,
    pub data: PathBuf,
    _stdin: Option<ChildStdin>,
    _stdout: BufReader<ChildStdout>,
}

impl Serve {
    /// Starts a server on a free port.
    pub fn start(data: &Path, arguments: &[&str]) -> Serve {
        Serve::start_at(data, "127.0.0.1:0", arguments)
    }

    pub fn start_at(data: &Path, listen: &str, arguments: &[&str]) -> Serve {
        Serve::spawn(data, listen, arguments, Stdio::null())
    }

    /// As [`Serve::start`], with its log in a file.
    pub fn start_logged(data: &Path, arguments: &[&str], log: &Path) -> Serve {
        let log = std::fs::File::create(log).unwrap();
        Serve::spawn(data, "127.0.0.1:0", arguments, log.into())
    }

    fn spawn(data: &Path, listen: &str, arguments: &[&str], stderr: Stdio) -> Serve {
        let mut child = program()
            .args(["serve", "--with-parent", "--listen", listen, "--data"])
            .arg(data)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let (scheme, address) = line
            .trim()
            .strip_prefix("listening on ")
            .and_then(|url| url.split_once("://"))
            .expect("the server's first line");
        Serve {
            _stdin: child.stdin.take(),
            _stdout: stdout,
            child,
            scheme: scheme.to_string(),
            address: address.to_string(),
            data: data.to_path_buf(),
        }
    }

    pub fn url(&self, name: &str) -> String {
        format!("{}://{}/{name}", self.scheme, self.address)
    }

    pub fn db(&self, name: &str) -> PathBuf {
        self.data.join(format!("{name}.db"))
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `done`, at most `limit`.
#[track_caller]
pub fn wait_for(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Sends a signal, by the shell's own `kill`: the program of that name is not on every machine.
pub fn signal(pid: u32, name: &str) {
    let command = format!("kill -{name} {pid}");
    let status = Command::new("sh").args(["-c", &command]).status().unwrap();
    assert!(status.success());
}
