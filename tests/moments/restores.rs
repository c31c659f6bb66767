//! `mycelite restore` reads what it needs, writes what it promised, and says both.

use std::path::Path;
use std::sync::Arc;

use mycelite_journal::{Archive, FileStorage, Snapshot, Storage, Txid, seal};

use crate::clikit::{run, text};
use crate::common::{self, image_of};
use crate::kit::database;

fn history(path: &Path) -> Vec<Vec<u8>> {
    // The close leaves the sealing to others.
    let ours = common::open(path, "&segment_bytes_max=64KiB&close_flush_ms=0");
    let mut images = Vec::new();
    ours.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        .unwrap();
    images.push(image_of(path));
    for n in 0..40 {
        let sql = match n % 5 {
            4 => format!("DELETE FROM t WHERE a % 5 = {}", n % 4),
            _ => "INSERT INTO t(b) VALUES(randomblob(9000)), (randomblob(70))".to_owned(),
        };
        ours.execute_batch(&sql).unwrap();
        images.push(image_of(path));
    }
    ours.execute_batch("VACUUM").unwrap();
    images.push(image_of(path));
    images
}

/// Seals what can be, and writes a snapshot of transaction 20.
fn seal_all(db: &Path) {
    let storage = Arc::new(FileStorage::new(common::log_dir(db)));
    while seal(&*storage, Txid(u64::MAX)).unwrap().is_some() {}
    let names = storage.list().unwrap();
    let sealed = names.iter().filter(|name| name.ends_with(".sealed"));
    assert!(sealed.count() > 2, "{names:?}");
    Snapshot::write(&Archive::open(storage).unwrap(), Txid(20)).unwrap();
}

/// Byte for byte at every transaction, from raw segments, sealed ones, snapshots, and a mixture.
#[test]
fn every_state_from_every_kind_of_file() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("app.db");
    let images = history(&db);
    let out = dir.path().join("out.db");
    let check = |what: &str| {
        for (image, txid) in images.iter().zip(1..) {
            let arguments = ["restore", text(&db), "-o", text(&out), "--force", "--txid"];
            run(arguments.iter().copied().chain([txid.to_string().as_str()])).good();
            common::assert_same(
                image,
                &std::fs::read(&out).unwrap(),
                &format!("{what}, transaction {txid}"),
            );
        }
    };
    check("raw");
    seal_all(&db);
    check("sealed");
}

#[test]
fn a_dry_run_says_what_would_be_read_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("app.db");
    let images = history(&db);
    seal_all(&db);
    let out = dir.path().join("out.db");
    let plan = |txid: &str| {
        run([
            "restore",
            text(&db),
            "-o",
            text(&out),
            "--dry-run",
            "--json",
            "--txid",
            txid,
        ])
        .json()
    };
    for txid in [1, 19, 20, 21, 42] {
        let plan = plan(&txid.to_string());
        assert_eq!(
            plan["bytes"].as_u64().unwrap(),
            images[txid - 1].len() as u64
        );
        assert_eq!(plan["txid"].as_u64().unwrap(), txid as u64);
        assert_eq!(plan["dry_run"], true);
        let files: Vec<&str> = plan["reads"]
            .as_array()
            .unwrap()
            .iter()
            .map(|read| read["file"].as_str().unwrap())
            .collect();
        assert!(!files.is_empty());
        assert_eq!(
            files.contains(&"00000000000000000020.snapshot"),
            txid >= 20,
            "{txid}: {files:?}"
        );
        // Nothing but these files is needed.
        let alone = tempfile::tempdir().unwrap();
        for file in files.iter().chain(&["meta"]) {
            std::fs::copy(common::log_dir(&db).join(file), alone.path().join(file)).unwrap();
        }
        let copy = alone.path().join("copy.db");
        run([
            "restore",
            text(alone.path()),
            "-o",
            text(&copy),
            "--txid",
            &txid.to_string(),
        ])
        .good();
        common::assert_same(
            &images[txid - 1],
            &std::fs::read(&copy).unwrap(),
            "from the files named",
        );
    }
    assert!(!out.exists());
    let said = run(["restore", text(&db), "-o", text(&out), "--dry-run"]).good();
    assert!(
        said.contains("would be transaction 42 of 20") && said.contains("  from 0000"),
        "{said}"
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn what_stands_there_stays_and_errors_name_the_oldest_moment() {
    let (dir, db) = database(&["CREATE TABLE t(a)", "INSERT INTO t VALUES(1)"]);
    let out = dir.path().join("out.db");
    for beside in ["", "-wal", "-journal"] {
        let there = dir.path().join(format!("out.db{beside}"));
        std::fs::write(&there, "mine").unwrap();
        let line = run(["restore", text(&db), "-o", text(&out)]).bad(2);
        assert!(line.contains("exists already"), "{line}");
        assert_eq!(std::fs::read(&there).unwrap(), b"mine");
        std::fs::remove_file(&there).unwrap();
    }
    for when in [["--at", "1999-12-31"], ["--ago", "9999d"]] {
        let line = run(["restore", text(&db), "-o", text(&out), when[0], when[1]]).bad(3);
        assert!(
            line.contains("the history begins with transaction 1 at 20"),
            "{line}"
        );
    }
    let line = run(["restore", text(&db), "-o", text(&out), "--txid", "3"]).bad(3);
    assert!(
        line.contains("no transaction 3 in a log of 1 to 2"),
        "{line}"
    );
    // Damage is reported, and no file appears.
    let segment = common::log_dir(&db).join("00000000000000000001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[64 + 128 + 20] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let line = run(["restore", text(&db), "-o", text(&out)]).bad(3);
    assert!(line.contains("00000000000000000001.seg"), "{line}");
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");
}
