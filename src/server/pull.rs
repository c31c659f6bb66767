//! Following a database on another server: its records are pulled into a log here, from where they go on as pushed ones
//! do: into the file, and to those who follow this server.
//!
//! The position that is durable here is the only state: after any cut, crash or restart it is asked for what follows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::StatusCode;
use mycelite_journal::{Pos, Txid};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::database::{Database, Durable, now_us};
use super::endurance::{Endurance, FailureRow};
use super::progress::{Phase, Pull};
use super::receive::{self, Pieces, Place};
use super::{State, fork, pull_snapshot};
use crate::error::{Error, ErrorKind};
use crate::follow::{Failure, FailureKind, Feed, Source};
use crate::promote;
use crate::proto::follow::{Beat, EndReason, Frame, Hello};
use crate::upstream::Upstream;

/// Storing goes on for so long after the last frame: what comes while it syncs is then stored, and synced, together.
const LINGER: Duration = Duration::from_millis(50);
/// A line that lived for so long was a good one: the next failure is the first of its row.
const LASTED: Duration = Duration::from_secs(10);
/// So many snapshots are fetched in a row at most: each is followed by records, unless the server keeps none.
const SNAPSHOTS_MAX: u32 = 3;
/// Where the server is, is written down this often at most.
const NOTE_EVERY: Duration = Duration::from_millis(500);
/// First failures in a row that nobody is told of: a server that restarts is back soon.
const QUIET_FAILURES: u32 = 1;

