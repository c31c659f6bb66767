//! Reading from a server in the foreground, for the command line: where a database is, its records, a state as a file.
//! Nothing here may be called from inside an async runtime.

use std::io::{self, Read, Write};

use bytes::Bytes;
use mycelite_journal::{Pos, RecordHeader, Txid};
use reqwest::header::{HeaderMap, HeaderValue, IF_RANGE, RANGE};
use reqwest::{Response, StatusCode};

use super::client::Client;
use super::state::Shared;
use super::{ShipOptions, report, session};
use crate::access::Access;
use crate::error::{Error, ErrorKind, Result};
use crate::proto::{DatabaseInfo, HEADER_POS, ReplicaUrl, ZSTD_WINDOW_LOG_MAX};
use crate::status::ReplicaStatus;

/// Length of a record's header as it travels.
const RECORD_HEADER_BYTES: usize = 128;
/// Replicas are asked one after the other; beyond so many the wait would have no sensible end.
const REPLICAS_ASKED_MAX: usize = 64;

/// Asks each replica where it is. One that does not answer says so in its status.
pub fn probe(options: &ShipOptions) -> Result<Vec<ReplicaStatus>> {
    let runtime = session::runtime()?;
    let shared = Shared::new(options);
    for (index, url) in options.replicas.iter().enumerate().take(REPLICAS_ASKED_MAX) {
        let client = Client::new(url, &options.access, options.request_timeout);
        match runtime.block_on(client.handshake()) {
            Ok(handshake) => shared.acked(index, handshake.pos()),
            Err(failure) => {
                shared.failed(index, &failure);
            }
        }
    }
    runtime.shutdown_background();
    let mut statuses = report(options, &shared.states());
    for status in statuses
        .iter_mut()
        .filter(|status| status.last_error.is_empty())
    {
        let caught_up = status.lag_txids == 0;
        status.state = if caught_up { "caught-up" } else { "behind" }.to_string();
    }
    Ok(statuses)
}

/// One database on a server.
pub struct Remote {
    client: Client,
    url: ReplicaUrl,
    runtime: tokio::runtime::Runtime,
}

impl Remote {
    /// A client for `url`; connects at the first request. `timeout` bounds each standing still.
    pub fn new(url: &ReplicaUrl, access: &Access, timeout: std::time::Duration) -> Result<Remote> {
        Ok(Remote {
            client: Client::new(url, access, timeout),
            url: url.clone(),
            runtime: session::runtime()?,
        })
    }

    /// What the server says about the database.
    pub fn info(&self) -> Result<DatabaseInfo> {
        let body = self.runtime.block_on(async {
            let mut response = self.client.get(self.address("")).await?;
            self.client.short_body(&mut response).await
        });
        let body = body.map_err(|failure| failure.error)?;
        serde_json::from_slice(&body).map_err(|error| {
            Error::new(
                ErrorKind::Network,
                format_args!("the server's answer cannot be understood: {error}"),
            )
            .at(&self.url)
            .hint("use the same version of mycelite on both ends")
        })
    }

    /// The records after transaction `after`, up to the server's durable end at the time of the call.
    pub fn records(&self, after: Txid) -> Result<Records<'_>> {
        let body = self.body(&format!("/log?after={after}"))?.1;
        let failed = |source: io::Error| Error::new(ErrorKind::Network, source).at(&self.url);
        let mut decoder = zstd::stream::read::Decoder::new(body).map_err(failed)?;
        decoder
            .window_log_max(ZSTD_WINDOW_LOG_MAX)
            .map_err(failed)?;
        Ok(Records {
            decoder,
            url: &self.url,
        })
    }

    /// Writes the database as of `txid` (the newest durable state if none is given) to `out`; its position.
    pub fn file(&self, txid: Option<Txid>, out: &mut dyn Write) -> Result<Pos> {
        let mut part = self.file_part(txid, None)?;
        let failed = |source: io::Error| Error::new(ErrorKind::Network, source).at(&self.url);
        io::copy(&mut part, out).map_err(failed)?;
        Ok(part.pos)
    }

    /// Opens the database as of `txid` for reading. Where the first bytes of the state at a position are `known`, as many as that,
    /// the rest is sent; all of it, if the server has another state there.
    pub fn file_part(&self, txid: Option<Txid>, known: Option<(Pos, u64)>) -> Result<FilePart<'_>> {
        let query = txid.map(|txid| format!("?txid={txid}")).unwrap_or_default();
        let unclear = |what: &str| Error::new(ErrorKind::Network, what).at(&self.url);
        let mut headers = HeaderMap::new();
        if let Some((pos, bytes)) = known {
            let value = |text: String| {
                HeaderValue::try_from(text).map_err(|e| Error::new(ErrorKind::Internal, e))
            };
            headers.insert(RANGE, value(format!("bytes={bytes}-"))?);
            headers.insert(IF_RANGE, value(format!("\"{pos}\""))?);
        }
        let (pos, body) = self.body_with(&format!("/file{query}"), headers)?;
        let pos = pos.ok_or_else(|| unclear("the server does not say which state it sends"))?;
        let partial = body.response.status() == StatusCode::PARTIAL_CONTENT;
        let from = match known {
            Some((known, bytes)) if partial && known == pos => bytes,
            _ if partial => return Err(unclear("the server sends a part that nobody asked for")),
            _ => 0,
        };
        let left = body
            .left
            .ok_or_else(|| unclear("the server does not say how long the file is"))?;
        Ok(FilePart {
            pos,
            from,
            bytes: from.saturating_add(left),
            body,
        })
    }

    fn address(&self, rest: &str) -> String {
        let log = self.url.log_url();
        format!("{}{rest}", log.strip_suffix("/log").unwrap_or(&log))
    }

    fn body(&self, rest: &str) -> Result<(Option<Pos>, Body<'_>)> {
        self.body_with(rest, HeaderMap::new())
    }

    fn body_with(&self, rest: &str, headers: HeaderMap) -> Result<(Option<Pos>, Body<'_>)> {
        let asked = self.client.get_with(self.address(rest), headers);
        let answer = self.runtime.block_on(asked);
        let response = answer.map_err(|failure| failure.error)?;
        let pos = response
            .headers()
            .get(HEADER_POS)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let left = response.content_length();
        let body = Body {
            remote: self,
            response,
            chunk: Bytes::new(),
            left,
        };
        Ok((pos, body))
    }
}

