//! Each call that SQLite makes fails in turn, once or from then on, and the application reacts in one way or another.

use crate::check::{DATABASES, check_logs, followers, fresh_copy, recover};
use crate::clock;
use crate::control::{Call, Kind, Plan};
use crate::scenarios::{SCENARIOS, Scenario};
use crate::syscalls::{self, LogPlan};
use crate::table::Table;
use crate::vfs::Side;
use crate::world::{Manner, World, answer};
use rusqlite::{Connection, OpenFlags};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A workload in one journal mode, ready to be run on both sides.
pub struct Pair {
    scratch: tempfile::TempDir,
    templates: [PathBuf; 2],
    pub scenario: &'static Scenario,
    pub modes: (&'static str, &'static str),
}

/// How a run is to go.
#[derive(Clone, Copy)]
pub struct Script {
    pub plan: Option<Plan>,
    /// For the extension's own reads.
    pub own_plan: Option<Plan>,
    /// For the system's calls on the log's directory.
    pub log_plan: Option<LogPlan>,
    pub manner: Manner,
    /// The connections go on for a while after the fault, before they close.
    pub goes_on: bool,
}

/// A run in which everything works.
pub fn quiet(goes_on: bool) -> Script {
    Script {
        plan: None,
        own_plan: None,
        log_plan: None,
        manner: Manner::GoesOn,
        goes_on,
    }
}

/// What a run was like.
pub struct Outcome {
    pub trace: Vec<Call>,
    pub own_reads: usize,
    /// Calls on the log's directory, and how many of them failed.
    pub log_calls: usize,
    pub log_failed: usize,
    pub rebased: usize,
}

impl Pair {
    pub fn new(scenario: &'static Scenario, modes: (&'static str, &'static str)) -> Pair {
        crate::vfs::load();
        let scratch = crate::common::scratch();
        let templates = [Side::Plain, Side::Ours]
            .map(|side| World::prepare(scratch.path(), side, modes, scenario));
        Pair {
            scratch,
            templates,
            scenario,
            modes,
        }
    }

    fn world(&self, side: Side, manner: Manner) -> World {
        let dir = self.scratch.path().join(match side {
            // As long as the other: SQLite writes names into super-journals.
            Side::Plain => "run-1",
            Side::Ours => "run-2",
        });
        fresh_copy(&self.templates[side as usize], &dir);
        World::new(dir, side, self.modes, manner)
    }

    /// The same workload with the same fault on both sides: all that can be seen of them is equal, and the log is the image.
    pub fn run(&self, script: Script) -> Result<Outcome, String> {
        let mut plain = self.world(Side::Plain, script.manner);
        let plain_seen = plain.run(
            self.scenario,
            (script.plan, None, None),
            !script.goes_on,
            || {},
        );
        let mut ours = self.world(Side::Ours, script.manner);
        let mut replicas = followers(&ours.dir);
        if self.scenario.ends_history() {
            replicas.clear();
        }
        let mut trouble = None;
        syscalls::watch(&ours.dir);
        let plans = (script.plan, script.own_plan, script.log_plan);
        let seen = ours.run(self.scenario, plans, !script.goes_on, || {
            for replica in &mut replicas {
                if let Err(error) = replica.advance() {
                    trouble.get_or_insert(format!("while it ran: {error}"));
                }
            }
        });
        let (log_calls, log_failed) = syscalls::stop_counting();
        syscalls::unwatch();
        if let Some(trouble) = trouble {
            return Err(trouble);
        }
        same_trace(&plain_seen.trace, &seen.trace)?;
        let rebased: usize = replicas.iter().map(|replica| replica.rebases()).sum();
        if script.goes_on {
            clock::advance(60);
            // So much later the capture thread has done what it had to do.
            ours.settle();
            plain.write_once_more();
            let written = ours.write_once_more();
            ours.settle();
            same("answers", &plain.answers, &ours.answers)?;
            check_logs(
                &ours.dir,
                self.scratch.path(),
                &mut replicas,
                [written, false],
            )
            .map_err(|e| format!("while open: {e}"))?;
        }
        same("answers", &plain.answers, &ours.answers)?;
        plain.close();
        ours.close();
        self.compare_files(&plain.dir, &ours.dir)?;
        let written = [0, 1].map(|at| {
            let answers = [(&plain, Side::Plain), (&ours, Side::Ours)]
                .map(|(world, side)| write_last(&world.dir.join(DATABASES[at]), side));
            (answers[0] == answers[1], answers)
        });
        for (is_same, answers) in &written {
            if !is_same {
                return Err(format!(
                    "the last write: plain {:?}, ours {:?}",
                    answers[0], answers[1]
                ));
            }
        }
        let written = written.map(|(_, answers)| answers[0].as_deref() == Some(""));
        check_logs(&ours.dir, self.scratch.path(), &mut replicas, written)?;
        self.compare_files(&plain.dir, &ours.dir)?;
        let rebases: usize = replicas.iter().map(|replica| replica.rebases()).sum();
        Ok(Outcome {
            trace: seen.trace,
            own_reads: seen.own_reads,
            log_calls,
            log_failed,
            rebased: rebases.saturating_sub(rebased),
        })
    }

