//! The loop.

use std::cell::RefCell;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::correction::Correction;
use super::held_out::{Best, HeldOut, HeldOutLoss};
use super::memory::{BatchShape, StepMemory};
use super::metrics::{Clock, Metrics};
use super::objective::Objective;
use super::optimizer::{AdamW, Masters};
use super::resume::{self, State};
use super::saving::Saving;
use super::settings::TrainSettings;
use super::teacher::Teacher;
use crate::blueprint::{Options, Output};
use crate::data::{Feed, Task};
use crate::error::{Error, Result};
use crate::model::Transformer;
use crate::progress::{Interrupt, Progress};

/// The program with libtorch, and the buffers of matrix products.
const BASE_BYTES: u64 = 300 << 20;

/// One training run.
#[derive(Debug)]
pub struct Trainer<'a> {
    /// Loaded trainable; changed in place.
    pub student: &'a Transformer,
    /// Needed where a loss needs it.
    pub teacher: Option<RefCell<Box<dyn Teacher + 'a>>>,
    /// Where the teacher learns on meanwhile.
    pub correction: Option<Correction<'a>>,
    /// What to learn from.
    pub feed: &'a RefCell<Feed>,
    /// Next tokens, masked ones, or none.
    pub task: Task,
    /// What to minimise.
    pub objective: &'a Objective,
    /// How.
    pub settings: &'a TrainSettings,
    /// Facts beyond the settings that a resumed run must share: data, models, losses.
    pub identity: Value,
    /// Folder for metrics.jsonl, logs/ and checkpoint/.
    pub out_dir: &'a Path,
    /// When states are kept, and how many.
    pub saving: Saving,
    /// What to evaluate on between steps.
    pub held_out: Option<HeldOut<'a>>,
    /// Steps in a row without a finite loss and gradient that end the run.
    pub max_skipped: u64,
    /// Stop after this step although the run is longer; `--resume` goes on.
    pub stop_after: Option<u64>,
    /// Where to report.
    pub progress: &'a dyn Progress,
    /// How the run is asked to end after the step at hand; `--resume` goes on.
    pub interrupt: &'a Interrupt,
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
    /// Steps among them that changed nothing.
    pub n_skipped: u64,
    /// Mean loss of the last tenth of this run's steps, skipped ones left out; none where nothing was left to do.
    pub loss: Option<f64>,
    /// The best evaluation, earlier runs included.
    pub best: Option<Best>,
    /// Whether the run was asked to end before the last of the steps it was to do.
    pub is_interrupted: bool,
    /// Rate of this run, the first step left out.
    pub tokens_per_second: f64,
    /// What a step was expected to take at its peak.
    pub memory_bytes: u64,
}

impl Outcome {
    /// Whether nothing is left to do.
    pub fn is_complete(&self) -> bool {
        self.n_steps >= self.n_planned
    }
}

/// Masters of what was trained, where it computes in less than f32.
#[derive(Debug)]
pub struct Trained {
    /// The student's.
    pub student: Masters,
    /// Those of a teacher that was corrected.
    pub teacher: Option<Masters>,
}

struct Step {
    loss: f64,
    terms: Vec<f64>,
    norm: f64,
    /// Loss and gradient norm of a teacher under correction.
    teacher: Option<(f64, f64)>,
}

impl Step {
    /// Whether the weights were changed: otherwise the step is skipped.
    fn is_applied(&self) -> bool {
        let (loss, norm) = self.teacher.unwrap_or_default();
        [self.loss, self.norm, loss, norm].into_iter().all(f64::is_finite)
    }
}

