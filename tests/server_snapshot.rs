//! The route of snapshots: pieces, places, and everything that is not what it claims to be (P1, P9).

#![allow(clippy::unwrap_used)]

mod common;
mod netkit;

use std::path::Path;
use std::time::Duration;

use mycelite::maintain::MaintainLock;
use mycelite::parked;
use mycelite::proto::snapshot::SnapshotTag;
use mycelite::proto::{HEADER_AFTER, HEADER_DATABASE};
use mycelite_journal::{DatabaseId, Pos, parse_snapshot_name};
use netkit::{Answer, Primary, TestServer, assert_applied, request, room, shorten::shorten};

const PATH: &str = "/v1/databases/app/snapshot";

/// A snapshot in the log of a primary, as its shipper would send it.
struct Parcel {
    id: DatabaseId,
    tag: SnapshotTag,
    bytes: Vec<u8>,
}

impl Parcel {
    fn of(primary: &Primary, base: u64) -> Parcel {
        let pos = shorten(&primary.dir, base);
        let name = std::fs::read_dir(&primary.dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| {
                parse_snapshot_name(path.file_name().unwrap().to_str().unwrap()).is_some()
            });
        let name = name.unwrap();
        let (_, bytes, hash) = SnapshotTag::end_of(&name).unwrap();
        Parcel {
            id: primary.id(),
            tag: SnapshotTag { pos, bytes, hash },
            bytes: std::fs::read(name).unwrap(),
        }
    }

    fn put(&self, server: &TestServer, after: Pos, place: &str, body: &[u8]) -> Answer {
        put(
            server,
            &self.id.to_string(),
            &after.to_string(),
            &self.tag.to_string(),
            place,
            body,
        )
    }

    /// All of it, in pieces of this size; the last answer.
    fn put_all(&self, server: &TestServer, after: Pos, piece: usize) -> Answer {
        let (mut answer, mut at) = (None, 0);
        for part in self.bytes.chunks(piece) {
            let place = format!("bytes {at}-{}/{}", at + part.len() - 1, self.bytes.len());
            at += part.len();
            let said = self.put(server, after, &place, part);
            if at < self.bytes.len() {
                assert_eq!(
                    (said.status, said.json()["received"].as_u64()),
                    (202, Some(at as u64))
                );
            }
            answer = Some(said);
        }
        answer.unwrap()
    }
}

fn put(server: &TestServer, id: &str, after: &str, tag: &str, place: &str, body: &[u8]) -> Answer {
    let headers = [
        (HEADER_DATABASE, id),
        (HEADER_AFTER, after),
        ("mycelite-snapshot", tag),
        ("content-range", place),
    ];
    request(server.addr, "PUT", PATH, &headers, body)
}

fn snapshot_in(dir: &Path) -> Option<String> {
    let names = std::fs::read_dir(dir).ok()?;
    let mut names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.find(|name| parse_snapshot_name(name).is_some())
}

#[test]
fn p1_a_snapshot_in_pieces_becomes_the_beginning_and_records_follow() {
    for piece in [usize::MAX, 5000] {
        let room = room(20);
        let parcel = Parcel::of(&room.primary, 12);
        let answer = parcel.put_all(&room.server, Pos::ZERO, piece);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.txid(), 12);
        let records = room.primary.records(12).concat();
        let answer = room
            .server
            .append("app", parcel.id, parcel.tag.pos, &records);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_applied(&room.server, "app", 20, &room.primary.image);
        // It is handed out again byte for byte, from any place on.
        let whole = room.server.get(PATH);
        assert_eq!((whole.status, whole.body.len()), (200, parcel.bytes.len()));
        assert!(whole.body == parcel.bytes);
        let etag = whole.header("etag").unwrap();
        for (range, known, status, from) in [
            ("bytes=100-", etag.as_str(), 206, 100),
            ("bytes=100-", "\"another\"", 200, 0),
        ] {
            let headers = [("range", range), ("if-range", known)];
            let part = request(room.server.addr, "GET", PATH, &headers, &[]);
            assert_eq!(part.status, status);
            assert!(part.body == parcel.bytes[from..]);
        }
        let headers = [("range", "bytes=99999999-")];
        assert_eq!(
            request(room.server.addr, "GET", PATH, &headers, &[]).status,
            416
        );
        // What the history begins with, and what is older.
        for (path, status) in [
            ("log?after=11", 410),
            ("log?after=12", 200),
            ("log?after=11&follow=1", 410),
            ("file?txid=11", 410),
            ("file?txid=12", 200),
            ("pos?txid=12", 200),
            ("pos?txid=11", 404),
        ] {
            let answer = room.server.get(&format!("/v1/databases/app/{path}"));
            if !path.contains("follow") {
                assert_eq!(answer.status, status, "{path}: {}", answer.text());
            }
        }
        let info = room.server.get("/v1/databases/app").json();
        assert_eq!(info["first_txid"].as_u64(), Some(13));
    }
}

