//! A row's values as SQLite stores them, and as SQL writes them.

use std::borrow::Cow;
use std::fmt::Write;

use super::btree::varint;

/// Columns of a table at most, as SQLite can be compiled.
const COLUMNS_MAX: usize = 32_767;

/// How a database stores its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// UTF-8.
    Utf8,
    /// UTF-16, the low byte first.
    Utf16le,
    /// UTF-16, the high byte first.
    Utf16be,
}

impl Encoding {
    /// By the number in the database's header.
    pub fn of_header(number: u32) -> Encoding {
        match number {
            2 => Encoding::Utf16le,
            3 => Encoding::Utf16be,
            _ => Encoding::Utf8,
        }
    }

    /// `bytes` as text, if they are.
    pub fn decode(self, bytes: &[u8]) -> Option<Cow<'_, str>> {
        let units = |of: fn([u8; 2]) -> u16| {
            let (pairs, rest) = bytes.as_chunks::<2>();
            if !rest.is_empty() {
                return None;
            }
            let units: Vec<u16> = pairs.iter().map(|pair| of(*pair)).collect();
            String::from_utf16(&units).ok().map(Cow::Owned)
        };
        match self {
            Encoding::Utf8 => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
            Encoding::Utf16le => units(u16::from_le_bytes),
            Encoding::Utf16be => units(u16::from_be_bytes),
        }
    }
}

/// A value of a row.
#[derive(Clone, Debug)]
pub enum Value {
    /// NULL.
    Null,
    /// An integer.
    Integer(i64),
    /// A floating-point number; never NaN.
    Real(f64),
    /// Text, in the encoding of its database.
    Text(Vec<u8>),
    /// A blob.
    Blob(Vec<u8>),
}

impl PartialEq for Value {
    /// The same bits: 0.0 is not -0.0.
    fn eq(&self, other: &Value) -> bool {
        match (self, other) {
            (Value::Null, Value::Null) => true,
            (Value::Integer(a), Value::Integer(b)) => a == b,
            (Value::Real(a), Value::Real(b)) => a.to_bits() == b.to_bits(),
            (Value::Text(a), Value::Text(b)) | (Value::Blob(a), Value::Blob(b)) => a == b,
            _ => false,
        }
    }
}

/// The values that a payload holds, in the order of storage; `None` if it is no record. A row may have fewer than its table has
/// columns, which came later.
pub fn decode(payload: &[u8]) -> Option<Vec<Value>> {
    let (header, mut at) = varint(payload)?;
    let header = usize::try_from(header)
        .ok()
        .filter(|end| *end <= payload.len())?;
    let mut values = Vec::new();
    let mut body = payload.get(header..)?;
    while at < header {
        let (kind, used) = varint(payload.get(at..header)?)?;
        at += used;
        if values.len() == COLUMNS_MAX {
            return None;
        }
        let length = usize::try_from(length(kind)?).ok()?;
        let (bytes, rest) = body.split_at_checked(length)?;
        body = rest;
        values.push(value(kind, bytes));
    }
    Some(values)
}

fn length(kind: u64) -> Option<u64> {
    match kind {
        0 | 8 | 9 => Some(0),
        1..=4 => Some(kind),
        5 => Some(6),
        6 | 7 => Some(8),
        10 | 11 => None,
        _ => Some((kind - 12) / 2),
    }
}

fn value(kind: u64, bytes: &[u8]) -> Value {
    match kind {
        0 => Value::Null,
        8 => Value::Integer(0),
        9 => Value::Integer(1),
        7 => Value::Real(f64::from_bits(big_endian(bytes) as u64)),
        1..=6 => Value::Integer(big_endian(bytes)),
        _ if kind.is_multiple_of(2) => Value::Blob(bytes.to_vec()),
        _ => Value::Text(bytes.to_vec()),
    }
}

/// A signed number of 1 to 8 bytes.
fn big_endian(bytes: &[u8]) -> i64 {
    let negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
    let start = if negative { -1 } else { 0 };
    bytes
        .iter()
        .fold(start, |number: i64, byte| number << 8 | i64::from(*byte))
}

impl Value {
    /// Bytes that tell it from every other value, in an order that is always the same.
    pub fn identify(&self, into: &mut Vec<u8>) {
        let mut put = |kind: u8, bytes: &[u8]| {
            into.push(kind);
            into.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
            into.extend_from_slice(bytes);
        };
        match self {
            Value::Null => put(0, &[]),
            // In the order of the numbers.
            Value::Integer(number) => put(1, &((*number as u64) ^ (1 << 63)).to_be_bytes()),
            Value::Real(number) => put(2, &number.to_bits().to_be_bytes()),
            Value::Text(bytes) => put(3, bytes),
            Value::Blob(bytes) => put(4, bytes),
        }
    }

    /// The literal, or expression, that gives exactly this value in a database with this encoding.
    pub fn sql(&self, encoding: Encoding) -> String {
        match self {
            Value::Null => "NULL".to_owned(),
            Value::Integer(number) => number.to_string(),
            Value::Real(number) => real(*number),
            Value::Text(bytes) => match encoding.decode(bytes) {
                Some(text) if !text.contains('\0') => quoted(&text, '\''),
                // A literal ends at its first NUL.
                _ => format!("CAST({} AS TEXT)", blob(bytes)),
            },
            Value::Blob(bytes) => blob(bytes),
        }
    }
}

/// A name or a text in quotes.
pub fn quoted(text: &str, quote: char) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        if c == quote {
            out.push(quote);
        }
        out.push(c);
    }
    out.push(quote);
    out
}

fn blob(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(2 * bytes.len() + 3);
    out.push_str("x'");
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
    out.push('\'');
    out
}

/// SQLite's own reading of decimal numbers is not exact to the last bit in every version; powers of two are.
fn real(number: f64) -> String {
    if number.is_infinite() {
        return if number > 0.0 { "9e999" } else { "-9e999" }.to_owned();
    }
    let short = format!("{number:?}");
    let digits = short.bytes().filter(u8::is_ascii_digit).count();
    // Whole numbers, halves, quarters: nothing is rounded on the way.
    if digits <= 15 && (number * 1024.0).fract() == 0.0 && number.abs() < 1e15 {
        return short;
    }
    let bits = number.to_bits();
    let (sign, exponent) = (bits >> 63, (bits >> 52 & 0x7ff) as i32);
    let fraction = bits & ((1 << 52) - 1);
    let (mut mantissa, mut power) = if exponent == 0 {
        (fraction, -1074)
    } else {
        (fraction | 1 << 52, exponent - 1075)
    };
    while mantissa != 0 && mantissa.is_multiple_of(2) {
        mantissa /= 2;
        power += 1;
    }
    let mut out = format!(
        "(CAST({}{mantissa} AS REAL)",
        if sign == 1 { "-" } else { "" }
    );
    let operator = if power < 0 { '/' } else { '*' };
    let mut left = power.unsigned_abs();
    while left > 0 {
        let step = left.min(62);
        let _ = write!(out, "{operator}{}", 1u64 << step);
        left -= step;
    }
    let _ = write!(out, ")/*{short}*/");
    out
}
