//! What is wrong with the records, or with where they are to go.

use std::io::Write;

use mycelite::proto::{HEADER_AFTER, HEADER_DATABASE};
use mycelite_journal::{Checksum, Pos, Timeline, Txid};

use crate::kit::{Case, KEPT, World};
use crate::netkit::{Primary, Random, zstd};

pub fn cases(world: &World) -> Vec<Case> {
    let mut all = places(world);
    all.extend(bytes(world));
    all.extend(others(world));
    all.extend(sizes(world));
    all
}

/// Good records at a wrong place.
fn places(world: &World) -> Vec<Case> {
    let primary = &world.primary;
    let (all, end) = (primary.records(0), primary.pos_at(KEPT));
    let next = zstd(&all[KEPT as usize]);
    let with = |change: fn(&mut Pos)| {
        let mut pos = end;
        change(&mut pos);
        pos
    };
    let mut cases = vec![
        Case::new(
            "everything again",
            world.append("app", Pos::ZERO, &zstd(&all.concat())),
            &[412],
        ),
        Case::new(
            "the last again",
            world.append(
                "app",
                primary.pos_at(KEPT - 1),
                &zstd(&all[KEPT as usize - 1]),
            ),
            &[412],
        ),
        Case::new(
            "a gap: the record after the next, at its own place",
            world.append(
                "app",
                primary.pos_at(KEPT + 1),
                &zstd(&all[KEPT as usize + 1]),
            ),
            &[412],
        ),
        Case::new(
            "a gap: the record after the next, at the end",
            world.append("app", end, &zstd(&all[KEPT as usize + 1])),
            &[400],
        ),
        Case::new(
            "wrong order",
            world.append(
                "app",
                end,
                &zstd(&[&all[KEPT as usize + 1][..], &all[KEPT as usize]].concat()),
            ),
            &[400],
        ),
        Case::new(
            "the first record at the end",
            world.append("app", end, &zstd(&all[0])),
            &[400],
        ),
        Case::new(
            "a later record for a new name",
            world.append("fresh", end, &next),
            &[412],
        ),
        Case::new(
            "a name that a file has",
            world.append("mine", Pos::ZERO, &zstd(&all[0])),
            &[409],
        ),
        Case::new(
            "no record for a new name",
            world.append("fresh", end, &zstd(b"")),
            &[412],
        ),
    ];
    for (what, pos) in [
        (
            "another checksum",
            with(|pos| pos.checksum = Checksum(pos.checksum.0 ^ 1)),
        ),
        ("another timeline", with(|pos| pos.timeline = Timeline(2))),
        ("timeline 0", with(|pos| pos.timeline = Timeline(0))),
        (
            "the next transaction",
            with(|pos| pos.txid = Txid(pos.txid.0 + 1)),
        ),
        (
            "the last of all transactions",
            with(|pos| pos.txid = Txid(u64::MAX)),
        ),
    ] {
        cases.push(Case::new(
            format!("a place with {what}"),
            world.append("app", pos, &next),
            &[412],
        ));
    }
    cases
}

/// Bytes that are no records.
fn bytes(world: &World) -> Vec<Case> {
    let end = world.primary.pos_at(KEPT);
    let record = world.primary.records(KEPT)[0].clone();
    let append = |raw: &[u8]| world.append("app", end, &zstd(raw));
    let flipped = |at: usize| {
        let mut bytes = record.clone();
        bytes[at] ^= 1;
        append(&bytes)
    };
    let mut noise = vec![0; 100_000];
    Random(1).fill(&mut noise);
    let compressed = zstd(&record);
    let mut window = Vec::new();
    let mut encoder = zstd::stream::write::Encoder::new(&mut window, 1).unwrap();
    encoder.window_log(27).unwrap();
    encoder.write_all(&noise).unwrap();
    encoder.finish().unwrap();
    let mut huge_length = record.clone();
    huge_length[96..128].fill(0xff);
    let mut cases = vec![
        Case::new("noise as a body", world.append("app", end, &noise), &[400]),
        Case::new("compressed noise", append(&noise), &[400]),
        Case::new(
            "records that are not compressed",
            world.append("app", end, &record),
            &[400],
        ),
        Case::new("text", world.append("app", end, b"{\"hello\":1}"), &[400]),
        Case::new("JSON, compressed", append(b"{\"hello\":1}"), &[400]),
        Case::new("zeros, compressed", append(&[0; 1000]), &[400]),
        Case::new("a bomb of zeros", append(&vec![0; 256 << 20]), &[400]),
        Case::new(
            "a bomb of bombs",
            world.append("app", end, &zstd(&zstd(&vec![0; 256 << 20]))),
            &[400],
        ),
        Case::new("a huge window", world.append("app", end, &window), &[400]),
        Case::new(
            "half a frame",
            world.append("app", end, &compressed[..compressed.len() / 2]),
            &[400],
        ),
        Case::new(
            "a frame with a broken head",
            world.append("app", end, &compressed[4..]),
            &[400],
        ),
        Case::new(
            "rubbish before a record",
            append(&[b"xx", &record[..]].concat()),
            &[400],
        ),
        Case::new("a length of 2^64", append(&huge_length), &[400, 413]),
        Case::new("the head of a record alone", append(&record[..128]), &[400]),
        Case::new("half the head of a record", append(&record[..60]), &[400]),
        Case::new("one byte", append(&record[..1]), &[400]),
        Case::new(
            "a record without its last byte",
            append(&record[..record.len() - 1]),
            &[400],
        ),
        Case::new("a database file", append(&world.primary.image), &[400]),
    ];
    for at in [0, 5, 9, 17, 33, 41, 49, 57, 65, 73, 100, 120, 128, 140] {
        cases.push(Case::new(
            format!("a record with bit {} changed", at * 8),
            flipped(at),
            &[400, 413],
        ));
    }
    for back in [1, 9, 17, 100] {
        cases.push(Case::new(
            format!("a record with a bit changed {back} bytes before its end"),
            flipped(record.len() - back),
            &[400],
        ));
    }
    cases
}

