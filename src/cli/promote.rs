//! `mycelite promote`: a replica takes over as the primary.

use mycelite::error::Result;
use mycelite::promote;
use mycelite::proto::pos_status;
use mycelite::status::PosStatus;
use serde::Serialize;

use super::Answer;
use super::args::PromoteArgs;
use super::output::Output;
use super::register::register;

/// `--json`
#[derive(Serialize)]
struct View {
    database: String,
    from: PosStatus,
    at: PosStatus,
}

/// Runs the verb.
pub fn run(args: &PromoteArgs) -> Result<Answer> {
    // The applier works through SQLite's own files and locks.
    register()?;
    let promoted = promote::promote(&args.db)?;
    let mut output = Output::new();
    if args.json {
        output.json(&View {
            database: args.db.display().to_string(),
            from: pos_status(promoted.from),
            at: pos_status(promoted.at),
        })?;
    } else {
        output.line(format_args!(
            "{}: is a primary from transaction {} on, on timeline {}; it was at {} of timeline {}",
            args.db.display(),
            promoted.at.txid,
            promoted.at.timeline,
            promoted.from.txid,
            promoted.from.timeline
        ))?;
    }
    output.finish()?;
    Ok(Answer::Yes)
}
