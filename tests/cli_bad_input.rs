//! Bad input on the command line: one clear line, the right exit code, and nothing lost.
#![allow(clippy::unwrap_used)]

mod clikit;
mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use clikit::{Serve, run, run_with, text};
use xxhash_rust::xxh3::xxh3_64;

/// A directory with good and bad things in it.
struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Home {
        let home = Home {
            dir: tempfile::tempdir().unwrap(),
        };
        home.database("app.db");
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A database with two recorded commits.
    fn database(&self, name: &str) -> PathBuf {
        let db = self.path(name);
        let connection = common::open(&db, "");
        connection.execute_batch("CREATE TABLE t(x)").unwrap();
        connection
            .execute_batch(&format!("INSERT INTO t VALUES('{name}')"))
            .unwrap();
        connection.close().unwrap();
        db
    }

    /// Runs a command line in this directory; `@` is the directory. It must fail with `code`, and its line must contain `says`.
    #[track_caller]
    fn refuses(&self, command: &str, code: i32, says: &str) {
        let root = text(self.dir.path());
        let arguments: Vec<String> = command
            .split_whitespace()
            .map(|word| match word.strip_prefix('@') {
                Some(rest) => format!("{root}{rest}"),
                None => word.to_string(),
            })
            .collect();
        let line = run(&arguments).bad(code);
        assert!(line.contains(says), "{command}: {line}");
    }
}

