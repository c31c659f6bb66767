//! Which places a run tries, and what it says about them.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, SystemTime};

/// Failures shown in full.
const SHOWN_MAX: usize = 12;

/// What one of the tests has tried.
pub struct Table {
    test: &'static str,
    only: Option<String>,
    /// One of so many places is tried.
    stride: u64,
    rows: BTreeMap<String, Row>,
    failures: Vec<String>,
    /// By the clock that nobody puts forward.
    start: SystemTime,
}

#[derive(Default)]
struct Row {
    places: usize,
    runs: usize,
    failed: usize,
    /// How often the log was repaired by a record that holds a difference.
    rebased: usize,
}

impl Table {
    /// `stride`: of how many places an ordinary run tries one.
    pub fn new(test: &'static str, stride: u64) -> Table {
        let only = std::env::var("FAULTS_ONLY").ok();
        let stride = match std::env::var("FAULTS") {
            _ if only.is_some() => 1,
            Ok(text) if text == "full" => 1,
            Ok(text) => text.parse().expect("FAULTS is full or a number"),
            Err(_) => stride,
        };
        Table {
            test,
            stride,
            only,
            rows: BTreeMap::new(),
            failures: Vec::new(),
            start: SystemTime::now(),
        }
    }

    /// Whether all places are tried.
    pub fn is_full(&self) -> bool {
        self.stride == 1
    }

    /// Whether anything whose name begins with `prefix` is wanted.
    pub fn wants(&self, prefix: &str) -> bool {
        let prefix = format!("{}/{prefix}", self.test);
        self.only
            .as_ref()
            .is_none_or(|only| only.starts_with(&prefix) || prefix.starts_with(only))
    }

    /// Tries the place `name`, if it is its turn; `row` is where it is counted. The answer of `run` is how many records were
    /// re-based, `None` if there was nothing to try.
    pub fn run(
        &mut self,
        row: &str,
        name: &str,
        run: impl FnOnce() -> Result<Option<usize>, String>,
    ) {
        let full_name = format!("{}/{name}", self.test);
        let is_turn = match &self.only {
            Some(only) => full_name.starts_with(only),
            None => xxhash_rust::xxh3::xxh3_64(full_name.as_bytes()).is_multiple_of(self.stride),
        };
        let entry = self.rows.entry(row.to_owned()).or_default();
        entry.places += 1;
        if !is_turn {
            return;
        }
        let result = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!("panicked: {}", text.unwrap_or("?")))
        });
        match result {
            Ok(None) => entry.places -= 1,
            Ok(Some(rebased)) => {
                if rebased > 0 && self.only.is_some() {
                    println!("{full_name}: {rebased} re-based");
                }
                entry.runs += 1;
                entry.rebased += rebased;
            }
            Err(text) => {
                entry.runs += 1;
                entry.failed += 1;
                let line = format!("FAULTS_ONLY={full_name}\n    {text}");
                println!("{line}");
                self.failures.push(line);
            }
        }
    }

    /// Something is wrong that is not at a place.
    pub fn fail(&mut self, text: String) {
        self.failures.push(text);
    }

    /// Prints the table; fails if anything did.
    pub fn finish(self) {
        let time = Duration::from_secs(self.start.elapsed().map_or(0, |time| time.as_secs()));
        println!(
            "{}: one place of {} tried, {time:?}",
            self.test, self.stride
        );
        println!(
            "{:<32} {:>8} {:>8} {:>8} {:>8}",
            "", "places", "runs", "failed", "re-based"
        );
        let mut all = Row::default();
        for (name, row) in &self.rows {
            println!(
                "{name:<32} {:>8} {:>8} {:>8} {:>8}",
                row.places, row.runs, row.failed, row.rebased
            );
            all.places += row.places;
            all.runs += row.runs;
            all.failed += row.failed;
            all.rebased += row.rebased;
        }
        println!(
            "{:<32} {:>8} {:>8} {:>8} {:>8}",
            "all", all.places, all.runs, all.failed, all.rebased
        );
        let shown: Vec<_> = self.failures.iter().take(SHOWN_MAX).cloned().collect();
        assert!(
            shown.is_empty(),
            "{} failures:\n{}",
            self.failures.len(),
            shown.join("\n")
        );
    }
}
