//! Every past state of the database: its pages as of any transaction.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cursor::{Cursor, Head, Step};
use crate::cut::CUT_NAME;
use crate::error::{Error, Result};
use crate::meta::Meta;
use crate::pos::{DatabaseId, Txid};
use crate::reader::Reader;
use crate::record::RecordHeader;
use crate::sealed::cache::BlockCache;
use crate::sealed::file::BlockFile;
use crate::sealed::format::{
    Kind, merged_name, parse_merged_name, parse_sealed_name, parse_snapshot_name, sealed_name,
    snapshot_name,
};
use crate::sealed::limit;
use crate::segment::{Opened, Segment, list, parse_segment_name, segment_name};
use crate::storage::{OpenMode, Storage};
use crate::tail_index::TailIndex;

/// Memory for decompressed blocks, in bytes.
const CACHE_BYTES: usize = limit(16 * 1024 * 1024, 9000);
/// Memory for the indexes of raw segments, in bytes; two are kept whatever they take.
const TAILS_BYTES: usize = limit(32 * 1024 * 1024, 2000);
/// Files that are kept open.
const FILES_MAX: usize = limit(32, 2);
/// How often a file may be gone that was just listed.
const TRIES: u32 = 4;

/// A log as a store of past states: raw and sealed segments and snapshots, in any mixture, found and opened as they are needed.
///
/// [`Archive::as_of`] gives the pages as of one transaction. An `Archive` is shared by any number of these, in any thread, and
/// so are its caches; it takes up to about 64 MiB of memory. It changes no file and needs no lock.
///
/// ```
/// # use std::sync::Arc;
/// # use mycelite_journal::*;
/// # let dir = tempfile::tempdir()?;
/// # let storage: Arc<dyn Storage> = Arc::new(FileStorage::new(dir.path()));
/// # let mut log = Log::create(storage.clone(), DatabaseId([7; 16]), 0)?;
/// # for byte in 1..=9u8 {
/// #     let old = [byte - 1; 512];
/// #     let mut record = log.begin(Draft::new(PageSize::MIN, 1, u64::from(byte) * 1000))?;
/// #     record.patch(1, Some(&old), &[byte; 512])?;
/// #     record.commit()?;
/// # }
/// let archive = Archive::open(storage)?;
/// // The newest state that is at least 2.5 ms old when the clock says 9 ms.
/// let txid = archive.find_time(9_000 - 2_500)?.ok_or("older than the history")?;
/// assert_eq!(txid, Txid(6));
///
/// let mut past = archive.as_of(txid)?;
/// let mut page = vec![0; past.page_size().bytes()];
/// past.read_page(1, &mut page)?;
/// assert_eq!(page, [6; 512]);
/// assert_eq!((past.page_count(), past.pos().txid), (1, txid));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Archive {
    shared: Arc<Shared>,
}

struct Shared {
    storage: Arc<dyn Storage>,
    id: DatabaseId,
    cache: Arc<BlockCache>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Ascending, side by side. A segment that is there in several forms is one layer: the widest, else the sealed one.
    layers: Vec<Layer>,
    /// Files that are sealed or merged, and the layer that took their place.
    superseded: Vec<(String, Layer)>,
    /// Ascending.
    snapshots: Vec<Txid>,
    files: HashMap<String, (Arc<BlockFile>, u64)>,
    tails: HashMap<Txid, (Arc<Mutex<TailIndex>>, u64)>,
    clock: u64,
}

/// A segment in the list of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) first: Txid,
    /// Its last transaction, which the name of a raw one does not tell.
    pub(crate) last: Option<Txid>,
    /// It has the states after some of its transactions only.
    pub(crate) merged: bool,
}

impl Layer {
    /// The layer with this file name; `None` if it is not that of a segment.
    fn parse(name: &str) -> Option<Layer> {
        let range = |(first, last), merged| Layer {
            first,
            last: Some(last),
            merged,
        };
        if let Some(found) = parse_sealed_name(name) {
            return Some(range(found, false));
        }
        if let Some(found) = parse_merged_name(name) {
            return Some(range(found, true));
        }
        parse_segment_name(name).map(|first| Layer {
            first,
            last: None,
            merged: false,
        })
    }

