//! A comparison as SQL: applied to the state before, it gives the content of the state after.
//!
//! Rows go before others come, so that no two have the same key for a moment; an update that concerns a unique column is a
//! deletion and an insertion. Triggers are taken away first and put back last. A table whose statement changed is built anew.
//! What ANALYZE counted is left out. Virtual tables are entered into the schema as `.dump` does it, beside the tables that they are made of.

use super::record::quoted;
use super::rows::{Part, RowChange, Rows, changed_columns};
use super::schema::{Object, Table};
use super::{Diff, Value, is_wanted, pages};
use crate::error::{Error, ErrorKind, Result};

/// The table of what AUTOINCREMENT has given out.
const SEQUENCE: &str = "sqlite_sequence";

/// Where the statements go, one a call, without a line's end.
pub type Sink<'a> = &'a mut dyn FnMut(&str) -> Result<()>;

/// Writes a comparison as statements.
pub struct Script<'a> {
    diff: &'a mut Diff,
    sink: Sink<'a>,
    /// Tables whose rows change, or that come or go.
    touched: Vec<String>,
    /// The schema is written to directly.
    writes_schema: bool,
}

/// What becomes of a table with rows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It stays, and so do those of its rows that are the same.
    Stays,
    /// It is dropped, and made again if it is there afterwards.
    Anew,
}

impl<'a> Script<'a> {
    /// Writes `diff` to `sink`, as the content of one transaction: without BEGIN and COMMIT, and for a connection that
    /// neither enforces foreign keys nor checks.
    ///
    /// # Errors
    /// A page cannot be read; a table's rowids cannot be named; the sink's own.
    pub fn write(diff: &'a mut Diff, sink: Sink<'a>) -> Result<()> {
        let mut script = Script {
            touched: Vec::new(),
            writes_schema: false,
            diff,
            sink,
        };
        script.find_touched()?;
        script.leave("trigger")?;
        script.leave("view")?;
        script.leave("index")?;
        script.drop_tables()?;
        script.create_tables()?;
        script.rows()?;
        script.sequence()?;
        script.come("index")?;
        script.come("view")?;
        script.come("trigger")?;
        script.numbers()?;
        if script.writes_schema {
            script.put("PRAGMA writable_schema=RESET")?;
        }
        Ok(())
    }

    fn put(&mut self, statement: &str) -> Result<()> {
        (self.sink)(&format!("{statement};"))
    }

    fn wanted(&self, table: &str) -> bool {
        is_wanted(self.diff.only.as_deref(), table) && !is_statistics(table)
    }

    fn fate(&self, name: &str) -> Fate {
        let [a, b] = &self.diff.schemas;
        match (a.table(name), b.table(name)) {
            (Some(old), Some(new)) if old.sql == new.sql && old.can_become(new) => Fate::Stays,
            _ => Fate::Anew,
        }
    }

    fn is_touched(&self, table: &str) -> bool {
        self.touched
            .iter()
            .any(|name| name.eq_ignore_ascii_case(table))
    }

    fn find_touched(&mut self) -> Result<()> {
        let names = |objects: &[Object]| -> Vec<String> {
            let tables = objects.iter().filter(|object| object.kind == "table");
            tables.map(|object| object.name.clone()).collect()
        };
        let [a, b] = &self.diff.schemas;
        let (olds, news) = (names(&a.objects), names(&b.objects));
        for name in olds.iter().chain(&news) {
            let has_rows = a.table(name).or(b.table(name)).is_some();
            if self.wanted(name)
                && has_rows
                && self.fate(name) == Fate::Anew
                && !self.is_touched(name)
            {
                self.touched.push(name.clone());
            }
        }
        for pair in self.diff.pairs.clone() {
            if self.wanted(pair.name()) && !self.is_touched(pair.name()) {
                let mut rows = pair.rows();
                if rows.next(&mut self.diff.a, &mut self.diff.b)?.is_some() {
                    self.touched.push(pair.name().to_owned());
                }
            }
        }
        Ok(())
    }

    /// Whether an index, view or trigger that is there before cannot stay as it is.
    fn must_leave(&self, object: &Object) -> bool {
        let after = self.diff.schemas[1].objects.iter();
        let stays = after
            .filter(|other| other.is_same_thing(object))
            .any(|other| other.sql == object.sql);
        match object.kind.as_str() {
            "trigger" => {
                !stays || self.is_touched(&object.table) || self.view_leaves(&object.table)
            }
            "index" => !(stays || self.goes_with_table(&object.table)),
            _ => !stays,
        }
    }

    /// Whether an index of this table goes by itself, with the table.
    fn goes_with_table(&self, table: &str) -> bool {
        self.is_touched(table) && self.fate(table) == Fate::Anew
    }

    fn view_leaves(&self, name: &str) -> bool {
        let views = self.diff.schemas[0].objects.iter();
        views
            .filter(|object| object.kind == "view" && object.name.eq_ignore_ascii_case(name))
            .any(|view| self.must_leave(view))
    }

