//! The workloads: small, with a cache that spills, so that every call of each can fail in turn.

/// One of the two connections of a workload.
pub type Who = usize;
pub const A: Who = 0;
pub const B: Who = 1;

/// One step of a workload.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Open(Who),
    Close(Who),
    Sql(Who, &'static str),
    /// The file grows by so many bytes at a time.
    Chunk(Who, i32),
    /// Another database is copied over ours by the backup interface.
    Backup(Who),
    /// A process without the extension writes.
    Foreign(&'static str),
    /// Something happens to the log's directory, if there is one.
    Log(Motion),
}

/// What can happen to the log's directory while it is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Motion {
    /// Somebody removes it.
    Removed,
    /// Somebody moves it away.
    Moved,
    /// Somebody puts back what was there at the beginning.
    Restored,
    /// Somebody puts a file in its place.
    File,
    /// Somebody removes the files in it.
    Emptied,
}

/// A workload.
pub struct Scenario {
    pub name: &'static str,
    pub modes: &'static [&'static str],
    /// What was there before, in addition to the table that all have.
    pub setup: &'static [Step],
    /// The process that set it up died, and left its files as they were.
    pub dies: bool,
    /// What is done without a fault, before.
    pub before: &'static [Step],
    /// What is done with a fault.
    pub steps: &'static [Step],
}

/// WAL mode, in which a thread of the process records.
pub const BACKGROUND: &str = "WAL-BACKGROUND";
pub const ALL_MODES: &[&str] = &[
    "DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF", "WAL", BACKGROUND,
];
const JOURNALS: &[&str] = &["DELETE", "TRUNCATE", "PERSIST"];
const ROLLBACK: &[&str] = &["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"];
const WAL: &[&str] = &["WAL", BACKGROUND];

impl Scenario {
    /// Whether the log's history ends, so that a replica must begin anew.
    pub fn ends_history(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Log(_)))
    }
}

/// The table that all workloads have: some thirty pages of 512 bytes.
pub const TABLE: &[Step] = &[
    Step::Sql(A, "CREATE TABLE t(a INTEGER PRIMARY KEY, b, c)"),
    Step::Sql(A, "CREATE INDEX tb ON t(b)"),
    Step::Sql(
        A,
        "WITH RECURSIVE n(x) AS (VALUES(1) UNION ALL SELECT x+1 FROM n WHERE x<40)
         INSERT INTO t SELECT x, 'key' || (x*7919%1000), printf('%.*c', 100 + x*3, char(97 + x%26)) FROM n",
    ),
];

const MORE: &str = "WITH RECURSIVE n(x) AS (VALUES(1) UNION ALL SELECT x+1 FROM n WHERE x<12)
    INSERT INTO t(b, c) SELECT 'more' || (x*37%100), printf('%.*c', 150 + x*40, char(65 + x)) FROM n";
const CHANGE: &str = "UPDATE t SET c = c || 'changed', b = b || 'x' WHERE a % 3 = 0";
const BEFORE: &[Step] = &[Step::Open(A), Step::Sql(A, "PRAGMA user_version = 1")];

