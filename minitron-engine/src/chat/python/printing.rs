//! `str()` and `repr()` of values.

use std::fmt::Write as _;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

use super::methods::pay;

/// Deeper is no data that anybody wrote.
const DEEPEST: usize = 200;

/// Whether the engine prints it otherwise than Python: floats, and what may hold some.
pub(super) fn needs_python(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Number => !value.is_integer(),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => !value.is_kwargs(),
        _ => false,
    }
}

/// `str(value)`.
pub(super) fn str_of(state: &State, value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    if !needs_python(value) {
        return Ok(value.to_string());
    }
    let mut out = String::new();
    write(state, value, &mut out, 0)?;
    Ok(out)
}

/// `repr(value)`.
fn write(state: &State, value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
    if depth > DEEPEST {
        return Err(too_deep());
    }
    // A list may be long without ever having been made.
    pay(state, value.as_str().map_or(0, str::len) + 64)?;
    match value.kind() {
        ValueKind::Number if !value.is_integer() => {
            out.push_str(&float(f64::try_from(value.clone())?))
        }
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() {
                ('(', ')')
            } else {
                ('[', ']')
            };
            out.push(open);
            let mut n_items = 0usize;
            for item in value.try_iter()?.checked() {
                if n_items > 0 {
                    out.push_str(", ");
                }
                n_items = n_items.saturating_add(1);
                write(state, &item?, out, depth.saturating_add(1))?;
            }
            if value.is_tuple() && n_items == 1 {
                out.push(',');
            }
            out.push(close);
        }
        ValueKind::Map => {
            out.push('{');
            for (idx, key) in value.try_iter()?.checked().enumerate() {
                if idx > 0 {
                    out.push_str(", ");
                }
                let key = key?;
                write(state, &key, out, depth.saturating_add(1))?;
                out.push_str(": ");
                write(state, &value.get_item(&key)?, out, depth.saturating_add(1))?;
            }
            out.push('}');
        }
        ValueKind::String => quoted(value.as_str().unwrap_or_default(), out),
        _ => {
            let _ = write!(out, "{value:?}");
        }
    }
    Ok(())
}

/// `repr(str)`: in single quotes, unless it holds one and no double one.
fn quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => {
                let _ = match u32::from(c) {
                    code @ ..0x100 => write!(out, "\\x{code:02x}"),
                    code @ 0x100..0x10000 => write!(out, "\\u{code:04x}"),
                    code => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// `str.isprintable`, by the table that Rust's own escapes go by; a letter before it, since they
/// escape a leading accent.
fn is_printable(c: char) -> bool {
    c.is_ascii_graphic()
        || c == ' '
        || !c.is_ascii() && ['a', c].iter().collect::<String>().escape_debug().count() == 2
}

pub(super) fn too_deep() -> Error {
    Error::new(
        ErrorKind::InvalidOperation,
        format!("a value is nested more than {DEEPEST} deep"),
    )
}

/// `repr(float)`: the shortest digits that read back, with an exponent below 1e-4 and from 1e16.
pub(super) fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let shortest = format!("{x:e}");
    let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if x == 0.0 || (-4..16).contains(&exponent) {
        let plain = format!("{x}");
        return if plain.contains('.') {
            plain
        } else {
            plain + ".0"
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}
