//! SQLite's own tests on our VFS: the set that is small enough for each run (see tests/sqlite-suite/README.md).
//!
//! They need Debian's source package of SQLite, a network and a minute to build it. So they run where the environment says
//! `SQLITE_SUITE=required`, as continuous integration does, and what is missing is a failure; elsewhere only where
//! `tests/sqlite-suite/run --build-only` has built what they need.

#![cfg(target_os = "linux")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// The exit code by which the command says that there is no testfixture.
const UNAVAILABLE: i32 = 77;

/// What cargo built beside this test.
fn built(place: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().join(place);
    assert!(
        path.exists(),
        "no {}: run this by cargo test, or cargo build --example sqlite_suite_oracle first",
        path.display()
    );
    path
}

#[test]
fn ci_set() {
    let required = std::env::var_os("SQLITE_SUITE").is_some_and(|value| value == "required");
    let command = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sqlite-suite/run");
    let mut run = Command::new(command);
    run.args(["--set", "ci", "--failed-only", "--seconds", "120"])
        .arg("--library")
        .arg(built("libmycelite.so"))
        .arg("--oracle")
        .arg(built("../examples/sqlite_suite_oracle"));
    if !required {
        run.arg("--if-built");
    }
    let output = run.output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let said = said.join("");
    match output.status.code() {
        Some(0) => println!("{said}"),
        Some(UNAVAILABLE) if !required => println!("skipped: {said}"),
        _ => panic!("tests/sqlite-suite/run --set ci:\n{said}"),
    }
}
