//! Wrong settings and servers, as someone at the stock shell meets them: one clear line, and the commits go on.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;

use crate::clikit::Serve;
use crate::kit::{ask, finished, finished_within, load_wait, stock, writer_shell};

/// Commits through the shell with `parameters`, and gives what `mycelite_replicas` says then.
fn commit_and_ask(db: &Path, parameters: &str) -> String {
    let uri = format!("file:{}?vfs=mycelite_writer{parameters}", db.display());
    // The shipper has a moment for its first attempt; the shell's own sleep is not in every build.
    let wait = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<4000000) SELECT max(i) FROM n;";
    let sql = format!(
        "CREATE TABLE IF NOT EXISTS t(a); INSERT INTO t VALUES(1); {wait} \
         SELECT state || ': ' || last_error FROM mycelite_replicas;"
    );
    let said = finished_within(writer_shell(&uri).arg(sql), load_wait()).good();
    said.lines().last().unwrap_or_default().to_owned()
}

#[test]
fn a_server_that_is_not_there_or_not_ours_is_named() {
    let home = tempfile::tempdir().unwrap();
    let db = home.path().join("app.db");
    // Nobody listens on a port that was just given back.
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let said = commit_and_ask(&db, &format!("&replica=http://{closed}/app"));
    assert!(
        said.contains(&closed.to_string()) && said.contains("backing-off"),
        "{said}"
    );

    let garbage = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = garbage.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in garbage.incoming().flatten().take(100) {
            let mut connection = connection;
            let _ = connection.read(&mut [0; 1024]);
            let _ = connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        }
    });
    let said = commit_and_ask(&db, &format!("&replica=http://{address}/app"));
    assert!(said.contains(&address.to_string()), "{said}");
    assert_eq!(ask(&db, "SELECT count(*) FROM t"), "2");
}

#[test]
fn a_wrong_token_is_named_and_never_shown() {
    let home = tempfile::tempdir().unwrap();
    let tokens = home.path().join("tokens");
    std::fs::write(&tokens, "right-token-0123456789 append,read\n").unwrap();
    let server = Serve::start(
        &home.path().join("replicas"),
        &["--token-file", tokens.to_str().unwrap()],
    );
    let wrong = home.path().join("wrong");
    std::fs::write(&wrong, "wrong-token-9876543210\n").unwrap();
    let db = home.path().join("app.db");
    let parameters = format!(
        "&replica={}&token_file={}",
        server.url("app"),
        wrong.display()
    );
    let said = commit_and_ask(&db, &parameters);
    assert!(said.contains("refused") && said.contains("token"), "{said}");
    assert!(!said.contains("wrong-token"), "{said}");
    assert_eq!(ask(&db, "SELECT count(*) FROM t"), "1");
}

#[test]
fn an_unknown_parameter_refuses_the_open() {
    let home = tempfile::tempdir().unwrap();
    let db = home.path().join("app.db");
    for (parameter, says) in [
        ("replca=http://127.0.0.1:1/app", "did you mean replica"),
        ("replica=app", "replica"),
        ("close_flush_ms=soon", "close_flush_ms"),
    ] {
        let uri = format!("file:{}?vfs=mycelite_writer&{parameter}", db.display());
        let ran = finished(writer_shell(&uri).arg("SELECT 1"));
        let ours: Vec<&str> = ran
            .stderr
            .lines()
            .filter(|line| line.starts_with("mycelite: "))
            .collect();
        assert_eq!(ours.len(), 1, "{parameter}: {ran:?}");
        assert!(ours[0].contains(says), "{parameter}: {ours:?}");
        assert!(!db.exists(), "{parameter} left a file");
    }
}

/// A file-size limit stands for the full disk: the log's writes fail, and so would the database's if they were as long.
#[test]
fn a_full_disk_under_the_log_stops_no_commit() {
    let home = tempfile::tempdir().unwrap();
    let db = home.path().join("app.db");
    let uri = format!("file:{}?vfs=mycelite_writer", db.display());
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<30)";
    let mut sql = String::from("CREATE TABLE t(a INTEGER PRIMARY KEY, b);\n");
    sql += &format!("INSERT INTO t(b) {rows} SELECT randomblob(3000) FROM n;\n");
    for _ in 0..20 {
        sql += "UPDATE t SET b=randomblob(3000);\n";
    }
    sql += "SELECT 'state ' || json_extract(mycelite_status(), '$.state');\n";
    std::fs::write(home.path().join("load.sql"), sql).unwrap();
    // 512 KiB hold the database of 30 rows and not the log of 20 rewrites. SIGXFSZ is ignored, as a full disk sends none.
    let script = format!(
        "trap '' XFSZ; ulimit -f 1024; exec sqlite3 -batch -cmd '.load {}' -cmd \".open '{uri}'\" :memory: < {}",
        crate::kit::library().with_extension("").display(),
        home.path().join("load.sql").display()
    );
    let said = finished(stock("sh").args(["-c", &script])).good();
    assert!(said.contains("state degraded"), "{said}");
    assert_eq!(
        ask(&db, "SELECT count(*) || ' ' || sum(length(b)) FROM t"),
        "30 90000"
    );
    // With room again, the next commit brings the log back to what the file holds.
    finished(writer_shell(&uri).arg("UPDATE t SET b='small' WHERE a=1")).good();
    let proof = crate::kit::mycelite(&["verify", "--deep", db.to_str().unwrap()]).good();
    assert!(proof.contains("byte for byte"), "{proof}");
}
