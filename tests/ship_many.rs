//! Many databases of one process that have something to send at the same moment: they share a server's connections, also where
//! it grants few. `MANY_DATABASES=1500` is the large run (the server keeps a thousand unless told otherwise; `ulimit -n 32768`).
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod clikit;
mod common;

use std::time::{Duration, Instant};

use clikit::{Serve, wait_for};
use rusqlite::Connection;

/// Connections that a process may have to one server: those that are used or being made, and those kept for the next request.
const CONNECTIONS_MAX: usize = 80;
/// Connections are given back after some seconds without anything to send.
const SETTLED_AFTER: Duration = Duration::from_secs(40);

/// Databases, each replicated under a name of its own.
fn databases(dir: &std::path::Path, count: usize, server: &Serve) -> Vec<Connection> {
    let open = |number: usize| {
        let name = format!("db{number}");
        let path = dir.join(&name).with_extension("db");
        let db = common::open(&path, &format!("&replica={}", server.url(&name)));
        db.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t(b)")
            .unwrap();
        db
    };
    (0..count).map(open).collect()
}

/// The connections to this server that are open now: those of this process, since nobody else knows the port.
fn connections(server: &Serve) -> usize {
    let port: u16 = server.address.rsplit(':').next().unwrap().parse().unwrap();
    let remote = format!(":{port:04X}");
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let columns = table.lines().map(|line| line.split_whitespace());
    columns
        .filter(|line| {
            let mut line = line.clone().skip(2);
            line.next().is_some_and(|to| to.ends_with(&remote)) && line.next() == Some("01")
        })
        .count()
}

fn is_caught_up(db: &Connection) -> bool {
    let sql = "SELECT count(*) FROM mycelite_replicas WHERE state = 'caught-up' AND lag_txids = 0";
    db.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap() == 1
}

/// Waits until all have arrived: the most connections that there were, and how long it took.
fn arrive(dbs: &[Connection], server: &Serve, limit: Duration) -> (usize, Duration) {
    let begin = Instant::now();
    let mut most = 0;
    let mut rest: Vec<&Connection> = dbs.iter().collect();
    while !rest.is_empty() {
        most = most.max(connections(server));
        rest.retain(|db| !is_caught_up(db));
        if let Some(db) = rest.first()
            && begin.elapsed() > limit
        {
            let status = "SELECT mycelite_status()";
            let status: String = db.query_row(status, [], |row| row.get(0)).unwrap();
            panic!("{} have not arrived: {status}", rest.len());
        }
    }
    (most, begin.elapsed())
}

fn commit_all(dbs: &[Connection]) {
    for db in dbs {
        db.execute_batch("INSERT INTO t VALUES (1)").unwrap();
    }
}

#[test]
fn databases_that_wake_at_once_share_connections() {
    let dir = common::scratch();
    let count = std::env::var("MANY_DATABASES").map_or(250, |count| count.parse().unwrap());
    let room = ["--databases-max", "5000"];
    let server = Serve::start(&dir.path().join("server"), &room);
    let dbs = databases(dir.path(), count, &server);
    let (most, _) = arrive(&dbs, &server, SETTLED_AFTER);
    assert!(most <= CONNECTIONS_MAX, "{most} connections at the start");
    wait_for("rest", SETTLED_AFTER, || connections(&server) == 0);
    commit_all(&dbs);
    let (most, took) = arrive(&dbs, &server, SETTLED_AFTER);
    println!("{count} databases woke: {most} connections, {took:.1?}");
    assert!(most <= CONNECTIONS_MAX, "{most} connections");
}

#[test]
fn a_server_with_few_connections_is_served_by_turns() {
    let dir = common::scratch();
    let few = ["--connections-per-address-max", "4"];
    let server = Serve::start(&dir.path().join("server"), &few);
    let dbs = databases(dir.path(), 80, &server);
    arrive(&dbs, &server, SETTLED_AFTER * 2);
    wait_for("rest", SETTLED_AFTER, || connections(&server) == 0);
    commit_all(&dbs);
    let (_, took) = arrive(&dbs, &server, Duration::from_secs(20));
    println!("80 databases woke, and had four connections: {took:.1?}");
    for db in &dbs {
        let error = "SELECT last_error FROM mycelite_replicas";
        let error: Option<String> = db.query_row(error, [], |row| row.get(0)).unwrap();
        assert_eq!(error.unwrap_or_default(), "");
    }
}
