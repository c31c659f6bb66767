//! The command line: every verb, flag and help text.

mod replicas;

use std::path::PathBuf;

use super::compact::{COMPACT_HELP, CompactArgs, SNAPSHOT_HELP, SnapshotArgs};
use clap::{ArgGroup, Args, Parser, Subcommand};
pub use replicas::{ApplyArgs, ParkedArgs, PromoteArgs, TokenArgs};
use replicas::{PARKED_HELP, PROMOTE_HELP, TOKEN_HELP};

use super::when::WhenArgs;

/// Replicates SQLite databases physically, commit by commit.
///
/// An application loads the extension (libmycelite), opens its database as always, and every commit becomes a record in
/// a log beside the database file. The log is sent to replica servers, which keep bit-identical, plain SQLite files.
/// This program runs the servers and looks after the logs.
#[derive(Debug, Parser)]
#[command(name = "mycelite", version, arg_required_else_help = true, after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
Start here:
  mycelite demo                                  the whole thing on this machine, in seconds
  mycelite serve --data /srv/replicas            a replica server on http://127.0.0.1:7878
  mycelite follow http://127.0.0.1:7878/app copy.db      a live copy of a database that a server has

In the application (any SQLite from 3.31):
  .load ./libmycelite
  .open 'file:app.db?vfs=mycelite_writer&replica=http://127.0.0.1:7878/app'
  .open 'file:copy.db?vfs=mycelite_reader&source=http://127.0.0.1:7878/app'      a live copy without a daemon
  ATTACH 'file:app.db?vfs=mycelite_reader&ago=5m' AS before;     any past state, read-only (or &txid=, &at=, &bookmark=)

SOURCE is a database file, its log directory (app.db-mycelite), or a server's http://HOST:PORT/NAME.
Exit codes: 0 done, 1 the answer is no, 2 wrong usage, 3 input, output or network.
`mycelite push --help` lists the settings (replica, token_file, log_sync, ...).";

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the main job on this machine, in front of your eyes: two replicas, real data, a crash, and a byte-for-byte check
    #[command(after_help = DEMO_HELP)]
    Demo(DemoArgs),
    /// Keep replicas of databases and serve them over HTTP
    #[command(after_help = SERVE_HELP)]
    Serve(ServeArgs),
    /// Keep a live copy of a served database: pull its records as they come
    #[command(after_help = FOLLOW_HELP)]
    Follow(FollowArgs),
    /// Send a database's log to its replicas now, and wait until they have it
    #[command(after_help = PUSH_HELP, after_long_help = push_long_help())]
    Push(PushArgs),
    /// Write a recorded state of a database to a new file
    #[command(after_help = RESTORE_HELP)]
    Restore(RestoreArgs),
    /// Name a recorded transaction, so that it is found again and never compacted away
    #[command(after_help = BOOKMARK_HELP)]
    Bookmark(BookmarkArgs),
    /// Seal, compact and drop what the settings say, now; mycelite serve and the writing process do it by themselves
    #[command(after_help = COMPACT_HELP)]
    Compact(CompactArgs),
    /// Put a snapshot into the log: every page as of one transaction, so that later moments are read without what is older
    #[command(after_help = SNAPSHOT_HELP)]
    Snapshot(SnapshotArgs),
    /// Show what differs between two moments, row by row
    #[command(after_help = DIFF_HELP)]
    Diff(DiffArgs),
    /// Undo without loss: write an old state as a new transaction
    #[command(after_help = REVERT_HELP)]
    Revert(RevertArgs),
    /// List the recorded transactions
    #[command(after_help = LOG_HELP)]
    Log(LogArgs),
    /// Show where a database and its replicas are
    #[command(after_help = STATUS_HELP)]
    Status(StatusArgs),
    /// Prove the log, and with --deep the database, from the bytes on disk
    #[command(after_help = VERIFY_HELP)]
    Verify(VerifyArgs),
    /// Show one recorded transaction, page by page
    #[command(after_help = DUMP_HELP)]
    Dump(DumpArgs),
    /// Make a replica the primary: applications may write to it from then on
    #[command(after_help = PROMOTE_HELP)]
    Promote(PromoteArgs),
    /// List what was parked when new timelines began, or take one away
    #[command(after_help = PARKED_HELP)]
    Parked(ParkedArgs),
    /// Make a token for a server's clients, and the line for the server's token file
    #[command(after_help = TOKEN_HELP)]
    Token(TokenArgs),
}

