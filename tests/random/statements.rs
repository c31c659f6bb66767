//! The generator: one SQL statement after the other, from a seed.

use crate::common::Random;

/// Picks one of `choices`.
pub fn pick<'a, T: ?Sized>(random: &mut Random, choices: &[&'a T]) -> &'a T {
    choices[random.below(choices.len() as u64) as usize]
}

pub const JOURNAL_MODES: [&str; 6] = ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF", "WAL"];

/// Creates the tables that the statements use, each a transaction of its own.
pub const SCHEMA: [&str; 6] = [
    "CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)",
    "CREATE TABLE u(x INTEGER UNIQUE, y TEXT, z DEFAULT 0)",
    "CREATE TABLE w(k, l, m, PRIMARY KEY(l, k)) WITHOUT ROWID",
    "CREATE INDEX ti ON t(length(b), a)",
    "CREATE VIRTUAL TABLE f USING fts5(title, body)",
    "CREATE VIRTUAL TABLE r USING rtree(id, x0, x1, y0, y1)",
];

/// Numbers from 1 to `n`, as a table `n(i)`.
fn numbers(n: u64) -> String {
    format!("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{n})")
}

/// How many bytes a value has: mostly few.
fn size(random: &mut Random) -> u64 {
    match random.below(20) {
        0 => random.below(60_000),
        1..=4 => random.below(4000),
        _ => random.below(300),
    }
}

/// A statement that changes rows. Its effect depends on the database and on nothing else.
pub fn change(random: &mut Random) -> String {
    let seed = random.below(1 << 40);
    let most = if random.below(8) == 0 { 300 } else { 12 };
    let rows = 1 + random.below(most);
    let modulus = 2 + random.below(9);
    let rest = random.below(modulus);
    let which = format!("a%{modulus}={rest}");
    let bytes = if rows > 50 {
        random.below(600)
    } else {
        size(random)
    };
    let from = random.below(400);
    match random.below(20) {
        0..=4 => format!(
            "{} INSERT INTO t(b) SELECT noise({seed}+i, {bytes}) FROM n",
            numbers(rows)
        ),
        5..=6 => format!("UPDATE t SET b=noise({seed}+a, {bytes}) WHERE {which}"),
        7 => format!("UPDATE t SET b=b WHERE {which}"),
        8..=9 => format!("DELETE FROM t WHERE {which}"),
        10 => format!("DELETE FROM t WHERE a>{}", random.below(600)),
        11 => format!(
            "DELETE FROM t WHERE a NOT IN (SELECT a FROM t ORDER BY a LIMIT {})",
            random.below(300)
        ),
        12..=13 => {
            let conflict = pick(random, &["ABORT", "FAIL", "IGNORE", "ROLLBACK", "REPLACE"]);
            format!(
                "{} INSERT OR {conflict} INTO u(x, y) SELECT {from}+i, hex(noise({seed}+i, {})) FROM n",
                numbers(rows),
                bytes / 2
            )
        }
        14 => format!(
            "{} INSERT INTO u(x, y) SELECT {from}+i, 'new' FROM n WHERE true ON CONFLICT(x) DO UPDATE SET y=y||'+', z=z+1",
            numbers(rows)
        ),
        15 => format!(
            "DELETE FROM u WHERE x BETWEEN {from} AND {}",
            from + random.below(200)
        ),
        16 => format!(
            "{} INSERT OR REPLACE INTO w SELECT i, (i*7919+{seed})%1000, hex(noise({seed}, {}+i%40)) FROM n",
            numbers(rows),
            bytes / 4
        ),
        17 => format!("DELETE FROM w WHERE l%{modulus}={rest}"),
        18 => full_text(random, seed, rows),
        _ => match random.below(3) {
            0 => format!("DELETE FROM r WHERE x0<{}", random.below(60)),
            _ => format!(
                "{} INSERT OR REPLACE INTO r SELECT (i*31+{seed})%200, i%50, i%50+3, {from}, {from}+2 FROM n",
                numbers(rows)
            ),
        },
    }
}

