//! Who may do what: bearer tokens with scopes, from a file; and what protects a server without tokens.

use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::lock::RwLock;
use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::{HeaderMap, StatusCode};
use ring::rand::SecureRandom;
use subtle::ConstantTimeEq;

use super::reply::Refusal;
use crate::error::{Error, ErrorKind, Result};
use crate::proto::DatabaseName;

/// Longest token, in bytes.
const TOKEN_BYTES_MAX: usize = 512;
/// Largest token file, in bytes.
const TOKEN_FILE_BYTES_MAX: u64 = 1024 * 1024;
/// What a hash in a token file begins with.
const HASH_PREFIX: &str = "sha256:";
const SHA256_BYTES: usize = 32;

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

/// Who is let in: everybody on this machine, or whoever has a token.
pub(super) struct Gate {
    file: Option<PathBuf>,
    tokens: RwLock<Option<Arc<Tokens>>>,
}

impl Gate {
    /// Reads the token file, if there is one.
    pub fn load(file: Option<PathBuf>) -> Result<Gate> {
        let tokens = file.as_deref().map(Tokens::load).transpose()?;
        Ok(Gate {
            file,
            tokens: RwLock::new(tokens.map(Arc::new)),
        })
    }

    /// Reads the token file again; after a failure what held goes on to hold.
    pub fn reload(&self) -> Result<()> {
        if let Some(path) = &self.file {
            let tokens = Tokens::load(path)?;
            *self.tokens.write() = Some(Arc::new(tokens));
        }
        Ok(())
    }

    /// Whether a token is wanted.
    pub fn wants_token(&self) -> bool {
        self.file.is_some()
    }

    /// Lets a request pass that has one of `scopes` for `database` (for the server as a whole, if that is none); without
    /// tokens, every request that was meant for this server.
    pub fn check(
        &self,
        headers: &HeaderMap,
        scopes: &[Scope],
        database: Option<&str>,
    ) -> std::result::Result<(), Refusal> {
        let tokens = self.tokens.read().clone();
        check(tokens.as_deref(), headers, scopes, database)
    }
}

/// The tokens that the server accepts.
struct Tokens(Vec<Token>);

/// Only the hash of a token is kept, in memory too.
struct Token {
    sha256: [u8; SHA256_BYTES],
    scopes: u8,
    /// The databases that it is for; none: all, and the server as a whole.
    databases: Option<Vec<String>>,
}

impl Token {
    fn covers(&self, database: Option<&str>) -> bool {
        match (&self.databases, database) {
            (None, _) => true,
            (Some(names), Some(database)) => names.iter().any(|name| name == database),
            (Some(_), None) => false,
        }
    }
}

impl Tokens {
    /// Reads a token file: lines `TOKEN [SCOPE,SCOPE] [db=NAME,NAME]`, empty lines, and comments that begin with `#`.
    /// `TOKEN` is the token itself, or `sha256:` and its hash in hexadecimal.
    fn load(path: &Path) -> Result<Tokens> {
        let failed = |e: std::io::Error| Error::io("cannot read the token file", path, &e);
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(TOKEN_FILE_BYTES_MAX + 1)
            .read_to_string(&mut text)
            .map_err(failed)?;
        if text.len() as u64 > TOKEN_FILE_BYTES_MAX {
            return Err(
                Error::new(ErrorKind::Usage, "this is too long for a token file")
                    .at(path.display()),
            );
        }
        Tokens::parse(&text).map_err(|e| e.at(path.display()))
    }

