//! The log as its users see it: appending, reading, several writers, all by the rules.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::io::Read;
use std::sync::Arc;

use common::*;
use mycelite_journal::*;

fn raw(entry: &RecordEntry) -> Vec<u8> {
    let mut bytes = Vec::new();
    entry.raw().read_to_end(&mut bytes).unwrap();
    bytes
}

fn all(disk: &FaultStorage) -> Vec<RecordEntry> {
    let mut reader = reader(disk);
    std::iter::from_fn(|| reader.next().unwrap()).collect()
}

#[test]
fn random_histories_replay_exactly() {
    for seed in 0..30 {
        let (disk, mut log) = new_log();
        log.set_segment_bytes_max(4000);
        let mut history = History::new(seed);
        history.steps(&mut log, 60);
        assert!(disk.list().unwrap().len() > 5, "several segments");
        let replayed = replay(Arc::new(disk.clone()), &history.images).unwrap();
        assert_eq!(replayed, 60, "seed {seed}");
        let reopened = open(&disk).unwrap();
        assert_eq!(reopened.head(), log.head());
        assert_eq!(reopened.bytes().unwrap(), reader(&disk).bytes().unwrap());
    }
}

#[test]
fn a_new_log_is_empty_and_is_created_once() {
    let (disk, mut log) = new_log();
    assert_eq!(log.head(), &Head::EMPTY);
    assert_eq!((log.id(), log.created_us()), (ID, 42));
    log.sync().unwrap();
    log.refresh().unwrap();
    assert!(log.prepared().unwrap().is_none());
    assert_eq!(log.drop_tail().unwrap(), 0);
    let mut reader = reader(&disk);
    assert_eq!((reader.id(), reader.created_us()), (ID, 42));
    assert!(reader.next().unwrap().is_none());
    assert!(reader.head().unwrap().is_none());
    assert!(reader.first_txid().unwrap().is_none());
    assert!(reader.find(Txid(1)).unwrap().is_none());
    assert!(reader.find_checksum(Checksum(0)).unwrap().is_none());
    assert_eq!(reader.bytes_after(Txid(0)).unwrap(), 0);
    reader.seek(Txid(0)).unwrap();
    assert!(reader.seek(Txid(1)).unwrap_err().is_not_found());

    let again = Log::create(Arc::new(disk.clone()), ID, 1);
    assert!(matches!(again, Err(Error::Exists { .. })));
    let nothing = Arc::new(FaultStorage::new());
    assert!(Log::open(nothing.clone()).err().unwrap().is_not_found());
    assert!(Reader::open(nothing).err().unwrap().is_not_found());
    // Segments without a meta file are in the way as well.
    let orphan = FaultStorage::new();
    orphan.put(&segment_name(Txid(1)), vec![]);
    let created = Log::create(Arc::new(orphan), ID, 1);
    assert!(matches!(created, Err(Error::Exists { .. })));
}

#[test]
fn real_files_work_like_the_disk_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Arc::new(FileStorage::new(dir.path()).with_mode(0o600));
    let mut log = Log::create(storage.clone(), ID, 42).unwrap();
    log.set_segment_bytes_max(4000);
    let mut history = History::new(5);
    history.steps(&mut log, 40);
    log.sync().unwrap();
    assert_eq!(replay(storage.clone(), &history.images).unwrap(), 40);
    assert_eq!(Log::open(storage).unwrap().head(), log.head());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let meta = std::fs::metadata(dir.path().join("meta")).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    }
    let missing = Arc::new(FileStorage::new(dir.path().join("no")));
    assert!(Log::open(missing.clone()).err().unwrap().is_not_found());
    let created = Log::create(missing, ID, 1).err().unwrap();
    assert!(created.io_error().is_some(), "{created}");
}

