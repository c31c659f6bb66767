//! Acknowledged commits: COMMIT returns when so many replicas hold its record durably, or when it has waited long enough.
//!
//! SQLite has committed by then and the record is in the log: only the answer waits. In WAL mode no lock is held meanwhile that
//! would keep others from committing, so that many connections share one request and one sync of the replica.

use super::Database;
use crate::config::{AckPolicy, Config};
use crate::error::{Error, ErrorKind, Result};
use crate::lock::Mutex;
use crate::status::AckStatus;
use mycelite_journal::Pos;
use std::collections::HashMap;
use std::time::Duration;

/// Settings of which each connection may have its own.
const OWN: [&str; 3] = ["ack", "ack_timeout_ms", "ack_policy"];

/// What a connection's commits wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckRule {
    /// Replicas that must hold a record durably; 0: nothing is waited for.
    pub replicas: u32,
    /// Longest wait.
    pub timeout: Duration,
    /// What comes after it.
    pub policy: AckPolicy,
}

impl AckRule {
    pub(super) fn of(config: &Config) -> AckRule {
        AckRule {
            replicas: config.ack,
            timeout: config.ack_timeout,
            policy: config.ack_policy,
        }
    }
}

/// How acknowledging goes for one database.
#[derive(Default)]
pub(super) struct Acks {
    /// Of connections with settings of their own, by the address of their name.
    own: Mutex<HashMap<usize, AckRule>>,
    missing: Mutex<Missing>,
}

#[derive(Default)]
struct Missing {
    /// Where the database was when the replicas were given up; waiting begins again when they have come so far.
    since: Option<Pos>,
    /// Commits that returned without their acknowledgement.
    commits: u64,
    /// The last reason, one line.
    why: String,
}

impl Acks {
    /// For the status, with the most that a connection waits for; none where nothing is waited for.
    pub fn status(&self, rule: AckRule) -> Option<AckStatus> {
        let own = self.own.lock().values().map(|own| own.replicas).max();
        let replicas = rule.replicas.max(own.unwrap_or(0));
        let missing = self.missing.lock();
        if replicas == 0 && missing.commits == 0 {
            return None;
        }
        Some(AckStatus {
            replicas,
            degraded: missing.since.is_some(),
            missed: missing.commits,
            last_error: missing.why.clone(),
        })
    }

    /// The connection is closed.
    pub fn forget(&self, name: usize) {
        self.own.lock().remove(&name);
    }
}

/// The settings of a URI that hold for all connections.
pub(super) fn shared(uri: Vec<(String, String)>) -> Vec<(String, String)> {
    uri.into_iter()
        .filter(|(key, _)| !OWN.contains(&key.as_str()))
        .collect()
}

impl Database {
    /// Remembers what the connection `name`, opened with these URI parameters, wants for itself.
    ///
    /// # Errors
    /// As for checking settings.
    pub fn set_own_ack(&self, name: usize, uri: &[(String, String)]) -> Result<()> {
        if uri.iter().any(|(key, _)| OWN.contains(&key.as_str())) {
            let rule = AckRule::of(&Config::for_database(&self.path, uri)?);
            self.acks.own.lock().insert(name, rule);
        }
        Ok(())
    }

    fn ack_rule(&self, name: usize) -> AckRule {
        let own = self.acks.own.lock().get(&name).copied();
        own.unwrap_or_else(|| AckRule::of(&self.config.lock()))
    }

    /// Waits until the replicas hold what the connection `name` has just committed, as its settings say.
    ///
    /// # Errors
    /// They do not, and the connection wants to be told: the commit stands all the same.
    pub fn acknowledge(&self, name: usize) -> Result<()> {
        let rule = self.ack_rule(name);
        if rule.replicas == 0 {
            return Ok(());
        }
        // Before that there is nothing to acknowledge.
        self.shared.wait_adopted(rule.timeout);
        self.shared.settle();
        let target = self.shared.published().1.pos;
        let recorded = self.shared.pausing().is_none() && self.shared.is_verified();
        let shipper = self.replication.current();
        if let (true, Some(shipper)) = (recorded, &shipper) {
            let given_up = self.acks.missing.lock().since;
            let held = |pos: Pos, patience| {
                shipper.wait_acknowledged(pos, rule.replicas as usize, patience)
            };
            // Whom they do not answer any more does not wait for each of his commits, until they have caught up.
            let waits = match (given_up, rule.policy) {
                (Some(pos), AckPolicy::Degrade) => held(pos, Duration::ZERO),
                _ => true,
            };
            if waits && held(target, rule.timeout) {
                self.acknowledged();
                return Ok(());
            }
        }
        let why = match (recorded, shipper) {
            (false, _) => "the log does not hold it".to_owned(),
            (true, None) => "no replica is in the settings any more".to_owned(),
            (true, Some(shipper)) => shipper
                .status()
                .into_iter()
                .find(|replica| !replica.last_error.is_empty())
                .map_or("the replicas are too slow".to_owned(), |replica| {
                    replica.last_error
                }),
        };
        let error = Error::new(
            ErrorKind::Network,
            format_args!(
                "transaction {} is committed here, but not acknowledged by {} of the replicas within {} ms: {why}",
                target.txid,
                rule.replicas,
                rule.timeout.as_millis()
            ),
        );
        self.not_acknowledged(target, &error);
        match rule.policy {
            AckPolicy::Degrade => Ok(()),
            AckPolicy::Error => Err(error),
        }
    }

    fn acknowledged(&self) {
        let mut missing = self.acks.missing.lock();
        if missing.since.take().is_some() {
            missing.why.clear();
            drop(missing);
            (self.replication.report)(&format!(
                "mycelite: {}: the replicas acknowledge commits again",
                self.path.display()
            ));
        }
    }

    fn not_acknowledged(&self, target: Pos, error: &Error) {
        let mut missing = self.acks.missing.lock();
        missing.commits += 1;
        missing.why = error.to_string();
        let news = missing.since.is_none();
        missing.since.get_or_insert(target);
        drop(missing);
        if news {
            (self.replication.report)(&format!("mycelite: {}: {error}", self.path.display()));
        }
    }
}
