//! What a thread of ours in somebody else's process does about signals.

use crate::error::{Error, ErrorKind};

/// Leaves all signals to the host's own threads. Above all SIGPIPE: written to by us, a connection that the other side
/// has closed raises it in this thread, and in a host that does not ignore it that would be the end of the process.
///
/// # Errors
/// The system refuses.
#[cfg(unix)]
pub(crate) fn block() -> Result<(), Error> {
    nix::sys::signal::SigSet::all().thread_block().map_err(|e| {
        Error::new(
            ErrorKind::Internal,
            format_args!("cannot block signals in a thread of mycelite: {e}"),
        )
    })
}

#[cfg(not(unix))]
pub(crate) fn block() -> Result<(), Error> {
    Ok(())
}
