//! One model that learns, and how far it is.

use std::fmt::{Debug, Formatter};
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::correction::Correction;
use super::counts::Counts;
use super::held_out::{Best, HeldOutLoss};
use super::metrics::{Clock, Metrics};
use super::objective::Objective;
use super::optimizer::{AdamW, MasterWeights};
use super::outcome::Outcome;
use super::reduction::Reduction;
use super::resume::{self, State};
use super::settings::TrainSettings;
use super::shard::Shard;
use super::sharded::ShardedLayers;
use super::step::{Step, Weighed, recent_loss};
use super::teacher::TeacherOutput;
use crate::data::Cursor;
use crate::ranks::Ranks;
use minitron_core::error::{Error, Result};
use minitron_core::model::Transformer;
use minitron_core::progress::Progress;
use minitron_core::windows::Batch;

/// Writes a student, whose masters these are.
pub type WriteStudent<'a> = &'a dyn Fn(&MasterWeights) -> Result<()>;

/// One model that learns.
pub struct Learner<'a> {
    /// Loaded trainable; changed in place.
    pub student: &'a Transformer,
    /// Where its layers' weights are, if every rank keeps a part of them.
    pub layers: Option<&'a ShardedLayers>,
    /// What to minimise.
    pub objective: &'a Objective,
    /// Facts beyond the settings that a resumed run must share: data, models, losses.
    pub identity: Value,
    /// What the learning rate follows from, where it was not given.
    pub kl_at_start: Option<f64>,
    /// Folder for metrics.jsonl, logs/ and checkpoint/.
    pub out_dir: &'a Path,
    /// What becomes of the best student by held-out text.
    pub write_best: Option<WriteStudent<'a>>,
}

impl Learner<'_> {
    /// All that decides what it learns.
    pub(super) fn full_identity(&self, settings: &TrainSettings) -> Value {
        json!({ "settings": settings, "inputs": self.identity })
    }
}

impl Debug for Learner<'_> {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        f.debug_struct("Learner")
            .field("out_dir", &self.out_dir)
            .finish_non_exhaustive()
    }
}

/// Master weights of what was trained, where it computes in less than f32.
#[derive(Debug)]
pub struct Trained {
    /// The student's.
    pub student: MasterWeights,
    /// Those of a teacher that was corrected.
    pub teacher: Option<MasterWeights>,
}

/// A learner on its way.
pub(super) struct TrainState<'a> {
    pub learner: &'a Learner<'a>,
    pub saved: State,
    /// Why it goes no further.
    pub failure: Option<Error>,
    optimizer: AdamW,
    metrics: Metrics,
    clock: Clock,
    recent: Vec<Weighed>,
    step: Step,
    /// The step's gradients on their way, where there are other ranks.
    reduction: Option<Reduction<'a>>,
}

impl<'a> TrainState<'a> {
    /// At an earlier state, restored, or at the beginning, and then nothing of another run stays.
    /// `begin` is where the text of a run from the beginning starts.
    pub fn open(
        learner: &'a Learner<'a>,
        settings: &TrainSettings,
        correction: Option<&Correction>,
        (resume, begin): (bool, &Cursor),
        (ranks, shard): (Ranks, Shard),
        progress: &dyn Progress,
    ) -> Result<Self> {
        let learned = learner
            .student
            .parameters()
            .iter()
            .chain(learner.objective.projects());
        let mut optimizer = AdamW::divided(learned, settings.adamw, (shard, learner.layers))?;
        if let Some(correction) = correction {
            correction.join(&mut optimizer)?;
        }
        let identity = learner.full_identity(settings);
        let resumed = if resume {
            resume::load(learner.out_dir, &identity, &mut optimizer, progress)?
        } else {
            None
        };
        // Nothing goes before all ranks have read it.
        ranks.first(|| match resumed {
            Some(_) => resume::sweep(learner.out_dir),
            None => resume::clear(learner.out_dir),
        })?;
        let state = resumed.unwrap_or_else(|| State {
            kl_at_start: learner.kl_at_start,
            ..State::start(identity, begin.clone())
        });
        let metrics = match ranks.is_first() {
            true => Metrics::open(learner.out_dir, &state)?,
            false => Metrics::nowhere(),
        };
        let clock = Clock::after(state.elapsed_s);
        let (recent, step) = (metrics.losses()?, Step::default());
        Ok(TrainState {
            learner,
            saved: state,
            failure: None,
            optimizer,
            metrics,
            clock,
            recent,
            step,
            reduction: None,
        })
    }

