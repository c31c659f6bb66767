//! TLS on the server's port: certificates from files, which can be read anew while it runs.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::lock::RwLock;
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::access::{ALPN, certificates, mismatched, private_key, provider, roots, unusable};
use crate::error::{Error, ErrorKind, Result};

/// Longest wait for a client to read why it is turned away.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes that are thrown away meanwhile.
const LINGER_BYTES_MAX: u64 = 1 << 20;
/// The first byte of a TLS handshake.
const HANDSHAKE: u8 = 0x16;

/// The files of a server's TLS, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsServer {
    /// Its certificate, followed by those that lead to its CA.
    pub cert: PathBuf,
    /// The private key of that certificate.
    pub key: PathBuf,
    /// The certificates that are trusted to sign clients'; without, clients are not asked for one.
    pub client_ca: Option<PathBuf>,
}

impl TlsServer {
    fn load(&self) -> Result<Arc<ServerConfig>> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots(path)?), provider())
                        .build()
                        .map_err(|e| Error::new(ErrorKind::Usage, e).at(path.display()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder
            .with_single_cert(certificates(&self.cert)?, private_key(&self.key)?)
            .map_err(|e| mismatched(&self.cert, &self.key, &e))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Arc::new(config))
    }
}

/// What a port needs to speak TLS.
pub(super) struct Encryption {
    files: TlsServer,
    config: RwLock<Arc<ServerConfig>>,
}

impl Encryption {
    /// Reads the files.
    pub fn load(files: TlsServer) -> Result<Encryption> {
        let config = RwLock::new(files.load()?);
        Ok(Encryption { files, config })
    }

    /// Reads the files again; connections that are open stay as they are. After a failure what held goes on to hold.
    pub fn reload(&self) -> Result<()> {
        let config = self.files.load()?;
        *self.config.write() = config;
        Ok(())
    }

    /// The server's side of the handshake. Who is turned away gets to read why.
    pub async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = Arc::clone(&self.config.read());
        match TlsAcceptor::from(config)
            .accept(stream)
            .into_fallible()
            .await
        {
            Ok(stream) => Ok(stream),
            Err((e, stream)) => {
                linger(stream).await;
                Err(e)
            }
        }
    }
}

/// Whether a connection that begins with this byte is about to speak TLS.
pub(super) fn is_handshake(first: u8) -> bool {
    first == HANDSHAKE
}

/// Ends a connection whose other side may still be sending: closing at once would take the last words away from it.
pub(super) async fn linger<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let last_words = async {
        let _ = stream.shutdown().await;
        let mut rest = stream.take(LINGER_BYTES_MAX);
        let _ = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await;
    };
    let _ = tokio::time::timeout(LINGER, last_words).await;
}
