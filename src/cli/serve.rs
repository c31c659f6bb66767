//! `mycelite serve`: the replica server in the foreground.

use std::io::{self, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use mycelite::Access;
use mycelite::error::{Error, ErrorKind, Result};
use mycelite::proto::{DatabaseName, ReplicaUrl};
use mycelite::server::{Limits, Reloader, ServeOptions, Server, TlsServer};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::Answer;
use super::args::{AccessArgs, LogFormat, ServeArgs};
use super::follow;
use super::register::register;

const MIB: u64 = 1 << 20;
/// Connections that followers leave to others, where only their number is given.
const OTHERS_MIN: usize = 128;

/// Runs the verb: until a signal comes, or with `--with-parent` until standard input ends.
pub fn run(args: &ServeArgs) -> Result<Answer> {
    log_to_stderr(tracing::Level::INFO, args.verbose, args.log_format);
    // The appliers work through SQLite's own files and locks.
    register()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::new(ErrorKind::Io, source).at("starting the server's threads"))?;
    let options = ServeOptions {
        token_file: args.token_file.clone(),
        follow: follows(&args.follow)?,
        tls: tls(&args.tls_cert, &args.tls_key, &args.tls_client_ca),
        follow_access: match args.follow.is_empty() {
            true => Access::default(),
            false => follow::access(&AccessArgs {
                token_file: args.follow_token_file.clone(),
                tls_ca: args.follow_tls_ca.clone(),
                tls_cert: args.follow_tls_cert.clone(),
                tls_key: args.follow_tls_key.clone(),
            })?,
        },
        limits: limits(args),
        ..ServeOptions::new(args.listen.clone(), args.data.clone())
    };
    runtime.block_on(async {
        let server = Server::bind(options).await?;
        // Before anyone can know that it runs: a signal that comes early must stop it in good order, too.
        let signals = Signals::install()?;
        reload_on_hangup(server.reloader())?;
        announce(&server)?;
        let parent = args.with_parent.then(parent_gone);
        server.run(signals.asked_to_stop(parent)).await
    })?;
    Ok(Answer::Yes)
}

/// The files of a server's TLS, if it is to speak that.
pub fn tls(
    cert: &Option<PathBuf>,
    key: &Option<PathBuf>,
    client_ca: &Option<PathBuf>,
) -> Option<TlsServer> {
    let cert = cert.clone()?;
    Some(TlsServer {
        key: key.clone().unwrap_or_else(|| cert.clone()),
        cert,
        client_ca: client_ca.clone(),
    })
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
    if let Some(count) = args.requests_max {
        limits.requests_per_second_max = count;
    }
    if let Some(seconds) = args.client_timeout {
        limits.idle_max = Duration::from_secs(seconds);
        limits.header_timeout = limits.idle_max;
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
    limits.connections_per_address_max =
        args.connections_per_address_max.map(|count| count as usize);
    args.apply.set(&mut limits);
    limits
}

/// Reads tokens and certificates anew at each SIGHUP; where there are none, that signal stays what it is.
pub fn reload_on_hangup(reloader: Option<Reloader>) -> Result<()> {
    let Some(reloader) = reloader else {
        return Ok(());
    };
    let mut hangup = signal(SignalKind::hangup())
        .map_err(|source| Error::new(ErrorKind::Io, source).at("signal handling"))?;
    // Ends with the runtime.
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            match reloader.reload() {
                Ok(()) => tracing::info!("token file and TLS files were read anew"),
                Err(e) => tracing::error!("not read anew, what holds goes on to hold: {e}"),
            }
        }
    });
    Ok(())
}

/// Says where it listens; a program that starts a server waits for this line.
fn announce(server: &Server) -> Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(
        stdout,
        "listening on {}://{}",
        server.scheme(),
        server.local_addr()
    )
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

/// What `level` lets through goes to standard error; `verbose` times more of it.
pub fn log_to_stderr(level: tracing::Level, verbose: u8, format: LogFormat) {
    let level = match verbose {
        0 => level,
        1 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    let lines = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
}
