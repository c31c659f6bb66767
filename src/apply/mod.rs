//! Applying the log to a replica's database file, which stays a plain SQLite file all the time (P4, P5, P6).
//!
//! Two ways lead a batch of records into the file, both as one SQLite transaction that any SQLite repairs after a crash:
//!
//! * `wal`, the usual one: we are a WAL writer. Readers never wait and never get `SQLITE_BUSY`, and no batch costs an
//!   fsync. Used whatever page 1 says about the mode, because a `-wal` file beside the database decides.
//! * `rollback`: a rollback journal, for the first content of a new file, where there is no shared memory, and when asked
//!   for. Readers are turned away while pages are written.
//!
//! [`Applier::idle`] lets SQLite copy the WAL into the database file, which is then byte for byte the primary's image.

mod base;
mod batch;
mod files;
mod locate;
mod options;
mod rollback;
mod stamp;
mod wait;
mod wal;
mod wal_format;
mod wal_index;
mod wal_session;

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::time::{Duration, Instant};

use c_shim::{Api, File, Lock};
use mycelite_journal::{Pos, Reader, RecordEntry, Txid};

use crate::error::{Error, ErrorKind, Result};
#[cfg(feature = "cli")]
pub(crate) use base::past_file;
use base::{log_error, open_reader};
use batch::{Batch, State};
use files::Files;
pub use options::{Applied, ApplyOptions};
use rollback::{Fingerprint, Outcome, Plain, Reserved};
use stamp::{FileMark, Stamp};
use wal::{Begun, Entered, Wal};

/// Records looked ahead for, so that a batch can be planned.
const QUEUE_MAX: usize = 4096;
/// Pause between two looks at a reader that keeps the WAL from being started again.
const READER_PAUSE: Duration = Duration::from_millis(5);

const READER_IN_THE_WAY: &str = "waiting for a reader to finish";
const WRITER_IN_THE_WAY: &str = "waiting for another connection that writes to the replica";

/// Keeps one database file at the state of its log. One per database at a time; the caller sees to that.
pub struct Applier {
    files: Files,
    options: ApplyOptions,
    reader: Reader,
    /// Records read ahead, the next one first.
    queue: VecDeque<RecordEntry>,
    /// Where the log begins.
    base: Pos,
    /// No record after this one is applied.
    limit: Txid,
    stamp: Stamp,
    state: State,
    // Closed in this order: our own lock first, then the keeper's, so that SQLite can clean up behind the last one.
    db: Option<File>,
    wal: Option<Wal>,
    /// Which file `db` is, to notice that it was deleted or replaced.
    db_inode: u64,
    /// Whether the VFS and the file system can do WAL.
    wal_possible: bool,
    /// Frames in the WAL at the last checkpoint.
    checkpointed: u32,
    /// Whether the database file alone is the image, and on the disk.
    settled: bool,
    /// The file as it was when [`Applier::rest`] let go of it.
    resting: Option<FileMark>,
    /// The file's counters after our last commit in the rollback way.
    fingerprint: Option<Fingerprint>,
    /// Set while it is not known what state the file is in.
    lost: bool,
}

impl Applier {
    /// Opens a replica: `db` is its database file (made at the first record if it is not there), `log_dir` the directory
    /// of its log. SQLite recovers what a crash left, then the file's place in the history is found: by the stamp of a
    /// clean close, else by its checksum, for which all of it is read. A file that is no recorded state was written by
    /// someone else: a copy is put into `log_dir` as `parked-<time>.db`, and the file made what the log's head says.
    ///
    /// # Errors
    /// `NotFound` without a log; `Busy` when others hold locks for longer than the bound; `Diverged` when the log is empty
    /// and the file is not; `Io`, `Corrupt`.
    pub fn open(db: &Path, log_dir: &Path) -> Result<Applier> {
        Applier::open_with(db, log_dir, ApplyOptions::default())
    }

