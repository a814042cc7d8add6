//! The loop.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use tch::Device;
use tracing::{debug_span, info_span};

use super::batches::Batches;
use super::correction::Correction;
use super::counts::Counts;
use super::held_out::{Evaluation, HeldOut, HeldOutLoss};
use super::learner::{Learner, Outcome, TrainState, Trained};
use super::memory::{BatchShape, StepMemory};
use super::objective::teacher_output;
use super::resume::State;
use super::saving::Saving;
use super::settings::TrainSettings;
use super::step::Step;
use super::teacher::Teacher;
use crate::data::DataLoader;
use crate::memory::{available_bytes, resident_bytes};
use minitron_core::error::{Error, Result};
use minitron_core::progress::{Interrupt, Progress};
use minitron_core::spec::Options;
use minitron_core::windows::Task;

/// The program with libtorch, and the buffers of matrix products, at least.
const BASE_BYTES: u64 = 300 << 20;

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
        let width = self.loader.borrow().mean_width();
        let (schedule, per_step) = (
            self.settings.schedule(width),
            self.settings.tokens_per_step(width),
        );
        let first = states
            .iter()
            .map(|state| state.saved.step)
            .min()
            .unwrap_or(0);
        let last = self
            .stop_after
            .unwrap_or(schedule.n_steps)
            .min(schedule.n_steps);
        let mut timer = self.saving.timer(schedule.n_steps);
        self.progress.note(&memory.says());
        let on_cpu = self
            .learners
            .first()
            .is_some_and(|learner| learner.student.device == Device::Cpu);
        if let Some(warning) = available_bytes()
            .filter(|_| on_cpu)
            .and_then(|free| memory.beyond(free))
        {
            self.progress.warn(&warning);
        }
        let (mut note, mut teacher_s, mut is_interrupted) = (Note::default(), [0.0; 2], false);
        self.progress
            .start("train, tokens", schedule.n_steps.saturating_mul(per_step));
        self.progress.advance(first.saturating_mul(per_step), "");
        for step in first + 1..=last {
            let _span = debug_span!("step", step).entered();
            if states.iter().all(|state| state.failure.is_some()) {
                break;
            }
            let behind =
                |state: &&mut TrainState| state.saved.step < step && state.failure.is_none();
            let mut group: Vec<&mut TrainState> = states.iter_mut().filter(behind).collect();
            let (lr, begin) = (schedule.at(step), Instant::now());
            for (sum, time) in teacher_s.iter_mut().zip(self.learn(&mut group)?) {
                *sum += time.as_secs_f64();
            }
            let done = self.apply(&mut group, step, per_step, lr)?;
            note.warn_of_empty(step, &done, self.progress);
            let took = begin
                .elapsed()
                .checked_div(group.len() as u32)
                .unwrap_or_default();
            group
                .iter_mut()
                .for_each(|state| state.tick(per_step, took));
            let evaluated = match &self.held_out {
                Some(held_out)
                    if step == schedule.n_steps || timer.is_evaluated(step, held_out) =>
                {
                    self.evaluate(held_out, &mut group)?
                }
                _ => Vec::new(),
            };
            let is_best = self.record(&mut group, lr, &done, &evaluated)?;
            self.progress
                .advance(per_step, &note.after(&done, lr, &evaluated));
            let asked = self.interrupt.is_asked();
            if timer.is_due(step) || is_best || step == last || asked {
                self.save(&mut group)?;
                timer.reset();
            }
            if asked {
                self.progress.note(&format!(
                    "interrupted: step {step} of {} is saved",
                    schedule.n_steps
                ));
                is_interrupted = step < last;
                break;
            }
        }
        self.progress.finish();
        let end = |state: TrainState| {
            let (outcome, trained) =
                state.end(schedule.n_steps, is_interrupted, self.correction.as_ref())?;
            Ok((
                Outcome {
                    memory_bytes: memory.total(),
                    ..outcome
                },
                trained,
            ))
        };
        let [teacher_s, spared_s] = teacher_s;
        Ok(Run {
            learners: states.into_iter().map(end).collect(),
            teacher_s,
            spared_s,
        })
    }

    /// Every learner where it stands, and the text at the place of the one that is least far.
    fn states(&self, resume: bool) -> Result<Vec<TrainState<'_>>> {
        let begin = self.loader.borrow().cursor();
        let open = |learner| {
            let start = |identity| State::start(identity, begin.clone());
            TrainState::open(
                learner,
                self.settings,
                self.correction.as_ref(),
                (resume, start),
                self.progress,
            )
        };
        let states = self.learners.iter().map(open).collect::<Result<Vec<_>>>()?;
        let least = states.iter().min_by_key(|state| state.saved.step);
        if let Some(state) = least.filter(|state| state.saved.step > 0) {
            self.loader.borrow_mut().seek(&state.saved.data)?;
        }
        Ok(states)
    }

    /// Shows a step's batches to everyone; returns the time that the teacher took, and that which
    /// it was spared.
    fn learn(&self, group: &mut [&mut TrainState]) -> Result<[Duration; 2]> {
        let mut teacher = self.teacher.as_ref().map(RefCell::borrow_mut);
        let (mut took, mut spared) = (Duration::ZERO, Duration::ZERO);
        let n_others = (group.len() as u32).saturating_sub(1);
        let Some(device) = self.learners.first().map(|learner| learner.student.device) else {
            return Ok([took, spared]);
        };
        let (batches, whole) = debug_span!("data").in_scope(|| self.batches(device))?;
        group.iter_mut().for_each(|state| state.begin(whole));
        if batches.len() > 1 {
            took += weigh_states(
                &batches,
                group,
                teacher.as_mut().map(|teacher| &mut ***teacher),
            )?;
        }
        batches.each(|batch| {
            let begin = Instant::now();
            let objectives = group.iter().map(|state| state.learner.objective);
            let output = teacher_output(
                objectives,
                teacher.as_mut().map(|teacher| &mut ***teacher),
                batch,
            )?;
            let asking = begin.elapsed();
            for state in &mut *group {
                state.learn(batch, output.as_deref(), self.correction.as_ref())?;
            }
            let (by_logits, kept) = output.map(|output| output.took()).unwrap_or_default();
            took += asking + by_logits;
            spared += asking.saturating_mul(n_others) + kept;
            Ok(())
        })?;
        Ok([took, spared])
    }

    /// The next step's batches, and over how much they are averaged.
    fn batches(&self, device: Device) -> Result<(Batches, Counts)> {
        let passes = (self.settings.batch_size, self.settings.accumulate);
        let batches = Batches::take(&mut self.loader.borrow_mut(), self.task, passes, device)?;
        let whole = batches.counts()?;
        Ok((batches, whole))
    }

    fn apply(
        &self,
        group: &mut [&mut TrainState],
        step: u64,
        per_step: u64,
        lr: f64,
    ) -> Result<Vec<Step>> {
        let place = (step, step * per_step);
        let apply = |state: &mut &mut TrainState| {
            state.apply(place, lr, self.settings.clip, self.correction.as_ref())
        };
        group.iter_mut().map(apply).collect()
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
            is_best |= evaluated
                .map(|found| state.judge(found))
                .transpose()?
                .unwrap_or(false);
            state.note(lr, done, evaluated)?;
            state.failure = state.refuse_divergence(done, self.max_skipped).err();
        }
        Ok(is_best)
    }

    fn save(&self, group: &mut [&mut TrainState]) -> Result<()> {
        if let Some(teacher) = &self.teacher {
            teacher.borrow_mut().settle()?;
        }
        // The state before a learner's divergence is the one to go on from.
        for state in group.iter_mut().filter(|state| state.failure.is_none()) {
            match state.save(self.loader.borrow().cursor(), self.saving.keep) {
                Err(error @ Error::Data(_)) => state.failure = Some(error),
                saved => saved?,
            }
        }
        Ok(())
    }

    /// Refuses what cannot be trained, before anything is written.
    ///
    /// # Errors
    /// `Recipe` for settings, windows or models that do not go together, `Data` for a student
    /// without a head.
    pub fn check(&self) -> Result<()> {
        self.settings.check()?;
        self.saving.check()?;
        if self.max_skipped == 0
            || self
                .held_out
                .is_some_and(|held_out| held_out.every == Some(0))
        {
            return Err(Error::Recipe(
                "max_skipped, eval_every: expected at least 1".into(),
            ));
        }
        let fits = |options: &Options| {
            self.loader.borrow_mut().check_fits(options)?;
            self.held_out
                .iter()
                .try_for_each(|held_out| held_out.windows.check_fits(options))
        };
        if self.learners.len() > 1 && self.correction.is_some() {
            let message = "correct_teacher: a teacher that learns says something else to every \
                           student; train one at a time";
            return Err(Error::Recipe(message.into()));
        }
        self.learners
            .iter()
            .try_for_each(|learner| self.check_learner(learner, &fits))
    }

    fn check_learner(
        &self,
        learner: &Learner,
        fits: &dyn Fn(&Options) -> Result<()>,
    ) -> Result<()> {
        let Learner {
            student, objective, ..
        } = learner;
        fits(&student.spec.options)?;
        objective.check()?;
        if !objective.terms.is_empty() && !student.has_head() {
            return Err(Error::Data(
                "the student has no language-model head, so there are no logits to train".into(),
            ));
        }
        let Some(teacher) = &self.teacher else {
            if objective.needs_teacher() {
                return Err(Error::Recipe(
                    "a loss compares with a teacher, and none is given".into(),
                ));
            }
            return Ok(());
        };
        let teacher = teacher.borrow();
        let teacher = teacher.spec();
        fits(&teacher.options)?;
        if let Some(correction) = &self.correction
            && (self.task == Task::States || !correction.model.has_head())
        {
            let message = "correct_teacher: it learns from labels, and without a language-model \
                           head there are none";
            return Err(Error::Recipe(message.into()));
        }
        if !objective.needs_teacher_logits() && self.correction.is_none() {
            return Ok(());
        }
        if teacher.options.head.is_none() {
            return Err(Error::Data(
                "the teacher has no language-model head, so there are no logits to learn from"
                    .into(),
            ));
        }
        Ok(())
    }

    /// What a step will take, from shapes: every student's own, and the widest one's activations,
    /// beside what the process takes by now without its models (tokenising a text leaves some
    /// behind).
    pub fn memory(&self) -> StepMemory {
        let teacher = self.teacher.as_ref().map(RefCell::borrow);
        let teacher = teacher
            .as_ref()
            .map(|teacher| (teacher.spec(), teacher.kept_bytes()));
        let width = self.loader.borrow().width();
        let n_bytes_of = |learner: &Learner| {
            learner
                .student
                .parameters()
                .first()
                .map_or(4, |p| p.tensor.kind().elt_size_in_bytes())
        };
        let weights = |learner: &Learner| {
            learner
                .student
                .spec
                .n_params()
                .saturating_mul(n_bytes_of(learner) as u64)
        };
        let models = self
            .learners
            .iter()
            .map(weights)
            .fold(teacher.map_or(0, |(_, kept)| kept), u64::saturating_add);
        let base = BASE_BYTES.max(resident_bytes().saturating_sub(models));
        let of = |learner: &Learner| {
            let n_bytes = n_bytes_of(learner);
            let batch = BatchShape {
                n_windows: self.settings.batch_size,
                width,
                n_bytes,
            };
            let memory = StepMemory::of(
                learner.objective,
                &learner.student.spec,
                teacher,
                batch,
                base,
            );
            match &self.correction {
                Some(correction) => memory.with_correction(correction, batch),
                None => memory,
            }
        };
        self.learners
            .iter()
            .map(of)
            .reduce(StepMemory::beside)
            .unwrap_or_default()
    }
}

