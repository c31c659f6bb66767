//! What happens to the parties: drawn from the seed, checked after each event; and in the end, when all troubles are over,
//! everything must come right by itself.

use std::path::PathBuf;

use crate::broken;
use crate::check::{Checker, image_after_crash};
use crate::kernel::{Death, Key, MILLISECOND, PartyId, Random, SECOND, block, with};
use crate::net;
use crate::oracle::{hash_of, oracle, place};
use crate::outcome::Numbers;
use crate::world::{Role, World, files};

const PRIMARY: PartyId = 1;
const ROGUE: PartyId = 6;
/// Simulated time within which everything comes right: a shipper looks again at a replica that had diverged after two minutes.
const PATIENCE: u64 = 1200 * SECOND;

pub struct Director {
    random: Random,
    world: World,
    checker: Checker,
    used: Vec<PartyId>,
    /// Those of whose files a call has failed in this life: they may end by themselves.
    faulted: Vec<bool>,
    backup: Option<PathBuf>,
    cuts: u64,
    kills: u64,
    reported: u64,
}

/// Runs the world of a seed.
pub fn run(seed: u64, root: PathBuf) -> Numbers {
    let mut random = Random(seed ^ 0x5eed);
    let pushed = match random.below(3) {
        0 => vec![2, 5],
        _ => vec![2],
    };
    let mut used = vec![PRIMARY, 2];
    used.extend(pushed.iter().filter(|party| **party == 5));
    if !random.one_in(4) {
        used.push(3);
        if random.one_in(2) {
            used.push(4);
        }
    }
    let rogue_id = if random.one_in(4) { 8 } else { 7 };
    let roles = vec![
        Role::Primary {
            replicas: pushed.clone(),
            id: 7,
        },
        Role::Server { follows: None },
        Role::Server { follows: Some(2) },
        Role::Follower { follows: 3 },
        Role::Server { follows: None },
        Role::Primary {
            replicas: pushed,
            id: rogue_id,
        },
    ];
    let pause_max = 1 << (13 + random.below(9));
    let world = World::new(root, roles, pause_max);
    let count = world.roles.len() + 1;
    let mut director = Director {
        checker: Checker::new(&world),
        random,
        world,
        used,
        faulted: vec![false; count],
        backup: None,
        cuts: 0,
        kills: 0,
        reported: 0,
    };
    director.trouble();
    director.heal();
    director.settle();
    director.numbers()
}

impl Director {
    fn sleep(&mut self, time: u64) {
        let until = with(|kernel| kernel.now) + time;
        block(Key::News, Some(until));
    }

    fn anyone(&mut self) -> PartyId {
        let index = self.random.below(self.used.len() as u64) as usize;
        self.used[index]
    }

    fn start(&mut self, party: PartyId) {
        if self.world.is_alive(party) {
            return;
        }
        self.faulted[party] = with(|kernel| kernel.parties[party].full);
        let seed = self.random.next();
        self.world.start(party, seed);
    }

    /// Notices who has died, or ended by itself.
    fn bury(&mut self) {
        for party in self.used.clone() {
            if let Some(death) = with(|kernel| kernel.parties[party].died.take()) {
                match death {
                    Death::Kill => self.kills += 1,
                    Death::PowerCut => self.cuts += 1,
                }
            }
        }
        for (party, ended) in self.world.ended() {
            if let Err(why) = &ended {
                with(|kernel| kernel.tell(|| format!("party {party} has ended: {why}")));
                if !self.faulted[party] {
                    broken(&format!("party {party} has ended by itself: {why}"));
                }
            }
            self.world.kill(party, Death::Kill);
            with(|kernel| kernel.parties[party].died = None);
        }
    }

    /// Things happen.
    fn trouble(&mut self) {
        let order = self.used.clone();
        for party in order {
            if !self.random.one_in(4) {
                self.start(party);
            }
        }
        let steps = 10 + self.random.below(30);
        for _ in 0..steps {
            let wait = self.random.skewed(10 * SECOND);
            self.sleep(wait);
            self.bury();
            self.checker.check(&self.world);
            self.happen();
            self.bury();
            self.checker.check(&self.world);
            for party in self.used.clone() {
                if self.random.one_in(3) {
                    self.start(party);
                }
            }
        }
    }

