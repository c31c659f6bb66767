//! Records as people and programs see them: the rows of `log`, the header of `dump`.

use mycelite::moment;
use mycelite_journal::{FLAG_ADOPT, FLAG_REBASE, RecordHeader};
use serde::Serialize;

/// One record's header. The field names are the JSON of `mycelite log --json` and stay as they are.
#[derive(Debug, Serialize)]
pub struct HeaderView {
    /// Number of the transaction.
    pub txid: u64,
    /// RFC 3339, UTC, microseconds.
    pub time: String,
    /// Microseconds since 1970.
    pub time_us: u64,
    /// Timeline.
    pub timeline: u64,
    /// Whether the record before it is on an older timeline; none where that is not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub begins_timeline: Option<bool>,
    /// Pages changed.
    pub pages: u32,
    /// Bytes in the log.
    pub bytes: u64,
    /// Page size in bytes.
    pub page_size: u32,
    /// Pages of the database after it.
    pub db_pages: u32,
    /// Checksum of the whole database after it, 16 hex digits.
    pub checksum: String,
    /// Checksum before it.
    pub pre_checksum: String,
    /// `adopt`, `rebase`.
    pub flags: Vec<&'static str>,
    /// Its bookmarks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bookmarks: Vec<String>,
}

impl HeaderView {
    /// The view of `header`.
    pub fn new(header: &RecordHeader) -> HeaderView {
        let names = [(FLAG_ADOPT, "adopt"), (FLAG_REBASE, "rebase")];
        HeaderView {
            txid: header.txid.0,
            time: moment::time(header.time_us),
            time_us: header.time_us,
            timeline: header.timeline.0,
            begins_timeline: None,
            pages: header.patch_count,
            bytes: header.record_len(),
            page_size: header.page_size.get(),
            db_pages: header.page_count,
            checksum: header.post_checksum.to_string(),
            pre_checksum: header.pre_checksum.to_string(),
            flags: names
                .iter()
                .filter(|(bit, _)| header.flags & bit != 0)
                .map(|(_, name)| *name)
                .collect(),
            bookmarks: Vec::new(),
        }
    }
}
