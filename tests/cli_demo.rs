//! `mycelite demo`: what a newcomer sees, and that nothing is left behind however it ends.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod clikit;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use clikit::{program, run, signal, text, wait_for};

/// Processes whose command line contains `word`.
fn processes_with(word: &str) -> Vec<String> {
    let ids = std::fs::read_dir("/proc")
        .unwrap()
        .map(|entry| entry.unwrap().path());
    // A process may be gone before its command line is read.
    let lines = ids.filter_map(|path| std::fs::read(path.join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(word))
        .collect()
}

fn entries(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[test]
fn the_demo_does_the_main_job_and_cleans_up() {
    let temporary = tempfile::tempdir().unwrap();
    let output = program()
        .args(["demo", "--packages", "600"])
        .env("TMPDIR", temporary.path())
        .output()
        .unwrap();
    let report = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{report}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.stderr.is_empty());
    for expected in [
        "data       600 packages from",
        "killed with SIGKILL",
        "switched from DELETE to WAL",
        "is back",
        "302 records for 302 commits",
        "integrity  ok",
        "identical  all three files, byte for byte",
    ] {
        assert!(
            report.contains(expected),
            "{expected:?} is missing in\n{report}"
        );
    }
    assert!(
        !report.contains("PROBLEM") && report.lines().count() < 30,
        "{report}"
    );
    assert_eq!(entries(temporary.path()), 0);
    assert_eq!(processes_with(text(temporary.path())), [""; 0]);
}

#[test]
fn what_is_kept_is_what_the_report_says() {
    let home = tempfile::tempdir().unwrap();
    let keep = home.path().join("demo");
    let output = program()
        .args(["demo", "--packages", "300", "--keep", text(&keep)])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let primary = std::fs::read(keep.join("primary.db")).unwrap();
    for number in 1..=2 {
        assert!(std::fs::read(keep.join(format!("replica-{number}/app.db"))).unwrap() == primary);
    }
    run(["verify", "--deep", text(&keep.join("primary.db"))]).good();
    run(["verify", "--deep", text(&keep.join("replica-2/app.db"))]).good();
    let line = run(["demo", "--keep", text(&keep)]).bad(2);
    assert!(line.contains("not empty"), "{line}");
}

#[test]
fn without_a_package_index_rows_are_made_up() {
    let home = tempfile::tempdir().unwrap();
    // Fewer than the demo wants are on this machine for sure, and apt-cache is not found.
    let output = program()
        .args(["demo", "--packages", "10000"])
        .env("TMPDIR", home.path())
        .env("PATH", home.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    let mut child = output;
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut first)
        .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        first.contains("generated rows") || first.contains("/var/lib/dpkg/status"),
        "{first}"
    );
}

#[test]
fn however_it_is_stopped_no_server_stays() {
    for name in ["INT", "TERM", "KILL"] {
        let temporary = tempfile::tempdir().unwrap();
        let mut child = program()
            .args(["demo", "--packages", "100000"])
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // By then both servers run and the load has begun.
        let seen = lines
            .map_while(Result::ok)
            .find(|line| line.contains(" behind"));
        assert!(seen.is_some());
        assert_eq!(processes_with(text(temporary.path())).len(), 2);
        signal(child.id(), name);
        let ended = child.wait_with_output().unwrap();
        wait_for("the servers to end", Duration::from_secs(20), || {
            processes_with(text(temporary.path())).is_empty()
        });
        // Nobody can clean up after SIGKILL; everything else leaves nothing.
        if name != "KILL" {
            assert_eq!(ended.status.code(), Some(130), "{name}");
            assert!(ended.stderr.is_empty(), "{name}");
            assert_eq!(entries(temporary.path()), 0, "{name}");
        }
    }
}
