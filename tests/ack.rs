//! Acknowledged commits: what COMMIT waits for, what comes when the replicas do not answer, and that nothing acknowledged is
//! ever lost (P3, DESIGN 5.2).

#![allow(clippy::unwrap_used)]

mod common;
mod netkit;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use netkit::gate::Gate;
use netkit::{Random, TestServer, dead_port};
use rusqlite::Connection;

const NOT_ACKNOWLEDGED: i32 = 1 | 77 << 8;

fn open(db: &Path, url: &str, more: &str) -> Connection {
    common::open(db, &format!("&replica={url}&close_flush_ms=0&{more}"))
}

fn txid(connection: &Connection) -> u64 {
    let text = "SELECT mycelite_txid()";
    connection
        .query_row(text, [], |row| row.get::<_, i64>(0))
        .unwrap() as u64
}

fn status(connection: &Connection) -> serde_json::Value {
    let text = "SELECT mycelite_status()";
    let json: String = connection.query_row(text, [], |row| row.get(0)).unwrap();
    serde_json::from_str(&json).unwrap()
}

fn held(server: &TestServer) -> u64 {
    let answer = server.get("/v1/databases/app/pos");
    if answer.status == 404 {
        0
    } else {
        answer.txid()
    }
}

/// Ways to commit.
const MODES: [&str; 9] = [
    "PRAGMA journal_mode=DELETE",
    "PRAGMA journal_mode=TRUNCATE",
    "PRAGMA journal_mode=PERSIST",
    "PRAGMA journal_mode=MEMORY",
    "PRAGMA journal_mode=OFF",
    "PRAGMA journal_mode=WAL",
    "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=DELETE",
    "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=TRUNCATE",
    "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL",
];

#[test]
fn what_commit_returns_for_is_on_the_replica() {
    for mode in MODES {
        let dir = common::scratch();
        let server = TestServer::start(&dir.path().join("data"));
        let url = server.url("app").to_string();
        let connection = open(&dir.path().join("app.db"), &url, "ack=1&ack_policy=error");
        connection.execute_batch(mode).unwrap();
        connection.execute_batch("CREATE TABLE t(a)").unwrap();
        for n in 0..20 {
            match n % 3 {
                0 => connection
                    .execute_batch("BEGIN; INSERT INTO t VALUES(1); COMMIT")
                    .unwrap(),
                1 => connection.execute_batch("INSERT INTO t VALUES(2)").unwrap(),
                _ => connection
                    .execute_batch("BEGIN; DELETE FROM t; ROLLBACK")
                    .unwrap(),
            }
            // Read at once, before anything else could have sent it.
            assert_eq!(held(&server), txid(&connection), "{mode}");
        }
        assert_eq!(status(&connection)["ack"]["missed"], 0);
    }
}

/// The first commit to a database that is adopted meanwhile waits for that, too: only then can anybody hold it.
#[test]
fn a_commit_during_an_adoption_is_on_the_replica() {
    let dir = common::scratch();
    let db = dir.path().join("app.db");
    common::open_plain(&db)
        .execute_batch(
            "PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES(randomblob(8000000))",
        )
        .unwrap();
    let server = TestServer::start(&dir.path().join("data"));
    let connection = open(
        &db,
        &server.url("app").to_string(),
        "ack=1&ack_policy=error&ack_timeout_ms=60000&adopt_background_min=0",
    );
    for _ in 0..3 {
        connection.execute_batch("INSERT INTO t VALUES(1)").unwrap();
        assert_eq!(held(&server), txid(&connection));
    }
    assert_eq!(status(&connection)["ack"]["missed"], 0);
}

