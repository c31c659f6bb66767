//! One process, several connections, one statement after the other: on a database of plain SQLite, and on one of ours.

use crate::common::Random;
use crate::host::{Outcome, assert_same_dump, code, dump, is_writing, open, run};
use crate::statements::{
    JOURNAL_MODES, SCHEMA, change, motion, pick, schema, select, setting, transaction,
};
use crate::watch::{Moment, Watch};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ffi};
use std::path::{Path, PathBuf};
use std::time::Duration;

const CONNECTIONS: usize = 4;
const ACTS: usize = 150;
/// Acts that a failure shows.
const TRACE: usize = 40;

/// What is done to both databases. `{dir}` and `{vfs}` in SQL stand for the side's own.
#[derive(Clone, Debug)]
enum Act {
    Open {
        who: usize,
        parameters: &'static str,
    },
    Close {
        who: usize,
    },
    Sql {
        who: usize,
        sql: String,
    },
    /// Opens a cursor, or takes a few steps with the one that is open.
    Step {
        who: usize,
        steps: u64,
    },
    CloseCursor {
        who: usize,
    },
    BackupOnto {
        who: usize,
        pages: i32,
    },
    BackupFrom {
        who: usize,
        pages: i32,
    },
    ChunkSize {
        who: usize,
        bytes: i32,
    },
    /// A connection without the extension, on both sides.
    Foreign {
        sql: String,
    },
}

/// A statement that was not finished.
struct Cursor(*mut ffi::sqlite3_stmt);

impl Cursor {
    fn open(connection: &Connection) -> Result<Cursor, i32> {
        let mut statement = std::ptr::null_mut();
        // SAFETY: the connection is open, the SQL ends with a zero byte, and the statement is finalised before the close.
        let rc = unsafe {
            ffi::sqlite3_prepare_v2(
                connection.handle(),
                c"SELECT a, length(b) FROM t ORDER BY a".as_ptr(),
                -1,
                &raw mut statement,
                std::ptr::null_mut(),
            )
        };
        if rc == ffi::SQLITE_OK {
            Ok(Cursor(statement))
        } else {
            Err(rc)
        }
    }

    fn step(&self, steps: u64) -> Outcome {
        let mut rows = Vec::new();
        for _ in 0..steps {
            // SAFETY: the statement is prepared, and has a first column after a step that says so.
            let (rc, value) = unsafe {
                let rc = ffi::sqlite3_step(self.0);
                (rc, ffi::sqlite3_column_int64(self.0, 0))
            };
            match rc {
                ffi::SQLITE_ROW => rows.push(value.to_string()),
                ffi::SQLITE_DONE => break,
                error => return Outcome::Error(error),
            }
        }
        Outcome::Rows(rows)
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        // SAFETY: the statement was prepared, and is finalised once.
        unsafe { ffi::sqlite3_finalize(self.0) };
    }
}

/// One of the two databases, with its connections.
struct Side {
    dir: PathBuf,
    vfs: &'static str,
    cursors: [Option<Cursor>; CONNECTIONS],
    connections: [Option<Connection>; CONNECTIONS],
    foreign: Option<Connection>,
}

