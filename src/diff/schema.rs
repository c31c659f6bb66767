//! What a state's schema says, as SQLite itself understands it: asked of a connection that has the state open.

use std::collections::HashMap;
use std::path::Path;

use c_shim::{Api, Connection, OpenFlags, SqlError};
use mycelite_journal::Txid;

use super::btree::damaged;
use super::record::{Value, quoted};
use crate::error::{Error, ErrorKind, Result};
use crate::reader;

/// An entry of the schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// `table`, `index`, `view` or `trigger`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The table that it belongs to.
    pub table: String,
    /// The first page of its b-tree; 0: it has none.
    pub root: u32,
    /// Its statement; none for what comes with a table.
    pub sql: Option<String>,
}

/// A column of a table.
#[derive(Clone, Debug)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Whole numbers are stored as integers, and are floating-point all the same.
    pub is_real: bool,
    /// Computed, whether stored or not: nobody inserts it.
    pub is_generated: bool,
    /// Some index or key demands that its values are unique, together with others or alone.
    pub is_unique: bool,
    /// What rows have that were there before the column.
    pub default: Value,
}

/// A table with a b-tree.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// The first page of its b-tree.
    pub root: u32,
    /// Its statement.
    pub sql: String,
    /// The columns that are stored, in the table's order.
    pub columns: Vec<Column>,
    /// For each stored value of a row, which of `columns` it is.
    pub order: Vec<usize>,
    /// Which of `columns` make the key: none where it is the rowid alone.
    pub key: Vec<usize>,
    /// The column that is the rowid by another name.
    pub alias: Option<usize>,
    /// A name for the rowid that no column takes; none in a table without rowids.
    pub rowid: Option<&'static str>,
    /// Whether rows have numbers.
    pub has_rowids: bool,
}

impl Object {
    /// Whether both are called the same, as SQL compares names.
    pub fn is_same_thing(&self, other: &Object) -> bool {
        self.kind == other.kind && self.name.eq_ignore_ascii_case(&other.name)
    }
}

impl Table {
    /// Whether rows of this table and of `other`, which has its name at another moment, can be compared by their keys.
    pub fn can_become(&self, other: &Table) -> bool {
        let names = |table: &Table| -> Vec<String> {
            let key = table.key.iter();
            key.filter_map(|i| table.columns.get(*i))
                .map(|column| column.name.to_ascii_lowercase())
                .collect()
        };
        self.has_rowids == other.has_rowids && names(self) == names(other)
    }
}

/// The schema of one state.
#[derive(Default)]
pub struct Schema {
    /// Every entry.
    pub objects: Vec<Object>,
    /// The tables with a b-tree, without `sqlite_schema` itself.
    pub tables: Vec<Table>,
    /// `PRAGMA user_version` and `application_id`.
    pub numbers: [i64; 2],
}

/// Waits for nobody: nothing locks the past.
const BUSY_TIMEOUT_MS: u32 = 1000;

impl Schema {
    /// Reads the schema of the state after transaction `txid` of the log in `log_dir`.
    ///
    /// # Errors
    /// SQLite cannot open that state, or does not understand its schema.
    pub fn read(log_dir: &Path, txid: Txid) -> Result<Schema> {
        let api = Api::get()
            .ok_or_else(|| Error::new(ErrorKind::Internal, "the routine table is not set"))?;
        let uri = reader::uri(log_dir, txid)?;
        let state = Ask(
            Connection::open_uri(api, &uri, OpenFlags::READWRITE, BUSY_TIMEOUT_MS)
                .map_err(sqlite_error)?,
        );
        let mut schema = Schema {
            objects: state.objects()?,
            tables: Vec::new(),
            numbers: [0; 2],
        };
        let names = ["PRAGMA user_version", "PRAGMA application_id"];
        for (number, sql) in schema.numbers.iter_mut().zip(names) {
            *number = state.0.query_i64(sql).map_err(sqlite_error)?.unwrap_or(0);
        }
        for object in &schema.objects {
            if object.kind == "table" && object.root != 0 {
                schema.tables.push(state.table(object)?);
            }
        }
        Ok(schema)
    }

