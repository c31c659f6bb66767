//! A past state as a file: pages in order, in large writes, by several threads; the checksum is taken of what is written.

use super::journal_error;
use crate::capture::positioned::write_all_at;
use crate::error::{Error, ErrorKind, Result};
use mycelite_journal::{Archive, AsOf, Checksum, Head, Pgno, Txid, page_checksum};
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bytes that a thread reads and writes at a time.
const CHUNK_BYTES: usize = 1024 * 1024;
/// Threads at most for whoever waits for the copy.
pub const THREADS_MAX: usize = 4;

/// Looks at a copy under way, and ends it.
#[derive(Debug, Default)]
pub struct Watch {
    /// Bytes written so far.
    pub done: AtomicU64,
    /// Set by whoever does not want it any more.
    pub stop: AtomicBool,
}

/// Writes the state after transaction `txid` to the empty file `out`, which is called `path` in errors. When it returns well,
/// what was written has the checksum that the transaction recorded; it is not synced. At most `threads_max` threads work on it,
/// and one where writing at an offset moves the file's own position.
///
/// # Errors
/// The history does not have the state, or is damaged; `out` cannot be written; [`ErrorKind::Busy`] when it was stopped.
pub fn write(
    archive: &Archive,
    txid: Txid,
    out: &File,
    path: &Path,
    watch: &Watch,
    threads_max: usize,
) -> Result<Head> {
    let state = archive.as_of(txid).map_err(journal_error)?;
    let head = *state.head();
    let copy = Copy {
        head,
        pages_per_chunk: (CHUNK_BYTES / state.page_size().bytes()).max(1) as u64,
        next: AtomicU64::new(0),
        out,
        path,
        watch,
    };
    let length = u64::from(head.page_count) * state.page_size().bytes() as u64;
    out.set_len(length)
        .map_err(|source| no_room(path, &source))?;
    let chunks = u64::from(head.page_count).div_ceil(copy.pages_per_chunk);
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(if cfg!(unix) { threads_max } else { 1 })
        .min(usize::try_from(chunks).unwrap_or(threads_max))
        .max(1);
    let sum = std::thread::scope(|scope| {
        let workers: Vec<_> = (1..threads)
            .map(|_| scope.spawn(|| copy.work(archive.as_of(txid).map_err(journal_error)?)))
            .collect();
        let mut all = vec![copy.work(state)];
        all.extend(workers.into_iter().map(|worker| {
            worker.join().unwrap_or_else(|_| {
                Err(Error::new(
                    ErrorKind::Internal,
                    "a thread that copied pages has panicked",
                ))
            })
        }));
        first_failure(all)
    })?;
    if sum == head.pos.checksum {
        return Ok(head);
    }
    Err(Error::new(
        ErrorKind::Corrupt,
        format_args!(
            "the pages of transaction {txid} have the checksum {sum}, and {} was recorded",
            head.pos.checksum
        ),
    )
    .hint("look at the source with mycelite verify"))
}

fn no_room(path: &Path, source: &std::io::Error) -> Error {
    Error::io("building the state in", path, source).hint("is there room on the disk?")
}

/// All parts' checksum; or the error that stopped the other threads, not what they said when they were stopped.
fn first_failure(parts: Vec<Result<Checksum>>) -> Result<Checksum> {
    let mut sum = Checksum(0);
    let mut stopped = None;
    for part in parts {
        match part {
            Ok(part) => sum ^= part,
            Err(error) if error.kind() == ErrorKind::Busy => stopped = Some(error),
            Err(error) => return Err(error),
        }
    }
    stopped.map_or(Ok(sum), Err)
}

struct Copy<'a> {
    head: Head,
    pages_per_chunk: u64,
    /// The next chunk that nobody has taken.
    next: AtomicU64,
    out: &'a File,
    path: &'a Path,
    watch: &'a Watch,
}

impl Copy<'_> {
    /// Copies chunks until there are no more; the checksum of their pages.
    fn work(&self, state: AsOf) -> Result<Checksum> {
        let done = self.chunks(state);
        if done.is_err() {
            self.watch.stop.store(true, Ordering::Relaxed);
        }
        done
    }

    fn chunks(&self, mut state: AsOf) -> Result<Checksum> {
        if state.pos() != self.head.pos {
            return Err(
                Error::new(ErrorKind::Busy, "the history was cut meanwhile").hint("try again")
            );
        }
        let page_bytes = state.page_size().bytes();
        let (lock_page, count) = (
            state.page_size().lock_page(),
            u64::from(self.head.page_count),
        );
        let mut buffer = vec![0; page_bytes * self.pages_per_chunk as usize];
        let mut sum = Checksum(0);
        loop {
            let first = self.next.fetch_add(1, Ordering::Relaxed) * self.pages_per_chunk;
            if first >= count {
                return Ok(sum);
            }
            if self.watch.stop.load(Ordering::Relaxed) {
                return Err(Error::new(ErrorKind::Busy, "stopped").at(self.path.display()));
            }
            let pages = self.pages_per_chunk.min(count - first);
            let chunk = buffer
                .get_mut(..pages as usize * page_bytes)
                .unwrap_or_default();
            for (pgno, page) in (first + 1..).zip(chunk.chunks_exact_mut(page_bytes)) {
                let pgno = Pgno::try_from(pgno).unwrap_or(Pgno::MAX);
                state.read_page(pgno, page).map_err(journal_error)?;
                if pgno != lock_page {
                    sum ^= page_checksum(pgno, page);
                }
            }
            write_all_at(self.out, chunk, first * page_bytes as u64)
                .map_err(|source| no_room(self.path, &source))?;
            self.watch
                .done
                .fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
    }
}
