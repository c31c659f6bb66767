//! The demo's application: an ordinary program that writes packages into an ordinary SQLite database.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use mycelite::error::{Error, ErrorKind, Result};
use rusqlite::{Connection, params};

use super::data::Package;
use super::watch::Commits;
use crate::image::sqlite_error;
use crate::register::create_writer;

const SCHEMA: &str = "
    CREATE TABLE section(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
    CREATE TABLE maintainer(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
    CREATE TABLE package(
        id INTEGER PRIMARY KEY, name TEXT NOT NULL, version TEXT NOT NULL, bytes INTEGER,
        section_id INTEGER REFERENCES section(id), maintainer_id INTEGER REFERENCES maintainer(id));
    CREATE INDEX package_name ON package(name);
    CREATE INDEX package_section ON package(section_id, bytes);
    CREATE TABLE dependency(package_id INTEGER NOT NULL, position INTEGER NOT NULL, name TEXT NOT NULL,
        PRIMARY KEY(package_id, position)) WITHOUT ROWID;
    CREATE INDEX dependency_name ON dependency(name);
    CREATE VIRTUAL TABLE package_text USING fts5(name, summary);
    CREATE TABLE progress(commits INTEGER NOT NULL, packages INTEGER NOT NULL);
    INSERT INTO progress VALUES(1, 0);
";

/// The primary database, open through the extension.
pub struct Primary {
    path: PathBuf,
    connection: Connection,
    sections: HashMap<String, i64>,
    maintainers: HashMap<String, i64>,
    packages: i64,
    /// Rows written so far.
    pub rows: u64,
    /// Commits that were not counted in the `progress` table: the switch of the journal mode.
    pub other_commits: u64,
}

impl Primary {
    /// Creates the database, replicated to `urls`, and its schema.
    pub fn create(path: &Path, urls: &[String], commits: &Commits) -> Result<Primary> {
        let connection = create_writer(path, &[("replica", &urls.join(","))])?;
        let primary = Primary {
            path: path.to_path_buf(),
            connection,
            sections: HashMap::new(),
            maintainers: HashMap::new(),
            packages: 0,
            rows: 0,
            other_commits: 0,
        };
        primary.check(
            primary
                .connection
                .execute_batch(&format!("BEGIN IMMEDIATE;{SCHEMA}COMMIT")),
        )?;
        commits.done();
        Ok(primary)
    }

    /// Switches to WAL mode: a commit of its own, since it changes the database's header.
    pub fn switch_to_wal(&mut self) -> Result<()> {
        let mode: String = self.check(self.connection.query_row(
            "PRAGMA journal_mode = WAL",
            [],
            |row| row.get(0),
        ))?;
        if mode != "wal" {
            return Err(Error::new(
                ErrorKind::Internal,
                format_args!("the journal mode stays {mode}"),
            )
            .at(self.path.display()));
        }
        self.other_commits += 1;
        Ok(())
    }

    /// Writes some packages in one transaction.
    pub fn write(&mut self, packages: &[Package], commits: &Commits) -> Result<()> {
        let written = self.write_all(packages, commits.count() + 1);
        self.check(written)?;
        commits.done();
        Ok(())
    }

    fn write_all(&mut self, packages: &[Package], commit: u64) -> rusqlite::Result<()> {
        let transaction = self.connection.unchecked_transaction()?;
        for package in packages {
            self.packages += 1;
            let section = id_of(
                &self.connection,
                &mut self.sections,
                "section",
                &package.section,
                &mut self.rows,
            )?;
            let maintainer = id_of(
                &self.connection,
                &mut self.maintainers,
                "maintainer",
                &package.maintainer,
                &mut self.rows,
            )?;
            self.connection
                .prepare_cached("INSERT INTO package VALUES(?, ?, ?, ?, ?, ?)")?
                .execute(params![
                    self.packages,
                    package.name,
                    package.version,
                    package.bytes,
                    section,
                    maintainer
                ])?;
            self.connection
                .prepare_cached("INSERT INTO package_text(rowid, name, summary) VALUES(?, ?, ?)")?
                .execute(params![self.packages, package.name, package.summary])?;
            let mut insert = self
                .connection
                .prepare_cached("INSERT INTO dependency VALUES(?, ?, ?)")?;
            for (position, name) in package.depends.iter().enumerate() {
                insert.execute(params![self.packages, position as i64, name])?;
            }
            self.rows += 2 + package.depends.len() as u64;
        }
        self.connection
            .prepare_cached("UPDATE progress SET commits = ?, packages = ?")?
            .execute(params![commit as i64, self.packages])?;
        transaction.commit()
    }

    /// Bytes of the database.
    pub fn bytes(&self) -> Result<u64> {
        let sql = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
        self.check(self.connection.query_row(sql, [], count))
    }

    /// The last recorded transaction.
    pub fn txid(&self) -> Result<u64> {
        self.check(
            self.connection
                .query_row("SELECT mycelite_txid()", [], count),
        )
    }

    /// Closes it as an application would.
    pub fn close(self) -> Result<()> {
        let path = self.path;
        self.connection
            .close()
            .map_err(|(_, error)| sqlite_error(&path, &error))
    }

    fn check<T>(&self, result: rusqlite::Result<T>) -> Result<T> {
        result.map_err(|error| sqlite_error(&self.path, &error))
    }
}

/// The id of a name in a table of names, which gets it if it is new.
fn id_of(
    connection: &Connection,
    known: &mut HashMap<String, i64>,
    table: &str,
    name: &str,
    rows: &mut u64,
) -> rusqlite::Result<i64> {
    if let Some(id) = known.get(name) {
        return Ok(*id);
    }
    let id = known.len() as i64 + 1;
    connection
        .prepare_cached(&format!("INSERT INTO {table} VALUES(?, ?)"))?
        .execute(params![id, name])?;
    known.insert(name.to_string(), id);
    *rows += 1;
    Ok(id)
}

fn count(row: &rusqlite::Row<'_>) -> rusqlite::Result<u64> {
    row.get::<_, i64>(0).map(i64::unsigned_abs)
}
