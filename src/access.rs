//! What a client of ours shows to a server, and by what it knows the server: bearer token, certificates, trusted CA.
//!
//! TLS is rustls with the `ring` provider: it builds with cargo and a C compiler alone, also in the lean library.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;

use crate::config::{Secret, read_token};
use crate::error::{Error, ErrorKind, Result};

/// Largest file of certificates or keys, in bytes: all CAs of a system fit many times.
const PEM_BYTES_MAX: u64 = 8 << 20;
/// The one protocol that is spoken over TLS.
pub(crate) const ALPN: &[u8] = b"http/1.1";

/// What is shown to a server, and by what it is known. `Debug` shows no secret. Files are read when a connection needs them,
/// and again after a refusal: that they are missing or bad for a while never reaches a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The bearer token; wins over `token_file`.
    pub token: Option<Secret>,
    /// File whose first word is the bearer token.
    pub token_file: Option<PathBuf>,
    /// Files for `https` URLs.
    pub tls: TlsFiles,
}

impl Access {
    /// The bearer token, if there is one.
    ///
    /// # Errors
    /// The file cannot be read (`Io`) or holds none (`Usage`).
    pub fn token(&self) -> Result<Option<Secret>> {
        match (&self.token, &self.token_file) {
            (Some(token), _) => Ok(Some(token.clone())),
            (None, Some(path)) => read_token(path).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// Whether the files that are named can be read and hold what they should.
    ///
    /// # Errors
    /// As [`Access::token`] and [`TlsFiles::check`].
    pub fn check(&self) -> Result<()> {
        self.token()?;
        self.tls.check()
    }
}

/// The files of a TLS client, all PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificates that are trusted to sign a server's; without, those of the operating system.
    pub ca: Option<PathBuf>,
    /// Certificate to show to a server that asks for one, followed by those that lead to its CA.
    pub cert: Option<PathBuf>,
    /// Private key of that certificate; without, it is in the same file.
    pub key: Option<PathBuf>,
}

impl TlsFiles {
    /// Whether the files that are named can be read and hold what they should.
    ///
    /// # Errors
    /// `Usage` for a key without a certificate, or a file with something else in it; `Io`.
    pub fn check(&self) -> Result<()> {
        match *self == TlsFiles::default() {
            true => Ok(()),
            false => self.config(self.ca.is_some()).map(|_| ()),
        }
    }

    /// The client's side of TLS; for a client that speaks plain HTTP only, nothing is read.
    pub(crate) fn client(&self, encrypted: bool) -> Result<ClientConfig> {
        match encrypted {
            true => self.config(true),
            false => TlsFiles::default().config(false),
        }
    }

    fn config(&self, trusts: bool) -> Result<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?;
        let builder = match &self.ca {
            Some(path) => builder.with_root_certificates(roots(path)?),
            None if trusts => builder.with_platform_verifier().map_err(|e| {
                Error::new(
                    ErrorKind::Io,
                    format_args!("the system's trusted certificates cannot be read: {e}"),
                )
                .hint("name the file of the server's CA with tls_ca")
            })?,
            None => builder.with_root_certificates(RootCertStore::empty()),
        };
        let mut config = match (&self.cert, &self.key) {
            (None, None) => builder.with_no_client_auth(),
            (None, Some(key)) => {
                return Err(
                    Error::new(ErrorKind::Usage, "a tls_key without its tls_cert")
                        .at(key.display())
                        .hint("name the file of the certificate with tls_cert"),
                );
            }
            (Some(cert), key) => {
                let key = key.as_deref().unwrap_or(cert);
                builder
                    .with_client_auth_cert(certificates(cert)?, private_key(key)?)
                    .map_err(|e| mismatched(cert, key, &e))?
            }
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(config)
    }
}

/// The cryptography that both ends use.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The trusted certificates in a PEM file: one at least.
pub(crate) fn roots(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|e| {
            Error::new(
                ErrorKind::Usage,
                format_args!("a certificate of the CA cannot be used: {e}"),
            )
            .at(path.display())
        })?;
    }
    Ok(roots)
}

