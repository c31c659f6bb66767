//! Reading from a server in the foreground, for the command line: where a database is, its records, a state as a file.
//! Nothing here may be called from inside an async runtime.

use std::io::{self, Read, Write};

use bytes::Bytes;
use mycelite_journal::{Pos, RecordHeader, Txid};
use reqwest::Response;

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
        let query = txid.map(|txid| format!("?txid={txid}")).unwrap_or_default();
        let (response_pos, mut body) = self.body(&format!("/file{query}"))?;
        let failed = |source: io::Error| Error::new(ErrorKind::Network, source).at(&self.url);
        let pos = response_pos.ok_or_else(|| {
            Error::new(
                ErrorKind::Network,
                "the server does not say which state it sends",
            )
            .at(&self.url)
        })?;
        io::copy(&mut body, out).map_err(failed)?;
        Ok(pos)
    }

    fn address(&self, rest: &str) -> String {
        let log = self.url.log_url();
        format!("{}{rest}", log.strip_suffix("/log").unwrap_or(&log))
    }

    fn body(&self, rest: &str) -> Result<(Option<Pos>, Body<'_>)> {
        let answer = self.runtime.block_on(self.client.get(self.address(rest)));
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
