//! What compaction must not take: states that are open or bookmarked, and what is young by any clock that can be believed. And what
//! is said about a log that is longer than it may be.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mycelite::maintain::{self, Done, Needs, Options};
use mycelite_journal::{
    Archive, DatabaseId, Draft, FileStorage, FullSpeed, Log, Pace, PageSize, Txid,
};
use rusqlite::{Connection, OpenFlags};

use crate::clikit::{run, run_with, text, wait_for};
use crate::common;
use crate::kit::Session;

const ALL: &str =
    "SELECT count(*) || ' ' || sum(length(b)) || ' ' || hex(substr(min(b), 1, 8)) FROM t";
const DAY_US: u64 = 24 * 60 * 60 * 1_000_000;

/// A history of 60 commits in some eight segments, and what [`ALL`] says after each.
fn history(db: &Path) -> Vec<String> {
    let ours = common::open(db, "&segment_bytes_max=64KiB&close_flush_ms=0");
    ours.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        .unwrap();
    let mut said = vec![String::new(), answer(&ours)];
    for n in 2..=60 {
        let sql = match n % 5 {
            4 => "DELETE FROM t WHERE a IN (SELECT a FROM t LIMIT 2)",
            _ => "INSERT INTO t(b) VALUES(randomblob(9000)), (randomblob(70))",
        };
        ours.execute_batch(sql).unwrap();
        said.push(answer(&ours));
    }
    said
}

fn answer(db: &Connection) -> String {
    db.query_row(ALL, [], |row| row.get::<_, Option<String>>(0))
        .unwrap()
        .unwrap_or_default()
}

fn past(db: &Path, txid: u64) -> rusqlite::Result<Connection> {
    common::load();
    let uri = format!("file:{}?vfs=mycelite_reader&txid={txid}", db.display());
    Connection::open_with_flags(uri, OpenFlags::default())
}

fn is_kept(db: &Path, txid: u64) -> bool {
    let storage = Arc::new(FileStorage::new(common::log_dir(db)));
    Archive::open(storage).unwrap().as_of(Txid(txid)).is_ok()
}

/// Only the last state of each minute stays.
fn minutes() -> Options {
    Options {
        keep_all: Some(Duration::ZERO),
        ..Options::default()
    }
}

fn compact(db: &Path, pace: &dyn Pace) -> Done {
    maintain::run(&common::log_dir(db), &minutes(), &Needs::default, pace).unwrap()
}

/// A reader in another process, and a third process that compacts.
#[test]
fn what_a_reader_has_open_stays_until_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("app.db");
    let said = history(&db);
    let log = common::log_dir(&db);
    let open = |txid: u64| {
        let mut session = Session::start();
        let uri = format!("file:{}?vfs=mycelite_reader&txid={txid}", db.display());
        session.tell(&format!(".open '{uri}'"));
        let rows = session.ask("SELECT count(*) FROM t;");
        assert_eq!(said[txid as usize].split(' ').next(), Some(rows.as_str()));
        session
    };
    let (mut a, mut b) = (open(17), open(31));
    // One that follows the head, inside of a read transaction that began long ago.
    let mut c = Session::start();
    c.tell(&format!(
        ".open 'file:{}?vfs=mycelite_reader'",
        db.display()
    ));
    c.tell("BEGIN;");
    c.ask("SELECT count(*) FROM t;");
    let ours = common::open(&db, "&segment_bytes_max=64KiB&close_flush_ms=0");
    for _ in 0..20 {
        ours.execute_batch("INSERT INTO t(b) VALUES(randomblob(9000))")
            .unwrap();
    }
    drop(ours);
    let keep = [("MYCELITE_KEEP_ALL", "0s"), ("MYCELITE_KEEP_DAYS", "0s")];
    // Everything is too old, but the oldest reader holds all that is younger.
    let compacted = run_with(&["compact", text(&db)], &keep).good();
    assert!(compacted.contains("states given up"), "{compacted}");
    for txid in [17, 31, 60] {
        assert!(is_kept(&db, txid), "{txid}");
    }
    // Beside these, only the last state of each file.
    let others = (18..31).chain(32..60).filter(|txid| is_kept(&db, *txid));
    assert!(others.count() < 10);
    assert_eq!(a.ask(&format!("{ALL};")), said[17]);
    assert_eq!(a.ask("PRAGMA integrity_check;"), "ok");
    assert_eq!(b.ask(&format!("{ALL};")), said[31]);
    assert_eq!(c.ask(&format!("{ALL};")), said[60]);
    run(["verify", text(&log)]).good();
    // Dead ones hold nothing.
    drop((a, b, c));
    let compacted = run_with(&["compact", text(&db)], &keep).good();
    assert!(compacted.contains("history dropped before"), "{compacted}");
    assert!(!is_kept(&db, 17) && !is_kept(&db, 31));
    let names = std::fs::read_dir(&log).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.starts_with("pin-")).count(), 0);
    let error = past(&db, 17).unwrap_err().to_string();
    assert!(error.contains("17"), "{error}");
}