#[test]
fn a_record_exists_from_publish_on() {
    let (disk, mut log) = new_log();
    let mut history = History::new(1);
    history.steps(&mut log, 3);
    let mut reader = reader(&disk);
    reader.seek(Txid(3)).unwrap();

    let new = history.next_image();
    begin(&mut log, history.last(), &new, draft(&new))
        .unwrap()
        .prepare()
        .unwrap();
    assert_eq!(log.pending().map(|header| header.txid), Some(Txid(4)));
    assert_eq!(log.head().pos.txid, Txid(3));
    assert!(reader.next().unwrap().is_none());
    assert_eq!(open(&disk).unwrap().head().pos.txid, Txid(3));
    // Meanwhile nothing else may begin, and refresh leaves the record alone.
    log.refresh().unwrap();
    assert!(matches!(log.begin(draft(&new)), Err(Error::Misuse(_))));
    assert!(matches!(log.drop_tail(), Err(Error::Misuse(_))));
    assert!(matches!(log.prepared(), Err(Error::Misuse(_))));

    let header = log.publish().unwrap();
    assert_eq!(log.head(), &Head::after(&header));
    assert_eq!(reader.next().unwrap().unwrap().header, header);
    assert!(matches!(log.publish(), Err(Error::Misuse(_))));
    log.discard().unwrap();
    assert_eq!(log.head().pos.txid, Txid(4));
}

#[test]
fn discarded_and_abandoned_records_leave_nothing() {
    let (disk, mut log) = new_log();
    let mut history = History::new(2);
    history.steps(&mut log, 2);
    let bytes = disk.contents(&segment_name(Txid(1)));
    let new = history.next_image();
    begin(&mut log, history.last(), &new, draft(&new))
        .unwrap()
        .prepare()
        .unwrap();
    assert_ne!(disk.contents(&segment_name(Txid(1))), bytes);
    log.discard().unwrap();
    assert_eq!(disk.contents(&segment_name(Txid(1))), bytes);
    assert!(log.pending().is_none());
    drop(begin(&mut log, history.last(), &new, draft(&new)).unwrap());
    begin(&mut log, history.last(), &new, draft(&new))
        .unwrap()
        .abort()
        .unwrap();
    assert_eq!(disk.contents(&segment_name(Txid(1))), bytes);
    history.steps(&mut log, 2);
    assert_eq!(replay(Arc::new(disk), &history.images).unwrap(), 4);
}

#[test]
fn long_records_are_streamed_and_read_in_parts() {
    let (disk, mut log) = new_log();
    let mut random = Random(9);
    let mut big = Db::new(4096, 1500);
    big.bytes = random.bytes(big.bytes.len());
    let mut images = vec![Db::empty(), big.clone()];
    commit(&mut log, &images[0], &big).unwrap();
    // Abandoned half-way, when a part is in the file.
    for byte in &mut big.bytes {
        *byte ^= 0x55;
    }
    drop(begin(&mut log, &images[1], &big, draft(&big)).unwrap());
    // Prepared, found by the next process, published by it.
    begin(&mut log, &images[1], &big, draft(&big))
        .unwrap()
        .prepare()
        .unwrap();
    drop(log);
    images.push(big);
    let mut log = open(&disk).unwrap();
    assert_eq!(log.head().pos.txid, Txid(1));
    let tail = log.prepared().unwrap().unwrap();
    assert_eq!(tail.header().patch_count, 1500);
    let mut patches = tail.patches();
    while let Some(patch) = patches.next().unwrap() {
        let mut page = images[1].page(patch.pgno()).to_vec();
        patch.apply(&mut page);
        assert_eq!(page, images[2].page(patch.pgno()));
    }
    log.publish_prepared().unwrap();
    assert_eq!(replay(Arc::new(disk.clone()), &images).unwrap(), 2);

    // The same bytes arrive on a replica.
    let (copy, mut replica) = new_log();
    for entry in all(&disk) {
        replica
            .append_raw(&mut entry.raw(), &RawLimits::default())
            .unwrap();
    }
    let segment = segment_name(Txid(1));
    assert!(disk.contents(&segment) == copy.contents(&segment));
}

#[test]
fn a_dead_writers_record_is_kept_or_dropped_by_choice() {
    for keep in [true, false] {
        let (disk, mut log) = new_log();
        let mut history = History::new(3);
        history.steps(&mut log, 2);
        let new = history.next_image();
        begin(&mut log, history.last(), &new, draft(&new))
            .unwrap()
            .prepare()
            .unwrap();
        drop(log);
        let mut log = open(&disk).unwrap();
        log.refresh().unwrap();
        assert!(matches!(log.begin(draft(&new)), Err(Error::Misuse(_))));
        assert_eq!(log.prepared().unwrap().unwrap().header().txid, Txid(3));
        if keep {
            log.publish_prepared().unwrap();
            history.images.push(new);
        } else {
            assert!(log.drop_tail().unwrap() > 0);
        }
        assert!(log.prepared().unwrap().is_none());
        assert!(matches!(log.publish_prepared(), Err(Error::Misuse(_))));
        history.steps(&mut log, 2);
        let expected = history.images.len() as u64 - 1;
        assert_eq!(replay(Arc::new(disk), &history.images).unwrap(), expected);
    }
}