    /// The same with other limits.
    ///
    /// # Errors
    /// As for [`Applier::open`].
    pub fn open_with(db: &Path, log_dir: &Path, options: ApplyOptions) -> Result<Applier> {
        let api = Api::get().ok_or_else(|| {
            Error::new(ErrorKind::Internal, "SQLite's routines are not known yet")
        })?;
        let files = Files::new(api, db, log_dir)?;
        let reader = open_reader(log_dir)?;
        let (stamp, remembered) = Stamp::open(log_dir)?;
        let mut applier = Applier {
            limit: options.limit,
            files,
            options,
            reader,
            base: Pos::ZERO,
            queue: VecDeque::new(),
            stamp,
            state: State::default(),
            db: None,
            wal: None,
            db_inode: 0,
            wal_possible: true,
            checkpointed: 0,
            settled: false,
            resting: None,
            fingerprint: None,
            lost: true,
        };
        applier.locate(remembered)?;
        Ok(applier)
    }

    /// Leaves the records after `last` alone until a later call permits more: those that a power cut could still take
    /// out of the log must not be in the file before.
    pub fn set_limit(&mut self, last: Txid) {
        self.limit = last;
    }

    /// Where the database file is in its history.
    pub fn pos(&self) -> Pos {
        self.state.pos
    }

    /// Pages of the image, and bytes per page (0 for both when there is nothing yet).
    pub fn geometry(&self) -> (u32, u32) {
        (self.state.page_count, self.state.page_size)
    }

    /// Whether the database file alone, without its WAL, is the image at [`Applier::pos`].
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// Applies the next records of the log as one transaction, as many as fit a batch.
    ///
    /// # Errors
    /// `Diverged` or `Corrupt`, naming the transaction, for a record that does not fit the file: nothing of it is
    /// applied, and the next step meets it again. `Io`. The applier stays usable.
    pub fn step(&mut self) -> Result<Applied> {
        if self.lost {
            self.locate_again()?;
        }
        self.fill_queue()?;
        if self.queue.is_empty() && !self.lacks_base() {
            return Ok(self.applied(&[], None));
        }
        if self.notice_changes()? {
            self.locate_again()?;
            self.fill_queue()?;
        }
        match self.apply_batch() {
            Ok(Step::Done(count)) => {
                let done: Vec<RecordEntry> =
                    self.queue.drain(..count.min(self.queue.len())).collect();
                self.fill_queue()?;
                Ok(self.applied(&done, None))
            }
            Ok(Step::Waiting(why)) => Ok(self.applied(&[], Some(why))),
            Ok(Step::Moved) => Ok(Applied {
                more: true,
                ..self.applied(&[], None)
            }),
            Err(error) => {
                // What the reader and the file are like is found out anew at the next step.
                self.queue.clear();
                self.settled = false;
                self.find_base()?;
                Err(error)
            }
        }
    }

    /// To be called when [`Applier::step`] finds nothing more: makes the database file alone the image. What readers still
    /// need stays in the WAL; then call it again later ([`Applier::is_settled`]).
    ///
    /// # Errors
    /// `Io`.
    pub fn idle(&mut self) -> Result<()> {
        if self.settled || self.lost {
            return Ok(());
        }
        let (Some(db), Some(wal)) = (&self.db, &mut self.wal) else {
            self.settled = true;
            return Ok(());
        };
        wal.checkpoint(&self.files)?;
        let shm = db.shm().map_err(|code| self.files.shm_error(code))?;
        match wal.begin(&self.files, db, &shm, Duration::ZERO)? {
            Begun::Ready(mut session) => {
                self.settled = session.is_settled()?;
                if self.settled && self.state.page_count > 0 {
                    session.trim(&self.state)?;
                    // A short WAL is quickly recovered, by whoever has to. Readers may still need it: then another time.
                    session.restart(self.state.page_size, true)?;
                }
            }
            Begun::Busy => {}
            // The next step finds out what happened.
            Begun::Unsure | Begun::Lost => self.lost = true,
        }
        self.checkpointed = 0;
        self.stamp.write(&self.state, self.state.pos)
    }

