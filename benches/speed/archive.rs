//! The log as an archive: its size when sealed, restoring from it, adopting what was there, and memory.

use crate::Options;
use crate::host::{Job, Took, measure, plain, settle};
use crate::report::{Bar, Row};
use crate::work::{TABLE, fill};
use mycelite::database::log_dir;
use mycelite::maintain;
use mycelite_journal::{FileStorage, FullSpeed, Reader, Txid, parse_sealed_name};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rows of [`fill`] that make a database of a gigabyte.
const GIGABYTE_ROWS: u64 = 4_300_000;

/// Copies a file, durably.
fn copy(from: &Path, to: &Path) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", "cp --reflink=never \"$0\" \"$1\" && sync \"$1\""])
        .args([from, to]);
    command
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_mycelite"))
}

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

/// Bytes of sealed segments over the bytes of the pages that their records change.
pub fn log_bytes(options: &Options, show: &mut dyn FnMut(Row)) {
    for (work, count, bar) in [
        ("inserts", 160_000, Bar::AtMost(2.5)),
        ("updates", 160_000, Bar::AtMost(1.0)),
        ("mix", 80_000, Bar::None),
        ("bulk", 1_000_000, Bar::None),
        ("delete-vacuum", 1, Bar::AtMost(18.0)),
    ] {
        let home = tempfile::tempdir_in(&options.disk).unwrap();
        let db = home.path().join("app.db");
        let mut adopted = Txid(0);
        if crate::work::prepare(work, &db) {
            // Adopting what was there is no part of it.
            job("nothing", &db, "mycelite_writer", 0).run();
            adopted = Txid(1);
        }
        job(
            work,
            &db,
            "mycelite_writer",
            (count / options.divide).max(1),
        )
        .run();
        // A full segment ends when the next record comes.
        job("process", &db, "mycelite_writer", 1).run();
        let [pages, raw, sealed] = sealed_size(&log_dir(&db), adopted);
        let part = |bytes: u64| bytes as f64 / (pages.max(1) * 4096) as f64 * 100.0;
        let note = format!("raw {:.1} %; {pages} pages of 4096 bytes", part(raw));
        show(Row::new("log bytes, sealed", work, &[part(sealed)], "%", bar).noted(note));
    }
}

/// Pages in the records of the sealed segments after `adopted`, the bytes of those records raw, and of the sealed segments.
fn sealed_size(log: &Path, adopted: Txid) -> [u64; 3] {
    seal(log);
    let [mut pages, mut raw, mut sealed] = [0; 3];
    for file in std::fs::read_dir(log).unwrap().map(Result::unwrap) {
        let name = file.file_name().into_string().unwrap();
        let Some((first, last)) = parse_sealed_name(&name).filter(|range| range.0 > adopted) else {
            continue;
        };
        sealed += file.metadata().unwrap().len();
        let mut reader = Reader::open(Arc::new(FileStorage::new(log))).unwrap();
        reader.seek(Txid(first.0 - 1)).unwrap();
        while let Some(entry) = reader.next().unwrap().filter(|e| e.header.txid <= last) {
            pages += u64::from(entry.header.patch_count);
            raw += entry.header.record_len();
        }
    }
    [pages, raw, sealed]
}

/// Does at once what the log's maintenance would do in time; nothing is dropped.
pub fn seal(log: &Path) {
    let options = maintain::Options {
        keep_all: None,
        ..maintain::Options::default()
    };
    maintain::run(log, &options, &maintain::Needs::default, &FullSpeed).unwrap();
}

