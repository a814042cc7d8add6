//! The field of a search: candidates as views over one teacher, measured and trained side by side.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use tch::Device;

use super::super::card::name_of;
use super::super::context::{Context, seq_len_or_default};
use super::super::identity::identity_of;
use super::super::losses::objective;
use super::super::marks::{by_content, decide_nothing};
use super::super::places::refuse_places;
use super::super::planning::scores_of;
use super::super::reconstruction::ReconstructOptions;
use super::super::score::scores_path;
use super::super::teacher_source::TeacherSource;
use super::super::train::identity;
use super::options::{Found, SearchOptions};
use super::prepare::{eval_windows, losses, reconstruction, refuse};
use super::record::{Entry, Place, Record, ZeroShot};
use super::{by_label, entries, start};
use crate::data::{BLOCK_TOKENS, DataLoader, LoaderOptions, Tokenizer};
use crate::memory::available_bytes;
use crate::search::Halving;
use crate::train::{
    HeldOut, Learner, Objective, Teacher, Trainer, clear_state, evaluate_all, saved_cursor,
};
use minitron_core::checkpoint::Identity;
use minitron_core::digest;
use minitron_core::error::{Error, IoContext, Result};
use minitron_core::model::Transformer;
use minitron_core::output::OutputDir;
use minitron_core::plan::{Plan, Rankings};
use minitron_core::reconstruct::StudentEditor;
use minitron_core::registry::PluginSpec;
use minitron_core::spec::{HIDDEN, ModelSpec, PruneGroup};
use minitron_core::windows::{Task, Tokenize, Windows};

/// Bytes of a candidate that learns, for each of its parameters: weight, gradient, two moments, and
/// what allocators keep back (19 to 20 measured, 4 to 32 candidates of 4.3M).
const BYTES_PER_PARAM: u64 = 20;
/// Share of the free memory that candidates may take where no limit is given: the rest is for
/// teacher and activations.
const SHARE_OF_FREE: f64 = 0.5;
/// Evaluations in a candidate's whole training where none are asked for.
const EVALUATIONS: u64 = 20;

/// Candidates, and all that they share.
pub(super) struct Field<'a> {
    pub context: &'a Context<'a>,
    pub options: &'a SearchOptions,
    /// Steps of a candidate that stays to the end.
    pub n_steps: u64,
    /// Steps between evaluations.
    pub every: u64,
    pub tokens_per_step: u64,
    pub(super) rankings: Rankings,
    space: minitron_core::plan::Space,
    pub(super) source: Identity,
    pub(super) teaching: TeacherSource,
    pub(super) losses: Vec<PluginSpec>,
    tokenizer: Arc<Tokenizer>,
    reconstruction: ReconstructOptions,
    reconstruct_windows: Option<Windows>,
    eval_windows: Windows,
    out: &'a Path,
}

/// What a group of candidates came to.
pub(super) struct Learned {
    /// By candidate: why it went no further.
    pub failures: Vec<Option<String>>,
    pub teacher_s: f64,
    pub spared_s: f64,
    pub is_interrupted: bool,
}

