//! The examples run as their readers would run them, with the stock sqlite3 shell, C compiler and Python of this machine, and its Node.
#![allow(clippy::unwrap_used)]

mod clikit;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clikit::{Ran, Serve, run, text, wait_for};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(name)
}

fn built() -> PathBuf {
    std::env::current_exe()
        .unwrap()
        .parent()
        .unwrap()
        .to_path_buf()
}

/// The library that cargo built beside this test.
fn library() -> PathBuf {
    let library = built().join("libmycelite.so");
    assert!(
        library.exists(),
        "no {}: run this by cargo test",
        library.display()
    );
    library
}

/// A Python whose sqlite3 can load extensions.
fn python() -> &'static str {
    let check =
        "import sqlite3, sys; sys.exit(not hasattr(sqlite3.Connection, 'enable_load_extension'))";
    let can = |python: &&&str| {
        Command::new(python)
            .args(["-c", check])
            .status()
            .is_ok_and(|status| status.success())
    };
    let found = ["python3", "/usr/bin/python3"].iter().find(can).copied();
    found.expect("a Python that can load SQLite extensions: apt-get install python3 (.ci/run does)")
}

fn shell() -> Command {
    let version = Command::new("sqlite3").arg("-version").output();
    assert!(
        version.is_ok(),
        "the sqlite3 shell: apt-get install sqlite3 (.ci/run does)"
    );
    Command::new("sqlite3")
}