    /// What a SQLite without the extension makes of both.
    fn compare_files(&self, plain: &Path, ours: &Path) -> Result<(), String> {
        let expected = recover(plain, self.scratch.path());
        let found = recover(ours, self.scratch.path());
        for (at, name) in DATABASES.into_iter().enumerate() {
            match (&expected[at], &found[at]) {
                (Some(expected), Some(found)) => {
                    same(name, &expected.says, &found.says)?;
                    crate::check::compare(&expected.image, &found.image)
                        .map_err(|e| format!("{name} is not as without us: {e}"))?;
                }
                (None, None) => {}
                (expected, found) => {
                    return Err(format!(
                        "{name} is there: plain {}, ours {}",
                        expected.is_some(),
                        found.is_some()
                    ));
                }
            }
        }
        Ok(())
    }
}

/// A write to the database without a fault, by a process that begins; `None` if there is no such database.
pub fn write_last(path: &Path, side: Side) -> Option<String> {
    if !path.exists() {
        return None;
    }
    let uri = format!("file:{}?vfs={}", path.display(), side.vfs());
    let connection = Connection::open_with_flags(uri, OpenFlags::default()).unwrap();
    connection.busy_timeout(Duration::ZERO).unwrap();
    let text = answer(&connection, "PRAGMA user_version = 99");
    if side == Side::Ours
        && !text.starts_with("error")
        && let Some(database) = mycelite::database::find(path.to_str().unwrap())
        && let Some(trouble) = database.shared().health().degraded
    {
        return Some(format!("{text}, and degraded: {trouble}"));
    }
    Some(text)
}

fn same(what: &str, plain: &[String], ours: &[String]) -> Result<(), String> {
    match (0..plain.len().max(ours.len())).find(|&at| plain.get(at) != ours.get(at)) {
        None => Ok(()),
        Some(at) => Err(format!(
            "{what} differ at {at}: plain {:?}, ours {:?}",
            plain.get(at),
            ours.get(at)
        )),
    }
}

/// SQLite makes the same calls, with us and without us.
fn same_trace(plain: &[Call], ours: &[Call]) -> Result<(), String> {
    match (0..plain.len().max(ours.len())).find(|&at| plain.get(at) != ours.get(at)) {
        None => Ok(()),
        Some(at) => Err(format!(
            "SQLite's calls differ at {}: plain {:?}, ours {:?}",
            at + 1,
            plain.get(at),
            ours.get(at)
        )),
    }
}

/// The way in which the application reacts at a place, and whether it goes on afterwards.
fn reaction(at: usize, variant: usize) -> (Manner, bool) {
    let manner = Manner::ALL[(at + variant) % Manner::ALL.len()];
    (manner, (at / Manner::ALL.len() + variant).is_multiple_of(2))
}

fn every_place(table: &mut Table, pair: &Pair) {
    let name = format!("{}/{}", pair.scenario.name, pair.modes.0);
    let (open, trace) = match (pair.run(quiet(true)), pair.run(quiet(false))) {
        (Ok(open), Ok(closed)) => (open.trace.len(), closed.trace),
        (Err(text), _) | (_, Err(text)) => {
            return table.fail(format!("{name} without a fault: {text}"));
        }
    };
    let variants = if table.is_full() { 2 } else { 1 };
    for kind in Kind::ALL {
        for lasting in [false, true] {
            for variant in 0..variants {
                for at in (1..=trace.len()).filter(|at| kind.fits(trace[at - 1].method)) {
                    let plan = Plan { at, kind, lasting };
                    let (manner, goes_on) = reaction(at, variant);
                    // What fails at the close, fails there.
                    let goes_on = goes_on && at <= open;
                    let how = if lasting { "on" } else { "once" };
                    let place = format!("{name}/{}-{how}/{at}/{variant}", kind.name());
                    table.run(&name, &place, || {
                        let script = Script {
                            plan: Some(plan),
                            manner,
                            ..quiet(goes_on)
                        };
                        pair.run(script)
                            .map(|outcome| Some(outcome.rebased))
                            .map_err(|e| format!("{:?}, {manner:?}: {e}", trace[at - 1]))
                    });
                }
            }
        }
    }
}

#[test]
fn failed_calls() {
    let mut table = Table::new("failed-call", 40);
    for scenario in SCENARIOS {
        for mode in scenario.modes {
            if table.wants(&format!("{}/{mode}/", scenario.name)) {
                every_place(&mut table, &Pair::new(scenario, (mode, "FULL")));
            }
        }
    }
    table.finish();
}
