//! The loop.

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::objective::Objective;
use super::optimizer::{AdamW, Masters};
use super::resume::{self, State};
use super::settings::TrainSettings;
use super::teacher::{Loaded, Teacher};
use crate::data::{Feed, Task};
use crate::error::{Error, IoContext, Result};
use crate::model::Transformer;
use crate::progress::Progress;

const METRICS: &str = "metrics.jsonl";

/// One training run.
#[derive(Debug)]
pub struct Trainer<'a> {
    /// Loaded trainable; changed in place.
    pub student: &'a Transformer,
    /// Needed where a loss needs it.
    pub teacher: Option<&'a Transformer>,
    /// What to learn from.
    pub feed: &'a RefCell<Feed>,
    /// Next tokens or masked ones.
    pub task: Task,
    /// What to minimise.
    pub objective: &'a Objective,
    /// How.
    pub settings: &'a TrainSettings,
    /// Facts beyond the settings that a resumed run must share: data, models, losses.
    pub identity: Value,
    /// Folder for metrics.jsonl and checkpoint/.
    pub out_dir: &'a Path,
    /// Steps between checkpoints; a tenth of the run where not given.
    pub checkpoint_every: Option<u64>,
    /// Stop after this step although the run is longer; `--resume` goes on.
    pub stop_after: Option<u64>,
    /// Where to report.
    pub progress: &'a dyn Progress,
}

/// How a run went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Steps done, earlier runs included.
    pub n_steps: u64,
    /// Steps planned.
    pub n_planned: u64,
    /// Tokens seen, earlier runs included.
    pub n_tokens: u64,
    /// Mean loss of the last tenth of this run's steps; none where nothing was left to do.
    pub loss: Option<f64>,
    /// Rate of this run, the first step left out.
    pub tokens_per_second: f64,
}

impl Outcome {
    /// Whether nothing is left to do.
    pub fn is_complete(&self) -> bool {
        self.n_steps >= self.n_planned
    }
}

struct Step {
    loss: f64,
    terms: Vec<f64>,
    norm: f64,
}

