//! The house rules, kept by reading the source tree: who may import whom, what may be named where, what is not written
//! at all, and how long a file or function may be.

#![allow(clippy::unwrap_used)]

mod source;

use source::{
    File, code, files, functions, has_word, line_of, rooms_used, rust_files, without_tests,
};

/// Lines of a file.
const FILE_LINES_MAX: usize = 600;
/// Lines of a function, from `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;
/// Lines of a function in a test, which may hold a table of cases.
const TEST_LINES_MAX: usize = 120;

/// Files that may be longer, each with its reason.
const LONG_FILES: [(&str, &str); 1] = [("c-shim/sqlite3ext-sys/src/bindings.rs", "generated")];
/// Functions that may be longer, each with its reason: path, name, reason.
const LONG_FUNCTIONS: [(&str, &str, &str); 0] = [];

/// Crates that are named in their own rooms only. Tests may name what they like.
const ROOMS_OF_CRATES: [(&str, &[&str]); 9] = [
    ("libsqlite3_sys", &["src/ffi/", "c-shim/"]),
    ("sqlite_loadable", &["src/sql/"]),
    ("reqwest", &["src/ship/", "src/store/", "src/store.rs"]),
    ("bincode", &["src/proto/", "src/proto.rs"]),
    ("rusqlite", &["src/cli/", "examples/"]),
    ("axum", &["src/server/"]),
    ("rustls", &["src/access.rs", "src/server/", "src/ship/"]),
    ("ring", &["src/access.rs", "src/server/auth.rs"]),
    ("subtle", &["src/server/auth.rs"]),
];

/// Rooms of the main crate, and the rooms that they must not see.
const UNSEEN: [(&str, &[&str]); 13] = [
    (
        "src/diff/",
        &[
            "vfs", "ffi", "ship", "server", "apply", "follow", "sql", "cli",
        ],
    ),
    (
        "src/capture/",
        &["ship", "server", "store", "apply", "sql", "ffi", "cli"],
    ),
    (
        "src/ship/",
        &[
            "vfs", "ffi", "capture", "database", "apply", "server", "sql", "cli",
        ],
    ),
    (
        "src/apply/",
        &[
            "vfs", "ffi", "capture", "database", "ship", "server", "sql", "cli",
        ],
    ),
    (
        "src/follow/",
        &[
            "vfs", "ffi", "capture", "database", "apply", "server", "sql", "cli",
        ],
    ),
    (
        "src/reader/",
        &["ffi", "ship", "server", "apply", "follow", "sql", "cli"],
    ),
    (
        "src/server/",
        &["vfs", "ffi", "capture", "database", "ship", "sql", "cli"],
    ),
    (
        "src/proto",
        &[
            "vfs", "ffi", "capture", "database", "ship", "server", "apply", "sql", "cli",
        ],
    ),
    (
        "src/config/",
        &[
            "vfs", "ffi", "capture", "database", "ship", "server", "apply", "sql", "cli",
        ],
    ),
    (
        "src/maintain/",
        &[
            "vfs", "ffi", "capture", "database", "ship", "server", "apply", "sql", "cli",
        ],
    ),
    (
        "src/database.rs",
        &["ffi", "vfs", "server", "apply", "sql", "cli"],
    ),
    (
        "src/sql/",
        &["ffi", "vfs", "capture", "ship", "server", "apply", "cli"],
    ),
    ("src/cli/", &["ffi", "vfs"]),
];

/// Rooms where unsafe code may live: also the program's door to its own SQLite, which takes a C function, and the example
/// that loads the library, which rusqlite calls unsafe.
const UNSAFE_ROOMS: [&str; 5] = [
    "src/ffi/",
    "src/sql/",
    "c-shim/",
    "src/cli/register.rs",
    "examples/rust/",
];

/// What is not written anywhere, and what to do instead. In pieces, so that this file passes its own check.
const BANNED: [(&str, &str); 6] = [
    (
        concat!("static ", "mut "),
        "use OnceLock, an atomic or a Mutex",
    ),
    (concat!("todo", "!"), "write it, or leave it out"),
    (
        concat!("unimplemented", "!"),
        "write it, or return an error",
    ),
    (concat!("dbg", "!"), "use tracing"),
    (concat!("#[", "ignore"), "a test runs or does not exist"),
    (concat!("include!", "(concat!(env!"), "checked-in code only"),
];

fn check(broken: Vec<String>) {
    assert!(
        broken.is_empty(),
        "{} broken:\n{}",
        broken.len(),
        broken.join("\n")
    );
}

