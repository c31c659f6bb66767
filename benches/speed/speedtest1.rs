//! SQLite's own benchmark, as a whole and by what its tests do. It mostly writes.

use crate::Options;
use crate::host::settle;
use crate::report::{Bar, Row};
use mycelite::database::log_dir;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// The tests of its main set that do nothing but `SELECT` and `PRAGMA integrity_check`, by `speedtest1.c`. 410 and 510 are
/// read transactions of one row, the others few and long. (210 queries, too, but alters a table first.)
const READING: [u32; 14] = [
    130, 140, 142, 145, 160, 161, 170, 260, 310, 320, 410, 510, 520, 980,
];

/// Seconds that one run took.
struct Run {
    whole: f64,
    reading: f64,
    writing: f64,
}

/// What is shown of the runs: its name, the seconds, and what they may be of plain SQLite's.
type Part = (&'static str, fn(&Run) -> f64, Bar);

/// Builds it from `source`, which holds `sqlite3.c`, `sqlite3.h` and `speedtest1.c`, and measures it with both journals.
pub fn measure(options: &Options, source: &Path, show: &mut dyn FnMut(Row)) {
    let home = tempfile::tempdir_in(&options.memory).unwrap();
    let program = home.path().join("speedtest1");
    build(source, &program);
    let library = library();
    for journal in ["wal", "delete"] {
        let mut runs: [Vec<Run>; 2] = [Vec::new(), Vec::new()];
        for number in 0..options.runs {
            for side in [number % 2, 1 - number % 2] {
                let db = home.path().join(format!("{journal}-{number}-{side}.db"));
                let extension = (side == 1).then_some(library.as_path());
                runs[side].push(one(&program, journal, &db, extension));
            }
        }
        let [plain, ours] = &runs;
        let parts: [Part; 3] = [
            ("", |run| run.whole, Bar::AtMost(1.02)),
            (", what only reads", |run| run.reading, Bar::AtMost(1.02)),
            (", what writes", |run| run.writing, Bar::None),
        ];
        for (part, of, bar) in parts {
            let pairs = plain.iter().zip(ours);
            let ratios: Vec<f64> = pairs.map(|(plain, ours)| of(ours) / of(plain)).collect();
            let name = format!("speedtest1, {journal}{part}, wall");
            let share = median(plain, of) / median(plain, |run| run.reading + run.writing);
            let note = format!(
                "{:.2} s; plain {:.2} s; {:.0} % of plain's tests",
                median(ours, of),
                median(plain, of),
                100.0 * share,
            );
            let row = Row::new("reads", &name, &ratios, "×", bar);
            show(if part.is_empty() {
                row
            } else {
                row.noted(note)
            });
        }
    }
}

fn build(source: &Path, program: &Path) {
    let host = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/speed/host.c");
    let built = Command::new("cc")
        .args(["-O2", "-DSQLITE_ENABLE_LOAD_EXTENSION", "-o"])
        .arg(program)
        .arg("-I")
        .arg(source)
        .args(["speedtest1.c", "sqlite3.c"].map(|name| source.join(name)))
        .arg(host)
        .args(["-lpthread", "-ldl", "-lm"])
        .status()
        .unwrap();
    assert!(built.success(), "speedtest1 was not built");
}

fn one(program: &Path, journal: &str, db: &Path, extension: Option<&Path>) -> Run {
    let mut command = Command::new(program);
    command
        .args(["--size", "50", "--testset", "main", "--journal", journal])
        .arg(db);
    if let Some(library) = extension {
        command.env("SPEED_EXTENSION", library);
    }
    settle(db.parent().unwrap());
    let began = Instant::now();
    let output = command.output().unwrap();
    let whole = began.elapsed().as_secs_f64();
    assert!(output.status.success());
    let _ = std::fs::remove_file(db);
    let _ = std::fs::remove_dir_all(log_dir(db));
    let tests = tests(&String::from_utf8(output.stdout).unwrap());
    for number in READING {
        assert!(tests.contains_key(&number), "there is no test {number}");
    }
    let (reading, writing): (BTreeMap<u32, f64>, _) = tests
        .into_iter()
        .partition(|(number, _)| READING.contains(number));
    Run {
        whole,
        reading: reading.values().sum(),
        writing: writing.values().sum(),
    }
}

/// The seconds of each test, out of lines like ` 100 - 25000 INSERTs into table with no index......    0.015s`.
fn tests(output: &str) -> BTreeMap<u32, f64> {
    output
        .lines()
        .filter_map(|line| {
            let (number, rest) = line.split_once(" - ")?;
            let seconds = rest.split_whitespace().next_back()?.strip_suffix('s')?;
            Some((number.trim().parse().ok()?, seconds.parse().ok()?))
        })
        .collect()
}

fn median(runs: &[Run], of: fn(&Run) -> f64) -> f64 {
    let runs: Vec<f64> = runs.iter().map(of).collect();
    Row::new("", "", &runs, "", Bar::None).figure
}

/// The extension that cargo has built beside this program.
fn library() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let target = program.parent().and_then(Path::parent).unwrap();
    let library = target.join("libmycelite.so");
    assert!(
        library.exists(),
        "cargo build --release --lib makes {}",
        library.display()
    );
    library
}
