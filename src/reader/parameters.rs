//! What the URI of a database opened with `vfs=mycelite_reader` may say.

use std::path::Path;

use super::feed::Origin;
use crate::config::{Config, nearest};
use crate::error::{Error, ErrorKind, Result};
use crate::moment::{Moment, Named};

const TXID: &str = "txid";
const AT: &str = "at";
const AGO: &str = "ago";
const BOOKMARK: &str = "bookmark";
const HYDRATE: &str = "hydrate";
const SOURCE: &str = "source";
/// Settings that say how the source is reached.
const OF_SOURCE: [&str; 5] = [
    "source_timeout_ms",
    "token_file",
    "tls_ca",
    "tls_cert",
    "tls_key",
];
/// Parameters that SQLite itself gives a meaning to, and ours.
const KNOWN: [&str; 20] = [
    TXID,
    AT,
    AGO,
    BOOKMARK,
    HYDRATE,
    SOURCE,
    OF_SOURCE[0],
    OF_SOURCE[1],
    OF_SOURCE[2],
    OF_SOURCE[3],
    OF_SOURCE[4],
    "strict",
    "vfs",
    "mode",
    "cache",
    "psow",
    "nolock",
    "immutable",
    "modeof",
    "8_3_names",
];

/// What the parameters ask for.
#[derive(Debug)]
pub struct Wanted {
    /// The state.
    pub moment: Moment,
    /// A private copy is filled in the background, and read from as far as it is filled.
    pub hydrate: bool,
    /// What this process follows into the file.
    pub origin: Option<Origin>,
}

/// What the parameters `uri` ask for, where the database at `path` is opened.
///
/// # Errors
/// A parameter is unknown, is given twice, or cannot be read; more than one names a moment; they contradict each other; or a
/// setting of another layer that the source needs cannot be read.
pub fn wanted(path: &Path, uri: &[(String, String)]) -> Result<Wanted> {
    let strict = !uri
        .iter()
        .any(|(key, value)| key == "strict" && value == "0");
    for (at, (key, _)) in uri.iter().enumerate() {
        if !KNOWN.contains(&key.as_str()) {
            if strict {
                return Err(unknown(key));
            }
        } else if uri.iter().skip(at + 1).any(|(other, _)| other == key) {
            return Err(Error::new(ErrorKind::Usage, "given twice")
                .at(format_args!("URI parameter {key}"))
                .hint("give it once"));
        }
    }
    let value = |name: &str| {
        uri.iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    };
    let named = Named {
        txid: value(TXID),
        at: value(AT),
        ago: value(AGO),
        bookmark: value(BOOKMARK),
    };
    let moment = Moment::parse("URI parameter ", named)?;
    let hydrate = match value(HYDRATE) {
        None | Some("0") => false,
        Some("1") if moment == Moment::Head => {
            return Err(
                refused(HYDRATE, "hydrate=1 without a moment: the head moves on")
                    .hint("add &txid=, &at=, &ago= or &bookmark="),
            );
        }
        Some("1") => true,
        Some(other) => {
            return Err(refused(HYDRATE, &format!("{other:?} is neither 0 nor 1"))
                .hint("mycelite restore writes a file that stays"));
        }
    };
    let origin = match value(SOURCE) {
        Some(_) if moment != Moment::Head => {
            return Err(refused(SOURCE, "a past moment follows nobody")
                .hint("leave source away, or the moment"));
        }
        Some(_) => origin(path, uri)?,
        None => match uri
            .iter()
            .find(|(key, _)| OF_SOURCE.contains(&key.as_str()))
        {
            Some((key, _)) => {
                return Err(
                    refused(key, "it says how a source is reached, and there is none")
                        .hint("add source=http://HOST:PORT/NAME"),
                );
            }
            None => None,
        },
    };
    Ok(Wanted {
        moment,
        hydrate,
        origin,
    })
}

/// What is followed, by all layers of the settings.
fn origin(path: &Path, uri: &[(String, String)]) -> Result<Option<Origin>> {
    let settings: Vec<(String, String)> = uri
        .iter()
        .filter(|(key, _)| {
            ["vfs", "strict", SOURCE].contains(&key.as_str()) || OF_SOURCE.contains(&key.as_str())
        })
        .cloned()
        .collect();
    let config = Config::for_database(path, &settings)?;
    let access = config.access();
    Ok(config.source.map(|url| Origin {
        url,
        access,
        timeout: config.source_timeout,
    }))
}

fn refused(parameter: &str, what: &str) -> Error {
    Error::new(ErrorKind::Usage, what).at(format_args!("URI parameter {parameter}"))
}

fn unknown(key: &str) -> Error {
    let hint = match nearest(key, KNOWN) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("known are {}", KNOWN.join(", ")),
    };
    Error::new(ErrorKind::Usage, format_args!("unknown setting {key:?}"))
        .at(format_args!("URI parameter {key}"))
        .hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(uri: &[(&str, &str)]) -> Result<Moment> {
        let uri: Vec<(String, String)> = uri
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        wanted(Path::new("/nowhere/app.db"), &uri).map(|wanted| wanted.moment)
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let vfs = ("vfs", "mycelite_reader");
        assert_eq!(parse(&[vfs]).unwrap(), Moment::Head);
        assert_eq!(parse(&[vfs, ("txid", "7")]).unwrap(), Moment::Txid(7));
        for (uri, says) in [
            (&[vfs, ("tixd", "7")][..], "did you mean txid?"),
            (&[vfs, ("replica", "http://h/app")], "unknown setting"),
            (&[vfs, ("txid", "7"), ("txid", "8")], "given twice"),
            (&[vfs, ("txid", "7"), ("ago", "5m")], "more than one"),
            (&[vfs, ("txid", "seven")], "not the number"),
            (&[vfs, ("at", "noon")], "not a time"),
            (&[vfs, ("ago", "a while")], "not a span"),
            (&[vfs, ("bookmark", "")], "empty"),
            (
                &[vfs, ("bookmark", "x"), ("at", "2026-11-20")],
                "more than one",
            ),
            (&[vfs, ("hydrate", "1")], "without a moment"),
            (&[vfs, ("txid", "7"), ("hydrate", "yes")], "neither 0 nor 1"),
            (&[vfs, ("source", "ftp://h/app")], "http://HOST:PORT/NAME"),
            (&[vfs, ("source", "")], "http://HOST:PORT/NAME"),
            (&[vfs, ("source", "http://h/app,http://i/app")], "source"),
            (
                &[vfs, ("source", "http://h/app"), ("txid", "7")],
                "follows nobody",
            ),
            (
                &[vfs, ("source", "http://h/app"), ("replica", "http://h/app")],
                "unknown setting",
            ),
            (
                &[
                    vfs,
                    ("source", "http://h/app"),
                    ("source_timeout_ms", "soon"),
                ],
                "600000",
            ),
            (&[vfs, ("token_file", "t")], "there is none"),
        ] {
            let error = parse(uri).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let foreign = [vfs, ("other", "x"), ("strict", "0")];
        assert_eq!(parse(&foreign).unwrap(), Moment::Head);
    }
}
