//! Keeps a log small and its past fast to open: seals segments, writes snapshots, compacts and drops by rule.
//!
//! It works on files that nobody appends to any more, under a lock of its own ([`MaintainLock`]), so that neither writers nor
//! readers wait for it. [`run`] is one round, made of steps, each of one file: the lock is free between them. It is done by the process
//! that writes (on a thread for all its databases, [`Maintainer`]), by `mycelite serve`, and by `mycelite compact`.

mod handle;
mod lock;
mod note;
mod pins;
mod policy;
#[cfg(test)]
mod tests;
mod thread;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mycelite_journal::{
    Archive, Error as LogError, FileStorage, Keep, Pace, PastFile, RecordHeader, Snapshot, Storage,
    Txid, drop_before_if, merge_if, parse_segment_name, seal_at,
};
use serde::Serialize;

use crate::bookmarks;
use crate::error::{Error, ErrorKind, Result};
use crate::parked::is_history;
use note::Note;
use policy::{Group, Policy};

pub use handle::Maintainer;
pub use lock::MaintainLock;
pub use pins::{Pin, Standstill};
pub use policy::{Needs, Options};

/// Pause between two steps, in which whoever waits for the lock gets it.
const BETWEEN_STEPS: Duration = Duration::from_millis(20);
/// How often a round begins a step anew because somebody has bookmarked or opened meanwhile what was about to go.
const REFUSALS_MAX: u32 = 8;

/// What one round has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Done {
    /// Segments sealed.
    pub sealed: u32,
    /// Snapshots written.
    pub snapshots: u32,
    /// Files that others were made of.
    pub merged_files: u64,
    /// States that can no longer be opened, by compaction.
    pub thinned: u64,
    /// The state that the history begins with now, when older ones were dropped; else 0.
    pub begins_at: u64,
    /// Bytes of the log before and after.
    pub bytes_before: u64,
    /// As `bytes_before`.
    pub bytes_after: u64,
    /// Why the log is longer than it may be; empty when it is not.
    pub over: String,
    /// Why ages are not counted from what the clock says; empty when they are.
    pub clock: String,
    /// Somebody else is at it, and this round did nothing more.
    pub busy: bool,
    /// Steps that were given up because of a new bookmark or reader.
    #[serde(skip)]
    refusals: u32,
}

/// Why the log in `dir` was longer than `log_bytes_max` allows when it was last looked after; empty when it was not.
#[must_use]
pub fn over(dir: &Path) -> String {
    Note::read(dir).over
}

/// One round of maintenance of the log in `dir`, until nothing is left to do. `needs` is asked before each step.
///
/// # Errors
/// The log is damaged or cannot be read or written; it is as it was before the step that failed. The end that `pace` asked for
/// is no error.
pub fn run(
    dir: &Path,
    options: &Options,
    needs: &dyn Fn() -> Needs,
    pace: &dyn Pace,
) -> Result<Done> {
    run_at(dir, options, needs, pace, &now_us)
}

/// As [`run`], by the clock `now_us`, which says µs since 1970.
///
/// # Errors
/// As [`run`].
pub fn run_at(
    dir: &Path,
    options: &Options,
    needs: &dyn Fn() -> Needs,
    pace: &dyn Pace,
    now_us: &dyn Fn() -> u64,
) -> Result<Done> {
    let mut course = Course::begin(dir);
    while course.step(options, needs(), pace, now_us())? {
        std::thread::sleep(BETWEEN_STEPS);
    }
    Ok(course.end())
}

/// A round that is under way.
struct Course {
    dir: PathBuf,
    storage: Arc<dyn Storage>,
    done: Done,
}

impl Course {
    fn begin(dir: &Path) -> Course {
        let storage: Arc<dyn Storage> = Arc::new(FileStorage::new(dir));
        let done = Done {
            bytes_before: log_bytes(&*storage).unwrap_or(0),
            ..Done::default()
        };
        Course {
            dir: dir.to_path_buf(),
            storage,
            done,
        }
    }

