//! The one table of settings: `--help`, `mycelite_config`, error messages and the README derive from it.

use std::fmt;
use std::time::Duration;

/// What a setting's value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Replica URLs separated by commas; empty means none.
    Urls,
    /// The URL of one database on a server.
    Url,
    /// Path of a file.
    Path,
    /// A secret that is never shown.
    Secret,
    /// One of a few words.
    Choice(&'static [&'static str]),
    /// A whole number from `min` to `max` in `unit`.
    Integer {
        /// Smallest allowed value.
        min: u64,
        /// Largest allowed value.
        max: u64,
        /// What is counted.
        unit: &'static str,
    },
    /// A number of bytes from `min` to `max`; `KiB`, `MiB` and `GiB` may follow the number.
    Bytes {
        /// Smallest allowed value.
        min: u64,
        /// Largest allowed value.
        max: u64,
    },
    /// A span of time, or `forever`.
    Age,
    /// 0 or 1.
    Flag,
}

/// Where a setting may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In every layer.
    Anywhere,
    /// Only in the environment: it must not reach a file or a log line by accident.
    EnvironmentOnly,
    /// Only as a URI parameter: it concerns the URI itself.
    UriOnly,
}

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name, as in a URI, in `mycelite_config` and in TOML; the environment variable is `MYCELITE_` and the name in capitals.
    pub name: &'static str,
    /// What its value may be.
    pub kind: Kind,
    /// Where it may be given.
    pub scope: Scope,
    /// Its value when no layer gives one; empty: none.
    pub default: &'static str,
    /// What it does, one line.
    pub help: &'static str,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Every setting there is.
