//! Reading SQLite's WAL: the header, the frames, and where the newest committed image of each page is.
//!
//! The format is that of SQLite's file format page, section 4 "The Write-Ahead Log".

use crate::capture::header::be32;
use crate::capture::run::{Run, neighbours};
use crate::capture::shared::ConnectionFiles;
use crate::capture::wal_link::WalLink;
use crate::capture::written_wal::WrittenWal;
use crate::error::{Error, ErrorKind, Result};
use crate::vfs::{Base, WAL_INDEX_BYTES};
use mycelite_journal::{Head, PageSize, WalCursor};
use std::collections::{BTreeMap, HashMap};
use std::iter::once;
use std::path::Path;
use std::time::Duration;

/// Bytes of the WAL header.
pub const WAL_HEADER_BYTES: usize = 32;
/// Bytes of a frame's header; the page follows.
pub const FRAME_HEADER_BYTES: usize = 24;
const MAGIC: u32 = 0x377f_0682;
const VERSION: u32 = 3_007_000;
/// Bytes read ahead at most; a single frame may be larger.
const READ_BYTES_MAX: usize = 256 << 10;
/// How often, and with what pause, a wal-index is read again that someone is changing.
const TRIES_MAX: u32 = 1000;
const RETRY_PAUSE: Duration = Duration::from_micros(100);

/// The header of one WAL generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalHeader {
    /// The words of the checksum are big-endian.
    big_endian: bool,
    /// Bytes of a page.
    pub page_size: PageSize,
    /// Repeated in each frame of this generation.
    pub salt: [u32; 2],
    /// Seeds the checksum of the first frame.
    pub checksum: [u32; 2],
}

impl WalHeader {
    /// Parses the first bytes of a WAL; `None` where SQLite would see an empty WAL.
    pub fn parse(bytes: &[u8]) -> Option<WalHeader> {
        let magic = be32(bytes, 0)?;
        if magic & !1 != MAGIC || be32(bytes, 4)? != VERSION {
            return None;
        }
        let big_endian = magic & 1 == 1;
        let checksum = wal_checksum(big_endian, bytes.get(..24)?, [0, 0]);
        if checksum != [be32(bytes, 24)?, be32(bytes, 28)?] {
            return None;
        }
        Some(WalHeader {
            big_endian,
            page_size: PageSize::new(be32(bytes, 8)?)?,
            salt: [be32(bytes, 16)?, be32(bytes, 20)?],
            checksum,
        })
    }

    /// Reads the header of `wal`; `None` where SQLite would see an empty WAL.
    ///
    /// # Errors
    /// A failed read.
    pub fn read(wal: &dyn Base) -> Result<Option<WalHeader>> {
        let mut bytes = [0; WAL_HEADER_BYTES];
        if wal.read_at(&mut bytes, 0)? < WAL_HEADER_BYTES {
            return Ok(None);
        }
        Ok(WalHeader::parse(&bytes))
    }

    /// The cursor before the first frame.
    pub fn start(&self) -> WalCursor {
        WalCursor {
            salt: self.salt,
            frame: 0,
            checksum: self.checksum,
        }
    }

    /// Bytes of a frame.
    pub fn frame_bytes(&self) -> u64 {
        FRAME_HEADER_BYTES as u64 + u64::from(self.page_size.get())
    }

    /// Where a frame begins in the WAL.
    pub fn offset(&self, frame: u32) -> u64 {
        WAL_HEADER_BYTES as u64 + u64::from(frame - 1) * self.frame_bytes()
    }

    /// Reads the page in `frame`.
    ///
    /// # Errors
    /// A failed or short read.
    pub fn read_page(&self, wal: &dyn Base, frame: u32, page: &mut [u8]) -> Result<()> {
        wal.read_exact_at(page, self.offset(frame) + FRAME_HEADER_BYTES as u64)
    }

    /// The page in `frame`, by way of `run`, whose slots are frames, with those of its neighbours that are among `wanted`: the
    /// frames wanted one after the other, from `frame` on.
    ///
    /// # Errors
    /// A failed or short read.
    pub fn read_page_of_run<'p>(
        &self,
        wal: &dyn Base,
        frame: u32,
        wanted: impl Iterator<Item = u32>,
        run: &'p mut Run,
    ) -> Result<&'p [u8]> {
        let wanted = |most| neighbours(wanted, most);
        let read = |frames: &mut [u8]| wal.read_exact_at(frames, self.offset(frame));
        let bytes = run.get(u64::from(frame), wanted, read)?;
        Ok(&bytes[FRAME_HEADER_BYTES..])
    }
}

