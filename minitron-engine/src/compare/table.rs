//! `compare.json`: what every strategy came to.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::chain::Link;
use super::spec::{Row, Spec};

/// Columns that everybody knows: key, which way is better, title.
const COLUMNS: &str = "
n_params - parameters
params_share - % of parameters
n_non_embedding - without embeddings
zero_shot_loss lower loss before
zero_shot_perplexity lower perplexity before
zero_shot_kl_to_teacher lower KL before
loss lower loss
perplexity lower perplexity
kl_to_teacher lower KL
n_tokens - tokens
seconds lower seconds
training_seconds lower seconds of training
tokens_per_second higher tokens/s
peak_bytes lower peak memory
";

/// Key, which way is better, title.
fn known_columns() -> impl Iterator<Item = (&'static str, Option<&'static str>, &'static str)> {
    COLUMNS.lines().filter_map(|line| {
        let (key, rest) = line.split_once(' ')?;
        let (better, title) = rest.split_once(' ')?;
        Some((key, Some(better).filter(|better| *better != "-"), title))
    })
}

/// One column.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Column {
    key: String,
    title: String,
    better: Option<String>,
}

impl Column {
    fn of(key: &str) -> Self {
        let known = known_columns().find(|(name, ..)| *name == key);
        let (better, title) = match known {
            Some((_, better, title)) => (better, title),
            None => (better(key), key),
        };
        Column {
            key: key.to_owned(),
            title: title.to_owned(),
            better: better.map(str::to_owned),
        }
    }
}

/// A number over seeds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Over {
    pub mean: f64,
    /// Of a sample; none for one seed.
    pub std: Option<f64>,
    pub by_seed: Vec<f64>,
}

impl Over {
    fn of(by_seed: Vec<f64>) -> Self {
        let n = by_seed.len() as f64;
        let mean = by_seed.iter().sum::<f64>() / n;
        let squares: f64 = by_seed.iter().map(|value| (value - mean).powi(2)).sum();
        Over {
            mean,
            std: (by_seed.len() > 1).then(|| (squares / (n - 1.0)).sqrt()),
            by_seed,
        }
    }
}

/// A strategy's line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct TableLine {
    pub name: String,
    pub title: Option<String>,
    pub source: Option<String>,
    /// `waiting`, `running`, `done` or `failed`.
    pub status: &'static str,
    pub error: Option<String>,
    pub values: BTreeMap<String, Over>,
    /// Held-out losses of its last training with the first seed.
    pub curve: Vec<Value>,
    pub samples: Vec<Value>,
    /// Folders of its jobs with the first seed.
    pub stages: Vec<String>,
    /// What its jobs warned of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A stage's result, how long it took, and the most memory meanwhile.
pub(super) type Done<'a> = (&'a Value, f64, Option<u64>);

impl TableLine {
    /// Before anything ran.
    pub fn new(row: &Row, links: &[Link]) -> Self {
        TableLine {
            name: row.name.clone(),
            title: row.title.clone(),
            source: row.source.clone(),
            status: "waiting",
            error: None,
            values: BTreeMap::new(),
            curve: Vec::new(),
            samples: Vec::new(),
            stages: links.iter().map(|link| link.stage.name.clone()).collect(),
            warnings: Vec::new(),
        }
    }

    /// The original beside the rows, before it is measured.
    pub fn original(model: &str, link: &Link) -> Self {
        let name = Path::new(model).file_name();
        let name = name.map_or(model.into(), |name| name.to_string_lossy());
        TableLine {
            name: "teacher".into(),
            title: Some(format!("teacher ({name})")),
            source: None,
            status: "running",
            error: None,
            values: BTreeMap::new(),
            curve: Vec::new(),
            samples: Vec::new(),
            stages: vec![link.stage.name.clone()],
            warnings: Vec::new(),
        }
    }

    /// What an evaluation says of the original: before any training and after it, since there is
    /// none.
    pub fn fill_original(&mut self, result: &Value) {
        let mut values = BTreeMap::new();
        measured(result, "", &mut values);
        measured(result, "zero_shot_", &mut values);
        self.values = values
            .into_iter()
            .map(|(key, value)| (key, Over::of(vec![value])))
            .collect();
    }

    /// How many parameters it has of those of the original.
    pub fn add_share(&mut self, n_params_original: f64) {
        let shares = self
            .values
            .get("n_params")
            .map(|over| over.by_seed.iter().map(|n| n / n_params_original).collect());
        if let Some(shares) = shares {
            self.values.insert("params_share".into(), Over::of(shares));
        }
    }

    /// From what each seed's jobs came to.
    pub fn fill(&mut self, by_seed: &[Vec<(&Link, Done)>]) {
        let of_seeds: Vec<BTreeMap<String, f64>> =
            by_seed.iter().map(|links| values(links)).collect();
        let keys: Vec<String> = of_seeds
            .first()
            .into_iter()
            .flat_map(|values| values.keys().cloned())
            .collect();
        for key in keys {
            let by_seed: Option<Vec<f64>> = of_seeds
                .iter()
                .map(|values| values.get(&key).copied())
                .collect();
            if let Some(by_seed) = by_seed {
                self.values.insert(key, Over::of(by_seed));
            }
        }
        let first = by_seed.first().into_iter().flatten();
        let texts = first.filter(|(link, _)| link.word == "generate");
        self.samples = texts
            .map(|(_, (result, ..))| result.pointer("/text").cloned().unwrap_or_default())
            .collect();
    }
}

