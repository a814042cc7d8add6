use std::path::PathBuf;

use minitron_core::contract::Reconstruction;
use minitron_core::error::{Error, Result};
use minitron_core::reconstruct::StudentEditor;
use minitron_core::spec::{HIDDEN, MLP, ParamKind, Role, dim_of_layer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{IValue, Tensor};

use crate::script::Script;

/// A repair of the MLPs' second projections written in PyTorch: `forward(student_ef, teacher_ef,
/// kept_e, kept_f) -> weight_ef` of a module that `torch.jit.script` saved, layer by layer. The
/// student's weight [E, F] and the teacher's whole one in f64, and which of the teacher's rows and
/// columns the student has; the result replaces the student's.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Torchscript {
    /// The file.
    pub path: PathBuf,
    #[serde(skip)]
    script: Script,
}

minitron_core::plugin! {
    Reconstruction for Torchscript {
        tag: "torchscript",
        summary: "a repair of second projections from a TorchScript file",
        source: "the file's author",
    }
}

#[typetag::serde(name = "torchscript")]
impl Reconstruction for Torchscript {
    fn reconstruct(&self, editor: &mut StudentEditor) -> Result<()> {
        if editor.is_whole() {
            return Ok(());
        }
        for layer in 0..editor.n_layers() {
            let Some(at) = editor.spec().part_with(layer, Role::DOWN) else {
                continue;
            };
            let student_ef = editor.read(at, Role::DOWN, ParamKind::Weight)?;
            let teacher_ef = editor.read_teacher(at, Role::DOWN, ParamKind::Weight)?;
            let neurons = dim_of_layer(MLP, editor.source_layer(layer));
            let (kept_e, kept_f) = (kept(editor, HIDDEN)?, kept(editor, &neurons)?);
            let shape = student_ef.size();
            let arguments = [student_ef, teacher_ef, kept_e, kept_f].map(IValue::Tensor);
            let fitted_ef = tch::no_grad(|| self.script.call(&self.path, "forward", &arguments))?;
            if fitted_ef.size() != shape {
                let message = format!("expected a weight of {shape:?}, got {:?}", fitted_ef.size());
                return Err(Error::Data(format!(
                    "{}: `forward`: {message}",
                    self.path.display()
                )));
            }
            editor.replace(at, Role::DOWN, ParamKind::Weight, &fitted_ef)?;
        }
        Ok(())
    }
}

/// The teacher's units that stay.
fn kept(editor: &StudentEditor, dim: &str) -> Result<Tensor> {
    let kept: Vec<i64> = editor.kept(dim).iter().map(|&unit| unit as i64).collect();
    Ok(Tensor::f_from_slice(&kept)?)
}
