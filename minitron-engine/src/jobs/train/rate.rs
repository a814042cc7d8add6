//! The learning rate of a training: as given, as its run began, or as the student's distance to its
//! teacher asks for.

use std::cell::RefCell;

use serde_json::{Value, json};

use super::Training;
use super::losses::objective;
use super::start::WeightStart;
use super::teacher_source::TeacherSource;
use crate::data::DataLoader;
use crate::train::{StartRate, Teacher, TrainSettings, mean_at_start, saved_rate, without_names};
use minitron_core::error::{Error, Result};
use minitron_core::model::Transformer;
use minitron_core::spec::HIDDEN;
use minitron_core::windows::Task;

/// What the distance is measured with, before the first step.
pub(super) struct Before<'a, 't> {
    student: &'a Transformer,
    /// Whom the losses ask.
    taught_by: Option<&'a mut (dyn Teacher + 't)>,
    text: (&'a RefCell<DataLoader>, Task),
    /// What decides the run besides its settings.
    identity: &'a Value,
}

impl<'a, 't> Before<'a, 't> {
    pub fn new(
        student: &'a Transformer,
        taught_by: Option<&'a mut (dyn Teacher + 't)>,
        text: (&'a RefCell<DataLoader>, Task),
        identity: &'a Value,
    ) -> Self {
        Before {
            student,
            taught_by,
            text,
            identity,
        }
    }
}

impl Training<'_> {
    /// The learning rate and the settings with it.
    pub(super) fn rate(
        &self,
        start: &WeightStart,
        teacher: Option<&TeacherSource>,
        before: Before,
    ) -> Result<(StartRate, TrainSettings)> {
        let settings = self.options.settings(self.context.seed);
        let rate = match (self.options.lr, teacher) {
            (Some(lr), _) => StartRate::given(lr),
            (None, None) => StartRate::default(),
            (None, Some(teacher)) => self.fitting_rate(start, teacher, before, &settings)?,
        };
        let lr = rate.lr;
        Ok((rate, TrainSettings { lr, ..settings }))
    }

    /// Of a run that was begun before, the rate that it began with.
    fn fitting_rate(
        &self,
        start: &WeightStart,
        teacher: &TeacherSource,
        before: Before,
        settings: &TrainSettings,
    ) -> Result<StartRate> {
        let context = self.context;
        // What follows is done by all ranks or by none.
        let mut asked = json!({ "settings": settings, "inputs": before.identity });
        asked["settings"]["lr"] = Value::Null;
        asked["shard"] = json!(self.options.shard);
        context.ranks.same("training", &without_names(&asked))?;
        let saved = if self.resume {
            saved_rate(self.out_dir)
        } else {
            None
        };
        let is_new = context.ranks.any(saved.is_none())?;
        if let Some(rate) = saved.filter(|_| !is_new) {
            return Ok(rate);
        }
        let tokens_per_step = settings.tokens_per_step(before.text.0.borrow().mean_width());
        let rate = match self.kl_at_start(start, teacher, before, settings)? {
            Some(kl) => StartRate::of_kl(kl, start.spec.size(HIDDEN), tokens_per_step),
            None => StartRate::default(),
        };
        self.check_least(rate)?;
        context.progress.note(&said(rate));
        Ok(rate)
    }

    /// Refuses a last rate above the one that was found.
    fn check_least(&self, rate: StartRate) -> Result<()> {
        match self.options.min_lr {
            Some(least) if least > rate.lr => Err(Error::Recipe(format!(
                "min_lr: expected at most the highest learning rate, got {least:e}; the student's \
                 distance to its teacher gives {:.1e}: give lr too, or a lower min_lr",
                rate.lr
            ))),
            _ => Ok(()),
        }
    }

    /// KL of the student to its teacher; none where a model has no logits.
    fn kl_at_start(
        &self,
        start: &WeightStart,
        teacher: &TeacherSource,
        before: Before,
        settings: &TrainSettings,
    ) -> Result<Option<f64>> {
        let (context, spec) = (self.context, &teacher.folder.spec);
        if spec.options.head.is_none() || !before.student.has_head() {
            return Ok(None);
        }
        let losses = context.defaults.distillation_losses();
        let by_kl = objective(context, &losses, &start.spec, Some(spec), None)?;
        let (loader, task) = before.text;
        loader.borrow_mut().check_fits(&start.spec.options)?;
        loader.borrow_mut().check_fits(&spec.options)?;
        let (loader, ranks) = (loader.borrow(), context.ranks);
        let (text, subject) = ((&*loader, task), (before.student, &by_kl));
        match before.taught_by {
            Some(teaching) if teacher.options.cache_samples.is_none() => {
                mean_at_start(subject, teaching, text, settings, ranks)
            }
            // No loss asks the teacher, or the cache holds draws, whose loss is no distance.
            _ => {
                let mut teaching = teacher.live(context)?;
                mean_at_start(subject, teaching.as_mut(), text, settings, ranks)
            }
        }
    }
}

fn said(rate: StartRate) -> String {
    let StartRate { lr, kl } = rate;
    match kl {
        Some(kl) => format!(
            "learning rate {lr:.1e}, since the student starts {kl:.4} nats of KL from its teacher; \
             --lr takes another"
        ),
        None => format!(
            "learning rate {lr:.1e}: there are no logits to measure the student's distance to its \
             teacher by"
        ),
    }
}