/// The code that is checked: of the house itself, without its tests.
fn house() -> impl Iterator<Item = (File, String)> {
    rust_files()
        .into_iter()
        .filter(|file| !file.is_test())
        .map(|file| {
            let code = without_tests(&code(&file.text)).to_owned();
            (file, code)
        })
}

#[test]
fn crates_are_named_in_their_rooms_only() {
    let mut broken = Vec::new();
    for (file, code) in house() {
        for (name, rooms) in ROOMS_OF_CRATES {
            if has_word(&code, name) && !file.is_in(rooms) {
                broken.push(format!(
                    "{}: names {name}, which belongs in {}",
                    file.path,
                    rooms.join(", ")
                ));
            }
        }
    }
    check(broken);
}

#[test]
fn rooms_do_not_see_what_they_must_not() {
    let mut broken = Vec::new();
    for (file, code) in house() {
        let used = rooms_used(&file.path, &code);
        for (room, unseen) in UNSEEN {
            if !file.path.starts_with(room) {
                continue;
            }
            for (name, line) in used
                .iter()
                .filter(|(name, _)| unseen.contains(&name.as_str()))
            {
                broken.push(format!("{}:{line}: {room} must not see {name}", file.path));
            }
        }
        let imports_ffi = used.iter().any(|(name, _)| name == "ffi");
        if imports_ffi && !file.is_in(&["src/ffi/", "src/lib.rs"]) {
            broken.push(format!("{}: nobody imports ffi", file.path));
        }
    }
    check(broken);
}

#[test]
fn the_log_and_the_shim_know_nothing_of_the_rest() {
    let mut broken = Vec::new();
    for (file, code) in house() {
        let unknown: &[&str] = if file.path.starts_with("journal/") {
            // No SQLite, no network, and no clock: time is an argument.
            &[
                "mycelite",
                "c_shim",
                "reqwest",
                "tokio",
                "SystemTime",
                "Instant",
            ]
        } else if file.path.starts_with("c-shim/") {
            &["mycelite", "mycelite_journal", "reqwest", "tokio"]
        } else {
            &[]
        };
        for name in unknown.iter().filter(|name| has_word(&code, name)) {
            broken.push(format!("{}: names {name}", file.path));
        }
    }
    check(broken);
}

#[test]
fn sqlite_is_called_through_the_shim_only() {
    let mut broken = Vec::new();
    for (file, code) in house()
        .filter(|(file, _)| file.path.starts_with("src/") || file.path.starts_with("c-shim/src/"))
    {
        for (at, _) in code.match_indices("sqlite3_") {
            let name: String = code[at..]
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            let before = &code[..at];
            let whole = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
            let called = code[at + name.len()..].trim_start().starts_with('(');
            if whole && called && !before.trim_end().ends_with("fn") {
                broken.push(format!(
                    "{}:{}: calls {name}() past the shim",
                    file.path,
                    line_of(&code, at)
                ));
            }
        }
    }
    check(broken);
}

#[test]
fn unsafe_code_lives_in_its_rooms() {
    let mut broken = Vec::new();
    for (file, code) in house() {
        if has_word(&code, "unsafe") && !file.is_in(&UNSAFE_ROOMS) {
            broken.push(format!(
                "{}: unsafe code outside {}",
                file.path,
                UNSAFE_ROOMS.join(", ")
            ));
        }
    }
    check(broken);
}

#[test]
fn banned_words_are_not_written() {
    let mut broken = Vec::new();
    for file in rust_files() {
        let code = code(&file.text);
        for (word, instead) in BANNED {
            if let Some(at) = code.find(word) {
                broken.push(format!(
                    "{}:{}: {word} ({instead})",
                    file.path,
                    line_of(&code, at)
                ));
            }
        }
    }
    for (file, code) in house() {
        for word in [".unwrap()", ".expect("] {
            if let Some(at) = code.find(word) {
                let line = line_of(&code, at);
                broken.push(format!(
                    "{}:{line}: {word} outside tests (return an error)",
                    file.path
                ));
            }
        }
    }
    check(broken);
}

#[test]
fn files_and_functions_are_short() {
    let mut broken = Vec::new();
    for file in rust_files() {
        let lines = file.text.lines().count();
        if lines > FILE_LINES_MAX && !LONG_FILES.iter().any(|(path, _)| *path == file.path) {
            broken.push(format!(
                "{}: {lines} lines, {FILE_LINES_MAX} are allowed",
                file.path
            ));
        }
        let all = code(&file.text);
        let house = if file.is_test() {
            0
        } else {
            line_of(&all, without_tests(&all).len())
        };
        for (name, line, length) in functions(&all) {
            let max = if line <= house {
                FUNCTION_LINES_MAX
            } else {
                TEST_LINES_MAX
            };
            let allowed = LONG_FUNCTIONS
                .iter()
                .any(|(path, function, _)| *path == file.path && *function == name);
            if length > max && !allowed {
                broken.push(format!(
                    "{}:{line}: {name}() has {length} lines, {max} are allowed",
                    file.path
                ));
            }
        }
    }
    check(broken);
}