    pub(crate) fn name(&self) -> String {
        match self.last {
            Some(last) if self.merged => merged_name(self.first, last),
            Some(last) => sealed_name(self.first, last),
            None => segment_name(self.first),
        }
    }

    /// What a layer is that is not raw.
    pub(crate) fn kind(&self) -> Kind {
        if self.merged {
            Kind::Merged
        } else {
            Kind::Sealed
        }
    }
}

/// Puts layers into order; what lies within a wider one is not needed, and returned apart.
fn arrange(mut found: Vec<Layer>) -> (Vec<Layer>, Vec<(String, Layer)>) {
    // Of those with one beginning, the widest comes first, a merged one before a sealed one, the raw one last.
    found.sort_unstable_by_key(|layer| {
        (
            layer.first,
            layer.last.is_none(),
            std::cmp::Reverse(layer.last),
            !layer.merged,
        )
    });
    let mut layers: Vec<Layer> = Vec::new();
    let mut superseded = Vec::new();
    for layer in found {
        match layers.last() {
            Some(wide) if layer.first == wide.first || Some(layer.first) <= wide.last => {
                if layer.last.is_some() {
                    superseded.push((layer.name(), *wide));
                }
            }
            _ => layers.push(layer),
        }
    }
    (layers, superseded)
}

/// A layer that is open.
pub(crate) enum Source {
    Sealed(Arc<BlockFile>),
    Raw(Arc<Mutex<TailIndex>>),
}

impl Archive {
    /// Opens a log.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no log; [`Error::Corrupt`] or [`Error::Version`] for its `meta`; [`Error::Io`].
    pub fn open(storage: Arc<dyn Storage>) -> Result<Archive> {
        let meta = Meta::read(&*storage)?;
        let shared = Shared {
            storage,
            id: meta.id,
            cache: BlockCache::new(CACHE_BYTES),
            state: Mutex::default(),
        };
        Ok(Archive {
            shared: Arc::new(shared),
        })
    }

    /// The database whose history this is.
    #[must_use]
    pub fn id(&self) -> DatabaseId {
        self.shared.id
    }

    pub(crate) fn storage(&self) -> &dyn Storage {
        &*self.shared.storage
    }

    pub(crate) fn cache(&self) -> &Arc<BlockCache> {
        &self.shared.cache
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock leaves things half done.
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the directory anew.
    pub(crate) fn refresh(&self) -> Result<()> {
        let names = list(self.storage())?;
        let found = names.iter().filter_map(|name| Layer::parse(name)).collect();
        let (layers, superseded) = arrange(found);
        let mut snapshots: Vec<Txid> = names
            .iter()
            .filter_map(|name| parse_snapshot_name(name))
            .collect();
        snapshots.sort_unstable();
        let mut state = self.state();
        state.layers = layers;
        state.superseded = superseded;
        state.snapshots = snapshots;
        // After a cut, other files may have come under the same names.
        let open: Vec<(String, Arc<BlockFile>)> = state
            .files
            .iter()
            .map(|(name, (file, _))| (name.clone(), Arc::clone(file)))
            .collect();
        let tails: Vec<(Txid, Arc<Mutex<TailIndex>>)> = state
            .tails
            .iter()
            .map(|(first, (tail, _))| (*first, Arc::clone(tail)))
            .collect();
        drop(state);
        for (name, file) in open {
            if !file.is_still(self.storage())? {
                self.state().files.remove(&name);
            }
        }
        for (first, tail) in tails {
            if !lock(&tail).is_current() {
                self.state().tails.remove(&first);
            }
        }
        Ok(())
    }

    /// The transactions of the snapshots, ascending.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn snapshots(&self) -> Result<Vec<Txid>> {
        self.refresh()?;
        Ok(self.state().snapshots.clone())
    }

