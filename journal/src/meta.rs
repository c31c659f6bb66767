//! The two small files beside the segments: `meta` (whose log this is) and `synced` (how far it surely is on the disk).

use xxhash_rust::xxh3::xxh3_64;

use crate::bytes::{Put, Take};
use crate::error::{Error, FormatError, Result};
use crate::pos::{DatabaseId, Txid};
use crate::record::{VERSION, check_hash};
use crate::storage::{OpenMode, Storage, read_up_to};

/// Name of the file that holds [`Meta`].
pub(crate) const META_NAME: &str = "meta";
const META_TEMP_NAME: &str = "meta.new";
const META_LEN: usize = 64;
const META_MAGIC: [u8; 8] = *b"MYCELMET";

/// Name of the file that holds [`SyncMark`].
pub(crate) const MARK_NAME: &str = "synced";
const MARK_LEN: usize = 64;
const MARK_MAGIC: [u8; 8] = *b"MYCELSYN";

/// What `meta` says: which database's history this is.
///
/// ```
/// use mycelite_journal::{DatabaseId, Meta};
/// let meta = Meta { id: DatabaseId([7; 16]), created_us: 1_700_000_000_000_000 };
/// assert_eq!(Meta::decode(&meta.encode())?, meta);
/// # Ok::<(), mycelite_journal::FormatError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The database's id.
    pub id: DatabaseId,
    /// When the log was created, µs since 1970.
    pub created_us: u64,
}

impl Meta {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> [u8; META_LEN] {
        let put = Put::<META_LEN>::new()
            .slice(&META_MAGIC)
            .u16(VERSION)
            .zeros(6)
            .slice(&self.id.0)
            .u64(self.created_us)
            .zeros(16);
        let hash = xxh3_64(put.so_far());
        put.u64(hash).done()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// When the bytes are too few, damaged, or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Meta, FormatError> {
        let bytes = bytes.first_chunk::<META_LEN>().ok_or(FormatError::Short)?;
        let mut take = Take::new(bytes);
        if take.array()? != META_MAGIC {
            return Err(FormatError::Magic("log meta file"));
        }
        check_hash(bytes, "meta file")?;
        let version = take.u16()?;
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        take.zeros::<6>()?;
        let meta = Meta {
            id: DatabaseId(take.array()?),
            created_us: take.u64()?,
        };
        take.zeros::<16>()?;
        Ok(meta)
    }

    pub(crate) fn read(storage: &dyn Storage) -> Result<Meta> {
        let path = || storage.display(META_NAME);
        let file =
            storage
                .open(META_NAME, OpenMode::Read)
                .map_err(|source| match source.kind() {
                    std::io::ErrorKind::NotFound => Error::NotFound {
                        what: format!("{}: there is no log here", storage.display("")),
                        hint: "check the path; a log is the directory DATABASE-mycelite",
                    },
                    _ => Error::io("opening the log", path(), source),
                })?;
        let mut bytes = [0; META_LEN];
        let length = read_up_to(&*file, &mut bytes, 0)
            .map_err(|source| Error::io("reading the log's meta file", path(), source))?;
        Meta::decode(bytes.get(..length).unwrap_or_default()).map_err(|error| match error {
            FormatError::Version(found) => Error::Version {
                path: path(),
                found,
                known: VERSION,
            },
            what => Error::Corrupt {
                path: path(),
                offset: 0,
                txid: None,
                what: what.to_string(),
                hint: "restore this file from a copy of the log, or move the log directory away and start a new log",
            },
        })
    }

    /// Writes `meta` so that it is whole or absent, and on the disk.
    pub(crate) fn create(&self, storage: &dyn Storage) -> Result<()> {
        let path = || storage.display(META_NAME);
        let names = storage
            .list()
            .map_err(|source| Error::io("listing the log directory", path(), source))?;
        let in_the_way = names
            .iter()
            .find(|name| *name == META_NAME || crate::segment::first_of(name).is_some());
        if let Some(name) = in_the_way {
            return Err(Error::Exists {
                path: storage.display(name),
            });
        }
        let write = || -> std::io::Result<()> {
            let file = storage.open(META_TEMP_NAME, OpenMode::Create)?;
            file.set_len(0)?;
            file.write_at(&self.encode(), 0)?;
            file.sync()?;
            storage.rename(META_TEMP_NAME, META_NAME)?;
            storage.sync_dir()
        };
        write().map_err(|source| Error::io("creating the log", path(), source))
    }
}

/// What `synced` says: every byte of the log up to here was on the disk when it was written.
///
/// It only sharpens judgement: damage before the mark is corruption, damage after it may be a torn tail. A log without one is whole.
///
/// ```
/// use mycelite_journal::{DatabaseId, SyncMark, Txid};
/// let mark = SyncMark { id: DatabaseId([7; 16]), segment: Txid(1), offset: 4711, txid: Txid(12) };
/// assert_eq!(SyncMark::decode(&mark.encode())?, mark);
/// # Ok::<(), mycelite_journal::FormatError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncMark {
    /// The database's id: a mark of another log says nothing about this one.
    pub id: DatabaseId,
    /// First transaction of the segment, which names it.
    pub segment: Txid,
    /// Offset in the segment of the end of the last synced record.
    pub offset: u64,
    /// That record's transaction.
    pub txid: Txid,
}

impl SyncMark {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> [u8; MARK_LEN] {
        let put = Put::<MARK_LEN>::new()
            .slice(&MARK_MAGIC)
            .u16(VERSION)
            .zeros(6)
            .slice(&self.id.0)
            .u64(self.segment.0)
            .u64(self.offset)
            .u64(self.txid.0);
        let hash = xxh3_64(put.so_far());
        put.u64(hash).done()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// When the bytes are too few, damaged, or of another version.
    pub fn decode(bytes: &[u8]) -> Result<SyncMark, FormatError> {
        let bytes = bytes.first_chunk::<MARK_LEN>().ok_or(FormatError::Short)?;
        let mut take = Take::new(bytes);
        if take.array()? != MARK_MAGIC {
            return Err(FormatError::Magic("sync mark"));
        }
        check_hash(bytes, "sync mark")?;
        let version = take.u16()?;
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        take.zeros::<6>()?;
        Ok(SyncMark {
            id: DatabaseId(take.array()?),
            segment: Txid(take.u64()?),
            offset: take.u64()?,
            txid: Txid(take.u64()?),
        })
    }

    /// The mark, if there is a readable one. A bad one is as good as none: it may be torn, and nothing depends on it.
    pub(crate) fn read(storage: &dyn Storage, id: DatabaseId) -> Option<SyncMark> {
        let file = storage.open(MARK_NAME, OpenMode::Read).ok()?;
        let mut bytes = [0; MARK_LEN];
        let length = read_up_to(&*file, &mut bytes, 0).ok()?;
        SyncMark::decode(bytes.get(..length)?)
            .ok()
            .filter(|mark| mark.id == id)
    }
}
