//! The file `timeline` of a log: on which timeline this boot of the machine records, and what it may have lost.
//!
//! A replica may hold records that the primary lost with the power, since they are sent before they are synced. So
//! everything that is recorded after a boot goes to a new timeline: where it begins is the newest Pos of which both are
//! sure. The file is on the disk before the first record of its timeline is in the log, and the number only grows, so
//! that a second power cut, which may take all those records, cannot lead to a second history under the same number.
//!
//! ```text
//!  0  8  magic "MYCELTLN"
//!  8 16  boot id
//! 24  8  timeline of the next record, if the log's head has no later one
//! 32  8  inode of the file `meta` beside it; 0 where there are none
//! 40 16  0
//! 56  8  XXH3-64 of bytes 0..56
//! ```
//! A file that is missing or not whole says nothing of this boot, so it counts as another boot's. With another inode the
//! log is a copy of the one that the file speaks of: while the original may live, a copy must not take its replicas, so
//! it stays on its timeline. (Whoever wants the copy to go on in the original's place removes this file.)

use crate::capture::stamp::{Stamp, boot_id};
use crate::error::{Error, Result};
use mycelite_journal::{Head, Timeline, Txid};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

const NAME: &str = "timeline";
const NAME_NEW: &str = "timeline.new";
const MAGIC: &[u8; 8] = b"MYCELTLN";
const BYTES: usize = 64;

/// On which timeline to record, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entered {
    /// Timeline of the next record, if the log's head has no later one.
    pub timeline: Timeline,
    /// Nothing was recorded in this boot yet: what was not synced before may be missing.
    pub is_new_boot: bool,
}

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Note {
    boot: [u8; 16],
    timeline: u64,
    inode: u64,
}

/// Finds the timeline for what this process records in the log in `dir`, which ends at `head`; a new one if the machine
/// was started since the log was written. `stamp` is that of the last clean close. The caller holds the log's lock.
///
/// # Errors
/// The file cannot be written; nothing may be recorded then.
pub fn enter(dir: &Path, head: &Head, stamp: Option<&Stamp>) -> Result<Entered> {
    let (boot, inode) = (boot_id(), inode_of(&dir.join("meta")));
    let known = std::fs::read(dir.join(NAME))
        .ok()
        .and_then(|bytes| Note::decode(&bytes));
    let last = head.pos.timeline.0.max(1);
    let ours = |timeline| Note {
        boot,
        timeline,
        inode,
    };
    let (note, is_new_boot) = match known {
        Some(note) if note.boot == boot => return Ok(entered(note.timeline, false)),
        // A copy that was closed cleanly lacks nothing: it goes on, and from now on it is known as itself.
        Some(note) if note.inode != inode && stamp.is_some() => {
            (ours(note.timeline.max(last)), true)
        }
        Some(note) if note.inode != inode => (Note { boot, ..note }, true),
        Some(note) => (ours(note.timeline.max(last).saturating_add(1)), true),
        None if head.pos.txid == Txid(0) => (ours(last), false),
        None if stamp.is_some_and(|stamp| stamp.is_of_boot(&boot)) => (ours(last), false),
        None => (ours(last.saturating_add(1)), true),
    };
    note.write(dir)?;
    Ok(entered(note.timeline, is_new_boot))
}

/// Makes `timeline` that of the next record of the log in `dir`, whatever boot recorded before.
///
/// # Errors
/// The file cannot be written.
#[cfg(feature = "cli")]
pub fn begin(dir: &Path, timeline: Timeline) -> Result<()> {
    let note = Note {
        boot: boot_id(),
        timeline: timeline.0,
        inode: inode_of(&dir.join("meta")),
    };
    note.write(dir)
}

fn entered(timeline: u64, is_new_boot: bool) -> Entered {
    Entered {
        timeline: Timeline(timeline),
        is_new_boot,
    }
}

