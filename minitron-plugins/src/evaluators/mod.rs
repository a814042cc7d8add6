//! Measurements of a model.

mod exact_match;
mod hidden_cosine;
pub(crate) mod multiple_choice;
mod nearest_neighbour;
mod perplexity;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use minitron_core::data::Tokenizer;
use minitron_core::error::{Error, Result};
use serde_json::{Map, Value};

/// The objects of a `.jsonl` task file, each with the place it stands at.
pub(crate) fn records(path: &Path) -> Result<Vec<(String, Map<String, Value>)>> {
    let file = File::open(path).map_err(|e| match e.kind() {
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

/// Which evaluator reads a task file, by the fields of its first record.
pub(crate) fn tag_of_task(path: &Path) -> Result<&'static str> {
    let records = records(path)?;
    let has = |key: &str| records.first().is_some_and(|(_, record)| record.contains_key(key));
    if has("choices") || has("endings") {
        return Ok("multiple_choice");
    }
    if has("completion") || has("completion_ids") || has("target") {
        return Ok("exact_match");
    }
    if has("text") && has("label") {
        return Ok("nearest_neighbour");
    }
    Err(Error::Data(format!(
        "{}: no task of a known kind; expected `context` and `choices` with `gold` (multiple choice), or `prompt` and \
         `completion`, or `context` and `target` (exact match), or `text` and `label` (nearest neighbour)",
        path.display()
    )))
}

/// Ids of a context and of what follows it after a space. Both are tokenised together, since many tokenizers mark the
/// beginning of a text with a space of their own, and parted where they leave the context's own ids.
fn parted(tokenizer: &Tokenizer, context: &str, continuation: &str) -> Result<(Vec<u32>, Vec<u32>)> {
    let alone = tokenizer.encode(context)?;
    let mut whole = tokenizer.encode(&format!("{context} {continuation}"))?;
    let n_common = alone.iter().zip(&whole).take_while(|(a, b)| a == b).count();
    let rest = whole.split_off(n_common);
    Ok((whole, rest))
}

/// A string field.
fn text<'a>(record: &'a Map<String, Value>, keys: &[&str], place: &str) -> Result<&'a str> {
    let found = keys.iter().find_map(|key| record.get(*key)).and_then(Value::as_str);
    found.ok_or_else(|| Error::Data(format!("{place}: expected a string under `{}`", keys.join("` or `"))))
}
