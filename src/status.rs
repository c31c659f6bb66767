//! What a database and its replicas look like from outside: the structs behind `mycelite_status()`,
//! `mycelite_replicas`, `mycelite status --json` and the server's JSON.

use serde::{Deserialize, Serialize};

/// Where a database is in its history; `mycelite_journal::Pos` in the form that people and programs read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosStatus {
    /// Grows at promotion, fork or repair after lost writes.
    pub timeline: u64,
    /// Number of the last transaction contained.
    pub txid: u64,
    /// Checksum of the whole database at that transaction, 16 hex digits.
    pub checksum: String,
}

/// State of a database on the side that writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseStatus {
    /// Path of the database file.
    pub database: String,
    /// Identity of the log, 32 hex digits; empty before the first recorded transaction.
    pub id: String,
    /// Last recorded transaction.
    pub pos: PosStatus,
    /// Page size in bytes; 0 before the first recorded transaction.
    pub page_size: u32,
    /// Pages in the image.
    pub page_count: u32,
    /// Bytes of the log on disk.
    pub log_bytes: u64,
    /// Why the log is longer than `log_bytes_max` allows, as last seen when it was looked after; empty when it is not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub log_over: String,
    /// `ok`; `degraded` with the reason in `last_error`; or `adopting` while a database that had data before it had a log is
    /// being taken into that.
    pub state: String,
    /// The last thing that went wrong with the log, one line; empty when nothing did.
    pub last_error: String,
    /// The replicas configured for this database.
    pub replicas: Vec<ReplicaStatus>,
    /// How acknowledging commits goes, where commits wait for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack: Option<AckStatus>,
    /// Where this is a replica: what it had beyond the places where new timelines began.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parked: Vec<ParkedStatus>,
}

/// How acknowledging commits goes, as the process that commits sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckStatus {
    /// Replicas that must hold a record before its COMMIT returns; connections may have other settings.
    pub replicas: u32,
    /// They do not answer in time: commits go on without waiting until they have caught up.
    pub degraded: bool,
    /// Commits that returned without their acknowledgement since the first connection was opened.
    pub missed: u64,
    /// Why, one line; empty when commits are acknowledged.
    pub last_error: String,
}

/// Transactions that a replica had and its primary had lost, kept in a directory in `parked` beside the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkedStatus {
    /// Name of the directory.
    pub name: String,
    /// Timeline of the last one.
    pub timeline: u64,
    /// The first one.
    pub first_txid: u64,
    /// The last one.
    pub last_txid: u64,
    /// Bytes of their records on disk.
    pub bytes: u64,
}

/// State of a database that is open through the reader VFS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReaderStatus {
    /// Path of the database, or of the log's directory, as it was opened.
    pub database: String,
    /// Identity of the log, 32 hex digits.
    pub id: String,
    /// Each read transaction sees what is then the head; else one moment is shown for ever.
    pub follows_head: bool,
    /// What is seen.
    pub pos: PosStatus,
    /// Page size in bytes; 0 before the first read.
    pub page_size: u32,
    /// Pages in the image.
    pub page_count: u32,
    /// How far that is behind the server that is followed into this log, where one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<LagStatus>,
    /// How following goes, where the connection was opened with `source`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<FollowStatus>,
}

/// How far a replica is behind the server that it follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LagStatus {
    /// Transactions that are missing.
    pub txids: u64,
    /// Bytes of their records, as the server last said.
    pub bytes: u64,
    /// For how long at least something has been missing, in ms; 0 when nothing is.
    pub ms: u64,
    /// How long ago the server last said where it is, in ms: beyond a few seconds, the rest is out of date.
    pub heard_ms: u64,
}

/// State of one replica, as its shipper sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Where records are sent, without any secret.
    pub url: String,
    /// `idle`, `connecting`, `shipping`, `caught-up`, `backing-off`, `refused`, `diverged` or `elsewhere` (another process ships).
    pub state: String,
    /// Last transaction that the replica holds durably; 0 when unknown.
    pub acked_txid: u64,
    /// Transactions that the replica does not hold yet.
    pub lag_txids: u64,
    /// Bytes of log that the replica does not hold yet.
    pub lag_bytes: u64,
    /// Age in milliseconds of the oldest record that the replica does not hold yet.
    pub lag_ms: u64,
    /// The last failure, one line; empty when the last attempt succeeded.
    pub last_error: String,
}

/// State of a database that is pulled from a server, as the side that pulls sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowStatus {
    /// Where records come from, without any secret.
    pub url: String,
    /// `connecting`, `bootstrapping` (a snapshot comes in), `catching-up`, `following` (nothing is missing), `stalled`, `backing-off`, `refused`, `diverged`,
    /// `stopped`, or in an embedded replica `elsewhere` (another process follows into this file).
    pub state: String,
    /// The last record that is durable here.
    pub pos: PosStatus,
    /// The last record that the database file here contains.
    pub applied_txid: u64,
    /// The server's last record, as it last said; 0 when it was not reached yet.
    pub head_txid: u64,
    /// Transactions that the database file here lacks.
    pub lag_txids: u64,
    /// Bytes of records that did not come yet, as the server last said.
    pub lag_bytes: u64,
    /// How long something has been missing, in ms; 0 when nothing is.
    pub lag_ms: u64,
    /// Records received since the start.
    pub records: u64,
    /// Their bytes, as the log stores them, and those of snapshots.
    pub bytes: u64,
    /// The last failure, or why nothing moves, one line; empty when all is well.
    pub last_error: String,
}
