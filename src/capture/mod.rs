//! The primary's side of replication: each committed transaction becomes one record in the log.
//!
//! [`MainFile`] and [`WalFile`] are the [`Hooks`](crate::vfs::Hooks) of a database file and its WAL. In the rollback
//! modes a record is the difference between the pages' images at the start of the transaction and at its commit; in
//! WAL mode the log follows the WAL by its cursor. Capture knows nothing of where the log goes from here.

mod adoption;
mod background;
mod catch_up;
mod commits;
mod company;
mod guard;
pub mod header;
mod image;
mod lane;
mod lock_file;
mod main_file;
pub(crate) mod positioned;
mod preimage;
mod recent;
mod reconcile;
mod rollback;
mod run;
mod shared;
mod sighting;
mod stamp;
mod timeline;
pub mod wal;
mod wal_file;
mod wal_link;
mod written;
mod written_wal;

pub use guard::LogGuard;
pub use main_file::MainFile;
pub use shared::{LogOptions, Notify, SharedLog, journal_error, now_us};
pub use sighting::FileIdentity;
#[cfg(feature = "cli")]
pub(crate) use timeline::begin as begin_timeline;
pub use wal_file::WalFile;
