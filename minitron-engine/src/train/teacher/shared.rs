//! Losses between models whose tables have different numbers of rows. N rows, V vocab.

use tch::Tensor;

use crate::train::objective::Term;
use minitron_core::contract::TeacherNeed;
use minitron_core::error::Result;
use minitron_core::model::over_shared_ids;

/// A term's loss of every row. One that compares with the teacher sees both over the ids that both
/// have; labels alone are judged over the student's whole table.
pub(in crate::train) fn losses(
    term: &Term,
    student_nv: &Tensor,
    teacher_nv: Option<&Tensor>,
    labels_n: &Tensor,
) -> Result<Tensor> {
    match teacher_nv {
        Some(teacher_nv) if teacher_nv.size().last() != student_nv.size().last() => {
            if term.loss.teacher() == TeacherNeed::Nothing {
                return term.loss.rows(student_nv, None, labels_n);
            }
            let (student_nv, teacher_nv) = over_shared_ids(student_nv, teacher_nv)?;
            term.loss.rows(&student_nv, Some(&teacher_nv), labels_n)
        }
        teacher_nv => term.loss.rows(student_nv, teacher_nv, labels_n),
    }
}

/// The same, and in place of the student's logits the gradient of the rows' sum times `factor`;
/// none, and the logits as they were, where the loss does not know it or the tables differ.
pub(in crate::train) fn known_gradient(
    term: &Term,
    student_nv: &mut Tensor,
    teacher_nv: Option<&Tensor>,
    labels_n: &Tensor,
    factor: f64,
) -> Result<Option<Tensor>> {
    let teacher_nv = teacher_nv.filter(|_| term.loss.teacher() != TeacherNeed::Nothing);
    if teacher_nv.is_some_and(|teacher_nv| teacher_nv.size() != student_nv.size()) {
        return Ok(None);
    }
    term.loss
        .rows_and_gradient(student_nv, teacher_nv, labels_n, factor)
}
