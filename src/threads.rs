//! What the threads that we start in somebody else's process have in common.

use crate::error::{Error, ErrorKind};

/// Leaves all signals to the host's own threads. Above all SIGPIPE: written to by us, a connection that the other side
/// has closed raises it in this thread, and in a host that does not ignore it that would be the end of the process.
///
/// # Errors
/// The system refuses.
#[cfg(unix)]
pub fn block_signals() -> Result<(), Error> {
    nix::sys::signal::SigSet::all().thread_block().map_err(|e| {
        Error::new(
            ErrorKind::Internal,
            format_args!("cannot block signals in a thread of ours: {e}"),
        )
    })
}

/// Signals go to the host's own threads already.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub fn block_signals() -> Result<(), Error> {
    Ok(())
}
