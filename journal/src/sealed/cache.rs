//! Decompressed blocks, as many as a limit of memory allows.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::sealed::index::{PatchIndex, RecordIndex};
use crate::sealed::patches::PatchBlock;
use crate::sealed::records::RecordBlock;

/// A decoded block.
#[derive(Clone)]
pub(crate) enum Cached {
    Patches(Arc<PatchBlock>),
    Records(Arc<RecordBlock>),
    PatchIndex(Arc<PatchIndex>),
    RecordIndex(Arc<RecordIndex>),
}

impl Cached {
    fn cost(&self) -> usize {
        64 + match self {
            Cached::Patches(block) => block.cost(),
            Cached::Records(block) => block.cost(),
            Cached::PatchIndex(index) => index.cost(),
            Cached::RecordIndex(index) => index.cost(),
        }
    }
}

/// A file's number and a block's offset in it.
type Place = (u64, u64);

/// Blocks of any number of files. The one not used for the longest time goes first.
pub(crate) struct BlockCache {
    inner: Mutex<Inner>,
    bytes_max: usize,
}

#[derive(Default)]
struct Inner {
    blocks: HashMap<Place, (Cached, u64)>,
    bytes: usize,
    clock: u64,
}

impl BlockCache {
    /// Keeps up to this many bytes of memory, and at least the last block.
    pub(crate) fn new(bytes_max: usize) -> Arc<BlockCache> {
        Arc::new(BlockCache {
            inner: Mutex::default(),
            bytes_max,
        })
    }

    /// A number for a file that has been opened.
    pub(crate) fn file_number() -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Whoever panicked with the lock left a good map behind.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, place: Place) -> Option<Cached> {
        let mut inner = self.lock();
        inner.clock += 1;
        let now = inner.clock;
        let (block, used) = inner.blocks.get_mut(&place)?;
        *used = now;
        Some(block.clone())
    }

    pub(crate) fn put(&self, place: Place, block: Cached) {
        let mut inner = self.lock();
        inner.clock += 1;
        let now = inner.clock;
        let cost = block.cost();
        inner.bytes += cost;
        if let Some((old, _)) = inner.blocks.insert(place, (block, now)) {
            inner.bytes -= old.cost();
        }
        // A cache holds some hundred blocks: looking at all of them is cheaper than keeping them in order.
        while inner.bytes > self.bytes_max && inner.blocks.len() > 1 {
            let oldest = inner.blocks.iter().min_by_key(|(_, (_, used))| *used);
            let Some(oldest) = oldest.map(|(place, _)| *place) else {
                return;
            };
            if let Some((old, _)) = inner.blocks.remove(&oldest) {
                inner.bytes -= old.cost();
            }
        }
    }
}
