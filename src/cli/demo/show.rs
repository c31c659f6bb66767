//! What the demo shows while it runs: a live line on a terminal, a few plain lines in a pipe.

use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mycelite::error::Result;

use super::data::Data;
use super::replica::Replica;
use crate::output::{Output, bytes};

/// Time between two changes of the live line, and between two plain lines.
const LIVE_EVERY: Duration = Duration::from_millis(50);
const PLAIN_EVERY: Duration = Duration::from_secs(1);

/// Says what is going to happen, and where.
pub fn opening(data: &Data, db: &Path, replicas: &[Replica; 2], kept: bool) -> Result<()> {
    let mut output = Output::new();
    output.line(format_args!(
        "data       {} packages from {}",
        data.packages.len(),
        data.source
    ))?;
    output.line(format_args!(
        "primary    {}, written through SQLite {} with the extension",
        db.display(),
        rusqlite::version()
    ))?;
    for replica in replicas {
        output.line(format_args!(
            "{:<10} {}, kept in {}",
            replica.title,
            replica.url(),
            replica.db().display()
        ))?;
    }
    if !kept {
        output.line("           (all of it is removed at the end; --keep DIR leaves it there)")?;
    }
    output.finish()
}

/// The live line.
pub struct Show {
    bar: Option<ProgressBar>,
    last: Instant,
    /// Until the next line; in a pipe it grows, so that a long run stays a few lines.
    pause: Duration,
    commits: usize,
}

impl Show {
    /// For a load in so many commits.
    pub fn new(commits: usize) -> Show {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style)
        });
        Show {
            last: Instant::now(),
            pause: if bar.is_some() {
                LIVE_EVERY
            } else {
                PLAIN_EVERY
            },
            bar,
            commits,
        }
    }

    /// Whether it is time for another line.
    pub fn is_due(&self) -> bool {
        self.last.elapsed() >= self.pause
    }

    /// Shows where everything is.
    pub fn line(
        &mut self,
        mode: &str,
        commits: u64,
        (database, log): (u64, u64),
        replicas: &[String],
    ) {
        self.last = Instant::now();
        let text = format!(
            "{mode} mode, commit {commits} of {}, database {}, log {}; {}",
            self.commits,
            bytes(database),
            bytes(log),
            replicas.join("; ")
        );
        match &self.bar {
            Some(bar) => {
                bar.set_message(text);
                bar.tick();
            }
            None => {
                self.pause = self.pause * 3 / 2;
                println!("           {text}");
            }
        }
    }

    /// Something happened that stays on the screen.
    pub fn event(&self, text: impl Display) {
        match &self.bar {
            Some(bar) => bar.println(format!("           {text}")),
            None => println!("           {text}"),
        }
    }

    /// Takes the live line away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
