//! What all acceptance tests share: where things are, programs that are waited for with a bound, and the final check.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::clikit::{Ran, Serve, program, text};

/// Nothing that a test waits for may take longer, also on a machine that does something else at the same time.
pub const LONG: Duration = Duration::from_secs(60);
/// The same for a load of the whole package index.
const VERY_LONG: Duration = Duration::from_secs(1800);

/// Stanzas in the part of the package index that a short run uses.
const STANZAS: usize = 2500;

/// Whether the whole package index is to be loaded.
pub fn full() -> bool {
    std::env::var("MYCELITE_ACCEPTANCE").is_ok_and(|how| how == "full")
}

/// How long a load may take.
pub fn load_wait() -> Duration {
    if full() { VERY_LONG } else { LONG }
}

/// For `--limit`: `short` packages, or all of them.
pub fn limit(short: usize) -> String {
    if full() { 0 } else { short }.to_string()
}

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

/// A program of the system, without settings of ours from the environment: an unknown one would refuse every open.
pub fn stock(program: &str) -> Command {
    let mut command = Command::new(program);
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("MYCELITE_") {
            command.env_remove(key);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// The stock shell.
pub fn shell() -> Command {
    stock("sqlite3")
}

/// The stock shell with the extension loaded and `uri` opened through it; give it SQL as arguments or as input.
pub fn writer_shell(uri: &str) -> Command {
    let mut shell = shell();
    shell.args(["-bail", ":memory:", "-cmd"]);
    shell.arg(format!(".load {}", library().display()));
    shell.arg("-cmd").arg(format!(".open '{uri}'"));
    shell
}

/// Debian's Python, which can load SQLite extensions.
pub fn python() -> Command {
    stock("/usr/bin/python3")
}

/// `db` as a URI that names the writer and where to replicate to.
pub fn uri(db: &Path, replica: &str) -> String {
    format!(
        "file:{}?vfs=mycelite_writer&replica={replica}",
        db.display()
    )
}

/// Waits for a program's end and collects what it said; one that takes too long is killed, and fails the test.
#[track_caller]
pub fn finish(mut child: Child, limit: Duration) -> Ran {
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("no end within {limit:?}: {}", stderr.recv().unwrap());
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    // A child of the child may hold the pipes for longer; what it says does not matter.
    let wait = Duration::from_secs(5);
    Ran {
        code: status.code().unwrap_or(-1),
        stdout: stdout.recv_timeout(wait).unwrap(),
        stderr: stderr.recv_timeout(wait).unwrap(),
    }
}

/// All that comes out of a pipe, when it ends.
fn collect(pipe: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        // Nobody listens any more if the test has failed.
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

/// Runs a program to its end, [`LONG`] at most.
#[track_caller]
pub fn finished(command: &mut Command) -> Ran {
    finished_within(command, LONG)
}

#[track_caller]
pub fn finished_within(command: &mut Command, limit: Duration) -> Ran {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    finish(child, limit)
}

/// What the stock shell answers, which must be without errors.
#[track_caller]
pub fn ask(db: &Path, sql: &str) -> String {
    finished_within(
        shell().args(["-cmd", ".timeout 60000"]).arg(db).arg(sql),
        load_wait(),
    )
    .good()
    .trim_end()
    .to_string()
}

/// Runs our program.
#[track_caller]
pub fn mycelite(arguments: &[&str]) -> Ran {
    finished_within(program().args(arguments), load_wait())
}

/// The script that loads packages.
pub fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/packages.py")
}

/// Which index `packages.py` shall read: this machine's own in a full run, a part of it else.
pub fn index() -> &'static str {
    static PART: OnceLock<PathBuf> = OnceLock::new();
    if full() {
        return "auto";
    }
    text(PART.get_or_init(part_of_index))
}

/// The first stanzas of the package index. Where it holds too few (a container that never saw `apt-get update`), made-up
/// ones follow, and that is said.
fn part_of_index() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mut file = tempfile::NamedTempFile::new_in(directory).unwrap();
    let mut stanzas = 0;
    let mut add = |lines: &mut dyn Iterator<Item = Vec<u8>>| {
        for line in lines {
            file.write_all(&line).unwrap();
            file.write_all(b"\n").unwrap();
            stanzas += usize::from(line.is_empty());
            if stanzas == STANZAS {
                break;
            }
        }
        stanzas
    };
    if let Ok(mut apt) = stock("apt-cache")
        .arg("dumpavail")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
    {
        let output = BufReader::new(apt.stdout.take().unwrap());
        add(&mut output.split(b'\n').map_while(Result::ok));
        let _ = apt.kill();
        apt.wait().unwrap();
    }
    let real = add(&mut std::iter::empty());
    if real < STANZAS {
        eprintln!(
            "only {real} packages in this machine's index (apt-get update?): the others are made up"
        );
        add(&mut (real..STANZAS).flat_map(made_up));
    }
    let path = directory.join("acceptance-index");
    file.persist(&path).unwrap();
    path
}

