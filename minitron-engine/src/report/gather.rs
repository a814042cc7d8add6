//! All that a folder's files say.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::comparison::Comparison;
use super::folder::{
    EvaluationReport, Folder, FolderKind, RESULT, SCORES, SampleReport, StageSummary,
};
use super::inputs::{Inputs, words};
use super::maps::HeatMap;
use super::pruning::Pruning;
use super::repeat::Repeat;
use super::search::SearchReport;
use super::training::TrainingReport;
use super::warned::Warned;
use super::{RUN, SEARCH, read_json};
use crate::recipe::{RunRecord, StageRecord};
use minitron_core::error::Result;

/// Reads a folder of any kind.
///
/// # Errors
/// `Recipe` where no job wrote the folder, `Data` or `Io` where the file that it is known by cannot
/// be read.
pub fn gather(dir: &Path) -> Result<Folder> {
    let kind = FolderKind::of(dir)?;
    let mut folder = Folder::new(dir, kind);
    match kind {
        FolderKind::Run => folder.add_run()?,
        FolderKind::Search => folder.add_search()?,
        FolderKind::Comparison => folder.add_comparison()?,
        FolderKind::Stage => folder.add_stage_alone(),
    }
    Ok(folder)
}

impl Folder {
    fn fact(&mut self, name: &str, value: impl ToString) {
        let value = value.to_string();
        if !value.is_empty() {
            self.facts.push((name.to_owned(), value));
        }
    }

    fn add_run(&mut self) -> Result<()> {
        let record: RunRecord = read_json(&self.dir.join(RUN))?;
        self.add_inputs(Inputs::of_run(&record));
        self.add_versions(&record);
        self.fact("recipe", &record.recipe);
        self.warnings = Warned::of_run(&record);
        for stage in &record.stages {
            let dir = self.dir.join(&stage.name);
            self.add_stage(&dir, &stage.name, Some(stage));
            if let Some(search) =
                self.noted(dir.join(SEARCH).is_file(), || SearchReport::read(&dir))
            {
                self.take_search(search, &dir);
            }
        }
        self.repeat = Some(Repeat::of_run(&record, &self.dir));
        Ok(())
    }

    /// Which models and which texts: what the numbers below are of.
    fn add_inputs(&mut self, inputs: Inputs) {
        for (name, found) in inputs.named() {
            self.fact(name, found.join(", "));
        }
    }

    fn add_versions(&mut self, record: &RunRecord) {
        self.fact("minitron", &record.minitron);
        self.fact("seed", record.seed);
        self.fact("device", &record.device);
        let dtype = match record.dtype.as_str() {
            "float" => "f32",
            "bfloat16" => "bf16",
            "half" => "f16",
            other => other,
        };
        self.fact("computed in", dtype);
    }

    /// A stage's folder, with what the run around it recorded where there is one.
    fn add_stage_alone(&mut self) {
        let whole = std::fs::canonicalize(&self.dir).unwrap_or_else(|_| self.dir.clone());
        let name = self.title.clone();
        let record: Option<RunRecord> = whole
            .parent()
            .and_then(|run| read_json(&run.join(RUN)).ok());
        let stage = record
            .as_ref()
            .and_then(|record| record.stages.iter().find(|stage| stage.name == name));
        if let (Some(record), Some(stage)) = (&record, stage) {
            self.add_inputs(Inputs::of_stage(stage));
            self.add_versions(record);
            self.warnings = Warned::of_all(&stage.warnings);
        }
        let dir = self.dir.clone();
        self.add_stage(&dir, &name, stage);
        if stage.is_none() {
            let result = self.noted(dir.join(RESULT).is_file(), || {
                read_json::<Value>(&dir.join(RESULT))
            });
            self.add_result(&name, &Value::Null, &result.unwrap_or_default());
        }
        if self.prunings.is_empty() {
            // A retrained student still holds the plan that it was pruned by.
            self.add_plan(&dir, &name);
        }
    }

    fn add_stage(&mut self, dir: &Path, name: &str, record: Option<&StageRecord>) {
        let scores = dir.join(SCORES);
        let maps = self.noted(scores.is_file(), || HeatMap::of_scores(&scores));
        self.importance.extend(maps.into_iter().flatten());
        let training = self.noted(TrainingReport::is_in(dir), || {
            TrainingReport::read(dir, name)
        });
        if let Some(mut training) = training {
            training.job = record.map(|record| record.job.clone());
            if let Some(n_tokens) =
                record.and_then(|record| record.options.pointer("/tokens")?.as_u64())
            {
                training.plan_for(n_tokens);
            }
            self.trainings.push(training);
        }
        let Some(record) = record else { return };
        if record.job == "prune" {
            self.add_plan(dir, name);
        }
        let result = record.result.as_ref();
        let number = |pointer: &str| result.and_then(|result| result.pointer(pointer)?.as_f64());
        self.stages.push(StageSummary {
            name: name.to_owned(),
            job: record.job.clone(),
            done: result.is_some(),
            seconds: record.seconds,
            tokens_per_second: number("/tokens_per_second"),
            peak_bytes: record
                .peak_bytes
                .or_else(|| number("/memory/peak_bytes").map(|n| n as u64)),
            inputs: record.inputs.clone(),
        });
        if let (Some(result), "eval" | "generate") = (result, record.job.as_str()) {
            let model = record
                .options
                .pointer("/model")
                .and_then(Value::as_str)
                .unwrap_or(name);
            self.add_result(model, &record.options, result);
        }
    }

