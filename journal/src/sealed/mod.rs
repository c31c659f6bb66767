//! Block files: sealed segments and snapshots.

mod ahead;
mod before;
pub(crate) mod cache;
pub(crate) mod check;
pub(crate) mod file;
pub(crate) mod format;
mod index;
pub(crate) mod merge;
pub(crate) mod overlay;
mod patches;
mod pieces;
pub(crate) mod prove;
mod records;
pub(crate) mod seal;
#[cfg(test)]
mod tests;
pub(crate) mod view;
pub(crate) mod write;

/// A limit; the crate's own tests use a small one, so that small histories reach it.
pub(crate) const fn limit(limit: usize, in_tests: usize) -> usize {
    if cfg!(test) { in_tests } else { limit }
}
