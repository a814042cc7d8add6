//! What to type to get the same again.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::comparison::Comparison;
use super::search::SearchReport;
use crate::recipe::{Recipe, RunRecord};
use minitron_core::files::read_text;

/// How to repeat a job.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Repeat {
    /// What to type.
    pub command: String,
    /// The file that the command reads.
    pub file: Option<String>,
    /// Where its text comes from, and what to look out for.
    pub note: Option<String>,
}

impl Repeat {
    /// The recipe as it lies on disk where its stages are still those that ran, else rebuilt from
    /// the record.
    pub(super) fn of_run(record: &RunRecord, dir: &Path) -> Self {
        let path = Path::new(&record.recipe);
        let unchanged = Recipe::load(path)
            .ok()
            .filter(|recipe| is_same(recipe, record));
        let text = unchanged.and_then(|_| read_text(path).ok());
        let mut command = format!(
            "minitron run {} --out {} --seed {}",
            quoted(&record.recipe),
            quoted(&dir.display().to_string()),
            record.seed
        );
        // A GPU's default is another than a CPU's.
        let on_cpu = record.device.eq_ignore_ascii_case("cpu");
        for (recorded, flag) in [("float", "f32"), ("bfloat16", "bf16"), ("half", "f16")] {
            if record.dtype == recorded && !(flag == "f32" && on_cpu) {
                command += &format!(" --dtype {flag}");
            }
        }
        if text.is_some() {
            return Repeat {
                command,
                file: text,
                note: None,
            };
        }
        let note = "Rebuilt from the options in run.json, since the recipe's file is gone or says \
                    something else by now. Paths start at the folder where that file lay.";
        Repeat {
            command,
            file: rebuilt(record),
            note: Some(note.into()),
        }
    }

    /// The spec that a comparison keeps.
    pub(super) fn of_comparison(comparison: &Comparison, dir: &Path) -> Option<Self> {
        let spec = without_nulls(&comparison.spec);
        let file = toml::to_string_pretty(&spec)
            .ok()
            .filter(|_| spec.as_object().is_some_and(|spec| !spec.is_empty()))?;
        let command = format!(
            "minitron compare SPEC.toml --out {}",
            quoted(&dir.display().to_string())
        );
        Some(Repeat {
            command,
            file: Some(file),
            note: Some("SPEC.toml is the text below, as compare.json keeps it.".into()),
        })
    }

    /// As a recipe of one stage, which has all options that search.json keeps; of older files, as
    /// far as they say it.
    pub(super) fn of_search(search: &SearchReport, dir: &Path) -> Option<Self> {
        if search
            .options
            .as_object()
            .is_some_and(|options| !options.is_empty())
        {
            let seed = search
                .seed
                .map_or(String::new(), |seed| format!(" --seed {seed}"));
            let out = quoted(&dir.display().to_string());
            let stage = stage("search", "search", &search.options);
            let note = "SEARCH.toml is the text below, made of the options in search.json. Paths \
                        start at the folder that the search was begun in.";
            return Some(Repeat {
                command: format!("minitron run SEARCH.toml{seed} --out {out}"),
                file: toml::to_string(&json!({ "stages": [stage] })).ok(),
                note: Some(note.into()),
            });
        }
        let mut command = format!("minitron search {}", quoted(search.model.as_deref()?));
        let tolerance = search.target.tolerance.filter(|share| *share > 0.0);
        let tolerance = tolerance.map_or(String::new(), |share| format!("+-{}%", share * 100.0));
        if let Some(params) = search.target.params {
            command += &format!(" --params {params}{tolerance}");
        }
        if let Some(bytes) = search.target.memory_bytes {
            command += &format!(" --memory {bytes}");
        }
        if let Some(seed) = search.seed {
            command += &format!(" --seed {seed}");
        }
        command += &format!(
            " --scores … --data … --out {}",
            quoted(&dir.display().to_string())
        );
        Some(Repeat {
            command,
            file: None,
            note: Some("search.json does not say where scores and text lay.".into()),
        })
    }
}

fn is_same(recipe: &Recipe, record: &RunRecord) -> bool {
    let options = recipe
        .stages
        .iter()
        .map(|stage| serde_json::to_value(&stage.options).unwrap_or_default());
    let names = recipe.stages.iter().map(|stage| stage.name.as_str());
    // A run that goes on has not recorded all.
    names
        .zip(options)
        .zip(&record.stages)
        .all(|((name, options), stage)| name == stage.name && options == stage.options)
        && recipe.stages.len() >= record.stages.len()
}

fn rebuilt(record: &RunRecord) -> Option<String> {
    let stages: Vec<Value> = record
        .stages
        .iter()
        .map(|found| stage(&found.name, &found.job, &found.options))
        .collect();
    let recipe = json!({ "seed": record.seed, "stages": stages });
    (!record.stages.is_empty())
        .then(|| toml::to_string(&recipe).ok())
        .flatten()
}

/// A stage of a recipe.
fn stage(name: &str, job: &str, options: &Value) -> Value {
    let mut stage = Map::from_iter([
        ("name".to_owned(), Value::from(name)),
        ("do".to_owned(), Value::from(job)),
    ]);
    let options = without_nulls(options);
    stage.extend(
        options
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.clone())),
    );
    Value::Object(stage)
}

/// TOML has no null: what is null was not given.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let given = object.iter().filter(|(_, value)| !value.is_null());
            Value::Object(
                given
                    .map(|(key, value)| (key.clone(), without_nulls(value)))
                    .collect(),
            )
        }
        Value::Array(list) => list
            .iter()
            .filter(|value| !value.is_null())
            .map(without_nulls)
            .collect(),
        other => other.clone(),
    }
}

/// As a shell reads it.
fn quoted(word: &str) -> String {
    let is_plain = word
        .chars()
        .all(|c| c.is_alphanumeric() || "-_./:@+=,".contains(c));
    match is_plain && !word.is_empty() {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}