impl<'a> Field<'a> {
    /// Finds the candidates, checks all options, and starts the folder or goes on in it.
    pub fn open(
        context: &'a Context<'a>,
        options: &'a SearchOptions,
        out: &'a Path,
        resume: bool,
    ) -> Result<(Self, Record)> {
        if !(resume && out.join("search.json").is_file()) {
            OutputDir::refuse_existing(out, context.force)?;
        }
        refuse(context, options)?;
        let found = options.survey(context)?;
        let folder = context.open_to_run(&options.model)?;
        refuse_places(
            context,
            &options.setup,
            options.asked.teacher_cache.as_deref(),
            out,
        )?;
        OutputDir::refuse_inputs(out, [folder.checkpoint.dir.as_path()])?;
        let groups: Vec<PruneGroup> =
            context.groups(&context.axes(&options.axes)?, &folder.spec)?;
        let path = scores_path(&options.scores)?;
        OutputDir::refuse_inputs(out, [path.as_path()])?;
        let source = identity_of(&folder)?;
        let scores = scores_of(context, &path, &source, options.asked.any_model)?;
        let rankings = Rankings::new(&scores, &groups, &options.by)?;
        let tokenizer = Arc::new(context.reader(&folder, &options.setup.text)?);
        let reconstruction = reconstruction(options);
        let reconstruct_windows = reconstruction.windows(context, &folder, false, Some(out))?;
        let eval_windows = eval_windows(context, options, &folder, &tokenizer)?;
        let losses = losses(context, options);
        let teaching = TeacherSource::new(
            name_of(&options.model, &folder.checkpoint.dir),
            folder,
            &options.asked,
        )?;
        let mut field = Field {
            context,
            options,
            n_steps: 0,
            every: 1,
            tokens_per_step: 1,
            rankings,
            space: found.space.clone(),
            source,
            teaching,
            losses,
            tokenizer,
            reconstruction,
            reconstruct_windows,
            eval_windows,
            out,
        };
        let loader = field.loader(&[])?;
        let settings = options.setup.settings(context.seed);
        settings.check()?;
        field.n_steps = settings.schedule(loader.mean_width()).n_steps;
        field.tokens_per_step = settings.tokens_per_step(loader.mean_width());
        field.every = options
            .setup
            .eval_every
            .unwrap_or(field.n_steps / EVALUATIONS)
            .max(1);
        let n_screened = options
            .screen
            .unwrap_or(usize::MAX)
            .clamp(1, found.candidates.len().max(1));
        let halving = Halving {
            n_rungs: options.rungs,
            keep: options.keep_share,
        };
        halving.rungs(n_screened, field.n_steps, field.every)?;
        // Losses that do not exist, or that the teacher's cache cannot serve.
        let of_source = field.objective(&field.teaching.folder.spec, &Plan::default(), true)?;
        field.teaching.corrected(context, &of_source)?;
        let fresh = field.record(&found, &loader, &digest::of_file(&path)?)?;
        let record = start(context, out, resume, fresh)?;
        Ok((field, record))
    }

    fn record(&self, found: &Found, loader: &DataLoader, scores: &str) -> Result<Record> {
        let folder = &self.teaching.folder;
        let bytes_per_param = folder.n_bytes() as f64 / folder.spec.n_params().max(1) as f64;
        let bytes = |found: &Found, idx: usize| {
            let candidate = &found.candidates[idx];
            let sizes = || candidate.sizes.clone();
            self.options
                .bytes_of(&found.spec, candidate.n_params, bytes_per_param, sizes)
        };
        let how = serde_json::to_value(self.options).unwrap_or_default();
        let mut deciding = how.clone();
        if let Some(options) = deciding.as_object_mut() {
            let nothing = [decide_nothing("search"), by_content("search")].concat();
            options.retain(|key, _| !nothing.contains(key));
        }
        let inputs = json!([
            env!("CARGO_PKG_VERSION"),
            deciding,
            scores,
            self.identity(loader, "")?,
            self.context.seed,
            self.reconstruct_windows.as_ref().map(Windows::digest),
            PluginSpec::digests(&self.options.heal)?,
        ]);
        Ok(Record {
            format: 1,
            minitron: env!("CARGO_PKG_VERSION").to_owned(),
            inputs: digest::of_text(&inputs.to_string()),
            model: self.options.model.clone(),
            weights: self.source.weights.clone(),
            options: how,
            n_params_source: found.spec.n_params(),
            target: found.target.clone(),
            seed: self.context.seed,
            grid: Some(found.survey.clone()),
            candidates: entries(found, &bytes),
            ..Record::default()
        })
    }

    /// Facts that a resumed candidate must share.
    fn identity(&self, loader: &DataLoader, student: &str) -> Result<Value> {
        let held_out = (Some(&self.eval_windows), Some(self.every));
        identity(
            self.context,
            &self.losses,
            loader,
            held_out,
            student,
            Some(&self.teaching),
        )
    }

