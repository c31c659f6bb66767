//! A disk that loses power: what was synced survives, and of the rest any part, sector by sector, in any order.

use crate::common::Random;
use crate::syscalls::Call;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

/// What a crash does not tear apart.
const SECTOR: usize = 512;

/// Files by number, and names that lead to them.
#[derive(Default)]
pub struct Disk {
    files: HashMap<u32, File>,
    /// Names that are surely there.
    names: BTreeMap<String, Entry>,
    /// What was done to names since their directory was synced.
    pending: Vec<Call>,
}

#[derive(Default)]
struct File {
    /// Content at the last sync.
    durable: Vec<u8>,
    /// What was done since.
    pending: Vec<Call>,
}

#[derive(Clone, Copy)]
enum Entry {
    File(u32),
    Dir,
}

fn write_at(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if content.len() < offset + bytes.len() {
        content.resize(offset + bytes.len(), 0);
    }
    content[offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn apply(content: &mut Vec<u8>, call: &Call) {
    match call {
        Call::Write(_, offset, bytes) => write_at(content, *offset as usize, bytes),
        Call::Truncate(_, length) => content.resize(*length as usize, 0),
        _ => {}
    }
}

fn directory(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(directory, _)| directory)
}

fn apply_name(names: &mut BTreeMap<String, Entry>, call: &Call) {
    match call {
        Call::Create(name, file) => {
            names.insert(name.clone(), Entry::File(*file));
        }
        Call::MakeDir(name) => {
            names.insert(name.clone(), Entry::Dir);
        }
        Call::Unlink(name) => {
            names.remove(name);
        }
        Call::Rename(from, to) => {
            if let Some(entry) = names.remove(from) {
                names.insert(to.clone(), entry);
            }
        }
        _ => {}
    }
}

impl Disk {
    /// The disk on which the files in `dir`, with these numbers, have been for long.
    pub fn of(dir: &Path, numbers: &[(String, u32)]) -> Disk {
        let mut disk = Disk::default();
        for (name, number) in numbers {
            let file = File {
                durable: fs::read(dir.join(name)).unwrap(),
                pending: Vec::new(),
            };
            disk.files.insert(*number, file);
            disk.names.insert(name.clone(), Entry::File(*number));
            if !directory(name).is_empty() {
                disk.names.insert(directory(name).to_owned(), Entry::Dir);
            }
        }
        disk
    }

    /// The disk after one more call.
    pub fn play(&mut self, call: &Call) {
        match call {
            Call::Write(file, ..) | Call::Truncate(file, _) => {
                let file = self.files.entry(*file).or_default();
                file.pending.push(call.clone());
            }
            Call::Sync(file) => {
                let file = self.files.entry(*file).or_default();
                for call in std::mem::take(&mut file.pending) {
                    apply(&mut file.durable, &call);
                }
            }
            Call::SyncDir(directory_name) => {
                let of_directory = |call: &Call| match call {
                    Call::Create(name, _)
                    | Call::MakeDir(name)
                    | Call::Unlink(name)
                    | Call::Rename(name, _) => directory(name) == directory_name,
                    _ => false,
                };
                for call in std::mem::take(&mut self.pending) {
                    if of_directory(&call) {
                        apply_name(&mut self.names, &call);
                    } else {
                        self.pending.push(call);
                    }
                }
            }
            Call::Create(_, file) => {
                self.files.entry(*file).or_default();
                self.pending.push(call.clone());
            }
            _ => self.pending.push(call.clone()),
        }
    }

    /// Writes what a power cut leaves into the new directory `target`.
    pub fn cut(&self, random: &mut Random, target: &Path) {
        let mut names = self.names.clone();
        // Sometimes everything got through, sometimes nothing, mostly some of it.
        let luck = [0, 5, 9, 10][random.below(4) as usize];
        for call in &self.pending {
            if random.below(10) < luck {
                apply_name(&mut names, call);
            }
        }
        put(&names, target, |file| survivor(&self.files[&file], random));
    }

    /// Writes what a killed process leaves into the new directory `target`: all that was done.
    pub fn keep(&self, target: &Path) {
        let mut names = self.names.clone();
        for call in &self.pending {
            apply_name(&mut names, call);
        }
        put(&names, target, |file| {
            let file = &self.files[&file];
            let mut content = file.durable.clone();
            for call in &file.pending {
                apply(&mut content, call);
            }
            content
        });
    }
}

/// Writes files into the new directory `target`: their names, and what is in them by number.
fn put(names: &BTreeMap<String, Entry>, target: &Path, mut content: impl FnMut(u32) -> Vec<u8>) {
    fs::create_dir(target).unwrap();
    for (name, entry) in names {
        let parent = directory(name);
        if !parent.is_empty() && !names.contains_key(parent) {
            continue;
        }
        match entry {
            Entry::Dir => {
                fs::create_dir_all(target.join(name)).unwrap();
            }
            // Whoever opens the shared memory first makes it anew.
            Entry::File(_) if name.ends_with("-shm") => {}
            Entry::File(file) => {
                fs::create_dir_all(target.join(parent)).unwrap();
                fs::write(target.join(name), content(*file)).unwrap();
            }
        }
    }
}

/// What the power cut leaves of a file's content.
fn survivor(file: &File, random: &mut Random) -> Vec<u8> {
    let mut content = file.durable.clone();
    let luck = [0, 5, 9, 10][random.below(4) as usize];
    for call in &file.pending {
        let Call::Write(_, offset, bytes) = call else {
            if random.below(10) < luck {
                apply(&mut content, call);
            }
            continue;
        };
        let from = *offset as usize;
        let cut = from + random.below(bytes.len() as u64 + 1) as usize;
        // Of a write survive its first part, its last part, or sectors here and there.
        let kind = random.below(3);
        let mut at = from;
        for part in sectors(from, bytes) {
            let survives = match kind {
                0 => at < cut && luck > 0,
                1 => at >= cut && luck > 0,
                _ => random.below(10) < luck,
            };
            if survives || luck == 10 {
                write_at(&mut content, at, part);
            }
            at += part.len();
        }
    }
    content
}

/// The parts of a write that a disk writes whole.
fn sectors(offset: usize, mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut at = offset;
    while !bytes.is_empty() {
        let (part, more) = bytes.split_at(bytes.len().min(SECTOR - at % SECTOR));
        parts.push(part);
        at += part.len();
        bytes = more;
    }
    parts
}
