//! Finding out where a database file is in the history, after a crash or a strange hand.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use c_shim::{File, Lock};
use mycelite_journal::{Checksum, FileStorage, OpenMode, Pos, StorageFile, page_checksum};

use super::base::lay_out;
use super::batch::{Batch, Pages, State};
use super::rollback::{self, Outcome, Plain, Reserved};
use super::stamp::{FileMark, Remembered};
use super::wal::{self, Begun, Known, Wal};
use super::{Applier, Step, lock_page, log_error, wait, wal_format};
use crate::error::{Error, ErrorKind, Result};
use crate::parked;

/// Bytes copied at once.
const COPY_BYTES: usize = 1 << 20;
/// Tries to find a quiet moment.
const TRIES: u32 = 3;

/// What is in the file.
enum Found {
    /// A recorded state.
    State(State),
    /// A state that was recorded once: of a timeline that ended elsewhere, whose records are parked beside the log, or older
    /// than the log.
    Parked(State),
    /// An image of this size that no record describes.
    Foreign(State),
    /// Bytes that are no image.
    Garbage(Error),
}

/// What came of examining a file, and of repairing it.
enum Examined {
    /// It is in this state now.
    State(State),
    /// Others were in the way: try again.
    Disturbed,
    /// It is no database.
    Garbage(Error),
}

impl Applier {
    /// Lets SQLite recover the file, finds its state, and repairs it if it has none.
    pub(super) fn locate(&mut self, remembered: Option<Remembered>) -> Result<()> {
        self.lost = true;
        self.queue.clear();
        self.release();
        self.settled = true;
        self.resting = None;
        self.fingerprint = None;
        self.checkpointed = 0;
        self.state = State::default();
        self.find_base()?;
        let mark = FileMark::of(&self.files.db)?;
        self.state = if mark.is_none_or(|mark| mark.length() == 0) {
            State::default()
        } else if let Some(state) = self.recall(remembered, mark)? {
            state
        } else {
            self.recover_and_find(remembered)?
        };
        self.find_base()?;
        self.lost = false;
        Ok(())
    }

    /// The same in the middle of work, where the caller goes on afterwards.
    pub(super) fn locate_again(&mut self) -> Result<Step> {
        let last = Remembered {
            state: self.state,
            target: self.state.pos,
            clean: None,
        };
        self.locate(Some(last))?;
        Ok(Step::Moved)
    }

    /// Whether the database file was deleted or replaced while we had it open, or touched while it was at rest.
    pub(super) fn notice_changes(&mut self) -> Result<bool> {
        if self.db.is_none() && self.resting.is_none() {
            return Ok(false);
        }
        let mark = FileMark::of(&self.files.db)?;
        let same = match self.resting.take() {
            Some(resting) => mark == Some(resting) && !self.has_leftovers()?,
            None => mark.map(|mark| mark.inode()) == Some(self.db_inode),
        };
        if !same {
            tracing::warn!(database = %self.files.db.display(), "someone touched the replica; looking at it anew");
        }
        Ok(!same)
    }

    /// Whether a rollback journal or a WAL with frames lies beside the database.
    fn has_leftovers(&self) -> Result<bool> {
        let wal = FileMark::of(&self.files.wal)?
            .is_some_and(|wal| wal.length() > wal_format::HEADER_BYTES as u64);
        Ok(wal || self.files.exists(&self.files.journal)?)
    }

    /// The state at the last clean close, if the file is what it was then.
    fn recall(
        &mut self,
        remembered: Option<Remembered>,
        mark: Option<FileMark>,
    ) -> Result<Option<State>> {
        let Some(remembered) =
            remembered.filter(|remembered| remembered.clean.is_some() && remembered.clean == mark)
        else {
            return Ok(None);
        };
        if self.has_leftovers()? {
            return Ok(None);
        }
        let state = remembered.state;
        let recorded = match self.reader.find(state.pos.txid).map_err(log_error)? {
            Some(entry) => Some(State::after(&entry)),
            None if state.pos == self.base => self.base_state()?,
            None => None,
        };
        Ok(recorded.filter(|recorded| *recorded == state))
    }

