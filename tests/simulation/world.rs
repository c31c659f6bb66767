//! The parties: primaries, servers and followers, each with its own files, address and clock. What runs is what ships.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mycelite::server::{Endurance, FollowOptions, Follower, Limits, ServeOptions, Server};
use tokio::sync::oneshot;

use crate::kernel::{Death, Key, PartyId, SECOND, block, with};
use crate::net::address_of;
use crate::primary::{self, Notes, Plan};

const PORT: u16 = 7878;

/// What a party is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// It writes, and ships to these.
    Primary { replicas: Vec<PartyId>, id: u8 },
    /// It serves what is pushed to it, or follows another server.
    Server { follows: Option<PartyId> },
    /// It keeps one file that follows a server, and serves it in turn.
    Follower { follows: PartyId },
}

pub struct World {
    pub root: PathBuf,
    pub roles: Vec<Role>,
    lives: Vec<Option<Life>>,
    pub pause_max: u64,
}

/// One life of a party, seen by the director.
struct Life {
    notes: Arc<Mutex<Notes>>,
    stop: Option<oneshot::Sender<()>>,
}

pub fn url(of: PartyId) -> String {
    let [a, b, c, d] = address_of(of).to_be_bytes();
    format!("http://{a}.{b}.{c}.{d}:{PORT}/app")
}

fn listen(of: PartyId) -> String {
    let [a, b, c, d] = address_of(of).to_be_bytes();
    format!("{a}.{b}.{c}.{d}:{PORT}")
}

impl World {
    /// `roles` are those of the parties from 1 on.
    pub fn new(root: PathBuf, roles: Vec<Role>, pause_max: u64) -> World {
        let count = roles.len() + 1;
        for party in 1..count {
            let home = root.join(format!("p{party}"));
            std::fs::create_dir_all(home.join("data")).unwrap();
            with(|kernel| {
                let disk = &mut kernel.disks[party];
                disk.root = home;
                disk.made_dir("data");
                disk.synced_dir("", usize::MAX);
            });
        }
        World {
            root,
            roles,
            lives: (0..count).map(|_| None).collect(),
            pause_max,
        }
    }

    pub fn parties(&self) -> std::ops::RangeInclusive<PartyId> {
        1..=self.roles.len()
    }

    pub fn role(&self, party: PartyId) -> &Role {
        &self.roles[party - 1]
    }

    pub fn is_primary(&self, party: PartyId) -> bool {
        matches!(self.role(party), Role::Primary { .. })
    }

    /// Whom it gets its records from, if it pulls them.
    pub fn follows(&self, party: PartyId) -> Option<PartyId> {
        match self.role(party) {
            Role::Server { follows } => *follows,
            Role::Follower { follows } => Some(*follows),
            Role::Primary { .. } => None,
        }
    }

    /// The parties that keep a replica.
    pub fn replicas(&self) -> Vec<PartyId> {
        self.parties()
            .filter(|party| !self.is_primary(*party))
            .collect()
    }

