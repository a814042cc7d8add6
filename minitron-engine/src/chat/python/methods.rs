//! Methods of Python's strings, dictionaries and lists, where the engine's own set lacks one or
//! answers otherwise.

use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::cutting::{cut_up, trimmed};

/// What is called where the engine knows no method.
pub(super) fn call(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let found = match value.kind() {
        ValueKind::String => of_text(state, value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Seq | ValueKind::Iterable => of_list(value, method, args)?,
        ValueKind::Map if method == "copy" => {
            from_args::<()>(args).map(|()| Some(value.clone()))?
        }
        _ => None,
    };
    match found {
        Some(answer) => Ok(answer),
        None => unknown_method_callback(state, value, method, args),
    }
}

/// Room is paid for before it is taken.
pub(super) fn pay(state: &State, n_bytes: usize) -> Result<(), Error> {
    state.consume_fuel(n_bytes as u64 / 64)
}

fn of_text(
    state: &State,
    text: &str,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    let answer = match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Value::from(trimmed(
                text,
                chars,
                (method != "rstrip", method != "lstrip"),
            ))
        }
        "split" | "rsplit" | "splitlines" | "partition" | "rpartition" => {
            cut_up(text, method, args)?
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "index" | "rindex" => {
            let (what,): (&str,) = from_args(args)?;
            place(text, what, method == "rindex")?
        }
        "center" | "ljust" | "rjust" => {
            let (width, fill): (i64, Option<&str>) = from_args(args)?;
            filled(state, text, width, fill.unwrap_or(" "), method)?
        }
        "zfill" => {
            let (width,): (i64,) = from_args(args)?;
            with_zeros(state, text, width)?
        }
        "swapcase" => {
            let () = from_args(args)?;
            text.chars().map(swapped).collect::<String>().into()
        }
        "title" => {
            let () = from_args(args)?;
            Value::from(title(text))
        }
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            joined(state, text, items)?
        }
        "format" => {
            pay_for_format(state, text, args)?;
            return Ok(None);
        }
        _ => return Ok(None),
    };
    Ok(Some(answer))
}

/// Characters before the first or the last that is looked for.
fn place(text: &str, what: &str, from_right: bool) -> Result<Value, Error> {
    let at = match from_right {
        true => text.rfind(what),
        false => text.find(what),
    };
    let at = at.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "substring not found"))?;
    let before = text.get(..at).unwrap_or_default();
    Ok(Value::from(before.chars().count()))
}

/// The engine formats without asking what it comes to: each field may take its width, and all that
/// is given.
fn pay_for_format(state: &State, text: &str, args: &[Value]) -> Result<(), Error> {
    let numbers = text
        .split(|c: char| !c.is_ascii_digit())
        .filter(|digits| !digits.is_empty());
    let width = numbers
        .map(|digits| digits.parse().unwrap_or(usize::MAX))
        .fold(0, usize::saturating_add);
    let given = args
        .iter()
        .map(|arg| arg.as_str().map_or(64, str::len))
        .fold(0, usize::saturating_add);
    pay(
        state,
        text.matches('{')
            .count()
            .saturating_mul(given)
            .saturating_add(width),
    )
}

/// Characters that a text lacks of a width, paid for.
fn missing(state: &State, text: &str, width: i64, fill: &str) -> Result<usize, Error> {
    let n_missing = usize::try_from(width)
        .unwrap_or(0)
        .saturating_sub(text.chars().count());
    pay(state, n_missing.saturating_mul(fill.len()))?;
    Ok(n_missing)
}

pub(super) fn filled(
    state: &State,
    text: &str,
    width: i64,
    fill: &str,
    method: &str,
) -> Result<Value, Error> {
    if fill.chars().count() != 1 {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "the fill character must be exactly one character long",
        ));
    }
    let n_missing = missing(state, text, width, fill)?;
    let left = match method {
        "ljust" => 0,
        "rjust" => n_missing,
        // An odd one goes left in an even text, and right in an odd one.
        _ => n_missing / 2 + (n_missing & usize::try_from(width).unwrap_or(0) & 1),
    };
    Ok(Value::from(
        [&fill.repeat(left), text, &fill.repeat(n_missing - left)].concat(),
    ))
}

/// Zeros between the sign and the digits.
fn with_zeros(state: &State, text: &str, width: i64) -> Result<Value, Error> {
    let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
    let zeros = "0".repeat(missing(state, text, width, "0")?);
    Ok(Value::from([sign, &zeros, digits].concat()))
}

fn swapped(c: char) -> String {
    match c {
        c if c.is_uppercase() => c.to_lowercase().collect(),
        c => c.to_uppercase().collect(),
    }
}

/// Letters after anything that is no letter are capitals.
fn title(text: &str) -> String {
    let mut after_letter = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match after_letter {
            true => out.extend(c.to_lowercase()),
            // One that becomes several has a capital first: ß is Ss.
            false => out.extend(
                c.to_uppercase()
                    .enumerate()
                    .flat_map(|(idx, upper)| match idx {
                        0 => vec![upper],
                        _ if c == 'ß' => upper.to_lowercase().collect(),
                        _ => vec![upper],
                    }),
            ),
        }
        after_letter = c.is_lowercase() || c.is_uppercase();
    }
    out
}

fn joined(state: &State, separator: &str, items: &Value) -> Result<Value, Error> {
    let mut out = String::new();
    for (idx, item) in items.try_iter()?.checked().enumerate() {
        let item = item?;
        let Some(text) = item.as_str() else {
            let message = format!(
                "sequence item {idx}: expected a string, found a value of kind {}",
                item.kind()
            );
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        };
        let separator = if idx > 0 { separator } else { "" };
        pay(state, separator.len() + text.len() + 64)?;
        out.push_str(separator);
        out.push_str(text);
    }
    Ok(Value::from(out))
}

fn of_list(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    match method {
        "index" => {
            let (what,): (&Value,) = from_args(args)?;
            for (idx, item) in value.try_iter()?.checked().enumerate() {
                if item? == *what {
                    return Ok(Some(Value::from(idx)));
                }
            }
            Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("{what} is not in the list"),
            ))
        }
        "copy" => from_args::<()>(args).map(|()| Some(value.clone())),
        _ => Ok(None),
    }
}
