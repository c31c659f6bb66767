//! `mycelite dump`: one record, header field by field and patch by patch.

use mycelite::error::{Error, ErrorKind, Result};
use mycelite_journal::{PatchKind, PatchRef, RecordEntry, Txid};
use serde::Serialize;

use super::Answer;
use super::args::DumpArgs;
use super::history::HeaderView;
use super::output::{self, Output};
use super::source::{Source, log_error};
use super::verify::fetch_log;

/// Ranges up to this many bytes are shown in full.
const HEX_BYTES_MAX: usize = 32;
/// Ranges of one page that the table shows.
const RANGES_SHOWN: usize = 8;

#[derive(Serialize)]
struct RecordView {
    #[serde(flatten)]
    header: HeaderView,
    segment: String,
    offset: u64,
    change_counter: u32,
    wal: WalView,
    patches: Vec<PatchView>,
}

#[derive(Serialize)]
struct WalView {
    salt: [u32; 2],
    frame: u32,
    checksum: [u32; 2],
}

#[derive(Serialize)]
struct PatchView {
    pgno: u32,
    kind: &'static str,
    bytes: u64,
    ranges: Vec<RangeView>,
}

#[derive(Serialize)]
struct RangeView {
    offset: usize,
    length: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
}

/// Runs the verb.
pub fn run(args: &DumpArgs) -> Result<Answer> {
    let missing = |range: String| {
        Error::new(
            ErrorKind::NotFound,
            format_args!("no transaction {} {range}", args.txid),
        )
        .at(&args.source)
        .hint("mycelite log lists them")
    };
    let fetched;
    let mut reader = match Source::parse(&args.source)? {
        Source::Local(local) => local.reader()?,
        Source::Server(url) => {
            fetched = fetch_log(&url, &args.access)?;
            super::source::open_reader(fetched.path())?
        }
    };
    let first = reader.first_txid().map_err(log_error)?;
    let head = reader.head().map_err(log_error)?;
    let (Some(first), Some(head)) = (first, head) else {
        return Err(missing("in an empty log".into()));
    };
    let head = head.header.txid;
    if !(first..=head).contains(&Txid(args.txid)) {
        return Err(missing(format!("in a log of {first} to {head}")));
    }
    let entry = reader
        .find(Txid(args.txid))
        .map_err(log_error)?
        .ok_or_else(|| missing("any more".into()))?;
    let mut output = Output::new();
    if args.json {
        output.json(&view(&entry)?)?;
    } else {
        show(&entry, &mut output)?;
    }
    output.finish()?;
    Ok(Answer::Yes)
}

fn view(entry: &RecordEntry) -> Result<RecordView> {
    let header = &entry.header;
    let mut patches = Vec::new();
    let mut stream = entry.patches();
    while let Some(patch) = stream.next().map_err(log_error)? {
        patches.push(patch_view(&patch, usize::MAX));
    }
    Ok(RecordView {
        header: HeaderView::new(header),
        segment: entry.segment.to_string(),
        offset: entry.offset,
        change_counter: header.change_counter,
        wal: WalView {
            salt: header.wal.salt,
            frame: header.wal.frame,
            checksum: header.wal.checksum,
        },
        patches,
    })
}

fn patch_view(patch: &PatchRef<'_>, ranges_max: usize) -> PatchView {
    let mut bytes = 0;
    let mut ranges = Vec::new();
    for (offset, data) in patch.ranges() {
        bytes += data.len() as u64;
        if ranges.len() < ranges_max {
            ranges.push(RangeView {
                offset,
                length: data.len(),
                hex: (data.len() <= HEX_BYTES_MAX).then(|| hex(data)),
            });
        }
    }
    PatchView {
        pgno: patch.pgno(),
        kind: match patch.kind() {
            PatchKind::Ranges => "ranges",
            PatchKind::Zeroed => "zeroed",
            PatchKind::Full => "full",
        },
        bytes,
        ranges,
    }
}

fn show(entry: &RecordEntry, output: &mut Output) -> Result<()> {
    let header = &entry.header;
    for (name, text) in fields(entry) {
        output.line(format_args!("{name:<12} {}", text.trim_end()))?;
    }
    if header.patch_count > 0 {
        output.line("")?;
        output.line(format_args!(
            "{:>10}  {:<6}  {:>6}  {:>6}  offset+length: bytes",
            "page", "kind", "ranges", "bytes"
        ))?;
    }
    let mut stream = entry.patches();
    while let Some(patch) = stream.next().map_err(log_error)? {
        if output.is_gone() {
            break;
        }
        show_patch(&patch, output)?;
    }
    Ok(())
}

/// The header, field by field.
fn fields(entry: &RecordEntry) -> Vec<(&'static str, String)> {
    let header = &entry.header;
    let view = HeaderView::new(header);
    let flags = view.flags.join(" ");
    let before = match header.pre_page_size {
        0 => "no database".to_string(),
        size => {
            let pages = header.pre_page_count;
            format!(
                "{pages} pages of {size} bytes, checksum {}",
                view.pre_checksum
            )
        }
    };
    let after = format!(
        "{} pages of {} bytes, checksum {}",
        view.db_pages, view.page_size, view.checksum
    );
    let [salt1, salt2] = header.wal.salt;
    let wal = match header.wal.frame {
        0 => "none".to_string(),
        frame => format!("up to frame {frame}, salts {salt1:08x} {salt2:08x}"),
    };
    let place = format!(
        "{} at byte {}, {}",
        entry.path(),
        entry.offset,
        output::bytes(view.bytes)
    );
    let counter = format!("{} (SQLite's file change counter)", header.change_counter);
    vec![
        (
            "transaction",
            format!("{} on timeline {} {flags}", view.txid, view.timeline),
        ),
        ("time", view.time),
        ("where", place),
        ("before", before),
        ("after", after),
        ("counter", counter),
        ("wal", wal),
        (
            "patches",
            format!("{} in {} bytes", header.patch_count, header.body_len),
        ),
    ]
}

fn show_patch(patch: &PatchRef<'_>, output: &mut Output) -> Result<()> {
    let count = patch.ranges().count();
    let view = patch_view(patch, RANGES_SHOWN);
    let mut text: Vec<String> = view
        .ranges
        .iter()
        .map(|range| match &range.hex {
            Some(hex) => format!("{}+{}: {hex}", range.offset, range.length),
            None => format!("{}+{}", range.offset, range.length),
        })
        .collect();
    if count > RANGES_SHOWN {
        text.push(format!("and {} more", count - RANGES_SHOWN));
    }
    output.line(format_args!(
        "{:>10}  {:<6}  {count:>6}  {:>6}  {}",
        view.pgno,
        view.kind,
        view.bytes,
        text.join(", ")
    ))
}

fn hex(data: &[u8]) -> String {
    data.iter().map(|byte| format!("{byte:02x}")).collect()
}
