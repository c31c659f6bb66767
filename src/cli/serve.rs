//! `mycelite serve`: the replica server in the foreground.

use std::io::{self, IsTerminal, Read, Write};

use mycelite::error::{Error, ErrorKind, Result};
use mycelite::proto::{DatabaseName, ReplicaUrl};
use mycelite::server::{Limits, ServeOptions, Server};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::Answer;
use super::args::ServeArgs;
use super::follow;
use super::register::register;

const MIB: u64 = 1 << 20;
/// Connections that followers leave to others, where only their number is given.
const OTHERS_MIN: usize = 128;

/// Runs the verb: until a signal comes, or with `--with-parent` until standard input ends.
pub fn run(args: &ServeArgs) -> Result<Answer> {
    log_to_stderr(if args.verbose {
        tracing::Level::DEBUG
    } else {
        tracing::Level::INFO
    });
    // The appliers work through SQLite's own files and locks.
    register()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::new(ErrorKind::Io, source).at("starting the server's threads"))?;
    let options = ServeOptions {
        token_file: args.token_file.clone(),
        follow: follows(&args.follow)?,
        follow_token: match args.follow.is_empty() {
            true => None,
            false => follow::token(args.follow_token_file.as_deref())?,
        },
        limits: limits(args),
        ..ServeOptions::new(args.listen.clone(), args.data.clone())
    };
    runtime.block_on(async {
        let server = Server::bind(options).await?;
        // Before anyone can know that it runs: a signal that comes early must stop it in good order, too.
        let signals = Signals::install()?;
        announce(&server)?;
        let parent = args.with_parent.then(parent_gone);
        server.run(signals.asked_to_stop(parent)).await
    })?;
    Ok(Answer::Yes)
}

/// What `--follow NAME=URL` says.
fn follows(texts: &[String]) -> Result<Vec<(DatabaseName, ReplicaUrl)>> {
    let parse = |text: &String| {
        let (name, url) = text.split_once('=').ok_or_else(|| {
            Error::new(ErrorKind::Usage, "this is not NAME=URL")
                .at("--follow")
                .hint("as in --follow app=http://127.0.0.1:7878/app")
        })?;
        Ok((name.parse()?, url.parse()?))
    };
    texts.iter().map(parse).collect()
}

fn limits(args: &ServeArgs) -> Limits {
    let mut limits = Limits::default();
    if let Some(mib) = args.body_max {
        limits.body_bytes_max = mib * MIB;
        limits.decoded_bytes_max = limits.decoded_bytes_max.max(mib * MIB);
    }
    if let Some(mib) = args.record_max {
        limits.record_bytes_max = mib * MIB;
        // A request with the largest record must be readable.
        limits.decoded_bytes_max = limits.decoded_bytes_max.max(mib * MIB + MIB);
    }
    if let Some(mib) = args.database_max {
        limits.database_bytes_max = mib * MIB;
    }
    if let Some(count) = args.databases_max {
        limits.databases_max = count as usize;
    }
    if let Some(count) = args.followers_max {
        limits.followers_max = count as usize;
        // Others must still get through.
        limits.connections_max = limits
            .connections_max
            .max(limits.followers_max + OTHERS_MIN);
    }
    if let Some(count) = args.connections_max {
        limits.connections_max = count as usize;
    }
    limits
}

/// Says where it listens; a program that starts a server waits for this line.
fn announce(server: &Server) -> Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "listening on http://{}", server.local_addr())
        .and_then(|()| stdout.flush())
        .map_err(|source| {
            Error::new(ErrorKind::Io, format_args!("writing: {source}")).at("standard output")
        })
}

/// Ctrl-C and SIGTERM.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From now on the signals are ours.
    pub fn install() -> Result<Signals> {
        let listen = |kind| {
            signal(kind).map_err(|source| Error::new(ErrorKind::Io, source).at("signal handling"))
        };
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Done when one comes, or the parent has gone.
    pub async fn asked_to_stop(mut self, parent: Option<oneshot::Receiver<()>>) {
        let parent = async {
            match parent {
                Some(parent) => {
                    // Sent or dropped: either way nobody holds the other end.
                    let _ = parent.await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = parent => {}
        }
    }
}

/// Done when standard input ends: whoever held its other end is gone.
pub fn parent_gone() -> oneshot::Receiver<()> {
    let (sender, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        let mut rest = [0u8; 64];
        while matches!(io::stdin().lock().read(&mut rest), Ok(1..)) {}
        // The server may have stopped for another reason.
        let _ = sender.send(());
    });
    receiver
}

/// Warnings and what else `level` lets through go to standard error.
pub fn log_to_stderr(level: tracing::Level) {
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .init();
}
