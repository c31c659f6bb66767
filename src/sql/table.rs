//! What one of our tables is, without a word about C.

use super::host::Host;
use crate::error::{Error, ErrorKind, Result};

/// A value of a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// NULL.
    Null,
    /// An integer.
    Integer(i64),
    /// A floating-point number.
    Real(f64),
    /// Text.
    Text(String),
    /// A blob.
    Blob(Vec<u8>),
}

impl From<u64> for Value {
    /// SQL has no unsigned numbers: what does not fit stays at the largest.
    fn from(number: u64) -> Value {
        Value::Integer(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Value {
        Value::Integer(i64::from(number))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

/// One row: its number and its values, in the order of the columns.
pub(super) struct Row {
    pub rowid: i64,
    pub values: Vec<Value>,
}

/// What a query hands to a table before it reads rows.
#[derive(Debug, Default)]
pub(super) struct Query {
    /// The arguments, as far as the table has them and the query gives them.
    pub arguments: [Option<Value>; ARGUMENTS_MAX],
    /// No row with less in the ordered column is wanted.
    pub from: Option<i64>,
    /// No row with more in the ordered column is wanted.
    pub to: Option<i64>,
    /// No row with a lesser time, as text, is wanted.
    pub since: Option<String>,
    /// No row with a greater time, as text, is wanted.
    pub until: Option<String>,
}

/// How many arguments a table can have.
pub(super) const ARGUMENTS_MAX: usize = 3;

/// A change that a statement asks for.
pub(super) enum Change {
    /// A new row.
    Insert(Vec<Value>),
    /// Other values for the row of that number.
    Update(i64, Vec<Value>),
    /// No such row any more.
    Delete(i64),
}

/// A table that exists in every connection under its module's name.
pub(super) trait Table: 'static {
    /// Its columns, as a `CREATE TABLE` statement.
    const SCHEMA: &'static str;
    /// The hidden columns that are the arguments when it is used as a function, at most [`ARGUMENTS_MAX`].
    const ARGUMENTS: &'static [i32] = &[];
    /// An integer column by which the rows ascend, and to whose bounds [`Table::rows`] pays attention.
    const ORDERED: Option<i32> = None;
    /// A column with RFC 3339 times in UTC that ascend with the rows, and to whose bounds [`Table::rows`] pays attention.
    const TIMED: Option<i32> = None;
    /// Whether it can be written.
    const WRITABLE: bool = false;

    /// Starts to read.
    ///
    /// # Errors
    /// What the statement shall fail with.
    fn rows(host: &Host, query: &Query) -> Result<Rows>;

    /// Changes a row.
    ///
    /// # Errors
    /// What the statement shall fail with.
    fn change(_host: &Host, _change: Change) -> Result<()> {
        Err(Error::new(ErrorKind::Usage, "this table can only be read"))
    }
}

/// Rows, made as they are asked for.
pub(super) type Rows = Box<dyn Iterator<Item = Result<Row>>>;