pub static SETTINGS: [Setting; 24] = [
    Setting {
        name: "replica",
        kind: Kind::Urls,
        scope: Scope::Anywhere,
        default: "",
        help: "where the log is sent: http://HOST:PORT/NAME or https://..., several separated by commas; empty: nowhere",
    },
    Setting {
        name: "token_file",
        kind: Kind::Path,
        scope: Scope::Anywhere,
        default: "",
        help: "file whose first word is the bearer token for the replicas; # begins a comment",
    },
    Setting {
        name: "token",
        kind: Kind::Secret,
        scope: Scope::EnvironmentOnly,
        default: "",
        help: "the bearer token itself; wins over token_file",
    },
    Setting {
        name: "tls_ca",
        kind: Kind::Path,
        scope: Scope::Anywhere,
        default: "",
        help: "for https: file (PEM) of the certificates that are trusted to sign a server's; without, those of the system",
    },
    Setting {
        name: "tls_cert",
        kind: Kind::Path,
        scope: Scope::Anywhere,
        default: "",
        help: "for https: file (PEM) of the certificate to show to a server that asks for one",
    },
    Setting {
        name: "tls_key",
        kind: Kind::Path,
        scope: Scope::Anywhere,
        default: "",
        help: "for https: file (PEM) of the private key of tls_cert; without, it is in the same file",
    },
    Setting {
        name: "log_sync",
        kind: Kind::Choice(&["off", "normal", "full"]),
        scope: Scope::Anywhere,
        default: "normal",
        help: "when the log is fsynced: off = as the system likes, normal = before its records can no longer be rebuilt, full = at every commit",
    },
    Setting {
        name: "wal_capture",
        kind: Kind::Choice(&["commit", "background"]),
        scope: Scope::Anywhere,
        default: "commit",
        help: "who records a commit in WAL mode: commit = the thread that commits; background = a thread of the process, about a millisecond later, many commits at a time",
    },
    Setting {
        name: "segment_bytes_max",
        kind: Kind::Bytes {
            min: 64 * KIB,
            max: 4 * GIB,
        },
        scope: Scope::Anywhere,
        default: "16 MiB",
        help: "a log segment longer than this is ended at the next record",
    },
    Setting {
        name: "adopt_background_min",
        kind: Kind::Bytes {
            min: 0,
            max: 1024 * 1024 * GIB,
        },
        scope: Scope::Anywhere,
        default: "8 MiB",
        help: "a database that has no log yet, is in WAL mode and is at least as large goes into its log by a thread, while the application goes on; a smaller one in its first write transaction",
    },
    Setting {
        name: "close_flush_ms",
        kind: Kind::Integer {
            min: 0,
            max: 60_000,
            unit: "milliseconds",
        },
        scope: Scope::Anywhere,
        default: "500",
        help: "how long the last close waits for the replicas to receive everything; 0: not at all",
    },
    Setting {
        name: "request_timeout_ms",
        kind: Kind::Integer {
            min: 100,
            max: 600_000,
            unit: "milliseconds",
        },
        scope: Scope::Anywhere,
        default: "10000",
        help: "how long one request to a replica may take",
    },
    Setting {
        name: "batch_bytes_max",
        kind: Kind::Bytes {
            min: 64 * KIB,
            max: GIB,
        },
        scope: Scope::Anywhere,
        default: "4 MiB",
        help: "how many bytes of records go into one request (a larger record goes alone)",
    },
    Setting {
        name: "ack",
        kind: Kind::Integer {
            min: 0,
            max: 32,
            unit: "replicas",
        },
        scope: Scope::Anywhere,
        default: "0",
        help: "COMMIT returns when so many replicas hold the transaction durably; 0: it does not wait. Each connection may have its own",
    },
    Setting {
        name: "ack_timeout_ms",
        kind: Kind::Integer {
            min: 1,
            max: 600_000,
            unit: "milliseconds",
        },
        scope: Scope::Anywhere,
        default: "5000",
        help: "how long a COMMIT waits for that at most",
    },
    Setting {
        name: "ack_policy",
        kind: Kind::Choice(&["degrade", "error"]),
        scope: Scope::Anywhere,
        default: "degrade",
        help: "after that time: degrade = go on without waiting until the replicas have caught up, and say so; error = COMMIT reports an error although it stands",
    },
    Setting {
        name: "keep_all",
        kind: Kind::Age,
        scope: Scope::Anywhere,
        default: "1d",
        help: "how long every commit stays in the log; of older ones some states stay",
    },
    Setting {
        name: "keep_minutes",
        kind: Kind::Age,
        scope: Scope::Anywhere,
        default: "7d",
        help: "how long the last state of each minute stays; until then a replica that is behind gets every commit",
    },
    Setting {
        name: "keep_hours",
        kind: Kind::Age,
        scope: Scope::Anywhere,
        default: "30d",
        help: "how long the last state of each hour stays",
    },
    Setting {
        name: "keep_days",
        kind: Kind::Age,
        scope: Scope::Anywhere,
        default: "forever",
        help: "how long the last state of each day stays; what is older is dropped",
    },
    Setting {
        name: "log_bytes_max",
        kind: Kind::Bytes {
            min: MIB,
            max: 1024 * 1024 * GIB,
        },
        scope: Scope::Anywhere,
        default: "",
        help: "a log longer than this is compacted harder, then its oldest history is dropped, but no bookmark",
    },
    Setting {
        name: "source",
        kind: Kind::Url,
        scope: Scope::UriOnly,
        default: "",
        help: "with vfs=mycelite_reader: the server's database that this process follows into the file, so that no daemon is needed",
    },
    Setting {
        name: "source_timeout_ms",
        kind: Kind::Integer {
            min: 0,
            max: 600_000,
            unit: "milliseconds",
        },
        scope: Scope::Anywhere,
        default: "10000",
        help: "with source: how long a read waits for the server while there is no copy of its database here yet",
    },
    Setting {
        name: "strict",
        kind: Kind::Flag,
        scope: Scope::UriOnly,
        default: "1",
        help: "0: URI parameters that neither SQLite nor Mycelite knows are let through",
    },
];

impl Setting {
    /// The setting called `name`.
    pub fn find(name: &str) -> Option<&'static Setting> {
        SETTINGS.iter().find(|setting| setting.name == name)
    }

    /// The environment variable of this setting.
    pub fn variable(&self) -> String {
        format!("MYCELITE_{}", self.name.to_uppercase())
    }

    /// What is allowed, in words: the second half of every error about a bad value.
    pub fn allowed(&self) -> String {
        match self.kind {
            Kind::Urls => {
                "http://HOST:PORT/NAME or https://..., several separated by commas, or nothing"
                    .into()
            }
            Kind::Url => "http://HOST:PORT/NAME or https://...".into(),
            Kind::Path => "the path of a file".into(),
            Kind::Secret => "printable characters without blanks".into(),
            Kind::Choice(words) => words.join(", "),
            Kind::Integer { min, max, unit } => format!("{min} to {max} {unit}"),
            Kind::Bytes { min, max } => format!("{} to {}", Bytes(min), Bytes(max)),
            Kind::Age => "a span as in 90s, 5m, 2h, 30d, or forever".into(),
            Kind::Flag => "0 or 1".into(),
        }
    }

    /// The setting's default for people: `none` when there is none.
    pub fn default_shown(&self) -> &'static str {
        if self.default.is_empty() {
            "none"
        } else {
            self.default
        }
    }
}