    /// To be called when nothing came for a while, and before the end: leaves the database file behind as plain as can be,
    /// with no locks, connections or descriptors of ours, and no WAL beside it unless readers still use it. The next step
    /// takes everything up again. Says whether the file is at rest; if a reader is in the way, call it again later.
    ///
    /// # Errors
    /// `Io`.
    pub fn rest(&mut self) -> Result<bool> {
        if self.resting.is_some() {
            return Ok(true);
        }
        self.idle()?;
        if !self.settled {
            return Ok(false);
        }
        self.release();
        let Some(mark) = FileMark::of(&self.files.db)? else {
            return Ok(true);
        };
        let wal_is_empty = FileMark::of(&self.files.wal)?
            .is_none_or(|wal| wal.length() <= wal_format::HEADER_BYTES as u64);
        if wal_is_empty && mark.length() == self.state.bytes() {
            self.stamp.write_clean(&self.state, mark)?;
            self.resting = Some(mark);
        }
        Ok(true)
    }

    /// [`Applier::rest`], for good; the next open is then spared from reading the file.
    ///
    /// # Errors
    /// `Io`.
    pub fn close(mut self) -> Result<()> {
        self.rest()?;
        self.release();
        Ok(())
    }

    /// Gives up all locks and connections; SQLite checkpoints and deletes the WAL if nobody else uses it.
    fn release(&mut self) {
        self.db = None;
        if let Some(wal) = self.wal.take() {
            wal.close();
        }
    }

    fn applied(&self, done: &[RecordEntry], waiting: Option<&'static str>) -> Applied {
        Applied {
            pos: self.state.pos,
            records: done.len() as u64,
            bytes: done.iter().map(|entry| entry.header.record_len()).sum(),
            more: !self.queue.is_empty(),
            waiting,
        }
    }

    fn fill_queue(&mut self) -> Result<()> {
        if self.lacks_base() {
            return Ok(());
        }
        while self.queue.len() < QUEUE_MAX {
            let last = self
                .queue
                .back()
                .map_or(self.state.pos.txid, |entry| entry.header.txid);
            if last >= self.limit {
                break;
            }
            match self.reader.next() {
                Ok(Some(entry)) => self.queue.push_back(entry),
                Ok(None) => break,
                // The records before the bad one are good; when they are applied, it is met again.
                Err(_) if !self.queue.is_empty() => break,
                Err(error) => return Err(log_error(error)),
            }
        }
        Ok(())
    }

    fn apply_batch(&mut self) -> Result<Step> {
        let begins = self.state.page_count == 0;
        let ends = self
            .queue
            .front()
            .is_some_and(|entry| entry.header.page_count == 0);
        if begins || ends {
            self.leave_wal();
            return self.apply_directly();
        }
        if !self.uses_wal()? {
            return self.apply_directly();
        }
        if self.wal.is_none()
            && let Some(step) = self.enter_wal()?
        {
            return Ok(step);
        }
        self.apply_to_wal()
    }

    /// Whether a batch goes through a WAL: when that is wanted, or when there is one.
    fn uses_wal(&self) -> Result<bool> {
        if self.wal.is_some() {
            return Ok(true);
        }
        Ok(self.wal_possible && (self.options.use_wal || self.files.exists(&self.files.wal)?))
    }

    fn open_db(&mut self) -> Result<()> {
        if self.db.is_none() {
            self.db = Some(self.files.open_db()?);
            self.db_inode = FileMark::of(&self.files.db)?.map_or(0, |mark| mark.inode());
        }
        Ok(())
    }