/// A server that answers every connection with `answer`.
fn nonsense(answer: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().take(100) {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0u8; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    port
}

/// A port on which nobody listens.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

#[test]
fn wrong_command_lines() {
    let home = Home::new();
    for (command, says) in [
        ("frobnicate", "unrecognized subcommand 'frobnicate'"),
        ("stauts @/app.db", "did you mean status?"),
        ("log @/app.db --jsn", "did you mean --json?"),
        ("log", "<SOURCE>"),
        ("log @/app.db extra", "unexpected argument 'extra'"),
        ("log @/app.db --limit many", "invalid value 'many'"),
        ("dump @/app.db", "--txid"),
        ("dump @/app.db --txid -1", "-1"),
        ("restore @/app.db", "--output"),
        (
            "restore @/app.db -o @/o.db --txid 1 --ago 5m",
            "cannot be used with",
        ),
        (
            "restore @/app.db -o @/o.db --at yesterday",
            "2026-11-20T10:00:00Z",
        ),
        ("restore @/app.db -o @/o.db --ago soon", "90s, 5m"),
        ("restore @/app.db -o @/o.db --ago -5m", "-5"),
        ("restore @/app.db -o @/app.db", "exists already"),
        ("restore @/app.db -o @", "this is a directory"),
        ("push @/app.db", "no replica is configured"),
        ("push @/app.db --to ftp://127.0.0.1/app", "only http://"),
        (
            "push @/app.db --to http://127.0.0.1:1/",
            "name of the database",
        ),
        (
            "push @/app.db --to http://me:secret@127.0.0.1:1/app",
            "no user or token",
        ),
        ("log http://127.0.0.1:0/app", "1 to 65535"),
        ("log ftp://127.0.0.1/app", "only http://"),
        ("serve --listen nowhere", "HOST:PORT"),
        ("serve --listen 0.0.0.0:0 --data @", "token"),
        ("serve --data @/app.db", "not a directory"),
        ("serve --body-max 0", "--body-max"),
        ("demo --packages 5", "--packages"),
        ("demo --keep @", "not empty"),
    ] {
        home.refuses(command, 2, says);
    }
    assert!(!home.path("o.db").exists());
}

#[test]
fn things_that_are_not_there_or_not_what_they_should_be() {
    let home = Home::new();
    std::fs::write(
        home.path("text"),
        "This is no database, whatever its name says. ".repeat(100),
    )
    .unwrap();
    common::open_plain(&home.path("plain.db"))
        .execute_batch("CREATE TABLE t(x)")
        .unwrap();
    std::fs::create_dir(home.path("folder")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(home.path("loop"), home.path("loop")).unwrap();
    let closed = free_port();
    for verb in [
        "log",
        "status",
        "verify",
        "verify --deep",
        "dump --txid 1",
        "restore -o @/o.db",
    ] {
        home.refuses(&format!("{verb} @/missing.db"), 3, "no such file");
        home.refuses(&format!("{verb} @/missing/app.db"), 3, "no such file");
        home.refuses(&format!("{verb} @/plain.db"), 3, "this database has no log");
        home.refuses(
            &format!("{verb} @/folder"),
            3,
            "this directory is not a log",
        );
        home.refuses(&format!("{verb} @/text/app.db"), 3, "text/app.db");
        home.refuses(&format!("{verb} @/loop"), 3, "loop");
        home.refuses(
            &format!("{verb} http://127.0.0.1:{closed}/app"),
            3,
            "connection refused",
        );
    }
    home.refuses(
        "dump @/app.db --txid 3",
        3,
        "no transaction 3 in a log of 1 to 2",
    );
    home.refuses("dump @/app.db --txid 0", 3, "no transaction 0");
    home.refuses(
        "restore @/app.db -o @/o.db --txid 99",
        3,
        "no transaction 99",
    );
    home.refuses("restore @/app.db -o @/missing/o.db", 3, "no such directory");
    home.refuses(
        "restore @/app.db -o @/o.db --at 2001-01-01",
        3,
        "nothing was recorded yet",
    );
    home.refuses(
        "push @/missing.db --to http://127.0.0.1:1/x",
        3,
        "no such file",
    );
    home.refuses("push @/text --to http://127.0.0.1:1/x", 3, "not a database");
    home.refuses("push @/folder --to http://127.0.0.1:1/x", 3, "folder");
    home.refuses(
        "serve --listen 127.0.0.1:0 --data @/missing/deeper",
        3,
        "missing/deeper",
    );
    home.refuses(
        "serve --listen 127.0.0.1:0 --data @ --token-file @/missing",
        3,
        "token",
    );
    assert!(!home.path("o.db").exists());
    assert!(
        !home
            .path("text-mycelite")
            .join("00000000000000000001.seg")
            .exists()
    );
}

#[test]
fn a_file_that_may_not_be_read() {
    let home = Home::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let forbid = |name: &str| {
            std::fs::set_permissions(home.path(name), std::fs::Permissions::from_mode(0o0))
                .unwrap();
        };
        forbid("app.db");
        // Root may read everything; then there is nothing to refuse.
        if std::fs::read(home.path("app.db")).is_err() {
            home.refuses("push @/app.db --to http://127.0.0.1:1/x", 3, "app.db");
            home.refuses("verify --deep @/app.db", 3, "app.db");
        }
        forbid("app.db-mycelite/meta");
        if std::fs::read(home.path("app.db-mycelite/meta")).is_err() {
            home.refuses("log @/app.db", 3, "meta");
        }
    }
}

#[test]
fn a_log_of_another_database_is_not_taken_for_its_own() {
    let home = Home::new();
    let server = Serve::start(&home.path("server"), &[]);
    let url = server.url("app");
    run(["push", text(&home.path("app.db")), "--to", &url]).good();
    home.database("other.db");
    home.refuses(
        &format!("push @/other.db --to {url}"),
        3,
        "another database",
    );
    let served = run(["log", &url, "--json"]).good();
    assert_eq!(
        served,
        run(["log", text(&home.path("app.db")), "--json"]).good(),
        "what the server has is unharmed"
    );

    // The log of `other` beside a database that is not it.
    std::fs::remove_dir_all(home.path("app.db-mycelite")).unwrap();
    std::fs::rename(home.path("other.db-mycelite"), home.path("app.db-mycelite")).unwrap();
    let answer = run(["verify", "--deep", text(&home.path("app.db"))]);
    assert_eq!(answer.code, 1, "{answer:?}");
    assert!(
        answer.stdout.contains("is not what the log says"),
        "{answer:?}"
    );
}

/// Writes `version` into a structure of 64 bytes and makes its hash fit again, as a newer program would.
fn set_version(path: &Path, version: u16) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[8..10].copy_from_slice(&version.to_le_bytes());
    let hash = xxh3_64(&bytes[..56]).to_le_bytes();
    bytes[56..64].copy_from_slice(&hash);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_newer_format_is_named_and_left_alone() {
    let home = Home::new();
    for file in ["meta", "00000000000000000001.seg"] {
        let path = home.path("app.db-mycelite").join(file);
        let before = std::fs::read(&path).unwrap();
        set_version(&path, 7);
        let newer = std::fs::read(&path).unwrap();
        for verb in [
            "log",
            "status",
            "verify",
            "dump --txid 1",
            "restore -o @/o.db",
        ] {
            home.refuses(&format!("{verb} @/app.db"), 3, "format version 7");
        }
        assert_eq!(std::fs::read(&path).unwrap(), newer, "it was not touched");
        std::fs::write(&path, before).unwrap();
    }
    run(["verify", "--deep", text(&home.path("app.db"))]).good();
}

#[test]
fn servers_that_are_none() {
    let home = Home::new();
    let web = nonsense("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    let ssh = nonsense("SSH-2.0-OpenSSH_9.2\r\n");
    let mute = nonsense("");
    for verb in [
        "push @/app.db --to",
        "log",
        "status",
        "verify --deep",
        "restore -o @/o.db",
    ] {
        home.refuses(
            &format!("{verb} http://127.0.0.1:{web}/app"),
            3,
            "not a mycelite server",
        );
        home.refuses(
            &format!("{verb} http://127.0.0.1:{ssh}/app"),
            3,
            "does not speak HTTP",
        );
    }
    home.refuses(
        &format!("log http://127.0.0.1:{mute}/app"),
        3,
        "the connection broke",
    );
    let server = Serve::start(&home.path("server"), &[]);
    home.refuses(&format!("log {}", server.url("nobody")), 3, "nobody");
    assert!(!home.path("o.db").exists());
    run(["verify", "--deep", text(&home.path("app.db"))]).good();
}

#[test]
fn a_port_or_a_directory_in_use() {
    let home = Home::new();
    let server = Serve::start(&home.path("server"), &[]);
    home.refuses(
        &format!("serve --listen {} --data @/second", server.address),
        3,
        "the port is in use",
    );
    home.refuses(
        "serve --listen 127.0.0.1:0 --data @/server",
        3,
        "another mycelite serve",
    );
}

#[test]
fn settings_that_are_wrong_are_named_with_their_place() {
    let home = Home::new();
    let db = home.path("app.db");
    let push = ["push", text(&db)];
    for (variable, value, says) in [
        (
            "MYCELITE_REPLCIA",
            "http://127.0.0.1:1/app",
            "did you mean MYCELITE_REPLICA?",
        ),
        (
            "MYCELITE_REPLICA",
            "127.0.0.1:1/app",
            "environment MYCELITE_REPLICA",
        ),
        (
            "MYCELITE_LOG_SYNC",
            "sometimes",
            "allowed: off, normal, full",
        ),
        ("MYCELITE_CONFIG", "/nowhere/mycelite.toml", "no such file"),
        ("MYCELITE_TOKEN", "two words", "environment MYCELITE_TOKEN"),
    ] {
        let line = run_with(&push, &[(variable, value)]).bad(2);
        assert!(line.contains(says), "{line}");
        assert!(
            variable != "MYCELITE_TOKEN" || !line.contains(value),
            "{line}"
        );
    }
    let file = home.path("mycelite.toml");
    for (content, says) in [
        (
            "[default]\nreplicas = \"http://127.0.0.1:1/app\"\n",
            "did you mean replica?",
        ),
        ("[default]\nreplica = nothing\n", "line 2"),
    ] {
        std::fs::write(&file, content).unwrap();
        let line = run_with(&push, &[("MYCELITE_CONFIG", text(&file))]).bad(2);
        assert!(
            line.contains(says) && line.contains("mycelite.toml"),
            "{line}"
        );
    }
    let line = run_with(
        &push,
        &[
            ("MYCELITE_TOKEN_FILE", "/nowhere/token"),
            ("MYCELITE_REPLICA", "http://127.0.0.1:1/app"),
        ],
    )
    .bad(3);
    assert!(line.contains("/nowhere/token"), "{line}");
}

#[test]
fn a_disk_that_is_full() {
    let home = Home::new();
    let db = home.path("app.db");
    let connection = common::open(&db, "");
    connection
        .execute_batch("CREATE TABLE big(x); INSERT INTO big VALUES(randomblob(500000))")
        .unwrap();
    connection.close().unwrap();
    // A limit on the length of files fails as a full disk does, and needs no disk of its own.
    let limited = |arguments: &str| {
        let script = format!("trap '' XFSZ; ulimit -f 200; exec \"$0\" {arguments}");
        let output = std::process::Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_mycelite")])
            .current_dir(home.dir.path())
            .output();
        clikit::Ran::from(output.unwrap())
    };
    let before = std::fs::read_dir(home.dir.path()).unwrap().count();
    let line = limited("restore app.db -o out.db").bad(3);
    assert!(line.contains("is there room on the disk?"), "{line}");
    let line = limited("verify app.db --deep").bad(3);
    assert!(line.contains("TMPDIR"), "{line}");
    assert_eq!(
        std::fs::read_dir(home.dir.path()).unwrap().count(),
        before,
        "nothing is left behind"
    );
    run(["verify", "--deep", text(&db)]).good();
}