#[track_caller]
fn must_print(command: &mut Command, expected: &[&str]) {
    let ran = Ran::from(command.output().unwrap());
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    for part in expected {
        assert!(
            ran.stdout.contains(part),
            "{part:?} is missing in\n{}{}",
            ran.stdout,
            ran.stderr
        );
    }
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_mycelite");

#[test]
fn the_shell_example_runs() {
    shell();
    let expected = [
        "transaction 3, checksum",
        "\"state\":\"ok\"",
        "holds everything up to transaction 3",
        "plum|12",
        "identical: ",
    ];
    must_print(
        Command::new("sh")
            .arg(example("shell/replicate.sh"))
            .args([Path::new(PROGRAM), &library()]),
        &expected,
    );
}

#[test]
fn the_python_example_runs() {
    let expected = [
        "written: transaction 102",
        "all 100 notes are there",
        "byte for byte",
        "identical: ",
    ];
    must_print(
        Command::new(python())
            .arg(example("python/replicate.py"))
            .args([Path::new(PROGRAM), &library()]),
        &expected,
    );
}

#[test]
fn the_rust_example_runs() {
    let program = built().parent().unwrap().join("examples/rust");
    if !program.exists() {
        // `cargo test` builds examples; `cargo test --test examples` does not.
        let status = Command::new(env!("CARGO"))
            .args(["build", "--example", "rust"])
            .status()
            .unwrap();
        assert!(status.success());
    }
    let expected = [
        "\"state\":\"ok\"",
        "holds everything up to transaction 4",
        "byte for byte",
        "identical: ",
    ];
    must_print(
        Command::new(program).args([Path::new(PROGRAM), &library()]),
        &expected,
    );
}

#[test]
fn the_c_example_runs() {
    let home = tempfile::tempdir().unwrap();
    let program = home.path().join("replicate");
    let compiled = Command::new("cc")
        .args(["-Wall", "-Wextra", "-Werror", "-o"])
        .args([&program, &example("c/replicate.c")])
        .arg("-lsqlite3")
        .output()
        .unwrap();
    assert!(
        compiled.status.success(),
        "SQLite's header: apt-get install libsqlite3-dev (.ci/run does)\n{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    let expected = [
        "transaction 3, checksum",
        "holds everything up to transaction 3",
        "byte for byte",
        "replica: bolt 388",
        "identical: ",
    ];
    must_print(
        Command::new(program).args([Path::new(PROGRAM), &library()]),
        &expected,
    );
}

/// The Node that `NODE` names, else the one of this machine if it has SQLite in it, as it has since 22.13.
fn node() -> Option<PathBuf> {
    let has_sqlite = |node: &PathBuf| {
        let output = Command::new(node)
            .args(["-e", "require('node:sqlite')"])
            .output();
        output.is_ok_and(|output| output.status.success())
    };
    if let Some(named) = std::env::var_os("NODE").map(PathBuf::from) {
        assert!(has_sqlite(&named), "{} has no node:sqlite", named.display());
        return Some(named);
    }
    Some(PathBuf::from("node")).filter(has_sqlite)
}

#[test]
fn the_node_example_runs() {
    let Some(node) = node() else {
        eprintln!(
            "left out: no Node 22.13 or later; NODE=PATH names one (.ci/run gets one by npm)"
        );
        return;
    };
    let expected = [
        "written: transaction 102",
        "all 100 tasks are there",
        "byte for byte",
        "identical: ",
    ];
    must_print(
        Command::new(node)
            .arg(example("node/replicate.mjs"))
            .args([Path::new(PROGRAM), &library()]),
        &expected,
    );
}

/// Where packages.py finds packages: this machine's index, or made-up stanzas where there is none.
fn index(home: &Path) -> String {
    if Path::new("/var/lib/dpkg/status").exists() {
        return "auto".into();
    }
    let mut stanzas = String::new();
    for n in 0..900 {
        let (section, maintainer) = (n % 7, n % 31);
        writeln!(
            stanzas,
            "Package: made-{n}\nVersion: 1.{n}\nArchitecture: all\nSection: s{section}\nMaintainer: M{maintainer} <m@example.org>\n\
             Depends: made-{} (>= 1), x | y\nTag: a::b{section}, c::d\nDescription: number {n}\n more of it\n",
            n / 2
        )
        .unwrap();
    }
    let file = home.join("stanzas");
    std::fs::write(&file, stanzas).unwrap();
    text(&file).to_string()
}

/// A directory with a replica server, for loads of packages.
struct Load {
    home: tempfile::TempDir,
    index: String,
    server: Serve,
}

impl Load {
    fn new() -> Load {
        let home = tempfile::tempdir().unwrap();
        let index = index(home.path());
        let server = Serve::start(&home.path().join("replicas"), &[]);
        Load {
            home,
            index,
            server,
        }
    }

    fn db(&self, name: &str) -> PathBuf {
        self.home.path().join(format!("{name}.db"))
    }

    fn script(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(python());
        command.arg(example("packages.py"));
        // An argument that comes again later wins.
        command.args(["--index", &self.index, "--limit", "900"]);
        command.args(arguments);
        command
    }

    /// Loads through Python with the extension.
    fn python(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = self.script(arguments);
        command
            .arg("--db")
            .arg(self.db(name))
            .arg("--extension")
            .arg(library());
        command.args(["--replica", &self.server.url(name)]);
        command
    }

    /// Sends what is left, and demands that log, database and replica are one, in so many records.
    #[track_caller]
    fn check(&self, name: &str, commits: usize) {
        let db = self.db(name);
        run(["push", text(&db), "--to", &self.server.url(name)]).good();
        let records = run(["log", text(&db), "--json"]).good().lines().count();
        assert_eq!(records, commits, "records for commits of {name}");
        let replica = self.server.db(name);
        wait_for("the replica", Duration::from_secs(60), || {
            std::fs::read(&replica).is_ok_and(|bytes| bytes == std::fs::read(&db).unwrap())
        });
        for file in [&db, &replica] {
            let ran = Ran::from(
                shell()
                    .arg(file)
                    .arg("PRAGMA integrity_check")
                    .output()
                    .unwrap(),
            );
            assert_eq!(ran.good().trim(), "ok");
        }
        assert!(
            run(["verify", "--deep", text(&db)])
                .good()
                .contains("byte for byte")
        );
    }
}

/// A number in the script's last line.
#[track_caller]
fn figure(summary: &str, name: &str) -> usize {
    let word = summary
        .split_whitespace()
        .find_map(|word| word.strip_prefix(&format!("{name}=")));
    word.unwrap_or_else(|| panic!("no {name} in {summary:?}"))
        .parse()
        .unwrap()
}

#[test]
fn packages_through_python_in_both_modes() {
    let load = Load::new();
    for mode in ["delete", "wal"] {
        let arguments = ["--journal-mode", mode, "--commit-every", "10"];
        let summary = Ran::from(load.python(mode, &arguments).output().unwrap()).good();
        let packages = figure(&summary, "packages");
        assert!(packages >= 50, "{summary}");
        let commits = figure(&summary, "commits");
        assert_eq!(
            commits,
            1 + packages.div_ceil(10) + 4 + usize::from(mode == "wal")
        );
        load.check(mode, commits);
    }
}

#[test]
fn packages_through_the_shell_in_both_modes() {
    let load = Load::new();
    for mode in ["delete", "wal"] {
        let sql = load
            .script(&["--sql", "--journal-mode", mode, "--commit-every", "10"])
            .output()
            .unwrap();
        let uri = format!(
            "file:{}?vfs=mycelite_writer&replica={}",
            load.db(mode).display(),
            load.server.url(mode)
        );
        let mut shell = shell();
        shell
            .args(["-bail", ":memory:", "-cmd"])
            .arg(format!(".load {}", library().display()));
        shell.arg("-cmd").arg(format!(".open '{uri}'"));
        let mut shell = shell
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut shell.stdin.take().unwrap(), &sql.stdout).unwrap();
        let output = shell.wait_with_output().unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
        load.check(
            mode,
            figure(&String::from_utf8(sql.stderr).unwrap(), "commits"),
        );
    }
}

