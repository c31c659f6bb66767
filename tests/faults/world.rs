//! One application's life: its database in a directory of its own, its connections, and what its statements answered.

use crate::check::DATABASES;
use crate::clock;
use crate::control::{self, Plan, Seen};
use crate::scenarios::{A, B, BACKGROUND, Motion, Scenario, Step, TABLE, Who};
use crate::syscalls::{self, LogPlan};
use crate::vfs::{Side, load};
use rusqlite::backup::Backup;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, ffi};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the application does when a statement fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Goes on with the next one.
    GoesOn,
    /// Tries the same again.
    Retries,
    /// Rolls back, and goes on.
    RollsBack,
    /// Closes the connection and opens another.
    Reopens,
    /// Leaves the rest to a second connection, while the first stays open.
    Defers,
}

impl Manner {
    pub const ALL: [Manner; 5] = [
        Manner::GoesOn,
        Manner::Retries,
        Manner::RollsBack,
        Manner::Reopens,
        Manner::Defers,
    ];
}

/// A database in its directory, as an application uses it.
pub struct World {
    pub dir: PathBuf,
    side: Side,
    mode: &'static str,
    synchronous: &'static str,
    manner: Manner,
    connections: [Option<Connection>; 2],
    /// Whose statements another connection makes.
    deferred: bool,
    /// The log's directory as it was at the beginning.
    log_before: PathBuf,
    /// What each statement answered.
    pub answers: Vec<String>,
}

impl World {
    pub fn new(
        dir: PathBuf,
        side: Side,
        (mode, synchronous): (&'static str, &'static str),
        manner: Manner,
    ) -> World {
        World {
            dir,
            side,
            mode,
            synchronous,
            manner,
            connections: [None, None],
            deferred: false,
            log_before: PathBuf::new(),
            answers: Vec::new(),
        }
    }

    /// Makes the files that the workload finds, in a directory below `parent`.
    pub fn prepare(
        parent: &Path,
        side: Side,
        modes: (&'static str, &'static str),
        scenario: &Scenario,
    ) -> PathBuf {
        let build = parent.join("build");
        fs::create_dir(&build).unwrap();
        let mut world = World::new(build.clone(), side, modes, Manner::GoesOn);
        world.take(Step::Open(A));
        for step in TABLE.iter().chain(scenario.setup) {
            world.take(*step);
        }
        let failed = |answer: &&String| answer.starts_with("error");
        assert_eq!(world.answers.iter().find(failed), None, "{}", scenario.name);
        let template = parent.join(side.vfs());
        if scenario.dies {
            copy_dir(&build, &template);
            drop(world);
        } else {
            drop(world);
            copy_dir(&build, &template);
        }
        fs::remove_dir_all(&build).unwrap();
        template
    }

    /// Runs the workload's steps with the faults planned, and closes if it is to; `after` each step something may look at the
    /// result.
    pub fn run(
        &mut self,
        scenario: &Scenario,
        (plan, own_plan, log_plan): (Option<Plan>, Option<Plan>, Option<LogPlan>),
        closes: bool,
        mut after: impl FnMut(),
    ) -> Seen {
        if scenario.ends_history() && self.side == Side::Ours {
            self.log_before = self.dir.with_extension("log");
            remove(&self.log_before);
            copy_dir(
                &mycelite::database::log_dir(&self.dir.join("app.db")),
                &self.log_before,
            );
        }
        for step in scenario.before {
            self.take(*step);
        }
        if self.mode == BACKGROUND && !scenario.before.is_empty() {
            // The first commits of a process are recorded by whoever makes them.
            for sql in ["PRAGMA user_version = 2", "PRAGMA user_version = 3"] {
                self.take(Step::Sql(A, sql));
            }
        }
        after();
        let mut after = || syscalls::quietly(&mut after);
        control::arm(plan, own_plan);
        syscalls::count(log_plan);
        for step in scenario.steps {
            let known = self.answers.len();
            self.take(*step);
            if self.answers[known..].iter().any(|a| a.starts_with("error")) {
                self.react(*step);
            }
            after();
        }
        if closes {
            self.close();
        }
        control::disarm()
    }

