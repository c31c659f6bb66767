//! Connections: how many, how long they may stand still, how large a request head may be, and how they end.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Sleep;

use super::slots::{Full, Slots};
use super::tls::{is_handshake, linger};
use super::{Limits, State};
use crate::proto::{HEADER_PROTOCOL, PROTOCOL};

/// Pause after the system refused to accept (no file descriptors, say), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Read buffer of a connection; also the largest chunk of a body.
const READ_BUFFER_BYTES: usize = 128 * 1024;
/// Refusals that are being said at once.
const TURNED_AWAY_MAX: usize = 256;
/// Longest wait for a client to take a refusal.
const TURN_AWAY: Duration = Duration::from_secs(1);
const NOT_ENCRYPTED: &str = "{\"error\":\"this port speaks TLS: use https://\"}";
const TOO_MANY_OF_ONE: &str = "{\"error\":\"this address has too many connections open (close some, or raise connections_per_address_max)\"}";
const TOO_MANY: &str = "{\"error\":\"too many connections (raise connections_max, or try again)\"}";

/// The address of the other side, with each of its requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub IpAddr);

/// The routes, which are told who asks.
#[derive(Clone)]
struct WithPeer {
    router: TowerToHyperService<Router>,
    peer: Peer,
}

impl Service<Request<Incoming>> for WithPeer {
    type Response = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Response;
    type Error = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Error;
    type Future = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.peer);
        self.router.call(request)
    }
}

/// Accepts and serves until `shutdown` is done; then lets requests in flight finish within `limits.shutdown_grace`.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    state: &Arc<State>,
    shutdown: impl Future<Output = ()>,
) {
    let limits = &state.limits;
    let slots = Slots::new(limits.connections_max, limits.connections_per_address_max);
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let (stream, peer) = tokio::select! {
            () = &mut shutdown => break,
            accepted = accept(&listener) => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let slot = match slots.take(peer.ip()) {
            Ok(slot) => slot,
            // Whoever does not even wait for the refusal gets none.
            Err(_)
                if connections.len() >= limits.connections_max.saturating_add(TURNED_AWAY_MAX) =>
            {
                continue;
            }
            Err(Full::All) => {
                connections.spawn(turn_away(stream, "503 Service Unavailable", TOO_MANY));
                continue;
            }
            Err(Full::Address) => {
                connections.spawn(turn_away(stream, "429 Too Many Requests", TOO_MANY_OF_ONE));
                continue;
            }
        };
        let service = WithPeer {
            router: TowerToHyperService::new(router.clone()),
            peer: Peer(peer.ip()),
        };
        let connection = one(stream, service, Arc::clone(state), stopping.clone());
        connections.spawn(async move {
            connection.await;
            drop(slot);
        });
    }
    drop(listener);
    let _ = stop.send(true);
    let finish = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.shutdown_grace, finish)
        .await
        .is_err()
    {
        tracing::warn!("{} connections were cut at shutdown", connections.len());
    }
    connections.shutdown().await;
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(e) => {
                tracing::warn!("cannot accept a connection: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Answers whatever was asked with a refusal, and hangs up.
async fn turn_away(mut stream: TcpStream, status: &str, refusal: &str) {
    let whole = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
         {HEADER_PROTOCOL}: {PROTOCOL}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{refusal}",
        refusal.len()
    );
    let answer = stream.write_all(whole.as_bytes());
    if matches!(tokio::time::timeout(TURN_AWAY, answer).await, Ok(Ok(()))) {
        linger(stream).await;
    }
}

async fn one(
    stream: TcpStream,
    service: WithPeer,
    state: Arc<State>,
    mut stopping: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let Some(tls) = &state.tls else {
        let stream = ImpatientWrites::new(stream, state.limits.idle_max);
        return speak(stream, service, &state.limits, stopping).await;
    };
    let encrypted = async {
        let mut first = [0];
        if stream.peek(&mut first).await? > 0 && !is_handshake(first[0]) {
            turn_away(stream, "400 Bad Request", NOT_ENCRYPTED).await;
            return Ok(None);
        }
        let stream = ImpatientWrites::new(stream, state.limits.idle_max);
        tls.accept(stream).await.map(Some)
    };
    let accepted = tokio::select! {
        accepted = tokio::time::timeout(state.limits.header_timeout, encrypted) => accepted,
        () = stopped(&mut stopping) => return,
    };
    match accepted {
        Ok(Ok(Some(stream))) => speak(stream, service, &state.limits, stopping).await,
        Ok(Ok(None)) => {}
        Ok(Err(e)) => tracing::debug!("a connection ended in the TLS handshake: {e}"),
        Err(_) => tracing::debug!("a connection ended: no TLS handshake in time"),
    }
}

async fn speak<S>(
    stream: S,
    service: WithPeer,
    limits: &Limits,
    mut stopping: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Counts from the moment a request may begin, so it also ends idle connections.
        .header_read_timeout(limits.header_timeout)
        .max_header_size(limits.header_bytes_max)
        .max_buf_size(READ_BUFFER_BYTES.max(limits.header_bytes_max))
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopped(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = result {
        tracing::debug!("a connection ended: {e}");
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the server itself has gone.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// A stream whose writes fail when the other side takes nothing for too long.
struct ImpatientWrites {
    stream: TcpStream,
    patience: Duration,
    // Running while a write waits.
    timer: Option<Pin<Box<Sleep>>>,
}

impl ImpatientWrites {
    fn new(stream: TcpStream, patience: Duration) -> ImpatientWrites {
        ImpatientWrites {
            stream,
            patience,
            timer: None,
        }
    }

    fn judge<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.timer = None;
            return result;
        }
        let patience = self.patience;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        timer
            .as_mut()
            .poll(cx)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for ImpatientWrites {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for ImpatientWrites {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.judge(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.judge(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_flush(cx);
        this.judge(cx, result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
