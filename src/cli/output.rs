//! What the verbs share when they talk to people: progress bars, times, tables and JSON.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
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
