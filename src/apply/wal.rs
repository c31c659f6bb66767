//! Applying through SQLite's write-ahead log: readers never wait for us, nor we for them.
//!
//! We are one more WAL writer: frames with valid checksums are appended under the writer's slot, entered into the
//! wal-index, and committed by its header, so that readers neither see an error nor need a recovery. SQLite itself, through
//! a plain connection (the keeper), recovers and checkpoints.
//!
//! This also serves images whose page 1 says "rollback mode". SQLite opens a WAL whenever a `-wal` file that is not empty
//! lies beside the database, whatever page 1 says; so all readers use it, as long as three rules hold:
//!
//! * such a WAL is only begun while we hold the database alone (nobody may be reading without it),
//! * it is never empty (a header at least, so that newcomers find it),
//! * nobody deletes it: we hold `Shared`, and its deletion by the last connection needs `Exclusive`.

use std::time::Duration;

use c_shim::{Code, Connection, File, Lock, OpenFlags, Shm, SqlError};

use super::batch::State;
use super::files::Files;
use super::rollback::{self, Fingerprint};
use super::wal_format::{self, HEADER_BYTES};
use super::wal_index::{self, Held, Index};
use super::wal_session::Session;
use super::{random_u32, wait};
use crate::error::{Error, ErrorKind, Result};

/// Tries to get a wal-index header that SQLite has to recover first.
const RECOVERY_TRIES: u32 = 3;
/// Where page 1 says how the database is to be read: 1 rollback mode, 2 WAL.
const READ_VERSION_OFFSET: u64 = 19;

/// The WAL of a replica, with all that keeps it alive.
pub(super) struct Wal {
    /// A plain connection in WAL mode. Its `Shared` lock and its mapping last as long as it is open.
    keeper: Connection,
    pub(super) file: File,
    pub(super) known: Known,
    /// Frames in the file after our last commit.
    pub(super) frames: u32,
    /// Frames put together, not written yet.
    pub(super) buffer: Vec<u8>,
}

/// What we know of the WAL's content; anything else was written by someone else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Nothing: whoever begins a transaction examines it.
    Nothing,
    /// It was just begun, and has no frames.
    Empty,
    /// The commit counter after our last look or commit.
    Change(u32),
}

impl Known {
    fn fits(self, header: &wal_index::Header) -> bool {
        match self {
            Known::Nothing => true,
            Known::Empty => header.frame_last == 0,
            Known::Change(change) => change == header.change,
        }
    }
}

/// What a try to use the WAL gives.
pub(super) enum Entered {
    /// It is ours to write.
    Wal(Wal),
    /// Readers use the file in the other way; try later.
    Busy,
    /// The file is not what we left.
    Unsure,
    /// The file system or the VFS has no shared memory: only the rollback way is left.
    Impossible,
}

/// What a try to start a transaction gives.
pub(super) enum Begun<'a> {
    /// Go on.
    Ready(Session<'a>),
    /// Someone else holds the writer's slot.
    Busy,
    /// The file may not be what we left: someone wrote to it, or the wal-index had to be recovered.
    Unsure,
    /// Someone emptied the WAL of an image in rollback mode: new readers do not use it any more. Enter again.
    Lost,
}

/// Opens a plain connection to a database that has pages, which rolls back a hot journal and recovers a WAL. Says
/// whether it uses a WAL.
pub(super) fn connect(files: &Files, wait: Duration) -> Result<(Connection, bool)> {
    let failed = |error: SqlError| {
        let kind = match error.code.primary() {
            Code::NOTADB | Code::CORRUPT => ErrorKind::Corrupt,
            code if code.is_busy() => ErrorKind::Busy,
            _ => ErrorKind::Io,
        };
        Error::new(kind, format_args!("SQLite cannot open it: {error}")).at(files.db.display())
    };
    let flags = OpenFlags::READWRITE;
    let connection = Connection::open(files.api, &files.db, None, flags, 0).map_err(failed)?;
    // A schema that this SQLite cannot parse must not keep it from checkpointing.
    connection
        .exec("PRAGMA writable_schema = ON")
        .map_err(failed)?;
    read_once(&connection, wait).map_err(failed)?;
    let mode = connection
        .query_text("PRAGMA journal_mode")
        .map_err(failed)?;
    let is_wal = mode.is_some_and(|mode| mode.eq_ignore_ascii_case("wal"));
    Ok((connection, is_wal))
}

