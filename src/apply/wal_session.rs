//! One write transaction on the WAL of a replica.

use c_shim::{Code, File, Shm};

use super::batch::{Batch, Pages, State};
use super::files::Files;
use super::rollback::{self, Outcome};
use super::wal::{Known, Wal, random_salt};
use super::wal_format::{self, FRAME_HEADER_BYTES, HEADER_BYTES, encode_frame, frame_offset};
use super::wal_index::{self, Held, Index};
use crate::error::{Error, ErrorKind, Result};

/// Bytes of frames gathered before they are written.
const BUFFER_BYTES: usize = 1 << 20;
/// New pages at the end of the file from which on it pays to write them there at once (and to sync it), instead of into the
/// WAL and from there into the file.
const GROWTH_PAGES_MIN: u32 = 256;

/// A write transaction on the WAL.
pub(super) struct Session<'a> {
    wal: &'a mut Wal,
    files: &'a Files,
    db: &'a File,
    shm: &'a Shm<'a>,
    index: Index<'a>,
    /// The last committed state.
    header: wal_index::Header,
    _writer: Held<'a>,
}

impl<'a> Session<'a> {
    /// The caller took the writer's slot, then read `header`.
    pub fn new(
        wal: &'a mut Wal,
        files: &'a Files,
        db: &'a File,
        index: Index<'a>,
        header: wal_index::Header,
        writer: Held<'a>,
    ) -> Session<'a> {
        let shm = index.shm();
        Session {
            wal,
            files,
            db,
            shm,
            index,
            header,
            _writer: writer,
        }
    }

    /// Page size and page count that the image readers see now can have, the likely one first. None: it cannot be a
    /// database.
    pub fn geometries(&self) -> Result<Vec<(u32, u32)>> {
        if self.header.frame_last > 0 {
            return Ok(vec![(self.header.page_size, self.header.page_count)]);
        }
        rollback::geometries(self.files, self.db)
    }

    /// Gives the main file its exact length, if it alone is the image.
    pub fn trim(&mut self, state: &State) -> Result<()> {
        let Ok(_no_checkpoint) = Held::checkpointer(self.shm) else {
            return Ok(());
        };
        if self.is_settled()? {
            rollback::trim(self.files, self.db, state)
        } else {
            Ok(())
        }
    }

    /// Frames committed in this generation of the WAL.
    pub fn frames(&self) -> u32 {
        self.header.frame_last
    }

    /// Whether the main file alone is the image.
    pub fn is_settled(&mut self) -> Result<bool> {
        let backfilled = self.index.backfilled();
        Ok(backfilled.map_err(|code| self.files.shm_error(code))? >= self.header.frame_last)
    }

    /// Starts the WAL again at its first frame, if everything is in the main file and nobody reads frames. `cut` also
    /// gives the space back.
    pub fn restart(&mut self, page_size: u32, cut: bool) -> Result<Outcome> {
        if self.header.frame_last == 0 && !cut {
            return Ok(Outcome::Committed);
        }
        let busy = |code: Code| {
            if code.is_busy() {
                Ok(Outcome::Busy)
            } else {
                Err(self.files.shm_error(code))
            }
        };
        // A checkpointer in the middle of its work must not find the frames exchanged under it.
        let _checkpointer = match Held::checkpointer(self.shm) {
            Ok(held) => held,
            Err(code) => return busy(code),
        };
        let _readers = match Held::no_frame_readers(self.shm) {
            Ok(held) => held,
            Err(code) => return busy(code),
        };
        if !self.is_settled()? {
            return Ok(Outcome::Busy);
        }
        let checksum = self.write_wal_header(page_size, cut)?;
        self.header.frame_last = 0;
        self.header.frame_checksum = checksum;
        let header = self.header;
        self.index
            .restart(&header)
            .map_err(|code| self.files.shm_error(code))?;
        Ok(Outcome::Committed)
    }

    /// A new header with new salts, so that no frame behind it counts. Synced: if it were lost in a power cut and frames
    /// behind it not, the old generation would come back to life over a newer main file.
    fn write_wal_header(&mut self, page_size: u32, cut: bool) -> Result<[u32; 2]> {
        let failed = |code| self.files.wal_error("cannot write", code);
        let mut bytes = [0u8; HEADER_BYTES];
        let length = self.wal.file.read_at(&mut bytes, 0).map_err(failed)?;
        let old = if length == HEADER_BYTES {
            wal_format::Header::decode(&bytes)
        } else {
            None
        };
        let mut salt = random_salt();
        if let Some((old, _)) = old {
            // As SQLite does it: the first half counts up, the second is random.
            let count = wal_format::be32(&old.salt, 0).wrapping_add(1);
            salt[..4].copy_from_slice(&count.to_be_bytes());
        }
        let header = wal_format::Header {
            big_endian: cfg!(target_endian = "big"),
            page_size,
            sequence: old.map_or(0, |(old, _)| old.sequence.wrapping_add(1)),
            salt,
        };
        let (bytes, checksum) = header.encode();
        self.wal.file.write_at(&bytes, 0).map_err(failed)?;
        if cut {
            self.wal
                .file
                .truncate(HEADER_BYTES as u64)
                .map_err(failed)?;
        }
        self.wal.file.sync(false).map_err(failed)?;
        self.header.big_endian = header.big_endian;
        self.header.salt = salt;
        Ok(checksum)
    }

    /// Whether the WAL's header is of the generation that the index speaks of: not so if its writer died in between.
    fn is_current(&self) -> Result<bool> {
        let mut bytes = [0u8; HEADER_BYTES];
        let read = self.wal.file.read_at(&mut bytes, 0);
        let read = read.map_err(|code| self.files.wal_error("cannot read", code))?;
        let header = wal_format::Header::decode(&bytes).filter(|_| read == HEADER_BYTES);
        Ok(header.is_some_and(|(header, _)| header.salt == self.header.salt))
    }

    /// Makes the file's header fit what is to follow as frame 1: usually it does.
    fn prepare_first_frame(&mut self, page_size: u32) -> Result<()> {
        let mut bytes = [0u8; HEADER_BYTES];
        let read = self
            .wal
            .file
            .read_at(&mut bytes, 0)
            .map_err(|code| self.files.wal_error("cannot read", code))?;
        if read == HEADER_BYTES
            && let Some((header, checksum)) = wal_format::Header::decode(&bytes)
            && header.page_size == page_size
            && header.salt == self.header.salt
            && header.big_endian == self.header.big_endian
        {
            self.header.frame_checksum = checksum;
            return Ok(());
        }
        self.header.frame_checksum = self.write_wal_header(page_size, false)?;
        Ok(())
    }

    /// Writes a batch as one transaction. [`Outcome::Busy`] where the page size changes while readers use the WAL, or where
    /// the WAL must be started anew and someone is in the way.
    ///
    /// # Errors
    /// Nothing is committed then, and what was written is as if it never had been.
    pub fn commit(mut self, batch: &Batch) -> Result<Outcome> {
        let page_size = batch.to.page_size;
        let restarted = self.restart(page_size, false)?;
        if restarted == Outcome::Busy && (batch.resizes() || !self.is_current()?) {
            return Ok(Outcome::Busy);
        }
        if self.header.frame_last == 0 {
            self.prepare_first_frame(page_size)?;
        }
        // A checkpoint would cut new pages off again before they are committed.
        let no_checkpoint = Held::checkpointer(self.shm).ok();
        let growth = if no_checkpoint.is_some() {
            Growth::of(self.files, self.db, batch)?
        } else {
            None
        };
        // Should this fail, pages behind the image's end do no harm; the next checkpoint cuts them off.
        let (last, checksum) = self.write_frames(batch, growth)?;
        self.header.change = self.header.change.wrapping_add(1);
        self.header.page_size = page_size;
        self.header.page_count = batch.to.page_count;
        self.header.frame_last = last;
        self.header.frame_checksum = checksum;
        let published = self.index.publish(&self.header);
        published.map_err(|code| self.files.shm_error(code))?;
        self.wal.known = Known::Change(self.header.change);
        self.wal.frames = last;
        Ok(Outcome::Committed)
    }

    /// Writes all frames of a batch, checked; gives the last one and the checksum after it.
    fn write_frames(
        &mut self,
        batch: &Batch,
        growth: Option<Growth<'_>>,
    ) -> Result<(u32, [u32; 2])> {
        self.wal.buffer.clear();
        let committed = self.header.frame_last;
        let mut writer = FrameWriter {
            committed,
            base_size: batch.from.page_size,
            page_size: batch.to.page_size,
            last: committed,
            checksum: self.header.frame_checksum,
            entered: committed,
            pgnos: Vec::new(),
            held: None,
            growth,
            session: self,
        };
        batch.each(&mut writer)?;
        writer.finish(batch.to.page_count)
    }

    /// A page as readers see it now.
    fn read(&mut self, page_size: u32, pgno: u32, frame_last: u32, page: &mut [u8]) -> Result<()> {
        let failed = |code| self.files.shm_error(code);
        let found = self.index.find(pgno, frame_last).map_err(failed)?;
        // Frames that are in the main file may be gone from the WAL: it is started anew before the index says so.
        let copied = self.index.backfilled().map_err(failed)?;
        let Some(frame) = found.filter(|frame| *frame > copied) else {
            return rollback::read_page(self.files, self.db, page_size, pgno, page);
        };
        let offset = frame_offset(frame, page_size) + FRAME_HEADER_BYTES as u64;
        match self.wal.file.read_at(page, offset) {
            Ok(length) if length == page.len() => Ok(()),
            Ok(_) => Err(Error::new(
                ErrorKind::Corrupt,
                format_args!("the WAL ends before frame {frame}"),
            )
            .at(self.files.wal.display())),
            Err(code) => Err(self.files.wal_error("cannot read", code)),
        }
    }
}

