//! What the demo loads: the packages of this machine's Debian index, or rows made up where there is none.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

/// An index with fewer packages than this would make a dull demo.
const PACKAGES_MIN: usize = 500;

/// One package.
#[derive(Clone, Debug, Default)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Where it is filed.
    pub section: String,
    /// Who looks after it.
    pub maintainer: String,
    /// One line.
    pub summary: String,
    /// Its size in bytes; 0 if not known.
    pub bytes: i64,
    /// Names of the packages that it needs.
    pub depends: Vec<String>,
}

/// The packages, and where they come from.
pub struct Data {
    /// In words, for the report.
    pub source: String,
    /// In the index's order.
    pub packages: Vec<Package>,
}

/// Reads at most so many packages from one place.
type Source = fn(usize) -> Vec<Package>;

/// At most `limit` packages.
pub fn load(limit: usize) -> Data {
    let sources: [(&str, Source); 2] = [
        (
            "this machine's Debian package index (apt-cache dumpavail)",
            from_apt_cache,
        ),
        (
            "this machine's installed Debian packages (/var/lib/dpkg/status)",
            from_dpkg,
        ),
    ];
    for (source, read) in sources {
        let packages = read(limit);
        if packages.len() >= PACKAGES_MIN.min(limit) {
            return Data {
                source: source.into(),
                packages,
            };
        }
    }
    Data {
        source: "generated rows (there is no Debian package index on this machine)".into(),
        packages: (0..limit as u64).map(generated).collect(),
    }
}

fn from_apt_cache(limit: usize) -> Vec<Package> {
    let command = Command::new("apt-cache")
        .arg("dumpavail")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(child) = command else {
        return Vec::new();
    };
    let mut running = Running(child);
    let output: Option<ChildStdout> = running.0.stdout.take();
    output
        .map(|output| stanzas(output, limit))
        .unwrap_or_default()
}

/// Ends the program that is read from, also when only its beginning was wanted.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; either way it must be waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn from_dpkg(limit: usize) -> Vec<Package> {
    File::open("/var/lib/dpkg/status")
        .map(|file| stanzas(file, limit))
        .unwrap_or_default()
}

/// Reads paragraphs of `Field: value` lines; what cannot be read ends the list.
fn stanzas(input: impl Read, limit: usize) -> Vec<Package> {
    let mut input = BufReader::with_capacity(1 << 16, input);
    let mut packages = Vec::new();
    let mut package = Package::default();
    let mut line = Vec::new();
    while packages.len() < limit {
        line.clear();
        let ended = !matches!(input.read_until(b'\n', &mut line), Ok(1..));
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if text.is_empty() {
            let complete = std::mem::take(&mut package);
            if !complete.name.is_empty() && !complete.version.is_empty() {
                packages.push(complete);
            }
        } else {
            package.take_field(text);
        }
        if ended {
            break;
        }
    }
    packages
}

impl Package {
    fn take_field(&mut self, line: &str) {
        let Some((field, value)) = line.split_once(':') else {
            return;
        };
        let value = value.trim();
        match field {
            "Package" => self.name = value.into(),
            "Version" => self.version = value.into(),
            "Section" => self.section = value.into(),
            "Maintainer" => self.maintainer = value.into(),
            "Description" => self.summary = value.into(),
            "Size" => self.bytes = value.parse().unwrap_or(0),
            "Depends" => {
                let names = value
                    .split([',', '|'])
                    .filter_map(|one| one.split_whitespace().next());
                self.depends = names.map(str::to_string).collect();
            }
            _ => {}
        }
    }
}

const WORDS: [&str; 24] = [
    "amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "jetty",
    "knoll", "larch", "maple", "north", "ocean", "prism", "quartz", "ridge", "slate", "tidal",
    "umber", "vault", "willow", "zephyr",
];

/// The `n`-th made-up package: always the same one.
fn generated(n: u64) -> Package {
    let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
    let mut roll = |bound: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % bound
    };
    let mut word = || WORDS[roll(WORDS.len() as u64) as usize];
    let name = format!("{}-{}-{n}", word(), word());
    let section = word().to_string();
    let maintainer = format!("{} {} <{}@example.org>", word(), word(), word());
    let summary = (0..9).map(|_| word()).collect::<Vec<_>>().join(" ");
    Package {
        name,
        version: format!("{}.{}-{}", roll(9), roll(30), roll(4) + 1),
        section,
        maintainer,
        summary,
        bytes: roll(50_000_000) as i64,
        depends: (0..roll(6))
            .map(|_| format!("{}-{}", WORDS[roll(24) as usize], roll(n + 1)))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stanzas_are_read_with_their_fields() {
        let text = "Package: a\nVersion: 1\nDepends: b (>= 2) | c, d:any\nDescription: short\n long\n\nPackage: broken\n\nPackage: z\nVersion: 2";
        let packages = stanzas(text.as_bytes(), 10);
        let names: Vec<&str> = packages
            .iter()
            .map(|package| package.name.as_str())
            .collect();
        assert_eq!(names, ["a", "z"]);
        assert_eq!(packages[0].depends, ["b", "c", "d:any"]);
        assert_eq!(packages[0].summary, "short");
        assert_eq!(stanzas(text.as_bytes(), 1).len(), 1);
    }

    #[test]
    fn made_up_packages_are_always_the_same_and_differ_from_each_other() {
        assert_eq!(generated(7).summary, generated(7).summary);
        assert_ne!(generated(7).summary, generated(8).summary);
    }
}
