//! Compiles `shim.c` against the header of the SQLite that libsqlite3-sys bundles, so that C and Rust agree on types.

use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=shim.c");
    let Some(include) = env::var_os("DEP_SQLITE3_INCLUDE") else {
        eprintln!(
            "DEP_SQLITE3_INCLUDE is not set: libsqlite3-sys must be built with its feature `bundled`"
        );
        return ExitCode::FAILURE;
    };
    cc::Build::new()
        .file("shim.c")
        .include(include)
        .warnings(true)
        .extra_warnings(true)
        .flag_if_supported("-Wno-unused-parameter")
        .flag_if_supported("-fvisibility=hidden")
        .compile("mycelite_shim");
    ExitCode::SUCCESS
}
