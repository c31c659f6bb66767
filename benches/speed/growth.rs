//! How the figures grow: a commit with the size of the database, a transaction with its pages, and opening a moment and catching up
//! with the length of the history.

use crate::Options;
use crate::archive::seal;
use crate::host::{Job, Took, load, measure, plain};
use crate::network;
use crate::report::{Bar, Row, plot_growth};
use mycelite::database::log_dir;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::time::Instant;

/// What a side is called, and its VFS.
const SIDES: [(&str, &str); 2] = [
    ("plain SQLite", "unix"),
    ("with the extension", "mycelite_writer"),
];

fn job(work: &str, db: &Path, vfs: &str, count: u64) -> Job {
    Job {
        work: work.into(),
        db: db.to_path_buf(),
        vfs: vfs.into(),
        pragmas: "PRAGMA journal_mode=wal; PRAGMA synchronous=normal".into(),
        count,
        parameters: String::new(),
    }
}

/// Bytes of a row of which a page has room for one.
fn row_bytes(page_size: u64) -> u64 {
    page_size - page_size / 16
}

/// A database of rows that have a page each.
fn prepare(db: &Path, rows: u64, page_size: u64) {
    let row_bytes = row_bytes(page_size);
    let sql = format!(
        "PRAGMA page_size={page_size}; PRAGMA synchronous=OFF; CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{rows})
         INSERT INTO t SELECT i, zeroblob({row_bytes}) FROM n"
    );
    plain(db).execute_batch(&sql).unwrap();
}

/// One transaction that changes so many pages; `extra` is its time in milliseconds.
pub fn sized(job: &Job) -> Took {
    let connection = job.open();
    connection
        .execute_batch("BEGIN IMMEDIATE; ROLLBACK")
        .unwrap();
    let page_size: u32 = connection
        .query_row("PRAGMA page_size", [], |row| row.get(0))
        .unwrap();
    let sql = format!(
        "UPDATE t SET b = randomblob({}) WHERE a <= {}",
        row_bytes(page_size.into()),
        job.count
    );
    measure(|took| {
        let began = Instant::now();
        connection.execute_batch(&sql).unwrap();
        took.extra = began.elapsed().as_secs_f64() * 1e3;
    })
}

/// A thousand commits of one page each; `extra` is the median of their times in milliseconds.
pub fn commits(job: &Job) -> Took {
    let connection = job.open();
    connection
        .execute_batch("BEGIN IMMEDIATE; ROLLBACK")
        .unwrap();
    let mut update = connection
        .prepare("UPDATE t SET b = randomblob(100) WHERE a = 1 + abs(random() % ?1)")
        .unwrap();
    measure(|took| {
        let mut times: Vec<f64> = (0..1_000)
            .map(|_| {
                let began = Instant::now();
                update.execute([job.count as i64]).unwrap();
                began.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        times.sort_by(f64::total_cmp);
        took.extra = times[times.len() / 2];
    })
}

/// Opens moments spread over a history of so many transactions; `extra` is the median of the times in milliseconds.
pub fn moments(job: &Job) -> Took {
    load();
    measure(|took| {
        let mut times: Vec<f64> = (0..50)
            .map(|number| {
                let txid = 2 + number * (job.count - 2) / 50;
                let uri = format!("file:{}?vfs=mycelite_reader&txid={txid}", job.db.display());
                let began = Instant::now();
                let past = Connection::open_with_flags(uri, OpenFlags::default()).unwrap();
                past.query_row("PRAGMA schema_version", [], |row| row.get::<_, i64>(0))
                    .unwrap();
                began.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        times.sort_by(f64::total_cmp);
        took.extra = times[times.len() / 2];
    })
}

/// Measures and draws each.
pub fn growth(options: &Options, show: &mut dyn FnMut(Row)) {
    by_database(options, show);
    by_transaction(options, show);
    by_history(options, show);
}

fn draw(options: &Options, file: &str, title: &str, series: &[(&str, Vec<(f64, f64)>)]) {
    if let Some(out) = &options.out {
        std::fs::create_dir_all(out).unwrap();
        plot_growth(title, series, &out.join(file));
    }
}

fn by_database(options: &Options, show: &mut dyn FnMut(Row)) {
    let mut series = SIDES.map(|(side, _)| (side, Vec::new()));
    for megabytes in [10, 100, 1_000, 2_000].map(|size| size / options.divide.min(10)) {
        let rows = megabytes * 250;
        for ((side, points), (_, vfs)) in series.iter_mut().zip(SIDES) {
            let home = tempfile::tempdir_in(&options.disk).unwrap();
            let db = home.path().join("app.db");
            prepare(&db, rows, 4096);
            let took = job("commits", &db, vfs, rows).run();
            points.push((megabytes as f64, took.extra));
            let name = format!("commit in {megabytes} MB, {side}");
            show(Row::new("growth", &name, &[took.extra], "ms", Bar::None));
        }
    }
    draw(
        options,
        "by-database.svg",
        "median of a commit, ms, by megabytes of the database",
        &series,
    );
}

fn by_transaction(options: &Options, show: &mut dyn FnMut(Row)) {
    let home = tempfile::tempdir_in(&options.disk).unwrap();
    let base = home.path().join("base.db");
    let most = 1_000_000 / options.divide;
    prepare(&base, most, 1024);
    let mut series = SIDES.map(|(side, _)| (side, Vec::new()));
    for pages in [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000] {
        if pages > most {
            break;
        }
        for ((side, points), (_, vfs)) in series.iter_mut().zip(SIDES) {
            let db = home.path().join("app.db");
            std::fs::copy(&base, &db).unwrap();
            let took = job("sized", &db, vfs, pages).run();
            let _ = std::fs::remove_dir_all(log_dir(&db));
            points.push((pages as f64, took.extra));
            let name = format!("transaction of {pages} pages, {side}");
            show(Row::new("growth", &name, &[took.extra], "ms", Bar::None));
        }
    }
    draw(
        options,
        "by-transaction.svg",
        "one transaction, ms, by its pages of 1 KiB",
        &series,
    );
}

fn by_history(options: &Options, show: &mut dyn FnMut(Row)) {
    let (mut opened, mut caught_up) = (Vec::new(), Vec::new());
    for commits in [100, 1_000, 10_000, 100_000, 1_000_000] {
        let commits = (commits / options.divide).max(100);
        let (took, db, _home) = network::caught_up_with(options, commits);
        caught_up.push((commits as f64, took * 1e3));
        let name = format!("catching up {commits} commits");
        show(Row::new("growth", &name, &[took * 1e3], "ms", Bar::None));
        seal(&log_dir(&db));
        let took = job("moments", &db, "mycelite_reader", commits).run();
        opened.push((commits as f64, took.extra));
        let name = format!("opening one of {commits} moments");
        show(Row::new(
            "growth",
            &name,
            &[took.extra],
            "ms",
            Bar::AtMost(10.0),
        ));
    }
    let series = [("open as of", opened), ("catch up from nothing", caught_up)];
    draw(
        options,
        "by-history.svg",
        "ms, by the commits of the history",
        &series,
    );
}