/// One read transaction, which makes SQLite recover what needs it and learn the page size anew.
fn read_once(connection: &Connection, wait: Duration) -> Result<(), SqlError> {
    let attempt = || connection.query_i64("PRAGMA schema_version").map(|_| ());
    wait::until_free(wait, attempt, |error: &SqlError| error.code.is_busy())
}

impl Wal {
    /// Begins to use a WAL for a database that has pages and is in `state`; `left` is what we left it like, if we wrote
    /// it. `db` is unlocked before, and afterwards holds `Shared` if the answer is [`Entered::Wal`].
    pub fn enter(
        files: &Files,
        db: &File,
        state: &State,
        left: Option<Fingerprint>,
        wait: Duration,
    ) -> Result<Entered> {
        // The first to map the shared memory clears it; that must not happen while a WAL is being begun.
        if !db.has_shm()
            || db
                .shm()
                .and_then(|shm| shm.region(0, true).map(|_| ()))
                .is_err()
        {
            return Ok(Entered::Impossible);
        }
        match wait::until_unlocked(wait, || db.lock(Lock::Shared)) {
            Ok(()) => {}
            Err(code) if code.is_busy() => return Ok(Entered::Busy),
            Err(code) => return Err(files.db_error("cannot lock the database", code)),
        }
        let entered = Wal::enter_locked(files, db, state, left, wait);
        if !matches!(entered, Ok(Entered::Wal(_))) {
            // Nothing better can be done about a failing unlock; closing the file drops the lock.
            let _ = db.unlock(Lock::None);
        }
        entered
    }

    fn enter_locked(
        files: &Files,
        db: &File,
        state: &State,
        left: Option<Fingerprint>,
        wait: Duration,
    ) -> Result<Entered> {
        let found = rollback::fingerprint(files, db)?;
        let differs = left.is_some_and(|left| left != found) || found.length() != state.bytes();
        // A rollback journal here is a stranger's, dead or alive.
        if differs || files.exists(&files.journal)? {
            return Ok(Entered::Unsure);
        }
        if !files.exists(&files.wal)?
            && read_version(files, db)? != 2
            && !start_over_rollback_image(files, db, state, wait)?
        {
            return Ok(Entered::Busy);
        }
        let (keeper, is_wal) = connect(files, wait)?;
        if !is_wal {
            return Ok(Entered::Busy);
        }
        Wal::adopt(files, keeper, Known::Empty).map(Entered::Wal)
    }

    /// Takes over a connection that uses a WAL. The caller holds `Shared` on its own file.
    pub fn adopt(files: &Files, keeper: Connection, known: Known) -> Result<Wal> {
        let file = open_wal(files)?;
        Ok(Wal {
            keeper,
            file,
            known,
            frames: 0,
            buffer: Vec::new(),
        })
    }

