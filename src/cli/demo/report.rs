//! What the demo found: the checks at the end, and a short report with the measured figures.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mycelite::database;
use mycelite::error::{Error, Result};
use rusqlite::Connection;

use super::data::Data;
use super::load::Primary;
use super::replica::Replica;
use super::watch::{Commits, Watcher};
use crate::image::{self, beside, sqlite_error};
use crate::output::{Output, bytes, duration};
use crate::replay::compare;
use crate::verify;

/// The figures, filled in as they are measured.
#[derive(Default)]
pub struct Report {
    /// Time of the load in DELETE mode.
    pub seconds_delete: Duration,
    /// Commits in DELETE mode.
    pub commits_delete: u64,
    /// Time of the load in WAL mode.
    pub seconds_wal: Duration,
    /// Packages loaded.
    pub packages: usize,
    /// The second replica's death.
    pub outage: Option<Outage>,
    /// From the end of the load until both replicas showed everything.
    pub drained: Duration,
    commits: u64,
    records: u64,
    rows: u64,
    database_bytes: u64,
    log_bytes: u64,
    /// Of the replica that lived all the time, ascending.
    lags: Vec<Duration>,
    reads: u64,
    problems: Vec<String>,
}

/// A replica's death and return.
pub struct Outage {
    killed_at: u64,
    back_at: u64,
    missed: u64,
    back: Option<Instant>,
    caught_up: Option<Duration>,
}

impl Outage {
    /// It was killed after this many commits.
    pub fn begin(commits: u64) -> Outage {
        Outage {
            killed_at: commits,
            back_at: 0,
            missed: 0,
            back: None,
            caught_up: None,
        }
    }

    /// It runs again after this many commits, and shows `seen` of them.
    pub fn back(&mut self, commits: u64, seen: u64) {
        self.back_at = commits;
        self.missed = commits.saturating_sub(seen);
        self.back = Some(Instant::now());
    }

    fn print(&self, output: &mut Output) -> Result<()> {
        output.line(format_args!(
            "crash      replica 2 was killed (SIGKILL) after commit {} and came back after commit {}, {} behind;",
            self.killed_at, self.back_at, self.missed
        ))?;
        match self.caught_up {
            Some(span) => output.line(format_args!(
                "           {} later it showed all that it had missed",
                duration(span)
            )),
            None => output.line("           it has not caught up"),
        }
    }

    /// It shows `seen` commits now.
    pub fn look(&mut self, seen: u64) {
        if let (Some(back), None) = (self.back, self.caught_up)
            && seen >= self.back_at
        {
            self.caught_up = Some(back.elapsed());
        }
    }
}

impl Report {
    /// Something that must not be.
    pub fn problem(&mut self, text: String) {
        self.problems.push(text);
    }

    /// Whether everything is as it must be.
    pub fn is_good(&self) -> bool {
        self.problems.is_empty()
    }

    /// Closes everything and compares it.
    pub fn closing(
        &mut self,
        primary: Primary,
        db: &Path,
        replicas: [Replica; 2],
        watchers: &[Watcher; 2],
        commits: &Commits,
    ) -> Result<()> {
        self.commits = commits.count() + primary.other_commits;
        self.records = primary.txid()?;
        self.rows = primary.rows;
        self.database_bytes = primary.bytes()?;
        self.log_bytes = database::directory_bytes(&database::log_dir(db));
        if self.records != self.commits {
            self.problem(format!(
                "{} records for {} commits",
                self.records, self.commits
            ));
        }
        self.take_watchers(watchers);
        primary.close()?;
        let mut files = vec![("primary".to_string(), db.to_path_buf())];
        for mut replica in replicas {
            files.push((replica.title.clone(), replica.db()));
            replica.stop()?;
        }
        for (title, path) in &files {
            if !path.exists() {
                self.problem(format!("{title} has no file {}", path.display()));
                return Ok(());
            }
            self.check_integrity(title, path)?;
        }
        self.compare_all(&files)?;
        for problem in verify::deep(&database::log_dir(db), db)? {
            self.problem(format!("verify --deep: {problem}"));
        }
        Ok(())
    }

    fn take_watchers(&mut self, watchers: &[Watcher; 2]) {
        let mut lags = Vec::new();
        for (number, watcher) in (1..).zip(watchers) {
            let found = watcher.found();
            self.reads += watcher.reads();
            for fault in found.faults {
                self.problem(format!("the plain reader of replica {number}: {fault}"));
            }
            if number == 1 {
                lags = found.lags;
            }
        }
        lags.sort_unstable();
        self.lags = lags;
    }

