//! What the student's channels hold of the teacher's.

use tch::{Kind, Tensor};

use super::editor::StudentEditor;
use super::projections::ProjectionStats;
use crate::error::Result;
use crate::spec::HIDDEN;

/// With what the student's input lacks of the teacher's: all of it at dropped channels.
pub(super) fn of_inputs(
    editor: &StudentEditor,
    stats: &ProjectionStats,
    student_bte: &Tensor,
    teacher_bte: &Tensor,
) -> Result<Vec<Tensor>> {
    let eye = Tensor::f_eye(
        editor.teacher_spec().size(HIDDEN) as i64,
        (Kind::Float, teacher_bte.device()),
    )?;
    let spread = student_bte
        .f_to_kind(Kind::Float)?
        .f_matmul(&kept_channels(editor, &eye, 1)?.f_transpose(0, 1)?)?;
    stats.moments(
        student_bte,
        &teacher_bte.f_to_kind(Kind::Float)?.f_sub(&spread)?,
        teacher_bte,
    )
}

/// The teacher's activations at the residual channels that the student kept.
pub(super) fn kept_channels(editor: &StudentEditor, x: &Tensor, side: i64) -> Result<Tensor> {
    let kept: Vec<i64> = editor
        .kept(HIDDEN)
        .iter()
        .map(|&channel| channel as i64)
        .collect();
    if kept.len() == editor.teacher_spec().size(HIDDEN) {
        return Ok(x.shallow_clone());
    }
    Ok(x.f_index_select(side, &Tensor::f_from_slice(&kept)?.f_to_device(x.device())?)?)
}