fn made_up(n: usize) -> Vec<Vec<u8>> {
    let relations: Vec<String> = (1..12)
        .map(|k| format!("made-{} (>= {k})", n / k))
        .collect();
    format!(
        "Package: made-{n}\nVersion: 1.{n}\nArchitecture: all\nSection: s{}\nMaintainer: M{} <m@example.org>\nDepends: {}\n\
         Tag: a::b{}, c::d\nSHA256: {n:064x}\nFilename: pool/main/m/made-{n}.deb\nDescription: number {n}, which is made up\n",
        n % 7,
        n % 31,
        relations.join(", "),
        n % 5
    )
    .lines()
    .chain([""])
    .map(|line| line.as_bytes().to_vec())
    .collect()
}

/// `packages.py` with the extension, for a database and a replica (or several, separated by commas).
pub fn packages(db: &Path, replica: &str, arguments: &[&str]) -> Command {
    let mut command = python();
    command.arg(script()).arg("--db").arg(db);
    command.arg("--extension").arg(library());
    command.args(["--replica", replica, "--index", index()]);
    command.args(arguments);
    command
}

/// A number in the script's last line.
#[track_caller]
pub fn figure(summary: &str, name: &str) -> usize {
    let key = format!("{name}=");
    let mut words = summary.split_whitespace();
    let word = words.find_map(|word| word.strip_prefix(&key));
    word.unwrap_or_else(|| panic!("no {name} in {summary:?}"))
        .parse()
        .unwrap()
}

/// An address of its own for a server that is to be found under the same port again after it was killed: on 127.0.0.1
/// another program could have taken the port meanwhile.
pub fn own_address() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(1);
    let pid = std::process::id();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("127.{}.{}.{count}:0", 64 + (pid >> 8) % 64, pid % 256)
}

/// Kills the server with SIGKILL and starts it anew, at the same port over the same data.
pub fn kill_and_restart(server: &mut Serve) {
    server.kill();
    let (data, address) = (server.data.clone(), server.address.clone());
    *server = Serve::start_at(&data, &address, &[]);
}

/// The recorded transactions of a database, as `mycelite log --json` tells them.
#[track_caller]
pub fn records(db: &Path) -> Vec<serde_json::Value> {
    mycelite(&["log", text(db), "--json"])
        .good()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Whether a record is one transaction, and not a difference that was found by comparing.
pub fn is_transaction(record: &serde_json::Value) -> bool {
    let flags = record["flags"].as_array().unwrap();
    !flags.iter().any(|flag| flag == "rebase")
}

/// Every commit is one record, numbered without gaps, and no record is anything else.
#[track_caller]
pub fn assert_one_record_each(db: &Path, commits: usize) {
    let records = records(db);
    assert_eq!(records.len(), commits, "records for commits");
    for (record, number) in records.iter().zip(1u64..) {
        assert_eq!(record["txid"], number);
        assert_eq!(record["flags"], serde_json::json!([]), "{record}");
    }
}

/// Waits until the replica's file alone is the database's, byte for byte.
#[track_caller]
pub fn wait_until_same(db: &Path, server: &Serve, name: &str) {
    let replica = server.db(name);
    let deadline = Instant::now() + load_wait();
    while finished(stock("cmp").arg("-s").arg(db).arg(&replica)).code != 0 {
        assert!(
            Instant::now() < deadline,
            "{} does not become {}: {:?} {:?}",
            replica.display(),
            db.display(),
            finished(stock("cmp").arg(db).arg(&replica)),
            mycelite(&["status", &server.url(name), "--json"])
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends what is left, lets the primary's WAL be copied into its file, and demands that everything is one and the same:
/// `cmp` is silent, `integrity_check` is content with both, and `verify --deep` agrees on both sides.
#[track_caller]
pub fn assert_identical(db: &Path, replicas: &[(&Serve, &str)]) {
    // Through the extension, as any checkpoint of this database should go.
    let log = finished_within(
        writer_shell(&format!("file:{}?vfs=mycelite_writer", db.display()))
            .arg("PRAGMA wal_checkpoint(TRUNCATE)"),
        load_wait(),
    )
    .good();
    // Busy, frames in the WAL, frames copied: all is in the file; -1 where there is no WAL mode.
    assert!(["0|0|0\n", "0|-1|-1\n"].contains(&log.as_str()), "{log}");
    for (server, name) in replicas {
        let said = mycelite(&["push", text(db), "--to", &server.url(name)]).good();
        assert!(said.contains("holds everything"), "{said}");
        let replica = server.db(name);
        wait_until_same(db, server, name);
        assert_eq!(finished(stock("cmp").arg(db).arg(&replica)).good(), "");
        assert_eq!(ask(&replica, "PRAGMA integrity_check"), "ok");
        for source in [text(&replica), &server.url(name)] {
            let proof = mycelite(&["verify", "--deep", source]).good();
            assert!(proof.contains("byte for byte"), "{source}: {proof}");
        }
    }
    assert_eq!(ask(db, "PRAGMA integrity_check"), "ok");
    let proof = mycelite(&["verify", "--deep", text(db)]).good();
    assert!(proof.contains("byte for byte"), "{proof}");
}
