//! The HTTP side of shipping: one request at a time to one replica, every answer judged, every failure one clear line.

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mycelite_journal::{DatabaseId, Pos, Txid};
use reqwest::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HeaderMap};
use reqwest::{Response, StatusCode};

use super::body::{Batch, RecordBody};
use super::causes::{chain, io_kind, root};
use super::host::{Host, Line};
use crate::access::{Access, TlsFailure};
use crate::error::{Error, ErrorKind};
use crate::proto::{
    ErrorReply, HANDSHAKE_BYTES_MAX, HEADER_AFTER, HEADER_DATABASE, HEADER_PROTOCOL, Handshake,
    JSON_BYTES_MAX, ReplicaUrl, TYPE_HANDSHAKE, TYPE_RECORDS, excerpt, parse_pos_status,
};
use crate::status::PosStatus;

/// The rate at which a server at least makes received records durable; extends the wait for its answer.
const DURABLE_BYTES_PER_SECOND_MIN: u64 = 16 * 1024 * 1024;

/// Why a request did not do what it should, and what that means for the next one.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// One line for people.
    pub error: Error,
    /// How to go on.
    pub kind: FailureKind,
    /// Where the server said it stands, if it did.
    pub pos: Option<Pos>,
    /// The HTTP status of its answer; 0 where there was none.
    pub status: u16,
    /// The server has no room for so many at once.
    pub crowded: bool,
    /// The server is alive, and says that it has no time for this just now.
    pub busy: bool,
}

/// How to go on after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// It may be better soon: try again with growing pauses.
    Transient,
    /// It stays so until a person changes something: try again rarely.
    Refused,
    /// The replica's history is not ours: never write to it; look again rarely.
    Diverged,
}

impl Failure {
    /// It may be better soon.
    pub fn transient(error: Error) -> Failure {
        Failure {
            error,
            kind: FailureKind::Transient,
            pos: None,
            status: 0,
            crowded: false,
            busy: false,
        }
    }

    /// It stays so until a person changes something.
    pub fn refused(error: Error) -> Failure {
        Failure {
            error,
            kind: FailureKind::Refused,
            pos: None,
            status: 0,
            crowded: false,
            busy: false,
        }
    }

    /// The two histories differ.
    pub fn diverged(error: Error) -> Failure {
        Failure {
            error,
            kind: FailureKind::Diverged,
            pos: None,
            status: 0,
            crowded: false,
            busy: false,
        }
    }
}

/// What an append came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Appended {
    /// The whole batch is durable.
    Durable,
    /// The batch did not fit; the replica stands here.
    Misfit(Pos),
}

/// A client for one replica. Lives inside a tokio runtime.
pub(super) struct Client {
    url: ReplicaUrl,
    timeout: Duration,
    host: Arc<Host>,
}

impl Client {
    /// A client for `url`, with connections of its own; connects, and reads the files of `access`, at the first request.
    pub fn new(url: &ReplicaUrl, access: &Access, timeout: Duration) -> Client {
        Client::of(Host::of_one(url, access, timeout), url, timeout)
    }

    /// A client for `url`, which is on `host`.
    pub fn of(host: Arc<Host>, url: &ReplicaUrl, timeout: Duration) -> Client {
        Client {
            url: url.clone(),
            timeout,
            host,
        }
    }

    /// The way to the server.
    pub fn host(&self) -> Arc<Host> {
        Arc::clone(&self.host)
    }

    fn line(&self) -> std::result::Result<Line, Failure> {
        self.host.line(&self.url).map_err(Failure::refused)
    }

    /// Asks who the server is and where it stands.
    pub async fn handshake(&self) -> std::result::Result<Handshake, Failure> {
        let turn = self.host.turn().await;
        turn.end(self.ask_handshake().await).await
    }

