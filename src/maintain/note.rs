//! What the rounds of maintenance of one log remember: by which clock they counted ages, and what they could not do.
//!
//! Ages are counted by the machine's clock, and a clock may be wrong: one that is years ahead would make everything old at once.
//! So a clock that is far ahead of the last round's is believed only when it has been so for a day; until then ages are counted
//! from the last round's time, and less goes than might.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// Name of the file in the log's directory.
const NAME: &str = "maintained";
/// What is being written; of no use after a crash.
const NEW: &str = "maintained.new";
/// Longest file that is read, in bytes.
const BYTES_MAX: u64 = 4096;
const DAY_US: u64 = 24 * 60 * 60 * 1_000_000;
/// A clock that is further ahead than this is not believed at once, in µs: a week in which nobody wrote is nothing special.
const AHEAD_US: u64 = 8 * DAY_US;
/// The time is noted anew when it is another one by so much, in µs.
const GRAIN_US: u64 = 60 * 1_000_000;

/// The note of the last round.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// The time by which ages were counted last, µs since 1970; 0 before the first round.
    clock_us: u64,
    /// When a clock that is too far ahead was first seen, by that clock; 0 for none.
    ahead_us: u64,
    /// Why the log is longer than it may be; empty when it is not.
    pub over: String,
}

impl Note {
    /// Reads the note of the log in `dir`. One that is missing or damaged knows nothing: what follows is careful.
    pub fn read(dir: &Path) -> Note {
        let path = dir.join(NAME);
        let small = path.metadata().is_ok_and(|meta| meta.len() <= BYTES_MAX);
        let bytes = if small {
            std::fs::read(&path).ok()
        } else {
            None
        };
        bytes
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    /// Writes the note, if it says something new.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, dir: &Path, before: &Note) -> Result<()> {
        let same_time = self.clock_us.abs_diff(before.clock_us) < GRAIN_US;
        if same_time && self.ahead_us == before.ahead_us && self.over == before.over {
            return Ok(());
        }
        let (path, new) = (dir.join(NAME), dir.join(NEW));
        let text = serde_json::to_vec(self).map_err(|e| Error::new(ErrorKind::Internal, e))?;
        // Not synced: what a power cut takes makes the next rounds more careful, no more.
        File::create(&new)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| std::fs::rename(&new, &path))
            .map_err(|e| Error::io("writing the note of maintenance", &path, &e))
    }

    /// The time to count ages from, when the clock says `now_us` and the log's oldest record is of `oldest_us`; and why it is not
    /// the clock's, empty if it is.
    pub fn clock(&mut self, now_us: u64, oldest_us: u64) -> (u64, String) {
        let known = match self.clock_us {
            0 => oldest_us,
            known => known,
        };
        let ahead = now_us.saturating_sub(known);
        let lasted = now_us.checked_sub(self.ahead_us).unwrap_or(u64::MAX);
        // Twice as far ahead is another jump.
        let is_another = self.ahead_us == 0 || lasted > ahead.max(2 * AHEAD_US) / 2;
        if ahead <= AHEAD_US || (!is_another && lasted >= DAY_US) {
            (self.clock_us, self.ahead_us) = (now_us, 0);
            return (now_us, String::new());
        }
        self.clock_us = known;
        if is_another {
            self.ahead_us = now_us;
        }
        let why = format!(
            "the clock is {} days ahead of the last round: until it has been so for a day, ages are counted from {}",
            ahead / DAY_US,
            crate::moment::time(known)
        );
        (known, why)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const NOW: u64 = 1_800_000_000_000_000;
    const YEAR: u64 = 365 * DAY_US;

    #[test]
    fn a_clock_that_is_far_ahead_is_believed_when_it_has_lasted() {
        let mut note = Note::default();
        let mut clock = |now: u64| note.clock(now, NOW - DAY_US).0;
        assert_eq!(clock(NOW), NOW);
        assert_eq!(clock(NOW + AHEAD_US), NOW + AHEAD_US);
        let good = NOW + AHEAD_US;
        // Years ahead, for an hour, and back.
        assert_eq!(clock(good + 5 * YEAR), good);
        assert_eq!(clock(good + 5 * YEAR + DAY_US / 24), good);
        assert_eq!(clock(good + DAY_US), good + DAY_US);
        // Another time, at another place: that it was ahead before does not count.
        assert_eq!(clock(good + 20 * YEAR), good + DAY_US);
        assert_eq!(clock(good + 3 * YEAR), good + DAY_US);
        // It stays: nobody wrote for three years.
        let later = good + 3 * YEAR + DAY_US;
        assert_eq!(clock(later), later);
        assert_eq!(clock(later + 1), later + 1);
        // Behind is no danger.
        assert_eq!(clock(good), good);
    }

    #[test]
    fn rounds_that_are_far_apart_are_one_behind() {
        let mut note = Note::default();
        let month = 30 * DAY_US;
        let seen: Vec<u64> = (0..6).map(|n| note.clock(NOW + n * month, NOW).0).collect();
        assert_eq!(
            seen,
            [
                NOW,
                NOW,
                NOW + 2 * month,
                NOW + 2 * month,
                NOW + 4 * month,
                NOW + 4 * month
            ]
        );
    }

    #[test]
    fn a_first_round_of_an_old_log_waits_a_day() {
        let mut note = Note::default();
        let (clock, why) = note.clock(NOW, NOW - YEAR);
        assert_eq!(clock, NOW - YEAR);
        assert!(why.starts_with("the clock is 365 days ahead"), "{why}");
        assert_eq!(note.clock(NOW + DAY_US, NOW - YEAR).0, NOW + DAY_US);
    }

    #[test]
    fn what_was_noted_is_read_and_damage_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Note::read(dir.path()), Note::default());
        let mut note = Note::default();
        note.clock(NOW, NOW);
        note.over = "too long".to_owned();
        note.write(dir.path(), &Note::default()).unwrap();
        assert_eq!(Note::read(dir.path()), note);
        std::fs::write(dir.path().join(NAME), "{").unwrap();
        assert_eq!(Note::read(dir.path()), Note::default());
    }
}