    /// Does the next step: whether there may be more. The end that `pace` asked for is no error.
    fn step(
        &mut self,
        options: &Options,
        needs: Needs,
        pace: &dyn Pace,
        now_us: u64,
    ) -> Result<bool> {
        let round = Round {
            dir: &self.dir,
            storage: &self.storage,
            options,
            pace,
            now_us,
        };
        match round.step(needs, &mut self.done) {
            Ok(more) => Ok(more && self.done.refusals <= REFUSALS_MAX),
            Err(Failure::Log(LogError::Stopped)) => Ok(false),
            Err(Failure::Log(error)) => Err(log_error(error)),
            Err(Failure::Own(error)) => Err(error),
        }
    }

    /// What was done.
    fn end(mut self) -> Done {
        self.done.bytes_after = log_bytes(&*self.storage).unwrap_or(0);
        self.done
    }
}

/// What [`run`] would do, as far as that can be told without doing it: `thinned` is at least so many, `bytes_after` not known.
///
/// # Errors
/// The log is damaged or cannot be read.
pub fn dry_run(dir: &Path, options: &Options, needs: &dyn Fn() -> Needs) -> Result<Done> {
    let storage: Arc<dyn Storage> = Arc::new(FileStorage::new(dir));
    let archive = Archive::open(Arc::clone(&storage)).map_err(log_error)?;
    let mut files = archive.files().map_err(log_error)?;
    let bytes = log_bytes(&*storage).map_err(log_error)?;
    let mut needs = needs();
    needs.states.extend(Kept::hold(dir)?.states());
    needs.states.extend(archive.snapshots().map_err(log_error)?);
    needs.states.sort_unstable();
    let over = options.log_bytes_max.is_some_and(|max| bytes > max);
    let oldest_us = files.first().map_or(0, |file| file.first_time_us);
    let (now_us, clock) = Note::read(dir).clock(now_us(), oldest_us);
    let policy = Policy::new(*options, &needs, now_us, over);
    let mut done = Done {
        clock,
        sealed: u32::try_from(backlog(dir)).unwrap_or(u32::MAX),
        bytes_before: bytes,
        bytes_after: bytes,
        ..Done::default()
    };
    while let Some(group) = policy.next(&files) {
        let (count, states) = policy.apply(&mut files, &group);
        done.merged_files += count;
        done.thinned += states;
    }
    Ok(done)
}

/// What people and programs hold on to. While it lives, no bookmark is set, and no reader opens a state.
struct Kept {
    _bookmarks: bookmarks::Held,
    _readers: Standstill,
    /// Bookmarked states, ascending.
    marked: Vec<Txid>,
    /// States that readers have open, ascending.
    open: Vec<Txid>,
}

impl Kept {
    fn hold(dir: &Path) -> Result<Kept> {
        let held = bookmarks::hold(dir)?;
        let marked = bookmarks::list(dir)?;
        let (readers, open) = pins::hold(dir)?;
        Ok(Kept {
            _bookmarks: held,
            _readers: readers,
            marked: marked.iter().map(|mark| mark.pos.txid).collect(),
            open,
        })
    }

    fn states(&self) -> impl Iterator<Item = Txid> {
        self.marked.iter().chain(&self.open).copied()
    }
}

/// The oldest state that somebody holds on to, and in what words.
fn first_held(kept: &Kept) -> Option<(Txid, &'static str)> {
    let marked = kept.marked.first().map(|at| (*at, "the bookmark at"));
    let open = kept.open.iter().find(|at| at.0 > 0);
    let open = open.map(|at| (*at, "a reader that has open"));
    marked.into_iter().chain(open).min_by_key(|held| held.0)
}

/// Writes a snapshot as of `txid`, or of the newest transaction; how many bytes it has.
///
/// # Errors
/// The log has no such state, is damaged, or is being maintained for longer than `patience`.
pub fn snapshot(dir: &Path, txid: Option<Txid>, patience: Duration) -> Result<Snapshot> {
    let storage: Arc<dyn Storage> = Arc::new(FileStorage::new(dir));
    let archive = Archive::open(storage).map_err(log_error)?;
    let _lock = MaintainLock::take(dir, patience)?;
    let txid = match txid {
        Some(txid) => txid,
        None => archive.head().map_err(log_error)?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "nothing is recorded yet").at(dir.display())
        })?,
    };
    Snapshot::write(&archive, txid).map_err(log_error)
}

