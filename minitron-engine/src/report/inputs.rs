//! Which models and which texts a job had, so that a page can name them before its numbers.

use serde_json::Value;

use super::comparison::Comparison;
use super::search::SearchReport;
use crate::recipe::{RunRecord, StageRecord};

/// Models and texts from outside a folder, each once.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    models: Vec<String>,
    held_out: Vec<String>,
    trained_on: Vec<String>,
    calibrated_on: Vec<String>,
}

/// Options that name a model.
const MODELS: [&str; 4] = ["model", "teacher", "student", "config"];

impl Inputs {
    /// For people, those that there are.
    pub fn named(self) -> impl Iterator<Item = (&'static str, Vec<String>)> {
        let named = [
            ("model", self.models),
            ("held-out text", self.held_out),
            ("trained on", self.trained_on),
            ("calibrated on", self.calibrated_on),
        ];
        named.into_iter().filter(|(_, found)| !found.is_empty())
    }

    /// Of all stages; what earlier ones left is not named.
    pub fn of_run(record: &RunRecord) -> Self {
        let mut inputs = Inputs::default();
        for stage in &record.stages {
            let (job, options) = (&stage.job, &stage.options);
            inputs.add(job, options, &|model| is_in_stage(record, model));
        }
        inputs
    }

    /// Of one stage.
    pub fn of_stage(stage: &StageRecord) -> Self {
        let mut inputs = Inputs::default();
        inputs.add(&stage.job, &stage.options, &|_| false);
        inputs
    }

    /// As far as search.json says it.
    pub fn of_search(search: &SearchReport) -> Self {
        let mut inputs = Inputs::default();
        search
            .model
            .iter()
            .for_each(|model| push(&mut inputs.models, model));
        add(&mut inputs.trained_on, &search.options["data"]);
        add(&mut inputs.held_out, &search.options["eval_data"]);
        inputs
    }

    /// From the spec that a comparison keeps: options of all rows, and of single ones.
    pub fn of_comparison(comparison: &Comparison) -> Self {
        let mut inputs = Inputs::default();
        comparison
            .model
            .iter()
            .for_each(|model| push(&mut inputs.models, model));
        let rows = comparison.spec["rows"].as_array().into_iter().flatten();
        for options in std::iter::once(&comparison.spec["all"]).chain(rows) {
            for (key, options) in options.as_object().into_iter().flatten() {
                // `prune.2` is the second such job.
                let job = key.split('.').next().unwrap_or(key);
                inputs.add(job, options, &|_| true);
            }
        }
        inputs
    }

    fn add(&mut self, job: &str, options: &Value, is_own: &dyn Fn(&str) -> bool) {
        let models = MODELS.iter().filter_map(|key| options[key].as_str());
        models
            .filter(|model| !is_own(model))
            .for_each(|model| push(&mut self.models, model));
        match job {
            "eval" => add(&mut self.held_out, &options["data"]),
            "score" | "prune" => {
                add(&mut self.calibrated_on, &options["data"]);
                add(&mut self.held_out, &options["eval_data"]);
            }
            "train" | "distill" | "scratch" | "search" => {
                add(&mut self.trained_on, &options["data"]);
                add(&mut self.held_out, &options["eval_data"]);
            }
            _ => {}
        }
    }
}

/// Whether a model is one that a stage of the run made.
fn is_in_stage(record: &RunRecord, model: &str) -> bool {
    let first = model.split('/').next().unwrap_or(model);
    record.stages.iter().any(|stage| stage.name == first)
}

fn add(all: &mut Vec<String>, named: &Value) {
    words(named).iter().for_each(|word| push(all, word));
}

fn push(all: &mut Vec<String>, word: &str) {
    if !word.is_empty() && !all.iter().any(|other| other == word) {
        all.push(word.to_owned());
    }
}

/// A word, or the words of a list.
pub(super) fn words(value: &Value) -> Vec<String> {
    match value {
        Value::Array(list) => list
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        Value::String(word) => vec![word.clone()],
        _ => Vec::new(),
    }
}
