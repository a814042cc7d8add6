//! A weighted sum of losses, and its gradient with logits in row chunks.

use std::collections::BTreeSet;
use std::sync::Arc;

use tch::Tensor;
use tracing::debug_span;

use super::counts::{Counts, mean};
use super::pass::{AfterLayer, Pass, at_least, plus};
use super::states::StateTerm;
use super::teacher::{Teacher, TeacherOutput, losses};
use minitron_core::contract::{LogitLoss, TeacherNeed};
use minitron_core::error::{Error, Result};
use minitron_core::model::{Parameter, Site, Transformer};
use minitron_core::windows::Batch;

/// One loss on logits and its weight.
#[derive(Debug)]
pub struct Term {
    /// Name in metrics.
    pub label: String,
    /// Factor in the sum.
    pub weight: f64,
    /// The plugin.
    pub loss: Arc<dyn LogitLoss>,
}

impl Term {
    fn needs_teacher(&self) -> bool {
        self.loss.teacher() != TeacherNeed::Nothing
    }
}

/// `Σ weight · mean over predictions of loss + Σ weight · mean over tokens of loss on states`, the
/// means over a whole step. B batch, T tokens, N rows, E embed, V vocab.
#[derive(Debug, Default)]
pub struct Objective {
    /// Losses on logits.
    pub terms: Vec<Term>,
    /// Losses on states.
    pub states: Vec<StateTerm>,
    /// Whether every layer runs a second time instead of its inside being held.
    pub recompute: bool,
}

/// What one batch adds to the means of its step; the means themselves where the step is that batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Means {
    /// Each term's own value, in the order of [`Objective::labels`].
    pub terms: Vec<f64>,
    /// The weighted sum.
    pub total: f64,
}

impl Objective {
    /// Whether a teacher has to run.
    pub fn needs_teacher(&self) -> bool {
        !self.states.is_empty() || self.needs_teacher_logits()
    }

    /// Whether a loss compares with the teacher's logits.
    pub fn needs_teacher_logits(&self) -> bool {
        self.terms.iter().any(Term::needs_teacher)
    }

