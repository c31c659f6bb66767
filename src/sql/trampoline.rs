//! SQLite's virtual-table callbacks around [`Table`]. sqlite-loadable's own are not used: an `UPDATE`, or an `INSERT`
//! that names a rowid, ends in a panic there, and error texts are taken as C formats.
//!
//! Each callback decodes, calls, encodes; all behind the panic guard.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::null_mut;

use c_shim::Api;
use sqlite_loadable::api::{ValueType, value_int64, value_text, value_type};
use sqlite_loadable::ext::{
    sqlite3, sqlite3_context, sqlite3_index_info, sqlite3_module, sqlite3_value, sqlite3_vtab,
    sqlite3_vtab_cursor, sqlite3ext_create_module_v2, sqlite3ext_declare_vtab,
};

use super::host::Host;
use super::table::{ARGUMENTS_MAX, Change, Query, Row, Rows, Table, Value};
use super::{give, guard};
use crate::error::{Error, ErrorKind, Result};

const SQLITE_OK: c_int = 0;
const SQLITE_ERROR: c_int = 1;
const SQLITE_CONSTRAINT: c_int = 19;

// Comparisons that a query offers for a column.
const EQ: u8 = 2;
const GT: u8 = 4;
const LE: u8 = 8;
const LT: u8 = 16;
const GE: u8 = 32;

// Bits of the plan number that xBestIndex gives to xFilter: which values follow, in this order.
const PLAN_ARGUMENTS: [c_int; ARGUMENTS_MAX] = [1, 2, 4];
const PLAN_FROM: c_int = 8;
const PLAN_TO: c_int = 16;
const PLAN_SINCE: c_int = 32;
const PLAN_UNTIL: c_int = 64;
/// The value of `PLAN_FROM` is also the upper bound.
const PLAN_EXACT: c_int = 128;
/// The value of `PLAN_SINCE` is also the upper bound.
const PLAN_AT: c_int = 256;

/// Defines a table in a connection.
///
/// # Safety
/// `db` is an open connection.
pub(super) unsafe fn define<T: Table>(api: Api, db: *mut sqlite3, name: &CStr) -> Result<()> {
    let module: &'static sqlite3_module = const { &module::<T>() };
    // SAFETY: the caller's promise; the module lives for ever and the name is copied.
    let rc = unsafe { sqlite3ext_create_module_v2(db, name.as_ptr(), module, null_mut(), None) };
    if rc == SQLITE_OK {
        return Ok(());
    }
    let what = format!(
        "SQLite refused to define the table {}",
        name.to_string_lossy()
    );
    api.log(rc, &what);
    Err(Error::new(ErrorKind::Internal, what))
}

/// Without xCreate a table is eponymous only: nobody can write it into a schema.
const fn module<T: Table>() -> sqlite3_module {
    sqlite3_module {
        iVersion: 1,
        xCreate: None,
        xConnect: Some(connect::<T>),
        xBestIndex: Some(best_index::<T>),
        xDisconnect: Some(disconnect::<T>),
        xDestroy: None,
        xOpen: Some(open::<T>),
        xClose: Some(close::<T>),
        xFilter: Some(filter::<T>),
        xNext: Some(next::<T>),
        xEof: Some(eof::<T>),
        xColumn: Some(column::<T>),
        xRowid: Some(rowid::<T>),
        xUpdate: if T::WRITABLE { Some(update::<T>) } else { None },
        xBegin: None,
        xSync: None,
        xCommit: None,
        xRollback: None,
        xFindFunction: None,
        xRename: None,
        xSavepoint: None,
        xRelease: None,
        xRollbackTo: None,
        xShadowName: None,
    }
}

/// A table of one connection. SQLite sees `base`, which must come first.
#[repr(C)]
struct Connected<T> {
    base: sqlite3_vtab,
    host: Host,
    _table: PhantomData<T>,
}

