//! A writer, a server, a server that follows it and a follower of that, with a bad line between each two: real processes and
//! real sockets. What a bad line can do to whom is drawn in `tests/simulation`; here it is done to the programs themselves.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::clikit::{Serve, wait_for};
use crate::kit::{Follow, Line, Proxy, Writer, identical};
use crate::netkit::Random;
use crate::netkit::gate::Gate;

/// A line that goes silent is given up after ten to fifteen seconds; more than this nobody may wait for anything.
const LIMIT: Duration = Duration::from_secs(60);
/// Connections on each line that are bad; the rest is good, so that there is an end.
const BAD: u64 = 7;

fn address(server: &Serve) -> SocketAddr {
    server.address.parse().unwrap()
}

/// A line whose first connections are cut, narrow or, once, silent. A request has about `request_bytes`.
fn bad_line(to: &Serve, seed: u64, request_bytes: u64) -> Proxy {
    let mut random = Random(seed);
    let silent = random.below(3);
    let lines: Vec<Line> = (0..BAD)
        .map(|n| match random.below(8) {
            _ if n == silent => Line::SilentAfter(random.below(20_000)),
            0..3 => Line::CutAfter(random.below(150_000)),
            3..6 => Line::CutRequestAfter(random.below(request_bytes)),
            _ => Line::Throttled(20_000 + random.below(200_000)),
        })
        .collect();
    Proxy::start(address(to), move |n| {
        lines.get(n as usize).copied().unwrap_or(Line::Good)
    })
}

fn through_bad_lines(mode: &str, seed: u64) {
    crate::common::load();
    let begin = Instant::now();
    let dir = crate::common::scratch();
    let path = |name: &str| dir.path().join(name);
    let mut first = Serve::start_at(&path("first"), &crate::kit::own_address(), &[]);
    let to_first = bad_line(&first, seed, 150_000);
    let from_first = bad_line(&first, seed + 1, 200);
    let follow = format!("app={}", from_first.url("app"));
    let second = Serve::start(&path("second"), &["--follow", &follow]);
    let from_second = bad_line(&second, seed + 2, 200);
    let copy = path("copy.db");
    let mut writer = Writer::new(path("app.db"), mode, &to_first.url("app"));
    wait_for("the first server", LIMIT, || first.db("app").exists());
    wait_for("the second server", LIMIT, || second.db("app").exists());
    let mut follower = Follow::start(&from_second.url("app"), &copy, &[]);
    let mut random = Random(seed + 3);
    let mut count = 0;
    for round in 0..6 {
        count += writer.load(200, Duration::from_millis(600), |_| {});
        // Some that do not fit one piece of a stream.
        writer.commit(100_000 + random.below(900_000) as usize);
        count += 1;
        match round {
            1 => {
                follower.kill();
                follower = Follow::start(&from_second.url("app"), &copy, &[]);
            }
            3 => {
                let (data, listen) = (path("first"), first.address.clone());
                first.kill();
                first = Serve::start_at(&data, &listen, &[]);
            }
            _ => {}
        }
    }
    let image = writer_end(&mut writer, &first.db("app"));
    let files = [first.db("app"), second.db("app"), copy.clone()];
    let files: Vec<&Path> = files.iter().map(|file| file.as_path()).collect();
    let settled = identical(&files, &image, LIMIT);
    let lines = [&to_first, &from_first, &from_second];
    let connections = lines.map(|line| line.connections.load(Ordering::Relaxed));
    println!(
        "{mode}, seed {seed}: {count} commits, {connections:?} connections, all identical {settled:?} after the end, {:?} in all",
        begin.elapsed()
    );
    assert!(
        connections.iter().sum::<u64>() > 8,
        "the lines were good: {connections:?}"
    );
    let ran = follower.stop();
    assert_eq!(ran.code, 0, "{ran:?}");
}

/// Closes the database only when the server has it all: the shipper ends with the last connection.
fn writer_end(writer: &mut Writer, served: &Path) -> Vec<u8> {
    let rows = writer.rows();
    wait_for("the server to have all rows", LIMIT, || {
        let open = crate::common::open_plain(served);
        open.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0))
            .is_ok_and(|count| count == rows)
    });
    writer.close()
}

#[test]
fn bad_lines_cost_only_time_with_a_wal() {
    through_bad_lines("WAL", 41);
}

#[test]
fn bad_lines_cost_only_time_with_a_rollback_journal() {
    through_bad_lines("DELETE", 51);
}

#[test]
fn a_follower_is_back_soon_after_a_cut() {
    crate::common::load();
    let dir = crate::common::scratch();
    let server = Serve::start(&dir.path().join("server"), &[]);
    let is_open = Arc::new(AtomicBool::new(true));
    let gate = {
        let is_open = Arc::clone(&is_open);
        Gate::start(address(&server), move || is_open.load(Ordering::Relaxed))
    };
    let copy = dir.path().join("copy.db");
    let mut writer = Writer::new(dir.path().join("app.db"), "WAL", &server.url("app"));
    wait_for("the server", LIMIT, || server.db("app").exists());
    let follower = Follow::start(&gate.url("app"), &copy, &[]);
    writer.load(50, Duration::from_millis(200), |_| {});
    wait_for("the copy", LIMIT, || copy.exists());
    for cut in [2, 6].map(Duration::from_secs) {
        is_open.store(false, Ordering::Relaxed);
        writer.load(50, cut, |_| {});
        is_open.store(true, Ordering::Relaxed);
        let begin = Instant::now();
        let rows = || {
            let db = crate::common::open_plain(&copy);
            let rows = "SELECT count(*) FROM t";
            db.query_row(rows, [], |row| row.get::<_, i64>(0)).unwrap()
        };
        let all = writer.rows();
        wait_for("what was written meanwhile", LIMIT, || rows() == all);
        let late = begin.elapsed();
        println!("back {late:.1?} after a cut of {cut:?}");
        // A quarter of the cut, and time for the machine.
        assert!(
            late < cut / 4 + Duration::from_secs(2),
            "{late:?} after {cut:?}"
        );
    }
    follower.kill();
    writer.close();
}
