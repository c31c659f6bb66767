//! How following one database goes: what the server said, what came, and since when nothing moves.

use std::time::{Duration, Instant};

use crate::lock::Mutex;
use mycelite_journal::{Pos, RecordHeader, Txid};

use super::database::Database;
use crate::error::{Error, ErrorKind};
use crate::proto::follow::Beat;
use crate::proto::{ReplicaUrl, pos_status};
use crate::status::FollowStatus;

/// Where one database comes from, and how that goes.
pub(super) struct Pull {
    url: ReplicaUrl,
    stall_after: Duration,
    progress: Mutex<Progress>,
}

/// Where following is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing was heard yet.
    Connecting,
    /// A snapshot comes in.
    Bootstrapping,
    /// The line lives.
    Connected,
    /// The last attempt failed; waiting before the next.
    BackingOff,
    /// It will fail until someone changes something.
    Refused,
    /// The server's history is not the one here.
    Diverged,
    /// Asked to end.
    Stopped,
}

#[derive(Debug)]
struct Progress {
    phase: Phase,
    /// What the server said last.
    beat: Option<Beat>,
    records: u64,
    bytes: u64,
    /// Bytes of a snapshot that are still to come.
    snapshot_left: u64,
    error: String,
    /// The last failure that was told, until the line lives again.
    told: String,
    /// Where the log was, and when something last came for it.
    log: (Txid, Instant),
    /// Where the file was, and when it last moved or had nothing to do.
    file: (Txid, Instant),
    /// Since when something has been missing.
    behind_since: Option<Instant>,
    /// Something came and is not durable yet.
    storing: bool,
    stall_told: bool,
}

impl Pull {
    /// From `url`; nothing has happened yet.
    pub fn new(url: &ReplicaUrl, stall_after: Duration) -> Pull {
        Pull {
            url: url.clone(),
            stall_after,
            progress: Mutex::new(Progress {
                phase: Phase::Connecting,
                beat: None,
                records: 0,
                bytes: 0,
                snapshot_left: 0,
                error: String::new(),
                told: String::new(),
                log: (Txid(0), Instant::now()),
                file: (Txid(0), Instant::now()),
                behind_since: None,
                storing: false,
                stall_told: false,
            }),
        }
    }

    /// Where the records come from.
    pub fn url(&self) -> &ReplicaUrl {
        &self.url
    }

    /// One more record came.
    pub fn received(&self, header: &RecordHeader) {
        let mut progress = self.progress.lock();
        progress.records += 1;
        progress.bytes += header.record_len();
        if let Some(beat) = &mut progress.beat {
            beat.behind_bytes = beat.behind_bytes.saturating_sub(header.record_len());
        }
    }

    /// More bytes of a snapshot came; so many are left.
    pub fn loaded(&self, bytes: u64, left: u64) {
        let mut progress = self.progress.lock();
        progress.bytes += bytes;
        progress.snapshot_left = left;
    }

    /// Bytes of records and snapshots that came since the start.
    pub fn bytes(&self) -> u64 {
        self.progress.lock().bytes
    }

    /// Whether this failure was the last one to be told.
    pub fn is_told(&self, line: &str) -> bool {
        self.progress.lock().told == line
    }

    /// This failure was told.
    pub fn tell(&self, line: &str) {
        self.progress.lock().told = line.to_string();
    }

    /// Whether what came is still on its way to the disk.
    pub fn set_storing(&self, storing: bool) {
        self.progress.lock().storing = storing;
    }

    /// Whether nothing is missing: the file here is what the server last said it has.
    pub fn is_caught_up(&self, database: &Database) -> bool {
        let head = self.progress.lock().beat.map(|beat| beat.head);
        let durable = database.durable().map(|durable| durable.pos);
        let applied = database.apply.lock().applied;
        head.is_some_and(|head| Some(head) == durable && head.txid == applied)
    }

    /// The line brought something.
    pub fn came(&self) {
        self.progress.lock().log.1 = Instant::now();
    }

    /// The server said where it is.
    pub fn heard(&self, beat: Beat) {
        self.progress.lock().beat = Some(beat);
    }

    /// The life goes on, perhaps with an error.
    pub fn enter(&self, phase: Phase, error: String) {
        let mut progress = self.progress.lock();
        progress.phase = phase;
        progress.error = error;
        if phase == Phase::Connected {
            progress.told.clear();
        }
        // A new line has its own time to bring something.
        progress.log.1 = Instant::now();
    }

