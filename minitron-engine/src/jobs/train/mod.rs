//! `train` and `distill`: one loop, with or without a teacher.

mod finish;
pub(crate) mod identity;
mod loading;
pub(crate) mod losses;
pub(crate) mod options;
pub(crate) mod places;
mod rate;
pub(crate) mod settings;
pub(crate) mod start;
pub(crate) mod student;
pub(crate) mod teacher_source;
pub(crate) mod teaching;

pub use options::TrainingOptions;
pub use teacher_source::TeacherOptions;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::identity::identity;
use self::losses::objective;
use self::places::refuse;
use self::rate::Before;
use self::start::{WeightStart, shards_layers};
use self::student::{StudentFolder, card_of, modules_of};
use self::teacher_source::TeacherSource;
use crate::data::{DataLoader, DataSpec, are_texts};
use crate::jobs::card::{self, Card};
use crate::jobs::context::Context;
use crate::jobs::eval::kept_units;
use crate::jobs::identity::name_of;
use crate::jobs::vocabulary::{Compared, Model, Vocabulary};
use crate::train::{
    Correction, Learner, LongWindows, MasterWeights, Objective, StartRate, Teacher, Trainer,
};
use minitron_core::checkpoint::MemorySource;
use minitron_core::error::{Error, Result};
use minitron_core::model::Transformer;
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
    pub training: TrainingOptions,
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
    pub teacher_options: TeacherOptions,
    /// The rest.
    #[serde(flatten)]
    #[command(flatten)]
    pub training: TrainingOptions,
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
    let losses = match options.training.losses.as_slice() {
        [] => context.defaults.training_losses(),
        named => named.to_vec(),
    };
    let training = Training {
        context,
        options: &options.training,
        losses: &losses,
        out_dir: out,
        resume,
    };
    training.run(start, None)
}

/// Trains a student to give its teacher's distribution.
pub fn distill(
    context: &Context,
    options: &DistillOptions,
    out: &Path,
    resume: bool,
) -> Result<Value> {
    let folder = context.open_to_run(&options.teacher)?;
    let name = card::name_of(&options.teacher, &folder.checkpoint.dir);
    let mut teacher = TeacherSource::new(name, folder, &options.teacher_options)?;
    teacher.is_sharded = shards_layers(context, &options.training);
    let start = WeightStart::folder(&options.student, context.open_to_run(&options.student)?);
    let losses = match options.training.losses.as_slice() {
        [] => context.defaults.distillation_losses(),
        named => named.to_vec(),
    };
    let training = Training {
        context,
        options: &options.training,
        losses: &losses,
        out_dir: out,
        resume,
    };
    training.run(start, Some(teacher))
}

/// One training: what it is asked for, and where it goes.
struct Training<'a> {
    context: &'a Context<'a>,
    options: &'a TrainingOptions,
    losses: &'a [PluginSpec],
    out_dir: &'a Path,
    resume: bool,
}

