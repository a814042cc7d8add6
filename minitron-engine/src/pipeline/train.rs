//! `train` and `distill`: one loop, with or without a teacher.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::card;
use super::context::{Context, seq_len_or_default};
use super::eval::kept_hidden;
use super::identity::name_of;
use super::losses::objective;
use super::places::refuse;
use super::start::WeightStart;
use super::student::{StudentFolder, card_of, clear, measured, modules_of};
use super::teacher_source::{TeacherOptions, TeacherSource};
use super::training_options::TrainingOptions;
use super::vocabulary::{Compared, Model, Vocabulary};
use crate::data::{BLOCK_TOKENS, DataLoader, DataSpec, LoaderOptions, Tokenizer, are_texts};
use crate::memory::peak_bytes;
use crate::train::{Correction, Learner, MasterWeights, Objective, Outcome, Trainer, saved_cursor};
use minitron_core::checkpoint::MemorySource;
use minitron_core::error::{Error, Result};
use minitron_core::output::OutputLock;
use minitron_core::registry::PluginSpec;
use minitron_core::spec::ModelSpec;
use minitron_core::windows::{Task, Tokenize, Windows};

/// Options of `train`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Args)]
#[serde(default)]
pub struct TrainOptions {
    /// A config.json to start from random weights; the tokenizer beside it is used.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// A model to go on with: folder or hub id.
    #[arg(required_unless_present = "config", conflicts_with = "config")]
    pub model: Option<String>,
    /// The rest.
    #[serde(flatten)]
    #[command(flatten)]
    pub setup: TrainingOptions,
}

/// Options of `distill`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Args)]
#[serde(default)]
pub struct DistillOptions {
    /// The original: folder or hub id.
    #[arg(long)]
    pub teacher: String,
    /// What learns from it: folder or hub id.
    #[arg(long)]
    pub student: String,
    /// How the original is asked.
    #[serde(flatten)]
    #[command(flatten)]
    pub asked: TeacherOptions,
    /// The rest.
    #[serde(flatten)]
    #[command(flatten)]
    pub setup: TrainingOptions,
}

/// Trains from random weights, or goes on with a model, by the training losses.
pub fn train(context: &Context, options: &TrainOptions, out: &Path, resume: bool) -> Result<Value> {
    let start = match (&options.config, &options.model) {
        (Some(path), None) => WeightStart::fresh(context, path)?,
        (None, Some(model)) => WeightStart::folder(model, context.open_to_run(model)?),
        _ => {
            return Err(Error::Recipe(
                "give a config to start from random weights, or a model to go on with".into(),
            ));
        }
    };
    let losses = match options.setup.losses.as_slice() {
        [] => context.defaults.training_losses(),
        named => named.to_vec(),
    };
    run(
        context,
        &options.setup,
        start,
        None,
        &losses,
        TrainOutput { dir: out, resume },
    )
}

/// Trains a student to give its teacher's distribution.
pub fn distill(
    context: &Context,
    options: &DistillOptions,
    out: &Path,
    resume: bool,
) -> Result<Value> {
    let folder = context.open_to_run(&options.teacher)?;
    let teacher = TeacherSource::new(
        card::name_of(&options.teacher, &folder.checkpoint.dir),
        folder,
        &options.asked,
    )?;
    let start = WeightStart::folder(&options.student, context.open_to_run(&options.student)?);
    let losses = match options.setup.losses.as_slice() {
        [] => context.defaults.distillation_losses(),
        named => named.to_vec(),
    };
    run(
        context,
        &options.setup,
        start,
        Some(teacher),
        &losses,
        TrainOutput { dir: out, resume },
    )
}

struct TrainOutput<'a> {
    dir: &'a Path,
    resume: bool,
}

