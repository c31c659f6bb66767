//! A new timeline: the primary has lost what it sent last (a power cut), and goes on from before that.
//!
//! The records that only this replica holds are copied to a parked tail, then the log is cut back to where the timeline
//! begins, then its first record is appended. Nothing of this happens before that record has arrived whole and proved to
//! be in order. A crash leaves the log where it was or cut back; the next request of the primary finds which.

use axum::http::StatusCode;
use mycelite_journal::{Head, Pos, Reader, RecordHeader, Txid};

use super::Limits;
use super::database::{Database, LogSlot};
use super::reply::Refusal;
use crate::maintain::MaintainLock;
use crate::parked::{Stage, park};

/// Directory in which the first record of the new timeline waits.
const INCOMING: &str = "incoming";

/// Records as they come from another machine.
pub(super) trait Records: std::io::Read {
    /// The header of the next record, which stays to be read; none at the end of the stream.
    fn peek_header(&mut self) -> Result<Option<RecordHeader>, Refusal>;

    /// Says whose fault a record was that could not be appended: the sender's, the line's, or ours.
    fn judge(&self, e: &mycelite_journal::Error, limits: &Limits) -> Refusal;
}

/// Makes the log follow the timeline that the next record of `stream` begins after `from`, a place in the log's past,
/// and appends that record.
///
/// # Errors
/// `PRECONDITION_FAILED` when the record does not begin a newer timeline at a place where this log has been: nothing has
/// changed then.
pub(super) fn enter(
    limits: &Limits,
    database: &Database,
    slot: &mut LogSlot,
    from: Pos,
    stream: &mut dyn Records,
) -> Result<(), Refusal> {
    let head = *slot.open(database)?.head();
    check(database, &head, from, stream)?;
    let id = slot.open(database)?.id();
    // Perhaps an earlier request was cut between storing and syncing.
    slot.sync(database)?;

    let failed = |e: mycelite_journal::Error| Refusal::from_log(&e);
    let stage = Stage::begin(&database.log_dir, INCOMING).map_err(failed)?;
    let mut staged = stage.log(id, from).map_err(failed)?;
    let raw_limits = limits.of_records();
    match staged.append_raw(stream, &raw_limits) {
        Ok(Some(_)) => {}
        Ok(None) => return Err(misfit(&head, from)),
        Err(e) => return Err(stream.judge(&e, limits)),
    }
    drop(staged);

    let tail = park(&database.log_dir, id, from, head.pos).map_err(failed)?;
    let mut history = database.change_history(limits.append_wait)?;
    // A cut and a sealing must not meet.
    let maintain = MaintainLock::take(&database.log_dir, limits.append_wait)
        .map_err(|e| Refusal::busy(&e.to_string()))?;
    let cut = slot.open(database)?.truncate(from);
    drop(maintain);
    // Also after a failure: the log may be either.
    history.changed(database);
    if let Err(e) = cut {
        slot.close();
        return Err(failed(e));
    }
    slot.sync(database)?;
    let mut incoming = stage.reader().map_err(failed)?;
    let Some(entry) = incoming.find(from.txid.next()).map_err(failed)? else {
        return Err(misfit(&head, from));
    };
    let log = slot.open(database)?;
    let begun = log.append_raw(&mut entry.raw(), &raw_limits);
    begun.map_err(failed)?;
    tracing::error!(
        "{}: timeline {} begins after transaction {}: its primary has not got what came after it here (a power cut, or another took over); \
         transactions {} to {} of timeline {} are parked in {}",
        database.name,
        entry.header.timeline,
        from.txid,
        tail.first,
        tail.last,
        tail.timeline,
        tail.path.display()
    );
    Ok(())
}

/// Whether the next record of `stream` begins a newer timeline after `from`, and this log was there once.
fn check(
    database: &Database,
    head: &Head,
    from: Pos,
    stream: &mut dyn Records,
) -> Result<(), Refusal> {
    if from.txid >= head.pos.txid || pos_at(database, from.txid)? != Some(from) {
        return Err(misfit(head, from));
    }
    let Some(first) = stream.peek_header()? else {
        return Err(misfit(head, from));
    };
    let follows = first.txid == from.txid.next() && first.pre_checksum == from.checksum;
    if follows && first.timeline > head.pos.timeline {
        return Ok(());
    }
    Err(Refusal::new(
        StatusCode::PRECONDITION_FAILED,
        &format!(
            "the batch follows {from}, the log ends at {} and takes a record there only on a newer timeline than {}",
            head.pos, head.pos.timeline
        ),
    ))
}

fn misfit(head: &Head, from: Pos) -> Refusal {
    Refusal::new(
        StatusCode::PRECONDITION_FAILED,
        &format!("the batch follows {from}, the log ends at {}", head.pos),
    )
}

/// The place that the oldest record kept follows. Blocking.
pub(super) fn begins_after(database: &Database) -> Result<Pos, Refusal> {
    let reader = Reader::open(database.storage()).and_then(|reader| reader.follows());
    let follows = reader.map_err(|e| Refusal::from_log(&e))?;
    Ok(follows.unwrap_or(Pos::ZERO))
}

/// Where the log was after transaction `txid`; `None` if it does not know (any more, or yet). Blocking.
pub(super) fn pos_at(database: &Database, txid: Txid) -> Result<Option<Pos>, Refusal> {
    let failed = |e: mycelite_journal::Error| Refusal::from_log(&e);
    let mut reader = Reader::open(database.storage()).map_err(failed)?;
    // Before the first record there is a place, too.
    let follows = reader.follows().map_err(failed)?;
    if follows.unwrap_or(Pos::ZERO).txid == txid {
        return Ok(Some(follows.unwrap_or(Pos::ZERO)));
    }
    let entry = reader.find(txid).map_err(failed)?;
    Ok(entry.map(|entry| entry.header.pos()))
}
