//! What a caller may choose, and what it learns from each step.

use std::time::Duration;

use mycelite_journal::{Pos, Txid};

/// How records are applied.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ApplyOptions {
    /// How long one step waits for locks that others hold (default 5 s).
    pub lock_wait: Duration,
    /// Bytes of page images that one transaction holds in memory at most (default 8 MiB). One record may be larger: it is
    /// then streamed.
    pub batch_bytes_max: u64,
    /// The WAL is copied into the database file when it has grown by this many bytes (default 16 MiB).
    pub wal_bytes_max: u64,
    /// The WAL grows to this many bytes at most while a reader keeps it from being copied back; then applying waits for that reader
    /// (default 1 GiB).
    pub wal_bytes_stop: u64,
    /// Apply through a WAL (default). Without it, rollback journals are used for images in rollback mode, at the price
    /// that readers without a busy timeout are turned away now and then.
    pub use_wal: bool,
    /// No record after this one is applied, see [`super::Applier::set_limit`] (default: all are).
    pub limit: Txid,
}

impl Default for ApplyOptions {
    fn default() -> ApplyOptions {
        ApplyOptions {
            lock_wait: Duration::from_secs(5),
            batch_bytes_max: 8 << 20,
            wal_bytes_max: 16 << 20,
            wal_bytes_stop: 1 << 30,
            use_wal: true,
            limit: Txid(u64::MAX),
        }
    }
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Where the database file is now.
    pub pos: Pos,
    /// Records applied by this step.
    pub records: u64,
    /// Bytes of records (as stored) applied by this step.
    pub bytes: u64,
    /// Whether another step may do more at once, or after waiting.
    pub more: bool,
    /// Why nothing was applied although there are records; `None` if nothing is in the way.
    pub waiting: Option<&'static str>,
}