fn run(
    context: &Context,
    setup: &TrainingOptions,
    mut start: WeightStart,
    mut teacher: Option<TeacherSource>,
    losses: &[PluginSpec],
    out: TrainOutput,
) -> Result<Value> {
    refuse(
        context,
        setup,
        &start,
        teacher.as_ref(),
        (out.dir, out.resume),
    )?;
    let _claim = OutputLock::of(out.dir)?;
    let options = &start.spec.options;
    let Vocabulary {
        tokenizer,
        borrowed_from,
        ..
    } = vocabulary(context, setup, &start, teacher.as_mut())?;
    let tokenizer = Arc::new(tokenizer.at(setup.text.now()?));
    let settings = setup.settings(context.seed);
    settings.check()?;
    let objective = objective_of(context, setup, losses, &start, teacher.as_ref())?;
    let loader = RefCell::new(loader(context, setup, &start, &tokenizer, &out)?);
    let eval_windows = setup.eval_windows(context, &start.spec, &tokenizer)?;
    let asked = teacher.as_ref();
    let corrected = asked
        .map(|teaching| teaching.corrected(context, &objective))
        .transpose()?
        .flatten();
    let taught_by = asked
        .map(|teaching| teaching.teacher(context, &objective, corrected.as_ref()))
        .transpose()?;
    let rate = asked
        .and_then(|teaching| teaching.options.correct_teacher)
        .unwrap_or(1.0);
    let mut by_labels = self::objective(
        context,
        &context.defaults.training_losses(),
        &start.spec,
        None,
        None,
    )?;
    by_labels.recompute = setup.recompute;
    let correction = corrected.as_ref().map(|model| Correction {
        model,
        objective: &by_labels,
        rate,
    });
    let student = context.load(start.source.as_ref(), &start.spec, true)?;
    // Fresh weights would stay in memory beside the model's own.
    start.source = Box::new(MemorySource::default());
    let modules = modules_of(&start)?;
    let card = card_of(context, setup, &start, teacher.as_ref(), losses)?;
    let folder = StudentFolder::of(
        &start,
        (&modules, &card),
        borrowed_from.as_deref(),
        &student,
    );
    let write_best = |masters: &MasterWeights| folder.write(masters, &out.dir.join("best"), &[]);
    let held_out = (eval_windows.as_ref(), setup.eval_every);
    let identity = identity(
        context,
        losses,
        &loader.borrow(),
        held_out,
        &start.digest(context.seed)?,
        asked,
    )?;
    let learner = Learner {
        student: &student,
        objective: &objective,
        identity: with_names(identity, &start, asked),
        out_dir: out.dir,
        write_best: Some(&write_best),
    };
    let trainer = Trainer {
        learners: &[learner],
        teacher: taught_by.flatten().map(RefCell::new),
        correction,
        loader: &loader,
        task: Task::of_model(options, tokenizer.mask(), context.seed)?,
        settings: &settings,
        saving: setup.saving(),
        held_out: eval_windows.as_ref().map(|windows| setup.held_out(windows)),
        max_skipped: setup.max_skipped,
        stop_after: setup.stop_after,
        progress: context.progress,
        interrupt: context.interrupt,
    };
    finish(context, &trainer, &folder, teacher.as_ref(), &out)
}

/// The student's tokenizer, compared with its teacher's.
/// The tokenizer in use; a teacher is asked over the ids that both models have.
fn vocabulary(
    context: &Context,
    setup: &TrainingOptions,
    start: &WeightStart,
    teacher: Option<&mut TeacherSource>,
) -> Result<Vocabulary> {
    let student = Model {
        dir: &start.dir,
        config: &start.config,
        spec: &start.spec,
    };
    let Some(teaching) = teacher else {
        return Vocabulary::open(context, student, None, (Compared::Nothing, false));
    };
    let data: Vec<DataSpec> = setup.data.iter().chain(&setup.eval_data).cloned().collect();
    let is_text = are_texts(&data, &setup.reading(2, context.seed), context.registry)?;
    let compared = if is_text {
        Compared::Text
    } else {
        Compared::Tokens
    };
    let found = Vocabulary::open(
        context,
        student,
        Some(&teaching.folder),
        (compared, teaching.options.any_model),
    )?;
    teaching.vocab = found.n_shared;
    Ok(found)
}

