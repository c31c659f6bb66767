//! Holds the log of one database against its image, after each act.

use crate::common::Oracle;
use mycelite_journal::{FLAG_ADOPT, FLAG_REBASE};
use std::path::{Path, PathBuf};

/// What happened, as far as it matters to the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moment {
    /// Some connection holds the write lock.
    pub writing: bool,
    /// Some connection keeps the lock between transactions: what a rollback left may wait for its next commit.
    pub exclusive: bool,
    /// The act rolled something back, or failed: free pages may hold other bytes now.
    pub rolled_back: bool,
}

type Sight = [Option<(u64, std::time::SystemTime)>; 2];

/// The watch over one database.
pub struct Watch {
    path: PathBuf,
    oracle: Oracle,
    /// A process without the extension has written, and none of ours since.
    foreign: bool,
    /// Differences that no transaction explains are excused from here on: they wait for an unlock, or have no journal.
    excused: bool,
    /// Lengths and times of the files at the last comparison.
    seen: Option<Sight>,
    pub commits: usize,
    pub rebases: usize,
    pub comparisons: usize,
}

impl Watch {
    pub fn new(path: &Path) -> Watch {
        Watch {
            path: path.to_path_buf(),
            oracle: Oracle::new(path),
            foreign: false,
            excused: false,
            seen: None,
            commits: 0,
            rebases: 0,
            comparisons: 0,
        }
    }

    /// A process without the extension may have written.
    pub fn foreign_writes(&mut self) {
        self.foreign = true;
    }

    /// From now on a difference need not come from a transaction.
    pub fn excuse(&mut self) {
        self.excused = true;
    }

    /// Compares after an act, where the moment allows it.
    pub fn after(&mut self, moment: Moment, what: &str) {
        if !self.path.exists() {
            return;
        }
        let new = self.oracle.advance();
        let records = &self.oracle.records[self.oracle.records.len() - new..];
        let rebased = records
            .iter()
            .filter(|record| record.flags & (FLAG_REBASE | FLAG_ADOPT) != 0)
            .count();
        self.commits += new - rebased;
        self.rebases += rebased;
        // What a foreigner has left in the WAL is told apart, commit by commit.
        assert!(
            self.foreign || new - rebased <= 1,
            "{what}: {} transactions",
            new - rebased
        );
        let explained = self.foreign || self.excused || moment.exclusive || moment.rolled_back;
        assert!(rebased == 0 || explained, "{what}: re-based");
        assert!(!self.is_degraded(), "{what}: {:?}", self.status());
        if moment.writing || new == 0 && (moment.exclusive || self.foreign) {
            return;
        }
        let sight = self.sight();
        if new == 0 && self.seen == Some(sight) {
            return;
        }
        self.foreign = false;
        self.seen = Some(sight);
        self.comparisons += 1;
        self.oracle.check(what);
    }

    /// Length and time of the database file and of the WAL.
    fn sight(&self) -> Sight {
        let wal = format!("{}-wal", self.path.display());
        [self.path.as_path(), Path::new(&wal)].map(|path| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.len(), meta.modified().unwrap()))
        })
    }

    /// Compares after any number of transactions.
    pub fn settled(&mut self, what: &str) {
        let new = self.oracle.advance();
        let records = &self.oracle.records[self.oracle.records.len() - new..];
        let rebased = records
            .iter()
            .filter(|record| record.flags & FLAG_REBASE != 0);
        let rebased = rebased.count();
        self.rebases += rebased;
        self.commits += new - rebased;
        self.comparisons += 1;
        self.oracle.check(what);
    }

    /// How many transactions there are in all.
    pub fn transactions(&mut self) -> usize {
        self.oracle.advance();
        let records = self.oracle.records.iter();
        records
            .filter(|record| record.flags & (FLAG_REBASE | FLAG_ADOPT) == 0)
            .count()
    }

    fn status(&self) -> Option<String> {
        let database = mycelite::database::find(self.path.to_str().unwrap())?;
        Some(database.status().last_error)
    }

    fn is_degraded(&self) -> bool {
        let database = mycelite::database::find(self.path.to_str().unwrap());
        database.is_some_and(|database| database.shared().health().degraded.is_some())
    }

    /// Nobody has the database open any more.
    pub fn finish(self) {
        self.oracle.finish();
    }
}
