//! A party's disk: real files, and beside them what of their content and names would be there after a power cut.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::fds::Handle;
use crate::kernel::Random;

/// What the disk writes as one: a torn write keeps or loses whole sectors, or is cut anywhere.
const SECTOR: usize = 512;

#[derive(Default)]
pub struct Disk {
    pub root: PathBuf,
    files: Vec<File>,
    names: BTreeMap<String, u32>,
    dirs: BTreeSet<String>,
    synced_names: BTreeMap<String, u32>,
    synced_dirs: BTreeSet<String>,
    /// Since the directory of the name was last synced.
    name_changes: Vec<NameChange>,
    /// The names of directories that are open.
    dir_names: Vec<String>,
    /// Grows when something becomes durable, or is lost.
    pub version: u64,
}

#[derive(Default)]
struct File {
    synced: Vec<u8>,
    changes: Vec<Change>,
    modified: u64,
}

enum Change {
    Write(u64, Vec<u8>),
    Truncate(u64),
}

#[derive(Clone)]
enum NameChange {
    Link(String, u32),
    Unlink(String),
    Rename(String, String),
    MakeDir(String),
    RemoveDir(String),
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Change::Write(offset, bytes) => write(content, *offset as usize, bytes),
            Change::Truncate(length) => content.resize(*length as usize, 0),
        }
    }

    /// What a power cut leaves of it.
    fn apply_torn(&self, content: &mut Vec<u8>, random: &mut Random) {
        let Change::Write(offset, bytes) = self else {
            if random.one_in(2) {
                self.apply(content);
            }
            return;
        };
        let offset = *offset as usize;
        match random.below(6) {
            0 | 1 => self.apply(content),
            2 => {
                let end = random.below(bytes.len() as u64 + 1) as usize;
                write(content, offset, &bytes[..end]);
            }
            3 => {
                let mut at = 0;
                while at < bytes.len() {
                    let end = (at + SECTOR - (offset + at) % SECTOR).min(bytes.len());
                    if random.one_in(2) {
                        write(content, offset + at, &bytes[at..end]);
                    }
                    at = end;
                }
            }
            // The length arrived, the content did not.
            4 if content.len() < offset + bytes.len() => content.resize(offset + bytes.len(), 0),
            _ => {}
        }
    }
}

