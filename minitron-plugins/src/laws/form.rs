//! What a plugin says of itself: tag, words, example, parameters.

use std::collections::HashSet;

use minitron_core::error::Result;
use serde_json::Value;

use super::Trial;

/// What the engine takes for itself before a plugin sees it.
const TAKEN: [&str; 4] = ["type", "as", "weight", "alpha"];

/// Checks the descriptor, and that the example is read and written alike, strays refused and every
/// parameter described.
///
/// # Errors
/// `Plugin` with the rule and how it was broken.
pub fn check(trial: &Trial) -> Result<()> {
    words(trial)?;
    let example = (trial.plugin.example)();
    trial.ensure(
        example.is_object(),
        "its parameters: expected a struct with named fields",
    )?;
    read_and_written(trial, &example)?;
    parameters(trial, &example)
}

fn words(trial: &Trial) -> Result<()> {
    let plugin = trial.plugin;
    trial.ensure(is_snake_case(plugin.tag), "tag: expected snake_case")?;
    trial.ensure(
        is_line(plugin.summary) && is_line(plugin.source),
        "summary, source: expected a line each",
    )?;
    let origin = plugin.origin;
    trial.ensure(
        origin.contains(' '),
        format!("origin: expected crate and version, got `{origin}`"),
    )
}

fn is_snake_case(tag: &str) -> bool {
    let mut letters = tag.chars();
    tag.starts_with(|c: char| c.is_ascii_lowercase())
        && letters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !tag.contains("__")
}

/// Whether a text is one line, with something in it.
fn is_line(text: &str) -> bool {
    !text.is_empty() && !text.contains('\n')
}

fn read_and_written(trial: &Trial, example: &Value) -> Result<()> {
    let mut tagged = example.clone();
    tagged["type"] = trial.plugin.tag.into();
    let again = trial.plugin.rewritten(tagged.clone());
    let again = again.map_err(|e| trial.broken(format!("its own example: {e}")))?;
    trial.ensure(
        again == tagged,
        format!("its example is {tagged}, and written again {again}"),
    )?;
    let mut stray = tagged;
    stray["stray_key"] = 1.into();
    let refusal = trial
        .plugin
        .rewritten(stray)
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    let is_refused = refusal.contains("stray_key");
    trial.ensure(
        is_refused,
        "it takes a parameter that it does not have: add #[serde(deny_unknown_fields)]",
    )
}

fn parameters(trial: &Trial, example: &Value) -> Result<()> {
    let schema = (trial.plugin.schema)().to_value();
    let described = schema
        .get("properties")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    let known: HashSet<&String> = described.keys().collect();
    let fields = example.as_object().into_iter();
    let keys: HashSet<&String> = fields.flat_map(|object| object.keys()).collect();
    trial.ensure(
        known == keys,
        format!("parameters {keys:?}, described {known:?}"),
    )?;
    let taken = keys.iter().find(|key| TAKEN.contains(&key.as_str()));
    let name = taken.map(|key| key.as_str()).unwrap_or_default();
    trial.ensure(
        taken.is_none(),
        format!("`{name}` is not for plugins: call the parameter something else"),
    )?;
    trial.ensure(
        is_described(&schema),
        "no description: add a doc comment to the struct",
    )?;
    let silent = described.iter().find(|(_, of)| !is_described(of));
    let name = silent.map(|(key, _)| key.as_str()).unwrap_or_default();
    trial.ensure(
        silent.is_none(),
        format!("`{name}` has no description: add a doc comment"),
    )
}

fn is_described(schema: &Value) -> bool {
    let text = schema.get("description").and_then(Value::as_str);
    text.is_some_and(|text| !text.is_empty())
}
