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
use super::teacher::Teacher;
use crate::blueprint::Output;
use crate::data::{Order, Task, Windows};
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
    pub teacher: Option<RefCell<Box<dyn Teacher + 'a>>>,
    /// What to learn from.
    pub windows: &'a Windows,
    /// Next tokens, masked ones, or none.
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
        let schedule = self.settings.schedule(self.windows.mean_width());
        let per_step = self.settings.tokens_per_step(self.windows.mean_width());
        let mut optimizer =
            AdamW::new(self.student.parameters().iter().chain(self.objective.lifts()), self.settings.adamw)?;
        let identity = json!({ "settings": self.settings, "inputs": self.identity });
        let resumed = if resume { resume::load(self.out_dir, &identity, &mut optimizer)? } else { None };
        let first = resumed.as_ref().map_or(0, |state| state.step);
        let mut metrics = Metrics::open(self.out_dir, resumed.as_ref().map_or(0, |state| state.metrics_len))?;
        let every = self.checkpoint_every.unwrap_or(schedule.n_steps.div_ceil(10)).max(1);
        let last = self.stop_after.unwrap_or(schedule.n_steps).min(schedule.n_steps);

        let mut order = Order::new(self.windows.len(), self.settings.seed);
        let mut recent = Vec::new();
        let mut clock = Clock::new();
        self.progress.start("train, tokens", schedule.n_steps.saturating_mul(per_step));
        self.progress.advance(first.saturating_mul(per_step), "");
        for step in first + 1..=last {
            let lr = schedule.at(step);
            let done = self.step(&mut optimizer, &mut order, step, lr)?;
            clock.tick(per_step);
            recent.push(done.loss);
            metrics.write(&self.record(step, per_step, lr, &done, &clock))?;
            self.progress.advance(per_step, &format!("loss {:.4}", done.loss));
            if step % every == 0 || step == last {
                if let Some(teacher) = &self.teacher {
                    teacher.borrow_mut().settle()?;
                }
                let metrics_len = metrics.sync()?;
                let state = State { step, n_tokens: step * per_step, identity: identity.clone(), metrics_len };
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
        self.windows.check_fits(&self.student.blueprint.options)?;
        self.objective.check()?;
        if !self.objective.terms.is_empty() && !self.student.has_head() {
            return Err(Error::Data("the student has no language-model head, so there are no logits to train".into()));
        }
        let Some(teacher) = &self.teacher else {
            if self.objective.needs_teacher() {
                return Err(Error::Recipe("a loss compares with a teacher, and none is given".into()));
            }
            return Ok(());
        };
        let teacher = teacher.borrow();
        let teacher = teacher.blueprint();
        self.windows.check_fits(&teacher.options)?;
        if !self.objective.needs_teacher_logits() {
            return Ok(());
        }
        if teacher.options.output != Output::Logits {
            return Err(Error::Data(
                "the teacher has no language-model head, so there are no logits to learn from".into(),
            ));
        }
        let (ours, theirs) = (self.student.blueprint.options.vocab, teacher.options.vocab);
        if ours != theirs {
            let message =
                format!("the teacher's vocabulary has {theirs} tokens, the student's {ours}; they must share one");
            return Err(Error::Recipe(message));
        }
        Ok(())
    }

    fn step(&self, optimizer: &mut AdamW, order: &mut Order, step: u64, lr: f64) -> Result<Step> {
        let per_pass = self.settings.batch_size as u64;
        let n_passes = self.settings.accumulate as u64;
        let mut teacher = self.teacher.as_ref().map(RefCell::borrow_mut);
        let mut terms = vec![0.0; self.objective.labels().count()];
        let mut loss = 0.0;
        for pass in 0..n_passes {
            let start = ((step - 1) * n_passes + pass) * per_pass;
            let chosen: Vec<usize> = (start..start + per_pass).map(|position| order.at(position)).collect();
            let targets = self.task.batch(self.windows, &chosen, self.student.device)?;
            let means = self.objective.backward(
                self.student,
                teacher.as_mut().map(|t| &mut ***t),
                &targets,
                1.0 / n_passes as f64,
            )?;
            loss += means.total / n_passes as f64;
            for (sum, mean) in terms.iter_mut().zip(means.terms) {
                *sum += mean / n_passes as f64;
            }
        }
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
        for (label, mean) in self.objective.labels().zip(&done.terms) {
            if let Some(object) = record.as_object_mut() {
                object.insert(format!("loss/{label}"), json!(mean));
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
