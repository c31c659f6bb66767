//! Two Python processes and a shell write one database at once: each commit is one record, and two replicas have them all.

use std::io::Write;
use std::process::Stdio;

use crate::clikit::Serve;
use crate::kit::{
    ask, assert_identical, assert_one_record_each, figure, finish, finished_within, full, limit,
    load_wait, packages, uri, writer_shell,
};
use crate::reader::{PACKAGES, Readers};

/// Commits that the shell makes beside the two loads.
const NOTES: usize = 60;

fn together(mode: &str) {
    let home = tempfile::tempdir().unwrap();
    let servers = ["first", "second"].map(|name| Serve::start(&home.path().join(name), &[]));
    let replicas = servers.each_ref().map(|server| server.url("app")).join(",");
    let db = home.path().join("app.db");
    // The mode is set first, through the extension, so that the switch is one commit of one process.
    let schema = format!("PRAGMA journal_mode={mode}; CREATE TABLE note(n INTEGER PRIMARY KEY)");
    finished_within(writer_shell(&uri(&db, &replicas)).arg(schema), load_wait()).good();
    let made = 1 + usize::from(mode == "wal");

    let every = if full() { "500" } else { "10" };
    let parts = ["1/2", "2/2"].map(|part| {
        packages(
            &db,
            &replicas,
            &[
                "--part",
                part,
                "--commit-every",
                every,
                "--limit",
                &limit(300),
            ],
        )
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
    });
    let mut notes = writer_shell(&uri(&db, &replicas))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = notes.stdin.take().unwrap();
    writeln!(input, ".timeout 60000").unwrap();
    for n in 1..=NOTES {
        writeln!(input, "INSERT INTO note VALUES({n});").unwrap();
    }
    drop(input);

    let readers = servers
        .each_ref()
        .map(|server| Readers::start(&server.db("app"), PACKAGES, "package_text"));
    let mut loaded = 0;
    let mut commits = made + NOTES;
    for part in parts {
        let summary = finish(part, load_wait()).good();
        loaded += figure(&summary, "packages");
        commits += figure(&summary, "commits");
    }
    finish(notes, load_wait()).good();
    assert_identical(&db, &[(&servers[0], "app"), (&servers[1], "app")]);
    assert_one_record_each(&db, commits);
    assert_eq!(ask(&db, "SELECT count(*) FROM note"), NOTES.to_string());
    for readers in readers {
        println!(
            "{mode}: {commits} commits; readers: {:?}",
            readers.stop(loaded)
        );
    }
}

#[test]
fn three_writers_in_delete_mode() {
    together("delete");
}

#[test]
fn three_writers_in_wal_mode() {
    together("wal");
}
