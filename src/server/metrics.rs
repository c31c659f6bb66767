//! Counters in the text form that Prometheus reads.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::lock::Mutex;

use super::database::Database;
use crate::parked;
use crate::status::FollowStatus;

/// What the process counts.
pub(super) struct Metrics {
    started: Instant,
    // Routes are patterns from the router, so their number is small.
    requests: Mutex<BTreeMap<(String, u16), u64>>,
}

impl Metrics {
    /// All zero.
    pub fn new() -> Metrics {
        Metrics {
            started: Instant::now(),
            requests: Mutex::new(BTreeMap::new()),
        }
    }

    /// A request to `route` (a pattern, never a path from outside) was answered with `status`.
    pub fn request(&self, route: &str, status: u16) {
        *self
            .requests
            .lock()
            .entry((route.to_string(), status))
            .or_insert(0) += 1;
    }

    /// The text. Blocking: looks at the sizes of the logs.
    pub fn render(&self, databases: &[std::sync::Arc<Database>], followers: usize) -> String {
        let mut out = String::new();
        let rows: Vec<Row> = databases.iter().map(|database| Row::of(database)).collect();
        render_databases(&mut out, &rows);
        render_follows(&mut out, databases);
        let _ = writeln!(
            out,
            "# HELP mycelite_followers Streams that followers have open.\n# TYPE mycelite_followers gauge\n\
             mycelite_followers {followers}"
        );
        let _ = writeln!(
            out,
            "# HELP mycelite_http_requests_total Answered requests.\n# TYPE mycelite_http_requests_total counter"
        );
        for ((route, status), number) in self.requests.lock().iter() {
            let _ = writeln!(
                out,
                "mycelite_http_requests_total{{route=\"{route}\",status=\"{status}\"}} {number}"
            );
        }
        let _ = writeln!(
            out,
            "# HELP mycelite_uptime_seconds Seconds since the start.\n# TYPE mycelite_uptime_seconds gauge\n\
             mycelite_uptime_seconds {}",
            self.started.elapsed().as_secs()
        );
        out
    }
}

/// What each database has.
fn render_databases(out: &mut String, rows: &[Row]) {
    let mut gauge = |name: &str, kind: &str, help: &str, value: fn(&Row) -> u64| {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for row in rows {
            let _ = writeln!(out, "{name}{{database=\"{}\"}} {}", row.name, value(row));
        }
    };
    gauge(
        "mycelite_txid",
        "gauge",
        "Last transaction that the log holds durably.",
        |r| r.txid,
    );
    gauge(
        "mycelite_applied_txid",
        "gauge",
        "Last transaction that the database file contains.",
        |r| r.applied,
    );
    gauge(
        "mycelite_lag_txids",
        "gauge",
        "Transactions of the log that the database file lacks.",
        |r| r.txid.saturating_sub(r.applied),
    );
    gauge(
        "mycelite_ok",
        "gauge",
        "1 while the log, its file and the line to a followed server are well.",
        |r| u64::from(r.ok),
    );
    gauge(
        "mycelite_log_bytes",
        "gauge",
        "Bytes of the log on disk.",
        |r| r.log_bytes,
    );
    gauge(
        "mycelite_parked_tails",
        "gauge",
        "Tails of lost timelines that are parked beside the log.",
        |r| r.parked,
    );
    gauge(
        "mycelite_appended_records_total",
        "counter",
        "Records appended since the start.",
        |r| r.appended,
    );
    gauge(
        "mycelite_apply_failures_total",
        "counter",
        "Failed attempts to apply since the start.",
        |r| r.failures,
    );
}

/// The databases that are pulled from other servers, if there are any.
fn render_follows(out: &mut String, databases: &[std::sync::Arc<Database>]) {
    let follows: Vec<(String, FollowStatus)> = databases
        .iter()
        .filter_map(|database| {
            let pull = database.pull.get()?;
            Some((database.name.to_string(), pull.status(database)))
        })
        .collect();
    if follows.is_empty() {
        return;
    }
    let mut gauge = |name: &str, help: &str, value: fn(&FollowStatus) -> u64| {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (database, status) in &follows {
            let _ = writeln!(out, "{name}{{database=\"{database}\"}} {}", value(status));
        }
    };
    gauge(
        "mycelite_follow_ok",
        "1 while the line to the followed server lives and nothing stalls.",
        |status| u64::from(["catching-up", "following"].contains(&status.state.as_str())),
    );
    gauge(
        "mycelite_follow_stalled",
        "1 while the followed server has more and nothing moves.",
        |status| u64::from(status.state == "stalled"),
    );
    gauge(
        "mycelite_follow_head_txid",
        "Last transaction of the followed server, as it last said.",
        |status| status.head_txid,
    );
    gauge(
        "mycelite_follow_lag_txids",
        "Transactions of the followed server that the database file lacks.",
        |status| status.lag_txids,
    );
    let _ = writeln!(
        out,
        "# HELP mycelite_follow_lag_seconds How long something has been missing.\n\
         # TYPE mycelite_follow_lag_seconds gauge"
    );
    for (database, status) in &follows {
        let seconds = status.lag_ms as f64 / 1000.0;
        let _ = writeln!(
            out,
            "mycelite_follow_lag_seconds{{database=\"{database}\"}} {seconds}"
        );
    }
}

struct Row {
    name: String,
    txid: u64,
    applied: u64,
    log_bytes: u64,
    parked: u64,
    appended: u64,
    failures: u64,
    ok: bool,
}

impl Row {
    fn of(database: &Database) -> Row {
        let apply = database.apply.lock().clone();
        Row {
            name: database.name.to_string(),
            txid: database.durable().map_or(0, |durable| durable.pos.txid.0),
            applied: apply.applied.0,
            log_bytes: database.log_bytes(),
            parked: parked::list(&database.log_dir).len() as u64,
            appended: database.appended.load(Ordering::Relaxed),
            failures: apply.failures_total,
            ok: database.is_ok(),
        }
    }
}
