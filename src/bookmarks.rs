//! Bookmarks: names for recorded transactions, kept beside the log in the file `bookmarks`.
//!
//! A bookmark holds the whole position of its transaction, so that it never means another one that got the same number on
//! a newer timeline. Bookmarks belong to one copy of a log: they are not replicated. What is bookmarked is not compacted
//! away.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mycelite_journal::Pos;
use serde::{Deserialize, Serialize};

use crate::config::nearest;
use crate::error::{Error, ErrorKind, Result};

/// Name of the file in the log's directory.
const NAME: &str = "bookmarks";
/// What is being written; of no use after a crash.
const NEW: &str = "bookmarks.new";
/// Version of the file.
const VERSION: u32 = 1;
/// Bookmarks of one log at most.
const BOOKMARKS_MAX: usize = 1000;
/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// Longest file that is read, in bytes: more than the most and longest bookmarks take.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Longest wait for another process that changes the bookmarks.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(5);

/// A name for a recorded transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bookmark {
    /// Its name, unique in its log.
    pub name: String,
    /// The transaction's position.
    #[serde(with = "pos_text")]
    pub pos: Pos,
    /// When the transaction was recorded, µs since 1970.
    pub time_us: u64,
    /// When the bookmark was made, µs since 1970.
    pub created_us: u64,
}

/// The file.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    bookmarks: Vec<Bookmark>,
}

/// A position as its text.
mod pos_text {
    use mycelite_journal::Pos;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(pos: &Pos, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(pos)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Pos, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// The bookmarks of the log in `log_dir`, in the order of their transactions; none if there never was one.
///
/// # Errors
/// The file cannot be read, is damaged, or is a newer version's: then nobody knows what must be kept.
pub fn list(log_dir: &Path) -> Result<Vec<Bookmark>> {
    let path = log_dir.join(NAME);
    let meta = match path.metadata() {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("reading the bookmarks", &path, &error)),
    };
    let damaged = |what: &dyn std::fmt::Display| {
        Error::new(
            ErrorKind::Corrupt,
            format_args!("the bookmarks cannot be understood: {what}"),
        )
        .at(path.display())
        .hint("repair the file, or move it away to go on without bookmarks")
    };
    if meta.len() > FILE_BYTES_MAX {
        return Err(damaged(&format_args!("{} bytes", meta.len())));
    }
    let bytes = std::fs::read(&path).map_err(|e| Error::io("reading the bookmarks", &path, &e))?;
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| damaged(&e))?;
    let version = value.get("version").and_then(serde_json::Value::as_u64);
    if version.is_some_and(|version| version > u64::from(VERSION)) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "the bookmarks are a newer version's",
        )
        .at(path.display())
        .hint("use a newer mycelite"));
    }
    let mut stored: Stored = serde_json::from_value(value).map_err(|e| damaged(&e))?;
    stored
        .bookmarks
        .sort_by(|a, b| (a.pos.txid, &a.name).cmp(&(b.pos.txid, &b.name)));
    Ok(stored.bookmarks)
}

/// The names of those of `bookmarks`, in the order of their transactions, that are at `pos`.
pub fn names_at(bookmarks: &[Bookmark], pos: Pos) -> impl Iterator<Item = &str> {
    let first = bookmarks.partition_point(|bookmark| bookmark.pos.txid < pos.txid);
    let rest = bookmarks.get(first..).unwrap_or_default().iter();
    rest.take_while(move |bookmark| bookmark.pos.txid == pos.txid)
        .filter(move |bookmark| bookmark.pos == pos)
        .map(|bookmark| bookmark.name.as_str())
}

/// The bookmark `name` of the log in `log_dir`.
///
/// # Errors
/// There is none of that name; as [`list`].
pub fn find(log_dir: &Path, name: &str) -> Result<Bookmark> {
    let known = list(log_dir)?;
    if let Some(found) = known.iter().find(|bookmark| bookmark.name == name) {
        return Ok(found.clone());
    }
    let names = known.iter().map(|bookmark| bookmark.name.as_str());
    let hint = match nearest(name, names) {
        Some(near) => format!("did you mean {near:?}?"),
        None => "mycelite bookmark SOURCE --list shows them".to_owned(),
    };
    Err(Error::new(
        ErrorKind::NotFound,
        format_args!("no bookmark is called {name:?}"),
    )
    .at(log_dir.display())
    .hint(hint))
}