/// The certificates in a PEM file, one at least.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = read_pem(path)?;
    let found = CertificateDer::pem_slice_iter(&text).collect::<std::result::Result<Vec<_>, _>>();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(
            Error::new(ErrorKind::Usage, "there is no certificate in this file")
                .at(path.display())
                .hint("a PEM file is wanted, with BEGIN CERTIFICATE"),
        ),
    }
}

/// The private key in a PEM file. No error shows what the file holds.
pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let text = read_pem(path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
        Error::new(ErrorKind::Usage, "there is no private key in this file")
            .at(path.display())
            .hint("a PEM file is wanted, with BEGIN PRIVATE KEY and without a password")
    })
}

/// The error for a key that does not belong to a certificate.
pub(crate) fn mismatched(cert: &Path, key: &Path, e: &rustls::Error) -> Error {
    Error::new(
        ErrorKind::Usage,
        format_args!(
            "the key in {} does not go with this certificate: {e}",
            key.display()
        ),
    )
    .at(cert.display())
}

/// The error for a build of TLS that cannot work at all.
pub(crate) fn unusable(e: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::Internal,
        format_args!("TLS cannot be set up: {e}"),
    )
}

fn read_pem(path: &Path) -> Result<Vec<u8>> {
    let failed = |e: std::io::Error| Error::io("cannot read the TLS file", path, &e);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(PEM_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > PEM_BYTES_MAX {
        return Err(
            Error::new(ErrorKind::Usage, "this is too long for a PEM file").at(path.display()),
        );
    }
    Ok(bytes)
}

/// Why TLS failed, for a person: what happened, what to do, and whether it stays so until somebody changes something.
pub(crate) struct TlsFailure {
    /// What happened.
    pub what: String,
    /// What to do about it.
    pub hint: &'static str,
    /// Trying again soon may help.
    pub passes: bool,
}

impl TlsFailure {
    /// Puts an error of a client's TLS into words.
    pub fn of(e: &rustls::Error) -> TlsFailure {
        use rustls::Error as Tls;
        let stays = |what: &str, hint| TlsFailure {
            what: what.to_string(),
            hint,
            passes: false,
        };
        match e {
            Tls::InvalidCertificate(why) => TlsFailure::of_certificate(why),
            Tls::AlertReceived(AlertDescription::CertificateRequired) => stays(
                "the server wants a client certificate",
                "set tls_cert and tls_key",
            ),
            Tls::AlertReceived(
                AlertDescription::BadCertificate
                | AlertDescription::UnknownCA
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateUnknown
                | AlertDescription::DecryptError
                | AlertDescription::AccessDenied,
            ) => stays(
                &format!("the server refuses the client certificate ({e})"),
                "set tls_cert and tls_key to a certificate that the server's client CA has signed",
            ),
            Tls::InvalidMessage(_) => stays(
                "what answers there does not speak TLS",
                "write http:// if the server has no certificate, or check the port",
            ),
            Tls::AlertReceived(AlertDescription::ProtocolVersion)
            | Tls::PeerIncompatible(_)
            | Tls::AlertReceived(AlertDescription::HandshakeFailure) => stays(
                &format!("the server's TLS does not go with this one ({e})"),
                "TLS 1.2 and 1.3 are spoken",
            ),
            _ => TlsFailure {
                what: format!("TLS failed: {e}"),
                hint: "",
                passes: true,
            },
        }
    }

    fn of_certificate(why: &CertificateError) -> TlsFailure {
        let (what, hint) = match why {
            CertificateError::UnknownIssuer => (
                "the server's certificate is not signed by a CA that is trusted here".to_string(),
                "name the file of the server's CA with tls_ca",
            ),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
                "the server's certificate has expired".to_string(),
                "renew it on the server",
            ),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
                "the server's certificate is not valid yet".to_string(),
                "compare the clocks of both machines",
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                (
                    "the server's certificate is not for the host in the URL".to_string(),
                    "use the name that the certificate has, or one with this name",
                )
            }
            other => (
                format!("the server's certificate is refused: {other}"),
                "look at the certificate that the server was given",
            ),
        };
        TlsFailure {
            what,
            hint,
            passes: false,
        }
    }
}
