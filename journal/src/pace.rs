//! How fast work in the background goes on, and whether it does.

use crate::error::{Error, Result};

/// Whoever does long work in the background asks this after each part of it.
///
/// ```
/// use mycelite_journal::{FullSpeed, Pace};
/// assert!(FullSpeed.go_on(65_536));
/// ```
pub trait Pace: Sync {
    /// That many bytes were read or written since the last call. May sleep; `false` ends the work with [`Error::Stopped`].
    fn go_on(&self, bytes: u64) -> bool;
}

/// No pause, no end.
#[derive(Clone, Copy, Debug)]
pub struct FullSpeed;

impl Pace for FullSpeed {
    fn go_on(&self, _: u64) -> bool {
        true
    }
}

pub(crate) fn worked(pace: &dyn Pace, bytes: u64) -> Result<()> {
    if pace.go_on(bytes) {
        Ok(())
    } else {
        Err(Error::Stopped)
    }
}
