//! P10 over the life of a log: each state that is kept is the same byte for byte through the reader VFS, by `restore` and in a
//! copy of the directory, after sealing, snapshots and compaction, beside a writer, and after `kill -9` in the middle.
//!
//! `HISTORY_COMMITS=10000 cargo test --release --test history -- --nocapture` makes the histories that long, and says
//! what was compared.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]

mod common;

use common::{Random, assert_same, image_of, log_dir, open};
use mycelite::maintain::{self, MaintainLock, Needs, Options};
use mycelite::reader::image;
use mycelite_journal::{
    Archive, FLAG_REBASE, FileStorage, FullSpeed, Keep, Reader, RecordHeader, Snapshot, Txid, merge,
};
use rusqlite::{Connection, MAIN_DB, OpenFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The images after the transactions, by their numbers.
type Images = BTreeMap<u64, Vec<u8>>;

/// States compared with the copy saved at the time, and processes killed, by all tests of this run.
static COMPARED: AtomicU64 = AtomicU64::new(0);
static KILLS: AtomicU64 = AtomicU64::new(0);

fn commits() -> usize {
    std::env::var("HISTORY_COMMITS").map_or(160, |text| text.parse().unwrap())
}

fn number(connection: &Connection, sql: &str) -> i64 {
    connection
        .query_row(sql, [], |row| row.get(0))
        .unwrap_or_else(|e| panic!("{sql}: {e}"))
}

/// A history with growth, shrinking, and changes of the journal mode and the page size, in many small segments.
fn history(path: &Path, mode: &str, seed: u64) -> Images {
    let mut random = Random(seed);
    let ours = open(path, "&segment_bytes_max=65536");
    let mut images = Images::new();
    let mut run = |sql: &str| {
        ours.execute_batch(sql)
            .unwrap_or_else(|e| panic!("{sql}: {e}"));
        let txid = number(&ours, "SELECT mycelite_txid()") as u64;
        images.entry(txid).or_insert_with(|| image_of(path));
    };
    run("PRAGMA page_size=1024; PRAGMA auto_vacuum=2");
    run(&format!("PRAGMA journal_mode={mode}"));
    run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    run("CREATE INDEX i ON t(b)");
    let commits = commits();
    for step in 0..commits {
        let k = random.below(7);
        match random.below(12) {
            0 => run(&format!("DELETE FROM t WHERE a%7={k}")),
            1 => run(&format!("UPDATE t SET b=randomblob(90) WHERE a%7={k}")),
            2 => run("PRAGMA incremental_vacuum(3)"),
            3 if step % 16 == 0 => run("VACUUM"),
            4 if step % (commits / 3) < 20 => {
                run("PRAGMA journal_mode=DELETE");
                run(&format!("PRAGMA page_size={}", 512 << (k % 4)));
                run("VACUUM");
                run(&format!("PRAGMA journal_mode={mode}"));
            }
            n if n < 8 => run(&format!("INSERT INTO t(b) VALUES(randomblob({}))", 300 * k)),
            _ => run(&format!("UPDATE t SET b=b||'{step}' WHERE a%41={k}")),
        }
    }
    drop(ours);
    images
}

fn through_vfs(path: &Path, txid: u64) -> rusqlite::Result<Vec<u8>> {
    let mut past = past(path, txid)?;
    // Serializing takes a page that cannot be read for zeros.
    past.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0))?;
    Ok(past.serialize(MAIN_DB)?.to_vec())
}

/// All that the database says.
fn rows(db: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut schema = db.prepare("SELECT name FROM sqlite_schema")?;
    let tables = schema.query_map([], |row| row.get::<_, String>(0))?.count();
    if tables == 0 {
        return Ok(Vec::new());
    }
    let mut all = db.prepare("SELECT a || ' ' || hex(b) FROM t NOT INDEXED ORDER BY a")?;
    let rows = all.query_map([], |row| row.get(0))?;
    rows.collect()
}

fn past(path: &Path, txid: u64) -> rusqlite::Result<Connection> {
    common::load();
    let uri = format!("file:{}?vfs=mycelite_reader&txid={txid}", path.display());
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(uri, flags)
}