    /// The table of that name, as SQL compares names.
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.tables
            .iter()
            .find(|table| table.name.eq_ignore_ascii_case(name))
    }
}

fn sqlite_error(error: SqlError) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format_args!("SQLite cannot read the state: {error}"),
    )
    .hint("look at it through mycelite_reader, or check the log with mycelite verify")
}

/// A connection that is asked about a schema.
struct Ask(Connection);

type Row = Vec<Option<String>>;

impl Ask {
    fn rows(&self, sql: &str) -> Result<Vec<Row>> {
        self.0.rows(sql).map_err(sqlite_error)
    }

    fn objects(&self) -> Result<Vec<Object>> {
        let rows = self.rows("SELECT type, name, tbl_name, rootpage, sql FROM sqlite_master")?;
        Ok(rows
            .into_iter()
            .filter_map(|row| {
                let [kind, name, table, root, sql] = <[Option<String>; 5]>::try_from(row).ok()?;
                Some(Object {
                    kind: kind?,
                    name: name?,
                    table: table?,
                    root: root.and_then(|root| root.parse().ok()).unwrap_or(0),
                    sql,
                })
            })
            .collect())
    }

    fn table(&self, object: &Object) -> Result<Table> {
        let name = quoted(&object.name, '"');
        let broken = || {
            damaged(
                object.root,
                format_args!("the columns of {name} cannot be told"),
            )
        };
        // Name, type, default, place in the key, hidden.
        let infos = self.rows(&format!(
            "SELECT cid, name, type, dflt_value, pk, hidden FROM pragma_table_xinfo({})",
            quoted(&object.name, '\'')
        ))?;
        let stored: Vec<&Row> = infos
            .iter()
            // 2: generated and not stored.
            .filter(|row| text(row, 5) != "2")
            .collect();
        let place: HashMap<&str, usize> = stored
            .iter()
            .enumerate()
            .map(|(i, row)| (text(row, 0), i))
            .collect();
        let physical = self.rows(&format!(
            "SELECT cid, key FROM pragma_index_xinfo({})",
            quoted(&object.name, '\'')
        ))?;
        let indexes = self.rows(&format!(
            "SELECT name, origin, partial FROM pragma_index_list({}) WHERE \"unique\"",
            quoted(&object.name, '\'')
        ))?;
        let unique = self.unique_columns(&indexes)?;
        let columns = stored
            .iter()
            .map(|row| self.column(row, &unique))
            .collect::<Result<Vec<Column>>>()?;
        let keyed = keyed(&stored);
        let has_rowids = physical.is_empty();
        let is_alias = has_rowids
            && !indexes.iter().any(|index| text(index, 1) == "pk")
            && matches!(keyed[..], [i] if stored.get(i).is_some_and(|row| text(row, 2).eq_ignore_ascii_case("INTEGER")));
        let order = if has_rowids {
            (0..columns.len()).collect()
        } else {
            physical
                .iter()
                .map(|row| place.get(text(row, 0)).copied().ok_or_else(broken))
                .collect::<Result<Vec<usize>>>()?
        };
        Ok(Table {
            name: object.name.clone(),
            root: object.root,
            sql: object.sql.clone().unwrap_or_default(),
            order,
            key: if has_rowids && !is_alias {
                Vec::new()
            } else {
                keyed.clone()
            },
            alias: keyed.first().copied().filter(|_| is_alias),
            rowid: free_rowid_name(&infos).filter(|_| has_rowids),
            has_rowids,
            columns,
        })
    }

