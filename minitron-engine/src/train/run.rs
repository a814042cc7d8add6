//! The loop.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use tch::Device;
use tracing::{debug_span, info_span};

use super::correction::Correction;
use super::held_out::{Evaluation, HeldOut, HeldOutLoss};
use super::learner::{Learner, TrainState, Trained};
use super::length_stage::LongWindows;
use super::memory::StepMemory;
use super::objective::teacher_output;
use super::outcome::Outcome;
use super::progress_line::ProgressLine;
use super::saving::{Saving, Timer};
use super::schedule::Schedule;
use super::settings::{Sharding, TrainSettings};
use super::shard::Shard;
use super::step::Step;
use super::teacher::Teacher;
use super::weigh::weigh_states;
use crate::data::DataLoader;
use crate::memory::available_bytes;
use crate::ranks::Ranks;
use minitron_core::error::{Error, Result};
use minitron_core::progress::{Interrupt, Progress};
use minitron_core::windows::Task;

/// One training run, of one model or of several that share the text and the teacher: in every step
/// all of them learn from the same batches, and what the teacher says to a batch is worked out
/// once.
#[derive(Debug)]
pub struct Trainer<'a> {
    /// Who learns.
    pub learners: &'a [Learner<'a>],
    /// Needed where a loss needs it.
    pub teacher: Option<RefCell<Box<dyn Teacher + 'a>>>,
    /// Where the teacher learns on meanwhile, beside a single learner.
    pub correction: Option<Correction<'a>>,
    /// What to learn from.
    pub loader: &'a RefCell<DataLoader>,
    /// What the last steps learn from instead.
    pub long: Option<LongWindows<'a>>,
    /// Next tokens, masked ones, or none.
    pub task: Task,
    /// How.
    pub settings: &'a TrainSettings,
    /// When states are kept, and how many.
    pub saving: Saving,
    /// What to evaluate on between steps.
    pub held_out: Option<HeldOut<'a>>,
    /// Steps in a row without a finite loss and gradient that end a learner's run.
    pub max_skipped: u64,
    /// Stop after this step although the run is longer; `--resume` goes on.
    pub stop_after: Option<u64>,
    /// Who else is at it: every step is of the same windows, whoever reads them.
    pub ranks: Ranks,
    /// What each of them keeps a part of, rather than all.
    pub sharding: Sharding,
    /// Where to report.
    pub progress: &'a dyn Progress,
    /// How the run is asked to end after the step at hand; `--resume` goes on.
    pub interrupt: &'a Interrupt,
}

/// How all of a run's learners went.
#[derive(Debug)]
pub struct Run {
    /// In the order of the learners: one that diverged does not end the others.
    pub learners: Vec<Result<(Outcome, Trained)>>,
    /// Seconds that the teacher took; on a CUDA device, those of asking it.
    pub teacher_s: f64,
    /// Seconds that it would have taken besides, had every learner asked for itself.
    pub spared_s: f64,
}

impl Run {
    /// Of a single learner.
    pub fn single(self) -> Result<(Outcome, Trained)> {
        self.learners
            .into_iter()
            .next()
            .ok_or_else(|| Error::Internal("a training without a learner".into()))?
    }
}

/// What a run goes by from step to step, and what it adds up on the way.
struct RunState {
    schedule: Schedule,
    /// Tokens of a step.
    per_step: u64,
    /// The step after which it stops.
    last: u64,
    timer: Timer,
    line: ProgressLine,
    teacher_s: f64,
    spared_s: f64,
}

impl RunState {
    /// Whether held-out text is due; after the last step of all it always is.
    fn is_evaluated(&self, step: u64, held_out: &HeldOut) -> bool {
        step == self.schedule.n_steps || self.timer.is_evaluated(step, held_out)
    }
}