    /// Its log's directory, below its home.
    pub fn log_name(&self, party: PartyId) -> &'static str {
        match self.role(party) {
            Role::Follower { .. } => "data/copy.db-mycelite",
            _ => "data/app.db-mycelite",
        }
    }

    pub fn home(&self, party: PartyId) -> PathBuf {
        self.root.join(format!("p{party}"))
    }

    pub fn log_dir(&self, party: PartyId) -> PathBuf {
        self.home(party).join(self.log_name(party))
    }

    /// Its database file.
    pub fn db(&self, party: PartyId) -> PathBuf {
        let name = self.log_name(party).trim_end_matches("-mycelite");
        self.home(party).join(name)
    }

    pub fn is_alive(&self, party: PartyId) -> bool {
        with(|kernel| kernel.parties[party].alive)
    }

    /// What a living party notes.
    pub fn notes<T>(&self, party: PartyId, look: impl FnOnce(&mut Notes) -> T) -> Option<T> {
        let life = self.lives[party]
            .as_ref()
            .filter(|_| self.is_alive(party))?;
        Some(look(&mut life.notes.lock().unwrap()))
    }

    /// Begins a life.
    pub fn start(&mut self, party: PartyId, seed: u64) {
        if self.is_alive(party) {
            return;
        }
        let notes = Arc::new(Mutex::new(Notes {
            writes: true,
            ..Notes::default()
        }));
        let (stop, stopped) = oneshot::channel();
        let body = self.body(party, seed, Arc::clone(&notes), stopped);
        with(|kernel| {
            kernel.tell(|| format!("party {party} starts"));
            kernel.revive(party);
            kernel.spawns_as = Some(party);
        });
        let noted = Arc::clone(&notes);
        std::thread::spawn(move || {
            let ended = body();
            noted.lock().unwrap().ended = Some(ended);
            with(|kernel| {
                kernel.wake(Key::News, usize::MAX);
            });
        });
        self.lives[party] = Some(Life {
            notes,
            stop: Some(stop),
        });
    }

    fn body(
        &self,
        party: PartyId,
        seed: u64,
        notes: Arc<Mutex<Notes>>,
        stopped: oneshot::Receiver<()>,
    ) -> Box<dyn FnOnce() -> Result<(), String> + Send> {
        let (log_dir, home, db) = (self.log_dir(party), self.home(party), self.db(party));
        match self.role(party).clone() {
            Role::Primary { replicas, id } => {
                let plan = Plan {
                    log_dir,
                    id,
                    replicas: replicas.iter().map(|replica| url(*replica)).collect(),
                    boot: with(|kernel| kernel.parties[party].boots) * 100 + party as u64,
                    seed,
                    pause_max: self.pause_max,
                };
                Box::new(move || primary::run(&plan, &notes))
            }
            Role::Server { follows } => {
                let mut options = ServeOptions::new(listen(party), home.join("data"));
                if let Some(follows) = follows {
                    let source = (name(), url(follows).parse().unwrap());
                    options.follow.push(source);
                }
                Box::new(move || serve(options, stopped))
            }
            Role::Follower { follows } => {
                let options = FollowOptions {
                    url: url(follows).parse().unwrap(),
                    access: Default::default(),
                    tls: None,
                    db,
                    log_dir,
                    claim: false,
                    listen: Some(listen(party)),
                    token_file: None,
                    endurance: Endurance::Always,
                    limits: Limits::default(),
                };
                Box::new(move || follow(options, stopped))
            }
        }
    }

    /// Asks a party to end, and waits for that.
    pub fn stop(&mut self, party: PartyId) {
        let Some(life) = self.lives[party].as_mut() else {
            return;
        };
        life.notes.lock().unwrap().stop = true;
        if let Some(stop) = life.stop.take() {
            let _ = stop.send(());
        }
        let begin = with(|kernel| kernel.now);
        while self.notes(party, |notes| notes.ended.is_none()) == Some(true) {
            let now = with(|kernel| kernel.now);
            if now > begin + 60 * SECOND {
                crate::broken(&format!("party {party} does not stop when it is asked to"));
            }
            block(Key::News, Some(now + SECOND));
        }
        // What its process has left goes with it.
        with(|kernel| kernel.kill(party, Death::Kill));
    }

    /// Ends it the hard way.
    pub fn kill(&mut self, party: PartyId, death: Death) {
        with(|kernel| kernel.kill(party, death));
    }

    /// Those whose life has ended by itself: why.
    pub fn ended(&self) -> Vec<(PartyId, Result<(), String>)> {
        self.parties()
            .filter_map(|party| Some((party, self.notes(party, |notes| notes.ended.clone())??)))
            .collect()
    }

    /// Copies a party's log to another's, as `cp -r` does: other files.
    pub fn copy_log(&self, from: &Path, to: PartyId) {
        let target = self.log_dir(to);
        with(|kernel| {
            let _ = std::fs::remove_dir_all(&target);
            std::fs::create_dir_all(&target).unwrap();
            for (name, bytes) in files(from) {
                std::fs::write(target.join(name), bytes).unwrap();
            }
            kernel.disks[to].adopt();
        });
    }
}

/// The files of a directory, and their content.
pub fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = paths
        .filter(|path| path.is_file())
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_string();
            (name, std::fs::read(&path).unwrap())
        })
        .collect();
    found.sort();
    found
}

fn name() -> mycelite::proto::DatabaseName {
    "app".parse().unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

fn serve(options: ServeOptions, stopped: oneshot::Receiver<()>) -> Result<(), String> {
    let runtime = runtime();
    let served = runtime.block_on(async {
        let server = Server::bind(options).await?;
        server
            .run(async {
                let _ = stopped.await;
            })
            .await
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    served.map_err(|e| e.to_string())
}

fn follow(options: FollowOptions, stopped: oneshot::Receiver<()>) -> Result<(), String> {
    let runtime = runtime();
    let followed = runtime.block_on(async {
        let follower = Follower::open(options).await?;
        follower
            .run(async {
                let _ = stopped.await;
            })
            .await
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    followed.map_err(|e| e.to_string())
}
