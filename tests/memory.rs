//! Memory of a process that writes for long: it stays flat, however often its log is sealed.
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)]

mod common;

use std::path::PathBuf;
use std::time::{Duration, Instant};

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |v| v.parse().unwrap())
}

fn rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn probe() {
    let Some(dir) = common::child_argument("PROBE_DIR") else { return };
    let dir = PathBuf::from(dir);
    let n = setting("PROBE_DBS", 1);
    let seg = std::env::var("PROBE_SEG").unwrap_or("16MiB".into());
    let rate = setting("PROBE_RATE", 1000);
    let secs = setting("PROBE_SECONDS", 60);
    let extra = std::env::var("PROBE_EXTRA").unwrap_or_default();
    let dbs: Vec<_> = (0..n).map(|i| {
        let db = common::open(&dir.join(format!("app{i}.db")), &format!("&segment_bytes_max={seg}{extra}"));
        db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
                 CREATE TABLE t(id INTEGER PRIMARY KEY, us INTEGER, filler);
                 CREATE TABLE total(n INTEGER); INSERT INTO total VALUES (0);
                 CREATE TABLE ring(id INTEGER PRIMARY KEY, n INTEGER, filler);
                 WITH RECURSIVE c(x) AS (VALUES(0) UNION ALL SELECT x+1 FROM c WHERE x<999)
                 INSERT INTO ring SELECT x, 0, hex(randomblob(100)) FROM c;").unwrap();
        db
    }).collect();
    let begin = Instant::now();
    let mut k = 0_u64;
    let mut told = 0;
    while begin.elapsed() < Duration::from_secs(secs) {
        k += 1;
        let db = &dbs[(k % n) as usize];
        let number = k as i64;
        for (sql, has) in [("BEGIN", false), ("INSERT INTO t VALUES (?1, 0, hex(randomblob(20)))", true), ("UPDATE total SET n = ?1", true), ("UPDATE ring SET n = ?1, filler = hex(randomblob(100)) WHERE id = ?1 % 1000", true), ("COMMIT", false)] {
            let mut s = db.prepare_cached(sql).unwrap();
            if has { s.execute([number]).unwrap(); } else { s.execute([]).unwrap(); }
        }
        if begin.elapsed().as_secs() > told {
            told = begin.elapsed().as_secs();
            let mi = unsafe { libc::mallinfo2() };
            let names = std::fs::read_dir(dir.join("app0.db-mycelite")).unwrap().count();
            eprintln!("{told:4} s rss {:7} KiB  arena {:6} uord {:6} ford {:6} hblk {:6} K files {names} commits {k}", rss(), mi.arena/1024, mi.uordblks/1024, mi.fordblks/1024, mi.hblkhd/1024);
        }
        let due = begin + Duration::from_secs(1) * k as u32 / rate as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    unsafe { libc::malloc_stats(); }
    if std::env::var_os("PROBE_TRIM").is_some() {
        unsafe { libc::malloc_trim(0); }
        eprintln!("after trim {}", rss());
    }
}