/// What is shown to a server, and by what it is known.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "To reach a server")]
pub struct AccessArgs {
    /// File with the token for the server [default: MYCELITE_TOKEN, or token_file in the settings]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// For https: file (PEM) of the certificates that are trusted to sign the server's [default: tls_ca in the settings, else
    /// those of the system]
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// For https: file (PEM) of the certificate to show to the server [default: tls_cert in the settings]
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// For https: file (PEM) of that certificate's private key [default: tls_key in the settings, else the certificate's file]
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line: timestamp, level, fields.message.
    Json,
}

/// `mycelite demo`
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// How many packages of this machine's Debian package index to load (generated rows where there is no index)
    #[arg(long, value_name = "N", default_value_t = 6000, value_parser = clap::value_parser!(u32).range(100..=10_000_000))]
    pub packages: u32,
    /// Work in this new or empty directory and leave everything there
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
}

const DEMO_HELP: &str = "\
It starts two servers on the loopback interface, loads packages into a primary through SQLite and the extension (first in
DELETE, then in WAL journal mode), kills one server with SIGKILL and brings it back, reads both replicas with plain SQLite
all the while, and compares every byte at the end. Exit code 1 if anything differs. Nothing is left behind without --keep.

Examples:
  mycelite demo
  mycelite demo --packages 60000 --keep /tmp/look";

/// `mycelite serve`
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address to listen on; port 0 takes a free one. Without --token-file only a loopback address is accepted
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7878")]
    pub listen: String,
    /// Directory that holds the replicas: NAME.db and its log NAME.db-mycelite. Created if only itself is missing
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub data: PathBuf,
    /// File with one bearer token a line, what it permits and for which databases: TOKEN [read,append,admin] [db=NAME,NAME]; see
    /// mycelite token
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Serve over TLS: file (PEM) of the certificate, followed by those that lead to its CA
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// File (PEM) of the certificate's private key [default: the file of the certificate]
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Let in only clients with a certificate that one of these (PEM) has signed; a token is wanted all the same
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,
    /// Longest accepted request body, in MiB as it travels (compressed) [default: 17408]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub body_max: Option<u64>,
    /// Longest accepted record, in MiB; the first record of an adopted database holds all of it [default: 16384]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub record_max: Option<u64>,
    /// Largest database, in MiB [default: 1048576]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=268_435_456))]
    pub database_max: Option<u64>,
    /// How many databases are kept at most [default: 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub databases_max: Option<u64>,
    /// How many connections are open at once [default: 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub connections_max: Option<u64>,
    /// How many of them one address may have; 0: all [default: three quarters]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=100_000))]
    pub connections_per_address_max: Option<u64>,
    /// How many requests a second one client may make on average; 0 does not count them [default: 20000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub requests_max: Option<u32>,
    /// How long a client may stand still while it sends a request or reads an answer [default: 30; for a head: 60]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub client_timeout: Option<u64>,
    /// Pull the database NAME from another server instead of having it pushed here; may be given several times
    #[arg(long, value_name = "NAME=URL")]
    pub follow: Vec<String>,
    /// File with the token for those servers [default: MYCELITE_TOKEN, or token_file in the settings]
    #[arg(long, value_name = "FILE")]
    pub follow_token_file: Option<PathBuf>,
    /// For https: file (PEM) of the certificates that are trusted to sign those servers' [default: tls_ca in the settings]
    #[arg(long, value_name = "FILE")]
    pub follow_tls_ca: Option<PathBuf>,
    /// For https: file (PEM) of the certificate to show to those servers [default: tls_cert in the settings]
    #[arg(long, value_name = "FILE")]
    pub follow_tls_cert: Option<PathBuf>,
    /// For https: file (PEM) of that certificate's private key [default: tls_key, else the certificate's file]
    #[arg(long, value_name = "FILE")]
    pub follow_tls_key: Option<PathBuf>,
    /// How many followers may have a stream open at once; each is a connection, too [default: 128]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=100_000))]
    pub followers_max: Option<u64>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub apply: ApplyArgs,
    /// Log more: every request and every batch applied; twice: everything
    #[arg(long, short, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// How log lines look on standard error
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Stop when standard input ends: a server that must not outlive the program that started it
    #[arg(long, hide = true)]
    pub with_parent: bool,
}

