//! A replica server as a child process: started, killed, brought back, stopped; never left behind.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use mycelite::error::{Error, ErrorKind, Result};

/// How long a server may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(20);

/// One replica server and its directory.
pub struct Replica {
    /// `replica 1`, for people.
    pub title: String,
    data: PathBuf,
    errors: PathBuf,
    address: String,
    process: Option<Process>,
}

struct Process {
    child: Child,
    /// Its end tells the server to stop: so it also stops when this program dies in any way.
    stdin: Option<ChildStdin>,
    /// Kept open, so that the server never writes into a closed pipe.
    _stdout: BufReader<ChildStdout>,
}

impl Replica {
    /// Starts a server on a free port, with its replicas in `home/replica-N`.
    pub fn start(home: &Path, number: usize) -> Result<Replica> {
        let data = home.join(format!("replica-{number}"));
        std::fs::create_dir_all(&data).map_err(|source| Error::io("creating", &data, &source))?;
        let mut replica = Replica {
            title: format!("replica {number}"),
            data,
            errors: home.join(format!("replica-{number}.log")),
            address: "127.0.0.1:0".into(),
            process: None,
        };
        replica.spawn()?;
        Ok(replica)
    }

    /// The URL of the demo's database on this server.
    pub fn url(&self) -> String {
        format!("http://{}/app", self.address)
    }

    /// The replica's file.
    pub fn db(&self) -> PathBuf {
        self.data.join("app.db")
    }

    /// Whether the server runs.
    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// Kills the server with SIGKILL, wherever it is in its work.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process
                .child
                .kill()
                .map_err(|source| self.failed("killing", &source))?;
            process
                .child
                .wait()
                .map_err(|source| self.failed("waiting for", &source))?;
        }
        Ok(())
    }

    /// Starts it again, at the same address.
    pub fn restart(&mut self) -> Result<()> {
        self.spawn()
    }

    /// Stops the server in good order.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        drop(process.stdin.take());
        let deadline = Instant::now() + PATIENCE;
        loop {
            match process
                .child
                .try_wait()
                .map_err(|source| self.failed("waiting for", &source))?
            {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    return Err(Error::new(
                        ErrorKind::Internal,
                        format_args!("the server ended with {status}{}", self.last_error()),
                    )
                    .at(&self.title));
                }
                None if Instant::now() >= deadline => {
                    self.process = Some(process);
                    self.kill()?;
                    return Err(Error::new(
                        ErrorKind::Internal,
                        "the server did not stop when asked",
                    )
                    .at(&self.title));
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn spawn(&mut self) -> Result<()> {
        let program = std::env::current_exe()
            .map_err(|source| Error::new(ErrorKind::Io, source).at("this program's path"))?;
        let errors = File::options()
            .create(true)
            .append(true)
            .open(&self.errors)
            .map_err(|source| Error::io("creating", &self.errors, &source))?;
        let mut command = Command::new(program);
        command
            .args([
                "serve",
                "--with-parent",
                "--listen",
                &self.address,
                "--data",
            ])
            .arg(&self.data)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors);
        let mut child = command
            .spawn()
            .map_err(|source| self.failed("starting", &source))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        // From here on the child is ended by drop, whatever happens.
        let mut guard = Guard(Some(child));
        let (Some(stdin), Some(stdout)) = (stdin, stdout) else {
            return Err(Error::new(ErrorKind::Internal, "the server has no pipes").at(&self.title));
        };
        let (address, stdout) = self.await_address(stdout)?;
        self.address = address;
        self.process = guard.0.take().map(|child| Process {
            child,
            stdin: Some(stdin),
            _stdout: stdout,
        });
        Ok(())
    }

    /// Waits for the line that says where the server listens.
    fn await_address(&self, stdout: ChildStdout) -> Result<(String, BufReader<ChildStdout>)> {
        let (sender, receiver) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut line = String::new();
            let read = reader.read_line(&mut line);
            // Nobody waits any more if it took too long.
            let _ = sender.send(read.map(|_| (line, reader)));
        });
        let silent = || {
            Error::new(
                ErrorKind::Internal,
                format_args!("the server did not start{}", self.last_error()),
            )
            .at(&self.title)
            .hint("try mycelite serve by hand")
        };
        let (line, reader) = receiver
            .recv_timeout(PATIENCE)
            .map_err(|_| silent())?
            .map_err(|_| silent())?;
        let address = line
            .trim()
            .strip_prefix("listening on http://")
            .ok_or_else(silent)?;
        Ok((address.to_string(), reader))
    }

    /// The last line that the server wrote to its log, as an addition to a message.
    fn last_error(&self) -> String {
        let text = std::fs::read_to_string(&self.errors).unwrap_or_default();
        match text.lines().last() {
            Some(line) => format!(": {line}"),
            None => String::new(),
        }
    }

    fn failed(&self, what: &str, source: &std::io::Error) -> Error {
        Error::new(ErrorKind::Io, format_args!("{what} the server: {source}")).at(&self.title)
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        // On the way out of an error there is nobody to tell.
        let _ = self.kill();
    }
}

/// Ends a child that is not anybody's yet.
struct Guard(Option<Child>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