    /// Starts to use a WAL. `None`: it is done; else why the step ends here.
    fn enter_wal(&mut self) -> Result<Option<Step>> {
        self.open_db()?;
        let Some(db) = &self.db else {
            return Ok(Some(Step::Moved));
        };
        let wait = self.options.lock_wait;
        match Wal::enter(&self.files, db, &self.state, self.fingerprint, wait)? {
            Entered::Wal(wal) => {
                self.wal = Some(wal);
                self.fingerprint = None;
                Ok(None)
            }
            Entered::Busy => Ok(Some(Step::Waiting(READER_IN_THE_WAY))),
            Entered::Unsure => self.locate_again().map(Some),
            Entered::Impossible => {
                self.wal_possible = false;
                Ok(Some(Step::Moved))
            }
        }
    }

    /// Gives the WAL up; SQLite deletes it if nobody else uses it.
    fn leave_wal(&mut self) {
        if let Some(wal) = self.wal.take() {
            if let Some(db) = &self.db {
                // A failure is met again by whoever needs the lock.
                let _ = db.unlock(Lock::None);
            }
            wal.close();
        }
    }

    fn apply_to_wal(&mut self) -> Result<Step> {
        let until = Instant::now() + self.options.lock_wait;
        loop {
            match self.commit_to_wal()? {
                WalStep::Done {
                    to,
                    records,
                    changed,
                } => {
                    self.settled &= !changed;
                    self.state = to;
                    self.checkpoint_if_large()?;
                    return Ok(Step::Done(records));
                }
                WalStep::ReaderInTheWay {
                    tried_checkpoint: false,
                } => {}
                WalStep::ReaderInTheWay { .. } if Instant::now() < until => {
                    std::thread::sleep(READER_PAUSE)
                }
                WalStep::ReaderInTheWay { .. } => return Ok(Step::Waiting(READER_IN_THE_WAY)),
                WalStep::WriterInTheWay => return Ok(Step::Waiting(WRITER_IN_THE_WAY)),
                WalStep::Nothing => return Ok(Step::Done(0)),
                WalStep::Lost => {
                    self.leave_wal();
                    return Ok(Step::Moved);
                }
                WalStep::Unsure => return self.locate_again(),
            }
            if let Some(wal) = &self.wal {
                wal.checkpoint(&self.files)?;
                self.checkpointed = wal.frames();
            }
        }
    }

    fn commit_to_wal(&mut self) -> Result<WalStep> {
        let files = &self.files;
        let (Some(db), Some(wal)) = (&self.db, &mut self.wal) else {
            return Ok(WalStep::Lost);
        };
        let shm = db.shm().map_err(|code| files.shm_error(code))?;
        let mut session = match wal.begin(files, db, &shm, self.options.lock_wait)? {
            Begun::Ready(session) => session,
            Begun::Busy => return Ok(WalStep::WriterInTheWay),
            Begun::Lost => return Ok(WalStep::Lost),
            Begun::Unsure => return Ok(WalStep::Unsure),
        };
        let checkpointed = session.frames() <= self.checkpointed;
        let wal_bytes = u64::from(session.frames()) * u64::from(self.state.page_size);
        if wal_bytes > self.options.wal_bytes_stop && !session.is_settled()? {
            return Ok(WalStep::ReaderInTheWay {
                tried_checkpoint: checkpointed,
            });
        }
        let Some(batch) = Batch::build(
            self.state,
            &self.queue,
            self.options.batch_bytes_max,
            &mut session,
        )?
        else {
            return Ok(WalStep::Nothing);
        };
        let (to, records, changed) = (batch.to, batch.records, !batch.is_empty());
        if changed {
            self.stamp.write(&batch.from, batch.to.pos)?;
            if session.commit(&batch)? == Outcome::Busy {
                return Ok(WalStep::ReaderInTheWay {
                    tried_checkpoint: checkpointed,
                });
            }
        }
        Ok(WalStep::Done {
            to,
            records,
            changed,
        })
    }