const SERVE_HELP: &str = "\
A replica DIR/NAME.db is an ordinary SQLite file: read it with any SQLite at any time, also while it is being updated.
The line `listening on http://ADDRESS:PORT` (https:// with TLS) on standard output says that the server is ready. Ctrl-C or
SIGTERM stops it. SIGHUP reads the token file and the TLS files anew; if one is bad, what holds goes on to hold.

Examples:
  mycelite serve --data /srv/replicas
  mycelite serve --data /srv/replicas --listen 0.0.0.0:7878 --token-file /etc/mycelite/tokens
  mycelite serve --data /srv/replicas --listen 0.0.0.0:7878 --token-file tokens --tls-cert server.pem --tls-key server.key
  mycelite serve --data /srv/mirror --follow app=http://first:7878/app          pulls, and serves in turn
  mycelite token --add /etc/mycelite/tokens > app.token    and in the application token_file=app.token";

/// `mycelite follow`
#[derive(Debug, Args)]
pub struct FollowArgs {
    /// The database on its server: http://HOST:PORT/NAME, or https://...
    pub url: String,
    /// The file to keep; its log is kept in DB-mycelite
    #[arg(value_name = "DB")]
    pub db: PathBuf,
    /// DB was the primary until another took over: make it a replica; what it alone has is parked beside its log
    #[arg(long)]
    pub rejoin: bool,
    /// Catch up with what the server has now, and end
    #[arg(long)]
    pub once: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub access: AccessArgs,
    /// Serve the copy in turn on this address, under the same name
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// With --listen: file with the tokens to accept, as for mycelite serve --token-file
    #[arg(long, value_name = "FILE", requires = "listen")]
    pub listen_token_file: Option<PathBuf>,
    /// With --listen: serve over TLS with this certificate, as for mycelite serve --tls-cert
    #[arg(long, value_name = "FILE", requires = "listen")]
    pub listen_tls_cert: Option<PathBuf>,
    /// With --listen-tls-cert: the private key, as for mycelite serve --tls-key
    #[arg(long, value_name = "FILE", requires = "listen_tls_cert")]
    pub listen_tls_key: Option<PathBuf>,
    /// With --listen-tls-cert: ask clients for a certificate, as for mycelite serve --tls-client-ca
    #[arg(long, value_name = "FILE", requires = "listen_tls_cert")]
    pub listen_tls_client_ca: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub apply: ApplyArgs,
    /// Print the state as one JSON object a line: whenever its name changes, and each second while it moves
    #[arg(long)]
    pub json: bool,
    /// Log more, on standard error; twice: everything
    #[arg(long, short, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// How log lines look on standard error
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Stop when standard input ends: a follower that must not outlive the program that started it
    #[arg(long, hide = true)]
    pub with_parent: bool,
}

const FOLLOW_HELP: &str = "\
DB is an ordinary SQLite file: read it with any SQLite at any time, also while it is being updated, but do not write to it.
A file that is there and is no replica of that database is never touched. A lost line is picked up again where it broke, for
as long as it takes; a refusal at the first contact, or another history on the server, ends it. Ctrl-C or SIGTERM stops it.
With --once, a server that does not answer is asked five times; one that says that it is busy (it may have to seal its log and
make a snapshot first) is waited for, up to ten minutes.

Examples:
  mycelite follow http://127.0.0.1:7878/app copy.db
  mycelite follow http://127.0.0.1:7878/app copy.db --once && sqlite3 copy.db .tables
  mycelite follow http://first:7878/app app.db --token-file token --listen 127.0.0.1:7879
Exit codes: 0 stopped, or with --once: identical to what the server has; 2 wrong usage; 3 network, refused, or not a replica;
130 --once was interrupted.
JSON: {database, url, state, pos: {timeline, txid, checksum}, applied_txid, head_txid, lag_txids, lag_bytes, lag_ms, records,
bytes, last_error}; state is connecting, catching-up, following (nothing is missing), stalled, backing-off, refused, diverged
or stopped.";

/// `mycelite push`
#[derive(Debug, Args)]
pub struct PushArgs {
    /// The database file
    #[arg(value_name = "DB")]
    pub db: PathBuf,
    /// Send to this replica instead of those in the settings; may be given several times
    #[arg(long, value_name = "URL")]
    pub to: Vec<String>,
    /// Print the replicas' state as one JSON array
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub access: AccessArgs,
}

fn push_long_help() -> String {
    format!("{PUSH_HELP}\n\n{}", mycelite::config::help_text())
}

const PUSH_HELP: &str = "\
The database is opened as an application would: what a crash or a program without the extension left behind is recorded
first, and a database that never had a log gets one. Then everything that a replica does not hold yet is sent.

Examples:
  mycelite push app.db
  mycelite push app.db --to http://127.0.0.1:7878/app
JSON: an array of {url, state, acked_txid, lag_txids, lag_bytes, lag_ms, last_error}.";

/// `mycelite restore`
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Database file, log directory or server URL
    pub source: String,
    /// The file to write
    #[arg(long, short, value_name = "OUT")]
    pub output: PathBuf,
    /// Which state
    #[command(flatten)]
    pub when: WhenArgs,
    /// Replace OUT if it exists and nobody uses it
    #[arg(long)]
    pub force: bool,
    /// Write nothing; say what would be restored, and what would be read for it
    #[arg(long)]
    pub dry_run: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub access: AccessArgs,
}