enum Failure {
    Log(LogError),
    Own(Error),
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Failure {
        Failure::Log(error)
    }
}

/// One look at what there is to do.
struct Round<'a> {
    dir: &'a Path,
    storage: &'a Arc<dyn Storage>,
    options: &'a Options,
    pace: &'a dyn Pace,
    now_us: u64,
}

impl Round<'_> {
    /// Does the next thing, under the lock. Returns whether there may be more.
    fn step(&self, mut needs: Needs, done: &mut Done) -> Result<bool, Failure> {
        let Some(_lock) = MaintainLock::try_take(self.dir).map_err(Failure::Own)? else {
            done.busy = true;
            return Ok(false);
        };
        if seal_at(&**self.storage, Txid(u64::MAX), self.pace)?.is_some() {
            done.sealed += 1;
            return Ok(true);
        }
        let archive = Archive::open(Arc::clone(self.storage))?;
        let files = archive.files()?;
        if snapshot_due(&archive, &files, self.pace)? {
            done.snapshots += 1;
            return Ok(true);
        }
        // Held for this look only: each step looks again before anything goes.
        let kept = Kept::hold(self.dir).map_err(Failure::Own)?;
        needs.states.extend(kept.states());
        let first_held = first_held(&kept);
        drop(kept);
        needs.states.extend(archive.snapshots()?);
        needs.states.sort_unstable();
        let bytes = log_bytes(&**self.storage)?;
        let over = self.options.log_bytes_max.is_some_and(|max| bytes > max);
        let before = Note::read(self.dir);
        let mut note = before.clone();
        let oldest_us = files.first().map_or(0, |file| file.first_time_us);
        let (now_us, clock) = note.clock(self.now_us, oldest_us);
        done.clock = clock;
        let policy = Policy::new(*self.options, &needs, now_us, over);
        let first_needed = first_held.map_or(Txid(u64::MAX), |held| held.0);
        // What goes altogether goes first: in one file with what is younger it would stay.
        let aged = aged(&policy, &files, first_needed);
        let more = match (aged, policy.next(&files)) {
            (Some(begin), _) if self.drop_up_to(&archive, begin, done)? => true,
            (_, Some(group)) => self.compact(&archive, &policy, group, &needs, done)?,
            (_, None) => match shorter(&files, bytes, self.options, first_needed) {
                Some(begin) => self.drop_up_to(&archive, begin, done)?,
                None => false,
            },
        };
        done.over = match self.options.log_bytes_max.filter(|max| bytes > *max) {
            Some(max) if !more => too_long(bytes, max, first_held),
            _ => String::new(),
        };
        note.over.clone_from(&done.over);
        note.write(self.dir, &before).map_err(Failure::Own)?;
        Ok(more)
    }

    /// Makes one file of a group; not if somebody has begun to hold on to what would go.
    fn compact(
        &self,
        archive: &Archive,
        policy: &Policy<'_>,
        group: Group,
        needs: &Needs,
        done: &mut Done,
    ) -> Result<bool, Failure> {
        let mut some = |state: &RecordHeader, next: &RecordHeader| policy.keeps(state, next);
        let keep = match group.thin {
            true => Keep::Some(&mut some),
            false => Keep::All,
        };
        let (mut held, mut refused) = (None, None);
        let mut last_look = |stay: &[Txid]| {
            if !group.thin {
                return true;
            }
            let goes = |txid: Txid| {
                (group.first..=group.last).contains(&txid)
                    && needs.states.binary_search(&txid).is_err()
                    && stay.binary_search(&txid).is_err()
            };
            match Kept::hold(self.dir) {
                Ok(kept) if kept.states().any(goes) => refused = Some(Ok(())),
                Ok(kept) => held = Some(kept),
                Err(error) => refused = Some(Err(error)),
            }
            refused.is_none()
        };
        let (first, last) = (group.first, group.last);
        let merged = merge_if(archive, first, last, keep, self.pace, &mut last_look);
        drop(held);
        if let Some(refused) = refused {
            refused.map_err(Failure::Own)?;
            done.refusals += 1;
            return Ok(true);
        }
        let merged = merged?;
        done.merged_files += merged.files;
        done.thinned += merged.states_before - merged.states_after;
        Ok(true)
    }

    /// Makes the state after `begin` the oldest one. Returns whether anything went.
    fn drop_up_to(&self, archive: &Archive, begin: Txid, done: &mut Done) -> Result<bool, Failure> {
        Snapshot::write_at(archive, begin, self.pace)?;
        let (mut held, mut refused) = (None, None);
        let mut last_look = || {
            match Kept::hold(self.dir) {
                Ok(kept) if first_held(&kept).is_some_and(|(at, _)| at < begin) => {
                    refused = Some(Ok(()));
                }
                Ok(kept) => held = Some(kept),
                Err(error) => refused = Some(Err(error)),
            }
            refused.is_none()
        };
        let freed = drop_before_if(archive, begin, &mut last_look);
        drop(held);
        if let Some(refused) = refused {
            refused.map_err(Failure::Own)?;
            done.refusals += 1;
            return Ok(true);
        }
        let went = freed? > 0;
        if went {
            done.begins_at = begin.0;
        }
        Ok(went)
    }
}

