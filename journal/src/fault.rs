//! A disk in memory that fails on demand and forgets what was not synced.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::storage::{OpenMode, Storage, StorageFile};

/// What the disk writes as one: a torn write keeps or loses whole sectors, or is cut anywhere.
const SECTOR: usize = 512;

/// A failure to come: see [`FaultStorage::fail`].
///
/// ```
/// use std::io::ErrorKind;
/// use mycelite_journal::{Fault, FaultStorage, Storage};
/// let disk = FaultStorage::new();
/// disk.fail(Fault { at_call: 2, kind: ErrorKind::StorageFull, lasting: false });
/// assert!(disk.list().is_ok());
/// assert_eq!(disk.list().unwrap_err().kind(), ErrorKind::StorageFull);
/// assert!(disk.list().is_ok());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Which call fails, counted from 1 for the next one.
    pub at_call: u64,
    /// The error it returns.
    pub kind: io::ErrorKind,
    /// Whether all later calls fail too.
    pub lasting: bool,
}

/// A [`Storage`] in memory for crash tests. It keeps what was synced apart from what was only written, so that
/// [`FaultStorage::power_cut`] can lose, reorder and tear the rest; and it can let the n-th call fail. Clones share the disk.
///
/// ```
/// use mycelite_journal::{FaultStorage, OpenMode, Storage};
/// let disk = FaultStorage::new();
/// let file = disk.open("a", OpenMode::Create)?;
/// file.write_at(b"kept", 0)?;
/// file.sync()?;
/// disk.sync_dir()?;
/// file.write_at(b"lost", 0)?;
/// let contents: Vec<_> = (0..64).map(|seed| disk.power_cut(seed).contents("a")).collect();
/// assert!(contents.contains(&Some(b"kept".to_vec())));
/// assert!(contents.contains(&Some(b"lost".to_vec())));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct FaultStorage {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Default)]
struct Disk {
    files: Vec<FileData>,
    /// Names as they are now, and as they surely are on the disk.
    names: BTreeMap<String, usize>,
    synced_names: BTreeMap<String, usize>,
    name_changes: Vec<NameChange>,
    calls: u64,
    fault: Option<Fault>,
}

#[derive(Default)]
struct FileData {
    now: Vec<u8>,
    synced: Vec<u8>,
    changes: Vec<Change>,
}

enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    SetLen(usize),
}

#[derive(Clone)]
enum NameChange {
    Link(String, usize),
    Unlink(String),
    Rename(String, String),
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            NameChange::Link(name, file) => {
                names.insert(name.clone(), *file);
            }
            NameChange::Unlink(name) => {
                names.remove(name);
            }
            NameChange::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
        }
    }
}

