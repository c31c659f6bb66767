//! Encodings and kinds of tables: to a replica of pages they are all the same.

use crate::bench::{Bench, MODES, number};
use crate::common::open_plain;

/// Runs each step in each journal mode, and compares after each; then the replayed image must be a sound database.
#[track_caller]
fn steps(pragmas: &str, steps: &[&str]) {
    for mode in MODES {
        let mut bench = Bench::new(&format!("{pragmas}; PRAGMA journal_mode={mode}"));
        for step in steps {
            bench.run(step, 1);
        }
        bench.nothing_was_compared();
        let copy = bench.dir().join("replayed.db");
        std::fs::copy(bench.oracle.image_path(), &copy).unwrap();
        let replayed = open_plain(&copy);
        assert_eq!(
            number(
                &replayed,
                "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check='ok'"
            ),
            1,
            "{mode}"
        );
    }
}

#[test]
fn utf_16() {
    for encoding in ["UTF-16le", "UTF-16be"] {
        steps(
            &format!("PRAGMA encoding='{encoding}'"),
            &[
                "CREATE TABLE t(a PRIMARY KEY, b)",
                "INSERT INTO t VALUES('grüß', 'dich'), ('数据', 'ок'), ('😀', NULL)",
                "UPDATE t SET b=a||b||char(0x10ffff)",
                "DELETE FROM t WHERE a>'h'",
            ],
        );
    }
}

#[test]
fn without_rowid() {
    steps(
        "PRAGMA page_size=512",
        &[
            "CREATE TABLE t(a, b, c, PRIMARY KEY(b, a)) WITHOUT ROWID",
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<500)
             INSERT INTO t SELECT i, i*7919%1000, hex(randomblob(i%200)) FROM n",
            "UPDATE t SET b=b+500 WHERE a%3=0",
            "DELETE FROM t WHERE b BETWEEN 200 AND 600",
            "CREATE UNIQUE INDEX i ON t(a)",
            "REINDEX",
        ],
    );
}

#[test]
fn full_text() {
    steps(
        "",
        &[
            "CREATE VIRTUAL TABLE f USING fts5(title, body, prefix='2 3')",
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<300)
             INSERT INTO f SELECT 'title '||i, 'word'||(i%17)||' and word'||(i*31%97) FROM n",
            "UPDATE f SET body=body||' more' WHERE f MATCH 'word3'",
            "DELETE FROM f WHERE rowid%2",
            "INSERT INTO f(f) VALUES('rebuild')",
            "DROP TABLE f",
        ],
    );
}

#[test]
fn r_tree() {
    steps(
        "PRAGMA page_size=1024",
        &[
            "CREATE VIRTUAL TABLE r USING rtree(id, x0, x1, y0, y1)",
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<400)
             INSERT INTO r SELECT i, i%50, i%50+3, i%31, i%31+2 FROM n",
            "UPDATE r SET x1=x1+10 WHERE id%4=0",
            "DELETE FROM r WHERE x0<20 AND y1>5",
        ],
    );
}

#[test]
fn blobs_generated_columns_and_schema_changes() {
    steps(
        "PRAGMA page_size=1024; PRAGMA secure_delete=ON",
        &[
            "CREATE TABLE t(a INTEGER PRIMARY KEY AUTOINCREMENT, b BLOB, c INTEGER AS (length(b)) STORED) STRICT",
            "INSERT INTO t(b) VALUES(zeroblob(100000)), (randomblob(5)), (zeroblob(0))",
            "ALTER TABLE t ADD COLUMN d TEXT DEFAULT 'x'",
            "CREATE TRIGGER g AFTER DELETE ON t BEGIN INSERT INTO t(b) VALUES(randomblob(3000)); END",
            "DELETE FROM t WHERE a=1",
            "ALTER TABLE t DROP COLUMN d",
            "ALTER TABLE t RENAME TO u",
            "PRAGMA user_version=7",
            "PRAGMA application_id=8",
            "CREATE VIEW v AS SELECT a FROM u",
            "ANALYZE",
            "DROP TABLE u",
        ],
    );
}

/// Incremental blob writes go past the statements.
#[test]
fn incremental_blobs() {
    use std::io::{Seek, SeekFrom, Write};
    for mode in MODES {
        let mut bench = Bench::with_table(&format!("PRAGMA journal_mode={mode}"));
        bench.run("INSERT INTO t(b) VALUES(zeroblob(200000))", 1);
        for at in [0, 4000, 199_000] {
            let row = bench.connection.last_insert_rowid();
            let mut blob = bench
                .connection
                .blob_open(rusqlite::MAIN_DB, "t", "b", row, false)
                .unwrap();
            blob.seek(SeekFrom::Start(at)).unwrap();
            blob.write_all(&[7; 900]).unwrap();
            blob.close().unwrap();
            assert_eq!(bench.oracle.check("a blob is written"), 1, "{mode}");
        }
        bench.nothing_was_compared();
    }
}
