//! What the student makes of text that it is not trained on.

use std::fmt::{Debug, Formatter};

use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};

use super::objective::Objective;
use super::optimizer::Masters;
use super::states::StateTerm;
use super::teacher::{Kept, Lesson, Teacher};
use crate::data::{Targets, Task, Windows};
use crate::error::{Error, Result};
use crate::model::{Transformer, row_chunks};

/// Text for evaluations between steps, and what becomes of the best student.
#[derive(Clone, Copy)]
pub struct HeldOut<'a> {
    /// The same windows every time.
    pub windows: &'a Windows,
    /// Windows per forward pass.
    pub batch_size: usize,
    /// Steps between evaluations; a tenth of the run where not given. The last step is evaluated anyhow.
    pub every: Option<u64>,
    /// Writes the student, whose masters these are, where it is the best so far.
    pub write_best: &'a dyn Fn(&Masters) -> Result<()>,
}

impl Debug for HeldOut<'_> {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        f.debug_struct("HeldOut").field("every", &self.every).finish_non_exhaustive()
    }
}

/// The best evaluation of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// After which step.
    pub step: u64,
    /// Its [`HeldOutLoss::value`].
    pub loss: f64,
}

/// Means over all predictions on held-out windows.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldOutLoss {
    /// Negative log-likelihood of the right tokens in nats; none where there is no head.
    pub nll: Option<f64>,
    /// Each term of the objective, in its order.
    pub terms: Vec<f64>,
    /// `sum of weight · term`.
    pub objective: f64,
}

impl HeldOutLoss {
    /// What evaluations are compared by: the likelihood, or the objective where there is none.
    pub fn value(&self) -> f64 {
        self.nll.unwrap_or(self.objective)
    }
}

impl Objective {
    /// The means of every term and of the likelihood over held-out windows: no gradient, nothing drawn, row-chunked as in
    /// training.
    ///
    /// # Errors
    /// As [`Objective::backward`].
    pub fn evaluate(
        &self,
        student: &Transformer,
        mut teacher: Option<&mut (dyn Teacher + '_)>,
        task: Task,
        held_out: &HeldOut,
    ) -> Result<HeldOutLoss> {
        let _no_grad = tch::no_grad_guard();
        let sites = self.states.iter().flat_map(StateTerm::student_sites).collect();
        let (mut nll, mut sums, mut n_rows) = (0.0, vec![0.0; self.labels().count()], 0);
        let (on_logits, on_states) = sums.split_at_mut(self.terms.len());
        for batch in held_out.windows.batches(held_out.batch_size) {
            let targets = task.batch(held_out.windows, &batch.collect::<Vec<_>>(), student.device)?;
            let lesson = self.ask(teacher.as_deref_mut(), &targets)?;
            let mut kept = Kept::at(&sites);
            let hidden_bte = student.hidden(targets.input(), &mut kept, None)?;
            if let Some(lesson) = &lesson {
                for (term, sum) in self.states.iter().zip(&mut *on_states) {
                    let value = term.value(&kept.states, |site| lesson.states(site), targets.seen_bt.as_ref())?;
                    *sum += value.f_double_value(&[])? * targets.n_windows() as f64;
                }
            }
            n_rows += targets.n_rows();
            if student.has_head() {
                nll += self.evaluate_rows(student, lesson.as_deref(), &targets, &hidden_bte, on_logits)?;
            }
        }
        if n_rows == 0 && !self.terms.is_empty() {
            return Err(Error::Data("the held-out text has nothing to predict".into()));
        }
        let n_windows = held_out.windows.len() as f64;
        on_logits.iter_mut().for_each(|sum| *sum /= n_rows as f64);
        on_states.iter_mut().for_each(|sum| *sum /= n_windows);
        let mut objective: f64 = self.terms.iter().zip(&*on_logits).map(|(term, mean)| term.weight * mean).sum();
        let reference = self.reference(on_logits);
        for (term, mean) in self.states.iter().zip(&*on_states) {
            objective += term.factor(reference, *mean) * mean;
        }
        let terms = sums;
        Ok(HeldOutLoss { nll: (student.has_head() && n_rows > 0).then(|| nll / n_rows as f64), terms, objective })
    }
    /// Adds each term's sum over the batch's rows to `sums`; returns that of the likelihood.
    fn evaluate_rows(
        &self,
        student: &Transformer,
        lesson: Option<&(dyn Lesson + '_)>,
        targets: &Targets,
        hidden_bte: &Tensor,
        sums: &mut [f64],
    ) -> Result<f64> {
        let hidden_ne = targets.rows(hidden_bte)?;
        let mut nll = 0.0;
        for (start, len) in row_chunks(targets.n_rows(), student.blueprint.options.vocab) {
            let labels_n = targets.labels_n.f_narrow(0, start, len)?;
            let student_nv = student.logits(&hidden_ne.f_narrow(0, start, len)?)?;
            let teacher_nv = self.teacher_rows(lesson, start, len, &student_nv)?;
            for (term, sum) in self.terms.iter().zip(&mut *sums) {
                let loss_n = term.loss.rows(&student_nv, teacher_nv.as_ref(), &labels_n)?;
                *sum += loss_n.f_sum(Kind::Double)?.f_double_value(&[])?;
            }
            let logits_nv = student_nv.f_to_kind(Kind::Float)?;
            let nll_n = logits_nv.f_cross_entropy_loss(&labels_n, None::<Tensor>, Reduction::None, -100, 0.0)?;
            nll += nll_n.f_sum(Kind::Double)?.f_double_value(&[])?;
        }
        Ok(nll)
    }
}
