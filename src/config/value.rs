//! From a setting's text to its value, with an error that says what is allowed.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Age, FILE_BYTES_MAX, Given, Kind, Setting};
use crate::error::{Error, ErrorKind, Result};
use crate::proto::ReplicaUrl;

/// Replicas that one database may have at most.
const REPLICAS_MAX: usize = 32;

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

/// Who records a commit in WAL mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalCapture {
    /// The thread that commits, before its COMMIT returns.
    Commit,
    /// A thread of the process, soon after.
    Background,
}

impl WalCapture {
    pub(super) fn from_word(word: &str) -> WalCapture {
        match word {
            "background" => WalCapture::Background,
            _ => WalCapture::Commit,
        }
    }
}

impl fmt::Display for WalCapture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WalCapture::Commit => "commit",
            WalCapture::Background => "background",
        })
    }
}

/// What a commit does that was not acknowledged in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckPolicy {
    /// It succeeds, and the next ones do not wait until the replicas have caught up.
    Degrade,
    /// COMMIT reports an error, although the commit stands.
    Error,
}

impl AckPolicy {
    pub(super) fn from_word(word: &str) -> AckPolicy {
        match word {
            "error" => AckPolicy::Error,
            _ => AckPolicy::Degrade,
        }
    }
}

impl fmt::Display for AckPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AckPolicy::Degrade => "degrade",
            AckPolicy::Error => "error",
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
    Url(ReplicaUrl),
    Path(PathBuf),
    Secret(Secret),
    Choice(&'static str),
    Number(u64),
    /// None: for ever.
    Age(Option<Duration>),
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
        Kind::Url => parse_url(text, setting, given).map(Value::Url),
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
        Kind::Age => Age::parse(text)
            .map(|age| Value::Age(age.0))
            .ok_or_else(quoted),
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

fn parse_url(text: &str, setting: &Setting, given: &Given) -> Result<ReplicaUrl> {
    text.parse::<ReplicaUrl>().map_err(|why| {
        Error::new(ErrorKind::Usage, why)
            .at(&given.place)
            .hint(format_args!("allowed: {}", setting.allowed()))
    })
}

fn parse_urls(text: &str, given: &Given) -> Result<Vec<String>> {
    let mut urls: Vec<String> = Vec::new();
    for url in text.split(',').map(str::trim).filter(|url| !url.is_empty()) {
        // The rule is the wire's; the place and what is allowed are ours to say. It shows no secret.
        let url = url.parse::<ReplicaUrl>().map_err(|why| {
            Error::new(ErrorKind::Usage, why)
                .at(&given.place)
                .hint("allowed: http://HOST:PORT/NAME or https://..., several separated by commas")
        })?;
        let url = url.to_string();
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

/// The token in `path`: the first word that is not in a comment, so that a server's file of tokens and scopes serves too.
pub fn read_token(path: &Path) -> Result<Secret> {
    let text = read_bounded(path, "reading the token")?;
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    let word = lines
        .flat_map(str::split_whitespace)
        .next()
        .unwrap_or_default();
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
