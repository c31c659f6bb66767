//! Block files: sealed segments and snapshots.

pub(crate) mod cache;
pub(crate) mod check;
pub(crate) mod file;
pub(crate) mod format;
mod index;
pub(crate) mod overlay;
mod patches;
mod records;
pub(crate) mod seal;
pub(crate) mod view;
pub(crate) mod write;
