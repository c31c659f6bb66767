//! Moments of a history as people name them: a transaction's number, a time, a span back from now.

use crate::error::{Error, ErrorKind, Result};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// Which recorded state is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The last one.
    Head,
    /// The one after this transaction.
    Txid(u64),
    /// The one at this time, in µs since 1970: after the last transaction that is not later.
    Time(u64),
}

impl Moment {
    /// The moment that at most one of the three names; `place` begins the parameters' names in errors, as in `--at`.
    ///
    /// # Errors
    /// More than one is given, or one cannot be read.
    pub fn parse(
        place: &str,
        txid: Option<&str>,
        at: Option<&str>,
        ago: Option<&str>,
    ) -> Result<Moment> {
        let named = |error: Error, name: &str| error.at(format_args!("{place}{name}"));
        match (txid, at, ago) {
            (None, None, None) => Ok(Moment::Head),
            (Some(txid), None, None) => match txid.parse() {
                Ok(txid) if txid > 0 => Ok(Moment::Txid(txid)),
                _ => Err(named(
                    Error::new(
                        ErrorKind::Usage,
                        format_args!("{txid:?} is not the number of a transaction"),
                    )
                    .hint("mycelite log lists them"),
                    "txid",
                )),
            },
            (None, Some(at), None) => parse_time(at).map(Moment::Time).map_err(|e| named(e, "at")),
            (None, None, Some(ago)) => parse_ago(ago)
                .map(Moment::Time)
                .map_err(|e| named(e, "ago")),
            _ => Err(Error::new(
                ErrorKind::Usage,
                format_args!("more than one of {place}txid, {place}at and {place}ago is given"),
            )
            .hint("name the moment in one way")),
        }
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
        let parse = |txid, at, ago| Moment::parse("--", txid, at, ago);
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
