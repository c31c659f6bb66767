//! Moments of a history as people name them: a transaction's number, a time, a span back from now, a bookmark.

use crate::bookmarks;
use crate::error::{Error, ErrorKind, Result};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// Which recorded state is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The last one.
    Head,
    /// The one after this transaction.
    Txid(u64),
    /// The one at this time, in µs since 1970: after the last transaction that is not later.
    Time(u64),
    /// The one after the transaction that has this bookmark.
    Bookmark(String),
}

/// The ways to name a moment, each by its parameter's value, where that is given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Named<'a> {
    /// A transaction's number.
    pub txid: Option<&'a str>,
    /// A time: see [`parse_time`].
    pub at: Option<&'a str>,
    /// A span of time: see [`parse_ago`].
    pub ago: Option<&'a str>,
    /// A bookmark's name.
    pub bookmark: Option<&'a str>,
}

impl Moment {
    /// The moment that `named` names, in one way at most; `place` begins the parameters' names in errors, as in `--at`.
    ///
    /// # Errors
    /// More than one is given, or one cannot be read.
    pub fn parse(place: &str, named: Named<'_>) -> Result<Moment> {
        let ways = [
            ("txid", named.txid),
            ("at", named.at),
            ("ago", named.ago),
            ("bookmark", named.bookmark),
        ];
        let mut given = ways
            .into_iter()
            .filter_map(|(way, value)| Some((way, value?)));
        let Some((way, value)) = given.next() else {
            return Ok(Moment::Head);
        };
        if given.next().is_some() {
            return Err(Error::new(
                ErrorKind::Usage,
                format_args!(
                    "more than one of {place}txid, {place}at, {place}ago and {place}bookmark is given"
                ),
            )
            .hint("name the moment in one way"));
        }
        Moment::in_way(way, value).map_err(|error| error.at(format_args!("{place}{way}")))
    }

    fn in_way(way: &str, value: &str) -> Result<Moment> {
        match way {
            "txid" => parse_txid(value),
            "at" => parse_time(value).map(Moment::Time),
            "ago" => parse_ago(value).map(Moment::Time),
            _ => bookmarks::check_name(value).map(|()| Moment::Bookmark(value.to_owned())),
        }
    }

    /// The moment that one word names: `live`, a transaction's number, a time, `ago:5m` or `bookmark:NAME`; also `txid:41` and
    /// `at:TIME`.
    ///
    /// # Errors
    /// It is none of these.
    pub fn parse_word(text: &str) -> Result<Moment> {
        if text == "live" {
            return Ok(Moment::Head);
        }
        for way in ["txid", "at", "ago", "bookmark"] {
            if let Some(value) = text
                .strip_prefix(way)
                .and_then(|rest| rest.strip_prefix(':'))
            {
                return Moment::in_way(way, value);
            }
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return parse_txid(text);
        }
        parse_time(text).map(Moment::Time).map_err(|_| {
            Error::new(ErrorKind::Usage, format_args!("{text:?} names no moment")).hint(
                "write a transaction's number, a time like 2026-11-20T10:00:00Z, ago:5m, bookmark:NAME or live",
            )
        })
    }
}

fn parse_txid(text: &str) -> Result<Moment> {
    match text.parse() {
        Ok(txid) if txid > 0 => Ok(Moment::Txid(txid)),
        _ => Err(Error::new(
            ErrorKind::Usage,
            format_args!("{text:?} is not the number of a transaction"),
        )
        .hint("mycelite log lists them")),
    }
}

/// A record's time for people and JSON: UTC with microseconds, as RFC 3339 has it.
pub fn time(us: u64) -> String {
    match i64::try_from(us)
        .ok()
        .and_then(|us| Timestamp::from_microsecond(us).ok())
    {
        Some(stamp) => format!("{stamp:.6}"),
        None => format!("{us} µs"),
    }
}

/// Microseconds since 1970 of `text`: RFC 3339, a date with or without a time, taken as UTC, or seconds since 1970.
///
/// # Errors
/// It is none of these, or before 1970.
pub fn parse_time(text: &str) -> Result<u64> {
    let civil = || {
        let civil = text.parse::<DateTime>().ok()?;
        civil
            .to_zoned(TimeZone::UTC)
            .ok()
            .map(|zoned| zoned.timestamp())
    };
    // A number with a point has µs; anything shorter than a date is a number of seconds.
    let unix = || {
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if seconds.len() < 9 || !digits(seconds) || !digits(fraction) || fraction.len() > 6 {
            return None;
        }
        let micros: u64 = format!("{fraction:0<6}").parse().ok()?;
        let seconds: u64 = seconds.parse().ok()?;
        seconds.checked_mul(1_000_000)?.checked_add(micros)
    };
    let stamp = text.parse::<Timestamp>().ok().or_else(civil);
    stamp
        .and_then(|stamp| u64::try_from(stamp.as_microsecond()).ok())
        .or_else(unix)
        .ok_or_else(|| {
            Error::new(ErrorKind::Usage, format_args!("{text:?} is not a time"))
                .hint("write it in UTC like 2026-11-20T10:00:00Z")
        })
}