/// Named numbers of one row and seed.
fn values(links: &[(&Link, Done)]) -> BTreeMap<String, f64> {
    let mut values = BTreeMap::new();
    for (link, (result, seconds, peak_bytes)) in links {
        *values.entry("seconds".to_owned()).or_default() += seconds;
        let peak = match peak_bytes {
            Some(n_bytes) => Some(*n_bytes as f64),
            None => result.pointer("/memory/peak_bytes").and_then(Value::as_f64),
        };
        if let Some(peak) = peak {
            let most: &mut f64 = values.entry("peak_bytes".to_owned()).or_default();
            *most = most.max(peak);
        }
        match link.word.as_str() {
            "eval" => {
                let prefix = if link.is_trained { "" } else { "zero_shot_" };
                measured(result, prefix, &mut values);
            }
            "distill" | "train" | "scratch" => {
                *values.entry("n_tokens".to_owned()).or_default() +=
                    result["n_tokens"].as_f64().unwrap_or(0.0);
                *values.entry("training_seconds".to_owned()).or_default() += seconds;
                // One that found nothing left to do has none.
                let rate = result["tokens_per_second"].as_f64();
                if let Some(rate) = rate.filter(|rate| *rate > 0.0) {
                    values.insert("tokens_per_second".to_owned(), rate);
                }
            }
            "search" => {
                *values.entry("n_tokens".to_owned()).or_default() += searched_tokens(result);
                *values.entry("training_seconds".to_owned()).or_default() += seconds;
            }
            _ => {}
        }
    }
    values
}

/// Tokens that all candidates of a search learned from.
fn searched_tokens(result: &Value) -> f64 {
    let (mut sum, mut before) = (0.0, 0.0);
    for rung in result["rungs"].as_array().into_iter().flatten() {
        let tokens = number(rung, "/tokens");
        sum += number(rung, "/n_candidates") * (tokens - before);
        before = tokens;
    }
    sum
}

fn number(value: &Value, place: &str) -> f64 {
    value.pointer(place).and_then(Value::as_f64).unwrap_or(0.0)
}

/// Of an evaluation; sizes have no prefix, a task's numbers its name.
fn measured(result: &Value, prefix: &str, values: &mut BTreeMap<String, f64>) {
    for (key, value) in numbers(result) {
        // Of counts, those of the model: how much was evaluated is the same for all.
        let is_size = key.starts_with("n_params") || key.starts_with("n_non");
        if is_size {
            values.insert(key, value);
        } else if !key.starts_with("n_") {
            values.insert(format!("{prefix}{key}"), value);
        }
    }
    for (task, measured) in result["tasks"].as_object().into_iter().flatten() {
        for (key, value) in numbers(measured) {
            values.insert(format!("{prefix}{task}_{key}"), value);
        }
    }
}

/// The entries of an object that are numbers.
fn numbers(object: &Value) -> impl Iterator<Item = (String, f64)> {
    let entries = object.as_object().into_iter().flatten();
    entries.filter_map(|(key, value)| Some((key.clone(), value.as_f64()?)))
}

/// The columns asked for, or all that some row has.
pub(super) fn columns(spec: &Spec, lines: &[TableLine]) -> Vec<Column> {
    let mut keys: Vec<&str> = Vec::new();
    if spec.columns.is_empty() {
        keys.extend(known_columns().map(|(key, ..)| key));
        keys.extend(
            lines
                .iter()
                .flat_map(|line| line.values.keys().map(String::as_str)),
        );
    }
    for key in &spec.columns {
        keys.push(key);
        // A number of parameters stands beside its share of the original's.
        if key == "n_params" {
            keys.push("params_share");
        }
    }
    let (mut seen, mut columns) = (HashSet::new(), Vec::new());
    for key in keys {
        let is_there = lines.iter().any(|line| line.values.contains_key(key));
        if is_there && seen.insert(key) {
            columns.push(Column::of(key));
        }
    }
    columns
}

const HIGHER: [&str; 6] = [
    "acc",
    "acc_norm",
    "accuracy",
    "match",
    "per_second",
    "cosine",
];
const LOWER: [&str; 4] = ["loss", "_perplexity", "kl_to_teacher", "_s"];

/// Which way is better, by how a column's key ends.
pub(super) fn better(key: &str) -> Option<&'static str> {
    if key.ends_with("_stderr") {
        None
    } else if HIGHER.iter().any(|end| key.ends_with(end)) {
        Some("higher")
    } else if LOWER.iter().any(|end| key.ends_with(end)) {
        Some("lower")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_seeds_have_a_mean_and_a_deviation() {
        let over = Over::of(vec![1.0, 2.0, 3.0]);
        assert_eq!((over.mean, over.std), (2.0, Some(1.0)));
    }
}
