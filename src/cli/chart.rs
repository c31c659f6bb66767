//! A small chart of what was recorded when, and a summary.

use std::time::Duration;

use mycelite_journal::RecordHeader;

use super::output;

/// Columns of the chart. While it is filled, up to twice as many spans of time are told apart.
const COLUMNS: usize = 60;
/// The first span of a column, in µs; it doubles whenever the chart is full.
const WIDTH_FIRST_US: u64 = 1;
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Bytes of the log over time, in bounded memory.
pub struct Chart {
    first_us: u64,
    last_us: u64,
    width_us: u64,
    columns: Vec<u64>,
    transactions: u64,
    bytes: u64,
    pages: u64,
}

impl Chart {
    /// An empty one.
    pub fn new() -> Chart {
        Chart {
            first_us: 0,
            last_us: 0,
            width_us: WIDTH_FIRST_US,
            columns: vec![0; 2 * COLUMNS],
            transactions: 0,
            bytes: 0,
            pages: 0,
        }
    }

    /// Counts one record; they come in the order of their times.
    pub fn add(&mut self, header: &RecordHeader) {
        if self.transactions == 0 {
            self.first_us = header.time_us;
        }
        self.last_us = header.time_us;
        let since = header.time_us.saturating_sub(self.first_us);
        // At most 64 times, since a width is a number of 64 bits.
        while since / self.width_us >= self.columns.len() as u64 {
            let halves = self.columns.chunks(2).map(|pair| pair.iter().sum());
            self.columns = halves.collect();
            self.columns.resize(2 * COLUMNS, 0);
            self.width_us *= 2;
        }
        if let Some(column) = self.columns.get_mut((since / self.width_us) as usize) {
            *column += header.record_len();
        }
        self.transactions += 1;
        self.bytes += header.record_len();
        self.pages += u64::from(header.patch_count);
    }

    /// The chart and the summary, a line each; nothing without records.
    pub fn lines(&self) -> Vec<String> {
        let span = Duration::from_micros(self.last_us.saturating_sub(self.first_us));
        let seconds = span.as_secs_f64().max(1e-6);
        let mut lines = Vec::new();
        if self.transactions == 0 {
            return lines;
        }
        if self.transactions > 1 {
            let used = (span.as_micros() as u64 / self.width_us) as usize + 1;
            let step = used.div_ceil(COLUMNS).max(1);
            let columns: Vec<u64> = self
                .columns
                .get(..used)
                .unwrap_or(&self.columns)
                .chunks(step)
                .map(|chunk| chunk.iter().sum())
                .collect();
            let most = columns.iter().copied().max().unwrap_or(0).max(1);
            let drawn: String = columns
                .iter()
                .map(|bytes| match bytes {
                    0 => ' ',
                    bytes => {
                        let height = (bytes * BLOCKS.len() as u64).div_ceil(most) as usize;
                        BLOCKS.get(height.saturating_sub(1)).copied().unwrap_or('█')
                    }
                })
                .collect();
            let each = Duration::from_micros(self.width_us * step as u64);
            lines.push(format!(
                "{drawn}  up to {} in {}",
                output::bytes(most),
                output::duration(each)
            ));
        }
        lines.push(format!(
            "{} transactions, {} pages, {} in {}: {:.1} transactions and {} a second",
            self.transactions,
            self.pages,
            output::bytes(self.bytes),
            output::duration(span),
            self.transactions as f64 / seconds,
            output::bytes((self.bytes as f64 / seconds) as u64)
        ));
        lines
    }
}
