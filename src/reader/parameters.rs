//! What the URI of a database opened with `vfs=mycelite_reader` may say.

use crate::config::nearest;
use crate::error::{Error, ErrorKind, Result};
use crate::moment::{Moment, Named};

const TXID: &str = "txid";
const AT: &str = "at";
const AGO: &str = "ago";
const BOOKMARK: &str = "bookmark";
const HYDRATE: &str = "hydrate";
/// Parameters that SQLite itself gives a meaning to, and ours.
const KNOWN: [&str; 14] = [
    TXID,
    AT,
    AGO,
    BOOKMARK,
    HYDRATE,
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
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The state.
    pub moment: Moment,
    /// A private copy is filled in the background, and read from as far as it is filled.
    pub hydrate: bool,
}

/// What the parameters `uri` ask for.
///
/// # Errors
/// A parameter is unknown, is given twice, or cannot be read; or more than one names a moment.
pub fn wanted(uri: &[(String, String)]) -> Result<Wanted> {
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
            return Err(refused("hydrate=1 without a moment: the head moves on")
                .hint("add &txid=, &at=, &ago= or &bookmark="));
        }
        Some("1") => true,
        Some(other) => {
            return Err(refused(&format!("{other:?} is neither 0 nor 1"))
                .hint("mycelite restore writes a file that stays"));
        }
    };
    Ok(Wanted { moment, hydrate })
}

fn refused(what: &str) -> Error {
    Error::new(ErrorKind::Usage, what).at(format_args!("URI parameter {HYDRATE}"))
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
        wanted(&uri).map(|wanted| wanted.moment)
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
        ] {
            let error = parse(uri).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let foreign = [vfs, ("other", "x"), ("strict", "0")];
        assert_eq!(parse(&foreign).unwrap(), Moment::Head);
    }
}