/// Microseconds since 1970 of the instant `text` ago.
///
/// # Errors
/// It is not a span of time.
pub fn parse_ago(text: &str) -> Result<u64> {
    let span = text.parse::<jiff::SignedDuration>().ok();
    // A day is 24 hours here; the parser of exact durations leaves days out.
    let days = || {
        let days = text.trim().strip_suffix('d')?.trim().parse::<i64>().ok()?;
        days.checked_mul(24).map(jiff::SignedDuration::from_hours)
    };
    let now = Timestamp::now();
    span.or_else(days)
        .filter(|span| !span.is_negative())
        .and_then(|span| now.checked_sub(span).ok())
        .and_then(|stamp| u64::try_from(stamp.as_microsecond()).ok())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Usage,
                format_args!("{text:?} is not a span of time"),
            )
            .hint("write it like 90s, 5m, 2h or 1d")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_for_one_moment() {
        let parse = |txid, at, ago| {
            let named = Named {
                txid,
                at,
                ago,
                bookmark: None,
            };
            Moment::parse("--", named)
        };
        assert_eq!(parse(None, None, None).unwrap(), Moment::Head);
        assert_eq!(parse(Some("41"), None, None).unwrap(), Moment::Txid(41));
        assert_eq!(
            parse(None, Some("1970-01-02"), None).unwrap(),
            Moment::Time(86_400_000_000)
        );
        for wrong in ["0", "-1", "4.5", "", "x"] {
            let error = parse(Some(wrong), None, None).unwrap_err();
            assert!(error.to_string().starts_with("--txid: "), "{error}");
        }
        let error = parse(Some("1"), None, Some("1d")).unwrap_err();
        assert!(error.to_string().contains("more than one"), "{error}");
        let bookmark = |name| {
            let named = Named {
                bookmark: Some(name),
                ..Named::default()
            };
            Moment::parse("--", named)
        };
        assert_eq!(bookmark("x").unwrap(), Moment::Bookmark("x".to_owned()));
        assert!(bookmark("").unwrap_err().to_string().contains("empty"));
    }

    #[test]
    fn one_word_names_a_moment() {
        for (text, moment) in [
            ("live", Moment::Head),
            ("41", Moment::Txid(41)),
            ("txid:41", Moment::Txid(41)),
            ("1970-01-02", Moment::Time(86_400_000_000)),
            ("at:100000000", Moment::Time(100_000_000_000_000)),
            ("bookmark:ago:5m", Moment::Bookmark("ago:5m".to_owned())),
        ] {
            assert_eq!(Moment::parse_word(text).unwrap(), moment, "{text}");
        }
        assert!(matches!(Moment::parse_word("ago:5m"), Ok(Moment::Time(_))));
        for wrong in [
            "",
            "0",
            "-1",
            "Live",
            "5m",
            "ago:",
            "ago:-5m",
            "txid:x",
            "bookmark:",
            "at:noon",
        ] {
            let error = Moment::parse_word(wrong).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{wrong}: {error}");
        }
    }

    #[test]
    fn times_are_read_as_they_are_shown() {
        let us = 1_795_251_024_515_829;
        assert_eq!(time(us), "2026-11-21T08:50:24.515829Z");
        assert_eq!(parse_time(&time(us)).ok(), Some(us));
        assert_eq!(parse_time("1795251024.515829").ok(), Some(us));
        assert_eq!(
            parse_time("1795251024").ok(),
            Some(us / 1_000_000 * 1_000_000)
        );
        let noon = parse_time("2026-11-21T12:00:00Z").ok();
        for same in [
            "2026-11-21 12:00:00",
            "2026-11-21T12:00",
            "2026-11-21T13:00:00+01:00",
        ] {
            assert_eq!(parse_time(same).ok(), noon, "{same}");
        }
        for wrong in ["", "now", "12:00", "2026-13-01", "1905-01-01", "17", "."] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn spans_count_back_from_now() {
        let now = parse_ago("0s").unwrap_or(0);
        for (text, seconds) in [
            ("90s", 90),
            ("5m", 300),
            ("2h", 7200),
            ("1d", 86_400),
            ("1h 30m", 5400),
        ] {
            let then = parse_ago(text).unwrap_or(0);
            let difference = (now - then) / 1_000_000;
            assert!(
                (seconds - 5..=seconds).contains(&difference),
                "{text}: {difference}"
            );
        }
        for wrong in ["", "soon", "-5m", "5", "99999999999d"] {
            assert!(parse_ago(wrong).is_err(), "{wrong}");
        }
    }
}