#[test]
fn an_error_is_reported_and_the_commit_stands() {
    for mode in MODES {
        let dir = common::scratch();
        let db = dir.path().join("app.db");
        let server = TestServer::start(&dir.path().join("data"));
        let way = Arc::new(AtomicBool::new(true));
        let gate = {
            let way = Arc::clone(&way);
            Gate::start(server.addr, move || way.load(Ordering::Relaxed))
        };
        let url = gate.url("app");
        let connection = open(
            &db,
            &url,
            "ack=1&ack_policy=error&ack_timeout_ms=150&request_timeout_ms=100",
        );
        let _ = connection.execute_batch(mode);
        // On a busy machine an acknowledgement may take longer than that.
        let _ = connection.execute_batch("CREATE TABLE t(a)");
        let _ = connection.execute_batch("INSERT INTO t VALUES(0)");
        let missed =
            |connection: &Connection| status(connection)["ack"]["missed"].as_u64().unwrap();
        let before = missed(&connection);
        way.store(false, Ordering::Relaxed);
        for n in 1..4_i64 {
            let begin = Instant::now();
            let sql = match n {
                1 => "INSERT INTO t VALUES(1)",
                2 => "BEGIN; INSERT INTO t VALUES(2); CREATE TABLE x(b); COMMIT",
                _ => "BEGIN IMMEDIATE; UPDATE t SET a=a+0; INSERT INTO t VALUES(3); COMMIT",
            };
            let error = connection.execute_batch(sql).unwrap_err();
            let code = error.sqlite_error().unwrap().extended_code;
            assert_eq!(code, NOT_ACKNOWLEDGED, "{mode}: {error}");
            assert!(begin.elapsed() >= Duration::from_millis(150));
            assert!(connection.is_autocommit(), "{mode}");
            // This connection, and any other, see it; the file is sound.
            let count = |connection: &Connection| -> i64 {
                connection
                    .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
                    .unwrap()
            };
            assert_eq!(count(&connection), n + 1, "{mode}");
            if !mode.contains("EXCLUSIVE") {
                assert_eq!(count(&common::open_plain(&db)), n + 1, "{mode}");
            }
            let check: String = connection
                .query_row("PRAGMA integrity_check", [], |row| row.get(0))
                .unwrap();
            assert_eq!(check, "ok", "{mode}");
        }
        assert_eq!(missed(&connection), before + 3, "{mode}");
        assert_eq!(status(&connection)["ack"]["degraded"], true);
        way.store(true, Ordering::Relaxed);
        netkit::eventually("an acknowledged commit", || {
            connection.execute_batch("INSERT INTO t VALUES(9)").is_ok()
        });
        assert_eq!(held(&server), txid(&connection));
        drop(connection);
        common::Oracle::new(&db).finish();
    }
}

#[test]
fn without_an_answer_commits_degrade_and_come_back() {
    let dir = common::scratch();
    let server = TestServer::start(&dir.path().join("data"));
    let way = Arc::new(AtomicBool::new(true));
    let gate = {
        let way = Arc::clone(&way);
        Gate::start(server.addr, move || way.load(Ordering::Relaxed))
    };
    let url = gate.url("app");
    let connection = open(
        &dir.path().join("app.db"),
        &url,
        "ack=1&ack_timeout_ms=6000&request_timeout_ms=100",
    );
    connection
        .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(a)")
        .unwrap();
    way.store(false, Ordering::Relaxed);
    let insert = || {
        let begin = Instant::now();
        connection.execute_batch("INSERT INTO t VALUES(1)").unwrap();
        begin.elapsed()
    };
    assert!(insert() >= Duration::from_millis(6000));
    for _ in 0..10 {
        let took = insert();
        assert!(took < Duration::from_millis(5500), "{took:?}");
    }
    let said = status(&connection)["ack"].clone();
    assert_eq!(
        (said["missed"].as_u64(), said["degraded"].as_bool()),
        (Some(11), Some(true))
    );
    assert!(
        said["last_error"]
            .as_str()
            .unwrap()
            .contains("not acknowledged"),
        "{said}"
    );
    way.store(true, Ordering::Relaxed);
    netkit::eventually("acknowledged commits", || {
        insert();
        status(&connection)["ack"]["degraded"] == false
    });
    insert();
    assert_eq!(held(&server), txid(&connection));
}

