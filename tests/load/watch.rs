//! Plain readers of the replicas, which look all the time.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::{common, netkit};

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// A replica is proved whole so often, and every third time on a new connection.
const CHECK_EVERY: Duration = Duration::from_secs(10);

/// A plain SQLite connection to a replica's file, in a thread of its own.
pub struct Watch {
    name: &'static str,
    thread: std::thread::JoinHandle<Seen>,
}

#[derive(Default)]
struct Seen {
    looks: u64,
    checks: u64,
    /// Age of the newest row when it was first seen, ms.
    lags: Vec<f64>,
}

impl Watch {
    pub fn start(name: &'static str, db: &Path, stop: &Arc<AtomicBool>) -> Watch {
        let (db, stop) = (db.to_path_buf(), Arc::clone(stop));
        let thread = std::thread::spawn(move || watch(name, &db, &stop));
        Watch { name, thread }
    }

    /// Waits for its end and prints a row; it must have looked, and never have seen a torn state.
    pub fn end(self) {
        let seen = self.thread.join().unwrap();
        assert!(
            seen.looks > 0 && seen.checks > 0,
            "{}: nobody looked",
            self.name
        );
        let mut lags = seen.lags;
        lags.sort_by(f64::total_cmp);
        let at = |part: usize| {
            let place = lags.len().saturating_sub(1) * part / 100;
            lags.get(place).copied().unwrap_or(0.0)
        };
        println!(
            "{:<9} {:>9.1} {:>9.1} {:>9.1} {:>10.1} {:>9} {:>7}",
            self.name,
            at(50),
            at(90),
            at(99),
            at(100),
            seen.looks,
            seen.checks
        );
    }
}

/// The heading of the rows.
pub fn heading() {
    println!(
        "{:<9} {:>9} {:>9} {:>9} {:>10} {:>9} {:>7}",
        "replica", "p50 ms", "p90 ms", "p99 ms", "max ms", "looks", "checks"
    );
}

fn watch(name: &str, db: &Path, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut newest = 0_i64;
    let mut connection = None;
    let mut check_at = Instant::now();
    while !stop.load(Ordering::Relaxed) || seen.checks == 0 {
        std::thread::sleep(LOOK_EVERY);
        if std::fs::metadata(db).map_or(0, |file| file.len()) == 0 {
            continue;
        }
        let open = connection.get_or_insert_with(|| common::open_plain(db));
        let (numbers, us) = match look(open) {
            Ok(row) => row,
            // Its first transactions made the tables one by one.
            Err(error) if newest == 0 && error.to_string().contains("no such table") => continue,
            Err(error) => panic!("{name}: {error}"),
        };
        let [total, last, ring] = numbers;
        assert!(total == last && total == ring, "{name}: torn: {numbers:?}");
        assert!(
            total >= newest,
            "{name}: went back from {newest} to {total}"
        );
        seen.looks += 1;
        if total > newest {
            newest = total;
            seen.lags.push((netkit::now_us() as f64 - us as f64) / 1e3);
        }
        if check_at <= Instant::now() {
            let check = "PRAGMA integrity_check";
            let check: String = open.query_row(check, [], |row| row.get(0)).unwrap();
            assert_eq!(check, "ok", "{name}");
            seen.checks += 1;
            check_at = Instant::now() + CHECK_EVERY;
            if seen.checks.is_multiple_of(3) {
                connection = None;
            }
        }
    }
    seen
}

/// The three places that each transaction changes, and when the newest row was written.
fn look(db: &Connection) -> rusqlite::Result<([i64; 3], i64)> {
    let mut select = db.prepare_cached(
        "SELECT (SELECT n FROM total), (SELECT max(id) FROM t), (SELECT max(n) FROM ring),
         (SELECT us FROM t ORDER BY id DESC LIMIT 1)",
    )?;
    select.query_row([], |row| {
        let number = |at| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(at)?.unwrap_or(0));
        Ok(([number(0)?, number(1)?, number(2)?], number(3)?))
    })
}
