//! The package index, written through the shell and through Python, in both journal modes, while shells read the replica.

use std::path::Path;
use std::process::{Child, Stdio};

use crate::clikit::{Ran, Serve};
use crate::kit::{
    assert_identical, assert_one_record_each, figure, finish, full, index, limit, load_wait,
    packages, python, script, uri, writer_shell,
};
use crate::reader::{PACKAGES, Readers};

/// Who writes.
#[derive(Clone, Copy)]
enum Writer {
    Shell,
    Python,
}

/// A load under way; its summary comes from the script.
struct Load {
    script: Child,
    shell: Option<Child>,
}

impl Load {
    fn start(writer: Writer, db: &Path, replica: &str, arguments: &[&str]) -> Load {
        match writer {
            Writer::Python => Load {
                script: packages(db, replica, arguments)
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap(),
                shell: None,
            },
            Writer::Shell => {
                let mut script = python()
                    .arg(script())
                    .args(["--sql", "--index", index()])
                    .args(arguments)
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap();
                let shell = writer_shell(&uri(db, replica))
                    .stdin(script.stdout.take().unwrap())
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap();
                Load {
                    script,
                    shell: Some(shell),
                }
            }
        }
    }

    /// The script's last line.
    #[track_caller]
    fn summary(self) -> String {
        let script = finish(self.script, load_wait());
        match self.shell {
            None => script.good(),
            Some(shell) => {
                finish(shell, load_wait()).good();
                let Ran {
                    code,
                    stderr: summary,
                    ..
                } = script;
                assert_eq!(code, 0, "{summary}");
                summary
            }
        }
    }
}

fn load(writer: Writer, mode: &str) {
    let home = tempfile::tempdir().unwrap();
    let server = Serve::start(&home.path().join("replicas"), &[]);
    let db = home.path().join("app.db");
    let every = if full() { 500 } else { 10 };
    let load = Load::start(
        writer,
        &db,
        &server.url("app"),
        &[
            "--journal-mode",
            mode,
            "--limit",
            &limit(400),
            "--commit-every",
            &every.to_string(),
        ],
    );
    let readers = Readers::start(&server.db("app"), PACKAGES, "package_text");
    let summary = load.summary();
    let (loaded, commits) = (figure(&summary, "packages"), figure(&summary, "commits"));
    // The schema is one transaction, each further lot of packages, three indexes and the full-text index's own tidying
    // one each; and entering WAL mode is one, for it changes the file's header.
    let expected = 1 + loaded.div_ceil(every) + 4 + usize::from(mode == "wal");
    assert_eq!(commits, expected, "{summary}");
    assert_identical(&db, &[(&server, "app")]);
    assert_one_record_each(&db, commits);
    let seen = readers.stop(loaded);
    println!("{mode}: {}; readers: {seen:?}", summary.trim());
}

#[test]
fn through_python_in_delete_mode() {
    load(Writer::Python, "delete");
}

#[test]
fn through_python_in_wal_mode() {
    load(Writer::Python, "wal");
}

#[test]
fn through_the_shell_in_delete_mode() {
    load(Writer::Shell, "delete");
}

#[test]
fn through_the_shell_in_wal_mode() {
    load(Writer::Shell, "wal");
}