/// Does something once, in the middle of the work.
struct Meanwhile<'a> {
    calls: AtomicU32,
    at: u32,
    work: &'a (dyn Fn() + Sync),
}

impl Pace for Meanwhile<'_> {
    fn go_on(&self, _: u64) -> bool {
        if self.calls.fetch_add(1, Ordering::Relaxed) == self.at {
            (self.work)();
        }
        true
    }
}

fn in_the_middle(work: &(dyn Fn(&Path) + Sync), txid: u64) -> u32 {
    let dir = tempfile::tempdir().unwrap();
    let original = dir.path().join("app.db");
    let said = history(&original);
    maintain::run(
        &common::log_dir(&original),
        &Options {
            keep_all: None,
            ..Options::default()
        },
        &Needs::default,
        &FullSpeed,
    )
    .unwrap();
    let mut tried = 0;
    for at in 0.. {
        let copied = tempfile::tempdir().unwrap();
        let db = copied.path().join("app.db");
        let log = common::log_dir(&db);
        std::fs::create_dir(&log).unwrap();
        for entry in std::fs::read_dir(common::log_dir(&original)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), log.join(entry.file_name())).unwrap();
        }
        let pace = Meanwhile {
            calls: AtomicU32::new(0),
            at,
            work: &|| work(&db),
        };
        let done = compact(&db, &pace);
        assert!(done.thinned > 20, "{done:?}");
        if pace.calls.into_inner() <= at {
            break;
        }
        tried += 1;
        assert!(!is_kept(&db, txid + 1));
        assert_eq!(
            answer(&past(&db, txid).unwrap()),
            said[txid as usize],
            "at {at}"
        );
    }
    tried
}

/// At whatever moment of a compaction it is set.
#[test]
fn a_bookmark_that_was_set_is_never_lost() {
    let mark = |db: &Path| {
        run(["bookmark", text(db), "just in time", "--txid", "23"]).good();
    };
    let tried = in_the_middle(&mark, 23);
    assert!(tried > 2, "{tried}");
    // Too late is an error, and leaves no bookmark.
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("app.db");
    history(&db);
    compact(&db, &FullSpeed);
    let line = run(["bookmark", text(&db), "too late", "--txid", "23"]).bad(3);
    assert!(line.contains("was not kept by compaction"), "{line}");
    assert_eq!(run(["bookmark", text(&db), "--list"]).good(), "");
}

#[test]
fn a_state_that_is_opened_in_the_middle_of_a_compaction_stays() {
    let open = parking_lot::Mutex::new(Vec::new());
    let tried = in_the_middle(
        &|db: &Path| {
            let past = past(db, 23).unwrap();
            past.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
                .unwrap();
            open.lock().push(past);
        },
        23,
    );
    assert!(tried > 2, "{tried}");
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_micros() as u64
}

#[test]
fn a_clock_that_jumps_makes_nothing_old() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("app.db");
    history(&db);
    let round = |now: u64| {
        let options = Options {
            keep_days: Some(Duration::from_secs(90 * 86_400)),
            ..Options::default()
        };
        maintain::run_at(
            &common::log_dir(&db),
            &options,
            &Needs::default,
            &FullSpeed,
            &|| now,
        )
        .unwrap()
    };
    let now = now_us();
    assert_eq!((round(now).thinned, round(now).clock.as_str()), (0, ""));
    let years = 10 * 365 * DAY_US;
    for now in [now + years, now + years + DAY_US / 2, now] {
        let done = round(now);
        assert_eq!((done.thinned, done.begins_at), (0, 0), "{done:?}");
    }
    let ahead = round(now + years);
    assert!(ahead.clock.contains("3650 days ahead"), "{ahead:?}");
    // It stays: nobody wrote for ten years.
    let done = round(now + years + DAY_US);
    assert!(done.begins_at > 0 && done.clock.is_empty(), "{done:?}");
}