/// Checks a name that a bookmark shall have.
///
/// # Errors
/// It is empty, too long, or not one clean line.
pub fn check_name(name: &str) -> Result<()> {
    let wrong = if name.trim().is_empty() {
        "the name is empty"
    } else if name.len() > NAME_BYTES_MAX {
        "the name is longer than 128 bytes"
    } else if name.trim() != name || name.chars().any(char::is_control) {
        "the name has control characters, or spaces around it"
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Usage, wrong)
        .at(format_args!("bookmark {name:?}"))
        .hint("choose a short name in one line"))
}

/// The right to change the bookmarks of a log, until dropped. Whoever is about to remove history holds it from looking at
/// [`list`] until the history is gone: no bookmark can come between.
pub struct Held {
    directory: PathBuf,
    lock: File,
}

/// Takes the right to change the bookmarks of the log in `log_dir`; waits at most five seconds.
///
/// # Errors
/// [`ErrorKind::Busy`] if another process has it; the directory cannot be opened.
pub fn hold(log_dir: &Path) -> Result<Held> {
    let io = |source: io::Error| Error::io("locking the bookmarks in", log_dir, &source);
    let lock = File::open(log_dir).map_err(io)?;
    let deadline = Instant::now() + LOCK_WAIT_MAX;
    loop {
        match lock.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(
                    Error::new(ErrorKind::Busy, "another process changes the bookmarks")
                        .at(log_dir.display())
                        .hint("try again"),
                );
            }
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
    }
    Ok(Held {
        directory: log_dir.to_path_buf(),
        lock,
    })
}

impl Held {
    /// Makes a bookmark, durably. The same name for the same transaction again is fine.
    ///
    /// # Errors
    /// The name is not allowed, or another transaction has it; there are too many; the file cannot be written.
    pub fn set(&self, bookmark: Bookmark) -> Result<()> {
        check_name(&bookmark.name)?;
        let mut known = list(&self.directory)?;
        if let Some(other) = known.iter().find(|other| other.name == bookmark.name) {
            if other.pos == bookmark.pos {
                return Ok(());
            }
            return Err(Error::new(
                ErrorKind::Usage,
                format_args!(
                    "the bookmark {:?} is at transaction {} already",
                    other.name, other.pos.txid
                ),
            )
            .at(self.directory.display())
            .hint(
                "delete it first (mycelite bookmark SOURCE --delete NAME), or choose another name",
            ));
        }
        if known.len() >= BOOKMARKS_MAX {
            return Err(Error::new(
                ErrorKind::Usage,
                format_args!("there are {} bookmarks, and no more are kept", known.len()),
            )
            .at(self.directory.display())
            .hint("delete one: mycelite bookmark SOURCE --delete NAME"));
        }
        known.push(bookmark);
        self.write(known)
    }

