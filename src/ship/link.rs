//! One replica's end of the log: finds where the replica stands in our history and sends what follows.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mycelite_journal::{DatabaseId, FileStorage, Pos, Reader, RecordEntry, Storage, Txid};

use super::ShipOptions;
use super::body::Batch;
use super::client::{Appended, Client, Failure};
use super::host::Hosts;
use super::lock::Memory;
use super::snapshot::Parcel;
use crate::error::{Error, ErrorKind};
use crate::proto::{Handshake, ReplicaUrl};

/// Most records in one request: bounds the memory that describes them.
const BATCH_RECORDS_MAX: usize = 16 * 1024;
/// A batch is never cut below this because of a slow line.
const BATCH_BYTES_MIN: u64 = 64 * 1024;
/// How often in a row a batch may not fit before the attempt counts as failed.
const MISFITS_MAX: u32 = 4;
/// So many records are looked at before others on the thread have their turn; and so many are held by whoever waits to send.
const TURN_RECORDS: usize = 256;

/// What an attempt has achieved so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    /// What the replica holds durably.
    pub acked: Pos,
    /// Bytes of records acknowledged in this attempt, as the log stores them.
    pub raw_bytes: u64,
}

/// The log, and where one replica stands in it.
pub(super) struct Link {
    log: Arc<dyn Storage>,
    log_dir: PathBuf,
    memory: Memory,
    url: ReplicaUrl,
    client: Client,
    source: Option<Reader>,
    at: Option<Pos>,
    batch: VecDeque<RecordEntry>,
    batch_raw_bytes: u64,
    batch_bytes: u64,
    batch_bytes_max: u64,
    /// Something has arrived since this was last asked.
    progressed: bool,
}

impl Link {
    /// A link that has not asked anything yet, with connections of its own, or with those to one of `hosts`.
    pub fn new(options: &ShipOptions, url: &ReplicaUrl, hosts: Option<&Hosts>) -> Link {
        let (access, timeout) = (&options.access, options.request_timeout);
        let client = match hosts {
            None => Client::new(url, access, timeout),
            Some(hosts) => Client::of(hosts.get(url, access, timeout), url, timeout),
        };
        Link {
            log: open_storage(&options.log_dir),
            log_dir: options.log_dir.clone(),
            memory: Memory::new(&options.log_dir, url),
            url: url.clone(),
            client,
            source: None,
            at: None,
            batch: VecDeque::new(),
            batch_raw_bytes: 0,
            batch_bytes: options.batch_bytes_max,
            batch_bytes_max: options.batch_bytes_max,
            progressed: false,
        }
    }

    /// Another process may have shipped meanwhile: ask the replica again before sending.
    pub fn forget_position(&mut self) {
        self.at = None;
        self.clear_batch();
    }

    /// What the replica last acknowledged, to whatever process.
    pub fn remembered(&self) -> Option<Pos> {
        self.memory.recall()
    }