/// SQLite's WAL checksum over `bytes`, a multiple of eight, continued from `seed`.
pub fn wal_checksum(big_endian: bool, bytes: &[u8], seed: [u32; 2]) -> [u32; 2] {
    let [mut a, mut b] = seed;
    for pair in bytes.chunks_exact(8) {
        let mut words = [[0; 4]; 2];
        words[0].copy_from_slice(&pair[..4]);
        words[1].copy_from_slice(&pair[4..]);
        let [x, y] = if big_endian {
            words.map(u32::from_be_bytes)
        } else {
            words.map(u32::from_le_bytes)
        };
        a = a.wrapping_add(x).wrapping_add(b);
        b = b.wrapping_add(y).wrapping_add(a);
    }
    [a, b]
}

/// The pages of one committed WAL transaction: the last frame of each page.
pub struct WalTransaction {
    /// Where the log stands when this transaction is in it.
    pub cursor: WalCursor,
    /// Pages of the database after the transaction.
    pub page_count: u32,
    /// Page number to frame.
    pub pages: BTreeMap<u32, u32>,
}

/// Reads valid frames in order, from a cursor on.
pub struct Frames<'a> {
    wal: &'a dyn Base,
    header: WalHeader,
    at: WalCursor,
    /// Frames beyond this one do not count, however valid they look.
    last: u32,
    /// As [`Base::wal_padding`] of the database file says.
    padding: Option<u64>,
    /// Where some of them may still be in memory.
    written: Option<&'a WrittenWal>,
    /// What is in memory is known to be what is committed.
    is_own: bool,
    /// What is in the buffer is from there.
    is_kept: bool,
    buffer: Vec<u8>,
    /// First frame in `buffer`, and how many whole frames it holds.
    first: u32,
    held: u32,
    read_frames: u32,
}

impl<'a> Frames<'a> {
    /// Frames after `cursor`, which belongs to the generation of `header`, as far as `last`.
    pub fn after(wal: &'a dyn Base, header: WalHeader, cursor: WalCursor, last: u32) -> Frames<'a> {
        Frames {
            wal,
            header,
            at: cursor,
            last,
            padding: None,
            written: None,
            is_own: false,
            is_kept: false,
            buffer: Vec::new(),
            first: 0,
            held: 0,
            // Most commits are a few frames long; long ones double this up to the bound.
            read_frames: 4,
        }
    }

    /// Takes copies of a commit's last frame, up to a multiple of `padding` bytes, as a part of the commit.
    #[must_use]
    pub fn padded(self, padding: Option<u64>) -> Frames<'a> {
        Frames { padding, ..self }
    }

    /// Takes frames of this generation from `written` where it has them.
    #[must_use]
    pub fn kept_in(self, written: &'a WrittenWal) -> Frames<'a> {
        Frames {
            written: Some(written),
            ..self
        }
    }

    /// Those in memory are a commit for which [`WalView::own_commit`] vouches: they are not checked again.
    #[must_use]
    pub fn own(self) -> Frames<'a> {
        Frames {
            is_own: true,
            ..self
        }
    }

    /// The WAL, its header, and where the next frame follows.
    pub fn begin(&self) -> (&'a dyn Base, WalHeader, WalCursor) {
        (self.wal, self.header, self.at)
    }

    /// The next transaction that is wholly in the WAL and committed; `None` at the end.
    ///
    /// # Errors
    /// A failed read.
    pub fn next_transaction(&mut self) -> Result<Option<WalTransaction>> {
        let mut pages = BTreeMap::new();
        loop {
            let next = self.at.frame + 1;
            if next > self.last {
                return Ok(None);
            }
            self.frame(next)?;
            let Some((pgno, commit, checksum)) = self.valid(next) else {
                return Ok(None);
            };
            pages.insert(pgno, next);
            self.at = WalCursor {
                salt: self.header.salt,
                frame: next,
                checksum,
            };
            if commit != 0 {
                self.skip_padding(pgno, commit)?;
                return Ok(Some(WalTransaction {
                    cursor: self.at,
                    page_count: commit,
                    pages,
                }));
            }
        }
    }

