//! `mycelite follow`: keeps a live copy of a served database.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use mycelite::Access;
use mycelite::config::Config;
use mycelite::database;
use mycelite::error::{Error, ErrorKind, Result};
use mycelite::promote;
use mycelite::server::{Endurance, FollowOptions, Follower, FollowerHandle, Limits};
use mycelite::status::FollowStatus;
use serde::Serialize;

use super::Answer;
use super::args::{AccessArgs, FollowArgs};
use super::output;
use super::push::capture;
use super::register::register;
use super::serve::{self, Signals, log_to_stderr, parent_gone};
use super::source;

/// How often the state is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// The same while something waits for the end.
const LOOK_ONCE: Duration = Duration::from_millis(10);
/// How often it is told while it moves without changing its name.
const TELL: Duration = Duration::from_secs(1);
/// How long what is under way at the end may take, each part of it.
const GRACE: Duration = Duration::from_secs(5);

/// Why it ended.
enum Why {
    CaughtUp,
    Stalled(String),
    Asked,
}

/// Runs the verb: until a signal comes, until it is refused, or with `--once` until nothing is missing.
pub fn run(args: &FollowArgs) -> Result<Answer> {
    log_to_stderr(tracing::Level::WARN, args.verbose, args.log_format);
    let options = options(args)?;
    // The applier works through SQLite's own files and locks.
    register()?;
    if args.rejoin {
        rejoin(&args.db)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|source| Error::new(ErrorKind::Io, source).at("starting the threads"))?;
    runtime.block_on(follow(args, options))
}

/// What the old primary has written is recorded, so that it can be parked, and then it is a primary no more.
fn rejoin(db: &Path) -> Result<()> {
    if !db.exists() || !promote::is_primary(db) {
        return Ok(());
    }
    capture(db)?;
    promote::step_down(db)
}

fn options(args: &FollowArgs) -> Result<FollowOptions> {
    let mut limits = Limits {
        shutdown_grace: GRACE,
        ..Limits::default()
    };
    args.apply.set(&mut limits);
    Ok(FollowOptions {
        url: args.url.parse()?,
        access: access(&args.access)?,
        log_dir: database::log_dir(&args.db),
        db: args.db.clone(),
        claim: false,
        listen: args.listen.clone(),
        token_file: args.listen_token_file.clone(),
        tls: serve::tls(
            &args.listen_tls_cert,
            &args.listen_tls_key,
            &args.listen_tls_client_ca,
        ),
        endurance: if args.once {
            Endurance::Once
        } else {
            Endurance::Following
        },
        limits,
    })
}

/// What to show to a server that is followed, and by what to know it: the flags win over the settings that hold for everything.
pub fn access(flags: &AccessArgs) -> Result<Access> {
    source::access(&Config::for_database(Path::new(""), &[])?, flags)
}

async fn follow(args: &FollowArgs, options: FollowOptions) -> Result<Answer> {
    let follower = Follower::open(options).await?;
    // Before anyone can know that it runs: a signal that comes early must stop it in good order, too.
    let signals = Signals::install()?;
    if let Some(address) = follower.local_addr() {
        serve::reload_on_hangup(follower.reloader())?;
        say(
            args,
            &format!("listening on {}://{address}", follower.scheme()),
        )?;
    }
    let handle = follower.handle();
    let mut report = Report::new(args);
    let parent = args.with_parent.then(parent_gone);
    let mut why = Why::Asked;
    let shutdown = async {
        tokio::select! {
            () = signals.asked_to_stop(parent) => {}
            reason = watch(args, &handle, &mut report) => why = reason,
        }
    };
    let ended = follower.run(shutdown).await;
    let status = handle.status();
    report.end(&status);
    ended?;
    match why {
        Why::CaughtUp => {
            say(
                args,
                &format!(
                    "{}: at transaction {}, identical to {}",
                    args.db.display(),
                    status.applied_txid,
                    status.url
                ),
            )?;
            Ok(Answer::Yes)
        }
        Why::Stalled(cause) => Err(Error::new(ErrorKind::Network, cause)),
        Why::Asked if args.once => Ok(Answer::Interrupted),
        Why::Asked => Ok(Answer::Yes),
    }
}

/// Looks and tells; ends when there is nothing more to wait for.
async fn watch(args: &FollowArgs, handle: &FollowerHandle, report: &mut Report<'_>) -> Why {
    loop {
        let status = handle.status();
        report.tell(&status);
        if args.once && handle.is_caught_up() {
            return Why::CaughtUp;
        }
        if args.once && status.state == "stalled" {
            return Why::Stalled(status.last_error);
        }
        tokio::time::sleep(if args.once { LOOK_ONCE } else { LOOK }).await;
    }
}

/// A line for people; a program that reads JSON gets the state instead.
fn say(args: &FollowArgs, line: &str) -> Result<()> {
    if args.json && !line.starts_with("listening") {
        return Ok(());
    }
    let mut out = io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::new(ErrorKind::Io, format_args!("writing: {source}")).at("standard output"))
        }
        _ => Ok(()),
    }
}

/// One line of `--json`.
#[derive(Serialize)]
struct Line<'a> {
    database: String,
    #[serde(flatten)]
    status: &'a FollowStatus,
}

/// What is shown while it runs.
struct Report<'a> {
    args: &'a FollowArgs,
    /// Whether a person looks.
    shows: bool,
    bar: Option<ProgressBar>,
    /// Nothing has gone wrong since it was last said that nothing is missing.
    well: bool,
    told: Option<(FollowStatus, Instant)>,
}

impl Report<'_> {
    fn new(args: &FollowArgs) -> Report<'_> {
        let shows = io::stderr().is_terminal() && !args.json;
        Report {
            args,
            shows,
            bar: shows.then(|| output::bytes_bar(0, "catching up")),
            well: false,
            told: None,
        }
    }

    fn tell(&mut self, status: &FollowStatus) {
        if let Some(bar) = &self.bar {
            bar.set_length(status.bytes + status.lag_bytes);
            bar.set_position(status.bytes);
        }
        let due = match &self.told {
            None => true,
            Some((told, at)) => {
                told.state != status.state || (at.elapsed() >= TELL && differs(told, status))
            }
        };
        if !due {
            return;
        }
        if self.args.json {
            self.print(status);
        } else if self.shows {
            self.show(status);
        }
        self.told = Some((status.clone(), Instant::now()));
    }

    /// For a person: the bar until nothing is missing for the first time, then a line whenever that is so again. What goes
    /// wrong in between is told as a warning.
    fn show(&mut self, status: &FollowStatus) {
        match status.state.as_str() {
            "following" => {}
            // Behind by a moment: not worth a line at the end of it.
            "catching-up" => return,
            _ => return self.well = false,
        }
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if !std::mem::replace(&mut self.well, true) {
            eprintln!(
                "following {}, at transaction {}",
                status.url, status.applied_txid
            );
        }
    }

    fn print(&self, status: &FollowStatus) {
        let line = Line {
            database: self.args.db.display().to_string(),
            status,
        };
        let mut out = io::stdout().lock();
        // Nobody to tell when standard output is gone.
        let _ = serde_json::to_writer(&mut out, &line)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
            .and_then(|()| out.flush());
    }

    /// The last state.
    fn end(&mut self, status: &FollowStatus) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if self.args.json {
            self.print(status);
        }
    }
}

/// Whether more than the clock has moved.
fn differs(one: &FollowStatus, other: &FollowStatus) -> bool {
    let still = FollowStatus {
        lag_ms: other.lag_ms,
        ..one.clone()
    };
    still != *other
}