    /// Whether anything has arrived at the replica since the last call.
    pub fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.progressed)
    }

    /// Sends until the replica holds everything that the log holds. `seen` hears of every acknowledgement.
    pub async fn drain(&mut self, seen: &mut dyn FnMut(Progress)) -> Result<(), Failure> {
        let mut progress = Progress {
            acked: Pos::ZERO,
            raw_bytes: 0,
        };
        let mut misfits = 0;
        let host = self.client.host();
        let Some(id) = self.open_source()? else {
            return Ok(());
        };
        if self.at.is_none() {
            let handshake = self.client.handshake().await?;
            self.check_identity(&handshake, id)?;
            self.resume_at(id, handshake.pos()).await?;
        }
        loop {
            let Some(at) = self.at else {
                return Err(Failure::transient(
                    self.error(ErrorKind::Internal, "the replica's position got lost"),
                ));
            };
            progress.acked = at;
            seen(progress);
            if !self.fill(TURN_RECORDS).await? {
                return Ok(());
            }
            let turn = host.turn().await;
            self.fill(BATCH_RECORDS_MAX).await?;
            let batch = self.take_batch(at);
            let (raw_bytes, end) = (batch.raw_bytes, batch.end);
            let sent = self.client.append(id, at, batch).await;
            match turn.end(sent).await {
                Ok(Appended::Durable) => {
                    self.at = Some(end);
                    self.progressed = true;
                    self.memory.remember(end);
                    progress.raw_bytes += raw_bytes;
                    misfits = 0;
                    self.batch_bytes = self.batch_bytes.saturating_mul(2).min(self.batch_bytes_max);
                }
                Ok(Appended::Misfit(pos)) => {
                    misfits += 1;
                    if misfits > MISFITS_MAX {
                        self.forget_position();
                        return Err(Failure::transient(
                            self.error(ErrorKind::Busy, "the replica moves under our hands")
                                .hint("does another program ship to it?"),
                        ));
                    }
                    self.resume_at(id, pos).await?;
                }
                Err(failure) => {
                    // Perhaps the line is too slow for so much at once: what is whole arrives sooner in small batches.
                    self.batch_bytes =
                        (self.batch_bytes / 2).max(BATCH_BYTES_MIN.min(self.batch_bytes_max));
                    self.forget_position();
                    return Err(self.explain(failure));
                }
            }
        }
    }

    /// A record that the server found bad may be damaged here: then that is what to say.
    fn explain(&mut self, failure: Failure) -> Failure {
        let (Some(pos), Some(source)) = (failure.pos, self.source.as_mut()) else {
            return failure;
        };
        match source
            .find(pos.txid.next())
            .and_then(|entry| entry.map_or(Ok(()), |entry| entry.verify()))
        {
            Ok(()) => failure,
            Err(e) => local(e),
        }
    }

    /// Whether the log holds records that have not been sent; reads ahead, sends nothing.
    pub async fn has_more(&mut self) -> Result<bool, Failure> {
        match self.open_source()? {
            None => Ok(false),
            Some(_) if self.at.is_none() => Ok(true),
            Some(_) => self.fill(TURN_RECORDS).await,
        }
    }

    /// Opens the log if it is there; none while nothing has been recorded.
    fn open_source(&mut self) -> Result<Option<DatabaseId>, Failure> {
        if let Some(source) = &self.source {
            return Ok(Some(source.id()));
        }
        match open_reader(&self.log)? {
            None => Ok(None),
            Some(mut reader) => {
                if reader.head().map_err(local)?.is_none() {
                    return Ok(None);
                }
                let id = reader.id();
                self.source = Some(reader);
                Ok(Some(id))
            }
        }
    }

    fn check_identity(&self, handshake: &Handshake, id: DatabaseId) -> Result<(), Failure> {
        match handshake.database.map(DatabaseId) {
            Some(other) if other != id && handshake.txid > 0 => Err(Failure::refused(
                self.error(
                    ErrorKind::Diverged,
                    &format!("the server holds another database under this name (its id is {other}, ours {id})"),
                )
                .hint("choose another name in the replica URL, or move the server's copy away"),
            )),
            _ => Ok(()),
        }
    }

    /// Finds the replica's position in our history and goes on after it; never sends to a replica whose history differs,
    /// unless ours has a newer timeline, which begins at a place where the replica has been.
    async fn resume_at(&mut self, id: DatabaseId, pos: Pos) -> Result<(), Failure> {
        self.clear_batch();
        self.at = None;
        let after = match self.place(pos)? {
            Place::Here => pos,
            Place::Before(pos) => return Box::pin(self.send_snapshot(id, pos)).await,
            Place::Fork(common) => {
                // The beginning is common to all histories of a database.
                let theirs = match common.txid {
                    Txid(0) => common,
                    txid => self.client.pos_at(txid).await?,
                };
                if theirs != common {
                    return Err(self.diverged(&format!(
                        "its history differs: it was at {theirs}, ours has {common} there"
                    )));
                }
                tracing::warn!(
                    "{}: the replica is at {pos}, which this log has lost: a new timeline begins after transaction {}",
                    self.url,
                    common.txid
                );
                common
            }
        };
        if let Some(source) = self.source.as_mut() {
            source.seek(after.txid).map_err(local)?;
            self.at = Some(after);
        }
        Ok(())
    }

    /// Where the replica, which is at `pos`, is in our history.
    fn place(&mut self, pos: Pos) -> Result<Place, Failure> {
        let Some(source) = self.source.as_mut() else {
            return Ok(Place::Here);
        };
        let follows = source.follows().map_err(local)?.unwrap_or(Pos::ZERO);
        if pos == follows {
            return Ok(Place::Here);
        }
        if pos.txid < follows.txid {
            return self.before_log(pos, follows);
        }
        let ours = source.find(pos.txid).map_err(local)?;
        let ours = ours.map(|entry| entry.header.pos());
        if ours == Some(pos) {
            return Ok(Place::Here);
        }
        if let Some(common) = last_common(source, pos, follows)? {
            return Ok(Place::Fork(common));
        }
        let head = source.head().map_err(local)?;
        let newest = head.map(|entry| entry.header.pos());
        Err(match ours {
            _ if newest.is_some_and(|newest| newest.timeline < pos.timeline) => Failure::diverged(
                self.error(
                    ErrorKind::Diverged,
                    &format!(
                        "the replica has diverged: it is at {pos}, on a newer timeline than this log"
                    ),
                )
                .hint("another primary took over: nothing is sent; mycelite follow --rejoin makes this one its replica"),
            ),
            Some(ours) => self.diverged(&format!(
                "its history differs: it is at {pos}, ours has {ours} there"
            )),
            None => Failure::diverged(
                self.error(
                    ErrorKind::Diverged,
                    &format!("the replica has diverged: it is at {pos}, which is ahead of this log"),
                )
                .hint("after a power cut here the next commit puts that right; else another primary writes to it, or this is an old copy"),
            ),
        })
    }

    /// The replica lacks what this log has let go of. With nothing it can begin with a snapshot; else only if it is known to
    /// have been in our history.
    fn before_log(&self, pos: Pos, follows: Pos) -> Result<Place, Failure> {
        if pos == Pos::ZERO || self.memory.recall() == Some(pos) {
            return Ok(Place::Before(pos));
        }
        Err(self.diverged(&format!(
            "it is at {pos}, this log begins after {follows} and does not remember the replica there"
        )))
    }

    /// Makes the newest snapshot the replica's beginning.
    async fn send_snapshot(&mut self, id: DatabaseId, at: Pos) -> Result<(), Failure> {
        let mut parcel = Parcel::newest(&self.log_dir, &self.url)?;
        tracing::info!(
            "{}: the replica is at {at}, which is before this log: sending the snapshot at {}",
            self.url,
            parcel.pos()
        );
        let sent = parcel.send(&self.client, &self.url, id, at).await;
        self.progressed |= parcel.has_moved();
        match sent? {
            Appended::Durable => {
                self.memory.remember(parcel.pos());
                self.resume_at(id, parcel.pos()).await
            }
            Appended::Misfit(pos) => Err(Failure::transient(self.error(
                ErrorKind::Busy,
                &format!("the replica moved to {pos} while a snapshot was sent to it"),
            ))),
        }
    }

    fn diverged(&self, what: &str) -> Failure {
        Failure::diverged(
            self.error(
                ErrorKind::Diverged,
                &format!("the replica has diverged: {what}"),
            )
            .hint("nothing is sent to it; keep it for comparison, and ship to a new name"),
        )
    }

    /// Reads ahead until a batch is full, has so many records, or the log ends; false when there is nothing to send.
    async fn fill(&mut self, records_max: usize) -> Result<bool, Failure> {
        let Some(source) = self.source.as_mut() else {
            return Ok(false);
        };
        while self.batch.len() < records_max && self.batch_raw_bytes < self.batch_bytes {
            if self.batch.len() % TURN_RECORDS == TURN_RECORDS - 1 {
                tokio::task::yield_now().await;
            }
            let Some(entry) = source.next().map_err(local)? else {
                break;
            };
            self.batch_raw_bytes += entry.header.record_len();
            self.batch.push_back(entry);
        }
        Ok(!self.batch.is_empty())
    }

    fn take_batch(&mut self, at: Pos) -> Batch {
        let end = self.batch.back().map_or(at, |entry| entry.header.pos());
        let raw_bytes = std::mem::take(&mut self.batch_raw_bytes);
        Batch {
            entries: std::mem::take(&mut self.batch),
            raw_bytes,
            end,
        }
    }

    fn clear_batch(&mut self) {
        self.batch.clear();
        self.batch_raw_bytes = 0;
    }

    fn error(&self, kind: ErrorKind, what: &str) -> Error {
        Error::new(kind, what).at(&self.url)
    }
}