impl Trainer<'_> {
    /// Trains; with `resume`, from the last checkpoint in `out_dir`, to the same bytes as without the interruption.
    ///
    /// # Errors
    /// `Data` when the loss stops being finite; `Recipe` when the checkpoint belongs to another run.
    pub fn run(&self, resume: bool) -> Result<(Outcome, Masters)> {
        self.check()?;
        let width = self.feed.borrow().mean_width();
        let schedule = self.settings.schedule(width);
        let per_step = self.settings.tokens_per_step(width);
        let mut optimizer = AdamW::new(self.student.parameters(), self.settings.adamw)?;
        let identity = json!({ "settings": self.settings, "inputs": self.identity });
        let resumed = if resume { resume::load(self.out_dir, &identity, &mut optimizer)? } else { None };
        let first = resumed.as_ref().map_or(0, |state| state.step);
        let mut metrics = Metrics::open(self.out_dir, resumed.as_ref().map_or(0, |state| state.metrics_len))?;
        let every = self.checkpoint_every.unwrap_or(schedule.n_steps.div_ceil(10)).max(1);
        let last = self.stop_after.unwrap_or(schedule.n_steps).min(schedule.n_steps);

        if let Some(state) = &resumed {
            self.feed.borrow_mut().seek(&state.data)?;
        }
        let mut recent = Vec::new();
        let mut clock = Clock::new();
        self.progress.start("train, tokens", schedule.n_steps.saturating_mul(per_step));
        self.progress.advance(first.saturating_mul(per_step), "");
        for step in first + 1..=last {
            let lr = schedule.at(step);
            let done = self.step(&mut optimizer, step, lr)?;
            clock.tick(per_step);
            recent.push(done.loss);
            metrics.write(&self.record(step, per_step, lr, &done, &clock))?;
            self.progress.advance(per_step, &format!("loss {:.4}", done.loss));
            if step % every == 0 || step == last {
                let metrics_len = metrics.sync()?;
                let data = self.feed.borrow().cursor();
                let state = State { step, n_tokens: step * per_step, identity: identity.clone(), metrics_len, data };
                resume::save(self.out_dir, &state, &optimizer)?;
            }
        }
        self.progress.finish();
        let tail = recent.len().div_ceil(10).max(1);
        let tail = recent.get(recent.len().saturating_sub(tail)..).unwrap_or_default();
        let outcome = Outcome {
            n_steps: last.max(first),
            n_planned: schedule.n_steps,
            n_tokens: last.max(first) * per_step,
            loss: (!tail.is_empty()).then(|| tail.iter().sum::<f64>() / tail.len() as f64),
            tokens_per_second: clock.rate(),
        };
        Ok((outcome, optimizer.masters()))
    }

    /// Refuses what cannot be trained, before anything is written.
    ///
    /// # Errors
    /// `Recipe` for settings, windows or models that do not go together, `Data` for a student without a head.
    pub fn check(&self) -> Result<()> {
        self.settings.check()?;
        self.feed.borrow_mut().check_fits(&self.student.blueprint.options)?;
        if !self.student.has_head() {
            return Err(Error::Data("the student has no language-model head, so there are no logits to train".into()));
        }
        if self.task != Task::NextToken && !self.feed.borrow().is_even() {
            return Err(Error::Recipe(
                "pack: an encoder sees what fills shorter windows up; train it on a stream".into(),
            ));
        }
        let Some(teacher) = self.teacher else {
            if self.objective.needs_teacher() {
                return Err(Error::Recipe("a loss compares with a teacher, and none is given".into()));
            }
            return Ok(());
        };
        self.feed.borrow_mut().check_fits(&teacher.blueprint.options)?;
        if !teacher.has_head() {
            return Err(Error::Data(
                "the teacher has no language-model head, so there are no logits to learn from".into(),
            ));
        }
        let (ours, theirs) = (self.student.blueprint.options.vocab, teacher.blueprint.options.vocab);
        if ours != theirs {
            let message =
                format!("the teacher's vocabulary has {theirs} tokens, the student's {ours}; they must share one");
            return Err(Error::Recipe(message));
        }
        Ok(())
    }

    fn step(&self, optimizer: &mut AdamW, step: u64, lr: f64) -> Result<Step> {
        let n_passes = self.settings.accumulate as u64;
        let mut loaded = self.teacher.map(Loaded);
        let mut teacher = loaded.as_mut().map(|teacher| teacher as &mut dyn Teacher);
        let mut terms = vec![0.0; self.objective.terms.len()];
        for _ in 0..n_passes {
            let pieces = self.feed.borrow_mut().take(self.settings.batch_size)?;
            let targets = self.task.batch_of(&pieces, self.feed.borrow().n_brackets(), self.student.device)?;
            let means =
                self.objective.backward(self.student, teacher.as_deref_mut(), &targets, 1.0 / n_passes as f64)?;
            for (sum, mean) in terms.iter_mut().zip(means) {
                *sum += mean / n_passes as f64;
            }
        }
        let loss: f64 = self.objective.terms.iter().zip(&terms).map(|(term, mean)| term.weight * mean).sum();
        let norm = optimizer.gradient_norm()?;
        if !(loss.is_finite() && norm.is_finite()) {
            let message =
                format!("training diverged at step {step} (loss {loss}, gradient norm {norm}); try a lower lr");
            return Err(Error::Data(message));
        }
        let scale = if norm > self.settings.clip { self.settings.clip / norm } else { 1.0 };
        optimizer.step(lr, scale)?;
        Ok(Step { loss, terms, norm })
    }

    fn record(&self, step: u64, per_step: u64, lr: f64, done: &Step, clock: &Clock) -> Value {
        let mut record = json!({
            "step": step,
            "n_tokens": step * per_step,
            "loss": done.loss,
            "lr": lr,
            "grad_norm": done.norm,
            "elapsed_s": clock.elapsed(),
            "tokens_per_second": clock.rate(),
        });
        for (term, mean) in self.objective.terms.iter().zip(&done.terms) {
            if let Some(object) = record.as_object_mut() {
                object.insert(format!("loss/{}", term.label), json!(mean));
            }
        }
        record
    }
}

/// metrics.jsonl, one line per step.
struct Metrics {
    path: std::path::PathBuf,
    file: File,
}

impl Metrics {
    /// Opens the file and cuts off what follows the resumed step.
    fn open(out_dir: &Path, keep: u64) -> Result<Self> {
        fs::create_dir_all(out_dir).at_path(out_dir)?;
        let path = out_dir.join(METRICS);
        let file = OpenOptions::new().create(true).append(true).open(&path).at_path(&path)?;
        let found = file.metadata().at_path(&path)?.len();
        file.set_len(keep.min(found)).at_path(&path)?;
        Ok(Metrics { path, file })
    }

    fn write(&mut self, record: &Value) -> Result<()> {
        writeln!(self.file, "{record}").at_path(&self.path)
    }

    fn sync(&mut self) -> Result<u64> {
        self.file.sync_all().at_path(&self.path)?;
        Ok(self.file.metadata().at_path(&self.path)?.len())
    }
}

/// Counts tokens over time; the first step, which warms caches up, sets the start.
struct Clock {
    begin: Instant,
    warm: Option<Instant>,
    n_tokens: u64,
}

impl Clock {
    fn new() -> Self {
        Clock { begin: Instant::now(), warm: None, n_tokens: 0 }
    }

    fn tick(&mut self, n_tokens: u64) {
        match self.warm {
            None => self.warm = Some(Instant::now()),
            Some(_) => self.n_tokens += n_tokens,
        }
    }

    fn elapsed(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }

    fn rate(&self) -> f64 {
        match self.warm {
            Some(warm) if self.n_tokens > 0 => self.n_tokens as f64 / warm.elapsed().as_secs_f64().max(1e-9),
            _ => 0.0,
        }
    }
}
