//! The moment that a command line names.

use clap::Args;
use mycelite::error::Result;
use mycelite::moment::{Moment, Named};

/// At most one of these names a moment; none means the last transaction.
#[derive(Debug, Default, Args)]
pub struct WhenArgs {
    /// The state after this transaction [default: the last one]
    #[arg(long, value_name = "N", group = "when")]
    pub txid: Option<u64>,
    /// The last state at this time (UTC): 2026-11-20T10:00:00Z
    #[arg(long, value_name = "TIME", group = "when")]
    pub at: Option<String>,
    /// The last state this long ago: 90s, 5m, 2h, 1d
    #[arg(long, value_name = "SPAN", group = "when")]
    pub ago: Option<String>,
    /// The state that has this bookmark
    #[arg(long, value_name = "NAME", group = "when")]
    pub bookmark: Option<String>,
}

impl WhenArgs {
    /// The moment.
    pub fn moment(&self) -> Result<Moment> {
        named(self.txid, &self.at, &self.ago, &self.bookmark)
    }
}

/// The moment that at most one of these flags names.
pub fn named(
    txid: Option<u64>,
    at: &Option<String>,
    ago: &Option<String>,
    bookmark: &Option<String>,
) -> Result<Moment> {
    let txid = txid.map(|txid| txid.to_string());
    let named = Named {
        txid: txid.as_deref(),
        at: at.as_deref(),
        ago: ago.as_deref(),
        bookmark: bookmark.as_deref(),
    };
    Moment::parse("--", named)
}
