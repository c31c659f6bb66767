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
