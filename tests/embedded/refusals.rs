//! What is not understood, or contradicts itself, is refused with a line that says what to do.

use std::path::Path;

use crate::clikit::{run, wait_for};
use crate::kit::{LONG, Primary, Reader, Room, identical, room, uri};
use crate::tlskit::{Authority, Valid};

/// Opening `uri`, or the first read of it, fails; what was said.
#[track_caller]
fn refused(reader: &mut Reader, uri: &str) -> String {
    let failed = reader
        .ask(&format!("open x {uri}"))
        .and_then(|_| reader.ask("x SELECT count(*) FROM t"));
    let error = failed.unwrap_err();
    assert!(
        error.contains("unable to open database file"),
        "{uri}: {error}"
    );
    let _ = reader.ask("close x");
    let said = reader.said();
    said.lines().last().unwrap_or_default().to_owned()
}

#[test]
fn bad_values_are_clear_errors() {
    let room = room("WAL", 2, &[]);
    let (copy, url) = (&room.copy, room.server.url("app"));
    let reader = &mut Reader::start(room.dir.path());
    for (source, more, says) in [
        ("ftp://127.0.0.1/app", "", "http://HOST:PORT/NAME"),
        ("", "", "http://HOST:PORT/NAME"),
        ("app", "", "http://HOST:PORT/NAME"),
        ("http://127.0.0.1:1/../app", "", "source"),
        (&format!("{url},{url}"), "", "source"),
        (&url, "&txid=1", "follows nobody"),
        (&url, "&ago=5m", "follows nobody"),
        (&url, "&source_timeout_ms=soon", "0 to 600000 milliseconds"),
        (&url, "&token_file=", "an empty path"),
        (&url, "&replica=http://127.0.0.1:1/app", "unknown setting"),
        (&url, "&sorce=x", "did you mean source?"),
    ] {
        let said = refused(reader, &uri(copy, source, more));
        assert!(said.contains(says), "{source}{more}: {said}");
    }
    let said = refused(
        reader,
        &format!("file:{}?vfs=mycelite_reader&token_file=x", copy.display()),
    );
    assert!(said.contains("add source="), "{said}");
    for vfs in ["&vfs=mycelite_writer", ""] {
        let said = refused(
            reader,
            &format!("file:{}?source={url}{vfs}", copy.display()),
        );
        assert!(said.contains("add vfs=mycelite_reader"), "{said}");
    }
    assert!(!copy.exists() && !copy.with_extension("db-mycelite").exists());
    // The token is a secret.
    std::fs::write(room.dir.path().join("empty"), "").unwrap();
    let said = refused(reader, &uri(copy, &url, "&token=geheim"));
    assert!(
        said.contains("unknown setting") && !said.contains("geheim"),
        "{said}"
    );
    // One file, one source.
    reader.good(&format!("open db {}", uri(copy, &url, "")));
    reader.good("db SELECT count(*) FROM t");
    let said = refused(reader, &uri(copy, &room.server.url("other"), ""));
    assert!(said.contains("contradicts source="), "{said}");
    assert_eq!(reader.number("SELECT count(*) FROM t"), 2);
}

#[test]
fn what_is_no_replica_is_left_alone() {
    let room = room("WAL", 2, &[]);
    let url = room.server.url("app");
    let reader = &mut Reader::start(room.dir.path());
    // A plain database.
    let plain = room.dir.path().join("plain.db");
    crate::common::open_plain(&plain)
        .execute_batch("CREATE TABLE t(a)")
        .unwrap();
    let before = std::fs::read(&plain).unwrap();
    let said = refused(reader, &uri(&plain, &url, ""));
    assert!(said.contains("it is not a replica"), "{said}");
    assert!(
        std::fs::read(&plain).unwrap() == before && !plain.with_extension("db-mycelite").exists()
    );
    // A database that is written here.
    let said = refused(reader, &uri(&room.primary.db, &url, ""));
    assert!(
        said.contains("applications write to this database"),
        "{said}"
    );
    // No such database on the server, no such server's directory, no such directory here.
    let nowhere = room.dir.path().join("nowhere.db");
    let said = refused(reader, &uri(&nowhere, &room.server.url("nothing"), ""));
    assert!(said.contains("nothing"), "{said}");
    let said = refused(reader, &uri(Path::new("/nonexistent/copy.db"), &url, ""));
    assert!(
        said.contains("the directory for the replica is not there"),
        "{said}"
    );
    assert!(!nowhere.exists());
}