/// The state that the history is to begin with because what is older is too old; `None` where nothing is.
fn aged(policy: &Policy<'_>, files: &[PastFile], first_needed: Txid) -> Option<Txid> {
    files
        .iter()
        .take_while(|file| file.last_time_us < policy.dropped_before_us())
        .filter(|file| file.last <= first_needed)
        .map(|file| file.last)
        .last()
}

fn too_long(bytes: u64, max: u64, first_held: Option<(Txid, &str)>) -> String {
    let held = match first_held {
        Some((txid, what)) => format!("{what} transaction {txid} holds the rest"),
        None => "what is left is the newest part".to_string(),
    };
    format!(
        "the log has {bytes} bytes, log_bytes_max is {max}, and nothing more may be dropped: {held}"
    )
}

/// Writes a snapshot if one is due: of the end of the newest sealed segment, which no power cut takes back.
fn snapshot_due(archive: &Archive, files: &[PastFile], pace: &dyn Pace) -> Result<bool, LogError> {
    let Some(end) = files.last().map(|file| file.last) else {
        return Ok(false);
    };
    if !Snapshot::is_due_at(archive, end)? {
        return Ok(false);
    }
    Snapshot::write_at(archive, end, pace)?;
    Ok(true)
}

/// Where the history is to begin so that the log is as short as it may be: at the end of as few of its oldest files as that
/// takes; `None` if none may go.
fn shorter(files: &[PastFile], bytes: u64, options: &Options, first_needed: Txid) -> Option<Txid> {
    let mut left = bytes;
    let mut begin = None;
    for file in files.iter().take_while(|file| file.last <= first_needed) {
        if options.log_bytes_max.is_none_or(|max| left <= max) {
            break;
        }
        left = left.saturating_sub(file.bytes);
        begin = Some(file.last);
    }
    begin
}

/// Bytes of the segments and snapshots.
fn log_bytes(storage: &dyn Storage) -> Result<u64, LogError> {
    let mut bytes = 0;
    for name in list(storage)? {
        if is_history(&name) {
            // Removed since it was listed: no bytes.
            bytes += storage.size(&name).unwrap_or(0);
        }
    }
    Ok(bytes)
}

fn list(storage: &dyn Storage) -> Result<Vec<String>, LogError> {
    storage.list().map_err(|source| LogError::Io {
        what: "listing the log directory",
        path: storage.display(""),
        source,
    })
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_micros()).unwrap_or(u64::MAX))
}

/// How many raw segments of the log in `dir` wait to be sealed; 0 when it cannot be looked at.
pub(crate) fn backlog(dir: &Path) -> usize {
    let names = FileStorage::new(dir).list().unwrap_or_default();
    let raw = names
        .iter()
        .filter(|name| parse_segment_name(name).is_some());
    raw.count().saturating_sub(1)
}

/// An error of the log as an error of the program.
fn log_error(error: LogError) -> Error {
    let kind = match &error {
        LogError::Io { .. } => ErrorKind::Io,
        LogError::Version { .. } => ErrorKind::Unsupported,
        LogError::NotFound { .. } => ErrorKind::NotFound,
        LogError::Misuse(_) => ErrorKind::Usage,
        _ => ErrorKind::Corrupt,
    };
    Error::new(kind, error)
}
