//! `mycelite demo`: the main job on this machine, in front of your eyes.

mod cancel;
mod data;
mod load;
mod replica;
mod report;
mod show;
mod watch;

use std::path::{Path, PathBuf};
use std::thread::Scope;
use std::time::{Duration, Instant};

use mycelite::database;
use mycelite::error::{Error, ErrorKind, Result};

use super::Answer;
use super::args::DemoArgs;
use cancel::Cancel;
use data::Data;
use load::Primary;
use replica::Replica;
use report::{Outage, Report};
use show::Show;
use watch::{Commits, Watcher};

/// How long the replicas may stand still when the load is over.
const STANDSTILL: Duration = Duration::from_secs(30);
/// Roughly how many commits the load is cut into.
const COMMITS: usize = 300;

/// Runs the verb.
pub fn run(args: &DemoArgs) -> Result<Answer> {
    let cancel = Cancel::install()?;
    let home = Home::new(args.keep.as_deref())?;
    let answer = play(args, &home.path, &cancel);
    if cancel.is_set() {
        return Ok(Answer::Interrupted);
    }
    answer
}

/// The demo's directory; removed at the end unless it is to be kept.
struct Home {
    path: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

impl Home {
    fn new(keep: Option<&Path>) -> Result<Home> {
        let Some(path) = keep else {
            let temporary = tempfile::Builder::new()
                .prefix("mycelite-demo-")
                .tempdir()
                .map_err(|source| {
                    Error::io("creating a directory in", &std::env::temp_dir(), &source)
                })?;
            return Ok(Home {
                path: temporary.path().to_path_buf(),
                _temporary: Some(temporary),
            });
        };
        std::fs::create_dir_all(path).map_err(|source| Error::io("creating", path, &source))?;
        let mut entries =
            std::fs::read_dir(path).map_err(|source| Error::io("reading", path, &source))?;
        if entries.next().is_some() {
            return Err(Error::new(ErrorKind::Usage, "this directory is not empty")
                .at(path.display())
                .hint("give --keep a new directory"));
        }
        Ok(Home {
            path: path.to_path_buf(),
            _temporary: None,
        })
    }
}

/// Two replicas, the steady one and the one that is killed.
struct Stage<'a> {
    replicas: [Replica; 2],
    watchers: &'a [Watcher; 2],
    commits: &'a Commits,
    cancel: &'a Cancel,
    show: Show,
    primary: Primary,
    log_dir: PathBuf,
}

fn play(args: &DemoArgs, home: &Path, cancel: &Cancel) -> Result<Answer> {
    let data = data::load(args.packages as usize);
    let replicas = [Replica::start(home, 1)?, Replica::start(home, 2)?];
    let db = home.join("primary.db");
    let urls: Vec<String> = replicas.iter().map(Replica::url).collect();
    let watchers = [
        Watcher::new(replicas[0].db()),
        Watcher::new(replicas[1].db()),
    ];
    let commits = Commits::default();
    show::opening(&data, &db, &replicas, args.keep.is_some())?;
    let primary = Primary::create(&db, &urls, &commits)?;
    let mut stage = Stage {
        replicas,
        watchers: &watchers,
        commits: &commits,
        cancel,
        show: Show::new(1 + batches(&data).len()),
        primary,
        log_dir: database::log_dir(&db),
    };
    let mut report = Report::default();
    std::thread::scope(|scope| {
        // Whatever happens below, the readers must be told to stop before the scope can end.
        let _stop = StopWatchers(&watchers);
        start_watchers(scope, &watchers, &commits);
        stage.load(&data, &mut report)?;
        stage.wait_for_replicas(&mut report)
    })?;
    let Stage {
        replicas,
        primary,
        show,
        ..
    } = stage;
    show.finish();
    report.closing(primary, &db, replicas, &watchers, &commits)?;
    report.print(&data)?;
    Ok(if report.is_good() {
        Answer::Yes
    } else {
        Answer::No
    })
}

/// What goes into one commit each.
fn batches(data: &Data) -> std::slice::Chunks<'_, data::Package> {
    data.packages
        .chunks(data.packages.len().div_ceil(COMMITS).max(1))
}

