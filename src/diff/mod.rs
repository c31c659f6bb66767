//! The rows and the schema in which two moments of a history differ.
//!
//! SQLite says what the schemas are; the rows are read here, page by page, because only that can leave out what did not
//! change: a page that both states' trees have, and that no record between them touched, holds the same rows in both, and they
//! are not read. The rest is compared row by row, so pages that merely moved cost time and never an answer.
//!
//! One thing is not told by a row's own page: its overflow pages. Where a changed page is none of a tree that was read, it may be
//! such a page, and whose it is is found out, in the end by looking at every row.

mod btree;
mod pages;
mod record;
mod rows;
mod schema;
mod script;
mod side;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use crate::capture::journal_error;
use crate::error::{Error, ErrorKind, Result};
use crate::maintain::Pin;
use crate::moment::Moment;
use crate::reader;
use btree::Pages;
use mycelite_journal::Txid;
use rows::{Part, Rows};
use schema::Object;
use side::{Changed, Side};

pub use record::{Encoding, Value};
pub use rows::{ColumnChange, RowChange, changed_columns};
pub use schema::{Column, Schema, Table};
pub use script::Script;

/// A comparison of two states, before and after.
pub struct Diff {
    a: Side,
    b: Side,
    schemas: [Schema; 2],
    pairs: Vec<Pair>,
    only: Option<String>,
}

/// A table's rows before and after; one of them where it came or went, or became another kind of table.
#[derive(Clone)]
pub struct Pair {
    a: Option<Part>,
    b: Option<Part>,
}

/// A difference.
#[derive(Clone, Debug)]
pub enum Change {
    /// An entry of the schema came, went or is another.
    Schema {
        /// `table`, `index`, `view` or `trigger`.
        kind: String,
        /// Its name.
        name: String,
        /// The statement before.
        old: Option<String>,
        /// The statement after.
        new: Option<String>,
    },
    /// A row came, went or is another.
    Row {
        /// The table before.
        a: Option<Arc<Table>>,
        /// The table after.
        b: Option<Arc<Table>>,
        /// What became of the row.
        row: RowChange,
    },
}

impl Pair {
    /// The table's name.
    pub fn name(&self) -> &str {
        let part = self.b.as_ref().or(self.a.as_ref());
        part.map_or("", |part| &part.table.name)
    }

    fn rows(&self) -> Rows {
        Rows::new(self.a.clone(), self.b.clone())
    }
}