/// Records of somebody else.
fn others(world: &World) -> Vec<Case> {
    let dir = tempfile::tempdir().unwrap();
    let mut other = Primary::new(dir.path().join("other"), 9);
    other.commits(3);
    let mut fork = Primary::fork(dir.path().join("fork"), &world.primary, KEPT as usize - 1);
    fork.commits(2);
    let mut newer = Primary::fork(dir.path().join("newer"), &world.primary, 2);
    newer.timeline = 3;
    newer.commits(2);
    let end = world.primary.pos_at(KEPT);
    let as_other = |after: Pos, body: &[u8]| {
        let (id, after) = (other.id().to_string(), after.to_string());
        let headers = [
            ("authorization", "Bearer writer"),
            (HEADER_DATABASE, id.as_str()),
            (HEADER_AFTER, after.as_str()),
        ];
        world.post("app", &headers, body)
    };
    let lie = Pos {
        checksum: Checksum(newer.pos_at(2).checksum.0 ^ 1),
        ..newer.pos_at(2)
    };
    vec![
        Case::new(
            "another database",
            as_other(Pos::ZERO, &zstd(&other.records(0).concat())),
            &[409],
        ),
        Case::new(
            "another database at our place",
            as_other(end, &zstd(&world.primary.records(KEPT)[0])),
            &[409],
        ),
        Case::new(
            "another database under our id",
            world.append("app", Pos::ZERO, &zstd(&other.records(0).concat())),
            &[412],
        ),
        Case::new(
            "a fork at its place",
            world.append(
                "app",
                fork.pos_at(KEPT - 1),
                &zstd(&fork.records(KEPT - 1)[0]),
            ),
            &[412],
        ),
        Case::new(
            "a fork at our place",
            world.append("app", end, &zstd(&fork.records(KEPT)[0])),
            &[400],
        ),
        Case::new(
            "a newer timeline from a place that never was",
            world.append("app", lie, &zstd(&newer.records(2)[0])),
            &[412],
        ),
        Case::new(
            "a newer timeline that begins elsewhere",
            world.append("app", newer.pos_at(2), &zstd(&newer.records(2)[1])),
            &[412],
        ),
        Case::new(
            "a newer timeline, cut within its first record",
            world.append("app", newer.pos_at(2), &zstd(&newer.records(2)[0][..300])),
            &[400, 412],
        ),
        Case::new(
            "a newer timeline whose first record is damaged",
            {
                let mut bytes = newer.records(2)[0].clone();
                let last = bytes.len() - 20;
                bytes[last] ^= 1;
                world.append("app", newer.pos_at(2), &zstd(&bytes))
            },
            &[400],
        ),
    ]
}

/// What is too much.
fn sizes(world: &World) -> Vec<Case> {
    let dir = tempfile::tempdir().unwrap();
    let mut large = Primary::new(dir.path().join("large"), 8);
    large.commit_noise(2);
    let noise = {
        let mut bytes = vec![0; 2 << 20];
        Random(2).fill(&mut bytes);
        bytes
    };
    let end = world.primary.pos_at(KEPT);
    let head = |name: &str, id: String| {
        format!(
            "POST /v1/databases/{name}/log HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             authorization: Bearer writer\r\n{HEADER_DATABASE}: {id}\r\n{HEADER_AFTER}: {}\r\n",
            Pos::ZERO
        )
    };
    // The body is small, and the record is not.
    let mut letters = Primary::new(dir.path().join("letters"), 6);
    letters.commit_letters(3);
    let id = letters.id().to_string();
    let body = zstd(&letters.records(0)[0]);
    assert!(body.len() < 100_000);
    let small = format!(
        "{}content-length: {}\r\n\r\n",
        head("fresh", id),
        body.len()
    );
    let id = large.id().to_string();
    let long = zstd(&large.records(0)[0]);
    let chunked = [
        format!(
            "{}transfer-encoding: chunked\r\n\r\n{:x}\r\n",
            head("fresh", id),
            long.len()
        )
        .into_bytes(),
        long,
        b"\r\n0\r\n\r\n".to_vec(),
    ];
    vec![
        Case::new(
            "a body that is too long",
            world.append("app", end, &noise),
            &[413],
        ),
        Case::new(
            "a body in chunks that is too long",
            chunked.concat(),
            &[413],
        ),
        Case::new(
            "a record that is too long",
            [small.into_bytes(), body].concat(),
            &[413],
        ),
    ]
}