    fn checkpoint_if_large(&mut self) -> Result<()> {
        let Some(wal) = &self.wal else { return Ok(()) };
        let frames = wal.frames();
        if frames < self.checkpointed {
            self.checkpointed = 0;
        }
        // Not at every step, should a reader hold the WAL for long: each attempt costs an fsync.
        if u64::from(frames - self.checkpointed) * u64::from(self.state.page_size)
            >= self.options.wal_bytes_max
        {
            wal.checkpoint(&self.files)?;
            self.checkpointed = frames;
        }
        Ok(())
    }

    /// The rollback way.
    fn apply_directly(&mut self) -> Result<Step> {
        self.open_db()?;
        let (files, wait) = (&self.files, self.options.lock_wait);
        let Some(db) = &self.db else {
            return Ok(Step::Moved);
        };
        let Some(reserved) = Reserved::take(files, db, wait)? else {
            return Ok(Step::Waiting(READER_IN_THE_WAY));
        };
        if files.exists(&files.wal)? {
            drop(reserved);
            return self.meet_wal();
        }
        let found = rollback::fingerprint(files, db)?;
        if found.length() != self.state.bytes()
            || self.fingerprint.is_some_and(|known| known != found)
        {
            drop(reserved);
            return self.locate_again();
        }
        let mut pages = Plain {
            files,
            db,
            page_size: self.state.page_size,
        };
        let Some(batch) = self.next_batch(&mut pages)? else {
            return Ok(Step::Done(0));
        };
        if !batch.is_empty() {
            self.stamp.write(&batch.from, batch.to.pos)?;
            match rollback::apply(files, db, &batch, wait) {
                Ok(Outcome::Committed) => {}
                Ok(Outcome::Busy) => return Ok(Step::Waiting(READER_IN_THE_WAY)),
                Err(error) => {
                    drop(reserved);
                    // The journal may be hot: then SQLite restores the image before, now or when somebody opens it.
                    let _ = wal::connect(files, wait);
                    return Err(error);
                }
            }
            self.fingerprint = Some(rollback::fingerprint(files, db)?);
        }
        let (to, records) = (batch.to, batch.records);
        drop(reserved);
        self.state = to;
        self.settled = true;
        if records == 0 {
            // It came out of a snapshot: the records begin behind that.
            self.find_base()?;
        }
        Ok(Step::Done(records))
    }

    /// There is a WAL where a record should be written to the file itself.
    fn meet_wal(&mut self) -> Result<Step> {
        if self.state.page_count == 0 {
            // The leftover of an earlier file of this name. SQLite deletes it, too.
            self.files.delete(&self.files.wal)?;
            return Ok(Step::Moved);
        }
        let ends = self
            .queue
            .front()
            .is_some_and(|entry| entry.header.page_count == 0);
        // As long as others use it, it is the only way; but an end cannot go that way.
        match self.enter_wal()? {
            None if ends => Ok(Step::Waiting(READER_IN_THE_WAY)),
            None => Ok(Step::Moved),
            Some(step) => Ok(step),
        }
    }
}

/// What became of one step.
enum Step {
    /// So many records of the queue are applied.
    Done(usize),
    /// Someone is in the way.
    Waiting(&'static str),
    /// Nothing applied, but something was put in order: try again.
    Moved,
}

/// The same for a step through the WAL.
enum WalStep {
    Done {
        to: State,
        records: usize,
        changed: bool,
    },
    Nothing,
    WriterInTheWay,
    ReaderInTheWay {
        /// Whether SQLite copied already what it could.
        tried_checkpoint: bool,
    },
    /// The WAL has to be entered again.
    Lost,
    /// The file has to be examined again.
    Unsure,
}

/// The page that holds SQLite's lock bytes and no data.
fn lock_page(page_size: u32) -> u32 {
    0x4000_0000 / page_size.max(1) + 1
}

/// A number that nobody can have foreseen; not for secrets.
fn random_u32() -> u32 {
    RandomState::new().build_hasher().finish() as u32
}