    fn recover_and_find(&mut self, remembered: Option<Remembered>) -> Result<State> {
        for _ in 0..TRIES {
            let examined = match self.recover() {
                Ok(true) => self.examine_wal(remembered)?,
                Ok(false) => self.examine_plain(remembered)?,
                Err(error) if error.kind() == ErrorKind::Corrupt => Examined::Garbage(error),
                Err(error) => return Err(error),
            };
            match examined {
                Examined::State(state) => return Ok(state),
                Examined::Garbage(why) => return self.replace_garbage(&why),
                Examined::Disturbed => {}
            }
        }
        Err(Error::new(ErrorKind::Busy, "others keep the replica busy")
            .at(self.files.db.display())
            .hint("it is tried again; readers must not hold transactions open for long"))
    }

    /// Opens the file as any SQLite would, and keeps the WAL if there is one. Whether there is.
    fn recover(&mut self) -> Result<bool> {
        self.release();
        let (connection, is_wal) = wal::connect(&self.files, self.options.lock_wait)?;
        self.open_db()?;
        if !is_wal {
            return Ok(false);
        }
        let Some(db) = &self.db else { return Ok(false) };
        wait::until_unlocked(self.options.lock_wait, || db.lock(Lock::Shared))
            .map_err(|code| self.files.db_error("cannot lock the database", code))?;
        self.wal = Some(Wal::adopt(&self.files, connection, Known::Nothing)?);
        self.settled = false;
        Ok(true)
    }

    /// Finds, or repairs, the state of a file with a WAL.
    fn examine_wal(&mut self, remembered: Option<Remembered>) -> Result<Examined> {
        let (Some(db), Some(mut wal)) = (self.db.take(), self.wal.take()) else {
            return Ok(Examined::Disturbed);
        };
        let examined = self.examine_wal_of(remembered, &db, &mut wal);
        (self.db, self.wal) = (Some(db), Some(wal));
        examined
    }

    fn examine_wal_of(
        &mut self,
        remembered: Option<Remembered>,
        db: &File,
        wal: &mut Wal,
    ) -> Result<Examined> {
        let files = self.files.clone();
        let shm = db.shm().map_err(|code| files.shm_error(code))?;
        let Begun::Ready(mut session) = wal.begin(&files, db, &shm, self.options.lock_wait)? else {
            return Ok(Examined::Disturbed);
        };
        let found = match self.examine(session.geometries()?, remembered, &mut session)? {
            Found::State(state) => {
                session.trim(&state)?;
                return Ok(Examined::State(state));
            }
            Found::Garbage(why) => return Ok(Examined::Garbage(why)),
            Found::Parked(found) => found,
            Found::Foreign(found) => {
                self.park(&found, &mut session)?;
                found
            }
        };
        let batch = self.rebuild(found)?;
        let done = session.commit(&batch)?;
        if done == Outcome::Busy {
            drop(shm);
            wal.checkpoint(&files)?;
            return Ok(Examined::Disturbed);
        }
        Ok(Examined::State(batch.to))
    }

    /// The same for a file without a WAL.
    fn examine_plain(&mut self, remembered: Option<Remembered>) -> Result<Examined> {
        let Some(db) = self.db.take() else {
            return Ok(Examined::Disturbed);
        };
        let examined = self.examine_plain_of(remembered, &db);
        self.db = Some(db);
        examined
    }

    fn examine_plain_of(&mut self, remembered: Option<Remembered>, db: &File) -> Result<Examined> {
        let files = self.files.clone();
        let Some(_reserved) = Reserved::take(&files, db, self.options.lock_wait)? else {
            return Ok(Examined::Disturbed);
        };
        if files.exists(&files.wal)? {
            return Ok(Examined::Disturbed);
        }
        // SQLite has seen it and not rolled it back: not hot, so what is left of a transaction that never began.
        files.delete(&files.journal)?;
        let geometries = rollback::geometries(&files, db)?;
        let page_size = geometries.first().map_or(0, |(page_size, _)| *page_size);
        let mut pages = Plain {
            files: &files,
            db,
            page_size,
        };
        let found = match self.examine(geometries, remembered, &mut pages)? {
            Found::State(state) => {
                rollback::trim(&files, db, &state)?;
                self.fingerprint = Some(rollback::fingerprint(&files, db)?);
                return Ok(Examined::State(state));
            }
            Found::Garbage(why) => return Ok(Examined::Garbage(why)),
            Found::Parked(found) => found,
            Found::Foreign(found) => {
                self.park(&found, &mut pages)?;
                found
            }
        };
        let batch = self.rebuild(found)?;
        let done = rollback::apply(&files, db, &batch, self.options.lock_wait)?;
        Ok(if done == Outcome::Committed {
            Examined::State(batch.to)
        } else {
            Examined::Disturbed
        })
    }

