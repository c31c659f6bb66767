//! Which rows of a table differ.
//!
//! Rows on pages that both trees have, unchanged, are the same rows: only the other pages' rows are read. Those of tables with
//! rowids come in the order of their numbers from both sides, and are merged; those of other tables are matched by their key,
//! whatever its collation.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;

use super::btree::{Node, damaged};
use super::record::{self, Value};
use super::schema::Table;
use super::side::Side;
use crate::error::{Error, ErrorKind, Result};

/// Memory for rows that wait for their match, in bytes.
const WAITING_BYTES_MAX: usize = 256 * 1024 * 1024;

/// A row that was inserted, deleted or updated.
#[derive(Clone, Debug, PartialEq)]
pub struct RowChange {
    /// Its number; in a table without rowids, 0.
    pub rowid: i64,
    /// The values before, in the columns of the table before; none: there was no such row.
    pub old: Option<Vec<Value>>,
    /// The values after, in the columns of the table after; none: there is no such row any more.
    pub new: Option<Vec<Value>>,
}

/// The table in one state, and its pages that must be read.
#[derive(Clone)]
pub struct Part {
    /// What the schema says.
    pub table: Arc<Table>,
    /// Pages, in the order of keys.
    pub pages: Arc<[u32]>,
}

impl Part {
    /// A table of which `pages` are read.
    pub fn whole(table: &Table, pages: Vec<u32>) -> Part {
        Part {
            table: Arc::new(table.clone()),
            pages: pages.into(),
        }
    }
}

/// A row on its way.
struct Row {
    rowid: i64,
    payload: Vec<u8>,
}

/// The rows of some pages, one after the other.
struct Stream {
    part: Option<Part>,
    next: usize,
    rows: VecDeque<Row>,
}

impl Stream {
    fn new(part: Option<Part>) -> Stream {
        Stream {
            part,
            next: 0,
            rows: VecDeque::new(),
        }
    }

    /// Makes sure that a row is there, if any is left.
    fn fill(&mut self, side: &mut Side) -> Result<()> {
        let Some(part) = &self.part else {
            return Ok(());
        };
        while self.rows.is_empty() {
            let Some(pgno) = part.pages.get(self.next) else {
                return Ok(());
            };
            self.next += 1;
            let node = Node::read(side, *pgno)?;
            for i in 0..node.len() {
                let cell = node.cell(i)?;
                let payload = cell.payload(side, &mut |_| {})?;
                self.rows.push_back(Row {
                    rowid: cell.rowid,
                    payload,
                });
            }
        }
        Ok(())
    }

    fn values(&self, row: &Row) -> Result<Vec<Value>> {
        match &self.part {
            Some(part) => part.table.values(row.rowid, &row.payload),
            None => Ok(Vec::new()),
        }
    }

    fn peek(&self) -> Option<i64> {
        self.rows.front().map(|row| row.rowid)
    }
}

impl Table {
    /// A row's values in the order of `columns`.
    fn values(&self, rowid: i64, payload: &[u8]) -> Result<Vec<Value>> {
        let stored = record::decode(payload).ok_or_else(|| {
            damaged(
                self.root,
                format_args!("row {rowid} of {} is no record", self.name),
            )
        })?;
        let mut values: Vec<Value> = self
            .columns
            .iter()
            .map(|column| column.default.clone())
            .collect();
        for (value, place) in stored.into_iter().zip(&self.order) {
            if let Some(slot) = values.get_mut(*place) {
                *slot = value;
            }
        }
        for (value, column) in values.iter_mut().zip(&self.columns) {
            if let (Value::Integer(number), true) = (&*value, column.is_real) {
                *value = Value::Real(*number as f64);
            }
        }
        if let Some(slot) = self.alias.and_then(|alias| values.get_mut(alias)) {
            *slot = Value::Integer(rowid);
        }
        Ok(values)
    }

    fn identify(&self, values: &[Value]) -> Vec<u8> {
        let mut key = Vec::new();
        for place in &self.key {
            if let Some(value) = values.get(*place) {
                value.identify(&mut key);
            }
        }
        key
    }
}

/// The differences of one table, one after the other. Of what cannot be matched at once, deletions come first.
pub struct Rows {
    a: Stream,
    b: Stream,
    /// Whether both have the same columns in the same places, so that equal bytes are equal rows.
    alike: bool,
    merge: bool,
    waiting: [BTreeMap<Vec<u8>, Vec<Value>>; 2],
    bytes: usize,
}

impl Rows {
    /// The differences between the rows on the pages of `a` and of `b`.
    pub fn new(a: Option<Part>, b: Option<Part>) -> Rows {
        let has_rowids =
            |part: &Option<Part>| part.as_ref().is_none_or(|part| part.table.has_rowids);
        let alike = match (&a, &b) {
            (Some(a), Some(b)) => a.table.sql == b.table.sql,
            _ => false,
        };
        Rows {
            // What has nothing to meet comes as it is.
            merge: has_rowids(&a) && has_rowids(&b) || a.is_none() || b.is_none(),
            alike,
            a: Stream::new(a),
            b: Stream::new(b),
            waiting: Default::default(),
            bytes: 0,
        }
    }

