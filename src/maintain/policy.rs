//! What is kept of a log, by age and by size; and what follows from it for the files that are there.

use std::time::Duration;

use mycelite_journal::{PastFile, RecordHeader, Txid};

/// Files that are made one at once at most, their bytes, and their states.
const GROUP_FILES_MAX: usize = 48;
const GROUP_BYTES_MAX: u64 = 64 << 20;
const GROUP_STATES_MAX: u64 = 900_000;
/// A file spans at most one in so many parts of the time after which everything is dropped.
const SPANS_PER_KEPT: u64 = 8;
/// So many short sealed segments side by side become one.
const JOIN_FILES: usize = 8;
/// A sealed segment is short up to so many records, or bytes.
const SHORT_RECORDS: u64 = 20_000;
const SHORT_BYTES: u64 = 8 << 20;

/// How long which states are kept; `None`: for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Every commit, with its record.
    pub keep_all: Option<Duration>,
    /// The last state of each minute.
    pub keep_minutes: Option<Duration>,
    /// The last state of each hour.
    pub keep_hours: Option<Duration>,
    /// The last state of each day; what is older is dropped.
    pub keep_days: Option<Duration>,
    /// Bytes that the log may take; `None`: as many as there is room for.
    pub log_bytes_max: Option<u64>,
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Default for Options {
    fn default() -> Options {
        Options {
            keep_all: Some(DAY),
            keep_minutes: Some(7 * DAY),
            keep_hours: Some(30 * DAY),
            keep_days: None,
            log_bytes_max: None,
        }
    }
}

/// What must not go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// States that are kept whatever their age: bookmarks and snapshots. Ascending.
    pub states: Vec<Txid>,
    /// Some replica lacks records after this transaction. It gets them as records until they are as old as `keep_minutes`.
    pub records_after: Option<Txid>,
}

/// The policy at one moment.
#[derive(Clone, Debug)]
pub(super) struct Policy<'a> {
    options: Options,
    needs: &'a Needs,
    now_us: u64,
    /// The log is longer than it may be.
    over: bool,
}

/// What is to be done with a run of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub first: Txid,
    pub last: Txid,
    /// Some states go, and all records.
    pub thin: bool,
}

