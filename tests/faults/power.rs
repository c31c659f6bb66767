//! The power is cut at each call that changes the disk: on the database, its journals, its WAL and the log's directory.

use crate::check::{DATABASES, Follower, check_logs, compare, recover};
use crate::common::Random;
use crate::disk::Disk;
use crate::failed::write_last;
use crate::scenarios::{BACKGROUND, SCENARIOS, Scenario, Step};
use crate::syscalls::{self, Call};
use crate::table::Table;
use crate::vfs::Side;
use crate::world::{Manner, World, copy_dir};
use mycelite_journal::RecordHeader;
use std::fs;
use std::path::{Path, PathBuf};

/// One workload's life as the disk saw it.
pub struct Recorded {
    pub scratch: tempfile::TempDir,
    /// Where it ran. What a cut leaves is put there too: super-journals hold full names.
    pub dir: PathBuf,
    pub disk: Disk,
    pub calls: Vec<Call>,
    /// The records of each database's log.
    pub history: Vec<Vec<RecordHeader>>,
    /// What is on the disk says whether a transaction is committed.
    pub has_commit_point: bool,
    /// SQLite itself promises that this mode survives.
    is_safe: bool,
    /// Every commit that SQLite keeps has its own record, whatever the log lost: the WAL tells.
    keeps_records: bool,
    /// The file system's word on what was written when is worth nothing.
    pub frozen: bool,
}

/// How often the power is cut at the same place, with another outcome.
const VARIANTS: u64 = 2;

fn boot(scratch: &Path, number: u32) {
    let path = scratch.join(format!("boot-{number}"));
    fs::write(&path, format!("boot {number}\n")).unwrap();
    syscalls::set_boot_id(&path);
}

impl Recorded {
    pub fn new(scenario: &Scenario, modes: (&'static str, &'static str), frozen: bool) -> Recorded {
        crate::vfs::load();
        let scratch = crate::common::scratch();
        boot(scratch.path(), 1);
        let template = World::prepare(scratch.path(), Side::Ours, modes, scenario);
        let dir = scratch.path().join("run");
        copy_dir(&template, &dir);
        // This is no copy of a log that may live elsewhere.
        let _ = fs::remove_file(mycelite::database::log_dir(&dir.join("app.db")).join("timeline"));
        let numbers = syscalls::watch(&dir);
        let disk = Disk::of(&dir, &numbers);
        if frozen {
            syscalls::freeze();
        }
        let mut world = World::new(dir.clone(), Side::Ours, modes, Manner::GoesOn);
        world.run(scenario, (None, None, None), true, || {});
        let calls = syscalls::unwatch();
        let history = DATABASES.map(|name| {
            let mut follower = Follower::new(&dir.join(name));
            follower.advance().unwrap();
            follower.records
        });
        let outsiders = |step: &Step| matches!(step, Step::Foreign(_));
        Recorded {
            keeps_records: matches!(modes.0, "WAL" | BACKGROUND)
                && matches!(modes.1, "EXTRA" | "FULL")
                // These leave WAL mode, or begin outside it.
                && !matches!(scenario.name, "switches" | "attached" | "create")
                && !scenario.steps.iter().any(outsiders),
            dir,
            scratch,
            disk,
            calls,
            history: history.into(),
            frozen,
            // Where the end of a journal is a name that goes, only EXTRA waits until it is gone.
            has_commit_point: !matches!(modes.0, "OFF" | "MEMORY"),
            is_safe: !matches!(modes.0, "OFF" | "MEMORY")
                && (modes.1 == "EXTRA" || modes.1 == "FULL" && modes.0 != "DELETE"),
        }
    }

    /// The power is cut now: the files on the disk, and then what becomes of them without us and with us.
    fn cut(&self, seed: u64) -> Result<Option<usize>, String> {
        let left = self.clear_left();
        self.disk.cut(&mut Random(seed), &left);
        boot(self.scratch.path(), 2);
        let scratch = self.scratch.path();
        self.put(&left, false);
        let plain_answers = DATABASES.map(|name| write_last(&self.dir.join(name), Side::Plain));
        let plain = recover(&self.dir, scratch);
        if self.is_safe {
            for state in plain.iter().flatten() {
                if state.says[0] != "ok|" {
                    return Err(format!("not SQLite's promise: {}", state.says[0]));
                }
            }
        }
        self.put(&left, true);
        let survived = self.survived()?;
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
        for (at, ours) in recover(&self.dir, scratch).iter().enumerate() {
            let name = DATABASES[at];
            match (&plain[at], ours) {
                (Some(plain), Some(ours)) => {
                    if plain.says != ours.says {
                        return Err(format!(
                            "{name}: plain says {:?}, ours {:?}",
                            plain.says, ours.says
                        ));
                    }
                    compare(&plain.image, &ours.image)
                        .map_err(|e| format!("{name} is not as without us: {e}"))?;
                }
                (None, None) => {}
                _ => return Err(format!("{name} is there on one side only")),
            }
        }
        let written = answers.map(|answer| answer.as_deref() == Some(""));
        check_logs(&self.dir, scratch, &mut [], written)?;
        let rebased = self.check_history(&survived, written)?;
        if self.keeps_records && rebased > 0 {
            return Err("the log was re-based, though the WAL has each commit".into());
        }
        Ok(Some(rebased))
    }

