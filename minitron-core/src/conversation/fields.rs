//! Fields of a record, with errors that say what stands there instead.

use std::fmt::Display;

use serde_json::{Map, Value};

use super::{expected, keys};
use crate::error::{Error, Result};

pub(super) fn has_all(names: &[&str], fields: &Map<String, Value>) -> bool {
    names
        .iter()
        .all(|name| fields.get(*name).is_some_and(|value| !value.is_null()))
}

pub(super) fn missing(name: &str, form: impl Display, fields: &Map<String, Value>) -> Error {
    let found = keys(fields);
    Error::Data(format!(
        "no `{name}` beside {found}, which the layout {form} needs"
    ))
}

/// A list of objects, or the same as JSON in a string, as tables hold it.
pub(super) fn list_beside(name: &str, fields: &Map<String, Value>) -> Result<Option<Vec<Value>>> {
    let parsed;
    let value = match fields.get(name) {
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(None),
        Some(Value::String(text)) => {
            parsed = serde_json::from_str(text).map_err(|e| {
                Error::Data(format!(
                    "`{name}`: expected a list, got text that is no JSON: {e}"
                ))
            })?;
            &parsed
        }
        None => return Ok(None),
        Some(value) => value,
    };
    match value {
        Value::Null => Ok(None),
        Value::Array(list) => match list.iter().find(|item| !item.is_object()) {
            None => Ok(Some(list.clone())),
            Some(other) => Err(expected(name, "a list of objects", other)),
        },
        other => Err(expected(name, "a list", other)),
    }
}

/// A string that a turn must have.
pub(super) fn word<'a>(name: &str, fields: &'a Map<String, Value>) -> Result<&'a str> {
    match fields.get(name) {
        Some(Value::String(word)) => Ok(word),
        Some(other) => Err(expected(name, "a string", other)),
        None => {
            let found = keys(fields);
            Err(Error::Data(format!("no `{name}` beside {found}")))
        }
    }
}

fn text<'a>(name: &str, fields: &'a Map<String, Value>) -> Result<Option<&'a str>> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(expected(name, "a text", other)),
    }
}

pub(super) fn filled_text<'a>(
    name: &str,
    fields: &'a Map<String, Value>,
) -> Result<Option<&'a str>> {
    Ok(text(name, fields)?.filter(|text| !text.is_empty()))
}

pub(super) fn needed_text<'a>(
    name: &str,
    form: impl Display,
    fields: &'a Map<String, Value>,
) -> Result<&'a str> {
    text(name, fields)?.ok_or_else(|| missing(name, form, fields))
}