    /// The newest snapshot at or before a transaction, as listed last.
    pub(crate) fn snapshot_before(&self, txid: Txid) -> Option<Txid> {
        let state = self.state();
        let count = state.snapshots.partition_point(|at| *at <= txid);
        state.snapshots.get(count.checked_sub(1)?).copied()
    }

    pub(crate) fn superseded(&self) -> Vec<(String, Layer)> {
        self.state().superseded.clone()
    }

    pub(crate) fn layers(&self) -> Vec<Layer> {
        self.state().layers.clone()
    }

    /// The layer that has a transaction, by the list of files.
    pub(crate) fn layer(&self, txid: Txid) -> Option<Layer> {
        let state = self.state();
        let count = state.layers.partition_point(|layer| layer.first <= txid);
        let layer = *state.layers.get(count.checked_sub(1)?)?;
        layer.last.is_none_or(|last| txid <= last).then_some(layer)
    }

    /// Opens the layer that has a transaction; a segment may be sealed, and removed, between the look at the list and this.
    pub(crate) fn source(&self, txid: Txid) -> Result<Option<(Layer, Source)>> {
        for attempt in 0..TRIES {
            if attempt > 0 {
                self.refresh()?;
            }
            let Some(layer) = self.layer(txid) else {
                continue;
            };
            let source = match layer.last {
                Some(_) => self.file(&layer.name(), layer.kind())?.map(Source::Sealed),
                None => self.tail(layer.first)?.map(Source::Raw),
            };
            if let Some(source) = source {
                return Ok(Some((layer, source)));
            }
        }
        Ok(None)
    }

