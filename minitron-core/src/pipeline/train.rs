//! `train` and `distill`: one loop, with or without a teacher.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::context::{Context, seq_len_or_default};
use crate::blueprint::{Blueprint, ModelFolder};
use crate::checkpoint::{Config, MAX_SHARD_BYTES, OutputDir, TensorSource, sync_dir, write_model};
use crate::contract::LogitLoss;
use crate::data::{DataSpec, Pack, Reading, Task, Tokenizer, Windows};
use crate::digest;
use crate::error::{Error, IoContext, Result};
use crate::model::{Transformer, fresh_weights};
use crate::plan::Count;
use crate::registry::PluginSpec;
use crate::train::{AdamWSettings, Objective, Outcome, Term, TrainSettings, Trainer};

/// What `train` and `distill` have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Setup {
    /// Training text.
    pub data: Vec<DataSpec>,
    /// Tokens to train on.
    pub tokens: Count,
    /// Tokens per window.
    pub seq_len: Option<usize>,
    /// Windows per forward pass.
    pub batch_size: usize,
    /// Forward passes per step.
    pub accumulate: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// Last learning rate; a tenth of the highest where not given.
    pub min_lr: Option<f64>,
    /// Warm-up steps; a twentieth of all where not given.
    pub warmup: Option<u64>,
    /// Largest gradient norm.
    pub clip: f64,
    /// Decay of matrices and tables.
    pub weight_decay: f64,
    /// Losses with an optional `weight`; the defaults where empty.
    pub losses: Vec<PluginSpec>,
    /// Steps between checkpoints; a tenth of the run where not given.
    pub checkpoint_every: Option<u64>,
    /// Stop after this step; `resume` goes on.
    pub stop_after: Option<u64>,
    /// Field of JSON lines, column of Parquet files.
    pub field: Option<String>,
    /// Element type of `.bin` files.
    pub token_type: Option<String>,
    /// How documents become windows.
    pub pack: Pack,
}

impl Default for Setup {
    fn default() -> Self {
        let settings = TrainSettings::default();
        Setup {
            data: Vec::new(),
            tokens: Count(settings.n_tokens),
            seq_len: None,
            batch_size: settings.batch_size,
            accumulate: settings.accumulate,
            lr: settings.lr,
            min_lr: None,
            warmup: None,
            clip: settings.clip,
            weight_decay: settings.adamw.weight_decay,
            losses: Vec::new(),
            checkpoint_every: None,
            stop_after: None,
            field: None,
            token_type: None,
            pack: Pack::Stream,
        }
    }
}

impl Setup {
    fn settings(&self, seed: u64) -> TrainSettings {
        TrainSettings {
            n_tokens: self.tokens.0,
            batch_size: self.batch_size,
            accumulate: self.accumulate,
            lr: self.lr,
            min_lr: self.min_lr,
            warmup: self.warmup,
            clip: self.clip,
            adamw: AdamWSettings { weight_decay: self.weight_decay, ..AdamWSettings::default() },
            seed,
        }
    }
}

/// Options of `train`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainOptions {
    /// A config to start from random weights; its folder's tokenizer is used.
    pub config: Option<PathBuf>,
    /// A model to go on with.
    pub model: Option<String>,
    /// The rest.
    #[serde(flatten)]
    pub setup: Setup,
}

/// Options of `distill`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DistillOptions {
    /// The original.
    pub teacher: String,
    /// What learns from it.
    pub student: String,
    /// The rest.
    #[serde(flatten)]
    pub setup: Setup,
}

/// Trains from random weights, or goes on with a model, by the training losses.
pub fn train(context: &Context, options: &TrainOptions, out: &Path, resume: bool) -> Result<Value> {
    let start = match (&options.config, &options.model) {
        (Some(path), None) => Start::fresh(context, path)?,
        (None, Some(model)) => Start::folder(context.open(model)?),
        _ => return Err(Error::Recipe("give a config to start from random weights, or a model to go on with".into())),
    };
    let losses = match options.setup.losses.as_slice() {
        [] => context.defaults.training_losses(),
        named => named.to_vec(),
    };
    run(context, &options.setup, start, None, &losses, Output { dir: out, resume })
}

/// Trains a student to give its teacher's distribution.
pub fn distill(context: &Context, options: &DistillOptions, out: &Path, resume: bool) -> Result<Value> {
    let teacher = context.open(&options.teacher)?;
    let start = Start::folder(context.open(&options.student)?);
    let losses = match options.setup.losses.as_slice() {
        [] => context.defaults.distillation_losses(),
        named => named.to_vec(),
    };
    run(context, &options.setup, start, Some(teacher), &losses, Output { dir: out, resume })
}

struct Output<'a> {
    dir: &'a Path,
    resume: bool,
}

/// What is trained, before it is loaded.
struct Start {
    dir: PathBuf,
    config: Config,
    blueprint: Blueprint,
    source: Box<dyn TensorSource>,
}

impl Start {
    fn folder(folder: ModelFolder) -> Self {
        let ModelFolder { checkpoint, blueprint, .. } = folder;
        Start { dir: checkpoint.dir, config: checkpoint.config, blueprint, source: Box::new(checkpoint.tensors) }
    }

    fn fresh(context: &Context, path: &Path) -> Result<Self> {
        let config = Config::load(path)?;
        let blueprint = Blueprint::from_config(&config, context.registry)?;
        let source = Box::new(fresh_weights(&blueprint, context.seed)?);
        let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf();
        Ok(Start { dir, config, blueprint, source })
    }
}