impl Pages for Session<'_> {
    fn old(&mut self, pgno: u32, page: &mut [u8]) -> Result<()> {
        let page_size = page.len() as u32;
        self.read(page_size, pgno, self.header.frame_last, page)
    }

    fn put(&mut self, _pgno: u32, _page: &[u8]) -> Result<()> {
        Err(Error::new(
            ErrorKind::Internal,
            "pages are written by commit() only",
        ))
    }
}

/// Many new pages at the end of the database file. Nobody reads behind the page count that is committed, so they can be
/// written there before the commit: half the bytes of the way through the WAL.
struct Growth<'a> {
    /// The first page behind the file's end.
    first: u32,
    writer: rollback::Writer<'a>,
}

impl<'a> Growth<'a> {
    fn of(files: &'a Files, db: &'a File, batch: &Batch) -> Result<Option<Growth<'a>>> {
        let size = db
            .size()
            .map_err(|code| files.db_error("cannot get the size", code))?;
        let page_size = u64::from(batch.to.page_size);
        let pages = u32::try_from(size / page_size).unwrap_or(u32::MAX);
        let new_pages = batch
            .to
            .page_count
            .saturating_sub(pages.max(batch.from.page_count));
        if batch.resizes() || !size.is_multiple_of(page_size) || new_pages < GROWTH_PAGES_MIN {
            return Ok(None);
        }
        Ok(Some(Growth {
            first: pages + 1,
            writer: rollback::Writer::new(files, db, batch),
        }))
    }

    /// The pages must be on the disk before a commit that counts them can get there.
    fn finish(mut self) -> Result<()> {
        self.writer.flush()?;
        self.writer.sync()
    }
}