const RESTORE_HELP: &str = "\
The state is built in a temporary file beside OUT, checked against the checksum that its transaction recorded, synced, and
only then renamed to OUT. Without --force an existing file is never touched. What came from a server before the line was cut, or
this was killed, is kept beside OUT: the same command goes on there, within an hour.

Examples:
  mycelite restore app.db -o yesterday.db --ago 1d
  mycelite restore app.db-mycelite -o before.db --txid 41
  mycelite restore app.db -o good.db --bookmark 'before the migration' --dry-run
  mycelite restore http://127.0.0.1:7878/app -o copy.db
JSON: {source, output, txid, timeline, time, time_us, page_size, page_count, bytes, checksum, reads: [{file, bytes}], dry_run}.";

/// `mycelite bookmark`
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args(["name", "list", "delete"])))]
pub struct BookmarkArgs {
    /// Database file or log directory
    pub source: String,
    /// The name to give: one line of up to 128 bytes
    pub name: Option<String>,
    /// Which transaction gets it
    #[command(flatten)]
    pub when: WhenArgs,
    /// List the bookmarks
    #[arg(long, conflicts_with = "when")]
    pub list: bool,
    /// Forget this bookmark; the history stays, until it is compacted
    #[arg(long, value_name = "NAME", conflicts_with = "when")]
    pub delete: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

const BOOKMARK_HELP: &str = "\
A bookmark is kept beside the log (in app.db-mycelite/bookmarks), is not replicated, and holds the transaction's whole position,
so that it never means another transaction of the same number on a newer timeline. In SQL: SELECT mycelite_bookmark('NAME').

Examples:
  mycelite bookmark app.db 'before the migration'
  mycelite bookmark app.db 'last good' --ago 2h
  mycelite bookmark app.db --list
  mycelite restore app.db -o good.db --bookmark 'last good'
  ATTACH 'file:app.db?vfs=mycelite_reader&bookmark=last%20good' AS good;       in SQL
JSON: {name, txid, timeline, checksum, time, created}.";

/// `mycelite diff`
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Database file or log directory
    pub source: String,
    /// The moment before: a transaction's number, a time, ago:5m or bookmark:NAME
    #[arg(long, value_name = "MOMENT")]
    pub from: String,
    /// The moment after, likewise; live is the last transaction
    #[arg(long, value_name = "MOMENT", default_value = "live")]
    pub to: String,
    /// Only this table
    #[arg(long, value_name = "NAME")]
    pub table: Option<String>,
    /// One JSON object a line
    #[arg(long, conflicts_with = "sql")]
    pub json: bool,
    /// SQL that, run on the state before, gives the content of the state after
    #[arg(long)]
    pub sql: bool,
}

const DIFF_HELP: &str = "\
Changes of the schema come first, then those of the rows: + inserted, - deleted, ~ updated, each with its key. Only what changed is
read, so this is fast in a large database. Virtual tables (full-text, R-Tree) show as the tables that they are made of. --sql
leaves out what ANALYZE counted.

Examples:
  mycelite diff app.db --from ago:5m
  mycelite diff app.db --from 41 --to 42 --table orders
  mycelite diff app.db --from live --to 'bookmark:last good' --sql > undo.sql
JSON: {op: insert, update or delete, table, key: {COLUMN: VALUE}, old: {COLUMN: VALUE}, new: {COLUMN: VALUE}} a row, and before
them {op: schema, kind, name, old, new}. A blob is {blob: HEX}, text that is not valid {text: HEX}.";