    /// SQLite's own check. As the last plain connection it also folds in a WAL that may be left.
    fn check_integrity(&mut self, title: &str, path: &Path) -> Result<()> {
        let failed = |error: rusqlite::Error| sqlite_error(path, &error);
        let connection: Connection = image::open(path)?;
        let answer: String = connection
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .map_err(failed)?;
        if answer != "ok" {
            self.problem(format!("integrity_check of {title}: {answer}"));
        }
        let text = "INSERT INTO package_text(package_text) VALUES('integrity-check')";
        if let Err(error) = connection.execute(text, []) {
            self.problem(format!("the full-text index of {title}: {error}"));
        }
        connection.close().map_err(|(_, error)| failed(error))?;
        if beside(path, "-wal")
            .metadata()
            .is_ok_and(|meta| meta.len() > 0)
        {
            self.problem(format!("{title} still has a WAL after everyone closed it"));
        }
        Ok(())
    }

    fn compare_all(&mut self, files: &[(String, PathBuf)]) -> Result<()> {
        let open =
            |path: &Path| File::open(path).map_err(|source| Error::io("opening", path, &source));
        let [(_, primary), replicas @ ..] = files else {
            return Ok(());
        };
        let first = open(primary)?;
        for (title, path) in replicas {
            let difference = compare(&first, &open(path)?, 4096)
                .map_err(|source| Error::io("comparing", path, &source))?;
            if difference.pages > 0 {
                self.problem(format!(
                    "{title} differs from the primary in {}",
                    difference.names()
                ));
            }
        }
        Ok(())
    }

    /// Prints the report.
    pub fn print(&self, data: &Data) -> Result<()> {
        let mut output = Output::new();
        let commits_wal = self.commits.saturating_sub(self.commits_delete);
        output.line("")?;
        output.line(format_args!(
            "loaded     {} packages ({} rows) in {} commits: {} in DELETE mode in {}, {} in WAL mode in {}",
            self.packages,
            self.rows,
            self.commits,
            self.commits_delete,
            duration(self.seconds_delete),
            commits_wal,
            duration(self.seconds_wal)
        ))?;
        output.line(format_args!(
            "log        {} records for {} commits, {} for a database of {}",
            self.records,
            self.commits,
            bytes(self.log_bytes),
            bytes(self.database_bytes)
        ))?;
        output.line(format_args!(
            "lag        median {}, 99 % {}, longest {} from COMMIT to visible in a plain SQLite reader of replica 1",
            duration(self.lag(50)),
            duration(self.lag(99)),
            duration(self.lag(100)),
        ))?;
        output.line(format_args!(
            "           (looked every 2 ms); both replicas showed everything {} after the last commit",
            duration(self.drained)
        ))?;
        if let Some(outage) = &self.outage {
            outage.print(&mut output)?;
        }
        output.line(format_args!(
            "readers    {} reads of the replicas by SQLite without the extension meanwhile",
            self.reads
        ))?;
        for problem in &self.problems {
            output.line(format_args!("PROBLEM    {problem}"))?;
        }
        if self.is_good() {
            output.line(
                "integrity  ok on the primary and both replicas; every read was of a whole commit",
            )?;
            output.line("identical  all three files, byte for byte; and the log replays to the same bytes (verify --deep)")?;
        } else {
            output.line(format_args!("FAILED     with {}", data.source))?;
        }
        output.finish()
    }

    /// The lag that `percent` of the commits did not exceed.
    fn lag(&self, percent: usize) -> Duration {
        let index = (self.lags.len() * percent).div_ceil(100).saturating_sub(1);
        self.lags.get(index).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_that_differs_is_a_failure_with_its_page() -> Result<(), Box<dyn std::error::Error>>
    {
        let dir = tempfile::tempdir()?;
        let file = |name: &str, bytes: &[u8]| -> std::io::Result<(String, PathBuf)> {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes)?;
            Ok((name.to_string(), path))
        };
        let whole = vec![7u8; 3 * 4096];
        let mut other = whole.clone();
        other[4096] = 8;
        let files = [file("primary", &whole)?, file("same", &whole)?];
        let mut report = Report::default();
        report.compare_all(&files)?;
        assert!(report.is_good());
        let files = [
            file("primary", &whole)?,
            file("other", &other)?,
            file("short", &whole[..8192])?,
        ];
        report.compare_all(&files)?;
        assert_eq!(
            report.problems,
            [
                "other differs from the primary in page 2",
                "short differs from the primary in page 3"
            ]
        );
        assert!(!report.is_good());
        Ok(())
    }

    #[test]
    fn the_lag_of_a_hundred_percent_is_the_longest() {
        let lags = (1..=200).map(Duration::from_millis).collect();
        let report = Report {
            lags,
            ..Report::default()
        };
        assert_eq!(report.lag(50), Duration::from_millis(100));
        assert_eq!(report.lag(99), Duration::from_millis(198));
        assert_eq!(report.lag(100), Duration::from_millis(200));
        assert_eq!(Report::default().lag(50), Duration::ZERO);
    }
}