#[test]
fn no_committed_text_knows_the_machine_it_was_written_on() {
    let paths = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("/tmp/", "wt"),
        concat!("/tmp/", "plan"),
        concat!("/tmp/", "target"),
    ];
    // Another registry than the public one, in the words of cargo, pip and npm.
    let registries = [
        concat!("replace", "-with"),
        concat!("[sour", "ce."),
        concat!("sparse", "+http"),
        concat!("index", "-url"),
        concat!("registry", "=http"),
    ];
    let mut broken = Vec::new();
    for file in files() {
        for word in paths.iter().chain(&registries) {
            if let Some(at) = file.text.find(word) {
                broken.push(format!("{}:{}: {word}", file.path, line_of(&file.text, at)));
            }
        }
    }
    let lock = files()
        .into_iter()
        .find(|file| file.path == "Cargo.lock")
        .unwrap();
    for line in lock
        .text
        .lines()
        .filter(|line| line.starts_with("source = "))
    {
        if line != "source = \"registry+https://github.com/rust-lang/crates.io-index\"" {
            broken.push(format!("Cargo.lock: {line}"));
        }
    }
    check(broken);
}

#[test]
fn every_library_of_sqlite_is_the_one_bundled() {
    // Features unify over the workspace: `loadable_extension` would turn every call into another one and refuse hosts
    // older than 3.45.
    let mut broken = Vec::new();
    for file in files()
        .iter()
        .filter(|file| file.path.ends_with("Cargo.toml"))
    {
        for line in file
            .text
            .lines()
            .filter(|line| line.contains("loadable_extension"))
        {
            broken.push(format!("{}: {line}", file.path));
        }
    }
    check(broken);
}

mod the_checks_themselves {
    use super::source::{code, functions, has_word, rooms_used, rust_files, without_tests};

    #[test]
    fn comments_and_literals_are_blank() {
        let text = "let a = \"x // y\"; // z\nlet b = 'c'; /* d /* e */ f */ g(r#\"h \" i\"#, b\"j\", '\\'', 'k');\nfn l<'m>() {}";
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(
            "let a = ; let b = ; g( , , , ); fn l<'m>() {}",
            words(&code(text))
        );
        assert_eq!(text.lines().count(), code(text).lines().count());
    }

    #[test]
    fn every_file_is_read_to_its_end() {
        for file in rust_files() {
            let code = code(&file.text);
            for (open, close) in [('{', '}'), ('(', ')'), ('[', ']')] {
                let count = |wanted: char| code.chars().filter(|c| *c == wanted).count();
                assert_eq!(count(open), count(close), "{} {open}", file.path);
            }
        }
    }

    #[test]
    fn functions_have_their_lengths() {
        let text = "fn a() {\n  1\n}\nimpl X {\n  fn b(x: [u8; 2]) -> u8\n  where\n    T: Y,\n  { x }\n}\ntrait T { fn c(); }";
        let found = functions(&code(text));
        assert_eq!(vec![("a".to_owned(), 1, 3), ("b".to_owned(), 5, 4)], found);
    }

    #[test]
    fn rooms_are_found_however_they_are_named() {
        let names = |path: &str, text: &str| -> Vec<String> {
            rooms_used(path, text)
                .into_iter()
                .map(|(name, _)| name)
                .collect()
        };
        assert_eq!(
            ["ship", "error", "vfs"],
            *names(
                "src/a/b.rs",
                "use crate::{ship::{A, B}, error};\ncrate::vfs::x()"
            )
        );
        assert_eq!(
            ["ship"],
            *names("src/a/b.rs", "use super::super::ship; use super::c;")
        );
        assert_eq!(["ship"], *names("src/a/mod.rs", "use super::ship;"));
        assert!(names("src/a.rs", "other_crate::ship; $crate::x").is_empty());
    }

    #[test]
    fn words_are_whole_and_tests_are_left_out() {
        assert!(has_word("use axum::Router;", "axum"));
        assert!(!has_word("use axum_extra;", "axum"));
        let text = "a\n#[cfg(test)]\nmod tests;\nb\n#[cfg(test)]\nmod tests {\nc";
        assert_eq!("a\n#[cfg(test)]\nmod tests;\nb\n", without_tests(text));
        assert_eq!(
            "a\n",
            without_tests("a\n#[cfg(test)]\npub(super) mod tests {\nb")
        );
    }
}