    /// Reads the whole image and looks its checksum up.
    fn examine(
        &mut self,
        geometries: Vec<(u32, u32)>,
        remembered: Option<Remembered>,
        pages: &mut dyn Pages,
    ) -> Result<Found> {
        let Some((page_size, page_count)) = geometries.first().copied() else {
            return Ok(Found::Garbage(Error::new(
                ErrorKind::Corrupt,
                "its length does not fit its page size",
            )));
        };
        for (page_size, page_count) in geometries {
            if page_count == 0 {
                return Ok(Found::State(State::default()));
            }
            let checksum = match scan(page_size, page_count, pages) {
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    return Ok(Found::Garbage(error));
                }
                scanned => scanned?,
            };
            tracing::debug!(database = %self.files.db.display(), %checksum, page_count, "read the replica to find its place");
            let fits =
                |state: &State| (state.page_size, state.page_count) == (page_size, page_count);
            if let Some(state) = self.look_up(checksum, remembered)?.filter(fits) {
                return Ok(Found::State(state));
            }
            let parked = parked::find_checksum(&self.files.log_dir, checksum);
            if let Some(state) = parked.as_ref().map(State::after).filter(fits) {
                return Ok(Found::Parked(state));
            }
            if let Some(pos) = self.is_older(checksum, remembered) {
                return Ok(Found::Parked(State {
                    pos,
                    page_size,
                    page_count,
                }));
            }
        }
        Ok(Found::Foreign(State {
            page_size,
            page_count,
            ..State::default()
        }))
    }

    /// The recorded state with this checksum; of several, one that is remembered, else the newest.
    fn look_up(
        &mut self,
        checksum: Checksum,
        remembered: Option<Remembered>,
    ) -> Result<Option<State>> {
        let hints = remembered.map(|remembered| [remembered.target, remembered.state.pos]);
        for pos in hints
            .into_iter()
            .flatten()
            .filter(|pos| pos.checksum == checksum)
        {
            let entry = self.reader.find(pos.txid).map_err(log_error)?;
            if let Some(entry) = entry.filter(|entry| entry.header.pos() == pos) {
                return Ok(Some(State::after(&entry)));
            }
        }
        let entry = self.reader.find_checksum(checksum).map_err(log_error)?;
        match entry {
            Some(entry) => Ok(Some(State::after(&entry))),
            None if checksum == self.base.checksum => self.base_state(),
            None => Ok(None),
        }
    }

    /// Where the file is, if it has this checksum and was last seen at a place that the log has let go of since.
    fn is_older(&self, checksum: Checksum, remembered: Option<Remembered>) -> Option<Pos> {
        let known = remembered.map(|remembered| [remembered.target, remembered.state.pos]);
        known
            .into_iter()
            .flatten()
            .find(|pos| pos.checksum == checksum && pos.txid < self.base.txid)
    }

    /// Keeps a copy of an image that is not ours to throw away (P9).
    fn park(&mut self, found: &State, pages: &mut dyn Pages) -> Result<()> {
        self.refuse_without_history()?;
        let path = self.parking_place()?;
        let file = create(&path)?;
        let mut page = vec![0u8; found.page_size as usize];
        for pgno in (1..=found.page_count).filter(|pgno| *pgno != lock_page(found.page_size)) {
            pages.old(pgno, &mut page)?;
            let offset = u64::from(pgno - 1) * u64::from(found.page_size);
            file.write_at(&page, offset)
                .map_err(|error| Error::io("cannot write", &path, &error))?;
        }
        file.sync()
            .map_err(|error| Error::io("cannot sync", &path, &error))?;
        self.say_parked(&path, "it is no state of its log");
        Ok(())
    }

    fn say_parked(&self, path: &Path, why: &str) {
        tracing::error!(
            database = %self.files.db.display(),
            parked = %path.display(),
            "someone wrote to the replica ({why}): what was found is parked, and the replica made what its log says"
        );
    }

    /// Without history there is nothing to make the file from: then it is most likely somebody's own database.
    fn refuse_without_history(&mut self) -> Result<()> {
        if self.has_history()? {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Diverged,
            "there is a database here already, but its log is empty",
        )
        .at(self.files.db.display())
        .hint("move the file away if it is not a replica of this database"))
    }

    /// A free name for a parked file.
    fn parking_place(&self) -> Result<PathBuf> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |age| age.as_secs());
        for time in now..now + 1000 {
            let path = self.files.log_dir.join(format!("parked-{time}.db"));
            if !path.exists() {
                return Ok(path);
            }
        }
        Err(Error::new(ErrorKind::Io, "too many parked files")
            .at(self.files.log_dir.display())
            .hint("delete what nobody needs"))
    }

    /// The head of the log, as far as it may be applied, as one transaction over whatever is there.
    fn rebuild(&mut self, from: State) -> Result<Batch> {
        let path = self.files.log_dir.join("rebuild.tmp");
        let to = lay_out(&self.files.log_dir, self.limit, create(&path)?, &|| true)?;
        if to == State::default() {
            return Err(Error::new(
                ErrorKind::Busy,
                "its history begins anew, and no record came yet",
            )
            .at(self.files.db.display())
            .hint("until then the file stays what it is"));
        }
        if from.pos != Pos::ZERO {
            let why = match to.pos.timeline > from.pos.timeline {
                true => "a newer timeline",
                false => "a later snapshot",
            };
            tracing::warn!(database = %self.files.db.display(), from = %from.pos, to = %to.pos, "the replica goes over to {why}");
        }
        let file = FileStorage::open_path(&path, OpenMode::Read)
            .map_err(|error| Error::io("cannot open", &path, &error))?;
        // Its name is not needed any more: the open handle keeps it as long as the batch lives.
        std::fs::remove_file(&path).map_err(|error| Error::io("cannot delete", &path, &error))?;
        self.stamp.write(&from, to.pos)?;
        Ok(Batch::whole(from, to, file))
    }

    /// A file that SQLite does not take for a database: parked byte by byte, then emptied, to be filled from the log.
    fn replace_garbage(&mut self, why: &Error) -> Result<State> {
        self.refuse_without_history()?;
        self.release();
        self.open_db()?;
        let files = self.files.clone();
        let Some(db) = self.db.take() else {
            return Ok(State::default());
        };
        let Some(_reserved) = Reserved::take(&files, &db, self.options.lock_wait)? else {
            return Err(
                Error::new(ErrorKind::Busy, "others keep the replica busy").at(files.db.display())
            );
        };
        let path = self.parking_place()?;
        let copy = create(&path)?;
        let mut buffer = vec![0u8; COPY_BYTES];
        let mut offset = 0u64;
        loop {
            let length = db
                .read_at(&mut buffer, offset)
                .map_err(|code| files.db_error("cannot read", code))?;
            if length == 0 {
                break;
            }
            copy.write_at(&buffer[..length], offset)
                .map_err(|error| Error::io("cannot write", &path, &error))?;
            offset += length as u64;
        }
        copy.sync()
            .map_err(|error| Error::io("cannot sync", &path, &error))?;
        self.say_parked(&path, &why.to_string());
        wait::exclusive_pressing(&db, self.options.lock_wait)
            .map_err(|code| files.db_error("cannot lock the database", code))?;
        db.truncate(0)
            .and_then(|()| db.sync(true))
            .map_err(|code| files.db_error("cannot empty the file", code))?;
        files.delete(&files.journal)?;
        files.delete(&files.wal)?;
        Ok(State::default())
    }
}

/// The checksum of an image.
fn scan(page_size: u32, page_count: u32, pages: &mut dyn Pages) -> Result<Checksum> {
    let mut page = vec![0u8; page_size as usize];
    let mut checksum = Checksum(0);
    for pgno in (1..=page_count).filter(|pgno| *pgno != lock_page(page_size)) {
        pages.old(pgno, &mut page)?;
        checksum ^= page_checksum(pgno, &page);
    }
    Ok(checksum)
}

fn create(path: &Path) -> Result<Box<dyn StorageFile>> {
    let opened = FileStorage::open_path(path, OpenMode::Create);
    opened.map_err(|error| Error::io("cannot create", path, &error))
}
