//! What a world comes to: numbers for its parent process, or a failure with what led to it.

use std::fmt::Write as _;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::kernel::{Kernel, SECOND};
use crate::real;

/// What is counted, in the order in which it travels.
pub const COUNTED: [&str; 14] = [
    "commits",
    "power cuts",
    "kills",
    "connections broken",
    "requests said again",
    "tails parked",
    "refusals reported",
    "log checks",
    "image checks",
    "durability checks",
    "positions said",
    "simulated seconds",
    "threads",
    "switches",
];

/// A world's numbers: the hash of all that happened, and what was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    pub hash: u64,
    pub counts: [u64; COUNTED.len()],
}

const BYTES: usize = 8 * (1 + COUNTED.len());

/// Where the parent reads.
static PIPE: AtomicI32 = AtomicI32::new(-1);

pub fn set_pipe(fd: RawFd) {
    PIPE.store(fd, Ordering::SeqCst);
}

impl Numbers {
    pub fn encode(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        let words = std::iter::once(self.hash).chain(self.counts);
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Numbers> {
        if bytes.len() != BYTES {
            return None;
        }
        let mut words = bytes
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()));
        let mut numbers = Numbers {
            hash: words.next()?,
            ..Numbers::default()
        };
        for (to, from) in numbers.counts.iter_mut().zip(words) {
            *to = from;
        }
        Some(numbers)
    }
}

fn say(bytes: &[u8]) {
    let fd = PIPE.load(Ordering::SeqCst);
    let mut rest = bytes;
    while !rest.is_empty() {
        let count = real::write(fd, rest.as_ptr().cast(), rest.len());
        let Ok(count @ 1..) = usize::try_from(count) else {
            break;
        };
        rest = &rest[count..];
    }
}

/// The world has ended well.
pub fn succeed(numbers: &Numbers) -> ! {
    say(&numbers.encode());
    // SAFETY: ends the process, with all its threads as they are.
    unsafe { libc::_exit(0) }
}

/// Something was that must not be.
pub fn fail(kernel: &Kernel, why: &str) -> ! {
    let mut text = String::new();
    for trace in &kernel.trace {
        let _ = writeln!(
            text,
            "  {:>12.6} {}",
            (trace.0 as f64) / SECOND as f64 - 1000.0,
            trace.1
        );
    }
    let at = kernel.now as f64 / SECOND as f64 - 1000.0;
    let _ = writeln!(text, "at {at:.6} s: {why}");
    say(text.as_bytes());
    // SAFETY: as above.
    unsafe { libc::_exit(1) }
}