/// A copy is served as that of another server only after that has said that it has the same database.
#[test]
fn a_copy_of_another_database_is_not_served() {
    let Room {
        dir,
        server,
        primary,
        copy,
    } = room("WAL", 2, &[]);
    let url = server.url("app");
    let mut reader = Reader::of(dir.path(), &copy, &url);
    reader.number("SELECT count(*) FROM t");
    reader.reach(&primary.pos());
    // Somebody else has another source in mind, while this one is followed.
    let other = Primary::new(dir.path().join("other.db"), "WAL", &server.url("other"));
    wait_for("the server", LONG, || server.db("other").exists());
    let wrong = &mut Reader::start(dir.path());
    let said = refused(wrong, &uri(&copy, &server.url("other"), ""));
    assert!(
        said.contains(&format!("this is a copy of {url}"))
            && said.contains("another process keeps"),
        "{said}"
    );
    reader.stop();
    // And when it is followed by nobody.
    let said = refused(wrong, &uri(&copy, &server.url("other"), ""));
    assert!(said.contains("is another database"), "{said}");
    // While the server is silent, nobody knows.
    let gone = "http://127.0.0.1:9/app";
    let said = refused(wrong, &uri(&copy, gone, "&source_timeout_ms=300"));
    assert!(said.contains("not known to be one of"), "{said}");
    // The same database at another address is the same database.
    let alias = url.replace("127.0.0.1", "localhost");
    let mut reader = Reader::of(dir.path(), &copy, &alias);
    assert_eq!(reader.number("SELECT count(*) FROM t"), 2);
    reader.stop();
    identical(&copy, &primary.image());
    drop(other);
}

#[test]
fn tokens_and_tls_are_the_usual_settings() {
    crate::common::load();
    let dir = crate::common::scratch();
    let path = |name: &str| dir.path().join(name);
    let token = |scope: &str| {
        let added = run([
            "token",
            "--scope",
            scope,
            "--add",
            path("tokens").to_str().unwrap(),
        ])
        .good();
        added.trim().to_owned()
    };
    let (read, append) = (token("read"), token("append"));
    std::fs::write(path("append.token"), append).unwrap();
    std::fs::write(path("read.token"), &read).unwrap();
    let authority = Authority::new(dir.path(), "ca");
    let files = authority.sign("localhost", Valid::Now);
    let server = crate::clikit::Serve::start(
        &path("data"),
        &[
            "--token-file",
            path("tokens").to_str().unwrap(),
            "--tls-cert",
            files.cert.to_str().unwrap(),
            "--tls-key",
            files.key.to_str().unwrap(),
        ],
    );
    let url = server.url("app").replace("127.0.0.1", "localhost");
    let ca = authority.file();
    let primary = Primary::new(
        path("app.db"),
        "WAL",
        &format!(
            "{url}&tls_ca={}&token_file={}",
            ca.display(),
            path("append.token").display()
        ),
    );
    wait_for("the server", LONG, || server.db("app").exists());
    let tls = format!("&tls_ca={}", ca.display());
    let copy = path("copy.db");
    // Without a token, with a wrong one, without the authority.
    let reader = &mut Reader::start(dir.path());
    let said = refused(reader, &uri(&copy, &url, &tls));
    assert!(said.contains("token"), "{said}");
    std::fs::write(path("wrong.token"), "0123456789abcdef0123456789abcdef").unwrap();
    let said = refused(
        reader,
        &uri(
            &copy,
            &url,
            &format!("{tls}&token_file={}", path("wrong.token").display()),
        ),
    );
    assert!(
        said.contains("token") && !said.contains("0123456789abcdef"),
        "{said}"
    );
    let with_token = format!("&token_file={}", path("read.token").display());
    let said = refused(
        reader,
        &uri(&copy, &url, &format!("{with_token}&source_timeout_ms=2000")),
    );
    assert!(said.contains("certificate"), "{said}");
    reader.good(&format!(
        "open db {}",
        uri(&copy, &url, &format!("{tls}{with_token}"))
    ));
    assert_eq!(reader.number("SELECT count(*) FROM t"), 0);
    reader.good("close db");
    // By the environment.
    let ca = ca.to_str().unwrap().to_owned();
    let mut reader = Reader::with(
        dir.path(),
        &[("MYCELITE_TOKEN", &read), ("MYCELITE_TLS_CA", &ca)],
    );
    reader.good(&format!("open db {}", uri(&path("second.db"), &url, "")));
    reader.number("SELECT count(*) FROM t");
    reader.reach(&primary.pos());
    assert!(!reader.said().contains(&read));
}
