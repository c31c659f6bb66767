//! The hooks of a WAL: the moment at which a new generation begins.

use crate::capture::catch_up::{CatchUp, catch_up};
use crate::capture::main_file::establish;
use crate::capture::shared::SharedLog;
use crate::capture::wal::{WAL_HEADER_BYTES, WalHeader, WalLink};
use crate::error::Result;
use crate::vfs::{Base, Hooks};
use std::sync::Arc;

/// Capture on one connection's WAL.
pub struct WalFile {
    shared: Arc<SharedLog>,
    name: usize,
}

impl WalFile {
    /// Capture on the WAL `wal` of the connection whose database file SQLite knows by the name at address `name`.
    pub fn new(shared: Arc<SharedLog>, name: usize, wal: Arc<dyn Base>) -> WalFile {
        shared.set_wal(name, Some(wal));
        WalFile { shared, name }
    }

    /// The header of a new generation is about to overwrite the old one: captures what is left of that, and links.
    fn restart(&self, header: &WalHeader) -> Result<()> {
        let Some(files) = self.shared.connection(self.name) else {
            return Ok(());
        };
        let mut guard = self.shared.acquire()?;
        let result = (|| {
            // A generation that the log does not know is re-based at the next commit, for want of a link.
            if catch_up(&self.shared, &mut guard, &files)? == CatchUp::Lost {
                return Ok(());
            }
            WalLink {
                txid: guard.head().pos.txid,
                salt: header.salt,
                frame: 0,
            }
            .write(&self.shared.options().dir)
        })();
        result.inspect_err(|error| self.shared.fail(Some(&mut guard), error))
    }
}

impl Hooks for WalFile {
    fn before_write(&mut self, offset: u64, data: &[u8]) {
        // In exclusive locking mode there is no shared memory, so no lock says that a writer begins.
        establish(&self.shared, self.shared.connection(self.name));
        if offset != 0 || data.len() != WAL_HEADER_BYTES || !self.shared.is_verified() {
            return;
        }
        if let Some(header) = WalHeader::parse(data) {
            if let Err(error) = self.restart(&header) {
                if self.shared.pausing().is_none() {
                    self.shared.fail(None, &error);
                }
            }
        }
    }

    fn before_close(&mut self) {
        self.shared.set_wal(self.name, None);
    }
}