    fn happen(&mut self) {
        let party = self.anyone();
        match self.random.below(24) {
            0..3 => self.change_link(party),
            3 => self.each_link(|link, random| link.breaks_one_in = random.below(6)),
            4 | 5 => self.touch_connection(net::break_off),
            6 => self.touch_connection(net::silence),
            7 => self.world.kill(party, Death::Kill),
            8 => self.world.kill(party, Death::PowerCut),
            9..12 => self.light(party, Death::Kill, 3000),
            12..15 => self.light(party, Death::PowerCut, 3000),
            15 => {
                if self.world.is_alive(party) {
                    self.world.stop(party);
                    with(|kernel| kernel.parties[party].died = None);
                }
            }
            16 => {
                self.faulted[party] = true;
                with(|kernel| {
                    let full = &mut kernel.parties[party].full;
                    *full = !*full;
                });
            }
            17 => {
                self.faulted[party] = true;
                let calls = self.random.skewed(500);
                with(|kernel| kernel.parties[party].fault = Some(calls));
            }
            18 => {
                let hours = self.random.below(200_000) as i64 - 100_000;
                with(|kernel| kernel.parties[party].clock_ahead = hours);
            }
            19 | 20 => with(net::say_again),
            21 => {
                let max = self.random.skewed(200 * MILLISECOND);
                with(|kernel| kernel.parties[party].sync_max = max);
            }
            22 => {
                self.world
                    .notes(PRIMARY, |notes| notes.writes = !notes.writes);
            }
            _ => self.meddle(),
        }
    }

    fn change_link(&mut self, a: PartyId) {
        let b = self.anyone();
        let (kind, amount) = (self.random.below(3), self.random.next());
        with(|kernel| {
            let now = kernel.now;
            let link = kernel.net.link(a, b);
            match kind {
                0 => link.down = !link.down,
                1 => link.latency = Random(amount).skewed(2 * SECOND),
                _ => link.bytes_per_second = 1000 + Random(amount).skewed(1 << 26),
            }
            kernel.net.release(now);
            kernel.tell(|| format!("the link {a}-{b} changes: {kind}"));
        });
    }

    fn each_link(&mut self, change: impl Fn(&mut net::Link, &mut Random)) {
        let mut random = Random(self.random.next());
        with(|kernel| {
            for link in kernel.net.links() {
                change(link, &mut random);
            }
        });
    }

    fn touch_connection(&mut self, touch: fn(&mut crate::kernel::Kernel, usize)) {
        let random = self.random.next();
        with(|kernel| {
            let open = net::open_connections(kernel);
            if !open.is_empty() {
                touch(kernel, open[random as usize % open.len()]);
            }
        });
    }

    /// A party will die in the middle of something.
    fn light(&mut self, party: PartyId, death: Death, calls_max: u64) {
        let calls = self.random.skewed(calls_max);
        with(|kernel| kernel.parties[party].fuse = Some((calls, death)));
    }

    /// What people do: another primary under the same name, a copy of a primary, an old backup put back.
    fn meddle(&mut self) {
        let log = self.world.log_dir(PRIMARY);
        if files(&log).is_empty() || self.checker.forks_allowed || !self.random.one_in(3) {
            return;
        }
        let backup = self.world.root.join("backup");
        match self.backup.take() {
            None => {
                let _ = std::fs::remove_dir_all(&backup);
                std::fs::create_dir(&backup).unwrap();
                for (name, bytes) in files(&log) {
                    std::fs::write(backup.join(name), bytes).unwrap();
                }
                self.backup = Some(backup);
            }
            Some(backup) => {
                with(|kernel| kernel.tell(|| "somebody meddles".to_string()));
                self.checker.forks_allowed = true;
                if self.random.one_in(2) {
                    self.world.kill(PRIMARY, Death::Kill);
                    self.bury();
                    self.world.copy_log(&backup, PRIMARY);
                    return;
                }
                let other = matches!(self.world.role(ROGUE), Role::Primary { id: 8, .. });
                if !other {
                    self.world.copy_log(&backup, ROGUE);
                }
                self.used.push(ROGUE);
                self.start(ROGUE);
            }
        }
    }