#[test]
fn each_connection_has_its_own_rule() {
    let dir = common::scratch();
    let db = dir.path().join("app.db");
    let url = dead_port().to_string();
    let patient = open(&db, &url, "ack=1&ack_policy=error&ack_timeout_ms=6000");
    let hasty = open(&db, &url, "");
    hasty
        .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(a)")
        .unwrap();
    let begin = Instant::now();
    hasty.execute_batch("INSERT INTO t VALUES(1)").unwrap();
    assert!(begin.elapsed() < Duration::from_millis(5500));
    assert!(patient.execute_batch("INSERT INTO t VALUES(1)").is_err());
    assert!(begin.elapsed() >= Duration::from_millis(6000));
    // Settings that cannot be are refused where they are given.
    for wrong in [
        "ack=2",
        "ack=-1",
        "ack=1&ack_policy=hope",
        "ack_timeout_ms=0",
        "ak=1",
    ] {
        let uri = format!("&replica={url}&{wrong}");
        assert!(
            common::try_open(&dir.path().join("other.db"), &uri).is_err(),
            "{wrong}"
        );
    }
    hasty
        .execute_batch("INSERT INTO mycelite_config VALUES('ack_timeout_ms', '10')")
        .unwrap();
    hasty
        .execute_batch("INSERT INTO mycelite_config VALUES('ack', '1')")
        .unwrap();
    hasty.execute_batch("INSERT INTO t VALUES(1)").unwrap();
    assert_eq!(status(&hasty)["ack"]["degraded"], true);
}

/// Somebody takes the replicas out of the settings while a connection waits for one with each commit.
#[test]
fn without_replicas_nothing_is_acknowledged() {
    let dir = common::scratch();
    let db = dir.path().join("app.db");
    let other = common::open(&db, "&close_flush_ms=0");
    other
        .execute_batch(&format!(
            "CREATE TABLE t(a); INSERT INTO mycelite_config VALUES('replica', '{}')",
            dead_port()
        ))
        .unwrap();
    let patient = common::open(&db, "&ack=1&ack_policy=error&ack_timeout_ms=50");
    assert!(patient.execute_batch("INSERT INTO t VALUES(1)").is_err());
    other
        .execute_batch("DELETE FROM mycelite_config WHERE key = 'replica'")
        .unwrap();
    let error = patient
        .execute_batch("INSERT INTO t VALUES(2)")
        .unwrap_err();
    let code = error.sqlite_error().map(|error| error.extended_code);
    assert_eq!(code, Some(NOT_ACKNOWLEDGED), "{error}");
    other.execute_batch("INSERT INTO t VALUES(3)").unwrap();
}

/// While one request is under way, the commits of others gather for the next.
#[test]
fn many_connections_share_one_request() {
    let dir = common::scratch();
    let db = dir.path().join("app.db");
    let server = TestServer::start(&dir.path().join("data"));
    let url = server.url("app").to_string();
    let first = open(&db, &url, "ack=1&ack_policy=error");
    first
        .execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; CREATE TABLE t(a)")
        .unwrap();
    let commits = |threads: usize, each: usize| {
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let connection = open(&db, &url, "ack=1&ack_policy=error");
                    connection.busy_timeout(Duration::from_secs(30)).unwrap();
                    for _ in 0..each {
                        connection
                            .execute_batch("INSERT INTO t VALUES(randomblob(50))")
                            .unwrap();
                    }
                });
            }
        });
        begin.elapsed().as_secs_f64() / (threads * each) as f64
    };
    let alone = commits(1, 100);
    let requests = |text: &str| {
        let metrics = server.get("/metrics").text();
        let line = metrics
            .lines()
            .find(|line| line.contains("/log") && line.contains(text));
        line.map_or(0.0, |line| {
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
        })
    };
    let before = requests("200");
    let together = commits(16, 25);
    let requests = requests("200") - before;
    println!(
        "one connection: {:.2} ms a commit; sixteen: {:.2} ms; {requests} requests for 400 commits",
        alone * 1e3,
        together * 1e3
    );
    assert!(requests > 0.0 && requests < 300.0, "{requests} requests");
    assert_eq!(held(&server), txid(&first));
}

