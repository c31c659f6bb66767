//! What really was: every record that a primary has ever published, and the image after it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{LazyLock, Mutex, MutexGuard};

use mycelite_journal::Pos;
use xxhash_rust::xxh3::xxh3_64;

/// A [`Pos`] that can be ordered: timeline, transaction, checksum.
pub type Place = (u64, u64, u64);

pub fn place(pos: Pos) -> Place {
    (pos.timeline.0, pos.txid.0, pos.checksum.0)
}

#[derive(Default)]
pub struct Oracle {
    /// The image after each record that ever was.
    images: BTreeMap<Place, u64>,
    /// Hashes of all images.
    known: BTreeSet<u64>,
    pub commits: u64,
}

static ORACLE: LazyLock<Mutex<Oracle>> = LazyLock::new(Mutex::default);

/// Nobody waits for the system while it has this.
pub fn oracle() -> MutexGuard<'static, Oracle> {
    ORACLE.lock().unwrap()
}

pub fn hash_of(image: &[u8]) -> u64 {
    xxh3_64(image)
}

impl Oracle {
    /// A primary is about to publish a record.
    pub fn publish(&mut self, pos: Pos, image: &[u8]) {
        let hash = hash_of(image);
        self.images.insert(place(pos), hash);
        self.known.insert(hash);
        self.commits += 1;
    }

    pub fn knows(&self, at: Place) -> bool {
        self.images.contains_key(&at)
    }

    /// The image at that place.
    pub fn image(&self, at: Place) -> Option<u64> {
        self.images.get(&at).copied()
    }
}
