//! Several records in one write.

use crate::cursor::Head;
use crate::error::Result;
use crate::writer::{Log, State};

/// Bytes of records that wait in memory at most; a longer record is written at once.
const HELD_BYTES_MAX: usize = 256 << 10;

/// Complete records that are in memory and not yet in the file.
#[derive(Default)]
pub(crate) struct Held {
    bytes: Vec<u8>,
    /// Where the log stood before the first of them.
    before: Option<(u64, Head, bool)>,
}

impl Held {
    pub(crate) fn is_empty(&self) -> bool {
        self.before.is_none()
    }

    /// Whether another record of `bytes` bytes may wait.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.bytes.len() + bytes <= HELD_BYTES_MAX
    }
}

impl Log {
    /// A record waits that is `parts`, one behind the other.
    pub(crate) fn hold(&mut self, parts: [&[u8]; 3]) {
        if self.held.is_empty() {
            let now =
                |cursor: &crate::cursor::Cursor| (cursor.offset, cursor.head, cursor.whole_head);
            self.held.before = self.cursor.as_ref().map(now);
        }
        for part in parts {
            self.held.bytes.extend_from_slice(part);
        }
    }

    /// Puts the records into the file that [`RecordWriter::hold`](crate::RecordWriter::hold) has left in memory. Does nothing
    /// when there are none.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io): some of them may exist, which [`Log::refresh`] finds; until then the log stands where it
    /// stood before the first.
    pub fn write_held(&mut self) -> Result<()> {
        let Some((offset, _, _)) = self.held.before else {
            return Ok(());
        };
        let bytes = std::mem::take(&mut self.held.bytes);
        let written = self.write("writing records", |file| file.write_at(&bytes, offset));
        self.held.bytes = bytes;
        if written.is_err() {
            self.give_up_held();
        }
        self.held.bytes.clear();
        self.held.before = None;
        written
    }

    /// The log stands where it stood before the first record that waits.
    pub(crate) fn give_up_held(&mut self) {
        self.held.bytes.clear();
        if let (Some((offset, head, whole_head)), Some(cursor)) =
            (self.held.before.take(), &mut self.cursor)
        {
            (cursor.offset, cursor.head, cursor.whole_head) = (offset, head, whole_head);
            self.state = State::Idle;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{DatabaseId, Draft, Fault, FaultStorage, PageSize, Reader, RecordHeader, Txid};
    use std::io::ErrorKind;
    use std::sync::Arc;

    fn log(disk: &FaultStorage) -> Log {
        Log::create(Arc::new(disk.clone()), DatabaseId([1; 16]), 1).unwrap()
    }

    /// Another record, whose only page is full of `byte`; it waits, or is written at once.
    fn put(log: &mut Log, byte: u8, old: Option<u8>, wait: bool) -> Result<RecordHeader> {
        let mut record = log.begin(Draft::new(PageSize::MIN, 1, 1))?;
        let old = old.map(|old| [old; 512]);
        record.patch(1, old.as_ref().map(|old| &old[..]), &[byte; 512])?;
        if wait { record.hold() } else { record.commit() }
    }

    fn records(disk: &FaultStorage) -> Vec<Txid> {
        let mut reader = Reader::open(Arc::new(disk.clone())).unwrap();
        std::iter::from_fn(|| reader.next().unwrap())
            .map(|entry| entry.header.txid)
            .collect()
    }

    #[test]
    fn what_is_held_is_what_single_writes_would_give() {
        let (held, single) = (FaultStorage::new(), FaultStorage::new());
        let (mut one, mut other) = (log(&held), log(&single));
        for log in [&mut one, &mut other] {
            log.set_segment_bytes_max(3000);
        }
        for round in 0..200_u8 {
            let old = round.checked_sub(1);
            assert_eq!(
                put(&mut one, round, old, true).unwrap(),
                put(&mut other, round, old, false).unwrap()
            );
            assert_eq!(one.head(), other.head());
            if round % 7 == 0 {
                one.write_held().unwrap();
                assert_eq!(records(&held).len(), usize::from(round) + 1);
            }
            if round % 31 == 5 {
                one.sync().unwrap();
                other.sync().unwrap();
            }
        }
        one.write_held().unwrap();
        one.write_held().unwrap();
        assert_eq!(records(&held), records(&single));
        let names = crate::Storage::list(&single).unwrap();
        assert!(names.len() > 5, "{names:?}");
        for name in names.iter().filter(|name| name.ends_with(".seg")) {
            assert_eq!(held.contents(name), single.contents(name), "{name}");
        }
    }

    #[test]
    fn nobody_sees_a_record_that_waits() {
        let disk = FaultStorage::new();
        let mut log = log(&disk);
        put(&mut log, 1, None, false).unwrap();
        put(&mut log, 2, Some(1), true).unwrap();
        put(&mut log, 3, Some(2), true).unwrap();
        assert_eq!(log.head().pos.txid, Txid(3));
        assert_eq!(records(&disk), [Txid(1)]);
        assert!(log.prepared().is_err() && log.drop_tail().is_err());
        // Whoever takes the log up again has not written them.
        log.refresh().unwrap();
        assert_eq!(log.head().pos.txid, Txid(1));
        put(&mut log, 4, Some(1), true).unwrap();
        log.write_held().unwrap();
        assert_eq!(records(&disk), [Txid(1), Txid(2)]);
    }

    /// The disk is full, or a long record follows: each record is there once, or not at all.
    #[test]
    fn a_write_that_fails_leaves_the_log_where_it_was() {
        for at_call in 1..4 {
            let disk = FaultStorage::new();
            let mut log = log(&disk);
            put(&mut log, 1, None, false).unwrap();
            put(&mut log, 2, Some(1), true).unwrap();
            put(&mut log, 3, Some(2), true).unwrap();
            disk.fail(Fault {
                at_call,
                kind: ErrorKind::StorageFull,
                lasting: false,
            });
            let written = log.write_held();
            disk.heal();
            assert_eq!(written.is_err(), at_call == 1);
            log.refresh().unwrap();
            // The disk may have taken the first of them.
            let there = log.head().pos.txid.0;
            assert!(if written.is_ok() {
                there == 3
            } else {
                there < 3
            });
            assert_eq!(records(&disk).len() as u64, there);
            put(&mut log, 9, Some(there as u8), false).unwrap();
            assert_eq!(records(&disk).len() as u64, there + 1);
        }
    }

    #[test]
    fn long_records_are_written_behind_those_that_wait() {
        let disk = FaultStorage::new();
        let mut log = log(&disk);
        put(&mut log, 1, None, true).unwrap();
        let pages = u32::try_from(3 * HELD_BYTES_MAX / 512).unwrap();
        let mut record = log.begin(Draft::new(PageSize::MIN, pages, 2)).unwrap();
        for pgno in 2..=pages {
            let noise = std::array::from_fn::<u8, 512, _>(|at| ((at as u32 * pgno) >> 3) as u8);
            record.patch(pgno, None, &noise).unwrap();
        }
        record.hold().unwrap();
        assert_eq!(records(&disk).len(), 2);
        // As many as have room, and one more.
        for byte in 1..=250_u8 {
            let mut record = log.begin(Draft::new(PageSize::MIN, pages, 3)).unwrap();
            for pgno in [1, 2, 3, 4] {
                record
                    .patch(pgno, Some(&[byte - 1; 512]), &[byte; 512])
                    .unwrap();
            }
            record.hold().unwrap();
            assert!(log.held.bytes.len() <= HELD_BYTES_MAX);
        }
        log.write_held().unwrap();
        assert_eq!(records(&disk).len(), 252);
    }
}