impl FileData {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.now);
        self.changes.push(change);
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Change::Write { offset, bytes } => write(content, *offset, bytes),
            Change::SetLen(length) => content.resize(*length, 0),
        }
    }

    /// Applies what a power cut leaves of this change.
    fn apply_torn(&self, content: &mut Vec<u8>, random: &mut Random) {
        let Change::Write { offset, bytes } = self else {
            if random.below(2) == 0 {
                self.apply(content);
            }
            return;
        };
        match random.below(6) {
            0 | 1 => self.apply(content),
            // Cut anywhere.
            2 => {
                let end = random.below(bytes.len() as u64 + 1) as usize;
                write(content, *offset, bytes.get(..end).unwrap_or_default());
            }
            // Some sectors, in any order.
            3 => {
                let mut at = 0;
                while at < bytes.len() {
                    let end = (at + SECTOR - (offset + at) % SECTOR).min(bytes.len());
                    if random.below(2) == 0 {
                        write(content, offset + at, bytes.get(at..end).unwrap_or_default());
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
    if let Some(place) = content.get_mut(offset..end) {
        place.copy_from_slice(bytes);
    }
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit.max(1)
    }
}

impl FaultStorage {
    /// An empty disk.
    #[must_use]
    pub fn new() -> FaultStorage {
        FaultStorage::default()
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        // A test that panicked while it held the lock has left plain data behind.
        self.disk
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Counts a call; returns the disk, or the failure that is due.
    fn call(&self) -> io::Result<MutexGuard<'_, Disk>> {
        let mut disk = self.lock();
        disk.calls += 1;
        match disk.fault {
            Some(fault) if disk.calls == fault.at_call => {
                if !fault.lasting {
                    disk.fault = None;
                }
                Err(fault.kind.into())
            }
            Some(fault) if disk.calls > fault.at_call => Err(fault.kind.into()),
            _ => Ok(disk),
        }
    }

    /// Lets a call fail. A write that fails has written half of its bytes.
    pub fn fail(&self, fault: Fault) {
        let mut disk = self.lock();
        let at_call = disk.calls.saturating_add(fault.at_call);
        disk.fault = Some(Fault { at_call, ..fault });
    }

    /// No more failures.
    pub fn heal(&self) {
        self.lock().fault = None;
    }

    /// Calls so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// The disk as a power cut now would leave it: what was synced, and any part of the rest. The same seed gives the same outcome.
    #[must_use]
    pub fn power_cut(&self, seed: u64) -> FaultStorage {
        let disk = self.lock();
        let mut random = Random(seed);
        let mut names = disk.synced_names.clone();
        for change in &disk.name_changes {
            if random.below(2) == 0 {
                change.apply(&mut names);
            }
        }
        let mut files = Vec::new();
        for file in &disk.files {
            let mut content = file.synced.clone();
            for change in &file.changes {
                change.apply_torn(&mut content, &mut random);
            }
            files.push(FileData {
                now: content.clone(),
                synced: content,
                changes: Vec::new(),
            });
        }
        let after = Disk {
            files,
            synced_names: names.clone(),
            names,
            ..Disk::default()
        };
        FaultStorage {
            disk: Arc::new(Mutex::new(after)),
        }
    }

    /// A copy of the disk as it is now, all of it synced.
    #[must_use]
    pub fn copy(&self) -> FaultStorage {
        let copy = FaultStorage::new();
        let disk = self.lock();
        for (name, file) in &disk.names {
            if let Some(file) = disk.files.get(*file) {
                copy.put(name, file.now.clone());
            }
        }
        copy
    }

    /// A file's bytes; `None` if there is no such file.
    #[must_use]
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let disk = self.lock();
        let file = disk.names.get(name)?;
        Some(disk.files.get(*file)?.now.clone())
    }

    /// Puts a file there, or other bytes into it, synced.
    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        let mut disk = self.lock();
        let file = disk.files.len();
        disk.files.push(FileData {
            now: bytes.clone(),
            synced: bytes,
            changes: Vec::new(),
        });
        disk.names.insert(name.into(), file);
        disk.synced_names.insert(name.into(), file);
    }
}

impl Storage for FaultStorage {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.call()?.names.keys().cloned().collect())
    }

    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Box<dyn StorageFile>> {
        let mut disk = self.call()?;
        let file = match (disk.names.get(name), mode) {
            (Some(file), _) => *file,
            (None, OpenMode::Create) => {
                let file = disk.files.len();
                disk.files.push(FileData::default());
                disk.names.insert(name.into(), file);
                disk.name_changes.push(NameChange::Link(name.into(), file));
                file
            }
            (None, _) => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Box::new(FaultFile {
            storage: self.clone(),
            file,
            writable: mode != OpenMode::Read,
        }))
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        let disk = self.call()?;
        let file = disk.names.get(name).and_then(|file| disk.files.get(*file));
        file.map(|file| file.now.len() as u64)
            .ok_or(io::ErrorKind::NotFound.into())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.call()?;
        disk.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        disk.name_changes.push(NameChange::Unlink(name.into()));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.call()?;
        if !disk.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let change = NameChange::Rename(from.into(), to.into());
        change.apply(&mut disk.names);
        disk.name_changes.push(change);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut disk = self.call()?;
        disk.synced_names = disk.names.clone();
        disk.name_changes.clear();
        Ok(())
    }

    fn display(&self, name: &str) -> String {
        format!("memory:{name}")
    }
}

struct FaultFile {
    storage: FaultStorage,
    file: usize,
    writable: bool,
}

impl FaultFile {
    fn on<T>(
        &self,
        mut disk: MutexGuard<'_, Disk>,
        work: impl FnOnce(&mut FileData) -> T,
    ) -> io::Result<T> {
        let file = disk.files.get_mut(self.file);
        file.map(work).ok_or(io::ErrorKind::NotFound.into())
    }

    fn change(&self, change: Change) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.on(self.storage.call()?, |file| file.change(change))
    }
}

impl StorageFile for FaultFile {
    fn size(&self) -> io::Result<u64> {
        self.on(self.storage.call()?, |file| file.now.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.on(self.storage.call()?, |file| {
            let bytes = file.now.get(offset as usize..).unwrap_or_default();
            let count = bytes.len().min(buf.len());
            if let (Some(to), Some(from)) = (buf.get_mut(..count), bytes.get(..count)) {
                to.copy_from_slice(from);
            }
            count
        })
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let write = |bytes: &[u8]| Change::Write {
            offset: offset as usize,
            bytes: bytes.to_vec(),
        };
        let result = self.change(write(buf));
        if result.is_err() && self.writable {
            let half = buf.get(..buf.len() / 2).unwrap_or_default();
            self.on(self.storage.lock(), |file| file.change(write(half)))?;
        }
        result
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::SetLen(len as usize))
    }

    fn sync(&self) -> io::Result<()> {
        self.on(self.storage.call()?, |file| {
            file.synced = file.now.clone();
            file.changes.clear();
        })
    }
}
