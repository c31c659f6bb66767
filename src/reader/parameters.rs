//! What the URI of a database opened with `vfs=mycelite_reader` may say.

use crate::config::nearest;
use crate::error::{Error, ErrorKind, Result};
use crate::moment::Moment;

const TXID: &str = "txid";
const AT: &str = "at";
const AGO: &str = "ago";
/// Parameters that SQLite itself gives a meaning to, and ours.
const KNOWN: [&str; 12] = [
    TXID,
    AT,
    AGO,
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

/// The moment that the parameters `uri` ask for.
///
/// # Errors
/// A parameter is unknown, is given twice, or cannot be read; or more than one names a moment.
pub fn moment(uri: &[(String, String)]) -> Result<Moment> {
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
    Moment::parse("URI parameter ", value(TXID), value(AT), value(AGO))
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
        moment(&uri)
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
        ] {
            let error = parse(uri).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let foreign = [vfs, ("other", "x"), ("strict", "0")];
        assert_eq!(parse(&foreign).unwrap(), Moment::Head);
    }
}
