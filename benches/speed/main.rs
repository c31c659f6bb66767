//! How fast: every bar that Mycelite sets itself, measured side by side with plain SQLite (the same library, statements, pragmas
//! and file system, in turn, each run a process of its own), as a table, JSON and a plot.
//!
//! `cargo bench --bench speed -- [--runs N] [--divide N] [--disk DIR] [--memory DIR] [--sqlite DIR] [--out DIR] [GROUP...]`
//!
//! `--out` keeps what earlier calls have left there, so that the groups can be measured one by one.
//! `--divide 20` makes everything twenty times smaller, to see that it runs. `--sqlite` names a directory with `sqlite3.c`,
//! `sqlite3.h` and `speedtest1.c`; without it SQLite's own benchmark is left out.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)]
#![allow(clippy::missing_transmute_annotations)]

mod archive;
mod growth;
mod host;
mod network;
mod price;
mod report;
mod speedtest1;
mod work;

use host::Job;
use report::Row;
use std::path::PathBuf;

/// How to measure.
pub struct Options {
    runs: usize,
    divide: u64,
    disk: PathBuf,
    memory: PathBuf,
    sqlite: Option<PathBuf>,
    out: Option<PathBuf>,
    groups: Vec<String>,
}

/// Measures one group, and shows its rows.
type Measure = fn(&Options, &mut dyn FnMut(Row));

const OTHER_GROUPS: [&str; 7] = [
    "speedtest1",
    "lag",
    "catch-up",
    "log-bytes",
    "restore",
    "adoption",
    "growth",
];

fn main() {
    if let Some(job) = Job::of_this_process() {
        return work_off(&job);
    }
    let options = options();
    let mut rows = Vec::new();
    report::print_head();
    let mut show = |row: Row| {
        report::print(&row);
        rows.push(row);
    };
    let wanted =
        |group: &str| options.groups.is_empty() || options.groups.iter().any(|g| g == group);
    for setting in &price::SETTINGS {
        if wanted(setting.name) {
            setting.measure(&options, &mut show);
        }
    }
    if let Some(source) = options.sqlite.as_ref().filter(|_| wanted("speedtest1")) {
        speedtest1::measure(&options, source, &mut show);
    }
    let others: [(&str, Measure); 6] = [
        ("lag", network::lag),
        ("catch-up", network::caught_up),
        ("log-bytes", archive::log_bytes),
        ("restore", archive::restore),
        ("adoption", archive::adoption),
        ("growth", growth::growth),
    ];
    for (group, measure) in others {
        if wanted(group) {
            measure(&options, &mut show);
        }
    }
    if let Some(out) = &options.out {
        std::fs::create_dir_all(out).unwrap();
        let rows = report::joined(&out.join("speed.json"), rows);
        report::write_json(&rows, &out.join("speed.json"));
        report::plot_bars(&rows, &out.join("speed.svg"));
    }
}

/// Does the job of this process, and prints what it took.
fn work_off(job: &Job) {
    let took = match job.work.as_str() {
        "paced" => network::paced(job),
        "history" => network::history(job),
        "adopt" => archive::adopt(job),
        "first-open" => archive::first_open(job),
        "sized" => growth::sized(job),
        "commits" => growth::commits(job),
        "moments" => growth::moments(job),
        _ => work::run(job),
    };
    println!("{}", serde_json::to_string(&took).unwrap());
}

fn options() -> Options {
    let memory = PathBuf::from("/dev/shm");
    let mut options = Options {
        runs: 5,
        divide: 1,
        disk: std::env::temp_dir(),
        memory: if memory.is_dir() {
            memory
        } else {
            std::env::temp_dir()
        },
        sqlite: None,
        out: None,
        groups: Vec::new(),
    };
    let mut arguments = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .unwrap_or_else(|| panic!("{word} wants a value"))
        };
        match word.as_str() {
            "--runs" => options.runs = value().parse().unwrap(),
            "--divide" => options.divide = value().parse().unwrap(),
            "--disk" => options.disk = value().into(),
            "--memory" => options.memory = value().into(),
            "--sqlite" => options.sqlite = Some(value().into()),
            "--out" => options.out = Some(value().into()),
            _ if is_group(&word) => options.groups.push(word),
            _ => panic!("unknown argument {word}"),
        }
    }
    options
}

fn is_group(word: &str) -> bool {
    price::SETTINGS.iter().any(|setting| setting.name == word) || OTHER_GROUPS.contains(&word)
}