/// A database file that comes from a server, from byte `from` on: a [`Read`].
pub struct FilePart<'a> {
    /// The state that it is.
    pub pos: Pos,
    /// The first byte that is sent.
    pub from: u64,
    /// Length of the whole file.
    pub bytes: u64,
    body: Body<'a>,
}

impl Read for FilePart<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.body.read(buf)
    }
}

/// The body of an answer as a blocking reader.
struct Body<'a> {
    remote: &'a Remote,
    response: Response,
    chunk: Bytes,
    /// Bytes that must still come, where the server announced them.
    left: Option<u64>,
}

impl Read for Body<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            let next = self
                .remote
                .runtime
                .block_on(self.remote.client.chunk(&mut self.response));
            match next.map_err(|failure| io::Error::other(failure.error))? {
                Some(chunk) => self.chunk = chunk,
                None if self.left.is_some_and(|left| left > 0) => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                None => return Ok(0),
            }
        }
        let count = self.chunk.len().min(buf.len());
        let (head, rest) = (self.chunk.slice(..count), self.chunk.slice(count..));
        for (to, from) in buf.iter_mut().zip(&head) {
            *to = *from;
        }
        self.chunk = rest;
        self.left = self.left.map(|left| left.saturating_sub(count as u64));
        Ok(count)
    }
}

/// A stream of records as the log stores them, decompressed: a [`Read`].
pub struct Records<'a> {
    decoder: zstd::stream::read::Decoder<'static, io::BufReader<Body<'a>>>,
    url: &'a ReplicaUrl,
}

impl Read for Records<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.decoder.read(buf)
    }
}

impl Records<'_> {
    /// Hands out each record's header, and skips the rest of it, until `each` returns false. Bodies are not checked.
    pub fn each_header(
        &mut self,
        each: &mut dyn FnMut(&RecordHeader) -> Result<bool>,
    ) -> Result<()> {
        let broken = |url: &ReplicaUrl, what: &dyn std::fmt::Display| {
            Error::new(
                ErrorKind::Network,
                format_args!("the records cannot be read: {what}"),
            )
            .at(url)
        };
        loop {
            let mut bytes = [0u8; RECORD_HEADER_BYTES];
            let mut first = self.by_ref().take(1);
            let mut one = Vec::with_capacity(1);
            if first
                .read_to_end(&mut one)
                .map_err(|error| broken(self.url, &error))?
                == 0
            {
                return Ok(());
            }
            bytes[0] = one[0];
            self.read_exact(&mut bytes[1..])
                .map_err(|error| broken(self.url, &error))?;
            let header = RecordHeader::decode(&bytes).map_err(|error| broken(self.url, &error))?;
            if !each(&header)? {
                return Ok(());
            }
            let rest = header.record_len() - RECORD_HEADER_BYTES as u64;
            let skipped = io::copy(&mut self.by_ref().take(rest), &mut io::sink())
                .map_err(|error| broken(self.url, &error))?;
            if skipped < rest {
                return Err(broken(self.url, &"the stream ends within a record"));
            }
        }
    }
}
