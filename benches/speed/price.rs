//! The price of the writer VFS: plain SQLite and the extension in turn, with the same library, pragmas and file system.

use crate::Options;
use crate::archive;
use crate::host::{Job, Took, settle};
use crate::report::{Bar, Row};
use crate::work;
use mycelite::database::{directory_bytes, log_dir};
use std::path::Path;

/// What is compared.
#[derive(Clone, Copy)]
enum Figure {
    Wall,
    Cpu,
}

/// Workloads under one setting, and what they may cost.
pub struct Setting {
    pub name: &'static str,
    on_disk: bool,
    journal: &'static str,
    sync: &'static str,
    figure: Figure,
    works: &'static [(&'static str, u64, Bar)],
}

/// Every setting that has a bar, and contention, which has none.
pub const SETTINGS: [Setting; 6] = [
    Setting {
        name: "disk-wal",
        on_disk: true,
        journal: "wal",
        sync: "normal",
        figure: Figure::Wall,
        works: &[
            ("inserts", 50_000, Bar::AtMost(1.05)),
            ("updates", 50_000, Bar::AtMost(1.05)),
            ("mix", 20_000, Bar::AtMost(1.05)),
            ("bulk", 1_000_000, Bar::AtMost(1.05)),
            ("delete-vacuum", 1, Bar::AtMost(1.05)),
        ],
    },
    Setting {
        name: "disk-delete",
        on_disk: true,
        journal: "delete",
        sync: "full",
        figure: Figure::Wall,
        works: &[
            ("inserts", 1_000, Bar::AtMost(1.1)),
            ("updates", 1_000, Bar::AtMost(1.1)),
            ("mix", 1_000, Bar::AtMost(1.1)),
            ("bulk", 1_000_000, Bar::AtMost(1.1)),
            ("delete-vacuum", 1, Bar::AtMost(1.1)),
        ],
    },
    Setting {
        name: "memory-delete",
        on_disk: false,
        journal: "delete",
        sync: "normal",
        figure: Figure::Cpu,
        works: &[
            ("inserts", 20_000, Bar::AtMost(1.3)),
            ("updates", 20_000, Bar::AtMost(1.3)),
            ("mix", 10_000, Bar::AtMost(1.25)),
            ("bulk", 1_000_000, Bar::AtMost(1.25)),
            ("delete-vacuum", 1, Bar::AtMost(1.25)),
        ],
    },
    Setting {
        name: "memory-wal",
        on_disk: false,
        journal: "wal",
        sync: "normal",
        figure: Figure::Cpu,
        works: &[
            ("inserts", 50_000, Bar::AtMost(1.35)),
            ("updates", 50_000, Bar::AtMost(1.35)),
            ("mix", 20_000, Bar::AtMost(1.25)),
            ("bulk", 1_000_000, Bar::AtMost(1.35)),
            ("delete-vacuum", 1, Bar::AtMost(1.35)),
        ],
    },
    Setting {
        name: "reads",
        on_disk: false,
        journal: "wal",
        sync: "normal",
        figure: Figure::Cpu,
        works: &[
            ("scans", 20, Bar::AtMost(1.02)),
            ("points", 500_000, Bar::AtMost(1.02)),
        ],
    },
    Setting {
        name: "crowd",
        on_disk: false,
        journal: "wal",
        sync: "normal",
        figure: Figure::Wall,
        works: &[
            ("processes", 300, Bar::None),
            ("threads", 20_000, Bar::None),
        ],
    },
];

impl Setting {
    /// Measures each workload under this setting, and shows each row as soon as it is there.
    pub fn measure(&self, options: &Options, show: &mut dyn FnMut(Row)) {
        for (work, count, bar) in self.works {
            let count = if *count > 20 {
                (count / options.divide).max(16)
            } else {
                *count
            };
            show(self.compare(options, work, count, *bar));
        }
    }

