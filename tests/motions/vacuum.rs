//! VACUUM and auto_vacuum: pages move, the file shrinks and grows, the page size changes.

use crate::bench::{Bench, MODES, fill};
use crate::common::open;

#[test]
fn vacuum_that_grows() {
    for mode in MODES {
        // The pages of a freshly loaded table are full; with another auto_vacuum, pointer-map pages come on top.
        let mut bench =
            Bench::with_table(&format!("PRAGMA page_size=512; PRAGMA journal_mode={mode}"));
        bench.run(&fill(300, 460), 1);
        let before = bench.number("PRAGMA page_count");
        bench.run("PRAGMA auto_vacuum=FULL; VACUUM", 1);
        assert!(bench.number("PRAGMA page_count") > before, "{mode}");
        bench.run("PRAGMA auto_vacuum=NONE; VACUUM", 1);
        bench.run("UPDATE t SET b=randomblob(40) WHERE a%2; ", 1);
        bench.run("VACUUM", 1);
        bench.run("VACUUM", 1);
        bench.nothing_was_compared();
    }
}

#[test]
fn auto_vacuum_from_one_kind_to_another() {
    for mode in MODES {
        let mut bench = Bench::with_table(&format!(
            "PRAGMA page_size=1024; PRAGMA journal_mode={mode}"
        ));
        for kind in ["FULL", "INCREMENTAL", "NONE", "INCREMENTAL", "FULL"] {
            bench.execute(&format!("PRAGMA auto_vacuum={kind}"));
            bench.oracle.check(kind);
            bench.run("VACUUM", 1);
            bench.run(&fill(60, 900), 1);
            bench.run("DELETE FROM t WHERE a%3", 1);
            bench.execute("PRAGMA incremental_vacuum(7)");
            bench.oracle.check("incremental_vacuum(7)");
            bench.execute("PRAGMA incremental_vacuum");
            bench.oracle.check("incremental_vacuum");
            if mode != "OFF" {
                bench.run_rolled_back("BEGIN; DELETE FROM t; ROLLBACK");
            }
        }
        bench.nothing_was_compared();
    }
}

#[test]
fn page_size_and_mode_change_together() {
    let mut bench = Bench::with_table("PRAGMA page_size=512");
    bench.run(&fill(200, 600), 1);
    for (mode, size) in [
        ("TRUNCATE", 65536),
        ("PERSIST", 1024),
        ("MEMORY", 32768),
        ("OFF", 2048),
        ("DELETE", 16384),
    ] {
        bench.execute(&format!(
            "PRAGMA journal_mode={mode}; PRAGMA page_size={size}"
        ));
        bench.oracle.check(mode);
        bench.run("VACUUM", 1);
        assert_eq!(bench.number("PRAGMA page_size"), size);
        bench.run("UPDATE t SET b=randomblob(700) WHERE a%5=0", 1);
        // In WAL mode the size stays as it is.
        bench.execute("PRAGMA journal_mode=WAL");
        bench.oracle.check("to WAL");
        bench.run("PRAGMA page_size=8192; VACUUM", 1);
        assert_eq!(bench.number("PRAGMA page_size"), size);
        bench.run("UPDATE t SET b=randomblob(30) WHERE a%11=0", 1);
    }
    bench.nothing_was_compared();
}

/// Another connection sees the pages of the other size, and goes on from there.
#[test]
fn page_size_changes_beside_another_connection() {
    let mut bench = Bench::with_table("PRAGMA page_size=1024");
    let other = open(&bench.path, "");
    for size in [4096, 512, 65536] {
        other
            .execute_batch("INSERT INTO t(b) VALUES(hex(randomblob(3000)))")
            .unwrap();
        assert_eq!(bench.oracle.check("other"), 1);
        bench.run(&format!("PRAGMA page_size={size}; VACUUM"), 1);
    }
    bench.nothing_was_compared();
}

/// `SQLITE_DBCONFIG_RESET_DATABASE`: VACUUM makes an empty database of any file.
#[test]
fn a_database_is_reset() {
    for mode in ["DELETE", "WAL"] {
        let mut bench = Bench::with_table(&format!("PRAGMA journal_mode={mode}"));
        bench.run(&fill(100, 900), 1);
        let reset = |bench: &Bench, on: bool| {
            let mut now = 0;
            // SAFETY: the connection is open; the arguments are those that this option takes.
            let rc = unsafe {
                rusqlite::ffi::sqlite3_db_config(
                    bench.connection.handle(),
                    rusqlite::ffi::SQLITE_DBCONFIG_RESET_DATABASE,
                    i32::from(on),
                    &raw mut now,
                )
            };
            assert_eq!(rc, 0);
        };
        reset(&bench, true);
        bench.execute("VACUUM");
        reset(&bench, false);
        bench.oracle.check("reset");
        assert_eq!(bench.number("SELECT count(*) FROM sqlite_master"), 0);
        bench.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)", 1);
        bench.run(&fill(10, 900), 1);
    }
}