    fn stated(&self, side: usize, kind: &str) -> Vec<Object> {
        let objects = self
            .diff
            .schemas
            .get(side)
            .map_or(&[][..], |schema| &schema.objects);
        objects
            .iter()
            .filter(|object| {
                object.kind == kind && object.sql.is_some() && self.wanted(&object.table)
            })
            .cloned()
            .collect()
    }

    fn leave(&mut self, kind: &str) -> Result<()> {
        for object in self.stated(0, kind) {
            if self.must_leave(&object) {
                let name = quoted(&object.name, '"');
                self.put(&format!("DROP {} {name}", kind.to_uppercase()))?;
            }
        }
        Ok(())
    }

    fn come(&mut self, kind: &str) -> Result<()> {
        for object in self.stated(1, kind) {
            let before = self.diff.schemas[0].objects.iter();
            let mut there = before.filter(|other| other.is_same_thing(&object));
            let went = kind == "index" && self.goes_with_table(&object.table);
            let is_there = there.any(|other| !self.must_leave(other)) && !went;
            if let (Some(sql), false) = (&object.sql, is_there) {
                self.put(sql)?;
            }
        }
        Ok(())
    }

    fn drop_tables(&mut self) -> Result<()> {
        for object in self.stated(0, "table") {
            let name = quoted(&object.name, '"');
            let after = self.diff.schemas[1].objects.iter();
            let same = |other: &Object| other.is_same_thing(&object) && other.sql == object.sql;
            if object.root == 0 {
                if !after.clone().any(same) {
                    self.open_schema()?;
                    let text = quoted(&object.name, '\'');
                    self.put(&format!(
                        "DELETE FROM sqlite_master WHERE type='table' AND rootpage=0 AND name={text}"
                    ))?;
                }
            } else if self.is_touched(&object.name)
                && self.fate(&object.name) == Fate::Anew
                && !object.name.eq_ignore_ascii_case(SEQUENCE)
            {
                self.put(&format!("DROP TABLE {name}"))?;
            }
        }
        Ok(())
    }

    fn create_tables(&mut self) -> Result<()> {
        for object in self.stated(1, "table") {
            let sql = object.sql.clone().unwrap_or_default();
            if object.root == 0 {
                let before = self.diff.schemas[0].objects.iter();
                let same = |other: &Object| other.is_same_thing(&object) && other.sql == object.sql;
                if !before.clone().any(same) {
                    self.open_schema()?;
                    let (name, sql) = (quoted(&object.name, '\''), quoted(&sql, '\''));
                    self.put(&format!(
                        "INSERT INTO sqlite_master(type, name, tbl_name, rootpage, sql) VALUES('table', {name}, {name}, 0, {sql})"
                    ))?;
                }
            } else if self.is_touched(&object.name)
                && self.fate(&object.name) == Fate::Anew
                && !object.name.eq_ignore_ascii_case(SEQUENCE)
            {
                self.put(&sql)?;
            }
        }
        Ok(())
    }

    fn open_schema(&mut self) -> Result<()> {
        if !std::mem::replace(&mut self.writes_schema, true) {
            self.put("PRAGMA writable_schema=ON")?;
        }
        Ok(())
    }

    fn rows(&mut self) -> Result<()> {
        let pairs = self.diff.pairs.clone();
        let stay: Vec<_> = pairs
            .iter()
            .filter(|pair| {
                self.fate(pair.name()) == Fate::Stays && !pair.name().eq_ignore_ascii_case(SEQUENCE)
            })
            .collect();
        for leaving in [true, false] {
            for pair in &stay {
                let (Some(a), Some(b)) = (&pair.a, &pair.b) else {
                    continue;
                };
                let mut rows = pair.rows();
                while let Some(row) = rows.next(&mut self.diff.a, &mut self.diff.b)? {
                    if leaving {
                        self.row_leaves(&a.table, &row)?;
                    } else {
                        self.row_comes(&b.table, &row)?;
                    }
                }
            }
        }
        for name in self.touched.clone() {
            if self.fate(&name) == Fate::Anew && !name.eq_ignore_ascii_case(SEQUENCE) {
                self.all_rows(&name, &|_| true)?;
            }
        }
        Ok(())
    }

    /// Inserts those rows of a table that `wanted` says.
    fn all_rows(&mut self, name: &str, wanted: &dyn Fn(&[Value]) -> bool) -> Result<()> {
        let Some(table) = self.diff.schemas[1].table(name) else {
            return Ok(());
        };
        let part = Part::whole(table, pages::all(&mut self.diff.b, table)?);
        let mut rows = Rows::new(None, Some(part.clone()));
        while let Some(row) = rows.next(&mut self.diff.a, &mut self.diff.b)? {
            if row.new.as_deref().is_some_and(wanted) {
                self.row_comes(&part.table, &row)?;
            }
        }
        Ok(())
    }

    fn row_leaves(&mut self, table: &Table, row: &RowChange) -> Result<()> {
        let Some(old) = &row.old else {
            return Ok(());
        };
        let replaced = row
            .new
            .as_ref()
            .is_some_and(|new| replaces(table, old, new));
        if row.new.is_some() && !replaced {
            return Ok(());
        }
        let (name, this) = (
            quoted(&table.name, '"'),
            self.this_row(table, row.rowid, old)?,
        );
        self.put(&format!("DELETE FROM {name} WHERE {this}"))
    }