/// Where a replica is, seen from our history.
enum Place {
    /// In it.
    Here,
    /// Before what is kept of it.
    Before(Pos),
    /// On a timeline that ended here; so far the two may be one, if the replica has this Pos in its history.
    Fork(Pos),
}

/// The last place in our log before a newer timeline than that of a replica which is at `pos` and not in our history;
/// `None` if the log has no newer one, or too few of the older. Timelines never go down, and each starts at a place that
/// all later ones have in common: before it both are the same, or nothing else can be.
fn last_common(source: &mut Reader, pos: Pos, follows: Pos) -> Result<Option<Pos>, Failure> {
    let Some(head) = source.head().map_err(local)? else {
        return Ok(None);
    };
    // The first record of a newer timeline is in (before, newer].
    let (mut before, mut newer) = (follows.txid, head.header.txid);
    if head.header.timeline <= pos.timeline || follows.timeline > pos.timeline {
        return Ok(None);
    }
    let mut common = follows;
    while newer.0 - before.0 > 1 {
        let middle = Txid(before.0 + (newer.0 - before.0) / 2);
        let Some(entry) = source.find(middle).map_err(local)? else {
            return Ok(None);
        };
        if entry.header.timeline > pos.timeline {
            newer = middle;
        } else {
            before = middle;
            common = entry.header.pos();
        }
    }
    let known = common.txid == before;
    Ok((known && before < pos.txid).then_some(common))
}

