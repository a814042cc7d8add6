use std::fmt::Debug;

use tch::Tensor;

use crate::error::Result;

/// What a loss compares the student's logits with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TeacherNeed {
    /// Labels alone.
    Nothing,
    /// The teacher's distribution: logits up to a constant per row.
    Distribution {
        /// So many of its likeliest tokens one by one, and all others as one: what a teacher cache
        /// can stand in for. `ALL` where each counts.
        n_tokens: usize,
    },
    /// The teacher's logits as they are.
    Logits,
}

impl TeacherNeed {
    /// Every token of the vocabulary.
    pub const ALL: usize = usize::MAX;
}

/// A loss on logits, written once as rows → loss; the engine chunks the rows, weights and averages.
///
/// Shapes: N rows, V vocab.
///
/// # Law
/// Row n of the result depends on row n of the arguments alone and is finite for finite logits; no
/// reduction. It is differentiable in `student_nv`; the teacher carries no gradient. Where
/// [`TeacherNeed::Distribution`] is stated, a constant added to a row of the teacher's logits
/// changes nothing.
#[typetag::serde(tag = "type")]
pub trait LogitLoss: Debug + Send + Sync {
    /// What of the teacher is needed; where no loss needs it, the teacher does not run.
    fn teacher(&self) -> TeacherNeed;

    /// Whether the gradient in the student's logits is linear in the teacher's distribution, as
    /// that of a divergence from it is: q − p. Then draws from the distribution can stand in for
    /// it, since the mean over draws is the gradient of the whole.
    ///
    /// # Law
    /// Under the mean of two distributions it is the mean of the gradients under each.
    fn is_linear_in_teacher(&self) -> bool {
        false
    }

    /// `loss_n` in nats (or the loss's own unit) from raw logits [N, V] and next tokens \[N\].
    fn rows(
        &self,
        student_nv: &Tensor,
        teacher_nv: Option<&Tensor>,
        labels_n: &Tensor,
    ) -> Result<Tensor>;

    /// The same rows from a loss that knows its gradient in closed form: `factor · d Σₙ loss_n / d
    /// student` [N, V] then stands in place of the student's logits, which are nobody else's and
    /// carry no graph. The teacher's logits stay as they are.
    ///
    /// None, and the logits untouched, where the gradient is left to automatic differentiation,
    /// which takes several more tensors of [N, V].
    ///
    /// # Law
    /// Rows and gradient are those of [`LogitLoss::rows`], up to rounding.
    ///
    /// # Errors
    /// As [`LogitLoss::rows`].
    fn rows_and_gradient(
        &self,
        student_nv: &mut Tensor,
        teacher_nv: Option<&Tensor>,
        labels_n: &Tensor,
        factor: f64,
    ) -> Result<Option<Tensor>> {
        let _ = (student_nv, teacher_nv, labels_n, factor);
        Ok(None)
    }
}