/// Reads the script's `commit N` lines until there are so many, then kills it.
fn kill_after(mut child: Child, commits: usize) {
    let stdout = child.stdout.take().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(stdout));
    assert_eq!(lines.map_while(Result::ok).take(commits).count(), commits);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn packages_of_a_killed_load_go_on_where_it_stood() {
    let load = Load::new();
    for mode in ["delete", "wal"] {
        let mut arguments = vec![
            "--journal-mode",
            mode,
            "--commit-every",
            "3",
            "--limit",
            "240",
            "--echo",
        ];
        let child = load
            .python(mode, &arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        kill_after(child, 9);
        arguments.pop();
        let summary = Ran::from(load.python(mode, &arguments).output().unwrap()).good();
        assert!(figure(&summary, "packages") > 0, "{summary}");
        // How far the killed one came after its ninth commit nobody knows: the log and the files must tell the same.
        let records = run(["log", text(&load.db(mode)), "--json"])
            .good()
            .lines()
            .count();
        assert!(records >= 9 + figure(&summary, "commits"));
        load.check(mode, records);
        let whole = load.home.path().join(format!("whole-{mode}.db"));
        Ran::from(
            load.script(&["--db", text(&whole), "--limit", "240"])
                .output()
                .unwrap(),
        )
        .good();
        assert_eq!(
            dump(&whole),
            dump(&load.db(mode)),
            "the rows are those of an undisturbed load"
        );
    }
}

#[test]
fn packages_of_two_processes_at_once() {
    let load = Load::new();
    let db = load.db("both");
    // The mode is set first, so that the switch is one commit of one process.
    let made = shell()
        .arg(&db)
        .arg("PRAGMA journal_mode = WAL; CREATE TABLE first(x)")
        .output()
        .unwrap();
    assert!(made.status.success());
    let parts = ["1/2", "2/2"].map(|part| {
        load.python(
            "both",
            &["--part", part, "--commit-every", "3", "--limit", "450"],
        )
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
    });
    let commits: usize = parts
        .into_iter()
        .map(|child| {
            figure(
                &Ran::from(child.wait_with_output().unwrap()).good(),
                "commits",
            )
        })
        .sum();
    // One record adopts what the shell had made.
    load.check("both", commits + 1);
}

fn dump(db: &Path) -> Vec<String> {
    let ran = Ran::from(shell().arg(db).arg(".dump").output().unwrap());
    let mut lines: Vec<String> = ran.good().lines().map(str::to_string).collect();
    // The full-text index is cut up differently by other commits; it holds the same words.
    lines.retain(|line| !line.contains("package_text_"));
    lines.sort();
    lines
}

#[test]
fn packages_refuses_what_makes_no_sense() {
    let home = tempfile::tempdir().unwrap();
    let db = home.path().join("x.db");
    let db = text(&db);
    for (arguments, says) in [
        (vec![], "give either --db FILE or --sql"),
        (vec!["--db", db, "--sql"], "give either --db FILE or --sql"),
        (
            vec!["--db", db, "--replica", "http://127.0.0.1:1/x"],
            "--replica needs --extension",
        ),
        (
            vec!["--db", db, "--extension", "/nowhere/lib.so"],
            "does not load",
        ),
        (vec!["--db", db, "--index", "/nowhere"], "no such file"),
        (vec!["--db", db, "--part", "3/2"], "--part is K/N"),
        (vec!["--db", "/nowhere/x.db"], "unable to open"),
    ] {
        let output = Command::new(python())
            .arg(example("packages.py"))
            .args(&arguments)
            .output()
            .unwrap();
        let ran = Ran::from(output);
        assert_eq!(ran.code, 2, "{arguments:?}: {ran:?}");
        let last = ran.stderr.lines().last().unwrap();
        assert!(
            last.starts_with("packages.py: error: ") && last.contains(says),
            "{arguments:?}: {last}"
        );
    }
}