impl<'a> Policy<'a> {
    pub fn new(mut options: Options, needs: &'a Needs, now_us: u64, over: bool) -> Policy<'a> {
        if over {
            // First of all what is easiest to miss: single commits that are older than an hour.
            let hour = Duration::from_secs(60 * 60);
            options.keep_all = Some(options.keep_all.map_or(hour, |keep| keep.min(hour)));
        }
        Policy {
            options,
            needs,
            now_us,
            over,
        }
    }

    /// When what is as old as `age` was recorded; 0 for what is never as old.
    fn before(&self, age: Option<Duration>) -> u64 {
        let age = age.map_or(u64::MAX, |age| age.as_micros() as u64);
        self.now_us.saturating_sub(age)
    }

    /// The time before which everything is dropped; 0 for none.
    pub fn dropped_before_us(&self) -> u64 {
        self.before(self.options.keep_days)
    }

    /// Of how many microseconds one state stays, among those of this time.
    fn step_us(&self, time_us: u64) -> u64 {
        let second = 1_000_000;
        if time_us >= self.before(self.options.keep_all) {
            1
        } else if time_us >= self.before(self.options.keep_minutes) {
            60 * second
        } else if time_us >= self.before(self.options.keep_hours) {
            60 * 60 * second
        } else {
            24 * 60 * 60 * second
        }
    }

    /// Whether a state stays, beside the one that follows it: the last of its minute, hour or day does.
    pub fn keeps(&self, state: &RecordHeader, next: &RecordHeader) -> bool {
        let step = self.step_us(state.time_us);
        state.time_us / step != next.time_us / step
            || self.needs.states.binary_search(&state.txid).is_ok()
    }

    /// Whether a file's records are old enough to be given up.
    fn is_old(&self, file: &PastFile) -> bool {
        let held = self
            .needs
            .records_after
            .is_some_and(|after| file.last > after)
            && file.last_time_us >= self.before(self.options.keep_minutes);
        file.last_time_us < self.before(self.options.keep_all) && (!held || self.over)
    }

    /// States that stay of a file, at most.
    fn states_max(&self, file: &PastFile) -> u64 {
        let step = self.step_us(file.last_time_us);
        let needed = self.needs.states.iter();
        let needed = needed.filter(|txid| file.first <= **txid && **txid <= file.last);
        (file.last_time_us - file.first_time_us.min(file.last_time_us)) / step
            + 2
            + needed.count() as u64
    }

    /// The next files to make one of, oldest first.
    pub fn next(&self, files: &[PastFile]) -> Option<Group> {
        self.next_thinning(files)
            .or_else(|| self.next_joining(files))
    }

    /// Does to a list of files what merging a group does to the files. Returns how many files, and how many states at least, go.
    pub fn apply(&self, files: &mut Vec<PastFile>, group: &Group) -> (u64, u64) {
        let inside = |file: &PastFile| file.first >= group.first && file.last <= group.last;
        let old: Vec<PastFile> = files.iter().filter(|file| inside(file)).cloned().collect();
        let Some((first, last)) = old.first().zip(old.last()) else {
            return (0, 0);
        };
        let before: u64 = old.iter().map(|file| file.states).sum();
        let mut merged = PastFile {
            first: first.first,
            first_time_us: first.first_time_us,
            states: before,
            bytes: old.iter().map(|file| file.bytes).sum(),
            merged: group.thin,
            ..last.clone()
        };
        if group.thin {
            merged.states = before.min(old.iter().map(|file| self.states_max(file)).sum());
            merged.states = merged.states.min(self.states_max(&merged));
        }
        let states = before - merged.states;
        let at = files.iter().position(inside).unwrap_or(0);
        files.retain(|file| !inside(file));
        files.insert(at, merged);
        (old.len() as u64, states)
    }

    fn next_thinning(&self, files: &[PastFile]) -> Option<Group> {
        let old = files.iter().take_while(|file| self.is_old(file)).count();
        let old = files.get(..old)?;
        // A merged one is done again when half of it can go; what is not yet merged comes first to last, without a gap.
        let start = old
            .iter()
            .position(|file| !file.merged || file.states > 2 * self.states_max(file))?;
        let rest = old.get(start..)?;
        let count = self.fitting(rest);
        let last = rest.get(count.max(1) - 1)?;
        Some(Group {
            first: rest.first()?.first,
            last: last.last,
            thin: true,
        })
    }

    /// How many files from the first on may be made one at once. Whole files are dropped, so that one must not reach over much of
    /// the time after which things are dropped.
    fn fitting(&self, files: &[PastFile]) -> usize {
        let span_max = self
            .options
            .keep_days
            .map_or(u64::MAX, |keep| keep.as_micros() as u64 / SPANS_PER_KEPT);
        let begin = files.first().map_or(0, |file| file.first_time_us);
        let (mut bytes, mut states) = (0, 0);
        let fits = |file: &&PastFile| {
            bytes += file.bytes;
            states += file.states;
            bytes <= GROUP_BYTES_MAX
                && states <= GROUP_STATES_MAX
                && file.last_time_us.saturating_sub(begin) <= span_max
        };
        files.iter().take(GROUP_FILES_MAX).take_while(fits).count()
    }

    /// Short segments side by side, which are made one without loss so that a page is put together from fewer files.
    fn next_joining(&self, files: &[PastFile]) -> Option<Group> {
        let is_short = |file: &PastFile| {
            !file.merged && file.states <= SHORT_RECORDS && file.bytes <= SHORT_BYTES
        };
        let run = files
            .windows(JOIN_FILES)
            .find(|run| run.iter().all(is_short) && self.fitting(run) == JOIN_FILES)?;
        Some(Group {
            first: run.first()?.first,
            last: run.last()?.last,
            thin: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_US: u64 = 60 * 60 * 1_000_000;
    const NOW_US: u64 = 1_800_000_000_000_000;

    fn file(first: u64, states: u64, hours_ago: (u64, u64), merged: bool) -> PastFile {
        PastFile {
            name: String::new(),
            first: Txid(first),
            last: Txid(first + 99),
            bytes: 1000,
            states,
            merged,
            first_time_us: NOW_US - hours_ago.0 * HOUR_US,
            last_time_us: NOW_US - hours_ago.1 * HOUR_US,
        }
    }

    fn next(files: &[PastFile], needs: &Needs, over: bool) -> Option<(u64, u64, bool)> {
        let group = Policy::new(Options::default(), needs, NOW_US, over).next(files)?;
        Some((group.first.0, group.last.0, group.thin))
    }

    #[test]
    fn records_of_a_day_stay() {
        let files = [
            file(1, 100, (40, 30), false),
            file(101, 100, (30, 23), false),
        ];
        assert_eq!(next(&files, &Needs::default(), false), Some((1, 100, true)));
        assert_eq!(next(&files[1..], &Needs::default(), false), None);
        assert_eq!(
            next(&files[1..], &Needs::default(), true),
            Some((101, 200, true))
        );
    }

    #[test]
    fn a_replica_that_is_behind_holds_records_for_a_week() {
        let needs = Needs {
            states: vec![],
            records_after: Some(Txid(50)),
        };
        let week = [file(1, 100, (200, 190), false)];
        assert_eq!(next(&week, &needs, false), Some((1, 100, true)));
        let days = [file(1, 100, (60, 50), false)];
        assert_eq!(next(&days, &needs, false), None);
        assert_eq!(next(&days, &needs, true), Some((1, 100, true)));
        let acked = Needs {
            records_after: Some(Txid(100)),
            ..needs
        };
        assert_eq!(next(&days, &acked, false), Some((1, 100, true)));
    }

    #[test]
    fn merged_files_are_done_again_when_half_can_go() {
        let hours = 40 * 24;
        let dense = [file(1, 100, (hours + 2, hours), true)];
        assert_eq!(next(&dense, &Needs::default(), false), Some((1, 100, true)));
        let sparse = [file(1, 4, (hours + 2, hours), true)];
        assert_eq!(next(&sparse, &Needs::default(), false), None);
    }

    #[test]
    fn short_segments_are_joined() {
        let files: Vec<PastFile> = (0..9)
            .map(|i| file(i * 100 + 1, 100, (2, 1), false))
            .collect();
        assert_eq!(
            next(&files, &Needs::default(), false),
            Some((1, 800, false))
        );
        assert_eq!(next(&files[..7], &Needs::default(), false), None);
    }

    #[test]
    fn no_file_reaches_over_much_of_what_is_kept() {
        let files: Vec<PastFile> = (0..9)
            .map(|i| file(i * 100 + 1, 100, (900 - 24 * i, 899 - 24 * i), false))
            .collect();
        let options = Options {
            keep_days: Some(Duration::from_secs(40 * 24 * 60 * 60)),
            ..Options::default()
        };
        let needs = Needs::default();
        let group = Policy::new(options, &needs, NOW_US, false).next(&files);
        assert_eq!(group.map(|group| group.last), Some(Txid(500)));
        let group = Policy::new(Options::default(), &needs, NOW_US, false).next(&files);
        assert_eq!(group.map(|group| group.last), Some(Txid(900)));
    }

    #[test]
    fn the_last_state_of_a_step_and_what_is_needed_stay() {
        let needs = Needs {
            states: vec![Txid(7)],
            records_after: None,
        };
        let policy = Policy::new(Options::default(), &needs, NOW_US, false);
        let at = |txid: u64, ago_us: u64| RecordHeader {
            txid: Txid(txid),
            time_us: NOW_US - ago_us,
            ..RecordHeader::default()
        };
        let (day, second) = (24 * HOUR_US, 1_000_000);
        assert!(policy.keeps(&at(1, 2 * second), &at(2, second)));
        // The clock's minutes: NOW_US is the begin of one.
        assert!(policy.keeps(&at(1, 2 * day + second), &at(2, 2 * day)));
        assert!(!policy.keeps(&at(1, 2 * day + 3 * second), &at(2, 2 * day + second)));
        assert!(policy.keeps(&at(7, 2 * day + 3 * second), &at(8, 2 * day + second)));
        assert!(!policy.keeps(
            &at(1, 10 * day + 120 * second),
            &at(2, 10 * day + 60 * second)
        ));
        assert!(!policy.keeps(&at(1, 40 * day - HOUR_US), &at(2, 40 * day - 2 * HOUR_US)));
    }
}
