//! Who may do what: bearer tokens with scopes, from a file; and what protects a server without tokens.

use std::hint::black_box;
use std::net::IpAddr;
use std::path::Path;

use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::{HeaderMap, StatusCode};

use super::reply::Refusal;
use crate::error::{Error, ErrorKind, Result};

/// Longest token, in bytes.
const TOKEN_BYTES_MAX: usize = 512;
/// Largest token file, in bytes.
const TOKEN_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// One kind of request that a token may permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Reading states, records, positions and metrics.
    Read = 1,
    /// Appending records.
    Append = 2,
    /// Everything, also what later versions add.
    Admin = 4,
}

impl Scope {
    fn word(self) -> &'static str {
        match self {
            Scope::Read => "read",
            Scope::Append => "append",
            Scope::Admin => "admin",
        }
    }
}

/// The tokens that the server accepts.
pub(super) struct Tokens(Vec<Token>);

struct Token {
    secret: Vec<u8>,
    scopes: u8,
}

impl Tokens {
    /// Reads a token file: lines `TOKEN [SCOPE,SCOPE]`, empty lines, and comments that begin with `#`.
    pub fn load(path: &Path) -> Result<Tokens> {
        let length = std::fs::metadata(path)
            .map_err(|e| Error::io("cannot read the token file", path, &e))?
            .len();
        if length > TOKEN_FILE_BYTES_MAX {
            return Err(
                Error::new(ErrorKind::Usage, "this is too long for a token file")
                    .at(path.display()),
            );
        }
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::io("cannot read the token file", path, &e))?;
        Tokens::parse(&text).map_err(|e| e.at(path.display()))
    }

    fn parse(text: &str) -> Result<Tokens> {
        let mut tokens: Vec<Token> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let wrong = |what: &str| {
                // The line is not shown: it may hold the secret.
                Error::new(ErrorKind::Usage, format_args!("line {}: {what}", index + 1))
                    .hint("a line is: TOKEN [read,append,admin]   (# begins a comment)")
            };
            let mut words = line
                .split_whitespace()
                .take_while(|word| !word.starts_with('#'));
            let Some(secret) = words.next() else {
                continue;
            };
            if secret.len() > TOKEN_BYTES_MAX || !secret.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(wrong(
                    "a token is up to 512 letters, digits and signs of ASCII",
                ));
            }
            let mut scopes = 0;
            for word in words
                .flat_map(|word| word.split(','))
                .filter(|word| !word.is_empty())
            {
                scopes |= match word {
                    "read" => Scope::Read as u8,
                    "append" => Scope::Append as u8,
                    "admin" => Scope::Admin as u8,
                    _ => return Err(wrong("a scope is read, append or admin")),
                };
            }
            if scopes == 0 {
                scopes = Scope::Admin as u8;
            }
            if tokens.iter().any(|token| token.secret == secret.as_bytes()) {
                return Err(wrong("this token was given before"));
            }
            tokens.push(Token {
                secret: secret.as_bytes().to_vec(),
                scopes,
            });
        }
        if tokens.is_empty() {
            return Err(Error::new(ErrorKind::Usage, "no token in the token file")
                .hint("write at least one line: TOKEN [read,append,admin]"));
        }
        Ok(Tokens(tokens))
    }

    /// The scopes of a presented token; takes the same time whichever token it resembles.
    fn scopes(&self, presented: &[u8]) -> Option<u8> {
        let mut found = None;
        for token in &self.0 {
            if same(&token.secret, presented) {
                found = Some(token.scopes);
            }
        }
        found
    }
}

/// Compares without stopping at the first difference.
fn same(secret: &[u8], presented: &[u8]) -> bool {
    let mut difference = u8::from(secret.len() != presented.len());
    for (index, byte) in presented.iter().enumerate() {
        let expected = secret
            .get(index % secret.len().max(1))
            .copied()
            .unwrap_or(0);
        difference = black_box(difference | (expected ^ byte));
    }
    difference == 0
}

