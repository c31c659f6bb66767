//! What a follower last heard from its server, in a file beside its log, for other processes that read the replica.
//!
//! One line, `TXID TIME BYTES URL`: the server's last transaction, when it said so in µs since 1970, the bytes of records that
//! had not come by then, and who said it. It is written over in place, and may be old; whoever reads it is told how old.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Its name in the log's directory.
const NAME: &str = "upstream";
/// Bytes of the numbers, so that shorter ones leave nothing of longer ones.
const NUMBERS_BYTES: usize = 64;

/// What a server said last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Its last transaction.
    pub txid: u64,
    /// When it said so, µs since 1970 by the clock here.
    pub time_us: u64,
    /// Bytes of records that had not come by then.
    pub behind_bytes: u64,
    /// Its database's URL; empty where that is not known.
    pub url: String,
}

impl Upstream {
    /// Writes it down, and says whether it could; a failure costs nothing but this note.
    pub fn write(&self, log_dir: &Path) -> bool {
        let line = format!("{} {} {}", self.txid, self.time_us, self.behind_bytes);
        let opened = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(log_dir.join(NAME));
        let line = format!("{line:<0$}{1}\n", NUMBERS_BYTES, self.url);
        opened.is_ok_and(|mut file| {
            let written = file.write_all(line.as_bytes());
            written
                .and_then(|()| file.set_len(line.len() as u64))
                .is_ok()
        })
    }

    /// What was written down; none where nobody follows, or it cannot be read.
    pub fn read(log_dir: &Path) -> Option<Upstream> {
        let text = std::fs::read_to_string(log_dir.join(NAME)).ok()?;
        let mut words = text.split_whitespace();
        let mut next = || words.next()?.parse().ok();
        Some(Upstream {
            txid: next()?,
            time_us: next()?,
            behind_bytes: next()?,
            url: words.next().unwrap_or_default().to_owned(),
        })
    }

    /// How long ago it was said, in ms.
    pub fn age_ms(&self) -> u64 {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_micros() as u64);
        now.saturating_sub(self.time_us) / 1000
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_was_said_last_is_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Upstream::read(dir.path()), None);
        for said in [
            Upstream {
                txid: u64::MAX,
                time_us: u64::MAX,
                behind_bytes: u64::MAX,
                url: "https://a-long-name.example:7878/app".to_owned(),
            },
            Upstream {
                txid: 5,
                time_us: 1_795_251_024_515_829,
                behind_bytes: 0,
                url: "http://a:1/b".to_owned(),
            },
        ] {
            said.write(dir.path());
            assert_eq!(Upstream::read(dir.path()), Some(said));
        }
        std::fs::write(dir.path().join(NAME), "5 6 7\n").unwrap();
        assert_eq!(Upstream::read(dir.path()).unwrap().url, "");
        std::fs::write(dir.path().join(NAME), "5 nothing").unwrap();
        assert_eq!(Upstream::read(dir.path()), None);
    }
}