/// One reading of a table. SQLite sees `base`, which must come first, and sets its `pVtab`.
#[repr(C)]
struct Cursor<T> {
    base: sqlite3_vtab_cursor,
    rows: Option<Rows>,
    row: Option<Row>,
    _table: PhantomData<T>,
}

impl<T> Cursor<T> {
    fn step(&mut self) -> Result<()> {
        self.row = None;
        self.row = self.rows.as_mut().and_then(Iterator::next).transpose()?;
        Ok(())
    }
}

unsafe extern "C" fn connect<T: Table>(
    db: *mut sqlite3,
    _aux: *mut c_void,
    _argc: c_int,
    _argv: *const *const c_char,
    out: *mut *mut sqlite3_vtab,
    message: *mut *mut c_char,
) -> c_int {
    let made = guard(|| {
        // SAFETY: SQLite passes the connection that the table will belong to, and disconnects before closing it.
        let host = unsafe { Host::new(db.cast()) }?;
        let schema = CString::new(T::SCHEMA)
            .map_err(|_| Error::new(ErrorKind::Internal, "a NUL in a table's columns"))?;
        // SAFETY: inside xConnect, where both calls belong.
        let rc = unsafe {
            match sqlite3ext_declare_vtab(db, schema.as_ptr()) {
                SQLITE_OK => host.api().vtab_direct_only(db.cast()),
                rc => rc,
            }
        };
        if rc != SQLITE_OK {
            return Err(Error::new(
                ErrorKind::Internal,
                format_args!("SQLite refused the table's columns with code {rc}"),
            ));
        }
        let base = sqlite3_vtab {
            pModule: std::ptr::null(),
            nRef: 0,
            zErrMsg: null_mut(),
        };
        Ok(Box::into_raw(Box::new(Connected::<T> {
            base,
            host,
            _table: PhantomData,
        })))
    });
    match made {
        Ok(table) => {
            // SAFETY: SQLite passes a place for the table, whose first field is what it expects there.
            unsafe { *out = table.cast() };
            SQLITE_OK
        }
        Err(error) => {
            if let Some(api) = Api::get() {
                // SAFETY: SQLite passes a place for a message, or null.
                unsafe { api.set_error_message(message, &error.to_string()) };
            }
            SQLITE_ERROR
        }
    }
}

unsafe extern "C" fn disconnect<T: Table>(table: *mut sqlite3_vtab) -> c_int {
    // SAFETY: made in connect(); SQLite disconnects once, when no cursor is left.
    let dropped = guard(|| unsafe {
        drop(Box::from_raw(table.cast::<Connected<T>>()));
        Ok(())
    });
    if dropped.is_ok() {
        SQLITE_OK
    } else {
        SQLITE_ERROR
    }
}

unsafe extern "C" fn best_index<T: Table>(
    table: *mut sqlite3_vtab,
    info: *mut sqlite3_index_info,
) -> c_int {
    let planned = guard(|| {
        // SAFETY: SQLite's plan, valid during the call and ours alone.
        Ok(unsafe { plan::<T>(&mut *info) })
    });
    match planned {
        Ok(true) => SQLITE_OK,
        // No way to read with what is known at this place of the join: SQLite tries another order.
        Ok(false) => SQLITE_CONSTRAINT,
        // SAFETY: SQLite passes a table made in connect().
        Err(error) => unsafe { fail(table, &error) },
    }
}

