//! `mycelite bookmark`: names for recorded transactions.

use mycelite::bookmarks::{self, Bookmark};
use mycelite::error::{Error, ErrorKind, Result};
use mycelite::moment;
use mycelite::reader;
use serde::Serialize;

use super::Answer;
use super::args::BookmarkArgs;
use super::output::{self, Output};
use super::source::{Local, Source, log_error};

/// A bookmark as `--json` shows it; the field names stay as they are.
#[derive(Serialize)]
struct View<'a> {
    name: &'a str,
    txid: u64,
    timeline: u64,
    checksum: String,
    time: String,
    created: String,
}

impl View<'_> {
    fn new(bookmark: &Bookmark) -> View<'_> {
        View {
            name: &bookmark.name,
            txid: bookmark.pos.txid.0,
            timeline: bookmark.pos.timeline.0,
            checksum: bookmark.pos.checksum.to_string(),
            time: moment::time(bookmark.time_us),
            created: moment::time(bookmark.created_us),
        }
    }
}

/// Runs the verb.
pub fn run(args: &BookmarkArgs) -> Result<Answer> {
    let Source::Local(local) = Source::parse(&args.source)? else {
        return Err(Error::new(
            ErrorKind::Usage,
            "bookmarks are kept where the log is, not on a server",
        )
        .at(&args.source)
        .hint("run this on the machine that has the log, with the path of the database there"));
    };
    let mut output = Output::new();
    match (&args.name, &args.delete) {
        (Some(name), _) => {
            let bookmark = mark(&local, name, args)?;
            show(&[bookmark], args.json, &mut output)?;
        }
        (None, Some(name)) => {
            // Says what is near to the name if there is none.
            let bookmark = bookmarks::find(&local.log_dir, name)?;
            bookmarks::hold(&local.log_dir)?.delete(name)?;
            if args.json {
                output.json(&View::new(&bookmark))?;
            } else {
                let txid = bookmark.pos.txid;
                output.line(format_args!(
                    "{name}: deleted; it was at transaction {txid}"
                ))?;
            }
        }
        (None, None) => show(&bookmarks::list(&local.log_dir)?, args.json, &mut output)?,
    }
    output.finish()?;
    Ok(Answer::Yes)
}

fn mark(local: &Local, name: &str, args: &BookmarkArgs) -> Result<Bookmark> {
    bookmarks::check_name(name)?;
    let wanted = args.when.moment()?;
    let held = bookmarks::hold(&local.log_dir)?;
    let shelf = reader::open_log(&local.log_dir)?;
    let txid = shelf
        .find(&wanted)
        .map_err(|error| error.at(&args.source))?;
    let state = shelf.archive.as_of(txid).map_err(log_error)?;
    held.mark(name, state.pos(), state.time_us())?;
    bookmarks::find(&local.log_dir, name)
}

fn show(bookmarks: &[Bookmark], json: bool, output: &mut Output) -> Result<()> {
    let views: Vec<View> = bookmarks.iter().map(View::new).collect();
    if json {
        return views.iter().try_for_each(|view| output.json(view));
    }
    if views.is_empty() {
        return Ok(());
    }
    let rows: Vec<Vec<String>> = views
        .iter()
        .map(|view| {
            vec![
                view.txid.to_string(),
                view.time.clone(),
                view.name.to_owned(),
            ]
        })
        .collect();
    output::table(&["txid", "time", "bookmark"], &[0], &rows)
        .into_iter()
        .try_for_each(|line| output.line(line))
}
