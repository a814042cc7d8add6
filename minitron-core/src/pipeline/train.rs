//! `train` and `distill`: one loop, with or without a teacher.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::context::{Context, seq_len_or_default};
use crate::blueprint::{Blueprint, ModelFolder};
use crate::checkpoint::{Config, MemorySource, OutputDir, TensorSource, WriteOptions, sync_dir, write_model};
use crate::contract::LogitLoss;
use crate::data::{BLOCK_TOKENS, DataSpec, Feed, FeedOptions, Pack, Reading, Task, Tokenizer, files_of};
use crate::digest;
use crate::error::{Error, IoContext, Result};
use crate::model::{Transformer, fresh_weights};
use crate::plan::Count;
use crate::registry::PluginSpec;
use crate::train::{AdamWSettings, Masters, Objective, Outcome, Term, TrainSettings, Trainer, has_state, saved_cursor};

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
    fn reading(&self, seq_len: usize, seed: u64) -> Reading {
        Reading {
            field: self.field.clone(),
            token_type: self.token_type.clone(),
            seq_len,
            max_windows: None,
            seed,
            pack: self.pack,
        }
    }

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
    /// Weight files; none where the weights are fresh.
    files: Vec<PathBuf>,
}

impl Start {
    fn folder(folder: ModelFolder) -> Self {
        let ModelFolder { checkpoint, blueprint, .. } = folder;
        let files = checkpoint.tensors.paths().map(Path::to_path_buf).collect();
        Start { dir: checkpoint.dir, config: checkpoint.config, blueprint, source: Box::new(checkpoint.tensors), files }
    }

    /// Of everything that training starts from.
    fn digest(&self, seed: u64) -> Result<String> {
        let digest = digest_of(&self.config, self.files.iter().map(PathBuf::as_path))?;
        Ok(if self.files.is_empty() { digest::of_text(&format!("{digest} {seed}")) } else { digest })
    }

    fn fresh(context: &Context, path: &Path) -> Result<Self> {
        let config = Config::load(path)?;
        let blueprint = Blueprint::from_config(&config, context.registry)?;
        let source = Box::new(fresh_weights(&blueprint, context.seed)?);
        let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf();
        Ok(Start { dir, config, blueprint, source, files: Vec::new() })
    }
}

fn digest_of<'p>(config: &Config, files: impl IntoIterator<Item = &'p Path>) -> Result<String> {
    let mut text = config.to_json()?;
    for file in files {
        text += &digest::of_file(file)?;
    }
    Ok(digest::of_text(&text))
}

/// Whether a folder is absent, or holds a training's state or its beginnings and nothing else's model.
fn can_resume(dir: &Path) -> Result<bool> {
    if !dir.exists() || has_state(dir) {
        return Ok(true);
    }
    let is_own = |name: &str| ["metrics.jsonl", ".checkpoint.part"].contains(&name);
    let names = fs::read_dir(dir).at_path(dir)?.filter_map(|entry| Some(entry.ok()?.file_name()));
    Ok(names.into_iter().all(|name| is_own(&name.to_string_lossy())))
}