/// Chooses which comparisons to be given the values of. False if the argument is not known yet in this plan.
///
/// # Safety
/// `info` is as SQLite made it: its arrays have the lengths it says.
unsafe fn plan<T: Table>(info: &mut sqlite3_index_info) -> bool {
    let mut arguments = [None; ARGUMENTS_MAX];
    let (mut numbers, mut times) = (Bounds::default(), Bounds::default());
    for i in 0..usize::try_from(info.nConstraint).unwrap_or(0) {
        // SAFETY: the caller's promise.
        let constraint = unsafe { &*info.aConstraint.add(i) };
        let usable = constraint.usable != 0;
        let place = T::ARGUMENTS
            .iter()
            .position(|column| *column == constraint.iColumn);
        if let Some(argument) = place.and_then(|place| arguments.get_mut(place)) {
            if constraint.op == EQ {
                if !usable {
                    return false;
                }
                *argument = argument.or(Some(i));
            }
        } else if usable && Some(constraint.iColumn) == T::ORDERED {
            numbers.offer(constraint.op, i);
        } else if usable && Some(constraint.iColumn) == T::TIMED {
            times.offer(constraint.op, i);
        }
    }
    let mut wanted: Vec<(Option<usize>, c_int)> =
        arguments.into_iter().zip(PLAN_ARGUMENTS).collect();
    wanted.extend(numbers.wanted(PLAN_FROM, PLAN_TO));
    wanted.extend(times.wanted(PLAN_SINCE, PLAN_UNTIL));
    info.idxNum = 0;
    for (position, (i, bit)) in (1..).zip(wanted.into_iter().filter_map(|(i, bit)| Some((i?, bit))))
    {
        // SAFETY: as above; i is one of the constraints.
        let usage = unsafe { &mut *info.aConstraintUsage.add(i) };
        usage.argvIndex = position;
        // An argument is exactly what the rows are made for; bounds are only hints, so SQLite checks them again.
        usage.omit = u8::from(PLAN_ARGUMENTS.contains(&bit));
        info.idxNum |= bit;
    }
    let exact = numbers.exact.is_some();
    if exact {
        info.idxNum |= PLAN_EXACT;
    }
    if times.exact.is_some() {
        info.idxNum |= PLAN_AT;
    }
    if info.nOrderBy == 1 {
        // SAFETY: as above.
        let order = unsafe { &*info.aOrderBy };
        info.orderByConsumed = c_int::from(Some(order.iColumn) == T::ORDERED && order.desc == 0);
    }
    let (cost, rows) = match (exact, numbers.is_any() || times.is_any()) {
        (true, _) => (10.0, 1),
        (false, true) => (1e4, 1000),
        (false, false) => (1e6, 100_000),
    };
    info.estimatedCost = cost;
    info.estimatedRows = rows;
    true
}

/// The comparisons of one column that a plan will be given the values of.
#[derive(Default)]
struct Bounds {
    exact: Option<usize>,
    from: Option<usize>,
    to: Option<usize>,
}

impl Bounds {
    fn offer(&mut self, op: u8, i: usize) {
        match op {
            EQ => self.exact = Some(i),
            GT | GE => self.from = Some(i),
            LT | LE => self.to = Some(i),
            _ => {}
        }
    }

    fn is_any(&self) -> bool {
        self.exact.or(self.from).or(self.to).is_some()
    }

    fn wanted(&self, from: c_int, to: c_int) -> [(Option<usize>, c_int); 2] {
        match self.exact {
            Some(i) => [(Some(i), from), (None, to)],
            None => [(self.from, from), (self.to, to)],
        }
    }
}

unsafe extern "C" fn open<T: Table>(
    table: *mut sqlite3_vtab,
    out: *mut *mut sqlite3_vtab_cursor,
) -> c_int {
    let made = guard(|| {
        let base = sqlite3_vtab_cursor { pVtab: table };
        Ok(Box::into_raw(Box::new(Cursor::<T> {
            base,
            rows: None,
            row: None,
            _table: PhantomData,
        })))
    });
    // SAFETY: SQLite passes a place for the cursor, whose first field is what it expects there; and our table.
    unsafe {
        match made {
            Ok(cursor) => {
                *out = cursor.cast();
                SQLITE_OK
            }
            Err(error) => fail(table, &error),
        }
    }
}

unsafe extern "C" fn close<T: Table>(cursor: *mut sqlite3_vtab_cursor) -> c_int {
    // SAFETY: made in open(); SQLite closes it once.
    let dropped = guard(|| unsafe {
        drop(Box::from_raw(cursor.cast::<Cursor<T>>()));
        Ok(())
    });
    if dropped.is_ok() {
        SQLITE_OK
    } else {
        SQLITE_ERROR
    }
}

