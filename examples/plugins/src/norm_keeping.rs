use minitron_core::contract::Reconstruction;
use minitron_core::error::Result;
use minitron_core::reconstruct::StudentEditor;
use minitron_core::spec::{ParamKind, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Scales every second projection of an MLP so that its Frobenius norm is the teacher's again:
/// fewer neurons, as much output where they are alike.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NormKeeping {}

minitron_core::plugin! {
    Reconstruction for NormKeeping {
        tag: "norm_keeping",
        summary: "second projections scaled back to the teacher's norm",
        source: "an example",
    }
}

#[typetag::serde(name = "norm_keeping")]
impl Reconstruction for NormKeeping {
    fn reconstruct(&self, editor: &mut StudentEditor) -> Result<()> {
        for layer in 0..editor.n_layers() {
            let (role, kind) = (Role::DOWN, ParamKind::Weight);
            let Some(at) = editor.spec().part_with(layer, role) else {
                continue;
            };
            let student_ef = editor.read(at, role, kind)?;
            let teacher_ef = editor.read_teacher(at, role, kind)?;
            let (ours, theirs) = (
                student_ef.f_norm()?.f_double_value(&[])?,
                teacher_ef.f_norm()?.f_double_value(&[])?,
            );
            if ours > 0.0 && ours != theirs {
                editor.replace(at, role, kind, &student_ef.f_mul_scalar(theirs / ours)?)?;
            }
        }
        Ok(())
    }
}
