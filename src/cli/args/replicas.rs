//! The verbs that look after replicas and whom they trust.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use mycelite::server::Limits;

/// `mycelite promote`
#[derive(Debug, Args)]
pub struct PromoteArgs {
    /// The replica's file
    #[arg(value_name = "DB")]
    pub db: PathBuf,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Below the help of `mycelite promote`.
pub const PROMOTE_HELP: &str = "\
No server or follower may keep the file meanwhile. Everything that the replica has got stays; its next timeline is one that the old
primary cannot reach, and begins with a record that changes nothing. A server refuses pushes to what was promoted. The old
primary becomes a replica by mycelite follow --rejoin, which parks what it alone has.

Examples:
  mycelite promote /srv/replicas/app.db
  mycelite follow http://new:7878/app /srv/old/app.db --rejoin          on the machine of the old primary
JSON: {database, from: {timeline, txid, checksum}, at: {timeline, txid, checksum}}.";

/// `mycelite parked`
#[derive(Debug, Args)]
pub struct ParkedArgs {
    /// Database file or log directory
    #[arg(value_name = "SOURCE")]
    pub source: PathBuf,
    /// Delete the parked tail of this name, for good
    #[arg(long, value_name = "NAME")]
    pub remove: Option<String>,
    /// One JSON array
    #[arg(long)]
    pub json: bool,
}

/// Below the help of `mycelite parked`.
pub const PARKED_HELP: &str = "\
A parked tail holds records that a newer timeline does not have: what a primary lost in a power cut, or had alone when another took
over. Nothing deletes one but this command. mycelite log APP.db-mycelite/parked/NAME reads it.

Examples:
  mycelite parked app.db
  mycelite parked app.db --remove 1-42-57-1763800000
JSON: [{name, timeline, first_txid, last_txid, bytes}].";

/// `mycelite token`
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// What the token permits: read, append, admin, several separated by commas
    #[arg(long, value_name = "SCOPES", default_value = "read,append")]
    pub scope: String,
    /// Only for these databases, separated by commas [default: all, and the server as a whole]
    #[arg(long, value_name = "NAMES")]
    pub db: Option<String>,
    /// Append the line to this token file of a server, which is made if it is not there
    #[arg(long, value_name = "FILE")]
    pub add: Option<PathBuf>,
    /// Do not make a token: read one from standard input
    #[arg(long)]
    pub stdin: bool,
}

/// Below the help of `mycelite token`.
pub const TOKEN_HELP: &str = "\
The token goes to standard output and nowhere else; the server's line holds its SHA-256 only. Without --add the line is shown on
standard error. A server reads its token file at the start and at each SIGHUP. To take a token away, remove its line.

Examples:
  (umask 077; mycelite token --scope append --db app --add /etc/mycelite/tokens > app.token)
  mycelite token --stdin --scope read < old.token";

/// How records are applied to a replica's file while others read it.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Applying")]
pub struct ApplyArgs {
    /// Report an error when nothing moves for so many seconds although the server that is followed has more; follow --once gives
    /// up then
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub stall_after: u64,
    /// How long to wait for locks that others hold on a replica's file, before other databases have their turn and it is tried
    /// again; trying never ends
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub busy_timeout: u64,
    /// How large a replica's WAL may become, in MiB, while a reader holds on to an old state; beyond, applying waits for that
    /// reader
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub wal_max: u64,
}

impl ApplyArgs {
    /// Writes them into the limits of a server or follower.
    pub fn set(&self, limits: &mut Limits) {
        limits.stall_after = Duration::from_secs(self.stall_after);
        limits.busy_timeout = Duration::from_millis(self.busy_timeout);
        limits.wal_bytes_max = self.wal_max << 20;
    }
}
