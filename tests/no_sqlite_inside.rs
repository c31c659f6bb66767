//! The library must carry no SQLite of its own: one careless direct call would link a second one into the host, with
//! its own locks. `nm` tells.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What an application or SQLite's loader may look up.
const ENTRY_POINTS: [&str; 4] = [
    "mycelite_config",
    "mycelite_reader",
    "mycelite_writer",
    "sqlite3_mycelite_init",
];

/// The pointer to the host's routine table, private to the C shim.
const TABLE_POINTER: &str = "sqlite3_api";

/// The library that cargo built beside this test.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let name = format!(
        "{}mycelite{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    );
    let library = test.parent().unwrap().join(name);
    assert!(
        library.exists(),
        "no {}: run this by cargo test",
        library.display()
    );
    library
}

/// The names that `nm` lists, without macOS's leading underscore and without versions.
fn symbols(file: &Path, options: &[&str]) -> BTreeSet<String> {
    let output = Command::new("nm").args(options).arg(file).output();
    let output = output.expect("nm comes with the C compiler (package binutils)");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .map(|name| name.split('@').next().unwrap_or(name))
        .map(|name| {
            if cfg!(target_os = "macos") {
                name.trim_start_matches('_')
            } else {
                name
            }
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn no_symbol_of_sqlite_is_inside() {
    let all = symbols(&library(), &[]);
    assert!(
        all.contains("sqlite3_mycelite_init"),
        "nm shows no symbols at all: is the library stripped?"
    );
    let foreign: Vec<&String> = all
        .iter()
        .filter(|name| name.starts_with("sqlite3"))
        .filter(|name| !ENTRY_POINTS.contains(&name.as_str()) && *name != TABLE_POINTER)
        .collect();
    assert!(
        foreign.is_empty(),
        "{} symbols of SQLite in the library, such as {:?}: some code calls SQLite directly, not through c-shim",
        foreign.len(),
        &foreign[..foreign.len().min(5)]
    );
}

#[test]
fn only_the_entry_points_are_exported() {
    let exported = symbols(&library(), &["-D", "--defined-only"]);
    let expected: BTreeSet<String> = ENTRY_POINTS.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(expected, exported);
}

#[test]
fn the_check_would_notice() {
    // The program has SQLite inside, by way of rusqlite; this test too, once it opens a database.
    assert!(rusqlite::Connection::open_in_memory().is_ok());
    let all = symbols(&std::env::current_exe().unwrap(), &[]);
    assert!(
        all.iter()
            .filter(|name| name.starts_with("sqlite3"))
            .count()
            > 500
    );
}
