//! The field of a search: candidates as views over one teacher, measured and trained side by side.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::Device;

use super::options::SearchOptions;
use super::record::{CurvePlace, Entry, SearchRecord, ZeroShot};
use crate::data::{BLOCK_TOKENS, DataLoader, LoaderOptions, Tokenizer};
use crate::jobs::context::{Context, seq_len_or_default};
use crate::jobs::prune::reconstruction::ReconstructOptions;
use crate::jobs::train::identity::identity;
use crate::jobs::train::losses::objective;
use crate::jobs::train::teacher_source::TeacherSource;
use crate::memory::available_bytes;
use crate::ranks::Ranks;
use crate::train::{
    HeldOut, Learner, Objective, Sharding, Teacher, Trainer, clear_state, evaluate_all,
    saved_cursor,
};
use minitron_core::calibrate::Alone;
use minitron_core::checkpoint::Identity;
use minitron_core::digest;
use minitron_core::error::{Error, IoContext, Result};
use minitron_core::model::Transformer;
use minitron_core::plan::{Plan, Rankings, Space};
use minitron_core::reconstruct::{KeptUnits, StudentEditor};
use minitron_core::registry::PluginSpec;
use minitron_core::spec::{DEPTH, ModelSpec};
use minitron_core::windows::{Task, Tokenize, Windows};

/// Bytes of a candidate that learns, for each of its parameters: weight, gradient, two moments, and
/// what allocators keep back (19 to 20 measured, 4 to 32 candidates of 4.3M).
const BYTES_PER_PARAM: u64 = 20;
/// Share of the free memory that candidates may take where no limit is given: the rest is for
/// teacher and activations.
const SHARE_OF_FREE: f64 = 0.5;

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
    pub(super) space: Space,
    pub(super) source: Identity,
    pub(super) teaching: TeacherSource,
    pub(super) losses: Vec<PluginSpec>,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) reconstruction: ReconstructOptions,
    pub(super) reconstruct_windows: Option<Windows>,
    pub(super) eval_windows: Windows,
    pub(super) out: &'a Path,
}

/// What a group of candidates came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Learned {
    /// By candidate: why it went no further.
    pub failures: Vec<Option<String>>,
    pub teacher_s: f64,
    pub spared_s: f64,
    pub is_interrupted: bool,
}

