#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::duplicate_mod,
        reason = "each integration test that runs here too brings its `common`"
    )
)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

#[cfg(test)]
extern crate self as mycelite_journal;

// The same tests as in `tests`, here with small limits: see `sealed::limit`.
#[cfg(test)]
#[path = "../tests/as_of.rs"]
mod as_of_small;
#[cfg(test)]
#[path = "../tests/sealed.rs"]
mod sealed_small;

mod archive;
mod as_of;
mod bodies;
mod body;
mod build;
mod bytes;
mod cursor;
mod cut;
mod entry;
mod error;
mod fault;
mod files;
mod held;
mod image;
mod meta;
mod open;
mod pace;
mod patch;
mod pos;
mod raw;
mod reader;
mod record;
mod sealed;
mod segment;
mod snapshot;
mod storage;
mod tail;
mod tail_index;
mod write_back;
mod writer;

pub use archive::Archive;
pub use as_of::AsOf;
pub use bodies::Bodies;
pub use build::{Draft, RecordWriter};
pub use cursor::Head;
pub use cut::Cut;
pub use entry::{PatchStream, RecordEntry};
pub use error::{Error, FormatError, Result};
pub use fault::{Fault, FaultStorage};
pub use files::{PastFile, drop_before, drop_before_if};
pub use image::{Image, scan_checksum};
pub use meta::{Meta, SyncMark};
pub use open::PreparedTail;
pub use pace::{FullSpeed, Pace};
pub use patch::{PatchKind, PatchRef, Ranges, encode_patch};
pub use pos::{
    Checksum, DatabaseId, PageSize, ParsePosError, Pgno, Pos, Timeline, Txid, page_checksum,
};
pub use raw::RawLimits;
pub use reader::Reader;
pub use record::{FLAG_ADOPT, FLAG_REBASE, RecordHeader, Trailer, WalCursor};
pub use sealed::check::{verify_file, verify_states};
pub use sealed::format::{
    merged_name, parse_merged_name, parse_sealed_name, parse_snapshot_name, sealed_name,
    snapshot_name,
};
pub use sealed::merge::{Keep, Merged, merge, merge_if};
pub use sealed::seal::{Sealed, seal, seal_at};
pub use segment::{
    SEGMENT_BYTES_MAX, SEGMENT_RECORDS_MAX, Seal, SegmentHeader, parse_segment_name, segment_name,
};
pub use snapshot::Snapshot;
pub use storage::{FileStorage, OpenMode, Storage, StorageFile};
pub use write_back::WriteBack;
pub use writer::Log;