#[test]
fn two_writers_take_turns() {
    let (disk, mut one) = new_log();
    let mut two = open(&disk).unwrap();
    let mut history = History::new(4);
    for log in [&mut one, &mut two] {
        log.set_segment_bytes_max(3000);
    }
    let mut random = Random(44);
    for _ in 0..80 {
        let log = if random.below(2) == 0 {
            &mut one
        } else {
            &mut two
        };
        log.refresh().unwrap();
        assert_eq!(log.head().pos.checksum, history.last().checksum());
        history.step(log).unwrap();
        if random.below(5) == 0 {
            log.sync().unwrap();
        }
    }
    assert_eq!(replay(Arc::new(disk), &history.images).unwrap(), 80);
}

#[test]
fn a_writer_that_did_not_refresh_harms_nothing() {
    let (disk, mut one) = new_log();
    let mut history = History::new(4);
    history.steps(&mut one, 2);
    let mut two = open(&disk).unwrap();
    history.steps(&mut one, 2);
    let new = history.next_image();
    assert!(matches!(two.begin(draft(&new)), Err(Error::Misuse(_))));
    assert!(matches!(two.drop_tail(), Err(Error::Misuse(_))));
    two.refresh().unwrap();
    history.steps(&mut two, 2);
    assert_eq!(replay(Arc::new(disk), &history.images).unwrap(), 6);
}

#[test]
fn a_tail_cut_by_another_process_is_no_news() {
    let (disk, mut one) = new_log();
    let mut history = History::new(6);
    history.steps(&mut one, 2);
    let new = history.next_image();
    begin(&mut one, history.last(), &new, draft(&new))
        .unwrap()
        .prepare()
        .unwrap();
    // `two` and two readers see the prepared bytes; then they go away and other bytes come.
    let mut two = open(&disk).unwrap();
    let (mut looks, mut waits) = (reader(&disk), reader(&disk));
    for reader in [&mut looks, &mut waits] {
        while reader.next().unwrap().is_some() {}
    }
    assert!(two.prepared().unwrap().is_some());
    one.discard().unwrap();
    assert!(looks.next().unwrap().is_none());
    history.step(&mut one).unwrap();
    for reader in [&mut looks, &mut waits] {
        assert_eq!(reader.next().unwrap().unwrap().header.txid, Txid(3));
    }
    // A long record that is being written looks like this; it dies, and a short one takes its place.
    let name = last_segment(&disk);
    let bytes = disk.contents(&name).unwrap();
    let file = disk.open(&name, OpenMode::Write).unwrap();
    file.write_at(&[0; 3000], bytes.len() as u64).unwrap();
    for reader in [&mut looks, &mut waits] {
        assert!(reader.next().unwrap().is_none());
    }
    assert!(looks.next().unwrap().is_none());
    history.step(&mut one).unwrap();
    for reader in [&mut looks, &mut waits] {
        assert_eq!(reader.next().unwrap().unwrap().header.txid, Txid(4));
    }
    two.refresh().unwrap();
    assert_eq!(two.head(), one.head());
    assert!(two.prepared().unwrap().is_none());
    history.step(&mut two).unwrap();
    assert_eq!(replay(Arc::new(disk), &history.images).unwrap(), 5);
}

#[test]
fn what_could_not_be_cut_is_cut_later_unless_the_lock_was_free() {
    let (disk, mut log) = new_log();
    let mut history = History::new(16);
    history.steps(&mut log, 2);
    let fail_the_cut = |log: &mut Log, history: &mut History| {
        let new = history.next_image();
        let record = begin(log, history.last(), &new, draft(&new)).unwrap();
        record.prepare().unwrap();
        disk.fail(Fault {
            at_call: 1,
            kind: std::io::ErrorKind::Other,
            lasting: false,
        });
        assert!(log.discard().unwrap_err().io_error().is_some());
        assert!(log.pending().is_none());
    };
    // In the same breath, the record is known to be void.
    fail_the_cut(&mut log, &mut history);
    history.step(&mut log).unwrap();
    // After a refresh it may be somebody else's.
    fail_the_cut(&mut log, &mut history);
    log.refresh().unwrap();
    assert!(matches!(
        log.begin(draft(history.last())),
        Err(Error::Misuse(_))
    ));
    assert!(log.prepared().unwrap().is_some());
    log.drop_tail().unwrap();
    history.steps(&mut log, 2);
    assert_eq!(replay(Arc::new(disk), &history.images).unwrap(), 5);
}

