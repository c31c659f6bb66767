//! The other direction: one answer of a server that stays open, for whoever follows a database there.

use std::time::Duration;

use bytes::Bytes;
use mycelite_journal::{DatabaseId, Pos, Txid};
use reqwest::Response;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, IF_RANGE, RANGE};

use super::client::{Client, Failure};
use crate::access::Access;
use crate::error::{Error, ErrorKind, Result};
use crate::proto::follow::{FOLLOW_VERSION, TYPE_FOLLOW};
use crate::proto::snapshot::{HEADER_SNAPSHOT, SnapshotTag};
use crate::proto::{DatabaseInfo, HEADER_DATABASE, ReplicaUrl};

/// What a server offers, and from which byte on it sends that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer {
    /// Identity of the database.
    pub id: DatabaseId,
    /// Which snapshot it is.
    pub tag: SnapshotTag,
    /// The first byte that comes.
    pub from: u64,
}

/// Asks for the newest snapshot, or for the rest of one of which the first bytes are here already, if the server still has
/// it. The body of the answer is not read yet.
async fn ask(
    client: &Client,
    url: &ReplicaUrl,
    known: Option<(SnapshotTag, u64)>,
) -> Result<(Offer, Response), Failure> {
    let mut address = url.snapshot_url();
    let mut headers = HeaderMap::new();
    let text = |text: String| {
        HeaderValue::from_str(&text)
            .map_err(|e| Failure::refused(Error::new(ErrorKind::Internal, e).at(url)))
    };
    if let Some((tag, from)) = known.filter(|(tag, from)| (1..tag.bytes).contains(from)) {
        address = format!("{address}?txid={}", tag.pos.txid);
        headers.insert(RANGE, text(format!("bytes={from}-"))?);
        headers.insert(IF_RANGE, text(format!("\"{tag}\""))?);
    }
    let response = client.get_with(address, headers).await?;
    let said = |name| response.headers().get(name)?.to_str().ok();
    let offer = (|| {
        let tag: SnapshotTag = said(HEADER_SNAPSHOT)?.parse().ok()?;
        let left = response.content_length()?;
        Some(Offer {
            id: said(HEADER_DATABASE)?.parse().ok()?,
            from: tag.bytes.checked_sub(left)?,
            tag,
        })
    })();
    match offer {
        Some(offer) => Ok((offer, response)),
        None => Err(Failure::refused(
            Error::new(
                ErrorKind::Network,
                "the server does not say which snapshot it sends",
            )
            .at(url)
            .hint("use the same version of mycelite on both ends"),
        )),
    }
}

/// Whom to ask; keeps its connections. Used inside a tokio runtime.
pub(crate) struct Asker {
    client: Client,
    url: ReplicaUrl,
}

impl Asker {
    /// Asks at `url`, showing `access`; connects at the first request. `timeout` bounds the wait for
    /// an answer.
    ///
    /// # Errors
    /// As [`Access::check`].
    pub fn new(url: &ReplicaUrl, access: &Access, timeout: Duration) -> Result<Asker> {
        access.check()?;
        Ok(Asker {
            client: Client::new(url, access, timeout),
            url: url.clone(),
        })
    }

    /// Asks where the server was after transaction `txid`.
    pub async fn pos_at(&self, txid: Txid) -> std::result::Result<Pos, Failure> {
        self.client.pos_at(txid).await
    }

    /// Asks for a snapshot, or the rest of one that is `known`.
    pub async fn snapshot(
        &self,
        known: Option<(SnapshotTag, u64)>,
    ) -> std::result::Result<(Offer, Incoming<'_>), Failure> {
        let (offer, response) = ask(&self.client, &self.url, known).await?;
        let asker = self;
        Ok((offer, Incoming { asker, response }))
    }

    /// What the server says about the database.
    pub async fn info(&self) -> std::result::Result<DatabaseInfo, Failure> {
        let log = self.url.log_url();
        let url = log.strip_suffix("/log").unwrap_or(&log).to_string();
        let mut response = self.client.get(url).await?;
        let body = self.client.short_body(&mut response).await?;
        serde_json::from_slice(&body).map_err(|error| {
            Failure::transient(
                Error::new(
                    ErrorKind::Network,
                    format_args!("the server's answer cannot be understood: {error}"),
                )
                .at(&self.url),
            )
        })
    }

    /// Asks for everything after transaction `after`, now and from now on.
    pub async fn follow(&self, after: Txid) -> std::result::Result<Incoming<'_>, Failure> {
        let url = format!(
            "{}?after={after}&follow={FOLLOW_VERSION}",
            self.url.log_url()
        );
        let response = self.client.get(url).await?;
        let kind = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        if kind != Some(TYPE_FOLLOW) {
            return Err(Failure::refused(
                Error::new(
                    ErrorKind::Unsupported,
                    "the server does not send a stream to follow",
                )
                .at(&self.url)
                .hint("use the same version of mycelite on both ends"),
            ));
        }
        Ok(Incoming {
            asker: self,
            response,
        })
    }
}

/// An open answer.
pub(crate) struct Incoming<'a> {
    asker: &'a Asker,
    response: Response,
}

impl Incoming<'_> {
    /// The next piece; none when the answer is complete. Nothing is lost when the future is dropped.
    pub async fn chunk(
        &mut self,
        patience: Duration,
    ) -> std::result::Result<Option<Bytes>, Failure> {
        match tokio::time::timeout(
            patience,
            self.asker.client.unbounded_chunk(&mut self.response),
        )
        .await
        {
            Ok(result) => result,
            Err(_) => Err(Failure::transient(
                Error::new(
                    ErrorKind::Network,
                    format_args!(
                        "the line is dead: nothing came for {} ms",
                        patience.as_millis()
                    ),
                )
                .at(&self.asker.url),
            )),
        }
    }
}
