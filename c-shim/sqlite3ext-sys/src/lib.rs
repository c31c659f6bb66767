#![allow(warnings, clippy::all)]
include!("bindings.rs");
