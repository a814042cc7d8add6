//! A weighted sum of logit losses, and its gradient in row chunks.

use std::collections::BTreeSet;
use std::sync::Arc;

use tch::Tensor;

use super::teacher::Teacher;
use crate::contract::{LogitLoss, TeacherNeed};
use crate::data::Targets;
use crate::error::{Error, Result};
use crate::model::{NoTap, Transformer, row_chunks};

/// One loss and its weight.
#[derive(Debug)]
pub struct Term {
    /// Name in metrics.
    pub label: String,
    /// Factor in the sum.
    pub weight: f64,
    /// The plugin.
    pub loss: Arc<dyn LogitLoss>,
}

/// `sum of weight · mean over rows of loss`. N rows, E embed, V vocab.
#[derive(Debug)]
pub struct Objective {
    /// The terms.
    pub terms: Vec<Term>,
}

impl Objective {
    /// Whether a teacher has to run.
    pub fn needs_teacher(&self) -> bool {
        self.terms.iter().any(|term| term.loss.teacher() != TeacherNeed::Nothing)
    }

    /// Adds `scale` · gradient of the mean loss to the student's parameters.
    ///
    /// Returns each term's mean over the rows. The value and the gradient equal those of the unchunked loss, up to
    /// the order of summation.
    ///
    /// # Errors
    /// `Plugin` when a loss does not give one number per row.
    pub fn backward(
        &self,
        student: &Transformer,
        teacher: Option<&mut (dyn Teacher + '_)>,
        targets: &Targets,
        scale: f64,
    ) -> Result<Vec<f64>> {
        let lesson = match teacher {
            Some(teacher) if self.needs_teacher() => Some(teacher.lesson(targets, true, &BTreeSet::new())?),
            _ => None,
        };
        let hidden_ne = targets.rows(&student.hidden(&targets.ids_bt, &mut NoTap, None)?)?;
        let n_rows = targets.n_rows();
        let mut sums = vec![0.0; self.terms.len()];
        let mut gradients = Vec::new();
        for (start, len) in row_chunks(n_rows, student.blueprint.options.vocab) {
            let leaf_ne = hidden_ne.f_detach()?.f_narrow(0, start, len)?.f_set_requires_grad(true)?;
            let labels_n = targets.labels_n.f_narrow(0, start, len)?;
            let student_nv = student.logits(&leaf_ne)?;
            let teacher_nv = lesson.as_ref().map(|lesson| lesson.logits(start, len, &student_nv)).transpose()?;
            let total = self.chunk(&student_nv, teacher_nv.as_ref(), &labels_n, &mut sums)?;
            total.f_mul_scalar(scale / n_rows as f64)?.f_backward()?;
            gradients.push(leaf_ne.f_grad()?);
        }
        let gradient_ne = Tensor::f_cat(&gradients, 0)?;
        // d/dh of sum(h · g) is g: how a ready gradient enters the graph.
        hidden_ne.f_mul(&gradient_ne)?.f_sum(hidden_ne.f_kind()?)?.f_backward()?;
        Ok(sums.into_iter().map(|sum| sum / n_rows as f64).collect())
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
            let loss_n = term.loss.rows(student_nv, teacher_nv, labels_n)?;
            if loss_n.size() != labels_n.size() {
                let message =
                    format!("expected one loss for each of {:?} rows, got {:?}", labels_n.size(), loss_n.size());
                return Err(Error::Plugin { tag: term.label.clone(), origin: "loss".into(), message });
            }
            let summed = loss_n.f_sum(tch::Kind::Float)?;
            *sum += summed.f_double_value(&[])?;
            let weighted = summed.f_mul_scalar(term.weight)?;
            total = Some(match total {
                Some(so_far) => so_far.f_add(&weighted)?,
                None => weighted,
            });
        }
        total.ok_or_else(|| Error::Recipe("expected at least one loss".into()))
    }
}
