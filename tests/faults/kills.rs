//! The writing process is killed after each call that changes the disk: nothing is lost of what it has written, and nobody
//! has booted. What SQLite keeps of its transactions is what the log keeps, no more and no less.

use crate::check::{DATABASES, Follower, State, check_logs, recover};
use crate::failed::write_last;
use crate::power::Recorded;
use crate::scenarios::{SCENARIOS, Scenario};
use crate::syscalls;
use crate::table::Table;
use crate::vfs::Side;
use mycelite_journal::{Checksum, FLAG_REBASE, RecordHeader, page_checksum};

/// Workloads of which an ordinary run tries each place, too.
const ALWAYS: [&str; 3] = ["autocommit/DELETE", "autocommit/WAL", "attached/DELETE"];

impl Recorded {
    /// The process is killed now; then what becomes of the files without us and with us.
    fn kill(&self) -> Result<Option<usize>, String> {
        let left = self.clear_left();
        self.disk.keep(&left);
        let scratch = self.scratch.path();
        self.put(&left, false);
        let kept = recover(&self.dir, scratch);
        let plain_answers = DATABASES.map(|name| write_last(&self.dir.join(name), Side::Plain));
        self.put(&left, true);
        syscalls::watch(&self.dir);
        if self.frozen {
            syscalls::freeze();
        }
        let answers = DATABASES.map(|name| write_last(&self.dir.join(name), Side::Ours));
        syscalls::unwatch();
        if plain_answers != answers {
            return Err(format!(
                "the next write: plain {plain_answers:?}, ours {answers:?}"
            ));
        }
        let written = answers.map(|answer| answer.as_deref() == Some(""));
        check_logs(&self.dir, scratch, &mut [], written)?;
        let mut rebased = 0;
        for (at, name) in DATABASES.into_iter().enumerate() {
            let (Some(state), true) = (&kept[at], written[at]) else {
                continue;
            };
            let mut follower = Follower::new(&self.dir.join(name));
            follower.advance()?;
            if self.has_commit_point {
                check_history(&self.history[at], &follower.records, state)
                    .map_err(|e| format!("{name}: {e}{}", follower.tail()))?;
            }
            rebased += follower.rebases();
        }
        Ok(Some(rebased))
    }
}

/// Where SQLite's image is one that was recorded, the log ends there, and goes on with the write that followed.
fn check_history(
    history: &[RecordHeader],
    records: &[RecordHeader],
    kept: &State,
) -> Result<(), String> {
    let ends: Vec<usize> = (1..=history.len())
        .filter(|&end| is_image(&history[end - 1], &kept.image))
        .collect();
    if ends.is_empty() {
        return Ok(());
    }
    let same = history.iter().zip(records);
    let same = same.take_while(|(a, b)| is_same(a, b)).count();
    let fits = |&end: &usize| {
        records.len() == end + 1 && same >= end && records[end].flags & FLAG_REBASE == 0
    };
    if ends.iter().any(fits) {
        return Ok(());
    }
    Err(format!(
        "SQLite keeps {ends:?} of {} transactions; the log has {same} of them, and {} records in all",
        history.len(),
        records.len()
    ))
}

/// Whether two records are of the same transaction: what is recorded by way of the WAL has a time of its own.
fn is_same(a: &RecordHeader, b: &RecordHeader) -> bool {
    let transaction = |record: &RecordHeader| {
        let kind = record.flags & FLAG_REBASE;
        (record.txid, record.post_checksum, record.page_count, kind)
    };
    transaction(a) == transaction(b)
}

/// Whether `image` is what the log says after `record`.
fn is_image(record: &RecordHeader, image: &[u8]) -> bool {
    let size = record.page_size.get() as usize;
    if image.len() != size * record.page_count as usize {
        return false;
    }
    let pages = (1..).zip(image.chunks_exact(size));
    let checksum = pages.fold(Checksum(0), |mut sum, (pgno, page)| {
        sum ^= page_checksum(pgno, page);
        sum
    });
    checksum == record.post_checksum
}

fn every_kill(table: &mut Table, scenario: &'static Scenario, modes: (&'static str, &'static str)) {
    let name = format!("{}/{}", scenario.name, modes.0);
    for frozen in [false, true] {
        let mut recorded = Recorded::new(scenario, modes, frozen);
        let calls = std::mem::take(&mut recorded.calls);
        let times = if frozen { "frozen" } else { "times" };
        for at in 0..=calls.len() {
            if let Some(call) = at.checked_sub(1).map(|at| &calls[at]) {
                recorded.disk.play(call);
            }
            table.run(&name, &format!("{name}/{times}/{at}"), || recorded.kill());
        }
    }
}

fn all(table: &mut Table, is_wanted: impl Fn(&str) -> bool) {
    for scenario in SCENARIOS.iter().filter(|scenario| !scenario.ends_history()) {
        for mode in scenario.modes {
            let name = format!("{}/{mode}", scenario.name);
            if is_wanted(&name) && table.wants(&format!("{name}/")) {
                every_kill(table, scenario, (mode, "FULL"));
            }
        }
    }
}

#[test]
fn kills() {
    let mut table = Table::new("kill", 40);
    all(&mut table, |_| true);
    table.finish();
}

/// The record of a transaction that SQLite rolls back is dropped, that of one that it keeps is kept.
#[test]
fn kills_between_preparing_and_publishing() {
    let mut table = Table::new("kill-each", 1);
    all(&mut table, |name| ALWAYS.contains(&name));
    table.finish();
}