    fn compare(&self, options: &Options, work: &str, count: u64, bar: Bar) -> Row {
        let dir = if self.on_disk {
            &options.disk
        } else {
            &options.memory
        };
        let home = tempfile::tempdir_in(dir).unwrap();
        let base = home.path().join("base.db");
        let base = work::prepare(work, &base).then_some(base);
        if let Some(base) = base.as_deref().filter(|_| work::only_reads(work)) {
            self.adopt(base);
        }
        let mut runs: [Vec<(Took, f64)>; 2] = [Vec::new(), Vec::new()];
        for number in 0..options.runs {
            // Who comes first is not always the same.
            for side in [number % 2, 1 - number % 2] {
                let vfs = ["unix", "mycelite_writer"][side];
                runs[side].push(self.one(dir, base.as_deref(), work, count, vfs));
            }
        }
        let [plain, ours] = &runs;
        let of: fn(&Took) -> f64 = match self.figure {
            Figure::Wall => |took| took.wall_s,
            Figure::Cpu => |took| took.cpu_s,
        };
        let ratios = ratios(plain, ours, of);
        let median = |of: &dyn Fn(&(Took, f64)) -> f64, side: &[(Took, f64)]| {
            Row::new(
                "",
                "",
                &side.iter().map(of).collect::<Vec<_>>(),
                "",
                Bar::None,
            )
            .figure
        };
        let (wall, cpu) = (
            |run: &(Took, f64)| run.0.wall_s,
            |run: &(Took, f64)| run.0.cpu_s,
        );
        let mut note = format!(
            "wall {:.2} s, CPU {:.2} s; plain {:.2} and {:.2} s; count {count}; memory {:+.0} MB",
            median(&wall, ours),
            median(&cpu, ours),
            median(&wall, plain),
            median(&cpu, plain),
            median(&|run| run.0.memory_mb, ours) - median(&|run| run.0.memory_mb, plain),
        );
        // Where processes of their own write, nobody has counted the pages.
        if ours.iter().all(|run| run.0.page_bytes > 0) {
            let part = median(&|run| run.1, ours) * 100.0;
            note.push_str(&format!("; raw log {part:.1} % of the pages"));
        }
        let figure = match self.figure {
            Figure::Wall => "wall",
            Figure::Cpu => "CPU",
        };
        let name = format!("{work}, {figure}");
        Row::new(self.name, &name, &ratios, "×", bar).noted(note)
    }

    /// One run, and its log's bytes over the bytes of pages that SQLite wrote.
    fn one(
        &self,
        dir: &Path,
        base: Option<&Path>,
        work: &str,
        count: u64,
        vfs: &str,
    ) -> (Took, f64) {
        let home = tempfile::tempdir_in(dir).unwrap();
        let db = match base {
            // Both sides read one file: two copies of it differ by more than what is to be seen.
            Some(base) if work::only_reads(work) => base.to_owned(),
            _ => home.path().join("app.db"),
        };
        if let Some(base) = base.filter(|base| *base != db) {
            std::fs::copy(base, &db).unwrap();
        }
        settle(home.path());
        if base.is_some_and(|base| base != db) && vfs != "unix" {
            self.adopt(&db);
        }
        let before = directory_bytes(&log_dir(&db));
        let took = self.job(work, &db, vfs, count).run();
        let log = (directory_bytes(&log_dir(&db)) - before) as f64;
        (took, log / took.page_bytes.max(1) as f64)
    }

    /// Adopts what is in `db`, and seals that: neither is part of a run.
    fn adopt(&self, db: &Path) {
        self.job("nothing", db, "mycelite_writer", 0).run();
        archive::seal(&log_dir(db));
    }

    fn job(&self, work: &str, db: &Path, vfs: &str, count: u64) -> Job {
        Job {
            work: work.into(),
            db: db.into(),
            vfs: vfs.into(),
            pragmas: format!(
                "PRAGMA journal_mode={}; PRAGMA synchronous={}",
                self.journal, self.sync
            ),
            count,
            parameters: String::new(),
        }
    }
}

/// The ratio of each pair of runs that followed each other.
fn ratios(plain: &[(Took, f64)], ours: &[(Took, f64)], of: fn(&Took) -> f64) -> Vec<f64> {
    plain
        .iter()
        .zip(ours)
        .map(|(plain, ours)| of(&ours.0) / of(&plain.0))
        .collect()
}