    fn add_plan(&mut self, dir: &Path, name: &str) {
        let pruning = self.noted(Pruning::is_in(dir), || Pruning::read(dir, name));
        self.prunings.extend(pruning);
    }

    /// What an evaluation or a generation said.
    fn add_result(&mut self, model: &str, options: &Value, result: &Value) {
        if let Some(text) = result.pointer("/text").and_then(Value::as_str) {
            let prompt = result.pointer("/prompt").and_then(Value::as_str);
            self.samples.push(SampleReport {
                model: model.to_owned(),
                prompt: prompt.unwrap_or_default().to_owned(),
                text: text.to_owned(),
            });
            return;
        }
        let values = measured(result);
        if !values.is_empty() {
            self.evaluations.push(EvaluationReport {
                model: model.to_owned(),
                data: words(&options["data"]),
                values,
            });
        }
    }

    fn add_search(&mut self) -> Result<()> {
        let search = SearchReport::read(&self.dir)?;
        self.add_inputs(Inputs::of_search(&search));
        self.warnings = Warned::of_all(&search.warnings);
        self.fact("minitron", search.minitron.as_deref().unwrap_or_default());
        self.add_version_table(&search.versions);
        self.fact(
            "seed",
            search.seed.map_or(String::new(), |seed| seed.to_string()),
        );
        self.repeat = Repeat::of_search(&search, &self.dir);
        let dir = self.dir.clone();
        self.take_search(search, &dir);
        Ok(())
    }

    /// A search and its winner's plan.
    fn take_search(&mut self, search: SearchReport, dir: &Path) {
        if let Some(winner) = &search.winner {
            let named = winner.dir.as_deref().unwrap_or(&winner.name);
            let beside = dir.join(Path::new(named).file_name().unwrap_or_default());
            let of_winner = [dir.join(named), beside]
                .into_iter()
                .find(|dir| Pruning::is_in(dir));
            if let Some(of_winner) = of_winner.filter(|of_winner| of_winner != dir) {
                self.add_plan(&of_winner, &winner.name);
                self.add_stage(&of_winner, &winner.name, None);
            }
        }
        self.search = Some(search);
    }

    fn add_comparison(&mut self) -> Result<()> {
        let mut comparison = Comparison::read(&self.dir)?;
        comparison.read_curves(&self.dir);
        if let Some(title) = &comparison.title {
            self.title.clone_from(title);
        }
        self.add_inputs(Inputs::of_comparison(&comparison));
        self.warnings = Warned::of_comparison(&comparison);
        self.fact(
            "minitron",
            comparison.minitron.as_deref().unwrap_or_default(),
        );
        self.add_version_table(&comparison.versions);
        let seeds: Vec<String> = comparison.seeds.iter().map(u64::to_string).collect();
        self.fact("seeds", seeds.join(", "));
        self.repeat = Repeat::of_comparison(&comparison, &self.dir);
        self.comparison = Some(comparison);
        Ok(())
    }

    fn add_version_table(&mut self, versions: &BTreeMap<String, Value>) {
        for (name, version) in versions {
            let text = version
                .as_str()
                .map_or_else(|| version.to_string(), str::to_owned);
            self.fact(name, text);
        }
    }

    /// What a file says where it is there; what is wrong with it becomes a note, and the rest of
    /// the page stays.
    fn noted<T>(&mut self, is_there: bool, read: impl FnOnce() -> Result<T>) -> Option<T> {
        match is_there.then(read)? {
            Ok(found) => Some(found),
            Err(error) => {
                self.notes.push(error.to_string());
                None
            }
        }
    }
}

/// An evaluation's own numbers, then those of its tasks.
fn measured(result: &Value) -> BTreeMap<String, f64> {
    let mut all: BTreeMap<String, f64> = numbers(result)
        .map(|(key, number)| (key.to_owned(), number))
        .collect();
    let tasks = result.pointer("/tasks").and_then(Value::as_object);
    for (task, found) in tasks.into_iter().flatten() {
        let own = numbers(found).filter(|(key, _)| !key.starts_with("n_"));
        all.extend(own.map(|(key, number)| (format!("{task} {key}"), number)));
    }
    all
}

/// The numbers of an object, by key.
fn numbers(value: &Value) -> impl Iterator<Item = (&str, f64)> {
    let entries = value.as_object().into_iter().flatten();
    entries.filter_map(|(key, value)| Some((key.as_str(), value.as_f64()?)))
}