impl Trainer<'_> {
    /// Trains; with `resume`, from the last whole checkpoint of each learner, to the same bytes as
    /// without the interruption: who is ahead of the others waits for them.
    ///
    /// # Errors
    /// `Recipe` when a checkpoint belongs to another run. A learner's own is `Data` where too many
    /// losses in a row are not finite.
    pub fn run(&self, resume: bool) -> Result<Run> {
        self.check()?;
        let _span = info_span!("train", n_learners = self.learners.len()).entered();
        let memory = self.memory();
        let mut states = self.states(resume)?;
        let mut run = self.run_state();
        let (n_steps, per_step) = (run.schedule.n_steps, run.per_step);
        let first = states
            .iter()
            .map(|state| state.saved.step)
            .min()
            .unwrap_or(0);
        self.tell_memory(&memory);
        self.progress
            .start("train, tokens", n_steps.saturating_mul(per_step));
        self.progress.advance(first.saturating_mul(per_step), "");
        let mut is_interrupted = false;
        for step in first + 1..=run.last {
            let _span = debug_span!("step", step).entered();
            if states.iter().all(|state| state.failure.is_some()) {
                break;
            }
            if self.step(step, &mut states, &mut run)? {
                let message = format!("interrupted: step {step} of {n_steps} is saved");
                self.progress.note(&message);
                is_interrupted = step < run.last;
                break;
            }
        }
        self.progress.finish();
        let mut learners = Vec::with_capacity(states.len());
        for state in states {
            let others = (self.correction.as_ref(), self.ranks);
            let ended = state.end(n_steps, is_interrupted, others);
            learners.push(ended.map(|(outcome, trained)| {
                let memory_bytes = memory.total();
                let outcome = Outcome {
                    memory_bytes,
                    ..outcome
                };
                (outcome, trained)
            }));
        }
        Ok(Run {
            learners,
            teacher_s: run.teacher_s,
            spared_s: run.spared_s,
        })
    }

    /// The part of the optimiser's state that this rank keeps.
    fn shard(&self) -> Shard {
        match self.sharding {
            Sharding::None => Shard::whole(),
            Sharding::Optimizer | Sharding::Layers => Shard::of(self.ranks),
        }
    }

    /// What the run goes by, before its first step.
    fn run_state(&self) -> RunState {
        let width = self.loader.borrow().mean_width();
        let schedule = self.settings.schedule(width);
        let n_steps = schedule.n_steps;
        RunState {
            schedule,
            per_step: self.settings.tokens_per_step(width),
            last: self.stop_after.unwrap_or(n_steps).min(n_steps),
            timer: self.saving.timer(n_steps),
            line: ProgressLine::default(),
            teacher_s: 0.0,
            spared_s: 0.0,
        }
    }

    /// Says what a step is expected to take, and warns where the machine has less.
    fn tell_memory(&self, memory: &StepMemory) {
        self.progress.note(&memory.says());
        let on_cpu = self
            .learners
            .first()
            .is_some_and(|learner| learner.student.device == Device::Cpu);
        let free = available_bytes().filter(|_| on_cpu);
        if let Some(warning) = free.and_then(|free| memory.beyond(free)) {
            self.progress.warn(&warning);
        }
    }

    /// One step of everyone who is not ahead; true where the run was asked to end after it.
    fn step(&self, step: u64, states: &mut [TrainState], run: &mut RunState) -> Result<bool> {
        let mut group: Vec<&mut TrainState> = states
            .iter_mut()
            .filter(|state| state.saved.step < step && state.failure.is_none())
            .collect();
        let (lr, begin) = (run.schedule.at(step), Instant::now());
        let (took, spared) = self.backward_all(step, &mut group)?;
        run.teacher_s += took.as_secs_f64();
        run.spared_s += spared.as_secs_f64();
        debug_span!("reduce").in_scope(|| self.reduce(&mut group))?;
        let done = self.apply(&mut group, step, run.per_step, lr)?;
        run.line.warn_of_empty(step, &done, self.progress);
        let took = begin
            .elapsed()
            .checked_div(group.len() as u32)
            .unwrap_or_default();
        for state in &mut group {
            state.tick(run.per_step, took);
        }
        let evaluated = match &self.held_out {
            Some(held_out) if run.is_evaluated(step, held_out) => {
                self.evaluate(held_out, &mut group)?
            }
            _ => Vec::new(),
        };
        let is_best = self.record(&mut group, lr, &done, &evaluated)?;
        let note = run.line.after(&done, lr, &evaluated);
        self.progress.advance(run.per_step, &note);
        // Clocks and signals differ between ranks.
        let mut flags = [run.timer.is_due(step), self.interrupt.is_asked()].map(f64::from);
        self.ranks.greatest(&mut flags)?;
        let [is_due, is_asked] = flags.map(|flag| flag > 0.0);
        if is_due || is_best || step == run.last || is_asked {
            self.save(step, &mut group)?;
            run.timer.reset();
        }
        Ok(is_asked)
    }

    /// Every learner where it stands, and the text at the place of the one that is least far.
    fn states(&self, resume: bool) -> Result<Vec<TrainState<'_>>> {
        let begin = self.loader.borrow().cursor();
        let mut states = Vec::with_capacity(self.learners.len());
        for learner in self.learners {
            states.push(TrainState::open(
                learner,
                self.settings,
                self.correction.as_ref(),
                (resume, &begin),
                (self.ranks, self.shard()),
                self.progress,
            )?);
        }
        self.check_ranks(&states)?;
        let least = states.iter().min_by_key(|state| state.saved.step);
        if let Some(state) = least.filter(|state| state.saved.step > 0) {
            let loader = self.loader_at(state.saved.step);
            loader.borrow_mut().seek(&state.saved.data)?;
        }
        Ok(states)
    }

    /// Shows a step's batches to everyone; returns the time that the teacher took, and that which
    /// it was spared.
    fn backward_all(
        &self,
        step: u64,
        group: &mut [&mut TrainState],
    ) -> Result<(Duration, Duration)> {
        let mut teacher = self.teacher.as_ref().map(RefCell::borrow_mut);
        let (mut took, mut spared) = (Duration::ZERO, Duration::ZERO);
        let n_others = (group.len() as u32).saturating_sub(1);
        let Some(device) = self.learners.first().map(|learner| learner.student.device) else {
            return Ok((took, spared));
        };
        let (batches, whole) = debug_span!("data").in_scope(|| self.batches(step, device))?;
        for state in &mut *group {
            state.begin(whole, self.ranks);
        }
        if batches.len() > 1 || self.ranks.has_others() {
            took += weigh_states(
                &batches,
                group,
                teacher.as_mut().map(|teacher| &mut ***teacher),
                self.ranks,
            )?;
        }
        batches.each(|idx, batch| {
            let begin = Instant::now();
            let objectives = group.iter().map(|state| state.learner.objective);
            let output = teacher_output(
                objectives,
                teacher.as_mut().map(|teacher| &mut ***teacher),
                batch,
            )?;
            let asking = begin.elapsed();
            for state in &mut *group {
                let batch = (batch, batches.is_last(idx));
                state.accumulate(batch, output.as_deref(), self.correction.as_ref())?;
            }
            let (by_logits, kept) = output.map(|output| output.took()).unwrap_or_default();
            took += asking + by_logits;
            spared += asking.saturating_mul(n_others) + kept;
            Ok(())
        })?;
        for idx in batches.beyond() {
            teacher.iter().try_for_each(|teacher| teacher.stand_by())?;
            group
                .iter_mut()
                .try_for_each(|state| state.stand_by(batches.is_last(idx)))?;
        }
        Ok((took, spared))
    }

    /// Sums everyone's gradients over the ranks. All are sent before one is waited for: a rank that
    /// had passes has sent them in this order.
    fn reduce(&self, group: &mut [&mut TrainState]) -> Result<()> {
        group.iter_mut().try_for_each(|state| state.send())?;
        let has_correction = self.correction.is_some();
        group
            .iter_mut()
            .try_for_each(|state| state.reduce(self.ranks, has_correction))
    }

    fn apply(
        &self,
        group: &mut [&mut TrainState],
        step: u64,
        per_step: u64,
        lr: f64,
    ) -> Result<Vec<Step>> {
        let place = (step, step * per_step);
        let mut done = Vec::with_capacity(group.len());
        for state in group {
            let others = (self.correction.as_ref(), self.ranks);
            done.push(state.apply(place, lr, self.settings.clip, others)?);
        }
        Ok(done)
    }

    /// Measures everyone on the held-out text; the teacher is asked once for each batch.
    fn evaluate(
        &self,
        held_out: &HeldOut,
        group: &mut [&mut TrainState],
    ) -> Result<Vec<HeldOutLoss>> {
        let mut teacher = self.teacher.as_ref().map(RefCell::borrow_mut);
        let subjects = group
            .iter()
            .map(|state| (state.learner.student, state.learner.objective))
            .collect();
        Evaluation::of(
            subjects,
            teacher.as_mut().map(|teacher| &mut ***teacher),
            self.task,
            held_out,
            self.ranks,
        )
    }

    /// Writes down what a step gave; true where an evaluation was some learner's best.
    fn record(
        &self,
        group: &mut [&mut TrainState],
        lr: f64,
        done: &[Step],
        evaluated: &[HeldOutLoss],
    ) -> Result<bool> {
        let mut is_best = false;
        for (idx, (state, done)) in group.iter_mut().zip(done).enumerate() {
            let evaluated = evaluated.get(idx);
            if let Some(found) = evaluated {
                is_best |= state.judge(found, self.ranks)?;
            }
            state.note(lr, done, evaluated)?;
            state.failure = state.refuse_divergence(done, self.max_skipped).err();
        }
        Ok(is_best)
    }

    fn save(&self, step: u64, group: &mut [&mut TrainState]) -> Result<()> {
        let cursor = self.loader_at(step).borrow().cursor();
        if let Some(teacher) = &self.teacher {
            teacher.borrow_mut().settle()?;
        }
        // The state before a learner's divergence is the one to go on from.
        for state in group.iter_mut().filter(|state| state.failure.is_none()) {
            match state.save(cursor.clone(), self.saving.keep, self.ranks) {
                Err(error @ Error::Data(_)) => state.failure = Some(error),
                saved => saved?,
            }
        }
        Ok(())
    }
}
