//! Memory that sealing takes: how much at once, and in blocks of what size. A block that is large stays with the process, see
//! `src/sealed/pieces.rs`.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mycelite_journal::{
    DatabaseId, Draft, FileStorage, Log, PageSize, Reader, Storage, Txid, seal, segment_name,
};

/// Counts what the program has, and asks the system.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

fn taken(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::Relaxed) + bytes;
    MOST.fetch_max(now, Ordering::Relaxed);
    LARGEST.fetch_max(bytes, Ordering::Relaxed);
}

// SAFETY: all is passed on to the system's allocator as it came, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: the caller's promises are those of this call.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the block came from the system's allocator, with this layout.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        taken(size);
        // SAFETY: the block came from the system's allocator, with this layout.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `work` takes beyond what is there: all at once, and the largest block of it.
fn measured<T>(work: impl FnOnce() -> T) -> (T, usize, usize) {
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    LARGEST.store(0, Ordering::Relaxed);
    let result = work();
    let most = MOST.load(Ordering::Relaxed) - before;
    (result, most, LARGEST.load(Ordering::Relaxed))
}

/// Records that change some bytes of three pages each, about `bytes` of them.
fn segment(storage: &Arc<dyn Storage>, bytes: usize) {
    let mut log = Log::create(Arc::clone(storage), DatabaseId([7; 16]), 0).unwrap();
    let size = PageSize::new(4096).unwrap();
    let mut pages = vec![vec![0_u8; size.bytes()]; 1000];
    let mut first = log.begin(Draft::new(size, 1000, 1)).unwrap();
    for (number, page) in (1..).zip(&pages) {
        first.patch(number, None, page).unwrap();
    }
    first.commit().unwrap();
    let mut random = 1_u64;
    let mut written = 0;
    while written < bytes {
        let mut record = log.begin(Draft::new(size, 1000, 1)).unwrap();
        for part in 0..3 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            // Pages come in ascending order.
            let number = part as usize * 333 + (random >> 33) as usize % 333;
            let page = &mut pages[number];
            let old = page.clone();
            let at = (random >> 45) as usize % 3500;
            for byte in &mut page[at..at + 300] {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(part);
                *byte = (random >> 56) as u8;
            }
            record.patch(number as u32 + 1, Some(&old), page).unwrap();
            written += 320;
        }
        record.commit().unwrap();
    }
    log.set_segment_bytes_max(0);
    let record = log.begin(Draft::new(size, 1000, 2)).unwrap();
    record.commit().unwrap();
}

#[test]
fn sealing_and_reading_take_little_memory_and_no_large_blocks() {
    const MIB: usize = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(FileStorage::new(dir.path()));
    segment(&storage, 14 * MIB);
    let raw = storage.size(&segment_name(Txid(1))).unwrap();
    assert!(raw > 10 * MIB as u64, "{raw} bytes");
    let (sealed, most, largest) = measured(|| seal(&*storage, Txid(u64::MAX)).unwrap());
    let sealed = sealed.unwrap();
    println!("{sealed:?}: {most} bytes of memory, {largest} at most in one block");
    assert!(most < 28 * MIB, "{most} bytes");
    assert!(largest < 2 * MIB, "a block of {largest} bytes");
    let (records, most, largest) = measured(|| {
        let mut reader = Reader::open(Arc::clone(&storage)).unwrap();
        let mut records = 0;
        while let Some(entry) = reader.next().unwrap() {
            entry.verify().unwrap();
            records += 1;
        }
        records
    });
    println!("{records} records read: {most} bytes of memory, {largest} at most in one block");
    assert_eq!(records, sealed.last.0 + 1);
    assert!(most < 24 * MIB, "{most} bytes");
    assert!(largest < MIB, "a block of {largest} bytes");
}