    /// The next one.
    ///
    /// # Errors
    /// A page cannot be read, or is damaged; too many rows of a table without rowids have no match.
    pub fn next(&mut self, a: &mut Side, b: &mut Side) -> Result<Option<RowChange>> {
        loop {
            self.a.fill(a)?;
            self.b.fill(b)?;
            let step = if self.merge {
                self.merge_step()?
            } else {
                self.match_step()?
            };
            match step {
                Step::Change(change) => return Ok(Some(change)),
                Step::Same => {}
                Step::End => return Ok(None),
            }
        }
    }

    fn merge_step(&mut self) -> Result<Step> {
        let (old, new) = match (self.a.peek(), self.b.peek()) {
            (None, None) => return Ok(Step::End),
            (Some(_), None) => (self.a.rows.pop_front(), None),
            (None, Some(_)) => (None, self.b.rows.pop_front()),
            (Some(left), Some(right)) => (
                (left <= right).then(|| self.a.rows.pop_front()).flatten(),
                (right <= left).then(|| self.b.rows.pop_front()).flatten(),
            ),
        };
        if let (Some(old), Some(new), true) = (&old, &new, self.alike)
            && old.payload == new.payload
        {
            return Ok(Step::Same);
        }
        let rowid = old.as_ref().or(new.as_ref()).map_or(0, |row| row.rowid);
        let old = old.map(|row| self.a.values(&row)).transpose()?;
        let new = new.map(|row| self.b.values(&row)).transpose()?;
        if self.is_same(&old, &new) {
            return Ok(Step::Same);
        }
        Ok(Step::Change(RowChange { rowid, old, new }))
    }

    /// Whether both rows have the same values in columns of the same names.
    fn is_same(&self, old: &Option<Vec<Value>>, new: &Option<Vec<Value>>) -> bool {
        let (Some(old), Some(new)) = (old, new) else {
            return false;
        };
        if self.alike {
            return old == new;
        }
        let (Some(a), Some(b)) = (&self.a.part, &self.b.part) else {
            return false;
        };
        let names = |part: &Part| -> Vec<String> {
            part.table
                .columns
                .iter()
                .map(|c| c.name.to_ascii_lowercase())
                .collect()
        };
        names(a) == names(b) && old == new
            || changed_columns(&a.table, old, &b.table, new).is_empty()
    }

    fn match_step(&mut self) -> Result<Step> {
        for (from_a, other) in [(true, 1), (false, 0)] {
            let stream = if from_a { &mut self.a } else { &mut self.b };
            let Some(row) = stream.rows.pop_front() else {
                continue;
            };
            let values = stream.values(&row)?;
            let Some(part) = &stream.part else {
                continue;
            };
            let key = part.table.identify(&values);
            let Some(met) = self
                .waiting
                .get_mut(other)
                .and_then(|waiting| waiting.remove(&key))
            else {
                self.bytes += key.len() + row.payload.len() + 64;
                if self.bytes > WAITING_BYTES_MAX {
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        format_args!(
                            "too many rows of {} changed to compare them in memory",
                            part.table.name
                        ),
                    )
                    .hint("compare two moments that are closer to each other"));
                }
                if let Some(waiting) = self.waiting.get_mut(1 - other) {
                    waiting.insert(key, values);
                }
                return Ok(Step::Same);
            };
            self.bytes = self
                .bytes
                .saturating_sub(key.len() + row.payload.len() + 64);
            let (old, new) = if from_a { (values, met) } else { (met, values) };
            let (old, new) = (Some(old), Some(new));
            if self.is_same(&old, &new) {
                return Ok(Step::Same);
            }
            return Ok(Step::Change(RowChange { rowid: 0, old, new }));
        }
        let [deleted, inserted] = &mut self.waiting;
        let old = deleted.pop_first().map(|(_, values)| values);
        let new = match old {
            None => inserted.pop_first().map(|(_, values)| values),
            Some(_) => None,
        };
        if old.is_none() && new.is_none() {
            return Ok(Step::End);
        }
        Ok(Step::Change(RowChange { rowid: 0, old, new }))
    }
}

enum Step {
    Change(RowChange),
    Same,
    End,
}

/// A column that differs: its name, what it was and what it is, as far as the table had and has it.
pub type ColumnChange<'a> = (&'a str, Option<&'a Value>, Option<&'a Value>);

/// The columns in which two rows differ, by their names.
pub fn changed_columns<'a>(
    a: &'a Table,
    old: &'a [Value],
    b: &'a Table,
    new: &'a [Value],
) -> Vec<ColumnChange<'a>> {
    let place = |table: &Table, name: &str| {
        table
            .columns
            .iter()
            .position(|column| column.name.eq_ignore_ascii_case(name))
    };
    let mut changed = Vec::new();
    for (column, value) in a.columns.iter().zip(old) {
        let now = place(b, &column.name).and_then(|i| new.get(i));
        if now != Some(value) {
            changed.push((column.name.as_str(), Some(value), now));
        }
    }
    for (column, value) in b.columns.iter().zip(new) {
        // A column that came later than the row, and that the row has its default in, says nothing new.
        if place(a, &column.name).is_none() && *value != column.default {
            changed.push((column.name.as_str(), None, Some(value)));
        }
    }
    changed
}