    /// An open sealed segment or snapshot; `None` if there is no such file.
    pub(crate) fn file(&self, name: &str, kind: Kind) -> Result<Option<Arc<BlockFile>>> {
        let mut state = self.state();
        state.clock += 1;
        let now = state.clock;
        if let Some((file, used)) = state.files.get_mut(name) {
            *used = now;
            return Ok(Some(Arc::clone(file)));
        }
        drop(state);
        let file = BlockFile::open(self.storage(), name, kind, self.id(), self.cache())?;
        let Some(file) = file.map(Arc::new) else {
            return Ok(None);
        };
        let mut state = self.state();
        if state.files.len() >= FILES_MAX {
            let oldest = state.files.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                state.files.remove(&oldest);
            }
        }
        state.files.insert(name.into(), (Arc::clone(&file), now));
        Ok(Some(file))
    }

    pub(crate) fn snapshot(&self, txid: Txid) -> Result<Option<Arc<BlockFile>>> {
        self.file(&snapshot_name(txid), Kind::Snapshot)
    }

    /// The index of a raw segment; `None` if there is no such file.
    fn tail(&self, first: Txid) -> Result<Option<Arc<Mutex<TailIndex>>>> {
        let mut state = self.state();
        state.clock += 1;
        let now = state.clock;
        if let Some((tail, used)) = state.tails.get_mut(&first) {
            *used = now;
            return Ok(Some(Arc::clone(tail)));
        }
        drop(state);
        let opened = Segment::open_raw(self.storage(), self.id(), first)?;
        let Opened::Segment(segment) = opened else {
            return Ok(None);
        };
        let tail = Arc::new(Mutex::new(TailIndex::new(segment)));
        let mut state = self.state();
        state.tails.insert(first, (Arc::clone(&tail), now));
        Ok(Some(tail))
    }

    /// Lets go of raw segments' indexes that take too much memory.
    pub(crate) fn trim(&self) {
        let mut state = self.state();
        while state.tails.len() > 2 {
            // One that is being extended now is not counted, and not dropped by that.
            let cost: usize = state
                .tails
                .values()
                .filter_map(|(tail, _)| tail.try_lock().ok().map(|tail| tail.cost()))
                .sum();
            if cost <= TAILS_BYTES {
                return;
            }
            let oldest = state.tails.iter().min_by_key(|(_, (_, used))| *used);
            let Some(oldest) = oldest.map(|(first, _)| *first) else {
                return;
            };
            state.tails.remove(&oldest);
        }
    }

    /// What a record says about itself; `None` if the log has no such record.
    pub(crate) fn header(&self, txid: Txid) -> Result<Option<RecordHeader>> {
        for _ in 0..TRIES {
            let Some((_, source)) = self.source(txid)? else {
                return Ok(None);
            };
            match source {
                Source::Sealed(file) if file.gaps() => {
                    let found = file.record_before(txid)?;
                    return Ok(found.filter(|header| header.txid == txid));
                }
                Source::Sealed(file) => return file.record(txid).map(|(header, _)| Some(header)),
                Source::Raw(tail) => {
                    let mut tail = lock(&tail);
                    tail.extend(txid)?;
                    if let Some(header) = tail.header(txid)? {
                        return Ok(Some(header));
                    }
                    drop(tail);
                    // Not there yet, damaged, or meanwhile in the next segment: the reader tells which.
                    if Reader::open(Arc::clone(&self.shared.storage))?
                        .find(txid)?
                        .is_none()
                    {
                        return Ok(None);
                    }
                    self.refresh()?;
                }
            }
        }
        Ok(None)
    }

    /// The newest transaction.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Version`], [`Error::Io`].
    pub fn head(&self) -> Result<Option<Txid>> {
        self.refresh()?;
        let Some(last) = self.layers().last().copied() else {
            return Ok(self.state().snapshots.last().copied());
        };
        match self.source(last.first)? {
            Some((_, Source::Sealed(file))) => Ok(Some(file.range().1)),
            Some((_, Source::Raw(tail))) => {
                let mut tail = lock(&tail);
                tail.extend(Txid(u64::MAX))?;
                Ok(Some(tail.last()).filter(|last| last.0 > 0))
            }
            None => Ok(None),
        }
    }

    /// Puts the raw segment that has a transaction on the disk: a state that a power cut may take back is no state to keep.
    pub(crate) fn sync_segment(&self, txid: Txid) -> Result<()> {
        let Some(Layer {
            first, last: None, ..
        }) = self.layer(txid)
        else {
            return Ok(());
        };
        let name = segment_name(first);
        let sync = || {
            self.storage().open(&name, OpenMode::Read)?.sync()?;
            self.storage().sync_dir()
        };
        match sync() {
            // Sealed meanwhile, and on the disk.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            synced => synced.map_err(|source| {
                Error::io("syncing a segment", self.storage().display(&name), source)
            }),
        }
    }

    pub(crate) fn is_being_cut(&self) -> Result<bool> {
        Ok(list(self.storage())?.iter().any(|name| name == CUT_NAME))
    }

    /// Bytes of the records after a transaction, in the bytes of raw segments.
    pub(crate) fn bytes_after(&self, txid: Txid) -> Result<u64> {
        Reader::open(Arc::clone(&self.shared.storage))?.bytes_after(txid)
    }

    /// The newest transaction that was recorded at or before a time (µs since 1970); `None` if the log begins later.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Version`], [`Error::Io`].
    pub fn find_time(&self, time_us: u64) -> Result<Option<Txid>> {
        self.refresh()?;
        let layers = self.layers();
        let (mut low, mut high) = (0, layers.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let first = layers.get(middle).map_or(Txid(0), |layer| layer.first);
            if self.first_time(first)?.is_some_and(|time| time <= time_us) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let Some(layer) = low.checked_sub(1).and_then(|i| layers.get(i)) else {
            return Ok(None);
        };
        let found = match self.source(layer.first)? {
            Some((_, Source::Sealed(file))) => file.find_time(time_us)?,
            Some((_, Source::Raw(tail))) => {
                let mut tail = lock(&tail);
                tail.extend(Txid(u64::MAX))?;
                tail.find_time(time_us)?
            }
            None => None,
        };
        Ok(found.map(|header| header.txid))
    }

    /// The time of a segment's first record; `None` if it has none yet.
    fn first_time(&self, first: Txid) -> Result<Option<u64>> {
        match self.source(first)? {
            Some((_, Source::Sealed(file))) => Ok(Some(file.footer.first_time_us)),
            Some((layer, Source::Raw(_))) => {
                // Without indexing it, which may not be needed.
                let opened = Segment::open_raw(self.storage(), self.id(), layer.first)?;
                let Opened::Segment(segment) = opened else {
                    return Ok(None);
                };
                match Cursor::at_start(segment).probe()? {
                    Step::Record(entry) => Ok(Some(entry.header.time_us)),
                    Step::Seal | Step::End | Step::Unfinished(_) => Ok(None),
                }
            }
            None => Ok(None),
        }
    }

    /// The state after a transaction, from a snapshot of it where the record is gone; and the snapshot that older pages come
    /// from, 0 for none.
    pub(crate) fn plan(&self, txid: Txid) -> Result<(Head, Txid)> {
        self.refresh()?;
        let head = match self.header(txid)? {
            Some(header) => Head::after(&header),
            None => match self.snapshot_before(txid).filter(|at| *at == txid) {
                Some(at) => match self.snapshot(at)? {
                    Some(file) => file.footer.head,
                    None => return Err(self.no_such(txid)?),
                },
                None => return Err(self.no_such(txid)?),
            },
        };
        let base = self.snapshot_before(txid).unwrap_or(Txid(0));
        // Everything between must be there.
        let mut next = txid;
        while next > base {
            let Some(layer) = self.layer(next) else {
                return Err(Error::NotFound {
                    what: format!(
                        "{}: the state after transaction {txid} cannot be put together, transaction {next} is gone",
                        self.storage().display("")
                    ),
                    hint: "it is older than the retained history, or a file is missing",
                });
            };
            next = layer.first.previous();
        }
        Ok((head, base))
    }

    /// The error for a state that is not there; names the nearest ones where compaction took it.
    fn no_such(&self, txid: Txid) -> Result<Error> {
        let path = self.storage().display("");
        if let Some(layer) = self.layer(txid).filter(|layer| layer.merged)
            && let Some(file) = self.file(&layer.name(), layer.kind())?
        {
            let before = match file.record_before(txid)? {
                Some(header) => Some(header.txid),
                None => Some(file.header.pos.txid).filter(|before| before.0 > 0),
            };
            let after = file.record_after(txid)?;
            let nearest: Vec<String> = [before, after]
                .into_iter()
                .flatten()
                .map(|txid| txid.to_string())
                .collect();
            return Ok(Error::NotFound {
                what: format!(
                    "{path}: the state after transaction {txid} was not kept by compaction, the nearest that was is {}",
                    nearest.join(" or ")
                ),
                hint: "open one of these; settings keep_all, keep_minutes, keep_hours and bookmarks say what is kept",
            });
        }
        let first = self.oldest()?;
        let oldest = first.map_or(String::new(), |first| {
            format!(", its oldest state is that after transaction {first}")
        });
        Ok(Error::NotFound {
            what: format!("{path}: transaction {txid} is not in this log{oldest}"),
            hint: "it is older than the retained history, or newer than the log's end",
        })
    }

    /// The oldest state that can be opened, as listed last: the transaction after which it was.
    fn oldest(&self) -> Result<Option<Txid>> {
        let state = self.state();
        let (snapshot, layer) = (
            state.snapshots.first().copied(),
            state.layers.first().copied(),
        );
        drop(state);
        let Some(layer) = layer else {
            return Ok(snapshot);
        };
        if let Some(snapshot) = snapshot.filter(|at| *at < layer.first) {
            return Ok(Some(snapshot));
        }
        if layer.first.0 > 1 {
            return Ok(snapshot);
        }
        Ok(match self.source(layer.first)? {
            Some((_, Source::Sealed(file))) => file.record_after(Txid(0))?,
            Some((_, Source::Raw(_))) => Some(layer.first),
            None => None,
        })
    }
}

pub(crate) fn lock(tail: &Mutex<TailIndex>) -> MutexGuard<'_, TailIndex> {
    // What was not indexed to its end before a panic is noticed by its hashes.
    tail.lock().unwrap_or_else(PoisonError::into_inner)
}
