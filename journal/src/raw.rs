//! Appending records as they come from another log.

use std::io::{self, Read};

use crate::body::{BodyError, BodyReader, check_body};
use crate::cursor::check_next;
use crate::error::{Error, FormatError, Result};
use crate::pos::Txid;
use crate::record::{HEADER_LEN, RecordHeader, TRAILER_LEN, Trailer};
use crate::writer::{Log, State};

/// Records up to this length are checked in memory before a byte of them is written.
const IN_MEMORY_BYTES_MAX: u64 = 1024 * 1024;

/// What [`Log::append_raw`] accepts from a stranger.
#[derive(Clone, Copy, Debug)]
pub struct RawLimits {
    /// The longest record, in bytes.
    pub record_bytes_max: u64,
    /// The largest database, in bytes.
    pub database_bytes_max: u64,
}

impl Default for RawLimits {
    /// 64 GiB for a record, and the largest database that SQLite can have.
    fn default() -> RawLimits {
        RawLimits {
            record_bytes_max: 64 << 30,
            database_bytes_max: u64::MAX,
        }
    }
}

impl RawLimits {
    fn check(&self, header: &RecordHeader) -> Result<()> {
        let over = |what, found, limit| {
            if found > limit {
                Err(Error::Limit { what, found, limit })
            } else {
                Ok(())
            }
        };
        over(
            "the record's length in bytes",
            header.record_len(),
            self.record_bytes_max,
        )?;
        over(
            "the database's length in bytes",
            u64::from(header.page_count) * u64::from(header.page_size.get()),
            self.database_bytes_max,
        )
    }
}

impl Log {
    /// Appends the next record of a stream of records as another log has them ([`RecordEntry::raw`]), and publishes it.
    ///
    /// Everything is checked: that it follows the last record, its checksums, its patches, the limits. `Ok(None)`: the stream ended
    /// before a record. After an error the log is as it was. Needs the writers' lock, and a [`Log::refresh`] under it.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if it does not follow; [`Error::Malformed`]; [`Error::Limit`]; [`Error::Io`] for the stream (its path is
    /// `stream`) and for the log.
    ///
    /// [`RecordEntry::raw`]: crate::RecordEntry::raw
    ///
    /// ```
    /// use std::sync::Arc;
    /// use mycelite_journal::*;
    /// # let (a, b) = (tempfile::tempdir()?, tempfile::tempdir()?);
    /// let primary = Arc::new(FileStorage::new(a.path()));
    /// let mut log = Log::create(primary.clone(), DatabaseId([7; 16]), 0)?;
    /// let mut record = log.begin(Draft::new(PageSize::MIN, 1, 1))?;
    /// record.patch(1, None, &[42; 512])?;
    /// record.commit()?;
    ///
    /// let mut replica = Log::create(Arc::new(FileStorage::new(b.path())), DatabaseId([7; 16]), 0)?;
    /// let mut reader = Reader::open(primary)?;
    /// while let Some(entry) = reader.next()? {
    ///     replica.append_raw(&mut entry.raw(), &RawLimits::default())?;
    /// }
    /// assert_eq!(replica.head(), log.head());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn append_raw(
        &mut self,
        stream: &mut dyn Read,
        limits: &RawLimits,
    ) -> Result<Option<RecordHeader>> {
        self.idle()?;
        self.take_raw(stream, limits, false)
    }

    /// As [`Log::append_raw`], but a short record may stay in memory, and the next ones with it, until [`Log::write_held`] or
    /// [`Log::sync`] puts all of them into the file in one write. Until then nobody else sees them.
    ///
    /// # Errors
    /// As [`Log::append_raw`]; those that wait go on waiting after an error of the stream.
    pub fn hold_raw(
        &mut self,
        stream: &mut dyn Read,
        limits: &RawLimits,
    ) -> Result<Option<RecordHeader>> {
        if self.held.is_empty() || self.state != State::Idle {
            self.idle()?;
        }
        self.take_raw(stream, limits, true)
    }

    fn take_raw(
        &mut self,
        stream: &mut dyn Read,
        limits: &RawLimits,
        hold: bool,
    ) -> Result<Option<RecordHeader>> {
        let mut bytes = [0; HEADER_LEN];
        let expected = self.head().pos.txid.next();
        match read_full(stream, &mut bytes).map_err(stream_error)? {
            0 => return Ok(None),
            HEADER_LEN => {}
            _ => return Err(malformed(expected, FormatError::Short)),
        }
        let header = RecordHeader::decode(&bytes).map_err(|error| malformed(expected, error))?;
        check_next(self.head(), self.knows_head(), &header)?;
        limits.check(&header)?;
        // What the other log has after our last record is what comes now, whatever a dead writer prepared here.
        self.void_tail = true;
        self.make_room()?;
        self.build.start(header, 0);
        self.state = State::Building;
        match self.receive(stream, &header, hold) {
            Ok(()) => {
                self.published(&header);
                Ok(Some(header))
            }
            Err(error) => {
                // The first error is the one that matters; what cannot be cut now is cut before the next record.
                let _ = self.abandon();
                Err(error)
            }
        }
    }

    fn receive(&mut self, stream: &mut dyn Read, header: &RecordHeader, hold: bool) -> Result<()> {
        let bad = |what| malformed(header.txid, what);
        if header.record_len() <= IN_MEMORY_BYTES_MAX {
            let body = self.build.body_mut(header.body_len as usize);
            let length = read_full(stream, body).map_err(stream_error)?;
            check_body(body.get(..length).unwrap_or_default(), header).map_err(bad)?;
        } else {
            let tee = Tee {
                source: stream,
                log: self,
                failed: None,
            };
            let mut body = BodyReader::new(tee, header);
            let outcome = loop {
                match body.next() {
                    Ok(Some(_)) => {}
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            let tee = body.into_source();
            if let Some(error) = tee.failed {
                return Err(error);
            }
            outcome.map_err(|error| match error {
                BodyError::Source(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    bad(FormatError::Short)
                }
                BodyError::Source(error) => stream_error(error),
                BodyError::Format(error) => bad(error),
            })?;
        }
        let mut bytes = [0; TRAILER_LEN];
        if read_full(stream, &mut bytes).map_err(stream_error)? != TRAILER_LEN {
            return Err(bad(FormatError::Short));
        }
        if !Trailer::decode(&bytes).map_err(bad)?.fits(header) {
            return Err(bad(FormatError::Hash("record trailer")));
        }
        match hold {
            true => self.hold_record(&bytes),
            false => self.write_record(&bytes),
        }
    }
}

/// Hands the bytes that are read from the stream on to the log.
struct Tee<'a> {
    source: &'a mut dyn Read,
    log: &'a mut Log,
    /// The log's error, which [`io::Error`] could not carry whole.
    failed: Option<Error>,
}

impl Read for Tee<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buf)?;
        let bytes = buf.get(..count).unwrap_or_default();
        self.log.write_body(bytes).map_err(|error| {
            self.failed = Some(error);
            io::Error::other("the log failed")
        })?;
        Ok(count)
    }
}

/// Reads until `buf` is full or the stream ends; returns the bytes read.
fn read_full(stream: &mut dyn Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match stream.read(rest) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn stream_error(source: io::Error) -> Error {
    Error::io("reading a stream of records", "stream".into(), source)
}

fn malformed(txid: Txid, what: FormatError) -> Error {
    Error::Malformed {
        txid: Some(txid),
        what,
    }
}
