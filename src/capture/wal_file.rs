//! The hooks of a WAL: the moment at which a new generation begins.

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

    /// A new generation begins, over one that is in the log and in the database as far as it was committed.
    fn restart(&self, header: &WalHeader) -> Result<()> {
        let mut guard = self.shared.acquire()?;
        let head = guard.head();
        let link = WalLink {
            head: (head.pos.txid, head.pos.checksum),
            salt: header.salt,
            frame: 0,
        };
        let view = guard.log_and_view()?.1;
        view.set_link(&self.shared.options().dir, link)
    }
}

impl Hooks for WalFile {
    fn before_write(&mut self, offset: u64, data: &[u8]) {
        // In exclusive locking mode there is no shared memory, so no lock says that a writer begins.
        establish(&self.shared, self.shared.connection(self.name));
        if offset != 0 || data.len() != WAL_HEADER_BYTES || !self.shared.is_verified() {
            return;
        }
        if let Some(header) = WalHeader::parse(data)
            && let Err(error) = self.restart(&header)
            && self.shared.pausing().is_none()
        {
            self.shared.fail(None, &error);
        }
    }

    fn before_close(&mut self) {
        self.shared.set_wal(self.name, None);
    }
}