unsafe extern "C" fn filter<T: Table>(
    cursor: *mut sqlite3_vtab_cursor,
    plan: c_int,
    _text: *const c_char,
    argc: c_int,
    argv: *mut *mut sqlite3_value,
) -> c_int {
    // SAFETY: SQLite passes a cursor made in open(), its table, and as many values as the plan asked for.
    unsafe {
        with_cursor::<T>(cursor, |cursor, host| {
            let mut values = arguments(argc, argv).iter();
            let mut next = |bit: c_int| (plan & bit != 0).then(|| values.next()).flatten();
            let mut query = Query::default();
            for (argument, bit) in query.arguments.iter_mut().zip(PLAN_ARGUMENTS) {
                *argument = next(bit).map(value).transpose()?;
            }
            query.from = next(PLAN_FROM).and_then(bound);
            query.to = next(PLAN_TO).and_then(bound);
            if plan & PLAN_EXACT != 0 {
                query.to = query.from;
            }
            query.since = next(PLAN_SINCE).and_then(time_bound);
            query.until = next(PLAN_UNTIL).and_then(time_bound);
            if plan & PLAN_AT != 0 {
                query.until.clone_from(&query.since);
            }
            cursor.rows = None;
            cursor.rows = Some(T::rows(host, &query)?);
            cursor.step()
        })
    }
}

unsafe extern "C" fn next<T: Table>(cursor: *mut sqlite3_vtab_cursor) -> c_int {
    // SAFETY: SQLite passes a cursor made in open().
    unsafe { with_cursor::<T>(cursor, |cursor, _| cursor.step()) }
}

unsafe extern "C" fn eof<T: Table>(cursor: *mut sqlite3_vtab_cursor) -> c_int {
    // SAFETY: SQLite passes a cursor made in open().
    c_int::from(unsafe { &*cursor.cast::<Cursor<T>>() }.row.is_none())
}

unsafe extern "C" fn column<T: Table>(
    cursor: *mut sqlite3_vtab_cursor,
    context: *mut sqlite3_context,
    index: c_int,
) -> c_int {
    // SAFETY: SQLite passes a cursor made in open(), and the context that the value is for.
    unsafe {
        with_cursor::<T>(cursor, |cursor, _| {
            let value = usize::try_from(index)
                .ok()
                .and_then(|index| cursor.row.as_ref()?.values.get(index));
            give(context, value.unwrap_or(&Value::Null));
            Ok(())
        })
    }
}

unsafe extern "C" fn rowid<T: Table>(cursor: *mut sqlite3_vtab_cursor, out: *mut i64) -> c_int {
    // SAFETY: SQLite passes a cursor made in open(), and a place for the number.
    unsafe {
        *out = (*cursor.cast::<Cursor<T>>())
            .row
            .as_ref()
            .map_or(0, |row| row.rowid);
    }
    SQLITE_OK
}

unsafe extern "C" fn update<T: Table>(
    table: *mut sqlite3_vtab,
    argc: c_int,
    argv: *mut *mut sqlite3_value,
    _rowid: *mut i64,
) -> c_int {
    // SAFETY: SQLite passes a table made in connect(), and as many values as it says.
    unsafe {
        let changed = guard(|| {
            let host = &(*table.cast::<Connected<T>>()).host;
            T::change(host, change(arguments(argc, argv))?)
        });
        match changed {
            Ok(()) => SQLITE_OK,
            Err(error) => fail(table, &error),
        }
    }
}