    fn parse(text: &str) -> Result<Tokens> {
        let mut tokens: Vec<Token> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let wrong = |what: &str| {
                // The line is not shown: it may hold the secret.
                Error::new(ErrorKind::Usage, format_args!("line {}: {what}", index + 1)).hint(
                    "a line is: TOKEN [read,append,admin] [db=NAME,NAME]   (# begins a comment)",
                )
            };
            let Some(token) = parse_line(line).map_err(|what| wrong(&what))? else {
                continue;
            };
            if tokens.iter().any(|known| known.sha256 == token.sha256) {
                return Err(wrong("this token was given before"));
            }
            tokens.push(token);
        }
        if tokens.is_empty() {
            return Err(Error::new(ErrorKind::Usage, "no token in the token file")
                .hint("write at least one line: TOKEN [read,append,admin]"));
        }
        Ok(Tokens(tokens))
    }

    /// The presented token, if it is known; takes the same time whichever it resembles.
    fn find(&self, presented: &[u8]) -> Option<&Token> {
        let presented = sha256(presented);
        let mut found = None;
        for token in &self.0 {
            if bool::from(token.sha256.ct_eq(&presented)) {
                found = Some(token);
            }
        }
        found
    }
}

/// One line of a token file; none if nothing is in it.
fn parse_line(line: &str) -> std::result::Result<Option<Token>, String> {
    let mut words = line
        .split_whitespace()
        .take_while(|word| !word.starts_with('#'));
    let Some(secret) = words.next() else {
        return Ok(None);
    };
    let sha256 = match secret.strip_prefix(HASH_PREFIX) {
        Some(hex) => parse_hash(hex).ok_or("after sha256: come 64 hexadecimal digits")?,
        None if secret.len() > TOKEN_BYTES_MAX || !secret.bytes().all(|b| b.is_ascii_graphic()) => {
            return Err("a token is up to 512 letters, digits and signs of ASCII".to_string());
        }
        None => sha256(secret.as_bytes()),
    };
    let (mut scopes, mut databases) = (0, None);
    for word in words {
        if let Some(names) = word.strip_prefix("db=") {
            let names: Vec<String> = names
                .split(',')
                .filter(|name| !name.is_empty())
                .map(str::to_string)
                .collect();
            let well_formed = |name: &String| name.parse::<DatabaseName>().is_ok();
            if databases.is_some() || names.is_empty() || !names.iter().all(well_formed) {
                return Err("after db= come names of databases, once in a line".to_string());
            }
            databases = Some(names);
            continue;
        }
        for scope in word.split(',').filter(|word| !word.is_empty()) {
            scopes |= match scope {
                "read" => Scope::Read as u8,
                "append" => Scope::Append as u8,
                "admin" => Scope::Admin as u8,
                _ => return Err("a scope is read, append or admin".to_string()),
            };
        }
    }
    if scopes == 0 {
        scopes = Scope::Admin as u8;
    }
    Ok(Some(Token {
        sha256,
        scopes,
        databases,
    }))
}

fn sha256(bytes: &[u8]) -> [u8; SHA256_BYTES] {
    let mut out = [0; SHA256_BYTES];
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    for (to, from) in out.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    out
}

