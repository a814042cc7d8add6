use std::path::PathBuf;

use minitron_core::contract::{LogitLoss, TeacherNeed};
use minitron_core::error::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{IValue, Tensor};

use crate::script::Script;

/// A loss written in PyTorch: `forward(student_nv, teacher_nv, labels_n) -> loss_n` of a module
/// that `torch.jit.script` saved. Raw logits [N, V], next tokens \[N\], one number per row.
/// Gradients go through it.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Torchscript {
    /// The file.
    pub path: PathBuf,
    #[serde(skip)]
    script: Script,
}

minitron_core::plugin! {
    LogitLoss for Torchscript {
        tag: "torchscript",
        summary: "a loss on logits from a TorchScript file",
        source: "the file's author",
    }
}

#[typetag::serde(name = "torchscript")]
impl LogitLoss for Torchscript {
    // What it makes of them is not known here.
    fn teacher(&self) -> TeacherNeed {
        TeacherNeed::Logits
    }

    fn rows(
        &self,
        student_nv: &Tensor,
        teacher_nv: Option<&Tensor>,
        labels_n: &Tensor,
    ) -> Result<Tensor> {
        let teacher_nv =
            teacher_nv.ok_or_else(|| Error::Internal("torchscript was given no teacher".into()))?;
        let arguments = [student_nv, &teacher_nv.f_detach()?, labels_n]
            .map(|x| IValue::Tensor(x.shallow_clone()));
        self.script.call(&self.path, "forward", &arguments)
    }
}
