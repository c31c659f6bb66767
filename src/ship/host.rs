//! The way to one server: an HTTP client whose connections all databases of the process share that ship there, and turns, so
//! that many databases which wake at once do not take all of a server's connections.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::lock::Mutex;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::causes::root;
use super::client::Failure;
use super::session::jitter;
use crate::access::Access;
use crate::error::{Error, ErrorKind, Result};
use crate::proto::ReplicaUrl;

/// Requests to one server that a process has under way at once, at most. It may have so many connections again that are being
/// made in vain, and those that are kept: less than half of what a server grants to an address.
pub(super) const TURNS_MAX: usize = 32;
/// Connections to one server that are kept for the next request.
const IDLE_MAX: usize = 16;
/// Whoever is told that the server has no room keeps his turn for so long, so that nobody knocks in his place.
const CROWDED_PAUSE: Duration = Duration::from_millis(500);
/// When a server had no room, a further request at once is tried this long after, and at most.
const GROW_AFTER: Duration = Duration::from_secs(5);
/// Longest wait for a connection, whatever the request time-out says.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(5);
/// A pooled connection is dropped after this; well below what servers grant to idle ones.
const POOL_IDLE: Duration = Duration::from_secs(15);

/// Connections, and what is shown on them.
#[derive(Clone)]
pub(super) struct Line {
    pub http: reqwest::Client,
    authorization: Option<HeaderValue>,
}

impl Line {
    pub fn send(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.authorization {
            Some(value) => request.header(AUTHORIZATION, value),
            None => request,
        }
    }
}

/// One server, as one kind of client sees it. Lives inside a tokio runtime.
pub(super) struct Host {
    is_encrypted: bool,
    access: Access,
    connect_timeout: Duration,
    idle_max: usize,
    // None: to be made anew, from the files as they are then.
    line: Mutex<Option<Line>>,
    turns: Option<Turns>,
}

impl Host {
    /// For a client of its own, which has one conversation at a time.
    pub fn of_one(url: &ReplicaUrl, access: &Access, timeout: Duration) -> Arc<Host> {
        Arc::new(Host::new(url, access, timeout, 1, None))
    }

    fn new(
        url: &ReplicaUrl,
        access: &Access,
        timeout: Duration,
        idle_max: usize,
        turns: Option<Turns>,
    ) -> Host {
        Host {
            is_encrypted: url.is_encrypted(),
            access: access.clone(),
            connect_timeout: timeout.min(CONNECT_TIMEOUT_MAX),
            idle_max,
            line: Mutex::new(None),
            turns,
        }
    }

    /// The line; connects, and reads the files of the access, at the first request. `url` is for people.
    pub fn line(&self, url: &ReplicaUrl) -> Result<Line> {
        let mut line = self.line.lock();
        match &*line {
            Some(line) => Ok(line.clone()),
            None => Ok(line.insert(self.make_line(url)?).clone()),
        }
    }

    fn make_line(&self, url: &ReplicaUrl) -> Result<Line> {
        let http = reqwest::Client::builder()
            // The URL says where records go; a proxy from the environment of some host application must not change that.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .http1_only()
            .tls_backend_preconfigured(self.access.tls.client(self.is_encrypted)?)
            .tcp_nodelay(true)
            .connect_timeout(self.connect_timeout)
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(self.idle_max)
            .user_agent(concat!("mycelite/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| {
                Error::new(
                    ErrorKind::Network,
                    format_args!("cannot set up HTTP: {}", root(&e)),
                )
                .at(url)
            })?;
        let authorization = match self.access.token()? {
            None => None,
            Some(token) => {
                let text = format!("Bearer {}", token.reveal());
                let mut value = HeaderValue::from_str(&text).map_err(|_| {
                    Error::new(ErrorKind::Network, "the token cannot be sent").at(url)
                })?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Line {
            http,
            authorization,
        })
    }

    /// Whoever is refused may have been given a new token or certificate since: the next request reads them anew.
    pub fn renew(&self) {
        *self.line.lock() = None;
    }

    /// Waits for a turn to ask something, in the order in which it was asked for; it ends when that is dropped.
    pub async fn turn(&self) -> Turn<'_> {
        let Some(turns) = &self.turns else {
            return Turn(None);
        };
        // Never closed; if it were, nobody would have to wait.
        let permit = turns.free.acquire().await.ok();
        Turn(permit.map(|permit| (turns, permit)))
    }

    fn is_of(&self, access: &Access, timeout: Duration) -> bool {
        self.connect_timeout == timeout.min(CONNECT_TIMEOUT_MAX) && self.access == *access
    }
}

/// How many may ask at once: fewer after the server had no room, then slowly more again.
struct Turns {
    free: Semaphore,
    /// Those that are there, taken or not.
    count: AtomicUsize,
    changed: Mutex<Option<Instant>>,
}

impl Turns {
    fn new() -> Turns {
        Turns {
            free: Semaphore::new(TURNS_MAX),
            count: AtomicUsize::new(TURNS_MAX),
            changed: Mutex::new(None),
        }
    }

    /// One more, if the last change was long ago.
    fn grow(&self) {
        if self.count.load(Ordering::Relaxed) >= TURNS_MAX {
            return;
        }
        let mut changed = self.changed.lock();
        if changed.is_none_or(|at| at.elapsed() >= GROW_AFTER) {
            *changed = Some(Instant::now());
            self.count.fetch_add(1, Ordering::Relaxed);
            self.free.add_permits(1);
        }
    }
}

/// The permission to ask a server one thing.
pub(super) struct Turn<'a>(Option<(&'a Turns, SemaphorePermit<'a>)>);

impl Turn<'_> {
    /// Ends the turn with what came of it, and learns from that how many a server has room for.
    pub async fn end<T>(
        self,
        result: std::result::Result<T, Failure>,
    ) -> std::result::Result<T, Failure> {
        let Some((turns, permit)) = self.0 else {
            return result;
        };
        match &result {
            Ok(_) => turns.grow(),
            Err(failure) if failure.crowded => {
                tokio::time::sleep(jitter(CROWDED_PAUSE)).await;
                *turns.changed.lock() = Some(Instant::now());
                if turns.count.load(Ordering::Relaxed) > 1 {
                    turns.count.fetch_sub(1, Ordering::Relaxed);
                    permit.forget();
                }
            }
            Err(_) => {}
        }
        result
    }
}

/// By scheme, host and port; more than one where databases show different things there.
type Known = HashMap<(bool, String, u16), Vec<Weak<Host>>>;

/// The servers that a process ships to, while it does.
#[derive(Default)]
pub(super) struct Hosts(Mutex<Known>);

impl Hosts {
    /// The server of `url`, as all see it that show and wait for the same.
    pub fn get(&self, url: &ReplicaUrl, access: &Access, timeout: Duration) -> Arc<Host> {
        let mut hosts = self.0.lock();
        let place = (url.is_encrypted(), url.host().to_owned(), url.port());
        let known = match hosts.entry(place) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Vec::new()),
        };
        known.retain(|host| host.strong_count() > 0);
        let mut alive = known.iter().filter_map(Weak::upgrade);
        if let Some(host) = alive.find(|host| host.is_of(access, timeout)) {
            return host;
        }
        let turns = Some(Turns::new());
        let host = Arc::new(Host::new(url, access, timeout, IDLE_MAX, turns));
        known.push(Arc::downgrade(&host));
        host
    }
}
