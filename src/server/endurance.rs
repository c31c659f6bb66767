//! What to do when following does not work: try again, and when; or give up.

use std::time::{Duration, Instant};

use crate::follow::{Failure, FailureKind, pause_after};

/// How often a follower that is to catch up once asks in a row a server that does not answer as it should.
const ATTEMPTS_ONCE: u32 = 5;
/// It goes on for so long without receiving anything where the server lives and says that it is busy.
const PATIENCE_ONCE: Duration = Duration::from_secs(10 * 60);
/// So often in a row must the histories differ before that is believed: a server that goes back itself is at an older
/// place for a moment.
const DIVERGED_ATTEMPTS: u32 = 3;

/// What to do when it does not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endurance {
    /// Try for ever; what only a person can change, rarely.
    Always,
    /// As that, but give up where the first answer is a refusal, and where the histories differ.
    Following,
    /// As that, and give up after a few attempts in a row, or after ten minutes of a server that only says that it is busy.
    Once,
}

/// Failures in a row: nothing came between them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FailureRow {
    failures: u32,
    /// Those at its end that were no answer of a server that is busy.
    unanswered: u32,
    /// When the first one was.
    since: Option<Instant>,
}

impl FailureRow {
    /// One more.
    pub fn add(&mut self, failure: &Failure) {
        self.failures += 1;
        self.unanswered = match failure.busy {
            true => 0,
            false => self.unanswered + 1,
        };
        self.since.get_or_insert_with(Instant::now);
    }

    /// How many they are.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether they are enough to believe that the histories differ.
    pub fn is_diverged(&self) -> bool {
        self.failures >= DIVERGED_ATTEMPTS
    }

    fn lasts(&self) -> Duration {
        self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl Endurance {
    /// Whether this failure, the last of `row`, is the end.
    pub(super) fn gives_up(self, failure: &Failure, row: &FailureRow, greeted: bool) -> bool {
        match (self, failure.kind) {
            (Endurance::Always, _) => false,
            (_, FailureKind::Diverged) => row.is_diverged(),
            (_, FailureKind::Refused) => !greeted || self == Endurance::Once,
            (Endurance::Once, FailureKind::Transient) => {
                row.unanswered >= ATTEMPTS_ONCE || row.lasts() >= PATIENCE_ONCE
            }
            (Endurance::Following, FailureKind::Transient) => false,
        }
    }

    /// How long to wait before the next attempt.
    pub(super) fn pause(self, failure: &Failure, row: &FailureRow) -> Duration {
        let soon = match failure.kind {
            // A name that is not there yet may be about to come, in a chain of servers that start together.
            FailureKind::Refused => failure.status == 404,
            FailureKind::Diverged => !row.is_diverged(),
            FailureKind::Transient => true,
        };
        let kind = match soon {
            true => FailureKind::Transient,
            false => failure.kind,
        };
        let dead_for = match self {
            // These attempts are numbered.
            Endurance::Once if !failure.busy => Duration::MAX,
            _ => row.lasts(),
        };
        pause_after(kind, row.failures - 1, dead_for)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};

    fn failure(busy: bool) -> Failure {
        let failure = Failure::transient(Error::new(ErrorKind::Network, "in vain"));
        Failure { busy, ..failure }
    }

    fn gives_up(row: &FailureRow, busy: bool) -> bool {
        Endurance::Once.gives_up(&failure(busy), row, false)
    }

    #[test]
    fn once_counts_attempts_without_an_answer_and_the_time_of_a_busy_server() {
        let mut row = FailureRow::default();
        for _ in 0..1000 {
            row.add(&failure(true));
            assert!(!gives_up(&row, true));
        }
        for _ in 1..ATTEMPTS_ONCE {
            row.add(&failure(false));
            assert!(!gives_up(&row, false));
        }
        // It lives after all.
        row.add(&failure(true));
        row.add(&failure(false));
        assert!(!gives_up(&row, false));
        for _ in 1..ATTEMPTS_ONCE {
            row.add(&failure(false));
        }
        assert!(gives_up(&row, false));

        let mut row = FailureRow {
            since: Instant::now().checked_sub(PATIENCE_ONCE),
            ..FailureRow::default()
        };
        row.add(&failure(true));
        assert_eq!(gives_up(&row, true), row.since.is_some());
        assert!(!Endurance::Following.gives_up(&failure(true), &row, false));
    }
}