impl Diff {
    /// Compares the states of the log in `log_dir` at two moments: of all tables, or of the one called `table`. What there is to
    /// compare is found out here, the rows are read later.
    ///
    /// # Errors
    /// A moment or the table is not there; a state cannot be read, is damaged, or stores text otherwise than the other one.
    pub fn new(log_dir: &Path, from: &Moment, to: &Moment, table: Option<&str>) -> Result<Diff> {
        let shelf = reader::open_log(log_dir)?;
        let side = |moment: &Moment| -> Result<Side> {
            let txid = shelf
                .find(moment)
                .map_err(|error| error.at(log_dir.display()))?;
            let mut pin = Pin::new(log_dir);
            let still = pin.set(txid);
            let state = shelf.archive.as_of(txid).map_err(journal_error)?;
            drop(still);
            Side::new(state, pin)
        };
        let (a, b) = (side(from)?, side(to)?);
        if a.encoding != b.encoding && a.page_count() > 0 && b.page_count() > 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the database was made anew with another encoding of text between the two moments",
            )
            .at(log_dir.display())
            .hint("compare two moments on one side of that"));
        }
        let read = |side: &Side| match side.page_count() {
            0 => Ok(Schema::default()),
            _ => Schema::read(log_dir, side.txid()),
        };
        let schemas = [read(&a)?, read(&b)?];
        let mut diff = Diff {
            a,
            b,
            schemas,
            pairs: Vec::new(),
            only: table.map(str::to_owned),
        };
        diff.check_table()?;
        let changed = Changed::between(log_dir, &diff.a, &diff.b)?;
        diff.pairs = pages::pairs(&mut diff.a, &mut diff.b, &diff.schemas, &changed)?;
        let only = diff.only.as_deref();
        diff.pairs.retain(|pair| is_wanted(only, pair.name()));
        Ok(diff)
    }

    fn check_table(&self) -> Result<()> {
        let Some(table) = &self.only else {
            return Ok(());
        };
        if self
            .schemas
            .iter()
            .any(|schema| schema.table(table).is_some())
        {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::NotFound,
            format_args!("no table with rows is called {table:?} at either moment"),
        )
        .hint("a virtual table's rows are in the tables that it is made of"))
    }

    /// The transactions compared.
    pub fn txids(&self) -> (Txid, Txid) {
        (self.a.txid(), self.b.txid())
    }

    /// How the states store text.
    pub fn encoding(&self) -> Encoding {
        match self.b.page_count() {
            0 => self.a.encoding,
            _ => self.b.encoding,
        }
    }

    /// Pages read so far, of both states; those that SQLite read to tell the schema are not counted.
    pub fn pages_read(&self) -> u64 {
        self.a.pages_read + self.b.pages_read
    }

    /// The differences of the schema. What has no statement of its own comes and goes with its table.
    pub fn schema_changes(&self) -> Vec<Change> {
        let [a, b] = &self.schemas;
        let stated = |schema: &'_ Schema| -> Vec<Object> {
            let objects = schema.objects.iter();
            objects
                .filter(|object| {
                    object.sql.is_some() && is_wanted(self.only.as_deref(), &object.table)
                })
                .cloned()
                .collect()
        };
        let (olds, news) = (stated(a), stated(b));
        let change = |old: Option<&Object>, new: Option<&Object>| {
            let object = new.or(old)?;
            Some(Change::Schema {
                kind: object.kind.clone(),
                name: object.name.clone(),
                old: old.and_then(|object| object.sql.clone()),
                new: new.and_then(|object| object.sql.clone()),
            })
        };
        let gone_or_other = olds.iter().filter_map(|old| {
            let new = news.iter().find(|new| new.is_same_thing(old));
            match new {
                Some(new) if new.sql == old.sql => None,
                new => change(Some(old), new),
            }
        });
        let come = news
            .iter()
            .filter(|new| !olds.iter().any(|old| old.is_same_thing(new)))
            .filter_map(|new| change(None, Some(new)));
        gone_or_other.chain(come).collect()
    }

    /// All differences: of the schema first, then of the rows, table by table.
    pub fn changes(self) -> Changes {
        Changes {
            schema: self.schema_changes().into(),
            pairs: self.pairs.clone().into(),
            rows: None,
            diff: self,
        }
    }
}

fn is_wanted(only: Option<&str>, table: &str) -> bool {
    only.is_none_or(|only| only.eq_ignore_ascii_case(table))
}

/// The differences, found as they are asked for. After an error there are no more.
pub struct Changes {
    diff: Diff,
    schema: VecDeque<Change>,
    pairs: VecDeque<Pair>,
    rows: Option<(Pair, Rows)>,
}

impl Changes {
    /// The comparison.
    pub fn diff(&self) -> &Diff {
        &self.diff
    }
}

impl Iterator for Changes {
    type Item = Result<Change>;

    fn next(&mut self) -> Option<Result<Change>> {
        if let Some(change) = self.schema.pop_front() {
            return Some(Ok(change));
        }
        loop {
            if self.rows.is_none() {
                let pair = self.pairs.pop_front()?;
                let rows = pair.rows();
                self.rows = Some((pair, rows));
            }
            let (pair, rows) = self.rows.as_mut()?;
            match rows.next(&mut self.diff.a, &mut self.diff.b) {
                Ok(Some(row)) => {
                    let table =
                        |part: &Option<Part>| part.as_ref().map(|part| Arc::clone(&part.table));
                    return Some(Ok(Change::Row {
                        a: table(&pair.a),
                        b: table(&pair.b),
                        row,
                    }));
                }
                Ok(None) => self.rows = None,
                Err(error) => {
                    let error = error.at(format_args!("table {}", pair.name()));
                    self.pairs.clear();
                    self.rows = None;
                    return Some(Err(error));
                }
            }
        }
    }
}