fn mycelite(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mycelite"));
    command
        .args(arguments)
        .env("MYCELITE_KEEP_ALL", "0s")
        .stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> String {
    let output = mycelite(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn archive(dir: &Path) -> Archive {
    Archive::open(Arc::new(FileStorage::new(dir))).unwrap()
}

/// Every state that the log has is right, by each way in; returns how many there are.
fn check(path: &Path, images: &Images, what: &str) -> usize {
    check_each(path, images, 1, what)
}

/// The same for each `step`th state.
fn check_each(path: &Path, images: &Images, step: usize, what: &str) -> usize {
    let archive = archive(&log_dir(path));
    // While somebody has the log open, what was read of it stays in memory for the next one.
    let _open = mycelite::reader::open_log(&log_dir(path)).unwrap();
    let scratch = common::scratch();
    let mut open = 0;
    let recorded = images.iter().filter(|(txid, _)| **txid > 0);
    for (txid, expected) in recorded.step_by(step) {
        let what = format!("{what}, transaction {txid}");
        if let Err(error) = archive.as_of(Txid(*txid)) {
            let error = error.to_string();
            assert!(error.contains("was not kept"), "{what}: {error}");
            assert!(through_vfs(path, *txid).is_err(), "{what}");
            continue;
        }
        open += 1;
        if !expected.is_empty() {
            assert_same(expected, &through_vfs(path, *txid).unwrap(), &what);
        }
        // What `mycelite restore` does, and now and then all of it.
        let file = tempfile::tempfile_in(scratch.path()).unwrap();
        let watch = image::Watch::default();
        image::write(&archive, Txid(*txid), &file, scratch.path(), &watch, 1).unwrap();
        let mut restored = vec![0; expected.len() + 1];
        let length = file.read_at(&mut restored, 0).unwrap();
        assert_same(expected, &restored[..length], &what);
        if open % 40 == 1 {
            let out = scratch.path().join(format!("{txid}.db"));
            let (from, to) = (path.to_str().unwrap(), out.to_str().unwrap());
            run(&["restore", from, "-o", to, "--txid", &txid.to_string()]);
            assert_same(expected, &std::fs::read(&out).unwrap(), &what);
            std::fs::remove_file(&out).unwrap();
        }
        COMPARED.fetch_add(1, Ordering::Relaxed);
    }
    open
}

/// A copy of the log in another place, where no database is.
fn copy(path: &Path, to: &Path) -> PathBuf {
    let db = to.join("elsewhere.db");
    let dir = log_dir(&db);
    std::fs::create_dir_all(&dir).unwrap();
    for entry in std::fs::read_dir(log_dir(path)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    db
}

fn options(keep_all: Option<Duration>) -> Options {
    Options {
        keep_all,
        ..Options::default()
    }
}

fn life_of_a_log(mode: &str, seed: u64) {
    let began = Instant::now();
    let home = common::scratch();
    let path = home.path().join("app.db");
    let images = history(&path, mode, seed);
    let dir = log_dir(&path);
    let all = images.keys().filter(|txid| **txid > 0).count();
    let stage = |what: &str| println!("{mode}: {what}, {:.0?}", began.elapsed());
    stage("recorded");
    assert_eq!(check(&path, &images, "as recorded"), all);
    stage("compared");

    let none = Needs::default;
    let done = maintain::run(&dir, &options(None), &none, &FullSpeed).unwrap();
    let files = archive(&dir).files().unwrap();
    assert!(files.len() > 1 && done.thinned == 0, "{done:?}");
    Snapshot::write(&archive(&dir), Txid(all as u64 / 2)).unwrap();
    assert_eq!(check(&path, &images, "sealed"), all);
    stage("compared when sealed");
    let elsewhere = common::scratch();
    let copied = copy(&path, elsewhere.path());
    assert_eq!(check(&copied, &images, "copied"), all);

    // Every third state, and those that are bookmarked.
    let marked = [all as u64 / 5, all as u64 / 3];
    for txid in marked {
        let name = format!("at {txid}");
        run(&[
            "bookmark",
            path.to_str().unwrap(),
            &name,
            "--txid",
            &txid.to_string(),
        ]);
    }
    {
        let _lock = MaintainLock::take(&dir, Duration::from_secs(5)).unwrap();
        let archive = archive(&dir);
        let files = archive.files().unwrap();
        let (first, last) = (files[0].first, files[files.len() / 2].last);
        let mut some = |state: &RecordHeader, _: &_| {
            state.txid.0.is_multiple_of(3) || marked.contains(&state.txid.0)
        };
        merge(&archive, first, last, Keep::Some(&mut some), &FullSpeed).unwrap();
    }
    let kept = check(&path, &images, "every third");
    assert!(kept < all && kept > all / 3, "{kept} of {all}");
    stage("compared when compacted");
    let killed = common::scratch();
    kill_in_compaction(&copy(&path, killed.path()), &images, &marked);

    stage("compaction killed, compared each time");
    beside_a_writer(&path, &images);
    for txid in marked {
        assert_same(
            &images[&txid],
            &through_vfs(&path, txid).unwrap(),
            "bookmarked",
        );
    }
    println!(
        "{mode}: {all} states; all tests so far: {} states compared, each by the reader VFS and by restore, {} kills; {:.0?}",
        COMPARED.load(Ordering::Relaxed),
        KILLS.load(Ordering::Relaxed),
        began.elapsed()
    );
}

/// `mycelite compact` dies at any moment; each time everything is whole, and in the end the work is done.
fn kill_in_compaction(path: &Path, images: &Images, marked: &[u64]) {
    let name = path.to_str().unwrap();
    let dir = log_dir(path);
    let source = dir.to_str().unwrap();
    let step = (images.len() / 400).max(1);
    let mut random = Random(77);
    // In a copy, how long all of it takes.
    let rehearsed = common::scratch();
    let rehearsal = copy(path, rehearsed.path());
    let began = Instant::now();
    run(&["compact", rehearsal.to_str().unwrap()]);
    let part = (began.elapsed().as_micros() as u64 / 4).max(1000);
    for round in 0..40 {
        let mut child = mycelite(&["compact", name])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(random.below(part)));
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            break;
        }
        KILLS.fetch_add(1, Ordering::Relaxed);
        check_each(path, images, step, &format!("after kill -9 number {round}"));
        run(&["verify", source]);
    }
    run(&["compact", name]);
    let left = check(path, images, "compacted");
    for txid in marked {
        assert_same(
            &images[txid],
            &through_vfs(path, *txid).unwrap(),
            "bookmarked",
        );
    }
    let leftovers = std::fs::read_dir(&dir).unwrap().filter(|entry| {
        entry
            .as_ref()
            .unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .ends_with(".new")
    });
    assert_eq!(leftovers.count(), 0);
    assert!(left < images.len());
}

/// Compaction that is killed again and again, a writer, and readers that have states open, all at once; then everything is what
/// the log says.
fn beside_a_writer(path: &Path, images: &Images) {
    let all = archive(&log_dir(path));
    let kept = images
        .iter()
        .filter(|(txid, image)| **txid > 0 && !image.is_empty() && all.as_of(Txid(**txid)).is_ok());
    let kept: Vec<_> = kept.collect();
    let mut open_ones: Vec<_> = kept
        .iter()
        .step_by((kept.len() / 5).max(1))
        .map(|(txid, image)| (**txid, *image, past(path, **txid).unwrap()))
        .collect();
    let stop = AtomicBool::new(false);
    let writes = 300.max(commits() / 5);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let ours = open(path, "&segment_bytes_max=65536");
            for step in 0..writes {
                let sql = format!("INSERT INTO t(b) VALUES(randomblob({}))", step % 900);
                ours.execute_batch(&sql).unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
        scope.spawn(|| {
            let keep = options(Some(Duration::ZERO));
            while !stop.load(Ordering::Relaxed) {
                maintain::run(&log_dir(path), &keep, &Needs::default, &FullSpeed).unwrap();
            }
        });
        let mut random = Random(9);
        while !stop.load(Ordering::Relaxed) {
            let mut child = mycelite(&["compact", path.to_str().unwrap()])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_micros(random.below(60_000)));
            child.kill().unwrap();
            if !child.wait().unwrap().success() {
                KILLS.fetch_add(1, Ordering::Relaxed);
            }
            let number = random.below(open_ones.len() as u64) as usize;
            let (txid, image, past) = &mut open_ones[number];
            // What SQLite has read already is not read again.
            past.execute_batch("PRAGMA shrink_memory").unwrap();
            let what = format!("transaction {txid}, open all the time");
            assert_same(image, &past.serialize(MAIN_DB).unwrap(), &what);
            COMPARED.fetch_add(1, Ordering::Relaxed);
        }
    });
    for (txid, image, past) in &mut open_ones {
        past.execute_batch("PRAGMA shrink_memory").unwrap();
        let checked = past.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
        assert_eq!(checked.unwrap(), "ok");
        let what = format!("transaction {txid}, open to the end");
        assert_same(image, &past.serialize(MAIN_DB).unwrap(), &what);
    }
    drop(open_ones);
    let keep = options(Some(Duration::ZERO));
    maintain::run(&log_dir(path), &keep, &Needs::default, &FullSpeed).unwrap();
    check(path, images, "beside a writer");
    run(&["verify", path.to_str().unwrap(), "--deep"]);
    let mut reader = Reader::open(Arc::new(FileStorage::new(log_dir(path)))).unwrap();
    assert!(reader.follows().unwrap().unwrap().txid.0 > 0);
    assert!(reader.head().unwrap().is_some());
}