    /// Begins a step of all these predictions and tokens.
    pub fn begin(&mut self, counts: Counts, ranks: Ranks) {
        self.step = Step::begin(self.learner.objective, counts);
        let layers = self.learner.layers;
        let begin = || Reduction::begin(&self.optimizer, ranks, layers);
        self.reduction = (ranks.has_others() || layers.is_some()).then(begin);
    }

    /// Says what the losses on states of the step are multiplied by.
    pub fn set_factors(&mut self, factors: Vec<f64>) {
        self.step.factors = Some(factors);
    }

    /// Adds the gradient of one of the step's batches; after the last one's layers, theirs go to
    /// the other ranks.
    pub fn accumulate(
        &mut self,
        (batch, is_last): (&Batch, bool),
        output: Option<&(dyn TeacherOutput + '_)>,
        correction: Option<&Correction>,
    ) -> Result<()> {
        let (student, objective) = (self.learner.student, self.learner.objective);
        let _span = tracing::debug_span!("student").entered();
        let whole = self.step.counts;
        let of_step = (whole, self.step.factors.as_deref());
        let (optimizer, mut reduction) = (&self.optimizer, self.reduction.as_mut());
        let mut after_layer = |layer| match &mut reduction {
            Some(reduction) => reduction.after_layer(optimizer, layer, is_last),
            None => Ok(()),
        };
        let values = objective.backward_from(student, output, batch, of_step, &mut after_layer)?;
        if let Some(reduction) = reduction {
            reduction.after_pass(optimizer, is_last)?;
        }
        self.step.push(values);
        if let Some(correction) = correction.filter(|_| whole.predictions > 0) {
            let values = correction.backward(batch, whole)?;
            self.step.push_of_teacher(values);
        }
        Ok(())
    }

    /// Takes part in a pass that other ranks make.
    pub fn stand_by(&mut self, is_last: bool) -> Result<()> {
        match &mut self.reduction {
            Some(it) => it.stand_by(self.learner.student, &self.optimizer, is_last),
            None => Ok(()),
        }
    }

    /// Sends what is left of the step's gradients to the other ranks.
    pub fn send(&mut self) -> Result<()> {
        match &mut self.reduction {
            Some(reduction) => reduction.after_all(&self.optimizer),
            None => Ok(()),
        }
    }

    /// Sums gradients and losses of the step over all ranks, each of which had its own windows.
    pub fn reduce(&mut self, ranks: Ranks, has_correction: bool) -> Result<()> {
        let Some(reduction) = self.reduction.take() else {
            return Ok(());
        };
        if has_correction && self.step.counts.predictions > 0 {
            self.step.teacher.get_or_insert_default();
        }
        self.step.settle(Vec::new())?;
        let mut numbers = self.step.numbers();
        ranks.add_up(&mut numbers)?;
        self.step.set_numbers(&numbers);
        reduction.finish(&self.optimizer)
    }

    /// Ends the step that the batches since the last one make, and counts it.
    pub fn apply(
        &mut self,
        (step, n_tokens): (u64, u64),
        lr: f64,
        clip: f64,
        (correction, ranks): (Option<&Correction>, Ranks),
    ) -> Result<Step> {
        let _span = tracing::debug_span!("optimise").entered();
        let mut done = std::mem::take(&mut self.step);
        done.measure(&self.optimizer, correction, ranks)?;
        if done.is_applied() {
            self.optimizer.step(lr, &done.scales(clip), ranks)?;
            self.recent
                .push((done.loss, Some(done.weight(self.learner.objective))));
        } else {
            self.optimizer.skip()?;
        }
        self.saved
            .count(step, n_tokens, (done.is_applied(), done.is_empty));
        Ok(done)
    }

    /// Takes in an evaluation; true where it is the best so far and somebody keeps that. The
    /// student is written before the state says so, so that a run that ends in between comes here
    /// again.
    pub fn judge(&mut self, found: &HeldOutLoss, ranks: Ranks) -> Result<bool> {
        let loss = found.value();
        if !loss.is_finite() || self.saved.best.is_some_and(|best| loss >= best.loss) {
            return Ok(false);
        }
        if let Some(write) = self.learner.write_best {
            self.make_way();
            write(&self.optimizer.masters("", ranks)?)?;
        }
        self.saved.best = Some(Best {
            step: self.saved.step,
            loss,
        });
        Ok(self.learner.write_best.is_some())
    }

    /// The first rank is about to hold the whole student.
    fn make_way(&self) {
        if let Some(layers) = self.learner.layers {
            layers.make_way();
        }
    }

    /// Writes a step's line.
    pub fn note(&mut self, lr: f64, done: &Step, evaluated: Option<&HeldOutLoss>) -> Result<()> {
        let record = self.record(lr, done, evaluated);
        self.metrics.write(self.saved.step, &record)
    }

    fn record(&self, lr: f64, done: &Step, evaluated: Option<&HeldOutLoss>) -> Value {
        let objective = self.learner.objective;
        let mut record = Map::from_iter([
            ("step".to_owned(), json!(self.saved.step)),
            ("n_tokens".to_owned(), json!(self.saved.n_tokens)),
            ("loss".to_owned(), json!(done.loss)),
            ("lr".to_owned(), json!(lr)),
            ("grad_norm".to_owned(), json!(done.norm)),
            ("n_skipped".to_owned(), json!(self.saved.n_skipped)),
            ("elapsed_s".to_owned(), json!(self.clock.elapsed())),
            ("tokens_per_second".to_owned(), json!(self.clock.rate())),
        ]);
        if let Some(kl) = self.saved.kl_at_start.filter(|_| self.saved.step == 1) {
            record.insert("kl_at_start".into(), json!(kl));
        }
        done.record(objective, &mut record);
        if let Some(evaluated) = evaluated {
            record.insert("eval/loss".into(), json!(evaluated.value()));
            let terms = objective.labels().zip(&evaluated.terms);
            record.extend(terms.map(|(label, mean)| (format!("eval/{label}"), json!(mean))));
        }
        Value::Object(record)
    }

    /// The learner's share of the time that a step took.
    pub fn tick(&mut self, n_tokens: u64, took: Duration) {
        self.clock.tick(n_tokens, took);
    }

    /// Keeps a state to go on from; `cursor` is the place in the data.
    ///
    /// # Errors
    /// `Data` where an update has left what no later one mends: the states before stay.
    pub fn save(&mut self, cursor: crate::data::Cursor, keep: usize, ranks: Ranks) -> Result<()> {
        let own = self.optimizer.not_finite()?;
        if ranks.any(own.is_some())? {
            let name = own.map_or("a weight".to_owned(), |name| format!("`{name}`"));
            let what = format!(
                "{name} or its moments are not finite after step {}",
                self.saved.step
            );
            return Err(self.diverged(&what));
        }
        // The first rank's state is everybody's.
        self.saved.metrics_len = self.metrics.sync()?.unwrap_or_default();
        (self.saved.data, self.saved.elapsed_s) = (cursor, self.clock.elapsed());
        let out_dir = self.learner.out_dir;
        resume::save(out_dir, &self.saved, &self.optimizer, keep, ranks)
    }

    /// Ends a run whose last steps all changed nothing.
    pub fn refuse_divergence(&self, done: &Step, max_skipped: u64) -> Result<()> {
        if self.saved.n_skipped_in_row < max_skipped.max(1) {
            return Ok(());
        }
        let Step { loss, norm, .. } = done;
        let (step, in_row) = (self.saved.step, self.saved.n_skipped_in_row);
        let what =
            format!("loss {loss}, gradient norm {norm} at step {step}, {in_row} skipped in a row");
        Err(self.diverged(&what))
    }

    fn diverged(&self, what: &str) -> Error {
        let out_dir = self.learner.out_dir;
        let good = match resume::newest(out_dir) {
            Some(step) => format!(
                "the last good checkpoint is {}",
                resume::step_dir(out_dir, step).display()
            ),
            None => "no checkpoint was written yet".to_owned(),
        };
        Error::Data(format!(
            "training diverged: {what}; {good}; try a lower lr or a longer warm-up"
        ))
    }

    /// How it went.
    pub fn end(
        mut self,
        n_planned: u64,
        is_interrupted: bool,
        (correction, ranks): (Option<&Correction>, Ranks),
    ) -> Result<(Outcome, Trained)> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let outcome = Outcome {
            n_steps: self.saved.step,
            n_planned,
            n_tokens: self.saved.n_tokens,
            n_skipped: self.saved.n_skipped,
            loss: recent_loss(&self.recent),
            best: self.saved.best,
            is_interrupted,
            tokens_per_second: self.clock.rate(),
            memory_bytes: 0,
        };
        self.make_way();
        self.optimizer.forget_moments();
        let of_teacher = correction.map(|it| it.masters(&self.optimizer, ranks));
        let masters = Trained {
            student: self.optimizer.masters("", ranks)?,
            teacher: of_teacher.transpose()?,
        };
        Ok((outcome, masters))
    }
}