    /// Starts a transaction: nobody else writes until the session is dropped.
    pub fn begin<'a>(
        &'a mut self,
        files: &'a Files,
        db: &'a File,
        shm: &'a Shm<'a>,
        wait: Duration,
    ) -> Result<Begun<'a>> {
        let failed = |code| files.shm_error(code);
        for _ in 0..RECOVERY_TRIES {
            let writer = match wait::until_unlocked(wait, || Held::writer(shm)) {
                Ok(writer) => writer,
                Err(code) if code.is_busy() => return Ok(Begun::Busy),
                Err(code) => return Err(failed(code)),
            };
            let mut index = Index::new(shm).map_err(failed)?;
            let Some(header) = index.header().map_err(failed)? else {
                drop(writer);
                let recovered = read_once(&self.keeper, wait);
                recovered.map_err(|error| {
                    Error::new(
                        ErrorKind::Io,
                        format_args!("SQLite cannot recover the WAL: {error}"),
                    )
                    .at(files.wal.display())
                })?;
                continue;
            };
            if !self.known.fits(&header) {
                return Ok(Begun::Unsure);
            }
            if self.size(files)? < HEADER_BYTES as u64 && read_version(files, db)? != 2 {
                return Ok(Begun::Lost);
            }
            self.known = Known::Change(header.change);
            return Ok(Begun::Ready(Session::new(
                self, files, db, index, header, writer,
            )));
        }
        Err(
            Error::new(ErrorKind::Corrupt, "the wal-index stays damaged")
                .at(files.db.display())
                .hint("close all its readers, then start again"),
        )
    }

    /// Lets SQLite copy as much as readers allow into the database file.
    pub fn checkpoint(&self, files: &Files) -> Result<()> {
        // Learns of a new page size first: a checkpoint with the old one is refused.
        let done = read_once(&self.keeper, Duration::ZERO)
            .and_then(|()| self.keeper.query_i64("PRAGMA wal_checkpoint(PASSIVE)"));
        match done {
            Ok(_) => Ok(()),
            Err(error) if error.code.is_busy() => Ok(()),
            Err(error) => Err(Error::new(
                ErrorKind::Io,
                format_args!("cannot checkpoint: {error}"),
            )
            .at(files.db.display())),
        }
    }

    fn size(&self, files: &Files) -> Result<u64> {
        self.file
            .size()
            .map_err(|code| files.wal_error("cannot get the size", code))
    }

    /// Frames in the WAL after our last commit.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Closes everything. The last connection to the database makes SQLite checkpoint and delete the WAL.
    pub fn close(self) {
        drop(self.file);
        drop(self.keeper);
    }
}

/// Puts a WAL beside an image in rollback mode, while nobody reads. False: readers are in the way.
fn start_over_rollback_image(
    files: &Files,
    db: &File,
    state: &State,
    wait: Duration,
) -> Result<bool> {
    let header = wal_format::Header {
        big_endian: cfg!(target_endian = "big"),
        page_size: state.page_size,
        sequence: 0,
        salt: random_salt(),
    };
    // As long as it is empty, SQLite does not see it. So all that is left to do alone is one small write.
    let wal = open_wal(files)?;
    match wait::exclusive_unseen(db, wait) {
        Ok(()) => {}
        Err(code) if code.is_busy() => return Ok(false),
        Err(code) => return Err(files.db_error("cannot lock the database", code)),
    }
    wal.write_at(&header.encode().0, 0)
        .map_err(|code| files.wal_error("cannot write", code))?;
    db.unlock(Lock::Shared)
        .map_err(|code| files.db_error("cannot unlock the database", code))?;
    Ok(true)
}

fn open_wal(files: &Files) -> Result<File> {
    let flags = OpenFlags::WAL | OpenFlags::READWRITE | OpenFlags::CREATE;
    File::open(files.api, None, &files.wal, flags)
        .map_err(|code| files.wal_error("cannot open", code))
}

/// How the main file says that it is to be read; 0 if it is empty.
fn read_version(files: &Files, db: &File) -> Result<u8> {
    let mut byte = [0u8];
    db.read_at(&mut byte, READ_VERSION_OFFSET)
        .map_err(|code| files.db_error("cannot read", code))?;
    Ok(byte[0])
}

pub(super) fn random_salt() -> [u8; 8] {
    let ([a, b, c, d], [e, f, g, h]) = (random_u32().to_le_bytes(), random_u32().to_le_bytes());
    [a, b, c, d, e, f, g, h]
}
