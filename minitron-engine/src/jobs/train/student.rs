//! Trained students as model folders.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::options::TrainingOptions;
use super::start::WeightStart;
use super::teacher_source::TeacherSource;
use crate::jobs::card::{Before, Card, Fact, facts};
use crate::jobs::context::Context;
use crate::jobs::written::Written;
use crate::train::{MasterWeights, StartRate};
use minitron_core::checkpoint::{Config, WriteOptions, copy_tokenizer};
use minitron_core::error::{IoContext, Result};
use minitron_core::model::Transformer;
use minitron_core::output::{OutputDir, remove_atomic, sync_dir};
use minitron_core::plan::Plan;
use minitron_core::prune::{ModuleChanges, NAME};
use minitron_core::registry::PluginSpec;

/// What a trained student's folder is made from.
pub(crate) struct StudentFolder<'a> {
    pub modules: &'a ModuleChanges,
    pub card: &'a Card,
    pub config: &'a Config,
    /// Where training started from: tokenizer and plan come from there.
    pub dir: &'a Path,
    /// Where the tokenizer comes from instead, where there is none.
    pub tokenizer_dir: Option<&'a Path>,
    /// Whether it started from weights, rather than at random.
    pub is_trained: bool,
    pub student: &'a Transformer,
}

impl<'a> StudentFolder<'a> {
    /// Of a training that starts there; its tokenizer may be another folder's.
    pub fn of(
        start: &'a WeightStart,
        (modules, card): (&'a ModuleChanges, &'a Card),
        tokenizer_dir: Option<&'a Path>,
        student: &'a Transformer,
    ) -> Self {
        let (config, dir, is_trained) =
            (&start.config, start.dir.as_path(), !start.files.is_empty());
        StudentFolder {
            modules,
            card,
            config,
            dir,
            tokenizer_dir,
            is_trained,
            student,
        }
    }
}

impl StudentFolder<'_> {
    /// A folder of its own, whole or not at all; one there before is replaced.
    pub fn write(&self, masters: &MasterWeights, target: &Path, measured: &[Fact]) -> Result<()> {
        let output = OutputDir::create(target, true)?;
        let mut config = self.config.clone();
        // It names another model than what was learned.
        config.remove(NAME);
        let before = Before::of_plan(self.dir).filter(|_| self.is_trained);
        let written = Written {
            config: &config,
            spec: &self.student.spec,
            tensors: &self.student.to_source(masters)?,
            from: self.dir,
            modules: self.modules,
            card: self.card,
            before: before.as_ref(),
            measured,
            options: WriteOptions::default(),
        };
        written.write(output.path())?;
        if let Some(from) = self.tokenizer_dir {
            copy_tokenizer(from, output.path())?;
        }
        let plan = self.dir.join("plan.json");
        if plan.is_file() && self.is_trained {
            fs::copy(&plan, output.path().join("plan.json")).at_path(&plan)?;
        }
        output.commit()
    }

    /// The best student so far, which the first rank writes for all.
    pub fn write_best(
        &self,
        masters: &MasterWeights,
        out_dir: &Path,
        context: &Context,
    ) -> Result<()> {
        match context.ranks.is_first() {
            true => self.write(masters, &out_dir.join("best"), &[]),
            false => Ok(()),
        }
    }

    /// Beside the metrics: whole in a folder of its own first, then file by file with config.json
    /// last, so that a folder that has one has everything.
    pub fn write_among(
        &self,
        masters: &MasterWeights,
        out_dir: &Path,
        measured: &[Fact],
    ) -> Result<()> {
        let staged = out_dir.join("model");
        if staged.exists() {
            // Half moved out when an earlier process ended.
            fs::remove_dir_all(&staged).at_path(&staged)?;
        }
        self.write(masters, &staged, measured)?;
        let mut names: Vec<_> = fs::read_dir(&staged)
            .at_path(&staged)?
            .map(|e| e.map(|e| e.file_name()))
            .collect::<Result<_, _>>()
            .at_path(&staged)?;
        names.sort_by_key(|name| name == "config.json");
        remove_model(out_dir)?;
        for name in names {
            let target = out_dir.join(&name);
            if target.is_dir() {
                fs::remove_dir_all(&target).at_path(&target)?;
            }
            fs::rename(staged.join(&name), &target).at_path(&target)?;
        }
        fs::remove_dir(&staged).at_path(&staged)?;
        sync_dir(out_dir)
    }
}

/// A student is as wide as what it starts from; the modules behind it may still speak of another
/// model's width.
pub(crate) fn modules_of(start: &WeightStart) -> Result<ModuleChanges> {
    ModuleChanges::new(&start.dir, &start.spec, &Plan::default(), None)
}

/// What the cards of a training say of it.
pub(crate) fn card_of(
    context: &Context,
    training: &TrainingOptions,
    start: &WeightStart,
    (teacher, rate): (Option<&TeacherSource>, StartRate),
    losses: &[PluginSpec],
) -> Result<Card> {
    const TOLD: &str = "teacher losses data tokens seq_len batch_size accumulate kl_at_start lr \
                        schedule seed";
    let mut options = serde_json::to_value(training).unwrap_or_default();
    options["teacher"] = json!(teacher.map(|teaching| teaching.name.as_str()));
    options["losses"] = json!(losses);
    options["seed"] = json!(context.seed);
    options["lr"] = json!(rate.lr);
    options["kl_at_start"] = json!(rate.kl.map(|kl| format!("{kl:.4}")));
    let job = if teacher.is_some() {
        "distill"
    } else {
        "train"
    };
    let (name, facts) = (start.name.as_deref(), facts(&options, TOLD));
    Card::new(job, name, &start.dir, &start.spec, facts)
}

/// The first and the last losses on record.
pub(crate) fn measured(out_dir: &Path) -> Vec<Fact> {
    let text = fs::read_to_string(out_dir.join("metrics.jsonl")).unwrap_or_default();
    let lines = text.lines();
    let lines: Vec<Value> = lines
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let mut facts = Vec::new();
    for (key, name) in [("loss", "training loss"), ("eval/loss", "held-out loss")] {
        if let Some(ends) = first_and_last(&lines, key) {
            facts.push((name.to_owned(), ends));
        }
    }
    facts
}

fn first_and_last(lines: &[Value], key: &str) -> Option<String> {
    let mut losses = lines
        .iter()
        .filter_map(|line| Some((line.get("step")?.as_u64()?, line.get(key)?.as_f64()?)));
    let (step, loss) = losses.next()?;
    let mut words = format!("{loss:.4} (step {step})");
    if let Some((step, loss)) = losses.next_back() {
        words += &format!(", {loss:.4} (step {step})");
    }
    Some(words)
}

/// Takes an earlier model of this run away, config.json first: old shards must not stand beside new
/// ones.
fn remove_model(out_dir: &Path) -> Result<()> {
    let mut stale = vec![out_dir.join("config.json")];
    for entry in fs::read_dir(out_dir).at_path(out_dir)?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json") {
            stale.push(entry.path());
        }
    }
    for path in stale.iter().filter(|path| path.is_file()) {
        fs::remove_file(path).at_path(path)?;
    }
    Ok(())
}

/// `--force`: what lies at the output goes.
pub(crate) fn clear(dir: &Path) -> Result<()> {
    remove_atomic(dir)
}