impl Side {
    fn new(dir: &Path, vfs: &'static str) -> Side {
        Side {
            dir: dir.to_path_buf(),
            vfs,
            cursors: Default::default(),
            connections: Default::default(),
            foreign: None,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn act(&mut self, act: &Act) -> Outcome {
        match act {
            Act::Open { who, parameters } => {
                let opened = open(&self.path("app.db"), self.vfs, parameters, Duration::ZERO);
                Outcome::of(opened.map(|connection| self.connections[*who] = Some(connection)))
            }
            Act::Close { who } => {
                self.cursors[*who] = None;
                self.connections[*who] = None;
                Outcome::of(Ok(()))
            }
            Act::Sql { who, sql } => {
                let sql = sql
                    .replace("{dir}", &self.dir.display().to_string())
                    .replace("{vfs}", self.vfs);
                run(self.connection(*who), &sql)
            }
            Act::Step { who, steps } => {
                if self.cursors[*who].is_none() {
                    match Cursor::open(self.connection(*who)) {
                        Ok(cursor) => self.cursors[*who] = Some(cursor),
                        Err(code) => return Outcome::Error(code),
                    }
                }
                self.cursors[*who].as_ref().unwrap().step(*steps)
            }
            Act::CloseCursor { who } => {
                self.cursors[*who] = None;
                Outcome::of(Ok(()))
            }
            Act::BackupOnto { who, pages } => {
                let source = open(&self.path("source.db"), "unix", "", Duration::ZERO).unwrap();
                let target = self.connections[*who].as_mut().unwrap();
                Outcome::of(back_up(&source, target, *pages))
            }
            Act::BackupFrom { who, pages } => {
                let mut target = open(&self.path("copy.db"), "unix", "", Duration::ZERO).unwrap();
                Outcome::of(back_up(self.connection(*who), &mut target, *pages))
            }
            Act::ChunkSize { who, bytes } => {
                let mut bytes = *bytes;
                // SAFETY: the connection is open, and this operation takes a pointer to a number.
                let rc = unsafe {
                    ffi::sqlite3_file_control(
                        self.connection(*who).handle(),
                        c"main".as_ptr(),
                        ffi::SQLITE_FCNTL_CHUNK_SIZE,
                        (&raw mut bytes).cast(),
                    )
                };
                Outcome::of(if rc == 0 { Ok(()) } else { Err(rc) })
            }
            Act::Foreign { sql } => {
                let path = self.path("app.db");
                let foreign = self
                    .foreign
                    .get_or_insert_with(|| open(&path, "unix", "", Duration::ZERO).unwrap());
                run(foreign, sql)
            }
        }
    }

    fn connection(&self, who: usize) -> &Connection {
        self.connections[who].as_ref().unwrap()
    }

    fn is_writing(&self) -> bool {
        self.connections.iter().flatten().any(is_writing)
    }
}

/// Copies a whole database, `pages` at a time.
fn back_up(source: &Connection, target: &mut Connection, pages: i32) -> Result<(), i32> {
    let backup = Backup::new(source, target).map_err(|e| code(&e))?;
    loop {
        match backup.step(pages).map_err(|e| code(&e))? {
            StepResult::Done => return Ok(()),
            StepResult::More => {}
            StepResult::Busy => return Err(ffi::SQLITE_BUSY),
            _ => return Err(ffi::SQLITE_LOCKED),
        }
    }
}

/// What an episode may contain, drawn at its beginning so that episodes differ.
struct Style {
    foreign: bool,
    exclusive: bool,
    motions: u64,
    connections: usize,
    parameters: &'static str,
}

const BACKGROUND: &str = "&wal_capture=background";
/// What every connection of an episode is opened with.
const PARAMETERS: [&str; 6] = ["", "", BACKGROUND, BACKGROUND, "&psow=0", "&cache=private"];

impl Style {
    fn draw(random: &mut Random) -> Style {
        let mut style = Style::draw_any(random);
        if style.foreign && style.parameters == BACKGROUND {
            // The thread may be late, and record a foreigner's commit before the next one: nobody knows what to compare with.
            style.parameters = "";
        }
        style
    }

    fn draw_any(random: &mut Random) -> Style {
        Style {
            foreign: random.below(4) == 0,
            exclusive: random.below(4) == 0,
            motions: 1 + random.below(8),
            connections: 1 + random.below(CONNECTIONS as u64) as usize,
            parameters: pick(random, &PARAMETERS),
        }
    }
}

/// The generator of an episode's acts.
struct Author {
    random: Random,
    style: Style,
}

impl Author {
    fn next(&mut self, ours: &Side) -> Act {
        let random = &mut self.random;
        let mut who = random.below(self.style.connections as u64) as usize;
        // The others can only wait for a writer: it is more often its turn.
        let writer = ours
            .connections
            .iter()
            .position(|c| c.as_ref().is_some_and(is_writing));
        if random.below(3) > 0 {
            who = writer.unwrap_or(who);
        }
        let Some(connection) = &ours.connections[who] else {
            return Act::Open {
                who,
                parameters: self.style.parameters,
            };
        };
        let inside = !connection.is_autocommit();
        if inside && random.below(6) == 0 {
            return Act::Sql {
                who,
                sql: pick(random, &["COMMIT", "COMMIT", "ROLLBACK"]).to_owned(),
            };
        }
        if self.style.foreign && random.below(12) == 0 {
            return Act::Foreign {
                sql: foreign_deed(random),
            };
        }
        let sql = match random.below(100) {
            0..=43 => change(random),
            44..=49 => schema(random),
            50..=57 => select(random),
            58..=73 => transaction(random, inside),
            74..=79 => setting(random),
            80..=87 if random.below(8) < self.style.motions => motion(random),
            88 => return Act::Close { who },
            89..=90 => {
                return Act::Step {
                    who,
                    steps: 1 + random.below(30),
                };
            }
            91..=92 => return Act::CloseCursor { who },
            93 => return self.rare(who),
            94..=95 => "ATTACH 'file:{dir}/aux.db?vfs={vfs}' AS aux".to_owned(),
            96 => "DETACH aux".to_owned(),
            97..=98 => format!(
                "{} ",
                change(random)
                    .replace("INTO t(b)", "INTO aux.y(b)")
                    .replace("FROM t WHERE", "FROM aux.y WHERE")
            ),
            _ => change(random),
        };
        Act::Sql { who, sql }
    }

    fn rare(&mut self, who: usize) -> Act {
        let random = &mut self.random;
        let pages = if random.below(2) == 0 {
            -1
        } else {
            1 + random.below(20) as i32
        };
        let sql = match random.below(8) {
            0 => return Act::BackupOnto { who, pages },
            1 => return Act::BackupFrom { who, pages },
            2 => {
                return Act::ChunkSize {
                    who,
                    bytes: 4096 << random.below(6),
                };
            }
            3 => format!("VACUUM INTO '{{dir}}/into-{}.db'", random.below(1 << 40)),
            4 if self.style.exclusive => "PRAGMA locking_mode=EXCLUSIVE".to_owned(),
            5..=6 if self.style.exclusive => "PRAGMA locking_mode=NORMAL".to_owned(),
            _ => "CREATE TABLE IF NOT EXISTS aux.y(a INTEGER PRIMARY KEY, b)".to_owned(),
        };
        Act::Sql { who, sql }
    }
}

fn foreign_deed(random: &mut Random) -> String {
    match random.below(6) {
        0 => motion(random),
        1 => schema(random),
        _ => change(random),
    }
}

/// The two sides, and what is watched.
struct Twins {
    plain: Side,
    ours: Side,
    main: Watch,
    aux: Watch,
    trace: Vec<String>,
    exclusive: bool,
}

impl Twins {
    fn act(&mut self, act: &Act) {
        let plain = self.plain.act(act);
        let ours = self.ours.act(act);
        self.trace.push(format!("{act:?} -> {ours:?}"));
        let what = format!("act {}, {act:?}", self.trace.len());
        assert_eq!(plain, ours, "{what}: plain, ours");
        let sql = match act {
            Act::Sql { sql, .. } => sql.as_str(),
            _ => "",
        };
        if let Act::Foreign { .. } = act {
            self.main.foreign_writes();
        }
        if sql.ends_with("locking_mode=EXCLUSIVE") {
            self.exclusive = true;
        }
        if self.exclusive || sql.ends_with("journal_mode=OFF") {
            self.main.excuse();
        }
        let moment = Moment {
            writing: self.ours.is_writing(),
            exclusive: self.exclusive,
            rolled_back: ours.is_error()
                || sql.starts_with("ROLLBACK")
                || matches!(act, Act::Close { .. }),
        };
        self.main.after(moment, &what);
        self.aux.after(moment, &what);
    }

    fn begin(&mut self, random: &mut Random) {
        self.act(&Act::Open {
            who: 0,
            parameters: "",
        });
        let page_size = 512 << random.below(8);
        let mut first = vec![
            format!("PRAGMA page_size={page_size}"),
            format!("PRAGMA auto_vacuum={}", random.below(3)),
            format!(
                "PRAGMA encoding='{}'",
                pick(random, &["UTF-8", "UTF-16le", "UTF-16be"])
            ),
            format!("PRAGMA journal_mode={}", pick(random, &JOURNAL_MODES)),
        ];
        first.extend(SCHEMA.map(str::to_owned));
        first.push(change(random));
        for sql in first {
            self.act(&Act::Sql { who: 0, sql });
        }
    }

    /// Everything is closed: equal dumps; and one more commit finds nothing to compare.
    fn end(mut self) -> (usize, usize, usize, usize) {
        for who in 0..CONNECTIONS {
            self.act(&Act::Close { who });
        }
        (self.plain.foreign, self.ours.foreign) = (None, None);
        self.exclusive = false;
        let last = Act::Sql {
            who: 0,
            sql: "PRAGMA user_version=123456".to_owned(),
        };
        self.act(&Act::Open {
            who: 0,
            parameters: "",
        });
        self.act(&last);
        self.act(&Act::Close { who: 0 });
        for name in ["app.db", "aux.db"] {
            let [plain, ours] = [&self.plain, &self.ours].map(|side| side.path(name));
            assert_eq!(plain.exists(), ours.exists());
            if plain.exists() {
                assert_same_dump(&dump(&plain), &dump(&ours), name);
            }
        }
        let counts = (
            self.trace.len(),
            self.main.commits + self.aux.commits,
            self.main.rebases + self.aux.rebases,
            self.main.comparisons + self.aux.comparisons,
        );
        self.main.finish();
        self.aux.finish();
        counts
    }
}

fn episode(seed: u64) -> (usize, usize, usize, usize) {
    let dir = crate::common::scratch();
    let sides = ["plain", "ours"].map(|name| dir.path().join(name));
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for side in &sides {
        std::fs::create_dir(side).unwrap();
        let source = open(&side.join("source.db"), "unix", "", Duration::ZERO).unwrap();
        for sql in [
            &format!("PRAGMA page_size={}", 512 << (seed % 8)),
            SCHEMA[0],
            SCHEMA[1],
            SCHEMA[2],
            "INSERT INTO t(b) VALUES(noise(1, 900)), (noise(2, 90)), (noise(3, 9000))",
        ] {
            assert!(!run(&source, sql).is_error(), "{sql}");
        }
    }
    let mut twins = Twins {
        plain: Side::new(&sides[0], "unix"),
        ours: Side::new(&sides[1], "mycelite_writer"),
        main: Watch::new(&sides[1].join("app.db")),
        aux: Watch::new(&sides[1].join("aux.db")),
        trace: Vec::new(),
        exclusive: false,
    };
    let style = Style::draw(&mut random);
    let shown = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        twins.begin(&mut random);
        let mut author = Author { random, style };
        for _ in 0..ACTS {
            let act = author.next(&twins.ours);
            twins.act(&act);
        }
    }));
    if let Err(panic) = shown {
        let from = twins.trace.len().saturating_sub(TRACE);
        for (n, line) in twins.trace.iter().enumerate().skip(from) {
            eprintln!("{:4} {}", n + 1, line.chars().take(300).collect::<String>());
        }
        std::panic::resume_unwind(panic);
    }
    twins.end()
}

#[test]
fn twins() {
    let mut total = [0; 5];
    crate::run_episodes("twins", |seed| {
        let (acts, commits, rebases, comparisons) = episode(seed);
        for (sum, n) in total
            .iter_mut()
            .zip([1, acts, commits, rebases, comparisons])
        {
            *sum += n;
        }
    });
    let [episodes, acts, commits, rebases, comparisons] = total;
    println!(
        "twins: {episodes} episodes, {acts} acts, {commits} commits recorded, {rebases} re-bases, {comparisons} comparisons"
    );
}
