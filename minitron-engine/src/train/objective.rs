//! A weighted sum of losses, and its gradient with logits in row chunks.

use std::collections::BTreeSet;
use std::sync::Arc;

use tch::Tensor;
use tracing::debug_span;

use super::counts::{Counts, mean};
use super::means::{Means, PassValues, read_all};
use super::pass::{AfterLayer, Pass, at_least, plus};
use super::states::StateTerm;
use super::teacher::{Teacher, TeacherOutput, known_gradient, losses};
use minitron_core::contract::{LogitLoss, TeacherNeed};
use minitron_core::error::{Error, Result};
use minitron_core::model::{Parameter, Site, Transformer, gradient_on_logits};
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
        let (output, of_step) = (output.as_deref(), (whole, None));
        let values = self.backward_from(student, output, batch, of_step, &mut |_| Ok(()))?;
        values.means(&mut read_all([&values], Vec::new())?)
    }

    /// The same from what a teacher said to the batch. `factors` are those of the losses on states,
    /// where the step's values are known; `after_layer` is told of every layer that is done. What
    /// it comes to is left on the device; the host waits for it where a dynamic weight follows from
    /// the batch alone.
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
    ) -> Result<PassValues> {
        let counts = Counts::of(batch)?;
        let mut values = self.no_values(whole);
        if !self.counts_any(counts) {
            Pass::stand_by(student, after_layer)?;
            return Ok(values);
        }
        let sites: BTreeSet<Site> = self
            .states
            .iter()
            .flat_map(StateTerm::student_sites)
            .collect();
        let pass = debug_span!("forward")
            .in_scope(|| Pass::forward(student, batch.input(), &sites, self.recompute))?;
        let mut scalar = None;
        if !self.terms.is_empty() && counts.predictions > 0 {
            let head = student.frame.head()?;
            let inputs_ne = head.inputs(&batch.rows(&pass.hidden_bte)?)?;
            let gradient_ne = debug_span!("losses").in_scope(|| {
                let sums = &mut values.sums;
                self.logit_gradient(student, output, batch, (&inputs_ne, whole), sums)
            })?;
            // d/dh of sum(h · g) is g: how a ready gradient enters the graph.
            scalar = Some(inputs_ne.f_mul(&gradient_ne)?.f_sum(inputs_ne.f_kind()?)?);
        }
        let on_states = self.state_losses(&pass, output, batch)?;
        for value in &on_states {
            values.on_states.push(value.f_detach()?);
        }
        values.factors = match factors {
            Some(factors) => factors.to_vec(),
            None => self.factors_of_batch(&values, counts)?,
        };
        values.share = mean(counts.tokens as f64, whole.tokens);
        for (value, factor) in on_states.iter().zip(&values.factors) {
            let part = value.f_mul_scalar(factor * values.share)?;
            scalar = Some(plus(scalar, part)?);
        }
        let scalar = scalar.ok_or_else(|| Error::Recipe("expected at least one loss".into()))?;
        debug_span!("backward").in_scope(|| pass.backward(&scalar, after_layer))?;
        Ok(values)
    }

    /// Those of a pass in which nothing is compared.
    fn no_values(&self, whole: Counts) -> PassValues {
        PassValues {
            weights: self.terms.iter().map(|term| term.weight).collect(),
            sums: self.terms.iter().map(|_| Vec::new()).collect(),
            factors: vec![0.0; self.states.len()],
            predictions: whole.predictions,
            ..PassValues::default()
        }
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

    /// Factors that follow from one batch alone; where they are given, nothing has to be read.
    fn factors_of_batch(&self, values: &PassValues, counts: Counts) -> Result<Vec<f64>> {
        if !self.is_dynamic() {
            return Ok(self.factors(&vec![0.0; self.labels().count()]));
        }
        let (sums, on_states) = values.values(&mut read_all([values], Vec::new())?)?;
        let on_logits = sums.iter().map(|sum| mean(*sum, counts.predictions));
        let means: Vec<f64> = on_logits.chain(on_states).collect();
        Ok(self.factors(&means))
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
    /// term's sum of every chunk comes to `sums`.
    fn logit_gradient(
        &self,
        student: &Transformer,
        output: Option<&(dyn TeacherOutput + '_)>,
        batch: &Batch,
        (inputs_ne, whole): (&Tensor, Counts),
        sums: &mut [Vec<Tensor>],
    ) -> Result<Tensor> {
        let head = student.frame.head()?;
        head.gradient(
            inputs_ne,
            student.spec.options.vocab,
            |mut student_nv, start| {
                let len = student_nv.size2()?.0;
                let labels_n = batch.labels_n.f_narrow(0, start, len)?;
                let teacher_nv = self.teacher_rows(output, start, len, &student_nv)?;
                let (teacher_nv, share) = (teacher_nv.as_ref(), mean(1.0, whole.predictions));
                let others = (teacher_nv, &labels_n);
                if self.replaced_by_gradient(&mut student_nv, others, share, sums)? {
                    return Ok(Some(student_nv));
                }
                gradient_on_logits(&student_nv, |student_nv| {
                    let total = self.chunk(student_nv, teacher_nv, &labels_n, sums)?;
                    Ok(total.f_mul_scalar(share)?)
                })
            },
        )
    }

    /// Puts in place of a chunk's logits `share` times the gradient of the weighted sum over its
    /// rows, where a single loss knows it; its own sum comes to `sums`. False where none does.
    fn replaced_by_gradient(
        &self,
        student_nv: &mut Tensor,
        (teacher_nv, labels_n): (Option<&Tensor>, &Tensor),
        share: f64,
        sums: &mut [Vec<Tensor>],
    ) -> Result<bool> {
        let ([term], [sum]) = (self.terms.as_slice(), sums) else {
            return Ok(false);
        };
        let factor = term.weight * share;
        let Some(loss_n) = known_gradient(term, student_nv, teacher_nv, labels_n, factor)? else {
            return Ok(false);
        };
        one_per_row(term, &loss_n, labels_n)?;
        sum.push(loss_n.f_sum(loss_n.f_kind()?)?);
        Ok(true)
    }

    /// Weighted sum over a chunk's rows; each term's own sum comes to `sums`.
    fn chunk(
        &self,
        student_nv: &Tensor,
        teacher_nv: Option<&Tensor>,
        labels_n: &Tensor,
        sums: &mut [Vec<Tensor>],
    ) -> Result<Tensor> {
        let mut total: Option<Tensor> = None;
        for (term, sum) in self.terms.iter().zip(sums) {
            let loss_n = losses(term, student_nv, teacher_nv, labels_n)?;
            one_per_row(term, &loss_n, labels_n)?;
            let summed = loss_n.f_sum(loss_n.f_kind()?)?;
            sum.push(summed.f_detach()?);
            let weighted = summed.f_mul_scalar(term.weight)?;
            total = Some(plus(total, weighted)?);
        }
        total.ok_or_else(|| Error::Recipe("expected at least one loss".into()))
    }
}

/// The law of losses on logits.
fn one_per_row(term: &Term, loss_n: &Tensor, labels_n: &Tensor) -> Result<()> {
    if loss_n.size() == labels_n.size() {
        return Ok(());
    }
    let message = format!(
        "expected one loss for each of {:?} rows, got {:?}",
        labels_n.size(),
        loss_n.size()
    );
    Err(Error::Plugin {
        tag: term.label.clone(),
        origin: "loss".into(),
        message,
    })
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
