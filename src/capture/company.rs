//! Which processes use a log: each holds a shared lock on the file `users`, and the last one leaves the stamp of a clean close.

use crate::capture::guard::{LogGuard, State, Trust};
use crate::capture::lock_file::{self, wait_for};
use crate::capture::positioned;
use crate::capture::shared::{LOCK_WAIT_MAX, SharedLog, journal_error};
use crate::capture::sighting::FileIdentity;
use crate::capture::stamp::{Occasion, Stamp};
use crate::config::LogSync;
use crate::error::{Error, Result};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Who else uses a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Company {
    /// Nobody.
    None,
    /// Processes that have the same database file open.
    Same,
    /// Processes whose database file had the name before the one that has it now.
    Other,
}

impl SharedLog {
    /// Becomes one of the processes that use this log, and says who else does. The file `users` holds the identity of the
    /// database file that they have open.
    ///
    /// # Errors
    /// The lock file cannot be opened, locked or written.
    pub fn join_users(&self, guard: &mut LogGuard) -> Result<Company> {
        let path = self.options().dir.join("users");
        let users = match guard.state.users.take() {
            Some(users) => users,
            None => lock_file::open(&self.options().dir, "users")?.0,
        };
        let users = guard.state.users.insert(users);
        let alone = users.try_lock().is_ok();
        wait_for(&path, Instant::now() + LOCK_WAIT_MAX, || {
            users.try_lock_shared()
        })?;
        let (mut theirs, ours) = ([0; FileIdentity::BYTES], self.options().file.encode());
        let got = positioned::read_at(users, &mut theirs, 0);
        if got.is_ok_and(|got| got == theirs.len()) && theirs == ours {
            return Ok(if alone { Company::None } else { Company::Same });
        }
        positioned::write_all_at(users, &ours, 0)
            .map_err(|e| Error::io("cannot write", &path, &e))?;
        Ok(if alone { Company::None } else { Company::Other })
    }

    /// The last connection of this process closes: leaves the stamp of a clean close when no other process is left.
    ///
    /// # Errors
    /// The log cannot be locked or synced, or the stamp cannot be written.
    pub fn leave(&self) -> Result<()> {
        if !self.may_be_last() {
            return Ok(());
        }
        let mut guard = self.acquire_now()?;
        let alone = guard
            .state
            .users
            .as_ref()
            .is_some_and(|file| file.try_lock().is_ok());
        if guard.state.trust == Trust::Verified && alone && self.is_as_left(&guard)? {
            let head = guard.head();
            if self.options().sync != LogSync::Off {
                guard.log()?.sync().map_err(journal_error)?;
            }
            Stamp::take(&self.options().database, &head)?
                .write(&self.options().dir, Occasion::CleanClose)?;
        }
        // The descriptors go with the last connection; the next one opens them anew.
        guard.state.leave_users();
        guard.state.log = None;
        guard.set_trust(Trust::Unknown);
        self.remember_trust(&guard);
        Ok(())
    }

    /// Whether the database file is as capture last saw it left: somebody may have written to it beside SQLite, and a stamp
    /// must not vouch for that.
    fn is_as_left(&self, guard: &LogGuard) -> Result<bool> {
        let (now, head) = (self.sight()?, guard.head());
        if guard.found.is_left_at(head.pos.txid, &now) {
            return Ok(true);
        }
        let stamp = Stamp::take(&self.options().database, &head)?;
        Ok(stamp.fits_last_checkpoint(&self.options().dir))
    }

    /// Whether no other process uses the log. If one does, this one is done with it: whoever stays may hold the log for
    /// as long as its transaction takes, and a close waits for nobody.
    fn may_be_last(&self) -> bool {
        let Some(mut state) = self.state.try_take_until(Instant::now() + LOCK_WAIT_MAX) else {
            return false;
        };
        let Some(users) = state
            .users
            .as_ref()
            .filter(|_| state.pid == std::process::id())
        else {
            return false;
        };
        let alone = users.try_lock().is_ok();
        if alone {
            // Who opens the database meanwhile finds it in use, as it is.
            let _ = users.try_lock_shared();
        } else {
            state.leave_users();
            *state = State::default();
            self.verified.store(false, Ordering::Relaxed);
        }
        alone
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::capture::shared::tests::opened;

    /// Whoever has another file open says nothing about the one that took its name.
    #[test]
    fn the_company_of_another_file_does_not_vouch() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("app.db"), dir.path().join("other.db"));
        for database in [&one, &other] {
            std::fs::write(database, "").unwrap();
        }
        let logs = [&one, &one, &other, &other, &one].map(|file| opened(dir.path(), file));
        let company = logs
            .iter()
            .map(|log| log.join_users(&mut log.acquire().unwrap()).unwrap());
        assert!(company.eq([
            Company::None,
            Company::Same,
            Company::Other,
            Company::Same,
            Company::Other,
        ]));
        drop(logs);
        let last = opened(dir.path(), &other);
        let mut guard = last.acquire().unwrap();
        assert_eq!(last.join_users(&mut guard).unwrap(), Company::None);
    }
}
