//! How hard the records of one stream are compressed. On a line that is faster than the compressor, compressing is what a
//! follower waits for: what was measured decides, so that nobody has to say which line is which.

use std::time::Duration;

/// Fast, and already within a few percent of what higher levels reach on changed ranges.
pub(super) const LEVEL: i32 = 1;
/// Hardly more than a copy.
const LEVEL_LEAST: i32 = -100;
/// Bytes of records, as the log stores them, by which a level is judged.
const WINDOW_BYTES: u64 = 16 << 20;
/// A judgement holds for so many windows.
const WINDOWS_KEPT: u32 = 8;

/// The level of one stream that has much to send.
#[derive(Debug)]
pub(super) struct Effort {
    course: Course,
    window: Window,
    /// The last window at [`LEVEL`].
    compressed: Window,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    /// At [`LEVEL`], for so many windows before the other is tried.
    Compress(u32),
    /// One window at [`LEVEL_LEAST`], to see.
    Try,
    /// At [`LEVEL_LEAST`], for so many windows before [`LEVEL`] is measured again.
    Copy(u32),
}

/// What went out, and the time that took.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    bytes: u64,
    /// Reading and compressing.
    reading: Duration,
    /// Waiting for the line, and for who reads at its other end.
    waiting: Duration,
}

impl Window {
    fn seconds_per_byte(&self) -> f64 {
        (self.reading + self.waiting).as_secs_f64() / self.bytes.max(1) as f64
    }
}

impl Effort {
    /// Of a stream that begins.
    pub fn new() -> Effort {
        Effort {
            course: Course::Compress(0),
            window: Window::default(),
            compressed: Window::default(),
        }
    }

    /// The zstd level of the next piece.
    pub fn level(&self) -> i32 {
        match self.course {
            Course::Compress(_) => LEVEL,
            Course::Try | Course::Copy(_) => LEVEL_LEAST,
        }
    }

    /// A piece with `bytes` of records was read and compressed in the one time, and sent in the other.
    pub fn sent(&mut self, bytes: u64, reading: Duration, waiting: Duration) {
        self.window.bytes += bytes;
        self.window.reading += reading;
        self.window.waiting += waiting;
        if self.window.bytes >= WINDOW_BYTES {
            let window = std::mem::take(&mut self.window);
            self.course = self.judge(window);
        }
    }

    fn judge(&mut self, window: Window) -> Course {
        match self.course {
            Course::Compress(kept) => {
                self.compressed = window;
                match kept.checked_sub(1) {
                    Some(kept) => Course::Compress(kept),
                    // A line that is waited for longer than the compressor is better served with fewer bytes.
                    None if window.waiting >= window.reading => Course::Compress(0),
                    None => Course::Try,
                }
            }
            Course::Try if window.seconds_per_byte() < self.compressed.seconds_per_byte() => {
                Course::Copy(WINDOWS_KEPT)
            }
            Course::Try => Course::Compress(WINDOWS_KEPT),
            Course::Copy(kept) => match kept.checked_sub(1) {
                Some(kept) => Course::Copy(kept),
                None => Course::Compress(0),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends so many megabytes over a line; the bytes that were sent at each level. All rates are MB/s; compressing halves.
    fn send(effort: &mut Effort, megabytes: u64, compressor: f64, line: f64) -> [u64; 2] {
        let mut at = [0; 2];
        for _ in 0..megabytes {
            let (index, reading, size) = match effort.level() {
                LEVEL => (0, 1.0 / compressor, 0.5),
                _ => (1, 0.0005, 1.0),
            };
            // Sending goes on beside reading.
            let waiting = (size / line - reading).max(0.0);
            at[index] += 1;
            effort.sent(
                1 << 20,
                Duration::from_secs_f64(reading),
                Duration::from_secs_f64(waiting),
            );
        }
        at
    }

    #[test]
    fn a_fast_line_gets_copies_and_a_slow_one_fewer_bytes() {
        let [compressed, copied] = send(&mut Effort::new(), 1000, 430.0, 5000.0);
        assert!(copied > 8 * compressed, "{compressed} and {copied}");
        for slow in [1.0, 10.0, 100.0] {
            let [compressed, copied] = send(&mut Effort::new(), 1000, 430.0, slow);
            assert_eq!((compressed, copied), (1000, 0), "{slow}");
        }
    }

    #[test]
    fn what_a_copy_does_not_make_faster_stays_compressed() {
        // The compressor is waited for, but copies would keep the line busy for longer.
        let [compressed, copied] = send(&mut Effort::new(), 1000, 400.0, 300.0);
        assert!(compressed > 5 * copied, "{compressed} and {copied}");
        assert!(copied > 0);
    }

    #[test]
    fn a_line_that_becomes_slow_is_noticed() {
        let mut effort = Effort::new();
        send(&mut effort, 100, 430.0, 5000.0);
        assert_ne!(effort.level(), LEVEL);
        let [compressed, copied] = send(&mut effort, 1000, 430.0, 20.0);
        assert!(
            copied < 200 && compressed > 800,
            "{compressed} and {copied}"
        );
    }
}
