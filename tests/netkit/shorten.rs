//! A log as retention leaves it: it begins with a snapshot.

use std::path::Path;
use std::sync::Arc;

use mycelite_journal::{
    Archive, FileStorage, Log, Pos, RawLimits, Reader, Snapshot, Storage, Txid, parse_sealed_name,
    parse_segment_name, parse_snapshot_name,
};

/// Lets the log in `dir`, which nobody has open, begin with a snapshot of transaction `base`; what follows it stays.
pub fn shorten(dir: &Path, base: u64) -> Pos {
    let storage: Arc<dyn Storage> = Arc::new(FileStorage::new(dir));
    let archive = Archive::open(Arc::clone(&storage)).unwrap();
    let snapshot = Snapshot::write(&archive, Txid(base)).unwrap();
    let short = tempfile::tempdir_in(dir.parent().unwrap()).unwrap();
    let mut source = Reader::open(Arc::clone(&storage)).unwrap();
    let copy = Arc::new(FileStorage::new(short.path()));
    let mut log = Log::create_after(copy.clone(), source.id(), 1, snapshot.pos).unwrap();
    source.seek(Txid(base)).unwrap();
    while let Some(entry) = source.next().unwrap() {
        let limits = RawLimits::default();
        log.append_raw(&mut entry.raw(), &limits).unwrap();
    }
    log.sync().unwrap();
    let is_old = |name: &String| {
        parse_segment_name(name).is_some()
            || parse_sealed_name(name).is_some()
            || parse_snapshot_name(name).is_some_and(|at| at.0 != base)
            || name == "synced"
    };
    for name in storage.list().unwrap().iter().filter(|name| is_old(name)) {
        std::fs::remove_file(dir.join(name)).unwrap();
    }
    for name in copy.list().unwrap().iter().filter(|name| *name != "meta") {
        std::fs::rename(short.path().join(name), dir.join(name)).unwrap();
    }
    snapshot.pos
}
