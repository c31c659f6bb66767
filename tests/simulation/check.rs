//! What must be true at every moment.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use mycelite_journal::{FaultStorage, Log, Reader};
use rusqlite::{Connection, MAIN_DB, OpenFlags};

use crate::broken;
use crate::kernel::{Kernel, PartyId, with};
use crate::oracle::{Place, hash_of, oracle, place};
use crate::world::{World, files};

/// What was seen of the parties so far.
pub struct Checker {
    /// All records that were ever durable at a replica.
    ever: Vec<BTreeSet<Place>>,
    versions: Vec<u64>,
    /// What was found last in the log, and in which files.
    last: Vec<(u64, Rc<Found>)>,
    /// The last files of each database, and the hash of the image in them.
    last_images: Vec<(u64, u64)>,
    pub logs: u64,
    pub images: u64,
    pub durables: u64,
    pub parked: usize,
    /// Two histories may meet: what is refused then is not repaired.
    pub forks_allowed: bool,
}

/// The records of one log, and of its parked tails.
#[derive(Default)]
struct Found {
    log: Vec<Place>,
    parked: BTreeSet<Place>,
    tails: usize,
}

impl Found {
    fn all(&self) -> BTreeSet<Place> {
        self.parked.iter().chain(&self.log).copied().collect()
    }
}

/// The records of a log as a process finds them that opens these files after a crash.
fn records(files: &BTreeMap<String, Vec<u8>>) -> Result<Vec<Place>, String> {
    let disk = FaultStorage::new();
    for (name, bytes) in files {
        disk.put(name, bytes.clone());
    }
    match Log::open(Arc::new(disk.clone())) {
        Err(e) if e.is_not_found() => return Ok(Vec::new()),
        // What was torn is not there any more as soon as somebody writes.
        opened => opened
            .and_then(|mut log| log.drop_tail())
            .map_err(|e| e.to_string())?,
    };
    let mut reader = Reader::open(Arc::new(disk)).map_err(|e| e.to_string())?;
    let mut found = Vec::new();
    while let Some(entry) = reader.next().map_err(|e| e.to_string())? {
        entry.verify().map_err(|e| e.to_string())?;
        found.push(place(entry.header.pos()));
    }
    Ok(found)
}

/// The same, with the parked tails below.
fn all_records(files: &BTreeMap<String, Vec<u8>>) -> Result<Found, String> {
    let mut log = BTreeMap::new();
    let mut tails: BTreeMap<String, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
    for (name, bytes) in files {
        let parts: Vec<&str> = name.split('/').collect();
        match parts[..] {
            [name] => {
                log.insert(name.to_string(), bytes.clone());
            }
            ["parked", "new" | "incoming", _] => {}
            ["parked", tail, name] => {
                let tail = tails.entry(tail.to_string()).or_default();
                tail.insert(name.to_string(), bytes.clone());
            }
            _ => {}
        }
    }
    let mut found = Found {
        log: records(&log)?,
        tails: tails.len(),
        ..Found::default()
    };
    for (name, tail) in &tails {
        let tail = records(tail).map_err(|e| format!("parked tail {name}: {e}"))?;
        found.parked.extend(tail);
    }
    Ok(found)
}

fn on_disk(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found: BTreeMap<_, _> = files(dir).into_iter().collect();
    if let Ok(tails) = std::fs::read_dir(dir.join("parked")) {
        for tail in tails {
            let path = tail.unwrap().path();
            let tail = path.file_name().unwrap().to_str().unwrap();
            for (name, bytes) in files(&path) {
                found.insert(format!("parked/{tail}/{name}"), bytes);
            }
        }
    }
    found
}

/// A server says that it has this: then a power cut now must not take it.
pub fn said(kernel: &mut Kernel, party: PartyId, pos: Place) {
    if pos.1 == 0 {
        return;
    }
    let found = all_records(&durable(kernel, party, "data/app.db-mycelite"));
    kernel.acks += 1;
    if !found.is_ok_and(|found| found.all().contains(&pos)) {
        let why =
            format!("party {party} says that it has {pos:x?}, which a power cut would take (P4)");
        crate::outcome::fail(kernel, &why);
    }
}