/// What xUpdate's arguments say: old rowid, new rowid, columns.
fn change(values: &[*mut sqlite3_value]) -> Result<Change> {
    let old = values
        .first()
        .filter(|value| value_type(value) != ValueType::Null)
        .map(value_int64);
    let Some((new, columns)) = values.get(1..).and_then(<[_]>::split_first) else {
        return old
            .map(Change::Delete)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "SQLite named no row to delete"));
    };
    let new = Some(new)
        .filter(|value| value_type(value) != ValueType::Null)
        .map(value_int64);
    let columns = columns.iter().map(value).collect::<Result<Vec<_>>>()?;
    match (old, new) {
        (None, None) => Ok(Change::Insert(columns)),
        (Some(old), Some(new)) if old == new => Ok(Change::Update(old, columns)),
        _ => Err(Error::new(
            ErrorKind::Usage,
            "rows of this table have no rowid to choose",
        )),
    }
}

/// A value of SQL as one of ours. Numbers with a fraction become text.
fn value(value: &*mut sqlite3_value) -> Result<Value> {
    match value_type(value) {
        ValueType::Null => Ok(Value::Null),
        ValueType::Integer => Ok(Value::Integer(value_int64(value))),
        ValueType::Text | ValueType::Float => value_text(value)
            .map(Value::from)
            .map_err(|_| Error::new(ErrorKind::Usage, "the text is not UTF-8")),
        ValueType::Blob => Err(Error::new(ErrorKind::Usage, "text is needed, not a blob")),
    }
}

/// A bound of the ordered column; none if it is no number, which SQLite then compares itself.
fn bound(value: &*mut sqlite3_value) -> Option<i64> {
    matches!(value_type(value), ValueType::Integer | ValueType::Float).then(|| value_int64(value))
}

/// A bound of the column of times, if it is written as these times are: then every collation of SQLite's own puts it
/// among them in the same place. SQLite compares anything else itself.
fn time_bound(value: &*mut sqlite3_value) -> Option<String> {
    let text = (value_type(value) == ValueType::Text)
        .then(|| value_text(value).ok())
        .flatten()?;
    let plain = |byte: u8| byte.is_ascii_digit() || b"-:.TZ+".contains(&byte);
    text.bytes().all(plain).then(|| text.to_owned())
}

/// The values of a call. SQLite may pass null with a count of 0.
///
/// # Safety
/// `argv` has `argc` values, alive during the call.
unsafe fn arguments<'a>(argc: c_int, argv: *mut *mut sqlite3_value) -> &'a [*mut sqlite3_value] {
    match usize::try_from(argc) {
        // SAFETY: the caller's promise.
        Ok(count) if count > 0 && !argv.is_null() => unsafe {
            std::slice::from_raw_parts(argv, count)
        },
        _ => &[],
    }
}

/// Runs `run` with a cursor and its connection behind the panic guard.
///
/// # Safety
/// `cursor` was made in open() and its table is alive.
unsafe fn with_cursor<T: Table>(
    cursor: *mut sqlite3_vtab_cursor,
    run: impl FnOnce(&mut Cursor<T>, &Host) -> Result<()>,
) -> c_int {
    // SAFETY: the caller's promise; SQLite uses a cursor in one thread, one call at a time.
    unsafe {
        let table = (*cursor).pVtab;
        match guard(|| {
            run(
                &mut *cursor.cast::<Cursor<T>>(),
                &(*table.cast::<Connected<T>>()).host,
            )
        }) {
            Ok(()) => SQLITE_OK,
            Err(error) => {
                (*cursor.cast::<Cursor<T>>()).row = None;
                fail(table, &error)
            }
        }
    }
}

/// Leaves an error's text with the table, for SQLite to show.
///
/// # Safety
/// `table` was made in connect() and is alive.
unsafe fn fail(table: *mut sqlite3_vtab, error: &Error) -> c_int {
    if let Some(api) = Api::get() {
        // SAFETY: the caller's promise; an older text is SQLite's memory or null.
        unsafe {
            api.free((*table).zErrMsg.cast());
            (*table).zErrMsg = api.mprintf(&error.to_string());
        }
    }
    SQLITE_ERROR
}