    /// Where the disk's content is put; there is nothing yet.
    pub fn clear_left(&self) -> PathBuf {
        let left = self.scratch.path().join("left");
        let _ = fs::remove_dir_all(&left);
        left
    }

    /// Puts the files that are left where they were, with the log or without.
    pub fn put(&self, left: &Path, with_log: bool) {
        let _ = fs::remove_dir_all(&self.dir);
        fs::create_dir(&self.dir).unwrap();
        for entry in fs::read_dir(left).unwrap() {
            let entry = entry.unwrap();
            let target = self.dir.join(entry.file_name());
            if !entry.file_type().unwrap().is_dir() {
                fs::copy(entry.path(), target).unwrap();
            } else if with_log {
                copy_dir(&entry.path(), &target);
            }
        }
    }

    /// The records that can be read before anything is repaired: the beginning of the history.
    fn survived(&self) -> Result<Vec<Vec<RecordHeader>>, String> {
        let mut survived = Vec::new();
        for (at, name) in DATABASES.into_iter().enumerate() {
            let mut follower = Follower::new(&self.dir.join(name));
            // What cannot be read is for the writer to repair.
            let _ = follower.advance();
            if !self.history[at].starts_with(&follower.records) {
                return Err(format!(
                    "{name}: what is left of the log is not what was in it"
                ));
            }
            survived.push(follower.records);
        }
        Ok(survived)
    }

    /// The log goes on from what survived. Answers how many records were re-based.
    fn check_history(
        &self,
        survived: &[Vec<RecordHeader>],
        written: [bool; 2],
    ) -> Result<usize, String> {
        let mut rebased = 0;
        for (at, name) in DATABASES
            .into_iter()
            .enumerate()
            .filter(|(at, _)| written[*at])
        {
            let mut follower = Follower::new(&self.dir.join(name));
            follower.advance()?;
            if !follower.records.starts_with(&survived[at]) {
                return Err(format!(
                    "{name}: a record that could be read was taken back"
                ));
            }
            follower.records.drain(..survived[at].len());
            // A replica may hold what the power cut took: nothing may follow it under the same name.
            let before = survived[at].iter().map(|record| record.timeline).max();
            let is_new = |record: &RecordHeader| Some(record.timeline) > before;
            if self.frozen && before.is_some() && !follower.records.iter().all(is_new) {
                return Err(format!(
                    "{name}: after the boot the log goes on on its timeline"
                ));
            }
            rebased += follower.rebases();
        }
        Ok(rebased)
    }
}

fn every_cut(table: &mut Table, scenario: &'static Scenario, modes: (&'static str, &'static str)) {
    let name = format!("{}/{}/{}", scenario.name, modes.0, modes.1);
    for frozen in [false, true] {
        let mut recorded = Recorded::new(scenario, modes, frozen);
        let calls = std::mem::take(&mut recorded.calls);
        let times = if frozen { "frozen" } else { "times" };
        for at in 0..=calls.len() {
            if let Some(call) = at.checked_sub(1).map(|at| &calls[at]) {
                recorded.disk.play(call);
            }
            for variant in 0..VARIANTS {
                let place = format!("{name}/{times}/{at}/{variant}");
                let seed = xxhash_rust::xxh3::xxh3_64(place.as_bytes()) | 1;
                table.run(&name, &place, || recorded.cut(seed));
            }
        }
    }
}

#[test]
fn power_cuts() {
    let mut table = Table::new("power-cut", 60);
    for scenario in SCENARIOS.iter().filter(|scenario| !scenario.ends_history()) {
        for mode in scenario.modes {
            for synchronous in ["EXTRA", "FULL", "NORMAL", "OFF"] {
                if table.wants(&format!("{}/{mode}/{synchronous}/", scenario.name)) {
                    every_cut(&mut table, scenario, (mode, synchronous));
                }
            }
        }
    }
    table.finish();
}
