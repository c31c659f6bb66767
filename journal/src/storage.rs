//! The few file operations that a log needs, so that tests can put a failing or forgetful disk below it.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// How [`Storage::open`] opens a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, for reading.
    Read,
    /// An existing file, for reading and writing.
    Write,
    /// For reading and writing; an empty file is created if there is none.
    Create,
}

/// A directory of files, flat.
pub trait Storage: Send + Sync {
    /// The names of all files, in any order. A directory that does not exist is `NotFound`.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens a file. `NotFound` if it does not exist (and `mode` does not create it).
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Box<dyn StorageFile>>;
    /// A file's length in bytes, without opening it.
    fn size(&self, name: &str) -> io::Result<u64>;
    /// Removes a file's name; open handles stay usable.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Gives a file another name, replacing what had it, in one step.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes created, removed and renamed names durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// The name as people should see it in messages: for real files, the path. The empty name is the directory.
    fn display(&self, name: &str) -> String;
}

/// An open file. Several handles may be open on one file, in several threads and processes.
pub trait StorageFile: Send + Sync {
    /// Length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Reads at an offset; fewer bytes than asked for, or none, at the file's end (or at the system's whim).
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `buf` at an offset, extending the file where needed.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts the file, or extends it with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync(&self) -> io::Result<()>;
    /// A [`StorageFile::sync`] follows soon: what it would wait for may begin now. Waits for nothing, and promises nothing.
    fn start_sync(&self) {}
}

/// Reads until `buf` is full or the file ends; returns the bytes read.
pub(crate) fn read_up_to(file: &dyn StorageFile, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Reads exactly `buf`; `UnexpectedEof` if the file is shorter.
pub(crate) fn read_exact_at(file: &dyn StorageFile, buf: &mut [u8], offset: u64) -> io::Result<()> {
    if read_up_to(file, buf, offset)? == buf.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Files in a directory of the operating system.
///
/// ```
/// use mycelite_journal::{FileStorage, OpenMode, Storage};
/// # let dir = tempfile::tempdir()?;
/// let storage = FileStorage::new(dir.path());
/// storage.open("hello", OpenMode::Create)?.write_at(b"there", 0)?;
/// assert_eq!(storage.list()?, ["hello"]);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct FileStorage {
    root: PathBuf,
    mode: Option<u32>,
    start_sync: fn(&File),
}

impl FileStorage {
    /// The directory `root`, which the caller creates.
    pub fn new(root: impl Into<PathBuf>) -> FileStorage {
        FileStorage {
            root: root.into(),
            mode: None,
            start_sync: |_| (),
        }
    }

    /// Creates files with these permission bits (Unix; less the process's umask). A log holds the database's content: give the database's.
    #[must_use]
    pub fn with_mode(mut self, mode: u32) -> FileStorage {
        self.mode = Some(mode);
        self
    }

    /// What [`StorageFile::start_sync`] does with a file; nothing unless given, since the standard library has no such call.
    #[must_use]
    pub fn with_start_sync(mut self, start: fn(&File)) -> FileStorage {
        self.start_sync = start;
        self
    }

    /// The directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Opens any file as a [`StorageFile`], for example a database image to be written.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn open_path(path: &Path, mode: OpenMode) -> io::Result<Box<dyn StorageFile>> {
        FileStorage::new("").open_file(path, mode)
    }

    fn open_file(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn StorageFile>> {
        Ok(Box::new(RealFile {
            file: open_file(path, mode, self.mode)?,
            start_sync: self.start_sync,
        }))
    }
}

fn open_file(path: &Path, mode: OpenMode, bits: Option<u32>) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    match mode {
        OpenMode::Read => {}
        OpenMode::Write => {
            options.write(true);
        }
        OpenMode::Create => {
            options.write(true).create(true).truncate(false);
        }
    }
    set_mode(&mut options, bits);
    options.open(path)
}

#[cfg(unix)]
fn set_mode(options: &mut OpenOptions, bits: Option<u32>) {
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(bits) = bits {
        options.mode(bits);
    }
}

#[cfg(not(unix))]
fn set_mode(_: &mut OpenOptions, _: Option<u32>) {}

impl Storage for FileStorage {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.root)? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Box<dyn StorageFile>> {
        self.open_file(&self.root.join(name), mode)
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        Ok(std::fs::metadata(self.root.join(name))?.len())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.root.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.root.join(from), self.root.join(to))
    }

    #[cfg(unix)]
    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.root)?.sync_all()
    }

    #[cfg(not(unix))]
    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }

    fn display(&self, name: &str) -> String {
        if name.is_empty() {
            self.root.display().to_string()
        } else {
            self.root.join(name).display().to_string()
        }
    }
}

/// Bytes of one call that writes. On a virtual machine, calls of twice that and more took ten times as long for as many bytes:
/// the system's cache takes larger pieces of memory for them (`benches/README.md`).
const WRITE_BYTES_MAX: usize = 64 << 10;

struct RealFile {
    file: File,
    start_sync: fn(&File),
}

impl StorageFile for RealFile {
    fn size(&self) -> io::Result<u64> {
        // A third of the time that `metadata` takes; nobody goes by where the file stands.
        (&self.file).seek(SeekFrom::End(0))
    }

    #[cfg(unix)]
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&self.file, buf, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(&self.file, buf, offset)
    }

    #[cfg(unix)]
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let (mut rest, mut at) = (buf, offset);
        while !rest.is_empty() {
            // Up to a multiple of it, so that no two calls write to one of its places.
            let room = WRITE_BYTES_MAX - (at % WRITE_BYTES_MAX as u64) as usize;
            let (part, more) = rest.split_at(rest.len().min(room));
            std::os::unix::fs::FileExt::write_all_at(&self.file, part, at)?;
            (rest, at) = (more, at + part.len() as u64);
        }
        Ok(())
    }

    #[cfg(windows)]
    fn write_at(&self, mut buf: &[u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            let count = std::os::windows::fs::FileExt::seek_write(&self.file, buf, offset)?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            buf = buf.get(count..).unwrap_or_default();
            offset += count as u64;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        // Also flushes the length, which is needed to read the content back.
        self.file.sync_data()
    }

    fn start_sync(&self) {
        (self.start_sync)(&self.file);
    }
}
