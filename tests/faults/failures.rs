//! How calls on the log's directory fail, and which.

use std::ffi::c_int;

/// How a call on the log's directory fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// `EIO`.
    Io,
    /// `ENOSPC`: where something would grow.
    Full,
    /// `EROFS`: where anything would change.
    ReadOnly,
    /// A part of a write is written, then the disk is full.
    Short,
}

/// Which call on the log's directory fails.
#[derive(Clone, Copy, Debug)]
pub struct LogPlan {
    pub at: usize,
    pub failure: Failure,
    /// Also every later one that can.
    pub lasting: bool,
}

/// What a call on the log's directory does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Open,
    Create,
    Write,
    Truncate,
    Sync,
    Remove,
}

impl Failure {
    pub const ALL: [Failure; 4] = [
        Failure::Io,
        Failure::Full,
        Failure::ReadOnly,
        Failure::Short,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Failure::Io => "eio",
            Failure::Full => "full",
            Failure::ReadOnly => "read-only",
            Failure::Short => "short",
        }
    }

    pub fn fits(self, act: Act) -> bool {
        match self {
            Failure::Io => true,
            Failure::Full => matches!(act, Act::Create | Act::Write),
            Failure::ReadOnly => !matches!(act, Act::Open | Act::Sync),
            Failure::Short => act == Act::Write,
        }
    }

    pub fn errno(self) -> c_int {
        match self {
            Failure::Io => 5,
            Failure::Full | Failure::Short => 28,
            Failure::ReadOnly => 30,
        }
    }
}