    /// Goes on to the last copy of the commit frame of `pgno`, at which the log stands.
    fn skip_padding(&mut self, pgno: u32, commit: u32) -> Result<()> {
        let Some(sector) = self.padding else {
            return Ok(());
        };
        let header = self.header;
        let filled = header
            .offset(self.at.frame + 1)
            .next_multiple_of(sector.max(1));
        let mut run = Run::new(header.frame_bytes() as usize);
        let page = self.page_of_run(self.at.frame, once(self.at.frame), &mut run)?;
        let page = page.to_vec();
        while header.offset(self.at.frame + 1) < filled && self.at.frame < self.last {
            let (next, seed) = (self.at.frame + 1, self.at.checksum);
            let Some(bytes) = self.frame(next)? else {
                break;
            };
            let is_copy = bytes.get(FRAME_HEADER_BYTES..) == Some(&page);
            match check_frame(&header, bytes, seed) {
                Some((same, size, checksum)) if is_copy && (same, size) == (pgno, commit) => {
                    self.at.frame = next;
                    self.at.checksum = checksum;
                }
                _ => break,
            }
        }
        Ok(())
    }

    /// Whether every frame that counts was read: the last one that counts ends a transaction.
    pub fn is_at_end(&self) -> bool {
        self.last == u32::MAX || self.at.frame >= self.last
    }

    /// The page in `frame`: in the read-ahead where it is still there, else by way of `run`, as
    /// [`WalHeader::read_page_of_run`] does.
    ///
    /// # Errors
    /// A failed or short read.
    pub fn page_of_run<'p>(
        &'p self,
        frame: u32,
        wanted: impl Iterator<Item = u32>,
        run: &'p mut Run,
    ) -> Result<&'p [u8]> {
        if let Some(bytes) = self.buffered(frame) {
            return Ok(&bytes[FRAME_HEADER_BYTES..]);
        }
        self.header.read_page_of_run(self.wal, frame, wanted, run)
    }

    /// Page number, page count at a commit (else 0) and running checksum of the next frame, if it is in the buffer, and valid.
    fn valid(&self, next: u32) -> Option<(u32, u32, [u32; 2])> {
        let bytes = self.buffered(next)?;
        if self.is_own && self.is_kept {
            return frame_of(&self.header, bytes);
        }
        check_frame(&self.header, bytes, self.at.checksum)
    }

    fn buffered(&self, frame: u32) -> Option<&[u8]> {
        let index = frame.checked_sub(self.first)?;
        let size = self.header.frame_bytes() as usize;
        let start = index as usize * size;
        (index < self.held).then(|| self.buffer.get(start..start + size))?
    }

    fn frame(&mut self, frame: u32) -> Result<Option<&[u8]>> {
        if self.buffered(frame).is_none() && !self.take_kept(frame) {
            let size = self.header.frame_bytes() as usize;
            let left = (self.last - frame).saturating_add(1);
            self.buffer
                .resize(self.read_frames.min(left) as usize * size, 0);
            let got = self
                .wal
                .read_at(&mut self.buffer, self.header.offset(frame))?;
            self.first = frame;
            self.is_kept = false;
            self.held = u32::try_from(got / size).unwrap_or(0);
            let most = u32::try_from(READ_BYTES_MAX / size).unwrap_or(1).max(1);
            self.read_frames = (self.read_frames * 2).min(most);
        }
        Ok(self.buffered(frame))
    }

    /// Whether `frame` was still in memory, and is buffered now. What was written in another generation does not count.
    fn take_kept(&mut self, frame: u32) -> bool {
        let Some(written) = self.written else {
            return false;
        };
        let size = self.header.frame_bytes() as usize;
        let left = (self.last - frame).saturating_add(1);
        self.buffer.clear();
        written.read(self.header.offset(frame), size, left, &mut self.buffer);
        self.first = frame;
        self.held = u32::try_from(self.buffer.len() / size).unwrap_or(0);
        let salt = [be32(&self.buffer, 8), be32(&self.buffer, 12)];
        if salt != self.header.salt.map(Some) {
            self.held = 0;
        }
        self.is_kept = true;
        self.held > 0
    }
}