fn objective_of(
    context: &Context,
    setup: &TrainingOptions,
    losses: &[PluginSpec],
    start: &WeightStart,
    teacher: Option<&TeacherSource>,
) -> Result<Objective> {
    let spec = teacher.map(|teaching| &teaching.folder.spec);
    let kept = teacher
        .map(|teaching| kept_hidden(context, &start.dir, &teaching.folder))
        .transpose()?
        .flatten();
    let objective = objective(context, losses, &start.spec, spec, kept.as_deref())?;
    Ok(Objective {
        recompute: setup.recompute,
        ..objective
    })
}

/// All that decides the result besides the settings.
pub(super) fn identity(
    context: &Context,
    losses: &[PluginSpec],
    loader: &DataLoader,
    (eval_windows, eval_every): (Option<&Windows>, Option<u64>),
    student: &str,
    teacher: Option<&TeacherSource>,
) -> Result<Value> {
    Ok(json!({
        "data": loader.digest(),
        "eval_data": eval_windows.map(|windows| json!([windows.digest(), eval_every])),
        "losses": losses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "student": student,
        "teacher": teacher.map(|teaching| teaching.digest.as_str()),
        "teacher_cache": teacher.and_then(TeacherSource::cached_as),
        "teacher_dtype": teacher.and_then(|teaching| teaching.options.teacher_dtype),
        "correct_teacher": teacher.and_then(|teaching| teaching.options.correct_teacher),
        "dtype": format!("{:?}", context.kind),
        "libraries": context.registry.libraries(),
        "files": PluginSpec::digests(losses)?,
    }))
}

/// Names of the models behind an identity's digests, for messages.
fn with_names(mut identity: Value, start: &WeightStart, teacher: Option<&TeacherSource>) -> Value {
    let teacher = teacher.map(|teaching| name_of(&teaching.folder.checkpoint.dir));
    identity["names"] = json!({ "student": name_of(&start.dir), "teacher": teacher });
    identity
}

/// Trains, and writes the student where nothing is left to do.
fn finish(
    context: &Context,
    trainer: &Trainer,
    folder: &StudentFolder,
    teacher: Option<&TeacherSource>,
    out: &TrainOutput,
) -> Result<Value> {
    trainer.check()?;
    // Nothing that was there goes before all that can be refused was.
    if !out.resume && out.dir.exists() {
        clear(out.dir)?;
    }
    let _listening = context.interrupt.listen();
    let (outcome, masters) = trainer.run(out.resume)?.single()?;
    if outcome.n_skipped > 0 {
        let (n_skipped, n_steps) = (outcome.n_skipped, outcome.n_steps);
        let message = format!(
            "{n_skipped} of {n_steps} steps changed nothing: their loss or gradient was not finite"
        );
        context.progress.warn(&message);
    }
    if outcome.is_complete() {
        if let (Some(teaching), Some(correction), Some(masters)) =
            (teacher, &trainer.correction, &masters.teacher)
        {
            teaching.write(
                correction.model,
                masters,
                folder.card,
                &out.dir.join("teacher"),
            )?;
        }
        folder.write_among(&masters.student, out.dir, &measured(out.dir))?;
    }
    Ok(summary(&outcome, &folder.student.spec, out.dir))
}

fn loader(
    context: &Context,
    setup: &TrainingOptions,
    start: &WeightStart,
    tokenizer: &Arc<Tokenizer>,
    out: &TrainOutput,
) -> Result<DataLoader> {
    let seq_len = seq_len_or_default(setup.seq_len, &start.spec, tokenizer);
    let reading = setup.reading(seq_len, context.seed);
    let (specs, registry) = (setup.data.as_slice(), context.registry);
    let options = LoaderOptions {
        reading: &reading,
        specs,
        tokenizer,
        registry,
        block_tokens: BLOCK_TOKENS,
    };
    let cursor = if out.resume {
        saved_cursor(out.dir)
    } else {
        None
    };
    // The state may be damaged where it says the place: what is resumed in the end says it again.
    let loader = DataLoader::open(&options, cursor.as_ref()).or_else(|error| match cursor {
        Some(_) => DataLoader::open(&options, None),
        None => Err(error),
    })?;
    context.warn_of_date(tokenizer);
    Ok(loader)
}

fn summary(outcome: &Outcome, spec: &ModelSpec, out_dir: &Path) -> Value {
    json!({
        "out": out_dir,
        "n_params": spec.n_params(),
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