/// What a power cut would leave in any case of a log and its parked tails.
fn durable(kernel: &Kernel, party: PartyId, log: &str) -> BTreeMap<String, Vec<u8>> {
    let durable = kernel.disks[party].durable(log);
    durable
        .into_iter()
        .map(|(name, bytes)| (name, bytes.to_vec()))
        .collect()
}

/// A hash of files and their names.
fn hash_files(files: &BTreeMap<String, Vec<u8>>) -> u64 {
    let mut hash = 0_u64;
    for (name, bytes) in files {
        hash = hash.rotate_left(1) ^ hash_of(name.as_bytes()).wrapping_mul(hash_of(bytes) | 1);
    }
    hash
}

impl Checker {
    pub fn new(world: &World) -> Checker {
        let count = world.roles.len() + 1;
        Checker {
            ever: vec![BTreeSet::new(); count],
            versions: vec![0; count],
            last: vec![(0, Rc::default()); count],
            last_images: vec![(0, 0); count],
            logs: 0,
            images: 0,
            durables: 0,
            parked: 0,
            forks_allowed: false,
        }
    }

    /// Everything that is true at any moment.
    pub fn check(&mut self, world: &World) {
        let replicas = world.replicas();
        for party in &replicas {
            self.check_durable(world, *party);
        }
        self.check_acked(world);
        let mut logs = BTreeMap::new();
        for party in &replicas {
            logs.insert(*party, self.check_log(world, *party));
        }
        for party in &replicas {
            if let Some(source) = world.follows(*party) {
                self.check_pulled(*party, source, &logs[party]);
            }
        }
        if !self.forks_allowed {
            check_forks(&logs);
        }
        for party in &replicas {
            self.check_image(world, *party, &logs[party]);
        }
    }

    /// Nothing that was durable once is gone: it is in the log or in a parked tail, also after a power cut now.
    fn check_durable(&mut self, world: &World, party: PartyId) {
        let version = with(|kernel| kernel.disks[party].version);
        if version == self.versions[party] {
            return;
        }
        self.versions[party] = version;
        self.durables += 1;
        let files = with(|kernel| durable(kernel, party, world.log_name(party)));
        let found = all_records(&files).unwrap_or_else(|e| {
            broken(&format!(
                "party {party}: what a power cut would leave cannot be read: {e}"
            ))
        });
        self.parked = self.parked.max(found.tails);
        let all = found.all();
        if let Some(lost) = self.ever[party].difference(&all).next() {
            broken(&format!(
                "party {party}: record {lost:x?} was durable, and is gone (P9)"
            ));
        }
        self.ever[party] = all;
    }

    /// What was acknowledged is durable there.
    fn check_acked(&self, world: &World) {
        for party in world.parties() {
            let crate::world::Role::Primary { replicas, .. } = world.role(party) else {
                continue;
            };
            let acked = world
                .notes(party, |notes| notes.acked.clone())
                .unwrap_or_default();
            for (index, pos) in acked {
                let replica = replicas[index];
                if !self.ever[replica].contains(&place(pos)) {
                    broken(&format!(
                        "party {replica} has acknowledged {pos}, which a power cut would take (P4)"
                    ));
                }
            }
        }
    }

    /// Each record is one that a primary published, and follows the one before it.
    fn check_log(&mut self, world: &World, party: PartyId) -> Rc<Found> {
        let files = on_disk(&world.log_dir(party));
        let hash = hash_files(&files);
        if self.last[party].0 == hash {
            return Rc::clone(&self.last[party].1);
        }
        self.logs += 1;
        let found = all_records(&files).unwrap_or_else(|e| {
            broken(&format!(
                "party {party}: what a kill would leave cannot be read: {e}"
            ))
        });
        for (index, at) in found.log.iter().enumerate() {
            if !oracle().knows(*at) {
                broken(&format!(
                    "party {party}: record {at:x?} was never written (P1)"
                ));
            }
            let before = index
                .checked_sub(1)
                .map_or((0, 0, 0), |index| found.log[index]);
            if at.1 != before.1 + 1 || at.0 < before.0 {
                broken(&format!(
                    "party {party}: record {at:x?} does not follow {before:x?}"
                ));
            }
        }
        for at in &found.parked {
            let index = (at.1 - 1) as usize;
            if let Some(instead) = found.log.get(index).filter(|instead| *instead != at)
                && instead.0 <= at.0
            {
                broken(&format!(
                    "party {party}: {at:x?} made room for {instead:x?}, which is no newer timeline (P9)"
                ));
            }
        }
        let found = Rc::new(found);
        self.last[party] = (hash, Rc::clone(&found));
        found
    }

