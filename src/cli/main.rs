//! The command line: each verb is one file, thin over the library.

mod args;
mod bookmark;
mod chart;
mod compact;
mod demo;
mod diff;
mod download;
mod dump;
mod follow;
mod history;
mod image;
mod log;
mod output;
mod parked;
mod promote;
mod push;
mod register;
mod replay;
mod restore;
mod revert;
mod serve;
mod source;
mod status;
mod token;
mod verify;
mod verify_past;
mod when;

use std::process::ExitCode;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind as Clap};
use mycelite::error::{Error, ErrorKind};

use args::{Cli, Command};

/// What a verb that asks something found out.
pub enum Answer {
    /// Done; or the answer is yes.
    Yes,
    /// The answer is no: exit code 1.
    No,
    /// The user stopped it: exit code 130, as the shell's own for Ctrl-C.
    Interrupted,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let answer = match cli.command {
        Command::Demo(args) => demo::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Follow(args) => follow::run(&args),
        Command::Push(args) => push::run(&args),
        Command::Restore(args) => restore::run(&args),
        Command::Bookmark(args) => bookmark::run(&args),
        Command::Compact(args) => compact::compact(&args),
        Command::Snapshot(args) => compact::snapshot(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Revert(args) => revert::run(&args),
        Command::Log(args) => log::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Dump(args) => dump::run(&args),
        Command::Promote(args) => promote::run(&args),
        Command::Parked(args) => parked::run(&args),
        Command::Token(args) => token::run(&args),
    };
    match answer {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Ok(Answer::Interrupted) => ExitCode::from(130),
        Err(error) => fail(&error),
    }
}

fn fail(error: &Error) -> ExitCode {
    eprintln!("mycelite: error: {error}");
    ExitCode::from(error.exit_code())
}

/// Help and version go to standard output; wrong usage becomes one line with the tip and where to read more.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), Clap::DisplayHelp | Clap::DisplayVersion) {
        // Nobody to tell when standard output is gone.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == Clap::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(2);
    }
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let what = first.strip_prefix("error: ").unwrap_or(first);
    let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
    let suggestion = [
        ContextKind::SuggestedArg,
        ContextKind::SuggestedSubcommand,
        ContextKind::SuggestedValue,
    ]
    .into_iter()
    .find_map(|kind| match error.get(kind)? {
        ContextValue::String(one) => Some(one.clone()),
        ContextValue::Strings(several) => several.first().cloned(),
        _ => None,
    });
    let hint = match suggestion {
        Some(near) => format!("did you mean {near}? See mycelite --help"),
        None => "see mycelite --help".to_string(),
    };
    fail(&Error::new(ErrorKind::Usage, what).hint(hint))
}