/// Follows until `stop`; gives up early as `endurance` says, and then says why.
pub(super) async fn run(
    state: Arc<State>,
    database: Arc<Database>,
    source: Source,
    endurance: Endurance,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Error> {
    let Some(pull) = database.pull.get().cloned() else {
        return Ok(());
    };
    let mut puller = Puller {
        state,
        database,
        pull: Arc::clone(&pull),
        job: None,
        connected: None,
        rests: false,
        greeted: false,
        noted: None,
    };
    let mut row = FailureRow::default();
    loop {
        let before = pull.bytes();
        puller.connected = None;
        let ended = tokio::select! {
            failure = puller.session(&source) => Some(failure),
            _ = stop.wait_for(|stop| *stop) => None,
        };
        // Whole records that came are kept, whatever ended the session.
        let stored = puller.finish_job().await;
        let Some(mut failure) = ended else { break };
        if let Err(local) = stored {
            failure = local;
        }
        let lasted = puller.connected.map(|since| since.elapsed());
        if pull.bytes() > before || lasted >= Some(LASTED) {
            row = FailureRow::default();
        }
        row.add(&failure);
        let gives_up = endurance.gives_up(&failure, &row, puller.greeted);
        note(&pull, &failure, &row, gives_up);
        if gives_up {
            return Err(failure.error);
        }
        tokio::select! {
            () = tokio::time::sleep(endurance.pause(&failure, &row)) => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    pull.enter(Phase::Stopped, String::new());
    Ok(())
}

/// Shows a failure in the state, and tells of it once where it is not over at once.
fn note(pull: &Pull, failure: &Failure, row: &FailureRow, gives_up: bool) {
    let line = failure.error.to_string();
    let (phase, told) = match failure.kind {
        FailureKind::Transient => (Phase::BackingOff, row.failures() > QUIET_FAILURES),
        FailureKind::Refused => (Phase::Refused, true),
        FailureKind::Diverged => (Phase::Diverged, row.is_diverged()),
    };
    // Whoever gives up tells it himself.
    if told && !gives_up && !pull.is_told(&line) {
        tracing::warn!("{line}");
        pull.tell(&line);
    }
    pull.enter(phase, line);
}

/// An open stream, and what it follows.
struct Line<'a> {
    feed: Feed<'a>,
    hello: Hello,
    /// Where this side is; none where there is nothing yet.
    local: Option<Durable>,
    /// The place that the first record follows.
    after: Pos,
}

/// The state of following one database.
struct Puller {
    state: Arc<State>,
    database: Arc<Database>,
    pull: Arc<Pull>,
    job: Option<Job>,
    /// Since when the line of this session lives.
    connected: Option<Instant>,
    /// The server has said that it has sent all it has, and nothing came since.
    rests: bool,
    /// The server has said hello, and was the right one, since the start.
    greeted: bool,
    /// When it was last written down where the server is.
    noted: Option<Instant>,
}

/// Records on their way into the log.
struct Job {
    pieces: Option<Pieces>,
    ended: JoinHandle<Result<Pos, Failure>>,
}

impl Puller {
    /// One line, from connecting to its end; why it ended.
    async fn session(&mut self, source: &Source) -> Failure {
        match self.try_session(source).await {
            Err(failure) => failure,
            Ok(never) => match never {},
        }
    }

    async fn try_session(&mut self, source: &Source) -> Result<std::convert::Infallible, Failure> {
        let Line {
            mut feed,
            hello,
            local,
            after,
        } = self.connect(source).await?;
        let at = local.map_or(Pos::ZERO, |durable| durable.pos);
        self.check(&hello, local)?;
        self.greeted = true;
        self.connected = Some(Instant::now());
        self.pull.heard(hello.beat);
        self.note(&hello.beat);
        self.pull.enter(Phase::Connected, String::new());
        let mut place = Place {
            id: hello.id,
            after,
            forks: after != at,
        };
        loop {
            match self.next(&mut feed, &mut place).await? {
                Frame::Hello(_) => {}
                Frame::Records(piece) => {
                    self.rests = false;
                    self.pull.came();
                    self.store(place, piece).await?;
                }
                Frame::Beat(beat) => {
                    // Before it counts: what was missing until now may have been missing for a moment only.
                    self.pull.status(&self.database);
                    self.pull.heard(beat);
                    self.note(&beat);
                    self.rests = beat.behind_bytes == 0;
                }
                Frame::End(reason, text) => return Err(ended(source, reason, &text)),
            }
            self.pull.status(&self.database);
            let durable = self.database.durable().map_or(Txid(0), |now| now.pos.txid);
            if self.pull.is_dry(durable) {
                return Err(Failure::transient(
                    Error::new(
                        ErrorKind::Network,
                        format_args!(
                            "the line lives, but nothing came after transaction {durable} although there is more"
                        ),
                    )
                    .at(source.url()),
                ));
            }
        }
    }

    /// Opens the stream of what follows the place here, or, where the server does not keep that, of what follows a snapshot.
    async fn connect<'a>(&self, source: &'a Source) -> Result<Line<'a>, Failure> {
        for _ in 0..SNAPSHOTS_MAX {
            let local = self.local().await?;
            let at = local.map_or(Pos::ZERO, |durable| durable.pos);
            let line = |(feed, hello), after| Line {
                feed,
                hello,
                local,
                after,
            };
            if local.is_some() || !pull_snapshot::is_better(source).await {
                let opened = match (source.open(at.txid).await, local) {
                    (Ok((feed, hello)), Some(local))
                        if hello.id == local.id && hello.after != at =>
                    {
                        drop(feed);
                        self.open_behind(source, local).await
                    }
                    (Err(failure), Some(local)) if failure.status == 409 => {
                        tracing::debug!("{}", failure.error);
                        self.open_behind(source, local).await
                    }
                    (Ok(opened), _) => Ok(line(opened, at)),
                    (Err(failure), _) => Err(failure),
                };
                match opened {
                    Err(failure) if failure.status == 410 => tracing::debug!("{}", failure.error),
                    opened => return opened.map_err(explain),
                }
            }
            pull_snapshot::fetch(&self.state, &self.database, &self.pull, source, local).await?;
        }
        Err(Failure::transient(
            Error::new(
                ErrorKind::Network,
                "the server lets go of its history faster than its snapshot can be fetched",
            )
            .at(source.url()),
        ))
    }

    /// Tells other processes where the server is, not more often than they would look.
    fn note(&mut self, beat: &Beat) {
        if self.noted.is_none_or(|at| at.elapsed() >= NOTE_EVERY) {
            let upstream = Upstream {
                txid: beat.head.txid.0,
                time_us: now_us(),
                behind_bytes: beat.behind_bytes,
                url: self.pull.url().to_string(),
            };
            // Before the first record there is no place for it.
            if upstream.write(&self.database.log_dir) {
                self.noted = Some(Instant::now());
            }
        }
    }

    /// The next frame. What came is being stored meanwhile; when nothing more comes for a moment, that ends.
    async fn next(&mut self, feed: &mut Feed<'_>, place: &mut Place) -> Result<Frame, Failure> {
        if self.job.is_some() {
            if let Ok(frame) = tokio::time::timeout(LINGER, feed.next()).await {
                return frame;
            }
            self.pull.set_storing(false);
            // A record that has come in part keeps its job.
            if self.rests
                && let Some(pos) = self.finish_job().await?
            {
                place.after = pos;
                place.forks = false;
            }
        }
        feed.next().await
    }

    /// Where this side durably is; none when there is nothing yet.
    async fn local(&self) -> Result<Option<Durable>, Failure> {
        let database = &self.database;
        let transient = |refusal: super::reply::Refusal| {
            Failure::transient(Error::new(ErrorKind::Io, refusal.error()))
        };
        refuse_foreign(database).map_err(Failure::refused)?;
        database.keep().map_err(Failure::refused)?;
        if let Some(durable) = database.durable() {
            return Ok(Some(durable).filter(|durable| durable.pos != Pos::ZERO));
        }
        let wait = self.state.limits.append_wait;
        let mut turn = database.turn(wait).await.map_err(transient)?;
        let owner = Arc::clone(database);
        let learnt =
            tokio::task::spawn_blocking(move || owner.learn_durable(&mut turn, wait)).await;
        match learnt {
            Ok(Ok(durable)) => {
                self.state.appliers.wake(database);
                Ok(Some(durable).filter(|durable| durable.pos != Pos::ZERO))
            }
            Ok(Err(refusal)) if refusal.status() == StatusCode::NOT_FOUND => Ok(None),
            Ok(Err(refusal)) => Err(transient(refusal)),
            Err(e) => Err(Failure::transient(Error::new(ErrorKind::Internal, e))),
        }
    }

    /// Whether the server's database is the one here (P9).
    fn check(&self, hello: &Hello, local: Option<Durable>) -> Result<(), Failure> {
        match local {
            Some(local) if hello.id != local.id => Err(self.differs(format_args!(
                "{} is another database (its id is {}, this replica's {})",
                self.pull.url(),
                hello.id,
                local.id
            ))),
            _ => Ok(()),
        }
    }

    fn differs(&self, what: impl std::fmt::Display) -> Failure {
        Failure::diverged(
            Error::new(ErrorKind::Diverged, what)
                .at(self.database.db_path.display())
                .hint("nothing here was changed; follow into another file, or move this one and its log away"),
        )
    }

    /// The server is not where this side is. Where it has begun a newer timeline since a place that both have been at, the
    /// stream from there: what comes makes this side park its own tail and go back.
    async fn open_behind<'a>(
        &self,
        source: &'a Source,
        local: Durable,
    ) -> Result<Line<'a>, Failure> {
        let info = source.info().await?;
        let Some(common) = self.last_common(source, local.pos, info.first_txid).await? else {
            let what = format!(
                "this replica is at {}, which {} has lost or never was at; both kept nothing that they have in common",
                local.pos,
                self.pull.url()
            );
            let differs = self.differs(what);
            // Then its snapshot is the way, which is refused where it is not later.
            return Err(match info.pos.timeline > local.pos.timeline.0 {
                true => Failure {
                    status: 410,
                    ..differs
                },
                false => differs,
            });
        };
        let (feed, hello) = source.open(common.txid).await?;
        self.check(&hello, Some(local))?;
        let head = hello.beat.head;
        if hello.after == common && head.timeline > local.pos.timeline && head.txid > common.txid {
            tracing::warn!(
                "{}: {} begins a newer timeline after transaction {}, this replica is at {}",
                self.database.db_path.display(),
                self.pull.url(),
                common.txid,
                local.pos
            );
            return Ok(Line {
                feed,
                hello,
                local: Some(local),
                after: common,
            });
        }
        Err(self.differs(match head == common {
            true => format!(
                "this replica is at {}, {} ends at {head}: it has lost what came after that, or is an old copy",
                local.pos,
                self.pull.url()
            ),
            false => format!(
                "{} has another history: it is the one here up to transaction {}, then it is at {head} and this replica at {}",
                self.pull.url(),
                common.txid,
                local.pos
            ),
        }))
    }

    /// The last place where both sides have been; both go the same way up to it, and never again after it. `None` where they
    /// have none in what both keep; the server keeps what begins with transaction `first`.
    async fn last_common(
        &self,
        source: &Source,
        local: Pos,
        first: u64,
    ) -> Result<Option<Pos>, Failure> {
        let ours = self.ours(None).await?.unwrap_or(Pos::ZERO);
        let begin = Txid(first.saturating_sub(1)).max(ours.txid);
        let (mut common, mut beyond) = (None, local.txid.next());
        let mut low = begin;
        while low < beyond {
            // The first look is at the beginning, the others halve what is left.
            let middle = match common {
                None => begin,
                Some(_) => Txid(low.0 + (beyond.0 - low.0) / 2),
            };
            let theirs = match middle {
                Txid(0) => Some(Pos::ZERO),
                _ => match source.pos_at(middle).await {
                    Ok(theirs) => Some(theirs),
                    Err(failure) if failure.status == 404 => None,
                    Err(failure) => return Err(failure),
                },
            };
            match self.ours(Some(middle)).await? {
                Some(same) if Some(same) == theirs => {
                    common = Some(same);
                    low = middle.next();
                }
                _ if common.is_none() => return Ok(None),
                _ => beyond = middle,
            }
        }
        Ok(common)
    }

    /// Where the log here was after a transaction, or where it begins.
    async fn ours(&self, txid: Option<Txid>) -> Result<Option<Pos>, Failure> {
        let database = Arc::clone(&self.database);
        let found = tokio::task::spawn_blocking(move || match txid {
            Some(txid) => fork::pos_at(&database, txid),
            None => fork::begins_after(&database).map(Some),
        });
        match found.await {
            Ok(Ok(pos)) => Ok(pos),
            Ok(Err(refusal)) => Err(Failure::transient(Error::new(
                ErrorKind::Io,
                refusal.error(),
            ))),
            Err(e) => Err(Failure::transient(Error::new(ErrorKind::Internal, e))),
        }
    }

    /// Hands a piece to the job that stores, which is started if there is none.
    async fn store(&mut self, place: Place, piece: Bytes) -> Result<(), Failure> {
        self.pull.set_storing(true);
        let job = match &mut self.job {
            Some(job) => job,
            None => {
                let wait = self.state.limits.append_wait;
                let turn = self.database.turn(wait).await.map_err(|refusal| {
                    Failure::transient(Error::new(ErrorKind::Busy, refusal.error()))
                })?;
                let (pieces, receiver) = receive::pieces();
                let (state, database) = (Arc::clone(&self.state), Arc::clone(&self.database));
                let ended = tokio::task::spawn_blocking(move || {
                    receive::run(&state, &database, turn, place, receiver)
                });
                self.job.insert(Job {
                    pieces: Some(pieces),
                    ended,
                })
            }
        };
        let sent = match &job.pieces {
            Some(pieces) => pieces.send(piece).await.is_ok(),
            None => false,
        };
        if !sent {
            // It has ended early: it knows why.
            self.finish_job().await?;
            return Err(Failure::transient(Error::new(
                ErrorKind::Internal,
                "storing the records ended early",
            )));
        }
        Ok(())
    }

    /// Lets the job store what it has, and waits for that; where the log durably ends then.
    async fn finish_job(&mut self) -> Result<Option<Pos>, Failure> {
        let Some(job) = &mut self.job else {
            return Ok(None);
        };
        job.pieces = None;
        let ended = (&mut job.ended).await;
        self.job = None;
        self.pull.set_storing(false);
        match ended {
            Ok(result) => result.map(Some),
            Err(e) => Err(Failure::transient(Error::new(
                ErrorKind::Internal,
                format_args!("storing the records ended unexpectedly: {e}"),
            ))),
        }
    }
}

