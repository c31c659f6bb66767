//! What a power cut leaves of a database and its log.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

/// The files of a database, without shared memory, at one moment; or those of its log.
#[derive(Clone)]
pub struct Snapshot(BTreeMap<PathBuf, Vec<u8>>);

fn beside(db: &Path, suffix: &str) -> PathBuf {
    let mut name = db.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

pub fn log_of(db: &Path) -> PathBuf {
    beside(db, "-mycelite")
}

fn files_of_database(db: &Path) -> Vec<PathBuf> {
    ["", "-wal", "-journal"]
        .map(|suffix| beside(db, suffix))
        .to_vec()
}

fn files_of_log(db: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(log_of(db)).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.is_file()).collect()
}

impl Snapshot {
    fn of(paths: Vec<PathBuf>) -> Snapshot {
        let files = paths.into_iter();
        Snapshot(
            files
                .filter_map(|path| fs::read(&path).ok().map(|bytes| (path, bytes)))
                .collect(),
        )
    }

    /// The database as it is; nobody writes just now.
    pub fn database(db: &Path) -> Snapshot {
        Snapshot::of(files_of_database(db))
    }

    /// Its log as it is.
    pub fn log(db: &Path) -> Snapshot {
        Snapshot::of(files_of_log(db))
    }

    /// Puts the files back, into the same inodes, and removes others.
    fn restore(&self, others: Vec<PathBuf>) {
        for path in others {
            if !self.0.contains_key(&path) {
                let _ = fs::remove_file(path);
            }
        }
        for (path, bytes) in &self.0 {
            fs::write(path, bytes).unwrap();
        }
    }
}

/// The power goes and comes back: of the database this is left, of its log that. What was synced since is there all the
/// same: on which timeline the log is.
pub fn power_cut(db: &Path, database: &Snapshot, log: &Snapshot) {
    let timeline = log_of(db).join("timeline");
    let synced = fs::read(&timeline).unwrap();
    database.restore(files_of_database(db));
    let _ = fs::remove_file(beside(db, "-shm"));
    log.restore(files_of_log(db));
    fs::write(&timeline, synced).unwrap();
    reboot(db);
}

/// The machine was started anew since the log was written.
pub fn reboot(db: &Path) {
    let path = log_of(db).join("timeline");
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] ^= 0x55;
    let hash = xxh3_64(&bytes[..56]);
    bytes[56..].copy_from_slice(&hash.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    for name in ["stamp", "checkpoint"] {
        let path = log_of(db).join(name);
        if let Ok(mut bytes) = fs::read(&path) {
            bytes[8] ^= 0x55;
            let hash = xxh3_64(&bytes[..56]);
            bytes[56..].copy_from_slice(&hash.to_le_bytes());
            fs::write(&path, bytes).unwrap();
        }
    }
}
