//! The inner parts, one by one: what a page costs from its difference to its place in an image.
//!
//! `cargo bench -p mycelite-journal --bench inner`
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]
#![allow(clippy::indexing_slicing)]

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mycelite_journal::*;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

const PAGE: usize = 4096;
/// Pages of the history's database, and its transactions, which change two pages each.
const PAGES: u32 = 2_000;
const COMMITS: u64 = 20_000;

fn size() -> PageSize {
    PageSize::new(PAGE as u32).unwrap()
}

/// The same numbers at each run.
fn scatter(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16
}

/// A page as full as a b-tree's usually is, and itself after one row of 100 bytes was added.
fn pages() -> (Vec<u8>, Vec<u8>) {
    let mut old: Vec<u8> = (0..PAGE as u64).map(|i| scatter(i) as u8).collect();
    old[200..1500].fill(0);
    let mut new = old.clone();
    new[3..8].copy_from_slice(&[9, 8, 7, 6, 5]);
    new[198..200].copy_from_slice(&[5, 120]);
    for (at, byte) in new[1400..1500].iter_mut().enumerate() {
        *byte = at as u8 | 1;
    }
    (old, new)
}

fn page(c: &mut Criterion) {
    let (old, new) = pages();
    let mut group = c.benchmark_group("page");
    group.throughput(Throughput::Bytes(PAGE as u64));
    group.bench_function("checksum", |b| b.iter(|| page_checksum(7, black_box(&new))));
    let mut out = Vec::new();
    for (name, old) in [
        ("difference, one row", Some(&old)),
        ("difference, new page", None),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                encode_patch(
                    &mut out,
                    7,
                    black_box(old).map(Vec::as_slice),
                    black_box(&new),
                )
            });
        });
    }
    group.finish();
}

/// A log in `dir` whose database has its pages and nothing else.
fn begin(dir: &Path) -> (Log, Vec<Vec<u8>>) {
    let storage = Arc::new(FileStorage::new(dir));
    let mut log = Log::create(storage, DatabaseId([7; 16]), 1).unwrap();
    let pages: Vec<Vec<u8>> = (0..u64::from(PAGES))
        .map(|n| {
            (0..PAGE as u64)
                .map(|i| scatter(n << 12 | i) as u8)
                .collect()
        })
        .collect();
    let mut record = log.begin(Draft::new(size(), PAGES, 1)).unwrap();
    for (pgno, page) in (1..).zip(&pages) {
        record.patch(pgno, None, page).unwrap();
    }
    record.commit().unwrap();
    (log, pages)
}

/// One transaction that changes some bytes of two pages.
fn commit(log: &mut Log, pages: &mut [Vec<u8>], number: u64) {
    let first = 1 + (scatter(number) % u64::from(PAGES / 2)) as u32;
    let mut record = log.begin(Draft::new(size(), PAGES, number)).unwrap();
    for pgno in [first, first + PAGES / 2] {
        let page = &mut pages[pgno as usize - 1];
        let old = page.clone();
        let at = (scatter(number + 1) % 3_900) as usize;
        page[at..at + 100].copy_from_slice(&[number as u8; 100]);
        record.patch(pgno, Some(&old), page).unwrap();
    }
    record.commit().unwrap();
}

fn log(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, mut pages) = begin(dir.path());
    let mut number = 0;
    let mut group = c.benchmark_group("log");
    group.bench_function("append, two pages", |b| {
        b.iter(|| {
            number += 1;
            commit(&mut log, &mut pages, number);
        });
    });
    group.finish();
}

fn history(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, mut pages) = begin(dir.path());
    (0..COMMITS).for_each(|number| commit(&mut log, &mut pages, number));
    let storage = Arc::new(FileStorage::new(dir.path()));
    let mut group = c.benchmark_group("history of 20 000 commits");
    group.sample_size(10);
    group.bench_function("apply all", |b| {
        let out = tempfile::tempdir().unwrap();
        let file = || {
            let path = out.path().join("image");
            FileStorage::open_path(&path, OpenMode::Create).unwrap()
        };
        b.iter_batched(
            || Image::new(file()),
            |mut image| {
                let mut reader = Reader::open(storage.clone()).unwrap();
                while let Some(entry) = reader.next().unwrap() {
                    image.apply(&entry).unwrap();
                }
            },
            BatchSize::PerIteration,
        );
    });
    past(&mut group, "raw", &storage);
    sealing(&mut group, dir.path());
    while seal(storage.as_ref(), Txid(u64::MAX)).unwrap().is_some() {}
    past(&mut group, "sealed", &storage);
    group.finish();
}

type Group<'a> = criterion::BenchmarkGroup<'a, criterion::measurement::WallTime>;

/// Sealing all that can be sealed of a copy of the log.
fn sealing(group: &mut Group<'_>, log: &Path) {
    group.bench_function("seal", |b| {
        b.iter_batched(
            || {
                let copy = tempfile::tempdir().unwrap();
                for entry in std::fs::read_dir(log).unwrap() {
                    let entry = entry.unwrap();
                    std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
                }
                copy
            },
            |copy| {
                let storage = FileStorage::new(copy.path());
                let mut segments = 0;
                while seal(&storage, Txid(u64::MAX)).unwrap().is_some() {
                    segments += 1;
                }
                assert!(segments > 0);
                copy
            },
            BatchSize::PerIteration,
        );
    });
}

/// Opening a moment, and a page of it.
fn past(group: &mut Group<'_>, name: &str, storage: &Arc<FileStorage>) {
    let archive = Archive::open(storage.clone()).unwrap();
    let mut number = 0;
    let mut moment = || {
        number += 1;
        Txid(2 + scatter(number) % COMMITS)
    };
    let mut bytes = vec![0; PAGE];
    group.bench_function(BenchmarkId::new("open as of", name), |b| {
        b.iter(|| archive.as_of(moment()).unwrap());
    });
    group.bench_function(BenchmarkId::new("open as of, and one page", name), |b| {
        b.iter(|| {
            let txid = moment();
            let pgno = 1 + (scatter(txid.0) % u64::from(PAGES)) as u32;
            archive
                .as_of(txid)
                .unwrap()
                .read_page(pgno, &mut bytes)
                .unwrap();
        });
    });
}

criterion_group!(benches, page, log, history);
criterion_main!(benches);
