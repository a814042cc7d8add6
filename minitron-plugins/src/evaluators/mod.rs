//! Measurements of a model.

mod exact_match;
mod hidden_cosine;
mod last_word;
mod likely;
pub(crate) mod multiple_choice;
mod nearest_neighbour;
mod perplexity;
mod questions;
mod rolling_perplexity;
mod skipped;
mod throughput;
mod wikitext;

use std::path::Path;

use minitron_core::contract::Measurements;
use minitron_core::error::{Error, Result};
use serde_json::{Map, Value};

use crate::corpora::record::{Place, kind_of};
use crate::corpora::{self, records};

/// The objects of a task file, read as data are, each with the place it stands at; at least one.
pub(crate) fn records(path: &Path) -> Result<Vec<(String, Map<String, Value>)>> {
    let records = objects(path)?.collect::<Result<Vec<_>>>()?;
    if records.is_empty() {
        return Err(Error::Data(format!(
            "{}: no questions in it",
            path.display()
        )));
    }
    Ok(records)
}

fn objects(path: &Path) -> Result<impl Iterator<Item = Result<(String, Map<String, Value>)>>> {
    let path = path.to_owned();
    Ok(records::records(&path, None)?.map(move |record| {
        let record = record?;
        let place = place_in(&path, record.place);
        match record.value {
            Value::Object(object) => Ok((place, object)),
            other => Err(Error::Data(format!(
                "{place}: expected a JSON object, got {}",
                kind_of(&other)
            ))),
        }
    }))
}

/// A record's file and line, or row.
fn place_in(path: &Path, place: Place) -> String {
    match place {
        Place::Line(number) => format!("{}:{number}", path.display()),
        Place::Row(_) => format!("{}: {place}", path.display()),
    }
}

/// Which evaluator reads a task file, by its ending or the fields of its first record.
pub(crate) fn tag_of_task(path: &Path) -> Result<&'static str> {
    if corpora::is_text(path) {
        return Ok("rolling_perplexity");
    }
    let Some(first) = objects(path)?.next() else {
        return Err(Error::Data(format!(
            "{}: no questions in it",
            path.display()
        )));
    };
    let (_, first) = first?;
    if has_choices(&first) {
        return Ok("multiple_choice");
    }
    if first.contains_key("completion") || first.contains_key("completion_ids") {
        return Ok("exact_match");
    }
    if first.contains_key("target") {
        return Ok("last_word");
    }
    if first.contains_key("text") {
        return Ok(if first.contains_key("label") {
            "nearest_neighbour"
        } else {
            "rolling_perplexity"
        });
    }
    Err(Error::Data(format!(
        "{}: no task of a known kind; expected `context` and `choices` with `gold` (multiple \
         choice), or `sentence`, `option1`, `option2` and `answer` (the same, in a blank), or \
         `context` and `target` (last word), or `prompt` and `completion` (exact match), or `text` \
         and `label` (nearest neighbour), or `text` alone (rolling perplexity)",
        path.display()
    )))
}

/// Whether a record has choices, under one of the names that benchmarks give them.
fn has_choices(record: &Map<String, Value>) -> bool {
    const NAMES: [&[&str]; 4] = [
        &["choices"],
        &["endings"],
        &["sol1", "sol2"],
        &["sentence", "option1"],
    ];
    // They lie inside the question in one of the forms of OpenBookQA and ARC.
    let are_inside = record.get("question").is_some_and(Value::is_object);
    are_inside
        || NAMES
            .iter()
            .any(|names| names.iter().all(|name| record.contains_key(*name)))
}

/// The mean of what was found of each question, under its name, and its standard error: s / √n with
/// the deviation s of a sample, Σ (x − mean)² / (n − 1) under its root. One question has none.
fn insert_mean(measured: &mut Measurements, name: &str, values: &[f64]) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    measured.insert(name.to_owned(), mean);
    if values.len() > 1 {
        let variance = values
            .iter()
            .map(|value| (value - mean).powi(2))
            .sum::<f64>()
            / (n - 1.0);
        measured.insert(format!("{name}_stderr"), (variance / n).sqrt());
    }
}

/// A string field.
fn text<'a>(record: &'a Map<String, Value>, keys: &[&str], place: &str) -> Result<&'a str> {
    let found = keys
        .iter()
        .find_map(|key| record.get(*key))
        .and_then(Value::as_str);
    found.ok_or_else(|| {
        Error::Data(format!(
            "{place}: expected a string under `{}`",
            keys.join("` or `")
        ))
    })
}
