//! The end of a log that others write, found without reading while nothing moves.

use super::journal_error;
use crate::error::Result;
use crate::lock::Mutex;
use mycelite_journal::{Archive, Txid, parse_segment_name};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A file or directory that changed within this time may change again without another time stamp.
const GRAIN: Duration = Duration::from_millis(50);

/// Where the log ends, as last found.
#[derive(Default)]
pub struct Head(Mutex<Option<Found>>);

/// The end, and a number that is another one whenever the log may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The last transaction; none while nothing is recorded.
    pub txid: Option<Txid>,
    /// Grows with each look that found something new, or could not tell.
    pub version: u64,
}

struct Found {
    looks: Option<Looks>,
    place: Place,
}

/// What tells that nothing has moved: a record makes the last segment longer, everything else changes the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Looks {
    dir: SystemTime,
    segment: PathBuf,
    length: u64,
    time: SystemTime,
}

impl Looks {
    fn of(dir: &Path, segment: &Path) -> Option<Looks> {
        let file = std::fs::metadata(segment).ok()?;
        Some(Looks {
            dir: std::fs::metadata(dir).ok()?.modified().ok()?,
            segment: segment.to_path_buf(),
            length: file.len(),
            time: file.modified().ok()?,
        })
    }

    /// Whether the times are so old that a later change has later ones.
    fn are_settled(&self) -> bool {
        let newest = self.dir.max(self.time);
        SystemTime::now()
            .duration_since(newest)
            .is_ok_and(|age| age > GRAIN)
    }
}

impl Head {
    /// The end of `archive`, the log in `dir`. Two system calls while nothing moves.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn find(&self, archive: &Archive, dir: &Path) -> Result<Place> {
        let mut found = self.0.lock();
        let version = match found.as_ref() {
            Some(Found {
                looks: Some(looks),
                place,
            }) if Looks::of(dir, &looks.segment).as_ref() == Some(looks) => return Ok(*place),
            Some(found) => found.place.version + 1,
            None => 1,
        };
        // Looked at before the log is read: what comes in between is found at the next look.
        let looks = last_segment(dir)
            .and_then(|segment| Looks::of(dir, &segment))
            .filter(Looks::are_settled);
        let txid = archive.head().map_err(journal_error)?;
        let place = Place { txid, version };
        *found = Some(Found { looks, place });
        Ok(place)
    }
}

fn last_segment(dir: &Path) -> Option<PathBuf> {
    let names = std::fs::read_dir(dir).ok()?;
    let segments = names.filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        Some((parse_segment_name(&name)?, name))
    });
    segments.max().map(|(_, name)| dir.join(name))
}