/// One transaction of a gigabyte: what memory it takes more than without us. Then restoring it, against `cp` and `sync`.
pub fn restore(options: &Options, show: &mut dyn FnMut(Row)) {
    let home = tempfile::tempdir_in(&options.disk).unwrap();
    let rows = GIGABYTE_ROWS / options.divide;
    let took: Vec<Took> = ["unix", "mycelite_writer"]
        .iter()
        .map(|vfs| job("bulk", &home.path().join(format!("{vfs}.db")), vfs, rows).run())
        .collect();
    let more = took[1].memory_mb - took[0].memory_mb;
    let row = Row::new(
        "memory",
        "one transaction of a gigabyte",
        &[more],
        "MB",
        Bar::AtMost(64.0),
    );
    show(row.noted(format!("plain {:.0} MB", took[0].memory_mb)));
    let db = home.path().join("mycelite_writer.db");
    let snapshot = program().arg("snapshot").arg(&db).output().unwrap();
    assert!(snapshot.status.success());
    let bytes = std::fs::metadata(&db).unwrap().len();
    let mut times: [Vec<f64>; 2] = Default::default();
    for number in 0..options.runs {
        for side in [number % 2, 1 - number % 2] {
            let out = home.path().join("out.db");
            let began = Instant::now();
            let done = if side == 0 {
                copy(&db, &out).status()
            } else {
                let mut command = program();
                command.arg("restore").arg(&db).arg("-o").arg(&out);
                command.stdout(std::process::Stdio::null()).status()
            };
            assert!(done.unwrap().success());
            times[side].push(began.elapsed().as_secs_f64());
            assert_eq!(std::fs::metadata(&out).unwrap().len(), bytes);
            std::fs::remove_file(&out).unwrap();
        }
    }
    let ratios: Vec<f64> = times[1]
        .iter()
        .zip(&times[0])
        .map(|(ours, cp)| ours / cp)
        .collect();
    let note = format!(
        "{:.0} MB; restore {:.2} s, cp and sync {:.2} s (last run)",
        bytes as f64 / 1e6,
        times[1].last().unwrap(),
        times[0].last().unwrap()
    );
    show(Row::new("restore", "against cp", &ratios, "×", Bar::AtMost(1.5)).noted(note));
}

/// Opens a database that has never been seen, and writes to it, each millisecond, until it is in the log: how long the
/// longest commit takes, and how long all of it.
pub fn adopt(job: &Job) -> Took {
    let connection = job.open();
    let mut most = Duration::ZERO;
    let state = "SELECT mycelite_status() ->> 'state'";
    let mut adopted = Duration::ZERO;
    let mut took = measure(|_| {
        let (mut left, first) = (job.count, Instant::now());
        while left > 0 {
            let began = Instant::now();
            connection
                .execute_batch("INSERT INTO t(r, b) VALUES(1, 'x')")
                .unwrap();
            most = most.max(began.elapsed());
            std::thread::sleep(Duration::from_millis(1));
            let state: String = connection.query_row(state, [], |row| row.get(0)).unwrap();
            if state == "ok" {
                left -= 1;
            } else {
                adopted = first.elapsed();
            }
        }
    });
    connection.close().unwrap();
    took.extra = most.as_secs_f64();
    took.wall_s = adopted.as_secs_f64();
    took
}

/// Opens a database that has never been seen.
pub fn first_open(job: &Job) -> Took {
    measure(|_| job.open().close().unwrap())
}

/// The first open of a large database, and the longest commit after it.
pub fn adoption(options: &Options, show: &mut dyn FnMut(Row)) {
    let home = tempfile::tempdir_in(&options.disk).unwrap();
    let base = home.path().join("base.db");
    let sql = format!(
        "PRAGMA journal_mode=wal; {TABLE}; {}",
        fill(GIGABYTE_ROWS / options.divide)
    );
    plain(&base).execute_batch(&sql).unwrap();
    let bytes = std::fs::metadata(&base).unwrap().len();
    let (mut opens, mut longest, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    let mut ratios = Vec::new();
    for number in 0..options.runs {
        let db = home.path().join(format!("{number}.db"));
        let began = Instant::now();
        assert!(copy(&base, &db).status().unwrap().success());
        let copied = began.elapsed().as_secs_f64();
        settle(&options.disk);
        opens.push(job("first-open", &db, "mycelite_writer", 0).run().wall_s * 1e3);
        let took = job("adopt", &db, "mycelite_writer", 100).run();
        longest.push(took.extra * 1e3);
        rates.push(bytes as f64 / 1e6 / took.wall_s);
        ratios.push(took.wall_s / copied);
        std::fs::remove_file(&db).unwrap();
        std::fs::remove_dir_all(log_dir(&db)).unwrap();
    }
    let note = format!("{:.0} MB, a commit each millisecond", bytes as f64 / 1e6);
    for (what, figures, unit, bar) in [
        ("open and close", &opens, "ms", Bar::None),
        ("longest commit", &longest, "ms", Bar::AtMost(50.0)),
        ("adoption", &rates, "MB/s", Bar::AtLeast(1000.0)),
        ("adoption against cp and sync", &ratios, "×", Bar::None),
    ] {
        show(Row::new("first open", what, figures, unit, bar).noted(note.clone()));
    }
}