#[test]
fn a_crash_while_a_segment_is_started_is_repaired() {
    for length in [0, 1, 40, 63, 64] {
        let (disk, mut log) = new_log();
        let mut history = History::new(7);
        history.steps(&mut log, 5);
        log.sync().unwrap();
        let next = segment_name(Txid(6));
        disk.put(&next, vec![0; length]);
        // The reader of the segment before sees its end.
        assert_eq!(all(&disk).len(), 5);
        assert_eq!(reader(&disk).head().unwrap().unwrap().header.txid, Txid(5));
        let mut log = open(&disk).unwrap();
        assert_eq!(log.head().pos.txid, Txid(5));
        history.steps(&mut log, 5);
        assert!(disk.contents(&next).unwrap().len() > 64, "it is used now");
        assert_eq!(replay(Arc::new(disk.clone()), &history.images).unwrap(), 10);
        let mut reader = reader(&disk);
        reader.seek(Txid(5)).unwrap();
        assert_eq!(reader.next().unwrap().unwrap().header.txid, Txid(6));
    }
    // The same behind a seal, as it really comes about.
    for length in 0..=64 {
        let (disk, mut log) = new_log();
        let mut history = History::new(7);
        history.steps(&mut log, 2);
        log.set_segment_bytes_max(0);
        let new = history.next_image();
        drop(begin(&mut log, history.last(), &new, draft(&new)).unwrap());
        let next = segment_name(Txid(3));
        let header = disk.contents(&next).unwrap();
        disk.put(&next, header[..length].to_vec());
        if length == 0 {
            disk.remove(&next).unwrap();
        }
        let mut reader = reader(&disk);
        assert_eq!(reader.head().unwrap().unwrap().header.txid, Txid(2));
        assert_eq!(reader.bytes_after(Txid(2)).unwrap(), 0);
        let mut log = open(&disk).unwrap();
        assert_eq!(log.head().pos.checksum, history.last().checksum());
        assert_eq!(log.drop_tail().unwrap(), 0);
        history.steps(&mut log, 2);
        assert_eq!(replay(Arc::new(disk.clone()), &history.images).unwrap(), 4);
        assert_eq!(reader.head().unwrap().unwrap().header.txid, Txid(4));
    }
    // Good header, no record yet.
    let (disk, mut log) = new_log();
    log.set_segment_bytes_max(0);
    let mut history = History::new(7);
    history.steps(&mut log, 2);
    let new = history.next_image();
    drop(begin(&mut log, history.last(), &new, draft(&new)).unwrap());
    assert_eq!(disk.contents(&segment_name(Txid(3))).unwrap().len(), 64);
    let mut log = open(&disk).unwrap();
    assert_eq!(log.head().page_size, Some(history.last().size));
    assert_eq!(reader(&disk).head().unwrap().unwrap().header.txid, Txid(2));
    history.steps(&mut log, 2);
    assert_eq!(replay(Arc::new(disk), &history.images).unwrap(), 4);
}

#[test]
fn a_first_segment_that_was_never_finished_is_started_again() {
    let (disk, log) = new_log();
    drop(log);
    disk.put(&segment_name(Txid(1)), vec![1; 20]);
    let mut log = open(&disk).unwrap();
    assert!(reader(&disk).next().unwrap().is_none());
    let mut history = History::new(8);
    history.steps(&mut log, 2);
    assert_eq!(replay(Arc::new(disk), &history.images).unwrap(), 2);
}

