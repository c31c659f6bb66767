//! The URL of a database on a server.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use super::{DatabaseName, excerpt};
use crate::error::{Error, ErrorKind, Result};

/// Where a replica lives: `http://host:port/NAME` or `https://host:port/NAME`. Carries no secret; the token travels beside it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReplicaUrl {
    encrypted: bool,
    host: String,
    port: u16,
    name: DatabaseName,
}

impl ReplicaUrl {
    /// Host name or address; an IPv6 address stands in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether it is reached over TLS.
    pub fn is_encrypted(&self) -> bool {
        self.encrypted
    }

    /// TCP port; 80 when the URL names none, with TLS 443.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Name of the database on that server.
    pub fn name(&self) -> &DatabaseName {
        &self.name
    }

    /// The URL that answers the position and the handshake.
    pub fn pos_url(&self) -> String {
        self.address("/pos")
    }

    /// The URL that takes and gives records.
    pub fn log_url(&self) -> String {
        self.address("/log")
    }

    /// The URL that takes and gives snapshots.
    pub fn snapshot_url(&self) -> String {
        self.address("/snapshot")
    }

    fn address(&self, rest: &str) -> String {
        format!(
            "{}://{}:{}/v1/databases/{}{rest}",
            self.scheme(),
            self.host,
            self.port,
            self.name
        )
    }

    fn scheme(&self) -> &'static str {
        match self.encrypted {
            true => "https",
            false => "http",
        }
    }
}

impl fmt::Display for ReplicaUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}://{}:{}/{}",
            self.scheme(),
            self.host,
            self.port,
            self.name
        )
    }
}

impl FromStr for ReplicaUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<ReplicaUrl> {
        const FORM: &str =
            "write http://HOST:PORT/NAME or https://..., for instance http://127.0.0.1:7878/app";
        let text = text.trim();
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(bad_url(text, "a replica URL begins with http:// or https://").hint(FORM));
        };
        let encrypted = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => {
                return Err(bad_url(text, "only http:// and https:// can be shipped to").hint(FORM));
            }
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if rest.contains('@') {
            // Not echoed: what stands before the '@' may be a secret.
            return Err(
                Error::new(ErrorKind::Usage, "a replica URL carries no user or token")
                    .hint("give the token in token_file or in MYCELITE_TOKEN"),
            );
        }
        let (host, port) =
            parse_authority(authority, encrypted).map_err(|what| bad_url(text, what).hint(FORM))?;
        if path.contains(['?', '#']) {
            return Err(bad_url(text, "a replica URL has no '?' or '#'").hint(FORM));
        }
        let path = path.strip_suffix('/').unwrap_or(path);
        if path.is_empty() {
            return Err(
                bad_url(text, "the name of the database on the server is missing").hint(FORM),
            );
        }
        if path.contains('/') {
            return Err(bad_url(text, "one name follows the port, nothing deeper").hint(FORM));
        }
        let name = path
            .parse::<DatabaseName>()
            .map_err(|e| e.at(excerpt(text, 120)))?;
        Ok(ReplicaUrl {
            encrypted,
            host,
            port,
            name,
        })
    }
}

fn bad_url(text: &str, what: &str) -> Error {
    // A URL with an '@' is never shown, nor what follows a '?' or '#': it may hold a password.
    let shown = match text.split(['?', '#']).next() {
        Some(plain) if !text.contains('@') => excerpt(plain, 120),
        _ => "replica URL".to_string(),
    };
    Error::new(ErrorKind::Usage, what).at(shown)
}

/// Splits `host:port`; the port defaults to that of the scheme.
fn parse_authority(
    authority: &str,
    encrypted: bool,
) -> std::result::Result<(String, u16), &'static str> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (address, rest) = rest
            .split_once(']')
            .ok_or("an IPv6 address ends with ']'")?;
        let address = address
            .parse::<Ipv6Addr>()
            .map_err(|_| "this is not an IPv6 address")?;
        let port = match rest {
            "" => "",
            _ => rest
                .strip_prefix(':')
                .ok_or("after ']' comes ':' and the port")?,
        };
        (format!("[{address}]"), port)
    } else {
        let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if host.is_empty() || host.len() > 253 || !host.bytes().all(allowed) {
            return Err("the host name is missing or malformed");
        }
        (host.to_ascii_lowercase(), port)
    };
    if port.is_empty() {
        return Ok((host, if encrypted { 443 } else { 80 }));
    }
    match port.parse::<u16>() {
        Ok(number) if number > 0 && port.bytes().all(|b| b.is_ascii_digit()) => Ok((host, number)),
        _ => Err("the port is a number from 1 to 65535"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn url(text: &str) -> Result<ReplicaUrl> {
        text.parse()
    }

    #[test]
    fn urls_are_read_and_written_in_one_form() {
        for (text, form) in [
            ("http://127.0.0.1:7878/app", "http://127.0.0.1:7878/app"),
            (" HTTP://Example.ORG/app/ ", "http://example.org:80/app"),
            ("http://[::1]:7878/app", "http://[::1]:7878/app"),
            ("http://[0:0::1]/app", "http://[::1]:80/app"),
            ("HTTPS://Example.ORG/app", "https://example.org:443/app"),
            ("https://h:7878/app", "https://h:7878/app"),
        ] {
            let url = url(text).unwrap();
            assert_eq!(url.to_string(), form);
            assert_eq!(form.parse::<ReplicaUrl>().unwrap(), url);
        }
        let app = url("http://h:1/app").unwrap();
        assert_eq!(app.pos_url(), "http://h:1/v1/databases/app/pos");
        assert_eq!(app.log_url(), "http://h:1/v1/databases/app/log");
        let app = url("https://h:1/app").unwrap();
        assert_eq!(app.log_url(), "https://h:1/v1/databases/app/log");
    }

    #[test]
    fn wrong_urls_say_what_is_wrong_in_one_line() {
        for (text, says) in [
            ("", "http://"),
            ("app", "http://"),
            ("ftp://h/app", "only http:// and https://"),
            ("http://h:1", "name of the database"),
            ("http://h:1/", "name of the database"),
            ("http:///app", "host name"),
            ("http://h:0/app", "1 to 65535"),
            ("http://h:+1/app", "1 to 65535"),
            ("http://h:99999/app", "1 to 65535"),
            ("http://h:1/a/b", "nothing deeper"),
            ("http://h:1/app?x=1", "no '?'"),
            ("http://h:1/.app", "not a database name"),
            ("http://[::1/app", "ends with ']'"),
            ("http://[1.2.3.4]:1/app", "not an IPv6 address"),
            ("http://a\nb:1/app", "host name"),
        ] {
            let error = url(text).unwrap_err();
            let line = error.to_string();
            assert!(line.contains(says), "{text:?}: {line}");
            assert_eq!(line.lines().count(), 1);
            assert_eq!(error.kind(), ErrorKind::Usage);
        }
    }

    #[test]
    fn a_secret_in_a_url_is_not_repeated() {
        for text in [
            "http://s3cret@h:1/app",
            "http://user:s3cret@h/app",
            "https://user:s3cret@h/app",
            "ftp://s3cret@h:1/app",
            "s3cret@h:1/app",
            "http://h:1/s3cret@x",
        ] {
            let line = url(text).unwrap_err().to_string();
            assert!(!line.contains("s3cret"), "{line}");
        }
    }
}
