//! The fuzzers' functions on seeded bytes: noise, and mutations of good files. A failure prints the seed.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;
#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use common::Random;

const FILES: [&[u8]; 4] = [
    include_bytes!("golden/v1/segment1.bin"),
    include_bytes!("golden/v1/meta.bin"),
    include_bytes!("golden/v1/synced.bin"),
    include_bytes!("golden/v1/segment3.bin"),
];

/// Numbers at which parsers break.
const EDGES: [u64; 12] = [
    0,
    1,
    2,
    8,
    511,
    512,
    65535,
    65536,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX - 1,
    u64::MAX,
];

fn noise(random: &mut Random) -> Vec<u8> {
    let length = random.below(400) as usize;
    let mut bytes = random.bytes(length);
    // Small numbers make more sense than large ones.
    if random.below(2) == 0 {
        bytes.iter_mut().for_each(|byte| *byte &= 3);
    }
    bytes
}

fn mutated(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(4) {
        let length = bytes.len() as u64;
        let at = random.below(length + 1) as usize;
        let rest = bytes.len() - at;
        match random.below(7) {
            0 if rest > 0 => bytes[at] ^= 1 << random.below(8),
            1 if rest > 0 => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => {
                let count = random.below(40) as usize;
                let insert = random.bytes(count);
                bytes.splice(at..at, insert);
            }
            4 => {
                bytes.drain(at..at + rest.min(random.below(200) as usize));
            }
            5 => {
                let part = bytes[at..at + rest.min(300)].to_vec();
                let to = random.below(length + 1) as usize;
                bytes.splice(to..to, part);
            }
            _ => {
                let edge = EDGES[random.below(EDGES.len() as u64) as usize].to_le_bytes();
                let count = rest.min([1, 2, 4, 8][random.below(4) as usize]);
                bytes[at..at + count].copy_from_slice(&edge[..count]);
            }
        }
    }
    bytes
}

/// Prints the seed if the body panics.
struct Seed(&'static str, u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: seed {}", self.0, self.1);
        }
    }
}

fn run(name: &'static str, count: u64, seeds: &[&[u8]], body: fn(&[u8])) {
    for seed in 0..count {
        let _print = Seed(name, seed);
        let mut random = Random(seed);
        let choice = random.below(seeds.len() as u64 + 1) as usize;
        match seeds.get(choice) {
            Some(file) => body(&mutated(file, &mut random)),
            None => body(&noise(&mut random)),
        }
    }
    seeds.iter().for_each(|seed| body(seed));
    body(&[]);
}

#[test]
fn record_header() {
    let header = &FILES[0][64..192];
    let trailer = &FILES[0][752..784];
    run(
        "record_header",
        20_000,
        &[header, trailer],
        fuzz::record_header,
    );
}

#[test]
fn patch_stream() {
    // The body of the first record, and of the second, after a byte for the page size.
    let first = [&[0], &FILES[0][192..752]].concat();
    let second = [&[0], &FILES[0][912..944]].concat();
    run(
        "patch_stream",
        20_000,
        &[&first, &second, &second],
        fuzz::patch_stream,
    );
}

#[test]
fn record() {
    let mut ranges = vec![0, 0, 1, 3, 9, 1, 0, 0];
    ranges.extend_from_slice(&[2, 0, 0, 0, 0, 0, 1, 0, 5, 0, 1, 0, 7, 7]);
    let mut grown = vec![0, 0, 1, 4, 9, 2, 0, 0];
    grown.extend_from_slice(&[2, 0, 0, 0, 0, 0, 1, 0, 5, 0, 1, 0, 7, 7]);
    grown.extend_from_slice(&[4, 0, 0, 0, 1, 0, 1, 0, 5, 0, 1, 0, 7, 7]);
    let resized = [0, 1, 1, 1, 9, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0];
    run("record", 8_000, &[&ranges, &grown, &resized], fuzz::record);
}

/// A segment with a seal and nothing else, whose checksums fit once they are signed.
fn sealed_empty() -> Vec<u8> {
    let mut bytes = FILES[0][..64].to_vec();
    bytes.extend_from_slice(b"MYCELNXT");
    bytes.extend_from_slice(&1u64.to_le_bytes());
    bytes.extend_from_slice(&96u64.to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes
}

#[test]
fn log() {
    let unsealed = &FILES[0][..FILES[0].len() - 32];
    run(
        "log",
        3_000,
        &[unsealed, FILES[0], FILES[0], FILES[3], &sealed_empty()],
        fuzz::log,
    );
}

#[test]
fn sealed() {
    let files: [&[u8]; 3] = [
        include_bytes!("golden/v1/sealed.bin"),
        include_bytes!("golden/v1/snapshot.bin"),
        include_bytes!("golden/v1/merged.bin"),
    ];
    run("sealed", 3_500, &files, fuzz::sealed);
}

#[test]
fn meta() {
    run("meta", 20_000, &FILES, fuzz::meta);
}

#[test]
fn pos_text() {
    let texts: [&[u8]; 7] = [
        b"00000000000000000001-00000000000000000042.sealed",
        b"00000000000000000042.snapshot",
        b"00000000000000000001-00000000000000000042.merged",
        b"1/42/00000000000000ff",
        b"000102030405060708090a0b0c0d0e0f",
        b"00000000000000ff",
        b"00000000000000000042.seg",
    ];
    run("pos_text", 20_000, &texts, fuzz::pos_text);
}