    /// Columns of unique indexes; `None`: an index on an expression or on some rows only may be about any.
    fn unique_columns(&self, indexes: &[Row]) -> Result<Option<Vec<String>>> {
        let mut unique = Vec::new();
        for index in indexes {
            if text(index, 2) != "0" {
                return Ok(None);
            }
            let columns = self.rows(&format!(
                "SELECT cid, name FROM pragma_index_info({})",
                quoted(text(index, 0), '\'')
            ))?;
            for column in columns {
                match column.get(1) {
                    Some(Some(name)) => unique.push(name.clone()),
                    _ => return Ok(None),
                }
            }
        }
        Ok(Some(unique))
    }

    fn column(&self, row: &Row, unique: &Option<Vec<String>>) -> Result<Column> {
        let (name, kind) = (text(row, 1), text(row, 2).to_ascii_uppercase());
        // SQLite's own rule for the affinity REAL.
        let not_real = ["INT", "CHAR", "CLOB", "TEXT", "BLOB"];
        let is_real = !kind.is_empty()
            && !not_real.iter().any(|word| kind.contains(word))
            && ["REAL", "FLOA", "DOUB"]
                .iter()
                .any(|word| kind.contains(word));
        let default = match row.get(3) {
            Some(Some(expression)) => self.default(expression, &kind)?,
            _ => Value::Null,
        };
        Ok(Column {
            name: name.to_owned(),
            is_real,
            is_generated: text(row, 5) == "3",
            is_unique: text(row, 4) != "0"
                || unique.as_ref().is_none_or(|unique| {
                    unique.iter().any(|other| other.eq_ignore_ascii_case(name))
                }),
            default,
        })
    }

    /// The value of a column's default, which is a constant wherever rows can lack the column.
    fn default(&self, expression: &str, kind: &str) -> Result<Value> {
        let words = ["INT", "CHAR", "CLOB", "TEXT"];
        let value = match words.iter().position(|word| kind.contains(word)) {
            // A number in a column for text.
            Some(1..=3) => format!(
                "CASE WHEN typeof({expression}) IN ('integer', 'real') THEN CAST({expression} AS TEXT) ELSE {expression} END"
            ),
            _ => format!("({expression})"),
        };
        let asked = self.0.rows(&format!(
            "SELECT typeof(v), CASE typeof(v) WHEN 'real' THEN printf('%!.17g', v) WHEN 'integer' THEN v ELSE hex(CAST(v AS BLOB)) END \
             FROM (SELECT {value} AS v)"
        ));
        // What is not constant (CURRENT_TIMESTAMP, a function) no row lacks.
        let Ok(rows) = asked else {
            return Ok(Value::Null);
        };
        let Some([Some(kind), Some(text)]) = rows.first().map(Vec::as_slice) else {
            return Ok(Value::Null);
        };
        Ok(match kind.as_str() {
            "integer" => text.parse().map_or(Value::Null, Value::Integer),
            "real" => text.parse().map_or(Value::Null, Value::Real),
            "text" => Value::Text(unhex(text)),
            "blob" => Value::Blob(unhex(text)),
            _ => Value::Null,
        })
    }
}

/// The places of the columns that make the key, in the key's order.
fn keyed(stored: &[&Row]) -> Vec<usize> {
    let mut keyed: Vec<(u32, usize)> = stored
        .iter()
        .enumerate()
        .filter_map(|(i, row)| Some((text(row, 4).parse().ok().filter(|n| *n > 0)?, i)))
        .collect();
    keyed.sort_unstable();
    keyed.into_iter().map(|(_, i)| i).collect()
}

/// A name of the rowid that no column has.
fn free_rowid_name(infos: &[Row]) -> Option<&'static str> {
    let free = |name: &&str| {
        let mut columns = infos.iter();
        !columns.any(|row| text(row, 1).eq_ignore_ascii_case(name))
    };
    ["rowid", "_rowid_", "oid"].into_iter().find(free)
}

fn text(row: &Row, at: usize) -> &str {
    row.get(at).and_then(Option::as_deref).unwrap_or_default()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter_map(|c| Some(c.to_digit(16)? as u8))
        .collect();
    digits
        .as_chunks::<2>()
        .0
        .iter()
        .map(|[high, low]| high << 4 | low)
        .collect()
}
