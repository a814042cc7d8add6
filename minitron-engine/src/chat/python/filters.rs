//! Filters and tests of Jinja2 that the engine lacks or answers otherwise.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::arguments::CallArguments;
use super::cutting::{is_space, lines, trimmed};
use super::methods::{filled, pay};
use super::printing::str_of;

pub(super) fn install(env: &mut Environment<'static>) {
    env.add_filter("trim", trim);
    env.add_filter("string", |state: &State, value: &Value| {
        str_of(state, value).map(Value::from)
    });
    env.add_filter("join", join);
    env.add_filter("indent", indent);
    env.add_filter("int", int);
    env.add_filter("float", float);
    env.add_filter("center", |state: &State, text: &str, width: Option<i64>| {
        filled(state, text, width.unwrap_or(80), " ", "center")
    });
    env.add_filter("wordcount", |text: &str| {
        text.split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|word| !word.is_empty())
            .count()
    });
    env.add_filter("truncate", truncate);
    env.add_test("sequence", is_sequence);
    // The engine takes none for an empty list.
    env.add_test("iterable", |value: &Value| {
        !value.is_none() && value.try_iter().is_ok()
    });
    env.add_test("number", |value: &Value| {
        matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
    });
    env.remove_global("debug");
    env.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    // Nothing is escaped, so nothing is marked as safe.
    env.add_test("escaped", |_: &Value| false);
}

/// What has a length and can be indexed: texts and dictionaries too.
fn is_sequence(value: &Value) -> bool {
    match value.kind() {
        ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined => true,
        ValueKind::Iterable => value.len().is_some(),
        _ => false,
    }
}

fn trim(state: &State, value: &Value, chars: Option<&str>) -> Result<Value, Error> {
    let text = str_of(state, value)?;
    Ok(Value::from(trimmed(&text, chars, (true, true))))
}

/// `join(d="", attribute=None)`.
fn join(
    state: &mut State,
    value: &Value,
    given: Rest<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let mut given = CallArguments::new(given, named);
    let separator = given.text("d")?.unwrap_or_default();
    let attribute = given.value("attribute")?;
    given.end()?;
    let items = match attribute {
        None => value.clone(),
        Some(attribute) => {
            let attribute = Kwargs::from_iter([("attribute", attribute)]);
            state.apply_filter("map", &[value.clone(), attribute.into()])?
        }
    };
    let mut out = String::new();
    for (idx, item) in items.try_iter()?.checked().enumerate() {
        let text = str_of(state, &item?)?;
        let separator = if idx > 0 { separator.as_str() } else { "" };
        pay(state, separator.len() + text.len() + 64)?;
        out.push_str(separator);
        out.push_str(&text);
    }
    Ok(Value::from(out))
}

/// `indent(width=4, first=False, blank=False)`; the width may be what is put before a line.
fn indent(state: &State, text: &str, given: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let mut given = CallArguments::new(given, named);
    let width = given.value("width")?.unwrap_or_else(|| Value::from(4));
    let (first, blank) = (given.flag("first")?, given.flag("blank")?);
    given.end()?;
    let indention = match width.as_str() {
        Some(text) => text.to_owned(),
        None => {
            let n_spaces = usize::try_from(i64::try_from(width)?.max(0)).unwrap_or(usize::MAX);
            pay(state, n_spaces)?;
            " ".repeat(n_spaces)
        }
    };
    let with_end = format!("{text}\n");
    let mut out = String::new();
    for (idx, line) in lines(&with_end, false).into_iter().enumerate() {
        let is_indented = if idx == 0 {
            first
        } else {
            blank || !line.is_empty()
        };
        pay(state, indention.len() + line.len() + 64)?;
        out.push_str(if idx > 0 { "\n" } else { "" });
        out.push_str(if is_indented { &indention } else { "" });
        out.push_str(line);
    }
    Ok(Value::from(out))
}

/// What Python reads as a number of either kind: spaces around, digits set apart by `_`.
fn written(text: &str) -> Option<String> {
    let text = text.trim_matches(is_space);
    let bytes = text.as_bytes();
    for (at, _) in text.match_indices('_') {
        let before = at.checked_sub(1).and_then(|before| bytes.get(before));
        let around = [before, bytes.get(at + 1)];
        if !around
            .into_iter()
            .all(|byte| byte.is_some_and(u8::is_ascii_digit))
        {
            return None;
        }
    }
    Some(text.replace('_', ""))
}

/// Without its decimals, where that is an integer of 64 bits.
fn whole(x: f64) -> Option<Value> {
    (x.is_finite() && x.abs() < 1e18).then(|| Value::from(x.trunc() as i64))
}

/// `int(default=0)`: 42.9 and "42.9" are 42.
fn int(value: &Value, default: Option<Value>) -> Value {
    let found = match value.kind() {
        ValueKind::Bool => Some(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Some(value.clone()),
        ValueKind::Number => f64::try_from(value.clone()).ok().and_then(whole),
        ValueKind::String => value.as_str().and_then(written).and_then(|text| {
            let exact = text.parse::<i128>().ok().map(Value::from);
            exact.or_else(|| text.parse().ok().and_then(whole))
        }),
        _ => None,
    };
    found.or(default).unwrap_or_else(|| Value::from(0))
}

/// `float(default=0.0)`.
fn float(value: &Value, default: Option<Value>) -> Value {
    let found = match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        ValueKind::String => value
            .as_str()
            .and_then(written)
            .and_then(|text| text.parse().ok()),
        _ => None,
    };
    found
        .map(Value::from)
        .or(default)
        .unwrap_or_else(|| Value::from(0.0))
}

/// `truncate(length=255, killwords=False, end="...", leeway=5)`.
fn truncate(text: &str, given: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let mut given = CallArguments::new(given, named);
    let length = given
        .integer("length")?
        .unwrap_or(255)
        .max(0)
        .unsigned_abs() as usize;
    let kills_words = given.flag("killwords")?;
    let end = given.text("end")?.unwrap_or_else(|| "...".to_owned());
    let leeway = given.integer("leeway")?.unwrap_or(5).max(0).unsigned_abs() as usize;
    given.end()?;
    let Some(n_kept) = length.checked_sub(end.chars().count()) else {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("truncate: the end alone is longer than {length}"),
        ));
    };
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(Value::from(text));
    }
    let kept: String = text.chars().take(n_kept).collect();
    let kept = match kills_words {
        true => kept.as_str(),
        false => kept
            .rsplit_once(' ')
            .map_or(kept.as_str(), |(kept, _)| kept),
    };
    Ok(Value::from(format!("{kept}{end}")))
}