/// A process that commits, with acknowledgement, and says so.
#[test]
fn writer_process() {
    let Some(db) = common::child_argument("ACK_DB") else {
        return;
    };
    let url = common::child_argument("ACK_URL").unwrap();
    let mode = common::child_argument("ACK_MODE").unwrap();
    let connection = open(
        Path::new(&db),
        &url,
        "ack=1&ack_policy=error&ack_timeout_ms=20000",
    );
    connection.busy_timeout(Duration::from_secs(20)).unwrap();
    connection
        .execute_batch(&format!("PRAGMA journal_mode={mode}; CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, pid, b)"))
        .unwrap();
    loop {
        connection
            .execute(
                "INSERT INTO t(pid, b) VALUES (?1, randomblob(300))",
                [std::process::id()],
            )
            .unwrap();
        println!(
            "acked {} {}",
            std::process::id(),
            connection.last_insert_rowid()
        );
    }
}

/// `kill -9`, and the disk of the primary is gone with it: what COMMIT returned for is on the replica.
#[test]
fn p9_no_acknowledged_commit_is_lost_with_the_primary() {
    let mut random = Random(5);
    let rounds = std::env::var("ACK_ROUNDS").map_or(6, |rounds| rounds.parse().unwrap());
    let mut total = 0;
    for round in 0..rounds {
        let dir = common::scratch();
        let server = TestServer::start(&dir.path().join("data"));
        let primary = dir.path().join("primary");
        std::fs::create_dir(&primary).unwrap();
        let db = primary.join("app.db");
        let url = server.url("app").to_string();
        let mode = ["WAL", "DELETE", "PERSIST"][round % 3];
        // Two processes: one of them ships for both.
        let mut writers: Vec<_> = (0..2)
            .map(|_| {
                std::process::Command::new(std::env::current_exe().unwrap())
                    .args([
                        "writer_process",
                        "--exact",
                        "--nocapture",
                        "--test-threads=1",
                    ])
                    .env("ACK_DB", &db)
                    .env("ACK_URL", &url)
                    .env("ACK_MODE", mode)
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap()
            })
            .collect();
        let pipes: Vec<_> = writers
            .iter_mut()
            .map(|writer| writer.stdout.take().unwrap())
            .collect();
        let readers: Vec<_> = pipes
            .into_iter()
            .map(|pipe| {
                std::thread::spawn(move || {
                    let lines = BufReader::new(pipe).lines().map_while(Result::ok);
                    let acked = lines.filter_map(|line| {
                        let rest = line.split("acked ").nth(1)?.to_string();
                        let (pid, id) = rest.split_once(' ')?;
                        Some((pid.parse::<i64>().ok()?, id.parse::<i64>().ok()?))
                    });
                    acked.collect::<Vec<_>>()
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(700 + random.below(900)));
        for writer in &mut writers {
            writer.kill().unwrap();
            writer.wait().unwrap();
        }
        std::fs::remove_dir_all(&primary).unwrap();
        let acked: Vec<(i64, i64)> = readers
            .into_iter()
            .flat_map(|reader| reader.join().unwrap())
            .collect();
        assert!(!acked.is_empty(), "round {round}: nothing was acknowledged");
        total += acked.len();
        let head = held(&server);
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let info = server.get("/v1/databases/app").json();
            if info["applied_txid"].as_u64() >= Some(head) {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "round {round}: at {head}: {info}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let replica = common::open_plain(&server.db("app"));
        for (pid, id) in acked {
            let found: i64 = replica
                .query_row(
                    "SELECT count(*) FROM t WHERE id=?1 AND pid=?2",
                    [id, pid],
                    |row| row.get(0),
                )
                .unwrap();
            assert_eq!(
                found, 1,
                "round {round} {mode}: row {id} was acknowledged and is missing"
            );
        }
    }
    println!("{total} acknowledged commits in {rounds} rounds, none missing");
}
