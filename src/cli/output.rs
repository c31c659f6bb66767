//! What the verbs share when they talk to people: progress bars, times, tables and JSON.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use mycelite::error::{Error, ErrorKind, Result};

/// A progress bar over `total` bytes on a terminal; nothing in a pipe.
pub fn bytes_bar(total: u64, what: &'static str) -> ProgressBar {
    bar(
        total,
        what,
        "{msg:>12} [{bar:30}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left",
    )
}

/// A progress bar over `total` transactions on a terminal; nothing in a pipe.
pub fn transactions_bar(total: u64, what: &'static str) -> ProgressBar {
    bar(
        total,
        what,
        "{msg:>12} [{bar:30}] {human_pos} of {human_len} transactions, {eta} left",
    )
}

fn bar(total: u64, what: &'static str, template: &str) -> ProgressBar {
    let target = if io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(total), target)
        .with_style(style)
        .with_message(what)
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

/// Microseconds since the epoch of `text`: RFC 3339, or a date with or without a time, taken as UTC.
pub fn parse_time(text: &str) -> Result<u64> {
    let stamp = text.parse::<Timestamp>().ok().or_else(|| {
        let civil = text.parse::<DateTime>().ok()?;
        civil
            .to_zoned(TimeZone::UTC)
            .ok()
            .map(|zoned| zoned.timestamp())
    });
    stamp
        .and_then(|stamp| u64::try_from(stamp.as_microsecond()).ok())
        .ok_or_else(|| {
            Error::new(ErrorKind::Usage, format_args!("{text:?} is not a time"))
                .at("--at")
                .hint("write it in UTC like 2026-11-20T10:00:00Z")
        })
}

/// Microseconds since the epoch of the instant `text` ago.
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
            .at("--ago")
            .hint("write it like 90s, 5m, 2h or 1d")
        })
}

/// A number of bytes for people: `1.50 MiB`.
pub fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

/// A duration for people: milliseconds below ten seconds, then seconds.
pub fn duration(span: Duration) -> String {
    if span < Duration::from_millis(10) {
        format!("{:.1} ms", span.as_secs_f64() * 1000.0)
    } else if span < Duration::from_secs(10) {
        format!("{} ms", span.as_millis())
    } else {
        format!("{:.1} s", span.as_secs_f64())
    }
}

/// Standard output with a buffer. Once a reader went away (`| head`), the rest is quietly dropped.
pub struct Output {
    buffer: io::BufWriter<io::StdoutLock<'static>>,
    gone: bool,
}

impl Output {
    /// Takes standard output.
    pub fn new() -> Output {
        Output {
            buffer: io::BufWriter::new(io::stdout().lock()),
            gone: false,
        }
    }

    /// Writes one line.
    pub fn line(&mut self, text: impl std::fmt::Display) -> Result<()> {
        if self.gone {
            return Ok(());
        }
        let written = writeln!(self.buffer, "{text}");
        self.check(written)
    }

    /// Writes one value as one line of JSON.
    pub fn json(&mut self, value: &impl serde::Serialize) -> Result<()> {
        let text = serde_json::to_string(value).map_err(|error| {
            Error::new(ErrorKind::Internal, format_args!("writing JSON: {error}"))
        })?;
        self.line(text)
    }

    /// Whether nobody reads any more, so that a long listing can stop.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Writes what is in the buffer.
    pub fn finish(mut self) -> Result<()> {
        let written = self.buffer.flush();
        self.check(written)
    }

    fn check(&mut self, written: io::Result<()>) -> Result<()> {
        match written {
            Ok(()) => Ok(()),
            Err(source) if source.kind() == io::ErrorKind::BrokenPipe => {
                self.gone = true;
                Ok(())
            }
            Err(source) => {
                Err(Error::new(ErrorKind::Io, format_args!("writing: {source}"))
                    .at("standard output"))
            }
        }
    }
}

/// Rows with the columns padded to their widest cell; numbers (columns named in `right`) to the right.
pub fn table(head: &[&str], right: &[usize], rows: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells
            .chain(head.get(column).map(|cell| cell.len()))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let mut text = String::new();
        for (column, cell) in cells.into_iter().enumerate() {
            let wide = widths.get(column).copied().unwrap_or(0);
            text.push_str(&if right.contains(&column) {
                format!("{cell:>wide$}  ")
            } else {
                format!("{cell:<wide$}  ")
            });
        }
        text.trim_end().to_string()
    };
    let mut lines = vec![line(head.to_vec())];
    lines.extend(
        rows.iter()
            .map(|row| line(row.iter().map(String::as_str).collect())),
    );
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_shown() {
        let us = 1_795_251_024_515_829;
        assert_eq!(time(us), "2026-11-21T08:50:24.515829Z");
        assert_eq!(parse_time(&time(us)).ok(), Some(us));
        let noon = parse_time("2026-11-21T12:00:00Z").ok();
        for same in [
            "2026-11-21 12:00:00",
            "2026-11-21T12:00",
            "2026-11-21T13:00:00+01:00",
        ] {
            assert_eq!(parse_time(same).ok(), noon, "{same}");
        }
        for wrong in ["", "now", "12:00", "2026-13-01", "1905-01-01"] {
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

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["a".to_string(), "100".to_string()],
            vec!["long".to_string(), "7".to_string()],
        ];
        assert_eq!(
            table(&["name", "n"], &[1], &rows),
            ["name    n", "a     100", "long    7"]
        );
    }
}
