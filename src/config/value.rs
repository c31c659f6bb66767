//! From a setting's text to its value, with an error that says what is allowed.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{FILE_BYTES_MAX, Given, Kind, Setting};
use crate::error::{Error, ErrorKind, Result};

/// Replicas that one database may have at most.
const REPLICAS_MAX: usize = 32;

/// Characters of a database name on a server at most.
const NAME_CHARS_MAX: usize = 100;

/// When the log is fsynced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogSync {
    /// Never by us: the operating system decides. A power cut may cost the newest records, which a re-base repairs.
    Off,
    /// Before its records could no longer be rebuilt from the database: before a checkpoint, at the end of a segment, at close.
    Normal,
    /// At every commit.
    Full,
}

impl LogSync {
    pub(super) fn from_word(word: &str) -> LogSync {
        match word {
            "off" => LogSync::Off,
            "full" => LogSync::Full,
            _ => LogSync::Normal,
        }
    }
}

impl fmt::Display for LogSync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LogSync::Off => "off",
            LogSync::Normal => "normal",
            LogSync::Full => "full",
        })
    }
}

/// A bearer token. Neither `Debug` nor anything else shows it; [`Secret::reveal`] does, for the one request header.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a token; `None` unless it is 1 to 4096 printable ASCII characters without blanks.
    pub fn new(text: &str) -> Option<Secret> {
        let fits =
            (1..=4096).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| Secret(text.to_string()))
    }

    /// The token itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(...)")
    }
}

/// A value that its setting allows.
pub(super) enum Value {
    Urls(Vec<String>),
    Path(PathBuf),
    Secret(Secret),
    Choice(&'static str),
    Number(u64),
}

pub(super) fn parse(setting: &Setting, given: &Given) -> Result<Value> {
    let text = given.text.trim();
    let bad = |shown: &str| {
        Error::new(
            ErrorKind::Usage,
            format_args!("{shown} is not allowed for {}", setting.name),
        )
        .at(&given.place)
        .hint(format_args!("allowed: {}", setting.allowed()))
    };
    let quoted = || bad(&format!("{text:?}"));
    match setting.kind {
        Kind::Urls => parse_urls(text, given).map(Value::Urls),
        Kind::Path if text.is_empty() => Err(bad("an empty path")),
        Kind::Path => Ok(Value::Path(absolute(&given.base.join(text)))),
        Kind::Secret => Secret::new(text)
            .map(Value::Secret)
            .ok_or_else(|| bad("the value")),
        Kind::Choice(words) => words
            .iter()
            .find(|word| **word == text)
            .map(|word| Value::Choice(word))
            .ok_or_else(quoted),
        Kind::Integer { min, max, .. } => in_range(text.parse().ok(), min, max).ok_or_else(quoted),
        Kind::Bytes { min, max } => {
            in_range(super::Bytes::parse(text).map(|bytes| bytes.0), min, max).ok_or_else(quoted)
        }
        Kind::Flag => in_range(text.parse().ok(), 0, 1).ok_or_else(quoted),
    }
}

fn in_range(number: Option<u64>, min: u64, max: u64) -> Option<Value> {
    number
        .filter(|number| (min..=max).contains(number))
        .map(Value::Number)
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

fn parse_urls(text: &str, given: &Given) -> Result<Vec<String>> {
    let mut urls: Vec<String> = Vec::new();
    for url in text.split(',').map(str::trim).filter(|url| !url.is_empty()) {
        if let Err(why) = check_replica_url(url) {
            return Err(Error::new(
                ErrorKind::Usage,
                format_args!("replica {} {why}", without_userinfo(url)),
            )
            .at(&given.place)
            .hint("allowed: http://HOST:PORT/NAME, several separated by commas"));
        }
        let url = url.trim_end_matches('/').to_string();
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    if urls.len() > REPLICAS_MAX {
        return Err(
            Error::new(ErrorKind::Usage, format_args!("{} replicas", urls.len()))
                .at(&given.place)
                .hint(format_args!("at most {REPLICAS_MAX}")),
        );
    }
    Ok(urls)
}

/// The URL in quotes with `user:password@` left out: a secret that someone put there must not reach a log.
fn without_userinfo(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => match rest.rsplit_once('@') {
            Some((_, host)) => format!("\"{scheme}://...@{host}\""),
            None => format!("{url:?}"),
        },
        None if url.contains('@') => "(not shown)".into(),
        None => format!("{url:?}"),
    }
}

/// Checks the URL of one replica: `http://HOST[:PORT]/NAME`. The error says what is wrong and fits after the URL.
pub fn check_replica_url(url: &str) -> std::result::Result<(), String> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err("has no scheme".into());
    };
    match scheme {
        "http" => {}
        "https" => return Err("needs TLS, which this version does not speak".into()),
        _ => return Err(format!("has the scheme {scheme:?}, not http")),
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.contains('@') || path.contains('@') {
        return Err("carries a user name or password, which would be shown: use MYCELITE_TOKEN or token_file".into());
    }
    check_authority(authority)?;
    if path.contains(['?', '#']) {
        return Err("carries a query".into());
    }
    let name = path.strip_suffix('/').unwrap_or(path);
    if name.is_empty() {
        return Err("names no database: a NAME must follow the port".into());
    }
    check_name(name)
}

fn check_authority(authority: &str) -> std::result::Result<(), String> {
    let (host, port) = match authority.rsplit_once(':') {
        // The colons inside [::1] belong to the host.
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let plain = host
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    let bracketed = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|inside| inside.parse::<std::net::Ipv6Addr>().is_ok());
    if host.is_empty() || !(plain || bracketed) {
        return Err("has no valid host".into());
    }
    match port.map(|port| port.parse::<u16>()) {
        None => Ok(()),
        Some(Ok(1..)) => Ok(()),
        Some(_) => Err("has no valid port (1 to 65535)".into()),
    }
}

fn check_name(name: &str) -> std::result::Result<(), String> {
    let first = name
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if first && rest && name.len() <= NAME_CHARS_MAX {
        return Ok(());
    }
    Err(format!(
        "names the database {name:?}: a name is 1 to {NAME_CHARS_MAX} letters, digits, '.', '_' or '-', the first a letter or digit"
    ))
}

/// The token in `path`: the first word that is not in a comment, so that a server's file of tokens and scopes serves too.
pub(super) fn read_token(path: &Path) -> Result<Secret> {
    let text = read_bounded(path, "reading the token")?;
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let word = lines.flat_map(str::split_whitespace).next().unwrap_or_default();
    Secret::new(word).ok_or_else(|| {
        Error::new(ErrorKind::Usage, "there is no token in this file")
            .at(format_args!("token_file {}", path.display()))
            .hint("write the token on the first line: printable ASCII characters without blanks")
    })
}

/// A small text file, whole.
pub(super) fn read_bounded(path: &Path, what: &str) -> Result<String> {
    let io = |source: std::io::Error| Error::io(what, path, &source);
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(io)?;
    let read = file
        .take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(io)?;
    if read as u64 > FILE_BYTES_MAX {
        return Err(Error::new(
            ErrorKind::Usage,
            format_args!("the file is longer than {FILE_BYTES_MAX} bytes"),
        )
        .at(path.display())
        .hint("is it the right file?"));
    }
    Ok(text)
}
