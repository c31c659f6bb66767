//! An embedded replica: the log that is read is filled by a follower in this process, or in another that follows already.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::archives::{self, Shelf};
use crate::access::Access;
use crate::database::log_dir;
use crate::error::{Error, ErrorKind, Result};
use crate::proto::ReplicaUrl;
use crate::status::FollowStatus;
use crate::upstream::Upstream;

/// Pause between two looks while there is no copy here yet.
const LOOK: Duration = Duration::from_millis(5);

/// What is followed, and how.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The database on its server.
    pub url: ReplicaUrl,
    /// What is shown to that server, and by what it is known.
    pub access: Access,
    /// How long a read waits while there is no copy here yet.
    pub timeout: Duration,
}

/// Who brings records into the log. Ends with the last connection that has it.
pub trait Feed: Send + Sync {
    /// Sees to it that records come. Returns at once.
    fn start(&self);
    /// How that goes. The state `elsewhere` says that another process follows.
    fn status(&self) -> FollowStatus;
}

/// How a connection of the database at a path gets its feed.
pub type Join = fn(&Path, &Origin) -> Result<Arc<dyn Feed>>;

/// A feed, and what is waited for at the beginning.
pub(super) struct Source {
    feed: Arc<dyn Feed>,
    origin: Origin,
    dir: PathBuf,
}

impl Source {
    pub fn new(path: &Path, origin: Origin, join: Join) -> Result<Source> {
        Ok(Source {
            feed: join(path, &origin)?,
            origin,
            dir: log_dir(path),
        })
    }

    /// Sees to it that records come.
    pub fn start(&self) {
        self.feed.start();
    }

    /// How following goes.
    pub fn status(&self) -> FollowStatus {
        self.feed.status()
    }

    /// The log, once it holds a copy of this source's database and of no other: only whoever has asked the server notes its URL.
    pub fn log(&self) -> Option<Arc<Shelf>> {
        Upstream::read(&self.dir).filter(|upstream| upstream.url == self.origin.url.to_string())?;
        // While the log is being made it cannot be read.
        let shelf = archives::open(&self.dir).ok()?;
        shelf.place().ok()?.txid.map(|_| shelf)
    }

    /// Waits for [`Source::log`]. Where there is a copy already, that needs no server.
    ///
    /// # Errors
    /// There is none in time, or will be none until somebody changes something; says why.
    pub fn wait(&self) -> Result<Arc<Shelf>> {
        self.start();
        let deadline = Instant::now() + self.origin.timeout;
        loop {
            if let Some(shelf) = self.log() {
                return Ok(shelf);
            }
            let status = self.status();
            let late = Instant::now() >= deadline;
            if late
                || matches!(status.state.as_str(), "refused" | "diverged")
                || self.is_taken(&status)
            {
                return Err(self.nothing_here(&status));
            }
            std::thread::sleep(LOOK.min(self.origin.timeout));
        }
    }

    /// Another process follows something else into this file.
    fn is_taken(&self, status: &FollowStatus) -> bool {
        status.state == "elsewhere"
            && Upstream::read(&self.dir).is_some_and(|upstream| {
                !upstream.url.is_empty() && upstream.url != self.origin.url.to_string()
            })
    }

    fn nothing_here(&self, status: &FollowStatus) -> Error {
        let other = Upstream::read(&self.dir)
            .map(|upstream| upstream.url)
            .filter(|url| !url.is_empty() && *url != self.origin.url.to_string());
        let what = match other {
            Some(other) => format!(
                "this is a copy of {other}, not known to be one of {}",
                self.origin.url
            ),
            None => format!("there is no copy of {} here yet", self.origin.url),
        };
        let why = match status.last_error.as_str() {
            "" if status.state == "bootstrapping" => {
                format!("it is coming, {} bytes so far: try again", status.bytes)
            }
            "" => format!("following it is {}: try again", status.state),
            error => error.to_owned(),
        };
        Error::new(ErrorKind::Network, what).hint(why)
    }
}
