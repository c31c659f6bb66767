//! One running server, and everything that somebody may send to it: each case is refused as the table says, the server
//! lives, what it keeps is unchanged byte for byte, and its memory is bounded.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../clikit/mod.rs"]
mod clikit;
#[path = "../common/mod.rs"]
mod common;
#[path = "../netkit/mod.rs"]
mod netkit;
#[path = "../tlskit/mod.rs"]
mod tlskit;

mod bounds;
mod http;
mod kit;
mod records;

use kit::World;

#[test]
fn every_case_is_refused_and_nothing_changes() {
    let world = World::new();
    let mut cases = http::cases(&world);
    cases.extend(records::cases(&world));
    let mut names = std::collections::BTreeSet::new();
    for case in &cases {
        assert!(
            names.insert(&case.name),
            "two cases are called {}",
            case.name
        );
    }
    assert!(cases.len() >= 100, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        if let Err(what) = world.judge(case) {
            wrong.push(what);
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} cases:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    world.still_works();
    println!("{} cases", cases.len());
}
