//! What went wrong below HTTP, out of the errors that wrap each other.

use std::error::Error as _;
use std::io;

use crate::proto::excerpt;

/// The innermost cause: what the operating system or the parser said.
pub(super) fn root(e: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = e;
    while let Some(next) = cause.source() {
        cause = next;
    }
    excerpt(&cause.to_string(), 200)
}

/// All causes in one text, to tell kinds apart that have no type of their own.
pub(super) fn chain(e: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause = e.source();
    while let Some(next) = cause {
        text.push_str(&next.to_string());
        text.push('\n');
        cause = next.source();
    }
    text
}

pub(super) fn io_kind(e: &reqwest::Error) -> Option<io::ErrorKind> {
    let mut cause = e.source();
    while let Some(next) = cause {
        if let Some(io) = next.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        cause = next.source();
    }
    None
}