/// `mycelite revert`
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("moment").required(true).args(["to", "at", "ago", "bookmark"])))]
pub struct RevertArgs {
    /// The database file
    #[arg(value_name = "DB")]
    pub db: PathBuf,
    /// The state after this transaction; also a time, ago:5m or bookmark:NAME
    #[arg(long, value_name = "MOMENT")]
    pub to: Option<String>,
    /// The last state at this time (UTC): 2026-11-20T10:00:00Z
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
    /// The last state this long ago: 90s, 5m, 2h, 1d
    #[arg(long, value_name = "SPAN")]
    pub ago: Option<String>,
    /// The state that has this bookmark
    #[arg(long, value_name = "NAME")]
    pub bookmark: Option<String>,
    /// Only this table, with its indexes and triggers
    #[arg(long, value_name = "NAME")]
    pub table: Option<String>,
    /// Change nothing; show the rows that would change
    #[arg(long)]
    pub dry_run: bool,
}

const REVERT_HELP: &str = "\
The database may be in use: the old state is written through SQLite as one transaction, and the application sees it when its next
read begins. What it undoes is recorded like everything else, so a revert can be reverted. Nothing is changed if the database
is busy for more than five seconds.

Examples:
  mycelite revert app.db --to 41 --dry-run
  mycelite revert app.db --bookmark 'before the migration'
  mycelite revert app.db --ago 10m --table orders";

/// `mycelite log`
#[derive(Debug, Args)]
pub struct LogArgs {
    /// Database file, log directory or server URL
    pub source: String,
    /// Only the newest N transactions
    #[arg(long, visible_alias = "last", value_name = "N")]
    pub limit: Option<u64>,
    /// Only those recorded at this time or later: a time, or how long ago (2h)
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only those recorded at this time or earlier: a time, or how long ago (30m)
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Draw the chart and print the summary also where standard output is no terminal
    #[arg(long, conflicts_with = "json")]
    pub chart: bool,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub access: AccessArgs,
}

const LOG_HELP: &str = "\
Columns: transaction number, time (UTC), pages changed, bytes in the log, pages of the database, checksum of the whole
database after it, timeline, and what is special (adopt: first content of a database that had data; rebase: a difference
that was found by comparing, not one transaction; begins: the first one of a timeline, after a power cut on the primary).
A bookmark follows in quotes. On a terminal a chart of the bytes over time and a summary come last.
Lines `parked` at the end name what this replica had and the primary had lost then; each is a log in its own directory.

Examples:
  mycelite log app.db --last 20
  mycelite log app.db --since 2h --chart
  mycelite log app.db --json | jq .time
JSON: {txid, time, time_us, timeline, begins_timeline, pages, bytes, page_size, db_pages, checksum, pre_checksum, flags,
bookmarks: [NAME] if any} a line; and after them {parked: {name, timeline, first_txid, last_txid, bytes}} for each parked tail.";

/// `mycelite status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Database file, log directory or server URL
    pub source: String,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub access: AccessArgs,
}

const STATUS_HELP: &str = "\
For a database the replicas in its settings are asked where they are.

Examples:
  mycelite status app.db
  mycelite status http://127.0.0.1:7878/app --json
JSON: {database, id, pos: {timeline, txid, checksum}, page_size, page_count, log_bytes, state, last_error, replicas: [{url,
state, acked_txid, lag_txids, lag_bytes, lag_ms, last_error}], parked: [{name, timeline, first_txid, last_txid, bytes}] if
any}; a server's own answer for a URL.";

/// `mycelite verify`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Database file, log directory or server URL
    pub source: String,
    /// Replay the whole log and compare the result with the database, byte for byte
    #[arg(long)]
    pub deep: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub access: AccessArgs,
}

const VERIFY_HELP: &str = "\
Without --deep: every record's hashes, and that each record continues the one before it. With --deep also: every record's
checksum of the whole database while replaying, and the database file itself (with its write-ahead log) against the
replayed pages. The database may be in use meanwhile. Exit code 1 and a list of what is wrong if the answer is no.

Examples:
  mycelite verify app.db --deep
  mycelite verify http://127.0.0.1:7878/app --deep
JSON: {source, ok, deep, records, bytes, first_txid, last_txid, checksum, problems: [TEXT]}.";

/// `mycelite dump`
#[derive(Debug, Args)]
pub struct DumpArgs {
    /// Database file, log directory or server URL
    pub source: String,
    /// The transaction to show
    #[arg(long, value_name = "N")]
    pub txid: u64,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub access: AccessArgs,
}

const DUMP_HELP: &str = "\
The header field by field, then each page: how it is stored and which byte ranges change. Ranges of up to 32 bytes are shown
in hexadecimal.

Examples:
  mycelite dump app.db --txid 41
JSON: the fields of `log` and {segment, offset, change_counter, wal: {salt, frame, checksum}, patches: [{pgno, kind, bytes,
ranges: [{offset, length, hex}]}]}; hex only for ranges of up to 32 bytes.";
