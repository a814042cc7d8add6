//! What cannot be trained is refused before anything is written.

use serde_json::json;

use super::learner::{Learner, TrainState};
use super::objective::Objective;
use super::resume::without_names;
use super::run::Trainer;
use minitron_core::error::{Error, Result};
use minitron_core::spec::{ModelSpec, Options};
use minitron_core::windows::Task;

impl Trainer<'_> {
    /// Refuses what cannot be trained, before anything is written.
    ///
    /// # Errors
    /// `Recipe` for settings, windows or models that do not go together, `Data` for a student
    /// without a head, `Ranks` where this is not the same on all of them.
    pub fn check(&self) -> Result<()> {
        self.settings.check()?;
        self.saving.check()?;
        let never_evaluates = self
            .held_out
            .is_some_and(|held_out| held_out.every == Some(0));
        if self.max_skipped == 0 || never_evaluates {
            return Err(Error::Recipe(
                "max_skipped, eval_every: expected at least 1".into(),
            ));
        }
        if self.learners.len() > 1 && self.correction.is_some() {
            let message = "correct_teacher: a teacher that learns says something else to every \
                           student; train one at a time";
            return Err(Error::Recipe(message.into()));
        }
        self.learners
            .iter()
            .try_for_each(|learner| self.check_learner(learner))?;
        self.check_same()
    }

    /// Refuses ranks that go on from different places: their output is not one folder.
    pub(super) fn check_ranks(&self, states: &[TrainState]) -> Result<()> {
        let steps: Vec<f64> = states.iter().map(|state| state.saved.step as f64).collect();
        let mut least: Vec<f64> = steps.iter().map(|step| -step).collect();
        let mut most = steps.clone();
        self.ranks.greatest(&mut most)?;
        self.ranks.greatest(&mut least)?;
        let differ = most.iter().zip(&least).any(|(most, least)| *most != -least);
        if differ {
            return Err(Error::Ranks(format!(
                "resume: the ranks find checkpoints of different steps (this one {steps:?}, the \
                 furthest {most:?}); the output folder must be one that all of them see"
            )));
        }
        Ok(())
    }

    /// Refuses ranks that were told something else.
    fn check_same(&self) -> Result<()> {
        for learner in self.learners {
            let mut identity = without_names(&learner.full_identity(self.settings));
            // It decides nothing of the result, and all of what ranks do together.
            identity["shard"] = json!(self.sharding);
            self.ranks.same("training", &identity)?;
        }
        Ok(())
    }

    /// Refuses windows, training or held out, that a model has no positions for.
    fn check_fits(&self, options: &Options) -> Result<()> {
        self.loader.borrow_mut().check_fits(options)?;
        if let Some(long) = &self.long {
            let fits = long.loader.borrow_mut().check_fits(options);
            fits.map_err(|e| e.at("length_stage"))?;
        }
        match &self.held_out {
            Some(held_out) => held_out.windows.check_fits(options),
            None => Ok(()),
        }
    }

    fn check_learner(&self, learner: &Learner) -> Result<()> {
        let Learner {
            student, objective, ..
        } = learner;
        self.check_fits(&student.spec.options)?;
        objective.check()?;
        if !objective.terms.is_empty() && !student.has_head() {
            return Err(Error::Data(
                "the student has no language-model head, so there are no logits to train".into(),
            ));
        }
        match &self.teacher {
            Some(teacher) => self.check_teacher(teacher.borrow().spec(), objective),
            None if objective.needs_teacher() => Err(Error::Recipe(
                "a loss compares with a teacher, and none is given".into(),
            )),
            None => Ok(()),
        }
    }

    fn check_teacher(&self, teacher: &ModelSpec, objective: &Objective) -> Result<()> {
        self.check_fits(&teacher.options)?;
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
}