    /// Candidates in turns whose memory fits.
    pub fn groups(&self, candidates: &[usize], record: &Record) -> Vec<Vec<usize>> {
        // What is free on a CUDA device is not known here.
        let free = || match self.context.device {
            Device::Cpu => available_bytes().map(|free| (free as f64 * SHARE_OF_FREE) as u64),
            _ => Some(0),
        };
        let limit = self
            .options
            .max_memory
            .map(|bytes| bytes.0)
            .or_else(free)
            .unwrap_or(u64::MAX);
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut taken = 0_u64;
        for &idx in candidates {
            let bytes = record.candidates[idx]
                .n_params
                .saturating_mul(BYTES_PER_PARAM);
            match groups
                .last_mut()
                .filter(|_| taken.saturating_add(bytes) <= limit)
            {
                Some(group) => group.push(idx),
                None => {
                    taken = 0;
                    groups.push(vec![idx]);
                }
            }
            taken = taken.saturating_add(bytes);
        }
        groups
    }

    fn plan(&self, entry: &Entry) -> Result<Plan> {
        self.space
            .plan(&entry.sizes, &self.rankings, &self.teaching.folder.spec)
    }

    /// A candidate as a view, reconstructed.
    pub(super) fn editor(&self, entry: &Entry) -> Result<StudentEditor<'_>> {
        let ranked = (self.plan(entry)?, Some(&self.rankings));
        self.reconstruction.editor(
            self.context,
            &self.teaching.folder,
            ranked,
            self.reconstruct_windows.as_ref(),
        )
    }

    fn objective(&self, student: &ModelSpec, plan: &Plan, is_turned: bool) -> Result<Objective> {
        // Components of a turned stream are no channels of the teacher.
        let kept = plan
            .kept
            .get(HIDDEN)
            .filter(|_| !is_turned)
            .map(Vec::as_slice);
        let teacher = Some(&self.teaching.folder.spec);
        let objective = objective(self.context, &self.losses, student, teacher, kept)?;
        Ok(Objective {
            recompute: self.options.setup.recompute,
            ..objective
        })
    }

    /// Models and objectives of a group, as they are before training.
    pub(super) fn load(
        &self,
        group: &[usize],
        record: &Record,
        trainable: bool,
    ) -> Result<Vec<(Transformer, Objective)>> {
        let load = |&idx: &usize| {
            let editor = self.editor(&record.candidates[idx])?;
            let model = self
                .context
                .load(&editor.student()?, editor.spec(), trainable)?;
            let objective = self.objective(
                editor.spec(),
                editor.plan(),
                editor.hidden_basis().is_some(),
            )?;
            Ok((model, objective))
        };
        group.iter().map(load).collect()
    }

    fn teacher(
        &self,
        models: &[(Transformer, Objective)],
    ) -> Result<Option<Box<dyn Teacher + '_>>> {
        let (_, objective) = models
            .first()
            .ok_or_else(|| Error::Internal("a search without candidates".into()))?;
        self.teaching.teacher(self.context, objective, None)
    }

    fn task(&self) -> Result<Task> {
        Task::of_model(
            &self.teaching.folder.spec.options,
            self.tokenizer.mask(),
            self.context.seed,
        )
    }

    fn held_out(&self) -> HeldOut<'_> {
        HeldOut {
            every: Some(self.every),
            ..self.options.setup.held_out(&self.eval_windows)
        }
    }

    /// Held-out losses of a group without any training.
    pub fn measure(&self, group: &[usize], record: &Record) -> Result<Vec<ZeroShot>> {
        let models = self.load(group, record, false)?;
        let mut teacher = self.teacher(&models)?;
        let subjects = models
            .iter()
            .map(|(model, objective)| (model, objective))
            .collect();
        self.context.progress.note(&format!(
            "evaluating {} candidates before training",
            group.len()
        ));
        let found = evaluate_all(
            subjects,
            teacher.as_deref_mut(),
            self.task()?,
            &self.held_out(),
        )?;
        let label =
            |(found, (_, objective)): (crate::train::HeldOutLoss, &(Transformer, Objective))| {
                ZeroShot {
                    loss: Some(found.value()).filter(|loss| loss.is_finite()),
                    rank: 0,
                    terms: by_label(objective.labels(), &found.terms),
                }
            };
        Ok(found.into_iter().zip(&models).map(label).collect())
    }

    /// Trains a group side by side up to a step.
    pub fn train(&self, group: &[usize], record: &Record, until: u64) -> Result<Learned> {
        let models = self.load(group, record, true)?;
        let run = self.run(group, record, &models, until)?;
        let is_interrupted = run
            .learners
            .iter()
            .flatten()
            .any(|(outcome, _)| outcome.n_steps < until);
        let failures = run
            .learners
            .into_iter()
            .map(|learned| learned.err().map(|error| error.to_string()))
            .collect();
        Ok(Learned {
            failures,
            teacher_s: run.teacher_s,
            spared_s: run.spared_s,
            is_interrupted,
        })
    }

    pub(super) fn run(
        &self,
        group: &[usize],
        record: &Record,
        models: &[(Transformer, Objective)],
        until: u64,
    ) -> Result<crate::train::Run> {
        let dirs: Vec<PathBuf> = group
            .iter()
            .map(|&idx| self.dir(&record.candidates[idx].name))
            .collect();
        let setup = &self.options.setup;
        let loader = RefCell::new(self.loader(&dirs)?);
        let mut learners = Vec::new();
        for ((&idx, dir), (student, objective)) in group.iter().zip(&dirs).zip(models) {
            let entry = &record.candidates[idx];
            let what = json!([
                self.teaching.digest,
                self.plan(entry)?.kept,
                self.options.heal
            ]);
            let identity = self.identity(&loader.borrow(), &digest::of_text(&what.to_string()))?;
            learners.push(Learner {
                student,
                objective,
                identity,
                out_dir: dir,
                write_best: None,
            });
        }
        let trainer = Trainer {
            learners: &learners,
            teacher: self.teacher(models)?.map(RefCell::new),
            correction: None,
            loader: &loader,
            task: self.task()?,
            settings: &setup.settings(self.context.seed),
            saving: setup.saving(),
            held_out: Some(self.held_out()),
            max_skipped: setup.max_skipped,
            stop_after: Some(until),
            progress: self.context.progress,
            interrupt: self.context.interrupt,
        };
        trainer.run(true)
    }

    /// The training text, at the place of candidates that all have one.
    fn loader(&self, dirs: &[PathBuf]) -> Result<DataLoader> {
        let (setup, spec) = (&self.options.setup, &self.teaching.folder.spec);
        let seq_len = seq_len_or_default(setup.seq_len, spec, &self.tokenizer);
        let reading = setup.reading(seq_len, self.context.seed);
        let (specs, registry) = (setup.data.as_slice(), self.context.registry);
        let options = LoaderOptions {
            reading: &reading,
            specs,
            tokenizer: &self.tokenizer,
            registry,
            block_tokens: BLOCK_TOKENS,
        };
        let cursors: Option<Vec<_>> = dirs.iter().map(|dir| saved_cursor(dir)).collect();
        let cursor = cursors.and_then(|cursors| cursors.into_iter().next());
        DataLoader::open(&options, cursor.as_ref()).or_else(|error| match cursor {
            Some(_) => DataLoader::open(&options, None),
            None => Err(error),
        })
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.out.join("candidates").join(name)
    }

    /// Held-out losses that a candidate's metrics hold.
    pub fn curve(&self, name: &str) -> Result<Vec<Place>> {
        let path = self.dir(name).join("metrics.jsonl");
        let text = fs::read_to_string(&path).at_path(&path)?;
        let place = |line: &str| {
            let line: Value = serde_json::from_str(line).ok()?;
            let (step, tokens) = (line["step"].as_u64()?, line["n_tokens"].as_u64()?);
            Some(Place {
                step,
                tokens,
                loss: line["eval/loss"].as_f64()?,
            })
        };
        Ok(text.lines().filter_map(place).collect())
    }

    /// States of those that left are not needed again.
    pub fn forget(&self, record: &Record) -> Result<()> {
        let has_left = |entry: &&Entry| entry.eliminated_at.is_some() || entry.failure.is_some();
        record
            .candidates
            .iter()
            .filter(has_left)
            .try_for_each(|entry| clear_state(&self.dir(&entry.name)))
    }
}