/// The files of a log directory.
pub(super) fn open_storage(log_dir: &Path) -> Arc<dyn Storage> {
    Arc::new(FileStorage::new(log_dir))
}

/// A reader of the log; none when there is no log yet.
pub(super) fn open_reader(log: &Arc<dyn Storage>) -> Result<Option<Reader>, Failure> {
    match Reader::open(Arc::clone(log)) {
        Ok(reader) => Ok(Some(reader)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(local(e)),
    }
}

/// A failure to read this side's own log; tried again, since a log can be repaired while we run.
pub(super) fn local(e: mycelite_journal::Error) -> Failure {
    let kind = if e.io_error().is_some() {
        ErrorKind::Io
    } else {
        ErrorKind::Corrupt
    };
    Failure::transient(Error::new(kind, e))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use mycelite_journal::{Draft, Log, PageSize};

    use super::*;
    use crate::ship::host::TURNS_MAX;

    #[test]
    fn whoever_waits_for_a_turn_holds_few_records() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Arc::new(FileStorage::new(dir.path()));
        let mut log = Log::create(storage, DatabaseId([1; 16]), 0).unwrap();
        for number in 0..3 * TURN_RECORDS {
            let mut record = log.begin(Draft::new(PageSize::MIN, 1, 1)).unwrap();
            let page = |number: usize| [number as u8; 512];
            let old = page(number);
            let old = (number > 0).then_some(&old[..]);
            record.patch(1, old, &page(number + 1)).unwrap();
            record.commit().unwrap();
        }
        let url: ReplicaUrl = "http://127.0.0.1:9/app".parse().unwrap();
        let options = ShipOptions::new(dir.path(), vec![url.clone()]);
        let hosts = Hosts::default();
        let mut link = Link::new(&options, &url, Some(&hosts));
        link.at = Some(Pos::ZERO);
        crate::ship::session::runtime().unwrap().block_on(async {
            let host = hosts.get(&url, &options.access, options.request_timeout);
            let mut turns = Vec::new();
            for _ in 0..TURNS_MAX {
                turns.push(host.turn().await);
            }
            let wait = Duration::from_millis(300);
            let waits = tokio::time::timeout(wait, link.drain(&mut |_| {})).await;
            assert!(waits.is_err(), "it did not wait for its turn");
            assert_eq!(link.batch.len(), TURN_RECORDS);
            // With one it sends, and nobody is there.
            turns.pop();
            let sent = link.drain(&mut |_| {}).await;
            assert_eq!(
                sent.unwrap_err().kind,
                super::super::client::FailureKind::Transient
            );
        });
    }
}