    /// All troubles are over.
    fn heal(&mut self) {
        with(|kernel| {
            kernel.tell(|| "all troubles are over".to_string());
            let now = kernel.now;
            for link in kernel.net.links() {
                *link = net::Link::default();
            }
            kernel.net.release(now);
            for party in &mut kernel.parties {
                (party.full, party.fault, party.fuse) = (false, None, None);
                party.sync_max = MILLISECOND;
            }
        });
        self.bury();
        for party in self.used.clone() {
            self.start(party);
        }
        self.sleep(2 * SECOND);
        self.bury();
        for party in self.used.clone() {
            self.start(party);
            self.world.notes(party, |notes| notes.writes = true);
        }
        self.sleep(3 * SECOND);
        for party in [PRIMARY, ROGUE] {
            self.world.notes(party, |notes| notes.writes = false);
        }
    }

    fn settle(&mut self) {
        let begin = with(|kernel| kernel.now);
        let mut pause = SECOND / 4;
        loop {
            self.sleep(pause);
            self.bury();
            self.checker.check(&self.world);
            let Some(why) = self.unsettled() else { return };
            let now = with(|kernel| kernel.now);
            if now > begin + PATIENCE {
                broken(&format!("it does not come right by itself: {why}"));
            }
            pause = (pause * 2).min(30 * SECOND);
        }
    }

    /// What is not right yet.
    fn unsettled(&mut self) -> Option<String> {
        let mut reported = 0;
        for primary in self.used.clone() {
            let Role::Primary { replicas, .. } = self.world.role(primary).clone() else {
                continue;
            };
            let noted = self
                .world
                .notes(primary, |notes| (notes.head, notes.replicas.clone()));
            let Some((Some(head), states)) = noted else {
                return Some(format!("party {primary} says nothing"));
            };
            for (state, replica) in states.iter().zip(replicas) {
                let refused = ["diverged", "refused"].contains(&state.state.as_str());
                if refused && self.checker.forks_allowed {
                    reported += 1;
                    continue;
                }
                if state.state != "caught-up" {
                    return Some(format!(
                        "party {primary} is at {head}, and says of {replica}: {state:?}"
                    ));
                }
                if let Some(why) = self.differs(replica, &self.world.log_dir(primary)) {
                    if self.checker.forks_allowed {
                        // The other one came after it: it learns that when it has something to say.
                        self.world.notes(primary, |notes| notes.last_word = true);
                    }
                    return Some(why);
                }
            }
        }
        for party in self.used.clone() {
            if let Some(source) = self.world.follows(party)
                && let Some(why) = self.differs(party, &self.world.log_dir(source))
            {
                return Some(why);
            }
        }
        self.reported = reported;
        None
    }

    /// How the replica differs from the log that it should be.
    fn differs(&self, party: PartyId, source: &std::path::Path) -> Option<String> {
        let (ours, theirs) = (raw(&self.world.log_dir(party)), raw(source));
        // A copy that has not written knows nothing of what the original has written since.
        if self.checker.forks_allowed && ours.0.starts_with(&theirs.0) && ours.0 != theirs.0 {
            return None;
        }
        if ours != theirs {
            return Some(format!(
                "party {party} has {} records, its source {}",
                ours.0.len(),
                theirs.0.len()
            ));
        }
        let head = ours.1?;
        let image = image_after_crash(&self.world, party).unwrap_or_default();
        let known = oracle().image(place(head));
        (known != Some(hash_of(&image)))
            .then(|| format!("the file of party {party} is not at {head}"))
    }

    fn numbers(&self) -> Numbers {
        with(|kernel| Numbers {
            hash: kernel.hash,
            counts: [
                oracle().commits,
                self.cuts,
                self.kills,
                kernel.net.broken,
                kernel.net.echoes,
                self.checker.parked as u64,
                self.reported,
                self.checker.logs,
                self.checker.images,
                self.checker.durables,
                kernel.acks,
                kernel.now / SECOND - 1000,
                kernel.tasks.len() as u64,
                kernel.switches(),
            ],
        })
    }
}

/// The records of a log, byte for byte, and where it ends.
fn raw(log_dir: &std::path::Path) -> (Vec<Vec<u8>>, Option<mycelite_journal::Pos>) {
    use std::io::Read;
    let storage = std::sync::Arc::new(mycelite_journal::FileStorage::new(log_dir));
    let Ok(mut reader) = mycelite_journal::Reader::open(storage) else {
        return (Vec::new(), None);
    };
    let (mut records, mut head) = (Vec::new(), None);
    while let Ok(Some(entry)) = reader.next() {
        let mut bytes = Vec::new();
        if entry.raw().read_to_end(&mut bytes).is_err() {
            break;
        }
        head = Some(entry.header.pos());
        records.push(bytes);
    }
    (records, head)
}