impl Field<'_> {
    /// Facts that a resumed candidate must share.
    pub(super) fn identity(&self, loader: &DataLoader, student: &str) -> Result<Value> {
        let held_out = (Some(&self.eval_windows), Some(self.every));
        let teaching = Some(&self.teaching);
        identity(
            self.context,
            &self.losses,
            loader,
            held_out,
            student,
            teaching,
        )
    }

    /// Candidates in turns whose memory fits, and so many that each rank has some.
    pub fn groups(
        &self,
        candidates: &[usize],
        record: &SearchRecord,
        n_ranks: usize,
    ) -> Vec<Vec<usize>> {
        let limit = self.memory_limit() / n_ranks.max(1) as u64;
        let most = candidates.len().div_ceil(n_ranks.max(1));
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut taken = 0_u64;
        for &idx in candidates {
            let n_params = record.candidates[idx].n_params;
            let bytes = n_params.saturating_mul(BYTES_PER_PARAM);
            let has_room = taken.saturating_add(bytes) <= limit;
            match groups.last_mut() {
                Some(group) if has_room && group.len() < most => group.push(idx),
                _ => {
                    taken = 0;
                    groups.push(vec![idx]);
                }
            }
            taken = taken.saturating_add(bytes);
        }
        groups
    }

    /// Bytes that candidates may take side by side.
    fn memory_limit(&self) -> u64 {
        if let Some(bytes) = self.options.max_memory {
            return bytes.0;
        }
        match self.context.device {
            Device::Cpu => {
                available_bytes().map_or(u64::MAX, |free| (free as f64 * SHARE_OF_FREE) as u64)
            }
            // What is free on a CUDA device is not known here.
            _ => 0,
        }
    }

    fn plan(&self, entry: &Entry) -> Result<Plan> {
        let spec = &self.teaching.folder.spec;
        let mut plan = self.space.plan(&entry.sizes, &self.rankings, spec)?;
        if let Some(layers) = &entry.layers {
            plan.kept.insert(DEPTH.to_owned(), layers.clone());
        }
        Ok(plan)
    }

    /// A candidate as a view, reconstructed.
    pub(super) fn editor(&self, entry: &Entry) -> Result<StudentEditor<'_>> {
        let ranked = (self.plan(entry)?, Some(&self.rankings));
        self.reconstruction.editor(
            self.context,
            &self.teaching.folder,
            ranked,
            self.reconstruct_windows.as_ref(),
            (&Alone, None),
        )
    }

    pub(super) fn objective(&self, student: &ModelSpec, kept: &KeptUnits) -> Result<Objective> {
        let teacher = Some(&self.teaching.folder.spec);
        let objective = objective(self.context, &self.losses, student, teacher, Some(kept))?;
        Ok(Objective {
            recompute: self.options.training.recompute,
            ..objective
        })
    }

    /// Models and objectives of a group, as they are before training.
    pub(super) fn load(
        &self,
        group: &[usize],
        record: &SearchRecord,
        trainable: bool,
    ) -> Result<Vec<(Transformer, Objective)>> {
        let mut models = Vec::with_capacity(group.len());
        for &idx in group {
            let editor = self.editor(&record.candidates[idx])?;
            let spec = editor.spec();
            let model = self.context.load(&editor.student()?, spec, trainable)?;
            models.push((model, self.objective(spec, &editor.kept_units())?));
        }
        Ok(models)
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
            ..self.options.training.held_out(&self.eval_windows)
        }
    }

    /// Held-out losses of a group without any training.
    pub fn measure(&self, group: &[usize], record: &SearchRecord) -> Result<Vec<ZeroShot>> {
        let models = self.load(group, record, false)?;
        let mut teacher = self.teacher(&models)?;
        let mut subjects = Vec::new();
        for (model, objective) in &models {
            subjects.push((model, objective));
        }
        let message = format!("evaluating {} candidates before training", group.len());
        self.context.progress.note(&message);
        let (task, held_out) = (self.task()?, self.held_out());
        let losses = evaluate_all(subjects, teacher.as_deref_mut(), task, &held_out)?;
        let mut measured = Vec::new();
        for (found, (_, objective)) in losses.into_iter().zip(&models) {
            measured.push(ZeroShot {
                loss: Some(found.value()).filter(|loss| loss.is_finite()),
                rank: 0,
                terms: by_label(objective.labels(), &found.terms),
            });
        }
        Ok(measured)
    }

    /// Trains a group side by side up to a step.
    pub fn train(&self, group: &[usize], record: &SearchRecord, until: u64) -> Result<Learned> {
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
        record: &SearchRecord,
        models: &[(Transformer, Objective)],
        until: u64,
    ) -> Result<crate::train::Run> {
        let dirs: Vec<PathBuf> = group
            .iter()
            .map(|&idx| self.dir(&record.candidates[idx].name))
            .collect();
        let training = &self.options.training;
        let loader = RefCell::new(self.loader(&dirs)?);
        let mut learners = Vec::new();
        for ((&idx, dir), (student, objective)) in group.iter().zip(&dirs).zip(models) {
            let entry = &record.candidates[idx];
            let kept = self.plan(entry)?.kept;
            let what = json!([self.teaching.digest, kept, self.options.reconstruct]);
            let identity = self.identity(&loader.borrow(), &digest::of_text(&what.to_string()))?;
            learners.push(Learner {
                student,
                layers: None,
                objective,
                identity,
                kl_at_start: None,
                out_dir: dir,
                write_best: None,
            });
        }
        let trainer = Trainer {
            learners: &learners,
            teacher: self.teacher(models)?.map(RefCell::new),
            correction: None,
            loader: &loader,
            long: None,
            task: self.task()?,
            settings: &training.settings(self.context.seed),
            saving: training.saving(),
            held_out: Some(self.held_out()),
            max_skipped: training.max_skipped,
            stop_after: Some(until),
            ranks: Ranks::alone(),
            sharding: Sharding::None,
            progress: self.context.progress,
            interrupt: self.context.interrupt,
        };
        trainer.run(true)
    }

    /// The training text, at the place of candidates that all have one.
    pub(super) fn loader(&self, dirs: &[PathBuf]) -> Result<DataLoader> {
        let (training, spec) = (&self.options.training, &self.teaching.folder.spec);
        let seq_len = seq_len_or_default(training.seq_len, spec, &self.tokenizer);
        let reading = training.reading(seq_len, self.context.seed);
        let (specs, registry) = (training.data.as_slice(), self.context.registry);
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
    pub fn curve(&self, name: &str) -> Result<Vec<CurvePlace>> {
        let path = self.dir(name).join("metrics.jsonl");
        let text = fs::read_to_string(&path).at_path(&path)?;
        Ok(text.lines().filter_map(place_of).collect())
    }

    /// States of those that left are not needed again.
    pub fn forget(&self, record: &SearchRecord) -> Result<()> {
        for entry in &record.candidates {
            if entry.eliminated_at.is_some() || entry.failure.is_some() {
                clear_state(&self.dir(&entry.name))?;
            }
        }
        Ok(())
    }
}

/// What a line of a candidate's metrics says; none where it is of another kind.
fn place_of(line: &str) -> Option<CurvePlace> {
    let line: Value = serde_json::from_str(line).ok()?;
    Some(CurvePlace {
        step: line["step"].as_u64()?,
        tokens: line["n_tokens"].as_u64()?,
        loss: line["eval/loss"].as_f64()?,
    })
}

/// A loss of every term by its name.
fn by_label<'l>(labels: impl Iterator<Item = &'l str>, values: &[f64]) -> BTreeMap<String, f64> {
    labels
        .map(str::to_owned)
        .zip(values.iter().copied())
        .filter(|(_, value)| value.is_finite())
        .collect()
}