fn write(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// `name` with `from` at its beginning replaced, if it is that or within it.
fn moved(name: &str, from: &str, to: &str) -> Option<String> {
    match name.strip_prefix(from)? {
        "" => Some(to.to_string()),
        rest if rest.starts_with('/') => Some(format!("{to}{rest}")),
        _ => None,
    }
}

impl NameChange {
    fn place(&self) -> &str {
        match self {
            NameChange::Link(name, _)
            | NameChange::Unlink(name)
            | NameChange::Rename(_, name)
            | NameChange::MakeDir(name)
            | NameChange::RemoveDir(name) => parent(name),
        }
    }

    fn apply(&self, names: &mut BTreeMap<String, u32>, dirs: &mut BTreeSet<String>) {
        match self {
            NameChange::Link(name, file) => {
                names.insert(name.clone(), *file);
            }
            NameChange::Unlink(name) => {
                names.remove(name);
            }
            NameChange::MakeDir(name) => {
                dirs.insert(name.clone());
            }
            NameChange::RemoveDir(name) => {
                dirs.remove(name);
            }
            NameChange::Rename(from, to) => {
                let all: Vec<String> = names.keys().cloned().collect();
                for name in all {
                    if let Some(new) = moved(&name, from, to)
                        && let Some(file) = names.remove(&name)
                    {
                        names.insert(new, file);
                    }
                }
                let all: Vec<String> = dirs.iter().cloned().collect();
                for name in all {
                    if let Some(new) = moved(&name, from, to) {
                        dirs.remove(&name);
                        dirs.insert(new);
                    }
                }
            }
        }
    }
}

impl Disk {
    /// The name below the root; none for what is elsewhere. The root itself is the empty name.
    pub fn name_of(&self, path: &Path) -> Option<String> {
        if self.root.as_os_str().is_empty() {
            return None;
        }
        let name = path.strip_prefix(&self.root).ok()?.to_str()?;
        Some(name.to_string())
    }

    fn change_name(&mut self, change: NameChange) {
        change.apply(&mut self.names, &mut self.dirs);
        self.name_changes.push(change);
    }

    /// A file was opened; its number. `made`: it was not there before.
    pub fn opened(&mut self, name: &str, now: u64) -> u32 {
        if let Some(file) = self.names.get(name) {
            return *file;
        }
        let file = self.files.len() as u32;
        self.files.push(File {
            modified: now,
            ..File::default()
        });
        self.change_name(NameChange::Link(name.to_string(), file));
        file
    }

    pub fn opened_dir(&mut self, name: &str) -> u32 {
        self.dir_names.push(name.to_string());
        self.dir_names.len() as u32 - 1
    }

    pub fn dir_name(&self, dir: u32) -> &str {
        &self.dir_names[dir as usize]
    }

    pub fn is_known(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    pub fn written(&mut self, file: u32, offset: u64, bytes: &[u8], now: u64) {
        let file = &mut self.files[file as usize];
        file.changes.push(Change::Write(offset, bytes.to_vec()));
        file.modified = now;
    }

    pub fn truncated(&mut self, file: u32, length: u64, now: u64) {
        let file = &mut self.files[file as usize];
        file.changes.push(Change::Truncate(length));
        file.modified = now;
    }

    /// How many changes a sync that begins now has to make durable.
    pub fn unsynced(&self, handle: Handle) -> usize {
        match handle {
            Handle::File(file) => self.files[file as usize].changes.len(),
            _ => self.name_changes.len(),
        }
    }

    /// The oldest `count` changes of a file are durable.
    pub fn synced(&mut self, file: u32, count: usize) {
        let file = &mut self.files[file as usize];
        let count = count.min(file.changes.len());
        for change in file.changes.drain(..count) {
            change.apply(&mut file.synced);
        }
        self.version += 1;
    }

    /// Of the oldest `count` changes of names, those in this directory are durable.
    pub fn synced_dir(&mut self, dir: &str, count: usize) {
        let changes = std::mem::take(&mut self.name_changes);
        for (index, change) in changes.into_iter().enumerate() {
            if index < count && change.place() == dir {
                change.apply(&mut self.synced_names, &mut self.synced_dirs);
            } else {
                self.name_changes.push(change);
            }
        }
        self.version += 1;
    }

    pub fn removed(&mut self, name: &str) {
        self.change_name(NameChange::Unlink(name.to_string()));
    }

    pub fn removed_dir(&mut self, name: &str) {
        self.change_name(NameChange::RemoveDir(name.to_string()));
    }

    pub fn made_dir(&mut self, name: &str) {
        self.change_name(NameChange::MakeDir(name.to_string()));
    }

    pub fn renamed(&mut self, from: &str, to: &str) {
        self.change_name(NameChange::Rename(from.to_string(), to.to_string()));
    }

    /// When a file was last written, by its name.
    pub fn modified(&self, name: &str) -> Option<u64> {
        let file = self.names.get(name)?;
        Some(self.files[*file as usize].modified)
    }

    /// Whether all directories on the way to a name are among `dirs`.
    fn is_reachable(name: &str, dirs: &BTreeSet<String>) -> bool {
        let mut at = parent(name);
        while !at.is_empty() {
            if !dirs.contains(at) {
                return false;
            }
            at = parent(at);
        }
        true
    }

    /// The files below `dir` that a power cut would leave in any case, with the content that it would leave in any case:
    /// what is not synced is not there.
    pub fn durable(&self, dir: &str) -> BTreeMap<String, &[u8]> {
        let within = |name: &String| {
            moved(name, dir, "").map(|rest| rest.trim_start_matches('/').to_string())
        };
        self.synced_names
            .iter()
            .filter(|(name, _)| Disk::is_reachable(name, &self.synced_dirs))
            .filter_map(|(name, file)| {
                Some((within(name)?, &self.files[*file as usize].synced[..]))
            })
            .collect()
    }

    /// The power goes: what was synced is there, and any part of the rest.
    pub fn cut(&mut self, seed: u64) {
        let mut random = Random(seed);
        let (mut names, mut dirs) = (self.synced_names.clone(), self.synced_dirs.clone());
        // All of it, nothing of it, all up to a moment, or anything.
        let mode = random.below(4);
        let until = random.below(self.name_changes.len() as u64 + 1) as usize;
        for (index, change) in self.name_changes.iter().enumerate() {
            let kept = match mode {
                0 => true,
                1 => false,
                2 => index < until,
                _ => random.one_in(2),
            };
            if kept {
                change.apply(&mut names, &mut dirs);
            }
        }
        let all = dirs.clone();
        dirs.retain(|name| Disk::is_reachable(name, &all));
        names.retain(|name, _| Disk::is_reachable(name, &dirs) && !name.ends_with("-shm"));
        let mode = random.below(4);
        for file in &mut self.files {
            for change in std::mem::take(&mut file.changes) {
                match mode {
                    0 => change.apply(&mut file.synced),
                    1 => {}
                    _ => change.apply_torn(&mut file.synced, &mut random),
                }
            }
        }
        self.lay_out(&names, &dirs);
        (self.names, self.dirs) = (names.clone(), dirs.clone());
        (self.synced_names, self.synced_dirs) = (names, dirs);
        self.name_changes.clear();
        self.version += 1;
    }

    /// Makes the real files those: in place where the name stays, so that they keep their identity.
    fn lay_out(&self, names: &BTreeMap<String, u32>, dirs: &BTreeSet<String>) {
        for name in self.names.keys() {
            if names.get(name) != self.names.get(name) {
                let _ = std::fs::remove_file(self.root.join(name));
            }
        }
        for name in self.dirs.iter().rev() {
            if !dirs.contains(name) {
                let _ = std::fs::remove_dir_all(self.root.join(name));
            }
        }
        for name in dirs {
            std::fs::create_dir_all(self.root.join(name)).unwrap();
        }
        for (name, file) in names {
            std::fs::write(self.root.join(name), &self.files[*file as usize].synced).unwrap();
        }
    }
}

impl Disk {
    /// What is there now came from elsewhere, and is on the disk.
    pub fn adopt(&mut self) {
        let root = self.root.clone();
        *self = Disk {
            root: root.clone(),
            version: self.version + 1,
            ..Disk::default()
        };
        self.adopt_dir(&root, "");
        self.synced_names = self.names.clone();
        self.synced_dirs = self.dirs.clone();
    }

    fn adopt_dir(&mut self, dir: &Path, prefix: &str) {
        let mut entries: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                self.adopt_dir(&entry.path(), &format!("{name}/"));
                self.dirs.insert(name);
                continue;
            }
            self.names.insert(name, self.files.len() as u32);
            self.files.push(File {
                synced: std::fs::read(entry.path()).unwrap(),
                ..File::default()
            });
        }
    }
}