    fn row_comes(&mut self, table: &Table, row: &RowChange) -> Result<()> {
        let Some(new) = &row.new else {
            return Ok(());
        };
        let encoding = self.diff.encoding();
        let name = quoted(&table.name, '"');
        if let Some(old) = row.old.as_ref().filter(|old| !replaces(table, old, new)) {
            let set: Vec<String> = table
                .columns
                .iter()
                .zip(old.iter().zip(new))
                .filter(|(column, (old, new))| !column.is_generated && old != new)
                .map(|(column, (_, new))| {
                    format!("{}={}", quoted(&column.name, '"'), new.sql(encoding))
                })
                .collect();
            if set.is_empty() {
                return Ok(());
            }
            let (set, this) = (set.join(", "), self.this_row(table, row.rowid, old)?);
            return self.put(&format!("UPDATE {name} SET {set} WHERE {this}"));
        }
        let (mut columns, mut values) = (Vec::new(), Vec::new());
        if table.has_rowids && table.alias.is_none() {
            columns.push(rowid_name(table)?.to_owned());
            values.push(row.rowid.to_string());
        }
        for (column, value) in table.columns.iter().zip(new) {
            if !column.is_generated {
                columns.push(quoted(&column.name, '"'));
                values.push(value.sql(encoding));
            }
        }
        let (columns, values) = (columns.join(", "), values.join(", "));
        self.put(&format!("INSERT INTO {name}({columns}) VALUES({values})"))
    }

    /// The condition that only this row meets.
    fn this_row(&self, table: &Table, rowid: i64, values: &[Value]) -> Result<String> {
        let alias = table.alias.and_then(|i| table.columns.get(i));
        if let Some(column) = alias {
            return Ok(format!("{}={rowid}", quoted(&column.name, '"')));
        }
        if table.has_rowids {
            return Ok(format!("{}={rowid}", rowid_name(table)?));
        }
        let encoding = self.diff.encoding();
        let parts = table.key.iter().filter_map(|i| {
            let (column, value) = (table.columns.get(*i)?, values.get(*i)?);
            Some(format!(
                "{}={}",
                quoted(&column.name, '"'),
                value.sql(encoding)
            ))
        });
        Ok(parts.collect::<Vec<_>>().join(" AND "))
    }

    /// What AUTOINCREMENT has given out is put right at the end: the insertions before may have changed it.
    fn sequence(&mut self) -> Result<()> {
        let [a, b] = &self.diff.schemas;
        let counts = |name: &String| {
            let table = b.table(name).or(a.table(name));
            table.is_some_and(|table| table.sql.to_ascii_uppercase().contains("AUTOINCREMENT"))
        };
        let concerned = self
            .touched
            .iter()
            .any(|name| counts(name) || name.eq_ignore_ascii_case(SEQUENCE));
        let comes = self
            .touched
            .iter()
            .any(|name| b.table(name).is_some() && counts(name));
        if !concerned || a.table(SEQUENCE).is_none() && !comes {
            return Ok(());
        }
        let encoding = self.diff.encoding();
        match self.diff.only.clone() {
            None => {
                self.put("DELETE FROM sqlite_sequence")?;
                self.all_rows(SEQUENCE, &|_| true)
            }
            Some(only) => {
                self.put(&format!(
                    "DELETE FROM sqlite_sequence WHERE name={}",
                    quoted(&only, '\'')
                ))?;
                let about = |values: &[Value]| match values.first() {
                    Some(Value::Text(name)) => encoding
                        .decode(name)
                        .is_some_and(|name| name.eq_ignore_ascii_case(&only)),
                    _ => false,
                };
                self.all_rows(SEQUENCE, &about)
            }
        }
    }

    fn numbers(&mut self) -> Result<()> {
        if self.diff.only.is_some() {
            return Ok(());
        }
        let [a, b] = [&self.diff.schemas[0], &self.diff.schemas[1]].map(|schema| schema.numbers);
        for ((old, new), name) in a.into_iter().zip(b).zip(["user_version", "application_id"]) {
            if old != new {
                self.put(&format!("PRAGMA {name}={new}"))?;
            }
        }
        Ok(())
    }
}

/// Whether a row is deleted and inserted instead of being updated.
fn replaces(table: &Table, old: &[Value], new: &[Value]) -> bool {
    let is_unique = |name: &str| {
        let mut columns = table.columns.iter();
        columns.any(|column| column.is_unique && column.name == name)
    };
    changed_columns(table, old, table, new)
        .iter()
        .any(|(name, ..)| is_unique(name))
}

/// What ANALYZE left: not content, and not every SQLite has the same tables for it.
fn is_statistics(table: &str) -> bool {
    let start = table.get(..11).unwrap_or_default();
    start.eq_ignore_ascii_case("sqlite_stat")
}

fn rowid_name(table: &Table) -> Result<&'static str> {
    table.rowid.ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            "its columns take all names of the rowid, so that SQL cannot name a row",
        )
        .at(format_args!("table {}", table.name))
        .hint("look at its differences without --sql")
    })
}
