//! `train` and `distill`: one loop, with or without a teacher.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::context::{Context, seq_len_or_default};
use super::eval::kept_hidden;
use super::losses::objective;
use super::student::{StudentFolder, clear};
use super::teaching::{TeacherOptions, Teaching};
use crate::blueprint::{Blueprint, ModelFolder};
use crate::checkpoint::{Config, MemorySource, OutputDir, TensorSource};
use crate::data::{BLOCK_TOKENS, DataSpec, Feed, FeedOptions, Pack, Reading, Task, Tokenizer, Windows, files_of};
use crate::digest;
use crate::error::{Error, IoContext, Result};
use crate::memory::peak_bytes;
use crate::model::fresh_weights;
use crate::plan::Count;
use crate::registry::PluginSpec;
use crate::train::{Masters, Outcome, Saving, Shape, TrainSettings, Trainer, has_state, saved_cursor};

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
    /// How the learning rate goes on after warm-up: cosine, linear, constant or wsd (warm-up, stable, decay).
    pub schedule: Shape,
    /// Share of all steps that a `wsd` schedule decays over, at the end.
    pub decay_share: f64,
    /// Last learning rate; a tenth of the highest where not given.
    pub min_lr: Option<f64>,
    /// Warm-up steps; a twentieth of all where not given.
    pub warmup: Option<u64>,
    /// Largest gradient norm.
    pub clip: f64,
    /// Decay of matrices and tables.
    pub weight_decay: f64,
    /// Decay of AdamW's first moment.
    pub beta1: f64,
    /// Decay of its second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Steps in a row without a finite loss and gradient that end the run; fewer are skipped and counted.
    pub max_skipped: u64,
    /// Losses with an optional `weight`; the defaults where empty.
    pub losses: Vec<PluginSpec>,
    /// Steps between checkpoints; a tenth of the run where not given.
    pub checkpoint_every: Option<u64>,
    /// Minutes between checkpoints, where they come before the steps.
    pub checkpoint_minutes: f64,
    /// Checkpoints kept, beside the one of the best evaluation.
    pub keep: usize,
    /// Held-out text to evaluate on between steps.
    pub eval_data: Vec<DataSpec>,
    /// Steps between evaluations; those between checkpoints where not given.
    pub eval_every: Option<u64>,
    /// Windows of the held-out text, the first ones; 64 where not given.
    pub eval_samples: Option<usize>,
    /// Stop after this step; `resume` goes on.
    pub stop_after: Option<u64>,
    /// Field of JSON lines, column of Parquet files.
    pub field: Option<String>,
    /// Element type of `.bin` files.
    pub token_type: Option<String>,
    /// How documents become windows.
    pub pack: Pack,
    /// Whether every layer runs a second time in the backward pass instead of its inside being held in memory.
    pub recompute: bool,
}

impl Default for Setup {
    fn default() -> Self {
        let (settings, saving) = (TrainSettings::default(), Saving::default());
        Setup {
            data: Vec::new(),
            tokens: Count(settings.n_tokens),
            seq_len: None,
            batch_size: settings.batch_size,
            accumulate: settings.accumulate,
            lr: settings.lr,
            schedule: settings.schedule,
            decay_share: settings.decay_share,
            min_lr: None,
            warmup: None,
            clip: settings.clip,
            weight_decay: settings.adamw.weight_decay,
            beta1: settings.adamw.beta1,
            beta2: settings.adamw.beta2,
            eps: settings.adamw.eps,
            max_skipped: 10,
            losses: Vec::new(),
            checkpoint_every: saving.every,
            checkpoint_minutes: saving.minutes,
            keep: saving.keep,
            eval_data: Vec::new(),
            eval_every: None,
            eval_samples: None,
            stop_after: None,
            field: None,
            token_type: None,
            pack: Pack::Stream,
            recompute: false,
        }
    }
}

