//! Patches: any difference comes back, in the shortest form, and patches compose by overlay.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use mycelite_journal::*;
use proptest::prelude::*;

/// A page that is `old` with some stretches overwritten or cleared.
fn edited(old: Vec<u8>) -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let length = old.len();
    let edit = (0..length, 1..80usize, any::<u8>(), any::<bool>());
    prop::collection::vec(edit, 0..8).prop_map(move |edits| {
        let mut new = old.clone();
        for (at, count, byte, noisy) in edits {
            for (i, place) in new[at..(at + count).min(length)].iter_mut().enumerate() {
                *place = if noisy {
                    byte.wrapping_add((i * 37) as u8)
                } else {
                    byte
                };
            }
        }
        (old.clone(), new)
    })
}

fn page() -> impl Strategy<Value = Vec<u8>> {
    let size = prop::sample::select(vec![512usize, 1024, 4096]);
    (size, any::<u8>(), any::<bool>()).prop_map(|(size, seed, plain)| {
        (0..size)
            .map(|i| {
                if plain {
                    seed
                } else {
                    seed.wrapping_mul(31).wrapping_add((i * i / 7) as u8)
                }
            })
            .collect()
    })
}

fn pair() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    page().prop_flat_map(edited)
}

fn encode(old: Option<&[u8]>, new: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_patch(&mut out, 3, old, new);
    out
}

fn apply(patch: &[u8], page: &mut [u8]) {
    if patch.is_empty() {
        return;
    }
    let size = PageSize::new(page.len() as u32).unwrap();
    let (patch, length) = PatchRef::parse(patch, size).unwrap();
    assert_eq!(length, patch.stored_len());
    patch.apply(page);
}

/// The differing ranges, gaps of up to 8 equal bytes included, found byte by byte.
fn ranges_slowly(old: &[u8], new: &[u8]) -> Vec<(usize, usize)> {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for at in (0..new.len()).filter(|at| old[*at] != new[*at]) {
        match ranges.last_mut() {
            Some((_, end)) if at - *end <= 8 => *end = at + 1,
            _ => ranges.push((at, at + 1)),
        }
    }
    ranges
}

fn length_of(ranges: &[(usize, usize)]) -> usize {
    8 + ranges.iter().map(|(from, to)| 4 + to - from).sum::<usize>()
}

proptest! {
    #[test]
    fn a_patch_turns_old_into_new((old, new) in pair()) {
        let patch = encode(Some(&old), &new);
        prop_assert_eq!(patch.is_empty(), old == new);
        let mut page = old.clone();
        apply(&patch, &mut page);
        prop_assert_eq!(&page, &new);
        // Once more does no harm.
        apply(&patch, &mut page);
        prop_assert_eq!(page, new);
    }

    #[test]
    fn a_complete_patch_needs_no_old_page((old, new) in pair()) {
        let patch = encode(None, &new);
        let size = PageSize::new(new.len() as u32).unwrap();
        prop_assert!(PatchRef::parse(&patch, size).unwrap().0.is_complete());
        let mut page = old;
        apply(&patch, &mut page);
        prop_assert_eq!(page, new);
    }

    #[test]
    fn the_shortest_form_is_chosen((old, new) in pair()) {
        prop_assume!(old != new);
        let zeros = vec![0; new.len()];
        let (ranges, zeroed) = (ranges_slowly(&old, &new), ranges_slowly(&zeros, &new));
        let full = 8 + new.len();
        let shortest = full.min(length_of(&ranges)).min(length_of(&zeroed));
        let patch = encode(Some(&old), &new);
        prop_assert_eq!(patch.len(), shortest);
        let size = PageSize::new(new.len() as u32).unwrap();
        let (patch, _) = PatchRef::parse(&patch, size).unwrap();
        let found: Vec<_> = patch.ranges().map(|(at, bytes)| (at, at + bytes.len())).collect();
        match patch.kind() {
            PatchKind::Ranges => prop_assert_eq!(found, ranges),
            PatchKind::Zeroed => prop_assert_eq!(&found, &zeroed),
            PatchKind::Full => prop_assert_eq!(found, vec![(0, new.len())]),
        }
        prop_assert_eq!(encode(None, &new).len(), full.min(length_of(&zeroed)));
    }

    /// A to B, then B to C, is A to C; and whatever mixture of the three a page holds when it is copied while they
    /// are made, both patches in order give C.
    #[test]
    fn patches_compose_by_overlay(((a, b), c_edits) in pair().prop_flat_map(|(a, b)| {
        (Just((a, b.clone())), edited(b))
    }), cut in any::<prop::sample::Index>(), moment in 0..3usize) {
        let (b2, c) = c_edits;
        prop_assert_eq!(&b, &b2);
        let (first, second) = (encode(Some(&a), &b), encode(Some(&b), &c));
        let mut overlaid = a.clone();
        apply(&first, &mut overlaid);
        apply(&second, &mut overlaid);
        let mut direct = a.clone();
        apply(&encode(Some(&a), &c), &mut direct);
        prop_assert_eq!(&overlaid, &c);
        prop_assert_eq!(&direct, &c);

        let cut = cut.index(a.len());
        let states = [&a, &b, &c];
        let (head, rest) = (states[moment], states[(moment + 1) % 3]);
        let mut torn: Vec<u8> = head[..cut].to_vec();
        torn.extend_from_slice(&rest[cut..]);
        apply(&first, &mut torn);
        apply(&second, &mut torn);
        prop_assert_eq!(torn, c);
    }

    #[test]
    fn any_bytes_parse_or_fail_cleanly(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
        let size = PageSize::new(512).unwrap();
        if let Ok((patch, length)) = PatchRef::parse(&bytes, size) {
            prop_assert!(length <= bytes.len() && length <= 8 + 512);
            let mut end = 0;
            for (at, range) in patch.ranges() {
                prop_assert!(at >= end && at + range.len() <= 512);
                end = at + range.len() + 1;
            }
            patch.apply(&mut [0; 512]);
        }
    }
}