/// Page number, page count at a commit (else 0) and running checksum of a frame, as it says.
fn frame_of(header: &WalHeader, bytes: &[u8]) -> Option<(u32, u32, [u32; 2])> {
    if [be32(bytes, 8)?, be32(bytes, 12)?] != header.salt {
        return None;
    }
    let pgno = be32(bytes, 0).filter(|&pgno| pgno != 0)?;
    let sum = [be32(bytes, 16)?, be32(bytes, 20)?];
    Some((pgno, be32(bytes, 4)?, sum))
}

/// As [`frame_of`], of a valid frame.
fn check_frame(header: &WalHeader, bytes: &[u8], seed: [u32; 2]) -> Option<(u32, u32, [u32; 2])> {
    let frame = frame_of(header, bytes)?;
    let sum = wal_checksum(header.big_endian, bytes.get(..8)?, seed);
    let sum = wal_checksum(header.big_endian, bytes.get(FRAME_HEADER_BYTES..)?, sum);
    (sum == frame.2).then_some(frame)
}

/// What the wal-index says of the WAL: SQLite's truth about what is committed, while anybody has the database open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalIndex {
    /// The generation of which it speaks.
    pub salt: [u32; 2],
    /// The last committed frame.
    pub last_frame: u32,
    /// The running checksum there.
    pub checksum: [u32; 2],
    /// Frames that checkpoints have copied into the database.
    pub backfilled: u32,
    /// Frames that a checkpoint may have begun to copy.
    pub attempted: u32,
}

impl WalIndex {
    /// Parses the beginning of the wal-index; `None` when it is being changed, or waits for recovery.
    pub fn parse(bytes: &[u8; WAL_INDEX_BYTES]) -> Option<WalIndex> {
        let (first, second) = (bytes.get(..48)?, bytes.get(48..96)?);
        if first != second || first[12] == 0 {
            return None;
        }
        let native_is_big = cfg!(target_endian = "big");
        let checksum = wal_checksum(native_is_big, &first[..40], [0, 0]);
        if checksum != [native(first, 40)?, native(first, 44)?] {
            return None;
        }
        Some(WalIndex {
            salt: [be32(first, 32)?, be32(first, 36)?],
            last_frame: native(first, 16)?,
            checksum: [native(first, 24)?, native(first, 28)?],
            backfilled: native(bytes, 96)?,
            attempted: native(bytes, 128)?,
        })
    }
}

#[expect(
    clippy::host_endian_bytes,
    reason = "shared memory is in the order of the machine"
)]
fn native(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// How much of a WAL counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The last committed frame.
    pub last: u32,
    /// Frames that may already be in the database file.
    pub attempted: u32,
}

impl Extent {
    /// Every frame up to `last` that is valid counts, and none is known to be in the database.
    const fn upto(last: u32) -> Extent {
        Extent { last, attempted: 0 }
    }
    /// The file holds an earlier generation than the index speaks of: all of it is in the database.
    const NONE: Extent = Extent {
        last: 0,
        attempted: 0,
    };
}

/// What is committed in the generation of `header`.
///
/// A valid commit frame is not enough: its writer may have died before it told the wal-index, and then the next writer
/// overwrites it. Only where the index waits for recovery, which takes every valid frame, do all of them count; the
/// caller says by `locked` that it has the WAL write lock and so can tell that from a change that is under way. Without an
/// index, what this process saw counts.
///
/// # Errors
/// The index kept changing, or waits for recovery and the caller has no lock, or it counts commits that are not in the WAL.
pub fn committed(files: &ConnectionFiles, header: &WalHeader, locked: bool) -> Result<Extent> {
    for _ in 0..TRIES_MAX {
        let Some(bytes) = files.db.wal_index() else {
            if files.is_twin {
                return Err(Error::new(ErrorKind::Busy, "the wal-index is gone"));
            }
            return Ok(Extent::upto(files.commits.last()));
        };
        match WalIndex::parse(&bytes) {
            Some(index) if index.salt == header.salt => {
                return Ok(Extent {
                    last: index.last_frame,
                    attempted: index.attempted,
                });
            }
            Some(index) if index.last_frame > 0 && !is_restarted(files, header)? => {
                return Err(
                    Error::new(ErrorKind::Corrupt, "the wal-index speaks of another WAL")
                        .hint("the log is repaired when they fit again"),
                );
            }
            Some(_) => return Ok(Extent::NONE),
            None if locked => return Ok(Extent::upto(u32::MAX)),
            None => std::thread::sleep(RETRY_PAUSE),
        }
    }
    Err(Error::new(
        ErrorKind::Busy,
        "the wal-index is being changed",
    ))
}