    fn react(&mut self, step: Step) {
        let (Step::Sql(who, _) | Step::Open(who) | Step::Backup(who)) = step else {
            return;
        };
        match self.manner {
            Manner::GoesOn => {}
            Manner::Retries => self.take(step),
            Manner::RollsBack => {
                if self.is_in_transaction(who) {
                    self.take(Step::Sql(who, "ROLLBACK"));
                }
            }
            Manner::Reopens => {
                self.take(Step::Close(who));
                self.take(Step::Open(who));
            }
            Manner::Defers => {
                if !std::mem::replace(&mut self.deferred, true) && self.connections[B].is_none() {
                    self.take(Step::Open(B));
                }
            }
        }
    }

    fn is_in_transaction(&self, who: Who) -> bool {
        self.connections[who]
            .as_ref()
            .is_some_and(|connection| !connection.is_autocommit())
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Open(who) => self.open(who),
            Step::Close(who) => self.connections[who] = None,
            Step::Sql(who, sql) => self.sql(who, sql),
            Step::Foreign(sql) => {
                let plain = crate::common::open_plain(&self.dir.join("app.db"));
                plain.busy_timeout(Duration::ZERO).unwrap();
                self.answers.push(answer(&plain, sql));
            }
            Step::Chunk(who, mut bytes) => {
                if let Some(connection) = &self.connections[who] {
                    // SAFETY: the connection is open; this control reads an int.
                    let rc = unsafe {
                        ffi::sqlite3_file_control(
                            connection.handle(),
                            std::ptr::null(),
                            ffi::SQLITE_FCNTL_CHUNK_SIZE,
                            (&raw mut bytes).cast(),
                        )
                    };
                    self.answers.push(format!("chunk {rc}"));
                }
            }
            Step::Backup(who) => self.backup(who),
            Step::Log(motion) => self.move_log(motion),
        }
    }

    /// Somebody's doing, while the application runs.
    fn move_log(&mut self, motion: Motion) {
        let log = mycelite::database::log_dir(&self.dir.join("app.db"));
        if self.side == Side::Plain {
            return;
        }
        let kept = self.dir.join("kept");
        syscalls::quietly(|| match motion {
            Motion::Removed => remove(&log),
            Motion::Moved => {
                let _ = fs::remove_dir_all(&kept);
                let _ = fs::rename(&log, &kept);
            }
            Motion::Restored => {
                remove(&log);
                copy_dir(&self.log_before, &log);
            }
            Motion::File => {
                remove(&log);
                fs::write(&log, "not a directory").unwrap();
            }
            Motion::Emptied => {
                for entry in fs::read_dir(&log).into_iter().flatten() {
                    fs::remove_file(entry.unwrap().path()).unwrap();
                }
            }
        });
        // The extension looks now and then only.
        clock::advance(1);
    }

    fn open(&mut self, who: Who) {
        load();
        let uri = self.uri("app.db");
        match Connection::open_with_flags(uri, OpenFlags::default()) {
            Ok(connection) => {
                connection.busy_timeout(Duration::ZERO).unwrap();
                self.connections[who] = Some(connection);
                let pragmas = [
                    "PRAGMA page_size = 512".to_owned(),
                    "PRAGMA cache_size = 5".to_owned(),
                    format!("PRAGMA synchronous = {}", self.synchronous),
                    format!("PRAGMA journal_mode = {}", self.journal_mode()),
                ];
                for pragma in pragmas {
                    self.sql(who, &pragma);
                }
            }
            Err(error) => self.answers.push(format!("error {}", code(&error))),
        }
    }

    fn journal_mode(&self) -> &'static str {
        if self.mode == BACKGROUND {
            "WAL"
        } else {
            self.mode
        }
    }

    fn uri(&self, database: &str) -> String {
        let more = match (self.side, self.mode) {
            (Side::Ours, BACKGROUND) => "&wal_capture=background",
            (Side::Ours, "WAL") => "&wal_capture=commit",
            _ => "",
        };
        let (dir, vfs) = (self.dir.display(), self.side.vfs());
        format!("file:{dir}/{database}?vfs={vfs}{more}")
    }

    /// What is committed is recorded when this returns.
    pub fn settle(&self) {
        for name in DATABASES {
            crate::common::settle(&self.dir.join(name));
        }
    }

    fn sql(&mut self, who: Who, sql: &str) {
        let who = if self.deferred { B } else { who };
        let Some(connection) = &self.connections[who] else {
            self.answers.push("no connection".into());
            return;
        };
        let uri = format!("'{}'", self.uri("side.db"));
        let text = answer(connection, &sql.replace("'side'", &uri));
        if sql.starts_with("ATTACH") && !text.starts_with("error") {
            for pragma in ["synchronous", "journal_mode"] {
                let value = match pragma {
                    "synchronous" => self.synchronous,
                    _ => self.journal_mode(),
                };
                let sql = format!("PRAGMA side.{pragma} = {value}");
                self.answers.push(answer(connection, &sql));
            }
        }
        self.answers.push(text);
    }

    fn backup(&mut self, who: Who) {
        let Some(connection) = &mut self.connections[who] else {
            return;
        };
        let source = Connection::open_in_memory().unwrap();
        source
            .execute_batch(
                "PRAGMA page_size = 512; CREATE TABLE t(a INTEGER PRIMARY KEY, b, c);
                 WITH RECURSIVE n(x) AS (VALUES(1) UNION ALL SELECT x+1 FROM n WHERE x<25)
                 INSERT INTO t SELECT x, 'copied' || x, printf('%.*c', 400, char(97 + x%26)) FROM n",
            )
            .unwrap();
        let result = Backup::new(&source, connection).and_then(|backup| {
            for _ in 0..20 {
                if backup.step(7)? == rusqlite::backup::StepResult::Done {
                    break;
                }
            }
            Ok(())
        });
        self.answers.push(match result {
            Ok(()) => "copied".into(),
            Err(error) => format!("error {}", code(&error)),
        });
    }

    /// One more write by each connection that is still open; whether the last of them could.
    pub fn write_once_more(&mut self) -> bool {
        let mut written = false;
        for who in [A, B] {
            let Some(connection) = &self.connections[who] else {
                continue;
            };
            if !connection.is_autocommit() {
                let text = answer(connection, "ROLLBACK");
                self.answers.push(text);
            }
            let text = answer(connection, &format!("PRAGMA user_version = {}", 10 + who));
            written = !text.starts_with("error");
            self.answers.push(text);
        }
        written
    }

    pub fn close(&mut self) {
        self.connections = [None, None];
    }
}

impl Drop for World {
    fn drop(&mut self) {
        control::disarm();
    }
}

fn remove(path: &Path) {
    let _ = fs::remove_dir_all(path);
    let _ = fs::remove_file(path);
}

pub fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The extended result code.
fn code(error: &rusqlite::Error) -> i32 {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => failure.extended_code,
        rusqlite::Error::SqlInputError { error, .. } => error.extended_code,
        other => panic!("{other}"),
    }
}

/// Runs a statement: its rows, or its result code.
pub fn answer(connection: &Connection, sql: &str) -> String {
    let rows = || -> rusqlite::Result<String> {
        let mut statement = connection.prepare(sql)?;
        let columns = statement.column_count();
        let mut rows = statement.raw_query();
        let mut text = String::new();
        while let Some(row) = rows.next()? {
            for column in 0..columns {
                match row.get_ref(column)? {
                    ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
                        text += &String::from_utf8_lossy(bytes);
                    }
                    other => text += &format!("{other:?}"),
                }
                text.push('|');
            }
        }
        Ok(text)
    };
    rows().unwrap_or_else(|error| format!("error {}", code(&error)))
}