    /// Names of the terms in metrics.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        let states = self.states.iter().map(|term| term.label.as_str());
        self.terms
            .iter()
            .map(|term| term.label.as_str())
            .chain(states)
    }

    /// Learned maps, which are trained with the student.
    pub fn projects(&self) -> impl Iterator<Item = &Parameter> {
        self.states.iter().filter_map(StateTerm::lift)
    }

    /// Whether a loss is averaged over something in so many predictions and tokens.
    pub(super) fn counts_any(&self, of: Counts) -> bool {
        (!self.terms.is_empty() && of.predictions > 0) || (!self.states.is_empty() && of.tokens > 0)
    }

    /// Whether a weight follows from the values of the step.
    pub(super) fn is_dynamic(&self) -> bool {
        self.states.iter().any(StateTerm::is_dynamic)
    }

    /// What each loss on states is multiplied by, from the means of all terms.
    pub(super) fn factors(&self, means: &[f64]) -> Vec<f64> {
        let (on_logits, on_states) = means.split_at(self.terms.len().min(means.len()));
        let reference = self.reference(on_logits);
        self.states
            .iter()
            .zip(on_states)
            .map(|(term, mean)| term.factor(reference, *mean))
            .collect()
    }

    /// What a dynamic weight makes its term as large as: the losses that compare with the teacher's
    /// logits (all on logits where none does), divided among the dynamic terms.
    fn reference(&self, means: &[f64]) -> f64 {
        let any = self.needs_teacher_logits();
        let counted = self
            .terms
            .iter()
            .zip(means)
            .filter(|(term, _)| !any || term.needs_teacher());
        let sum: f64 = counted.map(|(term, mean)| term.weight * mean).sum();
        let n_dynamic = self.states.iter().filter(|term| term.is_dynamic()).count();
        sum / n_dynamic.max(1) as f64
    }

    /// Refuses sums that cannot be.
    ///
    /// # Errors
    /// `Recipe` for no loss at all, or a share of losses on logits where there are none.
    pub fn check(&self) -> Result<()> {
        if self.terms.is_empty() && self.states.is_empty() {
            return Err(Error::Recipe("expected at least one loss".into()));
        }
        match self.states.iter().find(|term| term.is_dynamic()) {
            Some(term) if self.terms.is_empty() => Err(Error::Recipe(format!(
                "`{}`: alpha: dynamic takes the size of the losses on logits, and there are none; \
                 give a number",
                term.label
            ))),
            _ => Ok(()),
        }
    }

    /// Adds a batch's part of the gradient of its step's objective to the student's parameters and
    /// the learned maps: sums over the batch, divided by the `whole` step's counts. A dynamic
    /// weight goes by the batch alone.
    ///
    /// Values and gradients equal those of the unchunked loss, up to the order of summation: of the
    /// logits, one chunk of rows exists at a time, and what it leaves is its gradient on the last
    /// hidden state.
    ///
    /// # Errors
    /// `Plugin` when a loss does not give one number per row, or per pair of states.
    pub fn backward(
        &self,
        student: &Transformer,
        teacher: Option<&mut (dyn Teacher + '_)>,
        batch: &Batch,
        whole: Counts,
    ) -> Result<Means> {
        let output = teacher_output([self], teacher, batch)?;
        let of_step = (whole, None);
        self.backward_from(student, output.as_deref(), batch, of_step, &mut |_| Ok(()))
    }

    /// The same from what a teacher said to the batch. `factors` are those of the losses on states,
    /// where the step's values are known; `after_layer` is told of every layer that is done.
    ///
    /// # Errors
    /// As [`Objective::backward`].
    pub(super) fn backward_from(
        &self,
        student: &Transformer,
        output: Option<&(dyn TeacherOutput + '_)>,
        batch: &Batch,
        (whole, factors): (Counts, Option<&[f64]>),
        after_layer: AfterLayer,
    ) -> Result<Means> {
        let counts = Counts::of(batch)?;
        if !self.counts_any(counts) {
            Pass::stand_by(student, after_layer)?;
            return Ok(Means {
                terms: vec![0.0; self.terms.len() + self.states.len()],
                total: 0.0,
            });
        }
        let sites: BTreeSet<Site> = self
            .states
            .iter()
            .flat_map(StateTerm::student_sites)
            .collect();
        let pass = debug_span!("forward")
            .in_scope(|| Pass::forward(student, batch.input(), &sites, self.recompute))?;
        let mut sums = vec![0.0; self.terms.len()];
        let mut scalar = None;
        if !self.terms.is_empty() && counts.predictions > 0 {
            let head = student.frame.head()?;
            let inputs_ne = head.inputs(&batch.rows(&pass.hidden_bte)?)?;
            let gradient_ne = debug_span!("losses").in_scope(|| {
                self.logit_gradient(student, output, batch, (&inputs_ne, whole), &mut sums)
            })?;
            // d/dh of sum(h · g) is g: how a ready gradient enters the graph.
            scalar = Some(inputs_ne.f_mul(&gradient_ne)?.f_sum(inputs_ne.f_kind()?)?);
        }
        let values = self.state_losses(&pass, output, batch)?;
        let mut on_states = Vec::with_capacity(values.len());
        for value in &values {
            on_states.push(value.f_double_value(&[])?);
        }
        let factors = match factors {
            Some(factors) => factors.to_vec(),
            None => self.factors_of_batch(&sums, counts, &on_states),
        };
        let share = mean(counts.tokens as f64, whole.tokens);
        for (value, factor) in values.iter().zip(&factors) {
            let part = value.f_mul_scalar(factor * share)?;
            scalar = Some(plus(scalar, part)?);
        }
        let scalar = scalar.ok_or_else(|| Error::Recipe("expected at least one loss".into()))?;
        debug_span!("backward").in_scope(|| pass.backward(&scalar, after_layer))?;
        Ok(self.means(&sums, whole, &on_states, (&factors, share)))
    }

    /// The value of each loss on states.
    fn state_losses(
        &self,
        pass: &Pass,
        output: Option<&(dyn TeacherOutput + '_)>,
        batch: &Batch,
    ) -> Result<Vec<Tensor>> {
        let mut values = Vec::with_capacity(self.states.len());
        for term in &self.states {
            let output = output
                .ok_or_else(|| Error::Internal("losses on states without a teacher".into()))?;
            let compared_bt = batch.compared_bt();
            values.push(term.value(&pass.states, |site| output.states(site), compared_bt)?);
        }
        Ok(values)
    }

    /// Factors that follow from one batch alone.
    fn factors_of_batch(&self, sums: &[f64], counts: Counts, on_states: &[f64]) -> Vec<f64> {
        let on_logits = sums.iter().map(|sum| mean(*sum, counts.predictions));
        let means: Vec<f64> = on_logits.chain(on_states.iter().copied()).collect();
        self.factors(&means)
    }

    /// What a batch adds to the step's means.
    fn means(
        &self,
        sums: &[f64],
        whole: Counts,
        on_states: &[f64],
        (factors, share): (&[f64], f64),
    ) -> Means {
        let mut means = Means {
            terms: Vec::new(),
            total: 0.0,
        };
        for (term, sum) in self.terms.iter().zip(sums) {
            let mean = mean(*sum, whole.predictions);
            means.terms.push(mean);
            means.total += term.weight * mean;
        }
        for (value, factor) in on_states.iter().zip(factors) {
            means.terms.push(value * share);
            means.total += factor * (value * share);
        }
        means
    }

    /// The teacher's logits at some rows, where a loss compares with them; in the student's type or
    /// a wider one.
    pub(super) fn teacher_rows(
        &self,
        output: Option<&(dyn TeacherOutput + '_)>,
        start: i64,
        len: i64,
        student_nv: &Tensor,
    ) -> Result<Option<Tensor>> {
        let output = output.filter(|_| self.needs_teacher_logits());
        output
            .map(|output| at_least(output.logits(start, len, student_nv)?, student_nv.f_kind()?))
            .transpose()
    }

    /// Gradient of the losses on logits, over all predictions of the step, with respect to the rows
    /// [N, E] that the head projects; the projection's own gradient is added on the way, and each
    /// term's sum to `sums`.
    fn logit_gradient(
        &self,
        student: &Transformer,
        output: Option<&(dyn TeacherOutput + '_)>,
        batch: &Batch,
        (inputs_ne, whole): (&Tensor, Counts),
        sums: &mut [f64],
    ) -> Result<Tensor> {
        let head = student.frame.head()?;
        head.gradient(
            inputs_ne,
            student.spec.options.vocab,
            |student_nv, start| {
                let len = student_nv.size2()?.0;
                let labels_n = batch.labels_n.f_narrow(0, start, len)?;
                let teacher_nv = self.teacher_rows(output, start, len, student_nv)?;
                let total = self.chunk(student_nv, teacher_nv.as_ref(), &labels_n, sums)?;
                Ok(total.f_mul_scalar(mean(1.0, whole.predictions))?)
            },
        )
    }

    /// Weighted sum over a chunk's rows; adds each term's own sum to `sums`.
    fn chunk(
        &self,
        student_nv: &Tensor,
        teacher_nv: Option<&Tensor>,
        labels_n: &Tensor,
        sums: &mut [f64],
    ) -> Result<Tensor> {
        let mut total: Option<Tensor> = None;
        for (term, sum) in self.terms.iter().zip(sums) {
            let loss_n = losses(term, student_nv, teacher_nv, labels_n)?;
            if loss_n.size() != labels_n.size() {
                let message = format!(
                    "expected one loss for each of {:?} rows, got {:?}",
                    labels_n.size(),
                    loss_n.size()
                );
                return Err(Error::Plugin {
                    tag: term.label.clone(),
                    origin: "loss".into(),
                    message,
                });
            }
            let summed = loss_n.f_sum(loss_n.f_kind()?)?;
            *sum += summed.f_double_value(&[])?;
            let weighted = summed.f_mul_scalar(term.weight)?;
            total = Some(plus(total, weighted)?);
        }
        total.ok_or_else(|| Error::Recipe("expected at least one loss".into()))
    }
}

/// What the teacher says to a batch, where a loss of one of the objectives asks it; of logits
/// nothing where nothing is predicted.
pub(super) fn teacher_output<'t, 'o>(
    objectives: impl IntoIterator<Item = &'o Objective>,
    teacher: Option<&'t mut (dyn Teacher + '_)>,
    batch: &Batch,
) -> Result<Option<Box<dyn TeacherOutput + 't>>> {
    let predicts = batch.n_rows() > 0;
    let asking: Vec<&Objective> = objectives
        .into_iter()
        .filter(|objective| {
            !objective.states.is_empty() || (predicts && objective.needs_teacher_logits())
        })
        .collect();
    let Some(teacher) = teacher else {
        return Ok(None);
    };
    if asking.is_empty() {
        teacher.stand_by()?;
        return Ok(None);
    }
    let _span = debug_span!("teacher", n_windows = batch.n_windows()).entered();
    let sites = asking
        .iter()
        .flat_map(|objective| &objective.states)
        .flat_map(StateTerm::teacher_sites)
        .collect();
    let with_logits = predicts
        && asking
            .iter()
            .any(|objective| objective.needs_teacher_logits());
    let mut output = teacher.forward(batch, with_logits, &sites)?;
    if asking.len() > 1 {
        output.keep();
    }
    Ok(Some(output))
}