#[test]
fn a_log_of_a_database_in_wal_mode() {
    life_of_a_log("WAL", 1);
}

#[test]
fn a_log_of_a_database_in_delete_mode() {
    life_of_a_log("DELETE", 2);
}

/// What a process without the extension wrote is recorded as the difference to the state before, also where the log no longer
/// begins at the beginning.
#[test]
fn a_foreigners_change_is_a_difference_after_compaction_too() {
    for with_snapshot in [false, true] {
        let home = common::scratch();
        let path = home.path().join("app.db");
        let dir = log_dir(&path);
        let write = |sql: &str| {
            let ours = open(&path, "&segment_bytes_max=65536");
            ours.execute_batch(sql).unwrap();
        };
        write("PRAGMA page_size=1024; CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
        for _ in 0..300 {
            write("INSERT INTO t(b) VALUES(randomblob(900))");
        }
        maintain::run(
            &dir,
            &options(Some(Duration::ZERO)),
            &Needs::default,
            &FullSpeed,
        )
        .unwrap();
        let mut reader = Reader::open(Arc::new(FileStorage::new(&dir))).unwrap();
        assert!(reader.follows().unwrap().unwrap().txid.0 > 0);
        if with_snapshot {
            maintain::snapshot(&dir, None, Duration::from_secs(5)).unwrap();
            write("INSERT INTO t(b) VALUES('behind the snapshot')");
        }
        let before = reader.head().unwrap().unwrap().header.txid;
        common::open_plain(&path)
            .execute_batch("INSERT INTO t(b) VALUES('theirs')")
            .unwrap();
        write("INSERT INTO t(b) VALUES('ours')");
        reader.seek(before).unwrap();
        let rebase = reader.next().unwrap().unwrap().header;
        assert_eq!(rebase.flags, FLAG_REBASE);
        assert!(
            rebase.page_count > 300 && rebase.patch_count < 9,
            "{rebase:?}"
        );
        let last = reader.next().unwrap().unwrap().header;
        assert_eq!(last.flags, 0);
        assert_same(
            &image_of(&path),
            &through_vfs(&path, last.txid.0).unwrap(),
            "what the log says",
        );
    }
}

#[test]
fn a_flipped_bit_in_the_past_is_named_and_never_read() {
    let home = common::scratch();
    let path = home.path().join("app.db");
    let images = history(&path, "WAL", 3);
    let dir = log_dir(&path);
    maintain::run(&dir, &options(None), &Needs::default, &FullSpeed).unwrap();
    let last = *images.keys().last().unwrap();
    run(&[
        "snapshot",
        path.to_str().unwrap(),
        "--txid",
        &(last / 2).to_string(),
    ]);
    let whole = archive(&dir);
    let files = whole.files().unwrap();
    let (first, upto) = (files[0].first, files[files.len() / 3].last);
    let mut some = |state: &RecordHeader, _: &_| state.txid.0.is_multiple_of(2);
    merge(&whole, first, upto, Keep::Some(&mut some), &FullSpeed).unwrap();
    let mut random = Random(5);
    let mut kinds = BTreeSet::new();
    for entry in std::fs::read_dir(&dir).unwrap() {
        let file = entry.unwrap().path();
        let name = file.file_name().unwrap().to_str().unwrap().to_string();
        if ![".sealed", ".snapshot", ".merged"]
            .iter()
            .any(|kind| name.ends_with(kind))
        {
            continue;
        }
        kinds.insert(name.rsplit('.').next().unwrap().to_string());
        let good = std::fs::read(&file).unwrap();
        for _ in 0..6 {
            let mut bad = good.clone();
            let at = random.below(good.len() as u64) as usize;
            bad[at] ^= 1 << random.below(8);
            std::fs::write(&file, &bad).unwrap();
            let mut refused = 0;
            for (txid, expected) in images
                .iter()
                .step_by(9)
                .filter(|(_, image)| !image.is_empty())
            {
                // A process of its own would have nothing in memory; a copy under another name has the same effect.
                let elsewhere = common::scratch();
                let copied = copy(&path, elsewhere.path());
                match past(&copied, *txid).and_then(|db| rows(&db)) {
                    Ok(found) => {
                        let plain = elsewhere.path().join("plain.db");
                        std::fs::write(&plain, expected).unwrap();
                        let expected = rows(&common::open_plain(&plain)).ok();
                        assert!(Some(found) == expected, "byte {at} of {name}");
                    }
                    Err(_) => refused += 1,
                }
            }
            let output = mycelite(&["verify", dir.to_str().unwrap()])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(output.status.code(), Some(1), "byte {at} of {name}: {said}");
            assert!(said.contains(&name), "byte {at} of {name}: {said}");
            assert!(refused < images.len());
        }
        std::fs::write(&file, &good).unwrap();
    }
    assert_eq!(kinds.len(), 3, "{kinds:?}");
    run(&["verify", dir.to_str().unwrap()]);
}
