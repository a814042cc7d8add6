use std::fmt::Debug;

use tch::Tensor;

use crate::error::Result;

/// A loss on logits, written once as rows → loss; the engine chunks the rows, weights and averages.
///
/// Shapes: N rows, V vocab.
///
/// # Law
/// Row n of the result depends on row n of the arguments alone and is finite for finite logits; no reduction. It is
/// differentiable in `student_nv`; the teacher carries no gradient.
#[typetag::serde(tag = "type")]
pub trait LogitLoss: Debug + Send + Sync {
    /// Whether `teacher_nv` is needed; where no loss needs it, the teacher does not run.
    fn needs_teacher(&self) -> bool;

    /// `loss_n` in nats (or the loss's own unit) from raw logits [N, V] and next tokens \[N\].
    fn rows(&self, student_nv: &Tensor, teacher_nv: Option<&Tensor>, labels_n: &Tensor) -> Result<Tensor>;
}
