//! `mycelite parked`: what was parked beside a log when new timelines began; listing it, and taking one away.

use mycelite::error::{Error, ErrorKind, Result};
use mycelite::parked;

use super::Answer;
use super::args::ParkedArgs;
use super::output::{self, Output};
use super::source::Local;
use super::status::print_parked;

/// Runs the verb.
pub fn run(args: &ParkedArgs) -> Result<Answer> {
    let local = Local::find(&args.source)?;
    let mut output = Output::new();
    if let Some(name) = &args.remove {
        let bytes =
            parked::remove_tail(&local.log_dir, name).map_err(|e| match e.is_not_found() {
                true => Error::new(ErrorKind::NotFound, "no parked tail of that name")
                    .at(name)
                    .hint("mycelite parked lists them"),
                false => Error::new(ErrorKind::Io, e),
            })?;
        output.line(format_args!("{name}: removed, {}", output::bytes(bytes)))?;
        output.finish()?;
        return Ok(Answer::Yes);
    }
    let tails: Vec<_> = parked::list(&local.log_dir)
        .iter()
        .map(|tail| tail.status())
        .collect();
    if args.json {
        output.json(&tails)?;
    } else {
        print_parked(&tails, &mut output)?;
    }
    output.finish()?;
    Ok(Answer::Yes)
}