/// A round without gradient that finds out what dynamic weights are in a step of several passes:
/// they follow from its values as a whole. Returns the time that the teacher took.
fn weigh_states(
    batches: &Batches,
    group: &mut [&mut TrainState],
    mut teacher: Option<&mut (dyn Teacher + '_)>,
) -> Result<Duration> {
    let mut dynamic: Vec<&mut &mut TrainState> = group
        .iter_mut()
        .filter(|state| state.learner.objective.is_dynamic())
        .collect();
    if dynamic.is_empty() {
        return Ok(Duration::ZERO);
    }
    let (_no_grad, _span) = (tch::no_grad_guard(), debug_span!("weigh").entered());
    let mut took = Duration::ZERO;
    let subjects = dynamic
        .iter()
        .map(|state| (state.learner.student, state.learner.objective));
    let mut evaluations: Vec<Evaluation> = subjects.map(Evaluation::start).collect();
    batches.each(|batch| {
        let begin = Instant::now();
        let objectives = dynamic.iter().map(|state| state.learner.objective);
        let output = teacher_output(objectives, teacher.as_deref_mut(), batch)?;
        took += begin.elapsed();
        evaluations
            .iter_mut()
            .try_for_each(|evaluation| evaluation.add(output.as_deref(), batch))?;
        took += output.map(|output| output.took().0).unwrap_or_default();
        Ok(())
    })?;
    for (state, evaluation) in dynamic.iter_mut().zip(&evaluations) {
        state.set_factors(evaluation.factors());
    }
    Ok(took)
}

/// What stands beside the bar: of several learners, the best one's.
#[derive(Default)]
struct Note {
    held_out: String,
    has_warned: bool,
}

impl Note {
    /// Says once that a step had nothing to learn from; the record of each such step says so too.
    fn warn_of_empty(&mut self, step: u64, done: &[Step], progress: &dyn Progress) {
        if done.iter().any(|step| step.is_empty) && !std::mem::replace(&mut self.has_warned, true) {
            progress.warn(&format!(
                "step {step}: nothing is predicted in its windows, so it changes nothing; such \
                 steps have \
                 \"n_predictions\":0 in metrics.jsonl"
            ));
        }
    }

    fn after(&mut self, done: &[Step], lr: f64, evaluated: &[HeldOutLoss]) -> String {
        let least = |values: Vec<f64>| values.into_iter().min_by(f64::total_cmp);
        if let Some(loss) = least(evaluated.iter().map(HeldOutLoss::value).collect()) {
            self.held_out = format!("  held out {loss:.4}");
        }
        let applied = done
            .iter()
            .filter(|step| step.is_applied())
            .map(|step| step.loss)
            .collect();
        let loss =
            least(applied).map_or("step skipped".to_owned(), |loss| format!("loss {loss:.4}"));
        format!("{loss}  lr {lr:.1e}{}", self.held_out)
    }
}