/// Lets a request pass that has one of `scopes`; without tokens, every request that was meant for this server.
pub(super) fn check(
    tokens: Option<&Tokens>,
    headers: &HeaderMap,
    scopes: &[Scope],
) -> std::result::Result<(), Refusal> {
    let Some(tokens) = tokens else {
        return check_host(headers);
    };
    let refused = || {
        Refusal::new(
            StatusCode::UNAUTHORIZED,
            "a valid token is needed (Authorization: Bearer TOKEN)",
        )
    };
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(refused());
    };
    let presented = value
        .as_bytes()
        .split_at_checked(7)
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
        .map(|(_, token)| token.trim_ascii())
        .filter(|token| !token.is_empty() && token.len() <= TOKEN_BYTES_MAX)
        .ok_or_else(refused)?;
    let granted = tokens.scopes(presented).ok_or_else(refused)?;
    let wanted = scopes
        .iter()
        .fold(Scope::Admin as u8, |mask, scope| mask | *scope as u8);
    if granted & wanted != 0 {
        return Ok(());
    }
    let words: Vec<&str> = scopes.iter().map(|scope| scope.word()).collect();
    Err(Refusal::new(
        StatusCode::FORBIDDEN,
        &format!("this token does not have the scope {}", words.join(" or ")),
    ))
}

/// Without tokens a server trusts everything on its own machine, which includes a browser that some web page has sent
/// here under a name of its own. Such a request carries that name; ours carry an address or `localhost`.
fn check_host(headers: &HeaderMap) -> std::result::Result<(), Refusal> {
    let Some(value) = headers.get(HOST) else {
        return Ok(());
    };
    let host = value.to_str().unwrap_or("");
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(""),
        None => host.split(':').next().unwrap_or(""),
    };
    if name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    Err(Refusal::new(
        StatusCode::FORBIDDEN,
        "without a token file this server answers only to localhost and IP addresses (use --token-file)",
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    fn status(tokens: &Tokens, authorization: &str, scope: Scope) -> u16 {
        let map = headers(&[("authorization", authorization)]);
        match check(Some(tokens), &map, &[scope]) {
            Ok(()) => 200,
            Err(refusal) => refusal.status().as_u16(),
        }
    }

    #[test]
    fn scopes_decide() {
        let text = "# all\n\nall\n  reader   read # a comment\nwriter append\nboth read,append\nroot admin\n";
        let tokens = Tokens::parse(text).unwrap();
        for (token, read, append) in [
            ("all", 200, 200),
            ("reader", 200, 403),
            ("writer", 403, 200),
            ("both", 200, 200),
            ("root", 200, 200),
        ] {
            assert_eq!(
                status(&tokens, &format!("Bearer {token}"), Scope::Read),
                read,
                "{token}"
            );
            assert_eq!(
                status(&tokens, &format!("bearer {token}"), Scope::Append),
                append,
                "{token}"
            );
        }
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Basic all",
            "all",
            "Bearer allall",
            "Bearer al",
            "Bearer all x",
            "Bearer #",
        ] {
            assert_eq!(status(&tokens, wrong, Scope::Read), 401, "{wrong:?}");
        }
        let twice = headers(&[
            ("authorization", "Bearer all"),
            ("authorization", "Bearer all"),
        ]);
        assert_eq!(
            check(Some(&tokens), &twice, &[Scope::Read])
                .unwrap_err()
                .status()
                .as_u16(),
            401
        );
        assert_eq!(
            check(Some(&tokens), &HeaderMap::new(), &[Scope::Read])
                .unwrap_err()
                .status()
                .as_u16(),
            401
        );
    }

    #[test]
    fn bad_token_files_are_refused_without_showing_secrets() {
        for text in [
            "",
            "# nothing\n",
            "s3cret read,write\n",
            "s3cret\ns3cret read\n",
            "s3crét\n",
        ] {
            let Err(error) = Tokens::parse(text) else {
                panic!("{text:?}")
            };
            let line = error.to_string();
            assert!(!line.contains("s3cr"), "{line}");
            assert_eq!(line.lines().count(), 1);
        }
        assert!(Tokens::load(Path::new("/nonexistent/tokens")).is_err());
    }

    #[test]
    fn comparison_is_exact() {
        assert!(same(b"abc", b"abc"));
        for other in [&b""[..], b"a", b"ab", b"abcd", b"abcabc", b"abd", b"xbc"] {
            assert!(!same(b"abc", other), "{other:?}");
        }
    }

    #[test]
    fn without_tokens_foreign_names_are_turned_away() {
        for good in [
            "localhost",
            "LOCALHOST:7878",
            "127.0.0.1:1",
            "[::1]:7878",
            "192.168.1.1",
        ] {
            assert!(
                check(None, &headers(&[("host", good)]), &[Scope::Read]).is_ok(),
                "{good}"
            );
        }
        assert!(check(None, &HeaderMap::new(), &[Scope::Read]).is_ok());
        for bad in [
            "evil.example",
            "localhost.evil.example:80",
            "127.0.0.1.evil.example",
            "",
        ] {
            assert!(
                check(None, &headers(&[("host", bad)]), &[Scope::Read]).is_err(),
                "{bad}"
            );
        }
    }
}