#[test]
fn a_gap_of_more_than_eight_bytes_ends_a_range_wherever_it_lies() {
    let old = [1; 512];
    for (gap, at) in (0..20).flat_map(|gap| (0..280).map(move |at| (gap, at))) {
        let mut new = old;
        new[..300].fill(2);
        new[at..at + gap].fill(1);
        let patch = encode(Some(&old), &new);
        let (patch, _) = PatchRef::parse(&patch, PageSize::MIN).unwrap();
        let found: Vec<_> = patch
            .ranges()
            .map(|(at, bytes)| (at, at + bytes.len()))
            .collect();
        assert_eq!(found, ranges_slowly(&old, &new), "{gap} bytes at {at}");
    }
}

#[test]
fn the_largest_page_has_room_for_its_largest_offsets() {
    let size = PageSize::new(65536).unwrap();
    let old = vec![1u8; 65536];
    let mut new = old.clone();
    new[65535] = 2;
    let patch = encode(Some(&old), &new);
    assert_eq!(patch.len(), 8 + 4 + 1);
    let mut page = old.clone();
    apply(&patch, &mut page);
    assert_eq!(page, new);
    let new = vec![9u8; 65536];
    let full = encode(Some(&old), &new);
    assert_eq!(
        PatchRef::parse(&full, size).unwrap().0.kind(),
        PatchKind::Full
    );
    let mut page = old;
    apply(&full, &mut page);
    assert_eq!(page, new);
}

#[test]
fn a_patch_is_appended_to_what_is_there() {
    let mut out = b"before".to_vec();
    assert!(!encode_patch(&mut out, 1, Some(&[5; 512]), &[5; 512]));
    assert_eq!(out, b"before");
    // All three kinds, one after the other.
    let mut new = vec![5u8; 512];
    new[7] = 1;
    assert!(encode_patch(&mut out, 1, Some(&[5; 512]), &new));
    assert!(encode_patch(&mut out, 2, Some(&new), &[0; 512]));
    let noise: Vec<u8> = (0..512).map(|i| (i % 255) as u8 + 1).collect();
    assert!(encode_patch(&mut out, 3, Some(&[0; 512]), &noise));
    let size = PageSize::new(512).unwrap();
    let mut rest = &out[6..];
    let mut kinds = Vec::new();
    while !rest.is_empty() {
        let (patch, length) = PatchRef::parse(rest, size).unwrap();
        kinds.push((patch.pgno(), patch.kind()));
        rest = &rest[length..];
    }
    let expected = [
        (1, PatchKind::Ranges),
        (2, PatchKind::Zeroed),
        (3, PatchKind::Full),
    ];
    assert_eq!(kinds, expected);
}

/// One change to a good patch per rule.
#[test]
fn each_rule_is_enforced() {
    let size = PageSize::new(512).unwrap();
    let parse = |bytes: &[u8]| PatchRef::parse(bytes, size).map(|_| ());
    // Page 5, two ranges: offset 10 length 2, offset 20 length 1.
    let good = [
        5, 0, 0, 0, 0, 0, 2, 0, 10, 0, 1, 0, b'a', b'b', 20, 0, 0, 0, b'c',
    ];
    assert_eq!(parse(&good), Ok(()));
    let with = |at: usize, byte: u8| {
        let mut bad = good;
        bad[at] = byte;
        parse(&bad)
    };
    let invalid = |result| assert!(matches!(result, Err(FormatError::Invalid(_))), "{result:?}");
    invalid(with(0, 0)); // page 0
    invalid(with(4, 3)); // kind
    invalid(with(5, 1)); // reserved
    invalid(with(6, 0)); // no ranges
    invalid(with(14, 12)); // touches the range before
    invalid(with(14, 9)); // goes back
    invalid(with(15, 2)); // beyond the page
    assert_eq!(with(6, 3), Err(FormatError::Short));
    let mut lock = good;
    lock[..4].copy_from_slice(&size.lock_page().to_le_bytes());
    invalid(parse(&lock));
    // A full page has no ranges.
    invalid(parse(&[5, 0, 0, 0, 2, 0, 1, 0]));
    assert_eq!(parse(&[5, 0, 0, 0, 2, 0, 0, 0, 1]), Err(FormatError::Short));
    // 120 ranges of 1 byte take 600 bytes: more than the page.
    let mut long = vec![5, 0, 0, 0, 1, 0, 120, 0];
    for i in 0..120u16 {
        long.extend_from_slice(&(i * 2).to_le_bytes());
        long.extend_from_slice(&[0, 0, 1]);
    }
    invalid(parse(&long));
}