impl Trainer<'_> {
    /// Trains; with `resume`, from the last whole checkpoint in `out_dir`, to the same bytes as without the interruption.
    ///
    /// # Errors
    /// `Data` when too many losses in a row are not finite; `Recipe` when the checkpoint belongs to another run.
    pub fn run(&self, resume: bool) -> Result<(Outcome, Trained)> {
        self.check()?;
        let mut optimizer = self.optimizer()?;
        let mut state = self.start(resume, &mut optimizer)?;
        let width = self.feed.borrow().mean_width();
        let (schedule, per_step) = (self.settings.schedule(width), self.settings.tokens_per_step(width));
        let (first, last) = (state.step, self.stop_after.unwrap_or(schedule.n_steps).min(schedule.n_steps));
        let mut metrics = Metrics::open(self.out_dir, &state)?;
        let mut timer = self.saving.timer(schedule.n_steps);

        let memory = self.memory();
        self.progress.warn(&memory.says());
        let mut recent = Vec::new();
        let mut clock = Clock::after(state.elapsed_s);
        let mut note = Note::default();
        self.progress.start("train, tokens", schedule.n_steps.saturating_mul(per_step));
        self.progress.advance(first.saturating_mul(per_step), "");
        for step in first + 1..=last {
            let (lr, begin) = (schedule.at(step), Instant::now());
            let done = self.step(&mut optimizer, lr)?;
            clock.tick(per_step, begin.elapsed());
            recent.extend(done.is_applied().then_some(done.loss));
            state.count(step, step * per_step, done.is_applied());
            let evaluated = match &self.held_out {
                Some(held_out) if step == schedule.n_steps || timer.is_evaluated(step, held_out) => {
                    Some(self.evaluate(held_out, &optimizer, &mut state)?)
                }
                _ => None,
            };
            metrics.write(step, &self.record(&state, lr, &done, &clock, evaluated.as_ref()))?;
            self.progress.advance(per_step, &note.after(&done, lr, evaluated.as_ref()));
            self.refuse_divergence(&state, &done)?;
            let is_best = evaluated.is_some() && state.best.is_some_and(|best| best.step == step);
            let asked = self.interrupt.is_asked();
            if timer.is_due(step) || is_best || step == last || asked {
                if let Some(teacher) = &self.teacher {
                    teacher.borrow_mut().settle()?;
                }
                state.metrics_len = metrics.sync()?;
                (state.data, state.elapsed_s) = (self.feed.borrow().cursor(), clock.elapsed());
                resume::save(self.out_dir, &state, &optimizer, self.saving.keep)?;
                timer.reset();
            }
            if asked {
                self.progress.warn(&format!("asked to end: step {step} of {} is saved", schedule.n_steps));
                break;
            }
        }
        self.progress.finish();
        let is_interrupted = self.interrupt.is_asked() && state.step < last;
        let outcome = Outcome {
            memory_bytes: memory.total(),
            ..outcome(&state, &recent, schedule.n_steps, is_interrupted, clock.rate())
        };
        let masters = Trained {
            student: optimizer.masters(""),
            teacher: self.correction.as_ref().map(|correction| correction.masters(&optimizer)),
        };
        Ok((outcome, masters))
    }

    /// Of the student, what is learned with it, and a teacher under correction.
    fn optimizer(&self) -> Result<AdamW> {
        let learned = self.student.parameters().iter().chain(self.objective.lifts());
        let mut optimizer = AdamW::new(learned, self.settings.adamw)?;
        if let Some(correction) = &self.correction {
            correction.join(&mut optimizer)?;
        }
        Ok(optimizer)
    }

    /// The state to go on from: an earlier one, restored, or none, and then nothing of another run stays.
    fn start(&self, resume: bool, optimizer: &mut AdamW) -> Result<State> {
        let identity = json!({ "settings": self.settings, "inputs": self.identity });
        let resumed = if resume { resume::load(self.out_dir, &identity, optimizer, self.progress)? } else { None };
        match &resumed {
            Some(state) => self.feed.borrow_mut().seek(&state.data)?,
            None => resume::clear(self.out_dir)?,
        }
        Ok(resumed.unwrap_or_else(|| State::start(identity, self.feed.borrow().cursor())))
    }

    /// Measures the student, and writes it where it is the best so far: before the state says so, so that a run that ends in
    /// between comes here again.
    fn evaluate(&self, held_out: &HeldOut, optimizer: &AdamW, state: &mut State) -> Result<HeldOutLoss> {
        let mut teacher = self.teacher.as_ref().map(RefCell::borrow_mut);
        let teacher = teacher.as_mut().map(|teacher| &mut ***teacher);
        let found = self.objective.evaluate(self.student, teacher, self.task, held_out)?;
        let loss = found.value();
        if loss.is_finite() && state.best.is_none_or(|best| loss < best.loss) {
            (held_out.write_best)(&optimizer.masters(""))?;
            state.best = Some(Best { step: state.step, loss });
        }
        Ok(found)
    }

    /// Ends a run whose last steps all changed nothing.
    fn refuse_divergence(&self, state: &State, done: &Step) -> Result<()> {
        if state.n_skipped_in_row < self.max_skipped.max(1) {
            return Ok(());
        }
        let good = match resume::newest(self.out_dir) {
            Some(step) => format!("the last good checkpoint is {}", resume::step_dir(self.out_dir, step).display()),
            None => "no checkpoint was written yet".to_owned(),
        };
        let Step { loss, norm, .. } = done;
        let (step, in_row) = (state.step, state.n_skipped_in_row);
        let message =
            format!("training diverged: loss {loss}, gradient norm {norm} at step {step}, {in_row} skipped in a row");
        Err(Error::Data(format!("{message}; {good}; try a lower lr or a longer warm-up")))
    }

    /// Refuses what cannot be trained, before anything is written.
    ///
    /// # Errors
    /// `Recipe` for settings, windows or models that do not go together, `Data` for a student without a head.
    pub fn check(&self) -> Result<()> {
        self.settings.check()?;
        self.saving.check()?;
        if self.max_skipped == 0 || self.held_out.is_some_and(|held_out| held_out.every == Some(0)) {
            return Err(Error::Recipe("max_skipped, eval_every: expected at least 1".into()));
        }
        let fits = |options: &Options| {
            self.feed.borrow_mut().check_fits(options)?;
            self.held_out.iter().try_for_each(|held_out| held_out.windows.check_fits(options))
        };
        fits(&self.student.blueprint.options)?;
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
        fits(&teacher.options)?;
        let (ours, theirs) = (self.student.blueprint.options.vocab, teacher.options.vocab);
        if let Some(correction) = &self.correction
            && (self.task == Task::States || !correction.model.has_head())
        {
            let message = "correct_teacher: it learns from labels, and without a language-model head there are none";
            return Err(Error::Recipe(message.into()));
        }
        if ours > theirs {
            let message =
                format!("the student's vocabulary has {ours} tokens, the teacher's {theirs}; it must know them all");
            return Err(Error::Recipe(message));
        }
        if !self.objective.needs_teacher_logits() && self.correction.is_none() {
            return Ok(());
        }
        if teacher.options.output != Output::Logits {
            return Err(Error::Data(
                "the teacher has no language-model head, so there are no logits to learn from".into(),
            ));
        }
        if ours != theirs {
            let message =
                format!("the teacher's vocabulary has {theirs} tokens, the student's {ours}; they must share one");
            return Err(Error::Recipe(message));
        }
        Ok(())
    }

    /// What a step will take, from shapes.
    pub fn memory(&self) -> StepMemory {
        let teacher = self.teacher.as_ref().map(RefCell::borrow);
        let teacher = teacher.as_ref().map(|teacher| (teacher.blueprint(), teacher.kept_bytes()));
        let n_bytes = self.student.parameters().first().map_or(4, |p| p.tensor.kind().elt_size_in_bytes());
        let batch = BatchShape { n_windows: self.settings.batch_size, width: self.feed.borrow().width(), n_bytes };
        let memory = StepMemory::of(self.objective, &self.student.blueprint, teacher, batch, BASE_BYTES);
        match &self.correction {
            Some(correction) => memory.with_correction(correction, batch),
            None => memory,
        }
    }

    fn step(&self, optimizer: &mut AdamW, lr: f64) -> Result<Step> {
        let n_passes = self.settings.accumulate as u64;
        let mut teacher = self.teacher.as_ref().map(RefCell::borrow_mut);
        let mut terms = vec![0.0; self.objective.labels().count()];
        let (mut loss, mut teacher_loss) = (0.0, 0.0);
        for _ in 0..n_passes {
            let pieces = self.feed.borrow_mut().take(self.settings.batch_size)?;
            let targets = self.task.batch_of(&pieces, self.feed.borrow().n_brackets(), self.student.device)?;
            let means = self.objective.backward(
                self.student,
                teacher.as_mut().map(|t| &mut ***t),
                &targets,
                1.0 / n_passes as f64,
            )?;
            if let Some(correction) = &self.correction {
                teacher_loss += correction.backward(&targets, 1.0 / n_passes as f64)? / n_passes as f64;
            }
            loss += means.total / n_passes as f64;
            for (sum, mean) in terms.iter_mut().zip(means.terms) {
                *sum += mean / n_passes as f64;
            }
        }
        let beside = |correction: &Correction| Ok::<_, Error>((teacher_loss, correction.gradient_norm(optimizer)?));
        let teacher = self.correction.as_ref().map(beside).transpose()?;
        let done = Step { loss, terms, norm: optimizer.gradient_norm(0)?, teacher };
        if !done.is_applied() {
            optimizer.skip()?;
            return Ok(done);
        }
        let clip = |norm: f64| if norm > self.settings.clip { self.settings.clip / norm } else { 1.0 };
        optimizer.step(lr, &[clip(done.norm), clip(teacher.map_or(0.0, |(_, norm)| norm))])?;
        Ok(done)
    }

    fn record(&self, state: &State, lr: f64, done: &Step, clock: &Clock, evaluated: Option<&HeldOutLoss>) -> Value {
        let mut record = json!({
            "step": state.step,
            "n_tokens": state.n_tokens,
            "loss": done.loss,
            "lr": lr,
            "grad_norm": done.norm,
            "n_skipped": state.n_skipped,
            "elapsed_s": clock.elapsed(),
            "tokens_per_second": clock.rate(),
        });
        let labels = || self.objective.labels();
        let mut more: Vec<(String, f64)> =
            labels().zip(&done.terms).map(|(label, mean)| (format!("loss/{label}"), *mean)).collect();
        if let Some((loss, norm)) = done.teacher {
            more.extend([("teacher/loss".to_owned(), loss), ("teacher/grad_norm".to_owned(), norm)]);
        }
        if let Some(evaluated) = evaluated {
            more.push(("eval/loss".into(), evaluated.value()));
            more.extend(labels().zip(&evaluated.terms).map(|(label, mean)| (format!("eval/{label}"), *mean)));
        }
        if let Some(object) = record.as_object_mut() {
            object.extend(more.into_iter().map(|(key, value)| (key, json!(value))));
        }
        record
    }
}

fn outcome(state: &State, losses: &[f64], n_planned: u64, is_interrupted: bool, tokens_per_second: f64) -> Outcome {
    let tail = losses.len().div_ceil(10).max(1);
    let tail = losses.get(losses.len().saturating_sub(tail)..).unwrap_or_default();
    Outcome {
        n_steps: state.step,
        n_planned,
        n_tokens: state.n_tokens,
        n_skipped: state.n_skipped,
        loss: (!tail.is_empty()).then(|| tail.iter().sum::<f64>() / tail.len() as f64),
        best: state.best,
        is_interrupted,
        tokens_per_second,
        memory_bytes: 0,
    }
}

/// What stands beside the bar.
#[derive(Default)]
struct Note {
    held_out: String,
}

impl Note {
    fn after(&mut self, done: &Step, lr: f64, evaluated: Option<&HeldOutLoss>) -> String {
        if let Some(evaluated) = evaluated {
            self.held_out = format!("  held out {:.4}", evaluated.value());
        }
        let loss = if done.is_applied() { format!("loss {:.4}", done.loss) } else { "step skipped".to_owned() };
        format!("{loss}  lr {lr:.1e}{}", self.held_out)
    }
}