impl Note {
    fn encode(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..24].copy_from_slice(&self.boot);
        bytes[24..32].copy_from_slice(&self.timeline.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.inode.to_le_bytes());
        let hash = xxh3_64(&bytes[..56]);
        bytes[56..].copy_from_slice(&hash.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Note> {
        let bytes: &[u8; BYTES] = bytes.try_into().ok()?;
        let (words, _) = bytes.as_chunks::<8>();
        let word = |n: usize| words.get(n).map_or(0, |word| u64::from_le_bytes(*word));
        if &bytes[..8] != MAGIC || xxh3_64(&bytes[..56]) != word(7) {
            return None;
        }
        let mut boot = [0; 16];
        boot.copy_from_slice(&bytes[8..24]);
        Some(Note {
            boot,
            timeline: word(3),
            inode: word(4),
        })
    }

    /// Writes the file, whole or not at all, and durably.
    fn write(&self, dir: &Path) -> Result<()> {
        let (new, path) = (dir.join(NAME_NEW), dir.join(NAME));
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(&self.encode())?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            sync_directory(dir)
        };
        write().map_err(|e| Error::io("cannot note the timeline in", &path, &e))
    }
}

#[cfg(unix)]
fn sync_directory(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(not(unix))]
fn sync_directory(_: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn inode_of(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map_or(0, |meta| meta.ino())
}

#[cfg(not(unix))]
fn inode_of(_: &Path) -> u64 {
    0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use mycelite_journal::Pos;

    fn head(timeline: u64, txid: u64) -> Head {
        Head {
            pos: Pos {
                timeline: Timeline(timeline),
                txid: Txid(txid),
                ..Pos::ZERO
            },
            ..Head::EMPTY
        }
    }

    fn note(dir: &Path) -> Note {
        Note::decode(&std::fs::read(dir.join(NAME)).unwrap()).unwrap()
    }

    /// What another boot of the machine leaves behind.
    fn reboot(dir: &Path) {
        let mut note = note(dir);
        note.boot[0] ^= 1;
        note.write(dir).unwrap();
    }

    fn log() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("meta"), "").unwrap();
        dir
    }

    #[test]
    fn a_new_log_starts_on_timeline_1_and_each_boot_on_the_next() {
        let dir = log();
        let dir = dir.path();
        assert_eq!(enter(dir, &head(0, 0), None).unwrap(), entered(1, false));
        assert_eq!(enter(dir, &head(1, 9), None).unwrap(), entered(1, false));
        reboot(dir);
        assert_eq!(enter(dir, &head(1, 5), None).unwrap(), entered(2, true));
        // Until the first record, and after it.
        assert_eq!(enter(dir, &head(1, 5), None).unwrap(), entered(2, false));
        // The records of timeline 2 were lost, too: their number is not used again.
        reboot(dir);
        assert_eq!(enter(dir, &head(1, 5), None).unwrap(), entered(3, true));
        reboot(dir);
        assert_eq!(enter(dir, &head(7, 6), None).unwrap(), entered(8, true));
    }

    #[test]
    fn what_is_not_known_counts_as_another_boot() {
        let dir = log();
        let dir = dir.path();
        assert_eq!(enter(dir, &head(4, 5), None).unwrap(), entered(5, true));
        let good = std::fs::read(dir.join(NAME)).unwrap();
        for bit in 0..BYTES * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Note::decode(&bytes), None, "bit {bit}");
        }
        std::fs::write(dir.join(NAME), &good[..63]).unwrap();
        assert_eq!(enter(dir, &head(5, 6), None).unwrap(), entered(6, true));
    }

    #[test]
    fn a_log_from_before_this_file_is_believed_when_its_stamp_is_of_this_boot() {
        let dir = log();
        let stamp = Stamp::take(&dir.path().join("meta"), &head(1, 5)).unwrap();
        let entering = enter(dir.path(), &head(1, 5), Some(&stamp)).unwrap();
        assert_eq!(entering, entered(1, false));
    }

    #[test]
    fn a_copy_stays_on_its_timeline() {
        let dir = log();
        let dir = dir.path();
        enter(dir, &head(0, 0), None).unwrap();
        reboot(dir);
        let copied = Note {
            inode: note(dir).inode + 1,
            ..note(dir)
        };
        copied.write(dir).unwrap();
        for _ in 0..2 {
            assert_eq!(enter(dir, &head(1, 5), None).unwrap(), entered(1, true));
            assert_eq!(enter(dir, &head(1, 6), None).unwrap(), entered(1, false));
            assert_eq!(note(dir).inode, copied.inode);
            reboot(dir);
        }
        let stamp = Stamp::take(&dir.join("meta"), &head(1, 5)).unwrap();
        let entering = enter(dir, &head(1, 5), Some(&stamp)).unwrap();
        assert_eq!(entering, entered(1, true));
        reboot(dir);
        assert_eq!(enter(dir, &head(1, 5), None).unwrap(), entered(2, true));
    }
}