fn parse_hash(hex: &str) -> Option<[u8; SHA256_BYTES]> {
    if hex.len() != 2 * SHA256_BYTES || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut out = [0; SHA256_BYTES];
    for (index, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(out)
}

/// The word that stands for a token in a token file, without being it.
pub fn token_hash(token: &str) -> String {
    let mut out = HASH_PREFIX.to_string();
    for byte in sha256(token.as_bytes()) {
        out.push_str(&format!("{byte:02x}"));
    }
    out
}

/// Whether `line` may stand in a token file.
///
/// # Errors
/// `Usage`, with what is wrong.
pub fn check_token_line(line: &str) -> Result<()> {
    match parse_line(line) {
        Ok(_) => Ok(()),
        Err(what) => Err(Error::new(ErrorKind::Usage, what)),
    }
}

/// A new token: 32 random bytes of the operating system, in 64 hexadecimal digits.
///
/// # Errors
/// The system has no random numbers.
pub fn new_token() -> Result<String> {
    let mut bytes = [0; 32];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::new(ErrorKind::Io, "the system has no random numbers"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn check(
    tokens: Option<&Tokens>,
    headers: &HeaderMap,
    scopes: &[Scope],
    database: Option<&str>,
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
    let granted = tokens.find(presented).ok_or_else(refused)?;
    let wanted = scopes
        .iter()
        .fold(Scope::Admin as u8, |mask, scope| mask | *scope as u8);
    let forbidden = |what: &str| Err(Refusal::new(StatusCode::FORBIDDEN, what));
    if granted.scopes & wanted == 0 {
        let words: Vec<&str> = scopes.iter().map(|scope| scope.word()).collect();
        return forbidden(&format!(
            "this token does not have the scope {}",
            words.join(" or ")
        ));
    }
    if !granted.covers(database) {
        return forbidden("this token's scope is other databases");
    }
    Ok(())
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
        match check(Some(tokens), &map, &[scope], None) {
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
            check(Some(&tokens), &twice, &[Scope::Read], None)
                .unwrap_err()
                .status()
                .as_u16(),
            401
        );
        assert_eq!(
            check(Some(&tokens), &HeaderMap::new(), &[Scope::Read], None)
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
    fn a_file_may_hold_hashes_in_place_of_tokens() {
        let hash = token_hash("s3cret");
        assert_eq!(
            hash,
            "sha256:1ec1c26b50d5d3c58d9583181af8076655fe00756bf7285940ba3670f99fcba0"
        );
        let tokens = Tokens::parse(&format!("{hash} read\n")).unwrap();
        assert_eq!(status(&tokens, "Bearer s3cret", Scope::Read), 200);
        assert_eq!(status(&tokens, "Bearer s3cret", Scope::Append), 403);
        for wrong in [&hash[..], &hash[7..], "s3cre", "s3crett", "S3cret"] {
            assert_eq!(
                status(&tokens, &format!("Bearer {wrong}"), Scope::Read),
                401
            );
        }
        for text in [
            format!("{hash}\ns3cret\n"),
            hash[..70].to_string(),
            format!("{hash}0"),
            "sha256:".to_string(),
            hash.replace('0', "g"),
        ] {
            assert!(Tokens::parse(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_token_may_be_for_some_databases() {
        let tokens = Tokens::parse("one read db=app\ntwo db=app,orders\nall read\n").unwrap();
        let ask = |token: &str, database: Option<&str>| {
            let map = headers(&[("authorization", &format!("Bearer {token}"))]);
            match check(Some(&tokens), &map, &[Scope::Read], database) {
                Ok(()) => 200,
                Err(refusal) => refusal.status().as_u16(),
            }
        };
        for (token, app, orders, other, server) in [
            ("one", 200, 403, 403, 403),
            ("two", 200, 200, 403, 403),
            ("all", 200, 200, 200, 200),
        ] {
            assert_eq!(ask(token, Some("app")), app);
            assert_eq!(ask(token, Some("orders")), orders);
            assert_eq!(ask(token, Some("app2")), other);
            assert_eq!(ask(token, None), server);
        }
        for text in ["x db=", "x db=a/b", "x db=a db=b", "x db=,"] {
            assert!(Tokens::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn new_tokens_are_long_and_never_the_same() {
        let (one, other) = (new_token().unwrap(), new_token().unwrap());
        assert_eq!(one.len(), 64);
        assert_ne!(one, other);
        assert!(Tokens::parse(&one).is_ok());
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
                check(None, &headers(&[("host", good)]), &[Scope::Read], None).is_ok(),
                "{good}"
            );
        }
        assert!(check(None, &HeaderMap::new(), &[Scope::Read], None).is_ok());
        for bad in [
            "evil.example",
            "localhost.evil.example:80",
            "127.0.0.1.evil.example",
            "",
        ] {
            assert!(
                check(None, &headers(&[("host", bad)]), &[Scope::Read], None).is_err(),
                "{bad}"
            );
        }
    }
}