/// The known name nearest to `name`, if one is near enough to be what was meant.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    known
        .into_iter()
        .map(|candidate| {
            (
                strsim::normalized_damerau_levenshtein(&name, candidate),
                candidate,
            )
        })
        .filter(|(likeness, _)| *likeness >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// A number of bytes, shown in the largest unit that divides it: `64 MiB`, `1000 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
        match units
            .iter()
            .find(|(size, _)| self.0 >= *size && self.0.is_multiple_of(*size))
        {
            Some((size, unit)) => write!(f, "{} {unit}", self.0 / size),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

impl Bytes {
    /// Reads `4194304`, `4 MiB`, `4MiB`, `4M`; `None` when it is none of these or does not fit into 64 bits.
    pub fn parse(text: &str) -> Option<Bytes> {
        let text = text.trim();
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at_checked(digits)?;
        let size = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" | "bytes" => 1,
            "k" | "kib" => KIB,
            "m" | "mib" => MIB,
            "g" | "gib" => GIB,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(size).map(Bytes)
    }
}

/// A span of time in its largest unit: `7d`; `None` is `forever`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age(pub Option<Duration>);

const SPANS: [(u64, &str); 4] = [(24 * 60 * 60, "d"), (60 * 60, "h"), (60, "m"), (1, "s")];

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(span) = self.0 else {
            return f.write_str("forever");
        };
        let seconds = span.as_secs();
        let (size, unit) = SPANS
            .into_iter()
            .find(|(size, _)| seconds.is_multiple_of(*size))
            .unwrap_or((1, "s"));
        write!(f, "{}{unit}", seconds / size)
    }
}

impl Age {
    /// Reads `90s`, `5m`, `2h`, `30d` or `forever`; `None` when it is none of these or longer than 1000 years.
    pub fn parse(text: &str) -> Option<Age> {
        if text == "forever" {
            return Some(Age(None));
        }
        let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let (size, _) = SPANS.into_iter().find(|(_, name)| *name == unit)?;
        let digits = number.bytes().all(|byte| byte.is_ascii_digit());
        let seconds = number.parse::<u64>().ok().filter(|_| digits)?;
        let seconds = seconds.checked_mul(size)?;
        let fits = seconds <= 1000 * 366 * 24 * 60 * 60;
        fits.then(|| Age(Some(Duration::from_secs(seconds))))
    }
}

/// The table of settings as `--help` shows it.
pub fn help_text() -> String {
    let mut text = String::from(
        "Settings (URI parameter, then environment, then mycelite_config, then mycelite.toml, then the default):\n",
    );
    for setting in &SETTINGS {
        let place = match setting.scope {
            Scope::Anywhere => "",
            Scope::EnvironmentOnly => " Only in the environment.",
            Scope::UriOnly => " Only in a URI.",
        };
        text.push_str(&format!(
            "  {:<19} {} [default: {}; allowed: {}]{place}\n",
            setting.name,
            setting.help,
            setting.default_shown(),
            setting.allowed(),
        ));
    }
    text
}

/// The table of settings in Markdown, for the README.
pub fn markdown() -> String {
    let mut text = String::from(
        "| setting | environment | default | allowed | what it does |\n|---|---|---|---|---|\n",
    );
    for setting in &SETTINGS {
        let (name, variable) = match setting.scope {
            Scope::Anywhere => (
                format!("`{}`", setting.name),
                format!("`{}`", setting.variable()),
            ),
            Scope::EnvironmentOnly => ("-".into(), format!("`{}`", setting.variable())),
            Scope::UriOnly => (format!("`{}` (URI only)", setting.name), "-".into()),
        };
        text.push_str(&format!(
            "| {name} | {variable} | {} | {} | {} |\n",
            setting.default_shown(),
            setting.allowed(),
            setting.help,
        ));
    }
    text
}