/// Sealing a long log has many short steps: who wants a snapshot waits for one of them.
#[test]
fn a_snapshot_is_made_as_soon_as_nobody_seals() {
    let room = room(9);
    let records = room.primary.records(0).concat();
    let answer = room
        .server
        .append("app", room.primary.id(), Pos::ZERO, &records);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let sealing = MaintainLock::take(&room.server.log("app"), Duration::from_secs(60)).unwrap();
    let busy = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        drop(sealing);
    });
    let answer = room.server.get(PATH);
    assert_eq!(answer.status, 200, "{}", answer.text());
    busy.join().unwrap();
}

#[test]
fn p9_what_is_not_what_it_claims_to_be_changes_nothing() {
    let room = room(20);
    let (server, primary) = (&room.server, &room.primary);
    let records = primary.records(0)[..10].concat();
    let answer = server.append("app", primary.id(), Pos::ZERO, &records);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let at = primary.pos_at(10);
    let nine = primary.pos_at(9);
    let image = server.get("/v1/databases/app/file").body;
    let parcel = Parcel::of(primary, 12);
    let (id, tag, all) = (
        parcel.id.to_string(),
        parcel.tag.to_string(),
        parcel.bytes.len(),
    );
    let (after, whole) = (at.to_string(), format!("bytes 0-{}/{all}", all - 1));
    let older = SnapshotTag {
        pos: nine,
        ..parcel.tag
    };
    let other = "ab".repeat(16);
    let zero = Pos::ZERO.to_string();
    let body = &parcel.bytes[..];
    for (id, after, tag, place, body, status) in [
        ("", after.as_str(), tag.as_str(), whole.as_str(), body, 400),
        (&id, "nowhere", &tag, &whole, body, 400),
        (&id, &after, "../../etc/passwd", &whole, body, 400),
        (&id, &after, &tag, "bytes 0-1", body, 400),
        (&id, &after, &tag, "bytes 9-1/20", body, 400),
        (
            &id,
            &after,
            &tag,
            &format!("bytes 0-9/{}", all + 1),
            &body[..10],
            413,
        ),
        (
            &id,
            &after,
            &tag,
            &format!("bytes 0-{}/{all}", all - 2),
            body,
            400,
        ),
        (&id, &after, &tag, &whole, &body[..all - 1], 400),
        (&id, &after, &tag, &whole, &[], 400),
        (&id, &zero, &tag, &whole, body, 412),
        (&id, &after, &older.to_string(), &whole, body, 412),
        (&other, &after, &tag, &whole, body, 409),
        (
            &id,
            &after,
            &tag,
            &format!("bytes 5-9/{all}"),
            &body[5..10],
            416,
        ),
    ] {
        let answer = put(server, id, after, tag, place, body);
        assert_eq!(answer.status, status, "{tag} {place}: {}", answer.text());
        assert_eq!(server.get("/v1/databases/app/pos").txid(), 10);
    }
    // Bytes that are damaged, anywhere: proved before anything changes, and not kept.
    for at_byte in (0..all).step_by(all / 25 + 1) {
        let mut bytes = parcel.bytes.clone();
        bytes[at_byte] ^= 0x10;
        let bad = Parcel {
            bytes,
            ..Parcel {
                id: parcel.id,
                tag: parcel.tag,
                bytes: Vec::new(),
            }
        };
        let answer = bad.put_all(server, at, 1 << 20);
        assert_eq!(answer.status, 400, "byte {at_byte}: {}", answer.text());
        assert_eq!(
            parcel
                .put(server, at, &format!("bytes */{all}"), &[])
                .json()["received"],
            0
        );
    }
    assert!(snapshot_in(&server.log("app")).is_none());
    assert!(parked::list(&server.log("app")).is_empty());
    assert!(server.get("/v1/databases/app/file").body == image);
    // The very same, whole, is taken, and what was there is kept.
    let answer = parcel.put_all(server, at, 4096);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let tails = parked::list(&server.log("app"));
    assert_eq!((tails.len(), tails[0].first.0, tails[0].last.0), (1, 1, 10));
    assert_applied(server, "app", 12, &primary.images[12]);
}

#[test]
fn a_name_under_which_nothing_came_is_not_kept() {
    let room = room(20);
    let parcel = Parcel::of(&room.primary, 12);
    let all = parcel.bytes.len();
    let asked = parcel.put(&room.server, Pos::ZERO, &format!("bytes */{all}"), &[]);
    assert_eq!(
        (asked.status, asked.json()["received"].as_u64()),
        (202, Some(0))
    );
    assert!(!room.server.log("app").exists());
    assert_eq!(
        room.server.get("/v1/databases").json()["databases"],
        serde_json::json!([])
    );
}