    /// As [`Held::set`], for the transaction at `pos` that was recorded at `time_us` (µs since 1970); made now.
    ///
    /// # Errors
    /// As [`Held::set`].
    pub fn mark(&self, name: &str, pos: Pos, time_us: u64) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let created_us = now.map_or(0, |since| {
            u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
        });
        self.set(Bookmark {
            name: name.to_owned(),
            pos,
            time_us,
            created_us,
        })
    }

    /// Forgets the bookmark `name`, durably; false if there is none.
    ///
    /// # Errors
    /// As [`list`]; the file cannot be written.
    pub fn delete(&self, name: &str) -> Result<bool> {
        let mut known = list(&self.directory)?;
        let before = known.len();
        known.retain(|bookmark| bookmark.name != name);
        if known.len() == before {
            return Ok(false);
        }
        self.write(known).map(|()| true)
    }

    /// Replaces the file: a crash leaves the old one or the new one.
    fn write(&self, bookmarks: Vec<Bookmark>) -> Result<()> {
        let (path, new) = (self.directory.join(NAME), self.directory.join(NEW));
        let io = |source: io::Error| Error::io("writing the bookmarks", &path, &source);
        let stored = Stored {
            version: VERSION,
            bookmarks,
        };
        let mut text = serde_json::to_string_pretty(&stored)
            .map_err(|error| Error::new(ErrorKind::Internal, error))?;
        text.push('\n');
        let mut file = File::create(&new).map_err(io)?;
        file.write_all(text.as_bytes()).map_err(io)?;
        file.sync_all().map_err(io)?;
        std::fs::rename(&new, &path).map_err(io)?;
        self.lock.sync_all().map_err(io)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn bookmark(name: &str, pos: &str) -> Bookmark {
        Bookmark {
            name: name.to_owned(),
            pos: pos.parse().unwrap(),
            time_us: 5,
            created_us: 6,
        }
    }

    #[test]
    fn names_are_kept_and_unique() {
        let dir = tempfile::tempdir().unwrap();
        assert!(list(dir.path()).unwrap().is_empty());
        let (a, b) = (
            bookmark("a", "1/7/00000000000000aa"),
            bookmark("before the move", "1/3/00000000000000bb"),
        );
        let held = hold(dir.path()).unwrap();
        for one in [&a, &b, &a] {
            held.set(one.clone()).unwrap();
        }
        assert_eq!(list(dir.path()).unwrap(), [b.clone(), a.clone()]);
        assert_eq!(find(dir.path(), "before the move").unwrap(), b);
        let error = find(dir.path(), "before the mov").unwrap_err().to_string();
        assert!(
            error.contains("did you mean \"before the move\"?"),
            "{error}"
        );
        // Another transaction, or the same number with another content.
        for pos in ["1/8/00000000000000aa", "2/7/00000000000000ab"] {
            let error = held.set(bookmark("a", pos)).unwrap_err();
            assert!(error.to_string().contains("already"), "{error}");
        }
        assert!(held.delete("a").unwrap());
        assert!(!held.delete("a").unwrap());
        assert_eq!(list(dir.path()).unwrap(), [b]);
    }

    #[test]
    fn what_is_no_name_or_too_much_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let held = hold(dir.path()).unwrap();
        for name in ["", " ", " a", "a ", "a\nb", "\0", &"x".repeat(129)] {
            let error = held
                .set(bookmark(name, "1/1/0000000000000001"))
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{name:?}");
            assert_eq!(error.to_string().lines().count(), 1);
        }
        let many =
            (0..BOOKMARKS_MAX).map(|n| bookmark(&n.to_string().repeat(30), "1/1/0000000000000001"));
        held.write(many.collect()).unwrap();
        assert!(dir.path().join(NAME).metadata().unwrap().len() < FILE_BYTES_MAX / 2);
        let error = held.set(bookmark("more", "1/1/0000000000000001"));
        assert!(error.unwrap_err().to_string().contains("no more are kept"));
    }

    #[test]
    fn a_file_that_is_not_understood_is_an_error_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        for (text, says) in [
            ("", "cannot be understood"),
            (
                "{\"version\":1,\"bookmarks\":[{\"name\":\"x\"}]}",
                "cannot be understood",
            ),
            ("{\"version\":1,\"bookmarks\":[", "cannot be understood"),
            ("{\"version\":2,\"marks\":[]}", "newer"),
        ] {
            std::fs::write(dir.path().join(NAME), text).unwrap();
            let error = list(dir.path()).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
            let held = hold(dir.path()).unwrap();
            assert!(held.set(bookmark("a", "1/1/0000000000000001")).is_err());
            assert_eq!(
                std::fs::read_to_string(dir.path().join(NAME)).unwrap(),
                text
            );
        }
    }

    #[test]
    fn one_changes_them_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let dir = dir.path();
                scope.spawn(move || {
                    for n in 0..10 {
                        let one = bookmark(&format!("{thread} {n}"), "1/1/0000000000000001");
                        // On a slow disk the wait for the others may be too long.
                        let held = std::iter::repeat_with(|| hold(dir))
                            .take(20)
                            .find(Result::is_ok);
                        held.unwrap().unwrap().set(one).unwrap();
                    }
                });
            }
        });
        assert_eq!(list(dir.path()).unwrap().len(), 80);
    }
}