impl Training<'_> {
    fn run(&self, mut start: WeightStart, mut teacher: Option<TeacherSource>) -> Result<Value> {
        let (context, options, out_dir) = (self.context, self.options, self.out_dir);
        let _claim = self.claim(&start, teacher.as_ref())?;
        let vocabulary = self.vocabulary(&start, teacher.as_mut())?;
        let tokenizer = Arc::new(vocabulary.tokenizer.at(options.text.now()?));
        options.settings(context.seed).check()?;
        let teacher = teacher.as_ref();
        let objective = self.objective(&start, teacher)?;
        let loader = RefCell::new(self.loader(&start, &tokenizer)?);
        let long_loader = self.long_loader(&start, &tokenizer)?.map(RefCell::new);
        let long = self.long(long_loader.as_ref(), &start, &tokenizer)?;
        let eval_windows = options.eval_windows(context, &start.spec, &tokenizer)?;
        let corrected = self.corrected(teacher, &objective)?;
        let mut taught_by = self.taught_by(teacher, &objective, corrected.as_ref())?;
        let by_labels = self.by_labels(&start.spec)?;
        let correction = correction(teacher, corrected.as_ref(), &by_labels);
        let (student, layers) = start.load(context, options)?;
        // Fresh weights would stay in memory beside the model's own.
        start.source = Box::new(MemorySource::default());
        let task = Task::of_model(&start.spec.options, tokenizer.mask(), context.seed)?;
        let identity = self.identity((&loader, long), eval_windows.as_ref(), &start, teacher)?;
        let text = (&loader, task);
        let before = Before::new(&student, taught_by.as_deref_mut(), text, &identity);
        let (rate, settings) = self.rate(&start, teacher, before)?;
        let (modules, card) = (modules_of(&start)?, self.card(&start, teacher, rate)?);
        let borrowed_from = vocabulary.borrowed_from.as_deref();
        let folder = StudentFolder::of(&start, (&modules, &card), borrowed_from, &student);
        let write_best = |masters: &MasterWeights| folder.write_best(masters, out_dir, context);
        let learner = Learner {
            student: &student,
            layers: layers.as_deref(),
            objective: &objective,
            identity,
            kl_at_start: rate.kl,
            out_dir,
            write_best: Some(&write_best),
        };
        let trainer = Trainer {
            learners: &[learner],
            teacher: taught_by.map(RefCell::new),
            correction,
            loader: &loader,
            long,
            task,
            settings: &settings,
            saving: options.saving(),
            held_out: eval_windows
                .as_ref()
                .map(|windows| options.held_out(windows)),
            max_skipped: options.max_skipped,
            stop_after: options.stop_after,
            ranks: context.ranks,
            sharding: options.shard,
            progress: context.progress,
            interrupt: context.interrupt,
        };
        self.finish(&trainer, &folder, teacher, rate)
    }

    /// The right to write, which the first rank has for all.
    fn claim(
        &self,
        start: &WeightStart,
        teacher: Option<&TeacherSource>,
    ) -> Result<Option<OutputLock>> {
        let mut claim = None;
        self.context.ranks.first(|| {
            let place = (self.out_dir, self.resume);
            refuse(self.context, self.options, start, teacher, place)?;
            claim = Some(OutputLock::of(self.out_dir)?);
            Ok(())
        })?;
        Ok(claim)
    }

    /// The tokenizer in use; a teacher is asked over the ids that both models have.
    fn vocabulary(
        &self,
        start: &WeightStart,
        teacher: Option<&mut TeacherSource>,
    ) -> Result<Vocabulary> {
        let (context, options) = (self.context, self.options);
        let student = Model {
            dir: &start.dir,
            config: &start.config,
            spec: &start.spec,
        };
        let Some(teaching) = teacher else {
            return Vocabulary::open(context, student, None, (Compared::Nothing, false));
        };
        let data: Vec<DataSpec> = options
            .data
            .iter()
            .chain(&options.eval_data)
            .cloned()
            .collect();
        let is_text = are_texts(&data, &options.reading(2, context.seed), context.registry)?;
        let compared = if is_text {
            Compared::Text
        } else {
            Compared::Tokens
        };
        let how = (compared, teaching.options.any_model);
        let found = Vocabulary::open(context, student, Some(&teaching.folder), how)?;
        teaching.vocab = found.n_shared;
        Ok(found)
    }

    fn objective(&self, start: &WeightStart, teacher: Option<&TeacherSource>) -> Result<Objective> {
        let (mut spec, mut kept) = (None, None);
        if let Some(TeacherSource { folder, .. }) = teacher {
            kept = kept_units(self.context, &start.dir, folder)?;
            spec = Some(&folder.spec);
        }
        let objective = objective(self.context, self.losses, &start.spec, spec, kept.as_ref())?;
        Ok(Objective {
            recompute: self.options.recompute,
            ..objective
        })
    }

    /// What a teacher learns by that is corrected: the text's own labels.
    fn by_labels(&self, student: &ModelSpec) -> Result<Objective> {
        let losses = self.context.defaults.training_losses();
        let objective = objective(self.context, &losses, student, None, None)?;
        Ok(Objective {
            recompute: self.options.recompute,
            ..objective
        })
    }

    fn corrected(
        &self,
        teacher: Option<&TeacherSource>,
        objective: &Objective,
    ) -> Result<Option<Transformer>> {
        let model = teacher.map(|teaching| teaching.corrected(self.context, objective));
        Ok(model.transpose()?.flatten())
    }

    fn taught_by<'t>(
        &'t self,
        teacher: Option<&'t TeacherSource>,
        objective: &Objective,
        corrected: Option<&'t Transformer>,
    ) -> Result<Option<Box<dyn Teacher + 't>>> {
        let asked = teacher.map(|teaching| teaching.teacher(self.context, objective, corrected));
        Ok(asked.transpose()?.flatten())
    }

    fn card(
        &self,
        start: &WeightStart,
        teacher: Option<&TeacherSource>,
        rate: StartRate,
    ) -> Result<Card> {
        card_of(
            self.context,
            self.options,
            start,
            (teacher, rate),
            self.losses,
        )
    }

    /// All that decides the result besides the settings, with the models' names for messages.
    fn identity(
        &self,
        (loader, long): (&RefCell<DataLoader>, Option<LongWindows>),
        eval_windows: Option<&Windows>,
        start: &WeightStart,
        teacher: Option<&TeacherSource>,
    ) -> Result<Value> {
        let held_out = (eval_windows, self.options.eval_every);
        let student = start.digest(self.context.seed)?;
        let (context, losses) = (self.context, self.losses);
        let mut identity = identity(
            context,
            losses,
            &loader.borrow(),
            held_out,
            &student,
            teacher,
        )?;
        if let (Some(stage), Some(long)) = (self.options.length_stage, long) {
            identity["length_stage"] = json!([stage, long.loader.borrow().digest()]);
        }
        let teacher = teacher.map(|teaching| name_of(&teaching.folder.checkpoint.dir));
        identity["names"] = json!({ "student": name_of(&start.dir), "teacher": teacher });
        Ok(identity)
    }
}

/// How the teacher learns on, where it does.
fn correction<'m>(
    teacher: Option<&TeacherSource>,
    corrected: Option<&'m Transformer>,
    by_labels: &'m Objective,
) -> Option<Correction<'m>> {
    let rate = teacher.and_then(|teaching| teaching.options.correct_teacher);
    corrected.map(|model| Correction {
        model,
        objective: by_labels,
        rate: rate.unwrap_or(1.0),
    })
}
