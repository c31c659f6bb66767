#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

mod body;
mod build;
mod bytes;
mod cursor;
mod cut;
mod entry;
mod error;
mod fault;
mod image;
mod meta;
mod open;
mod patch;
mod pos;
mod raw;
mod reader;
mod record;
mod segment;
mod storage;
mod tail;
mod writer;

pub use build::{Draft, RecordWriter};
pub use cursor::Head;
pub use cut::Cut;
pub use entry::{PatchStream, RecordEntry};
pub use error::{Error, FormatError, Result};
pub use fault::{Fault, FaultStorage};
pub use image::{Image, scan_checksum};
pub use meta::{Meta, SyncMark};
pub use open::PreparedTail;
pub use patch::{PatchKind, PatchRef, Ranges, encode_patch};
pub use pos::{
    Checksum, DatabaseId, PageSize, ParsePosError, Pgno, Pos, Timeline, Txid, page_checksum,
};
pub use raw::RawLimits;
pub use reader::Reader;
pub use record::{FLAG_ADOPT, FLAG_REBASE, RecordHeader, Trailer, WalCursor};
pub use segment::{SEGMENT_BYTES_MAX, Seal, SegmentHeader, parse_segment_name, segment_name};
pub use storage::{FileStorage, OpenMode, Storage, StorageFile};
pub use writer::Log;
