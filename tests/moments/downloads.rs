//! `mycelite restore http://...` goes on where it was: after a cut line, and after it was killed.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::clikit::{Serve, program, run, text, wait_for};
use crate::common::{self, image_of};

/// A line to a server over which answers come in pieces of so many bytes at most; then it is cut, or stands still.
struct Line {
    address: String,
    /// Bytes of answers that have come over it.
    passed: Arc<AtomicU64>,
    stalls: Arc<AtomicBool>,
}

impl Line {
    fn start(to: &str, piece: u64) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let line = Line {
            address: listener.local_addr().unwrap().to_string(),
            passed: Arc::default(),
            stalls: Arc::default(),
        };
        let (to, passed, stalls) = (to.to_owned(), line.passed.clone(), line.stalls.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let server = TcpStream::connect(&to).unwrap();
                let (mut from, mut into) =
                    (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut from, &mut into));
                let (passed, stalls) = (passed.clone(), stalls.clone());
                std::thread::spawn(move || answer(server, client, piece, &passed, &stalls));
            }
        });
        line
    }

    fn url(&self) -> String {
        format!("http://{}/app", self.address)
    }
}

fn answer(
    mut server: TcpStream,
    mut client: TcpStream,
    piece: u64,
    passed: &AtomicU64,
    stalls: &AtomicBool,
) {
    let mut left = piece;
    let mut bytes = [0; 16 * 1024];
    while let Ok(count @ 1..) = server.read(&mut bytes) {
        if count as u64 > left {
            while stalls.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
            }
            break;
        }
        left -= count as u64;
        passed.fetch_add(count as u64, Ordering::Relaxed);
        if client.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}

/// A server that has some 3 MB under the name `app`; what its image is.
fn served(dir: &Path) -> (Serve, Vec<u8>) {
    let server = Serve::start(dir, &[]);
    let home = tempfile::tempdir().unwrap();
    let db = home.path().join("app.db");
    let ours = common::open(&db, "");
    ours.execute_batch("CREATE TABLE t(a)").unwrap();
    for _ in 0..30 {
        ours.execute_batch("INSERT INTO t VALUES(randomblob(100000))")
            .unwrap();
    }
    run(["push", text(&db), "--to", &server.url("app")]);
    let image = image_of(&db);
    (server, image)
}

fn parts(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(".receiving-")).collect()
}

#[test]
fn a_line_that_is_cut_again_and_again_loses_nothing() {
    let (data, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (server, image) = served(data.path());
    let line = Line::start(&server.address, 900_000);
    let to = out.path().join("out.db");
    let said = run(["restore", &line.url(), "-o", text(&to), "--json"]).json();
    assert_eq!(said["txid"], 31);
    common::assert_same(&image, &std::fs::read(&to).unwrap(), "restored");
    let passed = line.passed.load(Ordering::Relaxed);
    assert!(
        passed < image.len() as u64 + 100_000,
        "{passed} of {}",
        image.len()
    );
    assert!(parts(out.path()).is_empty());
}

#[test]
fn a_restore_that_was_killed_goes_on_where_it_was() {
    let (data, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (server, image) = served(data.path());
    let line = Line::start(&server.address, 2_000_000);
    line.stalls.store(true, Ordering::Relaxed);
    let to = out.path().join("out.db");
    let mut child = program()
        .args(["restore", &line.url(), "-o", text(&to)])
        .spawn()
        .unwrap();
    let there = |dir: &Path| {
        let found = parts(dir).pop();
        found.map_or(0, |name| dir.join(name).metadata().unwrap().len())
    };
    wait_for("two thirds", Duration::from_secs(60), || {
        there(out.path()) > 1_500_000
    });
    // A second one does not write into the same file.
    let busy = run(["restore", &server.url("app"), "-o", text(&to)]).bad(3);
    assert!(
        busy.contains("another process restores to this name"),
        "{busy}"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    line.stalls.store(false, Ordering::Relaxed);
    assert!(!to.exists());

    // What is written meanwhile does not make it begin anew, and a dry run says what is here.
    let plan = run([
        "restore",
        &server.url("app"),
        "-o",
        text(&to),
        "--dry-run",
        "--json",
    ])
    .json();
    assert!(
        plan["reads"][0]["bytes"].as_u64().unwrap() > 1_500_000,
        "{plan}"
    );
    assert_eq!(plan["bytes"].as_u64().unwrap(), image.len() as u64);
    let second = Line::start(&server.address, u64::MAX);
    run(["restore", &second.url(), "-o", text(&to)]).good();
    common::assert_same(&image, &std::fs::read(&to).unwrap(), "restored");
    let passed = second.passed.load(Ordering::Relaxed);
    assert!(passed < image.len() as u64 - 1_400_000, "{passed}");
    assert!(parts(out.path()).is_empty());
}

/// A part that is damaged, of another state or old is no part.
#[test]
fn nothing_wrong_is_gone_on_with() {
    let (data, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (server, image) = served(data.path());
    let to = out.path().join("out.db");
    let pos = run(["status", &server.url("app"), "--json"]).json()["pos"].clone();
    let name = |checksum: &str| {
        let (timeline, txid) = (pos["timeline"].clone(), pos["txid"].clone());
        out.path()
            .join(format!(".out.db.receiving-{timeline}-{txid}-{checksum}"))
    };
    let restore = || run(["restore", &server.url("app"), "-o", text(&to), "--force"]);
    // The server has another state there: all of it comes.
    std::fs::write(name("00000000000000aa"), vec![7; 1_000_000]).unwrap();
    restore().good();
    common::assert_same(&image, &std::fs::read(&to).unwrap(), "another state");
    // Not what it says: found out before it gets its name, and gone with that.
    let right = name(pos["checksum"].as_str().unwrap());
    std::fs::write(&right, vec![7; 1_000_000]).unwrap();
    let line = restore().bad(3);
    assert!(
        line.contains("do not have the checksum of transaction 31"),
        "{line}"
    );
    assert!(parts(out.path()).is_empty());
    // Complete, and killed before it got its name.
    std::fs::write(&right, &image).unwrap();
    restore().good();
    common::assert_same(&image, &std::fs::read(&to).unwrap(), "complete");
    assert!(parts(out.path()).is_empty());
}