    /// How it goes; notices, and says once, when nothing moves although it should.
    pub fn status(&self, database: &Database) -> FollowStatus {
        let durable = database.durable().map_or(Pos::ZERO, |durable| durable.pos);
        let apply = database.apply.lock().clone();
        let mut progress = self.progress.lock();
        let head = progress.head().max(durable.txid);
        progress.note(durable.txid, apply.applied, head);
        let lacks = head.0.saturating_sub(apply.applied.0);
        let stalled = progress.stalled_for(self.stall_after, durable.txid, apply.applied, head);
        let (state, error) = match (progress.phase, stalled) {
            (Phase::Connected, Some(since)) => {
                let error = Error::new(
                    ErrorKind::Busy,
                    format_args!(
                        "stalled for {} s at transaction {}, the server is at {head}: {}",
                        since.as_secs(),
                        apply.applied,
                        progress.cause_of_stall(durable.txid, head, &apply.error)
                    ),
                );
                ("stalled", error.at(database.db_path.display()).to_string())
            }
            // What keeps the applier waiting may be over in a moment.
            (Phase::Connected, None) if lacks > 0 => ("catching-up", apply.error.clone()),
            (Phase::Connected, None) => ("following", String::new()),
            (Phase::Bootstrapping, _) => ("bootstrapping", String::new()),
            (Phase::Connecting, _) => ("connecting", progress.error.clone()),
            (Phase::BackingOff, _) => ("backing-off", progress.error.clone()),
            (Phase::Refused, _) => ("refused", progress.error.clone()),
            (Phase::Diverged, _) => ("diverged", progress.error.clone()),
            (Phase::Stopped, _) => ("stopped", progress.error.clone()),
        };
        let tell = state == "stalled" && !progress.stall_told;
        progress.stall_told = state == "stalled";
        if tell {
            tracing::error!("{error}");
        }
        FollowStatus {
            url: self.url.to_string(),
            state: state.to_string(),
            pos: pos_status(durable),
            applied_txid: apply.applied.0,
            head_txid: head.0,
            lag_txids: lacks,
            lag_bytes: match progress.phase {
                Phase::Bootstrapping => progress.snapshot_left,
                _ => progress.beat.map_or(0, |beat| beat.behind_bytes),
            },
            lag_ms: progress
                .behind_since
                .map_or(0, |since| since.elapsed().as_millis() as u64),
            records: progress.records,
            bytes: progress.bytes,
            last_error: error,
        }
    }

    /// Whether the line lives and promises records that do not come.
    pub fn is_dry(&self, durable: Txid) -> bool {
        let progress = self.progress.lock();
        progress.head() > durable
            && !progress.storing
            && progress.log.1.elapsed() >= self.stall_after
    }
}

impl Progress {
    fn head(&self) -> Txid {
        self.beat.map_or(Txid(0), |beat| beat.head.txid)
    }

    /// Notes where log and file are now.
    fn note(&mut self, durable: Txid, applied: Txid, head: Txid) {
        let now = Instant::now();
        if self.log.0 != durable || durable >= head {
            self.log = (durable, now);
        }
        if self.file.0 != applied || applied >= durable {
            self.file = (applied, now);
        }
        self.behind_since = match self.behind_since {
            _ if applied >= head => None,
            since => since.or(Some(now)),
        };
    }

    /// How long nothing has moved, if that is long and something should.
    fn stalled_for(
        &self,
        stall_after: Duration,
        durable: Txid,
        applied: Txid,
        head: Txid,
    ) -> Option<Duration> {
        let log = (durable < head).then(|| self.log.1.elapsed());
        let file = (applied < durable).then(|| self.file.1.elapsed());
        log.max(file).filter(|still| *still >= stall_after)
    }

    fn cause_of_stall(&self, durable: Txid, head: Txid, apply_error: &str) -> String {
        if !apply_error.is_empty() {
            return apply_error.to_string();
        }
        if self.storing {
            return "what came is not on the disk yet (is it slow, or is the record large?)"
                .to_string();
        }
        if durable < head {
            return format!("the line lives, but nothing came after transaction {durable}");
        }
        "the records are here, but not in the file yet (does something hold its locks, or is one of them large?)"
            .to_string()
    }
}
