//! What is no database must be an error: never a panic, never a walk without an end.

use super::btree::{Node, Pages, Tree, free_pages, pointer_maps, varint};
use super::record::{Encoding, Value, decode};
use crate::error::Result;

const USABLE: usize = 512;

/// Pages of which some bytes are as SQLite writes them.
struct Garbage {
    pages: Vec<Vec<u8>>,
}

impl Pages for Garbage {
    fn page_count(&self) -> u32 {
        self.pages.len() as u32
    }

    fn usable(&self) -> usize {
        USABLE
    }

    fn page(&mut self, pgno: u32) -> Result<Vec<u8>> {
        Ok(self.pages[pgno as usize - 1].clone())
    }
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn look_at(garbage: &mut Garbage) {
    for pgno in 0..=garbage.page_count() + 1 {
        if let Ok(node) = Node::read(garbage, pgno) {
            let _ = node.children();
            for i in 0..node.len() + 1 {
                if let Ok(cell) = node.cell(i)
                    && let Ok(payload) = cell.payload(garbage, &mut |_| {})
                {
                    let _ = decode(&payload);
                }
            }
        }
        let _ = Tree::read(garbage, pgno);
    }
    let _ = free_pages(garbage, &mut |_| {});
    let _ = pointer_maps(garbage, 7, &mut |_| {});
}

#[test]
fn noise_is_no_database() {
    let mut state = 0x1234_5678_9abc_def1;
    for round in 0..600 {
        let mut garbage = Garbage {
            pages: (0..12)
                .map(|_| (0..USABLE).map(|_| random(&mut state) as u8).collect())
                .collect(),
        };
        for (i, page) in garbage.pages.iter_mut().enumerate() {
            let at = if i == 0 { 100 } else { 0 };
            // A kind that there is, few cells, small page numbers: so that more than the first look is taken.
            page[at] = [2, 5, 10, 13][random(&mut state) as usize % 4];
            page[at + 3..at + 5].copy_from_slice(&(random(&mut state) as u16 % 9).to_be_bytes());
            for pointer in page[at + 8..at + 30].chunks_exact_mut(2) {
                pointer.copy_from_slice(&(random(&mut state) as u16 % 500).to_be_bytes());
            }
            for number in page[100..].chunks_exact_mut(4).filter(|_| round % 2 == 0) {
                number.copy_from_slice(&(random(&mut state) as u32 % 14).to_be_bytes());
            }
        }
        look_at(&mut garbage);
    }
}

#[test]
fn a_real_database_with_flipped_bits() {
    let mut connection = rusqlite::Connection::open_in_memory().unwrap();
    connection
        .execute_batch(
            "PRAGMA page_size=512; PRAGMA auto_vacuum=1; CREATE TABLE t(a, b); CREATE TABLE w(k PRIMARY KEY, v) WITHOUT ROWID;
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60)
             INSERT INTO t SELECT i, randomblob(i * 20) FROM n; INSERT INTO w SELECT a, b FROM t; DELETE FROM t WHERE a % 3",
        )
        .unwrap();
    let image = connection.serialize(rusqlite::MAIN_DB).unwrap().to_vec();
    let pages = |image: &[u8]| image.chunks(512).map(<[u8]>::to_vec).collect();
    let mut whole = Garbage {
        pages: pages(&image),
    };
    let root: u32 = connection
        .query_row(
            "SELECT rootpage FROM sqlite_schema WHERE name='t'",
            [],
            |row| row.get(0),
        )
        .unwrap();
    let tree = Tree::read(&mut whole, root).unwrap();
    let mut rows = 0;
    for leaf in &tree.leaves {
        let node = Node::read(&mut whole, *leaf).unwrap();
        for i in 0..node.len() {
            let cell = node.cell(i).unwrap();
            let values = decode(&cell.payload(&mut whole, &mut |_| {}).unwrap()).unwrap();
            let Value::Blob(blob) = &values[1] else {
                panic!("{values:?}");
            };
            assert_eq!(values[0], Value::Integer(blob.len() as i64 / 20));
            rows += 1;
        }
    }
    assert_eq!(rows, 20);
    let mut state = 77;
    for _ in 0..300 {
        let mut broken = image.clone();
        for _ in 0..1 + random(&mut state) % 30 {
            let at = random(&mut state) as usize % broken.len();
            broken[at] ^= 1 << (random(&mut state) % 8);
        }
        look_at(&mut Garbage {
            pages: pages(&broken),
        });
    }
}

#[test]
fn numbers_of_every_length() {
    for (bytes, value) in [
        (&[0x00][..], 0),
        (&[0x7f], 127),
        (&[0x81, 0x00], 128),
        (&[0xff; 9], u64::MAX),
        (&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x05], 5),
    ] {
        assert_eq!(varint(bytes), Some((value, bytes.len())));
        assert_eq!(varint(&bytes[..bytes.len() - 1]), None);
    }
}

/// SQLite reads back each literal as the very value.
#[test]
fn literals_are_exact() {
    let connection = rusqlite::Connection::open_in_memory().unwrap();
    let mut state = 99;
    let mut reals = vec![
        0.0,
        -0.0,
        0.1,
        1e308,
        f64::MAX,
        f64::MIN_POSITIVE,
        5e-324,
        1e15,
        1e-5,
        123.456,
    ];
    reals.extend(
        (0..3000)
            .map(|_| f64::from_bits(random(&mut state)))
            .filter(|real| !real.is_nan()),
    );
    for real in reals {
        let sql = Value::Real(real).sql(Encoding::Utf8);
        let read: f64 = connection
            .query_row(&format!("SELECT {sql}"), [], |row| row.get(0))
            .unwrap();
        assert_eq!(read.to_bits(), real.to_bits(), "{sql}");
    }
    for bytes in [
        &b"it's"[..],
        b"a\0b",
        b"",
        b"\xff\xfe",
        "\u{1F344}".as_bytes(),
    ] {
        let sql = Value::Text(bytes.to_vec()).sql(Encoding::Utf8);
        let (kind, read): (String, Vec<u8>) = connection
            .query_row(
                &format!("SELECT typeof(v), CAST(v AS BLOB) FROM (SELECT {sql} AS v)"),
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .unwrap();
        assert_eq!((kind.as_str(), &read[..]), ("text", bytes), "{sql}");
    }
}
