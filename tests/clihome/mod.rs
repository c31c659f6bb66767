//! A database with a history, for the tests of the command line.
#![allow(dead_code)]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use serde_json::Value;

use crate::common;

/// A database with some commits, and a copy of the file after each of them.
pub struct Home {
    pub dir: tempfile::TempDir,
    pub states: Vec<Vec<u8>>,
}

pub const COMMITS: usize = 6;

impl Home {
    pub fn new() -> Home {
        Home::with("DELETE")
    }

    /// The last commit stays in the WAL if the mode is WAL and the connection stays open; here it is closed each time.
    pub fn with(mode: &str) -> Home {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("app.db");
        let mut states = Vec::new();
        for commit in 1..=COMMITS {
            let connection = common::open(&db, "");
            if commit == 1 {
                connection
                    .execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
                    .unwrap();
            } else {
                let sql = format!(
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)
                     INSERT INTO t(x) SELECT hex(randomblob({commit} * 10)) FROM n"
                );
                connection.execute_batch(&sql).unwrap();
            }
            connection.close().unwrap();
            states.push(std::fs::read(&db).unwrap());
        }
        if mode == "WAL" {
            let connection = common::open(&db, "");
            connection
                .query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
                .unwrap();
            connection.close().unwrap();
            states.push(std::fs::read(&db).unwrap());
        }
        Home { dir, states }
    }

    pub fn db(&self) -> PathBuf {
        self.dir.path().join("app.db")
    }

    pub fn log_dir(&self) -> PathBuf {
        self.dir.path().join("app.db-mycelite")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

pub fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}