#[test]
fn the_reader_finds_its_way() {
    let (disk, mut log) = new_log();
    log.set_segment_bytes_max(5000);
    let mut history = History::new(11);
    history.steps(&mut log, 70);
    let entries = all(&disk);
    let mut reader = reader(&disk);
    assert_eq!(reader.first_txid().unwrap(), Some(Txid(1)));
    assert_eq!(reader.head().unwrap().unwrap().header, entries[69].header);
    let mut random = Random(1);
    for _ in 0..200 {
        let txid = random.below(71);
        reader.seek(Txid(txid)).unwrap();
        let next = reader.next().unwrap().map(|entry| entry.header.txid);
        assert_eq!(next, (txid < 70).then_some(Txid(txid + 1)));
        let found = reader.find(Txid(txid)).unwrap();
        assert_eq!(
            found.map(|entry| entry.header.txid.0),
            (txid > 0).then_some(txid)
        );
        let after: u64 = entries[txid as usize..]
            .iter()
            .map(|entry| entry.header.record_len())
            .sum();
        assert_eq!(reader.bytes_after(Txid(txid)).unwrap(), after);
    }
    assert!(reader.find(Txid(71)).unwrap().is_none());
    assert!(reader.seek(Txid(71)).unwrap_err().is_not_found());
    assert_eq!(reader.bytes_after(Txid(1000)).unwrap(), 0);
    for entry in &entries {
        let sum = entry.header.post_checksum;
        let newest = entries.iter().rev().find(|e| e.header.post_checksum == sum);
        let found = reader.find_checksum(sum).unwrap().unwrap();
        assert_eq!(found.header, newest.unwrap().header);
        assert_eq!(raw(&found), raw(newest.unwrap()));
    }
    assert!(reader.find_checksum(Checksum(1)).unwrap().is_none());
}

#[test]
fn removed_old_segments_are_a_shorter_history() {
    let (disk, mut log) = new_log();
    log.set_segment_bytes_max(3000);
    let mut history = History::new(12);
    history.steps(&mut log, 50);
    let mut segments: Vec<Txid> = disk
        .list()
        .unwrap()
        .iter()
        .filter_map(|name| parse_segment_name(name))
        .collect();
    segments.sort_unstable();
    let kept = segments[2];
    let old = reader(&disk).find(Txid(2)).unwrap().unwrap();
    for first in &segments[..2] {
        disk.remove(&segment_name(*first)).unwrap();
    }
    let mut reader = reader(&disk);
    assert_eq!(reader.first_txid().unwrap(), Some(kept));
    assert!(reader.seek(Txid(kept.0 - 2)).unwrap_err().is_not_found());
    reader.seek(Txid(kept.0 - 1)).unwrap();
    assert_eq!(reader.next().unwrap().unwrap().header.txid, kept);
    assert!(reader.find(Txid(1)).unwrap().is_none());
    assert!(reader.find_checksum(Checksum(1)).unwrap().is_none());
    assert_eq!(open(&disk).unwrap().head(), log.head());
    old.verify().unwrap();
}

#[test]
fn a_follower_sees_records_come_and_segments_roll() {
    let (disk, mut log) = new_log();
    log.set_segment_bytes_max(2000);
    let mut reader = reader(&disk);
    let mut history = History::new(13);
    for txid in 1..=40 {
        assert!(reader.next().unwrap().is_none());
        history.step(&mut log).unwrap();
        assert_eq!(reader.next().unwrap().unwrap().header.txid, Txid(txid));
        assert_eq!(reader.head().unwrap().unwrap().header.txid, Txid(txid));
    }
}

#[test]
fn misuse_is_refused_with_the_log_unharmed() {
    let (disk, mut log) = new_log();
    let size = PageSize::MIN;
    let old = [1u8; 512];
    let refused =
        |result: Result<()>| assert!(matches!(result, Err(Error::Misuse(_))), "{result:?}");
    let mut first = log.begin(Draft::new(size, 2, 1)).unwrap();
    refused(first.patch(1, None, &[1; 100]));
    first.patch(1, None, &old).unwrap();
    refused(first.patch(1, None, &old));
    refused(first.patch(size.lock_page(), None, &old));
    refused(first.drop_page(1, &old));
    refused(first.prepare()); // page 2 is missing
    let mut first = log.begin(Draft::new(size, 2, 1)).unwrap();
    first.patch(1, None, &old).unwrap();
    first.patch(2, None, &old).unwrap();
    first.set_page_count(1);
    refused(first.commit().map(|_| ())); // page 2 lies beyond the end
    let mut first = log.begin(Draft::new(size, 2, 1)).unwrap();
    first.patch(1, None, &old).unwrap();
    first.patch(2, None, &old).unwrap();
    first.commit().unwrap();

    let other = PageSize::new(1024).unwrap();
    refused(log.begin(Draft::new(other, 1, 1)).map(|_| ()));
    let back = Draft {
        timeline: Timeline(0),
        ..Draft::new(size, 2, 1)
    };
    refused(log.begin(back).map(|_| ()));
    let mut record = log.begin(Draft::new(size, 1, 1)).unwrap();
    refused(record.patch(1, None, &[2; 512]));
    refused(record.patch(1, Some(&[0; 100]), &[2; 512]));
    refused(record.drop_page(3, &old));
    refused(record.prepare()); // page 2 was not dropped
    let mut record = log.begin(Draft::new(size, 2, 1)).unwrap();
    record.drop_page(2, &old).unwrap();
    refused(record.drop_page(2, &old));
    refused(record.prepare()); // it is still there
    assert_eq!(all(&disk).len(), 1);
}