    async fn ask_handshake(&self) -> std::result::Result<Handshake, Failure> {
        let line = self.line()?;
        let request = line.send(line.http.get(self.url.pos_url()));
        let request = request.header(ACCEPT, TYPE_HANDSHAKE);
        let answer = async {
            let mut response = request.send().await.map_err(|e| self.transport(&e))?;
            let limit = if response.status().is_success() {
                HANDSHAKE_BYTES_MAX as usize
            } else {
                JSON_BYTES_MAX
            };
            let body = self.read_body(&mut response, limit).await?;
            Ok::<_, Failure>((response, body))
        };
        let (response, body) = self.within(self.timeout, answer).await?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(self.judge(status, response.headers(), &body));
        }
        let kind = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|v| v.to_str().ok());
        if kind != Some(TYPE_HANDSHAKE) {
            return Err(self.not_ours(status));
        }
        Handshake::decode(&body).map_err(|e| Failure::refused(e.at(&self.url)))
    }

    /// Asks where the server was after transaction `txid` of its history.
    pub async fn pos_at(&self, txid: Txid) -> std::result::Result<Pos, Failure> {
        let turn = self.host.turn().await;
        turn.end(self.ask_pos_at(txid).await).await
    }

    async fn ask_pos_at(&self, txid: Txid) -> std::result::Result<Pos, Failure> {
        let mut response = self
            .get(format!("{}?txid={txid}", self.url.pos_url()))
            .await?;
        let body = self.short_body(&mut response).await?;
        serde_json::from_slice::<PosStatus>(&body)
            .ok()
            .and_then(|pos| parse_pos_status(&pos).ok())
            .ok_or_else(|| {
                Failure::transient(self.error("the server does not say where it was once"))
            })
    }

    /// Asks, without waiting for a turn, for what is behind `url`; the body of the answer, which is a success of one of our servers, is not read yet.
    pub async fn get(&self, url: String) -> std::result::Result<Response, Failure> {
        self.get_with(url, HeaderMap::new()).await
    }

    /// The same with more headers, for a part of something if they say so.
    pub async fn get_with(
        &self,
        url: String,
        headers: HeaderMap,
    ) -> std::result::Result<Response, Failure> {
        let line = self.line()?;
        let request = line.send(line.http.get(url).headers(headers));
        let sent = async { request.send().await.map_err(|e| self.transport(&e)) };
        let mut response = self.within(self.timeout, sent).await?;
        let status = response.status();
        let good = [StatusCode::OK, StatusCode::PARTIAL_CONTENT].contains(&status);
        if good && is_ours(response.headers()) {
            return Ok(response);
        }
        let body = self
            .within(self.timeout, self.read_body(&mut response, JSON_BYTES_MAX))
            .await?;
        Err(self.judge(status, response.headers(), &body))
    }

    /// The next piece of an answer's body; the time-out is for standing still, not for the whole.
    pub async fn chunk(
        &self,
        response: &mut Response,
    ) -> std::result::Result<Option<Bytes>, Failure> {
        let next = async { response.chunk().await.map_err(|e| self.transport(&e)) };
        self.within(self.timeout, next).await
    }

    /// The next piece of an answer's body, however long that takes.
    #[cfg(feature = "cli")]
    pub async fn unbounded_chunk(
        &self,
        response: &mut Response,
    ) -> std::result::Result<Option<Bytes>, Failure> {
        response.chunk().await.map_err(|e| self.transport(&e))
    }

    /// The whole of an answer's body, which is one of the short ones.
    pub async fn short_body(
        &self,
        response: &mut Response,
    ) -> std::result::Result<Vec<u8>, Failure> {
        self.within(self.timeout, self.read_body(response, JSON_BYTES_MAX))
            .await
    }

    /// Sends a piece of a snapshot; the server's answer, which is one that says how to go on.
    pub async fn put(
        &self,
        url: String,
        headers: HeaderMap,
        piece: impl FnOnce() -> std::result::Result<Vec<u8>, Failure>,
        wait: Duration,
    ) -> std::result::Result<(StatusCode, Vec<u8>), Failure> {
        let turn = self.host.turn().await;
        // Not before: many may wait.
        let sent = match piece() {
            Ok(piece) => self.send_piece(url, headers, piece, wait).await,
            Err(failure) => Err(failure),
        };
        turn.end(sent).await
    }

    async fn send_piece(
        &self,
        url: String,
        headers: HeaderMap,
        piece: Vec<u8>,
        wait: Duration,
    ) -> std::result::Result<(StatusCode, Vec<u8>), Failure> {
        let line = self.line()?;
        let request = line.send(line.http.put(url).headers(headers).body(piece));
        let answer = async {
            let mut response = request.send().await.map_err(|e| self.transport(&e))?;
            let body = self.read_body(&mut response, JSON_BYTES_MAX).await?;
            Ok::<_, Failure>((response, body))
        };
        let (response, body) = self.within(wait, answer).await?;
        let status = response.status();
        let goes_on = [
            StatusCode::OK,
            StatusCode::ACCEPTED,
            StatusCode::RANGE_NOT_SATISFIABLE,
            StatusCode::PRECONDITION_FAILED,
        ];
        if goes_on.contains(&status) && is_ours(response.headers()) {
            return Ok((status, body));
        }
        Err(self.judge(status, response.headers(), &body))
    }

    /// How long a request may stand still.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Sends a batch that follows `after`, in a turn of the caller's.
    pub async fn append(
        &self,
        id: DatabaseId,
        after: Pos,
        batch: Batch,
    ) -> std::result::Result<Appended, Failure> {
        let (body, sent) = RecordBody::new(batch.entries).map_err(Failure::transient)?;
        let line = self.line()?;
        let request = line
            .send(line.http.post(self.url.log_url()))
            .header(CONTENT_TYPE, TYPE_RECORDS)
            .header(HEADER_DATABASE, id.to_string())
            .header(HEADER_AFTER, after.to_string())
            .body(reqwest::Body::wrap(body));
        let answer = async {
            let mut response = request.send().await.map_err(|e| {
                let local = sent.lock().local_error.clone();
                local.map_or_else(|| self.transport(&e), Failure::transient)
            })?;
            let body = self.read_body(&mut response, JSON_BYTES_MAX).await?;
            Ok::<_, Failure>((response, body))
        };
        // No limit on the whole request, since a record may be large and the line slow: a limit on standing still.
        let durable_wait = Duration::from_secs(batch.raw_bytes / DURABLE_BYTES_PER_SECOND_MIN);
        let stalled = async {
            loop {
                let (last, wait) = {
                    let sent = sent.lock();
                    let wait = if sent.complete {
                        self.timeout + durable_wait
                    } else {
                        self.timeout
                    };
                    (sent.last_progress, wait)
                };
                let deadline = last + wait;
                if Instant::now() >= deadline {
                    return;
                }
                tokio::time::sleep_until(deadline.into()).await;
            }
        };
        let (response, body) = tokio::select! {
            biased;
            result = answer => result?,
            () = stalled => return Err(self.timed_out()),
        };
        self.judge_append(&response, &body, batch.end)
    }

    fn judge_append(
        &self,
        response: &Response,
        body: &[u8],
        end: Pos,
    ) -> std::result::Result<Appended, Failure> {
        let status = response.status();
        let ours = is_ours(response.headers());
        if status == StatusCode::OK && ours {
            let pos = serde_json::from_slice::<PosStatus>(body)
                .ok()
                .and_then(|pos| parse_pos_status(&pos).ok());
            return match pos {
                Some(pos) if pos == end => Ok(Appended::Durable),
                _ => Err(Failure::transient(self.error(
                    "the server's acknowledgement does not name what was sent",
                ))),
            };
        }
        if status == StatusCode::PRECONDITION_FAILED && ours {
            return match reply_pos(body) {
                Some(pos) => Ok(Appended::Misfit(pos)),
                None => Err(Failure::transient(
                    self.error("the server refused a batch without saying where it stands"),
                )),
            };
        }
        Err(self.judge(status, response.headers(), body))
    }

    /// Turns an answer that is not a success into a failure with advice.
    fn judge(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Failure {
        let ours = is_ours(headers);
        let said = match serde_json::from_slice::<ErrorReply>(body) {
            Ok(reply) if ours => excerpt(&reply.error, 300),
            _ => String::new(),
        };
        let line = |default: &str| {
            let text = if said.is_empty() {
                default.to_string()
            } else {
                said.clone()
            };
            self.error(&format!("{text} [HTTP {}]", status.as_u16()))
        };
        let mut failure = match status.as_u16() {
            401 => Failure::refused(
                Error::new(
                    ErrorKind::Denied,
                    "the server refuses the token, or wants one [HTTP 401]",
                )
                .at(&self.url)
                .hint("set token_file or MYCELITE_TOKEN to a token from the server's token file"),
            ),
            403 if said.is_empty() || said.contains("scope") => Failure::refused(
                Error::new(
                    ErrorKind::Denied,
                    format_args!("the server does not permit this [HTTP 403] {said}"),
                )
                .at(&self.url)
                .hint("give the token that scope in the server's token file"),
            ),
            403 => Failure::refused(line("the server does not permit this")),
            300..=399 => Failure::refused(
                self.error(&format!(
                    "the server answers with a redirect [HTTP {}]",
                    status.as_u16()
                ))
                .hint("redirects are not followed; name the final address"),
            ),
            _ if !ours && !status.is_server_error() => self.not_ours(status),
            409 => Failure::refused(line("the server holds another database under this name")),
            413 => Failure::refused(line("a record is larger than the server accepts")),
            400 | 404 | 405 | 415 | 501 => {
                let failure = Failure::refused(line("the server does not accept the request"));
                // A batch that was kept in part is worth another try from there.
                if reply_pos(body).is_some() {
                    Failure {
                        kind: FailureKind::Transient,
                        ..failure
                    }
                } else {
                    failure
                }
            }
            507 => Failure::transient(line("the server's disk is full")),
            _ => Failure::transient(line("the server failed")),
        };
        failure.status = status.as_u16();
        // A server without room for connections hangs up.
        let hangs_up = headers.get(CONNECTION).is_some_and(|v| v == "close");
        failure.crowded = failure.status == 429 || (failure.status == 503 && hangs_up);
        failure.busy = ours && matches!(failure.status, 429 | 503);
        if matches!(failure.status, 401 | 403) {
            self.host.renew();
        }
        if ours {
            failure.pos = reply_pos(body);
        }
        failure
    }

    fn not_ours(&self, status: StatusCode) -> Failure {
        Failure::refused(
            self.error(&format!(
                "what answers there is not a mycelite server [HTTP {}]",
                status.as_u16()
            ))
            .hint("check host, port and name in the replica URL"),
        )
    }

    fn timed_out(&self) -> Failure {
        Failure::transient(
            self.error(&format!("no answer within {} ms", self.timeout.as_millis()))
                .hint("raise request_timeout_ms if the line is slow"),
        )
    }

    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = std::result::Result<T, Failure>>,
    ) -> std::result::Result<T, Failure> {
        match tokio::time::timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => Err(self.timed_out()),
        }
    }

    async fn read_body(
        &self,
        response: &mut Response,
        bytes_max: usize,
    ) -> std::result::Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.transport(&e))? {
            if body.len() + chunk.len() > bytes_max {
                let status = response.status();
                return Err(if is_ours(response.headers()) {
                    Failure::refused(
                        self.error("the server's answer is longer than any answer should be"),
                    )
                } else {
                    self.not_ours(status)
                });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn error(&self, what: &str) -> Error {
        Error::new(ErrorKind::Network, what).at(&self.url)
    }

    fn tls(&self, tls: &TlsFailure) -> Failure {
        self.host.renew();
        let error = self.error(&tls.what).hint(tls.hint);
        match tls.passes {
            true => Failure::transient(error),
            false => Failure::refused(error),
        }
    }

    /// A request that got no answer at all.
    fn transport(&self, e: &reqwest::Error) -> Failure {
        let cause = root(e);
        let text = chain(e);
        if e.is_timeout() {
            return self.timed_out();
        }
        if let Some(tls) = tls_error(e) {
            return self.tls(&TlsFailure::of(tls));
        }
        Failure::transient(if e.is_connect() && text.contains("dns error") {
            self.error(&format!("the host name cannot be resolved: {cause}"))
                .hint("check the host in the replica URL")
        } else if io_kind(e) == Some(io::ErrorKind::ConnectionRefused) {
            self.error("connection refused")
                .hint("is `mycelite serve` running there, on that port?")
        } else if e.is_connect() {
            self.error(&format!("cannot connect: {cause}"))
        } else if text.contains("parse") || text.contains("invalid HTTP") {
            return Failure::refused(
                self.error("what answers there does not speak HTTP")
                    .hint("check the port in the replica URL"),
            );
        } else {
            self.error(&format!("the connection broke: {cause}"))
        })
    }
}

/// The error of TLS in `e`, if that is what failed.
fn tls_error(e: &reqwest::Error) -> Option<&rustls::Error> {
    let mut cause = e.source();
    while let Some(next) = cause {
        if let Some(tls) = next.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        // What an I/O error wraps is not its source, but itself.
        cause = match next
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => next.source(),
        };
    }
    None
}

fn is_ours(headers: &HeaderMap) -> bool {
    headers.contains_key(HEADER_PROTOCOL)
}

/// Where a server that refuses says it stands.
pub(super) fn reply_pos(body: &[u8]) -> Option<Pos> {
    let reply = serde_json::from_slice::<ErrorReply>(body).ok()?;
    parse_pos_status(&reply.pos?).ok()
}
