//! Several connections, several processes, `fork`.

use std::time::Duration;

use crate::clikit::wait_for;
use crate::kit::{LONG, Reader, identical, room, uri};

#[test]
fn connections_share_one_follower_which_ends_with_the_last() {
    let mut room = room("WAL", 2, &[]);
    let url = room.server.url("app");
    let mut reader = Reader::of(room.dir.path(), &room.copy, &url);
    reader.number("SELECT count(*) FROM t");
    let threads = reader.good("threads");
    for name in ["b", "c"] {
        reader.good(&format!("open {name} {}", uri(&room.copy, &url, "")));
        reader.good(&format!("{name} SELECT count(*) FROM t"));
    }
    let follower = |threads: &serde_json::Value| {
        threads
            .as_array()
            .unwrap()
            .iter()
            .filter(|name| *name == "mycelite-follow")
            .count()
    };
    assert_eq!(follower(&reader.good("threads")), follower(&threads));
    reader.good("close db");
    reader.good("close b");
    let pos = room.primary.commit();
    assert_eq!(
        reader.good(&format!("c SELECT mycelite_wait('{pos}', 20000)"))[0][0],
        1
    );
    reader.good("close c");
    reader.nothing_runs();
    identical(&room.copy, &room.primary.image());
}

#[test]
fn another_process_reads_and_takes_over() {
    let mut room = room("WAL", 2, &[]);
    let url = room.server.url("app");
    let mut first = Reader::of(room.dir.path(), &room.copy, &url);
    let mut pos = room.primary.pos();
    first.number("SELECT count(*) FROM t");
    first.reach(&pos);
    let mut readers = vec![first];
    for round in 0..4 {
        let mut next = Reader::of(room.dir.path(), &room.copy, &url);
        assert_eq!(next.number("SELECT count(*) FROM t"), room.primary.rows);
        wait_for("its turn is another's", LONG, || {
            next.state() == "elsewhere"
        });
        pos = room.primary.commit();
        next.reach(&pos);
        assert_eq!(next.number("SELECT count(*) FROM t"), room.primary.rows);
        let before = readers.pop().unwrap();
        assert_eq!(next.state(), "elsewhere");
        match round % 2 {
            0 => before.kill(),
            _ => before.stop(),
        }
        wait_for("the turn", LONG, || next.state() == "following");
        pos = room.primary.commit();
        next.reach(&pos);
        readers.push(next);
    }
    // Begun at the same time, where there is nothing: one of them follows, all read.
    let fresh = room.dir.path().join("fresh.db");
    let mut all: Vec<Reader> = (0..4)
        .map(|_| Reader::of(room.dir.path(), &fresh, &url))
        .collect();
    let rows = room.primary.rows;
    let done: Vec<i64> = std::thread::scope(|scope| {
        let threads: Vec<_> = all
            .iter_mut()
            .map(|reader| {
                let pos = &pos;
                scope.spawn(move || {
                    reader.number("SELECT count(*) FROM t");
                    reader.reach(pos);
                    reader.number("SELECT count(*) FROM t")
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(done, [rows; 4]);
    let mut states: Vec<String> = all.iter_mut().map(Reader::state).collect();
    states.sort();
    assert_eq!(states, ["elsewhere", "elsewhere", "elsewhere", "following"]);
    // A daemon keeps out of the way, and the other way round.
    let daemon = crate::clikit::run(["follow", "--once", &url, fresh.to_str().unwrap()]);
    assert!(daemon.bad(3).contains("another process keeps this replica"));
    all.into_iter().for_each(Reader::stop);
    identical(&fresh, &room.primary.image());
}

#[test]
fn a_forked_child_has_a_follower_of_its_own_turn() {
    let mut room = room("WAL", 3, &[]);
    let url = room.server.url("app");
    let mut reader = Reader::of(room.dir.path(), &room.copy, &url);
    let pos = room.primary.pos();
    reader.number("SELECT count(*) FROM t");
    reader.reach(&pos);
    let mark = room.dir.path().join("mark");
    let child = reader.good(&format!(
        "fork {} {}",
        mark.display(),
        uri(&room.copy, &url, "")
    ));
    assert_eq!(
        (&child[1], &child[2]),
        (&3.into(), &"elsewhere".into()),
        "{child}"
    );
    // The parent goes on as if nothing had been.
    let pos = room.primary.commit();
    reader.reach(&pos);
    wait_for("the parent", LONG, || reader.state() == "following");
    // It is killed: the child, which has not its lock, takes over.
    reader.kill();
    let pos = room.primary.commit();
    let txid: u64 = pos.split('/').nth(1).unwrap().parse().unwrap();
    let mut other = Reader::of(room.dir.path(), &room.copy, &url);
    other.number("SELECT count(*) FROM t");
    other.reach(&pos);
    std::fs::write(&mark, "").unwrap();
    let said = mark.with_extension("said");
    wait_for("the child's end", LONG, || {
        std::fs::read_to_string(&said).is_ok_and(|text| text.ends_with(']'))
    });
    let said: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&said).unwrap()).unwrap();
    assert_eq!(said[1], 5, "{said}");
    let both = [said[0].as_str().unwrap().to_owned(), other.state()];
    assert!(both.contains(&"following".to_owned()), "{both:?} at {txid}");
    std::thread::sleep(Duration::from_millis(20));
    let pos = room.primary.commit();
    other.reach(&pos);
    wait_for("the turn", LONG, || other.state() == "following");
    identical(&room.copy, &room.primary.image());
}
