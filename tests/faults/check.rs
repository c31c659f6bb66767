//! What is left of a database, and whether the log says the same.

use crate::world::{answer, copy_dir};
use mycelite_journal::{
    FLAG_REBASE, FaultStorage, FileStorage, Image, OpenMode, Reader, RecordHeader, Storage,
};
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// The databases that a workload may have.
pub const DATABASES: [&str; 2] = ["app.db", "side.db"];

/// What any SQLite makes of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// What `integrity_check` says, and what is in the table.
    pub says: Vec<String>,
    /// What SQLite reads, byte for byte.
    pub image: Vec<u8>,
}

/// What a SQLite without the extension makes of the files in `dir`: in a copy, which has no log.
pub fn recover(dir: &Path, scratch: &Path) -> Vec<Option<State>> {
    let copy = scratch.join("recover");
    let _ = fs::remove_dir_all(&copy);
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_file() && !name.ends_with("-shm") {
            fs::copy(entry.path(), copy.join(name)).unwrap();
        }
    }
    DATABASES.map(|name| state(&copy.join(name))).to_vec()
}

fn state(path: &Path) -> Option<State> {
    if !path.exists() {
        return None;
    }
    let plain = crate::common::open_plain(path);
    let mut says = vec![
        answer(&plain, "PRAGMA integrity_check"),
        answer(&plain, "SELECT name, sql FROM sqlite_schema ORDER BY name"),
        answer(&plain, "SELECT a, b, c FROM t NOT INDEXED ORDER BY a"),
        answer(&plain, "PRAGMA user_version"),
    ];
    says.push(answer(&plain, "PRAGMA wal_checkpoint(TRUNCATE)"));
    let number = |sql: &str| {
        let text = answer(&plain, sql);
        let inside = text.strip_prefix("Integer(")?.strip_suffix(")|")?;
        inside.parse::<usize>().ok()
    };
    let told = number("PRAGMA page_count").zip(number("PRAGMA page_size"));
    drop(plain);
    let mut image = fs::read(path).unwrap();
    // A schema that SQLite cannot read does not keep it from writing.
    if let Some((pages, page_bytes)) = told.or_else(|| shape(&image)) {
        // It reads zeros where a file ends within a page.
        image.resize(pages * page_bytes, 0);
    }
    Some(State { says, image })
}

/// Pages and their size as the header tells them; it is not believed beyond the file.
fn shape(image: &[u8]) -> Option<(usize, usize)> {
    let word = |at: usize| Some(u32::from_be_bytes(image.get(at..at + 4)?.try_into().ok()?));
    let is_kept = image.starts_with(b"SQLite format 3\0") && word(24)? == word(92)?;
    let page_bytes = (word(16)? >> 16) as usize;
    let in_file = image.len().div_ceil(page_bytes.max(1));
    let pages = word(28).filter(|pages| is_kept && *pages > 0)?;
    Some(((pages as usize).min(in_file), page_bytes))
}

/// A replica that follows the log of one database.
pub struct Follower {
    log: std::path::PathBuf,
    reader: Option<Reader>,
    image: Image,
    memory: FaultStorage,
    pub records: Vec<RecordHeader>,
}

impl Follower {
    pub fn new(database: &Path) -> Follower {
        let memory = FaultStorage::new();
        Follower {
            log: mycelite::database::log_dir(database),
            reader: None,
            image: Image::new(memory.open("image", OpenMode::Create).unwrap()),
            memory,
            records: Vec::new(),
        }
    }

    /// Applies what is new.
    pub fn advance(&mut self) -> Result<(), String> {
        if self.reader.is_none() {
            if !self.log.join("meta").exists() {
                return Ok(());
            }
            let storage = Arc::new(FileStorage::new(&self.log));
            self.reader = Some(Reader::open(storage).map_err(|e| format!("the log: {e}"))?);
        }
        let Some(reader) = &mut self.reader else {
            return Ok(());
        };
        while let Some(record) = reader.next().map_err(|e| format!("the log: {e}"))? {
            self.image.apply(&record).map_err(|e| {
                format!(
                    "the replica cannot apply txid {}: {e}",
                    record.header.txid.0
                )
            })?;
            self.records.push(record.header);
        }
        Ok(())
    }

    pub fn image(&self) -> Vec<u8> {
        self.memory.contents("image").unwrap()
    }

    /// The newest records, for whoever looks for a cause.
    pub fn tail(&self) -> String {
        let newest = self.records.iter().rev().take(4).rev();
        newest.fold(String::new(), |text, record| {
            text + &format!(
                "\n    txid {}, flags {}, {} pages, counter {}, wal {:?}",
                record.txid.0, record.flags, record.page_count, record.change_counter, record.wal
            )
        })
    }

    pub fn rebases(&self) -> usize {
        let is_rebase = |record: &&RecordHeader| record.flags & FLAG_REBASE != 0;
        self.records.iter().filter(is_rebase).count()
    }
}

/// The replicas of a workload's databases.
pub fn followers(dir: &Path) -> Vec<Follower> {
    DATABASES.map(|name| Follower::new(&dir.join(name))).into()
}

/// The log of each database in `dir` is its image: for a replica that followed, and for one that begins.
pub fn check_logs(
    dir: &Path,
    scratch: &Path,
    followers: &mut [Follower],
    written: [bool; 2],
) -> Result<(), String> {
    let states = recover(dir, scratch);
    for (at, name) in DATABASES.into_iter().enumerate() {
        let Some(state) = states[at].as_ref().filter(|_| written[at]) else {
            continue;
        };
        let mut fresh = Follower::new(&dir.join(name));
        fresh
            .advance()
            .map_err(|e| format!("{name}, from the beginning: {e}"))?;
        compare(&state.image, &fresh.image())
            .map_err(|e| format!("{name}: the log is not the image: {e}{}", fresh.tail()))?;
        if let Some(follower) = followers.get_mut(at) {
            follower.advance().map_err(|e| format!("{name}: {e}"))?;
            compare(&state.image, &follower.image())
                .map_err(|e| format!("{name}: the replica is not the image: {e}"))?;
        }
    }
    Ok(())
}

pub fn compare(expected: &[u8], actual: &[u8]) -> Result<(), String> {
    if expected == actual {
        return Ok(());
    }
    let differ = |at: &usize| expected[*at] != actual[*at];
    let common = expected.len().min(actual.len());
    let at: Vec<_> = (0..common).filter(differ).collect();
    Err(format!(
        "{} bytes expected, {} found, {} of them differ, the first at {:?}",
        expected.len(),
        actual.len(),
        at.len(),
        at.get(..at.len().min(5)).unwrap_or_default()
    ))
}

/// A fresh copy of `template`.
pub fn fresh_copy(template: &Path, target: &Path) {
    let _ = fs::remove_dir_all(target);
    copy_dir(template, target);
}