    /// Nobody has what its source could still lose.
    fn check_pulled(&self, party: PartyId, source: PartyId, found: &Found) {
        for at in &found.log {
            if !self.ever[source].contains(at) {
                broken(&format!(
                    "party {party} has record {at:x?}, which its source {source} could lose"
                ));
            }
        }
    }

    /// The file is, for any SQLite, one of the states that were recorded, and the log knows it (P4, P6).
    fn check_image(&mut self, world: &World, party: PartyId, found: &Found) {
        let files = files_of_database(&world.db(party));
        let in_files = hash_files(&files);
        if self.last_images[party].0 != in_files {
            self.images += 1;
            let image = image_in(world, &files).unwrap_or_else(|e| {
                broken(&format!("party {party}: its file cannot be read: {e} (P6)"))
            });
            let hash = if image.is_empty() { 0 } else { hash_of(&image) };
            self.last_images[party] = (in_files, hash);
        }
        let hash = self.last_images[party].1;
        if hash == 0 {
            return;
        }
        let oracle = oracle();
        let known = |at: &Place| oracle.image(*at) == Some(hash);
        if !found.log.iter().rev().any(known) && !found.parked.iter().any(known) {
            drop(oracle);
            broken(&format!(
                "party {party}: its file is no recorded state (P4)"
            ));
        }
    }
}

/// Two different records never have the same place in the history, whoever has them (P9).
fn check_forks(logs: &BTreeMap<PartyId, Rc<Found>>) {
    let mut known: BTreeMap<(u64, u64), (u64, PartyId)> = BTreeMap::new();
    for (party, found) in logs {
        for at in &found.log {
            let (checksum, other) = *known.entry((at.0, at.1)).or_insert((at.2, *party));
            if checksum != at.2 {
                broken(&format!(
                    "parties {other} and {party} have different records {at:x?} (P9)"
                ));
            }
        }
    }
}

/// A database's files, without shared memory, by what their names end in.
fn files_of_database(db: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |suffix: &str| std::fs::read(format!("{}{suffix}", db.display()));
    ["", "-wal", "-journal"]
        .into_iter()
        .filter_map(|suffix| Some((suffix.to_string(), read(suffix).ok()?)))
        .collect()
}

/// The image that SQLite finds when it opens these files.
fn image_in(world: &World, files: &BTreeMap<String, Vec<u8>>) -> Result<Vec<u8>, String> {
    let copy = world.root.join("look.db");
    for suffix in ["", "-wal", "-journal", "-shm"] {
        let to = format!("{}{suffix}", copy.display());
        let _ = std::fs::remove_file(&to);
        if let Some(bytes) = files.get(suffix) {
            std::fs::write(to, bytes).map_err(|e| e.to_string())?;
        }
    }
    if files.values().all(Vec::is_empty) {
        return Ok(Vec::new());
    }
    let look = || -> rusqlite::Result<Vec<u8>> {
        let mut db = Connection::open_with_flags_and_vfs(&copy, OpenFlags::default(), c"unix")?;
        let pages: i64 = db.query_row("PRAGMA page_count", [], |row| row.get(0))?;
        if pages == 0 {
            return Ok(Vec::new());
        }
        Ok(db.serialize(MAIN_DB)?.to_vec())
    };
    look().map_err(|e| e.to_string())
}

/// The image that SQLite finds when it opens the files as they are now.
pub fn image_after_crash(world: &World, party: PartyId) -> Result<Vec<u8>, String> {
    image_in(world, &files_of_database(&world.db(party)))
}