fn full_text(random: &mut Random, seed: u64, rows: u64) -> String {
    match random.below(5) {
        0 => "INSERT INTO f(f) VALUES('optimize')".to_owned(),
        1 => format!("DELETE FROM f WHERE f MATCH 'word{}'", random.below(20)),
        2 => format!(
            "UPDATE f SET body=body||' more' WHERE rowid%7={}",
            random.below(7)
        ),
        _ => format!(
            "{} INSERT INTO f SELECT 'title '||i, 'word'||((i+{seed})%20)||' and word'||(i*31%97) FROM n",
            numbers(rows)
        ),
    }
}

/// A statement that changes the schema, or something in the header.
pub fn schema(random: &mut Random) -> String {
    let n = random.below(4);
    match random.below(9) {
        0 => format!("CREATE TABLE IF NOT EXISTS x{n}(a INTEGER PRIMARY KEY, b, c)"),
        1 => format!("CREATE TABLE IF NOT EXISTS x{n} AS SELECT * FROM t"),
        2 => format!("DROP TABLE IF EXISTS x{n}"),
        3 => format!("CREATE INDEX IF NOT EXISTS i{n} ON u(y, z)"),
        4 => format!("DROP INDEX IF EXISTS i{n}"),
        5 => format!("PRAGMA user_version={}", random.below(1000)),
        6 => format!("PRAGMA application_id={}", random.below(1000)),
        7 => "REINDEX".to_owned(),
        _ => "ANALYZE".to_owned(),
    }
}

pub fn select(random: &mut Random) -> String {
    let k = random.below(10);
    match random.below(6) {
        0 => "SELECT count(*), sum(length(b)), max(a) FROM t".to_owned(),
        1 => format!("SELECT a, b FROM t WHERE a%10={k} ORDER BY a DESC LIMIT 20"),
        2 => "SELECT count(*), sum(z), min(y) FROM u".to_owned(),
        3 => format!("SELECT rowid FROM f WHERE f MATCH 'word{k}' ORDER BY rowid LIMIT 20"),
        4 => "SELECT count(*), sum(l) FROM w".to_owned(),
        _ => format!("SELECT id FROM r WHERE x0>{k} ORDER BY id LIMIT 20"),
    }
}

/// What steers a transaction.
pub fn transaction(random: &mut Random, inside: bool) -> String {
    if !inside {
        return pick(
            random,
            &[
                "BEGIN",
                "BEGIN IMMEDIATE",
                "BEGIN EXCLUSIVE",
                "SAVEPOINT s1",
            ],
        )
        .to_owned();
    }
    match random.below(12) {
        0..=3 => "COMMIT".to_owned(),
        4..=5 => "ROLLBACK".to_owned(),
        6..=7 => format!("SAVEPOINT s{}", 1 + random.below(3)),
        8..=10 => format!("ROLLBACK TO s{}", 1 + random.below(3)),
        _ => format!("RELEASE s{}", 1 + random.below(3)),
    }
}

/// Moves pages, or changes what the file looks like.
pub fn motion(random: &mut Random) -> String {
    match random.below(10) {
        0 => "VACUUM".to_owned(),
        1..=2 => format!("PRAGMA incremental_vacuum({})", random.below(40)),
        3 => format!("PRAGMA auto_vacuum={}", random.below(3)),
        4 => format!("PRAGMA page_size={}", 512 << random.below(8)),
        5 => format!("PRAGMA journal_mode={}", pick(random, &JOURNAL_MODES)),
        _ => format!(
            "PRAGMA wal_checkpoint({})",
            pick(random, &["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
        ),
    }
}

/// Settings of one connection.
pub fn setting(random: &mut Random) -> String {
    match random.below(9) {
        0..=1 => format!(
            "PRAGMA cache_size={}",
            pick(random, &["5", "10", "50", "-2000"])
        ),
        2..=3 => format!("PRAGMA synchronous={}", random.below(4)),
        4 => format!(
            "PRAGMA mmap_size={}",
            pick(random, &["0", "20000", "100000000"])
        ),
        5 => format!("PRAGMA cache_spill={}", pick(random, &["0", "1", "7"])),
        6 => format!("PRAGMA secure_delete={}", pick(random, &["0", "1", "FAST"])),
        7 => format!(
            "PRAGMA wal_autocheckpoint={}",
            pick(random, &["0", "3", "20", "1000"])
        ),
        _ => format!(
            "PRAGMA journal_size_limit={}",
            pick(random, &["-1", "0", "10000"])
        ),
    }
}