#[test]
fn a_record_knows_what_the_draft_could_not() {
    let (disk, mut log) = new_log();
    let wal = WalCursor {
        salt: [1, 2],
        frame: 3,
        checksum: [4, 5],
    };
    let mut record = log
        .begin(Draft {
            flags: FLAG_ADOPT,
            timeline: Timeline(3),
            ..Draft::new(PageSize::MIN, 0, 500)
        })
        .unwrap();
    assert!(!record.is_unchanged());
    record.patch(1, None, &[1; 512]).unwrap();
    record.set_page_count(1);
    record.set_wal(wal);
    record.set_change_counter(77);
    assert_eq!(record.patch_count(), 1);
    assert_eq!(record.post_checksum(), page_checksum(1, &[1; 512]));
    let header = record.commit().unwrap();
    assert_eq!((header.flags, header.wal), (FLAG_ADOPT, wal));
    assert_eq!((header.change_counter, header.page_count), (77, 1));
    assert_eq!(open(&disk).unwrap().head(), &Head::after(&header));
    // The clock stood still: time goes on by 1 µs.
    let record = log
        .begin(Draft {
            timeline: Timeline(3),
            ..Draft::new(PageSize::MIN, 1, 500)
        })
        .unwrap();
    assert!(record.is_unchanged());
    assert_eq!(record.commit().unwrap().time_us, 501);
}

#[test]
fn a_whole_record_does_not_need_the_old_pages() {
    let (disk, mut log) = new_log();
    let mut history = History::new(15);
    history.steps(&mut log, 5);
    let mut new = Db::new(history.last().size.get(), 9);
    new.bytes = Random(1).bytes(new.bytes.len());
    let whole = Draft {
        whole: true,
        flags: FLAG_REBASE,
        ..draft(&new)
    };
    let header = begin(&mut log, &Db::empty(), &new, whole)
        .unwrap()
        .commit()
        .unwrap();
    assert_eq!(header.post_checksum, new.checksum());
    history.images.push(new);
    history.steps(&mut log, 3);
    assert_eq!(replay(Arc::new(disk), &history.images).unwrap(), 9);
}

#[test]
fn the_lock_byte_page_is_no_part_of_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Arc::new(FileStorage::new(dir.path()));
    let mut log = Log::create(storage.clone(), ID, 0).unwrap();
    let size = PageSize::new(65536).unwrap();
    let lock = size.lock_page();
    let (zeros, ones) = (vec![0; 65536], vec![1; 65536]);
    let mut record = log.begin(Draft::new(size, lock + 1, 1)).unwrap();
    for pgno in (1..=lock + 1).filter(|pgno| *pgno != lock) {
        record.patch(pgno, None, &zeros).unwrap();
    }
    record.commit().unwrap();
    let mut record = log.begin(Draft::new(size, lock + 1, 1)).unwrap();
    record.patch(lock + 1, Some(&zeros), &ones).unwrap();
    record.commit().unwrap();
    let mut image = Image::new(storage.open("image", OpenMode::Create).unwrap());
    let mut reader = Reader::open(storage.clone()).unwrap();
    while let Some(entry) = reader.next().unwrap() {
        image.apply(&entry).unwrap();
    }
    assert_eq!(storage.size("image").unwrap(), u64::from(lock + 1) * 65536);
    // Whatever SQLite keeps in that page, the checksum is of the others.
    let file = storage.open("image", OpenMode::Write).unwrap();
    file.write_at(b"locks", size.offset(lock)).unwrap();
    let sum = scan_checksum(&*file, size, lock + 1).unwrap();
    assert_eq!(sum, log.head().pos.checksum);
    Image::resume(file, log.head().pos, size, lock + 1).unwrap();
}