/// What is there and is no replica stays as it is.
pub(super) fn refuse_foreign(database: &Database) -> Result<(), Error> {
    let log = database.log_dir.join("meta").exists();
    if !log && database.db_path.symlink_metadata().is_ok() {
        return Err(Error::new(
            ErrorKind::Diverged,
            "this file is there but has no log, so it is not a replica",
        )
        .at(database.db_path.display())
        .hint("nothing was changed; move it away, or follow into another file"));
    }
    // Only what writes through the extension leaves this.
    if log && promote::is_written(&database.log_dir) {
        return Err(Error::new(
            ErrorKind::Diverged,
            "this database has been written to here, so it is not a replica",
        )
        .at(database.db_path.display())
        .hint("nothing was changed; follow into another file, or if it was the primary before: mycelite follow --rejoin"));
    }
    Ok(())
}

fn ended(source: &Source, reason: EndReason, text: &str) -> Failure {
    let what = match reason {
        EndReason::Stopping => "the server hung up",
        EndReason::HistoryChanged => "the server's history changed",
        EndReason::Failed => "the server failed",
    };
    Failure::transient(
        Error::new(ErrorKind::Network, format_args!("{what}: {text}")).at(source.url()),
    )
}

/// Some refusals mean more here than the server could know.
fn explain(failure: Failure) -> Failure {
    let error = failure.error.clone();
    match failure.status {
        501 => Failure::refused(error.hint("the server is older than this program: update it")),
        _ => failure,
    }
}
