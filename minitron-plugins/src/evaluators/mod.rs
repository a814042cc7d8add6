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
mod throughput;
mod wikitext;

use std::io::{BufRead, BufReader};
use std::path::Path;

use minitron_core::contract::Measurements;
use minitron_core::error::{Error, Result};
use minitron_core::files::open_regular;
use serde_json::{Map, Value};

/// The objects of a `.jsonl` task file, each with the place it stands at.
pub(crate) fn records(path: &Path) -> Result<Vec<(String, Map<String, Value>)>> {
    let file = open_regular(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::Data(format!("`{}`: no such task file", path.display())),
        _ => Error::io(path, e),
    })?;
    let mut records = Vec::new();
    for (idx, line) in BufReader::new(file).lines().enumerate() {
        let place = format!("{}:{}", path.display(), idx + 1);
        let line = line.map_err(|e| Error::Data(format!("{place}: {e}")))?;
        if line.trim().is_empty() {
            continue;
        }
        match serde_json::from_str(&line) {
            Ok(Value::Object(object)) => records.push((place, object)),
            Ok(_) => return Err(Error::Data(format!("{place}: expected a JSON object on each line"))),
            Err(e) => return Err(Error::Data(format!("{place}: not valid JSON: {e}"))),
        }
    }
    if records.is_empty() {
        return Err(Error::Data(format!("{}: no questions in it", path.display())));
    }
    Ok(records)
}

/// Which evaluator reads a task file, by its ending or the fields of its first record.
pub(crate) fn tag_of_task(path: &Path) -> Result<&'static str> {
    let name = path.to_string_lossy();
    if rolling_perplexity::ENDINGS.iter().any(|ending| name.ends_with(ending)) {
        return Ok("rolling_perplexity");
    }
    let records = records(path)?;
    let has = |key: &str| records.first().is_some_and(|(_, record)| record.contains_key(key));
    let has_all = |keys: &[&str]| keys.iter().all(|key| has(key));
    // Choices lie inside the question in one of the forms of OpenBookQA and ARC.
    let has_choices = records.first().is_some_and(|(_, record)| record.get("question").is_some_and(Value::is_object));
    if has("choices")
        || has("endings")
        || has_choices
        || has_all(&["sol1", "sol2"])
        || has_all(&["sentence", "option1"])
    {
        return Ok("multiple_choice");
    }
    if has("completion") || has("completion_ids") {
        return Ok("exact_match");
    }
    if has("target") {
        return Ok("last_word");
    }
    if has("text") {
        return Ok(if has("label") { "nearest_neighbour" } else { "rolling_perplexity" });
    }
    Err(Error::Data(format!(
        "{}: no task of a known kind; expected `context` and `choices` with `gold` (multiple choice), or `sentence`, \
         `option1`, `option2` and `answer` (the same, in a blank), or `context` and `target` (last word), or `prompt` and \
         `completion` (exact match), or `text` and `label` (nearest neighbour), or `text` alone (rolling perplexity)",
        path.display()
    )))
}

/// The mean of what was found of each question, under its name, and its standard error: s / √n with the deviation s of a
/// sample, Σ (x − mean)² / (n − 1) under its root. One question has none.
fn insert_mean(measured: &mut Measurements, name: &str, values: &[f64]) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    measured.insert(name.to_owned(), mean);
    if values.len() > 1 {
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
        measured.insert(format!("{name}_stderr"), (variance / n).sqrt());
    }
}

/// A string field.
fn text<'a>(record: &'a Map<String, Value>, keys: &[&str], place: &str) -> Result<&'a str> {
    let found = keys.iter().find_map(|key| record.get(*key)).and_then(Value::as_str);
    found.ok_or_else(|| Error::Data(format!("{place}: expected a string under `{}`", keys.join("` or `"))))
}
