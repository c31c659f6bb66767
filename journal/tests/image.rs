//! An image accepts only what fits it, and only results that are what the record promises.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use common::*;
use mycelite_journal::*;

/// A log of three records over two pages of 512 bytes, and an image to which the first is applied.
fn three() -> (FaultStorage, Vec<RecordEntry>, Image) {
    let (disk, mut log) = new_log();
    let mut images = vec![Db::empty(), Db::new(512, 2)];
    for byte in 1..=2 {
        let mut next = images[byte as usize].clone();
        next.bytes[600] = byte;
        images.push(next);
    }
    for pair in images.windows(2) {
        commit(&mut log, &pair[0], &pair[1]).unwrap();
    }
    let mut reader = reader(&disk);
    let entries: Vec<_> = std::iter::from_fn(|| reader.next().unwrap()).collect();
    let mut image = Image::new(disk.open("image", OpenMode::Create).unwrap());
    image.apply(&entries[0]).unwrap();
    (disk, entries, image)
}

fn mismatch(result: Result<()>, with: &str) {
    match result {
        Err(Error::Mismatch { what, .. }) => assert_eq!(what, with),
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_the_next_record_fits() {
    let (_, entries, mut image) = three();
    assert_eq!(image.pos(), entries[0].header.pos());
    mismatch(image.apply(&entries[2]), "the transaction");
    mismatch(image.apply(&entries[0]), "the transaction");
    // A refusal is no harm.
    image.apply(&entries[1]).unwrap();
    image.apply(&entries[2]).unwrap();

    // The second record of another history.
    let (disk, mut log) = new_log();
    let mut db = Db::new(512, 2);
    db.bytes.fill(9);
    commit(&mut log, &Db::empty(), &db).unwrap();
    let old = db.clone();
    db.bytes[3] = 1;
    commit(&mut log, &old, &db).unwrap();
    let other = reader(&disk).find(Txid(2)).unwrap().unwrap();
    let (_, _, mut image) = three();
    mismatch(image.apply(&other), "the checksum before");
}

#[test]
fn a_file_that_was_changed_is_noticed_and_not_used_again() {
    let (disk, entries, mut image) = three();
    let file = disk.open("image", OpenMode::Write).unwrap();
    file.write_at(&[77], 700).unwrap();
    mismatch(image.apply(&entries[1]), "the image's checksum");
    assert!(matches!(image.apply(&entries[1]), Err(Error::Misuse(_))));

    // A page that no record touches is not looked at by apply; the scan of a resume sees it.
    let (disk, entries, image) = three();
    let file = disk.open("image", OpenMode::Write).unwrap();
    file.write_at(&[77], 0).unwrap();
    let pos = image.pos();
    let resumed = Image::resume(file, pos, PageSize::MIN, 2);
    mismatch(resumed.map(|_| ()), "the image's checksum");
    let file = disk.open("image", OpenMode::Write).unwrap();
    file.write_at(&[0], 0).unwrap();
    file.set_len(5000).unwrap();
    let mut image = Image::resume(file, pos, PageSize::MIN, 2).unwrap();
    image.apply(&entries[1]).unwrap();
    assert_eq!(disk.size("image").unwrap(), 1024);
    assert_eq!(
        (image.page_size(), image.page_count()),
        (Some(PageSize::MIN), 2)
    );
    let short = disk.open("image", OpenMode::Write).unwrap();
    short.set_len(1000).unwrap();
    let error = scan_checksum(&*short, PageSize::MIN, 2).unwrap_err();
    assert!(error.io_error().is_some(), "{error}");
}

#[test]
fn a_damaged_body_reaches_no_page() {
    let (disk, entries, mut image) = three();
    let before = disk.contents("image");
    let file = disk.open(&entries[1].segment, OpenMode::Write).unwrap();
    let last = entries[1].offset + 128 + entries[1].header.body_len - 1;
    file.write_at(&[99], last).unwrap();
    assert!(matches!(
        image.apply(&entries[1]),
        Err(Error::Corrupt { .. })
    ));
    assert_eq!(disk.contents("image"), before);
}