fn run(
    context: &Context,
    setup: &Setup,
    start: Start,
    teacher: Option<ModelFolder>,
    losses: &[PluginSpec],
    out: Output,
) -> Result<Value> {
    if !out.resume {
        OutputDir::refuse_existing(out.dir, context.force)?;
    }
    let teacher_dir = teacher.as_ref().map(|teacher| teacher.checkpoint.dir.as_path());
    OutputDir::refuse_inputs(out.dir, teacher_dir.into_iter().chain([start.dir.as_path()]))?;
    let options = &start.blueprint.options;
    let tokenizer = Tokenizer::load(&start.dir, &start.config, options.vocab, options.causal)?;
    let settings = setup.settings(context.seed);
    settings.check()?;
    let objective = objective(context, losses)?;
    let windows = windows(context, setup, &start, &tokenizer)?;
    let teacher_model = match &teacher {
        Some(folder) if objective.needs_teacher() => {
            Some(context.load(&folder.checkpoint.tensors, &folder.blueprint, false)?)
        }
        _ => None,
    };
    let student = context.load(start.source.as_ref(), &start.blueprint, true)?;
    let trainer = Trainer {
        student: &student,
        teacher: teacher_model.as_ref(),
        windows: &windows,
        task: Task::of(options.causal, tokenizer.mask, context.seed)?,
        objective: &objective,
        settings: &settings,
        identity: json!({
            "data": windows.digest(),
            "losses": losses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "student": digest::of_text(&start.config.to_json()?),
            "teacher": teacher.map(|t| t.checkpoint.config.to_json().map(|c| digest::of_text(&c))).transpose()?,
            "dtype": format!("{:?}", context.kind),
        }),
        out_dir: out.dir,
        checkpoint_every: setup.checkpoint_every,
        stop_after: setup.stop_after,
        progress: context.progress,
    };
    trainer.check()?;
    // Nothing that was there goes before all that can be refused was.
    if !out.resume && out.dir.exists() {
        clear(out.dir)?;
    }
    let outcome = trainer.run(out.resume)?;
    if outcome.is_complete() {
        write_student(&start, &student, out.dir)?;
    }
    Ok(summary(&outcome, &start.blueprint, out.dir))
}

fn windows(context: &Context, setup: &Setup, start: &Start, tokenizer: &Tokenizer) -> Result<Windows> {
    let reading = Reading {
        field: setup.field.clone(),
        token_type: setup.token_type.clone(),
        seq_len: seq_len_or_default(setup.seq_len, &start.blueprint, tokenizer),
        max_windows: None,
        seed: context.seed,
        pack: setup.pack,
    };
    reading.windows(&setup.data, tokenizer, context.registry)
}

fn objective(context: &Context, losses: &[PluginSpec]) -> Result<Objective> {
    let mut terms = Vec::new();
    for (idx, spec) in losses.iter().enumerate() {
        let mut spec = spec.clone();
        let weight = match spec.take("weight") {
            None => 1.0,
            Some(value) => match value.as_f64().filter(|w| w.is_finite() && *w > 0.0) {
                Some(weight) => weight,
                None => {
                    return Err(Error::Recipe(format!(
                        "losses[{idx}]: weight: expected a positive number, got {value}"
                    )));
                }
            },
        };
        let loss = context.registry.build::<dyn LogitLoss>(&spec).map_err(|e| e.at(format!("losses[{idx}]")))?;
        if terms.iter().any(|term: &Term| term.label == spec.tag) {
            return Err(Error::Recipe(format!("losses[{idx}]: `{}` is given twice", spec.tag)));
        }
        terms.push(Term { label: spec.tag, weight, loss });
    }
    Ok(Objective { terms })
}

/// `--force`: what lies at the output goes.
fn clear(dir: &Path) -> Result<()> {
    if dir.is_dir() { fs::remove_dir_all(dir).at_path(dir) } else { fs::remove_file(dir).at_path(dir) }
}

/// Writes the model beside the metrics: whole in a folder of its own first, then file by file with config.json last, so
/// that a folder that has one has everything.
fn write_student(start: &Start, student: &Transformer, out_dir: &Path) -> Result<()> {
    let staged = out_dir.join("model");
    let output = OutputDir::create(&staged, true)?;
    write_model(output.path(), &start.config, &student.to_source()?, Some(&start.dir), MAX_SHARD_BYTES)?;
    let plan = start.dir.join("plan.json");
    if plan.is_file() {
        fs::copy(&plan, output.path().join("plan.json")).at_path(&plan)?;
    }
    output.commit()?;
    let mut names: Vec<_> = fs::read_dir(&staged)
        .at_path(&staged)?
        .map(|e| e.map(|e| e.file_name()))
        .collect::<Result<_, _>>()
        .at_path(&staged)?;
    names.sort_by_key(|name| name == "config.json");
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

fn summary(outcome: &Outcome, blueprint: &Blueprint, out_dir: &Path) -> Value {
    json!({
        "out": out_dir,
        "n_params": blueprint.n_params(),
        "n_steps": outcome.n_steps,
        "n_planned": outcome.n_planned,
        "n_tokens": outcome.n_tokens,
        "loss": outcome.loss,
        "tokens_per_second": outcome.tokens_per_second,
        "complete": outcome.is_complete(),
    })
}