const EMPTY: Scenario = Scenario {
    name: "",
    modes: ALL_MODES,
    setup: &[],
    dies: false,
    before: BEFORE,
    steps: &[],
};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "autocommit",
        steps: &[
            Step::Sql(A, "INSERT INTO t(b, c) VALUES('new', 'row')"),
            Step::Sql(A, "UPDATE t SET b = 'changed' WHERE a = 7"),
            Step::Sql(A, "DELETE FROM t WHERE a IN (3, 30)"),
            Step::Sql(A, "SELECT count(*), sum(length(c)) FROM t"),
        ],
        ..EMPTY
    },
    Scenario {
        name: "spill",
        steps: &[
            Step::Sql(A, "BEGIN"),
            Step::Sql(A, MORE),
            Step::Sql(A, CHANGE),
            Step::Sql(A, "COMMIT"),
            Step::Sql(A, "INSERT INTO t(b) VALUES('next')"),
        ],
        ..EMPTY
    },
    Scenario {
        name: "rollback",
        steps: &[
            Step::Sql(A, "BEGIN"),
            Step::Sql(A, "DELETE FROM t WHERE a % 4 = 1"),
            Step::Sql(A, CHANGE),
            Step::Sql(A, MORE),
            Step::Sql(A, "ROLLBACK"),
            Step::Sql(A, "INSERT INTO t(b) VALUES('next')"),
        ],
        ..EMPTY
    },
    Scenario {
        name: "savepoint",
        steps: &[
            Step::Sql(A, "BEGIN"),
            Step::Sql(A, "INSERT INTO t(b) VALUES('first')"),
            Step::Sql(A, "SAVEPOINT s"),
            Step::Sql(A, CHANGE),
            Step::Sql(A, MORE),
            Step::Sql(A, "ROLLBACK TO s"),
            Step::Sql(A, "DELETE FROM t WHERE a < 5"),
            Step::Sql(A, "RELEASE s"),
            Step::Sql(A, "COMMIT"),
        ],
        ..EMPTY
    },
    Scenario {
        name: "chunks",
        steps: &[
            Step::Chunk(A, 8192),
            Step::Sql(A, MORE),
            Step::Sql(A, "DELETE FROM t WHERE a > 30"),
        ],
        ..EMPTY
    },
    Scenario {
        name: "vacuum",
        steps: &[
            Step::Sql(A, "DELETE FROM t WHERE a % 2"),
            Step::Sql(A, "VACUUM"),
            Step::Sql(A, "INSERT INTO t(b) VALUES('next')"),
        ],
        ..EMPTY
    },
    Scenario {
        name: "incremental",
        setup: &[
            Step::Sql(A, "PRAGMA auto_vacuum = INCREMENTAL"),
            Step::Sql(A, "VACUUM"),
        ],
        steps: &[
            Step::Sql(A, "DELETE FROM t WHERE a > 12"),
            Step::Sql(A, "PRAGMA incremental_vacuum(4)"),
            Step::Sql(A, "PRAGMA incremental_vacuum"),
        ],
        ..EMPTY
    },
    Scenario {
        name: "auto-vacuum",
        setup: &[
            Step::Sql(A, "PRAGMA auto_vacuum = FULL"),
            Step::Sql(A, "VACUUM"),
        ],
        steps: &[
            Step::Sql(A, "DELETE FROM t WHERE a > 20"),
            Step::Sql(A, "INSERT INTO t(b) VALUES('next')"),
        ],
        ..EMPTY
    },
    Scenario {
        name: "page-size",
        modes: ROLLBACK,
        steps: &[
            Step::Sql(A, "PRAGMA page_size = 1024"),
            Step::Sql(A, "VACUUM"),
            Step::Sql(A, "INSERT INTO t(b) VALUES('next')"),
        ],
        ..EMPTY
    },
    Scenario {
        name: "attached",
        before: &[
            Step::Open(A),
            Step::Sql(A, "ATTACH 'side' AS side"),
            Step::Sql(A, "CREATE TABLE side.s(a INTEGER PRIMARY KEY, b)"),
            Step::Sql(A, "PRAGMA user_version = 1"),
        ],
        steps: &[
            Step::Sql(A, "BEGIN"),
            Step::Sql(A, "INSERT INTO side.s(b) SELECT c FROM t WHERE a < 12"),
            Step::Sql(A, "DELETE FROM t WHERE a < 12"),
            Step::Sql(A, "COMMIT"),
            Step::Sql(A, "INSERT INTO side.s(b) VALUES('next')"),
        ],
        ..EMPTY
    },
    Scenario {
        name: "checkpoints",
        modes: WAL,
        before: &[
            Step::Open(A),
            Step::Sql(A, "PRAGMA user_version = 1"),
            Step::Open(B),
        ],
        steps: &[
            Step::Sql(A, MORE),
            Step::Sql(A, "PRAGMA wal_checkpoint(PASSIVE)"),
            Step::Sql(B, "INSERT INTO t(b) VALUES('b')"),
            Step::Sql(B, "PRAGMA wal_checkpoint(FULL)"),
            Step::Sql(A, "INSERT INTO t(b) VALUES('a')"),
            Step::Sql(A, "PRAGMA wal_checkpoint(RESTART)"),
            Step::Sql(A, "INSERT INTO t(b) VALUES('again')"),
            Step::Sql(B, "PRAGMA wal_checkpoint(TRUNCATE)"),
            Step::Sql(A, "INSERT INTO t(b) VALUES('next')"),
        ],
        ..EMPTY
    },
    Scenario {
        name: "wal-restart",
        modes: WAL,
        before: &[
            Step::Open(A),
            Step::Sql(A, "PRAGMA user_version = 1"),
            Step::Sql(A, "PRAGMA wal_autocheckpoint = 8"),
        ],
        steps: &[
            Step::Sql(A, "UPDATE t SET b = b || '1' WHERE a % 5 = 0"),
            Step::Sql(A, "UPDATE t SET b = b || '2' WHERE a % 5 = 1"),
            Step::Sql(A, "BEGIN"),
            Step::Sql(A, "UPDATE t SET b = b || '3' WHERE a % 5 = 2"),
            Step::Sql(A, "ROLLBACK"),
            Step::Sql(A, "DELETE FROM t WHERE a % 5 = 3"),
        ],
        ..EMPTY
    },
    Scenario {
        name: "switches",
        modes: &["DELETE", "TRUNCATE", "WAL", BACKGROUND],
        steps: &[
            Step::Sql(A, "PRAGMA journal_mode = WAL"),
            Step::Sql(A, "UPDATE t SET b = b || '1' WHERE a % 5 = 0"),
            Step::Sql(A, "PRAGMA journal_mode = DELETE"),
            Step::Sql(A, "UPDATE t SET b = b || '2' WHERE a % 5 = 1"),
            Step::Sql(A, "PRAGMA journal_mode = WAL"),
            Step::Sql(A, "INSERT INTO t(b) VALUES('next')"),
        ],
        ..EMPTY
    },
    Scenario {
        name: "exclusive",
        before: &[
            Step::Open(A),
            Step::Sql(A, "PRAGMA locking_mode = EXCLUSIVE"),
            Step::Sql(A, "PRAGMA user_version = 1"),
        ],
        steps: &[
            Step::Sql(A, CHANGE),
            Step::Sql(A, "BEGIN"),
            Step::Sql(A, MORE),
            Step::Sql(A, "ROLLBACK"),
            Step::Sql(A, "INSERT INTO t(b) VALUES('more')"),
            Step::Sql(A, "PRAGMA locking_mode = NORMAL"),
            Step::Sql(A, "DELETE FROM t WHERE a = 4"),
            Step::Sql(A, "INSERT INTO t(b) VALUES('next')"),
        ],
        ..EMPTY
    },
    Scenario {
        name: "exclusive-wal",
        modes: WAL,
        // Exclusive before the WAL is opened: then there is no shared memory.
        before: &[],
        steps: &[
            Step::Open(A),
            Step::Sql(A, "PRAGMA locking_mode = EXCLUSIVE"),
            Step::Sql(A, CHANGE),
            Step::Sql(A, "PRAGMA wal_checkpoint(TRUNCATE)"),
            Step::Sql(A, "INSERT INTO t(b) VALUES('next')"),
        ],
        ..EMPTY
    },
    Scenario {
        name: "backup",
        steps: &[
            Step::Backup(A),
            Step::Sql(A, "INSERT INTO t(b) VALUES('next')"),
        ],
        ..EMPTY
    },
    Scenario {
        name: "mapped",
        modes: &["DELETE", "OFF", "WAL", BACKGROUND],
        before: &[
            Step::Open(A),
            Step::Sql(A, "PRAGMA mmap_size = 1000000"),
            Step::Sql(A, "PRAGMA user_version = 1"),
        ],
        steps: &[
            Step::Sql(A, "UPDATE t SET b = b || '1' WHERE a % 5 = 0"),
            Step::Sql(A, "BEGIN"),
            Step::Sql(A, MORE),
            Step::Sql(A, "ROLLBACK"),
            Step::Sql(A, "DELETE FROM t WHERE a > 20"),
        ],
        ..EMPTY
    },
    Scenario {
        name: "create",
        steps: &[
            Step::Sql(A, "ATTACH 'side' AS side"),
            Step::Sql(A, "CREATE TABLE side.t(a INTEGER PRIMARY KEY, b, c)"),
            Step::Sql(A, "INSERT INTO side.t SELECT * FROM t WHERE a < 9"),
            Step::Sql(A, "DETACH side"),
        ],
        ..EMPTY
    },
    Scenario {
        name: "hot-journal",
        modes: JOURNALS,
        setup: &[
            Step::Sql(A, "BEGIN"),
            Step::Sql(A, "DELETE FROM t WHERE a % 4 = 1"),
            Step::Sql(A, CHANGE),
            Step::Sql(A, MORE),
        ],
        dies: true,
        before: &[],
        steps: &[
            Step::Open(A),
            Step::Sql(A, "SELECT count(*) FROM t"),
            Step::Sql(A, "INSERT INTO t(b) VALUES('next')"),
        ],
    },
    Scenario {
        name: "dead-wal",
        modes: WAL,
        setup: &[
            Step::Sql(A, "INSERT INTO t(b) VALUES('before')"),
            Step::Sql(A, "BEGIN"),
            Step::Sql(A, CHANGE),
            Step::Sql(A, MORE),
        ],
        dies: true,
        before: &[],
        steps: &[
            Step::Open(A),
            Step::Sql(A, "SELECT count(*) FROM t"),
            Step::Sql(A, "INSERT INTO t(b) VALUES('next')"),
            Step::Sql(A, "PRAGMA wal_checkpoint"),
        ],
    },
    Scenario {
        name: "two",
        before: &[
            Step::Open(A),
            Step::Sql(A, "PRAGMA user_version = 1"),
            Step::Open(B),
        ],
        steps: &[
            Step::Sql(A, "BEGIN"),
            Step::Sql(A, "INSERT INTO t(b) VALUES('a')"),
            Step::Sql(B, "SELECT count(*) FROM t"),
            Step::Sql(B, "INSERT INTO t(b) VALUES('busy')"),
            Step::Sql(A, "COMMIT"),
            Step::Sql(B, CHANGE),
            Step::Close(A),
            Step::Sql(B, "INSERT INTO t(b) VALUES('next')"),
        ],
        ..EMPTY
    },
    Scenario {
        name: "open-and-close",
        before: &[],
        steps: &[
            Step::Open(A),
            Step::Sql(A, "INSERT INTO t(b) VALUES('one')"),
            Step::Close(A),
            Step::Open(A),
            Step::Sql(A, "DELETE FROM t WHERE a = 3"),
            Step::Close(A),
        ],
        ..EMPTY
    },
    Scenario {
        name: "schema",
        steps: &[
            Step::Sql(A, "CREATE TABLE u AS SELECT a, c FROM t WHERE a < 9"),
            Step::Sql(A, "DROP TABLE t"),
            Step::Sql(A, "CREATE INDEX uc ON u(c)"),
        ],
        ..EMPTY
    },
    Scenario {
        name: "outsider",
        steps: &[
            Step::Sql(A, "INSERT INTO t(b) VALUES('one')"),
            Step::Foreign("UPDATE t SET b = 'outsider' WHERE a < 5"),
            Step::Sql(A, "INSERT INTO t(b) VALUES('two')"),
            Step::Foreign("DELETE FROM t WHERE a = 12"),
            Step::Sql(A, "SELECT count(*) FROM t"),
        ],
        ..EMPTY
    },
    Scenario {
        name: "log-removed",
        steps: &[
            Step::Sql(A, "INSERT INTO t(b) VALUES('one')"),
            Step::Log(Motion::Removed),
            Step::Sql(A, "INSERT INTO t(b) VALUES('two')"),
            Step::Sql(A, "BEGIN"),
            Step::Sql(A, CHANGE),
            Step::Log(Motion::Removed),
            Step::Sql(A, "COMMIT"),
            Step::Sql(A, "INSERT INTO t(b) VALUES('next')"),
        ],
        modes: &["DELETE", "WAL", BACKGROUND],
        ..EMPTY
    },
    Scenario {
        name: "log-moved",
        steps: &[
            Step::Sql(A, "INSERT INTO t(b) VALUES('one')"),
            Step::Log(Motion::Moved),
            Step::Sql(A, "INSERT INTO t(b) VALUES('two')"),
            Step::Sql(A, "BEGIN"),
            Step::Sql(A, CHANGE),
            Step::Log(Motion::Moved),
            Step::Sql(A, "COMMIT"),
            Step::Sql(A, "INSERT INTO t(b) VALUES('next')"),
        ],
        modes: &["DELETE", "WAL", BACKGROUND],
        ..EMPTY
    },
    Scenario {
        name: "log-restored",
        steps: &[
            Step::Sql(A, "INSERT INTO t(b) VALUES('one')"),
            Step::Log(Motion::Restored),
            Step::Sql(A, "INSERT INTO t(b) VALUES('two')"),
            Step::Sql(A, "BEGIN"),
            Step::Sql(A, CHANGE),
            Step::Log(Motion::Restored),
            Step::Sql(A, "COMMIT"),
            Step::Sql(A, "INSERT INTO t(b) VALUES('next')"),
        ],
        modes: &["DELETE", "WAL", BACKGROUND],
        ..EMPTY
    },
    Scenario {
        name: "log-a-file",
        steps: &[
            Step::Sql(A, "INSERT INTO t(b) VALUES('one')"),
            Step::Log(Motion::File),
            Step::Sql(A, "INSERT INTO t(b) VALUES('two')"),
            Step::Sql(A, "BEGIN"),
            Step::Sql(A, CHANGE),
            Step::Log(Motion::Removed),
            Step::Sql(A, "COMMIT"),
            Step::Sql(A, "INSERT INTO t(b) VALUES('next')"),
        ],
        modes: &["DELETE", "WAL", BACKGROUND],
        ..EMPTY
    },
    Scenario {
        name: "log-emptied",
        steps: &[
            Step::Sql(A, "INSERT INTO t(b) VALUES('one')"),
            Step::Log(Motion::Emptied),
            Step::Sql(A, "INSERT INTO t(b) VALUES('two')"),
            Step::Sql(A, "BEGIN"),
            Step::Sql(A, CHANGE),
            Step::Log(Motion::Emptied),
            Step::Sql(A, "COMMIT"),
            Step::Sql(A, "INSERT INTO t(b) VALUES('next')"),
        ],
        modes: &["DELETE", "WAL", BACKGROUND],
        ..EMPTY
    },
];