fn run(
    context: &Context,
    setup: &Setup,
    mut start: Start,
    teacher: Option<ModelFolder>,
    losses: &[PluginSpec],
    out: Output,
) -> Result<Value> {
    refuse(context, setup, &start, teacher.as_ref(), &out)?;
    let options = &start.blueprint.options;
    let tokenizer = Arc::new(Tokenizer::load(&start.dir, &start.config, options.vocab, options.causal)?);
    let settings = setup.settings(context.seed);
    settings.check()?;
    let objective = objective(context, losses)?;
    let feed = RefCell::new(feed(context, setup, &start, &tokenizer, &out)?);
    let teacher_model = match &teacher {
        Some(folder) if objective.needs_teacher() => {
            Some(context.load(&folder.checkpoint.tensors, &folder.blueprint, false)?)
        }
        _ => None,
    };
    let student = context.load(start.source.as_ref(), &start.blueprint, true)?;
    let student_digest = start.digest(context.seed)?;
    // Fresh weights would stay in memory beside the model's own.
    start.source = Box::new(MemorySource::default());
    let trainer = Trainer {
        student: &student,
        teacher: teacher_model.as_ref(),
        feed: &feed,
        task: Task::of(options.causal, tokenizer.mask, context.seed)?,
        objective: &objective,
        settings: &settings,
        identity: json!({
            "data": feed.borrow().digest(),
            "losses": losses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "student": student_digest,
            "teacher": teacher.as_ref().map(|t| digest_of(&t.checkpoint.config, t.checkpoint.tensors.paths())).transpose()?,
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
    let (outcome, masters) = trainer.run(out.resume)?;
    if outcome.is_complete() {
        write_student(&start, &student, &masters, out.dir)?;
    }
    Ok(summary(&outcome, &start.blueprint, out.dir))
}

/// What can be refused by looking at places alone, before any work.
fn refuse(context: &Context, setup: &Setup, start: &Start, teacher: Option<&ModelFolder>, out: &Output) -> Result<()> {
    if !(out.resume && can_resume(out.dir)?) {
        OutputDir::refuse_existing(out.dir, context.force)?;
    }
    if context.kind == tch::Kind::Half {
        return Err(Error::Recipe("dtype: f16 gradients underflow without scaling; train in bf16 or f32".into()));
    }
    let teacher_dir = teacher.map(|teacher| teacher.checkpoint.dir.as_path());
    OutputDir::refuse_inputs(out.dir, teacher_dir.into_iter().chain([start.dir.as_path()]))?;
    let files = files_of(&setup.data, context.registry, &setup.reading(2, context.seed))?;
    OutputDir::refuse_inputs(out.dir, files.iter().map(PathBuf::as_path))
}

fn feed(context: &Context, setup: &Setup, start: &Start, tokenizer: &Arc<Tokenizer>, out: &Output) -> Result<Feed> {
    let seq_len = seq_len_or_default(setup.seq_len, &start.blueprint, tokenizer);
    let reading = setup.reading(seq_len, context.seed);
    let (specs, registry) = (setup.data.as_slice(), context.registry);
    let options = FeedOptions { reading: &reading, specs, tokenizer, registry, block_tokens: BLOCK_TOKENS };
    let cursor = if out.resume { saved_cursor(out.dir) } else { None };
    Feed::open(&options, cursor.as_ref())
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
        terms.push(Term { label: spec.tag, weight, loss: loss.into() });
    }
    Ok(Objective { terms })
}

/// Takes an earlier model of this run away, config.json first: old shards must not stand beside new ones.
fn remove_model(out_dir: &Path) -> Result<()> {
    let mut stale = vec![out_dir.join("config.json")];
    let entries = fs::read_dir(out_dir).at_path(out_dir)?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_weights = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")
    };
    stale.extend(entries.filter(is_weights));
    for path in stale.iter().filter(|path| path.is_file()) {
        fs::remove_file(path).at_path(path)?;
    }
    Ok(())
}

/// `--force`: what lies at the output goes.
fn clear(dir: &Path) -> Result<()> {
    if dir.is_dir() { fs::remove_dir_all(dir).at_path(dir) } else { fs::remove_file(dir).at_path(dir) }
}

/// Writes the model beside the metrics: whole in a folder of its own first, then file by file with config.json last, so
/// that a folder that has one has everything.
fn write_student(start: &Start, student: &Transformer, masters: &Masters, out_dir: &Path) -> Result<()> {
    let staged = out_dir.join("model");
    if staged.exists() {
        // Half moved out when an earlier process ended.
        fs::remove_dir_all(&staged).at_path(&staged)?;
    }
    let output = OutputDir::create(&staged, true)?;
    write_model(output.path(), &start.config, &student.to_source(masters)?, Some(&start.dir), WriteOptions::default())?;
    let plan = start.dir.join("plan.json");
    if plan.is_file() && !start.files.is_empty() {
        fs::copy(&plan, output.path().join("plan.json")).at_path(&plan)?;
    }
    output.commit()?;
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
