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
