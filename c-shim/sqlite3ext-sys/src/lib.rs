//! Stands in for the crate `sqlite3ext-sys`: see `bindings.rs`.
#![allow(warnings, clippy::all)]

#[rustfmt::skip]
mod bindings;
pub use bindings::*;
