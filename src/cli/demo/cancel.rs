//! Ctrl-C and SIGTERM as a flag, so that everything is cleaned up on the way out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mycelite::error::{Error, ErrorKind, Result};
use tokio::signal::unix::{SignalKind, signal};

/// Whether the user wants it to end.
#[derive(Clone)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// From now on the first signal sets the flag, and a second one ends the program at once.
    pub fn install() -> Result<Cancel> {
        let failed =
            |source: std::io::Error| Error::new(ErrorKind::Io, source).at("signal handling");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let guard = runtime.enter();
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        drop(guard);
        let cancel = Cancel(Arc::default());
        let flag = Arc::clone(&cancel.0);
        std::thread::spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                    if flag.swap(true, Ordering::Relaxed) {
                        std::process::exit(130);
                    }
                }
            });
        });
        Ok(cancel)
    }

    /// Whether a signal came.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