fn start_watchers<'scope>(
    scope: &'scope Scope<'scope, '_>,
    watchers: &'scope [Watcher; 2],
    commits: &'scope Commits,
) {
    for watcher in watchers {
        scope.spawn(move || watcher.run(commits));
    }
}

struct StopWatchers<'a>(&'a [Watcher; 2]);

impl Drop for StopWatchers<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(Watcher::stop);
    }
}

impl Stage<'_> {
    /// Loads everything: the first half in DELETE mode, the rest in WAL mode; the second replica is dead from a quarter to
    /// two thirds.
    fn load(&mut self, data: &Data, report: &mut Report) -> Result<()> {
        let batches: Vec<_> = batches(data).collect();
        let (kill, wal, restart) = (batches.len() / 4, batches.len() / 2, batches.len() * 2 / 3);
        let began = Instant::now();
        for (index, batch) in batches.iter().enumerate() {
            self.check_cancel()?;
            if index == kill {
                self.replicas[1].kill()?;
                report.outage = Some(Outage::begin(self.commits.count()));
                self.show.event(format_args!(
                    "{} killed with SIGKILL at commit {}",
                    self.replicas[1].title,
                    self.commits.count()
                ));
            }
            if index == wal {
                report.seconds_delete = began.elapsed();
                report.commits_delete = self.commits.count();
                self.primary.switch_to_wal()?;
                self.show
                    .event("the primary switched from DELETE to WAL journal mode");
            }
            if index == restart {
                self.bring_back(report)?;
            }
            self.primary.write(batch, self.commits)?;
            self.note_recovery(report);
            self.line(index >= wal)?;
        }
        report.seconds_wal = began.elapsed().saturating_sub(report.seconds_delete);
        report.packages = data.packages.len();
        Ok(())
    }

    fn bring_back(&mut self, report: &mut Report) -> Result<()> {
        self.replicas[1].restart()?;
        let count = self.commits.count();
        self.show.event(format_args!(
            "{} is back, {} commits behind",
            self.replicas[1].title,
            count - self.watchers[1].seen()
        ));
        if let Some(outage) = &mut report.outage {
            outage.back(count, self.watchers[1].seen());
        }
        Ok(())
    }

    /// The moment when the replica that was dead shows what it had missed.
    fn note_recovery(&self, report: &mut Report) {
        if let Some(outage) = &mut report.outage {
            outage.look(self.watchers[1].seen());
        }
    }

    fn wait_for_replicas(&mut self, report: &mut Report) -> Result<()> {
        let all = self.commits.count();
        let began = Instant::now();
        let mut moved = (Instant::now(), 0);
        loop {
            self.check_cancel()?;
            self.note_recovery(report);
            let seen: Vec<u64> = self.watchers.iter().map(Watcher::seen).collect();
            if seen.iter().all(|seen| *seen >= all) {
                report.drained = began.elapsed();
                return Ok(());
            }
            if seen.iter().sum::<u64>() != moved.1 {
                moved = (Instant::now(), seen.iter().sum());
            }
            if moved.0.elapsed() > STANDSTILL {
                report.problem(format!(
                    "the replicas show {} and {} of {all} commits, and no more for {} seconds",
                    self.watchers[0].seen(),
                    self.watchers[1].seen(),
                    STANDSTILL.as_secs()
                ));
                return Ok(());
            }
            self.line(true)?;
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn line(&mut self, wal: bool) -> Result<()> {
        if !self.show.is_due() {
            return Ok(());
        }
        let count = self.commits.count();
        let replicas: Vec<String> = self
            .replicas
            .iter()
            .zip(self.watchers)
            .map(|(replica, watcher)| {
                let behind = count.saturating_sub(watcher.seen());
                match replica.is_up() {
                    true => format!("{} {behind} behind", replica.title),
                    false => format!("{} dead, {behind} behind", replica.title),
                }
            })
            .collect();
        let sizes = (
            self.primary.bytes()?,
            database::directory_bytes(&self.log_dir),
        );
        self.show
            .line(if wal { "WAL" } else { "DELETE" }, count, sizes, &replicas);
        Ok(())
    }

    fn check_cancel(&self) -> Result<()> {
        match self.cancel.is_set() {
            true => Err(Error::new(ErrorKind::Internal, "interrupted")),
            false => Ok(()),
        }
    }
}
