//! What is the extension's own fails: its reads of the database, and the system's calls on the log's directory. The
//! application notices nothing; when the cause is gone, the log is the image.

use crate::control::{Kind, Plan};
use crate::failed::{Pair, Script, quiet};
use crate::scenarios::{SCENARIOS, Scenario};
use crate::syscalls::{Failure, LogPlan};
use crate::table::Table;

fn with_every_pair(table: &mut Table, mut act: impl FnMut(&mut Table, &Pair, &'static Scenario)) {
    for scenario in SCENARIOS {
        for mode in scenario.modes {
            if table.wants(&format!("{}/{mode}/", scenario.name)) {
                act(table, &Pair::new(scenario, (mode, "FULL")), scenario);
            }
        }
    }
}

fn how(lasting: bool) -> &'static str {
    if lasting { "on" } else { "once" }
}

#[test]
fn own_reads() {
    let mut table = Table::new("own-read", 30);
    with_every_pair(&mut table, |table, pair, scenario| {
        let name = format!("{}/{}", scenario.name, pair.modes.0);
        let (open, reads) = match (pair.run(quiet(true)), pair.run(quiet(false))) {
            (Ok(open), Ok(closed)) => (open.own_reads, closed.own_reads),
            (Err(e), _) | (_, Err(e)) => return table.fail(format!("{name} without a fault: {e}")),
        };
        for lasting in [false, true] {
            for goes_on in [false, true] {
                for at in 1..=reads {
                    let place = format!("{name}/{}/{at}/{goes_on}", how(lasting));
                    table.run(&name, &place, || {
                        let kind = Kind::Io;
                        let outcome = pair.run(Script {
                            own_plan: Some(Plan { at, kind, lasting }),
                            ..quiet(goes_on && at <= open)
                        })?;
                        Ok(Some(outcome.rebased))
                    });
                }
            }
        }
    });
    table.finish();
}

#[test]
fn log_calls() {
    let mut table = Table::new("log-call", 40);
    with_every_pair(&mut table, |table, pair, scenario| {
        let name = format!("{}/{}", scenario.name, pair.modes.0);
        let (open, calls) = match (pair.run(quiet(true)), pair.run(quiet(false))) {
            (Ok(open), Ok(closed)) => (open.log_calls, closed.log_calls),
            (Err(e), _) | (_, Err(e)) => return table.fail(format!("{name} without a fault: {e}")),
        };
        for failure in Failure::ALL {
            for lasting in [false, true] {
                for at in 1..=calls {
                    let place = format!("{name}/{}-{}/{at}", failure.name(), how(lasting));
                    table.run(&name, &place, || {
                        let outcome = pair.run(Script {
                            log_plan: Some(LogPlan {
                                at,
                                failure,
                                lasting,
                            }),
                            ..quiet(at % 2 == 0 && at <= open)
                        })?;
                        Ok((outcome.log_failed > 0).then_some(outcome.rebased))
                    });
                }
            }
        }
    });
    table.finish();
}