impl Setup {
    pub(super) fn reading(&self, seq_len: usize, seed: u64) -> Reading {
        Reading {
            field: self.field.clone(),
            token_type: self.token_type.clone(),
            seq_len,
            max_windows: None,
            seed,
            pack: self.pack,
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
    /// How the original is asked.
    #[serde(flatten)]
    pub asked: TeacherOptions,
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
    let folder = context.open(&options.teacher)?;
    let digest = digest_of(&folder.checkpoint.config, folder.checkpoint.tensors.paths())?;
    let teacher = Teaching { folder, options: options.asked.clone(), digest };
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
    const OWN: [&str; 6] = ["metrics.jsonl", "logs", "checkpoint", "best", ".best.part", ".best.old"];
    let is_own = |name: &str| OWN.contains(&name);
    let names = fs::read_dir(dir).at_path(dir)?.filter_map(|entry| Some(entry.ok()?.file_name()));
    Ok(names.into_iter().all(|name| is_own(&name.to_string_lossy())))
}

fn run(
    context: &Context,
    setup: &Setup,
    mut start: Start,
    teacher: Option<Teaching>,
    losses: &[PluginSpec],
    out: Output,
) -> Result<Value> {
    refuse(context, setup, &start, teacher.as_ref(), &out)?;
    let options = &start.blueprint.options;
    let tokenizer = Arc::new(Tokenizer::load(&start.dir, &start.config, options.vocab, options.causal)?);
    let settings = setup.settings(context.seed);
    settings.check()?;
    let teacher_blueprint = teacher.as_ref().map(|teaching| &teaching.folder.blueprint);
    let kept = teacher.as_ref().and_then(|teaching| kept_hidden(&start.dir, &teaching.folder));
    let mut objective = objective(context, losses, &start.blueprint, teacher_blueprint, kept.as_deref())?;
    objective.recompute = setup.recompute;
    let feed = RefCell::new(feed(context, setup, &start, &tokenizer, &out)?);
    let eval_windows = setup.eval_windows(context, &start.blueprint, &tokenizer)?;
    let taught_by = match &teacher {
        Some(teaching) => {
            teaching.check(&objective)?;
            teaching.teacher(context, &objective)?
        }
        None => None,
    };
    let student = context.load(start.source.as_ref(), &start.blueprint, true)?;
    let student_digest = start.digest(context.seed)?;
    // Fresh weights would stay in memory beside the model's own.
    start.source = Box::new(MemorySource::default());
    let folder = StudentFolder {
        config: &start.config,
        dir: &start.dir,
        is_trained: !start.files.is_empty(),
        student: &student,
    };
    let write_best = |masters: &Masters| folder.write(masters, &out.dir.join("best"));
    let identity = json!({
        "data": feed.borrow().digest(),
        "eval_data": eval_windows.as_ref().map(Windows::digest),
        "losses": losses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "student": student_digest,
        "teacher": teacher.as_ref().map(|teaching| teaching.digest.as_str()),
        "teacher_cache": teacher.as_ref().and_then(Teaching::cached_as),
        "dtype": format!("{:?}", context.kind),
    });
    let trainer = Trainer {
        student: &student,
        teacher: taught_by.map(RefCell::new),
        feed: &feed,
        task: Task::of_model(options, tokenizer.mask, context.seed)?,
        objective: &objective,
        settings: &settings,
        identity,
        out_dir: out.dir,
        saving: setup.saving(),
        held_out: eval_windows.as_ref().map(|windows| setup.held_out(windows, &write_best)),
        max_skipped: setup.max_skipped,
        stop_after: setup.stop_after,
        progress: context.progress,
        interrupt: context.interrupt,
    };
    finish(context, &trainer, &folder, &out)
}

/// Trains, and writes the student where nothing is left to do.
fn finish(context: &Context, trainer: &Trainer, folder: &StudentFolder, out: &Output) -> Result<Value> {
    trainer.check()?;
    // Nothing that was there goes before all that can be refused was.
    if !out.resume && out.dir.exists() {
        clear(out.dir)?;
    }
    let _listening = context.interrupt.listen();
    let (outcome, masters) = trainer.run(out.resume)?;
    if outcome.is_complete() {
        folder.write_among(&masters, out.dir)?;
    }
    Ok(summary(&outcome, &trainer.student.blueprint, out.dir))
}

/// What can be refused by looking at places alone, before any work.
fn refuse(context: &Context, setup: &Setup, start: &Start, teacher: Option<&Teaching>, out: &Output) -> Result<()> {
    if !(out.resume && can_resume(out.dir)?) {
        OutputDir::refuse_existing(out.dir, context.force)?;
    }
    if context.kind == tch::Kind::Half {
        return Err(Error::Recipe("dtype: f16 gradients underflow without scaling; train in bf16 or f32".into()));
    }
    let teacher_dir = teacher.map(|teaching| teaching.folder.checkpoint.dir.as_path());
    OutputDir::refuse_inputs(out.dir, teacher_dir.into_iter().chain([start.dir.as_path()]))?;
    let reading = setup.reading(2, context.seed);
    for data in [&setup.data, &setup.eval_data] {
        let files = files_of(data, context.registry, &reading)?;
        OutputDir::refuse_inputs(out.dir, files.iter().map(PathBuf::as_path))?;
    }
    Ok(())
}

fn feed(context: &Context, setup: &Setup, start: &Start, tokenizer: &Arc<Tokenizer>, out: &Output) -> Result<Feed> {
    let seq_len = seq_len_or_default(setup.seq_len, &start.blueprint, tokenizer);
    let reading = setup.reading(seq_len, context.seed);
    let (specs, registry) = (setup.data.as_slice(), context.registry);
    let options = FeedOptions { reading: &reading, specs, tokenizer, registry, block_tokens: BLOCK_TOKENS };
    let cursor = if out.resume { saved_cursor(out.dir) } else { None };
    Feed::open(&options, cursor.as_ref())
}

fn summary(outcome: &Outcome, blueprint: &Blueprint, out_dir: &Path) -> Value {
    json!({
        "out": out_dir,
        "n_params": blueprint.n_params(),
        "n_steps": outcome.n_steps,
        "n_planned": outcome.n_planned,
        "n_tokens": outcome.n_tokens,
        "loss": outcome.loss,
        "n_skipped": outcome.n_skipped,
        "best": outcome.best,
        "tokens_per_second": outcome.tokens_per_second,
        "memory": { "predicted_bytes": outcome.memory_bytes, "peak_bytes": peak_bytes() },
        "complete": outcome.is_complete(),
        "interrupted": outcome.is_interrupted,
    })
}