/// A log whose commits are `days` old, one file for each few of them.
fn old_log(db: &Path, days: &[u64]) {
    let storage = Arc::new(FileStorage::new(common::log_dir(db)));
    std::fs::create_dir(common::log_dir(db)).unwrap();
    let plain = common::open_plain(db);
    plain
        .execute_batch("PRAGMA page_size=4096; CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        .unwrap();
    let mut log = Log::create(storage, DatabaseId([5; 16]), 1).unwrap();
    log.set_segment_bytes_max(0);
    let size = PageSize::new(4096).unwrap();
    let mut old: Vec<u8> = Vec::new();
    for days in days {
        plain
            .execute_batch("INSERT INTO t(b) VALUES(randomblob(9000))")
            .unwrap();
        let new = common::image_of(db);
        let time = now_us() - days * DAY_US;
        let mut record = log
            .begin(Draft::new(size, (new.len() / 4096) as u32, time))
            .unwrap();
        for (at, page) in new.chunks(4096).enumerate() {
            let before = old.get(at * 4096..(at + 1) * 4096);
            if before != Some(page) {
                record.patch(at as u32 + 1, before, page).unwrap();
            }
        }
        record.commit().unwrap();
        old = new;
    }
}

#[test]
fn what_is_older_than_keep_days_goes() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("app.db");
    old_log(&db, &[50, 40, 39, 20, 19, 7, 2, 1, 0]);
    let keep = [("MYCELITE_KEEP_DAYS", "30d")];
    // The first round of a log that is so old takes the clock for wrong, for a day.
    let said = run_with(&["compact", text(&db)], &keep).good();
    assert!(said.contains("the clock is 50 days ahead"), "{said}");
    assert!(is_kept(&db, 1));
    let log = common::log_dir(&db);
    let options = Options {
        keep_days: Some(Duration::from_secs(30 * 86_400)),
        ..Options::default()
    };
    let tomorrow = now_us() + DAY_US;
    let done = maintain::run_at(&log, &options, &Needs::default, &FullSpeed, &|| tomorrow).unwrap();
    assert_eq!(done.begins_at, 3, "{done:?}");
    for txid in 1..=9 {
        assert_eq!(is_kept(&db, txid), txid >= 3, "{txid}");
    }
    run(["verify", text(&log)]).good();
    let out = dir.path().join("out.db");
    run(["restore", text(&db), "-o", text(&out), "--txid", "3"]).good();
    let line = run([
        "restore",
        text(&db),
        "-o",
        text(&out),
        "--force",
        "--txid",
        "2",
    ])
    .bad(3);
    assert!(
        line.contains("its oldest state is that after transaction 3"),
        "{line}"
    );
}

#[test]
fn a_log_that_is_too_long_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("app.db");
    let parameters = "&segment_bytes_max=64KiB&close_flush_ms=0";
    let ours = common::open(&db, parameters);
    ours.execute_batch("CREATE TABLE t(a)").unwrap();
    for _ in 0..40 {
        ours.execute_batch("INSERT INTO t VALUES(randomblob(60000))")
            .unwrap();
    }
    let status = |name: &str| run(["status", text(&db), name]).good();
    assert!(!status("--json").contains("log_over"));
    run(["bookmark", text(&db), "mine", "--txid", "2"]).good();
    let max = [("MYCELITE_LOG_BYTES_MAX", "1MiB")];
    // The process that writes may be at it just then.
    let compact = || {
        let mut ran = run_with(&["compact", text(&db)], &max);
        wait_for("the other one", Duration::from_secs(60), || {
            let busy = ran.code == 3;
            if busy {
                ran = run_with(&["compact", text(&db)], &max);
            }
            !busy
        });
        ran
    };
    let ran = compact();
    assert_eq!(ran.code, 1, "{ran:?}");
    let says = "and nothing more may be dropped: the bookmark at transaction 2 holds the rest";
    assert!(ran.stdout.contains(says), "{ran:?}");
    // In the process that writes, and in any other.
    let said: String = ours
        .query_row("SELECT mycelite_status()", [], |row| row.get(0))
        .unwrap();
    assert!(
        said.contains("\"log_over\"") && said.contains(says),
        "{said}"
    );
    let plain = run(["status", text(&db)]).good();
    assert!(
        plain.contains("too long") && plain.contains(says),
        "{plain}"
    );
    // When the cause is gone, so is what is said.
    run(["bookmark", text(&db), "--delete", "mine"]).good();
    let ran = compact();
    let bytes = mycelite::database::directory_bytes(&common::log_dir(&db));
    assert!(ran.code == 0 || bytes > 1 << 20, "{ran:?}");
    let reader = past(&db, 40).unwrap();
    drop((reader, ours));
    run(["verify", text(&db)]).good();
}
