//! Embedded replicas: `file:copy.db?vfs=mycelite_reader&source=http://...` in the stock shell and in Python. The reading process
//! follows the server itself; whatever is killed or cut, readers see whole states only, and the copy becomes the primary's file.

#![allow(clippy::unwrap_used)]

#[path = "../clikit/mod.rs"]
mod clikit;
#[path = "../common/mod.rs"]
mod common;
#[path = "../netkit/mod.rs"]
mod netkit;
#[path = "../tlskit/mod.rs"]
mod tlskit;

mod cuts;
mod kit;
mod reading;
mod refusals;
mod sharing;
