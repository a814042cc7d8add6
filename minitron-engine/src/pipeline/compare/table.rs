//! `compare.json`: what every strategy came to.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::spec::{Check, Link, Ratio, Row, Spec};
use crate::search::Predicate;
use minitron_core::error::Error;

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
        let name = Path::new(model)
            .file_name()
            .map_or(model.into(), |name| name.to_string_lossy());
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
        let of_training = || result.pointer("/memory/peak_bytes").and_then(Value::as_f64);
        if let Some(peak) = peak_bytes
            .map(|n_bytes| n_bytes as f64)
            .or_else(of_training)
        {
            let most: &mut f64 = values.entry("peak_bytes".to_owned()).or_default();
            *most = most.max(peak);
        }
        match link.word.as_str() {
            "eval" => measured(
                result,
                if link.is_trained { "" } else { "zero_shot_" },
                &mut values,
            ),
            "distill" | "train" | "scratch" => {
                *values.entry("n_tokens".to_owned()).or_default() +=
                    result["n_tokens"].as_f64().unwrap_or(0.0);
                *values.entry("training_seconds".to_owned()).or_default() += seconds;
                // One that found nothing left to do has none.
                if let Some(rate) = result["tokens_per_second"]
                    .as_f64()
                    .filter(|rate| *rate > 0.0)
                {
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
    let rungs = result["rungs"].as_array().cloned().unwrap_or_default();
    let number = |rung: &Value, key: &str| rung.pointer(key).and_then(Value::as_f64).unwrap_or(0.0);
    let before = std::iter::once(0.0).chain(rungs.iter().map(|rung| number(rung, "/tokens")));
    rungs
        .iter()
        .zip(before)
        .map(|(rung, before)| number(rung, "/n_candidates") * (number(rung, "/tokens") - before))
        .sum()
}

/// Of an evaluation; sizes have no prefix, a task's numbers its name.
fn measured(result: &Value, prefix: &str, values: &mut BTreeMap<String, f64>) {
    let numbers = |object: &Value| -> Vec<(String, f64)> {
        let entries = object.as_object().into_iter().flatten();
        entries
            .filter_map(|(key, value)| Some((key.clone(), value.as_f64()?)))
            .collect()
    };
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

/// The columns asked for, or all that some row has.
pub(super) fn columns(spec: &Spec, lines: &[TableLine]) -> Vec<Column> {
    let has = |key: &str| lines.iter().any(|line| line.values.contains_key(key));
    let known = known_columns().map(|(key, ..)| key.to_owned());
    let others = lines.iter().flat_map(|line| line.values.keys().cloned());
    // A number of parameters stands beside its share of the original's.
    let with_share = |key: &String| match key.as_str() {
        "n_params" => vec![key.clone(), "params_share".to_owned()],
        _ => vec![key.clone()],
    };
    let mut keys: Vec<String> = match spec.columns.as_slice() {
        [] => known.chain(others).collect(),
        named => named.iter().flat_map(with_share).collect(),
    };
    let mut seen = std::collections::HashSet::new();
    keys.retain(|key| has(key) && seen.insert(key.clone()));
    let column = |key: String| {
        let known = known_columns().find(|(name, ..)| *name == key);
        let (title, better) = known.map_or((key.as_str(), better(&key)), |(_, better, title)| {
            (title, better)
        });
        Column {
            title: title.to_owned(),
            better: better.map(str::to_owned),
            key,
        }
    };
    keys.into_iter().map(column).collect()
}

fn better(key: &str) -> Option<&'static str> {
    let ends = |ends: &[&str]| ends.iter().any(|end| key.ends_with(end));
    match key {
        _ if ends(&["_stderr"]) => None,
        _ if ends(&[
            "acc",
            "acc_norm",
            "accuracy",
            "match",
            "per_second",
            "cosine",
        ]) =>
        {
            Some("higher")
        }
        _ if ends(&["loss", "_perplexity", "kl_to_teacher", "_s"]) => Some("lower"),
        _ => None,
    }
}

/// Whether what should hold does, with the numbers; null where a row has none.
pub(super) fn checks(spec: &Spec, lines: &[TableLine]) -> Vec<Value> {
    let value = |name: &str| {
        let (row, column) = name.split_once('.')?;
        lines
            .iter()
            .find(|line| line.name == row)?
            .values
            .get(column)
            .map(|over| over.mean)
    };
    let answer = |check: &Check| {
        let predicate = Predicate::parse(&check.holds)?;
        let numbers: Vec<String> = predicate
            .names()
            .iter()
            .map(|name| {
                value(name).map_or(format!("{name} -"), |value| format!("{name} {value:.4}"))
            })
            .collect();
        let is_known = predicate.names().iter().all(|name| value(name).is_some());
        let holds = if is_known {
            Some(predicate.holds(&value)?)
        } else {
            None
        };
        Ok(json!({ "says": check.says, "holds": holds, "detail": numbers.join(", ") }))
    };
    let failed = |check: &Check, e: Error| {
        json!({ "says": check.says, "holds": null,
        "detail": e.to_string() })
    };
    spec.checks
        .iter()
        .map(|check| answer(check).unwrap_or_else(|e| failed(check, e)))
        .collect()
}

/// For each row of a ratio, the tokens that the reference needs to come as far.
pub(super) fn ratios(spec: &Spec, lines: &[TableLine]) -> Vec<Value> {
    spec.ratios
        .iter()
        .map(|ratio| json!({ "by": ratio.by, "points": points(ratio, lines) }))
        .collect()
}

fn points(ratio: &Ratio, lines: &[TableLine]) -> Vec<Value> {
    let point = |name: &String| {
        let values = &lines.iter().find(|line| line.name == *name)?.values;
        Some((values.get("n_tokens")?.mean, values.get(&ratio.by)?.mean))
    };
    // What is compared falls with tokens.
    let sign = if better(&ratio.by) == Some("higher") {
        -1.0
    } else {
        1.0
    };
    let signed = |(tokens, value): (f64, f64)| (tokens, sign * value);
    let mut reference: Vec<(f64, f64)> = ratio
        .reference
        .iter()
        .filter_map(point)
        .map(signed)
        .collect();
    reference.sort_by(|a, b| a.0.total_cmp(&b.0));
    let found = |name: &String| {
        let (tokens, reached) = point(name)?;
        let needed = match tokens_to(sign * reached, &reference) {
            Needed::About(needed) => {
                json!({ "reference_tokens": needed, "ratio": needed / tokens })
            }
            Needed::MoreThan(most) => {
                json!({ "reference_more_than": most, "ratio_more_than": most / tokens })
            }
            Needed::AtMost(least) => {
                json!({ "reference_at_most": least, "ratio_at_most": least / tokens })
            }
            Needed::Unknown => json!({}),
        };
        let mut row = json!({ "row": name, "n_tokens": tokens, ratio.by.as_str(): reached });
        if let (Some(row), Value::Object(needed)) = (row.as_object_mut(), needed) {
            row.extend(needed);
        }
        Some(row)
    };
    ratio.rows.iter().filter_map(found).collect()
}

/// How many tokens a reference needs.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Needed {
    About(f64),
    /// Its largest budget does not come so far.
    MoreThan(f64),
    /// Its smallest budget comes farther.
    AtMost(f64),
    Unknown,
}

/// Between two budgets that end above and below, on a straight line over the logarithm of tokens.
fn tokens_to(wanted: f64, reference: &[(f64, f64)]) -> Needed {
    let (Some(first), Some(last)) = (reference.first(), reference.last()) else {
        return Needed::Unknown;
    };
    if first.1 <= wanted {
        return Needed::AtMost(first.0);
    }
    let crossing = reference.windows(2).find(|pair| pair[1].1 <= wanted);
    let Some([(from, above), (to, below)]) =
        crossing.and_then(|pair| <[(f64, f64); 2]>::try_from(pair).ok())
    else {
        return Needed::MoreThan(last.0);
    };
    let share = (above - wanted) / (above - below);
    Needed::About((from.ln() + share * (to.ln() - from.ln())).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_read_between_its_budgets() {
        let reference = [(1e6, 4.0), (4e6, 3.0), (16e6, 2.5)];
        let Needed::About(half) = tokens_to(3.5, &reference) else {
            panic!("between")
        };
        assert!((half - 2e6).abs() < 1.0, "{half}");
        assert_eq!(tokens_to(2.0, &reference), Needed::MoreThan(16e6));
        assert_eq!(tokens_to(4.5, &reference), Needed::AtMost(1e6));
        assert_eq!(tokens_to(1.0, &[]), Needed::Unknown);
        let over = Over::of(vec![1.0, 2.0, 3.0]);
        assert_eq!((over.mean, over.std), (2.0, Some(1.0)));
    }
}
