//! One record, where it stands, and what its values are in words.

use std::fmt;

use minitron_core::error::Result;
use serde_json::Value;

/// Where a record stands in its file; places count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Its line, or the line where it begins.
    Line(usize),
    /// Its row in a table.
    Row(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Place::Line(number) => write!(f, "line {number}"),
            Place::Row(number) => write!(f, "row {number}"),
        }
    }
}

/// A record and its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    /// Where it stands.
    pub place: Place,
    /// Mostly an object; a row of a table is one always.
    pub value: Value,
}

/// Records in the order of their file; nothing follows an error.
pub(crate) type Records = Box<dyn Iterator<Item = Result<Record>>>;

/// What a value is, in words: lists and objects with what they hold.
pub(crate) fn kind_of(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "a boolean".to_owned(),
        Value::Number(_) => "a number".to_owned(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(list) => match list.first() {
            None => "an empty array".to_owned(),
            Some(Value::Object(first)) => {
                format!("an array of objects with {}", names(first.keys()))
            }
            Some(Value::Array(_)) => "an array of arrays".to_owned(),
            Some(first) => format!("an array of {}s", kind_of(first).trim_start_matches("a ")),
        },
        Value::Object(object) if object.is_empty() => "an empty object".to_owned(),
        Value::Object(object) => format!("an object with {}", names(object.keys())),
    }
}

/// Names in quotes, the first of many.
pub(crate) fn names<'a>(names: impl Iterator<Item = &'a String>) -> String {
    const MOST: usize = 20;
    let mut names: Vec<String> = names
        .take(MOST + 1)
        .map(|name| format!("`{name}`"))
        .collect();
    if names.len() > MOST {
        names.truncate(MOST);
        names.push("…".to_owned());
    }
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// Paths to the values of an object that are no objects themselves, as `data.text`.
pub(crate) fn paths_of(value: &Value) -> Vec<String> {
    const DEEPEST: usize = 4;
    let mut paths = Vec::new();
    let mut open: Vec<(String, &Value, usize)> = vec![(String::new(), value, 0)];
    while let Some((path, value, depth)) = open.pop() {
        match value {
            Value::Object(object) if depth < DEEPEST && (depth == 0 || !object.is_empty()) => {
                // The last is taken first.
                for (key, value) in object.iter().rev() {
                    let below = match path.as_str() {
                        "" => key.clone(),
                        path => format!("{path}.{key}"),
                    };
                    open.push((below, value, depth + 1));
                }
            }
            _ if depth > 0 => paths.push(path),
            _ => {}
        }
    }
    paths
}