/// Whether the WAL begins with another header than `header` by now. A new generation has its header before the index counts a
/// commit of it.
fn is_restarted(files: &ConnectionFiles, header: &WalHeader) -> Result<bool> {
    match files.wal.as_deref() {
        Some(wal) => Ok(WalHeader::read(wal)?.as_ref() != Some(header)),
        None => Ok(true),
    }
}

/// Where the newest captured image of each page is in the current WAL generation.
#[derive(Default)]
pub struct WalView {
    salt: [u32; 2],
    upto: u32,
    frames: HashMap<u32, u32>,
    /// The link in the log directory, once it was looked for.
    link: Option<Option<WalLink>>,
    /// The last commit that this process has recorded from frames that it checked, while nobody else has held the log since.
    followed: Option<(WalHeader, WalCursor)>,
}

impl WalView {
    /// The link in the log directory `dir`, which is read at most once until it is forgotten.
    pub fn link(&mut self, dir: &Path) -> Option<WalLink> {
        *self.link.get_or_insert_with(|| WalLink::read(dir))
    }

    /// Leaves a link in the log directory `dir`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_link(&mut self, dir: &Path, link: WalLink) -> Result<()> {
        self.forget_link();
        link.write(dir)?;
        self.link = Some(Some(link));
        Ok(())
    }

    /// Another process may have left another link.
    pub fn forget_link(&mut self) {
        self.link = None;
        self.followed = None;
    }

    /// Makes the view stand at `cursor`: frames that other processes captured are looked up in the WAL.
    ///
    /// # Errors
    /// A failed read.
    pub fn advance_to(
        &mut self,
        wal: &dyn Base,
        header: &WalHeader,
        cursor: &WalCursor,
    ) -> Result<()> {
        if self.salt != header.salt || self.upto > cursor.frame {
            self.salt = header.salt;
            self.upto = 0;
            self.frames.clear();
        }
        while self.upto < cursor.frame {
            let mut pgno = [0; 4];
            wal.read_exact_at(&mut pgno, header.offset(self.upto + 1))?;
            self.upto += 1;
            self.frames.insert(u32::from_be_bytes(pgno), self.upto);
        }
        Ok(())
    }

    /// Adds a transaction of the generation of `header` that is in the log now.
    pub fn add(&mut self, header: &WalHeader, transaction: &WalTransaction) {
        self.frames.extend(&transaction.pages);
        self.upto = transaction.cursor.frame;
        self.followed = Some((*header, transaction.cursor));
    }

    /// The WAL's header, where a commit that the connection of `files` has just made is all that the log, which stands at
    /// `head`, lacks, and the whole of it is still in memory: then the WAL itself need not be looked at.
    ///
    /// What was written is what the wal-index counts if it ends with the same running checksum, and it follows the log if
    /// the log's cursor is the last that was checked here.
    pub fn own_commit(&self, files: &ConnectionFiles, head: &Head) -> Option<(WalHeader, u32)> {
        let (header, _) = self.followed.filter(|(_, cursor)| *cursor == head.wal)?;
        let index = WalIndex::parse(&files.db.wal_index()?)?;
        let frames = index.last_frame.checked_sub(head.wal.frame)?;
        let first = header.offset(head.wal.frame + 1);
        let size = usize::try_from(header.frame_bytes()).ok()?;
        let last = files.written.frame_header(first, size, frames)?;
        let is_same = [be32(&last, 8)?, be32(&last, 12)?] == header.salt
            && index.salt == header.salt
            && [be32(&last, 16)?, be32(&last, 20)?] == index.checksum;
        is_same.then_some((header, index.last_frame))
    }

    /// The last frame that the view knows of.
    pub fn upto(&self) -> u32 {
        self.upto
    }

    /// Each page with the frame that holds its newest captured image, if the view is of the generation of `header`.
    pub fn frames_of(&self, header: &WalHeader) -> impl Iterator<Item = (u32, u32)> + '_ {
        let is_same = self.salt == header.salt;
        let frames = self.frames.iter().filter(move |_| is_same);
        frames.map(|(&pgno, &frame)| (pgno, frame))
    }

    /// The frame that holds the newest captured image of `pgno`; `None`: it is in the database file.
    pub fn frame_of(&self, pgno: u32) -> Option<u32> {
        self.frames.get(&pgno).copied()
    }
}