/// Turns pages into frames. The last page is held back: only when everything is checked does it become the commit.
struct FrameWriter<'s, 'a> {
    session: &'s mut Session<'a>,
    /// The last committed frame; what is read comes from before it.
    committed: u32,
    base_size: u32,
    page_size: u32,
    /// The last frame put together.
    last: u32,
    checksum: [u32; 2],
    /// The last frame that is in the file and in the index.
    entered: u32,
    /// Page numbers of the frames in the buffer.
    pgnos: Vec<u32>,
    held: Option<(u32, Vec<u8>)>,
    growth: Option<Growth<'s>>,
}

impl FrameWriter<'_, '_> {
    /// Whether a page goes to the end of the database file. Not if the WAL has a frame of it: readers would take that.
    fn grows(&mut self, pgno: u32) -> Result<bool> {
        if self
            .growth
            .as_ref()
            .is_none_or(|growth| pgno < growth.first)
        {
            return Ok(false);
        }
        let found = self.session.index.find(pgno, self.committed);
        Ok(found
            .map_err(|code| self.session.files.shm_error(code))?
            .is_none())
    }

    fn frame(&mut self, pgno: u32, commit_pages: u32, page: &[u8]) -> Result<()> {
        let Some(last) = self.last.checked_add(1) else {
            return Err(Error::new(
                ErrorKind::Internal,
                "the WAL has more frames than it can count",
            ));
        };
        let header = &self.session.header;
        let buffer = &mut self.session.wal.buffer;
        self.checksum = encode_frame(
            buffer,
            header.big_endian,
            &header.salt,
            pgno,
            commit_pages,
            page,
            self.checksum,
        );
        self.last = last;
        self.pgnos.push(pgno);
        if self.session.wal.buffer.len() >= BUFFER_BYTES {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<()> {
        let session = &mut *self.session;
        let offset = frame_offset(self.entered + 1, self.page_size);
        let written = session.wal.file.write_at(&session.wal.buffer, offset);
        session.wal.buffer.clear();
        written.map_err(|code| session.files.wal_error("cannot write", code))?;
        for pgno in self.pgnos.drain(..) {
            self.entered += 1;
            let entered = session.index.append(self.entered, pgno, self.committed);
            entered.map_err(|code| session.files.shm_error(code))?;
        }
        Ok(())
    }

    /// Writes the commit frame; gives the last frame and the checksum after it.
    fn finish(mut self, page_count: u32) -> Result<(u32, [u32; 2])> {
        if let Some(growth) = self.growth.take() {
            growth.finish()?;
        }
        let (pgno, page) = match self.held.take() {
            Some(held) => held,
            None => {
                // Only the size changes, but a commit needs a frame.
                let mut page = vec![0u8; self.page_size as usize];
                self.old(1, &mut page)?;
                (1, page)
            }
        };
        self.frame(pgno, page_count, &page)?;
        self.flush()?;
        Ok((self.last, self.checksum))
    }
}

impl Pages for FrameWriter<'_, '_> {
    fn old(&mut self, pgno: u32, page: &mut [u8]) -> Result<()> {
        self.session
            .read(self.base_size, pgno, self.committed, page)
    }

    fn put(&mut self, pgno: u32, page: &[u8]) -> Result<()> {
        if self.grows(pgno)?
            && let Some(growth) = &mut self.growth
        {
            return growth.writer.put(pgno, page);
        }
        let mut spare = match self.held.take() {
            Some((held, bytes)) => {
                self.frame(held, 0, &bytes)?;
                bytes
            }
            None => Vec::with_capacity(page.len()),
        };
        spare.clear();
        spare.extend_from_slice(page);
        self.held = Some((pgno, spare));
        Ok(())
    }
}
